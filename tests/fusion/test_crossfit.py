"""Folds are a partition, balanced by class, with whole groups, in no order of rows; copies see only their folds."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from selection_cases import ensemble, stack_of
from sklearn.base import BaseEstimator, ClassifierMixin, clone

import vidfuse as vf
from vidfuse.errors import InputError
from vidfuse.fusion.crossfit import even_folds, fit_copies, out_of_fold, split_folds

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)


def drawn(n, n_classes, n_groups, seed):
    """Return labels and groups, both unevenly frequent."""
    rng = np.random.default_rng(seed)
    return [(count * rng.random(n) ** 2).astype(int) for count in (n_classes, n_groups)]


def fold_of(labels, *args, **options):
    """Return each video's fold, having checked that the folds are a partition and that fits take the rest."""
    fold = np.full(len(labels), -1)
    for index, (fit, rest) in enumerate(split_folds(np.asarray(labels), *args, **options)):
        assert (fold[rest] == -1).all() and len(rest)
        assert sorted([*fit, *rest]) == list(range(len(labels)))
        fold[rest] = index
    return fold


@UNTIMED
@given(st.integers(2, 60), st.integers(1, 6), st.integers(2, 6), st.integers(0, 1 << 32))
def test_folds_are_a_partition_and_balanced(n, n_classes, folds, seed):
    labels, _ = drawn(n, n_classes, 1, seed)
    if len(labels) < folds:
        with pytest.raises(InputError, match="folds: expected 2"):
            split_folds(labels, folds, seed=seed)
        return
    fold = fold_of(labels, folds, seed=seed)
    assert np.ptp(np.bincount(fold, minlength=folds)) <= 1
    for k in set(labels.tolist()):
        assert np.ptp(np.bincount(fold[labels == k], minlength=folds)) <= 1


@UNTIMED
@given(st.integers(2, 60), st.integers(1, 6), st.integers(1, 13), st.integers(2, 4), st.integers(0, 1 << 32))
def test_groups_stay_whole_and_rows_have_no_order(n, n_classes, n_groups, folds, seed):
    labels, groups = drawn(n, n_classes, n_groups, seed)
    order = np.random.default_rng(seed).permutation(n)
    if len(set(groups.tolist())) >= folds:
        fold = fold_of(labels, folds, groups, seed)
        assert all(len(set(fold[groups == name])) == 1 for name in groups)
        assert np.array_equal(fold_of(labels[order], folds, groups[order], seed), fold[order])
        assert np.array_equal(fold_of(labels, folds, [f"g{name:02}" for name in groups], seed), fold)
    ids = np.array([f"v{row}" for row in range(len(labels))])
    if len(labels) >= folds:
        fold = fold_of(labels, folds, seed=seed, keys=ids)
        assert np.array_equal(fold_of(labels[order], folds, seed=seed, keys=ids[order]), fold[order])


def test_groups_of_one_class_are_spread_like_single_videos():
    labels = np.repeat(np.arange(5), 40)
    fold = fold_of(labels, 4, np.arange(200) // 4, 0)  # ten groups of each class
    table = np.array([np.bincount(fold[labels == k], minlength=4) for k in range(5)])
    assert set(table.ravel()) == {8, 12}
    assert np.ptp(table.sum(axis=0)) <= 4


def test_large_groups_do_not_pile_up():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), rng.integers(1, 30, 60))
    labels = rng.integers(0, 4, len(groups))
    fold = fold_of(labels, 5, groups, 0)
    for k in range(4):
        share = np.bincount(fold[labels == k], minlength=5) / (labels == k).sum()
        assert share == pytest.approx(0.2, abs=0.03)


def test_a_rare_class_weighs_as_much_as_a_common_one():
    groups = np.repeat(np.arange(8), [12, 10, 10, 10, 2, 2, 2, 2])
    labels = np.zeros(50, dtype=int)
    labels[43::2] = 1  # one of two videos in each of the four small groups
    fold = fold_of(labels, 4, groups, 0)
    assert sorted(fold[labels == 1]) == [0, 1, 2, 3]


def test_the_seed_decides():
    labels = np.arange(60) % 3
    groups = np.arange(60) // 3
    for given_groups in (None, groups):
        folds = [fold_of(labels, 4, given_groups, seed) for seed in (0, 0, 1)]
        assert np.array_equal(folds[0], folds[1]) and not np.array_equal(folds[0], folds[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds: expected 2 … 6"),
        ({"folds": 2.5}, "folds: expected 2 … 6"),
        ({"groups": [1, 2]}, r"groups: expected one name for each of 6 videos, got shape \(2,\)"),
        ({"groups": [0, 0, 0, 1, 1, 1], "folds": 3}, "at least 3 .*got 2"),
        ({"keys": ["a"]}, "keys: expected one name for each"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        split_folds(np.arange(6) % 2, **{"folds": 2, **options})


def test_copies_are_fitted_on_the_other_folds():
    z, y = ensemble(2, n=90, k=3)
    weight = np.random.default_rng(0).uniform(size=90)
    splits = split_folds(y, 3)
    ours = out_of_fold(vf.LogLinearPool(weights="accuracy"), stack_of(z, y), y, splits, weight)
    for fit, rest in splits:
        rule = vf.LogLinearPool(weights="accuracy").fit(z[fit], y[fit], weight[fit])
        np.testing.assert_allclose(ours[rest], rule.predict_log_proba(z[rest]), atol=1e-12)


@pytest.mark.parametrize("name", ["accuracy", "log-odds", "inverse-nll"])
@pytest.mark.parametrize("build", [vf.LogLinearPool, vf.LinearPool, vf.MajorityVote])
@pytest.mark.parametrize("weighted", [None, "all", "some", "balanced"])
def test_weights_by_score_follow_from_one_reading(name, build, weighted):
    """As fits on each fold's own videos would give them; one fit is enough where all videos count."""
    z, y = ensemble(3, n=90, m=4, k=3)
    weight = (
        None if weighted in (None, "balanced") else np.random.default_rng(0).integers(0, 4, 90) + (weighted == "all")
    )
    if weighted == "balanced" and build is vf.MajorityVote:
        return
    rule = build(weights=name, **({"class_weight": "balanced"} if weighted == "balanced" else {}))
    splits = split_folds(y, 4)
    copies = fit_copies(rule, stack_of(z, y), y, splits, weight)
    assert len({id(copy.agreement_) for copy in copies}) == (1 if weighted in (None, "all") else 4)
    assert len({tuple(copy.weights_) for copy in copies}) == 4
    for copy, (fit, rest) in zip(copies, splits, strict=True):
        own = clone(rule).fit(z[fit], y[fit], None if weight is None else weight[fit])
        np.testing.assert_allclose(copy.weights_, own.weights_, rtol=1e-12)
        np.testing.assert_allclose(copy.predict_log_proba(z[rest]), own.predict_log_proba(z[rest]), atol=1e-12)
        np.testing.assert_array_equal(copy.summary(20).lower < copy.weights_, True)


def test_a_rule_without_its_videos_does_not_refit():
    z, y = ensemble(3, n=90, m=4, k=3)
    rule = vf.LogLinearPool(weights="accuracy").fit(z, y)
    for other, size in ((pickle.loads(pickle.dumps(rule)), 90), (rule, 89)):
        with pytest.raises(InputError, match=f"fitted on {size} videos"):
            other.refitted(np.ones(size))
    with pytest.raises(NotImplementedError):
        vf.StackedPool().refitted(np.ones(90))


class Memory(ClassifierMixin, BaseEstimator):
    """A rule that says it needs no labels, and learns them by heart where it gets them."""

    def fit(self, X, y=None, sample_weight=None):
        self.labels_ = X.labels if y is None else y
        return self

    def predict_log_proba(self, X):
        if self.labels_ is None:
            return np.full((len(X), X.n_classes), -np.log(X.n_classes))
        return np.log(np.eye(X.n_classes)[self.labels_[: len(X)]] + 1e-9)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags


def test_a_rule_that_needs_no_labels_gets_none():
    z, y = ensemble(2, n=90, k=3)
    found = out_of_fold(Memory(), stack_of(z, y), y, split_folds(y, 3))
    assert (found == -np.log(3)).all()


def test_a_rule_that_learns_nothing_is_fitted_once():
    z, y = ensemble(2, n=90, k=3)
    stack, splits = stack_of(z, y), split_folds(y, 3)
    uniform, learned = vf.LogLinearPool(weights="uniform"), vf.LogLinearPool(weights="accuracy")
    assert len(set(map(id, fit_copies(uniform, stack, y, splits)))) == 1
    assert len(set(map(id, fit_copies(learned, stack, y, splits)))) == 3
    np.testing.assert_array_equal(
        out_of_fold(uniform, stack, y, splits), uniform.fit(stack, y).predict_log_proba(stack)
    )


def test_shrinkage_by_cross_validation_does_not_depend_on_the_order_of_rows():
    """With ids; without them, the folds of one order choose another strength than those of another."""
    z, y = ensemble(1, n=50, m=4, k=3, signal=1.0)
    ids, rng = np.array([f"v{i}" for i in range(50)]), np.random.default_rng(1)
    draws = [rng.permutation(50) for _ in range(6)]
    pool = vf.LogLinearPool(shrinkage="cv")
    assert len({pool.fit(stack_of(z[rows], y[rows], ids=ids[rows])).shrinkage_ for rows in draws}) == 1
    assert len({pool.fit(stack_of(z[rows], y[rows])).shrinkage_ for rows in draws}) > 1


def test_even_folds_keep_groups_whole_and_follow_from_the_losses_alone():
    rng = np.random.default_rng(0)
    loss, groups, rows = rng.random(100), rng.integers(0, 23, 100), rng.permutation(100)
    fold = even_folds(loss, 5, groups)
    assert all(len(set(fold[groups == name])) == 1 for name in groups)
    assert sorted(np.bincount([fold[groups == name][0] for name in np.unique(groups)])) == [4, 4, 5, 5, 5]
    np.testing.assert_array_equal(even_folds(loss[rows], 5, groups[rows]), fold[rows])
    alone = even_folds(loss, 5)
    assert (np.bincount(alone) == 20).all()
    assert np.ptp([loss[alone == k].mean() for k in range(5)]) < 0.05
