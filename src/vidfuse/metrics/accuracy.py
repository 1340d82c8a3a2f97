"""Accuracy at rank k, over videos and over classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse.errors import InputError
from vidfuse.metrics._inputs import as_labels, as_scores

__all__ = [
    "class_accuracies",
    "class_shares",
    "f1_of_classes",
    "macro_f1",
    "mean_class_accuracy",
    "top_k_accuracy",
    "top_k_hits",
    "true_ranks",
]


def true_ranks(y: NDArray[np.int64], z: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return how many classes stand before the true one (N,): larger scores, and equal scores of lower index.

    Example:
        >>> true_ranks(np.array([0, 1]), np.array([[0.5, 0.5], [0.7, 0.3]])).tolist()
        [0, 1]
    """
    rank = np.empty(len(y), np.int64)
    step = max(1, (1 << 18) // z.shape[1])
    index = np.arange(z.shape[1])
    for start in range(0, len(y), step):
        block, true = z[start : start + step], y[start : start + step, None]
        score = np.take_along_axis(block, true, axis=1)
        before = (block > score) | ((block == score) & (index < true))
        rank[start : start + step] = np.count_nonzero(before, axis=1)
    return rank


def top_k_hits(labels: ArrayLike, log_proba: ArrayLike, k: int = 1) -> NDArray[np.bool_]:
    """Return, for each video, whether its true class is among the k best: shape (N,).

    Args:
        labels: True classes, integers of shape (N,).
        log_proba: Log-likelihoods, or any scores that rank the classes, of shape (N, K).
        k: How many classes count, 1 … K. Among equal scores the lower class index ranks first.

    Raises:
        InputError: On shapes that do not match, NaN, a label outside 0 … K − 1, or k outside 1 … K.

    Example:
        >>> top_k_hits([0, 1], [[0.5, 0.5], [0.7, 0.3]]).tolist()
        [True, False]
    """
    y, z = as_scores(labels, log_proba)
    if not isinstance(k, int | np.integer) or not 1 <= k <= z.shape[1]:
        raise InputError(f"k: expected a whole number from 1 to {z.shape[1]} (the number of classes), got {k!r}")
    return true_ranks(y, z) < k


def top_k_accuracy(labels: ArrayLike, log_proba: ArrayLike, k: int = 1) -> float:
    """Return the share of videos whose true class is among the k best: (1/N) Σ_n [rank_n(y_n) ≤ k], in 0 … 1.

    Args:
        labels: True classes, integers of shape (N,).
        log_proba: Log-likelihoods, or any scores that rank the classes, of shape (N, K).
        k: How many classes count, 1 … K. Among equal scores the lower class index ranks first.

    Raises:
        InputError: On shapes that do not match, NaN, a label outside 0 … K − 1, or k outside 1 … K.

    Example:
        >>> import numpy as np
        >>> log_proba = np.log([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
        >>> top_k_accuracy([0, 2], log_proba), top_k_accuracy([0, 2], log_proba, k=2)
        (0.5, 1.0)
    """
    return float(top_k_hits(labels, log_proba, k).mean())


def class_accuracies(
    labels: ArrayLike, log_proba: ArrayLike, k: int = 1, n_classes: int | None = None
) -> NDArray[np.float64]:
    """Return the top-k accuracy of each class, shape (K,): NaN for a class that no video has.

    Args:
        labels: True classes, integers of shape (N,).
        log_proba: Log-likelihoods, or any scores that rank the classes, of shape (N, K).
        k: How many classes count, 1 … K.
        n_classes: The length of the result; all classes of `log_proba` by default.

    Raises:
        InputError: As `top_k_accuracy`, or where a label is not below `n_classes`.

    Example:
        >>> class_accuracies([0, 0, 2], [[3.0, 1, 0], [1, 3, 0], [0, 1, 3]]).tolist()
        [0.5, nan, 1.0]
    """
    hits = top_k_hits(labels, log_proba, k)
    size = np.shape(log_proba)[1] if n_classes is None else n_classes
    return class_shares(as_labels(labels, size), hits, size)


def class_shares(y: NDArray[np.int64], hits: NDArray[np.bool_], size: int) -> NDArray[np.float64]:
    """Return the share of each class's videos that are hit (K,): NaN for a class that no video has.

    Example:
        >>> class_shares(np.array([0, 0, 2]), np.array([True, False, True]), 3).tolist()
        [0.5, nan, 1.0]
    """
    counts = np.bincount(y, minlength=size)
    right = np.bincount(y, weights=hits, minlength=size)
    return np.divide(right, counts, out=np.full(size, np.nan), where=counts > 0)


def mean_class_accuracy(labels: ArrayLike, log_proba: ArrayLike, k: int = 1, n_classes: int | None = None) -> float:
    """Return the top-k accuracy of each class, averaged over the classes, in 0 … 1.

    (1/C) Σ_c (1/N_c) Σ_{n: y_n = c} [rank_n(c) ≤ k], over the C classes that the labels hold (as scikit-learn's
    `balanced_accuracy_score`), or over `n_classes` classes, where an absent class counts as 0. It is the metric of the
    VIPriors action recognition challenge.

    Args:
        labels: True classes, integers of shape (N,).
        log_proba: Log-likelihoods, or any scores that rank the classes, of shape (N, K).
        k: How many classes count, 1 … K.
        n_classes: The number of classes to divide by; by default the classes that are present.

    Raises:
        InputError: As `top_k_accuracy`, or where a label is not below `n_classes`.

    Example:
        >>> scores = [[3.0, 1, 0], [1, 3, 0], [0, 1, 3]]
        >>> mean_class_accuracy([0, 0, 2], scores), mean_class_accuracy([0, 0, 2], scores, n_classes=3)
        (0.75, 0.5)
    """
    by_class = class_accuracies(labels, log_proba, k, n_classes)
    if n_classes is None:
        return float(np.nanmean(by_class))
    return float(np.nansum(by_class) / n_classes)


def macro_f1(labels: ArrayLike, log_proba: ArrayLike) -> float:
    """Return the F1 of each class, averaged over the classes, in 0 … 1.

    (1/C) Σ_c 2 TP_c / (2 TP_c + FP_c + FN_c), over the C classes that some video has or is taken for, as scikit-learn's
    `f1_score(average="macro")`. Among equal scores the lower class index is predicted.

    Args:
        labels: True classes, integers of shape (N,).
        log_proba: Log-likelihoods, or any scores that rank the classes, of shape (N, K).

    Raises:
        InputError: On shapes that do not match, NaN, or a label outside 0 … K − 1.

    Example:
        >>> round(macro_f1([0, 0, 1, 2], [[3.0, 1, 0], [1, 3, 0], [0, 3, 0], [0, 1, 3]]), 4)
        0.7778
    """
    y, z = as_scores(labels, log_proba)
    return f1_of_classes(y, z.argmax(axis=1))


def f1_of_classes(y: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Return `macro_f1` of true and predicted classes (N,).

    Example:
        >>> round(f1_of_classes(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2])), 4)
        0.7778
    """
    size = int(max(y.max(), predicted.max())) + 1
    hits = np.bincount(y[predicted == y], minlength=size)
    either = np.bincount(y, minlength=size) + np.bincount(predicted, minlength=size)  # 2 TP + FP + FN
    return float(np.mean(2 * hits[either > 0] / either[either > 0]))
