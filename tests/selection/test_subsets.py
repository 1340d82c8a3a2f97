from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_cases import all_subsets, ensemble, fused, score, stack_of

import vidfuse as vf
from vidfuse.errors import AlignmentError, InputError
from vidfuse.selection import masks, subsets
from vidfuse.selection.masks import SubsetTable, count_subsets, enumerate_masks

POOLS = {"log-linear": vf.LogLinearPool, "linear": vf.LinearPool}
OBJECTIVES = ("accuracy", "mean-class-accuracy", "nll")


def brute_force(stack, y, weights, linear, objective, subsets):
    log_p = stack.log_likelihoods()
    return {
        s: score(fused(log_p[:, s], [weights[m] for m in s], linear), y, objective)
        for s in subsets
        if sum(weights[m] for m in s)
    }


def check(found, stack, expected, tolerance):
    for subset, value in expected.items():
        members = [stack.members[m] for m in subset]
        assert found.table.score_of(members) == pytest.approx(value, abs=tolerance), members


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("pool", POOLS)
def test_every_subset_equals_brute_force(pool, objective, ties):
    z, y = ensemble(1, n=120, m=5, k=6, ties=ties)
    stack = stack_of(z, y)
    weights = np.array([0.5, 0.25, 1.0, 0.125, 2.0])
    found = vf.search_subsets(stack, objective, POOLS[pool](weights=dict(zip(stack.members, weights, strict=True))))
    expected = brute_force(stack, y, weights, pool == "linear", objective, all_subsets(5))
    check(found, stack, expected, 2e-7 if objective == "nll" else 1e-12)
    best = min(expected.values()) if objective == "nll" else max(expected.values())
    assert found.score == pytest.approx(best, abs=2e-7 if objective == "nll" else 1e-12)
    assert len(found.table) == 31


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(2, 7),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["uniform", "accuracy"]),
)
def test_accuracy_is_the_pools_own_in_every_subset(seed, m, k, ties, linear, rule):
    # Weights by accuracy differ in their last bit with the order of a sum: exact ties need weights that do not.
    z, y = ensemble(seed, n=25, m=m, k=k, ties=ties and rule == "uniform", signal=3.0)
    y[:m] = z[range(m), range(m)].argmax(1)  # every member is right somewhere
    stack = stack_of(z, y)
    pool = (vf.LinearPool if linear else vf.LogLinearPool)(weights=rule)
    found = vf.search_subsets(stack, "accuracy", pool)
    for subset in all_subsets(m):
        part = stack.select([stack.members[i] for i in subset])
        assert found.table.score_of(part.members) == pool.fit(part).score(part)


@pytest.mark.parametrize(
    "rule", ["uniform", "accuracy", "log-odds", "inverse-nll", {"m0": 1.0, "m1": 2.0, "m2": 0.0, "m3": 0.5}]
)
@pytest.mark.parametrize("pool", POOLS)
def test_the_rule_of_the_whole_stack_restricted_to_a_subset_is_the_rule_of_the_subset(pool, rule):
    z, y = ensemble(2, n=200, m=4, k=5, signal=3.0)
    stack = stack_of(z, y)
    found = vf.search_subsets(stack, "nll", POOLS[pool](weights=rule))
    for subset in all_subsets(4):
        part = stack.select([stack.members[i] for i in subset])
        own = rule if isinstance(rule, str) else {name: rule[name] for name in part.members}
        if not isinstance(own, str) and not any(own.values()):
            own = "uniform"
        fitted = POOLS[pool](weights=own).fit(part)
        assert found.table.score_of(part.members) == pytest.approx(
            vf.metrics.nll(y, fitted.predict_log_proba(part)), abs=2e-7
        )


def test_many_classes_and_the_deep_tree_equal_brute_force_in_200_random_subsets():
    z, y = ensemble(3, n=400, m=13, k=40, signal=4.0)
    stack = stack_of(z, y)
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.2, 1.0, 13)
    pool = vf.LogLinearPool(weights=dict(zip(stack.members, weights, strict=True)))
    found = vf.search_subsets(stack, "accuracy", pool)
    assert len(found.table) == 8191
    subsets = [tuple(np.flatnonzero(rng.random(13) < rng.uniform(0.1, 0.9))) for _ in range(200)]
    check(found, stack, brute_force(stack, y, weights, False, "accuracy", [s for s in subsets if s]), 1e-15)


def test_exact_ties_in_the_deep_tree():
    z, y = ensemble(4, n=300, m=10, k=8, ties=True, signal=2.0)
    stack = stack_of(z, y)
    for pool in (vf.LogLinearPool(weights="uniform"), vf.LinearPool(weights="uniform")):
        found = vf.search_subsets(stack, "mean-class-accuracy", pool)
        rng = np.random.default_rng(1)
        for _ in range(100):
            names = [name for name in stack.members if rng.random() < 0.5] or ["m3"]
            part = stack.select(names)
            expected = vf.metrics.mean_class_accuracy(y, pool.fit(part).predict_log_proba(part))
            assert found.table.score_of(names) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["probabilities", "sum"])
@pytest.mark.parametrize("pool", POOLS)
def test_probabilities_with_zeros_take_the_pools_floor(kind, pool):
    rng = np.random.default_rng(5)
    p = rng.dirichlet(np.full(4, 0.3), size=(80, 3)).astype(np.float32)
    p[p < 0.05] = 0
    p /= p.sum(-1, keepdims=True)
    y = rng.integers(0, 4, 80)
    stack = stack_of(p * (3 if kind == "sum" else 1), y, kind=kind)
    rule = POOLS[pool](weights="uniform")
    for objective in OBJECTIVES:
        found = vf.search_subsets(stack, objective, rule)
        for subset in all_subsets(3):
            part = stack.select([stack.members[i] for i in subset])
            log_proba = rule.fit(part).predict_log_proba(part)
            assert found.table.score_of(part.members) == pytest.approx(score(log_proba, y, objective), abs=1e-6)


def test_vetoes_and_masked_classes():
    z, y = ensemble(6, n=100, m=3, k=6, signal=3.0)
    rng = np.random.default_rng(0)
    for value in (-np.inf, np.float32(-1e9), np.float32(-3e4)):
        masked = z.copy()
        masked[rng.random(z.shape) < 0.15] = value
        masked[:, :, 0] = np.where(np.isinf(masked[:, :, 0]), 0, masked[:, :, 0])  # one class nobody vetoes
        stack = stack_of(masked, y)
        pool = vf.LogLinearPool(weights="uniform")
        found = vf.search_subsets(stack, "accuracy", pool)
        for subset in all_subsets(3):
            part = stack.select([stack.members[i] for i in subset])
            assert found.table.score_of(part.members) == pytest.approx(pool.fit(part).score(part), abs=1e-12)


def test_row_06_every_class_vetoed():
    z = np.zeros((3, 2, 2), np.float32)
    z[1, 0, 0] = z[1, 1, 1] = -np.inf
    stack = stack_of(z, [0, 0, 1], ids=["a", "b", "c"])
    with pytest.raises(InputError, match=r"'b'.*linear"):
        vf.search_subsets(stack, "accuracy", vf.LogLinearPool(weights="uniform"))


def test_order_of_members_rows_and_classes_changes_nothing():
    z, y = ensemble(7, n=150, m=5, k=6)
    stack = stack_of(z, y)
    found = vf.search_subsets(stack)
    rng = np.random.default_rng(0)
    rows, members, classes = rng.permutation(150), rng.permutation(5), rng.permutation(6)
    shuffled = stack_of(
        z[rows][:, members][:, :, classes], np.argsort(classes)[y[rows]], names=[f"m{i}" for i in members]
    )
    again = vf.search_subsets(shuffled)
    assert set(again.members) == set(found.members)
    for row in found.table.best(31):
        assert again.table.score_of(row.members) == pytest.approx(row.score, abs=1e-12)


def test_adding_constants_to_logits_changes_nothing():
    z, y = ensemble(8)
    shifted = z + np.random.default_rng(0).integers(-8, 8, size=(*z.shape[:2], 1)).astype(np.float32)
    a, b = vf.search_subsets(stack_of(z, y)), vf.search_subsets(stack_of(shifted, y))
    np.testing.assert_allclose(a.table.scores, b.table.scores, atol=1e-12)


def test_ties_go_to_fewer_members_then_cost_then_name():
    z, y = ensemble(9, m=1)
    same = np.repeat(z, 3, axis=1)
    stack = stack_of(same, y, names=["c", "a", "b"])
    assert vf.search_subsets(stack).members == ("a",)
    assert vf.search_subsets(stack, costs={"a": 3.0, "b": 2.0, "c": 2.0}).members == ("b",)
    assert vf.search_subsets(stack, "nll", costs=[1.0, 2.0, 2.0]).members == ("c",)
    ranked = [row.members for row in vf.search_subsets(stack).table.best(7)]
    assert ranked == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    dear = vf.search_subsets(stack, costs={"a": 5.0, "b": 1.0, "c": 1.0}).table.best(7)
    assert [row.members for row in dear][:5] == [("b",), ("c",), ("a",), ("b", "c"), ("a", "b")]


def test_limits_of_size_and_cost():
    z, y = ensemble(10, m=5)
    stack = stack_of(z, y)
    everything = vf.search_subsets(stack)
    small = vf.search_subsets(stack, max_members=2)
    assert len(small.table) == 15 and max(small.table.sizes) == 2
    costs = dict(zip(stack.members, [1.0, 2.0, 3.0, 4.0, 5.0], strict=True))
    cheap = vf.search_subsets(stack, costs=costs, budget=6.0, max_members=3)
    assert {row.members for row in cheap.table.best(99)} == {
        row.members
        for row in everything.table.best(99)
        if len(row.members) <= 3 and sum(costs[m] for m in row.members) <= 6
    }
    for row in cheap.table.best(99):
        assert row.cost == sum(costs[m] for m in row.members)
        assert row.score == everything.table.score_of(row.members)
    with pytest.raises(InputError, match="not searched"):
        small.table.score_of(stack.members)
    with pytest.raises(InputError, match="unknown members 'x'"):
        small.table.score_of(["x"])


def test_a_callable_objective_sees_the_pools_predictions():
    z, y = ensemble(11, m=3)
    stack = stack_of(z, y)

    def top_2(labels, log_proba):
        return vf.metrics.top_k_accuracy(labels, log_proba, k=2)

    found = vf.search_subsets(stack, top_2, vf.LinearPool(weights=[1, 2, 3]))
    log_p = stack.log_likelihoods()
    for s in all_subsets(3):
        expected = top_2(y, fused(log_p[:, s], [m + 1.0 for m in s], True))
        assert found.table.score_of([f"m{m}" for m in s]) == pytest.approx(expected, abs=1e-12)
    assert found.objective == "top_2"
    with pytest.raises(InputError, match="NaN"):
        vf.search_subsets(stack, lambda labels, log_proba: float("nan"))


@pytest.mark.parametrize("pool", POOLS)
def test_numbers_may_be_given_in_the_members_order_or_by_name(pool):
    z, y = ensemble(12, n=100, m=3)
    stack = stack_of(z, y, names=["c", "a", "b"])
    by_name = vf.search_subsets(stack, rule=POOLS[pool]({"a": 2.0, "b": 3.0, "c": 1.0})).table
    for numbers in ([1, 2, 3], np.array([1.0, 2.0, 3.0])):
        table = vf.search_subsets(stack, rule=POOLS[pool](numbers)).table
        np.testing.assert_array_equal(table.scores, by_name.scores)
    assert table.score_of("c") == (z[:, 0].argmax(1) == y).mean()
    assert table.names == ("a", "b", "c")


@pytest.mark.parametrize("options", [{"power": 4.0}, {"class_weight": "balanced"}, {"floor": 0.2}])
@pytest.mark.parametrize("pool", POOLS)
def test_what_makes_weights_of_accuracies_is_the_rules_own(pool, options):
    z, y = ensemble(18, n=400, m=4, k=3, signal=2.0)
    some = np.flatnonzero((y != 0) | (np.arange(400) % 8 == 0))  # one class is rare
    z, y = z[some], y[some]
    z[y == 0, 0, 0] += 4.0  # and known to one member alone
    stack, rule = stack_of(z, y), POOLS[pool]("accuracy", **options)
    for objective in ("accuracy", "mean-class-accuracy"):
        table = vf.search_subsets(stack, objective, rule).table
        for subset in all_subsets(4):
            part = stack.select([stack.members[i] for i in subset])
            expected = score(rule.fit(part).predict_log_proba(part), y, objective)
            assert table.score_of(part.members) == pytest.approx(expected, abs=1e-12)


def test_members_of_weight_0_alone_are_weighted_equally():
    z, y = ensemble(11, n=90, m=3)
    stack = stack_of(z, y)
    rule = vf.LinearPool({"m0": 1.0, "m1": 0.0, "m2": 0.0})
    own = vf.LinearPool("uniform").fit(stack.select(["m1", "m2"])).score(stack.select(["m1", "m2"]))
    for objective in ("accuracy", vf.metrics.top_k_accuracy):
        table = vf.search_subsets(stack, objective, rule).table
        assert table.score_of(["m1", "m2"]) == pytest.approx(own, abs=1e-12)
        assert table.score_of(["m0", "m2"]) == pytest.approx((z[:, 0].argmax(1) == y).mean(), abs=1e-12)


def test_a_pool_that_learns_is_refitted_on_each_subset():
    z, y = ensemble(12, n=100, m=3)
    stack = stack_of(z, y)
    found = vf.search_subsets(stack, "nll", vf.LogLinearPool())
    for s in all_subsets(3):
        part = stack.select([f"m{m}" for m in s])
        expected = vf.metrics.nll(y, vf.LogLinearPool().fit(part).predict_log_proba(part))
        assert found.table.score_of(part.members) == pytest.approx(expected, abs=1e-9)


def test_sample_weight_counts_like_copies_of_videos():
    z, y = ensemble(13, n=50, m=3, signal=3.0)
    copies = np.random.default_rng(0).integers(1, 4, 50)
    rows = np.repeat(np.arange(50), copies)
    for objective in OBJECTIVES:
        for pool in POOLS.values():
            weighted = vf.SubsetPool(pool(weights="accuracy"), objective).fit(
                stack_of(z, y), sample_weight=copies.astype(float)
            )
            repeated = vf.SubsetPool(pool(weights="accuracy"), objective).fit(stack_of(z[rows], y[rows]))
            assert weighted.selected_ == repeated.selected_
            assert weighted.score_ == pytest.approx(repeated.score_, abs=2e-7)


def test_missing_predictions_go_through_the_pool():
    z, y = ensemble(14, n=40, m=3)
    ids = [f"v{i}" for i in range(40)]
    stack = vf.LogitStack.from_arrays(
        {"a": z[:, 0], "b": z[:30, 1], "c": z[:, 2]},
        labels=y,
        ids={"a": ids, "b": ids[:30], "c": ids},
        join="outer",
    )
    assert stack.present is not None
    whole = stack[stack.present.all(axis=1)]
    for weights in ("uniform", "accuracy", "learned"):
        pool = vf.LogLinearPool(weights=weights, missing="renormalise")
        found, expected = vf.search_subsets(stack, rule=pool), vf.search_subsets(whole, rule=pool)
        np.testing.assert_array_equal(found.table.scores, expected.table.scores)
        assert vf.shapley_values(stack, rule=pool).values == vf.shapley_values(whole, rule=pool).values
        fitted = vf.SubsetPool(pool).fit(stack)
        assert fitted.selected_ == found.members
        assert np.isfinite(fitted.predict_log_proba(stack.select(["a", "c", "b"])).max(axis=1)).all()
        with pytest.raises(AlignmentError, match='missing="renormalise"'):
            vf.search_subsets(stack, rule=vf.LogLinearPool(weights=weights))
    with pytest.raises(AlignmentError, match="keep those that all members have"):
        vf.search_subsets(stack, rule=vf.StackedPool())


def test_the_summary_is_that_of_the_chosen_pool():
    z, y = ensemble(17, n=120, m=4, signal=3.0)
    stack = stack_of(z, y)
    inner = vf.LogLinearPool(weights="accuracy")
    fitted = vf.SubsetPool(inner, max_members=2).fit(stack)
    expected = inner.fit(stack.select(fitted.selected_)).summary(50, confidence=0.9, random_state=3)
    assert str(fitted.summary(50, confidence=0.9, random_state=3)) == str(expected)
    assert fitted.summary().lower is None
    with pytest.raises(InputError, match=r"one weight a member.*got StackedPool"):
        vf.SubsetPool(vf.StackedPool(), max_members=1).fit(stack).summary()


def test_row_28_a_search_that_would_not_finish():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 2000)
    many = stack_of(rng.normal(size=(2000, 40, 3)).astype(np.float32), y)
    with pytest.raises(InputError, match=r"1,099,511,627,775 subsets .* (days|years) .*greedy_search"):
        vf.search_subsets(many)
    assert len(vf.search_subsets(many, max_members=2).table) == 820
    with pytest.raises(InputError, match=r"8,191 subsets.*callable.*4,096.*greedy_search"):
        vf.search_subsets(many.select(many.members[:13]), vf.metrics.top_k_accuracy)
    with pytest.raises(InputError, match=r"8,191 subsets.*LogLinearPool.*4,096"):
        vf.search_subsets(many.select(many.members[:13]), "nll", vf.LogLinearPool())
    with pytest.raises(InputError, match="time_limit"):
        vf.search_subsets(many, max_members=3, time_limit=1e-3)


def test_row_18_labels_missing():
    z, _ = ensemble(15)
    with pytest.raises(InputError, match="the stack to search on has none"):
        vf.search_subsets(stack_of(z, None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "f1"}, "accuracy, mean-class-accuracy, macro-f1, nll"),
        ({"max_members": 0}, "max_members"),
        ({"budget": 0.5}, "cheapest"),
        ({"costs": {"m0": 1.0}}, "missing: 'm1'"),
        ({"costs": [1.0, -1.0, 1.0, 1.0]}, "-1.0 for 'm1'"),
        ({"costs": [1.0]}, "expected 4"),
    ],
)
def test_bad_arguments(options, message):
    z, y = ensemble(16)
    with pytest.raises(InputError, match=message):
        vf.search_subsets(stack_of(z, y), **options)


def test_enumeration_counts():
    assert [count_subsets(m) for m in (1, 7, 15)] == [1, 127, 32767]
    assert len(enumerate_masks(np.ones(30), max_members=2)) == 30 + 435 == count_subsets(30, 2)
    assert enumerate_masks(np.ones(3)).tolist() == list(range(1, 8))
    with pytest.raises(InputError, match="63 members"):
        enumerate_masks(np.ones(64))


def test_row_28_a_budget_that_hardly_limits(monkeypatch):
    monkeypatch.setattr(masks, "MOST_SUBSETS", 1000)
    with pytest.raises(InputError, match=r"more than 1,000 subsets of 40 members .*greedy_search"):
        enumerate_masks(np.zeros(40), budget=1.0)


def test_the_table_ranks_losses_and_prints():
    table = SubsetTable(
        ("a", "b"), np.array([1, 2, 3], np.uint64), np.array([0.5, 0.4, np.inf]), np.ones(3), higher_is_better=False
    )
    assert [row.members for row in table.best(3)] == [("b",), ("a",), ("a", "b")]
    assert table.best(1) == [(("b",), 0.4, 1.0)]
    assert repr(table) == "SubsetTable(3 subsets of 2 members, best 0.4: b)"


def test_subset_pool_is_refitted_in_each_fold_and_drops_members():
    z, y = ensemble(17, n=120, m=4, signal=3.0)
    z[:, 2] += 1.5 * np.random.default_rng(0).normal(size=z[:, 2].shape)
    stack = stack_of(z, y)
    pool = vf.SubsetPool(vf.LogLinearPool(weights="accuracy"), max_members=2).fit(stack)
    assert len(pool.selected_) <= 2 and "m2" not in pool.selected_
    assert pool.weights_.sum() == pytest.approx(1) and (pool.weights_ > 0).sum() == len(pool.selected_)
    assert pool.score(stack) == pytest.approx(pool.score_)
    expected = vf.LogLinearPool(weights="accuracy").fit(stack.select(pool.selected_))
    np.testing.assert_allclose(
        pool.predict_log_proba(stack.select(stack.members[::-1])),
        expected.predict_log_proba(stack.select(pool.selected_)),
        atol=1e-12,
    )
    numbers = vf.SubsetPool(vf.LinearPool(weights=[1, 2, 3, 4]), max_members=1).fit(stack)
    assert numbers.weights_.max() == 1.0


def test_the_log_linear_loss_of_many_videos_is_that_of_float64_to_eight_digits():
    # Rounded to float32 one by one, weights of 1/3 sum to 1 + 3e-8, which moves the mean of such members by 1e-7.
    z, y = ensemble(5, n=4000, m=6, k=40, signal=3.0)
    stack = stack_of(3 * z, y)
    weights = np.array([0.77, 0.78, 0.76, 0.775, 0.781, 1e-9])
    found = vf.search_subsets(stack, "nll", vf.LogLinearPool(weights=dict(zip(stack.members, weights, strict=True))))
    check(found, stack, brute_force(stack, y, weights, False, "nll", all_subsets(6)), 2.5e-8)


@pytest.mark.parametrize("scale", [1e4, 1e8])
def test_losses_of_overconfident_members_are_told_apart_though_their_likelihoods_are_no_numbers(scale):
    z, y = ensemble(5, n=40, m=4, k=6)
    stack = stack_of(scale * z, y)
    found = vf.search_subsets(stack, "nll", vf.LinearPool(weights="uniform"))
    for members in (["m0"], ["m1", "m3"], list(stack.members)):
        own = stack.select(members)
        loss = vf.metrics.nll(y, vf.LinearPool(weights="uniform").fit(own).predict_log_proba(own))
        assert found.table.score_of(members) == pytest.approx(loss, rel=1e-6)  # members are float32


def test_a_veto_of_the_least_weight_counts():
    z = np.log([[[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5], [1.0, 1e-40]]])
    z[1, 1, 1] = -np.inf
    stack = stack_of(z, [0, 0], kind="log-likelihoods")
    found = vf.search_subsets(stack, "nll", vf.LogLinearPool(weights={"m0": 1.0, "m1": 1e-12}, floor=0.0))
    assert found.table.score_of(["m0", "m1"]) == pytest.approx(np.log(2) / 2, abs=1e-9)


@pytest.mark.parametrize(
    ("objective", "rule", "grows_with_classes"),
    [
        ("accuracy", vf.LogLinearPool("accuracy"), False),
        ("nll", vf.LinearPool("accuracy"), False),
        ("nll", vf.LogLinearPool("accuracy"), True),
        ("nll", vf.LogLinearPool(), True),
    ],
    ids=["accuracy", "linear NLL", "log-linear NLL", "refits"],
)
def test_the_time_that_a_search_would_take_grows_with_what_it_reads(objective, rule, grows_with_classes):
    """The message tells a time: twice the videos take twice as long, and one member more twice the subsets."""

    def told(n, m, k):
        stack = vf.LogitStack.from_arrays(np.zeros((n, m, k), np.float32), labels=np.zeros(n, np.int64))
        with pytest.raises(InputError, match="would take about") as refused:
            vf.search_subsets(stack, objective, rule, time_limit=1e-12)
        number, unit = re.search(r"would take about ([\d.e+,-]+) (\w+)", str(refused.value)).groups()
        return float(number.replace(",", "")) * {"seconds": 1, "minutes": 60}[unit]

    one = told(4000, 4, 50)
    assert told(8000, 4, 50) == pytest.approx(2 * one, rel=0.1)
    assert told(4000, 5, 50) >= 2 * one
    assert told(4000, 4, 100) == pytest.approx(2 * one if grows_with_classes else one, rel=0.1)


def test_a_search_of_just_as_many_subsets_and_seconds_as_are_allowed_runs(monkeypatch):
    stack = stack_of(*ensemble(0, m=3))
    for most, seconds_each, limit, allowed in ((7, 0.5, 3.5, True), (6, 0.5, 3.5, False), (7, 0.5, 3.4, False)):
        monkeypatch.setattr(subsets, "_seconds_each", lambda problem, found=(seconds_each, most): found)
        if allowed:
            assert len(vf.search_subsets(stack, time_limit=limit).members) >= 1
        else:
            with pytest.raises(InputError, match="an exhaustive search of 7 subsets of 3 members"):
                vf.search_subsets(stack, time_limit=limit)


@pytest.mark.parametrize("objective", ["accuracy", "mean-class-accuracy", "nll"])
def test_refitted_rules_are_scored_by_the_weights_of_videos(objective):
    z, y = ensemble(3, m=2)
    stack, weight = stack_of(z, y), np.random.default_rng(0).integers(0, 4, len(y)).astype(float)
    table = vf.search_subsets(stack, objective, vf.StackedPool(), sample_weight=weight).table
    for chosen in (["m0"], ["m1"], ["m0", "m1"]):
        part = stack.select(chosen)
        log_p = vf.StackedPool().fit(part, sample_weight=weight).predict_log_proba(part)
        hits, true = log_p.argmax(axis=1) == y, log_p[np.arange(len(y)), y]
        by_class = [np.average(hits[y == k], weights=weight[y == k]) for k in np.unique(y[weight > 0])]
        expected = {"accuracy": np.average(hits, weights=weight), "nll": -np.average(true, weights=weight)}
        expected["mean-class-accuracy"] = np.mean(by_class)
        assert table.score_of(chosen) == pytest.approx(expected[objective])
