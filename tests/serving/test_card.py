"""A model card says what the recipe knows, calls the rest unknown, and tells on which videos figures were taken."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from fusion_cases import CASES
from sklearn.base import clone

import vidfuse as vf
from vidfuse.cli import main
from vidfuse.errors import InputError
from vidfuse.serving.card import write_card

NAMES = ("swin", "tin", "x3d_m")


def make_stack(n=120, k=4, **options):
    rng = np.random.default_rng(0)
    y = np.arange(n) % k
    arrays = {name: (rng.normal(size=(n, k)) + 1.5 * np.eye(k)[y]).astype(np.float32) for name in NAMES}
    return vf.LogitStack.from_arrays(arrays, labels=y, ids=[f"v{i:03}" for i in range(n)], **options)


def recipe_of(rule, stack=None, **known):
    stack = make_stack() if stack is None else stack
    return replace(vf.Recipe.from_fitted(clone(rule).fit(stack), stack), **known)


@pytest.mark.parametrize("name", CASES)
def test_every_rule_has_a_card_that_names_members_and_choices(name):
    recipe = recipe_of(CASES[name])
    text = vf.model_card(recipe)
    for member in NAMES:
        assert re.search(rf"^\| {member} \|.*\| unknown \| not stated \|$", text, re.MULTILINE)
    for choice in recipe.rule.choices():
        assert choice[1:] in text
    assert "Fitted on 120 videos, as if each stood alone" in text
    assert "Not scored when this card was written" in text


def test_the_card_tells_checkpoints_sources_licences_groups_and_digests(tmp_path):
    stack = make_stack(classes=["jump", "ki|ck", "run", "walk"]).with_groups(lambda name: name[:3])
    prints = {"swin": ("1f", "2e"), "tin": ("as frames 3d",)}
    recipe = recipe_of(vf.LogLinearPool({"swin": 1, "tin": 3, "x3d_m": 0}), stack, fingerprints=prints)
    path = recipe.save(tmp_path / "both.json")
    card = write_card(
        recipe,
        path,
        sources={"swin": [tmp_path / "fold0.npz", "fold1.npz"], "x3d_m": "caches/val/x3d_m"},
        licences={"tin": "CC-BY 4.0"},
        board=vf.leaderboard(stack, rules={"the recipe": vf.LogLinearPool("uniform")}),
    )
    text = card.read_text()
    assert card == tmp_path / "both.card.md"
    assert f"| swin | 0.2500 | logits | {tmp_path.name}/fold0.npz, fold1.npz | `1f`, `2e` | not stated |" in text
    assert "| tin | 0.7500 | logits | not stated | `as frames 3d` | CC-BY 4.0 |" in text
    assert "| x3d_m | 0.0000 (not needed) | logits | val/x3d_m | unknown | not stated |" in text
    assert "models of several folds" in text and "ki\\|ck" in text
    assert "Fitted on 120 videos in 12 groups" in text
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    assert "each was predicted by rules that were fitted without it (5 folds, none of 12 groups split)" in text
    assert str(tmp_path) not in text


def test_figures_of_the_videos_of_the_fit_are_called_in_sample():
    stack = make_stack()
    board = vf.leaderboard(stack, stack, rules={"the recipe": vf.LogLinearPool("uniform")})
    assert "IN-SAMPLE" in vf.model_card(recipe_of(vf.LogLinearPool("uniform"), stack), board=board)


def test_the_card_gives_the_digest_of_large_arrays_too(tmp_path):
    path = (recipe := recipe_of(vf.DynamicPool(), make_stack(n=600))).save(tmp_path / "e.json")
    text = vf.model_card(recipe, path)
    assert hashlib.sha256((tmp_path / "e.safetensors").read_bytes()).hexdigest() in text


def test_the_cards_code_runs_on_the_recipe_beside_it(tmp_path, monkeypatch):
    recipe = recipe_of(vf.LogLinearPool({"swin": 1, "tin": 3, "x3d_m": 0}))
    card = write_card(recipe, recipe.save(tmp_path / "e.json"))
    code = re.search(r"```python\n(.*?)```", card.read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    scores = {"z1": np.zeros((2, 4)), "z2": np.ones((2, 4))}
    exec(compile(code, "card", "exec"), scores)  # noqa: S102
    assert scores["recipe"].members == NAMES


def test_other_members_are_refused_by_name():
    recipe = recipe_of(vf.LogLinearPool("uniform"))
    for told in ("sources", "licences"):
        with pytest.raises(InputError, match=f"{told}: .*unknown: 'slowfast'"):
            vf.model_card(recipe, **{told: {"slowfast": "a"}})


def test_fit_writes_the_card_beside_the_recipe(tmp_path):
    make_stack().save(tmp_path / "val")

    def fit(*options):
        args = ["fit", str(tmp_path / "val"), "--weights", "uniform", "--out", str(tmp_path / "e.json"), *options]
        return CliRunner().invoke(main, args)

    done = fit("--licence", "tin=MIT")
    assert done.exit_code == 0 and str(tmp_path / "e.card.md") in done.output
    text = (tmp_path / "e.card.md").read_text()
    assert "| tin | 0.3333 | logits | val/tin | unknown | MIT |" in text
    assert str(tmp_path) not in text and "5 folds" in text
    assert fit("--no-check").exit_code == 0
    assert "Not scored when this card was written" in (tmp_path / "e.card.md").read_text()


def test_a_record_renews_the_card_and_its_digests(tmp_path):
    make_stack().save(tmp_path / "val")
    recipe, card = tmp_path / "e.json", tmp_path / "e.card.md"
    runner = CliRunner()
    fit = ["fit", str(tmp_path / "val"), "--weights", "uniform", "--no-check", "--licence", "tin=MIT"]
    assert runner.invoke(main, [*fit, "--out", str(recipe)]).exit_code == 0
    for _ in range(2):
        done = runner.invoke(main, ["record", str(recipe), str(tmp_path / "val")])
        assert done.exit_code == 0, done.output
        text = card.read_text()
        digests = re.findall(r"`([0-9a-f]{64})`", text)
        assert hashlib.sha256(recipe.read_bytes()).hexdigest() in digests
        assert text.count("TrackRecord(") == text.count("## Files") == 1 and "| MIT |" in text
    other = tmp_path / "other.json"
    assert runner.invoke(main, ["record", str(recipe), str(tmp_path / "val"), "--out", str(other)]).exit_code == 0
    assert hashlib.sha256(other.read_bytes()).hexdigest() in (tmp_path / "other.card.md").read_text()


def test_a_fit_that_is_killed_while_it_cross_fits_leaves_no_card_of_another_recipe(tmp_path, monkeypatch):
    make_stack().save(tmp_path / "val")

    def fit(*weights):
        words = [word for name in weights for word in ("--weights", name)]
        return CliRunner().invoke(main, ["fit", str(tmp_path / "val"), *words, "--out", str(tmp_path / "e.json")])

    assert fit("uniform").exit_code == 0

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vidfuse.cli.ensembles._cross_fitted", killed)
    assert fit("accuracy").exit_code != 0
    recipe = (tmp_path / "e.json").read_bytes()
    assert hashlib.sha256(recipe).hexdigest() in (tmp_path / "e.card.md").read_text()
