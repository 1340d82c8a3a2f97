"""Write a cache: many writers at once, each publishing parts of its own; resume by what is missing.

What is appended waits in memory until it fills a part, and never longer than a number of seconds:

    append ──▶ waiting ──┬─ 64 MiB of scores are there ──▶ part
                         ├─ the first has waited 60 s ───▶ part       by a thread of the writer
                         └─ flush, close, end of Python ─▶ part
"""

from __future__ import annotations

import atexit
import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from threading import RLock, Timer
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import (
    Kind,
    as_dtype,
    as_float_array,
    check_choice,
    check_classes,
    check_ids,
    check_kind,
    check_labels,
    check_scores,
    place,
)
from vidfuse._files import folder_lock, fsync_folder, make_folder, publish, sweep
from vidfuse._files import replace as overwrite
from vidfuse.cache.format import Part, PartBytes, encode_part, item_bytes, open_part
from vidfuse.cache.meta import META_NAME, CacheMeta, check_same_meta, encode_meta, plain_json, read_meta
from vidfuse.cache.reader import PART_SUFFIX, part_names
from vidfuse.errors import CacheConflictError, CacheError, InputError

__all__ = ["FLUSH_SECONDS", "PART_BYTES", "CacheWriter"]

PART_BYTES: Final = 64 << 20
FLUSH_SECONDS: Final = 60.0


class CacheWriter:
    """Append predictions to one member's cache, in parts of a good size; what was appended is soon on disk.

    Several writers, in any number of processes, may append to one folder at once: they never overwrite each other.
    The same video with the same bytes is accepted once; with other bytes it is a conflict, and the first is kept. A
    writer may be used by several threads. It holds the scores of one part in memory, and twice that while it writes.

    Args:
        folder: The cache's folder; it is made where it does not exist.
        classes: The classes' names.
        kind: What the numbers are.
        n_views: The number of views V that every append has; by default as the first append has it.
        view_plan: How views are sampled: any JSON value.
        fingerprint: What identifies the model and its checkpoint: any JSON value.
        dtype: "float32", or "float16" (checked for overflow).
        expected_ids: Every video that the finished cache is to hold, over all writers, in its order. A later writer may
            expect more: it then names all, the known ones and the new, which are put behind.
        part_bytes: Publish a part when its scores take this many bytes; a longer append is cut into such parts.
        flush_seconds: Publish at the latest this long after `append` returned, so that what was appended earlier
            survives a crash. 0 publishes with every append, before it returns.

    Raises:
        CacheConflictError: The folder's cache was begun with another model, view plan or layout.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with CacheWriter(folder, expected_ids=["a", "b"]) as writer:
        ...     new = writer.append(["a"], np.array([[1.0, 2.0]]))
        ...     writer.missing(["a", "b"])
        ['b']
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        kind: Kind = "logits",
        n_views: int | None = None,
        view_plan: Any = None,
        fingerprint: Any = None,
        dtype: str = "float32",
        expected_ids: Iterable[str] | None = None,
        part_bytes: int = PART_BYTES,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self.folder = Path(folder)
        check_choice("dtype", dtype, ("float32", "float16"))
        if not part_bytes >= 1:
            raise InputError(f"part_bytes: expected 1 or more, got {part_bytes!r}")
        if not flush_seconds >= 0:
            raise InputError(f"flush_seconds: expected 0 or more, got {flush_seconds!r}")
        names = None if classes is None else check_classes(classes, len(tuple(classes)))
        expected = None if expected_ids is None else tuple(check_ids(expected_ids).tolist())
        self._meta = CacheMeta(
            kind=check_kind(kind),
            n_classes=0 if names is None else len(names),
            n_views=n_views,
            dtype=dtype,
            labelled=False,
            classes=names,
            fingerprint=plain_json(fingerprint, "fingerprint"),
            view_plan=plain_json(view_plan, "view_plan"),
            expected_ids=expected,
        )
        self._expected = None if expected is None else frozenset(expected)
        self._begun = False
        self._unflushed = False  # whether parts of others were seen whose names may not be on disk yet
        self._known: set[str] = set()  # names of the parts whose videos are in _owners
        self._owners: dict[str, Path] = {}  # which part holds a video
        self._part_bytes, self._flush_seconds = part_bytes, flush_seconds
        self.process = os.getpid()
        self._lock = RLock()
        self._waiting: list[_Batch] = []  # what was appended and is in no part yet
        self._places: dict[str, tuple[_Batch, int]] = {}  # where a video waits
        self._timer: Timer | None = None
        self._conflict: CacheConflictError | None = None
        self._left = False  # whether a `with` block has ended: its error says what could not be written
        make_folder(self.folder)
        sweep(self.folder)
        stored = read_meta(self.folder)
        if stored is not None:
            self._resume(stored)

    def _resume(self, stored: CacheMeta) -> None:
        mine = replace(
            self._meta,
            n_classes=self._meta.n_classes or stored.n_classes,
            n_views=stored.n_views if self._meta.n_views is None else self._meta.n_views,
            labelled=stored.labelled,
        )
        self._begin(self._grown(mine, stored))
        self._refresh()

    def _grown(self, mine: CacheMeta, stored: CacheMeta) -> CacheMeta:
        """Return what the cache says about itself, checked, and with the videos that only this writer expects."""
        own, known = frozenset(mine.expected_ids or ()), frozenset(stored.expected_ids or ())
        if stored.expected_ids is None or not own > known:
            check_same_meta(mine, stored, self.folder)
            return stored
        check_same_meta(replace(mine, expected_ids=None), stored, self.folder)
        with folder_lock(self.folder):
            stored = read_meta(self.folder) or stored  # another may have added to it
            listed = stored.expected_ids or ()
            known = frozenset(listed)
            more = tuple(name for name in mine.expected_ids or () if name not in known)
            stored = replace(stored, expected_ids=listed + more)
            overwrite(self.folder / META_NAME, encode_meta(stored))
        return stored

    def _begin(self, stored: CacheMeta) -> None:
        self._meta, self._begun = stored, True
        if stored.expected_ids is not None:
            self._expected = frozenset(stored.expected_ids)

    def _refresh(self) -> list[Part]:
        """Learn of the parts that any writer has published since, and return them."""
        found = []
        names = part_names(self.folder)
        gone = self._known.difference(names)
        if gone:  # joined with others, or set aside
            self._known -= gone
            self._owners = {video: path for video, path in self._owners.items() if path.name not in gone}
        for name in names:
            if name not in self._known:
                part = _open_if_there(self.folder / name)
                if part is not None:  # else consolidated meanwhile
                    found.append(part)
                    self._unflushed = True
                    self._known.add(name)
                    self._owners.update(dict.fromkeys(part.ids.tolist(), part.path))
        return found

    def _settle(self) -> None:
        """Flush the folder before others' parts are relied on: their writer may have been killed before it did."""
        if self._unflushed:
            fsync_folder(self.folder)
            self._unflushed = False

    def missing(self, ids: Iterable[str] | None = None) -> list[str]:
        """Return which of these ids (by default the expected ones) were not appended yet, in the given order."""
        with self._lock:
            wanted = self._meta.expected_ids if ids is None else check_ids(ids).tolist()
            if wanted is None:
                raise InputError("missing: pass ids, or give the writer expected_ids")
            self._refresh()
            self._settle()
            return [name for name in wanted if name not in self._owners and name not in self._places]

    def append(self, ids: Any, scores: Any, labels: Any = None) -> int:
        """Store predictions: at once where `flush_seconds` is 0, else with the part that they belong to.

        Args:
            ids: The videos' ids (n,).
            scores: Their scores (n, K) or (n, V, K), an array or tensor.
            labels: Their true classes (n,), -1 where one is not known; None where none is.

        Returns:
            How many new videos were published by this call.

        Raises:
            InputError: Scores, ids or labels cannot be what they are said to be.
            CacheConflictError: A video is stored already with other scores.
            OSError: The disk is full or fails; nothing of this call's unfinished part is visible.
        """
        self._left = False
        with self._lock:
            self._tell()
            batch = self._checked(ids, scores, labels)
            self._begin_with(batch)
            if not self._flush_seconds or batch.scores.nbytes >= self._part_bytes:
                return self.flush() + self._store(batch)
            batch = batch.taken(~(self._stored_already(batch) | self._waits_already(batch)))
            if not len(batch.ids):
                return 0
            self._places.update((name, (batch, row)) for row, name in enumerate(batch.ids.tolist()))
            self._waiting.append(batch)
            if sum(own.scores.nbytes for own in self._waiting) >= self._part_bytes:
                return self.flush()
            self._wait()
            return 0

    def flush(self) -> int:
        """Publish what waits, and return how many videos were new.

        Raises:
            CacheConflictError: Another writer stored other scores for a video; what was appended in other calls is
                published all the same.
            OSError: The disk is full or fails; what waits goes on waiting.
        """
        with self._lock:
            self._tell()
            if not self._waiting:
                return 0
            try:
                new = self._store(_Batch.joined(self._waiting))
            except CacheConflictError:
                for batch in self._waiting:
                    with suppress(CacheConflictError):
                        self._store(batch)
                self._rest()
                raise
            self._rest()
            return new

    def close(self) -> None:
        """Publish what waits."""
        self.flush()

    def _wait(self) -> None:
        """See to it that what waits is published in time, also where nothing is appended any more."""
        if self._timer is None:
            self._timer = Timer(self._flush_seconds, self._flush_late)
            self._timer.daemon = True
            self._timer.start()
            _waiting_writers.add(self)

    def _rest(self) -> None:
        """Nothing waits any more."""
        self._waiting, self._places = [], {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        _waiting_writers.discard(self)

    def _tell(self) -> None:
        """Raise what was found while nobody listened."""
        if self._conflict is not None:
            found, self._conflict = self._conflict, None
            raise found

    def _flush_late(self) -> None:
        with self._lock:
            self._timer = None
            try:
                self.flush()
            except CacheConflictError as error:
                self._conflict = error  # for the next call of the user's
            except (OSError, CacheError, MemoryError):
                pass  # tried again, by the user's next call or in as many seconds
            if self._waiting:
                self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = True
        if kind is None:
            self.close()
            return
        with suppress(OSError, CacheError, InputError):  # the error under way is the one to report
            self.flush()

    def __repr__(self) -> str:
        return f"CacheWriter({str(self.folder)!r}, {len(self._owners)} videos stored)"

    def _checked(self, ids: Any, scores: Any, labels: Any) -> _Batch:
        """Check one append, and bring its scores into the dtype that is stored."""
        array = as_float_array(scores, "scores")
        if array.ndim not in (2, 3) or array.shape[-1] < 2 or 0 in array.shape:
            raise InputError(
                f"scores: expected (n, K) or (n, V, K) with at least one video and two classes, got shape {array.shape}"
            )
        names = check_ids(ids, len(array))
        if self._expected is not None:
            strange = [name for name in names.tolist() if name not in self._expected]
            if strange:
                raise InputError(f"ids: {len(strange)} videos are not expected, such as {strange[0]!r}")
        check_scores(array, self._meta.kind, member=self.folder.name, ids=names)
        known = np.full(len(array), -1, dtype=np.int64)
        if labels is not None:
            known = check_labels(labels, len(array), array.shape[-1], names, some=True)
        return _Batch(names, as_dtype(array, np.dtype(self._meta.dtype), names), known)

    def _begin_with(self, batch: _Batch) -> None:
        """Publish `meta.json` with the first append; hold later ones against it."""
        views, classes = batch.scores.shape[1] if batch.scores.ndim == 3 else None, batch.scores.shape[-1]
        if not self._begun:
            if self._meta.n_classes not in (0, classes) or self._meta.n_views not in (None, views):
                raise InputError(
                    f"scores: expected {self._meta.n_classes or 'K'} classes and {self._meta.n_views or 'no'} views, "
                    f"got shape {batch.scores.shape}"
                )
            labelled = bool((batch.labels >= 0).any())
            mine = replace(self._meta, n_classes=classes, n_views=views, labelled=labelled)
            if publish(self.folder / META_NAME, [encode_meta(mine)]):
                self._begin(mine)
                return
            stored = read_meta(self.folder)
            if stored is None:
                raise CacheConflictError(f"{self.folder / META_NAME}: it vanished while it was read; try again")
            self._begin(self._grown(mine, stored))
        if (classes, views) != (self._meta.n_classes, self._meta.n_views):
            raise InputError(
                f"scores: expected (classes, views) {(self._meta.n_classes, self._meta.n_views)} as in the first "
                f"append, got {(classes, views)}"
            )

    def _store(self, batch: _Batch) -> int:
        """Publish a batch in parts of about equal size, each at most `part_bytes` long."""
        count = min(len(batch.ids), -(-batch.scores.nbytes // self._part_bytes))
        edges = [len(batch.ids) * number // count for number in range(count + 1)]
        return sum(self._store_part(batch.taken(slice(*edge))) for edge in pairwise(edges))

    def _store_part(self, batch: _Batch) -> int:
        content = batch.encoded(self._meta.kind)  # its digest is computed during what follows
        self._refresh()
        fresh = ~self._stored_already(batch)
        if not fresh.all():
            self._settle()
        if not fresh.any():
            return 0
        if not fresh.all():
            batch = batch.taken(fresh)
            content = batch.encoded(self._meta.kind)
        names = batch.ids.tolist()
        key = hashlib.sha256("\0".join(names).encode()).hexdigest()[:32]
        path = self.folder / f"part-{key}{PART_SUFFIX}"
        published = publish(path, content.body, content)
        if published:
            self._known.add(path.name)
            self._owners.update(dict.fromkeys(names, path))
        elif (other := _open_if_there(path)) is not None and other.digest != content.digest:
            raise CacheConflictError(
                f"{path}: another writer stored other scores or labels for the same {len(names)} videos: its digest is "
                f"{other.digest}, this one's {content.digest}; the first is kept; "
                "use another folder for other scores"
            )
        # A part with some of the same videos may have appeared since the first look.
        for other in self._refresh():
            if other.path != path:
                self._stored_already(batch, dict.fromkeys(other.ids.tolist(), other.path))
        return len(names) if published else 0

    def _stored_already(self, batch: _Batch, owners: dict[str, Path] | None = None) -> NDArray[np.bool_]:
        """Which videos are stored with these very bytes; other bytes are a conflict."""
        owners = self._owners if owners is None else owners
        stored = np.zeros(len(batch.ids), dtype=bool)
        opened: dict[Path, tuple[Part, dict[str, int]]] = {}
        names = batch.ids.tolist()
        if owners.keys().isdisjoint(names):
            return stored
        for row, name in enumerate(names):
            path = owners.get(name)
            if path is None:
                continue
            if path not in opened:
                part = _open_if_there(path)
                if part is None:  # joined with others since it was seen, or set aside
                    self._refresh()
                    return self._stored_already(batch)
                opened[path] = part, {other: at for at, other in enumerate(part.ids.tolist())}
            part, places = opened[path]
            at = places[name]
            self._check_same(batch.item(row), part.item(at), place(row, batch.ids), "stored")
            stored[row] = True
        return stored

    def _waits_already(self, batch: _Batch) -> NDArray[np.bool_]:
        """Which videos were appended with these very bytes, and are in no part yet; other bytes are a conflict."""
        waits = np.zeros(len(batch.ids), dtype=bool)
        for row, name in enumerate(batch.ids.tolist()):
            if name in self._places:
                other, at = self._places[name]
                self._check_same(batch.item(row), other.item(at), place(row, batch.ids), "appended")
                waits[row] = True
        return waits

    def _check_same(self, mine: bytes, theirs: bytes, video: str, what: str) -> None:
        if mine != theirs:
            raise CacheConflictError(
                f"{self.folder}: {video} is {what} already with other scores or another label: digest "
                f"{hashlib.sha256(theirs).hexdigest()}, this one's {hashlib.sha256(mine).hexdigest()}; the first "
                "is kept; use another folder for other scores"
            )


@dataclass(frozen=True, eq=False)
class _Batch:
    """Checked predictions in the dtype that is stored.

    Attributes:
        ids: The videos' ids (n,).
        scores: (n, K) or (n, V, K).
        labels: int64 (n,), -1 where a label is not known.
    """

    ids: NDArray[np.str_]
    scores: NDArray[Any]
    labels: NDArray[np.int64]

    def taken(self, rows: slice | NDArray[np.bool_]) -> _Batch:
        return _Batch(self.ids[rows], self.scores[rows], self.labels[rows])

    def item(self, row: int) -> bytes:
        return item_bytes(self.scores[row], self.labels[row])

    def encoded(self, kind: Kind) -> PartBytes:
        return encode_part(self.ids, self.scores, self.labels if (self.labels >= 0).any() else None, kind)

    @staticmethod
    def joined(batches: Sequence[_Batch]) -> _Batch:
        return _Batch(
            np.concatenate([batch.ids for batch in batches]),
            np.concatenate([batch.scores for batch in batches]),
            np.concatenate([batch.labels for batch in batches]),
        )


_waiting_writers: set[CacheWriter] = set()


@atexit.register
def _flush_all() -> None:
    """Publish what waits when Python ends, of each writer; a child that was forked leaves it to its parent."""
    failed: list[Exception] = []
    for writer in list(_waiting_writers):
        if writer.process == os.getpid():
            try:
                writer.flush()
            except (OSError, CacheError, MemoryError) as error:
                failed += [] if writer._left else [error]
    if failed:
        raise ExceptionGroup("predictions that waited to be written could not be", failed)


def _open_if_there(path: Path) -> Part | None:
    try:
        return open_part(path)
    except FileNotFoundError:
        return None
