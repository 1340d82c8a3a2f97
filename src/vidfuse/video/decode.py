"""Exact frames of a video file, in one pass over the frames that are wanted.

A frame's index is its place among the frames that are *presented*: packets that an edit list discards and frames
before time 0 do not count, and the order is that of presentation times, so variable frame rates and reordered
(B) frames need no special care. Where a file has no presentation times (AVI, elementary streams), frames are counted
as the decoder gives them. A sequential decode of the whole file is the definition; `decode` gives the same frames
faster, and falls back to it where a seek cannot be trusted. Frames are turned and mirrored as a player shows them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from operator import index
from os import PathLike, fspath
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.video.orientation import UPRIGHT, Orientation, may_be_turned, orientation_of

__all__ = ["VideoInfo", "check_videos", "checked_indices", "decode", "frame_size", "probe", "refuse_truncated"]

# Codecs in which every packet that is not discarded presents exactly one frame, so that packets can be counted
# instead of frames. VP8, for one, is not among them: it sends hidden frames in packets of their own.
_ONE_FRAME_A_PACKET = frozenset({"h264", "hevc", "av1", "libdav1d", "vp9", "mjpeg", "ffv1", "prores", "dnxhd"})
# AVI stores no presentation times. Of these codecs, FFmpeg reads from the packets themselves how they are ordered; of
# others it guesses, and what it guesses is wrong where frames are out of order.
_ORDER_IN_PACKETS = frozenset({"mpeg1video", "mpeg2video", "mpeg4"})
# x264 before build 151 wrote some blocks of 4:4:4 otherwise than the standard, and before 34 some of B-frames. FFmpeg
# decodes them as they were meant once it has read the build's number, which stands in the first packet alone.
_X264_NOTE = b"x264 - core "
_X264_STANDARD = 151
# What FFmpeg reads pictures by, whatever the file is called; of the last two, several pictures make a video.
_PICTURES: Final = frozenset({"image2", "gif", "apng"})
_COVER: Final = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC
_PICTURE_BRANDS: Final = frozenset({"heic", "heix", "heim", "heis", "mif1", "avif"})
# Decoding so many frames costs about as much as a seek: nearer keyframes are reached by decoding on.
_SEEK_GAIN = 8

_SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` finds in a video file without decoding it.

    Attributes:
        path: the file.
        n_frames: number of frames that are presented.
        height: height in pixels, as shown: a rotation in the metadata is applied.
        width: width in pixels, as shown.
        rate: mean frame rate in frames a second.
        truncated: the file ends before its own header says so; `n_frames` counts what is there.
        times: presentation time of each frame in the stream's time base, increasing; None where the file has none that
            can be trusted.
        keyframes: indices of the frames at which decoding may begin.
    """

    path: str
    n_frames: int
    height: int
    width: int
    rate: float
    truncated: bool = False
    times: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    keyframes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64), repr=False, compare=False)
    _key_dts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64), repr=False, compare=False)
    _orientation: Orientation = field(default=UPRIGHT, repr=False, compare=False)
    _first_tells: bool = field(default=False, repr=False, compare=False)  # the first packet tells how to decode others
    _goes_by_container: bool = field(default=False, repr=False, compare=False)  # torchcodec gives the same frames


def probe(path: str | PathLike[str], *, pictures: bool = False) -> VideoInfo:
    """Count the frames of a video, and find its keyframes, by reading its packets.

    Packets are counted where the codec puts exactly one frame into each and all have presentation times. Otherwise the
    frames themselves are decoded and counted. Either way the count is that of a full decode; in the common case it
    takes a few per cent of the time.

    Args:
        path: a video file.
        pictures: take a still picture for a video of one frame.

    Returns:
        A `VideoInfo`.

    Raises:
        InputError: the file cannot be opened, has no video stream or no frame, or is a still picture.
        MissingExtraError: PyAV is not installed.

    Examples:
        >>> probe("missing.mp4")
        Traceback (most recent call last):
        vidfuse.errors.InputError: expected a readable video, got missing.mp4: No such file or directory; ...
    """
    name = fspath(path)
    with _open(name) as (container, stream):
        packets, complete = _packets(container, stream)
        height, width = stream.height, stream.width
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        shown = [p for p in packets if not p.is_discard and not p.is_corrupt and (p.pts is None or p.pts >= 0)]
        truncated = not complete or any(p.is_corrupt for p in packets) or _ends_early(container, stream, packets)
        codec, guessed = stream.codec_context.name, _times_are_guessed(container, stream)
        intact = complete and all(not p.is_corrupt for p in packets) and packets[:1] and packets[0].is_keyframe
        counted = intact and codec in _ONE_FRAME_A_PACKET and not guessed and all(p.pts is not None for p in shown)
        times = np.sort(np.array([p.pts for p in shown], np.int64)) if counted else None
        if times is None or (np.diff(times) <= 0).any():
            n_frames, times = _count_by_decoding(name, guessed)
        else:
            n_frames = len(times)
        first = bytes(packets[0]) if packets else b""
        turned = n_frames > 0 and may_be_turned(name, container, codec, first)
        if n_frames == 1 and not pictures and (what := _still(container, stream)):
            raise InputError(f"expected a video, got {what} in {name}; leave the file out")
    if n_frames == 0 or height == 0 or width == 0:
        raise InputError(f"expected a video with at least one frame, got {name} with none; is it complete?")
    orientation = _first_orientation(name) if turned else UPRIGHT
    height, width = orientation.sides(height, width)
    keyframes, key_dts = _keyframes(packets, times)
    return VideoInfo(
        name, n_frames, height, width, rate, truncated, times, keyframes, key_dts, orientation, _is_told(codec, first)
    )


def decode(
    path: str | PathLike[str],
    indices: ArrayLike,
    size: int | tuple[int, int] | None = None,
    *,
    info: VideoInfo | None = None,
) -> NDArray[np.uint8]:
    """Decode the frames of a video at the given indices, in one pass over their union.

    Indices may repeat and come in any order: the file is read once, in order, every wanted frame is converted once,
    long gaps are skipped at keyframes, and unwanted frames that no other refers to are not decoded. Views that
    overlap should therefore be decoded by one call with all of their indices. Frames are turned and mirrored as the
    file's metadata asks for.

    Args:
        path: a video file.
        indices: integers of shape (T,), each in [0, n_frames).
        size: None for the video's own size, an int for the length of the short side in pixels (the aspect is kept), or
            (height, width). Resizing happens in the colour conversion and costs no extra pass.
        info: the result of `probe(path)` if it is at hand; it saves reading the packets again.

    Returns:
        RGB frames, uint8 of shape (T, H, W, 3), in the order of `indices`.

    Raises:
        InputError: the file cannot be opened, an index is out of range, or a frame is damaged.
        MissingExtraError: PyAV is not installed.

    Examples:
        >>> decode("missing.mp4", [0, 2, 4])
        Traceback (most recent call last):
        vidfuse.errors.InputError: expected a readable video, got missing.mp4: No such file or directory; ...
    """
    info = probe(path) if info is None else info
    asked = checked_indices(indices, info)
    wanted, places = np.unique(asked, return_inverse=True)
    height, width = frame_size(info.height, info.width, size)
    frames = np.empty((len(wanted), height, width, 3), np.uint8)
    missing = _fill(info, wanted, frames, skip=True)
    if missing is not None:
        missing = _fill(info, wanted, frames, skip=False)
    if missing is not None:
        raise InputError(
            f"expected {info.n_frames} frames in {info.path}, but frame {missing} cannot be decoded; "
            "the file is damaged or truncated: leave it out or encode it again"
        )
    return frames if np.array_equal(asked, wanted) else frames[places]


def frame_size(height: int, width: int, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Give the (height, width) that frames of height × width have after a resize to `size`.

    Args:
        height: stored height in pixels.
        width: stored width in pixels.
        size: None (unchanged), the short side in pixels, or (height, width).

    Returns:
        Height and width in pixels; the long side is rounded to the nearest pixel.

    Raises:
        InputError: a side is not positive.

    Examples:
        >>> frame_size(720, 1280, 256), frame_size(272, 640, None), frame_size(640, 272, (64, 64))
        ((256, 455), (272, 640), (64, 64))
    """
    if size is None:
        return height, width
    given: Any = size
    try:
        sides = tuple(map(index, given if isinstance(given, list | tuple) else (given,)))  # NumPy's integers too
    except TypeError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise InputError(f"expected size as a short side or (height, width) in pixels, all positive; got {size!r}")
    if len(sides) == 2:
        return sides
    scale = sides[0] / min(height, width)
    return max(sides[0], round(height * scale)), max(sides[0], round(width * scale))


def checked_indices(indices: ArrayLike, info: VideoInfo) -> NDArray[np.int64]:
    """Take frame indices of a video, or say what is wrong with them.

    Args:
        indices: integers of shape (T,) with T >= 1.
        info: the video.

    Returns:
        The indices as int64.

    Raises:
        InputError: another shape or dtype, or an index that the video does not have.

    Examples:
        >>> checked_indices([0, 3], VideoInfo("a.mp4", n_frames=3, height=8, width=8, rate=25.0))
        Traceback (most recent call last):
        vidfuse.errors.InputError: expected frame indices in [0, 3) for a.mp4, got 0 to 3; ...
    """
    asked = np.asarray(indices)
    if asked.ndim != 1 or asked.size == 0 or asked.dtype.kind not in "iu":
        raise InputError(
            f"expected frame indices as integers of shape (T,) with T >= 1, got {asked.dtype} {asked.shape}"
        )
    if asked.min() < 0 or asked.max() >= info.n_frames:
        raise InputError(
            f"expected frame indices in [0, {info.n_frames}) for {info.path}, got {asked.min()} to {asked.max()}; "
            "loop them over the video with vidfuse.video.clips.loop"
        )
    return asked.astype(np.int64)


def check_videos(
    paths: Iterable[str | PathLike[str]], *, allow_truncated: bool = False
) -> Iterator[tuple[str, VideoInfo | None, str | None]]:
    """Probe videos one by one and say which of them cannot be used, and why.

    Args:
        paths: video files.
        allow_truncated: take a file that ends early for what is left of it.

    Yields:
        (path, info, None) for a good video; (path, None, reason) for one that is unreadable, empty or truncated.

    Raises:
        MissingExtraError: PyAV is not installed.

    Examples:
        >>> list(check_videos(["missing.mp4"]))[0][2]
        'expected a readable video, got missing.mp4: No such file or directory; ...'
    """
    for path in paths:
        name = fspath(path)
        try:
            info = probe(name)
            if not allow_truncated:
                refuse_truncated(info)
        except InputError as error:
            yield name, None, str(error)
        else:
            yield name, info, None


def refuse_truncated(info: VideoInfo) -> None:
    """Raise where a file ends before its own header says so.

    Raises:
        InputError: it does.
    """
    if info.truncated:
        raise InputError(
            f"expected the whole video, {info.path} is truncated: {info.n_frames} frames are left; "
            "fetch it again, or take what is left with allow_truncated=True (--allow-truncated)"
        )


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("decoding video", "video") from error
    return av


@contextmanager
def _open(name: str, *, strict: bool = False) -> Iterator[tuple[Any, Any]]:
    """Open a file and its first video stream, with one decoding thread; turn FFmpeg's errors into ours.

    A `strict` decoder gives no frame where another makes one up from what it has seen before.

    Raises:
        InputError: The file is no readable video.
        OSError: The system ran out of file handles or memory.
    """
    av = _import_av()
    if os.path.isfile(name) and not os.path.getsize(name):
        raise InputError(f"expected a readable video, got {name}: it is empty; fetch it again, or leave the file out")
    try:
        container = av.open(name)
    except (av.FFmpegError, OSError, ValueError) as error:
        code = getattr(error, "errno", None) or 0
        if code in _SCARCE:  # says nothing about the file: good videos must not be left out
            advice = "raise the limit on open files (ulimit -n), use fewer workers, or free memory"
            raise OSError(code, f"{os.strerror(code)}; {advice}", name) from error
        raise InputError(
            f"expected a readable video, got {name}: {getattr(error, 'strerror', None) or error}; "
            "check the path, or leave the file out"
        ) from error
    with container:
        stream = container.streams.best("video")  # never a cover picture beside a video
        if stream is None or stream.codec_context is None:
            raise InputError(f"expected a video stream that can be decoded in {name}, found none; leave the file out")
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        if strict:
            stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


def _packets(container: Any, stream: Any) -> tuple[list[Any], bool]:
    """Read all packets of a stream; the flag is False where reading failed before the end."""
    failure, packets = _import_av().FFmpegError, []
    try:
        for packet in container.demux(stream):
            if packet.size:
                packets.append(packet)
    except failure:
        return packets, False
    return packets, True


def _ends_early(container: Any, stream: Any, packets: list[Any]) -> bool:
    if "mov" in container.format.name:
        return len(packets) < len(stream.index_entries)  # the file's own table, after its edit lists
    if container.duration is None or len(container.streams) > 1 or not packets:
        return False
    last = max((p.pts + (p.duration or 0) for p in packets if p.pts is not None), default=None)
    if last is None:
        return False
    # Matroska's duration is that from time 0 on, other containers' that from the first frame on: the end is past both.
    return float(last * stream.time_base) < container.duration / 1e6 - 0.5


def _still(container: Any, stream: Any) -> str | None:
    """Say what the one frame of a file is, if it is no video's."""
    if int(stream.disposition) & _COVER:
        return "sound with a cover picture"
    name, brand = container.format.name, container.metadata.get("major_brand")
    still = name.endswith("_pipe") or name in _PICTURES or brand in _PICTURE_BRANDS
    return f"a still picture ({stream.codec_context.name})" if still else None


def _times_are_guessed(container: Any, stream: Any) -> bool:
    codec = stream.codec_context
    return container.format.name == "avi" and codec.codec.reorder and codec.name not in _ORDER_IN_PACKETS


def _is_told(codec: str, first: bytes) -> bool:
    """Say whether a first packet tells the decoder something that later ones must be decoded by."""
    at = first.find(_X264_NOTE) if codec == "h264" else -1
    build = first[at + len(_X264_NOTE) :][:4].split()[:1] if at >= 0 else []
    return bool(build) and build[0].isdigit() and int(build[0]) < _X264_STANDARD


def _first_orientation(name: str) -> Orientation:
    with _open(name) as (container, stream):
        try:
            return next(map(orientation_of, _frames(container, stream)), UPRIGHT)
        except InputError as error:
            raise InputError(f"{name}: {error}; encode it again as it is shown") from error


def _keyframes(packets: list[Any], times: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the indices of keyframes and the decoding times at which to look for them."""
    if times is None or any(p.pos is None for p in packets):  # a program stream has times of a few frames only
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    known = {int(t): i for i, t in enumerate(times)}
    found = sorted(
        (known[p.pts], p.pts if p.dts is None else p.dts)
        for p in packets
        if p.is_keyframe and not p.is_corrupt and p.pts in known
    )
    return np.array([i for i, _ in found], np.int64), np.array([t for _, t in found], np.int64)


def _count_by_decoding(name: str, guessed: bool) -> tuple[int, NDArray[np.int64] | None]:
    """Count frames; give their times too, unless there are none, or they are `guessed` and frames are out of order."""
    out_of_order = _import_av().video.frame.PictureType.B
    with _open(name) as (container, stream):
        found = [(frame.pts, frame.pict_type) for frame in _frames(container, stream)]
    times = [time for time, _ in found]
    if any(t is None for t in times) or any(b <= a for a, b in pairwise(times)):
        return len(times), None
    if guessed and any(kind == out_of_order for _, kind in found):
        return len(times), None
    return len(times), np.array(times, np.int64)


def _frames(container: Any, stream: Any, wanted: frozenset[int] | None = None) -> Iterator[Any]:
    """Decode on from the present position; damaged packets are left out, frames before time 0 too.

    Given the presentation times that are wanted, frames at other times that no frame refers to are not decoded.
    """
    failure, packets = _import_av().FFmpegError, container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except failure:  # the file cannot be read on: its frames end here
            return
        if packet is None:
            return
        if packet.is_corrupt:
            continue
        if wanted is not None:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        try:
            decoded = packet.decode()
        except failure:  # the frame is missing, and is reported if it was wanted
            if wanted is not None:
                return  # frames that refer to it would not be those of a plain decode
            continue
        for frame in decoded:
            if frame.pts is None or frame.pts >= 0:
                yield frame


def _fill(info: VideoInfo, wanted: NDArray[np.int64], frames: NDArray[np.uint8], *, skip: bool) -> int | None:
    """Decode the frames `wanted` (sorted, unique) into `frames`; give the first one that is missing, if any.

    With `skip`, what is not wanted is passed over where it can be; without, the whole file is decoded in order.
    """
    av = _import_av()
    reformatter = av.video.reformatter.VideoReformatter()  # one for the file: its tables are built once
    times = frozenset(info.times[wanted].tolist()) if skip and info.times is not None else None
    # For each wanted frame, in order:
    #   1. Seek, if a keyframe lies well ahead of the present position: decoding there is cheaper than decoding on.
    #   2. Decode on until the frame's index is reached.
    #   3. Convert it. If it was passed over or never came, it is missing.
    # After a seek the first frame must be a true intra frame at or before the wanted one; else the seek is not trusted.
    # Nor is it where a frame is damaged: what the decoder makes up for it depends on what it has seen before.
    done = 0
    with _open(info.path, strict=times is not None) as (container, stream):
        position, source = -1, _frames(container, stream, times)  # the index of the frame that came last
        checked = True
        while done < len(wanted):
            target = int(wanted[done])
            if times is not None:
                k = int(np.searchsorted(info.keyframes, target, side="right")) - 1
                if k >= 0 and info.keyframes[k] > position + _SEEK_GAIN:
                    if position < 0 and info._first_tells:
                        next(source, None)
                    try:
                        container.seek(int(info._key_dts[k]), stream=stream)
                    except av.FFmpegError:
                        return target
                    source, checked = _frames(container, stream, times), False
            for frame in source:
                if info.times is None:
                    position += 1
                else:
                    position = int(np.searchsorted(info.times, frame.pts))
                if not checked:
                    # After a seek, decoding is exact only from a true intra frame on.
                    intra = frame.key_frame and frame.pict_type == av.video.frame.PictureType.I
                    if not intra or position > target or position not in info.keyframes:
                        return target
                    checked = True
                if position >= target:
                    break
            else:
                return target
            if position != target or (times is not None and frame.is_corrupt):
                return target
            _convert(reformatter, frame, info._orientation, frames[done])
            done += 1
    return None


def _convert(reformatter: Any, frame: Any, orientation: Orientation, out: NDArray[np.uint8]) -> None:
    height, width = orientation.sides(*out.shape[:2])
    plane = reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1).planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, : width * 3]
    out[:] = orientation.shown(rows.reshape(height, width, 3))
