"""The number of classes that a network tells apart."""

from __future__ import annotations

import operator
from typing import Any

from vidfuse.errors import InputError

__all__ = ["check_class_count"]


def check_class_count(count: Any) -> int:
    """Return a number of classes, Python's or NumPy's, as an integer.

    Raises:
        InputError: It is not an integer of at least 2.

    Example:
        >>> check_class_count(400)
        400
    """
    try:
        number = 0 if isinstance(count, bool) else operator.index(count)
    except TypeError:
        number = 0
    if number < 2:
        raise InputError(f"expected num_classes to be an integer of at least 2, got {count!r}")
    return number
