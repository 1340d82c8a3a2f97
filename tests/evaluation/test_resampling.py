"""Intervals and differences by drawing videos, against the bootstrap written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

import vidfuse as vf
from vidfuse.evaluation.resampling import Draw


def rounds(seed=0, n=90, k=3, repeats=2, strength=1.0):
    """Return labels, and the log-likelihoods (N, K) of each repeat."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    return y, [log_softmax(rng.normal(size=(n, k)) + strength * np.eye(k)[y], axis=1) for _ in range(repeats)]


def written_out(values, seed, n_resamples=4000):
    rows = np.random.default_rng(seed).integers(0, len(values), size=(n_resamples, len(values)))
    return values[rows].mean(axis=1)


def test_the_interval_draws_videos_with_their_mean_over_the_repeats():
    y, repeated = rounds()
    hits = np.mean([p.argmax(axis=1) == y for p in repeated], axis=0)
    true = np.mean([p[np.arange(90), y] for p in repeated], axis=0)
    for objective, values, sign in (("accuracy", hits, 1), ("nll", true, -1)):
        found = Draw(y, objective, 0.9, 4000, 0).interval(repeated)
        expected = np.sort(sign * np.quantile(written_out(values, 1), [0.05, 0.95]))
        assert found == pytest.approx(tuple(expected), abs=0.01)


def test_mean_class_accuracy_draws_within_classes():
    y = np.array([0] * 80 + [1] * 10)
    z = np.log(np.where(np.arange(90)[:, None] % 2 == 0, [0.9, 0.1], [0.1, 0.9]))
    found = Draw(y, "mean-class-accuracy", 0.9, 4000, 0).interval([z])
    hits = (z.argmax(axis=1) == y).astype(float)
    drawn = (written_out(hits[:80], 1) + written_out(hits[80:], 2)) / 2
    assert found == pytest.approx(tuple(np.quantile(drawn, [0.05, 0.95])), abs=0.02)


def test_a_callable_is_called_on_the_same_draws_for_both():
    y, first = rounds()
    _, second = rounds(seed=0, strength=0.0)
    draw = Draw(y, lambda labels, z: -vf.metrics.nll(labels, z), 0.9, 150, 0)
    rows = np.random.default_rng(0).integers(0, 90, size=(150, 90))
    drawn = [
        np.array([np.mean([-vf.metrics.nll(y[r], p[r]) for p in repeated]) for r in rows])
        for repeated in (first, second)
    ]
    assert draw.interval(first) == pytest.approx(tuple(np.quantile(drawn[0], [0.05, 0.95])))
    found = draw.difference(first, second)
    assert found.interval == pytest.approx(tuple(np.quantile(drawn[0] - drawn[1], [0.05, 0.95])))
    mean = [np.mean([-vf.metrics.nll(y, p) for p in repeated]) for repeated in (first, second)]
    assert found.difference == pytest.approx(mean[0] - mean[1])
    assert found.confidence == 0.9 and (drawn[0] > drawn[1]).all()
    assert found.p_value == pytest.approx(2 / 151)
    assert draw.difference(second, first).p_value == found.p_value  # two-sided
    assert draw.difference(first, first).p_value == 1


def test_a_callable_is_called_200_times_at_most():
    y, repeated = rounds(repeats=1)
    calls = []
    Draw(y, lambda labels, z: calls.append(1) or 0.0, 0.9, 1000, 0).interval(repeated)
    assert len(calls) == 200


def test_an_infinite_loss_has_an_interval():
    y, (z,) = rounds(repeats=1)
    never = z.copy()
    never[0] = np.where(np.arange(3) == y[0], -np.inf, np.log(0.5))
    draw = Draw(y, "nll", 0.9, 500, 0)
    low, high = draw.interval([never])
    assert np.isfinite([low, high]).all() and high > 1e4 > low
    assert draw.difference([z], [never]).difference > 1e4
    assert draw.difference([never], [never]).difference == 0
