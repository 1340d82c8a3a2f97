"""Reduce a member's views: while it is loaded, so that (N, K) numbers stay in memory, or whenever they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import Kind, Rows
from vidfuse.likelihood import DEFAULT_FLOOR, block_rows, reduce_views_array
from vidfuse.stack.source import ArraySource, Source, compose_rows, fill_log_likelihoods

__all__ = ["ReducedSource", "reduce_array", "reduce_source"]


def reduce_array(scores: NDArray[np.floating[Any]], kind: Kind, rule: str) -> NDArray[np.float32]:
    """Reduce scores (N, V, K) of any kind to log-likelihoods (N, K)."""
    return reduce_source(ArraySource(scores), kind, rule)


def reduce_source(source: Source, kind: Kind, rule: str) -> NDArray[np.float32]:
    """Reduce a source of shape (N, V, K) to log-likelihoods (N, K), block by block; probabilities are floored first."""
    return ReducedSource(source, kind, rule).take(slice(0, source.shape[0], 1))


@dataclass(frozen=True)
class ReducedSource:
    """The log-likelihoods (N, K) of a source with views (N, V, K), reduced whenever they are read.

    Attributes:
        source: Where the scores are.
        kind: What they are.
        rule: How views are reduced.
    """

    source: Source
    kind: Kind
    rule: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N, K)."""
        n, _, classes = self.source.shape
        return n, classes

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32."""
        return np.dtype(np.float32)

    def take(self, rows: Rows) -> NDArray[np.float32]:
        """Log-likelihoods of these rows."""
        _, views, classes = self.source.shape
        n = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
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

    def pieces(self, rows: Rows) -> list[NDArray[np.floating[Any]]]:
        """The same in one piece."""
        return [self.take(rows)]

    def restricted(self, rows: Rows) -> tuple[Source, Rows]:
        """The same of what is cheap to send."""
        source, rows = self.source.restricted(rows)
        return ReducedSource(source, self.kind, self.rule), rows
