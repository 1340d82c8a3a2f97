"""How a video's file or name becomes its id: the same in lists, tables, dumps and folders."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final, Literal, get_args

from vidfuse.errors import InputError, option

__all__ = ["VIDEO_SUFFIXES", "IdRule", "is_comment", "name_ids", "path_ids"]

# What FFmpeg reads, and people keep videos in.
VIDEO_SUFFIXES: Final = frozenset(
    ".264 .265 .3g2 .3gp .amv .apng .asf .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m2t .m2ts .m2v .m4v "
    ".mj2 .mjpeg .mjpg .mk3d .mkv .mov .mp4 .mpe .mpeg .mpg .mpv .mts .mxf .nut .obu .ogg .ogm .ogv .qt .rm .rmvb .ts "
    ".vob .webm .wmv .wtv .xvid .y4m".split()
)
IdRule = Literal["path", "stem", "exact"]
_COMMENT: Final = re.compile(
    rf"\s*#(?!\S.*(?:{'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))})(?!\w))", re.IGNORECASE
)


def is_comment(line: str) -> bool:
    """Say whether a line of a list is a comment, and not a video whose name begins as one does (HMDB51 has such).

    Example:
        >>> is_comment("# by hand"), is_comment("#path,label"), is_comment("#20_Rhythm_clap_u_nm.avi 1")
        (True, True, False)
    """
    return _COMMENT.match(line) is not None


def name_ids(names: Sequence[str], rule: IdRule = "path", base: str | os.PathLike[str] | None = None) -> list[str]:
    """Return the ids of videos that a file calls by these names.

    Args:
        names: Paths, file names or ids.
        rule: "path": the path without a video's suffix, see `path_ids`; "stem": the file's name without its folders and
            without a video's suffix; "exact": the names as they stand.
        base: The folder that a list's relative paths start from; see `path_ids`.

    Raises:
        InputError: An unknown rule, or a path that leads out of the data's folder.

    Example:
        >>> [name_ids(["val/run/a.mp4"], rule)[0] for rule in ("path", "stem", "exact")]
        ['val/run/a', 'a', 'val/run/a.mp4']
    """
    if rule not in get_args(IdRule):
        raise InputError(f"ids: expected one of {', '.join(map(repr, get_args(IdRule)))}, got {rule!r}")
    if rule == "exact":
        return list(names)
    if rule == "stem":
        return path_ids([name.replace("\\", "/").rpartition("/")[2] for name in names])
    try:
        return path_ids(names, base)
    except InputError as error:
        raise InputError(
            f"{str(error).partition(';')[0]}; {option('ids', 'stem')} takes the files' names alone"
        ) from error


def path_ids(paths: Sequence[str], base: str | os.PathLike[str] | None = None) -> list[str]:
    r"""Return files' ids: their paths with slashes, without a video's suffix; absolute ones from a common folder on.

    Letters that can be written in two ways in Unicode are composed (NFC): file systems differ in which they give.

    Args:
        paths: The files, as a list names them.
        base: The folder that the list's relative paths start from; absolute paths in it count from there on too, so
            that a video has one id in every list.

    Raises:
        InputError: A path leads out of the data's folder.

    Example:
        >>> path_ids(["run/a.mp4", "run/b.v2", "./swim\\c.AVI"])
        ['run/a', 'run/b.v2', 'swim/c']
        >>> path_ids(["/data/val/a.mp4", "/data/val/x/b.mp4"])
        ['a', 'x/b']
        >>> path_ids(["/data/val/run/a.mp4"]), path_ids(["/data/val/run/a.mp4"], "/data/val")
        (['a'], ['run/a'])
    """
    if not any("/" in path or "\\" in path or "." in path for path in paths):  # plain ids: nothing to take apart
        return [unicodedata.normalize("NFC", path) for path in paths]
    if base is not None:
        root = os.path.abspath(base)
        inside = [os.path.isabs(path) and PurePosixPath(os.path.normpath(path)).is_relative_to(root) for path in paths]
        paths = [os.path.relpath(path, root) if own else path for path, own in zip(paths, inside, strict=True)]
    pure = [PurePosixPath(unicodedata.normalize("NFC", path).replace("\\", "/")) for path in paths]
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
