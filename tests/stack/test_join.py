"""Folds, shards and repeated predictions, rows without a prediction, and ids that look the same."""

from __future__ import annotations

import itertools
import pickle
import warnings

import numpy as np
import pandas as pd
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vidfuse as vf
from vidfuse.errors import AlignmentError, InputError, VidfuseWarning


def stack_of(rows, ids=True, members=("a", "b"), seed=0, **options):
    """Some rows of one large stack, so that what belongs together is known."""
    rng = np.random.default_rng(seed)
    z = {name: rng.normal(size=(40, 5)).astype(np.float32) for name in ("a", "b")}
    y = rng.integers(0, 5, 40)
    return vf.LogitStack.from_arrays(
        {name: z[name][rows] for name in members},
        labels=y[rows],
        ids=[f"v{row}" for row in rows] if ids else None,
        **options,
    )


@settings(max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.randoms(use_true_random=False), st.booleans())
def test_stacks_one_after_another_are_the_whole(sizes, random, ids):
    rows = list(range(40))
    random.shuffle(rows)
    edges = np.cumsum([0, *sizes])
    parts = [stack_of(rows[a:b], ids) for a, b in itertools.pairwise(edges) if rows[a:b]]
    n = min(40, int(edges[-1]))
    joined, whole = vf.LogitStack.concatenate(parts), stack_of(rows[:n], ids)
    assert joined.shape == whole.shape
    np.testing.assert_array_equal(joined.labels, whole.labels)
    if ids:
        np.testing.assert_array_equal(joined.ids, whole.ids)
    chosen = [random.randrange(n) for _ in range(7)]
    for key in (slice(None), slice(1, n - 1), slice(None, None, 2), chosen):
        if not len(range(n)[key] if isinstance(key, slice) else key):
            continue
        for name in ("a", "b"):
            np.testing.assert_array_equal(joined[key].scores(name), whole[key].scores(name))
        np.testing.assert_array_equal(joined.log_likelihoods(key), whole.log_likelihoods(key))
    again = pickle.loads(pickle.dumps(joined[1:] if n > 1 else joined))
    np.testing.assert_array_equal(again.scores("b"), whole[1:].scores("b") if n > 1 else whole.scores("b"))


def test_members_and_classes_in_another_order_are_put_right():
    names = list("vwxyz")
    first = stack_of(range(10), classes=names)
    other = stack_of(range(10, 20), members=("b", "a"), classes=names)
    turned = vf.LogitStack.from_arrays(
        {name: other.scores(name)[:, ::-1] for name in ("b", "a")},
        labels=4 - other.labels,
        ids=other.ids,
        classes=names[::-1],
    )
    joined, whole = vf.LogitStack.concatenate([first, turned]), stack_of(range(20))
    np.testing.assert_array_equal(joined.labels, whole.labels)
    for name in ("a", "b"):
        np.testing.assert_array_equal(joined.scores(name), whole.scores(name))


def test_classes_are_put_right_where_the_first_stack_has_no_names():
    names = list("vwxyz")
    plain, named, other = (stack_of(range(5 * i, 5 * i + 5)) for i in range(3))
    arrays = [{name: stack.scores(name) for name in "ab"} for stack in (named, other)]
    named = vf.LogitStack.from_arrays(arrays[0], labels=named.labels, ids=named.ids, classes=names)
    turned = vf.LogitStack.from_arrays(
        {name: own[:, ::-1] for name, own in arrays[1].items()},
        labels=4 - other.labels,
        ids=other.ids,
        classes=names[::-1],
    )
    with pytest.warns(VidfuseWarning, match="'stack 0' has no class names, and others have"):
        joined = vf.LogitStack.concatenate([plain, named, turned])
    whole = stack_of(range(15))
    assert joined.classes == tuple(names)
    np.testing.assert_array_equal(joined.labels, whole.labels)
    np.testing.assert_array_equal(joined.scores("a"), whole.scores("a"))


def test_presence_and_groups_are_kept():
    first = stack_of(range(5)).with_groups(["g"] * 5)
    z = {"a": first.scores("a"), "b": first.scores("b")[:3]}
    lacking = vf.LogitStack.from_arrays(
        z, labels=first.labels, ids={"a": [f"w{i}" for i in range(5)], "b": ["w0", "w1", "w2"]}, join="outer"
    ).with_groups(["h"] * 5)
    joined = vf.LogitStack.concatenate([first, lacking])
    assert joined.present[:, 1].tolist() == [True] * 8 + [False] * 2
    assert joined.groups.tolist() == ["g"] * 5 + ["h"] * 5
    assert np.isnan(joined.scores("b")[8:]).all()


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ([], InputError, "at least one stack"),
        (
            [stack_of(range(5)), stack_of(range(4, 9))],
            InputError,
            "1 video stands both in stack 0 and in stack 1: 'v4'",
        ),
        ([stack_of(range(5)), stack_of(range(5, 9), ids=False)], InputError, "'stack 1' has no ids"),
        ([stack_of(range(5)), stack_of(range(5, 9)).select(["a"])], AlignmentError, "the same members"),
        ([stack_of(range(5)), stack_of(range(5, 9), kind="log-likelihoods")], AlignmentError, "member 'a': expected"),
    ],
)
def test_stacks_that_do_not_belong_together_are_refused(parts, error, message):
    with pytest.raises(error, match=message):
        vf.LogitStack.concatenate(parts)


def test_repeats_are_averaged_by_id():
    parts = [stack_of(rows, seed=0) for rows in (range(10), range(10, 20))]
    again = [stack_of(rows, seed=0)[::-1] for rows in (range(0, 20, 2), range(1, 20, 2))]
    joined = vf.LogitStack.concatenate([*parts, *again], repeats="mean-probability")
    whole = stack_of(range(20))
    assert joined.ids.tolist() == whole.ids.tolist()
    np.testing.assert_array_equal(joined.labels, whole.labels)
    np.testing.assert_allclose(joined.log_likelihoods(), whole.log_likelihoods(), atol=1e-6)
    p = [np.exp(stack_of(range(20), seed=s).log_likelihoods()) for s in (0, 1)]
    first, second = stack_of(range(20)), stack_of(range(20), seed=1)
    second = vf.LogitStack.from_arrays({m: second.scores(m) for m in ("a", "b")}, labels=first.labels, ids=first.ids)
    mixed = vf.LogitStack.concatenate([first, second], repeats="mean-probability")
    np.testing.assert_allclose(np.exp(mixed.log_likelihoods()), (p[0] + p[1]) / 2, atol=1e-6)
    with pytest.raises(AlignmentError, match="1 predictions of most and another number of 1: 'v0'"):
        vf.LogitStack.concatenate([stack_of(range(10)), stack_of([0])], repeats="mean-log")
    with pytest.raises(AlignmentError, match=r"the labels of 2 of 2 videos differ .*: 'v0'"):
        vf.LogitStack.concatenate([stack_of([0, 1]), stack_of([0, 1], seed=1)], repeats="mean-log")


def with_blanks(value, rows=(3, 7), n=20):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), n)
    q = rng.dirichlet(np.ones(4), n)
    q[list(rows)] = value
    return p, q, rng.integers(0, 4, n), [f"v{i}" for i in range(n)]


@pytest.mark.parametrize("value", [np.nan, 0.0])
@pytest.mark.parametrize("ids", [True, False])
def test_rows_without_a_prediction_are_named_left_out_or_kept(value, ids):
    p, q, y, names = with_blanks(value)
    given = {"labels": y, "ids": names if ids else None, "kind": "probabilities"}
    where = "id 'v3'" if ids else "row 3"
    with pytest.raises(InputError, match=f"member 'b': no prediction .* for 2 of 20 videos: {where}.*leave-out"):
        vf.LogitStack.from_arrays({"a": p, "b": q}, **given)
    rest = [i for i in range(20) if i not in (3, 7)]
    with pytest.warns(VidfuseWarning, match="2 of 20 videos.*left out"):
        left = vf.LogitStack.from_arrays({"a": p, "b": q}, missing="leave-out", **given)
    np.testing.assert_array_equal(left.scores("b"), q[rest])
    np.testing.assert_array_equal(left.scores("a"), p[rest])
    np.testing.assert_array_equal(left.labels, y[rest])
    kept = vf.LogitStack.from_arrays({"a": p, "b": q}, missing="keep", **given)
    assert np.flatnonzero(~kept.present[:, 1]).tolist() == [3, 7]
    np.testing.assert_array_equal(kept.scores("b")[rest], q[rest])
    fused = vf.LogLinearPool(weights="uniform", missing="renormalise").fit(kept).predict_proba(kept)
    np.testing.assert_allclose(fused[[3, 7]], p[[3, 7]], atol=1e-3)


def test_a_member_without_any_prediction_is_refused_whatever_is_said():
    p, q, _, _ = with_blanks(np.nan, range(20))
    with pytest.raises(InputError, match="20 of 20 videos"):
        vf.LogitStack.from_arrays({"a": p, "b": q}, kind="probabilities", missing="leave-out")


def test_rows_of_zero_logits_are_a_warning_where_they_look_forgotten():
    z = np.random.default_rng(0).normal(size=(60, 4))
    z[[5, 6]] = 0
    with pytest.warns(VidfuseWarning, match="2 of 60 videos: row 5, row 6; equal logits"):
        stack = vf.LogitStack.from_arrays({"a": z})
    assert len(stack) == 60
    with pytest.warns(VidfuseWarning, match="left out"):
        assert len(vf.LogitStack.from_arrays({"a": z}, missing="leave-out")) == 58
    vf.LogitStack.from_arrays({"a": np.round(z)})  # zeros everywhere are meant


@pytest.mark.parametrize(("how", "other"), [("bfloat16", None), ("%.4f", 4)])
def test_rounded_probabilities_are_taken_with_a_note_and_never_as_logits(how, other):
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.full(400, 0.3), 100)
    if how == "bfloat16":  # eight bits of precision
        rounded = (p.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    else:
        rounded = np.round(p, other)
    worst = np.abs(rounded.sum(axis=1) - 1).max()
    assert 1e-3 < worst < 5e-3
    with pytest.warns(VidfuseWarning, match="sum to 1 within .* divided by their sums"):
        stack = vf.LogitStack.from_arrays({"a": rounded}, kind="probabilities")
    kept = rounded[0] > 0
    expected = rounded[0, kept].astype(float) / rounded[0].sum(dtype=float)
    np.testing.assert_allclose(np.exp(stack.log_likelihoods()[0, 0, kept]), expected, rtol=1e-5)
    with pytest.raises(InputError, match='say kind="probabilities"'):
        vf.LogitStack.from_arrays({"a": rounded}, kind="logits")


@pytest.mark.parametrize(
    ("ids", "how"),
    [
        (["café", "b"], "in their Unicode form, such as 'café' and"),
        (["cafe\u0301.mp4", "b.mp4"], "in the suffix of a file"),
        (["x/caf\u00e9.avi", "y/b.avi"], "in folders or the suffix"),
    ],
)
def test_ids_that_look_the_same_are_said_to_differ_in_form(ids, how):
    z = 3.0 * np.eye(2)
    other = ["caf\u00e9", "b"]
    first = ["cafe\u0301", "b"] if how.startswith("in their") else ids
    with pytest.raises(AlignmentError, match=how):
        vf.LogitStack.from_arrays({"a": z, "b": z}, ids={"a": other, "b": first})
    with pytest.raises(AlignmentError, match="lacks 2"):
        vf.LogitStack.from_arrays({"a": z, "b": z}, ids={"a": ["00012", "b"], "b": ["12", "c"]})


def test_ids_that_have_nothing_in_common_are_not_to_be_joined():
    z = np.zeros((3, 2))
    with pytest.raises(AlignmentError, match="no two members have a video in common: compare how their ids are made"):
        vf.LogitStack.from_arrays({"a": z, "b": z}, ids={"a": ["x", "y", "z"], "b": ["v_x", "v_y", "v_z"]})
    with pytest.raises(AlignmentError, match="they differ only in zeros before a number, such as '1' and '001'"):
        vf.LogitStack.from_arrays({"a": z, "b": z}, ids={"a": ["0", "1", "12"], "b": ["001", "000", "012"]})


@pytest.mark.parametrize("ids", [["a", "b", "c"], [12, 10, 11], [2, 0, 1]])
def test_an_index_of_pandas_that_has_the_ids_in_another_order_is_refused(ids):
    z = 2 * np.eye(3)
    frame, labels = pd.DataFrame(z, index=ids), pd.Series([0, 1, 2], index=ids)
    turned = frame.loc[::-1], labels.loc[::-1]
    expected = rf"expected rows in the order of the ids, '{ids[0]}', '{ids[1]}'.*\.loc\[ids\]"
    for scores, own, what in ((frame, turned[1], "labels"), (turned[0], labels, "member 'm'")):
        with pytest.raises(InputError, match=f"{what}: {expected}"):
            vf.LogitStack.from_arrays({"m": scores}, labels=own, ids=ids)
    stack = vf.LogitStack.from_arrays({"m": turned[0].loc[ids]}, labels={"m": labels}, ids=ids)
    assert stack.labels.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=f"groups: {expected}"):
        stack.with_groups(turned[1])
    assert stack.with_groups(labels).groups.tolist() == ["0", "1", "2"]
    vf.LogitStack.from_arrays({"m": frame.reset_index(drop=True)}, labels=turned[1].reset_index(drop=True), ids=ids)


def test_a_column_of_pyarrow_is_an_array():
    """Its `index` is a method, no index."""
    labels = pyarrow.array([0, 1])
    stack = vf.LogitStack.from_arrays({"a": 2 * np.eye(2)}, labels=labels, ids=["x", "y"]).with_groups(labels)
    assert stack.labels.tolist() == [0, 1] and stack.groups.tolist() == ["0", "1"]


def test_a_matrix_is_an_array():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.asmatrix(np.eye(3) + 0.5)
    np.testing.assert_array_equal(vf.LogitStack.from_arrays({"a": matrix}).scores("a"), np.eye(3) + 0.5)
