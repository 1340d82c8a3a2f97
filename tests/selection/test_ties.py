"""Equal classes: the lowest wins, in a search as in the rule that is fitted afterwards, whatever the order of a sum."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_cases import all_subsets

import vidfuse as vf

POOLS = {"linear": vf.LinearPool, "log-linear": vf.LogLinearPool}
CASES = ("hard labels", "peaked logits", "whole logits", "equal members")


def stack_with_ties(case, seed, n=24, m=5, k=4):
    """Return a stack whose classes tie often, and the members' votes (N, M)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    votes = np.where(rng.random((n, m)) < 0.5, y[:, None], rng.integers(0, k, (n, m)))
    if case == "equal members":
        votes[:, 1::2] = votes[:, :-1:2]
    if case in ("hard labels", "equal members"):
        return vf.LogitStack.from_arrays(np.eye(k)[votes], labels=y, kind="probabilities"), votes
    if case == "peaked logits":  # under a floor of 0.01 as good as hard labels
        return vf.LogitStack.from_arrays(50 * np.eye(k)[votes] + rng.normal(size=(n, m, k)), labels=y), votes
    return vf.LogitStack.from_arrays(np.round(rng.normal(size=(n, m, k)) + 2 * np.eye(k)[votes]), labels=y), votes


def by_votes(votes, ballots, y, k):
    """The accuracy of a weighted vote in whole numbers: of equal classes the lowest wins."""
    count = np.zeros((len(votes), k), np.int64)
    for own, ballot in zip(votes.T, ballots, strict=True):
        count[np.arange(len(votes)), own] += ballot
    return (count.argmax(axis=1) == y).mean()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(POOLS)), st.booleans())
def test_hard_labels_are_a_vote_in_whole_numbers(seed, pool, weighted):
    stack, votes = stack_with_ties("hard labels", seed)
    y, hits = stack.labels, (votes == stack.labels[:, None]).sum(axis=0)
    ballots = hits if weighted else np.ones(5, np.int64)
    found = vf.search_subsets(stack, rule=POOLS[pool]("accuracy" if weighted else "uniform"))
    for subset in all_subsets(5):
        chosen = list(subset)
        if ballots[chosen].any():
            expected = by_votes(votes[:, chosen], ballots[chosen], y, 4)
            assert found.table.score_of([stack.members[i] for i in chosen]) == expected
    grown = vf.greedy_search(stack, rounds=9, pool=pool)
    names = [name for name, _ in grown.path]
    for rounds, (_, value) in enumerate(grown.path, 1):
        counts = np.array([names[:rounds].count(name) for name in stack.members])
        assert value == by_votes(votes, counts, y, 4)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_hard_labels_deep_in_the_tree_of_subsets(pool, weighted, seed):
    stack, votes = stack_with_ties("hard labels", seed, n=20, m=11, k=3)
    ballots = (votes == stack.labels[:, None]).sum(axis=0) if weighted else np.ones(11, np.int64)
    table = vf.search_subsets(stack, rule=POOLS[pool]("accuracy" if weighted else "uniform")).table
    for subset in all_subsets(11):
        chosen = list(subset)
        expected = by_votes(votes[:, chosen], ballots[chosen], stack.labels, 3)
        assert table.score_of([stack.members[i] for i in chosen]) == expected


@pytest.mark.filterwarnings("ignore:.*its scores are nearly equal")
@pytest.mark.parametrize("seed", range(3))
def test_members_that_hardly_have_an_opinion(seed):
    # Their log-likelihoods are rounded when they are normalised, by more than what some classes differ in.
    rng = np.random.default_rng(seed)
    z = (1e-5 * rng.normal(size=(3000, 2, 50))).astype(np.float32)
    stack = vf.LogitStack.from_arrays(z, labels=rng.permutation(3000) % 50)
    rule = vf.LogLinearPool("uniform")
    table = vf.search_subsets(stack, rule=rule).table
    for subset in all_subsets(2):
        part = stack.select([stack.members[i] for i in subset])
        assert table.score_of(part.members) == rule.fit(part).score(part)


@pytest.mark.filterwarnings("ignore::vidfuse.errors.VidfuseWarning")  # the member that masks the truth is noticed
def test_masks_of_the_truth_and_of_its_rival_that_cancel():
    # float32 has no room for an opinion beside a mask: 1e9 + 0.5 is 1e9.
    rng = np.random.default_rng(0)
    z = rng.normal(size=(80, 3, 3)).astype(np.float32)
    y = rng.integers(0, 2, 80)
    z[np.arange(80), 0, y] = z[np.arange(80), 1, 1 - y] = -1e9  # one member masks the truth, one its rival
    z[:, 2, 2] = -2e9  # and one the third class, more than that
    stack = vf.LogitStack.from_arrays(z, labels=y)
    rule = vf.LogLinearPool("uniform")
    table = vf.search_subsets(stack, rule=rule).table
    for subset in all_subsets(3):
        part = stack.select([stack.members[i] for i in subset])
        assert table.score_of(part.members) == rule.fit(part).score(part)
    grown = vf.greedy_search(stack, rounds=3, pool="log-linear", replacement=False)
    assert grown.path[-1][1] == pytest.approx(rule.fit(stack).score(stack), abs=1e-12)
    moved = vf.coordinate_search(stack, start=dict.fromkeys(stack.members, 1.0))
    assert moved.path[0] == pytest.approx(rule.fit(stack).score(stack), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(CASES),
    st.integers(0, 2**32 - 1),
    st.sampled_from(sorted(POOLS)),
    st.sampled_from(["uniform", "accuracy", "log-odds", "inverse-nll", [0.3, 0.1, 0.2, 0.1, 0.3]]),
    st.sampled_from(["auto", 0.01]),
)
def test_a_search_reports_what_the_fitted_rule_scores(case, seed, pool, weights, floor):
    stack, _ = stack_with_ties(case, seed)
    rule = POOLS[pool](weights, floor=floor)
    fitted = vf.SubsetPool(rule).fit(stack)
    assert fitted.score_ == fitted.score(stack)
    table = vf.search_subsets(stack, rule=rule).table
    for subset in all_subsets(5):
        part = stack.select([stack.members[i] for i in subset])
        own = rule
        if not isinstance(weights, str):
            own = POOLS[pool]([weights[i] for i in subset], floor=floor)
        assert table.score_of(part.members) == own.fit(part).score(part)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CASES), st.integers(0, 2**32 - 1), st.sampled_from(sorted(POOLS)), st.sampled_from([0, 3]))
def test_a_grown_ensemble_scores_what_the_search_says(case, seed, pool, bagging):
    stack, _ = stack_with_ties(case, seed)
    fitted = vf.GreedyPool(rounds=7, pool=pool, bagging=bagging).fit(stack)
    assert fitted.score_ == fitted.score(stack)
    found = vf.greedy_search(stack, rounds=7, pool=pool, bagging=bagging)
    assert found.score == POOLS[pool](dict.fromkeys(stack.members, 0.0) | found.weights).fit(stack).score(stack)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(CASES), st.integers(0, 2**32 - 1), st.sampled_from(sorted(POOLS)))
def test_a_coordinate_search_scores_what_it_says_and_never_less_than_where_it_starts(case, seed, pool):
    stack, _ = stack_with_ties(case, seed)
    found = vf.coordinate_search(stack, pool=pool, random_starts=1)
    assert found.score == pytest.approx(POOLS[pool](found.weights).fit(stack).score(stack), abs=1e-12)
    for start in [stack.members, *([name] for name in stack.members)]:
        part = stack.select(start)
        assert found.score >= POOLS[pool]("uniform").fit(part).score(part) - 1e-12


def test_a_tie_that_the_true_class_wins_is_not_lost_on_the_way():
    # Member 1 alone gives both classes the same score in both videos, and the lower one is the true one.
    stack = vf.LogitStack.from_arrays(np.array([[[0.0, 2], [1, 1]], [[0, 1], [2, 2]]]), labels=[0, 0])
    assert vf.coordinate_search(stack).score == vf.search_subsets(stack).score == 1.0
    assert vf.coordinate_search(stack, start={"member0": 0.0, "member1": 1.0}).score == 1.0


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(CASES), st.integers(0, 2**32 - 1), st.sampled_from(sorted(POOLS)), st.permutations(range(5)))
def test_the_order_of_the_members_is_no_matter(case, seed, pool, order):
    stack, _ = stack_with_ties(case, seed)
    shuffled = stack.select([stack.members[i] for i in order])
    rule = POOLS[pool]("accuracy", floor=0.01)
    one, other = vf.search_subsets(stack, rule=rule), vf.search_subsets(shuffled, rule=rule)
    assert set(one.members) == set(other.members)
    for row in one.table.best(31):
        assert other.table.score_of(row.members) == row.score
    assert vf.greedy_search(stack, rounds=5, pool=pool).path == vf.greedy_search(shuffled, rounds=5, pool=pool).path
    first, second = (vf.coordinate_search(part, pool=pool, random_starts=0) for part in (stack, shuffled))
    assert first.path == second.path
    assert {name: first.weights[name] for name in stack.members} == first.weights


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("m", "weights"), [(6, "uniform"), (7, [1, 1, 1, 1, 1, 1, 2]), (4, [1, 2, 3, 6])])
def test_the_lowest_of_classes_with_equal_sums_wins_in_whatever_order_they_are_summed(pool, m, weights):
    numbers = np.ones(m) if isinstance(weights, str) else np.array(weights)
    halves = [votes for votes in itertools.product([0, 1], repeat=m) if 2 * (numbers @ votes) == numbers.sum()]
    stack = vf.LogitStack.from_arrays(np.eye(3)[np.array(halves)], kind="probabilities")
    assert POOLS[pool](weights).fit(stack).predict(stack).tolist() == [0] * len(halves)
    raised = vf.LogitStack.from_arrays(np.roll(np.eye(3)[np.array(halves)], 1, axis=-1), kind="probabilities")
    assert POOLS[pool](weights).fit(raised).predict(raised).tolist() == [1] * len(halves)


@pytest.mark.parametrize("pool", POOLS)
def test_a_difference_that_is_no_rounding_is_no_tie(pool):
    p = np.array([[[0.5, 0.5 + 1e-6], [0.5, 0.5]]])
    stack = vf.LogitStack.from_arrays(p / p.sum(axis=-1, keepdims=True), kind="probabilities")
    assert POOLS[pool]("uniform").fit(stack).predict(stack).tolist() == [1]
