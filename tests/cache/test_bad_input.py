"""Bad input to stacks and caches: each test is named after its row in the table of bad inputs."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest

import vidfuse as vf
from vidfuse._checks import check_same_labels, check_weights
from vidfuse.cache.format import open_part
from vidfuse.cache.reader import open_cache
from vidfuse.cache.upkeep import consolidate, verify
from vidfuse.cache.writer import CacheWriter
from vidfuse.errors import (
    AlignmentError,
    CacheConflictError,
    CacheCorruptError,
    CacheFormatError,
    CacheIncompleteError,
    InputError,
    VidfuseWarning,
)
from vidfuse.stack.open import load_stack

Immediate = functools.partial(CacheWriter, flush_seconds=0)  # a part with every append
IDS = ["ape", "bee", "cat", "dog"]


def logits(n=4, k=3, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(n, k)).astype(dtype)


def stack_of(array, **options):
    return vf.LogitStack.from_arrays({"swin": array}, **{"ids": IDS[: len(array)], **options})


def one_part(tmp_path, rows=4):
    with Immediate(tmp_path / "swin") as writer:
        writer.append(IDS[:rows], logits(rows))
    (part,) = (tmp_path / "swin").glob("*.safetensors")
    return part


def test_row_01_nan_logit():
    z = logits()
    z[2, 1] = z[3, 0] = np.nan
    with pytest.raises(InputError, match=r"NaN at member 'swin', id 'cat' \(row 2\), class 1 \(2 in all\)"):
        stack_of(z)


def test_row_01_nan_in_a_view_of_a_later_block():
    z = np.zeros((3000, 2, 200), dtype=np.float32)
    z[2900, 1, 7] = z[10, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"row 10, view 0, class 0 \(2 in all\)"):
        vf.LogitStack.from_arrays({"swin": z})


def test_row_02_positive_infinity():
    z = logits()
    z[1, 0] = np.inf
    with pytest.raises(InputError, match=r"\+inf at member 'swin', id 'bee'"):
        stack_of(z)


def test_row_02_positive_infinity_in_float16_asks_for_overflow():
    z = logits(dtype=np.float16)
    z[1, 0] = np.inf
    with pytest.raises(InputError, match="float16 overflow"):
        stack_of(z)


def test_row_03_some_negative_infinities_are_probability_zero():
    z = logits()
    z[1, 0] = -np.inf
    values = stack_of(z).log_likelihoods()
    assert np.isneginf(values[1, 0, 0]) and np.isfinite(values[1, 0, 1:]).all()
    assert np.exp(values[1, 0].astype(float)).sum() == pytest.approx(1)


def test_row_04_a_whole_row_of_negative_infinity():
    z = logits()
    z[3] = -np.inf
    with pytest.raises(InputError, match=r"-inf in every class at member 'swin', id 'dog' \(row 3\) \(1 in all\)"):
        stack_of(z)


def test_row_07_probabilities_said_to_be_logits():
    p = np.exp(stack_of(logits()).log_likelihoods()[:, 0])
    with pytest.raises(InputError, match='say kind="probabilities"'):
        stack_of(p)
    with pytest.raises(InputError, match='say kind="probabilities"'):
        stack_of(p, kind="log-likelihoods")
    one_row_is_not = p.copy()
    one_row_is_not[0] *= 2
    assert len(stack_of(one_row_is_not)) == 4


def test_row_08_negative_probabilities():
    p = np.full((4, 2), 0.5)
    p[2] = [1.2, -0.2]
    with pytest.raises(InputError, match=r"got -0\.2 at id 'cat'"):
        stack_of(p, kind="probabilities")


def test_row_08_unnormalised_probabilities_name_the_worst_row():
    p = np.full((4, 2), 0.5)
    p[1], p[3] = [0.5, 0.51], [0.5, 0.6]
    with pytest.raises(InputError, match=r"the worst is id 'dog' \(row 3\) with the sum 1\.1"):
        stack_of(p, kind="probabilities")


@pytest.mark.parametrize(("dtype", "error", "most"), [(np.float32, 9e-4, 4.9e-3), (np.float16, 9e-3, 9e-3)])
def test_row_08_slightly_unnormalised_probabilities_are_renormalised(dtype, error, most):
    p = np.array([[0.5, 0.5 + error]], dtype=dtype)
    values = vf.LogitStack.from_arrays({"swin": p}, kind="probabilities").log_likelihoods()
    assert np.exp(values.astype(float)).sum() == pytest.approx(1, abs=1e-6)
    if most > error:  # as rounding leaves them: with a note
        with pytest.warns(VidfuseWarning, match="sum to 1 within 0.0049 only"):
            vf.LogitStack.from_arrays({"swin": np.array([[0.5, 0.5 + most]], dtype=dtype)}, kind="probabilities")
    with pytest.raises(InputError):
        vf.LogitStack.from_arrays({"swin": np.array([[0.5, 0.5 + 2 * most]], dtype=dtype)}, kind="probabilities")


def test_row_08_zero_probabilities_are_kept_as_minus_infinity():
    values = vf.LogitStack.from_arrays({"swin": np.array([[1.0, 0.0]])}, kind="probabilities").log_likelihoods()
    assert values.tolist() == [[[0.0, -np.inf]]]


@pytest.mark.parametrize("shape", [(4,), (4, 3, 2, 2)])
def test_row_09_wrong_number_of_axes(shape):
    with pytest.raises(InputError, match=r"expected scores \(N, K\) or \(N, V, K\), got shape"):
        vf.LogitStack.from_arrays({"swin": np.zeros(shape)})
    with pytest.raises(InputError, match=r"expected scores \(N, M, K\) or \(N, M, V, K\), got shape \(4, 3\)"):
        vf.LogitStack.from_arrays(np.zeros((4, 3)))


def test_row_10_class_counts_differ():
    with pytest.raises(AlignmentError, match="swin: 3, x3d: 5"):
        vf.LogitStack.from_arrays({"swin": logits(k=3), "x3d": logits(k=5)})


def test_row_11_class_names_differ():
    classes = {"swin": ["run", "jump", "kick"], "x3d": ["run", "jump", "kcik"]}
    with pytest.raises(AlignmentError, match=r"member 'x3d': .* lacks 'kick', and has 'kcik'"):
        vf.LogitStack.from_arrays({"swin": logits(), "x3d": logits()}, classes=classes)


def test_row_12_ids_differ():
    arrays = {"swin": logits(4), "x3d": logits(3)}
    ids = {"swin": IDS, "x3d": ["cat", "ape", "fox"]}
    with pytest.raises(AlignmentError, match=r"swin: 4, x3d: 3.*'swin' lacks 1: 'fox'; 'x3d' lacks 2: 'bee', 'dog'"):
        vf.LogitStack.from_arrays(arrays, ids=ids)
    inner = vf.LogitStack.from_arrays(arrays, ids=ids, join="inner")
    assert inner.ids.tolist() == ["ape", "cat"]
    np.testing.assert_array_equal(inner.scores("x3d"), arrays["x3d"][[1, 0]])


def test_row_12_more_than_five_ids_are_counted():
    names = [f"v{i}" for i in range(20)]
    with pytest.raises(AlignmentError, match=r"'x3d' lacks 10: 'v10', 'v11', 'v12', 'v13', 'v14' and 5 more"):
        vf.LogitStack.from_arrays({"swin": logits(20), "x3d": logits(10)}, ids={"swin": names, "x3d": names[:10]})


def test_row_13_same_ids_in_another_order_are_reordered():
    z, order = logits(), [2, 0, 3, 1]
    stack = vf.LogitStack.from_arrays(
        {"swin": z, "x3d": z[order]}, ids={"swin": IDS, "x3d": [IDS[i] for i in order]}, labels=[0, 1, 2, 0]
    )
    assert stack.ids.tolist() == IDS and stack.labels.tolist() == [0, 1, 2, 0]
    np.testing.assert_array_equal(stack.scores("x3d"), z)


def test_row_14_duplicate_id():
    with pytest.raises(InputError, match=r"member 'swin': ids: expected each id once, got 'ape' at rows 0, 2"):
        vf.LogitStack.from_arrays({"swin": logits()}, ids={"swin": ["ape", "bee", "ape", "dog"]})


def test_row_15_duplicate_member_name():
    with pytest.raises(InputError, match="must be unique, got 'swin'"):
        vf.LogitStack.from_arrays([("swin", logits()), ("swin", logits())])
    with pytest.raises(InputError, match="must be unique, got 'swin'"):
        stack_of(logits()).select(["swin", "swin"])


@pytest.mark.parametrize("value", [-1, 3])
def test_row_16_label_out_of_range(value):
    with pytest.raises(InputError, match=rf"expected 0 to 2 \(3 classes\), got {value} at id 'cat' \(row 2\)"):
        stack_of(logits(), labels=[0, 1, value, 2])


@pytest.mark.parametrize("labels", [np.array([0.0, 1.0, 2.0, 1.0]), np.eye(4, 3, dtype=int)])
def test_row_17_float_or_one_hot_labels(labels):
    with pytest.raises(InputError, match=r"expected integers of shape \(4,\)"):
        stack_of(logits(), labels=labels)


def test_row_19_no_videos_or_no_members():
    with pytest.raises(InputError, match="at least one video"):
        vf.LogitStack.from_arrays({"swin": np.zeros((0, 3))})
    with pytest.raises(InputError, match="at least one member"):
        vf.LogitStack.from_arrays({})
    with pytest.raises(InputError, match="at least one member"):
        vf.LogitStack.from_arrays(np.zeros((4, 0, 3)))
    with pytest.raises(InputError, match="one video"):
        stack_of(logits())[np.zeros(4, dtype=bool)]


def test_row_20_one_class_only():
    with pytest.raises(InputError, match="at least 2 classes"):
        stack_of(logits(k=1))


def test_row_22_weights_all_zero():
    with pytest.raises(InputError, match="sum to zero"):
        check_weights([0, 0], ["swin", "x3d"])


@pytest.mark.parametrize("bad", [-0.5, np.nan, np.inf])
def test_row_23_negative_or_nan_weight(bad):
    with pytest.raises(InputError, match="for member 'x3d'"):
        check_weights([1, bad], ["swin", "x3d"])


def test_row_25_wrong_number_of_weights():
    with pytest.raises(InputError, match="expected 2, one for each of 'swin', 'x3d', got 3"):
        check_weights([1, 1, 1], ["swin", "x3d"])
    with pytest.raises(InputError, match="unknown: 'tin', missing: 'x3d'"):
        check_weights({"swin": 1.0, "tin": 1.0}, ["swin", "x3d"])


def test_row_26_different_numbers_of_views():
    arrays = {"swin": np.zeros((4, 2, 3)), "x3d": np.zeros((4, 5, 3)), "tin": np.zeros((4, 3))}
    with pytest.raises(InputError, match=r'swin: 2, x3d: 5, tin: none; reduce.*views="mean-log"'):
        vf.LogitStack.from_arrays(arrays)
    assert vf.LogitStack.from_arrays(arrays, views="mean-log").shape == (4, 3, 3)
    by_member = {"swin": "mean-log", "x3d": "max", "tin": "vote"}
    assert vf.LogitStack.from_arrays(arrays, views=by_member).shape == (4, 3, 3)


def test_row_26_different_numbers_of_views_in_caches(tmp_path):
    for name, views in (("swin", 2), ("x3d", 5)):
        with Immediate(tmp_path / name) as writer:
            writer.append(IDS, np.random.default_rng(0).normal(size=(4, views, 3)))
    with pytest.raises(InputError, match='views="mean-log"'):
        load_stack(tmp_path)
    assert load_stack(tmp_path, views="mean-log").shape == (4, 2, 3)


@pytest.mark.parametrize("dtype", [np.int64, np.complex64, np.bool_, object])
def test_row_27_integer_complex_or_object_logits(dtype):
    with pytest.raises(InputError, match=f"got dtype {np.dtype(dtype)}"):
        stack_of(np.ones((4, 3)).astype(dtype))


def test_row_29_kill_while_writing_keeps_complete_parts(tmp_path):
    script = """
import os, signal, sys
import numpy as np
from vidfuse.cache.writer import CacheWriter
writer = CacheWriter(sys.argv[1], flush_seconds=0, expected_ids=["ape", "bee", "cat", "dog"])
writer.append(["ape", "bee"], np.ones((2, 3)))
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
writer.append(["cat", "dog"], np.ones((2, 3)))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "swin")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "swin").glob(".tmp-*"))) == 1
    with pytest.raises(CacheIncompleteError, match="2 of 4"):
        open_cache(tmp_path / "swin")
    with Immediate(tmp_path / "swin") as writer:
        assert writer.missing() == ["cat", "dog"]
        assert not list((tmp_path / "swin").glob(".tmp-*"))
        writer.append(["cat", "dog"], np.ones((2, 3)))
    assert open_cache(tmp_path / "swin").ids.tolist() == IDS


def test_row_30_truncated_part(tmp_path):
    part = one_part(tmp_path)
    size = part.stat().st_size
    os.truncate(part, size - 5)
    with pytest.raises(CacheCorruptError, match=f"{part.name}: truncated: expected {size} bytes, got {size - 5}"):
        load_stack(tmp_path)


@pytest.mark.parametrize("where", [1, 10, 20, 60, 90, 400, -79, -48, -1])  # length, header, ids, scores
def test_row_31_one_flipped_bit(tmp_path, where):
    part = one_part(tmp_path)
    content = bytearray(part.read_bytes())
    content[where] ^= 4
    part.write_bytes(content)
    if where == 1:  # the header's length, which now is longer than the file
        with pytest.raises(CacheCorruptError, match=rf"{part.name}: truncated: expected at least \d+ bytes, got"):
            load_stack(tmp_path)
        return
    with pytest.raises(CacheCorruptError, match=rf"{part.name}: .*expected digest \S+, got [0-9a-f]{{64}}; run `vid"):
        load_stack(tmp_path).log_likelihoods()


def test_row_32_a_header_that_claims_too_much(tmp_path):
    part = one_part(tmp_path)
    content = part.read_bytes()
    part.write_bytes((1 << 40).to_bytes(8, "little") + content[8:])
    with pytest.raises(CacheFormatError, match=f"its header claims {1 << 40} bytes, at most 16384 are allowed"):
        open_part(part)


def sign_again(part, old, new):
    """Change a header as only a faulty or hostile writer can: its digest is right."""
    content = part.read_bytes()
    text = content[8 : 8 + int.from_bytes(content[:8], "little")].rstrip()
    assert old in text
    start, changed = text.index(b'"digest":"') + len(b'"digest":"'), text.replace(old, new, 1)
    unsigned = changed[:start] + b"0" * 64 + changed[start + 64 :]
    length = len(unsigned).to_bytes(8, "little")
    digest = hashlib.sha256(length + unsigned).hexdigest().encode()
    part.write_bytes(length + unsigned[:start] + digest + unsigned[start + 64 :] + content[8 + len(text) :])


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([1 << 32, 1 << 32], [32, 32 + (1 << 62)]),  # 2^66 bytes, 0 in 64 bits
        ([4, 1 << 61], [32, 80]),
        ([4, -3], [32, 80]),
        ([4, 3.0], [32, 80]),
        ([1 << 4000, 3], [32, 80]),
    ],
)
def test_row_32_an_overflowing_shape(tmp_path, shape, offsets):
    part = one_part(tmp_path)
    new = f'"shape":{json.dumps(shape)},"data_offsets":{json.dumps(offsets)}'.encode()
    sign_again(part, b'"shape":[4,3],"data_offsets":[32,80]', new)
    with pytest.raises(CacheFormatError, match="not a part of a logit cache: ValueError in its header: "):
        open_part(part)


def test_row_33_foreign_file(tmp_path):
    one_part(tmp_path)
    (tmp_path / "swin" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(CacheFormatError, match=r"not a part of a logit cache.*supported is vidfuse-logits version 1"):
        load_stack(tmp_path)


def test_row_33_newer_version(tmp_path):
    part = one_part(tmp_path)
    part.write_bytes(part.read_bytes().replace(b'"version":"1"', b'"version":"7"'))
    with pytest.raises(CacheFormatError, match=r"found version 7 .*supported up to 1: upgrade"):
        open_part(part)
    meta = tmp_path / "swin" / "meta.json"
    meta.write_text(meta.read_text().replace('"version": 1', '"version": 7'))
    with pytest.raises(CacheFormatError, match="found version 7, supported up to 1: upgrade"):
        load_stack(tmp_path)


def test_row_34_trailing_bytes(tmp_path):
    part = one_part(tmp_path)
    part.write_bytes(part.read_bytes() + b"\0")
    with pytest.raises(CacheFormatError, match="trailing bytes"):
        open_part(part)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (b'"kind":"logits"', b'"kind":"logits","kind":"sum"', "kind"),
        (b'"kind":"logits"', b'"kind":"logits","payload":""', "payload"),
        (b'"ids":', b'"ids":{},"ids":', "ids"),
        (b'"dtype":"F32"', b'"dtype":"F16","dtype":"F32"', "dtype"),
    ],
)
def test_row_34_duplicate_keys(tmp_path, old, new, key):
    part = one_part(tmp_path)
    sign_again(part, old, new)
    with pytest.raises(CacheFormatError, match=f"not a part of a logit cache: .*duplicate key '{key}'"):
        open_part(part)


def test_row_34_duplicate_keys_in_a_foreign_file_and_in_the_description(tmp_path):
    part = one_part(tmp_path)
    header = b'{"__metadata__":{"format":"x","format":"y"}}'
    (tmp_path / "other").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CacheFormatError, match="duplicate key 'format'"):
        open_part(tmp_path / "other")
    meta = part.with_name("meta.json")
    meta.write_text(meta.read_text().replace('"kind": "logits"', '"kind": "sum",\n "kind": "logits"'))
    with pytest.raises(CacheFormatError, match=r"meta\.json: .*duplicate key 'kind'"):
        load_stack(tmp_path)


@pytest.mark.parametrize("name", ["../x", "C:x", "a\0b", "/x", "a/b", ".", "..", "", "a\nb", "x/../../y"])
def test_row_35_unsafe_member_name(tmp_path, name):
    with pytest.raises(InputError, match="name"):
        vf.LogitStack.from_arrays({name: logits()})
    with pytest.raises(InputError, match="name"):
        load_stack({name: tmp_path / "nowhere"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../x", "C:x", "a\0b", "/x", "..", "", "a\nb", "x/../../y"])
def test_row_35_unsafe_video_name(tmp_path, name):
    with pytest.raises(InputError, match="name"):
        stack_of(logits(2), ids=["ok", name])
    with pytest.raises(InputError, match="name"):
        Immediate(tmp_path / "swin").append([name], logits(1))
    assert not list((tmp_path / "swin").iterdir())


def test_row_35_a_relative_path_is_a_safe_video_name():
    assert stack_of(logits(2), ids=["run/a.mp4", "run/..b"]).ids.tolist() == ["run/a.mp4", "run/..b"]


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder"])
def test_row_36_not_a_regular_file(tmp_path, kind):
    part = one_part(tmp_path)
    other = part.with_name("part-z.safetensors")
    if kind == "symlink":
        other.symlink_to(part)
    elif kind == "fifo":
        os.mkfifo(other)
    else:
        other.mkdir()
    with pytest.raises(CacheFormatError, match="expected a regular file"):
        load_stack(tmp_path)


def untouched(path):
    """Return what stays of a file that is only read: not its time of access."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def test_row_37_same_item_same_bytes_is_a_no_op(tmp_path):
    part = one_part(tmp_path)
    before = untouched(part)
    with Immediate(tmp_path / "swin") as second:
        assert second.append(IDS, logits()) == 0
        assert second.append(IDS[::-1], logits()[::-1]) == 0
    assert untouched(part) == before and len(list((tmp_path / "swin").iterdir())) == 2


def test_row_38_same_item_other_bytes_is_a_conflict(tmp_path):
    one_part(tmp_path)
    with (
        Immediate(tmp_path / "swin") as second,
        pytest.raises(
            CacheConflictError, match=r"id 'ape' .*digest [0-9a-f]{64}, this one's [0-9a-f]{64}; the first is kept"
        ),
    ):
        second.append(IDS, logits(seed=1))
    np.testing.assert_array_equal(open_cache(tmp_path / "swin").scores, logits())


def test_row_38_two_writers_at_the_same_moment(tmp_path, monkeypatch):
    """Neither sees the other's part when it looks, and both want the same name: the link decides."""
    first, second = Immediate(tmp_path / "swin"), Immediate(tmp_path / "swin")
    first.append(["zoo"], logits(1))
    second.append(["zoo"], logits(1))
    monkeypatch.setattr(second, "_refresh", list)
    first.append(IDS, logits())
    with pytest.raises(CacheConflictError, match=r"its digest is [0-9a-f]{64}, this one's [0-9a-f]{64}; the first is"):
        second.append(IDS, logits(seed=1))
    np.testing.assert_array_equal(open_cache(tmp_path / "swin").scores[:4], logits())


@pytest.mark.parametrize(
    ("field", "old", "new"),
    [("fingerprint", "sha256:aa", "sha256:bb"), ("view_plan", {"clips": 10}, {"clips": 4}), ("kind", "logits", "sum")],
)
def test_row_39_resuming_with_another_checkpoint_or_view_plan(tmp_path, field, old, new):
    with Immediate(tmp_path / "swin", **{field: old}) as writer:
        writer.append(["ape"], logits(1))
    with pytest.raises(CacheConflictError) as caught:
        Immediate(tmp_path / "swin", **{field: new})
    assert repr(old) in str(caught.value) and repr(new) in str(caught.value)
    assert open_cache(tmp_path / "swin").ids.tolist() == ["ape"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_row_40_disk_full_or_io_error(tmp_path, monkeypatch, code):
    writer = Immediate(tmp_path / "swin")
    writer.append(["ape"], logits(1))

    def fail(descriptor, data):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(OSError) as caught:
            writer.append(["bee"], logits(1))
    assert caught.value.errno == code and "swin/part-" in str(caught.value.filename)
    assert open_cache(tmp_path / "swin").ids.tolist() == ["ape"]
    assert not list((tmp_path / "swin").glob(".tmp-*"))


def test_row_41_reading_an_unfinished_cache(tmp_path):
    names = [f"v{i:04d}" for i in range(1000)]
    with Immediate(tmp_path / "swin", expected_ids=names) as writer:
        writer.append(names[:812], logits(812))
    with pytest.raises(CacheIncompleteError, match="812 of 1000"):
        load_stack(tmp_path)
    assert len(load_stack(tmp_path, partial=True)) == 812


def test_row_46_no_ids_says_order_unchecked():
    stack = vf.LogitStack.from_arrays({"swin": logits(), "x3d": logits()})
    assert stack.ids is None and "order unchecked" in repr(stack) and "order unchecked" in stack._repr_html_()
    with pytest.raises(AlignmentError, match="pass ids"):
        vf.LogitStack.from_arrays({"swin": logits(4), "x3d": logits(3)})


def test_row_47_labels_of_members_differ():
    labels = {"swin": [0, 1, 2, 0], "x3d": [0, 2, 2, 1]}
    with pytest.raises(
        AlignmentError, match=r"for 2 of 4 videos \(id 'bee' \(row 1\): 1 and 2; id 'dog' \(row 3\): 0 and 1\)"
    ):
        vf.LogitStack.from_arrays({"swin": logits(), "x3d": logits()}, ids=IDS, labels=labels)


def test_row_48_a_member_in_another_order_is_suspected():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 300)
    good = (np.eye(10)[labels] * 3 + rng.normal(size=(300, 10))).astype(np.float32)
    with pytest.warns(VidfuseWarning, match="member 'x3d' .* another order"):
        vf.LogitStack.from_arrays({"swin": good, "x3d": good[rng.permutation(300)]}, labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vf.LogitStack.from_arrays({"swin": good, "x3d": good + rng.normal(size=good.shape)}, labels=labels)


def test_row_48_members_that_agree_on_validation_and_not_on_test_are_suspected():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 600)
    good = (np.eye(10)[labels] * 3 + rng.normal(size=(600, 10))).astype(np.float32)
    members = {"swin": good, "tin": good + rng.normal(size=good.shape), "x3d": good + rng.normal(size=good.shape)}
    stack = vf.LogitStack.from_arrays(members, labels=labels)
    test = {name: scores[300:] for name, scores in members.items()}
    shuffled = {**test, "x3d": test["x3d"][rng.permutation(300)]}
    for fuser in (vf.LinearPool(weights="uniform"), vf.LogLinearPool(), vf.MajorityVote()):
        fuser.fit(stack[:300])
        with pytest.warns(VidfuseWarning, match="member 'x3d' agreed with the others .* another order"):
            fuser.predict(vf.LogitStack.from_arrays(shuffled))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fuser.predict(vf.LogitStack.from_arrays(test))
            fuser.predict(vf.LogitStack.from_arrays({name: scores[:5] for name, scores in shuffled.items()}))


def test_row_52_members_are_selected_by_name():
    stack = vf.LogitStack.from_arrays({"swin": logits(), "x3d": logits(seed=1)})
    swapped = stack.select(["x3d", "swin"])
    np.testing.assert_array_equal(swapped.scores("swin"), stack.scores("swin"))
    np.testing.assert_array_equal(swapped.log_likelihoods()[:, ::-1], stack.log_likelihoods())
    with pytest.raises(InputError, match="unknown members 'tin'; the stack has 'swin', 'x3d'"):
        stack.select(["swin", "tin"])


def test_row_52_a_stack_whose_members_stand_in_another_order_is_reordered_at_predict_time():
    labels = np.arange(12) % 3
    stack = vf.LogitStack.from_arrays({"swin": logits(12), "x3d": logits(12, seed=1)}, labels=labels)
    for pool in (vf.LinearPool(weights={"swin": 3.0, "x3d": 1.0}), vf.LogLinearPool(), vf.StackedPool()):
        expected = pool.fit(stack).predict_proba(stack)
        np.testing.assert_array_equal(pool.predict_proba(stack.select(["x3d", "swin"])), expected)


def test_row_52_missing_predictions_are_noted_when_asked_for():
    ids = {"swin": IDS, "x3d": IDS[:2]}
    stack = vf.LogitStack.from_arrays({"swin": logits(4), "x3d": logits(2)}, ids=ids, join="outer")
    assert stack.present.tolist() == [[True, True], [True, True], [True, False], [True, False]]
    assert np.allclose(np.exp(stack.log_likelihoods()[2:, 1]), 1 / 3) and np.isnan(stack.scores("x3d")[2:]).all()
    assert stack[:2].present is None and "2 predictions missing" in repr(stack)


def test_row_53_labels_given_twice():
    labels = np.array([0, 1, 2, 0])
    assert check_same_labels([0, 1, 2, 0], labels).tolist() == labels.tolist()
    with pytest.raises(InputError, match=r"differ in 1 of 4 videos \(id 'cat' \(row 2\): y 1, stack 2\)"):
        check_same_labels([0, 1, 1, 0], labels, np.array(IDS))


def test_row_54_multi_label_or_regression_targets():
    for labels in (np.array([[0, 1, 1]] * 4), np.array([0.5, 1.5, 0.1, 2.0])):
        with pytest.raises(InputError, match="single-label classification only"):
            stack_of(logits(), labels=labels)
    with pytest.raises(InputError, match=r"one binary logit z may be given as \[0, z\]"):
        vf.LogitStack.from_arrays({"swin": np.zeros(4)})


def test_nothing_stored_is_lost_by_verifying(tmp_path):
    part = one_part(tmp_path)
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with Immediate(tmp_path / "swin") as writer:
        writer.append(["emu"], logits(1))
    report = verify(tmp_path, quarantine=True)
    assert not report.ok and [p.kind for p in report.problems] == ["CacheCorruptError"]
    assert report.problems[0].moved_to.read_bytes() == bytes(content)
    (missing,) = verify(tmp_path).problems
    assert missing.kind == "CacheIncompleteError" and f"not {len(IDS)} of parts that were set aside" in missing.message
    assert open_cache(tmp_path / "swin").ids.tolist() == ["emu"]
    with Immediate(tmp_path / "swin") as writer:
        assert writer.append([*IDS, "emu"], np.concatenate([logits(), logits(1)])) == 4
    assert verify(tmp_path).ok
    lost = report.problems[0].moved_to
    lost.write_bytes(content[:20])
    (unknown,) = verify(tmp_path).problems
    assert f"which ones '{lost.name}' in quarantine held cannot be told" in unknown.message


@pytest.mark.parametrize("expected", [IDS, None])
def test_a_cache_whose_only_part_was_set_aside_is_incomplete(tmp_path, expected):
    with Immediate(tmp_path / "swin", expected_ids=expected) as writer:
        writer.append(IDS, logits())
    (part,) = (tmp_path / "swin").glob("part-*")
    part.write_bytes(part.read_bytes()[:-1])
    assert not verify(tmp_path, quarantine=True).ok
    (missing,) = verify(tmp_path).problems
    assert missing.kind == "CacheIncompleteError"
    assert ("0 videos" if expected is None else f"0 of {len(IDS)} videos") in missing.message


def test_a_pickled_stack_of_a_changed_cache_is_refused(tmp_path):
    one_part(tmp_path)
    sent = pickle.dumps(load_stack(tmp_path))
    (part,) = (tmp_path / "swin").glob("*.safetensors")
    part.unlink()
    with Immediate(tmp_path / "swin") as writer:
        writer.append(IDS, logits(seed=1))
    with pytest.raises(CacheConflictError, match="load again"):
        pickle.loads(sent)
    next((tmp_path / "swin").glob("part-*")).unlink()
    with pytest.raises(CacheConflictError, match=r"the part is gone.*load the stack again"):
        pickle.loads(sent)


@pytest.mark.parametrize("quarantine", [False, True])
def test_a_prediction_under_way_is_no_damaged_cache(tmp_path, quarantine):
    """Its parts are left alone, or what goes on from them would lack their videos."""
    with CacheWriter(tmp_path / "shard0" / "swin") as writer:
        writer.append(["a"], np.zeros((1, 2)))
    begun = tmp_path / "shard1.partial"
    (begun / "output").mkdir(parents=True)
    (begun / "lock").touch()
    (begun / "output" / "part-0.safetensors").write_bytes(b"half")
    report = verify(tmp_path, quarantine=quarantine)
    (problem,) = report.problems
    assert len(report.caches) == 1 and problem.path == begun and problem.moved_to is None
    assert "not finished; give the command that writes it again" in problem.message
    assert [entry.name for entry in (begun / "output").iterdir()] == ["part-0.safetensors"]
    assert [len(cache) for cache in consolidate(tmp_path)] == [1]


def test_a_description_that_is_gone_or_empty_says_what_to_do(tmp_path):
    with CacheWriter(tmp_path) as writer:
        writer.append(["a"], np.zeros((1, 2)))
    for damage in (lambda meta: meta.write_text(""), lambda meta: meta.unlink()):
        damage(tmp_path / "meta.json")
        assert "restore it, or remove the folder and write the cache again" in verify(tmp_path).problems[0].message
