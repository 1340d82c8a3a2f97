"""Samplers as pure functions, and plans of views that replay exactly."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidfuse.errors import InputError
from vidfuse.video.clips import (
    ClipSampler,
    ViewPlan,
    crop_box,
    evenly_spaced,
    loop,
    random_skip,
    random_start,
    sample_source,
    uniform_interval,
)

SMALL = settings(max_examples=60)
frames = st.integers(1, 400)
lengths = st.integers(1, 40)
intervals = st.integers(1, 8)
shares = st.floats(0, 1)


class Fixed:
    """A source that gives the numbers it was made with."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


@SMALL
@given(frames, lengths, intervals, st.floats(0, 1, exclude_max=True))
def test_a_random_start_stays_inside_the_video(n_frames, length, interval, draw):
    clip = random_start(n_frames, length, interval, Fixed(draw))
    assert clip.shape == (length,)
    assert 0 <= clip.min() <= clip.max() < n_frames
    if (length - 1) * interval < n_frames:
        assert (np.diff(clip) == interval).all()
    else:
        assert np.array_equal(clip, np.arange(0, length * interval, interval) % n_frames)


def test_every_start_is_as_likely():
    rng = np.random.default_rng(0)
    starts = Counter(int(random_start(10, 3, 2, rng)[0]) for _ in range(6000))
    assert set(starts) == set(range(6))
    assert all(abs(n - 1000) < 150 for n in starts.values())  # 5 standard deviations


@SMALL
@given(frames, lengths, intervals, intervals, shares.filter(lambda x: x < 1), shares.filter(lambda x: x < 1))
def test_a_random_skip_keeps_to_its_range(n_frames, length, low, more, first, second):
    clip = random_skip(n_frames, length, (low, low + more), Fixed(first, second))
    assert clip.shape == (length,)
    assert 0 <= clip.min() <= clip.max() < n_frames
    if length > 1 and (length - 1) * low < n_frames:
        steps = set(np.diff(clip).tolist())
        assert len(steps) == 1
        assert low <= steps.pop() <= low + more


def test_every_skip_that_fits_is_drawn():
    rng = np.random.default_rng(0)
    steps = Counter(int(np.diff(random_skip(20, 5, (1, 6), rng))[0]) for _ in range(4000))
    assert set(steps) == {1, 2, 3, 4}  # 5 frames at interval 5 span 21
    assert all(abs(n - 1000) < 150 for n in steps.values())


@SMALL
@given(frames, lengths, intervals, st.integers(1, 12))
def test_evenly_spaced_clips_cover_the_video(n_frames, length, interval, n_clips):
    clips = evenly_spaced(n_frames, length, interval, n_clips)
    assert clips.shape == (n_clips, length)
    assert 0 <= clips.min() <= clips.max() < n_frames
    if (length - 1) * interval < n_frames and n_clips > 1:
        assert clips[0, 0] == 0
        assert clips[-1, -1] == n_frames - 1
        gaps = np.diff(clips[:, 0])
        assert gaps.max() - gaps.min() <= 1


def test_one_clip_lies_in_the_middle():
    assert evenly_spaced(11, 5, 1, 1).tolist() == [[3, 4, 5, 6, 7]]


@SMALL
@given(st.integers(1, 31))
def test_row_44_a_short_video_is_looped(n_frames):
    expected = [i % n_frames for i in range(0, 64, 2)]
    assert random_start(n_frames, 32, 2, np.random.default_rng(1)).tolist() == expected
    assert random_skip(n_frames, 32, (2, 4), np.random.default_rng(1)).tolist() == expected
    assert evenly_spaced(n_frames, 32, 2, 3).tolist() == [expected] * 3
    for view in ViewPlan(clips=3).views("short", n_frames):
        assert list(view.frames) == expected


@SMALL
@given(st.integers(1, 300), st.integers(1, 300), shares, shares, st.data())
def test_crops_lie_in_the_frame(height, width, long, short, data):
    size = data.draw(st.integers(1, min(height, width)))
    top, left = crop_box(height, width, size, long, short)
    assert 0 <= top <= height - size
    assert 0 <= left <= width - size
    assert crop_box(width, height, size, long, short) == ((left, top) if height != width else (top, left))


plans = st.builds(
    ViewPlan,
    clips=st.integers(1, 10),
    length=st.integers(1, 16),
    interval=intervals,
    crops=st.sampled_from(["centre", "three", "random"]),
    times=st.sampled_from(["random", "even"]),
    flip=st.sampled_from(["never", "both", "random"]),
    size=st.integers(1, 100),
    seed=st.integers(-5, 2**40),
)


@SMALL
@given(plans, st.text(max_size=10), frames)
def test_a_plan_replays_exactly(plan, video_id, n_frames):
    views = plan.views(video_id, n_frames)
    again = ViewPlan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert again.views(video_id, n_frames) == views
    assert len(views) == plan.n_views
    assert all(0 <= f < n_frames for view in views for f in view.frames)
    if plan.crops == "three":
        assert [view.long for view in views if not view.flip][:3] == [0.0, 0.5, 1.0] or plan.flip == "random"


def test_a_plan_gives_these_views_on_every_machine():
    plan = ViewPlan(clips=3, length=2, interval=2, skip=2, crops="random", flip="random", seed=1)
    views = plan.views("vidéo 1", 100)
    assert [view.frames for view in views] == [(27, 30), (65, 69), (63, 67)]
    assert [(round(view.long, 6), round(view.short, 6), view.flip) for view in views] == [
        (0.552831, 0.168053, False),
        (0.733933, 0.294508, False),
        (0.492127, 0.753076, False),
    ]


def test_plans_differ_by_seed_and_video():
    plan = ViewPlan(clips=4, seed=0)
    assert plan.views("a", 300) != plan.views("b", 300)
    assert plan.views("a", 300) != ViewPlan(clips=4, seed=1).views("a", 300)
    assert len({view.frames for view in plan.views("b", 300)}) > 1


def test_more_clips_keep_the_first_ones():
    few, many = ViewPlan(clips=3), ViewPlan(clips=10)
    assert many.views("a", 300)[:3] == few.views("a", 300)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clips": 0},
        {"length": 0},
        {"interval": 0},
        {"skip": -1},
        {"size": 0},
        {"size": 64, "short_side": 32},
        {"times": "sometimes"},
        {"crops": "four"},
        {"flip": "always"},
        {"times": "even", "skip": 1},
        {"colour": "red"},
    ],
)
def test_plans_that_make_no_sense(wrong):
    with pytest.raises(InputError, match="expected"):
        ViewPlan.from_dict(wrong)


@pytest.mark.parametrize("text", ["", "{", "[]", "7"])
def test_json_that_is_no_plan(text):
    with pytest.raises(InputError, match=r"as (a )?JSON"):
        ViewPlan.from_json(text)


@pytest.mark.parametrize(
    "call",
    [
        lambda: uniform_interval(0),
        lambda: uniform_interval(4, 0),
        lambda: uniform_interval(4, 1, -1),
        lambda: loop([0], 0),
        lambda: random_start(0, 4, 1, np.random.default_rng(0)),
        lambda: random_skip(10, 4, (3, 2), np.random.default_rng(0)),
        lambda: evenly_spaced(10, 4, 1, 0),
        lambda: crop_box(10, 10, 11),
        lambda: crop_box(10, 10, 5, long=1.5),
        lambda: ClipSampler(length=0),
        lambda: ViewPlan().views("a", 0),
    ],
)
def test_numbers_out_of_range(call):
    with pytest.raises(InputError, match="expected"):
        call()


def test_the_source_of_chance_is_fixed():
    assert sample_source(0, "a").random() == 0.05020754198446464
    assert sample_source(0, "a", "b").random() != sample_source(0, "ab").random()
