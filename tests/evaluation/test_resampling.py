"""Intervals and differences of every objective, against the functions of `metrics` and the bootstrap written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

import vidfuse as vf
from vidfuse.errors import InputError
from vidfuse.evaluation.resampling import LARGEST_LOSS, Draw

GROUPS = np.repeat(np.arange(30), 3)


def rounds(seed=0, n=90, k=3, repeats=2, strength=1.0):
    """Return labels, and the log-likelihoods (N, K) of each repeat."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    return y, [log_softmax(rng.normal(size=(n, k)) + strength * np.eye(k)[y], axis=1) for _ in range(repeats)]


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_intervals_are_of_the_mean_over_the_repeats(groups):
    y, repeated = rounds()
    hits = np.mean([p.argmax(axis=1) == y for p in repeated], axis=0)
    loss = -np.mean([p[np.arange(90), y] for p in repeated], axis=0)
    options = {"groups": groups, "confidence": 0.9}
    assert Draw(y, "accuracy", 0.9, groups=groups).interval(repeated) == vf.metrics.share_interval(hits, **options)
    found = Draw(y, "mean-class-accuracy", 0.9, groups=groups).interval(repeated)
    assert found == vf.metrics.share_interval(hits, strata=y, **options)
    found = Draw(y, "nll", 0.9, 500, groups=groups).interval(repeated)
    assert found == pytest.approx(
        tuple(vf.metrics.bootstrap_interval(loss, largest=LARGEST_LOSS, n_resamples=500, **options)), rel=1e-12
    )
    assert found.n_groups == (None if groups is None else 30)


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_differences_are_paired(groups):
    y, first = rounds(repeats=1)
    _, second = rounds(seed=0, strength=0.3, repeats=1)
    hits = [(p[0].argmax(axis=1) == y).astype(float) for p in (first, second)]
    for objective, strata in (("accuracy", None), ("mean-class-accuracy", y)):
        found = Draw(y, objective, groups=groups).difference(first, second)
        assert found == vf.metrics.share_difference(*hits, strata=strata, groups=groups)
    losses = [-p[0][np.arange(90), y] for p in (first, second)]
    found = Draw(y, "nll", groups=groups).difference(first, second)
    assert found == vf.metrics.mean_difference(losses[1], losses[0], groups=groups)
    assert found.difference > 0  # less is better


def test_many_at_once_are_those_of_each():
    y, first = rounds()
    _, second = rounds(seed=0, strength=0.2)
    for objective in ("accuracy", "mean-class-accuracy", "macro-f1", "nll", vf.metrics.brier):
        draw = Draw(y, objective, n_resamples=50, groups=GROUPS)
        both = draw.intervals({"a": first, "b": second})
        assert both["a"] == pytest.approx(tuple(draw.interval(first)))
        assert both["b"] == pytest.approx(tuple(draw.interval(second)))


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_a_callable_is_called_on_the_same_draws_for_both(groups):
    """The metric is the accuracy, so that SciPy-free formulas tell what BCa should be near, and swaps what p is."""
    y, first = rounds(repeats=1)
    _, second = rounds(seed=0, strength=0.0, repeats=1)
    calls = []

    def accuracy(labels, z):
        calls.append(len(labels))
        return vf.metrics.top_k_accuracy(labels, z)

    draw = Draw(y, accuracy, 0.95, 1500, 0, groups)
    named = Draw(y, "accuracy", 0.95, groups=groups)
    assert draw.interval(first) == pytest.approx(tuple(named.interval(first)), abs=0.03)
    assert len(calls) == 1 + 1500 + (90 if groups is None else 30)
    found, expected = draw.difference(first, second), named.difference(first, second)
    assert found.difference == pytest.approx(expected.difference)
    assert found.interval == pytest.approx(tuple(expected.interval), abs=0.05)
    assert found.p_value == pytest.approx(expected.p_value, abs=0.02)
    assert draw.difference(second, first).p_value == found.p_value  # two-sided
    assert draw.difference(first, first).p_value == 1


@pytest.mark.parametrize(
    ("objective", "groups"), [("macro-f1", None), ("macro-f1", GROUPS), (vf.metrics.macro_f1, GROUPS)]
)
def test_macro_f1_has_the_interval_and_the_test_of_any_callable(objective, groups):
    y, first = rounds()
    _, second = rounds(seed=0, strength=0.2)

    def f1(labels, z):
        return vf.metrics.macro_f1(labels, z)

    ours, any_ = (Draw(y, each, n_resamples=40, groups=groups) for each in (objective, f1))
    assert ours.interval(first) == pytest.approx(any_.interval(first))
    found, expected = ours.difference(first, second), any_.difference(first, second)
    assert found.difference == pytest.approx(np.mean([f1(y, p) for p in first]) - np.mean([f1(y, p) for p in second]))
    assert found.interval == pytest.approx(tuple(expected.interval))
    assert (found.p_value, found.test) == (expected.p_value, expected.test)


def test_each_of_two_groups_is_left_out_once():
    y, repeated = rounds(repeats=1)
    calls = []
    Draw(y, lambda labels, z: calls.append(1) or 0.5, n_resamples=20, groups=np.arange(90) % 2).interval(repeated)
    assert len(calls) == 1 + 20 + 2


def test_a_callable_is_called_as_often_as_asked_for_however_many_pairs():
    y, repeated = rounds(repeats=1)
    calls = []
    predictions = {name: repeated for name in "abcd"}
    draw = Draw(y, lambda labels, z: calls.append(1) or 0.5, 0.9, 1000, 0)
    draw.intervals(predictions)
    assert len(calls) == 4 * (1 + 1000 + 90)
    calls.clear()
    few = Draw(y, lambda labels, z: calls.append(1) or 0.5, 0.9, 20, 0)
    few.differences(predictions, [("a", "b"), ("a", "c"), ("b", "c")])
    assert len(calls) == 4 * (1 + 20 + 90) + 3 * 2 * 20  # each prediction is redrawn once, each pair swapped


def test_a_metric_that_is_no_number_on_some_draws_has_no_interval():
    y, repeated = rounds(repeats=1)

    def rare(labels, z):
        return np.nan if len(set(labels.tolist())) < 3 or labels[0] == 0 else 1.0

    found = Draw(y, rare, n_resamples=100).interval(repeated)
    assert np.isnan(found.low) and "no finite number on" in found.refused


def test_an_infinite_loss_has_an_interval():
    """A true class of probability 0 counts 13.8 nats: the mean of an infinite loss cannot be drawn."""
    y, (z,) = rounds(repeats=1)
    never = z.copy()
    never[0] = np.where(np.arange(3) == y[0], -np.inf, np.log(0.5))
    draw = Draw(y, "nll", 0.9, 500, 0)
    low, high = draw.interval([never])
    assert np.isfinite([low, high]).all()
    found = draw.difference([z], [never])
    assert found.difference == pytest.approx((LARGEST_LOSS + z[0, y[0]]) / 90)
    assert np.isfinite(found.interval).all()
    assert draw.difference([never], [never]).difference == 0


def test_bad_input():
    y, _ = rounds()
    with pytest.raises(InputError, match="confidence"):
        Draw(y, confidence=1.0)
    with pytest.raises(InputError, match="n_resamples"):
        Draw(y, n_resamples=0)
    with pytest.raises(InputError, match="objective"):
        Draw(y, "f1")


@pytest.mark.parametrize(
    ("objective", "method"),
    [
        ("accuracy", "Wilson"),
        ("mean-class-accuracy", "Wilson, variance within classes"),
        ("nll", "bootstrap-t, 40 resamples, losses of at most"),
        (vf.metrics.brier, "BCa, 40 resamples"),
    ],
)
def test_an_interval_says_how_it_was_computed(objective, method):
    y, repeated = rounds()
    found = Draw(y, objective, 0.9, n_resamples=40).interval(repeated)
    assert found.method == method or (objective == "nll" and found.method.startswith(method))
