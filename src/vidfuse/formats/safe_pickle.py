"""Read arrays, tensors and plain containers from a pickle without running anything that it names.

A pickle is a program: it imports names and calls them. Here Python's own unpickler runs it, between two fences::

    bytes → _scan: opcodes, lengths, counts → pickle.Unpickler → _finish: stand-ins become arrays → plain values
                                               ↑ find_class: names become stand-ins

`_scan` lets through only opcodes that build plain values or call a name, and what they claim must lie in the file.
`find_class` never imports: it knows a fixed list of names, and hands out stand-ins for them. So all that a pickle can
get hold of are numbers, texts, bytes, lists, tuples, dicts and objects of this file, which do one thing each and cannot
be changed. Time and memory stay within a small multiple of the file's size.

Tensors follow torch's stream of `torch.save` in its legacy form, which is what a plain pickle of a tensor contains, or
name storages that lie beside the pickle in an archive, as `torch.save` writes them now, or follow it, as it did before.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError

__all__ = ["loads"]

_SPARE: Final = 1024  # objects that even an empty pickle may make
_MAX_AXES: Final = 32
_STORAGES: Final[dict[str, str]] = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "<u2",  # the upper halves of float32 numbers
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
_DTYPE_CODES: Final = frozenset({"b1", "O8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_OLD_TORCH: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, as it pickles it
_TORCH_HEAD: Final = [0x1950A86A20F9469CFC6C, 1001]  # its magic number and protocol


class _RefusedError(Exception):
    """The pickle asks for something that is not allowed."""


def loads(data: bytes, storage: Callable[[str], bytes] | None = None, size: int = 0) -> Any:
    """Load a pickle that holds arrays, tensors and plain containers.

    Args:
        data: The pickle.
        storage: Returns the bytes of a tensor's storage by its key, for pickles that lie in an archive of torch.
        size: The size of that archive.

    Returns:
        Its content: tensors have become NumPy arrays, dicts of other kinds plain ones, tuples lists.

    Raises:
        InputError: The pickle names anything else (the message says what), or is damaged. Nothing was executed.

    Example:
        >>> import os, pickle
        >>> loads(pickle.dumps({"a": [1, np.float32(2)]}))
        {'a': [1, 2.0]}
        >>> loads(pickle.dumps(os.system))
        Traceback (most recent call last):
        vidfuse.errors.InputError: expected a pickle of arrays, tensors and plain containers, but it needs ...
    """
    try:
        if data.startswith(_OLD_TORCH):
            return _finish(_load_old_torch(data))
        account = _Account(max(len(data), size), storage=storage)
        return _finish(_Unpickler(_scan(data, 0, size)[0], account).load())
    except _RefusedError as error:
        how = "save the table of pandas as csv or parquet" if b"pandas" in data else "re-save the predictions as .npz"
        raise InputError(
            f"expected a pickle of arrays, tensors and plain containers, but it needs {error}; nothing was "
            f"executed: {how}"
        ) from error
    except Exception as error:  # whatever a damaged pickle leads the unpickler to
        raise InputError(f"damaged pickle: {type(error).__name__}: {error}") from error


# The first fence: opcodes. Not let through are those that make instances (INST, OBJ, NEWOBJ, NEWOBJ_EX), that take
# objects from a registry (EXT1, EXT2, EXT4) or from outside (PERSID, NEXT_BUFFER), sets, and integers of any length.

_ALLOWED: Final = "\x80\x95.(012NIJKLM\x88\x89\x8aFGSTUVX\x8c\x8dBC\x8e\x96]lae}dsu)t\x85\x86\x87pqr\x94ghjc\x93RbQ"
_OBJECTS: Final = frozenset(b"\x95(]l}dt\x85\x86\x87RQ")  # they make an object of nothing, or a piece in `_scan`
_REWRITTEN: Final = {ord("}"): b")Q", ord("d"): b"lQ", pickle.FRAME[0]: b""}
_SIZES: Final = {ord(op.code): 0 if op.arg is None else op.arg.n for op in pickletools.opcodes if op.code in _ALLOWED}
_LENGTHS: Final = {  # by what pickletools calls the size of an argument that begins with its length
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_WIDTHS: Final = [  # of opcodes with arguments of fixed size, negative for objects; 0 for those that need a look
    (-1 if code in _OBJECTS else 1) * (_SIZES[code] + 1) if _SIZES.get(code, -1) >= 0 and code not in b".r" else 0
    for code in range(256)
]


def _scan(data: bytes, start: int, size: int = 0) -> tuple[bytes, int]:
    """Check the opcodes of one pickle up to its STOP; return it, with some opcodes rewritten, and where it ends.

    Dicts are made by `_Unpickler.persistent_load`, so that what becomes their keys is looked at. Frames are left out:
    one that is not as long as it says makes the unpickler read opcodes where this scan saw none::

        } (EMPTY_DICT)        →  )Q   persistent_load(())
        ( k v k v … d (DICT)  →  lQ   persistent_load([k, v, k, v, …])
        FRAME n               →
    """
    view = memoryview(data)
    pieces: list[bytes | memoryview] = []
    at, kept, n_objects = start, start, 0
    # Legitimate pickles spend many bytes on each object; a bomb makes one byte do the work of thousands.
    most = _SPARE + max(len(data) - start, size) // 8
    while (opcode := data[at]) != pickle.STOP[0]:
        width = _WIDTHS[opcode]
        if width > 0:
            at += width
            continue
        end = at - width if width else _end_of(data, at)
        if width:
            n_objects += 1
            if n_objects > most:
                raise ValueError("more objects than a pickle of this size can need")
            if opcode in _REWRITTEN:
                pieces += [view[kept:at], _REWRITTEN[opcode]]
                kept = end
        at = end
    return b"".join([*pieces, view[kept : at + 1]]), at + 1


def _end_of(data: bytes, at: int) -> int:
    """Return where an opcode's argument ends: after a fixed size, after one line or two, or after a length and so many.

    Raises:
        _RefusedError: The opcode is not allowed.
        ValueError: The argument reaches beyond the pickle, or would make the memo, which is an array, longer than it.
    """
    opcode = data[at]
    size = _SIZES.get(opcode)
    if size is None:
        makes = "an object of a class, by " if opcode in b"\x81\x92io" else ""
        raise _RefusedError(f"{makes}the opcode {bytes([opcode])!r}")
    if size >= 0:
        end = at + 1 + size
    elif size == pickletools.UP_TO_NEWLINE:
        end = data.index(b"\n", at) + 1
        end = data.index(b"\n", end) + 1 if opcode == pickle.GLOBAL[0] else end
    else:
        begin = at + 1 + _LENGTHS[size]
        end = begin + int.from_bytes(data[at + 1 : begin], "little")
    if end > len(data):
        raise ValueError(f"truncated: {end - at} bytes are due, {len(data) - at} are left")
    if opcode in (pickle.PUT[0], pickle.LONG_BINPUT[0]):
        argument = data[at + 1 : end]
        index = int(argument) if opcode == pickle.PUT[0] else int.from_bytes(argument, "little")
        if index > _SPARE + len(data):
            raise ValueError(f"the memo's index {index} in a pickle of {len(data)} bytes")
    return end


# The second fence: names. All that a pickle gets for them, and all that they return, are plain values and stand-ins.


class _Account:
    """What one pickle has used so far: each byte of it may be copied, or read a second time, about four times.

    Args:
        size: The pickle's size, with the archive's that it lies in.
        nested: It describes a tensor's storage within another pickle.
        storage: Reads a storage that lies beside it.
    """

    def __init__(self, size: int, *, nested: bool = False, storage: Callable[[str], bytes] | None = None) -> None:
        self.bytes_left, self.nested, self.storage = 64 * _SPARE + 4 * size, nested, storage
        self.storages: dict[str, _Storage] = {}
        self.awaited: dict[str, str] | None = None  # storages by key, with their kinds, whose numbers come later
        self.torch_head = b"\0"  # the pickles that begin every tensor's stream alike, once they were read

    def charge(self, size: int) -> None:
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise ValueError("more memory than a pickle of this size can need")

    def bytes_of(self, content: Any) -> bytes | bytearray:
        if not isinstance(content, bytes | bytearray | str):
            raise ValueError("an array's content is not bytes")
        self.charge(len(content))
        return content.encode("latin-1") if isinstance(content, str) else content


class _StandIn:
    """What a pickle holds in the place of something real; it can neither be changed by BUILD nor be a dict's key."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any) -> None:
        self.value = value

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("the state of an object")


class _Storage(_StandIn):
    """The numbers of a tensor."""


class _Name(_StandIn):
    """A name, which is compared, or stands for a function of `_CALLS`."""

    __slots__ = ("account",)

    def __init__(self, value: str, account: _Account) -> None:
        self.value, self.account = value, account

    def __call__(self, *arguments: Any) -> Any:
        if self.value not in _CALLS:
            raise _RefusedError(f"a call of {self.value!r}")
        return _CALLS[self.value](self.account, *arguments)


class _Dtype(_StandIn):
    """A dtype's code without its byte order, which comes with a later BUILD."""

    __slots__ = ("order",)

    def __init__(self, code: str) -> None:
        self.value, self.order = code.lstrip("<>|="), ">" if code.startswith(">") else "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def real(self) -> np.dtype[Any]:
        return np.dtype(object if self.value == "O8" else self.order + self.value)


class _Array(_StandIn):
    """An array; its content may come with a later BUILD.

    What is in an array of objects stays a list up to `_finish`: freeing arrays within arrays within arrays … recurses.
    """

    __slots__ = ("account", "shape")

    def __init__(self, value: Any, account: _Account) -> None:
        self.value, self.account = value, account
        self.shape: tuple[int, ...] | None = None  # of an array of objects

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not _real(dtype).hasobject:
            self.value = _shaped(self.account.bytes_of(content), dtype, shape, bool(fortran))
        elif isinstance(content, list) and _count(shape) == len(content):
            self.account.charge(8 * len(content))
            self.value, self.shape = content, shape
        else:
            raise ValueError("an object array without as many items as its shape says")


class _Dict(dict[Any, Any]):
    """A dict whose keys can neither recurse when they are hashed nor be made to collide."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        if not (isinstance(key, str | bytes | bool | None) or (isinstance(key, int) and abs(key) < 1 << 60)):
            raise _RefusedError(f"a dict's key of type {type(key).__name__}")
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        if state is not None and state != {}:
            raise _RefusedError("the state of an object")


class _Unpickler(pickle.Unpickler):
    """Python's unpickler for a scanned pickle: it imports nothing, and finds nothing but `_CALLS` and `_STORAGES`."""

    def __init__(self, data: bytes, account: _Account) -> None:
        super().__init__(io.BufferedReader(io.BytesIO(data), min(len(data), 1 << 17)), encoding="latin-1")
        self.account = account

    def find_class(self, module: str, name: str) -> _Name:
        text = f"{module}.{name}"
        if text not in _CALLS and text not in _STORAGES and text not in _BARE:
            raise _RefusedError(repr(text[:200]))
        return _Name(text, self.account)

    def persistent_load(self, pid: Any) -> Any:
        """Make a dict (see `_scan`), read a storage, or leave its description, in a stream of torch, as it is."""
        if isinstance(pid, list) or (isinstance(pid, tuple) and not pid):
            return _dict(self.account, zip(pid[::2], pid[1::2], strict=True), len(pid))
        if isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage":
            if self.account.storage is not None and len(pid) == 5:
                return _storage_beside(self.account, *pid[1:])
            if self.account.awaited is not None and len(pid) == 6 and pid[5] is None:
                return _storage_later(self.account, *pid[1:5])
        if not self.account.nested or not isinstance(pid, tuple) or len(pid) != 6 or pid[0] != "storage":
            raise _RefusedError("a persistent object")
        return pid


# What stands behind the names: arrays are rebuilt from bytes of the file, of sizes that fit.


def _real(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype):
        raise ValueError("an array's dtype is not a dtype")
    return dtype.real()


def _count(shape: Any) -> int:
    if not isinstance(shape, tuple) or len(shape) > _MAX_AXES:
        raise ValueError("an impossible shape")
    if not all(type(extent) is int and 0 <= extent < 1 << 62 for extent in shape):
        raise ValueError("an impossible shape")
    return math.prod(shape)


def _shaped(raw: bytes | bytearray, dtype: Any, shape: Any, fortran: bool) -> NDArray[Any]:
    real = _real(dtype)
    if _count(shape) * real.itemsize != len(raw) or real.hasobject:
        raise ValueError(f"an array of shape {shape} and dtype {real} does not have {len(raw)} bytes")
    return np.frombuffer(raw, real).reshape(shape, order="F" if fortran else "C")


def _dtype(account: _Account, code: Any, *_: Any) -> _Dtype:
    if not isinstance(code, str):
        raise ValueError("a dtype's code is not text")
    if code.lstrip("<>|=") not in _DTYPE_CODES and not (code[:1] in "US" and code[1:].isdecimal() and len(code) < 6):
        raise _RefusedError(f"an array of dtype {code[:50]!r}")
    return _Dtype(code)


def _scalar(account: _Account, dtype: Any, content: Any = b"") -> Any:
    if _real(dtype).hasobject:
        raise _RefusedError("a scalar of dtype object")
    return _shaped(account.bytes_of(content), dtype, (), False).item()


def _from_buffer(account: _Account, content: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> _Array:
    return _Array(_shaped(account.bytes_of(content), dtype, shape, order == "F"), account)


def _encode(account: _Account, text: Any, encoding: Any = "latin1") -> bytes | bytearray:
    if encoding not in ("latin1", "latin-1"):
        raise _RefusedError("a codec other than latin1")
    return account.bytes_of(text)


def _storage(account: _Account, content: Any) -> _Storage:
    """Read one storage from torch's stream: five pickles, a count (8 bytes), and the numbers.

    The pickles are: magic number, protocol, system, description ("storage", type, key, device, count, view), [key].
    """
    if account.nested:
        raise _RefusedError("a storage within a storage")
    data = bytes(account.bytes_of(content))
    if not data.startswith(account.torch_head):
        (magic, protocol, system), at = _load_several(data, 0, 3)
        if [magic, protocol] != _TORCH_HEAD or system.get("little_endian") is not True:
            raise ValueError("a tensor's stream is not a little-endian one of torch")
        account.torch_head = data[:at]
    ((_, kind, _, _, count, view), _), at = _load_several(data, len(account.torch_head), 2)
    if not isinstance(kind, _Name) or kind.value not in _STORAGES or view is not None:
        raise _RefusedError("a storage that shares another one's memory")
    if int.from_bytes(data[at : at + 8], "little") != count:
        raise ValueError(f"a storage of {count} numbers says that it has others")
    return _numbers(account, memoryview(data)[at + 8 :], kind.value, count)


def _storage_beside(account: _Account, kind: Any, key: Any, _: Any, count: Any) -> _Storage:
    """Read a storage that lies beside the pickle in an archive; each once, as tensors may share one."""
    if not isinstance(kind, _Name) or kind.value not in _STORAGES or not isinstance(key, str):
        raise _RefusedError("a storage of an unknown kind")
    if account.storage is not None and key not in account.storages:
        account.storages[key] = _numbers(account, account.storage(key), kind.value, count)
    return account.storages[key]


def _storage_later(account: _Account, kind: Any, key: Any, _: Any, count: Any) -> _Storage:
    """Make room for a storage whose numbers follow the pickle; tensors are views of it."""
    if (
        not isinstance(kind, _Name)
        or kind.value not in _STORAGES
        or not isinstance(key, str)
        or account.awaited is None
    ):
        raise _RefusedError("a storage of an unknown kind")
    if key not in account.storages:
        dtype = np.dtype("<f4" if kind.value == "torch.BFloat16Storage" else _STORAGES[kind.value])
        if type(count) is not int or count < 0:
            raise ValueError("an impossible storage")
        account.charge(count * dtype.itemsize)
        account.storages[key] = _Storage(np.zeros(count, dtype))
        account.awaited[key] = kind.value
    return account.storages[key]


def _load_old_torch(data: bytes) -> Any:
    """Read a file of torch before 1.6: three pickles about torch, the content, the keys, and each storage's numbers.

    A storage is its count (8 bytes) and the numbers, in the order of the keys.
    """
    ((magic, protocol, system), at) = _load_several(data, 0, 3)
    if [magic, protocol] != _TORCH_HEAD or system.get("little_endian") is not True:
        raise ValueError("not a little-endian file of torch")
    account = _Account(len(data))
    account.awaited = {}
    piece, at = _scan(data, at)
    content = _Unpickler(piece, account).load()
    ((keys,), at) = _load_several(data, at, 1)
    if not isinstance(keys, list) or sorted(keys) != sorted(account.awaited):
        raise ValueError("storages that nothing names, or that are not there")
    for key in keys:
        values = account.storages[key].value
        kind = account.awaited[key]
        end = at + 8 + len(values) * np.dtype(_STORAGES[kind]).itemsize
        if int.from_bytes(data[at : at + 8], "little") != len(values) or end > len(data):
            raise ValueError(f"a storage of {len(values)} numbers has others")
        values[...] = _numbers(account, memoryview(data)[at + 8 : end], kind, len(values)).value
        at = end
    return content


def _numbers(account: _Account, data: bytes | memoryview, kind: str, count: int) -> _Storage:
    values = np.frombuffer(data, _STORAGES[kind])
    if len(values) != count:
        raise ValueError(f"a storage of {count} numbers has {len(data)} bytes")
    if kind == "torch.BFloat16Storage":
        account.charge(4 * len(values))
        values = (values.astype("<u4") << np.uint32(16)).view("<f4")
    return _Storage(values)


def _load_several(data: bytes, at: int, count: int) -> tuple[list[Any], int]:
    """Load pickles that follow each other within a tensor's stream; return them, and where the last one ends."""
    pieces = []
    for _ in range(count):
        piece, at = _scan(data, at)
        pieces.append(piece)
    inner = _Unpickler(b"".join(pieces), _Account(at, nested=True))
    return [inner.load() for _ in range(count)], at


def _tensor(account: _Account, storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> _Array:
    if more[2:] and more[2]:  # after requires_grad and hooks: that its numbers are others' with another sign
        raise _RefusedError("a tensor that is a negative or conjugate view")
    count = _count(size)
    if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > _MAX_AXES:
        raise ValueError("an impossible tensor")
    _count((offset, *stride))
    values = storage.value
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if count and (last >= len(values) or count > len(values)):
        raise ValueError(f"a tensor of {count} numbers reaches beyond its storage of {len(values)}")
    start, steps = (offset * values.itemsize, [step * values.itemsize for step in stride]) if count else (0, None)
    return _Array(np.ndarray(size, values.dtype, values, start, steps), account)  # NumPy checks the bounds once more


def _size(account: _Account, values: Any) -> tuple[Any, ...]:
    account.charge(64 * len(values))
    return tuple(values)


def _dict(account: _Account, pairs: Iterable[Any], count: int) -> _Dict:
    account.charge(64 * count)
    found = _Dict()
    for key, value in pairs:
        found[key] = value
    return found


_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "__builtin__.bytes": lambda _: b"",
    "_codecs.encode": _encode,
    "collections.OrderedDict": lambda account, pairs=(): _dict(account, pairs, len(pairs)),
    "collections.defaultdict": lambda account, *_: _dict(account, (), 0),
    "numpy.dtype": _dtype,
    "torch.Size": _size,
    "torch._utils._rebuild_parameter": lambda account, tensor, *_: tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
}
_BARE: Final = frozenset(  # named beside others, and never called: a kind of array, what a defaultdict begins with
    "numpy.ndarray builtins.list builtins.dict builtins.int __builtin__.list __builtin__.dict __builtin__.int".split()
)
for _module in ("numpy.core", "numpy._core"):
    _CALLS[f"{_module}.multiarray._reconstruct"] = lambda account, *_: _Array(None, account)
    _CALLS[f"{_module}.multiarray.scalar"] = _scalar
    _CALLS[f"{_module}.numeric._frombuffer"] = _from_buffer


def _finish(root: Any) -> Any:
    """Put plain values in the places of the unpickler's, without recursion, and each object once.

    =============================  =====================================================================
    numbers and texts              stay
    an array's stand-in            its array; one of objects is made here, and its cells are gone through
    any other stand-in             refused: a pickle holds no names
    a dict, a tuple                a plain dict; a list, as a tuple could not be changed, gone through
    a list                         is gone through
    =============================  =====================================================================
    """
    box = [root]
    todo: list[Any] = [box]
    copies: dict[int, tuple[Any, Any]] = {}  # by id; with the originals, so that an id stays theirs
    seen: set[int] = set()
    while todo:
        holder = todo.pop()  # a list, a plain dict, or the cells of an array of objects
        for key, item in holder.items() if isinstance(holder, dict) else enumerate(holder):
            if isinstance(item, int | float | str):
                continue
            value = item
            if isinstance(item, _Array):
                if item.shape is not None and isinstance(holder, np.ndarray):
                    raise _RefusedError("an array of objects within another")
                if item.shape is not None and isinstance(item.value, list):
                    cells = np.empty(len(item.value), dtype=object)
                    for position, content in enumerate(item.value):
                        cells[position] = content
                    todo.append(cells)
                    item.value = cells.reshape(item.shape)
                value = item.value
            elif isinstance(item, _StandIn):
                raise _RefusedError(f"a bare {type(item).__name__.lower()[1:]}: {item.value!r:.200}")
            elif isinstance(item, _Dict | tuple):
                as_plain = dict if isinstance(item, dict) else list
                _, value = copies.get(id(item)) or copies.setdefault(id(item), (item, as_plain(item)))
            holder[key] = value
            if isinstance(value, list | dict) and id(value) not in seen:
                seen.add(id(value))
                todo.append(value)
    return box[0]
