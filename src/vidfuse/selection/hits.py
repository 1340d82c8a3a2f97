"""How many videos each of many subsets gets right: from the rivals alone, exactly.

Subsets are bit masks (bit m = member m). The members' weights are those of the whole stack; a subset's are its own,
divided by their sum, which moves no argmax. The search walks down the tree of masks, one member a level: a rival that
no choice of the remaining members can lift above the true class is dropped, a video that a rival holds whatever they do
is settled. What is left when few masks remain is one matrix product and a maximum over each video's rivals, in float32;
margins within its rounding error are decided by the pool's own float64 arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vidfuse.fusion.floors import floored_blocks
from vidfuse.likelihood import linear_pool, log_linear_pool
from vidfuse.selection.masks import bits
from vidfuse.selection.rivals import HUGE, Rivals, starts
from vidfuse.stack.stack import LogitStack

__all__ = ["Judge", "lay_out", "member_accuracies", "rounding_error", "score_hits", "unsafe_videos"]

_LEAF = 128  # masks that are evaluated together
_CHUNK = 512  # videos a piece of the matrix product: its buffers stay in the second-level cache
_PENDING = 1 << 19  # uncertain (mask, video) pairs that are kept before they are decided


@dataclass(frozen=True)
class Judge:
    """Decides by the pool's own arithmetic whether a subset gets a video right.

    Attributes:
        stack: Members, sorted by name as the pools sum them.
        labels: True classes, shape (N,).
        floors: Each member's floor, shape (M,).
        linear: A linear pool; a log-linear one otherwise.
    """

    stack: LogitStack
    labels: NDArray[np.int64]
    floors: NDArray[np.float64]
    linear: bool

    def right(self, weights: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the members with `weights[i]` predict the true class of video `rows[i]`, shape (P,).

        Args:
            weights: Weights of at least 0 and a positive sum, shape (P, M).
            rows: Videos, shape (P,).
        """
        result = np.empty(len(rows), bool)
        order = np.argsort(rows, kind="stable")
        videos, begin = np.unique(rows[order], return_index=True)
        stops = np.append(begin[1:], len(rows))
        n_members = weights.shape[1]
        step = max(1, (1 << 22) // (n_members * self.stack.n_classes))
        for first in range(0, len(videos), step):
            part = videos[first : first + step]
            scores = np.empty((len(part), n_members, self.stack.n_classes), np.float32)
            for where, block in floored_blocks(self.stack[part], self.floors):
                scores[where] = block
            chosen = order[begin[first] : stops[min(first + step, len(videos)) - 1]]
            local = np.searchsorted(part, rows[chosen])
            for at in range(0, len(chosen), step):
                pairs = chosen[at : at + step]
                shares = _simplex(weights[pairs])
                chosen_scores = scores[local[at : at + step]]
                if self.linear:  # as if the others were not there: the pool scales by the largest of its members
                    chosen_scores[shares == 0] = -np.inf
                    fused = linear_pool(chosen_scores, shares)
                else:
                    ids = None if self.stack.ids is None else self.stack.ids[rows[pairs]].tolist()
                    fused = log_linear_pool(chosen_scores, shares, ids=ids)
                result[pairs] = fused.argmax(axis=1) == self.labels[rows[pairs]]
        return result


def _simplex(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide each row by its sum as the pools do, to the last bit: they see only the members of positive weight.

    Exact ties between classes may hang on that bit. A pool normalises once when it is fitted, once when it predicts.
    """
    shares = np.zeros_like(weights)
    used = weights > 0
    sizes = used.sum(axis=1)
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        chosen = used[rows]
        compact = weights[rows][chosen].reshape(len(rows), size)
        for _ in range(2):
            compact /= compact.sum(axis=1, keepdims=True)
        part = np.zeros(chosen.shape)
        part[chosen] = compact.ravel()
        shares[rows] = part
    return shares


def score_hits(
    rivals: Rivals,
    judge: Judge,
    weights: NDArray[np.float64],
    masks: NDArray[np.uint64],
    video_weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return Σ_n a_n [subset s gets video n right] for each subset s, shape (S,).

    Args:
        rivals: The rivals of `judge.stack`'s videos, with the same members.
        judge: Decides what float32 cannot.
        weights: The members' weights on the whole stack, shape (M,).
        masks: Subsets as bit masks, shape (S,), each of positive total weight.
        video_weights: a, shape (N,): 1/N for accuracy, 1/(C N_c) for mean class accuracy.
    """
    shares = weights / weights.sum()
    margins = rivals.margins * shares.astype(np.float32)[:, None]
    order = np.arange(len(weights))
    if len(masks) > _LEAF:  # the tree decides the members that matter most first
        opinions = np.abs(margins, where=np.abs(rivals.margins) < HUGE, out=np.zeros_like(margins))
        order = np.argsort(-opinions.sum(axis=1), kind="stable")
    keys = np.zeros(len(masks), np.uint64)
    for place, member in enumerate(order):
        bit = masks >> np.uint64(member) & np.uint64(1)
        keys |= bit << np.uint64(len(weights) - 1 - place)
    by_key = np.argsort(keys, kind="stable")
    unsafe = unsafe_videos(rivals)
    rows = rivals.rows
    if len(unsafe):
        keep = np.flatnonzero(~np.isin(rows, unsafe))
        rows, margins = rows[keep], margins[:, keep]
    if len(masks) > _LEAF:
        margins = margins[order]
    rounding = np.float32(rounding_error(rivals, shares, linear=judge.linear))
    search = _Search(keys[by_key], order, video_weights, rounding, judge, weights, masks[by_key])
    search.scores += float(video_weights[rivals.right].sum())
    search.descend(0, 0, len(masks), rows, margins, np.zeros(len(rows), np.float32))
    for row in unsafe:
        search.defer(np.arange(len(masks)), np.full(len(masks), row))
    search.settle()
    scores = np.empty(len(masks))
    scores[by_key] = search.scores
    return scores


def rounding_error(rivals: Rivals, shares: NDArray[np.float64] | None, *, linear: bool) -> float:
    """Return how far a float32 sum of weighted margins may be from the pool's own arithmetic.

    Args:
        rivals: The rivals and their margins.
        shares: Weights of sum 1 that bound those of the sums, shape (M,); None for any weights of sum 1.
        linear: Margins are of probabilities, whose values are exact; of stored scores otherwise, which the pool rounds
            when it normalises them.
    """
    margins = rivals.margins
    largest = max(float(margins.max(initial=0.0)), -float(margins.min(initial=0.0)))
    if shares is not None or largest >= HUGE:
        opinions = np.abs(margins)
        opinions[opinions >= HUGE] = 0
        largest = float((opinions if shares is None else shares.astype(np.float32) @ opinions).max(initial=0.0))
    inherited = 1e-3 if linear else 4 * (rivals.scale + 10)
    return 2.0**-23 * ((len(margins) + 4) * largest + inherited)


def unsafe_videos(rivals: Rivals) -> NDArray[np.int64]:
    """Return videos whose true class has a huge finite negative score: float32 cannot hold it beside the others."""
    if rivals.margins.max(initial=0.0) < HUGE:
        return np.zeros(0, np.int64)
    return np.unique(rivals.rows[((rivals.margins >= HUGE) & (rivals.margins < 1e29)).any(axis=0)])


def member_accuracies(rivals: Rivals, judge: Judge, video_weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each member's own score Σ_n a_n [member m gets video n right], shape (M,).

    Args:
        rivals: The rivals of `judge.stack`'s videos.
        judge: Decides what float32 cannot.
        video_weights: a, shape (N,).
    """
    n_members = len(rivals.margins)
    scores = np.full(n_members, float(video_weights[rivals.right].sum()))
    if not len(rivals.rows):
        return scores
    begin = starts(rivals.rows)
    videos = rivals.rows[begin]
    worst = np.maximum.reduceat(rivals.margins, begin, axis=1)
    error = rounding_error(rivals, None, linear=judge.linear)
    scores += (worst < -error) @ video_weights[videos]
    member, column = np.nonzero(np.abs(worst) <= error)
    if len(member):
        right = judge.right(np.eye(n_members)[member], videos[column])
        scores += np.bincount(member, weights=right * video_weights[videos[column]], minlength=n_members)
    return scores


@dataclass
class _Search:
    keys: NDArray[np.uint64]
    order: NDArray[np.int64]
    video_weights: NDArray[np.float64]
    rounding: np.float32
    judge: Judge
    weights: NDArray[np.float64]
    masks: NDArray[np.uint64]
    pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    n_pending: int = 0

    def __post_init__(self) -> None:
        self.scores = np.zeros(len(self.keys))

    def descend(
        self,
        depth: int,
        start: int,
        stop: int,
        rows: NDArray[np.int64],
        margins: NDArray[np.float32],
        sums: NDArray[np.float32],
    ) -> None:
        """Score the masks start … stop, which agree on the first `depth` members.

        Args:
            depth: How many members are decided.
            start: First mask, in the order of keys.
            stop: One past the last.
            rows: The videos of the live rivals, ascending.
            margins: The undecided members' weighted margins, shape (M − depth, R).
            sums: The decided members' summed margins, shape (R,).
        """
        if stop == start:
            return
        if depth == 0 and stop - start <= _LEAF and len(rows):  # one look at all rivals costs less than bounds
            self._leaf(start, stop, rows, margins, sums)
            return
        best = sums + np.maximum(margins, 0).sum(axis=0)
        worst = sums + np.minimum(margins, 0).sum(axis=0)
        begin = starts(rows)
        if len(rows):
            hopeless = best < -self.rounding
            lost = np.logical_or.reduceat(worst > self.rounding, begin)
            won = np.logical_and.reduceat(hopeless, begin)
            self.scores[start:stop] += float(self.video_weights[rows[begin[won]]].sum())
            live = ~hopeless
            if lost.any():
                live &= ~np.repeat(lost, np.diff(begin, append=len(rows)))
            kept = np.flatnonzero(live)
            if len(kept) < 0.9 * len(rows) or stop - start <= _LEAF:
                rows, margins, sums = rows[kept], margins.take(kept, axis=1), sums[kept]
            elif won.any() or lost.any():
                live = ~np.repeat(won | lost, np.diff(begin, append=len(rows)))
                kept = np.flatnonzero(live)
                rows, margins, sums = rows[kept], margins.take(kept, axis=1), sums[kept]
        if not len(rows):
            return
        if stop - start <= _LEAF:
            self._leaf(start, stop, rows, margins, sums)
            return
        bit = np.uint64(1) << np.uint64(len(self.order) - 1 - depth)
        prefix = self.keys[start] & ~((bit << np.uint64(1)) - np.uint64(1))
        middle = start + int(np.searchsorted(self.keys[start:stop], prefix | bit))
        self.descend(depth + 1, start, middle, rows, margins[1:], sums)
        self.descend(depth + 1, middle, stop, rows, margins[1:], sums + margins[0])

    def _leaf(
        self,
        start: int,
        stop: int,
        rows: NDArray[np.int64],
        margins: NDArray[np.float32],
        sums: NDArray[np.float32],
    ) -> None:
        """Evaluate masks start … stop on the live rivals: a matrix product, and a maximum over each video's rivals."""
        left = len(margins)
        shifts = np.arange(left - 1, -1, -1, dtype=np.uint64)
        chosen = np.ones((stop - start, left + 1), np.float32)
        chosen[:, :left] = self.keys[start:stop, None] >> shifts & np.uint64(1)
        videos, offsets, columns = lay_out(rows)
        table = np.empty((left + 1, len(rows)), np.float32)
        table[:left, columns] = margins
        table[left, columns] = sums
        weights = self.video_weights[videos]
        equal = bool((weights == weights[0]).all())
        width = min(_CHUNK, len(videos))
        product = np.empty((stop - start) * width, np.float32)
        for first in range(0, len(videos), width):
            last = min(first + width, len(videos))
            worst = chosen @ table[:, first:last]
            for slot in range(1, len(offsets) - 1):
                size = min(last, offsets[slot + 1] - offsets[slot]) - first
                if size <= 0:
                    break
                piece = product[: (stop - start) * size].reshape(stop - start, size)
                np.matmul(chosen, table[:, offsets[slot] + first : offsets[slot] + first + size], out=piece)
                np.maximum(worst[:, :size], piece, out=worst[:, :size])
            right = worst < -self.rounding
            count = np.count_nonzero(right, axis=1)
            if equal:
                self.scores[start:stop] += count * weights[0]
            else:
                self.scores[start:stop] += right @ weights[first:last]
            if (np.count_nonzero(worst <= self.rounding, axis=1) > count).any():
                mask, column = np.nonzero(np.abs(worst) <= self.rounding)
                self.defer(start + mask, videos[first + column])

    def defer(self, indices: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Leave (mask, video) pairs to the judge."""
        self.pending.append((indices, rows))
        self.n_pending += len(indices)
        if self.n_pending > _PENDING:
            self.settle()

    def settle(self) -> None:
        """Let the judge decide what is pending."""
        if self.pending:
            indices = np.concatenate([pair[0] for pair in self.pending])
            rows = np.concatenate([pair[1] for pair in self.pending])
            chosen = bits(self.masks[indices], len(self.weights))
            right = self.judge.right(chosen * self.weights, rows)
            self.scores += np.bincount(indices, weights=right * self.video_weights[rows], minlength=len(self.scores))
        self.pending, self.n_pending = [], 0


def lay_out(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Lay a ragged array out by slots: first every video's first rival, then every second one, and so on.

    Videos are sorted by falling number of rivals, so that slot k is a prefix of them and a maximum over rivals runs
    over contiguous memory.

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
