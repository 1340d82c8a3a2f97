"""The restricted unpickler: what pickle and torch write comes back, what a hostile file asks for does not happen."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from vidfuse.errors import InputError
from vidfuse.formats.safe_pickle import load_pickle, loads

torch = pytest.importorskip("torch")

CELLS = np.empty(2, dtype=object)
CELLS[0], CELLS[1] = np.ones((2, 3), np.float32), np.zeros((1, 3), np.float32)
MATRIX = torch.arange(20, dtype=torch.float32).reshape(5, 4) / 7
VALUES = {
    "sample": {"pred_score": MATRIX[1], "gt_label": torch.tensor([3])},
    "dtypes": [MATRIX.half(), MATRIX.bfloat16(), MATRIX.double(), MATRIX.int(), MATRIX > 1],
    "views": [MATRIX.T, MATRIX[:, 1:3], MATRIX[0, 0], torch.empty(0, 4)],
    "parameter": torch.nn.Parameter(MATRIX),
    "arrays": [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">i4"),
    ],
    "strings": np.array(["a", "bc"]),
    "objects": CELLS,
    "scalars": [np.float32(2.5), np.int64(3), np.bool_(True)],
    "plain": [1, -5, 300, 70000, 2**70, 1.5, "é", b"x", b"", None, True, (1, (2, [3])), {}, []],
    "ordered": collections.OrderedDict(a=1, b=[2]),
    "shared": [MATRIX, MATRIX],
}


def assert_same(expected, found):
    if isinstance(expected, torch.Tensor):
        tensor = expected.detach()
        expected = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if isinstance(expected, list | tuple):
        assert len(expected) == len(found)
        for left, right in zip(expected, found, strict=True):
            assert_same(left, right)
    elif isinstance(expected, dict):
        assert list(expected) == list(found)
        for key in expected:
            assert_same(expected[key], found[key])
    elif isinstance(expected, np.ndarray) and expected.dtype == object:
        assert_same(list(expected), list(found))
    else:
        assert np.asarray(expected).dtype.kind == np.asarray(found).dtype.kind
        np.testing.assert_array_equal(expected, found)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", VALUES)
def test_what_pickle_writes_is_read(name, protocol):
    assert_same(VALUES[name], loads(pickle.dumps(VALUES[name], protocol=protocol)))


class Runs:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def stack_global(module, name):
    return b"\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93"


HOSTILE = {
    "system": pickle.dumps(Runs(os.system, "touch executed")),
    "nested": pickle.dumps([1, {"a": Runs(eval, "open('executed', 'w')")}]),
    "protocol 0": b"cposix\nsystem\n(S'touch executed'\ntR.",
    "inst": b"(S'touch executed'\niposix\nsystem\n.",
    "obj": b"(cposix\nsystem\nS'touch executed'\no.",
    "getattr": b"c__builtin__\ngetattr\n(c__builtin__\n__import__\nS'__call__'\ntR.",
    "dotted name": b"\x80\x04" + stack_global(b"numpy", b"dtype.__class__") + b".",
    "numpy's own exec": b"\x80\x04" + stack_global(b"numpy.testing._private.utils", b"runstring") + b"\x8c\x01a}\x86R.",
    "torch.load": b"\x80\x04" + stack_global(b"torch", b"load") + b"\x8c\x01a\x85R.",
    "newobj": b"\x80\x02cposix\nsystem\n)\x81.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"\x80\x02U\x01aQ.",
    "build a name": b"cnumpy\ndtype\n}b.",
    "call a string": b"S'a'\n)R.",
    "set state of a dict": b"}(S'__class__'\nNdb.",
    "storage that runs": None,
    "numpy object scalar": b"\x80\x04"
    + stack_global(b"numpy.core.multiarray", b"scalar")
    + b"("
    + stack_global(b"numpy", b"dtype")
    + b"\x8c\x02O8\x89\x88\x87RC\x03abctR.",
}
_inner = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.cposix\nsystem\n(S'touch executed'\ntR."
HOSTILE["storage that runs"] = (
    b"\x80\x04"
    + stack_global(b"torch.storage", b"_load_from_bytes")
    + b"B"
    + struct.pack("<I", len(_inner))
    + _inner
    + b"\x85R."
)


@pytest.mark.parametrize("name", HOSTILE)
def test_row_42_a_pickle_that_needs_more_is_refused_and_nothing_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "dump.pkl"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(InputError, match=r"dump\.pkl: (expected a pickle of arrays|damaged pickle)"):
        load_pickle(path)
    assert not (tmp_path / "executed").exists()


def test_row_42_the_refused_name_is_told():
    with pytest.raises(InputError, match=r"it needs 'posix.system'; nothing was executed"):
        loads(pickle.dumps(os.system))


@pytest.mark.parametrize("dtype", ["M8[s]", "V3", "c8", [("a", "f4")]])
def test_row_42_arrays_of_anything_but_numbers_and_texts_are_refused(dtype):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(InputError, match="but it needs an array of dtype"):
            loads(pickle.dumps(np.zeros(2, dtype), protocol=protocol))


def doubled(levels):
    """Lists of two references to the list before: 2^levels leaves in a few bytes."""
    return b"\x80\x04]\x94" + b"".join(b"]\x94(h%ch%ce" % (i, i) for i in range(levels)) + b"."


BOMBS = {
    "claimed bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "claimed text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.",
    "negative length": b"T\xff\xff\xff\xffx.",
    "far memo": b"\x80\x04Nr\xff\xff\xff\xff.",
    "lists": b"\x80\x04" + b"]" * 100_000 + b".",
    "marks": b"\x80\x04" + b"(" * 100_000 + b".",
    "memos": b"\x80\x04N" + b"\x94" * 100_000 + b".",
    "shared dtype": doubled(60)[:-1] + stack_global(b"numpy", b"dtype") + b"h<\x85R.",
    "shared name": doubled(60)[:-1] + b"h<h<\x93.",
    "repeated dicts": b"\x80\x04]("
    + b"\x8c\x01aN\x86" * 10_000
    + b"e\x94ccollections\nOrderedDict\n\x94"
    + b"h\x01h\x00\x85R0" * 10_000
    + b".",
    "repeated encoding": b"\x80\x04X"
    + struct.pack("<I", 100_000)
    + b"a" * 100_000
    + b"\x94c_codecs\nencode\n\x94"
    + b"h\x01h\x00\x85R" * 10_000
    + b".",
    "long number": b"I" + b"9" * 100_000 + b"\n.",
    "empty array of huge shape": pickle.dumps(np.zeros((0, 4)), protocol=2).replace(b"K\x04", b"J\xff\xff\xff\x7f"),
    "deep tuple as a key": b"\x80\x04}(" + b"N" + b"\x85" * 100_000 + b"Nu.",
    "colliding keys": b"\x80\x04}("
    + b"".join(b"\x8a\x0b" + ((2**61 - 1) * i).to_bytes(11, "little") + b"N" for i in range(1, 9999))
    + b"u.",
}


HARMLESS = ("far memo", "empty array of huge shape")


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_and_costs_little_memory(name):
    tracemalloc.start()
    try:
        with contextlib.nullcontext() if name in HARMLESS else pytest.raises(InputError):
            loads(BOMBS[name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (1 << 22) + 64 * len(BOMBS[name])


def test_shared_tuples_are_not_multiplied():
    doubled_tuples = b"".join(b"0h%ch%c\x86\x94" % (level, level) for level in range(60))
    value = loads(b"\x80\x04]\x85\x94" + doubled_tuples + b".")
    for _ in range(60):
        assert value[0] is value[1]
        value = value[0]
    assert value == [[]]


@pytest.mark.parametrize("where", ["size", "stride", "offset"])
def test_a_tensor_cannot_reach_beyond_its_storage(where):
    def pickled(offset, size, stride):
        tensor = pickle.dumps(torch.arange(6.0), protocol=2)
        return tensor.replace(b"K\x00K\x06\x85", b"K%cK%c\x85" % (offset, size), 1).replace(
            b"K\x01\x85", b"K%c\x85" % stride, 1
        )

    assert loads(pickled(0, 6, 1)).shape == (6,)
    bad = {"size": (0, 7, 1), "stride": (0, 6, 2), "offset": (1, 6, 1)}[where]
    with pytest.raises(InputError, match="beyond its storage"):
        loads(pickled(*bad))


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_a_truncated_pickle_is_refused(cut):
    with pytest.raises(InputError, match=r"damaged pickle|expected a pickle"):
        loads(pickle.dumps(VALUES["sample"])[:cut])
