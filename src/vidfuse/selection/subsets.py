"""The best subset of the members, exactly: as a function, and as an estimator that a cross-validation refits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from vidfuse._checks import check_weights
from vidfuse._threads import one_blas_thread
from vidfuse.errors import AlignmentError, InputError
from vidfuse.fusion.floors import member_floors
from vidfuse.fusion.linear import LinearPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Missing, Rule, WeightedSum, as_stack, check_layout, check_sample_weight
from vidfuse.fusion.summary import PoolSummary
from vidfuse.fusion.weights import check_power, true_log_likelihoods
from vidfuse.metrics.objectives import (
    Objective,
    evaluate,
    higher_is_better,
    labels_of,
    objective_name,
    resolve_objective,
)
from vidfuse.selection.hits import Judge, member_accuracies, score_hits
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
from vidfuse.selection.rivals import Rivals, find_rivals
from vidfuse.stack.stack import LogitStack

__all__ = [
    "MOST_REFITS",
    "SubsetPool",
    "SubsetSearch",
    "check_pool",
    "complete_videos",
    "restricted",
    "search_subsets",
    "video_weights",
]

MOST_REFITS = 4096
"""A pool that learns, or an objective without a shortcut, is fitted and scored once a subset: at most so many."""


@dataclass(frozen=True)
class SubsetSearch:
    """The result of an exhaustive search.

    Attributes:
        members: The best subset, in the stack's order; ties went to fewer members, then lower cost, then name.
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
    pool: Rule | None = None,
    *,
    labels: ArrayLike | None = None,
    max_members: int | None = None,
    costs: Mapping[str, float] | Sequence[float] | None = None,
    budget: float | None = None,
    time_limit: float = 3600.0,
    sample_weight: ArrayLike | None = None,
) -> SubsetSearch:
    """Score every subset of the members, exactly, and return the best.

    A subset's weights are the pool's own rule on the whole stack, restricted to the subset and divided by their sum.
    With a pool of fixed weights ("uniform", "accuracy", "log-odds", "inverse-nll", numbers), accuracy and mean class
    accuracy run on the rivals that remain after exact pruning, the NLL of a linear pool on the true class's column. Any
    other pool is refitted, and a callable objective called, once a subset: at most 4,096 of them.

    Where members lack videos and the pool says `missing="renormalise"`, subsets are compared on the videos that every
    member has.

    The score is in-sample: the best of many numbers on the same videos is optimistic. Score a `SubsetPool` by
    `honest_score`, or on other videos.

    Args:
        stack: A stack, or an array (N, M, K) of logits or log-likelihoods.
        objective: "accuracy", "mean-class-accuracy", "nll", or a callable `(labels, log_proba) -> float`, higher is
            better.
        pool: Any fuser; `LogLinearPool(weights="accuracy")` by default.
        labels: True classes, shape (N,); the stack's own by default.
        max_members: Only subsets of at most so many members.
        costs: {member: cost} or one a member; it breaks ties, and counts for `budget`. 1 each by default.
        budget: Only subsets whose costs sum to at most this.
        time_limit: Seconds. A search whose estimate is longer is refused before it starts.
        sample_weight: One weight of at least 0 a video, for the named objectives.

    Raises:
        InputError: The search is too large (the message has the count and an estimate), a limit leaves no subset,
            labels are missing, or a callable returns NaN.
        AlignmentError: Members lack videos, and the pool does not say what to do.

    Source:
        Partridge and Yates (1996), Engineering multiversion neural-net systems, section 4, for choosing by exhaustive
        search; the pruning is this library's own.

    Example:
        >>> z = np.array([[[2.0, 0], [0, 1]], [[2, 0], [0, 9]], [[0, 1], [5, 0]]], dtype=np.float32)
        >>> stack = LogitStack.from_arrays(z, labels=[0, 0, 1], members=["good", "bad"])
        >>> search_subsets(stack)
        SubsetSearch(good: in-sample accuracy 1, best of 3 subsets)
    """
    stack = as_stack(stack)
    y = labels_of(stack, labels, where="the stack to search on")
    pool = check_pool(LogLinearPool(weights="accuracy") if pool is None else pool)
    sample_weight = check_sample_weight(sample_weight, len(stack))
    stack, y, sample_weight = complete_videos(stack, y, sample_weight, pool.missing)
    order = sorted(stack.members)
    check_layout(pool, stack)
    cost = member_costs(costs, stack.members)[[stack.members.index(name) for name in order]]
    fixed = _is_fixed(pool, stack)
    shortcut = fixed and not callable(objective)
    resolve_objective(objective)
    _check_size(stack, objective, pool, shortcut, max_members, budget, time_limit)
    masks = enumerate_masks(cost, max_members, budget)
    _check_size(stack, objective, pool, shortcut, max_members, budget, time_limit, len(masks))
    ordered = stack.select(order)
    if shortcut:
        with one_blas_thread():  # the products are too small to share
            scores = _FixedPool(ordered, y, pool, stack, sample_weight).scores(str(objective), masks)
    else:
        scores = _refit_each(ordered, stack.members, y, pool, objective, masks, sample_weight)
    table = SubsetTable(
        names=stack.members,
        masks=_reorder(masks, [stack.members.index(name) for name in order]),
        scores=scores,
        costs=bits(masks, len(order)) @ cost,
        higher_is_better=higher_is_better(objective),
        tie=LOG_LINEAR_TIE if shortcut and objective == "nll" and not isinstance(pool, LinearPool) else TIE,
    )
    best = table.best(1)[0]
    return SubsetSearch(best.members, best.score, objective_name(objective), table)


def check_pool(pool: Any) -> Rule:
    """Return a fuser as it is, and refuse anything else.

    Example:
        >>> check_pool(None)
        Traceback (most recent call last):
        vidfuse.errors.InputError: pool: expected a fuser, such as LogLinearPool(), got None
    """
    if not isinstance(pool, Rule):
        raise InputError(f"pool: expected a fuser, such as LogLinearPool(), got {pool!r}")
    return pool


def complete_videos(
    stack: LogitStack, labels: NDArray[np.int64], weight: NDArray[np.float64] | None, missing: str | None
) -> tuple[LogitStack, NDArray[np.int64], NDArray[np.float64] | None]:
    """Return the videos that members are compared on: those that every member has, and whose weight is not 0.

    Args:
        stack: The members.
        labels: True classes, shape (N,).
        weight: What each video counts, shape (N,), or None.
        missing: What the pool does about missing members; None where it can do nothing.

    Raises:
        AlignmentError: Some are missing and `missing` is not "renormalise", or no video has all members.
        InputError: The weights of these videos sum to zero.

    Example:
        >>> stack = LogitStack.from_arrays(np.zeros((5, 2, 3)))
        >>> len(complete_videos(stack, np.zeros(5, np.int64), None, "renormalise")[0])
        5
    """
    used = np.ones(len(stack), bool) if stack.present is None else stack.present.all(axis=1)
    if stack.present is not None and missing != "renormalise":
        advice = "keep those that all members have: stack[stack.present.all(axis=1)]"
        if missing is not None:
            advice += ', or give the pool missing="renormalise", which does so while it compares members'
        raise AlignmentError(
            f"expected every member's scores of every video, got {int((~used).sum())} of {len(stack)} videos without "
            f"some; {advice}"
        )
    if not used.any():
        raise AlignmentError(
            f"expected videos that every member has, to compare members on; got none of {len(stack)}; leave out the "
            "members that have few"
        )
    if weight is not None:
        used &= weight > 0
        if not used.any():
            raise InputError(
                "sample_weight: expected a positive sum over the videos that every member has, got 0; weight some"
            )
    if used.all():
        return stack, labels, weight
    return stack[used], labels[used], None if weight is None else weight[used]


def video_weights(
    labels: NDArray[np.int64], objective: str, sample_weight: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return what each video counts, of sum 1: 1/N, or 1/(C N_c) for the mean class accuracy.

    Example:
        >>> video_weights(np.array([0, 0, 2]), "mean-class-accuracy").tolist()
        [0.25, 0.25, 0.5]
    """
    a = np.ones(len(labels)) if sample_weight is None else sample_weight
    if objective == "mean-class-accuracy":
        totals = np.bincount(labels, weights=a)
        return np.divide(a, totals[labels], out=np.zeros(len(a)), where=a > 0) / np.count_nonzero(totals)
    return a / a.sum()


def _is_fixed(pool: Rule, stack: LogitStack) -> bool:
    """Say whether a subset's weights follow from the whole stack's."""
    learned = isinstance(getattr(pool, "weights", None), str) and getattr(pool, "weights", None) == "learned"
    return type(pool) in (LinearPool, LogLinearPool) and not learned and stack.present is None


def _reorder(masks: NDArray[np.uint64], columns: list[int]) -> NDArray[np.uint64]:
    """Move bit i to bit columns[i]."""
    moved = np.zeros_like(masks)
    for bit, column in enumerate(columns):
        moved |= (masks >> np.uint64(bit) & np.uint64(1)) << np.uint64(column)
    return moved


def _check_size(
    stack: LogitStack,
    objective: str | Objective,
    pool: Rule,
    shortcut: bool,
    max_members: int | None,
    budget: float | None,
    time_limit: float,
    count: int | None = None,
) -> None:
    """Refuse a search that would not finish; with a budget only its enumeration tells the count."""
    n, m, k = stack.shape
    if count is None:
        if budget is not None:
            return
        count = count_subsets(m, max_members)
    if not shortcut:
        seconds = count * (2e-3 + 4e-8 * n * m * k)
    elif objective != "nll":
        seconds = count * n * 1.5e-8
    elif isinstance(pool, LinearPool):
        seconds = count * n * (2e-9 + 2e-10 * m)
    else:
        seconds = count * n * k * (3e-9 + 1e-10 * m)
    advice = "use greedy_search or GreedyPool, or lower max_members or budget"
    if not shortcut and count > MOST_REFITS:
        why = "a callable objective" if callable(objective) else f"{type(pool).__name__} with these parameters"
        raise InputError(
            f"an exhaustive search of {count:,} subsets, each fitted and scored for {why}, would take about "
            f"{_duration(seconds)}; at most {MOST_REFITS:,} are allowed; {advice}"
        )
    if seconds > time_limit or count > MOST_SUBSETS:
        raise InputError(
            f"an exhaustive search of {count:,} subsets of {m} members would take about {_duration(seconds)} "
            f"(time_limit is {_duration(time_limit)}, at most {MOST_SUBSETS:,} subsets fit the table); {advice}"
        )


def _duration(seconds: float) -> str:
    for unit, size in (("years", 31557600.0), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds:.2g} seconds"


class _FixedPool:
    """The rule of a pool on a whole stack, and what the searches need of it."""

    def __init__(
        self,
        ordered: LogitStack,
        labels: NDArray[np.int64],
        pool: Rule,
        stack: LogitStack,
        sample_weight: NDArray[np.float64] | None,
    ) -> None:
        self.stack, self.labels, self.sample_weight = ordered, labels, sample_weight
        self.linear = isinstance(pool, LinearPool)
        self.floors = member_floors(ordered, pool.floor)
        self._rivals: Rivals | None = None
        self.weights = self._rule(pool, stack)

    def _rule(self, pool: Any, stack: LogitStack) -> NDArray[np.float64]:
        """Return the pool's weights of all members, in the order of `self.stack`, not normalised."""
        if not isinstance(pool.weights, str):
            clone(pool).fit(stack)  # checks the numbers, which are not divided by their sum: whole ones add exactly
            given = (
                pool.weights
                if isinstance(pool.weights, Mapping)
                else dict(zip(stack.members, pool.weights, strict=True))
            )
            return np.array([float(given[name]) for name in self.stack.members])
        if pool.weights == "uniform":
            return np.ones(len(self.stack.members))
        n_members = len(self.stack.members)
        if pool.weights == "accuracy" and pool.class_weight is None and not self.linear and not self.floors.any():
            # The rivals tell the members' accuracies too: the pool's own pass over all classes is not needed.
            check_power(pool.power)
            a = video_weights(self.labels, "accuracy", self.sample_weight)
            accuracy = member_accuracies(self.rivals(n_members), self._judge, a)
            if accuracy.any():
                return accuracy**pool.power
        fitted = clone(pool).fit(stack, self.labels, self.sample_weight)
        return fitted.weights_  # in the order of the names, as `self.stack`

    def rivals(self, n_members: int) -> Rivals:
        if self._rivals is None:
            rounds = 0 if n_members < 10 else 64
            self._rivals = find_rivals(self.stack, self.labels, self.floors, linear=self.linear, rounds=rounds)
        return self._rivals

    @property
    def _judge(self) -> Judge:
        return Judge(self.stack, self.labels, self.floors, self.linear)

    def scores(self, objective: str, masks: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return each subset's score; members of weight 0 alone are weighted equally, as the pools do."""
        n_members = len(self.weights)
        weighted = np.uint64(sum(1 << m for m in range(n_members) if self.weights[m] > 0))
        idle = masks & weighted == 0
        scores = np.empty(len(masks))
        for part, weights in ((~idle, self.weights), (idle, np.ones(n_members))):
            if part.any():
                scores[part] = self._scores(objective, masks[part], weights)
        return scores

    def _scores(self, objective: str, masks: NDArray[np.uint64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        if objective == "accuracy" and self.sample_weight is None:  # whole numbers: their sums are exact
            ones = np.ones(len(self.labels))
            return score_hits(self.rivals(len(weights)), self._judge, weights, masks, ones) / len(ones)
        a = video_weights(self.labels, objective, self.sample_weight)
        if objective != "nll":
            return score_hits(self.rivals(len(weights)), self._judge, weights, masks, a)
        uneven = None if self.sample_weight is None else a
        if self.linear:
            log_true = true_log_likelihoods(self.stack, self.labels, self.floors)
            return linear_losses(log_true, weights, masks, uneven)
        return log_linear_losses(self.stack, self.labels, self.floors, bits(masks, len(weights)) * weights, uneven)


def restricted(pool: Rule, members: Sequence[str], chosen: Sequence[str]) -> Rule:
    """Return an unfitted copy of the pool for some of its members; given weights are those of the chosen.

    Example:
        >>> restricted(LinearPool(weights=[1, 4, 5]), ["a", "b", "c"], ["c", "a"]).weights
        {'c': 0.5, 'a': 0.1}
    """
    copy: Rule = clone(pool)
    given = getattr(pool, "weights", None)
    if given is not None and not isinstance(given, str):
        shares = dict(zip(members, check_weights(given, members).tolist(), strict=True))
        own = {name: shares[name] for name in chosen}
        copy.set_params(weights=own if any(own.values()) else "uniform")
    return copy


def _refit_each(
    ordered: LogitStack,
    members: Sequence[str],
    labels: NDArray[np.int64],
    pool: Rule,
    objective: str | Objective,
    masks: NDArray[np.uint64],
    sample_weight: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Fit the pool on each subset and score its predictions on the same videos."""
    if sample_weight is not None and callable(objective):
        raise InputError("sample_weight: expected a named objective; a callable gets no weights")
    scores = np.empty(len(masks))
    for index, chosen in enumerate(bits(masks, len(ordered.members))):
        part = ordered.select([name for name, take in zip(ordered.members, chosen, strict=True) if take])
        log_proba = restricted(pool, members, part.members).fit(part, labels, sample_weight).predict_log_proba(part)
        if callable(objective):
            scores[index] = evaluate(objective, labels, log_proba, part.members)
        elif objective == "nll":
            true = np.take_along_axis(log_proba, labels[:, None], axis=1)[:, 0]
            scores[index] = -float(video_weights(labels, "nll", sample_weight) @ true)
        else:
            hits = log_proba.argmax(axis=1) == labels
            scores[index] = float(video_weights(labels, objective, sample_weight) @ hits)
    return scores


class SubsetPool(Rule):
    """A pool of the best subset of the members, which the fit searches for, exactly.

    As an estimator the search is part of the fit, so that a cross-validation (`honest_score`, `cross_val_score`)
    repeats it on each fold's own videos. Where members lack videos and the pool says `missing="renormalise"`, members
    are compared on the videos that all of them have, and the pool is then fitted on all videos.

    Args:
        pool: The fuser whose subsets are searched, and which is then fitted on the best.
        objective: "accuracy", "mean-class-accuracy", "nll", or a callable `(labels, log_proba) -> float`.
        max_members: At most so many members.
        costs: {member: cost}, or one a member.
        budget: The most that a subset may cost.

    Attributes:
        selected_: The chosen members, in the order of `members_`.
        weights_: Each member's weight, 0 where it was not chosen, shape (M,); where the pool has weights.
        score_: What the objective gives on the videos of the fit, an in-sample number.
        pool_: The pool, fitted on the chosen members.

    Example:
        >>> z = np.array([[[2.0, 0], [0, 1]], [[2, 0], [0, 9]], [[0, 1], [5, 0]]], dtype=np.float32)
        >>> stack = LogitStack.from_arrays(z, labels=[0, 0, 1], members=["good", "bad"])
        >>> SubsetPool(LogLinearPool(weights="accuracy")).fit(stack).selected_
        ('good',)
    """

    selected_: tuple[str, ...]
    weights_: NDArray[np.float64]
    score_: float
    pool_: Rule

    def __init__(
        self,
        pool: Rule,
        objective: str | Objective = "accuracy",
        *,
        max_members: int | None = None,
        costs: Mapping[str, float] | Sequence[float] | None = None,
        budget: float | None = None,
    ) -> None:
        self.pool = pool
        self.objective = objective
        self.max_members = max_members
        self.costs = costs
        self.budget = budget

    @property
    def missing(self) -> Missing | None:  # type: ignore[override]
        """What the inner pool does about missing members; the search compares members on the videos that all have."""
        return check_pool(self.pool).missing

    def _fit(self, stack: LogitStack, labels: NDArray[np.int64] | None, weight: NDArray[np.float64] | None) -> None:
        stack = self._as_listed(stack)
        found = search_subsets(
            stack,
            self.objective,
            check_pool(self.pool),
            labels=labels,
            max_members=self.max_members,
            costs=self.costs,
            budget=self.budget,
            sample_weight=weight,
        )
        self.selected_, self.score_ = tuple(name for name in self.members_ if name in found.members), found.score
        self.pool_ = restricted(self.pool, stack.members, self.selected_).fit(
            stack.select(found.members), labels, weight
        )
        self.__dict__.pop("weights_", None)  # of an earlier fit, whose pool had some
        inner = getattr(self.pool_, "weights_", None)
        if inner is not None and np.shape(inner) == (len(self.selected_),):
            self.weights_ = np.zeros(len(self.members_))
            self.weights_[[self.members_.index(name) for name in self.pool_.members_]] = inner

    def summary(self, bootstrap: int = 0, *, confidence: float = 0.95, random_state: int | None = 0) -> PoolSummary:
        """Return each chosen member's weight; intervals take the choice as given, and tell nothing of its own spread.

        Raises:
            InputError: the pool has no weights, comes from a recipe or a pickle, or an argument is out of range.
        """
        check_is_fitted(self, "pool_")
        if not hasattr(self.pool_, "summary"):
            raise InputError(
                f"summary: expected a pool with one weight a member, such as LogLinearPool(), got {self.pool_!r}"
            )
        inner: PoolSummary = self.pool_.summary(bootstrap, confidence=confidence, random_state=random_state)
        return inner

    def needed_members(self) -> tuple[str, ...]:
        """Return those of `members_` that a prediction needs: those that the pool of the chosen ones needs."""
        check_is_fitted(self, "pool_")
        return self.pool_.needed_members()

    def weighted_sum(self) -> WeightedSum | None:
        """Return the weighted sum of the pool of the chosen ones, where it is one."""
        check_is_fitted(self, "pool_")
        return self.pool_.weighted_sum()

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        chosen = [name for name in stack.members if name in self.selected_]
        return self.pool_.predict_log_proba(stack.select(chosen) if chosen else stack)  # the pool says what it lacks
