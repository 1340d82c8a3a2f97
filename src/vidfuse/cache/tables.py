"""Predictions in tables: csv, parquet, and pandas, polars or pyarrow frames, wide or long."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._validate import as_array, check_ids, first_few
from vidfuse.cache.annotations import ID_NAMES, LABEL_NAMES, label_indices, read_text
from vidfuse.cache.dump import Dump
from vidfuse.errors import InputError, MissingExtraError

__all__ = ["read_csv", "read_frame", "read_parquet"]

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


def read_frame(
    frame: Any,
    *,
    id: str | None = None,
    label: str | None = None,
    columns: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    text: bool = False,
) -> Dump:
    """Read one table of predictions.

    Args:
        frame: A pandas, polars or pyarrow table, or a mapping from column name to values.
        id: The column of the videos' ids; by default one that is called id, videoid, …
        label: The column of the true classes; by default one that is called label, if there is one.
        columns: The columns of the scores in class order; by default all others, in the table's order. Columns that are
            not just numbered name the classes.
        classes: Class names, for labels or long tables that use them.
        text: The values are strings, as a csv has them.
    """
    listed = frame if isinstance(frame, Mapping) else getattr(frame, "column_names", getattr(frame, "columns", None))
    if listed is None:
        raise InputError(f"expected a pandas, polars or pyarrow table, got {type(frame).__name__}")
    names = [str(name) for name in listed]
    id = _column(id, names, ID_NAMES, "id")
    if id is None:
        raise InputError(
            f"expected a column with the videos' ids, called {' or '.join(ID_NAMES)}; got {first_few(names)}"
        )
    ids = _values(frame, id)
    if columns is None and set(names) - {id} == {"class", "score"}:
        return _long(ids, _values(frame, "class"), _values(frame, "score"), classes, text)
    label = _column(label, names, LABEL_NAMES, "label")
    chosen = [name for name in names if name not in (id, label)] if columns is None else list(columns)
    unknown = [name for name in chosen if name not in names]
    if unknown or len(chosen) < 2:
        raise InputError(
            f"expected at least two columns of scores, got {first_few(chosen)}; the table has {first_few(names)}"
        )
    parts = [_floats(_values(frame, name), name, text) for name in chosen]
    named = classes if classes is not None else None if _numbered(chosen) else tuple(chosen)
    labels = None if label is None else label_indices(_values(frame, label).tolist(), named)
    return Dump(np.stack(parts, axis=1), labels, check_ids(ids), None if named is None else tuple(named))


def _column(given: str | None, names: Sequence[str], usual: Sequence[str], what: str) -> str | None:
    if given is None:
        return next((name for name in names if name.lower() in usual), None)
    if given not in names:
        raise InputError(f"expected a column {given!r} for the {what}, the table has {first_few(names)}")
    return given


def _values(frame: Any, name: str) -> NDArray[Any]:
    column = frame[name]
    return as_array(column.to_numpy() if hasattr(column, "to_numpy") else column, f"column {name!r}")


def _floats(values: NDArray[Any], name: str, text: bool) -> NDArray[np.floating[Any]]:
    if text:
        try:
            return np.fromiter(map(float, values.tolist()), np.float64, len(values))  # twice as fast as astype
        except ValueError as error:
            raise InputError(f"column {name!r}: expected numbers: {error}") from error
    if values.dtype.kind != "f":
        raise InputError(
            f"column {name!r}: expected floating-point scores, got dtype {values.dtype}; "
            "name the score columns with columns="
        )
    return values


def _numbered(columns: Sequence[str]) -> bool:
    """Whether columns are called like p0, p1 …: numbers in steps of one after a common beginning."""
    found = [_NUMBERED.match(name) for name in columns]
    if not all(found):
        return False
    starts = {match[1] for match in found if match}
    numbers = [int(match[2]) for match in found if match]
    return len(starts) == 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _long(
    ids: NDArray[Any], names: NDArray[Any], scores: NDArray[Any], classes: Sequence[str] | None, text: bool
) -> Dump:
    """Turn one row a number into one row a video; videos stand in the order of their first rows."""
    try:
        columns = label_indices(names.tolist(), classes)
        found = None if classes is None else tuple(classes)
    except InputError:
        if classes is not None:
            raise
        found = tuple(sorted({str(name) for name in names.tolist()}))
        columns = label_indices(names.tolist(), found)
    texts = np.array([str(value) for value in ids.tolist()], dtype=np.str_)
    unique, first, inverse = np.unique(texts, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    rows = rank[inverse]
    n, k = len(unique), len(found) if found else int(columns.max()) + 1
    if columns.min() < 0 or n * k > min(_MAX_CELLS, 64 * len(texts) + 1024):
        raise InputError(f"expected one row for each of {n} videos and {k} classes, got {len(texts)} rows")
    values = np.full((n, k), np.nan)
    counts = np.zeros((n, k), dtype=np.int64)
    values[rows, columns] = _floats(scores, "score", text)
    np.add.at(counts, (rows, columns), 1)
    if (counts != 1).any():
        row, column = (int(v) for v in np.argwhere(counts != 1)[0])
        raise InputError(
            f"expected one score for each video and class, got {int(counts[row, column])} for id "
            f"{str(unique[order][row])!r}, class {column} ({int((counts != 1).sum())} such pairs in all)"
        )
    return Dump(values, None, check_ids(unique[order]), found)


def frame_arguments(
    frames: Mapping[str, Any], id: str, label: str | None, columns: Sequence[str] | None
) -> dict[str, Any]:
    """Turn frames into the arguments of `LogitStack.from_arrays`: arrays, ids, labels and classes by member."""
    dumps = {}
    for name, frame in frames.items():
        try:
            dumps[name] = read_frame(frame, id=id, label=label, columns=columns)
        except InputError as error:
            raise InputError(f"member {name!r}: {error}") from error
    labelled = {name: dump.labels for name, dump in dumps.items() if dump.labels is not None and label is not None}
    return {
        "arrays": {name: dump.scores for name, dump in dumps.items()},
        "ids": {name: dump.ids for name, dump in dumps.items()},
        "labels": labelled or None,
        "classes": {name: dump.classes for name, dump in dumps.items()},
    }
