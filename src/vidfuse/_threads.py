"""Threads of our own over a stack's members, and how many the linear algebra below NumPy may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Final, TypeVar

import numpy as np  # noqa: F401  its library must be loaded before it is looked for
from threadpoolctl import ThreadpoolController

__all__ = ["map_members", "one_blas_thread"]

_THREADS: Final = min(4, os.cpu_count() or 1)
_FEW: Final = 1 << 18  # numbers that are read before a thread could have started

_lock = Lock()
_held = False  # whether some context holds the limit

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_members(function: Callable[[_Item], _Result], members: Sequence[_Item], numbers: int) -> list[_Result]:
    """Call a function of each member, on a few threads where much is to read; the first member's error is raised.

    Args:
        function: what to do with one member; with matrix products in it, call from within `one_blas_thread`.
        members: the members, in the order of the results.
        numbers: how many numbers are read in all.

    Example:
        >>> map_members(len, ["a", "bb"], numbers=3)
        [1, 2]
    """
    if numbers < _FEW or len(members) == 1 or _THREADS == 1:
        return [function(member) for member in members]
    with ThreadPoolExecutor(min(_THREADS, len(members))) as pool:
        return list(pool.map(function, members))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold NumPy's matrix products to one thread: for products that are too small to share, or workers of our own.

    The limit is the whole process's. Of contexts that overlap, in one thread or in several, the first one sets it and
    lifts it again: one that came later would put back the limit that it found. NumPy's libraries are looked for once in
    a process, which takes as long as a small fit.

    Example:
        >>> with one_blas_thread():
        ...     np.eye(2) @ np.eye(2)
        array([[1., 0.],
               [0., 1.]])
    """
    global _held
    with _lock:
        first, _held = not _held, True
    if not first:
        yield
        return
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        with _lock:
            _held = False


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()
