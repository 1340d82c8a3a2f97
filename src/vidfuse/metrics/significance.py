"""Is one prediction better than another on the same videos: exact tests by flipping signs, and paired intervals.

A test flips which of the two predictions is called the first, for each group of videos anew. If both are equally good,
every such flip was as likely as what was seen: the p-value is exact, however videos of a group depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import check_share
from vidfuse.errors import InputError
from vidfuse.metrics._inputs import as_hits, as_values
from vidfuse.metrics.design import Design, design_of
from vidfuse.metrics.intervals import Interval, difference_bounds, interval_of, mean_difference_bounds

__all__ = [
    "McNemar",
    "PairedDifference",
    "flip_p_values",
    "holm",
    "mcnemar",
    "mcnemar_p_values",
    "mean_difference",
    "mean_p_values",
    "share_difference",
    "share_p_values",
]

_FLIPS = 9999
_ENUMERATED = 12  # groups that differ, up to which all flips are tried
_AT_ONCE = 1 << 22


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
    """A mean difference over the same videos, with its interval and a test of no difference.

    Attributes:
        difference: Mean of first − second, positive where the first is better.
        interval: Interval of the difference.
        confidence: The interval's nominal coverage.
        p_value: Two-sided p-value of no difference.
        test: How it was computed, in words.
    """

    difference: float
    interval: Interval
    confidence: float
    p_value: float
    test: str = field(default="", compare=False)

    def __repr__(self) -> str:
        ends = (
            "no interval"
            if self.interval.refused
            else f"{self.confidence:.0%} interval {self.interval.low:+.4g} … {self.interval.high:+.4g}"
        )
        groups = "" if self.interval.n_groups is None else f", {self.interval.n_groups:,} groups"
        return f"PairedDifference({self.difference:+.4g}, {ends}, p_value={self.p_value:.4g}{groups})"


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Return McNemar's exact test of two predictions of the same, independent videos.

    Only videos that one of both gets right count: with b and c of them,
    p = min(1, 2 P[Binomial(b + c, ½) ≤ min(b, c)]).

    Args:
        first: Hits of the first prediction, booleans of shape (N,).
        second: Hits of the second, in the same order of videos, shape (N,).

    Raises:
        InputError: On hits that are not booleans of equal shape (N,).

    Source:
        McNemar (1947), Psychometrika 12, p. 153; the exact form as in Dietterich (1998), Neural Computation 10,
        section 3.1.

    Example:
        >>> mcnemar([1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1])
        McNemar(only_first=5, only_second=1, p_value=0.2188)
    """
    a, b = as_hits(first), as_hits(second)
    if a.shape != b.shape:
        raise InputError(f"hits: expected the same videos twice, got {len(a)} and {len(b)}")
    difference = a.astype(np.float64) - b
    only_a, only_b = int((difference > 0).sum()), int((difference < 0).sum())
    return McNemar(only_a, only_b, float(mcnemar_p_values(difference[:, None])[0]))


def mcnemar_p_values(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return McNemar's exact p-values of columns of −1, 0 and 1, (N, J) → (J,)."""
    from scipy.special import bdtr

    wins, losses = (differences > 0).sum(axis=0), (differences < 0).sum(axis=0)
    decided = wins + losses
    p = 2 * bdtr(np.minimum(wins, losses), np.maximum(decided, 1), 0.5)
    return np.where(decided > 0, np.minimum(p, 1.0), 1.0)


def flip_p_values(
    totals: NDArray[np.float64], random_state: int | np.random.Generator | None = 0, n_flips: int = _FLIPS
) -> tuple[NDArray[np.float64], bool]:
    """Return two-sided p-values of sums under flips of each group's sign, (G, J) → (J,), and whether all were tried.

    p is the share of flips whose sum is at least as far from 0: of all 2^G if at most 12 groups are not 0, otherwise
    (1 + those of `n_flips` random ones) / (1 + n_flips), which is exact too: what was seen is one of the flips. A
    column's p-value does not depend on the columns beside it: a comparison has one, on whatever board it stands.

    Source:
        Fisher (1935), The design of experiments, section 21; Phipson and Smyth (2010), Permutation p-values should
        never be zero, Statistical Applications in Genetics and Molecular Biology 9, eq. 2.

    Example:
        >>> flip_p_values(np.array([[1.0], [2.0], [0.5]]))[0]
        array([0.25])
    """
    n_groups = len(totals)
    least = np.abs(totals.sum(axis=0)) - 1e-9 * np.abs(totals).sum(axis=0)  # equal sums that rounding tells apart
    few = np.count_nonzero(totals, axis=0) <= _ENUMERATED
    p = np.empty(totals.shape[1])
    for column in np.flatnonzero(few):
        values = totals[totals[:, column] != 0, column]
        flips = 1.0 - 2.0 * ((np.arange(1 << len(values))[:, None] >> np.arange(len(values))) & 1)
        p[column] = (np.abs(flips @ values) >= least[column]).mean()
    if few.all():
        return p, True
    used = np.flatnonzero(totals[:, ~few].any(axis=1))
    values, as_far = totals[np.ix_(used, ~few)], np.zeros((~few).sum())
    rng, step = np.random.default_rng(random_state), max(1, _AT_ONCE // n_groups)
    for start in range(0, n_flips, step):  # a sign for every group, used or not: the same ones for whatever columns
        rows = min(step, n_flips - start)
        bits = np.unpackbits(rng.integers(0, 256, (rows, -(-n_groups // 8)), np.uint8), axis=1, count=n_groups)
        as_far += (np.abs((1.0 - 2.0 * bits[:, used]) @ values) >= least[~few]).sum(axis=0)
    p[~few] = (1 + as_far) / (1 + n_flips)
    return p, False


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number by Holm's step-down rule: the chance of any false one stays below the level.

    Args:
        p_values: One for each comparison, within 0 … 1, in any order; the adjusted ones keep it.

    Source:
        Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - place) * float(p_values[index])))
        adjusted[index] = largest
    return adjusted


def share_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    random_state: int | np.random.Generator | None = 0,
) -> PairedDifference:
    """Return the difference of two shares of hits on the same videos, or with `strata` of two mean class accuracies.

    The interval adds half a video to either side, and counts as many videos as the difference is worth given groups
    and classes. The p-value is McNemar's exact one; with groups, classes, or hits that are means over repeats, that of
    sign flips of groups.

    Args:
        first: Hits, or shares of hits over repeats, of the first prediction, within 0 … 1, shape (N,).
        second: The other prediction's, in the same order of videos, shape (N,).
        strata: Each video's class, shape (N,): the classes' means are averaged.
        groups: What each video comes from, shape (N,); None where videos are independent.
        confidence: The interval's nominal coverage.
        random_state: Seed of the flips.

    Raises:
        InputError: On numbers outside 0 … 1, or shapes that differ.

    Source:
        Agresti and Min (2005), Statistics in Medicine 24, section 3 (the interval); McNemar (1947), Psychometrika 12.

    Example:
        >>> share_difference([1, 1, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1, 1, 1])
        PairedDifference(+0.5, 95% interval -0.05545 … +0.8555, p_value=0.2188)
    """
    check_share("confidence", confidence)
    a, b = _pair(first, second)
    if min(a.min(), b.min()) < 0 or max(a.max(), b.max()) > 1:
        raise InputError("expected shares of hits within 0 … 1; for other numbers there is mean_difference")
    design = design_of(len(a), strata, groups)
    difference = (a - b)[:, None]
    low, high = difference_bounds(difference, design, confidence)
    p, test = share_p_values(difference, design, random_state)
    interval = interval_of(low, high, design, confidence, "adjusted for few differences")
    return PairedDifference(float(design.means(difference)[0]), interval, confidence, float(p[0]), test)


def share_p_values(
    differences: NDArray[np.float64], design: Design, random_state: int | np.random.Generator | None
) -> tuple[NDArray[np.float64], str]:
    """Return the p-values of differences of shares (N, J), and the test in words: see `share_difference`."""
    if design.n_groups is None and design.n_strata == 1 and np.isin(differences, (-1, 0, 1)).all():
        return mcnemar_p_values(differences), "McNemar's exact test"
    return mean_p_values(differences, design, random_state)


def mean_p_values(
    differences: NDArray[np.float64], design: Design, random_state: int | np.random.Generator | None
) -> tuple[NDArray[np.float64], str]:
    """Return the p-values of mean differences (N, J) by sign flips of groups, and the test in words."""
    p, every = flip_p_values(design.totals(differences), random_state)
    of = "videos" if design.n_groups is None else f"{design.n_groups:,} groups"
    return p, f"{'all' if every else f'{_FLIPS:,}'} sign flips of {of}"


def mean_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    random_state: int | np.random.Generator | None = 0,
) -> PairedDifference:
    """Return the mean difference of two numbers for each video (losses, log-likelihoods), with interval and p-value.

    The interval is Student's, of group totals where there are groups; the p-value is that of sign flips of groups. For
    hits there is `share_difference`.

    Args:
        first: One number a video, shape (N,).
        second: The other prediction's numbers, in the same order of videos, shape (N,).
        groups: What each video comes from, shape (N,); None where videos are independent.
        confidence: The interval's nominal coverage.
        random_state: Seed of the flips; the same seed gives the same result.

    Raises:
        InputError: On numbers that are not finite or shapes that differ.

    Source:
        Student (1908), The probable error of a mean, Biometrika 6; Fisher (1935), The design of experiments,
        section 21.

    Example:
        >>> mean_difference([0.3, 0.9, 0.8, 0.7, 0.2, 0.6], [0.1, 0.7, 0.9, 0.1, 0.1, 0.2])
        PairedDifference(+0.2333, 95% interval -0.02085 … +0.4875, p_value=0.09375)
    """
    check_share("confidence", confidence)
    a, b = _pair(first, second)
    design = design_of(len(a), None, groups)
    difference = (a - b)[:, None]
    low, high = mean_difference_bounds(difference, design, confidence)
    p, test = mean_p_values(difference, design, random_state)
    interval = interval_of(low, high, design, confidence, "Student's t")
    return PairedDifference(float(design.means(difference)[0]), interval, confidence, float(p[0]), test)


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = as_values(first, "first"), as_values(second, "second")
    if a.shape != b.shape:
        raise InputError(f"expected the same videos twice, got {len(a)} and {len(b)}")
    return a, b
