"""The whole road on a few rendered videos: what it writes, that it goes on from every stage, and rests when done."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import motion
import motion.dataset
import vidfuse as vf
from vidfuse import training
from vidfuse.cache.writer import CacheWriter
from vidfuse.errors import InputError
from vidfuse.formats import submissions
from vidfuse.training import loop
from vidfuse.training import state as run_state
from vidfuse.training.checkpoints import load_checkpoint
from vidfuse.training.recipes import FULL_SIZE
from vidfuse.video import vipriors

SCRIPT = Path(__file__).parents[2] / "examples" / "vipriors_kinetics.py"
HALTED_RUN = Path(__file__).with_name("halted_run.py")
SMALL = [
    "--members", "r2plus1d", "timesformer", "--videos", "3", "2", "2", "--actions", "3", "--epochs", "2",
    "--views", "2", "--device", "cpu", "--jobs", "1", "--fuse",
]  # fmt: skip


# A few epochs on nine videos teach nothing, and members that are always wrong are warned of.
pytestmark = pytest.mark.filterwarnings("ignore::vidfuse.errors.VidfuseWarning")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("vipriors_kinetics", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def whole(example, tmp_path_factory):
    """One run that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole")
    assert example.main(["--out", str(out), *SMALL]) == 0
    return out


def computed(out):
    """Everything that takes work: videos, checkpoints, cache parts, by content and by time of writing."""
    files = [p for p in out.rglob("*") if p.suffix in (".mp4", ".pt", ".safetensors")]
    return {p.relative_to(out): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def results(out):
    """What a run is for; times of training are not part of it."""
    names = ("seed0/submission.txt", "seed0/ensemble.json", "outcomes.json")
    return {name: (out / name).read_bytes() for name in names}


def test_the_submission_is_what_the_challenge_accepts(whole):
    root = whole / "data" / "Kinetics400ViPriors"
    ids = [
        i
        for i, _ in vipriors.read_annotations(root / "annotations/kinetics400ViPriors-test-public.csv", labelled=False)
    ]
    submission = whole / "seed0" / "submission.txt"
    problems = submissions.check_submission(submission, ids, n_classes=3)
    assert all("has 3 classes, not 5" in problem for problem in problems)  # there are only three
    lines = [line.split() for line in submission.read_text().splitlines()]
    assert sorted(line[0] for line in lines) == sorted(ids)  # the damaged video has its line too
    assert all(sorted(line[1:]) == ["1", "2", "3"] for line in lines)


def test_the_caches_hold_every_view_of_every_readable_video(whole):
    for split, n, labelled in (("val", 5, True), ("test", 5, False)):
        stack = vf.load_stack(whole / "seed0" / "caches" / split)
        assert stack.shape == (n, 2, 2, 3)
        assert (stack.labels is not None) == labelled
        assert stack.classes == motion.ACTIONS[:3]


def test_recipe_report_and_outcome_agree_with_the_caches(whole):
    test = vf.reduce_views(vf.load_stack(whole / "seed0/caches/test"), "mean-log")
    labels = dict(vipriors.read_annotations(whole / "data/test-labels.csv"))
    truth = [motion.ACTIONS.index(labels[i]) for i in test.ids]
    predicted = vf.load_recipe(whole / "seed0/ensemble.json").predict_proba(test).argmax(axis=1)
    (outcome,) = json.loads((whole / "outcomes.json").read_text())
    assert outcome["fused"] == pytest.approx((predicted == truth).mean())
    assert outcome["scored_on"] == "test"
    assert "<html" in (whole / "seed0/report.html").read_text()


def test_a_second_run_computes_nothing_again(example, whole):
    before, said = computed(whole), results(whole)
    assert example.main(["--out", str(whole), *SMALL]) == 0
    assert computed(whole) == before
    assert results(whole) == said


class Killed(BaseException):
    """As little to be caught as a signal."""


def dying(function, calls):
    """Return the function, which dies instead of answering the given call."""
    made = []

    def wrapped(*args, **kwargs):
        made.append(None)
        if len(made) == calls:
            raise Killed
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        pytest.param(motion.dataset, "_publish", 5, id="rendering"),
        pytest.param(motion.dataset, "_annotations", 1, id="annotating"),
        pytest.param(loop, "take_step", 2, id="training the first member"),
        pytest.param(run_state, "save_checkpoint", 4, id="publishing the last checkpoint"),
        pytest.param(CacheWriter, "_store", 1, id="caching validation views"),
        pytest.param(CacheWriter, "_store", 4, id="caching test views"),
        pytest.param(vipriors, "read_annotations", 4, id="scoring"),
        pytest.param(vf.Recipe, "save", 1, id="saving the ensemble"),
    ],
)
def test_a_run_killed_in_any_stage_goes_on_to_the_same_results(
    example, whole, tmp_path, monkeypatch, owner, name, calls
):
    monkeypatch.setattr(motion.dataset.os, "sched_getaffinity", lambda _: {0})  # render in this process
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying(getattr(owner, name), calls))
        with pytest.raises(Killed):
            example.main(["--out", str(tmp_path), *SMALL])
    half = computed(tmp_path)
    assert example.main(["--out", str(tmp_path), *SMALL]) == 0
    assert results(tmp_path) == results(whole)
    after = computed(tmp_path)
    kept = {p for p in half if p.suffix != ".pt"}  # a checkpoint is replaced by the next epoch's
    assert {p: after[p] for p in kept} == {p: half[p] for p in kept}
    undisturbed = computed(whole)
    assert after.keys() == undisturbed.keys()
    # Checkpoints hold times of training; their weights show in the caches' bytes.
    assert all(after[p][0] == undisturbed[p][0] for p in after if p.suffix != ".pt")


def kill_when_halted(arguments, processes):
    """Run the example until so many processes have halted, each behind its first checkpoint, and kill the first one.

    The pipe ends when the last process has closed it: those that the first one started must have ended by themselves.
    """
    command = [sys.executable, str(HALTED_RUN), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert [process.stdout.readline() for _ in range(processes)] == ["halted\n"] * processes
            process.kill()
            assert process.stdout.read() == ""
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def trained_epochs(out):
    """How many epochs the checkpoint of each member holds."""
    return {path.parent.name: load_checkpoint(path)["epoch"] for path in out.glob("seed0/train/*/last.pt")}


def test_a_process_that_is_killed_outright_goes_on_too(example, whole, tmp_path):
    kill_when_halted(["--out", str(tmp_path), *SMALL], processes=1)
    assert trained_epochs(tmp_path) == {"r2plus1d": 1}  # of two, and the other member has none
    assert not (tmp_path / "outcomes.json").exists()
    assert example.main(["--out", str(tmp_path), *SMALL]) == 0
    assert results(tmp_path).keys() == results(whole).keys()
    ids = {line.split()[0] for line in (tmp_path / "seed0/submission.txt").read_text().splitlines()}
    assert ids == {line.split()[0] for line in (whole / "seed0/submission.txt").read_text().splitlines()}


def test_members_trained_side_by_side_are_found_by_a_run_in_one_process(example, whole, tmp_path):
    data = ["--data-root", str(whole / "data"), "--test-labels", str(whole / "data/test-labels.csv")]
    arguments = ["--out", str(tmp_path), *data, *SMALL, "--jobs", "2"]
    kill_when_halted(arguments, processes=2)
    assert trained_epochs(tmp_path) == {"r2plus1d": 1, "timesformer": 1}
    assert not (tmp_path / "outcomes.json").exists()

    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "4/4" in done.stderr and "10/10" in done.stderr  # epochs, videos of both splits
    for split in ("val", "test"):
        stacks = [vf.load_stack(out / "seed0/caches" / split) for out in (tmp_path, whole)]
        assert list(stacks[0].ids) == list(stacks[1].ids) and stacks[0].shape == stacks[1].shape
        for member in stacks[0].members:  # other numbers of threads round otherwise
            np.testing.assert_allclose(stacks[0].scores(member), stacks[1].scores(member), atol=1e-2)
    before, said = computed(tmp_path), results(tmp_path)
    assert example.main(["--out", str(tmp_path), *data, *SMALL]) == 0
    assert computed(tmp_path) == before
    assert results(tmp_path) == said


def test_a_folder_of_other_videos_is_refused(example, whole):
    with pytest.raises(InputError, match="videos of another plan"):
        example.main(["--out", str(whole), *SMALL, "--actions", "4"])


def test_a_data_set_on_disk_is_used_as_it_is(example, whole, tmp_path):
    """The challenge's own layout, without test labels: cross-fitted on the validation videos, and called so."""
    assert example.main(["--out", str(tmp_path), "--data-root", str(whole / "data"), *SMALL]) == 0
    assert not (tmp_path / "data").exists()
    (outcome,) = json.loads((tmp_path / "outcomes.json").read_text())
    assert outcome["scored_on"] == "validation (cross-fitted)"
    assert (tmp_path / "seed0/submission.txt").read_bytes() == (whole / "seed0/submission.txt").read_bytes()


@pytest.mark.parametrize("member", FULL_SIZE)
def test_at_full_size_each_member_takes_the_clips_that_its_recipe_gives(example, whole, member):
    """Real videos at full size through the network on the meta device, which computes shapes only."""
    root = whole / "data" / "Kinetics400ViPriors"
    args = example.parse(["--full", "--members", member, "--views", "1", "--device", "cpu"])
    recipe, network = example.recipe_of(args, member), example.named(args)[member]
    train = example.videos_of(args, root)["train"]
    clip = training.train_input(recipe, network, **example.augmentation(args))
    view = training.view_input(training.view_plan(recipe, 1), network)
    for sample in (train.with_inputs(clip)[0], train.with_inputs(view)[0]):
        clips = sample.clips.reshape(-1, *sample.clips.shape[-4:])
        assert clips.shape == (1, 3, recipe.frames, recipe.size, recipe.size)
    with torch.device("meta"):
        model = training.network_for(recipe.frames, network, 400)
        assert model(clips.to("meta")).shape == (1, 400)
    shorter = example.recipe_of(example.parse(["--full", "--epochs", "1"]), member)
    assert shorter.epochs == 1 and shorter.warmup_epochs < 1


def test_a_network_that_fuses_members_inside_is_a_member_like_any_other(example, whole, tmp_path):
    root = ["--data-root", str(whole / "data"), "--test-labels", str(whole / "data/test-labels.csv")]
    assert example.main(["--out", str(tmp_path), *root, *SMALL, "r2plus1d", "timesformer"]) == 0
    stack = vf.load_stack(tmp_path / "seed0/caches/val")
    assert stack.members == ("fused", "r2plus1d", "timesformer") and stack.shape == (5, 3, 2, 3)
    assert (tmp_path / "seed0/train/fused/stages.csv").read_text().count("\n") == 3
    assert vf.load_recipe(tmp_path / "seed0/ensemble.json").members == ("fused", "r2plus1d", "timesformer")
    before = computed(tmp_path)
    assert example.main(["--out", str(tmp_path), *root, *SMALL, "r2plus1d", "timesformer"]) == 0
    assert computed(tmp_path) == before
