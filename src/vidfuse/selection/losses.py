"""The negative log-likelihood of many subsets under fixed weights, in nats."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidfuse.fusion.floors import floored_blocks
from vidfuse.likelihood import log_sum_exp
from vidfuse.selection.masks import bits
from vidfuse.stack.stack import LogitStack

__all__ = ["linear_losses", "log_linear_losses", "log_mixtures", "relative_likelihoods"]

_TINY = 1e-290  # a sum of likelihoods below it may have lost digits, or all of them
_VETO = -1e30  # stands for log 0 in products with a weight of 0


def linear_losses(
    log_true: NDArray[np.float64],
    weights: NDArray[np.float64],
    masks: NDArray[np.uint64],
    video_weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return each subset's NLL in a linear pool, −Σ_n a_n log(Σ_{m∈S} w_m p_m(y_n) / Σ_{m∈S} w_m), shape (S,).

    Only the true class's column counts: N × M numbers.

    Args:
        log_true: Log-likelihoods of the true class, shape (N, M).
        weights: The members' weights on the whole stack, shape (M,).
        masks: Subsets as bit masks, shape (S,).
        video_weights: What each video counts, shape (N,): a is its share.

    Example:
        >>> log_true = np.log([[0.9, 0.3], [0.5, 0.5]])
        >>> linear_losses(log_true, np.ones(2), np.array([1, 3], np.uint64), np.ones(2)).round(4).tolist()
        [0.3993, 0.602]
    """
    n, n_members = log_true.shape
    relative, logs, constant = relative_likelihoods(log_true, video_weights)
    losses = np.empty(len(masks))
    for first in range(0, len(masks), 128):  # pieces that stay in the second-level cache
        chosen = bits(masks[first : first + 128], n_members) * weights
        chosen /= chosen.sum(axis=1, keepdims=True)
        total = np.zeros(len(chosen))
        for start in range(0, n, 1024):
            part = slice(start, start + 1024)
            total += log_mixtures(chosen @ relative[:, part], chosen, logs[:, part]) @ video_weights[part]
        losses[first : first + 128] = -constant - total / video_weights.sum()
    return losses


def relative_likelihoods(
    log_true: NDArray[np.float64], video_weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return the true class's likelihoods divided by each video's largest, their logs, and the mean log of the largest.

    Example:
        >>> relative, logs, constant = relative_likelihoods(np.log([[0.8, 0.2]]), np.ones(1))
        >>> relative.round(4).tolist(), logs.round(4).tolist(), round(constant, 4)
        ([[1.0], [0.25]], [[0.0], [-1.3863]], -0.2231)
    """
    peak = log_true.max(axis=1)
    peak[np.isneginf(peak)] = 0.0  # of a video that every member vetoes
    logs = np.ascontiguousarray((log_true - peak[:, None]).T)
    return np.exp(logs), logs, float(np.average(peak, weights=video_weights))


def log_mixtures(
    mixed: NDArray[np.float64], weights: NDArray[np.float64], logs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the logs of mixtures Σ_m w_m p_m (S, N), anew from the logs of p where float64 does not hold p.

    Args:
        mixed: The mixtures, shape (S, N).
        weights: Their weights, shape (S, M).
        logs: log p, shape (M, N).

    Example:
        >>> logs = np.array([[-1000.0]])
        >>> log_mixtures(np.exp(logs), np.ones((1, 1)), logs).tolist()
        [[-1000.0]]
    """
    with np.errstate(divide="ignore"):
        found = np.log(mixed)
        log_weights = np.log(weights)
    lost = mixed < _TINY
    for video in np.flatnonzero(lost.any(axis=0)):
        found[lost[:, video], video] = np.logaddexp.reduce(log_weights[lost[:, video]] + logs[:, video], axis=1)
    return found


def log_linear_losses(
    stack: LogitStack,
    labels: NDArray[np.int64],
    floors: NDArray[np.float64],
    weights: NDArray[np.float64],
    video_weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the NLL of log-linear pools of temperature 1, one for each row of weights, shape (S,).

    Σ_n a_n log Σ_k exp Σ_m w_m (log p_m(k) − log p_m(y_n)), each row of w divided by its sum. Every class of every
    video is needed for every subset; the exponentials are float32, which moves a mean by about 1e-8.

    Args:
        stack: Members, in the order of `weights`.
        labels: True classes, shape (N,).
        floors: Each member's floor, shape (M,).
        weights: Rows of weights of at least 0 and a positive sum, shape (S, M).
        video_weights: What each video counts, shape (N,): a is its share.

    Example:
        >>> stack = LogitStack.from_arrays(np.log([[[0.8, 0.2], [0.5, 0.5]]]))
        >>> np.exp(-log_linear_losses(stack, np.array([0]), np.zeros(2), np.ones((1, 2)), np.ones(1))).round(4)
        array([0.6667])
    """
    n_members, n_classes = weights.shape[1], stack.n_classes
    chosen = weights / weights.sum(axis=1, keepdims=True)
    single = chosen.astype(np.float32)
    losses = np.zeros(len(chosen))
    for rows, block in floored_blocks(stack, floors, 32):
        true = np.take_along_axis(block, labels[rows, None, None], axis=2)
        losses[(chosen[:, np.isneginf(true).any(axis=(0, 2))] > 0).any(axis=1)] = np.inf
        margins = np.ascontiguousarray(block.swapaxes(0, 1))
        np.maximum(margins, np.float32(_VETO), out=margins)
        margins -= np.maximum(true, np.float32(_VETO)).swapaxes(0, 1)
        flat = margins.reshape(n_members, -1)
        step = max(1, (1 << 18) // flat.shape[1])
        for first in range(0, len(chosen), step):
            part = slice(first, first + step)
            with np.errstate(over="ignore", invalid="ignore"):  # the product may raise it for numbers beyond its end
                fused = single[part] @ flat
                total = np.exp(fused, out=fused).reshape(len(fused), -1, n_classes).sum(axis=2).astype(np.float64)
            log_total = np.log(total)
            lost = ~(total < 1e30) & np.isfinite(losses[part, None])  # the truth is too unlikely for float32
            for subset, row in np.argwhere(lost):
                log_total[subset, row] = log_sum_exp(chosen[first + subset] @ margins[:, row].astype(np.float64))
            losses[part] += log_total @ video_weights[rows]
    return losses / video_weights.sum()
