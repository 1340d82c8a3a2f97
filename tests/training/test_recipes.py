"""Recipes: Table I, the schedule, and what a recipe refuses."""

import itertools
import math
from dataclasses import replace

import pytest

from vidfuse import networks
from vidfuse.errors import InputError
from vidfuse.training import TABLE_I, TINY, TrainRecipe, few_clips, learning_rate


@pytest.mark.parametrize(
    ("network", "lr", "epochs", "warmup"),
    [
        ("slowfast", 0.1, 256, 34),
        ("tin", 0.05, 200, 20),
        ("tpn", 0.1, 150, 10),
        ("swin", 0.001, 300, 20),
        ("r2plus1d", 0.1, 180, 0),
        ("timesformer", 0.05, 300, 20),
        ("x3d", 0.05, 180, 10),
    ],
)
def test_table_i(network, lr, epochs, warmup):
    recipe = TABLE_I[network]
    assert (recipe.lr, recipe.epochs, recipe.warmup_epochs) == (lr, epochs, warmup)
    clip = (8, 32) if network == "timesformer" else (32, 2)
    assert (recipe.frames, recipe.interval, recipe.size) == (*clip, 224)


def test_each_network_of_table_i_has_a_small_recipe_for_its_tiny_preset():
    assert set(TINY) == {f"{name}_tiny" for name in TABLE_I}
    assert set(TINY) <= set(networks.names())


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine():
    recipe = TrainRecipe(lr=0.2, epochs=30, warmup_epochs=10)
    rates = [learning_rate(recipe, e / 10) for e in range(301)]
    assert rates[0] == pytest.approx(0.002) and max(rates) == pytest.approx(0.2)
    rise = [b - a for a, b in itertools.pairwise(rates[:99])]
    assert max(rise) == pytest.approx(min(rise))
    for e in (10, 17.5, 25, 30):
        assert learning_rate(recipe, e) == pytest.approx(0.1 * (1 + math.cos(math.pi * (e - 10) / 20)))
    assert learning_rate(replace(recipe, warmup_epochs=30), 30) == pytest.approx(0.2)


def test_the_rate_scales_with_the_batch_as_stated():
    sgd = TrainRecipe(lr=0.1, epochs=1, batch_size=256, reference_batch=64)
    assert sgd.scaled_lr == pytest.approx(0.4)
    assert replace(sgd, optimizer="adamw").scaled_lr == pytest.approx(0.2)
    assert replace(sgd, batch_size=64).scaled_lr == 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0}, {"lr": math.nan}, {"epochs": 0}, {"warmup_epochs": 11}, {"optimizer": "lion"},
        {"precision": "int8"}, {"batch_size": 0}, {"accumulate": 3}, {"label_smoothing": 1.0},
        {"mixup": -1.0}, {"ema": 1.0}, {"erasing": 1.1}, {"clip_norm": 0.0}, {"clip_norm": -1.0},
        {"clip_norm": math.nan}, {"weight_decay": math.nan}, {"mixup": math.inf}, {"skip": -1}, {"ema": math.nan},
        {"warmup_epochs": math.nan}, {"label_smoothing": math.nan}, {"erasing": math.nan},
        {"epochs": 1.5}, {"epochs": True}, {"reference_batch": math.nan}, {"frames": math.nan}, {"size": math.inf},
        {"scenes": 1.1}, {"scenes": -0.1}, {"body_rate": 1.5}, {"body_rate": -0.1}, {"body_rate": math.nan},
        {"skip": 0.5}, {"seed": 0.5}, {"accumulate": 2.0}, {"batch_size": None}, {"lr": "0.1"}, {"compile": 1},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(InputError, match="expected"):
        replace(TrainRecipe(lr=0.1, epochs=10), **wrong)


def test_recipes_are_read_from_mappings():
    recipe = TrainRecipe.from_mapping({"lr": 0.2, "epochs": 3, "ema": None, "optimizer": "adamw"})
    assert recipe == TrainRecipe(lr=0.2, epochs=3, optimizer="adamw")
    assert TrainRecipe.from_mapping({"lr": 1}, TABLE_I["tin"]) == replace(TABLE_I["tin"], lr=1)


@pytest.mark.parametrize(
    "values",
    [
        {"lr": 0.1},
        {"lr": 0.1, "epochs": 1, "learning_rate": 2},
        {"lr": "0.1", "epochs": 1},
        {"lr": 0.1, "epochs": 1.5},
        {"lr": 0.1, "epochs": True},
        {"lr": 0.1, "epochs": 1, "compile": 1},
        {"lr": 0.1, "epochs": 1, "optimizer": 3},
    ],
)  # fmt: skip
def test_mappings_that_are_no_recipe_are_refused(values):
    with pytest.raises(InputError, match="expected"):
        TrainRecipe.from_mapping(values)


@pytest.mark.parametrize("n_videos", [5, 48, 500, 5000])
def test_a_recipe_of_few_clips_has_steps_enough_and_the_warm_ups_share_of_them(n_videos):
    for recipe in (*TINY.values(), *TABLE_I.values()):
        own = few_clips(recipe, n_videos)
        assert own.epochs * n_videos >= 600 * own.batch_size or own.epochs == recipe.epochs
        assert own.epochs >= recipe.epochs and own.scenes > 0
        assert own.warmup_epochs / own.epochs == pytest.approx(recipe.warmup_epochs / recipe.epochs)
        assert replace(own, epochs=recipe.epochs, warmup_epochs=recipe.warmup_epochs, scenes=0.0) == recipe
