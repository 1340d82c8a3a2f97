"""Training and validation videos that share no source: a split by clip flatters, as clips of one source are alike."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import check_share
from vidfuse.errors import InputError
from vidfuse.video.lists import VideoItem, VideoList

__all__ = ["groups_by_pattern", "same_files", "split_by_group"]

_ORDERS, _MOST_GROUPS = 32, 6400  # orders that are tried, and groups that are looked at in all of them together


def groups_by_pattern(ids: Sequence[str], pattern: str) -> dict[str, str]:
    r"""Find in each id what the video comes from.

    Args:
        ids: the videos' ids.
        pattern: a regular expression; a group is what it matches, or its first parenthesis where it has one.

    Returns:
        {id: group}.

    Raises:
        InputError: the pattern is no regular expression, or finds nothing in some id.

    Examples:
        >>> groups_by_pattern(["run/g01_c1", "run/g01_c2", "run/g02_c1"], r"/(g\d+)_")
        {'run/g01_c1': 'g01', 'run/g01_c2': 'g01', 'run/g02_c1': 'g02'}
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"expected a regular expression, got {pattern!r}: {error}") from error
    found = {name: compiled.search(name) for name in ids}
    lost = [name for name, match in found.items() if match is None or not match[min(1, compiled.groups)]]
    if lost:
        raise InputError(
            f"expected {pattern!r} in every id, not found in {len(lost)}: {', '.join(lost[:5])}; write a pattern for "
            "these ids, with what a video comes from in its first parenthesis: '^(.*)_' takes all before the last _"
        )
    return {name: match[min(1, compiled.groups)] for name, match in found.items() if match}


def same_files(videos: Sequence[VideoItem]) -> list[list[str]]:
    """Find videos whose files are the same byte by byte: on two sides of a split, what is scored was trained on.

    Args:
        videos: the videos; of those whose files have equal sizes, the bytes are read.

    Returns:
        The ids of each file that is there more than once.

    Raises:
        OSError: a file cannot be read.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from vidfuse.video import VideoItem
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, data in (("a", b"x"), ("b", b"y"), ("c", b"x")):
        ...     _ = (folder / f"{name}.mp4").write_bytes(data)
        >>> same_files([VideoItem(name, str(folder / f"{name}.mp4")) for name in "abc"])
        [['a', 'c']]
    """
    by_size: dict[int, list[VideoItem]] = {}
    for item in videos:
        by_size.setdefault(os.path.getsize(item.path), []).append(item)
    same: dict[bytes, list[str]] = {}
    by_size.pop(0, None)  # an empty file is no video
    for item in (item for items in by_size.values() if len(items) > 1 for item in items):
        with open(item.path, "rb") as file:
            same.setdefault(hashlib.file_digest(file, "sha256").digest(), []).append(item.id)
    return [ids for ids in same.values() if len(ids) > 1]


def split_by_group(
    videos: VideoList, groups: Mapping[str, str] | None = None, *, share: float = 0.2, seed: int = 0, keep: int = 1
) -> tuple[VideoList, VideoList]:
    """Split labelled videos in two, every group on one side, each class as near to the share as whole groups allow.

    A class is on both sides where it has groups enough: that goes before the share. Groups go to validation in a random
    order as long as fewer classes lack groups or, of as many, the sum over classes of (videos wanted - videos there)²
    falls; then the one group whose change of sides is best changes sides, until none helps; of several orders the best
    counts.

    Args:
        videos: the videos.
        groups: {id: group}; None: each video's own `group`.
        share: share of each class that is wanted for validation, between 0 and 1.
        seed: seed of the order.
        keep: groups of each class that training keeps, where there are so many and one more; 2 where the training
            videos are to be parted again.

    Returns:
        Training and validation videos.

    Raises:
        InputError: a video has no group or no label, there is one group only, or a side would be empty.

    Examples:
        >>> from vidfuse.video import VideoItem
        >>> items = [VideoItem(f"{g}{c}{n}", "", c, g) for g in "abcde" for c in (0, 1) for n in "xy"]
        >>> train, val = split_by_group(VideoList(tuple(items)), share=0.2)
        >>> len(train), len(val), len({item.group for item in val})
        (16, 4, 1)
    """
    check_share("share", share)
    if videos.labels is None:
        raise InputError("expected labelled videos to split, got some without a label")
    found = {item.id: item.group if groups is None else groups.get(item.id) for item in videos}
    if lost := [name for name, group in found.items() if group is None]:
        raise InputError(f"expected a group for every video, got none for {len(lost)}: {', '.join(lost[:5])}")
    members: dict[str, list[int]] = {}
    for item in videos:
        members.setdefault(str(found[item.id]), []).append(int(item.label or 0))
    if len(members) < 2:
        raise InputError(f"expected at least two groups to split, got {', '.join(members)} alone")
    n_classes = max(videos.labels) + 1
    names = sorted(members)
    counts = np.stack([np.bincount(members[name], minlength=n_classes) for name in names])
    chosen = _chosen(counts, share, keep, np.random.default_rng(seed))
    if chosen.all():
        raise InputError(f"expected groups for both sides, got {len(names)} groups for a share of {share}")
    validation = {name for name, held in zip(names, chosen, strict=True) if held}
    items = [replace(item, group=found[item.id]) for item in videos]
    sides = [tuple(item for item in items if (item.group in validation) == side) for side in (False, True)]
    train, val = (VideoList(side, videos.classes) for side in sides)
    return train, val


def _chosen(counts: NDArray[np.int64], share: float, keep: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose the groups for validation, from the videos of each group and class, (G, K): the best of several orders."""
    n_groups = (counts > 0).sum(0)
    stay = np.minimum(keep, np.maximum(n_groups - 1, 1))  # groups of each class that training keeps
    go = np.minimum(n_groups - stay, 1)  # and that validation gets
    wanted = share * counts.sum(0)
    # What a choice puts into validation is a row: the videos of each class, then its groups of each class.
    rows = np.concatenate([counts, counts > 0], axis=1)

    def cost(put: NDArray[np.int64]) -> Any:
        there, present = np.split(put, 2, axis=-1)
        lacking = (np.maximum(go - present, 0) + np.maximum(stay - (n_groups - present), 0)).sum(-1)
        # One group lacking weighs more than all videos.
        return lacking * (1.0 + (counts.sum(0) ** 2).sum()) + ((wanted - there) ** 2).sum(-1)

    found = []
    for _ in range(max(1, min(_ORDERS, _MOST_GROUPS // len(rows)))):
        chosen, put = np.zeros(len(rows), bool), np.zeros_like(rows[0])
        for row in rng.permutation(len(rows)):
            if cost(put + rows[row]) < cost(put):
                chosen[row], put = True, put + rows[row]
        while True:
            changed = cost(put + np.where(chosen, -1, 1)[:, None] * rows)
            best = int(changed.argmin())
            if chosen.any() and (changed[best] >= cost(put) or (chosen[best] and chosen.sum() == 1)):
                break
            put = put + (-1 if chosen[best] else 1) * rows[best]
            chosen[best] = not chosen[best]
        found.append((float(cost(put)), chosen))
    return min(found, key=lambda one: one[0])[1]
