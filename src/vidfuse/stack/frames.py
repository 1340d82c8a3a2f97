"""Tables of predictions: pandas, polars or pyarrow frames, wide or long, as arrays with ids and labels."""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import as_array, first_few
from vidfuse.errors import InputError, VidfuseWarning, option

__all__ = [
    "ID_NAMES",
    "LABEL_NAMES",
    "NOTE_NAMES",
    "NO_IDS",
    "Dump",
    "called",
    "frame_arrays",
    "label_indices",
    "read_frame",
    "reordered",
    "sorted_classes",
]

# What columns of tables, and arrays in files, are called, in lower case. The first name that is there is taken.
ID_NAMES: Final = (
    *("id", "videoid", "video_id", "video", "youtube_id", "name", "ids", "video_ids", "videos", "names", "vid"),
    *("video_name", "video_names", "sample_name", "sample_names", "sample_id", "sample_ids", "clip_id", "clip_ids"),
    *("clip_name", "clip_names", "narration_id", "narration_ids", "uid", "path", "paths", "filename", "filenames"),
    *("file", "files", "file_name", "file_names", "video_path", "video_paths", "frame_dir"),
)
LABEL_NAMES: Final = (
    *("label", "labels", "gt_label", "gt_labels", "true_label", "true_labels", "y_true", "y", "target", "targets"),
    *("gt", "gts", "ground_truth", "video_label", "video_labels", "class", "label_id", "class_id", "class_idx"),
    *("class_index", "label_idx", "true_class"),
)
NOTE_NAMES: Final = frozenset(
    {
        *(
            "split",
            "fold",
            "subset",
            "phase",
            "dataset",
            "kind",
            "classes",
            "pred",
            "preds",
            "prediction",
            "pred_label",
        ),
        *(
            "pred_labels",
            "pred_class",
            "y_pred",
            "predicted",
            "top1",
            "correct",
            "confidence",
            "n_frames",
            "num_frames",
        ),
        *("nframes", "frames", "total_frames", "frame_count", "fps", "duration", "start", "end", "time_start"),
        *("time_end", "start_frame", "stop_frame", "end_frame", "width", "height", "is_cc", "unnamed", "chunk", "clip"),
    }
)
NO_IDS: Final = "none"  # id_column= where a file has no ids, whatever its columns are called
_VOTES: Final = ("pred", "prediction", "pred_label", "pred_class", "y_pred", "predicted")
_SCORES: Final = ("score", "prob", "probability", "logit", "value")
_INDEX: Final = re.compile(r"^(|index|unnamed: \d+|__index_level_\d+__)$")
_NUMBERED: Final = re.compile(r"^(.*?)(\d+)$")
_WHOLE: Final = re.compile(r"^-?[0-9]{1,17}(\.0*)?$")
_MAX_CELLS: Final = 1 << 31


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
        InputError: The dump's own classes are others.

    Example:
        >>> dump = reordered(Dump(np.array([[1.0, 2.0]]), np.array([0]), None, ("b", "a")), ["a", "b"])
        >>> dump.scores.tolist(), dump.labels.tolist(), dump.classes
        ([[2.0, 1.0]], [1], ('a', 'b'))
    """
    own, wanted = dump.classes, tuple(classes)
    if own is None or own == wanted:
        return replace(dump, classes=wanted)
    if sorted(own) != sorted(wanted):
        odd = sorted(set(own) ^ set(wanted))
        raise InputError(
            f"classes: the file has {len(own)} classes, {len(wanted)} were given; {len(odd)} stand on one side only: "
            f"{first_few(odd)}"
        )
    place = {name: number for number, name in enumerate(own)}
    order = np.array([place[name] for name in wanted])
    rank = np.argsort(order)
    scores: Any = dump.scores
    if isinstance(scores, list):
        scores = [video[..., order] for video in scores]
    else:
        scores = rank[scores] if scores.ndim == 1 else scores[..., order]
    labels = dump.labels
    if labels is not None and ((labels >= 0) & (labels < len(own))).all():
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
    listed = frame if isinstance(frame, Mapping) else getattr(frame, "column_names", getattr(frame, "columns", None))
    if listed is None:
        raise InputError(f"expected a pandas, polars or pyarrow table, got {type(frame).__name__}")
    table = _Table(frame, list(listed), text)
    chosen_id = _id_column(table, id)
    ids = None if chosen_id is None else table.ids(chosen_id)
    rest = [name for name in table.names if name != chosen_id]
    long = _long_columns(rest)
    if long and columns is None and ids is not None:
        return _long(ids, table.values(long[0]), table.values(long[1]), classes, text)
    chosen_label = _label_column(table, rest, label)
    rest = [name for name in rest if name != chosen_label]
    votes = called(rest, _VOTES)
    others = [
        n for n in rest if n != votes and n.lower() not in (*NOTE_NAMES, *ID_NAMES) and not _INDEX.match(n.lower())
    ]
    if columns is None and not others and (votes or chosen_label):
        return _votes(table, votes, chosen_label, ids, classes)
    chosen, named, notes = _score_columns(table, rest, columns, chosen_id, id)
    own = tuple(chosen) if named else None
    if own is not None and columns is not None and not isinstance(classes, str | None) and set(own) != set(classes):
        own = None  # columns in class order, called otherwise
    names = sorted_classes(classes, own or (None if chosen_label is None else table.texts(chosen_label)))
    scores = np.stack([table.floats(name) for name in chosen], axis=1)
    labels = None if chosen_label is None else label_indices(table.texts(chosen_label), own or names)
    dump = Dump(scores, labels, ids, own, notes=tuple(notes))
    return dump if names is None else reordered(dump, names)


class _Table:
    """A table's columns by name, as numbers and as texts."""

    def __init__(self, frame: Any, names: Sequence[Any], text: bool) -> None:
        self.frame, self.text = frame, text
        self.keys = {str(name): name for name in names}  # pandas' columns may be called by numbers
        self.names = list(self.keys)
        self._numbers: dict[str, NDArray[Any] | None] = {}

    def values(self, name: str) -> NDArray[Any]:
        column = self.frame[self.keys[name]]
        return as_array(column.to_numpy() if hasattr(column, "to_numpy") else column, f"column {name!r}")

    def texts(self, name: str) -> list[str]:
        return [str(value) for value in self.values(name).tolist()]

    def ids(self, name: str) -> NDArray[np.str_]:
        values = self.values(name)
        odd = values.dtype.kind in "fcb" or (
            values.dtype.kind == "O" and not all(isinstance(v, str | int) for v in values)
        )
        if odd:
            raise InputError(
                f"column {name!r}: expected strings or integers as ids, got {values.dtype}, such as "
                f"{values[:1].tolist()}"
            )
        return np.array(self.texts(name), dtype=np.str_)

    def numbers(self, name: str) -> NDArray[Any] | None:
        """The column as numbers, or None where it is not of numbers."""
        if name not in self._numbers:
            values = self.values(name)
            try:
                found = _floats(values, name, True) if self.text else values
            except InputError:
                found = None
            self._numbers[name] = None if found is None or found.dtype.kind not in "fiu" else found
        return self._numbers[name]

    def floats(self, name: str) -> NDArray[np.floating[Any]]:
        found = self.numbers(name)
        return found if found is not None and found.dtype.kind == "f" else _floats(self.values(name), name, self.text)

    def is_whole(self, name: str) -> bool:
        """Whether the column holds whole numbers other than 0 and 1: counts, folds, classes, but hardly scores."""
        found = self.numbers(name)
        if found is None:
            return False
        if self.text and any("." in str(value) for value in self.values(name)[:100]) and name.lower() not in NOTE_NAMES:
            return False  # 2.0, 3.0: written as a score is
        finite = found[np.isfinite(found)]
        return bool(finite.size and (finite == np.floor(finite)).all() and not np.isin(finite, (0, 1)).all())

    def is_distinct(self, name: str) -> bool:
        texts = self.texts(name)
        return 1 < len(texts) == len(set(texts))


def called(names: Sequence[str] | Mapping[str, Any], usual: Sequence[str]) -> str | None:
    """Return the first of the usual names that is among these, in any case of letters, as it is written there.

    Example:
        >>> called(["Video_ID", "p0"], ID_NAMES)
        'Video_ID'
    """
    lower = {name.lower(): name for name in reversed(list(names))}
    return next((lower[name] for name in usual if name in lower), None)


def _id_column(table: _Table, given: str | None) -> str | None:
    """Choose the column of the ids: the given one, one with a usual name, or pandas' index where it is no counter."""
    if given is not None:
        if given == NO_IDS and given not in table.names:
            return None
        if given not in table.names:
            raise InputError(f"expected a column {given!r} for the ids, the table has {first_few(table.names)}")
        return given
    found = called(table.names, ID_NAMES)
    if found is not None:
        return found
    index = next((name for name in table.names if _INDEX.match(name.lower())), None)
    if index is None or _counts_rows(table.numbers(index)):
        return None
    return index


def _counts_rows(numbers: NDArray[Any] | None) -> bool:
    return numbers is not None and np.array_equal(numbers, np.arange(len(numbers)))


def _label_column(table: _Table, rest: Sequence[str], given: str | None) -> str | None:
    if given is not None:
        if given not in table.names:
            raise InputError(f"expected a column {given!r} for the label, the table has {first_few(table.names)}")
        return given
    return called(rest, LABEL_NAMES)


def _long_columns(rest: Sequence[str]) -> tuple[str, str] | None:
    """The columns of classes and of scores, if the table has one row for each video and class."""
    if len(rest) != 2:
        return None
    score = called(rest, _SCORES)
    names = called([name for name in rest if name != score], ("class", "label", "class_id", "class_name", "class_idx"))
    return None if score is None or names is None else (names, score)


def _score_columns(
    table: _Table, rest: list[str], given: Sequence[str] | str | None, id: str | None, asked: str | None
) -> tuple[list[str], bool, list[str]]:
    """Choose the columns of the scores, in class order; say whether their names are the classes', and what to note.

    ========================  =================================================================================
    given                     those, in the order given; a pattern's in the order of their numbers
    one numbered set          those, in the order of their numbers. Others are left out with a note if they hold
                              texts or whole numbers, without one if their name says what they are, and refused
                              if they could be scores, or ids where none were found
    several numbered sets     refused: which?
    none                      all, as classes by name; refused if some hold texts, or whole numbers beside
                              fractions
    ========================  =================================================================================
    """
    if given is not None:
        return (*_given_columns(table.names, given), [])
    index = [name for name in rest if _INDEX.match(name.lower())]
    rest = [name for name in rest if name not in index]
    runs = _numbered_sets(rest)
    advice = f"say which columns are scores by their names, or by a pattern: {option('columns', 'p*')}"
    if len(runs) > 1:
        patterns = [f"{start}*" for start in runs]
        raise InputError(f"expected one set of numbered columns, got {first_few(patterns)}; {advice}")
    chosen = next(iter(runs.values())) if runs else rest
    # Notes are left out by their name, beside numbered columns, or if what they hold cannot be scores.
    fractions = any(not table.is_whole(name) and table.numbers(name) is not None for name in chosen)
    odd = [n for n in rest if n not in chosen] if runs else [n for n in rest if _cannot_be_scores(table, n, fractions)]
    notes = [name for name in odd if name.lower() in NOTE_NAMES]
    odd = [name for name in odd if name not in notes]
    could_be = [n for n in odd if not runs or (table.numbers(n) is not None and not table.is_whole(n))]
    if not runs:
        could_be += [name for name in rest if name.lower() in NOTE_NAMES and name not in notes]
    if could_be:
        what = f"beside {first_few(chosen, 2)}" if runs else "among columns called by their classes"
        raise InputError(f"columns {first_few(could_be)} {what}: scores or not? If not, {advice}")
    if id is None and asked is None:
        distinct = [name for name in odd if table.is_distinct(name)]
        if distinct:
            raise InputError(
                f"expected a column with the videos' ids, called {', '.join(ID_NAMES[:6])} …; is it "
                f"{first_few(distinct)}? Say {option('id_column', distinct[0])}, or {option('id_column', NO_IDS)} if "
                "there is none"
            )
    said = [f"columns {first_few(odd, 10)} are no scores, and left out"] if odd else []
    chosen = [name for name in chosen if name not in notes]
    if len(chosen) < 2:
        raise InputError(
            f"expected at least two columns of scores, got {first_few(chosen) or 'none'}; the table has "
            f"{first_few(table.names)}"
        )
    ordered = _by_number(chosen)
    if ordered != [name for name in rest if name in chosen]:
        before = first_few([name for name in rest if name in chosen], 4)
        said.append(f"columns {before} are taken in the order of their numbers")
    return ordered, not runs, said


def _cannot_be_scores(table: _Table, name: str, fractions: bool) -> bool:
    return table.numbers(name) is None or (fractions and table.is_whole(name))


def _given_columns(names: Sequence[str], given: Sequence[str] | str) -> tuple[list[str], bool]:
    if isinstance(given, str):
        chosen = _by_number([name for name in names if fnmatch.fnmatchcase(name, given)])
    else:
        chosen = list(given)
    unknown = [name for name in chosen if name not in names]
    if unknown or len(chosen) < 2:
        raise InputError(
            f"columns: expected at least two columns of scores, got {first_few(unknown or chosen) or 'none'}; "
            f"the table has {first_few(names)}"
        )
    return chosen, not _is_numbered(chosen)


def _numbered_sets(names: Sequence[str]) -> dict[str, list[str]]:
    """Sets of at least two columns like p0, p1, …: numbers without a gap after a common beginning, in order.

    Example:
        >>> _numbered_sets(["p0", "p10", "fold", *(f"p{k}" for k in range(1, 10))])["p"][-2:]
        ['p9', 'p10']
    """
    by_start: dict[str, list[str]] = {}
    for name in names:
        if match := _NUMBERED.match(name):
            by_start.setdefault(match[1], []).append(name)
    ordered = {start: _by_number(found) for start, found in by_start.items() if len(found) > 1}
    return {start: found for start, found in ordered.items() if _is_numbered(found)}


def _by_number(names: list[str]) -> list[str]:
    """Columns in the order of the numbers that they end in, if all begin alike; else as they are."""
    found = [_NUMBERED.match(name) for name in names]
    if not all(match is not None and len(match[2]) < 10 for match in found):
        return names
    numbers = {name: int(match[2]) for name, match in zip(names, found, strict=True) if match}
    return sorted(names, key=numbers.__getitem__) if len({match[1] for match in found if match}) == 1 else names


def _is_numbered(columns: Sequence[str]) -> bool:
    """Whether columns are called like p0, p1 …: numbers in steps of one after a common beginning."""
    found = [_NUMBERED.match(name) for name in columns]
    if not all(match is not None and len(match[2]) < 10 for match in found):
        return False
    starts = {match[1] for match in found if match}
    numbers = [int(match[2]) for match in found if match]
    return len(starts) == 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _votes(
    table: _Table,
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


def _floats(values: NDArray[Any], name: str, text: bool) -> NDArray[np.floating[Any]]:
    if text:
        try:
            return np.fromiter(map(float, values.tolist()), np.float64, len(values))  # twice as fast as astype
        except ValueError:
            pass
        try:
            return np.fromiter((float(v or "nan") for v in values.tolist()), np.float64, len(values))  # an empty cell
        except ValueError as error:
            raise InputError(f"column {name!r}: expected numbers: {error}") from error
    if values.dtype.kind != "f":
        raise InputError(
            f"column {name!r}: expected floating-point scores, got dtype {values.dtype}; "
            f"name the score columns with {option('columns')}"
        )
    return values


def _long(
    ids: NDArray[np.str_], names: NDArray[Any], scores: NDArray[Any], classes: Sequence[str] | str | None, text: bool
) -> Dump:
    """Turn one row a number into one row a video; videos stand in the order of their first rows."""
    known = sorted_classes("sorted" if classes is None else classes, names.tolist())
    columns = label_indices(names.tolist(), known)
    found = None if known is None else tuple(known)
    unique, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    rows = rank[inverse]
    n, k = len(unique), len(found) if found else int(columns.max()) + 1
    if columns.min() < 0 or n * k > min(_MAX_CELLS, 64 * len(ids) + 1024):
        raise InputError(f"expected one row for each of {n} videos and {k} classes, got {len(ids)} rows")
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
    raise InputError(f"labels name classes that are not in {option('classes')}: {first_few(unknown)}")


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
        try:
            dumps[name] = read_frame(frame, id=id, label=label, columns=columns)
            if np.ndim(dumps[name].scores) == 1:
                raise InputError("expected at least two columns of scores, got predicted classes alone")
        except InputError as error:
            raise InputError(f"member {name!r}: {error}") from error
        for note in dumps[name].notes:
            warnings.warn(f"member {name!r}: {note}", VidfuseWarning, stacklevel=3)
    labelled = {name: dump.labels for name, dump in dumps.items() if dump.labels is not None and label is not None}
    return {
        "arrays": {name: dump.scores for name, dump in dumps.items()},
        "ids": {name: dump.ids for name, dump in dumps.items()},
        "labels": labelled or None,
        "classes": {name: dump.classes for name, dump in dumps.items()},
    }
