"""The lists of videos that people already have, and what is said about rows and files that do not fit."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.formats.annotations import read_annotations
from vidfuse.video.layouts import guess_layout, read_videos
from vidfuse.video.lists import VideoItem, VideoList, read_class_folders, read_csv_list, read_folder, read_mmaction2
from vidfuse.video.splits import groups_by_pattern, split_by_group


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
    assert read_csv_list(_list(folder, f"{folder}/run/a.mp4 1"), root="/elsewhere").ids == ("a",)


def test_one_id_for_one_video_whatever_list_names_it(folder):
    lists = folder / "lists"
    lists.mkdir()
    lines = (
        "run/a.mp4 1",
        f"{folder}/run/a.mp4 1",
        "run/a.mp4,jog",
        '"run/a.mp4","jog"',
        "path;label\nrun/a.mp4;1",
        "run/a.mp4",
    )
    ids = {read_csv_list(_list(folder, line)).ids for line in lines}
    ids |= {read_csv_list(_list(lists, line), root=folder).ids for line in lines}
    assert ids == {("run/a",)} == {read_class_folders(folder).ids[2:3]} == {read_folder(folder).ids[2:3]}
    assert read_annotations(_list(folder, f"{folder}/run/a.mp4 1")).ids.tolist() == ["run/a"]


def test_a_csv_with_names_of_labels_quotes_and_a_header(folder):
    plain = read_csv_list(_list(folder, "run/a.mp4,long jump", "jump/c.MP4,dance", "run/b b.mp4, dance"))
    assert plain.classes == ("dance", "long jump") and plain.labels == (1, 0, 0)
    spaces = read_csv_list(_list(folder, "run/b b.mp4 dance", "jump/c.MP4 long jump"))
    assert spaces.ids == ("run/b b", "jump/c") and spaces.classes == ("dance", "long jump")
    quoted = read_csv_list(_list(folder, '"run/b b.mp4","jump, long"', '"jump/c.MP4","dance"'))
    assert quoted.classes == ("dance", "jump, long") and quoted.ids == ("run/b b", "jump/c")
    columns = _list(
        folder, "fold,Label,video_path,performer,id", "1,dance,run/a.mp4,ann,x1", "2,walk,jump/c.MP4,bob,x2"
    )
    with pytest.warns(VidfuseWarning, match=r"list\.txt: columns fold are not used: all rows are taken"):
        header = read_csv_list(columns, group="performer")
    assert header.ids == ("x1", "x2") and header.classes == ("dance", "walk")
    assert [item.group for item in header] == ["ann", "bob"]
    told = read_csv_list(_list(folder, "index,path,label,class_name,n_frames,fps,group", "0,run/a.mp4,1,run,30,25,ann"))
    assert told.labels == (1,)  # and no word of what only describes it
    ordered = read_csv_list(_list(folder, "run/a.mp4,jog", "jump/c.MP4,hop"), classes=["jog", "swim", "hop"])
    assert ordered.labels == (0, 2)
    with_mark = folder / "bom.csv"
    with_mark.write_text("\ufeffpath,label\nrun/a.mp4,3\n")
    assert read_csv_list(with_mark).labels == (3,)


def test_lists_and_folders_without_labels(folder):
    paths = read_csv_list(_list(folder, "run/a.mp4", "jump/d.avi"))
    assert paths.ids == ("run/a", "jump/d") and paths.labels is None and paths.classes is None
    every = read_folder(folder)
    assert every.ids == ("jump/c", "jump/d", "run/a", "run/b b") and every.labels is None
    assert dict(every.skipped)[str(folder / "jump/notes.txt")] == "no video by its suffix '.txt'"


def test_every_container_counts_in_a_class_folder_and_the_rest_is_counted(folder):
    for name in (
        "jump/e.ts",
        "jump/f.3gp",
        "jump/g.WMV",
        "jump/h.flv",
        "jump/.hidden.mp4",
        "jump/more/i.mp4",
        "top.mp4",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    videos = read_class_folders(folder)
    assert videos.ids[:6] == tuple(f"jump/{letter}" for letter in "cdefgh")
    assert {Path(name).name: reason for name, reason in videos.skipped} == {
        "top.mp4": "a video in no class folder",
        "more": "a folder inside a class folder",
        "notes.txt": "no video by its suffix '.txt'",
    }
    assert "8 videos, 3 skipped" in videos.summary()


def test_a_folder_that_several_links_lead_to_is_walked_once_by_its_own_name(folder, tmp_path_factory):
    own = read_folder(folder).ids
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "x.mp4").write_bytes(b"x")
    (folder / "a").symlink_to(folder / "run")  # before it, and beside it
    (folder / "run" / "b").symlink_to(folder / "run")
    for name in ("e1", "e2"):
        (folder / name).symlink_to(elsewhere)
    assert sorted(read_folder(folder).ids) == sorted([*own, "e1/x"])


def test_links_are_followed_and_what_cannot_be_a_video_is_told(folder, tmp_path_factory):
    """What people's folders hold: links to folders and in circles, links to nothing, pipes, names in other bytes."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "far.mp4").touch()
    (folder / "walk").symlink_to(elsewhere)
    (folder / "run" / "circle").symlink_to(folder)
    (folder / "run" / "gone.mp4").symlink_to(folder / "nothing.mp4")
    os.mkfifo(folder / "run" / "pipe.mp4")
    latin, line = os.fsdecode(b"caf\xe9.mp4"), "two\nlines.mp4"
    for name in (latin, line, "._a.mp4"):
        (folder / "run" / name).touch()
    (folder / os.fsdecode(b"caf\xe9")).mkdir()
    every, classes = read_folder(folder), read_class_folders(folder)
    assert every.ids == classes.ids == ("jump/c", "jump/d", "run/a", "run/b b", "walk/far")
    for videos in (every, classes):
        reasons = {Path(name).name: reason for name, reason in videos.skipped}
        assert reasons["gone.mp4"] == "a link to nothing" and reasons["pipe.mp4"] == "no file"
        assert reasons["caf\ufffd.mp4"] == reasons[line] == "its name is not one line of text in UTF-8: rename it"
    assert classes.classes == ("jump", "run", "walk")
    assert guess_layout(folder) == "folders"
    (folder / "._top.mp4").touch()  # what file managers leave is no video beside the class folders
    assert guess_layout(folder) == "folders"


def test_folders_of_frames_and_of_folders_say_what_to_do(tmp_path):
    (tmp_path / "run" / "clip1").mkdir(parents=True)
    (tmp_path / "run" / "clip1" / "0001.jpg").touch()
    with pytest.raises(InputError, match=r"none among 1 files, 1 of them pictures: if these are frames, encode those"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match=r"1 folders lie in them, such as .*clip1: move their videos up"):
        read_class_folders(tmp_path)


def test_the_layout_is_told_by_what_is_there(folder, tmp_path_factory):
    assert guess_layout(folder) == "folders" and guess_layout(folder / "run") == "unlabelled"
    assert guess_layout(_list(folder, "run/a.mp4 1")) == "csv" and guess_layout(folder / "run/a.mp4") == "unlabelled"
    assert read_videos(folder / "run").ids == ("a", "b b") and read_videos(folder / "run/a.mp4").ids == ("a",)
    data = tmp_path_factory.mktemp("data")
    shutil.copytree(folder, data / "train")
    shutil.copytree(folder / "run", data / "val" / "run")
    assert guess_layout(data) == "folders"
    assert len(read_videos(data, split="train")) == 4 and read_videos(data, split="val").ids == ("run/a", "run/b b")
    (data / "annotations").mkdir()
    (data / "annotations" / "clsIdx.csv").write_text("label,idx\n")
    assert guess_layout(data) == "vipriors"
    with pytest.raises(InputError, match="found nothing at"):
        guess_layout(data / "gone")
    assert [i.label for i in read_videos(_list(folder, "run/a.mp4 1"), "unlabelled")] == [None]


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), min_size=2, max_size=40).filter(
        lambda rows: len({group for group, _ in rows}) > 1
    ),
    st.floats(0.1, 0.6),
    st.integers(0, 5),
)
def test_a_split_by_group_keeps_groups_whole_and_both_sides_filled(rows, share, seed):
    videos = VideoList(tuple(VideoItem(f"g{g}_{i}", "", c) for i, (g, c) in enumerate(rows)))
    groups = groups_by_pattern(videos.ids, "^(g[0-9])_")
    try:
        train, val = split_by_group(videos, groups, share=share, seed=seed)
    except InputError as error:
        assert "both sides" in str(error)
        return
    assert train.items and val.items
    assert not {item.group for item in train} & {item.group for item in val}
    assert sorted(train.ids + val.ids) == sorted(videos.ids)
    assert (train, val) == split_by_group(videos, groups, share=share, seed=seed)


def test_a_split_by_group_comes_near_the_share_in_every_class():
    items = [VideoItem(f"g{g}_{c}_{n}", "", c) for g in range(20) for c in range(4) for n in range(1 + (g + c) % 3)]
    train, val = split_by_group(
        VideoList(tuple(items)), groups_by_pattern([i.id for i in items], "^g[0-9]+"), share=0.25
    )
    for label in range(4):
        share = val.labels.count(label) / (val.labels.count(label) + train.labels.count(label))
        assert abs(share - 0.25) < 0.06
    with pytest.raises(InputError, match="'x' in every id, not found in"):
        groups_by_pattern([i.id for i in items], "x")
    with pytest.raises(InputError, match="a regular expression, got"):
        groups_by_pattern(["a"], "(")
    with pytest.raises(InputError, match="at least two groups"):
        split_by_group(train, dict.fromkeys(train.ids, "one"))
    with pytest.raises(InputError, match="a group for every video"):
        split_by_group(VideoList(tuple(items)))


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
    assert videos.summary().endswith("; 2 more in the same folders are not in the list")
    assert repr(videos).endswith("are not in the list)")
    alone = replace(videos, unlisted=videos.unlisted[:1]).summary()
    assert alone.endswith("; 1 more in the same folders is not in the list")
    assert "list" not in replace(videos, skipped=(), unlisted=()).summary()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "at least one video"),
        (["run/a.mp4", "run/b 1"], r"list.txt:1"),
        (["run/a 1", "run/b walk"], r"list.txt:2"),
        (["path,label", "run/a.mp4"], r"expected 2 fields at .*list.txt:2"),
        (["path,label", "run/a.mp4,"], r"expected a label at .*list.txt:2"),
        (["path,label"], "none below the header"),
        (["id,label", "a,1"], "expected a column path or file"),
        (["run/a.mp4 1", "run/a.mp4 one"], r"list.txt:2"),
        (["run/a.mp4 -1"], "0-based integer label"),
        (["run/a.mp4 1.0"], "0-based integer label"),
        (
            ["run/a.mp4 1", "run/a.mp4 2"],
            r"ids, got 'run/a' at rows 0 and 1: .*, labelled 1 and 2; a video is listed once",
        ),
        (["../a.mp4 1"], "inside the data's folder"),
    ],
)
def test_lists_that_cannot_be_read(folder, lines, message):
    with pytest.raises(InputError, match=message):
        read_mmaction2(_list(folder, *lines))


def test_names_that_begin_with_a_hash_are_no_comments(folder):
    """As some of HMDB51 do."""
    (folder / "run" / "#20 a.avi").touch()
    plain = _list(folder, "# by hand.mp4", "#20 a.avi 1", "#20 a.avi,1", "#done", "a.mp4 0")
    with pytest.raises(InputError, match="unique ids, got '#20 a'"):
        read_csv_list(plain, folder / "run")
    listed = _list(folder, "#path,label", "# made today", "path,label", "#20 a.avi,1", "#gone.AVI,0", "a.mp4,0")
    videos = read_csv_list(listed, folder / "run")
    assert videos.ids == ("#20 a", "a") and [name for name, _ in videos.skipped] == ["#gone"]


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
