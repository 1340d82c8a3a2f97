"""Every rule that recipes list, with the parameters that change how it works, and small ensembles to fit them on."""

from __future__ import annotations

from importlib import import_module

import numpy as np
from sklearn.base import clone

from vidfuse._rules import RULES
from vidfuse.fusion.calibration import Calibrated, TemperatureScaling, VectorScaling
from vidfuse.fusion.dynamic import DynamicPool
from vidfuse.fusion.linear import LinearPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule
from vidfuse.fusion.stacking import StackedPool
from vidfuse.fusion.votes import BordaCount, MajorityVote
from vidfuse.selection.cascade import Cascade
from vidfuse.selection.greedy import GreedyPool
from vidfuse.selection.subsets import SubsetPool

K = 4

VARIANTS = {
    "LogLinearPool": {
        "default": LogLinearPool(),
        "unshrunk": LogLinearPool(shrinkage=None),
        "cv": LogLinearPool(shrinkage="cv"),
        "shared": LogLinearPool(per_class=False),
        "per-class": LogLinearPool(per_class=True),
        "balanced": LogLinearPool(class_weight="balanced"),
        "log-linear-accuracy": LogLinearPool(weights="accuracy", power=2.0),
        "log-linear-uniform": LogLinearPool(weights="uniform"),
        "log-linear-given": LogLinearPool(weights=[1.0, 0.0, 3.0]),
    },
    "LinearPool": {
        "linear": LinearPool(),
        "linear-log-odds": LinearPool(weights="log-odds"),
        "linear-inverse-nll": LinearPool(weights="inverse-nll"),
    },
    "MajorityVote": {"vote": MajorityVote(), "vote-weighted": MajorityVote(weights="accuracy")},
    "BordaCount": {"borda": BordaCount(), "borda-weighted": BordaCount(weights="inverse-nll")},
    "StackedPool": {"stacked": StackedPool(), "stacked-diagonal": StackedPool("diagonal")},
    "Calibrated": {
        "calibrated": Calibrated(LogLinearPool(weights="accuracy")),
        "calibrated-given": Calibrated(LinearPool(weights=[1.0, 0.0, 3.0])),
        "calibrated-members": Calibrated(LinearPool(), VectorScaling(), where="members"),
        "calibrated-members-given": Calibrated(LinearPool(weights=[1.0, 0.0, 3.0]), where="members"),
    },
    "DynamicPool": {
        "dynamic": DynamicPool(LogLinearPool(shrinkage=30.0, per_class=False), neighbours=5),
        "dynamic-per-class": DynamicPool(LogLinearPool(per_class=True), features="confidence"),
        "dynamic-given": DynamicPool(LogLinearPool(weights=[1.0, 0.5, 3.0]), features="competence"),
    },
    "SubsetPool": {
        "subset": SubsetPool(LogLinearPool(weights="accuracy")),
        "subset-given": SubsetPool(LogLinearPool(weights=[1.0, 0.5, 3.0]), costs=[3.0, 2.0, 1.0], budget=4.0),
        "subset-learned": SubsetPool(LogLinearPool(), "nll", max_members=2),
        "subset-stacked": SubsetPool(StackedPool(), max_members=2),
    },
    "GreedyPool": {
        "greedy": GreedyPool("nll", rounds=10),
        "greedy-accuracy": GreedyPool("accuracy", 10, pool="log-linear", costs=[3.0, 2.0, 1.0]),
        "greedy-bagged": GreedyPool("nll", rounds=5, bagging=3),
    },
    "Cascade": {
        "cascade": Cascade(LogLinearPool(weights="accuracy"), at_most=0.4, confidence=0.8),
        "cascade-given": Cascade(LinearPool("uniform"), costs=[3.0, 2.0, 1.0], risk="label", at_most=0.5, by="margin"),
    },
    "TemperatureScaling": {"temperature": TemperatureScaling()},
    "VectorScaling": {"vector": VectorScaling()},
}
"""Parameters that change how a rule works, by class; a rule without an entry is tried with its defaults."""

ESTIMATORS = {
    case: estimator
    for name, module in RULES.items()
    for case, estimator in (VARIANTS.get(name) or {name: getattr(import_module(module), name)()}).items()
}
"""Case → every rule and calibrator that a recipe can hold, unfitted."""

CASES = {case: estimator for case, estimator in ESTIMATORS.items() if isinstance(estimator, Rule)}
"""Those that fuse members."""


def members(n=80, seed=0, classes=K, noise=1.0):
    """Return {name: logits (N, K)} and labels: two members know one half of the classes each, the third knows all."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    middle = classes // 2
    low = y < middle
    neighbour = np.where(low, (y + 1) % middle, middle + (y + 1 - middle) % (classes - middle))
    shared = rng.normal(size=(n, classes))
    said = {
        "b": (3.0, np.where(low, y, neighbour)),
        "a": (3.0, np.where(low, neighbour, y)),
        "c": (2.5, y),
    }
    logits = {
        name: 0.7 * shared + noise * rng.normal(size=(n, classes)) + skill * np.eye(classes)[chosen]
        for name, (skill, chosen) in said.items()
    }
    return logits, y


def array_of(arrays):
    """Return the members' arrays as one, (N, M, K)."""
    return np.stack(list(arrays.values()), axis=1)


def by_name(rule, names):
    """Return a copy whose numbers in lists, and those of rules within it, are given as {member: number}."""
    copy = clone(rule)
    for parameter, value in copy.get_params().items():
        if isinstance(value, list):
            copy.set_params(**{parameter: dict(zip(names, value, strict=True))})
    return copy


def features(estimator, X):
    """Return what an estimator takes of an array (N, M, K): a scaler its first member."""
    if hasattr(estimator, "predict"):
        return X
    return [video[0] for video in X] if isinstance(X, list) else X[:, 0]


def output(estimator, X):
    """Return the log-likelihoods (N, K) that a fitted estimator gives for an array (N, M, K)."""
    predict = estimator.predict_log_proba if hasattr(estimator, "predict") else estimator.transform
    return predict(features(estimator, X))


def fitted(estimator, X, y, sample_weight=None):
    """Return a fitted copy; an array (N, M, K) is cut down to what the estimator takes."""
    return clone(estimator).fit(features(estimator, X), y, sample_weight=sample_weight)
