"""The embedded data set: the challenge's layout, the same bytes every time, and what is left when it is interrupted."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vidfuse.errors import InputError
from vidfuse.video import decode, filming, vipriors
from vidfuse.video.motion import ACTIONS, MotionPlan, render_clip, render_motion

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


def test_videos_differ_in_everything_but_the_action():
    plan = replace(PLAN, size=48)
    first, second = (render_clip("walk", plan, "train", seed) for seed in (1, 2))
    assert first.shape == (6, 48, 48, 3) and first.dtype == np.uint8
    assert np.abs(first.astype(int) - second).mean() > 10  # another scene
    assert np.abs(first[0].astype(int) - first[-1]).max() > 50  # and something moves
    assert np.array_equal(first, render_clip("walk", plan, "train", 1))


def test_without_difficulty_the_camera_stands_still():
    plan = replace(PLAN, difficulty=0.0)
    scenes = [filming._scene(plan, "train", np.random.default_rng(seed)) for seed in range(9)]
    assert {(s.yaw, s.pitch, s.distance) for s in scenes} == {(0.0, 0.0, scenes[0].distance)}


@pytest.mark.parametrize("action", ACTIONS)
def test_poses_follow_the_recording(action):
    """Poses pass through the recorded frames, and their rotations are unit quaternions."""
    recorded = filming._recording(action)
    plan = replace(PLAN, frames=50)
    poses = filming._poses(action, plan, filming._scene(plan, "val", np.random.default_rng(0)))
    assert poses.shape == (50, 44) and np.isfinite(poses).all()
    for start in filming._QUATERNIONS:
        np.testing.assert_allclose(np.linalg.norm(poses[:, start : start + 4], axis=1), 1, atol=1e-9)
        assert ((recorded[1:, start : start + 4] * recorded[:-1, start : start + 4]).sum(1) > 0).all()
    low, high = recorded[:, 1:4].min(0) - 1e-9, recorded[:, 1:4].max(0) + 1e-9
    assert ((poses[:, 1:4] >= low) & (poses[:, 1:4] <= high)).all()


def test_hues_are_the_colour_circle():
    import colorsys

    for h in np.linspace(0, 0.99, 12):
        np.testing.assert_allclose(filming._hsv(h, 0.7, 0.9), colorsys.hsv_to_rgb(h, 0.7, 0.9), atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [{"actions": ("walk",)}, {"actions": ("walk", "swim")}, {"actions": ("walk", "walk")}, {"test": 0}, {"size": 33},
     {"difficulty": 1.5}, {"frames": 1}],
)  # fmt: skip
def test_plans_that_cannot_be_are_refused(wrong):
    with pytest.raises(InputError, match="expected"):
        replace(PLAN, **wrong)
