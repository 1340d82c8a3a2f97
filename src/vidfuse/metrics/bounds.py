"""Tests of "the risk is at most a" that keep their level at any number of videos: exact, or by betting.

A *risk* is the expected loss of a video that is drawn like these. A p-value here is that of "the risk is above a": if
it is at most 5 %, the risk is at most a with 95 % confidence, whatever the distribution. Which test fits which losses:

    losses                       each video for itself            videos of one group may depend on each other
    0 or 1                       binomial_p_value                 betting_p_value
    -1, 0 or 1 (differences)     difference_p_value               betting_p_value
    any of at most 1             betting_p_value                  betting_p_value
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betaincinv

from vidfuse._checks import check_share
from vidfuse.errors import InputError
from vidfuse.metrics._inputs import as_values
from vidfuse.metrics.design import design_of

__all__ = ["betting_p_value", "binomial_p_value", "clopper_pearson", "difference_p_value", "risk_p_value"]

_NUISANCE: Final = 0.004  # what the bound of the share of unequal videos may cost: a part of the usual 5 %
_LEVELS: Final = 16  # tried side by side, each √2 times the one before; they share the money as 1/2, 1/6, 1/12 …


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share: (low, high).

    Each end is wrong in at most half of 1 - confidence: for a bound of one side at 95 %, ask for 90 % and take one end.

    Args:
        successes: How many of the videos count, 0 … n.
        n: The number of independent videos.
        confidence: Within 0 … 1.

    Raises:
        InputError: A count or a confidence is out of range.

    Source:
        Clopper and Pearson (1934), The use of confidence or fiducial limits, Biometrika 26.

    Example:
        >>> [round(end, 4) for end in clopper_pearson(0, 100, confidence=0.9)]
        [0.0, 0.0295]
    """
    _check_counts(successes, n)
    check_share("confidence", confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def binomial_p_value(errors: int, n: int, risk: float) -> float:
    """Return the p-value of "the risk is above this", for losses of 0 and 1: ``P(Binomial(n, risk) ≤ errors)``.

    It is at most 5 % exactly where the upper end of `clopper_pearson` with 90 % is at most `risk`.

    Args:
        errors: How many of the videos have a loss of 1.
        n: The number of independent videos.
        risk: The share that is to be undercut, within 0 … 1.

    Raises:
        InputError: A count or the risk is out of range.

    Example:
        >>> round(binomial_p_value(0, 299, 0.01), 3), round(binomial_p_value(1, 299, 0.01), 3)
        (0.05, 0.199)
    """
    _check_counts(errors, n)
    check_share("risk", risk)
    return float(bdtr(errors, n, risk))


def difference_p_value(lost: int, won: int, n: int, margin: float) -> float:
    """Return the p-value of "the mean difference is above the margin", for differences of -1, 0 and 1.

    With d the margin and q the (unknown) share of unequal videos, ``lost - won`` is at most what was seen with a
    probability F(q), largest over q at d. For q ≤ ½ a difference is a sum of two independent indicators less 1, so that
    the sum over videos is unimodal with a mode next to its mean (Darroch 1964), and F grows with q wherever what was
    seen lies two below the mean. So F is taken at an upper bound of q that fails in 0.4 % of all samples, and these
    0.4 % are added (Berger and Boos 1994).

    Args:
        lost: Videos with a difference of 1, for instance right by all members and wrong by fewer.
        won: Videos with a difference of -1.
        n: The number of independent videos, unequal or not.
        margin: The mean difference that is to be undercut, above 0 and below 1.

    Raises:
        InputError: A count or the margin is out of range.

    Source:
        Berger and Boos (1994), P values maximized over a confidence set for the nuisance parameter, JASA 89.

    Example:
        >>> round(difference_p_value(lost=3, won=3, n=2000, margin=0.005), 3)
        0.01
    """
    _check_counts(lost + won, n)
    check_share("margin", margin)
    unequal = clopper_pearson(lost + won, n, 1 - 2 * _NUISANCE)[1]
    if unequal <= margin:  # fewer are unequal than the difference would need
        return _NUISANCE
    seen = lost - won
    if unequal > 0.5 or seen > (n - 1) * margin - 2:
        return 1.0
    # a difference is A + B - 1 with P(A) P(B) = (q + d)/2 and P(A) + P(B) = 1 + d
    root = np.sqrt(1 + margin**2 - 2 * unequal)
    a, b = (1 + margin + root) / 2, (1 + margin - root) / 2
    others = np.arange(n + 1)
    mass = np.diff(bdtr(others, n, b), prepend=0.0)
    most = seen + n - others  # A may come so often where B came `others` times
    below = np.where(most >= n, 1.0, bdtr(np.clip(most, 0, n), n, min(a, 1.0)))
    return min(1.0, float(mass @ np.where(most < 0, 0.0, below)) + _NUISANCE)


def betting_p_value(losses: ArrayLike, risk: float, groups: ArrayLike | None = None) -> float:
    """Return the p-value of "the risk is above this" for any losses of at most 1, and for videos in groups.

    Whoever doubts that the risk is above a bets on it. A bet at the level C turns 1 into

        Π_g (m_g - s_g) / (mean m - a·mean n),   m_g = max(C, n_g),

    s_g the sum of the losses of group g, n_g its size (1 without groups). Whatever the losses of a group have to do
    with each other: groups are independent, so that the mean of the product is Π (m_g - n_g μ_g), μ_g the group's own
    risk. No factor is negative, so that this is at most the G-th power of their mean, mean m - mean nμ, which is at
    most the denominator if the risk, Σ n_g μ_g / Σ n_g, is above a. So the money is at most 1 in the mean; what
    sixteen levels make of it, which share it, exceeds 1/p with a probability of at most p (Markov). The sizes of the
    groups are taken as given.

    The least level is that at which Σ max(n_g - C, 0) = a Σ n_g. There no bet makes more of videos that lose nothing:
    groups of which those above the level lose all with a chance of 1 - C/n_g have a risk of a, and lose nothing with a
    chance of Π min(1, C/n_g), which is 1 over the money. Very uneven groups can hide their losses in the few large
    ones, and no valid test shows much by them.

    Args:
        losses: One number of at most 1 for each video (N,); negative ones are gains.
        risk: The mean loss that is to be undercut, at least 0 and below 1.
        groups: What each video comes from (N,); videos of different groups are independent.

    Raises:
        InputError: Losses above 1, a risk out of range, or not one group for each video.

    Source:
        Waudby-Smith and Ramdas (2024), Estimating means of bounded random variables by betting, JRSS B 86, sections 4
        and 5; the bets are constant here, so that the order of the videos does not matter.

    Example:
        >>> losses = np.repeat([0.0, 1.0], [990, 10])
        >>> round(betting_p_value(losses, 0.03), 4), betting_p_value(losses, 0.01)
        (0.0005, 1.0)
    """
    values = as_values(losses, "losses")
    if values.max() > 1:
        raise InputError(f"losses: expected numbers of at most 1, got {values.max()}")
    if not 0 <= risk < 1:
        raise InputError(f"risk: expected a number of at least 0 and below 1, got {risk!r}")
    group = design_of(len(values), groups=groups).group
    sizes, lost = np.bincount(group), np.bincount(group, values)
    most = np.maximum(_least_level(sizes, risk) * 2 ** (0.5 * np.arange(_LEVELS))[:, None], sizes)
    with np.errstate(divide="ignore"):  # everything may be lost
        each = np.log(np.maximum(most - lost, 0.0)).sum(axis=1)
    money = each - len(sizes) * np.log(most.mean(axis=1) - risk * sizes.mean())
    best = float(money.max())
    if best <= 0:
        return 1.0
    place = np.arange(1, _LEVELS + 1)
    return min(1.0, float(np.exp(-best) / np.average(np.exp(money - best), weights=1 / (place * (place + 1)))))


def _least_level(sizes: NDArray[np.int64], risk: float) -> float:
    """Return the level above which lies a share `risk` of all videos, groups taken as columns.

    Example:
        >>> _least_level(np.array([1, 1, 6]), 0.25)  # 2 of 8 videos lie above 4
        4.0
    """
    falling = np.sort(sizes)[::-1]
    return float(((np.cumsum(falling) - risk * falling.sum()) / np.arange(1, len(falling) + 1)).max())


def risk_p_value(losses: ArrayLike, risk: float, groups: ArrayLike | None = None, *, lowest: int = 0) -> float:
    """Return the p-value of "the risk is above this", for losses that are whole numbers from `lowest` to 1.

    By `binomial_p_value` (lowest = 0) or `difference_p_value` (lowest = -1), with groups by `betting_p_value`. Which
    losses are possible has to be said: a test that is chosen by the losses that came does not keep its level.

    Args:
        losses: One number for each video (N,).
        risk: The mean loss that is to be undercut, above 0 and below 1.
        groups: What each video comes from (N,), or None where each stands for itself.
        lowest: 0, or -1 for differences of what is right or wrong.

    Raises:
        InputError: Other losses, a risk out of range, or not one group for each video.

    Example:
        >>> losses = np.zeros(299)
        >>> [round(risk_p_value(losses, 0.01, groups), 3) for groups in (None, np.arange(299) // 2)]
        [0.05, 0.297]
    """
    values: NDArray[np.float64] = as_values(losses, "losses")
    if lowest not in (0, -1) or not np.isin(values, (lowest, 0, 1)).all():
        raise InputError(
            f"losses: expected whole numbers from 0 or -1 to 1, got some from {values.min()} to {values.max()}"
        )
    if groups is not None:
        return betting_p_value(values, risk, groups)
    lost, won = int((values == 1).sum()), int((values == -1).sum())
    return difference_p_value(lost, won, len(values), risk) if lowest else binomial_p_value(lost, len(values), risk)


def _check_counts(successes: int, n: int) -> None:
    if not 0 <= successes <= n or n < 1:
        raise InputError(f"expected a count within 0 … n and an n of at least 1, got {successes} of {n}")
