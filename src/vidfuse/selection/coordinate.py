"""Weights by accuracy itself, or by any metric: move one weight at a time to where the score is best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import check_weights
from vidfuse.errors import InputError
from vidfuse.fusion.floors import Floor, member_floors
from vidfuse.fusion.rule import as_stack, check_sample_weight
from vidfuse.metrics.objectives import Objective, labels_of, objective_name
from vidfuse.selection.greedy import Kind, score_of
from vidfuse.selection.hits import Judge
from vidfuse.selection.rivals import Rivals, find_rivals
from vidfuse.selection.subsets import complete_videos, video_weights
from vidfuse.stack.stack import LogitStack

__all__ = ["CoordinateSearch", "best_step", "coordinate_search"]

_Climb = Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], list[float]]]
_Settle = Callable[[NDArray[np.float64]], float]

_SWEEPS: Final = 100  # over all members: what a callable that is no function of its arguments may take


@dataclass(frozen=True)
class CoordinateSearch:
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
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = -sums / slopes
    low = np.where(slopes < 0, crossing, np.where((slopes == 0) & (sums >= 0), np.inf, -np.inf))
    high = np.where(slopes > 0, crossing, np.inf)
    begin = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
    low = np.maximum.reduceat(low, begin)
    high = np.minimum.reduceat(high, begin)
    at_zero = float(video_weights[rows[begin]] @ ((low < 0) & (high > 0)))
    low = np.maximum(low, 0.0)
    alive = low < high
    low, high, a = low[alive], high[alive], video_weights[rows[begin[alive]]]
    ends = np.concatenate([[0.0], low, high[np.isfinite(high)]])
    change = np.concatenate([[0.0], a, -a[np.isfinite(high)]])
    at, inverse = np.unique(ends, return_inverse=True)
    level = np.cumsum(np.bincount(inverse, weights=change))
    best = np.flatnonzero(level >= level.max() - 1e-12)
    left = at[best]
    right = np.append(at, np.inf)[best + 1]
    width = np.where(np.isfinite(right), right - left, 2 * np.maximum(1.0, left))
    point = np.clip(current, left + width / 4, left + 3 * width / 4)
    if current == 0 and at_zero >= level.max() - 1e-12:
        return 0.0, at_zero  # a weight of 0 leaves the member out, which is as good
    nearest = int(np.argmin(np.abs(point - current)))
    return float(point[nearest]), float(level[best[nearest]])


def coordinate_search(
    stack: Any,
    objective: str | Objective = "accuracy",
    *,
    kind: Kind = "log-linear",
    start: Mapping[str, float] | None = None,
    starts: int | None = None,
    floor: Floor = "auto",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    random_state: int | None = 0,
) -> CoordinateSearch:
    """Find weights of a high score: line searches along one weight at a time, exact for accuracy, from several starts.

    Accuracy is a step function of the weights, without gradients; along one weight its optimum is found exactly. A step
    is taken only where it raises the score, until no single weight can. The result depends on where it starts (equal
    weights, each single member, random points): the best is kept. For a callable, of which nothing is known, each line
    search tries shares of the whole from 0 to 0.9, then beside the best, at a third of the distance, and so three
    times; every trial pools all videos anew.

    Args:
        stack: A stack, or an array (N, M, K) of logits or log-likelihoods.
        objective: "accuracy", "mean-class-accuracy", or a callable `(labels, log_proba) -> float`, higher is better.
        kind: "log-linear" or "linear".
        start: {member: weight} to begin with, instead of the starts.
        starts: How many random points, besides equal weights and single members; 8 by default, 0 for a callable.
        floor: The uniform distribution's share in every member, or "auto".
        labels: True classes, shape (N,); the stack's own by default.
        sample_weight: One weight of at least 0 a video, for the named objectives.
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
    stack = as_stack(stack)
    y = labels_of(stack, labels, where="the stack to search on")
    if not callable(objective) and objective not in ("accuracy", "mean-class-accuracy"):
        advice = "; LogLinearPool() and LinearPool() find its optimum" if objective == "nll" else ""
        raise InputError(
            f"objective: expected 'accuracy', 'mean-class-accuracy' or a callable, got {objective!r}{advice}"
        )
    if callable(objective) and sample_weight is not None:
        raise InputError("sample_weight: expected a named objective; a callable gets no weights")
    if kind not in ("linear", "log-linear"):
        raise InputError(f"kind: expected 'linear' or 'log-linear', got {kind!r}")
    if stack.n_views is not None:
        raise InputError(
            f"coordinate_search takes (N, M, K), got views: shape {stack.shape}; reduce them with reduce_views"
        )
    weight = check_sample_weight(sample_weight, len(stack))
    stack, y, weight = complete_videos(stack, y, weight, None)
    ordered = stack.select(sorted(stack.members))
    n_members = len(ordered.members)
    if start is not None:
        points = check_weights(start, ordered.members)[None]
    else:
        rng = np.random.default_rng(random_state)
        equal = np.full((1, n_members), 1 / n_members)
        count = starts if starts is not None else 0 if callable(objective) else 8
        points = np.concatenate([equal, np.eye(n_members), rng.dirichlet(np.ones(n_members), size=count)])
    if callable(objective):
        climb, settle = _callable_climb(ordered, y, objective, kind, floor)
    else:
        climb, settle = _exact_climb(ordered, y, objective, kind, floor, weight)
    best_weights, best_path = climb(points[0])
    for point in points[1:]:
        weights, path = climb(point)
        if path[-1] > best_path[-1] + 1e-12 * abs(best_path[-1]):
            best_weights, best_path = weights, path
    score = settle(best_weights)
    by_name = dict(zip(ordered.members, best_weights.tolist(), strict=True))
    members = {name: by_name[name] for name in stack.members}
    return CoordinateSearch(members, score, objective_name(objective), tuple(best_path))


def _exact_climb(
    ordered: LogitStack,
    labels: NDArray[np.int64],
    objective: str,
    kind: Kind,
    floor: Floor,
    sample_weight: NDArray[np.float64] | None,
) -> tuple[_Climb, _Settle]:
    """Return how to climb from a point on the lines' exact optima, and how to score the point that it ends at."""
    floors, linear = member_floors(ordered, floor), kind == "linear"
    rivals = find_rivals(ordered, labels, floors, linear=linear, rounds=8)
    a = video_weights(labels, objective, sample_weight)

    def settle(weights: NDArray[np.float64]) -> float:
        undecided = np.unique(rivals.rows)
        judge = Judge(ordered, labels, floors, linear)
        right = judge.right(np.broadcast_to(weights, (len(undecided), len(weights))), undecided)
        return float(a[rivals.right].sum() + a[undecided] @ right)

    return partial(_climb, rivals, a), settle


def _callable_climb(
    ordered: LogitStack, labels: NDArray[np.int64], objective: Objective, kind: Kind, floor: Floor
) -> tuple[_Climb, _Settle]:
    """Return how to climb from a point by trials, and how to score a point."""

    def settle(weights: NDArray[np.float64]) -> float:
        return score_of(ordered, labels, objective, kind, floor, weights, None)

    def climb(point: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[float]]:
        weights, path = point, [settle(point)]
        for _ in range(_SWEEPS):
            before = path[-1]
            for member in range(len(weights)):
                others = weights.copy()
                others[member] = 0
                if not others.any():
                    continue
                found, score = _best_share(others / others.sum(), member, weights, path[-1], settle)
                if score > path[-1] + 1e-9 * abs(path[-1]):
                    weights = found
                    path.append(score)
            if path[-1] == before:
                break
        return weights, path

    return climb, settle


def _best_share(
    others: NDArray[np.float64], member: int, weights: NDArray[np.float64], score: float, settle: _Settle
) -> tuple[NDArray[np.float64], float]:
    """Return the best of some shares of one member among fixed proportions of the others, and its score."""
    width, centre = 0.1, float(weights[member])
    trials = np.arange(10) * width
    for _ in range(4):
        for share in trials[(trials >= 0) & (trials < 1) & (trials != centre)].tolist():
            candidate = (1 - share) * others
            candidate[member] = share
            value = settle(candidate)
            if value > score:
                weights, score, centre = candidate, value, share
        width /= 3
        trials = np.array([centre - width, centre + width])
    return weights, score


def _climb(
    rivals: Rivals, a: NDArray[np.float64], point: NDArray[np.float64]
) -> tuple[NDArray[np.float64], list[float]]:
    """Raise one weight's line at a time until none gains; weights on the simplex, and the scores on the way."""
    weights = point.astype(np.float64).copy()
    base = float(a[rivals.right].sum())
    margins = rivals.margins.astype(np.float64)
    if not len(rivals.rows):
        return weights, [base]
    begin = np.flatnonzero(np.concatenate([[True], rivals.rows[1:] != rivals.rows[:-1]]))
    right = np.maximum.reduceat(weights @ margins, begin) < 0
    path = [base + float(a[rivals.rows[begin]] @ right)]
    improved = True
    while improved:
        improved = False
        for member in range(len(weights)):
            without = weights.copy()
            without[member] = 0
            if not without.any():  # alone, its weight changes no argmax
                continue
            step, score = best_step(without @ margins, margins[member], rivals.rows, a, float(weights[member]))
            if base + score > path[-1] + 1e-9:
                weights = without
                weights[member] = step
                weights /= weights.sum()
                path.append(base + score)
                improved = True
    return weights, path
