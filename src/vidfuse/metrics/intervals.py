"""Confidence intervals: Wilson's for a share, the stratified bootstrap for a mean or a mean of class means."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import as_array
from vidfuse.errors import InputError
from vidfuse.metrics._inputs import as_values

__all__ = ["Interval", "accuracy_interval", "bootstrap_interval", "resampled_means"]


class Interval(NamedTuple):
    """A confidence interval: unpacks as `low, high`."""

    low: float
    high: float

    def __repr__(self) -> str:
        return f"Interval(low={self.low:.6g}, high={self.high:.6g})"


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence: expected a number strictly between 0 and 1, got {confidence}")


def accuracy_interval(hits: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a share `hits / n`, within 0 … 1.

    (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n), with p = hits/n and z the normal quantile of (1 + confidence)/2.

    Args:
        hits: Right predictions, 0 … n.
        n: Videos, at least 1.
        confidence: The interval's nominal coverage.

    Raises:
        InputError: On hits outside 0 … n, no video, or a confidence outside (0, 1).

    Source:
        Wilson (1927), Probable inference, the law of succession, and statistical inference, JASA 22, p. 209.

    Example:
        >>> accuracy_interval(8, 10)
        Interval(low=0.490162, high=0.943318)
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= hits <= n:
        raise InputError(f"expected n ≥ 1 and 0 ≤ hits ≤ n, got hits={hits}, n={n}")
    _check_confidence(confidence)
    found = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


def resampled_means(
    values: NDArray[np.float64],
    strata: ArrayLike | None,
    n_resamples: int,
    random_state: int | np.random.Generator | None,
) -> tuple[float, NDArray[np.float64]]:
    """Return a mean (of stratum means) and its value in each bootstrap resample, shape (n_resamples,).

    Args:
        values: One number a video, shape (N,).
        strata: One label a video, shape (N,): videos are drawn within each stratum, whose means are averaged.
        n_resamples: How many resamples.
        random_state: Seed or generator.
    """
    if n_resamples < 1:
        raise InputError(f"n_resamples: expected at least 1, got {n_resamples}")
    rng = np.random.default_rng(random_state)
    if strata is None:
        groups = [values]
    else:
        s = as_array(strata)
        if s.shape != values.shape:
            raise InputError(f"strata: expected one a video, shape {values.shape}, got {s.shape}")
        order = np.argsort(s, kind="stable")
        cuts = np.flatnonzero(np.diff(np.unique(s, return_inverse=True)[1][order])) + 1
        groups = np.split(values[order], cuts)
    total, drawn = 0.0, np.zeros(n_resamples)
    for group in groups:
        n = len(group)
        total += float(group.mean())
        distinct, counts = np.unique(group, return_counts=True)
        if len(distinct) <= 3:  # hits and differences of hits: draw how often each value comes, not which video
            drawn += rng.multinomial(n, counts / n, size=n_resamples) @ distinct / n
            continue
        step = max(1, (1 << 20) // n)
        for start in range(0, n_resamples, step):
            stop = min(start + step, n_resamples)
            drawn[start:stop] += group[rng.integers(0, n, size=(stop - start, n))].mean(axis=1)
    return total / len(groups), drawn / len(groups)


def bootstrap_interval(
    values: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | np.random.Generator | None = 0,
) -> Interval:
    """Return the percentile bootstrap interval of a mean, or with `strata` of the mean of the strata's means.

    With hits as values and labels as strata it is the interval of the mean class accuracy: videos are drawn within
    their class, so that every resample holds every class. Classes of very few videos make it somewhat too short.

    Args:
        values: One number a video (hits, log-likelihoods of the true class, …), shape (N,).
        strata: One label a video, shape (N,); None draws from all videos.
        confidence: The interval's nominal coverage.
        n_resamples: How many resamples.
        random_state: Seed or generator; the same seed gives the same interval.

    Raises:
        InputError: On values that are not finite numbers of shape (N,), strata of another shape, or a confidence
            outside (0, 1).

    Source:
        Efron and Tibshirani (1993), An introduction to the bootstrap, sections 8.4 and 13.3.

    Example:
        >>> bootstrap_interval([0, 1, 1, 1, 1, 0, 1, 1, 1, 1], n_resamples=500, random_state=0)
        Interval(low=0.5, high=1)
    """
    _check_confidence(confidence)
    _, drawn = resampled_means(as_values(values), strata, n_resamples, random_state)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
