"""Predictions that are computed when they are read: a few videos at a time, so that memory holds a block of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import check_count
from vidfuse.likelihood import block_rows
from vidfuse.stack.source import resolve_rows
from vidfuse.stack.stack import LogitStack

__all__ = ["FusedBlocks"]

_NUMBERS: Final = 1 << 20  # scores, of all members, in a block: 4 MB, and as much for what is computed of them


class FusedBlocks:
    """A rule's predictions (N, K) for a stack, none of which is computed before it is read.

    `blocks[rows]` fuses some videos. Iterating fuses block after block, and yields each block's rows and its
    numbers; the same bits come out however the videos are cut. So a stack whose predictions do not fit into memory is
    predicted; `vidfuse.formats.write_predictions` writes it.

    Args:
        fuse: what returns the log-likelihoods (n, K) of a stack.
        stack: the videos.
        proba: give probabilities, not log-likelihoods.
        rows_per_block: videos in a block; by default as many as have about a million scores.

    Attributes:
        shape: (N, K).
        dtype: float64.
        rows_per_block: videos in a block of the iteration; the last one may be shorter.
    """

    def __init__(
        self,
        fuse: Callable[[LogitStack], NDArray[np.float64]],
        stack: LogitStack,
        *,
        proba: bool = False,
        rows_per_block: int | None = None,
    ) -> None:
        if rows_per_block is not None:
            check_count("rows_per_block", rows_per_block)
        self._fuse, self._stack, self._proba = fuse, stack, proba
        self.shape = (len(stack), stack.n_classes)
        self.dtype: np.dtype[Any] = np.dtype(np.float64)
        numbers = int(np.prod(stack.shape[1:]))
        self.rows_per_block = block_rows(numbers, _NUMBERS) if rows_per_block is None else int(rows_per_block)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.float64]:
        """Return the predictions (n, K) of the videos of a slice, or of any rows that a stack takes."""
        found = resolve_rows(rows, len(self))
        n = found.stop - found.start if isinstance(found, slice) else len(found)
        if not n:
            return np.empty((0, self.shape[1]))
        log_proba = self._fuse(self._stack[found])
        return np.exp(log_proba, out=log_proba) if self._proba else log_proba

    def __iter__(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield the rows of each block as a slice, and its predictions."""
        for start in range(0, len(self), self.rows_per_block):
            rows = slice(start, min(start + self.rows_per_block, len(self)), 1)
            yield rows, self[rows]

    def __repr__(self) -> str:
        what = "probabilities" if self._proba else "log-likelihoods"
        return f"FusedBlocks({self.shape[0]} videos x {self.shape[1]} classes, {what}, {self.rows_per_block} at a time)"
