"""Videos' ids as parts hold them: UTF-8, padded with NUL to a common width.

    "a"   61 00 00 00 00 00 00 00
    "bé"  62 c3 a9 00 00 00 00 00

UTF-8 sorts as the texts do, and no id contains NUL. So stored ids are compared and sorted as they are, without decoding
them, and take a quarter of the bytes of NumPy's texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "check_packed",
    "hashed_ids",
    "join_packed",
    "pack_ids",
    "pack_texts",
    "packed_keys",
    "unpack_ids",
]


def pack_ids(ids: NDArray[np.str_]) -> NDArray[np.uint8]:
    """Return ids (N,) in their stored form (N, W), W a multiple of 8.

    Example:
        >>> pack_ids(np.array(["a", "bc"])).tolist()
        [[97, 0, 0, 0, 0, 0, 0, 0], [98, 99, 0, 0, 0, 0, 0, 0]]
    """
    codes = np.ascontiguousarray(ids).view(np.uint32).reshape(len(ids), -1)
    if codes.max(initial=0) < 0x80:
        encoded = codes.astype(np.uint8)
    else:
        joined = np.array([text.encode("utf-8") for text in ids.tolist()], dtype=np.bytes_)
        encoded = joined.view(np.uint8).reshape(len(ids), -1)
    return _padded(encoded)


def _padded(encoded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    n, width = encoded.shape
    packed = np.zeros((n, max(8, -(-width // 8) * 8)), dtype=np.uint8)
    packed[:, :width] = encoded
    return packed


def unpack_ids(packed: NDArray[np.uint8]) -> NDArray[np.str_]:
    """Return ids (N,) from their stored form (N, W).

    Example:
        >>> unpack_ids(np.array([[97, 0], [98, 99]], dtype=np.uint8)).tolist()
        ['a', 'bc']
    """
    if packed.max(initial=0) < 0x80:  # widening the bytes is a hundred times faster than decoding them
        return packed.astype(np.uint32).view(f"U{packed.shape[1]}").reshape(-1)
    return np.array([text.decode("utf-8") for text in packed_keys(packed).tolist()], dtype=np.str_)


def check_packed(packed: NDArray[np.uint8]) -> None:
    """Raise a UnicodeDecodeError where stored ids are not UTF-8."""
    if packed.max(initial=0) >= 0x80:
        unpack_ids(packed)


def packed_keys(packed: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Return stored ids as byte strings (N,), which sort and compare as the ids do."""
    return np.ascontiguousarray(packed).view(f"S{packed.shape[1]}").reshape(-1)


def join_packed(pieces: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Put stored ids one after the other, padded to the greatest width."""
    if len(pieces) == 1:
        return pieces[0]
    width = max(piece.shape[1] for piece in pieces)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]))) if p.shape[1] < width else p for p in pieces]
    return np.concatenate(padded)


def repeated_keys(pieces: Sequence[NDArray[np.uint8]]) -> bool:
    """Whether an id stands twice in these stored ids."""
    keys = np.sort(packed_keys(join_packed(pieces))) if pieces else np.zeros(0, dtype="S1")
    return bool((keys[1:] == keys[:-1]).any())


def hashed_ids(ids: NDArray[np.str_] | NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """Return a number for each id (N,), whatever the array's width: equal for equal ids, and hardly ever for others.

    It takes 8 bytes an id, and is sorted ten times faster than texts: to find whether ids are repeated at all. A text's
    number and that of its bytes may differ.

    Example:
        >>> bool(hashed_ids(np.array(["a", "b"]))[0] == hashed_ids(np.array(["a", "long"]))[0])
        True
    """
    code = np.dtype(np.uint32 if ids.dtype.kind == "U" else np.uint8)
    codes: NDArray[Any] = np.ascontiguousarray(ids).view(code).reshape(len(ids), -1)
    numbers = np.zeros(len(ids), dtype=np.uint64)
    for place in range(codes.shape[1]):  # a sum of code × odd number, modulo 2⁶⁴; the NULs behind an id add nothing
        factor = (0x9E3779B97F4A7C15 * (2 * place + 1) ^ (0xD1B54A32D192ED03 << (place % 8))) & 0xFFFFFFFFFFFFFFFF | 1
        numbers += codes[:, place] * np.uint64(factor)
    return numbers


def pack_texts(texts: tuple[str, ...]) -> NDArray[np.uint8]:
    """Return `pack_ids` of texts; the last result is kept, as the members of a stack expect the same videos."""
    global _last
    known, packed = _last
    if known is not texts:
        joined = "".join(texts)
        if joined.isascii() and len(set(map(len, texts))) == 1:  # as ids mostly are: in a third of the time
            packed = _padded(np.frombuffer(joined.encode(), np.uint8).reshape(len(texts), -1))
        else:
            packed = pack_ids(np.array(texts, dtype=np.str_))
        _last = texts, packed
    return packed


_last: tuple[tuple[str, ...], NDArray[np.uint8]] = (), np.zeros((0, 8), dtype=np.uint8)
