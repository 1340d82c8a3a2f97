"""Reduce a member's views while it is loaded, in blocks, so that only (N, K) numbers stay in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import Kind
from vidfuse.likelihood import DEFAULT_FLOOR, block_rows, reduce_views_array
from vidfuse.stack.source import ArraySource, Source, fill_log_likelihoods

__all__ = ["reduce_array", "reduce_source"]


def reduce_array(scores: NDArray[np.floating[Any]], kind: Kind, rule: str) -> NDArray[np.float32]:
    """Reduce scores (N, V, K) of any kind to log-likelihoods (N, K)."""
    return reduce_source(ArraySource(scores), kind, rule)


def reduce_source(source: Source, kind: Kind, rule: str) -> NDArray[np.float32]:
    """Reduce a source of shape (N, V, K) to log-likelihoods (N, K), block by block; probabilities are floored first."""
    floor = DEFAULT_FLOOR if kind in ("probabilities", "sum") else 0.0
    n, views, classes = source.shape
    step = min(n, block_rows(views * classes))
    buffer = np.empty((step, views, classes), dtype=np.float32)
    out = np.empty((n, classes), dtype=np.float32)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n), 1)
        block = buffer[: rows.stop - rows.start]
        fill_log_likelihoods(source.take(rows), kind, block)
        out[rows] = reduce_views_array(block, rule, floor=floor)
    return out
