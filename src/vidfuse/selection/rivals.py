"""Which classes can beat the true one: found once and exactly, so that a search for accuracy runs on the rest.

Let members have weights of at least 0. Three facts tell that a class is never predicted, whatever the weights, in a
pool of log-likelihoods as in a pool of probabilities:

1. Another class beats it in every member.
2. In every member it is at most equal to a class of lower index (the lowest class wins ties).
3. In every member it lies below a mean of two other classes, λ of the one and 1 - λ of the other: the pooled scores
   keep this order, and one of the two is at least their mean. (A mean of logarithms is at most the logarithm of the
   mean, so that this holds for probabilities too.)

About ten of 400 classes remain. Each member's normaliser cancels between two classes: logits need no softmax.

Of video 5, with two members and the true class 1, this is kept:

    class         0     1     2     3        rows       5     5      the rivals' videos
    member 0    1.0   3.0   2.0   2.9        classes    2     3
    member 1    0.0   1.0   2.0   1.3        margins   -1.0  -0.1    score of the rival minus score of the true class,
                                                        1.0   0.3    one row for each member

Class 0 lies below class 1 in both members and is dropped. Each rival may win under some weights.
"""

from __future__ import annotations

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
    spans = [slice(first, first + step) for first in range(0, len(stack), step)]

    def search(span: slice) -> Rivals:
        return _search_block(_scores(stack[span], floors, raw=not linear), labels[span], linear)

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


def _scores(stack: LogitStack, floors: NDArray[np.float64], *, raw: bool) -> list[NDArray[np.float32]]:
    """Return one array (B, K) for each member: stored scores where the normalisers cancel.

    Of float64 scores each row's largest is taken off first: float32 would lose the digits of a large common number.
    """
    if raw and not floors.any() and set(stack.kinds) <= {"logits", "log-likelihoods"}:
        stored = (stack.scores(member) for member in stack.members)
        with np.errstate(over="ignore"):  # beyond float32 a class is as good as vetoed
            return [
                np.ascontiguousarray(z - z.max(axis=1, keepdims=True) if z.dtype == np.float64 else z, np.float32)
                for z in stored
            ]
    ((_, block),) = floored_blocks(stack, floors, len(stack))
    return list(block.swapaxes(0, 1))


def _search_block(block: list[NDArray[np.float32]], truth: NDArray[np.int64], linear: bool) -> Rivals:
    """Return the rivals of some videos.

    1. Look at all numbers once: keep the classes that no mean of the true class and the strongest rival, that of the
       largest sum, beats in every member. The mean leans to the true class where it leads: λ is chosen for few
       survivors, and any would be exact.
    2. Of these, drop those that the true class or the strongest rival alone beats in every member.
    3. A video is lost where one of its rivals beats the true class in every member: drop all its rivals.

    What ties within the slack is kept where the order of the classes lets it win.

    Args:
        block: Scores, one array (B, K) for each member. A place in it is row · K + class.
        truth: True classes, shape (B,).
        linear: A linear pool.
    """
    size, n_classes = block[0].shape
    flat = [scores.reshape(-1) for scores in block]
    start = np.arange(size) * n_classes
    total = block[0].copy()
    for scores in block[1:]:
        np.add(total, scores, out=total)
    total.reshape(-1)[start + truth] = -np.inf
    top = start + total.argmax(axis=1)

    def look_up(places: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.maximum(np.stack([scores.take(places) for scores in flat]), _VETO)

    true_scores, strongest = look_up(start + truth), look_up(top)
    lead = true_scores - strongest
    mean = lead.mean(axis=0)
    with np.errstate(over="ignore"):  # a lead that is a veto: the share is 0 or 1
        share = np.clip(0.5 + mean / (4 * np.abs(lead - mean).mean(axis=0) + np.float32(1e-12)), 0, 1)
    limits = strongest + share * lead
    limits -= 1e-6 * (np.abs(strongest) + np.abs(lead)) + _SLACK
    some = np.zeros((size, n_classes), bool)
    for scores, limit in zip(block, limits, strict=True):
        some |= scores >= limit[:, None]
    some.reshape(-1)[start + truth] = False
    places = np.flatnonzero(some)
    rows = places // n_classes
    classes = places - rows * n_classes
    found = look_up(places)
    margins = found - true_scores.take(rows, axis=1)
    most, least = margins.max(axis=0), margins.min(axis=0)
    excess = (found - strongest.take(rows, axis=1)).max(axis=0)
    scale = float(most.max(initial=0.0, where=most < _HUGE))
    lower = classes < truth[rows]
    able = (most > 0) | ((most >= -_SLACK) & lower)
    able &= (excess > 0) | ((excess >= -_SLACK) & (places <= top[rows]))
    lost = np.zeros(size, bool)
    lost[rows[(least > _SLACK) | ((least >= 0) & lower)]] = True
    kept = np.flatnonzero(able & ~lost[rows])
    rows, classes, margins = rows[kept], classes[kept], margins.take(kept, axis=1)
    right = ~lost
    right[rows] = False
    if linear:
        likely = np.exp(found.take(kept, axis=1).astype(np.float64)) - np.exp(true_scores.astype(np.float64))[:, rows]
        margins = likely.astype(np.float32)
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
