"""Odd videos, encoded on the spot, what is in them by a plain decode of the whole file, and a judge of decoders.

`CORPUS` crosses container, codec, B-frames, pixel format, rotation, start, frame rate and cuts as far as encoders and
muxers allow. Frame `i` of every video shows a picture that no other index has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path
from types import ModuleType

import av
import numpy as np

from vidfuse.errors import InputError
from vidfuse.video.decode import VideoInfo

__all__ = ["CORPUS", "OddVideo", "full_decode", "judged", "picture", "write"]

TICKS = 3000  # a second, in the encoder's time base
RATE = 25


@dataclass(frozen=True)
class OddVideo:
    """How one video of the corpus is made.

    Attributes:
        container: Suffix of the file, which is what the muxer goes by.
        codec: Name of FFmpeg's encoder.
        pix_fmt: Pixel format.
        b_frames: Frames between two that others refer to.
        rotation: Degrees by which a player turns it, counter-clockwise.
        mirrored: A player mirrors it left to right as well.
        start: Seconds before the first frame.
        variable: Frames last between 10 and 130 ms each.
        cut: "" or what is lost: its "head", its "tail", or a "hole" in the middle.
        n_frames: Frames.
        size: Height and width; below one block (64), x265 writes beyond its memory.
        options: Further options of the encoder.
        note: Number that replaces that of the encoder's build in x264's own note.
    """

    container: str
    codec: str
    pix_fmt: str = "yuv420p"
    b_frames: int = 0
    rotation: int = 0
    mirrored: bool = False
    start: float = 0.0
    variable: bool = False
    cut: str = ""
    n_frames: int = 32
    size: tuple[int, int] = (64, 96)
    options: tuple[tuple[str, str], ...] = ()
    note: int | None = None

    def __str__(self) -> str:
        parts = [self.container, self.codec, self.pix_fmt]
        parts += [f"b{self.b_frames}"] if self.b_frames else []
        parts += [f"turned{self.rotation}"] if self.rotation else []
        parts += ["mirrored"] if self.mirrored else []
        parts += [f"start{self.start:g}"] if self.start else []
        parts += ["variable"] if self.variable else []
        parts += [f"cut-{self.cut}"] if self.cut else []
        parts += [f"note{self.note}"] if self.note is not None else []
        parts += [f"{name}={value}" for name, value in self.options]
        return "-".join(parts).replace("/", "_").replace(" ", "_")


def picture(index: int, height: int, width: int) -> np.ndarray:
    """Return a picture (H, W, 3) that no other index has: gradients that move, and a level that jumps."""
    y, x = np.mgrid[:height, :width]
    level = np.full_like(x, index * 37)
    return np.stack([x * 2 + index * 5, y * 3 + index * 7, level], -1).astype(np.uint8)


def write(video: OddVideo, folder: Path) -> Path:
    """Encode a video of the corpus into a folder, and return its file."""
    path = folder / f"{video}.{video.container}"
    gaps = np.random.default_rng(0).integers(30, 390, video.n_frames) if video.variable else TICKS // RATE
    times = np.cumsum(np.broadcast_to(gaps, video.n_frames)) + round(video.start * TICKS)
    times -= TICKS // RATE if not video.variable else 0
    muxer = {"movflags": "+faststart"} if video.container in ("mp4", "mov") and video.cut else {}
    if video.start and video.container == "ts":
        muxer = {"muxdelay": "0"}
    with av.open(str(path), "w", options=muxer) as container:
        own = {"g": "10", "bf": str(video.b_frames), "threads": "1", **_QUICK.get(video.codec, {})}
        stream = container.add_stream(video.codec, rate=RATE, options=own | dict(video.options))
        stream.height, stream.width = video.size
        stream.pix_fmt = video.pix_fmt
        if video.codec not in _WHOLE_RATES:
            stream.codec_context.time_base = Fraction(1, TICKS)
        if video.rotation or video.mirrored:
            stream.set_display_rotation(video.rotation, hflip=video.mirrored)
        for index in range(video.n_frames):
            frame = av.VideoFrame.from_ndarray(picture(index, *video.size), format="rgb24")
            frame.pts, frame.time_base = int(times[index]), Fraction(1, TICKS)
            if video.codec in _WHOLE_RATES:
                frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame.reformat(format=video.pix_fmt)))
        container.mux(stream.encode())
    data = path.read_bytes()
    if video.note is not None:
        at = data.index(b"x264 - core ") + len(b"x264 - core ")
        data = data[:at] + b"%03d" % video.note + data[at + 3 :]
    if video.cut == "head":
        data = data[len(data) // 5 :]
    elif video.cut == "tail":
        data = data[: len(data) * 7 // 10]
    elif video.cut == "hole":
        data = data[: len(data) // 2] + data[len(data) // 2 + len(data) // 12 :]
    path.write_bytes(data)
    return path


def full_decode(path: Path) -> np.ndarray:
    """Return every frame (N, H, W, 3) at or after time 0 as a player shows it, by one pass over the whole file.

    Packets that FFmpeg marks as damaged, and those that it cannot decode, give no frame.
    """
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for packet in _whole(container.demux(stream)):
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                continue
            frames += [_shown(f) for f in decoded if f.pts is None or f.pts >= 0]
    return np.stack(frames)


def _whole(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    try:
        yield from (packet for packet in packets if not packet.is_corrupt)
    except av.FFmpegError:  # the file cannot be read on
        return


def _shown(frame: av.VideoFrame) -> np.ndarray:
    """Turn a frame as its display matrix says, corner by corner: where does each stored pixel go?"""
    stored = frame.to_ndarray(format="rgb24")
    found = [data for data in (frame.side_data[i] for i in range(len(frame.side_data))) if "MATRIX" in str(data.type)]
    if not found or "MATRIXENCODING" in str(found[0].type):
        return stored
    a, b, _, c, d, *_ = (round(int(v) / 65536) for v in np.frombuffer(bytes(found[0]), np.int32))
    q, p = np.mgrid[: stored.shape[0], : stored.shape[1]]
    across, down = a * p + c * q, b * p + d * q
    across, down = across - across.min(), down - down.min()
    shown = np.empty((down.max() + 1, across.max() + 1, 3), np.uint8)
    shown[down, across] = stored
    return shown


def judged(decoder: ModuleType, path: Path, expected: np.ndarray) -> str:
    """Say whether a decoder gives the expected frames, in any order: exact, refused with its reason, or wrong."""
    try:
        info = decoder.probe(path)
    except InputError as error:
        return f"refused: {error}"
    if (info.height, info.width) != expected.shape[1:3]:
        return f"wrong: {info.height} x {info.width} pixels, not {expected.shape[1]} x {expected.shape[2]}"
    if info.n_frames != len(expected):
        return _judged_with_losses(decoder, path, info, expected)
    refusals = []
    for asked in _questions(len(expected)):
        try:
            frames = np.asarray(decoder.decode(path, asked, info=info))
        except InputError as error:
            refusals.append(f"{error}")
            continue
        if not np.array_equal(frames, expected[asked]):
            off = np.abs(frames.astype(int) - expected[asked]).max(axis=(1, 2, 3))
            return f"wrong: of frames {asked[:8]} those at {np.flatnonzero(off)[:8].tolist()} are off by {off.max()}"
    if refusals:
        return f"refused: {len(refusals)} times, {refusals[0]}"
    return "truncated: its frames are exact" if info.truncated else "exact"


def _judged_with_losses(decoder: ModuleType, path: Path, info: VideoInfo, expected: np.ndarray) -> str:
    """Say whether a damaged file's lost frames are refused, and the others are those of the plain decode in order."""
    last, lost = -1, 0
    for index in range(info.n_frames):
        try:
            frame = np.asarray(decoder.decode(path, [index], info=info))[0]
        except InputError:
            lost += 1
            continue
        found = next((i for i in range(last + 1, len(expected)) if np.array_equal(expected[i], frame)), None)
        if found is None:
            return f"wrong: {info.n_frames} frames, not {len(expected)}, and frame {index} is none of those that follow"
        last = found
    if info.n_frames - lost > len(expected) or not lost:
        return f"wrong: {info.n_frames} frames, not {len(expected)}, and {lost} are refused"
    return f"damaged: {lost} of {info.n_frames} frames are refused, the others exact"


def _questions(n_frames: int) -> list[list[int]]:
    rng = np.random.default_rng(1)
    some = [rng.integers(0, n_frames, size).tolist() for size in (2, 3, 4, 6, 8, 12) for _ in range(2)]
    return [list(range(n_frames)), *([i] for i in range(n_frames)), [n_frames - 1, 0], *some]


_QUICK = {
    "libx264": {"preset": "ultrafast", "qp": "20"},
    "libx264rgb": {"preset": "ultrafast", "qp": "20"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:keyint=10"},
    "libvpx": {"cpu-used": "8"},
    "libvpx-vp9": {"cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "12"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
    "mpeg1video": {"qscale": "3"},
    "mpeg2video": {"qscale": "3"},
}
# Encoders that know common frame rates only.
_WHOLE_RATES = {
    "mpeg1video",
    "mpeg2video",
    "mpeg4",
    "msmpeg4",
    "msmpeg4v2",
    "wmv1",
    "wmv2",
    "h263",
    "h263p",
    "libsvtav1",
}
_H263 = (96, 128)  # one of the five sizes that H.263 has


def _corpus() -> Iterator[OddVideo]:
    one = OddVideo
    # H.264 in everything, with and without frames out of order.
    for container, b in product(
        ("mp4", "mov", "mkv", "avi", "ts", "flv", "3gp", "m4v", "mts", "h264", "asf", "nut"), (0, 2)
    ):
        yield one(container, "libx264", b_frames=b)
    for pix_fmt, container, b in product(
        ("yuv422p", "yuv444p", "gray", "yuv420p10le", "yuvj420p"), ("mp4", "mkv", "avi", "ts"), (0, 2)
    ):
        yield one(container, "libx264", pix_fmt, b)
    for b, rest in product((0, 2), ("mp4", "mkv")):
        yield one(rest, "libx264rgb", "rgb24", b)
    # Old builds of x264 wrote 4:4:4 in a way of their own, and said so in the first packet alone.
    slow = (("preset", "slow"), ("qp", "10"))
    for container, b in product(("mp4", "mkv", "avi", "ts"), (0, 2)):
        yield one(container, "libx264", "yuv444p", b, options=slow, note=148, n_frames=60)
    yield one("mp4", "libx264", b_frames=2, options=slow, note=28, n_frames=60)
    # Other times: late starts, frames of different lengths.
    for container, start, b in product(("mp4", "mkv", "ts", "flv", "mov"), (0.3, 2.0), (0, 2)):
        yield one(container, "libx264", b_frames=b, start=start)
    for container, b in product(("mp4", "mkv", "ts", "flv", "mov"), (0, 2)):
        yield one(container, "libx264", b_frames=b, variable=True)
    for container, codec in (("webm", "libvpx"), ("webm", "libvpx-vp9"), ("mkv", "libx265"), ("mkv", "mjpeg")):
        yield one(container, codec, "yuvj420p" if codec == "mjpeg" else "yuv420p", start=2.0)
        yield one(container, codec, "yuvj420p" if codec == "mjpeg" else "yuv420p", variable=True)
    # Turned and mirrored.
    for container, turn, mirrored in product(("mp4", "mov", "mkv"), (0, 90, 180, 270), (False, True)):
        if turn or mirrored:
            yield one(container, "libx264", rotation=turn, mirrored=mirrored, b_frames=2 if turn == 90 else 0)
    yield one("mp4", "libx265", rotation=90)
    yield one("mp4", "mpeg4", rotation=270)
    yield one("mp4", "libx264", rotation=90, start=0.3, variable=True, b_frames=2)
    # The other codecs.
    for container, b, pix_fmt in product(("mp4", "mkv", "ts", "mov"), (0, 2), ("yuv420p", "yuv444p", "yuv420p10le")):
        if pix_fmt == "yuv420p" or container in ("mp4", "ts"):
            yield one(container, "libx265", pix_fmt, b)
    for container, b in product(("avi", "mp4", "mkv", "mov", "ts", "nut"), (0, 2)):
        yield one(container, "mpeg4", b_frames=b)
    for container, b in product(("mpg", "ts", "mkv", "avi", "vob", "mov"), (0, 2)):
        yield one(container, "mpeg2video", b_frames=b)
    yield one("mpg", "mpeg1video", b_frames=2)
    yield one("avi", "mpeg1video", b_frames=2)
    for container in ("webm", "mkv", "avi"):
        yield one(container, "libvpx")
    for container, pix_fmt in product(("webm", "mkv", "mp4"), ("yuv420p", "yuv444p")):
        yield one(container, "libvpx-vp9", pix_fmt, options=(("profile", "1" if pix_fmt == "yuv444p" else "0"),))
    for container in ("webm", "mkv", "mp4"):
        yield one(container, "libsvtav1")
    for container in ("avi", "mov", "mkv", "mp4", "mjpeg"):
        yield one(container, "mjpeg", "yuvj420p")
    for container, pix_fmt in product(("avi", "mkv"), ("yuv420p", "bgr0", "gray16le", "yuv444p10le")):
        yield one(container, "ffv1", pix_fmt)
    for codec, container, pix_fmt in (
        ("prores_ks", "mov", "yuv422p10le"),
        ("rawvideo", "avi", "yuv420p"),
        ("rawvideo", "nut", "rgb24"),
        ("rawvideo", "y4m", "yuv420p"),
        ("huffyuv", "avi", "yuv422p"),
        ("utvideo", "avi", "yuv420p"),
        ("qtrle", "mov", "rgb24"),
        ("png", "mov", "rgb24"),
        ("png", "avi", "rgba"),
        ("gif", "gif", "rgb8"),
        ("apng", "apng", "rgb24"),
        ("msmpeg4", "avi", "yuv420p"),
        ("msmpeg4v2", "avi", "yuv420p"),
        ("wmv1", "wmv", "yuv420p"),
        ("wmv2", "wmv", "yuv420p"),
        ("wmv2", "avi", "yuv420p"),
        ("flv", "flv", "yuv420p"),
        ("jpeg2000", "mov", "rgb24"),
    ):
        yield one(container, codec, pix_fmt)
    yield one("3gp", "h263", size=_H263)
    yield one("hevc", "libx265", b_frames=2)
    # Frames that refer beyond a keyframe, or have none.
    for container in ("mp4", "mkv", "ts", "avi"):
        yield one(container, "libx264", b_frames=2, options=(("x264-params", "open-gop=1:keyint=10:scenecut=0"),))
        yield one(container, "libx264", options=(("intra-refresh", "1"),))
    yield one("ts", "libx264", options=(("x264-params", "tff=1"), ("flags", "+ildct")))
    # Cut.
    for container, codec, b in (
        ("ts", "libx264", 0), ("ts", "libx264", 2), ("ts", "mpeg2video", 2), ("ts", "libx265", 2),
        ("mpg", "mpeg2video", 2), ("mkv", "libx264", 2), ("avi", "libx264", 2), ("avi", "mpeg4", 0),
        ("flv", "libx264", 0), ("mp4", "libx264", 2), ("webm", "libvpx-vp9", 0),
    ):  # fmt: skip
        for cut in ("head", "tail", "hole"):
            if cut != "head" or container in ("ts", "mpg"):
                yield one(container, codec, b_frames=b, cut=cut, n_frames=60)


CORPUS = tuple(dict.fromkeys(_corpus()))
