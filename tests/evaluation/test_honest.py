from __future__ import annotations

import numpy as np
import pytest
from selection_cases import ensemble, stack_of

import vidfuse as vf
from vidfuse.errors import AlignmentError, InputError
from vidfuse.evaluation.honest import _best_single
from vidfuse.fusion.crossfit import split_folds

UNIFORM = vf.LogLinearPool(weights="uniform")


def test_a_rule_without_a_fit_has_no_optimism():
    z, y = ensemble(1, n=100)
    stack = stack_of(z, y)
    found = vf.honest_score(UNIFORM, stack, folds=4, repeats=3)
    assert found.score == pytest.approx(UNIFORM.fit(stack).score(stack), abs=1e-12)
    assert found.uniform == found.score
    assert found.optimism == pytest.approx(0, abs=1e-12) and found.versus_uniform.p_value == 1
    assert len(set(found.repeats)) == 1
    loss = vf.honest_score(UNIFORM, stack, folds=4, repeats=1, objective="nll")
    assert "optimism +0.0000" in repr(loss) and str(loss.optimism) == "0.0"  # no minus zero


def test_selection_among_noise_is_seen_through():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 60)
    stack = stack_of(rng.normal(size=(60, 12, 2)).astype(np.float32), y)
    for pool in (vf.SubsetPool(UNIFORM), vf.GreedyPool("accuracy", 10)):
        found = vf.honest_score(pool, stack, folds=5, repeats=4)
        assert found.in_sample > 0.58
        assert found.optimism > 0.1
        assert found.interval.low < 0.5 < found.interval.high + 0.1
    loss = vf.honest_score(vf.LinearPool(floor=0.01), stack, repeats=2, objective="nll")
    assert loss.optimism > 0 and loss.in_sample < loss.score


def test_best_single_is_chosen_on_the_training_folds():
    z, y = ensemble(3, n=150, m=3, signal=3.0)
    stack = stack_of(z, y)
    found = vf.honest_score(UNIFORM, stack, folds=3, repeats=1, random_state=5)
    hits = z.argmax(-1) == y[:, None]
    expected = np.empty(150)
    for fit, rest in split_folds(y, 3, None, 5):
        expected[rest] = hits[rest, hits[fit].mean(0).argmax()]
    assert found.best_single == pytest.approx(expected.mean())
    assert found.versus_best_single.difference == pytest.approx(found.score - found.best_single)


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_among_equal_members_the_best_single_has_the_lower_loss_whatever_they_are_called(names):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    sure = rng.normal(size=(60, 3)) + 4 * np.eye(3)[y]
    stack = vf.LogitStack.from_arrays(dict(zip(names, (0.1 * sure, sure), strict=True)), labels=y)  # of equal ranks
    (found,) = _best_single(stack, y, [split_folds(y, 3)], "accuracy")
    np.testing.assert_array_equal(found, stack.select([names[1]]).log_likelihoods()[:, 0])


@pytest.mark.parametrize("objective", ["accuracy", "mean-class-accuracy", "macro-f1", "nll", vf.metrics.brier])
def test_every_objective_has_an_interval_around_its_score(objective):
    z, y = ensemble(4, n=120, signal=3.0)
    found = vf.honest_score(UNIFORM, stack_of(z, y), folds=3, repeats=2, objective=objective, n_resamples=500)
    assert found.interval.low < found.score < found.interval.high
    assert found.score == pytest.approx(
        vf.metrics.resolve_objective(objective)(y, UNIFORM.fit(stack_of(z, y)).predict_log_proba(stack_of(z, y)))
    )
    assert found.objective in repr(found)


def test_a_rule_of_views_is_scored_beside_members_of_averaged_views():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 120)
    z = {f"m{m}": rng.normal(size=(120, 3, 4)) + (0.5 + m) * np.eye(4)[y][:, None] for m in range(3)}
    stack = vf.LogitStack.from_arrays(z, labels=y)
    averaged = vf.LogitStack.from_arrays(z, labels=y, views="mean-log")
    found = vf.honest_score(vf.MajorityVote(), stack, repeats=2)
    same = vf.honest_score(UNIFORM, averaged, repeats=2)
    assert (found.uniform, found.best_single) == (same.score, same.best_single)
    assert found.score == pytest.approx(vf.MajorityVote().fit(stack).score(stack), abs=1e-12)


def test_every_repeat_has_folds_of_its_own():
    z, y = ensemble(4, n=80, signal=2.0)
    found = vf.honest_score(vf.LogLinearPool(), stack_of(z, y), folds=3, repeats=4, objective="nll", random_state=2)
    assert len(set(found.repeats)) == 4 and found.score == pytest.approx(np.mean(found.repeats))
    first = vf.honest_score(vf.LogLinearPool(), stack_of(z, y), folds=3, repeats=1, objective="nll", random_state=2)
    assert first.score == found.repeats[0]


def test_same_seed_same_result():
    z, y = ensemble(5, n=60)
    stack = stack_of(z, y)
    pool = vf.LogLinearPool(weights="accuracy")
    one = vf.honest_score(pool, stack, repeats=2, random_state=3)
    assert one == vf.honest_score(pool, stack, repeats=2, random_state=3)


def test_compare_scores_fusers_out_of_fold_and_arrays_as_they_are():
    z, y = ensemble(6, n=150, m=3, signal=3.0)
    stack = stack_of(z, y)
    array = stack.log_likelihoods()[:, 0]
    found = vf.compare({"uniform": UNIFORM, "first": array, "learned": vf.LogLinearPool()}, stack)
    assert found.scores["uniform"] == UNIFORM.fit(stack).score(stack)
    assert found.scores["first"] == vf.metrics.top_k_accuracy(y, array)
    pair = found.pairs[0]
    assert (pair.first, pair.second) == ("uniform", "first")
    assert pair.difference.difference == pytest.approx(found.scores["uniform"] - found.scores["first"])
    hits = UNIFORM.predict(stack) == y, array.argmax(1) == y
    assert pair.difference.p_value == vf.metrics.mcnemar(*hits).p_value
    assert found.test == "McNemar's exact test, two-sided"
    assert pair.p_adjusted >= pair.difference.p_value
    assert "Holm" in repr(found) and found.intervals["first"].low < found.scores["first"]


def test_compare_by_loss_is_positive_where_the_first_is_better():
    z, y = ensemble(7, n=200, signal=3.0)
    stack = stack_of(z, y)
    sharp = np.log(np.eye(5)[y] * 0.9 + 0.02)
    sharp[::7] = np.log(np.eye(5)[(y[::7] + 1) % 5] * 0.3 + 0.14)  # differences that are all equal have no interval
    flat = np.full((200, 5), -np.log(5))
    for objective in ("nll", "accuracy", "mean-class-accuracy", lambda a, b: -vf.metrics.nll(a, b)):
        found = vf.compare({"sharp": sharp, "flat": flat}, stack, objective=objective)
        assert found.pairs[0].difference.difference > 0 and found.pairs[0].difference.interval.low > 0
        assert found.pairs[0].difference.p_value < 0.05
    assert vf.compare({"a": sharp, "b": flat}, stack, objective="nll").scores["b"] == pytest.approx(np.log(5))


def test_thirty_of_thirty_right_is_not_certain():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 30)
    stack = stack_of((rng.normal(size=(30, 2, 3)) + 9 * np.eye(3)[y][:, None]).astype(np.float32), y)
    for objective in ("accuracy", "mean-class-accuracy"):
        found = vf.honest_score(vf.LogLinearPool(), stack, repeats=2, objective=objective)
        assert found.score == 1 and found.interval.low < 0.9 and found.interval.high == 1
    compared = vf.compare({"a": UNIFORM, "b": vf.MajorityVote()}, stack)
    assert compared.intervals["a"] == pytest.approx(tuple(vf.metrics.accuracy_interval(30, 30)))


def test_row_66_one_video_a_class_has_no_interval_and_a_test_that_holds():
    rng = np.random.default_rng(0)
    y = np.arange(50)
    stack = stack_of((rng.normal(size=(50, 1, 50)) + 3 * np.eye(50)[y][:, None]).astype(np.float32), y)
    right, one_wrong = np.log(np.eye(50) * 0.9 + 0.002), None
    one_wrong = right.copy()
    one_wrong[0] = right[1]
    found = vf.compare({"a": right, "b": one_wrong}, stack, objective="mean-class-accuracy")
    assert found.pairs[0].difference.p_value == 1  # one video that differs tells nothing
    assert "one video only" in found.intervals["a"].refused and "no interval: every class has one" in repr(found)


def test_equal_rules_seldom_differ_where_classes_have_few_videos():
    """Three equally good, independent rules, and Holm over the pairs: nominal 5 %."""
    rng = np.random.default_rng(0)
    for n_classes, of_each in ((50, 1), (50, 2), (20, 5)):
        y = np.repeat(np.arange(n_classes), of_each)
        stack = stack_of(rng.normal(size=(len(y), 1, n_classes)).astype(np.float32), y)
        false = 0
        for _ in range(60):
            rules = {}
            for name in "abc":
                said = np.where(rng.random(len(y)) < 0.8, y, (y + rng.integers(1, n_classes, len(y))) % n_classes)
                rules[name] = np.log(np.eye(n_classes)[said] * 0.9 + 0.1 / n_classes)
            found = vf.compare(rules, stack, objective="mean-class-accuracy")
            false += any(pair.p_adjusted <= 0.05 for pair in found.pairs)
        assert false <= 8  # 5 % of 60 are 3; more than 8 come once in 200 times


def test_bad_input():
    z, y = ensemble(8)
    stack = stack_of(z, y)
    with pytest.raises(InputError, match="folds"):
        vf.honest_score(UNIFORM, stack, folds=1)
    with pytest.raises(InputError, match="repeats"):
        vf.honest_score(UNIFORM, stack, repeats=0)
    with pytest.raises(InputError, match="groups"):
        vf.honest_score(UNIFORM, stack, groups=[1, 2])
    with pytest.raises(InputError, match="at least 5"):
        vf.honest_score(UNIFORM, stack, groups=np.zeros(60, int))
    with pytest.raises(InputError, match="at least two rules"):
        vf.compare({"a": UNIFORM}, stack)
    with pytest.raises(AlignmentError, match=r"rule 'b'.*\(60, 5\)"):
        vf.compare({"a": UNIFORM, "b": np.zeros((60, 4))}, stack)
    with pytest.raises(InputError, match="has none"):
        vf.honest_score(UNIFORM, stack_of(z, None))
