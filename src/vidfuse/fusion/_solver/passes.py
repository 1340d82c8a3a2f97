"""Passes over a stack: the value, gradient and Hessian of a log-linear pool's likelihood as sums over blocks.

    N videos   │ part 0 ────────────── │ part 1 ────────────── │ …      one task for a worker
               │ block │ block │ block │ block │ block │ block │ …      (M, B, K): what the arithmetic takes at once

Parts are summed in a fixed order in float64, so that the number of workers changes nothing. Memory holds the blocks at
work, and what is kept between passes: a stack that lies in the files of a cache may be larger than memory.

The pool's mean negative log-likelihood is ``Σ_i ω_i (log Σ_k exp z_ik - z_iy)`` with ``z_ik = Σ_m β_m a_imk``. What a
member adds to all classes of a video cancels, so logits serve as they are. A block lies in memory as

    a[m, i, k]   member 0 │ video 0: a a … a │ video 1: a a … a │ …        M rows of B·K numbers, C-contiguous
                 member 1 │ video 0: a a … a │ video 1: a a … a │ …
    z = β·a               │ video 0: z z … z │ video 1: z z … z │ …        one such row
    truth                              ↑ 0·K + y_0      ↑ 1·K + y_1        where the true classes stand in a row
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, Final, NamedTuple, Self

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import ThreadingBackend, get_active_backend
from numpy.typing import NDArray

from vidfuse._threads import one_blas_thread
from vidfuse.likelihood import block_rows
from vidfuse.stack.source import compose_rows, fill_log_likelihoods
from vidfuse.stack.stack import LogitStack

__all__ = ["FEW", "Moments", "Passes", "Workers", "block_gradients", "block_moments"]

_PIECE: Final = 1 << 14  # numbers of a row that one matrix product sums: all members' pieces fit the CPU cache
FEW: Final = 16  # members up to which matrix-vector products are faster than one matrix product


class Moments(NamedTuple):
    """The mean negative log-likelihood at β, its gradient (M,), and its Hessian (M, M) where that was asked for."""

    value: float
    gradient: NDArray[np.float64]
    hessian: NDArray[np.float64] | None

    def plus(self, other: Moments) -> Moments:
        """Return the moments of the videos of both."""
        hessian = None if self.hessian is None or other.hessian is None else self.hessian + other.hessian
        return Moments(self.value + other.value, self.gradient + other.gradient, hessian)


@np.errstate(invalid="ignore", over="ignore")  # matrix products raise the flag for numbers beyond their end
def block_moments(
    scores: NDArray[Any],
    labels: NDArray[np.int64],
    omega: NDArray[np.float64],
    beta: NDArray[np.float64],
    *,
    hessian: bool = True,
) -> Moments:
    """Return one block's share of the negative log-likelihood of a log-linear pool, and its derivatives.

    With ``p_ik ∝ exp z_ik`` and ``μ_im = Σ_k p_ik a_imk``: value ``Σ_i ω_i (log Σ_k exp z_ik - z_iy)``, gradient
    ``Σ_i ω_i (μ_im - a_imy)``, Hessian ``Σ_i ω_i (Σ_k p_ik a_imk a_ink - μ_im μ_in)``: the moments of an exponential
    family whose statistics are the scores (Wainwright and Jordan 2008, "Graphical models, exponential families, and
    variational inference", proposition 3.1).

    The second moment is computed in one of two ways, whichever is faster for the number of members:

        M ≤ 16   Σ (p·a) aᵀ        one matrix-vector product per member
        M > 16   Σ (√p·a)(√p·a)ᵀ   matrix products of pieces that fit the CPU cache

    Args:
        scores: a, C-contiguous (M, B, K), float32 or float64; the arithmetic runs in its precision.
        labels: true classes y (B,).
        omega: the videos' weights (B,).
        beta: β (M,).
        hessian: whether to compute the Hessian.

    Example:
        >>> moments = block_moments(np.array([[[0.0, -1.0]]]), np.zeros(1, dtype=int), np.ones(1), np.zeros(1))
        >>> round(moments.value, 4), moments.gradient.tolist(), moments.hessian.tolist()
        (0.6931, [-0.5], [[0.25]])
    """
    members, rows, classes = scores.shape
    flat, ones = scores.reshape(members, rows * classes), np.ones(classes, dtype=scores.dtype)
    flat_z = beta.astype(scores.dtype) @ flat
    z, truth = flat_z.reshape(rows, classes), np.arange(0, rows * classes, classes) + labels
    peak = z.max(axis=1)
    height = (peak - flat_z[truth]).astype(np.float64)
    z -= peak[:, None]
    np.exp(z, out=z)
    total = z @ ones
    value = float(omega @ (np.log(total.astype(np.float64)) + height))
    weight = omega.astype(z.dtype)
    z *= (weight / total)[:, None]  # from here on ω_i p_ik
    if not hessian:
        flat_z[truth] -= weight  # before the sums, which then lose nothing to cancellation
        return Moments(value, _sums_over_classes(scores, z).sum(axis=0, dtype=np.float64), None)
    if members > FEW:
        mean = _sums_over_classes(scores, z).T.astype(np.float64)
        second = _square((scores * np.sqrt(z, out=z)).reshape(members, rows * classes))
    else:
        weighted = (scores * z).reshape(members * rows, classes)
        mean = (weighted @ ones).reshape(members, rows).astype(np.float64)
        second = _products(weighted.reshape(members, rows * classes), flat)
    share = np.divide(1.0, omega, out=np.zeros_like(omega), where=omega > 0)
    gradient = mean.sum(axis=1) - flat[:, truth] @ omega
    return Moments(value, gradient, second - (mean * share) @ mean.T)  # mean is ω_i μ_im


def _sums_over_classes(scores: NDArray[Any], z: NDArray[Any]) -> NDArray[Any]:
    """Return ``Σ_k z_ik a_imk`` (B, M): short sums, so that float32 keeps its digits."""
    return np.asarray(np.matmul(scores.transpose(1, 0, 2), z[:, :, None])[:, :, 0])


def _products(weighted: NDArray[Any], flat: NDArray[Any]) -> NDArray[np.float64]:
    """Return the symmetric ``weighted @ flat.T`` of few long rows."""
    members = len(flat)
    result = np.empty((members, members))
    for m in range(members):
        result[m, : m + 1] = result[: m + 1, m] = flat[: m + 1] @ weighted[m]
    return result


def _square(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return ``rows @ rows.T`` of many long rows, summed in float64 over pieces."""
    total = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], _PIECE):
        piece = rows[:, start : start + _PIECE]
        total += piece @ piece.T
    return total


@np.errstate(invalid="ignore", over="ignore")
def block_gradients(
    scores: NDArray[np.float64], labels: NDArray[np.int64], beta: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return each video's gradient (B, M), without its weight: `block_moments` sums them.

    Example:
        >>> block_gradients(np.array([[[0.0, -1.0]]]), np.zeros(1, dtype=int), np.zeros(1)).tolist()
        [[-0.5]]
    """
    z = np.tensordot(beta, scores, axes=1)
    z = np.exp(z - z.max(axis=1, keepdims=True))
    z /= z.sum(axis=1, keepdims=True)
    z[np.arange(len(z)), labels] -= 1.0
    return _sums_over_classes(scores, z)


_RESIDENT: Final = 1 << 27  # numbers (512 MB of float32) up to which log-likelihoods are kept between passes
_PART: Final = 1 << 21  # numbers in one worker's task
_BLOCK: Final = 1 << 16  # numbers in a block: what is computed of one lies in the CPU cache, and in memory used before
_LONG: Final = 1 << 19  # the same of many members, whose matrix products want long rows
_VETO: Final = -1e4  # what -inf enters a fit as: probability e^-10000 at weight 1


@dataclass
class _Part:
    """Some consecutive videos of a stack, with what is needed to run over them.

    What its blocks hold, up to a constant for each video and member:

    | members                      | blocks                                | between passes            |
    |------------------------------|---------------------------------------|---------------------------|
    | logits, without floors       | the scores as stored, times the scale | nothing is kept           |
    | probabilities, or with floor | log-likelihoods less the true class's | `kept`, if `keep` says so |

    A score of -inf becomes the true class's less 10,000 nats. Stored scores seldom hold it: the first pass looks, and
    later ones only if it found some.
    """

    stack: LogitStack
    labels: NDArray[np.int64]
    omega: NDArray[np.float64]
    floors: NDArray[np.float64]
    scales: NDArray[np.float64]
    step: int
    as_stored: bool
    keep: bool
    kept: list[NDArray[np.float32]] = field(default_factory=list)
    vetoes: bool | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": []}

    def moments(self, beta: NDArray[np.float64], hessian: bool, double: bool) -> Moments:
        """Return this part's share of the moments."""
        with np.errstate(invalid="ignore", over="ignore"):
            shares = [
                block_moments(block, self.labels[rows], self.omega[rows], beta, hessian=hessian)
                for rows, block in self.blocks(double)
            ]
        return reduce(Moments.plus, shares)

    def gradients(self, beta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each video's gradient (N, M), without its weight."""
        shares = [block_gradients(block, self.labels[rows], beta) for rows, block in self.blocks(double=True)]
        return np.concatenate(shares)

    def blocks(self, double: bool) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield rows and a C-contiguous block (M, B, K) in the precision asked for; the next one may overwrite it."""
        n, members = len(self.labels), self.stack.sources()
        classes = members[0].source.shape[-1]
        dtype = np.float64 if double else np.float32
        buffer, met = np.empty(len(members) * min(self.step, n) * classes, dtype=dtype), False
        for place, start in enumerate(range(0, n, self.step)):
            rows = slice(start, min(start + self.step, n), 1)
            shape = (len(members), rows.stop - rows.start, classes)
            block: NDArray[Any] = buffer[: np.prod(shape)].reshape(shape)
            if place < len(self.kept):  # from an earlier pass
                block = self.kept[place].astype(dtype, copy=False)
            elif self.as_stored:
                for own, member, scale in zip(block, members, self.scales.tolist(), strict=True):
                    scores = member.source.take(compose_rows(member.rows, rows))
                    if scale == 1:
                        np.copyto(own, scores, casting="same_kind")
                    else:
                        np.multiply(scores, scale, out=own, dtype=own.dtype, casting="same_kind")
                if self.vetoes is not False and block.min() == -np.inf:
                    met = True
                    true = np.take_along_axis(block, self.labels[None, rows, None], axis=2)
                    np.copyto(block, true + dtype(_VETO), where=np.isneginf(block))
            else:
                logs = np.empty(shape, dtype=np.float32)
                for own, member, floor, scale in zip(logs, members, self.floors, self.scales, strict=True):
                    scores = member.source.take(compose_rows(member.rows, rows))
                    fill_log_likelihoods(scores, member.kind, own, float(scale), float(floor))
                logs -= np.take_along_axis(logs, self.labels[None, rows, None], axis=2)
                np.maximum(logs, _VETO, out=logs)
                if self.keep:
                    self.kept.append(logs)
                block = logs.astype(dtype, copy=False)
            yield rows, block
        self.vetoes = met


class Workers:
    """What has a pass's tasks done by several workers, from `with` to its end; outside of it, one after another.

    Args:
        tasks: how many tasks a pass has; more than one are shared.
        n_jobs: joblib's number of workers.
        anywhere: whether tasks may go to the processes and machines of joblib's backend, or to threads alone.
    """

    def __init__(self, tasks: int, n_jobs: int | None, *, anywhere: bool = False) -> None:
        self._tasks, self.n_jobs, self._anywhere = tasks, n_jobs, anywhere
        self._over: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]] = map
        self._context = ExitStack()

    def __enter__(self) -> Self:
        workers = effective_n_jobs(self.n_jobs)
        with ExitStack() as context:
            context.enter_context(one_blas_thread())
            if self._tasks > 1 and workers > 1:
                threads = type(get_active_backend(prefer="threads")[0]) is ThreadingBackend  # and no subclass of one
                if threads or not self._anywhere:
                    # joblib looks for results every 10 ms, which is as long as a pass may take.
                    self._over = context.enter_context(ThreadPoolExecutor(workers)).map
                else:
                    pool = context.enter_context(Parallel(n_jobs=self.n_jobs))
                    self._over = lambda run, parts: pool(delayed(run)(part) for part in parts)
            self._context = context.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.close()
        self._over = map


class Passes(Workers):
    """Repeated passes over one stack, on joblib's workers; use it as a context.

    Args:
        stack: members in the order of β, of which every one has every video.
        labels: true classes (N,).
        omega: the videos' weights (N,), which sum to 1.
        floors: each member's floor (M,).
        n_jobs: joblib's number of workers (threads, unless `joblib.parallel_config` says otherwise).
        scales: what each member's scores are multiplied by before its floor is mixed in (M,); by default 1.

    Attributes:
        numbers: N × M × K.
        count: how many passes were run.

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
        scales: NDArray[np.float64] | None = None,
    ) -> None:
        self.stack, self.labels, self.omega, self.floors = stack, labels, omega, floors
        self.scales = np.ones(len(stack.members)) if scales is None else scales
        per_video = len(stack.members) * stack.n_classes
        self.numbers, self.count = per_video * len(stack), 0
        as_stored = not floors.any() and all(kind in ("logits", "log-likelihoods") for kind in stack.kinds)
        step = block_rows(per_video, _BLOCK if len(stack.members) <= FEW else _LONG)
        rows_of_part = step * max(1, round(_PART / (step * per_video)))
        self._parts = []
        scores = LogitStack(stack.sources())  # a worker needs no ids, of which a part has as many bytes as of paths
        for start in range(0, len(stack), rows_of_part):
            rows = slice(start, start + rows_of_part)
            keep = self.numbers <= _RESIDENT
            self._parts.append(
                _Part(scores[rows], labels[rows], omega[rows], floors, self.scales, step, as_stored, keep)
            )
        super().__init__(len(self._parts), n_jobs, anywhere=True)

    def sample(self, rows: int) -> Passes:
        """Return passes over about this many of the videos with a weight, spread evenly over the stack."""
        weighted = np.flatnonzero(self.omega > 0)
        chosen = weighted[np.unique(np.linspace(0, len(weighted) - 1, rows).round().astype(np.int64))]
        omega = self.omega[chosen]
        return Passes(self.stack[chosen], self.labels[chosen], omega / omega.sum(), self.floors, 1, self.scales)

    def moments(self, beta: NDArray[np.float64], *, hessian: bool = True, double: bool = True) -> Moments:
        """Return value, gradient and (on request) Hessian at β, in float64 arithmetic or in float32."""
        self.count += 1
        run = partial(_Part.moments, beta=beta, hessian=hessian, double=double)
        return reduce(Moments.plus, self._over(run, self._parts))

    def gradients(self, beta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each video's gradient (N, M) at β: what a bootstrap of the weights resamples."""
        return np.concatenate([part.gradients(beta) for part in self._parts])
