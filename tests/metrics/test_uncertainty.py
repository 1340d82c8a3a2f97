"""Intervals and paired tests."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from vidfuse.errors import InputError
from vidfuse.metrics import accuracy_interval, bootstrap_interval, mcnemar, paired_bootstrap


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (8, 10), (731, 1000), (0, 50), (50, 50), (19_999, 20_000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_is_where_the_score_test_just_does_not_reject(hits, n, confidence):
    """The ends solve (h/n - p)^2 = z^2 p (1 - p) / n, in 30 digits."""
    with mpmath.workdps(30):
        z2 = 2 * mpmath.erfinv(mpmath.mpf(confidence)) ** 2
        ends = sorted(
            mpmath.polyroots([n + z2, -2 * hits - z2, mpmath.mpf(hits) ** 2 / n], maxsteps=200, extraprec=200)
        )
        expected = [float(mpmath.re(end)) for end in ends]
    assert accuracy_interval(hits, n, confidence) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50)
@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0.01, 0.999))
def test_wilson_holds_the_share_and_stays_within_the_unit_interval(n, share, confidence):
    hits = round(share * n)
    low, high = accuracy_interval(hits, n, confidence)
    assert 0 <= low <= hits / n <= high <= 1


def test_bootstrap_interval_of_a_mean_is_near_scipys():
    values = np.random.default_rng(0).gamma(2.0, size=400)
    ours = bootstrap_interval(values, n_resamples=20_000)
    theirs = bootstrap((values,), np.mean, n_resamples=5_000, method="percentile", rng=1).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_bootstrap_of_hits_is_near_the_normal_interval():
    hits = np.arange(2000) < 1400
    half = 1.959964 * np.sqrt(0.7 * 0.3 / 2000)
    assert bootstrap_interval(hits, n_resamples=20_000) == pytest.approx((0.7 - half, 0.7 + half), abs=2e-3)


def test_stratified_bootstrap_centres_on_the_mean_of_class_means():
    rng = np.random.default_rng(0)
    strata = np.repeat([3, 5, 9], [1000, 100, 10])
    values = np.repeat([0.0, 1.0, 2.0], [1000, 100, 10]) + 0.1 * rng.normal(size=1110)
    rows = rng.permutation(1110)
    low, high = bootstrap_interval(values[rows], strata=strata[rows], n_resamples=4000)
    within = sum(values[strata == s].var() / (strata == s).sum() for s in (3, 5, 9)) / 9
    centre = np.mean([values[strata == s].mean() for s in (3, 5, 9)])
    assert (low + high) / 2 == pytest.approx(centre, abs=5e-3)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(within), rel=0.08)


def test_the_shortcut_for_hits_has_the_distribution_of_plain_resampling():
    hits = (np.random.default_rng(0).random(60) < 0.8).astype(float)
    nearly = hits + 1e-9 * np.arange(60)  # distinct values: the plain way
    assert bootstrap_interval(hits, n_resamples=40_000) == pytest.approx(
        bootstrap_interval(nearly, n_resamples=40_000), abs=0.018
    )


def test_same_seed_same_interval():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_interval(values, random_state=3) == bootstrap_interval(values, random_state=3)
    assert bootstrap_interval(values, random_state=3) != bootstrap_interval(values, random_state=4)


@settings(max_examples=40)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))
def test_mcnemar_counts_the_splits_that_are_as_uneven(b, c, both):
    first = np.array([1] * b + [0] * c + [1] * both + [0], dtype=bool)
    second = np.array([0] * b + [1] * c + [1] * both + [0], dtype=bool)
    result = mcnemar(first, second)
    as_uneven = sum(math.comb(b + c, k) for k in range(b + c + 1) if abs(2 * k - b - c) >= abs(b - c))
    assert (result.only_first, result.only_second) == (b, c)
    assert result.p_value == pytest.approx(as_uneven / 2 ** (b + c), rel=1e-12)


def test_mcnemar_of_a_prediction_with_itself():
    assert mcnemar([1, 0, 1], [1, 0, 1]).p_value == 1.0


def test_paired_bootstrap_is_antisymmetric_and_tighter_than_unpaired():
    rng = np.random.default_rng(0)
    easy = rng.normal(size=500)
    a, b = easy + 0.1 * rng.normal(size=500) + 0.05, easy + 0.1 * rng.normal(size=500)
    forth, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert forth.difference == pytest.approx(a.mean() - b.mean())
    assert forth.difference == -back.difference
    assert forth.p_value < 1e-3 and forth.interval.low > 0
    alone = bootstrap_interval(a)
    assert forth.interval.high - forth.interval.low < 0.3 * (alone.high - alone.low)
    assert "95% interval" in repr(forth)


def test_paired_bootstrap_rarely_rejects_where_nothing_differs():
    rejected = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        result = paired_bootstrap(rng.random(200) < 0.6, rng.random(200) < 0.6, n_resamples=400, random_state=seed)
        rejected += result.p_value < 0.05
    assert 1 <= rejected <= 22


def test_equal_predictions_have_p_1():
    assert paired_bootstrap([1, 0, 1], [1, 0, 1]).p_value == 1.0


def test_strata_give_the_difference_of_mean_class_accuracies():
    labels = np.array([0] * 90 + [1] * 10)
    first, second = np.ones(100, bool), np.array([True] * 90 + [False] * 10)
    assert paired_bootstrap(first, second, strata=labels).difference == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy_interval(3, 2), "hits=3, n=2"),
        (lambda: accuracy_interval(0, 0), "n ≥ 1"),
        (lambda: accuracy_interval(1, 2, 1.0), "between 0 and 1"),
        (lambda: bootstrap_interval([]), r"\(N,\)"),
        (lambda: bootstrap_interval([1.0, np.nan]), "row 1"),
        (lambda: bootstrap_interval([1.0], strata=[1, 2]), "strata"),
        (lambda: bootstrap_interval([1.0], n_resamples=0), "n_resamples"),
        (lambda: mcnemar([1, 2], [0, 1]), "booleans"),
        (lambda: mcnemar([1, 1], [0]), "got 2 and 1"),
        (lambda: paired_bootstrap([1.0], [1.0, 2.0]), "got 1 and 2"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
