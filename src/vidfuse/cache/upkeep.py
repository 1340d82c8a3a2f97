"""Check whole caches, set damaged parts aside, and join many parts into one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import first_few
from vidfuse._files import fsync_folder, make_folder, publish, sweep
from vidfuse._unfinished import PARTIAL, is_unfinished
from vidfuse.cache.format import Part, encode_stream, open_part, refusal
from vidfuse.cache.ids import join_packed, packed_keys, repeated_keys
from vidfuse.cache.meta import META_NAME, read_meta
from vidfuse.cache.reader import PART_SUFFIX, LogitCache, PartsSource, labels_of, list_parts, open_cache, part_names
from vidfuse.cache.shards import Folders, find_files, sub_folders
from vidfuse.errors import (
    CacheConflictError,
    CacheCorruptError,
    CacheError,
    CacheFormatError,
    CacheIncompleteError,
    InputError,
)

__all__ = ["BATCH_BYTES", "QUARANTINE", "Problem", "VerifyReport", "consolidate", "verify"]

QUARANTINE: Final = "quarantine"
BATCH_BYTES: Final = 1 << 30
_BLOCK: Final = 1 << 22  # bytes of scores that are in memory while parts are joined
_OURS: Final = ("part-", "joined-")  # beside other files, such as a recipe's arrays, where a description was lost
_NO_META: Final = "{} is missing; restore it, or remove the folder and write the cache again"
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
        problems: What is wrong, with nothing left out; videos that are missing, too.
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
    for root in find_files(source, folders=True):
        inside = _caches_within(root, depth=2)
        if not inside:
            raise InputError(f"{root}: expected a logit cache, a folder of them, or shards of these; found none")
        found += [path for path in inside if path not in found]
    return found


def _caches_within(folder: Path, depth: int) -> list[Path]:
    if not folder.is_dir() or is_unfinished(folder):
        return []
    if (folder / META_NAME).exists() or any(name.startswith(_OURS) for name in part_names(folder)):
        return [folder]
    return [] if not depth else [path for sub in sub_folders(folder) for path in _caches_within(sub, depth - 1)]


def _under_way(source: Folders) -> Iterator[Problem]:
    """Yield the caches that somebody is writing whole beside the others, or that a killed prediction left."""
    for root in find_files(source, folders=True):
        for path in sorted([*root.glob(f"*{PARTIAL}"), *root.glob(f"*/*{PARTIAL}")]):
            if is_unfinished(path) and (path / "output").is_dir():
                message = f"{path}: a cache that is not finished; give the command that writes it again, or remove it"
                yield Problem(path, "CacheIncompleteError", message)


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
    counts = np.zeros(3, dtype=np.int64)  # parts, videos, bytes
    problems: list[Problem] = []
    damaged: list[Path] = []
    try:
        folders = _cache_folders(folder)
        swept = [path for cache in folders for path in sweep(cache)]
        for cache in folders:
            found_here, found = _check(cache)
            counts += found_here
            problems.extend(found)
            damaged.extend(problem.path for problem in found if problem.path not in (cache, cache / META_NAME))
        problems.extend(_under_way(folder))
        moved = _set_aside(damaged) if quarantine else {}
    except OSError as error:
        raise refusal(error, Path(str(folder)), "this is no damage, and no part was moved: ") from error
    except MemoryError as error:
        raise MemoryError(f"{folder}: out of memory; this is no damage, and no part was moved: free some") from error
    problems = [replace(problem, moved_to=moved.get(problem.path)) for problem in problems]
    parts, videos, size = counts.tolist()
    return VerifyReport(tuple(folders), parts, videos, size, tuple(problems), tuple(swept))


def _check(cache: Path) -> tuple[NDArray[np.int64], list[Problem]]:
    """Read one cache, and return how many parts, videos and bytes are good, and what is wrong.

    That is its description, its parts, or the whole.
    """
    problems = []
    parts = []
    seen: set[Path] = set()
    gone: list[tuple[Part, CacheConflictError]] = []
    try:
        if read_meta(cache) is None:
            problems.append(Problem(cache / META_NAME, "CacheFormatError", _NO_META.format(cache / META_NAME)))
    except _DAMAGE as error:
        problems.append(Problem(cache / META_NAME, type(error).__name__, str(error)))
    while listed := [path for path in list_parts(cache) if path not in seen]:  # again, as parts may be joined meanwhile
        for path in listed:
            seen.add(path)
            try:
                part = open_part(path, hold=False)
            except _DAMAGE as error:
                problems.append(Problem(path, type(error).__name__, str(error)))
                continue
            except FileNotFoundError:
                continue  # as if it had been gone before
            try:
                part.verify()
                parts.append(part)
            except _DAMAGE as error:
                problems.append(Problem(path, type(error).__name__, str(error)))
            except CacheConflictError as error:
                gone.append((part, error))
    gone += [(part, CacheConflictError(f"{part.path}: the part is gone")) for part in parts if not part.path.exists()]
    parts = [part for part in parts if part.path.exists()]
    for part, missed in gone:
        if not np.isin(part.ids, np.concatenate([other.ids for other in parts] or [part.ids[:0]])).all():
            raise missed  # else it was joined with others meanwhile
    if repeated_keys([part.packed_ids for part in parts]):
        for part, message in _contradictions(parts):
            parts.remove(part)
            problems.append(Problem(part.path, "CacheConflictError", message))
    counts = np.array([len(parts), sum(map(len, parts)), sum(part.path.stat().st_size for part in parts)])
    if not problems:
        try:
            opened = open_cache(cache)
            if opened.meta.expected_ids is None:
                _check_recomputed(cache, opened.ids)
        except CacheError as error:
            problems.append(Problem(cache, type(error).__name__, str(error)))
    return counts, problems


def _check_recomputed(cache: Path, ids: NDArray[np.str_]) -> None:
    """Refuse a cache, of which nobody said what videos it is to hold, that lacks some of parts which were set aside.

    Raises:
        CacheIncompleteError: It lacks some, or a part that was set aside no longer tells which it held.
    """
    shelf = cache / QUARANTINE
    lacking: set[str] = set()
    unread = []
    for path in sorted(shelf.iterdir()) if shelf.is_dir() else []:
        try:
            lacking.update(open_part(path, hold=False).ids.tolist())
        except _DAMAGE:
            unread.append(path.name)
    lacking.difference_update(ids.tolist())
    if lacking:
        raise CacheIncompleteError(
            f"{cache}: {len(ids)} videos are there, and not {len(lacking)} of parts that were set aside in "
            f"{QUARANTINE}: {first_few(sorted(lacking))}; resume the extraction, or remove {shelf}"
        )
    if unread:
        raise CacheIncompleteError(
            f"{cache}: {len(ids)} videos are there; which ones {first_few(unread)} in {QUARANTINE} held cannot be "
            f"told: remove {shelf} once they are there"
        )


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
            if part.item(row) != known.item(at):
                clash = clash or f"{part.path}: video {name!r} has other scores than in {known.path.name} " + (
                    f"(digests {part.digest} and {known.digest})"
                )
        if clash:
            for name, (owner, _) in list(first.items()):
                if owner is part:
                    del first[name]
            yield part, clash


def consolidate(folder: Folders, *, batch_bytes: int = BATCH_BYTES) -> list[LogitCache]:
    """Join each cache's parts into few, so that its scores are one memory-mapped array in the order of its ids.

    Parts are joined in batches: a batch is published as one part before its old ones are removed, so that a crash in
    between leaves both, which hold the same bytes and read as one. Memory is bounded by some blocks of scores, and the
    disk needs room for one batch more. A cache that fits into one batch becomes one part. Parts that are half a batch
    long stay as they are.

    Writers may go on, and what they publish meanwhile is left alone. Stacks that were loaded before go on too: what
    they have not mapped, they find in the joined parts.

    Args:
        folder: A cache, a folder with one cache a member, or shards of these, as in `verify`. Unfinished caches are
            joined as far as they are.
        batch_bytes: How many bytes of scores one joined part holds at most.

    Returns:
        The caches, opened again.

    Raises:
        InputError: `batch_bytes` is not positive, or there is no cache.
        CacheCorruptError: A part is not what was written; it and the parts of its batch are left as they are.

    Example:
        >>> import tempfile
        >>> from vidfuse.cache.writer import CacheWriter
        >>> folder = tempfile.mkdtemp()
        >>> with CacheWriter(folder, flush_seconds=0) as writer:
        ...     for name in ("a", "b", "c"):
        ...         new = writer.append([name], np.zeros((1, 2)))
        >>> [len(cache.parts) for cache in consolidate(folder)]
        [1]
    """
    if not batch_bytes >= 1:
        raise InputError(f"batch_bytes: expected 1 or more, got {batch_bytes!r}")
    caches = []
    for path in _cache_folders(folder):
        for cache, parts, place in _batches(open_cache(path, partial=True), batch_bytes):
            try:
                _join(cache, parts, place)
            except CacheConflictError:
                if all(part.path.exists() for part in parts):
                    raise  # else somebody joins these parts at the same time
        caches.append(open_cache(path, partial=True))
    return caches


def _batches(cache: LogitCache, batch_bytes: int) -> Iterator[tuple[LogitCache, list[Part], NDArray[np.int64]]]:
    """Yield the parts that are to be joined, and where the cache's order puts each row of each part (N,)."""
    starts = np.cumsum([0, *map(len, cache.parts)])
    place = cache.source.places()
    first = np.minimum.reduceat(place, starts[:-1])
    small = list(range(len(cache.parts)))
    if sum(part.size for part in cache.parts) > batch_bytes:
        small = [number for number in small if cache.parts[number].size < batch_bytes / 2]
    batch: list[int] = []
    for number in [*sorted(small, key=lambda number: first[number]), None]:
        filled = sum(cache.parts[n].size for n in batch)
        if number is None or (batch and filled + cache.parts[number].size > batch_bytes):
            if len(batch) > 1:
                yield (
                    cache,
                    [cache.parts[n] for n in batch],
                    np.concatenate([place[starts[n] : starts[n + 1]] for n in batch]),
                )
            batch = []
        if number is not None:
            batch.append(number)


def _join(cache: LogitCache, parts: list[Part], place: NDArray[np.int64]) -> None:
    """Publish one part with all videos of these, then remove them.

    Args:
        cache: The cache that they are of.
        parts: The parts.
        place: Where the cache's order puts each of their rows; a repeated video's other rows come last.
    """
    for part in parts:
        part.verify()
        part.release()
    packed = join_packed([part.packed_ids for part in parts])
    order = np.argsort(place, kind="stable")
    _, once = np.unique(packed_keys(packed[order]), return_index=True)
    rows = order[np.sort(once)]
    labels = labels_of(parts)
    source = PartsSource(parts, rows, check=False)
    step = max(1, _BLOCK * len(packed) // sum(part.size for part in parts))
    blocks = (source.take(slice(start, min(start + step, len(rows)), 1)) for start in range(0, len(rows), step))
    content = encode_stream(
        packed[rows],
        blocks,
        None if labels is None else labels[rows],
        cache.kind,
        source.dtype,
        source.shape,
    )
    key = hashlib.sha256(packed[rows].tobytes()).hexdigest()[:32]
    path = cache.folder / f"joined-{key}{PART_SUFFIX}"
    if not publish(path, content.body, content) and open_part(path, hold=False).digest != content.digest:
        raise CacheConflictError(
            f"{path}: holds other scores for the same videos; nothing was removed: verify the cache"
        )
    open_part(path, hold=False).verify()
    for part in parts:
        if part.path != path:
            with suppress(FileNotFoundError):
                part.path.unlink()
    fsync_folder(cache.folder)
