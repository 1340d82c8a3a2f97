"""The arguments of `LogitStack.from_arrays`, brought into one form, and the suspicion that rows are out of order."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import as_float_array, check_member_names, first_few
from vidfuse._threads import map_members
from vidfuse.errors import InputError, VidfuseWarning

__all__ = ["name_arrays", "order_advice", "warn_if_misordered"]


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
            raise InputError(f"members: no array for {first_few(unknown)}; there are {first_few(names, 20)}")
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


def order_advice(by_id: bool) -> str:
    """Return what to do about a member whose rows seem to stand in another order.

    Example:
        >>> order_advice(False)
        'Pass ids, so that rows are matched by id'
    """
    if by_id:
        return "Rows are matched by id: look whether its rows got the right ids, and its columns the right classes"
    return "Pass ids, so that rows are matched by id"


def warn_if_misordered(
    scores: Mapping[str, NDArray[np.floating[Any]]], labels: NDArray[np.int64] | None, *, by_id: bool
) -> None:
    """Warn where a member scores what a random order would give while another is far above it.

    For labels with frequencies f_c and predictions with frequencies q_c, a random order is right with probability
    a = Σ f_c q_c; a member is suspected where its hits stay within 2 standard deviations of N·a.

    Args:
        scores: Each member's scores (N, K), in the labels' order.
        labels: True classes (N,), or None: then nothing can be said.
        by_id: Whether rows were matched by id.
    """
    if labels is None or len(labels) < 50 or len(scores) < 2:
        return
    n, n_classes = next(iter(scores.values())).shape
    frequencies = np.bincount(labels, minlength=n_classes) / n

    def excess(name: str) -> float:
        predicted = scores[name].argmax(axis=1)
        chance = float(frequencies @ np.bincount(predicted, minlength=n_classes)) / n
        spread = max(np.sqrt(n * chance * (1 - chance)), 1.0)
        return float((predicted == labels).sum() - n * chance) / spread

    z = map_members(excess, tuple(scores), n * n_classes * len(scores))
    suspects = sorted(name for name, own in zip(scores, z, strict=True) if own < 2)
    if suspects and max(z) > 8:
        warnings.warn(
            f"member {first_few(suspects)} does no better than its own predictions in a random order, while others do: "
            f"another order? {order_advice(by_id)}",
            VidfuseWarning,
            stacklevel=3,
        )
