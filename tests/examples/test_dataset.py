"""The embedded data set: the challenge's layout, the same bytes every time, and what is left when it is interrupted."""

import errno
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from motion import MotionPlan, render_motion
from vidfuse.errors import InputError
from vidfuse.video import decode, vipriors

PLAN = MotionPlan(train=3, val=2, test=2, actions=("walk", "jump", "kick"), frames=6, size=32)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return render_motion(tmp_path_factory.mktemp("motion"), PLAN, workers=1, progress=False)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_layout_is_the_challenges(rendered):
    root = rendered.root
    assert root.name == "Kinetics400ViPriors"
    assert sorted(p.name for p in root.iterdir()) == ["annotations", "test", "train", "val"]
    text = {p.name: p.read_text().splitlines() for p in (root / "annotations").iterdir()}
    assert text["clsIdx.csv"] == ["label,idx", "walk,1", "jump,2", "kick,3"]
    assert text["kinetics400ViPriors-train.csv"][0] == "label,videoid,split"
    assert text["kinetics400ViPriors-val.csv"][0] == "label,videoid,split"
    assert text["kinetics400ViPriors-test-public.csv"][0] == "videoid,split"
    corrupted = text["kinetics400ViPriors_corrupted_videos.txt"]
    assert [line.split("/")[0] for line in corrupted] == ["train", "val", "test"]
    for split, n in (("train", 9), ("val", 6), ("test", 6)):
        assert len(list((root / split).glob("*.mp4"))) == n


def test_the_reader_of_the_challenge_finds_every_video_but_the_damaged(rendered):
    for split, n in (("train", 9), ("val", 6), ("test", 6)):
        videos = vipriors.read_vipriors(rendered.root, split)
        assert (len(videos), len(videos.skipped), len(videos.unlisted)) == (n - 1, 1, 0)
        assert videos.classes == PLAN.actions
        assert (videos.labels is None) == (split == "test")
        for video in videos:
            info = decode.probe(video.path)
            assert (info.n_frames, info.height, info.width) == (6, 32, 32)
        with pytest.raises(InputError):
            decode.probe(rendered.root / split / f"{videos.skipped[0][0]}.mp4")


def test_test_labels_lie_outside_what_the_method_reads(rendered):
    assert rendered.test_labels.parent == rendered.root.parent
    labels = dict(vipriors.read_annotations(rendered.test_labels))
    assert Counter(labels.values()) == {"walk": 2, "jump": 2, "kick": 2}
    assert set(labels) == {p.stem for p in (rendered.root / "test").glob("*.mp4")}


def test_several_processes_render_the_same_bytes(rendered, tmp_path):
    done = render_motion(tmp_path, PLAN, workers=2, progress=False)
    assert done.rendered == 21
    assert contents(tmp_path) == contents(rendered.root.parent)


def test_what_is_missing_is_rendered_and_nothing_else(rendered, tmp_path):
    render_motion(tmp_path, PLAN, workers=1, progress=False)
    videos = sorted((tmp_path / "Kinetics400ViPriors").glob("*/*.mp4"))
    kept = {p: p.stat().st_mtime_ns for p in videos[4:]}
    for path in videos[:4]:
        path.unlink()
    (videos[0].parent / ".half.mp4.1.tmp").write_bytes(b"half a video")
    assert render_motion(tmp_path, PLAN, workers=1, progress=False).rendered == 4
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert contents(tmp_path) == contents(rendered.root.parent)


def test_another_plan_is_refused(rendered):
    with pytest.raises(InputError, match="21 videos of another plan"):
        render_motion(rendered.root.parent, replace(PLAN, seed=1), progress=False)


def test_a_full_disk_is_an_error_with_the_path_and_leaves_no_half_of_a_video(rendered, tmp_path, monkeypatch):
    write, written = Path.write_bytes, []

    def full(path, data):
        written.append(path)
        if len(written) < 4:
            return write(path, data)
        write(path, data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left") as caught:
            render_motion(tmp_path, PLAN, workers=1, progress=False)
    assert caught.value.errno == errno.ENOSPC
    assert Path(caught.value.filename).parent == tmp_path / "Kinetics400ViPriors" / "train"
    whole = contents(rendered.root.parent)
    assert len(contents(tmp_path)) == 3
    assert all(whole[path] == data for path, data in contents(tmp_path).items())
    assert render_motion(tmp_path, PLAN, workers=1, progress=False).rendered == 18
    assert contents(tmp_path) == whole


def test_worker_processes_that_fail_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="2 of 2 rendering processes failed"):
        render_motion(tmp_path, PLAN, workers=2, progress=False)
    assert contents(tmp_path) == {}


def test_without_pyav_the_error_names_an_extra_that_brings_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "motion.dataset")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"vidfuse\[video\]"):
        import motion.dataset  # noqa: F401
