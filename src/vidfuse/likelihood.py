"""The arithmetic of log-likelihoods: normalise, floor and pool arrays in pieces that stay in the CPU cache.

Every function is pure, takes plain arrays whose last axis holds the classes, and treats ``-inf`` as probability 0.
Sums over classes and members are carried in float64, in the order in which the members come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse.errors import InputError

__all__ = [
    "DEFAULT_FLOOR",
    "VIEW_RULES",
    "add_member",
    "best_classes",
    "block_rows",
    "growing_sums",
    "linear_pool",
    "log_linear_pool",
    "log_softmax",
    "log_sum_exp",
    "reduce_views_array",
    "row_sums",
    "votes_to_log_proba",
]

Floating = NDArray[Any]

DEFAULT_FLOOR: Final = 1e-4
"""The uniform distribution's share that is mixed into members given as probabilities, so that a 0 is no veto."""

VIEW_RULES: Final = ("mean-log", "mean-probability", "vote", "max")
"""How the views of one video become one prediction."""

_TIE: Final = 1e-12  # of the fused scores of two classes, as logarithms
_PIECE: Final = 1 << 16  # numbers in a piece: 256 kB of float32 and its temporary stay in the second-level cache
_SHORT: Final = 20  # classes
_FLOATS: Final = (np.float32, np.float64)  # what the arithmetic runs in


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


def _as_floating(values: ArrayLike) -> Floating:
    array = np.asarray(values)
    if array.dtype in _FLOATS:
        return array
    return array.astype(np.float32 if array.dtype == np.float16 else np.float64)


def log_softmax(
    x: ArrayLike, axis: int = -1, out: Floating | None = None, *, scale: float = 1.0, floor: float = 0.0
) -> Floating:
    """Normalise logits into log-likelihoods along one axis.

    ``log_softmax(x)_k = x_k - log Σ_j exp(x_j)``, evaluated after subtracting each row's maximum (Blanchard, Higham
    and Higham 2021, "Accurately computing the log-sum-exp and softmax functions", section 2). A row that holds only
    ``-inf`` has no normalisation and becomes NaN: check rows before.

    With a scale s and a floor f, these are the log-likelihoods of ``(1 - f) · softmax(s·x) + f / K``: one exponential
    and one logarithm a number, where normalising twice and mixing afterwards would take three and one.

    Args:
        x: any shape; float32 stays float32 (float16 becomes it), everything else is computed as float64.
        axis: the axis that holds the classes.
        out: an array of the result's shape and dtype to write to; it may be ``x`` itself.
        scale: what ``x`` is multiplied by, above 0.
        floor: the uniform distribution's share, 0 ≤ floor < 1, so that no probability is 0.

    Returns:
        An array of ``x``'s shape; every row's exponentials sum to 1.

    Raises:
        InputError: no class, or a floor outside [0, 1).

    Example:
        >>> log_softmax([0.0, 0.0]).round(4).tolist()
        [-0.6931, -0.6931]
        >>> np.exp(log_softmax(np.log([0.75, 0.25]), floor=0.5)).round(3).tolist()
        [0.625, 0.375]
    """
    array = np.asarray(x)
    array = array if array.dtype in _FLOATS else _as_floating(array)
    if array.ndim == 0 or array.shape[axis] == 0:
        raise InputError(f"Expected an array with at least one class on axis {axis}, got shape {array.shape}.")
    if not 0 <= floor < 1:
        raise InputError(f"Expected a floor of at least 0 and below 1, got {floor!r}.")
    result = np.empty_like(array, order="C") if out is None else out
    moved, target = array, result
    if axis not in (-1, array.ndim - 1):  # classes last, in views
        moved, target = np.moveaxis(array, axis, -1), np.moveaxis(result, axis, -1)
    columns = moved.shape[-1]
    rows = moved.reshape(-1, columns)
    direct = target.reshape(rows.shape) if target.flags.c_contiguous else np.empty(rows.shape, array.dtype)
    step = max(1, _PIECE // columns)
    scratch = np.empty((min(step, len(rows)), columns), dtype=array.dtype)
    wide = scratch if array.dtype == np.float64 else np.empty(scratch.shape)
    firsts = np.arange(0, scratch.size, columns)
    with np.errstate(invalid="ignore"):
        for start in range(0, len(rows), step):
            source = rows[start : start + step]
            n = len(source)
            if columns <= _SHORT:  # by class, all rows at a time: several times as fast where rows are this short
                peak = np.maximum.reduce(np.ascontiguousarray(source.T), axis=0)
            else:  # twice as fast as max(axis=1)
                peak = np.maximum.reduceat(source.reshape(-1), firsts[:n])
            shifted = np.subtract(source, peak[:, None], out=direct[start : start + step])
            if scale != 1:
                shifted *= array.dtype.type(scale)
            exponentials = np.exp(shifted, out=scratch[:n])
            if wide is not scratch:
                np.copyto(wide[:n], exponentials)
            total = np.einsum("ij->i", wide[:n])[:, None]  # twice as fast as sum(axis=1, dtype=np.float64)
            if floor > 0:
                exponentials *= ((1 - floor) / total).astype(array.dtype)
                exponentials += array.dtype.type(floor / columns)
                np.log(exponentials, out=shifted)
            else:
                np.subtract(shifted, np.log(total).astype(array.dtype), out=shifted)
    if not np.shares_memory(direct, target):
        target[...] = direct.reshape(target.shape)
    return result


def log_sum_exp(x: ArrayLike) -> NDArray[np.float64]:
    """Return ``log Σ_k exp(x_k)`` over the last axis, in float64.

    Args:
        x: (..., K), each row with a finite maximum.

    Example:
        >>> log_sum_exp([[0.0, 0.0], [1000.0, -np.inf]]).round(4).tolist()
        [0.6931, 1000.0]
    """
    array = _as_floating(x)
    columns = array.shape[-1]
    rows = array.reshape(-1, columns)
    result = np.empty(len(rows))
    step = block_rows(columns, _PIECE)
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        peak = piece.max(axis=1)
        total = np.exp(piece - peak[:, None]).sum(axis=1, dtype=np.float64)
        result[start : start + step] = np.log(total) + peak
    return result.reshape(array.shape[:-1])


def row_sums(x: ArrayLike) -> NDArray[np.float64]:
    """Return ``Σ_k x_k`` over the last axis, summed in float64.

    Args:
        x: (..., K).

    Example:
        >>> row_sums([[0.25, 0.5], [1.0, 2.0]]).tolist()
        [0.75, 3.0]
    """
    array = _as_floating(x)
    columns = array.shape[-1]
    rows, ones = array.reshape(-1, columns), np.ones(columns)
    result = np.empty(len(rows))
    step = block_rows(columns, 4 * _PIECE)  # a sum is a short call: in small pieces, threads would wait for each other
    work = np.empty((min(step, len(rows)), columns))
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        np.copyto(work[: len(piece)], piece)
        np.dot(work[: len(piece)], ones, out=result[start : start + step])
    return result.reshape(array.shape[:-1])


def _member_weights(log_p: Floating, weights: ArrayLike) -> NDArray[np.float64]:
    """Return the weights in a shape in which ``[:, member]`` multiplies a member's log-likelihoods (N, ..., K)."""
    array = np.asarray(weights, dtype=np.float64)
    if log_p.ndim < 3 or array.shape not in ((log_p.shape[1],), log_p.shape[:2]):
        raise InputError(
            f"Expected log-likelihoods (N, M, ..., K) and weights (M,) or (N, M); got {log_p.shape} and {array.shape}."
        )
    return array.reshape(-1, log_p.shape[1], *[1] * (log_p.ndim - 2))


def log_linear_pool(log_p: ArrayLike, weights: ArrayLike, *, ids: Sequence[Any] | None = None) -> NDArray[np.float64]:
    """Pool members by the weighted sum of their log-likelihoods, normalised.

    ``log p(c) = Σ_m w_m · log p_m(c) - log Σ_j exp(Σ_m w_m · log p_m(j))``: the logarithmic opinion pool (Genest
    and Zidek 1986, "Combining probability distributions", section 3). A weight of 0 drops its member before the
    sum, so that ``0 · -inf`` never arises.

    Args:
        log_p: log-likelihoods ``(N, M, K)``, or with view axes between members and classes.
        weights: ``(M,)``, or ``(N, M)``, one row per video.
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
    total = log_linear_scores(log_p, weights, ids=ids)
    return log_softmax(total, out=total)


def log_linear_scores(log_p: ArrayLike, weights: ArrayLike, *, ids: Sequence[Any] | None = None) -> NDArray[np.float64]:
    """Return what `log_linear_pool` normalises: the weighted sums, of the same arguments; what ties, is equal.

    Raises:
        InputError: every class of a video is vetoed by a probability of 0.

    Example:
        >>> log_linear_scores([[[-1.0, -2.0], [-3.0, -4.0]]], [1, 0.5]).tolist()
        [[-2.5, -4.0]]
    """
    array = _as_floating(log_p)
    spread = _member_weights(array, weights)
    total = np.zeros((array.shape[0], *array.shape[2:]))
    for member in range(array.shape[1]):
        add_member(total, array[:, member], spread[:, member])
    _join_ties(total, _peaks(total, ids))
    return total


def add_member(total: NDArray[np.float64], log_p: Floating, weight: Any) -> None:
    """Add a member's log-likelihoods times its weights to a sum, in place; a weight of 0 adds nothing, not even NaN.

    Args:
        total: (N, ..., K).
        log_p: of the same shape, float32 or float64.
        weight: one number, or an array that broadcasts to this shape.

    Example:
        >>> total = np.zeros((1, 2))
        >>> add_member(total, np.array([[-1.0, -np.inf]]), np.array([[2.0, 0.0]]))
        >>> total.tolist()
        [[-2.0, 0.0]]
    """
    if np.all(weight):
        term = log_p.astype(np.float64)
        term *= weight
        total += term
    elif np.any(weight):
        term = np.zeros(total.shape)
        used = np.broadcast_to(weight != 0, total.shape)
        np.multiply(log_p, weight, out=term, where=used, dtype=np.float64)
        total += term


def growing_sums(
    log_p: Floating, combinations: Sequence[tuple[Sequence[int], NDArray[np.float64]]]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield the weighted sum (N, ..., K) of several combinations of members, and what its weights sum to (N,).

    A combination that begins with the members and the weights of the one before goes on from its sum, so that those
    which grow by one member cost one addition each:

        (0)         S = w_0·a_0
        (0, 1)      S = S + w_1·a_1
        (0, 1, 2)   S = S + w_2·a_2

    Args:
        log_p: log-likelihoods (N, M, ..., K).
        combinations: columns of members, and their weights (N, as many); a row without any has sums of 0, and 1 stands
            for its weights' sum.

    Yields:
        The sum, which the next one overwrites, and the weights' sum.

    Example:
        >>> log_p = np.array([[[-1.0, -2.0], [-3.0, -4.0]]])
        >>> combinations = [([0], np.ones((1, 1))), ([0, 1], np.ones((1, 2)))]
        >>> [(total.tolist(), share.tolist()) for total, share in growing_sums(log_p, combinations)]
        [([[-1.0, -2.0]], [1.0]), ([[-4.0, -6.0]], [2.0])]
    """
    total, done, used = np.zeros((len(log_p), *log_p.shape[2:])), tuple[int, ...](), np.empty((len(log_p), 0))
    for columns, weights in combinations:
        first = len(done)
        if tuple(columns[:first]) != done or not np.array_equal(weights[:, :first], used):
            first = 0
            total[:] = 0.0
        for place in range(first, len(columns)):
            member = log_p[:, columns[place]]
            add_member(total, member, weights[:, place].reshape(-1, *[1] * (member.ndim - 1)))
        done, used = tuple(columns), weights
        yield total, np.where(weights.any(axis=1), weights.sum(axis=1), 1.0)


def best_classes(scores: NDArray[np.float64], ids: Sequence[Any] | None = None) -> NDArray[np.int64]:
    """Return the best class of weighted sums (N, ..., K); of classes that tie (see `_join_ties`) the lowest.

    Args:
        scores: sums of log-likelihoods, float64.
        ids: names of the rows for error messages.

    Raises:
        InputError: every class of a video is vetoed by a probability of 0.

    Example:
        >>> best_classes(np.array([[-1.0, -1.0 + 1e-15, -2.0]])).tolist()
        [0]
    """
    return np.asarray((scores >= _tie_bound(_peaks(scores, ids))).argmax(axis=-1))


def _peaks(total: NDArray[np.float64], ids: Sequence[Any] | None) -> NDArray[np.float64]:
    """Return each row's largest sum (N, ..., 1); raise where it is -inf."""
    peak = total.max(axis=-1, keepdims=True)
    vetoed = np.isneginf(peak).reshape(len(total), -1).any(axis=1)
    if vetoed.any():
        row = int(np.flatnonzero(vetoed)[0])
        name = row if ids is None else repr(str(ids[row]))
        raise InputError(
            f"Every class of video {name} has probability 0 in some member ({int(vetoed.sum())} such videos): a "
            "log-linear pool has no answer. Set floor > 0 or use the linear pool."
        )
    return np.asarray(peak)


def linear_pool(log_p: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """Pool members by the weighted average of their probabilities.

    ``log p(c) = log Σ_m w_m · p_m(c) - log Σ_m w_m``: the linear opinion pool (Stone 1961; Genest and Zidek 1986,
    section 2), evaluated relative to each class's largest member, so that nothing underflows.

    Args:
        log_p: normalised log-likelihoods ``(N, M, K)``, or with view axes between members and classes.
        weights: ``(M,)``, or ``(N, M)``, one row per video.

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
        if spread[:, member].any():
            total += spread[:, member] * np.exp(array[:, member] - largest)
    with np.errstate(divide="ignore"):
        np.log(total, out=total)
    total += largest
    _join_ties(total, total.max(axis=-1, keepdims=True))
    return log_softmax(total, out=total)


def _join_ties(total: NDArray[np.float64], peak: NDArray[np.float64]) -> None:
    """Give the classes that lie below the best one by no more than rounding its score, the peak, in place.

    Equal sums come out different in the last bit where their terms come in another order. Here is the one place that
    decides what a tie is: scores within 1e-12 of the largest (relative, where that is above 1 in size) are equal, and
    of equal classes every argmax takes the lowest. float64 sums of up to a thousand members are exact to about 1e-13.
    """
    tied = total >= _tie_bound(peak)
    if np.count_nonzero(tied) > peak.size:
        np.copyto(total, peak, where=tied)


def _tie_bound(peak: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(peak - _TIE * np.maximum(1.0, np.abs(peak)))


def votes_to_log_proba(votes: ArrayLike, log_q: ArrayLike) -> NDArray[np.float64]:
    """Turn votes into log-likelihoods that rank the classes by votes first, and by a pool among equal votes.

    ``p(c) = (votes_c + ε·q(c)) / (Σ_j votes_j + ε)`` with ε = ½, or half of the video's smallest difference between
    two classes' votes where that is less than 1 (weighted votes), so that q breaks ties and overrules no vote. Votes
    nearer than a relative 1e-9 are equal.

    Args:
        votes: (N, K), at least 0.
        log_q: log-likelihoods (N, K) of the distribution that breaks ties.

    Example:
        >>> np.exp(votes_to_log_proba([[1.0, 1.0, 0.0]], np.log([[0.2, 0.5, 0.3]]))).round(2).tolist()
        [[0.44, 0.5, 0.06]]
    """
    count = np.array(votes, dtype=np.float64)
    q = np.exp(np.asarray(log_q, dtype=np.float64))
    epsilon: Any = 0.5
    if count.max(initial=0.0) >= 1e9 or (count != np.rint(count)).any():  # whole votes differ by 1 at least
        order = np.argsort(count, axis=1)
        ranked = np.take_along_axis(count, order, axis=1)
        gaps = np.diff(ranked, axis=1)
        near = gaps <= 1e-9 * np.maximum(ranked[:, -1:], np.finfo(np.float64).tiny)
        smallest = np.where(near, np.inf, gaps).min(axis=1, initial=1.0)[:, None]
        if (near & (gaps > 0)).any():  # one value for each run of equal votes
            steps = np.where(near, 0.0, gaps)
            ranked = ranked[:, :1] + np.concatenate([np.zeros((len(count), 1)), np.cumsum(steps, axis=1)], axis=1)
            np.put_along_axis(count, order, ranked, axis=1)
        epsilon = 0.5 * smallest
    with np.errstate(divide="ignore"):
        return log_softmax(np.log(count + epsilon * q))


def reduce_views_array(
    log_p: ArrayLike, rule: str, *, floor: float = 0.0, present: NDArray[np.bool_] | None = None
) -> Floating:
    """Reduce the views of each video to one prediction.

    "mean-log": normalised ``exp(mean_v log p_v)``; "mean-probability": ``mean_v p_v``; "max": normalised
    ``max_v p_v``; "vote": each view votes for its most probable class, ties are broken by "mean-log"
    (`votes_to_log_proba`).

    Args:
        log_p: normalised log-likelihoods (N, V, K).
        rule: one of `VIEW_RULES`.
        floor: the uniform distribution's share, mixed into every view first.
        present: which views a video has (N, V), where some are padding; each video needs one.

    Returns:
        Normalised log-likelihoods (N, K) in the dtype of `log_p`.

    Raises:
        InputError: an unknown rule, a wrong shape, a video without views, or one that "mean-log" vetoes altogether.

    Source:
        Snoek, Worring and Smeulders (2005), Early versus late fusion; Kittler et al. (1998), On combining classifiers,
        section 3 (product, sum, max and majority rules).

    Example:
        >>> two = np.log([[[0.8, 0.2], [0.4, 0.6]]])
        >>> [np.exp(reduce_views_array(two, rule)).round(3).tolist() for rule in ("mean-probability", "max")]
        [[[0.6, 0.4]], [[0.571, 0.429]]]
    """
    views = _as_floating(log_p)
    if rule not in VIEW_RULES:
        raise InputError(f"views: expected one of {', '.join(map(repr, VIEW_RULES))}, got {rule!r}")
    if views.ndim != 3:
        raise InputError(f"expected log-likelihoods with views, (N, V, K), got shape {views.shape}")
    mask = np.ones(views.shape[:2], dtype=bool) if present is None else np.asarray(present)
    if mask.shape != views.shape[:2] or mask.dtype != bool:
        raise InputError(f"present: expected booleans of shape {views.shape[:2]}, got {mask.dtype} of {mask.shape}")
    if not mask.any(axis=1).all():
        raise InputError(f"row {int(mask.any(axis=1).argmin())} has no view; drop the video or record a view of it")
    if floor > 0:
        views = log_softmax(np.where(mask[:, :, None], views, 0), floor=floor)  # padding may hold anything
    share = mask / mask.sum(axis=1, keepdims=True)
    if rule == "mean-probability":
        pooled = linear_pool(views, share)
    elif rule == "max":
        pooled = log_softmax(np.where(mask[:, :, None], views, -np.inf).max(axis=1).astype(np.float64))
    else:
        pooled = log_linear_pool(views, share)
        if rule == "vote":
            chosen = views.argmax(axis=2)
            votes = np.zeros(pooled.shape)
            for view in range(views.shape[1]):
                np.add.at(votes, (np.flatnonzero(mask[:, view]), chosen[mask[:, view], view]), 1.0)
            pooled = votes_to_log_proba(votes, pooled)
    return pooled.astype(views.dtype, copy=False)
