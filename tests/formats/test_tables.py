"""Tables as people write them: a column that is no score is never taken for one, and no id for a score."""

from __future__ import annotations

import io
import tempfile

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vidfuse as vf
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.formats.dump import read_dump
from vidfuse.formats.export import write_predictions
from vidfuse.formats.tables import read_csv
from vidfuse.stack.frames import read_frame, reordered

N, K = 30, 12
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, K, N)
Z = np.round(2 * np.eye(K)[LABELS] + RNG.normal(size=(N, K)), 6)
IDS = [f"v{row}" for row in range(N)]
COLUMNS = [f"p{k}" for k in range(K)]


def frame(**more):
    table = pd.DataFrame(Z, columns=COLUMNS)
    table.insert(0, "id", IDS)
    for name, values in more.items():
        table[name] = values
    return table


def text(table, **options):
    return table.to_csv(**options)


def assert_read(dump, ids=IDS):
    np.testing.assert_array_equal(dump.scores, Z)
    assert dump.ids is None if ids is None else dump.ids.tolist() == list(ids)
    assert dump.classes is None


def test_pandas_index_is_no_class():
    assert_read(read_csv(text(frame())))  # to_csv() writes the index
    assert_read(read_csv(text(frame().reset_index(), index=False)))
    assert_read(read_csv(text(frame().set_index("id"))))
    unnamed = pd.DataFrame(Z, columns=COLUMNS, index=IDS)
    assert_read(read_csv(text(unnamed)))
    assert_read(read_csv(text(pd.DataFrame(Z))), None)  # columns 0, 1, …, rows 0, 1, …
    assert_read(read_csv(text(pd.DataFrame(Z), index=False)), None)
    part = frame()[::-1]
    np.testing.assert_array_equal(read_csv(text(part)).scores, Z[::-1])
    assert read_csv(text(unnamed.set_axis(range(5, N + 5)))).ids.tolist() == [str(row + 5) for row in range(N)]


@pytest.mark.parametrize(
    "notes",
    [
        {"fold": np.arange(N) % 5},
        {"pred": Z.argmax(axis=1), "n_frames": np.arange(N) + 30},
        {"split": "val", "confidence": Z.max(axis=1)},
        {"fold": np.arange(N) % 5 + 0.0},
    ],
)
def test_columns_that_their_names_explain_are_left_out(notes):
    assert_read(read_csv(text(frame(**notes), index=False)))
    first = frame(**notes)
    assert_read(read_csv(text(first[["id", *notes, *COLUMNS]], index=False)))


def test_columns_that_cannot_be_scores_are_left_out_with_a_note():
    dump = read_csv(text(frame(camera=np.arange(N) % 7, note="seen"), index=False))
    assert_read(dump)
    assert dump.notes == ("columns 'camera', 'note' are no scores, and left out",)


def test_a_column_that_could_be_a_score_must_be_explained():
    other = text(frame(background=Z[:, 0] / 2), index=False)
    with pytest.raises(InputError, match=r"columns 'background' beside 'p0', 'p1' and 10 more.*columns=\"p\*\""):
        read_csv(other)
    assert_read(read_csv(other, columns="p*"))
    assert_read(read_csv(text(frame(background=Z[:, 0], pred=LABELS, p_max=Z[:, 1]), index=False), columns="p*"))
    both = read_csv(other, columns=["p0", "background"])
    np.testing.assert_array_equal(both.scores, np.stack([Z[:, 0], Z[:, 0] / 2], axis=1))
    with pytest.raises(InputError, match="expected at least two columns of scores, got 'p99'"):
        read_csv(other, columns=["p0", "p99"])
    two = frame(**{f"logit_{k}": Z[:, k] for k in range(K)})
    with pytest.raises(InputError, match=r"one set of numbered columns, got 'p\*', 'logit_\*'"):
        read_csv(text(two, index=False))
    assert_read(read_csv(text(two, index=False), columns="logit_*"))
    with pytest.raises(InputError, match=r"'\*' matches several numbered sets, 'p\*', 'logit_\*'"):
        read_csv(text(two, index=False), columns="*")


def test_among_classes_by_name_whole_numbers_and_texts_are_refused():
    names = [f"{chr(97 + k)} class" for k in range(K)]
    table = frame().set_axis(["id", *names], axis=1)
    dump = read_csv(text(table, index=False))
    assert dump.classes == tuple(names)
    table["fold"] = np.arange(N) % 5
    np.testing.assert_array_equal(read_csv(text(table, index=False)).scores, Z)
    for odd in (np.arange(N) + 3, ["left"] * N):
        table["camera"] = odd
        with pytest.raises(InputError, match="columns 'camera' among columns called by their classes: scores or not"):
            read_csv(text(table, index=False))
    table = table.drop(columns="camera").assign(duration=np.arange(N) + 0.5)
    with pytest.raises(InputError, match="columns 'duration' among"):
        read_csv(text(table, index=False))


@given(st.permutations(range(K)), st.sampled_from(["p", "class_", "", "logit"]), st.sampled_from([0, 1]))
def test_numbered_columns_stand_in_the_order_of_their_numbers(order, start, first):
    table = pd.DataFrame({"id": IDS, **{f"{start}{k + first}": Z[:, k] for k in order}})
    dump = read_csv(text(table, index=False))
    assert_read(dump)
    assert bool(dump.notes) == (list(order) != sorted(order))


def test_files_warn_of_what_they_note_and_frames_too(tmp_path):
    order = ["id", *sorted(COLUMNS)]
    frame()[order].to_csv(tmp_path / "x.csv", index=False)
    with pytest.warns(
        VidfuseWarning, match=r"x\.csv: columns 'p0', 'p1', 'p10', 'p11' and 8 more are taken in the order"
    ):
        stack = vf.read_predictions({"m": tmp_path / "x.csv"}, kind="logits")
    np.testing.assert_array_equal(stack.scores("m"), Z)
    with pytest.warns(VidfuseWarning, match="member 'm': columns 'p0', 'p1', 'p10'"):
        stack = vf.LogitStack.from_frames({"m": frame()[order]}, id="id")
    np.testing.assert_array_equal(stack.scores("m"), Z)


def lines(rows, separator=","):
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def test_without_a_header_the_first_column_is_ids_only_where_it_holds_texts():
    assert_read(read_csv(lines([i, *z] for i, z in zip(IDS, Z, strict=True))))
    scores = lines(Z)
    with pytest.raises(InputError, match=r'the first line is numbers.*id_column="1".*id_column="none"'):
        read_csv(scores)
    assert_read(read_csv(scores, id_column="none"), None)
    numbered = lines([row + 7, *z] for row, z in enumerate(Z))
    assert_read(read_csv(numbered, id_column="1"), [str(row + 7) for row in range(N)])
    assert_read(read_csv(lines([*z, i] for i, z in zip(IDS, Z, strict=True)), id_column=str(K + 1)))
    with pytest.raises(InputError, match="score column 13 holds whole numbers"):
        read_csv(lines([i, *z, row % 2] for row, (i, z) in enumerate(zip(IDS, Z, strict=True))))
    with pytest.raises(InputError, match="score column 1 holds whole numbers where others hold fractions"):
        read_csv(lines([i, y, *z] for i, y, z in zip(IDS, LABELS, Z, strict=True)))
    stream = io.StringIO()
    np.savetxt(stream, Z)
    with pytest.raises(InputError, match="the first line is numbers"):
        read_csv(stream.getvalue())
    assert_read(read_csv(stream.getvalue(), id_column="none"), None)


def test_a_first_line_of_whole_numbers_is_a_header_unless_it_could_be_a_videos_scores():
    order = sorted(range(K), key=str)  # 0, 1, 10, 11, 2, …
    shuffled = lines([["clip", *order], *([i, *z[order]] for i, z in zip(IDS, Z, strict=True))])
    with pytest.raises(InputError, match="'clip'"):  # ids that nobody recognised, and no video called "clip"
        read_csv(shuffled)
    dump = read_csv(shuffled, id_column="clip")
    assert_read(dump)
    assert "order of their numbers" in dump.notes[0]
    some = lines([["clip", 30, 7, 120], *([i, *z[:3]] for i, z in zip(IDS, Z, strict=True))])
    dump = read_csv(some, id_column="clip")
    assert dump.classes == ("30", "7", "120")
    np.testing.assert_array_equal(dump.scores, Z[:, :3])
    for hard in ([1, 0], [0, 0, 1], [1, 0, 0, 0]):  # probabilities that were written without a point
        rest = [0.5, 0.5, *[0.0] * (len(hard) - 2)]
        assert read_csv(lines([["a", *hard], ["b", *rest]])).scores.tolist() == [hard, rest]


@pytest.mark.parametrize("separator", [",", " ", "\t"])
def test_the_header_that_savetxt_writes_is_a_header_and_comments_are_none(separator):
    stream = io.StringIO()
    np.savetxt(stream, Z, delimiter=separator, header=separator.join(COLUMNS))
    assert stream.getvalue().startswith("# p0")
    assert_read(read_csv(stream.getvalue()), None)
    table = text(frame(), index=False)
    assert_read(read_csv("# of swin, epoch 3\n#\n\n" + table))
    with pytest.raises(InputError, match="line 4: expected 13 fields, got 2"):
        read_csv("# of swin\n" + "".join(table.splitlines(keepends=True)[:2]) + "a,1\n")
    hashes = [f"#{i}" for i in IDS]
    assert_read(read_csv(lines([i, *z] for i, z in zip(hashes, Z, strict=True))), hashes)


def test_an_id_that_counts_the_rows_gives_way_to_a_name():
    table = frame().rename(columns={"id": "filename"})
    table.insert(0, "id", range(N))
    assert_read(read_csv(text(table, index=False)))
    assert_read(read_csv(text(table, index=False), id_column="id"), [str(row) for row in range(N)])
    assert_read(read_csv(text(table.drop(columns="filename"), index=False)), [str(row) for row in range(N)])


def test_classes_called_like_ids_labels_or_an_index_are_scores():
    letters = [chr(65 + k) for k in range(26)]  # Y is the 25th
    scores = RNG.random(size=(3, 26)).round(4)
    dump = read_csv(lines([["id", *letters], *([i, *z] for i, z in zip("abc", scores, strict=True))]))
    np.testing.assert_array_equal(dump.scores, scores)
    assert dump.classes == tuple(letters) and dump.labels is None
    dump = read_csv("clip_id,label,target,index,file\na,2,0.5,0.25,0.25\nb,0,0.5,0.5,0.0\n")
    assert (
        dump.classes == ("target", "index", "file")
        and dump.labels.tolist() == [2, 0]
        and dump.ids.tolist() == ["a", "b"]
    )
    dump = read_csv("id,y,x\na,1,0\nb,0,1\n", columns=["x", "y"])  # one-hot: nothing but columns= can tell
    assert dump.scores.tolist() == [[0, 1], [1, 0]] and dump.labels is None


def test_a_column_of_ids_that_are_fractions_is_no_class():
    names = [f"class {k}x" for k in range(K)]
    for columns in (COLUMNS, names):
        table = lines([["id", *columns], *([row + 0.25, *z] for row, z in enumerate(Z))])
        with pytest.raises(InputError, match="'id' holds fractions: ids, or scores of a class"):
            read_csv(table)
        dump = read_csv(table, id_column="id")
        np.testing.assert_array_equal(dump.scores, Z)
        assert dump.ids.tolist() == [f"{row + 0.25}" for row in range(N)]


@given(st.permutations(range(K)), st.sampled_from(["", "p"]), st.sampled_from([1, 3]), st.sampled_from([0, 1]))
def test_classes_called_by_numbers_keep_their_scores_and_labels(order, start, step, first):
    """Written and read again, a score or a label is of the class of its name; numbers alone are no names."""
    names = [f"{start}{k * step + first}" for k in order]
    labels = np.arange(N) % K
    with tempfile.TemporaryDirectory() as folder:
        file = write_predictions(Z, f"{folder}/a.csv", ids=IDS, labels=labels, classes=names)
        dumps = [read_dump(file)]
        if (start, step, first) != ("", 1, 1):  # labels 1 … K could be names, or indices
            dumps.append(read_dump(file, classes=names))
    for dump in dumps:
        by_number = sorted(names, key=lambda name: int(name.removeprefix(start)))
        found = list(dump.classes or by_number)
        np.testing.assert_array_equal(dump.scores[:, [found.index(name) for name in names]], Z)
        assert [found[label] for label in dump.labels] == [names[label] for label in labels]


def test_one_hot_scores_are_scores():
    named = "id,run,jump\na,1,0\nb,0,1\n"
    assert read_csv(named).scores.tolist() == [[1, 0], [0, 1]] and read_csv(named).classes == ("run", "jump")
    with pytest.raises(InputError, match="columns 'half' among columns called by their classes"):
        read_csv("id,run,jump,half\na,0.9,0.1,0\nb,0.2,0.8,1\n")


@pytest.mark.parametrize("separator", [",", "\t", ";", " "])
def test_separators(separator):
    assert_read(read_csv(lines([["id", *COLUMNS], *([i, *z] for i, z in zip(IDS, Z, strict=True))], separator)))


def test_a_table_of_ids_that_nobody_recognised_asks_for_them():
    table = frame().rename(columns={"id": "recording"})
    with pytest.raises(InputError, match=r'is it \'recording\'. Say id_column="recording", or id_column="none"'):
        read_csv(text(table, index=False))
    assert_read(read_csv(text(table, index=False), id_column="recording"))
    dump = read_csv(text(table, index=False), id_column="none")
    assert dump.ids is None and "recording" in dump.notes[0]
    with pytest.raises(InputError, match="expected a column 'clip' for the ids"):
        read_csv(text(table, index=False), id_column="clip")


def test_labels_are_numbers_in_any_writing_or_names():
    assert read_csv(text(frame(y_true=LABELS + 0.0), index=False)).labels.tolist() == LABELS.tolist()
    names = sorted(f"{chr(122 - k)} class" for k in range(K))
    named = frame(label=[names[y] for y in LABELS])
    with pytest.raises(InputError, match=r"expected labels as class indices, got '. class'"):
        read_csv(text(named, index=False))
    assert read_csv(text(named, index=False), classes=names).labels.tolist() == LABELS.tolist()
    if len(set(LABELS)) == K:
        assert read_csv(text(named, index=False), classes="sorted").labels.tolist() == LABELS.tolist()


@given(st.permutations(range(4)))
def test_columns_by_name_and_labels_follow_the_given_classes(order):
    names = ["run", "jump", "walk", "swim"]
    table = pd.DataFrame(
        {"id": ["a", "b"], "label": ["walk", "run"], **{n: [k + 0.5, k + 0.25] for k, n in enumerate(names)}}
    )
    wanted = [names[k] for k in order]
    dump = read_csv(text(table, index=False), classes=wanted)
    assert dump.classes == tuple(wanted)
    np.testing.assert_array_equal(dump.scores, [[k + 0.5 for k in order], [k + 0.25 for k in order]])
    assert [wanted[y] for y in dump.labels] == ["walk", "run"]
    assert read_csv(text(table, index=False), classes="sorted").classes == tuple(sorted(names))
    with pytest.raises(InputError, match="the file: its classes are others: it lacks 'fly', and has 'swim' besides"):
        reordered(dump, ["run", "jump", "walk", "fly"])


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame])
def test_frames_and_parquet_are_held_to_the_same_rules(make, tmp_path):
    columns = {"id": IDS, **{f"p{k}": Z[:, k] for k in sorted(range(K), key=str)}, "fold": np.arange(N) % 5}
    dump = read_frame(make(columns))
    assert_read(dump)
    pytest.importorskip("pyarrow")
    pl.DataFrame({**columns, "background": Z[:, 0]}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="columns 'background' beside"):
        vf.read_predictions({"m": tmp_path / "x.parquet"}, kind="logits")
    with pytest.raises(InputError, match="column 'id': expected strings or integers as ids, got float64"):
        read_frame(make({**columns, "id": np.arange(N) + 0.0}))


def test_a_column_of_vectors_is_no_score_and_harms_none():
    table = pl.DataFrame({"id": IDS, **{f"p{k}": Z[:, k] for k in range(K)}, "embedding": Z})
    assert table["embedding"].to_numpy().shape == (N, K)
    assert_read(read_frame(table, columns="p*"))
    with pytest.raises(InputError, match="columns 'embedding' beside"):
        read_frame(table)


def test_a_frame_whose_columns_are_called_by_numbers():
    table = pd.DataFrame(Z)
    table["video"] = IDS
    assert_read(read_frame(table, id="video"))


LISTS = {name: frame(label=LABELS)[name].tolist() for name in ("id", "label", *COLUMNS)}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.concat([frame(label=LABELS), frame()[["p1"]]], axis=1), "unique column names, got 'p1' twice"),
        (frame(label=LABELS).rename(columns={"p1": 7, "p2": "7"}), "unique column names, got '7' twice"),
        ({**LISTS, "p3": LISTS["p3"][:-1]}, "'p3': expected 30 values, as in other columns, got 29"),
        ({**LISTS, "p3": 0.5}, "'p3': expected a value for each video, got one alone"),
        ({**LISTS, "p3": Z[:, :2]}, r"'p3': expected one column of values, got shape \(30, 2\)"),
        (pl.from_pandas(frame(label=LABELS)).lazy(), r"got polars' LazyFrame, which is not read yet; call collect\(\)"),
        (frame(label=[None, *map(float, LABELS[1:])]), "one for each video, got 'nan' in row 0 .1 such rows."),
        (frame(label=["walk", None, *["run"] * 28]), "one for each video, got '(None|nan)' in row 1"),
        (frame(label=pd.array([*LABELS[1:], None], dtype="Int64")), "got '(nan|<NA>)' in row 29"),
    ],
)
def test_frames_that_are_no_table_of_scores_and_labels_are_refused(table, message):
    with pytest.raises(InputError, match=message):
        read_frame(table, id="id", label="label", classes=["walk", "run", *COLUMNS[2:]])


@pytest.mark.parametrize("column", ["p[{}]", "{}_logit", "{}.0", "fold2_p{}", "c{}"])
@pytest.mark.parametrize("start", [0, 1])
def test_numbers_in_names_give_the_order_wherever_they_stand(column, start):
    names = [column.format(k + start) for k in range(K)]
    order = sorted(range(K), key=lambda k: names[k])
    wide = read_frame({"id": IDS} | {names[k]: Z[:, k] for k in order})
    long = {"id": np.repeat(IDS, K), "class": np.tile([names[k] for k in order], N), "score": Z[:, order].ravel()}
    for dump in (wide, read_frame(long)):
        np.testing.assert_array_equal(dump.scores, Z)
    assert wide.classes is None


def test_long_tables_may_count_classes_from_one_or_be_given_numbers_as_names():
    table = {"id": np.repeat(IDS, K), "class": np.tile(np.arange(1, K + 1), N), "score": Z.ravel()}
    dump = read_frame(table)
    np.testing.assert_array_equal(dump.scores, Z)
    assert dump.classes is None
    turned = tuple(map(str, range(K, 0, -1)))
    dump = read_frame(table, classes=turned)
    np.testing.assert_array_equal(dump.scores, Z[:, ::-1])
    assert dump.classes == turned


def test_labels_that_look_like_classes_are_said_to():
    table = {"id": IDS, "label": ["Re\u0301sume "] * N, "run": Z[:, 0], "r\u00e9sume": Z[:, 1]}
    with pytest.raises(InputError, match=r"'Re.*; they differ from these only in spaces, case or Unicode"):
        read_frame(table)


@pytest.mark.parametrize("classes", [["run", "jump"], [3, 4]])
def test_a_table_of_the_highest_classes_alone_is_refused(classes):
    table = {"id": IDS, "class1": [classes[0]] * N, "p1": Z[:, 0], "class2": [classes[1]] * N, "p2": Z[:, 1]}
    with pytest.raises(InputError, match="if 'class1', 'class2' say which classes the scores are of, write those of"):
        read_frame(table)


def test_a_pattern_leaves_out_no_column_that_pandas_renamed():
    table = {"id": IDS} | {f"p.{k}" if k else "p": Z[:, k] for k in range(K)}
    with pytest.raises(InputError, match=r"'p\*' matches 'p' and 'p\.1', 'p\.2' and 9 more, as pandas calls"):
        read_frame(table, columns="p*")
    np.testing.assert_array_equal(read_frame(table, columns=list(table)[1:]).scores, Z)


@pytest.mark.parametrize("column", ["resnet50.{}", "p1.{}"])
def test_a_name_before_the_number_may_end_in_a_number(column):
    np.testing.assert_array_equal(read_frame({"id": IDS} | {column.format(k): Z[:, k] for k in range(K)}).scores, Z)


def test_classes_some_of_which_differ_in_a_number_are_no_numbered_columns():
    """As Diving48's; and notes of each head are none beside scores."""
    names = [f"Back_15som_{twists}Twis_{how}" for twists in ("No", 1, 2) for how in ("PIKE", "FREE")]
    names = [*names[1:], "Forward_1som_PIKE", "Forward_Dive", "Inward_Dive", "Reverse_Dive", "Reverse_Tuck", "a", "b"]
    dump = read_frame({"id": IDS} | {name: Z[:, k] for k, name in enumerate(names)})
    assert dump.classes == tuple(names)
    np.testing.assert_array_equal(dump.scores, Z)
    notes = {"head1_pred": LABELS, "head2_pred": LABELS}
    np.testing.assert_array_equal(read_frame({"id": IDS} | notes | {f"p{k}": Z[:, k] for k in range(K)}).scores, Z)


def test_a_template_among_classes_is_no_list():
    table = {"id": IDS, "run": Z[:, 0], "hop": Z[:, 1], "template": [f"Opening [it] {row % 3}" for row in range(N)]}
    with pytest.raises(InputError, match="columns 'template' among columns called by their classes"):
        read_frame(table)


def test_a_counter_gives_way_to_no_name_of_what_videos_are_parts_of():
    parts = [f"v{row // 4}" for row in range(N)]
    table = {"id": np.arange(1, N + 1), "video": parts} | {f"p{k}": Z[:, k] for k in range(K)}
    assert read_frame(table).ids.tolist() == [str(row) for row in range(1, N + 1)]
    assert read_frame(table | {"path": IDS}).ids.tolist() == IDS
    assert read_frame(table | {"id": np.arange(N)}).ids.tolist() == parts  # an index beside views that are rows
