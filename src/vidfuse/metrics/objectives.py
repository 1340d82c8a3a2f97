"""What a search or a cross-validation maximises: named objectives, and scorers for scikit-learn."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import check_labels, check_same_labels, did_you_mean, first_few
from vidfuse.errors import InputError, option
from vidfuse.metrics._inputs import as_labels
from vidfuse.metrics.accuracy import macro_f1, mean_class_accuracy, top_k_accuracy
from vidfuse.metrics.probabilistic import brier, ece, nll

__all__ = ["OBJECTIVES", "Objective", "Scorer", "higher_is_better", "resolve_objective", "scorers"]

Objective = Callable[[Any, Any], float]
"""A function `(labels, log_proba) -> float`, of labels (N,) and log-likelihoods (N, K)."""

OBJECTIVES: Mapping[str, tuple[Objective, bool]] = MappingProxyType(
    {
        "accuracy": (top_k_accuracy, True),
        "mean-class-accuracy": (mean_class_accuracy, True),
        "macro-f1": (macro_f1, True),
        "nll": (nll, False),
    }
)
"""Named objectives: the metric, and whether higher is better."""


def resolve_objective(objective: str | Objective) -> Objective:
    """Return the metric of a named objective, in its own units (the NLL stays in nats), or the callable itself.

    Args:
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`.

    Raises:
        InputError: On an unknown name, or what is neither a name nor callable.

    Example:
        >>> resolve_objective("accuracy")([0, 1], [[2.0, 1.0], [3.0, 0.0]])
        0.5
    """
    if callable(objective):
        return objective
    if objective in OBJECTIVES:
        return OBJECTIVES[objective][0]
    raise InputError(
        f"objective: expected one of {', '.join(OBJECTIVES)} or a callable, got {objective!r}"
        f"{did_you_mean(objective, OBJECTIVES)}"
    )


def higher_is_better(objective: str | Objective) -> bool:
    """Return whether a larger value of the objective is better: for all but "nll", callables included."""
    resolve_objective(objective)
    return True if callable(objective) else OBJECTIVES[objective][1]


def objective_name(objective: str | Objective) -> str:
    """Return what results and errors call an objective.

    Example:
        >>> objective_name("nll"), objective_name(brier)
        ('nll', 'brier')
    """
    if isinstance(objective, str):
        return objective
    if objective is macro_f1:
        return "macro-f1"
    return getattr(objective, "__name__", repr(objective))


def evaluate(
    objective: str | Objective, labels: NDArray[np.int64], log_proba: NDArray[np.floating[Any]], members: Sequence[str]
) -> float:
    """Return the objective's value of some members' predictions; an error names the members.

    Args:
        objective: A name or a callable.
        labels: True classes, shape (N,).
        log_proba: Log-likelihoods, shape (N, K).
        members: Whose predictions they are; none for those of no member at all.

    Raises:
        InputError: The callable returns NaN, or no number.

    Example:
        >>> evaluate(lambda labels, log_proba: None, np.array([0]), np.zeros((1, 2)), ["a", "b"])
        Traceback (most recent call last):
        vidfuse.errors.InputError: objective <lambda>: expected a number, got None for 'a', 'b'; ...
    """
    given: Any = resolve_objective(objective)(labels, log_proba)
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if math.isnan(value):
        shown = "NaN" if isinstance(given, float) else reprlib.repr(given)
        raise InputError(
            f"objective {objective_name(objective)}: expected a number, got {shown} for "
            f"{first_few(members, 20) or 'no member at all'}; let it return one number, higher is better"
        )
    return value


@dataclass(frozen=True)
class Scorer:
    """A scorer for scikit-learn that takes the labels of the stack where `y` is left out.

    Attributes:
        metric: A function `(labels, log_proba) -> float`.
        sign: 1 where higher is better, −1 for a loss, so that scikit-learn can always maximise.

    Example:
        >>> Scorer(nll, sign=-1)
        Scorer(nll, sign=-1)
    """

    metric: Objective
    sign: int = 1

    def __call__(self, estimator: Any, X: Any, y: Any = None) -> float:
        """Return `sign · metric(labels, estimator.predict_log_proba(X))`.

        Args:
            estimator: A fitted rule, or any classifier with `predict_log_proba`.
            X: A stack, or an array (N, M, K).
            y: Labels (N,); the stack's own by default.

        Raises:
            InputError: Where neither `y` nor the stack has labels, or both and they differ.
        """
        return self.sign * float(self.metric(labels_of(X, y), estimator.predict_log_proba(X)))

    def __repr__(self) -> str:
        metric = self.metric
        name = getattr(metric, "__name__", None)
        if isinstance(metric, partial):
            name = f"{metric.func.__name__}, {', '.join(f'{k}={v!r}' for k, v in metric.keywords.items())}"
        return f"Scorer({name or repr(metric)}, sign={self.sign})"


def labels_of(X: Any, y: Any = None, *, where: str = "this data") -> NDArray[np.int64]:
    """Return `y`, or the stack's labels where it is left out; both may be given where they are equal.

    Raises:
        InputError: there are none, or they differ, or a stack has another number of videos or fewer classes.
    """
    own = getattr(X, "labels", None)
    if own is None and y is None:
        raise InputError(f"labels: {where} has none; pass y, or build the stack with {option('labels')}")
    if own is None or y is None:
        known = as_labels(np.asarray(own) if y is None else y)
        n_classes = getattr(X, "n_classes", None)
        return known if n_classes is None else check_labels(known, len(X), n_classes, X.ids)
    return check_same_labels(y, own, getattr(X, "ids", None))


scorers: dict[str, Scorer] = {
    "accuracy": Scorer(top_k_accuracy),
    "top-3-accuracy": Scorer(partial(top_k_accuracy, k=3)),
    "top-5-accuracy": Scorer(partial(top_k_accuracy, k=5)),
    "mean-class-accuracy": Scorer(mean_class_accuracy),
    "macro-f1": Scorer(macro_f1),
    "neg-nll": Scorer(nll, sign=-1),
    "neg-brier": Scorer(brier, sign=-1),
    "neg-ece": Scorer(ece, sign=-1),
}
"""Scorers by name, higher is better: `GridSearchCV(pool, grid, scoring=vidfuse.scorers["neg-nll"])`."""
