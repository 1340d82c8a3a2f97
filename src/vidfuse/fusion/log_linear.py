"""The log-linear pool, the default of vidfuse, with given, scored or learned weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.fusion._solver.classes import fit_classes
from vidfuse.fusion._solver.log_linear import T_MAX, T_MIN, Penalty, fit_log_linear, shrinkage_penalty
from vidfuse.fusion._solver.passes import Passes
from vidfuse.fusion._solver.qp import solve_qp
from vidfuse.fusion._solver.shrinkage import Shrinkage, check_shrinkage, choose_shrinkage
from vidfuse.fusion.floors import Floor, floored_blocks
from vidfuse.fusion.rule import Missing, WeightedSum
from vidfuse.fusion.weighted import (
    FitVideos,
    WeightedRule,
    Weights,
    check_true_class,
    is_learned,
    pool_blocks,
    sum_of_given,
)
from vidfuse.fusion.weights import accuracy_weights, member_hits, true_scores
from vidfuse.likelihood import log_linear_pool
from vidfuse.stack.stack import LogitStack

__all__ = ["SHRUNK_FLOOR", "LogLinearPool"]

SHRUNK_FLOOR: Final = 0.01
"""The floor of every member in a shrunk learned fit; it was chosen together with the shrinkage."""


CLASS_PRECISION: Final = 100.0
"""The precision of the prior on a class's weights around the shared ones, in videos."""


class LogLinearPool(WeightedRule):
    """Fuse members by the weighted sum of their log-likelihoods: the default of vidfuse.

    ``log p(c) = (1/T) · Σ_m w_m · log p_m(c) - log Σ_j exp(…)``, w on the simplex (the logarithmic opinion pool, Genest
    and Zidek 1986). Learned weights minimise, over ``β = w/T ≥ 0`` with ``0.01 ≤ T ≤ 100``, the convex objective
    ``NLL(β) + ½·λ·‖β - (Σβ)·s‖² + ½·λ²·(Σβ - 1)²``, s the members' validation accuracies on the simplex.

    Args:
        weights: "learned", "accuracy" (of multi-network fusion by score), "uniform", "log-odds", "inverse-nll",
            numbers in the order in which the fit's stack lists its members, or {member: number}. Numbers are
            normalised (`weight_sum_` keeps the sum).
        shrinkage: λ for learned weights: "auto" (``N^(-1/2)``), "cv", a number, or None.
        power: the exponent of "accuracy".
        floor: the uniform distribution's share in every member. "auto": 0.01 where a learned fit is shrunk; else
            1e-4 for members given as probabilities and 0 for logits, whose zeros are no accident.
        per_class: whether a learned fit goes on to weights per class, shrunk to those that all classes share.
        class_weight: "balanced" gives every class that occurs the same total weight in the fit.
        missing: "renormalise" shares an absent member's weight among those that a video has; "error" refuses.
        n_jobs: joblib's workers for the passes of a learned fit (threads, unless `parallel_config` says otherwise).

    Attributes:
        weights_: (M,), on the simplex, in the order of `members_`.
        temperature_: T; 1 unless learned.
        optimality_gap_: how much lower the fit's objective could be, at most, in nats; None unless learned.
        shrinkage_: λ as used; None unless learned.
        class_weights_: β per member and class (M, K), weights over temperature; None unless `per_class`.
        floor_: each member's floor (M,).
        weight_sum_: the sum of given numbers.
        n_missing_: for how many videos of the fit each member was missing (M,).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=200)
        >>> good, poor = (rng.normal(size=(200, 3)) + skill * np.eye(3)[y] for skill in (3.0, 1.0))
        >>> pool = LogLinearPool().fit(LogitStack.from_arrays({"good": good, "poor": poor}, labels=y))
        >>> bool(pool.weights_[0] > pool.weights_[1]), pool.optimality_gap_ < 1e-7
        (True, True)
    """

    temperature_: float
    optimality_gap_: float | None
    shrinkage_: float | None
    weight_sum_: float
    class_weights_: NDArray[np.float64] | None

    def __init__(
        self,
        weights: Weights = "learned",
        *,
        shrinkage: Shrinkage = "auto",
        power: float = 1.0,
        floor: Floor = "auto",
        per_class: bool = False,
        class_weight: Literal["balanced"] | None = None,
        missing: Missing = "error",
        n_jobs: int | None = None,
    ) -> None:
        self.weights = weights
        self.shrinkage = shrinkage
        self.per_class = per_class
        self.power = power
        self.floor = floor
        self.class_weight = class_weight
        self.missing = missing
        self.n_jobs = n_jobs

    def _fit(self, stack: LogitStack, labels: Any, weight: NDArray[np.float64] | None) -> None:
        check_shrinkage(self.shrinkage)
        learned = is_learned(self.weights)
        if self.per_class and not learned:
            raise InputError(f'per_class: weights per class are learned; say weights="learned", got {self.weights!r}')
        self.temperature_, self.optimality_gap_ = 1.0, None
        self.shrinkage_, self.class_weights_ = None, None
        floor = SHRUNK_FLOOR if learned and self.shrinkage not in (None, 0) else 0.0
        videos = self._fit_weights(stack, labels, weight, learns=True, default_floor=floor)
        self.weight_sum_ = sum_of_given(self.weights)
        if videos is not None:
            self._learn(videos)

    def _learn(self, videos: FitVideos) -> None:
        """Set weights and temperature, and weights per class where they are asked for."""
        stack, labels, omega, floors = videos.stack, videos.labels, videos.omega, videos.floors
        check_true_class(stack, true_scores(stack, labels), floors)
        direction = np.full(len(stack.members), 1.0 / len(stack.members))
        if self.shrinkage not in (None, 0):
            direction = accuracy_weights(omega @ member_hits(stack, labels))
        strength = choose_shrinkage(self.shrinkage, stack, labels, omega, floors, direction, self.n_jobs)
        penalty = shrinkage_penalty(strength, direction) if strength > 0 else None
        with Passes(stack, labels, omega, floors, self.n_jobs) as passes:
            fit = fit_log_linear(passes, penalty)
        if fit.at_bound:
            warnings.warn(
                f"the lowest temperature, {T_MIN}, was reached: some weights separate the {len(stack)} videos of the "
                "fit perfectly, and their probabilities will be overconfident; use shrinkage or more videos",
                VidfuseWarning,
                stacklevel=4,
            )
        self.shrinkage_ = strength
        self.optimality_gap_ = fit.gap
        self.temperature_ = float(1.0 / fit.beta.sum())
        if self.per_class:
            self.class_weights_ = fit_classes(
                stack, labels, omega, floors, fit.beta,
                weight_precision=CLASS_PRECISION, bias_precision=None, non_negative=True,
            ).beta  # fmt: skip
        again = partial(Passes, stack, labels, omega, floors, self.n_jobs)
        self._set_found(fit.beta / fit.beta.sum(), _OneStep(fit.beta, penalty, again), omega)

    def needed_members(self) -> tuple[str, ...]:
        """Return those of `members_` that a prediction needs: those of positive weight, for some class at least."""
        check_is_fitted(self, "weights_")
        if self.class_weights_ is None:
            return super().needed_members()
        say = (self.weights_ > 0) | (self.class_weights_ > 0).any(axis=1)
        return tuple(name for name, has in zip(self.members_, say, strict=True) if has)

    def weighted_sum(self) -> WeightedSum:
        """Return the pool as a weighted sum of log-likelihoods, over all of `members_`."""
        check_is_fitted(self, "weights_")
        beta = self.weights_[:, None] / self.temperature_ if self.class_weights_ is None else self.class_weights_
        return WeightedSum("log-linear", self.members_, beta, self.floor_)

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        """Pool each video with the weights per class, if there are such and it has all members that have a say.

        Elsewhere the shared weights are renormalised; those of a class have no common sum.
        """
        if self.class_weights_ is None or not set(self.needed_members()) <= set(stack.members):
            return self._fuse_shared(stack)
        stack = stack.select(self.needed_members())
        if stack.present is None:
            return self._fuse_per_class(stack, self.class_weights_)
        whole = stack.present.all(axis=1)
        out = np.empty((len(stack), stack.n_classes))
        if whole.any():
            out[whole] = self._fuse_per_class(stack[whole], self.class_weights_)
        if not whole.all():
            out[~whole] = self._fuse_shared(stack[~whole])
        return out

    def _fuse_shared(self, stack: LogitStack) -> NDArray[np.float64]:
        stack, weights, floors = self._with_a_say(stack)
        return pool_blocks(_pool, stack, weights, floors, 1.0 / self.temperature_)

    def _fuse_per_class(self, stack: LogitStack, beta: NDArray[np.float64]) -> NDArray[np.float64]:
        columns = [self.members_.index(name) for name in stack.members]
        out = np.empty((len(stack), stack.n_classes))
        for rows, block in floored_blocks(stack, self.floor_[columns]):
            out[rows] = log_linear_pool(block, beta[columns], per_class=True)
        return out


def _pool(block: NDArray[np.float32], shares: NDArray[np.float64], ids: Any) -> NDArray[np.float64]:
    return log_linear_pool(block, shares, ids=ids)


class _OneStep:
    """Return the weights after one Newton step on resampled videos, the curvature held.

    The videos' gradients and the curvature are computed when first asked for; a copy that was pickled has none.
    """

    def __init__(self, beta: NDArray[np.float64], penalty: Penalty | None, passes: Callable[[], Passes]) -> None:
        self._beta, self._penalty, self._passes = beta, penalty, passes
        self._gradients: NDArray[np.float64] | None = None
        self._hessian = np.zeros((len(beta), len(beta)))
        self._pull = np.zeros(len(beta)) if penalty is None else penalty.quadratic @ beta - penalty.linear

    def __call__(self, omega: NDArray[np.float64]) -> NDArray[np.float64]:
        beta = self._beta
        if self._gradients is None:
            passes = self._passes()
            moments = passes.moments(beta)
            hessian = (moments if self._penalty is None else self._penalty.add_to(moments, beta)).hessian
            self._hessian = self._hessian if hessian is None else hessian
            self._gradients = passes.gradients(beta)
        ridge = self._hessian + (1e-10 * np.trace(self._hessian) + 1e-300) * np.eye(len(beta))
        slope = omega @ self._gradients + self._pull
        moved = solve_qp(ridge, ridge @ beta - slope, 1.0 / T_MAX, 1.0 / T_MIN, beta)
        return np.asarray(moved / moved.sum())
