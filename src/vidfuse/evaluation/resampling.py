"""Intervals and differences of any objective, by drawing videos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidfuse.metrics.intervals import Interval, bootstrap_interval
from vidfuse.metrics.objectives import Objective, resolve_objective
from vidfuse.metrics.significance import PairedDifference, paired_bootstrap

__all__ = ["Draw"]


@dataclass(frozen=True)
class Draw:
    """Intervals and differences of an objective by drawing videos."""

    labels: NDArray[np.int64]
    objective: str | Objective
    confidence: float
    n_resamples: int
    random_state: int | None

    def _values(self, repeated: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return a number for each video, higher is better: the mean over repeats of its hits or log-likelihoods."""
        true = self.labels[:, None]
        if self.objective == "nll":
            values = [np.take_along_axis(p, true, axis=1)[:, 0] for p in repeated]
            return np.maximum(np.mean(values, axis=0), -1e6)  # no mean can be drawn of a loss that is infinite
        return np.mean([p.argmax(axis=1) == self.labels for p in repeated], axis=0)

    @property
    def _strata(self) -> NDArray[np.int64] | None:
        return self.labels if self.objective == "mean-class-accuracy" else None

    def interval(self, repeated: list[NDArray[np.float64]]) -> Interval:
        """Return the interval of the mean score of these predictions."""
        if callable(self.objective):
            low, high = np.quantile(self._redrawn(repeated), [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
            return Interval(float(low), float(high))
        low, high = bootstrap_interval(
            self._values(repeated),
            strata=self._strata,
            confidence=self.confidence,
            n_resamples=self.n_resamples,
            random_state=self.random_state,
        )
        return Interval(-high, -low) if self.objective == "nll" else Interval(low, high)

    def difference(self, first: list[NDArray[np.float64]], second: list[NDArray[np.float64]]) -> PairedDifference:
        """Return how much better the first predictions are."""
        if not callable(self.objective):
            return paired_bootstrap(
                self._values(first),
                self._values(second),
                strata=self._strata,
                confidence=self.confidence,
                n_resamples=self.n_resamples,
                random_state=self.random_state,
            )
        drawn = self._redrawn(first) - self._redrawn(second)
        low, high = np.quantile(drawn, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        other_side = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        metric = self.objective
        return PairedDifference(
            difference=float(
                np.mean([metric(self.labels, p) for p in first]) - np.mean([metric(self.labels, p) for p in second])
            ),
            interval=Interval(float(low), float(high)),
            confidence=self.confidence,
            p_value=min(1.0, 2 * (1 + other_side) / (len(drawn) + 1)),
        )

    def _redrawn(self, repeated: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return a callable objective on resampled videos; the same videos for every rule."""
        metric = resolve_objective(self.objective)
        rng = np.random.default_rng(self.random_state)
        n = len(self.labels)
        rows = rng.integers(0, n, size=(min(self.n_resamples, 200), n))
        return np.array([np.mean([metric(self.labels[r], p[r]) for p in repeated]) for r in rows])
