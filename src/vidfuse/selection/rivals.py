"""Which classes can beat the true one: found once and exactly, so that a search for accuracy runs on the rest.

Let members have weights of at least 0. Three facts tell that a class is never predicted, whatever the weights, in a
pool of log-likelihoods as in a pool of probabilities:

1. Another class beats it in every member.
2. In every member it is at most equal to a class of lower index (the lowest class wins ties).
3. In every member it lies below a mean of two other classes, λ of the one and 1 - λ of the other: the pooled scores
   keep this order, and one of the two is at least their mean. (A mean of logarithms is at most the logarithm of the
   mean, so that this holds for probabilities too.)

About ten of 400 classes remain. Each member's normaliser cancels between two classes: logits need no softmax.

What is kept of a video, with M = 2 members and the true class t:

    class        0     t     2     3          margins, member by row, rival by column:
    member 0    1.0   3.0   2.0   0.0          rows     [5     5   | 6  ...   the video
    member 1    0.0   1.0   2.0   0.5          classes  [2     3   | 0  ...   its rivals
    class 0 is below t in both: dropped        margins  [-1.0  ...            score of the rival
                                                        [ 1.0  ...            minus score of t
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

__all__ = ["Rivals", "find_rivals", "starts"]

_HUGE = 1e4  # nats: a larger finite margin is a masked class, not an opinion
_SLACK = 1e-4  # nats: dominance that is strict by more than any rounding of float32 log-likelihoods
_VETO = np.float32(-1e30)  # stands for −inf, so that a veto outweighs every other term and no difference is NaN
_NUMBERS = 1 << 20  # numbers a block: 4 MB of float32, which stay in the third-level cache between two looks
_BLOCKS = 4  # blocks a task: what is left of them is small enough to stay in the second-level cache


@dataclass(frozen=True)
class Rivals:
    """The classes that may beat the true one, as a ragged array sorted by video.

    Attributes:
        right: Which videos are right for any weights, shape (N,); videos that are neither here nor in `rows` are wrong.
        rows: The video of each rival, ascending, shape (R,).
        classes: The class of each rival, ascending within a video, shape (R,).
        margins: Each member's score of the rival minus its score of the true class, float32 of shape (M, R).
        rounding: How far a float32 mean of margins may be from the pool's own arithmetic, for any weights of sum 1.
    """

    right: NDArray[np.bool_]
    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    margins: NDArray[np.float32]
    rounding: float

    def __repr__(self) -> str:
        undecided = len(np.unique(self.rows))
        return f"Rivals({len(self.rows)} rivals in {undecided} undecided of {len(self.right)} videos)"


def find_rivals(stack: LogitStack, labels: NDArray[np.int64], floors: NDArray[np.float64], *, linear: bool) -> Rivals:
    """Find each video's classes that may beat the true one under some weights of at least 0.

    Args:
        stack: Members, in the order in which their terms are summed.
        labels: True classes, shape (N,).
        floors: Each member's floor, shape (M,).
        linear: Margins of probabilities (a linear pool); of log-likelihoods otherwise.

    Example:
        >>> z = np.array([[[3.0, 1, 2, 0], [1, 0, 2, 0]]], dtype=np.float32)  # class 2 may win; 1 and 3 never
        >>> found = find_rivals(LogitStack.from_arrays(z), np.array([0]), np.zeros(2), linear=False)
        >>> found.classes.tolist(), found.margins.T.tolist()
        ([2], [[-1.0, 1.0]])
    """
    step = block_rows(stack.shape[1] * stack.n_classes, _NUMBERS)
    spans = [slice(first, first + _BLOCKS * step) for first in range(0, len(stack), _BLOCKS * step)]

    def search(span: slice) -> Rivals:
        blocks = _score_blocks(stack[span], floors, step, raw=not linear)
        return _search_part(blocks, labels[span], stack.n_classes, linear)

    with ThreadPoolExecutor(min(len(spans), cpu_count())) as pool:
        parts = list(pool.map(search, spans))
    return Rivals(
        np.concatenate([part.right for part in parts]),
        np.concatenate([part.rows + span.start for span, part in zip(spans, parts, strict=True)]),
        np.concatenate([part.classes for part in parts]),
        np.concatenate([part.margins for part in parts], axis=1),
        max(part.rounding for part in parts),
    )


def starts(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each video's rivals begin.

    Example:
        >>> starts(np.array([3, 3, 5])).tolist()
        [0, 2]
    """
    return np.flatnonzero(np.diff(rows, prepend=-1))


def _score_blocks(
    stack: LogitStack, floors: NDArray[np.float64], step: int, *, raw: bool
) -> Iterator[list[NDArray[np.float32]]]:
    """Yield blocks as one array (B, K) a member: stored scores where the normalisers cancel."""
    if raw and not floors.any() and set(stack.kinds) <= {"logits", "log-likelihoods"}:
        scores = [np.ascontiguousarray(stack.scores(member), np.float32) for member in stack.members]
        for start in range(0, len(stack), step):
            yield [s[start : start + step] for s in scores]
        return
    for _, block in floored_blocks(stack, floors, step):
        yield list(block.swapaxes(0, 1))


def _search_part(
    blocks: Iterator[list[NDArray[np.float32]]], labels: NDArray[np.int64], n_classes: int, linear: bool
) -> Rivals:
    """Return the rivals of some videos, whose rows are counted from the first of them.

    A rival is dropped that the true class or the strongest rival beats in every member; a video is lost, with all its
    rivals, where one of them beats the true class in every member. What ties within the slack is kept where the order
    of the classes lets it win.
    """
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
    scale = float(most.max(initial=0.0, where=most < _HUGE))
    least = margins.min(axis=0, initial=np.inf)
    lower = classes < labels[rows]
    lost = np.zeros(len(labels), bool)
    lost[rows[(least > _SLACK) | ((least >= 0) & lower)]] = True
    able = (most > 0) | ((most >= -_SLACK) & lower)
    able &= (excess > 0) | ((excess >= -_SLACK) & (places <= top[rows]))
    kept = np.flatnonzero(able & ~lost[rows])
    rows, classes, margins = rows[kept], classes[kept], margins.take(kept, axis=1)
    right = ~lost
    right[rows] = False
    if linear:
        for score, truth, out in zip(scores, true_scores, margins, strict=True):
            out[:] = np.exp(score[kept].astype(np.float64)) - np.exp(truth[rows].astype(np.float64))
    return Rivals(right, rows, classes, margins, _rounding(margins, scale, linear))


def _rounding(margins: NDArray[np.float32], scale: float, linear: bool) -> float:
    """Return how far a float32 mean of margins may be from the pool's own arithmetic.

    It is what float32 products and sums lose, and what the pool loses when it normalises stored scores: with the number
    of classes, the largest margin bounds these. Probabilities are exact but for their logarithms.
    """
    opinions = np.abs(margins)
    largest = float(opinions.max(initial=0.0, where=opinions < _HUGE))
    inherited = 1e-3 if linear else 4 * (scale + 10)
    return 2.0**-23 * ((len(margins) + 4) * largest + inherited)


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
        true ones and of the strongest rivals (M, B). A place is row · K + class.
    """
    size, n_classes = block[0].shape
    flat = [scores.reshape(-1) for scores in block]
    start = np.arange(size) * n_classes
    total = block[0].copy()
    for scores in block[1:]:
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
    some = np.zeros((size, n_classes), bool)
    for scores, limit in zip(block, limits, strict=True):
        some |= scores >= limit[:, None]
    some.reshape(-1)[start + truth] = False
    places = np.flatnonzero(some)
    found = np.maximum(np.stack([scores.take(places) for scores in flat]), _VETO)
    return places + offset, top + offset, found, true_scores, strongest
