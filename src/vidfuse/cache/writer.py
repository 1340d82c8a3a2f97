"""Write a cache: many writers at once, each publishing parts of its own; resume by what is missing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import (
    Kind,
    as_float_array,
    check_classes,
    check_ids,
    check_kind,
    check_labels,
    check_scores,
    place,
)
from vidfuse._files import fsync_folder, make_folder, publish, sweep
from vidfuse.cache.format import Part, encode_part, open_part
from vidfuse.cache.meta import META_NAME, CacheMeta, check_same_meta, encode_meta, plain_json, read_meta
from vidfuse.cache.reader import PART_SUFFIX, part_names
from vidfuse.errors import CacheConflictError, CacheError, InputError

__all__ = ["ROWS_PER_PART", "CacheWriter"]

ROWS_PER_PART: Final = 1024


class CacheWriter:
    """Append predictions to one member's cache; what `append` returned from survives a crash.

    Several writers, in any number of processes, may append to one folder at once: they never overwrite each other.
    The same video with the same bytes is accepted once; with other bytes it is a conflict, and the first is kept.

    Args:
        folder: The cache's folder; it is made where it does not exist.
        classes: The classes' names.
        kind: What the numbers are.
        n_views: The number of views V that every append has; by default as the first append has it.
        view_plan: How views are sampled: any JSON value.
        fingerprint: What identifies the model and its checkpoint: any JSON value.
        dtype: "float32", or "float16" (checked for overflow).
        expected_ids: Every video that the finished cache is to hold, over all writers, in its order.
        buffer_rows: Collect this many videos before a part is published; until then, or until `flush`, they are not
            safe. 0 publishes with every append.

    Raises:
        CacheConflictError: The folder's cache was begun with another model, view plan or layout.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with CacheWriter(folder, expected_ids=["a", "b"]) as writer:
        ...     writer.append(["a"], np.array([[1.0, 2.0]]))
        ...     writer.missing(["a", "b"])
        1
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
        buffer_rows: int = 0,
    ) -> None:
        self.folder = Path(folder)
        if dtype not in ("float32", "float16"):
            raise InputError(f"dtype: expected 'float32' or 'float16', got {dtype!r}")
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
        self._buffer_rows = buffer_rows
        self._pending: list[tuple[NDArray[np.str_], NDArray[Any], NDArray[np.int64] | None]] = []
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
        check_same_meta(mine, stored, self.folder)
        self._begin(stored)
        self._refresh()

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
                with suppress(FileNotFoundError):  # consolidated meanwhile
                    part = open_part(self.folder / name)
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
        """Return which of these ids (by default the expected ones) are not stored yet, in the given order."""
        wanted = self._meta.expected_ids if ids is None else check_ids(ids).tolist()
        if wanted is None:
            raise InputError("missing: pass ids, or give the writer expected_ids")
        self._refresh()
        self._settle()
        pending = {name for part_ids, _, _ in self._pending for name in part_ids.tolist()}
        return [name for name in wanted if name not in self._owners and name not in pending]

    def append(self, ids: Any, scores: Any, labels: Any = None) -> int:
        """Store predictions; when this returns (and nothing is buffered), they survive a crash.

        Args:
            ids: The videos' ids (n,).
            scores: Their scores (n, K) or (n, V, K), an array or tensor.
            labels: Their true classes (n,); with every append or with none.

        Returns:
            How many videos were new.

        Raises:
            InputError: Scores, ids or labels cannot be what they are said to be.
            CacheConflictError: A video is stored already with other scores.
            OSError: The disk is full or fails; nothing of this call's unfinished part is visible.
        """
        names, stored, own_labels = self._checked(ids, scores, labels)
        self._begin_with(stored, own_labels is not None)
        if not self._buffer_rows:
            return self._store(names, stored, own_labels)
        copied = None if own_labels is None else own_labels.copy()
        self._pending.append((names.copy(), stored.copy(), copied))
        waiting = sum(len(part_ids) for part_ids, _, _ in self._pending)
        return self.flush() if waiting >= self._buffer_rows else 0

    def flush(self) -> int:
        """Publish what is buffered, and return how many videos were new."""
        if not self._pending:
            return 0
        names = np.concatenate([ids for ids, _, _ in self._pending])
        scores = np.concatenate([scores for _, scores, _ in self._pending])
        labels = [labels for _, _, labels in self._pending if labels is not None]
        check_ids(names)
        new = self._store(names, scores, np.concatenate(labels) if labels else None)
        self._pending.clear()
        return new

    def close(self) -> None:
        """Publish what is buffered."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with suppress(OSError, CacheError, InputError):  # the error under way is the one to report
            self.flush()

    def __repr__(self) -> str:
        return f"CacheWriter({str(self.folder)!r}, {len(self._owners)} videos stored)"

    def _checked(
        self, ids: Any, scores: Any, labels: Any
    ) -> tuple[NDArray[np.str_], NDArray[np.floating[Any]], NDArray[np.int64] | None]:
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
        own_labels = None if labels is None else check_labels(labels, len(array), array.shape[-1], names)
        return names, _to_dtype(array, np.dtype(self._meta.dtype), names), own_labels

    def _begin_with(self, scores: NDArray[Any], labelled: bool) -> None:
        """Publish `meta.json` with the first append; hold later ones against it."""
        views = scores.shape[1] if scores.ndim == 3 else None
        if not self._begun:
            if self._meta.n_classes not in (0, scores.shape[-1]) or self._meta.n_views not in (None, views):
                raise InputError(
                    f"scores: expected {self._meta.n_classes or 'K'} classes and {self._meta.n_views or 'no'} views, "
                    f"got shape {scores.shape}"
                )
            mine = replace(self._meta, n_classes=scores.shape[-1], n_views=views, labelled=labelled)
            if publish(self.folder / META_NAME, [encode_meta(mine)]):
                self._begin(mine)
                return
            stored = read_meta(self.folder)
            if stored is None:
                raise CacheConflictError(f"{self.folder / META_NAME}: it vanished while it was read; try again")
            check_same_meta(mine, stored, self.folder)
            self._begin(stored)
        found = (scores.shape[-1], views, labelled)
        wanted = (self._meta.n_classes, self._meta.n_views, self._meta.labelled)
        if found != wanted:
            raise InputError(
                f"scores: expected (classes, views, labelled) {wanted} as in the first append, got {found}"
            )

    def _store(self, ids: NDArray[np.str_], scores: NDArray[Any], labels: NDArray[np.int64] | None) -> int:
        new = 0
        for start in range(0, len(ids), ROWS_PER_PART):
            rows = slice(start, start + ROWS_PER_PART)
            new += self._store_part(ids[rows], scores[rows], None if labels is None else labels[rows])
        return new

    def _store_part(self, ids: NDArray[np.str_], scores: NDArray[Any], labels: NDArray[np.int64] | None) -> int:
        content = encode_part(ids, scores, labels, self._meta.kind)  # its digest is computed during what follows
        self._refresh()
        fresh = ~self._stored_already(ids, scores, labels)
        if not fresh.all():
            self._settle()
        if not fresh.any():
            return 0
        if not fresh.all():
            ids, scores, labels = ids[fresh], scores[fresh], None if labels is None else labels[fresh]
            content = encode_part(ids, scores, labels, self._meta.kind)
        key = hashlib.sha256("\0".join(ids.tolist()).encode()).hexdigest()[:32]
        path = self.folder / f"part-{key}{PART_SUFFIX}"
        published = publish(path, content.body, content)
        if published:
            self._known.add(path.name)
            self._owners.update(dict.fromkeys(ids.tolist(), path))
        else:
            other = open_part(path)
            if other.digest != content.digest:
                raise CacheConflictError(
                    f"{path}: another writer stored other scores for the same {len(ids)} videos: its digest is "
                    f"{other.digest}, this one's {content.digest}; the first is kept; "
                    "use another folder for other scores"
                )
        # A part with some of the same videos may have appeared since the first look.
        for other in self._refresh():
            if other.path != path:
                self._stored_already(ids, scores, labels, dict.fromkeys(other.ids.tolist(), other.path))
        return len(ids) if published else 0

    def _stored_already(
        self,
        ids: NDArray[np.str_],
        scores: NDArray[Any],
        labels: NDArray[np.int64] | None,
        owners: dict[str, Path] | None = None,
    ) -> NDArray[np.bool_]:
        """Which videos are stored with these very bytes; other bytes are a conflict."""
        owners = self._owners if owners is None else owners
        stored = np.zeros(len(ids), dtype=bool)
        opened: dict[Path, tuple[Part, dict[str, int]]] = {}
        names = ids.tolist()
        if owners.keys().isdisjoint(names):
            return stored
        for row, name in enumerate(names):
            path = owners.get(name)
            if path is None:
                continue
            if path not in opened:
                part = open_part(path)
                opened[path] = part, {other: at for at, other in enumerate(part.ids.tolist())}
            part, places = opened[path]
            at = places[name]
            mine = _item(scores[row], None if labels is None else labels[row])
            theirs = _item(part.scores()[at], None if part.labels is None else part.labels[at])
            if mine != theirs:
                raise CacheConflictError(
                    f"{self.folder}: {place(row, ids)} is stored already with other scores: digest "
                    f"{hashlib.sha256(theirs).hexdigest()}, this one's {hashlib.sha256(mine).hexdigest()}; the first "
                    "is kept; use another folder for other scores"
                )
            stored[row] = True
        return stored


def _item(scores: NDArray[Any], label: np.int64 | None) -> bytes:
    return scores.tobytes() + (b"" if label is None else label.tobytes())


def _to_dtype(scores: NDArray[np.floating[Any]], dtype: np.dtype[Any], ids: NDArray[np.str_]) -> NDArray[Any]:
    """Cast scores to the stored dtype, and refuse finite values that leave its range."""
    if scores.dtype == dtype:
        return scores
    with np.errstate(over="ignore", under="ignore"):
        cast = scores.astype(dtype)
    lost = np.isinf(cast) & np.isfinite(scores)
    if lost.any():
        where = np.argwhere(lost)[0]
        limit, value = float(np.finfo(dtype).max), float(scores[tuple(where)])
        raise InputError(
            f"expected scores within ±{limit:g} for {dtype}, got {value:g} at "
            f'{place(int(where[0]), ids)}, class {where[-1]} ({int(lost.sum())} in all); store dtype="float32"'
        )
    return cast
