"""Training: resumed runs, exact gradients, what is written, and what stops a run."""

import csv
import json
import math
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from toy_videos import N_CLASSES, Toy, ToyLoader, same_state, state_of, toy, toy_clips
from video_corpus import OddVideo, write

from vidfuse import networks
from vidfuse.errors import InputError
from vidfuse.metrics.intervals import accuracy_interval
from vidfuse.training import DivergedError, TrainRecipe, evaluate, learning_rate, progress, train
from vidfuse.training.checkpoints import load_checkpoint, save_checkpoint
from vidfuse.training.progress import decoding_hint
from vidfuse.training.state import logits_of

RECIPE = TrainRecipe(
    lr=0.05, epochs=4, warmup_epochs=1, batch_size=8, reference_batch=8, precision="float32", ema=0.9, clip_norm=1.0,
    mixup=0.2, cutmix=1.0, label_smoothing=0.1,
)  # fmt: skip
QUIET = {"progress": False, "tensorboard": False}


class Killed(Exception):
    pass


class DyingLoader(ToyLoader):
    """Dies in the middle of an epoch."""

    def __init__(self, at, **settings):
        super().__init__(**settings)
        self.at = at

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if self.epoch == self.at and number == 1:
                raise Killed
            yield batch


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_run_killed_in_any_epoch_resumes_to_the_same_bits(tmp_path, optimizer, at):
    recipe = replace(RECIPE, optimizer=optimizer)
    whole = train(toy(), ToyLoader(), recipe, tmp_path / "whole", val_loader=ToyLoader(seed=1), **QUIET)
    torch.manual_seed(99)  # the state of the world must not matter
    with pytest.raises(Killed):
        train(toy(), DyingLoader(at), recipe, tmp_path / "cut", val_loader=ToyLoader(seed=1), **QUIET)
    torch.manual_seed(7)
    resumed = train(
        toy(seed=5 if at else 0), ToyLoader(), recipe, tmp_path / "cut", val_loader=ToyLoader(seed=1), **QUIET
    )
    assert resumed.resumed_at == at
    assert same_state(state_of(whole.model), state_of(resumed.model))
    keys = ("epoch", "step", "lr", "loss", "grad_norm", "val_top1", "val_nll")
    assert [[row[k] for k in keys] for row in whole.history] == [[row[k] for k in keys] for row in resumed.history]


def test_a_finished_run_is_loaded_and_nothing_is_trained(tmp_path):
    first = train(toy(), ToyLoader(), RECIPE, tmp_path, **QUIET)
    loader = ToyLoader()
    again = train(toy(seed=1), loader, RECIPE, tmp_path, **QUIET)
    assert loader.asked == []
    assert again.resumed_at == RECIPE.epochs and again.history == first.history
    assert same_state(state_of(first.model), state_of(again.model))


def test_training_leaves_the_global_generator_alone(tmp_path):
    model = toy()
    before = torch.get_rng_state()
    train(model, ToyLoader(), RECIPE, tmp_path, **QUIET)
    assert torch.equal(before, torch.get_rng_state())


def test_accumulated_passes_are_one_step_on_the_whole_batch(tmp_path):
    recipe = replace(RECIPE, mixup=0.0, cutmix=0.0, ema=None, batch_size=9, reference_batch=9)
    one = train(toy(dropout=0.0, norm=False), ToyLoader(n=27, batch_size=9), recipe, tmp_path / "one", **QUIET)
    three = train(
        toy(dropout=0.0, norm=False), ToyLoader(n=27, batch_size=3), replace(recipe, accumulate=3), tmp_path / "three",
        **QUIET,
    )  # fmt: skip
    for a, b in zip(one.model.parameters(), three.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert one.history[-1]["loss"] == pytest.approx(three.history[-1]["loss"], rel=1e-5)
    assert one.history[-1]["step"] == three.history[-1]["step"]


def test_one_step_is_what_the_formulas_say(tmp_path):
    """Oracle: the gradient by autograd, clipped and stepped by hand (SGD with Nesterov momentum, first step)."""
    recipe = TrainRecipe(
        lr=0.1, epochs=1, batch_size=8, reference_batch=8, weight_decay=0.01, clip_norm=0.05, precision="float32"
    )
    loader = ToyLoader(n=8)
    (clips, _, labels) = next(iter(loader))
    expected = toy(dropout=0.0, norm=False)
    loss = cross_entropy(expected(clips), labels)
    grads = torch.autograd.grad(loss, list(expected.parameters()))
    norm = torch.sqrt(sum((g**2).sum() for g in grads))
    with torch.no_grad():
        for p, g in zip(expected.parameters(), grads, strict=True):
            g = g * min(1.0, 0.05 / (norm + 1e-6)) + (0.01 * p if p.ndim > 1 else 0.0)
            p -= 0.1 * (g + 0.9 * g)
    done = train(toy(dropout=0.0, norm=False), ToyLoader(n=8), recipe, tmp_path, **QUIET)
    for a, b in zip(done.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert done.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert done.history[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)


def test_the_average_is_kept_and_is_the_mean_that_its_decay_defines(tmp_path):
    recipe = replace(RECIPE, ema=0.5, epochs=1)
    seen = []

    class Watched(Toy):
        def forward(self, clips):
            if self.training:
                seen.append(self.classifier.weight.detach().clone())
            return super().forward(clips)

    torch.manual_seed(0)
    model = Watched(norm=False)
    done = train(model, ToyLoader(), recipe, tmp_path, **QUIET)
    steps = [*seen[1:], model.classifier.weight.detach()]  # the weights after each of the three steps
    mean = seen[0]
    for step, weight in enumerate(steps, start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * weight
    torch.testing.assert_close(done.model.classifier.weight, mean)


def test_a_network_learns_what_can_be_learned(tmp_path):
    recipe = TrainRecipe(lr=0.05, epochs=12, batch_size=8, reference_batch=8, precision="float32", optimizer="adamw")
    done = train(toy(dropout=0.0), ToyLoader(n=96), recipe, tmp_path, val_loader=ToyLoader(n=60, seed=1), **QUIET)
    assert done.history[-1]["val_top1"] > 0.9
    assert not done.model.training


def test_logs_are_written_once_a_row(tmp_path):
    train(toy(), ToyLoader(), RECIPE, tmp_path, progress=False)
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert not list(tmp_path.glob(".*.tmp"))
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 4


def test_a_resumed_run_keeps_every_epoch_of_tensorboards_log(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Killed):
        train(toy(), DyingLoader(2), RECIPE, tmp_path, progress=False)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 2)  # event files are read in the order of their seconds
    train(toy(), ToyLoader(), RECIPE, tmp_path, progress=False)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [3, 6, 9, 12]


def test_a_run_may_be_resumed_with_validation_videos(tmp_path):
    with pytest.raises(Killed):
        train(toy(), DyingLoader(2), RECIPE, tmp_path, **QUIET)
    train(toy(), ToyLoader(), RECIPE, tmp_path, val_loader=ToyLoader(n=8), **QUIET)
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["val_top1"] != "" for row in rows] == [False, False, True, True]


def test_validation_runs_in_the_precision_of_training(tmp_path):
    seen = []

    class Watched(Toy):
        def forward(self, clips):
            logits = super().forward(clips)
            seen.append((self.training, logits.dtype))
            return logits

    recipe = replace(RECIPE, precision="bfloat16", epochs=1, mixup=0.0, cutmix=0.0, ema=None)
    train(Watched(), ToyLoader(), recipe, tmp_path, val_loader=ToyLoader(n=8), **QUIET)
    assert set(seen) == {(True, torch.bfloat16), (False, torch.bfloat16)}


def test_the_bar_shows_speed_and_time_left_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(toy(), ToyLoader(), RECIPE, tmp_path, tensorboard=False, name="x3d")
    text = capsys.readouterr().err
    assert "x3d" in text and "clips/s" in text and "12/12" in text
    train(toy(), ToyLoader(), RECIPE, tmp_path, tensorboard=False)  # finished: there is nothing to show
    assert "train" not in capsys.readouterr().err


def test_a_line_an_epoch_tells_how_it_goes_also_where_it_is_redirected(tmp_path, capsys):
    done = train(toy(), ToyLoader(), RECIPE, tmp_path, tensorboard=False, name="x3d", val_loader=ToyLoader(seed=1))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == RECIPE.epochs and "clips/s" not in "".join(lines)
    for number, (line, row) in enumerate(zip(lines, done.history, strict=True), start=1):
        low, high = accuracy_interval(round(24 * row["val_top1"]), 24)
        assert line.startswith(
            f"x3d epoch {number}/4: loss {row['loss']:.3f}, validation {100 * row['val_top1']:.1f} %"
        )
        assert f"[{100 * low:.1f}, {100 * high:.1f}] of 24" in line
        best = max(done.history[:number], key=lambda r: (r["val_top1"], -r["val_nll"]))
        assert ("the best so far" in line) == (best is row)
        assert best is row or f"best {100 * best['val_top1']:.1f} % at epoch {best['epoch']}" in line
    train(toy(), ToyLoader(), RECIPE, tmp_path, tensorboard=False, val_loader=ToyLoader(seed=1))
    assert capsys.readouterr().err == ""


def test_the_best_epoch_is_kept_beside_the_last(tmp_path):
    recipe = replace(RECIPE, lr=0.5, ema=None, epochs=6)
    done = train(toy(), ToyLoader(), recipe, tmp_path, val_loader=ToyLoader(seed=1), **QUIET)
    best = max(done.history, key=lambda row: (row["val_top1"], -row["val_nll"]))
    state = load_checkpoint(tmp_path / "best.pt")
    assert state["epoch"] == best["epoch"] and set(state) == {
        "identity",
        "epoch",
        "step",
        "history",
        "model",
        "network",
    }
    model = toy(seed=3)
    model.load_state_dict(state["model"])
    scores = evaluate(model, ToyLoader(seed=1))
    assert (scores["top1"], scores["nll"]) == (best["val_top1"], pytest.approx(best["val_nll"]))
    plain = train(toy(), ToyLoader(), RECIPE, tmp_path / "unscored", **QUIET)
    assert plain.history and not (tmp_path / "unscored" / "best.pt").exists()


def test_a_run_is_given_more_epochs(tmp_path):
    """A run that was stopped goes on along the longer schedule; one that had ended does too, with fresh momentum."""
    longer = replace(RECIPE, epochs=6)
    first = train(toy(), ToyLoader(), RECIPE, tmp_path / "ended", **QUIET)
    more = train(toy(seed=1), ToyLoader(), longer, tmp_path / "ended", **QUIET)
    assert more.resumed_at == 4 and len(more.history) == 6 and more.history[:4] == first.history
    assert more.history[5]["lr"] == pytest.approx(learning_rate(longer, 5 + 2 / 3))
    assert train(toy(), ToyLoader(), longer, tmp_path / "ended", **QUIET).resumed_at == 6
    with pytest.raises(InputError, match="differs in epochs"):
        train(toy(), ToyLoader(), RECIPE, tmp_path / "ended", **QUIET)
    with pytest.raises(InputError, match="differs in lr"):
        train(toy(), ToyLoader(), replace(longer, epochs=8, lr=0.1), tmp_path / "ended", **QUIET)
    with pytest.raises(Killed):
        train(toy(), DyingLoader(2), RECIPE, tmp_path / "cut", **QUIET)
    assert train(toy(), ToyLoader(), longer, tmp_path / "cut", **QUIET).resumed_at == 2


def test_a_run_that_is_stopped_says_from_where_it_goes_on(tmp_path, capsys):
    class Stopped(ToyLoader):
        at = 0

        def __iter__(self):
            if self.epoch == self.at:
                raise KeyboardInterrupt
            return super().__iter__()

    loader = Stopped()
    with pytest.raises(KeyboardInterrupt):
        train(toy(), loader, RECIPE, tmp_path, tensorboard=False)
    assert "stopped in epoch 1 of 4: had no epoch yet: begins anew" in capsys.readouterr().err
    loader.at = 3
    with pytest.raises(KeyboardInterrupt):
        train(toy(), loader, RECIPE, tmp_path, tensorboard=False)
    assert "stopped in epoch 4 of 4: goes on after epoch 3 when started again" in capsys.readouterr().err
    train(toy(), ToyLoader(), RECIPE, tmp_path, tensorboard=False)
    assert capsys.readouterr().err.startswith("train: goes on after epoch 3 of 4\n")
    train(toy(), ToyLoader(), RECIPE, tmp_path / "new", tensorboard=False)
    lines = capsys.readouterr().err.splitlines()
    assert [line.endswith(" left") for line in lines] == [True, True, True, False]


def test_what_takes_long_is_heard_of_in_a_file_too(monkeypatch, capsys):
    clock = iter([0.0, 29.0, 31.0, 50.0, 62.0, 700.0, 1000.0, 1301.0, 1302.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    with progress.bar(10, 0, "extract a", "video", wanted=True, lines=True) as bar:
        for _ in range(8):
            bar.update()
    lines = [f"{n} of 10 videos, {left} left" for n, left in ((2, "2 min"), (4, "2 min"), (5, "12 min"), (7, "9 min"))]
    assert capsys.readouterr().err.splitlines() == [f"extract a: {line}" for line in lines]
    with progress.bar(None, 0, "extract a", "video", wanted=False, lines=True) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_a_run_says_what_helps_where_its_network_waits(tmp_path):
    path = write(OddVideo("mp4", "libx264"), tmp_path)
    dataset = SimpleNamespace(videos=[SimpleNamespace(path=path, id="a")], short_side=40)
    loader = SimpleNamespace(dataset=dataset)
    hint = decoding_hint(loader, 0.71, 60.0)
    assert "waits for its videos 71 % of the time" in hint and "--short-side 40" in hint and "a is 96 x 64" in hint
    assert decoding_hint(loader, 0.1, 60.0) is None and decoding_hint(ToyLoader(), 0.9, 60.0) is None
    assert decoding_hint(loader, 0.71, 2.0) is None
    small = write(OddVideo("mkv", "libx264", size=(40, 64)), tmp_path)
    dataset.videos = [SimpleNamespace(path=small, id="small"), *dataset.videos]  # the first does not tell for all
    assert "(a is 96 x 64)" in decoding_hint(loader, 0.71, 60.0)
    dataset.short_side = 60
    assert "more workers help" in decoding_hint(loader, 0.71, 60.0) and "shrink" not in decoding_hint(
        loader, 0.71, 60.0
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_videos(tmp_path):
    loader = ToyLoader()
    train(toy(), ToyLoader(), replace(RECIPE, epochs=1), tmp_path / "good", **QUIET)
    loader.clips[5] = float("nan")
    with pytest.raises(DivergedError, match=r"loss is nan: epoch 1, step \d, .*\bvideo5\b"):
        train(toy(), loader, RECIPE, tmp_path / "bad", **QUIET)
    assert not (tmp_path / "bad" / "last.pt").exists()


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    class Root(Toy):
        def forward(self, clips):
            return super().forward(clips) + 0 * self.conv.weight.sum().sub(self.conv.weight.sum()).sqrt()

    with pytest.raises(DivergedError, match=r"gradient's norm is nan: epoch 1, step 1"):
        train(Root(norm=False), ToyLoader(), RECIPE, tmp_path, **QUIET)


def test_a_gradient_that_no_loss_scale_makes_finite_stops_a_float16_run(tmp_path):
    class Root(Toy):
        def forward(self, clips):
            return super().forward(clips) + 0 * self.conv.weight.sum().sub(self.conv.weight.sum()).sqrt()

    recipe = replace(RECIPE, precision="float16", epochs=20, warmup_epochs=0, mixup=0.0, cutmix=0.0)
    with pytest.raises(DivergedError, match=r"every loss scale down to 1: epoch 6, step 17.*video"):
        train(Root(norm=False), ToyLoader(), recipe, tmp_path, **QUIET)


def test_a_folder_of_another_run_is_refused(tmp_path):
    train(toy(), ToyLoader(), RECIPE, tmp_path, **QUIET)
    with pytest.raises(InputError, match="differs in lr;"):
        train(toy(), ToyLoader(), replace(RECIPE, lr=0.01), tmp_path, **QUIET)
    with pytest.raises(InputError, match="differs in weights;"):
        train(toy(n_classes=5), ToyLoader(), RECIPE, tmp_path, **QUIET)


def test_a_folder_of_another_network_with_equal_weights_is_refused(tmp_path):
    """They may take other frames, as SlowFast's sources do."""

    def named(name):
        model = toy()
        model.name = name
        return model

    train(named("a"), ToyLoader(), replace(RECIPE, epochs=1), tmp_path, **QUIET)
    with pytest.raises(InputError, match="differs in network;"):
        train(named("b"), ToyLoader(), RECIPE, tmp_path, **QUIET)


def test_a_foreign_checkpoint_is_refused(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="expected a training checkpoint"):
        train(toy(), ToyLoader(), RECIPE, tmp_path, **QUIET)


def test_empty_and_unlabelled_loaders_are_refused(tmp_path):
    with pytest.raises(InputError, match="empty loader"):
        train(toy(), [], RECIPE, tmp_path, **QUIET)
    with pytest.raises(InputError, match=r"labelled videos to train on.*video"):
        train(toy(), ToyLoader(labelled=False), RECIPE, tmp_path, **QUIET)


def test_bfloat16_trains_on_a_cpu_too(tmp_path):
    recipe = replace(RECIPE, precision="bfloat16", epochs=1, mixup=0.0, cutmix=0.0)
    done = train(toy(), ToyLoader(), recipe, tmp_path, **QUIET)
    assert all(p.dtype == torch.float32 for p in done.model.parameters())
    assert done.history[0]["loss"] < 3


def test_float16_resumes_with_its_loss_scale(tmp_path):
    recipe = replace(RECIPE, precision="float16", mixup=0.0, cutmix=0.0)
    whole = train(toy(), ToyLoader(), recipe, tmp_path / "whole", **QUIET)
    with pytest.raises(Killed):
        train(toy(), DyingLoader(2), recipe, tmp_path / "cut", **QUIET)
    assert load_checkpoint(tmp_path / "cut" / "last.pt")["scaler"]["scale"] > 1
    resumed = train(toy(seed=3), ToyLoader(), recipe, tmp_path / "cut", **QUIET)
    assert same_state(state_of(whole.model), state_of(resumed.model))
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]
    assert all(math.isfinite(row["grad_norm"]) for row in whole.history)  # steps that overflow are left out


def test_label_smoothing_is_the_loss_of_smoothed_targets(tmp_path):
    loader = ToyLoader(n=8)
    clips, _, labels = next(iter(loader))
    with torch.no_grad():
        log_p = toy(dropout=0.0, norm=False)(clips).log_softmax(1)
    targets = 0.8 * torch.eye(N_CLASSES)[labels] + 0.2 / N_CLASSES
    recipe = TrainRecipe(lr=0.1, epochs=1, label_smoothing=0.2, precision="float32")
    done = train(toy(dropout=0.0, norm=False), loader, recipe, tmp_path, **QUIET)
    assert done.history[0]["loss"] == pytest.approx(float(-(targets * log_p).sum(1).mean()), rel=1e-5)


def small_x3d():
    torch.manual_seed(0)
    return networks.create("x3d_tiny", num_classes=N_CLASSES)


class Clips(ToyLoader):
    """Clips that are large enough for a network of the catalogue."""

    def __iter__(self):
        for clips, ids, labels in super().__iter__():
            yield torch.nn.functional.interpolate(clips, (4, 32, 32)), ids, labels


def test_activation_checkpointing_trains_the_same_network(tmp_path):
    recipe = TrainRecipe(lr=0.05, epochs=2, batch_size=8, precision="float32")
    plain = train(small_x3d(), Clips(n=16), recipe, tmp_path / "plain", **QUIET)
    sparing = replace(recipe, activation_checkpointing=True)
    spared = train(small_x3d(), Clips(n=16), sparing, tmp_path / "spared", **QUIET)
    assert [r["loss"] for r in spared.history] == pytest.approx([r["loss"] for r in plain.history], rel=1e-5)
    with pytest.raises(InputError, match="activation_checkpointing"):
        train(toy(), ToyLoader(), sparing, tmp_path / "toy", **QUIET)


def test_a_compiled_network_trains_and_its_checkpoint_is_the_plain_networks(tmp_path, monkeypatch):
    compiled = []
    compile_ = torch.compile

    def watched(module):
        compiled.append(module)
        return compile_(module, backend="eager")  # the compiler's front end; its C++ would take a minute

    monkeypatch.setattr(torch, "compile", watched)
    recipe = replace(RECIPE, epochs=2)
    plain = train(toy(), ToyLoader(), recipe, tmp_path / "plain", **QUIET)
    assert compiled == []
    fast = train(toy(), ToyLoader(), replace(recipe, compile=True), tmp_path / "fast", **QUIET)
    assert len(compiled) == 1
    assert load_checkpoint(tmp_path / "fast" / "last.pt")["model"].keys() == state_of(plain.model).keys()
    assert [r["loss"] for r in fast.history] == pytest.approx([r["loss"] for r in plain.history], rel=1e-4)


def test_frozen_parameters_stay(tmp_path):
    model = toy()
    model.conv.requires_grad_(False)
    before = state_of(model)
    done = train(model, ToyLoader(), RECIPE, tmp_path, **QUIET)
    assert torch.equal(done.model.conv.weight, before["conv.weight"])
    assert not torch.equal(done.model.classifier.weight, before["classifier.weight"])


def test_the_checkpoint_of_an_unfinished_run_gives_the_average_that_was_scored(tmp_path):
    recipe, stopped = replace(RECIPE, mixup=0.0, cutmix=0.0), tmp_path / "stopped"
    with pytest.raises(Killed):
        train(toy(), DyingLoader(2), recipe, stopped, val_loader=ToyLoader(n=30), **QUIET)
    model = toy(seed=9)
    model.load_state_dict(load_checkpoint(stopped / "last.pt")["model"])
    scores = load_checkpoint(stopped / "last.pt")["history"][-1]
    assert evaluate(model, ToyLoader(n=30))["nll"] == scores["val_nll"]


def test_the_first_checkpoints_go_on_to_the_same_bits(tmp_path):
    """They held the average of a run that had not ended as `ema`, and neither classes nor a digest of the videos."""
    whole = train(toy(), Told(), RECIPE, tmp_path / "whole", **QUIET)
    with pytest.raises(Killed):
        train(toy(), DyingLoader(2), RECIPE, tmp_path / "cut", **QUIET)
    state = load_checkpoint(tmp_path / "cut" / "last.pt")
    assert "videos" not in json.loads(state["identity"])
    save_checkpoint(tmp_path / "cut" / "last.pt", state | {"ema": state["model"], "model": state.pop("stepped")})
    resumed = train(toy(), Told(), RECIPE, tmp_path / "cut", **QUIET)
    assert resumed.resumed_at == 2 and same_state(state_of(whole.model), state_of(resumed.model))


def test_the_folder_of_networks_trained_together_is_refused(tmp_path):
    save_checkpoint(tmp_path / "last.pt", {"members": {}, "stages": []})
    with pytest.raises(InputError, match="of one network's run, got one that holds members, stages; train into"):
        train(toy(), ToyLoader(), RECIPE, tmp_path, **QUIET)


def test_what_gives_no_logits_is_told_of_forward():
    with pytest.raises(InputError, match=r"got \(2,\); pass forward=, a function \(model, batch\) -> logits"):
        logits_of(torch.zeros(2))


class Told(ToyLoader):
    """A loader that tells its videos."""

    def __init__(self, classes=("a", "b", "c"), labels=(0, 1, 2)):
        super().__init__()
        videos = type("Videos", (), {"ids": ("x", "y", "z"), "labels": labels, "classes": classes})
        self.dataset = type("Data", (), {"videos": videos})


def test_a_run_of_other_videos_or_classes_is_refused_where_they_are_told(tmp_path):
    train(toy(), Told(), RECIPE, tmp_path, **QUIET)
    train(toy(), Told(), RECIPE, tmp_path, **QUIET)
    train(toy(), ToyLoader(), RECIPE, tmp_path, **QUIET)
    with pytest.raises(InputError, match="differs in its training videos;"):
        train(toy(), Told(labels=(0, 1, 1)), RECIPE, tmp_path, **QUIET)
    with pytest.raises(InputError, match="differs in classes;"):
        train(toy(), Told(classes=("a", "b", "d")), RECIPE, tmp_path, **QUIET)


def test_networks_that_answer_with_an_object_train(tmp_path):
    class Answer:
        def __init__(self, logits):
            self.logits = logits

    class Wrapped(Toy):
        def forward(self, clips):
            return Answer(super().forward(clips))

    done = train(Wrapped(), ToyLoader(), RECIPE, tmp_path, **QUIET)
    assert len(done.history) == 4
    with pytest.raises(InputError, match=r"expected logits of shape \(N, K\)"):
        train(nn.Flatten(1, 2), ToyLoader(), RECIPE, tmp_path / "other", **QUIET)


def test_mixed_targets_have_the_width_of_the_classifier():
    assert toy()(toy_clips(2)[0]).shape[1] == N_CLASSES


class Scored(Told):
    """Validation videos that are told."""

    def __init__(self, labels=(0, 1, 2)):
        super().__init__(labels=labels)
        self.clips, self.ids, self.labels = toy_clips(16, seed=1)


def test_the_best_epoch_is_the_best_on_the_same_validation_videos(tmp_path):
    train(toy(), Told(), replace(RECIPE, epochs=2), tmp_path, val_loader=Scored(), **QUIET)
    with pytest.raises(InputError, match="differs in its validation videos;"):
        train(toy(), Told(), RECIPE, tmp_path, val_loader=Scored(labels=(2, 1, 0)), **QUIET)
    assert len(train(toy(), Told(), RECIPE, tmp_path, **QUIET).history) == 4  # nobody tells which videos those are


def test_the_best_epoch_of_a_run_that_was_taken_away_is_not_the_next_ones(tmp_path):
    """A folder without last.pt begins anew; what reads weights from a folder takes best.pt first."""
    train(toy(), ToyLoader(), RECIPE, tmp_path, val_loader=ToyLoader(seed=1), **QUIET)
    (tmp_path / "last.pt").unlink()
    with pytest.raises(InputError, match=r"expected .*best\.pt to be of this run, got one that differs in lr;"):
        train(toy(), ToyLoader(), replace(RECIPE, lr=0.01), tmp_path, **QUIET)
    train(toy(), ToyLoader(), RECIPE, tmp_path, **QUIET)
    assert not (tmp_path / "best.pt").exists()


@pytest.mark.parametrize("begun", [False, True])
def test_two_runs_in_one_folder_do_not_mix(tmp_path, begun):
    """The one that comes second at an epoch's end stops; the other's checkpoint is whole."""
    recipe = replace(RECIPE, epochs=3)
    if begun:
        train(toy(), ToyLoader(), replace(RECIPE, epochs=1), tmp_path, **QUIET)

    class Meanwhile(ToyLoader):
        def __iter__(self):
            if self.epoch == 1:
                train(toy(), ToyLoader(), recipe, tmp_path, **QUIET)
            yield from super().__iter__()

    with pytest.raises(InputError, match=r"for this run alone, but another process has written last\.pt"):
        train(toy(), Meanwhile(), recipe, tmp_path, **QUIET)
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 3
