"""The arguments of `LogitStack.from_arrays`, brought into one form, and the rows that hold no prediction."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import Kind, as_float_array, check_choice, check_member_names, did_you_mean, first_few, place
from vidfuse.errors import InputError, VidfuseWarning, option

__all__ = ["Blanks", "blank_rows", "name_arrays", "warn_if_odd", "without_blanks"]

Blanks = Literal["error", "leave-out", "keep"]

_BLOCK_NUMBERS: Final = 1 << 19
_MANY: Final = 50  # videos from which on a row of zero logits, or hardly any difference of classes, is no accident
_TINY: Final = 1e-3  # a difference of log-likelihoods of which float32 keeps four digits, beside log K
_SURE: Final = 0.75  # above 2/K of K > 2, the most that logits come to which stray from their mean by 1/K, both ways
_PROBES: Final = 256


def name_arrays(arrays: Any, members: Sequence[str] | None) -> dict[str, NDArray[np.floating[Any]]]:
    """Name each member's array: from a mapping, from pairs, or from the second axis of one array."""
    pairs = list(arrays.items()) if isinstance(arrays, Mapping) else None
    if pairs is None and isinstance(arrays, list | tuple) and arrays and isinstance(arrays[0], tuple):
        pairs = list(arrays)
    if pairs is not None:
        names = check_member_names(name for name, _ in pairs)
        named = {n: as_float_array(a, f"member {n!r}") for n, (_, a) in zip(names, pairs, strict=True)}
        if members is None:
            return named
        chosen = check_member_names(members)
        unknown = [name for name in chosen if name not in named]
        if unknown:
            raise InputError(
                f"members: no array for {first_few(unknown)}; there are {first_few(names, 20)}"
                f"{did_you_mean(unknown[0], names)}"
            )
        return {name: named[name] for name in chosen}
    array = as_float_array(arrays, "scores")
    if array.ndim not in (3, 4):
        raise InputError(
            f"expected scores (N, M, K) or (N, M, V, K), got shape {array.shape}; "
            "name a single member as {name: scores}"
        )
    if members is None:
        width = len(str(max(array.shape[1] - 1, 0)))
        members = [f"member{m:0{width}d}" for m in range(array.shape[1])]
    names = check_member_names(members)
    if len(names) != array.shape[1]:
        raise InputError(f"members: expected {array.shape[1]} names, one for each member, got {len(names)}")
    return {name: array[:, column] for column, name in enumerate(names)}


def without_blanks(
    named: Mapping[str, NDArray[np.floating[Any]]],
    kinds: Mapping[str, Kind],
    ids: Mapping[str, NDArray[np.str_]] | None,
    missing: str,
) -> dict[str, NDArray[np.int64]]:
    """Find the rows in which a member has no prediction: NaN in every class, or zeros where probabilities belong.

    Args:
        named: Each member's scores (N, [V,] K).
        kinds: What they are.
        ids: Each member's ids, or None.
        missing: "error" refuses such rows; otherwise the rows that have predictions are returned.

    Returns:
        For each member that has such rows, its other rows.

    Raises:
        InputError: There are some and `missing` is "error", or a member has nothing else.
    """
    check_choice("missing", missing, get_args(Blanks))
    kept = {}
    for name, array in named.items():
        blank = blank_rows(array, kinds[name])
        rows = np.flatnonzero(blank)
        if not rows.size:
            continue
        listed = [place(int(row), None if ids is None else ids[name]) for row in rows[:5]]
        message = (
            f"member {name!r}: no prediction (NaN or zero in every class) for {rows.size} of {len(array)} videos: "
            f"{', '.join(listed)}{f' and {rows.size - 5} more' if rows.size > 5 else ''}"
        )
        if rows.size == len(array):
            raise InputError(message)
        if missing == "leave-out":
            warnings.warn(f"{message}; left out", VidfuseWarning, stacklevel=3)
        if missing != "error":
            kept[name] = np.flatnonzero(~blank)
        elif kinds[name] == "logits" and not np.isnan(array[rows[0]]).any():
            warnings.warn(
                f"{message}; equal logits say that every class is as likely: if they mean that nothing was predicted, "
                f"{option('missing', 'leave-out')} leaves these videos out",
                VidfuseWarning,
                stacklevel=3,
            )
        else:
            raise InputError(
                f"{message}; {option('missing', 'leave-out')} leaves these videos out, {option('missing', 'keep')} "
                "lets rules go on with the other members"
            )
    return kept


def blank_rows(scores: NDArray[np.floating[Any]], kind: Kind) -> NDArray[np.bool_]:
    """Return which rows of (N, [V,] K) hold nothing.

    Zero logits could be meant. They count as nothing where most of many rows are others, without a single zero.
    """
    blank = np.zeros(len(scores), dtype=bool)
    step = max(1, _BLOCK_NUMBERS // max(1, int(np.prod(scores.shape[1:]))))
    for start in range(0, len(scores), step):
        block = scores[start : start + step].reshape(len(scores[start : start + step]), -1)
        first = block[:, 0]
        suspects = np.flatnonzero(np.isnan(first) | (first == 0))
        some = block[suspects]
        blank[start + suspects] = np.isnan(some).all(axis=1) | ((some == 0).all(axis=1) & (kind != "log-likelihoods"))
    if kind == "logits" and blank.any() and not np.isnan(scores[blank]).any():
        meant = len(blank) < _MANY or blank.mean() > 0.5 or bool((scores[~blank] == 0).any())
        blank[:] = blank & (not meant)
    return blank


def warn_if_odd(name: str, scores: NDArray[np.floating[Any]], kind: Kind) -> None:
    """Warn of a member whose scores (N, [V,] K) are alike in every one of many videos, as those of a model are not.

    =======================  ====================================================================================
    flat                     all log q of a row within `_TINY`: float32 keeps few of the digits in which they differ
    softmax applied twice    log q_k = p_k − log Σ exp p. So log q_k − mean log q + 1/K is a p_k: within 0 … 1 in every
                             row, and above `_SURE` in some (K > 2)
    shares                   "logits" of at least 0 with the same sum in every row: percentages, or sums over views
    =======================  ====================================================================================
    """
    k, total = scores.shape[-1], float(scores[:1].sum(axis=-1, dtype=np.float64).flat[0])
    if len(scores) < _MANY:
        return

    def ends(block: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a row's lowest and highest log q − mean log q + 1/K."""
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log(block, dtype=np.float64) if kind in ("probabilities", "sum") else block.astype(np.float64)
            values += 1 / k - values.mean(axis=-1, keepdims=True)
        return values.min(axis=-1), values.max(axis=-1)

    def flat(block: NDArray[np.floating[Any]]) -> bool:
        lowest, highest = ends(block)
        return bool((highest - lowest <= _TINY).all())

    def silent(block: NDArray[np.floating[Any]]) -> bool:  # as a placeholder is
        return bool((block == block[..., :1]).all())

    def shares(block: NDArray[np.floating[Any]]) -> bool:
        if block.min() < 0:
            return False
        lowest, highest = ends(block)
        off = np.abs(block.sum(axis=-1, dtype=np.float64) - total)
        return bool((off <= 1e-2 * (highest - lowest)).all())  # and so not by an offset that is common to all classes

    def two_levels(block: NDArray[np.floating[Any]]) -> bool:  # as where one class is named
        low, high = block.min(axis=-1, keepdims=True), block.max(axis=-1, keepdims=True)
        return bool(((block == low) | (block == high)).all())

    def shares_of_one(block: NDArray[np.floating[Any]]) -> bool:
        lowest, highest = ends(block)
        return bool((lowest >= -_TINY).all() and (highest <= 1 + _TINY).all())

    twice = k > 2 and _every_row(scores, shares_of_one)
    twice = twice and not _every_row(scores, lambda block: bool((ends(block)[1] < _SURE).all()))
    found = ""
    if (twice or _every_row(scores, flat)) and not _every_row(scores, silent):
        found = (
            "its scores are nearly equal for every class in each of {} videos: softmax of probabilities, or logits on "
            "another scale? Beside others' they hardly count; pass what the network gave"
        )
    elif kind in ("logits", "log-likelihoods") and _every_row(scores, shares) and not _every_row(scores, two_levels):
        found = (
            f"{kind} were said, but its scores are at least 0 and have the sum {total:.4g} in each of {{}} videos: "
            f"percentages, or probabilities summed over views? Say {option('kind', 'sum')}"
        )
    if found:
        warnings.warn(f"member {name!r}: {found.format(len(scores))}", VidfuseWarning, stacklevel=3)


def _every_row(scores: NDArray[np.floating[Any]], holds: Callable[[NDArray[np.floating[Any]]], bool]) -> bool:
    """Return whether something holds for all rows; some that are spread are tried first, as they mostly decide."""
    step = max(1, _BLOCK_NUMBERS // int(np.prod(scores.shape[1:])))
    blocks = (scores[start : start + step] for start in range(0, len(scores), step))
    return holds(scores[:: max(1, len(scores) // _PROBES)]) and all(map(holds, blocks))
