"""The log-linear pool of least (penalised) negative log-likelihood: convex in β, second order, with a certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError
from vidfuse.fusion._solver.passes import Moments, Passes
from vidfuse.fusion._solver.qp import TOO_LARGE, least_norm, solve_qp, warn_of_gap

__all__ = ["T_MAX", "T_MIN", "LogLinearFit", "Penalty", "fit_log_linear", "frank_wolfe_gap", "shrinkage_penalty"]

T_MIN: Final = 0.01
"""The lowest temperature that a fit may reach: Σβ ≤ 100."""
T_MAX: Final = 100.0
"""The highest temperature: Σβ ≥ 0.01."""

_TARGET: Final = 5e-8  # nats; the gap at which a fit is done, half of what is promised
_HELD: Final = 3e-2  # nats, or this share of the objective: smaller steps are taken with a Hessian from nearby
_FINE: Final = 1e-3  # nats; smaller gaps are computed in float64: float32 is wrong by up to 1e-5
_SAMPLE: Final = 1e-3  # nats; the fit on a sample ends with a step that is worth less
_NOISE: Final = {False: 2e-7, True: 1e-15}  # share of a value that is rounding, in float32 and in float64 (`double`)
_EQUAL: Final = 1e-6  # nats; slopes nearer than this may be equal
_VALUE: Final = 1e-12  # nats; steps that are worth less are judged by the gap, as values in float64 do not tell
_STEPS: Final = 200  # and halvings of steps
_ROUGH: Final = 12  # steps in float32
_SMALL: Final = 1 << 21  # numbers up to which a fit takes plain Newton steps in float64, and a sample own Hessians


@dataclass(frozen=True)
class Penalty:
    """A convex quadratic ``½·βᵀAβ - bᵀβ + c``."""

    quadratic: NDArray[np.float64]
    linear: NDArray[np.float64]
    constant: float = 0.0

    def bound(self, beta: NDArray[np.float64], gradient: NDArray[np.float64]) -> float:
        """Return how much lower an objective with this penalty can be at any ``v ≥ 0`` than at β, at most, in nats.

        With μ the least eigenvalue of A, ``F(v) ≥ F(β) + gᵀ(v - β) + ½·μ·‖v - β‖²`` (Boyd and Vandenberghe 2004,
        "Convex optimization", section 9.1.2), least where each v_m is ``max(0, β_m - g_m/μ)``. An error of ε in the
        gradient, such as scores in float32 bring, counts as ε²/μ here, and as 100·ε in `frank_wolfe_gap`. Infinite
        where μ is 0.
        """
        modulus = float(np.linalg.eigvalsh(self.quadratic)[0])
        if modulus <= 1e-9 * np.trace(self.quadratic):
            return np.inf
        step = np.maximum(-beta, -gradient / modulus)
        return float(-(gradient @ step) - 0.5 * modulus * (step @ step))

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
        passes: passes over the stack; one over a sample of it counts as its share.
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


class _Point(NamedTuple):
    """A β and the moments of likelihood and penalty there; the Hessian may be one from nearby."""

    beta: NDArray[np.float64]
    moments: Moments

    @property
    def gap(self) -> float:
        """How much lower any β within the bounds can be, at most: neither likelihood nor penalty is below 0."""
        return min(frank_wolfe_gap(self.beta, self.moments.gradient), self.moments.value)


def fit_log_linear(
    passes: Passes, penalty: Penalty | None = None, start: NDArray[np.float64] | None = None
) -> LogLinearFit:
    """Minimise a log-linear pool's mean negative log-likelihood over ``β ≥ 0, 1/T_max ≤ Σβ ≤ 1/T_min``.

    Projected Newton steps (`_descend`): first on a sample of a large stack, then on all videos. The certificate is
    computed in float64 on all videos. Among optima, the one of least norm.

    Args:
        passes: the videos, within its context.
        penalty: what is added to the likelihood.
        start: a first β; uniform weights at temperature 1 without it.

    Raises:
        InputError: scores so large that the curvature is no number.
    """
    members = len(passes.stack.members)
    added = Penalty(np.zeros((members, members)), np.zeros(members)) if penalty is None else penalty
    beta = np.full(members, 1.0 / members) if start is None else start
    large, sampled = passes.numbers > _SMALL, 0.0
    try:
        if large:
            sample = passes.sample(max(200, min(len(passes.stack) // 16, 4096)))
            beta = _descend(sample, added, beta, double=False, enough=_SAMPLE).beta
            sampled = sample.count * len(sample.stack) / len(passes.stack)
        point = _descend(passes, added, beta, double=not large)
        sure = np.log(2.0) * passes.omega[passes.omega > 0].min()
        if penalty is None and point.moments.value < sure and point.beta.sum() < 1 / T_MIN:
            # Every video's true class has more than half of the probability: a lower temperature is always better.
            point = _descend(passes, added, point.beta / (T_MIN * point.beta.sum()))
        point = _shortest(passes, added, point)
        if not point.beta.sum() > 0.5 / T_MAX:
            raise np.linalg.LinAlgError("a step led out of the bounds")
    except np.linalg.LinAlgError as error:
        raise InputError(f"the learned fit failed ({error}): {TOO_LARGE}") from error
    gap = min(point.gap, added.bound(point.beta, point.moments.gradient))
    warn_of_gap(gap)
    at_bound = point.beta.sum() >= (1 - 1e-9) / T_MIN
    return LogLinearFit(point.beta, point.moments.value, gap, passes.count + sampled, bool(at_bound))


def _descend(
    passes: Passes, penalty: Penalty, beta: NDArray[np.float64], *, double: bool = True, enough: float = -np.inf
) -> _Point:
    """Take Newton steps from β until the gap certifies it in float64, or no step makes it better.

    Each step goes to the minimum of the quadratic model within the bounds (`_newton_step`). How much a pass computes
    depends on how far away the optimum is:

    |           | far                           | near                                                         |
    |-----------|-------------------------------|--------------------------------------------------------------|
    | precision | float32, unless `double`      | float64, once the gap is below `_FINE`                       |
    | Hessian   | of every point, while a step  | held, which takes half the time; corrected by what each step |
    |           | is worth more than `_HELD`;   | shows of it (`_corrected`); computed anew where that fails   |
    |           | or the stack is small         |                                                              |

    A step leads to a point that is better if its value is less (but for rounding), or, where the step is worth too
    little for values to tell, if its gap is:

    | the point is | the Hessian was  | then                                            |
    |--------------|------------------|-------------------------------------------------|
    | better       | either           | go on from there                                |
    | not better   | held             | compute it at β, and take another step          |
    | not better   | that of β        | halve the step; end where values do not tell    |

    Args:
        passes: the videos.
        penalty: what is added to the likelihood.
        beta: the first β.
        double: whether to begin in float64.
        enough: end, uncertified, with a step that is worth less than this in nats, or than 2 % of the objective.
    """
    point = _Point(beta, penalty.add_to(passes.moments(beta, double=double), beta))
    own, stale = True, False  # whether the Hessian is that of β itself; whether to compute it anew
    length, last = 1.0, np.inf  # how much of a step to take; what the last one was worth
    for taken in range(_STEPS):
        beta, moments = point
        if stale:
            moments = penalty.add_to(passes.moments(beta, double=double), beta)
            point = _Point(beta, moments)
            own, stale, last = True, False, np.inf
        if double and point.gap <= _TARGET:
            break
        step, worth = _newton_step(point)
        if worth <= min(enough, 0.02 * moments.value):
            return _Point(beta + step, moments)
        noise = _NOISE[double] * (1 + abs(moments.value))
        if not double and (point.gap <= _FINE or not worth > noise or taken >= _ROUGH):
            double, own = True, False
        if not own and not worth <= 0.25 * last:  # steps hardly get smaller: the held Hessian is of no use
            stale = True
            continue
        if not np.isfinite(worth):
            raise np.linalg.LinAlgError("the curvature is no number")
        far = worth > _HELD * min(1.0, moments.value) or passes.numbers <= _SMALL
        tells, last = worth > _VALUE, worth
        beyond = np.maximum(beta + length * step, 0.0)
        trial = _Point(beyond, penalty.add_to(passes.moments(beyond, hessian=far, double=double), beyond))
        fall = moments.value - trial.moments.value
        better = fall >= 1e-4 * length * worth - noise if tells else trial.gap < point.gap
        if better:
            if not far:
                hessian = _corrected(_of(moments), beyond - beta, trial.moments.gradient - moments.gradient)
                trial = _Point(beyond, trial.moments._replace(hessian=hessian))
            point, own, length = trial, far, 1.0
        elif not own:
            stale = True
        elif tells and length > 1e-10:
            length *= 0.5
        else:
            break
    return point


def _corrected(
    hessian: NDArray[np.float64], step: NDArray[np.float64], change: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the Hessian nearest to this one that maps the step to the gradient's change along it.

    The BFGS update (Nocedal and Wright 2006, "Numerical Optimization", equation 6.19); the Hessian as it is where the
    change is rounding, or nothing moved.
    """
    mapped = hessian @ step
    expected, seen = float(step @ mapped), float(step @ change)
    if not (expected > 0 and 0.1 * expected < seen < 10 * expected):
        return hessian
    return hessian + np.outer(change, change) / seen - np.outer(mapped, mapped) / expected


def _newton_step(point: _Point) -> tuple[NDArray[np.float64], float]:
    """Minimise the quadratic model within the bounds; return the step, and how much it is expected to be worth."""
    beta, moments = point
    hessian = 0.5 * (_of(moments) + _of(moments).T)
    lost = np.flatnonzero(np.diag(hessian) < 0)  # in the rounding of squares of huge scores: that is what is known
    if len(lost):
        size = -np.diag(hessian)[lost]
        hessian[lost], hessian[:, lost] = 0.0, 0.0
        hessian[lost, lost] = size
    own = np.diag(hessian) + 1e5 * np.abs(moments.gradient)  # each member's: their scales may differ widely
    hessian = hessian + 1e-12 * np.diag(np.where(own > 0, own, own.sum() / len(beta) + 1e-288))
    step = solve_qp(hessian, hessian @ beta - moments.gradient, 1 / T_MAX, 1 / T_MIN, beta) - beta
    return step, float(-moments.gradient @ step - 0.5 * step @ hessian @ step)


def _shortest(passes: Passes, penalty: Penalty, point: _Point) -> _Point:
    """Return the optimum of least norm: only members whose slope is the least can share weight among optima."""
    beta, (_, gradient, _) = point
    equal = np.flatnonzero((beta > 0) | (gradient <= gradient @ beta / beta.sum() + _EQUAL))
    if len(equal) < 2:  # one member, or a gradient that is no number
        return point
    hessian = _of(point.moments)[np.ix_(equal, equal)]
    if _condition(hessian) < 1e-4:  # the Hessian may be held: whether the optimum is flat, its own one says
        hessian = _of(penalty.add_to(passes.moments(beta), beta))[np.ix_(equal, equal)]
    shortest = beta.copy()
    shortest[equal] = least_norm(beta[equal], hessian, 1 / T_MAX, 1 / T_MIN)
    if np.abs(shortest - beta).max() <= 1e-12:
        return point
    candidate = _Point(shortest, penalty.add_to(passes.moments(shortest, hessian=False), shortest))
    return candidate if candidate.gap <= max(point.gap, _TARGET) else point


def _of(moments: Moments) -> NDArray[np.float64]:
    if moments.hessian is None:
        raise TypeError("expected moments with a Hessian")
    return moments.hessian


def _condition(hessian: NDArray[np.float64]) -> float:
    """Return the smallest eigenvalue as a share of the largest.

    Example:
        >>> round(_condition(np.diag([8.0, 2.0, 4.0])), 6)
        0.25
    """
    values = np.linalg.eigvalsh(hessian)
    return float(values[0] / max(values[-1], np.finfo(np.float64).tiny))
