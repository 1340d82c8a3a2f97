"""Intervals and differences of any objective, for predictions of the same videos that come in groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import check_count, check_share
from vidfuse.metrics.accuracy import f1_of_classes
from vidfuse.metrics.design import Design, design_of
from vidfuse.metrics.intervals import (
    Interval,
    difference_bounds,
    interval_of,
    mean_bounds,
    mean_difference_bounds,
    metric_bounds,
    resampled_rows,
    share_bounds,
)
from vidfuse.metrics.objectives import Objective, evaluate, resolve_objective
from vidfuse.metrics.outcomes import Outcomes
from vidfuse.metrics.significance import PairedDifference, mean_p_values, share_p_values

__all__ = ["LARGEST_LOSS", "Draw", "Repeated"]

LARGEST_LOSS = -math.log(1e-6)
"""What a loss counts at most where its interval is computed, in nats: a true class of probability 0 has no mean."""

_LEFT_OUT = 100  # blocks of groups that are left out in turn, for the acceleration of a callable's interval

Repeated = Sequence[Any]
"""The log-likelihoods (N, K) of each repeat of a cross-fit, one array without repeats; or `Outcomes`, of names."""


def _f1(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    return f1_of_classes(labels, predicted[:, 0])


@dataclass(frozen=True)
class Draw:
    """Intervals and differences of an objective on the same videos.

    Shares get Wilson's interval, mean class accuracies the same with variances within classes, losses the bootstrap-t,
    macro-F1 and callables BCa; differences of shares Agresti and Min's interval, of losses Student's. P-values are
    McNemar's exact ones, or those of sign flips of groups.

    Attributes:
        labels: True classes (N,).
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`.
        confidence: The intervals' nominal coverage.
        n_resamples: Bootstrap resamples of losses, of macro-F1 and of callables; also the swaps of these two's tests.
        random_state: Seed; the same one draws the same videos for every prediction.
        groups: What each video comes from (N,), or None.
    """

    labels: NDArray[np.int64] = field(repr=False)
    objective: str | Objective = "accuracy"
    confidence: float = 0.95
    n_resamples: int = 2000
    random_state: int | None = 0
    groups: ArrayLike | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_share("confidence", self.confidence)
        resolve_objective(self.objective)
        check_count("n_resamples", self.n_resamples)

    def on(self, rows: NDArray[Any]) -> Draw:
        """Return the same for some of the videos; `rows` are a mask or numbers."""
        groups = None if self.groups is None else np.asarray(self.groups)[rows]
        return replace(self, labels=self.labels[rows], groups=groups)

    @cached_property
    def design(self) -> Design:
        """How the videos were drawn: their groups, and their classes where class means are averaged."""
        strata = self.labels if self.objective == "mean-class-accuracy" else None
        return design_of(len(self.labels), strata, self.groups)

    def interval(self, repeated: Repeated) -> Interval:
        """Return the interval of the mean score of these predictions."""
        return self.intervals({"": repeated})[""]

    def difference(self, first: Repeated, second: Repeated) -> PairedDifference:
        """Return how much better the first predictions are, positive where they are, for a loss too."""
        return self.differences({"first": first, "second": second}, [("first", "second")])[0]

    def intervals(self, predictions: Mapping[str, Repeated]) -> dict[str, Interval]:
        """Return the interval of each prediction's mean score; all share the resamples."""
        if self._metric is not None:
            return {
                name: self._bca(drawn[0], drawn[1:], left_out)
                for name, (drawn, left_out) in self._redrawn(predictions).items()
            }
        values = self._values(predictions)
        if self.objective == "nll":
            low, high = mean_bounds(
                values, self.design, self.confidence, self.n_resamples, self.random_state, LARGEST_LOSS
            )
            method = f"bootstrap-t, {self.n_resamples:,} resamples, losses of at most {LARGEST_LOSS:.1f} nats"
        else:
            low, high = share_bounds(values, self.design, self.confidence)
            method = "Wilson" if self.objective == "accuracy" else "Wilson, variance within classes"
        return {
            name: interval_of(low[i], high[i], self.design, self.confidence, method)
            for i, name in enumerate(predictions)
        }

    def differences(
        self, predictions: Mapping[str, Repeated], pairs: Sequence[tuple[str, str]]
    ) -> list[PairedDifference]:
        """Return how much better the first prediction of each pair of names is; all share resamples and flips."""
        if not pairs:
            return []
        if self._metric is not None:
            return self._metric_differences(predictions, pairs)
        names = list(predictions)
        values = self._values(predictions)
        first, second = ([names.index(pair[side]) for pair in pairs] for side in (0, 1))
        if self.objective == "nll":
            better = values[:, second] - values[:, first]
            low, high = mean_difference_bounds(better, self.design, self.confidence)
            p, test = mean_p_values(better, self.design, self.random_state)
            method = f"Student's t, losses of at most {LARGEST_LOSS:.1f} nats"
        else:
            better = values[:, first] - values[:, second]
            low, high = difference_bounds(better, self.design, self.confidence)
            p, test = share_p_values(better, self.design, self.random_state)
            method = "adjusted for few differences (Agresti and Min)"
        means = self.design.means(better)
        return [
            PairedDifference(
                float(means[i]) + 0.0,
                interval_of(low[i], high[i], self.design, self.confidence, method),
                self.confidence,
                float(p[i]),
                test,
            )
            for i in range(len(pairs))
        ]

    def _values(self, predictions: Mapping[str, Repeated]) -> NDArray[np.float64]:
        """Return hits, or losses, of each video and prediction: (N, J), means over the repeats."""
        values = np.empty((len(self.labels), len(predictions)))
        for column, repeated in enumerate(predictions.values()):
            if self.objective == "nll":
                values[:, column] = np.mean([np.minimum(self._losses(p), LARGEST_LOSS) for p in repeated], axis=0)
            else:
                values[:, column] = np.mean([self._hits(p) for p in repeated], axis=0)
        return values

    def _losses(self, predicted: Any) -> NDArray[np.float64]:
        if isinstance(predicted, Outcomes):
            return predicted.loss
        return -np.take_along_axis(predicted, self.labels[:, None], axis=1)[:, 0].astype(np.float64)

    def _hits(self, predicted: Any) -> NDArray[np.bool_]:
        return predicted.rank < 1 if isinstance(predicted, Outcomes) else predicted.argmax(axis=1) == self.labels

    @property
    def _metric(self) -> Objective | None:
        """What is computed anew of each resample; None where the objective is a mean over videos."""
        if self.objective == "macro-f1":
            return _f1
        return self.objective if callable(self.objective) else None

    def _seen(self, predictions: Mapping[str, Repeated]) -> Mapping[str, Repeated]:
        """Return what the metric sees of the predictions: of macro-F1 the most likely class (N, 1)."""
        if self.objective != "macro-f1":
            return predictions
        return {
            name: [(p.predicted if isinstance(p, Outcomes) else p.argmax(axis=1))[:, None] for p in repeated]
            for name, repeated in predictions.items()
        }

    def _score(self, rows: NDArray[np.int64] | slice, repeated: Repeated) -> float:
        metric: Any = self._metric
        return float(np.mean([metric(self.labels[rows], p[rows]) for p in repeated]))

    def _redrawn(
        self, predictions: Mapping[str, Repeated]
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Return the metric on all videos and each resample (1 + B,), and without each block, by prediction."""
        metric: Any = self._metric
        predictions = self._seen(predictions)
        drawn = {
            name: [float(np.mean([evaluate(metric, self.labels, p, [name]) for p in repeated]))]
            for name, repeated in predictions.items()
        }
        left_out: dict[str, list[float]] = {name: [] for name in predictions}
        for rows in resampled_rows(self.design, self.n_resamples, self.random_state):
            for name, repeated in predictions.items():
                drawn[name].append(self._score(rows, repeated))
        blocks = np.arange(self.design.size) * min(_LEFT_OUT, self.design.size) // self.design.size
        block = blocks[self.design.group]
        for index in range(int(block.max()) + 1) if self.design.size > 1 else ():
            for name, repeated in predictions.items():
                left_out[name].append(self._score(np.flatnonzero(block != index), repeated))
        return {name: (np.array(drawn[name]), np.array(left_out[name])) for name in predictions}

    def _bca(self, value: float, drawn: NDArray[np.float64], left_out: NDArray[np.float64]) -> Interval:
        none = np.count_nonzero(~np.isfinite(drawn)) + np.count_nonzero(~np.isfinite(left_out))
        if none or self.design.size < 2:
            reason = (
                f"the objective is no finite number on {none:,} of {len(drawn) + len(left_out):,} resamples"
                if none
                else ""
            )
            empty = interval_of(math.nan, math.nan, self.design, self.confidence, "")
            return Interval(math.nan, math.nan, self.confidence, self.design.n_groups, refused=reason or empty.refused)
        low, high = metric_bounds(value, drawn, left_out, self.confidence)
        return interval_of(low, high, self.design, self.confidence, f"BCa, {len(drawn):,} resamples")

    def _metric_differences(
        self, predictions: Mapping[str, Repeated], pairs: Sequence[tuple[str, str]]
    ) -> list[PairedDifference]:
        """Return differences of a metric that is no mean: BCa intervals, and tests that swap predictions by group."""
        redrawn, predictions = self._redrawn(predictions), self._seen(predictions)
        found = []
        for first, second in pairs:
            drawn = redrawn[first][0] - redrawn[second][0]
            interval = self._bca(drawn[0], drawn[1:], redrawn[first][1] - redrawn[second][1])
            rng = np.random.default_rng(self.random_state)
            as_far = 0
            for _ in range(self.n_resamples):
                swap = (rng.random(self.design.size) < 0.5)[self.design.group][:, None]
                pair = list(zip(predictions[first], predictions[second], strict=True))
                off = self._score(slice(None), [np.where(swap, b, a) for a, b in pair]) - self._score(
                    slice(None), [np.where(swap, a, b) for a, b in pair]
                )
                as_far += abs(off) >= abs(drawn[0]) - 1e-12
            of = "videos" if self.design.n_groups is None else f"{self.design.n_groups:,} groups"
            test = f"{self.n_resamples:,} swaps of {of}"
            p = (1 + as_far) / (1 + self.n_resamples)
            found.append(PairedDifference(float(drawn[0]) + 0.0, interval, self.confidence, p, test))
        return found
