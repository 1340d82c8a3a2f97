"""What the page advises follows from its numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vidfuse as vf
from vidfuse.evaluation.worth import member_worth
from vidfuse.metrics import Interval, PairedDifference
from vidfuse.report.advice import advise, needed


def stacks(strengths, n=400, k=4, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for side in ("val", "test"):
        y = rng.integers(0, k, size=n)
        arrays = {name: rng.normal(size=(n, k)) + s * np.eye(k)[y] for name, s in strengths.items()}
        made.append(vf.LogitStack.from_arrays(arrays, labels=y, ids=[f"{side}{i}" for i in range(n)]))
    return made


def advice_of(strengths, rules=None, too_sure=0.0, **options):
    val, test = stacks(strengths, **options)
    rules = {"mine": vf.LogLinearPool("accuracy")} if rules is None else rules
    board = vf.leaderboard(val, test, rules=rules)
    worth = member_worth(val, test, rule=next(iter(rules.values())))
    return {advice.lead: advice for advice in advise(board, worth, too_sure)}, board, worth


def test_a_good_fusion_is_taken_and_members_that_it_needs_are_kept():
    found, board, worth = advice_of({"swin": 1.2, "x3d": 1.2, "tin": 1.2}, n=1500)
    first = found["Take “mine”."]
    assert first.tone == "do"
    assert f"{100 * board.entry('mine').gain.difference:.1f} points" in first.text
    assert all(row.lost.interval.low > 0 for row in worth.rows)
    (kept,) = [lead for lead in found if lead.startswith("Keep ") and "learned" not in lead]
    assert set(kept[5:-1].replace(" and ", ", ").split(", ")) == {"swin", "x3d", "tin"}


def test_a_fusion_below_a_member_is_not_taken():
    rules = {"mine": vf.LogLinearPool(weights={"swin": 0.05, "x3d": 0.95})}
    found, board, _ = advice_of({"swin": 4.0, "x3d": 0.3}, rules)
    assert board.instead.name == "swin"
    assert found["Take swin alone."].tone == "beware"
    assert "“mine” is" in found["Take swin alone."].text and "worse than swin" in found["Take swin alone."].text


def test_what_is_not_certain_says_how_many_videos_would_do():
    found, board, _ = advice_of({"swin": 1.5, "x3d": 0.6}, n=120, seed=1)
    low, high = board.entry("mine").gain.interval
    assert low < 0 < high
    first = next(iter(found.values()))
    assert first.tone == "unsure"
    count = needed(board.entry("mine").gain, 120)
    expected = f"About {count:,} videos" if count else "next to nothing"
    assert expected in first.text


def test_in_sample_nothing_is_advised():
    val, _ = stacks({"swin": 2.0, "x3d": 2.0})
    (only,) = advise(vf.leaderboard(val, folds=0), None, 0.0)
    assert only.lead == "Decide nothing by these numbers."


@pytest.mark.parametrize(("too_sure", "words"), [(0.05, "too sure"), (-0.05, "not sure enough"), (0.01, "off by 1.0")])
def test_probabilities_that_cannot_be_taken_at_their_word_are_said(too_sure, words):
    val, test = stacks({"swin": 2.0, "x3d": 2.0}, n=60)
    last = advise(vf.leaderboard(val, test), None, too_sure)[-1]
    assert words in last.text
    assert last.tone == ("do" if abs(too_sure) < 0.02 else "beware")


@given(st.floats(0.001, 0.5), st.floats(1.05, 4), st.integers(10, 100_000), st.booleans())
def test_with_as_many_videos_as_needed_the_interval_leaves_zero(difference, ratio, n, negative):
    """An interval's half width falls with the root of n; the count is rounded up to two digits."""
    sign = -1 if negative else 1
    half = ratio * difference
    found = PairedDifference(sign * difference, Interval(sign * difference - half, sign * difference + half), 0.95, 0.5)
    count = needed(found, n)
    assert count > n
    assert half * (n / count) ** 0.5 <= difference * (1 + 1e-9)
    assert count <= max(1.1 * n * ratio**2 + 1, n + 1)
