"""Ensemble selection: grow an ensemble member by member, each time with the one that helps most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from vidfuse._checks import check_choice
from vidfuse._tables import Table, Tabular, weight_table
from vidfuse._threads import one_blas_thread
from vidfuse.errors import InputError
from vidfuse.fusion.floors import Floor, member_floors
from vidfuse.fusion.linear import LinearPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule, WeightedSum
from vidfuse.fusion.summary import SummarisedRule
from vidfuse.fusion.weights import true_log_likelihoods
from vidfuse.metrics.objectives import Objective
from vidfuse.selection.hits import find_hits
from vidfuse.selection.losses import log_linear_losses, log_mixtures, relative_likelihoods
from vidfuse.selection.masks import LOG_LINEAR_TIE, TIE, member_costs
from vidfuse.selection.problem import Problem, pose
from vidfuse.stack.stack import LogitStack

__all__ = ["GreedyPool", "GreedySearch", "PoolName", "greedy_search", "named_pool", "pool_score"]

PoolName = Literal["linear", "log-linear"]
Gains = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]
"""From the counts so far (M,) and candidates (C,) to the score, higher is better, with each one more (C,).

The score of a candidate that another one beats may be a lower bound.
"""


@dataclass(frozen=True)
class GreedySearch(Tabular):
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
        """The chosen members, sorted by name."""
        return tuple(self.weights)

    def table(self) -> Table:
        """Return the weights as a table, the largest first."""
        return weight_table(self.weights, f"{self.objective} {self.score:.6g} (in-sample)")

    def __repr__(self) -> str:
        listed = " + ".join(f"{weight:.3g} {name}" for name, weight in self.weights.items())
        return f"GreedySearch({listed}: in-sample {self.objective} {self.score:.6g} after {len(self.path)} rounds)"


def greedy_search(
    stack: Any,
    objective: str | Objective = "accuracy",
    rounds: int = 100,
    *,
    pool: PoolName = "linear",
    replacement: bool = True,
    bagging: int = 0,
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
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`,
            higher is better. With few videos many ensembles have the same accuracy, and "nll" tells more.
        rounds: How many members are added; at most M without replacement.
        pool: "linear" averages probabilities (as published), "log-linear" log-likelihoods.
        replacement: Whether a member may be added again.
        bagging: Repeat on so many random halves of the members and average the weights; 0 searches once, with all.
        costs: {member: cost}, or numbers in the members' order, to break ties. 1 each by default.
        floor: The uniform distribution's share in every member, or "auto".
        labels: True classes, shape (N,); the stack's own by default.
        sample_weight: One weight of at least 0 a video, shape (N,), for the named objectives.
        random_state: Seed of the bags.

    Raises:
        InputError: An argument is out of range, labels are missing, or a callable returns NaN.
        AlignmentError: Members lack videos.

    Source:
        Caruana, Niculescu-Mizil, Crew and Ksikes (2004), ICML, Ensemble selection from libraries of models, section 2:
        selection with replacement (2.1), bagging (2.3).

    Example:
        >>> z = np.log([[[0.9, 0.1], [0.4, 0.6]], [[0.8, 0.2], [0.3, 0.7]]])
        >>> stack = LogitStack.from_arrays(z, labels=[0, 1], members=["a", "b"])
        >>> greedy_search(stack, "nll", rounds=2)
        GreedySearch(0.5 a + 0.5 b: in-sample nll 0.614645 after 2 rounds)
    """
    problem = pose(stack, objective, named_pool(pool), labels=labels, sample_weight=sample_weight, whole_only=True)
    if rounds < 1 or bagging < 0:
        raise InputError(
            f"expected rounds of at least 1 and bagging of at least 0, got rounds={rounds}, bagging={bagging}"
        )
    names, sign = problem.stack.members, problem.sign
    cost = member_costs(costs, problem.members)[problem.columns]
    tie = LOG_LINEAR_TIE if objective == "nll" and pool == "log-linear" else TIE
    gains = _gains(problem, pool, floor)
    rng = np.random.default_rng(random_state)
    shares = np.zeros(len(names))
    path: list[tuple[str, float]] = []
    for _ in range(max(bagging, 1)):
        free = np.arange(len(names))
        if bagging:
            free = np.sort(rng.choice(free, size=max(1, round(len(free) / 2)), replace=False))
        with one_blas_thread():  # the products are too small to share
            order, scores = _grow(gains, free, rounds, replacement, cost, tie)
        kept = int(np.flatnonzero(scores >= scores.max() - tie)[0]) + 1
        shares += np.bincount(order[:kept], minlength=len(names)) / kept
        path += [(names[m], sign * score) for m, score in zip(order, scores.tolist(), strict=True)]
        score = sign * float(scores[kept - 1])
    shares /= shares.sum()
    if bagging > 1:
        score = pool_score(problem, pool, floor, shares)
    weights = {name: share for name, share in zip(names, shares.tolist(), strict=True) if share > 0}
    return GreedySearch(weights, score, problem.name, tuple(path))


def _grow(
    gains: Gains,
    free: NDArray[np.int64],
    rounds: int,
    replacement: bool,
    cost: NDArray[np.float64],
    tie: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the members in the order in which they were added, and the score after each."""
    counts = np.zeros(len(cost), np.int64)
    order: list[int] = []
    scores: list[float] = []
    for _ in range(rounds if replacement else min(rounds, len(free))):
        with_one = gains(counts, free)
        tied = np.flatnonzero(with_one >= with_one.max() - tie)
        best = int(tied[np.argmin(cost[free[tied]])])
        order.append(int(free[best]))
        scores.append(float(with_one[best]))
        counts[free[best]] += 1
        if not replacement:
            free = np.delete(free, best)
    return np.array(order), np.array(scores)


def _gains(problem: Problem, pool: PoolName, floor: Floor) -> Gains:
    """Return what tells how good an ensemble is with one member more.

    objective      pool          what is looked at
    a callable     both          the pool's predictions
    accuracies     both          the rivals of the true class
    "nll"          linear        the true class's column
                   log-linear    every class
    """
    stack, labels, a = problem.stack, problem.labels, problem.video_weights
    floors = member_floors(stack, floor)
    if callable(problem.objective):
        return lambda counts, candidates: np.array(
            [pool_score(problem, pool, floor, row) for row in _with_one(counts, candidates)]
        )
    if problem.objective != "nll":
        return _hit_gains(problem, floors, pool == "linear")
    if pool == "log-linear":
        return lambda counts, candidates: -log_linear_losses(stack, labels, floors, _with_one(counts, candidates), a)
    relative, logs, constant = relative_likelihoods(true_log_likelihoods(stack, labels, floors), a)

    def gains(counts: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        mixed = counts @ relative + relative[candidates]
        log_pooled = log_mixtures(mixed, _with_one(counts, candidates), logs) - np.log(counts.sum() + 1)
        return constant + log_pooled @ a / a.sum()

    return gains


def _with_one(counts: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the counts with each candidate one more, shape (C, M)."""
    return counts + np.eye(len(counts))[candidates]


def _hit_gains(problem: Problem, floors: NDArray[np.float64], linear: bool) -> Gains:
    """Return the gains for accuracy.

    Most videos are decided for some rounds to come, whichever members are added: only the others are looked at. After
    t rounds the next t/2 are looked ahead, so that the whole is narrowed some log t times.
    """
    a = problem.video_weights
    whole = find_hits(problem.stack, problem.labels, floors, linear, a)
    live, since, ahead = whole, np.zeros(len(floors), np.int64), 1

    def gains(counts: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        nonlocal live, since, ahead
        added = counts - since
        if added.min() < 0 or added.sum() >= ahead:  # another bag, or beyond what was looked ahead
            since, ahead = counts.copy(), max(1, int(counts.sum()) // 2)
            live = whole.narrowed(counts, ahead)
        scores = np.empty(len(candidates))
        base = live.sums(counts)
        error = live.rounding * (counts.sum() + 1)
        for first in range(0, len(candidates), 64):
            some = candidates[first : first + 64]
            sums, ensembles = base + live.margins[some], _with_one(counts, some)
            scores[first : first + 64] = live.scores_of_sums(sums, ensembles, error, best_only=True)
        return scores / a.sum()

    return gains


def pool_score(problem: Problem, pool: PoolName, floor: Floor, weights: NDArray[np.float64]) -> float:
    """Return the objective of one ensemble by the pool itself, for weights of at least 0 in the order of the stack.

    Example:
        >>> z = np.log([[[0.9, 0.1], [0.4, 0.6]], [[0.8, 0.2], [0.3, 0.7]]])
        >>> problem = pose(z, "accuracy", None, labels=np.array([0, 1]))
        >>> pool_score(problem, "linear", 0.0, np.array([1.0, 0.0]))
        0.5
    """
    names = problem.stack.members
    fitted = named_pool(pool, floor, dict(zip(names, weights.tolist(), strict=True))).fit(problem.stack)
    chosen = [name for name, weight in zip(names, weights, strict=True) if weight > 0]
    return problem.score(fitted.predict_log_proba(problem.stack), chosen)


def named_pool(pool: PoolName, floor: Floor = "auto", weights: str | dict[str, float] = "uniform") -> Rule:
    """Return one of the two pools, unfitted.

    Raises:
        InputError: The name is another.

    Example:
        >>> named_pool("linear", weights={"a": 1.0})
        LinearPool(weights={'a': 1.0})
    """
    check_choice("pool", pool, get_args(PoolName))
    return (LinearPool if pool == "linear" else LogLinearPool)(weights=weights, floor=floor)


def _searched_weights(
    stack: LogitStack, labels: NDArray[np.int64] | None, parameters: Mapping[str, Any], omega: NDArray[np.float64]
) -> NDArray[np.float64]:
    found = greedy_search(stack, labels=labels, sample_weight=omega, **parameters)
    return np.array([found.weights.get(name, 0.0) for name in sorted(stack.members)])


class GreedyPool(SummarisedRule):
    """Ensemble selection as an estimator: a pool whose weights are how often a greedy search chose each member.

    Args:
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`.
        rounds: How many members are added.
        pool: "linear" averages probabilities, "log-linear" log-likelihoods.
        replacement: Whether a member may be added again.
        bagging: Repeat on so many random halves of the members and average the weights; 0 searches once, with all.
        costs: {member: cost}, or numbers in the members' order, to break ties. 1 each by default.
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
        >>> pool = GreedyPool("nll", rounds=2).fit(LogitStack.from_arrays(z, labels=[0, 1], members=["a", "b"]))
        >>> pool.weights_.tolist(), pool.path_
        ([0.5, 0.5], ['b', 'a'])
    """

    weights_: NDArray[np.float64]
    score_: float
    path_: list[str]
    pool_: Rule

    def __init__(
        self,
        objective: str | Objective = "accuracy",
        rounds: int = 100,
        *,
        pool: PoolName = "linear",
        replacement: bool = True,
        bagging: int = 0,
        costs: Mapping[str, float] | Sequence[float] | None = None,
        floor: Floor = "auto",
        random_state: int | None = 0,
    ) -> None:
        self.objective = objective
        self.rounds = rounds
        self.pool = pool
        self.replacement = replacement
        self.bagging = bagging
        self.costs = costs
        self.floor = floor
        self.random_state = random_state

    def _fit(self, stack: LogitStack, labels: NDArray[np.int64] | None, weight: NDArray[np.float64] | None) -> None:
        stack = self._as_listed(stack)
        found = greedy_search(stack, labels=labels, sample_weight=weight, **self.get_params(deep=False))
        self.weights_ = np.array([found.weights.get(name, 0.0) for name in self.members_])
        self.score_ = found.score
        self.path_ = [name for name, _ in found.path]
        self.pool_ = named_pool(self.pool, self.floor, found.weights).fit(stack.select(found.members))
        self._omega = np.ones(len(stack)) if weight is None else weight
        self._groups = stack.groups
        self._refit = partial(_searched_weights, stack, labels, self.get_params(deep=False))

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
