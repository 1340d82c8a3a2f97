"""Read the lists that say which video stands in which row of a dump: ids, and labels where they are given."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import check_ids, first_few, naming
from vidfuse._paths import VIDEO_SUFFIXES, IdRule, is_comment, name_ids
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.formats.containers import Parquet, Text, open_stored, read_content
from vidfuse.formats.layouts import label_key
from vidfuse.formats.tables import read_parquet_columns, separator_of, split_rows
from vidfuse.formats.values import as_labels, as_names, describe
from vidfuse.stack.columns import ID_NAMES, LABEL_NAMES, NOTE_NAMES, called, id_name
from vidfuse.stack.frames import label_indices, sorted_classes

__all__ = ["Annotations", "read_annotations"]


@dataclass(frozen=True)
class Annotations:
    """The videos of a split in order.

    Attributes:
        ids: Their ids (N,), or None where only labels are listed.
        labels: True classes (N,), or None.
        classes: The classes' names, where labels are given by name.
    """

    ids: NDArray[np.str_] | None
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """The number of videos."""
        return len(self.labels if self.ids is None else self.ids)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Listed:
    """A list as it stands: names, and labels as indices, digits or class names."""

    names: list[str] | None
    labels: list[Any] | None = None
    note: str | None = None


def read_annotations(
    source: str | os.PathLike[str] | Iterable[Any],
    classes: Sequence[str] | str | None = None,
    *,
    ids: IdRule = "path",
    head: str | None = None,
) -> Annotations:
    r"""Read a list of videos: which id, and which label, belongs to each row of a dump.

    Understood are tables with a header (a column ``id``, ``videoid``, ``path`` …, and perhaps ``label``) as csv, tsv or
    parquet; lists ``relative/path.mp4 0``, ``path,0`` (split from the right), ``folder n_frames label``, and plain
    lists of ids; and in pickles, .npy, .npz and .json (ids, labels), {id: label}, lists of (id, label), lists of
    dicts, ids alone, and labels alone.

    Args:
        source: The file, or the ids themselves.
        classes: Class names, for lists whose labels are names; "sorted" numbers these in the order of their names.
        ids: How names become ids: "path", "stem" or "exact"; see `vidfuse._paths.name_ids`.
        head: Whose labels to take where a table has several: "verb" finds a column verb_class.

    Raises:
        InputError: No rows, a label that is not a class, a duplicate or unsafe id, or a layout that is not known.

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
    with naming(path):
        content = read_content(open_stored(path))
        listed: _Listed | None
        if isinstance(content, Text):
            listed = _from_text(content.text, head)
        elif isinstance(content, Parquet):
            listed = _from_columns(read_parquet_columns(content.stream), head)
        else:
            listed = next((read(content) for fits, read, _ in _LAYOUTS if fits(content)), None)
        if listed is None:
            raise InputError(
                f"expected a list of videos, got {describe(content)}; known are: {'; '.join(n for _, _, n in _LAYOUTS)}"
            )
        if listed.note is not None:
            warnings.warn(f"{path}: {listed.note}", VidfuseWarning, stacklevel=2)
        empty = [at for at, label in enumerate(listed.labels or ()) if label in ("", None)]
        if empty:
            shown = [f"row {at}" if listed.names is None else listed.names[at] for at in empty]
            raise InputError(f"expected a label for each video, got none for {len(empty)}: {first_few(shown)}")
        names = None if listed.labels is None else sorted_classes(classes, listed.labels)
        labels = None if listed.labels is None else label_indices(listed.labels, names)
        found = None if listed.names is None else check_ids(name_ids(listed.names, ids, path.parent))
        return Annotations(found, labels, None if names is None else tuple(names))


def _from_text(text: str, head: str | None) -> _Listed:
    """A table with a header, or lines that end in a label, or names alone."""
    stripped = ["" if is_comment(line) else line.strip() for line in text.splitlines()]
    lines = [line for line in stripped if line]
    if not lines:
        raise InputError("expected a list of videos, got no rows")
    separator = separator_of("\n".join(stripped))
    rows, numbers = split_rows("\n".join(stripped))
    header = rows[0]
    named = called(header, (*ID_NAMES, *LABEL_NAMES)) is not None and not any(map(_is_label, header))
    if named and (len(header) > 1 or called(header, ID_NAMES) or all(_is_label(row[0]) for row in rows[1:])):
        width = len(header)
        if len(rows) < 2:
            raise InputError("expected rows below the header, got none")
        for number, row in zip(numbers, rows, strict=True):
            if len(row) != width:
                raise InputError(f"line {number}: expected {width} fields as in the header, got {len(row)}")
        return _from_columns({name: [row[at] for row in rows[1:]] for at, name in enumerate(header)}, head)
    of_files = separator is not None and any(_is_video_file(row[0]) for row in rows)  # whose numbers are no counts
    counted = None if of_files else _with_counts(lines if separator is None else rows)
    if counted is not None:
        return counted
    if separator is not None:
        _check_two_fields(rows, separator)
    names: list[str] = []
    labels: list[str] = []
    for line in lines:
        cut = max(line.rfind(mark) for mark in (",", " ", "\t", ";", "|"))
        if cut < 0 or not _is_label(line[cut + 1 :]):
            names, labels = [], []
            break
        names.append(line[:cut].rstrip(",; \t|").strip('"'))
        labels.append(line[cut + 1 :])
    if names:
        _check_single_labels(names)
        return _Listed(names, labels)
    if all(len(row) == 2 for row in rows):  # a label by its name, which may have blanks after what is surely the id
        ids, classes = {row[0] for row in rows}, {row[1] for row in rows}
        sure = separator not in (None, ",") or len(classes) < len(rows) == len(ids)
        if sure or all(_is_video_file(row[0]) for row in rows) or not any(" " in cell for row in rows for cell in row):
            return _Listed([row[0] for row in rows], [row[1] for row in rows])
    if all(_is_label(line) for line in lines):
        raise InputError(
            f"expected a list of videos, got {len(lines)} numbers alone; ids or labels? Give both, as `id,label`"
        )
    return _Listed(lines)


def _check_two_fields(rows: Sequence[Sequence[str]], separator: str) -> None:
    """Refuse lines of three fields or more, unless they are one path with commas and a label: "a, b/run.mp4,3"."""
    if len({len(row) for row in rows}) > 1 or len(rows[0]) < 3:
        return
    for row in rows:
        ends = (row[-2], row[-1], row[-1].rpartition(" ")[0])  # a path's last piece, without a label
        if any(map(_is_label, row[:-2])) or not ("/" in row[-2] or any(map(_is_video_file, ends))):
            raise InputError(
                f"expected a path and a label on each line, got {len(row)} fields: {separator.join(row)[:60]!r}; begin "
                "the list with a line of the columns' names, such as id,label"
            )


def _check_single_labels(names: Sequence[str]) -> None:
    """Refuse lines of several labels, of which the last was taken: run.mp4 3 7."""
    for name in names:
        words = name.replace(",", " ").replace(";", " ").split()
        first = next((at for at in range(len(words), 0, -1) if not _is_label(words[at - 1])), 0)
        if first < len(words) and first > 0 and _is_video_file(words[first - 1]):
            raise InputError(
                f"expected one label for each video, got a second one before it: {name!r}; vidfuse fuses single-label "
                "classification only"
            )


def _is_video_file(name: str) -> bool:
    return PurePath(name.strip()).suffix.lower() in VIDEO_SUFFIXES


def _with_counts(lines: Sequence[str | Sequence[str]]) -> _Listed | None:
    """Folders of frames: ``folder n_frames label``, or ``folder first n_frames label``; lines, or their fields.

    "clip 1 0", "clip 2 1" are two clips: only names that are there once without the numbers are folders.
    """
    for counts in (2, 1):
        split = [line.rsplit(None, counts + 1) if isinstance(line, str) else line for line in lines]
        if all(len(parts) == counts + 2 and all(part.isdecimal() for part in parts[1:]) for parts in split):
            folders = [parts[0] for parts in split]
            if len(set(folders)) == len(folders):
                return _Listed(folders, [parts[-1] for parts in split])
    return None


def _is_label(text: str) -> bool:
    whole, _, zeros = text.lstrip("-").partition(".")
    return whole.isascii() and whole.isdigit() and not zeros.strip("0")


def _from_columns(columns: Mapping[str, Any], head: str | None = None) -> _Listed:
    name = id_name(columns, columns.__getitem__, unique=True)
    label = label_key([column for column in columns if column != name], head or "")
    if name is None and label is None:
        raise InputError(
            f"expected a column with the videos' ids, called {', '.join(ID_NAMES[:6])} …; got {first_few(columns)}"
        )
    rest = [c for c in columns if c not in (name, label) and c.lower() not in (*NOTE_NAMES, *ID_NAMES, *LABEL_NAMES)]
    note = None
    if label is None and rest:
        note = f"no labels: columns {first_few(rest)} are none of {', '.join(LABEL_NAMES[:4])} …"
    return _Listed(
        None if name is None else [str(value) for value in _listed(columns[name])],
        None if label is None else _listed(columns[label]),
        note,
    )


def _listed(column: Any) -> list[Any]:
    """A column's values: an array, or a list whose items may be arrays of one number."""
    numbers = as_labels(column)
    if numbers is not None:
        return list(numbers.tolist())
    names = as_names(column)
    if names is not None:
        return list(names)
    if isinstance(column, np.ndarray) and column.ndim == 1 and column.dtype.kind == "f":
        return list(column.tolist())
    if isinstance(column, list) and all(isinstance(value, str | int | float) for value in column):
        return column
    raise InputError(f"expected one name or label for each video, got {describe(column)}")


def _is_marks(value: Any) -> bool:
    return as_labels(value) is not None or as_names(value) is not None


def _is_pair(content: Any) -> bool:
    if not isinstance(content, list) or len(content) != 2 or not all(map(_is_marks, content)):
        return False
    return len(content[0]) == len(content[1]) and as_names(content[0]) is not None


def _is_rows(content: Any) -> bool:
    if isinstance(content, np.ndarray) and content.ndim == 2 and content.shape[1] == 2 and content.dtype.kind in "UO":
        content = content.tolist()
    return isinstance(content, list) and bool(content) and all(
        isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) for row in content
    )  # fmt: skip


def _is_dicts(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and all(isinstance(row, dict) for row in content)


def _read_dicts(rows: Sequence[Mapping[Any, Any]]) -> _Listed:
    keys = list(dict.fromkeys(key for row in rows for key in row if isinstance(key, str)))
    everywhere = [key for key in keys if all(key in row for row in rows)]
    name, label = (called(everywhere, names) or called(keys, names) for names in (ID_NAMES, LABEL_NAMES))
    nameless = [at for at, row in enumerate(rows) if name is not None and row.get(name) is None]
    if nameless:
        raise InputError(f"expected {name!r} in each of {len(rows)} videos, got none in row {nameless[0]}")
    named = dict.fromkeys(key for key in (*everywhere, name, label) if key is not None)
    given = {key: [row.get(key) for row in rows] for key in named}
    return _from_columns({key: ["" if value is None else value for value in values] for key, values in given.items()})


def _is_by_id(content: Any) -> bool:
    """{id: label}, or {id: {"label": …}} as Kinetics' json has it."""
    if not isinstance(content, dict) or not content or called([str(key) for key in content], ID_NAMES) is not None:
        return False
    values = list(content.values())
    return _is_marks(values) or all(isinstance(value, dict) and _label_in(value) is not None for value in values)


def _label_in(value: Mapping[Any, Any]) -> Any:
    inner = value.get("annotations", value)
    inner = inner if isinstance(inner, dict) else value
    key = called([str(name) for name in inner], LABEL_NAMES)
    return None if key is None else inner[key]


def _read_by_id(content: Mapping[Any, Any]) -> _Listed:
    values = [_label_in(value) if isinstance(value, dict) else value for value in content.values()]
    return _Listed([str(key) for key in content], _listed(values))


_LAYOUTS: Final[tuple[tuple[Callable[[Any], bool], Callable[[Any], _Listed], str], ...]] = (
    (lambda c: isinstance(c, dict) and isinstance(c.get("annotations"), list) and _is_dicts(c["annotations"]),
     lambda c: _read_dicts(c["annotations"]), "pyskl's {'annotations': …}"),
    (lambda c: isinstance(c, dict) and called([str(key) for key in c], (*ID_NAMES, *LABEL_NAMES)) is not None,
     lambda c: _from_columns({str(key): value for key, value in c.items()}), "arrays called ids, labels …"),
    (_is_by_id, _read_by_id, "{id: label}"),
    (_is_pair, lambda c: _Listed(as_names(c[0]), _listed(c[1])), "(ids, labels)"),
    (_is_rows, lambda c: _Listed([str(row[0]) for row in c], _listed([row[1] for row in c])), "a list of (id, label)"),
    (_is_dicts, _read_dicts, "a list of dicts"),
    (lambda c: as_names(c) is not None, lambda c: _Listed(as_names(c)), "ids alone"),
    (lambda c: as_labels(c) is not None, lambda c: _Listed(None, _listed(c)), "labels alone"),
)  # fmt: skip
