"""Confidence intervals that keep their level: Wilson's for shares, the bootstrap-t for losses, BCa for any metric.

All take groups: videos of one group (clips of one source, of one signer) may depend on each other in any way. Where the
data hold no interval it is refused, and says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import as_array, check_count, check_share
from vidfuse.errors import InputError
from vidfuse.metrics._inputs import as_values
from vidfuse.metrics.design import Design, design_of

__all__ = [
    "Interval",
    "accuracy_interval",
    "bootstrap_interval",
    "difference_bounds",
    "interval_of",
    "mean_bounds",
    "mean_difference_bounds",
    "metric_bounds",
    "resampled_rows",
    "share_bounds",
    "share_interval",
    "why_refused",
]

_AT_ONCE = 1 << 22  # numbers that are drawn together
_FEW = 3  # groups with a large loss, below which the sample says nothing about the tail
_LARGE = math.log(2)  # a loss that some other class's probability explains


class _Ends(NamedTuple):
    low: float
    high: float


class Interval(_Ends):
    """A confidence interval: the pair `low, high`, with what it rests on.

    Attributes:
        low: The lower end; NaN where the interval is refused.
        high: The upper end; NaN where the interval is refused.
        confidence: The nominal coverage.
        n_groups: The number of independent groups that it rests on; None where each video stands for itself.
        method: How it was computed, in words.
        refused: Why there is no interval; empty where there is one.
    """

    confidence: float
    n_groups: int | None
    method: str
    refused: str

    def __new__(
        cls,
        low: float,
        high: float,
        confidence: float = 0.95,
        n_groups: int | None = None,
        method: str = "",
        refused: str = "",
    ) -> Self:
        """Return the pair of ends, with what is said of it."""
        made = super().__new__(cls, low, high)
        made.confidence, made.n_groups, made.method, made.refused = confidence, n_groups, method, refused
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.low, self.high, self.confidence, self.n_groups, self.method, self.refused

    def __repr__(self) -> str:
        if self.refused:
            return f"Interval(refused: {self.refused})"
        groups = "" if self.n_groups is None else f", {self.n_groups:,} groups"
        return f"Interval(low={self.low:.6g}, high={self.high:.6g}{groups})"


def accuracy_interval(hits: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a share `hits / n` of independent videos, within 0 … 1.

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
    if n < 1 or not 0 <= hits <= n:
        raise InputError(f"expected n ≥ 1 and 0 ≤ hits ≤ n, got hits={hits}, n={n}")
    check_share("confidence", confidence)
    low, high = _wilson(np.array([hits / n]), np.array([float(n)]), _quantile(confidence, math.inf))
    return Interval(float(low[0]), float(high[0]), confidence, method="Wilson")


def share_interval(
    values: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Return the interval of a share, or with `strata` of the mean of the classes' shares (mean class accuracy).

    Wilson's interval, with the number of videos that the estimate is worth in place of N: p(1 − p) over its variance,
    which is that of group totals within classes (see `design`), and Student's quantile at that variance's degrees of
    freedom in place of the normal one. Independent videos without strata are worth N: this is Wilson's own. Where all
    videos are right, or all wrong, groups are taken to be of one piece; where few hold the rarer outcome, in part.

    Args:
        values: Hits, or each video's share of hits over repeats, within 0 … 1, shape (N,).
        strata: Each video's class, shape (N,): the classes' means are averaged.
        groups: What each video comes from, shape (N,); None where videos are independent.
        confidence: The interval's nominal coverage.

    Returns:
        The interval; refused where every class has one video (one group) only, for then nothing tells a variance.

    Raises:
        InputError: On values outside 0 … 1, strata or groups of another shape, or a confidence outside (0, 1).

    Source:
        Korn and Graubard (1998), Confidence intervals for proportions with small expected number of positive counts
        estimated from survey data, Survey Methodology 24 (effective sample size and degrees of freedom); Franco,
        Little, Louis and Slud (2019), J. Survey Statistics and Methodology 7 (Wilson's interval with both).

    Example:
        >>> share_interval([1, 1, 1, 1, 1, 1, 0, 0, 1, 1])
        Interval(low=0.490162, high=0.943318)
        >>> share_interval([1, 1, 1, 1, 1, 1, 0, 0, 1, 1], groups=[0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
        Interval(low=0.222554, high=0.982423, 5 groups)
    """
    v = as_values(values)
    if v.min() < 0 or v.max() > 1:
        raise InputError(f"values: expected shares within 0 … 1, got {v.min():.6g} … {v.max():.6g}")
    check_share("confidence", confidence)
    design = design_of(len(v), strata, groups)
    low, high = share_bounds(v[:, None], design, confidence)
    method = "Wilson" if design.n_strata == 1 else "Wilson, variance within classes"
    return interval_of(low, high, design, confidence, method)


def share_bounds(
    values: NDArray[np.float64], design: Design, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of the intervals of shares (N, J), each (J,): see `share_interval`; NaN where refused."""
    share = design.means(values)
    alike = 1 / float((design.weights**2).sum())  # the number of videos, were all shares equal
    plain = share * (1 - share) / alike
    if design.n_groups is None and design.n_strata == 1 and np.isin(values, (0, 1)).all():
        return _wilson(share, np.full(len(share), alike), _quantile(confidence, math.inf))
    spread = design.spread(values)
    one_piece = alike / design.effective
    effect = np.divide(spread.variance, plain, out=np.full(len(share), np.nan), where=plain > 1e-15)
    effect = np.where((plain <= 1e-15) & ~np.isnan(spread.variance), one_piece, effect)
    if design.n_groups is not None:  # one group's errors cannot tell whether groups hang together
        held = design.by(design.group, design.size, values)
        sizes = np.bincount(design.group)[:, None]
        rarer = np.minimum((held > 0).sum(axis=0), (held < sizes).sum(axis=0))
        effect = np.maximum(effect, effect + (one_piece - effect) * 0.5**rarer)
    effect = np.maximum(effect, 1e-9)
    low, high = _wilson(share, alike / effect, _quantile(confidence, spread.freedom))
    return low, high


def difference_bounds(
    differences: NDArray[np.float64], design: Design, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of the intervals of differences of shares (N, J), within −1 … 1, each (J,).

    With n the number of videos that the difference is worth, and q the share of videos on which both differ, there is
    half a video more for either side: d' = n d / (n + 2), q' = (n q + 1) / (n + 2), d' ± t √((q' − d'²) / (n + 2)).

    Source:
        Agresti and Min (2005), Simple improved confidence intervals for comparing matched proportions, Statistics in
        Medicine 24, section 3; the number of videos as in `share_interval`.
    """
    difference = design.means(differences)
    alike = 1 / float((design.weights**2).sum())
    differ = design.means(differences**2)
    if design.n_groups is None and design.n_strata == 1 and np.isin(differences, (-1, 0, 1)).all():
        return _around(difference, differ, np.full(len(differ), alike), _quantile(confidence, math.inf))
    plain = (differ - difference**2) / alike
    spread = design.spread(differences)
    known = plain > 1e-15
    effect = np.divide(spread.variance, plain, out=np.full(len(plain), alike / design.effective), where=known)
    effect = np.where(np.isnan(spread.variance), np.nan, np.maximum(effect, 1e-9))
    return _around(difference, differ, alike / effect, _quantile(confidence, spread.freedom))


def bootstrap_interval(
    values: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    largest: float | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | np.random.Generator | None = 0,
) -> Interval:
    """Return the bootstrap-t interval of a mean: losses, log-likelihoods, scores without bounds.

    Groups are drawn with replacement; each resample's (mean* − mean) / s.e.* takes the place of Student's t, so that
    the interval reaches further to the side of a long tail: (mean − t*(1 − α/2) s.e., mean − t*(α/2) s.e.).
    With `largest`, no end lies beyond Gaffke's bound, which holds for any values within 0 … largest; where fewer than
    three groups hold a loss above ln 2, so that the sample does not tell of its tail, that bound is the upper end.
    Booleans are hits, whose mean is a share: they get the interval of `share_interval`.

    Args:
        values: One number a video, shape (N,).
        groups: What each video comes from, shape (N,); None where videos are independent.
        largest: The largest possible value of a loss that is at least 0, where there is one.
        confidence: The interval's nominal coverage.
        n_resamples: How many resamples.
        random_state: Seed or generator; the same seed gives the same interval.

    Returns:
        The interval; refused where all groups have the same mean and no `largest` is known: they say nothing of others.

    Raises:
        InputError: On values that are not finite numbers of shape (N,), groups of another shape, or a confidence
            outside (0, 1).

    Source:
        Efron and Tibshirani (1993), An introduction to the bootstrap, section 12.5; Hall (1988), Annals of Statistics
        16, p. 927 (errors of order 1/n). The bound: Gaffke (2005), Mathematical Methods of Statistics 14, p. 451;
        Learned-Miller and Thomas (2019), arXiv:1905.06208, section 3.

    Example:
        >>> bootstrap_interval([0.1, 0.2, 0.1, 0.4, 0.2, 0.1, 2.5, 0.3, 0.1, 0.2])
        Interval(low=0.100348, high=4.13354)
    """
    check_share("confidence", confidence)
    v = as_values(values)
    if as_array(values).dtype.kind == "b":
        return share_interval(v, groups=groups, confidence=confidence)
    design = design_of(len(v), None, groups)
    low, high = mean_bounds(v[:, None], design, confidence, n_resamples, random_state, largest)
    return interval_of(low, high, design, confidence, f"bootstrap-t, {n_resamples:,} resamples")


def mean_bounds(
    values: NDArray[np.float64],
    design: Design,
    confidence: float,
    n_resamples: int,
    random_state: int | np.random.Generator | None,
    largest: float | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of the bootstrap-t intervals of means (N, J), each (J,): see `bootstrap_interval`.

    All columns share the resamples.
    """
    check_count("n_resamples", n_resamples)
    rng = np.random.default_rng(random_state)
    size, columns = design.size, values.shape[1]
    sums = design.by(design.group, size, values)
    counts = np.bincount(design.group).astype(np.float64)
    mean = sums.sum(axis=0) / counts.sum()
    centred = sums - counts[:, None] * mean
    if size < 2:
        return np.full(columns, np.nan), np.full(columns, np.nan)
    error = np.sqrt(size / (size - 1) * (centred**2).sum(axis=0)) / counts.sum()
    scale = np.maximum(np.abs(values).max(axis=0), 1e-300)
    # Of each resample, with k_g the number of times that group g is drawn and c_g its centred sum:
    # mean* = Σ k c / Σ k n and s.e.*² ∝ Σ k (c − mean* n)² = Σ k c² − 2 mean* Σ k c n + mean*² Σ k n².
    table = np.concatenate(
        [centred, centred**2, centred * counts[:, None], np.stack([counts, counts**2], axis=1)], axis=1
    )
    studentised = np.empty((n_resamples, columns))
    step = max(1, _AT_ONCE // size)
    for start in range(0, n_resamples, step):
        drawn = _counts(rng, min(step, n_resamples - start), size) @ table
        first, square, cross = (drawn[:, i * columns : (i + 1) * columns] for i in range(3))
        n, nn = drawn[:, -2:-1], drawn[:, -1:]
        off = first / n
        spread = np.sqrt(np.maximum(size / (size - 1) * (square - 2 * off * cross + off**2 * nn), 0.0)) / n
        flat = np.where(off == 0, 0.0, np.copysign(np.inf, off))  # a resample without any spread
        part = np.divide(off, spread, out=flat, where=spread > 1e-9 * error)
        studentised[start : start + len(part)] = part
    tail = (1 - confidence) / 2
    below, above = np.quantile(studentised, [tail, 1 - tail], axis=0, method="inverted_cdf")
    with np.errstate(invalid="ignore"):
        low, high = mean - above * error, mean - below * error
    same = error <= 1e-12 * scale
    if largest is None:
        return np.where(same, np.nan, low), np.where(same, np.nan, high)
    top = _gaffke(rng, sums, counts, largest, 1 - tail, n_resamples)
    bottom = -_gaffke(rng, -sums, counts, 0.0, 1 - tail, n_resamples)
    told = (design.by(design.group, size, (values > _LARGE).astype(np.float64)) > 0).sum(axis=0)
    low = np.where(same, bottom, np.maximum(low, bottom))
    return low, np.where(same | (told < _FEW), top, np.minimum(high, top))


def mean_difference_bounds(
    differences: NDArray[np.float64], design: Design, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of Student's intervals of mean differences (N, J), each (J,); NaN where all are the same.

    Differences of two losses have long tails on both sides, for which the bootstrap-t is too short: with 60 videos or
    30 groups it covers 88 to 93 % where Student's covers 94 to 96 (`benchmarks/coverage.py`).

    Source:
        Student (1908), The probable error of a mean, Biometrika 6; groups as in `Design.spread`.
    """
    spread = design.spread(differences)
    half = _quantile(confidence, spread.freedom) * np.sqrt(spread.variance)
    same = ~(spread.variance > (1e-12 * np.abs(differences).max(axis=0)) ** 2)
    return np.where(same, np.nan, spread.mean - half), np.where(same, np.nan, spread.mean + half)


def metric_bounds(
    value: float,
    drawn: NDArray[np.float64],
    left_out: NDArray[np.float64],
    confidence: float,
) -> tuple[float, float]:
    """Return the ends of the BCa interval of any statistic; NaN where it is the same in every resample.

    Args:
        value: The statistic.
        drawn: Its values in resamples, shape (B,).
        left_out: Its values with one group (one block of groups) left out, shape (L,), for the acceleration.
        confidence: The interval's nominal coverage.

    Source:
        Efron (1987), Better bootstrap confidence intervals, JASA 82, sections 2 and 7; Efron and Tibshirani (1993),
        section 14.3.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=4000)
        >>> [round(end, 1) for end in metric_bounds(0.0, draws, np.array([-0.1, 0.1]), 0.9)]
        [-1.6, 1.7]
    """
    from scipy.special import ndtr, ndtri

    if np.ptp(drawn) <= 1e-12 * max(1.0, abs(value)):
        return math.nan, math.nan
    below = (np.count_nonzero(drawn < value) + 0.5 * np.count_nonzero(drawn == value)) / len(drawn)
    shift = float(ndtri(min(max(below, 1 / len(drawn)), 1 - 1 / len(drawn))))
    off = left_out.mean() - left_out
    total = float((off**2).sum())
    speed = float((off**3).sum()) / (6 * total**1.5) if total > 0 else 0.0
    z = shift + ndtri(np.array([(1 - confidence) / 2, (1 + confidence) / 2]))
    low, high = np.quantile(drawn, ndtr(shift + z / (1 - speed * z)))
    return float(low), float(high)


def interval_of(
    low: NDArray[np.float64] | float, high: NDArray[np.float64] | float, design: Design, confidence: float, method: str
) -> Interval:
    """Return an interval from its ends, or refuse it with the reason where they are NaN."""
    ends = float(np.ravel(low)[0]), float(np.ravel(high)[0])
    refused = why_refused(design) if math.isnan(ends[0]) else ""
    return Interval(*ends, confidence, design.n_groups, "" if refused else method, refused)


def why_refused(design: Design) -> str:
    """Return why a design has no interval."""
    if design.size < 2:
        what = "one video" if design.n_groups is None else "one group"
        return f"{what} tells no variance"
    if not design.known.any():
        what = "video" if design.n_groups is None else "group"
        return f"every class has one {what} only, which tells no variance within a class"
    what = "videos" if design.n_groups is None else "groups"
    return f"all {design.size:,} {what} have the same value, which says nothing about others"


def resampled_rows(design: Design, n_resamples: int, seed: int | None) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each resample of groups; the same seed gives the same resamples."""
    order = np.argsort(design.group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(design.group))])
    rng = np.random.default_rng(seed)
    for _ in range(n_resamples):
        chosen = rng.integers(0, design.size, size=design.size)
        lengths = starts[chosen + 1] - starts[chosen]
        offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        yield order[np.repeat(starts[chosen], lengths) + offsets]


def _wilson(
    share: NDArray[np.float64], n: NDArray[np.float64], z: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)  # NaN, where refused, stays
    low[(share <= 1e-12) & ~np.isnan(half)] = 0.0
    high[(share >= 1 - 1e-12) & ~np.isnan(half)] = 1.0
    return low, high


def _around(
    difference: NDArray[np.float64], differ: NDArray[np.float64], n: NDArray[np.float64], t: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    centre = n * difference / (n + 2)
    half = t * np.sqrt(((n * differ + 1) / (n + 2) - centre**2) / (n + 2))
    return np.maximum(centre - half, -1.0), np.minimum(centre + half, 1.0)


def _quantile(confidence: float, freedom: float) -> float:
    """Return Student's quantile of (1 + confidence) / 2; the normal one for endless degrees of freedom."""
    from scipy.special import ndtri, stdtrit

    if math.isinf(freedom):
        return float(ndtri((1 + confidence) / 2))
    return float(stdtrit(max(freedom, 1.0), (1 + confidence) / 2))


def _counts(rng: np.random.Generator, rows: int, size: int) -> NDArray[np.float64]:
    """Return how often each of `size` groups is drawn in resamples of as many: (rows, size)."""
    drawn = rng.integers(0, size, size=(rows, size))
    drawn += np.arange(rows)[:, None] * size
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def _gaffke(
    rng: np.random.Generator,
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    largest: float,
    level: float,
    n_resamples: int,
) -> NDArray[np.float64]:
    """Return an upper bound of means: a quantile of means by random weights, the largest value added to the sample."""
    size = len(counts)
    table = np.concatenate([sums, counts[:, None]], axis=1)
    extra = float(counts.mean())
    found = np.empty((n_resamples, sums.shape[1]))
    step = max(1, _AT_ONCE // size)
    for start in range(0, n_resamples, step):
        stop = min(start + step, n_resamples)
        weight = rng.standard_exponential((stop - start, size))
        more = rng.standard_exponential((stop - start, 1)) * extra
        total = weight @ table
        found[start:stop] = (total[:, :-1] + more * largest) / (total[:, -1:] + more)
    return np.quantile(found, level, axis=0)
