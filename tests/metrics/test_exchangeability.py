"""Bets against exchangeability: p-values by definition, wealth whose mean is 1, false alarms, found changes."""

import numpy as np
import pytest
from scipy.stats import binom, kstest

from vidfuse.errors import InputError
from vidfuse.metrics.exchangeability import class_log_wealth, conformal_p_values, log_wealth


@pytest.mark.parametrize("length", [30, 512, 1100])
def test_p_values_are_ranks_among_all_that_came(length):
    """Pieces of 512 are ranked at once: none of it may be seen."""
    rng = np.random.default_rng(0)
    reference, stream, theta = rng.integers(0, 9, 40), rng.integers(0, 9, length), rng.random(length)
    expected = []
    for t, value in enumerate(stream):
        bag = np.r_[reference, stream[: t + 1]]
        expected.append(((bag > value).sum() + theta[t] * (bag == value).sum()) / len(bag))
    assert conformal_p_values(reference, stream, theta) == pytest.approx(expected)
    with pytest.raises(InputError, match=f"theta: expected a draw for each of {length} numbers"):
        conformal_p_values(reference, stream, theta[1:])


def test_p_values_of_exchangeable_numbers_are_uniform_and_independent():
    rng = np.random.default_rng(1)
    runs = np.array([conformal_p_values(rng.normal(size=5), rng.normal(size=4), rng.random(4)) for _ in range(2000)])
    for column in runs.T:
        assert kstest(column, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(runs.T) - np.eye(4)).max() < 0.08


def test_wealth_is_one_in_the_mean():
    """The mean over a fine grid of two p-values, each by the midpoint rule."""
    grid = (np.arange(400) + 0.5) / 400
    first, second = np.meshgrid(grid, grid)
    made = np.exp(log_wealth(np.stack([first.ravel(), second.ravel()])))
    assert made.mean(axis=1) == pytest.approx([1, 1], abs=1e-4)


def test_chance_reaches_twenty_in_at_most_one_of_twenty_runs():
    p = np.random.default_rng(2).random((400, 600))
    assert (log_wealth(p).max(axis=0) >= np.log(20)).sum() <= binom.ppf(0.999, 600, 0.05)


@pytest.mark.parametrize("p", [lambda r: r / 3, lambda r: 1 - r / 3, lambda r: 0.5 + (r - 0.5) / 3])
def test_p_values_that_are_not_uniform_are_found_late_in_a_stream_too(p):
    rng = np.random.default_rng(3)
    wealth = log_wealth(np.r_[rng.random(1000), p(rng.random(200))])
    assert wealth[:1000].max() < np.log(1000) < wealth.max()


def test_wealth_of_several_streams_is_that_of_each():
    p = np.random.default_rng(4).random((50, 3))
    assert log_wealth(p) == pytest.approx(np.stack([log_wealth(column) for column in p.T], axis=1))
    assert log_wealth(np.empty(0)).shape == (0,)
    with pytest.raises(InputError, match="p_values: expected numbers within 0"):
        log_wealth([1.5])


@pytest.mark.parametrize("even", [False, True])
def test_shares_of_classes_alarm_by_chance_as_rarely_as_stated(even):
    """Also where the reference has the same number of videos of each class, as many validation sets have."""
    rng, alarms = np.random.default_rng(5), 0
    for _ in range(300):
        before = np.arange(300) % 30 if even else rng.integers(0, 30, 300)
        wealth = class_log_wealth(before, rng.integers(0, 30, 250), 30, rng.random(250))
        alarms += wealth.max() >= np.log(20)
    assert alarms <= binom.ppf(0.999, 300, 0.05)


def test_a_stream_of_few_classes_is_found_within_three_blocks():
    rng = np.random.default_rng(6)
    wealth = class_log_wealth(np.arange(500) % 50, rng.integers(0, 5, 120), 50, rng.random(120))
    assert np.isneginf(wealth[:25]).all()
    assert wealth[:75].max() > np.log(1000)
