"""Has a stream changed? Bets against its being like the reference, whose gain is bounded by chance for all time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import as_array
from vidfuse.errors import InputError

__all__ = ["class_log_wealth", "conformal_p_values", "log_wealth"]

_STAKES = (-1.0, -0.5, 0.5, 1.0)
_JUMP = 0.01
_BLOCK = 25
_PIECE = 512  # numbers that are ranked among each other at once


def conformal_p_values(reference: ArrayLike, stream: ArrayLike, theta: ArrayLike) -> NDArray[np.float64]:
    """Return the rank of each number of a stream among the reference and the stream so far, as a share, (T,).

    p_t = (#{larger} + θ_t #{equal}) / (N + t), the number itself among its equals. While all are exchangeable, the p_t
    are independent and uniform, exactly.

    Args:
        reference: Numbers of the reference, shape (N,).
        stream: Numbers in the order in which they came, shape (T,).
        theta: Independent draws from 0 … 1, shape (T,).

    Raises:
        InputError: Not one draw for each number.

    Source:
        Vovk, Gammerman and Shafer (2005), Algorithmic learning in a random world, section 2.3 (smoothed p-values) and
        theorem 8.1.

    Example:
        >>> conformal_p_values([1.0, 2.0, 3.0], [9.0, 0.0], [0.5, 0.5])
        array([0.125, 0.9  ])
    """
    held = np.sort(as_array(reference, "reference").astype(np.float64))
    values, draws = as_array(stream, "stream").astype(np.float64), as_array(theta, "theta")
    if draws.shape != values.shape:
        raise InputError(f"theta: expected a draw for each of {len(values)} numbers, got shape {draws.shape}")
    p = np.empty(len(values))
    for start in range(0, len(values), _PIECE):  # a piece against all before it, and its numbers against each other
        piece = slice(start, start + _PIECE)
        own = values[piece]
        before = np.tri(len(own), k=-1, dtype=bool)
        below, up_to = np.searchsorted(held, own, "left"), np.searchsorted(held, own, "right")
        larger = len(held) - up_to + ((own > own[:, None]) & before).sum(axis=1)
        equal = up_to - below + ((own == own[:, None]) & before).sum(axis=1)
        p[piece] = (larger + draws[piece] * (equal + 1)) / (len(held) + 1 + np.arange(len(own)))
        held = np.sort(np.concatenate([held, own]), kind="stable")  # two sorted runs: they are merged
    return p


def log_wealth(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return the logarithm of what bets against uniform p-values have made of 1, after each one, (T,) or (T, S).

    Eight bets share the money, 1 + ε (2p − 1) and 1 + ε (2 |2p − 1| − 1) with ε = ±½ and ±1: p too low or too high,
    too near the ends or the middle. Beside them a ninth part rests, and 1 % of all is dealt anew each time, so that a
    change is found late in a long stream, too. If the p-values are independent and uniform, the wealth is a martingale:
    it ever reaches C with probability 1 / C at most, whenever one looks (Ville 1939).

    Args:
        p_values: Shape (T,), or (T, S) for S streams beside each other.

    Source:
        Vovk, Petej, Nouretdinov, Ahlberg, Carlsson and Gammerman (2021), Retrain or not retrain: conformal test
        martingales for change-point detection, COPA, section 3 (the simple jumper).

    Example:
        >>> [round(float(log_wealth(np.tile(p, 15))[-1]), 1) for p in ([0.05, 0.05], [0.25, 0.75])]
        [17.0, -0.5]
    """
    p = as_array(p_values, "p_values").astype(np.float64)
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        raise InputError("p_values: expected numbers within 0 … 1")
    places = np.stack([2 * p - 1, 2 * np.abs(2 * p - 1) - 1], axis=-1)
    stakes = np.array(_STAKES)
    gains = (1 + places[..., None] * stakes).reshape(*p.shape, 2 * len(stakes))
    gains = np.concatenate([gains, np.ones((*p.shape, 1))], axis=-1)
    share = np.full(gains[0].shape if len(gains) else (1,), 1 / gains.shape[-1])
    total: Any = 0.0
    result = np.empty(p.shape)
    for place, gain in enumerate(gains):
        share = ((1 - _JUMP) * share + _JUMP / share.shape[-1]) * gain  # the shares sum to 1
        made = share.sum(axis=-1)
        share = share / made[..., None]
        total = total + np.log(made)
        result[place] = total
    return result


def class_log_wealth(reference: ArrayLike, stream: ArrayLike, n_classes: int, theta: ArrayLike) -> NDArray[np.float64]:
    """Return the logarithm of what bets on the shares of classes have made of 1, after each one, (T,).

    The classes of a block of 25 are ranked by how often they came in the block before, among the reference and their
    own block: if the last block's classes are rarer in the reference, ranks are high. Given the block before, the bets
    on a block are a martingale; the k-th block has 1 / (k (k + 1)) of the money. The reference's classes may be dealt
    evenly (so many of each class): its ranks then are only more regular than by chance.

    Args:
        reference: Classes of the reference, shape (N,).
        stream: Classes in the order in which they came, shape (T,).
        n_classes: K.
        theta: Independent draws from 0 … 1, shape (T,).

    Example:
        >>> before, later = np.arange(300) % 10, np.arange(100) % 2
        >>> class_log_wealth(before, later, 10, np.full(100, 0.5))[[24, 49, 99]].round(1)
        array([-inf, 11.1,  9.3])
    """
    held, classes, draws = as_array(reference, "reference"), as_array(stream, "stream"), as_array(theta, "theta")
    result = np.full(len(classes), -np.inf)
    for k, start in enumerate(range(_BLOCK, len(classes), _BLOCK), start=1):
        often = np.bincount(classes[start - _BLOCK : start], minlength=n_classes)
        block = slice(start, start + _BLOCK)
        result[block] = log_wealth(conformal_p_values(often[held], often[classes[block]], draws[block]))
        result[block] -= np.log(k * (k + 1))
    return result
