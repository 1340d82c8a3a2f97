"""Videos as batches: exact clips, chance that depends on ids alone, one decode for all networks, listed failures."""

import numpy as np
import pytest
import torch

from vidfuse.errors import InputError
from vidfuse.video import datasets
from vidfuse.video.clips import ClipSampler, ViewPlan, sample_source
from vidfuse.video.datasets import Failure, Input, VideoDataset, Views, drop_broken
from vidfuse.video.decode import decode, probe
from vidfuse.video.lists import VideoItem, VideoList
from vidfuse.video.loader import EpochSampler, VideoLoader
from vidfuse.video.transforms import ClipTransform, TransformConfig, apply_view

TRAIN = Input(ClipSampler(length=8, interval=2, skip=1), TransformConfig(size=16, short_side=20))
OTHER = Input(ClipSampler(length=4, interval=4), TransformConfig(size=12, short_side=20))
PLAN = ViewPlan(clips=3, length=8, interval=2, crops="three", flip="both", size=16, short_side=20)


@pytest.fixture
def videos(small_videos):
    return VideoList(tuple(VideoItem(f"v{i}", str(path), i % 2) for i, path in enumerate(small_videos)))


@pytest.fixture
def broken(videos, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    bad = VideoItem("bad", str(tmp_path / "bad.mp4"), 0)
    return VideoList((*videos[:2], bad, *videos[2:]))


def test_a_training_clip_is_its_frames_augmented(videos):
    dataset = VideoDataset(videos, TRAIN, seed=5)
    dataset.set_epoch(2)
    for index, item in enumerate(videos):
        info = probe(item.path)
        frames = decode(item.path, np.arange(info.n_frames), size=20)
        indices = TRAIN.sampler.sample(info.n_frames, sample_source(5, 2, item.id, "", "time"))
        expected = ClipTransform(TRAIN.transform)(frames[indices], sample_source(5, 2, item.id, "", "augmentation"))
        sample = dataset[index]
        assert (sample.id, sample.label) == (item.id, item.label)
        assert torch.equal(sample.clips, expected)


def test_views_are_the_plans(videos):
    dataset = VideoDataset(videos, Views(PLAN, mean=(0, 0, 0), std=(1, 1, 1)))
    item, info = videos[4], probe(videos[4].path)
    frames = decode(item.path, np.arange(info.n_frames), size=20)
    clips = dataset[4].clips
    assert clips.shape == (18, 3, 8, 16, 16)
    for view, clip in zip(PLAN.views(item.id, info.n_frames), clips, strict=True):
        expected = apply_view(frames[list(view.frames)], view, 16, 20, (0, 0, 0), (1, 1, 1))
        assert torch.equal(clip, expected)


def test_row_44_a_video_shorter_than_the_clip_is_looped(videos):
    assert probe(videos[3].path).n_frames == 5
    still = TransformConfig(size=16, short_side=16, scale=None, flip=0, gray=0, jitter=0)
    clip = VideoDataset(videos, Input(ClipSampler(length=12, interval=1), still))[3].clips
    assert torch.equal(clip[:, :5], clip[:, 5:10])
    assert not torch.equal(clip[:, 0], clip[:, 1])


def test_several_networks_share_one_decode(videos, monkeypatch):
    calls = []
    monkeypatch.setattr(datasets, "decode", lambda *a, **k: (calls.append(a[1]), decode(*a, **k))[1])
    dataset = VideoDataset(videos, {"x3d": TRAIN, "swin": TRAIN, "timesformer": OTHER, "views": PLAN})
    sample = dataset[0]
    assert len(calls) == 1
    assert len(set(calls[0].tolist())) == len(calls[0])
    assert {name: tuple(clip.shape) for name, clip in sample.clips.items()} == {
        "x3d": (3, 8, 16, 16),
        "swin": (3, 8, 16, 16),
        "timesformer": (3, 4, 12, 12),
        "views": (18, 3, 8, 16, 16),
    }
    assert not torch.equal(sample.clips["x3d"], sample.clips["swin"])


def test_networks_may_share_the_place_in_time(videos, monkeypatch):
    decoded = []
    monkeypatch.setattr(datasets, "decode", lambda *a, **k: (decoded.append(len(a[1])), decode(*a, **k))[1])
    network = Input(ClipSampler(length=4, interval=2), TransformConfig(size=16, short_side=20))
    for shared in (True, False):
        dataset = VideoDataset(videos[:3], dict.fromkeys("abc", network), shared_time=shared)
        clips = [dataset[index].clips for index in range(3)]
        assert not any(torch.equal(clip["a"], clip[name]) for clip in clips for name in "bc")
    assert decoded[:3] == [4, 4, 4]
    assert min(decoded[3:]) > 4


def test_a_network_sees_the_same_clips_alone_and_among_others(videos):
    alone = VideoDataset(videos, {"swin": TRAIN})[1].clips["swin"]
    among = VideoDataset(videos, {"x3d": TRAIN, "swin": TRAIN})[1].clips["swin"]
    assert torch.equal(alone, among)


def test_frames_kept_in_memory_give_the_same_clips_and_are_decoded_once(videos, monkeypatch):
    plain = VideoDataset(videos, TRAIN)
    kept = VideoDataset(videos, TRAIN, memory=10**8)
    calls = []
    monkeypatch.setattr(datasets, "decode", lambda *a, **k: (calls.append(1), decode(*a, **k))[1])
    assert kept.preload() == []
    assert len(calls) == len(videos)
    for epoch in range(3):
        plain.set_epoch(epoch)
        kept.set_epoch(epoch)
        calls.clear()
        ours = [kept[i].clips for i in range(len(videos))]
        assert calls == []
        for index, clip in enumerate(ours):
            assert torch.equal(plain[index].clips, clip)


def test_memory_is_a_limit(videos, monkeypatch):
    dataset = VideoDataset(videos, TRAIN, memory=2 * 25 * 20 * 27 * 3)
    for index in range(len(videos)):
        assert dataset[index].clips.shape == (3, 8, 16, 16)
    assert sum(frames.nbytes for frames in dataset._frames.kept.values()) <= 2 * 25 * 20 * 27 * 3
    assert len(dataset._frames.kept) >= 2


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_workers(videos, workers):
    loader = VideoLoader(VideoDataset(videos, TRAIN, seed=3), batch_size=4, shuffle=True, workers=workers)
    seen = {}
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch, ids, labels in loader:
            assert batch.shape == (len(ids), 3, 8, 16, 16)
            assert labels.tolist() == [int(name[1:]) % 2 for name in ids]
            seen.update({(epoch, name): clip for name, clip in zip(ids, batch, strict=True)})
    reference = VideoDataset(videos, TRAIN, seed=3)
    for epoch in range(2):
        reference.set_epoch(epoch)
        for index, item in enumerate(videos):
            assert torch.equal(seen[epoch, item.id], reference[index].clips)
    assert not torch.equal(seen[0, "v5"], seen[1, "v5"])


def test_row_43_a_video_that_cannot_be_decoded_is_listed_and_the_run_goes_on(broken):
    loader = VideoLoader(VideoDataset(broken, TRAIN), batch_size=3)
    batches = list(loader)
    assert [len(ids) for _, ids, _ in batches] == [2, 3, 1]
    assert "bad" not in [name for _, ids, _ in batches for name in ids]
    list(loader)
    assert [failure.id for failure in loader.failures] == ["bad"]
    assert "expected a readable video" in loader.failures[0].reason


def test_row_43_strict_stops(broken):
    dataset = VideoDataset(broken, TRAIN, strict=True)
    with pytest.raises(InputError, match=r"bad\.mp4"):
        dataset[2]
    assert isinstance(VideoDataset(broken, TRAIN)[2], Failure)
    with pytest.raises(InputError, match="video 'bad'"):
        drop_broken(broken, strict=True)


def test_row_43_broken_videos_are_dropped_before_training(broken):
    good = drop_broken(broken)
    assert good.ids == tuple(f"v{i}" for i in range(6))
    assert [name for name, _ in good.skipped] == ["bad"]
    with pytest.raises(InputError, match="at least one readable video"):
        drop_broken(broken[2:3])


def test_a_split_without_labels(videos):
    unlabelled = VideoList(tuple(VideoItem(item.id, item.path) for item in videos))
    batch, ids, labels = next(iter(VideoLoader(VideoDataset(unlabelled, PLAN), batch_size=2)))
    assert batch.shape == (2, 18, 3, 8, 16, 16)
    assert ids == ["v0", "v1"]
    assert labels is None


def test_batches_by_network(videos):
    dataset = VideoDataset(videos, {"x3d": TRAIN, "timesformer": OTHER})
    batch, _, _ = next(iter(VideoLoader(dataset, batch_size=5)))
    assert {name: tuple(clips.shape) for name, clips in batch.items()} == {
        "x3d": (5, 3, 8, 16, 16),
        "timesformer": (5, 3, 4, 12, 12),
    }


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_the_videos_exactly(world_size):
    parts = [EpochSampler(17, shuffle=True, seed=1, rank=r, world_size=world_size) for r in range(world_size)]
    for epoch in range(2):
        for part in parts:
            part.set_epoch(epoch)
        assert sorted(i for part in parts for i in part) == list(range(17))
        assert [len(list(part)) for part in parts] == [len(part) for part in parts]
    assert list(parts[0]) != list(EpochSampler(17, shuffle=True, seed=1, world_size=world_size))


def test_what_makes_no_data_set(videos):
    with pytest.raises(InputError, match="at least one video"):
        VideoDataset([], TRAIN)
    with pytest.raises(InputError, match="at least one network"):
        VideoDataset(videos, {})
    with pytest.raises(InputError, match="short_side"):
        VideoDataset(videos, TRAIN, short_side=8)
    with pytest.raises(InputError, match="rank"):
        EpochSampler(4, shuffle=False, rank=2, world_size=2)
    for numbers in ({"batch_size": 0}, {"workers": -1}):
        with pytest.raises(InputError, match="batch_size >= 1 and workers >= 0"):
            VideoLoader(VideoDataset(videos, TRAIN), **numbers)


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_row_43_a_truncated_video_is_a_failure_with_its_reason(name, videos, tmp_path, write_video):
    options = {"movflags": "+faststart"} if name == "cut.mp4" else {}
    cut = write_video(tmp_path / name, gop=12, size=(24, 32), container_options=options)
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) * 7 // 10])
    listed = VideoList((videos[0], VideoItem("cut", str(cut), 0)))
    loader = VideoLoader(VideoDataset(listed, PLAN), batch_size=2)
    assert [list(ids) for _, ids, _ in loader] == [["v0"]]
    ((video_id, reason),) = [(f.id, f.reason) for f in loader.failures]
    assert video_id == "cut" and "truncated" in reason and "allow_truncated" in reason
    assert VideoDataset(listed, PLAN, memory=1 << 30).preload()[0][0] == "cut"
    with pytest.raises(InputError, match="truncated"):
        VideoDataset(listed, PLAN, strict=True)[1]
    assert len(VideoDataset(listed, PLAN, allow_truncated=True)[1].clips) == PLAN.n_views


def test_a_video_is_counted_once_whatever_is_asked_of_it(small_videos, monkeypatch):
    """Some videos have to be decoded to be counted."""
    asked = []
    count = datasets.probe
    monkeypatch.setattr(datasets, "probe", lambda path: (asked.append(path), count(path))[1])
    items = VideoList(tuple(VideoItem(f"v{i}", str(path), 0) for i, path in enumerate(small_videos[:2])))
    dataset = VideoDataset(items, ViewPlan(clips=2, length=4, size=16))
    first = [sample.clips for sample in dataset]
    assert all(torch.equal(a, b.clips) for a, b in zip(first, dataset, strict=True))
    assert asked == [item.path for item in items]
