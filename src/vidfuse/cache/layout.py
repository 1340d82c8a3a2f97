"""What the header of a part says about its tensors, checked: nothing else about a part's layout is believed.

A part is laid out without gaps, labels being optional::

    length of the header | header (JSON) | labels | ids | scores
                                         0        a     b        c      offsets in the header: labels [0, a], ids [a, b]
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from vidfuse._checks import KINDS, Kind

__all__ = ["DTYPES", "Entry", "Layout", "parse_layout", "unique_keys"]

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
_ALLOWED: Final = {"labels": ("I64",), "ids": ("U8",), "scores": ("F32", "F16")}
_AXES: Final = {"labels": (1,), "ids": (2,), "scores": (2, 3)}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies behind the header, and what it is."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """What a header says: the kind of the scores and the tensors, in the order in which they lie."""

    kind: Kind
    labels: Entry | None
    ids: Entry
    scores: Entry


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's pairs as a dict, or raise a ValueError for a key that stands twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return found


@lru_cache(maxsize=64)  # the parts of a stack differ in their digests only
def parse_layout(text: bytes) -> Layout:
    """Read a header from which the digests' values were taken.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError: It is not what a part says.
    """
    content = json.loads(text, object_pairs_hook=unique_keys)
    kind = content.pop("__metadata__")["kind"]
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}")
    if set(content) - {"labels"} != {"ids", "scores"}:
        raise ValueError(f"expected tensors ids, scores and labels, got {sorted(content)}")
    rows, position = content["scores"]["shape"][0], 0
    entries = {}
    for name in (name for name in _ALLOWED if name in content):
        entry = _parse_entry(name, content[name])
        if entry.start != position or entry.shape[0] != rows:
            raise ValueError(
                f"{name} of shape {entry.shape} starts at {entry.start}, expected {rows} rows at {position}"
            )
        entries[name], position = entry, entry.stop
    if entries["scores"].shape[-1] < 2:
        raise ValueError(f"expected scores of at least two classes, got shape {entries['scores'].shape}")
    return Layout(kind, entries.get("labels"), entries["ids"], entries["scores"])


def _parse_entry(name: str, entry: Any) -> Entry:
    shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
    if entry["dtype"] not in _ALLOWED[name] or len(shape) not in _AXES[name]:
        raise ValueError(f"{name} of dtype {entry['dtype']} and shape {shape}, which no part has")
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in (*shape, start, stop)):
        raise ValueError(f"{name} has an impossible shape or offset: {shape}, {start} to {stop}")
    size = DTYPES[entry["dtype"]].itemsize
    for extent in shape:
        size *= extent
    if size != stop - start or size == 0:
        raise ValueError(f"{name} of shape {shape} needs {size} bytes, its offsets give {stop - start}")
    return Entry(DTYPES[entry["dtype"]], shape, start, stop)
