"""Small dense quadratic programs over weights: the inner step of every learned fit, and the tie rule among optima."""

from __future__ import annotations

import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import VidfuseWarning

__all__ = ["PROMISE", "TOO_LARGE", "least_norm", "solve_qp", "warn_of_gap"]

PROMISE: Final = 1e-7
"""Nats: how near to the optimum every learned fit is proved to be."""
TOO_LARGE: Final = (
    "the members' logits are too large for the arithmetic; divide them by a common number, or mend the videos whose "
    "logits are off by many orders of magnitude"
)
"""What is wrong where a fit does not keep its promise, and what to do."""

_FLAT: Final = 1e-12  # share of the largest eigenvalue below which one counts as 0

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


def solve_qp(hessian: Matrix, linear: Vector, lower: float, upper: float, start: Vector) -> Vector:
    """Minimise ``½·xᵀHx - cᵀx`` over ``x ≥ 0`` and ``lower ≤ Σx ≤ upper``.

    A primal active-set method (Nocedal and Wright 2006, "Numerical Optimization", algorithm 16.3). The bounds on the
    sum are one constraint each: the problem is solved without them first, and where its solution violates one, that
    one holds with equality at the optimum, because the objective is convex.

    Args:
        hessian: H, symmetric positive definite (M, M).
        linear: c, (M,).
        lower: the smallest sum allowed, at least 0.
        upper: the largest sum allowed, above `lower`; it may be infinite.
        start: a point with ``start ≥ 0`` and a positive sum.

    Example:
        >>> solve_qp(np.eye(2), np.array([2.0, -1.0]), 0.0, 1.0, np.array([0.5, 0.5])).tolist()
        [1.0, 0.0]
    """
    x = _active_set(hessian, linear, None, start)
    total = x.sum()
    if total > upper:
        return _active_set(hessian, linear, upper, start * (upper / start.sum()))
    if total < lower:
        return _active_set(hessian, linear, lower, start * (lower / start.sum()))
    return x


def _active_set(hessian: Matrix, linear: Vector, total: float | None, start: Vector) -> Vector:
    """Solve the program with ``Σx = total``, or any sum where that is None.

    Each round solves for the free variables alone, all others being 0:

    | the solution is          | then                                                                               |
    |--------------------------|------------------------------------------------------------------------------------|
    | negative somewhere       | go towards it until the first variable reaches 0, which is free no longer          |
    | feasible                 | free the variable of the steepest descent; none descends: the optimum              |
    """
    x, free = start.copy(), start > 0
    entered = -1
    for _ in range(50 + 10 * len(x)):
        target, multiplier = _equality_solution(hessian, linear, total, free)
        blocking = free & (target < 0)
        if not blocking.any():
            x = target
            slope = hessian @ x - linear - multiplier
            rounding = 1e-15 * (np.abs(hessian) @ x + np.abs(linear) + abs(multiplier))  # each one's: scales may differ
            slope[free | (slope >= -rounding)] = 0.0
            candidate = int(slope.argmin())
            if slope[candidate] == 0.0 or candidate == entered:
                break
            entered = candidate
            free[candidate] = True
            continue
        ratio = np.where(blocking, x / np.where(blocking, x - target, 1.0), np.inf)
        step = ratio.min()
        x = np.where(free, x + step * (target - x), 0.0)
        leaving = blocking & (ratio <= step)
        x[leaving] = 0.0
        free &= ~leaving
    return np.maximum(x, 0.0)


def _equality_solution(
    hessian: Matrix, linear: Vector, total: float | None, free: NDArray[np.bool_]
) -> tuple[Vector, float]:
    """Minimise over the free variables alone; return the minimum, and the multiplier of the sum, 0 if that is free."""
    x = np.zeros(len(linear))
    index = np.flatnonzero(free)
    if not len(index):
        return x, 0.0
    kernel = hessian[np.ix_(index, index)]
    if total is None:
        x[index] = np.linalg.solve(kernel, linear[index])
        return x, 0.0
    solved = np.linalg.solve(kernel, np.column_stack([linear[index], np.ones(len(index))]))
    multiplier = (total - solved[:, 0].sum()) / solved[:, 1].sum()
    x[index] = solved[:, 0] + multiplier * solved[:, 1]
    return x, float(multiplier)


def least_norm(x: Vector, hessian: Matrix, lower: float, upper: float) -> Vector:
    """Move a minimiser to the one of least norm among those that the curvature cannot tell apart.

    Where a convex fit has several optima, they differ by vectors that the Hessian maps to 0 (for instance between
    two members that always agree). With V a basis of that space, and x = o + V·u where o is orthogonal to it, the
    shortest optimum has the least ‖u‖ with ``V·u ≥ -o`` and ``lower ≤ Σ(o + V·u) ≤ upper``. This is a least-distance
    problem, ``min ‖u‖ with G·u ≥ h``, which non-negative least squares solves: with y the minimiser of
    ``‖[Gᵀ; hᵀ]·y - e‖``, e the last unit vector, and r the residual there, ``u_j = -r_j / r_last`` (Lawson and Hanson
    1974, "Solving Least Squares Problems", section 23.4).

    Args:
        x: a minimiser (M,), feasible.
        hessian: the objective's Hessian (M, M) at `x`.
        lower: the smallest sum allowed.
        upper: the largest sum allowed; it may be infinite.

    Returns:
        The optimum of least norm; `x` itself where the optimum is unique.

    Example:
        >>> least_norm(np.array([1.0, 0.0]), np.ones((2, 2)), 0.0, 10.0).round(6).tolist()
        [0.5, 0.5]
    """
    values, vectors = np.linalg.eigh(hessian)
    flat = values <= _FLAT * max(float(values[-1]), np.finfo(np.float64).tiny)
    if not flat.any():
        return x
    from scipy.optimize import nnls  # imported where an optimum is not unique: predictions start without it

    basis = vectors[:, flat]
    basis[np.abs(basis) < 1e-10] = 0.0  # rounding is no constraint
    origin = x - basis @ (basis.T @ x)
    origin[np.abs(origin) < 1e-13] = 0.0
    sums = basis.sum(axis=0)
    touched = basis.any(axis=1)
    rows, bounds = [basis[touched]], [-origin[touched]]  # G and h
    if np.abs(sums).max() > 1e-9:  # otherwise moving among the optima keeps the sum
        limits_of_sum = [(1.0, lower), (-1.0, -upper)]
        rows += [sign * sums[None] for sign, limit in limits_of_sum if np.isfinite(limit)]
        bounds += [np.array([limit - sign * origin.sum()]) for sign, limit in limits_of_sum if np.isfinite(limit)]
    constraints, limits = np.vstack(rows), np.concatenate(bounds)
    system = np.vstack([constraints.T, limits[None]])
    target = np.zeros(len(system))
    target[-1] = 1.0
    multipliers, _ = nnls(system, target)
    residual = system @ multipliers - target
    if residual[-1] >= -1e-14:  # the origin itself is as good as the rounding of x allows
        return x
    moved = np.maximum(origin + basis @ (-residual[:-1] / residual[-1]), 0.0)
    moved = _within(moved, lower, upper)
    return moved if moved @ moved <= (1 + 1e-15) * (x @ x) else x


def _within(x: Vector, lower: float, upper: float) -> Vector:
    """Scale x so that its sum is within the bounds, which rounding may have left."""
    total = x.sum()
    return x * (min(max(total, lower), upper) / total) if total > 0 else x


def warn_of_gap(gap: float) -> None:
    """Warn of a fit that is not proved to be within `PROMISE` of its optimum.

    Example:
        >>> warn_of_gap(1e-9)
    """
    if not gap <= PROMISE:
        warnings.warn(
            f"the learned weights are proved to be within {gap:.2g} nats of the optimum only, not within {PROMISE:g}: "
            f"{TOO_LARGE}",
            VidfuseWarning,
            stacklevel=3,
        )
