"""Learned weights where the numbers are extreme: members sure beyond measure, huge logits, single outliers."""

import warnings

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp

from vidfuse import LinearPool, LogLinearPool
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.fusion._solver.linear import fit_linear


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
