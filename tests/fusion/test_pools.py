"""Pools with given and scored weights, the linear optimum, floors, missing members: worked examples and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from vidfuse.errors import AlignmentError, InputError, VidfuseWarning
from vidfuse.fusion._solver.linear import fit_linear
from vidfuse.fusion.floors import member_floors
from vidfuse.fusion.linear import LinearPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.weights import (
    accuracy_weights,
    inverse_nll_weights,
    log_odds_weights,
    member_hits,
    true_log_likelihoods,
)
from vidfuse.likelihood import log_softmax
from vidfuse.stack.stack import LogitStack


def probabilities(n=60, members=3, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    z = rng.normal(size=(n, members, classes)) + np.linspace(0.5, 2, members)[:, None] * np.eye(classes)[y][:, None]
    return np.exp(log_softmax(z)), y


def test_the_papers_rule_by_hand():
    rng = np.random.default_rng(1)
    z, y = rng.normal(size=(50, 3, 4)) * 3, rng.integers(0, 4, 50)
    log_p = z - np.log(np.exp(z).sum(axis=2, keepdims=True))
    accuracy = np.array([(z[:, m].argmax(axis=1) == y).mean() for m in range(3)])
    total = sum(accuracy[m] * log_p[:, m] for m in range(3))
    pool = LogLinearPool(weights="accuracy").fit(z, y)
    np.testing.assert_array_equal(pool.predict(z), total.argmax(axis=1))
    np.testing.assert_allclose(pool.weights_, accuracy / accuracy.sum(), rtol=1e-12)
    scaled = total / accuracy.sum()
    expected = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(pool.predict_log_proba(z), expected, atol=3e-6)
    assert pool.temperature_ == 1.0
    assert pool.optimality_gap_ is None


def test_uniform_linear_pool_is_the_mean():
    p, _ = probabilities()
    pool = LinearPool(weights="uniform").fit(np.log(p))
    np.testing.assert_allclose(pool.predict_proba(np.log(p)), p.mean(axis=1), atol=1e-6)


def test_one_hot_weights_return_the_member():
    p, _ = probabilities()
    for pool in (LogLinearPool(weights=[0, 2, 0]), LinearPool(weights=[0, 2, 0])):
        np.testing.assert_allclose(pool.fit(np.log(p)).predict_proba(np.log(p)), p[:, 1], atol=1e-6)


def test_scored_weights_by_hand():
    np.testing.assert_allclose(accuracy_weights([0.8, 0.4], power=2), [0.8, 0.2])
    p = (90 + 0.5) / 101
    odds = np.log(p * 9 / (1 - p))
    q = (50 + 0.5) / 101
    other = np.log(q * 9 / (1 - q))
    np.testing.assert_allclose(log_odds_weights([90, 50], 100, 10), [odds / (odds + other), other / (odds + other)])
    np.testing.assert_allclose(inverse_nll_weights([0.5, np.inf]), [1.0, 0.0])
    with pytest.raises(InputError, match="power"):
        accuracy_weights([0.5], power=-1)


@pytest.mark.parametrize("rule", ["accuracy", "log-odds", "inverse-nll"])
def test_scored_weights_from_a_stack(rule):
    p, y = probabilities(seed=3)
    hits = (p.argmax(axis=2) == y[:, None]).sum(axis=0)
    loss = -np.log(p[np.arange(60), :, y]).mean(axis=0)
    expected = {
        "accuracy": accuracy_weights(hits / 60),
        "log-odds": log_odds_weights(hits, 60, 4),
        "inverse-nll": inverse_nll_weights(loss),
    }[rule]
    for pool in (LogLinearPool(weights=rule), LinearPool(weights=rule)):
        np.testing.assert_allclose(pool.fit(np.log(p), y).weights_, expected, atol=1e-6)


def test_members_that_earn_nothing_get_the_same_weight_with_a_warning():
    z = np.tile([3.0, 0.0, 0.0], (4, 2, 1))
    with pytest.warns(VidfuseWarning, match="no member earns a weight"):
        pool = LogLinearPool(weights="accuracy").fit(z, [1, 2, 1, 2])
    assert pool.weights_.tolist() == [0.5, 0.5]


def test_hits_and_true_log_likelihoods_of_every_kind():
    p, y = probabilities(seed=5)
    for kind, scores in (
        ("probabilities", p),
        ("sum", 7 * p),
        ("logits", np.log(p) + 3),
        ("log-likelihoods", np.log(p)),
    ):
        stack = LogitStack.from_arrays({"a": scores[:, 0], "b": scores[:, 1]}, kind=kind)
        np.testing.assert_array_equal(member_hits(stack, y), (p.argmax(axis=2) == y[:, None])[:, :2])
        got = true_log_likelihoods(stack, y, np.array([0.0, 0.2]))
        true = p[np.arange(60), :, y]
        np.testing.assert_allclose(got, np.log(np.stack([true[:, 0], 0.8 * true[:, 1] + 0.05], axis=1)), atol=1e-9)


def test_row_22_weights_all_zero():
    with pytest.raises(InputError, match="sum to zero"):
        LogLinearPool(weights=[0, 0]).fit(np.zeros((3, 2, 2)))


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_row_23_negative_or_nan_weight(bad):
    stack = LogitStack.from_arrays({"swin": np.zeros((3, 2)), "x3d": np.zeros((3, 2))})
    with pytest.raises(InputError, match="x3d"):
        LinearPool(weights=[1.0, bad]).fit(stack)


def test_row_24_given_weights_are_normalised_and_their_sum_kept():
    pool = LogLinearPool(weights={"member0": 1.0, "member1": 3.0}).fit(np.zeros((3, 2, 2)))
    assert pool.weights_.tolist() == [0.25, 0.75]
    assert pool.weight_sum_ == 4.0


def test_row_25_wrong_number_of_weights():
    with pytest.raises(InputError, match=r"expected 2, one for each of 'member0', 'member1', got 3"):
        LinearPool(weights=[1, 1, 1]).fit(np.zeros((3, 2, 2)))
    with pytest.raises(InputError, match="swin"):
        LinearPool(weights={"swin": 1.0}).fit(np.zeros((3, 2, 2)))


@pytest.mark.parametrize(
    "parameters", [{"weights": "best"}, {"class_weight": "equal"}, {"missing": "skip"}, {"floor": 1.0}, {"floor": "no"}]
)
def test_unknown_parameters_are_named(parameters):
    with pytest.raises(InputError, match=next(iter(parameters))):
        LogLinearPool(**{"weights": "uniform", **parameters}).fit(np.zeros((3, 2, 2)), [0, 1, 0])


def test_row_08_zeros_get_the_stated_floor():
    p = np.array([[[1.0, 0.0], [0.1, 0.9]]])
    arrays = {"a": p[:, 0], "b": p[:, 1]}
    stack = LogitStack.from_arrays(arrays, kind="probabilities")
    pool = LogLinearPool(weights="uniform").fit(stack)
    assert pool.floor_.tolist() == [1e-4, 1e-4]
    floored = (1 - 1e-4) * p + 1e-4 / 2
    expected = np.sqrt(floored.prod(axis=1))
    np.testing.assert_allclose(pool.predict_proba(stack), expected / expected.sum(), rtol=1e-5)
    veto = LogLinearPool(weights="uniform", floor=0.0).fit(stack).predict_proba(stack)
    np.testing.assert_array_equal(veto, [[1.0, 0.0]])
    mixed = LogitStack.from_arrays(arrays, kind={"a": "probabilities", "b": "sum"})
    assert member_floors(mixed, "auto", default=0.01).tolist() == [0.01, 0.01]


def linear_value(w, log_true, omega):
    return -omega @ np.log(np.exp(log_true) @ w)


@pytest.mark.parametrize(("n", "members", "seed"), [(40, 3, 0), (200, 6, 1), (15, 8, 2)])
def test_linear_optimum_against_slsqp(n, members, seed):
    rng = np.random.default_rng(seed)
    log_true, omega = np.log(rng.beta(1, 1, size=(n, members))), rng.dirichlet(np.ones(n))
    fit = fit_linear(log_true, omega)
    found = minimize(
        linear_value, np.full(members, 1 / members), (log_true, omega), method="SLSQP", bounds=[(0, 1)] * members,
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1}], options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert fit.nll == pytest.approx(found.fun, abs=1e-8)
    assert fit.nll <= found.fun + 1e-10
    assert fit.gap <= 1e-7
    assert fit.weights.sum() == pytest.approx(1.0, abs=1e-12)
    p = np.exp(log_true)
    assert fit.gap == pytest.approx((omega @ (p / (p @ fit.weights)[:, None])).max() - 1, abs=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(3, 40))
@example(2963, 2, 3)  # the two halves of a doubled member differ by less than their squares can show
def test_linear_fit_is_invariant_and_beats_any_mixture(seed, members, n):
    rng = np.random.default_rng(seed)
    log_true = np.log(rng.beta(0.7, 0.7, size=(n, members)) * 0.98 + 0.01)
    fit, omega = fit_linear(log_true), np.full(n, 1 / n)
    assert fit.gap <= 1e-7
    assert fit.nll <= linear_value(rng.dirichlet(np.ones(members)), log_true, omega) + 1e-12
    order = rng.permutation(members)
    np.testing.assert_allclose(fit_linear(log_true[:, order]).weights, fit.weights[order], atol=1e-5)
    doubled = fit_linear(np.concatenate([log_true, log_true[:, :1]], axis=1))
    assert doubled.nll == pytest.approx(fit.nll, abs=1e-9)
    assert doubled.weights[0] == pytest.approx(doubled.weights[-1], abs=1e-9)


def test_linear_fit_survives_zeros_and_tiny_probabilities():
    with np.errstate(divide="ignore"):
        fit = fit_linear(np.log([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    np.testing.assert_allclose(fit.weights, [1 / 3, 2 / 3], atol=1e-6)
    fit = fit_linear(np.array([[-800.0, -900.0], [-1000.0, -1.0]]))
    assert np.isfinite(fit.nll)
    assert fit.gap <= 1e-7


def test_linear_pool_learns_from_the_true_class_alone():
    p, y = probabilities(n=200, seed=9)
    pool = LinearPool().fit(np.log(p), y)
    fit = fit_linear(np.log(p[np.arange(200), :, y]))
    np.testing.assert_allclose(pool.weights_, fit.weights, atol=1e-5)
    balanced = LinearPool(class_weight="balanced").fit(np.log(p), y)
    weight = 1.0 / np.bincount(y)[y]
    weighted = LinearPool().fit(np.log(p), y, sample_weight=weight)
    np.testing.assert_allclose(balanced.weights_, weighted.weights_, atol=1e-9)


def incomplete():
    p, y = probabilities(n=40, seed=4)
    ids = np.array([f"v{i:02d}" for i in range(40)])
    arrays = {"a": p[:, 0], "b": p[:30, 1], "c": p[:, 2]}
    stack = LogitStack.from_arrays(
        arrays, kind="probabilities", ids={"a": ids, "b": ids[:30], "c": ids},
        labels=dict(zip(ids.tolist(), y.tolist(), strict=True)), join="outer",
    )  # fmt: skip
    return stack, p, y


@pytest.mark.parametrize("pool", [LogLinearPool(weights="accuracy", floor=0.0), LinearPool(floor=0.0)])
def test_missing_members_are_renormalised_per_video_on_request(pool):
    stack, p, _ = incomplete()
    with pytest.raises(AlignmentError, match="10 of 40"):
        pool.fit(stack)
    pool.set_params(missing="renormalise").fit(stack)
    assert pool.n_missing_.tolist() == [0, 10, 0]
    whole = type(pool)(weights=dict(zip("abc", pool.weights_, strict=True)), floor=0.0).fit(stack[:30])
    np.testing.assert_allclose(pool.predict_proba(stack)[:30], whole.predict_proba(stack[:30]), atol=1e-9)
    two = type(pool)(weights={"a": pool.weights_[0], "c": pool.weights_[2]}, floor=0.0).fit(stack.select(["a", "c"]))
    rest = stack[30:].select(["a", "c"])
    np.testing.assert_allclose(pool.predict_proba(stack)[30:], two.predict_proba(rest), atol=1e-9)
    absent = pool.predict_proba(stack.select(["c", "a"]))
    np.testing.assert_allclose(absent, two.predict_proba(stack.select(["a", "c"])), atol=1e-9)
    with pytest.raises(AlignmentError, match="some of the members"):
        pool.predict(LogitStack.from_arrays({"z": p[:, 0]}, kind="probabilities"))


def test_a_video_without_any_weighted_member_is_named():
    stack, _, _ = incomplete()
    pool = LinearPool(weights={"a": 0.0, "b": 1.0, "c": 0.0}, missing="renormalise").fit(stack)
    with pytest.raises(AlignmentError, match="v30"):
        pool.predict(stack)


@pytest.mark.parametrize("pool", [LinearPool(), LinearPool(weights="accuracy"), LogLinearPool(weights="inverse-nll")])
def test_summary_of_refitted_weights_covers_the_fit(pool):
    p, y = probabilities(n=150, seed=6)
    summary = pool.fit(np.log(p), y).summary(bootstrap=100, confidence=0.9)
    assert (summary.lower <= pool.weights_ + 1e-9).all()
    assert (summary.upper >= pool.weights_ - 1e-9).all()
    assert (summary.upper - summary.lower).max() > 0.01
    assert summary.rows()[0]["weight"] == pytest.approx(pool.weights_.max())


def test_summary_of_given_weights_has_no_spread():
    pool = LogLinearPool(weights=[1.0, 3.0]).fit(np.zeros((3, 2, 2)))
    summary = pool.summary(bootstrap=5)
    np.testing.assert_array_equal(summary.lower, summary.upper)
    assert pool.summary().lower is None


def test_a_member_without_any_loss_gets_nearly_all_the_weight():
    np.testing.assert_allclose(inverse_nll_weights([0.0, 1.0]), [1.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(inverse_nll_weights([np.inf, 1.0]), [0.0, 1.0])
    np.testing.assert_allclose(inverse_nll_weights([0.0, 0.0]), [0.5, 0.5])


def test_a_bootstrap_of_inverse_loss_weights_can_leave_out_a_veto():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 2, 3))
    y = rng.integers(0, 3, 50)
    z[0, 0, y[0]] = -np.inf
    summary = LogLinearPool(weights="inverse-nll").fit(z, y).summary(bootstrap=50)  # warnings are errors
    assert summary.weights.tolist() == [0.0, 1.0] and summary.upper[0] > 0.3
