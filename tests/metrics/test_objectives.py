from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate

import vidfuse as vf
from vidfuse.errors import InputError
from vidfuse.metrics import Scorer, mean_class_accuracy, nll, resolve_objective, top_k_accuracy
from vidfuse.metrics.objectives import evaluate, higher_is_better, labels_of, objective_name


class Labelled:
    def __init__(self, labels):
        self.labels = labels


class Certain:
    def predict_log_proba(self, X):
        return np.log(np.full((4, 2), 0.5))


def nothing(labels, log_proba):
    return None


def test_names_resolve_to_the_metrics():
    assert resolve_objective("accuracy") is top_k_accuracy
    assert resolve_objective("mean-class-accuracy") is mean_class_accuracy
    assert resolve_objective("nll") is nll
    assert resolve_objective(max) is max
    assert [higher_is_better(o) for o in ("accuracy", "nll", max)] == [True, False, True]
    with pytest.raises(InputError, match="accuracy, mean-class-accuracy, macro-f1, nll or a callable, got 'f1'"):
        resolve_objective("f1")


def test_a_value_that_is_no_number_names_its_objective_and_members():
    y, log_proba = np.array([0, 1]), np.log(np.full((2, 2), 0.5))
    assert evaluate("nll", y, log_proba, ["a"]) == pytest.approx(np.log(2))
    assert evaluate(lambda labels, p: np.float32(0.5), y, log_proba, ["a"]) == 0.5
    assert evaluate(lambda labels, p: -np.inf, y, log_proba, ["a"]) == -np.inf
    with pytest.raises(InputError, match="objective nothing: expected a number, got None for 'a', 'b'"):
        evaluate(nothing, y, log_proba, ["a", "b"])
    assert [objective_name(o) for o in ("nll", nothing)] == ["nll", "nothing"]


def test_scorers_work_in_cross_validation_and_grid_search():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    X = np.eye(3)[y] + rng.normal(size=(90, 3))
    plain = cross_val_score(LogisticRegression(), X, y, scoring="neg_log_loss", cv=3)
    ours = cross_val_score(LogisticRegression(), X, y, scoring=vf.scorers["neg-nll"], cv=3)
    np.testing.assert_allclose(ours, plain, atol=1e-12)
    several = cross_validate(
        LogisticRegression(), X, y, cv=3, scoring={k: vf.scorers[k] for k in ("accuracy", "neg-ece")}
    )
    assert (several["test_neg-ece"] <= 0).all() and (several["test_accuracy"] > 0.5).all()
    search = GridSearchCV(LogisticRegression(), {"C": [1e-3, 1.0]}, scoring=vf.scorers["neg-brier"], cv=3).fit(X, y)
    assert search.best_params_ == {"C": 1.0}


def test_a_scorer_takes_the_stacks_labels():
    score = vf.scorers["accuracy"]
    assert score(Certain(), Labelled(np.array([0, 0, 1, 0]))) == 0.75
    assert score(Certain(), Labelled(None), [0, 0, 1, 1]) == 0.5


def test_scorers_pickle_and_print():
    for name, score in vf.scorers.items():
        again = pickle.loads(pickle.dumps(score))
        assert repr(again) == repr(score)
        assert again.sign == (-1 if name.startswith("neg-") else 1)
    assert repr(vf.scorers["top-5-accuracy"]) == "Scorer(top_k_accuracy, k=5, sign=1)"
    assert repr(Scorer(nll, sign=-1)) == "Scorer(nll, sign=-1)"


def test_row_18_labels_missing():
    with pytest.raises(InputError, match="the test split has none"):
        labels_of(Labelled(None), where="the test split")


def test_row_53_two_sources_of_labels_differ():
    assert labels_of(Labelled(np.array([0, 1])), [0, 1]).tolist() == [0, 1]
    with pytest.raises(InputError, match=r"differ in 2 of 3 videos \(row 0: y 1, stack 0; row 2: y 0, stack 2\)"):
        labels_of(Labelled(np.array([0, 1, 2])), [1, 1, 0])
    with pytest.raises(InputError, match="expected 2, one for each video, got 1"):
        labels_of(Labelled(np.array([0, 1])), [0])


def test_the_package_is_lazy_and_complete():
    code = "import sys, vidfuse.metrics as m; assert 'numpy' not in sys.modules; assert set(m.__all__) == set(m._HOME)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(getattr(vf.metrics, name) is not None for name in vf.metrics.__all__)
    assert dir(vf.metrics) == vf.metrics.__all__
    with pytest.raises(AttributeError, match="f1"):
        vf.metrics.f1  # noqa: B018
