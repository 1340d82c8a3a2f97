"""What a value out of a file can be, by its type: names, labels, or the scores of one video or of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import first_few
from vidfuse.errors import InputError
from vidfuse.formats.containers import SPARE_BYTES
from vidfuse.stack.frames import label_indices

__all__ = [
    "as_labels",
    "as_names",
    "describe",
    "is_cells",
    "is_matrix",
    "is_numbers",
    "is_row",
    "is_video",
    "label_values",
    "stack_videos",
    "whole",
]


def as_names(value: Any) -> list[str] | None:
    """A list of texts, if that is what the value is."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "USO" or value.size != len(np.atleast_1d(value)):
            return None
        value = value.reshape(-1).tolist()
    if not isinstance(value, list) or not value or not all(isinstance(item, str | bytes) for item in value):
        return None
    return [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in value]


def as_labels(value: Any) -> NDArray[np.int64] | None:
    """Integers (N,), if that is what the value is: an array, a column, or a list of numbers or one-element arrays."""
    if isinstance(value, list) and value and all(isinstance(item, int | np.ndarray) for item in value):
        if not all(isinstance(item, int) or (item.size == 1 and item.dtype.kind in "iu") for item in value):
            return None
        value = np.array([item if isinstance(item, int) else int(item.reshape(-1)[0]) for item in value])
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.ndim not in (1, 2):
        return None
    return value.reshape(-1).astype(np.int64) if value.size == len(value) else None


def label_values(value: Any, n: int, classes: Sequence[str] | None = None) -> NDArray[np.int64]:
    """Labels under a name that says so: integers, whole numbers as floats (3.0 is 3), or names of classes."""
    found = as_labels(value)
    if found is not None:
        return found
    names = as_names(value)
    if names is not None:
        return label_indices(names, classes)
    cells = value.reshape(-1).tolist() if isinstance(value, np.ndarray) and value.dtype == object else value
    if isinstance(cells, list):
        return np.array([whole(cell) for cell in cells], dtype=np.int64)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise InputError(f"expected one label for each video, got {describe(value)}")
    if value.dtype.kind == "f" and value.size == len(np.atleast_1d(value)) and (value == np.floor(value)).all():
        return value.reshape(-1).astype(np.int64)
    if value.shape[:1] != (n,) or value.size != n:
        raise InputError(
            f"expected one label for each of {n} videos, got shape {value.shape}; vidfuse fuses single-label "
            "classification only"
        )
    raise InputError(f"expected integer labels, got dtype {value.dtype}")


def whole(value: Any) -> int:
    """Return the one whole number that a label is: a number, or an array or list of one."""
    flat = isinstance(value, int | float | np.ndarray) or is_numbers(value)
    array = np.asarray(value) if flat else None
    if array is None:
        raise InputError(f"expected one label for each video, got {describe(value)}")
    if array.size != 1:
        raise InputError(
            f"expected one label for each video, got {array.size}; vidfuse fuses single-label classification only (if "
            "these are batches, save their videos one by one)"
        )
    number = array.reshape(-1)[0]
    if array.dtype.kind not in "iuf" or not float(number).is_integer():
        raise InputError(f"expected integer labels, got dtype {array.dtype}")
    return int(number)


def is_numbers(value: Any) -> bool:
    """Whether this is a flat list of numbers."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, int | float) for item in value)


def is_video(value: Any) -> bool:
    """Whether these can be the scores of one video: (K,), (V, K) or (segments, crops, K), as an array or as lists."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind == "f" and value.ndim in (1, 2, 3) and value.shape[-1] > 1
    if is_numbers(value):
        return len(value) > 1 and any(isinstance(item, float) for item in value)
    return isinstance(value, list) and bool(value) and all(is_numbers(view) and is_video(view) for view in value)


def is_matrix(value: Any) -> bool:
    """Whether these can be the scores of all videos: (N, K) or (N, V, K), or one array a video."""
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3) and value.dtype.kind == "f"
    return isinstance(value, list) and len(value) > 0 and all(is_video(video) for video in value)


def is_cells(value: Any) -> bool:
    """Whether this is an array of objects, as TSN's toolkit writes one."""
    return isinstance(value, np.ndarray) and value.dtype == object and value.ndim > 0 and value.size > 0


def is_row(value: Any) -> bool:
    """Whether this is one video as a row of two or three cells, one of them its scores."""
    return (
        isinstance(value, list)
        and len(value) in (2, 3)
        and [is_video(cell) for cell in value].count(True) == 1
        and all(is_video(cell) or is_mark(cell) for cell in value)
    )


def is_mark(value: Any) -> bool:
    """Whether this is a name, an index or a label."""
    return isinstance(value, str | int) or (isinstance(value, np.ndarray) and value.dtype.kind in "iu")


def stack_videos(videos: Iterable[Any], size: int) -> NDArray[Any] | list[NDArray[Any]]:
    """Stack each video's scores, (K,), (V, K) or (segments, crops, K); videos with different V stay a list."""
    flat: list[NDArray[Any]] = []
    left = SPARE_BYTES + 8 * size
    for row, video in enumerate(videos):
        left -= video.nbytes if isinstance(video, np.ndarray) else 8 * _length(video)
        if left < 0:  # a pickle may name one array a thousand times
            raise InputError("its videos repeat the same numbers far beyond the file's size; a damaged file?")
        array = video if isinstance(video, np.ndarray) else _from_lists(video, row)
        if array.dtype.kind != "f" or array.ndim not in (1, 2, 3) or not array.size:
            raise InputError(
                f"row {row}: expected floating-point scores (K,), (V, K) or (segments, crops, K), got dtype "
                f"{array.dtype}, shape {array.shape}"
            )
        flat.append(array if array.ndim < 3 else array.reshape(-1, array.shape[-1]))
    widths = {array.shape[-1] for array in flat}
    if len(widths) > 1 or len({array.ndim for array in flat}) > 1:
        raise InputError(f"videos have different numbers of classes or axes: {first_few(sorted(widths))} classes")
    if not flat:
        raise InputError("expected predictions of at least one video, got none")
    if flat[0].ndim == 2 and all(len(array) == 1 for array in flat):
        flat = [array[0] for array in flat]  # (1, K) is (K,): one view of every video is no axis
    if len({array.shape for array in flat}) == 1:
        return np.stack(flat)
    return flat


def _length(video: Any) -> int:
    return sum(len(view) if isinstance(view, list) else 1 for view in video) if isinstance(video, list) else 1


def _from_lists(video: Any, row: int) -> NDArray[Any]:
    if is_numbers(video):
        return np.array(video, dtype=np.float64)
    if isinstance(video, list) and all(is_numbers(view) and len(view) == len(video[0]) for view in video):
        return np.array(video, dtype=np.float64)
    raise InputError(
        f"row {row}: expected the scores of one video, got {describe(video)}; re-save them as NumPy arrays"
    )


def describe(content: Any) -> str:
    """Say in a few words what a content looks like.

    Example:
        >>> describe({"a": np.zeros((2, 3)), "b": [1, 2]})
        "a dict of 2: 'a' (an array (2, 3) of float64), 'b' (a list of 2, the first a int)"
    """
    if isinstance(content, np.ndarray):
        return f"an array {content.shape} of {content.dtype}"
    if isinstance(content, dict):
        if not content:
            return "an empty dict"
        if len(content) > 8 and len({v.shape for v in content.values() if isinstance(v, np.ndarray)}) > 4:
            return f"a dict of {len(content)} arrays of many shapes: the weights of a network?"
        shown = ", ".join(
            f"{key!r} ({describe(value) if not isinstance(value, dict) else 'a dict'})"
            for key, value in list(content.items())[:3]
        )
        return f"a dict of {len(content)}: {shown}{', …' if len(content) > 3 else ''}"
    if isinstance(content, list):
        if not content:
            return "an empty list"
        first = content[0]
        what = describe(first) if isinstance(first, np.ndarray) else f"a {type(first).__name__}"
        return f"a list of {len(content)}, the first {what}"
    return f"{type(content).__name__} {str(content)[:40]!r}"
