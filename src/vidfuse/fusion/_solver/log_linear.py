"""The log-linear pool of least (penalised) negative log-likelihood: convex in β, second order, with a certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError
from vidfuse.fusion._solver.moments import Moments
from vidfuse.fusion._solver.passes import Passes
from vidfuse.fusion._solver.qp import TOO_LARGE, least_norm, solve_qp, warn_of_gap

__all__ = ["T_MAX", "T_MIN", "LogLinearFit", "Penalty", "fit_log_linear", "frank_wolfe_gap", "shrinkage_penalty"]

T_MIN: Final = 0.01
"""The lowest temperature that a fit may reach: Σβ ≤ 100."""
T_MAX: Final = 100.0
"""The highest temperature: Σβ ≥ 0.01."""

_TARGET: Final = 5e-8
_NEAR: Final = 1e-3  # nats; what a Newton step is worth from which on the Hessian is held
_ROUGH: Final = 1e-3  # nats; a gap that float32 tells to a few percent, for scores that vary by 1
_NOISE: Final = (2e-7, 1e-15)  # what rounding may add to a value, in float32 and float64, as a share
_EQUAL: Final = 1e-6  # nats; slopes nearer than this may be equal
_ROUNDS: Final = 5  # in which members join
_STEPS: Final = 30  # with a Hessian that is held
_SMALL: Final = 1 << 21  # numbers below which every pass is in float64


@dataclass(frozen=True)
class Penalty:
    """A convex quadratic ``½·βᵀAβ - bᵀβ + c``."""

    quadratic: NDArray[np.float64]
    linear: NDArray[np.float64]
    constant: float = 0.0

    def only(self, members: NDArray[np.intp]) -> Penalty:
        """Return the same penalty where all other members weigh 0."""
        return Penalty(self.quadratic[np.ix_(members, members)], self.linear[members], self.constant)

    def add_to(self, moments: Moments, beta: NDArray[np.float64]) -> Moments:
        """Return the moments of likelihood and penalty together."""
        slope = self.quadratic @ beta
        hessian = None if moments.hessian is None else moments.hessian + self.quadratic
        value = moments.value + float(0.5 * beta @ slope - self.linear @ beta) + self.constant
        return Moments(value, moments.gradient + slope - self.linear, hessian)


def shrinkage_penalty(strength: float, direction: NDArray[np.float64]) -> Penalty:
    """Return the pull of β towards multiples of a prior direction, and (more weakly) of its sum towards 1.

    ``½·λ·‖β - (Σβ)·s‖² + ½·λ²·(Σβ - 1)²`` with λ the strength and s the direction. The first term leaves the
    temperature free; at λ = N^(-1/2) the second weighs 1/N, as one video more would.

    Args:
        strength: λ ≥ 0; 0 is no penalty.
        direction: s (M,), on the simplex.

    Example:
        >>> penalty = shrinkage_penalty(0.1, np.array([0.5, 0.5]))
        >>> round(float(0.5 * np.ones(2) @ penalty.quadratic @ np.ones(2) - penalty.linear.sum() + penalty.constant), 4)
        0.005
    """
    members = len(direction)
    away = np.eye(members) - direction[:, None]
    square = strength**2
    ones = np.ones(members)
    return Penalty(strength * away.T @ away + square * np.outer(ones, ones), square * ones, 0.5 * square)


@dataclass(frozen=True)
class LogLinearFit:
    """β of a log-linear pool, and how near to the optimum it is proved to be.

    Attributes:
        beta: (M,), weights over temperature.
        value: the objective: mean negative log-likelihood plus penalty, in nats.
        gap: how much lower any β within the bounds could bring it, at most, in nats.
        passes: passes over the stack; one over some members alone counts as their share.
        at_bound: whether the lowest temperature was reached.
    """

    beta: NDArray[np.float64]
    value: float
    gap: float
    passes: float
    at_bound: bool


def frank_wolfe_gap(beta: NDArray[np.float64], gradient: NDArray[np.float64]) -> float:
    """Return ``max_v gᵀ(β - v)`` over ``v ≥ 0, 1/T_max ≤ Σv ≤ 1/T_min``: no feasible point is lower by more.

    NaN, which certifies nothing, for a gradient that holds it.

    Source:
        Frank and Wolfe 1956; Jaggi 2013, "Revisiting Frank-Wolfe", section 2 (the gap as a certificate).

    Example:
        >>> frank_wolfe_gap(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
        0.0
    """
    lowest = float(gradient.min())
    gap = float(gradient @ beta) - min(lowest / T_MAX, lowest / T_MIN)
    return 0.0 if gap <= 0 else gap


def fit_log_linear(
    passes: Passes, penalty: Penalty | None = None, start: NDArray[np.float64] | None = None
) -> LogLinearFit:
    """Minimise a log-linear pool's mean negative log-likelihood over ``β ≥ 0, 1/T_max ≤ Σβ ≤ 1/T_min``.

    Projected Newton: each step solves the quadratic model over the constraints exactly (`solve_qp`). A large stack
    is first fitted on a part of its videos, then in float32 and at last in float64 over the members that have a weight
    there or nearly do; the certificate is in float64 on all videos and members, and names those that are to join.
    Among optima, the one of least norm.

    Args:
        passes: the videos, within its context.
        penalty: what is added to the likelihood.
        start: a first β; uniform weights at temperature 1 without it.

    Raises:
        InputError: scores so large that the curvature is no number.
    """
    try:
        return _fit(passes, penalty, start)
    except np.linalg.LinAlgError as error:
        raise InputError(f"the learned fit failed ({error}): {TOO_LARGE}") from error


def _fit(passes: Passes, penalty: Penalty | None, start: NDArray[np.float64] | None) -> LogLinearFit:
    members = len(passes.stack.members)
    free = penalty is None
    penalty = penalty or Penalty(np.zeros((members, members)), np.zeros(members))
    beta = np.full(members, 1.0 / members) if start is None else start
    moments: Moments | None = None
    curvature, sampled = np.zeros((members, members)), 0.0
    if passes.numbers > _SMALL:
        sample = passes.sample(max(200, min(len(passes.stack) // 16, 4096)))
        if start is None:
            beta = _unsaturated(sample, penalty, beta)
        beta, active, curvature = _on_sample(sample, penalty, beta)
        beta, moments, curvature = _over_active(passes, penalty, beta, active, curvature)
        sampled = sample.count * len(sample.stack) / len(passes.stack)
    if moments is None:
        beta, moments = _newton(passes, penalty, beta, double=True, tolerance=0.0, limit=60)
    if free and moments.value < np.log(2.0) * passes.omega[passes.omega > 0].min() and beta.sum() < 1 / T_MIN:
        # Every video's true class has more than half of the probability: a lower temperature is always better.
        beta, moments = _newton(passes, penalty, beta / (T_MIN * beta.sum()), double=True, tolerance=0.0, limit=60)
    beta, moments = _shortest(passes, penalty, beta, moments, curvature)
    if not beta.sum() > 0.5 / T_MAX:
        raise np.linalg.LinAlgError("a step led out of the bounds")
    gap = frank_wolfe_gap(beta, moments.gradient)
    warn_of_gap(gap)
    at_bound = beta.sum() >= (1 - 1e-9) / T_MIN
    return LogLinearFit(beta, moments.value, gap, passes.count + sampled, bool(at_bound))


def _unsaturated(passes: Passes, penalty: Penalty, beta: NDArray[np.float64]) -> NDArray[np.float64]:
    """Raise the temperature where the pool is too sure: where nearly all videos are, Newton's steps lead anywhere."""
    while beta.sum() > 1 / T_MAX:
        moments = penalty.add_to(passes.moments(beta, hessian=False, double=False), beta)
        if not moments.gradient @ beta > 0:
            break
        beta = beta * max(0.25, 1 / (T_MAX * beta.sum()))
    return beta


def _on_sample(
    sample: Passes, penalty: Penalty, beta: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.float64]]:
    """Come near the optimum on a part of the videos; return β, the members that may have a weight on all, the Hessian.

    A member without a weight stays in play while its slope is within two standard deviations of 0; the Hessian is the
    variance of a video's slope (the information equality).
    """
    overfit = 0.0 if penalty.quadratic.any() else len(beta) / len(sample.stack)  # a lower value is luck
    near, moments = _newton(sample, penalty, beta, double=False, tolerance=_NEAR, limit=12, enough=overfit)
    deviation = np.sqrt(np.diag(_of(moments)) * (sample.omega @ sample.omega))
    return near, np.flatnonzero((near > 0) | (moments.gradient < 2.0 * deviation)), _of(moments)


def _over_active(
    passes: Passes,
    penalty: Penalty,
    beta: NDArray[np.float64],
    active: NDArray[np.intp],
    curvature: NDArray[np.float64],
) -> tuple[NDArray[np.float64], Moments | None, NDArray[np.float64]]:
    """Fit the active members, let in those that the certificate names, and so on; no moments without success.

    A Hessian (M, M) from nearby serves for the first step; the last value is one from nearer.
    """
    curvature = curvature.copy()
    for _ in range(_ROUNDS):
        square = np.ix_(active, active)
        some, pull = passes.only(active), penalty.only(active)
        inner, rough = _newton(
            some, pull, beta[active], double=False, tolerance=_NEAR, limit=12, hessian=curvature[square]
        )
        curvature[square] = _of(rough)
        beta = np.zeros(len(beta))
        beta[active] = inner
        beta, moments = _polish(passes, penalty, beta, active, _of(rough))
        if moments is None or frank_wolfe_gap(beta, moments.gradient) <= _TARGET:
            return beta, moments, curvature
        better = moments.gradient < moments.gradient @ beta / beta.sum()
        entering = np.setdiff1d(np.flatnonzero(better), active)
        if not len(entering):
            break
        active = np.union1d(np.flatnonzero(beta), entering)
    return beta, None, curvature


def _shortest(
    passes: Passes, penalty: Penalty, beta: NDArray[np.float64], moments: Moments, curvature: NDArray[np.float64]
) -> tuple[NDArray[np.float64], Moments]:
    """Return the optimum of least norm: only members whose slope is the least can share weight among optima."""
    gradient = moments.gradient
    equal = np.flatnonzero((beta > 0) | (gradient <= gradient @ beta / beta.sum() + _EQUAL))
    if not len(equal):  # a gradient that is no number
        return beta, moments
    hessian = (curvature if moments.hessian is None else moments.hessian)[np.ix_(equal, equal)]
    if moments.hessian is None and _condition(hessian) < 1e-4:
        hessian = _of(penalty.only(equal).add_to(passes.only(equal).moments(beta[equal]), beta[equal]))
    shortest = beta.copy()
    shortest[equal] = least_norm(beta[equal], hessian, 1 / T_MAX, 1 / T_MIN)
    if np.abs(shortest - beta).max() > 1e-12:
        candidate = penalty.add_to(passes.moments(shortest, hessian=False), shortest)
        gap = frank_wolfe_gap(shortest, candidate.gradient)
        if gap <= max(frank_wolfe_gap(beta, gradient), _TARGET):
            return shortest, candidate
    return beta, moments


def _polish(
    passes: Passes,
    penalty: Penalty,
    beta: NDArray[np.float64],
    active: NDArray[np.intp],
    hessian: NDArray[np.float64],
) -> tuple[NDArray[np.float64], Moments | None]:
    """Certify β over the active members by gradients alone, stepping with their Hessian from nearby.

    Each step's change of the gradient corrects the Hessian (BFGS: Nocedal and Wright 2006, equation 6.19). A pass is in
    float32 while that tells enough, and over all members where the next gap is expected to do. The moments are those
    over all members; there are none without success.
    """
    some, pull, inner = passes.only(active), penalty.only(active), beta[active]
    gradient = step = np.zeros(len(inner))
    scale = float(np.sqrt(max(1.0, np.diag(hessian).max())))  # rounding grows as the scores do
    rough, noise = _ROUGH * scale, _NOISE[0] * scale
    previous, double, exact, told, last = 0.0, False, False, False, False
    best, ceiling = beta, float(np.finfo(np.float64).max)
    for _ in range(_STEPS):
        beta = np.zeros(len(beta))
        beta[active] = inner
        if last:
            moments = penalty.add_to(passes.moments(beta, hessian=False), beta)
            own = moments._replace(gradient=moments.gradient[active])
        else:
            moments = own = pull.add_to(some.moments(inner, hessian=False, double=double), inner)
        gap = frank_wolfe_gap(inner, own.gradient)
        if double and gap <= _TARGET:
            whole = last or len(active) == len(beta)
            return beta, moments if whole else penalty.add_to(passes.moments(beta, hessian=False), beta)
        if not (own.value <= ceiling and np.isfinite(gap)):
            break
        best, ceiling = beta, own.value + noise * (1 + abs(own.value))
        tells = double or gap > 0.1 * rough
        if tells and told:
            hessian = _corrected(hessian, step, own.gradient - gradient)
        step, decrease = _newton_step(inner, own._replace(hessian=hessian))
        inner = np.maximum(inner + step, 0.0)
        ratio = (
            float(np.sqrt(max(decrease, 0.0) / previous)) if previous > 0 else 1.0
        )  # how near, beside the last point
        slow = previous > 0 and ratio > 0.5
        if slow and exact:
            break
        expected = gap * min(1.0, ratio)
        previous, gradient, exact, told = decrease, own.gradient, double, tells
        double = double or slow or expected <= rough
        last = double and expected <= 10 * _TARGET  # steps get better as the Hessian does
    return best, None


def _corrected(
    hessian: NDArray[np.float64], step: NDArray[np.float64], change: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the Hessian nearest to this one that maps the step to the change of the gradient."""
    mapped = hessian @ step
    expected, seen = float(step @ mapped), float(step @ change)
    if not (expected > 0 and 0.1 * expected < seen < 10 * expected):  # rounding, or nothing moved
        return hessian
    return hessian + np.outer(change, change) / seen - np.outer(mapped, mapped) / expected


def _newton(
    passes: Passes,
    penalty: Penalty,
    beta: NDArray[np.float64],
    *,
    double: bool,
    tolerance: float,
    limit: int,
    hessian: NDArray[np.float64] | None = None,
    enough: float = 0.0,
) -> tuple[NDArray[np.float64], Moments]:
    """Take Newton steps until the predicted decrease, or in float64 the gap, is small; return β and its moments.

    The first step takes the Hessian that is given, if one is; the last one does not. A value of `enough` ends it too.
    """
    moments = penalty.add_to(passes.moments(beta, hessian=hessian is None, double=double), beta)
    own = hessian is None
    if hessian is not None:
        moments = moments._replace(hessian=hessian)
    for _ in range(limit):
        if moments.value < enough or (double and frank_wolfe_gap(beta, moments.gradient) <= _TARGET):
            break
        step, decrease = _newton_step(beta, moments)
        near = min(tolerance, 0.02 * moments.value) if own else 0.0
        if decrease <= max(near, 1e-12):  # too small for values to judge; the model is exact
            if not double:
                return beta + step, moments
            candidate = np.maximum(beta + step, 0.0)
            trial = penalty.add_to(passes.moments(candidate, double=double), candidate)
            if frank_wolfe_gap(candidate, trial.gradient) >= frank_wolfe_gap(beta, moments.gradient):
                break
            beta, moments = candidate, trial
            continue
        length = 1.0
        while True:
            candidate = np.maximum(beta + length * step, 0.0)
            trial = penalty.add_to(passes.moments(candidate, double=double), candidate)
            rise, noise = trial.value - moments.value, _NOISE[double] * (1 + abs(moments.value))
            if rise <= noise - 1e-4 * length * decrease:
                beta, moments = candidate, trial
                break
            if not own:  # the given Hessian is no good here
                moments = penalty.add_to(passes.moments(beta, double=double), beta)
                break
            length *= 0.5
            if length < (1e-10 if double else 1e-4):
                return beta, moments
        own = True
    return beta, moments


def _newton_step(beta: NDArray[np.float64], moments: Moments) -> tuple[NDArray[np.float64], float]:
    """Minimise the quadratic model over the constraints; return the step and the decrease that it predicts."""
    members = len(beta)
    hessian = 0.5 * (_of(moments) + _of(moments).T)
    lost = np.flatnonzero(np.diag(hessian) < 0)  # in the rounding of squares of huge scores: that is what is known
    if len(lost):
        size = -np.diag(hessian)[lost]
        hessian[lost], hessian[:, lost] = 0.0, 0.0
        hessian[lost, lost] = size
    own = np.diag(hessian) + 1e5 * np.abs(moments.gradient)  # each member's: their scales may differ widely
    hessian = hessian + 1e-12 * np.diag(np.where(own > 0, own, own.sum() / members + 1e-288))
    step = solve_qp(hessian, hessian @ beta - moments.gradient, 1 / T_MAX, 1 / T_MIN, beta) - beta
    return step, float(-moments.gradient @ step - 0.5 * step @ hessian @ step)


def _of(moments: Moments) -> NDArray[np.float64]:
    if moments.hessian is None:
        raise TypeError("expected moments with a Hessian")
    return moments.hessian


def _condition(hessian: NDArray[np.float64]) -> float:
    """Return the smallest eigenvalue as a share of the largest."""
    values = np.linalg.eigvalsh(hessian)
    return float(values[0] / max(values[-1], np.finfo(np.float64).tiny))
