"""Predictions that people already have, as one stack: other tools' dumps, tables and caches, aligned by id."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import (
    KINDS,
    Kind,
    as_float_array,
    check_choice,
    check_kind,
    check_member_names,
    check_scores,
    first_few,
    naming,
    per_member,
    place,
)
from vidfuse._paths import IdRule
from vidfuse.cache.meta import META_NAME
from vidfuse.cache.reader import open_cache
from vidfuse.cache.shards import find_files
from vidfuse.errors import AlignmentError, InputError, VidfuseWarning, option
from vidfuse.formats.annotations import Annotations, read_annotations
from vidfuse.formats.dump import cut_padding, join_dumps, read_dump
from vidfuse.likelihood import VIEW_RULES
from vidfuse.stack.align import Join
from vidfuse.stack.classes import ClassMap
from vidfuse.stack.frames import Dump, reordered
from vidfuse.stack.inputs import Blanks, blank_rows
from vidfuse.stack.join import average_repeats, check_alike, repeated_rows
from vidfuse.stack.source import reduce_array
from vidfuse.stack.stack import LogitStack

__all__ = ["read_predictions"]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class _Read:
    """How one member's file is read: the options of `read_predictions` for it."""

    kind: Kind | None
    annotations: Any
    views: str | None
    head: str | None
    columns: Any
    id_column: str | None
    mapped: bool


def read_predictions(
    files: Mapping[str, PathLike | Sequence[PathLike]],
    *,
    kind: Kind | Mapping[str, Kind],
    annotations: PathLike | Sequence[Any] | Mapping[str, PathLike | Sequence[Any]] | None = None,
    views: str | Mapping[str, str] | None = None,
    labels: Any = "dump",
    classes: Sequence[str] | Literal["sorted"] | None = None,
    head: str | Mapping[str, str] | None = None,
    columns: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    id_column: str | Mapping[str, str] | None = None,
    ids: IdRule = "path",
    join: Join = "exact",
    missing: Blanks = "error",
    class_map: Mapping[str, ClassMap] | None = None,
    repeats: str | None = None,
) -> LogitStack:
    r"""Read other tools' dumps as one stack, aligned by id.

    Understood are what MMAction2, PySlowFast, pyskl, TSN, VideoMAE and skeleton models dump, ``{id: scores}`` above
    all; .npy, .npz, .pt, .safetensors, .json, csv (wide ``id,p0,…``, long ``id,class,score``, and predicted classes
    ``id,label``), parquet, and folders of logit caches. ``docs/files.md`` lists every layout. Pickles are interpreted
    by code that can rebuild arrays and nothing else.

    Args:
        files: {member: file}. A member may have several files, as a list or a pattern ("oof_*.npy"): the folds of a
            cross-validation, or shards. Their rows stand one after another.
        kind: What the numbers are: "logits", "log-likelihoods", "probabilities", or "sum" (PySlowFast's sums of
            probabilities over views); one for all or {member: kind}. It is never guessed. Caches know theirs.
        annotations: The list of videos in the rows' order of the dumps, which gives ids (and labels) to dumps that
            have none of their own: a file (see `vidfuse.formats.annotations.read_annotations`), the ids themselves, or
            {member: list} where dumps stand in different orders.
        views: Reduce views while reading: "mean-log", "mean-probability", "vote", "max", or {member: rule}.
        labels: "dump" takes the labels that dumps and annotations carry, and holds them against each other; None takes
            none; anything else as in `LogitStack.from_arrays`.
        classes: The classes' names, in order. Files whose columns or labels are names are read by them, whatever order
            they stand in; "sorted" sorts the names that are found.
        head: Which scores to take where videos have several, by name, or {member: name}; "verb" finds verb_output.
        columns: Which columns of a table are scores: their names in class order, or a pattern such as ``"p*"``; one for
            all or {member: …}.
        id_column: The column, or array, of the ids by name, or {member: name}; "none" where there is none.
        ids: How names become ids, in files and annotations alike: "path" (the path without a video's suffix), "stem"
            (the file's name alone) or "exact".
        join: "exact" demands the same videos of all members, "inner" keeps the common ones, "outer" keeps every
            video of any member.
        missing: What becomes of videos for which a member has no prediction; see `LogitStack.from_arrays`.
        class_map: {member: {its class: class, or several}} for members of fewer, coarser or finer classes. Their own
            labels, which are of those, are not used.
        repeats: How an id that stands in several of a member's files or rows becomes one prediction, as of fold models
            on the same test videos, or of views: "mean-probability", "mean-log", "vote" or "max". By default it is
            refused. Files without ids then each follow the whole list of videos.

    Raises:
        InputError: A file is damaged, is not understood, or needs more than arrays; or its numbers are not of `kind`.
        AlignmentError: Dumps differ in videos, in labels, or in length from their annotations.

    Example:
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp(), "swin.csv")
        >>> _ = file.write_text("id,p0,p1\na,0.9,0.1\nb,0.2,0.8\n")
        >>> read_predictions({"swin": file}, kind="probabilities")
        LogitStack(2 videos x 1 members x 2 classes, no labels, members: swin)
    """
    if not isinstance(files, Mapping) or not files:
        raise InputError("files: expected {member: file} with at least one member")
    names = check_member_names(files)
    listed: dict[str, list[Any]] = {}
    for name, given in zip(names, files.values(), strict=True):
        several = not isinstance(given, str | os.PathLike | Mapping) and isinstance(given, Iterable)
        listed[name] = [*cast("Iterable[Any]", given)] if several else [given]
        if not all(isinstance(one, str | os.PathLike) for one in listed[name]):
            raise InputError(
                f"member {name!r}: expected a file or a list of files, got {type(given).__name__}; "
                "LogitStack.from_arrays takes arrays"
            )
    options = {
        what: per_member(value, names, what, needed=names if what == "views" and isinstance(value, Mapping) else ())
        for what, value in {
            "kind": kind, "annotations": annotations, "views": views, "head": head, "columns": columns,
            "id_column": id_column,
        }.items()
    }  # fmt: skip
    for what, rules in {"views": options["views"].values(), "repeats": [repeats]}.items():
        for rule in filter(None, rules):
            check_choice(what, rule, VIEW_RULES)
    members: dict[str, _Member] = {}
    mapped = [name for name, mapping in per_member(class_map, names, "class_map", needed=()).items() if mapping]
    for name in names:
        asked = _Read(**{what: values[name] for what, values in options.items()}, mapped=name in mapped)
        with naming(f"member {name!r}"):
            members[name] = _read_member(name, find_files(listed[name]), asked, classes, labels, ids, repeats)
    _fill_votes(members, classes)
    # Rows are matched by id where all members have ids, by position where none has; some with and some without cannot
    # be matched.
    without = [name for name, member in members.items() if member.dump.ids is None]
    if without and len(without) < len(members):
        raise AlignmentError(
            f"members {first_few(without)} have no ids, others do; pass {option('annotations')}, the list of videos in "
            "the rows' order"
        )
    if isinstance(labels, str) and labels == "dump":
        labels = {n: member.dump.labels for n, member in members.items() if member.dump.labels is not None} or None
    own_classes = {name: member.dump.classes for name, member in members.items()}
    if classes is not None and not isinstance(classes, str):
        own_classes |= {name: tuple(classes) for name in names if name not in mapped}
    return LogitStack.from_arrays(
        {name: member.dump.scores for name, member in members.items()},
        labels=labels,
        ids=None if without else {name: member.dump.ids for name, member in members.items()},
        classes=own_classes,
        kind={name: member.kind for name, member in members.items()},
        join=join,
        missing=missing,
        class_map=class_map,
    )


@dataclass(frozen=True)
class _Member:
    """One member, ready for `LogitStack.from_arrays`."""

    dump: Dump
    kind: Kind


def _read_member(
    name: str,
    paths: Sequence[Path],
    asked: _Read,
    classes: Sequence[str] | str | None,
    labels: Any,
    ids: IdRule,
    repeats: str | None,
) -> _Member:
    """Read a member's files or folders, give its rows ids and labels, and reduce its views."""
    wanted = None if asked.mapped else classes
    parts = {str(path): _read_file(path, asked, wanted, ids, repeats is not None) for path in paths}
    path, member = paths[0], parts[str(paths[0])]
    listed = None
    if asked.annotations is not None:
        own = None if asked.mapped else member.dump.classes
        listed = read_annotations(asked.annotations, own or classes, ids=ids, head=asked.head)
        listed = replace(listed, classes=None) if asked.mapped else listed
    if len(parts) > 1 or repeats is not None:
        reduced = {where: _reduced(p.dump, p.kind, asked.views, name, Path(where)) for where, p in parts.items()}
        member = _joined(reduced, listed, repeats)
        path = path if len(paths) == 1 else Path(f"{path} and {len(paths) - 1} more")
    dump = member.dump if listed is None else _with_annotations(member.dump, listed, path)
    if not (isinstance(labels, str) and labels == "dump"):
        dump = replace(dump, labels=None)
    _check_not_placeholders(dump.labels, path)
    if not asked.mapped:
        _check_not_one_based(dump, path)
    return _reduced(dump, member.kind, asked.views, name, path)


def _read_file(path: Path, asked: _Read, classes: Sequence[str] | str | None, ids: IdRule, repeated: bool) -> _Member:
    """Read one file or folder, its classes in the given order, and what its numbers are."""
    if (path / META_NAME).exists():
        cache = open_cache(path)
        dump = Dump(cache.scores, cache.labels, cache.ids, cache.classes, cache.kind)
        asked = replace(asked, kind=cache.kind)
        if classes is not None and not isinstance(classes, str):
            dump = reordered(dump, classes)
    else:
        how = {"head": asked.head, "columns": asked.columns, "id_column": asked.id_column}
        dump = read_dump(path, classes=classes, ids=ids, repeated=repeated, **how)
    if asked.mapped:
        dump = replace(dump, labels=None)
    return _Member(dump, _kind(asked.kind, dump.kind, path))


def _joined(parts: Mapping[str, _Member], listed: Annotations | None, repeats: str | None) -> _Member:
    """Put the files of one member together, and make repeated predictions of a video one."""
    kinds = sorted({part.kind for part in parts.values()})
    if len(kinds) > 1:
        raise InputError(f"expected files of one kind of numbers, got {first_few(kinds)}")
    dump = join_dumps(
        {where: part.dump for where, part in parts.items()}, None if listed is None else listed.ids, repeats
    )
    kind: Kind = next(iter(parts.values())).kind
    if repeats is None or dump.ids is None:
        return _Member(dump, kind)
    rows = repeated_rows(dump.ids, [len(part.dump.scores) for part in parts.values()])
    scores = average_repeats(as_float_array(dump.scores), kind, rows, repeats)
    first, labels = rows[:, 0], None if dump.labels is None else np.asarray(dump.labels)
    if labels is not None:
        check_alike(labels[rows], dump.ids[first], "labels")
        labels = labels[first]
    return _Member(replace(dump, scores=scores, labels=labels, ids=dump.ids[first]), "log-likelihoods")


def _kind(given: Any, own: str | None, path: Path) -> Kind:
    if given is None and own is None:
        raise InputError(
            f"kind: expected one for every member; say {option('kind', 'logits')}, for one member or all: it is never "
            "guessed"
        )
    kind = check_kind(own if given is None else given)
    if own in KINDS and own != kind:
        raise InputError(f"{path}: it says itself that its numbers are {own!r}, not {kind!r}")
    return kind


def _with_annotations(dump: Dump, listed: Annotations, path: Path) -> Dump:
    """Give a dump's rows the ids and labels of a list.

    ==============  ==================================================  ==================================
    annotations     the dump has ids                                    it has none
    ==============  ==================================================  ==================================
    ids             its ids and labels                                  the list's ids, its labels
    labels          by position, checked against its own                by position, checked against its own
    ids and labels  the list's labels by id, checked against its own    the list's ids and labels, checked
                                                                        against its own, row by row
    ==============  ==================================================  ==================================
    """
    if dump.ids is None or listed.ids is None:
        dump = cut_padding(dump, len(listed)) if dump.ids is None else dump
        if len(listed) != len(dump.scores):
            raise AlignmentError(
                f"{path}: {len(dump.scores)} rows, but the annotations list {len(listed)} videos; pass the list "
                "that the dump was made with"
            )
        labels = listed.labels
        dump = replace(dump, ids=listed.ids if dump.ids is None else dump.ids)
    else:
        row = {name: number for number, name in enumerate(listed.ids.tolist())}
        absent = [name for name in dump.ids.tolist() if name not in row]
        if absent:
            raise AlignmentError(
                f"{path}: {len(absent)} of {len(dump.ids)} videos are not in the annotations: {first_few(absent)}; "
                f"these list {first_few(row, 3)}{_other_rule(absent, row)}"
            )
        labels = None if listed.labels is None else listed.labels[[row[name] for name in dump.ids.tolist()]]
    classes = dump.classes
    if listed.classes is not None:
        k = _n_classes(dump)
        if k is not None and k != len(listed.classes):
            raise InputError(
                f"classes: the annotations name {len(listed.classes)} classes, {path} has {k}; name all of them with "
                f"{option('classes')}"
            )
        classes = listed.classes if classes is None else classes
    if labels is not None:
        _check_same(dump, labels, path)
    return replace(dump, labels=dump.labels if labels is None else labels, classes=classes)


def _other_rule(absent: Sequence[str], known: Mapping[str, int]) -> str:
    """Say which other rule for ids would find them, if one does."""
    stems = {name.rpartition("/")[2] for name in known}
    if all(name.rpartition("/")[2] in stems for name in absent):
        return f"; the files' names are the same, so {option('ids', 'stem')} matches them"
    bare = {name.lstrip("0") for name in known}
    if all(name.lstrip("0") in bare for name in absent):
        return "; they differ in leading zeros only, which one file lost: write them alike"
    return ""


def _check_same(dump: Dump, labels: NDArray[np.int64], path: Path) -> None:
    """Hold a dump's own labels against the annotations'; a constant is a placeholder, and says nothing."""
    if dump.labels is None or len(dump.labels) != len(labels):
        return
    own = np.asarray(dump.labels)
    rows = np.flatnonzero(own != labels)
    if not rows.size or len(np.unique(own)) == 1:
        return
    shifts = np.unique(own - labels)
    if len(shifts) == 1:
        raise AlignmentError(
            f"{path}: its own labels are the annotations' {int(shifts[0]):+d} for every video: one of them counts "
            f"classes from 1; write the list with labels from 0, or as names with {option('classes')}"
        )
    shown = "; ".join(f"{place(int(r), dump.ids)}: dump {int(own[r])}, annotations {int(labels[r])}" for r in rows[:5])
    raise AlignmentError(
        f"{path}: its own labels differ from the annotations' for {rows.size} of {len(labels)} videos ({shown}); "
        "was the dump made with another list?"
    )


def _check_not_placeholders(labels: NDArray[Any] | None, path: Path) -> None:
    if labels is not None and len(labels) > 1 and len(np.unique(labels)) == 1:
        raise InputError(
            f"{path}: all {len(labels)} labels are {np.asarray(labels).reshape(-1)[0]}: placeholder labels? "
            f"pass {option('labels', None)}"
        )


def _check_not_one_based(dump: Dump, path: Path) -> None:
    """Notice labels 1 … K: one is K, or the predictions are right about the class before the label's.

    Labels that are right as they stand for more videos than one lower are taken as they stand.
    """
    k, labels = _n_classes(dump), dump.labels
    if labels is None or k is None or isinstance(dump.scores, list) or labels.min(initial=0) < 0 or not len(labels):
        return
    if labels.min() != 1 and labels.max() != k:
        return
    scores = np.asarray(dump.scores)
    if scores.ndim == 1:
        predicted = scores
    else:
        with np.errstate(invalid="ignore"):
            predicted = (scores if scores.ndim == 2 else scores.mean(axis=1)).argmax(axis=-1)
    right, lower = int((predicted == labels).sum()), int((predicted == labels - 1).sum())
    if labels.min() >= 1 and (labels.max() == k or lower > right + 3 * np.sqrt(right + lower + 1)):
        raise InputError(
            f"{path}: its labels run from {labels.min()} to {labels.max()} for {k} classes, and predictions are right "
            f"for {lower} of {len(labels)} videos if they count from 1, for {right} as they stand: write labels from "
            f'0, or name the classes "1" … "{k}" with {option("classes")}'
        )


def _n_classes(dump: Dump) -> int | None:
    """K, or None where a dump holds predicted classes alone."""
    if isinstance(dump.scores, list):
        return int(dump.scores[0].shape[-1])
    return int(dump.scores.shape[-1]) if dump.scores.ndim > 1 else None


def _fill_votes(members: dict[str, _Member], classes: Sequence[str] | str | None) -> None:
    """Turn predicted classes into probabilities of 1 and 0, for as many classes as the other members have."""
    votes = {name: member for name, member in members.items() if _n_classes(member.dump) is None}
    known = [_n_classes(member.dump) for name, member in members.items() if name not in votes]
    for name, member in votes.items():
        own = member.dump.classes or (None if isinstance(classes, str) else classes)
        k = len(own) if own is not None else max((n for n in known if n is not None), default=None)
        predicted = np.asarray(member.dump.scores)
        if k is None:
            raise InputError(
                f"member {name!r}: it holds predicted classes and no scores; how many classes there are is not known: "
                f"name them with {option('classes')}"
            )
        bad = np.flatnonzero((predicted < 0) | (predicted >= k))
        if bad.size:
            raise InputError(
                f"member {name!r}: expected predicted classes in 0 … {k - 1}, got {predicted[bad[0]]} at "
                f"{place(int(bad[0]), member.dump.ids)}; class indices start at 0"
            )
        members[name] = replace(member, dump=replace(member.dump, scores=np.eye(k, dtype=np.float32)[predicted]))


def _reduced(dump: Dump, kind: Kind, rule: str | None, name: str, path: Path) -> _Member:
    """Scores as one array, views reduced where that was asked for."""
    scores, ids = dump.scores, dump.ids
    if dump.chunks and rule is None:
        rule = "mean-probability" if kind in ("probabilities", "sum") else "mean-log"
        warnings.warn(
            f"{path}: the chunks of each video are averaged by {rule}, as nothing else was said with {option('views')}",
            VidfuseWarning,
            stacklevel=2,
        )
    if isinstance(scores, list):
        if rule is None:
            counts = sorted({len(video) for video in scores})
            raise InputError(
                f"{path}: videos have different numbers of views ({first_few(counts)}); "
                f"reduce them with {option('views', 'mean-log')}"
            )
        videos = [as_float_array(video)[None] for video in scores]
        own = [None if ids is None else ids[[row]] for row in range(len(videos))]
        reduced = [_without_views(video, kind, rule, name, id) for video, id in zip(videos, own, strict=True)]
        return _Member(replace(dump, scores=np.concatenate(reduced)), "log-likelihoods")
    if scores.ndim == 1 and scores.dtype.kind in "iu":
        if kind != "probabilities":
            raise InputError(
                f"{path}: it holds predicted classes and no scores; each becomes probability 1 if you say "
                f"{option('kind', 'probabilities')}"
            )
        return _Member(dump, kind)
    array = as_float_array(scores, str(path))
    if rule is None or array.ndim != 3:
        return _Member(replace(dump, scores=array), kind)
    return _Member(replace(dump, scores=_without_views(array, kind, rule, name, ids)), "log-likelihoods")


def _without_views(
    array: NDArray[np.floating[Any]], kind: Kind, rule: str, name: str, ids: NDArray[np.str_] | None
) -> NDArray[np.float32]:
    """Reduce scores (N, V, K) to (N, K): NaN for videos without a prediction, of which `missing` says what becomes."""
    blank = blank_rows(array, kind) & (np.isnan(array[:, 0, 0]) | (kind != "logits"))
    out = np.full((len(array), array.shape[-1]), np.nan, dtype=np.float32)
    if not blank.all():
        kept = array[~blank] if blank.any() else array
        check_scores(kept, kind, member=name, ids=None if ids is None else ids[~blank])
        out[~blank] = reduce_array(kept, kind, rule)
    return out
