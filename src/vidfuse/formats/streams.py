"""Write files block by block: text, NumPy's arrays, parquet and caches, each so that a killed writer can go on.

| file                    | how it goes on                                                                    |
|-------------------------|-----------------------------------------------------------------------------------|
| text                    | its length after the last whole block; what stands beyond is cut off              |
| .npy, .npz              | the arrays' places are known from the start; the rows written, and their checksum |
| .parquet                | its end describes the whole: rows are kept as .npz is written, then turned into it |
| a cache                 | its parts are files of their own                                                  |
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import Kind
from vidfuse._files import publish, sweep
from vidfuse._unfinished import Unfinished
from vidfuse.cache.format import encode_part
from vidfuse.cache.meta import META_NAME, CacheMeta, encode_meta
from vidfuse.cache.reader import PART_SUFFIX
from vidfuse.errors import MissingExtraError

__all__ = ["Rows", "read_by_rows", "threads_for", "write_arrays", "write_cache", "write_parquet", "write_text"]

Read = Callable[[slice], tuple[NDArray[Any], ...]]

_THREADS: Final = max(2, min(4, os.cpu_count() or 1))  # more would push each other's blocks out of the caches
_AHEAD: Final = 4  # blocks for each thread that are computed while the disk takes what was written
_PART: Final = 1 << 24  # bytes of scores in a part of a cache
_GROUP: Final = 1 << 24  # bytes in a row group of a parquet file
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the date in a zip, so that equal arrays are equal bytes


@dataclass(frozen=True)
class Rows:
    """Arrays that are read some rows at a time.

    Attributes:
        read: From a slice of rows to each array's rows.
        arrays: Each array's dtype, and its shape (N, …), by name.
        step: How many rows to read at once.
        threads: How many blocks are read at the same time, on threads, while others are written; 0 for none.
    """

    read: Read
    arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
    step: int
    threads: int = 0

    def __len__(self) -> int:
        return next(iter(self.arrays.values()))[1][0]

    def blocks(self, start: int, step: int | None = None) -> Iterator[tuple[slice, tuple[NDArray[Any], ...]]]:
        """Yield slices of rows from a row on, and the arrays' rows, in order.

            read       ┌ 0 ┐┌ 1 ┐┌ 2 ┐┌3┐┌ 4 ┐┌ 5 ┐┌   `self.step` rows: what is computed of them fits the CPU's cache
            yielded    └──────── step ────────┘└────   of several reads, in arrays that the next ones overwrite

        Args:
            start: The first row.
            step: How many rows to yield at once; by default as many as are read.
        """
        step = step or self.step
        kept: tuple[NDArray[Any], ...] = ()
        for some, arrays in self._read(_cut(start, len(self), step, self.step)):
            first = some.start - (some.start - start) % step
            last = min(first + step, len(self))
            if (some.start, some.stop) == (first, last):
                yield some, arrays
                continue
            kept = kept or tuple(np.empty((step, *shape[1:]), dtype) for dtype, shape in self.arrays.values())
            for whole, array in zip(kept, arrays, strict=True):
                whole[some.start - first : some.stop - first] = array
            if some.stop == last:
                yield slice(first, last), tuple(whole[: last - first] for whole in kept)

    def _read(self, slices: Iterator[slice]) -> Iterator[tuple[slice, tuple[NDArray[Any], ...]]]:
        """Yield slices, and what is read of them, ahead of its use where there are threads."""
        if not self.threads:
            for rows in slices:
                yield rows, self.read(rows)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            begun: deque[tuple[slice, Future[tuple[NDArray[Any], ...]]]] = deque()
            try:
                for rows in slices:
                    begun.append((rows, pool.submit(copy_context().run, self.read, rows)))
                    if len(begun) > _AHEAD * self.threads:
                        done, arrays = begun.popleft()
                        yield done, arrays.result()
                while begun:
                    done, arrays = begun.popleft()
                    yield done, arrays.result()
            finally:
                for _, arrays in begun:
                    arrays.cancel()


def _cut(start: int, stop: int, step: int, most: int) -> Iterator[slice]:
    """Cut rows into steps, and these into slices of at most so many rows."""
    for first in range(start, stop, step):
        last = min(first + step, stop)
        for row in range(first, last, most):
            yield slice(row, min(row + most, last))


def read_by_rows(scores: Any) -> bool:
    """Return whether scores are no array, but have a shape and give one for some rows: then they are read in blocks."""
    return hasattr(scores, "shape") and not hasattr(scores, "__array__") and not hasattr(scores, "detach")


def threads_for(scores: Any) -> int:
    """Return on how many threads blocks are read: a few if they are computed, by what says how many rows to ask for."""
    return _THREADS if hasattr(scores, "rows_per_block") else 0


def write_text(
    path: str | os.PathLike[str],
    head: str,
    rows: Rows,
    lines: Callable[[slice, tuple[NDArray[Any], ...]], str],
    job: str | None,
) -> Path:
    r"""Write a text of a head and lines for rows.

    Args:
        path: The file.
        head: What comes first.
        rows: The arrays.
        lines: From a slice of rows and the arrays' rows to their lines.
        job: See `vidfuse._unfinished.Unfinished`.

    Example:
        >>> import tempfile
        >>> z = np.arange(3.0)
        >>> rows = Rows(lambda some: (z[some],), {"z": (z.dtype, z.shape)}, step=2)
        >>> path = write_text(f"{tempfile.mkdtemp()}/a.txt", "z\n", rows, lambda _, arrays: f"{arrays[0]}\n", None)
        >>> path.read_text().splitlines()
        ['z', '[0. 1.]', '[2.]']
    """
    with Unfinished(path, job) as work:
        done, length = work.state or (0, 0)
        with work.open(length) as stream:
            if not length:
                stream.write(head.encode())
            for some, arrays in rows.blocks(done):
                stream.write(lines(some, arrays).encode())
                work.checkpoint(stream, (some.stop, stream.tell()))
        work.publish()
    return Path(path)


def write_arrays(
    path: str | os.PathLike[str], rows: Rows, others: Mapping[str, NDArray[Any]] | None, job: str | None
) -> Path:
    """Write an .npz file of arrays that are read by rows and of others; or, where `others` is None, one .npy file."""
    with Unfinished(path, job) as work:
        with _Regions(work, rows, zipped=others is not None) as regions:
            regions.fill()
            if others is not None:
                regions.close_zip(others)
        work.publish()
    return Path(path)


class _Regions:
    """A file in which each array has its place from the start.

    .npz   local header │ .npy header │ rows of "scores" │ local header │ .npy header │ rows of "top" │ other entries
    .npy                  .npy header │ rows
    """

    def __init__(self, work: Unfinished, rows: Rows, *, zipped: bool, name: str = "output") -> None:
        self._work, self._rows = work, rows
        self._done, self._sums = 0, [0] * len(rows.arrays)
        if work.state is not None:
            self._done, self._sums = work.state
        self._entries: list[zipfile.ZipInfo] = []
        self.starts: list[int] = []
        self._headers: list[bytes] = []
        self.end = 0
        for entry, (dtype, shape) in rows.arrays.items():
            header = _npy_header(dtype, shape)
            info = _entry(entry)
            info.file_size = info.compress_size = len(header) + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            info.CRC, info.header_offset = 0, self.end
            local = info.FileHeader(zip64=True) if zipped else b""
            self._entries.append(info)
            self._headers.append(header)
            self.starts.append(self.end + len(local) + len(header))
            self.end += len(local) + info.file_size
        if not self._done:
            self._sums = [zlib.crc32(header) for header in self._headers]
        self._zipped = zipped
        path = work.beside(name)
        self.stream: IO[bytes] = path.open("r+b" if self._done and path.exists() else "w+b")

    def __enter__(self) -> _Regions:
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()

    def fill(self) -> None:
        """Write the rows that are not there yet, and then the headers, which hold the checksums."""
        row_bytes = [dtype.itemsize * int(np.prod(shape[1:])) for dtype, shape in self._rows.arrays.values()]
        several = len(row_bytes) > 1
        self.stream.seek(self.starts[0] + self._done * row_bytes[0])
        for rows, arrays in self._rows.blocks(self._done):
            for number, array in enumerate(arrays):
                data = np.ascontiguousarray(array).view(np.uint8).data
                if several:
                    self.stream.seek(self.starts[number] + rows.start * row_bytes[number])
                self.stream.write(data)
                if self._zipped:
                    self._sums[number] = zlib.crc32(data, self._sums[number])
            self._done = rows.stop
            self._work.checkpoint(self.stream, (self._done, self._sums))
        for info, header, total in zip(self._entries, self._headers, self._sums, strict=True):
            info.CRC = total
            self.stream.seek(info.header_offset)
            self.stream.write((info.FileHeader(zip64=True) if self._zipped else b"") + header)
        self.stream.truncate(self.end)
        self.stream.seek(self.end)
        self._work.checkpoint(self.stream, (self._done, self._sums), last=True)

    def close_zip(self, others: Mapping[str, NDArray[Any]]) -> None:
        """Add the entries of other arrays, and the directory of all."""
        with zipfile.ZipFile(self.stream, "w") as archive:
            for info in self._entries:
                archive.filelist.append(info)
                archive.NameToInfo[info.filename] = info
            for name, array in others.items():
                with archive.open(_entry(name), "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, array, allow_pickle=False)


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
    info.external_attr = 0o600 << 16
    return info


def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.getvalue()


def write_parquet(
    path: str | os.PathLike[str], rows: Rows, columns: Callable[[slice, tuple[NDArray[Any], ...]], Any], job: str | None
) -> Path:
    """Write a parquet file.

    Args:
        path: The file.
        rows: The arrays.
        columns: From a slice of rows and the arrays' rows to a mapping of columns.
        job: See `vidfuse._unfinished.Unfinished`.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("writing parquet files", "all") from error
    with Unfinished(path, job, kept="rows") as work:
        with _Regions(work, rows, zipped=False, name="rows") as regions:
            regions.fill()
            step = max(1, _GROUP * len(rows) // regions.end)
            kept = [
                np.memmap(regions.stream, dtype, "r", start, shape)
                for start, (dtype, shape) in zip(regions.starts, rows.arrays.values(), strict=True)
            ]
        writer = None
        try:
            for start in range(0, len(rows), step):
                some = slice(start, min(start + step, len(rows)))
                table = pyarrow.table(columns(some, tuple(array[some] for array in kept)))
                if writer is None:  # numbers that hardly repeat need no dictionary, which takes most of the time
                    repeat = [field.name for field in table.schema if not pyarrow.types.is_floating(field.type)]
                    writer = parquet.ParquetWriter(work.path, table.schema, use_dictionary=repeat)
                writer.write_table(table, row_group_size=step)
        finally:
            if writer is not None:
                writer.close()
        work.publish()
    return Path(path)


def write_cache(
    path: str | os.PathLike[str],
    rows: Rows,
    *,
    ids: NDArray[np.str_],
    labels: NDArray[np.int64] | None,
    classes: Sequence[str] | None,
    kind: Kind,
    job: str | None,
) -> Path:
    """Write one member's cache; the arrays are one, of float16 or float32."""
    ((dtype, shape),) = rows.arrays.values()
    step = max(1, _PART // (dtype.itemsize * int(np.prod(shape[1:]))))
    ordered = bool(np.all(ids[1:] > ids[:-1]))  # as a cache has its videos where it does not say otherwise
    meta = CacheMeta(
        kind=kind,
        n_classes=shape[-1],
        n_views=shape[1] if len(shape) == 3 else None,
        dtype=dtype.name,
        labelled=labels is not None,
        classes=None if classes is None else tuple(classes),
        expected_ids=None if ordered else tuple(ids.tolist()),
    )
    with Unfinished(path, job, folder=True) as work:
        work.path.mkdir(exist_ok=True)
        sweep(work.path)  # what a killed process left of a part
        for some, (scores,) in rows.blocks(work.state or 0, step):
            content = encode_part(ids[some], scores, None if labels is None else labels[some], kind)
            key = hashlib.sha256("\0".join(ids[some].tolist()).encode()).hexdigest()[:32]
            publish(work.path / f"part-{key}{PART_SUFFIX}", content.body, content)
            work.checkpoint(None, some.stop)
        publish(work.path / META_NAME, [encode_meta(meta)])
        work.publish()
    return Path(path)
