"""Open caches as a stack: one cache or several shards a member, aligned by id, read where they are used."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vidfuse._checks import Kind, check_labels, check_member_names, did_you_mean, first_few, per_member
from vidfuse.cache.reader import LogitCache, open_cache
from vidfuse.cache.shards import Folders, find_shards
from vidfuse.errors import InputError, VidfuseWarning, option
from vidfuse.stack.align import Join, check_layouts, merged_labels
from vidfuse.stack.checkpoints import Checkpoints, as_fingerprints, check_checkpoints, joined_fingerprints
from vidfuse.stack.classes import common_classes, labels_in_order
from vidfuse.stack.reduce import ReducedSource, reduce_source
from vidfuse.stack.shards import align_shards, check_members, check_same_model, joined_labels, joined_source
from vidfuse.stack.source import ArraySource, ColumnsSource, Source
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
    opened = [
        {
            name: _without_expected(open_cache(shard[name], partial=partial, verify=verify))
            for name in names
            if name in shard
        }
        for shard in shards
    ]
    caches = {name: [shard[name] for shard in opened if name in shard] for name in names}
    check_members(caches)
    for name, own in caches.items():
        check_same_model(name, own, folds=folds, reduced=views is not None)
    reduced = [name for name in names if views is not None and caches[name][0].meta.n_views is not None]
    rules = per_member(views, names, "views", needed=reduced)
    counts = {name: sum(map(len, own)) for name, own in caches.items()}
    shapes = {name: (counts[name], *own[0].source.shape[2 if name in reduced else 1 :]) for name, own in caches.items()}
    n_classes, _ = check_layouts(shapes)
    if partial and join == "exact":
        join = "inner"
    alignment = align_shards(opened, names, join)
    given = {_called(name, cache, caches): cache for name, own in caches.items() for cache in own}
    classes, orders = common_classes({called: cache.classes for called, cache in given.items()}, list(given), n_classes)
    labels: Any = labels_in_order({called: cache.labels for called, cache in given.items()}, orders, list(given))
    stacked, known = [], {}
    for name, own in caches.items():
        parts, kind = [], own[0].kind
        for cache in own:
            source, kind = _read(cache, rules[name] if name in reduced else None, as_read)
            order = orders.get(_called(name, cache, caches))
            parts.append(source if order is None else ColumnsSource(source, order))
        prints = {str(cache.folder): as_fingerprints(cache.meta.fingerprint) for cache in own}
        made_by = () if checkpoints == "any" else joined_fingerprints(name, prints, folds=True)  # see check_same_model
        stacked.append(Member(name, joined_source(parts), alignment.rows[name], kind, made_by))
        of_all = joined_labels([labels[_called(name, cache, caches)] for cache in own], list(map(len, own)))
        known[name] = None if of_all is None else check_labels(of_all, counts[name], n_classes, some=True)
    merged = merged_labels(known, alignment, names)
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


def _without_expected(cache: LogitCache) -> LogitCache:
    """Return a cache that no longer says what it expects: a text for each video, which takes more than its scores."""
    return replace(cache, meta=replace(cache.meta, expected_ids=None))


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
