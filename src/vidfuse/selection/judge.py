"""Whether an ensemble gets a video right, where float32 cannot tell: the pool itself is asked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidfuse.fusion.base import floored_blocks
from vidfuse.likelihood import linear_pool, log_linear_pool
from vidfuse.selection.rivals import Rivals, starts
from vidfuse.stack.stack import LogitStack

__all__ = ["Judge"]

_AT_ONCE = 1 << 22  # numbers that are pooled together


class Judge:
    """Decides by the pool's own arithmetic whether an ensemble gets a video right, ties included.

    The pool is asked about the true class and its rivals alone: no other class can win. A table holds them, ascending,
    so that the lowest of equal ones comes first; −1 fills short rows up. The members' scores of a video are looked up
    when it is first asked about.

        video 5, true class 4, rivals 2 and 9:    classes[0] = [2  4  9 -1]
        video 8, true class 0, rivals 1, 3, 7:    classes[1] = [0  1  3  7]

    Args:
        stack: Members, sorted by name as the pools sum them.
        labels: True classes, shape (N,).
        floors: Each member's floor, shape (M,).
        linear: A linear pool; a log-linear one otherwise.
        rivals: The rivals of the stack's videos.
    """

    def __init__(
        self, stack: LogitStack, labels: NDArray[np.int64], floors: NDArray[np.float64], linear: bool, rivals: Rivals
    ) -> None:
        self._stack, self._labels, self._floors, self._linear, self._rivals = stack, labels, floors, linear, rivals
        self._videos = np.zeros(0, np.int64)

    def _lay_out_table(self) -> None:
        rows = self._rivals.rows
        begin = starts(rows)
        counts = np.diff(begin, append=len(rows))
        self._videos = rows[begin]
        n_classes = self._stack.n_classes
        table = np.full((len(begin), 1 + counts.max()), n_classes)
        table[:, 0] = self._labels[self._videos]
        place = np.repeat(np.arange(len(begin)), counts)
        table[place, 1 + np.arange(len(rows)) - begin[place]] = self._rivals.classes
        table.sort(axis=1)
        table[table == n_classes] = -1
        self._classes = table
        self._scores = np.empty((len(table), self._stack.shape[1], table.shape[1]), np.float32)
        self._known = np.zeros(len(table), bool)

    def right(self, weights: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the members with `weights[i]` predict the true class of video `rows[i]`, shape (P,).

        Args:
            weights: Weights of at least 0 and a positive sum, shape (P, M).
            rows: Videos that have rivals, shape (P,).

        Raises:
            InputError: Every class of a video is vetoed.
        """
        if not len(self._videos):
            self._lay_out_table()
        places = np.searchsorted(self._videos, rows)
        self._look_up(np.unique(places))
        result = np.empty(len(rows), bool)
        step = max(1, _AT_ONCE // self._scores[0].size)
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            place, shares = places[part], weights[part] / weights[part].sum(axis=1, keepdims=True)
            scores = self._scores[place]
            if self._linear:  # as if the others were not there: the pool scales by the largest of its members
                scores[shares == 0] = -np.inf
                fused = linear_pool(scores, shares)
            else:
                ids = None if self._stack.ids is None else self._stack.ids[rows[part]].tolist()
                fused = log_linear_pool(scores, shares, ids=ids)
            result[part] = self._classes[place, fused.argmax(axis=1)] == self._labels[rows[part]]
        return result

    def _look_up(self, places: NDArray[np.int64]) -> None:
        new = places[~self._known[places]]
        if not len(new):
            return
        self._known[new] = True
        for where, block in floored_blocks(self._stack[self._videos[new]], self._floors):
            classes = self._classes[new[where], None]
            self._scores[new[where]] = np.where(classes < 0, -np.inf, np.take_along_axis(block, classes, axis=2))
