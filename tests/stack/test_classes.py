"""Members' classes: aligned by name, mapped, and found in another order by what is predicted."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp

import vidfuse as vf
from vidfuse.errors import AlignmentError, InputError, VidfuseWarning
from vidfuse.stack.classes import mapped_scores

K = 6
NAMES = [f"class {k}" for k in range(K)]


def scores_of(y, k=K, seed=0, signal=2.5):
    return np.random.default_rng(seed).normal(size=(len(y), k)) + signal * np.eye(k)[y]


def sample(n=300, k=K, seed=0):
    y = np.random.default_rng(seed + 100).integers(0, k, n)
    return y, scores_of(y, k, seed), scores_of(y, k, seed + 1)


@pytest.mark.parametrize("seed", [7, 13, 32])
def test_copies_of_a_weak_members_rows_are_no_evidence(seed):
    """Many copies of a few videos say no more than one of each; each of these seeds was warned of when they counted."""
    rng = np.random.default_rng(seed)
    k, n, copies = (int(rng.integers(*ends)) for ends in ((5, 30), (60, 200), (5, 30)))
    y = rng.integers(0, k, n)
    good, weak = (rng.normal(size=(n, k)) + s * np.eye(k)[y] for s in (4.0, rng.uniform(0.5, 2.0)))
    rows = np.concatenate([np.arange(n), np.repeat(rng.permutation(n)[: int(rng.integers(4, 20))], copies)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", VidfuseWarning)
        vf.LogitStack.from_arrays({"good": good[rows], "weak": weak[rows]}, labels=y[rows])


def test_the_rows_that_are_named_are_those_of_the_whole_stack():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 20, 600)
    logits = {name: rng.normal(size=(600, 20)) + 4 * np.eye(20)[y] for name in "ab"}
    rows = np.concatenate([np.zeros(400, int), np.arange(600)])  # the first video 401 times
    moved = logits["b"].copy()
    moved[300:] = moved[300:][rng.permutation(300)]
    with pytest.warns(VidfuseWarning, match=r"member 'b' is right only by chance in the rows (6[6-9]|7[0-3])\d to 999"):
        vf.LogitStack.from_arrays({"a": logits["a"][rows], "b": moved[rows]}, labels=y[rows])


@settings(max_examples=30)
@given(st.permutations(range(K)), st.booleans())
def test_classes_in_another_order_are_aligned_by_name(order, on_disk):
    y, a, b = sample(30)
    own = [NAMES[k] for k in order]
    position = np.argsort(order)
    stack = vf.LogitStack.from_arrays(
        {"a": a, "b": b[:, order]},
        labels={"a": y, "b": position[y]},
        classes={"a": NAMES, "b": own},
        ids=[str(i) for i in range(30)],
    )
    assert stack.classes == tuple(NAMES)
    np.testing.assert_array_equal(stack.scores("b"), b)
    np.testing.assert_array_equal(stack.labels, y)


def test_caches_of_another_class_order_are_aligned_by_name(tmp_path):
    y, a, b = sample(30)
    order = np.random.default_rng(0).permutation(K)
    ids = [f"{i:02d}" for i in range(30)]
    vf.LogitStack.from_arrays({"a": a}, labels=y, classes=NAMES, ids=ids).save(tmp_path)
    own = [NAMES[k] for k in order]
    vf.LogitStack.from_arrays({"b": b[:, order]}, labels=np.argsort(order)[y], classes=own, ids=ids).save(tmp_path)
    stack = vf.load_stack(tmp_path)
    assert stack.classes == tuple(NAMES)
    np.testing.assert_array_equal(stack.labels, y)
    np.testing.assert_array_equal(stack.scores("b"), b.astype(np.float32))
    np.testing.assert_array_equal(stack[[3, 1]].scores("b"), b[[3, 1]].astype(np.float32))
    np.testing.assert_array_equal(np.concatenate(stack.pieces(1)), b.astype(np.float32))


def test_other_names_are_refused_with_both_sides():
    _, a, b = sample(30)
    with pytest.raises(AlignmentError, match=r"member 'b': .* lacks 'class 0', and has 'zero' besides; .* class_map="):
        vf.LogitStack.from_arrays({"a": a, "b": b}, classes={"a": NAMES, "b": ["zero", *NAMES[1:]]})


def test_a_member_without_names_in_another_order_is_refused_beside_one_with_names():
    y, a, b = sample(300)
    order = [0, 2, 1, 4, 5, 3]
    members = {"a": a, "b": b[:, order]}
    for labels in (y, None):
        with pytest.raises(AlignmentError, match="'b': its classes stand in another order than those of"):
            vf.LogitStack.from_arrays(members, labels=labels, classes={"a": NAMES, "b": None})
    stack = vf.LogitStack.from_arrays({"a": a, "b": b}, labels=y, classes={"a": NAMES, "b": None})  # no warning
    assert stack.classes == tuple(NAMES)


def test_where_nothing_tells_the_order_of_the_classes_a_warning_says_so():
    y, a, b = sample(20)
    with pytest.warns(VidfuseWarning, match="'b' has no class names, and others have: .* cannot be told"):
        vf.LogitStack.from_arrays({"a": a, "b": b}, labels=y, classes={"a": NAMES, "b": None})


def test_caches_without_names_beside_some_with_names_are_warned_of(tmp_path):
    y, a, b = sample(20)
    ids = [f"v{row:02}" for row in range(20)]
    vf.LogitStack.from_arrays({"a": a}, labels=y, ids=ids, classes=NAMES).save(tmp_path)
    vf.load_stack(tmp_path)  # warnings are errors
    vf.LogitStack.from_arrays({"b": b}, ids=ids).save(tmp_path)
    with pytest.warns(VidfuseWarning, match="'b' has no class names, and others have"):
        assert vf.load_stack(tmp_path).classes == tuple(NAMES)


def test_columns_sorted_as_text_are_recognised():
    y, a, b = sample(600, 12)
    order = sorted(range(12), key=str)  # 0, 1, 10, 11, 2, …
    with pytest.warns(VidfuseWarning, match=r"'b': .* sorted as text: 0, 1, 10, 11, 2 …"):
        vf.LogitStack.from_arrays({"a": a, "b": b[:, order]}, labels=y)


@pytest.mark.parametrize("labelled", [True, False])
def test_half_of_a_members_rows_in_another_order_are_noticed(labelled):
    y, a, b = sample(600, 12)
    moved = np.concatenate([np.arange(300), 300 + np.random.default_rng(5).permutation(300)])
    with pytest.warns(VidfuseWarning, match=r"'b'.* rows (2[89]\d|30\d|31\d) to 599.*another order"):
        vf.LogitStack.from_arrays({"a": a, "b": b[moved]}, labels=y if labelled else None)


def test_two_swapped_folds_are_named_as_such():
    y, a, b = sample(1000, 12)
    rows = np.arange(1000)
    rows[200:400], rows[600:800] = np.arange(600, 800), np.arange(200, 400)
    ids = [f"v{i}" for i in range(1000)]
    with pytest.warns(VidfuseWarning, match=r"'b'.* rows 18\d|1\d\d|2\d\d .* and .* two folds or files swapped"):
        vf.LogitStack.from_arrays({"a": a, "b": b[rows]}, labels=y, ids=ids)
    with pytest.warns(VidfuseWarning, match="swapped"):  # one member alone is held against its labels
        vf.LogitStack.from_arrays({"b": b[rows]}, labels=y)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_members_that_are_merely_bad_in_places_are_not_suspected(seed, by_class):
    """Hard stretches, unknown classes, and classes taken for others, in lists by class too."""
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(60, 800)), int(rng.integers(3, 40))
    y = np.sort(rng.integers(0, k, n)) if by_class else rng.integers(0, k, n)
    recall = rng.uniform(0, 1, k)
    wrong = np.where(rng.random(n) < 0.3, rng.integers(0, k, k)[y], rng.integers(0, k, n))
    said = np.where(rng.random(n) < recall[y], y, wrong)
    start = int(rng.integers(0, n))
    hard = slice(start, start + n // 4)
    said[hard] = np.where(rng.random(len(said[hard])) < 0.5, rng.integers(0, k, len(said[hard])), said[hard])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vf.LogitStack.from_arrays({"a": 3.0 * np.eye(k)[said] + 1.0}, labels=y)


def by_hand(log_p, mapping, k):
    """The mapping's probabilities, one class at a time."""
    out = np.full((len(log_p), k), -np.inf)
    for j, targets in mapping.items():
        for target in targets:
            out[:, target] = np.logaddexp(out[:, target], log_p[:, j] - np.log(len(targets)))
    covered = sorted({target for targets in mapping.values() for target in targets})
    out -= logsumexp(out, axis=1, keepdims=True)
    out += np.log(len(covered) / k)
    out[:, [c for c in range(k) if c not in covered]] = -np.log(k)
    return out


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_mapped_scores_equal_those_by_hand_and_sum_to_one(seed):
    rng = np.random.default_rng(seed)
    own, k = int(rng.integers(2, 7)), int(rng.integers(2, 9))
    mapping = {j: rng.choice(k, int(rng.integers(1, k + 1)), replace=False).tolist() for j in range(own)}
    z = rng.normal(size=(5, own)) * 5
    found = mapped_scores(z, "logits", None, mapping, None, k)
    np.testing.assert_allclose(found, by_hand(log_softmax(z, axis=1), mapping, k), atol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-6)


def test_of_a_video_whose_probability_is_all_left_out_a_member_says_nothing():
    """As one whose network has a class "other" that it is sure of, in rounded probabilities."""
    known = np.array([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
    own = np.array([[0.0, 0.0, 1.0], [0.6, 0.2, 0.2]])
    stack = vf.LogitStack.from_arrays(
        {"a": known, "b": own},
        kind="probabilities",
        classes={"a": ["run", "walk", "swim"], "b": ["runs", "walks", "other"]},
        class_map={"b": {"runs": "run", "walks": "walk"}},
    )
    expected = [[1 / 3, 1 / 3, 1 / 3], [0.5, 1 / 6, 1 / 3]]
    np.testing.assert_allclose(np.exp(stack.log_likelihoods()[:, 1]), expected, rtol=1e-6)


@pytest.mark.parametrize("given", [np.array([b"run", b"walk"]), [b"run", "walk"]])
def test_names_of_classes_in_bytes_are_texts(given):
    """As NumPy reads texts of fixed length from files that other tools wrote."""
    assert vf.LogitStack.from_arrays({"a": np.zeros((1, 2))}, classes=given).classes == ("run", "walk")


def test_digits_that_are_no_numbers_name_no_class():
    with pytest.raises(InputError, match="'²' is none of the member's classes, 0 to 2"):
        vf.LogitStack.from_arrays({"a": np.zeros((1, 2)), "b": np.zeros((1, 3))}, class_map={"b": {"²": 0}})


def test_a_coarse_member_joins_the_others_by_its_mapping():
    y, a, _ = sample(200, 4)
    fine = ["run", "swim", "sing", "drum"]
    coarse = scores_of(y // 2, 2, 3)
    stack = vf.LogitStack.from_arrays(
        {"a": a, "c": coarse},
        labels=y,
        classes={"a": fine, "c": ["sport", "music"]},
        class_map={"c": {"sport": ["run", "swim"], "music": ["sing", "drum"]}},
    )
    assert stack.classes == tuple(fine) and stack.kinds == ("logits", "log-likelihoods")
    p = np.exp(log_softmax(coarse, axis=1))
    np.testing.assert_allclose(np.exp(stack.scores("c")), np.repeat(p / 2, 2, axis=1), atol=1e-6)
    alone = (a.argmax(axis=1) == y).mean()
    assert vf.LogLinearPool(weights="uniform").fit(stack).score(stack) > alone


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"sprot": "run"}, "member 'c': class_map: 'sprot' is none of the member's classes.*mean 'sport'"),
        ({"sport": "runn"}, "'runn' is none of the stack's classes.*mean 'run'"),
        ({"sport": []}, "at least one"),
    ],
)
def test_a_mapping_that_names_no_class_says_which(mapping, message):
    with pytest.raises(InputError, match=message):
        vf.LogitStack.from_arrays(
            {"a": 3 * np.eye(2), "c": 3 * np.eye(2)},
            classes={"a": ["run", "sing"], "c": ["sport", "music"]},
            class_map={"c": mapping},
        )


@pytest.mark.parametrize("other", ["e\u0301t\u00e9", "\u00e9t\u00e9 ", "\u00c9T\u00c9"])
def test_classes_that_look_alike_are_told_apart(other):
    z = 2 * np.eye(3)
    with pytest.raises(AlignmentError, match="'x3d': its classes differ only in spaces, case or Unicode form, such as"):
        vf.LogitStack.from_arrays(
            {"swin": z, "x3d": z}, classes={"swin": ["\u00e9t\u00e9", "b", "c"], "x3d": ["b", other, "c"]}
        )


@pytest.mark.parametrize("classes", [{0: "run", 1: "walk"}, {"run": 0, "walk": 1}, "ab"])
def test_classes_that_are_no_sequence_are_refused(classes):
    """A network's id2label was taken for names by member, of which there are none."""
    with pytest.raises(InputError, match=r"classes: expected a sequence of names"):
        vf.LogitStack.from_arrays({"a": np.zeros((1, 2))}, classes=classes)
