"""A sample of the odd videos, each held to a plain decode of its file; `benchmarks/odd_videos.py` takes them all."""

import av
import numpy as np
import pytest
from video_corpus import CORPUS, OddVideo, full_decode, judged, picture, write

from vidfuse.errors import InputError
from vidfuse.video import decode as by_pyav
from vidfuse.video.decode import check_videos, decode, probe
from vidfuse.video.orientation import Orientation

KNOWN = (  # what was decoded wrong, or refused, before
    OddVideo("avi", "libx264", b_frames=2),
    OddVideo("avi", "libx264", "yuv444p", b_frames=2),
    OddVideo("mp4", "libx264", "yuv444p", options=(("preset", "slow"), ("qp", "10")), note=148, n_frames=60),
    OddVideo("mpg", "mpeg2video", b_frames=2),
    OddVideo("ts", "libx264", cut="hole", n_frames=60),
    OddVideo("ts", "libx264", b_frames=2, cut="head", n_frames=60),
    OddVideo("flv", "libx264", cut="hole", n_frames=60),
    OddVideo("webm", "libvpx-vp9", start=2.0),
    OddVideo("mkv", "libx264", b_frames=2, start=2.0),
    OddVideo("mp4", "libx264", rotation=90),
    OddVideo("mov", "libx264", rotation=180, mirrored=True),
    OddVideo("mkv", "libx264", rotation=270),
    OddVideo("mkv", "libx264", mirrored=True),
)


@pytest.fixture(autouse=True)
def _quiet():
    level = av.logging.get_level()
    av.logging.set_level(av.logging.PANIC)  # encoders say what they do with odd options
    yield
    av.logging.set_level(level)


def test_the_corpus_is_large_and_has_every_kind():
    assert len(CORPUS) == len({str(video) for video in CORPUS}) >= 150


@pytest.mark.parametrize("video", [*KNOWN, *CORPUS[3::11]], ids=str)
def test_odd_videos_are_decoded_exactly_or_refused(video, tmp_path):
    path = write(video, tmp_path)
    outcome = judged(by_pyav, path, full_decode(path))
    kinds = ("exact", "truncated", "damaged") if video.cut else ("exact",)
    assert outcome.split(":")[0] in kinds, outcome


def test_the_frames_of_an_avi_come_in_the_order_in_which_they_were_encoded(tmp_path):
    """Not as the times that FFmpeg makes up for them."""
    frames = decode(write(OddVideo("avi", "libx264", b_frames=2), tmp_path), np.arange(32), size=None)
    for index, frame in enumerate(frames):
        off = [np.abs(frame.astype(int) - picture(i, 64, 96)).mean() for i in range(32)]
        assert int(np.argmin(off)) == index


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_turned_video_is_shown_as_it_was_asked_for(turn, mirrored, tmp_path):
    """PyAV documents what it was asked for: counter-clockwise by an angle, and then mirrored."""
    upright = decode(write(OddVideo("mp4", "libx264"), tmp_path), [7])[0]
    info = probe(path := write(OddVideo("mp4", "libx264", rotation=turn, mirrored=mirrored), tmp_path))
    shown = decode(path, [7], info=info)[0]
    expected = np.rot90(upright, turn // 90)
    np.testing.assert_array_equal(shown, expected[:, ::-1] if mirrored else expected)
    assert (info.height, info.width) == shown.shape[:2]
    assert info._orientation.mirrored == mirrored
    assert decode(path, [7], size=32).shape[1:3] == ((48, 32) if turn % 180 else (32, 48))


def test_the_eight_orientations_differ_and_compose_with_themselves():
    frame = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    every = [Orientation(t, r, c) for t in (False, True) for r in (False, True) for c in (False, True)]
    assert len({o.shown(frame).tobytes() + bytes(o.sides(2, 3)) for o in every}) == 8
    turns = [np.rot90(frame, k).tobytes() for k in range(4)]
    for orientation in every:
        shown = orientation.shown(frame)
        assert shown.shape[:2] == orientation.sides(2, 3)
        assert orientation.mirrored == (shown.tobytes() not in turns)


def test_a_video_that_is_turned_by_another_angle_is_refused_with_the_reason(tmp_path):
    path = write(OddVideo("mp4", "libx264", rotation=45), tmp_path)
    with pytest.raises(InputError, match=r"turned by quarters, got one turned by -?45 degrees; encode it again"):
        probe(path)


@pytest.mark.parametrize("container", ["mkv", "webm", "mp4", "ts", "flv"])
def test_an_intact_video_that_starts_late_is_not_truncated(container, tmp_path):
    codec = "libvpx" if container == "webm" else "libx264"
    whole = write(OddVideo(container, codec, start=3.0), tmp_path)
    assert not probe(whole).truncated
    if container in ("mkv", "webm"):
        late = write(OddVideo(container, codec, start=3.0, n_frames=80), tmp_path)
        late.write_bytes(late.read_bytes()[: -late.stat().st_size // 3])
        assert probe(late).truncated


def test_a_program_stream_is_never_sought_in(tmp_path):
    """Only some of its frames have times, and the first one after a seek may get that of another."""
    info = probe(write(OddVideo("mpg", "mpeg2video"), tmp_path))
    assert info.keyframes.tolist() == [0]


def test_the_reason_names_the_options_of_both_interfaces(tmp_path):
    path = write(OddVideo("mkv", "libx264", b_frames=2, cut="tail", n_frames=60), tmp_path)
    ((_, info, reason),) = check_videos([path])
    assert info is None and "allow_truncated=True (--allow-truncated)" in reason
    assert full_decode(path).shape[0] == probe(path).n_frames
