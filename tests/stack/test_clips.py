"""Which ids look like clips of one source, and where that is said."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import vidfuse as vf
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.stack.clips import clips_of_one_source

UCF = [f"v_Run_g{g:02}_c{c:02}" for g in range(20) for c in range(4)]


@pytest.mark.parametrize(
    "ids",
    [
        UCF,
        [f"{name}.avi" for name in UCF],
        [f"videos/{name}.mp4" for name in UCF],
        [f"film{f}_run_f_nm_np1_ba_med_{c}" for f in "abcdefghijklmnop" for c in range(5)],
        [f"s{s:03}-{t:05}" for s in range(30) for t in (0, 300, 600)],
        [f"{s}_clip_{c}" for s in "abcdefghijklmnop" for c in range(3)],
    ],
)
def test_clips_of_one_source_are_seen(ids):
    n_sources, example = clips_of_one_source(ids, n_classes=5)
    assert n_sources >= 16 and len(example) > 1


@pytest.mark.parametrize(
    "ids",
    [
        [f"v{i}" for i in range(300)],
        [f"{i:05}" for i in range(300)],
        [f"{label}_{i}" for label in ("run", "kick", "jump", "walk", "sit") for i in range(60)],  # classes
        [f"{label}/{i:04}.mp4" for label in ("run", "kick", "jump", "walk", "sit") for i in range(60)],
        [f"{chr(97 + i % 26)}{chr(97 + i // 26)}Xq-{i}_000010_000020" for i in range(300)],  # one of each source
        [f"{a}{b}{c}" for a in "abcdef" for b in "ghijkl" for c in "mnopqr"],
        [f"g{g}_c{c}" for g in range(4) for c in range(50)],  # too few to tell
    ],
)
def test_other_ids_are_left_alone(ids):
    assert clips_of_one_source(ids, n_classes=5) is None


def stack_of_clips(ids=UCF):
    rng = np.random.default_rng(0)
    y = np.arange(len(ids)) // 4 % 5
    z = {name: rng.normal(size=(len(ids), 5)) + 2 * np.eye(5)[y] for name in "ab"}
    return vf.LogitStack.from_arrays(z, labels=y, ids=ids)


def source_of(name):
    return name.rsplit("_", 1)[0]


@pytest.mark.parametrize(
    "judge",
    [
        lambda stack, **options: vf.leaderboard(stack, **options),
        lambda stack, **options: vf.honest_score(vf.LogLinearPool(), stack, repeats=1, **options),
        lambda stack, **options: vf.compare({"a": vf.LogLinearPool(), "b": vf.MajorityVote()}, stack, **options),
        lambda stack, **options: vf.learning_curve(stack, sizes=[20], repeats=1, **options),
    ],
)
def test_row_64_every_judge_asks_for_groups(judge):
    stack = stack_of_clips()
    with pytest.warns(VidfuseWarning, match=r"80 ids look like clips of 20 sources.*groups="):
        judge(stack)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge(stack, groups=source_of)
        judge(stack, groups=UCF)  # each stands for itself, and it was said


def test_row_64_whatever_states_a_risk_asks_for_groups():
    stack = stack_of_clips([f"v_Run_g{g:02}_c{c:02}" for g in range(60) for c in range(4)])
    fit, later = stack[:120], stack[120:]
    grouped, of_groups = fit.with_groups(source_of), later.with_groups(source_of)
    recipe, own = (vf.Recipe.from_fitted(vf.LogLinearPool("uniform").fit(each), each) for each in (fit, grouped))
    known = own.with_record(grouped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vf.watch(known, of_groups)
        assert vf.refresh(own, of_groups, margin=0.2).recipe.record.groups is not None
        vf.Cascade(vf.LogLinearPool("uniform"), at_most=0.5).fit(grouped)
    for state in (
        lambda: recipe.with_record(fit),
        lambda: recipe.with_record(later),
        lambda: vf.refresh(recipe, later),
        lambda: vf.watch(recipe.with_record(fit), later),
        lambda: vf.Cascade(vf.LogLinearPool("uniform"), at_most=0.5).fit(fit),
    ):
        with pytest.warns(VidfuseWarning, match=r"120 ids look like clips of 30 sources.*groups="):
            state()
    for state in (lambda: own.with_record(fit), lambda: own.with_record(later), lambda: vf.refresh(own, later)):
        with (
            warnings.catch_warnings(),
            pytest.raises(InputError, match=r"the fit came in 30 groups, and these have none; say .* by groups="),
        ):
            warnings.simplefilter("error")  # what is refused is not warned of, too
            state()


def test_copies_of_a_rule_that_states_a_risk_do_not_ask_again():
    stack = stack_of_clips([f"v_Run_g{g:02}_c{c:02}" for g in range(60) for c in range(4)])
    with pytest.warns(VidfuseWarning) as said:
        vf.leaderboard(stack, rules={"cascade": vf.Cascade(vf.LogLinearPool("uniform"), at_most=0.5)}, n_resamples=50)
    assert [str(one.message)[:43] for one in said if "clips" in str(one.message)] == [
        "240 ids look like clips of 60 sources ('v_R"
    ]


def test_groups_stand_beside_every_interval():
    stack = stack_of_clips()
    board = vf.leaderboard(stack, groups=source_of)
    entry = board.entry(board.headline_rule)
    assert entry.interval.n_groups == entry.score.n_groups == entry.score.accuracy_interval.n_groups == 20
    assert board.how_scored.n_scored_groups == 20 and "20 groups" in str(board)
    assert entry.gain_over_average.interval.n_groups == 20
    found = vf.honest_score(vf.LogLinearPool(), stack, repeats=1, groups=source_of)
    assert found.n_groups == 20 and "20 groups" in repr(found)
    assert vf.compare({"a": vf.LogLinearPool(), "b": vf.MajorityVote()}, stack, groups=source_of).n_groups == 20
    assert vf.learning_curve(stack, sizes=[20], repeats=1, groups=source_of).points[0].interval.n_groups == 20


def test_groups_by_id_are_for_both_stacks():
    stack = stack_of_clips()
    board = vf.leaderboard(stack[:40], stack[40:], groups=source_of)
    assert (board.how_scored.n_scored_groups, board.how_scored.n_related) == (10, 0)
    split = vf.leaderboard(stack[::2], stack[1::2], groups=source_of)
    assert split.how_scored.n_related == 40
    assert "40 of the others share a group with the fit" in split.how()
