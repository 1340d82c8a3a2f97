"""The floor: a small share of the uniform distribution in a member, so that one probability of 0 is no veto."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError
from vidfuse.likelihood import DEFAULT_FLOOR
from vidfuse.stack.stack import LogitStack

__all__ = ["Floor", "floored_blocks", "is_number", "member_floors"]

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
    return stack.iter_blocks(rows_per_block, scales=1.0 if scales is None else scales, floors=floors)
