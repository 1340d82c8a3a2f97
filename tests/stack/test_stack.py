"""The stack: alignment, slicing, blocks, pickling, against plain NumPy and SciPy."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.model_selection import KFold
from sklearn.utils import _safe_indexing

import vidfuse as vf
from vidfuse.cache.upkeep import consolidate
from vidfuse.cache.writer import CacheWriter
from vidfuse.errors import AlignmentError, InputError, VidfuseWarning
from vidfuse.likelihood import reduce_views_array
from vidfuse.stack.open import load_stack
from vidfuse.stack.source import compose_rows, resolve_rows

RNG = np.random.default_rng(0)
IDS = np.array([f"v{i:03d}" for i in range(40)])
SWIN, X3D = (RNG.normal(size=(40, 6)).astype(np.float32) for _ in range(2))
LABELS = RNG.integers(0, 6, 40)


def stack():
    return vf.LogitStack.from_arrays({"swin": SWIN, "x3d": X3D}, ids=IDS, labels=LABELS, classes=list("abcdef"))


def on_disk(folder, consolidated=False):
    """The same stack from caches whose parts were written in two shuffled pieces."""
    for name, scores in (("swin", SWIN), ("x3d", X3D)):
        order = np.random.default_rng(len(name)).permutation(40)
        with CacheWriter(folder / name, classes=list("abcdef")) as writer:
            for rows in (order[:25], order[25:]):
                writer.append(IDS[rows], scores[rows], LABELS[rows])
    if consolidated:
        consolidate(folder)
    return load_stack(folder)


@pytest.fixture(params=["memory", "parts", "consolidated"])
def any_stack(request, tmp_path):
    return stack() if request.param == "memory" else on_disk(tmp_path, request.param == "consolidated")


def test_a_stack_is_the_same_wherever_its_scores_are(any_stack):
    assert any_stack.shape == (40, 2, 6) and any_stack.ndim == 3 and len(any_stack) == 40
    assert any_stack.members == ("swin", "x3d") and any_stack.kinds == ("logits", "logits")
    assert any_stack.n_classes == 6 and any_stack.n_views is None and any_stack.classes == tuple("abcdef")
    np.testing.assert_array_equal(any_stack.ids, IDS)
    np.testing.assert_array_equal(any_stack.labels, LABELS)
    np.testing.assert_array_equal(any_stack.scores("x3d"), X3D)
    np.testing.assert_array_equal(any_stack[5:].scores("x3d", slice(3, 30)), X3D[8:35])
    expected = np.stack([log_softmax(z.astype(float), axis=1) for z in (SWIN, X3D)], axis=1)
    np.testing.assert_allclose(any_stack.log_likelihoods(), expected, atol=1e-6)
    np.testing.assert_allclose(np.asarray(any_stack), expected, atol=1e-6)
    assert np.asarray(any_stack, dtype=np.float64).dtype == np.float64


def test_rows_are_chosen_as_numpy_and_scikit_learn_do_it(any_stack):
    whole = any_stack.log_likelihoods()
    mask = LABELS > 2
    for key in (slice(5, 20), slice(None, None, -3), [3, -1, 7], mask, np.array([2, 2, 4]), 5):
        chosen = any_stack[key]
        rows = np.arange(40)[key].reshape(-1)
        np.testing.assert_array_equal(chosen.ids, IDS[rows])
        np.testing.assert_array_equal(chosen.labels, LABELS[rows])
        np.testing.assert_array_equal(chosen.log_likelihoods(), whole[rows])
        np.testing.assert_array_equal(any_stack.log_likelihoods(key), whole[rows])
    train, _ = next(KFold(3, shuffle=True, random_state=0).split(any_stack))
    np.testing.assert_array_equal(_safe_indexing(any_stack, train).log_likelihoods(), whole[train])
    np.testing.assert_array_equal(any_stack[(train, ...)][4:9].scores("swin"), SWIN[train][4:9])


@pytest.mark.parametrize("rows_per_block", [1, 7, 40, 1000, None])
def test_blocks_cover_the_stack_and_share_one_buffer(any_stack, rows_per_block):
    seen, addresses = [], set()
    for rows, block in any_stack.iter_blocks(rows_per_block):
        assert block.dtype == np.float32 and block.shape == (rows.stop - rows.start, 2, 6)
        assert block.swapaxes(0, 1)[0].flags.c_contiguous
        addresses.add(block.__array_interface__["data"][0])
        seen.append(block.copy())
    assert len(addresses) == 1
    np.testing.assert_array_equal(np.concatenate(seen), any_stack.log_likelihoods())


def test_a_pickled_stack_of_files_sends_no_scores(tmp_path):
    z = np.zeros((5000, 100), dtype=np.float32)
    vf.LogitStack.from_arrays({"swin": z}, ids=[f"v{i}" for i in range(5000)]).save(tmp_path / "caches")
    np.save(tmp_path / "z.npy", z)
    mapped = vf.LogitStack.from_arrays({"swin": np.load(tmp_path / "z.npy", mmap_mode="r")})
    for source in (load_stack(tmp_path / "caches"), mapped):
        sent = pickle.dumps(source[100:200])
        assert len(sent) < 20_000
        np.testing.assert_array_equal(pickle.loads(sent).log_likelihoods(), source[100:200].log_likelihoods())


def test_a_map_that_was_written_to_in_memory_is_pickled_as_it_is(tmp_path):
    np.save(tmp_path / "z.npy", np.zeros((4, 3), dtype=np.float32))
    mapped = np.load(tmp_path / "z.npy", mmap_mode="c")
    mapped += np.arange(3, dtype=np.float32)
    stack = vf.LogitStack.from_arrays({"a": mapped})
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stack)).scores("a"), mapped)


def test_a_pickled_stack_in_memory_sends_its_rows_only(any_stack):
    again = pickle.loads(pickle.dumps(any_stack[7:9]))
    np.testing.assert_array_equal(again.log_likelihoods(), any_stack[7:9].log_likelihoods())
    assert again.members == any_stack.members and again.classes == any_stack.classes
    big = vf.LogitStack.from_arrays({"swin": np.zeros((5000, 100))})
    assert len(pickle.dumps(big[:10])) < 20_000


def test_scores_are_views_and_read_only():
    mine = stack()
    assert np.shares_memory(mine.scores("swin"), SWIN) and np.shares_memory(mine[3:9].scores("swin"), SWIN)
    with pytest.raises(ValueError, match="read-only"):
        mine.scores("swin")[0, 0] = 1
    with pytest.raises(AttributeError, match="immutable"):
        mine.labels = None
    with pytest.raises(ValueError, match="read-only"):
        mine.labels[0] = 1


@pytest.mark.parametrize("kind", ["logits", "log-likelihoods", "probabilities", "sum"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_kind_becomes_normalised_log_likelihoods(kind, dtype):
    expected = log_softmax(SWIN.astype(float), axis=1)
    given_as = {
        "logits": SWIN + 3,
        "log-likelihoods": expected,
        "probabilities": np.exp(expected),
        "sum": 30 * np.exp(expected),
    }[kind].astype(dtype)
    values = vf.LogitStack.from_arrays({"swin": given_as}, kind=kind).log_likelihoods()[:, 0]
    np.testing.assert_allclose(values, expected, atol=3e-2 if dtype == np.float16 else 2e-6)


def test_float64_scores_beyond_float32_are_normalised_before_they_are_rounded():
    z = np.array([[1e300, 1e300 - 1e290, -1e300], [800.0, 799.0, 0.0]])
    values = vf.LogitStack.from_arrays({"swin": z}).log_likelihoods()[:, 0]
    assert values[0].tolist() == [0, -np.inf, -np.inf]
    np.testing.assert_allclose(values[1], log_softmax(z[1]), rtol=1e-6)


def test_one_array_is_named_by_its_second_axis():
    x = np.stack([SWIN, X3D], axis=1)
    named = vf.LogitStack.from_arrays(x, members=["swin", "x3d"], ids=IDS)
    np.testing.assert_array_equal(named.log_likelihoods(), stack().log_likelihoods())
    assert vf.LogitStack.from_arrays(x).members == ("member0", "member1")
    assert vf.LogitStack.from_arrays({"swin": SWIN, "x3d": X3D}, members=["x3d"]).members == ("x3d",)
    with pytest.raises(InputError, match="expected 2 names, one for each member, got 3"):
        vf.LogitStack.from_arrays(x, members=["a", "b", "c"])


def test_torch_tensors_are_taken_as_they_are():
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(SWIN, requires_grad=True)
    given_tensors = vf.LogitStack.from_arrays({"swin": tensor, "half": tensor.bfloat16()}, labels=torch.tensor(LABELS))
    np.testing.assert_array_equal(given_tensors.scores("swin"), SWIN)
    np.testing.assert_array_equal(given_tensors.scores("half"), tensor.detach().bfloat16().float().numpy())


def test_views_are_kept_or_reduced(tmp_path):
    views = RNG.normal(size=(40, 3, 6)).astype(np.float32)
    kept = vf.LogitStack.from_arrays({"swin": views}, ids=IDS)
    assert kept.shape == (40, 1, 3, 6) and kept.n_views == 3 and kept.ndim == 4
    kept.save(tmp_path)
    for rule in ("mean-log", "mean-probability", "max", "vote"):
        expected = reduce_views_array(kept.log_likelihoods()[:, 0], rule)
        for reduced in (
            vf.LogitStack.from_arrays({"swin": views}, views=rule),
            load_stack(tmp_path, views=rule),
            load_stack(tmp_path, views={"swin": rule}),
        ):
            assert reduced.kinds == ("log-likelihoods",)
            np.testing.assert_allclose(reduced.log_likelihoods()[:, 0], expected, atol=1e-6)


def test_a_rule_by_member_is_needed_by_members_with_views_and_names_no_others(tmp_path):
    logits = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    arrays = {"swin": logits, "x3d": logits[:, 0]}
    by_member = vf.LogitStack.from_arrays(arrays, ids=list("abc"), views={"swin": "max"})
    assert by_member.shape == (3, 2, 2)
    vf.LogitStack.from_arrays({"swin": logits}, ids=list("abc")).save(tmp_path)
    for views, problem in (({"x3d": "max"}, "unknown: .*, missing: 'swin'"), ({"swin": "max", "tin": "max"}, "'tin'")):
        with pytest.raises(InputError, match=f"views: expected one for each of 'swin'.*{problem}"):
            vf.LogitStack.from_arrays(arrays, views=views)
        with pytest.raises(InputError, match=f"views: expected one for each of 'swin'; {problem}|unknown: 'tin'"):
            load_stack(tmp_path, views=views)


def test_saving_and_loading_keeps_everything(tmp_path):
    ids = {"swin": IDS, "x3d": IDS[10:]}
    mixed = vf.LogitStack.from_arrays(
        {"swin": SWIN, "x3d": np.exp(log_softmax(X3D[10:], axis=1)).astype(np.float16)},
        ids=ids,
        labels=LABELS,
        kind={"swin": "logits", "x3d": "probabilities"},
        join="outer",
    )
    mixed.save(tmp_path)
    again = load_stack(tmp_path, join="outer")
    assert again.kinds == mixed.kinds and again.members == mixed.members
    np.testing.assert_array_equal(again.present, mixed.present)
    np.testing.assert_array_equal(again.labels, mixed.labels)
    np.testing.assert_array_equal(again.log_likelihoods(), mixed.log_likelihoods())
    with pytest.raises(AlignmentError):
        load_stack(tmp_path)
    assert len(load_stack(tmp_path, join="inner")) == 30


def test_saving_needs_ids_and_says_what_does_not_fit_float16(tmp_path):
    with pytest.raises(InputError, match="order is unchecked"):
        vf.LogitStack.from_arrays({"swin": SWIN}).save(tmp_path)
    z = SWIN.copy()
    z[3, 2] = 70000
    with pytest.raises(InputError, match=r"within ±65504 for float16, got 70000 at id 'v003', class 2"):
        vf.LogitStack.from_arrays({"swin": z}, ids=IDS).save(tmp_path, dtype="float16")
    stack().save(tmp_path / "half", dtype="float16")
    np.testing.assert_array_equal(load_stack(tmp_path / "half").scores("swin"), SWIN.astype(np.float16))


def test_labels_come_in_three_forms():
    by_id = {str(name): int(label) for name, label in zip(IDS, LABELS, strict=True)}
    order = RNG.permutation(40)
    arrays, ids = {"swin": SWIN, "x3d": X3D[order]}, {"swin": IDS, "x3d": IDS[order]}
    for labels in (LABELS, by_id, {"x3d": LABELS[order]}, {"swin": LABELS, "x3d": LABELS[order]}):
        np.testing.assert_array_equal(vf.LogitStack.from_arrays(arrays, ids=ids, labels=labels).labels, LABELS)
    with pytest.raises(InputError, match="none for 1: 'v000'"):
        del by_id["v000"]
        vf.LogitStack.from_arrays(arrays, ids=ids, labels=by_id)


def test_the_html_form_escapes_names():
    text = vf.LogitStack.from_arrays({"a&b": SWIN})._repr_html_()
    assert "a&amp;b" in text and "40 videos x 1 members x 6 classes" in text


@settings(max_examples=60)
@given(st.data())
def test_rows_of_rows_are_rows(data):
    """Any chain of slices, masks and integers picks what NumPy picks."""
    n = data.draw(st.integers(1, 12))
    expected, rows = np.arange(n), resolve_rows(slice(None), n)
    for _ in range(data.draw(st.integers(1, 3))):
        size = len(expected)
        key = data.draw(
            st.one_of(
                st.slices(size),
                st.lists(st.integers(-size, size - 1), max_size=5) if size else st.just([]),
                st.lists(st.booleans(), min_size=size, max_size=size).map(lambda m: np.array(m, dtype=bool)),
            )
        )
        rows = compose_rows(rows, resolve_rows(key, size))
        expected = expected[np.asarray(key, dtype=int) if isinstance(key, list) else key]
        np.testing.assert_array_equal(np.arange(n)[rows], expected)


def test_a_few_rows_of_a_strided_member_are_read_alone():
    """A member of one array (N, M, K) is strided; no more than its rows is to be copied."""
    z = np.zeros((20_000, 4, 50), dtype=np.float32)
    stack = vf.LogitStack.from_arrays(z)[np.array([5, 19_000])]
    tracemalloc.start()
    try:
        stack.scores("member2")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50_000


def test_a_single_video_of_two_logits_may_sum_to_nearly_one():
    """A server that asks for one video at a time would fail now and then; a softmax's sum is nearer to 1 than that."""
    one = {"a": [[0.3, 0.702]], "b": [[0.9, 0.1004]]}
    assert vf.LogitStack.from_arrays(one).kinds == ("logits", "logits")
    for rows in ([[0.3, 0.7]], [[0.3, 0.702], [0.5, 0.499]]):
        with pytest.raises(InputError, match="every row is at least 0 and sums to 1"):
            vf.LogitStack.from_arrays({"a": rows})


@pytest.mark.parametrize("views", [(), (2,)])
@pytest.mark.parametrize("k", [2, 6, 300])
def test_a_member_whose_classes_are_all_alike_is_suspected(k, views):
    rng = np.random.default_rng(k)
    y = rng.integers(0, k, 80)
    z = rng.normal(size=(80, *views, k)) + (3 + np.log(k)) * np.eye(k)[y].reshape(80, *(1 for _ in views), k)
    p = softmax(z, axis=-1)
    flat = {"tiny": (1e-8 * z, "logits"), "small": (np.float32(1e-5) * z.astype(np.float32), "log-likelihoods")}
    if k > 2:  # of two classes, probabilities are as far apart as many logits are
        flat |= {"softmax twice": (softmax(p, axis=-1), "probabilities"), "half": (p.astype(np.float16) + 1, "logits")}
    for name, (scores, kind) in flat.items():
        with pytest.warns(VidfuseWarning, match=f"'{name}': its scores are nearly equal for every class in each of 80"):
            vf.LogitStack.from_arrays({name: scores}, kind=kind)
    masked = np.where(z == z.min(axis=-1, keepdims=True), -np.inf, 1e-8 * z)
    for scores, kind in ((z, "logits"), (0.03 * z, "logits"), (p, "probabilities"), (masked, "logits")):
        vf.LogitStack.from_arrays({"swin": scores}, kind=kind)  # warnings are errors
    vf.LogitStack.from_arrays({"few": 1e-8 * z[:40]})
    one_says_something = np.concatenate([1e-8 * z[:79], z[79:]])
    vf.LogitStack.from_arrays({"swin": one_says_something})


def test_small_logits_of_three_classes_and_smoothed_names_of_many_are_no_softmax_of_probabilities():
    rng = np.random.default_rng(0)
    vf.LogitStack.from_arrays({"small": 0.1 * rng.normal(size=(200, 3))})  # warnings are errors
    named = np.full((50, 20_000), 0.1 / 20_000)
    named[:, 7] += 0.9
    vf.LogitStack.from_arrays({"named": named}, kind="probabilities")


def test_logits_that_are_shares_of_one_sum_are_suspected():
    rng = np.random.default_rng(0)
    p = softmax(rng.normal(size=(80, 5)), axis=1)
    views = np.stack([p] * 3, axis=1)
    for name, scores in {"percent": 100 * p, "views": (30 * p).astype(np.float16), "each": 2 * views}.items():
        with pytest.warns(
            VidfuseWarning, match=f"'{name}': logits were said, but .* have the sum .* in each of 80 videos"
        ):
            vf.LogitStack.from_arrays({name: scores})
    votes = 3.0 * np.eye(5)[rng.integers(0, 5, 80)]
    odd = np.concatenate([100 * p[:79], 101 * p[79:]])
    for scores in (votes, votes + 1, odd, 100 * p - 1, -100 * p, 100 * p[:40], np.log(p) + 1e6):
        vf.LogitStack.from_arrays({"swin": scores})  # warnings are errors
    vf.LogitStack.from_arrays({"swin": 100 * p}, kind="sum")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": set(IDS.tolist())}, "ids: expected a sequence, got a set, which has no order"),
        ({"ids": {"swin": frozenset(IDS.tolist())}}, "expected a sequence, got a frozenset"),
        ({"labels": set(range(40))}, "labels: expected a sequence, got a set"),
        ({"classes": set("abcdef")}, "classes: expected a sequence, got a set"),
        ({"classes": ["a", None, "c", "d", float("nan"), "f"]}, "a name for each class, got none for class 1, 4"),
        ({"classes": ["a", pd.NA, "c", "d", "e", "f"]}, "a name for each class, got none for class 1"),
        ({"ids": [float("nan"), *IDS[1:]]}, "expected strings or integers, got float such as nan"),
        ({"ids": ["v", 1.5, *IDS[2:]]}, "got float such as 1.5"),
        ({"ids": [True, *IDS[1:]]}, "got bool such as True"),
        ({"ids": ["v\0", *IDS[1:]]}, "without .* control characters"),
        ({"ids": [b"\xff", *IDS[1:]]}, "expected text in UTF-8, got bytes that are not"),
    ],
)
def test_ids_labels_and_names_that_say_nothing_for_sure_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        vf.LogitStack.from_arrays({"swin": SWIN}, **options)


def test_ids_may_be_texts_whole_numbers_and_bytes_of_any_container():
    for ids in (
        [np.int64(3), "a", b"b", np.str_("c")],
        np.array(["3", "a", "b", "c"], dtype=object),
        (3, "a", "b", "c"),
        {3: 0, "a": 0, "b": 0, "c": 0}.keys(),
        [np.array(3), np.array("a"), np.array(b"b"), "c"],
    ):
        assert vf.LogitStack.from_arrays({"swin": SWIN[:4]}, ids=ids).ids.tolist() == ["3", "a", "b", "c"]
    by_name = dict.fromkeys("abcdef").keys()
    assert vf.LogitStack.from_arrays({"swin": SWIN}, classes=by_name).classes == tuple("abcdef")


@pytest.mark.parametrize(("other", "how"), [("{} ", "in spaces around them"), ("V{}", "in upper and lower case")])
def test_ids_that_look_alike_are_told_apart(other, how):
    ids = {"swin": IDS, "x3d": [other.format(name if other[0] == "{" else name[1:]) for name in IDS]}
    with pytest.raises(AlignmentError, match=f"under different ids .*they differ only {how}, such as"):
        vf.LogitStack.from_arrays({"swin": SWIN, "x3d": X3D}, ids=ids)
