"""Folders of caches, one a member: load them as a stack, save a stack as them.

The parts' bytes are in `format`, publishing in `publish`, and this module's names are the ones to import:
`CacheWriter`, `open_cache`, `load_stack`, `verify`, `consolidate`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vidfuse._validate import check_member_names, first_few
from vidfuse.cache.align import Join, Missing, align_ids, align_labels, check_layouts, common_classes
from vidfuse.cache.meta import META_NAME
from vidfuse.cache.reader import LogitCache, open_cache
from vidfuse.cache.reduce import reduce_source, rule_of
from vidfuse.cache.source import ArraySource
from vidfuse.cache.stack import LogitStack, Member
from vidfuse.cache.upkeep import VerifyReport, consolidate, verify
from vidfuse.cache.writer import ROWS_PER_PART, CacheWriter
from vidfuse.errors import InputError

if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "CacheWriter",
    "LogitCache",
    "VerifyReport",
    "consolidate",
    "find_caches",
    "load_stack",
    "open_cache",
    "save_stack",
    "verify",
]


def find_caches(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Return {member: its cache's folder}: the folder itself if it is a cache, else its sub-folders that are.

    Raises:
        InputError: The folder does not exist or holds no cache.
    """
    root = Path(folder)
    if (root / META_NAME).exists():
        return {root.resolve().name: root}
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder of logit caches, found no folder")
    found = {entry.name: entry for entry in sorted(root.iterdir()) if (entry / META_NAME).exists()}
    if not found:
        raise InputError(f"{root}: expected sub-folders with a meta.json each, one a member; found none")
    return found


def load_stack(
    folder: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    members: Iterable[str] | None = None,
    views: str | Mapping[str, str] | None = None,
    partial: bool = False,
    verify: bool = True,
    *,
    join: Join = "exact",
    missing: Missing = "error",
) -> LogitStack:
    """Load a folder of caches as one stack, aligned by id; scores are read where they are used.

    Args:
        folder: A folder with one cache a member, a single cache, or {member: folder}.
        members: Which members to take, in this order; by default all, by name.
        views: Reduce views while loading: "mean-log", "mean-probability", "vote", "max", or {member: rule}. By default
            they are kept.
        partial: Accept caches that are not finished; only the videos that all members have are taken, unless `missing`
            says otherwise.
        verify: Check each part's digest at its first use in this process.
        join: "exact" demands the same ids of all members, "inner" keeps the common ones.
        missing: "allow" keeps every video of any member.

    Raises:
        InputError: No cache, an unknown member, or members with different numbers of views.
        AlignmentError: The members differ in videos, classes or labels.
        CacheIncompleteError: A cache lacks expected videos, and `partial` was not asked for.
        CacheCorruptError: A part is not what was written.

    Example:
        >>> import tempfile
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
        raise InputError(f"{folder}: no cache for members {first_few(unknown)}; there are {first_few(found, 20)}")
    caches = {name: open_cache(found[name], partial=partial, verify=verify) for name in names}
    rules = {} if views is None else {n: rule_of(views, n) for n, c in caches.items() if c.meta.n_views is not None}
    shapes = {n: (len(c), c.meta.n_classes) if n in rules else c.source.shape for n, c in caches.items()}
    n_classes, _ = check_layouts(shapes)
    counts = {name: len(cache) for name, cache in caches.items()}
    if partial and join == "exact" and missing == "error":
        join = "inner"
    alignment = align_ids({name: cache.ids for name, cache in caches.items()}, counts, join, missing)
    classes = common_classes({name: cache.classes for name, cache in caches.items()}, names, n_classes)
    labels: Any = {name: cache.labels for name, cache in caches.items()}
    stacked = []
    for name, cache in caches.items():
        if name in rules:
            reduced = ArraySource(reduce_source(cache.source, cache.kind, rules[name]))
            stacked.append(Member(name, reduced, alignment.rows[name], "log-likelihoods"))
        else:
            stacked.append(Member(name, cache.source, alignment.rows[name], cache.kind))
    return LogitStack(
        stacked,
        ids=alignment.ids,
        labels=align_labels(labels, alignment, names, counts, n_classes),
        classes=classes,
        present=alignment.present,
    )


def save_stack(stack: LogitStack, folder: Path, *, dtype: str | None = None) -> None:
    """Write a stack as a folder of caches, one a member; see `LogitStack.save`."""
    if stack.ids is None:
        raise InputError("expected a stack with ids to save, got one whose order is unchecked; build it with ids=")
    for column, name in enumerate(stack.members):
        kept = np.arange(len(stack)) if stack.present is None else np.flatnonzero(stack.present[:, column])
        part = stack.select([name])[kept]
        ids, labels = stack.ids[kept], None if part.labels is None else part.labels
        stored = dtype or ("float16" if part.scores(name).dtype == np.float16 else "float32")
        with CacheWriter(
            folder / name, classes=stack.classes, kind=part.kinds[0], dtype=stored, expected_ids=ids.tolist()
        ) as writer:
            for start in range(0, len(kept), ROWS_PER_PART):
                rows = slice(start, min(start + ROWS_PER_PART, len(kept)))
                writer.append(ids[rows], part[rows].scores(name), None if labels is None else labels[rows])
