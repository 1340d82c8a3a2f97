"""`vidfuse record`, `watch`, `refresh`, and `predict --abstain --sets`."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

import vidfuse as vf
from vidfuse.cli import main


def run(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("caches")
    for seed, name in enumerate(("val", "day1", "day2", "dull")):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 4, 240)
        z = {m: 2 * rng.normal(size=(240, 4)) + 5 * np.eye(4)[y] for m in ("swin", "x3d")}
        z["x3d"] *= 0.2 if name == "dull" else 1
        ids = [f"{name}_g{i // 2:03}_c{i % 2}" for i in range(240)]
        vf.LogitStack.from_arrays(z, labels=y, ids=ids, classes=["run", "jump", "a;b", 'say "x"']).save(root / name)
    run("fit", root / "val", "--weights", "uniform", "--no-check", "--out", root / "bare.json")
    run("record", root / "bare.json", root / "val", "--groups", "^(.*)_c", "--out", root / "e.json")
    return root


def test_a_record_is_kept_in_the_recipe(folder):
    assert vf.load_recipe(folder / "bare.json").record is None
    assert vf.load_recipe(folder / "e.json").record.groups.max() == 119
    out = folder / "held-out.json"
    said = json.loads(run("record", folder / "e.json", folder / "day1", "--out", out, "--json").stdout)
    assert said["record"].startswith("TrackRecord(held-out, 240 videos, ")
    assert vf.load_recipe(out).record.how == "held-out"
    both = run("record", folder / "e.json", folder / "day1", "--cross-fit", "--held-out", status=2)
    assert "the videos are of the fit, or they are not" in both.stderr


def test_predictions_say_which_are_answered_and_which_classes_are_likely(folder):
    out = folder / "p.csv"
    said = run("predict", folder / "e.json", folder / "day1", "--abstain", "0.1", "--sets", "0.95", "--out", out).stdout
    text = (folder / "p.csv.decisions.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    recipe = vf.load_recipe(folder / "e.json")
    stack = vf.load_stack(folder / "day1", views="mean-log")
    log_p = recipe.predict_log_proba(stack)
    assert [row["id"] for row in rows] == stack.ids.tolist()
    assert [row["predicted"] for row in rows] == [recipe.classes[k] for k in log_p.argmax(axis=1)]
    abstention, sets = recipe.record.abstention(0.1), recipe.record.prediction_sets(0.95)
    assert [row["answered"] == "1" for row in rows] == abstention.answered(log_p).tolist()
    found = [[name in json.loads(row["set"]) for name in recipe.classes] for row in rows]
    assert found == sets.of(log_p).tolist()
    assert f"{sum(row['answered'] == '1' for row in rows)} of 240 videos are answered" in said
    assert "set" in rows[0]
    words = ("--sets", "0.7", "--by-class", "--out", out, "--json")
    told = json.loads(run("predict", folder / "e.json", folder / "day1", *words).stdout)
    header, *lines = (folder / "p.csv.decisions.csv").read_text().splitlines()
    assert header == "id,predicted,confidence,set"
    listed = sum(len(json.loads(row["set"])) for row in csv.DictReader([header, *lines]))
    assert (told["videos"], told["listed_classes"], told["answered"]) == (240, listed, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bare.json", "day1", "--sets", "0.9"), "`vidfuse record` makes it"),
        (("e.json", "day1", "--sets", "0.999"), "sets of coverage 0.999 need at least 999 groups of videos, got 120"),
        (("e.json", "day1", "--abstain", "0.001"), "an error of at most 0.001 with 95% confidence needs at least "),
        (("e.json", "day1", "--abstain", "2"), "2.0 is not in the range 0<x<1"),
    ],
)
def test_what_cannot_be_stated_is_said(folder, words, message):
    recipe, source, *rest = words
    result = run("predict", folder / recipe, folder / source, *rest, "--out", folder / "x.csv", status=2)
    assert message in result.stderr


def test_watch_ends_with_status_1_on_an_alarm(folder):
    groups = ("--groups", "^(.*)_c")
    quiet = run("watch", folder / "e.json", folder / "day1", folder / "day2", *groups)
    assert "No alarm over 240 videos." in quiet.stdout
    found = run("watch", folder / "e.json", folder / "day1", folder / "dull", *groups, "--json", status=1)
    told = json.loads(found.stdout)
    assert told["alarm"]
    assert any(one["name"] == "x3d: spread" and one["alarm"] > 120 for one in told["statistics"])
    missing = run("watch", folder / "e.json", folder / "day1", status=2)
    assert "say what each video comes from by --groups" in missing.stderr


def test_refresh_writes_what_is_no_worse(folder):
    out = folder / "new.json"
    assert "nothing is written" in run("refresh", folder / "e.json", folder / "day1", "--out", out, status=1).stdout
    assert not out.exists()
    said = run("refresh", folder / "e.json", folder / "day1", "--margin", "0.05", "--out", out, "--json").stdout
    assert json.loads(said)["no_worse"]
    assert vf.load_recipe(out).fitted_on["videos"] == 240
    assert "240 of the 240 videos" in run("refresh", folder / "e.json", folder / "val", status=2).stderr


def test_what_cannot_be_stated_is_said_before_anything_is_written(folder, tmp_path):
    source, out = folder / "day1", tmp_path / "p.csv"
    for words, message, status in (
        ((folder / "bare.json", "--abstain", "0.1"), "need a record", 2),
        ((folder / "e.json", "--abstain", "0.0001"), "at least", 2),
        ((folder / "e.json", "--by-class"), "--by-class belongs to --sets", 2),
    ):
        assert message in run("predict", words[0], source, *words[1:], "--out", out, status=status).stderr
    assert not list(tmp_path.iterdir())


def test_of_videos_of_the_fit_nothing_is_stated(folder, tmp_path):
    words = ("--sets", "0.9", "--out", tmp_path / "p.csv")
    of_fit = "240 of the 240 videos are of the fit: what is stated does not hold for these"
    assert of_fit in run("predict", folder / "e.json", folder / "val", *words).stdout
    assert "of the fit" not in run("predict", folder / "e.json", folder / "day1", *words).stdout
