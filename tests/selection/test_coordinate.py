from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_cases import ensemble, fused, score, stack_of

import vidfuse as vf
from vidfuse.errors import AlignmentError, InputError
from vidfuse.selection.coordinate import _is_higher, best_step, coordinate_search


def reached(sums, slopes, rows, a, t):
    worst = {}
    for margin, row in zip(sums + t * slopes, rows, strict=True):
        worst[row] = max(worst.get(row, -np.inf), margin)
    return sum(a[row] for row, value in worst.items() if value < 0)


@settings(max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 4))
def test_the_line_search_finds_the_optimum_of_a_fine_grid(seed, n, current):
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.integers(0, n, 3 * n))
    sums, slopes = rng.integers(-3, 4, 3 * n).astype(float), rng.integers(-3, 4, 3 * n).astype(float)
    a = rng.uniform(0.5, 1.0, n)
    t, value = best_step(sums, slopes, rows, a, float(current))
    assert t >= 0
    assert value == pytest.approx(reached(sums, slopes, rows, a, t))
    ends = np.concatenate([[0.0], -sums[slopes != 0] / slopes[slopes != 0], [50.0]])
    ends = np.unique(ends[ends >= 0])
    grid = np.concatenate([(ends[1:] + ends[:-1]) / 2, [100.0]])  # one point inside every stretch
    assert value == pytest.approx(max(reached(sums, slopes, rows, a, x) for x in grid))


def test_the_line_search_moves_a_weight_no_further_than_it_must():
    # Videos 0 and 1 are right below 1, videos 2 and 3 above 5: two stretches are as good.
    sums, slopes = np.array([-1.0, -1.0, 5.0, 5.0]), np.array([1.0, 1.0, -1.0, -1.0])
    rows, a = np.arange(4), np.ones(4)
    for current, low, high in ((0.4, 0.0, 1.0), (0.9, 0.0, 1.0), (9.0, 5.0, np.inf), (4.5, 5.0, np.inf)):
        t, value = best_step(sums, slopes, rows, a, current)
        assert low < t < high and value == 2.0
    assert best_step(sums, slopes, rows, a, 0.0) == (0.0, 2.0)  # a weight of 0 stays 0 where nothing is gained
    assert best_step(-np.ones(2), -np.ones(2), np.arange(2), np.ones(2), 0.3) == (0.3, 2.0)  # nothing to decide


@pytest.mark.parametrize("pool", ["linear", "log-linear"])
@pytest.mark.parametrize("objective", ["accuracy", "mean-class-accuracy"])
def test_the_score_is_that_of_the_weights_and_at_least_every_starts(pool, objective):
    z, y = ensemble(1, n=150, m=4, k=6)
    stack = stack_of(z, y)
    found = coordinate_search(stack, objective, pool=pool)
    log_p = stack.log_likelihoods()
    weights = [found.weights[name] for name in stack.members]
    assert sum(weights) == pytest.approx(1) and min(weights) >= 0
    assert found.score == pytest.approx(score(fused(log_p, weights, pool == "linear"), y, objective), abs=1e-12)
    assert found.score == pytest.approx(found.path[-1], abs=1e-12)
    starts = [np.ones(4), *np.eye(4)]
    assert found.score >= max(score(fused(log_p, w, pool == "linear"), y, objective) for w in starts) - 1e-12
    assert np.all(np.diff(found.path) > 0)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(2, 4), st.sampled_from(["linear", "log-linear"]))
def test_the_score_is_the_pools_own_where_members_rule_classes_out(seed, m, k, pool):
    """No weight is so small that its member's vetoes do not hold."""
    z, y = ensemble(seed, n=15, m=m, k=k)
    vetoes = np.random.default_rng(seed).random(z.shape) < 0.3
    vetoes[..., 0] = False  # some class is left to everybody
    stack = stack_of(np.where(vetoes, -np.inf, z), y)
    rule = vf.LinearPool if pool == "linear" else vf.LogLinearPool
    for start in (None, {"m0": 1.0, **{f"m{i}": 1e-30 for i in range(1, m)}}):
        found = coordinate_search(stack, pool=pool, start=start)
        assert found.score == pytest.approx(rule(weights=found.weights).fit(stack).score(stack))


def test_two_members_reach_the_global_optimum():
    z, y = ensemble(2, n=80, m=2, k=5)
    stack = stack_of(z, y)
    log_p = stack.log_likelihoods()
    grid = [score(fused(log_p, [1 - t, t], False), y, "accuracy") for t in np.linspace(0.0005, 0.9995, 2000)]
    assert coordinate_search(stack).score >= max(grid)


def test_a_given_start_and_bad_arguments():
    z, y = ensemble(3, m=3)
    stack = stack_of(z, y)
    found = coordinate_search(stack, start={"m0": 1.0, "m1": 0.0, "m2": 1.0})
    assert found.score >= vf.LogLinearPool(weights=[1, 0, 1]).fit(stack).score(stack)
    assert "in-sample accuracy" in repr(found)
    with pytest.raises(InputError, match=r"'macro-f1' or a callable.*find its optimum"):
        coordinate_search(stack, "nll")
    with pytest.raises(InputError, match="a callable gets no weights"):
        coordinate_search(stack, vf.metrics.top_k_accuracy, sample_weight=np.ones(len(y)))
    with pytest.raises(InputError, match="expected a number"):
        coordinate_search(stack, lambda labels, log_proba: np.nan)
    with pytest.raises(InputError, match="'linear', 'log-linear'"):
        coordinate_search(stack, pool="cubic")
    with pytest.raises(InputError, match="m1"):
        coordinate_search(stack, start={"m0": 1.0, "m1": -1.0, "m2": 1.0})


@pytest.mark.parametrize("objective", ["accuracy", "mean-class-accuracy"])
def test_whole_weights_are_videos_that_stand_several_times(objective):
    z, y = ensemble(4, n=120, m=4, k=5)
    counts = np.random.default_rng(0).integers(0, 4, 120)
    rows = np.repeat(np.arange(120), counts)
    found = coordinate_search(stack_of(z, y), objective, sample_weight=counts)
    again = coordinate_search(stack_of(z[rows], y[rows]), objective)
    assert found.weights == pytest.approx(again.weights, abs=1e-9)
    assert found.score == pytest.approx(again.score, abs=1e-12)


def test_videos_that_some_member_lacks_are_refused():
    z, y = ensemble(3, m=3)
    ids = np.array([f"v{i:02d}" for i in range(60)])
    stack = vf.LogitStack.from_arrays(
        {"a": z[5:, 0], "b": z[:, 1]}, ids={"a": ids[5:], "b": ids}, join="outer",
        labels=dict(zip(ids.tolist(), y.tolist(), strict=True)),
    )  # fmt: skip
    with pytest.raises(AlignmentError, match="5 of 60 videos without some; keep those that all members have"):
        coordinate_search(stack)
    assert coordinate_search(stack[stack.present.all(axis=1)]).score > 0


def test_an_equal_score_is_no_higher_one_and_any_is_higher_than_none():
    assert not _is_higher(0.0, 0.0) and not _is_higher(0.5, 0.5) and not _is_higher(-np.inf, -np.inf)
    assert _is_higher(0.0, -np.inf) and _is_higher(0.5 + 1e-6, 0.5) and not _is_higher(0.5 + 1e-12, 0.5)


def test_nothing_to_decide():
    z = np.tile(np.array([[[2.0, 0.0]], [[0.0, 2.0]]], np.float32), (1, 2, 1))
    assert coordinate_search(stack_of(z, [0, 1])).score == 1.0


@pytest.mark.parametrize("pool", ["linear", "log-linear"])
def test_a_callable_is_never_below_its_starts_nor_far_from_a_fine_grid(pool):
    z, y = ensemble(5, n=120, m=2, k=5)
    stack = stack_of(z, y)

    def top_two(labels, log_proba):
        return vf.metrics.top_k_accuracy(labels, log_proba, k=2) - 0.1 * vf.metrics.nll(labels, log_proba)

    found = coordinate_search(stack, top_two, pool=pool)
    log_p = stack.log_likelihoods()
    of = lambda w: top_two(y, fused(log_p, w, pool == "linear"))  # noqa: E731
    assert found.score == pytest.approx(of([found.weights["m0"], found.weights["m1"]]), abs=1e-9)
    assert found.score >= max(of([0.5, 0.5]), of([1, 0]), of([0, 1])) - 1e-9
    assert found.score >= max(of([1 - t, t]) for t in np.linspace(0, 1, 200)) - 0.02
    assert found.objective == "top_two"


def test_a_smooth_callable_is_brought_near_the_learned_optimum():
    z, y = ensemble(6, n=200, m=4, k=5)
    stack = stack_of(z, y)
    found = coordinate_search(stack, lambda labels, log_proba: -vf.metrics.nll(labels, log_proba), pool="linear")
    assert -found.score <= vf.metrics.nll(y, vf.LinearPool().fit(stack).predict_log_proba(stack)) + 2e-3
    assert found.path[-1] == found.score


def test_a_callable_that_is_the_accuracy_agrees_with_the_exact_search_to_a_video_or_two():
    z, y = ensemble(7, n=150, m=3, k=6)
    stack = stack_of(z, y)
    exact = coordinate_search(stack, random_starts=0)
    tried = coordinate_search(stack, vf.metrics.top_k_accuracy)
    assert exact.score - 2.5 / 150 <= tried.score


def test_a_callable_of_any_scale_and_of_infinite_losses():
    z, y = ensemble(6, n=100, m=3, k=4)
    stack = stack_of(z, y)
    loss = lambda labels, log_proba: -vf.metrics.nll(labels, log_proba)  # noqa: E731
    found = coordinate_search(stack, loss)
    for scale in (1e-12, 1e12):
        scaled = coordinate_search(stack, lambda labels, log_proba, scale=scale: scale * loss(labels, log_proba))
        assert scaled.weights == pytest.approx(found.weights, abs=1e-9)
    never = coordinate_search(stack, lambda labels, log_proba: -np.inf)
    assert never.score == -np.inf
    assert never.path == (-np.inf,)
