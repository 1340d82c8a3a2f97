"""The torchcodec decoder's own part, with a stand-in for torchcodec that PyAV feeds.

Where torchcodec is installed, `test_decode.py` holds its frames to the full decode too.
"""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from video_corpus import OddVideo, write

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.video import decode_torchcodec
from vidfuse.video.clips import ClipSampler
from vidfuse.video.datasets import Failure, Input, VideoDataset
from vidfuse.video.decode import decode, probe
from vidfuse.video.lists import VideoItem
from vidfuse.video.transforms import TransformConfig


@pytest.fixture
def stand_in(monkeypatch):
    """Put a torchcodec that decodes with PyAV into place; give the list of its calls."""
    calls = []

    class VideoDecoder:
        def __init__(self, path, *, dimension_order, seek_mode, device, transforms=()):
            assert (dimension_order, seek_mode) == ("NHWC", "exact")
            try:
                info = probe(path)
            except InputError as error:
                raise RuntimeError("Could not open input file") from error
            self.path, self.size = path, transforms[0] if transforms else None
            self.metadata = SimpleNamespace(num_frames=info.n_frames)

        def get_frames_at(self, indices):
            calls.append((indices, self.size))
            if 13 in indices:
                raise RuntimeError("Requested next frame while there are no more frames left to decode.")
            return SimpleNamespace(data=torch.from_numpy(decode(self.path, indices, self.size)))

    package, decoders, transforms = (
        ModuleType(n) for n in ("torchcodec", "torchcodec.decoders", "torchcodec.transforms")
    )
    decoders.VideoDecoder, transforms.Resize = VideoDecoder, tuple
    for module in (package, decoders, transforms):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_every_frame_is_asked_for_once_and_in_order(stand_in, tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4")
    frames = decode_torchcodec.decode(path, [30, 2, 2, 59, 30])
    assert stand_in == [([2, 30, 59], None)]
    assert np.array_equal(frames.numpy(), decode(path, [30, 2, 2, 59, 30]))


def test_frames_are_resized_in_the_decoder(stand_in, tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4")
    assert decode_torchcodec.decode(path, [4], size=32).shape == (1, 32, 48, 3)
    assert decode_torchcodec.decode(path, [4], size=64).shape == (1, 64, 96, 3)
    assert [size for _, size in stand_in] == [(32, 48), None]


@pytest.mark.parametrize(
    ("video", "own"),
    [
        (OddVideo("mp4", "libx264", b_frames=2), True),
        (OddVideo("mov", "libx264", rotation=90), True),
        (OddVideo("webm", "libvpx-vp9"), True),
        (OddVideo("mp4", "libx265"), True),
        (OddVideo("mp4", "libx264", mirrored=True), False),
        (OddVideo("ts", "libx264", b_frames=2), False),
        (OddVideo("avi", "libx264", b_frames=2), False),
        (OddVideo("mp4", "libx264", "yuv420p10le"), False),
        (OddVideo("mkv", "libx264", options=(("intra-refresh", "1"),)), False),
        (OddVideo("mp4", "libx264", options=(("x264-params", "tff=1"), ("flags", "+ildct"))), False),
    ],
    ids=str,
)
def test_pyav_decodes_what_torchcodec_would_decode_otherwise(video, own, stand_in, tmp_path):
    path = write(video, tmp_path)
    info = decode_torchcodec.probe(path)
    assert info == probe(path)
    assert np.array_equal(decode_torchcodec.decode(path, [9, 3], info=info).numpy(), decode(path, [9, 3]))
    assert bool(stand_in) == own


def test_a_data_set_decodes_with_torchcodec(stand_in, tmp_path, write_video):
    videos = [VideoItem("a", str(write_video(tmp_path / "a.mp4")), 0), VideoItem("b", str(tmp_path / "gone.mp4"), 0)]
    network = Input(ClipSampler(length=4, interval=1), TransformConfig(size=32, short_side=40))
    dataset = VideoDataset(videos, network, decoder="torchcodec", seed=2)
    assert torch.equal(dataset[0].clips, VideoDataset(videos, network, seed=2)[0].clips)
    assert len(stand_in) == 1
    assert isinstance(dataset[1], Failure)


def test_errors_name_the_file_and_the_frames(stand_in, tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4")
    with pytest.raises(InputError, match=r"cannot decode some of frames 3 to 13: Requested next frame"):
        decode_torchcodec.decode(path, [13, 3])
    with pytest.raises(InputError, match="expected frame indices"):
        decode_torchcodec.decode(path, [60])
    with pytest.raises(InputError, match=r"expected a readable video, got .*gone\.mp4: No such file"):
        decode_torchcodec.probe(tmp_path / "gone.mp4")


def test_without_torchcodec_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(MissingExtraError, match=r"vidfuse\[torchcodec\]"):
        decode_torchcodec.require()
    with pytest.raises(MissingExtraError, match=r"vidfuse\[torchcodec\]"):
        VideoDataset([VideoItem("a", "a.mp4")], Input(), decoder="torchcodec")


def test_without_ffmpeg_the_videos_are_not_blamed(stand_in, monkeypatch):
    """torchcodec imports without FFmpeg's libraries, and fails at the first video."""

    def fails(*_, **__):
        raise RuntimeError("Could not load libtorchcodec. Likely causes: FFmpeg is not properly installed")

    monkeypatch.setattr(sys.modules["torchcodec.decoders"], "VideoDecoder", fails)
    with pytest.raises(MissingExtraError, match="FFmpeg's libraries"):
        decode_torchcodec.require()
    with pytest.raises(MissingExtraError, match="FFmpeg's libraries"):
        VideoDataset([VideoItem("a", "a.mp4")], Input(), decoder="torchcodec")


@pytest.mark.parametrize("wrong", [{"decoder": "opencv"}, {"device": "cuda"}])
def test_decoders_that_are_not_there(wrong):
    with pytest.raises(InputError, match="expected decoder="):
        VideoDataset([VideoItem("a", "a.mp4")], Input(), **wrong)
