"""How a player turns and mirrors a video's frames: the display matrix of a file, and what it does to an array.

A display matrix maps a stored pixel (column p, row q) to the place (a p + c q, b p + d q) where it is shown (ISO/IEC
14496-12, section 8.3.2). Cameras write the eight whose entries are 0 and ±1: four turns, and each of them mirrored.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError

__all__ = ["UPRIGHT", "Orientation", "may_be_turned", "orientation_of"]

_ONE: Final = 1 << 16  # 1 as a fixed-point number of a display matrix
_IDENTITY: Final = b"".join(n.to_bytes(4, "big") for n in (_ONE, 0, 0, 0, _ONE, 0, 0, 0, 1 << 30))
_HEADERS: Final = 120  # bytes within which a movie's or track's header has its matrix
_EBML_POSE: Final = re.compile(rb"\x76[\x73-\x75][\x84\x88]")  # Matroska's ProjectionPose*, of 4 or 8 bytes
# The note "display orientation" at the head of a note's unit: H.264, sections 7.3.1 and D.1.27; HEVC, D.2.17.
_ORIENTATION_NOTE: Final = {"h264": b"\x06\x2f", "hevc": b"\x4e\x01\x2f"}


class Orientation(NamedTuple):
    """What makes a shown frame of a stored one: first rows and columns swap, then each may run backwards."""

    transposed: bool = False
    rows_backwards: bool = False
    columns_backwards: bool = False

    @property
    def mirrored(self) -> bool:
        """Whether no turn alone gives the shown frame."""
        return self.transposed ^ self.rows_backwards ^ self.columns_backwards

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Give the height and width of the shown frame from those of the stored one, or the other way round.

        Examples:
            >>> Orientation(transposed=True).sides(1080, 1920)
            (1920, 1080)
        """
        return (width, height) if self.transposed else (height, width)

    def shown(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Give a view of a stored frame (H, W, C) as it is shown.

        Examples:
            >>> Orientation(True, False, True).shown(np.uint8([[[1], [2]], [[3], [4]]]))[..., 0]
            array([[3, 1],
                   [4, 2]], dtype=uint8)
        """
        frame = frame.swapaxes(0, 1) if self.transposed else frame
        return frame[:: -1 if self.rows_backwards else 1, :: -1 if self.columns_backwards else 1]


UPRIGHT: Final = Orientation()


def orientation_of(frame: Any) -> Orientation:
    """Read the display matrix of a frame that PyAV decoded.

    Args:
        frame: an `av.VideoFrame`.

    Raises:
        InputError: it turns by another angle than a quarter.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return UPRIGHT
    a, b, _, c, d, *_ = (int(np.sign(round(int(n) / _ONE))) for n in np.frombuffer(bytes(data), np.int32))
    if (a and d and not b and not c) or (b and c and not a and not d):
        return Orientation(True, b < 0, c < 0) if b else Orientation(False, d < 0, a < 0)
    raise InputError(f"expected a video that is turned by quarters, got one turned by {frame.rotation} degrees")


def may_be_turned(name: str, container: Any, codec: str, first: bytes) -> bool:
    """Say whether a video may have a display matrix other than the identity, without decoding a frame.

    Args:
        name: the file.
        container: the same, opened by PyAV.
        codec: its codec's name.
        first: its first packet.

    Returns:
        False where it has none for certain but for exotic files; True costs a look at the first frame.
    """
    note = _ORIENTATION_NOTE.get(codec)
    if note is not None and note in first:
        return True
    if "mov" in container.format.name:
        header = _moov(name)
        places = [at for kind in (b"mvhd", b"tkhd") for at in _all(header, kind)]
        return not places or any(_IDENTITY not in header[at : at + _HEADERS] for at in places)
    if "matroska" in container.format.name:
        with open(name, "rb") as file:
            head = file.read(1 << 16)
        return _EBML_POSE.search(head) is not None
    return False


def _moov(name: str) -> bytes:
    """Return the box `moov` of an mp4 or QuickTime file, empty where there is none."""
    with open(name, "rb") as file:
        while head := file.read(16):
            size, kind, start = int.from_bytes(head[:4], "big"), head[4:8], 8
            if size == 1:
                size, start = int.from_bytes(head[8:], "big"), 16
            file.seek(start - len(head), 1)
            if kind == b"moov":
                return file.read(max(0, size - start) if size else -1)
            if size < start:
                return b""
            file.seek(size - start, 1)
    return b""


def _all(data: bytes, part: bytes) -> list[int]:
    places, at = [], data.find(part)
    while at >= 0:
        places.append(at)
        at = data.find(part, at + 1)
    return places
