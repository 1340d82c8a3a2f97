"""Stacking against its objective, written out and minimised by SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_cases import K, members
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

from vidfuse import LogitStack, LogLinearPool, StackedPool, TemperatureScaling, VectorScaling
from vidfuse.errors import InputError


def floored(arrays, floor, scales):
    scores = np.stack([scale * arrays[name] for name, scale in zip(sorted(arrays), scales, strict=True)], axis=1)
    log_p = log_softmax(scores, axis=2)
    return np.logaddexp(np.log1p(-floor) + log_p, np.log(floor / K))


@pytest.mark.parametrize("structure", ["shared", "diagonal"])
@pytest.mark.parametrize("shrinkage", [1.0, 25.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_minimises_the_loss_and_its_priors(structure, shrinkage, weighted):
    """NLL + ½·Σω²·(λ_w·Σ(β_mc - β_m)² + λ_b·Σ b_c²) around the learned pool; ten times the precision per class."""
    arrays, y = members(60, seed=4)
    weight = 1.0 + np.arange(60) % 3 if weighted else np.ones(60)
    stack = LogitStack.from_arrays(arrays, labels=y)
    pool = StackedPool(structure, shrinkage=shrinkage).fit(stack, sample_weight=weight)
    static = LogLinearPool(per_class=False).fit(stack, sample_weight=weight)
    centre = np.repeat((static.weights_ / static.temperature_)[:, None], K, axis=1)
    log_p, omega = floored(arrays, 0.001, static.scale_), weight / weight.sum()
    precision = 10 * shrinkage if structure == "diagonal" else shrinkage

    def unpack(x):
        beta = x[:-K].reshape(3, -1)
        return np.broadcast_to(beta, (3, K)), x[-K:], beta - centre[:, : beta.shape[1]]

    def objective(x):
        beta, bias, away = unpack(x)
        u = np.einsum("nmk,mk->nk", log_p, beta) + bias
        loss = omega @ (logsumexp(u, axis=1) - u[np.arange(60), y])
        return loss + 0.5 * (omega @ omega) * (precision * (away**2).sum() + shrinkage * (bias**2).sum())

    start = np.concatenate([(centre if structure == "diagonal" else centre[:, :1]).ravel(), np.zeros(K)])
    best = minimize(objective, start, method="BFGS", options={"gtol": 1e-7})
    beta, bias, _ = unpack(best.x)
    np.testing.assert_allclose(pool.coef_, beta, atol=2e-3)
    np.testing.assert_allclose(pool.intercept_, bias, atol=2e-3)
    assert pool.optimality_gap_ <= 1e-7
    own = pool.coef_ if structure == "diagonal" else pool.coef_[:, :1]
    assert objective(np.concatenate([own.ravel(), pool.intercept_])) <= best.fun + pool.optimality_gap_ + 1e-7
    fused = np.einsum("nmk,mk->nk", log_p, pool.coef_) + pool.intercept_
    np.testing.assert_allclose(pool.predict_log_proba(stack), log_softmax(fused, axis=1), atol=1e-5)


@pytest.mark.parametrize(
    ("parameters", "what"), [({"structure": "full"}, "structure"), ({"shrinkage": 0.0}, "positive")]
)
def test_parameters_out_of_range_are_refused(parameters, what):
    arrays, y = members(20)
    with pytest.raises(InputError, match=what):
        StackedPool(**parameters).fit(LogitStack.from_arrays(arrays, labels=y))


def test_with_few_videos_models_per_class_stay_near_what_they_are_centred_on():
    """Simulated: every class is overrated or underrated by all members, which few videos cannot show."""

    def apart(count):
        rng = np.random.default_rng(0)
        y = rng.integers(0, 10, count + 1000)
        z = rng.normal(size=(count + 1000, 3, 10)) + 2.0 * np.eye(10)[y][:, None] + rng.normal(size=10)
        (x, truth), new = (z[:count], y[:count]), z[count:]
        pool = LogLinearPool(per_class=False).fit(x, truth).predict_log_proba(new)
        rules = [StackedPool(), StackedPool("diagonal"), LogLinearPool()]
        pairs = [(pool, rule.fit(x, truth).predict_log_proba(new)) for rule in rules]
        one, other = log_softmax(x[:, 0], axis=1), log_softmax(new[:, 0], axis=1)
        pairs += [tuple(s.fit(one, truth).transform(other) for s in (TemperatureScaling(), VectorScaling()))]
        return np.array([(np.exp(p) * (p - q)).sum(axis=1).mean() for p, q in pairs])

    few, many = apart(12), apart(1200)
    assert (few < 0.1).all()
    assert (few < 0.2 * many).all()
