"""Recipes: what is saved comes back bit by bit, and nothing that is wrong is taken for a recipe."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from functools import reduce
from operator import getitem

import numpy as np
import pytest
from fusion_cases import CASES
from sklearn.base import clone

import vidfuse as vf
from vidfuse import recipe as recipes
from vidfuse.errors import AlignmentError, CacheCorruptError, CacheFormatError, InputError
from vidfuse.recipe import hashed_ids
from vidfuse.selection.problem import best_single


def make_stack(n=80, k=4, members="abc", seed=0, **options):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    arrays = {m: (rng.normal(size=(n, k)) + 1.5 * np.eye(k)[y]).astype(np.float32) for m in members}
    options.setdefault("ids", [f"v{i}" for i in range(n)])
    options.setdefault("labels", y)
    return vf.LogitStack.from_arrays(arrays, **options)


@pytest.mark.parametrize("name", CASES)
def test_a_saved_rule_predicts_the_same_bits(name, tmp_path):
    stack, other = make_stack(), make_stack(n=23, seed=1)
    rule = clone(CASES[name]).fit(stack)
    recipe = vf.load_recipe(vf.Recipe.from_fitted(rule, stack).save(tmp_path / "ensemble.json"))
    assert type(recipe.rule) is type(rule)
    assert recipe.members == ("a", "b", "c")
    assert recipe.needed_members() == rule.needed_members()
    np.testing.assert_array_equal(recipe.predict_log_proba(other), rule.predict_log_proba(other))
    np.testing.assert_array_equal(recipe.predict(other), rule.predict(other))


def test_a_recipe_carries_members_classes_kinds_order_and_the_fit(tmp_path):
    stack = make_stack(
        classes=["jump", "kick", "run", "walk"], kind={"a": "logits", "b": "log-likelihoods", "c": "logits"}
    )
    pool = vf.LogLinearPool(weights={"a": 2.0, "b": 1.0, "c": 1.0}).fit(stack)
    path = vf.Recipe.from_fitted(pool, stack, views="mean-log").save(tmp_path / "ensemble.json")
    recipe = vf.load_recipe(path)
    assert recipe.classes == ("jump", "kick", "run", "walk")
    assert recipe.kinds == {"a": "logits", "b": "log-likelihoods", "c": "logits"}
    assert (recipe.views, recipe.order_checked, recipe.n_classes) == ("mean-log", True, 4)
    assert (recipe.fitted_on["videos"], recipe.fitted_on["best_single"]) == (80, best_single(stack))
    np.testing.assert_array_equal(recipe.fitted_on["ids"], hashed_ids(stack.ids))
    assert recipe.rule.get_params() == pool.get_params()
    assert recipe.was_fitted_on(stack[::-1]) and recipe.shared_videos(stack[:79]) == 79
    content = json.loads(path.read_text())
    assert (content["format"], content["version"]) == ("vidfuse-recipe", 1)


@pytest.mark.parametrize("n", [80, 10_001])
def test_row_63_a_recipe_counts_the_videos_of_its_fit(tmp_path, n):
    """Up to 10,000 hashed ids stand in the JSON; more in the file of arrays."""
    rng = np.random.default_rng(0)
    ids = [f"v{i}" for i in range(n + 50)]
    z = {name: rng.normal(size=(n + 50, 2)).astype(np.float32) for name in "ab"}
    stack = vf.LogitStack.from_arrays(z, labels=rng.integers(0, 2, n + 50), ids=ids)
    fit = stack[:n]
    path = vf.Recipe.from_fitted(vf.LogLinearPool(weights="uniform").fit(fit), fit).save(tmp_path / "e.json")
    recipe = vf.load_recipe(path)
    assert recipe.shared_videos(fit) == n and recipe.shared_videos(fit[: n - 1]) == n - 1
    assert recipe.shared_videos(stack[n - 7 : n + 50]) == 7
    assert recipe.shared_videos(stack[n:]) == 0 and not recipe.was_fitted_on(stack[n:])
    assert recipe.shared_videos(vf.LogitStack.from_arrays(z)) is None
    assert path.with_suffix(".safetensors").exists() == (n > 10_000)
    assert path.stat().st_size < 3000 + (0 if n > 10_000 else 8 * n)
    again = vf.load_recipe(recipe.save(tmp_path / "again.json"))
    np.testing.assert_array_equal(again.fitted_on["ids"], recipe.fitted_on["ids"])


def test_ids_are_hashed_some_at_once(monkeypatch):
    names = [f"v{i}" for i in range(10)]
    known = hashed_ids(names)
    monkeypatch.setattr(recipes, "_AT_ONCE", 3)
    np.testing.assert_array_equal(hashed_ids(names), known)
    np.testing.assert_array_equal(hashed_ids(np.array(names)), known)


def test_hashes_of_ids_do_not_collide():
    names = [f"v_Run_g{i // 1000:03}_c{i % 1000:03}" for i in range(100_000)]
    assert len(np.unique(hashed_ids(names))) == len(names)
    assert hashed_ids(["é"]) == hashed_ids(np.array(["é"]))


def test_row_24_the_sum_of_given_weights_is_kept(tmp_path):
    stack = make_stack()
    pool = vf.LogLinearPool(weights=[0.5, 1.0, 2.5]).fit(stack)
    recipe = vf.load_recipe(vf.Recipe.from_fitted(pool, stack).save(tmp_path / "ensemble.json"))
    np.testing.assert_allclose(recipe.rule.weights_, [0.125, 0.25, 0.625])
    assert recipe.rule.get_params()["weights"] == [0.5, 1.0, 2.5]


def test_row_46_a_recipe_without_ids_says_order_unchecked(tmp_path):
    stack = make_stack(ids=None)
    recipe = vf.Recipe.from_fitted(vf.LogLinearPool(weights="uniform").fit(stack), stack)
    loaded = vf.load_recipe(recipe.save(tmp_path / "ensemble.json"))
    assert not loaded.order_checked
    assert "order unchecked" in str(loaded)
    assert loaded.describe()["order"] == "unchecked"
    assert not loaded.was_fitted_on(stack)


def test_a_mapping_of_arrays_is_taken_by_name_in_any_order():
    stack = make_stack()
    pool = vf.LogLinearPool(weights="accuracy").fit(stack)
    recipe = vf.Recipe.from_fitted(pool, stack)
    arrays = {name: stack.scores(name)[:7] for name in reversed(stack.members)}
    np.testing.assert_allclose(recipe.predict_proba(arrays), pool.predict_proba(stack[:7]), rtol=1e-6)


def test_views_are_reduced_as_the_recipe_says():
    stack = make_stack()
    recipe = vf.Recipe.from_fitted(vf.LogLinearPool().fit(stack), stack, views="mean-log")
    rng = np.random.default_rng(2)
    views = {"a": rng.normal(size=(5, 3, 4)), "b": rng.normal(size=(5, 2, 4)), "c": rng.normal(size=(5, 4))}
    reduced = {m: z - np.log(np.exp(z).sum(axis=-1, keepdims=True)) for m, z in views.items()}
    by_hand = {m: z.mean(axis=1) if z.ndim == 3 else z for m, z in reduced.items()}
    np.testing.assert_allclose(recipe.predict_proba(views), recipe.predict_proba(by_hand), rtol=1e-5)


def test_row_52_missing_and_added_members_are_named():
    stack = make_stack()
    recipe = vf.Recipe.from_fitted(vf.LogLinearPool(weights="accuracy").fit(stack), stack)
    z = np.zeros((2, 4))
    with pytest.raises(AlignmentError, match=r"missing \['c'\], not in the recipe \['d'\]"):
        recipe.predict({"a": z, "b": z, "d": z})
    with pytest.raises(AlignmentError, match=r"missing: '?c"):
        recipe.predict(stack.select(["a", "b"]))


def test_row_52_a_pool_that_renormalises_goes_on_with_the_members_that_are_there():
    stack = make_stack()
    pool = vf.LogLinearPool(weights="uniform", missing="renormalise").fit(stack)
    recipe = vf.Recipe.from_fitted(pool, stack)
    without = recipe.predict_proba({name: stack.scores(name) for name in ("a", "b")})
    np.testing.assert_allclose(without, pool.predict_proba(stack.select(["a", "b"])), rtol=1e-6)


def test_other_classes_are_refused():
    stack = make_stack(classes=["jump", "kick", "run", "walk"])
    recipe = vf.Recipe.from_fitted(vf.LogLinearPool(weights="uniform").fit(stack), stack)
    with pytest.raises(AlignmentError, match="class 1 is 'kick' in the recipe and 'run' in the stack"):
        recipe.predict(make_stack(classes=["jump", "run", "kick", "walk"]))
    with pytest.raises(AlignmentError, match="4 classes, the stack has 3"):
        recipe.predict(make_stack(k=3))
    with pytest.raises(InputError, match="expected a LogitStack or a mapping"):
        recipe.predict(np.zeros((2, 3, 4)))


def test_only_a_fitted_rule_and_its_own_stack_make_a_recipe():
    stack = make_stack()
    with pytest.raises(InputError, match="call fit"):
        vf.Recipe.from_fitted(vf.LogLinearPool(), stack)
    with pytest.raises(AlignmentError, match="pass the stack of the fit"):
        vf.Recipe.from_fitted(vf.LogLinearPool(weights="uniform").fit(stack), stack.select(["a", "b"]))
    named = make_stack(classes=list("wxyz"))
    pool = vf.LogLinearPool(weights="uniform").fit(named)
    with pytest.raises(AlignmentError, match="another order: class 0 is 'w' in the fit and 'z' in the stack"):
        vf.Recipe.from_fitted(pool, make_stack(classes=list("zyxw")))
    with pytest.raises(AlignmentError, match="fitted on 4 classes, the stack has 3"):
        vf.Recipe.from_fitted(pool, make_stack(k=3))


def test_an_array_is_a_stack_for_a_recipe_too():
    z = np.random.default_rng(0).normal(size=(30, 2, 3))
    recipe = vf.Recipe.from_fitted(vf.LogLinearPool(weights="uniform").fit(z), z)
    assert recipe.members == ("member0", "member1") and not recipe.order_checked
    np.testing.assert_array_equal(recipe.predict(vf.LogitStack.from_arrays(z)), z.mean(axis=1).argmax(axis=1))


def with_state(**state):
    stack = make_stack()
    pool = vf.LogLinearPool(weights="uniform").fit(stack)
    for name, value in state.items():
        setattr(pool, name, value)
    return vf.Recipe.from_fitted(pool, stack)


def test_every_plain_value_comes_back(tmp_path):
    state = {
        "numbers_": [1, 2.5, math.inf, -math.inf, True, None, 0.1 + 0.2],
        "pair_": ("a", (1, 2)),
        "table_": {"x": {"y": [1.0]}},
        "small_": np.array([[1.5, np.nan], [np.inf, 1e-300]]),
        "exact_": np.float64(1) / 3,
        "large_": np.random.default_rng(0).normal(size=(40, 50)),
        "flags_": np.arange(1000) % 3 == 0,
        "names_": np.array(["swin", "x3d"]),
        "none_": np.zeros((0, 3)),
    }
    path = with_state(**state).save(tmp_path / "ensemble.json")
    loaded = vars(vf.load_recipe(path).rule)
    assert (tmp_path / "ensemble.safetensors").exists()
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(loaded[name], value)
            assert loaded[name].dtype == value.dtype
            assert loaded[name].shape == value.shape
        else:
            assert loaded[name] == value
            assert type(loaded[name]) is type(value) or isinstance(value, np.generic)
    assert "NaN" not in path.read_text()


def test_small_recipes_are_one_file(tmp_path):
    with_state().save(tmp_path / "ensemble.json")
    assert [file.name for file in tmp_path.iterdir()] == ["ensemble.json"]


def test_a_value_that_json_cannot_hold_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot hold LogLinearPool\.odd_, of type object"):
        with_state(odd_=object()).save(tmp_path / "ensemble.json")
    assert list(tmp_path.iterdir()) == []


def test_a_function_is_kept_as_its_name_only(tmp_path):
    loaded = vf.load_recipe(with_state(rule_=make_stack).save(tmp_path / "ensemble.json"))
    assert loaded.rule.rule_.endswith(".make_stack")


def edited(tmp_path, change):
    path = with_state(large_=np.zeros(1000)).save(tmp_path / "ensemble.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def set_entry(*keys, value):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_entry("format", value="other"), "expected a recipe"),
        (set_entry("version", value=2), "version 2.*upgrade"),
        (set_entry("version", value="1"), "version '1'"),
        (set_entry("fuser", "$fuser", value="Popen"), "rule 'Popen', which this release"),
        (set_entry("fuser", "fitted", value={"__class__": 1}), "name of a fitted attribute"),
        (set_entry("fuser", "fitted", value={"predict": 1}), "name of a fitted attribute"),
        (set_entry("fuser", "params", value={"nothing": 1}), "damaged"),
        (set_entry("fuser", "fitted", "large_", value={"$tensor": "absent"}), "damaged"),
        (set_entry("arrays", "file", value="../ensemble.safetensors"), "must lie beside"),
        (lambda content: content.pop("members"), "damaged"),
        (lambda content: content.pop("fuser"), "damaged"),
    ],
)
def test_row_33_what_is_no_recipe_of_this_release_is_a_format_error(change, message, tmp_path):
    with pytest.raises(CacheFormatError, match=message):
        vf.load_recipe(edited(tmp_path, change))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\x80"])
def test_row_33_what_is_no_json_object_is_a_format_error(text, tmp_path):
    path = tmp_path / "ensemble.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CacheFormatError, match="expected a recipe"):
        vf.load_recipe(path)


def test_row_31_one_flipped_bit_in_the_arrays_is_a_corrupt_error(tmp_path):
    path = with_state(large_=np.ones(1000)).save(tmp_path / "ensemble.json")
    arrays = tmp_path / "ensemble.safetensors"
    data = bytearray(arrays.read_bytes())
    data[-5] ^= 1
    arrays.write_bytes(data)
    with pytest.raises(CacheCorruptError, match="expected SHA-256"):
        vf.load_recipe(path)


def test_saving_again_replaces_the_file_and_leaves_nothing_else(tmp_path):
    with_state(first_=1).save(tmp_path / "ensemble.json")
    with_state(second_=2).save(tmp_path / "ensemble.json")
    assert hasattr(vf.load_recipe(tmp_path / "ensemble.json").rule, "second_")
    assert [file.name for file in tmp_path.iterdir()] == ["ensemble.json"]


@pytest.mark.parametrize("at", ["recipe", "arrays"])
def test_a_kill_between_two_files_leaves_the_recipe_that_was_there(at, tmp_path, monkeypatch):
    """As `vidfuse record` writes into the recipe that it read: at each moment one of both is there, whole."""
    path = with_state(large_=np.zeros(1000)).save(tmp_path / "ensemble.json")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(recipes, {"recipe": "replace", "arrays": "publish"}[at], killed)
        with pytest.raises(KeyboardInterrupt):
            with_state(large_=np.ones(1000)).save(path)
    assert not vf.load_recipe(path).rule.large_.any()
    for number in (2, 3, 3):
        with_state(large_=np.full(1000, number)).save(path)
        assert (vf.load_recipe(path).rule.large_ == number).all()
    arrays = recipes.arrays_beside(path)
    assert arrays == tmp_path / "ensemble.safetensors"  # the name by which people know it, once it is free
    others = [entry for entry in tmp_path.iterdir() if entry not in (path, arrays)]
    assert len(others) == (at == "recipe")  # what was killed wrote its arrays, which no recipe names


def test_of_two_that_save_at_once_one_is_kept_whole(tmp_path, monkeypatch):
    path, write = tmp_path / "ensemble.json", recipes.replace

    def meanwhile(target, data):
        with monkeypatch.context() as patched:
            patched.setattr(recipes, "replace", write)
            with_state(large_=np.ones(1000)).save(path)
        return write(target, data)

    with monkeypatch.context() as patched:
        patched.setattr(recipes, "replace", meanwhile)
        with_state(large_=np.zeros(1000)).save(path)
    assert not vf.load_recipe(path).rule.large_.any()


def test_a_recipe_is_not_called_as_its_arrays_are(tmp_path):
    with pytest.raises(InputError, match=r"e\.safetensors: a recipe is JSON, .* call it \.json"):
        with_state(large_=np.zeros(1000)).save(tmp_path / "e.safetensors")
    assert not list(tmp_path.iterdir())


def test_arrays_of_another_recipe_stay_where_a_copy_names_them(tmp_path):
    first = with_state(large_=np.zeros(1000)).save(tmp_path / "first.json")
    copy = tmp_path / "copy.json"
    copy.write_bytes(first.read_bytes())
    with_state(large_=np.ones(1000)).save(copy)
    assert not vf.load_recipe(first).rule.large_.any()
    with_state(small_=1).save(copy)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["copy.json", "first.json", "first.safetensors"]


def test_the_file_is_for_people_to_read(tmp_path):
    state = {"list_": [1, [2.5, "a]\\[b"], []], "array_": np.arange(6.0).reshape(2, 3), "text_": "two\nlines"}
    path = with_state(**state).save(tmp_path / "ensemble.json")
    text = path.read_text()
    assert '"members": ["a", "b", "c"],' in text
    assert '"$array": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],' in text
    loaded = vf.load_recipe(path).rule
    assert (loaded.list_, loaded.text_) == (state["list_"], state["text_"])


# --- A recipe that was edited by hand -----------------------------------------------------------------------------


def saved(tmp_path, rule=None, large=False):
    """Save a recipe that knows all that a recipe can know; return its path and its content."""
    stack = make_stack(n=600 if large else 80, classes=["jump", "kick", "run", "walk"])
    fitted = (vf.LogLinearPool() if rule is None else clone(rule)).fit(stack)
    recipe = vf.Recipe.from_fitted(fitted, stack, views={"a": "vote", "b": "mean-log", "c": "max"})
    recipe = replace(recipe, fingerprints={"a": ("1f",), "b": ("2e", "3d")})
    path = recipe.save(tmp_path / "ensemble.json")
    return path, json.loads(path.read_text())


def leaves(value, keys=()):
    """Run through the places of a JSON value, the inner ones first; of a long list the first and the last."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    items = list(items)
    for key, item in items if len(items) < 8 or isinstance(value, dict) else [items[0], items[-1]]:
        yield from leaves(item, (*keys, key))
    if keys:
        yield keys


def mutations(value):
    """Return what may stand in a value's place after an edit."""
    found = [None, "x", -1, 1e9, math.nan, [], {}, [1, "x"], {"$float": "nan"}, {"$tensor": "absent"}]
    if isinstance(value, bool):
        found.append(not value)
    elif isinstance(value, int | float):
        found += [value + 1, -value - 0.25, 2.0 * value + 3]
    elif isinstance(value, str):
        found += [value + "x", ""]
    elif isinstance(value, list):
        found += [value[:-1], [*value, *value[:1]], value[::-1]]
    elif isinstance(value, dict) and value:
        found += [{**value, "more": 1}, dict(list(value.items())[1:])]
    return [new for new in found if json.dumps(new) != json.dumps(value)]


MUTATED = {
    "pool": vf.LogLinearPool(),
    "calibrated": vf.Calibrated(vf.LinearPool({"a": 1, "b": 2, "c": 1}), vf.VectorScaling(), where="members"),
    "dynamic": vf.DynamicPool(),
    "subset": vf.SubsetPool(vf.LogLinearPool("accuracy"), max_members=2),
}


@pytest.mark.parametrize("name", MUTATED)
def test_a_field_that_was_changed_is_refused_and_without_the_digest_refused_or_harmless(name, tmp_path):
    """Harmless: what is read predicts probabilities, for it could have been written so. Every place, by turns."""
    path, content = saved(tmp_path, MUTATED[name])
    places = list(leaves(content))
    rng = np.random.default_rng(0)
    arrays = {member: np.random.default_rng(3).normal(size=(5, 4)) for member in "abc"}
    assert len(places) > 60
    refused = kept = 0
    for keys in places:
        *within, last = keys
        choices = mutations(reduce(getitem, keys, content))
        new = choices[rng.integers(len(choices))]
        for signed in (True, False):
            changed = json.loads(json.dumps(content))
            reduce(getitem, within, changed)[last] = new
            if not signed:
                changed.pop("digest", None)
            path.write_text(json.dumps(changed))
            try:
                recipe = vf.load_recipe(path)
                assert not signed or keys == ("vidfuse",) or keys == ("digest",), (keys, new)
                found = recipe.predict_proba({member: arrays[member] for member in recipe.needed_members()})
                np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6, err_msg=f"{keys}: {new}")
                str(recipe), recipe.describe()
                kept += 1
            except (CacheFormatError, CacheCorruptError) as error:
                assert str(path.with_suffix("")) in str(error)
                refused += 1
    assert refused > len(places) and kept > 0


@pytest.mark.parametrize(
    ("keys", "new", "message"),
    [
        (("members", 1), "bb", "kinds: expected one for each of .*'bb'"),
        (("members",), ["a", "a", "c"], "more than once"),
        (("members",), "abc", "members: expected a list of texts"),
        (("n_classes",), 5, "classes: expected 5 different names, got 4"),
        (("n_classes",), "4", "n_classes: expected a whole number"),
        (("classes", 0), "walk", "classes: expected 4 different names"),
        (("classes", 0), "jumps", "classes: they are others than fuser.class_names_"),
        (("kinds", "a"), "logit", "kinds: a: .*'logit'"),
        (("kinds",), {"a": "logits"}, "kinds: expected one for each of"),
        (("views", "b"), "median", "views: expected .*got 'median'"),
        (("views",), 3, "views: expected .*got 3"),
        (("order",), "yes", "order: expected one of 'checked by id', 'unchecked', got 'yes'"),
        (("fitted_on", "videos"), 0, "fitted_on: videos: expected a number of at least 1, got 0"),
        (("fitted_on", "videos"), 79, "fitted_on: ids: expected those of 79 videos, got 80"),
        (("fitted_on", "best_single"), "d", "best_single: expected one of .*got 'd'"),
        (("fingerprints", "d"), ["1f"], "fingerprints: expected those of .*'d'"),
        (("fingerprints", "a"), "1f", "fingerprints: a: expected a list of texts"),
        (
            ("fuser", "fitted", "weights_", "$array", 0),
            0.9,
            r"fuser.weights_: expected weights that sum to 1, got a sum",
        ),
        (("fuser", "fitted", "weights_", "$array", 0), -0.1, r"fuser.weights_: expected finite weights .* got -0.1"),
        (("fuser", "fitted", "weights_", "$array", 0), math.nan, r"fuser.fitted.weights_.\$array.0: expected a finite"),
        (("fuser", "fitted", "weights_", "$array"), [1.0], r"fuser.fitted.weights_: expected an array .* shape \[3\]"),
        (("fuser", "fitted", "weights_"), {"$array": [1.0], "dtype": "<f8", "shape": [1]}, r"weights_: .* shape \(3\)"),
        (("fuser", "fitted", "floor_", "$array", 2), 1.5, "fuser.floor_: expected floors .* below 1, got 1.5"),
        (("fuser", "fitted", "floor_", "$array", 2), {"$float": "nan"}, "fuser.floor_: expected floors .* got nan"),
        (("fuser", "fitted", "scale_", "$array", 2), 0, "fuser.scale_: expected positive finite scales, got 0.0"),
        (("fuser", "fitted", "temperature_"), -2, "fuser.temperature_: expected a positive finite number, got -2"),
        (("fuser", "fitted", "class_bias_", "$array", 1), {"$float": "inf"}, "class_bias_: expected finite numbers"),
        (("fuser", "fitted", "members_", "$tuple", 0), "d", "fuser.members_: expected the members"),
        (("fuser", "fitted", "classes_", "$array", 0), 3, "fuser.classes_: expected the numbers 0 to 3"),
        (("fuser", "fitted", "floor_"), None, "fuser: it cannot predict"),
        (("fuser", "fitted"), {}, "fuser.members_"),
        (("fuser", "fitted", "temperature_"), 1.23, 'changed after it was written.*delete the line "digest"'),
    ],
    ids=lambda value: "/".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_an_edited_recipe_is_refused_by_the_name_of_the_field(keys, new, message, tmp_path):
    path, content = saved(tmp_path)
    *within, last = keys
    reduce(getitem, within, content)[last] = new
    path.write_text(json.dumps(content))
    with pytest.raises((CacheFormatError, CacheCorruptError), match=message):
        vf.load_recipe(path)


def test_weights_that_do_not_sum_to_what_the_file_says_are_refused(tmp_path):
    path, content = saved(tmp_path, vf.LogLinearPool([0.5, 1.0, 2.5]))
    for name, value, message in (
        ("weight_sum_", 5.0, "fuser.weight_sum_: the weights given sum to 4, and the sum said is 5.0"),
        (
            "weights_",
            {"$array": [0.2, 0.3, 0.5], "dtype": "<f8", "shape": [3]},
            "the weights given divided by their sum",
        ),
    ):
        changed = json.loads(json.dumps(content))
        changed["fuser"]["fitted"][name] = value
        path.write_text(json.dumps(changed))
        with pytest.raises(CacheFormatError, match=message):
            vf.load_recipe(path)


def test_a_meant_change_is_read_once_the_digest_is_deleted_and_blanks_never_count(tmp_path):
    path, content = saved(tmp_path)
    path.write_text(json.dumps(content, indent=7))
    vf.load_recipe(path)
    content["fuser"]["fitted"]["temperature_"] = 2.5
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "digest"}))
    assert vf.load_recipe(path).rule.temperature_ == 2.5


def test_a_truncated_recipe_or_a_missing_file_of_arrays_is_refused(tmp_path):
    path, _ = saved(tmp_path, vf.DynamicPool(), large=True)
    arrays, text = path.with_suffix(".safetensors"), path.read_text()
    for length in (0, 1, 100, len(text) // 2, len(text) - 3):
        path.write_text(text[:length])
        with pytest.raises(CacheFormatError, match=r"ensemble\.json"):
            vf.load_recipe(path)
    path.write_text(text)
    data = arrays.read_bytes()
    arrays.write_bytes(data[:-8])
    with pytest.raises(CacheCorruptError, match="expected SHA-256"):
        vf.load_recipe(path)
    content = json.loads(text)
    content["arrays"]["sha256"] = hashlib.sha256(data[:-8]).hexdigest()
    path.write_text(json.dumps(content))
    with pytest.raises(CacheFormatError, match="expected safetensors"):
        vf.load_recipe(path)
    arrays.unlink()
    with pytest.raises(CacheCorruptError, match="found no such file; copy both"):
        vf.load_recipe(path)
