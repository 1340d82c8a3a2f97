"""Which classes can beat the true one: found once and exactly, so that a search for accuracy runs on the rest.

Under weights of at least 0, a class that another class beats in every member (strictly, or weakly with the lower index
winning ties) is never the argmax, whatever the weights; in a pool of log-likelihoods as in a pool of probabilities. Nor
is a class that in every member lies below a mean of two others, λ of the one and 1 − λ of the other: the pool's sums
keep the order, and one of the two is at least their mean. (A mean of logarithms is at most the logarithm of the mean,
so that this holds for probabilities too.) What remains of 400 classes is about ten a video. The members' normalisers
cancel: logits need no softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from vidfuse.fusion.floors import floored_blocks
from vidfuse.likelihood import block_rows
from vidfuse.stack.stack import LogitStack

__all__ = ["HUGE", "Rivals", "find_rivals", "starts"]

HUGE = 1e4
"""Nats: a larger finite margin is a masked class, not an opinion; it takes no part in bounds of rounding."""

Ragged = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""Rows (R,) ascending, classes (R,), margins (M, R)."""

_SLACK = 1e-4  # nats: dominance that is strict by more than any rounding of float32 log-likelihoods
_VETO = np.float32(-1e30)  # stands for −inf, so that a veto outweighs every other term and no difference is NaN
_NUMBERS = 1 << 20  # numbers a block: 4 MB of float32, which stay in the third-level cache between two looks
_BLOCKS = 4  # blocks a task: what is left of them is small enough to stay in the second-level cache


@dataclass(frozen=True)
class Rivals:
    """The classes that may beat the true one, as a ragged array sorted by video.

    Attributes:
        n_videos: N.
        right: Which videos are right for any weights, shape (N,); videos that are neither here nor in `rows` are wrong.
        rows: The video of each rival, ascending, shape (R,).
        classes: The class of each rival, shape (R,).
        margins: Each member's score of the rival minus its score of the true class, float32 of shape (M, R).
        scale: The largest finite margin of any class: with log K it bounds the log-likelihoods, and so their rounding.
    """

    n_videos: int
    right: NDArray[np.bool_]
    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    margins: NDArray[np.float32]
    scale: float

    def __repr__(self) -> str:
        undecided = len(np.unique(self.rows))
        return f"Rivals({len(self.rows)} rivals in {undecided} undecided of {self.n_videos} videos)"


def find_rivals(
    stack: LogitStack, labels: NDArray[np.int64], floors: NDArray[np.float64], *, linear: bool, rounds: int = 0
) -> Rivals:
    """Find each video's classes that may beat the true one under some weights of at least 0.

    Args:
        stack: Members, in the order in which their terms are summed.
        labels: True classes, shape (N,).
        floors: Each member's floor, shape (M,).
        linear: Margins of probabilities (a linear pool); of log-likelihoods otherwise.
        rounds: How many more rivals of a video are tried as dominators of its others, after the strongest one; the
            result is exact with any number, and smaller with more.

    Example:
        >>> z = np.array([[[3.0, 1, 2, 0], [1, 0, 2, 0]]], dtype=np.float32)  # class 2 may win; 1 and 3 never
        >>> found = find_rivals(LogitStack.from_arrays(z), np.array([0]), np.zeros(2), linear=False)
        >>> found.classes.tolist(), found.margins.T.tolist()
        ([2], [[-1.0, 1.0]])
    """
    step = block_rows(stack.shape[1] * stack.n_classes, _NUMBERS)
    size = _BLOCKS * step
    spans = [slice(first, first + size) for first in range(0, len(stack), size)]

    def look(span: slice) -> tuple[NDArray[np.bool_], Ragged, float]:
        blocks = _score_blocks(stack[span], floors, step, raw=not linear)
        return _search_part(blocks, labels[span], stack.n_classes, linear, min(rounds, 2))

    workers = min(len(spans), cpu_count())
    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            parts = list(pool.map(look, spans))
    else:
        parts = [look(span) for span in spans]
    right, found, scales = zip(*parts, strict=True)
    ragged = (
        np.concatenate([rows + span.start for span, (rows, _, _) in zip(spans, found, strict=True)]),
        np.concatenate([classes for _, classes, _ in found]),
        np.concatenate([margins for _, _, margins in found], axis=1),
    )
    if rounds > 2:
        ragged = _drop_dominated(*ragged, rounds - 2, 1e-6 if linear else _SLACK)
    return Rivals(len(stack), np.concatenate(right), *ragged, scale=max(scales))


def starts(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each video's rivals begin.

    Example:
        >>> starts(np.array([3, 3, 5])).tolist()
        [0, 2]
    """
    return np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]])) if len(rows) else np.zeros(0, np.int64)


def _take(ragged: Ragged, kept: NDArray[np.int64]) -> Ragged:
    return ragged[0][kept], ragged[1][kept], ragged[2].take(kept, axis=1)


def _score_blocks(
    stack: LogitStack, floors: NDArray[np.float64], step: int, *, raw: bool
) -> Iterator[list[NDArray[np.float32]]]:
    """Yield blocks as one array (B, K) a member: stored scores where the normalisers cancel."""
    if raw and not floors.any() and stack.present is None and set(stack.kinds) <= {"logits", "log-likelihoods"}:
        scores = [np.ascontiguousarray(stack.scores(member), np.float32) for member in stack.members]
        for start in range(0, len(stack), step):
            yield [s[start : start + step] for s in scores]
        return
    for _, block in floored_blocks(stack, floors, step):
        yield list(block.swapaxes(0, 1))


def _search_part(
    blocks: Iterator[list[NDArray[np.float32]]], labels: NDArray[np.int64], n_classes: int, linear: bool, rounds: int
) -> tuple[NDArray[np.bool_], Ragged, float]:
    """Return which videos are right for any weights, the rivals of the others, and the largest finite margin."""
    start, looks = 0, []
    for block in blocks:
        looks.append(_look(block, labels[start : start + len(block[0])], start * n_classes))
        start += len(block[0])
    places, top = (np.concatenate([look[i] for look in looks]) for i in (0, 1))
    scores, true_scores, strongest = (np.concatenate([look[i] for look in looks], axis=1) for i in (2, 3, 4))
    rows = places // n_classes
    classes = places - rows * n_classes
    margins = np.empty_like(scores)
    most, excess = np.full((2, len(rows)), _VETO)
    for score, truth, rival, out in zip(scores, true_scores, strongest, margins, strict=True):
        np.subtract(score, truth.take(rows), out=out)
        np.maximum(most, out, out=most)
        np.maximum(excess, score - rival.take(rows), out=excess)
    scale = float(most.max(initial=0.0, where=most < HUGE))
    least = margins.min(axis=0, initial=np.inf)
    lower = classes < labels[rows]
    lost = np.zeros(len(labels), bool)
    lost[rows[(least > _SLACK) | ((least >= 0) & lower)]] = True  # whatever the weights
    able = (most > 0) | ((most >= -_SLACK) & lower)
    able &= (excess > 0) | ((excess >= -_SLACK) & (places <= top[rows]))
    able &= ~lost[rows]
    rows, classes, margins = _take((rows, classes, margins), np.flatnonzero(able))
    rows, classes, margins = _drop_dominated(rows, classes, margins, rounds, _SLACK)
    right = ~lost
    right[rows] = False
    if linear:
        own = np.searchsorted(places, rows * n_classes + classes)
        for score, truth, out in zip(scores, true_scores, margins, strict=True):
            out[:] = np.exp(score[own].astype(np.float64)) - np.exp(truth[rows].astype(np.float64))
    return right, (rows, classes, margins), scale


def _look(
    block: list[NDArray[np.float32]], truth: NDArray[np.int64], offset: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return the classes that no mean of the true class and the strongest rival beats in every member.

    The strongest rival has the largest sum of scores. The mean leans to the true class where it leads: λ is chosen for
    few survivors, any would be exact.

    Args:
        block: Scores, one array (B, K) a member.
        truth: True classes, shape (B,).
        offset: The place of the block's first score among all.

    Returns:
        The classes' places (R,), ascending, and the strongest rivals' (B,); the scores of the classes (M, R), of the
        true ones and of the strongest rivals (M, B).
    """
    size, n_classes = block[0].shape
    flat = [scores.reshape(-1) for scores in block]
    start = np.arange(size) * n_classes
    total = block[0] + block[1] if len(block) > 1 else block[0].copy()
    for scores in block[2:]:
        np.add(total, scores, out=total)
    total.reshape(-1)[start + truth] = -np.inf
    top = start + total.argmax(axis=1)
    true_scores = np.maximum(np.stack([scores.take(start + truth) for scores in flat]), _VETO)
    strongest = np.maximum(np.stack([scores.take(top) for scores in flat]), _VETO)
    lead = true_scores - strongest
    mean = lead.mean(axis=0)
    share = np.clip(0.5 + mean / (4 * np.abs(lead - mean).mean(axis=0) + np.float32(1e-12)), 0, 1)
    limits = strongest + share * lead
    limits -= 1e-6 * (np.abs(strongest) + np.abs(lead)) + _SLACK
    limits = limits[:, :, None]
    some = block[0] >= limits[0]
    more = np.empty_like(some)
    for scores, limit in zip(block[1:], limits[1:], strict=True):
        np.greater_equal(scores, limit, out=more)
        np.logical_or(some, more, out=some)
    some.reshape(-1)[start + truth] = False
    places = np.flatnonzero(some)
    found = np.empty((len(block), len(places)), np.float32)
    for scores, out in zip(flat, found, strict=True):
        scores.take(places, out=out, mode="clip")
    if found.min(initial=0.0) < _VETO:
        np.maximum(found, _VETO, out=found)
    return places + offset, top + offset, found, true_scores, strongest


def _drop_dominated(
    rows: NDArray[np.int64], classes: NDArray[np.int64], margins: NDArray[np.float32], rounds: int, slack: float
) -> Ragged:
    """Drop rivals that another rival of the same video beats in every member.

    Each round tries, for every video, the rival of the largest sum of margins that was not tried before: a dominator's
    sum is at least as large. Videos whose rivals were all tried leave the work.
    """
    done: list[Ragged] = []
    total = margins.sum(axis=0)
    for _ in range(rounds):
        if not len(rows):
            break
        begin = starts(rows)
        segment = np.repeat(np.arange(len(begin)), np.diff(begin, append=len(rows)))
        at_peak = np.flatnonzero(total == np.maximum.reduceat(total, begin).take(segment))
        first = at_peak[np.searchsorted(at_peak, begin)]  # the lowest class among equal sums
        excess = (margins - margins.take(first, axis=1).take(segment, axis=1)).max(axis=0)
        keep = (excess > 0) | ((excess >= -slack) & (classes <= classes[first][segment]))
        total[first] = -np.inf
        exhausted = np.logical_and.reduceat(np.isneginf(total) | ~keep, begin)
        if exhausted.any():
            leaving = exhausted[segment]
            done.append(_take((rows, classes, margins), np.flatnonzero(keep & leaving)))
            keep &= ~leaving
        kept = np.flatnonzero(keep)
        rows, classes, margins = _take((rows, classes, margins), kept)
        total = total[kept]
    if not done:
        return rows, classes, margins
    done.append((rows, classes, margins))
    rows = np.concatenate([piece[0] for piece in done])
    classes = np.concatenate([piece[1] for piece in done])
    order = np.lexsort((classes, rows))
    return rows[order], classes[order], np.concatenate([piece[2] for piece in done], axis=1).take(order, axis=1)
