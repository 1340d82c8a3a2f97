"""The curve of members: how many are worth their cost?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError
from vidfuse.evaluation.curves import Curve, points_of
from vidfuse.evaluation.resampling import LARGEST_LOSS, Draw, Repeated
from vidfuse.evaluation.scores import log_proba_of, missing_of, require_labels
from vidfuse.evaluation.trial import Trial, open_trial
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule
from vidfuse.likelihood import log_softmax
from vidfuse.metrics.objectives import Objective, higher_is_better, objective_name, resolve_objective
from vidfuse.stack.stack import LogitStack

__all__ = ["joining_order", "members_curve", "members_curve_of"]


def members_curve(
    stack: LogitStack,
    test: LogitStack | None = None,
    *,
    rule: Rule | None = None,
    order: Sequence[str] | None = None,
    cost: Mapping[str, float] | None = None,
    objective: str | Objective = "accuracy",
    folds: int = 5,
    groups: Any = None,
    views: str | Mapping[str, str] = "mean-log",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | None = 0,
) -> Curve:
    """Score a rule on one member, two, … all: how many are worth their cost?

    The first point is that member alone, as `leaderboard` has it: there is nothing to fuse. By default the member joins
    next that most improves the plain average of those before it, on the videos of the fit; without `test` that choice
    has seen the scored videos, which favours small ensembles a little. Where members lack videos, all points are scored
    on those that the first member has.

    Args:
        stack: Labelled stack that the rule is fitted on, (N, M, K) or (N, M, V, K).
        test: Labelled stack that it is scored on; without it the rule is cross-fitted.
        rule: Any unfitted rule; `LogLinearPool()` by default. It is fitted anew for each number of members from two on.
        order: The members in the order of joining.
        cost: What each member costs: multiply-adds, milliseconds, …; points carry the sum of those that have joined.
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`.
        folds: The number of folds without `test`; 0 for in-sample scores.
        groups: What each video comes from; see `leaderboard`.
        views: How views are reduced where the stack has them.
        confidence: The intervals' nominal coverage.
        n_resamples: Bootstrap resamples, of losses, of macro-F1 and of callables.
        random_state: Seed of folds and resamples.

    Raises:
        InputError: labels are missing, or the order or the costs name other members.

    Source:
        Caruana, Niculescu-Mizil, Crew and Ksikes (2004), ICML, Ensemble selection from libraries of models, section 2
        (the order of joining, without repetition).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=120)
        >>> logits = {f"net{i}": rng.normal(size=(120, 3)) + (1 + i) * np.eye(3)[y] for i in range(3)}
        >>> curve = members_curve(LogitStack.from_arrays(logits, labels=y), cost={"net0": 1, "net1": 2, "net2": 4})
        >>> [(point.label, point.cost) for point in curve.points]
        [('net2', 4.0), ('net1', 6.0), ('net0', 7.0)]
    """
    what = "a curve of members"
    trial = open_trial(stack, test, folds=folds, groups=groups, random_state=random_state, what=what).reduced(views)
    rule = LogLinearPool(missing=missing_of(trial.fit_stack, trial.scored)) if rule is None else rule
    draw = Draw(trial.labels, objective, confidence, n_resamples, random_state, trial.scored.groups)
    return members_curve_of(trial, rule, draw, order, cost)


def members_curve_of(
    trial: Trial,
    rule: Rule,
    draw: Draw,
    order: Sequence[str] | None = None,
    cost: Mapping[str, float] | None = None,
) -> Curve:
    """Return the curve of members of a trial without views; see `members_curve`.

    Raises:
        InputError: the order or the costs name other members.
    """
    members = trial.fit_stack.members
    order = joining_order(trial.fit_stack, draw.objective) if order is None else list(order)
    for name, given in (("order", order), ("cost", members if cost is None else list(cost))):
        if sorted(given) != sorted(members):
            raise InputError(f"{name}: expected each of {list(members)} once, got {list(given)}")
    common = trial.covered(order[:1])
    predictions: list[Repeated] = [[log_proba_of(trial.scored, order[0])[common]]]
    for n in range(2, len(order) + 1):
        few = trial.of(order[:n])
        predictions.append([few.predict(few.fit(rule))[common[trial.covered(order[:n])]]])
    costs = [math.nan] * len(order) if cost is None else np.cumsum([float(cost[name]) for name in order]).tolist()
    points = points_of(draw.on(common), type(rule).__name__, range(1, len(order) + 1), predictions, order, costs)
    protocol = trial.protocol
    if not common.all():
        n_groups = None if draw.groups is None else len(np.unique(np.asarray(draw.groups)[common]))
        protocol = replace(protocol, n_scored=int(common.sum()), n_scored_groups=n_groups)
    return Curve("Members, as they join", "members", objective_name(draw.objective), tuple(points), protocol)


def joining_order(stack: LogitStack, objective: str | Objective = "accuracy") -> list[str]:
    """Return the members in the order in which each most improves the plain average of those before it.

    Among equals the first name joins first, however the stack lists them.
    """
    labels = require_labels(stack, "an order of members")
    metric, sign = resolve_objective(objective), 1.0 if higher_is_better(objective) else -1.0
    left, order = sorted(stack.members), list[str]()
    total = np.zeros((len(stack), stack.n_classes), np.float32)

    def floored(name: str) -> NDArray[np.float32]:  # a probability of 0 vetoes a class in no order
        return np.maximum(stack.select([name]).log_likelihoods()[:, 0], np.float32(-LARGEST_LOSS))

    while left:
        values = {}
        for name in left:
            mean = (total + floored(name)) / (len(order) + 1)
            values[name] = sign * float(metric(labels, log_softmax(mean)))
        best = max(left, key=lambda name: values[name])
        total += floored(best)
        left.remove(best)
        order.append(best)
    return order
