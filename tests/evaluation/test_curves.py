"""Curves against the fits written out: labelled videos, members, views; and what each member is worth."""

from __future__ import annotations

import numpy as np
import pytest

import vidfuse as vf
from vidfuse.errors import InputError
from vidfuse.evaluation.curve_of_members import joining_order, members_curve
from vidfuse.evaluation.curve_of_views import views_curve
from vidfuse.evaluation.worth import member_worth
from vidfuse.fusion.crossfit import split_folds


def make_stack(seed=0, n=160, k=4, views=None, strengths=(2.0, 1.5, 1.0)):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    shape = (n, k) if views is None else (n, views, k)
    eye = np.eye(k)[y] if views is None else np.eye(k)[y][:, None]
    z = {f"m{i}": (rng.normal(size=shape) + s * eye).astype(np.float32) for i, s in enumerate(strengths)}
    return vf.LogitStack.from_arrays(z, labels=y, ids=[f"v{seed}-{i}" for i in range(n)])


FIT, TEST = make_stack(0), make_stack(1, n=200)


def test_a_learning_curve_ends_at_the_leaderboard():
    curve = vf.learning_curve(FIT, TEST, sizes=[20, 160], repeats=2, objective="nll", n_resamples=100)
    last = curve.series("learned weights")[-1]
    assert last.value == pytest.approx(vf.metrics.nll(TEST.labels, vf.LogLinearPool().fit(FIT).predict_log_proba(TEST)))
    assert last.spread == pytest.approx(0, abs=1e-9) and last.behind is None
    first = curve.series("learned weights")[0]
    assert first.step is None and first.behind.difference == pytest.approx(last.value - first.value, abs=1e-6)
    assert last.step.difference == pytest.approx(-first.behind.difference)
    flat = curve.series("average of log-likelihoods")
    assert flat[0].value == flat[1].value and flat[0].behind.p_value == 1
    assert curve.enough("average of log-likelihoods") == 20 and "enough videos" in str(curve)


def test_a_learning_curve_without_a_test_is_cross_fitted():
    curve = vf.learning_curve(FIT, sizes=[30, 120], repeats=1, folds=4, objective="nll", random_state=3, n_resamples=50)
    expected = np.empty((160, 4))
    for fit, rest in split_folds(FIT.labels, 4, None, 3, FIT.ids):
        assert len(fit) == 120
        expected[rest] = vf.LogLinearPool().fit(FIT[fit]).predict_log_proba(FIT[rest])
    assert curve.how_scored.name == "cross-fitted"
    assert curve.points[1].value == pytest.approx(vf.metrics.nll(FIT.labels, expected), abs=1e-9)


def test_the_last_point_of_every_curve_is_the_leaderboard_whatever_the_sizes_of_folds():
    stack = make_stack(4, n=83, views=2).with_groups(np.arange(83) // 3)
    rules = {"mine": vf.LogLinearPool(per_class=False)}
    value = vf.leaderboard(stack, rules=rules, objective="nll").entry("mine").value
    options = {"objective": "nll", "n_resamples": 50}
    curves = [
        vf.learning_curve(stack, rules=rules, repeats=2, **options),
        members_curve(stack, rule=rules["mine"], **options),
        views_curve(stack, rule=rules["mine"], **options),
    ]
    assert [curve.points[-1].value for curve in curves] == pytest.approx([value] * 3, abs=1e-12)


def test_sizes_double_and_classes_come_in_turn():
    seen = []

    class Spy(vf.LogLinearPool):
        def _fit(self, stack, labels, weight):
            seen.append((len(labels), len(set(labels.tolist())), stack.groups))
            super()._fit(stack, labels, weight)

    groups = np.arange(160) // 4
    curve = vf.learning_curve(
        FIT.with_groups(groups), TEST.with_groups(np.arange(200)), rules={"spy": Spy(weights="accuracy")}, repeats=1
    )
    assert [point.x for point in curve.points] == [20, 40, 80, 160]
    assert all(n_classes == 4 for _, n_classes, _ in seen)
    for _, _, own in seen:
        assert set(np.unique(own, return_counts=True)[1]) == {4}  # whole groups


def test_members_join_by_what_they_add_and_carry_their_cost():
    cost = {"m0": 5.0, "m1": 2.0, "m2": 1.0}
    curve = members_curve(FIT, TEST, rule=vf.LogLinearPool(weights="uniform"), cost=cost)
    order = [point.label for point in curve.points]
    assert order == joining_order(FIT) and order[0] == "m0"
    assert [point.cost for point in curve.points] == list(np.cumsum([cost[name] for name in order]))
    for n, point in enumerate(curve.points, 1):
        pool = vf.LogLinearPool(weights="uniform").fit(FIT.select(order[:n]))
        assert point.value == pytest.approx(pool.score(TEST.select(order[:n])))
    assert [p.label for p in members_curve(FIT, TEST, order=["m2", "m0", "m1"]).points] == ["m2", "m0", "m1"]


def test_equal_members_join_by_name_however_they_are_listed():
    y = np.arange(20) % 2
    stack = vf.LogitStack.from_arrays(dict.fromkeys("bca", 3.0 * np.eye(2)[y]), labels=y)
    for members in ("abc", "cab"):
        assert joining_order(stack.select(list(members))) == ["a", "b", "c"]


def test_the_first_point_of_a_members_curve_is_the_leaderboards_row_of_that_member():
    point = members_curve(FIT, TEST, order=["m1", "m0", "m2"], objective="nll", n_resamples=100).points[0]
    entry = vf.leaderboard(FIT, TEST, objective="nll", n_resamples=100).entry("m1")
    assert point.value == pytest.approx(entry.value) and tuple(point.interval) == pytest.approx(tuple(entry.interval))


def test_views_are_evenly_spaced_and_reduced():
    fit, test = make_stack(2, views=4), make_stack(3, views=4)
    curve = views_curve(fit, test, rule=vf.LogLinearPool(weights="uniform"), sizes=[1, 2, 4], cost=3.0)
    assert [point.cost for point in curve.points] == [3.0, 6.0, 12.0]
    whole = vf.reduce_views(test, "mean-log")
    pool = vf.LogLinearPool(weights="uniform").fit(vf.reduce_views(fit, "mean-log"))
    assert curve.points[-1].value == pytest.approx(pool.score(whole))
    two = {name: test.scores(name)[:, [0, 2]] for name in test.members}
    two = vf.LogitStack.from_arrays(two, labels=test.labels, views="mean-log")
    assert curve.points[1].value == pytest.approx(pool.score(two))
    assert curve.points[-1].value > curve.points[0].value


@pytest.mark.parametrize("objective", ["accuracy", "nll"])
def test_worth_is_what_the_rule_loses_refitted(objective):
    found = member_worth(FIT, TEST, rule=vf.LogLinearPool(), objective=objective, n_resamples=100)
    assert not found.lacking and "lack videos" not in str(found)
    metric, sign = vf.metrics.resolve_objective(objective), -1 if objective == "nll" else 1
    full = metric(TEST.labels, vf.LogLinearPool().fit(FIT).predict_log_proba(TEST))
    assert found.full == pytest.approx(full)
    for name in FIT.members:
        others = [other for other in FIT.members if other != name]
        pool = vf.LogLinearPool().fit(FIT.select(others))
        less = metric(TEST.labels, pool.predict_log_proba(TEST.select(others)))
        assert found[name].lost.difference == pytest.approx(sign * (full - less), abs=1e-6)
        assert found[name].alone == pytest.approx(metric(TEST.labels, TEST.select([name]).log_likelihoods()[:, 0]))
    lost = [row.lost.difference for row in found.rows]
    assert lost == sorted(lost, reverse=True) and "loses without a member" in str(found)


def test_a_twin_can_be_dropped_and_given_weights_are_kept():
    z = {"a": FIT.scores("m0"), "b": FIT.scores("m1"), "twin": FIT.scores("m1")}
    stack = vf.LogitStack.from_arrays(z, labels=FIT.labels, ids=FIT.ids)
    found = member_worth(stack, rule=vf.LogLinearPool(weights={"a": 2.0, "b": 1.0, "twin": 0.0}))
    assert found["twin"].lost.difference == 0 and "twin" in found.to_drop
    listed = member_worth(stack, rule=vf.LogLinearPool(weights=[2.0, 1.0, 0.0]))
    assert [row.lost.difference for row in listed.rows] == [row.lost.difference for row in found.rows]


def lacking_stack():
    """Return a stack in which m1 has the first 100 of 160 videos, m2 the last 90, and m0 all but ten in the middle."""
    ids = {"m0": [*FIT.ids[:75], *FIT.ids[85:]], "m1": FIT.ids[:100].tolist(), "m2": FIT.ids[70:].tolist()}
    row_of = {name: row for row, name in enumerate(FIT.ids.tolist())}
    z = {name: FIT.scores(name)[[row_of[i] for i in own]] for name, own in ids.items()}
    labels = dict(zip(FIT.ids.tolist(), FIT.labels.tolist(), strict=True))
    return vf.LogitStack.from_arrays(z, ids=ids, labels=labels, join="outer")


@pytest.mark.parametrize("test", [None, TEST])
def test_worth_where_members_lack_videos_is_counted_on_those_that_others_have(test):
    stack = lacking_stack()
    rule = vf.LogLinearPool(weights="uniform", missing="renormalise")
    found = member_worth(stack, test, rule=rule)
    scored = stack if test is None else test
    whole = rule.fit(scored).predict(scored)
    for name in stack.members:
        others = scored.select([other for other in stack.members if other != name])
        rows = np.ones(len(scored), bool) if others.present is None else others.present.any(axis=1)
        hits = vf.LogLinearPool(weights="uniform", missing="renormalise").fit(others[rows]).predict(others[rows])
        lost = (whole[rows] == scored.labels[rows]).mean() - (hits == scored.labels[rows]).mean()
        assert found[name].lost.difference == pytest.approx(lost, abs=1e-12)
    assert found.lacking and "Some members lack videos" in str(found)
    assert any("Some members lack videos" in note for note in found.table().notes)


def test_members_that_lack_videos_join_on_those_that_the_first_has():
    stack = lacking_stack()
    rule = vf.LogLinearPool(weights="uniform", missing="renormalise")
    curve = members_curve(stack, rule=rule, order=["m1", "m0", "m2"])
    first = stack[stack.present[:, 1]]
    assert curve.how_scored.n_scored == 100
    assert curve.points[0].value == pytest.approx(vf.metrics.top_k_accuracy(first.labels, first.scores("m1")))
    assert curve.points[2].value == pytest.approx(rule.fit(first).score(first))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vf.learning_curve(FIT, sizes=[1000]), r"sizes: expected numbers within 2"),
        (lambda: vf.learning_curve(FIT, repeats=0), "repeats"),
        (lambda: vf.learning_curve(FIT, folds=0), "folds"),
        (lambda: vf.learning_curve(FIT, rules={}), "rules"),
        (lambda: vf.learning_curve(FIT, sizes=[20]).series("x"), "got 'x'"),
        (lambda: members_curve(FIT, order=["m0"]), "order: expected each of"),
        (lambda: members_curve(FIT, cost={"m0": 1}), "cost: expected each of"),
        (lambda: views_curve(FIT), r"takes stacks \(N, M, V, K\)"),
        (lambda: views_curve(make_stack(views=3), sizes=[4]), "within 1 … 3"),
        (lambda: views_curve(make_stack(views=3), sizes=[0, 2]), "within 1 … 3"),
        (lambda: member_worth(FIT.select(["m0"])), "at least two members"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
