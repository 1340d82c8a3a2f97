"""Other tools' dumps: what they hold comes back, aligned by id, or is refused."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.special import log_softmax, softmax

import vidfuse as vf
from vidfuse.errors import AlignmentError, InputError, MissingExtraError, VidfuseWarning
from vidfuse.formats.annotations import read_annotations
from vidfuse.formats.dump import read_dump
from vidfuse.formats.export import write_predictions
from vidfuse.stack.open import load_stack

torch = pytest.importorskip("torch")

N, K = 60, 5
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, K, N)
Z = (2 * np.eye(K)[LABELS] + RNG.normal(size=(N, K))).astype(np.float32)
P = softmax(Z, axis=1)
IDS = [f"class{label}/video{row}" for row, label in enumerate(LABELS)]


def mmaction2_dump(path, scores, labels=LABELS):
    samples = [
        {"pred_score": torch.tensor(s), "gt_label": torch.tensor([int(y)]), "pred_label": torch.tensor([0])}
        for s, y in zip(scores, labels, strict=True)
    ]
    path.write_bytes(pickle.dumps(samples))
    return path


def mmaction2_list(path, order=range(N)):
    path.write_text("".join(f"{IDS[row]}.mp4 {LABELS[row]}\n" for row in order))
    return path


def tsn_cells(scores):
    cells = np.empty((len(scores), 2), dtype=object)
    for row, values in enumerate(scores):
        cells[row, 0], cells[row, 1] = np.tile(values, (3, 1, 1)), int(LABELS[row])
    return cells


def written(folder):
    """The same predictions as seven tools dump them."""
    views = np.stack([Z, Z], axis=1)
    (folder / "slowfast.pkl").write_bytes(pickle.dumps([torch.tensor(P * 30), torch.tensor(LABELS)]))
    (folder / "pyskl.pkl").write_bytes(pickle.dumps(list(Z)))
    np.savez(folder / "numpy.npz", scores=Z, labels=LABELS)
    np.save(folder / "numpy.npy", Z)
    np.savez(folder / "tsn.npz", scores=tsn_cells(Z), labels=LABELS)
    kinds = dict.fromkeys(["pyskl", "npz", "npy", "tsn", "clips"], "logits")
    return {
        "mmaction2": mmaction2_dump(folder / "mm.pkl", P),
        "clips": mmaction2_dump(folder / "clips.pkl", views),
        "slowfast": folder / "slowfast.pkl",
        "pyskl": folder / "pyskl.pkl",
        "npz": folder / "numpy.npz",
        "npy": folder / "numpy.npy",
        "tsn": folder / "tsn.npz",
    }, {**kinds, "mmaction2": "probabilities", "slowfast": "sum"}


def test_seven_tools_dumps_of_the_same_predictions_agree(tmp_path):
    files, kinds = written(tmp_path)
    stack = vf.read_predictions(files, kind=kinds, annotations=mmaction2_list(tmp_path / "val.txt"), views="mean-log")
    assert stack.members == tuple(files) and stack.ids.tolist() == IDS
    assert stack.labels.tolist() == LABELS.tolist()
    expected = log_softmax(Z.astype(float), axis=1)
    for member in range(len(files)):
        np.testing.assert_allclose(stack.log_likelihoods()[:, member], expected, atol=2e-5)


def test_views_are_kept_where_nothing_is_said(tmp_path):
    path = mmaction2_dump(tmp_path / "clips.pkl", np.stack([Z, Z + 1], axis=1))
    assert vf.read_predictions({"x": path}, kind="logits").shape == (N, 1, 2, K)


def test_videos_with_different_numbers_of_views_need_a_rule(tmp_path):
    path = tmp_path / "ragged.pkl"
    path.write_bytes(pickle.dumps([np.tile(row, (1 + number % 3, 1)) for number, row in enumerate(Z)]))
    with pytest.raises(InputError, match=r'different numbers of views.*views="mean-log"'):
        vf.read_predictions({"x": path}, kind="logits")
    stack = vf.read_predictions({"x": path}, kind="logits", views="mean-probability")
    np.testing.assert_allclose(stack.log_likelihoods()[:, 0], log_softmax(Z, axis=1), atol=1e-5)


def test_what_the_numbers_are_is_never_guessed(tmp_path):
    files, kinds = written(tmp_path)
    with pytest.raises(TypeError, match="kind"):
        vf.read_predictions(files)
    with pytest.raises(InputError, match="member 'tsn': kind: expected one for every member"):
        vf.read_predictions(files, kind={name: kind for name, kind in kinds.items() if name != "tsn"})
    with pytest.raises(InputError, match=r"member 'mmaction2': expected logits, but every row .* as probabilities do"):
        vf.read_predictions({"mmaction2": files["mmaction2"]}, kind="logits")
    with pytest.raises(InputError, match=r'kind="sum"'):
        vf.read_predictions({"slowfast": files["slowfast"]}, kind="probabilities")


@pytest.mark.parametrize(
    ("option", "value"),
    [("kind", "logits"), ("views", "max"), ("head", "rgb"), ("annotations", IDS)],
)
def test_an_option_by_member_names_no_other_member(option, value, tmp_path):
    np.save(tmp_path / "a.npy", Z)
    options = {"kind": "logits", option: {"a": value, "b": value}}
    with pytest.raises(InputError, match=rf"{option}: expected one for each of 'a'; unknown: 'b', missing: none"):
        vf.read_predictions({"a": tmp_path / "a.npy"}, **options)


def report_accuracy(paths, coefficients, apply_softmax=False):
    """The direct computation on the pickles: raw scores, weighted and summed; labels of the first file."""
    dumps = [pickle.loads(path.read_bytes()) for path in paths]
    scores = [np.stack([sample["pred_score"].numpy() for sample in dump]) for dump in dumps]
    scores = [softmax(array, axis=1) for array in scores] if apply_softmax else scores
    fused = sum(c * array for c, array in zip(coefficients, scores, strict=True))
    truth = np.array([sample["gt_label"].item() for sample in dumps[0]])
    hits = fused.argmax(axis=1) == truth
    classes = np.unique(np.concatenate([truth, fused.argmax(axis=1)]))
    return hits.mean(), np.mean([hits[truth == c].mean() if (truth == c).any() else 0.0 for c in classes])


@pytest.mark.parametrize("coefficients", [(1.0, 1.0), (0.7, 2.0)])
def test_a_weighted_sum_of_raw_scores_from_imported_caches_is_report_accuracys(tmp_path, coefficients):
    rng = np.random.default_rng(1)
    a = mmaction2_dump(tmp_path / "a.pkl", P)
    b = mmaction2_dump(tmp_path / "b.pkl", (2 * rng.normal(size=(N, K)) + Z).astype(np.float32))
    kinds = {"a": "probabilities", "b": "logits"}
    vf.read_predictions({"a": a, "b": b}, kind=kinds, annotations=mmaction2_list(tmp_path / "val.txt")).save(
        tmp_path / "caches"
    )
    stack = load_stack(tmp_path / "caches")
    fused = sum(c * stack.scores(name) for c, name in zip(coefficients, ("a", "b"), strict=True))
    top1, mean_class = report_accuracy([a, b], coefficients)
    assert vf.metrics.top_k_accuracy(stack.labels, fused) == top1
    assert vf.metrics.mean_class_accuracy(stack.labels, fused) == pytest.approx(mean_class, abs=1e-12)
    assert 0.25 < top1 < 1


@pytest.mark.parametrize("coefficients", [(1.0, 1.0), (0.7, 2.0)])
def test_a_linear_pool_with_given_weights_is_report_accuracy_with_softmax(tmp_path, coefficients):
    rng = np.random.default_rng(1)
    a = mmaction2_dump(tmp_path / "a.pkl", Z)
    b = mmaction2_dump(tmp_path / "b.pkl", (2 * rng.normal(size=(N, K)) + Z).astype(np.float32))
    stack = vf.read_predictions({"a": a, "b": b}, kind="logits", annotations=mmaction2_list(tmp_path / "val.txt"))
    stack.save(tmp_path / "caches")
    stack = load_stack(tmp_path / "caches")
    fused = vf.LinearPool(weights=list(coefficients)).fit(stack).predict_log_proba(stack)
    top1, mean_class = report_accuracy([a, b], coefficients, apply_softmax=True)
    assert vf.metrics.top_k_accuracy(stack.labels, fused) == top1
    assert vf.metrics.mean_class_accuracy(stack.labels, fused) == pytest.approx(mean_class, abs=1e-12)
    assert top1 != report_accuracy([a, b], coefficients[::-1], apply_softmax=True)[0] or coefficients == (1.0, 1.0)


def test_dumps_in_another_order_are_refused_or_realigned(tmp_path):
    order = np.random.default_rng(2).permutation(N)
    a = mmaction2_dump(tmp_path / "a.pkl", Z)
    b = mmaction2_dump(tmp_path / "b.pkl", Z[order], LABELS[order])
    first, second = mmaction2_list(tmp_path / "a.txt"), mmaction2_list(tmp_path / "b.txt", order)
    with pytest.raises(AlignmentError, match="labels differ"):
        vf.read_predictions({"a": a, "b": b}, kind="logits")
    with pytest.raises(AlignmentError, match=r"member 'b': .*its own labels differ from the annotations'"):
        vf.read_predictions({"a": a, "b": b}, kind="logits", annotations=first)
    stack = vf.read_predictions({"a": a, "b": b}, kind="logits", annotations={"a": first, "b": second})
    np.testing.assert_array_equal(stack.scores("a"), stack.scores("b"))


def test_row_47_dumps_whose_own_labels_differ(tmp_path):
    other = LABELS.copy()
    other[[3, 9]] = (other[[3, 9]] + 1) % K
    a, b = mmaction2_dump(tmp_path / "a.pkl", Z), mmaction2_dump(tmp_path / "b.pkl", Z, other)
    with pytest.raises(AlignmentError, match=r"member 'b': .* for 2 of 60 videos \(row 3: .*row 9: "):
        vf.read_predictions({"a": a, "b": b}, kind="logits")


def test_row_49_placeholder_labels(tmp_path):
    path = mmaction2_dump(tmp_path / "test.pkl", Z, np.zeros(N, dtype=int))
    with pytest.raises(InputError, match=r"all 60 labels are 0: placeholder labels\? pass labels=None"):
        vf.read_predictions({"x": path}, kind="logits")
    assert vf.read_predictions({"x": path}, kind="logits", labels=None).labels is None


def test_row_54_multi_label_dumps(tmp_path):
    path = tmp_path / "multi.pkl"
    path.write_bytes(pickle.dumps([{"pred_score": torch.tensor(s), "gt_label": torch.tensor([0, 2])} for s in Z]))
    with pytest.raises(InputError, match="single-label classification only"):
        vf.read_predictions({"x": path}, kind="logits")


def test_row_27_an_array_of_objects_is_not_unpickled_by_numpy(tmp_path):
    path = tmp_path / "objects.npy"
    np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    with pytest.raises(InputError):
        vf.read_predictions({"x": path}, kind="logits")


def test_several_heads_must_be_chosen_from(tmp_path):
    path = tmp_path / "heads.pkl"
    path.write_bytes(pickle.dumps([{"pred_score": {"rgb": torch.tensor(s), "flow": torch.tensor(-s)}} for s in Z]))
    with pytest.raises(InputError, match=r"scores 'rgb', 'flow'; say which with head="):
        vf.read_predictions({"x": path}, kind="logits")
    np.testing.assert_array_equal(vf.read_predictions({"x": path}, kind="logits", head="flow").scores("x"), -Z)


@pytest.mark.parametrize("key", ["classes", "class_names", "categories", "Label_Names"])
def test_arrays_name_their_classes(key, tmp_path):
    k = Z.shape[1]
    names = [f"class {c}" for c in range(k)]
    order = np.random.default_rng(0).permutation(k)
    np.savez(tmp_path / "a.npz", scores=Z, ids=IDS, **{key: names})
    np.savez(tmp_path / "b.npz", scores=Z[:, order], ids=IDS, **{key: np.array(names)[order]})
    stack = vf.read_predictions({"a": tmp_path / "a.npz", "b": tmp_path / "b.npz"}, kind="logits")
    assert stack.classes == tuple(names)
    np.testing.assert_array_equal(stack.scores("b"), Z)


def test_what_a_dump_knows_nothing_of_is_not_there(tmp_path):
    dump = {"scores": Z, "ids": None, "labels": None, "classes": None, "note": None}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(dump))
    stack = vf.read_predictions({"a": tmp_path / "a.pkl"}, kind="logits", annotations=IDS)
    assert stack.ids.tolist() == IDS and stack.labels is None and stack.classes is None


def test_views_that_are_rows_of_their_own_are_averaged_on_request(tmp_path):
    p = softmax(np.stack([Z, Z[::-1]], axis=1).astype(np.float64), axis=2)  # (N, 2, K)
    rows, ids = p.reshape(-1, Z.shape[1]), np.repeat(IDS, 2)
    np.savez(tmp_path / "a.npz", scores=rows, ids=ids, labels=np.repeat(LABELS, 2))
    with pytest.raises(InputError, match=r'each id stands in 2 rows.*repeats="mean-probability"'):
        vf.read_predictions({"a": tmp_path / "a.npz"}, kind="probabilities")
    stack = vf.read_predictions({"a": tmp_path / "a.npz"}, kind="probabilities", repeats="mean-probability")
    np.testing.assert_allclose(np.exp(stack.scores("a")), p.mean(axis=1), atol=1e-4)
    assert (stack.ids.tolist(), stack.labels.tolist()) == (IDS, LABELS.tolist())
    np.savez(tmp_path / "a.npz", scores=rows[:-1], ids=ids[:-1])
    with pytest.raises(AlignmentError, match="predicted as often"):
        vf.read_predictions({"a": tmp_path / "a.npz"}, kind="probabilities", repeats="mean-probability")


def test_a_video_with_two_labels_is_refused_where_its_predictions_are_made_one(tmp_path):
    other = LABELS.copy()
    other[2] = (other[2] + 1) % 5
    for name, labels in (("a", LABELS), ("b", other)):
        np.savez(tmp_path / f"{name}.npz", scores=Z if name == "a" else Z[::-1], ids=IDS, labels=labels)
    files = {"m": [tmp_path / "a.npz", tmp_path / "b.npz"]}
    with pytest.raises(AlignmentError, match=f"labels of 1 of {N} videos differ .* '{IDS[2]}'"):
        vf.read_predictions(files, kind="logits", repeats="mean-log")


def test_a_members_files_are_put_in_one_order_of_classes_whichever_of_them_has_names(tmp_path):
    k, half = Z.shape[1], N // 2
    names = [f"class {c}" for c in range(k)]
    order = np.random.default_rng(1).permutation(k)
    np.savez(tmp_path / "plain.npz", scores=Z[:1], ids=["extra"])
    np.savez(tmp_path / "a.npz", scores=Z[:half], ids=IDS[:half], classes=names)
    np.savez(tmp_path / "b.npz", scores=Z[half:][:, order], ids=IDS[half:], classes=np.array(names)[order])
    files = [tmp_path / f"{name}.npz" for name in ("plain", "a", "b")]
    with pytest.warns(VidfuseWarning, match=r"plain.npz' has no class names, and others have"):
        stack = vf.read_predictions({"m": files}, kind="logits")
    assert stack.classes == tuple(names)
    np.testing.assert_array_equal(stack.scores("m"), np.concatenate([Z[:1], Z]))


def test_members_with_and_without_ids_are_not_matched_by_position(tmp_path):
    np.save(tmp_path / "a.npy", Z)
    write_predictions(Z, tmp_path / "b.csv", ids=IDS)
    files = {"a": tmp_path / "a.npy", "b": tmp_path / "b.csv"}
    with pytest.raises(AlignmentError, match="members 'a' have no ids, others do; pass annotations="):
        vf.read_predictions(files, kind="logits")
    assert vf.read_predictions(files, kind="logits", annotations=IDS).ids.tolist() == IDS


def test_a_dump_with_ids_takes_labels_from_the_annotations_by_id(tmp_path):
    order = np.random.default_rng(3).permutation(N)
    write_predictions(Z[order], tmp_path / "b.csv", ids=[IDS[row] for row in order])
    stack = vf.read_predictions(
        {"b": tmp_path / "b.csv"}, kind="logits", annotations=mmaction2_list(tmp_path / "val.txt")
    )
    assert stack.labels.tolist() == LABELS[order].tolist()
    with pytest.raises(AlignmentError, match="59 of 60 videos are not in the annotations"):
        (tmp_path / "one.txt").write_text(f"{IDS[0]}.mp4 0\n")
        vf.read_predictions({"b": tmp_path / "b.csv"}, kind="logits", annotations=tmp_path / "one.txt")


@pytest.mark.parametrize(
    ("text", "ids", "labels"),
    [
        ("run/a.mp4 0\nrun/b c.avi 1\n", ["run/a", "run/b c"], [0, 1]),
        ("/data/val/a.mp4 3\n/data/val/x/b.mp4 4\n", ["a", "x/b"], [3, 4]),
        ("a.webm,1\nb.webm,0\n", ["a", "b"], [1, 0]),
        ("label,videoid,split\n1,a.b,val\n0,c,val\n", ["a.b", "c"], [1, 0]),
        ("videoid,split\na,test\nb,test\n", ["a", "b"], None),
        ("a\nb\n", ["a", "b"], None),
        ("\ufeffid,label\na,1\nb,0\n", ["a", "b"], [1, 0]),
    ],
)
def test_lists_of_videos(tmp_path, text, ids, labels):
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8")
    found = read_annotations(path)
    assert found.ids.tolist() == ids
    assert (None if found.labels is None else found.labels.tolist()) == labels


def test_lists_of_several_labels_are_refused(tmp_path):
    path = tmp_path / "list.txt"
    for text in ("a b/a.mp4 1 2\nb.mp4 0\n", "a.mp4 1,2\nb.mp4 0\n", "a.mp4,1,2,3\nb.mp4,0\n"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"a second one before it: 'a.*[ ,]1.*single-label"):
            read_annotations(path)
    path.write_text("my clip 1 3\nmy clip 2.mp4 0\n")  # numbers in names
    assert read_annotations(path).ids.tolist() == ["my clip 1", "my clip 2"]


def test_class_names_with_blanks_follow_videos_by_a_comma(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("a 1.mp4,long jump\nb.avi,run\n")
    listed = read_annotations(path, "sorted")
    assert (listed.ids.tolist(), listed.labels.tolist()) == (["a 1", "b"], [0, 1])
    assert listed.classes == ("long jump", "run")
    path.write_text("Smith, Ann 1\nJones, Bob 2 b\n")  # names alone
    assert read_annotations(path).ids.tolist() == ["Smith, Ann 1", "Jones, Bob 2 b"]


def test_lists_and_tables_agree_on_what_the_ids_are(tmp_path):
    rows = [f"{row},clips/{row + 5}.mp4,{row % 2}" for row in range(4)]
    path = tmp_path / "list.csv"
    path.write_text("id,path,label\n" + "\n".join(rows))
    assert read_annotations(path).ids.tolist() == [f"clips/{row + 5}" for row in range(4)]
    path.write_text("# by hand\n#20 clap.avi 1\n#done\na.avi 0\n")
    assert read_annotations(path).ids.tolist() == ["#20 clap", "a"]
    path.write_text("id,path,label,p0,p1\n" + "\n".join(f"{row},0.25,0.75" for row in rows))
    with pytest.warns(VidfuseWarning, match="columns .id. are no scores"):
        assert read_dump(path).ids.tolist() == [f"clips/{row + 5}" for row in range(4)]


def test_labels_as_class_names_need_the_classes(tmp_path):
    path = tmp_path / "val.csv"
    path.write_text("label,videoid,split\nzumba,a,val\nabseiling,b,val\n")
    with pytest.raises(InputError, match="got 'zumba'; pass classes="):
        read_annotations(path)
    assert read_annotations(path, ["abseiling", "zumba"]).labels.tolist() == [1, 0]


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".pkl"])
def test_an_export_is_read_back_to_the_bit(tmp_path, suffix):
    stack = vf.LogitStack.from_arrays({"swin": Z, "x3d": Z + 1}, ids=IDS, labels=LABELS)
    path = write_predictions(stack, tmp_path / f"out{suffix}", member="x3d")
    back = vf.read_predictions({"x3d": path}, kind="logits")
    np.testing.assert_array_equal(back.scores("x3d"), Z + 1)
    assert back.ids.tolist() == IDS and back.labels.tolist() == LABELS.tolist()


def test_an_export_for_mmaction2_is_what_torch_itself_unpickles(tmp_path):
    views = np.stack([Z, Z + 1], axis=1)
    path = write_predictions(views, tmp_path / "out.pkl", ids=IDS, labels=LABELS)
    samples = pickle.loads(path.read_bytes())
    assert torch.equal(torch.stack([s["pred_score"] for s in samples]), torch.tensor(views))
    assert [s["gt_label"].item() for s in samples] == LABELS.tolist()
    assert samples[0]["gt_label"].dtype == torch.int64 and samples[0]["pred_label"].shape == (1,)
    assert [s["pred_label"].item() for s in samples] == Z.argmax(axis=1).tolist()


def test_report_accuracy_reads_an_export(tmp_path):
    paths = [
        write_predictions(scores, tmp_path / f"{name}.pkl", ids=IDS, labels=LABELS)
        for name, scores in {"a": P, "b": softmax(Z[:, ::-1], axis=1)}.items()
    ]
    fused = P + 0.5 * softmax(Z[:, ::-1], axis=1)
    assert report_accuracy(paths, (1.0, 0.5))[0] == (fused.argmax(axis=1) == LABELS).mean()


def test_an_export_for_mmaction2_needs_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"writing MMAction2's dumps .* 'vidfuse\[networks\]'"):
        write_predictions(Z, tmp_path / "out.pkl")
    assert not list(tmp_path.iterdir())


def test_long_tables(tmp_path):
    stack = vf.LogitStack.from_arrays({"swin": Z}, ids=IDS, classes=list("edcba"))
    path = write_predictions(stack, tmp_path / "long.csv", format="csv-long")
    back = vf.read_predictions({"swin": path}, kind="logits", classes=list("edcba"))
    np.testing.assert_array_equal(back.scores("swin"), Z)
    by_name = read_dump(path)  # without given classes, names are sorted
    assert by_name.classes == tuple("abcde")
    np.testing.assert_array_equal(by_name.scores, Z[:, ::-1])
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(InputError, match="expected one score for each video and class, got 0 for id 'class"):
        read_dump(path)


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame])
def test_frames(tmp_path, make):
    columns = {"video": IDS, **{f"p{k}": Z[:, k] for k in range(K)}, "label": LABELS}
    frame = make(columns)
    stack = vf.LogitStack.from_frames({"swin": frame}, id="video", label="label")
    np.testing.assert_array_equal(stack.scores("swin"), Z)
    assert stack.ids.tolist() == IDS and stack.labels.tolist() == LABELS.tolist() and stack.classes is None
    few = vf.LogitStack.from_frames({"swin": frame}, id="video", columns=["p2", "p0"])
    np.testing.assert_array_equal(few.scores("swin"), Z[:, [2, 0]])
    assert few.labels is None and few.classes == ("p2", "p0")
    with pytest.raises(InputError, match="member 'swin': expected a column 'name' for the id"):
        vf.LogitStack.from_frames({"swin": frame}, id="name")
    with pytest.raises(InputError, match="column 'label': expected floating-point scores, got dtype int64"):
        vf.LogitStack.from_frames({"swin": frame}, id="video", columns=["p0", "label"])


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    columns = {"id": IDS, "label": LABELS, **{f"p{k}": Z[:, k] for k in range(K)}}
    pl.DataFrame(columns).write_parquet(tmp_path / "x.parquet")
    stack = vf.read_predictions({"x": tmp_path / "x.parquet"}, kind="logits")
    np.testing.assert_array_equal(stack.scores("x"), Z)
    assert stack.labels.tolist() == LABELS.tolist()


def test_a_cache_is_a_file_of_predictions_too(tmp_path):
    vf.LogitStack.from_arrays({"swin": P}, ids=IDS, labels=LABELS, kind="probabilities").save(tmp_path)
    stack = vf.read_predictions({"swin": tmp_path / "swin"}, kind={})
    assert stack.kinds == ("probabilities",) and stack.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pkl", pickle.dumps([]), "expected predictions, got an empty list; known are"),
        ("x.pkl", pickle.dumps([{"scare": 1.0}]), "expected at least two columns of scores, got 'scare'"),
        ("x.pkl", pickle.dumps({"a": 1.5}), r"expected predictions, got a dict of 1: 'a' \(float '1.5'\)"),
        ("x.pkl", pickle.dumps([Z[0], Z[1, :3]]), "different numbers of classes"),
        ("x.csv", b"", "the file is empty"),
        ("x.csv", b"id,p0,p1\na,1.0\n", "line 2: expected 3 fields, got 2"),
        ("x.csv", b"id,p0,p1\na,1.0,x\n", "column 'p1': expected numbers"),
        ("x.csv", b"id;p0;p1\na;1,5;2,0\n", "column 'p0': expected numbers: .*; write a point where a comma stands"),
        ("x.csv", b"id,p0,p1\na,1.0,2.0\n,1.0,2.0\n", "ids: expected an id for each video, got an empty name at row 1"),
        ("x.csv", b"id,p0,p0\na,1.0,2.0\n", "unique column names"),
        ("x.csv", b"\xff\xfe1", "expected a text file in UTF-8.*save it as UTF-8"),
        ("x.csv", "id,p0".encode("utf-16-le"), "zero bytes: UTF-16"),
        ("x.npz", b"PK\x03\x04garbage", "damaged archive"),
        ("x.npy", b"\x93NUMPY\x01\x00v\x00{'descr'", "damaged, or not an .npy file"),
        ("x.parquet", b"PAR1garbage", "expected a parquet file"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        vf.read_predictions({"x": tmp_path / name}, kind="logits")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="expected a file, found none"):
        vf.read_predictions({"x": tmp_path / "nowhere.pkl"}, kind="logits")


@pytest.mark.parametrize("renamed", [b"\x96ideo", b"label"], ids=["no text", "twice"])
def test_a_parquet_file_with_broken_names_is_refused(tmp_path, renamed):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"video": ["a", "b"], "label": [0, 1], "p0": [0.5, 1.5], "p1": [1.0, 2.0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "table.parquet", store_schema=False)
    path = tmp_path / "table.parquet"
    path.write_bytes(path.read_bytes().replace(b"video", renamed))
    with pytest.raises(InputError, match="expected a parquet file"):
        vf.read_predictions({"swin": path}, kind="logits")


@pytest.mark.parametrize("given", [np.eye(3), {"a": np.eye(3)}, [np.eye(3)], np.nditer(np.eye(2)), None])
def test_what_is_no_file_is_said(given):
    with pytest.raises(InputError, match=r"member 'x': expected a file or a list of files, got .*from_arrays"):
        vf.read_predictions({"x": given}, kind="logits")


def test_an_empty_list_of_videos_is_another_length(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(3))
    with pytest.raises(AlignmentError, match="3 rows, but the annotations list 0 videos"):
        vf.read_predictions({"x": tmp_path / "x.npy"}, kind="logits", annotations=[])


def test_files_may_come_from_any_iterable(tmp_path):
    for fold in range(2):
        np.savez(tmp_path / f"fold{fold}.npz", scores=Z[fold::2], ids=IDS[fold::2])
    paths = sorted(tmp_path.glob("*.npz"))
    for given in (iter(paths), np.array(list(map(str, paths))), dict.fromkeys(paths).keys()):
        assert vf.read_predictions({"x": given}, kind="logits").ids.tolist() == [*IDS[::2], *IDS[1::2]]
