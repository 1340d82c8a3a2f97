"""Training and validation videos that share no source: a split by clip flatters, as clips of one source are alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError
from vidfuse.video.lists import VideoList

__all__ = ["groups_by_pattern", "split_by_group"]


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
            "these ids, with what a video comes from in its first parenthesis"
        )
    return {name: match[min(1, compiled.groups)] for name, match in found.items() if match}


def split_by_group(
    videos: VideoList, groups: Mapping[str, str] | None = None, *, share: float = 0.2, seed: int = 0
) -> tuple[VideoList, VideoList]:
    """Split labelled videos in two, every group on one side, each class as near to the share as whole groups allow.

    Groups go to validation in a random order as long as the sum over classes of (videos wanted - videos there)² falls;
    then the one group whose change of sides lowers it most changes sides, until none does.

    Args:
        videos: the videos.
        groups: {id: group}; None: each video's own `group`.
        share: share of each class that is wanted for validation, between 0 and 1.
        seed: seed of the order.

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
    if not 0 < share < 1:
        raise InputError(f"expected a share between 0 and 1, got {share}")
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
    names = np.random.default_rng(seed).permutation(sorted(members)).tolist()
    counts = np.stack([np.bincount(members[name], minlength=n_classes) for name in names])
    wanted, chosen = share * counts.sum(0), np.zeros(len(names), bool)

    def off(there: NDArray[np.float64]) -> Any:
        return ((wanted - there) ** 2).sum(-1)

    for row, count in enumerate(counts):
        there = counts[chosen].sum(0)
        chosen[row] = off(there + count) < off(there)
    while True:
        there = counts[chosen].sum(0)
        changed = off(there + np.where(chosen, -1, 1)[:, None] * counts)
        best = int(changed.argmin())
        if chosen.any() and (changed[best] >= off(there) or (chosen[best] and chosen.sum() == 1)):
            break
        chosen[best] = not chosen[best]
    if chosen.all():
        raise InputError(f"expected groups for both sides, got {len(names)} groups for a share of {share}")
    validation = {name for name, held in zip(names, chosen, strict=True) if held}
    items = [replace(item, group=found[item.id]) for item in videos]
    sides = [tuple(item for item in items if (item.group in validation) == side) for side in (False, True)]
    train, val = (VideoList(side, videos.classes) for side in sides)
    return train, val
