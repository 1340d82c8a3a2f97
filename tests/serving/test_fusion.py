"""A recipe in torch says what the recipe says: every rule, every kind of scores, views, missing members."""

import numpy as np
import pytest
import torch
from fusion_cases import CASES, VARIANTS, members
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

import vidfuse as vf
from vidfuse.errors import AlignmentError, InputError
from vidfuse.fusion.rule import Rule
from vidfuse.serving.fusion import Fusion
from vidfuse.serving.rules import FORMS, NoGraphError

LOGITS, LABELS = members(120, classes=6)
REDUCTIONS = ("mean-log", "mean-probability", "max", "vote")
CLOSE = {"rtol": 1e-6, "atol": 1e-5}


def as_kind(logits, kind):
    """The same predictions as another tool stores them; probabilities are rounded, so that some are 0 and some tie."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    if kind == "logits":
        return logits.astype(np.float32)
    if kind == "log-likelihoods":
        return np.log(p).astype(np.float32)
    return (np.round(p, 2) + 1e-3 * (p == p.max(-1, keepdims=True)) if kind == "sum" else p).astype(np.float32)


def recipe_of(rule, stack, views=None):
    return vf.Recipe.from_fitted(clone(rule).fit(stack), stack, views=views)


def answer(recipe, scores):
    with torch.no_grad():
        return Fusion(recipe)({name: torch.tensor(z) for name, z in scores.items()}).numpy()


def assert_same(recipe, scores, expected):
    got = answer(recipe, scores)
    np.testing.assert_allclose(got, expected, **CLOSE)
    np.testing.assert_array_equal(got.argmax(1), expected.argmax(1))


def test_the_rules_that_the_package_ships_have_forms():
    assert {name for name in VARIANTS if "Scaling" not in name} == {kind.__name__ for kind in FORMS} & set(VARIANTS)


@pytest.mark.parametrize(
    "kinds", [dict.fromkeys("abc", "logits"), {"a": "log-likelihoods", "b": "sum", "c": "probabilities"}], ids=str
)
@pytest.mark.parametrize("case", [case for case, rule in CASES.items() if type(rule) in FORMS])
def test_every_rule_gives_the_recipes_numbers(case, kinds):
    scores = {name: as_kind(z, kinds[name]) for name, z in LOGITS.items()}
    recipe = recipe_of(CASES[case], vf.LogitStack.from_arrays(scores, kind=kinds, labels=LABELS))
    other = {name: as_kind(z, kinds[name]) for name, z in members(40, seed=1, classes=6)[0].items()}
    assert_same(recipe, other, recipe.predict_log_proba(other))
    needed = {name: other[name] for name in recipe.needed_members()}
    assert_same(recipe, needed, recipe.predict_log_proba(other))


@pytest.mark.parametrize("how", [*REDUCTIONS, {"a": "vote", "b": "max", "c": "mean-probability"}], ids=str)
@pytest.mark.parametrize("kind", ["logits", "sum"])
@pytest.mark.parametrize("case", ["default", "linear", "vote", "borda-weighted", "calibrated-members", "dynamic"])
def test_views_are_reduced_as_the_recipe_says(case, kind, how):
    tie = 1e-4 * np.arange(6)  # rounded means of views may tie in one way of adding them up, and not in another
    scores = {name: as_kind(z.reshape(40, 3, 6), kind) + (kind == "sum") * tie for name, z in LOGITS.items()}
    scores = {name: z.astype(np.float32) for name, z in scores.items()}
    stack = vf.LogitStack.from_arrays(scores, kind=kind, labels=LABELS[::3], views=how)
    recipe = vf.Recipe.from_fitted(clone(CASES[case]).fit(stack), stack, views=how)
    recipe = vf.Recipe(recipe.rule, recipe.members, 6, kinds=dict.fromkeys(scores, kind), views=how)
    assert_same(recipe, scores, recipe.predict_log_proba(scores))
    mixed = {name: z if name == "a" else z[:, 0] for name, z in scores.items()}
    assert_same(recipe, mixed, recipe.predict_log_proba(mixed))


@pytest.mark.parametrize("weights", ["uniform", "accuracy"])
def test_views_vote_where_the_recipe_keeps_them(weights):
    scores = {name: as_kind(z.reshape(40, 3, 6), "logits") for name, z in LOGITS.items()}
    stack = vf.LogitStack.from_arrays(scores, labels=LABELS[::3])
    for rule in (vf.MajorityVote(weights), vf.Calibrated(vf.MajorityVote(weights))):
        recipe = recipe_of(rule, stack)
        assert_same(recipe, scores, recipe.predict_log_proba(scores))
    with pytest.raises(InputError, match="LogLinearPool takes scores"):
        answer(recipe_of(vf.LogLinearPool("uniform"), vf.reduce_views(stack)), scores)


RENORMALISING = {
    "log-linear": vf.LogLinearPool(missing="renormalise"),
    "per class": vf.LogLinearPool(per_class=True, missing="renormalise"),
    "given": vf.LogLinearPool({"a": 0, "b": 1, "c": 2}, missing="renormalise"),
    "linear": vf.LinearPool(missing="renormalise"),
    "vote": vf.MajorityVote("accuracy", missing="renormalise"),
    "borda": vf.BordaCount(missing="renormalise"),
    "subset": vf.SubsetPool(vf.LogLinearPool("accuracy", missing="renormalise"), max_members=2),
    "calibrated": vf.Calibrated(vf.LinearPool("accuracy", missing="renormalise"), vf.VectorScaling()),
    "calibrated members": vf.Calibrated(
        vf.LogLinearPool("accuracy", missing="renormalise"), vf.VectorScaling(), where="members"
    ),
}


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("case", RENORMALISING)
def test_videos_that_a_member_lacks_are_fused_from_the_others(case, kind):
    scores = {name: as_kind(z, kind) for name, z in LOGITS.items()}
    recipe = recipe_of(RENORMALISING[case], vf.LogitStack.from_arrays(scores, kind=kind, labels=LABELS))
    gone = np.random.default_rng(3).random((120, 3)) < 0.4
    needed = recipe.needed_members()
    columns = [list(scores).index(name) for name in needed]
    gone[gone[:, columns].all(1)] = False  # a video that nobody has is refused
    blank = {name: np.where(gone[:, [i]], np.float32(np.nan), z) for i, (name, z) in enumerate(scores.items())}
    stack = vf.LogitStack.from_arrays(blank, kind=kind, missing="keep")
    assert stack.present is not None
    assert_same(recipe, blank, recipe.rule.predict_log_proba(stack))
    if kind == "probabilities":
        assert_same(recipe, {name: np.nan_to_num(z) for name, z in blank.items()}, recipe.rule.predict_log_proba(stack))
    whole = {name: scores[name] for name in needed[:1]}
    assert_same(recipe, whole, recipe.predict_log_proba(whole))


def test_a_video_that_nobody_has_or_everybody_vetoes_is_no_number():
    scores = {name: as_kind(z, "logits") for name, z in LOGITS.items()}
    recipe = recipe_of(vf.LogLinearPool("uniform", missing="renormalise"), vf.LogitStack.from_arrays(scores))
    assert np.isnan(answer(recipe, {name: np.full((1, 6), np.nan, np.float32) for name in scores})).all()
    low = np.where(np.arange(6) < 3, -np.inf, 1.0).astype(np.float32)[None]
    vetoed = {"a": low, "b": low[:, ::-1].copy(), "c": np.ones((1, 6), np.float32)}
    with pytest.raises(InputError, match="Every class"):
        recipe.predict_log_proba(vetoed)
    assert np.isnan(answer(recipe, vetoed)).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(2, 7),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.sampled_from(["vote", "borda", "linear", "log-linear", "weighted"]),
)
def test_ties_vetoes_and_extremes_are_as_in_the_recipe(seed, m, k, scale, rule):
    """Logits are small integers, so that members tie; some are -inf."""
    rng = np.random.default_rng(seed)
    scores = {f"m{i}": np.round(rng.normal(size=(8, k)) * scale).astype(np.float32) for i in range(m)}
    for z in scores.values():
        z[rng.random(z.shape) < 0.1] = -np.inf
        z[:, rng.integers(k)] = 0
    rules = {
        "vote": vf.MajorityVote(floor=0.01),
        "borda": vf.BordaCount(floor=0.01),
        "linear": vf.LinearPool("uniform", floor=0.0),
        "log-linear": vf.LogLinearPool("uniform", floor=0.01),
        "weighted": vf.MajorityVote({name: 0.1 * (1 + i) for i, name in enumerate(scores)}, floor=0.01),
    }
    recipe = recipe_of(rules[rule], vf.LogitStack.from_arrays(scores))
    assert_same(recipe, scores, recipe.predict_log_proba(scores))


def test_scores_may_be_in_any_precision():
    recipe = recipe_of(vf.LogLinearPool("uniform"), vf.LogitStack.from_arrays(LOGITS))
    for dtype in (np.float16, np.float64):
        scores = {name: z.astype(dtype) for name, z in LOGITS.items()}
        np.testing.assert_allclose(answer(recipe, scores), recipe.predict_log_proba(scores), **CLOSE)
    halves = {name: torch.from_numpy(z).bfloat16() for name, z in LOGITS.items()}
    expected = recipe.predict_log_proba({name: z.float().numpy() for name, z in halves.items()})
    np.testing.assert_allclose(Fusion(recipe)(halves), expected, **CLOSE)


def test_members_that_are_missing_or_unknown_are_refused():
    recipe = recipe_of(vf.BordaCount(), vf.LogitStack.from_arrays(LOGITS))
    with pytest.raises(AlignmentError, match=r"missing \['b'\], not in the recipe \['x'\]"):
        answer(recipe, {"a": LOGITS["a"], "c": LOGITS["c"], "x": LOGITS["b"]})


class Own(Rule):
    """A rule of a user's own: the median."""

    def _fit(self, stack, labels, weight):
        pass

    def _fuse(self, stack):
        return vf.LogLinearPool("uniform").fit(stack).predict_log_proba(stack)


class OwnSum(Own):
    def weighted_sum(self):
        return vf.LogLinearPool("uniform").fit(np.zeros((1, 3, 6)), None).weighted_sum()


def test_a_rule_of_ones_own_has_a_graph_if_it_is_a_weighted_sum():
    stack = vf.LogitStack.from_arrays({f"member{i}": z for i, z in enumerate(LOGITS.values())}, labels=LABELS)
    with pytest.raises(NoGraphError, match=r"Own has no form in torch"):
        Fusion(recipe_of(Own(), stack))
    with pytest.raises(NoGraphError, match=r"Own has no form in torch"):
        Fusion(recipe_of(vf.Calibrated(Own()), stack))
    recipe = recipe_of(OwnSum(), stack)
    scores = {name: stack.scores(name) for name in stack.members}
    assert_same(recipe, scores, recipe.predict_log_proba(scores))
