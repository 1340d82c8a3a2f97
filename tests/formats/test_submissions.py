"""Submissions in the columns and rows of a sample, by every rule that the sample can imply."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from scipy.special import softmax

import vidfuse as vf
from vidfuse.errors import AlignmentError, InputError, VidfuseWarning
from vidfuse.formats.submissions import read_submission

Z = np.random.default_rng(0).normal(size=(4, 3))
IDS = ["a/v1", "a/v2", "b/v1", "b/v3"]
NAMES = ["walk", "run", "swim"]


def written(tmp_path, sample, **options):
    path = tmp_path / "sample.csv"
    path.write_text(sample)
    out = vf.write_submission(Z, IDS, tmp_path / "out.csv", "csv", sample=path, **options)
    return list(csv.reader(out.read_text().splitlines()))


def rows_of(*ids):
    return [IDS.index(name) for name in ids]


@pytest.mark.parametrize(
    ("values", "classes", "expected"),
    [
        (["walk", "swim", "run", "walk"], NAMES, [NAMES[k] for k in Z.argmax(axis=1)]),
        (["0", "0", "0", "0"], NAMES, [str(k) for k in Z.argmax(axis=1)]),
        (["0", "2", "1", "0"], None, [str(k) for k in Z.argmax(axis=1)]),
        (["1", "2", "3", "1"], None, [str(k + 1) for k in Z.argmax(axis=1)]),
    ],
)
def test_classes_are_written_as_the_sample_writes_them(values, classes, expected, tmp_path):
    sample = "video,class\n" + "".join(f"{i},{v}\n" for i, v in zip(IDS, values, strict=True))
    rows = written(tmp_path, sample, classes=classes)
    assert rows[0] == ["video", "class"]
    assert [row[1] for row in rows[1:]] == expected


def test_rows_follow_the_sample_and_ids_stay_as_it_has_them(tmp_path):
    order = ["b/v3", "a/v1", "b/v1", "a/v2"]
    rows = written(tmp_path, "id,label\n" + "".join(f"{name}.mp4,0\n" for name in order))
    assert rows[1:] == [[f"{name}.mp4", str(Z[IDS.index(name)].argmax())] for name in order]


@pytest.mark.parametrize(
    ("header", "classes", "columns"),
    [
        ("p0,p1,p2", None, [0, 1, 2]),
        ("class_3,class_1,class_2", None, [2, 0, 1]),
        ("swim,walk,run", NAMES, [2, 0, 1]),
    ],
)
def test_probabilities_stand_in_the_samples_columns(header, classes, columns, tmp_path):
    sample = f"id,{header}\n" + "".join(f"{name},0,0,0\n" for name in reversed(IDS))
    rows = written(tmp_path, sample, classes=classes)
    assert rows[0] == ["id", *header.split(",")]
    np.testing.assert_allclose(np.array([row[1:] for row in rows[1:]], float), softmax(Z, 1)[::-1][:, columns])


def test_without_a_sample_classes_are_written_by_name_or_index(tmp_path):
    for classes in (None, NAMES):
        path = vf.write_submission(Z, IDS, tmp_path / "out.csv", "csv", classes=classes)
        rows = list(csv.reader(path.read_text().splitlines()))
        assert rows[0] == ["id", "label"]
        assert [row[1] for row in rows[1:]] == [str(k) if classes is None else classes[k] for k in Z.argmax(axis=1)]


def test_tensors_of_bfloat16_are_scores_as_others_are(tmp_path):
    z = torch.tensor(Z).bfloat16()
    path = vf.write_submission(z, IDS, tmp_path / "out.csv", "csv")
    rows = list(csv.reader(path.read_text().splitlines()))
    assert [row[1] for row in rows[1:]] == [str(int(k)) for k in z.argmax(dim=1)]


def test_videos_that_are_not_asked_for_are_left_out_aloud(tmp_path):
    with pytest.warns(VidfuseWarning, match="does not ask for 2 of 4 videos"):
        assert len(written(tmp_path, "id,label\na/v1,0\nb/v3,0\n")) == 3


@pytest.mark.parametrize(
    ("sample", "options", "error", "message"),
    [
        ("id,label\nother,0\n", {}, AlignmentError, "not predicted: 'other'"),
        ("id\na/v1\n", {}, InputError, "expected a sample submission"),
        ("id,label\na/v1,sing\n", {"classes": NAMES}, InputError, "names such as 'sing'"),
        ("id,label\na/v1,²\n", {}, InputError, "names such as '²'"),
        ("id,p0,p1\na/v1,0,0\n", {}, InputError, "expected 3 columns of classes, got 2"),
        ("id,x,y,z\na/v1,0,0,0\n", {}, InputError, "expected columns that are numbered or called as the classes"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not ask for")
def test_a_sample_that_does_not_fit_is_refused(sample, options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        written(tmp_path, sample, **options)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("s.csv", "vipriors", r'ends in \.txt for the format vipriors, or say format="csv"'),
        ("s.txt", "csv", r"ends in \.csv"),
        ("s.json", "epic", r"ends in \.zip"),
        ("s", "vipriors", r"ends in \.txt"),
    ],
)
def test_a_suffix_that_does_not_fit_is_refused(name, format, message, tmp_path):
    with pytest.raises(InputError, match=message):
        vf.write_submission(Z, ["a", "b", "c", "d"], tmp_path / name, format)
    stack = vf.LogitStack.from_arrays(Z[:, None], labels=[0, 1, 2, 0])
    with pytest.raises(InputError, match=r"ends in \.html"):
        vf.write_report(stack, tmp_path / "report.pdf")


def test_epic_needs_both_heads_and_holds_no_infinity(tmp_path):
    with pytest.raises(InputError, match=r'\{"verb": scores, "noun": scores\}'):
        vf.write_submission(Z, IDS, tmp_path / "s.zip", "epic", supervision=(2, 3, 3))
    certain = np.where(np.eye(4, 3) > 0, 0.0, -np.inf)
    certain[3, 0] = 0.0
    path = vf.write_submission({"verb": certain, "noun": Z}, IDS, tmp_path / "s.zip", "epic", supervision=(2, 3, 3))
    import zipfile

    content = json.loads(zipfile.ZipFile(path).read("test.json"), parse_constant=pytest.fail)
    assert len(content["results"][IDS[0]]["action"]) == 9


def test_a_submission_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "s.txt").write_bytes("vidéo 1 2 3 4 5\n".encode("latin-1"))
    with pytest.raises(InputError, match="expected a submission in UTF-8"):
        read_submission(tmp_path / "s.txt")
