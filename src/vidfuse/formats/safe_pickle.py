"""Read arrays, tensors and plain containers from a pickle without running anything that it names.

A pickle is a program. This module interprets the harmless part of that language itself: numbers, strings, lists,
tuples, dicts, and calls to a fixed list of names (`_CALLS`) that stand for NumPy arrays and torch tensors, which are
rebuilt as NumPy arrays by code of this module. Nothing is ever imported, looked up or called on behalf of the file,
and memory stays within a small multiple of its size. Tensors
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
from vidfuse.formats.pickle_machine import Language, Machine, Name, RefusedError, dict_key

__all__ = ["load_pickle", "loads"]

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
_DAMAGED: Final = (
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
_TORCH_MAGIC: Final = 0x1950A86A20F9469CFC6C
_TORCH_PROTOCOL: Final = 1001


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
        return _finish(Machine(memoryview(data), _LANGUAGE).run())
    except RefusedError as error:
        raise InputError(
            f"expected a pickle of arrays, tensors and plain containers, but it needs {error}; nothing was executed: "
            "re-save the predictions as .npz"
        ) from error
    except _DAMAGED as error:
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
    if isinstance(root[0], Name | _Dtype | _Storage):
        raise RefusedError(repr(getattr(root[0], "text", "a bare storage")))
    return root[0]


def _dtype(machine: Machine, code: Any, *_: Any) -> _Dtype:
    if not isinstance(code, str):
        raise ValueError("a dtype's code is not text")
    if code.lstrip("<>|=") not in _DTYPE_CODES and not (code[:1] in "US" and code[1:].isdigit() and len(code) < 6):
        raise RefusedError(f"an array of dtype {code[:50]!r}")
    return _Dtype(code)


def _build(machine: Machine, target: Any, state: Any) -> None:
    if isinstance(target, _Array):
        _build_array(machine, target, state)
    elif isinstance(target, _Dtype):
        if state[1] in ("<", ">", "|", "="):
            target.code = ("<" if state[1] in "|=" else state[1]) + target.code.lstrip("<>|=")
    elif not (isinstance(target, dict) and (state is None or (isinstance(state, dict) and not state))):
        raise RefusedError("the state of an object")


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype):
        raise ValueError("an array's dtype is not a dtype")
    code = dtype.code
    bare = code.lstrip("<>|=")
    return np.dtype(object) if bare in ("O8", "O") else np.dtype(code[: len(code) - len(bare)] + bare)


def _raw(machine: Machine, content: Any) -> bytes:
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


def _build_array(machine: Machine, target: _Array, state: Any) -> None:
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


def _scalar(machine: Machine, dtype: Any, content: Any = b"") -> Any:
    real = _numpy_dtype(dtype)
    if real.hasobject:
        raise RefusedError("a scalar of dtype object")
    return _shaped(_raw(machine, content), real, (), False).item()


def _from_buffer(machine: Machine, content: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> _Array:
    return _Array(_shaped(_raw(machine, content), _numpy_dtype(dtype), shape, order == "F"))


def _encode(machine: Machine, text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise RefusedError("a codec other than latin1")
    return _raw(machine, text)


def _storage(machine: Machine, content: Any) -> _Storage:
    """Read one storage from torch's legacy stream: magic number, version, system, description, keys, numbers."""
    if machine.nested:
        raise RefusedError("a storage within a storage")
    data = memoryview(_raw(machine, content))
    at = 0
    found: list[Any] = []
    for _ in range(5):
        inner = Machine(data, _LANGUAGE, at, nested=True)
        found.append(inner.run())
        at = inner.at
    magic, protocol, system, described, keys = found
    if magic != _TORCH_MAGIC or protocol != _TORCH_PROTOCOL or system.get("little_endian") is not True:
        raise ValueError("a tensor's stream is not a little-endian one of torch")
    _, kind, key, _, count, view = described
    if not isinstance(kind, Name) or not isinstance(key, str) or view is not None:
        raise RefusedError("a storage that shares another one's memory")
    if not isinstance(keys, list) or len(keys) != 1 or not isinstance(keys[0], str) or keys[0] != key:
        raise ValueError("a storage's key is not the one that is listed")
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


def _tensor(machine: Machine, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> NDArray[Any]:
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


def _parameter(machine: Machine, tensor: Any, *_: Any) -> Any:
    return tensor


def _size(machine: Machine, values: Any) -> tuple[Any, ...]:
    machine.charge(64 * len(values))
    return tuple(values)


def _dict(machine: Machine, pairs: Any = ()) -> dict[Any, Any]:
    machine.charge(64 * len(pairs))
    return {dict_key(key): value for key, value in pairs}


def _empty_bytes(machine: Machine) -> bytes:
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
_LANGUAGE: Final = Language(_CALLS, _BARE, _build)
