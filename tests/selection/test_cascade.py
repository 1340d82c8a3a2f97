"""Cascades: the stated risk is kept, too few videos are said, and stages answer what they are sure of."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vidfuse as vf
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.metrics import binomial_p_value
from vidfuse.stack.stack import LogitStack


def drawn(n, seed, skills=(2.5, 3.5, 5.0), classes=4, groups=None):
    """Members of rising skill that share what is hard about a video (or about the source that it comes from)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    source = np.arange(n) if groups is None else groups
    ease = (1 / np.sqrt(0.2 + rng.gamma(1.0, 1.0, source.max() + 1)))[source]
    members = {
        name: skill * ease[:, None] * np.eye(classes)[y] + rng.normal(size=(n, classes))
        for name, skill in zip("abc", skills, strict=False)
    }
    return LogitStack.from_arrays(members, labels=y)


PLAIN = vf.LogLinearPool(weights="accuracy")
COSTS = {"a": 5.0, "b": 20.0, "c": 88.0}


@pytest.mark.parametrize("risk", ["accuracy", "label"])
def test_the_stated_risk_is_exceeded_no_more_often_than_stated(risk):
    """The cheapest point that was certified is the one nearest to the risk; new videos are many."""
    new, exceeded = drawn(5_000, 10_000), 0
    for seed in range(40):
        cascade = vf.Cascade(PLAIN, costs=COSTS, risk=risk, at_most=0.03, keep=0.0).fit(drawn(700, seed))
        front = cascade.front(new)
        lost = front.accuracy[0] - front.accuracy if risk == "accuracy" else front.differs
        exceeded += lost[cascade.chosen_] > 0.03
        assert cascade.chosen_ == cascade.n_certified_ - 1 > 0
    assert binomial_p_value(40 - exceeded, 40, 0.95) > 0.01  # at most 5 %, but for chance


def test_the_share_of_the_gain_that_is_kept_runs_from_none_to_all():
    """At 0 the cheapest certified point is taken, at 1 the cheapest that loses nothing of what members gain."""
    stack = drawn(2000, 0)
    fitted = {keep: vf.Cascade(PLAIN, costs=COSTS, at_most=0.03, keep=keep).fit(stack) for keep in (0, 0.5, 1)}
    assert fitted[0].chosen_ == fitted[0].n_certified_ - 1
    assert fitted[0].chosen_ >= fitted[0.5].chosen_ >= fitted[1].chosen_


@pytest.mark.parametrize(("points", "chosen", "shown"), [(4, 1, [0, 1, 2, 3]), (19, 0, range(0, 19, 2)), (19, 5, None)])
def test_a_front_shows_ten_points_and_the_chosen_one(points, chosen, shown):
    numbers = np.linspace(1.0, 0.1, points)
    front = vf.selection.cascade.CascadeFront(
        numbers[:, None], numbers, numbers, 1 - numbers, np.ones(points, bool), chosen
    )
    expected = [*range(0, 19, 2), 5] if shown is None else shown
    assert [row[1] for row in front.table().rows] == [numbers[point] for point in sorted(expected)]


def test_it_costs_less_and_keeps_the_gain():
    cascade = vf.Cascade(PLAIN, costs=COSTS, at_most=0.02).fit(drawn(2000, 0))
    new = drawn(10_000, 1)
    front = cascade.front(new)
    best = max((new.scores(name).argmax(axis=1) == new.labels).mean() for name in new.members)
    assert (front.accuracy[front.chosen] - best) > 0.9 * (front.accuracy[0] - best) > 0
    assert front.cost[front.chosen] < 0.6 * front.cost[0]
    stage = cascade.stage_of(new)
    assert front.cost[front.chosen] == pytest.approx(cascade.costs_[stage].mean())
    assert front.accuracy[front.chosen] == cascade.score(new)
    assert (np.diff(front.cost) < 0).all()
    assert (cascade.path_[1:] <= cascade.path_[:-1]).all()
    np.testing.assert_array_equal(np.bincount(stage, minlength=3) > 0, np.append(cascade.thresholds_, 0.0) < np.inf)


@given(st.integers(0, 10_000), st.sampled_from(["probability", "margin"]))
@settings(max_examples=10, deadline=None)
def test_a_stage_answers_what_it_is_sure_of_and_leaves_the_rest(seed, by):
    stack = drawn(600, seed)
    cascade = vf.Cascade(PLAIN, costs=COSTS, at_most=0.1, by=by).fit(stack)
    log_p, stage, new = cascade.predict_log_proba(stack), cascade.stage_of(stack), stack
    for number, rule in enumerate(cascade.stages_):
        own = rule.predict_log_proba(new.select(cascade.order_[: number + 1]))
        np.testing.assert_allclose(log_p[stage == number], own[stage == number], atol=1e-12)
        top = np.sort(np.exp(own), axis=1)
        sure = top[:, -1] - (top[:, -2] if by == "margin" else 0)
        if number < 2:
            assert (sure[stage == number] >= cascade.thresholds_[number]).all()
            assert (sure[stage > number] < cascade.thresholds_[number]).all()


def test_too_few_videos_are_said_and_all_members_run():
    stack = drawn(200, 0)
    with pytest.warns(VidfuseWarning, match=r"all members run.*299 independent.*has 100.*at_most="):
        vf.Cascade(PLAIN, costs=COSTS, risk="label").fit(stack)
    with pytest.warns(VidfuseWarning, match=r"takes at least 4\d\d independent videos.*has 100"):  # won and lost ones
        cascade = vf.Cascade(PLAIN, costs=COSTS).fit(stack)
    assert "all of a, b, c run on every video" in cascade.choices()[0]
    assert cascade.p_value_ == 1.0
    whole = vf.LogLinearPool(weights="accuracy").fit(stack)  # of all videos: nothing rests on the halves
    np.testing.assert_array_equal(cascade.predict_log_proba(stack), whole.predict_log_proba(stack))
    assert (cascade.stage_of(stack) == 2).all()
    with pytest.warns(VidfuseWarning, match="has 0"):
        vf.Cascade(PLAIN, costs=COSTS).fit(stack[:40], groups=["one"] * 40)


def test_groups_count_instead_of_videos_and_stand_whole_in_one_half():
    groups = np.repeat(np.arange(300), 5)
    stack = drawn(1500, 0, groups=groups)
    alone = vf.Cascade(PLAIN, costs=COSTS, at_most=0.03).fit(stack)
    grouped = vf.Cascade(PLAIN, costs=COSTS, at_most=0.03).fit(stack, groups=groups)
    assert (alone.n_tested_, grouped.n_tested_) == (750, 150)
    assert grouped.n_certified_ < alone.n_certified_
    with pytest.warns(VidfuseWarning, match=r"at least 3\d\d groups of such sizes.*has 150"):
        vf.Cascade(PLAIN, costs=COSTS, at_most=0.01).fit(stack, groups=groups)


def test_the_order_of_the_rows_says_nothing_with_ids_or_without():
    stack = drawn(800, 3)
    order = np.random.default_rng(0).permutation(800)
    scores = {name: stack.scores(name) for name in stack.members}
    named = LogitStack.from_arrays(scores, labels=stack.labels, ids=[f"v{i}" for i in range(800)])
    for one in (stack, named):
        a, b = (vf.Cascade(PLAIN, costs=COSTS, at_most=0.05).fit(part) for part in (one, one[order]))
        assert a.n_certified_ == b.n_certified_ > 1
        np.testing.assert_allclose(a.thresholds_, b.thresholds_, rtol=1e-6)
        np.testing.assert_allclose(a.predict_log_proba(stack), b.predict_log_proba(stack), atol=1e-9)
    classes = np.random.default_rng(1).permutation(4)  # neither do the numbers of the classes
    renamed = {name: own[:, np.argsort(classes)] for name, own in scores.items()}
    other = LogitStack.from_arrays(renamed, labels=classes[stack.labels])
    found = [vf.Cascade(PLAIN, costs=COSTS, at_most=0.05).fit(one).thresholds_ for one in (stack, other)]
    np.testing.assert_allclose(*found, rtol=1e-6)


def with_views(n, seed, views=6, classes=4):
    """Two members whose views differ by chance."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    ease = 1 / np.sqrt(0.2 + rng.gamma(1.0, 1.0, n))
    members = {
        name: skill * ease[:, None, None] * np.eye(classes)[y][:, None] + rng.normal(size=(n, views, classes))
        for name, skill in (("a", 1.5), ("b", 2.5))
    }
    return LogitStack.from_arrays(members, labels=y)


@pytest.mark.parametrize("views", ["mean-log", "vote"])
def test_views_are_asked_one_by_one_and_counted_in_passes(views):
    stack, new = with_views(1500, 0), with_views(1000, 1)
    cascade = vf.Cascade(PLAIN, at_most=0.03, order=["a", "b"], views=views).fit(stack)
    assert cascade.views_.tolist() == [1, 1, 2, 4, 6]
    assert cascade.costs_.tolist() == [1, 2, 4, 8, 12]
    front, stage = cascade.front(new), cascade.stage_of(new)
    assert front.cost[front.chosen] == cascade.costs_[stage].mean() < 9
    assert front.accuracy[0] - front.accuracy[front.chosen] < 0.03
    log_p = cascade.predict_log_proba(new)
    for number, rule in enumerate(cascade.stages_):  # by hand
        names, seen = (["a"], ["a", "b"])[number > 0], int(cascade.views_[number])
        some = {name: new.scores(name)[stage == number, :seen] for name in names}
        if (stage == number).any():
            own = rule.predict_log_proba(vf.reduce_views(LogitStack.from_arrays(some), views))
            np.testing.assert_allclose(log_p[stage == number], own, atol=1e-9)
    assert "1 view of a" in cascade.choices()[0] and "6 views of 2 members" in cascade.choices()[0]
    with pytest.raises(InputError, match=r"6 views, as in the fit; got shape \(1000, 2, 4\)"):
        cascade.predict(vf.reduce_views(new))
    with pytest.raises(InputError, match=r"takes \(N, M, K\)"):
        vf.Cascade(PLAIN, at_most=0.03).fit(vf.reduce_views(stack)).predict(new)


def test_a_cascade_over_views_is_saved_loaded_recorded_and_watched(tmp_path):
    drawn_ = with_views(1400, 0)
    scores = {name: drawn_.scores(name) for name in drawn_.members}
    stack = LogitStack.from_arrays(scores, labels=drawn_.labels, ids=[f"v{i}" for i in range(1400)])
    fit, rest = stack[:800], stack[800:]
    recipe = vf.Recipe.from_fitted(vf.Cascade(PLAIN, at_most=0.05).fit(fit), fit).with_record(rest[:300])
    loaded = vf.load_recipe(recipe.save(tmp_path / "cascade.json"))
    np.testing.assert_array_equal(loaded.predict_log_proba(rest), recipe.predict_log_proba(rest))
    assert loaded.rule.views_.tolist() == [1, 1, 2, 4, 6]
    assert loaded.record.prediction_sets(0.9).of(loaded.predict_log_proba(rest)).shape == (600, 4)
    assert not vf.watch(loaded, [rest[300:]]).alarms


def test_a_risk_that_every_step_exceeds_is_said():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 2000)
    wrong = 9 * np.eye(4)[(y + rng.integers(1, 4, 2000)) % 4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VidfuseWarning)  # a member that is always wrong
        stack = LogitStack.from_arrays({"a": wrong, "b": 3 * np.eye(4)[y]}, labels=y)
    given_ = vf.LogLinearPool(weights={"a": 0.01, "b": 0.99})
    with pytest.warns(VidfuseWarning, match="already the first step"):
        vf.Cascade(given_, order=["a", "b"], at_most=0.01).fit(stack)


def test_members_run_from_cheap_to_dear_and_of_equal_ones_the_better_first():
    stack = drawn(1000, 0)
    assert vf.Cascade(PLAIN, costs=[3, 1, 2], at_most=0.05).fit(stack).order_ == ("b", "c", "a")
    assert vf.Cascade(PLAIN, at_most=0.05).fit(stack).order_ == ("c", "b", "a")
    assert vf.Cascade(PLAIN, order=["a", "c", "b"], at_most=0.05).fit(stack).order_ == ("a", "c", "b")


def test_a_prediction_needs_the_members_that_may_be_asked():
    stack = drawn(1000, 0, skills=(9.0, 1.0, 1.0))
    cascade = vf.Cascade(PLAIN, costs=COSTS, at_most=0.05, keep=0.0).fit(stack)
    assert cascade.needed_members() == ("a",)
    np.testing.assert_array_equal(cascade.predict(stack.select(["a"])), cascade.predict(stack))


def test_a_front_is_a_table_with_the_point_in_use():
    cascade = vf.Cascade(PLAIN, costs=COSTS, at_most=0.02).fit(drawn(1500, 0))
    front = cascade.front(drawn(500, 1))
    frame = front.to_frame()
    assert frame["point"][0] == "all members"
    assert front.cost[front.chosen] in frame["cost"].tolist()
    assert f"Used: the point of cost {front.cost[front.chosen]:.4g}." in str(front)
    with pytest.raises(InputError, match="labels"):
        cascade.front(drawn(50, 1).select(["a", "b", "c"]).log_likelihoods())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"risk": "nll"}, "risk"),
        ({"by": "entropy"}, "by"),
        ({"at_most": 0.0}, "at_most"),
        ({"at_most": "1 %"}, "at_most"),
        ({"confidence": 1.0}, "confidence"),
        ({"keep": 1.01}, "keep"),
        ({"keep": -0.01}, "keep"),
        ({"order": ["a", "b"]}, "order"),
        ({"order": "abc"}, "order"),
        ({"costs": {"a": 1.0}}, "costs"),
        ({"rule": "mean"}, "rule"),
        ({"views": "median"}, "views"),
    ],
)
def test_what_makes_no_sense_is_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        vf.Cascade(**{"rule": PLAIN, **parameters}).fit(drawn(60, 0))
