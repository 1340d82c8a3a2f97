"""Read the files that say which class is which: names alone, or names with their numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from vidfuse._checks import first_few, naming
from vidfuse.errors import InputError
from vidfuse.formats.containers import Text, open_stored, read_content
from vidfuse.formats.tables import separator_of, split_rows
from vidfuse.formats.values import as_names, describe

__all__ = ["read_classes"]


def read_classes(path: str | os.PathLike[str]) -> list[str]:
    r"""Read the names of classes, in the classes' order.

    ==================================  =====================================================================
    ``run``                             one name a line, or all on one line with commas between
    ``0 run``, ``1,run``, ``run,0``     with a number: in the order of these, which run from 0 or from 1; a first
                                        line without one is a header
    json                                a list, {name: number} or {number: name}
    ==================================  =====================================================================

    Args:
        path: The file.

    Raises:
        InputError: No names, or numbers that do not run from 0 or 1.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp(), "classInd.txt")
        >>> _ = file.write_text("2 walk\n1 run\n")
        >>> read_classes(file)
        ['run', 'walk']
    """
    file = Path(path)
    with naming(file):
        content = read_content(open_stored(file))
        if isinstance(content, Text):
            return _from_lines(content.text)
        names = as_names(content)
        if names is not None:
            return names
        if isinstance(content, dict):
            pairs = [(str(key), str(value)) for key, value in content.items()]
            found = _by_number(pairs) or _by_number([pair[::-1] for pair in pairs])
            if found is not None:
                return found
        raise InputError(
            f"expected a list of class names, {{name: number}} or {{number: name}}, got {describe(content)}"
        )


def _from_lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    rows, _ = split_rows(text)
    apart = separator_of(text) is not None
    if len(rows) == 1 and apart:
        return rows[0]
    turned = [row[::-1] for row in rows] if apart else []
    words = [line.split(None, 1) for line in lines]
    for pairs in (rows, turned, words):  # names may have blanks, and commas
        for given in (pairs, pairs[1:]):
            found = _by_number(given, may_be_names=pairs is words) if all(len(row) == 2 for row in given) else None
            if found is not None:
                return found
    if apart and all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    return [re.sub(r'^"(.*)"$', r"\1", line) for line in lines]


def _by_number(pairs: Sequence[Sequence[str]], may_be_names: bool = False) -> list[str] | None:
    """Return names in the order of their numbers, from pairs (number, name); None where some are no numbers.

    Pairs that may be names, split at a blank, are numbers and names where these begin at 0 or 1: not "50 m", "100 m".

    Raises:
        InputError: The numbers do not run from 0 or 1.
    """
    if not pairs or not all(number.isascii() and number.isdigit() and len(number) < 10 for number, _ in pairs):
        return None
    named = sorted((int(number), name) for number, name in pairs)
    numbers = [number for number, _ in named]
    if may_be_names and numbers[0] > 1:
        return None
    if numbers[0] not in (0, 1) or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise InputError(f"expected the classes' numbers to run from 0 or from 1, each once, got {first_few(numbers)}")
    return [name for _, name in named]
