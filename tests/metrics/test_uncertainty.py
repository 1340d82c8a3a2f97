"""Intervals and tests against SciPy, the formulas written out, enumeration, and simulations with known truth."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vidfuse.errors import InputError
from vidfuse.metrics import (
    Interval,
    accuracy_interval,
    bootstrap_interval,
    holm,
    mcnemar,
    mean_difference,
    share_difference,
    share_interval,
)
from vidfuse.metrics.design import design_of
from vidfuse.metrics.intervals import (
    difference_bounds,
    mean_bounds,
    mean_difference_bounds,
    metric_bounds,
    share_bounds,
)
from vidfuse.metrics.significance import flip_p_values

CASES = [(8, 10), (0, 7), (7, 7), (123, 456), (1, 1), (1, 10_000)]


@pytest.mark.parametrize(("hits", "n"), CASES)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_wilson_is_scipys(hits, n, confidence):
    expected = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    assert accuracy_interval(hits, n, confidence) == pytest.approx(tuple(expected), abs=1e-12)
    values = np.arange(n) < hits
    assert share_interval(values, confidence=confidence) == pytest.approx(tuple(expected), abs=1e-12)


def test_a_group_a_video_is_nearly_the_same_as_no_groups():
    values = np.random.default_rng(0).random(500) < 0.7
    alone, each = share_interval(values), share_interval(values, groups=np.arange(500))
    assert each == pytest.approx(tuple(alone), abs=5e-4)
    assert each.n_groups == 500 and alone.n_groups is None


def test_copies_of_a_video_add_nothing():
    values = np.random.default_rng(0).random(200) < 0.8
    groups = np.repeat(np.arange(200), 5)
    once = share_interval(values, groups=np.arange(200))
    assert share_interval(np.repeat(values, 5), groups=groups) == pytest.approx(tuple(once), abs=1e-9)
    losses = -np.log(np.random.default_rng(1).random(200))
    once = bootstrap_interval(losses, groups=np.arange(200))
    assert bootstrap_interval(np.repeat(losses, 5), groups=groups) == pytest.approx(tuple(once), rel=1e-9)


def test_all_right_has_a_width():
    assert share_interval(np.ones(30)) == pytest.approx(tuple(accuracy_interval(30, 30)))
    grouped = share_interval(np.ones(300), groups=np.repeat(np.arange(30), 10))
    assert 0.85 < grouped.low < accuracy_interval(30, 30).low and grouped.high == 1
    assert share_interval(np.ones(30), strata=np.arange(30) % 10).low < 0.92


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"strata": np.arange(50)}, "every class has one video only"),
        ({"strata": np.arange(50) // 5, "groups": np.arange(50) // 5}, "every class has one group only"),
        ({"groups": np.zeros(50)}, "one group tells no variance"),
    ],
)
def test_row_66_an_interval_that_nothing_can_hold_is_refused(options, reason):
    found = share_interval(np.arange(50) % 3 > 0, **options)
    assert np.isnan(found.low) and np.isnan(found.high) and reason in found.refused
    assert reason in repr(found)
    for same in (np.ones(50), np.zeros(50)):
        assert np.isnan(share_interval(same, **options)).all()
    one = np.arange(50) == 0
    tested = share_difference(one, np.zeros(50), **options)
    assert reason in tested.interval.refused and tested.p_value == 1 and "no interval" in repr(tested)


def test_equal_losses_have_no_interval_unless_the_largest_is_known():
    assert "same value" in bootstrap_interval(np.full(20, 0.05)).refused
    low, high = bootstrap_interval(np.full(20, 0.05), largest=10.0)
    assert low < 0.05 < 0.05 + 10 / 20 < high  # a video in twenty may lose 10 nats


def test_the_mean_of_booleans_is_a_share():
    hits = np.arange(30) < 28
    assert bootstrap_interval(hits) == share_interval(hits)
    assert bootstrap_interval(np.ones(30, bool)).low < 0.9


def test_an_interval_is_a_pair_that_survives_a_pickle():
    found = share_interval([1, 0, 1, 1], groups=["a", "a", "b", "b"])
    low, high = found
    again = pickle.loads(pickle.dumps(found))
    assert (low, high) == again == found and vars(again) == vars(found)
    assert "2 groups" in repr(found)
    assert Interval(0.1, 0.2) == (0.1, 0.2)


def covered(low, high, truth):
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize(("n_classes", "of_each"), [(50, 2), (50, 3), (5, 12), (20, 10)])
def test_mean_class_accuracy_covers_where_classes_have_few_videos(n_classes, of_each):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(n_classes), of_each)
    share = rng.uniform(0.5, 0.95, n_classes)
    hits = (rng.random((len(labels), 1500)) < share[labels, None]).astype(float)
    assert 0.93 <= covered(*share_bounds(hits, design_of(len(labels), labels), 0.95), share.mean()) <= 0.975


@pytest.mark.parametrize("together", [0.0, 0.6])
@pytest.mark.parametrize("classes", [None, 5])
def test_shares_of_grouped_videos_are_covered(together, classes):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 8)
    same = np.sqrt(together) * rng.normal(size=(40, 1500))[groups]
    hits = (same + np.sqrt(1 - together) * rng.normal(size=(320, 1500)) < stats.norm.ppf(0.75)).astype(float)
    labels = None if classes is None else groups % classes
    assert 0.93 <= covered(*share_bounds(hits, design_of(320, labels, groups), 0.95), 0.75) <= 0.975
    if together:
        assert covered(*share_bounds(hits, design_of(320), 0.95), 0.75) < 0.85  # by clip


def test_losses_of_a_long_tail_are_covered():
    rng = np.random.default_rng(0)
    losses = rng.lognormal(-2, 1.0, size=(60, 1000))
    truth = np.exp(-2 + 1.0 / 2)
    assert covered(*mean_bounds(losses, design_of(60), 0.95, 800, 0, 50.0), truth) >= 0.935
    error = losses.std(axis=0, ddof=1) / np.sqrt(60)
    mean = losses.mean(axis=0)
    assert covered(mean - 1.96 * error, mean + 1.96 * error, truth) < 0.92


@pytest.mark.parametrize("n", [20, 50, 100])
def test_losses_of_few_wrong_videos_are_covered(n):
    """Two in a hundred lose 10 nats: often none of a sample's do."""
    rng = np.random.default_rng(0)
    losses = np.where(rng.random((n, 600)) < 0.02, 10, 0.05)
    assert covered(*mean_bounds(losses, design_of(n), 0.95, 500, 0, 13.8), 0.249) >= 0.95


def test_the_bootstrap_t_is_written_out():
    values = np.random.default_rng(3).lognormal(0, 0.7, size=30)
    found = bootstrap_interval(values, confidence=0.9, n_resamples=4000, random_state=1)
    drawn = np.random.default_rng(2).choice(values, size=(20_000, 30))
    t = (drawn.mean(axis=1) - values.mean()) / (drawn.std(axis=1, ddof=1) / np.sqrt(30))
    high, low = np.quantile(t, [0.05, 0.95])
    error = values.std(ddof=1) / np.sqrt(30)
    assert found == pytest.approx((values.mean() - low * error, values.mean() - high * error), rel=0.03)
    assert found == bootstrap_interval(values, confidence=0.9, n_resamples=4000, random_state=1)
    assert found != bootstrap_interval(values, confidence=0.9, n_resamples=4000, random_state=2)


def test_bca_is_scipys():
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=40)
    scipys = stats.bootstrap(
        (values,), np.var, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    )  # fmt: skip
    left_out = np.array([np.var(np.delete(values, i)) for i in range(40)])
    ours = metric_bounds(float(np.var(values)), scipys.bootstrap_distribution, left_out, 0.95)
    assert ours == pytest.approx(tuple(scipys.confidence_interval), rel=1e-6)


@pytest.mark.parametrize(("b", "c", "both"), [(5, 1, 3), (0, 4, 0), (10, 10, 2), (0, 0, 5), (40, 20, 0)])
def test_mcnemar_counts_the_splits_that_are_as_uneven(b, c, both):
    first = np.r_[np.ones(b), np.zeros(c), np.ones(both)]
    second = np.r_[np.zeros(b), np.ones(c), np.ones(both)]
    result = mcnemar(first, second)
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert (result.only_first, result.only_second) == (b, c)
    assert result.p_value == pytest.approx(expected, rel=1e-12)
    assert share_difference(first, second).p_value == result.p_value


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_flips_are_enumerated(values):
    totals = np.array(values, float)
    every = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in
             itertools.product((1, -1), repeat=len(values))]  # fmt: skip
    expected = np.mean([total >= abs(sum(values)) for total in every])
    assert flip_p_values(totals[:, None])[0][0] == pytest.approx(expected)


def test_random_flips_are_those_of_all_flips():
    totals = np.random.default_rng(0).normal(size=(16, 3)) + 0.3
    signs = 1.0 - 2.0 * ((np.arange(1 << 16)[:, None] >> np.arange(16)) & 1)
    expected = (np.abs(signs @ totals) >= np.abs(totals.sum(axis=0)) - 1e-9).mean(axis=0)
    found, every = flip_p_values(totals)
    assert not every
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_a_p_value_does_not_depend_on_what_else_is_compared():
    rng = np.random.default_rng(0)
    totals = rng.normal(size=(60, 4)) * (rng.random((60, 4)) < [0.4, 0.9, 0.1, 1.0]) + [0.1, 0.2, 0.0, 0.0]
    totals[:, 2] *= np.arange(60) < 9  # few enough to try all flips
    together, _ = flip_p_values(totals)
    for column in range(4):
        assert flip_p_values(totals[:, [column]])[0][0] == together[column]
    assert list(flip_p_values(totals[:, ::-1])[0]) == list(together[::-1])


def test_flips_of_single_videos_are_mcnemar():
    rng = np.random.default_rng(0)
    a, b = rng.random(300) < 0.7, rng.random(300) < 0.6
    grouped = share_difference(a, b, groups=np.arange(300))
    assert grouped.p_value == pytest.approx(mcnemar(a, b).p_value, abs=0.02)
    assert "300 groups" in grouped.test and "McNemar" in share_difference(a, b).test


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(30), 4)])
@pytest.mark.parametrize("strata", [None, np.arange(120) // 4 % 6])
def test_true_nulls_are_rejected_one_time_in_twenty(groups, strata):
    rng = np.random.default_rng(0)
    together = rng.normal(size=(120, 1)) if groups is None else rng.normal(size=(30, 1))[groups]
    rejected, runs = 0, 400
    design = design_of(120, strata, groups)
    first, second = ((together + rng.normal(size=(120, runs)) > 0).astype(float) for _ in range(2))
    if groups is not None:
        one = rng.normal(size=(30, runs))[groups]
        first, second = (together + one + rng.normal(size=(120, runs)) > 0).astype(float), second
        first, second = np.where(rng.random((30, runs))[groups] < 0.5, (first, second), (second, first))
    p, _ = flip_p_values(design.totals(first - second))
    rejected = float((p <= 0.05).mean())
    assert 0.02 <= rejected <= 0.075


def test_a_difference_is_agresti_and_mins():
    a = np.r_[np.ones(40), np.ones(9), np.zeros(4), np.zeros(7)]
    b = np.r_[np.ones(40), np.zeros(9), np.ones(4), np.zeros(7)]
    found = share_difference(a, b)
    n, only_a, only_b = 62, 9.5, 4.5
    centre = (only_a - only_b) / n
    half = 1.959964 * np.sqrt((only_a + only_b - (only_a - only_b) ** 2 / n) / n**2)
    assert found.interval == pytest.approx((centre - half, centre + half), rel=1e-5)
    assert found.difference == pytest.approx(5 / 60)


def test_differences_are_covered():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    shared = rng.normal(size=(40, 1500))[groups]
    a = shared + rng.normal(size=(200, 1500)) < 1.0
    b = shared + rng.normal(size=(200, 1500)) < 0.8
    truth = stats.norm.cdf(1.0 / np.sqrt(2)) - stats.norm.cdf(0.8 / np.sqrt(2))
    for design in (design_of(200, None, groups), design_of(200, groups % 5, groups)):
        assert 0.93 <= covered(*difference_bounds(a.astype(float) - b, design, 0.95), truth) <= 0.975


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(40), 3)])
def test_a_mean_difference_is_students(groups):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 120))
    values = (a - b) if groups is None else (a - b).reshape(40, 3).mean(axis=1)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert mean_difference(a, b, groups=groups, confidence=0.9).interval == pytest.approx(tuple(expected), abs=1e-12)


def test_losses_that_differ_on_few_videos_are_covered():
    rng = np.random.default_rng(0)
    first, second = (np.logaddexp(0, -3 * (1.2 + rng.normal(size=(60, 1000)))) for _ in range(2))
    low, high = mean_difference_bounds(first - second, design_of(60), 0.95)
    assert 0.93 <= covered(low, high, 0.0) <= 0.97


def test_a_mean_difference_is_antisymmetric_and_tighter_than_unpaired():
    rng = np.random.default_rng(0)
    easy = rng.normal(size=500)
    a, b = easy + 0.1 * rng.normal(size=500) + 0.05, easy + 0.1 * rng.normal(size=500)
    forth, back = mean_difference(a, b), mean_difference(b, a)
    assert forth.difference == pytest.approx(a.mean() - b.mean())
    assert forth.difference == -back.difference and forth.p_value == back.p_value
    assert forth.p_value < 1e-3 and forth.interval.low > 0
    alone = bootstrap_interval(a)
    assert forth.interval.high - forth.interval.low < 0.3 * (alone.high - alone.low)
    assert "95% interval" in repr(forth)


def test_equal_predictions_have_p_1():
    assert mean_difference([1, 0, 1], [1, 0, 1]).p_value == 1.0
    assert share_difference([1, 0, 1], [1, 0, 1]).p_value == 1.0
    assert mcnemar([1, 0, 1], [1, 0, 1]).p_value == 1.0


def test_strata_give_the_difference_of_mean_class_accuracies():
    labels = np.array([0] * 90 + [1] * 10)
    first, second = np.ones(100, bool), np.array([True] * 90 + [False] * 10)
    assert share_difference(first, second, strata=labels).difference == 0.5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_rule(values):
    found = holm(values)
    for index, p in enumerate(values):
        before = [q for q in sorted(values) if q <= p]
        assert found[index] >= min(1, p) and found[index] <= min(1, p * len(values)) + 1e-12
        assert found[index] == pytest.approx(
            max(min(1, (len(values) - place) * q) for place, q in enumerate(sorted(values)[: len(before)])), abs=1e-12
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy_interval(3, 2), "hits=3, n=2"),
        (lambda: accuracy_interval(0, 0), "n ≥ 1"),
        (lambda: accuracy_interval(1, 2, 1.0), "between 0 and 1"),
        (lambda: share_interval([0.5, 1.5]), "within 0 … 1"),
        (lambda: share_interval([1.0], groups=[1, 2]), "groups"),
        (lambda: share_interval([1.0], strata=[1, 2]), "strata"),
        (lambda: bootstrap_interval([]), r"\(N,\)"),
        (lambda: bootstrap_interval([1.0, np.nan]), "row 1"),
        (lambda: bootstrap_interval([1.0], groups=[1, 2]), "groups"),
        (lambda: bootstrap_interval([1.0], n_resamples=0), "n_resamples"),
        (lambda: mcnemar([1, 2], [0, 1]), "booleans"),
        (lambda: mcnemar([1, 1], [0]), "got 2 and 1"),
        (lambda: mean_difference([1.0], [1.0, 2.0]), "got 1 and 2"),
        (lambda: share_difference([1.0, 3.0], [1.0, 0.0]), "mean_difference"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
