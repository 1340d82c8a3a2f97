"""How members differ in what they get right: pairwise measures (M, M), and the oracle that bounds every selection.

Notation, for members i and j: N11 both right, N10 only i, N01 only j, N00 both wrong, N their sum.
Source: Kuncheva and Whitaker (2003), Measures of diversity in classifier ensembles, Machine Learning 51, section 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import as_array
from vidfuse.errors import InputError
from vidfuse.metrics._inputs import as_hits

__all__ = ["disagreement", "double_fault", "oracle_accuracy", "prediction_disagreement", "q_statistic"]


def _counts(hits: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return N11, N10 and N00 of all pairs, each (M, M); N01 is the transpose of N10."""
    right = as_hits(hits, ndim=2).astype(np.float64)
    wrong = 1 - right
    return right.T @ right, right.T @ wrong, wrong.T @ wrong


def disagreement(hits: ArrayLike) -> NDArray[np.float64]:
    """Return how often exactly one of two members is right, (N01 + N10) / N, shape (M, M), in 0 … 1.

    Args:
        hits: Right predictions, booleans of shape (N, M).

    Raises:
        InputError: On hits that are not booleans of shape (N, M).

    Example:
        >>> disagreement([[1, 1], [1, 0], [0, 1], [1, 1]]).tolist()
        [[0.0, 0.5], [0.5, 0.0]]
    """
    _, n10, _ = _counts(hits)
    return (n10 + n10.T) / len(as_array(hits))


def double_fault(hits: ArrayLike) -> NDArray[np.float64]:
    """Return how often two members are both wrong, N00 / N, shape (M, M); the diagonal holds their error rates.

    Args:
        hits: Right predictions, booleans of shape (N, M).

    Raises:
        InputError: On hits that are not booleans of shape (N, M).

    Example:
        >>> double_fault([[1, 1], [1, 0], [0, 0], [1, 1]]).tolist()
        [[0.25, 0.25], [0.25, 0.5]]
    """
    return _counts(hits)[2] / len(as_array(hits))


def q_statistic(hits: ArrayLike) -> NDArray[np.float64]:
    """Return Yule's Q of all pairs, (N11 N00 − N01 N10) / (N11 N00 + N01 N10), shape (M, M), in −1 … 1.

    0 for independent members, 1 where they are right on the same videos; NaN where it is 0/0 (a member that is always
    right or always wrong).

    Args:
        hits: Right predictions, booleans of shape (N, M).

    Raises:
        InputError: On hits that are not booleans of shape (N, M).

    Source:
        Yule (1900), On the association of attributes in statistics, Phil. Trans. A 194.

    Example:
        >>> q_statistic([[1, 1], [1, 1], [1, 0], [0, 1], [0, 0]]).round(4).tolist()
        [[1.0, 0.3333], [0.3333, 1.0]]
    """
    n11, n10, n00 = _counts(hits)
    same, other = n11 * n00, n10 * n10.T
    return np.divide(same - other, same + other, out=np.full_like(same, np.nan), where=same + other > 0)


def oracle_accuracy(hits: ArrayLike) -> float:
    """Return how often at least one member is right: the accuracy of an oracle that picks a member for each video.

    Args:
        hits: Right predictions, booleans of shape (N, M).

    Raises:
        InputError: On hits that are not booleans of shape (N, M).

    Source:
        Kuncheva (2002), A theoretical study on six classifier fusion strategies, IEEE TPAMI 24(2).

    Example:
        >>> oracle_accuracy([[1, 0], [0, 1], [0, 0], [1, 1]])
        0.75
    """
    return float(as_hits(hits, ndim=2).any(axis=1).mean())


def prediction_disagreement(predictions: ArrayLike) -> NDArray[np.float64]:
    """Return how often two members predict different classes, shape (M, M), in 0 … 1; it needs no labels.

    Args:
        predictions: Predicted classes, integers of shape (N, M).

    Raises:
        InputError: On predictions that are not integers of shape (N, M).

    Source:
        Skalak (1996), The sources of increased accuracy for two proposed boosting algorithms.

    Example:
        >>> prediction_disagreement([[0, 0], [1, 2], [2, 2], [1, 1]]).tolist()
        [[0.0, 0.25], [0.25, 0.0]]
    """
    p = as_array(predictions)
    if p.ndim != 2 or p.dtype.kind not in "iu" or p.size == 0:
        raise InputError(f"predictions: expected integers of shape (N, M), got {p.dtype} of shape {p.shape}")
    return np.stack([(p != p[:, [m]]).mean(axis=0) for m in range(p.shape[1])])
