"""The arithmetic of log-likelihoods: normalise, floor and pool arrays in pieces that stay in the CPU cache.

Every function is pure, takes plain arrays whose last axis holds the classes, and treats ``-inf`` as probability 0.
Sums over classes and members are carried in float64, in the order in which the members come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse.errors import InputError

__all__ = ["block_rows", "linear_pool", "log_linear_pool", "log_softmax", "mix_floor"]

Floating = NDArray[Any]

_PIECE = 1 << 16  # numbers a piece: 256 kB of float32 and its temporary stay in the second-level cache


def block_rows(numbers_per_row: int, budget: int = 1 << 18) -> int:
    """Return how many rows make a block of at most ``budget`` numbers, and at least one.

    Args:
        numbers_per_row: numbers that one video contributes to a block (members × views × classes).
        budget: numbers that a block may hold; the default is 1 MB of float32.

    Example:
        >>> block_rows(7 * 400)
        93
    """
    return max(1, budget // max(1, numbers_per_row))


def _pieces(rows: int, columns: int) -> Iterator[slice]:
    step = block_rows(columns, _PIECE)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _as_floating(values: ArrayLike) -> Floating:
    array = np.asarray(values)
    if array.dtype in (np.float32, np.float64):
        return array
    return array.astype(np.float32 if array.dtype == np.float16 else np.float64)


def _rows_first(array: Floating, axis: int, out: Floating | None) -> tuple[Floating, Floating, Floating]:
    """Bring ``axis`` to the end as rows × columns: (rows, writable result rows, the result in its own layout)."""
    if array.ndim == 0 or array.shape[axis] == 0:
        raise InputError(f"Expected an array with at least one class on axis {axis}, got shape {array.shape}.")
    result = np.empty_like(array, order="C") if out is None else out
    moved, target = np.moveaxis(array, axis, -1), np.moveaxis(result, axis, -1)
    columns = moved.shape[-1]
    return moved.reshape(-1, columns), target, result


def log_softmax(x: ArrayLike, axis: int = -1, out: Floating | None = None) -> Floating:
    """Normalise logits into log-likelihoods along one axis.

    ``log_softmax(x)_k = x_k - log Σ_j exp(x_j)``, evaluated after subtracting each row's maximum (Blanchard, Higham
    and Higham 2021, "Accurately computing the log-sum-exp and softmax functions", section 2). A row that holds only
    ``-inf`` has no normalisation and becomes NaN: check rows before.

    Args:
        x: any shape; float32 stays float32 (float16 becomes it), everything else is computed as float64.
        axis: the axis that holds the classes.
        out: an array of the result's shape and dtype to write to; it may be ``x`` itself.

    Returns:
        An array of ``x``'s shape; every row's exponentials sum to 1.

    Example:
        >>> log_softmax([0.0, 0.0]).round(4).tolist()
        [-0.6931, -0.6931]
    """
    array = _as_floating(x)
    rows, target, result = _rows_first(array, axis, out)
    direct = target.reshape(rows.shape) if target.flags.c_contiguous else np.empty(rows.shape, array.dtype)
    columns = rows.shape[1]
    work = np.empty((min(block_rows(columns, _PIECE), len(rows)), columns), dtype=array.dtype)
    for piece in _pieces(len(rows), columns):
        source = rows[piece]
        scratch = work[: len(source)]
        with np.errstate(invalid="ignore"):
            shifted = np.subtract(source, source.max(axis=1, keepdims=True), out=direct[piece])
            np.exp(shifted, out=scratch)
            total = scratch.sum(axis=1, dtype=np.float64, keepdims=True)
            np.subtract(shifted, np.log(total).astype(array.dtype), out=shifted)
    if not np.shares_memory(direct, target):
        target[...] = direct.reshape(target.shape)
    return result


def mix_floor(log_p: ArrayLike, floor: float, out: Floating | None = None) -> Floating:
    """Mix log-likelihoods with the uniform distribution, so that no probability is 0.

    ``p -> (1 - floor) · p + floor / K`` along the last axis.

    Args:
        log_p: normalised log-likelihoods ``(..., K)``.
        floor: the uniform distribution's share, 0 ≤ floor < 1; 0 leaves the values as they are.
        out: an array of the result's shape and dtype to write to; it may be ``log_p`` itself.

    Raises:
        InputError: a floor outside [0, 1).

    Example:
        >>> np.exp(mix_floor(np.log([0.75, 0.25]), 0.5)).round(3).tolist()
        [0.625, 0.375]
    """
    if not 0 <= floor < 1:
        raise InputError(f"Expected a floor of at least 0 and below 1, got {floor!r}.")
    array = _as_floating(log_p)
    rows, target, result = _rows_first(array, -1, out)
    if floor == 0:
        if result is not array:
            result[...] = array
        return result
    uniform, share = array.dtype.type(floor / rows.shape[1]), array.dtype.type(1 - floor)
    flat = target.reshape(rows.shape) if target.flags.c_contiguous else np.empty(rows.shape, array.dtype)
    for piece in _pieces(*rows.shape):
        mixed = np.exp(rows[piece], out=flat[piece])
        mixed *= share
        mixed += uniform
        np.log(mixed, out=mixed)
    if not np.shares_memory(flat, target):
        target[...] = flat.reshape(target.shape)
    return result


def _member_weights(log_p: Floating, weights: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(weights, dtype=np.float64)
    members = log_p.shape[1]
    if log_p.ndim < 3 or array.shape not in ((members,), (len(log_p), members), (members, log_p.shape[-1])):
        raise InputError(
            f"Expected log-likelihoods (N, M, ..., K) and weights (M,), (N, M) or (M, K); "
            f"got {log_p.shape} and {array.shape}."
        )
    return array


def _spread(weights: NDArray[np.float64], member: int, log_p: Floating, per_class: bool) -> Any:
    """Return one member's weights, shaped to multiply its ``(N, ..., K)`` log-likelihoods."""
    if weights.ndim == 1:
        return weights[member]
    if per_class:
        return weights[member]
    return weights[:, member].reshape(-1, *([1] * (log_p.ndim - 2)))


def log_linear_pool(
    log_p: ArrayLike, weights: ArrayLike, *, per_class: bool = False, ids: Sequence[Any] | None = None
) -> NDArray[np.float64]:
    """Pool members by the weighted sum of their log-likelihoods, normalised.

    ``log p(c) = Σ_m w_m · log p_m(c) - log Σ_j exp(Σ_m w_m · log p_m(j))``: the logarithmic opinion pool (Genest
    and Zidek 1986, "Combining probability distributions", section 3). A weight of 0 drops its member before the
    sum, so that ``0 · -inf`` never arises.

    Args:
        log_p: log-likelihoods ``(N, M, K)``, or with view axes between members and classes.
        weights: ``(M,)``; ``(N, M)``, one row a video; or ``(M, K)`` with ``per_class``.
        per_class: the weights are ``(M, K)``.
        ids: names of the rows for error messages.

    Returns:
        Normalised log-likelihoods, float64, with the members' axis gone.

    Raises:
        InputError: every class of a video is vetoed by a probability of 0.

    Example:
        >>> pooled = log_linear_pool(np.log([[[0.8, 0.2], [0.5, 0.5]]]), [0.5, 0.5])
        >>> np.exp(pooled).round(4).tolist()
        [[0.6667, 0.3333]]
    """
    array = _as_floating(log_p)
    spread = _member_weights(array, weights)
    total = np.zeros((array.shape[0], *array.shape[2:]))
    for member in range(array.shape[1]):
        weight = _spread(spread, member, array, per_class)
        if np.all(weight):
            total += weight * array[:, member].astype(np.float64, copy=False)
        elif np.any(weight):
            shape = total.shape
            term = np.zeros(shape)
            used = np.broadcast_to(weight != 0, shape)
            np.multiply(array[:, member], weight, out=term, where=used, dtype=np.float64)
            total += term
    vetoed = np.isneginf(total.max(axis=-1)).reshape(len(total), -1).any(axis=1)
    if vetoed.any():
        row = int(np.flatnonzero(vetoed)[0])
        name = row if ids is None else repr(str(ids[row]))
        raise InputError(
            f"Every class of video {name} has probability 0 in some member ({int(vetoed.sum())} such videos): a "
            "log-linear pool has no answer. Set floor > 0 or use the linear pool."
        )
    return log_softmax(total, out=total)


def linear_pool(log_p: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """Pool members by the weighted average of their probabilities.

    ``log p(c) = log Σ_m w_m · p_m(c) - log Σ_m w_m``: the linear opinion pool (Stone 1961; Genest and Zidek 1986,
    section 2), evaluated relative to each class's largest member, so that nothing underflows.

    Args:
        log_p: normalised log-likelihoods ``(N, M, K)``, or with view axes between members and classes.
        weights: ``(M,)``, or ``(N, M)``, one row a video.

    Returns:
        Normalised log-likelihoods, float64, with the members' axis gone; ``-inf`` where every member says 0.

    Example:
        >>> np.exp(linear_pool(np.log([[[0.8, 0.2], [0.5, 0.5]]]), [1, 1])).round(4).tolist()
        [[0.65, 0.35]]
    """
    array = _as_floating(log_p)
    spread = _member_weights(array, weights)
    largest = np.maximum(array.max(axis=1).astype(np.float64), np.finfo(np.float64).min)
    total = np.zeros_like(largest)
    for member in range(array.shape[1]):
        weight = _spread(spread, member, array, False)
        if np.any(weight):
            total += weight * np.exp(array[:, member] - largest)
    with np.errstate(divide="ignore"):
        np.log(total, out=total)
    total += largest
    return log_softmax(total, out=total)
