"""Predictions written block by block: the same bytes however they are cut, and after every interruption."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vidfuse as vf
from vidfuse import _unfinished
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.formats.export import write_predictions
from vidfuse.formats.submissions import write_submission
from vidfuse.stack.identity import stack_digest

N, K = 23, 4
IDS = np.array([f"v{(7 * row) % N:03d}" for row in range(N)])  # not sorted: a cache has to keep their order
LABELS = np.arange(N) % K
CLASSES = ["run", "walk, slowly", 'a "jump"', "sit"]
Z = np.random.default_rng(0).normal(size=(N, K))
P = np.exp(Z) / np.exp(Z).sum(axis=1, keepdims=True)
SUFFIXES = {"csv": ".csv", "csv-long": ".csv", "npz": ".npz", "npy": ".npy", "parquet": ".parquet", "cache": ""}


class Slices:
    """Predictions that are read by slices, and break off before some row."""

    def __init__(self, values, rows_per_block, fatal=None):
        self.values, self.shape, self.dtype, self.rows_per_block = values, values.shape, values.dtype, rows_per_block
        self.fatal, self.read = fatal, []

    def __getitem__(self, rows):
        if self.fatal is not None and rows.stop > self.fatal:
            raise KeyboardInterrupt
        self.read.append(rows.start)
        return self.values[rows]


def written(path):
    """Every byte of a file, or of the files of a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def options(form, top_k=None, dtype=None):
    about = {"ids": IDS, "labels": LABELS, "classes": CLASSES, "kind": "probabilities"}
    return {**about, "format": form, "top_k": top_k, "dtype": dtype}


CASES = [
    *((form, None) for form in SUFFIXES),
    ("csv", 2),
    ("csv-long", 3),
    ("npz", 1),
    ("parquet", 2),
]


@settings(max_examples=25, deadline=None)
@given(
    case=st.sampled_from(CASES),
    block=st.integers(1, N + 1),
    dtype=st.sampled_from([None, "float16", "float32", "float64"]),
)
def test_the_bytes_are_those_of_the_whole_however_it_is_cut(tmp_path_factory, case, block, dtype):
    form, top_k = case
    dtype = None if form == "cache" and dtype == "float64" else dtype
    folder = tmp_path_factory.mktemp("streams")
    whole = write_predictions(P, folder / f"whole{SUFFIXES[form]}", **options(form, top_k, dtype))
    cut = write_predictions(Slices(P, block), folder / f"cut{SUFFIXES[form]}", **options(form, top_k, dtype))
    assert written(whole) == written(cut)
    assert sorted(entry.name for entry in folder.iterdir()) == sorted([whole.name, cut.name])


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_parts_are_put_together_of_blocks_on_any_number_of_threads(tmp_path, monkeypatch, threads):
    """Blocks are read in rows of their own; where they end says nothing of where a cache's parts do."""
    monkeypatch.setattr("vidfuse.formats.streams._THREADS", threads)
    monkeypatch.setattr("vidfuse.formats.streams._PART", 7 * K * 4)
    whole = written(write_predictions(P, tmp_path / "whole", **options("cache")))
    assert sum(name.endswith(".safetensors") for name in whole) == 4
    for block in (1, 2, 3, 7, 8, N):
        blocks = Slices(P, block)
        assert written(write_predictions(blocks, tmp_path / str(block), **options("cache"))) == whole
        assert max(np.diff([*sorted(blocks.read), N])) <= block


@pytest.mark.parametrize(("form", "top_k"), CASES)
def test_a_broken_off_output_goes_on_from_every_row_to_the_same_bytes(tmp_path, monkeypatch, form, top_k):
    monkeypatch.setattr(_unfinished, "_BYTES", 1)  # each block is made safe
    monkeypatch.setattr("vidfuse.formats.streams._PART", 2 * K * 4)  # two videos in a part of a cache, as in a block
    name = f"out{SUFFIXES[form]}"
    whole = write_predictions(P, tmp_path / "whole" / name, **options(form, top_k))
    step = 2
    for number, fatal in enumerate(range(0, N, 3)):
        path = tmp_path / str(number) / name
        broken = Slices(P, step, fatal)
        broken_off = pytest.raises(KeyboardInterrupt)
        with broken_off:
            write_predictions(broken, path, **options(form, top_k), resume="one recipe")
        assert not path.exists()
        safe = fatal // step * step
        rest = Slices(P, step)
        write_predictions(rest, path, **options(form, top_k), resume="one recipe")
        assert written(path) == written(whole)
        assert [entry.name for entry in path.parent.iterdir()] == [name]
        # What was read ahead on other threads when it broke off may be lost, and nothing else.
        assert safe - 8 * step <= min(rest.read) <= safe


def test_without_a_word_to_go_on_by_nothing_is_left(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_predictions(Slices(P, 2, 9), tmp_path / "out.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", SUFFIXES)
def test_other_predictions_or_options_begin_anew_and_say_so(tmp_path, monkeypatch, form):
    monkeypatch.setattr(_unfinished, "_BYTES", 1)
    monkeypatch.setattr("vidfuse.formats.streams._PART", 2 * K * 4)
    path, whole = tmp_path / f"out{SUFFIXES[form]}", tmp_path / "whole" / f"out{SUFFIXES[form]}"
    with pytest.raises(KeyboardInterrupt):
        write_predictions(Slices(P, 2, 20), path, **options(form), resume="one recipe")
    with pytest.warns(VidfuseWarning, match="begun with another recipe"):
        write_predictions(Slices(P[::-1], 2), path, **options(form), resume="another recipe")
    write_predictions(P[::-1], whole, **options(form))
    assert written(path) == written(whole)


@pytest.mark.parametrize("form", SUFFIXES)
def test_what_was_written_and_is_gone_again_is_not_gone_on_from(tmp_path, monkeypatch, form):
    """A file that somebody cut, a part that somebody moved: going on would leave a hole that no reader sees."""
    monkeypatch.setattr(_unfinished, "_BYTES", 1)
    monkeypatch.setattr("vidfuse.formats.streams._PART", 2 * K * 4)
    path, whole = tmp_path / f"out{SUFFIXES[form]}", tmp_path / "whole" / f"out{SUFFIXES[form]}"
    with pytest.raises(KeyboardInterrupt):
        write_predictions(Slices(P, 2, 20), path, **options(form), resume="one recipe")
    kept = path.with_name(f"{path.name}.partial") / ("rows" if form == "parquet" else "output")
    if form == "cache":
        next(kept.glob("part-*")).unlink()
    else:
        os.truncate(kept, 40)
    with pytest.warns(VidfuseWarning, match="no longer holds all that was written there; beginning anew"):
        write_predictions(Slices(P, 2), path, **options(form), resume="one recipe")
    assert written(path) == written(write_predictions(P, whole, **options(form)))


@pytest.mark.parametrize("form", SUFFIXES)
def test_a_full_disk_leaves_no_file_and_is_gone_on_after(tmp_path, monkeypatch, form):
    """The system refuses bytes beyond a size, as a full disk does beyond its own."""
    monkeypatch.setattr(_unfinished, "_BYTES", 1)
    rows, step = 6_000, 100
    values = np.random.default_rng(1).random((rows, K)).astype(np.float32)
    monkeypatch.setattr("vidfuse.formats.streams._PART", 2_000 * K * 4)
    given = {"ids": [f"{row:06d}" for row in range(rows)], "kind": "logits", "format": form}
    whole = write_predictions(values, tmp_path / "whole" / f"out{SUFFIXES[form]}", **given)
    path = tmp_path / f"out{SUFFIXES[form]}"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_predictions(Slices(values, step), path, **given, resume="r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG and str(path) in str(caught.value.filename)
    assert not path.exists()
    write_predictions(Slices(values, step), path, **given, resume="r")
    assert written(path) == written(whole)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["whole", path.name])


def test_an_npz_is_one_for_numpy_and_for_zip(tmp_path):
    path = write_predictions(Slices(P, 3), tmp_path / "out.npz", **options("npz", dtype="float16"))
    assert zipfile.ZipFile(path).testzip() is None
    with np.load(path) as content:
        assert set(content) == {"scores", "ids", "labels", "kind", "classes"}
        np.testing.assert_array_equal(content["scores"], P.astype(np.float16))
        assert content["ids"].tolist() == IDS.tolist() and content["classes"].tolist() == CLASSES
    write_predictions(P, tmp_path / "best.npz", **options("npz", 3))
    with np.load(tmp_path / "best.npz") as content:
        order = np.argsort(-P, axis=1, kind="stable")[:, :3]
        np.testing.assert_array_equal(content["top"], order)
        np.testing.assert_array_equal(content["scores"], np.take_along_axis(P, order, axis=1))


@pytest.mark.parametrize("form", ["csv", "csv-long", "npz", "parquet", "cache"])
@pytest.mark.parametrize("dtype", [None, "float16", "float32"])
def test_what_was_written_is_read_back_as_it_was_rounded(tmp_path, form, dtype):
    path = write_predictions(P, tmp_path / f"fused{SUFFIXES[form]}", **options(form, dtype=dtype))
    if form == "cache":
        stack = vf.load_stack(path)
    else:
        stack = vf.read_predictions({"fused": path}, kind="probabilities", classes=CLASSES)
    assert stack.ids.tolist() == IDS.tolist() and stack.classes == tuple(CLASSES)
    expected = P.astype(dtype or ("float32" if form == "cache" else "float64"))
    found = stack.scores(stack.members[0])
    np.testing.assert_array_equal(found.astype(expected.dtype), expected)


def test_a_table_of_the_best_classes(tmp_path):
    tied = np.array([[0.25, 0.5, 0.25, 0.0], [0.4, 0.1, 0.1, 0.4]])
    path = write_predictions(tied, tmp_path / "best.csv", ids=["a", "b,c"], labels=[1, 0], top_k=3)
    assert path.read_text().splitlines() == [
        "id,label,class1,p1,class2,p2,class3,p3",
        "a,1,1,0.5,0,0.25,2,0.25",
        '"b,c",0,0,0.4,3,0.4,1,0.1',
    ]
    named = write_predictions(tied, tmp_path / "named.csv", ids=["a", "b"], classes=CLASSES, top_k=1, dtype="float16")
    assert named.read_text() == 'id,class1,p1\na,"walk, slowly",0.5\nb,run,0.3999\n'


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": 5}, "from 1 to 4, got 5"),
        ({"top_k": 0}, "from 1 to 4, got 0"),
        ({"top_k": 2, "format": "npy"}, "holds every class"),
        ({"dtype": "int8"}, "expected one of None, 'float16'"),
        ({"dtype": "float64", "format": "cache"}, "a cache holds float32 or float16"),
        ({"dtype": "float16", "scores": 1e6 * P}, r"within ±65504 for float16, got .* at id 'v0"),
        ({"scores": np.zeros((N, 3, K))}, "got views"),
        ({"ids": ["a"] * N}, "each id once"),
        ({"classes": ["run", "id", "walk", "sit"], "format": "parquet"}, "classes: 'id' would be called as the column"),
        ({"classes": ["run", "label", "walk", "sit"], "labels": LABELS}, "classes: 'label' would .* rename that class"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, given, message):
    words = {"scores": P, "ids": IDS, "kind": "logits", "format": "csv", **given}
    with pytest.raises(InputError, match=message):
        write_predictions(words.pop("scores"), tmp_path / "out", **words)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_that_name_which_is_not_ours_is_left_alone(tmp_path):
    """What is begun anew clears the folder of what was begun: nobody else's."""
    own = tmp_path / "out.csv.partial"
    own.mkdir()
    (own / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"out\.csv\.partial: .* found 'notes\.txt'"):
        write_predictions(P, tmp_path / "out.csv", resume="one recipe")
    assert (own / "notes.txt").read_text() == "mine"
    (tmp_path / "link.csv.partial").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="found a link"):
        write_predictions(P, tmp_path / "link.csv")
    (tmp_path / "file.npz.partial").write_text("mine")
    with pytest.raises(InputError, match=r"file\.npz\.partial: .* found a file"):
        write_predictions(P, tmp_path / "file.npz")


def test_names_that_are_taken(tmp_path):
    (tmp_path / "file.csv").write_text("old")
    write_predictions(P, tmp_path / "file.csv")
    assert (tmp_path / "file.csv").read_text().startswith("id,p0")
    (tmp_path / "link.csv").symlink_to(tmp_path / "file.csv")
    write_predictions(P[:2], tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink() and len((tmp_path / "file.csv").read_text().splitlines()) == 3
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "keep").touch()
    with pytest.raises(InputError, match="it holds something"):
        write_predictions(P, tmp_path / "full", kind="logits")
    with pytest.raises(InputError, match="found a file"):
        write_predictions(P, tmp_path / "file.csv", format="cache", kind="logits")
    with pytest.raises(InputError, match="expected a file, found a folder"):
        write_predictions(P, tmp_path / "full", format="csv")
    with pytest.raises(OSError, match=r"file\.csv/out\.npy"):
        write_predictions(P, tmp_path / "file.csv" / "out.npy")
    (tmp_path / "empty").mkdir()
    write_predictions(P, tmp_path / "empty", ids=IDS, kind="logits")
    assert vf.load_stack(tmp_path / "empty").ids.tolist() == IDS.tolist()


def test_two_processes_do_not_write_the_same_output(tmp_path):
    (tmp_path / "out.csv.partial").mkdir()
    with (tmp_path / "out.csv.partial" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing it"):
            write_predictions(P, tmp_path / "out.csv")
    write_predictions(P, tmp_path / "out.csv")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.csv"]


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    found = []
    reader = threading.Thread(target=lambda: found.append(Path(tmp_path / "pipe.csv").read_text()))
    reader.start()
    write_predictions(P, tmp_path / "pipe.csv", ids=IDS, resume="r")
    reader.join()
    assert found[0] == write_predictions(P, tmp_path / "file.csv", ids=IDS).read_text()


@pytest.mark.parametrize("name", ["file.csv", "file.npy", "cache"])
def test_blocks_of_another_shape_than_was_asked_for_are_refused(tmp_path, name):
    class Short(Slices):
        def __getitem__(self, rows):
            return self.values[rows][:1]  # which NumPy would repeat for all rows

    with pytest.raises(InputError, match=r"scores: expected \(\d+, \d+\) for slice"):
        write_predictions(Short(P, 3), tmp_path / name, ids=IDS, kind="probabilities", dtype="float32")
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("layout", ["vipriors", "csv", "sample"])
def test_submissions_go_on_too(tmp_path, monkeypatch, layout):
    monkeypatch.setattr(_unfinished, "_BYTES", 1)
    name = f"out{'.txt' if layout == 'vipriors' else '.csv'}"
    given = {"format": "vipriors" if layout == "vipriors" else "csv"}
    if layout == "sample":
        rows = "".join(f"{name}.mp4,0,0,0,0\n" for name in sorted(IDS.tolist()))
        (tmp_path / "sample.csv").write_text(f"video,c0,c1,c2,c3\n{rows}")
        given["sample"] = tmp_path / "sample.csv"
    (tmp_path / "whole").mkdir()
    whole = write_submission(Z, IDS, tmp_path / "whole" / name, **given)
    seen = []

    class Blocks(Slices):
        def __getitem__(self, rows):
            seen.append(np.arange(N)[rows].tolist())
            if self.fatal and len(seen) > self.fatal:
                raise KeyboardInterrupt
            return self.values[rows]

    with pytest.raises(KeyboardInterrupt):
        write_submission(Blocks(Z, 2, fatal=9), IDS, tmp_path / name, **given, resume="r")
    assert not (tmp_path / name).exists()
    seen.clear()
    write_submission(Blocks(Z, 2), IDS, tmp_path / name, **given, resume="r")
    assert written(tmp_path / name) == written(whole) and len(seen) < 12


def test_a_stack_is_told_from_another(tmp_path):
    stack = vf.LogitStack.from_arrays({"a": Z, "b": Z + 1}, ids=IDS, labels=LABELS)
    stack.save(tmp_path / "caches")
    cached = vf.load_stack(tmp_path / "caches")
    others = [
        stack,
        stack[1:],
        stack[::-1],
        stack.select(["b", "a"]),
        vf.LogitStack.from_arrays({"a": Z, "b": Z + 1}, ids=IDS),
        vf.LogitStack.from_arrays({"a": Z, "b": Z + 1}, ids=IDS, labels=LABELS, kind="log-likelihoods"),
        vf.LogitStack.from_arrays({"a": Z, "b": np.where(Z == Z[3, 2], 0, Z + 1)}, ids=IDS, labels=LABELS),
        cached,
        cached[:5],
        cached[5:],
        vf.LogitStack.concatenate([cached[:5], cached[5:]]),
    ]
    digests = [stack_digest(one) for one in others]
    assert len(set(digests)) == len(digests)
    assert digests[0] == stack_digest(vf.LogitStack.from_arrays({"a": Z, "b": Z + 1}, ids=IDS, labels=LABELS))
    assert digests[7] == stack_digest(vf.load_stack(tmp_path / "caches"))
