"""The short examples run, and what they show is so."""

import json

import numpy as np
import pytest

import fuse_dumps
import fuse_sklearn
import ship_ensemble
import vidfuse as vf


def test_two_dumps_become_a_report_a_recipe_and_a_table(tmp_path, capsys):
    fuse_dumps.write_dumps(tmp_path, n=200)
    board = fuse_dumps.main(tmp_path)
    accuracy = {entry["name"]: entry["accuracy"] for entry in board.to_dict()["entries"]}
    assert accuracy["learned weights"] > max(accuracy["swin"], accuracy["x3d"])
    assert "groups split" in capsys.readouterr().out
    assert "Two dumps" in (tmp_path / "report.html").read_text(encoding="utf-8")
    fused = vf.read_predictions({"fused": tmp_path / "fused.csv"}, kind="probabilities")
    labels = dict(line.split(".mp4 ") for line in (tmp_path / "val.txt").read_text().splitlines())
    assert labels.keys() == set(fused.ids)
    assert np.mean(fused.scores("fused").argmax(axis=1) == [int(labels[name]) for name in fused.ids]) > 0.7


def test_scikit_learn_classifiers_fuse_to_more_than_each(capsys):
    scores = fuse_sklearn.main(n_train=200)
    accuracy, nll = scores["vidfuse"]
    assert accuracy > max(scores[name][0] for name in scores if name.startswith("only"))
    assert nll < min(other for name, (_, other) in scores.items() if name != "vidfuse")
    assert "paired" in capsys.readouterr().out


def test_a_shipped_ensemble_is_checked_on_the_other_side(tmp_path):
    ship_ensemble.pack(tmp_path)
    assert ship_ensemble.check(tmp_path) < 1e-9
    assert len(vf.load_recipe(tmp_path / "ensemble.json").needed_members()) == 2
    known = dict(np.load(tmp_path / "known.npz"))
    np.savez(tmp_path / "known.npz", **{**known, "answers": known["answers"][::-1]})
    with pytest.raises(SystemExit, match="answers otherwise"):
        ship_ensemble.check(tmp_path)
    assert json.loads((tmp_path / "ensemble.json").read_text())["members"]
