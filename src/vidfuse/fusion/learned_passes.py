"""Passes over a stack: the value, gradient and curvature of a log-linear pool's likelihood as sums over blocks.

A block holds each class's log-likelihood relative to the video's true class, ``a_imk = l_im(k) - l_im(y_i)``. The
pool's negative log-likelihood is ``Σ_i ω_i · log Σ_k exp(Σ_m β_m · a_imk)``: each member's own normaliser cancels, so
logits serve as they are. Blocks are summed in a fixed order in float64, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from vidfuse.cache.stack import LogitStack
from vidfuse.fusion.base import floored_blocks
from vidfuse.likelihood import block_rows

__all__ = ["Moments", "Passes", "block_moments"]

_RESIDENT: Final = 1 << 27  # numbers (512 MB of float32) up to which relative log-likelihoods are kept between passes
_PART: Final = 1 << 21  # numbers in one worker's task
_VETO: Final = -1e4  # what -inf enters a fit as: probability e^-10000 at weight 1


class Moments(NamedTuple):
    """The mean negative log-likelihood at β, its gradient (M,) and Hessian (M, M), which a cheap pass leaves None."""

    value: float
    gradient: NDArray[np.float64]
    hessian: NDArray[np.float64] | None


def block_moments(
    relative: NDArray[Any], omega: NDArray[np.float64], beta: NDArray[np.float64], *, hessian: bool = True
) -> Moments:
    """Return one block's share of the negative log-likelihood of a log-linear pool, and its derivatives.

    With ``p_ik ∝ exp(Σ_m β_m a_imk)`` and ``μ_im = Σ_k p_ik a_imk``: value ``Σ_i ω_i log Σ_k exp(Σ_m β_m a_imk)``,
    gradient ``Σ_i ω_i μ_im``, Hessian ``Σ_i ω_i (Σ_k p_ik a_imk a_ink - μ_im μ_in)``.

    Args:
        relative: a, C-contiguous (M, B, K), float32 or float64; the arithmetic runs in its precision.
        omega: the videos' weights (B,).
        beta: β (M,).
        hessian: whether to compute the Hessian.

    Example:
        >>> moments = block_moments(np.array([[[0.0, -1.0]]]), np.ones(1), np.zeros(1))
        >>> round(moments.value, 4), moments.gradient.tolist(), moments.hessian.tolist()
        (0.6931, [-0.5], [[0.25]])
    """
    members, rows, classes = relative.shape
    flat = relative.reshape(members, rows * classes)
    z = (beta.astype(relative.dtype) @ flat).reshape(rows, classes)
    peak = z.max(axis=1)
    z -= peak[:, None]
    np.exp(z, out=z)
    total = z @ np.ones(classes, dtype=z.dtype)
    value = float(omega @ (np.log(total) + peak))
    z *= (1.0 / total).astype(z.dtype)[:, None]
    if not hessian:
        z *= omega.astype(z.dtype)[:, None]
        return Moments(value, (flat @ z.reshape(-1)).astype(np.float64), None)
    weighted = relative * z
    mean = (weighted.reshape(-1, classes) @ np.ones(classes, dtype=z.dtype)).reshape(members, rows).astype(np.float64)
    weighted *= omega.astype(z.dtype)[:, None]
    second = (weighted.reshape(members, -1) @ flat.T).astype(np.float64)
    return Moments(value, mean @ omega, second - (mean * omega) @ mean.T)


@dataclass
class _Part:
    """Some consecutive videos of a stack, with what is needed to run over them; blocks are kept where told so."""

    stack: LogitStack
    labels: NDArray[np.int64]
    omega: NDArray[np.float64]
    floors: NDArray[np.float64]
    step: int
    keep: bool
    kept: list[NDArray[np.float32]] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": []}

    @property
    def unnormalised(self) -> bool:
        """Whether the scores as they are stored differ from log-likelihoods by a constant a video only."""
        logs = all(kind in ("logits", "log-likelihoods") for kind in self.stack.kinds)
        return logs and not self.floors.any() and self.stack.present is None

    def blocks(self, double: bool) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield (M, B, K) relative log-likelihoods; in double precision straight from scores where that is exact."""
        n = len(self.stack)
        slices = [slice(start, min(start + self.step, n)) for start in range(0, n, self.step)]
        if self.kept and not (double and self.unnormalised):
            for rows, block in zip(slices, self.kept, strict=True):
                yield rows, block.astype(np.float64) if double else block
            return
        kept: list[NDArray[np.float32]] = []
        for rows, block in self._fresh(slices, double):
            if self.keep and not double:
                block = block.copy()
                kept.append(block)
            yield rows, block
        if kept:
            self.kept = kept

    def _fresh(self, slices: list[slice], double: bool) -> Iterator[tuple[slice, NDArray[Any]]]:
        members, classes = len(self.stack.members), self.stack.n_classes
        if self.unnormalised:
            scores = [self.stack.scores(name) for name in self.stack.members]
            buffer = np.empty((members, self.step, classes), dtype=np.float64 if double else np.float32)
            for rows in slices:
                block = buffer[:, : rows.stop - rows.start]
                truth = self.labels[rows, None]
                for target, score in zip(block, scores, strict=True):
                    chosen = score[rows]
                    true = np.take_along_axis(chosen, truth, axis=1)
                    np.subtract(
                        chosen,
                        true,
                        out=target,
                        dtype=np.promote_types(target.dtype, chosen.dtype),
                        casting="same_kind",
                    )
                    if np.isneginf(target.min()):
                        np.maximum(target, _VETO, out=target)
                yield rows, np.ascontiguousarray(block)
            return
        for rows, block in floored_blocks(self.stack, self.floors, self.step):
            relative: NDArray[Any] = np.array(
                block.swapaxes(0, 1), dtype=np.float64 if double else np.float32, order="C"
            )
            relative -= np.take_along_axis(relative, self.labels[None, rows, None], axis=2)
            np.maximum(relative, _VETO, out=relative)
            yield rows, relative

    def moments(self, beta: NDArray[np.float64], hessian: bool, double: bool) -> Moments:
        """Return this part's share of the moments."""
        total = _zero(len(beta), hessian)
        for rows, block in self.blocks(double):
            total = _add(total, block_moments(block, self.omega[rows], beta, hessian=hessian))
        return total

    def gradients(self, beta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each video's gradient (N, M), without its weight."""
        return np.concatenate([_gradients(block, beta) for _, block in self.blocks(double=False)])


def _gradients(block: NDArray[np.float32], beta: NDArray[np.float64]) -> NDArray[np.float64]:
    z = np.tensordot(beta.astype(np.float32), block, axes=1)
    z = np.exp(z - z.max(axis=1, keepdims=True))
    z /= z.sum(axis=1, keepdims=True)
    return np.einsum("mbk,bk->bm", block, z).astype(np.float64)


def _zero(members: int, hessian: bool) -> Moments:
    return Moments(0.0, np.zeros(members), np.zeros((members, members)) if hessian else None)


def _add(a: Moments, b: Moments) -> Moments:
    hessian = None if a.hessian is None or b.hessian is None else a.hessian + b.hessian
    return Moments(a.value + b.value, a.gradient + b.gradient, hessian)


class Passes:
    """Repeated passes over one stack, on joblib's workers; use it as a context.

    Args:
        stack: members in the order of β.
        labels: true classes (N,).
        omega: the videos' weights (N,), which sum to 1.
        floors: each member's floor (M,).
        n_jobs: joblib's number of workers (threads, unless `joblib.parallel_config` says otherwise).

    Example:
        >>> stack = LogitStack.from_arrays(np.zeros((4, 2, 3)))
        >>> with Passes(stack, np.array([0, 1, 2, 0]), np.full(4, 0.25), np.zeros(2)) as passes:
        ...     round(passes.moments(np.ones(2)).value, 4)
        1.0986
    """

    def __init__(
        self,
        stack: LogitStack,
        labels: NDArray[np.int64],
        omega: NDArray[np.float64],
        floors: NDArray[np.float64],
        n_jobs: int | None = None,
    ) -> None:
        self.stack, self.labels, self.omega, self.floors, self.n_jobs = stack, labels, omega, floors, n_jobs
        numbers = len(stack.members) * stack.n_classes
        self.numbers = numbers * len(stack)
        step = block_rows(numbers)
        per_part = step * max(1, round(_PART / (step * numbers)))
        keep = self.numbers <= _RESIDENT
        self._parts = [
            _Part(stack[rows], labels[rows], omega[rows], floors, step, keep)
            for rows in (slice(start, start + per_part) for start in range(0, len(stack), per_part))
        ]
        self._context = ExitStack()
        self._pool: Parallel | None = None
        self.count = 0.0

    def __enter__(self) -> Self:
        self._context.enter_context(threadpool_limits(1, user_api="blas"))
        if len(self._parts) > 1 and effective_n_jobs(self.n_jobs) > 1:
            self._pool = self._context.enter_context(Parallel(n_jobs=self.n_jobs, prefer="threads"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.close()
        self._pool = None

    def sample(self, rows: int) -> Passes:
        """Return passes over about this many videos, spread evenly over the stack."""
        chosen = np.unique(np.linspace(0, len(self.stack) - 1, rows).round().astype(np.int64))
        omega = self.omega[chosen]
        share = omega.sum()
        if share <= 0:
            return self
        return Passes(self.stack[chosen], self.labels[chosen], omega / share, self.floors, self.n_jobs)

    def moments(self, beta: NDArray[np.float64], *, hessian: bool = True, double: bool = True) -> Moments:
        """Return value, gradient and (on request) Hessian at β, in float32 arithmetic or in float64."""
        self.count += 1
        if self._pool is None:
            shares = [part.moments(beta, hessian, double) for part in self._parts]
        else:
            shares = self._pool(delayed(_Part.moments)(part, beta, hessian, double) for part in self._parts)
        total = _zero(len(beta), hessian)
        for share in shares:
            total = _add(total, share)
        return total

    def gradients(self, beta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each video's gradient (N, M) at β: what a bootstrap of the weights resamples."""
        return np.concatenate([part.gradients(beta) for part in self._parts])
