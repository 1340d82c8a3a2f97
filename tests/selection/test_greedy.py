from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_cases import ensemble, fused, score, stack_of

import vidfuse as vf
from vidfuse.errors import InputError
from vidfuse.selection.greedy import GreedyPool, greedy_search


def by_hand(stack, y, objective, linear, rounds, replacement=True, costs=None):
    """Caruana's loop in float64: the member order, and the score after each round; ties by cost, then by name."""
    log_p = stack.log_likelihoods()
    m = log_p.shape[1]
    counts, order, scores = np.zeros(m), [], []
    sign = -1 if objective == "nll" else 1
    for _ in range(rounds):
        trial = [
            -np.inf
            if counts[j] and not replacement
            else sign * score(fused(log_p, counts + np.eye(m)[j], linear), y, objective)
            for j in range(m)
        ]
        tied = np.flatnonzero(np.array(trial) >= max(trial) - 1e-12)
        best = min(tied, key=lambda j: ((costs or {}).get(stack.members[j], 1.0), stack.members[j]))
        if trial[best] == -np.inf:
            break
        counts[best] += 1
        order.append(stack.members[best])
        scores.append(sign * trial[best])
    return order, scores


@pytest.mark.parametrize("pool", ["linear", "log-linear"])
@pytest.mark.parametrize("objective", ["accuracy", "mean-class-accuracy", "nll"])
@pytest.mark.parametrize("replacement", [True, False])
def test_the_path_is_caruanas(pool, objective, replacement):
    z, y = ensemble(1, n=150, m=5, k=6)
    stack = stack_of(z, y)
    found = greedy_search(stack, objective, 12, pool=pool, replacement=replacement)
    order, scores = by_hand(stack, y, objective, pool == "linear", 12, replacement)
    assert [name for name, _ in found.path] == order
    np.testing.assert_allclose([value for _, value in found.path], scores, atol=2e-7 if objective == "nll" else 1e-12)
    assert found.score == pytest.approx((min if objective == "nll" else max)(scores), abs=2e-7)


@pytest.mark.parametrize("pool", ["linear", "log-linear"])
def test_the_path_is_caruanas_for_overconfident_members_too(pool):
    z, y = ensemble(1, n=150, m=5, k=6)
    stack = stack_of(3000.0 * z, y)
    best = min(stack.members, key=lambda name: vf.metrics.nll(y, stack.select([name]).log_likelihoods()[:, 0]))
    found = greedy_search(stack, "nll", 12, pool=pool)
    assert best != stack.members[0] and found.path[0][0] == best
    assert all(np.isfinite(value) for _, value in found.path)


@pytest.mark.parametrize("pool", ["linear", "log-linear"])
@pytest.mark.parametrize("objective", ["accuracy", "mean-class-accuracy", "nll"])
@pytest.mark.parametrize("costs", [None, [1.0, 2.0, 3.0, 2.0, 1.0, 3.0]])
def test_ties_go_to_the_cheaper_member_then_to_the_first_name(pool, objective, costs):
    z, y = ensemble(1, n=150, m=3, k=20)
    stack = stack_of(np.concatenate([z, z], axis=1), y, names=["c", "d", "e", "C", "D", "E"])
    by_name = None if costs is None else dict(zip(stack.members, costs, strict=True))
    order, _ = by_hand(stack, y, objective, pool == "linear", 12, costs=by_name)
    assert set(order) <= (set("CDE") if costs is None else set("cDE"))  # one of each pair of equal members
    for one_each in (costs, by_name):
        found = greedy_search(stack, objective, 12, pool=pool, costs=one_each)
        assert [name for name, _ in found.path] == order
    reverse = stack.select(stack.members[::-1])
    assert greedy_search(reverse, objective, 12, pool=pool, costs=by_name).path == found.path


def test_a_pool_takes_costs_and_a_recipe_keeps_them(tmp_path):
    z, y = ensemble(3, m=1)
    stack = stack_of(np.repeat(z, 3, axis=1), y, names=["a", "b", "c"])
    costs = {"a": 2.0, "b": 1.0, "c": 1.5}
    fitted = vf.GreedyPool("nll", rounds=3, costs=costs).fit(stack)
    assert fitted.weights_.tolist() == [0.0, 1.0, 0.0]
    path = vf.Recipe.from_fitted(fitted, stack).save(tmp_path / "recipe.json")
    assert vf.load_recipe(path).rule.costs == costs


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.booleans(), st.booleans())
def test_the_score_is_the_pools_own(seed, m, linear, ties):
    z, y = ensemble(seed, n=30, m=m, k=4, ties=ties)
    stack = stack_of(z, y)
    pool = vf.GreedyPool("accuracy", 7, pool="linear" if linear else "log-linear").fit(stack)
    assert pool.weights_.sum() == pytest.approx(1)
    if not ties:
        assert pool.score_ == pytest.approx(pool.score(stack), abs=1e-12)
    assert pool.score_ >= max((z[:, j].argmax(1) == y).mean() for j in range(m)) - 1e-12


def test_the_ensemble_is_the_best_prefix_and_its_weights_are_shares():
    z, y = ensemble(2, n=100, m=4)
    found = greedy_search(stack_of(z, y), "accuracy", 20)
    scores = [value for _, value in found.path]
    kept = scores.index(max(scores)) + 1
    names = [name for name, _ in found.path[:kept]]
    assert found.weights == {name: names.count(name) / kept for name in found.weights}
    assert found.members == tuple(sorted(set(names)))
    assert "after 20 rounds" in repr(found)


def test_of_equal_prefixes_the_shorter_is_kept():
    z, y = ensemble(2, n=90, m=1, k=4)
    stack = stack_of(np.repeat(z, 3, axis=1), y, names=["a", "b", "c"])
    for objective in ("accuracy", "nll"):
        assert greedy_search(stack, objective, 3, replacement=False).weights == {"a": 1.0}


def test_bagging_averages_bags_and_is_reproducible():
    z, y = ensemble(4, n=120, m=6)
    stack = stack_of(z, y)
    one = greedy_search(stack, "nll", 10, bagging=8, random_state=1)
    assert one == greedy_search(stack, "nll", 10, bagging=8, random_state=1)
    assert one.weights != greedy_search(stack, "nll", 10, bagging=8, random_state=2).weights
    assert sum(one.weights.values()) == pytest.approx(1) and len(one.path) == 80
    expected = fused(stack.log_likelihoods(), [one.weights.get(name, 0.0) for name in stack.members], True)
    assert one.score == pytest.approx(score(expected, y, "nll"), abs=1e-6)


def test_a_callable_objective_takes_the_pools_predictions():
    z, y = ensemble(5, n=60, m=3)
    stack = stack_of(z, y)
    found = greedy_search(stack, lambda labels, log_proba: -vf.metrics.nll(labels, log_proba), 6)
    named = greedy_search(stack, "nll", 6)
    assert [name for name, _ in found.path] == [name for name, _ in named.path]
    assert found.score == pytest.approx(-named.score, abs=1e-6)


def test_weights_count_like_copies():
    z, y = ensemble(6, n=50, m=4)
    copies = np.random.default_rng(0).integers(1, 4, 50)
    rows = np.repeat(np.arange(50), copies)
    for objective in ("accuracy", "nll"):
        weighted = vf.GreedyPool(objective, 8).fit(stack_of(z, y), sample_weight=copies.astype(float))
        repeated = vf.GreedyPool(objective, 8).fit(stack_of(z[rows], y[rows]))
        assert weighted.path_ == repeated.path_
        assert weighted.score_ == pytest.approx(repeated.score_, abs=1e-7)


def test_probabilities_with_a_zero_at_the_true_class_are_floored():
    p = np.array([[[1.0, 0.0], [0.6, 0.4]], [[1.0, 0.0], [0.3, 0.7]]], np.float32)
    stack = stack_of(p, np.array([0, 1]), kind="probabilities")
    assert np.isfinite(greedy_search(stack, "nll", 5).score)
    assert greedy_search(stack, "nll", 1, floor=0.0).weights == {"m1": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"pool": "cubic"}, "'linear', 'log-linear'"),
        ({"bagging": -1}, "bagging=-1"),
        ({"objective": "f1"}, "accuracy"),
        ({"costs": {"m0": 1.0}}, "missing: 'm1'"),
        ({"costs": [1.0, -1.0, 1.0, 1.0]}, "-1.0 for 'm1'"),
    ],
)
def test_bad_arguments(options, message):
    z, y = ensemble(7)
    with pytest.raises(InputError, match=message):
        greedy_search(stack_of(z, y), **options)


@pytest.mark.parametrize("pool", ["linear", "log-linear"])
def test_every_round_of_a_long_search_scores_as_the_pool(pool):
    z, y = ensemble(7, n=80, m=11, k=6, ties=True, signal=3.0)
    stack = stack_of(z * 0.7, y)
    found = greedy_search(stack, "accuracy", 40, pool=pool)
    assert found.path[0][1] == pytest.approx(max((z[:, j].argmax(1) == y).mean() for j in range(11)), abs=1e-12)
    rule = vf.LinearPool if pool == "linear" else vf.LogLinearPool
    names = [name for name, _ in found.path]
    for rounds in (2, 9, 25, 40):
        counts = {name: float(names[:rounds].count(name)) for name in stack.members}
        own = rule(weights=counts).fit(stack).score(stack)
        assert found.path[rounds - 1][1] == pytest.approx(own, abs=1e-12)


def test_bags_start_over():
    stack = stack_of(*ensemble(8, n=90, m=9, k=5))
    found = greedy_search(stack, "accuracy", 12, bagging=3)
    assert len(found.path) == 36 and sum(found.weights.values()) == pytest.approx(1)
    for first in (0, 12, 24):
        names = [name for name, _ in found.path[first : first + 12]]
        assert len(set(names)) <= 4  # half of nine
        for rounds in range(1, 13):
            counts = {name: float(names[:rounds].count(name)) for name in stack.members}
            own = vf.LinearPool(weights=counts).fit(stack).score(stack)
            assert found.path[first + rounds - 1][1] == pytest.approx(own, abs=1e-12)


def test_a_thousand_members():
    z, y = ensemble(9, n=20, m=1000, k=4)
    stack = stack_of(z, y)
    found = greedy_search(stack, "accuracy", 3, pool="log-linear")
    pool = vf.LogLinearPool(weights={name: found.weights.get(name, 0.0) for name in stack.members})
    assert found.score == pytest.approx(pool.fit(stack).score(stack), abs=1e-12)


def test_the_summary_repeats_the_search_on_resampled_videos():
    stack = stack_of(*ensemble(3, n=60))
    pool = GreedyPool("nll", rounds=20).fit(stack)
    summary = pool.summary(bootstrap=50, random_state=1)
    np.testing.assert_array_equal(summary.weights, pool.weights_)
    assert (summary.upper - summary.lower).max() > 0.01
    rng = np.random.default_rng(1)
    counts = [rng.multinomial(60, np.full(60, 1 / 60)) for _ in range(50)]
    draws = [GreedyPool("nll", rounds=20).fit(stack[np.repeat(np.arange(60), own)]).weights_ for own in counts]
    np.testing.assert_allclose([summary.lower, summary.upper], np.percentile(draws, [2.5, 97.5], axis=0), atol=1e-9)
    with pytest.raises(InputError, match="fit the pool again"):
        pickle.loads(pickle.dumps(pool)).summary(bootstrap=5)
