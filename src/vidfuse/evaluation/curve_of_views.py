"""The curve of views: how many are worth their cost?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError
from vidfuse.evaluation.curves import Curve, points_of
from vidfuse.evaluation.resampling import Draw
from vidfuse.evaluation.scores import missing_of
from vidfuse.evaluation.trial import Trial, open_trial
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule
from vidfuse.fusion.views import reduce_views
from vidfuse.metrics.objectives import Objective, objective_name
from vidfuse.stack.stack import LogitStack

__all__ = ["views_curve", "views_curve_of"]


def views_curve(
    stack: LogitStack,
    test: LogitStack | None = None,
    *,
    rule: Rule | None = None,
    sizes: Sequence[int] | None = None,
    cost: float = math.nan,
    objective: str | Objective = "accuracy",
    folds: int = 5,
    groups: Any = None,
    views: str = "mean-log",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | None = 0,
) -> Curve:
    """Score a rule on one view of each video, two, … all: how many are worth their cost?

    Of V views, v evenly spaced ones are taken, and reduced as all of them would be.

    Args:
        stack: Labelled stack that the rule is fitted on, (N, M, V, K).
        test: Labelled stack, (N, M, V, K), that it is scored on; without it the rule is cross-fitted.
        rule: Any unfitted rule; `LogLinearPool()` by default. It is fitted anew for each number of views.
        sizes: Numbers of views; by default 1, 2, 3, 5, 10, 20, 30, … and all.
        cost: What one view of all members costs; points carry the product.
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`.
        folds: The number of folds without `test`; 0 for in-sample scores.
        groups: What each video comes from; see `leaderboard`.
        views: How views are reduced.
        confidence: The intervals' nominal coverage.
        n_resamples: Bootstrap resamples, of losses, of macro-F1 and of callables.
        random_state: Seed of folds and resamples.

    Raises:
        InputError: labels or views are missing, or a number of views is out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=120)
        >>> logits = {f"net{i}": rng.normal(size=(120, 4, 3)) + np.eye(3)[y][:, None] for i in range(2)}
        >>> [point.x for point in views_curve(LogitStack.from_arrays(logits, labels=y)).points]
        [1, 2, 3, 4]
    """
    trial = open_trial(stack, test, folds=folds, groups=groups, random_state=random_state, what="a curve of views")
    rule = LogLinearPool(missing=missing_of(trial.fit_stack, trial.scored)) if rule is None else rule
    draw = Draw(trial.labels, objective, confidence, n_resamples, random_state, trial.scored.groups)
    return views_curve_of(trial, rule, draw, views, sizes, cost)


def views_curve_of(
    trial: Trial,
    rule: Rule,
    draw: Draw,
    views: str = "mean-log",
    sizes: Sequence[int] | None = None,
    cost: float = math.nan,
) -> Curve:
    """Return the curve of views of a trial with its views; see `views_curve`.

    Raises:
        InputError: views are missing, or a number of views is out of range.
    """
    n_views = trial.fit_stack.n_views
    if n_views is None or trial.scored.n_views != n_views:
        raise InputError(
            f"a curve of views takes stacks (N, M, V, K) of as many views, got {trial.fit_stack.shape} and "
            f"{trial.scored.shape}; load them with their views, unreduced"
        )
    if sizes is None:
        sizes = sorted({*(v for v in (1, 2, 3, 5, *range(10, n_views, 10)) if v < n_views), n_views})
    if not sizes or min(sizes) < 1 or max(sizes) > n_views:
        raise InputError(f"sizes: expected numbers of views within 1 … {n_views}, got {list(sizes)}")
    sizes = sorted(set(sizes))
    predictions = []
    for v in sizes:
        few = trial.reduced(views) if v == n_views else _few_views(trial, views, v, n_views)
        predictions.append([few.predict(few.fit(rule))])
    points = points_of(draw, type(rule).__name__, sizes, predictions, costs=[cost * v for v in sizes])
    return Curve("Views of each video", "views", objective_name(draw.objective), tuple(points), trial.protocol)


def _few_views(trial: Trial, how: str, v: int, n_views: int) -> Trial:
    """Return the trial with v of its views, evenly spaced, and these reduced."""
    chosen = np.zeros(n_views, bool)
    chosen[np.round((np.arange(v) + 0.5) * n_views / v - 0.5).astype(int)] = True
    fit_stack = _some_views(trial.fit_stack, how, chosen)
    scored = fit_stack if trial.scored is trial.fit_stack else _some_views(trial.scored, how, chosen)
    return replace(trial, fit_stack=fit_stack, scored=scored, _scales={})  # these scores are used once


def _some_views(stack: LogitStack, how: str, chosen: NDArray[np.bool_]) -> LogitStack:
    return reduce_views(stack, how, present=np.broadcast_to(chosen, (len(stack), len(chosen))))
