"""Passes over a stack: the value, gradient and curvature of a log-linear pool's likelihood as sums over blocks.

Blocks are summed in a fixed order in float64, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import ThreadingBackend, get_active_backend
from numpy.typing import NDArray

from vidfuse._threads import one_blas_thread
from vidfuse.fusion._solver.moments import Memory, Moments, Workspace, block_gradients, block_moments, rows_of
from vidfuse.fusion.floors import floored_blocks
from vidfuse.fusion.weights import true_scores
from vidfuse.likelihood import block_rows
from vidfuse.stack.source import ArraySource
from vidfuse.stack.stack import LogitStack, Member

__all__ = ["Passes"]

_RESIDENT: Final = 1 << 27  # numbers (512 MB of float32) up to which relative log-likelihoods are kept between passes
_PART: Final = 1 << 21  # numbers in one worker's task
_BLOCK: Final = 1 << 20  # numbers in a block: smaller ones cost more in calls than they gain in cache
_FAR: Final = 32.0  # nats; true classes' scores beyond this are taken off, so that rounding spares what differs
_HUGE: Final = 1e8  # nats; a true class's score that would take the others' differences with it stays where it is
_VETO: Final = -1e4  # what -inf enters a fit as: probability e^-10000 at weight 1


@dataclass
class _Part:
    """Some consecutive videos of a stack, with what is needed to run over them; blocks are kept where told so."""

    stack: LogitStack
    labels: NDArray[np.int64]
    omega: NDArray[np.float64]
    floors: NDArray[np.float64]
    step: int
    keep: bool
    memory: Memory
    kept: list[NDArray[np.float32]] = field(default_factory=list)
    true: NDArray[np.float64] | None = None
    vetoes: bool = False  # whether a score of -inf was met: then they are looked for at once

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": [], "true": None}

    @property
    def unnormalised(self) -> bool:
        """Whether the scores as they are stored differ from log-likelihoods by a constant a video only."""
        logs = all(kind in ("logits", "log-likelihoods") for kind in self.stack.kinds)
        return logs and not self.floors.any() and self.stack.present is None

    def blocks(
        self, double: bool, work: Workspace, chosen: NDArray[np.intp] | None
    ) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield rows and (M, B, K) log-likelihoods, up to a constant for each video and member.

        Logits are taken as they are stored, unless their size would round away what matters of them.
        """
        n = len(self.stack)
        slices = [slice(start, min(start + self.step, n)) for start in range(0, n, self.step)]
        if self.unnormalised:
            yield from self._from_scores(slices, work.scores, chosen)
        else:
            for rows, block in self._relative(slices, chosen):
                if double or not block.flags.c_contiguous:
                    own = rows_of(work.scores, rows.stop - rows.start)
                    np.copyto(own, block)
                    block = own
                yield rows, block

    def _from_scores(
        self, slices: list[slice], buffer: NDArray[Any], chosen: NDArray[np.intp] | None
    ) -> Iterator[tuple[slice, NDArray[Any]]]:
        if self.true is None:
            self.true = true_scores(self.stack, self.labels)
        columns = np.arange(len(self.true)) if chosen is None else chosen
        scores = [self.stack.pieces(m) for m in columns.tolist()]
        true = self.true[columns]
        relative = np.abs(true).max() > _FAR
        true = np.where(np.abs(true) < _HUGE, true, 0.0)
        for rows in slices:
            block, origin = rows_of(buffer, rows.stop - rows.start), true[:, rows, None]
            for own, pieces, at in zip(block, scores, origin, strict=True):
                for place, stored in _within(pieces, rows):
                    if relative:  # in the wider precision of the two: float16 would overflow, float32 round
                        wide = np.promote_types(stored.dtype, block.dtype)
                        np.subtract(stored, at[place].astype(wide), out=own[place], dtype=wide, casting="same_kind")
                    else:
                        own[place] = stored
            if self.vetoes:
                _replace_vetoes(block, self.labels[rows])
            yield rows, block

    def _relative(
        self, slices: list[slice], chosen: NDArray[np.intp] | None
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield rows and log-likelihoods (M, B, K) relative to the true class, kept from the first time where told."""
        if not self.keep:
            yield from self._compute(chosen)
            return
        if not self.kept:
            members, classes = len(self.stack.members), self.stack.n_classes
            memory = np.empty(members * len(self.stack) * classes, dtype=np.float32)  # one piece: few page faults
            for rows, block in self._compute(None):
                inner = memory[rows.start * members * classes : rows.stop * members * classes]
                self.kept.append(inner.reshape(block.shape))
                np.copyto(self.kept[-1], block)
        for rows, block in zip(slices, self.kept, strict=True):
            yield rows, block if chosen is None else block[chosen]

    def _compute(self, chosen: NDArray[np.intp] | None) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        stack, floors = self.stack, self.floors
        if chosen is not None:
            stack, floors = stack.select([stack.members[m] for m in chosen]), floors[chosen]
        for rows, block in floored_blocks(stack, floors, self.step):
            relative = block.swapaxes(0, 1)
            relative -= np.take_along_axis(relative, self.labels[None, rows, None], axis=2)
            np.maximum(relative, _VETO, out=relative)
            yield rows, relative

    def moments(
        self, beta: NDArray[np.float64], hessian: bool, double: bool, chosen: NDArray[np.intp] | None
    ) -> Moments:
        """Return this part's share of the moments."""
        total = Moments.zero(len(beta), hessian)
        with self._workspace(len(beta), np.float64 if double else np.float32) as work:
            for rows, block in self.blocks(double, work, chosen):
                run = partial(
                    block_moments, block, self.labels[rows], self.omega[rows], beta, hessian=hessian, work=work
                )
                share = run()
                if self._met_vetoes(share.gradient, block, rows):
                    share = run()
                total = total.plus(share)
        return total

    def gradients(self, beta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each video's gradient (N, M), without its weight."""
        shares = []
        with self._workspace(len(beta), np.float64) as work:
            for rows, block in self.blocks(True, work, None):
                share = block_gradients(block, self.labels[rows], beta)
                if self._met_vetoes(share, block, rows):
                    share = block_gradients(block, self.labels[rows], beta)
                shares.append(share)
        return np.concatenate(shares)

    @contextmanager
    def _workspace(self, members: int, dtype: type[np.float32] | type[np.float64]) -> Iterator[Workspace]:
        shape = (members, min(self.step, len(self.stack)), self.stack.n_classes)
        with self.memory.lend(Workspace.size(shape, dtype)) as piece, np.errstate(invalid="ignore", over="ignore"):
            yield Workspace(shape, dtype, piece)

    def _met_vetoes(self, gradient: NDArray[np.float64], block: NDArray[Any], rows: slice) -> bool:
        """Replace the block's scores of -inf, and say whether there are any: they make its gradient NaN.

        To look for them in every block takes longer than to run again over those that have some.
        """
        if np.isfinite(gradient).all() or not _replace_vetoes(block, self.labels[rows]):
            return False
        self.vetoes = True
        return True


def _replace_vetoes(block: NDArray[Any], labels: NDArray[np.int64]) -> bool:
    """Give scores of -inf in a block (M, B, K) the least probability that a fit knows; say whether there are any."""
    vetoes = np.isneginf(block)
    if not vetoes.any():
        return False
    np.copyto(block, np.take_along_axis(block, labels[None, :, None], axis=2) + block.dtype.type(_VETO), where=vetoes)
    return True


def _within(pieces: list[NDArray[Any]], rows: slice) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield what of consecutive pieces lies within these rows, and where."""
    start = 0
    for piece in pieces:
        stop = start + len(piece)
        low, high = max(rows.start, start), min(rows.stop, stop)
        if low < high:
            yield slice(low - rows.start, high - rows.start), piece[low - start : high - start]
        start = stop


class Passes:
    """Repeated passes over one stack, on joblib's workers; use it as a context.

    Args:
        stack: members in the order of β.
        labels: true classes (N,).
        omega: the videos' weights (N,), which sum to 1.
        floors: each member's floor (M,).
        n_jobs: joblib's number of workers (threads, unless `joblib.parallel_config` says otherwise).
        true: the members' scores of the true class as they are stored (M, N), where they are known.
        memory: what blocks are computed in, where it is shared with other passes.

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
        true: NDArray[np.float64] | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.stack, self.labels, self.omega, self.floors, self.n_jobs = stack, labels, omega, floors, n_jobs
        numbers = len(stack.members) * stack.n_classes
        self.numbers = numbers * len(stack)
        step = block_rows(numbers, _BLOCK)
        per_part = step * max(1, round(_PART / (step * numbers)))
        keep = self.numbers <= _RESIDENT
        self._memory = memory or Memory()
        self._parts = [
            _Part(
                stack[rows], labels[rows], omega[rows], floors, step, keep, self._memory,
                true=None if true is None else true[:, rows],
            )
            for rows in (slice(start, start + per_part) for start in range(0, len(stack), per_part))
        ]  # fmt: skip
        self._context = ExitStack()
        self._over: Callable[[Callable[[_Part], Moments], Sequence[_Part]], Iterable[Moments]] = map
        self._passes = [0.0]
        self._chosen: NDArray[np.intp] | None = None

    def __enter__(self) -> Self:
        workers = effective_n_jobs(self.n_jobs)
        with ExitStack() as context:
            context.enter_context(one_blas_thread())
            if len(self._parts) > 1 and workers > 1:
                if type(get_active_backend(prefer="threads")[0]) is ThreadingBackend:  # not somebody's own kind of it
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
        part, everything = self.stack[chosen], slice(0, len(chosen), 1)
        dtype = np.result_type(*(member.source.dtype for member in part.sources()))
        kept = np.empty((len(part.members), len(part), part.n_classes), dtype=dtype)  # one piece: few page faults
        for own, name in zip(kept, part.members, strict=True):
            own[...] = part.scores(name)
        members = [
            Member(name, ArraySource(own), everything, kind)
            for name, own, kind in zip(part.members, kept, part.kinds, strict=True)
        ]
        labels, memory = self.labels[chosen], self._memory
        return Passes(LogitStack(members), labels, omega / omega.sum(), self.floors, 1, memory=memory)

    def only(self, members: NDArray[np.intp]) -> Passes:
        """Return the same passes over some members alone, by their places: β has their length, the others weigh 0."""
        if len(members) == len(self.stack.members):
            return self
        view = copy(self)
        view._chosen = members
        return view

    @property
    def count(self) -> float:
        """How many passes were run; one over some members alone counts as their share."""
        return self._passes[0]

    def moments(self, beta: NDArray[np.float64], *, hessian: bool = True, double: bool = True) -> Moments:
        """Return value, gradient and (on request) Hessian at β, in float32 arithmetic or in float64."""
        self._passes[0] += len(beta) / len(self.stack.members)
        run = partial(_Part.moments, beta=beta, hessian=hessian, double=double, chosen=self._chosen)
        total = Moments.zero(len(beta), hessian)
        for share in self._over(run, self._parts):
            total = total.plus(share)
        return total

    def gradients(self, beta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each video's gradient (N, M) at β: what a bootstrap of the weights resamples."""
        return np.concatenate([part.gradients(beta) for part in self._parts])
