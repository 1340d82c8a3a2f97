"""Where a member's scores live: an array in memory, a memory-mapped file, or the parts of a cache.

Views are reduced while a member is loaded, so that (N, K) numbers stay in memory, or whenever they are read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import Kind, Rows
from vidfuse.likelihood import DEFAULT_FLOOR, block_rows, log_softmax, reduce_views_array

__all__ = [
    "ArraySource",
    "DerivedSource",
    "IndexedSource",
    "JoinedSource",
    "ReducedSource",
    "Source",
    "compose_rows",
    "count_rows",
    "fill_log_likelihoods",
    "reduce_array",
    "reduce_source",
    "resolve_rows",
]


class Source(Protocol):
    """A member's scores of shape (N, [V,] K), which are read only where they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N, K) or (N, V, K)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the scores as they are stored."""

    def take(self, rows: Rows) -> NDArray[np.floating[Any]]:
        """Scores of these rows, as a view where that is possible."""

    def pieces(self, rows: Rows) -> list[NDArray[np.floating[Any]]]:
        """The same scores in consecutive pieces, each a view where that is possible."""

    def restricted(self, rows: Rows) -> tuple[Source, Rows]:
        """An equivalent pair of source and rows that is as cheap as possible to send to another process."""


class ArraySource:
    """Scores in one array; a plain `numpy.memmap` is pickled as its path."""

    def __init__(self, array: NDArray[np.floating[Any]]) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N, K) or (N, V, K)."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the scores as they are stored."""
        return self.array.dtype

    def take(self, rows: Rows) -> NDArray[np.floating[Any]]:
        """Scores of these rows: a view for a slice, a copy for an array of rows."""
        if isinstance(rows, slice) or not self.array.flags.c_contiguous:
            return self.array[rows]
        return self.array.take(rows, axis=0)  # faster, but it would copy the whole of a strided array first

    def pieces(self, rows: Rows) -> list[NDArray[np.floating[Any]]]:
        """The scores in one piece."""
        return [self.take(rows)]

    def restricted(self, rows: Rows) -> tuple[Source, Rows]:
        """The array cut down to these rows, or the mapped file and the rows."""
        if self._file() is not None:
            return self, rows
        kept = np.ascontiguousarray(self.array[rows])
        return ArraySource(kept), slice(0, len(kept), 1)

    def _file(self) -> Path | None:
        array = self.array
        # Of a map that copies what is written to it ("c"), the file does not hold what the array does.
        if not isinstance(array, np.memmap) or isinstance(array.base, np.ndarray) or array.mode == "c":
            return None
        return None if array.filename is None else Path(str(array.filename))

    def __reduce__(self) -> tuple[Any, ...]:
        path = self._file()
        if path is None or not isinstance(self.array, np.memmap):
            return ArraySource, (np.ascontiguousarray(self.array),)
        order = "C" if self.array.flags.c_contiguous else "F"
        return _map_array, (str(path), self.array.dtype.str, self.array.offset, self.array.shape, order)


def _map_array(path: str, dtype: str, offset: int, shape: tuple[int, ...], order: Any) -> ArraySource:
    return ArraySource(np.memmap(path, dtype=np.dtype(dtype), mode="r", offset=offset, shape=shape, order=order))


@dataclass(frozen=True)
class DerivedSource(ABC):
    """Scores that follow from another source's whenever they are read; a kind of them writes `take`.

    Attributes:
        source: Where the scores are.
    """

    source: Source

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N, K) or (N, V, K)."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, in which log-likelihoods are computed."""
        return np.dtype(np.float32)

    @abstractmethod
    def take(self, rows: Rows) -> NDArray[np.floating[Any]]:
        """Scores of these rows."""

    def pieces(self, rows: Rows) -> list[NDArray[np.floating[Any]]]:
        """The same in one piece."""
        return [self.take(rows)]

    def restricted(self, rows: Rows) -> tuple[Source, Rows]:
        """The same of what is cheap to send."""
        source, rows = self.source.restricted(rows)
        return replace(self, source=source), rows


@dataclass(frozen=True)
class IndexedSource(DerivedSource):
    """What an index picks of each video's scores: its classes in another order, one view, or some.

    Attributes:
        index: What the scores that are read, (n, [V,] K), are indexed with; it keeps all of the n.
    """

    index: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N, K) or (N, V, K)."""
        n, *inner = self.source.shape
        return (n, *np.empty((0, *inner), dtype=bool)[self.index].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the scores as they are stored."""
        return self.source.dtype

    def take(self, rows: Rows) -> NDArray[np.floating[Any]]:
        """Scores of these rows."""
        return self.source.take(rows)[self.index]

    def pieces(self, rows: Rows) -> list[NDArray[np.floating[Any]]]:
        """The same scores in consecutive pieces."""
        return [piece[self.index] for piece in self.source.pieces(rows)]


class JoinedSource:
    """The rows of several sources, one after another, such as folds or shards of one member.

    Args:
        parts: Sources of the same shape but for N, each with the rows of it that are meant.
    """

    def __init__(self, parts: Sequence[tuple[Source, Rows]]) -> None:
        self.parts = tuple(parts)
        counts = [count_rows(rows) for _, rows in self.parts]
        self.edges = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._bounds = self.edges.tolist()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N, K) or (N, V, K)."""
        return (int(self.edges[-1]), *self.parts[0][0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The widest dtype of the parts."""
        return np.result_type(*(source.dtype for source, _ in self.parts))

    def take(self, rows: Rows) -> NDArray[np.floating[Any]]:
        """Scores of these rows: a view where they lie in one part that gives a view."""
        if isinstance(rows, slice):
            pieces = self.pieces(rows)
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        rows = np.where(rows < 0, rows + self.edges[-1], rows)
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        owners = np.searchsorted(self.edges, rows, side="right") - 1
        for number in np.unique(owners):
            source, base = self.parts[number]
            mine = owners == number
            out[mine] = source.take(compose_rows(base, rows[mine] - self.edges[number]))
        return out

    def pieces(self, rows: Rows) -> list[NDArray[np.floating[Any]]]:
        """The same scores in consecutive pieces, each of one part."""
        if not isinstance(rows, slice):
            return [self.take(rows)]
        found = [piece for source, own in self._within(rows) for piece in source.pieces(own)]
        return found or [self.parts[0][0].take(slice(0, 0, 1))]

    def _within(self, rows: slice) -> Iterator[tuple[Source, Rows]]:
        """The parts in which consecutive rows lie, with their own rows."""
        start, number = rows.start, bisect_right(self._bounds, rows.start) - 1
        while start < rows.stop:
            (source, base), low = self.parts[number], self._bounds[number]
            stop = min(rows.stop, self._bounds[number + 1])
            if start < stop:
                yield source, compose_rows(base, slice(start - low, stop - low, 1))
            start, number = stop, number + 1

    def restricted(self, rows: Rows) -> tuple[Source, Rows]:
        """The parts that hold these rows, each as cheap to send as it can be, and the rows where they stand in them."""
        if isinstance(rows, slice):
            within = [source.restricted(own) for source, own in self._within(rows)]
            return JoinedSource(within or self.parts[:1]), slice(0, max(0, rows.stop - rows.start), 1)
        owners = np.searchsorted(self.edges, rows, side="right") - 1  # -1: a video that this member lacks
        kept, at, start = [], np.full(len(rows), -1, dtype=np.int64), 0
        for number in np.unique(owners[owners >= 0]).tolist():
            source, base = self.parts[number]
            mine = owners == number
            needed, inverse = np.unique(rows[mine] - self.edges[number], return_inverse=True)
            kept.append(source.restricted(compose_rows(base, needed)))
            at[mine] = start + inverse
            start += len(needed)
        return JoinedSource(kept or self.parts[:1]), at


def resolve_rows(key: Any, n: int) -> Rows:
    """Turn a slice, mask, list or integer into a slice of step 1 or an array of rows in 0 … n − 1.

    Example:
        >>> resolve_rows(slice(None, 2), 5), resolve_rows([-1, 0], 5)
        (slice(0, 2, 1), array([4, 0]))
    """
    if isinstance(key, slice):
        start, stop, step = key.indices(n)
        return slice(start, max(start, stop), 1) if step == 1 else np.arange(start, stop, step, dtype=np.int64)
    index = np.asarray(key)
    if index.dtype == bool:
        if index.shape != (n,):
            raise IndexError(f"a mask of rows must have shape ({n},), got {index.shape}")
        return np.flatnonzero(index)
    if index.size == 0:
        return np.zeros(0, dtype=np.int64)
    if index.dtype.kind not in "iu" or index.ndim > 1:
        raise IndexError(f"rows are chosen by a slice, a mask or integers, got {index.dtype} of shape {index.shape}")
    rows = np.atleast_1d(index).astype(np.int64)
    if (rows < -n).any() or (rows >= n).any():
        raise IndexError(f"row {int(rows[(rows < -n) | (rows >= n)][0])} is out of range for {n} videos")
    return np.where(rows < 0, rows + n, rows)


def count_rows(rows: Rows) -> int:
    """Return how many rows these are."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def compose_rows(base: Rows, rows: Rows) -> Rows:
    """Rows of rows: `base[rows]` for any mixture of slices and arrays."""
    if isinstance(base, slice):
        if isinstance(rows, slice):
            return slice(base.start + rows.start, base.start + rows.stop, 1)
        return rows + base.start
    return base[rows]


def fill_log_likelihoods(
    scores: NDArray[np.floating[Any]], kind: Kind, out: NDArray[np.float32], scale: float = 1.0, floor: float = 0.0
) -> None:
    """Write the normalised log-likelihoods of a block of scores into `out` (float32, same shape).

    Logits z become z − log Σ exp z, probabilities and sums p become log p − log Σ p; zeros become -inf. They are
    multiplied by a scale before they are normalised, and have a share of the uniform distribution mixed in, as
    `vidfuse.likelihood.log_softmax` does. Scores in float64 are reduced in float64 before they are rounded, so that
    large values lose nothing.
    """
    work = out if scores.dtype != np.float64 else np.empty(scores.shape, dtype=np.float64)
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        if kind in ("probabilities", "sum"):
            np.copyto(work, scores)
            scores = np.log(work, out=work)
        log_softmax(scores, out=work, scale=scale, floor=floor)
        if work is not out:
            out[...] = work


def reduce_array(scores: NDArray[np.floating[Any]], kind: Kind, rule: str) -> NDArray[np.float32]:
    """Reduce scores (N, V, K) of any kind to log-likelihoods (N, K)."""
    return reduce_source(ArraySource(scores), kind, rule)


def reduce_source(source: Source, kind: Kind, rule: str) -> NDArray[np.float32]:
    """Reduce a source of shape (N, V, K) to log-likelihoods (N, K), block by block; probabilities are floored first."""
    return ReducedSource(source, kind, rule).take(slice(0, source.shape[0], 1))


@dataclass(frozen=True)
class ReducedSource(DerivedSource):
    """The log-likelihoods (N, K) of a source with views (N, V, K), reduced whenever they are read.

    Attributes:
        kind: What the source's scores are.
        rule: How views are reduced.
    """

    kind: Kind
    rule: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N, K)."""
        n, _, classes = self.source.shape
        return n, classes

    def take(self, rows: Rows) -> NDArray[np.float32]:
        """Log-likelihoods of these rows."""
        _, views, classes = self.source.shape
        n = count_rows(rows)
        floor = DEFAULT_FLOOR if self.kind in ("probabilities", "sum") else 0.0
        step = max(1, min(n, block_rows(views * classes)))
        buffer = np.empty((step, views, classes), dtype=np.float32)
        out = np.empty((n, classes), dtype=np.float32)
        for start in range(0, n, step):
            some = slice(start, min(start + step, n), 1)
            block = buffer[: some.stop - some.start]
            fill_log_likelihoods(self.source.take(compose_rows(rows, some)), self.kind, block)
            out[some] = reduce_views_array(block, self.rule, floor=floor)
        return out
