"""What a file's bytes hold: arrays and plain values, or text, whichever of the known containers it is.

Nothing in a file is ever run, and what it unpacks to stays within a multiple of its size.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import mmap
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import naming
from vidfuse.errors import InputError
from vidfuse.formats.safe_pickle import loads

__all__ = ["MAX_RATIO", "SPARE_BYTES", "Parquet", "Stored", "Text", "open_stored", "read_content", "read_text"]

MAX_RATIO: Final = 200  # an archive that unpacks to more than this many times its size is a bomb
SPARE_BYTES: Final = 1 << 20
_PIECE: Final = 1 << 16
_MAX_NPY_HEADER: Final = 1 << 16
_NPY_HEADER: Final = re.compile(
    rb"\{'descr': '([<>|](?:[fiub][1248]|c8|c16|[SU]\d{1,5})|\|O)', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18},?)?)\),? ?\} *\n?$"
)
_TENSORS: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
_TENSORS.update({"I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"})
_PICKLES: Final = (".pkl", ".pickle", ".p", ".pk", ".pt", ".pth", ".bin", ".npy", ".npz")
_JSON_LINES: Final = (".jsonl", ".ndjson")
_JSON_START: Final = re.compile(rb'(\{\s*"|\[\s*["\[{])')
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")  # byte order marks
_TEXTS: Final = (".csv", ".tsv", ".txt", ".lst", ".list", ".dat", ".log")


@dataclass(frozen=True)
class Stored:
    """A file's bytes, or what it holds compressed.

    Attributes:
        path: The file.
        suffix: Its suffix in lower case, without that of a compression.
        start: Its first bytes.
        size: How many there are.
        data: All of them where they were unpacked; else they are in the file.
    """

    path: Path
    suffix: str
    start: bytes
    size: int
    data: bytes | None = None

    def read(self) -> bytes:
        """Return all bytes."""
        return self.path.read_bytes() if self.data is None else self.data

    def stream(self) -> IO[bytes]:
        """Return the bytes as an open file."""
        return self.path.open("rb") if self.data is None else io.BytesIO(self.data)


@dataclass(frozen=True)
class Text:
    """A file of text, which is a table or a list."""

    text: str


@dataclass(frozen=True)
class Parquet:
    """A parquet file, which is a table."""

    stream: IO[bytes]


def open_stored(path: Path) -> Stored:
    """Look at a file's first bytes, and unpack one that gzip has packed.

    Raises:
        InputError: No such file, or an empty one, or one that unpacks to far too much.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found {'a folder' if path.is_dir() else 'none'}")
    with path.open("rb") as stream:
        start = stream.read(512)
    stored = Stored(path, path.suffix.lower(), start, path.stat().st_size)
    if start.startswith(b"\x1f\x8b"):
        stored = _unpacked(stored)
    if not stored.start.strip(b"\xef\xbb\xbf\r\n\t "):
        blank = stored.size <= len(stored.start) or not stored.read().strip()
        if blank:
            raise InputError(f"{path}: the file is empty ({stored.size} bytes); was it written to the end?")
    return stored


def _unpacked(stored: Stored) -> Stored:
    limit = SPARE_BYTES + MAX_RATIO * stored.size
    pieces: list[bytes] = []
    try:
        with gzip.open(stored.path) as stream:
            while piece := stream.read(_PIECE):
                pieces.append(piece)
                limit -= len(piece)
                if limit < 0:
                    raise InputError(f"{stored.path}: it unpacks to over {MAX_RATIO} times its size; a damaged file?")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{stored.path}: damaged .gz file: {error}") from error
    data = b"".join(pieces)
    name = PurePath(stored.path.stem) if stored.suffix in (".gz", ".gzip") else stored.path
    return Stored(stored.path, name.suffix.lower(), data[:512], len(data), data)


def read_content(stored: Stored) -> Any:
    """Return what a file holds: arrays, numbers, texts, lists and dicts; or a `Text` or `Parquet`.

    Raises:
        InputError: A damaged file, a pickle that names more than arrays, or a container that is not known.
    """
    if looks := _known_start(stored):
        raise InputError(f"{stored.path}: {looks}")
    for fits, read, _ in _CONTAINERS:
        if fits(stored):
            content = read(stored)
            _check_repeats(content, stored)
            return content
    raise InputError(f"{stored.path}: {_what_it_looks_like(stored)}")


def _check_repeats(content: Any, stored: Stored) -> None:
    """Refuse lists and dicts that a pickle names again and again: going through them would take any amount of work."""
    left = SPARE_BYTES + 16 * stored.size
    todo = [content]
    while todo:
        holder = todo.pop()
        if isinstance(holder, np.ndarray):
            holder = holder.reshape(-1).tolist() if holder.dtype == object else ()
        if isinstance(holder, list | tuple | dict):
            left -= len(holder)
            if left < 0:
                raise InputError(f"{stored.path}: it repeats the same lists far beyond its size; a damaged file?")
            values = holder.values() if isinstance(holder, dict) else holder
            todo += [value for value in values if isinstance(value, list | dict | np.ndarray)]


def _is_text(stored: Stored) -> bool:
    if stored.suffix in _TEXTS:
        return not stored.start.startswith(b"\x80")
    if stored.start.startswith(_UTF_16):
        return True
    return stored.suffix not in _PICKLES and b"\0" not in stored.start and not _is_old_pickle(stored)


def _is_old_pickle(stored: Stored) -> bool:
    """Whether this is a pickle of protocol 0 or 1, which is text or almost text: it ends with a stop."""
    return stored.start[:1] in b"(]}cIFSV" and stored.read()[-1:] == b"."


def _is_json(stored: Stored) -> bool:
    start = stored.start.replace(b"\0", b"") if stored.start.startswith(_UTF_16) else stored.start
    start = start.lstrip(b"\xef\xbb\xbf\xff\xfe\r\n\t ")
    if stored.suffix in (".json", *_JSON_LINES) or _JSON_START.match(start):
        return True
    return stored.suffix not in _TEXTS and start[:1] in (b"{", b"[") and _is_text(stored)


def _is_pickle(stored: Stored) -> bool:
    return stored.suffix in _PICKLES or stored.start.startswith(b"\x80") or _is_old_pickle(stored)


def _is_zip(stored: Stored) -> bool:
    return stored.start.startswith(b"PK\x03\x04")


def _is_safetensors(stored: Stored) -> bool:
    length = int.from_bytes(stored.start[:8], "little")
    return stored.start[8:9] == b"{" and 2 <= length <= stored.size - 8


def read_text(path: Path) -> str:
    """Return what a text file holds, as UTF-8, or UTF-16 with its byte order mark, compressed or not."""
    return _read_text(open_stored(path)).text


def _read_text(stored: Stored) -> Text:
    try:
        text = stored.read().decode("utf-16" if stored.start.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{stored.path}: expected a text file in UTF-8, got bytes that are not: {error}; save it as UTF-8"
        ) from error
    if "\0" in text:
        raise InputError(f"{stored.path}: expected a text file, got zero bytes: UTF-16? Save it as UTF-8")
    return Text(text)


def _read_json(stored: Stored) -> Any:
    """Read one value, also one that goes over several lines, or the list of those that stand one a line."""
    text = _read_text(stored).text
    try:
        if stored.suffix not in _JSON_LINES or "\n" in text.strip():
            return _json(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise InputError(f"{stored.path}: damaged json: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{stored.path}: damaged json: {error}") from error
    values = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            values += [_json(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise InputError(f"{stored.path}: damaged json: line {number}: {error}") from error
    return values


def _json(text: str) -> Any:
    return json.loads(text, parse_int=_plain_int, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict, whose keys have to be different: the last would be taken for all of the same name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return found


def _plain_int(digits: str) -> int:
    if len(digits) > 18:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _read_pickle(stored: Stored) -> Any:
    with naming(stored.path):
        return loads(stored.read())


def _read_safetensors(stored: Stored) -> dict[str, NDArray[Any]]:
    import safetensors

    content = {}
    try:
        for name, tensor in safetensors.deserialize(stored.read()):  # type: ignore[no-untyped-call]
            raw, dtype = tensor["data"], _TENSORS.get(tensor["dtype"])
            if dtype is None:
                raise InputError(f"{stored.path}: array {name!r} is of type {tensor['dtype']}, which is not known")
            values = np.frombuffer(raw, dtype).reshape(tensor["shape"])
            if tensor["dtype"] == "BF16":  # the upper halves of float32 numbers
                values = (values.astype("<u4") << np.uint32(16)).view("<f4")
            content[name] = values
    except (safetensors.SafetensorError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{stored.path}: damaged .safetensors file: {error}") from error
    return content


def _read_npy_file(stored: Stored) -> Any:
    """Map an .npy file of numbers; one of objects, or one that was packed, is read."""
    if stored.data is not None:
        return _read_npy(stored.data, str(stored.path))
    with stored.path.open("rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    dtype, shape, order, start = _npy_header(content, str(stored.path))
    if dtype.hasobject:
        return _objects(content[start:], str(stored.path))
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(stored.path, dtype=dtype, mode="r", offset=start, shape=shape, order=order)


def _read_npy(data: bytes, name: str) -> Any:
    """Read an array in .npy form; an array of objects goes through the restricted unpickler."""
    dtype, shape, order, start = _npy_header(data, name)
    if dtype.hasobject:
        return _objects(data[start:], name)
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.frombuffer(memoryview(data)[start:], dtype).reshape(shape, order=order)


def _objects(data: bytes, name: str) -> Any:
    """An array of objects, or the single object that `numpy.save` wrapped in one without axes."""
    with naming(name):
        found = loads(data)
    return found.item() if isinstance(found, np.ndarray) and found.dtype == object and found.ndim == 0 else found


def _npy_header(data: bytes | mmap.mmap, name: str) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"], int]:
    """Read an .npy header of version 1 or 2: dtype, shape, order, and where the numbers begin.

    Only the form that NumPy writes is accepted, and the numbers must fill the rest of the file.
    """
    width = 2 if data[6:8] == b"\x01\x00" else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    start = 8 + width + length
    found = _NPY_HEADER.match(data[8 + width : start]) if length < _MAX_NPY_HEADER else None
    if data[6:8] not in (b"\x01\x00", b"\x02\x00") or found is None:
        raise InputError(f"{name}: damaged, or not an .npy file of numbers: {data[:80]!r}")
    shape = tuple(int(extent) for extent in found[3].split(b",") if extent.strip())
    code = found[1].decode()
    try:
        dtype = np.dtype(object) if code == "|O" else np.dtype(code)
    except TypeError as error:
        raise InputError(f"{name}: damaged: {error}") from error
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    if not dtype.hasobject and size != len(data) - start:
        raise InputError(f"{name}: damaged: shape {shape} of {code} needs {size} bytes, {len(data) - start} are there")
    return dtype, shape, "F" if found[2] == b"True" else "C", start


def _read_zip(stored: Stored) -> Any:
    """Read the arrays of an .npz file, or what `torch.save` wrote: a pickle, and the storages of its tensors.

    Members are unpacked piece by piece, so that one that unpacks to far too much is noticed in time.
    """
    limit = SPARE_BYTES + MAX_RATIO * stored.size

    def member(archive: zipfile.ZipFile, name: str) -> bytes:
        nonlocal limit
        pieces = []
        with archive.open(name) as stream:
            while piece := stream.read(_PIECE):
                pieces.append(piece)
                limit -= len(piece)
                if limit < 0:
                    raise InputError(f"{stored.path}: it unpacks to over {MAX_RATIO} times its size; a damaged file?")
        return b"".join(pieces)

    try:
        with stored.stream() as stream, zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
            torch = next((name for name in names if name.endswith("/data.pkl")), None)
            if torch is not None:
                folder = torch.removesuffix("data.pkl")
                if f"{folder}byteorder" in names and member(archive, f"{folder}byteorder") != b"little":
                    raise InputError(f"{stored.path}: its tensors are not little-endian")
                pickled = member(archive, torch)
                return loads(pickled, lambda key: member(archive, f"{folder}data/{key}"), stored.size)
            if not all(name.endswith(".npy") for name in names) or not names:
                raise InputError(f"{stored.path}: {_what_it_looks_like(stored)}")
            return {n.removesuffix(".npy"): _read_npy(member(archive, n), f"{stored.path}: {n}") for n in names}
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError, KeyError),
    ) as error:
        if isinstance(error, InputError):
            raise error if str(stored.path) in str(error) else InputError(f"{stored.path}: {error}") from error
        if getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise  # what the system refuses is no damage; it is an invalid argument where offsets are damaged
        raise InputError(f"{stored.path}: damaged archive: {error}") from error


# The first that fits is taken: by what a file begins with, and where that says nothing, by its suffix.
_CONTAINERS: Final[tuple[tuple[Callable[[Stored], bool], Callable[[Stored], Any], str], ...]] = (
    (_is_zip, _read_zip, "NumPy's .npz, and what torch.save writes"),
    (lambda stored: stored.start.startswith(b"\x93NUMPY"), _read_npy_file, "NumPy's .npy, mapped"),
    (lambda stored: stored.start.startswith(b"PAR1"), lambda stored: Parquet(stored.stream()), "parquet"),
    (_is_safetensors, _read_safetensors, ".safetensors"),
    (_is_json, _read_json, "json, and json lines"),
    (_is_text, _read_text, "tables and lists as text"),
    (_is_pickle, _read_pickle, "pickles of arrays, tensors and plain containers"),
)
_STARTS: Final = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"<!DOCTYPE", "a web page; was the download answered by a login?"),
    (b"<html", "a web page; was the download answered by a login?"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file; save its arrays as .npz"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd; unpack it first"),
    (b"\xfd7zXZ", "packed by xz; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"ARROW1", "an Arrow file; save it as parquet"),
    (b"MATLAB", "a MATLAB file; save its arrays as .npz"),
    (b"SQLite", "a SQLite database; export a csv"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"%PDF", "a PDF"),
    (b"RIFF", "a video or sound file"),
)


def _known_start(stored: Stored) -> str | None:
    found = next((what for start, what in _STARTS if stored.start.startswith(start)), None)
    if found is None and stored.start[:3] == b"BZh" and stored.start[4:10] == b"1AY&SY":
        found = "packed by bzip2; unpack it first"
    if found is None and stored.start[4:8] == b"ftyp":
        found = "a video file"
    if found is None and stored.start[257:262] == b"ustar":
        found = "a tar archive; unpack it first"
    return None if found is None else f"this looks like {found}"


def _what_it_looks_like(stored: Stored) -> str:
    if _is_zip(stored):
        return "this looks like a zip archive of other files (a spreadsheet?); unpack it, or save a csv"
    known = ", ".join(what for _, _, what in _CONTAINERS)
    return f"{_known_start(stored) or f'it begins with {stored.start[:16]!r}'}; read are {known}"
