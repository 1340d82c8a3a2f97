"""Decoded frames against a sequential decode of the whole file, on real and on awkward videos."""

import errno
import os
import resource
import struct
import sys

import av
import numpy as np
import pytest

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.video import decode_torchcodec
from vidfuse.video.decode import check_videos, decode, frame_size, probe

VARIABLE = np.cumsum(np.random.default_rng(0).integers(20, 400, 60)).tolist()

KINDS = {
    "gop 12": ("a.mp4", {}),
    "gop 250": ("a.mp4", {"gop": 250}),
    "b frames": ("a.mp4", {"b_frames": 3}),
    "every frame a keyframe": ("a.mp4", {"gop": 1}),
    "variable frame rate": ("a.mp4", {"times": VARIABLE}),
    "variable frame rate and b frames": ("a.mkv", {"times": VARIABLE, "b_frames": 2}),
    "starts late": ("a.mp4", {"times": [5000 + 100 * i for i in range(60)], "b_frames": 2}),
    "transport stream": ("a.ts", {"b_frames": 2}),
    "open gop": ("a.mp4", {"b_frames": 2, "options": {"x264-params": "open-gop=1:keyint=10:scenecut=0"}}),
    "intra refresh, no true keyframes": ("a.mp4", {"options": {"intra-refresh": "1"}}),
    "interlaced": ("a.ts", {"options": {"x264-params": "tff=1", "flags": "+ildct"}}),
    "mpeg-4 in avi": ("a.avi", {"codec": "mpeg4", "b_frames": 2}),
    "vp8": ("a.webm", {"codec": "libvpx", "n_frames": 40, "options": {"cpu-used": "8"}}),
    "vp9 with hidden frames": (
        "a.webm",
        {
            "codec": "libvpx-vp9",
            "n_frames": 40,
            "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"},
        },
    ),
    "hevc": (
        "a.mp4",
        {"codec": "libx265", "n_frames": 30, "b_frames": 2, "options": {"x265-params": "log-level=none"}},
    ),
    "fragmented": ("a.mp4", {"b_frames": 2, "container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    "odd size": ("a.mp4", {"codec": "mpeg4", "size": (62, 50)}),
}


def _shift(source, target, seconds, **options):
    """Copy a video and let it start `seconds` before time 0: an mp4 then gets an edit list."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        shift = int(seconds / stream.time_base)
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                new.mux(packet)
    return target


def _packets(path):
    """Give (pts, position, size, discarded) of every packet in a file."""
    with av.open(str(path)) as container:
        return [(p.pts, p.pos, p.size, p.is_discard) for p in container.demux(video=0) if p.size]


try:
    import torchcodec.decoders  # noqa: F401 - needs FFmpeg's libraries, which most machines lack

    TORCHCODEC = True
except (ImportError, RuntimeError):
    TORCHCODEC = False


def _check(path, expected):
    if TORCHCODEC:
        assert decode_torchcodec.probe(path).n_frames == len(expected)
        assert np.array_equal(decode_torchcodec.decode(path, np.arange(len(expected))).numpy(), expected)
    info = probe(path)
    assert info.n_frames == len(expected)
    assert (info.height, info.width) == expected.shape[1:3]
    assert np.array_equal(decode(path, np.arange(info.n_frames), info=info), expected)
    rng = np.random.default_rng(1)
    for _ in range(12):  # sparse, in any order, with repeats
        indices = rng.integers(0, info.n_frames, rng.integers(1, 6))
        assert np.array_equal(decode(path, indices, info=info), expected[indices]), indices
    assert np.array_equal(decode(path, [info.n_frames - 1]), expected[-1:])


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_a_full_decode(kind, tmp_path, write_video, full_decode):
    name, options = KINDS[kind]
    path = write_video(tmp_path / name, **options)
    expected = full_decode(path)
    assert len(expected) == options.get("n_frames", 60)
    _check(path, expected)


@pytest.mark.parametrize(("name", "n_frames"), [("bikes.mp4", 250), ("bigbuckbunny.mp4", 132)])
def test_real_videos_frame_for_frame(name, n_frames, real_video):
    path = real_video(name)
    assert probe(path).n_frames == n_frames
    frames = decode(path, np.arange(n_frames))
    with av.open(str(path)) as container:
        count = 0
        for frame, ours in zip(container.decode(video=0), frames, strict=True):
            assert np.array_equal(frame.to_ndarray(format="rgb24"), ours), count
            count += 1
    assert count == n_frames
    some = [n_frames - 1, 7, n_frames // 2, 7]
    assert np.array_equal(decode(path, some), frames[some])
    if TORCHCODEC:
        assert np.array_equal(decode_torchcodec.decode(path, np.arange(n_frames)).numpy(), frames)


def test_an_edit_list_hides_frames(tmp_path, write_video, full_decode):
    whole = write_video(tmp_path / "whole.mp4", b_frames=2, gop=30)
    edited = _shift(whole, tmp_path / "edited.mp4", seconds=1 / 6)
    expected = full_decode(edited)
    assert len(expected) == 55
    assert np.array_equal(expected, full_decode(whole)[5:])
    _check(edited, expected)


def test_an_edit_list_ends_before_the_file(tmp_path, write_video, full_decode):
    path = write_video(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    duration = data.index(b"elst") + 12  # ISO/IEC 14496-12, 8.6.6: version and flags, a count, then the duration
    assert struct.unpack_from(">I", data, duration) == (2000,)
    struct.pack_into(">I", data, duration, 1000)
    path.write_bytes(data)
    assert any(discarded for *_, discarded in _packets(path))
    expected = full_decode(path)
    assert len(expected) == 30
    assert not probe(path).truncated
    _check(path, expected)


def test_frames_before_time_0_are_not_presented(tmp_path, write_video, full_decode):
    whole = write_video(tmp_path / "whole.mp4", gop=10)
    early = _shift(whole, tmp_path / "early.ts", 1 / 5, avoid_negative_ts="disabled", mpegts_copyts="1")
    assert sum(time < 0 for time, *_ in _packets(early)) == 6
    expected = full_decode(early)
    assert np.array_equal(expected, full_decode(whole)[6:])
    _check(early, expected)


def test_packets_that_show_no_frame_are_not_counted(tmp_path, write_video, full_decode):
    path = write_video(tmp_path / "a.webm", n_frames=40, codec="libvpx", options={"cpu-used": "8"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [bytes(p) for p in container.demux(video=0) if p.size]
    data[data.index(packets[20])] &= ~0x10  # RFC 6386, section 9.1: the bit show_frame
    path.write_bytes(data)
    assert len(_packets(path)) == 40
    expected = full_decode(path)
    assert len(expected) == 39
    _check(path, expected)


def test_resizing_while_converting(tmp_path, write_video, full_decode):
    path = write_video(tmp_path / "a.mp4", n_frames=10)
    frames = decode(path, [0, 9], size=32)
    assert frames.shape == (2, 32, 48, 3)
    averaged = full_decode(path)[[0, 9]].reshape(2, 32, 2, 48, 2, 3).mean((2, 4))
    inner = np.abs(frames.astype(float) - averaged)[:, 2:-2, 2:-2]
    assert np.median(inner) < 4  # the picture is the same, scaled; filters differ
    assert decode(path, [0], size=(20, 30)).shape == (1, 20, 30, 3)
    assert decode(path, [0], size=128).shape == (1, 128, 192, 3)


def test_the_union_is_decoded_once(tmp_path, write_video, monkeypatch):
    path = write_video(tmp_path / "a.mp4", gop=250)
    from vidfuse.video import decode as module

    converted = []
    convert = module._convert
    monkeypatch.setattr(module, "_convert", lambda *a: (converted.append(1), convert(*a)))
    module.decode(path, [5, 3, 3, 5, 9, 3])
    assert len(converted) == 3


def _truncate(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_truncated_tail(name, tmp_path, write_video):
    options = {"movflags": "+faststart"} if name == "a.mp4" else {}
    path = write_video(tmp_path / name, gop=12, container_options=options)
    whole = decode(path, np.arange(60))
    _truncate(path, 0.7)
    info = probe(path)
    assert info.truncated
    assert 20 < info.n_frames < 60
    frames = decode(path, np.arange(info.n_frames - 1), info=info)
    assert np.array_equal(frames, whole[: info.n_frames - 1])


def test_row_43_unreadable_empty_and_truncated_videos_are_listed(tmp_path, write_video):
    good = write_video(tmp_path / "good.mp4", n_frames=10)
    cut = write_video(tmp_path / "cut.mp4", container_options={"movflags": "+faststart"})
    _truncate(cut, 0.6)
    headless = write_video(tmp_path / "headless.mp4")
    _truncate(headless, 0.5)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video at all\n" * 40)
    names = ["good.mp4", "cut.mp4", "headless.mp4", "empty.mp4", "text.mp4", "gone.mp4"]
    found = list(check_videos(tmp_path / name for name in names))
    assert [info is not None for _, info, _ in found] == [True, False, False, False, False, False]
    assert found[0][1].path == str(good)
    assert "truncated" in found[1][2]
    for _, _, reason in found[2:]:
        assert "expected a readable video" in reason
    assert next(iter(check_videos([cut], allow_truncated=True)))[1].truncated


def test_a_file_without_video(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(InputError, match="expected a video stream that can be decoded"):
        probe(path)


STILL = [("png", "rgb24"), ("mjpeg", "yuvj420p"), ("gif", "rgb8"), ("bmp", "bgr24")]


@pytest.mark.parametrize(("codec", "pixels"), STILL)
def test_a_still_picture_is_no_video_whatever_it_is_called(codec, pixels, tmp_path):
    for n_frames, name in ((1, "a.mp4"), (3, "b.mov")):
        container = "gif" if codec == "gif" else "image2pipe"
        with av.open(str(tmp_path / name), "w", format=container) as out:
            stream = out.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 32, 24, pixels
            for number in range(n_frames):
                frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 40 * number, np.uint8), format="rgb24")
                out.mux(stream.encode(frame.reformat(format=pixels)))
            out.mux(stream.encode())
    with pytest.raises(InputError, match=rf"expected a video, got a still picture \({codec}\) in .*a\.mp4"):
        probe(tmp_path / "a.mp4")
    assert probe(tmp_path / "a.mp4", pictures=True).n_frames == 1
    assert probe(tmp_path / "b.mov").n_frames == 3  # an animation is one


def test_an_empty_file_and_sound_with_a_cover_are_no_video(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(InputError, match=r"got .*a\.mp4: it is empty"):
        probe(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "b.mp4"), "w") as out:
        sound, cover = out.add_stream("aac", rate=44100), out.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = (
            32,
            32,
            "rgb24",
            av.stream.Disposition.attached_pic,
        )
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 44100
        out.mux(sound.encode(silence))
        out.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        out.mux(cover.encode())
        out.mux(sound.encode())
    with pytest.raises(InputError, match=r"expected a video, got sound with a cover picture in .*b\.mp4"):
        probe(tmp_path / "b.mp4")


def test_one_frame_in_a_videos_container_is_a_video(tmp_path, write_video):
    assert probe(write_video(tmp_path / "a.mp4", n_frames=1)).n_frames == 1


def test_a_damaged_frame_is_an_error_not_a_wrong_picture(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", n_frames=40, gop=10)
    info = probe(path)
    data = bytearray(path.read_bytes())
    _, position, size, _ = sorted(_packets(path))[25]
    data[position : position + size] = bytes(size)
    path.write_bytes(data)
    with pytest.raises(InputError, match="frame 25 cannot be decoded"):
        decode(path, [25], info=info)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_row_43_damage_anywhere_gives_frames_or_a_listed_reason(name, tmp_path, write_video):
    codec = "mpeg4" if name == "a.avi" else "libx264"
    whole = write_video(tmp_path / name, n_frames=20, gop=6, b_frames=2, codec=codec).read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for trial in range(60):
        data = bytearray(whole)
        at, length = rng.integers(0, len(data)), rng.integers(1, 200)
        data[at : at + length] = rng.bytes(len(data[at : at + length]))
        if trial % 3 == 0:
            del data[rng.integers(0, len(data)) :]
        path = tmp_path / f"damaged{trial}{name}"
        path.write_bytes(data)
        ((_, info, reason),) = check_videos([path], allow_truncated=True)
        if info is None:
            assert reason
            outcomes.add("listed")
            continue
        try:
            frames = decode(path, np.arange(info.n_frames), size=(8, 8), info=info)
            assert frames.shape == (info.n_frames, 8, 8, 3)
            outcomes.add("decoded")
        except InputError:
            outcomes.add("listed later")
    assert "decoded" in outcomes
    assert len(outcomes) > 1


@pytest.mark.parametrize("indices", [[-1], [60], [], [[0, 1]], [0.5]])
def test_indices_that_no_video_has(indices, tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4")
    with pytest.raises(InputError, match="expected frame indices"):
        decode(path, indices)


def test_without_pyav_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"vidfuse\[video\]"):
        probe("a.mp4")


def test_a_system_without_file_handles_is_no_unreadable_video(small_videos):
    """The video must not be listed as broken: nothing is wrong with it."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))  # no handle is left
    try:
        with pytest.raises(OSError, match="ulimit -n") as caught:
            probe(small_videos[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.errno == errno.EMFILE and not isinstance(caught.value, InputError)
    assert caught.value.filename == str(small_videos[0])
    assert probe(small_videos[0]).n_frames > 0


def test_sizes_are_whole_numbers_of_any_kind():
    assert frame_size(72, 128, np.int64(36)) == frame_size(72, 128, 36) == (36, 64)
    assert frame_size(72, 128, [np.uint8(16), 20]) == (16, 20)
    for wrong in (2.5, "36", (), (1, 2, 3), 0, None.__class__):
        with pytest.raises(InputError, match="expected size as a short side or"):
            frame_size(72, 128, wrong)
