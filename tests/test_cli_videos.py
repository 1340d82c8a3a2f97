"""`vidfuse split` and `vidfuse shrink`: videos are parted by their source, and encoded once."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from video_corpus import OddVideo, full_decode, picture, write

from vidfuse.cli import main
from vidfuse.errors import InputError
from vidfuse.video import read_class_folders, read_csv_list
from vidfuse.video.decode import decode, probe
from vidfuse.video.shrink import shrink


def run(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


@pytest.fixture
def clips(tmp_path):
    for name in ("run", "jump"):
        for source in range(6):
            for number in range(2):
                file = tmp_path / "clips" / name / f"g{source}_{number}.mp4"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"x")
    return tmp_path / "clips"


def test_a_split_keeps_sources_whole_and_ids_as_they_are(clips, tmp_path):
    result = run("split", clips, "--groups", "/(g[0-9])_", "--share", 0.34, "--out", tmp_path / "lists", "--json")
    train, val = (read_csv_list(tmp_path / "lists" / f"{name}.csv", group="group") for name in ("train", "val"))
    assert json.loads(result.stdout)["val"] == {"videos": 8, "groups": 2, "list": str(tmp_path / "lists" / "val.csv")}
    assert len(train) == 16 and len(val) == 8 and train.classes == val.classes == ("jump", "run")
    assert sorted(train.ids + val.ids) == sorted(read_class_folders(clips).ids)
    assert not {item.group for item in train} & {item.group for item in val}
    # The lists are lists with a header themselves: parted again by their column.
    run("split", tmp_path / "lists" / "train.csv", "--column", "group", "--out", tmp_path / "again")
    assert "expected either --groups" in run("split", clips, status=2).stderr
    (clips.parent / "plain").mkdir()
    (clips.parent / "plain" / "a_1.mp4").touch()
    unlabelled = run("split", clips.parent / "plain", "--groups", "a", status=2).stderr
    assert "plain, which was read as --layout unlabelled, got some without a label" in unlabelled
    one = ("train", "x3d_tiny", clips.parent / "plain", "--layout", "folders")
    (clips.parent / "plain" / "run").mkdir()
    (clips.parent / "plain" / "run" / "a_2.mp4").touch()
    assert "plain: expected videos of at least two classes, got those of one, run" in run(*one, status=2).stderr
    assert "in every id, not found in 24" in run("split", clips, "--groups", "performer", status=2).stderr


def test_one_file_in_two_lists_under_two_names_is_told(clips, tmp_path):
    for number, file in enumerate(sorted(clips.rglob("*.mp4"))):
        file.write_bytes(bytes([number]))  # of one size, and each its own
    command = ("split", clips, "--groups", "/(g[0-9])_", "--share", 0.34, "--out", tmp_path / "lists")
    assert "several lists" not in run(*command).stdout
    train, val = (read_csv_list(tmp_path / "lists" / f"{name}.csv") for name in ("train", "val"))
    Path(val[0].path).write_bytes(Path(train[3].path).read_bytes())
    Path(train[1].path).write_bytes(Path(train[0].path).read_bytes())  # in one list: no harm
    told = run(*command).stdout
    assert "1 files are in several lists under several names, which flatters: " in told
    assert f"{train[3].id} (train)" in told and f"{val[0].id} (val)" in told
    assert json.loads(run(*command, "--json").stdout)["copies"] == [[train[3].id, val[0].id]]


def test_a_split_in_three_has_each_class_in_every_list_where_its_sources_suffice(tmp_path):
    # Of c there is one source alone, which is for training; of b three, the largest of which is for training, too.
    sizes = {"a0": 9, "a1": 8, "a2": 7, "a3": 8, "b0": 20, "b1": 1, "b2": 7, "c0": 1}
    for source, size in sizes.items():
        for number in range(size):
            file = tmp_path / "clips" / source[0] / f"{source}_{number}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    command = ("split", tmp_path / "clips", "--groups", "/(..)_", "--share", 0.25, "--test-share", 0.25)
    for seed in range(6):
        text = run(*command, "--seed", seed, "--out", tmp_path / "lists").stdout
        assert "not in every list, for want of sources: c" in text
        lists = {
            name: read_csv_list(tmp_path / "lists" / f"{name}.csv", group="group") for name in ("train", "val", "test")
        }
        sources = {name: {item.group for item in one} for name, one in lists.items()}
        assert sum(map(len, sources.values())) == len(set.union(*sources.values())) == len(sizes)
        assert {"b0", "c0"} <= sources["train"] and sources["val"] & {"b1", "b2"} and sources["test"] & {"b1", "b2"}
        assert all(any(source[0] == "a" for source in one) for one in sources.values())
    assert "that leave some" in run(*command[:-1], 0.8, status=2).stderr


def test_classes_on_one_side_only_are_named(tmp_path, clips):
    rows = [(f"run/g{n}_0.mp4", "run", f"p{n}") for n in range(4)] + [("jump/g5_0.mp4", "jump", "p9")]
    with (clips / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "performer"), *rows])
    text = run("split", clips / "list.csv", "--column", "performer", "--out", tmp_path / "lists").stdout
    assert "on one side only, for want of sources: jump" in text


def test_a_folder_is_shrunk_once(tmp_path):
    data = tmp_path / "data"
    for name, video in (
        ("run/a", OddVideo("mp4", "libx264", size=(96, 160), rotation=90)),
        ("run/b", OddVideo("avi", "libx264", size=(96, 160), b_frames=2)),
        ("jump/c", OddVideo("webm", "libvpx", size=(32, 48))),
    ):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        write(video, tmp_path).rename(data / f"{name}.{video.container}")
    (data / "val.csv").write_text("run/a.mp4,run\n")
    (data / "jump" / "bad.mp4").write_bytes(b"no video")
    result = json.loads(run("shrink", data, tmp_path / "small", "--short-side", 40, "--workers", 1, "--json").stdout)
    assert result["encoded"] == 3 and list(result["failures"]) == [str(data / "jump" / "bad.mp4")]
    small = tmp_path / "small"
    sides = {name: probe(small / f"{name}.mp4") for name in ("run/a", "run/b", "jump/c")}
    assert {name: (i.height, i.width, i.n_frames) for name, i in sides.items()} == {
        "run/a": (68, 40, 32), "run/b": (40, 68, 32), "jump/c": (32, 48, 32)
    }  # fmt: skip
    assert set(read_class_folders(small).ids) < set(read_class_folders(data).ids)
    assert (small / "val.csv").read_text() == "run/a.mp4,run\n"
    # The same pictures in the same order: an encoder's noise apart, each is nearest to its own.
    frames = decode(small / "run/b.mp4", np.arange(32), (96, 160)).astype(int)
    for index in (0, 1, 2, 3, 17, 31):
        off = [np.abs(frames[index] - picture(i, 96, 160)).mean() for i in range(32)]
        assert int(np.argmin(off)) == index
    again = json.loads(run("shrink", data, small, "--short-side", 40, "--workers", 1, "--json").stdout)
    assert (again["encoded"], again["present"]) == (0, 3)


def test_what_cannot_be_shrunk_is_refused(tmp_path):
    cut = write(OddVideo("mkv", "libx264", cut="tail", n_frames=60), tmp_path)
    with pytest.raises(InputError, match="truncated"):
        shrink(cut, tmp_path / "a.mp4", 32)
    assert shrink(cut, tmp_path / "a.mp4", 32, allow_truncated=True).n_frames == len(full_decode(cut))
    with pytest.raises(InputError, match="expected short_side >= 16"):
        shrink(cut, tmp_path / "b.mp4", 8)
    assert not (tmp_path / "b.mp4").exists()


def test_a_list_follows_its_videos_where_they_were_shrunk(tmp_path):
    """They were .avi and are .mp4; ids have no suffix, and stay."""
    data, small = tmp_path / "data", tmp_path / "small"
    data.mkdir()
    write(OddVideo("avi", "mpeg4", size=(64, 96)), tmp_path).rename(data / "a.avi")
    (data / "val.txt").write_text("a.avi 1\n")
    run("shrink", data, small, "--short-side", 32, "--workers", 1)
    (found,), (before,) = read_csv_list(data / "val.txt", small), read_csv_list(data / "val.txt")
    assert found.path == str(small / "a.mp4") and (found.id, found.label) == (before.id, before.label)


def test_a_folder_is_shrunk_in_one_way_and_beside_its_videos(tmp_path):
    data, small = tmp_path / "data", tmp_path / "small"
    data.mkdir()
    write(OddVideo("mp4", "libx264", size=(64, 96)), tmp_path).rename(data / "a.mp4")
    run("shrink", data, small, "--short-side", 32, "--workers", 1)
    assert "--short-side 32; shrink into another folder" in run("shrink", data, small, status=2).output
    assert probe(small / "a.mp4").height == 32
    assert "none within it" in run("shrink", data, data / "small", status=2).output
    assert "none within it" in run("shrink", data, data, status=2).output


def test_a_list_of_one_folder_is_also_one_of_its_shrunk_copy(clips, tmp_path):
    (clips / "run" / "g0_0.mp4").rename(clips / "run" / "g0_0.AVI")
    run("split", clips, "--groups", "/(g[0-9])_", "--out", tmp_path / "lists")
    for file in sorted(clips.rglob("*.*"))[1:]:  # the first could not be shrunk
        copy = (tmp_path / "small" / file.relative_to(clips)).with_suffix(".mp4")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"y")
    found = [read_csv_list(tmp_path / "lists" / f"{name}.csv", tmp_path / "small") for name in ("train", "val")]
    assert sorted(i for one in found for i in one.ids) == sorted(read_class_folders(tmp_path / "small").ids)
    assert all(item.path.startswith(str(tmp_path / "small")) for one in found for item in one)
    assert [(name, reason) for one in found for name, reason in one.skipped] == [
        ("jump/g0_0", f"no file at {tmp_path / 'small' / 'jump' / 'g0_0.mp4'}")
    ]
    same = [item for name in ("train", "val") for item in read_csv_list(tmp_path / "lists" / f"{name}.csv", clips)]
    assert len(same) == 24 and {Path(item.path).parent.parent for item in same} == {clips}
    relative = tmp_path / "relative.csv"
    relative.write_text("run/g0_0.AVI,run\n")
    assert read_csv_list(relative, tmp_path / "small").ids == ("run/g0_0",)
