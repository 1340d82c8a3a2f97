"""What a cache says about itself, once: `meta.json`."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from vidfuse._checks import Kind, check_kind
from vidfuse.cache.layout import unique_keys
from vidfuse.errors import CacheConflictError, CacheCorruptError, CacheFormatError, InputError

__all__ = ["META_NAME", "CacheMeta", "check_same_meta", "decode_meta", "encode_meta", "plain_json", "read_meta"]

META_NAME: Final = "meta.json"
_FORMAT: Final = "vidfuse-logit-cache"
_VERSION: Final = 1
_MAX_BYTES: Final = 1 << 28
_IDS_KEY: Final = b'\n "expected_ids": ['


@dataclass(frozen=True)
class CacheMeta:
    """What all parts of one cache have in common.

    Attributes:
        kind: What the numbers are.
        n_classes: The number of classes K.
        n_views: The number of views V, or None without a view axis.
        dtype: "float32" or "float16".
        labelled: Whether the first append knew true classes; each part says for itself which it knows.
        classes: The classes' names, or None.
        fingerprint: What identifies the model and its checkpoint: any JSON value, compared on resuming.
        view_plan: How views were sampled: any JSON value, compared on resuming.
        expected_ids: Every video that the finished cache holds, in its order, or None where that is not known.
    """

    kind: Kind
    n_classes: int
    n_views: int | None
    dtype: str
    labelled: bool
    classes: tuple[str, ...] | None = None
    fingerprint: Any = None
    view_plan: Any = None
    expected_ids: tuple[str, ...] | None = None


def plain_json(value: Any, what: str) -> Any:
    """Return a value as JSON has it (tuples become lists), or refuse it."""
    try:
        return json.loads(json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: expected a JSON value (strings, numbers, lists, mappings): {error}") from error


def encode_meta(meta: CacheMeta) -> bytes:
    """Write `meta.json`: sorted keys, and a digest over everything else."""
    content = {"format": _FORMAT, "version": _VERSION, **asdict(meta)}
    return (
        json.dumps({**content, "digest": _digest(content)}, indent=1, sort_keys=True, ensure_ascii=False).encode()
        + b"\n"
    )


def _digest(content: dict[str, Any], expected_ids: bytes | None = None) -> str:
    """Return the digest of the content as JSON with sorted keys; `expected_ids` is that field's JSON, if at hand."""
    if expected_ids is None:
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    text = json.dumps({**content, "expected_ids": None}, sort_keys=True, ensure_ascii=False).encode()
    head, name, tail = text.partition(b'"expected_ids": ')  # within a string, quotes would follow a backslash
    state = _digested(head + name, expected_ids).copy()
    state.update(tail.removeprefix(b"null"))
    return state.hexdigest()


@lru_cache(maxsize=1)
def _digested(head: bytes, expected_ids: bytes) -> Any:
    """Return the state of a digest after these; the last one is kept, as a stack's members begin alike."""
    state = hashlib.sha256(head)
    state.update(expected_ids)
    return state


# A stack's members expect the same videos, and differ in the rest of what they say about themselves. The list of ids,
# nearly all of a meta.json, is cut out, and parsed once for all members: a stack of seven opens twice as fast.
#
#     {                                              {
#      "classes": […],                                "classes": […],
#      "expected_ids": [        ┐                     "expected_ids": null,
#       "ape",                  │ _parse_ids    +     "kind": "logits", …     json.loads
#       "bee"                   │ (kept)             }
#      ],                       ┘
#      "kind": "logits", …
#     }


_last = b""  # the list that was cut out last


@lru_cache(maxsize=1)
def _parse_ids(text: bytes) -> tuple[tuple[str, ...], bytes]:
    """Return the ids in a JSON list as `encode_meta` lays it out, and as the digest has it; the last result is kept."""
    joined = text.removeprefix(b"[\n  ").removesuffix(b"\n ]").replace(b",\n  ", b", ")  # no text has a line break
    return tuple(json.loads(text)), b"[" + joined + b"]"


def _cut_ids(text: bytes) -> tuple[bytes, bytes | None]:
    """Split a `meta.json`: its text with null for the expected ids, and their list, or None where it has none."""
    global _last
    start = text.find(_IDS_KEY)  # a line break cannot stand within a string: this is the field itself
    begin, known = start + len(_IDS_KEY) - 1, _last
    if start >= 0 and known and text.startswith(known, begin):
        return text[:begin] + b"null" + text[begin + len(known) :], known
    stop = text.find(b"\n ]", start)
    if start < 0 or stop < 0:
        return text, None
    _last = known = text[begin : stop + len(b"\n ]")]
    return text[:begin] + b"null" + text[begin + len(known) :], known


def read_meta(folder: Path) -> CacheMeta | None:
    """Read a folder's `meta.json`, or return None where there is none.

    Raises:
        CacheFormatError: Not a regular file, not a cache, or of a newer version.
        CacheCorruptError: Not what was written.
    """
    path = folder / META_NAME
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise CacheFormatError(f"{path}: expected a regular file, got {stat.filemode(status.st_mode)}; remove it")
    if status.st_size > _MAX_BYTES:
        raise CacheFormatError(f"{path}: {status.st_size} bytes; at most {_MAX_BYTES} are allowed")
    return decode_meta(path.read_bytes(), path)


def decode_meta(text: bytes, path: Path) -> CacheMeta:
    """Parse the bytes of a `meta.json`; `path` is named in errors."""
    text, listed = _cut_ids(text)
    try:
        content = json.loads(text, object_pairs_hook=unique_keys)
        ids, as_signed = (None, None) if listed is None else _parse_ids(listed)
        if listed is not None:
            content["expected_ids"] = ids
        marker, version, digest = content.pop("format"), content.pop("version"), content.pop("digest")
        found = _digest({"format": marker, "version": version, **content}, as_signed)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheFormatError(
            f"{path}: not the description of a logit cache: {error}; restore it, or remove the folder and write the "
            "cache again"
        ) from error
    if marker != _FORMAT:
        raise CacheFormatError(f"{path}: expected format {_FORMAT!r}, got {marker!r}")
    if not isinstance(version, int) or version > _VERSION:
        raise CacheFormatError(f"{path}: found version {version!r}, supported up to {_VERSION}: upgrade vidfuse")
    if found != digest and listed is not None:  # another program may have laid it out in another way
        found = _digest({"format": marker, "version": version, **content})
    if found != digest:
        raise CacheCorruptError(
            f"{path}: not the bytes that were written: expected digest {digest}, got {found}; "
            "restore it, or write the cache again"
        )
    try:
        for name in ("classes", "expected_ids"):
            content[name] = None if content[name] is None else tuple(content[name])
        check_kind(content["kind"])
        return CacheMeta(**content)
    except (KeyError, TypeError, InputError) as error:
        raise CacheFormatError(f"{path}: not the description of a logit cache: {error}") from error


def check_same_meta(mine: CacheMeta, stored: CacheMeta, folder: Path) -> None:
    """Refuse to write into a cache that was begun with another model, view plan or layout.

    Class names and expected ids are compared only where both sides give them; a writer may expect fewer videos than the
    cache does.
    """
    optional = ("classes", "expected_ids")
    for field in fields(CacheMeta):
        own, other = getattr(mine, field.name), getattr(stored, field.name)
        if field.name == "labelled" or own == other or (field.name in optional and (own is None or other is None)):
            continue
        shown = repr(own), repr(other)
        if field.name == "expected_ids":
            if set(own) <= set(other):
                continue  # the order is the first writer's
            shared = len(set(own) & set(other))
            shown = f"{len(own)} ids, {shared} of them the same (a list that grows holds all)", f"{len(other)} ids"
        raise CacheConflictError(
            f"{folder}: this cache was begun with {field.name} {shown[1]}, and is resumed with {shown[0]}; nothing was "
            "written: use the same settings, or another folder"
        )
