"""Distillation: the loss by hand, a student that learns its teacher, and what stands in a run's way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from toy_videos import N_CLASSES, ToyLoader, same_state, state_of, toy

import vidfuse as vf
from vidfuse.errors import AlignmentError, InputError, VidfuseWarning
from vidfuse.training import TrainRecipe, train
from vidfuse.training.state import Run
from vidfuse.training.step import take_step
from vidfuse.training.teacher import Teacher, distillation_loss

QUIET = {"progress": False, "tensorboard": False}
RECIPE = TrainRecipe(lr=0.05, epochs=3, batch_size=8, reference_batch=8, precision="float32", distil=0.6)


def taught(n=24, k=N_CLASSES, seed=0, **options):
    """A prediction of the toy videos, in another order than theirs."""
    rng = np.random.default_rng(seed)
    ids = [f"video{i}" for i in range(n)][::-1]
    return vf.LogitStack.from_arrays({"fused": rng.normal(size=(n, k)) * 3}, ids=ids, **options)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_distance_is_that_of_the_formula(temperature):
    rng = np.random.default_rng(0)
    z, t = rng.normal(size=(2, 6, 4)) * 2
    q, p = log_softmax(z / temperature, axis=1), softmax(t / temperature, axis=1)
    expected = temperature**2 * (p * (np.log(p) - q)).sum(axis=1).mean()
    found = distillation_loss(torch.from_numpy(z), torch.from_numpy(log_softmax(t, axis=1)), temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_class_that_the_teacher_rules_out_costs_nothing():
    """Fused probabilities may be 0, by a linear pool or by rounding: 0 · log 0 is 0."""
    stack = vf.LogitStack.from_arrays({"fused": np.array([[0.8, 0.2, 0.0]])}, ids=["a"], kind="probabilities")
    z = torch.tensor([[1.0, -1.0, 3.0]], requires_grad=True)
    found = distillation_loss(z, Teacher(stack).log_likelihoods(["a"]), 2.0)
    t = softmax(np.log([0.8, 0.2]) / 2)
    expected = 4 * (t * (np.log(t) - log_softmax([0.5, -0.5, 1.5])[:2])).sum()
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert z.grad.isfinite().all()


def test_a_step_takes_the_labels_and_the_teacher_by_their_shares(tmp_path):
    """The loss of one step, against both parts by hand; the teacher's rows are found by id."""
    recipe, stack = replace(RECIPE, distil_temperature=3.0), taught()
    model, batch = toy(dropout=0.0), next(iter(ToyLoader()))
    run = Run(model, recipe, tmp_path, torch.device("cpu"), None, stack)
    model.train()
    with torch.no_grad():
        z = model(batch[0]).double().numpy()
    rows = [stack.ids.tolist().index(name) for name in batch[1]]
    t = stack.log_likelihoods()[rows, 0].astype(float) / 3
    hard = -log_softmax(z, axis=1)[np.arange(len(z)), batch[2].numpy()].mean()
    soft = 9 * (softmax(t, axis=1) * (log_softmax(t, axis=1) - log_softmax(z / 3, axis=1))).sum(axis=1).mean()
    summed, _ = take_step(run, model, [batch], 1 / len(z), 0.01)
    assert summed / len(z) == pytest.approx(0.4 * hard + 0.6 * soft, rel=1e-5)


def test_a_student_of_the_teacher_alone_comes_to_predict_as_it_does(tmp_path):
    teacher = toy(5, dropout=0.0).eval()
    loader = ToyLoader(n=48)
    with torch.no_grad():
        z = 4 * teacher(loader.clips)
    stack = vf.LogitStack.from_arrays({"fused": z.numpy()}, ids=loader.ids)
    recipe = replace(RECIPE, lr=0.1, epochs=30, distil=1.0, distil_temperature=1.0)
    student = train(toy(1, dropout=0.0), loader, recipe, tmp_path, teacher=stack, **QUIET).model
    with torch.no_grad():
        agree = (student(loader.clips).argmax(1) == z.argmax(1)).float().mean()
    assert agree > 0.85 > float((toy(1, dropout=0.0).eval()(loader.clips).argmax(1) == z.argmax(1)).float().mean())


def test_a_distilled_run_resumes_to_the_same_bits_and_only_with_its_teacher(tmp_path):
    stack = taught()
    whole = train(toy(), ToyLoader(), RECIPE, tmp_path / "whole", teacher=stack, **QUIET)
    train(toy(), ToyLoader(), replace(RECIPE, epochs=3), tmp_path / "again", teacher=stack[::-1], **QUIET)
    again = train(toy(seed=3), ToyLoader(), RECIPE, tmp_path / "again", teacher=stack, **QUIET)
    assert again.resumed_at == 3 and same_state(state_of(whole.model), state_of(again.model))
    with pytest.raises(InputError, match="differs in teacher"):
        train(toy(), ToyLoader(), RECIPE, tmp_path / "again", teacher=taught(seed=1), **QUIET)


def test_classes_go_by_their_names():
    stack = taught(classes=["walk", "jump", "run"])
    same = Teacher(stack, ["jump", "run", "walk"]).log_likelihoods(["video3"])
    assert torch.equal(same, Teacher(stack).log_likelihoods(["video3"])[:, [1, 2, 0]])
    with pytest.raises(AlignmentError, match="the teacher: its classes are others"):
        Teacher(stack, ["jump", "run", "swim"])


@pytest.mark.parametrize(
    ("teacher", "recipe", "message"),
    [
        (None, RECIPE, "expected a teacher, .* got none"),
        (taught(), replace(RECIPE, distil=0.0), "distil above 0 in the recipe, got distil=0.0"),
        (taught(n=20), RECIPE, "got none for .* of 8: 'video2"),
        (taught(k=4), RECIPE, "expected 3 classes, those of the network, got 4"),
        (vf.LogitStack.from_arrays({"a": np.zeros((2, 3))}), RECIPE, "expected one prediction .* and ids"),
        (vf.LogitStack.from_arrays(np.zeros((2, 2, 3)), ids=["a", "b"]), RECIPE, "fuse members by a recipe"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher, recipe, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(toy(), ToyLoader(), recipe, tmp_path, teacher=teacher, **QUIET)


@pytest.mark.parametrize(
    "fields", [{"distil": 1.5}, {"distil": -0.1}, {"distil_temperature": 0.0}, {"mixup": 0.2}, {"cutmix": 1.0}]
)
def test_recipes_out_of_range_or_with_mixed_videos_are_refused(fields):
    with pytest.raises(InputError, match="distil"):
        replace(RECIPE, **fields)


def test_a_teacher_whose_classes_are_in_another_order_is_warned_of(tmp_path):
    loader = ToyLoader(n=90)
    videos = type("Videos", (), {"ids": loader.ids, "labels": loader.labels.tolist(), "classes": None})
    loader.dataset = type("Data", (), {"videos": videos})
    turned = 4.0 * np.eye(N_CLASSES)[(loader.labels.numpy() + 1) % N_CLASSES]
    z = turned + np.random.default_rng(0).normal(size=turned.shape)
    with pytest.warns(VidfuseWarning, match="'teacher'"):
        Run(toy(), RECIPE, tmp_path, torch.device("cpu"), loader, vf.LogitStack.from_arrays({"f": z}, ids=loader.ids))
