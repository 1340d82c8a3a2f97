"""The challenge's layout and rules, line by line."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidfuse.errors import AlignmentError, InputError
from vidfuse.formats.submissions import check_submission, read_submission, score_submission, write_submission
from vidfuse.video.vipriors import read_annotations, read_classes, read_corrupted, read_vipriors

CLASSES = ["abseiling", "jump, high", "zumba"]


@pytest.fixture
def root(tmp_path):
    """A small data set in the challenge's layout: 2 train, 2 val and 2 test videos."""
    notes = tmp_path / "annotations"
    notes.mkdir()
    (notes / "clsIdx.csv").write_text('label,idx\nabseiling,1\n"jump, high",2\nzumba,3\n')
    (notes / "kinetics400ViPriors-train.csv").write_text('label,videoid,split\nzumba,t1,train\n"jump, high",t2,train\n')
    (notes / "kinetics400ViPriors-val.csv").write_text("label,videoid,split\nabseiling,v1,val\nzumba,-v2_,val\n")
    (notes / "kinetics400ViPriors-test-public.csv").write_text("videoid,split\ns1,test\ns2,test\n")
    for name in ("train/t1", "train/t2", "val/v1", "val/-v2_", "test/s1", "test/s2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
    return tmp_path


def _annotation(root, split, text):
    name = {"test": "test-public"}.get(split, split)
    (root / "annotations" / f"kinetics400ViPriors-{name}.csv").write_text(text)


def test_the_three_splits(root):
    train, val, test = (read_vipriors(root, split) for split in ("train", "val", "test"))
    assert train.classes == tuple(CLASSES)
    assert (train.ids, train.labels) == (("t1", "t2"), (2, 1))
    assert (val.ids, val.labels) == (("v1", "-v2_"), (0, 2))
    assert (test.ids, test.labels) == (("s1", "s2"), None)
    assert val[0].path == str(root / "val" / "v1.mp4")
    assert val.skipped == val.unlisted == ()


def test_row_45_missing_files_and_files_without_a_row_are_listed(root):
    (root / "val" / "v1.mp4").unlink()
    (root / "val" / "extra.mp4").write_bytes(b"x")
    val = read_vipriors(root, "val")
    assert val.ids == ("-v2_",)
    assert val.skipped == (("v1", f"no file at {root}/val/v1.mp4"),)
    assert val.unlisted == (str(root / "val" / "extra.mp4"),)


def test_corrupted_videos_are_left_out_by_their_stem(root):
    (root / "annotations" / "kinetics400ViPriors_corrupted_videos.txt").write_text(
        "some/where/v1.mp4\n\nelse/x.y.mp4\n"
    )
    assert read_corrupted(root / "annotations" / "kinetics400ViPriors_corrupted_videos.txt") == {"v1", "x.y"}
    val = read_vipriors(root, "val")
    assert val.ids == ("-v2_",)
    assert val.skipped[0][0] == "v1"
    assert "corrupted" in val.skipped[0][1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,split\nzumba,val\n", r"columns \['label', 'videoid'\].*\['videoid'\] missing"),
        ("videoid,split\nv1,val\n", r"\['label'\] missing"),
        ("", r"found \[\]"),
        ("label,videoid,split\n", "the split is empty"),
        ("label,videoid,split\nwaltz,v1,val\n", r"clsIdx.csv, got 'waltz' for video 'v1' at .*val.csv:2"),
        ("label,videoid,split\nzumba,v1,val\nzumba,v1,val\n", "each video once .* lines 2, 3"),
        ("label,videoid,split\nzumba\n", "fields at .*:2, got fewer"),
        ("label,videoid,split\nzumba,../v1,val\n", "without spaces or slashes"),
    ],
)
def test_annotations_that_cannot_be_used(root, text, message):
    _annotation(root, "val", text)
    with pytest.raises(InputError, match=message):
        read_vipriors(root, "val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,idx\na,0\nb,1\n", "1-based"),
        ("label,idx\na,1\nb,3\n", "1 … K"),
        ("label,idx\na,1\nb,1\n", "each once"),
        ("label,idx\na,1\na,2\n", "different names"),
        ("label,idx\na,one\n", "1-based"),
        ("name,idx\na,1\n", r"\['label'\] missing"),
    ],
)
def test_class_lists_that_cannot_be_used(root, text, message):
    (root / "annotations" / "clsIdx.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_vipriors(root, "val")


def test_what_is_not_there(root, tmp_path):
    with pytest.raises(InputError, match="one of"):
        read_vipriors(root, "testing")
    with pytest.raises(InputError, match=r"clsIdx\.csv"):
        read_vipriors(tmp_path / "gone", "val")
    with pytest.raises(InputError, match=r"annotations .* no such file"):
        read_annotations(tmp_path / "gone.csv")
    with pytest.raises(InputError, match="found no file"):
        read_submission(tmp_path / "gone.txt")


def test_a_byte_order_mark_and_spaces_do_no_harm(root):
    (root / "annotations" / "clsIdx.csv").write_bytes(b"\xef\xbb\xbflabel, idx\na,1\nb, 2\n")
    assert read_classes(root / "annotations" / "clsIdx.csv") == ("a", "b")


@settings(max_examples=40)
@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_a_written_submission_holds_the_best_five(n_classes, n_videos, seed):
    scores = np.random.default_rng(seed).integers(0, 4, (n_videos, n_classes)) / 4  # many ties
    ids = [f"v{i}" for i in range(n_videos)]
    path = write_submission(scores, ids, _scratch(), "vipriors")
    lines = [line.split() for line in path.read_text().splitlines()]
    assert [line[0] for line in lines] == ids
    for row, line in zip(scores.tolist(), lines, strict=True):
        ranked = sorted(range(n_classes), key=lambda c: (-row[c], c))
        assert line[1:] == [str(c + 1) for c in ranked[:5]]
    if n_classes >= 5:
        assert check_submission(path, ids, n_classes) == []


def _scratch():
    import tempfile

    return f"{tempfile.mkdtemp()}/sub.txt"


def test_tensors_vetoed_classes_and_one_video(tmp_path):
    scores = torch.log_softmax(torch.tensor([[0.0, 2.0, 1.0, -1.0, 3.0, -2.0]]), 1)
    scores[0, 4] = -torch.inf
    assert write_submission(scores, ["a"], tmp_path / "s.txt").read_text() == "a 2 3 1 4 6\n"
    assert [p.name for p in tmp_path.iterdir()] == ["s.txt"]


@pytest.mark.parametrize(
    ("scores", "ids", "error", "message"),
    [
        (np.zeros((2, 3, 4)), ["a", "b"], InputError, "reduce views first"),
        (np.zeros((0, 4)), [], InputError, "N videos"),
        (np.zeros((2, 1)), ["a", "b"], InputError, "K >= 2"),
        (np.zeros((2, 4)), None, InputError, "ids"),
        (np.zeros((2, 4)), ["a"], AlignmentError, "2 rows, got 1 ids"),
        (np.zeros((2, 4)), ["a", "a"], InputError, "'a' at rows 0 and 1"),
        (np.zeros((2, 4)), ["a", "b c"], InputError, "without spaces"),
        (np.zeros((2, 4)), ["a", ""], InputError, "without spaces"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]]), ["a", "b"], InputError, "NaN in 1 rows; first: video 'b'"),
        (np.array([["x", "y"]]), ["a"], InputError, "real numbers"),
    ],
)
def test_submissions_that_cannot_be_written(scores, ids, error, message, tmp_path):
    with pytest.raises(error, match=message):
        write_submission(scores, ids, tmp_path / "s.txt")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format(tmp_path):
    with pytest.raises(InputError, match="'vipriors' or 'csv' or 'epic', got 'vipriros'; did you mean 'vipriors'"):
        write_submission(np.zeros((1, 2)), ["a"], tmp_path / "s.txt", format="vipriros")


@pytest.mark.parametrize(
    ("line", "expected", "notes"),
    [
        ("a 1 2 3 4 5", (1, 2, 3, 4, 5), 0),
        ("a 1 2 3 4 5 6 7", (1, 2, 3, 4, 5), 0),  # the first five count
        ("  a\t1  2 3 4 5  ", (1, 2, 3, 4, 5), 0),
        ("a 7", (7, 0, 0, 0, 0), 1),  # filled with wrong ones
        ("a 0 1 2 3 400", (0, 1, 2, 3, 400), 1),
        ("a 401 1 -1 1.0 x", (0, 1, 0, 0, 0), 4),
        ("a 99999999999999999999 1 2 3 4", (0, 1, 2, 3, 4), 1),
        ("a ² 1 2 3 4", (0, 1, 2, 3, 4), 1),
        ("a", None, 1),  # an id and no class: invalid
        ("", None, 0),
    ],
)
def test_each_line_by_the_rules(line, expected, notes, tmp_path):
    path = tmp_path / "s.txt"
    path.write_text(line + "\n", encoding="utf-8")
    submission = read_submission(path)
    assert submission.classes.get("a") == expected
    assert len(submission.notes) == notes


def test_of_repeated_ids_the_first_counts(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("a 1 2 3 4 5\na 2 1 3 4 5\n")
    submission = read_submission(path)
    assert submission.classes == {"a": (1, 2, 3, 4, 5)}
    assert submission.notes == ("line 2: video 'a' again (first at line 1): the line does not count",)


def test_everything_that_is_wrong_is_listed(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("a 1 1 2 3 4\nb 1 2 3 4 5\nx 1 2 3 4 5\ny 1 2 3 4 5\n")
    assert check_submission(path, ["a", "b", "c", "d"]) == [
        "video 'a' names a class twice: [1, 1, 2, 3, 4]",
        "2 test videos are missing: ['c', 'd']",
        "2 test videos are not in the test split: ['x', 'y']",
    ]


def test_the_score_by_hand(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("a 1 9 9 9 9\nb 2 1 9 9 9\nc 9 9 9 2 9\n")
    labels = {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2}
    # Class 1: a right, b right among three. Class 2: c right among five, d missing. Class 3: e missing.
    score = score_submission(path, labels)
    assert score.top1 == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert score.top3 == pytest.approx((1 + 0 + 0) / 3)
    assert score.top5 == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert (score.n_videos, score.n_classes, score.missing) == (5, 3, ("d", "e"))
    without = score_submission(path, labels, corrupted=["d", "e"])
    assert without.top5 == 1.0
    assert (without.n_videos, without.n_classes, without.missing) == (3, 2, ())


def test_the_official_script_never_counts_class_400(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("a 1 2 3 4 5\nb 400 2 3 4 5\nc 9 2 3 4 5\n")
    labels = {"a": 0, "b": 399, "c": 10}
    assert score_submission(path, labels).top1 == pytest.approx(2 / 3)
    official = score_submission(path, labels, official=True)
    assert official.top1 == pytest.approx(1 / 2)
    assert (official.n_videos, official.n_classes) == (2, 2)


def _published_rules(lines, labels, classes):
    """The published evaluation, said in a loop: `classes` is 1 … 399 there."""
    table = {}
    for line in lines:
        name, *words = line.split()
        if words and name not in table:
            words = words[:5] + ["wrong"] * (5 - len(words[:5]))
            table[name] = [int(w) if w.isdigit() and 1 <= int(w) <= 400 else None for w in words]
    means = []
    for k in (1, 3, 5):
        accuracies = []
        for cls in classes:
            videos = [name for name, label in labels.items() if label + 1 == cls]
            if videos:
                accuracies.append(sum(cls in table.get(name, [])[:k] for name in videos) / len(videos))
        means.append(sum(accuracies) / len(accuracies))
    return means


lines = st.lists(
    st.tuples(
        st.sampled_from([f"v{i}" for i in range(8)]),
        st.lists(st.sampled_from(["1", "2", "3", "399", "400", "401", "0", "x"]), max_size=7),
    ).map(lambda line: " ".join([line[0], *line[1]])),
    max_size=14,
)


@settings(max_examples=80)
@given(lines, st.lists(st.sampled_from([0, 1, 2, 398, 399]), min_size=8, max_size=8))
def test_the_score_against_the_rules_in_a_loop(lines, values):
    labels = {f"v{i}": label for i, label in enumerate(values)}
    labels["sure"] = 0
    path = _scratch()
    with open(path, "w") as stream:
        stream.writelines(f"{line}\n" for line in lines)
    for official, classes in ((False, range(1, 401)), (True, range(1, 400))):
        score = score_submission(path, labels, official=official)
        np.testing.assert_allclose((score.top1, score.top3, score.top5), _published_rules(lines, labels, classes))


def test_labels_that_do_not_fit(tmp_path):
    path = write_submission(np.eye(2), ["a", "b"], tmp_path / "s.txt")
    with pytest.raises(InputError, match=r"\[0, 2\), got 2 for video 'b'"):
        score_submission(path, {"a": 0, "b": 2}, n_classes=2)
    with pytest.raises(InputError, match="at least one video that counts"):
        score_submission(path, {"a": 0}, n_classes=2, corrupted=["a"])


def test_submissions_need_the_base_install_only():
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'av', 'timm'): sys.modules[name] = None\n"
        "import vidfuse, tempfile\n"
        "path = vidfuse.write_submission([[0.1, 0.9]], ['a'], tempfile.mkdtemp() + '/s.txt')\n"
        "print(path.read_text(), end='')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "a 2 1\n"
