"""Weights by accuracy itself, or by any metric: move one weight at a time to where the score is best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import check_weights
from vidfuse._tables import Table, Tabular, weight_table
from vidfuse.errors import InputError
from vidfuse.fusion.floors import Floor, member_floors
from vidfuse.metrics.objectives import Objective
from vidfuse.selection.greedy import PoolName, named_pool, pool_score
from vidfuse.selection.hits import Hits, find_hits
from vidfuse.selection.problem import pose
from vidfuse.selection.rivals import starts

__all__ = ["CoordinateSearch", "best_step", "coordinate_search"]

_Settle = Callable[[NDArray[np.float64]], float]
"""From weights (M,) of sum 1 to what the pool itself scores with them, higher is better."""

_Propose = Callable[[NDArray[np.float64], int, float], NDArray[np.float64] | None]
"""From weights (M,), a member and the score to weights that may score higher by this member's; None where none do."""

_VETO: Final = 1e29  # a larger margin is a veto

_SWEEPS: Final = 100  # over all members: what a callable that is no function of its arguments may take


@dataclass(frozen=True)
class CoordinateSearch(Tabular):
    """The result of a coordinate search.

    Attributes:
        weights: {member: weight}, summing to 1.
        score: The objective on the videos of the search: an in-sample number.
        objective: Its name.
        path: The score at the start and after each step that raised it, of the best start.
    """

    weights: dict[str, float]
    score: float
    objective: str
    path: tuple[float, ...] = field(repr=False)

    def table(self) -> Table:
        """Return the weights as a table, the largest first."""
        return weight_table(self.weights, f"{self.objective} {self.score:.6g} (in-sample)")

    def __repr__(self) -> str:
        listed = ", ".join(f"{name} {weight:.3g}" for name, weight in self.weights.items())
        return f"CoordinateSearch({listed}: in-sample {self.objective} {self.score:.6g} in {len(self.path) - 1} steps)"


def best_step(
    sums: NDArray[np.float64],
    slopes: NDArray[np.float64],
    rows: NDArray[np.int64],
    video_weights: NDArray[np.float64],
    current: float,
) -> tuple[float, float]:
    """Return the t ≥ 0 at which most videos are right, and their weight; a line search without a grid.

    Along one weight every rival's margin is a line, sums + t · slopes. Video n is right where all its rivals' lines are
    below 0: on one interval. The number of intervals that hold t changes only at their ends, so that a sweep over the
    sorted ends finds the exact optimum; of the best stretch the point nearest to `current` is taken that keeps to
    its inner half, away from the ends.

        video 1      ────────────────┤            right below its end
        video 2            ├──────────────────    right above its end
        videos right 1     2         1            best: the stretch in the middle

    A video may be right at an end as well, where classes tie: the line search does not count on that. A member's veto
    holds at any weight above 0.

    Args:
        sums: The margins without this weight, shape (R,).
        slopes: This member's margins, shape (R,).
        rows: The video of each rival, ascending, shape (R,).
        video_weights: What each video counts, shape (N,).
        current: The weight as it is.

    Source:
        Och (2003), ACL, Minimum error rate training in statistical machine translation, section 5.

    Example:
        >>> best_step(np.array([-1.0, 1.0]), np.array([1.0, -2.0]), np.array([0, 1]), np.ones(2), current=0.0)
        (0.625, 2.0)
    """
    total = float(video_weights[rows[starts(rows)]].sum())
    binding = np.flatnonzero((sums >= 0) | (slopes > 0))  # the others are below 0 everywhere
    if not len(binding):
        return current, total
    sums, slopes, rows = sums[binding], slopes[binding], rows[binding]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = np.where(np.abs(slopes) < _VETO, -sums / slopes, 0.0)
    # Rivals: where each line is below 0. A falling line is from its crossing on, a rising one up to it.
    low = np.where(slopes < 0, crossing, np.where((slopes == 0) & (sums >= 0), np.inf, -np.inf))
    high = np.where(slopes > 0, crossing, np.inf)
    # Videos: the stretch where all of its lines are, if there is one.
    begin = starts(rows)
    low = np.maximum.reduceat(low, begin)
    high = np.minimum.reduceat(high, begin)
    own = video_weights[rows[begin]]
    always = total - float(own.sum())
    at_zero = float(own @ (np.maximum.reduceat(sums, begin) < 0))
    low = np.maximum(low, 0.0)
    alive = low < high
    low, high, a = low[alive], high[alive], own[alive]
    # Sweep: how many stretches hold t, between one end and the next.
    ends = np.concatenate([[0.0], low, high[np.isfinite(high)]])
    change = np.concatenate([[0.0], a, -a[np.isfinite(high)]])
    at, inverse = np.unique(ends, return_inverse=True)
    level = np.cumsum(np.bincount(inverse, weights=change))
    best = np.flatnonzero(level >= level.max() - 1e-12)
    # Choose: of the best stretches, the one with a point nearest to the weight as it is.
    left = at[best]
    right = np.append(at, np.inf)[best + 1]
    width = np.where(np.isfinite(right), right - left, 2 * np.maximum(1.0, left))
    point = np.clip(current, left + width / 4, left + 3 * width / 4)
    if current == 0 and at_zero >= level.max() - 1e-12:
        return 0.0, always + at_zero  # a weight of 0 leaves the member out, which is as good
    nearest = int(np.argmin(np.abs(point - current)))
    return float(point[nearest]), always + float(level[best[nearest]])


def coordinate_search(
    stack: Any,
    objective: str | Objective = "accuracy",
    *,
    pool: PoolName = "log-linear",
    start: Mapping[str, float] | None = None,
    random_starts: int | None = None,
    floor: Floor = "auto",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    random_state: int | None = 0,
) -> CoordinateSearch:
    """Find weights of a high score: line searches along one weight at a time, exact for accuracy, from several starts.

    Accuracy is a step function of the weights, without gradients; along one weight its optimum is found exactly. A step
    is taken only where it raises the score of the pool itself, until no single weight can. The result depends on where
    it starts (equal weights, each single member, random points): the best is kept. For a callable, of which nothing is
    known, each line search tries shares of the whole from 0 to 0.9, then beside the best, at a third of the distance,
    and so three times; every trial pools all videos anew.

    Args:
        stack: A stack, or an array (N, M, K) of logits or log-likelihoods.
        objective: "accuracy", "mean-class-accuracy", "macro-f1", or a callable `(labels, log_proba) -> float`, higher
            is better.
        pool: "log-linear" or "linear".
        start: {member: weight} to begin with, instead of equal weights, single members and random points.
        random_starts: How many random points; 8 by default, 0 for a callable.
        floor: The uniform distribution's share in every member, or "auto".
        labels: True classes, shape (N,); the stack's own by default.
        sample_weight: One weight of at least 0 a video, shape (N,), for the named objectives.
        random_state: Seed of the random points.

    Raises:
        InputError: Another objective, missing labels, a start that is not at least 0, or a callable that returns no
            number.
        AlignmentError: Members lack videos.

    Source:
        Och (2003), ACL, Minimum error rate training in statistical machine translation, sections 4 and 5.

    Example:
        >>> from vidfuse.stack.stack import LogitStack
        >>> z = np.array([[[2.0, 0], [0, 1]], [[2, 0], [0, 9]], [[0, 1], [5, 0]]], dtype=np.float32)
        >>> stack = LogitStack.from_arrays(z, labels=[0, 0, 1], members=["good", "bad"])
        >>> coordinate_search(stack).score
        1.0
    """
    problem = pose(stack, objective, named_pool(pool), labels=labels, sample_weight=sample_weight, whole_only=True)
    if objective == "nll":
        raise InputError(
            "objective: expected 'accuracy', 'mean-class-accuracy', 'macro-f1' or a callable, got 'nll'; "
            "LogLinearPool() and LinearPool() find its optimum"
        )
    names = problem.stack.members
    if start is not None:
        points = check_weights(start, names)[None]
    else:
        equal = np.full((1, len(names)), 1 / len(names))
        count = random_starts if random_starts is not None else 0 if callable(problem.objective) else 8
        rng = np.random.default_rng(random_state)
        points = np.concatenate([equal, np.eye(len(names)), rng.dirichlet(np.ones(len(names)), size=count)])
    settle: _Settle
    propose: _Propose
    if callable(problem.objective):
        settle = partial(pool_score, problem, pool, floor)
        propose = partial(_best_share, settle)
    else:
        a = problem.video_weights / problem.video_weights.sum()
        hits = find_hits(problem.stack, problem.labels, member_floors(problem.stack, floor), pool == "linear", a)
        settle = lambda weights: float(hits.scores(weights[None])[0])  # noqa: E731
        propose = partial(_best_line, hits, hits.margins.astype(np.float64))
    best_weights, best_path = _climb(points[0], propose, settle)
    for point in points[1:]:
        weights, path = _climb(point, propose, settle)
        if _is_higher(path[-1], best_path[-1]):
            best_weights, best_path = weights, path
    by_name = dict(zip(names, best_weights.tolist(), strict=True))
    return CoordinateSearch(by_name, best_path[-1], problem.name, tuple(best_path))


def _climb(weights: NDArray[np.float64], propose: _Propose, settle: _Settle) -> tuple[NDArray[np.float64], list[float]]:
    """Move one weight at a time until none raises the score; return the weights and the scores on the way."""
    path = [settle(weights)]
    for _ in range(_SWEEPS):
        before = path[-1]
        for member in range(len(weights)):
            if not np.delete(weights, member).any():  # alone, its weight changes nothing
                continue
            found = propose(weights, member, path[-1])
            if found is not None and _is_higher(score := settle(found), path[-1]):
                weights = found
                path.append(score)
        if path[-1] == before:
            break
    return weights, path


def _is_higher(score: float, than: float) -> bool:
    """Say whether a score is higher by more than rounding; any is higher than −inf."""
    return score - than > 1e-9 * abs(score)


def _best_line(
    hits: Hits, margins: NDArray[np.float64], weights: NDArray[np.float64], member: int, score: float
) -> NDArray[np.float64] | None:
    """Return the weights with one of them where its line search finds most videos right, divided by their sum."""
    moved = weights.copy()
    moved[member] = 0
    step, right = best_step(moved @ margins, margins[member], hits.rows, hits.video_weights, float(weights[member]))
    moved[member] = step
    return moved / moved.sum() if _is_higher(hits.base + right, score) else None


def _best_share(settle: _Settle, weights: NDArray[np.float64], member: int, score: float) -> NDArray[np.float64] | None:
    """Return the best of some shares of one member among fixed proportions of the others.

    They are 0, 0.1 … 0.9, and then those a third of the last distance below and above the best so far, three times.
    """
    best, others = None, weights.copy()
    others[member] = 0
    others /= others.sum()
    width, centre = 0.1, float(weights[member])
    trials = np.arange(10) * width
    for _ in range(4):
        for share in trials[(trials >= 0) & (trials < 1) & (trials != centre)].tolist():
            candidate = (1 - share) * others
            candidate[member] = share
            value = settle(candidate)
            if value > score:
                best, score, centre = candidate, value, share
        width /= 3
        trials = np.array([centre - width, centre + width])
    return best
