"""The negative log-likelihood of many subsets under fixed weights, in nats."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidfuse.fusion.floors import floored_blocks
from vidfuse.likelihood import log_sum_exp
from vidfuse.selection.masks import bits
from vidfuse.stack.stack import LogitStack

__all__ = ["linear_losses", "log_linear_losses", "relative_likelihoods"]

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
    relative, constant = relative_likelihoods(log_true, video_weights)
    losses = np.empty(len(masks))
    for first in range(0, len(masks), 128):  # pieces that stay in the second-level cache
        chosen = bits(masks[first : first + 128], n_members) * weights
        chosen /= chosen.sum(axis=1, keepdims=True)
        total = np.zeros(len(chosen))
        for start in range(0, n, 1024):
            part = slice(start, start + 1024)
            with np.errstate(divide="ignore"):
                total += np.log(chosen @ relative[:, part]) @ video_weights[part]
        losses[first : first + 128] = -constant - total / video_weights.sum()
    return losses


def relative_likelihoods(
    log_true: NDArray[np.float64], video_weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return the true class's likelihoods divided by each video's largest, (M, N), and the mean log of the largest.

    Example:
        >>> relative, constant = relative_likelihoods(np.log([[0.8, 0.2]]), np.ones(1))
        >>> relative.round(4).tolist(), round(constant, 4)
        ([[1.0], [0.25]], -0.2231)
    """
    peak = np.maximum(log_true.max(axis=1), -700.0)
    relative = np.ascontiguousarray(np.exp(log_true - peak[:, None]).T)
    return relative, float(np.average(peak, weights=video_weights))


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
