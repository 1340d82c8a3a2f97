"""Members that lack videos, members that have no say, and classes whose names tell of another order."""

import pickle

import numpy as np
import pytest
from scipy.special import log_softmax

from vidfuse import (
    BordaCount,
    Calibrated,
    GreedyPool,
    LinearPool,
    LogitStack,
    LogLinearPool,
    MajorityVote,
    Recipe,
    SubsetPool,
    load_recipe,
)
from vidfuse.errors import AlignmentError, InputError

RULES = [MajorityVote, BordaCount, LinearPool, LogLinearPool]


def scores(n=200, k=5, seed=0, skills=(2.5, 2.0, 1.5)):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    return {f"m{j}": rng.normal(size=(n, k)) + skill * np.eye(k)[y] for j, skill in enumerate(skills)}, y


def stack_of(arrays, y, present):
    """Return a stack of members that have some videos each."""
    ids = np.array([f"v{i:03d}" for i in range(len(y))])
    return LogitStack.from_arrays(
        {name: z[has] for (name, z), has in zip(arrays.items(), present.T, strict=True)},
        ids={name: ids[has] for name, has in zip(arrays, present.T, strict=True)},
        labels=dict(zip(ids.tolist(), y.tolist(), strict=True)), join="outer",
    )  # fmt: skip


def incomplete(absent=20):
    """Return a stack whose first member lacks the first videos, and the videos that all members have."""
    arrays, y = scores()
    y[:absent] = 0  # an absent member must not count as a vote for class 0
    present = np.ones((len(y), 3), bool)
    present[:absent, 0] = False
    stack = stack_of(arrays, y, present)
    return stack, stack[stack.present.all(axis=1)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weights", ["accuracy", "inverse-nll", "log-odds"])
def test_members_are_weighted_by_the_videos_that_all_have(rule, weights):
    stack, whole = incomplete()
    fitted = rule(weights, missing="renormalise").fit(stack)
    np.testing.assert_array_equal(fitted.weights_, rule(weights).fit(whole).weights_)
    assert fitted.n_missing_.tolist() == [20, 0, 0]
    assert np.isfinite(fitted.predict_log_proba(stack).max(axis=1)).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weights", ["accuracy", "uniform", [1.0, 2.0, 3.0]])
def test_an_incomplete_stack_is_refused_at_the_fit_unless_asked_for(rule, weights):
    stack, _ = incomplete()
    with pytest.raises(AlignmentError, match=r'20 of 200 videos.*missing="renormalise"'):
        rule(weights).fit(stack)
    assert rule(weights, missing="renormalise").fit(stack).n_missing_.tolist() == [20, 0, 0]


def test_uniform_weights_need_no_video_that_all_have():
    arrays, y = scores(n=3)
    stack = stack_of(arrays, y, ~np.eye(3, dtype=bool))
    np.testing.assert_array_equal(LinearPool("uniform", missing="renormalise").fit(stack).weights_, np.full(3, 1 / 3))
    with pytest.raises(AlignmentError, match="videos that every member has"):
        LinearPool("accuracy", missing="renormalise").fit(stack)


@pytest.mark.parametrize("rule", RULES)
def test_a_member_without_a_weight_need_not_be_there(rule):
    arrays, y = scores()
    stack = LogitStack.from_arrays(arrays, labels=y)
    fitted = rule({"m0": 1.0, "m1": 0.0, "m2": 2.0}).fit(stack)
    expected = fitted.predict_log_proba(stack)
    np.testing.assert_array_equal(fitted.predict_log_proba(stack.select(["m0", "m2"])), expected)
    with pytest.raises(AlignmentError, match="m2"):
        fitted.predict_log_proba(stack.select(["m0", "m1"]))


@pytest.mark.parametrize("rule", RULES)
def test_row_11_classes_in_another_order_are_refused(rule, tmp_path):
    arrays, y = scores()
    stack = LogitStack.from_arrays(arrays, labels=y, classes=list("vwxyz"))
    fitted = rule("accuracy").fit(stack)
    turned = LogitStack.from_arrays(arrays, classes=list("zyxwv"))
    path = Recipe.from_fitted(fitted, stack).save(tmp_path / "recipe.json")
    for same in (fitted, pickle.loads(pickle.dumps(fitted)), load_recipe(path).rule):
        with pytest.raises(AlignmentError, match=r"another order: class 0 is 'v' in the fit and 'z'"):
            same.predict(turned)
        same.predict(LogitStack.from_arrays(arrays))  # a stack without names is taken at its word
    del fitted.class_names_  # as a recipe of the first releases has it
    fitted.predict(turned)


@pytest.mark.parametrize(
    "pool",
    [
        LogLinearPool(np.array([1.0, 2, 3]), per_class=True), LogLinearPool(shrinkage=[1]),
        LogLinearPool(floor=None), LinearPool("accuracy", power="2"),
    ],
)  # fmt: skip
def test_parameters_of_a_wrong_type_are_said_to_be(pool):
    arrays, y = scores()
    with pytest.raises(InputError, match=r"expected|weights per class"):
        pool.fit(LogitStack.from_arrays(arrays), y)


def test_weights_near_the_largest_number_are_normalised():
    arrays, y = scores()
    fitted = LinearPool([1e308, 1e308, 1.0]).fit(LogitStack.from_arrays(arrays), y)
    np.testing.assert_allclose(fitted.weights_, [0.5, 0.5, 0.0], atol=1e-300)


def test_a_veto_of_the_true_class_in_a_video_of_no_weight_is_no_matter():
    arrays, y = scores()
    arrays["m0"][3, y[3]] = -np.inf
    weight = np.ones(200)
    weight[3] = 0.0
    stack = LogitStack.from_arrays(arrays, labels=y)
    with pytest.raises(InputError, match="probability of 0 at the true class"):
        LogLinearPool(floor=0.0).fit(stack)
    fitted = LogLinearPool(floor=0.0).fit(stack, sample_weight=weight)
    assert fitted.optimality_gap_ <= 1e-7


@pytest.mark.parametrize("rule", [MajorityVote, BordaCount])
def test_the_weights_of_votes_have_intervals_too(rule):
    arrays, y = scores()
    summary = rule("accuracy").fit(LogitStack.from_arrays(arrays), y).summary(bootstrap=50)
    assert "m0" in str(summary)


def test_sample_weights_near_the_largest_number_have_a_sum():
    arrays, y = scores()
    stack = LogitStack.from_arrays(arrays, labels=y)
    huge = LogLinearPool().fit(stack, sample_weight=np.full(200, 1e308))
    np.testing.assert_allclose(huge.weights_, LogLinearPool().fit(stack).weights_, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("number", [None, "2", [1.0]])
def test_a_weight_that_is_no_number_is_said_to_be(rule, number):
    arrays, y = scores()
    with pytest.raises(InputError, match="weights: expected"):
        rule({"m0": 1.0, "m1": number, "m2": 2.0}).fit(LogitStack.from_arrays(arrays), y)


@pytest.mark.parametrize("vote", [MajorityVote, BordaCount])
def test_a_video_that_no_member_with_a_say_has_is_refused(vote):
    arrays, y = scores(n=3)
    stack = stack_of(arrays, y, np.array([[True, True, True], [True, False, False], [True, True, True]]))
    fitted = vote([0.0, 1.0, 1.0], missing="renormalise").fit(stack)
    with pytest.raises(AlignmentError, match=r"no member with a positive weight has .*row 1"):
        fitted.predict(stack)
    assert fitted.predict(stack[[0, 2]]).shape == (2,)


def test_a_member_without_a_say_in_any_class_need_not_be_there():
    arrays, y = scores(skills=(2.5, 2.0, 1.5, 0.5))
    stack = LogitStack.from_arrays(arrays, labels=y)
    fitted = LogLinearPool(per_class=True, shrinkage=None).fit(stack)
    needed = fitted.needed_members()
    idle = [name for name in stack.members if name not in needed]
    say = (fitted.class_weights_ > 0).any(axis=1) | (fitted.weights_ > 0)
    assert needed == tuple(name for name, has in zip(fitted.members_, say, strict=True) if has)
    expected = fitted.predict_log_proba(stack)
    np.testing.assert_array_equal(fitted.predict_log_proba(stack.select(needed)), expected)
    fitted.class_weights_[fitted.members_.index("m1")] = 0.0
    fitted.weights_[fitted.members_.index("m1")] = 0.0
    without = [name for name in stack.members if name not in (*idle, "m1")]
    np.testing.assert_array_equal(fitted.predict_log_proba(stack.select(without)), fitted.predict_log_proba(stack))


WRAPPED = [
    Calibrated(LinearPool({"m0": 1.0, "m1": 0.0, "m2": 2.0})),
    Calibrated(LinearPool({"m0": 1.0, "m1": 0.0, "m2": 2.0}), where="members"),
    SubsetPool(LinearPool({"m0": 1.0, "m1": 0.0, "m2": 2.0})),
    GreedyPool("nll", rounds=1),
]


@pytest.mark.parametrize("rule", WRAPPED, ids=repr)
def test_rules_and_recipes_need_no_member_without_a_say(rule, tmp_path):
    arrays, y = scores()
    stack = LogitStack.from_arrays(arrays, labels=y)
    rule.fit(stack)
    needed = list(rule.needed_members())
    assert 0 < len(needed) < 3
    expected = rule.predict_log_proba(stack)
    np.testing.assert_allclose(rule.predict_log_proba(stack.select(needed)), expected, atol=1e-12)
    recipe = load_recipe(Recipe.from_fitted(rule, stack).save(tmp_path / "recipe.json"))
    assert list(recipe.needed_members()) == needed
    mapping = {name: arrays[name] for name in needed}
    np.testing.assert_allclose(recipe.predict_log_proba(mapping), expected, atol=1e-12)
    with pytest.raises(AlignmentError, match=f"missing \\['{needed[0]}'\\]"):
        recipe.predict({name: arrays[name] for name in arrays if name != needed[0]})


@pytest.mark.parametrize("rule", RULES)
def test_a_member_without_a_weight_may_lack_videos(rule):
    arrays, y = scores()
    fitted = rule({"m0": 0.0, "m1": 1.0, "m2": 2.0}).fit(LogitStack.from_arrays(arrays), y)
    present = np.ones((200, 3), bool)
    present[:20, 0] = False
    partial = stack_of(arrays, y, present)
    expected = fitted.predict_log_proba(LogitStack.from_arrays(arrays))
    order = [int(name[1:]) for name in partial.ids]
    np.testing.assert_allclose(fitted.predict_log_proba(partial), expected[order], atol=1e-6)
    present[:20, 1] = False
    with pytest.raises(AlignmentError, match="20 of 200 videos without some"):
        fitted.predict(stack_of(arrays, y, present))


def test_weights_per_class_hold_for_the_videos_that_have_all_members_and_shared_ones_for_the_others():
    arrays, y = scores(skills=(2.5, 2.0, 1.5))
    fitted = LogLinearPool(per_class=True, shrinkage=None, missing="renormalise").fit(LogitStack.from_arrays(arrays), y)
    fitted.weights_, fitted.temperature_ = np.array([0.5, 0.3, 0.2]), 0.8
    fitted.class_weights_, fitted.class_bias_ = 1.0 + np.arange(15.0).reshape(3, 5) / 10, np.arange(5.0) / 5
    present = np.ones((200, 3), bool)
    present[:20, 0] = present[10:30, 1] = False
    partial = stack_of(arrays, y, present)
    log_p = np.stack([log_softmax(arrays[f"m{m}"], axis=1) for m in range(3)])
    shared = np.where(present, fitted.weights_, 0.0)
    shared = shared / shared.sum(axis=1, keepdims=True) / 0.8
    mixed = np.where(
        present.all(axis=1)[:, None],
        np.einsum("mnk,mk->nk", log_p, fitted.class_weights_) + fitted.class_bias_,
        np.einsum("mnk,nm->nk", log_p, shared),
    )  # fmt: skip
    order = [int(name[1:]) for name in partial.ids]
    expected = log_softmax(mixed, axis=1)[order]
    np.testing.assert_allclose(fitted.predict_log_proba(partial), expected, atol=1e-5)
    for rows in np.array_split(np.arange(200), 3):  # a video's prediction does not depend on the others
        np.testing.assert_allclose(fitted.predict_log_proba(partial[rows]), expected[rows], atol=1e-5)
    asked = fitted.shared_sum()
    np.testing.assert_allclose(asked.weights, np.array([[0.5], [0.3], [0.2]]) / 0.8)
    assert asked.bias is None and fitted.weighted_sum().weights.shape == (3, 5)


def test_a_say_in_one_class_is_a_say_and_so_is_a_shared_weight():
    arrays, y = scores()
    fitted = LogLinearPool(per_class=True).fit(LogitStack.from_arrays(arrays), y)
    fitted.weights_ = np.array([0.0, 1.0, 0.0])
    fitted.class_weights_ = np.zeros((3, 5))
    fitted.class_weights_[0, 3] = 1.0
    assert fitted.needed_members() == ("m0", "m1")


@pytest.mark.parametrize("rule", RULES)
def test_a_video_that_no_member_has_is_named_by_its_own_row(rule):
    arrays, y = scores(n=60)
    for z in arrays.values():
        z[41] = np.nan
    arrays["m0"][7] = np.nan
    stack = LogitStack.from_arrays(arrays, labels=y, missing="keep")
    fitted = rule(missing="renormalise").fit(stack[:41])
    with pytest.raises(AlignmentError, match="no member with a positive weight has row 41; drop"):
        fitted.predict(stack)


@pytest.mark.parametrize("rule", [MajorityVote, BordaCount])
def test_a_video_gets_the_same_votes_whether_or_not_a_member_that_lacks_it_has_others(rule):
    arrays, y = scores(n=40)
    present = np.ones((40, 3), dtype=bool)
    present[:20, 2] = False
    whole, some = stack_of(arrays, y, np.ones((40, 3), dtype=bool)), stack_of(arrays, y, present)
    vote = rule(weights={"m0": 0.5, "m1": 0.3, "m2": 0.2}, missing="renormalise").fit(whole)
    alone = vote.predict_proba(some.select(["m0", "m1"])[np.arange(20)])
    assert np.allclose(vote.predict_proba(some)[:20], alone, rtol=1e-12, atol=0)
