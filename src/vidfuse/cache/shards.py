"""Which caches belong together: one folder of members, or several, the shards of one set of videos.

    caches/val/              a folder of members       caches/train/              a parent of shards
      swin/meta.json         [{swin, x3d}]               shard0/swin/meta.json    [{swin, x3d}, {swin, x3d}, ...]
      x3d/meta.json                                      shard0/x3d/meta.json
                                                         shard1/swin/meta.json

What a folder is, is seen from what it holds. A parent's sub-folders are shards only where their names differ in nothing
but numbers: `train`, `val` and `test` are no shards of one set, and are never mixed because they stand side by side.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final

from vidfuse._checks import did_you_mean, first_few
from vidfuse._unfinished import PARTIAL, is_unfinished
from vidfuse.cache.meta import META_NAME
from vidfuse.errors import InputError

__all__ = ["Folders", "by_number", "find_files", "find_shards", "shard_name", "sub_folders", "without_numbers"]

Folders = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A folder, a pattern such as "caches/shard*", or several of them, in their order."""

_NUMBER: Final = re.compile(r"(\d+)")


def find_shards(source: Folders | Mapping[str, Folders]) -> list[dict[str, Path]]:
    """Return the shards that are meant, in order, each as {member: its cache's folder}.

    ==========================  ===================================================================================
    a folder with               is
    ==========================  ===================================================================================
    `meta.json`                 one cache, whose member has the folder's name
    caches                      the members of one set of videos
    numbered folders of caches  a parent of shards, in the order of these numbers
    anything else               an error: name the folders, or give a pattern
    ==========================  ===================================================================================

    Args:
        source: A folder, a pattern, several of them, or {member: its caches}, one or several in the same way.

    Raises:
        InputError: No cache is found, a shard is not finished or given twice, or what a folder holds can be understood
            in two ways.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for cache in ("shard10/swin", "shard2/swin", "shard2/x3d"):
        ...     (root / cache).mkdir(parents=True)
        ...     _ = (root / cache / META_NAME).write_text("{}")
        >>> [sorted(str(path.relative_to(root)) for path in shard.values()) for shard in find_shards(root)]
        [['shard2/swin', 'shard2/x3d'], ['shard10/swin']]
        >>> [list(shard) for shard in find_shards({"mine": [root / "shard10/swin"]})]
        [['mine']]
    """
    if isinstance(source, Mapping):
        listed = {
            member: [cache for path in find_files(own, folders=True) for cache in _caches_in(path)]
            for member, own in source.items()
        }
        rows = zip_longest(*listed.values())
        shards = [{member: path for member, path in zip(listed, row, strict=True) if path is not None} for row in rows]
    else:
        shards = [shard for folder in find_files(source, folders=True) for shard in _shards_in(folder)]
    _refuse_twice(shards)
    return shards


def _refuse_twice(shards: Sequence[Mapping[str, Path]]) -> None:
    """Refuse a member's cache that is meant twice: under one name, or under two that lead to the same folder."""
    seen: dict[tuple[str, str], Path] = {}
    for shard in shards:
        for member, path in shard.items():
            known = seen.setdefault((member, os.path.realpath(path)), path)
            if known is not path:
                both = f"{path} twice" if str(known) == str(path) else f"{known} and {path}, which are the same folder"
                raise InputError(f"expected each shard once, got {both}; leave one of them out")


def shard_name(shard: Mapping[str, Path]) -> str:
    """Return what an error calls a shard: its folder.

    Example:
        >>> shard_name({"swin": Path("caches/shard2/swin"), "x3d": Path("caches/shard2/x3d")})
        'caches/shard2'
    """
    parents = {path.parent for path in shard.values()}
    return str(parents.pop()) if len(parents) == 1 else first_few(map(str, shard.values()))


def _caches_in(path: Path) -> list[Path]:
    """Return one member's caches: the folder itself, or those that it holds."""
    inside = [] if _is_cache(path) else [entry for entry in sub_folders(path) if _is_cache(entry)]
    if inside:
        _refuse_without_cache(path, [entry.name for entry in inside])
    return inside or [path]


def _refuse_without_cache(root: Path, shards: Collection[str]) -> None:
    """Refuse what is called as the shards in a folder are and holds no cache: left out, its videos would be missed.

        shard0  shard1    shards
        shard2            an empty folder, or a link that leads nowhere
        shard3.partial    a prediction that is not finished

    Raises:
        InputError: There is such.
    """
    alike = {without_numbers(name) for name in shards}
    absent = []
    for name in sorted(os.listdir(root), key=by_number):
        shard, path = name.removesuffix(PARTIAL), root / name
        if shard not in shards and without_numbers(shard) in alike and (path.is_dir() or not path.exists()):
            absent.append(name)
    if absent:
        raise InputError(
            f"{root}: {first_few(absent)} holds no cache, while {first_few(shards, 2)} "
            f"{'do' if len(shards) > 1 else 'does'}; finish the shard, remove its folder, or name the shards that are "
            "meant"
        )


def _shards_in(root: Path) -> list[dict[str, Path]]:
    if _is_cache(root):
        return [{root.resolve().name: root}]
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder of logit caches, found no folder")
    folders = sub_folders(root)
    caches = {entry.name: entry for entry in sorted(folders) if _is_cache(entry)}
    others = [entry for entry in folders if entry.name not in caches]
    shards = {
        entry.name: own for entry in others if (own := {c.name: c for c in sorted(sub_folders(entry)) if _is_cache(c)})
    }
    if caches and shards:
        raise InputError(
            f"{root}: holds caches ({first_few(caches)}), as a folder of members does, and folders of caches "
            f"({first_few(shards)}), as a parent of shards does; name the shards, or the caches, that are meant one by "
            "one or by a pattern"
        )
    if caches:
        return [caches]
    if not shards:
        raise InputError(
            f"{root}: expected sub-folders with a meta.json each, one a member, or shards that hold such; found none"
        )
    numbered = {without_numbers(name) for name in shards}
    if len(numbered) > 1 or numbered == set(shards):
        raise InputError(
            f"{root}: holds folders of caches that are not numbered as shards are ({first_few(shards)}): name the one "
            "that is meant; or, if they are shards of one set, name each of them or give a pattern"
        )
    _refuse_without_cache(root, shards)
    return list(shards.values())


def _is_cache(folder: Path) -> bool:
    return (folder / META_NAME).exists()


def sub_folders(root: Path) -> list[Path]:
    """Return the sub-folders, those with numbers in their names in the order of these; none of no folder.

    What a writer has under way is not among them.
    """
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    return [path for name in sorted(names, key=by_number) if not is_unfinished(path := root / name)]


def find_files(given: Folders, *, folders: bool = False) -> list[Path]:
    """Return the files or folders that are meant: one, a list, or what a pattern matches, by the numbers in the names.

    Args:
        given: Their names, or patterns.
        folders: Folders are meant, and files beside them that a pattern matches are left out.

    Raises:
        InputError: A pattern matches nothing, or a file is listed twice.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for number in (10, 2):
        ...     _ = (folder / f"fold{number}.npy").write_bytes(b"")
        >>> [path.name for path in find_files(f"{folder}/fold*.npy")]
        ['fold2.npy', 'fold10.npy']
    """
    listed = [given] if isinstance(given, str | os.PathLike) else list(given)
    if not listed:
        raise InputError("expected at least one file, got an empty list")
    found = []
    for name in listed:
        path = Path(name)
        if path.exists() or not glob.has_magic(str(name)):
            found.append(path)
            continue
        matches = sorted(glob.glob(str(name)), key=by_number)
        if folders:
            matches = [match for match in matches if not os.path.isfile(match)]
        if not matches:
            near = did_you_mean(path.name, os.listdir(path.parent) if path.parent.is_dir() else ())
            what = "folders" if folders else "files"
            raise InputError(f"{name}: expected {what}, and none matches this pattern{near}")
        found += map(Path, matches)
    twice = sorted({str(path) for path in found if found.count(path) > 1})
    if twice:
        raise InputError(f"expected each file once, got {first_few(twice)} twice")
    return found


def by_number(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts names by the numbers in them.

    Example:
        >>> sorted(["fold10", "fold2"], key=by_number)
        ['fold2', 'fold10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBER.split(name)]


def without_numbers(name: str) -> str:
    """Return what is left of a name when each number in it is a sign.

    Example:
        >>> without_numbers("fold10") == without_numbers("fold2"), without_numbers("10")
        (True, '#')
    """
    return _NUMBER.sub("#", name)
