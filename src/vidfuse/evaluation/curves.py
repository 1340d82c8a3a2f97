"""Curves that answer "how many": labelled videos for weights, members, views. All are scored as a leaderboard is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils import get_tags

from vidfuse._tables import Column, Estimate, Table, Tabular, writers
from vidfuse.errors import InputError
from vidfuse.evaluation.resampling import LARGEST_LOSS, Draw, Repeated
from vidfuse.evaluation.scores import missing_of, require_labels
from vidfuse.evaluation.trial import Protocol, Trial, open_trial
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule
from vidfuse.fusion.views import reduce_views
from vidfuse.likelihood import log_softmax
from vidfuse.metrics import Interval, PairedDifference
from vidfuse.metrics.objectives import Objective, higher_is_better, objective_name, resolve_objective
from vidfuse.stack.stack import LogitStack

__all__ = ["Curve", "Point", "learning_curve", "members_curve", "views_curve"]

_FEWEST = 20  # videos, where a learning curve starts


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        series: The rule whose curve it is on.
        x: Labelled videos, members or views.
        label: What the point is made of, where that is not the number alone: the member that joined.
        cost: What it costs, in the units that were given; NaN where none was.
        value: The objective; the mean over the repeats.
        interval: Its interval.
        spread: Standard deviation over the repeats; NaN for one.
        step: How much better than the point before; None for the first.
        behind: How much better than the last point of the series, so mostly negative; None for the last.
    """

    series: str
    x: int
    label: str
    cost: float
    value: float
    interval: Interval
    spread: float
    step: PairedDifference | None
    behind: PairedDifference | None


@dataclass(frozen=True)
class Curve(Tabular):
    """An objective against how much of something there is, for one rule or several.

    Attributes:
        title: What the curve shows.
        x_name: What x counts.
        objective: The objective's name.
        points: The points: series by series, x rising.
        how_scored: On which videos.
    """

    title: str
    x_name: str
    objective: str
    points: tuple[Point, ...]
    how_scored: Protocol

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the series."""
        return tuple(dict.fromkeys(point.series for point in self.points))

    def series(self, name: str | None = None) -> tuple[Point, ...]:
        """Return the points of a series, by default of the first.

        Raises:
            InputError: there is no such series.
        """
        name = self.names[0] if name is None else name
        if name not in self.names:
            raise InputError(f"expected one of {list(self.names)}, got {name!r}")
        return tuple(point for point in self.points if point.series == name)

    def enough(self, name: str | None = None) -> int:
        """Return the smallest x from which on no point is certainly worse than the last one of its series.

        Certain is what the interval of the difference says; where it is refused, nothing is.
        """
        points = self.series(name)
        worse = [p.behind is not None and p.behind.interval.high < 0 for p in points]
        return points[max((i for i, bad in enumerate(worse) if bad), default=-1) + 1].x

    def table(self) -> Table:
        """Return a row for each point."""
        write, change, unit = writers(self.objective)
        rows = tuple(
            (
                p.series,
                p.x,
                p.label,
                p.cost,
                Estimate(p.value, *p.interval),
                p.spread,
                None if p.step is None else Estimate(p.step.difference, *p.step.interval),
            )
            for p in self.points
        )
        columns = (
            Column("rule", "series"),
            Column(self.x_name, "x", "{:,}".format),
            Column("joins", "label", shown=any(p.label for p in self.points)),
            Column("cost", write="{:,g}".format, shown=not all(math.isnan(p.cost) for p in self.points)),
            Column(self.objective.replace("-", " ") + unit, "value", write),
            Column("s.d.", "spread", write, shown=False),
            Column("over the one before", "step", change),
        )
        return Table(columns, rows, self.title, (self.how_scored.how(),))

    def __str__(self) -> str:
        width = max(len(self.x_name), 8)
        lines = [self.title]
        for name in self.names:
            lines.append(f"{name} ({self.objective}, {self.points[0].interval.confidence:.0%} interval)")
            for p in self.series(name):
                ends = "" if p.interval.refused else f" ({p.interval.low:.4f} to {p.interval.high:.4f})"
                step = "" if p.step is None else f"  {p.step.difference:+.4f}"
                lines.append(f"{p.x:>{width},}  {p.value:.4f}{ends}{step}  {p.label}".rstrip())
            lines.append(f"enough {self.x_name}: {self.enough(name):,}")
        return "\n".join([*lines, self.how_scored.how()])


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
    fits on the first n. All sizes are scored on the same videos: those of `test`, or of the fold that is left out.

    Args:
        stack: Labelled stack that rules are fitted on, (N, M, K) or (N, M, V, K).
        test: Labelled stack that they are scored on; without it they are cross-fitted.
        rules: Name → unfitted rule; by default learned weights and the average of log-likelihoods.
        sizes: Numbers of videos to fit on; by default doubling from 20 up to all that there are.
        repeats: How many orders are drawn.
        objective: "accuracy", "mean-class-accuracy", "nll", or a callable `(labels, log_proba) -> float`.
        folds: The number of folds without `test`.
        groups: What each video comes from; see `leaderboard`. A size counts videos; groups are taken whole.
        views: How views are reduced where the stack has them.
        confidence: The intervals' nominal coverage.
        n_resamples: Bootstrap resamples, of losses and of callables.
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
    _check_repeats(repeats)
    if test is None and not folds:
        raise InputError("folds: expected at least 2 without a test stack; a learning curve in-sample says nothing")
    trial = open_trial(stack, test, folds=folds, groups=groups, random_state=random_state, what=what).reduced(views)
    missing = missing_of(trial.fit_stack, trial.scored)
    if rules is None:
        rules = {
            "learned weights": LogLinearPool(missing=missing),
            "average of log-likelihoods": LogLinearPool(weights="uniform", missing=missing),
        }
    if not rules:
        raise InputError("rules: expected at least one, got none")
    labels = require_labels(trial.fit_stack, what)
    most = min(len(np.arange(len(labels))[fit_rows]) for fit_rows, _ in trial.splits)
    sizes = _sizes(sizes, most)
    rng = np.random.default_rng(random_state)
    orders = [[_order(trial.fit_stack, fit_rows, rng) for fit_rows, _ in trial.splits] for _ in range(repeats)]
    predictions: dict[str, list[Repeated]] = {}
    for name, rule in rules.items():
        if not get_tags(rule).target_tags.required:
            predictions[name] = [[trial.predict(trial.fit(rule))]] * len(sizes)
            continue
        predictions[name] = [
            [_fitted_on(trial, rule, [order[:size] for order in by_fold]) for by_fold in orders] for size in sizes
        ]
    judge = _Judge(trial, objective, confidence, n_resamples, random_state)
    points = [p for name, found in predictions.items() for p in judge.points(name, sizes, found)]
    return judge.curve("Labelled videos that weights are fitted on", "videos", points)


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

    By default the member joins next that most improves the plain average of those before it, on the videos of the fit;
    without `test` that choice has seen the scored videos, which favours small ensembles a little.

    Args:
        stack: Labelled stack that the rule is fitted on, (N, M, K) or (N, M, V, K).
        test: Labelled stack that it is scored on; without it the rule is cross-fitted.
        rule: Any unfitted rule; `LogLinearPool()` by default. It is fitted anew for each number of members.
        order: The members in the order of joining.
        cost: What each member costs: multiply-adds, milliseconds, …; points carry the sum of those that have joined.
        objective: "accuracy", "mean-class-accuracy", "nll", or a callable `(labels, log_proba) -> float`.
        folds: The number of folds without `test`; 0 for in-sample scores.
        groups: What each video comes from; see `leaderboard`.
        views: How views are reduced where the stack has them.
        confidence: The intervals' nominal coverage.
        n_resamples: Bootstrap resamples, of losses and of callables.
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
    members = trial.fit_stack.members
    order = joining_order(trial.fit_stack, objective) if order is None else list(order)
    for name, given in (("order", order), ("cost", members if cost is None else list(cost))):
        if sorted(given) != sorted(members):
            raise InputError(f"{name}: expected each of {list(members)} once, got {list(given)}")
    rule = LogLinearPool(missing=missing_of(trial.fit_stack, trial.scored)) if rule is None else rule
    predictions = []
    for n in range(1, len(order) + 1):
        few = _with_members(trial, order[:n])
        predictions.append([few.predict(few.fit(rule))])
    costs = [math.nan] * len(order) if cost is None else np.cumsum([float(cost[name]) for name in order]).tolist()
    judge = _Judge(trial, objective, confidence, n_resamples, random_state)
    points = judge.points(type(rule).__name__, range(1, len(order) + 1), predictions, order, costs)
    return judge.curve("Members, as they join", "members", points)


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
        objective: "accuracy", "mean-class-accuracy", "nll", or a callable `(labels, log_proba) -> float`.
        folds: The number of folds without `test`; 0 for in-sample scores.
        groups: What each video comes from; see `leaderboard`.
        views: How views are reduced.
        confidence: The intervals' nominal coverage.
        n_resamples: Bootstrap resamples, of losses and of callables.
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
    rule = LogLinearPool(missing=missing_of(trial.fit_stack, trial.scored)) if rule is None else rule
    predictions = []
    for v in sizes:
        chosen = np.zeros(n_views, bool)
        chosen[np.round((np.arange(v) + 0.5) * n_views / v - 0.5).astype(int)] = True
        fit_stack = _some_views(trial.fit_stack, views, chosen)
        scored = fit_stack if trial.scored is trial.fit_stack else _some_views(trial.scored, views, chosen)
        few = replace(trial, fit_stack=fit_stack, scored=scored)
        predictions.append([few.predict(few.fit(rule))])
    judge = _Judge(trial, objective, confidence, n_resamples, random_state)
    points = judge.points(type(rule).__name__, sizes, predictions, costs=[cost * v for v in sizes])
    return judge.curve("Views of each video", "views", points)


@dataclass(frozen=True)
class _Judge:
    """Points of predictions of the same scored videos."""

    trial: Trial
    objective: str | Objective
    confidence: float
    n_resamples: int
    random_state: int | None

    def points(
        self,
        name: str,
        sizes: Sequence[int],
        predictions: Sequence[Repeated],
        labels: Sequence[str] = (),
        costs: Sequence[float] = (),
    ) -> list[Point]:
        draw = Draw(
            self.trial.labels,
            self.objective,
            self.confidence,
            self.n_resamples,
            self.random_state,
            self.trial.scored.groups,
        )
        metric = resolve_objective(self.objective)
        last = len(sizes) - 1
        given = {str(i): repeated for i, repeated in enumerate(predictions)}
        intervals = draw.intervals(given)
        pairs = list(dict.fromkeys([(str(i), str(i - 1)) for i in range(1, last + 1)] + [
            (str(i), str(last)) for i in range(last)
        ]))  # fmt: skip
        found = dict(zip(pairs, draw.differences(given, pairs), strict=True))
        points = []
        for i, size in enumerate(sizes):
            values = [float(metric(self.trial.labels, p)) for p in predictions[i]]
            points.append(
                Point(
                    series=name,
                    x=int(size),
                    label=labels[i] if labels else "",
                    cost=costs[i] if costs else math.nan,
                    value=float(np.mean(values)),
                    interval=intervals[str(i)],
                    spread=float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                    step=found.get((str(i), str(i - 1))),
                    behind=found.get((str(i), str(last))),
                )
            )
        return points

    def curve(self, title: str, x_name: str, points: Sequence[Point]) -> Curve:
        return Curve(title, x_name, objective_name(self.objective), tuple(points), self.trial.protocol)


def joining_order(stack: LogitStack, objective: str | Objective = "accuracy") -> list[str]:
    """Return the members in the order in which each most improves the plain average of those before it."""
    labels = require_labels(stack, "an order of members")
    metric, sign = resolve_objective(objective), 1.0 if higher_is_better(objective) else -1.0
    left, order = list(stack.members), list[str]()
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


def _check_repeats(repeats: int) -> None:
    if repeats < 1:
        raise InputError(f"repeats: expected at least 1, got {repeats}")


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


def _with_members(trial: Trial, members: Sequence[str]) -> Trial:
    """Return a trial of some members on both sides; all videos stay, so that every point is scored on the same."""
    fit_stack = trial.fit_stack.select(members)
    scored = fit_stack if trial.scored is trial.fit_stack else trial.scored.select(members)
    return replace(trial, fit_stack=fit_stack, scored=scored)


def _some_views(stack: LogitStack, how: str, chosen: NDArray[np.bool_]) -> LogitStack:
    return reduce_views(stack, how, present=np.broadcast_to(chosen, (len(stack), len(chosen))))
