"""The command on other tools' files: from dumps to a verdict and a submission, and hints in the command's own words."""

from __future__ import annotations

import ast
import csv
import functools
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from scipy.special import log_softmax, softmax

import vidfuse as vf
from vidfuse import errors
from vidfuse.cli import _words_of, main

K, N = 6, 120
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, K, N)
IDS = [f"clip_{i:03d}" for i in range(N)]


def run(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


def probabilities(labels, seed, signal=1.5):
    z = np.random.default_rng(seed).normal(size=(len(labels), K)) + signal * np.eye(K)[labels]
    return softmax(z, axis=1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two members' dumps of 120 videos, whole and in five folds, the list of the videos, and a hidden test set."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("swin", "x3d")):
        p = probabilities(LABELS, seed)
        np.save(f"{name}.npy", p)
        for fold in range(5):
            np.save(f"oof_{name}_{fold}.npy", p[fold * 24 : fold * 24 + 24])
            np.save(f"test_{name}_{fold}.npy", probabilities(LABELS[:30], 10 * seed + fold + 50, 1.0))
    Path("val.csv").write_text("id,label\n" + "".join(f"{i},{y}\n" for i, y in zip(IDS, LABELS, strict=True)))
    Path("test.csv").write_text("id\n" + "".join(f"t{i}\n" for i in range(30)))
    Path("test_labels.csv").write_text("id,label\n" + "".join(f"t{i},{LABELS[i]}\n" for i in range(30)))
    return tmp_path


DUMPS = ("swin=swin.npy", "x3d=x3d.npy", "--kind", "probabilities", "--annotations", "val.csv")
FOLDS = ("swin=oof_swin_*.npy", "x3d=oof_x3d_0.npy,oof_x3d_1.npy,oof_x3d_2.npy,oof_x3d_3.npy,oof_x3d_4.npy")
TEST = ("swin=test_swin_*.npy", "x3d=test_x3d_*.npy", "--kind", "probabilities")


def test_the_verdict_from_dumps_in_one_command(folder):
    output = run("report", *DUMPS).stdout
    stack = vf.LogitStack.from_arrays(
        {name: np.load(f"{name}.npy") for name in ("swin", "x3d")}, labels=LABELS, ids=IDS, kind="probabilities"
    )
    headline = vf.leaderboard(stack).headline()
    assert headline in output
    assert f"<h1>{headline}</h1>" in re.sub("</?span[^>]*>", "", Path("report.html").read_text())
    run("--config", "report.html.config.json", "report", "--out", "again.html")
    assert Path("again.html").read_bytes() == Path("report.html").read_bytes()


def test_a_test_set_of_dumps_is_scored_on(folder):
    test = [word for name in ("swin", "x3d") for word in ("--test", f"{name}=test_{name}_0.npy")]
    run("report", *DUMPS, *test, "--test-annotations", "test_labels.csv")
    assert "Rules were fitted on 120 videos and scored on 30 others." in Path("report.html").read_text()


def test_folds_to_a_submission_in_two_commands(folder):
    run("fit", *FOLDS, "--kind", "probabilities", "--annotations", "val.csv", "--weights", "accuracy")
    Path("sample.csv").write_text("id,label\n" + "".join(f"t{i},0\n" for i in reversed(range(30))))
    fused = ("--annotations", "test.csv", "--repeats", "mean-probability", "--format", "csv", "--sample", "sample.csv")
    run("submit", "ensemble.json", *TEST, *fused)
    weights = [(np.load(f"{name}.npy").argmax(axis=1) == LABELS).mean() for name in ("swin", "x3d")]
    mean = [np.mean([np.load(f"test_{name}_{f}.npy") for f in range(5)], axis=0) for name in ("swin", "x3d")]
    expected = sum(w * np.log(p) for w, p in zip(weights, mean, strict=True)).argmax(axis=1)
    rows = list(csv.reader(Path("submission.csv").read_text().splitlines()))
    assert rows == [["id", "label"], *([f"t{i}", str(expected[i])] for i in reversed(range(30)))]


def test_test_predictions_of_fold_models_are_never_taken_for_folds(folder):
    run("fit", *DUMPS)
    error = run("submit", "ensemble.json", *TEST, "--annotations", "test.csv", status=2).stderr
    assert "each of 5 files has as many rows as the list of videos, 30" in error
    assert "--repeats mean-probability" in error


def test_an_id_in_two_folds_is_refused_with_both_files(folder):
    for fold, ids in enumerate((["a", "b"], ["b", "c"])):
        np.savez(f"f{fold}.npz", scores=np.random.default_rng(fold).normal(size=(2, 3)), ids=ids)
    error = run("import", "x3d=f*.npz", "--kind", "logits", status=2).stderr
    assert "member 'x3d': 1 video stands both in f0.npz and in f1.npz: 'b'" in error
    assert "--repeats mean-probability" in error


def test_evaluate_predict_and_select_take_dumps(folder):
    run("fit", *DUMPS)
    board = json.loads(run("evaluate", "ensemble.json", *DUMPS, "--objective", "macro-f1", "--json").stdout)
    from sklearn.metrics import f1_score

    expected = f1_score(LABELS, np.load("swin.npy").argmax(axis=1), average="macro")
    assert board["protocol"] == "in-sample"
    assert board["objective"] == "macro-f1"
    assert next(e["value"] for e in board["entries"] if e["name"] == "swin") == pytest.approx(expected)
    assert "macro-f1" in run("evaluate", "ensemble.json", *DUMPS, "--objective", "macro-f1").stdout
    run("predict", "ensemble.json", *DUMPS, "--out", "fused.csv")
    assert len(Path("fused.csv").read_text().splitlines()) == N + 1
    found = json.loads(run("select", *DUMPS, "--objective", "macro-f1", "--json").stdout)
    assert found["objective"] == "macro-f1" and 0 < found["score"] < 1
    run("fit", *DUMPS, "--rule", "greedy", "--objective", "macro-f1", "--out", "greedy.json")
    assert "--objective belongs to --rule greedy" in run("fit", *DUMPS, "--objective", "nll", status=2).stderr


def test_missing_predictions_are_left_out_or_shared_out_on_request(folder):
    p = np.load("x3d.npy")
    p[[4, 9]] = np.nan
    np.save("x3d.npy", p)
    error = run("fit", *DUMPS, status=2).stderr
    assert "member 'x3d': no prediction" in error and "id 'clip_004' (row 4), id 'clip_009' (row 9)" in error
    assert "--missing leave-out" in error and "--missing renormalise" in error
    left = run("fit", *DUMPS, "--missing", "leave-out", "--json")
    assert json.loads(left.stdout)["fitted_on"]["videos"] == N - 2
    assert "2 of 120 videos" in left.stderr
    shared = json.loads(run("fit", *DUMPS, "--missing", "renormalise", "--json").stdout)
    assert shared["fitted_on"]["videos"] == N and "renormalise" in shared["rule"]
    refused = run("fit", *DUMPS, "--missing", "renormalise", "--rule", "stacked", status=2).stderr
    assert "stacked needs every member" in refused


def test_files_of_members_that_the_fit_lacks_are_left_out_and_said(folder):
    words = ("--kind", "probabilities", "--annotations", "val.csv")
    run("fit", "swin=swin.npy", "x3d=x3d.npy", *words)
    plain = run("predict", "ensemble.json", "swin=swin.npy", "x3d=x3d.npy", *words)
    expected = Path("predictions.csv").read_bytes()
    assert plain.stderr == ""
    np.save("few.npy", np.log(np.load("x3d.npy")[:9, :4]))  # other videos, other classes, another kind: not read
    kinds = ("--kind", "swin=probabilities", "--kind", "x3d=probabilities", "--kind", "old=logits")
    more = ("swin=swin.npy", "old=few.npy", "x3d=x3d.npy", *kinds, "--annotations", "val.csv")
    said = "Warning: 'old' is not among the members of the fit, 'swin', 'x3d': left out\n"
    assert run("predict", "ensemble.json", *more).stderr == said
    assert Path("predictions.csv").read_bytes() == expected
    for command in ("evaluate", "submit", "record"):
        assert said in run(command, "ensemble.json", *more).stderr
    typo = run("predict", "ensemble.json", "swin=swin.npy", "x3=x3d.npy", *words, status=2).stderr
    assert "members swin, x3d; give MEMBER=FILE for each: x3d is missing, and 'x3' is not among" in typo
    assert "did you mean 'x3d'?" in typo
    assert "x3d is missing\n" in run("evaluate", "ensemble.json", "swin=swin.npy", *words, status=2).stderr


def test_join_keeps_the_videos_that_all_members_have(folder):
    np.savez("a.npz", scores=np.load("swin.npy")[:100], ids=IDS[:100], labels=LABELS[:100])
    np.savez("b.npz", scores=np.load("x3d.npy")[50:], ids=IDS[50:], labels=LABELS[50:])
    error = run("fit", "a=a.npz", "b=b.npz", "--kind", "probabilities", status=2).stderr
    assert "--join inner keeps the common videos, --join outer keeps all" in error
    fitted = run("fit", "a=a.npz", "b=b.npz", "--kind", "probabilities", "--join", "inner", "--json").stdout
    assert json.loads(fitted)["fitted_on"]["videos"] == 50


def test_a_coarse_member_and_named_classes(folder):
    fine = np.load("swin.npy")
    np.save("coarse.npy", np.stack([fine[:, :3].sum(axis=1), fine[:, 3:].sum(axis=1)], axis=1))
    Path("map.csv").write_text("\ufeff" + "\n".join(f"{k // 3};c{k}\n" for k in range(K)), encoding="utf-8")
    Path("classes.txt").write_text("".join(f"{k + 1} c{k}\n" for k in reversed(range(K))))
    options = ("--kind", "probabilities", "--annotations", "val.csv", "--class-map", "coarse=map.csv")
    options += ("--classes", "classes.txt", "--json")
    result = json.loads(run("fit", "swin=swin.npy", "coarse=coarse.npy", *options).stdout)
    assert result["classes"] == [f"c{k}" for k in range(K)]
    assert result["kinds"]["coarse"] == "log-likelihoods"
    error = run("fit", "swin=swin.npy", "coarse=coarse.npy", *options[:4], status=2).stderr
    assert "swin: 6, coarse: 2" in error and "--class-map" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reprot"], "Did you mean 'report'"),
        (["fit", *DUMPS, "--knid", "logits"], "'--kind'"),
        (["fit", *DUMPS, "--out", ""], "'--out': expected the name of a file or folder to write, got ''"),
        (["predict", "ensemble.json", *DUMPS, "--out", "-"], "expected the name of a file or folder to write, got '-'"),
        (["fit", *DUMPS, "--class-map", "map.csv"], "expected --class-map MEMBER=FILE, got 'map.csv'"),
        (["fit", *DUMPS, "--head", "verb", "--head", "x"], "expected --head MEMBER=HEAD, got 'verb'"),
        (
            ["fit", *DUMPS, "--views", "mean"],
            "views: expected one of 'mean-log', 'mean-probability', 'vote', 'max', got",
        ),
        (["fit", *DUMPS, "--repeats", "mean"], "repeats: expected one of 'mean-log'"),
        (
            ["fit", "swin=swin.npy", "--kind", "logits", "--annotations", "lists"],
            "lists: expected a file, found a folder",
        ),
        (["fit", *DUMPS, "--weights", "swn=1", "--weights", "x3d=1"], "'swn'"),
        (["submit", "ensemble.json", "swin=swin.npy", "--kind", "probabilities"], "x3d is missing"),
        (["fit", "swin=swn.npy", "--kind", "logits"], "expected a file"),
        (["fit", "swin=off_*.npy", "--kind", "logits"], "none matches this pattern"),
        (["fit", "val", "swin=swin.npy"], "expected MEMBER=FILE, or folders of caches, got 'val'"),
        (["report", *DUMPS, "--out", "page.txt"], "ends in .html"),
        (
            ["submit", "ensemble.json", *DUMPS, "--out", "s.csv"],
            "ends in .txt for the format vipriors, or say --format csv",
        ),
        (["predict", "ensemble.json", "swin=swin.npy", "x3d=x3d.npy", "--kind", "logits"], "say --kind probabilities"),
        (["submit", "ensemble.json", "swin=swin.npy", "x3d=x3d.npy", "--kind", "probabilities"], "pass --annotations"),
    ],
)
def test_every_dead_end_says_how_to_go_on(arguments, message, folder):
    run("fit", *DUMPS, "--no-check")
    Path("lists").mkdir()
    assert message in " ".join(run(*arguments, status=2).stderr.split())


def test_files_may_have_an_equals_sign_in_their_path(folder):
    Path("split=val").mkdir()
    os.rename("val.csv", "split=val/val.csv")
    os.rename("swin.npy", "split=val/swin.npy")
    options = ("--kind", "probabilities", "--annotations", "split=val/val.csv", "--no-check")
    run("fit", "swin=split=val/swin.npy", "x3d=x3d.npy", *options)


def test_dumps_are_not_read_by_what_caches_need_and_the_other_way_round(folder):
    run("import", *DUMPS, "--out", "caches/val")
    assert "--join inner" in run("fit", *DUMPS, "--partial", status=2).stderr
    assert "--kind says how dumps are read" in run("fit", "caches/val", "--kind", "logits", status=2).stderr
    assert json.loads(run("fit", "caches/val", "--json").stdout)["members"] == ["swin", "x3d"]


ROOMS = ("_checks.py", "stack", "formats", "cache", "recipe.py", "fusion/rule.py", "fusion/weighted.py", "evaluation")


def texts_of_errors():
    """Every text in the rooms that a command's input passes through, with where it stands; no docstrings."""
    root = Path(vf.__file__).parent
    for room in ROOMS:
        for path in [root / room] if room.endswith(".py") else sorted((root / room).glob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            scopes = (ast.Module, ast.ClassDef, ast.FunctionDef)
            documented = {
                id(node.body[0].value)
                for node in ast.walk(tree)
                if isinstance(node, scopes) and node.body and isinstance(node.body[0], ast.Expr)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
                    yield f"{path.name}:{node.lineno}", node.value


@functools.cache
def options_that_are_said():
    """(name, value) of every call of `option` in the package, values that are not literal left out."""
    return sorted(set(_said()), key=str)


def _said():
    for path in sorted(Path(vf.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "option":
                if path.parent.name != "cli" and isinstance(node.args[0], ast.Constant):
                    literal = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                    yield tuple(literal)


def test_no_message_has_the_words_of_python_where_an_option_is_meant():
    names = {p.name for c in ("fit", "submit") for p in main.get_command(click.Context(main), c).params}
    names |= {"labels", "ids", "kind"}
    said = re.compile(rf"(?<![\w.])({'|'.join(sorted(names))})=(?![=\s])")
    found = [(where, text) for where, text in texts_of_errors() if said.search(text)]
    assert found == []


@pytest.mark.parametrize("command", ["import", "fit", "predict", "evaluate", "select", "report", "submit"])
def test_every_hint_names_an_option_that_exists(command):
    context = click.Context(main)
    context.invoked_subcommand = command
    words = _words_of(context)
    said = options_that_are_said()
    assert len(said) > 15
    for name, *value in said:
        text = words(name, *value)
        found = re.fullmatch(
            r"(?:`vidfuse (?P<other>\w+) (?P<there>--[\w-]+).*`|(?P<here>--[\w-]+).*|.* in Python)", text
        )
        assert found, text
        if found["here"] or found["there"]:
            owner = main.get_command(context, found["other"] or command)
            assert (found["here"] or found["there"]) in {spelling for p in owner.params for spelling in p.opts}, text
    in_python = [option for option in said if words(*option).endswith("in Python")]
    assert {name for name, *_ in in_python} <= {"sample_weight", "floor"}, in_python


def test_words_return_to_python_after_a_command(folder):
    run("fit", "swin=swin.npy", status=2)
    assert errors.option("views", "mean-log") == 'views="mean-log"'


def test_no_command_writes_over_what_it_reads(folder):
    run("fit", *DUMPS, "--no-check")
    os.symlink("swin.npy", "link.json")
    inputs = {name: Path(name).read_bytes() for name in ("swin.npy", "val.csv", "ensemble.json", "oof_swin_3.npy")}
    folds = (*FOLDS, "--kind", "probabilities", "--annotations", "val.csv")
    for words in (
        ("fit", *DUMPS, "--out", "swin.npy"),
        ("fit", *DUMPS, "--out", folder / "val.csv"),
        ("fit", *DUMPS, "--out", "link.json"),
        ("fit", *folds, "--out", "oof_swin_3.npy"),
        ("fit", *folds, "--out", "oof_x3d_1.npy"),
        ("report", *DUMPS, "--out", "./val.csv"),
        ("predict", "ensemble.json", *DUMPS, "--out", "swin.npy"),
        ("predict", "ensemble.json", *DUMPS, "--out", "ensemble.json"),
        ("submit", "ensemble.json", *DUMPS, "--format", "csv", "--sample", "val.csv", "--out", "val.csv"),
    ):
        assert "this file is read" in run(*words, status=2).stderr
    assert {name: Path(name).read_bytes() for name in inputs} == inputs
    run("record", "ensemble.json", *DUMPS, "--out", "ensemble.json")  # a recipe may be written anew
    assert vf.load_recipe("ensemble.json").record is not None


def test_lists_of_names_and_files_may_be_longer_than_a_path_can_be(folder):
    names = ",".join(f"{'class' * 12} {c}" for c in range(K))
    for fold in range(5):
        os.rename(f"oof_swin_{fold}.npy", f"{'o' * 80}_{fold}.npy")
    files = ",".join(f"{'o' * 80}_{fold}.npy" for fold in range(5))
    assert min(len(names), len(files)) > 300
    options = ("--kind", "probabilities", "--annotations", "val.csv", "--classes", names)
    run("fit", f"swin={files}", "x3d=x3d.npy", *options, "--no-check")
    assert vf.load_recipe("ensemble.json").classes == tuple(names.split(","))


def test_completion_knows_the_commands():
    environment = {**os.environ, "_VIDFUSE_COMPLETE": "bash_source"}
    command = [sys.executable, "-c", "from vidfuse.cli import main; main(prog_name='vidfuse')"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "complete -o nosort -F _vidfuse_completion vidfuse" in done.stdout
    environment |= {"_VIDFUSE_COMPLETE": "bash_complete", "COMP_WORDS": "vidfuse rep", "COMP_CWORD": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["plain,report"]


def test_epics_zip_holds_scores_of_verbs_nouns_and_the_best_actions(folder):
    for seed, (name, k) in enumerate((("verb", 4), ("noun", 30))):
        z = np.random.default_rng(seed).normal(size=(N, k))
        np.savez(f"{name}.npz", scores=z, ids=IDS, labels=LABELS % 4)
        run("fit", f"a={name}.npz", "--kind", "logits", "--weights", "uniform", "--out", f"{name}.json")
    run("predict", "noun.json", "a=noun.npz", "--kind", "logits", "--out", "nouns.csv")
    epic = ("submit", "verb.json", "a=verb.npz", "--kind", "logits", "--format", "epic")
    assert "needs --nouns" in run(*epic, status=2).stderr
    assert "pass --supervision" in run(*epic, "--nouns", "nouns.csv", status=2).stderr
    run(*epic, "--nouns", "nouns.csv", "--supervision", "2,3,3")
    with zipfile.ZipFile("submission.zip") as archive:
        assert archive.namelist() == ["test.json"]
        content = json.loads(archive.read("test.json"))
    assert {key: content[key] for key in ("version", "challenge", "sls_pt", "sls_tl", "sls_td")} == {
        "version": "0.2", "challenge": "action_recognition", "sls_pt": 2, "sls_tl": 3, "sls_td": 3,
    }  # fmt: skip
    assert list(content["results"]) == IDS
    verb, noun = (log_softmax(np.load(f"{name}.npz")["scores"], axis=1) for name in ("verb", "noun"))
    result = content["results"][IDS[7]]
    np.testing.assert_allclose(list(result["verb"].values()), verb[7], atol=1e-5)
    np.testing.assert_allclose(list(result["noun"].values()), noun[7], atol=1e-5)
    actions = {f"{v},{n}": verb[7][v] + noun[7][n] for v in range(4) for n in range(30)}
    best = sorted(actions, key=actions.get, reverse=True)[:100]
    assert set(result["action"]) == set(best)
    np.testing.assert_allclose([result["action"][key] for key in best], [actions[key] for key in best], atol=1e-4)


def test_a_cascade_is_fitted_with_costs_and_a_stated_risk_and_its_front_is_printed(folder):
    y = np.random.default_rng(5).integers(0, K, 900)
    for seed, name in enumerate(("swin", "x3d")):
        np.savez(f"{name}.npz", scores=probabilities(y, seed, 4.0 - seed), labels=y, ids=np.arange(900).astype(str))
    given = ("swin=swin.npz", "x3d=x3d.npz", "--kind", "probabilities")
    Path("costs.json").write_text('{"swin": 88, "x3d": 5}')
    for costs in (("--costs", "swin=88", "--costs", "x3d=5"), ("--costs", "costs.json")):
        result = run("fit", *given, "--rule", "cascade", *costs, "--risk", "label", "--at-most", 0.05, "--no-check")
        assert "x3d, swin, in this order" in result.output
        assert "the label differs from that of all members in at most 5 % of the videos: shown" in result.output
    rule = vf.load_recipe("ensemble.json").rule
    assert (rule.risk, rule.at_most, rule.costs_.tolist()) == ("label", 0.05, [5, 93])
    assert rule.thresholds_[0] < np.inf
    assert "Used: the point of cost" in run("evaluate", "ensemble.json", *given).output
    assert len(json.loads(run("evaluate", "ensemble.json", *given, "--json").stdout)["front"]["cost"]) > 10
    said = ["--at-most", 0.05, "--confidence", 0.9, "--keep", 0, "--by", "margin", "--order", "x3d", "--order", "swin"]
    run("fit", *given, "--rule", "cascade", *said, "--no-check")
    rule = vf.load_recipe("ensemble.json").rule
    assert (rule.at_most, rule.confidence, rule.keep, rule.by, rule.order_) == (0.05, 0.9, 0, "margin", ("x3d", "swin"))
    assert "--at-most" in run("fit", *given, "--rule", "cascade", "--at-most", 0.001, "--no-check").stderr
    assert "each once" in run("fit", *given, "--rule", "cascade", "--order", "swin", status=2).output
    for switch, value in (("--confidence", 0.9), ("--keep", 0.5), ("--by", "margin"), ("--order", "swin")):
        assert f"{switch} belongs to --rule cascade" in run("fit", *given, switch, value, status=2).output
    assert "belongs to --rule cascade" in run("fit", *given, "--at-most", 0.1, status=2).output
    assert "MEMBER=NUMBER" in run("fit", *given, "--rule", "cascade", "--costs", "swin=dear", status=2).output
    assert "missing: 'x3d'" in run("fit", *given, "--rule", "cascade", "--costs", "swin=1", status=2).output
