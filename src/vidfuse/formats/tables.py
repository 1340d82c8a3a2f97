"""Predictions in tables: csv and its relatives, parquet; wide or long; and the texts of a distributed test's processes.

Each process of such a test writes a text, ``0.txt``, ``1.txt`` …, as VideoMAE and its descendants do: a line is
``id [s0, s1, …] label chunk split``, and the first may hold two accuracies. A video stands in as many lines as it has
chunks and crops, perhaps in several files, and a sampler that pads repeats some.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import first_few
from vidfuse.errors import InputError, MissingExtraError, option
from vidfuse.stack.columns import ID_NAMES, NO_IDS
from vidfuse.stack.frames import Dump, read_frame

__all__ = [
    "is_rank_text",
    "rank_files",
    "read_csv",
    "read_parquet_columns",
    "read_ranks",
    "separator_of",
    "split_rows",
]

_SEPARATORS: Final = ("\t", ",", ";", "|")


def separator_of(text: str) -> str | None:
    r"""Return what separates the cells of a table: the first of tab, comma, semicolon and bar that its first line has.

    Example:
        >>> separator_of("id;p0\na;0,5\n"), separator_of("a.mp4 3\n")
        (';', None)
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    return next((mark for mark in _SEPARATORS if mark in first), None)


def split_rows(text: str) -> tuple[list[list[str]], list[int]]:
    """Split a text into rows of cells, by what `separator_of` finds or else by blanks.

    Returns:
        The rows that are not empty, without the spaces around a cell, and the line on which each begins.

    Raises:
        InputError: Quotes that do not close, or a cell of more than 131,072 characters.
    """
    separator = separator_of(text)
    rows: list[list[str]] = []
    lines: list[int] = []
    if separator is None:
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                rows.append(line.split())
                lines.append(number)
        return rows, lines
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise InputError(f"expected a csv: {error}") from error
    return rows, lines


def read_csv(
    text: str,
    *,
    classes: Sequence[str] | str | None = None,
    columns: Sequence[str] | str | None = None,
    id_column: str | None = None,
) -> Dump:
    """Read a csv: wide, ``id,[label,]p0,…``, one row a video; or long, ``id,class,score``, one row a number.

    Without a first line of names, columns are called 1, 2, …; the first holds the ids if it holds texts, and otherwise
    `id_column` has to say what it holds.

    Raises:
        InputError: No rows, rows of different lengths, a column that could be scores or something else, or numbers in
            the first line, of which the first may be an id or a score.
    """
    rows, lines = split_rows(_without_comments(text))
    if not rows:
        raise InputError("expected rows of predictions, got none")
    named = _has_header(rows)
    if named:
        header = rows.pop(0)
        del lines[0]
    else:
        id_column, header = _numbered_header(rows, id_column)
    width = len(header)
    for number, row in zip(lines, rows, strict=True):
        if len(row) != width:
            raise InputError(f"line {number}: expected {width} fields, got {len(row)}")
    if not rows:
        raise InputError("expected rows of predictions below the header, got none")
    table = dict(zip(header, np.array(rows, dtype=object).T, strict=True))  # the strings themselves, not copies
    if len(table) != width:
        raise InputError(f"expected unique column names, got {first_few(sorted(set(_repeated(header))))} twice")
    if not named and columns is None:
        _check_scores_alone({name: cells for name, cells in table.items() if name != id_column})
    return read_frame(table, id=id_column, columns=columns, classes=classes, text=True)


def _without_comments(text: str) -> str:
    """Return a table without comments before it; one with as many fields as the next line is its header.

    ==============================  ============================================
    ``# p0,p1`` and ``0.3,0.7``     the header that `numpy.savetxt` writes
    ``# of swin`` and ``id,p0,p1``  a comment
    ``#1,0.3,0.7``                  no comment: numbers after an id
    ==============================  ============================================
    """
    if not text.lstrip().startswith("#"):
        return text
    lines = text.splitlines(keepends=True)
    for at, line in enumerate(lines[:-1]):
        following = lines[at + 1].strip()
        separator = next((mark for mark in (*_SEPARATORS, " ") if mark in following), ",")
        bare = line.strip().lstrip("# ")
        cells = [cell.strip() for cell in bare.split(separator)]
        if not line.startswith("#"):
            if bare:
                break
        elif len(cells) > 1 and all(map(_is_number, cells[1:])):
            break
        elif len(cells) == len(following.split(separator)) > 1:
            lines[at] = f"{bare}\n"
            break
        else:
            lines[at] = "\n"  # so that the lines keep their numbers
    return "".join(lines)


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first line holds names: something that is no number, or whole numbers that are no video's scores.

    ==========================  ============================================================================
    ``id,0,1,2``                names: a usual name of ids
    ``0,1,2`` and ``,0,1,2``    names: consecutive whole numbers, with fractions in the next line
    ``clip,0,10,2``             names: three or more different whole numbers, and fractions in every other line
    ``a,0.1,0.9``               no names: numbers after an id
    ``0.3,0.1,0.6``             no names
    ``a,3`` and ``a,1,0``       no names: a label, or scores, after an id
    ==========================  ============================================================================
    """
    first = rows[0]
    if first[0].lower() in ID_NAMES:
        return True
    numbers = [cell for cell in (first if _is_number(first[0]) else first[1:]) if _is_number(cell)]
    if len(numbers) < len(first) - 1 or not numbers:
        return True
    if not all(_is_count(cell) for cell in numbers):
        return False
    start = int(numbers[0])
    if [int(cell) for cell in numbers] == list(range(start, start + len(numbers))):
        return len(rows) > 1 and _has_fractions(rows[1])
    distinct = len({int(cell) for cell in numbers}) == len(numbers) > 2
    return distinct and len(rows) > 1 and all(map(_has_fractions, rows[1:]))


def _is_count(cell: str) -> bool:
    return cell.isascii() and cell.isdigit() and len(cell) < 10


def _has_fractions(row: Sequence[str]) -> bool:
    return any(_is_number(cell) and not cell.isdigit() for cell in row[1:])


def _check_scores_alone(table: Mapping[str, NDArray[Any]]) -> None:
    """Refuse a column of whole numbers beside scores, which no name explains: a label, or a count."""
    whole = [
        number
        for number, cells in enumerate(table.values(), start=1)
        if all(cell.lstrip("-").isdigit() for cell in cells)
    ]
    if whole and len(whole) < len(table):
        raise InputError(
            f"there is no line with the columns' names, and score column {whole[0]} holds whole numbers where others "
            "hold fractions: a label? Give the file a first line such as id,label,p0,p1"
        )


def _numbered_header(rows: Sequence[Sequence[str]], id_column: str | None) -> tuple[str, list[str]]:
    """Name the columns of a table without names: the ids, "1" say, and the scores p0, p1 …, or the predicted class."""
    width = len(rows[0])
    if id_column is None and any(not _is_number(row[0]) for row in rows if row):
        id_column = "1"
    if id_column not in (NO_IDS, *map(str, range(1, width + 1))):
        raise InputError(
            f"the first line is numbers, with no names of columns: say {option('id_column', '1')} if the first column "
            f"holds ids, or {option('id_column', NO_IDS)} if all hold scores, in the order of the annotations"
        )
    scores = [f"p{k}" for k in range(width)] if id_column == NO_IDS else [f"p{k}" for k in range(width - 1)]
    if id_column == NO_IDS:
        return id_column, scores
    place = int(id_column or 1) - 1
    return id_column or "1", [*scores[:place], str(place + 1), *scores[place:]] if width > 2 else ["1", "pred"]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name in names if names.count(name) > 1]


def read_parquet_columns(stream: IO[bytes]) -> dict[str, NDArray[Any]]:
    """Read the columns of a parquet file, and close it; needs pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("reading parquet files", "all") from error
    try:
        with stream:
            table = pyarrow.parquet.read_table(stream)
        return {name: table.column(name).to_numpy() for name in table.column_names}
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:  # names that are no text, or stand twice
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise  # what the system refuses says nothing about the file
        raise InputError(f"expected a parquet file: {error}") from error


_ACCURACIES: Final = re.compile(r"^[\d.eE+-]+\s*,\s*[\d.eE+-]+$")


def is_rank_text(text: str) -> bool:
    r"""Whether a text has lines of this form.

    Example:
        >>> is_rank_text("81.2, 95.0\nrun_1 [0.5, 0.5] 3 0 0\n"), is_rank_text("id,p0\na,1\n")
        (True, False)
    """
    lines = text[: 1 << 20].lstrip().split("\n", 2)[:2]
    return any(_line(line) is not None for line in lines)


def _line(line: str) -> tuple[str, NDArray[np.float64], list[int]] | None:
    """Take a line apart: the id, the scores, and the numbers after them; None if it is of another form."""
    name, _, rest = line.partition("[")
    cells, closed, tail = rest.partition("]")
    try:
        scores = np.array([float(cell) for cell in cells.replace(",", " ").split()])
        numbers = [int(cell) for cell in tail.split()]
    except ValueError:
        return None
    good = closed and name.strip() and len(scores) > 1 and 1 <= len(numbers) <= 3
    return (name.strip(), scores, numbers) if good else None


def rank_files(folder: Path) -> list[Path]:
    """The files of a folder that were written so, by number."""
    files = [file for file in folder.glob("*.txt") if file.stem.isdecimal()]
    return sorted(files, key=lambda file: int(file.stem))


def read_ranks(texts: Sequence[tuple[Path, str]]) -> Dump:
    """Read the lines of all files; the chunks of a video become its views, in the order of chunk and split.

    Raises:
        InputError: A line of another form, or one chunk of a video twice with other numbers.
    """
    videos: dict[str, dict[tuple[int, int], NDArray[np.float64]]] = {}
    labels: dict[str, int] = {}
    for path, text in texts:
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or (number == 1 and _ACCURACIES.match(line.strip())):
                continue
            found = _line(line)
            if found is None:
                raise InputError(
                    f"{path}:{number}: expected `id [scores] label chunk split`, got {line.strip()[:60]!r}"
                )
            name, scores, (label, *numbers) = found
            views = videos.setdefault(name, {})
            chunk, split = [*numbers, 0, 0][:2] if numbers else (len(views), 0)
            place = (chunk, split)
            if labels.setdefault(name, label) != label:
                raise InputError(f"{path}:{number}: {name!r} has the label {label}, and {labels[name]} before")
            if place in views and not np.allclose(views[place], scores, rtol=1e-2, atol=1e-3):
                raise InputError(f"{path}:{number}: chunk {chunk} {split} of {name!r} stands twice, and differs")
            views.setdefault(place, scores)
    if not videos:
        raise InputError(f"{texts[0][0]}: expected lines `id [scores] label chunk split`, got none")
    widths = {len(scores) for views in videos.values() for scores in views.values()}
    if len(widths) > 1:
        raise InputError(f"{texts[0][0]}: videos have different numbers of classes: {first_few(sorted(widths))}")
    stacked = [np.stack([views[place] for place in sorted(views)]) for views in videos.values()]
    even = len({len(video) for video in stacked}) == 1
    return Dump(
        np.stack(stacked) if even else stacked, np.array(list(labels.values())), np.array(list(videos)), chunks=True
    )
