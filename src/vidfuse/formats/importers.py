"""Predictions that people already have, as one stack: other tools' dumps, tables and caches, aligned by id."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import (
    Kind,
    as_float_array,
    check_kind,
    check_member_names,
    check_scores,
    first_few,
    per_member,
    place,
)
from vidfuse.cache.meta import META_NAME
from vidfuse.cache.reader import open_cache
from vidfuse.errors import AlignmentError, InputError, option
from vidfuse.formats.annotations import Annotations, read_annotations
from vidfuse.formats.dump import read_dump
from vidfuse.formats.parts import find_files, in_class_order, join_dumps
from vidfuse.stack.align import Join
from vidfuse.stack.classes import ClassMap
from vidfuse.stack.frames import Dump
from vidfuse.stack.inputs import Blanks
from vidfuse.stack.join import average_repeats, repeated_rows
from vidfuse.stack.reduce import reduce_array
from vidfuse.stack.stack import LogitStack

__all__ = ["read_predictions"]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class _MemberInput:
    """One member, ready for `LogitStack.from_arrays`."""

    scores: NDArray[Any]
    kind: Kind
    ids: NDArray[np.str_] | None
    labels: NDArray[Any] | None
    classes: tuple[str, ...] | None


def read_predictions(
    files: Mapping[str, PathLike | Sequence[PathLike]],
    *,
    kind: Kind | Mapping[str, Kind],
    annotations: PathLike | Sequence[Any] | Mapping[str, PathLike | Sequence[Any]] | None = None,
    views: str | Mapping[str, str] | None = None,
    labels: Any = "dump",
    classes: Sequence[str] | None = None,
    head: str | Mapping[str, str] | None = None,
    join: Join = "exact",
    missing: Blanks = "error",
    class_map: Mapping[str, ClassMap] | None = None,
    repeats: str | None = None,
) -> LogitStack:
    r"""Read other tools' dumps as one stack, aligned by id.

    Understood are MMAction2's ``--dump`` pickles, PySlowFast's ``[preds, labels]``, TSN's .npz, pyskl's lists, .npy,
    .npz, csv (wide ``id,p0,…`` and long ``id,class,score``), parquet, and folders of logit caches. Pickles are
    interpreted by code that can rebuild arrays and nothing else.

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
        classes: The classes' names.
        head: Which scores to take where videos have several, by name, or {member: name}.
        join: "exact" demands the same videos of all members, "inner" keeps the common ones, "outer" keeps every
            video of any member.
        missing: What becomes of videos for which a member has no prediction; see `LogitStack.from_arrays`.
        class_map: {member: {its class: class, or several}} for members of fewer, coarser or finer classes.
        repeats: How an id that stands in several of a member's files becomes one prediction, as of fold models on the
            same test videos: "mean-probability", "mean-log", "vote" or "max". By default it is refused. Files without
            ids then each follow the whole list of videos.

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
    mapped = per_member(class_map, names, "class_map", needed=())
    kinds, lists = per_member(kind, names, "kind", needed=()), per_member(annotations, names, "annotations", needed=())
    heads, rules = per_member(head, names, "head", needed=()), per_member(views, names, "views")
    members = {}
    for name in names:
        given = kinds[name], lists[name], heads[name], rules[name]
        try:
            members[name] = _read_member(name, find_files(files[name]), *given, classes, labels, repeats, mapped[name])
        except AlignmentError as error:
            raise AlignmentError(f"member {name!r}: {error}") from error
        except InputError as error:
            raise InputError(f"member {name!r}: {error}") from error
    # Rows are matched by id where all members have ids, by position where none has; some with and some without cannot
    # be matched.
    without = [name for name, member in members.items() if member.ids is None]
    if without and len(without) < len(members):
        raise AlignmentError(
            f"members {first_few(without)} have no ids, others do; pass {option('annotations')}, the list of videos in "
            "the rows' order"
        )
    if isinstance(labels, str) and labels == "dump":
        labels = {name: member.labels for name, member in members.items() if member.labels is not None} or None
    own_classes = {name: member.classes for name, member in members.items()}
    if classes is not None:
        own_classes |= {name: tuple(classes) for name in names if not mapped[name]}
    return LogitStack.from_arrays(
        {name: member.scores for name, member in members.items()},
        labels=labels,
        ids=None if without else {name: member.ids for name, member in members.items()},
        classes=own_classes,
        kind={name: member.kind for name, member in members.items()},
        join=join,
        missing=missing,
        class_map=class_map,
    )


def _read_member(
    name: str,
    paths: Sequence[Path],
    kind: Any,
    annotations: Any,
    head: str | None,
    rule: str | None,
    classes: Sequence[str] | None,
    labels: Any,
    repeats: str | None,
    mapped: ClassMap | None,
) -> _MemberInput:
    """Read a member's files, bring their classes into the given order, and find its rows' ids and labels.

    A member whose classes are mapped keeps its own; its own labels are of those, and are left out.
    """
    listed = None if annotations is None else read_annotations(annotations, classes)
    dumps, kinds = {}, set()
    for path in paths:
        dump, own_kind = _read_file(path, kind, head, None if mapped else classes)
        scores, own_kind = _reduced(dump.scores, own_kind, rule, dump.ids, name, path)
        dump = Dump(scores, dump.labels, dump.ids, dump.classes)
        if mapped:
            dump = Dump(scores, None, dump.ids, dump.classes)
        dumps[str(path)] = in_class_order(dump, None if mapped else classes, str(path))
        kinds.add(own_kind)
    if len(kinds) > 1:
        raise InputError(f"expected files of one kind of numbers, got {first_few(sorted(kinds))}")
    kind = kinds.pop()
    dump, where = dumps[str(paths[0])], paths[0]
    if len(paths) > 1:
        dump = join_dumps(dumps, None if listed is None else listed.ids, repeats)
        where = Path(f"{paths[0]} and {len(paths) - 1} more")
    if repeats is not None and dump.ids is not None:
        rows = repeated_rows(dump.ids, [len(part.scores) for part in dumps.values()])
        scores = average_repeats(np.asarray(dump.scores), kind, rows, repeats)
        own = None if dump.labels is None else np.asarray(dump.labels)[rows[:, 0]]
        dump, kind = Dump(scores, own, dump.ids[rows[:, 0]], dump.classes), "log-likelihoods"
    ids, own_labels = _with_annotations(dump, listed, where)
    if isinstance(labels, str) and labels == "dump":
        _check_not_placeholders(own_labels, where)
    else:
        own_labels = None
    return _MemberInput(np.asarray(dump.scores), kind, ids, own_labels, dump.classes)


def _read_file(path: Path, kind: Any, head: str | None, classes: Sequence[str] | None) -> tuple[Dump, Kind]:
    """Read one file or cache, and what its numbers are."""
    if (path / META_NAME).exists():
        cache = open_cache(path)
        return Dump(cache.scores, cache.labels, cache.ids, cache.classes), cache.kind
    if kind is None:
        raise InputError(f"kind: expected one for every member; say {option('kind', 'logits')}, it is never guessed")
    return read_dump(path, head=head, classes=classes), check_kind(kind)


def _with_annotations(
    dump: Dump, listed: Annotations | None, path: Path
) -> tuple[NDArray[np.str_] | None, NDArray[Any] | None]:
    """Return ids and labels of a dump's rows.

    ==============  ==================================================  ==================================
    annotations     the dump has ids                                    it has none
    ==============  ==================================================  ==================================
    none            its ids and labels                                  its labels, no ids
    ids             its ids and labels                                  the list's ids, its labels
    ids and labels  its ids and labels, or the list's labels by id      the list's ids and labels, checked
                                                                        against its own, row by row
    ==============  ==================================================  ==================================
    """
    if listed is None:
        return dump.ids, dump.labels
    if dump.ids is not None:
        if listed.labels is None or dump.labels is not None:
            return dump.ids, dump.labels
        by_id = dict(zip(listed.ids.tolist(), listed.labels.tolist(), strict=True))
        absent = [name for name in dump.ids.tolist() if name not in by_id]
        if absent:
            raise AlignmentError(f"{path}: {len(absent)} videos are not in the annotations: {first_few(absent)}")
        return dump.ids, np.array([by_id[name] for name in dump.ids.tolist()], dtype=np.int64)
    if len(listed.ids) != len(dump.scores):
        raise AlignmentError(
            f"{path}: {len(dump.scores)} rows, but the annotations list {len(listed.ids)} videos; pass the list "
            "that the dump was made with"
        )
    if dump.labels is not None and listed.labels is not None and len(dump.labels) == len(listed.labels):
        rows = np.flatnonzero(np.asarray(dump.labels) != listed.labels)
        if rows.size and len(set(np.asarray(dump.labels).tolist())) > 1:
            shown = "; ".join(
                f"{place(int(r), listed.ids)}: dump {int(dump.labels[r])}, annotations {int(listed.labels[r])}"
                for r in rows[:5]
            )
            raise AlignmentError(
                f"{path}: its own labels differ from the annotations' for {rows.size} of "
                f"{len(listed.ids)} videos ({shown}); was the dump made with another list?"
            )
    return listed.ids, dump.labels if listed.labels is None else listed.labels


def _check_not_placeholders(labels: NDArray[Any] | None, path: Path) -> None:
    if (
        labels is not None
        and len(labels) > 1
        and len(set(np.asarray(labels).reshape(len(labels), -1)[:, 0].tolist())) == 1
    ):
        raise InputError(
            f"{path}: all {len(labels)} labels are {np.asarray(labels).reshape(-1)[0]}: placeholder labels? "
            f"pass {option('labels', None)}"
        )


def _reduced(
    scores: NDArray[Any] | list[NDArray[Any]],
    kind: Kind,
    rule: str | None,
    ids: NDArray[np.str_] | None,
    name: str,
    path: Path,
) -> tuple[NDArray[Any], Kind]:
    """Scores as one array, views reduced where that was asked for."""
    if isinstance(scores, list):
        if rule is None:
            counts = sorted({len(video) for video in scores})
            raise InputError(
                f"{path}: videos have different numbers of views ({first_few(counts)}); "
                f"reduce them with {option('views', 'mean-log')}"
            )
        for row, video in enumerate(scores):
            check_scores(video, kind, member=name, ids=None if ids is None else ids[[row] * len(video)])
        return np.concatenate([reduce_array(as_float_array(v)[None], kind, rule) for v in scores]), "log-likelihoods"
    array = as_float_array(scores, str(path))
    if rule is None or array.ndim != 3:
        return array, kind
    check_scores(array, kind, member=name, ids=ids)
    return reduce_array(array, kind, rule), "log-likelihoods"
