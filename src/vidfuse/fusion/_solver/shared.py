"""The shared weights of a shrunk log-linear pool: members in units of their own calibration, pulled to their scores.

The unit in which a member's scores enter a fit is its own temperature, so that no scale of scores matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse.fusion._solver.log_linear import LogLinearFit, Penalty, fit_log_linear, shrinkage_penalty
from vidfuse.fusion._solver.passes import Passes
from vidfuse.fusion.floors import floored_blocks
from vidfuse.fusion.weights import accuracy_weights, member_hits
from vidfuse.stack.source import Source
from vidfuse.stack.stack import LogitStack

__all__ = [
    "FitVideos",
    "Scales",
    "SharedFit",
    "fit_shared",
    "member_scales",
    "shared_penalty",
    "sharing",
    "smoothed_share",
    "smoothing_penalty",
]

Scales = dict[tuple[Any, ...], tuple[Source, float]]
"""What single members' scales were, by what they follow from."""

_shared: ContextVar[Scales | None] = ContextVar("_shared", default=None)


def smoothed_share(omega: NDArray[np.float64]) -> float:
    """Return the share of a video's target that its best wrong class gets: ``1/(2(N + 1))``, N = 1/Σω².

    Platt 1999 ("Probabilistic outputs for support vector machines", section 2.2) smooths targets by the posterior of a
    rate of which N videos showed no case, ``1/(N + 2)``; this is the posterior median's order, half a video in N + 1.

    Example:
        >>> smoothed_share(np.full(9, 1 / 9))
        0.05
    """
    return 0.5 / (1.0 / float(omega @ omega) + 1.0)


def member_scales(
    stack: LogitStack, labels: NDArray[np.int64], omega: NDArray[np.float64], n_jobs: int | None = None
) -> NDArray[np.float64]:
    """Return what each member's log-likelihoods are multiplied by to be calibrated (M,): 1/T of temperature scaling.

    One temperature a member (Guo, Pleiss, Sun and Weinberger 2017, "On calibration of modern neural networks", section
    4.2), its targets smoothed towards the best wrong class by `smoothed_share`: a member that is right on every video
    gets a temperature that N videos can justify. Scores c times as large get 1/c of the scale.

    Args:
        stack: the members, of which every one has every video.
        labels: true classes (N,).
        omega: the videos' weights (N,), which sum to 1.
        n_jobs: joblib's number of workers.

    Example:
        >>> z = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> y, omega = np.array([0, 0, 1, 1]), np.full(4, 0.25)
        >>> large, small = member_scales(LogitStack.from_arrays({"a": 10 * z, "b": z}), y, omega)
        >>> bool(np.isclose(10 * large, small))
        True
    """
    smoothing = smoothed_share(omega)
    scales = np.ones(len(stack.members))
    for column, name in enumerate(stack.members):
        one = stack.select([name])
        margins = _margins(one, labels)
        used = np.flatnonzero(~np.isneginf(margins))  # a probability of 0 at the true class: no scale mends it
        known = np.isfinite(margins)  # not those where every other class has probability 0
        spread = float(omega[known] @ np.abs(margins[known]))
        if not spread > 0:
            continue  # a member that says the same of every class
        weight = omega[used] / omega[used].sum()
        slope = smoothing * float(omega[known] @ margins[known]) / float(omega[used].sum()) / spread
        pull = Penalty(np.zeros((1, 1)), np.array([-slope]))
        rows = slice(None) if len(used) == len(one) else used  # a slice copies nothing, in each pass
        with Passes(one[rows], labels[rows], weight, np.zeros(1), n_jobs, np.array([1.0 / spread])) as passes:
            scales[column] = fit_log_linear(passes, pull).beta[0] / spread
    return scales


@contextmanager
def sharing(scales: Scales) -> Iterator[None]:
    """Let the fits within share the members' scales: one is not searched again on the same scores, labels and weights.

    Args:
        scales: Those that are known; what is found is added. It is for scores that do not change meanwhile.
    """
    before = _shared.set(scales)
    try:
        yield
    finally:
        _shared.reset(before)


def _keys(videos: FitVideos) -> dict[str, tuple[Any, ...]]:
    """Return what each member's scale follows from: where its scores are, what they are, and a digest of the rest."""
    rest, keys = hashlib.sha256(videos.labels.tobytes() + videos.omega.tobytes()), {}
    for member in videos.stack.sources():
        digest = rest.copy()
        digest.update(np.arange(member.source.shape[0])[member.rows].tobytes())
        keys[member.name] = id(member.source), member.kind, digest.digest()
    return keys


def smoothing_penalty(
    stack: LogitStack,
    labels: NDArray[np.int64],
    omega: NDArray[np.float64],
    floors: NDArray[np.float64],
    scales: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return what smoothed targets add to the slope of a pool's likelihood (M,): for weights β they cost this times β.

    The targets are smoothed towards the class that the uniform pool of the calibrated members likes best among the
    wrong ones. A member's slope is the mean margin of the true class over that one, times `smoothed_share`.
    """
    slopes = np.zeros(len(stack.members))
    for rows, block in floored_blocks(stack, floors, scales=scales):
        np.maximum(block, np.float32(-1e4), out=block)
        here, truth = np.arange(len(block)), labels[rows]
        pooled = block.sum(axis=1)
        pooled[here, truth] = -np.inf
        margins = block[here, :, truth] - block[here, :, pooled.argmax(axis=1)]
        slopes += omega[rows] @ margins
    return np.asarray(smoothed_share(omega) * slopes)


def _margins(one: LogitStack, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how far the true class is above the best other one (N,), in the member's own log-likelihoods."""
    margins = np.empty(len(one))
    for rows, block in one.iter_blocks():
        log_p: NDArray[Any] = block[:, 0]
        here, truth = np.arange(len(log_p)), labels[rows]
        true = log_p[here, truth].astype(np.float64)
        log_p[here, truth] = -np.inf
        margins[rows] = np.subtract(true, log_p.max(axis=1), where=np.isfinite(true), out=np.full(len(true), -np.inf))
    return margins


@dataclass(frozen=True)
class FitVideos:
    """What weights are found on: the videos that every member has and whose weight is not 0.

    Attributes:
        stack: these videos.
        labels: their true classes (N,).
        omega: their weights (N,), which sum to 1.
        floors: each member's floor (M,).
        scales: what each member's log-likelihoods are multiplied by before its floor is mixed in (M,); None is 1.
        n_jobs: joblib's number of workers for passes over the videos.
    """

    stack: LogitStack
    labels: NDArray[np.int64]
    omega: NDArray[np.float64]
    floors: NDArray[np.float64]
    scales: NDArray[np.float64] | None = None
    n_jobs: int | None = None

    @property
    def effective(self) -> float:
        """The effective number of videos, ``1/Σω²``."""
        return 1.0 / float(self.omega @ self.omega)

    @property
    def independent(self) -> float:
        """The number of groups, where they are known and fewer than the effective number of videos; else that one."""
        groups = self.stack.groups
        return self.effective if groups is None else min(self.effective, float(len(np.unique(groups))))

    def __getitem__(self, rows: NDArray[np.int64]) -> FitVideos:
        """Choose videos; their weights sum to 1 again."""
        omega = self.omega[rows]
        return replace(self, stack=self.stack[rows], labels=self.labels[rows], omega=omega / omega.sum())

    def select(self, members: NDArray[np.int64]) -> FitVideos:
        """Choose members by their columns."""
        return replace(
            self,
            stack=self.stack.select([self.stack.members[m] for m in members]),
            floors=self.floors[members],
            scales=None if self.scales is None else self.scales[members],
        )

    def calibrated(self) -> FitVideos:
        """Return the videos with each member in units of its own calibration; those that are known by `sharing`."""
        shared = _shared.get()
        if shared is None:
            return replace(self, scales=member_scales(self.stack, self.labels, self.omega, self.n_jobs))
        keys = _keys(self)
        if new := [name for name, key in keys.items() if key not in shared]:
            found = member_scales(self.stack.select(new), self.labels, self.omega, self.n_jobs)
            sources = {member.name: member.source for member in self.stack.sources()}
            for name, scale in zip(new, found, strict=True):
                shared[keys[name]] = sources[name], scale  # the source is kept, so that its `id` stays its own
        return replace(self, scales=np.array([shared[key][1] for key in keys.values()]))

    def passes(self) -> Passes:
        """Return passes over the videos."""
        return Passes(self.stack, self.labels, self.omega, self.floors, self.n_jobs, self.scales)


@dataclass(frozen=True)
class SharedFit:
    """Shared weights, and what they were fitted with.

    Attributes:
        fit: β, certified.
        penalty: what was added to the likelihood; None without shrinkage.
    """

    fit: LogLinearFit
    penalty: Penalty | None


def shared_penalty(videos: FitVideos, strength: float) -> Penalty:
    """Return the pull of strength λ towards weights by score, and what smoothed targets add to it."""
    direction = accuracy_weights(videos.omega @ member_hits(videos.stack, videos.labels))
    penalty = shrinkage_penalty(strength, direction)
    scales = np.ones(len(direction)) if videos.scales is None else videos.scales
    slopes = smoothing_penalty(videos.stack, videos.labels, videos.omega, videos.floors, scales)
    return replace(penalty, linear=penalty.linear - slopes)


def fit_shared(videos: FitVideos, strength: float, start: NDArray[np.float64] | None = None) -> SharedFit:
    """Fit one weight a member by penalised likelihood; a strength of 0 is the plain maximum likelihood.

    Args:
        videos: the videos of the fit.
        strength: λ of `shrinkage_penalty`.
        start: the first β, if one is known.
    """
    penalty = shared_penalty(videos, strength) if strength > 0 else None
    with videos.passes() as passes:
        return SharedFit(fit_log_linear(passes, penalty, start), penalty)
