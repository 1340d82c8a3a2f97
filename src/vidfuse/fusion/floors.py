"""The floor: a small share of the uniform distribution in a member, so that one probability of 0 is no veto."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError
from vidfuse.likelihood import DEFAULT_FLOOR, log_softmax, mix_floor
from vidfuse.stack.stack import LogitStack

__all__ = ["Floor", "floored_blocks", "is_number", "member_floors", "scale_and_floor"]

Floor = float | Literal["auto"]


def is_number(value: Any) -> bool:
    """Say whether a parameter is one finite real number, of Python or of NumPy.

    Example:
        >>> is_number(np.float32(0.5)), is_number("2"), is_number(None), is_number([1])
        (True, False, False, False)
    """
    return isinstance(value, Real) and math.isfinite(value)


def member_floors(stack: LogitStack, floor: Floor, default: float = 0.0) -> NDArray[np.float64]:
    """Return each member's floor: the number given, or for `"auto"` at least 1e-4 where it holds probabilities.

    Args:
        stack: the members.
        floor: the uniform distribution's share in every member, 0 ≤ floor < 1, or `"auto"`.
        default: the floor that `"auto"` gives to members whose logits or log-likelihoods are known.

    Raises:
        InputError: a floor outside [0, 1).

    Example:
        >>> stack = LogitStack.from_arrays({"a": np.zeros((1, 2)), "b": np.full((1, 2), 0.5)},
        ...                                kind={"a": "logits", "b": "probabilities"})
        >>> member_floors(stack, "auto").tolist()
        [0.0, 0.0001]
    """
    if isinstance(floor, str) and floor == "auto":
        rounded = np.array([kind in ("probabilities", "sum") for kind in stack.kinds])
        return np.maximum(default, np.where(rounded, DEFAULT_FLOOR, 0.0))
    if not is_number(floor) or not 0 <= float(floor) < 1:
        raise InputError(f'floor: expected "auto" or a number of at least 0 and below 1, got {floor!r}')
    return np.full(len(stack.members), float(floor))


def scale_and_floor(log_p: NDArray[np.float32], scale: float, floor: float) -> None:
    """Turn log-likelihoods (..., K) into those of ``(1 - floor)·softmax(scale·log_p) + floor/K``, in place.

    Example:
        >>> log_p = np.log(np.array([[0.8, 0.2]], dtype=np.float32))
        >>> scale_and_floor(log_p, 0.5, 0.0)
        >>> np.exp(log_p).round(3).tolist()[0] == [np.float32(0.667), np.float32(0.333)]
        True
    """
    if scale != 1:
        np.multiply(log_p, np.float32(scale), out=log_p)
        log_softmax(log_p, out=log_p)
    if floor > 0:
        mix_floor(log_p, floor, out=log_p)


def floored_blocks(
    stack: LogitStack,
    floors: NDArray[np.float64],
    rows_per_block: int | None = None,
    scales: NDArray[np.float64] | None = None,
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield blocks (B, M, [V,] K) of log-likelihoods with each member's floor mixed in; the buffer is reused.

    With scales (M,), a member's log-likelihoods are first multiplied by its scale and normalised again.

    Example:
        >>> stack = LogitStack.from_arrays(np.zeros((5, 2, 3)))
        >>> [block.shape for rows, block in floored_blocks(stack, np.zeros(2))]
        [(5, 2, 3)]
    """
    for rows, block in stack.iter_blocks(rows_per_block):
        for member, floor in enumerate(floors):
            scale_and_floor(block[:, member], 1.0 if scales is None else float(scales[member]), float(floor))
        yield rows, block
