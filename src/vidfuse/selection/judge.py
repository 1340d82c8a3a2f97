"""Whether an ensemble gets a video right, where float32 cannot tell: the pool itself is asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidfuse.fusion.floors import floored_blocks
from vidfuse.likelihood import linear_pool, log_linear_pool
from vidfuse.selection.rivals import Rivals
from vidfuse.stack.stack import LogitStack

__all__ = ["Judge"]

_AT_ONCE = 1 << 22  # numbers that are pooled together


@dataclass(frozen=True)
class Judge:
    """Decides by the pool's own arithmetic whether an ensemble gets a video right, ties included.

    Attributes:
        stack: Members, sorted by name as the pools sum them.
        labels: True classes, shape (N,).
        floors: Each member's floor, shape (M,).
        linear: A linear pool; a log-linear one otherwise.
        rivals: The rivals of the stack's videos.
    """

    stack: LogitStack
    labels: NDArray[np.int64]
    floors: NDArray[np.float64]
    linear: bool
    rivals: Rivals

    def right(self, weights: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the members with `weights[i]` predict the true class of video `rows[i]`, shape (P,).

        Args:
            weights: Weights of at least 0 and a positive sum, shape (P, M).
            rows: Videos that have rivals, shape (P,).

        Raises:
            InputError: Every class of a video is vetoed.
        """
        videos, places = np.unique(rows, return_inverse=True)
        used = np.flatnonzero(weights.any(axis=0))
        classes, scores = self._candidates(videos, used)
        result = np.empty(len(rows), bool)
        step = max(1, _AT_ONCE // scores[0].size)
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            shares = weights[part, used] / weights[part, used].sum(axis=1, keepdims=True)
            own = scores[places[part]]
            if self.linear:
                fused = linear_pool(own, shares)
            else:
                ids = None if self.stack.ids is None else self.stack.ids[rows[part]].tolist()
                fused = log_linear_pool(own, shares, ids=ids)
            result[part] = classes[places[part], fused.argmax(axis=1)] == self.labels[rows[part]]
        return result

    def _candidates(
        self, videos: NDArray[np.int64], used: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the classes of each video that can win, shape (V, C), and the used members' scores of them (V, M, C).

        They are the true class and its rivals, ascending, so that the lowest of equal ones comes first. Short rows are
        filled up by K, which stands for a class that has no chance:

            video 5, true class 4, rivals 2 and 9:    2  4  9  K
            video 8, true class 0, rivals 1, 3, 7:    0  1  3  7
        """
        n_classes = self.stack.n_classes
        begin, end = (np.searchsorted(self.rivals.rows, videos, side)[:, None] for side in ("left", "right"))
        at = begin + np.arange((end - begin).max())
        found = np.where(at < end, self.rivals.classes.take(at, mode="clip"), n_classes)
        classes = np.sort(np.concatenate([self.labels[videos, None], found], axis=1), axis=1)
        scores = np.empty((len(videos), len(used), classes.shape[1]), np.float32)
        stack = self.stack[videos].select([self.stack.members[m] for m in used])
        for where, block in floored_blocks(stack, self.floors[used]):
            there = np.take_along_axis(block, np.minimum(classes[where, None], n_classes - 1), axis=2)
            scores[where] = np.where(classes[where, None] < n_classes, there, -np.inf)
        return classes, scores
