"""Frames by torchcodec instead of PyAV: the same two functions, on a CPU or decoded on a GPU.

torchcodec needs FFmpeg's libraries on the system. Its exact mode is used, never the approximate one. It goes by the
container's times and keyframes, and converts some pixels otherwise: frames of AVI, transport and program streams come
in another order, intra refresh gives wrong pictures after a seek, and deep and interlaced colours differ. So frames are
counted by PyAV, torchcodec decodes the files in which it gives the same frames (mp4, QuickTime, Matroska and WebM with
keyframes at which decoding truly begins anew, 8 bits, progressive), and PyAV decodes the others.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from os import PathLike, fspath
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.video import decode as by_pyav
from vidfuse.video.decode import VideoInfo, checked_indices, frame_size

__all__ = ["decode", "probe", "require"]

_NEEDS = "decoding with torchcodec (and FFmpeg's libraries, which are the system's to install)"
_CODECS: Final = frozenset({"av1", "h264", "hevc", "libdav1d", "mjpeg", "mpeg4", "vp8", "vp9"})
_PIXELS: Final = frozenset({"gray", "yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p"})


def require() -> None:
    """Say what is missing before the first video is decoded, perhaps in another process.

    Raises:
        MissingExtraError: torchcodec, or the FFmpeg libraries that it needs, are not installed.
    """
    with suppress(InputError):  # there is no video of this name
        _open("")


def probe(path: str | PathLike[str]) -> VideoInfo:
    """Count the frames of a video as `vidfuse.video.decode.probe` does, and see whether torchcodec would count alike.

    Args:
        path: a video file.

    Returns:
        A `VideoInfo`.

    Raises:
        InputError: the file cannot be opened, has no video stream or no frame.
        MissingExtraError: PyAV is not installed.
    """
    info = by_pyav.probe(path)
    return replace(info, _goes_by_container=_goes_by_container(info))


def decode(
    path: str | PathLike[str],
    indices: ArrayLike,
    size: int | tuple[int, int] | None = None,
    *,
    info: VideoInfo | None = None,
    device: str = "cpu",
) -> Any:
    """Decode the frames of a video at the given indices, each once, in one pass.

    Args:
        path: a video file.
        indices: integers of shape (T,), each in [0, n_frames), in any order.
        size: None, the short side in pixels, or (height, width), as for `vidfuse.video.decode.decode`.
        info: the result of `probe(path)` of this module if it is at hand.
        device: "cpu", or "cuda" to decode on the GPU; the frames stay there.

    Returns:
        RGB frames, a uint8 tensor of shape (T, H, W, 3) on the device, in the order of `indices`.

    Raises:
        InputError: the file cannot be opened, an index is out of range, or a frame cannot be decoded.
        MissingExtraError: torchcodec, or the FFmpeg libraries that it needs, are not installed.
    """
    import torch

    name = fspath(path)
    if info is None:
        info = probe(name)
    asked = checked_indices(indices, info)
    decoder = None
    sides = frame_size(info.height, info.width, size)
    resize = sides != (info.height, info.width)
    if info._goes_by_container:
        decoder = _open(name, device=device, sides=sides if resize and device == "cpu" else None)
    if decoder is None or decoder.metadata.num_frames != info.n_frames:
        return torch.from_numpy(by_pyav.decode(name, asked, size, info=info)).to(device)
    wanted, places = np.unique(asked, return_inverse=True)
    try:
        frames = decoder.get_frames_at(wanted.tolist()).data
    except (RuntimeError, IndexError, ValueError) as error:
        raise InputError(
            f"expected {info.n_frames} frames in {name}, but torchcodec cannot decode some of frames "
            f"{wanted[0]} to {wanted[-1]}: {str(error)[:100]}; leave the file out, or decode with PyAV"
        ) from error
    if resize and device != "cpu":
        from torchvision.transforms.v2 import functional as tvf

        frames = tvf.resize(frames.permute(0, 3, 1, 2), list(sides), antialias=True).permute(0, 2, 3, 1)
    if np.array_equal(asked, wanted):
        return frames
    return frames[torch.from_numpy(places).to(frames.device)]


def _goes_by_container(info: VideoInfo) -> bool:
    """Say whether a decoder that goes by the container's times and keyframes gives the same frames as PyAV's."""
    if info.times is None or info.truncated or info._first_tells or info._orientation.mirrored:
        return False
    with by_pyav._open(info.path) as (container, stream):
        codec = stream.codec_context
        if not ({"mov", "matroska"} & set(container.format.name.split(","))):
            return False
        if codec.name not in _CODECS or codec.pix_fmt not in _PIXELS:
            return False
        for packet in container.demux(stream):
            if packet.is_keyframe and packet.size and not _begins_anew(codec, bytes(packet)):
                return False
    with by_pyav._open(info.path) as (container, stream):
        return not any(frame.interlaced_frame for frame in _first(container, stream))


def _first(container: Any, stream: Any) -> list[Any]:
    return [frame for frame, _ in zip(by_pyav._frames(container, stream), range(1), strict=False)]


def _begins_anew(codec: Any, packet: bytes) -> bool:
    """Say whether decoding can begin at a keyframe's packet: not where a picture is refreshed part by part.

    A packet of H.264 or HEVC in mp4 and Matroska is a row of units, each behind its length in bytes (ISO/IEC 14496-15,
    section 5.3.3): the first unit that holds a slice tells.
    """
    if codec.name not in ("h264", "hevc"):
        return True
    # Where the length of lengths stands in the codec's header, and which kinds of units hold slices and begin anew.
    place, shift, kinds, slices, anew = (
        (4, 0, 0x1F, range(1, 6), (5,)) if codec.name == "h264" else (21, 1, 0x3F, range(32), range(16, 22))
    )
    header = codec.extradata or b""
    if len(header) <= place or header[0] != 1:
        return False
    size, at = (header[place] & 3) + 1, 0
    while at + size < len(packet):
        kind = packet[at + size] >> shift & kinds
        if kind in slices:
            return kind in anew
        at += size + int.from_bytes(packet[at : at + size], "big")
    return False


def _open(name: str, *, device: str = "cpu", sides: tuple[int, int] | None = None) -> Any:
    try:
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import Resize
    except (ImportError, RuntimeError) as error:  # a RuntimeError: FFmpeg's libraries are not there
        raise MissingExtraError(_NEEDS, "torchcodec") from error
    options: dict[str, Any] = {} if sides is None else {"transforms": [Resize(sides)]}
    try:
        return VideoDecoder(name, dimension_order="NHWC", seek_mode="exact", device=device, **options)
    except (RuntimeError, ValueError, OSError) as error:
        if "libtorchcodec" in str(error):  # newer releases look for FFmpeg's libraries at the first video
            raise MissingExtraError(_NEEDS, "torchcodec") from error
        raise InputError(
            f"expected a readable video, got {name}: {str(error)[:100]}; check the path, or leave the file out"
        ) from error
