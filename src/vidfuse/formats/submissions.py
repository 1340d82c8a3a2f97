"""Submissions to the VIPriors Action Recognition Challenge: written, read, checked and scored by its rules.

A submission is a text file with one line per video: `videoid cls1 cls2 cls3 cls4 cls5`, class indices 1-based, best
first. The rules are those of the challenge's published toolkit. This module needs the base install only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from vidfuse._files import replace
from vidfuse.errors import AlignmentError, InputError

__all__ = [
    "Submission",
    "SubmissionScore",
    "check_submission",
    "read_submission",
    "score_submission",
    "write_submission",
]

_COUNTED = 5  # classes of a line that are read
_OFFICIAL_CLASSES = 399  # the published script builds its list of classes as 1 … 399


def write_submission(
    log_proba: ArrayLike, ids: Iterable[str] | None, path: str | Path, format: Literal["vipriors"] = "vipriors"
) -> Path:
    r"""Write a submission: for each video the five most likely classes, 1-based, best first.

    Ties go to the lower class index. The file appears complete or not at all.

    Args:
        log_proba: log-likelihoods (or anything that ranks the classes) of shape (N, K), an array or a tensor.
        ids: the videos' ids, in the rows' order.
        path: the `.txt` file to write.
        format: "vipriors": `videoid cls1 cls2 cls3 cls4 cls5`; with fewer than five classes, all of them.

    Returns:
        The path.

    Raises:
        InputError: another shape, NaN, no ids, an id twice or with a space, or an unknown format.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_submission([[0.1, 0.5, 0.2, 0.1, 0.0, 0.1]], ["video_1"], f"{folder}/sub.txt")
        ...     path.read_text()
        'video_1 2 3 1 4 6\n'
    """
    if format != "vipriors":
        raise InputError(f"expected format 'vipriors', got {format!r}")
    scores = _as_array(log_proba)
    if scores.ndim != 2 or scores.shape[0] == 0 or scores.shape[1] < 2:
        raise InputError(
            f"expected log_proba of shape (N videos, K >= 2 classes), got {scores.shape}; reduce views first"
        )
    if ids is None:
        raise InputError("expected the videos' ids, got None: a submission needs them; pass ids=[...]")
    names = [str(i) for i in ids]
    if len(names) != len(scores):
        raise AlignmentError(f"expected one id for each of {len(scores)} rows, got {len(names)} ids")
    seen: dict[str, int] = {}
    for row, name in enumerate(names):
        if not name or name.split() != [name]:
            raise InputError(f"expected ids without spaces, got {name!r} at row {row}")
        if name in seen:
            raise InputError(f"expected each id once, got {name!r} at rows {seen[name]} and {row}")
        seen[name] = row
    bad = np.flatnonzero(np.isnan(scores).any(axis=1))
    if len(bad):
        raise InputError(f"expected numbers, got NaN in {len(bad)} rows; first: video {names[bad[0]]!r}, row {bad[0]}")
    best = np.argsort(-scores, axis=1, kind="stable")[:, :_COUNTED] + 1
    lines = [f"{name} {' '.join(map(str, classes))}\n" for name, classes in zip(names, best.tolist(), strict=True)]
    return replace(path, "".join(lines))


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
        InputError: no such file.

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
    classes: dict[str, tuple[int, ...]] = {}
    first: dict[str, int] = {}
    notes: list[str] = []
    # A line counts if it has an id that is new and at least one class. Its first five words after the id are read: each
    # is a class, or wrong (0); what is missing of five is filled with wrong ones.
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
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
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise InputError(f"expected real numbers, got dtype {array.dtype}")
    return array.astype(np.float64)
