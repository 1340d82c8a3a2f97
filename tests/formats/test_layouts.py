"""Every layout that tools dump is read to the numbers that were written, by id; what is not understood is named."""

from __future__ import annotations

import contextlib
import gzip
import json
import pickle
import re
import unicodedata

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from scipy.special import log_softmax, softmax

import vidfuse as vf
from vidfuse.errors import AlignmentError, InputError, VidfuseWarning
from vidfuse.formats.annotations import read_annotations
from vidfuse.formats.dump import read_dump
from vidfuse.formats.export import write_predictions

torch = pytest.importorskip("torch")

N, K = 40, 12
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, K, N)
Z = (2 * np.eye(K)[LABELS] + RNG.normal(size=(N, K))).astype(np.float32)
P = softmax(Z.astype(float), axis=1)
IDS = [f"S{row:03d}C001" for row in range(N)]
ACCURACY = float((Z.argmax(axis=1) == LABELS).mean())


def dumped(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


def read(path, kind="logits", **options):
    return vf.read_predictions({"m": path}, kind=kind, **options)


def accuracy(stack):
    return float((stack.log_likelihoods()[:, 0].argmax(axis=1) == stack.labels).mean())


# Ten families of published dumps, each as its tool lays it out: file, annotations, what one call says, ids or not.


def skeleton_models(folder):  # ST-GCN, 2s-AGCN, MS-G3D, CTR-GCN: {sample name: scores}, val_label.pkl = (names, labels)
    dumped(folder / "val_label.pkl", ([f"{name}.skeleton" for name in IDS], LABELS.tolist()))
    content = {f"{IDS[row]}.skeleton": Z[row] for row in RNG.permutation(N)}
    return dumped(folder / "epoch1_test_score.pkl", content), {"annotations": folder / "val_label.pkl"}


def two_stream(folder):  # two-stream forks: {video: (1, K)}, a list of labels as csv
    (folder / "labels.csv").write_text(
        "video,label\n" + "".join(f"{i},{y}\n" for i, y in zip(IDS, LABELS, strict=True))
    )
    return dumped(folder / "rgb.pickle", {i: z[None] for i, z in zip(IDS, Z, strict=True)}), {
        "annotations": folder / "labels.csv"
    }


def tsn_rows(folder):  # TSN, DMC-Net: an .npz of rows (array (segments, 1, K), label)
    cells = np.empty((N, 2), dtype=object)
    for row in range(N):
        cells[row, 0], cells[row, 1] = np.tile(Z[row], (3, 1, 1)), int(LABELS[row])
    np.savez(folder / "tsn.npz", scores=cells, labels=LABELS)
    return folder / "tsn.npz", {"annotations": IDS, "views": "mean-log"}


def three_cells(folder):  # TSN in PyTorch: rows (position, scores, label) in the order in which they were finished
    rows = [(int(row), Z[row], int(LABELS[row])) for row in np.random.default_rng(1).permutation(N)]
    cells = np.empty((N, 3), dtype=object)
    for at, row in enumerate(rows):
        cells[at, 0], cells[at, 1], cells[at, 2] = row
    np.savez(folder / "three.npz", scores=cells)
    return folder / "three.npz", {"annotations": IDS}


def mmaction2(folder):  # MMAction2's --dump: a list of dicts of tensors, no ids; the list file has them
    (folder / "val.txt").write_text("".join(f"{i}.mp4 {y}\n" for i, y in zip(IDS, LABELS, strict=True)))
    content = [
        {"pred_score": torch.tensor(p), "gt_label": torch.tensor([int(y)]), "pred_label": torch.tensor([0]),
         "num_classes": K, "img_shape": (224, 224)}
        for p, y in zip(P, LABELS, strict=True)
    ]  # fmt: skip
    return dumped(folder / "mm.pkl", content), {"annotations": folder / "val.txt", "kind": "probabilities"}


def mmaction_json(folder):  # MMAction's --out result.json: one list of scores a video; a rawframe list
    (folder / "result.json").write_text(json.dumps(P.tolist()))
    (folder / "raw.txt").write_text("".join(f"{i} {30 + y} {y}\n" for i, y in zip(IDS, LABELS, strict=True)))
    return folder / "result.json", {"annotations": folder / "raw.txt", "kind": "probabilities"}


def pyslowfast(folder):  # PySlowFast: [sums of probabilities over views, labels]
    return dumped(folder / "slowfast.pkl", [torch.tensor(30 * P), torch.tensor(LABELS)]), {
        "annotations": IDS,
        "kind": "sum",
    }


def videomae(folder):  # VideoMAE: one text file a process, lines `id [scores] label chunk split`, repeats at the end
    lines = [
        f"{IDS[row]} {P[row].tolist()} {LABELS[row]} {chunk} {split}\n"
        for row in range(N) for chunk in range(2) for split in range(3)
    ]  # fmt: skip
    for rank in (0, 1):
        (folder / f"{rank}.txt").write_text("71.5, 90.25\n" + "".join(lines[rank::2]) + lines[0])
    return folder, {"kind": "probabilities", "views": "mean-probability"}


def epic(folder):  # EPIC-KITCHENS: heads beside each other, by torch.save
    content = {
        "verb_output": torch.tensor(Z), "noun_output": torch.zeros(N, 30), "narration_id": IDS,
        "verb_class": torch.tensor(LABELS), "noun_class": torch.zeros(N, dtype=torch.long),
    }  # fmt: skip
    torch.save(content, folder / "test.pt")
    return folder / "test.pt", {"head": "verb"}


def video_preds(folder):  # PyTorchVideo's trainers: {"video_preds", "video_labels"}
    return dumped(folder / "out.pkl", {"video_preds": torch.tensor(Z), "video_labels": torch.tensor(LABELS)}), {
        "annotations": IDS
    }


def kaggle(folder):  # DataFrame.to_csv() with its index, columns in the order of text, notes beside them
    order = sorted(range(K), key=str)
    head = ["", "id", *(f"p{k}" for k in order), "fold", "n_frames", "pred", "label"]
    rows = [
        [row, IDS[row], *Z[row, order].tolist(), row % 5, 100 + row, int(Z[row].argmax()), LABELS[row]]
        for row in range(N)
    ]
    (folder / "oof.csv").write_text("\n".join(",".join(map(str, row)) for row in [head, *rows]))
    return folder / "oof.csv", {}


def pyskl(folder):  # pyskl: a list of arrays, and the annotations of the data set's own pickle
    rows = [{"frame_dir": i, "label": int(y), "total_frames": 70} for i, y in zip(IDS, LABELS, strict=True)]
    dumped(folder / "ntu.pkl", {"split": {"val": IDS}, "annotations": rows})
    return dumped(folder / "result.pkl", list(Z)), {"annotations": folder / "ntu.pkl"}


FAMILIES = [skeleton_models, two_stream, tsn_rows, three_cells, mmaction2, mmaction_json, pyslowfast, videomae, epic]
FAMILIES += [video_preds, kaggle, pyskl]


@pytest.mark.filterwarnings("ignore::vidfuse.errors.VidfuseWarning")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_families_of_published_dumps_are_read_by_one_call_to_plain_numpys_accuracy(family, tmp_path):
    path, options = family(tmp_path)
    stack = read(path, **options)
    names = [name.removesuffix(".skeleton") for name in stack.ids.tolist()]
    assert sorted(names) == IDS
    rows = [IDS.index(name) for name in names]
    assert stack.labels.tolist() == LABELS[rows].tolist()
    expected = softmax(Z[rows].astype(float), axis=1)
    np.testing.assert_allclose(np.exp(stack.log_likelihoods()[:, 0]), expected, atol=2e-4)  # means have a floor
    assert accuracy(stack) == ACCURACY


BY_ID = {
    "numbers": {row: Z[row] for row in range(N)},
    "numpy keys": {np.int32(row): Z[row] for row in range(N)},
    "tensors": {row: torch.tensor(Z[row]) for row in range(N)},
    "lists": {row: Z[row].tolist() for row in range(N)},
    "one view": {row: Z[row][None] for row in range(N)},
    "one view nested": {row: [Z[row].tolist()] for row in range(N)},
    "with labels": {row: [Z[row], int(LABELS[row])] for row in range(N)},
    "with labels in tuples": {row: (torch.tensor(Z[row]), torch.tensor(LABELS[row])) for row in range(N)},
    "dicts": {row: {"pred_score": Z[row], "label": int(LABELS[row])} for row in range(N)},
    "within results": {"results": {row: Z[row] for row in range(N)}},
    "with a dict of labels": {"scores": {f"{row}": Z[row] for row in range(N)},
                              "labels": {f"{row}": int(LABELS[row]) for row in range(N)}},
}  # fmt: skip


@pytest.mark.parametrize("name", BY_ID)
def test_scores_by_id(name, tmp_path):
    dump = read_dump(dumped(tmp_path / "x.pkl", BY_ID[name]))
    assert dump.ids.tolist() == [str(row) for row in range(N)]
    np.testing.assert_array_equal(np.asarray(dump.scores, dtype=np.float32), Z)
    assert dump.labels is None or dump.labels.tolist() == LABELS.tolist()
    assert ("label" in name or name == "dicts") == (dump.labels is not None)


NAMES = ["abcdefghijkl"[(5 * k) % K] + "ing" for k in range(K)]
BY_NAME = np.argsort(NAMES)


def answers(row, names=NAMES, top_k=None):
    """What a Hugging Face pipeline says of a video: the best classes first."""
    best = np.argsort(-P[row])[:top_k]
    return [{"score": float(P[row, k]), "label": names[k]} for k in best]


ANSWERED = {
    "list": (".json", lambda: [answers(row) for row in range(N)]),
    "by id": (".json", lambda: {f"{IDS[row]}.mp4": answers(row) for row in range(N)}),
    "beside ids": (".json", lambda: {"ids": IDS, "results": [answers(row) for row in range(N)]}),
    "lines": (".jsonl", lambda: [{"video": IDS[r], "label": NAMES[LABELS[r]], "said": answers(r)} for r in range(N)]),
    "dicts by id": (".pkl", lambda: {IDS[r]: {"output": answers(r), "label": NAMES[LABELS[r]]} for r in range(N)}),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_answers_of_a_pipeline_are_scores(name, tmp_path):
    suffix, content = ANSWERED[name]
    path = tmp_path / f"x{suffix}"
    if suffix == ".pkl":
        dumped(path, content())
    else:
        path.write_text("\n".join(map(json.dumps, content())) if suffix == ".jsonl" else json.dumps(content()))
    dump = read_dump(path)
    np.testing.assert_array_equal(dump.scores, P[:, BY_NAME])
    assert dump.classes == tuple(sorted(NAMES))
    assert dump.ids is None if name == "list" else dump.ids.tolist() == IDS
    labelled = name in ("lines", "dicts by id")
    assert dump.labels.tolist() == np.argsort(BY_NAME)[LABELS].tolist() if labelled else dump.labels is None
    np.testing.assert_array_equal(read_dump(path, classes=NAMES).scores, P)


def test_answers_without_names_of_classes_stand_in_the_order_of_their_numbers(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([answers(row, [f"LABEL_{k}" for k in range(K)]) for row in range(N)]))
    dump = read_dump(tmp_path / "x.json")
    np.testing.assert_array_equal(dump.scores, P)
    assert dump.classes is None and read_dump(tmp_path / "x.json", classes=NAMES).classes == tuple(NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [answers(row, top_k=5 if row == 7 else None) for row in range(N)],
            "got 5 of 12 classes or more in row 7 (1 s",
        ),
        ({IDS[row]: answers(row, top_k=5) for row in range(N)}, "top_k=len(pipe.model.config.id2label)"),
        ([answers(0, ["run"] * K, 1)] * 2, "got 1 of 1 classes or more"),
        (answers(0), "got one list: the best class of each, or all of one video"),
        ({IDS[row]: answers(row)[0] for row in range(N)}, "got one list"),
        ([[*answers(0), answers(0)[0]]] * 2, "got 2 for id '0'"),
    ],
)
def test_answers_that_lack_classes_say_how_to_get_them(content, message, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=re.escape(message)):
        read_dump(tmp_path / "x.json")


@pytest.mark.parametrize("top_k", [5, None])
def test_answers_beside_a_video_s_own_scores_are_notes(top_k, tmp_path):
    rows = [{"id": IDS[row], "scores": P[row].tolist(), "shown": answers(row, top_k=top_k)} for row in range(N)]
    for content in (rows, {row["id"]: row for row in rows}):
        (tmp_path / "x.json").write_text(json.dumps(content))
        dump = read_dump(tmp_path / "x.json")
        assert dump.ids.tolist() == IDS and dump.classes is None
        np.testing.assert_array_equal(dump.scores, P)


@pytest.mark.parametrize("without", [0, 3])
def test_a_label_beside_some_answers_is_left_out_and_said(without, tmp_path):
    rows = [{"id": IDS[row], "said": answers(row), "label": NAMES[LABELS[row]]} for row in range(N)]
    del rows[without]["label"]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with pytest.warns(VidfuseWarning, match="only some videos have 'label': left out"):
        dump = read_dump(tmp_path / "x.json")
    assert dump.labels is None and dump.ids.tolist() == IDS


def test_lines_that_each_name_a_video_by_its_key_are_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({i: z.tolist()}) for i, z in zip(IDS, Z, strict=True)))
    with pytest.raises(InputError, match=r"videos have their scores under other names each, .*: ids"):
        read_dump(tmp_path / "x.jsonl")


def test_views_by_id_and_in_an_npy_file(tmp_path):
    views = np.stack([Z, Z + 1], axis=1)
    content = dict(zip(IDS, views, strict=True))
    np.save(tmp_path / "views.npy", content, allow_pickle=True)
    for path in (tmp_path / "views.npy", dumped(tmp_path / "views.pkl", content)):
        dump = read_dump(path)
        assert dump.ids.tolist() == IDS
        np.testing.assert_array_equal(dump.scores, views)


ROWS = {
    "scores, label": [[z, int(y)] for z, y in zip(Z, LABELS, strict=True)],
    "scores, tensor": [(torch.tensor(z), torch.tensor([y])) for z, y in zip(Z, LABELS, strict=True)],
    "id, scores": [(i, z) for i, z in zip(IDS, Z, strict=True)],
    "id, scores, label": [(i, z, int(y)) for i, z, y in zip(IDS, Z, LABELS, strict=True)],
    "scores, label, id": [(z, int(y), i) for i, z, y in zip(IDS, Z, LABELS, strict=True)],
    "ids, scores in parts": (IDS, Z),
    "scores, labels, ids in parts": (Z, LABELS, IDS),
    "lists in parts": (IDS, Z.tolist(), LABELS.tolist()),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_and_parts(name, tmp_path):
    dump = read_dump(dumped(tmp_path / "x.pkl", ROWS[name]))
    np.testing.assert_array_equal(np.asarray(dump.scores, dtype=np.float32), Z)
    assert (dump.ids is not None) == ("id" in name.replace("lists", "id")) and (
        dump.ids is None or dump.ids.tolist() == IDS
    )
    has_labels = "label" in name or "tensor" in name or "lists" in name
    assert (dump.labels is not None) == has_labels and (not has_labels or dump.labels.tolist() == LABELS.tolist())


ARCHIVE = {"logits": Z, "y_true": LABELS.astype(float), "video_names": np.array(IDS)}


def write(path, content):
    if path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".pt":
        torch.save({k: torch.tensor(v) if v.dtype.kind != "U" else v.tolist() for k, v in content.items()}, path)
    elif path.suffix == ".json":
        path.write_text(json.dumps({key: value.tolist() for key, value in content.items()}))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(pickle.dumps(content)))
    else:
        dumped(path, content)
    return path


@pytest.mark.parametrize("name", ["x.npz", "x.pt", "x.json", "x.pkl", "x.pkl.gz"])
def test_arrays_by_name_in_every_container(name, tmp_path):
    dump = read_dump(write(tmp_path / name, ARCHIVE))
    np.testing.assert_array_equal(np.asarray(dump.scores, dtype=np.float32), Z)
    assert dump.ids.tolist() == IDS and dump.labels.tolist() == LABELS.tolist() and dump.labels.dtype == np.int64


def test_safetensors_with_halves_of_floats(tmp_path):
    from safetensors.torch import save_file as save_tensors

    save_file({"logits": Z, "labels": LABELS}, tmp_path / "x.safetensors")
    assert read_dump(tmp_path / "x.safetensors").labels.tolist() == LABELS.tolist()
    save_tensors({"logits": torch.tensor(Z).bfloat16()}, tmp_path / "x.safetensors")
    expected = torch.tensor(Z).bfloat16().float().numpy()
    np.testing.assert_array_equal(read_dump(tmp_path / "x.safetensors").scores, expected)


@pytest.mark.parametrize("as_archive", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_torchs_files_are_what_torch_loads(dtype, as_archive, tmp_path):
    whole = torch.tensor(Z, dtype=dtype)
    rows = [{"pred_score": whole[row], "gt_label": torch.tensor([int(LABELS[row])])} for row in range(N)]
    torch.save(rows, tmp_path / "x", _use_new_zipfile_serialization=as_archive)
    dump = read_dump(tmp_path / "x")
    np.testing.assert_array_equal(dump.scores, whole.double().numpy())
    assert dump.labels.tolist() == LABELS.tolist()


def test_a_torch_archive_that_needs_more_than_arrays_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt: expected a pickle of arrays.*nothing was executed"):
        read_dump(tmp_path / "x.pt")


def test_labels_by_name_in_an_archive(tmp_path):
    named = sorted({f"class {y % 7}{y}" for y in range(K)})
    np.savez(tmp_path / "x.npz", scores=Z, labels=np.array([named[y] for y in LABELS]))
    with pytest.raises(InputError, match="expected labels as class indices, got 'class"):
        read_dump(tmp_path / "x.npz")
    assert read_dump(tmp_path / "x.npz", classes=named).labels.tolist() == LABELS.tolist()
    assert accuracy(read(tmp_path / "x.npz", classes="sorted")) == ACCURACY
    order = RNG.permutation(K)
    content = {"scores": Z[:, order], "labels": [named[y] for y in LABELS], "classes": [named[k] for k in order]}
    stack = read(dumped(tmp_path / "x.pkl", content), classes=named)
    np.testing.assert_array_equal(stack.scores("m"), Z)
    assert stack.labels.tolist() == LABELS.tolist()


def test_labels_in_an_array_of_objects(tmp_path):
    np.savez(tmp_path / "x.npz", scores=Z, labels=np.array(LABELS.tolist(), dtype=object))
    assert read_dump(tmp_path / "x.npz").labels.tolist() == LABELS.tolist()
    np.savez(tmp_path / "x.npz", scores=Z, labels=np.array([*LABELS[1:], 0.5], dtype=object))
    with pytest.raises(InputError, match="expected integer labels"):
        read_dump(tmp_path / "x.npz")


def test_a_safety_check_that_labels_in_the_dump_allow_is_made(tmp_path):
    other = np.roll(np.arange(N), 1)
    np.savez(tmp_path / "x.npz", scores=Z, y_true=LABELS)
    listed = tmp_path / "val.csv"
    listed.write_text("id,label\n" + "".join(f"{IDS[row]},{LABELS[row]}\n" for row in other))
    with pytest.raises(AlignmentError, match="its own labels differ from the annotations'"):
        read(tmp_path / "x.npz", annotations=listed)
    np.savez(tmp_path / "x.npz", scores=Z, y_true=LABELS, video_names=np.array(IDS))
    assert accuracy(read(tmp_path / "x.npz", annotations=listed)) == ACCURACY  # by id, in any order
    listed.write_text("id,label\n" + "".join(f"{IDS[row]},{LABELS[row - 1]}\n" for row in range(N)))
    with pytest.raises(AlignmentError, match=rf"id '{IDS[0]}' \(row 0\): dump {LABELS[0]}, annotations {LABELS[-1]}"):
        read(tmp_path / "x.npz", annotations=listed)


def test_arrays_that_are_not_understood_are_named(tmp_path):
    np.savez(tmp_path / "x.npz", scores=Z, features=np.zeros((N, 3), np.int64))
    with pytest.warns(VidfuseWarning, match=r"x\.npz: not understood, and left out: 'features' \(an array \(40, 3\)"):
        read_dump(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", scores=Z, clips_of=np.array(IDS))
    with pytest.raises(InputError, match=r"'clips_of' holds one name or number for each row.*id_column=\"clips_of\""):
        read_dump(tmp_path / "x.npz")
    assert read_dump(tmp_path / "x.npz", id_column="clips_of").ids.tolist() == IDS
    with pytest.warns(VidfuseWarning, match="clips_of"):
        assert read_dump(tmp_path / "x.npz", id_column="none").ids is None


def test_several_scores_must_be_chosen_from(tmp_path):
    np.savez(tmp_path / "x.npz", logits=Z, probs=P)
    with pytest.raises(InputError, match="several arrays of scores, 'logits', 'probs'; say which with head="):
        read_dump(tmp_path / "x.npz")
    np.testing.assert_array_equal(read_dump(tmp_path / "x.npz", head="probs").scores, P)
    heads = dumped(tmp_path / "heads.pkl", {"rgb": Z, "flow": -Z})
    with pytest.raises(InputError, match="'rgb', 'flow'"):
        read_dump(heads)
    np.testing.assert_array_equal(read_dump(heads, head="flow").scores, -Z)
    rows = dumped(tmp_path / "rows.pkl", [{"verb_output": z, "noun_output": -z, "narration_id": i, "verb_class": 3}
                                          for z, i in zip(Z, IDS, strict=True)])  # fmt: skip
    dump = read_dump(rows, head="verb")
    assert dump.ids.tolist() == IDS and set(dump.labels.tolist()) == {3}
    np.testing.assert_array_equal(dump.scores, Z)
    by_id = dumped(tmp_path / "by_id.pkl", {i: {"rgb": z, "flow": -z} for i, z in zip(IDS, Z, strict=True)})
    assert read_dump(by_id, head="flow").ids.tolist() == IDS
    np.testing.assert_array_equal(read_dump(by_id, head="flow").scores, -Z)
    with pytest.raises(InputError, match="got 'adverb'"):
        read_dump(rows, head="adverb")


def test_a_kind_that_the_file_itself_says_is_held_against_the_given_one(tmp_path):
    np.savez(tmp_path / "x.npz", scores=P, kind="probabilities")
    assert read(tmp_path / "x.npz", kind="probabilities").kinds == ("probabilities",)
    with pytest.raises(InputError, match="says itself that its numbers are 'probabilities', not 'logits'"):
        read(tmp_path / "x.npz")


# Votes


def test_predicted_classes_become_votes_for_as_many_classes_as_the_others_have(tmp_path):
    votes = Z.argmax(axis=1)
    (tmp_path / "hard.csv").write_text("id,label\n" + "".join(f"{i},{v}\n" for i, v in zip(IDS, votes, strict=True)))
    files = {"soft": dumped(tmp_path / "x.pkl", dict(zip(IDS, Z, strict=True))), "hard": tmp_path / "hard.csv"}
    stack = vf.read_predictions(files, kind={"soft": "logits", "hard": "probabilities"})
    np.testing.assert_array_equal(stack.scores("hard"), np.eye(K)[votes])
    assert vf.MajorityVote().fit(stack).predict(stack).tolist() == votes.tolist()
    with pytest.raises(InputError, match=r'predicted classes and no scores; each becomes probability 1 .* kind="prob'):
        read(files["hard"])
    with pytest.raises(InputError, match="how many classes there are is not known: name them with classes="):
        read(files["hard"], kind="probabilities")
    named = [f"class{k}" for k in range(K)]
    rows = "".join(f"{i},{named[v]},{named[y]}\n" for i, v, y in zip(IDS, votes, LABELS, strict=True))
    (tmp_path / "named.csv").write_text("id,prediction,label\n" + rows)
    stack = read(tmp_path / "named.csv", kind="probabilities", classes=named)
    assert accuracy(stack) == ACCURACY and stack.classes == tuple(named)


def test_a_vote_that_is_no_class_is_refused(tmp_path):
    (tmp_path / "hard.csv").write_text("id,pred\na,0\nb,12\n")
    with pytest.raises(InputError, match=r"expected predicted classes in 0 … 1, got 12 at id 'b' \(row 1\)"):
        read(tmp_path / "hard.csv", kind="probabilities", classes=["x", "y"])


# What each process wrote


def test_chunks_are_averaged_by_kind_and_it_is_said(tmp_path):
    views = np.stack([Z, 2 * Z], axis=1).astype(float)
    lines = [f"{IDS[row]} {views[row, c].tolist()} {LABELS[row]} {c} 0\n" for row in range(N) for c in range(2)]
    (tmp_path / "0.txt").write_text("".join(lines))
    with pytest.warns(VidfuseWarning, match=r"averaged by mean-log, as nothing else was said with views="):
        stack = read(tmp_path / "0.txt")
    expected = log_softmax(log_softmax(views, axis=2).mean(axis=1), axis=1)
    np.testing.assert_allclose(stack.log_likelihoods()[:, 0], expected, atol=1e-5)
    softmaxed = [f"{IDS[r]} {softmax(views[r, c]).tolist()} {LABELS[r]} {c} 0\n" for r in range(N) for c in range(2)]
    (tmp_path / "0.txt").write_text("".join(softmaxed))
    with pytest.warns(VidfuseWarning, match="averaged by mean-probability"):
        stack = read(tmp_path, kind="probabilities")
    expected = softmax(views, axis=2).mean(axis=1)
    np.testing.assert_allclose(np.exp(stack.log_likelihoods()[:, 0]), expected, atol=2e-4)  # means have a floor


def test_files_of_processes_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "0.txt").write_text("a [1.0, 2.0] 1 0 0\na [1.0, 2.5] 1 0 0\n")
    with pytest.raises(InputError, match=r"0\.txt:2: chunk 0 0 of 'a' stands twice, and differs"):
        read_dump(tmp_path)
    (tmp_path / "0.txt").write_text("a [1.0, 2.0] 1 0 0\na [1.0, 2.5] 0 1 0\n")
    with pytest.raises(InputError, match=r"0\.txt:2: 'a' has the label 0, and 1 before"):
        read_dump(tmp_path)
    (tmp_path / "2.txt").write_text("a [1.0, 2.0] 1 0 0\n")
    with pytest.raises(InputError, match=r"2\.txt is there, but not '1\.txt'"):
        read_dump(tmp_path)


# Padding


def test_rows_that_a_sampler_padded_are_recognised(tmp_path):
    padded = [*range(N), 0, 1, 2]
    with pytest.warns(VidfuseWarning, match="3 of 43 rows repeat the id and the scores of another row"):
        stack = read(dumped(tmp_path / "x.pkl", ([IDS[row] for row in padded], Z[padded], LABELS[padded])))
    assert stack.ids.tolist() == IDS and accuracy(stack) == ACCURACY
    with pytest.warns(VidfuseWarning, match="the last 3 of 43 rows repeat the first ones"):
        stack = read(dumped(tmp_path / "x.pkl", list(Z[padded])), annotations=IDS)
    np.testing.assert_array_equal(stack.scores("m"), Z)
    with pytest.raises(AlignmentError, match="43 rows, but the annotations list 40 videos"):
        read(dumped(tmp_path / "x.pkl", list(Z[[*range(N), 3, 4, 5]])), annotations=IDS)
    with pytest.raises(InputError, match="expected each id once"):
        read(dumped(tmp_path / "x.pkl", ([*IDS, IDS[0]], np.concatenate([Z, Z[1:2]]))))


@pytest.mark.parametrize("blank", [-np.inf, np.nan])
def test_a_row_that_is_not_finite_is_no_copy_of_any_other(tmp_path, blank):
    z = Z.copy()
    z[:, 0] = blank
    with pytest.raises(AlignmentError, match="41 rows, but the annotations list 40 videos"):
        read(dumped(tmp_path / "x.pkl", list(np.concatenate([z, z[5:6]]))), annotations=IDS)


# Ids


@pytest.mark.parametrize(("rule", "expected"), [("path", "val/run/é"), ("stem", "é"), ("exact", "val/run/e\u0301.MP4")])
def test_one_rule_for_ids_in_dumps_and_annotations(rule, expected, tmp_path):
    decomposed, composed = "val/run/e\u0301.MP4", "val/run/é.MP4"
    path = dumped(tmp_path / "x.pkl", {decomposed: Z[0], "b": Z[1]})
    assert read_dump(path, ids=rule).ids[0] == expected
    (tmp_path / "val.csv").write_text(f"path,label\n{composed},1\nb,0\n", encoding="utf-8")
    if rule == "exact":
        with pytest.raises(AlignmentError, match="not in the annotations"):
            read(path, annotations=tmp_path / "val.csv", ids=rule)
    else:
        stack = read(path, annotations=tmp_path / "val.csv", ids=rule)
        assert stack.labels.tolist() == [1, 0] and unicodedata.is_normalized("NFC", stack.ids[0])


def test_ids_that_another_rule_matches_and_lost_zeros_are_named(tmp_path):
    path = dumped(tmp_path / "x.pkl", {"run/a.mp4": Z[0], "run/b.mp4": Z[1]})
    (tmp_path / "val.csv").write_text("id,label\na,1\nb,0\n")
    with pytest.raises(AlignmentError, match=r'2 of 2 videos are not in .* ids="stem" matches them'):
        read(path, annotations=tmp_path / "val.csv")
    assert read(path, annotations=tmp_path / "val.csv", ids="stem").labels.tolist() == [1, 0]
    path = dumped(tmp_path / "x.pkl", {12: Z[0], 13: Z[1]})
    (tmp_path / "val.csv").write_text("id,label\n00012,1\n00013,0\n")
    with pytest.raises(AlignmentError, match="they differ in leading zeros only"):
        read(path, annotations=tmp_path / "val.csv")
    with pytest.raises(InputError, match="ids: expected one of 'path', 'stem', 'exact', got 'name'"):
        read(path, ids="name")


# Labels


def test_labels_from_one_are_noticed(tmp_path):
    path = dumped(tmp_path / "x.pkl", {"scores": Z, "labels": LABELS + 1})
    with pytest.raises(InputError, match=r"run from 1 to 12 for 12 classes.*if they count from 1.*classes="):
        read(path)
    few = LABELS < K - 1  # the largest label is a class
    (tmp_path / "val.txt").write_text("".join(f"v{r} {LABELS[r] + 1}\n" for r in np.flatnonzero(few)))
    path = dumped(tmp_path / "y.pkl", list(Z[few]))
    with pytest.raises(InputError, match="if they count from 1"):
        read(path, annotations=tmp_path / "val.txt")
    stack = read(path, annotations=tmp_path / "val.txt", classes=[str(k + 1) for k in range(K)])
    assert stack.labels.tolist() == LABELS[few].tolist()
    path = dumped(tmp_path / "z.pkl", {"scores": Z[few], "labels": LABELS[few]})
    with pytest.raises(AlignmentError, match=r"are the annotations' -1 for every video: one of them counts"):
        read(path, annotations=tmp_path / "val.txt")


# What is no prediction says so


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pkl", b"", "the file is empty"),
        ("x.csv", b" \n\n", "the file is empty"),
        ("x.npz", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        ("x.csv", b"<!DOCTYPE html><html></html>", "a web page"),
        ("x.h5", b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file"),
        ("x.mp4", b"\0\0\0\x20ftypisom\0\0", "a video file"),
        ("x.pkl", pickle.dumps((IDS, LABELS.tolist())), "a list of videos, without scores; pass it with annotations="),
        ("x.pkl", pickle.dumps({"state_dict": {"a": Z}}), "got a dict of 1: 'state_dict'"),
        (
            "x.pkl",
            pickle.dumps({f"w{k}": np.zeros((k, 3, 3, 3), np.float32) for k in range(1, 12)}),
            "the weights of a net",
        ),
        ("x.pkl", pickle.dumps({"scores": Z[:, 0]}), r"got a dict of 1: 'scores' \(an array \(40,\) of float32\)"),
        (
            "x.pkl",
            pickle.dumps({"scores": Z.astype(int)}),
            r"got a dict of 1: 'scores' \(an array \(40, 12\) of int64\)",
        ),
        ("x.pkl", pickle.dumps([Z, -Z]), "a list of 2 arrays, the first of 40 rows: heads, or videos"),
        ("x.pkl", pickle.dumps({"a": [Z[0], 1], "b": {"score": Z[0]}}), "expected predictions, got a dict of 2"),
        ("x.pkl", pickle.dumps([[Z[0], float("nan")], [Z[1], 1]]), "expected predictions, got a list of 2"),
        ("x.json", b'{"a": ', "damaged json"),
        ("x.json", b"[" * 100_000, "damaged json"),
        ("x.gz", b"\x1f\x8b\x08\0\0", "damaged .gz"),
        ("x.gz", gzip.compress(bytes(1 << 22)), "unpacks to over 200 times its size|it begins with"),
        ("x.safetensors", (50).to_bytes(8, "little") + b"{" + bytes(60), "damaged .safetensors"),
        ("x.pkl", pickle.dumps([[1.0] * 500] * 5_000), "expected|repeats"),
    ],
)
def test_what_is_no_prediction_says_what_it_looks_like(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_dump(tmp_path / name)


def test_a_zip_of_other_files_says_so(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.xlsx", "w") as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
    with pytest.raises(InputError, match="a zip archive of other files"):
        read_dump(tmp_path / "x.xlsx")
    with pytest.raises(InputError, match=r"a folder of 'x.xlsx'"):
        read_dump(tmp_path)


# Annotations

LISTED = {
    "csv": ("val.csv", b"id,label\na,1\nb,0\n"),
    "tsv": ("val.tsv", b"video\ty_true\na\t1.0\nb\t0.0\n"),
    "semicolons": ("val.csv", b"id;label\na;1\nb;0\n"),
    "packed": ("val.csv.gz", gzip.compress(b"id,label\na,1\nb,0\n")),
    "a list": ("val.txt", b"# by hand\na.mp4 1\nb.mp4 0\n"),
    "folders of frames": ("val.txt", b"a 120 1\nb 98 0\n"),
    "folders and offsets": ("val.txt", b"a 1 120 1\nb 1 98 0\n"),
    "ids, labels": ("val.pkl", pickle.dumps((["a", "b"], [1, 0]))),
    "ids, array": ("val.pkl", pickle.dumps((["a", "b"], np.array([1, 0])))),
    "by id": ("val.pkl", pickle.dumps({"a": 1, "b": np.int64(0)})),
    "pairs": ("val.pkl", pickle.dumps([("a", 1), ("b", 0)])),
    "dicts": ("val.pkl", pickle.dumps([{"frame_dir": "a", "label": 1}, {"frame_dir": "b", "label": 0}])),
    "json by id": ("val.json", b'{"a": 1, "b": 0}'),
    "json pairs": ("val.json", b'[["a", 1], ["b", 0]]'),
}


@pytest.mark.parametrize("name", LISTED)
def test_annotations(name, tmp_path):
    file, content = LISTED[name]
    (tmp_path / file).write_bytes(content)
    found = read_annotations(tmp_path / file)
    assert found.ids.tolist() == ["a", "b"] and found.labels.tolist() == [1, 0]


def test_annotations_as_arrays_unlabelled_and_labels_alone(tmp_path):
    np.save(tmp_path / "ids.npy", np.array(["a.mp4", "b.mp4"]))
    found = read_annotations(tmp_path / "ids.npy")
    assert found.ids.tolist() == ["a", "b"] and found.labels is None
    np.save(tmp_path / "labels.npy", np.array([1, 0]))
    found = read_annotations(tmp_path / "labels.npy")
    assert found.ids is None and found.labels.tolist() == [1, 0] and len(found) == 2
    np.savez(tmp_path / "both.npz", video_names=np.array(["a", "b"]), gt=np.array([1, 0]))
    found = read_annotations(tmp_path / "both.npz")
    assert found.ids.tolist() == ["a", "b"] and found.labels.tolist() == [1, 0]
    np.save(tmp_path / "z.npy", Z)
    np.save(tmp_path / "y.npy", LABELS)
    stack = read(tmp_path / "z.npy", annotations=tmp_path / "y.npy")
    assert stack.ids is None and accuracy(stack) == ACCURACY


def test_clips_of_one_name_are_not_folders_of_frames(tmp_path):
    (tmp_path / "val.txt").write_text("run 1 0\nrun 2 0\njump 1 1\n")
    assert read_annotations(tmp_path / "val.txt").ids.tolist() == ["run 1", "run 2", "jump 1"]


def test_labels_by_name_are_sorted_or_in_a_given_order(tmp_path):
    (tmp_path / "val.csv").write_text("id,label\na,run\nb,jump\nc,run\n")
    with pytest.raises(InputError, match=r"got 'run'; pass classes= .* or classes=\"sorted\""):
        read_annotations(tmp_path / "val.csv")
    assert read_annotations(tmp_path / "val.csv", "sorted").labels.tolist() == [1, 0, 1]
    assert read_annotations(tmp_path / "val.csv", ["run", "jump"]).labels.tolist() == [0, 1, 0]
    np.save(tmp_path / "z.npy", Z[:3, :2])
    stack = read(tmp_path / "z.npy", annotations=tmp_path / "val.csv", classes="sorted")
    assert stack.classes == ("jump", "run") and stack.labels.tolist() == [1, 0, 1]
    np.save(tmp_path / "z.npy", Z[:3])
    with pytest.raises(InputError, match=r"the annotations name 2 classes, .* has 12; name all of them with classes="):
        read(tmp_path / "z.npy", annotations=tmp_path / "val.csv", classes="sorted")


@pytest.mark.parametrize(
    ("text", "ids", "labels"),
    [
        ("video one.mp4 1\nvideo two.mp4 0\n", ["video one", "video two"], [1, 0]),
        ("a, b.mp4,1\nc, d.mp4,0\n", ["a, b", "c, d"], [1, 0]),
        ("label\n1\n0\n", None, [1, 0]),
        ("id\nlabel\n", ["label"], None),
        ("label\nid\n", ["label", "id"], None),
        ('"a b.mp4",1\n"c,d.mp4",0\n', ["a b", "c,d"], [1, 0]),
        ("label,youtube_id,time_start,split\n1,abc,0,val\n0,def,3,val\n", ["abc", "def"], [1, 0]),
    ],
)
def test_lists_whose_first_line_may_be_a_header(text, ids, labels, tmp_path):
    (tmp_path / "val.txt").write_text(text)
    found = read_annotations(tmp_path / "val.txt")
    assert found.ids is None if ids is None else found.ids.tolist() == ids, found
    assert found.labels is None if labels is None else found.labels.tolist() == labels, found


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ({"video": "b"}, "expected a label for each video, got none for 1: 'b'"),
        ({"video": "b", "label": None}, "expected a label for each video, got none for 1: 'b'"),
        ({"label": 1}, "expected 'video' in each of 3 videos, got none in row 1"),
    ],
)
def test_a_dict_of_a_list_of_videos_that_lacks_what_others_have_is_named(lacking, message, tmp_path):
    rows = [{"video": "a", "label": 0}, lacking, {"video": "c", "label": 2}]
    (tmp_path / "val.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=message):
        read_annotations(tmp_path / "val.json")


def test_a_video_without_a_label_is_named(tmp_path):
    (tmp_path / "val.csv").write_text("id,label\na,1\nb,\n")
    with pytest.raises(InputError, match="expected a label for each video, got none for 1: 'b'"):
        read_annotations(tmp_path / "val.csv")


def test_labels_that_nobody_recognised_are_named(tmp_path):
    (tmp_path / "val.csv").write_text("id,activity,split\na,1,val\nb,0,val\n")
    with pytest.warns(VidfuseWarning, match=r"val\.csv: no labels: columns 'activity' are none of label"):
        assert read_annotations(tmp_path / "val.csv").labels is None


def test_a_key_that_stands_twice_in_json_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [0.1, 0.9], "b": [0.3, 0.7], "a": [0.5, 0.5]}')
    with pytest.raises(InputError, match="damaged json: 'a' stands twice in one object"):
        read_dump(tmp_path / "x.json")


def test_a_name_of_the_id_that_only_some_videos_have_stands_back(tmp_path):
    rows = [{"video": "x/a.mp4", "id": "7", "label": 1}, {"video": "x/b.mp4", "label": 0}]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    assert read_annotations(tmp_path / "x.json").ids.tolist() == ["x/a", "x/b"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson", "x.json"])
def test_json_lines_are_read_whatever_the_file_is_called(name, tmp_path):
    lines = [
        json.dumps({"id": i, "logits": z.tolist(), "label": int(y)}) for i, z, y in zip(IDS, Z, LABELS, strict=True)
    ]
    (tmp_path / name).write_text("\n".join(lines) + "\n\n")
    dump = read_dump(tmp_path / name)
    assert dump.ids.tolist() == IDS and dump.labels.tolist() == LABELS.tolist()
    np.testing.assert_array_equal(dump.scores, Z.astype(np.float64))
    (tmp_path / name).write_text("\n".join(lines)[:-3])
    with pytest.raises(InputError, match=f"damaged json: line {N}: "):
        read_dump(tmp_path / name)


def test_one_value_over_several_lines_is_read_whatever_the_file_is_called(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps(dict(zip(IDS, Z.tolist(), strict=True)), indent=1))
    assert read_dump(tmp_path / "x.jsonl").ids.tolist() == IDS


def test_labels_and_ids_that_only_some_videos_have_are_left_out_and_said(tmp_path):
    rows = [
        {"pred_score": z} | ({"gt_label": int(y)} if n else {}) for n, (z, y) in enumerate(zip(Z, LABELS, strict=True))
    ]
    rows[3]["video_id"] = rows[0]["video_id"] = "v"
    with pytest.warns(VidfuseWarning, match="only some videos have 'video_id', 'gt_label': left out"):
        dump = read_dump(dumped(tmp_path / "x.pkl", rows))
    assert dump.labels is None and dump.ids is None


@pytest.mark.parametrize("views", ["equal", "other"])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_a_video_without_a_prediction_is_missing_whether_or_not_views_are_reduced(kind, views, tmp_path):
    values = (Z if kind == "logits" else P).astype(np.float64)
    content = {
        i: np.stack([v] * (2 + (views == "other" and n % 2))) for n, (i, v) in enumerate(zip(IDS, values, strict=True))
    }
    content[IDS[4]] = np.full((2, K), np.nan if kind == "logits" else 0.0)
    files = {
        "a": dumped(tmp_path / "a.pkl", content),
        "b": dumped(tmp_path / "b.pkl", dict(zip(IDS, values, strict=True))),
    }
    with pytest.raises(InputError, match=f"for 1 of {N} videos: id '{IDS[4]}'.*leaves these videos out"):
        vf.read_predictions(files, kind=kind, views="mean-log")
    kept = vf.read_predictions(files, kind=kind, views="mean-log", missing="keep")
    assert np.argwhere(~kept.present).tolist() == [[4, 0]]
    np.testing.assert_allclose(kept.log_likelihoods()[5], kept.log_likelihoods()[5, ::-1], atol=1e-2)
    with pytest.warns(VidfuseWarning, match="left out"):
        assert len(vf.read_predictions(files, kind=kind, views="mean-log", missing="leave-out")) == N - 1
    content[IDS[4]] = np.stack([values[4], np.full(K, np.nan)])
    dumped(tmp_path / "a.pkl", content)
    with pytest.raises(InputError, match=f"NaN at member 'a', id '{IDS[4]}' .*, view 1, class 0"):
        vf.read_predictions(files, kind=kind, views="mean-log", missing="keep")


SHUFFLED = np.random.default_rng(1).permutation(N).tolist()


@pytest.mark.parametrize(
    "rows",
    [
        {str(n): {"video_id": IDS[row], "scores": Z[row]} for n, row in enumerate(SHUFFLED)},
        {n: (IDS[row], Z[row], int(LABELS[row])) for n, row in enumerate(SHUFFLED)},
        {n: {"video_id": IDS[row], "result": answers(row)} for n, row in enumerate(SHUFFLED)},
        [{"video_id": IDS[row].encode(), "scores": Z[row]} for row in SHUFFLED],
    ],
)
def test_videos_own_ids_win_over_keys_that_count_the_rows(rows, tmp_path):
    dump = read_dump(dumped(tmp_path / "x.pkl", rows))
    assert dump.ids.tolist() == [IDS[row] for row in SHUFFLED]
    named = {"video_id": IDS[0], "scores": Z[0]}
    by_key = {"a": named, "b": named | {"video_id": "c"}}
    assert read_dump(dumped(tmp_path / "x.pkl", by_key)).ids.tolist() == ["a", "b"]


@pytest.mark.parametrize("keyed", [True, False])
def test_a_number_before_scores_that_have_an_id_moves_no_row_and_is_said(keyed, tmp_path):
    rows = {IDS[row]: (row, Z[row]) for row in SHUFFLED} if keyed else [(IDS[row], row, Z[row]) for row in SHUFFLED]
    with pytest.warns(VidfuseWarning, match="a number before the scores, beside an id, is left out"):
        dump = read_dump(dumped(tmp_path / "x.pkl", rows))
    assert dump.ids.tolist() == [IDS[row] for row in SHUFFLED]
    np.testing.assert_array_equal(dump.scores, Z[SHUFFLED])


@pytest.mark.parametrize("key", ["mp4", "idx"])
@pytest.mark.parametrize("as_dicts", [True, False])
def test_ids_and_positions_under_a_name_that_nobody_knows_are_asked_for(key, as_dicts, tmp_path):
    values = [IDS[row] if key == "mp4" else row for row in SHUFFLED]
    rows = [{key: value, "scores": Z[row]} for value, row in zip(values, SHUFFLED, strict=True)]
    content = rows if as_dicts else {key: np.array(values), "scores": Z[SHUFFLED]}
    with pytest.raises(InputError, match=f"'{key}' holds one name or number for each row.*id_column=\"{key}\""):
        read_dump(dumped(tmp_path / "x.pkl", content))
    assert read_dump(tmp_path / "x.pkl", id_column=key).ids.tolist() == [str(value) for value in values]
    with pytest.warns(VidfuseWarning, match="not understood, and left out"):
        assert read_dump(dumped(tmp_path / "x.pkl", {key: np.arange(N), "scores": Z})).ids is None


def test_what_mmaction2_notes_of_each_video_is_left_out_without_a_word(tmp_path):
    path, _ = mmaction2(tmp_path)
    assert read_dump(path).notes == ()


def test_what_dicts_of_videos_hold_besides_is_read_or_named(tmp_path):
    rows = [{"id": i, "scores": z, "gt_label": NAMES[y], "img": [0]} for i, z, y in zip(IDS, Z, LABELS, strict=True)]
    with pytest.warns(VidfuseWarning, match="not understood, and left out: 'img'"):
        dump = read_dump(dumped(tmp_path / "x.pkl", rows), classes=NAMES)
    assert dump.labels.tolist() == LABELS.tolist()
    for odd in (0.5, [IDS[0]]):
        with pytest.raises(InputError, match="expected a list of names in 'id'"):
            read_dump(dumped(tmp_path / "x.pkl", [row | {"id": odd, "img": None} for row in rows]), classes=NAMES)


def test_ids_that_scores_stand_under_are_not_replaced_by_a_list_beside_them(tmp_path):
    content = {"ids": IDS, "scores": {IDS[row]: Z[row] for row in SHUFFLED}}
    assert read_dump(dumped(tmp_path / "x.pkl", content)).ids.tolist() == [IDS[row] for row in SHUFFLED]


def test_the_highest_scores_alone_are_no_scores(tmp_path):
    write_predictions(P, tmp_path / "top.npz", ids=IDS, top_k=2)
    with pytest.raises(InputError, match="'top' says of which classes the 2 highest scores are"):
        read_dump(tmp_path / "top.npz")


FIELDS = ["{i};{n} it", "{i}\t{n} it", "{i}|{n} it", "{i},{n} it", "{i},30,{y}", "{i},1,30,{y}", "{i}.avi|{y}"]


@pytest.mark.parametrize("line", FIELDS)
def test_lists_of_two_fields_or_of_frames_by_any_separator(line, tmp_path):
    lines = [line.format(i=i, n=NAMES[y], y=y) for i, y in zip(IDS, LABELS, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    listed = read_annotations(tmp_path / "list.csv", [f"{name} it" for name in NAMES])
    assert listed.ids.tolist() == IDS and listed.labels.tolist() == LABELS.tolist()


UNNAMED = ["{row},{i},{y}", "{row},{i}.mp4,{y}", "{i}.mp4,0.5,10.5,{y}", "{i},run,{y}", "{i}.mp4,{y},{row}"]


@pytest.mark.parametrize("line", [*UNNAMED, "{i}.mp4,0,{y},1"])
def test_lists_of_fields_that_nobody_named_are_refused(line, tmp_path):
    lines = [line.format(i=i, y=y, row=row) for row, (i, y) in enumerate(zip(IDS, LABELS, strict=True))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"expected a path and a label on each line, got [34] fields.*columns' names"):
        read_annotations(tmp_path / "list.csv")


@pytest.mark.parametrize("end", [".mp4,3", ".mp4 3", ".mp4", ",3"])
def test_paths_may_have_commas(end, tmp_path):
    (tmp_path / "list.csv").write_text("".join(f"my, own, videos/{i}{end}\n" for i in IDS))
    assert read_annotations(tmp_path / "list.csv").ids.tolist() == [f"my, own, videos/{i}" for i in IDS]


def test_epics_list_names_its_videos_by_narration_and_a_label_of_each_head(tmp_path):
    rows = [f"{i},P01,P01_0{row % 3},open door,{y},{y + 1}" for row, (i, y) in enumerate(zip(IDS, LABELS, strict=True))]
    head = "narration_id,participant_id,video_id,narration,verb_class,noun_class"
    (tmp_path / "epic.csv").write_text("\n".join([head, *rows]))
    listed = read_annotations(tmp_path / "epic.csv", head="noun")
    assert listed.ids.tolist() == IDS and listed.labels.tolist() == (LABELS + 1).tolist()
    content = {"verb_output": Z, "noun_output": Z, "narration_id": IDS[::-1]}
    stack = read(dumped(tmp_path / "x.pkl", content), head="verb", annotations=tmp_path / "epic.csv")
    assert stack.labels.tolist() == LABELS[::-1].tolist()


def test_labels_that_a_list_of_dicts_calls_otherwise_are_named(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([{"id": i, "template": "Opening [it]"} for i in IDS]))
    with pytest.warns(VidfuseWarning, match="no labels: columns 'template' are none of label"):
        assert read_annotations(tmp_path / "list.json").labels is None


def in_pandas_json(folder, orient, wide):
    more = {f"p{k}": P[:, k] for k in range(K)} if wide else {"probs": list(P)}
    pd.DataFrame({"id": IDS, "label": LABELS} | more).to_json(folder / "x.json", orient=orient, double_precision=15)
    return folder / "x.json"


@pytest.mark.parametrize(
    ("orient", "wide"), [("records", True), ("records", False), ("index", False), ("columns", False)]
)
def test_pandas_json_keeps_its_ids(orient, wide, tmp_path):
    dump = read_dump(in_pandas_json(tmp_path, orient, wide))
    assert dump.ids.tolist() == IDS and dump.labels.tolist() == LABELS.tolist()
    np.testing.assert_allclose(dump.scores, P, rtol=1e-12)


def test_pandas_json_by_columns_of_numbers_is_refused_as_it_could_be_either_way(tmp_path):
    with pytest.raises(InputError, match="expected predictions, got a dict of 14"):
        read_dump(in_pandas_json(tmp_path, "columns", True))


def test_a_table_as_dicts_takes_the_options_of_tables(tmp_path):
    rows = [
        {"file": i, "fold": 1.5, **dict(zip("abcdefghijkl", z, strict=True))}
        for i, z in zip(IDS, Z.tolist(), strict=True)
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="columns 'fold' among columns called by their classes"):
        read_dump(tmp_path / "x.jsonl")
    np.testing.assert_array_equal(read_dump(tmp_path / "x.jsonl", columns=list("abcdefghijkl")).scores, Z)


def test_a_parquet_column_of_lists_is_scores(tmp_path):
    pd.DataFrame({"video": IDS, "logits": list(Z), "label": LABELS}).to_parquet(tmp_path / "x.parquet")
    dump = read_dump(tmp_path / "x.parquet")
    np.testing.assert_array_equal(dump.scores, Z)
    assert dump.ids.tolist() == IDS and dump.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("name", ["x.csv", "x.txt", "x.json"])
def test_texts_in_utf_16_and_json_called_text_are_read(name, tmp_path):
    table = (
        "id,"
        + ",".join(f"p{k}" for k in range(K))
        + "".join(f"\n{i}," + ",".join(map(str, z)) for i, z in zip(IDS, Z.tolist(), strict=True))
    )
    text = table if name == "x.csv" else json.dumps({i: z.tolist() for i, z in zip(IDS, Z, strict=True)})
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        dump = read_dump(tmp_path / name)
        np.testing.assert_array_equal(dump.scores, Z)
        assert dump.ids.tolist() == IDS


def test_whole_numbers_of_some_videos_are_scores(tmp_path):
    content = {
        i: [int(v) if row == 3 else v for v in z.tolist()] for row, (i, z) in enumerate(zip(IDS, Z, strict=True))
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    np.testing.assert_array_equal(read_dump(tmp_path / "x.json").scores[3], np.trunc(Z[3]))
    np.save(tmp_path / "x.npy", np.trunc(Z).astype(int))
    with pytest.raises(InputError, match="expected floating-point scores, got dtype int64"):
        read_dump(tmp_path / "x.npy")


def test_batches_are_no_videos(tmp_path):
    with pytest.raises(InputError, match="a list of 6 arrays of 7 rows, and of 5 in the last: batches"):
        read_dump(dumped(tmp_path / "x.pkl", [Z[start : start + 7] for start in range(0, N, 7)]))
    batches = [{"scores": Z[start : start + 7], "label": LABELS[start : start + 7]} for start in range(0, N, 7)]
    with pytest.raises(InputError, match=r"got 7; .*if these are batches, save their videos one by one"):
        read_dump(dumped(tmp_path / "x.pkl", batches))


def test_one_line_of_scores_by_id_says_what_to_call_the_file(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({i: z.tolist() for i, z in zip(IDS, Z, strict=True)}))
    with pytest.raises(InputError, match=r"call the file \.json if these are videos"):
        read_dump(tmp_path / "x.jsonl")


@pytest.mark.parametrize("by_id", [True, False])
def test_the_few_videos_that_have_no_scores_are_named(by_id, tmp_path):
    videos = [None if row == 3 else z.tolist() for row, z in enumerate(Z)]
    content = dict(zip(IDS, videos, strict=True)) if by_id else videos
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"something else for 1 of 40: {repr(IDS[3]) if by_id else 3} \(NoneType"):
        read_dump(tmp_path / "x.json")


def test_a_table_that_pandas_pickled_or_wrote_lists_into_says_how_to_save_it(tmp_path):
    table = pd.DataFrame({"id": IDS, "scores": Z.tolist()})
    table.to_pickle(tmp_path / "x.pkl")
    with pytest.raises(InputError, match="save the table of pandas as csv or parquet"):
        read_dump(tmp_path / "x.pkl")
    table.to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(InputError, match="column 'scores' holds a list in each cell: write a column for each class"):
        read_dump(tmp_path / "x.csv")


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("layout", ["arrays", "dicts", "table", "keys"])
def test_ids_that_count_the_videos_give_way_to_their_names(layout, start, tmp_path):
    """Two files in other orders would else be matched by where each video stands."""
    numbers, names = np.arange(start, N + start), [IDS[row] for row in SHUFFLED]
    dicts = [{"id": int(n), "video": i, "scores": Z[row]} for n, i, row in zip(numbers, names, SHUFFLED, strict=True)]
    content = {
        "arrays": {"id": numbers, "video": names, "scores": Z[SHUFFLED]},
        "dicts": dicts,
        "keys": {row["id"]: {"video": row["video"], "scores": row["scores"]} for row in dicts},
        "table": None,
    }[layout]
    path = tmp_path / "x.csv"
    if content is None:
        table = pd.DataFrame(Z[SHUFFLED].astype(float), columns=[f"p{k}" for k in range(K)])
        table.assign(id=numbers, video=names).to_csv(path, index=False)
    else:
        path = dumped(tmp_path / "x.pkl", content)
    with (
        pytest.warns(VidfuseWarning, match="left out: 'id'|'id' are no scores, and left out")
        if layout != "keys"
        else contextlib.nullcontext()
    ):
        dump = read_dump(path)
    assert dump.ids.tolist() == names
    np.testing.assert_allclose(dump.scores, Z[SHUFFLED])


def test_row_numbers_without_a_name_are_no_ids(tmp_path):
    """As R writes them, from 1."""
    table = pd.DataFrame(Z.astype(float), columns=[f"p{k}" for k in range(K)], index=range(1, N + 1))
    table.to_csv(tmp_path / "x.csv")
    assert read_dump(tmp_path / "x.csv").ids is None


@pytest.mark.parametrize("numbered", [True, False])
def test_scores_by_class_in_each_video(numbered, tmp_path):
    names = [f"c{k}" for k in range(K)] if numbered else NAMES
    rows = [
        {
            "id": i,
            "label": int(y) if numbered else names[y],
            "scores": dict(sorted(zip(names, z.tolist(), strict=True))),
        }
        for i, y, z in zip(IDS, LABELS, Z, strict=True)
    ]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    dump = read_dump(tmp_path / "x.json", classes=None if numbered else NAMES)
    np.testing.assert_array_equal(dump.scores, Z)
    assert dump.ids.tolist() == IDS and dump.labels.tolist() == LABELS.tolist()
    assert dump.classes == (None if numbered else tuple(NAMES))
    del rows[3]["scores"][names[0]]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match="row 3: expected a score of each class"):
        read_dump(tmp_path / "x.json")


@pytest.mark.parametrize("layout", ["rows", "after", "keys", "counted"])
def test_labels_by_name_in_rows(layout, tmp_path):
    words = [NAMES[y] for y in LABELS]
    content = {
        "rows": list(zip(IDS, Z, words, strict=True)),
        "after": list(zip(Z, IDS, words, strict=True)),
        "keys": {i: (z, word) for i, z, word in zip(IDS, Z, words, strict=True)},
        "counted": {n: (i, z, word) for n, (i, z, word) in enumerate(zip(IDS, Z, words, strict=True))},
    }[layout]
    dump = read_dump(dumped(tmp_path / "x.pkl", content), classes=NAMES)
    assert dump.ids.tolist() == IDS and dump.labels.tolist() == LABELS.tolist()
    with pytest.warns(VidfuseWarning, match="beside an id, are left out; if they are labels, pass classes="):
        assert read_dump(tmp_path / "x.pkl").labels is None


def test_texts_after_scores_that_name_no_classes_are_left_out(tmp_path):
    """Paths, say, which are all different, or a split."""
    rows = list(zip(IDS, Z, [f"videos/{i}.mp4" for i in IDS], strict=True))
    for content in (rows, {i: (z, path) for i, z, path in rows}, [(i, z, "val") for i, z in zip(IDS, Z, strict=True)]):
        with pytest.warns(VidfuseWarning, match=r"texts such as '.*', beside an id, are left out; if they are labels"):
            dump = read_dump(dumped(tmp_path / "x.pkl", content), classes=NAMES)
        assert dump.ids.tolist() == IDS and dump.labels is None
    counted = {n: (z, NAMES[y]) for n, (z, y) in enumerate(zip(Z, LABELS, strict=True))}
    dump = read_dump(dumped(tmp_path / "x.pkl", counted), classes=NAMES)
    assert dump.ids.tolist() == [str(n) for n in range(N)] and dump.labels.tolist() == LABELS.tolist()


def test_keys_that_count_clips_give_way_to_no_name_of_their_video(tmp_path):
    rows = {n: {"video": f"v{n // 4}", "scores": z} for n, z in enumerate(Z)}
    assert read_dump(dumped(tmp_path / "x.pkl", rows)).ids.tolist() == [str(n) for n in range(N)]


def test_columns_of_numbers_by_name_are_no_videos(tmp_path):
    columns = {"label": LABELS.tolist()} | {f"p{k}": Z[:, k].tolist() for k in range(K)}
    (tmp_path / "x.json").write_text(json.dumps(columns))
    with pytest.raises(InputError, match=r"something else for 1 of 13: 'label' \(a list of 40, the first a int"):
        read_dump(tmp_path / "x.json")
    (tmp_path / "x.json").write_text(json.dumps({"a": [0.5, 0.5], "b": [0.5, 0.25, 0.25]}))
    with pytest.raises(InputError, match="different numbers of classes"):
        read_dump(tmp_path / "x.json")


def test_the_classes_of_each_video_are_those_of_all(tmp_path):
    """As a server answers; what is called so and is no list of K names was never the classes'."""
    rows = [{"id": i, "scores": z, "classes": NAMES} for i, z in zip(IDS, Z, strict=True)]
    assert read_dump(dumped(tmp_path / "x.pkl", rows)).classes == tuple(NAMES)
    rows[3] = rows[3] | {"classes": NAMES[::-1]}
    with pytest.raises(InputError, match=r"one order of classes, got .* in row 0 and .* in row 3; save .class: score"):
        read_dump(dumped(tmp_path / "x.pkl", rows))
    for other in (K, "sport", ["sport", "water"], [[0.5]]):
        content = [{"id": i, "scores": z, "categories": other} for i, z in zip(IDS, Z, strict=True)]
        with pytest.warns(VidfuseWarning, match="'categories' is no list of the classes' names, and left out"):
            dump = read_dump(dumped(tmp_path / "x.pkl", content))
        assert dump.classes is None and dump.ids.tolist() == IDS


def test_one_number_or_name_for_all_videos_is_no_id(tmp_path):
    with pytest.raises(InputError, match="expected a list of names in 'id', got int '3'"):
        read_dump(dumped(tmp_path / "x.pkl", {"scores": Z, "id": 3}))
    np.savez(tmp_path / "x.npz", scores=Z, id=0, names=np.array(NAMES))
    with pytest.raises(InputError, match=r"expected a list of names in 'id', got an array \(\)"):
        read_dump(tmp_path / "x.npz")
    content = {"scores": Z, "id": np.arange(N), "name": "swin"}
    with pytest.warns(VidfuseWarning, match="left out: 'name'"):
        assert read_dump(dumped(tmp_path / "x.pkl", content)).ids.tolist() == [str(n) for n in range(N)]


def test_videos_of_several_views_have_counts_beside_them(tmp_path):
    content = {"scores": [Z[: 1 + row % 3] for row in range(N)], "ids": IDS, "views": np.arange(N) % 3 + 1}
    with pytest.warns(VidfuseWarning, match="left out: 'views'"):
        assert read_dump(dumped(tmp_path / "x.pkl", content)).ids.tolist() == IDS


def test_a_parquet_table_may_have_lists_beside_its_scores(tmp_path):
    table = pd.DataFrame(Z, columns=[f"p{k}" for k in range(K)]).assign(id=IDS, features=list(Z[:, :3]))
    table.to_parquet(tmp_path / "x.parquet")
    with pytest.warns(VidfuseWarning, match="columns 'features' are no scores, and left out"):
        dump = read_dump(tmp_path / "x.parquet")
    np.testing.assert_array_equal(dump.scores, Z)
    assert dump.ids.tolist() == IDS


def test_videos_as_data_sets_of_hugging_face_keep_them_are_known_by_their_paths(tmp_path):
    files = [{"path": f"{i}.mp4", "bytes": None} for i in IDS]
    rows = [{"video": file, "logits": z, "label": int(y)} for file, z, y in zip(files, Z, LABELS, strict=True)]
    pd.DataFrame({"video": files, "logits": list(Z), "label": LABELS}).to_parquet(tmp_path / "x.parquet")
    for path in (dumped(tmp_path / "x.pkl", rows), tmp_path / "x.parquet"):
        dump = read_dump(path)
        assert dump.ids.tolist() == IDS and dump.labels.tolist() == LABELS.tolist()
