"""How files become ids, and that every reader of lists uses the one rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from vidfuse._paths import name_ids, path_ids
from vidfuse.errors import InputError
from vidfuse.formats.annotations import read_annotations
from vidfuse.video.lists import read_class_folders, read_csv_list

PATHS = {
    "relative": (["run/a.mp4", "run/b c.AVI"], ["run/a", "run/b c"]),
    "from here": (["./run/a.mp4", "run//b.mp4"], ["run/a", "run/b"]),
    "of Windows": (["run\\a.mp4", "run\\x\\b.mp4"], ["run/a", "run/x/b"]),
    "no video's suffix": (["run/a.v2", "run/b.v2.mkv"], ["run/a.v2", "run/b.v2"]),
    "absolute": (["/data/val/a.mp4", "/data/val/x/b.mp4"], ["a", "x/b"]),
    "of one folder": (["/data/val/a.mp4", "/data/val/b.mp4"], ["a", "b"]),
    "of folders that begin alike": (["/data/val/a.mp4", "/data/valid/b.mp4"], ["val/a", "valid/b"]),
    "on a drive": (["C:\\data\\val\\a.mp4", "C:/data/val/x/b.mp4"], ["a", "x/b"]),
    "mixed": (["/data/val/a.mp4", "run/b.mp4"], ["a", "run/b"]),
}


@pytest.mark.parametrize("name", PATHS)
def test_lists_for_training_and_for_dumps_give_the_same_ids(name, tmp_path):
    paths, expected = PATHS[name]
    file = tmp_path / "list.csv"
    file.write_text("".join(f"{path} 0\n" for path in paths))
    table = tmp_path / "table.csv"
    table.write_text("path,label\n" + "".join(f"{path},0\n" for path in paths))
    videos = read_csv_list(file)
    assert [*videos.ids, *(identifier for identifier, _ in videos.skipped)] == expected  # no such files: all skipped
    assert read_annotations(file).ids.tolist() == read_annotations(table).ids.tolist() == expected
    assert path_ids(paths) == expected


def test_class_folders_give_the_ids_of_a_list(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.b.mp4").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("run/a.b.mp4 0\n")
    assert read_class_folders(tmp_path).ids == read_csv_list(tmp_path / "list.txt").ids == ("run/a.b",)


def test_class_folders_take_every_suffix_that_decoders_read_and_list_the_others(tmp_path):
    for name in ("run/a.MP4", "run/b.flv", "swim/c.wmv", "swim/d.3gp", "swim/e.gif", "swim/notes.json", "swim/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    videos = read_class_folders(tmp_path)
    assert videos.ids == ("run/a", "run/b", "swim/c", "swim/d", "swim/e")
    assert [Path(file).name for file, _ in videos.skipped] == ["notes.json"]


def test_names_that_look_the_same_are_the_same():
    assert path_ids(["caf\u00e9.mp4"]) == path_ids(["cafe\u0301.mp4"]) == path_ids(["caf\u00e9"]) == ["caf\u00e9"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("path", ["run/a", "b.v2"]), ("stem", ["a", "b.v2"]), ("exact", ["run/a.mp4", "b.v2"])],
)
def test_other_rules_for_ids(rule, expected):
    assert name_ids(["run/a.mp4", "b.v2"], rule) == expected


def test_a_path_out_of_the_folder_has_a_name_all_the_same():
    with pytest.raises(InputError, match=r'got \.\./a\.mp4; ids="stem" takes the files'):
        name_ids(["../a.mp4"])
    assert name_ids(["../a.mp4", "C:\\b.avi"], "stem") == ["a", "b"]


def test_a_path_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("run/../../a.mp4 0\n")
    for read in (read_annotations, read_csv_list):
        with pytest.raises(InputError, match="expected paths inside the data's folder, got run/"):
            read(tmp_path / "list.txt")
