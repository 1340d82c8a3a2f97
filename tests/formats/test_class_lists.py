"""Lists of classes as data sets come with them are read in the order of their numbers."""

from __future__ import annotations

import json

import pytest

from vidfuse.errors import InputError
from vidfuse.formats.class_lists import read_classes

NAMES = ["apply makeup", "pets, animal (cat)", "archery", "3 balls", "band"]
MIXED = [3, 0, 4, 2, 1]


def numbered(line, start=0, order=MIXED):
    return "\n".join(line.format(k=k + start, n=NAMES[k]) for k in order)


@pytest.mark.parametrize(
    ("name", "text"),
    {
        "names": ("x.txt", "\n".join(NAMES)),
        "names of windows": ("x.txt", "\ufeff" + "\r\n".join(NAMES) + "\r\n\r\n"),
        "quoted names": ("x.csv", "\n".join(f'"{name}"' for name in NAMES)),
        "UCF101's classInd": ("classInd.txt", numbered("{k} {n}", 1)),
        "from 0": ("x.txt", numbered("{k}\t{n}")),
        "Kinetics' csv": ("labels.csv", "id,name\n" + numbered('{k},"{n}"')),
        "turned": ("x.csv", numbered("{n};{k}")),
        "a list": ("x.json", json.dumps(NAMES)),
        "a list as text": ("x.txt", json.dumps(NAMES)),
        "id2label": ("x.json", json.dumps({str(k): NAMES[k] for k in MIXED})),
        "Something-Something's labels.json": ("labels.json", json.dumps({NAMES[k]: str(k) for k in MIXED})),
        "label2id": ("x.json", json.dumps({NAMES[k]: k for k in MIXED})),
    }.items(),
    ids=lambda value: None if isinstance(value, tuple) else value,
)
def test_lists_of_classes(name, text, tmp_path):
    file, content = text
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert read_classes(tmp_path / file) == NAMES


def test_names_on_one_line_and_names_that_end_in_numbers(tmp_path):
    (tmp_path / "x.txt").write_text("run,jump, swim\n")
    assert read_classes(tmp_path / "x.txt") == ["run", "jump", "swim"]
    (tmp_path / "x.txt").write_text('"hop"\nplay "tag"\n')
    assert read_classes(tmp_path / "x.txt") == ["hop", 'play "tag"']
    (tmp_path / "x.txt").write_text("50 m crawl\n200 m crawl\n100 m crawl\n")
    assert read_classes(tmp_path / "x.txt") == ["50 m crawl", "200 m crawl", "100 m crawl"]
    (tmp_path / "x.txt").write_text("camera 2\ncamera 1\n")
    assert read_classes(tmp_path / "x.txt") == ["camera 2", "camera 1"]


@pytest.mark.parametrize("content", ["0 run\n2 jump\n", "1,run\n1,jump\n", '{"run": 5, "jump": 6}'])
def test_numbers_that_do_not_run_from_0_or_1_are_refused(content, tmp_path):
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(InputError, match=r"x\.txt: expected the classes' numbers to run from 0 or from 1, each once"):
        read_classes(tmp_path / "x.txt")


def test_what_is_no_list_of_classes_is_said(tmp_path):
    (tmp_path / "x.json").write_text('{"run": "walk"}')
    with pytest.raises(InputError, match=r"expected a list of class names, .*number: name.*, got a dict"):
        read_classes(tmp_path / "x.json")
