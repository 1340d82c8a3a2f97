"""The curve of labelled videos: how many do the weights need?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils import get_tags

from vidfuse._checks import check_count
from vidfuse.errors import InputError
from vidfuse.evaluation.curves import Curve, points_of
from vidfuse.evaluation.resampling import Draw, Repeated
from vidfuse.evaluation.scores import floor_of, missing_of, require_labels
from vidfuse.evaluation.trial import Trial, open_trial
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule
from vidfuse.metrics.objectives import Objective, objective_name
from vidfuse.stack.stack import LogitStack

__all__ = ["learning_curve", "learning_curve_of", "most_videos"]

_FEWEST = 20  # videos, where a learning curve starts


def learning_curve(
    stack: LogitStack,
    test: LogitStack | None = None,
    *,
    rules: Mapping[str, Rule] | None = None,
    sizes: Sequence[int] | None = None,
    repeats: int = 3,
    objective: str | Objective = "accuracy",
    folds: int = 5,
    groups: Any = None,
    views: str | Mapping[str, str] = "mean-log",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | None = 0,
) -> Curve:
    """Score rules fitted on more and more labelled videos: how many do the weights need?

    Each repeat puts the videos of the fit into an order that brings the classes in turn, whole groups at a time, and
    fits on the first n. All sizes are scored on the same videos: those of `test`, or of the fold that is left out. The
    largest possible size takes all videos of each fold, so that its points are those of `leaderboard`.

    Args:
        stack: Labelled stack that rules are fitted on, (N, M, K) or (N, M, V, K).
        test: Labelled stack that they are scored on; without it they are cross-fitted.
        rules: Name → unfitted rule; by default learned weights and the average of log-likelihoods.
        sizes: Numbers of videos to fit on; by default doubling from 20 up to all that there are.
        repeats: How many orders are drawn.
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`.
        folds: The number of folds without `test`.
        groups: What each video comes from; see `leaderboard`. A size counts videos; groups are taken whole.
        views: How views are reduced where the stack has them.
        confidence: The intervals' nominal coverage.
        n_resamples: Bootstrap resamples, of losses, of macro-F1 and of callables.
        random_state: Seed of folds, orders and resamples.

    Raises:
        InputError: labels are missing, a size is out of range, or there is no rule.

    Source:
        Perlich, Provost and Simonoff (2003), Tree induction vs. logistic regression: a learning-curve analysis, JMLR 4.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=120)
        >>> logits = {f"net{i}": rng.normal(size=(120, 3)) + (1 + i) * np.eye(3)[y] for i in range(3)}
        >>> curve = learning_curve(LogitStack.from_arrays(logits, labels=y), sizes=[20, 90], repeats=2)
        >>> curve.names, [point.x for point in curve.series()]
        (('learned weights', 'average of log-likelihoods'), [20, 90])
    """
    what = "a learning curve"
    if test is None and not folds:
        raise InputError("folds: expected at least 2 without a test stack; a learning curve in-sample says nothing")
    trial = open_trial(stack, test, folds=folds, groups=groups, random_state=random_state, what=what).reduced(views)
    missing = missing_of(trial.fit_stack, trial.scored)
    if rules is None:
        rules = {
            "learned weights": LogLinearPool(missing=missing),
            "average of log-likelihoods": LogLinearPool(
                weights="uniform", floor=floor_of(trial.fit_stack, trial.scored), missing=missing
            ),
        }
    draw = Draw(trial.labels, objective, confidence, n_resamples, random_state, trial.scored.groups)
    return learning_curve_of(trial, rules, draw, sizes, repeats)


def learning_curve_of(
    trial: Trial, rules: Mapping[str, Rule], draw: Draw, sizes: Sequence[int] | None = None, repeats: int = 3
) -> Curve:
    """Return the learning curve of a trial without views; see `learning_curve`.

    Raises:
        InputError: a size or the repeats are out of range, or there is no rule.
    """
    check_count("repeats", repeats)
    if not rules:
        raise InputError("rules: expected at least one, got none")
    most = most_videos(trial)
    sizes = _sizes(sizes, most)
    rng = np.random.default_rng(draw.random_state)
    orders = [[_order(trial.fit_stack, fit_rows, rng) for fit_rows, _ in trial.splits] for _ in range(repeats)]
    points = []
    for name, rule in rules.items():
        learns = get_tags(rule).target_tags.required
        predictions: list[Repeated] = [
            [_fitted_on(trial, rule, [order[:size] for order in by_fold]) for by_fold in orders]
            for size in sizes
            if learns and size < most
        ]
        if len(predictions) < len(sizes):
            whole = trial.predict(trial.fit(rule))
            predictions += [[whole] * (repeats if learns else 1)] * (len(sizes) - len(predictions))
        points += points_of(draw, name, sizes, predictions)
    title = "Labelled videos that weights are fitted on"
    return Curve(title, "videos", objective_name(draw.objective), tuple(points), trial.protocol)


def most_videos(trial: Trial) -> int:
    """Return the number of videos that every fold's fit can have."""
    n = len(trial.fit_stack)
    return min(len(np.arange(n)[fit_rows]) for fit_rows, _ in trial.splits)


def _sizes(sizes: Sequence[int] | None, most: int) -> list[int]:
    """Return sizes of a learning curve, rising; by default 20, 40, 80, … and all."""
    if sizes is None:
        steps = range(max(1, math.ceil(math.log2(max(most, 2) / _FEWEST))))
        return sorted({*(size for size in (_FEWEST << step for step in steps) if size < most), most})
    found = sorted({int(size) for size in sizes})
    if not found or found[0] < 2 or found[-1] > most:
        raise InputError(
            f"sizes: expected numbers within 2 … {most} (the videos that a fit may see), got {list(sizes)}"
        )
    return found


def _order(stack: LogitStack, fit_rows: Any, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows of a fit in random order: the classes in turn, the videos of a group together.

    class of a group   a  a  b  b  b  c      the largest class of its videos
    its turn           2  1  1  3  2  1      random within the class
    order              by turn: one of each class, then another …
    """
    rows = np.arange(len(stack))[fit_rows]
    labels = require_labels(stack, "an order")[rows]
    group = np.arange(len(rows)) if stack.groups is None else np.unique(stack.groups[rows], return_inverse=True)[1]
    n_groups = int(group.max()) + 1
    counts = np.zeros((n_groups, int(labels.max()) + 1), np.int64)
    np.add.at(counts, (group, labels), 1)
    own = counts.argmax(axis=1)
    shuffled = rng.permutation(n_groups)
    by_class = shuffled[np.argsort(own[shuffled], kind="stable")]
    sizes = np.bincount(own)
    turn = np.empty(n_groups)
    turn[by_class] = np.concatenate([np.arange(size) for size in sizes if size]) + rng.random(n_groups)
    return rows[np.argsort(turn[group], kind="stable")]


def _fitted_on(trial: Trial, rule: Rule, rows: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return predictions of the scored videos by copies that were fitted on these rows of each fold."""
    labels = require_labels(trial.fit_stack, "a fit")
    copies = [clone(rule).fit(trial.fit_stack[own], labels[own]) for own in map(np.sort, rows)]
    return trial.predict(copies)
