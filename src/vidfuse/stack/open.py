"""Open caches as a stack: one cache or several shards a member, aligned by id, read where they are used.

             shard0            shard1            shard2
swin     [ a  b  c ]       [ d  e  f ]       [ g  h ]        rows  0  1  2  3  4  5  6  7
x3d      [ a  b  c ]        has none         [ g  h ]        rows  0  1  2 -1 -1 -1  3  4
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import Kind, check_labels, check_member_names, did_you_mean, first_few, per_member
from vidfuse.cache.ids import join_packed, packed_keys, unpack_ids
from vidfuse.cache.reader import LogitCache, open_cache
from vidfuse.cache.shards import Folders, find_shards, shard_name, without_numbers
from vidfuse.errors import AlignmentError, CacheConflictError, InputError, VidfuseWarning, option
from vidfuse.stack.align import Alignment, Join, align_ids, check_layouts, merged_labels
from vidfuse.stack.checkpoints import Checkpoints, as_fingerprints, check_checkpoints, joined_fingerprints
from vidfuse.stack.classes import common_classes, labels_in_order, warn_of_unnamed
from vidfuse.stack.join import any_repeated, check_disjoint
from vidfuse.stack.source import ArraySource, IndexedSource, JoinedSource, ReducedSource, Source, reduce_source
from vidfuse.stack.stack import LogitStack, Member

__all__ = ["load_stack"]


def load_stack(
    folder: Folders | Mapping[str, Folders],
    members: Iterable[str] | None = None,
    views: str | Mapping[str, str] | None = None,
    partial: bool = False,
    verify: bool = True,
    *,
    join: Join = "exact",
    folds: bool = False,
    labelled: bool = False,
    checkpoints: Checkpoints = "same",
    as_read: bool = False,
) -> LogitStack:
    """Load caches as one stack, aligned by id; scores are read where they are used, and never copied.

    Shards are folders of the same members for other videos. They become one stack, in the order given; those that a
    pattern or a parent folder stands for are in the order of the numbers in their names. A shard that lacks a member
    holds videos that the member lacks, which `join` decides on.

    Args:
        folder: A folder with one cache a member, a single cache, or {member: folder}; or shards of these: several
            folders, a pattern such as "caches/shard*", or a folder whose numbered sub-folders they are.
        members: Which members to take, in this order; by default all, by name.
        views: Reduce views while loading: "mean-log", "mean-probability", "vote", "max", or {member: rule}. By default
            they are kept.
        partial: Accept caches that are not finished; only the videos that all members have are taken, unless `join` is
            "outer".
        verify: Check each part's digest at its first use in this process.
        join: "exact" demands the same ids of all members, "inner" keeps the common ones, "outer" keeps all.
        folds: The shards are folds, each predicted by a model of its own. Otherwise those of one member must have the
            same fingerprint and plan of views.
        labelled: Take only the videos that have a label. Otherwise, where some have one and some have none, the stack
            has no labels, and a warning says so.
        checkpoints: "any" forgets what the caches know of their networks' checkpoints, so that scores of others than
            those of a fit are taken; otherwise they are refused where a recipe or a comparison meets them.
        as_read: Reduce views whenever scores are read, not now: to the same bits, and memory holds a block of them. For
            one pass over very many videos, as a prediction is; a fit makes several.

    Raises:
        InputError: No cache, an unknown member, a video in two shards, members with different numbers of views, or
            members that seem to be shards of one.
        AlignmentError: The members differ in videos, classes or labels.
        CacheIncompleteError: A cache lacks expected videos, and `partial` was not asked for.
        CacheConflictError: Two shards of a member are of two models.
        CacheCorruptError: A part is not what was written.

    Example:
        >>> import tempfile, numpy as np
        >>> z = np.zeros((2, 3), dtype=np.float32)
        >>> folder = tempfile.mkdtemp()
        >>> for shard, ids in enumerate([["a", "b"], ["c", "d"]]):
        ...     LogitStack.from_arrays({"swin": z, "x3d": z}, ids=ids).save(f"{folder}/shard{shard}")
        >>> load_stack(f"{folder}/shard0")
        LogitStack(2 videos x 2 members x 3 classes, no labels, members: swin, x3d)
        >>> load_stack(folder)
        LogitStack(4 videos x 2 members x 3 classes, no labels, members: swin, x3d)
    """
    # Which caches are meant, by shard and member; what each is, held against the others of its member and then against
    # the other members; which row of which cache each video is. Then a member's caches become one source, with the
    # columns of each in one order. Labels go the same way, and say at the end which videos are left.
    check_checkpoints(checkpoints)
    shards = find_shards(folder)
    found = sorted({name for shard in shards for name in shard}) if not isinstance(folder, Mapping) else list(folder)
    names = check_member_names(found if members is None else [members] if isinstance(members, str) else members)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise InputError(
            f"{folder}: no cache for members {first_few(unknown)}; there are {first_few(found, 20)}"
            f"{did_you_mean(unknown[0], found)}"
        )
    opened: list[dict[str, LogitCache]] = []
    for shard in shards:
        opened.append({})
        for name in (name for name in names if name in shard):
            first = next(iter(opened[-1].values()), None)
            opened[-1][name] = open_cache(shard[name], partial=partial, verify=verify).lean(first)
    caches = {name: [shard[name] for shard in opened if name in shard] for name in names}
    _check_members(caches)
    for name, own in caches.items():
        _check_same_model(name, own, folds=folds, reduced=views is not None)
    reduced = [name for name in names if views is not None and caches[name][0].meta.n_views is not None]
    rules = per_member(views, names, "views", needed=reduced)
    counts = {name: sum(map(len, own)) for name, own in caches.items()}
    shapes = {name: (counts[name], *own[0].source.shape[2 if name in reduced else 1 :]) for name, own in caches.items()}
    n_classes, _ = check_layouts(shapes)
    if partial and join == "exact":
        join = "inner"
    alignment = _align_shards(opened, names, join)
    given = {_called(name, cache, caches): cache for name, own in caches.items() for cache in own}
    classes, orders = common_classes({called: cache.classes for called, cache in given.items()}, list(given), n_classes)
    if classes is not None:
        warn_of_unnamed([called for called, cache in given.items() if cache.classes is None])
    labels: Any = labels_in_order({called: cache.labels for called, cache in given.items()}, orders, list(given))
    stacked, known, joined = [], {}, dict[tuple[int, ...], Any]()
    for name, own in caches.items():
        parts, kind = [], own[0].kind
        for cache in own:
            source, kind = _read(cache, rules[name] if name in reduced else None, as_read)
            order = orders.get(_called(name, cache, caches))
            parts.append(source if order is None else IndexedSource(source, (..., order)))
        prints = {str(cache.folder): as_fingerprints(cache.meta.fingerprint) for cache in own}
        made_by = () if checkpoints == "any" else joined_fingerprints(name, prints, folds=True)  # see _check_same_model
        stacked.append(Member(name, _joined_source(parts), alignment.rows[name], kind, made_by))
        of_each, sizes = [labels[_called(name, cache, caches)] for cache in own], list(map(len, own))
        key = (*map(id, of_each), *sizes)
        if key not in joined:  # members that share their labels share all that comes of them
            of_all = _joined_labels(of_each, sizes)
            joined[key] = None if of_all is None else check_labels(of_all, counts[name], n_classes, some=True)
        known[name] = joined[key]
    merged = merged_labels(known, alignment, names)
    for cache in given.values():
        cache.release()  # ids and labels, which were read
    some = merged is not None and (merged < 0).any()
    if labelled and merged is None:
        raise InputError(f"{option('labelled', True)}: no video of {folder} has a label")
    stack = LogitStack(
        stacked,
        ids=alignment.ids,
        labels=merged if labelled or not some else None,
        classes=classes,
        present=alignment.present,
    )
    if merged is None or not some:
        return stack
    if labelled:
        return stack[merged >= 0]
    warnings.warn(
        f"{folder}: {int((merged >= 0).sum())} of {len(stack)} videos have a label, and the stack is read without any; "
        f"{option('labelled', True)} takes those that have one",
        VidfuseWarning,
        stacklevel=2,
    )
    return stack


def _read(cache: LogitCache, rule: str | None, as_read: bool) -> tuple[Source, Kind]:
    """Return where a cache's scores are, and what they are; with its views made one where a rule says how."""
    if rule is None:
        return cache.source, cache.kind
    if as_read:
        return ReducedSource(cache.source, cache.kind, rule), "log-likelihoods"
    return ArraySource(reduce_source(cache.source, cache.kind, rule)), "log-likelihoods"


def _called(name: str, cache: LogitCache, caches: Mapping[str, list[LogitCache]]) -> str:
    """Return what an error calls a cache: its member, and where there are several its folder."""
    return name if len(caches[name]) == 1 else f"{name} in {cache.folder}"


def _check_same_model(name: str, caches: Sequence[LogitCache], *, folds: bool, reduced: bool) -> None:
    """Refuse caches that are not one member's: of other numbers, layouts or models.

    Args:
        name: The member.
        caches: Its caches.
        folds: Each is of a model of its own.
        reduced: Views are made one, and there may be more of them in one cache than in another.

    Raises:
        AlignmentError: Kinds, numbers of classes or views differ.
        CacheConflictError: Fingerprints or plans of views differ.
    """
    first = caches[0]
    for cache in caches[1:]:
        for field in ("kind", "n_classes", "n_views", "fingerprint", "view_plan"):
            own, other = getattr(first.meta, field), getattr(cache.meta, field)
            if own == other or (field == "n_views" and reduced and None not in (own, other)):
                continue
            shown = f"member {name!r}: {field} differs between its shards: {_short(own)} in {first.folder}, and "
            shown += f"{_short(other)} in {cache.folder}"
            if field in ("kind", "n_classes", "n_views"):
                raise AlignmentError(f"{shown}; write the shards in the same way")
            if not folds:
                raise CacheConflictError(
                    f"{shown}: they are predictions of two models; write them as two members, or, if each shard is a "
                    f"fold with a model of its own, say {option('folds', True)}"
                )


def _check_members(caches: Mapping[str, Sequence[LogitCache]]) -> None:
    """Refuse members that are called alike but for numbers and share no video: shards of one member, it seems.

        p/0/meta.json        read as members 0 and 1 of the same videos
        p/1/meta.json        meant as shards of one member, which are p/0/swin and p/1/swin

    Raises:
        InputError: They are such.
    """
    names = list(caches)
    if len(names) < 2 or len({without_numbers(name) for name in names}) > 1:
        return
    if any_repeated([packed_keys(cache.packed_ids) for own in caches.values() for cache in own]):
        return
    first = caches[names[0]][0].folder
    raise InputError(
        f"the caches {first_few(names)} in {first.parent} are read as members, and no two of them have a video in "
        f"common; if they are shards of one member, say its name: move each into a folder of this name within its own, "
        f"{first / 'swin'}, or in Python load_stack({{'swin': {str(first.parent)!r}}})"
    )


def _align_shards(shards: Sequence[Mapping[str, LogitCache]], names: Sequence[str], join: Join) -> Alignment:
    """Find the common videos of members whose caches are shards; they stand in the shards' order.

    Where in each shard all of its members have the same videos, in the same order, nothing is sorted.

    Args:
        shards: For each shard, the caches of those members that it has.
        names: The members.
        join: As in `align_ids`; a shard that lacks a member holds videos that the member lacks.

    Raises:
        InputError: A video stands in two shards of one member.
        AlignmentError: The members' videos differ.
    """
    counts = {name: sum(len(shard[name]) for shard in shards if name in shard) for name in names}
    shards = [shard for shard in shards if shard]
    bases = [next(iter(shard.values())).packed_ids for shard in shards]
    alike = all(cache.packed_ids is base for base, shard in zip(bases, shards, strict=True) for cache in shard.values())
    if not alike or any_repeated([packed_keys(base) for base in bases]):
        pieces = {name: {str(s[name].folder): s[name].ids for s in shards if name in s} for name in names}
        for own in pieces.values():
            check_disjoint(own, shards=True)
        return align_ids({name: np.concatenate(list(own.values())) for name, own in pieces.items()}, counts, join)
    ids, sizes = unpack_ids(join_packed(bases)), list(map(len, bases))
    present = np.array([[name in shard for name in names] for shard in shards])
    if present.all():
        return Alignment(len(ids), ids, {name: slice(0, len(ids), 1) for name in names})
    if join == "exact":
        raise _without_member(shards, names)
    had = np.repeat(present, sizes, axis=0)
    rows = {name: np.where(had[:, m], np.cumsum(had[:, m]) - 1, -1) for m, name in enumerate(names)}
    if join == "outer":
        return Alignment(len(ids), ids, dict(rows), had)
    common = had.all(axis=1)
    if not common.any():
        raise _without_member(shards, names)
    return Alignment(int(common.sum()), ids[common], {name: own[common] for name, own in rows.items()})


def _without_member(shards: Sequence[Mapping[str, LogitCache]], names: Sequence[str]) -> AlignmentError:
    lacking = {
        name: [shard_name({n: cache.folder for n, cache in shard.items()}) for shard in shards if name not in shard]
        for name in names
    }
    shown = "; ".join(
        f"{name!r} has no cache in {len(gone)} of {len(shards)} shards: {first_few(gone)}"
        for name, gone in lacking.items()
        if gone
    )
    return AlignmentError(
        f"members have different videos: {shown}; write it there, or say {option('join', 'inner')}, which keeps the "
        f"videos that all members have, or {option('join', 'outer')}, which keeps all"
    )


def _joined_source(parts: Sequence[Source]) -> Source:
    """Return the scores of several caches as one source, without copying them."""
    return parts[0] if len(parts) == 1 else JoinedSource([(part, slice(0, part.shape[0], 1)) for part in parts])


def _joined_labels(labels: Sequence[NDArray[np.int64] | None], counts: Sequence[int]) -> NDArray[np.int64] | None:
    """Return the labels of several caches as one array, -1 where a cache has none; None where none has any.

    Example:
        >>> _joined_labels([np.array([2, 0]), None], [2, 1]).tolist()
        [2, 0, -1]
    """
    if all(own is None for own in labels):
        return None
    return np.concatenate([np.full(n, -1) if own is None else own for own, n in zip(labels, counts, strict=True)])


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= 120 else text[:119] + "…"
