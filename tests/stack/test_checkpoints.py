"""Scores know the checkpoints that made them, through all that is done with a stack; others are refused."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from click.testing import CliRunner

import vidfuse as vf
from vidfuse.cache.writer import CacheWriter
from vidfuse.cli import main
from vidfuse.errors import CacheConflictError, InputError

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def write(folder, prints, rows=range(40), seed=0, views=None):
    """Write a cache for each member; rows of one seed are the same videos whoever asks for them."""
    for number, (name, fingerprint) in enumerate(prints.items()):
        rng = np.random.default_rng([seed, number])
        shape = (60, 3) if views is None else (60, views, 3)
        y = np.arange(60) % 3
        target = 2 * np.eye(3)[y] if views is None else 2 * np.eye(3)[y][:, None]
        z = (rng.normal(size=shape) + target).astype(np.float32)
        ids = [f"v{row:02d}" for row in rows]
        with CacheWriter(
            folder / name, expected_ids=ids, fingerprint=fingerprint, n_views=views, classes=["x", "y", "z"]
        ) as writer:
            writer.append(ids, z[list(rows)], y[list(rows)])
    return folder


@pytest.fixture
def caches(tmp_path):
    write(tmp_path / "val", {"swin": A, "x3d": B}, range(40))
    write(tmp_path / "test", {"swin": A, "x3d": B}, range(40, 60))
    write(tmp_path / "other", {"swin": A, "x3d": C}, range(40, 60))
    write(tmp_path / "swapped", {"swin": B, "x3d": A}, range(40, 60))
    write(tmp_path / "unknown", {"swin": None, "x3d": B}, range(40, 60))
    return tmp_path


def test_a_stack_keeps_its_fingerprints_whatever_is_done_with_it(tmp_path):
    write(tmp_path / "views", {"swin": A, "x3d": {"sha256": "00ff"}, "tin": None}, views=2)
    stack = vf.load_stack(tmp_path / "views")
    expected = {"swin": (A,), "x3d": ('{"sha256": "00ff"}',), "tin": ()}
    reduced = vf.reduce_views(stack, "mean-log")
    reduced.save(tmp_path / "again")
    for same in (
        stack,
        stack[::-1],
        stack[np.array([3, 1])],
        stack.select(["x3d", "tin", "swin"]),
        stack.with_groups(lambda name: name[:2]),
        reduced,
        pickle.loads(pickle.dumps(stack)),
        vf.load_stack(tmp_path / "views", views="vote"),
        vf.load_stack(tmp_path / "again"),
        vf.LogitStack.concatenate([stack[:9], stack[20:].select(["tin", "x3d", "swin"])]),
    ):
        assert same.fingerprints == expected
    assert not any(vf.load_stack(tmp_path / "views", checkpoints="any").fingerprints.values())
    assert not any(vf.LogitStack.from_arrays({"swin": np.zeros((2, 3))}).fingerprints.values())


def test_parts_of_one_member_are_of_one_checkpoint_unless_they_are_folds(tmp_path):
    parts = [
        vf.load_stack(write(tmp_path / str(n), {"swin": own}, range(20 * n, 20 * n + 20)))
        for n, own in enumerate("ABA")
    ]
    with pytest.raises(CacheConflictError, match=r"'swin': .* A in stack 0 and B in stack 1; .*folds=True"):
        vf.LogitStack.concatenate(parts)
    folds = vf.LogitStack.concatenate(parts, folds=True)
    assert folds.fingerprints == {"swin": ("A", "B")}
    assert vf.LogitStack.concatenate(parts[::2]).fingerprints == {"swin": ("A",)}
    several = [tmp_path / name for name in "012"]
    assert vf.load_stack(several, folds=True).fingerprints == {"swin": ("A", "B")}
    assert vf.load_stack(several, folds=True, checkpoints="any").fingerprints == {"swin": ()}
    with pytest.raises(CacheConflictError, match="fingerprint differs"):
        vf.load_stack(several, checkpoints="any")
    folds.save(tmp_path / "folds")
    assert vf.load_stack(tmp_path / "folds").fingerprints == {"swin": ("A", "B")}
    unknown = vf.load_stack(write(tmp_path / "unknown", {"swin": None}, range(30)))
    assert vf.LogitStack.concatenate([parts[2], unknown]).fingerprints == {"swin": ()}
    with pytest.raises(InputError, match="expected one of 'same', 'any', got 'folds'"):
        vf.load_stack(several, checkpoints="folds")


def test_a_recipe_of_folds_takes_what_its_fold_models_predict_alone_and_together(tmp_path):
    """Out-of-fold predictions of three models; elsewhere each, or their average, is one of those that the fit saw."""
    folds = [
        write(tmp_path / f"fold{n}", {"swin": own, "x3d": own}, range(20 * n, 20 * n + 20))
        for n, own in enumerate("ABC")
    ]
    stack = vf.LogitStack.concatenate(map(vf.load_stack, folds), folds=True)
    recipe = vf.load_recipe(
        vf.Recipe.from_fitted(vf.LogLinearPool("uniform").fit(stack), stack).save(tmp_path / "e.json")
    )
    assert recipe.fingerprints == {"swin": ("A", "B", "C"), "x3d": ("A", "B", "C")}
    hidden = [vf.load_stack(write(tmp_path / f"hidden{own}", {"swin": own, "x3d": own}, seed=5)) for own in "ABCD"]
    averaged = vf.LogitStack.concatenate(hidden[:3], repeats="mean-probability")
    assert averaged.fingerprints == stack.fingerprints
    for fine in (*hidden[:3], averaged):
        recipe.predict(fine)
    for bad in (hidden[3], vf.LogitStack.concatenate(hidden, repeats="mean-probability")):
        with pytest.raises(CacheConflictError, match="the fit saw the checkpoints A, B, C, and the stack has D"):
            recipe.predict(bad)


def test_row_62_a_recipe_refuses_other_checkpoints_and_names_both(caches):
    stack, test = vf.load_stack(caches / "val"), vf.load_stack(caches / "test")
    pool = vf.LogLinearPool("uniform").fit(stack)
    recipe = vf.load_recipe(vf.Recipe.from_fitted(pool, stack).save(caches / "e.json"))
    assert f"swin {A[:12]}…, x3d {B[:12]}…" in str(recipe)
    expected = pool.predict_proba(test)
    np.testing.assert_array_equal(recipe.predict_proba(test), expected)
    other = vf.load_stack(caches / "other")
    for call in (recipe.predict, recipe.predict_proba, recipe.predict_log_proba):
        with pytest.raises(CacheConflictError, match=f"member 'x3d': the fit saw the checkpoint {B}, .* has {C};"):
            call(other)
        call(other, checkpoints="any")
    with pytest.raises(CacheConflictError, match="of the member 'x3d': are they swapped"):
        recipe.predict(vf.load_stack(caches / "swapped"))
    with pytest.raises(CacheConflictError, match=f"{B}.*{C}.*while loading"):
        vf.leaderboard(stack, other)
    with pytest.raises(InputError, match="expected one of 'same', 'any'"):
        recipe.predict(test, checkpoints="all")
    vf.leaderboard(stack, vf.load_stack(caches / "other", checkpoints="any"))


def test_where_nothing_is_known_nothing_is_refused(caches):
    stack, unknown = vf.load_stack(caches / "val"), vf.load_stack(caches / "unknown")
    recipe = vf.Recipe.from_fitted(vf.LogLinearPool("uniform").fit(stack), stack)
    recipe.predict(unknown)
    recipe.predict({name: unknown.scores(name) for name in unknown.members})
    of_unknown = vf.Recipe.from_fitted(vf.LogLinearPool("uniform").fit(unknown), unknown)
    assert str(of_unknown).endswith(f"checkpoints: swin unknown, x3d {B[:12]}…")
    assert of_unknown.describe()["fingerprints"] == {"swin": "unknown", "x3d": [B]}
    of_unknown.predict(vf.load_stack(caches / "test"))
    with pytest.raises(CacheConflictError, match="'x3d'"):
        of_unknown.predict(vf.load_stack(caches / "other"))


def test_a_member_without_a_say_is_not_compared(caches):
    stack = vf.load_stack(caches / "val")
    pool = vf.LogLinearPool({"swin": 1, "x3d": 0}).fit(stack)
    vf.Recipe.from_fitted(pool, stack).predict(vf.load_stack(caches / "other"))


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_row_62_the_commands_refuse_other_checkpoints_unless_told(caches):
    recipe = caches / "e.json"
    assert run("fit", caches / "val", "--weights", "uniform", "--no-check", "--out", recipe).exit_code == 0
    commands = {
        "predict": (recipe, "--out", caches / "p.csv"),
        "evaluate": (recipe,),
        "submit": (recipe, "--out", caches / "s.txt"),
    }
    for command, args in commands.items():
        assert run(command, *args, caches / "test").exit_code == 0
        refused = run(command, *args, caches / "other")
        assert refused.exit_code == 2 and B in refused.output and C in refused.output
        assert "--checkpoints any" in refused.output
        assert run(command, *args, caches / "other", "--checkpoints", "any").exit_code == 0
    refused = run("report", caches / "val", "--test", caches / "other", "--out", caches / "r.html")
    assert refused.exit_code == 2 and "--checkpoints any" in refused.output


def test_info_tells_the_checkpoints_of_caches_and_recipes(caches):
    assert f"checkpoint: {C[:12]}…" in run("info", caches / "other").output
    assert "checkpoint: unknown" in run("info", caches / "unknown").output
    told = json.loads(run("info", caches / "unknown", "--json").output)["caches"]
    assert [told[name]["fingerprints"] for name in ("swin", "x3d")] == [["unknown"], [B]]
