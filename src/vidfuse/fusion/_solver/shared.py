"""The shared weights of a shrunk log-linear pool: members in units of their own calibration, pulled to their scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vidfuse.fusion._solver.log_linear import LogLinearFit, Penalty, fit_log_linear, shrinkage_penalty
from vidfuse.fusion._solver.passes import Passes
from vidfuse.fusion._solver.scales import member_scales, smoothing_penalty
from vidfuse.fusion.weights import accuracy_weights, member_hits
from vidfuse.stack.stack import LogitStack

__all__ = ["FitVideos", "SharedFit", "fit_shared", "shared_penalty"]


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
        """Return the videos with each member in units of its own calibration."""
        return replace(self, scales=member_scales(self.stack, self.labels, self.omega, self.n_jobs))

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
