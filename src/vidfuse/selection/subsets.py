"""The best subset of the members, exactly: as a function, and as an estimator that a cross-validation refits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from vidfuse._threads import one_blas_thread
from vidfuse.errors import InputError
from vidfuse.fusion.floors import member_floors
from vidfuse.fusion.linear import LinearPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule, WeightedSum, WeightedVote, Wrapper, check_rule
from vidfuse.fusion.weights import check_power, true_log_likelihoods
from vidfuse.metrics.objectives import Objective
from vidfuse.selection.hits import find_hits
from vidfuse.selection.losses import linear_losses, log_linear_losses
from vidfuse.selection.masks import (
    LOG_LINEAR_TIE,
    MOST_SUBSETS,
    TIE,
    SubsetTable,
    bits,
    count_subsets,
    enumerate_masks,
    member_costs,
)
from vidfuse.selection.problem import Problem, pose, restricted
from vidfuse.selection.subset_hits import score_subsets
from vidfuse.stack.stack import LogitStack

__all__ = ["MOST_REFITS", "SubsetPool", "SubsetSearch", "search_subsets"]

MOST_REFITS = 4096
"""A rule that learns, or an objective without a shortcut, is fitted and scored once a subset: at most so many."""


_Score = Callable[[NDArray[np.float64], NDArray[np.uint64]], NDArray[np.float64]]
"""From the members' weights (M,) and masks (S,) to scores (S,)."""


@dataclass(frozen=True)
class SubsetSearch:
    """The result of an exhaustive search.

    Attributes:
        members: The best subset, sorted by name; ties went to fewer members, then lower cost, then name.
        score: What the objective gives it on the videos of the search: an in-sample number.
        objective: The objective's name.
        table: All subsets with their scores.
    """

    members: tuple[str, ...]
    score: float
    objective: str
    table: SubsetTable = field(repr=False)

    def __repr__(self) -> str:
        return (
            f"SubsetSearch({' + '.join(self.members)}: in-sample {self.objective} {self.score:.6g}, "
            f"best of {len(self.table):,} subsets)"
        )


def search_subsets(
    stack: Any,
    objective: str | Objective = "accuracy",
    rule: Rule | None = None,
    *,
    labels: ArrayLike | None = None,
    max_members: int | None = None,
    costs: Mapping[str, float] | Sequence[float] | None = None,
    budget: float | None = None,
    time_limit: float = 3600.0,
    sample_weight: ArrayLike | None = None,
) -> SubsetSearch:
    """Score every subset of the members, exactly, and return the best.

    A subset's score is that of the rule, fitted on the subset. The two pools need no fit for each subset where their
    weights are not learned ("uniform", "accuracy", "log-odds", "inverse-nll", numbers): a subset's are those of the
    whole stack, divided by their sum. Accuracy and mean class accuracy then run on the classes that can beat the true
    one, and are exactly those of the fitted pool, ties included; the NLL of a linear pool needs the true class's column
    alone. Any other rule is fitted, and a callable objective called, once for each subset: at most 4,096 of them.

    Where members lack videos and the rule says `missing="renormalise"`, subsets are compared on the videos that every
    member has.

    The score is in-sample: the best of many numbers on the same videos is optimistic. Score a `SubsetPool` by
    `honest_score`, or on other videos.

    Args:
        stack: A stack, or an array (N, M, K) of logits or log-likelihoods.
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`,
            higher is better.
        rule: Any fusion rule; `LogLinearPool(weights="accuracy")` by default.
        labels: True classes, shape (N,); the stack's own by default.
        max_members: Only subsets of at most so many members.
        costs: {member: cost}, or numbers in the members' order, to break ties and for `budget`. 1 each by default.
        budget: Only subsets whose costs sum to at most this.
        time_limit: Seconds. A search whose estimate is longer is refused before it starts.
        sample_weight: One weight of at least 0 a video, shape (N,), for the named objectives.

    Raises:
        InputError: The search is too large (the message has the count and an estimate), a limit leaves no subset,
            labels are missing, or a callable returns NaN.
        AlignmentError: Members lack videos, and the rule does not say what to do.

    Source:
        Partridge and Yates (1996), Engineering multiversion neural-net systems, section 4, for choosing by exhaustive
        search; the pruning is this library's own.

    Example:
        >>> z = np.array([[[2.0, 0], [0, 1]], [[2, 0], [0, 9]], [[0, 1], [5, 0]]], dtype=np.float32)
        >>> stack = LogitStack.from_arrays(z, labels=[0, 0, 1], members=["good", "bad"])
        >>> search_subsets(stack)
        SubsetSearch(good: in-sample accuracy 1, best of 3 subsets)
    """
    problem = pose(stack, objective, rule, labels=labels, sample_weight=sample_weight)
    cost = member_costs(costs, problem.members)[problem.columns]
    seconds, most = _seconds_each(problem)
    masks = enumerate_masks(cost, max_members, budget) if budget is not None else None
    count = count_subsets(len(cost), max_members) if masks is None else len(masks)
    _check_size(count, problem, seconds * count, time_limit, most)
    if masks is None:
        masks = enumerate_masks(cost, max_members)
    if most == MOST_REFITS:
        names = problem.stack.members
        scores = np.array([problem.refit([names[m] for m in np.flatnonzero(own)]) for own in bits(masks, len(names))])
    else:
        with one_blas_thread():  # the products are too small to share
            scores = _score_fixed(problem, masks)
    coarse = most == MOST_SUBSETS and objective == "nll" and type(problem.rule) is LogLinearPool
    table = SubsetTable(
        names=problem.stack.members,
        masks=masks,
        scores=scores,
        costs=bits(masks, len(cost)) @ cost,
        higher_is_better=problem.sign > 0,
        tie=LOG_LINEAR_TIE if coarse else TIE,
    )
    best = table.best(1)[0]
    return SubsetSearch(best.members, best.score, problem.name, table)


def _seconds_each(problem: Problem) -> tuple[float, int]:
    """Return about how long one subset takes, and how many are allowed.

    rule                                       objective     what a subset takes
    one of the two pools, weights not learned  accuracies    sums over the rivals that are left
                                               "nll"         linear: the true class; log-linear: every class
    any other, or                              a callable    a fit and a prediction
    """
    n, m, k = problem.stack.shape[:3]
    weights, kind = getattr(problem.rule, "weights", None), type(problem.rule)
    learned = isinstance(weights, str) and weights == "learned"
    if kind not in (LinearPool, LogLinearPool) or learned or callable(problem.objective):
        return 2e-3 + 4e-8 * n * m * k, MOST_REFITS
    if problem.objective != "nll":
        return n * 1.5e-8, MOST_SUBSETS
    return n * (2e-9 + 2e-10 * m if kind is LinearPool else k * (3e-9 + 1e-10 * m)), MOST_SUBSETS


def _check_size(count: int, problem: Problem, seconds: float, time_limit: float, most: int) -> None:
    """Refuse a search that would not finish."""
    if count <= most and seconds <= time_limit:
        return
    what = (
        "a callable objective"
        if callable(problem.objective)
        else f"{type(problem.rule).__name__} with these parameters"
    )
    why = f", each fitted and scored for {what}," if most == MOST_REFITS else ""
    units = {"years": 31557600.0, "days": 86400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 0.0}
    unit = next(name for name, size in units.items() if seconds >= size)
    raise InputError(
        f"an exhaustive search of {count:,} subsets of {len(problem.members)} members{why} would take about "
        f"{seconds / (units[unit] or 1.0):,.3g} {unit} (at most {most:,} subsets and time_limit={time_limit:g} seconds "
        "are allowed); use greedy_search or GreedyPool, or lower max_members or budget"
    )


def _score_fixed(problem: Problem, masks: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return each subset's score, shape (S,), for a pool whose weights follow from the whole stack's.

    Where all members of a subset have weight 0, the pools weight them equally.
    """
    weights, score = _scorer(problem)
    idle = masks & np.uint64(sum(1 << m for m, weight in enumerate(weights) if weight > 0)) == 0
    scores = np.empty(len(masks))
    for part, own in ((~idle, weights), (idle, np.ones(len(weights)))):
        if part.any():
            scores[part] = score(own, masks[part])
    return scores


def _scorer(problem: Problem) -> tuple[NDArray[np.float64], _Score]:
    """Return the members' weights on the whole stack, shape (M,), and what scores subsets with such weights.

    | objective | pool       | a subset is scored from                       | weights                                 |
    |-----------|------------|-----------------------------------------------|-----------------------------------------|
    | "nll"     | linear     | the members' likelihoods of the true class    | a fit's on all members                  |
    | "nll"     | log-linear | all log-likelihoods, block by block           | a fit's on all members                  |
    | any other | either     | the classes that may win (`find_hits`)        | a fit's; by accuracy: from these, as    |
    |           |            |                                               | the fit would look at all classes again |
    """
    stack, labels, a = problem.stack, problem.labels, problem.video_weights
    rule: Any = problem.rule
    linear, floors = isinstance(rule, LinearPool), member_floors(stack, rule.floor)
    score: _Score
    if problem.objective != "nll":
        hits = find_hits(stack, labels, floors, linear, a)
        score = lambda weights, masks: score_subsets(hits, weights, masks) / a.sum()  # noqa: E731
        by_accuracy = isinstance(rule.weights, str) and rule.weights == "accuracy" and rule.class_weight is None
        if by_accuracy and problem.objective == "accuracy" and not linear and not floors.any():
            check_power(rule.power)
            alone = hits.alone()
            if alone.any():
                return alone**rule.power, score
    elif linear:
        log_true = true_log_likelihoods(stack, labels, floors)
        score = lambda weights, masks: linear_losses(log_true, weights, masks, a)  # noqa: E731
    else:
        score = lambda weights, masks: log_linear_losses(  # noqa: E731
            stack, labels, floors, bits(masks, len(weights)) * weights, a
        )
    fitted = restricted(rule, problem.members, stack.members).fit(stack, labels, problem.weight)
    return fitted.weights_, score


class SubsetPool(Wrapper):
    """A rule on the best subset of the members, which the fit searches for, exactly.

    As an estimator the search is part of the fit, so that a cross-validation (`honest_score`, `cross_val_score`)
    repeats it on each fold's own videos. Where members lack videos and the rule says `missing="renormalise"`, members
    are compared on the videos that all of them have, and the rule is then fitted on all videos.

    Args:
        rule: The rule whose subsets are searched, and which is then fitted on the best.
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`.
        max_members: At most so many members.
        costs: {member: cost}, or numbers in the members' order.
        budget: The most that a subset may cost.

    Attributes:
        selected_: The chosen members, in the order of `members_`.
        weights_: Each member's weight, 0 where it was not chosen, shape (M,); where the rule has weights.
        score_: What the objective gives on the videos of the fit, an in-sample number.
        rule_: The rule, fitted on the chosen members.

    Example:
        >>> z = np.array([[[2.0, 0], [0, 1]], [[2, 0], [0, 9]], [[0, 1], [5, 0]]], dtype=np.float32)
        >>> stack = LogitStack.from_arrays(z, labels=[0, 0, 1], members=["good", "bad"])
        >>> SubsetPool(LogLinearPool(weights="accuracy")).fit(stack).selected_
        ('good',)
    """

    selected_: tuple[str, ...]
    weights_: NDArray[np.float64]
    score_: float

    def __init__(
        self,
        rule: Rule,
        objective: str | Objective = "accuracy",
        *,
        max_members: int | None = None,
        costs: Mapping[str, float] | Sequence[float] | None = None,
        budget: float | None = None,
    ) -> None:
        self.rule = rule
        self.objective = objective
        self.max_members = max_members
        self.costs = costs
        self.budget = budget

    def _fit(self, stack: LogitStack, labels: NDArray[np.int64] | None, weight: NDArray[np.float64] | None) -> None:
        stack = self._as_listed(stack)
        found = search_subsets(
            stack,
            self.objective,
            check_rule(self.rule),
            labels=labels,
            max_members=self.max_members,
            costs=self.costs,
            budget=self.budget,
            sample_weight=weight,
        )
        self.selected_, self.score_ = tuple(name for name in self.members_ if name in found.members), found.score
        self.rule_ = restricted(self.rule, stack.members, self.selected_).fit(
            stack.select(found.members), labels, weight
        )
        self.__dict__.pop("weights_", None)  # of an earlier fit, whose rule had some
        if hasattr(self.rule_, "summary"):
            inner = self.rule_.summary()
            by_name = dict(zip(inner.members, inner.weights.tolist(), strict=True))
            self.weights_ = np.array([by_name.get(name, 0.0) for name in self.members_])

    def choices(self) -> tuple[str, ...]:
        """Return which members were chosen, and what the rule on them chose."""
        if not hasattr(self, "rule_"):
            return ()
        chosen = f"{len(self.selected_)} of {len(self.members_)} members: {', '.join(self.selected_)}"
        return chosen, *super().choices()

    def weighted_sum(self) -> WeightedSum | None:
        """Return the weighted sum of the inner rule, where it is one."""
        check_is_fitted(self, "rule_")
        return self.rule_.weighted_sum()

    def weighted_vote(self) -> WeightedVote | None:
        """Return the vote of the inner rule, where it is one."""
        check_is_fitted(self, "rule_")
        return self.rule_.weighted_vote()

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        chosen = [name for name in stack.members if name in self.selected_]
        return self.rule_.predict_log_proba(stack.select(chosen) if chosen else stack)  # the rule says what it lacks
