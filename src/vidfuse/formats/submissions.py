"""Submissions to challenges: written in their formats; those of VIPriors are read, checked and scored too.

A submission to the VIPriors Action Recognition Challenge is a text file with one line per video:
`videoid cls1 cls2 cls3 cls4 cls5`, class indices 1-based, best first. The rules are those of its published toolkit.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import as_array, check_classes, did_you_mean, first_few
from vidfuse._files import replace
from vidfuse._paths import path_ids
from vidfuse.errors import AlignmentError, InputError, VidfuseWarning, option
from vidfuse.formats.containers import read_text
from vidfuse.formats.export import csv_cells, csv_texts, job_of
from vidfuse.formats.streams import Rows, read_by_rows, threads_for, write_text
from vidfuse.likelihood import block_rows, log_softmax

__all__ = [
    "Submission",
    "SubmissionScore",
    "check_submission",
    "read_submission",
    "score_submission",
    "write_submission",
]

Format = Literal["vipriors", "csv", "epic"]
Lines = Callable[[slice, tuple[NDArray[Any], ...]], str]
_SUFFIXES: Final[dict[Format, str]] = {"vipriors": ".txt", "csv": ".csv", "epic": ".zip"}
_ACTIONS = 100  # pairs of verb and noun that EPIC-KITCHENS asks for
_BLOCK: Final = 1 << 20  # scores that are written at once
_COUNTED = 5  # classes of a line that are read
_OFFICIAL_CLASSES = 399  # the published script builds its list of classes as 1 … 399


def write_submission(
    log_proba: ArrayLike | Mapping[str, ArrayLike],
    ids: Iterable[str] | None,
    path: str | Path,
    format: Format = "vipriors",
    *,
    sample: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    supervision: Sequence[int] | None = None,
    resume: str | None = None,
) -> Path:
    r"""Write a submission; the file appears complete or not at all.

    ==========  ==========  =====================================================================================
    format      suffix      content
    ==========  ==========  =====================================================================================
    vipriors    .txt        ``videoid cls1 cls2 cls3 cls4 cls5``: the five most likely classes, 1-based, best first
    csv         .csv        the columns and rows of a sample submission: ``id,label`` or ``id,p0,p1,…``
    epic        .zip        EPIC-KITCHENS-100's ``test.json``: scores of verbs, nouns and the 100 best actions
    ==========  ==========  =====================================================================================

    Ties go to the lower class index.

    Args:
        log_proba: log-likelihoods (N, K), an array, a tensor, or blocks such as `Recipe.predict_blocks` gives, which
            are computed while they are written; with "epic" {"verb": (N, 97), "noun": (N, 300)}, all in memory. Where
            only ranks are written, anything that ranks the classes will do.
        ids: the videos' ids, in the rows' order.
        path: the file to write; its suffix must be the format's.
        format: "vipriors", "csv" or "epic".
        sample: with "csv" the competition's sample submission. Its first column has the ids, as they shall be written
            (with folders or a video's suffix, or without). One more column asks for the class: by name where `classes`
            has the sample's values, from 1 on where its values are 1 … K, else as an index from 0 on. K more columns
            ask for the probabilities, in the order of their names where these are the classes'. By default the columns
            are ``id,label``. Videos that it does not ask for are left out, with a warning.
        classes: the classes' names, in the scores' order.
        supervision: with "epic" what the challenge asks for: the levels of supervision of pretraining, of the training
            labels and of the training data (``sls_pt``, ``sls_tl``, ``sls_td``).
        resume: what a killed call goes on by, as in `vidfuse.formats.write_predictions`; "epic" begins anew.

    Returns:
        The path.

    Raises:
        InputError: another shape or suffix, NaN, no ids, an id twice or with a space; or a sample that does not fit.
        AlignmentError: the sample's videos are not these.

    Source:
        The published toolkit of the VIPriors challenge; EPIC-KITCHENS-100's action recognition challenge, format 0.2.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_submission([[0.1, 0.5, 0.2, 0.1, 0.0, 0.1]], ["video_1"], f"{folder}/sub.txt")
        ...     path.read_text()
        'video_1 2 3 1 4 6\n'
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_submission([[0.1, 0.9]], ["video_1"], f"{folder}/sub.csv", "csv", classes=["jump", "run"])
        ...     path.read_text()
        'id,label\nvideo_1,run\n'
    """
    if format not in _SUFFIXES:
        raise InputError(
            f"expected format {' or '.join(map(repr, _SUFFIXES))}, got {format!r}{did_you_mean(format, _SUFFIXES)}"
        )
    suffix = Path(path).suffix.lower()
    if suffix != _SUFFIXES[format]:
        fitting = [name for name, own in _SUFFIXES.items() if own == suffix]
        other = f", or say {option('format', fitting[0])}" if fitting else ""
        raise InputError(
            f"{path}: expected a file name that ends in {_SUFFIXES[format]} for the format {format}{other}"
        )
    given: Any = log_proba
    heads = {
        name: values if read_by_rows(values) else _as_array(values)
        for name, values in (given if isinstance(given, Mapping) else {"": given}).items()
    }
    if sorted(heads) != (["noun", "verb"] if format == "epic" else [""]):
        wanted = '{"verb": scores, "noun": scores}' if format == "epic" else "one array (N, K)"
        raise InputError(f"expected {wanted} for the format {format}, got {first_few(heads) if heads else 'nothing'}")
    names = _checked_ids(ids, heads, spaces=format == "csv")
    if format == "epic":
        verbs, nouns = (_block(heads[name], slice(0, len(names)), names) for name in ("verb", "noun"))
        return replace(path, _epic(verbs, nouns, names, supervision))
    scores = heads[""]
    step = getattr(scores, "rows_per_block", None) or block_rows(scores.shape[1], _BLOCK)
    job = None if resume is None else job_of(resume, format, np.array(names), classes)
    order, head, lines = np.arange(len(names)), "", _five(names)
    if format == "csv":
        order, head, lines = _csv(scores.shape[1], names, sample, classes)
        job = None if job is None else job_of(job, b"" if sample is None else Path(sample).read_bytes())
    whole = {"scores": (np.dtype(np.float64), (len(order), scores.shape[1]))}

    def read(rows: slice) -> tuple[NDArray[np.float64]]:
        return (_block(scores, rows if sample is None else order[rows], names),)

    return write_text(path, head, Rows(read, whole, step, threads_for(scores)), lines, job)


def _five(names: list[str]) -> Lines:
    """Return how the five most likely classes of rows are written."""

    def lines(rows: slice, arrays: tuple[NDArray[Any], ...]) -> str:
        best = np.argsort(-arrays[0], axis=1, kind="stable")[:, :_COUNTED] + 1
        listed = zip(names[rows], best.tolist(), strict=True)
        return "".join([f"{name} {' '.join(map(str, numbers))}\n" for name, numbers in listed])

    return lines


def _checked_ids(ids: Iterable[str] | None, heads: Mapping[str, Any], *, spaces: bool) -> list[str]:
    """Return the ids, one for each row of every array of scores."""
    if ids is None:
        raise InputError(f"expected the videos' ids, got None: a submission needs them; pass {option('ids')}")
    names = [str(i) for i in ids]
    for scores in heads.values():
        if len(scores.shape) != 2 or scores.shape[0] == 0 or scores.shape[1] < 2:
            raise InputError(
                f"expected log_proba of shape (N videos, K >= 2 classes), got {scores.shape}; reduce views first"
            )
        if len(names) != scores.shape[0]:
            raise AlignmentError(f"expected one id for each of {scores.shape[0]} rows, got {len(names)} ids")
    seen: dict[str, int] = {}
    for row, name in enumerate(names):
        if not name or (not spaces and name.split() != [name]):
            raise InputError(f"expected ids without spaces, got {name!r} at row {row}")
        if name in seen:
            raise InputError(f"expected each id once, got {name!r} at rows {seen[name]} and {row}")
        seen[name] = row
    return names


def _block(scores: Any, rows: Any, names: Sequence[str]) -> NDArray[np.float64]:
    """Return the scores of some rows, which must be numbers."""
    block = _as_array(scores[rows])
    bad = np.flatnonzero(np.isnan(block).any(axis=1))
    if len(bad):
        row = int(np.arange(len(names))[rows][bad[0]])
        raise InputError(f"expected numbers, got NaN in {len(bad)} rows; first: video {names[row]!r}, row {row}")
    return block


def _csv(
    n_classes: int, ids: list[str], sample: Any, classes: Sequence[str] | None
) -> tuple[NDArray[np.int64], str, Lines]:
    """Return the videos' order, the head, and how rows are written: in the columns and rows of a sample."""
    names = check_classes(classes, n_classes)
    header, asked = ["id", "label"], [[name] for name in ids]
    if sample is not None:
        header, asked = _read_sample(Path(sample))
    order = np.arange(len(ids)) if sample is None else np.array(_rows_of(asked, ids, Path(sample)))
    firsts = csv_texts([line[0] for line in asked])
    by_class = len(header) == 2
    words = csv_texts(_class_words(asked, names, n_classes)) if by_class else []
    columns = [] if by_class else _columns(header[1:], names, n_classes, sample)

    def lines(rows: slice, arrays: tuple[NDArray[Any], ...]) -> str:
        if by_class:
            cells = [words[k] for k in arrays[0].argmax(axis=1).tolist()]
        else:
            cells = [",".join(map(repr, p)) for p in np.exp(log_softmax(arrays[0]))[:, columns].tolist()]
        return "".join([f"{first},{cell}\n" for first, cell in zip(firsts[rows], cells, strict=True)])

    return order, f"{csv_cells(header)}\n", lines


def _read_sample(path: Path) -> tuple[list[str], list[list[str]]]:
    lines = [line for line in csv.reader(read_text(path).splitlines()) if line]
    if len(lines) < 2 or len(lines[0]) < 2 or any(len(line) != len(lines[0]) for line in lines):
        raise InputError(
            f"{path}: expected a sample submission: a header such as id,label or id,p0,p1 and a row for each video, "
            "all with as many fields"
        )
    return lines[0], lines[1:]


def _rows_of(asked: list[list[str]], ids: list[str], path: Path) -> list[int]:
    """Return the row of each video that the sample asks for, by its id as it stands or as a path's id."""
    row_of = {name: row for row, name in enumerate(ids)}
    wanted = [line[0] for line in asked]
    if not set(wanted) & set(ids):
        wanted = path_ids(wanted)
    absent = [name for name in wanted if name not in row_of]
    known = set(wanted)
    spare = [name for name in ids if name not in known]
    if spare and not absent:
        warnings.warn(
            f"{path} does not ask for {len(spare)} of {len(ids)} videos, which are left out: {first_few(spare)}",
            VidfuseWarning,
            stacklevel=4,
        )
    if absent:
        raise AlignmentError(
            f"{path}: it asks for {len(wanted)} videos, and {len(ids)} were predicted; not predicted: "
            f"{first_few(absent) or 'none'}; not asked for: {first_few(spare) or 'none'}"
        )
    return [row_of[name] for name in wanted]


def _class_words(asked: list[list[str]], names: Sequence[str] | None, n_classes: int) -> list[str]:
    """Return each class as the sample writes classes: by name, from 1 on, or from 0 on."""
    shown = {line[1] for line in asked if len(line) > 1}
    if names is not None and (not shown or shown <= set(names)):
        return list(names)
    if shown and not all(text.strip().isdecimal() for text in shown):
        known = "without their names" if names is None else f"called {first_few(names)}"
        raise InputError(
            f"the sample's labels are names such as {first_few(sorted(shown))}, and the classes are {known}; pass the "
            f"sample's names in the classes' order with {option('classes')}"
        )
    numbers = {int(text) for text in shown}
    one_based = n_classes in numbers and 0 not in numbers
    return [str(k + one_based) for k in range(n_classes)]


def _columns(header: Sequence[str], names: Sequence[str] | None, n_classes: int, sample: Any) -> list[int]:
    """Return which class each column of the sample is."""
    if len(header) != n_classes:
        raise InputError(f"{sample}: expected {n_classes} columns of classes, got {len(header)}: {first_few(header)}")
    if names is not None and set(header) == set(names):
        return [list(names).index(name) for name in header]
    digits = [re.search(r"(\d+)$", name) for name in header]
    numbers = [int(found[1]) for found in digits if found]
    first = min(numbers, default=0)
    if sorted(numbers) == list(range(first, first + n_classes)) and first in (0, 1):
        return [number - first for number in numbers]
    raise InputError(
        f"{sample}: expected columns that are numbered or called as the classes, got {first_few(header)}; pass these "
        f"names in the scores' order with {option('classes')}"
    )


def _epic(
    verbs: NDArray[np.float64], nouns: NDArray[np.float64], ids: list[str], supervision: Sequence[int] | None
) -> bytes:
    """Return the zip of a `test.json`: a score for each verb and noun, and for the 100 actions that are most likely."""
    if supervision is None or len(supervision) != 3:
        raise InputError(
            "the challenge asks for three levels of supervision (pretraining, training labels, training data); pass "
            f"{option('supervision')}, such as 2,3,3"
        )
    log_verb, log_noun = (np.maximum(log_softmax(scores), -1e4) for scores in (verbs, nouns))  # JSON has no infinity
    results = {}
    for row, name in enumerate(ids):
        actions = (log_verb[row][:, None] + log_noun[row]).ravel()
        best = np.argsort(-actions, kind="stable")[:_ACTIONS].tolist()
        results[name] = {
            "verb": {str(k): value for k, value in enumerate(log_verb[row].tolist())},
            "noun": {str(k): value for k, value in enumerate(log_noun[row].tolist())},
            "action": {f"{k // nouns.shape[1]},{k % nouns.shape[1]}": float(actions[k]) for k in best},
        }
    levels = dict(zip(("sls_pt", "sls_tl", "sls_td"), map(int, supervision), strict=True))
    content = {"version": "0.2", "challenge": "action_recognition", **levels, "results": results}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("test.json"), json.dumps(content, allow_nan=False), zipfile.ZIP_DEFLATED)
    return stream.getvalue()


@dataclass(frozen=True)
class Submission:
    """What the challenge reads in a submission.

    Attributes:
        classes: for each id the classes that count, 1-based, best first; 0 stands for a wrong one.
        notes: what was wrong in the file, by line.
    """

    classes: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Submission({len(self.classes)} videos, {len(self.notes)} notes)"


def read_submission(path: str | Path, n_classes: int = 400) -> Submission:
    r"""Read a submission by the challenge's rules.

    The first five classes of a line count; fewer are filled with wrong ones; a line with an id and no class is invalid
    and does not count; of repeated ids the first counts; anything but an integer 1 … K is a wrong class.

    Args:
        path: the `.txt` file.
        n_classes: number of classes, K.

    Returns:
        The classes by id, and notes about every line that broke a rule.

    Raises:
        InputError: no such file, or one that is not in UTF-8.

    Examples:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "sub.txt")
        ...     _ = path.write_text("a 3 1 999\nb\na 2 2 2 2 2\n")
        ...     sub = read_submission(path)
        >>> dict(sub.classes)
        {'a': (3, 1, 0, 0, 0)}
        >>> for note in sub.notes:
        ...     print(note)
        line 1: '999' is no class in 1 … 400: counts as wrong
        line 1: video 'a' has 3 classes, not 5: filled with wrong ones
        line 2: video 'b' has no class: the line does not count
        line 3: video 'a' again (first at line 1): the line does not count
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"expected a submission, found no file at {file}")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: expected a submission in UTF-8, got bytes that are not: {error}") from error
    classes: dict[str, tuple[int, ...]] = {}
    first: dict[str, int] = {}
    notes: list[str] = []
    # A line counts if it has an id that is new and at least one class. Its first five words after the id are read: each
    # is a class, or wrong (0); what is missing of five is filled with wrong ones.
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        name, given = words[0], words[1 : 1 + _COUNTED]
        if not given:
            notes.append(f"line {number}: video {name!r} has no class: the line does not count")
            continue
        if name in classes:
            notes.append(f"line {number}: video {name!r} again (first at line {first[name]}): the line does not count")
            continue
        read = []
        for word in given:
            value = int(word) if word.isascii() and word.isdigit() and len(word) < 10 else 0
            if not 1 <= value <= n_classes:
                notes.append(f"line {number}: {word!r} is no class in 1 … {n_classes}: counts as wrong")
                value = 0
            read.append(value)
        if len(read) < _COUNTED:
            notes.append(
                f"line {number}: video {name!r} has {len(read)} class{'' if len(read) == 1 else 'es'}, "
                f"not {_COUNTED}: filled with wrong ones"
            )
        classes[name] = (*read, *[0] * (_COUNTED - len(read)))
        first[name] = number
    return Submission(classes, tuple(notes))


def check_submission(path: str | Path, ids: Iterable[str], n_classes: int = 400) -> list[str]:
    """List everything that the challenge would hold against a submission; an empty list is a clean one.

    Args:
        path: the `.txt` file.
        ids: the ids of the test split.
        n_classes: number of classes.

    Returns:
        One sentence per problem: broken lines, repeated classes in a line, missing and unknown ids.

    Raises:
        InputError: no such file.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_submission([[0.1, 0.5, 0.2, 0.1, 0.0, 0.1]], ["a"], f"{folder}/sub.txt")
        ...     check_submission(path, ["a", "b"], n_classes=6)
        ["1 test video is missing: ['b']"]
    """
    submission = read_submission(path, n_classes)
    problems = list(submission.notes)
    for name, classes in submission.classes.items():
        valid = [c for c in classes if c]
        if len(set(valid)) < len(valid):
            problems.append(f"video {name!r} names a class twice: {valid}")
    expected = list(ids)
    known = set(expected)
    for problem, names in (
        ("is missing", [i for i in expected if i not in submission.classes]),
        ("is not in the test split", [i for i in submission.classes if i not in known]),
    ):
        if names:
            verb = problem if len(names) == 1 else problem.replace("is", "are", 1)
            problems.append(f"{len(names)} test video{'' if len(names) == 1 else 's'} {verb}: {names[:5]}")
    return problems


@dataclass(frozen=True)
class SubmissionScore:
    """The challenge's metric: mean class accuracy at top-1, top-3 and top-5.

    Attributes:
        top1: share of videos whose first class is right, averaged over the classes.
        top3: the same for the first three.
        top5: the same for the first five.
        n_videos: videos that count.
        n_classes: classes that the mean runs over.
        missing: ids that count as wrong because the submission lacks them.
    """

    top1: float
    top3: float
    top5: float
    n_videos: int
    n_classes: int
    missing: tuple[str, ...] = ()


def score_submission(
    path: str | Path,
    labels: Mapping[str, int],
    *,
    n_classes: int = 400,
    corrupted: Iterable[str] = (),
    official: bool = False,
) -> SubmissionScore:
    """Score a submission as the challenge does: the mean over the classes of each class's accuracy.

    Args:
        path: the `.txt` file.
        labels: the 0-based class of each test video, by id.
        n_classes: number of classes, K.
        corrupted: ids that are left out.
        official: reproduce the published script, which never counts its last class (400): the mean then runs over
            the classes 1 … 399 that occur. By default it runs over all classes that occur.

    Returns:
        A `SubmissionScore`.

    Raises:
        InputError: no such file, no video that counts, or a label out of range.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_submission([[0.6, 0.4], [0.7, 0.3]], ["a", "b"], f"{folder}/sub.txt")
        ...     score = score_submission(path, {"a": 0, "b": 1}, n_classes=2)
        >>> score.top1, score.top3
        (0.5, 1.0)
    """
    submission = read_submission(path, n_classes)
    left_out = set(corrupted)
    last = min(n_classes, _OFFICIAL_CLASSES) if official else n_classes
    hits: dict[int, list[Sequence[bool]]] = {}
    missing = []
    for name, label in labels.items():
        if not 0 <= label < n_classes:
            raise InputError(f"expected labels in [0, {n_classes}), got {label} for video {name!r}")
        if name in left_out or label >= last:
            continue
        given = submission.classes.get(name)
        if given is None:
            missing.append(name)
            given = ()
        hits.setdefault(label, []).append([label + 1 in given[:k] for k in (1, 3, _COUNTED)])
    if not hits:
        raise InputError("expected at least one video that counts, got none; are the labels' ids the test split's?")
    per_class = np.array([np.mean(rows, axis=0) for rows in hits.values()])
    top1, top3, top5 = (float(v) for v in per_class.mean(axis=0))
    return SubmissionScore(top1, top3, top5, sum(map(len, hits.values())), len(hits), tuple(missing))


def _as_array(values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    array = as_array(values, "log_proba")
    if array.dtype.kind not in "fiu":
        raise InputError(f"expected real numbers, got dtype {array.dtype}")
    return array.astype(np.float64)
