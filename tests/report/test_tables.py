"""The leaderboard and the combination table against scores computed by hand with scikit-learn and SciPy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss

import vidfuse as vf
from vidfuse.errors import InputError
from vidfuse.evaluation.board import board_of
from vidfuse.evaluation.trial import Protocol
from vidfuse.fusion.crossfit import split_folds
from vidfuse.report import combination_table
from vidfuse.report.combinations import growing
from vidfuse.report.tables import default_rules
from vidfuse.selection.problem import best_single

MEMBERS = {"swin": 2.0, "x3d": 1.5, "tin": 1.0}


def make_stack(n=240, k=4, seed=0, views=None, **options):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, size=n)
    shape = (n, k) if views is None else (n, views, k)
    arrays = {}
    for name, strength in MEMBERS.items():
        z = rng.normal(size=shape) + strength * (np.eye(k)[y] if views is None else np.eye(k)[y][:, None])
        arrays[name] = z.astype(np.float32)
    return vf.LogitStack.from_arrays(arrays, labels=y, ids=[f"{seed}-{i}" for i in range(n)], **options)


VAL, TEST = make_stack(seed=1), make_stack(seed=2)


@pytest.fixture(scope="module")
def board():
    return vf.leaderboard(VAL, TEST)


def test_member_rows_are_the_scores_of_the_members(board):
    for name in MEMBERS:
        z = log_softmax(TEST.scores(name).astype(np.float64), axis=1)
        s = board.entry(name).score
        predicted = z.argmax(axis=1)
        assert s.accuracy == pytest.approx(accuracy_score(TEST.labels, predicted))
        assert s.mean_class_accuracy == pytest.approx(balanced_accuracy_score(TEST.labels, predicted))
        assert s.nll == pytest.approx(log_loss(TEST.labels, np.exp(z)), rel=1e-5)
        wilson = binomtest(int(s.hits.sum()), len(TEST)).proportion_ci(method="wilson")
        assert s.accuracy_interval == pytest.approx((wilson.low, wilson.high))
        assert s.mean_class_interval.low < s.mean_class_accuracy < s.mean_class_interval.high


def test_rules_are_fitted_on_the_one_stack_and_scored_on_the_other(board):
    assert board.protocol == "held-out"
    for name, rule in default_rules().items():
        expected = rule.fit(VAL).predict_log_proba(TEST)
        s = board.entry(name).score
        assert s.accuracy == pytest.approx((expected.argmax(axis=1) == TEST.labels).mean())
        assert s.nll == pytest.approx(-expected[np.arange(len(TEST)), TEST.labels].mean())


def test_the_cells_are_the_scores_in_percent():
    board = vf.leaderboard(make_stack(k=7, seed=1), make_stack(k=7, seed=2))
    table = board.table()
    shown = [column.heading for column in table.heads if column.shown]
    assert shown[1:6] == ["top-1 % (95 %)", "mean class % (95 %)", "top-5 %", "NLL", "ECE %"]
    s = board.entry("learned weights").score
    low, high = s.accuracy_interval
    row = next(line for line in table.to_markdown().splitlines() if "learned weights" in line).replace("*", "")
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[1] == f"{100 * s.accuracy:.1f} ({100 * low:.1f}\N{EN DASH}{100 * high:.1f})"
    assert cells[3:6] == [f"{100 * s.top_5:.1f}", f"{s.nll:.3f}", f"{100 * s.ece:.1f}"]
    assert "top-5 %" not in str(vf.leaderboard(VAL, TEST))


def test_gain_and_p_value_are_those_of_the_paired_test(board):
    best = board.entry(board.best_single)
    assert board.best_single == "swin"
    assert best.gain is None
    entry = board.entry("learned weights")
    only_fused = int((entry.score.hits & ~best.score.hits).sum())
    only_best = int((best.score.hits & ~entry.score.hits).sum())
    assert entry.gain.difference == pytest.approx((only_fused - only_best) / len(TEST))
    assert entry.gain.p_value == pytest.approx(binomtest(only_fused, only_fused + only_best).pvalue)


def test_rows_are_sorted_and_the_best_single_is_chosen_on_the_fit(board):
    accuracies = [entry.score.accuracy for entry in board.entries]
    assert accuracies == sorted(accuracies, reverse=True)
    swapped = vf.LogitStack.from_arrays({m: VAL.scores(m) for m in reversed(VAL.members)}, labels=VAL.labels)
    assert best_single(swapped) == best_single(VAL) == "swin"


def test_the_headline_is_the_first_rule_whatever_came_out_best():
    board = vf.leaderboard(VAL, TEST, rules={"vote": vf.MajorityVote(), "learned": vf.LogLinearPool()})
    entry = board.entry("vote")
    text = board.headline()
    assert text.startswith(f"The fusion of 3 members gets {100 * entry.score.accuracy:.1f} % (")
    assert "over the best single member (swin), p " in text


def test_without_a_test_stack_scores_are_cross_fitted():
    board = vf.leaderboard(VAL, folds=4, random_state=3)
    assert board.protocol == "cross-fitted"
    assert "fitted without it (4 folds)" in str(board)
    expected = np.empty((len(VAL), 4))
    for fit, rest in split_folds(VAL.labels, 4, None, 3, VAL.ids):
        expected[rest] = vf.LogLinearPool().fit(VAL[fit]).predict_log_proba(VAL[rest])
    nll = -expected[np.arange(len(VAL)), VAL.labels].mean()
    assert board.entry("learned weights").score.nll == pytest.approx(nll)


def test_in_sample_scores_say_so_everywhere():
    board = vf.leaderboard(VAL, folds=0)
    assert board.protocol == "in-sample"
    assert board.headline().endswith("(in-sample).")
    assert "IN-SAMPLE" in str(board)
    assert "IN-SAMPLE" in board.table().to_markdown()
    assert "IN-SAMPLE" in board._repr_html_()
    assert board.to_dict()["protocol"] == "in-sample"


def test_the_dictionary_is_plain_json(board):
    content = json.loads(json.dumps(board.to_dict()))
    assert {entry["name"] for entry in content["entries"]} == {*MEMBERS, *default_rules()}
    assert content["headline"] == board.headline()


def test_order_unchecked_is_said():
    z = {name: VAL.scores(name) for name in VAL.members}
    board = vf.leaderboard(vf.LogitStack.from_arrays(z, labels=VAL.labels))
    assert not board.how_scored.order_checked
    assert "Order unchecked" in str(board)


def test_views_are_reduced():
    views = make_stack(views=3, seed=4)
    board = vf.leaderboard(views, views="mean-probability")
    flat = vf.reduce_views(views, "mean-probability")
    assert board.entry("swin").score.accuracy == vf.leaderboard(flat).entry("swin").score.accuracy


def test_a_member_that_lacks_videos_is_scored_on_those_it_has():
    ids = {"swin": [f"v{i}" for i in range(100)], "x3d": [f"v{i}" for i in range(80)]}
    rng = np.random.default_rng(5)
    y = rng.integers(0, 3, size=100)
    z = {name: rng.normal(size=(len(rows), 3)) + 2 * np.eye(3)[y[: len(rows)]] for name, rows in ids.items()}
    stack = vf.LogitStack.from_arrays(z, ids=ids, labels=dict(zip(ids["swin"], y.tolist(), strict=True)), join="outer")
    rules = {"uniform": vf.LogLinearPool(weights="uniform", missing="renormalise")}
    board = vf.leaderboard(stack, rules=rules)
    assert (board.entry("x3d").score.n, board.entry("swin").score.n) == (80, 100)
    assert board.entry("x3d").score.accuracy == pytest.approx((z["x3d"].argmax(axis=1) == y[:80]).mean())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vf.leaderboard(VAL, rules={}), "rules: expected at least one"),
        (lambda: vf.leaderboard(VAL, rules={"swin": vf.MajorityVote()}), "another name than the members"),
        (lambda: vf.leaderboard(VAL, folds=1), "folds: expected 2"),
        (lambda: vf.leaderboard(VAL).entry("absent"), "got 'absent'"),
        (lambda: board_of(VAL, {}, Protocol(1, 240, 0)), "predictions: expected at least one"),
        (lambda: combination_table(VAL, combinations=[[]]), "expected at least one member in each"),
        (lambda: combination_table(VAL, combinations=[["swin", "absent"]]), "absent"),
    ],
)
def test_bad_input_says_what_was_expected(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_row_18_missing_labels_name_the_split():
    bare = vf.LogitStack.from_arrays({name: VAL.scores(name) for name in VAL.members})
    with pytest.raises(InputError, match=r"a leaderboard needs labels, and the stack has none"):
        vf.leaderboard(bare)
    with pytest.raises(InputError, match=r"the test stack has none"):
        vf.leaderboard(VAL, bare)
    with pytest.raises(InputError, match=r"a combination table needs labels"):
        combination_table(bare)


def test_combinations_grow_by_the_score_of_the_fit():
    table = combination_table(VAL, TEST)
    assert [row.members for row in table.rows] == [
        ("swin",),
        ("x3d",),
        ("tin",),
        ("swin", "x3d"),
        ("swin", "x3d", "tin"),
    ]
    assert [row[0] for row in table.table().rows] == ["swin", "x3d", "tin", "swin + x3d", "… + tin"]
    best = [max(score.accuracy for score in row.scores.values()) for row in table.rows]
    assert table.table().strong == {best.index(max(best))}
    assert "240 others" in str(table) and "IN-SAMPLE" not in str(table)
    assert "IN-SAMPLE" in str(combination_table(VAL, folds=0))


def test_equal_members_grow_by_name_however_they_are_listed():
    y = np.arange(20) % 2
    stack = vf.LogitStack.from_arrays(dict.fromkeys("bca", 3.0 * np.eye(2)[y]), labels=y)
    for members in ("abc", "cab"):
        assert growing(stack.select(list(members)))[3:] == [["a", "b"], ["a", "b", "c"]]


def test_combinations_are_scored_as_the_method_says():
    table = combination_table(VAL, TEST)
    z = {name: log_softmax(TEST.scores(name).astype(np.float64), axis=1) for name in MEMBERS}
    w = {name: (VAL.scores(name).argmax(axis=1) == VAL.labels).mean() for name in MEMBERS}
    for row in table.rows:
        uniform = sum(z[name] for name in row.members)
        weighted = sum(w[name] * z[name] for name in row.members)
        votes = sum(np.eye(4)[z[name].argmax(axis=1)] for name in row.members) + 1e-6 * uniform
        for rule, scores in (("uniform", uniform), ("score-weighted", weighted), ("vote", votes)):
            expected = (scores.argmax(axis=1) == TEST.labels).mean()
            assert row.scores[rule].accuracy == pytest.approx(expected), (row.members, rule)


@pytest.mark.filterwarnings("ignore:member 'stranger' does no better")
def test_members_that_agree_by_chance_only_are_combined_without_a_warning():
    """Beside a twin, a member agrees with the others; beside a stranger alone, it does not, and no row has moved."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, size=300)
    twin = rng.normal(size=(300, 4)) + 3 * np.eye(4)[y]
    members = {"a": twin, "b": twin + 0.1 * rng.normal(size=(300, 4)), "stranger": rng.normal(size=(300, 4))}
    stack = vf.LogitStack.from_arrays(members, labels=y)
    pool = vf.LogLinearPool(weights="uniform", missing="renormalise").fit(stack[:150])
    with pytest.warns(vf.errors.VidfuseWarning, match="agreed with the others"):
        pool.predict(stack[150:].select(["a", "stranger"]))
    combination_table(stack[:150], stack[150:], combinations=[["a", "stranger"]])
    moved = vf.LogitStack.from_arrays({**members, "a": np.r_[twin[:150], twin[:149:-1]]}, labels=y)
    with pytest.warns(vf.errors.VidfuseWarning, match="member 'a'"):
        combination_table(moved[:150], moved[150:])


def test_views_vote_members_first():
    val, test = make_stack(views=5, seed=6), make_stack(views=5, seed=7)
    table = combination_table(val, test)
    assert table.n_views == 5
    assert "5 views" in str(table)
    reduced = vf.reduce_views(val, "mean-log")
    w = {name: (reduced.scores(name).argmax(axis=1) == val.labels).mean() for name in MEMBERS}
    z = {name: log_softmax(test.scores(name).astype(np.float64), axis=2) for name in MEMBERS}
    for row in table.rows:
        fused = sum(w[name] * z[name] for name in row.members) / sum(w[name] for name in row.members)
        votes = np.eye(4)[fused.argmax(axis=2)].sum(axis=1)
        ties = log_softmax(log_softmax(fused, axis=2).mean(axis=1), axis=1)
        expected = ((votes + 0.5 * np.exp(ties)).argmax(axis=1) == test.labels).mean()
        assert row.scores["vote"].accuracy == pytest.approx(expected)


def test_views_vote_with_the_weights_of_their_fold_where_members_lack_videos():
    full = make_stack(seed=5, views=3)
    arrays = {name: full.scores(name) for name in full.members}
    lacking = {name: z[40 * (name == "x3d") :] for name, z in arrays.items()}
    ids = {name: full.ids[40 * (name == "x3d") :] for name in arrays}
    labels = dict(zip(full.ids.tolist(), full.labels.tolist(), strict=True))
    stack = vf.LogitStack.from_arrays(lacking, ids=ids, labels=labels, join="outer")
    table = combination_table(stack, combinations=[["x3d"], ["x3d", "tin"], ["tin", "swin"]])
    for row in table.rows:
        z = {name: log_softmax(arrays[name].astype(np.float64), axis=2) for name in row.members}
        has = {name: np.arange(240) >= (40 if name == "x3d" else 0) for name in row.members}
        known = np.any(list(has.values()), axis=0)
        right = np.zeros(240, bool)
        for fit, scored in split_folds(stack.labels, 5, None, 0, stack.ids):
            pool = vf.LogLinearPool(weights="accuracy", missing="renormalise").fit(
                vf.reduce_views(stack)[fit], stack.labels[fit]
            )
            weight = dict(zip(pool.members_, pool.weights_, strict=True))
            for video in scored[known[scored]]:
                heard = [name for name in row.members if has[name][video]]
                total = sum(weight[name] for name in heard)
                fused = sum(weight[name] / total * z[name][video] for name in heard)
                votes = np.bincount(fused.argmax(axis=1), minlength=4) + 0.5 * np.exp(log_softmax(fused.mean(axis=0)))
                right[video] = votes.argmax() == stack.labels[video]
        assert row.scores["vote"].n == known.sum()
        assert row.scores["vote"].accuracy == pytest.approx(right[known].mean())


def test_learned_and_own_rules_are_fitted_on_the_members_of_each_combination():
    rules = {
        "mine": vf.LogLinearPool(per_class=False),
        "given": vf.LogLinearPool(weights={"swin": 2, "x3d": 1, "tin": 1}),
    }
    table = combination_table(VAL, TEST, rules=rules)
    assert table.rules == ("mine", "given", "score-weighted", "uniform", "vote")
    for row in table.rows:
        single = row.scores["uniform"].accuracy if len(row.members) == 1 else None
        pool = vf.LogLinearPool(per_class=False).fit(VAL.select(row.members))
        expected = (pool.predict(TEST.select(row.members)) == TEST.labels).mean()
        assert row.scores["mine"].accuracy == (expected if single is None else single)
        assert (row.scores["given"] is None) == (len(row.members) == 2)  # it has weights for all three
    assert list(table.to_frame()["members"]) == [" + ".join(row.members) for row in table.rows]
    with pytest.raises(InputError, match="has 'vote' already; give yours another name"):
        combination_table(VAL, TEST, rules={"vote": vf.MajorityVote()})


def test_given_combinations_are_kept():
    table = combination_table(VAL, TEST, combinations=[["tin", "swin"], ["x3d"]])
    assert [row.members for row in table.rows] == [("tin", "swin"), ("x3d",)]
    assert table._repr_html_().count("<tr") == 3
