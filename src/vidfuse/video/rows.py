"""The rows of a list of videos: with a header or without, with labels (numbers or names) or without, quoted or not."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from vidfuse._paths import VIDEO_SUFFIXES
from vidfuse.errors import InputError

__all__ = ["Row", "read_rows"]

_PATHS: Final = ("path", "file", "filename", "file_name", "filepath", "file_path", "video_path", "video", "clip")
_LABELS: Final = ("label", "class", "action", "label_id", "class_id", "target", "category", "class_name", "label_name")
_IDS: Final = ("id", "videoid", "video_id")
_SUFFIXES: Final = "|".join(sorted(re.escape(suffix) for suffix in VIDEO_SUFFIXES))
# A path up to the last suffix of a video, what parts it from its label, and the label.
_PARTS: Final = re.compile(rf"^(?P<path>.+(?:{_SUFFIXES}))(?:\s*[,;\t]\s*| +)(?P<label>\S.*)$", re.IGNORECASE)
_NUMBER: Final = re.compile(r"[+-]?\d+(\.\d*)?")


class Row(NamedTuple):
    """One video of a list, as it is written there."""

    path: str
    label: str | None = None
    id: str | None = None
    group: str | None = None


def read_rows(file: Path, group: str | None = None) -> list[Row]:
    """Read the rows of a list of videos.

    Args:
        file: A text file. With a header, its columns are found by their names (path and label, perhaps id). Without
            one, a row is a path alone, or a path and a label, parted by a comma, a tab or spaces.
        group: The column, of a file with a header, that says what each video comes from.

    Returns:
        The rows in order; either all of them have a label or none has.

    Raises:
        InputError: There is no such file, no row, or a row of another form; the message names its line.
    """
    if not file.is_file():
        raise InputError(f"expected a list of videos, found no file at {file}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"expected a list of videos as text in UTF-8, got other bytes in {file}: {error}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"expected at least one video in {file}, found none")
    delimiter = next((mark for mark in ",;\t" if mark in lines[0][1]), " ")
    header = [cell.strip().lower() for cell in _cells(lines[0][1], delimiter)]
    if _is_header(header):
        return _with_header(file, header, lines, delimiter, group)
    if group is not None:
        raise InputError(f"expected a header with a column {group!r} at {file}:{lines[0][0]}, got {lines[0][1]!r}")
    return _without_header(file, lines)


def _is_header(cells: Sequence[str]) -> bool:
    named = any(cell in (*_PATHS, *_IDS) for cell in cells)
    return named and not any(cell.endswith(tuple(VIDEO_SUFFIXES)) for cell in cells)


def _with_header(
    file: Path, header: list[str], lines: list[tuple[int, str]], delimiter: str, group: str | None
) -> list[Row]:
    columns = {
        what: next((header.index(name) for name in names if name in header), None)
        for what, names in (("path", _PATHS), ("label", _LABELS), ("id", _IDS), ("group", (str(group).lower(),)))
    }
    if columns["path"] is None:
        raise InputError(f"expected a column {' or '.join(_PATHS[:3])} in the header of {file}, got {header}")
    if group is not None and columns["group"] is None:
        raise InputError(f"expected a column {group!r} in {file}, got {', '.join(header)}")
    rows = []
    for number, line in lines[1:]:
        cells = [cell.strip() for cell in _cells(line, delimiter)]
        if len(cells) != len(header):
            raise InputError(
                f"expected {len(header)} fields at {file}:{number}, as the header has, got {len(cells)}: {line!r}; "
                "put a path or a name that holds the separator into quotes"
            )
        found = {what: None if at is None else cells[at] for what, at in columns.items()}
        if lacking := [what for what, value in found.items() if value == ""]:
            raise InputError(f"expected a {lacking[0]} at {file}:{number}, got an empty field")
        rows.append(Row(str(found["path"]), found["label"], found["id"], found["group"] if group else None))
    if not rows:
        raise InputError(f"expected at least one video in {file}, found none below the header")
    _check_labels(file, lines[1:], rows)
    return rows


def _without_header(file: Path, lines: list[tuple[int, str]]) -> list[Row]:
    # Three forms, tried in this order on all lines: paths alone; paths and numbers, split from the right, whatever the
    # path looks like; paths that end like a video's, and names.
    alone = [_unquoted(line) for _, line in lines]
    if all(path.lower().endswith(tuple(VIDEO_SUFFIXES)) for path in alone):
        return [Row(path) for path in alone]
    rows = []
    for number, line in lines:
        cut = max(line.rfind(separator) for separator in ", \t;")
        name, label = _unquoted(line[:cut].rstrip(", \t;")), line[cut + 1 :].strip('"')
        if cut < 1 or not name or not _NUMBER.fullmatch(label):
            quoted = _cells(line, ",") if '"' in line else []
            parts = _PARTS.match(line)
            if len(quoted) == 2:
                name, label = (cell.strip() for cell in quoted)
            elif parts is not None:
                name, label = parts["path"], parts["label"]
            else:
                raise InputError(
                    f"expected `path label` or `path,label` at {file}:{number}, got {line!r}; a label is a number from "
                    "0 on or a name, and all rows have one or none has"
                )
        rows.append(Row(name, label))
    _check_labels(file, lines, rows)
    return rows


def _check_labels(file: Path, lines: list[tuple[int, str]], rows: list[Row]) -> None:
    """Check that labels are all numbers from 0 on, or all names."""
    first = rows[0].label
    for (number, line), row in zip(lines, rows, strict=True):
        if row.label is None or first is None:
            continue
        is_number = _NUMBER.fullmatch(row.label) is not None
        if is_number and not row.label.isdecimal():
            raise InputError(f"expected a 0-based integer label at {file}:{number}, got {line!r}")
        if is_number != (_NUMBER.fullmatch(first) is not None):
            raise InputError(
                f"expected labels that are all numbers or all names, got {first!r} at {file}:{lines[0][0]} and "
                f"{row.label!r} at {file}:{number}"
            )


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
