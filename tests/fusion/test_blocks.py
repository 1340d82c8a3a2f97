"""Every rule that a recipe can hold predicts block by block what it predicts at once, to the bit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from fusion_cases import CASES, members
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

import vidfuse as vf
from vidfuse.cache.format import Part
from vidfuse.errors import AlignmentError, CacheCorruptError, InputError, VidfuseWarning
from vidfuse.formats.export import write_predictions
from vidfuse.fusion.agreement import warn_if_agreement_is_lost

N = 130


def stack_of(seed=0, kind="logits", present=None, dtype=np.float32):
    logits, y = members(N, seed)
    arrays = {name: z.astype(dtype) for name, z in logits.items()}
    if kind == "probabilities":
        arrays = {name: np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for name, z in arrays.items()}
    if present is None:
        return vf.LogitStack.from_arrays(arrays, labels=y, ids=[f"v{row:04d}" for row in range(N)], kind=kind)
    ids = {name: [f"v{row:04d}" for row in np.flatnonzero(has)] for name, has in zip(arrays, present, strict=True)}
    kept = {name: array[has] for (name, array), has in zip(arrays.items(), present, strict=True)}
    return vf.LogitStack.from_arrays(kept, ids=ids, kind=kind, join="outer")


@pytest.fixture(scope="module")
def fitted_rules():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VidfuseWarning)
        return {name: clone(rule).fit(stack_of()) for name, rule in CASES.items()}


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, N + 1), seed=st.integers(1, 3), double=st.booleans())
def test_blocks_are_the_whole_to_the_bit(fitted_rules, case, rows, seed, double):
    rule, test = fitted_rules[case], stack_of(seed, dtype=np.float64 if double else np.float32)
    for proba in (False, True):
        whole = rule.predict_proba(test) if proba else rule.predict_log_proba(test)
        blocks = rule.predict_blocks(test, proba=proba, rows_per_block=rows)
        assert blocks.shape == whole.shape and len(blocks) == N
        covered = 0
        for some, block in blocks:
            assert some.start == covered and some.stop - some.start == min(rows, N - covered)
            np.testing.assert_array_equal(block, whole[some])
            covered = some.stop
        assert covered == N
        np.testing.assert_array_equal(blocks[[5, 3, 99]], whole[[5, 3, 99]])


@pytest.mark.parametrize("case", [name for name, rule in CASES.items() if "missing" in rule.get_params(deep=False)])
def test_blocks_of_videos_that_lack_members_are_the_whole(case):
    rng = np.random.default_rng(1)
    present = rng.random((3, N)) < 0.8
    present[:, :40] = True  # some blocks lack nothing
    present[2] = True  # the one that knows all, which no rule leaves without a say
    test = stack_of(2, present=present)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VidfuseWarning)
        rule = clone(CASES[case]).set_params(missing="renormalise").fit(stack_of())
        whole = rule.predict_log_proba(test)
        for rows in (1, 7, 40):
            found = np.concatenate([block for _, block in rule.predict_blocks(test, rows_per_block=rows)])
            np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("how", ["mean-log", "mean-probability", "vote", "max"])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_a_recipe_reduces_views_block_by_block(how, kind):
    fit, test = (stack_of(seed) for seed in (0, 1))
    recipe = vf.Recipe.from_fitted(vf.LogLinearPool(weights="accuracy").fit(fit), fit, views=how)
    views = np.random.default_rng(0).normal(size=(N, 3, 3, 4)).astype(np.float32)
    if kind == "probabilities":
        views = np.exp(views) / np.exp(views).sum(axis=-1, keepdims=True)
    with_views = {name: views[:, m] for m, name in enumerate(fit.members)}
    test = vf.LogitStack.from_arrays(with_views, ids=[f"v{row}" for row in range(N)], kind=kind)
    whole = recipe.predict_proba(test)
    blocks = recipe.predict_blocks(test, proba=True, rows_per_block=17)
    assert "130 videos x 4 classes, probabilities, 17 at a time" in repr(blocks)
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), whole)
    if kind == "logits":  # plain arrays are what a recipe takes them for
        np.testing.assert_array_equal(recipe.predict_blocks(with_views, proba=True)[:], whole)


def test_the_members_agreement_is_looked_at_once_and_on_all_videos(monkeypatch):
    """Sorted by class, as a folder a class is, a block of one class says nothing of an order."""
    fit = stack_of()
    rule = vf.Calibrated(vf.SubsetPool(vf.LogLinearPool(weights="accuracy"))).fit(fit)
    seen = []

    def look(names, fitted, stack):
        seen.append(len(stack))
        warn_if_agreement_is_lost(names, fitted, stack)

    monkeypatch.setattr("vidfuse.fusion.rule.warn_if_agreement_is_lost", look)
    by_class = stack_of(1)[np.argsort(fit.labels, kind="stable")]
    blocks = rule.predict_blocks(by_class, rows_per_block=33)
    assert seen == [N] and len(list(blocks)) == 4 and seen == [N]
    rule.predict_log_proba(by_class)
    assert seen == [N, N]
    y = np.random.default_rng(0).integers(0, 4, N)
    alike = {name: 4 * np.eye(4)[y] for name in "ab"}
    plain = vf.LinearPool("uniform").fit(vf.LogitStack.from_arrays(alike))
    moved = vf.LogitStack.from_arrays({"a": alike["a"], "b": np.random.default_rng(1).permutation(alike["b"])})
    with pytest.warns(VidfuseWarning, match="agreed with the others on the videos of the fit"):
        plain.predict_blocks(moved)


def test_what_does_not_fit_is_refused_before_anything_is_computed():
    rule = vf.LinearPool("uniform").fit(stack_of())
    with pytest.raises(AlignmentError, match="missing"):
        rule.predict_blocks(stack_of().select(["a"]))
    for rows in (2.5, "7", 0, -3, True):
        with pytest.raises(InputError, match="rows_per_block"):
            rule.predict_blocks(stack_of(), rows_per_block=rows)
    with pytest.raises(IndexError):
        rule.predict_blocks(stack_of())[200]
    assert rule.predict_blocks(stack_of())[5:5].shape == (0, 4)


def test_each_part_is_checked_once_and_by_the_thread_that_needs_it(tmp_path, monkeypatch, fitted_rules):
    """A look at whether members agree reads some videos of all parts, and is not what a bad part is found by."""
    stack_of(1).save(tmp_path)
    checked = []
    known = Part.verify
    monkeypatch.setattr(Part, "verify", lambda part: (checked.append(part.path), known(part))[1])
    rule = fitted_rules["default"]
    blocks = rule.predict_blocks(vf.load_stack(tmp_path), rows_per_block=5)
    assert not checked
    path = write_predictions(blocks, tmp_path / "p.npy")
    np.testing.assert_array_equal(np.load(path), rule.predict_log_proba(stack_of(1)))
    needed = sorted(tmp_path / name for name in rule.needed_members())
    assert sorted(path.parent for path in checked) == needed
    damaged = checked[0]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.unlink()
    damaged.write_bytes(content)
    blocks = rule.predict_blocks(vf.load_stack(tmp_path), rows_per_block=5)
    with pytest.raises(CacheCorruptError, match=damaged.name):
        write_predictions(blocks, tmp_path / "damaged.npy")
    assert not (tmp_path / "damaged.npy").exists()
