"""One video: what it shares with others, what it does not, and that it is the same every time."""

from dataclasses import replace

import numpy as np
import pytest

import motion
from motion import filming
from motion.plan import SPLITS, MotionPlan
from vidfuse.errors import InputError

PLAN = MotionPlan(frames=6, size=48)


def test_the_same_place_in_the_plan_gives_the_same_frames():
    first = motion.render_clip("walk", PLAN, "val", 1)
    assert first.shape == (6, 48, 48, 3) and first.dtype == np.uint8
    assert np.array_equal(first, motion.render_clip("walk", PLAN, "val", 1))


@pytest.mark.parametrize(
    ("action", "split", "number", "seed"),
    [("walk", "val", 2, 0), ("walk", "test", 1, 0), ("run", "val", 1, 0), ("walk", "val", 1, 1)],
)
def test_another_place_in_the_plan_gives_another_scene(action, split, number, seed):
    first = motion.render_clip("walk", PLAN, "val", 1).astype(int)
    assert np.abs(first[0] - first[-1]).max() > 50  # something moves
    other = motion.render_clip(action, replace(PLAN, seed=seed), split, number)
    assert np.abs(first - other).mean() > 10


def test_a_performer_is_in_one_split_only_and_in_one_video_of_each_action_there():
    plan = MotionPlan()
    cast = {s: {filming.performer_of(plan, s, n) for n in range(getattr(plan, s))} for s in SPLITS}
    assert {s: len(people) for s, people in cast.items()} == {"train": 60, "val": 15, "test": 20}
    assert len(set.union(*cast.values())) == 95


def test_without_difficulty_and_variety_all_videos_show_one_person_in_one_scene():
    plan = replace(PLAN, difficulty=0.0, variety=0.0)
    scenes = [filming._scene(plan, "train", np.random.default_rng(seed)) for seed in range(9)]
    assert {(s.yaw, s.pitch, s.distance, s.lift) for s in scenes} == {(0.0, 0.0, scenes[0].distance, 0.0)}
    assert len({s.clothes["shirt"].tobytes() for s in scenes}) == 1
    assert len({filming.performer_of(plan, split, n) for split in SPLITS for n in range(9)}) == 1


@pytest.mark.parametrize("action", motion.ACTIONS)
def test_the_person_is_in_the_picture(action, monkeypatch):
    """What differs from the same video without limbs is the person: of a person's size, near the middle."""
    plan = replace(PLAN, frames=20)
    video = motion.render_clip(action, plan, "test", 4)
    monkeypatch.setattr(filming.drawing, "draw", lambda *_: None)
    person = (video != motion.render_clip(action, plan, "test", 4)).any(-1)
    share = person.mean((1, 2))
    assert share.min() > 0.02 and share.max() < 0.5
    columns = np.nonzero(person)[2]
    assert 0.3 < columns.mean() / plan.size < 0.7


@pytest.mark.parametrize(
    "wrong",
    [{"actions": ("walk",)}, {"actions": ("walk", "swim")}, {"actions": ("walk", "walk")}, {"test": 0}, {"size": 33},
     {"difficulty": 1.5}, {"frames": 1}, {"variety": -0.1}, {"variety": float("nan")}],
)  # fmt: skip
def test_plans_that_cannot_be_are_refused(wrong):
    with pytest.raises(InputError, match="expected"):
        replace(PLAN, **wrong)


@pytest.mark.parametrize("wrong", [("swim", "train"), ("walk", "training")])
def test_what_is_no_action_or_split_is_refused(wrong):
    action, split = wrong
    with pytest.raises(InputError, match="expected an action out of"):
        motion.render_clip(action, PLAN, split)


def test_the_contact_sheet_shows_every_action(tmp_path, monkeypatch):
    from PIL import Image

    from motion import __main__ as command

    monkeypatch.setattr("sys.argv", ["motion", "--contact-sheet", str(tmp_path / "sheet.webp")])
    command.main()
    with Image.open(tmp_path / "sheet.webp") as sheet:
        assert sheet.width > 800 and sheet.height > 400


def test_videos_are_rendered_by_a_command(tmp_path, monkeypatch, capsys):
    from motion import __main__ as command

    monkeypatch.setattr(command, "MotionPlan", lambda *videos: MotionPlan(*videos, ("jump", "walk"), 4, 32))
    monkeypatch.setattr("sys.argv", ["motion", "--render", str(tmp_path / "videos"), "--videos", "2", "1", "1"])
    command.main()
    root = tmp_path / "videos" / "Kinetics400ViPriors"
    assert capsys.readouterr().out.strip() == str(root) and len(list(root.glob("train/*.mp4"))) == 4


def test_videos_of_one_place_share_their_background_and_nothing_else_changes():
    scenes = [
        filming._scene(PLAN, "train", np.random.default_rng(seed), place)
        for seed, place in ((0, 4), (1, 4), (0, 5), (0, None))
    ]
    same = [np.array_equal(scenes[0].background, scene.background) for scene in scenes]
    assert same == [True, True, False, False]
    assert len({(scene.yaw, scene.phase, scene.speed) for scene in scenes}) == 2  # one for each seed
    at_home, elsewhere = (motion.render_clip("jump", PLAN, place=place) for place in (4, 5))
    changed = (at_home != elsewhere).any(-1)
    assert 0.4 < changed.mean() < 0.98  # the person stands before another background
