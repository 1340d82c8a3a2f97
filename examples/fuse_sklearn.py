"""Fuse scikit-learn classifiers: weights are learned on out-of-fold predictions, and judged on digits nobody has seen.

    python examples/fuse_sklearn.py

Real digits, and the base install only. Beside it: scikit-learn's own soft voting and stacking of the same classifiers.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier, StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict, train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import vidfuse as vf

STACKING = "scikit-learn's stacking"


def rows_of(first: int, last: int) -> FunctionTransformer:
    """Return a look at some of a digit's eight rows of pixels, as part of a pipeline."""
    return FunctionTransformer(lambda pixels: pixels[:, 8 * first : 8 * last])


def main(n_train: int = 300) -> dict[str, tuple[float, float]]:
    """Print and return each way's accuracy and negative log-likelihood on the test digits."""
    X, y = load_digits(return_X_y=True)
    X = X / 16
    X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=n_train, stratify=y, random_state=0)
    members = {
        "bayes": GaussianNB(var_smoothing=0.02),
        "forest": RandomForestClassifier(30, random_state=0),
        "lower": make_pipeline(rows_of(4, 8), LogisticRegression(max_iter=500)),
        "upper": make_pipeline(rows_of(0, 4), LogisticRegression(max_iter=500)),
    }

    # Each training digit is predicted by a model that has not seen it; the test digits by one that has seen them all.
    held_out = {
        name: cross_val_predict(m, X_train, y_train, cv=5, method="predict_proba") for name, m in members.items()
    }
    answers = {name: m.fit(X_train, y_train).predict_proba(X_test) for name, m in members.items()}
    fit = vf.LogitStack.from_arrays(held_out, kind="probabilities", labels=y_train)
    test = vf.LogitStack.from_arrays(answers, kind="probabilities", labels=y_test)

    pool = vf.LogLinearPool().fit(fit)  # a scikit-learn estimator: clone, cross_val_score, GridSearchCV work on stacks
    log_proba = {f"only {name}": np.log(np.maximum(p, 1e-9)) for name, p in answers.items()}
    log_proba["vidfuse"] = pool.predict_log_proba(test)
    listed = list(members.items())
    for name, rival in {
        "scikit-learn's soft voting": VotingClassifier(listed, voting="soft"),
        STACKING: StackingClassifier(listed, cv=5),
    }.items():
        log_proba[name] = np.log(np.maximum(rival.fit(X_train, y_train).predict_proba(X_test), 1e-9))

    scores = {
        name: (vf.metrics.top_k_accuracy(y_test, log_p), vf.metrics.nll(y_test, log_p))
        for name, log_p in log_proba.items()
    }
    for name, (accuracy, nll) in scores.items():
        print(f"{name:<28} {100 * accuracy:5.1f} %   NLL {nll:.3f}")
    right = {name: log_p.argmax(axis=1) == y_test for name, log_p in log_proba.items()}
    print(f"vidfuse and stacking, paired: {vf.metrics.mcnemar(right['vidfuse'], right[STACKING])}")
    return scores


if __name__ == "__main__":
    main()
