"""Tell one stack from another without reading what has a digest already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from vidfuse._checks import Rows
from vidfuse.cache.reader import PartsSource
from vidfuse.likelihood import block_rows
from vidfuse.stack.source import IndexedSource, JoinedSource, ReducedSource, Source, compose_rows, count_rows
from vidfuse.stack.stack import LogitStack

__all__ = ["stack_digest"]

_NUMBERS = 1 << 20


def stack_digest(stack: LogitStack) -> str:
    """Return a SHA-256 of all that a stack holds: scores, what they are, members, ids, labels, classes, groups.

    Of the parts of caches the digests stand for the scores, which are not read; other scores are read once.

    Example:
        >>> stack = LogitStack.from_arrays({"swin": np.zeros((2, 3))}, ids=["a", "b"])
        >>> stack_digest(stack) == stack_digest(stack[:2]), stack_digest(stack) == stack_digest(stack[::-1])
        (True, False)
    """
    digest = hashlib.sha256(repr((stack.members, stack.kinds, stack.shape, stack.classes)).encode())
    for array in (stack.ids, stack.labels, stack.groups, stack.present):
        digest.update(b"none" if array is None else array.dtype.str.encode())
        if array is not None:
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    for member in stack.sources():
        for piece in _identity(*member.source.restricted(member.rows)):
            digest.update(piece)
    return digest.hexdigest()


def _identity(source: Source, rows: Rows) -> Iterator[bytes]:
    """Yield what tells these rows of a source from others."""
    yield type(source).__name__.encode()
    if isinstance(source, IndexedSource):
        for axis in source.index:
            yield axis.tobytes() if isinstance(axis, np.ndarray) else repr(axis).encode()
        yield from _identity(source.source, rows)
    elif isinstance(source, ReducedSource):
        yield repr((source.kind, source.rule)).encode()
        yield from _identity(source.source, rows)
    elif isinstance(source, JoinedSource):
        for part, own in source.parts:
            yield from _identity(part, own)
        yield _row_bytes(rows)
    elif isinstance(source, PartsSource):
        yield from source.identity()
        yield _row_bytes(rows)
    else:
        n = count_rows(rows)
        yield source.dtype.str.encode()
        step = block_rows(int(np.prod(source.shape[1:])), _NUMBERS)
        for start in range(0, n, step):
            yield source.take(compose_rows(rows, slice(start, min(start + step, n), 1))).tobytes()


def _row_bytes(rows: Rows) -> bytes:
    return repr((rows.start, rows.stop)).encode() if isinstance(rows, slice) else rows.tobytes()
