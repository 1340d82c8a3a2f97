"""Deviations of a class's weights and its bias from shared weights: second order, streaming, with a certificate.

The pool is ``log p(c) ∝ z_c = Σ_m (β_m + δ_mc)·a_mc + b_c`` with a the members' log-likelihoods and β given. Since z_c
depends on the parameters of class c alone, the Hessian's blocks on the diagonal, one for each class, hold most of it.
A block of videos lies in memory as one matrix a class, of a row for each member and a column for each video, so that
what is done for each video runs along memory:

              │ a_0    │
              │ …      │
    class 0   │ a_M-1  │   B columns, one a video; (δ_00 … δ_M-1,0, b_0, 1) times it: z_0
              │ 1      │
              │ Σβ·a   │
    class 1   │ …      │   likewise
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vidfuse.fusion._solver.passes import Workers
from vidfuse.fusion._solver.shared import FitVideos
from vidfuse.fusion.floors import floored_blocks
from vidfuse.likelihood import block_rows

__all__ = ["LOWEST", "ClassVideos", "Deviations", "fit_deviations"]

LOWEST: Final = -100.0
"""What a log-likelihood of -inf enters weights per class as, in nats."""

_RESIDENT: Final = 1 << 27  # numbers (512 MB of float32) up to which blocks are kept between passes
_BLOCK: Final = 1 << 20  # numbers in a block
_MEMORY: Final = 10  # steps that L-BFGS remembers
_RENEWAL: Final = 12  # steps after which the Hessian's blocks are computed anew
_STEPS: Final = 100
_HALVINGS: Final = 20
_FINE: Final = 1e-4  # nats; larger gaps are told by float32 to a hundredth of themselves
_NOISE: Final = {False: 2e-7, True: 1e-15}  # share of a value that is rounding, in float32 and in float64 (`double`)


class _Moments(NamedTuple):
    """The mean negative log-likelihood, its gradient (K, M + 1), and its Hessian's blocks (K, M + 1, M + 1)."""

    value: float
    gradient: NDArray[np.float64]
    blocks: NDArray[np.float64] | None


@dataclass(frozen=True)
class Deviations:
    """What a fit found.

    Attributes:
        parameters: (K, M + 1): a class's deviations δ_mc, and its bias b_c in the last column.
        gap: how much lower the objective could be, at most, in nats.
    """

    parameters: NDArray[np.float64]
    gap: float


class ClassVideos(Workers):
    """The videos of a fit, laid out by class; use it as a context.

    Blocks are kept where they are few, and computed anew in every pass where they are many.

    Args:
        videos: the videos; their scales and floors are applied.
        shared: β (M,).
        offsets: what is added to each class's score (K,); -inf leaves a class out. None adds nothing.
    """

    def __init__(
        self, videos: FitVideos, shared: NDArray[np.float64], offsets: NDArray[np.float64] | None = None
    ) -> None:
        self.videos, self.shared, self.offsets = videos, shared, offsets
        rows, members, classes = videos.stack.shape
        self.shape = (classes, members + 1)
        step = block_rows((members + 2) * classes, _BLOCK)
        self._rows = [slice(start, min(start + step, rows), 1) for start in range(0, rows, step)]
        self._kept: list[NDArray[np.float32]] | None = None
        super().__init__(len(self._rows), videos.n_jobs)

    def __enter__(self) -> Self:
        super().__enter__()
        if len(self.videos.labels) * self.shape[0] * (self.shape[1] + 1) <= _RESIDENT:
            self._kept = list(self._over(self._block, self._rows))
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__()
        self._kept = None

    def moments(self, x: NDArray[np.float64], *, blocks: bool = False, double: bool = False) -> _Moments:
        """Return value, gradient and (on request) the Hessian's blocks at parameters (K, M + 1)."""
        run = partial(self._moments, x=x, blocks=blocks, double=double)
        shares = list(self._over(run, range(len(self._rows))))
        total = None if not blocks else np.sum([share.blocks for share in shares], axis=0)
        return _Moments(sum(s.value for s in shares), np.sum([s.gradient for s in shares], axis=0), total)

    def log_true(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each video's log-likelihood of its true class (N,) at parameters (K, M + 1)."""

        def of(index: int) -> NDArray[np.float64]:
            z, truth = self._scores(index, x, double=False)
            peak = z.max(axis=0)
            return np.asarray(z[truth, np.arange(z.shape[1])] - peak - np.log(np.exp(z - peak).sum(axis=0)))

        return np.concatenate(list(self._over(of, range(len(self._rows)))))

    def _block(self, rows: slice) -> NDArray[np.float32]:
        """Return the matrices of these videos (K, M + 2, B)."""
        own, (classes, columns) = self.videos, self.shape
        block = np.ones((classes, columns + 1, rows.stop - rows.start), dtype=np.float32)
        for part, log_p in floored_blocks(own.stack[rows], own.floors, scales=own.scales):
            np.maximum(log_p, np.float32(LOWEST), out=log_p)
            block[:, :-2, part] = log_p.transpose(2, 1, 0)
        with np.errstate(invalid="ignore"):  # float32 products may raise the flag for numbers beyond their end
            np.matmul(self.shared.astype(np.float32), block[:, :-2], out=block[:, -1])
        if self.offsets is not None:
            block[:, -1] += np.maximum(self.offsets, -1e4)[:, None].astype(np.float32)
        return block

    def _get(self, index: int, double: bool) -> NDArray[Any]:
        block = self._block(self._rows[index]) if self._kept is None else self._kept[index]
        return block.astype(np.float64) if double else block

    def _scores(self, index: int, x: NDArray[np.float64], double: bool) -> tuple[NDArray[Any], NDArray[np.int64]]:
        block = self._get(index, double)
        full = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(block.dtype)
        with np.errstate(invalid="ignore"):  # matrix products of odd sizes raise the flag for numbers beyond their end
            return np.matmul(full[:, None, :], block)[:, 0], self.videos.labels[self._rows[index]]

    def _moments(self, index: int, x: NDArray[np.float64], blocks: bool, double: bool) -> _Moments:
        block, omega = self._get(index, double), self.videos.omega[self._rows[index]]
        z, truth = self._scores(index, x, double)
        here = np.arange(z.shape[1])
        peak = z.max(axis=0)
        height = (peak - z[truth, here]).astype(np.float64)
        z -= peak
        np.exp(z, out=z)
        total = z.sum(axis=0)
        value = float(omega @ (np.log(total.astype(np.float64)) + height))
        share, inner, own = omega.astype(z.dtype), block[:, :-1], None
        if blocks:  # Σ_i ω_i p_ic (1 - p_ic) a_i a_iᵀ of each class
            curvature = z / total
            curvature *= (1 - curvature) * share
            with np.errstate(invalid="ignore"):
                own = np.matmul(inner * curvature[:, None], inner.swapaxes(1, 2)).astype(np.float64)
        z *= share / total
        z[truth, here] -= share
        with np.errstate(invalid="ignore"):
            gradient = np.matmul(inner, z[:, :, None])[:, :, 0].astype(np.float64)
        return _Moments(value, gradient, own)


def fit_deviations(
    videos: ClassVideos,
    precision: NDArray[np.float64],
    start: NDArray[np.float64] | None = None,
    target: float = 5e-8,
    *,
    tied: bool = False,
) -> Deviations:
    """Minimise ``NLL + ½·Σ_c (Σ_m π_m·δ_mc² + π_M·b_c²)``, π the precisions of the priors.

    L-BFGS (Nocedal and Wright 2006, "Numerical optimization", algorithm 7.4) whose first matrix is the inverse of the
    Hessian's blocks, at the start and again after twelve steps: some ten passes, in float32, and in float64 once
    rounding is all that is left. The objective F is strongly convex with modulus π, so that
    ``F(x) - min F ≤ ½·Σ g²/π`` with g its gradient at x (Boyd and Vandenberghe 2004, "Convex optimization", section
    9.1.2, in the norm of π): the certificate, computed in float64 unless a gap of 1e-4 nats or more is enough.

    Args:
        videos: the videos, within their context.
        precision: π (M + 1,), above 0; the last one is the biases'.
        start: the first parameters (K, M + 1); 0 without them.
        target: the gap at which the fit ends, in nats.
        tied: whether all classes have the same deviations, of which each counts once in the penalty, and only biases
            of their own.
    """
    x = np.zeros(videos.shape) if start is None else start
    if tied:
        precision = np.append(precision[:-1] / len(x), precision[-1])  # K equal terms are one

    def penalised(x: NDArray[np.float64], *, blocks: bool = False, double: bool = False) -> _Moments:
        found = _penalised(videos.moments(x, blocks=blocks, double=double), x, precision)
        return _tied(found) if tied else found

    double, steps = False, list[tuple[NDArray[np.float64], NDArray[np.float64]]]()
    for taken in range(_STEPS):
        if taken % _RENEWAL == 0 and not double:
            value, gradient, blocks = penalised(x, blocks=True)
            inverse = np.linalg.inv((0.0 if blocks is None else blocks) + np.diag(precision)).astype(np.float64)
            steps.clear()
        done = _gap(gradient, precision) <= (target if double else 0.5 * target)
        if not done:
            direction = -_two_loops(gradient, inverse, steps)
            slope, length = float((direction * gradient).sum()), 1.0
            noise = _NOISE[double] * (1 + abs(value))
            for _ in range(_HALVINGS):
                beyond = x + length * direction
                trial = penalised(beyond, double=double)
                if trial.value <= value + 1e-4 * length * slope + noise:
                    break
                length *= 0.5
            done = -slope <= noise and _gap(trial.gradient, precision) >= _gap(gradient, precision)
        if done and (double or target >= _FINE):
            break
        if done:  # all that is left is rounding in float32
            double = True
            value, gradient, _ = penalised(x, double=True)
            continue
        change = trial.gradient - gradient
        if float((change * (beyond - x)).sum()) > 0:
            steps.append((beyond - x, change))
            del steps[:-_MEMORY]
        x, value, gradient = beyond, trial.value, trial.gradient
    if not double and target < _FINE:
        gradient = penalised(x, double=True).gradient
    return Deviations(x, _gap(gradient, precision))


def _penalised(moments: _Moments, x: NDArray[np.float64], precision: NDArray[np.float64]) -> _Moments:
    value = moments.value + 0.5 * float((precision * x * x).sum())
    return moments._replace(value=value, gradient=moments.gradient + precision * x)


def _tied(moments: _Moments) -> _Moments:
    """Return the moments within the space of equal deviations: every class moves with the mean of all."""
    gradient, blocks = moments.gradient.copy(), moments.blocks
    gradient[:, :-1] = gradient[:, :-1].mean(axis=0)
    if blocks is not None:
        bias = blocks[:, -1, -1].copy()
        blocks = np.broadcast_to(blocks.mean(axis=0), blocks.shape).copy()
        blocks[:, -1], blocks[:, :, -1], blocks[:, -1, -1] = 0.0, 0.0, bias
    return moments._replace(gradient=gradient, blocks=blocks)


def _gap(gradient: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    return 0.5 * float((gradient * gradient / precision).sum())


def _two_loops(
    gradient: NDArray[np.float64],
    inverse: NDArray[np.float64],
    steps: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> NDArray[np.float64]:
    """Return the inverse Hessian times the gradient, as L-BFGS knows it: blocks, corrected by the last steps."""
    q, shares = gradient, []
    for step, change in reversed(steps):
        share = float((step * q).sum()) / float((step * change).sum())
        shares.append(share)
        q = q - share * change
    q = np.matmul(inverse, q[:, :, None])[:, :, 0]
    for (step, change), share in zip(steps, reversed(shares), strict=True):
        q = q + (share - float((change * q).sum()) / float((step * change).sum())) * step
    return q
