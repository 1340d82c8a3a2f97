"""Several caches of one member, one after another: what must agree, and how their videos stand in a stack.

             shard0            shard1            shard2
swin     [ a  b  c ]       [ d  e  f ]       [ g  h ]        rows  0  1  2  3  4  5  6  7
x3d      [ a  b  c ]        has none         [ g  h ]        rows  0  1  2 -1 -1 -1  3  4
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import first_few
from vidfuse.cache.reader import LogitCache
from vidfuse.cache.shards import shard_name, without_numbers
from vidfuse.errors import AlignmentError, CacheConflictError, InputError, option
from vidfuse.stack.align import Alignment, Join, align_ids, same_ids
from vidfuse.stack.join import any_repeated, check_disjoint
from vidfuse.stack.source import JoinedSource, Source

__all__ = ["align_shards", "check_members", "check_same_model", "joined_labels", "joined_source"]


def check_same_model(name: str, caches: Sequence[LogitCache], *, folds: bool, reduced: bool) -> None:
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


def check_members(caches: Mapping[str, Sequence[LogitCache]]) -> None:
    """Refuse members that are called alike but for numbers and share no video: shards of one member, it seems.

        p/0/meta.json        read as members 0 and 1 of the same videos
        p/1/meta.json        meant as shards of one member, which are p/0/swin and p/1/swin

    Raises:
        InputError: They are such.
    """
    names = list(caches)
    if len(names) < 2 or len({without_numbers(name) for name in names}) > 1:
        return
    ids = {name: [cache.ids for cache in own] for name, own in caches.items()}
    if same_ids(ids[names[0]][0], ids[names[1]][0]) or any_repeated([one for own in ids.values() for one in own]):
        return
    first = caches[names[0]][0].folder
    raise InputError(
        f"the caches {first_few(names)} in {first.parent} are read as members, and no two of them have a video in "
        f"common; if they are shards of one member, say its name: move each into a folder of this name within its own, "
        f"{first / 'swin'}, or in Python load_stack({{'swin': {str(first.parent)!r}}})"
    )


def align_shards(shards: Sequence[Mapping[str, LogitCache]], names: Sequence[str], join: Join) -> Alignment:
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
    if len(shards) == 1:
        return align_ids({name: shards[0][name].ids for name in names}, counts, join)
    shards = [shard for shard in shards if shard]
    bases = [next(iter(shard.values())).ids for shard in shards]
    alike = all(
        same_ids(cache.ids, base) for base, shard in zip(bases, shards, strict=True) for cache in shard.values()
    )
    if not alike or any_repeated(bases):
        pieces = {name: {str(s[name].folder): s[name].ids for s in shards if name in s} for name in names}
        for own in pieces.values():
            check_disjoint(own)
        return align_ids({name: np.concatenate(list(own.values())) for name, own in pieces.items()}, counts, join)
    ids, sizes = np.concatenate(bases), list(map(len, bases))
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


def joined_source(parts: Sequence[Source]) -> Source:
    """Return the scores of several caches as one source, without copying them."""
    return parts[0] if len(parts) == 1 else JoinedSource([(part, slice(0, part.shape[0], 1)) for part in parts])


def joined_labels(labels: Sequence[NDArray[np.int64] | None], counts: Sequence[int]) -> NDArray[np.int64] | None:
    """Return the labels of several caches as one array, -1 where a cache has none; None where none has any.

    Example:
        >>> joined_labels([np.array([2, 0]), None], [2, 1]).tolist()
        [2, 0, -1]
    """
    if all(own is None for own in labels):
        return None
    return np.concatenate([np.full(n, -1) if own is None else own for own, n in zip(labels, counts, strict=True)])


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= 120 else text[:119] + "…"
