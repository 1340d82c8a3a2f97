"""Weights per video: features against their definition, and videos that do not count."""

import tracemalloc

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from vidfuse import DynamicPool, LogitStack, LogLinearPool
from vidfuse.errors import AlignmentError, InputError
from vidfuse.fusion import dynamic
from vidfuse.fusion.dynamic import _confidence


def test_agreement_is_the_mean_probability_that_the_others_give_to_a_members_class():
    rng = np.random.default_rng(0)
    log_p = np.log(rng.dirichlet(np.ones(5), size=(20, 4))).astype(np.float32)
    confidence, agreement = _confidence(log_p)
    p = np.exp(log_p.astype(np.float64))
    for i in range(20):
        for m in range(4):
            said = [p[i, j, p[i, m].argmax()] for j in range(4) if j != m]
            assert agreement[i, m] == pytest.approx(np.mean(said), rel=1e-9)
            assert confidence[i, m] == pytest.approx(1 + (p[i, m] * np.log(p[i, m])).sum() / np.log(5), rel=1e-6)


def members(n=80, k=4):
    rng = np.random.default_rng(1)
    y = rng.integers(0, k, n)
    return {name: rng.normal(size=(n, k)) + 2 * np.eye(k)[y] for name in "ab"}, y


def test_videos_of_no_weight_are_nobodys_neighbours():
    arrays, y = members()
    weight = np.ones(80)
    weight[40:] = 0
    whole = DynamicPool().fit(LogitStack.from_arrays(arrays, labels=y), sample_weight=weight)
    half = DynamicPool().fit(LogitStack.from_arrays({name: z[:40] for name, z in arrays.items()}, labels=y[:40]))
    np.testing.assert_array_equal(whole.reference_root_, half.reference_root_)
    assert whole.gain_ == pytest.approx(half.gain_, abs=1e-6)


def test_a_stack_that_lacks_scores_is_refused_with_advice_that_holds():
    arrays, y = members()
    ids = [f"v{i}" for i in range(80)]
    stack = LogitStack.from_arrays(
        {"a": arrays["a"], "b": arrays["b"][:60]}, ids={"a": ids, "b": ids[:60]}, missing="allow", join="outer",
        labels=dict(zip(ids, y.tolist(), strict=True)),
    )  # fmt: skip
    with pytest.raises(AlignmentError, match=r"20 of 80 videos without some; keep those that all members have"):
        DynamicPool(LogLinearPool(missing="renormalise")).fit(stack)
    DynamicPool().fit(stack[stack.present.all(axis=1)])


def test_features_are_the_same_in_blocks_of_any_size_and_take_the_memory_of_a_block(monkeypatch):
    """Oracle for the agreement: every member's probability of every member's class, N x M x M numbers."""
    rng = np.random.default_rng(2)
    log_p = np.log(rng.dirichlet(np.ones(4), size=(500, 30))).astype(np.float32)
    p = np.exp(log_p.astype(np.float64))
    said = np.take_along_axis(p, p.argmax(axis=2)[:, None, :].repeat(30, axis=1), axis=2)
    expected = (said.sum(axis=1) - said.diagonal(axis1=1, axis2=2)) / 29
    monkeypatch.setattr(dynamic, "block_rows", lambda *_: 7)
    tracemalloc.start()
    confidence, agreement = _confidence(log_p)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(agreement, expected, atol=1e-12)
    np.testing.assert_allclose(confidence, 1 + (p * log_p).sum(axis=2) / np.log(4), atol=1e-12)
    assert peak < 500 * 30 * (2 * 8 + 8)  # the two results, and less than a quarter of the members' probabilities


@pytest.mark.parametrize("own", [True, False])
def test_competence_is_the_mean_over_the_nearest_videos(own, monkeypatch):
    arrays, y = members()
    stack = LogitStack.from_arrays(arrays, labels=y)
    pool = DynamicPool(features="competence", neighbours=5).fit(stack)
    root = np.sqrt(pool.pool_.predict_proba(stack))
    monkeypatch.setattr(dynamic, "_LIKENESS", 400)  # five videos at once
    found = pool._competence(root, own)
    for i in range(80):
        distance = ((root[i] - pool.reference_root_.astype(np.float64)) ** 2).sum(axis=1)
        if own:
            distance[i] = np.inf
        nearest = distance.argsort()[:5]
        np.testing.assert_allclose(found[i], pool.reference_log_true_[nearest].mean(axis=0), rtol=1e-9)


def test_a_zero_at_the_true_class_without_a_floor_is_refused():
    arrays, y = members()
    arrays["b"][7, y[7]] = -np.inf
    stack = LogitStack.from_arrays(arrays, labels=y, ids=[f"v{i}" for i in range(80)])
    without = DynamicPool(LogLinearPool("uniform", floor=0))
    with pytest.raises(InputError, match=r"true class: member 'b', id 'v7' \(row 7\); set floor"):
        without.fit(stack)
    weight = np.ones(80)
    weight[7] = 0
    assert np.isfinite(without.fit(stack, sample_weight=weight).gain_)
    assert np.isfinite(DynamicPool().fit(stack).gain_)


def test_one_video_of_positive_weight_gives_the_static_pool():
    arrays, y = members()
    weight = np.zeros(80)
    weight[3] = 1
    pool = DynamicPool().fit(LogitStack.from_arrays(arrays, labels=y), sample_weight=weight)
    assert pool.fallback_
    assert pool.gain_ == 0


def held_out_gain(z, y):
    """The gain over uniform weights and its standard error, from the definition alone: "confidence" and its halves."""
    log_p = log_softmax(z, axis=2)
    p = np.exp(log_p)
    said = np.take_along_axis(p, p.argmax(axis=2)[:, None].repeat(3, axis=1), axis=2)
    agreement = (said.sum(axis=1) - said.diagonal(axis1=1, axis2=2)) / 2
    x = np.stack([1 + (p * log_p).sum(axis=2) / np.log(4), agreement], axis=2)
    x -= x.mean(axis=1, keepdims=True)

    def losses(a, rows):
        weights = np.exp(x[rows] @ a)
        pooled = np.einsum("nm,nmk->nk", weights / weights.sum(axis=1, keepdims=True), log_p[rows])
        return -log_softmax(pooled, axis=1)[np.arange(len(rows)), y[rows]]

    order, gains = np.argsort(y, kind="stable"), np.empty(len(y))
    for fitted, judged in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        objective = lambda a, rows=fitted: losses(a, rows).mean() + 0.5 * a @ a / len(rows)  # noqa: E731
        a = minimize(objective, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12}).x
        gains[judged] = losses(np.zeros(2), judged) - losses(a, judged)
    return gains.mean(), gains.std() / np.sqrt(len(y))


@pytest.mark.parametrize(("seed", "errors"), [(8, 0.01), (12, 0.98), (55, 1.02), (4, 1.50)])
def test_weights_per_video_are_used_where_their_gain_exceeds_one_standard_error(seed, errors):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, 120)
    sharpness = rng.uniform(0.2, 3.0, size=(120, 3, 1))
    z = sharpness * (0.9 * rng.normal(size=(120, 3, 4)) + 0.7 * np.eye(4)[y][:, None])
    gain, error = held_out_gain(z, y)
    assert gain / error == pytest.approx(errors, abs=0.01) and gain > 0
    pool = DynamicPool(LogLinearPool("uniform"), features="confidence").fit(z, y)
    assert pool.gain_ == pytest.approx(gain, abs=1e-4)
    assert pool.fallback_ == (errors <= 1) and pool.strengths_.any() == (errors > 1)
