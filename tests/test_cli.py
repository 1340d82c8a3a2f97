"""The command line: each command is a thin call of the library, with clear errors and a saved configuration."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner

import vidfuse as vf
from vidfuse.cache.writer import CacheWriter
from vidfuse.cli import main
from vidfuse.cli.options import named_values, pairs

HOW_READ = {  # the options that say how predictions are read, where none is given
    "kind": [],
    "annotations": [],
    "no_labels": False,
    "head": [],
    "columns": [],
    "id_column": [],
    "ids": "path",
    "classes": None,
    "class_map": [],
    "repeats": None,
    "join": "exact",
    "missing": "error",
    "checkpoints": "same",
    "partial": False,
    "folds": False,
    "labelled": False,
}


def run(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


def make_stack(n, seed, labels=True):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 6
    arrays = {m: (rng.normal(size=(n, 6)) + 1.5 * np.eye(6)[y]).astype(np.float32) for m in ("slowfast", "swin", "x3d")}
    ids = [f"video-{seed}-{i}" for i in range(n)]
    return vf.LogitStack.from_arrays(arrays, labels=y if labels else None, ids=ids)


@pytest.fixture
def caches(tmp_path):
    for name, seed in (("val", 1), ("test", 2)):
        make_stack(60, seed).save(tmp_path / name)
    make_stack(30, 3, labels=False).save(tmp_path / "hidden")
    return tmp_path


@pytest.fixture
def recipe(caches):
    run("fit", caches / "val", "--out", caches / "ensemble.json")
    return caches / "ensemble.json"


def test_help_lists_every_command():
    output = run("--help").stdout
    for name in "demo import info verify consolidate fit predict evaluate select report submit train extract".split():
        assert f"\n  {name} " in output
        assert run(name, "--help").stdout.startswith(f"Usage: main {name}")


def test_version_is_the_packages():
    assert run("--version").stdout == f"vidfuse {vf.__version__}\n"


def test_an_unknown_command_is_a_usage_error():
    assert "No such command 'fuse'" in run("fuse", status=2).stderr


def test_import_reads_what_other_tools_dump(tmp_path):
    stack = make_stack(40, 1)
    for name in ("swin", "x3d"):
        np.savez(tmp_path / f"{name}.npz", scores=stack.scores(name), labels=stack.labels, ids=stack.ids)
    out = tmp_path / "caches"
    files = [f"{name}={tmp_path / name}.npz" for name in ("swin", "x3d")]
    result = json.loads(run("import", *files, "--kind", "logits", "--out", out, "--json").stdout)
    assert (result["members"], result["videos"], result["shape"]) == (["swin", "x3d"], 40, [40, 2, 6])
    loaded = vf.load_stack(out)
    np.testing.assert_array_equal(loaded.scores("x3d"), stack.scores("x3d"))
    config = json.loads((tmp_path / "caches.config.json").read_text())
    assert config["command"] == "import"
    assert config["options"]["kind"] == ["logits"] and config["options"]["as_json"] is True


def test_import_needs_the_kind_and_names(tmp_path):
    np.save(tmp_path / "b.npy", np.zeros((3, 2)))
    assert "say --kind logits, for one member or all" in run("import", f"a={tmp_path}/b.npy", status=2).stderr
    assert f"NAME={tmp_path}/b.npy" in run("import", tmp_path / "b.npy", "--kind", "logits", status=2).stderr


def test_info_describes_caches_and_recipes(caches, recipe):
    result = json.loads(run("info", caches / "val", "--json").stdout)
    assert (result["videos"], result["n_classes"], result["order"]) == (60, 6, "checked by id")
    assert "60 videos x 3 members x 6 classes" in run("info", caches / "val").stdout
    result = json.loads(run("info", recipe, "--json").stdout)
    assert result["members"] == ["slowfast", "swin", "x3d"]
    assert sum(result["weights"]) == pytest.approx(1)
    assert "LogLinearPool" in run("info", recipe).stdout


def test_info_describes_an_unfinished_cache(tmp_path):
    from vidfuse.cache.writer import CacheWriter

    with CacheWriter(tmp_path / "val" / "swin", expected_ids=["a", "b", "c"]) as writer:
        writer.append(["a"], np.zeros((1, 4), dtype=np.float32))
    assert "1 of 3 videos" in run("info", tmp_path / "val").stdout
    result = json.loads(run("info", tmp_path / "val", "--json").stdout)
    assert result["caches"] == {"swin": {"videos": 1, "missing": 2, "parts": 1, "fingerprints": ["unknown"]}}
    assert "1 of 3" in result["problem"]


def test_info_sums_many_shards_and_lists_those_that_are_not_finished(tmp_path):
    for shard in range(7):
        ids = [f"v{shard}{row}" for row in range(3)]
        for member in ("swin", "x3d"):
            cache = tmp_path / f"shard{shard}" / member
            with CacheWriter(cache, expected_ids=ids, fingerprint={"name": member}) as writer:
                some = 2 if (shard, member) == (4, "x3d") else 3
                writer.append(ids[:some], np.zeros((some, 2), dtype=np.float32))
    lines = run("info", tmp_path).stdout.splitlines()
    assert lines[0].startswith("LogitCache(") and "shard4/x3d': 2 of 3 videos" in lines[0]
    assert lines[1:3] == [
        'swin: 21 videos in 7 shards, 7 parts, 0 missing; checkpoint: {"name": "swin"}',
        'x3d: 20 videos in 7 shards, 7 parts, 1 missing; checkpoint: {"name": "x3d"}',
    ]
    told = json.loads(run("info", tmp_path, "--json").stdout)["caches"]
    assert [told[member]["missing"] for member in ("swin", "x3d")] == [0, 1]


def test_verify_ends_with_status_1_where_a_part_is_damaged(caches):
    assert json.loads(run("verify", caches / "val", "--json").stdout)["ok"] is True
    part = next((caches / "val" / "swin").glob("*.safetensors"))
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.chmod(0o644)
    part.write_bytes(data)
    assert part.name in run("verify", caches / "val", status=1).stdout
    run("verify", caches / "val", "--quarantine", status=1)
    assert not part.exists()


def test_consolidate_leaves_one_part_a_cache_and_the_same_scores(tmp_path):
    from vidfuse.cache.writer import CacheWriter

    scores = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    with CacheWriter(tmp_path / "val" / "swin") as writer:
        for row in range(4):
            writer.append([f"video{row}"], scores[row : row + 1])
    result = json.loads(run("consolidate", tmp_path / "val", "--json").stdout)
    assert [(cache["videos"], cache["parts"]) for cache in result["caches"]] == [(4, 1)]
    assert len(list((tmp_path / "val" / "swin").glob("*.safetensors"))) == 1
    np.testing.assert_array_equal(vf.load_stack(tmp_path / "val").scores("swin"), scores)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--weights", "accuracy"),
        ("--weights", "slowfast=1", "--weights", "swin=2", "--weights", "x3d=1"),
        ("--rule", "linear"),
        ("--rule", "vote"),
        ("--rule", "borda"),
        ("--rule", "stacked"),
        ("--rule", "dynamic"),
        ("--rule", "greedy"),
    ],
)
def test_fit_evaluate_and_predict_are_those_of_the_library(options, caches):
    path, table = caches / "ensemble.json", caches / "fused.csv"
    run("fit", caches / "val", *options, "--out", path)
    test = vf.load_stack(caches / "test")
    expected = vf.load_recipe(path).predict_proba(test)
    run("predict", path, caches / "test", "--out", table)
    again = vf.read_predictions({"fused": table}, kind="probabilities")
    assert again.ids.tolist() == test.ids.tolist()
    assert again.labels.tolist() == test.labels.tolist()
    np.testing.assert_allclose(again.scores("fused"), expected, rtol=1e-6)
    board = json.loads(run("evaluate", path, caches / "test", "--json").stdout)
    assert board["protocol"] == "held-out"
    entry = next(e for e in board["entries"] if e["fused"])
    assert entry["accuracy"] == pytest.approx((expected.argmax(axis=1) == test.labels).mean())


def test_evaluate_on_the_fits_own_videos_says_in_sample(caches, recipe):
    assert "(in-sample)" in run("evaluate", recipe, caches / "val").stdout
    assert "in-sample" not in run("evaluate", recipe, caches / "test").stdout.lower()


def test_evaluate_counts_the_videos_of_the_fit(caches, recipe):
    stack = vf.load_stack(caches / "val")
    stack[:59].save(caches / "most")
    text = run("evaluate", recipe, caches / "most").stdout
    assert "IN-SAMPLE: the 59 videos" in text and "chosen on the videos of the fit" in text


def test_evaluate_and_report_name_the_same_best_member_and_gain(caches, recipe):
    """The member is chosen on the videos of the fit, though another one may turn out to be the best."""
    for seed in (2, 5, 6):
        make_stack(60, seed).save(caches / f"test{seed}")
        found = json.loads(run("evaluate", recipe, caches / f"test{seed}", "--json").stdout)
        board = vf.leaderboard(vf.load_stack(caches / "val"), vf.load_stack(caches / f"test{seed}"))
        assert found["best_single"] == board.best_single
        headline = next(entry for entry in found["entries"] if entry["name"] == "recipe")
        gained = board.entry(board.headline_rule).gain
        assert headline["gain"]["difference"] == pytest.approx(gained.difference)
        assert headline["gain"]["p_value"] == pytest.approx(gained.p_value)
        over = board.entry(board.headline_rule).gain_over_average
        assert headline["gain_over_average"]["difference"] == pytest.approx(over.difference)


def test_evaluate_takes_groups_and_an_objective(caches, recipe):
    found = json.loads(
        run("evaluate", recipe, caches / "test", "--objective", "nll", "--groups", r"(\d)$", "--json").stdout
    )
    assert (found["objective"], found["n_scored_groups"]) == ("nll", 10)
    assert all(entry["n_groups"] == 10 for entry in found["entries"])
    assert "NLL" in run("evaluate", recipe, caches / "test", "--objective", "nll").stdout


def test_json_has_no_words_that_json_has_not(tmp_path):
    stack = make_stack(60, 1)
    hard = {name: np.eye(6)[stack.scores(name).argmax(axis=1)] for name in stack.members}  # wrong ones lose without end
    vf.LogitStack.from_arrays(hard, labels=stack.labels, ids=stack.ids, kind="probabilities").save(tmp_path / "val")
    fit = ("fit", tmp_path / "val", "--rule", "linear", "--weights", "uniform", "--out", tmp_path / "e.json")
    for command in (fit, ("evaluate", tmp_path / "e.json", tmp_path / "val")):
        text = run(*command, "--json").stdout
        found = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        entries = found.get("check", found)["entries"]
        assert entries[-1]["nll"] is None and entries[-1]["accuracy"] > 0.3


def test_fit_says_where_the_rule_is_below_a_member(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(120) % 4
    z = {m: rng.normal(size=(120, 4)) + s * np.eye(4)[y] for m, s in (("good", 3.0), ("weak", 0.7), ("poor", 0.7))}
    stack = vf.LogitStack.from_arrays(z, labels=y, ids=[f"v{i}" for i in range(120)])
    stack.save(tmp_path / "val")
    text = run("fit", tmp_path / "val", "--rule", "vote", "--out", tmp_path / "e.json").stdout
    assert "points below the best single member (good)" in text and "instead" in text
    assert "each was predicted by rules that were fitted without it" in text
    found = json.loads(run("fit", tmp_path / "val", "--rule", "vote", "--out", tmp_path / "e.json", "--json").stdout)
    assert found["check"]["instead"]["below"] == "good" and found["check"]["protocol"] == "cross-fitted"
    assert " points" not in run("fit", tmp_path / "val", "--no-check", "--out", tmp_path / "e.json").stdout


def test_a_fit_that_cannot_be_cross_fitted_is_written_all_the_same(tmp_path, monkeypatch):
    y = np.arange(12) % 3
    z = {m: np.eye(3)[y] + np.random.default_rng(i).normal(size=(12, 3)) for i, m in enumerate("ab")}
    vf.LogitStack.from_arrays(z, labels=y, ids=[f"v{i}" for i in range(12)]).save(tmp_path / "val")
    recipe = tmp_path / "e.json"
    said = run("fit", tmp_path / "val", "--groups", "^(v)", "--out", recipe).stdout
    assert "not cross-fitted: expected videos of two sources at least" in said and recipe.is_file()
    monkeypatch.setattr("vidfuse.cli.ensembles._SECONDS", 12 * 2 * 3 - 1)
    assert "--check does it" in run("fit", tmp_path / "val", "--out", recipe).stdout
    assert "points" in run("fit", tmp_path / "val", "--check", "--out", recipe).stdout


def test_predict_writes_npz(caches, recipe):
    run("predict", recipe, caches / "hidden", "--out", caches / "fused.npz")
    with np.load(caches / "fused.npz") as saved:
        assert saved["ids"].tolist() == [f"video-3-{i}" for i in range(30)]
        np.testing.assert_allclose(saved["scores"].sum(axis=1), 1)
    assert (
        "expected a format or a suffix" in run("predict", recipe, caches / "hidden", "--out", "x.txt", status=2).stderr
    )


def test_predict_starts_without_what_only_scikit_learn_imports(caches, recipe):
    code = """
import sys
from vidfuse.cli import main
main(sys.argv[1:], standalone_mode=False)
print(sorted({"torch", "pandas.core", "scipy.optimize", "scipy.stats.distributions"} & set(sys.modules)))
import pandas, scipy.stats  # are there as soon as somebody uses them
assert pandas.DataFrame({"a": [1]}).shape == (1, 1) and scipy.stats.norm.cdf(0) == 0.5
print(sys.modules["scipy.stats"].norm is scipy.stats.norm)
"""
    arguments = ["predict", recipe, caches / "test", "--out", caches / "p.npz"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["[]", "True"]


def test_predict_reduces_views_as_they_are_read(tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    ids, y = [f"v{i:02d}" for i in range(40)], np.arange(40) % 3
    for member, views in (("swin", 4), ("x3d", 2)):  # different numbers of views need reducing to be one stack
        scores = rng.normal(size=(40, views, 3)).astype(np.float32) + 2 * np.eye(3, dtype=np.float32)[y][:, None]
        with CacheWriter(tmp_path / "val" / member) as writer:
            writer.append(ids, scores, y)
    run("fit", tmp_path / "val", "--out", tmp_path / "e.json")
    known = vf.load_recipe(tmp_path / "e.json").predict_proba(vf.load_stack(tmp_path / "val", views="mean-log"))
    monkeypatch.setattr("vidfuse.stack.open.reduce_source", None)  # what holds the reduced views of all videos
    run("predict", tmp_path / "e.json", tmp_path / "val", "--out", tmp_path / "p.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), known)


def test_select_finds_the_subset_that_the_library_finds(caches):
    stack = vf.load_stack(caches / "val")
    best = vf.search_subsets(stack, objective="accuracy", rule=vf.LogLinearPool(weights="accuracy"))
    result = json.loads(run("select", caches / "val", "--json").stdout)
    assert result["members"] == list(best.members)
    assert result["score"] == pytest.approx(best.score)
    assert result["in_sample"] is True
    assert len(json.loads(run("select", caches / "val", "--max-members", 1, "--json").stdout)["members"]) == 1
    assert "in-sample" in run("select", caches / "val").stdout


def test_groups_are_read_from_ids_and_kept_whole(caches):
    path = caches / "grouped.json"
    run("fit", caches / "val", "--groups", r"^video-.*?(\d)$", "--out", path)
    stack = vf.load_stack(caches / "val")
    pool = vf.LogLinearPool().fit(stack, groups=[name[-1] for name in stack.ids.tolist()])
    np.testing.assert_array_equal(vf.load_recipe(path).rule.class_weights_, pool.class_weights_)
    run("report", caches / "val", "--groups", r"\d$", "--out", caches / "own.html")
    assert "none of 10 groups split" in (caches / "own.html").read_text()


@pytest.mark.parametrize(("pattern", "what"), [("[", "expected a regular expression"), ("_g", "not found in 60")])
def test_a_pattern_that_tells_no_groups_is_refused(caches, pattern, what):
    assert what in run("fit", caches / "val", "--groups", pattern, status=2).stderr


def test_report_writes_a_page_and_its_configuration(caches):
    page = caches / "out" / "report.html"
    run("report", caches / "val", "--test", caches / "test", "--title", "Trial", "--out", page)
    text = page.read_text()
    assert "<title>Trial</title>" in text
    assert "Rules were fitted on 60 videos and scored on 60 others." in text
    assert "drawn by chance" not in text
    run("report", caches / "val", "--sample", "50", "--out", caches / "some.html")
    assert "All of it is of videos drawn by chance: 50 of 60." in (caches / "some.html").read_text()
    run("report", caches / "val", "--out", caches / "own.html")
    headline = vf.leaderboard(vf.load_stack(caches / "val")).headline()  # honest_score's number, see test_trial
    own = (caches / "own.html").read_text()
    assert f"<h1>{headline}</h1>" in re.sub("</?span[^>]*>", "", own)  # a span keeps an interval on one line
    config = json.loads((caches / "out" / "report.html.config.json").read_text())
    assert config == {
        "vidfuse": vf.__version__,
        "command": "report",
        "options": {
            "source": [str(caches / "val")],
            "test": [str(caches / "test")],
            "test_annotations": None,
            "views": ["mean-log"],
            "groups": None,
            "title": "Trial",
            "figures": None,
            "thumbnails": None,
            "sample": None,
            "out": str(page),
            **HOW_READ,
        },
    }


def test_submit_writes_five_one_based_classes_a_video(caches, recipe):
    run("submit", recipe, caches / "hidden", "--out", caches / "submission.txt")
    lines = (caches / "submission.txt").read_text().splitlines()
    order = np.argsort(-vf.load_recipe(recipe).predict_proba(vf.load_stack(caches / "hidden")), kind="stable")
    assert lines == [f"video-3-{i} " + " ".join(map(str, row[:5] + 1)) for i, row in enumerate(order)]


def test_errors_are_one_message_and_status_2(caches, recipe):
    error = run("fit", caches / "hidden", status=2)
    assert error.stdout == ""
    assert error.stderr.startswith("Error: ")
    assert "labels" in error.stderr
    assert "Traceback" not in error.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "absent"], "found no such path"),
        (["fit", "{caches}"], r"not numbered as shards are \('hidden'"),
        (["fit", "{caches}/val", "--weights", "oracle"], "weights"),
        (["fit", "{caches}/val", "--weights", "swin=much"], "expected MEMBER=NUMBER"),
        (["fit", "{caches}/val", "--weights", "swin=1"], "weights"),
        (["fit", "{caches}/val", "--rule", "vote", "--weights", "swin=1"], "--weights belongs to"),
        (["evaluate", "{caches}/ensemble.json", "{caches}/hidden"], "labels"),
        (["predict", "{caches}/val/swin/meta.json", "{caches}/val"], "expected a recipe"),
    ],
)
def test_bad_input_names_what_is_wrong(arguments, message, caches, recipe):
    error = run(*(argument.format(caches=caches) for argument in arguments), status=2)
    assert re.search(message, error.stderr)


def test_a_folder_that_cannot_be_written_is_a_message(caches):
    (caches / "file").write_text("")
    error = run("fit", caches / "val", "--out", caches / "file" / "ensemble.json", status=2)
    assert "Error: " in error.stderr
    assert "file" in error.stderr


def test_warnings_go_to_standard_error(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 3)).astype(np.float32)
    stack = vf.LogitStack.from_arrays(
        {"a": z, "b": -z}, labels=np.zeros(50, dtype=int), ids=[str(i) for i in range(50)]
    )
    stack.save(tmp_path / "val")
    result = run("fit", tmp_path / "val", "--out", tmp_path / "ensemble.json", "--json")
    assert "Warning: every label of the fit is class 0" in result.stderr
    assert json.loads(result.stdout)["members"] == ["a", "b"]


def test_a_warning_is_printed_once_however_many_folds_give_it(tmp_path):
    make_stack(60, 1).save(tmp_path / "val")
    result = run("fit", tmp_path / "val", "--rule", "cascade", "--check", "--out", tmp_path / "ensemble.json")
    warned = [line for line in result.stderr.splitlines() if line.startswith("Warning: all members run")]
    assert len(warned) == len(set(warned)) == 2  # of the fit, and of five folds of equal size


def test_pairs_and_named_values():
    assert pairs(("a=b=c",), "MEMBER=FILE") == {"a": "b=c"}
    assert named_values(("a=1",), "MEMBER=NUMBER") == {"a": "1"}
    for bad, message in ((("a=1", "a=2"), "comes twice"), (("=1",), "expected MEMBER=FILE"), (("a=",), "expected")):
        with pytest.raises(click.BadParameter, match=message):
            pairs(bad, "MEMBER=FILE")


def test_a_yaml_file_gives_a_commands_options(caches, recipe):
    config = caches / "submit.yaml"
    config.write_text(f"""
fit:
  source: {caches / "val"}
  weights: {{slowfast: 1, swin: 2, x3d: 1e-1}}
  out: {caches / "by-hand.json"}
submit:
  recipe: {recipe}
  source: {caches / "hidden"}
  format: vipriors
  out: {caches / "from-config.txt"}
""")
    run("--config", config, "fit")
    assert vf.load_recipe(caches / "by-hand.json").describe()["weights"] == pytest.approx([10 / 31, 20 / 31, 1 / 31])
    run("--config", config, "submit")
    run("submit", recipe, caches / "hidden", "--format", "vipriors", "--out", caches / "typed.txt")
    assert (caches / "from-config.txt").read_bytes() == (caches / "typed.txt").read_bytes()
    run("--config", config, "submit", "--out", caches / "other.txt")  # what is typed goes before
    assert (caches / "other.txt").exists()


def test_a_saved_configuration_repeats_its_command(caches):
    out = caches / "best.json"
    run("fit", caches / "val", "--weights", "slowfast=1", "--weights", "swin=2", "--weights", "x3d=1", "--out", out)
    first = out.read_bytes()
    out.unlink()
    run("--config", caches / "best.json.config.json", "fit")
    assert out.read_bytes() == first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- fit", "expected a section for each command, got list"),
        ("submit: {out: a.txt}", "expected a section 'fit', got submit"),
        ("fit: caches/val", "expected options in the section 'fit', got str"),
        ("fit: {wieghts: learned}", "fit has no option wieghts; it has "),
        ("fit: {out: [a.json, b.json]}", "expected one value for out, got ['a.json', 'b.json']"),
        ("fit: [", "expected options as YAML in "),
    ],
)
def test_a_configuration_of_another_form_is_refused(tmp_path, text, message):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert message in run("--config", config, "fit", status=2).stderr
    config = tmp_path / "config.json"
    config.write_text("{")
    assert "expected options as JSON in " in run("--config", config, "fit", status=2).stderr


def test_shards_are_read_as_one_set_by_every_command(tmp_path, caches):
    stack = vf.load_stack(caches / "val")
    for number, rows in enumerate(np.array_split(np.arange(len(stack)), 3)):
        stack[rows].save(tmp_path / "shards" / f"shard{number}")
    folders = [tmp_path / "shards" / f"shard{number}" for number in range(3)]
    run("fit", caches / "val", "--out", tmp_path / "whole.json")
    written = []
    for source in ([tmp_path / "shards"], folders, [f"{tmp_path}/shards/shard*"]):
        run("fit", *source, "--out", tmp_path / "ensemble.json")
        run("predict", tmp_path / "ensemble.json", *source, "--out", tmp_path / "p.csv")
        written.append((tmp_path / "p.csv").read_bytes())
    run("predict", tmp_path / "whole.json", caches / "val", "--out", tmp_path / "p.csv")
    assert set(written) == {(tmp_path / "p.csv").read_bytes()}
    boards = [run("evaluate", tmp_path / "ensemble.json", *source).stdout for source in (folders, [caches / "val"])]
    assert boards[0] == boards[1]
    assert json.loads(run("info", tmp_path / "shards", "--json").stdout)["videos"] == len(stack)
    (part,) = (folders[1] / "swin").glob("*.safetensors")
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    found = json.loads(run("verify", *folders, "--quarantine", "--json", status=1).stdout)
    assert [problem["path"] for problem in found["problems"]] == [str(part)] and found["parts"] == 3 * len(
        stack.members
    ) - 1


def test_errors_of_caches_name_no_option_that_caches_refuse(tmp_path, caches, recipe):
    """What is said to help has to be taken: --annotations and the like say how other files are read."""
    given = {"s0": (0, "abcdef"), "s1": (6, "abcdeX"), "again": (0, "abcdef")}
    for name, (first, classes) in given.items():
        ids = [f"v{first + row}" for row in range(6)]
        scores = dict.fromkeys(vf.load_recipe(recipe).members, 2 * np.eye(6))
        vf.LogitStack.from_arrays(scores, ids=ids, classes=list(classes)).save(tmp_path / name)
    for command, sources, advice in (
        ("evaluate", ["s0"], "give them with `vidfuse import --annotations`"),
        ("report", ["s0"], "give them with `vidfuse import --annotations`"),
        ("fit", ["s0"], "give them with `vidfuse import --annotations`"),
        ("predict", ["s0", "s1"], "with `vidfuse import --class-map`"),
        ("predict", ["s0", "again"], "leave one of these out, or write it again without them"),
    ):
        words = [recipe] if command in ("evaluate", "predict") else []
        error = run(command, *words, *(tmp_path / source for source in sources), status=2).stderr
        assert advice in error, (command, error)
