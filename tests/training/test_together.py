"""Several networks on the same batches: each trains as it would alone, and their fusion is followed by stages."""

import csv
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_videos import Toy, ToyLoader, same_state, state_of, toy

import vidfuse as vf
from vidfuse.errors import InputError
from vidfuse.training import DivergedError, TrainRecipe, train, train_together
from vidfuse.training.checkpoints import load_checkpoint

RECIPE = TrainRecipe(lr=0.05, epochs=3, batch_size=8, reference_batch=8, precision="float32", ema=0.9, clip_norm=1.0)
RECIPES = {"a": RECIPE, "b": replace(RECIPE, lr=0.02, optimizer="adamw", ema=None)}


class Own(ToyLoader):
    """Each member has its own augmentation of the same videos."""

    def __iter__(self):
        for clips, ids, labels in super().__iter__():
            yield {"a": clips, "b": clips.flip(-1) + 0.1}, ids, labels


class Alone(ToyLoader):
    def __iter__(self):
        for clips, ids, labels in super().__iter__():
            yield clips.flip(-1) + 0.1, ids, labels


def models():
    return {"a": toy(1), "b": toy(2)}


def together(folder, loader=None, **settings):
    return train_together(
        models(), loader or Own(), RECIPES, folder, val_loader=Own(n=30, seed=1), progress=False, **settings
    )


def test_each_member_trains_as_it_would_alone(tmp_path):
    both = together(tmp_path / "both")
    alone = {
        "a": train(toy(1), ToyLoader(), RECIPES["a"], tmp_path / "a", progress=False, tensorboard=False),
        "b": train(toy(2), Alone(), RECIPES["b"], tmp_path / "b", progress=False, tensorboard=False),
    }
    for name, done in alone.items():
        assert same_state(state_of(done.model), state_of(both.models[name]))
        assert [r["loss"] for r in done.history] == [r["loss"] for r in both.histories[name]]


def test_a_stage_is_an_epoch_or_a_number_of_steps(tmp_path):
    assert [(r["epoch"], r["step"]) for r in together(tmp_path / "epochs").stages] == [(1, 3), (2, 6), (3, 9)]
    steps = together(tmp_path / "steps", stage_steps=2).stages
    assert [(r["epoch"], r["step"]) for r in steps] == [(1, 2), (1, 3), (2, 5), (2, 6), (3, 8), (3, 9)]


def test_scores_and_weights_are_those_of_the_members_predictions(tmp_path):
    done = together(tmp_path)
    clips, labels, ids = {"a": [], "b": []}, [], []
    for batch, names, y in Own(n=30, seed=1):
        labels.append(y)
        ids += names
        for name in clips:
            clips[name].append(batch[name])
    order = np.argsort(ids)
    labels = torch.cat(labels).numpy()[order]
    with torch.no_grad():
        logits = {name: done.models[name](torch.cat(clips[name])[order]).numpy() for name in clips}
    accuracy = {name: (z.argmax(1) == labels).mean() for name, z in logits.items()}
    last = done.stages[-1]
    for name in clips:
        assert last[f"top1_{name}"] == pytest.approx(accuracy[name])
        assert last[f"weight_{name}"] == pytest.approx(accuracy[name] / sum(accuracy.values()))
    stack = vf.LogitStack.from_arrays(logits, labels=labels)
    halves = np.zeros(30, bool)
    for k in range(3):  # every other video of a class, and classes take turns in who begins
        before = int((labels < k).sum())
        halves[np.flatnonzero(labels == k)[before % 2 :: 2]] = True
    hits = [
        vf.LogLinearPool(weights="accuracy").fit(stack[~half]).predict(stack[half]) == labels[half]
        for half in (halves, ~halves)
    ]
    assert last["fused_top1"] == pytest.approx(np.concatenate(hits).mean())


def test_another_pool_can_follow_the_fusion(tmp_path):
    done = together(tmp_path, pool=vf.LogLinearPool())
    assert all(row["weight_a"] + row["weight_b"] == pytest.approx(1) for row in done.stages)


def test_views_of_the_validation_videos_are_averaged(tmp_path):
    loader = Own(n=30, seed=1, views=2)
    done = train_together(models(), Own(), RECIPES, tmp_path, val_loader=loader, progress=False)
    assert 0 <= done.stages[-1]["fused_top1"] <= 1
    assert len(done.stages) == 3


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, at):
    class Dying(Own):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if self.epoch == at and number == 1:
                    raise Killed
                yield batch

    whole = together(tmp_path / "whole")
    with pytest.raises(Killed):
        together(tmp_path / "cut", Dying())
    again = together(tmp_path / "cut")
    assert again.resumed_at == at
    assert again.stages == whole.stages
    for name in RECIPES:
        assert same_state(state_of(again.models[name]), state_of(whole.models[name]))


def test_a_run_that_is_stopped_says_from_where_it_goes_on(tmp_path, capsys):
    class Stopped(Own):
        def __iter__(self):
            if self.epoch == 2:
                raise KeyboardInterrupt
            return super().__iter__()

    def run(loader):
        train_together(models(), loader, RECIPES, tmp_path, val_loader=Own(n=30, seed=1), tensorboard=False)

    with pytest.raises(KeyboardInterrupt):
        run(Stopped())
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("epoch 1/3: a loss") and told[0].endswith(" left")
    assert told[-1] == "stopped in epoch 3 of 3: goes on after epoch 2 when started again"
    run(Own())
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "a b: goes on after epoch 2 of 3" and not told[1].endswith(" left") and len(told) == 2


def test_each_stage_is_on_disk_when_it_ends_and_once_after_a_resumption(tmp_path, monkeypatch):
    class Dying(Own):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if self.epoch == 1 and number == 2:
                    raise Killed
                yield batch

    def steps():
        with open(tmp_path / "stages.csv", newline="") as file:
            return [int(row["step"]) for row in csv.DictReader(file)]

    with pytest.raises(Killed):
        together(tmp_path, Dying(), stage_steps=1)
    assert steps() == [1, 2, 3, 4, 5]
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 2)  # event files are read in the order of their seconds
    together(tmp_path, stage_steps=1)
    assert steps() == list(range(1, 10))
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("fused_top1")] == list(range(1, 10))
    assert [event.step for event in events.Scalars("loss_a")] == [3, 6, 9]


def test_validation_runs_in_each_members_precision(tmp_path):
    seen = {"a": set(), "b": set()}

    class Watched(Toy):
        def __init__(self, name):
            super().__init__()
            self.called = name

        def forward(self, clips):
            logits = super().forward(clips)
            seen[self.called].add((self.training, logits.dtype))
            return logits

    recipe = replace(RECIPE, epochs=1, ema=None)
    recipes = {"a": recipe, "b": replace(recipe, precision="bfloat16")}
    watched = {name: Watched(name) for name in recipes}
    train_together(watched, Own(), recipes, tmp_path, val_loader=Own(n=8), progress=False, tensorboard=False)
    for name, dtype in (("a", torch.float32), ("b", torch.bfloat16)):
        assert seen[name] == {(True, dtype), (False, dtype)}


def test_a_loss_that_is_not_finite_names_the_member(tmp_path):
    class Broken(Own):
        def __iter__(self):
            for clips, ids, labels in super().__iter__():
                yield {"a": clips["a"], "b": clips["b"] * float("nan")}, ids, labels

    with pytest.raises(DivergedError, match=r"^b: the loss is nan"):
        together(tmp_path, Broken())


def test_a_finished_run_trains_nothing(tmp_path):
    first = together(tmp_path)
    loader = Own()
    again = together(tmp_path, loader)
    assert loader.asked == [] and again.stages == first.stages
    with open(tmp_path / "stages.csv", newline="") as file:
        assert [float(row["fused_top1"]) for row in csv.DictReader(file)] == [row["fused_top1"] for row in first.stages]
    assert (tmp_path / "log_a.csv").exists() and (tmp_path / "log_b.csv").exists()
    for name, model in first.models.items():
        assert same_state(load_checkpoint(tmp_path / f"{name}.pt")["model"], state_of(model))


def test_what_does_not_match_is_refused(tmp_path):
    with pytest.raises(InputError, match="a recipe for each network"):
        train_together(models(), Own(), {"a": RECIPE}, tmp_path, val_loader=Own())
    with pytest.raises(InputError, match="equal epochs"):
        train_together(models(), Own(), RECIPES | {"b": replace(RECIPE, epochs=4)}, tmp_path, val_loader=Own())
    with pytest.raises(InputError, match="labelled validation videos"):
        train_together(models(), Own(), RECIPES, tmp_path, val_loader=Own(labelled=False), progress=False)
    together(tmp_path / "run")
    with pytest.raises(InputError, match="to hold"):
        train_together({"a": toy(1)}, Own(), {"a": RECIPE}, tmp_path / "run", val_loader=Own(), progress=False)
    for name, message in (("last", "other names than 'last'"), ("a/b", "expected a plain folder name")):
        named = {name: toy(1)}
        with pytest.raises(InputError, match=message):
            train_together(named, ToyLoader(), {name: RECIPE}, tmp_path / "named", val_loader=ToyLoader())
    assert not (tmp_path / "named").exists()
