"""Recipes of version 1 of the format are read by this release, with the probabilities of the day they were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vidfuse as vf

HERE = Path(__file__).parent / "recipe_v1"
SCORES = {"swin": np.array([[2.0, 0.5, -1.0]]), "x3d": np.array([[0.0, 1.0, 0.5]])}
EXPECTED = {
    "log_linear": [0.7383680832097719, 0.23899254362656935, 0.02263937316365881],
    "calibrated": [0.6426484546309936, 0.3134981181098995, 0.04385342725910675],
    "dynamic": [0.7383680832097719, 0.23899254362656935, 0.02263937316365881],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_version_1_recipe_predicts_what_it_did(name):
    recipe = vf.load_recipe(HERE / f"{name}.json")
    found = recipe.predict_proba(SCORES)[0]
    np.testing.assert_allclose(found, EXPECTED[name], rtol=1e-6)  # members enter a rule as float32
    assert recipe.members == ("swin", "x3d")
    assert recipe.classes == ("jump", "kick", "run")
    assert recipe.order_checked


def test_every_golden_is_tried():
    assert {path.stem for path in HERE.glob("*.json")} == set(EXPECTED)
