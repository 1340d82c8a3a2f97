"""Signs that a member's rows or classes stand in another order than the labels, or than the other members'.

Ids and class names settle both, where all members have them. Where they do not, predictions tell: right classes for the
wrong videos, or right videos under the wrong numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import first_few
from vidfuse._threads import map_members
from vidfuse.errors import AlignmentError, VidfuseWarning, option

__all__ = ["check_order", "order_advice"]

_FEWEST: Final = 50  # videos below which nothing is said
_FEWEST_MOVED: Final = 40  # rows that must have lost their order before it is said
_MOST_CLASSES: Final = 1000  # classes for which an assignment of all to all is quickly found
_BLOCKS: Final = 32
_AT_ONCE: Final = 1 << 20  # numbers


def order_advice(by_id: bool) -> str:
    """Return what to do about a member whose rows seem to stand in another order.

    Example:
        >>> order_advice(False)
        'Pass ids=, so that rows are matched by id'
    """
    if by_id:
        return "Rows are matched by id: look whether its rows got the right ids, and its columns the right classes"
    return f"Pass {option('ids')}, so that rows are matched by id"


def check_order(
    scores: Mapping[str, NDArray[np.floating[Any]]],
    labels: NDArray[np.int64] | None,
    ids: NDArray[np.str_] | None = None,
    unnamed: Collection[str] = (),
) -> None:
    """Warn of members whose rows or classes seem to stand in another order.

    A member is held against the labels, or without them against what most other members predict. Rows that are copies
    of each other count once: a video that was copied is no further evidence.

    Args:
        scores: Each member's scores (N, K), in the labels' order.
        labels: True classes (N,), or None.
        ids: The videos' ids, to say where.
        unnamed: Members without class names beside others that have some. Their classes could be in another order:
            that is refused where predictions show it, and a warning where they show nothing.

    Raises:
        AlignmentError: An unnamed member's classes are in another order.
    """
    names, n = tuple(scores), len(next(iter(scores.values())))
    if n < _FEWEST or (labels is None and len(scores) < 2):
        _warn_uncompared(unnamed)
        return
    k = next(iter(scores.values())).shape[1]
    read = map_members(lambda m: (scores[m].argmax(axis=1), _prints(scores[m])), names, n * k * len(names))
    predicted = {name: classes for name, (classes, _) in zip(names, read, strict=True)}
    prints = {name: own for name, (_, own) in zip(names, read, strict=True)}
    excess, uncompared, mutual = {}, [], labels is None and len(names) == 2
    for name in sorted(names, key=lambda name: name not in unnamed):
        truth = labels if labels is not None else _most_predicted([p for m, p in predicted.items() if m != name], k)
        rows = _distinct(prints[name], truth, k)
        said, true = predicted[name][rows], truth[rows]
        excess[name] = _excess(said, true, k)
        if len(rows) < _FEWEST:
            excess[name] = max(excess[name], 2.0)  # too few to say anything
            uncompared += [name] if name in unnamed else []
            continue
        columns = None
        if k <= _MOST_CLASSES and (labels is not None or name in unnamed):  # members may differ, labels are not wrong
            columns = _class_order(said, true, k, least=0.0 if labels is not None else 0.5)
        if columns is not None:
            message = _class_message(name, columns, "the labels" if labels is not None else "the other members")
            if name in unnamed:
                raise AlignmentError(message)
            _warn(message)
            if mutual:
                break
        elif name in unnamed and excess[name] < 5:
            uncompared.append(name)
        elif moved := _moved_rows(said, true, k):
            runs = tuple((int(rows[start]), int(rows[stop - 1]) + 1) for start, stop in moved.runs)
            _warn(_rows_message(name, replace(moved, runs=runs), ids, mutual, names))
            if mutual:
                break
    _warn_uncompared(uncompared)
    suspects = sorted(name for name in names if excess.get(name, 2) < 2)
    if labels is not None and suspects and max(excess.values()) > 8:
        _warn(
            f"member {first_few(suspects)} does no better than its own predictions in a random order, while others do: "
            f"another order? {order_advice(ids is not None)}"
        )


def _prints(scores: NDArray[np.floating[Any]]) -> NDArray[np.uint64]:
    """Return a number for each row (N,): the same for equal rows, and for others most likely another.

    It is a sum of the scores' bits times random whole numbers, modulo 2^64: nothing is rounded.
    """
    n, k = scores.shape
    bits = np.dtype(f"u{scores.dtype.itemsize}")
    weights = np.random.default_rng(0).integers(0, 1 << 63, size=k, dtype=np.uint64)
    prints = np.empty(n, dtype=np.uint64)
    step = max(1, _AT_ONCE // k)
    for start in range(0, n, step):
        block = np.ascontiguousarray(scores[start : start + step])
        np.matmul(block.view(bits).astype(np.uint64), weights, out=prints[start : start + step])
    return prints


def _distinct(prints: NDArray[np.uint64], truth: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Return the rows, ascending, without copies of earlier ones.

    Copies of a video have one true class. Where equal rows have several, or are one for each class at most, a member
    gives votes or such, in which videos come out alike: all rows are kept.
    """
    order = np.lexsort((truth, prints))
    other = np.diff(prints[order]) != 0
    if other.sum() < k or (~other & (np.diff(truth[order]) != 0)).any():
        return np.arange(len(truth))
    return np.sort(order[np.concatenate([[True], other])])


def _warn(message: str) -> None:
    warnings.warn(message, VidfuseWarning, stacklevel=4)


def _warn_uncompared(unnamed: Collection[str]) -> None:
    if unnamed:
        _warn(
            f"member {first_few(sorted(unnamed))} has no class names, and others have: that its classes stand in their "
            f"order cannot be told; name them with {option('classes')} if they do"
        )


def _most_predicted(predictions: Sequence[NDArray[np.int64]], k: int) -> NDArray[np.int64]:
    """Return the class that most members predict for each video, the lowest among equals."""
    if len(predictions) == 1:
        return predictions[0]
    stacked = np.sort(np.stack(predictions, axis=1), axis=1)
    counts = np.stack([(stacked == column[:, None]).sum(axis=1) for column in stacked.T], axis=1)
    return stacked[np.arange(len(stacked)), counts.argmax(axis=1)]


def _excess(predicted: NDArray[np.int64], truth: NDArray[np.int64], k: int) -> float:
    """Return by how many standard deviations a member is right more often than its predictions in a random order.

    For true classes with frequencies f_c and predictions with frequencies q_c, a random order is right with probability
    Σ f_c q_c.
    """
    n = len(truth)
    chance = float(np.bincount(truth, minlength=k) / n @ np.bincount(predicted, minlength=k)) / n
    spread = max(np.sqrt(n * chance * (1 - chance)), 1.0)
    return float((predicted == truth).sum() - n * chance) / spread


def _class_order(
    predicted: NDArray[np.int64], truth: NDArray[np.int64], k: int, least: float = 0.0
) -> NDArray[np.int64] | None:
    """Return which class each column seems to hold (K,); None where columns hold their own, or that cannot be told.

    In that order the member must be right for a share of at least `least`. The best assignment of columns to classes
    is found on every other video, and judged on those between.
    """
    hits = (predicted == truth)[1::2]
    if hits.mean() > 2 / 3:
        return None
    from scipy.optimize import linear_sum_assignment

    counts = np.bincount(predicted[::2] * k + truth[::2], minlength=k * k).reshape(k, k)
    columns, found = linear_sum_assignment(counts, maximize=True)
    order = np.arange(k)
    seen = counts[columns, found] > 0
    order[columns[seen]] = found[seen]
    assigned = (order[predicted] == truth)[1::2]
    gain, spread = float(assigned.mean() - hits.mean()), np.sqrt(assigned.mean() / len(hits))
    if gain <= max(0.1, 6 * spread) or assigned.mean() <= max(least, 1.5 * hits.mean()):
        return None
    # A member that takes some classes for others is right about them now and then. One whose columns stand for other
    # classes is right about those by chance only, and about all classes alike once they are put in order.
    moved = np.isin(truth[1::2], order[order != np.arange(k)])
    share = float((np.bincount(predicted, minlength=k) / len(predicted))[truth[1::2][moved]].mean())
    by_chance = hits[moved].mean() <= share + 4 * np.sqrt(share * (1 - share) / moved.sum())
    return (
        order
        if by_chance and assigned[moved].mean() > 0.6 * (assigned[~moved].mean() if (~moved).any() else 0.0)
        else None
    )


def _class_message(name: str, order: NDArray[np.int64], than: str) -> str:
    k = len(order)
    as_text = np.array(sorted(range(k), key=str))
    moved = np.flatnonzero(order != np.arange(k))
    shown = ", ".join(f"{column} holds {order[column]}" for column in moved[:5])
    advice = "put its columns in order, or name the classes of all members"
    if (order[moved] == as_text[moved]).mean() > 0.7:
        shown = f"they are sorted as text: {', '.join(map(str, as_text[:5]))} …"
    return f"member {name!r}: its classes stand in another order than those of {than} ({shown}); {advice}"


@dataclass(frozen=True)
class _Moved:
    """Rows whose predictions belong to other rows: runs (start, stop), and whether two of them were swapped."""

    runs: tuple[tuple[int, int], ...]
    swapped: bool


def _moved_rows(predicted: NDArray[np.int64], truth: NDArray[np.int64], k: int) -> _Moved | None:
    """Find runs of rows in which a member's predictions are those of other videos of the runs.

        rows        0 ......... 300 ......... 600
        right       ▇▇▇▆▇▇▇▇▆▇  ▁▁▂▁▁▁▂▁▁▁▁▁      the right half is in another order, if in it
        classes     fit         fit               the classes that are predicted are those that are true

    A run that is merely hard, or of a class that the member does not know, has other classes predicted than are true.
    """
    n = len(truth)
    right = predicted == truth
    by_chance = (np.bincount(predicted, minlength=k) / n)[truth]
    edges = np.linspace(0, n, min(_BLOCKS, n // 20) + 1).astype(np.int64)
    sizes = np.diff(edges)
    expected = np.add.reduceat(by_chance, edges[:-1])
    spread = np.sqrt(np.add.reduceat(by_chance * (1 - by_chance), edges[:-1]))
    excess = (np.add.reduceat(right.astype(np.float64), edges[:-1]) - expected) / np.maximum(spread, 1.0)
    low = excess <= 2
    inside = np.repeat(low, sizes)
    m = int(inside.sum())
    if m < _FEWEST_MOVED or n - m < _FEWEST_MOVED or excess[~low].mean() < 4:
        return None

    def chance(rows: NDArray[np.bool_]) -> tuple[float, float]:
        true, said = (np.bincount(values[rows], minlength=k) / rows.sum() for values in (truth, predicted))
        return float(true @ said), float(np.minimum(true, said).sum())

    (out_chance, _), (in_chance, fit) = chance(~inside), chance(inside)
    rate = float(right[~inside].mean())
    kappa = (rate - out_chance) / max(1 - out_chance, 1e-9)
    wanted = in_chance + kappa * (1 - in_chance)
    hits = int(right[inside].sum())
    lost = (m * wanted - hits) / np.sqrt(m * wanted * (1 - min(wanted, 1)) + 1)
    at_chance = hits <= m * in_chance + 3 * np.sqrt(m * in_chance * (1 - in_chance) + 1)
    classes = 1 / float(np.square(np.bincount(truth[inside], minlength=k) / m).sum())  # as many as equal ones would be
    if not (lost > 8 and at_chance and fit >= 0.8 * rate and classes >= 4):
        return None
    ends = np.flatnonzero(np.diff(np.concatenate([[False], low, [False]]).astype(np.int8)))
    runs: list[tuple[int, int]] = []
    for start, stop in ends.reshape(-1, 2).tolist():
        if runs and start - runs[-1][1] <= 2:  # a block or two that were right by luck
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
    runs = [(int(edges[start]), int(edges[stop])) for start, stop in runs]
    swapped = _swap(predicted, truth, runs, wanted)
    return _Moved(tuple(runs), swapped) if swapped or _unrelated(predicted[inside], truth[inside], k) else None


def _unrelated(predicted: NDArray[np.int64], truth: NDArray[np.int64], k: int) -> bool:
    """Whether classes are predicted without regard to the true ones, as by rows in a random order.

    Pairs (predicted, true) that come again and again are a member's habit of taking one class for another. Σ n², with n
    how often each pair comes, is compared with its value in random orders.
    """

    def again(order: NDArray[np.int64]) -> float:
        return float(np.square(np.unique(predicted * k + truth[order], return_counts=True)[1]).sum())

    rng = np.random.default_rng(0)
    shuffled = [again(rng.permutation(len(truth))) for _ in range(30)]
    return bool(again(np.arange(len(truth))) <= np.mean(shuffled) + 4 * np.std(shuffled))


def _swap(
    predicted: NDArray[np.int64], truth: NDArray[np.int64], runs: Sequence[tuple[int, int]], wanted: float
) -> bool:
    """Whether two runs hold each other's predictions; their ends are known to a block only."""
    if len(runs) != 2:
        return False
    (a, a_end), (b, b_end) = runs
    length = min(a_end - a, b_end - b)
    if length < _FEWEST_MOVED or len(np.unique(truth[a:a_end])) < 4:
        return False
    for shift in range(b - a - (a_end - a), b - a + (a_end - a) + 1):
        stop = min(a + length, len(truth) - shift)
        if stop - a >= length // 2 and (predicted[a:stop] == truth[a + shift : stop + shift]).mean() > 0.8 * wanted:
            return True
    return False


def _rows_message(name: str, moved: _Moved, ids: NDArray[np.str_] | None, mutual: bool, names: Sequence[str]) -> str:
    def end(row: int) -> str:
        return f"{row}" if ids is None else f"{row} ({str(ids[row])!r})"

    runs = " and ".join(f"{end(start)} to {end(stop - 1)}" for start, stop in moved.runs[:3])
    more = f" and {len(moved.runs) - 3} more runs" if len(moved.runs) > 3 else ""
    who = (
        f"members {names[0]!r} and {names[1]!r} agree only by chance"
        if mutual
        else f"member {name!r} is right only by chance"
    )
    what = "two folds or files swapped?" if moved.swapped else "are these rows in another order?"
    return (
        f"{who} in the rows {runs}{more}, roughly, though the classes predicted there fit, and elsewhere "
        f"{'they agree' if mutual else 'it is good'}: {what} {order_advice(ids is not None)}"
    )
