"""What every rule owes its callers, and scikit-learn: one test each, over all of them."""

from __future__ import annotations

import importlib
import json
import pickle
import pkgutil
import warnings
from inspect import isabstract, signature

import joblib
import numpy as np
import pytest
from fusion_cases import CASES, ESTIMATORS, VARIANTS, K, array_of, by_name, features, fitted, members, output
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.utils import get_tags

import vidfuse.fusion
import vidfuse.selection
from vidfuse._rules import RULES
from vidfuse.errors import AlignmentError, InputError, VidfuseWarning
from vidfuse.fusion.calibration import Calibrated
from vidfuse.fusion.linear import LinearPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule
from vidfuse.fusion.stacking import StackedPool
from vidfuse.fusion.votes import MajorityVote
from vidfuse.stack.stack import LogitStack


def test_fits_and_predicts_normalised_probabilities(rule, data):
    stack, _, y = data
    assert rule.fit(stack) is rule
    log_p, p = rule.predict_log_proba(stack), rule.predict_proba(stack)
    assert log_p.shape == (len(stack), K)
    assert log_p.dtype == np.float64
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(np.exp(log_p), p, rtol=1e-12)
    np.testing.assert_array_equal(rule.predict(stack), p.argmax(axis=1))
    assert rule.score(stack) == pytest.approx((rule.predict(stack) == y).mean())
    assert rule.score(stack) > 0.6
    assert rule.members_ == ("a", "b", "c")
    assert rule.feature_names_in_ == stack.members == ("b", "a", "c")
    assert rule.n_features_in_ == 3
    assert rule.classes_.tolist() == list(range(K))


def test_stack_and_array_agree(rule, data):
    stack, X, y = data
    a = rule.fit(stack).predict_log_proba(stack)
    b = clone(rule).fit(X, y).predict_log_proba(X)
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_fit_repeats_itself_and_leaves_parameters_alone(rule, data):
    stack, _, _ = data
    before = repr(rule.get_params())
    first = rule.fit(stack).predict_log_proba(stack)
    assert repr(rule.get_params()) == before
    np.testing.assert_array_equal(rule.fit(stack).predict_log_proba(stack), first)


def test_members_are_matched_by_name(rule, data):
    stack, _, _ = data
    rule.fit(stack)
    shuffled = stack.select(["a", "c", "b"])
    np.testing.assert_array_equal(rule.predict_log_proba(shuffled), rule.predict_log_proba(stack))


def test_the_order_of_members_changes_nothing(rule, data):
    stack, _, _ = data
    rule = by_name(rule, stack.members)
    one = clone(rule).fit(stack).predict_log_proba(stack)
    other = clone(rule).fit(stack.select(["c", "b", "a"])).predict_log_proba(stack)
    np.testing.assert_array_equal(one, other)


def test_numbers_in_a_list_and_arrays_follow_the_order_in_which_the_stack_lists_its_members(rule, data):
    stack, X, _ = data
    named = by_name(rule, stack.members).fit(stack)
    rule.fit(stack)
    np.testing.assert_array_equal(rule.predict_log_proba(stack), named.predict_log_proba(stack))
    np.testing.assert_allclose(rule.predict_log_proba(X), named.predict_log_proba(stack), atol=2e-5)


def test_videos_that_lack_a_member_are_refused_unless_the_rule_says_otherwise(rule, data):
    stack, _, y = data
    ids = np.array([f"v{i:02d}" for i in range(80)])
    partial = LogitStack.from_arrays(
        {name: stack.scores(name)[few:] for name, few in (("b", 0), ("a", 5), ("c", 0))},
        ids={"b": ids, "a": ids[5:], "c": ids},
        labels=dict(zip(ids.tolist(), y.tolist(), strict=True)), join="outer",
    )  # fmt: skip
    rule.fit(stack)
    assert rule.missing in (None, "error")
    if "a" in rule.needed_members():
        with pytest.raises(AlignmentError, match="5 of 80 videos without some"):
            rule.predict(partial)
    with pytest.raises(AlignmentError, match="5 of 80 videos without some"):
        clone(rule).fit(partial)
    whole = [parameter for parameter in rule.get_params() if parameter.endswith("missing")]
    if whole and rule.missing is not None:
        rule.set_params(**dict.fromkeys(whole, "renormalise")).fit(partial)
        assert np.isfinite(rule.predict_log_proba(partial)).all()


def test_row_05_veto_of_a_member_without_weight_is_harmless():
    z = np.zeros((2, 2, 3))
    z[0, 1, 0] = -np.inf
    for pool in (LogLinearPool(weights=[1.0, 0.0]), LinearPool(weights=[1.0, 0.0]), MajorityVote(weights=[1.0, 0.0])):
        assert np.isfinite(pool.fit(z).predict_log_proba(z)).all()


def test_row_06_every_class_vetoed():
    z = np.array([[[0.0, -np.inf], [-np.inf, 0.0]]])
    stack = LogitStack.from_arrays({"a": z[:, 0], "b": z[:, 1]}, ids=["clip7"])
    with pytest.raises(InputError, match=r"clip7.*linear pool"):
        LogLinearPool(weights="uniform").fit(stack).predict_proba(stack)
    np.testing.assert_allclose(LinearPool(weights="uniform").fit(stack).predict_proba(stack), [[0.5, 0.5]])


def test_every_rule_is_under_contract():
    """Rules that the package defines, recipes can hold; and those that recipes can hold, these tests try."""
    for room in (vidfuse.fusion, vidfuse.selection):
        for found in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
            importlib.import_module(found.name)
    kinds, waiting = set(), [Rule]
    while waiting:
        waiting += (own := waiting.pop().__subclasses__())
        kinds |= {kind.__name__ for kind in own if kind.__module__.startswith("vidfuse.") and not isabstract(kind)}
    assert {type(estimator).__name__ for estimator in ESTIMATORS.values()} == set(RULES)
    assert kinds == {type(estimator).__name__ for estimator in CASES.values()}
    assert set(VARIANTS) <= set(RULES)


def test_the_videos_call_for_weights_that_depend_on_them(data):
    assert not clone(CASES["dynamic"]).fit(data[0]).fallback_


def test_a_constructor_sets_its_parameters_and_nothing_else(estimator):
    assert vars(estimator) == estimator.get_params(deep=False)
    plain = type(estimator)(**{k: v for k, v in vars(estimator).items() if k in ("rule", "pool")})
    for name, parameter in signature(type(estimator)).parameters.items():
        if parameter.default is not parameter.empty and name not in ("rule", "pool"):
            assert getattr(plain, name) is parameter.default
            assert parameter.default is None or isinstance(parameter.default, (str, int, float, tuple))


def test_parameters_survive_a_round_trip(estimator):
    assert repr(clone(estimator)) == repr(estimator)
    copy = clone(estimator)
    assert copy.set_params(**copy.get_params()) is copy
    assert repr(copy.get_params()) == repr(estimator.get_params())


def test_pickle_round_trip(estimator, data):
    _, X, y = data
    one = fitted(estimator, X, y)
    copy = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(output(copy, X), output(one, X))


def test_nothing_works_before_a_fit(estimator, data):
    _, X, y = data
    unfitted = clone(fitted(estimator, X, y))
    for method in ("predict", "predict_proba", "predict_log_proba", "transform"):
        if hasattr(unfitted, method):
            with pytest.raises(NotFittedError):
                getattr(unfitted, method)(features(unfitted, X))
    if hasattr(unfitted, "score"):
        with pytest.raises(NotFittedError):
            unfitted.score(X, y)


def test_predicting_leaves_the_state_alone(estimator, data):
    _, X, y = data
    one = fitted(estimator, X, y)
    before = joblib.hash(vars(one))
    output(one, X)
    if hasattr(one, "predict"):
        one.predict(X), one.predict_proba(X[:9]), one.score(X, y)
    assert joblib.hash(vars(one)) == before


KINDS = {type(estimator): None for estimator in ESTIMATORS.values()}
ALIKE = [[name for name, estimator in ESTIMATORS.items() if type(estimator) is kind] for kind in KINDS]


@pytest.mark.parametrize(
    ("first", "second"), [pair for names in ALIKE for pair in zip(names, names[1:] + names[:1], strict=True)]
)
def test_a_fit_with_other_parameters_forgets_the_first(first, second, data):
    _, X, y = data
    reset = fitted(ESTIMATORS[first], X, y).set_params(**clone(ESTIMATORS[second]).get_params(deep=False))
    reset.fit(features(reset, X), y)
    once = fitted(ESTIMATORS[second], X, y)
    np.testing.assert_array_equal(output(reset, X), output(once, X))
    told, expected = ({k for k in vars(e) if k.endswith("_") and not k.startswith("_")} for e in (reset, once))
    assert told == expected


def test_a_second_fit_forgets_the_first(estimator, data):
    _, X, y = data
    other, truth = members(50, seed=3, classes=5)
    twice = fitted(estimator, array_of(other), truth)
    twice.fit(features(twice, X), y)
    once = fitted(estimator, X, y)
    assert vars(twice).keys() == vars(once).keys()
    np.testing.assert_array_equal(output(twice, X), output(once, X))
    assert joblib.hash(pickle.loads(pickle.dumps(twice))) == joblib.hash(pickle.loads(pickle.dumps(once)))


def test_fitted_attributes_can_be_stored(rule, data):
    def plain(value):
        if isinstance(value, np.ndarray):
            return value.dtype.kind in "biufU"
        if isinstance(value, (list, tuple)):
            return all(map(plain, value))
        if hasattr(value, "get_params"):
            return all(plain(v) for k, v in vars(value).items() if k.endswith("_") and not k.startswith("_"))
        json.dumps(value)
        return True

    rule.fit(data[0])
    fitted = {k: v for k, v in vars(rule).items() if k.endswith("_") and not k.startswith("_")}
    assert {"members_", "classes_", "n_features_in_"} <= set(fitted)
    assert all(plain(value) for value in fitted.values())


def test_parameters_are_set_and_got(rule):
    params = rule.get_params(deep=False)
    assert params == clone(rule).set_params(**params).get_params(deep=False) or "rule" in params
    assert type(rule).__name__ in repr(rule)
    with pytest.raises(ValueError, match="Invalid parameter"):
        rule.set_params(no_such_parameter=1)


def test_tags_say_what_it_is(rule):
    tags = get_tags(rule)
    assert is_classifier(rule)
    assert tags.input_tags.three_d_array
    assert not tags.input_tags.two_d_array


def test_cross_validation_on_stack_and_array(rule, data):
    stack, X, y = data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VidfuseWarning)
        own = cross_val_score(rule, stack, cv=2)  # the default scorer uses the stack's labels
        on_stack = cross_val_score(rule, stack, y, cv=2)
        on_array = cross_val_score(rule, X, y, cv=2)
    assert own.shape == (2,)
    np.testing.assert_allclose(on_stack, on_array, atol=0.03)


def test_a_fold_may_lack_a_class(rule, data):
    stack, _, y = data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VidfuseWarning)
        rule.fit(stack[y != 2])
    assert rule.classes_.tolist() == list(range(K))
    assert rule.predict_proba(stack).shape == (len(stack), K)


def test_row_53_labels_that_differ_from_the_stacks(rule, data):
    stack, _, y = data
    with pytest.raises(InputError, match=r"differ in 1 of 80"):
        rule.fit(stack, np.where(np.arange(80) == 3, (y + 1) % K, y))


def test_row_52_missing_and_added_members(rule, data):
    stack, X, _ = data
    rule.fit(stack)
    with pytest.raises(AlignmentError, match="missing: 'c'"):  # the best one: no rule drops it
        rule.predict(stack.select(["b", "a"]))
    scores, _ = members()
    with pytest.raises(AlignmentError, match="not in the fit: 'd'"):
        rule.predict(LogitStack.from_arrays({**scores, "d": scores["a"]}))
    with pytest.raises(AlignmentError):
        rule.predict(X[:, :2])
    with pytest.raises(AlignmentError, match="4 classes"):
        rule.predict(X[:, :, :3])


def test_views_are_refused_or_voted_on(rule, data):
    _, X, y = data
    views = np.repeat(X[:, :, None], 2, axis=2)
    if rule.takes_views:
        assert rule.fit(views, y).predict_proba(views).shape == (80, K)
    else:
        with pytest.raises(InputError, match="views="):
            rule.fit(views, y)


# Where neighbours, folds or priors count videos, a video of weight 0 is still one of them.
@pytest.mark.parametrize("name", sorted(set(CASES) - {"dynamic", "calibrated", "calibrated-members", "cv"}))
def test_videos_of_weight_zero_are_not_there(name, data):
    stack, rule = data[0], CASES[name]
    weight = np.where(np.arange(80) < 30, 0.0, 1.0)
    a = clone(rule).fit(stack, sample_weight=weight)
    b = clone(rule).fit(stack[30:])
    np.testing.assert_allclose(a.predict_log_proba(stack), b.predict_log_proba(stack), atol=2e-4)


@pytest.mark.parametrize("weight", [[-1.0] + [1.0] * 79, [np.nan] + [1.0] * 79, [1.0] * 79, [0.0] * 80])
def test_bad_sample_weights(weight, data):
    with pytest.raises(InputError, match="sample_weight"):
        LogLinearPool(weights="accuracy").fit(data[0], sample_weight=weight)


def test_row_18_labels_missing_where_a_fit_needs_them(data):
    _, X, _ = data
    for rule in (LogLinearPool(), LinearPool(weights="accuracy"), MajorityVote(weights="accuracy"), StackedPool()):
        with pytest.raises(InputError, match="learns from labels"):
            rule.fit(X)
    assert LogLinearPool(weights="uniform").fit(X).predict(X).shape == (80,)
    with pytest.raises(InputError, match="expected labels"):
        MajorityVote().fit(X).score(X)


def test_row_19_no_videos():
    with pytest.raises(InputError, match="at least one video"):
        LogLinearPool().fit(np.zeros((0, 2, 3)), np.zeros(0, dtype=int))
    with pytest.raises(InputError):
        LogLinearPool().fit(np.zeros((3, 0, 3)), np.zeros(3, dtype=int))


def test_row_20_one_class():
    with pytest.raises(InputError, match="at least 2 classes"):
        LogLinearPool().fit(np.zeros((3, 2, 1)), np.zeros(3, dtype=int))


@pytest.mark.parametrize("name", ["default", "unshrunk", "linear", "stacked", "calibrated", "dynamic", "per-class"])
def test_row_21_only_one_label_value(name, data):
    _, X, _ = data
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = clone(CASES[name]).fit(X, np.full(80, 2))
    assert any("every label of the fit is class 2" in str(w.message) for w in caught)
    assert np.isfinite(fitted.predict_log_proba(X)).all()


@pytest.mark.parametrize(
    "y", [np.zeros(80), np.eye(4)[np.zeros(80, dtype=int)], np.full(80, 7), np.zeros((80, 2), int)]
)
def test_row_54_labels_that_are_not_single_classes(y, data):
    with pytest.raises(InputError):
        LogLinearPool().fit(data[1], y)


def test_grid_search_with_two_jobs(data):
    stack, _, y = data
    search = GridSearchCV(LogLinearPool(), {"shrinkage": ["auto", 0.5], "floor": ["auto", 0.0]}, cv=2, n_jobs=2)
    search.fit(stack)
    assert search.best_score_ > 0.5
    assert search.predict(stack).shape == y.shape
    nested = GridSearchCV(Calibrated(LogLinearPool(weights="accuracy")), {"rule__power": [0.0, 4.0]}, cv=2)
    assert nested.fit(stack, y).best_params_["rule__power"] in (0.0, 4.0)


def test_cross_val_predict_gives_every_class_a_column(data):
    stack, _, y = data
    p = cross_val_predict(LinearPool(), stack, y, cv=4, method="predict_proba", n_jobs=2)
    assert p.shape == (80, K)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
