"""The lists of videos that people already have, and what is said about rows and files that do not fit."""

import pytest

from vidfuse.errors import InputError
from vidfuse.video.lists import VideoItem, VideoList, read_class_folders, read_csv_list, read_mmaction2


@pytest.fixture
def folder(tmp_path):
    for name in ("run/a.mp4", "run/b b.mp4", "jump/c.MP4", "jump/d.avi", "jump/notes.txt"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    return tmp_path


def _list(folder, *lines, name="list.txt"):
    file = folder / name
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def test_lists_are_relabelled_by_the_names_of_their_classes():
    videos = VideoList(
        (VideoItem("a", "a.mp4", 0), VideoItem("b", "b.mp4", 1), VideoItem("c", "c.mp4")), ("run", "swim")
    )
    other = videos.relabelled(["jump", "swim", "walk", "run"])
    assert [item.label for item in other] == [3, 1, None] and other.classes == ("jump", "swim", "walk", "run")
    assert videos.relabelled(("run", "swim")) == videos
    with pytest.raises(InputError, match=r"known ones \(jump, run\), got swim"):
        videos.relabelled(["jump", "run"])
    with pytest.raises(InputError, match=r"6 known ones \(a, b, c, d, e, …\), got run, swim"):
        videos.relabelled("abcdef")
    with pytest.raises(InputError, match=r"each class name once, .* got 'run' twice"):
        videos.relabelled(["run", "swim", "run"])
    unnamed = VideoList(videos.items)
    assert unnamed.relabelled(["x", "y"]).labels is None and unnamed.relabelled(["x", "y"]).items == videos.items
    with pytest.raises(InputError, match=r"expected labels in \[0, 1\), got 1 for video 'b'"):
        unnamed.relabelled(["x"])
    with pytest.raises(InputError, match=r"expected labels in \[0, 1\), got 1 for video 'b'"):
        videos.check_labels(1)
    with pytest.raises(InputError, match=r"got -1 for video 'z' and 1 more"):
        VideoList((VideoItem("z", "z.mp4", -1), VideoItem("y", "y.mp4", 9))).check_labels(3)


def test_an_mmaction2_list(folder):
    videos = read_mmaction2(_list(folder, "run/a.mp4 1", "run/b b.mp4 1", "", "jump/c.MP4 0"), classes=["jump", "run"])
    assert videos.ids == ("run/a", "run/b b", "jump/c")
    assert videos.labels == (1, 1, 0)
    assert videos.classes == ("jump", "run")
    assert videos[1].path == str(folder / "run/b b.mp4")
    assert videos.unlisted == (str(folder / "jump/d.avi"),)


@pytest.mark.parametrize("separator", [" ", ",", "\t", ", "])
def test_a_csv_split_from_the_right(folder, separator):
    file = _list(folder, f"run/a.mp4{separator}1", f"run/b b.mp4{separator}12", name="train.csv")
    videos = read_csv_list(file)
    assert videos.ids == ("run/a", "run/b b")
    assert videos.labels == (1, 12)


def test_absolute_paths_are_named_from_their_common_folder_on(folder):
    file = _list(folder, f"{folder}/run/a.mp4 1", f"{folder}/jump/c.MP4 0", name="train.csv")
    assert read_csv_list(file, root="/elsewhere").ids == ("run/a", "jump/c")
    assert read_csv_list(_list(folder, f"{folder}/run/a.mp4 1")).ids == ("a",)


def test_class_folders_in_sorted_order(folder):
    videos = read_class_folders(folder)
    assert videos.classes == ("jump", "run")
    assert videos.ids == ("jump/c", "jump/d", "run/a", "run/b b")
    assert videos.labels == (0, 0, 1, 1)


def test_class_folders_of_given_classes_and_no_hidden_ones(folder):
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "a-checkpoint.mp4").write_bytes(b"x")
    assert read_class_folders(folder).classes == ("jump", "run")
    videos = read_class_folders(folder, ["run", "dance", "jump"])
    assert videos.classes == ("run", "dance", "jump")
    assert videos.ids == ("jump/c", "jump/d", "run/a", "run/b b")
    assert videos.labels == (2, 2, 0, 0)
    with pytest.raises(InputError, match=rf"^{folder}: expected classes among the 2 known ones .* got jump;"):
        read_class_folders(folder, ["run", "dance"])


def test_row_45_rows_without_files_and_files_without_rows_are_listed(folder):
    videos = read_mmaction2(_list(folder, "run/a.mp4 1", "run/gone.mp4 1", "jump/c.MP4 0"))
    assert videos.ids == ("run/a", "jump/c")
    assert videos.skipped == (("run/gone", f"no file at {folder}/run/gone.mp4"),)
    assert videos.unlisted == (str(folder / "jump/d.avi"), str(folder / "run/b b.mp4"))
    assert "2 videos, 1 skipped (run/gone: no file" in videos.summary()
    assert "2 files without a row" in repr(videos)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "at least one video"),
        (["run/a.mp4"], r"list.txt:1"),
        (["run/a.mp4 1", "run/a.mp4 one"], r"list.txt:2"),
        (["run/a.mp4 -1"], "0-based integer label"),
        (["run/a.mp4 1.0"], "0-based integer label"),
        (["run/a.mp4 1", "run/a.mp4 2"], r"unique ids, got 'run/a' at rows 0 and 1"),
        (["../a.mp4 1"], "inside the data's folder"),
    ],
)
def test_lists_that_cannot_be_read(folder, lines, message):
    with pytest.raises(InputError, match=message):
        read_mmaction2(_list(folder, *lines))


def test_a_label_that_the_classes_do_not_have(folder):
    with pytest.raises(InputError, match=r"labels in \[0, 2\), got 2 for video 'run/a'"):
        read_mmaction2(_list(folder, "run/a.mp4 2"), classes=["jump", "run"])


def test_files_and_folders_that_are_missing(tmp_path):
    with pytest.raises(InputError, match="found no file"):
        read_mmaction2(tmp_path / "gone.txt")
    with pytest.raises(InputError, match="a folder of class folders"):
        read_class_folders(tmp_path / "gone")
    with pytest.raises(InputError, match="expected videos"):
        read_class_folders(tmp_path)


def test_a_list_is_a_sequence():
    videos = VideoList(tuple(VideoItem(name, f"{name}.mp4", 0) for name in "abc"), classes=("x", "y"))
    assert [item.id for item in videos] == ["a", "b", "c"]
    assert videos[1:].ids == ("b", "c")
    assert videos[1:].classes == ("x", "y")
    assert videos[-1].id == "c"
    assert VideoList((VideoItem("a", "a.mp4"),)).labels is None
