"""`vidfuse train` and `vidfuse extract` on a few small videos, up to a recipe."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from video_corpus import OddVideo, write

import vidfuse as vf
from vidfuse import networks
from vidfuse.cache.format import open_part
from vidfuse.cache.reader import open_cache
from vidfuse.cli import main
from vidfuse.cli.runs import batch_of_rank, resolved_recipe
from vidfuse.training import evaluate, state
from vidfuse.training.checkpoints import load_checkpoint
from vidfuse.training.data import view_input, view_plan
from vidfuse.training.recipes import TABLE_I, TINY
from vidfuse.video import VideoDataset, VideoLoader, ViewPlan, read_class_folders


def run(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two classes, four videos each: a bright and a dark ramp."""
    root = tmp_path_factory.mktemp("videos")
    for label, name in enumerate(("dark", "light")):
        (root / name).mkdir()
        for number in range(4):
            with av.open(str(root / name / f"{name}{number}.mp4"), "w") as container:
                stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast", "threads": "1"})
                stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
                for index in range(12):
                    level = 40 + 140 * label + 5 * number + index
                    frame = av.VideoFrame.from_ndarray(np.full((48, 48, 3), level, np.uint8), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
    return root


CLIP = ("--layout", "folders", "--workers", 0)


SMALL = ("epochs=1", "warmup_epochs=0", "batch_size=4", "frames=4", "interval=2", "size=32")


@pytest.fixture(scope="module")
def trained(videos, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "x3d"
    fields = {"epochs": 2, "warmup_epochs": 0, "batch_size": 4, "frames": 4, "interval": 2, "size": 32}
    settings = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    result = run("train", "x3d_tiny", videos, *CLIP, "--val", videos, *settings, "--out", out, "--json")
    return out, json.loads(result.stdout)


def test_train_writes_a_run_and_its_configuration(trained, videos):
    out, result = trained
    assert result["epochs"] == 2
    assert np.isfinite(result["last"]["loss"])
    assert (out / "last.pt").exists()
    config = json.loads((out.parent / "x3d.config.json").read_text())
    assert (config["command"], config["options"]["network"]) == ("train", "x3d_tiny")
    assert config["options"]["data"] == str(videos)


def test_train_and_extract_take_their_options_from_one_file(trained, videos, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"""
train:
  network: x3d_tiny
  data: {videos}
  layout: folders
  val: {videos}
  workers: 0
  set: {{epochs: 2, warmup_epochs: 0, batch_size: 4, frames: 4, interval: 2, size: 32}}
  out: {tmp_path / "x3d"}
extract:
  network: x3d_tiny
  data: {videos}
  layout: folders
  workers: 0
  checkpoint: {tmp_path / "x3d" / "last.pt"}
  clips: 2
  out: {tmp_path / "caches" / "x3d"}
""")
    run("--config", config, "train")
    same, mine = (torch.load(out / "last.pt", weights_only=True)["model"] for out in (trained[0], tmp_path / "x3d"))
    assert all(torch.equal(same[name], mine[name]) for name in same)
    run("--config", config, "extract")
    assert vf.load_stack(tmp_path / "caches", views=None).n_views == 2


def extract(trained, videos, out, *more, status=0):
    plan = ("--clips", 3, "--frames", 4, "--size", 32, "--batch-size", 4)
    return run(
        "extract", "x3d_tiny", videos, *CLIP, "--checkpoint", trained[0] / "last.pt", *plan, "--out", out, *more,
        status=status,
    )  # fmt: skip


def test_a_run_is_repeated_from_the_recipe_that_it_left(trained, videos, tmp_path):
    """Its weights too: they are drawn from the recipe's seed."""
    out, _ = trained
    recipe, augmentation = resolved_recipe(str(out / "recipe.yaml"), ())
    assert (recipe.epochs, recipe.frames, augmentation) == (2, 4, {})
    torch.manual_seed(12345)
    run(
        "train",
        "x3d_tiny",
        videos,
        *CLIP,
        "--val",
        videos,
        "--recipe",
        out / "recipe.yaml",
        "--out",
        tmp_path / "again",
    )
    first, again = (load_checkpoint(folder / "last.pt")["model"] for folder in (out, tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_run_goes_on_by_its_own_recipe_only(trained, videos):
    out, _ = trained
    more = ("--recipe", out / "recipe.yaml", "--out", out)
    assert "x3d_tiny: epoch 2/2: " in run("train", "x3d_tiny", videos, *CLIP, "--val", videos, *more).stdout
    error = run("train", "x3d_tiny", videos, *CLIP, *more, "--set", "augmentation.hue=0.1", status=2).stderr
    assert "differs in augmentation.hue; train into another folder" in error
    assert resolved_recipe(str(out / "recipe.yaml"), ())[1] == {}


def test_videos_that_cannot_be_decoded_are_named_after_training(videos, tmp_path):
    lines = [f"{videos}/dark/dark0.mp4 0", f"{videos}/light/light0.mp4 1", f"{tmp_path}/bad.mp4 1"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    settings = ("--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "frames=4", "--set", "size=32")
    command = ("train", "x3d_tiny", tmp_path / "list.txt", "--layout", "mmaction2", "--workers", 0, *settings)
    told = run(*command, "--val", tmp_path / "list.txt", "--out", tmp_path / "run")
    assert re.search(r"1 could not be decoded:\n  \S*bad: expected a readable video", told.stdout)
    # The interval rests on what was scored, also where a run that has ended is not scored again.
    scored = re.findall(r"validation (\S+ % .*? of \d+),", told.stdout + told.stderr)
    assert len(scored) == 2 and len(set(scored)) == 1 and scored[0].endswith("] of 2")
    assert scored[0] in run(*command, "--out", tmp_path / "run").stdout
    assert "of the 3 videos to score, 3 are trained on, such as " in told.stderr and "training video" not in told.stderr
    assert "expected a readable video" in run(*command, "--strict", "--out", tmp_path / "strict", status=2).stderr
    (tmp_path / "list.txt").write_text(lines[2])
    error = run(*command, "--classes", 2, "--out", tmp_path / "none", status=2).stderr
    assert re.search(r"got none of 1 that can be read; bad: expected a readable video, got \S*bad.mp4", error)
    assert "no training video is of 1 of the 2 classes: 0; are the labels 1-based?" in error


def test_extract_takes_clips_and_classes_as_the_checkpoint_was_trained(trained, videos, tmp_path):
    """A list without names whose videos are all of class 0: the network tells two classes apart all the same."""
    (tmp_path / "list.txt").write_text(f"{videos}/dark/dark0.mp4 0\n{videos}/dark/dark1.mp4 0\n")
    command = ("extract", "x3d_tiny", tmp_path / "list.txt", "--layout", "mmaction2", "--workers", 0)
    command += ("--checkpoint", trained[0] / "last.pt", "--clips", 2, "--crops", "three", "--times", "even")
    result = run(*command, "--flip", "both", "--out", tmp_path / "val" / "x3d")
    assert "2 videos written" in result.stdout
    assert "12 views of 4 frames, interval 2, 32 pixels" in result.stdout
    told = f"the labels of {tmp_path / 'list.txt'} are numbers: they count in the order of the classes of "
    assert f"{told}{trained[0] / 'last.pt'}: dark, light\n" in result.stderr
    assert vf.load_stack(tmp_path / "val").shape == (2, 1, 12, 2)
    assert vf.load_stack(tmp_path / "val").classes == ("dark", "light")  # as the run's folders were named
    names = tmp_path / "names.txt"
    names.write_text("dark\nlight\n")
    assert told not in run(*command, "--classes", names, "--out", tmp_path / "named" / "x3d").stderr
    assert vf.load_stack(tmp_path / "named").classes == ("dark", "light")
    names.write_text("dark\nlight\ngray\n")
    error = run(*command, "--classes", names, "--out", tmp_path / "other", status=2).stderr
    assert "got gray" in error


def test_folders_are_the_classes_of_the_training_videos_by_name(trained, videos, tmp_path):
    """A split that lacks a class, and hidden folders, shift no label; unknown classes are refused."""
    for name in ("light", ".ipynb_checkpoints"):
        shutil.copytree(videos / "light", tmp_path / "light" / name)
    extract(trained, tmp_path / "light", tmp_path / "val" / "x3d")
    stack = vf.load_stack(tmp_path / "val")
    assert stack.classes == ("dark", "light") and set(stack.labels.tolist()) == {1} and len(stack) == 4
    shutil.copytree(videos / "light", tmp_path / "other" / "middle")
    error = extract(trained, tmp_path / "other", tmp_path / "val" / "other", status=2).stderr
    assert re.search(r"expected classes among the 2 known ones \(dark, light\), got middle", error)
    settings = ("--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "frames=4", "--set", "size=32", *CLIP)
    run("train", "x3d_tiny", videos, "--val", tmp_path / "light", *settings, "--out", tmp_path / "part")
    model = networks.create("x3d_tiny", 2, checkpoint=tmp_path / "part" / "last.pt")
    scored = read_class_folders(tmp_path / "light").relabelled(("dark", "light"))
    recipe = state.trained(tmp_path / "part" / "last.pt").recipe
    plan = dataclasses.replace(view_plan(recipe, 1), times="even", crops="centre", flip="never")
    right = evaluate(model, VideoLoader(VideoDataset(scored, view_input(plan, "x3d_tiny")), batch_size=4))
    with open(tmp_path / "part" / "log.csv", newline="") as file:
        assert float(next(csv.DictReader(file))["val_top1"]) == right["top1"]
    run("train", "x3d_tiny", videos, "--val", tmp_path / "other", *settings, "--out", tmp_path / "no", status=2)


def test_a_run_goes_on_with_its_own_videos_only(trained, videos, tmp_path):
    shutil.copytree(videos, tmp_path / "videos")
    next((tmp_path / "videos" / "dark").iterdir()).unlink()
    out, _ = trained
    error = run(
        "train", "x3d_tiny", tmp_path / "videos", *CLIP, "--recipe", out / "recipe.yaml", "--out", out, status=2
    ).stderr
    assert "differs in its training videos; train into another folder" in error
    config = json.loads((out.parent / "x3d.config.json").read_text())
    assert config["options"]["data"] == str(videos)  # what is refused overwrites nothing


def test_a_file_of_class_names_orders_folders_too(videos, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("2 dark\n0 light\n1 none\n")
    settings = ("--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "frames=4", "--set", "size=32", *CLIP)
    out = tmp_path / "run"
    run("train", "x3d_tiny", videos, *settings, "--classes", names, "--out", out)
    assert state.trained(out / "last.pt").classes == ("light", "none", "dark")
    extract((out, None), videos, tmp_path / "val" / "x3d")
    stack = vf.load_stack(tmp_path / "val")
    assert stack.classes == ("light", "none", "dark")
    assert {(name.split("/")[0], label) for name, label in zip(stack.ids, stack.labels, strict=True)} == {
        ("dark", 2),
        ("light", 0),
    }
    error = run("train", "x3d_tiny", videos, *settings, "--classes", 5, "--out", tmp_path / "five", status=2).stderr
    assert f"--classes: expected 2, the classes of {videos}, got 5; leave it out" in error
    for text, message in (
        (b"dark\nd\xe4rk\n", "expected a text file in UTF-8"),
        (b"\xef\xbb\xbflight\ndark\nlight\n", "expected each class name once"),
        (b"", "the file is empty"),
    ):
        names.write_bytes(text)
        error = run("train", "x3d_tiny", videos, *settings, "--classes", names, "--out", tmp_path / "one", status=2)
        assert re.search(f"Error: .*{message}", error.stderr)
    names.write_text("light\nnone\n")
    error = run("train", "x3d_tiny", videos, *settings, "--classes", names, "--out", tmp_path / "one", status=2).stderr
    assert re.search(rf"Error: {videos}: expected classes among the 2 known ones \(light, none\), got dark", error)
    assert not (tmp_path / "five").exists() and not (tmp_path / "one").exists()


def test_extract_takes_the_average_of_a_run_that_has_not_ended(trained, videos, tmp_path):
    """Also from the first checkpoints, which held it as `ema` beside the weights that are stepped."""
    now = load_checkpoint(trained[0] / "last.pt")
    stepped = {name: torch.full_like(value, 7) for name, value in now["model"].items()}
    for name, weights in (("now", {"stepped": stepped}), ("old", {"model": stepped, "ema": now["model"]})):
        (tmp_path / name).mkdir()
        torch.save(now | {"epoch": 1} | weights, tmp_path / name / "last.pt")
        extract((tmp_path / name, None), videos, tmp_path / "val" / name)
    extract(trained, videos, tmp_path / "val" / "ended")
    stack = vf.load_stack(tmp_path / "val")
    for name in ("now", "old"):
        np.testing.assert_array_equal(stack.scores(name), stack.scores("ended"))


@pytest.mark.parametrize("wrong", ["data", "val"])
def test_row_16_labels_beyond_the_classes_are_refused_before_training(wrong, videos, tmp_path):
    files = [*sorted(videos.glob("*/*.mp4"))[:3]]
    for name in ("data", "val"):
        labels = (0, 1, 2) if name == wrong else (0, 1, 1)
        (tmp_path / f"{name}.txt").write_text("".join(f"{f} {n}\n" for f, n in zip(files, labels, strict=True)))
    command = ("train", "x3d_tiny", tmp_path / "data.txt", "--val", tmp_path / "val.txt", "--layout", "mmaction2")
    (tmp_path / "names.txt").write_text("dark\nlight\n")
    for classes in (2, tmp_path / "names.txt"):
        error = run(*command, "--classes", classes, "--out", tmp_path / "run", status=2).stderr
        where = rf"Error: {tmp_path / wrong}.txt: "
        assert re.search(rf"{where}expected labels in \[0, 2\), got 2 for video '\S+'; are the labels 1-based", error)
    assert not (tmp_path / "run").exists()


def test_row_45_every_video_that_is_left_out_is_listed_before_training(videos, tmp_path):
    there = [f"dark/dark{n}.mp4 0" for n in range(3)] + ["light/light0.mp4 1"]
    gone = [f"dark/gone{n}.mp4 0" for n in range(7)]
    (tmp_path / "list.txt").write_text("\n".join(there + gone))
    run("train", "x3d_tiny", tmp_path / "list.txt", "--layout", "mmaction2", "--root", videos, "--workers", 0,
        "--classes", 2, "--out", tmp_path / "run", *(w for s in SMALL for w in ("--set", s)))  # fmt: skip
    with (tmp_path / "run.left-out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["video"]).stem for row in rows[:7]] == [f"gone{n}" for n in range(7)]
    assert all(row["reason"].startswith("no file at") for row in rows[:7])
    assert {Path(row["video"]).name for row in rows[7:]} == {
        "dark3.mp4", "light1.mp4", "light2.mp4", "light3.mp4"
    }  # fmt: skip
    assert {row["reason"] for row in rows[7:]} == {"not in the list"}


def test_a_batch_that_the_processes_do_not_divide_is_refused(videos, tmp_path, monkeypatch):
    recipe = dataclasses.replace(TINY["x3d_tiny"], batch_size=64, accumulate=2)
    assert batch_of_rank(recipe, 4) == 8
    with pytest.raises(vf.errors.InputError, match="take --set batch_size=60 or 66"):
        batch_of_rank(recipe, 3)
    with pytest.raises(vf.errors.InputError, match="take --set batch_size=128:"):
        batch_of_rank(recipe, 64)
    monkeypatch.setattr("vidfuse.training.distributed.world_size", lambda: 3)
    odd = ("--set", "batch_size=4", "--out", tmp_path / "run")
    assert "take --set batch_size=3 or 6:" in run("train", "x3d_tiny", videos, *CLIP, *odd, status=2).stderr
    assert not (tmp_path / "run").exists()


def test_extract_resumes_and_its_caches_can_be_fused(trained, videos, tmp_path):
    out = tmp_path / "val" / "x3d"
    first = json.loads(extract(trained, videos, out, "--json").stdout)
    assert (first["written"], first["present"], first["failures"]) == (8, 0, [])
    stack = vf.load_stack(tmp_path / "val")
    assert stack.shape == (8, 1, 3, 2)
    assert stack.classes == ("dark", "light")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "0 videos written" in extract(trained, videos, out).stdout
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    run("fit", tmp_path / "val", "--weights", "uniform", "--out", tmp_path / "ensemble.json")
    assert json.loads((tmp_path / "ensemble.json").read_text())["views"] == "mean-log"


def test_the_plan_in_a_cache_replays_to_the_same_scores(trained, videos, tmp_path):
    """Nothing but the cache's own record and the checkpoint is needed to see the same views again."""
    out = tmp_path / "val" / "x3d"
    extract(trained, videos, out, "--times", "random", "--seed", 3)
    plan = ViewPlan.from_dict(open_cache(out).meta.view_plan)
    model = networks.create("x3d_tiny", 2, checkpoint=trained[0] / "last.pt").eval()
    data = VideoDataset(read_class_folders(videos), view_input(plan, "x3d_tiny"))
    stack = vf.load_stack(tmp_path / "val")
    rows = {name: row for row, name in enumerate(stack.ids.tolist())}
    for sample in data:
        with torch.no_grad():
            scores = model(sample.clips).numpy()
        np.testing.assert_allclose(stack.scores("x3d")[rows[sample.id]], scores, atol=1e-5)


def test_row_43_a_video_that_cannot_be_decoded_stops_no_fusion(trained, videos, tmp_path):
    lines = [f"{path} {int(path.parent.name == 'light')}" for path in sorted(videos.glob("*/*.mp4"))]
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    (tmp_path / "list.txt").write_text("\n".join([*lines, f"{tmp_path}/bad.mp4 1"]))
    command = ("extract", "x3d_tiny", tmp_path / "list.txt", "--layout", "mmaction2", "--workers", 0)
    text = run(*command, "--checkpoint", trained[0] / "last.pt", "--clips", 1, "--out", tmp_path / "val" / "x3d").stdout
    assert "8 videos written" in text and "1 could not be decoded" in text
    fit = ("fit", tmp_path / "val", "--weights", "uniform", "--out", tmp_path / "ensemble.json")
    assert "8 of 9 videos are there" in run(*fit, status=2).stderr
    assert "ensemble.json" in run(*fit, "--partial").stdout
    evaluate = ("evaluate", tmp_path / "ensemble.json", tmp_path / "val", "--json")
    assert "8 of 9 videos are there" in run(*evaluate, status=2).stderr
    assert json.loads(run(*evaluate, "--partial").stdout)["entries"]


def test_two_processes_extract_each_video_once_and_name_what_both_could_not_read(trained, videos, tmp_path):
    """Uneven shares: five videos, two of them broken, one on each rank."""
    paths = [*sorted(videos.glob("*/*.mp4"))[:3], tmp_path / "bad3.mp4", tmp_path / "bad4.mp4"]
    for path in paths[3:]:
        path.write_bytes(b"not a video")
    (tmp_path / "list.txt").write_text("".join(f"{path} 0\n" for path in paths))
    out = tmp_path / "val" / "x3d"
    command = ("extract", "x3d_tiny", tmp_path / "list.txt", "--layout", "mmaction2", "--workers", 0, "--clips", 2)
    command += ("--checkpoint", trained[0] / "last.pt", "--out", out)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vidfuse",
         *map(str, command), "--json"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["written"] == 3
    assert sorted(Path(name).name for name, _ in result["failures"]) == ["bad3", "bad4"]
    stored = [i for part in out.glob("part-*") for i in open_part(part).ids.tolist()]
    run(*command[:-1], tmp_path / "alone" / "x3d")
    alone = vf.load_stack(tmp_path / "alone", partial=True)
    both = vf.load_stack(tmp_path / "val", partial=True)
    assert sorted(stored) == sorted(both.ids.tolist()) == sorted(alone.ids.tolist())
    np.testing.assert_allclose(both.scores("x3d"), alone.scores("x3d"), atol=1e-5)


def test_row_39_other_views_in_the_same_cache_are_a_message(trained, videos, tmp_path):
    out = tmp_path / "x3d"
    extract(trained, videos, out)
    error = extract(trained, videos, out, "--seed", 5, status=2)
    assert "Error: " in error.stderr
    assert "Traceback" not in error.stderr


def test_a_recipe_file_is_read_and_checked(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 1e-1\nepochs: 3\naugmentation:\n  hue: 0.1\n")
    recipe, augmentation = resolved_recipe(str(path), ("epochs=5", "weight_decay=1e-5", "augmentation.scale=[0.5, 1]"))
    assert (recipe.lr, recipe.epochs, recipe.weight_decay) == (0.1, 5, 1e-5)
    assert augmentation == {"hue": 0.1, "scale": [0.5, 1]}
    assert resolved_recipe("x3d_m", ()) == (TABLE_I["x3d"], {})
    assert resolved_recipe("swin_b.original", ()) == (TABLE_I["swin"], {})
    for text, message in (
        ("[1, 2]", "expected fields of a training recipe, got list"),
        ("", "expected fields of a training recipe, got NoneType"),
        ("lr: 1\naugmentation: [1]", "got list as its augmentation"),
        ("lr: [1", "expected a recipe as YAML"),
    ):
        path.write_text(text)
        with pytest.raises(vf.errors.InputError, match=message):
            resolved_recipe(str(path), ())
    with pytest.raises(vf.errors.InputError, match="expected a recipe of slowfast"):
        resolved_recipe("resnet", ())
    with pytest.raises(vf.errors.InputError, match="no file at gone"):
        resolved_recipe("gone.yaml", ())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "x4d", "{videos}", "--recipe", "x3d"), "x4d"),
        (("train", "x3d_tiny", "{videos}", "--set", "colour=1"), "colour"),
        (("train", "x3d_tiny", "{videos}", "--set", "epochs"), "expected NAME=VALUE, got 'epochs'"),
        (("train", "x3d_tiny", "{videos}", "--set", "augmentation.colour=1"), "expected augmentations of short_side"),
        (("train", "x3d_tiny", "{videos}", "--set", "augmentation.hue=red"), "expected augmentations as numbers"),
        (("train", "x3d_tiny", "{videos}", "--decoder", "gpu"), "expected a GPU that torch can use, found none"),
        (("train", "x3d_tiny", "{videos}", "--classes", "some"), "a file with one class name per line, got 'some'"),
        (("extract", "x3d_tiny", "{videos}", "--checkpoint", "{videos}/dark/dark0.mp4"), "dark0.mp4"),
        (("extract", "x3d_tiny", "{videos}", "--checkpoint", __file__), "test_cli_networks.py"),
    ],
)
def test_bad_input_is_one_message(arguments, message, videos, tmp_path):
    arguments = [argument.format(videos=videos) for argument in arguments]
    error = run(*arguments, *CLIP, "--out", tmp_path / "out", status=2)
    assert "Error: " in error.stderr
    assert re.search(message, error.stderr)


def test_a_runs_folder_is_a_checkpoint_and_extract_prints_the_accuracy(trained, videos, tmp_path):
    """Of the best epoch, or of the last one where it is named; without labels there is no accuracy."""
    out, _ = trained
    history = load_checkpoint(out / "last.pt")["history"]
    best = max(history, key=lambda row: (row["val_top1"], -row["val_nll"]))
    assert load_checkpoint(out / "best.pt")["epoch"] == best["epoch"]
    plan = ("--clips", 1, "--times", "even", "--crops", "centre", "--flip", "never", "--workers", 0)
    for weights, row in ((out, best), (out / "last.pt", history[-1])):
        cache = tmp_path / f"val{row['epoch']}" / weights.stem
        result = run("extract", "x3d_tiny", videos, *plan, "--checkpoint", weights, "--out", cache, "--json")
        assert json.loads(result.stdout)["accuracy"] == row["val_top1"]
    text = run("extract", "x3d_tiny", videos, *plan, "--checkpoint", out, "--out", tmp_path / "again" / "x3d")
    assert re.search(rf"accuracy {100 * best['val_top1']:.1f} % \[[\d.]+, [\d.]+\] of 8 labelled videos", text.stdout)
    assert f"weights: {out}/best.pt" in text.stderr and f"{videos} read as --layout folders: 8 videos" in text.stderr
    assert "expected a checkpoint, or a run's folder" in run(
        "extract", "x3d_tiny", videos, *plan, "--checkpoint", tmp_path, "--out", tmp_path / "no", status=2
    ).stderr  # fmt: skip


def test_videos_without_labels_go_through_to_a_submission(trained, videos, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(sorted(videos.glob("*/*.mp4"))[2:6]):
        shutil.copy(file, flat / f"v{number}.mp4")
    (tmp_path / "paths.txt").write_text("".join(f"flat/v{number}.mp4\n" for number in range(4)))
    extract(trained, videos, tmp_path / "val" / "x3d")
    run("fit", tmp_path / "val", "--weights", "uniform", "--out", tmp_path / "ensemble.json")
    common = ("--workers", 0, "--clips", 3, "--checkpoint", trained[0] / "last.pt")
    for name, source in (("flat", flat), ("list", tmp_path / "paths.txt")):
        text = run("extract", "x3d_tiny", source, *common, "--out", tmp_path / name / "x3d").stdout
        assert "4 videos written" in text and "accuracy" not in text
        stack = vf.load_stack(tmp_path / name, views="mean-log")
        assert stack.labels is None and stack.classes == ("dark", "light")
        run("predict", tmp_path / "ensemble.json", tmp_path / name, "--out", tmp_path / f"{name}.csv")
        with (tmp_path / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [Path(row["id"]).name for row in rows] == ["v0", "v1", "v2", "v3"]
    run("submit", tmp_path / "ensemble.json", tmp_path / "flat", "--out", tmp_path / "submission.txt")
    assert len((tmp_path / "submission.txt").read_text().splitlines()) == 4
    told = run("train", "x3d_tiny", videos, "--val", flat, "--out", tmp_path / "r", status=2).stderr
    assert f"expected labelled videos to score in {flat}" in told
    assert (
        "expected labelled videos to train on"
        in run("train", "x3d_tiny", flat, "--out", tmp_path / "r", status=2).stderr
    )


def test_the_network_that_weights_belong_to_is_named(trained, videos, tmp_path):
    """By what the run says of itself, or by their shapes."""
    weights = load_checkpoint(trained[0] / "last.pt")["model"]
    torch.save(weights, tmp_path / "plain.pth")
    arguments = (videos, *CLIP, "--clips", 1, "--out", tmp_path / "no", "--checkpoint")
    told = run("extract", "slowfast_tiny", *arguments, trained[0] / "last.pt", status=2).stderr
    assert "expected weights of slowfast_tiny" in told and "these are x3d_tiny's weights" in told
    told = run("extract", "slowfast_tiny", *arguments, tmp_path / "plain.pth", "--classes", 2, status=2).stderr
    assert "these are x3d_tiny's weights; nothing was loaded: take x3d_tiny" in told
    torch.save({"unknown": torch.zeros(3)}, tmp_path / "other.pth")
    told = run("extract", "slowfast_tiny", *arguments, tmp_path / "other.pth", status=2).stderr
    assert "weights of" not in told and "the checkpoint does not fit slowfast_tiny" in told


def test_train_and_val_have_roots_of_their_own_and_a_finished_run_goes_on(videos, tmp_path):
    for name in ("train", "val"):
        shutil.copytree(videos, tmp_path / f"{name}-videos")
        rows = [f"{f.parent.name}/{f.name},{f.parent.name}" for f in sorted(videos.glob("*/*.mp4"))]
        (tmp_path / f"{name}.csv").write_text("path,label\n" + "\n".join(rows if name == "train" else rows[::2]))
    command = (
        "train", "x3d_tiny", tmp_path / "train.csv", "--root", tmp_path / "train-videos", "--val", tmp_path / "val.csv",
        "--val-root", tmp_path / "val-videos", "--workers", 0, "--out", tmp_path / "run",
    )  # fmt: skip
    settings = [word for setting in SMALL for word in ("--set", setting)]
    first = run(*command, *settings)
    assert "val.csv read as --layout csv: 4 videos" in first.stderr and "x3d_tiny epoch 1/1: loss" in first.stderr
    assert state.trained(tmp_path / "run" / "last.pt").classes == ("dark", "light")
    longer = ["epochs=2" if word == "epochs=1" else word for word in settings]
    more = run(*command, *longer)
    assert "goes on after epoch 1 of 2" in more.stderr and "epoch 1/2" not in more.stderr
    assert resolved_recipe(str(tmp_path / "run" / "recipe.yaml"), ())[0].epochs == 2
    less = run(*command, *settings, status=2).stderr
    assert "differs in epochs" in less


def test_what_is_left_of_a_video_that_ends_early_is_taken_when_asked_for(trained, videos, tmp_path):
    cut = write(OddVideo("mkv", "libx264", cut="tail", n_frames=60), tmp_path)
    command = ("extract", "x3d_tiny", cut, "--workers", 0, "--checkpoint", trained[0], "--clips", 1)
    text = run(*command, "--out", tmp_path / "no" / "x3d").stdout
    assert "1 could not be decoded" in text and "(--allow-truncated)" in text
    assert "1 videos written" in run(*command, "--allow-truncated", "--out", tmp_path / "yes" / "x3d").stdout


def test_a_worker_that_the_system_ended_is_a_message(videos, tmp_path, monkeypatch):
    """As torch says it, wherever the command is at that moment."""

    def ended(self):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(VideoLoader, "__iter__", ended)
    settings = [word for one in SMALL for word in ("--set", one)]
    told = run("train", "x3d_tiny", videos, *CLIP, *settings, "--out", tmp_path / "run", status=2).stderr
    assert "(pid 7) is killed" in told and "take fewer --workers" in told
    monkeypatch.setattr(VideoLoader, "__iter__", lambda self: 1 / 0)  # what nobody foresaw keeps its trace
    with pytest.raises(ZeroDivisionError):
        run("train", "x3d_tiny", videos, *CLIP, *settings, "--out", tmp_path / "run")


def test_networks_are_trained_together_by_one_command(videos, tmp_path):
    command = ("train-together", videos, "a=x3d_tiny", "r2plus1d_tiny", "--val", videos, "--workers", 0)
    command += tuple(word for setting in (*SMALL[:3], "frames=8", "size=32") for word in ("--set", setting))
    result = run(*command, "--out", tmp_path / "run", "--shared-time")
    assert "r2plus1d_tiny" in result.stdout and "fused" in result.stdout and "epoch 1/1: a loss" in result.stderr
    for name, network in (("a", "x3d_tiny"), ("r2plus1d_tiny", "r2plus1d_tiny")):
        assert state.trained(tmp_path / "run" / f"{name}.pt").network == network
    error = run("train-together", videos, "x3d_tiny", "--out", tmp_path / "no", status=2).stderr
    assert "expected validation videos" in error
    # It goes on as it was begun: with the same clips, augmentations, videos to score, and weights to start from.
    kept = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    for other, word in (
        ((), "shared_time"),
        (
            ("--shared-time", "--set", "augmentation.flip=0"),
            "augmentation.flip of a, augmentation.flip of r2plus1d_tiny",
        ),
        (("--shared-time", "--set", "lr=7"), "lr;"),
    ):
        refused = run(*command, "--out", tmp_path / "run", *other, status=2).stderr
        assert f"got one that differs in {word}" in refused, refused
    assert kept == {path: path.read_bytes() for path in kept}
    # Both start from what they have learned, with the augmentation of few clips.
    started = [
        word for name in ("a", "r2plus1d_tiny") for word in ("--checkpoint", f"{name}={tmp_path / 'run' / name}.pt")
    ]
    words = [w for setting in ("epochs=1", "warmup_epochs=0", "batch_size=4", "lr=1e-9") for w in ("--set", setting)]
    again = run(*command[:8], *words, "--few-clips", *started, "--out", tmp_path / "again")
    assert "a: the checkpoint's classifier is kept" in again.stderr and "a: few clips: epochs=1" in again.stderr
    assert "a: from the checkpoint:" in again.stderr
    others = [*started[:3], f"r2plus1d_tiny={tmp_path / 'again' / 'r2plus1d_tiny'}.pt"]
    refused = run(*command[:8], *words, "--few-clips", *others, "--out", tmp_path / "again", status=2).stderr
    assert "got one that began with others" in refused
    # A folder of a release that kept no digests goes on; one that began without weights is given none later.
    (tmp_path / "again" / "start-r2plus1d_tiny.json").unlink()
    run(*command[:8], *words, "--few-clips", *others, "--out", tmp_path / "again")
    for name in ("a", "r2plus1d_tiny"):
        assert json.loads((tmp_path / "run" / f"start-{name}.json").read_text()) == {"sha256": None}
    refused = run(*command, "--shared-time", *started, "--out", tmp_path / "run", status=2).stderr
    assert "got one that began with others" in refused
    before, after = (state.trained(tmp_path / folder / "a.pt") for folder in ("run", "again"))
    assert (after.recipe.scenes, after.recipe.frames, after.recipe.size) == (0.8, 8, 32)
    assert torch.allclose(after.weights["classifier.weight"], before.weights["classifier.weight"], atol=1e-6)
    told = run(
        "extract", "x3d_tiny", videos, *CLIP, "--checkpoint", tmp_path / "run", "--out", tmp_path / "c", status=2
    )
    assert "is a run of several networks; take one's own checkpoint: " in told.stderr and "a.pt, " in told.stderr
    wrong = (("b=x.pt", "expected members among a, r2plus1d_tiny, got b"), ("a=x.pt", "found no checkpoint at x.pt"))
    for given, message in wrong:
        assert message in run(*command, "--checkpoint", given, "--out", tmp_path / "no", status=2).stderr


def test_soup_averages_runs_and_extract_takes_the_result(trained, videos, tmp_path):
    """Two runs from one start, on real mp4s; what is chosen on some videos is scored on others."""
    start = trained[0] / "last.pt"
    fields = {"epochs": 1, "warmup_epochs": 0, "batch_size": 4, "frames": 4, "interval": 2, "size": 32}
    settings = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    for seed in (1, 2):
        one = (*settings, "--set", f"seed={seed}", "--checkpoint", start, "--out", tmp_path / f"run{seed}")
        run("train", "x3d_tiny", videos, *CLIP, *one)
    runs = [word for seed in (1, 2) for word in ("--checkpoint", tmp_path / f"run{seed}")]
    told = run("soup", "x3d_tiny", videos, *CLIP, *runs, "--out", tmp_path / "all", "--json")
    found = json.loads(told.stdout)
    assert len(found["members"]) == 2 and found["score"] == {} and found["held_out"] is None
    states = [state.trained(tmp_path / f"run{seed}" / "last.pt").weights for seed in (1, 2)]
    error = run("soup", "x3d_tiny", videos, *CLIP, *runs, "--out", tmp_path / "run1", status=2).stderr
    assert "--out: expected a folder for the soup" in error and not (tmp_path / "run1" / "best.pt").exists()
    averaged = state.trained(tmp_path / "all" / "best.pt")
    assert (averaged.network, averaged.n_classes, averaged.classes) == ("x3d_tiny", 2, ("dark", "light"))
    key = "classifier.weight"
    torch.testing.assert_close(averaged.weights[key], (states[0][key] + states[1][key]) / 2)
    run(
        "extract",
        "x3d_tiny",
        videos,
        *CLIP,
        "--checkpoint",
        tmp_path / "all",
        "--clips",
        1,
        "--out",
        tmp_path / "c/x3d",
    )
    assert len(vf.load_stack(tmp_path / "c")) == 8

    kept = {"state_dict": {f"model.{k}": v for k, v in states[0].items()} | {"loss.weight": torch.ones(2)}}
    torch.save(kept, tmp_path / "lightning.ckpt")
    told = run(
        "soup",
        "x3d_tiny",
        videos,
        *CLIP,
        "--checkpoint",
        tmp_path / "lightning.ckpt",
        *runs[2:],
        "--out",
        tmp_path / "l",
    )
    assert "left aside: loss.weight" in told.stderr
    plain = state.trained(tmp_path / "l" / "best.pt").weights
    learned = [name for name in plain if "running" not in name]  # the other run's seed draws other clips
    assert all(torch.equal(plain[name], averaged.weights[name]) for name in learned)

    lists = {}
    for name, numbers in (("val", (0, 1)), ("score", (2, 3))):
        lists[name] = tmp_path / f"{name}.csv"
        rows = [f"{c}/{c}{n}.mp4,{c}" for c in ("dark", "light") for n in numbers]
        lists[name].write_text("path,label\n" + "\n".join(rows) + "\n")
    listed = ("--val", lists["val"], "--val-root", videos)
    one = ("soup", "x3d_tiny", lists["score"], "--root", videos, "--workers", 0, *runs, *listed)
    chosen = run(*one, "--score", lists["score"], "--out", tmp_path / "greedy")
    assert "they chose, so this is too good" in chosen.stdout and "of 4 of the videos of --score" in chosen.stdout
    refused = run(*one, "--score", lists["val"], status=2)
    assert "expected videos of other sources than those of --val, got 4" in refused.stderr


def test_a_network_learns_from_what_predict_wrote(trained, videos, tmp_path):
    """From a cache of the training videos by a recipe to a file, and from the file to a student, on real mp4s."""
    clip = ("--checkpoint", trained[0], "--clips", 1)
    run("extract", "x3d_tiny", videos, *CLIP, *clip, "--out", tmp_path / "caches/x3d")
    run("fit", tmp_path / "caches", "--weights", "uniform", "--no-check", "--out", tmp_path / "e.json")
    run("predict", tmp_path / "e.json", tmp_path / "caches", "--out", tmp_path / "teacher.npz")
    settings = [word for one in (*SMALL, "distil=0.5") for word in ("--set", one)]
    student = ("train", "x3d_tiny", videos, *CLIP, *settings, "--out", tmp_path / "student")
    refused = run(*student, status=2)
    assert "expected a teacher" in refused.stderr
    run(*student, "--teacher", tmp_path / "teacher.npz")
    assert state.trained(tmp_path / "student" / "last.pt").recipe.distil == 0.5


def test_a_checkpoint_is_fine_tuned_with_its_clips_and_for_other_classes_with_a_new_classifier(
    trained, videos, tmp_path
):
    others = tmp_path / "others"
    for old, new in (("dark", "night"), ("light", "noon")):
        shutil.copytree(videos / old, others / new)
    one = ("--set", "epochs=1", "--set", "batch_size=4", "--set", "warmup_epochs=0", *CLIP)
    told = run("train", "x3d_tiny", others, *one, "--checkpoint", trained[0], "--out", tmp_path / "tuned").stderr
    assert "a new classifier of 2 classes; the rest, of the checkpoint, learns at 0.1 of its rate" in told
    assert "weights of x3d_tiny; left aside: its classifier of 2 classes" in told
    recipe = yaml.safe_load((tmp_path / "tuned" / "recipe.yaml").read_text())
    assert [recipe[name] for name in ("frames", "interval", "size", "body_rate")] == [4, 2, 32, 0.1]
    torch.save(networks.create("x3d_tiny", num_classes=5).state_dict(), tmp_path / "other.pt")
    again = (
        "train",
        "x3d_tiny",
        others,
        *one,
        "--recipe",
        tmp_path / "tuned" / "recipe.yaml",
        "--out",
        tmp_path / "tuned",
    )
    assert "got one that began with others" in run(*again, "--checkpoint", tmp_path / "other.pt", status=2).stderr
    assert "x3d_tiny: epoch 1/1: " in run(*again, "--checkpoint", trained[0]).stdout  # which has ended
    moved = ("--set", "body_rate=0", "--set", "size=40")
    told = run("train", "x3d_tiny", others, *one, *moved, "--checkpoint", trained[0], "--out", tmp_path / "0").stderr
    assert "learns at 0 of its rate" in told
    before = load_checkpoint(trained[0] / "best.pt")["model"]
    after = load_checkpoint(tmp_path / "0" / "last.pt")["model"]
    same = {name for name, value in before.items() if value.ndim and torch.equal(after[name], value)}
    assert "hidden.weight" in same and "classifier.weight" not in same
    told = run("train", "x3d_tiny", videos, *one, "--checkpoint", trained[0], "--out", tmp_path / "on").stderr
    assert "the checkpoint's classifier is kept" in told
    assert yaml.safe_load((tmp_path / "on" / "recipe.yaml").read_text())["body_rate"] == 1
    told = run("train", "tin_tiny", others, *one, "--checkpoint", trained[0], "--out", tmp_path / "no", status=2).stderr
    assert "expected weights of tin_tiny" in told and "train x3d_tiny" in told


def test_few_clips_set_what_nobody_named(videos, tmp_path):
    for settings, expected in (((), (1200, 0.8)), (("epochs=1",), (1, 0.8)), (("scenes=0.1",), (1200, 0.1))):
        recipe, _ = resolved_recipe("x3d_tiny", settings, {"body_rate": 0.1}, 8)
        assert (recipe.epochs, recipe.scenes, recipe.body_rate) == (*expected, 0.1)
    few = ("--few-clips", "--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "frames=4", "--set", "size=32")
    told = run("train", "x3d_tiny", videos, *CLIP, *few, "--out", tmp_path / "run").stderr
    assert "few clips: epochs=1, 80 % of the clips before other scenes" in told
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["scenes"] == 0.8


def test_names_beside_numbers_are_counted_in_order_and_said_or_refused(videos, tmp_path):
    """A training list of numbers says no names: whether folders in sorted order are those numbers, nobody knows."""
    files = sorted(videos.glob("*/*.mp4"))
    (tmp_path / "train.txt").write_text("".join(f"{file} {int(file.parent.name == 'dark')}\n" for file in files))
    settings = ("--workers", 0, *(word for field in SMALL for word in ("--set", field)), "--val", videos)
    said = run("train", "x3d_tiny", tmp_path / "train.txt", *settings, "--out", tmp_path / "a").stderr
    assert "are numbers and those of" in said and "dark as 0" in said
    refused = ("--classes", 3, "--out", tmp_path / "b")
    error = run("train", "x3d_tiny", tmp_path / "train.txt", *settings, *refused, status=2).stderr
    assert "expected videos to score of 3 classes, got 2" in error and "pass --classes" in error
    (tmp_path / "names.txt").write_text("light\ndark\n")
    named = ("--classes", tmp_path / "names.txt", "--out", tmp_path / "c")
    assert "are numbers" not in run("train", "x3d_tiny", tmp_path / "train.txt", *settings, *named).stderr
    told = run("train", "x3d_tiny", videos, *settings[:-1], tmp_path / "train.txt", "--out", tmp_path / "d").stderr
    assert f"train.txt are numbers: they count in the order of the classes of {videos}: dark, light" in told
    # A network that was trained on numbers says no names either: light is 0 there, and folders have dark first.
    command = ("extract", "x3d_tiny", videos, *CLIP, "--clips", 1, "--checkpoint", tmp_path / "a", "--json")
    plain = run(*command, "--out", tmp_path / "caches" / "plain")
    assert "last.pt have no names" in plain.stderr or "best.pt have no names" in plain.stderr
    assert f"those of {videos} count in the order dark, light; --classes takes a file" in plain.stderr
    ordered = run(*command, "--classes", tmp_path / "names.txt", "--out", tmp_path / "caches" / "ordered")
    assert "have no names" not in ordered.stderr
    accuracies = [json.loads(result.stdout)["accuracy"] for result in (plain, ordered)]
    assert sum(accuracies) == 1  # of two classes, what is right in one order is wrong in the other
    error = run(*command, "--classes", 9, "--out", tmp_path / "caches" / "nine", status=2).stderr
    assert "2 classes of" in error and "got one of 9: " in error and "names of all 9 in their order" in error
