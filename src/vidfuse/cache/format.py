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
import mmap
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._validate import KINDS, Kind
from vidfuse.errors import CacheCorruptError, CacheFormatError

__all__ = ["VERSION", "Part", "PartBytes", "encode_part", "open_part", "unpack_ids"]

VERSION: Final = 1
_MAX_HEADER: Final = 1 << 14
_ALIGNMENT: Final = 64
_PREFIX: Final = b'{"__metadata__":{"format":"vidfuse-logits","version":"1","digest":"'
_UNSIGNED: Final = b"0" * 64
_UNKNOWN: Final = b"?" * 64  # in the place of the scores' digest until that is known
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
_TAGS: Final[dict[np.dtype[Any], str]] = {dtype: tag for tag, dtype in _DTYPES.items()}
_CHUNK: Final = 1 << 22

_verified: set[tuple[int, int, int, int, str]] = set()  # parts whose scores were checked in this process


class PartBytes:
    """A part that is ready to be written: its head and then its body are the file.

    The head holds the body's digest. A thread computes it from the start, so that the body can be written meanwhile.

    Attributes:
        body: The tensors' bytes, one chunk after the other; the last one holds the scores.
        head_size: The length of the head in bytes.
    """

    def __init__(self, unsigned: bytes, body: tuple[memoryview, ...]) -> None:
        self.body, self.head_size = body, 8 + len(unsigned)
        self._unsigned, self._payload = unsigned, hashlib.sha256()
        self._hashing = Thread(target=self._payload.update, args=(body[-1],))
        self._hashing.start()

    @cached_property
    def _signed(self) -> tuple[str, bytes]:
        self._hashing.join()
        text = self._unsigned.replace(_UNKNOWN, self._payload.hexdigest().encode(), 1)
        length = len(text).to_bytes(8, "little")
        digest = _sha256(length, text)
        return digest, length + text.replace(_UNSIGNED, digest.encode(), 1)

    @property
    def digest(self) -> str:
        """The digest that covers the whole file; waits for the body's."""
        return self._signed[0]

    def head(self) -> bytes:
        """Return the length and the header; waits for the body's digest."""
        return self._signed[1]

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return self.head_size + sum(chunk.nbytes for chunk in self.body)


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
    tensors: list[tuple[str, NDArray[Any]]] = [("ids", _pack_ids(ids)), ("scores", scores)]
    if labels is not None:
        tensors.insert(0, ("labels", labels))
    entries: dict[str, Any] = {}
    chunks: list[memoryview] = []
    offset = 0
    for name, array in tensors:
        stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        entries[name] = {
            "dtype": _TAGS[stored.dtype],
            "shape": list(stored.shape),
            "data_offsets": [offset, offset + stored.nbytes],
        }
        chunks.append(stored.reshape(-1).view(np.uint8).data)
        offset += stored.nbytes
    metadata = {"index": _sha256(*chunks[:-1]), "payload": _UNKNOWN.decode(), "kind": kind}
    tail = json.dumps({"m": metadata, "t": entries}, separators=(",", ":"))
    inner, outer = tail[len('{"m":{') :].split('},"t":{', 1)
    text = _PREFIX + _UNSIGNED + b'",' + inner.encode() + b"}," + outer[:-1].encode()
    indexed = sum(chunk.nbytes for chunk in chunks[:-1])
    text += b" " * (-(8 + len(text) + indexed) % _ALIGNMENT)
    return PartBytes(text, tuple(chunks))


def _sha256(*chunks: bytes | memoryview) -> str:
    state = hashlib.sha256()
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()


def _pack_ids(ids: NDArray[np.str_]) -> NDArray[np.uint8]:
    codes = np.ascontiguousarray(ids).view(np.uint32).reshape(len(ids), -1)
    if codes.max(initial=0) < 0x80:
        encoded = codes.astype(np.uint8)
    else:
        joined = np.array([text.encode("utf-8") for text in ids.tolist()], dtype=np.bytes_)
        encoded = joined.view(np.uint8).reshape(len(ids), -1)
    width = max(8, -(-encoded.shape[1] // 8) * 8)
    packed = np.zeros((len(ids), width), dtype=np.uint8)
    packed[:, : encoded.shape[1]] = encoded
    return packed


def unpack_ids(packed: NDArray[np.uint8]) -> NDArray[np.str_]:
    """Return ids from their stored form (N, W), UTF-8 padded with NUL.

    Example:
        >>> unpack_ids(np.array([[97, 0], [98, 99]], dtype=np.uint8)).tolist()
        ['a', 'bc']
    """
    if packed.max(initial=0) < 0x80:  # widening the bytes is a hundred times faster than decoding them
        return packed.astype(np.uint32).view(f"U{packed.shape[1]}").reshape(-1)
    texts = np.ascontiguousarray(packed).view(f"S{packed.shape[1]}").reshape(-1)
    return np.array([text.decode("utf-8") for text in texts.tolist()], dtype=np.str_)


@dataclass(frozen=True)
class _Entry:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int


class Part:
    """A part that was opened: header, ids and labels are checked, the scores are mapped and checked at first use.

    Attributes:
        path: The file.
        kind: What the scores are.
        digest: The digest that covers the whole file.
        ids: The videos' ids (N,).
        labels: int64 (N,), or None.
    """

    def __init__(self, path: Path, *, check: bool = True) -> None:
        self.path, self._check = path, check
        descriptor, status = _open_regular(path)
        try:
            header, self.digest = _read_header(descriptor, path, status.st_size)
            self.kind, self._payload_digest, index_digest, entries = _parse_header(header, path)
            base = 8 + len(header)
            expected = base + entries["scores"].stop
            if status.st_size < expected:
                raise CacheCorruptError(f"{path}: truncated: expected {expected} bytes, got {status.st_size}")
            if status.st_size > expected:
                raise CacheFormatError(f"{path}: expected {expected} bytes, got {status.st_size}: trailing bytes")
            index = os.pread(descriptor, entries["ids"].stop, base)  # cheaper than the faults of a fresh mapping
            self._map = mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        self._identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, self.digest)
        found = _sha256(index)
        if found != index_digest:
            raise _corrupt(path, "labels and ids", index_digest, found)
        self._scores = _array(self._map, entries["scores"], base)
        self.labels = _array(index, entries["labels"], 0).astype(np.int64) if "labels" in entries else None
        try:
            self.ids = unpack_ids(_array(index, entries["ids"], 0))
        except UnicodeDecodeError as error:
            raise CacheFormatError(f"{path}: ids are not UTF-8 ({error})") from error

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, ...]:
        """The scores' shape, (N, K) or (N, V, K)."""
        return self._scores.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The scores' dtype."""
        return self._scores.dtype

    def scores(self) -> NDArray[np.floating[Any]]:
        """Return the mapped scores, read-only; the first use in this process checks their digest."""
        if self._check and self._identity not in _verified:
            self.verify()
        return self._scores

    def release(self) -> None:
        """Let the mapped pages leave this process's memory; they are read again where they are used again."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def verify(self) -> None:
        """Check the scores against their digest now.

        Raises:
            CacheCorruptError: The bytes are not those that were written.
        """
        found = _sha256(*_chunks(self._scores))
        if found != self._payload_digest:
            raise _corrupt(self.path, "scores", self._payload_digest, found)
        _verified.add(self._identity)


def open_part(path: Path, *, check: bool = True) -> Part:
    """Open one part; with `check`, its scores are verified at their first use in this process.

    Raises:
        CacheFormatError: Not a regular file, not a part, or of a newer version.
        CacheCorruptError: Truncated, or header, labels or ids are not what was written.
    """
    return Part(path, check=check)


def _array(buffer: bytes | mmap.mmap, entry: _Entry, base: int) -> NDArray[Any]:
    count = (entry.stop - entry.start) // entry.dtype.itemsize
    return np.frombuffer(buffer, entry.dtype, count, base + entry.start).reshape(entry.shape)


def _chunks(array: NDArray[Any]) -> Iterator[memoryview]:
    whole = array.reshape(-1).view(np.uint8).data
    for start in range(0, whole.nbytes, _CHUNK):
        yield whole[start : start + _CHUNK]


def _corrupt(path: Path, what: str, expected: str, found: str) -> CacheCorruptError:
    return CacheCorruptError(
        f"{path}: {what} are not the bytes that were written: expected digest {expected}, got {found}; "
        "run `vidfuse verify --quarantine` and resume, which recomputes these videos only"
    )


def _open_regular(path: Path) -> tuple[int, os.stat_result]:
    """Open a regular file for reading; a link, pipe, device or folder is refused without waiting for it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise CacheFormatError(f"{path}: expected a regular file, got a link or a device; remove it") from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise CacheFormatError(f"{path}: expected a regular file, got {stat.filemode(status.st_mode)}; remove it")
    return descriptor, status


def _read_header(descriptor: int, path: Path, size: int) -> tuple[bytes, str]:
    """Return the header's JSON and its checked digest; nothing is allocated beyond 16 kB."""
    start = os.pread(descriptor, 8, 0)
    length = int.from_bytes(start, "little")
    if len(start) < 8:
        raise CacheCorruptError(f"{path}: truncated: expected at least 8 bytes, got {size}")
    if length > _MAX_HEADER:
        raise CacheFormatError(
            f"{path}: not a part: its header claims {length} bytes, at most {_MAX_HEADER} are allowed"
        )
    if 8 + length > size:
        raise CacheCorruptError(f"{path}: truncated: expected at least {8 + length} bytes, got {size}")
    header = os.pread(descriptor, length, 8)
    signature = header[len(_PREFIX) : len(_PREFIX) + 64]
    if not header.startswith(_PREFIX) or len(signature) < 64:
        raise _foreign(header, path)
    found = _sha256(start, _PREFIX, _UNSIGNED, header[len(_PREFIX) + 64 :])
    if found.encode() != signature:
        raise _corrupt(path, "the header's bytes", signature.decode("ascii", "replace"), found)
    return header, found


def _foreign(header: bytes, path: Path) -> CacheFormatError:
    """Say what a file is that does not begin as a part of this version does."""
    version = re.search(rb'"format"\s*:\s*"vidfuse-logits"\s*,\s*"version"\s*:\s*"(\d{1,9})"', header[:256])
    if version and int(version[1]) > VERSION:
        return CacheFormatError(
            f"{path}: found version {int(version[1])} of a logit cache, supported up to {VERSION}: upgrade vidfuse"
        )
    try:
        json.loads(header, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        return CacheFormatError(f"{path}: not a part of a logit cache: {error}")
    return CacheFormatError(
        f"{path}: not a part of a logit cache: found a header that starts with {header[:40]!r}, supported is "
        f"vidfuse-logits version {VERSION}; import other tools' files with `vidfuse import`"
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"duplicate key in the header: {next(key for key in keys if keys.count(key) > 1)!r}")
    return dict(pairs)


def _parse_header(header: bytes, path: Path) -> tuple[Kind, str, str, dict[str, _Entry]]:
    """Check a signed header's structure: kind, payload digest, index digest, tensors."""
    try:
        content = json.loads(header, object_pairs_hook=_unique_keys)
        metadata = content.pop("__metadata__")
        kind, index, payload = metadata["kind"], metadata["index"], metadata["payload"]
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}")
        entries = {name: _parse_entry(name, content[name]) for name in ("labels", "ids", "scores") if name in content}
        _check_entries(content, entries)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheFormatError(
            f"{path}: not a part of a logit cache: {type(error).__name__} in its header: {error}"
        ) from error
    return kind, payload, index, entries


def _parse_entry(name: str, entry: Any) -> _Entry:
    dtype, shape, (start, stop) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, start, stop)
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise ValueError(f"{name} has an impossible shape or offset")
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    if size != stop - start or size == 0:
        raise ValueError(f"{name} of shape {shape} needs {size} bytes, its offsets give {stop - start}")
    return _Entry(dtype, shape, start, stop)


def _check_entries(content: dict[str, Any], entries: dict[str, _Entry]) -> None:
    if set(content) - {"labels"} != {"ids", "scores"}:
        raise ValueError(f"expected tensors ids, scores and labels, got {sorted(content)}")
    position = 0
    for name, entry in entries.items():
        if entry.start != position:
            raise ValueError(f"{name} starts at {entry.start}, expected {position}")
        position = entry.stop
    ids, scores, labels = entries["ids"], entries["scores"], entries.get("labels")
    n = scores.shape[0] if scores.shape else 0
    wanted = [
        (ids, ("u1",), len(ids.shape) == 2),
        (scores, ("<f4", "<f2"), len(scores.shape) in (2, 3) and scores.shape[-1] >= 2),
    ]
    if labels is not None:
        wanted.append((labels, ("<i8",), len(labels.shape) == 1))
    for entry, dtypes, fits in wanted:
        if not fits or entry.shape[0] != n or entry.dtype not in [np.dtype(d) for d in dtypes]:
            raise ValueError(f"a tensor has dtype {entry.dtype} and shape {entry.shape}, which no part has")
