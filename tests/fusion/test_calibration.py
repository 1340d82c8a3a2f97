"""Calibration, stacking and dynamic weights against SciPy and against what they are for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from sklearn.base import BaseEstimator

from vidfuse.errors import AlignmentError, InputError
from vidfuse.fusion.calibration import Calibrated, TemperatureScaling, VectorScaling
from vidfuse.fusion.dynamic import DynamicPool
from vidfuse.fusion.linear import LinearPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule
from vidfuse.fusion.stacking import StackedPool
from vidfuse.fusion.votes import MajorityVote
from vidfuse.likelihood import log_softmax
from vidfuse.stack.stack import LogitStack


def predictions(n=400, classes=4, sharpness=3.0, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return log_softmax(sharpness * (rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[y])), y


def loss(log_p, y):
    return -log_p[np.arange(len(y)), y].mean()


def test_temperature_against_scipy():
    z, y = predictions()
    scaling = TemperatureScaling().fit(z, y)
    wrong = z.copy()
    wrong[np.arange(400), y] = -np.inf
    share, second = 0.5 / 401, wrong.argmax(axis=1)

    def smoothed(b):
        log_p = log_softmax(z * b)
        return (1 - share) * loss(log_p, y) + share * loss(log_p, second)

    found = minimize_scalar(smoothed, bounds=(0.01, 100), method="bounded", options={"xatol": 1e-10})
    assert scaling.temperature_ == pytest.approx(1 / found.x, rel=1e-5)
    assert scaling.temperature_ > 1.5
    np.testing.assert_array_equal(scaling.transform(z).argmax(axis=1), z.argmax(axis=1))


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_a_temperature_follows_the_scale_of_scores_and_is_finite_where_all_is_right(factor):
    z, y = predictions()
    for scores, labels in ((z, y), (6.0 * np.eye(4)[y], y)):
        one, other = (TemperatureScaling().fit(s, labels) for s in (scores, factor * scores))
        assert other.temperature_ == pytest.approx(factor * one.temperature_, rel=1e-3)
        p = np.exp(other.transform(factor * scores))[np.arange(400), labels]
        assert p.max() < 1 - 1e-5


def test_vector_scaling_against_scipy():
    z, y = predictions(n=150, classes=3, sharpness=1.0)
    z = log_softmax(z + np.array([1.0, 0.0, 0.0]))
    scaling = VectorScaling(shrinkage=5.0).fit(z, y)
    centre = 1 / TemperatureScaling().fit(z, y).temperature_

    def objective(x):
        prior = np.sum((x[:3] - centre) ** 2) + np.sum(x[3:] ** 2)
        return loss(log_softmax(z * x[:3] + x[3:]), y) + 0.5 * 5.0 / 150 * prior

    found = minimize(objective, np.r_[np.full(3, centre), np.zeros(3)], method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(np.r_[scaling.scale_, scaling.bias_], found.x, atol=2e-3)
    assert loss(scaling.transform(z), y) < loss(TemperatureScaling().fit(z, y).transform(z), y)


def test_vector_scaling_without_a_prior_ends_where_the_optimum_is_infinite():
    z = log_softmax(4.0 * np.eye(3)[[0, 1, 2, 0]])  # no video is wrong, and every class can be told apart
    scaling = VectorScaling(shrinkage=0.0).fit(z, [0, 1, 2, 0])
    assert np.isfinite(scaling.scale_).all()
    assert loss(scaling.transform(z), np.array([0, 1, 2, 0])) < 1e-3


def test_vector_scaling_with_few_videos_stays_near_temperature_scaling():
    z, y = predictions(n=20, classes=10)
    vector, single = VectorScaling(shrinkage=1e6).fit(z, y), TemperatureScaling().fit(z, y)
    np.testing.assert_allclose(vector.transform(z), single.transform(z), atol=1e-3)


@pytest.mark.parametrize("scaling", [TemperatureScaling(), VectorScaling()])
def test_calibrators_refuse_what_they_cannot_read(scaling):
    z, y = predictions(n=20)
    with pytest.raises(InputError, match="N, K"):
        scaling.fit(z[:, None], y)
    with pytest.raises(InputError, match="labels"):
        scaling.fit(z, y + 4)
    with pytest.raises(InputError, match="sample_weight"):
        scaling.fit(z, y, np.zeros(20))


def test_zero_probabilities_are_calibrated():
    z, y = predictions(n=60)
    z[np.arange(60), (y + 1) % 4] = -np.inf
    for scaling in (TemperatureScaling(), VectorScaling()):
        assert np.isfinite(loss(scaling.fit(z, y).transform(z), y))


def members(n=400, seed=0):
    (a, y), (b, _) = predictions(n, seed=seed), predictions(n, sharpness=0.5, seed=seed)
    rng = np.random.default_rng(seed + 100)
    b = log_softmax(0.3 * (rng.normal(size=b.shape) + 1.5 * np.eye(4)[y]))
    return np.stack([a, b], axis=1), y


def test_calibrated_members_get_fair_weights():
    X, y = members()
    plain = LogLinearPool(weights="uniform").fit(X, y)
    each = Calibrated(LogLinearPool(weights="uniform"), where="members").fit(X, y)
    after = Calibrated(LogLinearPool(weights="uniform")).fit(X, y)
    assert loss(each.predict_log_proba(X), y) < loss(after.predict_log_proba(X), y)
    assert loss(after.predict_log_proba(X), y) < loss(plain.predict_log_proba(X), y)
    assert each.calibrators_[0].temperature_ > 1 > each.calibrators_[1].temperature_
    with pytest.raises(InputError, match="where"):
        Calibrated(LogLinearPool(), where="before").fit(X, y)


def test_stacking_repairs_a_bias_that_pools_cannot():
    X, y = members()
    X = log_softmax(X + np.array([2.0, 0.0, 0.0, 0.0]))
    pool, stacked = LogLinearPool().fit(X, y), StackedPool().fit(X, y)
    assert loss(stacked.predict_log_proba(X), y) < loss(pool.predict_log_proba(X), y) - 0.05
    assert stacked.intercept_.argmin() == 0
    for parameters in ({"structure": "full"}, {"shrinkage": 0.0}):
        with pytest.raises(InputError, match=next(iter(parameters))):
            StackedPool(**parameters).fit(X, y)


@pytest.mark.parametrize("structure", ["shared", "diagonal"])
@pytest.mark.parametrize("shrinkage", [10.0, 40.0])
def test_stacking_against_scipy(structure, shrinkage):
    """Oracle: NLL + ½/N·(λ_w·Σ(β - β_static)² + λ·Σb²), with λ_w = λ for shared weights, and 10·λ for those of a class.

    The last member rules a class out for some videos, which is taken as -100 nats.
    """
    X, y = members(n=150)
    X = log_softmax(X + np.array([1.0, 0.0, 0.0, 0.0]))
    X[::10, 1, 3] = -np.inf
    X, y[::10] = log_softmax(X), y[::10] % 3
    pool = StackedPool(structure, shrinkage=shrinkage, floor=0.0).fit(X, y)
    static = LogLinearPool(floor=0.0, per_class=False).fit(X, y)
    shared = static.weights_ / static.temperature_
    columns = 4 if structure == "diagonal" else 1
    log_p = np.maximum(log_softmax(X * static.scale_[:, None]), -100.0)

    def logits(x):
        beta = x[: 2 * columns].reshape(2, columns)
        return (log_p * beta).sum(axis=1) + x[2 * columns :]

    def objective(x):
        away = np.sum((x[: 2 * columns].reshape(2, columns) - shared[:, None]) ** 2)
        prior = (10 if structure == "diagonal" else 1) * shrinkage * away + shrinkage * np.sum(x[2 * columns :] ** 2)
        return loss(log_softmax(logits(x)), y) + 0.5 / 150 * prior

    found = minimize(objective, np.r_[np.repeat(shared, columns), np.zeros(4)], method="BFGS", options={"gtol": 1e-8})
    coef, intercept = np.broadcast_to(found.x[: 2 * columns].reshape(2, columns), (2, 4)), found.x[2 * columns :]
    assert np.abs(intercept).max() > 0.05
    np.testing.assert_allclose(pool.coef_, coef, atol=0.02)
    np.testing.assert_allclose(pool.intercept_, intercept, atol=0.02)
    own = np.r_[pool.coef_[:, :columns].ravel(), pool.intercept_]
    assert objective(own) == pytest.approx(found.fun, abs=3e-5)
    np.testing.assert_allclose(pool.predict_log_proba(X), log_softmax(logits(own)), atol=1e-4)


def test_stacking_does_not_overfit_many_classes():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 100, 600)
    X = log_softmax(rng.normal(size=(600, 2, 100)) * 1.5 + 4 * np.eye(100)[y][:, None])
    for structure in ("shared", "diagonal"):
        stacked = StackedPool(structure).fit(X[:200], y[:200])
        static = LogLinearPool().fit(X[:200], y[:200])
        assert (
            loss(stacked.predict_log_proba(X[200:]), y[200:]) < loss(static.predict_log_proba(X[200:]), y[200:]) + 0.02
        )


def regional(n, seed):
    """Each of two members knows half of the classes, and is confidently wrong in the other half."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 6, n)
    z = rng.normal(size=(n, 2, 6))
    for m in (0, 1):
        known = (y < 3) == (m == 0)
        z[known, m, y[known]] += 6.0
        wrong = 3 * (y >= 3) + (y + 1) % 3  # of the same half
        z[~known, m, wrong[~known]] += 6.0
    return log_softmax(z), y


def test_dynamic_weights_find_the_member_that_knows():
    (X, y), (T, truth) = regional(500, 0), regional(500, 1)
    static, dynamic = LogLinearPool().fit(X, y), DynamicPool().fit(X, y)
    assert not dynamic.fallback_
    assert dynamic.gain_ > 0
    assert loss(dynamic.predict_log_proba(T), truth) < loss(static.predict_log_proba(T), truth)


def test_dynamic_weights_fall_back_to_the_static_pool():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60)
    X = log_softmax(rng.normal(size=(60, 1, 3)) + np.eye(3)[y][:, None])
    dynamic = DynamicPool().fit(X, y)
    assert dynamic.fallback_
    np.testing.assert_array_equal(dynamic.predict_log_proba(X), LogLinearPool().fit(X, y).predict_log_proba(X))
    for parameters in ({"features": "luck"}, {"neighbours": 0}, {"pool": StackedPool()}):
        with pytest.raises(InputError, match=next(iter(parameters))):
            DynamicPool(**parameters).fit(X, y)


@pytest.mark.parametrize("features", ["confidence", "competence", "both"])
def test_dynamic_features_describe_members(features):
    X, y = regional(200, 3)
    dynamic = DynamicPool(features=features).fit(X, y)
    assert dynamic.strengths_.shape == ({"confidence": 2, "competence": 1, "both": 3}[features],)
    np.testing.assert_allclose(dynamic.predict_proba(X).sum(axis=1), 1.0, atol=1e-12)


def rounded(zeros, n=120, k=4, seed=0):
    """Return probabilities (N, K) of three digits, some of them 0 at the true class, and the labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    z = 4 * (rng.normal(size=(n, k)) + np.eye(k)[y])
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p = (p / p.sum(axis=1, keepdims=True)).round(3)
    p[np.arange(n), p.argmax(axis=1)] += 1 - p.sum(axis=1)
    p[p[np.arange(n), y] == 0] = 1 / k
    for row in range(zeros):
        p[row] = 0.0
        p[row, (y[row] + 1) % k] = 1.0
    return p, y


def test_rounded_probabilities_are_calibrated_as_if_they_had_the_floor():
    """Oracle: the floor mixed in by hand."""
    arrays, expected = {}, []
    for member, zeros in enumerate((2, 1, 0)):
        p, y = rounded(zeros)
        arrays[f"m{member}"] = p
        floored = np.log((1 - 1e-4) * p / p.sum(axis=1, keepdims=True) + 1e-4 / p.shape[1])
        expected.append(TemperatureScaling().fit(floored, y).temperature_)
    stack = LogitStack.from_arrays(arrays, labels=y, kind="probabilities")
    fitted = Calibrated(LogLinearPool(weights="uniform"), where="members").fit(stack)
    np.testing.assert_allclose([c.temperature_ for c in fitted.calibrators_], expected, rtol=1e-4)
    assert min(expected) > 1.2
    assert np.isfinite(fitted.predict_log_proba(stack)).all()


def test_a_zero_at_the_true_class_or_a_nan_is_an_error_and_no_temperature_of_one():
    z, y = np.log(np.full((4, 2), 0.5)), [0, 1, 0, 1]
    z[2] = [-np.inf, 0.0]
    for scaling in (TemperatureScaling(), VectorScaling()):
        with pytest.raises(InputError, match="probability of 0 at the true class: row 2"):
            scaling.fit(z, y)
        scaling.fit(z, y, sample_weight=[1, 1, 0, 1])
        for wrong in (np.nan, np.inf):
            z[1, 0] = wrong
            with pytest.raises(InputError, match="row 1"):
                scaling.fit(z, y)
        z[1, 0] = 0.0


@pytest.mark.parametrize("scaling", [TemperatureScaling(), VectorScaling()])
def test_rows_are_counted_among_all_videos_and_not_among_those_with_a_weight(scaling):
    z, y = predictions(n=20)
    z[7, y[7]] = -np.inf
    weight = np.ones(20)
    weight[:5] = 0
    with pytest.raises(InputError, match="row 7"):
        scaling.fit(z, y, weight)


@pytest.mark.parametrize("scaling", [TemperatureScaling(), VectorScaling()])
def test_videos_of_no_weight_do_not_move_a_calibration(scaling):
    z, y = predictions(n=200)
    weight = np.repeat([1.0, 0.0], 100)
    expected = scaling.fit(z[:100], y[:100]).transform(z)
    np.testing.assert_allclose(scaling.fit(z, y, weight).transform(z), expected, atol=1e-6)


@pytest.mark.parametrize("scaling", [TemperatureScaling(), VectorScaling()])
def test_a_row_without_a_finite_number_is_refused_in_a_fit_and_in_a_prediction(scaling):
    z, y = predictions(n=20)
    scaling.fit(z, y)
    z[3] = -np.inf
    for call in (lambda: scaling.fit(z, y), lambda: scaling.transform(z)):
        with pytest.raises(InputError, match="one finite number a row or more, got a highest one of -inf for row 3"):
            call()


def named(missing_from=None, n=60):
    """Return a stack of two members with ids; from `missing_from` on, videos lack member b."""
    X, y = members(n)
    ids = [f"v{i}" for i in range(n)]
    stop = n if missing_from is None else missing_from
    return LogitStack.from_arrays(
        {"a": X[:, 0], "b": X[:stop, 1]}, ids={"a": ids, "b": ids[:stop]}, join="outer",
        labels=dict(zip(ids, y.tolist(), strict=True)),
    )  # fmt: skip


@pytest.mark.parametrize("scaling", [TemperatureScaling(), VectorScaling()])
def test_a_zero_at_the_true_class_is_named_by_member_and_id(scaling):
    X, y = members(20)
    X[7, :, y[7]] = -np.inf
    stack = LogitStack.from_arrays({"a": X[:, 0], "b": X[:, 1]}, labels=y, ids=[f"v{i}" for i in range(20)])
    with pytest.raises(InputError, match=r"true class: member 'a', id 'v7' \(row 7\); give this member as kind="):
        Calibrated(LogLinearPool("uniform"), scaling, where="members").fit(stack)
    with pytest.raises(InputError, match=r"true class: id 'v7' \(row 7\); set floor=1e-4 or more in the rule"):
        Calibrated(LinearPool("uniform"), scaling).fit(stack)
    fitted = Calibrated(LinearPool("uniform", floor=1e-4), scaling).fit(stack)
    assert np.isfinite(loss(fitted.predict_log_proba(stack), y))


class Broken(Rule):
    def _fit(self, stack, labels, weight):
        pass

    def _fuse(self, stack):
        log_p = np.full((len(stack), stack.n_classes), -np.log(stack.n_classes))
        log_p[3, 0] = np.nan
        return log_p


def test_a_rule_that_predicts_nan_is_not_calibrated_and_the_video_is_named():
    with pytest.raises(InputError, match="nan for id 'v3'"):
        Calibrated(Broken()).fit(named())


def test_a_member_without_a_video_of_positive_weight_is_named():
    stack, weight = named(missing_from=40), np.repeat([0.0, 1.0], [40, 20])
    pool = Calibrated(LogLinearPool("uniform", missing="renormalise"), where="members")
    with pytest.raises(AlignmentError, match="none that member 'b' has"):
        pool.fit(stack, sample_weight=weight)


@pytest.mark.parametrize(
    "rule", [StackedPool(), Calibrated(StackedPool()), Calibrated(StackedPool(), where="members"),
             Calibrated(DynamicPool())],
    ids=["stacked", "calibrated", "calibrated-members", "calibrated-dynamic"],
)  # fmt: skip
def test_rules_that_need_every_member_do_not_advise_to_go_on_without_some(rule):
    incomplete = named(missing_from=40)
    complete = incomplete[incomplete.present.all(axis=1)]
    message = "20 of 60 videos without some; keep those that all members have"
    with pytest.raises(AlignmentError, match=message):
        rule.fit(incomplete)
    rule.fit(complete)
    with pytest.raises(AlignmentError, match=message):
        rule.predict(incomplete)
    with pytest.raises(AlignmentError, match=r"missing: 'b', not in the fit: none$"):
        rule.predict(complete.select(["a"]))


def test_a_calibrated_rule_that_can_go_on_without_members_says_so():
    with pytest.raises(AlignmentError, match='give the rule missing="renormalise"'):
        Calibrated(LogLinearPool(), where="members").fit(named(missing_from=40))
    stack = named(missing_from=40)
    pool = Calibrated(LogLinearPool("uniform", missing="renormalise"), where="members").fit(stack)
    b = stack.select(["b"])[np.arange(40)]
    alone = TemperatureScaling().fit(b.log_likelihoods()[:, 0], b.labels).temperature_
    assert pool.calibrators_[1].temperature_ == pytest.approx(alone, rel=1e-6)
    assert pool.predict(stack.select(["a"])).shape == (60,)


class Halving(BaseEstimator):
    """Another kind of calibrator, which halves log-likelihoods."""

    def fit(self, log_p, y, sample_weight):
        self.videos_ = len(log_p)
        assert len(y) == len(sample_weight) == self.videos_
        return self

    def transform(self, log_p):
        return log_softmax(0.5 * np.asarray(log_p, dtype=np.float64))


def test_other_calibrators_are_fitted_on_the_videos_that_a_member_has():
    stack = named(missing_from=40)
    pool = Calibrated(LogLinearPool("uniform", missing="renormalise"), Halving(), where="members").fit(stack)
    assert [calibrator.videos_ for calibrator in pool.calibrators_] == [60, 40]
    complete = stack[stack.present.all(axis=1)]
    expected = log_softmax(0.5 * complete.log_likelihoods().astype(np.float64).mean(axis=1))
    np.testing.assert_allclose(pool.predict_log_proba(complete), expected, atol=1e-5)
    assert Calibrated(LinearPool("uniform"), Halving()).fit(complete).calibrators_[0].videos_ == 40


@pytest.mark.parametrize("where", ["after", "members"])
def test_the_summary_is_that_of_the_inner_rule(where):
    X, y = members(60)
    pool = Calibrated(LogLinearPool("accuracy"), where=where).fit(X, y)
    inner = LogLinearPool("accuracy").fit(X, y).summary(bootstrap=50, confidence=0.9, random_state=3)
    found = pool.summary(bootstrap=50, confidence=0.9, random_state=3)
    np.testing.assert_allclose(found.weights, inner.weights)
    np.testing.assert_allclose([found.lower, found.upper], [inner.lower, inner.upper])
    with pytest.raises(InputError, match=r"one weight a member.*got StackedPool"):
        Calibrated(StackedPool(), where=where).fit(X, y).summary()


def test_the_rule_is_fitted_on_the_calibrated_members():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 150)
    arrays = {name: s * (rng.normal(size=(150, 4)) + 1.5 * np.eye(4)[y]) for name, s in (("b", 9.0), ("a", 1.0))}
    rule = Calibrated(LinearPool("inverse-nll"), where="members").fit(LogitStack.from_arrays(arrays), y)
    own = {name: TemperatureScaling().fit(z, y).transform(z) for name, z in arrays.items()}
    expected = LinearPool("inverse-nll").fit(LogitStack.from_arrays(own, kind="log-likelihoods"), y)
    np.testing.assert_allclose(rule.rule_.weights_, expected.weights_, atol=1e-5)
    raw = LinearPool("inverse-nll").fit(LogitStack.from_arrays(arrays), y)
    assert np.abs(rule.rule_.weights_ - raw.weights_).max() > 0.05


def test_members_with_views_are_calibrated_after_but_not_before_the_rule_fuses_them():
    views, y = np.random.default_rng(0).normal(size=(40, 3, 2, 4)), np.arange(40) % 4
    assert Calibrated(MajorityVote()).fit(views, y).predict(views).shape == (40,)
    with pytest.raises(InputError, match=r"Calibrated takes \(N, M, K\), got views"):
        Calibrated(MajorityVote(), where="members").fit(views, y)
