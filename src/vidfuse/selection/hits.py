"""How many videos an ensemble gets right: from the rivals alone, exactly.

An ensemble is right about a video where the mean of its members' margins is below 0 for every rival. Means are taken in
float32; where one lies within its rounding error of 0, the pool itself is asked (`Judge`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vidfuse.fusion.floors import floored_blocks
from vidfuse.likelihood import linear_pool, log_linear_pool
from vidfuse.selection.rivals import Rivals, find_rivals, starts
from vidfuse.stack.stack import LogitStack

__all__ = ["Hits", "Judge", "find_hits"]

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


_LEAST = 1e-20  # a weight below it moves no sum of opinions that float32 holds, but has to make a veto of 1e30 count
_HUGE = 1e4  # nats: a larger finite margin is a masked class, not an opinion


@dataclass(frozen=True)
class Hits:
    """What decides how many videos the ensembles of some members get right.

    Attributes:
        rows: The video of each rival that has a say, ascending, shape (R,).
        margins: Each member's score of the rival minus its score of the true class, float32 of shape (M, R).
        begin: Where each video's rivals begin, shape (U,).
        base: What the videos count that are right for any weights.
        video_weights: What each video counts, shape (N,).
        rounding: How far a mean of margins may be from the pool's own arithmetic.
        judge: Decides what float32 cannot.
    """

    rows: NDArray[np.int64]
    margins: NDArray[np.float32]
    begin: NDArray[np.int64]
    base: float
    video_weights: NDArray[np.float64]
    rounding: float
    judge: Judge

    def scores(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what the videos count that ensembles get right, shape (S,).

        Args:
            weights: Rows of weights of at least 0 and sum 1, shape (S, M).
        """
        return self.scores_of_sums(self.sums(weights), weights, self.rounding)

    def sums(self, weights: NDArray[Any]) -> NDArray[np.float32]:
        """Return the members' margins times weights (..., M), summed: (..., R); a veto is one at the least weight."""
        weights = np.where(weights > 0, np.maximum(weights, _LEAST), 0)
        with np.errstate(invalid="ignore"):  # float32 products may raise the flag for numbers beyond their end
            return weights.astype(np.float32) @ self.margins

    def alone(self) -> NDArray[np.float64]:
        """Return what the videos count that each member alone gets right, by its scores as they are stored, (M,)."""
        rivals = self.judge.rivals
        begin = starts(rivals.rows)
        beaten = (rivals.margins > 0) | ((rivals.margins == 0) & (rivals.classes < self.judge.labels[rivals.rows]))
        right = ~np.logical_or.reduceat(beaten, begin, axis=1)
        return self.base + right @ self.video_weights[rivals.rows[begin]]

    def scores_of_sums(
        self, sums: NDArray[np.float32], weights: NDArray[np.float64], error: float, *, best_only: bool = False
    ) -> NDArray[np.float64]:
        """Return the same from sums of margins, shape (S, R), that are exact within an error.

        With `best_only`, the score of an ensemble that another one beats may be a lower bound: the judge is asked only
        about those that may be best.
        """
        scores = np.full(len(sums), self.base)
        if len(self.begin):
            videos = self.rows[self.begin]
            counts = self.video_weights[videos]
            worst = np.maximum.reduceat(sums, self.begin, axis=1)
            scores += (worst < -error) @ counts
            doubt = np.abs(worst) <= error
            if best_only:
                doubt[scores + doubt @ counts < scores.max() * (1 - 1e-9)] = False
            ensemble, place = np.nonzero(doubt)
            if len(place):
                right = self.judge.right(weights[ensemble], videos[place])
                scores += np.bincount(ensemble, right * counts[place], minlength=len(scores))
        return scores

    @cached_property
    def _extremes(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The most and the least that one member can add to each rival's sum, shape (R,); at least nothing."""
        return np.maximum(self.margins.max(axis=0), 0), np.minimum(self.margins.min(axis=0), 0)

    def narrowed(self, counts: NDArray[np.int64], rounds: int) -> Self:
        """Return what still decides when up to so many members are added to those counted, with replacement.

        A rival that they cannot lift above the true class has no say, and a video that a rival holds is lost.
        """
        error = np.float32(self.rounding * (counts.sum() + rounds))
        sums = self.sums(counts)
        most, least = self._extremes
        open_ = sums + rounds * most >= -error
        lost = np.zeros(len(self.video_weights), bool)
        lost[self.rows[sums + rounds * least > error]] = True
        kept = np.flatnonzero(open_ & ~lost[self.rows])
        rows = self.rows[kept]
        won = self.rows[self.begin[~np.logical_or.reduceat(open_, self.begin)]]
        base = self.base + float(self.video_weights[won].sum())
        return replace(self, rows=rows, margins=self.margins.take(kept, axis=1), begin=starts(rows), base=base)


def find_hits(
    stack: LogitStack,
    labels: NDArray[np.int64],
    floors: NDArray[np.float64],
    linear: bool,
    video_weights: NDArray[np.float64],
) -> Hits:
    """Return what decides how many videos ensembles get right.

    Args:
        stack: Members, sorted by name as the pools sum them.
        labels: True classes, shape (N,).
        floors: Each member's floor, shape (M,).
        linear: A linear pool; a log-linear one otherwise.
        video_weights: What each video counts, shape (N,).

    Example:
        >>> z = np.array([[[2.0, 0], [0, 1]], [[2, 0], [0, 9]], [[0, 1], [5, 0]]], dtype=np.float32)
        >>> hits = find_hits(LogitStack.from_arrays(z), np.array([0, 0, 1]), np.zeros(2), False, np.ones(3))
        >>> hits.scores(np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])).tolist()
        [3.0, 0.0, 1.0]
    """
    rivals = find_rivals(stack, labels, floors, linear=linear)
    begin = starts(rivals.rows)
    base = float(video_weights[rivals.right].sum())
    # A huge finite negative score of the true class (a masked class) leaves float32 no room for the others: there
    # margins of 0 say nothing, and the judge decides.
    unsafe = ((rivals.margins >= _HUGE) & (rivals.margins < 1e29)).any(axis=0)
    margins = rivals.margins
    if unsafe.any():
        margins = np.where(np.isin(rivals.rows, rivals.rows[unsafe]), np.float32(0), margins)
    judge = Judge(stack, labels, floors, linear, rivals)
    return Hits(rivals.rows, margins, begin, base, video_weights, rivals.rounding, judge)
