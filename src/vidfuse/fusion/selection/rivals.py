"""Which classes can beat the true one: found once and exactly, so that a search for accuracy runs on the rest.

Under weights of at least 0, a class that another class beats in every member (strictly, or weakly with the lower index
winning ties) is never the argmax, whatever the weights; in a pool of log-likelihoods as in a pool of probabilities.
What remains of 400 classes is about ten a video. The members' normalisers cancel too: logits need no softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse.cache.stack import LogitStack
from vidfuse.fusion.base import floored_blocks
from vidfuse.likelihood import block_rows

__all__ = ["HUGE", "Rivals", "find_rivals"]

HUGE = 1e4
"""Nats: a larger finite margin is a masked class, not an opinion; it takes no part in bounds of rounding."""

Ragged = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""Rows (R,) ascending, classes (R,), margins (M, R)."""

_SLACK = 1e-4  # nats: dominance that is strict by more than any rounding of float32 log-likelihoods


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
    right = np.zeros(len(stack), bool)
    pieces: list[Ragged] = []
    scale = 0.0
    for start, block in _score_blocks(stack, floors, raw=not linear):
        truth = labels[start : start + len(block[0])]
        found, lost = _above_truth(block, truth)
        most = found[2].max(axis=0, initial=-np.inf)
        scale = max(scale, float(most.max(initial=0.0, where=most < HUGE)))
        kept = np.flatnonzero((most > 0) | ((most >= -_SLACK) & (found[1] < truth[found[0]])))
        rows, classes, margins = _drop_dominated(*_take(found, kept), min(rounds, 2), _SLACK)
        right[start : start + len(truth)] = ~lost & (np.bincount(rows, minlength=len(truth)) == 0)
        if linear:
            for scores, out in zip(block, margins, strict=True):
                out[:] = np.exp(scores[rows, classes].astype(np.float64)) - np.exp(
                    scores[rows, truth[rows]].astype(np.float64)
                )
        pieces.append((rows + start, classes, margins))
    ragged = (
        np.concatenate([piece[0] for piece in pieces]),
        np.concatenate([piece[1] for piece in pieces]),
        np.concatenate([piece[2] for piece in pieces], axis=1),
    )
    if rounds > 2:
        ragged = _drop_dominated(*ragged, rounds - 2, 1e-6 if linear else _SLACK)
    return Rivals(len(stack), right, *ragged, scale=scale)


def _take(ragged: Ragged, kept: NDArray[np.int64]) -> Ragged:
    return ragged[0][kept], ragged[1][kept], ragged[2].take(kept, axis=1)


def _score_blocks(
    stack: LogitStack, floors: NDArray[np.float64], *, raw: bool
) -> Iterator[tuple[int, list[NDArray[np.floating[Any]]]]]:
    """Yield blocks as (first row, one array (B, K) a member): stored scores where the normalisers cancel."""
    step = block_rows(stack.shape[1] * stack.n_classes)
    if raw and not floors.any() and stack.present is None and set(stack.kinds) <= {"logits", "log-likelihoods"}:
        chunk = max(step, 4096 // step * step)
        for first in range(0, len(stack), chunk):
            part = stack[first : first + chunk]
            scores = [part.scores(member) for member in part.members]
            scores = [s if s.dtype == np.float32 else s.astype(np.float32) for s in scores]
            for start in range(0, len(part), step):
                yield first + start, [s[start : start + step] for s in scores]
        return
    for rows, block in floored_blocks(stack, floors, step):
        yield rows.start, list(block.swapaxes(0, 1))


def _above_truth(block: list[NDArray[np.floating[Any]]], truth: NDArray[np.int64]) -> tuple[Ragged, NDArray[np.bool_]]:
    """Return the classes that some member puts at or above the true one and at or above the strongest rival.

    That rival has the largest sum of scores; a class that it beats in every member is dominated. Videos that some
    class wins in every member are left out: they are lost. −inf counts as −10³⁰, so that a veto outweighs every other
    term and no difference is NaN.
    """
    size = len(truth)
    index = np.arange(size)
    true_scores = np.maximum(np.stack([scores[index, truth] for scores in block]), np.float32(-1e30))
    total = block[0] + block[1] if len(block) > 1 else block[0].copy()
    for scores in block[2:]:
        np.add(total, scores, out=total)
    total[index, truth] = -np.inf
    top = total.argmax(axis=1)
    above, everywhere = _exceeds(block, true_scores)
    everywhere[index, truth] = False
    lost = _lost(*_gather(block, everywhere, true_scores), truth)
    strongest = np.maximum(np.stack([scores[index, top] for scores in block]), np.float32(-1e30))
    np.logical_and(above, _exceeds(block, strongest)[0], out=above)
    above[index, truth] = False
    above[lost] = False
    return _gather(block, above, true_scores), lost


def _gather(
    block: list[NDArray[np.floating[Any]]], chosen: NDArray[np.bool_], true_scores: NDArray[np.float32]
) -> Ragged:
    """Return the chosen classes with their margins over the true one."""
    n_classes = chosen.shape[1]
    flat = np.flatnonzero(chosen)
    rows = flat // n_classes
    classes = flat - rows * n_classes
    margins = np.empty((len(block), len(flat)), np.float32)
    for scores, true_score, out in zip(block, true_scores, margins, strict=True):
        if scores.flags.c_contiguous:
            scores.reshape(-1).take(flat, out=out, mode="clip")
        else:
            out[:] = scores[rows, classes]
        np.maximum(out, np.float32(-1e30), out=out)
        out -= true_score.take(rows)
    return rows, classes, margins


def _exceeds(
    block: list[NDArray[np.floating[Any]]], scores: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which classes some member puts near or above `scores` (M, B), and which every member does."""
    limits = scores - (_SLACK + 1e-6 * np.abs(scores)).astype(np.float32)
    some = block[0] >= limits[0][:, None]
    every = some.copy()
    more = np.empty_like(some)
    for member, limit in zip(block[1:], limits[1:], strict=True):
        np.greater_equal(member, limit[:, None], out=more)
        np.logical_or(some, more, out=some)
        np.logical_and(every, more, out=every)
    return some, every


def _lost(
    rows: NDArray[np.int64], classes: NDArray[np.int64], margins: NDArray[np.float32], truth: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which videos of a block are wrong for any weights: a rival beats the true class in every member."""
    least = margins.min(axis=0, initial=np.inf)
    beaten = (least > _SLACK) | ((least >= 0) & (classes < truth[rows]))
    return np.bincount(rows[beaten], minlength=len(truth)) > 0


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
        starts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
        segment = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(rows)))
        at_peak = np.flatnonzero(total == np.maximum.reduceat(total, starts).take(segment))
        first = at_peak[np.searchsorted(at_peak, starts)]  # the lowest class among equal sums
        excess = (margins - margins.take(first, axis=1).take(segment, axis=1)).max(axis=0)
        keep = (excess > 0) | ((excess >= -slack) & (classes <= classes[first][segment]))
        total[first] = -np.inf
        exhausted = np.logical_and.reduceat(np.isneginf(total) | ~keep, starts)
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
