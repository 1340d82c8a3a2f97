"""The two opinion pools: log-linear (the default of vidfuse) and linear, with given, scored or learned weights."""

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
from vidfuse.fusion._solver.linear import fit_linear
from vidfuse.fusion._solver.log_linear import T_MAX, T_MIN, Penalty, fit_log_linear, shrinkage_penalty
from vidfuse.fusion._solver.passes import Passes
from vidfuse.fusion._solver.qp import solve_qp
from vidfuse.fusion._solver.shrinkage import Shrinkage, check_shrinkage, choose_shrinkage
from vidfuse.fusion.base import Floor, Missing, floored_blocks
from vidfuse.fusion.pool_base import Pool, Weights, check_true_class
from vidfuse.fusion.summary import Refit
from vidfuse.fusion.weights import accuracy_weights, member_hits, true_log_likelihoods, true_scores
from vidfuse.likelihood import linear_pool, log_linear_pool
from vidfuse.stack.stack import LogitStack

__all__ = ["LinearPool", "LogLinearPool", "Weights"]

SHRUNK_FLOOR: Final = 0.01
"""The floor of every member in a shrunk learned fit; it was chosen together with the shrinkage."""


CLASS_PRECISION: Final = 100.0
"""The precision of the prior on a class's weights around the shared ones, in videos."""


class LogLinearPool(Pool):
    """Fuse members by the weighted sum of their log-likelihoods: the default of vidfuse.

    ``log p(c) = (1/T) · Σ_m w_m · log p_m(c) - log Σ_j exp(…)``, w on the simplex (the logarithmic opinion pool, Genest
    and Zidek 1986). Learned weights minimise, over ``β = w/T ≥ 0`` with ``0.01 ≤ T ≤ 100``, the convex objective
    ``NLL(β) + ½·λ·‖β - (Σβ)·s‖² + ½·λ²·(Σβ - 1)²``, s the members' validation accuracies on the simplex.

    Args:
        weights: "learned", "accuracy" (of multi-network fusion by score), "uniform", "log-odds", "inverse-nll",
            numbers in the members' order, or {member: number}. Numbers are normalised (`weight_sum_` keeps the sum).
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

    shrinkage_: float | None
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

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_shrinkage(self.shrinkage)
        self.shrinkage_, self.class_weights_ = None, None
        if self.per_class and not (isinstance(self.weights, str) and self.weights == "learned"):
            raise InputError(f'per_class: weights per class are learned; say weights="learned", got {self.weights!r}')

    def _default_floor(self) -> float:
        learned = isinstance(self.weights, str) and self.weights == "learned"
        return SHRUNK_FLOOR if learned and self.shrinkage not in (None, 0) else 0.0

    def _learn(
        self,
        stack: LogitStack,
        labels: NDArray[np.int64],
        omega: NDArray[np.float64],
        floors: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], Refit]:
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
                stacklevel=6,
            )
        self.shrinkage_ = strength
        self.optimality_gap_ = fit.gap
        self.temperature_ = float(1.0 / fit.beta.sum())
        if self.per_class:
            classes = fit_classes(
                stack, labels, omega, floors, fit.beta,
                weight_precision=CLASS_PRECISION, bias_precision=None, non_negative=True,
            )  # fmt: skip
            self.class_weights_ = classes.beta[[stack.members.index(name) for name in self.members_]]
        again = partial(Passes, stack, labels, omega, floors, self.n_jobs)
        return fit.beta / fit.beta.sum(), _OneStep(fit.beta, penalty, again)

    def needed_members(self) -> tuple[str, ...]:
        """Return those of `members_` that a prediction needs: those of positive weight, for some class at least."""
        check_is_fitted(self, "weights_")
        if self.class_weights_ is None:
            return super().needed_members()
        say = (self.weights_ > 0) | (self.class_weights_ > 0).any(axis=1)
        return tuple(name for name, has in zip(self.members_, say, strict=True) if has)

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        if self.class_weights_ is None:
            return super()._fuse(stack)
        needed = self.needed_members()
        used = stack.select([name for name in stack.members if name in needed])
        if used.present is not None or len(used.members) < len(needed):
            return super()._fuse(stack)  # weights per class are not renormalised: the shared ones are
        columns = [self.members_.index(name) for name in used.members]
        out = np.empty((len(used), used.n_classes))
        for rows, block in floored_blocks(used, self.floor_[columns]):
            out[rows] = log_linear_pool(block, self.class_weights_[columns], per_class=True)
        return out

    def _combine(self, block: NDArray[np.float32], weights: NDArray[np.float64], ids: Any) -> NDArray[np.float64]:
        return log_linear_pool(block, weights, ids=ids)


class LinearPool(Pool):
    """Fuse members by the weighted average of their probabilities.

    ``p(c) = Σ_m w_m · p_m(c)``, w on the simplex (the linear opinion pool, Stone 1961). Learned weights minimise the
    negative log-likelihood exactly (`fit_linear`), from the true class's probabilities alone.

    Args:
        weights: "learned", "accuracy", "uniform", "log-odds", "inverse-nll", numbers, or {member: number}.
        power: the exponent of "accuracy".
        floor: the uniform distribution's share in every member; "auto": 1e-4 for members given as probabilities.
        class_weight: "balanced" gives every class that occurs the same total weight in the fit.
        missing: "renormalise" shares an absent member's weight among those that a video has; "error" refuses.

    Attributes:
        weights_: (M,), on the simplex, in the order of `members_`.
        temperature_: 1.
        optimality_gap_: how much lower the fit's NLL could be, at most, in nats; None unless learned.
        floor_: each member's floor (M,).
        weight_sum_: the sum of given numbers.
        n_missing_: for how many videos of the fit each member was missing (M,).

    Example:
        >>> stack = LogitStack.from_arrays(np.log([[[0.8, 0.2], [0.4, 0.6]]]))
        >>> LinearPool(weights="uniform").fit(stack).predict_proba(stack).round(3).tolist()
        [[0.6, 0.4]]
    """

    def __init__(
        self,
        weights: Weights = "learned",
        *,
        power: float = 1.0,
        floor: Floor = "auto",
        class_weight: Literal["balanced"] | None = None,
        missing: Missing = "error",
    ) -> None:
        self.weights = weights
        self.power = power
        self.floor = floor
        self.class_weight = class_weight
        self.missing = missing

    def _learn(
        self,
        stack: LogitStack,
        labels: NDArray[np.int64],
        omega: NDArray[np.float64],
        floors: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], Refit]:
        log_true = true_log_likelihoods(stack, labels, floors)
        if np.isneginf(log_true).any():
            check_true_class(stack, true_scores(stack, labels), floors)
        fit = fit_linear(log_true, omega)
        self.optimality_gap_ = fit.gap
        return fit.weights, partial(_refit_linear, log_true)

    def _combine(self, block: NDArray[np.float32], weights: NDArray[np.float64], ids: Any) -> NDArray[np.float64]:
        return linear_pool(block, weights)


def _refit_linear(log_true: NDArray[np.float64], omega: NDArray[np.float64]) -> NDArray[np.float64]:
    return fit_linear(log_true, omega).weights


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
