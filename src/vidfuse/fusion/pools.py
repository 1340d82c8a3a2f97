"""The two opinion pools: log-linear (the default of vidfuse) and linear, with given, scored or learned weights."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from vidfuse._validate import check_weights, place
from vidfuse.cache.stack import LogitStack
from vidfuse.errors import AlignmentError, InputError, VidfuseWarning
from vidfuse.fusion.base import Floor, Fuser, Missing, floored_blocks, member_floors
from vidfuse.fusion.learned_classes import fit_classes
from vidfuse.fusion.learned_linear import fit_linear
from vidfuse.fusion.learned_log_linear import T_MAX, T_MIN, LogLinearFit, fit_log_linear, shrinkage_penalty
from vidfuse.fusion.learned_passes import Passes
from vidfuse.fusion.learned_qp import solve_qp
from vidfuse.fusion.learned_shrinkage import Shrinkage, check_shrinkage, choose_shrinkage
from vidfuse.fusion.summary import PoolSummary, Refit, summarise
from vidfuse.fusion.weights import (
    SCORE_WEIGHTS,
    accuracy_weights,
    member_hits,
    score_weights,
    true_log_likelihoods,
)
from vidfuse.likelihood import linear_pool, log_linear_pool

__all__ = ["LinearPool", "LogLinearPool", "Weights"]

Weights = str | Sequence[float] | Mapping[str, float] | NDArray[np.float64]

SHRUNK_FLOOR: Final = 0.01
"""The floor of every member in a shrunk learned fit; it was chosen together with the shrinkage."""


CLASS_PRECISION: Final = 100.0
"""The precision of the prior on a class's weights around the shared ones, in videos."""


class _Pool(Fuser):
    """What both pools share: weights by every rule, floors, missing members, the summary."""

    weights: Weights
    power: float
    floor: Floor
    class_weight: Literal["balanced"] | None
    missing: Missing
    weights_: NDArray[np.float64]
    temperature_: float
    floor_: NDArray[np.float64]
    optimality_gap_: float | None
    weight_sum_: float
    n_missing_: NDArray[np.int64]

    @abstractmethod
    def _learn(
        self,
        stack: LogitStack,
        labels: NDArray[np.int64],
        omega: NDArray[np.float64],
        floors: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], Refit]:
        """Return the weights of a stack sorted by name, and how to refit them; set what else the fit tells."""

    @abstractmethod
    def _default_floor(self) -> float:
        """Return the floor that "auto" gives to members whose logits are known."""

    @abstractmethod
    def _combine(self, block: NDArray[np.float32], weights: NDArray[np.float64], ids: Any) -> NDArray[np.float64]:
        """Pool one block (B, M, K) with weights (M,) or (B, M)."""

    def _needs_labels(self) -> bool:
        return self.class_weight is not None or (isinstance(self.weights, str) and self.weights != "uniform")

    def _fit(self, stack: LogitStack, labels: NDArray[np.int64] | None, weight: NDArray[np.float64] | None) -> None:
        self._check_parameters()
        order = sorted(stack.members)
        back = np.array([order.index(name) for name in stack.members])
        floors = member_floors(stack, self.floor, self._default_floor())
        self.floor_ = floors
        self.temperature_, self.optimality_gap_, self.weight_sum_ = 1.0, None, 1.0
        self.n_missing_ = np.zeros(len(order), dtype=np.int64)
        self._refit: Refit | None = None
        self._omega: NDArray[np.float64] | None = None
        if not isinstance(self.weights, str):
            self.weights_ = check_weights(self.weights, stack.members)
            given = self.weights.values() if isinstance(self.weights, Mapping) else self.weights
            self.weight_sum_ = float(np.sum([float(value) for value in given]))
            return
        stack, labels, weight = self._complete(stack, labels, weight)
        if self.weights == "uniform" or labels is None:
            self.weights_ = np.full(len(order), 1.0 / len(order))
            return
        omega = _video_weights(labels, weight, self.class_weight)
        stack, floors = stack.select(order), floors[np.argsort(back)]
        if self.weights == "learned":
            _check_true_class(stack, labels, floors)
            found, refit = self._learn(stack, labels, omega, floors)
        else:
            by_loss = self.weights == "inverse-nll"
            evidence = true_log_likelihoods(stack, labels, floors) if by_loss else member_hits(stack, labels)
            found = score_weights(self.weights, evidence, omega, stack.n_classes, self.power)
            refit = partial(_rescore, self.weights, evidence, stack.n_classes, self.power)
        self.weights_ = found[back]
        self._refit, self._omega = refit, omega
        self._back = back

    def _check_parameters(self) -> None:
        known = (*SCORE_WEIGHTS, "learned")
        if isinstance(self.weights, str) and self.weights not in known:
            raise InputError(
                f"weights: expected one of {', '.join(map(repr, known))}, numbers or {{member: number}}, "
                f"got {self.weights!r}"
            )
        if self.class_weight not in (None, "balanced"):
            raise InputError(f'class_weight: expected None or "balanced", got {self.class_weight!r}')
        if self.missing not in ("error", "renormalise"):
            raise InputError(f'missing: expected "error" or "renormalise", got {self.missing!r}')

    def _complete(
        self, stack: LogitStack, labels: NDArray[np.int64] | None, weight: NDArray[np.float64] | None
    ) -> tuple[LogitStack, NDArray[np.int64] | None, NDArray[np.float64] | None]:
        """Return the videos that every member has: what a fit compares the members on."""
        if stack.present is None:
            return stack, labels, weight
        self.n_missing_ = (~stack.present).sum(axis=0)
        whole = stack.present.all(axis=1)
        if self.missing != "renormalise" or not whole.any():
            raise AlignmentError(
                f"{int((~whole).sum())} of {len(stack)} videos lack the scores of some member; "
                + ("no video has all members" if self.missing == "renormalise" else 'say missing="renormalise" '
                   "to fit on the others and to share an absent member's weight")
            )  # fmt: skip
        kept = stack[whole]
        return kept, None if labels is None else labels[whole], None if weight is None else weight[whole]

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        columns = [self.members_.index(name) for name in stack.members]
        scale = 1.0 / self.temperature_
        used = [name for name, column in zip(stack.members, columns, strict=True) if self.weights_[column] > 0]
        if not used:
            raise AlignmentError(f"no member with a positive weight is left among {list(stack.members)}")
        stack = stack.select(used)
        columns = [self.members_.index(name) for name in used]
        weights, floors = self.weights_[columns], self.floor_[columns]
        shares = weights / weights.sum() * scale
        out = np.empty((len(stack), stack.n_classes))
        if stack.present is not None:
            rows_shares = stack.present * weights
            total = rows_shares.sum(axis=1, keepdims=True)
            if not total.all():
                row = int((total[:, 0] == 0).argmax())
                raise AlignmentError(f"no member with a positive weight has {place(row, stack.ids)}; drop the video")
            shares = rows_shares / total * scale
        for rows, block in floored_blocks(stack, floors):
            out[rows] = self._combine(
                block, shares if shares.ndim == 1 else shares[rows], None if stack.ids is None else stack.ids[rows]
            )
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_refit": None, "_omega": None}

    def summary(self, bootstrap: int = 0, *, confidence: float = 0.95, random_state: int | None = 0) -> PoolSummary:
        """Return each member's weight, with percentile intervals over `bootstrap` resamples of the fit's videos.

        Scored weights and the linear optimum are refitted on each resample; learned log-linear weights take one
        Newton step from the fit (the one-step bootstrap: Davison and Hinkley 1997, section 7.2.4 discusses it for
        likelihoods), so that a thousand replicates take about a second.

        Raises:
            InputError: the pool comes from a recipe or a pickle, which keep no videos, or an argument is out of range.
        """
        check_is_fitted(self, "weights_")
        refit: Refit | None = getattr(self, "_refit", None)
        if refit is not None:
            inner, back = refit, self._back

            def refit(omega: NDArray[np.float64]) -> NDArray[np.float64]:
                return inner(omega)[back]

        return summarise(
            self.members_,
            self.weights_,
            self.temperature_,
            refit=refit,
            omega=getattr(self, "_omega", None),
            bootstrap=bootstrap,
            confidence=confidence,
            random_state=random_state,
        )


class LogLinearPool(_Pool):
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
        if self.per_class and self.weights != "learned":
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
                stacklevel=5,
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
        pull = np.zeros(len(direction)) if penalty is None else penalty.quadratic @ fit.beta - penalty.linear
        return fit.beta / fit.beta.sum(), _OneStep(fit, pull, Passes(stack, labels, omega, floors, self.n_jobs))

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        if self.class_weights_ is None or stack.present is not None or len(stack.members) < len(self.members_):
            return super()._fuse(stack)  # weights per class are not renormalised: the shared ones are
        columns = [self.members_.index(name) for name in stack.members]
        out = np.empty((len(stack), stack.n_classes))
        for rows, block in floored_blocks(stack, self.floor_[columns]):
            out[rows] = log_linear_pool(block, self.class_weights_[columns], per_class=True)
        return out

    def _combine(self, block: NDArray[np.float32], weights: NDArray[np.float64], ids: Any) -> NDArray[np.float64]:
        return log_linear_pool(block, weights, ids=ids)


class LinearPool(_Pool):
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

    def _default_floor(self) -> float:
        return 0.0

    def _learn(
        self,
        stack: LogitStack,
        labels: NDArray[np.int64],
        omega: NDArray[np.float64],
        floors: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], Refit]:
        log_true = true_log_likelihoods(stack, labels, floors)
        fit = fit_linear(log_true, omega)
        self.optimality_gap_ = fit.gap
        return fit.weights, partial(_refit_linear, log_true)

    def _combine(self, block: NDArray[np.float32], weights: NDArray[np.float64], ids: Any) -> NDArray[np.float64]:
        return linear_pool(block, weights)


def _video_weights(
    labels: NDArray[np.int64], weight: NDArray[np.float64] | None, class_weight: str | None
) -> NDArray[np.float64]:
    omega = np.ones(len(labels)) if weight is None else weight.copy()
    if class_weight == "balanced":
        totals = np.bincount(labels, weights=omega)
        omega /= np.where(totals > 0, totals, 1.0)[labels]
    if not omega.sum() > 0:
        raise InputError("sample_weight: the videos that the fit can use have weights that sum to zero")
    return np.asarray(omega / omega.sum())


def _check_true_class(stack: LogitStack, labels: NDArray[np.int64], floors: NDArray[np.float64]) -> None:
    """Refuse a probability of 0 at the true class, which no weight could make up for."""
    for name, kind, floor in zip(stack.members, stack.kinds, floors, strict=True):
        if floor > 0:
            continue
        step = 4096
        for start in range(0, len(stack), step):
            truth = labels[start : start + step]
            true = np.take_along_axis(stack[start : start + step].scores(name), truth[:, None], axis=1)[:, 0]
            zero = true == 0 if kind in ("probabilities", "sum") else np.isneginf(true)
            if zero.any():
                row = start + int(zero.argmax())
                raise InputError(
                    f"a learned fit cannot use a probability of 0 at the true class: {place(row, stack.ids, name)}; "
                    "set floor=1e-4 or more"
                )


def _rescore(
    rule: str, evidence: NDArray[Any], n_classes: int, power: float, omega: NDArray[np.float64]
) -> NDArray[np.float64]:
    return score_weights(rule, evidence, omega, n_classes, power)


def _refit_linear(log_true: NDArray[np.float64], omega: NDArray[np.float64]) -> NDArray[np.float64]:
    return fit_linear(log_true, omega).weights


class _OneStep:
    """Return the weights after one Newton step on resampled videos, the curvature held.

    The videos' gradients are computed when they are first asked for; a copy that was pickled has none.
    """

    def __init__(self, fit: LogLinearFit, pull: NDArray[np.float64], passes: Passes) -> None:
        self._fit, self._pull, self._passes = fit, pull, passes
        self._gradients: NDArray[np.float64] | None = None

    def __call__(self, omega: NDArray[np.float64]) -> NDArray[np.float64]:
        beta, hessian = self._fit.beta, self._fit.hessian
        if self._gradients is None:
            self._gradients = self._passes.gradients(beta)
        ridge = hessian + (1e-10 * np.trace(hessian) + 1e-300) * np.eye(len(beta))
        slope = omega @ self._gradients + self._pull
        moved = solve_qp(ridge, ridge @ beta - slope, 1.0 / T_MAX, 1.0 / T_MIN, beta)
        return np.asarray(moved / moved.sum())
