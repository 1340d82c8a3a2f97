"""Scores of probabilities: negative log-likelihood, Brier score, calibration error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import check_choice, check_count
from vidfuse._tables import Column, Table, Tabular, percent, span
from vidfuse.metrics._inputs import as_log_proba

__all__ = ["Reliability", "binned", "brier", "ece", "nll", "reliability"]

_ROUNDING = 1e-6  # of a probability that was kept as a logarithm in float32


def nll(labels: ArrayLike, log_proba: ArrayLike) -> float:
    """Return the mean negative log-likelihood of the true class, −(1/N) Σ_n log p_n(y_n), in nats.

    A true class of probability 0 makes it infinite.

    Args:
        labels: True classes, integers of shape (N,).
        log_proba: Normalised log-likelihoods of shape (N, K).

    Raises:
        InputError: On shapes that do not match, NaN, labels out of range, or rows that are not log-likelihoods.

    Source:
        Good (1952), Rational decisions, J. R. Stat. Soc. B 14, section 4 (the logarithmic score).

    Example:
        >>> import numpy as np
        >>> round(nll([0, 1], np.log([[0.5, 0.5], [0.75, 0.25]])), 6)
        1.039721
    """
    y, z = as_log_proba(labels, log_proba)
    return float(0.0 - np.take_along_axis(z, y[:, None], axis=1).mean(dtype=np.float64))


def brier(labels: ArrayLike, log_proba: ArrayLike) -> float:
    """Return the multi-class Brier score (1/N) Σ_n Σ_c (p_n(c) − [c = y_n])², in 0 … 2.

    This is Brier's original sum over all classes; for two classes it is twice the score of the positive class alone.

    Args:
        labels: True classes, integers of shape (N,).
        log_proba: Normalised log-likelihoods of shape (N, K).

    Raises:
        InputError: On shapes that do not match, NaN, labels out of range, or rows that are not log-likelihoods.

    Source:
        Brier (1950), Verification of forecasts expressed in terms of probability, Monthly Weather Review 78(1), eq. 2.

    Example:
        >>> import numpy as np
        >>> round(brier([0, 1], np.log([[0.5, 0.5], [0.75, 0.25]])), 6)
        0.8125
    """
    y, z = as_log_proba(labels, log_proba)
    p = np.exp(z.astype(np.float64))
    true = np.take_along_axis(p, y[:, None], axis=1)[:, 0]
    return float((np.einsum("nk,nk->n", p, p) - 2 * true + 1).mean())


@dataclass(frozen=True)
class Reliability(Tabular):
    """A reliability diagram's numbers, one entry for each bin that holds a video.

    Attributes:
        edges: The bins' limits, shape (n_bins + 1,); bin b holds confidences in (edges[b], edges[b + 1]].
        bins: The indices of the bins that hold a video, shape (B,).
        counts: Videos in each of them, shape (B,).
        confidence: Mean probability of the predicted class, shape (B,).
        accuracy: Share of right predictions, shape (B,).
    """

    edges: NDArray[np.float64]
    bins: NDArray[np.int64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean gap of confidence and accuracy over the videos; see `ece`."""
        return float(np.abs(self.accuracy - self.confidence) @ self.counts / self.counts.sum())

    def table(self) -> Table:
        """Return a row for each bin that holds a video."""
        columns = (
            "bin",
            Column("videos"),
            Column("confidence %", "confidence", percent),
            Column("accuracy %", "accuracy", percent),
        )
        low, high = self.edges[self.bins].tolist(), self.edges[self.bins + 1].tolist()
        bins = [f"{span(ends)} %" for ends in zip(low, high, strict=True)]
        values = (bins, self.counts.tolist(), self.confidence.tolist(), self.accuracy.tolist())
        return Table(columns, tuple(zip(*values, strict=True)), "Confidence and accuracy")

    def __repr__(self) -> str:
        gap = float(np.abs(self.confidence - self.accuracy).max())
        return (
            f"Reliability(videos={int(self.counts.sum())}, bins={len(self.bins)} of {len(self.edges) - 1}, "
            f"largest gap={gap:.4f})"
        )


def reliability(
    labels: ArrayLike,
    log_proba: ArrayLike,
    n_bins: int = 15,
    binning: Literal["uniform", "quantile"] = "uniform",
) -> Reliability:
    """Return confidence and accuracy of the predicted class in bins of confidence: a reliability diagram's numbers.

    Args:
        labels: True classes, integers of shape (N,).
        log_proba: Normalised log-likelihoods of shape (N, K).
        n_bins: The number of bins.
        binning: "uniform", bins of equal width on (0, 1]; or "quantile", bins that hold equally many videos.

    Raises:
        InputError: As `nll`, or on an unknown binning, or fewer than one bin.

    Source:
        DeGroot and Fienberg (1983), The comparison and evaluation of forecasters, section 3.

    Example:
        >>> import numpy as np
        >>> reliability([0, 1], np.log([[0.6, 0.4], [0.75, 0.25]]), n_bins=2)
        Reliability(videos=2, bins=1 of 2, largest gap=0.1750)
    """
    y, z = as_log_proba(labels, log_proba)
    check_count("n_bins", n_bins)
    check_choice("binning", binning, ("uniform", "quantile"))
    prediction = z.argmax(axis=1)
    confidence = np.exp(np.take_along_axis(z, prediction[:, None], axis=1)[:, 0].astype(np.float64))
    return binned(confidence, prediction == y, n_bins, binning)


def binned(
    confidence: NDArray[np.float64],
    hits: NDArray[np.bool_],
    n_bins: int = 15,
    binning: Literal["uniform", "quantile"] = "uniform",
) -> Reliability:
    """Return what `reliability` returns, from each video's confidence (N,) and whether its prediction is right (N,).

    Example:
        >>> binned(np.array([0.6, 0.75]), np.array([True, False]), n_bins=2)
        Reliability(videos=2, bins=1 of 2, largest gap=0.1750)
    """
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    if binning == "quantile":
        edges = np.quantile(confidence, edges)
    # 1/3 is the end of a bin of 1/15, whichever way its logarithm was rounded. Near 1 logarithms are exact, and tell
    # confident predictions apart: quantiles need that.
    at = confidence - _ROUNDING * (1 - confidence)
    which = np.clip(np.searchsorted(edges, at, side="left") - 1, 0, n_bins - 1)
    counts = np.bincount(which, minlength=n_bins)
    bins = np.flatnonzero(counts)
    return Reliability(
        edges=edges,
        bins=bins,
        counts=counts[bins],
        confidence=np.bincount(which, weights=confidence, minlength=n_bins)[bins] / counts[bins],
        accuracy=np.bincount(which, weights=hits, minlength=n_bins)[bins] / counts[bins],
    )


def ece(
    labels: ArrayLike,
    log_proba: ArrayLike,
    n_bins: int = 15,
    binning: Literal["uniform", "quantile"] = "uniform",
) -> float:
    """Return the expected calibration error of the predicted class, Σ_b (N_b/N) · abs(accuracy_b − confidence_b).

    It lies in 0 … 1. By default there are 15 bins of equal width, each closed on the right: (0, 1/15], …, (14/15, 1].
    The number depends on the bins: state them beside it.

    Args:
        labels: True classes, integers of shape (N,).
        log_proba: Normalised log-likelihoods of shape (N, K).
        n_bins: The number of bins.
        binning: "uniform", bins of equal width on (0, 1]; or "quantile", bins that hold equally many videos.

    Raises:
        InputError: As `nll`, or on an unknown binning, or fewer than one bin.

    Source:
        Naeini, Cooper and Hauskrecht (2015), AAAI, Obtaining well calibrated probabilities using Bayesian binning,
        eq. 5; Guo et al. (2017), ICML, On calibration of modern neural networks, eq. 3.

    Example:
        >>> import numpy as np
        >>> round(ece([0, 1], np.log([[0.6, 0.4], [0.75, 0.25]])), 6)
        0.575
    """
    return reliability(labels, log_proba, n_bins, binning).error
