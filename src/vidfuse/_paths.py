"""How a video's file becomes its id: the same in lists, tables and folders."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

from vidfuse.errors import InputError

__all__ = ["VIDEO_SUFFIXES", "path_ids"]

VIDEO_SUFFIXES: Final = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


def path_ids(paths: Sequence[str]) -> list[str]:
    r"""Return files' ids: their paths with slashes, without a video's suffix; absolute ones from a common folder on.

    Raises:
        InputError: A path leads out of the data's folder.

    Example:
        >>> path_ids(["run/a.mp4", "run/b.v2", "./swim\\c.AVI"])
        ['run/a', 'run/b.v2', 'swim/c']
        >>> path_ids(["/data/val/a.mp4", "/data/val/x/b.mp4"])
        ['a', 'x/b']
    """
    pure = [PurePosixPath(path.replace("\\", "/")) for path in paths]
    absolute = [path.is_absolute() or str(path)[1:3] == ":/" for path in pure]  # C:/data too
    folders = [path.parent.parts for path, whole in zip(pure, absolute, strict=True) if whole]
    common = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))
    depth = len(list(common))
    ids = []
    for path, whole in zip(pure, absolute, strict=True):
        named = path.with_suffix("") if path.suffix.lower() in VIDEO_SUFFIXES else path
        parts = named.parts[depth if whole else 0 :]
        if ".." in parts:
            raise InputError(f"expected paths inside the data's folder, got {path}; pass root= and relative paths")
        ids.append("/".join(parts))
    return ids
