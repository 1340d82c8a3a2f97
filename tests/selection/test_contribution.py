from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from selection_cases import ensemble, stack_of

import vidfuse as vf
from vidfuse.errors import InputError

RULE = vf.LogLinearPool(weights="uniform")


def value_of(stack, names, objective):
    if not names:
        return math.log(stack.n_classes) if objective == "nll" else 1 / stack.n_classes
    part = stack.select(names)
    metric = vf.metrics.resolve_objective(objective)
    return metric(stack.labels, RULE.fit(part).predict_log_proba(part))


@pytest.mark.parametrize("objective", ["accuracy", "mean-class-accuracy", "nll"])
def test_shapley_is_the_mean_gain_over_all_orders(objective):
    z, y = ensemble(1, n=80, m=4)
    stack = stack_of(z, y)
    sign = -1 if objective == "nll" else 1
    gains = dict.fromkeys(stack.members, 0.0)
    orders = list(itertools.permutations(stack.members))
    for order in orders:
        for i, name in enumerate(order):
            gain = value_of(stack, order[: i + 1], objective) - value_of(stack, order[:i], objective)
            gains[name] += sign * gain / len(orders)
    found = vf.shapley_values(stack, objective, RULE)
    for name in stack.members:
        assert found[name] == pytest.approx(gains[name], abs=1e-6)
    assert sum(found.values.values()) == pytest.approx(sign * (found.full - found.empty), abs=1e-9)


def test_equal_members_share_equally_and_order_is_irrelevant():
    z, y = ensemble(2, n=80, m=3)
    stack = stack_of(np.concatenate([z, z[:, :1]], axis=1), y, names=["b", "c", "d", "a"])
    found = vf.shapley_values(stack, rule=RULE)
    assert found["a"] == pytest.approx(found["b"], abs=1e-12)
    again = vf.shapley_values(stack.select(["d", "a", "c", "b"]), rule=RULE)
    assert again.values == pytest.approx(found.values, abs=1e-12)


def test_a_callable_starts_from_uniform_predictions():
    z, y = ensemble(3, m=2)

    def half_brier(labels, log_proba):
        return -0.5 * vf.metrics.brier(labels, log_proba)

    found = vf.shapley_values(stack_of(z, y), half_brier, RULE)
    assert found.empty == pytest.approx(-0.5 * (1 - 1 / 5))
    assert found.objective == "half_brier"


def test_leave_one_out_is_the_difference_of_two_pools():
    z, y = ensemble(4, m=3)
    stack = stack_of(z, y)
    for objective, sign in (("accuracy", 1), ("nll", -1)):
        found = vf.leave_one_out(stack, objective, RULE)
        for name in stack.members:
            others = [m for m in stack.members if m != name]
            expected = sign * (value_of(stack, stack.members, objective) - value_of(stack, others, objective))
            assert found[name] == pytest.approx(expected, abs=1e-9)
    alone = vf.leave_one_out(stack.select(["m0"]), rule=RULE)
    assert alone["m0"] == pytest.approx(alone.full - 1 / 5)


def test_leave_one_out_keeps_given_weights():
    z, y = ensemble(5, m=3)
    stack = stack_of(z, y)
    found = vf.leave_one_out(stack, rule=vf.LinearPool(weights=[3, 1, 2]))
    rest = vf.LinearPool(weights={"m0": 3.0, "m2": 2.0}).fit(stack.select(["m0", "m2"]))
    assert found["m1"] == pytest.approx(found.full - rest.score(stack.select(["m0", "m2"])))


def test_leave_one_out_is_of_the_videos_that_all_members_have():
    z, y = ensemble(7, n=60, m=2)
    ids = [f"v{i:02d}" for i in range(60)]
    stack = vf.LogitStack.from_arrays(
        {"a": z[:, 0], "b": z[:40, 1]}, labels=y, ids={"a": ids, "b": ids[:40]}, join="outer"
    )
    pool = vf.LogLinearPool(weights="uniform", missing="renormalise")
    assert vf.leave_one_out(stack, rule=pool) == vf.leave_one_out(stack[stack.present.all(axis=1)], rule=pool)


def test_diversity_is_the_metrics_on_hits():
    z, y = ensemble(6, n=100, m=3)
    stack = stack_of(z, y)
    found = vf.diversity(stack)
    hits = z.argmax(-1) == y[:, None]
    np.testing.assert_array_equal(found.accuracy, hits.mean(0))
    np.testing.assert_array_equal(found.double_fault, vf.metrics.double_fault(hits))
    np.testing.assert_array_equal(found.q_statistic, vf.metrics.q_statistic(hits))
    assert found.oracle == hits.any(1).mean()
    assert found.disagreement[0, 2] == np.mean(hits[:, 0] != hits[:, 2])
    assert found.prediction_disagreement[0, 2] == np.mean(z[:, 0].argmax(1) != z[:, 2].argmax(1))


def test_bad_input():
    rng = np.random.default_rng(0)
    many = stack_of(rng.normal(size=(20, 17, 3)).astype(np.float32), rng.integers(0, 3, 20))
    with pytest.raises(InputError, match=r"2\^17 subsets.*at most 16"):
        vf.shapley_values(many)
    with pytest.raises(InputError, match="has none"):
        vf.diversity(np.zeros((4, 2, 3)))
    with pytest.raises(InputError, match="reduce_views"):
        vf.diversity(vf.LogitStack.from_arrays(np.zeros((4, 2, 3, 3)), labels=[0, 1, 2, 0]))


def test_an_infinite_loss_has_no_shares():
    z, y = ensemble(9, n=10, m=2)
    z[0, 0, y[0]] = -np.inf
    with pytest.raises(InputError, match="floor above 0"):
        vf.shapley_values(stack_of(z, y), "nll", RULE)
