"""What tells one network from another: a digest of its weights, or of what a callable is made of."""

from __future__ import annotations

import dis
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from vidfuse.errors import MissingExtraError

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise MissingExtraError("fingerprints", "networks") from error

__all__ = ["fingerprint_of"]


def fingerprint_of(model: Callable[..., Any], forward: Callable[..., Any] | None = None) -> str:
    """Return a digest of a network, and of the function that calls it: caches of one fingerprint may be joined.

    A network is told by its weights. Another callable is told by its code and by all that it refers to: bound and
    default arguments, enclosing and global variables, an object's attributes. Among these, networks count by their
    weights and arrays by their numbers. What is defined in another package, or is compiled, counts by its name alone.

    Args:
        model: A network or any callable.
        forward: What calls it with a batch, if it is not called itself.

    Example:
        >>> len(fingerprint_of(nn.Linear(2, 2)))
        64
        >>> fingerprint_of(lambda clips: clips) == fingerprint_of(lambda clips: clips + 1)
        False
    """
    walk = _Walk()
    if isinstance(model, nn.Module):
        walk.weights(model)
    else:
        walk.add(model)
    if forward is not None:
        walk.add(forward)
    return walk.digest.hexdigest()


class _Walk:
    """Feeds a digest with all that a callable refers to, each object once."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._seen: dict[int, tuple[int, Any]] = {}  # holds the objects too: the id of one that is gone can come again
        self._packages: set[str] = set()

    def weights(self, network: nn.Module) -> None:
        for name, value in network.state_dict().items():
            self.digest.update(name.encode())
            if isinstance(value, Tensor):
                self.digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    def add(self, root: Callable[..., Any]) -> None:
        self._packages.add(_package(root))
        self._put(root)

    def _put(self, value: Any) -> None:
        if id(value) in self._seen:
            self._say("seen", self._seen[id(value)][0])
            return
        self._seen[id(value)] = len(self._seen), value
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            self._say(type(value).__name__, value)
        elif isinstance(value, nn.Module):
            self._say("network", _name(type(value)))
            self.weights(value)
        elif isinstance(value, Tensor):
            self._say("tensor", value.dtype, tuple(value.shape))
            self.digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self._say("array", value.dtype, value.shape)
            self.digest.update(np.ascontiguousarray(value).data)
        elif isinstance(value, type | ModuleType):
            self._say("name", _name(value))
        else:
            self._say("object", _name(type(value)))
            for part in self._parts(value):
                self._put(part)

    def _parts(self, value: Any) -> Iterator[Any]:
        if isinstance(value, Mapping):
            yield from (part for pair in value.items() for part in pair)
        elif isinstance(value, list | tuple):
            yield from value
        elif isinstance(value, set | frozenset):
            yield from sorted(value, key=repr)
        elif isinstance(value, CodeType):
            yield from (value.co_code, value.co_names, value.co_consts)
        elif isinstance(value, FunctionType):
            yield _name(value)
            if _package(value) in self._packages:
                yield from (value.__code__, value.__defaults__, value.__kwdefaults__)
                yield from (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
                yield from (value.__globals__[name] for name in _global_names(value))
        elif isinstance(value, MethodType):
            yield from (value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            yield from (value.func, value.args, value.keywords)
        elif callable(value):
            yield getattr(value, "__qualname__", "")
            yield vars(value) if hasattr(value, "__dict__") else None

    def _say(self, *words: Any) -> None:
        self.digest.update(repr(words).encode())


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def _package(value: Any) -> str:
    """Return the package that a callable, or its class, is defined in."""
    value = value.func if isinstance(value, functools.partial) else value
    return str(getattr(value, "__module__", None) or type(value).__module__).partition(".")[0]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _global_names(function: FunctionType) -> list[str]:
    """Return the global variables that a function, or one defined in it, reads."""
    codes, names = [function.__code__], set()
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        names |= {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return sorted(names & set(function.__globals__))
