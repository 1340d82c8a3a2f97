"""Weights by accuracy itself: move one weight at a time to where most videos are right, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._validate import check_weights
from vidfuse.errors import InputError
from vidfuse.fusion.base import Floor, as_stack, check_sample_weight, member_floors
from vidfuse.fusion.selection.greedy import Kind
from vidfuse.fusion.selection.hits import Judge
from vidfuse.fusion.selection.rivals import Rivals, find_rivals
from vidfuse.fusion.selection.subsets import complete_videos, video_weights
from vidfuse.metrics.objectives import labels_of

__all__ = ["CoordinateSearch", "best_step", "coordinate_search"]


@dataclass(frozen=True)
class CoordinateSearch:
    """The result of a coordinate search.

    Attributes:
        weights: {member: weight}, summing to 1.
        score: The accuracy on the videos of the search: an in-sample number.
        objective: "accuracy" or "mean-class-accuracy".
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
    objective: str = "accuracy",
    *,
    kind: Kind = "log-linear",
    start: Mapping[str, float] | None = None,
    starts: int = 8,
    floor: Floor = "auto",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    random_state: int | None = 0,
) -> CoordinateSearch:
    """Find weights of high accuracy: exact line searches along one weight at a time, from several starts.

    Accuracy is a step function of the weights, without gradients; along one weight its optimum is found exactly. A step
    is taken only where it raises the score, until no single weight can. The result depends on where it starts (equal
    weights, each single member, random points): the best is kept.

    Args:
        stack: A stack, or an array (N, M, K) of logits or log-likelihoods.
        objective: "accuracy" or "mean-class-accuracy".
        kind: "log-linear" or "linear".
        start: {member: weight} to begin with, instead of the starts.
        starts: How many random points, besides equal weights and single members.
        floor: The uniform distribution's share in every member, or "auto".
        labels: True classes, shape (N,); the stack's own by default.
        sample_weight: One weight of at least 0 a video.
        random_state: Seed of the random points.

    Raises:
        InputError: Another objective, missing labels, or a start that is not at least 0.
        AlignmentError: Members lack videos.

    Source:
        Och (2003), ACL, Minimum error rate training in statistical machine translation, sections 4 and 5.

    Example:
        >>> from vidfuse.cache.stack import LogitStack
        >>> z = np.array([[[2.0, 0], [0, 1]], [[2, 0], [0, 9]], [[0, 1], [5, 0]]], dtype=np.float32)
        >>> stack = LogitStack.from_arrays(z, labels=[0, 0, 1], members=["good", "bad"])
        >>> coordinate_search(stack).score
        1.0
    """
    stack = as_stack(stack)
    y = labels_of(stack, labels, where="the stack to search on")
    if objective not in ("accuracy", "mean-class-accuracy"):
        raise InputError(f"objective: expected 'accuracy' or 'mean-class-accuracy', got {objective!r}")
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
    floors = member_floors(ordered, floor)
    linear = kind == "linear"
    rivals = find_rivals(ordered, y, floors, linear=linear, rounds=8)
    a = video_weights(y, objective, weight)
    if start is not None:
        points = check_weights(start, ordered.members)[None]
    else:
        rng = np.random.default_rng(random_state)
        equal = np.full((1, n_members), 1 / n_members)
        points = np.concatenate([equal, np.eye(n_members), rng.dirichlet(np.ones(n_members), size=starts)])
    best_score, best_weights, best_path = -np.inf, points[0], [0.0]
    for point in points:
        weights, path = _climb(rivals, a, point)
        if path[-1] > best_score + 1e-12:
            best_score, best_weights, best_path = path[-1], weights, path
    undecided = np.unique(rivals.rows)
    judge = Judge(ordered, y, floors, linear)
    right = judge.right(np.broadcast_to(best_weights, (len(undecided), n_members)), undecided)
    score = float(a[rivals.right].sum() + a[undecided] @ right)
    by_name = dict(zip(ordered.members, best_weights.tolist(), strict=True))
    return CoordinateSearch({name: by_name[name] for name in stack.members}, score, objective, tuple(best_path))


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
