"""scikit-learn's own wrappers around rules: they work, or a class that no video has ends in an error that says so."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.model_selection import cross_val_predict, cross_val_score

from vidfuse import LogitStack, LogLinearPool, MajorityVote
from vidfuse.errors import InputError

K = 4
TWO = [("pool", LogLinearPool()), ("vote", MajorityVote())]
WRAPPERS = {
    "cross_val_predict": lambda X, y: cross_val_predict(LogLinearPool(), X, y, cv=3, method="predict_proba"),
    "soft vote": lambda X, y: VotingClassifier(TWO, voting="soft").fit(X, y).predict_proba(X),
    "hard vote": lambda X, y: np.eye(K)[VotingClassifier(TWO).fit(X, y).predict(X)],
    "stacking": lambda X, y: StackingClassifier(TWO, cv=3).fit(X, y).predict_proba(X),
    "calibrated": lambda X, y: CalibratedClassifierCV(LogLinearPool(), cv=3).fit(X, y).predict_proba(X),
    "calibrated once": lambda X, y: CalibratedClassifierCV(LogLinearPool(), cv=3, ensemble=False).fit(X, y)
    .predict_proba(X),
}  # fmt: skip
GIVEN_AS = {
    "array": lambda X, y: X,
    "stack": lambda X, y: LogitStack.from_arrays(X),
    "labelled stack": lambda X, y: LogitStack.from_arrays(X, labels=y),
}


@pytest.fixture
def data():
    rng, y = np.random.default_rng(0), np.arange(120) % K
    return rng.normal(size=(120, 3, K)) + 2.5 * np.eye(K)[y][:, None], y


@pytest.mark.parametrize("given_as", GIVEN_AS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_with_videos_of_every_class_they_work(wrapper, given_as, data):
    X, y = data
    p = WRAPPERS[wrapper](GIVEN_AS[given_as](X, y), y)
    assert p.shape == (120, K)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    assert (p.argmax(axis=1) == y).mean() > 0.8


@pytest.mark.parametrize("absent", range(K - 1))
@pytest.mark.parametrize("given_as", GIVEN_AS)
@pytest.mark.parametrize("wrapper", sorted(set(WRAPPERS) - {"calibrated"}))
def test_labels_that_they_number_anew_are_refused(wrapper, given_as, absent, data):
    X, y = data
    X, y = X[y != absent], y[y != absent]
    with pytest.raises(InputError, match=rf"what y calls class {absent} is class {absent + 1} .*scikit-learn"):
        WRAPPERS[wrapper](GIVEN_AS[given_as](X, y), y)


def test_calibration_by_folds_numbers_nothing_anew_and_refuses_itself(data):
    X, y = data
    with pytest.raises(ValueError, match="previously unseen labels"):
        WRAPPERS["calibrated"](X[y != 1], y[y != 1])


@pytest.mark.parametrize("given_as", GIVEN_AS)
@pytest.mark.parametrize("absent", range(K))
def test_labels_of_some_of_the_classes_are_taken_as_they_are(absent, given_as, data):
    """The highest class may be absent too: then the others are numbered as if anew."""
    X, y = data
    some = GIVEN_AS[given_as](X[y != absent], y[y != absent])
    rule = LogLinearPool().fit(some, y[y != absent])
    assert (rule.predict(X) == y).mean() > 0.7
    assert cross_val_score(LogLinearPool(), some, y[y != absent], cv=3).mean() > 0.7


@pytest.mark.parametrize("given_as", GIVEN_AS)
def test_members_that_know_nothing_of_two_of_three_classes_are_no_reason_to_refuse(given_as):
    """Only labels that all stand for other classes, in their order, were numbered anew."""
    y = np.array([0, 1] * 20)
    always_last = np.tile([0.0, 0.0, 4.0], (40, 2, 1))
    LogLinearPool(weights="accuracy", power=0.0).fit(GIVEN_AS[given_as](always_last, y), y)


def test_other_labels_than_the_stacks_are_said_to_differ_where_no_numbering_explains_them(data):
    X, y = data
    swapped = np.array([1, 0, 2, 3])[y]
    with pytest.raises(InputError, match="differ in 60 of 120"):
        LogLinearPool().fit(LogitStack.from_arrays(X, labels=y), swapped)
