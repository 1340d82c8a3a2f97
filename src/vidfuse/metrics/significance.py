"""Is one prediction better than another on the same videos: McNemar's exact test and the paired bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vidfuse.errors import InputError
from vidfuse.metrics._inputs import as_hits, as_values
from vidfuse.metrics.intervals import Interval, _check_confidence, resampled_means

__all__ = ["McNemar", "PairedDifference", "mcnemar", "paired_bootstrap"]


@dataclass(frozen=True)
class McNemar:
    """The result of McNemar's exact test.

    Attributes:
        only_first: Videos that only the first prediction gets right.
        only_second: Videos that only the second gets right.
        p_value: Two-sided probability of a split at least this uneven, were both equally good.
    """

    only_first: int
    only_second: int
    p_value: float

    def __repr__(self) -> str:
        return f"McNemar(only_first={self.only_first}, only_second={self.only_second}, p_value={self.p_value:.4g})"


@dataclass(frozen=True)
class PairedDifference:
    """A mean difference over the same videos, with its bootstrap interval.

    Attributes:
        difference: Mean of first − second.
        interval: Percentile interval of the difference.
        confidence: The interval's nominal coverage.
        p_value: Two-sided bootstrap p-value of no difference; at least 2 / (resamples + 1).
    """

    difference: float
    interval: Interval
    confidence: float
    p_value: float

    def __repr__(self) -> str:
        return (
            f"PairedDifference({self.difference:+.4g}, {self.confidence:.0%} interval "
            f"{self.interval.low:+.4g} … {self.interval.high:+.4g}, p_value={self.p_value:.4g})"
        )


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Return McNemar's exact test of two predictions of the same videos.

    Only videos that one of both gets right count: with b and c of them,
    p = min(1, 2 P[Binomial(b + c, ½) ≤ min(b, c)]).

    Args:
        first: Hits of the first prediction, booleans of shape (N,).
        second: Hits of the second, in the same order of videos.

    Raises:
        InputError: On hits that are not booleans of equal shape (N,).

    Source:
        McNemar (1947), Psychometrika 12, p. 153; the exact form as in Dietterich (1998), Neural Computation 10,
        section 3.1.

    Example:
        >>> mcnemar([1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1])
        McNemar(only_first=5, only_second=1, p_value=0.2188)
    """
    from scipy.stats import binomtest

    a, b = as_hits(first), as_hits(second)
    if a.shape != b.shape:
        raise InputError(f"hits: expected the same videos twice, got {len(a)} and {len(b)}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return McNemar(only_a, only_b, float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0)


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | np.random.Generator | None = 0,
) -> PairedDifference:
    """Return the mean difference of two scores of the same videos, with a bootstrap interval and p-value.

    Videos, not scores, are drawn: what both predictions find hard cancels. The two-sided p-value is
    2 (1 + #{resamples on the other side of 0, or at 0}) / (resamples + 1), at most 1.

    Args:
        first: One number a video (hits, log-likelihoods of the true class, …), shape (N,).
        second: The other prediction's numbers, in the same order of videos.
        strata: Draw within these labels and average their means: with hits and labels, the difference of mean class
            accuracies.
        confidence: The interval's nominal coverage.
        n_resamples: How many resamples.
        random_state: Seed or generator; the same seed gives the same result.

    Raises:
        InputError: On numbers that are not finite or shapes that differ.

    Source:
        Efron and Tibshirani (1993), An introduction to the bootstrap, sections 13.3 and 16.2.

    Example:
        >>> paired_bootstrap([1, 1, 1, 1, 0, 1], [0, 1, 0, 1, 0, 0], n_resamples=999)
        PairedDifference(+0.5, 95% interval +0.1667 … +0.8333, p_value=0.032)
    """
    _check_confidence(confidence)
    a, b = as_values(first, "first"), as_values(second, "second")
    if a.shape != b.shape:
        raise InputError(f"expected the same videos twice, got {len(a)} and {len(b)}")
    difference, drawn = resampled_means(a - b, strata, n_resamples, random_state)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    other_side = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return PairedDifference(
        difference=difference,
        interval=Interval(float(low), float(high)),
        confidence=confidence,
        p_value=min(1.0, 2 * (1 + other_side) / (n_resamples + 1)),
    )
