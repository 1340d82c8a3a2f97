from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_cases import ensemble, stack_of

import vidfuse as vf
from vidfuse.selection import rivals
from vidfuse.selection.rivals import find_rivals
from vidfuse.selection.subset_hits import lay_out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 8), st.booleans(), st.booleans())
def test_no_class_that_can_win_is_dropped(seed, m, k, ties, linear):
    z, y = ensemble(seed, n=12, m=m, k=k, ties=ties)
    stack = stack_of(z, y)
    found = find_rivals(stack, y, np.zeros(m), linear=linear)
    log_p = stack.log_likelihoods().astype(float)
    values = np.exp(log_p) if linear else log_p
    rng = np.random.default_rng(seed)
    for weights in [*np.eye(m), np.ones(m), *rng.dirichlet(np.ones(m), 20)]:
        winner = np.einsum("m,nmk->nk", weights, values).argmax(1)
        for n in np.flatnonzero(winner != y):
            rivals = found.classes[found.rows == n]
            assert not found.right[n]
            if len(rivals):  # the pruned race has the same outcome: some rival is at or above the true class
                margin = (found.margins[:, found.rows == n] * weights[:, None].astype(np.float32)).sum(0).max()
                assert margin > -1e-4
        assert not found.right[winner != y].any()


def test_right_and_wrong_for_any_weights():
    z = np.array([[[5, 1, 0], [4, 2, 1]], [[0, 1, 9], [0, 1, 9]], [[3, 1, 0], [0, 3, 1]]], np.float32)
    y = np.array([0, 0, 0])
    found = find_rivals(stack_of(z, y), y, np.zeros(2), linear=False)
    assert found.right.tolist() == [True, False, False]
    assert found.rows.tolist() == [2] and found.classes.tolist() == [1]
    assert repr(found) == "Rivals(1 rivals in 1 undecided of 3 videos)"


def test_ties_in_every_member_go_to_the_lower_class():
    z = np.zeros((3, 2, 3), np.float32)
    y = np.array([0, 1, 2])
    found = find_rivals(stack_of(z, y), y, np.zeros(2), linear=False)
    assert found.right.tolist() == [True, False, False]
    assert len(found.rows) == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_layout_by_slots_is_a_permutation_that_keeps_videos_together(seed):
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice([3, 5, 8, 9, 20], size=30))
    videos, offsets, columns = lay_out(rows)
    assert sorted(columns) == list(range(30))
    laid = np.empty(30, int)
    laid[columns] = rows
    for slot in range(len(offsets) - 1):
        part = laid[offsets[slot] : offsets[slot + 1]]
        assert part.tolist() == videos[: len(part)].tolist()


@pytest.mark.parametrize("linear", [False, True])
def test_blocks_and_threads_change_nothing(monkeypatch, linear):
    z, y = ensemble(3, n=100, m=3, k=8)
    stack = stack_of(z, y)
    whole = find_rivals(stack, y, np.zeros(3), linear=linear)
    monkeypatch.setattr(rivals, "_NUMBERS", 120)
    pieces = find_rivals(stack, y, np.zeros(3), linear=linear)
    for name in ("right", "rows", "classes", "margins"):
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))
    assert 0 < pieces.rounding <= whole.rounding


def test_a_class_below_a_mean_of_two_in_every_member_is_dropped():
    z = np.array([[[4.0, 0.0, 1.5], [0.0, 4.0, 1.5]]], np.float32)  # 1.5 < (4 + 0) / 2, beaten by neither alone
    found = find_rivals(stack_of(z, [0]), np.array([0]), np.zeros(2), linear=False)
    assert found.classes.tolist() == [1]


@pytest.mark.parametrize("offset", [0.0, 5e3])
@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("vetoes", [False, True])
def test_no_clear_winner_is_dropped_among_large_logits_and_vetoes(scale, offset, vetoes):
    z, y = ensemble(7, n=300, m=4, k=12)
    z = z * np.float32(scale) + np.float32(offset)
    rng = np.random.default_rng(7)
    if vetoes:
        z[rng.random(z.shape) < 0.05] = -np.inf
        z[np.isneginf(z).all(axis=2)] = 0
    found = find_rivals(stack_of(z, y, kind="logits"), y, np.zeros(4), linear=False)
    values = np.maximum(z.astype(float), -1e30)
    checked = 0
    for weights in [*np.eye(4), *rng.dirichlet(np.ones(4), 30)]:
        pooled = np.einsum("m,nmk->nk", weights, values)
        winner, ordered = pooled.argmax(1), np.sort(pooled, axis=1)
        clear = ordered[:, -1] - ordered[:, -2] > 1e-2
        assert not found.right[clear & (winner != y)].any()
        for n in np.flatnonzero(clear & np.isin(np.arange(300), found.rows)):
            assert winner[n] == y[n] or winner[n] in found.classes[found.rows == n]
            checked += 1
    assert checked > 3000


def test_a_large_number_common_to_all_classes_changes_no_search():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 120)
    z = rng.normal(size=(120, 4, 5)) + np.linspace(0.5, 2.3, 4)[:, None] * np.eye(5)[y][:, None]
    plain = vf.search_subsets(vf.LogitStack.from_arrays(z, labels=y), "accuracy", vf.LogLinearPool("uniform"))
    moved = vf.LogitStack.from_arrays(z + 1e9, labels=y)
    found = vf.search_subsets(moved, "accuracy", vf.LogLinearPool("uniform"))
    assert (found.members, found.score) == (plain.members, plain.score)
    part = moved.select(found.members)
    assert vf.LogLinearPool("uniform").fit(part).score(part) == found.score


@pytest.mark.parametrize("linear", [False, True])
def test_vetoes_by_all_members_and_scores_beyond_float32_raise_no_warning(linear):
    z, y = ensemble(3, n=30, m=3, k=4)
    vetoed = np.where(z == z.max(axis=2, keepdims=True), 0.0, -np.inf)  # each member names one class
    for scores in (vetoed, 1e200 * z.astype(np.float64)):
        found = find_rivals(stack_of(scores, y), y, np.zeros(3), linear=linear)
        assert found.right.tolist() == (scores.argmax(axis=2) == y[:, None]).all(axis=1).tolist()
