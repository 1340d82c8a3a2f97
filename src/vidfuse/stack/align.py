"""Bring members onto the same videos, classes and labels, or say exactly why that is impossible."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import (
    UNORDERED,
    Rows,
    as_array,
    check_choice,
    check_ids,
    check_labels,
    check_names,
    first_few,
    place,
)
from vidfuse._paths import VIDEO_SUFFIXES
from vidfuse.errors import AlignmentError, InputError, option

__all__ = [
    "Alignment",
    "Join",
    "align_ids",
    "align_labels",
    "check_index",
    "check_layouts",
    "group_names",
    "member_ids",
    "merged_labels",
    "same_ids",
    "without_rows",
]

Join = Literal["exact", "inner", "outer"]


@dataclass(frozen=True)
class Alignment:
    """The common videos, and where each member has them.

    Attributes:
        n: The number of common videos.
        ids: Their ids, or None where rows are matched by position.
        rows: For each member, its row of each video (-1 where it has none).
        present: Which member has which video (N, M), or None where every member has every video.
    """

    n: int
    ids: NDArray[np.str_] | None
    rows: dict[str, Rows]
    present: NDArray[np.bool_] | None = None


def check_layouts(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int | None]:
    """Return the members' common K and V (None without a view axis), or say who differs.

    Example:
        >>> check_layouts({"swin": (10, 5), "x3d": (10, 5)})
        (5, None)
    """
    for name, shape in shapes.items():
        if len(shape) not in (2, 3):
            binary = " (one binary logit z may be given as [0, z])" if len(shape) == 1 else ""
            raise InputError(f"member {name!r}: expected scores (N, K) or (N, V, K), got shape {shape}{binary}")
        if shape[0] == 0:
            raise InputError(f"member {name!r}: expected at least one video, got shape {shape}")
        if shape[-1] < 2 or 0 in shape:
            raise InputError(
                f"member {name!r}: expected at least 2 classes and one view, got shape {shape}; "
                "one binary logit z may be given as [0, z]"
            )
    counts = {name: shape[-1] for name, shape in shapes.items()}
    if len(set(counts.values())) > 1:
        raise AlignmentError(
            f"members have different numbers of classes: {_listed(counts)}; fuse one label set only, or say what the "
            f"classes of a member are with {option('class_map')}"
        )
    views = {name: shape[1] if len(shape) == 3 else None for name, shape in shapes.items()}
    if len(set(views.values())) > 1:
        raise InputError(
            f"members have different numbers of views: {_listed(views)}; reduce them while loading, with "
            f"{option('views', 'mean-log')} or a reduction for each member"
        )
    return next(iter(counts.values())), next(iter(views.values()))


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {'none' if value is None else value}" for name, value in values.items())


def align_ids(
    ids: Mapping[str, NDArray[np.str_]] | None,
    counts: Mapping[str, int],
    join: Join = "exact",
) -> Alignment:
    """Find the common videos of all members; rows stand in the order of the first member.

    Args:
        ids: For each member, its unique ids; None matches rows by position.
        counts: For each member, its number of rows.
        join: "exact" demands the same ids, "inner" keeps the common videos, "outer" keeps every video of any member and
            notes who has which.

    Raises:
        AlignmentError: The members' ids, or without ids their numbers of rows, differ.
    """
    check_choice("join", join, get_args(Join))
    names = list(counts)
    first = names[0]
    if ids is None:
        if len(set(counts.values())) > 1:
            raise AlignmentError(
                f"members have different numbers of videos: {_listed(counts)}; pass {option('ids')}, so that rows "
                "can be matched"
            )
        n = counts[first]
        return Alignment(n, None, {name: slice(0, n, 1) for name in names})
    base = ids[first]
    if all(same_ids(ids[name], base) for name in names[1:]):
        return Alignment(len(base), base, {name: slice(0, len(base), 1) for name in names})
    found = {name: _positions(ids[name], base) for name in names}
    extra = [ids[name][~np.isin(ids[name], base)] for name in names[1:]]
    if join == "outer":
        base = np.concatenate([base, np.unique(np.concatenate(extra))])
        found = {name: _positions(ids[name], base) for name in names}
    elif join == "inner":
        common = np.all([found[name] >= 0 for name in names], axis=0)
        base, found = base[common], {name: rows[common] for name, rows in found.items()}
        if not len(base):
            raise AlignmentError(
                f"no video is common to all members ({_listed(counts)}); compare how their ids are made"
            )
    present = np.stack([found[name] >= 0 for name in names], axis=1)
    if join == "exact" and not (present.all() and not any(map(len, extra))):
        raise _different_ids(ids, names, counts)
    return Alignment(len(base), base, {name: found[name] for name in names}, None if present.all() else present)


def without_rows(alignment: Alignment, kept: Mapping[str, NDArray[np.int64]], counts: Mapping[str, int]) -> Alignment:
    """Return the alignment of members of which some have lost rows.

    Args:
        alignment: Where each member has each video, among all of its rows.
        kept: For each member that has lost some, the rows that are left.
        counts: For each member, how many rows it had.

    Example:
        >>> before = align_ids(None, {"swin": 3, "x3d": 3})
        >>> after = without_rows(before, {"x3d": np.array([0, 2])}, {"swin": 3, "x3d": 3})
        >>> after.rows["x3d"].tolist(), after.present[:, 1].tolist()
        ([0, -1, 1], [True, False, True])
    """
    if not kept:
        return alignment
    found = dict(alignment.rows)
    for name, rows in kept.items():
        place_of = np.full(counts[name] + 1, -1, dtype=np.int64)  # the last stands for a video that it never had
        place_of[rows] = np.arange(len(rows))
        found[name] = place_of[found[name]]
    had = np.ones((alignment.n, len(found)), bool) if alignment.present is None else alignment.present
    lost = [np.asarray(found[name]) < 0 if name in kept else np.zeros(alignment.n, bool) for name in found]
    return Alignment(alignment.n, alignment.ids, found, had & ~np.stack(lost, axis=1))


def same_ids(left: NDArray[np.str_], right: NDArray[np.str_]) -> bool:
    """Whether two members have the same videos in the same order.

    Example:
        >>> same_ids(np.array(["a", "b"]), np.array(["a", "b"])), same_ids(np.array(["a"]), np.array(["b"]))
        (True, False)
    """
    if left is right:
        return True
    if left.dtype == right.dtype and left.flags.c_contiguous and right.flags.c_contiguous:
        return np.array_equal(left.view(np.uint32), right.view(np.uint32))  # ten times faster than comparing texts
    return np.array_equal(left, right)


def _different_ids(
    ids: Mapping[str, NDArray[np.str_]], names: Sequence[str], counts: Mapping[str, int]
) -> AlignmentError:
    alike = _alike(ids, names)
    if alike is not None:
        return AlignmentError(
            f"members have the same videos under different ids ({_listed(counts)}): {alike}; make the ids equal"
        )
    union = np.unique(np.concatenate([ids[name] for name in names]))
    lacking = {name: union[~np.isin(union, ids[name])] for name in names}
    shown = "; ".join(f"{name!r} lacks {len(gone)}: {first_few(gone)}" for name, gone in lacking.items() if len(gone))
    advice = f"{option('join', 'inner')} keeps the common videos, {option('join', 'outer')} keeps all"
    if len(union) == sum(counts.values()):
        advice = "no two members have a video in common: compare how their ids are made"
    return AlignmentError(f"members have different videos ({_listed(counts)}): {shown}; {advice}")


def _alike(ids: Mapping[str, NDArray[np.str_]], names: Sequence[str]) -> str | None:
    """Say how ids differ that look the same: in Unicode form, spaces, case, zeros, suffix or folders; else None."""
    forms: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("in their Unicode form", lambda text: unicodedata.normalize("NFC", text)),
        ("in spaces around them", str.strip),
        ("in upper and lower case", str.casefold),
        ("in zeros before a number", lambda text: text.lstrip("0") or "0"),
        ("in the suffix of a file", lambda text: unicodedata.normalize("NFC", _without_suffix(text))),
        ("in folders or the suffix of a file", lambda text: _without_suffix(text).rsplit("/", 1)[-1]),
    )
    first = set(ids[names[0]].tolist())
    for how, form in forms:
        made = {name: {form(text): text for text in ids[name].tolist()} for name in names}
        if all(made[name].keys() == made[names[0]].keys() and len(made[name]) == len(ids[name]) for name in names):
            name, key = next((n, k) for n in names[1:] for k, text in made[n].items() if text not in first)
            return f"they differ only {how}, such as {made[names[0]][key]!r} and {made[name][key]!r} ({name})"
    return None


def _without_suffix(text: str) -> str:
    stem, dot, suffix = text.rpartition(".")
    return stem if f"{dot}{suffix}".lower() in VIDEO_SUFFIXES else text


def _positions(ids: NDArray[np.str_], wanted: NDArray[np.str_]) -> NDArray[np.int64]:
    """Row of each wanted id in `ids`, -1 where it is absent."""
    order = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)
    rows = order[at].astype(np.int64)
    rows[ids[rows] != wanted] = -1
    return rows


def align_labels(
    labels: Any,
    alignment: Alignment,
    names: Sequence[str],
    counts: Mapping[str, int],
    n_classes: int,
    own_ids: Mapping[str, NDArray[np.str_]] | None = None,
) -> NDArray[np.int64] | None:
    """Return the labels of the common videos, from one array, {member: labels} or {id: label}.

    One array belongs to the rows of the first member.

    Raises:
        AlignmentError: Two members' own labels differ.
        InputError: Labels are not integers in range, or a video has none.
    """
    if labels is None:
        return None
    if not isinstance(labels, Mapping):
        # Where videos were dropped or added, one array of labels still stands for the rows of the first member.
        labels = {names[0]: labels}
    ids = alignment.ids
    if not set(labels) <= set(names):
        if ids is None:
            raise InputError(
                f"labels: expected one array, or a mapping by member ({first_few(names)}); labels by id need ids"
            )
        labels = {str(key): label for key, label in labels.items()}
        absent = [str(i) for i in ids if str(i) not in labels]
        if absent:
            raise InputError(f"labels: expected one for each video, none for {len(absent)}: {first_few(absent)}")
        return check_labels([labels[str(i)] for i in ids], len(ids), n_classes, ids)
    for n, v in labels.items():
        check_index(v, None if own_ids is None else own_ids[n], "labels")
    merged = merged_labels(
        {
            n: check_labels(v, counts[n], n_classes, None if own_ids is None else own_ids[n])
            for n, v in labels.items()
            if v is not None
        },
        alignment,
        names,
    )
    if merged is None or (merged >= 0).all():
        return merged
    row = int(np.flatnonzero(merged < 0)[0])
    raise InputError(
        f"labels: expected one for each of {alignment.n} videos, got none for {int((merged < 0).sum())}, such as "
        f"{place(row, ids)}; pass them by id with {option('labels')}"
    )


def check_index(values: Any, ids: NDArray[np.str_] | None, what: str) -> None:
    """Refuse pandas' values whose index holds the ids in another order: rows are taken as they stand.

    An index that counts the rows from 0 says nothing of ids.

    Example:
        >>> check_index([3, 4], np.array(["a", "b"]), "labels")
    """
    known: Any = getattr(values, "index", None)
    if ids is None or not hasattr(known, "to_numpy"):  # others have a method of this name
        return
    index, named = list(map(str, known)), ids.tolist()
    if index not in (named, list(map(str, range(len(index))))) and sorted(index) == sorted(named):
        raise InputError(
            f"{what}: expected rows in the order of the ids, {first_few(ids, 2)}, and their index has them in another, "
            f"{first_few(index, 2)}; put them in order with .loc[ids]"
        )


def merged_labels(
    labels: Mapping[str, NDArray[np.int64] | None], alignment: Alignment, names: Sequence[str]
) -> NDArray[np.int64] | None:
    """Return what the members say of each common video's label (N,), -1 where none says any; None where there is none.

    Args:
        labels: {member: its labels of its own rows, -1 where it knows none}.
        alignment: Where each member has each video.
        names: The members, in the order in which a clash is looked for.

    Raises:
        AlignmentError: Two members' labels differ.

    Example:
        >>> same = Alignment(3, None, {"swin": slice(0, 3, 1), "x3d": slice(0, 3, 1)})
        >>> merged_labels({"swin": np.array([2, -1, -1]), "x3d": np.array([-1, 0, -1])}, same, ["swin", "x3d"]).tolist()
        [2, 0, -1]
    """
    merged = np.full(alignment.n, -1, dtype=np.int64)
    last: Any = None
    for name in names:
        own, rows = labels.get(name), alignment.rows[name]
        if own is None or (own is last and isinstance(rows, slice)):
            continue
        last = own if isinstance(rows, slice) else None
        aligned = own[rows] if isinstance(rows, slice) else np.where(rows >= 0, own[rows], -1)
        clash = np.flatnonzero((merged >= 0) & (aligned >= 0) & (merged != aligned))
        if clash.size:
            shown = "; ".join(f"{place(int(r), alignment.ids)}: {merged[r]} and {aligned[r]}" for r in clash[:5])
            raise AlignmentError(
                f"member {name!r}: its labels differ from the other members' for {clash.size} of {alignment.n} videos "
                f"({shown}); are the rows in another order?"
            )
        merged = np.where(merged >= 0, merged, aligned)
    return None if (merged < 0).all() else merged


def member_ids(ids: Any, names: Sequence[str], counts: Mapping[str, int]) -> dict[str, NDArray[np.str_]] | None:
    """Return each member's checked ids, from one sequence for all or {member: ids}."""
    if ids is None:
        return None
    if isinstance(ids, Mapping):
        lacking = [name for name in names if ids.get(name) is None]
        if lacking:
            raise InputError(f"ids: expected ids of every member or of none, got none for {first_few(lacking)}")
        return {name: check_ids(ids[name], counts[name], name) for name in names}
    listed: Iterable[Any] = (
        as_array(ids, "ids") if isinstance(ids, UNORDERED) or hasattr(ids, "__array__") else list(ids)
    )
    n = len(list(listed))
    odd = [name for name in names if counts[name] != n]
    if odd:
        raise AlignmentError(
            f"ids: {n} ids, but {_listed(counts)} rows; pass ids as a mapping from member to its own ids"
        )
    common = check_ids(listed, n)
    return dict.fromkeys(names, common)


def group_names(
    groups: ArrayLike | Mapping[str, Any] | Callable[[str], Any], ids: NDArray[np.str_] | None, n: int
) -> NDArray[np.str_]:
    """Return the name of each video's group (N,).

        groups =    a function          of the id
                    {id: name}          of the id
                    anything else       one name for each video, in the stack's order

    Raises:
        InputError: not one name for each video, an empty one, or names by id where there are no ids.

    Example:
        >>> group_names(lambda id: id[0], np.array(["a1", "a2", "b1"]), 3).tolist()
        ['a', 'a', 'b']
    """
    if callable(groups) or isinstance(groups, Mapping):
        if ids is None:
            raise InputError("groups: names by id need ids, and this stack has none; pass one name for each video")
        if not callable(groups):
            groups = {str(key): name for key, name in groups.items()}
            lacking = [name for name in ids.tolist() if name not in groups]
            if lacking:
                raise InputError(f"groups: no group is named for {len(lacking)} of {n} videos: {first_few(lacking)}")
        listed = [groups(name) if callable(groups) else groups[name] for name in ids.tolist()]
        groups = np.empty(n, dtype=object)  # a name may be a tuple
        groups[:] = listed
    check_index(groups, ids, "groups")
    return np.array([str(name) for name in check_names(groups, n, "groups", ids).tolist()])
