"""What each member would add to a growing ensemble's accuracy: from the rivals alone, exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidfuse.selection.hits import Judge, rounding_error, unsafe_videos
from vidfuse.selection.masks import TIE
from vidfuse.selection.rivals import find_rivals, starts
from vidfuse.stack.stack import LogitStack

__all__ = ["HitGains"]

_BITS = np.uint8(1) << np.arange(8, dtype=np.uint8)
_PATTERNS = (np.arange(256, dtype=np.uint8)[:, None] & _BITS > 0).astype(np.float64)


class HitGains:
    """The score of an ensemble with each of several members one more: the `Gains` of a greedy search for accuracy.

    A rival that the next few members cannot lift above the true class, and a video that a rival holds whatever they
    are, have no say for those rounds: only the others are looked at, in float32. Whether a video is wrong with each of
    eight candidates is one byte a rival, whose union over the video's rivals is counted. Margins within the rounding
    error are decided by the pool's own arithmetic, where the choice or its score hang on them.

    Args:
        ordered: Members, sorted by name as the pools sum them.
        labels: True classes, shape (N,).
        floors: Each member's floor, shape (M,).
        linear: A linear pool; a log-linear one otherwise.
        video_weights: a, shape (N,): 1/N for accuracy, 1/(C N_c) for mean class accuracy.

    Example:
        >>> z = np.array([[[2.0, 0], [0, 1]], [[2, 0], [0, 9]], [[0, 1], [5, 0]]], dtype=np.float32)
        >>> gains = HitGains(LogitStack.from_arrays(z), np.array([0, 0, 1]), np.zeros(2), False, np.full(3, 1 / 3))
        >>> gains(np.array([1, 0]), np.array([0, 1])).round(4).tolist()
        [1.0, 0.3333]
    """

    def __init__(
        self,
        ordered: LogitStack,
        labels: NDArray[np.int64],
        floors: NDArray[np.float64],
        linear: bool,
        video_weights: NDArray[np.float64],
    ) -> None:
        rivals = find_rivals(ordered, labels, floors, linear=linear, rounds=0 if len(ordered.members) < 10 else 8)
        self._judge = Judge(ordered, labels, floors, linear)
        self._a = video_weights
        self._unsafe = unsafe_videos(rivals)
        rows, self._margins = rivals.rows, rivals.margins
        if len(self._unsafe):
            kept = np.flatnonzero(~np.isin(rows, self._unsafe))
            rows, self._margins = rows[kept], self._margins.take(kept, axis=1)
        self._rows = rows
        self._most = np.maximum(self._margins.max(axis=0), 0)
        self._least = np.minimum(self._margins.min(axis=0), 0)
        self._open_or_right = float(video_weights[rivals.right].sum() + video_weights[rows[starts(rows)]].sum())
        self._rounding = rounding_error(rivals, None, linear=linear)
        self._since, self._rounds, self._base = np.zeros(len(ordered.members), np.int64), 1, self._open_or_right
        self._look_at(rows, self._margins)

    def _look_at(self, rows: NDArray[np.int64], margins: NDArray[np.float32]) -> None:
        self._live, self._begin = margins, starts(rows)
        self._videos = rows[self._begin]

    def _open(self, counts: NDArray[np.int64]) -> None:
        """Keep the rivals that have a say in the next rounds: half as many as there were."""
        self._since, self._rounds = counts.copy(), max(1, int(counts.sum()) // 2)
        error = np.float32(self._rounding * (counts.sum() + self._rounds))
        sums = _sum(counts, self._margins)
        live = np.flatnonzero(sums + self._rounds * self._most >= -error)
        rows, sums = self._rows[live], sums[live]
        lost = np.zeros(len(self._a), bool)
        lost[rows[sums + self._rounds * self._least[live] > error]] = True
        undecided = np.flatnonzero(~lost[rows])
        self._base = self._open_or_right - float(self._a[lost].sum())
        self._look_at(rows[undecided], self._margins.take(live[undecided], axis=1))

    def __call__(self, counts: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the score with each candidate one more, shape (C,).

        Once there are counts, that of a candidate which another one beats may be a lower bound.
        """
        ahead = counts - self._since
        if ahead.min() < 0 or ahead.sum() >= self._rounds:
            self._open(counts)
        error = np.float32(self._rounding * (counts.sum() + 1))
        sums = self._live if len(candidates) == len(self._live) else self._live[candidates]
        if counts.any():
            sums = sums + _sum(counts, self._live)
        wrong, sure = sums >= -error, sums > error
        scores = np.full(len(candidates), self._base)
        pairs = [(np.tile(np.arange(len(candidates)), len(self._unsafe)), np.repeat(self._unsafe, len(candidates)))]
        if len(self._begin):
            unclear = np.count_nonzero(wrong) > np.count_nonzero(sure)
            for first in range(0, len(candidates), 8):
                group = slice(first, first + 8)
                patterns = self._per_video(wrong[group])
                weight = np.bincount(patterns, self._a[self._videos], minlength=256)
                scores[group] -= (weight @ _PATTERNS)[: len(scores[group])]
                if unclear:
                    unsure = patterns & ~self._per_video(sure[group])
                    videos = np.flatnonzero(unsure)
                    video, candidate = np.nonzero(unsure[videos, None] & _BITS)
                    pairs.append((first + candidate, self._videos[videos[video]]))
        return self._settle(counts, candidates, scores, *map(np.concatenate, zip(*pairs, strict=True)))

    def _per_video(self, wrong: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return one byte a video: bit c tells whether one of its rivals is wrong[c], shape (V,)."""
        per_rival = np.bitwise_or.reduce(wrong.view(np.uint8) * _BITS[: len(wrong), None], axis=0)
        return np.bitwise_or.reduceat(per_rival, self._begin)

    def _settle(
        self,
        counts: NDArray[np.int64],
        candidates: NDArray[np.int64],
        scores: NDArray[np.float64],
        candidate: NDArray[np.int64],
        rows: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Add what the judge says of pairs (candidate, video): once there are counts, of those that may be best."""
        most = scores + np.bincount(candidate, self._a[rows], minlength=len(scores))
        asked = (most >= scores.max() - TIE)[candidate] | (not counts.any())
        if asked.any():
            candidate, rows = candidate[asked], rows[asked]
            ensembles = counts + np.eye(len(counts))[candidates[candidate]]
            right = self._judge.right(ensembles, rows)
            scores += np.bincount(candidate, right * self._a[rows], minlength=len(scores))
        return scores


def _sum(counts: NDArray[np.int64], margins: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return Σ_m counts[m] · margins[m], shape (R,), without BLAS: its threads cost more than so small a product."""
    total: NDArray[np.float32] = np.einsum("m,mr->r", counts.astype(np.float32), margins)
    return total
