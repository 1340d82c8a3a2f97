"""The learned log-linear fit against SciPy's solvers, float64 brute force, and its own promises."""

from __future__ import annotations

import pickle

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime, minimize
from scipy.special import logsumexp

from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.fusion._solver import log_linear as learned_log_linear
from vidfuse.fusion._solver import passes as learned_passes
from vidfuse.fusion._solver.deviations import ClassVideos, fit_deviations
from vidfuse.fusion._solver.log_linear import fit_log_linear, frank_wolfe_gap, shrinkage_penalty
from vidfuse.fusion._solver.passes import Passes, block_moments
from vidfuse.fusion._solver.qp import least_norm, solve_qp, warn_of_gap
from vidfuse.fusion._solver.shared import FitVideos, smoothing_penalty
from vidfuse.fusion._solver.strengths import choose_shrinkage
from vidfuse.fusion.crossfit import split_folds
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.stack.stack import LogitStack


def problem(n=200, members=4, classes=5, seed=0, skill=1.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    shared = rng.normal(size=(n, 1, classes))
    z = 0.7 * shared + 1.3 * rng.normal(size=(n, members, classes))
    z[np.arange(n), :, y] += skill * np.linspace(0.3, 1.5, members)
    return z, y


def brute(beta, z, y, omega=None):
    """Mean negative log-likelihood, straight from the definition, in float64."""
    log_p = z - logsumexp(z, axis=2, keepdims=True)
    pooled = np.einsum("nmk,m->nk", log_p, beta)
    pooled -= logsumexp(pooled, axis=1, keepdims=True)
    loss = -pooled[np.arange(len(y)), y]
    return float(loss.mean() if omega is None else omega @ loss)


def brute_penalised(beta, z, y, strength, s):
    """The shrunk objective: half a video in N + 1 counts as if the uniform pool's best wrong class were true."""
    away, videos = beta - beta.sum() * s, np.arange(len(y))
    log_p = z - logsumexp(z, axis=2, keepdims=True)
    wrong = log_p.sum(axis=1)
    wrong[videos, y] = -np.inf
    margins = log_p[videos, :, y] - log_p[videos, :, wrong.argmax(axis=1)]
    smoothing = 0.5 / (len(y) + 1) * margins.mean(axis=0) @ beta
    return brute(beta, z, y) + smoothing + 0.5 * strength * away @ away + 0.5 * strength**2 * (beta.sum() - 1) ** 2


def calibrated(z, pool, floor=0.0):
    """The members in the units of a fit, with its floor."""
    scaled = z * pool.scale_[:, None]
    log_p = scaled - logsumexp(scaled, axis=2, keepdims=True)
    return np.log((1 - floor) * np.exp(log_p) + floor / z.shape[2])


def slsqp(function, members):
    constraint = {"type": "ineq", "fun": lambda b: [100 - b.sum(), b.sum() - 0.01]}
    found = minimize(
        function, np.full(members, 0.5), method="SLSQP", bounds=[(0, None)] * members,
        constraints=[constraint], options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    return found.x, found.fun


@pytest.mark.parametrize("seed", range(4))
def test_unshrunk_fit_against_slsqp(seed):
    z, y = problem(seed=seed)
    pool = LogLinearPool(shrinkage=None).fit(z, y)
    beta = pool.weights_ / pool.temperature_
    x, value = slsqp(lambda b: brute(b, z, y), 4)
    assert brute(beta, z, y) <= value + 1e-9
    np.testing.assert_allclose(beta, x, atol=2e-4)
    assert pool.optimality_gap_ <= 1e-7


@pytest.mark.parametrize("strength", [0.01, 0.3])
def test_shrunk_fit_against_slsqp(strength):
    z, y = problem(seed=7)
    accuracy = (z.argmax(axis=2) == y[:, None]).mean(axis=0)
    s = accuracy / accuracy.sum()
    pool = LogLinearPool(shrinkage=strength, floor=0.0, per_class=False).fit(z, y)
    beta, z = pool.weights_ / pool.temperature_, calibrated(z, pool)
    _, value = slsqp(lambda b: brute_penalised(b, z, y, strength, s), 4)
    assert brute_penalised(beta, z, y, strength, s) == pytest.approx(value, abs=1e-9)
    assert pool.shrinkage_ == strength


def test_auto_is_one_over_root_n_at_a_floor_of_a_thousandth_of_calibrated_members():
    z, y = problem(n=400, seed=3)
    pool = LogLinearPool(per_class=False).fit(z, y)
    assert pool.shrinkage_ == pytest.approx(0.05)
    assert pool.floor_.tolist() == [0.001] * 4
    floored = calibrated(z, pool, 0.001)
    accuracy = (z.argmax(axis=2) == y[:, None]).mean(axis=0)
    function = lambda b: brute_penalised(b, floored, y, 0.05, accuracy / accuracy.sum())  # noqa: E731
    beta = pool.weights_ / pool.temperature_
    assert function(beta) == pytest.approx(slsqp(function, 4)[1], abs=1e-8)
    np.testing.assert_allclose(
        pool.predict_log_proba(z), np.einsum("nmk,m->nk", floored, beta)
        - logsumexp(np.einsum("nmk,m->nk", floored, beta), axis=1, keepdims=True), atol=1e-5,
    )  # fmt: skip


def test_large_stacks_take_the_float32_path_to_the_same_optimum(monkeypatch):
    z, y = problem(n=600, members=3, classes=6, seed=11)
    z = z.astype(np.float32)
    small = LogLinearPool(shrinkage=None).fit(z, y)
    monkeypatch.setattr(learned_log_linear, "_SMALL", 0)
    monkeypatch.setattr(learned_passes, "_PART", 1000)
    monkeypatch.setattr(learned_passes, "_BLOCK", 1000)  # a part holds at least a block
    large = LogLinearPool(shrinkage=None).fit(z, y)
    np.testing.assert_allclose(large.weights_, small.weights_, atol=1e-6)
    assert large.optimality_gap_ <= 1e-7
    streamed = LogLinearPool(shrinkage=0.1).fit(z, y)
    monkeypatch.setattr(learned_passes, "_RESIDENT", 0)
    np.testing.assert_array_equal(LogLinearPool(shrinkage=0.1).fit(z, y).weights_, streamed.weights_)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("shrinkage", [None, "auto"])
def test_a_sample_of_other_videos_costs_passes_only(kind, shrinkage):
    """Every sixteenth video, which is what a fit begins on, is of another kind: there the members swap their skills."""
    z, y = problem(n=6400, members=6, classes=60, seed=3)
    sampled = np.unique(np.linspace(0, 6399, 400).round().astype(int))
    z[sampled] = z[sampled, ::-1]
    if kind == "probabilities":
        z = np.exp(z - logsumexp(z, axis=2, keepdims=True))
    stack = LogitStack.from_arrays(z, labels=y, kind=kind)
    pool = LogLinearPool(shrinkage=shrinkage).fit(stack)
    assert pool.optimality_gap_ <= 1e-7
    if shrinkage is None:
        p = z if kind == "probabilities" else np.exp(z - logsumexp(z, axis=2, keepdims=True))
        floored = np.log(p) if kind == "logits" else np.log((1 - 1e-4) * p + 1e-4 / 60)
        beta = pool.weights_ / pool.temperature_
        expected = lbfgs(floored, y)
        assert brute(beta, floored, y) <= brute(expected, floored, y) + 1e-8
        np.testing.assert_allclose(beta, expected, atol=1e-3)


def lbfgs(z, y):
    """Minimise the mean negative log-likelihood by SciPy's L-BFGS-B, in float64."""
    rows = np.arange(len(y))

    def objective(beta):
        pooled = np.einsum("nmk,m->nk", z, beta)
        log_p = pooled - logsumexp(pooled, axis=1, keepdims=True)
        slope = np.einsum("nmk,nk->m", z, np.exp(log_p)) - z[rows, :, y].sum(axis=0)
        return -log_p[rows, y].mean(), slope / len(y)

    members = z.shape[1]
    options = {"ftol": 1e-14, "gtol": 1e-9}
    return minimize(
        objective, np.full(members, 0.3), jac=True, method="L-BFGS-B", bounds=[(0, None)] * members, options=options
    ).x


def test_twins_share_their_weight_in_a_large_stack_too():
    z, y = problem(n=9600, members=4, classes=60, seed=11)
    weights = LogLinearPool(shrinkage=None).fit(np.concatenate([z, z[:, 3:]], axis=1).astype(np.float32), y).weights_
    assert weights[3] == pytest.approx(weights[4], abs=1e-6) and weights[3] > 0


def test_a_member_between_two_others_shares_their_weight_in_a_large_stack_too():
    """The flat direction (1, 1, -2) is lost in the rounding of a Hessian in float32."""
    z, y = problem(n=9600, members=3, classes=60, seed=11)
    z = np.round(z * 256) / 256
    z = np.concatenate([z, (z[:, 1:2] + z[:, 2:]) / 2], axis=1).astype(np.float32)
    pool = LogLinearPool(shrinkage=None).fit(z, y)
    beta = pool.weights_ / pool.temperature_
    three = LogLinearPool(shrinkage=None).fit(z[:, :3], y)
    a, b = (three.weights_ / three.temperature_)[1:]
    shift = (a + b) / 6  # of t in (a - t, b - t, 2t), where the norm is least
    np.testing.assert_allclose(beta[1:], [a - shift, b - shift, 2 * shift], atol=1e-5)


@pytest.mark.parametrize("seed", range(30))
def test_random_large_stacks_keep_the_promise(monkeypatch, seed):
    """Members, classes, sizes, scales, skills and penalties at random; the path for large stacks against float64."""
    rng = np.random.default_rng(seed)
    n, members, classes = int(rng.integers(250, 900)), int(rng.integers(1, 14)), int(rng.integers(2, 12))
    z, y = problem(n, members, classes, seed, skill=rng.uniform(-0.5, 3.0))
    z *= 10 ** rng.uniform(-1, 1, size=(members, 1))
    stack = LogitStack.from_arrays(z.astype(np.float32))
    omega = rng.dirichlet(np.ones(n))
    penalty = None if seed % 2 else shrinkage_penalty(10 ** rng.uniform(-4, 0), rng.dirichlet(np.ones(members)))
    fits = []
    for small in (1 << 21, 0):
        monkeypatch.setattr(learned_log_linear, "_SMALL", small)
        with Passes(stack, y, omega, np.zeros(members)) as passes:
            fits.append(fit_log_linear(passes, penalty))
            exact = passes.moments(fits[-1].beta)
        exact = exact if penalty is None else penalty.add_to(exact, fits[-1].beta)
        assert fits[-1].value == pytest.approx(exact.value, abs=1e-13)  # computed in float64
        gap = frank_wolfe_gap(fits[-1].beta, exact.gradient)
        assert gap <= 1e-7
        bound = np.inf if penalty is None else penalty.bound(fits[-1].beta, exact.gradient)
        assert fits[-1].gap == pytest.approx(min(gap, bound), abs=1e-11)
    assert fits[0].value == pytest.approx(fits[1].value, abs=1e-7)
    assert fits[1].passes < 20


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_workers_change_nothing(monkeypatch, backend):
    z, y = problem(n=300, seed=2)
    monkeypatch.setattr(learned_passes, "_PART", 1000)
    monkeypatch.setattr(learned_passes, "_BLOCK", 1000)  # a part holds at least a block
    one = LogLinearPool(shrinkage=None).fit(z, y)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        two = LogLinearPool(shrinkage=None).fit(z, y)
    np.testing.assert_allclose(two.weights_, one.weights_, atol=1e-12)


def test_certificate_is_the_bound_it_claims_to_be():
    z, y = problem(n=60, seed=5)
    beta = np.array([0.3, 0.1, 0.0, 0.4])
    gradient = approx_fprime(beta, lambda b: brute(b, z, y), 1e-7)
    gap = frank_wolfe_gap(beta, gradient)
    assert brute(beta, z, y) - slsqp(lambda b: brute(b, z, y), 4)[1] <= gap + 1e-6
    vertices = [s * np.eye(4)[m] for m in range(4) for s in (0.01, 100.0)]
    assert gap == pytest.approx(max(gradient @ (beta - v) for v in vertices))


@pytest.mark.parametrize("members", [4, 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_against_finite_differences(dtype, members):
    z, y = problem(n=30, members=members, seed=9)
    block = np.ascontiguousarray(z.swapaxes(0, 1), dtype=dtype)
    rng = np.random.default_rng(0)
    omega, beta = rng.dirichlet(np.ones(30)), np.append(rng.random(members - 1), 0.0)
    got = block_moments(block, y, omega, beta)
    function = lambda b: brute(b, z, y, omega)  # noqa: E731
    assert got.value == pytest.approx(function(beta), rel=1e-6)
    np.testing.assert_allclose(got.gradient, approx_fprime(beta, function, 1e-7), atol=1e-5)
    cheap = block_moments(block, y, omega, beta, hessian=False)
    assert cheap.value == got.value
    np.testing.assert_allclose(cheap.gradient, got.gradient, atol=1e-6 if dtype == np.float32 else 1e-14)
    slope = lambda b: block_moments(block.astype(np.float64), y, omega, b, hessian=False).gradient  # noqa: E731
    columns = [(slope(beta + step) - slope(beta - step)) / 2e-5 for step in 1e-5 * np.eye(members)]
    np.testing.assert_allclose(got.hessian, np.stack(columns), atol=1e-4)


def test_what_a_member_adds_to_all_classes_of_a_video_changes_no_moment():
    z, y = problem(n=20, seed=4)
    block = np.ascontiguousarray(z.swapaxes(0, 1))
    true = z[np.arange(20), :, y].T
    omega, beta = np.full(20, 0.05), np.full(4, 0.3)
    a, b = (block_moments(scores, y, omega, beta) for scores in (block, block - true[:, :, None]))
    np.testing.assert_allclose(a.value, b.value, rtol=1e-12)
    np.testing.assert_allclose(a.gradient, b.gradient, atol=1e-12)
    np.testing.assert_allclose(a.hessian, b.hessian, atol=1e-12)


def test_a_gradient_in_float32_is_exact_to_its_last_digits():
    """A million true scores of 8 that are summed and then taken off again would leave errors of 1e-6."""
    rng = np.random.default_rng(0)
    n, classes = 10_000, 100
    y = rng.integers(0, classes, n)
    block = rng.standard_normal((5, n, classes), dtype=np.float32)
    block[:, np.arange(n), y] += 8.0
    omega, beta = np.full(n, 1 / n), np.full(5, 0.25)
    a, b = (block_moments(block.astype(t), y, omega, beta, hessian=False) for t in (np.float32, np.float64))
    np.testing.assert_allclose(a.gradient, b.gradient, rtol=0, atol=2e-8)


def test_a_duplicated_member_shares_its_weight_equally():
    z, y = problem(seed=1)
    doubled = np.concatenate([z, z[:, 3:]], axis=1)
    one, two = LogLinearPool(shrinkage=None).fit(z, y), LogLinearPool(shrinkage=None).fit(doubled, y)
    assert two.weights_[3] == pytest.approx(two.weights_[4], abs=1e-9)
    np.testing.assert_allclose(two.predict_log_proba(doubled), one.predict_log_proba(z), atol=1e-6)
    assert one.weights_[3] == pytest.approx(two.weights_[3:].sum(), abs=1e-6)


@settings(max_examples=12)
@given(st.permutations(range(4)), st.permutations(range(5)), st.integers(0, 3))
def test_permutations_and_shifts_change_nothing(order, classes, seed):
    z, y = problem(n=60, seed=seed)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(60)
    base = LogLinearPool(shrinkage=None).fit(z, y)
    members = LogLinearPool(shrinkage=None).fit(z[:, order], y)
    np.testing.assert_allclose(members.weights_, base.weights_[order], atol=1e-5)
    renamed = LogLinearPool(shrinkage=None).fit(z[:, :, classes], np.argsort(classes)[y])
    np.testing.assert_allclose(renamed.weights_, base.weights_, atol=1e-5)
    shuffled = LogLinearPool(shrinkage=None).fit(z[rows], y[rows])
    np.testing.assert_allclose(shuffled.weights_, base.weights_, atol=1e-5)
    shifted = LogLinearPool(shrinkage=None).fit(z + 7 * rng.normal(size=(60, 4, 1)), y)
    np.testing.assert_allclose(shifted.weights_, base.weights_, atol=1e-5)


def test_row_51_separable_videos_reach_the_lowest_temperature():
    y = np.arange(30) % 3
    z = np.stack([3 * np.eye(3)[y], np.random.default_rng(0).normal(size=(30, 3))], axis=1)
    with pytest.warns(VidfuseWarning, match="lowest temperature"):
        pool = LogLinearPool(shrinkage=None).fit(z, y)
    assert pool.temperature_ == pytest.approx(0.01)
    assert np.isfinite(pool.weights_).all()
    assert pool.score(z, y) == 1.0
    assert pool.optimality_gap_ <= 1e-7
    assert LogLinearPool().fit(z, y).temperature_ > 0.02  # shrinkage keeps a finite optimum, without a warning


def test_members_at_chance_reach_the_highest_temperature():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    z = rng.normal(size=(60, 2, 3)) - 3 * np.eye(3)[y][:, None]  # worse than chance
    pool = LogLinearPool(shrinkage=None).fit(z, y)
    assert pool.temperature_ == pytest.approx(100.0)
    assert pool.optimality_gap_ <= 1e-7


def test_row_50_zero_at_the_true_class():
    p = np.array([[1.0, 0.0], [0.3, 0.7], [0.6, 0.4]])
    stack = LogitStack.from_arrays({"a": p, "b": p[:, ::-1]}, kind="probabilities", ids=["u", "v", "w"])
    with pytest.raises(InputError, match=r"'a', id 'u'.*floor"):
        LogLinearPool(shrinkage=None, floor=0.0).fit(stack, [1, 1, 0])
    assert np.isfinite(LogLinearPool(shrinkage=None).fit(stack, [1, 1, 0]).weights_).all()
    with np.errstate(divide="ignore"):
        logits = np.log(p)[:, None]
    with pytest.raises(InputError, match="floor"):
        LogLinearPool(shrinkage=None).fit(logits, [1, 1, 0])


def test_vetoes_of_other_classes_enter_the_fit():
    z, y = problem(n=50, seed=8)
    z[np.arange(50), 0, (y + 1) % 5] = -np.inf
    pool = LogLinearPool(shrinkage=None).fit(z, y)
    assert np.isfinite(pool.weights_).all()
    assert pool.weights_[0] > 0


def test_zeros_of_other_classes_enter_the_fit_as_ten_thousand_nats():
    z, y = problem(n=60, members=3, seed=8)
    p = np.exp(z - logsumexp(z, axis=2, keepdims=True))
    p[np.arange(60), 0, (y + 1) % 5] = 0.0
    p /= p.sum(axis=2, keepdims=True)
    stack, beta = LogitStack.from_arrays(p, kind="probabilities"), np.array([1e-5, 0.5, 0.3])
    with np.errstate(divide="ignore"):
        relative = np.log(p) - np.log(p)[np.arange(60), :, y][:, :, None]
    moments = Passes(stack, y, np.full(60, 1 / 60), np.zeros(3)).moments(beta)
    assert moments.value == pytest.approx(brute(beta, np.maximum(relative, -1e4), y), rel=1e-5)
    assert np.isfinite(moments.gradient).all()
    assert np.isfinite(moments.hessian).all()
    pool = LogLinearPool(shrinkage=None, floor=0.0).fit(stack, y)
    assert pool.optimality_gap_ <= 1e-7


def test_balanced_class_weight_equals_sample_weight():
    z, y = problem(n=120, seed=6)
    y = np.where(np.arange(120) < 90, 0, y)
    weight = 1.0 / np.bincount(y)[y]
    a = LogLinearPool(shrinkage=None, class_weight="balanced").fit(z, y)
    b = LogLinearPool(shrinkage=None).fit(z, y, sample_weight=weight)
    np.testing.assert_allclose(a.weights_, b.weights_, atol=1e-7)
    assert np.abs(a.weights_ - LogLinearPool(shrinkage=None).fit(z, y).weights_).max() > 1e-3


@pytest.mark.parametrize(("n", "noise", "seed"), [(60, 0.0, 2), (150, 2.0, 1), (150, 0.0, 0)])
def test_cross_validated_shrinkage_loses_least_on_the_folds(n, noise, seed):
    """Oracle: SciPy fits every fold and strength; weights of videos count inside and outside of a fold."""
    z, y = problem(n=n, seed=seed)
    z[:, 3] += noise * np.random.default_rng(seed).normal(size=(n, 5))
    omega = np.random.default_rng(seed).dirichlet(np.full(n, 0.5))
    hits = z.argmax(axis=2) == y[:, None]
    grid = np.array([0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0])
    losses = np.zeros(7)
    for inside, outside in split_folds(y, 5):
        share = omega[inside] / omega[inside].sum()
        s = share @ hits[inside] / (share @ hits[inside]).sum()
        slopes = smoothing_penalty(LogitStack.from_arrays(z[inside]), y[inside], share, np.zeros(4), np.ones(4))
        for index, strength in enumerate(grid * np.sqrt(share @ share)):
            penalty = shrinkage_penalty(strength, s)

            def objective(b, share=share, inside=inside, penalty=penalty, slopes=slopes):
                pull = 0.5 * b @ penalty.quadratic @ b - (penalty.linear - slopes) @ b + penalty.constant
                return brute(b, z[inside], y[inside], share) + pull

            losses[index] += brute(slsqp(objective, 4)[0], z[outside], y[outside], omega[outside])
    chosen = choose_shrinkage("cv", FitVideos(LogitStack.from_arrays(z), y, omega, np.zeros(4)))
    assert np.sort(losses)[1] - losses.min() > 1e-7  # the choice is clear
    assert chosen == pytest.approx(grid[losses.argmin()] * np.sqrt(omega @ omega))


def test_shrinkage_is_refused_or_falls_back_as_documented():
    z, y = problem(n=9)
    videos = FitVideos(LogitStack.from_arrays(z), y, np.full(9, 1 / 9), np.zeros(4))
    assert choose_shrinkage("cv", videos) == pytest.approx(1 / 3)  # too few videos for five folds
    assert choose_shrinkage("auto", videos) == pytest.approx(1 / 3)
    assert choose_shrinkage(None, videos) == 0.0
    assert choose_shrinkage(0.7, videos) == 0.7
    for wrong in ("cross", -1.0, np.nan):
        with pytest.raises(InputError, match="shrinkage"):
            choose_shrinkage(wrong, videos)


def test_cross_validated_shrinkage_keeps_groups_whole_where_they_are_fewer_than_folds():
    z, y = problem(n=60)
    omega, zeros = np.full(60, 1 / 60), np.zeros(4)
    for count in (1, 2, 3):
        stack = LogitStack.from_arrays(z).with_groups(np.arange(60) % count)
        videos = FitVideos(stack, y, omega, zeros)
        chosen = choose_shrinkage("cv", videos) * np.sqrt(videos.independent)
        grid = [1.0] if count == 1 else [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
        assert np.isclose(grid, chosen).any()


@pytest.mark.parametrize(("seed", "n", "multiple"), [(4, 100, 3.0), (0, 100, 0.3), (9, 100, 1.0)])
def test_cross_validated_shrinkage_is_what_a_plain_search_over_five_folds_takes(seed, n, multiple):
    z, y = problem(n=n, members=3, classes=4, seed=seed)
    pool = LogLinearPool(shrinkage="cv", floor=0.0, per_class=False).fit(z, y)
    units, hits = calibrated(z, pool), z.argmax(axis=2) == y[:, None]
    losses = {}
    for strength in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0):
        held_out = []
        for inside, outside in split_folds(y, 5):
            z_in, y_in, z_out, y_out = units[inside], y[inside], units[outside], y[outside]
            own, s = strength / np.sqrt(len(y_in)), hits[inside].mean(axis=0) / hits[inside].mean(axis=0).sum()
            beta, _ = slsqp(lambda b, z=z_in, y=y_in, own=own, s=s: brute_penalised(b, z, y, own, s), 3)
            held_out.append(brute(beta, z_out, y_out) * len(y_out))
        losses[strength] = sum(held_out)
    assert min(losses, key=losses.get) == multiple
    assert pool.shrinkage_ == pytest.approx(multiple / np.sqrt(n))
    given = LogLinearPool(shrinkage=multiple / np.sqrt(n), floor=0.0, per_class=False).fit(z, y)
    np.testing.assert_allclose(pool.weights_, given.weights_, atol=1e-9)


def test_weights_per_class_follow_a_member_that_knows_one_class():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    z = rng.normal(size=(600, 2, 3)) * 2
    z[np.arange(600), 0, y] += np.where(y == 0, 5.0, 0.0)
    z[np.arange(600), 1, y] += np.where(y == 0, 0.0, 4.0)
    shared, own = LogLinearPool(per_class=False).fit(z, y), LogLinearPool(per_class=True).fit(z, y)
    assert own.class_weights_.shape == (2, 3)
    assert own.class_weights_[0, 0] > own.class_weights_[0, 1:].max()
    own_loss = -own.predict_log_proba(z)[np.arange(600), y].mean()
    assert own_loss < -shared.predict_log_proba(z)[np.arange(600), y].mean()
    with pytest.raises(InputError, match="per_class"):
        LogLinearPool(weights="uniform", per_class=True).fit(z, y)


def test_weights_per_class_are_shrunk_with_the_precision_of_a_hundred_videos():
    """Oracle: SciPy on NLL + ½·(100/N)·(Σ(β_mc - β_m)² + Σ b_c²/10), around the fit's own shared weights."""
    z, y = problem(n=400, members=2, classes=3, seed=4, skill=1.5)
    y = np.arange(400) % 3  # as frequent as each other: no correction for frequencies
    z[np.arange(400), :, y] += 2.0
    z[:, 0, 0] += 2 * (y == 0)  # the first member knows the first class
    pool = LogLinearPool(per_class=True, floor=0.0).fit(z, y)
    shared, log_p = pool.weights_ / pool.temperature_, calibrated(z, pool)
    frequencies = np.log(np.bincount(y))

    def objective(x):
        beta, bias = x[:6].reshape(2, 3), x[6:]
        pooled = (log_p * beta).sum(axis=1) + bias + frequencies
        loss = logsumexp(pooled, axis=1) - pooled[np.arange(400), y]
        away = np.sum((beta - shared[:, None]) ** 2)
        return loss.mean() + 0.5 * 100 / 400 * (away + 0.1 * np.sum(bias**2))

    found = minimize(
        objective, np.append(np.repeat(shared, 3), np.zeros(3)), method="L-BFGS-B", options={"ftol": 1e-14}
    )
    assert np.abs(found.x[:6].reshape(2, 3) - shared[:, None]).max() > 0.05  # there is something to shrink
    np.testing.assert_allclose(pool.class_weights_, found.x[:6].reshape(2, 3), atol=2e-3)
    np.testing.assert_allclose(pool.class_bias_, found.x[6:], atol=2e-3)
    assert (
        objective(np.append(pool.class_weights_.ravel(), pool.class_bias_)) <= found.fun + pool.optimality_gap_ + 1e-8
    )


def test_vetoes_enter_weights_per_class_as_a_hundred_nats():
    z, y = problem(n=80, members=2, seed=8)
    z[np.arange(80), 0, (y + 1) % 5] = -np.inf
    log_p = z - logsumexp(z, axis=2, keepdims=True)
    precision, shared = np.array([5.0, 5.0, 2.0]) / 80, np.full(2, 0.5)
    videos = FitVideos(LogitStack.from_arrays(z), y, np.full(80, 1 / 80), np.zeros(2))
    with ClassVideos(videos, shared) as laid_out:
        fit = fit_deviations(laid_out, precision)

    def objective(x):
        pooled = (np.maximum(log_p, -100.0) * (0.5 + x[:10].reshape(5, 2).T)).sum(axis=1) + x[10:]
        prior = 5.0 * (x[:10] ** 2).sum() + 2.0 * (x[10:] ** 2).sum()
        return (logsumexp(pooled, axis=1) - pooled[np.arange(80), y]).mean() + 0.5 * prior / 80

    found = minimize(objective, np.zeros(15), method="BFGS", options={"gtol": 1e-9})
    own = np.append(fit.parameters[:, :2].ravel(), fit.parameters[:, 2])
    assert objective(own) <= found.fun + fit.gap + 1e-9
    np.testing.assert_allclose(own, found.x, atol=1e-3)


@pytest.mark.parametrize("weights", ["learned", "accuracy"])
def test_summary_draws_whole_groups(weights):
    """Each video four times: four times the rows, and the evidence of a quarter of them, so intervals twice as long."""
    z, y = problem(n=150, seed=2)
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(150), 4))
    z, y = z[groups], y[groups]
    pool = LogLinearPool(weights=weights, shrinkage=None)
    by_clip, by_group = (pool.fit(z, y, groups=g).summary(bootstrap=400) for g in (None, groups))
    length = [float((summary.upper - summary.lower).sum()) for summary in (by_clip, by_group)]
    assert 1.6 < length[1] / length[0] < 2.5


def test_summary_bootstraps_the_weights():
    z, y = problem(n=300, seed=2)
    pool = LogLinearPool(shrinkage=None).fit(z, y)
    summary = pool.summary(bootstrap=200)
    again = pool.summary(bootstrap=200)
    assert str(summary) == str(again)
    assert (summary.lower <= pool.weights_ + 1e-9).all()
    assert (pool.weights_ <= summary.upper + 1e-9).all()
    rng = np.random.default_rng(1)
    draws = []
    for _ in range(40):
        rows = rng.integers(0, 300, 300)
        draws.append(LogLinearPool(shrinkage=None).fit(z[rows], y[rows]).weights_)
    spread = np.std(draws, axis=0)
    np.testing.assert_allclose((summary.upper - summary.lower) / 3.92, spread, rtol=0.5, atol=0.01)
    assert "member0" in str(summary)
    assert "<table>" in summary._repr_html_()
    with pytest.raises(InputError, match="fit the pool again"):
        pickle.loads(pickle.dumps(pool)).summary(bootstrap=10)
    for level in (0.0, 1.0):
        with pytest.raises(InputError, match="confidence"):
            pool.summary(confidence=level)


def _best_of_all_supports(hessian, linear, low, high):
    """Solve min ½ x·H·x − c·x over x ≥ 0, low ≤ Σx ≤ high exactly: try every support and every state of the sum."""
    n, best, value = len(linear), None, np.inf
    for bits in range(1, 2**n):
        on = [i for i in range(n) if bits >> i & 1]
        for total in (None, low, high):
            if total is None:
                part = np.linalg.solve(hessian[np.ix_(on, on)], linear[on])
            else:
                ones = np.ones((len(on), 1))
                system = np.block([[hessian[np.ix_(on, on)], ones], [ones.T, np.zeros((1, 1))]])
                part = np.linalg.solve(system, np.append(linear[on], total))[:-1]
            if (part >= 0).all() and low - 1e-12 <= part.sum() <= high + 1e-12:
                x = np.zeros(n)
                x[on] = part
                if (here := 0.5 * x @ hessian @ x - linear @ x) < value:
                    best, value = x, here
    return best


def test_quadratic_program_against_all_supports():
    rng = np.random.default_rng(0)
    for _ in range(20):
        root = rng.normal(size=(5, 5))
        hessian, linear = root @ root.T + 0.1 * np.eye(5), 3 * rng.normal(size=5)
        x = solve_qp(hessian, linear, 0.5, 1.5, np.full(5, 0.2))
        np.testing.assert_allclose(x, _best_of_all_supports(hessian, linear, 0.5, 1.5), atol=1e-9)


def test_quadratic_program_frees_a_variable_of_a_small_slope():
    hessian, linear = np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([1.0, 0.5 + 1e-8])
    x = solve_qp(hessian, linear, 0.0, np.inf, np.array([1.0, 0.0]))
    np.testing.assert_allclose(x, np.linalg.solve(hessian, linear), rtol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_quadratic_program_in_units_that_differ_by_many_orders(seed):
    """The same program in other units: rounding is each variable's own."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(5, 5))
    hessian, linear = root @ root.T + 0.1 * np.eye(5), 3 * rng.normal(size=5)
    unit = 10 ** rng.uniform(-9, 9, size=5)
    x = solve_qp(hessian * np.outer(unit, unit), linear * unit, 0.0, np.inf, np.full(5, 0.2) / unit)
    expected = _best_of_all_supports(hessian, linear, 0.0, 1e9)
    np.testing.assert_allclose(x * unit, expected, atol=1e-8)


def test_a_member_of_huge_scores_hides_no_other_members_slope():
    z, y = problem(n=800, members=6, classes=3, seed=3)
    z[5, 2, (y[5] + 1) % 3] = 1e7
    pool = LogLinearPool(shrinkage=None).fit(z.astype(np.float32), y)
    assert pool.optimality_gap_ <= 1e-7


def test_an_objective_of_almost_nothing_is_its_own_certificate():
    """Slopes of huge scores stay above the target where the likelihood cannot fall by as much."""
    rng = np.random.default_rng(1287)
    z, y = problem(n=171, members=18, classes=9, seed=1287, skill=4.0)
    z *= 10 ** rng.uniform(-2, 2, size=(18, 1))
    with Passes(LogitStack.from_arrays(z), y, rng.dirichlet(np.full(171, 0.1)), np.zeros(18)) as passes:
        fit = fit_log_linear(passes)
    assert fit.gap <= fit.value <= 1e-7
    assert fit.passes < 60


@pytest.mark.parametrize("exponent", [3, 6])
def test_videos_that_are_all_but_separated_take_few_passes(exponent):
    z, y = problem(n=170, members=6, classes=4, seed=2, skill=4.0)
    omega = np.where(np.arange(170) < 2, 10.0**-exponent, 1.0)
    y[:2] = z[:2].sum(axis=1).argmin(axis=1)  # two videos that are wrong, and count next to nothing
    omega /= omega.sum()
    with Passes(LogitStack.from_arrays(z), y, omega, np.zeros(6)) as passes:
        fit = fit_log_linear(passes)
    assert fit.gap <= 1e-7
    assert fit.passes < 60
    value = slsqp(lambda b: brute(b, z, y, omega), 6)[1]
    assert fit.value <= value + 1e-7


def test_least_norm_among_optima():
    hessian = np.diag([1.0, 0.0, 0.0])
    np.testing.assert_allclose(least_norm(np.array([0.5, 0.3, 0.1]), hessian, 0.01, 100.0), [0.5, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(
        least_norm(np.array([0.5, 0.3, 0.1]), hessian, 0.8, 100.0), [0.5, 0.15, 0.15], atol=1e-12
    )
    unique = np.array([0.2, 0.8])
    assert least_norm(unique, np.eye(2), 0.0, np.inf) is unique


def test_penalty_is_what_the_documentation_says():
    rng = np.random.default_rng(0)
    s, beta = rng.dirichlet(np.ones(4)), rng.random(4)
    penalty = shrinkage_penalty(0.3, s)
    got = 0.5 * beta @ penalty.quadratic @ beta - penalty.linear @ beta + penalty.constant
    away = beta - beta.sum() * s
    assert got == pytest.approx(0.5 * 0.3 * away @ away + 0.5 * 0.09 * (beta.sum() - 1) ** 2)


def test_a_sample_is_of_videos_that_have_a_weight():
    stack = LogitStack.from_arrays(problem(n=50)[0])
    omega = np.zeros(50)
    omega[[1, 30]] = 0.5
    passes = Passes(stack, np.zeros(50, dtype=np.int64), omega, np.zeros(4))
    np.testing.assert_array_equal(passes.sample(20).omega, [0.5, 0.5])
    with passes:
        assert fit_log_linear(passes).gap <= 1e-7
    omega = np.arange(50) / np.arange(50).sum()
    few = Passes(stack, np.zeros(50, dtype=np.int64), omega, np.zeros(4)).sample(3).omega
    np.testing.assert_allclose(few, np.array([1, 25, 49]) / 75)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_a_fit_costs_few_passes_whatever_the_scale_of_the_scores(scale):
    z, y = problem(n=6000, members=8, classes=50, seed=3, skill=2.0)
    stack = LogitStack.from_arrays((scale * z).astype(np.float32), labels=y)
    with Passes(stack, y, np.full(6000, 1 / 6000), np.zeros(8)) as passes:
        fit = fit_log_linear(passes)
    assert fit.gap <= 1e-7
    assert fit.passes < 9


def test_a_sample_that_separates_its_videos_does_not_lead_the_fit_astray():
    """On the sample any lower temperature is better; on all videos 1 in 100 is wrong with near certainty."""
    rng = np.random.default_rng(0)
    n, classes = 40_000, 20
    y = rng.integers(0, classes, n)
    z = rng.normal(size=(n, 3, classes))
    z[np.arange(n), :, np.where(rng.random(n) < 0.01, (y + 1) % classes, y)] += 9.0
    stack = LogitStack.from_arrays(z.astype(np.float32), labels=y)
    with Passes(stack, y, np.full(n, 1 / n), np.zeros(3)) as passes:
        fit = fit_log_linear(passes)
    expected = minimize(
        lambda b: brute(b, z.astype(np.float32).astype(np.float64), y), np.full(3, 0.3), method="L-BFGS-B",
        bounds=[(0, None)] * 3, options={"ftol": 1e-15},
    )  # fmt: skip
    assert fit.gap <= 1e-7
    assert fit.passes < 12
    assert fit.value <= expected.fun + 1e-9


@pytest.mark.parametrize(("scale", "constant"), [(1.0, 1e3), (0.03, 3e4)])
def test_scores_near_a_large_constant_lose_nothing(scale, constant):
    z, y = problem(n=6000, members=8, classes=50, seed=3)
    pools = []
    for shift in (0.0, constant * np.random.default_rng(0).normal(size=(6000, 8, 1))):
        scores = np.round(z * scale * 128) / 128 + np.round(shift)  # exact in float32 either way
        pools.append(LogLinearPool(shrinkage=None).fit(LogitStack.from_arrays(scores.astype(np.float32), labels=y)))
    np.testing.assert_allclose(pools[0].weights_, pools[1].weights_, atol=1e-4)
    assert max(pool.optimality_gap_ for pool in pools) <= 1e-7


@pytest.mark.parametrize("case", ["worse than chance", "equal scores", "separable", "one member", "twins"])
@pytest.mark.parametrize("shrinkage", [None, "auto"])
@pytest.mark.filterwarnings("ignore:the lowest temperature", "ignore:member", "ignore:no member earns")
def test_a_large_stack_whose_optimum_is_at_a_bound_or_flat(monkeypatch, case, shrinkage):
    z, y = problem(n=600, members=2, classes=5, seed=2)
    z = z.astype(np.float32)
    if case == "worse than chance":
        z[np.arange(600), :, y] -= 8
    elif case == "equal scores":
        z[:] = 0
    elif case == "separable":
        z[np.arange(600), :, y] += 60
    elif case == "one member":
        z = z[:, 1:]
    else:
        z[:, 0] = z[:, 1]
    expected = LogLinearPool(shrinkage=shrinkage).fit(z, y)  # in float64 from the start
    monkeypatch.setattr(learned_log_linear, "_SMALL", 0)
    pool = LogLinearPool(shrinkage=shrinkage).fit(z, y)
    assert pool.optimality_gap_ <= 1e-7
    with Passes(LogitStack.from_arrays(z), y, np.full(600, 1 / 600), np.zeros(z.shape[1])) as passes:
        fit = fit_log_linear(passes)
        assert fit.value == pytest.approx(passes.moments(fit.beta).value, abs=1e-13)  # certified in float64
    losses = [-np.take_along_axis(p.predict_log_proba(z), y[:, None], axis=1).mean() for p in (pool, expected)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-7 if shrinkage is None else 1e-4)  # a penalty is not in it


def test_a_gradient_that_is_no_number_certifies_nothing():
    gap = frank_wolfe_gap(np.array([1.0]), np.array([np.nan]))
    assert np.isnan(gap)
    with pytest.warns(VidfuseWarning, match="proved to be within nan"):
        warn_of_gap(gap)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_a_veto_is_does_not_depend_on_the_passes_before(dtype):
    z, y = problem(n=40, members=2)
    z[3, 1, (y[3] + 1) % 5] = -np.inf
    z[5, 0, (y[5] + 1) % 5], z[6, 0, (y[6] + 1) % 5] = -2e4, -1e30  # finite: these stand as they are
    stack = LogitStack.from_arrays(z.astype(dtype), labels=y)
    beta = np.array([1e-5, 0.5])

    def passes():
        return Passes(stack, y, np.full(40, 1 / 40), np.zeros(2))

    fresh = passes().moments(beta)
    after = passes()
    after.moments(beta, double=False)
    assert after.moments(beta).value == fresh.value
    finite = z.copy()
    finite[3, 1, (y[3] + 1) % 5] = z[3, 1, y[3]] - 1e4
    assert fresh.value == pytest.approx(brute(beta, finite.astype(dtype).astype(np.float64), y), rel=1e-6)
    np.testing.assert_allclose(passes().gradients(beta).mean(axis=0), fresh.gradient, rtol=1e-9)
