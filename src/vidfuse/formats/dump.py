"""Read one file of predictions that another tool dumped: pickles, .npy, .npz, csv and parquet.

Formats are told apart by what they contain. What the numbers are is never guessed.
"""

from __future__ import annotations

import errno
import mmap
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import first_few
from vidfuse.errors import InputError
from vidfuse.formats.safe_pickle import load_pickle, loads
from vidfuse.formats.tables import read_csv, read_parquet
from vidfuse.stack.frames import Dump

__all__ = ["read_dump"]

_SCORE_KEYS: Final = ("scores", "logits", "preds", "pred_scores", "probabilities")
_LABEL_KEYS: Final = ("labels", "label", "gt_labels", "y")
_ID_KEYS: Final = ("ids", "video_ids", "names")
_MAX_RATIO: Final = 200  # a zip member that unpacks to more than this many times the file is a bomb
_MAX_NPY_HEADER: Final = 1 << 16
_NPY_HEADER: Final = re.compile(
    rb"\{'descr': '([<>|](?:[fiub][1248]|c8|c16|[SU]\d{1,5})|\|O)', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18},?)?)\),? ?\} *\n?$"
)
_SPARE_BYTES: Final = 1 << 20
_PIECE: Final = 1 << 16


def read_dump(path: str | Path, *, head: str | None = None, classes: Sequence[str] | None = None) -> Dump:
    """Read one file of predictions, whichever tool wrote it.

    Args:
        path: A pickle (MMAction2, PySlowFast, pyskl), .npy, .npz (NumPy, TSN), .csv or .parquet.
        head: Which scores to take where a video has several, by name.
        classes: Class names, for tables that use them.

    Raises:
        InputError: No such file, an unknown layout, a damaged file, or a pickle that needs more than arrays.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/swin.npz", scores=np.eye(2), ids=["a", "b"])
        ...     dump = read_dump(f"{folder}/swin.npz")
        >>> dump.scores.shape, dump.ids.tolist(), dump.labels
        ((2, 2), ['a', 'b'], None)
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: expected a file of predictions, found none")
    with file.open("rb") as stream:
        start = stream.read(8)
    # first bytes   suffix        read as
    # PK\3\4        not .pkl      .npz: arrays by name (torch's own zip files, .pkl, are refused as pickles)
    # \x93NUMPY     any           .npy: one array, mapped
    # PAR1          any           parquet
    # any           .csv, .txt    csv
    # any           any           pickle
    try:
        if start.startswith(b"PK\x03\x04") and file.suffix.lower() != ".pkl":
            return _from_npz(_read_npz(file), file)
        if start.startswith(b"\x93NUMPY"):
            return _from_npz({"scores": _map_npy(file)}, file)
        if start.startswith(b"PAR1"):
            return read_parquet(file, classes)
        if file.suffix.lower() in (".csv", ".txt"):
            return read_csv(file, classes)
        return _from_pickle(load_pickle(file), file, head)
    except MemoryError as error:
        raise InputError(f"{file}: it asks for more memory than there is") from error


def _map_npy(path: Path) -> Any:
    """Map an .npy file of numbers; one of objects is read."""
    with path.open("rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    dtype, shape, order, start = _npy_header(content, str(path))
    if dtype.hasobject:
        return loads(content[start:])
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape, order=order)


def _read_npy(data: bytes, name: str) -> Any:
    """Read an array in .npy form; an array of objects goes through the restricted unpickler."""
    dtype, shape, order, start = _npy_header(data, name)
    if dtype.hasobject:
        return loads(data[start:])
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.frombuffer(memoryview(data)[start:], dtype).reshape(shape, order=order)


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


def _read_npz(path: Path) -> dict[str, Any]:
    """Read the arrays of an .npz file, piece by piece, so that one that unpacks to far too much is noticed in time."""
    limit = _SPARE_BYTES + _MAX_RATIO * path.stat().st_size
    content = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                pieces = []
                with archive.open(info) as stream:
                    while piece := stream.read(_PIECE):
                        pieces.append(piece)
                        limit -= len(piece)
                        if limit < 0:
                            raise InputError(f"{path}: it unpacks to over {_MAX_RATIO} times its size; a damaged file?")
                data = b"".join(pieces)
                content[info.filename.removesuffix(".npy")] = _read_npy(data, f"{path}: {info.filename}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        if isinstance(error, InputError) or getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise  # what the system refuses is no damage; it is an invalid argument where offsets are damaged
        raise InputError(f"{path}: damaged .npz archive: {error}") from error
    return content


def _from_npz(content: Mapping[str, Any], path: Path) -> Dump:
    """Find scores, labels and ids among arrays by name, of an .npz file or a pickled dict.

    Scores are the array with one of the usual names, or else the only floating-point one of two or three axes. An array
    of objects holds one array a video, as TSN's toolkit writes it.
    """
    key = next((name for name in _SCORE_KEYS if name in content), None)
    if key is None:
        matrices = [
            n for n, a in content.items() if isinstance(a, np.ndarray) and a.ndim in (2, 3) and a.dtype.kind == "f"
        ]
        if len(matrices) != 1:
            raise InputError(
                f"{path}: expected an array called {' or '.join(_SCORE_KEYS)}, or a single one of shape (N, K) or "
                f"(N, V, K), got {first_few(content)}"
            )
        key = matrices[0]
    scores: NDArray[Any] | list[NDArray[Any]] = _plain(content[key], path)
    labels = _first(content, _LABEL_KEYS)
    labels = None if labels is None else _plain(labels, path)
    ids, classes = _names(_first(content, _ID_KEYS), path), _names(content.get("classes"), path)
    if isinstance(scores, np.ndarray) and scores.dtype == object:
        scores, own = _tsn_scores(scores, path)
        labels = own if labels is None or (own is not None and len(labels) != len(scores)) else labels
    if isinstance(labels, np.ndarray) and labels.dtype == object:
        labels = np.array([_whole(value, path) for value in labels.tolist()])
    return Dump(
        scores,
        labels,
        None if ids is None else np.array(ids, dtype=np.str_),
        None if classes is None else tuple(classes),
    )


def _plain(value: Any, path: Path) -> NDArray[Any]:
    """An array, or a flat list of numbers as one; nested lists could hide any amount of work."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value):
        return np.array(value)
    if isinstance(value, int | float):
        return np.array(value)
    raise InputError(f"{path}: expected arrays of numbers, got {type(value).__name__}; re-save them as NumPy arrays")


def _names(value: Any, path: Path) -> list[str] | None:
    if value is None:
        return None
    listed = value.reshape(-1).tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(name, str | int) for name in listed):
        raise InputError(f"{path}: expected a list of names, got {type(value).__name__}")
    return [str(name) for name in listed]


def _first(content: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((content[name] for name in names if name in content), None)


def _tsn_scores(cells: NDArray[Any], path: Path) -> tuple[NDArray[Any] | list[NDArray[Any]], NDArray[Any] | None]:
    """Scores of TSN's toolkit: an object array of arrays (segments, crops, K), or of pairs (array, label)."""
    if cells.ndim == 2 and cells.shape[1] == 2:
        labels = np.array([_whole(value, path) for value in cells[:, 1].tolist()])
        return _stack_videos(cells[:, 0].tolist(), path), labels
    return _stack_videos(cells.reshape(-1).tolist() if cells.ndim == 1 else list(cells), path), None


def _whole(value: Any, path: Path) -> int:
    array = _plain(value, path)
    if array.size != 1:
        raise InputError(
            f"{path}: expected one label for each video, got {array.size}; "
            "vidfuse fuses single-label classification only"
        )
    if array.dtype.kind not in "iu":
        raise InputError(f"{path}: expected integer labels, got dtype {array.dtype}")
    return int(array.reshape(-1)[0])


def _from_pickle(content: Any, path: Path, head: str | None) -> Dump:
    """Tell tools apart by what the pickle holds; the first that fits is taken.

    ==========================================  =====================================
    a dict                                      arrays by name, as in an .npz file
    an array                                    scores alone
    a list of dicts                             MMAction2, one dict a video
    [array of ≥ 2 axes, labels as long]         PySlowFast
    a list of arrays                            pyskl, one array a video
    ==========================================  =====================================
    """
    if isinstance(content, dict):
        return _from_npz({str(key): value for key, value in content.items()}, path)
    if isinstance(content, np.ndarray):
        return _from_npz({"scores": content}, path)
    if not isinstance(content, list | tuple) or not content:
        raise InputError(f"{path}: expected a list of predictions, got {type(content).__name__}")
    if all(isinstance(item, dict) for item in content):
        return _from_mmaction2(content, path, head)
    if len(content) == 2:
        preds, labels = (_array_of(part) for part in content)
        if (
            preds is not None
            and labels is not None
            and preds.ndim >= 2
            and labels.ndim == 1
            and len(preds) == len(labels)
        ):
            return Dump(preds, labels)
    if all(isinstance(item, np.ndarray) for item in content):
        return Dump(_stack_videos(list(content), path))
    raise InputError(
        f"{path}: expected MMAction2's list of dicts, PySlowFast's [preds, labels] or a list of arrays, got a list of "
        f"{first_few(sorted({type(item).__name__ for item in content}))}"
    )


def _array_of(value: Any) -> NDArray[Any] | None:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return np.array(value)
    return None


def _from_mmaction2(samples: Sequence[dict[str, Any]], path: Path, head: str | None) -> Dump:
    """Collect a video's scores, label and id from each dict.

    Scores are an array, or {head: array}, of which the only one or the one called `head` is taken; labels and ids count
    only where every dict has one.
    """
    scores, labels, ids = [], [], []
    for row, sample in enumerate(samples):
        found = sample.get("pred_score", sample.get("pred_scores"))
        if isinstance(found, dict):
            key = next(iter(found)) if head is None and len(found) == 1 else head
            if key not in found:
                raise InputError(
                    f"{path}: row {row} has the scores {first_few(found)}; say which with head=, got {head!r}"
                )
            found = found[key]
        if found is None:
            raise InputError(f"{path}: row {row}: expected a dict with pred_score, got {first_few(sample)}")
        scores.append(found)
        label = sample.get("gt_label", sample.get("gt_labels"))
        if isinstance(label, dict):
            label = next(iter(label.values()), None)
        if label is not None:
            labels.append(_whole(label, path))
        if isinstance(sample.get("video_id"), str):
            ids.append(sample["video_id"])
    complete = len(labels) == len(samples)
    return Dump(
        _stack_videos(scores, path),
        np.array(labels, dtype=np.int64) if complete else None,
        np.array(ids, dtype=np.str_) if len(ids) == len(samples) else None,
    )


def _stack_videos(videos: list[Any], path: Path) -> NDArray[Any] | list[NDArray[Any]]:
    """Stack each video's scores, (K,), (V, K) or (segments, crops, K); videos with different V stay a list."""
    flat = []
    for row, video in enumerate(videos):
        array = _plain(video, path)
        if array.dtype.kind != "f" or array.ndim not in (1, 2, 3) or not array.size:
            raise InputError(
                f"{path}: row {row}: expected floating-point scores (K,), (V, K) or (segments, crops, K), got dtype "
                f"{array.dtype}, shape {array.shape}"
            )
        flat.append(array if array.ndim < 3 else array.reshape(-1, array.shape[-1]))
    widths = {array.shape[-1] for array in flat}
    if len(widths) > 1 or len({array.ndim for array in flat}) > 1:
        raise InputError(
            f"{path}: videos have different numbers of classes or axes: {first_few(sorted(widths))} classes"
        )
    packed = _MAX_RATIO if path.suffix.lower() == ".npz" else 8
    if sum(array.nbytes for array in flat) > _SPARE_BYTES + packed * path.stat().st_size:
        raise InputError(f"{path}: its videos repeat the same numbers far beyond the file's size; a damaged file?")
    if len({array.shape for array in flat}) == 1:
        return np.stack(flat)
    return flat
