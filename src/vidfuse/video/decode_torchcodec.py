"""Frames by torchcodec instead of PyAV: the same two functions, on a CPU or decoded on a GPU.

torchcodec needs FFmpeg's libraries on the system. Its exact mode is used, never the approximate one, so frames are
numbered as `vidfuse.video.decode` numbers them. Two differences are known: it cannot decode the last frames of MPEG-4
in AVI and of some transport streams (an error here), and it converts the colours of interlaced videos otherwise.
"""

from __future__ import annotations

from contextlib import suppress
from os import PathLike, fspath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.video.decode import VideoInfo, checked_indices, frame_size

__all__ = ["decode", "probe", "require"]

_NEEDS = "decoding with torchcodec (and FFmpeg's libraries, which are the system's to install)"


def require() -> None:
    """Say what is missing before the first video is decoded, perhaps in another process.

    Raises:
        MissingExtraError: torchcodec, or the FFmpeg libraries that it needs, are not installed.
    """
    with suppress(InputError):  # there is no video of this name
        _open("")


def probe(path: str | PathLike[str]) -> VideoInfo:
    """Count the frames of a video by reading its packets, as `vidfuse.video.decode.probe` does.

    Args:
        path: a video file.

    Returns:
        A `VideoInfo` without times and keyframes, which torchcodec keeps to itself.

    Raises:
        InputError: the file cannot be opened, has no video stream or no frame.
        MissingExtraError: torchcodec, or the FFmpeg libraries that it needs, are not installed.
    """
    name = fspath(path)
    return _info(name, _open(name).metadata)


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
        info: the result of `probe(path)` if it is at hand.
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
    wanted, places = np.unique(asked, return_inverse=True)
    sides = frame_size(info.height, info.width, size)
    resize = sides != (info.height, info.width)
    decoder = _open(name, device=device, sides=sides if resize and device == "cpu" else None)
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


def _info(name: str, metadata: Any) -> VideoInfo:
    n_frames, height, width = (getattr(metadata, key) or 0 for key in ("num_frames", "height", "width"))
    if min(n_frames, height, width) == 0:
        raise InputError(f"expected a video with at least one frame, got {name} with none; is it complete?")
    rate = float(metadata.average_fps_from_header or metadata.average_fps or 0)
    promised, found = metadata.duration_seconds_from_header, metadata.duration_seconds
    truncated = promised is not None and found is not None and found < promised - max(0.1, 2 / rate if rate else 0)
    return VideoInfo(name, n_frames, height, width, rate, truncated)


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
