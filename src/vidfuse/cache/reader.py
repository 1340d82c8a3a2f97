"""Open a cache: list its parts, and read scores from them by row."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import Kind, Rows, first_few
from vidfuse.cache.format import Part, open_part
from vidfuse.cache.ids import join_packed, pack_texts, packed_keys, unpack_ids
from vidfuse.cache.meta import CacheMeta, read_meta
from vidfuse.errors import CacheConflictError, CacheError, CacheFormatError, CacheIncompleteError, InputError, option

__all__ = [
    "PART_SUFFIX",
    "LogitCache",
    "PartsSource",
    "checking_ahead",
    "labels_of",
    "list_parts",
    "open_cache",
    "part_names",
]

PART_SUFFIX: Final = ".safetensors"
_MAPPED: Final = 1 << 27  # bytes of scores that stay mapped in, over all caches, while others are read
_AHEAD: Final = 1 << 31  # bytes of scores that are checked and not yet used: the system still has them in memory
_PAUSE: Final = 0.01  # seconds until who checks ahead looks again whether there is something to do

_checked_ahead: ContextVar[list[Part] | None] = ContextVar("checked_ahead", default=None)

_mapped: dict[int, tuple[ref[Part], int]] = {}  # by the part's address: the part, and its bytes; the oldest first


def _keep_mapped(part: Part, size: int) -> None:
    """Note that a part's pages are mapped in, and release those of the oldest parts where it gets too much."""
    key = id(part)
    _mapped[key] = ref(part, lambda _: _mapped.pop(key, None)), size
    total = sum(held for _, held in list(_mapped.values()))
    for oldest in list(_mapped)[:-1]:  # copies: other threads read, and parts that are no longer used leave
        if total <= _MAPPED:
            break
        if (entry := _mapped.pop(oldest, None)) is not None:
            total -= entry[1]
            if (found := entry[0]()) is not None:
                found.release()


class PartsSource:
    """Scores that are spread over parts; row r of the cache is row `physical[r]` of the parts one after the other.

    Pickling sends the parts' paths and the row numbers, no scores.
    """

    def __init__(self, parts: Sequence[Part], physical: NDArray[np.int64] | None, *, check: bool = True) -> None:
        self._parts, self._physical, self._check = tuple(parts), physical, check
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in self._parts])]).astype(np.int64)
        self._bounds = self._starts.tolist()
        self._n = int(self._starts[-1]) if physical is None else len(physical)
        self._moved: tuple[Part, NDArray[np.floating[Any]]] | None = None  # the last part that others were joined with

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N, K) or (N, V, K)."""
        return (self._n, *self._parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the stored scores."""
        return self._parts[0].dtype

    @property
    def in_order(self) -> bool:
        """Whether the rows are those of the parts, one after the other."""
        return self._physical is None

    def places(self) -> NDArray[np.int64]:
        """Where the cache's order puts each row of the parts; behind all for one that it does not read, a repeat."""
        total = int(self._starts[-1])
        if self._physical is None:
            return np.arange(total)
        place = np.full(total, total, dtype=np.int64)
        place[self._physical] = np.arange(len(self._physical))
        return place

    def take(self, rows: Rows) -> NDArray[np.floating[Any]]:
        """Scores of these rows: a view where they lie one after the other in one part, else a copy."""
        pieces = self.pieces(rows)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def pieces(self, rows: Rows) -> list[NDArray[np.floating[Any]]]:
        """Scores of these rows: a view of every part in which they lie one after the other, else one copy."""
        if self._physical is not None:
            rows = self._physical[rows]
        if isinstance(rows, slice):
            return list(self._run(rows.start, rows.stop))
        rows = np.where(rows < 0, rows + self._starts[-1], rows)  # -1: a video that this member lacks
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        order = None if (rows[1:] >= rows[:-1]).all() else np.argsort(rows, kind="stable")
        ascending = rows if order is None else rows[order]
        owner = np.searchsorted(self._starts, ascending, side="right") - 1
        numbers, begin = np.unique(owner, return_index=True)
        for number, low, high in zip(numbers.tolist(), begin.tolist(), [*begin[1:].tolist(), len(rows)], strict=True):
            places = slice(low, high) if order is None else order[low:high]
            out[places] = self._read(number).take(ascending[low:high] - self._starts[number], axis=0)
        return [out]

    def _run(self, start: int, stop: int) -> Iterator[NDArray[np.floating[Any]]]:
        bounds = self._bounds
        number = bisect_right(bounds, start) - 1
        if start >= stop:
            yield np.empty((0, *self.shape[1:]), dtype=self.dtype)
        while start < stop:
            end = min(bounds[number + 1], stop)
            piece = self._read(number)[start - bounds[number] : end - bounds[number]]
            yield piece if self._parts[number].held else piece.copy()  # else each piece keeps a file open
            start, number = end, number + 1

    def _read(self, number: int) -> NDArray[np.floating[Any]]:
        """Return one part's mapped scores; parts that were first read some time ago leave the process's memory."""
        part = self._parts[number]
        try:
            scores = part.scores()
        except CacheConflictError:
            moved = self._moved
            if moved is None or moved[0] is not part:
                if (found := _find_moved(part, check=self._check)) is None:
                    raise
                self._moved = moved = (part, found)
            return moved[1]
        if part.held and id(part) not in _mapped:
            _keep_mapped(part, scores.nbytes)
        return scores

    def restricted(self, rows: Rows) -> tuple[PartsSource, Rows]:
        """The parts that hold these rows, and the rows where they stand in them: what is little to send and to open."""
        if self._physical is None and isinstance(rows, slice):
            first, last = bisect_right(self._bounds, rows.start) - 1, bisect_left(self._bounds, rows.stop)
            offset = self._bounds[first]
            source = PartsSource(self._parts[first:last], None, check=self._check)
            return source, slice(rows.start - offset, rows.stop - offset, 1)
        physical = np.asarray(rows if self._physical is None else self._physical[rows])
        owner = np.searchsorted(self._starts, physical, side="right") - 1  # -1: a video that this member lacks
        needed = np.unique(np.maximum(owner, 0))
        parts = [self._parts[number] for number in needed.tolist()]
        shift = np.zeros(len(self._parts), dtype=np.int64)
        shift[needed] = np.cumsum([0, *(len(part) for part in parts[:-1])]) - self._starts[needed]
        physical = np.where(owner < 0, -1, physical + shift[owner])
        return PartsSource(parts, physical, check=self._check), slice(0, len(physical), 1)

    def identity(self) -> Iterator[bytes]:
        """Yield what tells these scores from others: the parts' digests, and the rows in them."""
        yield from (part.digest.encode() for part in self._parts)
        if self._physical is not None:
            yield self._physical.tobytes()

    def __reduce__(self) -> tuple[Any, ...]:
        paths = [(os.path.abspath(part.path), part.digest) for part in self._parts]  # workers may start elsewhere
        return _reopen, (paths, self._physical, self._check)


@contextmanager
def checking_ahead() -> Iterator[None]:
    """Check the parts of the caches that are opened in this context on another thread, before they are used.

    It is for whoever reads all of them, in their order. What is found wrong is raised where the part is used, not here.

        this thread    open a ─ open b ─ open c ─ open d ─ use a ─ use b ─ use c ─ use d
        the other             └ check a ── check b ── check c ─╌╌╌─ check d

    It waits where so much is checked and not yet used that the system may not keep it in memory until then.
    """
    parts, ended = list[Part](), Event()

    def run() -> None:
        unused, size = list[Part](), 0
        for number in count():
            while (number == len(parts) or size > _AHEAD) and not ended.wait(_PAUSE):
                unused = [part for part in unused if not part.used]
                size = sum(part.size for part in unused)
            if ended.is_set():
                return
            part = parts[number]
            if number + 1 < len(parts):
                parts[number + 1].expect()
            with suppress(CacheError, OSError):
                part.check()
            if not part.used:
                part.release()
            unused.append(part)
            size += part.size

    outer = _checked_ahead.set(parts)
    thread = Thread(target=run, name="checking ahead", daemon=True)
    thread.start()
    try:
        yield
    finally:
        _checked_ahead.reset(outer)
        ended.set()
        thread.join()


def _find_moved(part: Part, *, check: bool) -> NDArray[np.floating[Any]] | None:
    """Return the scores of a part that is gone, from the one that it was joined into: the same bytes, or None."""
    wanted = packed_keys(part.packed_ids)
    for other in _open_parts(part.path.parent, check):
        known = packed_keys(other.packed_ids)
        order = np.argsort(known, kind="stable")
        rows = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
        if (known[rows] == wanted).all() and part.holds(scores := other.scores()[rows]):
            return scores
    return None


def _reopen(paths: list[tuple[str, str]], physical: NDArray[np.int64] | None, check: bool) -> PartsSource:
    parts = []
    for path, digest in paths:
        try:
            part = open_part(Path(path), check=check)
        except FileNotFoundError as error:
            raise CacheConflictError(
                f"{path}: the part is gone, joined or set aside, or this machine does not see it; load the stack again "
                "from a folder that all workers see"
            ) from error
        if part.digest != digest:
            raise CacheConflictError(f"{path}: expected the part with digest {digest}, found {part.digest}; load again")
        parts.append(part)
    return PartsSource(parts, physical, check=check)


@dataclass(frozen=True, eq=False)
class LogitCache:
    """One member's predictions on disk, opened: what it says about itself, its videos, and their scores.

    Attributes:
        folder: Where it is.
        meta: What all its parts have in common.
        packed_ids: The videos' ids as they are stored, uint8 (N, W), in the order of the expected ids, or sorted where
            those are not known.
        labels: True classes (N,), int64, -1 where one is not known; None where none is.
        source: The scores, read by row.
        parts: Its parts.
    """

    folder: Path
    meta: CacheMeta
    packed_ids: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    source: PartsSource
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return len(self.packed_ids)

    @cached_property
    def ids(self) -> NDArray[np.str_]:
        """The videos' ids (N,)."""
        return unpack_ids(self.packed_ids)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes' names, or None."""
        return self.meta.classes

    @property
    def kind(self) -> Kind:
        """What the numbers are."""
        return self.meta.kind

    @cached_property
    def scores(self) -> NDArray[np.floating[Any]]:
        """All scores (N, [V,] K) in the order of `ids`; mapped without a copy where they lie in one part."""
        return self.source.take(slice(0, len(self), 1))

    def lean(self, other: LogitCache | None) -> LogitCache:
        """Return the cache as a member of a stack, where what it says of each video would take more than its scores.

        It says no longer which videos it expects. Ids and labels that are another's, too, are held once:

            slowfast   part │ ids     swin   part │ ids            slowfast   part │ ids
                                      ╰────────────────   becomes           ╭─────╯
                                                           swin   part ─────╯

        Args:
            other: Another member's cache of these videos, it seems; None for the first.
        """
        ids, labels = self.packed_ids, self.labels
        if other is not None and np.array_equal(ids, other.packed_ids):
            ids = other.packed_ids
            if labels is not None and other.labels is not None and np.array_equal(labels, other.labels):
                labels = other.labels
        if self.source.in_order:
            starts = np.cumsum([0, *map(len, self.parts)]).tolist()
            for part, start, stop in zip(self.parts, starts, starts[1:], strict=False):
                part.packed_ids = ids[start:stop]
                part.labels = None if part.labels is None or labels is None else labels[start:stop]
        self.release()
        return replace(self, meta=replace(self.meta, expected_ids=None), packed_ids=ids, labels=labels)

    def release(self) -> None:
        """Let what was read of the parts leave this process's memory; it is read again where it is used again."""
        for part in self.parts:
            part.release()

    @property
    def missing(self) -> list[str]:
        """The expected ids that are not there yet; empty where nothing is known to be expected."""
        present = set(self.ids.tolist())
        return [name for name in self.meta.expected_ids or () if name not in present]

    def __repr__(self) -> str:
        expected = "" if self.meta.expected_ids is None else f" of {len(self.meta.expected_ids)}"
        views = "" if self.meta.n_views is None else f" x {self.meta.n_views} views"
        return (
            f"LogitCache({str(self.folder)!r}: {len(self)}{expected} videos{views} x {self.meta.n_classes} classes, "
            f"{self.meta.kind}, {self.meta.dtype}, {len(self.parts)} parts)"
        )


def list_parts(folder: Path) -> list[Path]:
    """Return the parts' paths, sorted by name; temporaries and other files are not parts."""
    return [folder / name for name in part_names(folder)]


def part_names(folder: Path) -> list[str]:
    """Return the parts' names, sorted."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(PART_SUFFIX) and not entry.name.startswith(".")]
    return sorted(names)


def open_cache(folder: str | os.PathLike[str], *, partial: bool = False, verify: bool = True) -> LogitCache:
    """Open one member's cache.

    Args:
        folder: The folder that holds `meta.json` and the parts.
        partial: Accept a cache that does not hold every expected video.
        verify: Check each part's scores at their first use in this process; headers, ids and labels are always
            checked.

    Raises:
        InputError: There is no cache.
        CacheIncompleteError: Videos are missing, and `partial` was not asked for.
        CacheFormatError: A file is not a part, or is of a newer version.
        CacheCorruptError: A part is not what was written.
        CacheConflictError: Two parts hold different scores for the same video.
    """
    path = Path(folder)
    while True:
        meta = read_meta(path)
        if meta is None:
            raise InputError(f"{path}: expected a logit cache (a folder with meta.json), found none")
        parts = _open_parts(path, verify)
        try:
            return _opened(path, meta, parts, partial, verify)
        except (CacheFormatError, CacheIncompleteError):
            if read_meta(path) == meta:  # else the list of expected videos has grown meanwhile
                raise


def _opened(path: Path, meta: CacheMeta, parts: list[Part], partial: bool, verify: bool) -> LogitCache:
    expected = meta.expected_ids
    if not parts:
        raise CacheIncompleteError(f"{path}: {_of(0, expected)} videos are there; resume the extraction")
    _check_belong(parts, meta)
    parts.sort(key=lambda part: part.packed_ids[0].tobytes())
    packed = join_packed([part.packed_ids for part in parts])
    physical = _order(packed, parts, meta, path)
    packed = packed if physical is None else packed[physical]
    if expected is not None and len(packed) < len(expected) and not partial:
        lacking = first_few(sorted(set(expected) - set(unpack_ids(packed).tolist())))
        raise CacheIncompleteError(
            f"{path}: {_of(len(packed), expected)} videos are there; missing: {lacking}; resume the extraction, or "
            f"read what is there with {option('partial', True)}"
        )
    labels = labels_of(parts)
    if labels is not None and physical is not None:
        labels = labels[physical]
    source = PartsSource(parts, physical, check=verify)
    cache = LogitCache(path, meta, packed, labels, source, tuple(parts))
    cache.release()  # ids and labels, which were read
    if verify and (ahead := _checked_ahead.get()) is not None:
        ahead += parts
    return cache


def labels_of(parts: Sequence[Part]) -> NDArray[np.int64] | None:
    """The labels of parts one after another, -1 where one is not known; None where none is."""
    if len(parts) == 1 or all(part.labels is None for part in parts):
        return parts[0].labels
    return np.concatenate([np.full(len(part), -1) if part.labels is None else part.labels for part in parts])


def _open_parts(folder: Path, check: bool) -> list[Part]:
    """Open every part; where one vanishes meanwhile, because the cache is consolidated, look again."""
    while True:
        listed = list_parts(folder)
        try:
            return [open_part(path, check=check) for path in listed]
        except FileNotFoundError:
            if list_parts(folder) == listed:
                raise


def _of(count: int, expected: tuple[str, ...] | None) -> str:
    return str(count) if expected is None else f"{count} of {len(expected)}"


def _check_belong(parts: Sequence[Part], meta: CacheMeta) -> None:
    shape = (meta.n_classes,) if meta.n_views is None else (meta.n_views, meta.n_classes)
    wanted = (meta.kind, np.dtype(meta.dtype), shape)
    for part in parts:
        found = (part.kind, part.dtype, part.shape[1:])
        if wanted != found:
            raise CacheFormatError(
                f"{part.path}: expected (kind, dtype, shape) {wanted} as meta.json says, got {found}; "
                "the part belongs to another cache: remove it"
            )


def _order(packed: NDArray[np.uint8], parts: Sequence[Part], meta: CacheMeta, folder: Path) -> NDArray[np.int64] | None:
    """Rows of the concatenated parts in the cache's order, each video once; None where they stand so already."""
    keys = packed_keys(packed)
    wanted = None if meta.expected_ids is None else pack_texts(meta.expected_ids)
    if wanted is not None:
        if np.array_equal(wanted, packed):
            return None
    elif bool(np.all(keys[1:] > keys[:-1])):
        return None
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    if same.any():
        _check_repeats(parts, order[:-1][same], order[1:][same], folder)
        order = order[np.concatenate([[True], ~same])]
    if wanted is None:
        return order
    present, expected = keys[order], packed_keys(wanted)
    at = np.minimum(np.searchsorted(present, expected), len(present) - 1)
    found = present[at] == expected
    if int(found.sum()) != len(present):
        strange = np.setdiff1d(present, expected)
        raise CacheFormatError(
            f"{folder}: videos that meta.json does not expect: {first_few(key.decode() for key in strange.tolist())}"
        )
    return order[at[found]]


def _check_repeats(parts: Sequence[Part], rows: NDArray[np.int64], others: NDArray[np.int64], folder: Path) -> None:
    """Two writers may both have published a video; that is harmless where they agree to the bit."""
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])

    def item(row: int) -> tuple[Part, bytes]:
        number = int(np.searchsorted(starts, row, side="right")) - 1
        return parts[number], parts[number].item(row - int(starts[number]))

    for row, other in zip(rows.tolist(), others.tolist(), strict=True):
        (first, content), (second, again) = item(row), item(other)
        if content != again:
            name = str(np.concatenate([part.ids for part in parts])[row])
            raise CacheConflictError(
                f"{folder}: two parts hold different scores for video {name!r}: {first.path.name} "
                f"(digest {first.digest}) and {second.path.name} (digest {second.digest}); "
                "`vidfuse verify --quarantine` keeps the older one"
            )
