"""Weights by validation score: from each member's hits or losses to a point on the simplex."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._threads import map_members, one_blas_thread
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.fusion.floors import is_number
from vidfuse.likelihood import block_rows, log_sum_exp, row_sums
from vidfuse.stack.stack import LogitStack

__all__ = [
    "SCORE_WEIGHTS",
    "accuracy_weights",
    "check_power",
    "inverse_nll_weights",
    "log_odds_weights",
    "member_hits",
    "score_weights",
    "to_simplex",
    "true_log_likelihoods",
    "true_scores",
]

SCORE_WEIGHTS = ("uniform", "accuracy", "log-odds", "inverse-nll")
"""Weights that are a function of the members' validation scores alone."""


_ROWS_AT_ONCE = 1 << 20  # numbers of one member that are looked at together


def member_hits(stack: LogitStack, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether each member's most probable class is the true one (N, M); the lowest class wins ties.

    The scores are compared as they are stored: normalising them changes no rank. A member that lacks a video misses it.

    Example:
        >>> stack = LogitStack.from_arrays({"a": np.log([[0.9, 0.1], [0.8, 0.2]])})
        >>> member_hits(stack, np.array([0, 1])).tolist()
        [[True], [False]]
    """
    hits = np.empty((len(stack), len(stack.members)), dtype=bool)
    step = block_rows(stack.n_classes, _ROWS_AT_ONCE)

    def fill(column: int) -> None:
        for start in range(0, len(stack), step):
            rows = slice(start, start + step)
            hits[rows, column] = stack.scores(stack.members[column], rows).argmax(axis=1) == labels[rows]

    map_members(fill, range(len(stack.members)), hits.size * stack.n_classes)
    return hits if stack.present is None else hits & stack.present


def true_scores(stack: LogitStack, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each member's score of the true class as it is stored (M, N), in float64; NaN where it lacks the video.

    Example:
        >>> true_scores(LogitStack.from_arrays({"a": np.array([[2.0, 1.0], [3.0, 5.0]])}), np.array([0, 1])).tolist()
        [[2.0, 5.0]]
    """
    result = np.empty((len(stack.members), len(stack)))
    step = block_rows(stack.n_classes, _ROWS_AT_ONCE)
    for start in range(0, len(stack), step):
        part = stack[start : start + step]
        for column, true in enumerate(result):
            at = start
            for scores in part.pieces(column):
                true[at : at + len(scores)] = _true(scores, labels[at : at + len(scores)])
                at += len(scores)
    if stack.present is not None:
        result[~stack.present.T] = np.nan
    return result


def _true(scores: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[Any]:
    """Return each row's number at its label."""
    rows, classes = scores.shape
    if not scores.flags.c_contiguous:
        return scores[np.arange(rows), labels]
    return scores.reshape(-1).take(np.arange(0, rows * classes, classes) + labels)  # several times faster


def true_log_likelihoods(
    stack: LogitStack, labels: NDArray[np.int64], floors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return each member's log-likelihood of the true class (N, M): N × M numbers of N × M × K.

    Args:
        stack: the members.
        labels: true classes (N,).
        floors: the uniform distribution's share in each member (M,).

    Example:
        >>> stack = LogitStack.from_arrays({"a": np.log([[0.9, 0.1], [0.8, 0.2]])})
        >>> np.exp(true_log_likelihoods(stack, np.array([0, 1]), np.zeros(1))).round(3).tolist()
        [[0.9], [0.2]]
    """
    result = np.empty((len(stack.members), len(stack)))
    step = block_rows(stack.n_classes, _ROWS_AT_ONCE)

    def fill(column: int) -> None:
        name, kind = stack.members[column], stack.kinds[column]
        for start in range(0, len(stack), step):
            rows = slice(start, start + step)
            scores = stack.scores(name, rows)
            true = _true(scores, labels[rows]).astype(np.float64)
            if kind in ("probabilities", "sum"):
                with np.errstate(divide="ignore"):
                    result[column, rows] = np.log(true) - np.log(row_sums(scores))
            else:
                result[column, rows] = true - log_sum_exp(scores)

    with one_blas_thread():
        map_members(fill, range(len(stack.members)), result.size * stack.n_classes)
    for log_true, floor in zip(result, floors, strict=True):
        if floor > 0:
            log_true[:] = np.log((1 - floor) * np.exp(log_true) + floor / stack.n_classes)
    return result.T


def to_simplex(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """Divide non-negative values by their sum; where all are 0, warn and return uniform weights.

    Example:
        >>> to_simplex([1.0, 3.0], "accuracy").tolist()
        [0.25, 0.75]
    """
    array = np.asarray(values, dtype=np.float64)
    total = array.sum()
    if total > 0:
        return np.asarray(array / total)
    warnings.warn(
        f"no member earns a weight by {what}; all get the same one. Are labels and order right?",
        VidfuseWarning,
        stacklevel=2,
    )
    return np.full(len(array), 1.0 / len(array))


def check_power(power: float) -> None:
    """Raise unless the exponent of the accuracy is a finite number of at least 0.

    Example:
        >>> check_power(2.0)
    """
    if not is_number(power) or power < 0:
        raise InputError(f"power: expected a finite number of at least 0, got {power!r}")


def accuracy_weights(accuracy: ArrayLike, power: float = 1.0) -> NDArray[np.float64]:
    """Weight members by validation accuracy: ``w_m ∝ accuracy_m ** power``.

    Power 1 is the rule of multi-network fusion by score; a higher one sharpens it.

    Args:
        accuracy: each member's accuracy (M,), in 0 … 1.
        power: the exponent, at least 0.

    Example:
        >>> accuracy_weights([0.6, 0.3], power=2).round(3).tolist()
        [0.8, 0.2]
    """
    check_power(power)
    return to_simplex(np.asarray(accuracy, dtype=np.float64) ** power, "accuracy")


def log_odds_weights(hits: ArrayLike, n: float, n_classes: int) -> NDArray[np.float64]:
    """Weight members by the log-odds of being right against being any one wrong class.

    ``w_m ∝ max(0, log(p(K - 1) / (1 - p)))`` with ``p = (hits + ½)/(n + 1)``: the weights that are optimal for voters
    who err independently and uniformly (Nitzan and Paroush 1982; Kuncheva 2014, "Combining Pattern Classifiers",
    section 4.3.2); a member at chance gets 0.

    Args:
        hits: how many videos each member got right (M,).
        n: the number of videos.
        n_classes: K.

    Example:
        >>> log_odds_weights([90, 50, 10], n=100, n_classes=2).round(3).tolist()
        [1.0, 0.0, 0.0]
    """
    p = (np.asarray(hits, dtype=np.float64) + 0.5) / (n + 1)
    return to_simplex(np.maximum(0.0, np.log(p * (n_classes - 1) / (1 - p))), "log-odds")


def inverse_nll_weights(nll: ArrayLike) -> NDArray[np.float64]:
    """Weight members by ``w_m ∝ 1 / NLL_m``; a member with an infinite loss gets 0.

    Args:
        nll: each member's mean negative log-likelihood (M,), in nats.

    Example:
        >>> inverse_nll_weights([1.0, 3.0]).tolist()
        [0.75, 0.25]
    """
    loss = np.maximum(np.asarray(nll, dtype=np.float64), 1e-12)
    return to_simplex(1.0 / loss, "inverse NLL")


def score_weights(
    rule: str, evidence: NDArray[Any], omega: NDArray[np.float64], n_classes: int, power: float = 1.0
) -> NDArray[np.float64]:
    """Return the weights of one of the rules in `SCORE_WEIGHTS` that go by a score.

    Args:
        rule: "accuracy", "log-odds" or "inverse-nll".
        evidence: each member's hits (N, M), or for "inverse-nll" its log-likelihoods of the true class.
        omega: the videos' weights (N,), which sum to 1.
        n_classes: K.
        power: the exponent of "accuracy".

    Example:
        >>> hits = np.array([[True, False], [True, True]])
        >>> score_weights("accuracy", hits, np.full(2, 0.5), n_classes=2).round(3).tolist()
        [0.667, 0.333]
    """
    if not omega.all():  # -inf times a weight of 0 is no number
        evidence, omega = evidence[omega > 0], omega[omega > 0]
    if rule == "accuracy":
        return accuracy_weights(omega @ evidence, power)
    if rule == "log-odds":
        n = 1.0 / float(omega @ omega)
        return log_odds_weights(n * (omega @ evidence), n, n_classes)
    return inverse_nll_weights(-(omega @ evidence))
