"""The restricted unpickler: what pickle and torch write comes back, what a hostile file asks for does not happen."""

from __future__ import annotations

import collections
import contextlib
import copyreg
import io
import os
import pickle
import struct
import sys
import tracemalloc

import numpy as np
import pytest

from vidfuse.errors import InputError
from vidfuse.formats import safe_pickle
from vidfuse.formats.dump import read_dump
from vidfuse.formats.safe_pickle import loads

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
    "default": collections.defaultdict(list, a=[1], b=[MATRIX]),
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
    "a bare list": b"cbuiltins\nlist\n.",
    "a call of list": b"cbuiltins\nlist\n(S'a'\ntR.",
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
        read_dump(path)
    assert not (tmp_path / "executed").exists()


def test_row_42_the_refused_name_is_told():
    with pytest.raises(InputError, match=r"it needs 'posix.system'; nothing was executed"):
        loads(pickle.dumps(os.system))


@pytest.mark.parametrize("dtype", ["M8[s]", "V3", "c8", [("a", "f4")]])
def test_row_42_arrays_of_anything_but_numbers_and_texts_are_refused(dtype):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(InputError, match="but it needs an array of dtype"):
            loads(pickle.dumps(np.zeros(2, dtype), protocol=protocol))


# Gadgets: the inside of pickles by which Python's own unpickler does run something. They are tried by themselves and
# within everything that a pickle may hold.


def touch(*_):
    with open("executed", "w"):
        pass


class Touches:
    def __new__(cls, *_):
        touch()
        return super().__new__(cls)


class TouchesWhenBuilt:
    def __setstate__(self, state):
        touch()


class TouchesWhenExtended:
    extend = append = add = __setitem__ = touch


class TouchesWhenHashed:
    def __hash__(self):
        touch()
        return 0


def own(name):
    return stack_global(__name__.encode(), name)


def line(text):
    return b"c" + text.encode().replace(b"/", b"\n") + b"\n"


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


EXTENSION = 0xF0
GADGETS = {
    "reduce": own(b"touch") + b")R",
    "reduce of a name in lines": line(f"{__name__}/touch") + b")R",
    "reduce with arguments": own(b"touch") + b"K\x01K\x02\x86R",
    "memoized": own(b"touch") + b"\x940h\x00)R",
    "inst": b"(i" + __name__.encode() + b"\ntouch\n",
    "obj": b"(" + own(b"touch") + b"K\x01o",
    "newobj": own(b"Touches") + b")\x81",
    "newobj_ex": own(b"Touches") + b")}\x92",
    "inst of a class": b"(i" + __name__.encode() + b"\nTouches\n",
    "build": own(b"TouchesWhenBuilt") + b")R}b",
    "append": own(b"TouchesWhenExtended") + b")RNa",
    "appends": own(b"TouchesWhenExtended") + b")R(Ne",
    "additems": own(b"TouchesWhenExtended") + b")R(N\x90",
    "setitem": own(b"TouchesWhenExtended") + b")RNNs",
    "hash": b"}" + own(b"TouchesWhenHashed") + b")RNs",
    "set": b"\x8f(" + own(b"TouchesWhenHashed") + b")R\x90",
    "frozenset": b"(" + own(b"TouchesWhenHashed") + b")R\x91",
    "extension": b"\x82\xf0)R",
    "extension of two bytes": b"\x83\xf0\x00)R",
    "extension of four bytes": b"\x84\xf0\x00\x00\x00)R",
    "dotted name": stack_global(b"os", b"path.os.system") + text("touch executed") + b"\x85R",
    "name of Python 2": b"\x80\x02" + line("__builtin__/eval") + text("__import__('os').mkdir('executed')") + b"\x85R",
    "getattr": line("builtins/getattr")
    + line("importlib/import_module")
    + text(__name__)
    + b"\x85R"
    + text("touch")
    + b"\x86R)R",
    "import": line("touching_module/name"),
    "partial": line("functools/partial") + own(b"touch") + b"\x85R)R",
    "state of a partial": line("functools/partial") + line("os/getpid") + b"\x85R(" + own(b"touch") + b")}Ntb)R",
    "code of a function": line("types/FunctionType") + own(b"touch.__code__") + line("builtins/__dict__") + b"\x86R)R",
    "map": line("builtins/list") + line("builtins/map") + own(b"touch") + b"(Nl\x86R\x85R",
}
_call = b"\x80\x02" + line(f"{__name__}/touch") + b")R."
GADGETS["torch.load"] = line("torch.storage/_load_from_bytes") + b"C" + bytes([len(_call)]) + _call + b"\x85R"
WITHIN = {
    "nothing": lambda gadget: gadget,
    "a list": lambda gadget: b"](" + gadget + b"e",
    "a dict": lambda gadget: b"}N" + gadget + b"s",
    "a dict's keys": lambda gadget: b"}" + gadget + b"Ns",
    "a dict's pairs": lambda gadget: line("collections/OrderedDict") + b"]N" + gadget + b"\x86a\x85R",
    "an argument": lambda gadget: line("torch/Size") + b"(" + gadget + b"t\x85R",
    "a state": lambda gadget: line("numpy/dtype") + b"X\x02\x00\x00\x00f4\x85R(K\x03" + gadget + b"tb",
    "a persistent id": lambda gadget: gadget + b"Q",
    "a tensor's storage": lambda gadget: (
        line("torch.storage/_load_from_bytes") + b"B" + struct.pack("<I", len(gadget) + 1) + gadget + b".\x85R"
    ),
}


@pytest.fixture
def armed(tmp_path, monkeypatch):
    """A folder with a module that acts when it is imported, and an extension code that stands for `touch`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "touching_module.py").write_text("open('executed', 'w').close()\nname = 1\n")
    monkeypatch.delitem(sys.modules, "touching_module", raising=False)
    copyreg.add_extension(__name__, "touch", EXTENSION)
    yield tmp_path / "executed"
    copyreg.remove_extension(__name__, "touch", EXTENSION)
    sys.modules.pop("touching_module", None)


@pytest.mark.parametrize("name", GADGETS)
def test_row_42_a_gadget_runs_in_pythons_unpickler_and_nowhere_here(name, armed):
    for place, within in WITHIN.items():
        with pytest.raises(InputError, match=r"expected a pickle of arrays|damaged pickle"):
            loads(b"\x80\x04" + within(GADGETS[name]) + b".")
        assert not armed.exists(), place
        assert "touching_module" not in sys.modules
    with contextlib.suppress(Exception):  # what comes after the call may fail: it has run
        pickle.loads(b"\x80\x04" + GADGETS[name] + b".")
    assert armed.exists()
    if "extension" in name:  # what an extension code stands for is now kept, where it is found without a name
        armed.unlink()
        with pytest.raises(InputError, match="the opcode"):
            loads(b"\x80\x04" + GADGETS[name] + b".")
        assert not armed.exists()


def names():
    return [*safe_pickle._CALLS, *safe_pickle._STORAGES, "numpy.ndarray"]


@pytest.mark.parametrize("name", names())
def test_row_42_a_stand_in_can_be_neither_changed_nor_kept(name):
    found = stack_global(*(part.encode() for part in name.rsplit(".", 1)))
    state = b"}X\x05\x00\x00\x00valueX\x09\x00\x00\x00os.systems"
    before = {key: repr(value) for key, value in vars(safe_pickle).items()}
    for tried in (
        found + b"}b",
        found + state + b"b",
        found + b"N" + state + b"\x86b",
        found + state + state + b"\x86b",
        found + b"NNs",
        found + b"Na",
        found + b"(Ne",
        b"}" + found + b"Ns",
        b"](" + found + b"e",
        found + b"Q",
        found,
    ):
        with pytest.raises(InputError):
            loads(b"\x80\x04" + tried + b".")
    assert {key: repr(value) for key, value in vars(safe_pickle).items()} == before


def test_row_42_nothing_is_looked_up_imported_or_opened(armed):
    """Python reports such steps to audit hooks: none is reported while these files are read."""
    tried = [b"\x80\x04" + within(gadget) + b"." for gadget in GADGETS.values() for within in WITHIN.values()]
    tried += [*HOSTILE.values(), *(pickle.dumps(value) for value in VALUES.values())]
    watched = []
    sys.addaudithook(lambda event, _: watched.append(event) if watching else None)
    watching = [True]
    for data in tried:
        with contextlib.suppress(InputError):
            loads(data)
    watching.clear()
    steps = ("import", "open", "exec", "compile", "marshal", "pickle", "os", "subprocess", "code", "object", "function")
    assert [event for event in watched if event.partition(".")[0] in steps] == []


def test_a_frame_cannot_hide_opcodes():
    """A frame that ends within a text makes Python's unpickler take the text from behind the frame, and go on there.

    It then meets opcodes that, by the lengths that are written, are the content of the second value.
    """
    first, content = b"\x8c\x20" + b"a" * 32, b"N" * 8 + b"\x82\xf0" + b"N" * 30
    frame = b"\x95" + struct.pack("<Q", 12)  # the first text's head and ten of its letters
    data = b"\x80\x04" + frame + first + b"C" + bytes([len(content)]) + content + b"."
    # Newer Pythons notice that the frame ends early.
    said = r"extension code 240|exhausted before end of frame"
    with pytest.raises((ValueError, pickle.UnpicklingError), match=said):
        pickle.Unpickler(io.BytesIO(data)).load()
    assert loads(data) == content


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


def filled(opcodes):
    """Opcodes with as many bytes of text between them as a pickle must have for each object."""
    return b"".join(opcode + b"C\x06......0" for opcode in opcodes)


ARRAY = line("numpy.core.multiarray/_reconstruct") + line("numpy/ndarray") + b"K\x00\x85C\x01b\x87R"
FLOATS, OBJECTS = (line("numpy/dtype") + b"\x8c\x02" + code + b"\x89\x88\x87R" for code in (b"f4", b"O8"))
LARGE, INDICES = b"\x8a\x07\xff\xff\xff\xff\xff\xff\x7f", [struct.pack("<I", index) for index in range(19999)]
STRIDED = pickle.dumps(torch.arange(6.0), 2).replace(b"K\x06\x85", b"J\xff\xff\xff\x7f\x85", 1)
BOMBS |= {
    "long frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "far memo in text": b"Np99999999999\n.",
    "negative memo": b"Np-1\n.",
    "dicts": b"\x80\x04" + b"}" * 100_000 + b".",
    "dict by mark": b"(" + b"N\x85Nd.",
    "persistent lists": b"\x80\x04](" + b"NN" * 10_000 + b"e\x94" + b"h\x00Q0" * 10_000 + b".",
    "deep tuple of a larger file as a key": b"\x80\x04}N" + filled([b"\x85"] * 200_000) + b"Ns.",
    "doubled tuples as a key": b"\x80\x04}N\x94" + b"".join(b"0h%ch%c\x86\x94" % (i, i) for i in range(60)) + b"Ns.",
    "huge shape": ARRAY + b"(K\x01" + b"J\xff\xff\xff\x7f" * 3 + b"\x87" + FLOATS + b"\x89C\x04abcdtb.",
    "long shape": ARRAY
    + b"(K\x01("
    + b"\x8a\x07\xff\xff\xff\xff\xff\xff\x7f" * 99_999
    + b"t"
    + FLOATS
    + b"\x89C\x00tb.",
    "repeated content": b"B\xa0\x86\x01\x00"
    + b"a" * 100_000
    + b"\x940"
    + (ARRAY + b"(K\x01J\xa8\x61\x00\x00\x85" + FLOATS + b"\x89h\x00tb0") * 1000
    + b"N.",
    "array within itself": ARRAY + b"\x94(K\x01K\x01\x85" + OBJECTS + b"\x89]h\x00atb.",
    "arrays within arrays": b"N"
    + b"".join(
        b"\x94" + ARRAY + b"(K\x01K\x01\x85" + OBJECTS + b"\x89]j%batb" % struct.pack("<I", i) for i in range(19999)
    )
    + b".",
    "tensor of one number": STRIDED.replace(b"K\x01\x85", b"K\x00\x85", 1),
}
HARMLESS = ("memos", "empty array of huge shape", "long frame")


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


@pytest.mark.parametrize("as_pickle", [True, False])
def test_a_tensor_that_is_a_negative_view_is_refused(as_pickle, tmp_path):
    tensor = torch.complex(torch.zeros(3), torch.ones(3)).conj().imag
    torch.save(tensor, tmp_path / "x.pt", _use_new_zipfile_serialization=not as_pickle)
    with pytest.raises(InputError, match="a tensor that is a negative or conjugate view"):
        read_dump(tmp_path / "x.pt")


def test_keys_of_other_types_are_refused_and_no_damage():
    with pytest.raises(InputError, match="it needs a dict's key of type tuple"):
        loads(pickle.dumps({("a", 0): 1.0}))
