"""Read the lists that say which video stands in which row of a dump: ids, and labels where they are given."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import check_ids
from vidfuse._paths import path_ids
from vidfuse.errors import InputError
from vidfuse.stack.frames import ID_NAMES, LABEL_NAMES, label_indices

__all__ = ["Annotations", "read_annotations", "read_text"]

_PATH_NAMES: Final = ("path", "filename", "file")


@dataclass(frozen=True)
class Annotations:
    """The videos of a split in order.

    Attributes:
        ids: Their ids (N,).
        labels: True classes (N,), or None.
    """

    ids: NDArray[np.str_]
    labels: NDArray[np.int64] | None


def read_annotations(
    source: str | os.PathLike[str] | Iterable[Any], classes: Sequence[str] | None = None
) -> Annotations:
    r"""Read a list of videos: which id, and which label, belongs to each row of a dump.

    Understood are a csv with a header (a column ``id``, ``videoid``, ``path`` …, and perhaps ``label``), MMAction2
    lists ``relative/path.mp4 0``, PySlowFast and PyTorchVideo lists ``path 0`` or ``path,0`` (split from the right),
    and plain lists of ids. A path's id is the path without the suffix of a video file; absolute paths count from
    their common folder on.

    Args:
        source: The file, or the ids themselves.
        classes: Class names, for lists whose labels are names.

    Raises:
        InputError: No rows, a label that is not a class, a duplicate or unsafe id.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp(), "val.txt")
        >>> _ = file.write_text("run/a.mp4 1\nwalk/b.mp4 0\n")
        >>> read_annotations(file).ids.tolist(), read_annotations(file).labels.tolist()
        (['run/a', 'walk/b'], [1, 0])
    """
    if not isinstance(source, str | os.PathLike):
        return Annotations(check_ids(source), None)
    path = Path(source)
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"{path}: expected a list of videos, got no rows")
    try:
        header = [name.strip().lower() for name in next(csv.reader([lines[0]]))]
        column = next((header.index(name) for name in (*ID_NAMES, *_PATH_NAMES) if name in header), None)
        are_paths = column is None or header[column] in _PATH_NAMES
        if column is not None:
            names, labels = _with_header(lines, header, column, path)
        else:
            names, labels = _without_header(lines)
    except csv.Error as error:
        raise InputError(f"{path}: expected a list of videos: {error}") from error
    try:
        ids = check_ids(path_ids(names) if are_paths else names)
        return Annotations(ids, None if labels is None else label_indices(labels, classes))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_text(path: Path) -> str:
    """Read a text file as UTF-8, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected a text file in UTF-8, got bytes that are not: {error}") from error


def _with_header(lines: list[str], header: list[str], column: int, path: Path) -> tuple[list[str], list[str] | None]:
    label = next((header.index(name) for name in LABEL_NAMES if name in header), None)
    rows = list(csv.reader(io.StringIO("\n".join(lines[1:]))))
    if not rows:
        raise InputError(f"{path}: expected rows below the header, got none")
    short = next((number for number, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if short is not None:
        raise InputError(
            f"{path}: line {short}: expected {len(header)} fields as in the header, got {len(rows[short - 2])}"
        )
    names = [row[column].strip() for row in rows]
    return names, None if label is None else [row[label].strip() for row in rows]


def _without_header(lines: list[str]) -> tuple[list[str], list[str] | None]:
    names, labels = [], []
    for line in lines:
        cut = max(line.rfind(separator) for separator in (",", " ", "\t"))
        if cut < 0 or not line[cut + 1 :].lstrip("-").isdigit():
            return lines, None
        names.append(line[:cut].rstrip(", \t"))
        labels.append(line[cut + 1 :])
    return names, labels
