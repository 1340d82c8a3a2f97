"""The leaderboard's numbers: gains from two baselines, members that lack videos, advice, several splits."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import vidfuse as vf
from vidfuse.errors import InputError
from vidfuse.evaluation.board import board_of, over_splits
from vidfuse.evaluation.trial import Protocol

OBJECTIVES = ["accuracy", "mean-class-accuracy", "macro-f1", "nll", vf.metrics.brier]
HELD_OUT = Protocol(100, 200, 0)
AVERAGE = "average of log-likelihoods"


def make_stack(seed=0, n=200, k=4, strengths=(2.0, 1.5, 1.0), **options):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    z = {f"m{i}": (rng.normal(size=(n, k)) + s * np.eye(k)[y]).astype(np.float32) for i, s in enumerate(strengths)}
    return vf.LogitStack.from_arrays(z, labels=y, ids=[f"v{i}" for i in range(n)], **options)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_and_gains_are_by_the_objective(objective):
    stack = make_stack()
    groups = np.arange(200) // 4
    board = vf.leaderboard(stack, objective=objective, groups=groups, n_resamples=100)
    metric = vf.metrics.resolve_objective(objective)
    rule = vf.LogLinearPool(weights="uniform").fit(stack).predict_log_proba(stack)
    assert board.entry(AVERAGE).value == pytest.approx(metric(stack.labels, rule))
    assert board.average == AVERAGE and board.entry(AVERAGE).gain_over_average is None
    assert board.entry(board.best_single).gain is None
    sign = -1 if objective == "nll" else 1
    values = [sign * entry.value for entry in board.entries]
    assert values == sorted(values, reverse=True)
    for entry in board.entries:
        for found, base in ((entry.gain, board.best_single), (entry.gain_over_average, AVERAGE)):
            if found is not None:
                assert found.difference == pytest.approx(sign * (entry.value - board.entry(base).value), abs=1e-6)
                assert found.interval.n_groups == 50
    assert board.objective in ("accuracy", "mean-class-accuracy", "macro-f1", "nll", "brier")
    assert board.headline() and str(board.table())


def test_a_named_objective_that_is_no_mean_over_videos_is_judged_as_its_function_is():
    rng = np.random.default_rng(1)
    y = np.where(rng.random(300) < 0.9, 0, rng.integers(1, 4, 300))
    z = {name: rng.normal(size=(300, 4)) + np.eye(4)[y] + [2, 0, 0, 0] for name in "ab"}
    stack = vf.LogitStack.from_arrays(z, labels=y, ids=[f"v{i}" for i in range(300)], kind="logits")
    boards = [
        vf.leaderboard(stack, rules={"average": vf.LogLinearPool("uniform")}, objective=objective, n_resamples=200)
        for objective in ("macro-f1", vf.metrics.macro_f1)
    ]
    assert str(boards[0]) == str(boards[1])
    assert all(entry.interval.low <= entry.value <= entry.interval.high for entry in boards[0].entries)
    average = boards[0].entry("average")
    assert average.gain.difference == pytest.approx(average.value - boards[0].entry(boards[0].best_single).value)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_blocks_are_scored_as_arrays_are(objective):
    stack = make_stack(seed=3)
    pool = vf.LogLinearPool().fit(stack)
    options = {"objective": objective, "n_resamples": 50}
    whole = board_of(stack, {"pool": pool.predict_log_proba(stack)}, HELD_OUT, **options)
    blocks = board_of(stack, {"pool": pool.predict_blocks(stack, rows_per_block=7)}, HELD_OUT, **options)
    for own, other in zip(whole.entries, blocks.entries, strict=True):
        assert own.value == other.value and own.interval == other.interval and own.gain == other.gain
        np.testing.assert_array_equal(own.score.hits, other.score.hits)


def test_a_board_holds_a_few_numbers_of_each_video():
    stack = make_stack(n=12_000, k=400)
    pool = vf.LogLinearPool("uniform").fit(stack)
    blocks = pool.predict_blocks(stack, rows_per_block=500)
    tracemalloc.start()
    try:
        board_of(stack, {"pool": blocks}, HELD_OUT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.7 * 12_000 * 400 * 4  # one member's log-likelihoods


def test_the_plain_average_need_not_be_a_row():
    stack = make_stack()
    board = vf.leaderboard(stack, rules={"learned": vf.LogLinearPool()})
    assert board.average == AVERAGE
    assert board.average not in [entry.score.name for entry in board.entries]
    with_it = vf.leaderboard(stack, rules={"learned": vf.LogLinearPool(), "u": vf.LogLinearPool(weights="uniform")})
    assert with_it.average == "u"
    assert board.entry("learned").gain_over_average == with_it.entry("learned").gain_over_average


def test_members_that_rule_classes_out_have_a_board_and_an_average():
    """Hard predictions as logits: the true class has a probability of 0 somewhere, and some videos no class at all."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60)
    said = {name: np.where(rng.random(60) < 0.8, y, (y + 1) % 3) for name in "ab"}
    hard = {name: np.where(np.eye(3)[predicted] > 0, 0.0, -np.inf) for name, predicted in said.items()}
    stack = vf.LogitStack.from_arrays(hard, labels=y, ids=[f"v{i}x" for i in range(60)])
    probabilities = vf.LogitStack.from_arrays(
        {name: np.eye(3)[predicted] for name, predicted in said.items()}, labels=y, ids=stack.ids, kind="probabilities"
    )
    ours, theirs = (vf.leaderboard(each, folds=3, n_resamples=50) for each in (stack, probabilities))
    for entry in theirs.entries:
        assert ours.entry(entry.score.name).value == entry.value
        assert ours.entry(entry.score.name).score.nll == pytest.approx(entry.score.nll)
    rule, options = vf.LogLinearPool(), {"folds": 3, "repeats": 1, "n_resamples": 50}
    assert vf.honest_score(rule, stack, **options).uniform == vf.honest_score(rule, probabilities, **options).uniform
    curve, other = (vf.learning_curve(each, folds=3, n_resamples=50, repeats=1) for each in (stack, probabilities))
    # As texts: some of the numbers are NaN, which equals nothing.
    assert repr(curve.series("average of log-likelihoods")) == repr(other.series("average of log-likelihoods"))


def test_what_to_take_instead_of_a_rule_that_is_below_a_member():
    stack = make_stack(strengths=(3.0, 0.7, 0.7))
    vote = vf.MajorityVote()
    board = vf.leaderboard(stack, rules={"vote": vote})
    assert board.instead.name == board.instead.member == "m0" and not board.instead.fused
    assert board.instead.difference.difference < 0
    points = -100 * board.instead.difference.difference
    assert f"{points:.1f} points below the best single member (m0)" in board.headline()
    assert board.headline().endswith("Take m0 alone instead: nothing here scores better.")
    better = vf.leaderboard(stack, rules={"vote": vote, "learned": vf.LogLinearPool()})
    if better.entry("learned").value > better.entry("m0").value:
        assert better.instead.name == "learned" and "Take “learned” instead" in better.headline()
    assert vf.leaderboard(stack, rules={"learned": vf.LogLinearPool(), "vote": vote}).instead is None
    assert vf.leaderboard(stack, rules={"vote": vote}, folds=0).instead is None  # in-sample scores cannot tell


def test_a_member_that_was_best_on_the_fit_only_is_not_called_the_best():
    fit, scored = make_stack(strengths=(2.0, 1.0, 0.5)), make_stack(seed=1, strengths=(0.5, 1.0, 2.0))
    text = vf.leaderboard(fit, scored, rules={"average": vf.LogLinearPool(weights="uniform")}).headline()
    assert "points over m0, the best single member of the fit, p " in text
    assert "m2, which turned out to be the best member on these videos." in text
    assert "the best single member (" not in text
    again = vf.leaderboard(fit, fit[:100], rules={"average": vf.LogLinearPool(weights="uniform")}).headline()
    assert "the best single member (m0)" in again and "turned out" not in again


def partial_stack(few):
    """Of three members one has the given videos only."""
    whole = make_stack(5)
    ids = whole.ids.tolist()
    arrays = {"m0": whole.scores("m0"), "m1": whole.scores("m1"), "few": 5 * whole.scores("m2")[few]}
    return vf.LogitStack.from_arrays(
        arrays,
        ids={"m0": ids, "m1": ids, "few": [ids[i] for i in few]},
        labels=dict(zip(ids, whole.labels.tolist(), strict=True)),
        join="outer",
    )


def test_a_member_of_three_videos_is_no_rival():
    whole = make_stack(5)
    easy = np.flatnonzero(whole.scores("m2").argmax(axis=1) == whole.labels)[:3]
    board = vf.leaderboard(partial_stack(easy))
    assert board.entry("few").value == 1.0 and board.entry("few").score.n == 3
    assert board.best_single != "few" and board.best_on_scored != "few"
    assert "few" not in board.headline()


def test_a_member_that_lacks_videos_is_ranked_on_common_ones():
    stack = partial_stack(np.arange(0, 200, 2))
    board = vf.leaderboard(stack)
    entry, best = board.entry("few"), board.entry(board.best_single)
    both = entry.score.present & best.score.present
    assert both.sum() == 100
    expected = entry.score.hits[both].mean() - best.score.hits[both].mean()
    assert entry.gain.difference == pytest.approx(expected)
    where = best.value + expected
    values = [where if e is entry else e.value for e in board.entries]
    assert values == sorted(values, reverse=True)


def test_several_splits_have_a_mean_and_a_spread():
    tests = [make_stack(seed) for seed in (1, 2, 3)]
    found = vf.leaderboard_of_splits([make_stack(0)] * 3, tests, groups=lambda name: name)
    boards = [vf.leaderboard(make_stack(0), test, groups=lambda name: name) for test in tests]
    assert {row.name for row in found.rows} == {e.score.name for e in boards[0].entries}
    for row in found.rows:
        values = [board.entry(row.name).value for board in boards]
        assert row.values == tuple(values)
        assert (row.mean, row.spread) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
        gains = [0.0 if b.entry(row.name).gain is None else b.entry(row.name).gain.difference for b in boards]
        assert row.mean_gain == pytest.approx(np.mean(gains))
    assert [row.mean for row in found.rows] == sorted((row.mean for row in found.rows), reverse=True)
    loss = vf.leaderboard_of_splits([make_stack(0)] * 2, tests[:2], objective="nll", n_resamples=50)
    assert [row.mean for row in loss.rows] == sorted(row.mean for row in loss.rows)
    assert np.isnan(over_splits(boards[:1]).rows[0].spread)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: board_of(make_stack(), {}, HELD_OUT), "predictions: expected at least one"),
        (lambda: over_splits([]), "at least one split"),
        (lambda: vf.leaderboard_of_splits([make_stack()], []), "one test stack for each of 1"),
        (lambda: vf.leaderboard(make_stack(), objective="f1"), "objective: expected one of"),
        (lambda: vf.leaderboard(make_stack(), confidence=2), "confidence"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "NaN"), ("x", "'x'"), (None, "None")])
def test_an_objective_that_is_no_number_is_refused_by_every_judge(value, shown):
    stack, rules = make_stack(n=20), {"a rule": vf.MajorityVote(), "b rule": vf.BordaCount()}

    def odd(labels, log_proba):
        return value

    for judge in (
        lambda: vf.leaderboard(stack, objective=odd, rules=rules),
        lambda: vf.honest_score(rules["a rule"], stack, objective=odd, folds=2),
        lambda: vf.compare(rules, stack, objective=odd, folds=2),
    ):
        with pytest.raises(InputError, match=f"objective odd: expected a number, got {shown} for"):
            judge()


def test_one_video_makes_no_folds():
    for judge in (vf.leaderboard, lambda stack: vf.honest_score(vf.MajorityVote(), stack)):
        with pytest.raises(InputError, match="at least two videos to make folds of, got 1"):
            judge(make_stack(n=1))
