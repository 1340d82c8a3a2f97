"""Read arrays, tensors and plain containers from a pickle without running anything that it names.

A pickle is a program. This module interprets the harmless part of that language itself: numbers, strings, lists,
tuples, dicts, and calls to a fixed list of names (`_CALLS`) that stand for NumPy arrays and torch tensors, which are
rebuilt as NumPy arrays by code of this module. Nothing is ever imported, looked up or called on behalf of the file,
and memory stays within a small multiple of its size. The opcodes are those of Python's `pickletools`; tensors
follow torch's stream of `torch.save` in its legacy form, which is what a plain pickle of a tensor contains.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError

__all__ = ["load_pickle", "loads"]

_SPARE: Final = 1024  # objects that even an empty pickle may make
_MAX_NESTED: Final = 1 << 31
_STORAGES: Final[dict[str, str]] = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bf2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_DTYPE_CODES: Final = frozenset({"b1", "O8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_TORCH_MAGIC: Final = 0x1950A86A20F9469CFC6C
_TORCH_PROTOCOL: Final = 1001


class _Refused(Exception):
    """The pickle asks for something that is not an array, a tensor or a plain container."""


@dataclass(frozen=True)
class _Name:
    """A global name, which is only ever compared with the fixed list."""

    text: str


@dataclass
class _Dtype:
    code: str


@dataclass
class _Array:
    """An array whose content comes with a later BUILD."""

    value: Any = None


@dataclass(frozen=True)
class _Storage:
    values: NDArray[Any]


def load_pickle(path: str | Path) -> Any:
    """Load a pickle file that holds arrays, tensors and plain containers.

    Args:
        path: The file.

    Returns:
        Its content: tensors have become NumPy arrays, ordered dicts plain ones.

    Raises:
        InputError: The pickle names anything else (the message says what), or is damaged. Nothing was executed.
    """
    try:
        return loads(Path(path).read_bytes())
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def loads(data: bytes) -> Any:
    """Load a pickle from bytes; see `load_pickle`.

    Example:
        >>> import os, pickle
        >>> loads(pickle.dumps({"a": [1, np.float32(2)]}))
        {'a': [1, 2.0]}
        >>> loads(pickle.dumps(os.system))
        Traceback (most recent call last):
        vidfuse.errors.InputError: expected a pickle of arrays, tensors and plain containers, but it needs ...
    """
    try:
        return _finish(_Machine(memoryview(data)).run())
    except _Refused as error:
        raise InputError(
            f"expected a pickle of arrays, tensors and plain containers, but it needs {error}; nothing was executed: "
            "re-save the predictions as .npz"
        ) from error
    except (struct.error, IndexError, KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"damaged pickle: {type(error).__name__}: {error}") from error


def _finish(value: Any) -> Any:
    """Replace finished arrays by their values, in place where that is possible, without recursion."""
    root = [value]
    seen: set[int] = set()
    lists: dict[int, tuple[tuple[Any, ...], list[Any]]] = {}  # keeps the tuples alive, so that ids stay theirs
    todo: list[Any] = [root]
    while todo:
        holder = todo.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        items: Iterator[tuple[Any, Any]] = iter(list(holder.items()) if isinstance(holder, dict) else enumerate(holder))
        for key, item in items:
            if isinstance(item, _Array):
                holder[key] = item.value
            elif isinstance(item, tuple) and any(isinstance(part, _Array | list | dict | tuple) for part in item):
                # A tuple cannot be changed: a list stands in for it, which no reader of this package minds.
                _, holder[key] = lists.setdefault(id(item), (item, list(item)))
                todo.append(holder[key])
            elif isinstance(item, list | dict):
                todo.append(item)
    if isinstance(root[0], _Name | _Dtype | _Storage):
        raise _Refused(repr(getattr(root[0], "text", "a bare storage")))
    return root[0]


class _Machine:
    """The stack machine of the pickle language, without its dangerous half."""

    def __init__(self, data: memoryview, start: int = 0, *, storages: bool = False, depth: int = 0) -> None:
        self.data, self.at, self.storages, self.depth = data, start, storages, depth
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        # Legitimate pickles spend many bytes on each container and memo entry, and copy each byte about once; a bomb
        # makes one byte do the work of thousands.
        self.containers_left = _SPARE + len(data) // 8
        self.memos_left = _SPARE + len(data) // 4
        self.bytes_left = 64 * _SPARE + 4 * len(data)

    def run(self) -> Any:
        data, opcodes = self.data, _OPCODES
        while True:
            opcode = data[self.at]
            self.at += 1
            if opcode == 0x2E:  # STOP
                if len(self.stack) != 1 or self.marks:
                    raise ValueError("it ends with an unfinished stack")
                return self.stack.pop()
            handler = opcodes.get(opcode)
            if handler is None:
                raise _Refused(f"the opcode {bytes([opcode])!r}")
            handler(self)

    def take(self, count: int) -> memoryview:
        end = self.at + count
        if count < 0 or end > len(self.data):
            raise ValueError(f"truncated: {count} bytes are due, {len(self.data) - self.at} are left")
        chunk = self.data[self.at : end]
        self.at = end
        return chunk

    def number(self, layout: struct.Struct) -> Any:
        (value,) = layout.unpack(self.take(layout.size))
        return value

    def line(self) -> bytes:
        end = bytes(self.data[self.at : self.at + 64]).find(b"\n")
        if end < 0:
            self.charge(5000)
            end = bytes(self.data[self.at : self.at + 5000]).find(b"\n")
        if end < 0:
            raise ValueError("a line does not end")
        text = bytes(self.take(end + 1))
        return text[:-1]

    def charge(self, size: int) -> None:
        """Account for bytes that are copied or read a second time."""
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise ValueError("more memory than a pickle of this size can need")

    def container(self, value: Any) -> None:
        self.spend_container()
        self.stack.append(value)

    def spend_container(self) -> None:
        self.containers_left -= 1
        if self.containers_left < 0:
            raise ValueError("more containers than a pickle of this size can need")

    def remember(self, index: int) -> None:
        self.memos_left -= 1
        if self.memos_left < 0:
            raise ValueError("more memo entries than a pickle of this size can need")
        self.memo[index] = self.stack[-1]

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self) -> None:
        self.spend_container()
        self.marks.append(self.stack)
        self.stack = []

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("stack underflow")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.container(items)

    def text(self, count: int) -> None:
        self.stack.append(str(self.take(count), "utf-8", "surrogatepass"))

    def blob(self, count: int) -> None:
        self.stack.append(bytes(self.take(count)))

    def old_text(self, count: int) -> None:
        self.stack.append(str(self.take(count), "latin-1"))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ValueError("items are set on something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("items are appended to something that is not a list")
        self.stack[-1].extend(items)

    def name(self, module: Any, name: Any) -> None:
        text = f"{module}.{name}"
        if text not in _CALLS and text not in _BARE:
            raise _Refused(repr(text[:200]))
        self.stack.append(_Name(text))

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple) or function.text not in _CALLS:
            raise _Refused(repr(getattr(function, "text", "a call of something that is not a name")))
        self.container(_CALLS[function.text](self, *arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Array):
            _build_array(self, target, state)
        elif isinstance(target, _Dtype):
            if state[1] in ("<", ">", "|", "="):
                target.code = ("<" if state[1] in "|=" else state[1]) + target.code.lstrip("<>|=")
        elif not (isinstance(target, dict) and state in (None, {})):
            raise _Refused("the state of an object")

    def persistent(self) -> None:
        pid = self.stack.pop()
        if not self.storages or not isinstance(pid, tuple) or len(pid) != 6 or pid[0] != "storage":
            raise _Refused("a persistent object")
        self.stack.append(pid)


def _key(key: Any) -> Any:
    """A dict's key, limited to types whose hashing can neither recurse nor be made to collide."""
    if isinstance(key, str | bytes | bool | None) or (isinstance(key, int) and abs(key) < 1 << 60):
        return key
    raise ValueError(f"a dict's key of type {type(key).__name__}")


def _dtype(machine: _Machine, code: Any, *_: Any) -> _Dtype:
    code = str(code)
    if code.lstrip("<>|=") not in _DTYPE_CODES and not (code[:1] in "US" and code[1:].isdigit() and len(code) < 6):
        raise _Refused(f"an array of dtype {code[:50]!r}")
    return _Dtype(code)


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype):
        raise ValueError("an array's dtype is not a dtype")
    code = dtype.code
    bare = code.lstrip("<>|=")
    return np.dtype(object) if bare in ("O8", "O") else np.dtype(code[: len(code) - len(bare)] + bare)


def _raw(machine: _Machine, content: Any) -> bytes:
    machine.charge(len(content))
    if isinstance(content, bytes):
        return content
    if not isinstance(content, str):
        raise ValueError("an array's content is not bytes")
    return content.encode("latin-1")


def _shaped(raw: bytes, dtype: np.dtype[Any], shape: Any, fortran: bool) -> NDArray[Any]:
    size = dtype.itemsize
    for extent in shape:
        if type(extent) is not int or extent < 0:
            raise ValueError("an impossible shape")
        size *= extent
    if size != len(raw):
        raise ValueError(f"an array needs {size} bytes, {len(raw)} are there")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def _build_array(machine: _Machine, target: _Array, state: Any) -> None:
    _, shape, dtype, fortran, content = state
    real = _numpy_dtype(dtype)
    if not real.hasobject:
        target.value = _shaped(_raw(machine, content), real, shape, bool(fortran))
        return
    count = 1
    for extent in shape:
        count *= extent
    if not isinstance(content, list) or count != len(content):
        raise ValueError(f"an object array of {count} items has {len(content)}")
    machine.charge(8 * count)
    cells = np.empty(count, dtype=object)
    for position, item in enumerate(content):
        cells[position] = item.value if isinstance(item, _Array) else item
    target.value = cells.reshape(shape)


def _scalar(machine: _Machine, dtype: Any, content: Any = b"") -> Any:
    real = _numpy_dtype(dtype)
    if real.hasobject:
        raise _Refused("a scalar of dtype object")
    return _shaped(_raw(machine, content), real, (), False).item()


def _from_buffer(machine: _Machine, content: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> _Array:
    return _Array(_shaped(_raw(machine, content), _numpy_dtype(dtype), shape, order == "F"))


def _encode(machine: _Machine, text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"the codec {str(encoding)[:50]!r}")
    return _raw(machine, text)


def _storage(machine: _Machine, content: Any) -> _Storage:
    """Read one storage from torch's legacy stream: magic number, version, system, description, keys, numbers."""
    if machine.depth:
        raise _Refused("a storage within a storage")
    data = memoryview(_raw(machine, content))
    at = 0
    found: list[Any] = []
    for _ in range(5):
        inner = _Machine(data, at, storages=True, depth=1)
        found.append(inner.run())
        at = inner.at
    magic, protocol, system, described, keys = found
    if magic != _TORCH_MAGIC or protocol != _TORCH_PROTOCOL or system.get("little_endian") is not True:
        raise ValueError("a tensor's stream is not a little-endian one of torch")
    _, kind, key, _, count, view = described
    if not isinstance(kind, _Name) or keys != [key] or view is not None:
        raise _Refused("a storage that shares another one's memory")
    code = _STORAGES[kind.text.removeprefix("torch.")]
    itemsize = 2 if code == "bf2" else np.dtype(code).itemsize
    (written,) = struct.unpack("<q", data[at : at + 8])
    if written != count or len(data) - at - 8 != count * itemsize:
        raise ValueError(f"a storage of {count} numbers has {len(data) - at - 8} bytes")
    if code == "bf2":
        machine.charge(4 * int(written))
        widened = np.frombuffer(data[at + 8 :], "<u2").astype("<u4") << np.uint32(16)
        return _Storage(widened.view("<f4"))
    return _Storage(np.frombuffer(data[at + 8 :], code))


def _tensor(machine: _Machine, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> NDArray[Any]:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor's storage is not a storage")
    values = storage.values
    if len(size) != len(stride) or len(size) > 8:
        raise ValueError("an impossible tensor")
    numbers = (offset, *size, *stride)
    if not all(type(v) is int and 0 <= v < _MAX_NESTED for v in numbers):
        raise ValueError("an impossible tensor")
    count = 1
    for extent in size:
        count *= extent
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if count and (last >= len(values) or count > len(values)):
        raise ValueError(f"a tensor of {count} numbers reaches beyond its storage of {len(values)}")
    if not count:
        return np.empty(size, values.dtype)
    strides = tuple(step * values.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(values[offset:], size, strides, writeable=False)


def _parameter(machine: _Machine, tensor: Any, *_: Any) -> Any:
    return tensor


def _size(machine: _Machine, values: Any) -> tuple[Any, ...]:
    machine.charge(64 * len(values))
    return tuple(values)


def _dict(machine: _Machine, pairs: Any = ()) -> dict[Any, Any]:
    machine.charge(64 * len(pairs))
    return {_key(key): value for key, value in pairs}


def _empty_bytes(machine: _Machine) -> bytes:
    return b""


_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "__builtin__.bytes": _empty_bytes,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _dict,
    "numpy.dtype": _dtype,
    "torch.Size": _size,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
}
for _module in ("numpy.core", "numpy._core"):
    _CALLS[f"{_module}.multiarray._reconstruct"] = lambda machine, *_: _Array()
    _CALLS[f"{_module}.multiarray.scalar"] = _scalar
    _CALLS[f"{_module}.numeric._frombuffer"] = _from_buffer
_BARE: Final = frozenset({"numpy.ndarray", *(f"torch.{name}" for name in _STORAGES)})

_U1, _U2, _U4, _U8 = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_I4, _F8 = struct.Struct("<i"), struct.Struct(">d")


def _integer(text: bytes) -> int | bool:
    return {b"00": False, b"01": True}.get(text) if text in (b"00", b"01") else int(text.rstrip(b"L"))  # type: ignore[return-value]


def _quoted(text: bytes) -> str:
    if len(text) < 2 or text[:1] not in b"'\"" or text[-1:] != text[:1]:
        raise ValueError("a string without quotes")
    return text[1:-1].decode("unicode_escape").encode("latin-1").decode("latin-1")


def _stack_global(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.name(module, name)


def _dict_of_mark(machine: _Machine) -> None:
    items = machine.pop_mark()
    machine.container({})
    machine.set_items(items)


def _pop(machine: _Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


_OPCODES: Final[dict[int, Callable[[_Machine], Any]]] = {
    ord(opcode): handler
    for opcode, handler in {
        "\x80": lambda m: m.take(1),  # PROTO
        "\x95": lambda m: m.take(8),  # FRAME
        "(": lambda m: m.mark(),
        "0": _pop,
        "1": lambda m: m.pop_mark(),
        "2": lambda m: m.stack.append(m.stack[-1]),
        "N": lambda m: m.stack.append(None),
        "\x88": lambda m: m.stack.append(True),
        "\x89": lambda m: m.stack.append(False),
        "I": lambda m: m.stack.append(_integer(m.line())),
        "L": lambda m: m.stack.append(_integer(m.line())),
        "J": lambda m: m.stack.append(m.number(_I4)),
        "K": lambda m: m.stack.append(m.number(_U1)),
        "M": lambda m: m.stack.append(m.number(_U2)),
        "\x8a": lambda m: m.stack.append(int.from_bytes(m.take(m.number(_U1)), "little", signed=True)),
        "F": lambda m: m.stack.append(float(m.line())),
        "G": lambda m: m.stack.append(m.number(_F8)),
        "S": lambda m: m.stack.append(_quoted(m.line())),
        "T": lambda m: m.old_text(m.number(_I4)),
        "U": lambda m: m.old_text(m.number(_U1)),
        "V": lambda m: m.stack.append(m.line().decode("raw_unicode_escape")),
        "X": lambda m: m.text(m.number(_U4)),
        "\x8c": lambda m: m.text(m.number(_U1)),
        "\x8d": lambda m: m.text(m.number(_U8)),
        "B": lambda m: m.blob(m.number(_U4)),
        "C": lambda m: m.blob(m.number(_U1)),
        "\x8e": lambda m: m.blob(m.number(_U8)),
        "\x96": lambda m: m.blob(m.number(_U8)),
        "]": lambda m: m.container([]),
        "l": lambda m: m.container(m.pop_mark()),
        "a": lambda m: m.extend([m.stack.pop()]),
        "e": lambda m: m.extend(m.pop_mark()),
        "}": lambda m: m.container({}),
        "d": _dict_of_mark,
        "s": lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
        "u": lambda m: m.set_items(m.pop_mark()),
        ")": lambda m: m.stack.append(()),
        "t": lambda m: m.container(tuple(m.pop_mark())),
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "p": lambda m: m.remember(_integer(m.line())),
        "q": lambda m: m.remember(m.number(_U1)),
        "r": lambda m: m.remember(m.number(_U4)),
        "\x94": lambda m: m.remember(len(m.memo)),
        "g": lambda m: m.stack.append(m.memo[_integer(m.line())]),
        "h": lambda m: m.stack.append(m.memo[m.number(_U1)]),
        "j": lambda m: m.stack.append(m.memo[m.number(_U4)]),
        "c": lambda m: m.name(m.line().decode(), m.line().decode()),
        "\x93": _stack_global,
        "R": lambda m: m.reduce(),
        "b": lambda m: m.build(),
        "Q": lambda m: m.persistent(),
    }.items()
}
