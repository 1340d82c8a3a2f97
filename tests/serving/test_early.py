"""Exact stopping: the rule's label on every video, whatever the members that did not run would have said."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vidfuse as vf
from vidfuse.errors import AlignmentError, InputError
from vidfuse.recipe import Recipe
from vidfuse.serving.early import early_exit
from vidfuse.stack.stack import LogitStack

RULES = {
    "log-linear": lambda w, f: vf.LogLinearPool(weights=w, floor=f),
    "linear": lambda w, f: vf.LinearPool(weights=w, floor=f),
    "vote": lambda w, f: vf.MajorityVote(weights=w, floor=f),
    "borda": lambda w, f: vf.BordaCount(weights=w, floor=f),
    "subset": lambda w, f: vf.SubsetPool(vf.MajorityVote(weights=w, floor=f)),
}


@st.composite
def cases(draw, views=False):
    """A rule, and scores rounded so far that classes, members and whole videos tie."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, m, v, k = 12, draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(2, 6))
    skill = draw(st.sampled_from([0.0, 2.0, 8.0]))
    y = rng.integers(0, k, size=n)
    shape = (n, m, v, k) if views else (n, m, k)
    z = rng.normal(size=shape) + skill * np.eye(k)[y].reshape(n, *[1] * (len(shape) - 2), k)
    z = np.round(z, draw(st.sampled_from([0, 1, 6])))
    weights = [draw(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0])) for _ in range(m)]
    weights[-1] = weights[-1] or 1.0
    costs = [draw(st.sampled_from([0.0, 1.0, 5.0, 88.0])) for _ in range(m)]
    return z, y, weights, costs, draw(st.sampled_from([0.001, 0.05, 0.5])), rng


def disturbed(found, exit_, z, members, rng):
    """Return scores in which all that had not run when a video was decided says something else, as loud as it can."""
    other = z.copy()
    for video, steps in enumerate(found.steps):
        for step in exit_.order[steps:]:
            rows = [members.index(name) for name in step.members]
            at = (video, rows) if step.view is None else (video, rows, step.view)
            shouted = np.full(other[at].shape, -40.0)
            shouted[..., rng.integers(z.shape[-1])] = 40.0
            other[at] = shouted
    return other


@pytest.mark.parametrize("name", RULES)
@given(cases())
@settings(max_examples=30, suppress_health_check=[HealthCheck.differing_executors])
def test_labels_are_the_rules_and_nothing_that_did_not_run_could_change_them(name, case):
    z, y, weights, costs, floor, rng = case
    stack = LogitStack.from_arrays(z, labels=y)
    rule = RULES[name](weights, floor).fit(stack)
    exit_ = early_exit(rule, stack, costs)
    found = exit_.run(stack)
    np.testing.assert_array_equal(found.labels, rule.predict(stack))
    for _ in range(3):
        other = LogitStack.from_arrays(disturbed(found, exit_, z, list(stack.members), rng))
        np.testing.assert_array_equal(found.labels, rule.predict(other))
    assert {name for step in exit_.order for name in step.members} == set(rule.needed_members())
    assert (found.steps >= 1).all()
    assert (found.cost <= found.all_cost).all()
    assert (exit_.ceiling(stack) <= found.steps).all()  # no proof is earlier than hindsight


@pytest.mark.parametrize("name", RULES)
def test_no_proof_could_come_a_step_earlier(name):
    """One step before a label was certain, there are scores of the waiting members that bring two different labels.

    The weights make no tie of votes; how a tie is broken may be certain earlier.
    """
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, size=150)
    z = rng.normal(size=(150, 4, 4)) + 2.5 * np.eye(4)[y][:, None]
    stack = LogitStack.from_arrays(z, labels=y)
    rule = RULES[name]([3.0, 2.1, 1.9, 1.3], 0.05).fit(stack)
    exit_ = early_exit(rule, stack)
    found = exit_.run(stack)
    pairs = list(permutations(range(4), 2))
    said = np.zeros((len(pairs), 4))  # a class is named first, another one last
    for row, (first, last) in enumerate(pairs):
        said[row, [first, last]] = (2.0, -2.0) if name == "borda" else (40.0, -40.0)  # the floor joins low ranks
    late = np.flatnonzero(found.steps > 1)
    assert len(late) > 20
    for video in late:
        other = np.repeat(z[video][None], len(pairs), axis=0)
        for step in exit_.order[found.steps[video] - 1 :]:
            other[:, [stack.members.index(member) for member in step.members]] = said[:, None]
        assert len(set(rule.predict(LogitStack.from_arrays(other)).tolist())) > 1


@given(cases(views=True), st.sampled_from(["vote", "linear"]))
@settings(max_examples=40)
def test_single_views_are_steps_where_they_tell_something(case, name):
    z, y, weights, costs, floor, rng = case
    views = "mean-probability" if name == "linear" else None
    stack = LogitStack.from_arrays(z, labels=y)
    rule = RULES[name](weights, floor)
    recipe = Recipe.from_fitted(rule.fit(vf.reduce_views(stack, views) if views else stack), stack, views=views)
    exit_ = early_exit(recipe, stack, costs)
    found = exit_.run(stack)
    np.testing.assert_array_equal(found.labels, recipe.predict(stack))
    other = LogitStack.from_arrays(disturbed(found, exit_, z, list(stack.members), rng))
    np.testing.assert_array_equal(found.labels, recipe.predict(other))
    assert found.all_passes == z.shape[2] * len(rule.needed_members())
    assert all(step.view is not None for step in exit_.order)


def test_learned_weights_per_class_with_biases_and_scales_are_decided_too():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, size=600)
    z = rng.normal(size=(600, 3, 5)) * [[[1.0], [2.0], [9.0]]] + 6.0 * np.eye(5)[y][:, None] * [[[1.0], [2.0], [9.0]]]
    z[:, 1] += [3.0, 0, 0, 0, 0]
    stack = LogitStack.from_arrays(z, labels=y)
    pool = vf.LogLinearPool().fit(stack)
    form = pool.weighted_sum()
    assert form.bias.any()
    assert (form.scales != 1).any()
    assert form.weights.shape == (3, 5)
    exit_ = vf.early_exit(pool, stack)
    found = exit_.run(stack)
    np.testing.assert_array_equal(found.labels, pool.predict(stack))
    assert found.saved > 0.1


@pytest.mark.parametrize("rule", [vf.MajorityVote([1.0, 2.0, 1.5, 0.5]), vf.LinearPool([4.0, 2.0, 1.0, 1.0])])
def test_the_order_is_the_cheapest_of_all(rule):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, size=300)
    z = rng.normal(size=(300, 4, 4)) + np.array([1.0, 2.0, 3.0, 4.0])[:, None] * np.eye(4)[y][:, None]
    stack = LogitStack.from_arrays(z, labels=y)
    exit_ = early_exit(rule.fit(stack), stack, costs=[1.0, 3.0, 2.0, 5.0])
    own = exit_.run(stack).cost.mean()
    every = [type(exit_)(exit_.rule, order, exit_.form).run(stack).cost.mean() for order in permutations(exit_.order)]
    assert own == pytest.approx(min(every))
    assert own < max(every)


def test_equal_votes_are_decided_by_what_all_members_say():
    """Two against two: the pool of all breaks the tie, so the last member has to run; three alike end it before."""
    p = np.full((2, 4, 3), 0.05)
    p[0, [0, 1], 0] = p[0, [2, 3], 1] = 0.9
    p[1, :, 2] = 0.9
    stack = LogitStack.from_arrays(np.log(p))
    found = early_exit(vf.MajorityVote().fit(stack), stack).run(stack)
    assert found.steps.tolist() == [4, 3]
    assert found.labels.tolist() == [0, 2]


def test_many_members_run_by_their_reach_for_their_cost():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, size=50)
    stack = LogitStack.from_arrays(rng.normal(size=(50, 12, 3)) + 5.0 * np.eye(3)[y][:, None], labels=y)
    vote = vf.MajorityVote().fit(stack)
    exit_ = early_exit(vote, stack, costs=list(range(12, 0, -1)))
    assert [step.cost for step in exit_.order] == sorted(step.cost for step in exit_.order)
    np.testing.assert_array_equal(exit_.run(stack).labels, vote.predict(stack))


def test_what_cannot_be_decided_early_is_refused():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, size=60)
    stack = LogitStack.from_arrays(rng.normal(size=(60, 2, 3)), labels=y)
    with pytest.raises(InputError, match=r"floor=0\.001"):
        early_exit(vf.LogLinearPool("uniform").fit(stack), stack)
    with pytest.raises(InputError, match="Cascade"):
        early_exit(vf.StackedPool().fit(stack), stack)
    with pytest.raises(InputError, match="costs"):
        early_exit(vf.MajorityVote().fit(stack), stack, costs={"a": 1.0})
    exit_ = early_exit(vf.MajorityVote().fit(stack), stack)
    with pytest.raises((AlignmentError, InputError), match=r"missing|unknown|no member"):
        exit_.run(stack.select([stack.members[0]]))
