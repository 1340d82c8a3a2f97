"""Predictions in tables: csv, parquet, and pandas, polars or pyarrow frames, wide or long."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from vidfuse._checks import first_few
from vidfuse.errors import InputError, MissingExtraError
from vidfuse.formats.annotations import read_text
from vidfuse.stack.frames import Dump, read_frame

__all__ = ["read_csv", "read_parquet"]

_NUMBERED: Final = re.compile(r"^(.*?)(\d+)$")
_MAX_CELLS: Final = 1 << 31


def read_csv(path: Path, classes: Sequence[str] | None = None) -> Dump:
    """Read a csv: wide, ``id,[label,]p0,…``, one row a video; or long, ``id,class,score``, one row a number.

    A first line of names is expected where columns are not simply an id and scores.
    """
    text = read_text(path)
    try:
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
    except csv.Error as error:
        raise InputError(f"{path}: expected a csv: {error}") from error
    if not rows:
        raise InputError(f"{path}: expected rows of predictions, got none")
    has_header = not all(_is_number(cell) for cell in rows[0][1:]) or len(rows[0]) < 2
    header = (
        [cell.strip() for cell in rows.pop(0)] if has_header else ["id", *(f"p{k}" for k in range(len(rows[0]) - 1))]
    )
    width = len(header)
    for number, row in enumerate(rows, start=2 if has_header else 1):
        if len(row) != width:
            raise InputError(f"{path}: line {number}: expected {width} fields, got {len(row)}")
    if not rows:
        raise InputError(f"{path}: expected rows of predictions below the header, got none")
    columns = dict(zip(header, np.array(rows, dtype=object).T, strict=True))  # the strings themselves, not copies
    if len(columns) != width:
        raise InputError(f"{path}: expected unique column names, got {first_few(sorted(set(_repeated(header))))} twice")
    try:
        return read_frame(columns, classes=classes, text=True)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name in names if names.count(name) > 1]


def read_parquet(path: Path, classes: Sequence[str] | None = None) -> Dump:
    """Read a parquet file with the columns of a wide or long table; needs pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("reading parquet files", "all") from error
    try:
        table = pyarrow.parquet.read_table(path)
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:  # names that are no text, or stand twice
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise  # what the system refuses says nothing about the file
        raise InputError(f"{path}: expected a parquet file: {error}") from error
    try:
        return read_frame(columns, classes=classes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
