"""Weights and biases per class, shrunk to weights that all classes share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from vidfuse.fusion._solver.deviations import LOWEST
from vidfuse.fusion.floors import floored_blocks
from vidfuse.likelihood import log_softmax
from vidfuse.stack.stack import LogitStack

__all__ = ["ClassFit", "fit_classes"]

_RESIDENT: Final = 1 << 27  # numbers that are kept between passes


@dataclass(frozen=True)
class ClassFit:
    """Weights per class and member, and one bias per class.

    Attributes:
        beta: (M, K).
        bias: (K,), 0 where there are no biases.
        value: mean negative log-likelihood plus penalty, in nats.
    """

    beta: NDArray[np.float64]
    bias: NDArray[np.float64]
    value: float


def fit_classes(
    stack: LogitStack,
    labels: NDArray[np.int64],
    omega: NDArray[np.float64],
    floors: NDArray[np.float64],
    shared: NDArray[np.float64],
    *,
    weight_precision: float | None,
    bias_precision: float | None,
    non_negative: bool,
    shared_precision: float = 0.0,
    scales: NDArray[np.float64] | None = None,
) -> ClassFit:
    """Fit ``log p(c) ∝ Σ_m β_mc · log p_m(c) + b_c`` by penalised maximum likelihood.

    Minimise ``NLL + ½·Σω²·(λ_w·Σ(β_mc - β_m)² + λ_b·Σ b_c²)``: priors of precision λ around the shared weights and
    around no bias; ``Σω² = 1/N`` with equal weights. L-BFGS-B (Byrd, Lu, Nocedal and Zhu 1995), streaming over blocks.
    The variables are one vector, whose parts depend on what is fitted:

        weights per class   │ β_00 β_01 … │ β_10 β_11 … │ … │ b_0 b_1 … │      β (M, K) row by row
        shared weights      │ β_0 β_1 …                       │ b_0 b_1 … │      the biases only where they are fitted

    Args:
        stack: the members.
        labels: true classes (N,).
        omega: the videos' weights (N,), which sum to 1.
        floors: each member's floor (M,).
        shared: the shared weights (M,): the centre, and the start.
        weight_precision: λ_w; None fits one weight per member, which all classes share.
        bias_precision: λ_b; None has no biases.
        non_negative: whether weights are bounded at 0.
        shared_precision: the precision of the prior on weights that all classes share, around `shared`.
        scales: what each member's log-likelihoods are multiplied by before its floor is mixed in (M,); None is 1.

    Example:
        >>> stack = LogitStack.from_arrays(np.log([[[0.6, 0.4]], [[0.4, 0.6]], [[0.6, 0.4]]]))
        >>> fit = fit_classes(stack, np.array([0, 0, 0]), np.full(3, 1 / 3), np.zeros(1), np.ones(1),
        ...                   weight_precision=1.0, bias_precision=1.0, non_negative=True)
        >>> fit.beta.shape, bool(fit.bias[0] > fit.bias[1])
        ((1, 2), True)
    """
    members, classes = len(stack.members), stack.n_classes
    per_class, biased = weight_precision is not None, bias_precision is not None
    unit = float(omega @ omega)
    lambda_w = unit * (weight_precision if weight_precision is not None else shared_precision)
    lambda_b = unit * (bias_precision or 0.0)
    size = members * classes if per_class else members
    centre = np.repeat(shared[:, None], classes, axis=1).ravel() if per_class else shared
    blocks = _Blocks(stack, floors, scales)

    def objective(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        beta = x[:size].reshape(members, -1)
        bias = x[size:] if biased else 0.0
        value, slope_beta, slope_bias = 0.0, np.zeros((members, classes)), np.zeros(classes)
        for rows, block in blocks:
            here = np.arange(block.shape[1])
            log_q = log_softmax((block * beta[:, None, :]).sum(axis=0) + bias)
            truth, share = labels[rows], omega[rows]
            value -= float(share @ log_q[here, truth])
            residual = np.exp(log_q)
            residual[here, truth] -= 1.0
            residual *= share[:, None]
            slope_beta += np.einsum("bk,mbk->mk", residual, block)
            slope_bias += residual.sum(axis=0)
        away = x[:size] - centre
        value += 0.5 * lambda_w * float(away @ away)
        gradient = (slope_beta.ravel() if per_class else slope_beta.sum(axis=1)) + lambda_w * away
        if not biased:
            return value, gradient
        value += 0.5 * lambda_b * float(x[size:] @ x[size:])
        return value, np.concatenate([gradient, slope_bias + lambda_b * x[size:]])

    start = np.concatenate([centre, np.zeros(classes if biased else 0)])
    bounds = [(0.0 if non_negative else None, None)] * size + [(None, None)] * (len(start) - size)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200})
    beta = found.x[:size].reshape(members, -1)
    return ClassFit(
        beta=np.array(np.broadcast_to(beta, (members, classes))),
        bias=found.x[size:] if biased else np.zeros(classes),
        value=float(found.fun),
    )


class _Blocks:
    """Blocks (M, B, K) of floored log-likelihoods: kept where they are few, computed anew where they are many."""

    def __init__(self, stack: LogitStack, floors: NDArray[np.float64], scales: NDArray[np.float64] | None) -> None:
        self._stack, self._floors, self._scales = stack, floors, scales
        small = int(np.prod(stack.shape)) <= _RESIDENT
        self._kept = [(rows, block.copy()) for rows, block in self._fresh()] if small else None

    def _fresh(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        for rows, block in floored_blocks(self._stack, self._floors, scales=self._scales):
            yield rows, np.maximum(block.swapaxes(0, 1), np.float32(LOWEST))

    def __iter__(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        return self._fresh() if self._kept is None else iter(self._kept)
