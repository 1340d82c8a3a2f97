"""Videos encoded once as small as a network needs them, so that no epoch decodes what it then throws away."""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Final

import numpy as np

from vidfuse._files import replace
from vidfuse.errors import InputError
from vidfuse.video.decode import _import_av, decode, frame_size, probe, refuse_truncated

__all__ = ["Shrunk", "shrink"]

_CHUNK: Final = 128  # frames in memory at once


@dataclass(frozen=True)
class Shrunk:
    """What one video became.

    Attributes:
        n_frames: its frames, as many as before.
        size: height and width now, in pixels.
        bytes_before: size of the file that was read.
        bytes_after: size of the file that was written.
    """

    n_frames: int
    size: tuple[int, int]
    bytes_before: int
    bytes_after: int


def shrink(
    source: str | PathLike[str],
    target: str | PathLike[str],
    short_side: int,
    *,
    gop: int = 12,
    crf: int = 18,
    allow_truncated: bool = False,
) -> Shrunk:
    """Encode a video as H.264 of a short side, every frame of it, with near keyframes and without sound.

    Frames are numbered as before, turned as a player shows them, and shown one after another at the mean rate. A video
    that is small already keeps its size. Sides become even, as H.264 wants them.

    Args:
        source: a video file.
        target: the mp4 file to write; it is published whole.
        short_side: length of the short side in pixels, at least 16.
        gop: distance of keyframes; the nearer they are, the less a clip decodes that it does not want.
        crf: x264's quality, from 0 (lossless) to 51; 18 is hardly told from the source.
        allow_truncated: take what is left of a file that ends early, rather than refuse it.

    Returns:
        What it became.

    Raises:
        InputError: the video cannot be decoded, or a number is out of range.
        MissingExtraError: PyAV is not installed.
    """
    if short_side < 16 or gop < 1 or not 0 <= crf <= 51:
        raise InputError(f"expected short_side >= 16, gop >= 1 and crf in [0, 51], got {short_side}, {gop} and {crf}")
    av, info = _import_av(), probe(source)
    if not allow_truncated:
        refuse_truncated(info)
    small = short_side if min(info.height, info.width) > short_side else None
    height, width = (side + side % 2 for side in frame_size(info.height, info.width, small))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"g": str(gop), "bf": "0", "crf": str(crf), "preset": "veryfast", "threads": "1"}
        rate = Fraction(info.rate or 25).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for start in range(0, info.n_frames, _CHUNK):
            chunk = np.arange(start, min(start + _CHUNK, info.n_frames))
            for pixels in decode(source, chunk, (height, width), info=info):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    replace(target, buffer.getvalue())
    written = probe(target)
    if written.n_frames != info.n_frames:
        Path(target).unlink()
        raise InputError(f"expected {info.n_frames} frames of {source} in {target}, got {written.n_frames}")
    return Shrunk(info.n_frames, (height, width), Path(source).stat().st_size, buffer.getbuffer().nbytes)
