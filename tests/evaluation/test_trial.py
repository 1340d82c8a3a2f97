"""One judge: the same rule, videos, folds, groups and seed give the same number; videos of the fit are called so."""

from __future__ import annotations

import re

import numpy as np
import pytest
from selection_cases import ensemble, stack_of

import vidfuse as vf
from vidfuse.errors import InputError
from vidfuse.evaluation.trial import Protocol, open_trial, shared_videos
from vidfuse.fusion._solver import shared
from vidfuse.report import combination_table

IDS = [f"v{i}" for i in range(120)]
OBJECTIVES = {
    "accuracy": lambda score: score.accuracy,
    "mean-class-accuracy": lambda score: score.mean_class_accuracy,
    "nll": lambda score: score.nll,
}


def hard_stack(seed, n=120, **options):
    """Members that are often wrong, so that no two rules or splits agree by luck."""
    z, y = ensemble(seed, n=n, m=4, k=5, signal=2.0)
    return stack_of(z + np.random.default_rng(seed).normal(size=(n, 1, 5)), y, **options)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_same_rule_gets_the_same_number_wherever_it_is_printed(seed, grouped, tmp_path, monkeypatch):
    monkeypatch.setattr("vidfuse.report.html._MOST_FITS", 0)  # no contributions and combinations of the headline rule
    stack = hard_stack(seed, ids=IDS)
    options = {"folds": 3 + seed, "groups": np.arange(120) // 3 if grouped else None, "random_state": seed}
    rules = {"learned": vf.LogLinearPool(), "score-weighted": vf.LogLinearPool(weights="accuracy")}
    board = vf.leaderboard(stack, rules=rules, **options)
    combined = combination_table(stack, **options).rows[-1].scores
    page = vf.write_report(stack, tmp_path / "report.html", rules=rules, curves=False, **options)
    assert f"<h1>{board.headline()}</h1>" in re.sub("</?span[^>]*>", "", page.read_text(encoding="utf-8"))
    assert combined["score-weighted"].accuracy == board.entry("score-weighted").score.accuracy
    for objective, value in OBJECTIVES.items():
        compared = vf.compare(rules, stack, objective=objective, n_resamples=20, **options)
        for name, rule in rules.items():
            honest = vf.honest_score(rule, stack, repeats=1, objective=objective, n_resamples=20, **options)
            assert honest.score == compared.scores[name] == value(board.entry(name).score)
    other = vf.leaderboard(stack, rules=rules, **{**options, "random_state": seed + 1})
    assert other.entry("learned").score.nll != board.entry("learned").score.nll


def test_equal_rules_share_their_copies_and_others_do_not():
    trial = open_trial(hard_stack(1, ids=IDS), folds=3)
    copies = trial.fit(vf.LogLinearPool(per_class=True))
    assert trial.fit(vf.LogLinearPool(per_class=True)) is copies
    for other in (vf.LogLinearPool(per_class=1.0), vf.LogLinearPool(per_class=1), vf.LinearPool()):
        assert trial.fit(other) is not copies
    given = [vf.LinearPool(weights=[1, 2, 3, 4]), vf.LinearPool(weights=[4, 3, 2, 1])]
    assert trial.fit(given[0])[0].weights_[0] < trial.fit(given[1])[0].weights_[0]
    nested = [vf.Calibrated(vf.LinearPool(weights=name)) for name in ("accuracy", "uniform")]
    assert (trial.fit(nested[0])[0].rule_.weights_ != trial.fit(nested[1])[0].rule_.weights_).any()
    assert trial.reduced("mean-log") is trial
    some = trial.of(["m2", "m0"])
    assert some.fit(vf.LogLinearPool(per_class=True)) is not copies
    assert trial.of(["m0", "m2"]) is some and trial.of(trial.fit_stack.members[::-1]) is trial


@pytest.mark.parametrize("groups", [None, np.arange(120) // 3])
def test_the_order_of_the_rows_has_no_say(groups):
    stack = hard_stack(7, ids=IDS)
    order = np.random.default_rng(0).permutation(120)
    rule = vf.LogLinearPool()
    first = vf.honest_score(rule, stack, objective="nll", groups=groups)
    again = vf.honest_score(rule, stack[order], objective="nll", groups=None if groups is None else groups[order])
    assert again.score == pytest.approx(first.score, abs=1e-9)


def test_groups_are_kept_whole_and_said():
    stack = hard_stack(1, ids=IDS)
    groups = np.arange(120) // 10
    trial = open_trial(stack, folds=4, groups=groups)
    for fit, rest in trial.splits:
        assert not set(groups[fit]) & set(groups[rest])
    assert "(4 folds, none of 12 groups split)" in trial.protocol.how()
    assert "none of 12 groups split" in str(vf.leaderboard(stack, groups=groups))
    found = vf.leaderboard(stack, groups=groups).to_dict()
    assert (found["protocol"], found["n_groups"], found["folds"], found["n_shared"]) == ("cross-fitted", 12, 5, 0)
    assert vf.leaderboard(stack.with_groups(groups)).to_dict() == found
    with pytest.raises(InputError, match="groups: expected one name for each of 120 videos"):
        vf.leaderboard(stack, groups=[1, 2])


@pytest.mark.parametrize(
    ("fit", "scored", "name", "n_shared"),
    [
        (slice(0, 60), slice(60, 120), "held-out", 0),
        (slice(0, 60), slice(0, 60), "in-sample", 60),
        (slice(0, 60), slice(10, 50), "in-sample", 40),
        (slice(0, 60), slice(0, 61), "partly in-sample", 60),
        (slice(0, 60), slice(59, 120), "partly in-sample", 1),
    ],
)
@pytest.mark.parametrize("ids", [IDS, None])
def test_row_63_videos_of_the_fit_are_counted_and_called_in_sample(fit, scored, name, n_shared, ids):
    stack = hard_stack(2, ids=ids)
    board = vf.leaderboard(stack[fit], stack[scored])
    n = len(stack[scored])
    assert (board.protocol, board.how_scored.n_shared) == (name, n_shared)
    table = combination_table(stack[fit], stack[scored])
    assert table.how_scored == board.how_scored and table.in_sample == (n_shared > 0)
    text = str(board)
    if name == "held-out":
        assert f"fitted on 60 videos and scored on {n} others" in text and "in-sample" not in text.lower()
    elif name == "in-sample":
        assert f"IN-SAMPLE: the {n} videos that are scored are videos of the fit" in text
        assert " (in-sample)." in board.headline()
    else:
        assert f"scored on {n}: {n_shared} of {n} were in the fit" in text
        assert f"({n_shared} of {n} videos in-sample)." in board.headline()
    assert ("Order unchecked" in text) == (ids is None)


def test_ids_decide_even_where_the_numbers_differ():
    first, second = hard_stack(2, ids=IDS), hard_stack(3, ids=IDS)
    assert vf.leaderboard(first, second).protocol == "in-sample"
    renamed = hard_stack(2, ids=[f"w{i}" for i in range(120)])
    assert vf.leaderboard(first, renamed).protocol == "held-out"


def test_without_ids_equal_numbers_tell_and_others_are_not_called_others():
    assert shared_videos(hard_stack(2), hard_stack(2)) == 120
    assert shared_videos(hard_stack(2, ids=IDS), hard_stack(2)) == 120
    assert shared_videos(hard_stack(2), hard_stack(3)) is None
    assert shared_videos(hard_stack(2), hard_stack(2)[:100]) is None  # another source: not looked into
    changed = {name: hard_stack(2).scores(name).copy() for name in ("m0", "m1", "m2", "m3")}
    changed["m3"][5] += 1
    assert shared_videos(hard_stack(2), vf.LogitStack.from_arrays(changed)) is None
    for half in (
        vf.leaderboard(hard_stack(2, ids=IDS), hard_stack(3)),
        vf.leaderboard(hard_stack(2), hard_stack(3, ids=IDS)),
    ):
        assert not half.how_scored.order_checked
    text = str(vf.leaderboard(hard_stack(2), hard_stack(3)))
    assert "scored on 120; whether some are in both is not known" in text and "others" not in text


def test_the_page_warns_of_videos_of_the_fit(tmp_path):
    stack = hard_stack(2, ids=IDS)
    page = vf.write_report(stack[:60], tmp_path / "report.html", test=stack[:61]).read_text(encoding="utf-8")
    top = page.split("<main>")[0]
    assert '<p class="warning">PARTLY IN-SAMPLE: ' in top and "60 of 61 videos in-sample" in top
    page = vf.write_report(stack[:60], tmp_path / "report.html", test=stack[60:]).read_text(encoding="utf-8")
    assert not re.search("in-sample", page, re.IGNORECASE)


def test_what_is_chosen_on_the_scored_videos_is_not_said_to_be_chosen_on_the_fit():
    stack = hard_stack(2, ids=IDS)
    assert vf.leaderboard(stack[:60], stack[60:]).chosen_on == "the videos of the fit"
    assert vf.leaderboard(stack[:60], stack[59:]).chosen_on == "the videos of the fit"
    assert vf.leaderboard(stack).chosen_on == vf.leaderboard(stack, folds=0).chosen_on == "these videos"


def test_the_protocol_is_plain_json():
    assert Protocol(10, 5, 0).to_dict() == {
        "protocol": "held-out",
        "n_fit": 10,
        "n_scored": 5,
        "n_shared": 0,
        "folds": 0,
        "n_groups": None,
        "n_scored_groups": None,
        "n_related": 0,
        "order_checked": True,
    }


def test_views_are_reduced_on_both_sides_and_once_where_both_are_one():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20, 2, 3, 4))
    views = vf.LogitStack.from_arrays(z, labels=rng.integers(0, 4, 20), ids=IDS[:20])
    whole = open_trial(views, folds=2).reduced("vote")
    assert whole.scored is whole.fit_stack
    halves = open_trial(views[:10], views[10:]).reduced("vote")
    expected = vf.reduce_views(views, "vote").log_likelihoods()
    np.testing.assert_array_equal(halves.fit_stack.log_likelihoods(), expected[:10])
    np.testing.assert_array_equal(halves.scored.log_likelihoods(), expected[10:])


def test_views_are_reduced_on_the_side_that_has_them():
    rng = np.random.default_rng(0)
    stack = vf.LogitStack.from_arrays({"a": rng.normal(size=(20, 3, 4))}, labels=np.arange(20) % 4, ids=IDS[:20])
    whole = vf.reduce_views(stack, "vote")
    for trial in (open_trial(stack[:10], whole[10:]), open_trial(whole[:10], stack[10:])):
        reduced = trial.reduced("vote")
        np.testing.assert_array_equal(reduced.fit_stack.scores("a"), whole[:10].scores("a"))
        np.testing.assert_array_equal(reduced.scored.scores("a"), whole[10:].scores("a"))


def test_a_trial_of_some_members_keeps_the_videos_that_they_have():
    stack = hard_stack(5, ids=IDS)
    z = {"m0": stack.scores("m0"), "m1": stack.scores("m1")[:70], "m2": stack.scores("m2")[60:]}
    ids = {"m0": IDS, "m1": IDS[:70], "m2": IDS[60:]}
    labels = dict(zip(IDS, stack.labels.tolist(), strict=True))
    partial = vf.LogitStack.from_arrays(z, ids=ids, labels=labels, join="outer")
    trial = open_trial(partial, folds=4)
    one = trial.select(["m1"])
    np.testing.assert_array_equal(one.scored.ids, IDS[:70])
    np.testing.assert_array_equal(one.labels, stack.labels[:70])
    for (fit, rest), (same_fit, few) in zip(trial.splits, one.splits, strict=True):
        np.testing.assert_array_equal(fit, same_fit)
        assert one.scored.ids[few].tolist() == [name for name in partial.ids[rest] if name in IDS[:70]]
    copies = trial.fit(vf.LogLinearPool(weights="accuracy", missing="renormalise"))
    np.testing.assert_allclose(one.predict(copies), one.scored.log_likelihoods()[:, 0], atol=1e-6)


def test_fits_of_one_trial_calibrate_a_member_once_and_are_those_that_each_would_be_alone(monkeypatch):
    searched = []
    search = shared.member_scales
    monkeypatch.setattr(shared, "member_scales", lambda x, *rest: searched.extend(x.members) or search(x, *rest))
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    arrays = {name: rng.normal(size=(90, 3)) + 2 * np.eye(3)[y] for name in "abc"}
    stack = vf.LogitStack.from_arrays(arrays, labels=y, ids=[f"v{i}" for i in range(90)])
    trial, pool = open_trial(stack, folds=2), vf.LogLinearPool()
    found = {members: trial.of(members).fit(pool) for members in ("abc", "ab", "bc", "ac")}
    assert len(searched) == 2 * 3  # in each fold each member
    for members, copies in found.items():
        for copy, (rows, _) in zip(copies, trial.splits, strict=True):
            alone = vf.LogLinearPool().fit(stack.select(list(members))[rows])
            np.testing.assert_array_equal(copy.scale_, alone.scale_)
            np.testing.assert_array_equal(copy.weights_, alone.weights_)
    assert len(searched) == 2 * 3 + 2 * (3 + 2 + 2 + 2)  # alone, nothing is shared
