"""Check whole caches, set damaged parts aside, and join many parts into one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from vidfuse._files import fsync_folder, make_folder, publish, sweep
from vidfuse.cache.format import Part, encode_part, open_part, refusal
from vidfuse.cache.meta import META_NAME, read_meta
from vidfuse.cache.reader import PART_SUFFIX, LogitCache, list_parts, open_cache, part_names
from vidfuse.cache.shards import Folders, find_files, sub_folders
from vidfuse.errors import CacheCorruptError, CacheError, CacheFormatError, InputError

__all__ = ["QUARANTINE", "Problem", "VerifyReport", "consolidate", "verify"]

QUARANTINE: Final = "quarantine"
_OURS: Final = ("part-", "joined-")  # beside other files, such as a recipe's arrays, where a description was lost
_DAMAGE: Final = (CacheCorruptError, CacheFormatError)  # what a file's own bytes show; anything else ends the check


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a cache.

    Attributes:
        path: The file or folder.
        kind: The error's name, such as "CacheCorruptError".
        message: What is wrong.
        moved_to: Where the file was set aside, or None.
    """

    path: Path
    kind: str
    message: str
    moved_to: Path | None = None


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        caches: The caches that were checked.
        parts: How many parts were read and are as they were written.
        videos: How many videos these hold.
        bytes: How many bytes were read.
        problems: What is wrong, with nothing left out.
        swept: Temporaries of dead writers that were removed.
    """

    caches: tuple[Path, ...]
    parts: int
    videos: int
    bytes: int
    problems: tuple[Problem, ...]
    swept: tuple[Path, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{len(self.caches)} caches, {self.parts} parts, {self.videos} videos, {self.bytes} bytes verified"]
        for problem in self.problems:
            aside = "" if problem.moved_to is None else f" (moved to {problem.moved_to})"
            lines.append(f"{problem.kind}: {problem.message}{aside}")
        return "\n".join(lines)


def _cache_folders(source: Folders) -> list[Path]:
    """Return every cache in a folder, or in its sub-folders, or in theirs; also one that has lost its description."""
    found: list[Path] = []
    for root in find_files(source):
        inside = _caches_within(root, depth=2)
        if not inside:
            raise InputError(f"{root}: expected a logit cache, a folder of them, or shards of these; found none")
        found += [path for path in inside if path not in found]
    return found


def _caches_within(folder: Path, depth: int) -> list[Path]:
    if not folder.is_dir():
        return []
    if (folder / META_NAME).exists() or any(name.startswith(_OURS) for name in part_names(folder)):
        return [folder]
    return [] if not depth else [path for sub in sub_folders(folder) for path in _caches_within(sub, depth - 1)]


def verify(folder: Folders, quarantine: bool = False) -> VerifyReport:
    """Read every byte of one cache, of a folder of them, or of shards of these, and report all that is wrong.

    What keeps a file from being read (no permission, no memory, too many open files, a failing disk) is no damage: it
    ends the call. Parts are moved after everything was read, and where one cannot be moved, the others are put back.

    Args:
        folder: A cache, a folder with one cache a member, or shards of these: several folders, a pattern, or a folder
            that holds them.
        quarantine: Move damaged and foreign parts, and the newer of two that contradict each other, into the
            cache's sub-folder ``quarantine``; resuming then recomputes their videos only. Nothing is deleted.

    Raises:
        InputError: There is no cache.
        OSError, MemoryError: Something cannot be read or moved; every part is where it was.
        CacheConflictError: A part was removed or replaced meanwhile.
    """
    good: list[Part] = []
    problems: list[Problem] = []
    damaged: list[Path] = []
    try:
        folders = _cache_folders(folder)
        swept = [path for cache in folders for path in sweep(cache)]
        for cache in folders:
            parts, found = _check(cache)
            good.extend(parts)
            problems.extend(found)
            damaged.extend(problem.path for problem in found if problem.path not in (cache, cache / META_NAME))
        size = sum(part.path.stat().st_size for part in good)
        moved = _set_aside(damaged) if quarantine else {}
    except OSError as error:
        raise refusal(error, Path(str(folder)), "this is no damage, and no part was moved: ") from error
    except MemoryError as error:
        raise MemoryError(f"{folder}: out of memory; this is no damage, and no part was moved: free some") from error
    problems = [replace(problem, moved_to=moved.get(problem.path)) for problem in problems]
    return VerifyReport(tuple(folders), len(good), sum(len(part) for part in good), size, tuple(problems), tuple(swept))


def _check(cache: Path) -> tuple[list[Part], list[Problem]]:
    """Read one cache, and return its good parts and what is wrong: its description, its parts, or the whole."""
    problems = []
    parts = []
    try:
        if read_meta(cache) is None:
            problems.append(Problem(cache / META_NAME, "CacheFormatError", f"{cache / META_NAME} is missing"))
    except _DAMAGE as error:
        problems.append(Problem(cache / META_NAME, type(error).__name__, str(error)))
    for path in list_parts(cache):
        try:
            part = open_part(path, hold=False)
            part.verify()
            parts.append(part)
        except _DAMAGE as error:
            problems.append(Problem(path, type(error).__name__, str(error)))
    for part, message in _contradictions(parts):
        parts.remove(part)
        problems.append(Problem(part.path, "CacheConflictError", message))
    if parts and not problems:
        try:
            open_cache(cache)
        except CacheError as error:
            problems.append(Problem(cache, type(error).__name__, str(error)))
    return parts, problems


def _set_aside(paths: list[Path]) -> dict[Path, Path]:
    """Move parts into their caches' quarantine, all of them or none, and return where each one is now."""
    moved: dict[Path, Path] = {}
    try:
        for path in paths:
            shelf = path.parent / QUARANTINE
            make_folder(shelf)
            number = 0
            while os.path.lexists(target := shelf / f"{path.name}.{number}"):
                number += 1
            os.rename(path, target)
            moved[path] = target
        for folder in dict.fromkeys(path.parent for path in moved):
            fsync_folder(folder / QUARANTINE)
            fsync_folder(folder)
    except OSError:
        for path, target in moved.items():
            if not os.path.lexists(path):  # else a writer has written the part anew
                os.rename(target, path)
        raise
    return moved


def _contradictions(parts: list[Part]) -> Iterator[tuple[Part, str]]:
    """The parts that hold other bytes than an older part for the same video."""
    first: dict[str, tuple[Part, int]] = {}
    for part in sorted(parts, key=lambda p: (p.path.stat().st_mtime_ns, p.path.name)):
        clash = None
        for row, name in enumerate(part.ids.tolist()):
            known, at = first.setdefault(name, (part, row))
            if known is part:
                continue
            same = part.scores()[row].tobytes() == known.scores()[at].tobytes()
            if part.labels is not None and known.labels is not None:
                same = same and part.labels[row] == known.labels[at]
            if not same:
                clash = clash or f"{part.path}: video {name!r} has other scores than in {known.path.name} " + (
                    f"(digests {part.digest} and {known.digest})"
                )
        if clash:
            for name, (owner, _) in list(first.items()):
                if owner is part:
                    del first[name]
            yield part, clash


def consolidate(folder: Folders) -> list[LogitCache]:
    """Join each cache's parts into one, so that its scores are one memory-mapped array in the order of its ids.

    The joined part is published before the old ones are removed: a crash in between leaves both, which hold the same
    bytes and read as one. Stacks that were loaded before keep their files while they are open, as many as they hold.

    Args:
        folder: A cache, a folder with one cache a member, or shards of these, as in `verify`. Unfinished caches are
            joined as far as they are.

    Returns:
        The caches, opened again.

    Raises:
        CacheCorruptError: A part is not what was written; nothing is removed.
    """
    caches = []
    for path in _cache_folders(folder):
        cache = open_cache(path, partial=True)
        if len(cache.parts) > 1:
            _join(cache)
        caches.append(open_cache(path, partial=True))
    return caches


def _join(cache: LogitCache) -> None:
    for part in cache.parts:
        part.verify()
    content = encode_part(cache.ids, np.asarray(cache.scores), cache.labels, cache.kind)
    path = cache.folder / f"joined-{content.digest[:32]}{PART_SUFFIX}"
    publish(path, content.body, content)
    joined = open_part(path)
    joined.verify()
    for part in cache.parts:
        if part.path != path:
            with suppress(FileNotFoundError):
                part.path.unlink()
    fsync_folder(cache.folder)
