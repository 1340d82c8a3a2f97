"""Open a folder of caches, one a member, as a stack: aligned by id, read where it is used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vidfuse._checks import check_member_names, did_you_mean, first_few, per_member
from vidfuse.cache.reader import find_caches, open_cache
from vidfuse.errors import InputError
from vidfuse.stack.align import Join, align_ids, align_labels, check_layouts
from vidfuse.stack.classes import common_classes, labels_in_order
from vidfuse.stack.reduce import reduce_source
from vidfuse.stack.source import ArraySource, ColumnsSource, Source
from vidfuse.stack.stack import LogitStack, Member

__all__ = ["load_stack"]


def load_stack(
    folder: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    members: Iterable[str] | None = None,
    views: str | Mapping[str, str] | None = None,
    partial: bool = False,
    verify: bool = True,
    *,
    join: Join = "exact",
) -> LogitStack:
    """Load a folder of caches as one stack, aligned by id; scores are read where they are used.

    Args:
        folder: A folder with one cache a member, a single cache, or {member: folder}.
        members: Which members to take, in this order; by default all, by name.
        views: Reduce views while loading: "mean-log", "mean-probability", "vote", "max", or {member: rule}. By default
            they are kept.
        partial: Accept caches that are not finished; only the videos that all members have are taken, unless `join` is
            "outer".
        verify: Check each part's digest at its first use in this process.
        join: "exact" demands the same ids of all members, "inner" keeps the common ones, "outer" keeps all.

    Raises:
        InputError: No cache, an unknown member, or members with different numbers of views.
        AlignmentError: The members differ in videos, classes or labels.
        CacheIncompleteError: A cache lacks expected videos, and `partial` was not asked for.
        CacheCorruptError: A part is not what was written.

    Example:
        >>> import tempfile, numpy as np
        >>> z = np.zeros((2, 3), dtype=np.float32)
        >>> folder = tempfile.mkdtemp()
        >>> LogitStack.from_arrays({"swin": z, "x3d": z}, ids=["a", "b"]).save(folder)
        >>> load_stack(folder)
        LogitStack(2 videos x 2 members x 3 classes, no labels, members: swin, x3d)
    """
    found = {name: Path(path) for name, path in folder.items()} if isinstance(folder, Mapping) else find_caches(folder)
    names = check_member_names(found if members is None else [members] if isinstance(members, str) else members)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise InputError(
            f"{folder}: no cache for members {first_few(unknown)}; there are {first_few(found, 20)}"
            f"{did_you_mean(unknown[0], found)}"
        )
    caches = {name: open_cache(found[name], partial=partial, verify=verify) for name in names}
    reduced = [name for name in names if views is not None and caches[name].meta.n_views is not None]
    rules = per_member(views, names, "views", needed=reduced)
    shapes = {n: (len(c), c.meta.n_classes) if n in reduced else c.source.shape for n, c in caches.items()}
    n_classes, _ = check_layouts(shapes)
    counts = {name: len(cache) for name, cache in caches.items()}
    if partial and join == "exact":
        join = "inner"
    alignment = align_ids({name: cache.ids for name, cache in caches.items()}, counts, join)
    classes, orders = common_classes({name: cache.classes for name, cache in caches.items()}, names, n_classes)
    labels: Any = labels_in_order({name: cache.labels for name, cache in caches.items()}, orders, names)
    stacked = []
    for name, cache in caches.items():
        source: Source = cache.source
        kind = cache.kind
        if name in reduced:
            source, kind = ArraySource(reduce_source(source, kind, rules[name])), "log-likelihoods"
        if name in orders:
            source = ColumnsSource(source, orders[name])
        stacked.append(Member(name, source, alignment.rows[name], kind))
    return LogitStack(
        stacked,
        ids=alignment.ids,
        labels=align_labels(labels, alignment, names, counts, n_classes),
        classes=classes,
        present=alignment.present,
    )
