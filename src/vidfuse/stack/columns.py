"""Which column of a table holds ids, which labels, and which scores; an error or a note for every other."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import as_array, first_few
from vidfuse.errors import InputError, option

__all__ = [
    "CLASS_NAMES",
    "ID_NAMES",
    "LABEL_NAMES",
    "NOTE_NAMES",
    "NO_IDS",
    "VOTE_NAMES",
    "Table",
    "called",
    "counts_rows",
    "floats_of",
    "id_column",
    "id_name",
    "in_numbered_order",
    "is_index",
    "is_numbered",
    "label_column",
    "long_columns",
    "score_columns",
    "tells_apart",
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
CLASS_NAMES: Final = ("classes", "class_names", "categories", "label_names", "target_names")
NOTE_NAMES: Final = frozenset(
    "split fold subset phase dataset kind classes pred preds prediction pred_label pred_labels pred_class y_pred "
    "predicted top1 correct confidence n_frames num_frames nframes frames total_frames frame_count fps duration start "
    "end time_start time_end start_frame stop_frame end_frame width height is_cc unnamed chunk clip timestamp "
    "num_classes img_shape ori_shape original_shape num_clips clip_len".split()
)
NO_IDS: Final = "none"  # id_column= where a file has no ids, whatever its columns are called
VOTE_NAMES: Final = ("pred", "prediction", "pred_label", "pred_class", "y_pred", "predicted")
_SCORES: Final = ("score", "prob", "probability", "logit", "value")
_INDEX: Final = re.compile(r"^(|index|unnamed: \d+|__index_level_\d+__)$")
_FLOAT: Final = re.compile(r"^()([0-9]{1,9})(\.0)$")  # as pandas calls columns by numbers
_NUMBERED: Final = re.compile(r"^(.*?)([0-9]{1,9})([^0-9]*)$")


class Table:
    """A table's columns by name, as numbers and as texts."""

    def __init__(self, frame: Any, names: Sequence[Any], text: bool) -> None:
        self.frame, self.text = frame, text
        self.keys = {str(name): name for name in names}  # pandas' columns may be called by numbers
        self.names = list(self.keys)
        self._numbers: dict[str, NDArray[Any] | None] = {}
        self._n: int | None = None
        if len(self.keys) < len(names):
            texts = [str(name) for name in names]
            raise InputError(
                f"expected unique column names, got {first_few(sorted({n for n in texts if texts.count(n) > 1}))} twice"
            )

    def values(self, name: str) -> NDArray[Any]:
        """Return a column as it is."""
        column = self.frame[self.keys[name]]
        found = as_array(column.to_numpy() if hasattr(column, "to_numpy") else column, f"column {name!r}")
        if not found.ndim:
            raise InputError(f"column {name!r}: expected a value for each video, got one alone")
        self._n = len(found) if self._n is None else self._n
        if len(found) != self._n:
            raise InputError(f"column {name!r}: expected {self._n} values, as in other columns, got {len(found)}")
        return found

    def texts(self, name: str) -> list[str]:
        """Return a column as texts."""
        return [str(value) for value in self.values(name).tolist()]

    def ids(self, name: str) -> NDArray[np.str_]:
        """Return a column of ids, which are texts or whole numbers."""
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
        """Return a column as numbers, or None where it does not hold numbers."""
        if name not in self._numbers:
            values = self.values(name)
            try:
                found = floats_of(values, name, True) if self.text else values
            except InputError:
                found = None
            self._numbers[name] = None if found is None or found.dtype.kind not in "fiu" else found
        return self._numbers[name]

    def floats(self, name: str) -> NDArray[np.floating[Any]]:
        """Return a column of scores, or refuse it."""
        found = self.numbers(name)
        if found is not None and found.ndim > 1:
            raise InputError(f"column {name!r}: expected one column of values, got shape {found.shape}")
        return found if found is not None and found.dtype.kind == "f" else floats_of(self.values(name), name, self.text)

    def is_whole(self, name: str) -> bool:
        """Whether the column holds whole numbers, and is no scores that happen to be 0 or 1: counts, folds, classes."""
        found = self.numbers(name)
        if found is None:
            return False
        if self.text and any("." in str(value) for value in self.values(name)[:100]) and name.lower() not in NOTE_NAMES:
            return False  # 2.0, 3.0: written as a score is
        finite = found[np.isfinite(found)]
        if not finite.size or not (finite == np.floor(finite)).all():
            return False
        written_so = found.dtype.kind in "iu" or (
            self.text and all(str(value).lstrip("-").isdigit() for value in self.values(name))
        )
        return written_so or not np.isin(finite, (0, 1)).all()

    def is_fractions(self, name: str) -> bool:
        """Whether the column holds numbers that are not whole."""
        found = self.numbers(name)
        return found is not None and bool((found[np.isfinite(found)] % 1 != 0).any())

    def is_distinct(self, name: str) -> bool:
        """Whether no two rows of a column are the same."""
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


def id_name(names: Iterable[str], values: Callable[[str], Any], *, unique: bool = False) -> str | None:
    """Return what the ids are called: the first usual name, unless it counts the rows and another tells them apart.

    From 0, as pandas' index does, it also gives way to a name of what several videos, or views, are parts of.

    Args:
        names: Of the columns.
        values: Returns a column by its name.
        unique: Each id stands once, so that a name of what several videos are parts of gives way, too.

    Example:
        >>> table = {"id": [0, 1], "path": ["a", "b"], "label": [1, 0]}
        >>> id_name(table, table.__getitem__)
        'path'
    """
    usual = sorted((name for name in names if name.lower() in ID_NAMES), key=lambda name: ID_NAMES.index(name.lower()))
    if not usual:
        return None
    first = values(usual[0])
    if not counts_rows(first) and (not unique or tells_apart(first)):
        return usual[0]
    n = len(first) if isinstance(first, list) else np.size(first)
    index = not unique and float(np.ravel(first)[0]) == 0
    others = ((name, values(name)) for name in usual[1:])
    good = (name for name, own in others if tells_apart(own, index) and len(own) == n and not counts_rows(own))
    return next(good, usual[0])


def tells_apart(values: Any, parts: bool = False) -> bool:
    """Whether these are names or numbers most of which are there once; a sampler that pads repeats some.

    Args:
        values: A column.
        parts: Whether names that several rows share will do, too.

    Example:
        >>> tells_apart(["a", "b", "a"]), tells_apart(["P01", "P01", "P02", "P02"]), tells_apart("swin")
        (True, False, False)
    """
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, list) or not all(isinstance(value, str | bytes | int) for value in values):
        return False
    return parts or len(values) < 2 * len(set(values))


def counts_rows(values: Any) -> bool:
    """Whether values only count the rows, from 0 or from 1, as numbers or as texts.

    Example:
        >>> counts_rows(["0", "1", "2"]), counts_rows([1, 2]), counts_rows(["a", "b"])
        (True, True, False)
    """
    try:
        numbers = np.asarray(values).astype(np.float64)
    except (ValueError, TypeError):
        return False
    counters = (np.arange(start, start + numbers.size) for start in (0, 1))
    return numbers.size > 0 and any(np.array_equal(numbers.ravel(), counter) for counter in counters)


def id_column(table: Table, given: str | None) -> str | None:
    """Choose the column of the ids: the given one, one with a usual name, or pandas' index where it is no counter."""
    if given is not None:
        if given == NO_IDS and given not in table.names:
            return None
        if given not in table.names:
            raise InputError(f"expected a column {given!r} for the ids, the table has {first_few(table.names)}")
        return given
    usual = id_name([name for name in table.names if not table.is_fractions(name)], table.values)
    if usual is not None:
        return usual
    index = next((name for name in table.names if is_index(name)), None)
    return None if index is None or counts_rows(table.values(index)) else index


def label_column(table: Table, rest: Sequence[str], given: str | None) -> str | None:
    """Choose the column of the true classes: the given one, or the first with a usual name.

    A letter of a sign language may be called Y, and a class target; fractions are neither labels nor ids.
    """
    if given is not None:
        if given not in table.names:
            raise InputError(f"expected a column {given!r} for the label, the table has {first_few(table.names)}")
        return given
    return called([name for name in rest if not table.is_fractions(name)], LABEL_NAMES)


def long_columns(rest: Sequence[str]) -> tuple[str, str] | None:
    """The columns of classes and of scores, if the table has one row for each video and class."""
    if len(rest) != 2:
        return None
    score = called(rest, _SCORES)
    names = called([name for name in rest if name != score], ("class", "label", "class_id", "class_name", "class_idx"))
    return None if score is None or names is None else (names, score)


def score_columns(
    table: Table, rest: list[str], given: Sequence[str] | str | None, id: str | None, asked: str | None
) -> tuple[list[str], bool, list[str]]:
    """Choose the columns of the scores, in class order; say whether their names are the classes', and what to note.

    ========================  =================================================================================
    given                     those, in the order given; of a pattern's, the numbered set if there is one
    one numbered set          those, in the order of their numbers. Others are left out with a note if they hold
                              texts or whole numbers, without one if their name says what they are, and refused
                              if they could be scores, or ids where none were found
    several numbered sets     refused: which?
    none                      all, as classes by name, as they stand; refused if some hold texts, or whole
                              numbers beside fractions
    ========================  =================================================================================
    """
    if given is not None:
        return (*_given_columns(table.names, given), [])
    if id is None and asked is None:
        could_be_ids = called([name for name in rest if table.is_fractions(name)], ID_NAMES)
        if could_be_ids is not None:
            raise InputError(
                f"column {could_be_ids!r} holds fractions: ids, or scores of a class? Say "
                f"{option('id_column', could_be_ids)}, or {option('id_column', NO_IDS)} if there are no ids"
            )
    index = [name for name in rest if is_index(name) and not table.is_fractions(name)]
    rest = [name for name in rest if name not in index]
    runs = _numbered_sets(rest)
    advice = f"say which columns are scores by their names, or by a pattern: {option('columns', 'p*')}"
    if len(runs) > 1:
        classes = [run for run in runs.values() if not any(map(table.is_fractions, run))]
        best = ""
        if len(runs) == 2 and len(classes) == 1 and len({len(run) for run in runs.values()}) == 1:
            best = f"; if {first_few(classes[0], 2)} say which classes the scores are of, write those of every class"
        raise InputError(f"expected one set of numbered columns, got {first_few(runs)}; {advice}{best}")
    chosen = next(iter(runs.values())) if runs else rest
    # Notes are left out by their name, beside numbered columns, or if what they hold cannot be scores.
    fractions = any(not table.is_whole(name) and table.numbers(name) is not None for name in chosen)
    odd = [n for n in rest if n not in chosen] if runs else [n for n in rest if _cannot_be_scores(table, n, fractions)]
    notes = [name for name in odd if name.lower() in NOTE_NAMES]
    odd = [name for name in odd if name not in notes]
    could_be = [n for n in odd if not runs or (table.numbers(n) is not None and not table.is_whole(n))]
    if not runs:
        could_be += [name for name in rest if name.lower() in NOTE_NAMES and name not in notes]
    lists = [name for name in could_be if not runs and all(text.startswith("[") for text in table.texts(name))]
    if lists:
        raise InputError(
            f"column {lists[0]!r} holds a list in each cell: write a column for each class, or save json or parquet"
        )
    if could_be:
        what = f"beside {first_few(chosen, 2)}" if runs else "among columns called by their classes"
        raise InputError(f"columns {first_few(could_be)} {what}: scores or not? If not, {advice}")
    if id is None and asked is None:
        # A name that usually explains something, such as clip, may hold the ids where nothing else does.
        texts = [name for name in notes if name.lower() not in VOTE_NAMES and table.numbers(name) is None]
        distinct = [name for name in (*odd, *texts) if table.is_distinct(name)]
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
    stood = [name for name in rest if name in chosen]
    if chosen != stood:
        said.append(f"columns {first_few(stood, 4)} are taken in the order of their numbers")
    return chosen, not runs, said


def _cannot_be_scores(table: Table, name: str, fractions: bool) -> bool:
    return table.numbers(name) is None or (fractions and table.is_whole(name))


def in_numbered_order(columns: Sequence[str]) -> list[str]:
    """Return columns in the order in which they are read: one numbered set by its numbers, others as they stand.

    Example:
        >>> in_numbered_order(["0", "1", "10", *map(str, range(2, 10))])[-2:], in_numbered_order(["30", "7"])
        (['9', '10'], ['30', '7'])
    """
    runs = _numbered_sets(columns)
    only = next(iter(runs.values())) if len(runs) == 1 else []
    return only if len(only) == len(columns) else list(columns)


def _given_columns(names: Sequence[str], given: Sequence[str] | str) -> tuple[list[str], bool]:
    if isinstance(given, str):
        matched = [name for name in names if fnmatch.fnmatchcase(name, given)]
        runs = _numbered_sets(matched)  # of p0, p1 and pred, "p*" means the numbered ones
        if len(runs) > 1:
            raise InputError(f"columns: {given!r} matches several numbered sets, {first_few(runs)}")
        chosen = next(iter(runs.values()), matched)
        if renamed := [name for name in matched if f"{name}.1" in chosen[:1]]:
            raise InputError(
                f"columns: {given!r} matches {renamed[0]!r} and {first_few(chosen, 2)}, as pandas calls columns of one "
                "name; name all of them in class order"
            )
    else:
        chosen = list(given)
    unknown = [name for name in chosen if name not in names]
    if unknown or len(chosen) < 2:
        raise InputError(
            f"columns: expected at least two columns of scores, got {first_few(unknown or chosen) or 'none'}; "
            f"the table has {first_few(names)}"
        )
    return chosen, not is_numbered(chosen)


def _numbered_sets(names: Sequence[str]) -> dict[str, list[str]]:
    """Sets of at least two columns like p0, p1, …, by a pattern: numbers without a gap in names else alike, in order.

    Numbers within names count where most names have them: few classes are called "dive 1 twist" and "dive 2 twist".

    Example:
        >>> _numbered_sets(["p[0]", "p[10]", "fold", *(f"p[{k}]" for k in range(1, 10))])["p[*]"][-2:]
        ['p[9]', 'p[10]']
    """
    sets: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        if match := _FLOAT.match(name) or _NUMBERED.match(name):
            sets.setdefault(f"{match[1]}*{match[3]}", []).append((int(match[2]), name))
    ordered = {pattern: [name for _, name in sorted(found)] for pattern, found in sets.items() if len(found) > 1}
    runs = {pattern: found for pattern, found in ordered.items() if is_numbered(found)}
    within = {pattern for pattern in runs if not pattern.endswith("*")}
    few = 2 * sum(len(runs[pattern]) for pattern in within) < len(names)
    return {pattern: found for pattern, found in runs.items() if not (few and pattern in within)}


def is_numbered(columns: Sequence[str]) -> bool:
    """Whether columns are called like p0, p1 …: numbers in steps of one in names that are else alike.

    Example:
        >>> is_numbered(["0_logit", "1_logit"]), is_numbered(["0.0", "1.0"]), is_numbered(["p0", "p2"])
        (True, True, False)
    """
    found = [match for name in columns if (match := _FLOAT.match(name) or _NUMBERED.match(name))]
    numbers = [int(match[2]) for match in found]
    alike = len(found) == len(columns) and len({(match[1], match[3]) for match in found}) == 1
    return alike and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def floats_of(values: NDArray[Any], name: str, text: bool) -> NDArray[np.floating[Any]]:
    """Return a column of scores as floating-point numbers; an empty cell of a text is NaN."""
    if text:
        try:
            return np.fromiter(map(float, values.tolist()), np.float64, len(values))  # twice as fast as astype
        except ValueError:
            pass
        try:
            return np.fromiter((float(v or "nan") for v in values.tolist()), np.float64, len(values))  # an empty cell
        except ValueError as error:
            comma = "; write a point where a comma stands" if re.search(r"\d,\d", str(error)) else ""
            raise InputError(f"column {name!r}: expected numbers: {error}{comma}") from error
    if values.dtype.kind != "f":
        raise InputError(
            f"column {name!r}: expected floating-point scores, got dtype {values.dtype}; "
            f"name the score columns with {option('columns')}"
        )
    return values


def is_index(name: str) -> bool:
    """Whether pandas called a column so, because its index had no name."""
    return _INDEX.match(name.lower()) is not None
