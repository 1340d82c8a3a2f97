"""Learned weights where the numbers are extreme: members sure beyond measure, huge logits, single outliers."""

import warnings

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp

from vidfuse import LinearPool, LogLinearPool
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.fusion._solver import linear
from vidfuse.fusion._solver.linear import fit_linear
from vidfuse.fusion._solver.log_linear import shrinkage_penalty
from vidfuse.fusion._solver.qp import solve_qp


def members(seed, scale, n=300, k=6, skills=(0.5, 1.0, 1.5, 2.0)):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    return scale * (rng.normal(size=(n, len(skills), k)) + np.multiply.outer(np.eye(k)[y], skills).swapaxes(1, 2)), y


def test_a_linear_fit_recovers_the_weight_of_the_only_member_that_knows_a_video():
    log_true = np.array([[-0.1, -0.1], [-0.2, -50.0], [-50.0, -0.3]])
    omega = np.array([1.0, 1.0, 1e-3]) / 2.001
    fit = fit_linear(log_true, omega)
    found = minimize_scalar(
        lambda w: -omega @ logsumexp(log_true, axis=1, b=[1 - w, w]),
        bounds=(0.0, 0.1), method="bounded", options={"xatol": 1e-12},
    )  # fmt: skip
    assert fit.gap <= 1e-7
    assert fit.nll == pytest.approx(found.fun, abs=1e-9)
    assert fit.weights[1] == pytest.approx(found.x, rel=1e-5)


@pytest.mark.parametrize("scale", [8, 12, 30, 300])
def test_a_linear_pool_of_overconfident_members_reaches_its_optimum(scale):
    for seed in range(3):
        z, y = members(seed, scale, n=500, k=10, skills=(3.5, 1.0))
        pool = LinearPool().fit(z, y)
        log_p = z - logsumexp(z, axis=2, keepdims=True)
        true = log_p[np.arange(len(y)), :, y]
        losses = [-logsumexp(true, axis=1, b=[1 - w, w]).mean() for w in np.linspace(0.001, 0.999, 999)]
        assert pool.optimality_gap_ <= 1e-7
        assert -pool.predict_log_proba(z)[np.arange(len(y)), y].mean() <= min(losses) + 1e-5


def test_random_linear_fits_keep_their_promise_whatever_the_ratios():
    for seed in range(150):
        rng = np.random.default_rng(seed)
        n, m = int(rng.integers(2, 60)), int(rng.integers(2, 30))
        log_true = -(10 ** rng.uniform(-1, 3)) * rng.exponential(size=(n, m)) * rng.integers(0, 2, size=(n, m))
        omega = rng.dirichlet(np.full(n, 0.1))
        fit = fit_linear(log_true, omega)
        assert fit.gap <= 1e-7, seed
        pooled = np.exp(log_true - log_true.max(axis=1, keepdims=True)) @ fit.weights
        assert pooled[omega > 0].all(), seed


def test_videos_of_no_weight_have_no_say_in_a_linear_fit():
    log_true = np.log([[0.9, 0.2], [0.6, 0.7], [0.3, 0.8]])
    extended = np.concatenate([log_true, [[-np.inf, -np.inf], [-500.0, 0.0]]])
    fit, same = fit_linear(log_true), fit_linear(extended, np.array([1.0, 1, 1, 0, 0]))
    np.testing.assert_array_equal(fit.weights, same.weights)
    assert fit.nll == same.nll


@pytest.mark.parametrize("scale", [300, 1000, 3000])
def test_a_log_linear_fit_of_huge_logits_reaches_its_optimum(scale):
    """Oracle: SciPy on logits of ordinary size, where the bound on Σβ moves instead."""
    for seed in range(3):
        z, y = members(seed, 1.0)
        pool = LogLinearPool(shrinkage=None).fit(z * scale, y)

        def loss(beta, z=z, y=y):
            logits = np.einsum("m,nmk->nk", beta, z)
            return float((logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]).mean())

        lowest = 0.01 * scale
        found = minimize(
            loss, np.full(4, max(lowest, 1.0) / 4), method="SLSQP", bounds=[(0, None)] * 4,
            constraints=[{"type": "ineq", "fun": lambda beta, lowest=lowest: beta.sum() - lowest}],
            options={"ftol": 1e-13, "maxiter": 500},
        )  # fmt: skip
        assert pool.optimality_gap_ <= 1e-7
        assert loss(pool.weights_ / pool.temperature_ * scale) == pytest.approx(found.fun, abs=1e-7)


@pytest.mark.parametrize("size", [1e6, 1e9, 1e30])
@pytest.mark.parametrize("shrinkage", [None, "auto"])
def test_a_member_that_is_beyond_measure_wrong_once_gets_no_weight(size, shrinkage):
    z, y = members(0, 1.0)
    z[5, 1, y[5]] = -size
    pool = LogLinearPool(shrinkage=shrinkage, floor=0.0).fit(z, y)
    without = LogLinearPool(shrinkage=None).fit(np.delete(z, 1, axis=1), y)
    assert pool.optimality_gap_ <= 1e-7
    if shrinkage is None:
        assert pool.weights_[1] < 1e-4
        np.testing.assert_allclose(np.delete(pool.weights_, 1), without.weights_, atol=1e-4)
    else:  # its calibration takes its say away
        assert pool.scale_[1] < 1e-3 * pool.scale_[0]


def test_float16_logits_at_the_end_of_their_range_do_not_overflow():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 90, 6000)
    z = rng.normal(size=(6000, 5, 90)).astype(np.float16)
    z[np.arange(6000), :, y] += np.float16(2)
    other = int(y[5] == 3) + 3
    z[5, 2, other], z[5, 2, y[5]] = 60000, -60000
    half, single = (LogLinearPool(shrinkage=None).fit(z.astype(kind), y) for kind in (np.float16, np.float32))
    assert half.optimality_gap_ <= 1e-7
    np.testing.assert_allclose(half.weights_, single.weights_, atol=1e-6)


def test_a_fit_that_is_not_proved_optimal_says_so():
    with pytest.warns(VidfuseWarning, match="proved to be within"):
        pool = LogLinearPool(shrinkage=None).fit(*members(0, 1e12))
    assert pool.optimality_gap_ > 1e-7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LogLinearPool(shrinkage=None).fit(*members(0, 1.0))


@pytest.mark.parametrize("magnitude", [1e160, 1e300])
@pytest.mark.parametrize(("n", "k"), [(300, 5), (12_000, 60)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_scores_beyond_the_arithmetic_are_refused_with_advice(magnitude, n, k):
    rng = np.random.default_rng(0)
    y = rng.integers(0, k, n)
    z = rng.normal(size=(n, 3, k))
    z[3, 1, (y[3] + 1) % k] = magnitude
    with pytest.raises(InputError, match="too large for the arithmetic; divide them"):
        LogLinearPool(shrinkage=None).fit(z, y)


@pytest.mark.parametrize("size", [1e6, 1e9, 1e12])
@pytest.mark.parametrize(("n", "k"), [(300, 5), (12_000, 60)])
def test_a_wrong_class_of_one_video_that_is_off_by_many_orders_costs_that_member_only(size, n, k):
    rng = np.random.default_rng(0)
    y = rng.integers(0, k, n)
    z = rng.normal(size=(n, 3, k))
    z[np.arange(n), :, y] += 2
    z[3, 1, (y[3] + 1) % k] = size
    pool = LogLinearPool(shrinkage=None).fit(z.astype(np.float32), y)
    assert pool.optimality_gap_ <= 1e-7
    assert pool.weights_[1] < 0.01
    without = LogLinearPool(shrinkage=None).fit(np.delete(z, 1, axis=1).astype(np.float32), y)
    np.testing.assert_allclose(np.delete(pool.weights_, 1), without.weights_, atol=0.01)


def test_the_lowest_temperature_is_explained_by_what_led_to_it():
    z, y = members(0, 0.01, n=1000)
    with pytest.warns(VidfuseWarning, match="scores differ so little between classes"):
        pool = LogLinearPool(shrinkage=None).fit(z, y)
    assert 0.5 < pool.score(z, y) < 0.99  # no weights separate these
    with pytest.warns(VidfuseWarning, match="separate the 40 videos of the fit perfectly"):
        LogLinearPool(shrinkage=None).fit(np.stack([5 * np.eye(4)[np.arange(40) % 4]] * 2, axis=1), np.arange(40) % 4)
    LogLinearPool().fit(z, y)  # the advice


def test_a_linear_pool_needs_one_member_that_gives_the_true_class_a_chance():
    z, y = members(1, 1.0)
    z[:20, 0, :][np.arange(20), y[:20]] = -np.inf
    pool = LinearPool().fit(z, y)
    p = np.exp(z - logsumexp(z, axis=2, keepdims=True))[np.arange(300), :, y]
    found = minimize(
        lambda w: -np.log(p @ (np.exp(w) / np.exp(w).sum())).mean(), np.zeros(4), method="BFGS", options={"gtol": 1e-9}
    )
    assert -np.log(p @ pool.weights_).mean() <= found.fun + pool.optimality_gap_ + 1e-9
    z[7, :, y[7]] = -np.inf
    with pytest.raises(InputError, match="all members have a probability of 0 at the true class of row 7"):
        LinearPool().fit(z, y)


def test_weights_by_an_infinite_loss_are_drawn_without_it():
    z, y = members(2, 1.0, n=60)
    z[3, 0, y[3]] = -np.inf
    summary = LogLinearPool(weights="inverse-nll").fit(z, y).summary(bootstrap=200)
    assert summary.weights[0] == 0 < summary.upper[0]  # where video 3 was not drawn


def test_the_certificate_holds_in_float64_for_what_was_asked_for():
    """The objective of the shrunk fit written out in float64, of sure members whose scores float32 rounds."""
    rng = np.random.default_rng(0)
    n, m, k = 1500, 30, 20
    y = rng.integers(0, k, n)
    z = (
        rng.normal(size=(n, m, k))
        + 2 * rng.normal(size=(n, 1, k))
        + rng.uniform(0, 3, m)[:, None] * np.eye(k)[y][:, None]
    )
    pool = LogLinearPool(per_class=False).fit(20 * z, y)
    beta, here = pool.weights_ / pool.temperature_, np.arange(n)
    scores = 20 * z * pool.scale_[:, None]
    log_p = np.logaddexp(np.log1p(-0.001) + scores - logsumexp(scores, axis=2, keepdims=True), np.log(0.001 / k))
    pooled = log_p.sum(axis=1)
    pooled[here, y] = -np.inf
    share, second = 0.5 / (n + 1), pooled.argmax(axis=1)
    score = (z.argmax(axis=2) == y[:, None]).mean(axis=0)
    penalty = shrinkage_penalty(pool.shrinkage_, score / score.sum())
    q = np.einsum("nmk,m->nk", log_p, beta)
    q = np.exp(q - logsumexp(q, axis=1, keepdims=True))
    slope = np.einsum("nk,nmk->m", q, log_p) / n - log_p[here, :, y].mean(axis=0)
    slope += share * (log_p[here, :, y] - log_p[here, :, second]).mean(axis=0)
    slope += penalty.quadratic @ beta - penalty.linear
    assert pool.optimality_gap_ <= 1e-7
    assert 0 <= penalty.bound(beta, slope) <= 1e-7


def test_the_bound_by_convexity_is_one():
    """Of random convex objectives: quadratics beyond the penalty's, minimised over β ≥ 0 by SciPy."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        root, linear = rng.normal(size=(5, 5)), rng.normal(size=5)
        penalty = shrinkage_penalty(0.3, rng.dirichlet(np.ones(5)))
        whole = penalty.quadratic + 0.1 * root @ root.T
        best = minimize(lambda v, a, b: 0.5 * v @ a @ v - b @ v, np.ones(5), args=(whole, linear), method="L-BFGS-B",
                        bounds=[(0, None)] * 5, options={"ftol": 1e-15, "gtol": 1e-10})  # fmt: skip
        for beta in (best.x, rng.uniform(0, 1, 5), best.x + 1e-3):
            excess = 0.5 * beta @ whole @ beta - linear @ beta - best.fun
            assert excess <= penalty.bound(beta, whole @ beta - linear) + 1e-10
    assert penalty.bound(best.x, whole @ best.x - linear) < 1e-4


@pytest.mark.parametrize("rule", [LinearPool, LogLinearPool])
def test_a_video_of_weight_zero_counts_for_nothing_even_where_it_is_impossible(rule):
    z, y = members(2, 1.0, n=120)
    weight = np.ones(120)
    weight[::4] = 0.0
    z[0, :, y[0]] = -np.inf  # no member gives its true class a chance
    kept = np.flatnonzero(weight)
    found, expected = rule(floor=0.0).fit(z, y, weight), rule(floor=0.0).fit(z[kept], y[kept])
    np.testing.assert_allclose(found.weights_, expected.weights_, atol=1e-6)
    log_true = z[np.arange(120), :, y]
    whole, part = fit_linear(log_true, weight), fit_linear(log_true[kept], weight[kept])
    assert whole.weights.tolist() == part.weights.tolist() and whole.gap == part.gap <= 1e-7


def test_a_thousand_members_of_a_linear_pool_enter_the_fit_a_few_at_a_time(monkeypatch):
    """Their quadratic program would take a minute; most get no weight, and the gap is over all of them."""
    rng, sizes = np.random.default_rng(0), []
    log_p = np.log(rng.uniform(0.05, 1.0, size=(300, 1000)) ** rng.uniform(0.5, 3.0, size=1000))
    monkeypatch.setattr(linear, "solve_qp", lambda h, *others: sizes.append(len(h)) or solve_qp(h, *others))
    fit = fit_linear(log_p)
    assert max(sizes) < 150 and fit.gap < 1e-7
    p = np.exp(log_p)
    assert (p / (p @ fit.weights)[:, None]).mean(axis=0).max() < 1 + 1e-7
