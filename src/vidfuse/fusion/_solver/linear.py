"""The linear pool of least negative log-likelihood, from the true class's column alone, with a certificate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidfuse.fusion._solver.qp import least_norm, solve_qp, warn_of_gap

__all__ = ["LinearFit", "fit_linear"]

_ENTER = 8  # members that enter the problem at once
_RETAINED = 0.1  # the share of a video's probability that one step must leave
_TARGET = 1e-10  # nats; the promise is 1e-7, and one more Newton step costs next to nothing


@dataclass(frozen=True)
class LinearFit:
    """Weights of a linear pool, and how near to the optimum they are proved to be.

    Attributes:
        weights: (M,), on the simplex.
        nll: mean negative log-likelihood on the videos of the fit, in nats.
        gap: how much lower any weights could bring it, at most, in nats.
    """

    weights: NDArray[np.float64]
    nll: float
    gap: float


def fit_linear(log_p_true: NDArray[np.floating], sample_weight: NDArray[np.float64] | None = None) -> LinearFit:
    """Find the weights on the simplex that minimise a linear pool's negative log-likelihood.

    Minimise ``-Σ_i ω_i · log Σ_m w_m · p_im`` with ``p_im`` member m's probability of video i's true class: no other
    class matters. The problem is convex; the constraint ``Σw = 1`` is exchanged for the term ``+ Σw``, which has the
    same optimum because the objective is homogeneous in w up to a constant. Newton's method; each step solves a
    quadratic program exactly. The gap ``max_m Σ_i ω_i · p_im / p_i - 1`` bounds what is left (Frank and Wolfe 1956; for
    mixtures: Lindsay 1983, "The geometry of mixture likelihoods", theorem 4.1). Among optima, the one of least norm.

    Most of many members get no weight. The fit begins with a few, and lets in those that the gap names: a thousand
    members take a fiftieth of the time, fifty as long.

        active       fit over these ──► gap over all members ──► small: done
        few members ◄── those with a weight, and those of the largest slope ◄── not yet

    Args:
        log_p_true: log-likelihoods of the true class (N, M); `-inf` is allowed where another member is finite.
        sample_weight: ω (N,), at least 0; normalised here.

    Example:
        >>> fit = fit_linear(np.log([[0.9, 0.5], [0.2, 0.5], [0.8, 0.5]]))
        >>> fit.weights.round(4).tolist(), fit.gap < 1e-7
        ([0.6319, 0.3681], True)
    """
    n = len(log_p_true)
    omega = np.full(n, 1.0 / n) if sample_weight is None else sample_weight / sample_weight.sum()
    if not omega.all():
        log_p_true, omega = log_p_true[omega > 0], omega[omega > 0]
    log_p = np.ascontiguousarray(np.transpose(log_p_true), dtype=np.float64)
    peak = log_p.max(axis=0)
    p = np.exp(log_p - peak)  # (M, N), relative to each video's best member: p_im / max_m p_im
    active = _first_members(p, omega)
    w = np.zeros(len(p))
    w[active] = 1.0 / len(active)
    while True:
        inner = _newton(p[active], omega, w[active])
        w[:] = 0.0
        w[active] = inner
        means = p @ (omega / (inner @ p[active]))  # Σ_i ω_i p_im / p_i: 1 for members with a weight, at the optimum
        entering = np.setdiff1d(np.flatnonzero(means > 1.0 + _TARGET), active)
        if not len(entering):
            break
        entering = entering[np.argsort(-means[entering], kind="stable")[:_ENTER]]
        active = np.sort(np.concatenate([active[inner > 0], entering]))
    w, gap = _shortest(p, omega, w, means)
    warn_of_gap(gap)
    nll = float(-omega @ (np.log(w @ p) + peak))
    return LinearFit(weights=w, nll=nll, gap=max(gap, 0.0))


def _first_members(p: NDArray[np.float64], omega: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the members (M, N) to begin with: all, or of many those that add most to the uniform pool.

    All of many too where the few leave some video without any probability.
    """
    everyone = np.arange(len(p))
    if len(p) <= _ENTER:
        return everyone
    few = np.sort(np.argsort(-(p @ (omega / p.mean(axis=0))), kind="stable")[:_ENTER])
    return few if p[few].max(axis=0).all() else everyone


def _shortest(
    p: NDArray[np.float64], omega: NDArray[np.float64], w: NDArray[np.float64], means: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return the optimum of least norm, and its gap; `means` are ``Σ_i ω_i p_im / p_i`` at the optimum found."""
    gap = float(means.max() - 1.0)
    touching = np.flatnonzero((w > 0) | (means > 1.0 - 1e-7))  # members that could share weight at the same likelihood
    if len(touching) < 2:
        return w, gap
    ratio = p[touching] / (w @ p)
    hessian = (ratio * omega) @ ratio.T
    within = hessian + np.full(hessian.shape, np.trace(hessian) / len(touching))  # flat only in moves that keep the sum
    shortest = w.copy()
    shortest[touching] = least_norm(w[touching], within, -np.inf, np.inf)
    shortest /= shortest.sum()
    shortest_gap = _gap(p, shortest, omega)
    shorter = shortest @ shortest <= (1 + 1e-15) * (w @ w)
    return (shortest, shortest_gap) if shorter and shortest_gap <= max(gap, 1e-9) else (w, gap)


def _newton(p: NDArray[np.float64], omega: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find an optimum over some members (M, N), from `w`.

    A step is halved until the objective falls (Armijo's rule: Nocedal and Wright 2006, "Numerical Optimization",
    equation 3.4) and every video keeps a share of its probability, without which the quadratic model is of no use.
    """
    members = len(p)
    w = np.where(w > 0, w, 1e-3 / members)
    w = w / w.sum()
    pooled = w @ p
    value = _objective(pooled, omega, w)
    for _ in range(200):
        ratio = p / pooled
        weighted = ratio * omega
        means = weighted.sum(axis=1)
        if float(means.max() - 1.0) <= _TARGET:
            break
        hessian = weighted @ ratio.T
        proximal = hessian + 1e-13 * np.trace(hessian) * np.eye(members)
        step = solve_qp(proximal, proximal @ w - (1.0 - means), 0.0, np.inf, w) - w
        slope, length = float((1.0 - means) @ step), 1.0
        while length > 1e-10:
            candidate = w + length * step
            trial = candidate @ p
            retained = bool((trial >= _RETAINED * pooled).all())
            if retained and _objective(trial, omega, candidate) <= value + 1e-4 * length * slope + 1e-15:
                break
            length *= 0.5
        else:
            break  # no step is worth anything
        total = candidate.sum()  # scaling onto the simplex never raises the objective
        w, pooled = candidate / total, trial / total
        value = _objective(pooled, omega, w)
    return w


def _objective(pooled: NDArray[np.float64], omega: NDArray[np.float64], w: NDArray[np.float64]) -> float:
    return float(w.sum() - omega @ np.log(pooled))


def _gap(p: NDArray[np.float64], w: NDArray[np.float64], omega: NDArray[np.float64]) -> float:
    return float((p @ (omega / (w @ p))).max() - 1.0)
