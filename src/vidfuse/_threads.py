"""Threads of our own over a stack's members, and how many the linear algebra below NumPy may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Final, TypeVar

import numpy as np  # noqa: F401  its library must be loaded before it is looked for
from threadpoolctl import ThreadpoolController

__all__ = ["map_members", "one_blas_thread"]

_THREADS: Final = min(4, os.cpu_count() or 1)
_FEW: Final = 1 << 18  # numbers that are read before a thread could have started

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_members(function: Callable[[_Item], _Result], members: Sequence[_Item], numbers: int) -> list[_Result]:
    """Call a function of each member, on a few threads where much is to read; the first member's error is raised.

    Args:
        function: what to do with one member.
        members: the members, in the order of the results.
        numbers: how many numbers are read in all.

    Example:
        >>> map_members(len, ["a", "bb"], numbers=3)
        [1, 2]
    """
    if numbers < _FEW or len(members) == 1 or _THREADS == 1:
        return [function(member) for member in members]
    with one_blas_thread(), ThreadPoolExecutor(min(_THREADS, len(members))) as pool:
        return list(pool.map(function, members))


def one_blas_thread() -> AbstractContextManager[Any]:
    """Hold NumPy's matrix products to one thread: for products that are too small to share, or workers of our own.

    The libraries are looked for once in a process: that takes milliseconds, as long as a small fit.

    Example:
        >>> with one_blas_thread():
        ...     np.eye(2) @ np.eye(2)
        array([[1., 0.],
               [0., 1.]])
    """
    limit: AbstractContextManager[Any] = _libraries().limit(limits=1, user_api="blas")
    return limit


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()
