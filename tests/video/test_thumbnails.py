"""Thumbnails: the middle frame of a video, small, by the ids that lists of videos give."""

from __future__ import annotations

import io
import shutil

import av
import numpy as np
import pytest

from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.report.pictures import Pictures
from vidfuse.video import Thumbnails, decode, read_folder, thumbnail


def opened(jpeg):
    with av.open(io.BytesIO(jpeg)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


@pytest.mark.parametrize(("short_side", "expected"), [(180, (180, 240)), (181, (180, 240)), (500, (240, 320))])
def test_the_middle_frame_is_made_small(tmp_path, write_video, short_side, expected):
    path = write_video(tmp_path / "a.mp4", n_frames=9, size=(240, 320))
    found = thumbnail(path, short_side)
    assert found.startswith(b"\xff\xd8\xff") and len(found) < 100_000
    pixels = opened(found)
    assert pixels.shape == (*expected, 3)
    whole = decode.decode(path, [4], expected)[0]
    assert np.abs(pixels.astype(int) - whole).mean() < 12


def test_ids_are_those_of_lists_and_a_picture_goes_before_a_video(tmp_path, write_video):
    for name in ("run/a", "run/b.v2", "c"):
        path = tmp_path / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, n_frames=3, size=(32, 48))
    found = Thumbnails(tmp_path)
    assert sorted(found) == sorted(item.id for item in read_folder(tmp_path))
    (tmp_path / "c.jpg").write_bytes(found["run/a"])
    again = Thumbnails(tmp_path)
    assert len(again) == 3
    np.testing.assert_allclose(opened(again["c"]).mean(), opened(found["run/a"]).mean(), atol=3)


def test_a_damaged_file_has_no_picture_and_says_so(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    with pytest.warns(VidfuseWarning, match="no picture of 'a'"):
        assert Thumbnails(tmp_path).get("a") is None


def test_folders_without_pictures_are_refused(tmp_path, write_video):
    for kind, message in ((Pictures, r"expected pictures \(.png"), (Thumbnails, "expected a folder of videos")):
        with pytest.raises(InputError, match=message):
            kind(tmp_path)
        with pytest.raises(InputError, match="expected a folder"):
            kind(tmp_path / "absent")
    write_video(tmp_path / "a.mp4", n_frames=3, size=(32, 48))
    with pytest.raises(InputError, match=r"made by vidfuse.video.Thumbnails"):
        Pictures(tmp_path)


def test_pictures_are_read_as_they_are(tmp_path, write_video):
    shutil.copy(write_video(tmp_path / "x.mp4", n_frames=3, size=(32, 48)), tmp_path / "run.mp4")
    jpeg = thumbnail(tmp_path / "run.mp4")
    for name in ("a.jpg", "b.mp4.jpg"):
        (tmp_path / name).write_bytes(jpeg)
    found = Pictures(tmp_path)
    assert {name: found[name] for name in found} == {"a": jpeg, "b": jpeg}
