"""How many videos each of many subsets gets right: a walk down the tree of subsets.

A subset is a mask of bits. Its weights are those of the whole stack: to divide them by their sum moves no argmax.
Members are reordered so that the one that matters most is the highest bit of a key. In ascending order the keys are the
leaves of a binary tree, and every node is a range of them, start … stop:

    member a (matters most)            out                       in
    member b                     out         in           out         in
    member c                   001        010 011       100 101    110 111      keys a b c
                               └── start … stop of "a out" ──┘

At each node two kinds of videos are settled for all its subsets. A rival that no choice of the members below can lift
above the true class is dropped, and a video without rivals is won. A video that a rival holds whatever they do is lost.
A node of at most 256 subsets is a leaf: one matrix product, and a maximum over each video's rivals.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidfuse.selection.hits import Hits
from vidfuse.selection.masks import bits
from vidfuse.selection.rivals import starts

__all__ = ["lay_out", "score_subsets"]

_LEAF = 256  # subsets that are evaluated together
_DOUBTS = 1 << 19  # pairs (subset, video) that wait for the judge together
_CHUNK = 512  # videos a piece of the matrix product: its buffers stay in the second-level cache


def score_subsets(hits: Hits, weights: NDArray[np.float64], masks: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return what the videos count that each subset gets right, shape (S,).

    Args:
        hits: What decides it, of the same members.
        weights: The members' weights on the whole stack, shape (M,).
        masks: Subsets as bit masks, shape (S,), each of positive total weight.
    """
    margins = hits.margins * (weights / weights.sum()).astype(np.float32)[:, None]
    order = np.argsort(-np.abs(margins, where=margins > -1e4, out=np.zeros_like(margins)).sum(axis=1), kind="stable")
    keys = np.zeros(len(masks), np.uint64)
    for member in order:
        keys = keys << np.uint64(1) | masks >> np.uint64(member) & np.uint64(1)
    by_key = np.argsort(keys, kind="stable")
    tree = _Tree(hits, weights, masks[by_key], keys[by_key])
    tree.descend(0, 0, len(masks), hits.rows, margins[order], np.zeros(len(hits.rows), np.float32))
    tree.settle()
    scores = np.empty(len(masks))
    scores[by_key] = tree.scores
    return scores


class _Tree:
    """The scores of subsets in the order of their keys, shape (S,), while they are found."""

    def __init__(
        self, hits: Hits, weights: NDArray[np.float64], masks: NDArray[np.uint64], keys: NDArray[np.uint64]
    ) -> None:
        self.hits, self.weights, self.masks, self.keys = hits, weights, masks, keys
        self.scores = np.full(len(masks), hits.base)
        self.rounding = np.float32(hits.rounding)
        self.doubts: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def descend(
        self,
        depth: int,
        start: int,
        stop: int,
        rows: NDArray[np.int64],
        margins: NDArray[np.float32],
        sums: NDArray[np.float32],
    ) -> None:
        """Score the subsets start … stop, which agree on the first `depth` members.

        Args:
            depth: How many members are decided.
            start: First subset, in the order of keys.
            stop: One past the last.
            rows: The videos of the live rivals, ascending, shape (R,).
            margins: The undecided members' weighted margins, shape (M − depth, R).
            sums: The decided members' summed margins, shape (R,).
        """
        leaf = stop - start <= _LEAF
        if start == stop:
            return
        if depth or not leaf:  # where all subsets are one leaf, one look at all rivals costs less than bounds
            hopeless = sums + np.maximum(margins, 0).sum(axis=0) < -self.rounding
            held = sums + np.minimum(margins, 0).sum(axis=0) > self.rounding
            begin = starts(rows)
            won, lost = (by.reduceat(what, begin) for by, what in ((np.logical_and, hopeless), (np.logical_or, held)))
            self.scores[start:stop] += self.hits.video_weights[rows[begin[won]]].sum()
            kept = np.flatnonzero(~hopeless & ~np.repeat(lost, np.diff(begin, append=len(rows))))
            rows, margins, sums = rows[kept], margins.take(kept, axis=1), sums[kept]
        if not len(rows):
            return
        if leaf:
            self.evaluate(start, stop, rows, margins, sums)
            return
        bit = np.uint64(1) << np.uint64(len(margins) - 1)
        middle = start + int(np.searchsorted(self.keys[start:stop] & bit, bit))
        self.descend(depth + 1, start, middle, rows, margins[1:], sums)
        self.descend(depth + 1, middle, stop, rows, margins[1:], sums + margins[0])

    @np.errstate(invalid="ignore")  # float32 products may raise the flag for numbers beyond their end
    def evaluate(
        self,
        start: int,
        stop: int,
        rows: NDArray[np.int64],
        margins: NDArray[np.float32],
        sums: NDArray[np.float32],
    ) -> None:
        """Score the subsets of a leaf on the live rivals."""
        left = len(margins)
        chosen = np.ones((stop - start, left + 1), np.float32)
        chosen[:, :left] = bits(self.keys[start:stop], left)[:, ::-1]
        videos, offsets, columns = lay_out(rows)
        table = np.empty((left + 1, len(rows)), np.float32)
        table[:left, columns] = margins
        table[left, columns] = sums
        counts = self.hits.video_weights[videos]
        for first in range(0, len(videos), _CHUNK):
            last = min(first + _CHUNK, len(videos))
            worst = chosen @ table[:, first:last]
            for slot in range(1, len(offsets) - 1):
                size = min(last, offsets[slot + 1] - offsets[slot]) - first
                if size <= 0:
                    break
                at = offsets[slot] + first
                np.maximum(worst[:, :size], chosen @ table[:, at : at + size], out=worst[:, :size])
            self.scores[start:stop] += (worst < -self.rounding) @ counts[first:last]
            doubt = np.abs(worst) <= self.rounding
            if doubt.any():
                subset, place = np.nonzero(doubt)
                self.doubts.append((start + subset, videos[first + place]))
        if sum(len(rows) for _, rows in self.doubts) > _DOUBTS:
            self.settle()

    def settle(self) -> None:
        """Let the judge decide the pairs (subset, video) that are left."""
        if not self.doubts:
            return
        subsets, rows = map(np.concatenate, zip(*self.doubts, strict=True))
        right = self.hits.judge.right(bits(self.masks[subsets], len(self.weights)) * self.weights, rows)
        self.scores += np.bincount(subsets, right * self.hits.video_weights[rows], minlength=len(self.scores))
        self.doubts = []


def lay_out(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Lay a ragged array out by slots: first every video's first rival, then every second one, and so on.

    Videos are sorted by falling number of rivals, so that slot k is a prefix of them, and a maximum over rivals runs
    over contiguous memory. Of videos A, B and C with 1, 3 and 2 rivals:

        rows       A1 B1 B2 B3 C1 C2
        laid out   B1 C1 A1 | B2 C2 | B3        offsets 0, 3, 5, 6

    Returns:
        The videos in their new order, where each slot begins (and the last ends), and each rival's column.
    """
    begin = starts(rows)
    counts = np.diff(begin, append=len(rows))
    by_count = np.argsort(-counts, kind="stable")
    rank = np.empty(len(begin), np.int64)
    rank[by_count] = np.arange(len(begin))
    slot = np.arange(len(rows)) - np.repeat(begin, counts)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(slot))])
    return rows[begin[by_count]], offsets, offsets[slot] + np.repeat(rank, counts)
