"""What a score needs to know of a prediction: a few numbers of each video, instead of one for each class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse.metrics._inputs import as_log_proba
from vidfuse.metrics.accuracy import class_shares, f1_of_classes, true_ranks

__all__ = ["OF_OUTCOMES", "Outcomes"]


@dataclass(frozen=True)
class Outcomes:
    """What a prediction says of each video, as far as its score goes.

    Attributes:
        predicted: The most likely class (N,), of equally likely ones the lowest.
        rank: How many classes stand before the true one (N,).
        loss: Negative log-likelihood of the true class (N,), in nats.
        confidence: Probability of the most likely class (N,).
        n_classes: K.
    """

    predicted: NDArray[np.int64]
    rank: NDArray[np.int64]
    loss: NDArray[np.float64]
    confidence: NDArray[np.float64]
    n_classes: int

    def __getitem__(self, rows: Any) -> Outcomes:
        return Outcomes(self.predicted[rows], self.rank[rows], self.loss[rows], self.confidence[rows], self.n_classes)

    @staticmethod
    def of(labels: NDArray[np.int64], log_proba: ArrayLike) -> Outcomes:
        """Return the outcomes of log-likelihoods (N, K) against labels (N,).

        Raises:
            InputError: A row is not normalised.

        Example:
            >>> Outcomes.of(np.array([0, 0]), np.log([[0.75, 0.25], [0.25, 0.75]])).rank.tolist()
            [0, 1]
        """
        y, z = as_log_proba(labels, np.asarray(log_proba, dtype=np.float64))
        loss = (0.0 - np.take_along_axis(z, y[:, None], axis=1)[:, 0]).astype(np.float64, copy=False)
        confidence = np.exp(z.max(axis=1), dtype=np.float64)
        return Outcomes(z.argmax(axis=1), true_ranks(y, z), loss, confidence, z.shape[1])

    @staticmethod
    def of_blocks(labels: NDArray[np.int64], blocks: Iterable[tuple[slice, NDArray[Any]]]) -> Outcomes:
        """Return the outcomes of log-likelihoods that come in blocks, in the videos' order: memory holds one of them.

        Args:
            labels: True classes (N,).
            blocks: Consecutive rows and their log-likelihoods (n, K), such as `vidfuse.Recipe.predict_blocks` gives.

        Example:
            >>> blocks = [(slice(0, 1), np.log([[0.75, 0.25]])), (slice(1, 2), np.log([[0.25, 0.75]]))]
            >>> Outcomes.of_blocks(np.array([0, 0]), blocks).rank.tolist()
            [0, 1]
        """
        return Outcomes.joined([Outcomes.of(labels[rows], block) for rows, block in blocks])

    @staticmethod
    def joined(parts: Sequence[Outcomes]) -> Outcomes:
        """Return the outcomes of consecutive videos as one."""
        predicted, rank, loss, confidence = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("predicted", "rank", "loss", "confidence")
        )
        return Outcomes(predicted, rank, loss, confidence, parts[0].n_classes)


def _mean_class_accuracy(labels: NDArray[np.int64], found: Outcomes) -> float:
    return float(np.nanmean(class_shares(labels, found.rank < 1, found.n_classes)))


OF_OUTCOMES: Mapping[str, Callable[[NDArray[np.int64], Outcomes], float]] = MappingProxyType(
    {
        "accuracy": lambda labels, found: float((found.rank < 1).mean()),
        "mean-class-accuracy": _mean_class_accuracy,
        "macro-f1": lambda labels, found: f1_of_classes(labels, found.predicted),
        "nll": lambda labels, found: float(found.loss.mean()),
    }
)
"""The named objectives as functions of labels (N,) and outcomes: what `vidfuse.metrics.objectives` has of arrays."""
