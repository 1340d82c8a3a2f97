"""Passes over a stack: the value, gradient and Hessian of a log-linear pool's likelihood as sums over blocks.

    N videos   │ part 0 ────────────── │ part 1 ────────────── │ …      one task for a worker
               │ block │ block │ block │ block │ block │ block │ …      (M, B, K): what the arithmetic takes at once

Parts are summed in a fixed order in float64, so that the number of workers changes nothing. Memory holds the blocks at
work, and what is kept between passes: a stack that lies in the files of a cache may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial, reduce
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import ThreadingBackend, get_active_backend
from numpy.typing import NDArray

from vidfuse._threads import one_blas_thread
from vidfuse.fusion._solver.moments import FEW, Moments, block_gradients, block_moments
from vidfuse.likelihood import block_rows
from vidfuse.stack.source import compose_rows, fill_log_likelihoods
from vidfuse.stack.stack import LogitStack

__all__ = ["Passes"]

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


class Passes:
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
        self.stack, self.labels, self.omega, self.floors, self.n_jobs = stack, labels, omega, floors, n_jobs
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
        self._context = ExitStack()
        self._over: Callable[[Callable[[_Part], Moments], Sequence[_Part]], Iterable[Moments]] = map

    def __enter__(self) -> Self:
        workers = effective_n_jobs(self.n_jobs)
        with ExitStack() as context:
            context.enter_context(one_blas_thread())
            if len(self._parts) > 1 and workers > 1:
                if type(get_active_backend(prefer="threads")[0]) is ThreadingBackend:  # and no subclass of somebody's
                    # joblib looks for results every 10 ms, which is as long as a pass may take.
                    self._over = context.enter_context(ThreadPoolExecutor(workers)).map
                else:
                    pool = context.enter_context(Parallel(n_jobs=self.n_jobs))
                    self._over = lambda run, parts: pool(delayed(run)(part) for part in parts)
            self._context = context.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.close()
        self._over = map

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
