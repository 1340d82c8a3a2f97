"""One immutable part of a logit cache: a safetensors file whose every byte is covered by a digest.

Layout (all of it readable by any safetensors reader)::

    8 bytes   length n of the header, little-endian
    n bytes   JSON: {"__metadata__": {"format", "version", "digest", "index", "payload", "kind"}, tensors ...}
    labels    int64 (N,), absent where labels are not known
    ids       uint8 (N, W): UTF-8, padded with NUL
    scores    float32 or float16, (N, K) or (N, V, K), aligned to 64 bytes

``payload`` is the SHA-256 of the scores, ``index`` that of labels and ids, and ``digest`` that of the length and the
header, in which ``digest`` itself reads as 64 zeros. A flipped bit anywhere therefore changes one of the three, and
header, labels and ids can be trusted before the scores are touched.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
import re
import resource
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Final
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import Kind
from vidfuse.cache.ids import check_packed, pack_ids, unpack_ids
from vidfuse.cache.layout import DTYPES, Entry, Layout, parse_layout, unique_keys
from vidfuse.errors import CacheConflictError, CacheCorruptError, CacheFormatError

__all__ = [
    "VERSION",
    "Part",
    "PartBytes",
    "PartStream",
    "encode_part",
    "encode_stream",
    "glancing",
    "item_bytes",
    "open_part",
    "refusal",
]

VERSION: Final = 1
_MAX_HEADER: Final = 1 << 14
_ALIGNMENT: Final = 64
_PREFIX: Final = b'{"__metadata__":{"format":"vidfuse-logits","version":"1","digest":"'
_UNSIGNED: Final = b"0" * 64
_UNKNOWN: Final = b"?" * 64  # in the place of the scores' digest until that is known
_DIGESTS: Final = re.compile(rb'"([0-9a-f]{64})","index":"([0-9a-f]{64})","payload":"([0-9a-f]{64})",')
_BLANK: Final = b'{"__metadata__":{"format":"","version":"","digest":"","index":"","payload":"",'
_TAGS: Final[dict[np.dtype[Any], str]] = {dtype: tag for tag, dtype in DTYPES.items()}
_FIRST_READ: Final = 1 << 15  # enough for the header, the labels and the ids of a part of the usual size
_ADVICE: Final = "run `vidfuse verify --quarantine` and resume, which recomputes these videos only"
_CHUNK: Final = 1 << 24
_REMEDIES: Final = {
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "the whole system has too many files open: close some",
    errno.ENOMEM: "free some memory",
    errno.EACCES: "give this user the permission",
    errno.EPERM: "give this user the permission",
    errno.ENOSPC: "free some space on the disk",
    errno.EIO: "check the disk",
}

_verified: set[tuple[int, int, int, int, str]] = set()  # parts whose scores were checked in this process
_glances: ContextVar[bool] = ContextVar("glances", default=False)
_held: WeakSet[mmap.mmap] = WeakSet()  # the maps of the parts that are held; each one keeps a file open


class _Signed:
    """The head of a part: it holds the digest of the scores, and is therefore written last.

    Attributes:
        head_size: The length of the head in bytes.
    """

    def __init__(self, unsigned: bytes) -> None:
        self.head_size, self._unsigned, self._payload = 8 + len(unsigned), unsigned, hashlib.sha256()

    def _finish(self) -> None:
        """Wait until all scores are in the digest."""

    @cached_property
    def _signed(self) -> tuple[str, bytes]:
        self._finish()
        text = self._unsigned.replace(_UNKNOWN, self._payload.hexdigest().encode(), 1)
        length = len(text).to_bytes(8, "little")
        digest = _sha256(length, text)
        return digest, length + text.replace(_UNSIGNED, digest.encode(), 1)

    @property
    def digest(self) -> str:
        """The digest that covers the whole file; waits for the scores'."""
        return self._signed[0]

    def head(self) -> bytes:
        """Return the length and the header; waits for the scores' digest."""
        return self._signed[1]


class PartBytes(_Signed):
    """A part that is ready to be written: its head and then its body are the file.

    The head holds the body's digest. A thread computes it from the start, so that the body can be written meanwhile.

    Attributes:
        body: The tensors' bytes, one chunk after the other; the last one holds the scores.
    """

    def __init__(self, unsigned: bytes, body: tuple[memoryview, ...]) -> None:
        super().__init__(unsigned)
        self.body = body
        self._hashing = Thread(target=self._payload.update, args=(body[-1],))
        try:
            self._hashing.start()
        except RuntimeError:  # no thread begins while Python ends
            self._hashing.run()

    def _finish(self) -> None:
        if self._hashing.ident is not None:
            self._hashing.join()

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return self.head_size + sum(chunk.nbytes for chunk in self.body)


class PartStream(_Signed):
    """A part whose scores come block by block while it is written: more than memory holds.

    Attributes:
        body: The tensors' bytes, one chunk after the other, once.
    """

    def __init__(self, unsigned: bytes, index: tuple[memoryview, ...], blocks: Iterable[NDArray[Any]]) -> None:
        super().__init__(unsigned)
        self.body = self._chunks(index, blocks)

    def _chunks(self, index: tuple[memoryview, ...], blocks: Iterable[NDArray[Any]]) -> Iterator[memoryview]:
        yield from index
        for block in blocks:
            chunk = _stored(block).reshape(-1).view(np.uint8).data
            self._payload.update(chunk)
            yield chunk


def encode_part(
    ids: NDArray[np.str_], scores: NDArray[np.floating[Any]], labels: NDArray[np.int64] | None, kind: Kind
) -> PartBytes:
    """Lay out one part; equal arguments give equal bytes.

    Args:
        ids: Checked ids (N,).
        scores: float32 or float16 (N, [V,] K); not copied where it is C-contiguous and little-endian.
        labels: int64 (N,), or None.
        kind: What the scores are.
    """
    unsigned, index = _lay_out(pack_ids(ids), labels, scores.dtype, scores.shape, kind)
    return PartBytes(unsigned, (*index, _stored(scores).reshape(-1).view(np.uint8).data))


def encode_stream(
    packed: NDArray[np.uint8],
    blocks: Iterable[NDArray[np.floating[Any]]],
    labels: NDArray[np.int64] | None,
    kind: Kind,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> PartStream:
    """Lay out one part whose scores come in blocks; its bytes are those of `encode_part`.

    Args:
        packed: The ids as they are stored (N, W).
        blocks: The scores, (n, [V,] K) each.
        labels: int64 (N,), or None.
        kind: What the scores are.
        dtype: Their dtype.
        shape: The shape of all of them, (N, [V,] K).
    """
    unsigned, index = _lay_out(packed, labels, dtype, shape, kind)
    return PartStream(unsigned, index, blocks)


def _stored(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _lay_out(
    packed: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    kind: Kind,
) -> tuple[bytes, tuple[memoryview, ...]]:
    """Return a header without its digests, and the bytes of labels and ids."""
    index = {"ids": _stored(packed)} if labels is None else {"labels": _stored(labels), "ids": _stored(packed)}
    tensors = [(name, array.dtype, array.shape) for name, array in index.items()]
    entries: dict[str, Any] = {}
    offset = 0
    for name, kept, extents in [*tensors, ("scores", dtype.newbyteorder("<"), shape)]:
        size = kept.itemsize * math.prod(extents)
        entries[name] = {"dtype": _TAGS[kept], "shape": list(extents), "data_offsets": [offset, offset + size]}
        offset += size
    chunks = tuple(array.reshape(-1).view(np.uint8).data for array in index.values())
    metadata = {"index": _sha256(*chunks), "payload": _UNKNOWN.decode(), "kind": kind}
    tail = json.dumps({"m": metadata, "t": entries}, separators=(",", ":"))
    inner, outer = tail[len('{"m":{') :].split('},"t":{', 1)
    text = _PREFIX + _UNSIGNED + b'",' + inner.encode() + b"}," + outer[:-1].encode()
    indexed = sum(chunk.nbytes for chunk in chunks)
    text += b" " * (-(8 + len(text) + indexed) % _ALIGNMENT)
    return text, chunks


def _sha256(*chunks: bytes | memoryview) -> str:
    state = hashlib.sha256()
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()


class Part:
    """A part that was opened: header, ids and labels are checked, the scores are mapped and checked at first use.

    A mapped file counts among those that the process has open. A part is therefore *held*, mapped from now on and
    readable even where its file is removed, only while the parts that are held are at most half of what the process may
    have open. The others are mapped anew for each use, so that any number of parts can be read.

    Attributes:
        path: The file.
        kind: What the scores are.
        digest: The digest that covers the whole file.
        packed_ids: The videos' ids as they are stored, uint8 (N, W).
        labels: int64 (N,), or None.
        used: Whether the scores were asked for, for more than a glance.
    """

    def __init__(self, path: Path, *, check: bool = True, hold: bool = True) -> None:
        self.path, self.used, self._check, self._checking = path, False, check, Lock()
        with _opened(path) as (descriptor, status):
            size = status.st_size
            start = os.pread(descriptor, min(size, _FIRST_READ), 0)
            header = _read_header(start, path, size)
            self.digest, index_digest, self._payload_digest, layout = _parse_header(header, path)
            base, indexed = 8 + len(header), layout.ids.stop
            expected = base + layout.scores.stop
            if size < expected:
                raise _truncated(path, f"{expected} bytes", size)
            if size > expected:
                raise _not_a_part(path, f"expected {expected} bytes, got {size}: trailing bytes")
            index = (
                start[base : base + indexed] if base + indexed <= len(start) else os.pread(descriptor, indexed, base)
            )
            self._map = _mapped(descriptor) if hold and _may_hold() else None
        self._file = _file_of(status)
        self._identity = (*self._file, self.digest)
        found = _sha256(index)
        if found != index_digest:
            raise _corrupt(path, "labels and ids", index_digest, found)
        self.kind, self._entry, self._base = layout.kind, layout.scores, base
        self._scores: NDArray[Any] | None = None
        if self._map is not None:
            _held.add(self._map)
            self._scores = _array(self._map, layout.scores, base)
        # Of a part that is held they stay in the file, and take no memory.
        source, start_at = (index, 0) if self._map is None else (self._map, base)
        self.labels = (
            None if layout.labels is None else _array(source, layout.labels, start_at).astype("=i8", copy=False)
        )
        self.packed_ids: NDArray[np.uint8] = _array(source, layout.ids, start_at)
        try:
            check_packed(self.packed_ids)
        except UnicodeDecodeError as error:
            raise _not_a_part(path, f"ids are not UTF-8 ({error})") from error

    def __len__(self) -> int:
        return len(self.packed_ids)

    @cached_property
    def ids(self) -> NDArray[np.str_]:
        """The videos' ids (N,)."""
        return unpack_ids(self.packed_ids)

    @property
    def shape(self) -> tuple[int, ...]:
        """The scores' shape, (N, K) or (N, V, K)."""
        return self._entry.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The scores' dtype."""
        return self._entry.dtype

    def item(self, row: int) -> bytes:
        """Return what is stored of one video, to compare with what another part or an append holds of it."""
        return item_bytes(self.scores()[row], np.int64(-1) if self.labels is None else self.labels[row])

    @property
    def held(self) -> bool:
        """Whether the scores stay mapped; otherwise an array from `scores` keeps a file open as long as it lives."""
        return self._map is not None

    def scores(self) -> NDArray[np.floating[Any]]:
        """Return the mapped scores, read-only; the first use in this process but a glance checks their digest.

        Raises:
            CacheCorruptError: The bytes are not those that were written.
            CacheConflictError: The part is not held, and its file was removed or replaced meanwhile.
        """
        if not _glances.get():
            self.used = True
            if self._check and self._identity not in _verified:
                self.check()
        if self._scores is not None:
            return self._scores
        with self._reopened() as descriptor:
            mapped = _mapped(descriptor)
        if mapped is not None:
            return _array(mapped, self._entry, self._base)
        return _array(b"".join(self._chunks()), replace(self._entry, start=0, stop=self.size), 0)

    def holds(self, scores: NDArray[np.floating[Any]]) -> bool:
        """Whether these are the scores that this part was written with, wherever they were found."""
        return _sha256(_stored(scores).reshape(-1).view(np.uint8).data) == self._payload_digest

    @property
    def size(self) -> int:
        """The bytes of its scores."""
        return self._entry.stop - self._entry.start

    def expect(self, start: int = 0) -> None:
        """Have the disk read a chunk of a held part's scores, from this byte of them on, before they are asked for."""
        first = (self._base + self._entry.start + start) // mmap.PAGESIZE * mmap.PAGESIZE
        if self._map is not None and first < len(self._map):
            self._map.madvise(mmap.MADV_WILLNEED, first, min(_CHUNK, len(self._map) - first))

    def release(self) -> None:
        """Let the pages of a held part leave this process's memory; they are read again where they are used again."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def check(self) -> None:
        """Check the scores as `verify` does, unless this process has; of threads that need the same part, one does."""
        with self._checking:
            if self._identity not in _verified:
                self.verify()

    def verify(self) -> None:
        """Check the scores against their digest now.

        Raises:
            CacheCorruptError: The bytes are not those that were written.
            CacheConflictError: The part is not held, and its file was removed or replaced meanwhile.
        """
        state = hashlib.sha256()
        for chunk in self._chunks():  # one at a time: a part need not fit into memory
            state.update(chunk)
        found = state.hexdigest()
        if found != self._payload_digest:
            raise _corrupt(self.path, "scores", self._payload_digest, found)
        _verified.add(self._identity)

    def _chunks(self) -> Iterator[bytes | memoryview]:
        """The scores' bytes: as they are mapped, or read, which reports a failing disk as an error."""
        if self._map is not None and self._scores is not None:
            whole = self._scores.reshape(-1).view(np.uint8).data
            self.expect()
            for start in range(0, whole.nbytes, _CHUNK):
                self.expect(start + _CHUNK)  # the disk reads it while this one is used
                yield whole[start : start + _CHUNK]
            return
        start, stop = self._base + self._entry.start, self._base + self._entry.stop
        with self._reopened() as descriptor:
            while start < stop and (chunk := os.pread(descriptor, min(_CHUNK, stop - start), start)):
                yield chunk
                start += len(chunk)

    @contextmanager
    def _reopened(self) -> Iterator[int]:
        try:
            with _opened(self.path) as (descriptor, status):
                if _file_of(status) != self._file:
                    raise CacheConflictError(f"{self.path}: the part was replaced since it was opened; load again")
                yield descriptor
        except FileNotFoundError as error:
            raise CacheConflictError(f"{self.path}: the part is gone, joined or set aside; load again") from error


@contextmanager
def glancing() -> Iterator[None]:
    """Read scores in this context without checking their digests: a few of many parts, which later uses still check.

    Example:
        >>> with glancing():
        ...     pass  # stack.scores("swin", slice(0, 10))
    """
    outer = _glances.set(True)
    try:
        yield
    finally:
        _glances.reset(outer)


def item_bytes(scores: NDArray[Any], label: np.int64) -> bytes:
    """Return one video's scores and label, -1 for one that is not known, as bytes."""
    return scores.tobytes() + label.tobytes()


def open_part(path: Path, *, check: bool = True, hold: bool = True) -> Part:
    """Open one part.

    Args:
        path: The file.
        check: Verify its scores at their first use in this process.
        hold: Keep it mapped, as far as the limit on open files allows.

    Raises:
        CacheFormatError: Not a regular file, not a part, or of a newer version.
        CacheCorruptError: Truncated, or header, labels or ids are not what was written.
        OSError: The file cannot be read now, which says nothing about its bytes; the message says what to do.
    """
    return Part(path, check=check, hold=hold)


def _array(buffer: bytes | mmap.mmap, entry: Entry, base: int) -> NDArray[Any]:
    count = (entry.stop - entry.start) // entry.dtype.itemsize
    return np.frombuffer(buffer, entry.dtype, count, base + entry.start).reshape(entry.shape)


def _mapped(descriptor: int) -> mmap.mmap | None:
    """Map a whole file, or return None where the file system cannot: it is then read anew for each use."""
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            return None
        raise


def _corrupt(path: Path, what: str, expected: str, found: str) -> CacheCorruptError:
    return CacheCorruptError(
        f"{path}: {what} are not the bytes that were written: expected digest {expected}, got {found}; " + _ADVICE
    )


def _truncated(path: Path, expected: str, size: int) -> CacheCorruptError:
    return CacheCorruptError(f"{path}: truncated: expected {expected}, got {size}; {_ADVICE}")


def _not_a_part(path: Path, why: str) -> CacheFormatError:
    return CacheFormatError(f"{path}: not a part of a logit cache: {why}; remove it, or {_ADVICE}")


def _may_hold() -> bool:
    """Whether one more part may keep its file open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit == resource.RLIM_INFINITY or len(_held) < limit // 2


def _file_of(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def refusal(error: OSError, path: Path, note: str = "") -> OSError:
    """Return what the system refused with the file's name, a note, and what to do."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    remedy = _REMEDIES.get(error.errno or 0, "remove the cause and try again")
    return OSError(error.errno, f"{reason}; {note}{remedy}", error.filename or str(path))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file for reading; a link, pipe, device or folder is refused without waiting for it.

    What the system refuses while the file is open gets the file's name and what to do.
    """
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CacheFormatError(f"{path}: expected a regular file, got {stat.filemode(status.st_mode)}; remove it")
        yield descriptor, status
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise CacheFormatError(f"{path}: expected a regular file, got a link or a device; remove it") from error
        raise refusal(error, path) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _read_header(start: bytes, path: Path, size: int) -> bytes:
    """Return the header's JSON, whose digest is right; `start` is the beginning of the file."""
    if len(start) < 8:
        raise _truncated(path, "at least 8 bytes", size)
    length = int.from_bytes(start[:8], "little")
    if length > _MAX_HEADER:
        raise _not_a_part(path, f"its header claims {length} bytes, at most {_MAX_HEADER} are allowed")
    if 8 + length > size:
        raise _truncated(path, f"at least {8 + length} bytes", size)
    header = start[8 : 8 + length]
    prefix, signature, rest = header[: len(_PREFIX)], header[len(_PREFIX) :][:64], header[len(_PREFIX) + 64 :]
    found = _sha256(start[:8], prefix, _UNSIGNED, rest)
    if prefix == _PREFIX and found.encode() == signature:
        return header
    if prefix != _PREFIX:
        _refuse_newer(header, path)
        if _sha256(start[:8], _PREFIX, _UNSIGNED, rest).encode() != signature:  # else its first words are damaged
            raise _foreign(header, path)
    raise _corrupt(path, "the header's bytes", signature.decode("ascii", "replace"), found)


def _refuse_newer(header: bytes, path: Path) -> None:
    version = re.search(rb'"format"\s*:\s*"vidfuse-logits"\s*,\s*"version"\s*:\s*"(\d{1,9})"', header[:256])
    if version and int(version[1]) > VERSION:
        raise CacheFormatError(
            f"{path}: found version {int(version[1])} of a logit cache, supported up to {VERSION}: upgrade vidfuse"
        )


def _foreign(header: bytes, path: Path) -> CacheFormatError:
    """Say what a file is that does not begin as a part does."""
    try:
        json.loads(header, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        return _not_a_part(path, f"its header: {error}")
    return CacheFormatError(
        f"{path}: not a part of a logit cache: found a header that starts with {header[:40]!r}, supported is "
        f"vidfuse-logits version {VERSION}; import other tools' files with `vidfuse import`"
    )


def _parse_header(header: bytes, path: Path) -> tuple[str, str, str, Layout]:
    """Return the digests of a header that was signed, of the index and of the payload, and the checked layout."""
    digests = _DIGESTS.match(header, len(_PREFIX) - 1)
    try:
        if digests is None:
            raise ValueError("expected the digests of index and payload behind that of the header")
        layout = parse_layout(_BLANK + header[digests.end() :])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise _not_a_part(path, f"{type(error).__name__} in its header: {error}") from error
    digest, index, payload = (group.decode() for group in digests.groups())
    return digest, index, payload, layout
