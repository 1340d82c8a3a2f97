"""The log-linear pool, the default of vidfuse, with given, scored or learned weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.fusion._solver.deviations import LOWEST
from vidfuse.fusion._solver.log_linear import T_MAX, T_MIN, Penalty
from vidfuse.fusion._solver.passes import Passes
from vidfuse.fusion._solver.qp import solve_qp
from vidfuse.fusion._solver.shared import FitVideos, fit_shared
from vidfuse.fusion._solver.strengths import (
    STRENGTHS,
    Shrinkage,
    check_shrinkage,
    choose_shrinkage,
    describe_shares,
    fit_class_weights,
    strength_shares,
)
from vidfuse.fusion.floors import Floor, floored_blocks, is_number
from vidfuse.fusion.rule import Missing, WeightedSum
from vidfuse.fusion.weighted import WeightedRule, Weights, check_true_class, is_learned, pool_blocks, sum_of_given
from vidfuse.fusion.weights import true_scores
from vidfuse.likelihood import add_member, log_linear_pool, log_softmax
from vidfuse.stack.stack import LogitStack

__all__ = ["SHRUNK_FLOOR", "LogLinearPool"]

SHRUNK_FLOOR: Final = 0.001
"""The floor of every calibrated member in a shrunk learned fit: no probability of 0 is a veto."""

CLASS_PRECISION: Final = 100.0
"""What `per_class=True` stands for, in videos."""

_MATRICES: Final = 1 << 25  # numbers of the matrices of all classes, up to which weights per class are fitted unasked


class LogLinearPool(WeightedRule):
    """Fuse members by the weighted sum of their log-likelihoods: the default of vidfuse.

    ``log p(c) = b_c + Σ_m β_mc · log q_m(c) - log Σ_j exp(…)``, with ``β_mc = w_m/T + δ_mc``, w on the simplex (the
    logarithmic opinion pool, Genest and Zidek 1986), and ``q_m = (1 - f)·softmax(a_m·log p_m) + f/K`` the member with
    its floor f, in units of its own calibration a_m. Learned weights are found in three steps, each of them convex:

    1. a_m: one temperature a member, so that nothing depends on how a member's scores are scaled.
    2. The shared weights ``β = w/T ≥ 0``, 0.01 ≤ T ≤ 100, minimise
       ``NLL(β) + ½·λ·‖β - (Σβ)·s‖² + ½·λ²·(Σβ - 1)²``, s the members' accuracies on the simplex, with targets smoothed
       by half a video in N + 1.
    3. δ and b minimise ``NLL + ½·(π/N)·(Σδ² + Σb²/10)`` for members of positive shared weight, at eight strengths π
       from ∞ (no deviation) to one video; their average is taken, by how well each predicts groups held out.

    Args:
        weights: "learned", "accuracy" (of multi-network fusion by score), "uniform", "log-odds", "inverse-nll",
            numbers in the order in which the fit's stack lists its members, or {member: number}. Numbers are
            normalised (`weight_sum_` keeps the sum).
        shrinkage: λ for learned weights: "auto" (``N^(-1/2)``), "cv", a number, or None: the plain maximum likelihood
            of shared weights, without steps 1 and 3.
        power: the exponent of "accuracy".
        floor: f, the uniform distribution's share in every member. "auto": 0.001 where a learned fit is shrunk; else
            1e-4 for members given as probabilities and 0 for logits, whose zeros are no accident.
        per_class: "auto" averages over strengths; without groups, which tell dependent clips from new videos, over the
            five strongest alike. False: shared weights. A number: π; True stands for 100.
        class_weight: "balanced" gives every class that occurs the same total weight in the fit.
        missing: "renormalise" shares an absent member's weight among those that a video has; "error" refuses.
        n_jobs: joblib's workers for the passes of a learned fit (threads, unless `parallel_config` says otherwise).

    Attributes:
        weights_: w (M,), on the simplex, in the order of `members_`.
        temperature_: T; 1 unless learned.
        scale_: a (M,); 1 unless a learned fit is shrunk.
        optimality_gap_: how much lower the objective of step 2 or 3 could be, at most, in nats; None unless learned.
        shrinkage_: λ as used; None unless learned.
        class_weights_: β per member and class (M, K); None where all classes share them.
        class_bias_: b (K,); None where all classes share their weights.
        class_shares_: the strengths' shares in the average: (2, S), π and its share; None where there is no average.
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
    scale_: NDArray[np.float64]
    optimality_gap_: float | None
    shrinkage_: float | None
    weight_sum_: float
    class_weights_: NDArray[np.float64] | None
    class_bias_: NDArray[np.float64] | None
    class_shares_: NDArray[np.float64] | None

    def __init__(
        self,
        weights: Weights = "learned",
        *,
        shrinkage: Shrinkage = "auto",
        power: float = 1.0,
        floor: Floor = "auto",
        per_class: bool | float | Literal["auto"] = "auto",
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
        _check_per_class(self.per_class, self.weights)
        learned = is_learned(self.weights)
        self.temperature_, self.optimality_gap_ = 1.0, None
        self.scale_ = np.ones(len(stack.members))
        self.shrinkage_, self.class_weights_, self.class_bias_, self.class_shares_ = None, None, None, None
        shrunk = learned and self.shrinkage not in (None, 0)
        videos = self._fit_weights(stack, labels, weight, learns=True, default_floor=SHRUNK_FLOOR if shrunk else 0.0)
        self.weight_sum_ = sum_of_given(self.weights)
        if videos is not None:
            self._learn(replace(videos, n_jobs=self.n_jobs), shrunk)

    def _learn(self, videos: FitVideos, shrunk: bool) -> None:
        """Set weights and temperature, and weights per class where there are such."""
        check_true_class(videos.stack, true_scores(videos.stack, videos.labels), videos.floors)
        if shrunk:
            videos = videos.calibrated()
            self.scale_ = np.ones(len(videos.floors)) if videos.scales is None else videos.scales
        self.shrinkage_ = choose_shrinkage(self.shrinkage, videos)
        shared = fit_shared(videos, self.shrinkage_)
        beta = shared.fit.beta
        if shared.fit.at_bound:
            why = (
                f"some weights separate the {len(videos.labels)} videos of the fit perfectly, and their probabilities "
                "will be overconfident; use shrinkage or more videos"
            )
            if shared.fit.value >= np.log(2.0) * videos.omega.min():  # some video has less than half at its true class
                why = (
                    "the scores differ so little between classes that a lower one would fit better; multiply them by a "
                    'number, or say shrinkage="auto", which calibrates each member first'
                )
            warnings.warn(f"the lowest temperature, {T_MIN}, was reached: {why}", VidfuseWarning, stacklevel=4)
        self.optimality_gap_ = shared.fit.gap
        self.temperature_ = float(1.0 / beta.sum())
        strengths = self._strengths(videos, beta, shrunk)
        if strengths is not None:
            found = fit_class_weights(videos, beta, *strengths)
            self.class_weights_, self.class_bias_ = beta[:, None] + found.deviations, found.bias
            self.class_shares_ = np.stack(strengths)
            self.optimality_gap_ = max(self.optimality_gap_, found.gap)
        self._set_found(
            beta / beta.sum(), _OneStep(beta, shared.penalty, videos.passes), videos.omega, videos.stack.groups
        )

    def _strengths(
        self, videos: FitVideos, beta: NDArray[np.float64], shrunk: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Return the precisions of the priors on weights per class, and their shares; None for shared weights.

        per_class =   "auto"      averaged; shared weights where nothing is shrunk, or where very many members would
                                  need a matrix a class that does not fit memory
                      False       None
                      True        100 videos
                      a number    itself
        """
        if self.per_class == "auto":
            active = np.count_nonzero(beta)
            if not shrunk or videos.stack.n_classes * (active + 1) ** 2 > _MATRICES:
                return None
            return np.array(STRENGTHS), strength_shares(videos, self.shrinkage_ or 0.0, beta)
        if self.per_class is False:
            return None
        return np.array([CLASS_PRECISION if self.per_class is True else float(self.per_class)]), np.ones(1)

    def needed_members(self) -> tuple[str, ...]:
        """Return those of `members_` that a prediction needs: those with a weight, for some class at least."""
        check_is_fitted(self, "weights_")
        if self.class_weights_ is None:
            return super().needed_members()
        say = (self.weights_ > 0) | (self.class_weights_ != 0).any(axis=1)
        return tuple(name for name, has in zip(self.members_, say, strict=True) if has)

    def choices(self) -> tuple[str, ...]:
        """Return how the strengths of the pulls on learned weights were found, and what they are."""
        if getattr(self, "shrinkage_", None) is None:
            return ()
        own = {"auto": "one over the root of the videos or groups", "cv": "the best of seven on five folds held out"}
        how = own.get(str(self.shrinkage), "as given")
        shares = getattr(self, "class_shares_", None)  # recipes of the first releases have none
        said = (
            [] if not self.shrinkage_ else [f"shared weights, pulled to the accuracies by {self.shrinkage_:.3g}, {how}"]
        )
        if shares is not None:
            said.append(describe_shares(*shares))
        elif said and self.per_class == "auto" and self.class_weights_ is None:
            said.append("all classes share the weights: those of so many members and classes would not fit memory")
        return tuple(said)

    def weighted_sum(self) -> WeightedSum:
        """Return the pool as a weighted sum of log-likelihoods, over all of `members_`."""
        shared = self.shared_sum()
        return (
            shared if self.class_weights_ is None else replace(shared, weights=self.class_weights_, bias=self._bias())
        )

    def shared_sum(self) -> WeightedSum:
        """Return the weighted sum that all classes share: what fuses the videos that lack a member."""
        check_is_fitted(self, "weights_")
        weights = self.weights_[:, None] / self.temperature_
        return WeightedSum("log-linear", self.members_, weights, self.floor_, self._scales())

    def _scales(self) -> NDArray[np.float64]:
        """Return the scales; recipes of the first releases have none."""
        return getattr(self, "scale_", np.ones(len(self.members_)))

    def _bias(self) -> NDArray[np.float64] | None:
        """Return the biases, if there are such; recipes of the first releases have none."""
        return getattr(self, "class_bias_", None)

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        """Pool each video with the weights per class, if there are such and it has all members that have a say.

        Elsewhere the shared weights are renormalised; those of a class have no common sum.
        """
        if self.class_weights_ is None or not set(self.needed_members()) <= set(stack.members):
            return self._fuse_shared(stack)
        stack = stack.select(self.needed_members())
        if stack.present is None:
            return self._fuse_per_class(stack, self.class_weights_)
        self._with_a_say(stack)  # which names the row of a video that nobody has, as it stands here
        whole = stack.present.all(axis=1)
        out = np.empty((len(stack), stack.n_classes))
        if whole.any():
            out[whole] = self._fuse_per_class(stack[whole], self.class_weights_)
        if not whole.all():
            out[~whole] = self._fuse_shared(stack[~whole])
        return out

    def _fuse_shared(self, stack: LogitStack) -> NDArray[np.float64]:
        stack, weights, floors = self._with_a_say(stack)
        scales = self._scales()[[self.members_.index(name) for name in stack.members]]
        return pool_blocks(_pool, stack, weights, floors, 1.0 / self.temperature_, scales)

    def _fuse_per_class(self, stack: LogitStack, beta: NDArray[np.float64]) -> NDArray[np.float64]:
        columns = [self.members_.index(name) for name in stack.members]
        bias, out, floors = self._bias(), np.empty((len(stack), stack.n_classes)), self.floor_[columns]
        low = bool((floors < stack.n_classes * np.exp(LOWEST / 2)).any())  # else no log-likelihood gets near the lowest
        for rows, block in floored_blocks(stack, floors, scales=self._scales()[columns]):
            if low:
                np.maximum(block, np.float32(LOWEST), out=block)  # as the fit saw it: 0 · -inf is no number
            total = out[rows]
            total[:] = 0.0 if bias is None else bias
            for member, column in enumerate(columns):
                add_member(total, block[:, member], beta[column])
            log_softmax(total, out=total)
        return out


def _check_per_class(per_class: Any, weights: Weights) -> None:
    """Refuse what is neither "auto", a bool nor a positive number, and weights per class of what is not learned."""
    if isinstance(per_class, str) and per_class == "auto":
        return
    if not isinstance(per_class, (bool, np.bool_)) and not (is_number(per_class) and float(per_class) > 0):
        raise InputError(f'per_class: expected "auto", True, False or a number above 0, got {per_class!r}')
    if per_class and not is_learned(weights):
        raise InputError(f'per_class: weights per class are learned; say weights="learned", got {weights!r}')


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
