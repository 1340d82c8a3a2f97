"""Tables of predictions: pandas, polars or pyarrow frames, wide or long, as arrays with ids and labels."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import first_few, naming
from vidfuse.errors import InputError, VidfuseWarning, option
from vidfuse.stack.classes import folded, name_order
from vidfuse.stack.columns import (
    ID_NAMES,
    NOTE_NAMES,
    VOTE_NAMES,
    Table,
    called,
    floats_of,
    id_column,
    in_numbered_order,
    is_index,
    is_numbered,
    label_column,
    long_columns,
    score_columns,
)

__all__ = ["Dump", "frame_arrays", "label_indices", "read_frame", "reordered", "sorted_classes"]

_WHOLE: Final = re.compile(r"^-?[0-9]{1,17}(\.0*)?$")
_MAX_CELLS: Final = 1 << 31
_NO_LABEL: Final = ("", "nan", "None", "<NA>", "NaT")  # what tables call a cell without a label


@dataclass(frozen=True)
class Dump:
    """One member's predictions as they were dumped.

    Attributes:
        scores: (N, K) or (N, V, K), or a list of (V_i, K) where videos have different numbers of views; integers (N,)
            where only the predicted classes are known.
        labels: The dump's own labels (N,), or None.
        ids: The dump's own ids (N,), or None.
        classes: The dump's own class names, or None.
        kind: What the dump itself says that its numbers are, or None.
        chunks: The views are the pieces of one test, of which the tool that wrote them keeps the mean alone.
        notes: What was left out or put in order while it was read, for a warning.
    """

    scores: NDArray[Any] | list[NDArray[Any]]
    labels: NDArray[Any] | None = None
    ids: NDArray[np.str_] | None = None
    classes: tuple[str, ...] | None = None
    kind: str | None = None
    chunks: bool = False
    notes: tuple[str, ...] = ()


def reordered(dump: Dump, classes: Sequence[str]) -> Dump:
    """Return a dump with its classes in the order of `classes`, columns and labels alike, matched by name.

    A dump without class names is taken to have them in this order.

    Raises:
        AlignmentError: The dump's own classes are others.

    Example:
        >>> dump = reordered(Dump(np.array([[1.0, 2.0]]), np.array([0]), None, ("b", "a")), ["a", "b"])
        >>> dump.scores.tolist(), dump.labels.tolist(), dump.classes
        ([[2.0, 1.0]], [1], ('a', 'b'))
    """
    own, wanted = dump.classes, tuple(classes)
    order = None if own is None else name_order(own, wanted, "the file")
    if order is None:
        return replace(dump, classes=wanted)
    rank = np.argsort(order)
    scores: Any = dump.scores
    if isinstance(scores, list):
        scores = [video[..., order] for video in scores]
    else:
        scores = rank[scores] if scores.ndim == 1 else scores[..., order]
    labels = dump.labels
    if labels is not None and ((labels >= 0) & (labels < len(wanted))).all():
        labels = rank[labels]
    return replace(dump, scores=scores, labels=labels, classes=wanted)


def read_frame(
    frame: Any,
    *,
    id: str | None = None,
    label: str | None = None,
    columns: Sequence[str] | str | None = None,
    classes: Sequence[str] | str | None = None,
    text: bool = False,
) -> Dump:
    """Read one table of predictions; its ids are as they stand, and may come twice.

    Args:
        frame: A pandas, polars or pyarrow table, or a mapping from column name to values.
        id: The column of the videos' ids, or "none" if there is none; by default one that is called id, videoid, …, or
            pandas' unnamed index where it holds texts.
        label: The column of the true classes; by default one that is called label, y_true, …, if there is one.
        columns: The columns of the scores in class order, or a pattern such as ``"p*"``. By default the numbered ones
            (p0, p1, …), in the order of their numbers; without such, all others, and their names are the classes'.
        classes: Class names, for columns, labels or long tables that use them, in order; "sorted" sorts those.
        text: The values are strings, as a csv has them.

    Raises:
        InputError: A column could be a class and could be something else; the message names it.
    """
    if hasattr(frame, "collect"):
        raise InputError(f"expected a table, got polars' {type(frame).__name__}, which is not read yet; call collect()")
    listed = frame if isinstance(frame, Mapping) else getattr(frame, "column_names", getattr(frame, "columns", None))
    if listed is None:
        raise InputError(f"expected a pandas, polars or pyarrow table, got {type(frame).__name__}")
    table = Table(frame, list(listed), text)
    chosen_id = id_column(table, id)
    ids = None if chosen_id is None else table.ids(chosen_id)
    rest = [name for name in table.names if name != chosen_id]
    long = long_columns(rest)
    if long and columns is None and ids is not None:
        return _long(ids, table.values(long[0]), table.values(long[1]), classes, text)
    given = [] if columns is None or isinstance(columns, str) else columns
    chosen_label = label_column(table, [name for name in rest if name not in given], label)
    rest = [name for name in rest if name != chosen_label]
    votes = called(rest, VOTE_NAMES)
    known = {name for name in rest if name.lower() in (*NOTE_NAMES, *ID_NAMES) or is_index(name)}
    others = [name for name in rest if name != votes and name not in known]
    if columns is None and not others and (votes or chosen_label):
        return _votes(table, votes, chosen_label, ids, classes)
    chosen, named, notes = score_columns(table, rest, columns, chosen_id, id)
    wanted = classes if not isinstance(classes, str | None) else ()
    own = tuple(chosen) if named or set(chosen) == set(wanted) else None  # numbers may be the classes' names, too
    if own is not None and columns is not None and not isinstance(classes, str | None) and set(own) != set(classes):
        own = None  # columns in class order, called otherwise
    names = sorted_classes(classes, own or (None if chosen_label is None else table.texts(chosen_label)))
    scores = np.stack([table.floats(name) for name in chosen], axis=1)
    labels = None if chosen_label is None else label_indices(table.texts(chosen_label), own or names)
    dump = Dump(scores, labels, ids, own, notes=tuple(notes))
    return dump if names is None else reordered(dump, names)


def _votes(
    table: Table,
    votes: str | None,
    label: str | None,
    ids: NDArray[np.str_] | None,
    classes: Sequence[str] | str | None,
) -> Dump:
    """A table of ids and predicted classes; beside a column of predictions, the label is the true class."""
    column = votes or label or ""
    names = sorted_classes(classes, table.texts(column))
    truth = None if votes is None or label is None else label_indices(table.texts(label), names)
    return Dump(label_indices(table.texts(column), names), truth, ids, None if names is None else tuple(names))


def _long(
    ids: NDArray[np.str_], names: NDArray[Any], scores: NDArray[Any], classes: Sequence[str] | str | None, text: bool
) -> Dump:
    """Turn one row a number into one row a video; videos stand in the order of their first rows.

    Without `classes`, these stand in the order of their names, or of their numbers where they are c0, c1, …, c10.
    """
    texts = [str(name) for name in names.tolist()]
    known = sorted_classes("sorted" if classes is None else classes, texts)
    if classes is None:
        numbered = in_numbered_order(sorted(set(texts)))
        known = numbered if is_numbered(numbered) else known
    columns = label_indices(texts, known)
    found = None if known is None or (classes is None and all(map(_WHOLE.match, known))) else tuple(known)
    unique, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    rows = rank[inverse]
    n, k = len(unique), len(known) if known else int(columns.max()) + 1
    if columns.min() < 0 or n * k > min(_MAX_CELLS, 64 * len(ids) + 1024):
        raise InputError(f"expected one row for each of {n} videos and {k} classes, got {len(ids)} rows")
    values = np.full((n, k), np.nan)
    counts = np.zeros((n, k), dtype=np.int64)
    values[rows, columns] = floats_of(scores, "score", text)
    np.add.at(counts, (rows, columns), 1)
    if (counts != 1).any():
        row, column = (int(v) for v in np.argwhere(counts != 1)[0])
        raise InputError(
            f"expected one score for each video and class, got {int(counts[row, column])} for id "
            f"{str(unique[order][row])!r}, class {column} ({int((counts != 1).sum())} such pairs in all)"
        )
    return Dump(values, None, unique[order], found)


def label_indices(labels: Sequence[Any], classes: Sequence[str] | None) -> NDArray[np.int64]:
    """Turn labels, as integers, digits (3, "3", "3.0") or class names, into class indices.

    Raises:
        InputError: A name without `classes`, or one that is not among them.

    Example:
        >>> label_indices(["3.0", "1"], None).tolist(), label_indices(["run", "jump"], ["jump", "run"]).tolist()
        ([3, 1], [1, 0])
    """
    texts = [str(label) for label in labels]
    absent = [row for row, text in enumerate(texts) if text in _NO_LABEL]
    if absent and not set(_NO_LABEL) & set(classes or ()):
        raise InputError(
            f"labels: expected one for each video, got {texts[absent[0]]!r} in row {absent[0]} ({len(absent)} such "
            "rows); leave these videos out"
        )
    if classes is not None and set(texts) <= set(classes):
        index = {name: number for number, name in enumerate(classes)}
        return np.array([index[text] for text in texts], dtype=np.int64)
    odd = next((text for text in texts if not _WHOLE.match(text)), None)
    if odd is None:
        return np.array([int(text.partition(".")[0]) for text in texts], dtype=np.int64)
    if classes is None:
        raise InputError(
            f"expected labels as class indices, got {odd!r}; pass {option('classes')} to give class names their "
            f"indices, or {option('classes', 'sorted')} if they are numbered in the order of their names"
        )
    unknown = sorted(set(texts) - set(classes))
    alike = ""
    if {folded(name) for name in unknown} <= {folded(name) for name in classes}:
        alike = "; they differ from these only in spaces, case or Unicode form: make the names equal"
    raise InputError(f"labels name classes that are not in {option('classes')}: {first_few(unknown)}{alike}")


def sorted_classes(classes: Sequence[str] | str | None, names: Sequence[Any] | None) -> Sequence[str] | None:
    """Return class names as they were given, or for "sorted" these names without repetition, in order.

    Numbers are no names: for labels that are all numbers the answer is None.
    """
    if not isinstance(classes, str):
        return classes
    if classes != "sorted":
        raise InputError(f'classes: expected a list of names, or "sorted", got {classes!r}')
    texts = {str(name) for name in names or ()}
    return None if all(_WHOLE.match(text) for text in texts) else sorted(texts)


def frame_arrays(
    frames: Mapping[str, Any], id: str, label: str | None = None, columns: Sequence[str] | None = None
) -> dict[str, Any]:
    """Turn frames into the arguments of `LogitStack.from_arrays`: arrays, ids, labels and classes by member.

    Args:
        frames: {member: pandas, polars or pyarrow table}, one row a video.
        id: The column of the videos' ids.
        label: The column of the true classes, or None.
        columns: The score columns in class order; by default all others.
    """
    dumps = {}
    for name, frame in frames.items():
        with naming(f"member {name!r}"):
            dumps[name] = read_frame(frame, id=id, label=label, columns=columns)
            if np.ndim(dumps[name].scores) == 1:
                raise InputError("expected at least two columns of scores, got predicted classes alone")
        for note in dumps[name].notes:
            warnings.warn(f"member {name!r}: {note}", VidfuseWarning, stacklevel=3)
    labelled = {name: dump.labels for name, dump in dumps.items() if dump.labels is not None and label is not None}
    return {
        "arrays": {name: dump.scores for name, dump in dumps.items()},
        "ids": {name: dump.ids for name, dump in dumps.items()},
        "labels": labelled or None,
        "classes": {name: dump.classes for name, dump in dumps.items()},
    }
