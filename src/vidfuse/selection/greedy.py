"""Ensemble selection: grow an ensemble member by member, each time with the one that helps most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from vidfuse._threads import one_blas_thread
from vidfuse.errors import InputError
from vidfuse.fusion.floors import Floor, member_floors
from vidfuse.fusion.linear import LinearPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule, WeightedSum, as_stack, check_sample_weight
from vidfuse.fusion.summary import PoolSummary, Refit, summarise
from vidfuse.fusion.weights import true_log_likelihoods
from vidfuse.metrics.objectives import (
    Objective,
    evaluate,
    higher_is_better,
    labels_of,
    objective_name,
    resolve_objective,
)
from vidfuse.selection.hit_gains import HitGains
from vidfuse.selection.losses import log_linear_losses, relative_likelihoods, sum_logs
from vidfuse.selection.masks import LOG_LINEAR_TIE, TIE, member_costs, tie_ranks
from vidfuse.selection.subsets import complete_videos, video_weights
from vidfuse.stack.stack import LogitStack

__all__ = ["GreedyPool", "GreedySearch", "Kind", "greedy_search", "score_of"]

Kind = Literal["linear", "log-linear"]
Gains = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]
"""From the counts so far (M,) and candidates (C,) to the score, higher is better, with each one more (C,).

From the second round on, that of a candidate which another one beats may be a lower bound.
"""


@dataclass(frozen=True)
class GreedySearch:
    """The result of a greedy search.

    Attributes:
        weights: {member: weight} of the chosen members, summing to 1.
        score: What the objective gives the ensemble on the videos of the search: an in-sample number.
        objective: The objective's name.
        path: (member, score) of each round; of bags, one after the other. The ensemble is the best prefix of a path.
    """

    weights: dict[str, float]
    score: float
    objective: str
    path: tuple[tuple[str, float], ...] = field(repr=False)

    @property
    def members(self) -> tuple[str, ...]:
        """The chosen members, in the stack's order."""
        return tuple(self.weights)

    def __repr__(self) -> str:
        listed = " + ".join(f"{weight:.3g} {name}" for name, weight in self.weights.items())
        return f"GreedySearch({listed}: in-sample {self.objective} {self.score:.6g} after {len(self.path)} rounds)"


def greedy_search(
    stack: Any,
    objective: str | Objective = "nll",
    rounds: int = 100,
    *,
    kind: Kind = "linear",
    replacement: bool = True,
    sorted_start: int = 0,
    bagging: int = 0,
    bag_fraction: float = 0.5,
    costs: Mapping[str, float] | Sequence[float] | None = None,
    floor: Floor = "auto",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    random_state: int | None = 0,
) -> GreedySearch:
    """Grow an ensemble: in each round add the member that makes the pooled prediction best, and keep the best prefix.

    A member that is added k times in t rounds has weight k/t. For accuracy only the classes that can win are looked at
    (exactly as in `search_subsets`), for the NLL of a linear pool only the true class's column. Among equal scores the
    cheaper member wins, then the first name; among equal prefixes the shorter.

    Args:
        stack: A stack, or an array (N, M, K) of logits or log-likelihoods.
        objective: "accuracy", "mean-class-accuracy", "nll", or a callable `(labels, log_proba) -> float`, higher is
            better.
        rounds: How many members are added; at most M without replacement.
        kind: "linear" averages probabilities (as published), "log-linear" log-likelihoods.
        replacement: Whether a member may be added again.
        sorted_start: Begin with the so many best single members.
        bagging: Repeat on so many random bags of members and average the weights; 0 searches once, with all of them.
        bag_fraction: The share of the members in a bag.
        costs: {member: cost} or one a member, which breaks ties. 1 each by default.
        floor: The uniform distribution's share in every member, or "auto".
        labels: True classes, shape (N,); the stack's own by default.
        sample_weight: One weight of at least 0 a video, for the named objectives.
        random_state: Seed of the bags.

    Raises:
        InputError: An argument is out of range, labels are missing, or a callable returns NaN.
        AlignmentError: Members lack videos.

    Source:
        Caruana, Niculescu-Mizil, Crew and Ksikes (2004), ICML, Ensemble selection from libraries of models, section 2:
        selection with replacement (2.1), sorted initialisation (2.2), bagging (2.3).

    Example:
        >>> z = np.log([[[0.9, 0.1], [0.4, 0.6]], [[0.8, 0.2], [0.3, 0.7]]])
        >>> greedy_search(LogitStack.from_arrays(z, labels=[0, 1], members=["a", "b"]), rounds=2)
        GreedySearch(0.5 a + 0.5 b: in-sample nll 0.614645 after 2 rounds)
    """
    stack = as_stack(stack)
    y = labels_of(stack, labels, where="the stack to search on")
    resolve_objective(objective)
    sample_weight = check_sample_weight(sample_weight, len(stack))
    _check_arguments(stack, rounds, kind, sorted_start, bagging, bag_fraction, objective, sample_weight)
    stack, y, sample_weight = complete_videos(stack, y, sample_weight, None)
    ordered = stack.select(sorted(stack.members))
    n_members = len(ordered.members)
    cost = member_costs(costs, stack.members)[[stack.members.index(name) for name in ordered.members]]
    tie = LOG_LINEAR_TIE if objective == "nll" and kind == "log-linear" else TIE
    gains = _gains(ordered, y, objective, kind, floor, sample_weight)
    rng = np.random.default_rng(random_state)
    shares = np.zeros(n_members)
    path: list[tuple[str, float]] = []
    sign = 1.0 if higher_is_better(objective) else -1.0
    for _ in range(max(bagging, 1)):
        allowed = np.ones(n_members, bool)
        if bagging:
            allowed[:] = False
            size = max(1, round(bag_fraction * n_members))
            allowed[rng.choice(n_members, size=size, replace=False)] = True
        with one_blas_thread() if objective == "nll" else nullcontext():  # small products
            order, scores = _grow(gains, allowed, rounds, replacement, sorted_start, cost, tie)
        kept = int(np.flatnonzero(scores >= scores.max() - tie)[0]) + 1
        counts = np.bincount(order[:kept], minlength=n_members)
        shares += counts / kept
        path += [(ordered.members[m], sign * score) for m, score in zip(order, scores.tolist(), strict=True)]
        score = float(scores[kept - 1])
    shares /= shares.sum()
    if bagging > 1:
        score = score_of(ordered, y, objective, kind, floor, shares, sample_weight) * sign
    by_name = dict(zip(ordered.members, shares.tolist(), strict=True))
    weights = {name: by_name[name] for name in stack.members if by_name[name] > 0}
    return GreedySearch(weights, sign * score, objective_name(objective), tuple(path))


def _check_arguments(
    stack: LogitStack,
    rounds: int,
    kind: str,
    sorted_start: int,
    bagging: int,
    bag_fraction: float,
    objective: str | Objective,
    sample_weight: NDArray[np.float64] | None,
) -> None:
    if stack.n_views is not None:
        raise InputError(
            f"greedy_search takes (N, M, K), got views: shape {stack.shape}; reduce them with reduce_views"
        )
    if rounds < 1 or sorted_start < 0 or bagging < 0:
        raise InputError(
            "expected rounds of at least 1, sorted_start and bagging of at least 0, "
            f"got rounds={rounds}, sorted_start={sorted_start}, bagging={bagging}"
        )
    if kind not in ("linear", "log-linear"):
        raise InputError(f"kind: expected 'linear' or 'log-linear', got {kind!r}")
    if not 0 < bag_fraction <= 1:
        raise InputError(f"bag_fraction: expected above 0 and at most 1, got {bag_fraction!r}")
    if callable(objective) and sample_weight is not None:
        raise InputError("sample_weight: expected a named objective; a callable gets no weights")


def _grow(
    gains: Gains,
    allowed: NDArray[np.bool_],
    rounds: int,
    replacement: bool,
    sorted_start: int,
    cost: NDArray[np.float64],
    tie: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the members in the order in which they were added, and the score after each."""
    counts = np.zeros(len(allowed), np.int64)
    free = np.flatnonzero(allowed)
    order: list[int] = []
    scores: list[float] = []
    start = np.zeros(0, np.int64)
    if sorted_start:
        loss = -gains(counts, free)
        ascending = np.argsort(loss, kind="stable")
        start = free[ascending]
        start = start[np.lexsort((start, cost[start], tie_ranks(loss[ascending], tie)))][:sorted_start]
    for step in range(max(rounds, len(start))):
        candidates = start[[step]] if step < len(start) else free
        if not len(candidates):
            break
        with_one = gains(counts, candidates)
        tied = np.flatnonzero(with_one >= with_one.max() - tie)
        best = int(tied[np.argmin(cost[candidates[tied]])])
        member = int(candidates[best])
        order.append(member)
        scores.append(float(with_one[best]))
        counts[member] += 1
        if not replacement:
            free = free[free != member]
    return np.array(order), np.array(scores)


def _gains(
    ordered: LogitStack,
    labels: NDArray[np.int64],
    objective: str | Objective,
    kind: Kind,
    floor: Floor,
    sample_weight: NDArray[np.float64] | None,
) -> Gains:
    floors = member_floors(ordered, floor)
    linear = kind == "linear"
    if callable(objective):
        return _callable_gains(ordered, labels, objective, kind, floor)
    a = video_weights(labels, objective, sample_weight)
    if objective != "nll":
        return HitGains(ordered, labels, floors, linear, a)
    uneven = None if sample_weight is None else a
    if linear:
        relative, constant = relative_likelihoods(true_log_likelihoods(ordered, labels, floors), uneven)
        scale = len(labels) if uneven is None else 1.0

        def gains(counts: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
            pooled = (counts @ relative + relative[candidates]) / (counts.sum() + 1)
            return constant + sum_logs(pooled, uneven) / scale

        return gains

    def log_linear_gains(counts: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        return -log_linear_losses(ordered, labels, floors, _with_one(counts, candidates), uneven)

    return log_linear_gains


def _with_one(counts: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the counts with each candidate one more, shape (C, M)."""
    return counts + np.eye(len(counts))[candidates]


def _callable_gains(
    ordered: LogitStack, labels: NDArray[np.int64], objective: Objective, kind: Kind, floor: Floor
) -> Gains:
    def gains(counts: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        ensembles = _with_one(counts, candidates)
        return np.array([score_of(ordered, labels, objective, kind, floor, row, None) for row in ensembles])

    return gains


def score_of(
    ordered: LogitStack,
    labels: NDArray[np.int64],
    objective: str | Objective,
    kind: Kind,
    floor: Floor,
    weights: NDArray[np.float64],
    sample_weight: NDArray[np.float64] | None,
) -> float:
    """Return the objective of one ensemble by the pool itself.

    Args:
        ordered: Members, sorted by name.
        labels: True classes, shape (N,).
        objective: A name, or a callable `(labels, log_proba) -> float`.
        kind: "linear" or "log-linear".
        floor: The uniform distribution's share in every member, or "auto".
        weights: One a member, shape (M,), of positive sum.
        sample_weight: One weight of at least 0 a video, for the named objectives.

    Example:
        >>> z = np.log([[[0.9, 0.1], [0.4, 0.6]], [[0.8, 0.2], [0.3, 0.7]]])
        >>> stack = LogitStack.from_arrays(z, members=["a", "b"])
        >>> score_of(stack, np.array([0, 1]), "accuracy", "linear", 0.0, np.array([1.0, 0.0]), None)
        0.5
    """
    pool = _pool(kind, floor, dict(zip(ordered.members, weights.tolist(), strict=True)))
    log_proba = pool.fit(ordered).predict_log_proba(ordered)
    if callable(objective):
        chosen = [name for name, w in zip(ordered.members, weights, strict=True) if w > 0]
        return evaluate(objective, labels, log_proba, chosen)
    a = video_weights(labels, objective, sample_weight)
    if objective == "nll":
        return float(-a @ np.take_along_axis(log_proba, labels[:, None], axis=1)[:, 0])
    return float(a @ (log_proba.argmax(axis=1) == labels))


def _pool(kind: Kind, floor: Floor, weights: dict[str, float]) -> Rule:
    return (LinearPool if kind == "linear" else LogLinearPool)(weights=weights, floor=floor)


def _searched_weights(
    stack: LogitStack, labels: NDArray[np.int64] | None, parameters: Mapping[str, Any], omega: NDArray[np.float64]
) -> NDArray[np.float64]:
    found = greedy_search(stack, labels=labels, sample_weight=omega, **parameters)
    return np.array([found.weights.get(name, 0.0) for name in sorted(stack.members)])


class GreedyPool(Rule):
    """Ensemble selection as an estimator: a pool whose weights are how often a greedy search chose each member.

    Args:
        objective: "nll", "accuracy", "mean-class-accuracy", or a callable `(labels, log_proba) -> float`.
        rounds: How many members are added.
        kind: "linear" averages probabilities, "log-linear" log-likelihoods.
        replacement: Whether a member may be added again.
        sorted_start: Begin with the so many best single members.
        bagging: Repeat on so many random bags of members and average; 0 searches once.
        bag_fraction: The share of the members in a bag.
        costs: {member: cost} or one a member, which breaks ties. 1 each by default.
        floor: The uniform distribution's share in every member, or "auto".
        random_state: Seed of the bags.

    Attributes:
        weights_: (M,), on the simplex, in the order of `members_`.
        score_: What the objective gives on the videos of the fit, an in-sample number.
        path_: The member added in each round.
        pool_: The pool of the chosen members.

    Source:
        Caruana, Niculescu-Mizil, Crew and Ksikes (2004), ICML, Ensemble selection from libraries of models.

    Example:
        >>> z = np.log([[[0.9, 0.1], [0.4, 0.6]], [[0.8, 0.2], [0.3, 0.7]]])
        >>> pool = GreedyPool(rounds=2).fit(LogitStack.from_arrays(z, labels=[0, 1], members=["a", "b"]))
        >>> pool.weights_.tolist(), pool.path_
        ([0.5, 0.5], ['b', 'a'])
    """

    weights_: NDArray[np.float64]
    score_: float
    path_: list[str]
    pool_: Rule

    def __init__(
        self,
        objective: str | Objective = "nll",
        rounds: int = 100,
        *,
        kind: Kind = "linear",
        replacement: bool = True,
        sorted_start: int = 0,
        bagging: int = 0,
        bag_fraction: float = 0.5,
        costs: Mapping[str, float] | Sequence[float] | None = None,
        floor: Floor = "auto",
        random_state: int | None = 0,
    ) -> None:
        self.objective = objective
        self.rounds = rounds
        self.kind = kind
        self.replacement = replacement
        self.sorted_start = sorted_start
        self.bagging = bagging
        self.bag_fraction = bag_fraction
        self.costs = costs
        self.floor = floor
        self.random_state = random_state

    def _fit(self, stack: LogitStack, labels: NDArray[np.int64] | None, weight: NDArray[np.float64] | None) -> None:
        stack = self._as_listed(stack)
        found = greedy_search(stack, labels=labels, sample_weight=weight, **self.get_params(deep=False))
        self.weights_ = np.array([found.weights.get(name, 0.0) for name in self.members_])
        self.score_ = found.score
        self.path_ = [name for name, _ in found.path]
        self.pool_ = _pool(self.kind, self.floor, found.weights).fit(stack.select(found.members))
        self._omega = np.ones(len(stack)) if weight is None else weight
        self._refit: Refit | None = partial(_searched_weights, stack, labels, self.get_params(deep=False))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_refit": None, "_omega": None}

    def summary(self, bootstrap: int = 0, *, confidence: float = 0.95, random_state: int | None = 0) -> PoolSummary:
        """Return each member's weight, with percentile intervals over `bootstrap` resamples of the fit's videos.

        The whole search is repeated on each resample.

        Raises:
            InputError: the rule comes from a recipe or a pickle, which keep no videos, the objective is a callable,
                which gets no weights, or an argument is out of range.
        """
        check_is_fitted(self, "weights_")
        return summarise(
            self.members_,
            self.weights_,
            1.0,
            refit=getattr(self, "_refit", None),
            omega=getattr(self, "_omega", None),
            bootstrap=bootstrap,
            confidence=confidence,
            random_state=random_state,
        )

    def needed_members(self) -> tuple[str, ...]:
        """Return those of `members_` that a prediction needs: those that the pool of the chosen ones needs."""
        check_is_fitted(self, "pool_")
        return self.pool_.needed_members()

    def weighted_sum(self) -> WeightedSum | None:
        """Return the weighted sum of the pool of the chosen ones."""
        check_is_fitted(self, "pool_")
        return self.pool_.weighted_sum()

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        return self.pool_.predict_log_proba(stack.select([m for m in stack.members if m in self.pool_.members_]))
