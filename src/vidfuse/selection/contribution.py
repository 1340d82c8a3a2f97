"""What each member is worth: exact Shapley values, leaving one out, and how the members differ."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, log
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._tables import Cell, Column, Table, Tabular, number, percent, points
from vidfuse.errors import InputError
from vidfuse.fusion.rule import Rule, as_stack, complete_videos
from vidfuse.metrics import diversity as pairwise
from vidfuse.metrics.objectives import Objective, evaluate, labels_of
from vidfuse.selection.problem import Problem, pose
from vidfuse.selection.subsets import search_subsets

__all__ = ["Contributions", "Diversity", "diversity", "leave_one_out", "shapley_values"]

MOST_PLAYERS = 16
"""Exact Shapley values need the score of every subset: 65,535 of them for 16 members."""


@dataclass(frozen=True)
class Contributions(Tabular):
    """What each member adds to the score, positive where it helps, for a loss too.

    Attributes:
        method: "shapley" or "leave-one-out".
        objective: The objective's name.
        values: {member: contribution}, in the objective's units.
        full: The score of all members together.
        empty: What no member at all scores: 1/K for accuracies, ln K for the NLL.
    """

    method: str
    objective: str
    values: dict[str, float]
    full: float
    empty: float

    def __getitem__(self, member: str) -> float:
        return self.values[member]

    def table(self) -> Table:
        """Return the contributions as a table, the largest first."""
        write = points if self.objective.endswith("accuracy") else lambda value: number(value, 4)
        ranked = sorted(self.values.items(), key=lambda item: (-item[1], item[0]))
        return Table(("member", Column("contribution", write=write)), tuple(ranked), f"{self.method}, {self.objective}")

    def __repr__(self) -> str:
        ranked = sorted(self.values.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{name} {value:+.4g}" for name, value in ranked)
        return f"Contributions({self.method}, {self.objective} {self.empty:.4g} → {self.full:.4g}: {listed})"


@dataclass(frozen=True)
class Diversity(Tabular):
    """How the members differ in what they get right; matrices are (M, M) in the order of `members`.

    Attributes:
        members: The members.
        accuracy: Each member's accuracy, shape (M,).
        disagreement: How often exactly one of both is right.
        prediction_disagreement: How often both predict different classes.
        q_statistic: Yule's Q of their hits; NaN where a member is always right or always wrong.
        double_fault: How often both are wrong.
        oracle: How often at least one member is right: no selection of a member a video can beat it.
    """

    members: tuple[str, ...]
    accuracy: NDArray[np.float64]
    disagreement: NDArray[np.float64]
    prediction_disagreement: NDArray[np.float64]
    q_statistic: NDArray[np.float64]
    double_fault: NDArray[np.float64]
    oracle: float

    def table(self) -> Table:
        """Return a row for each pair of members."""
        columns = (
            "first",
            "second",
            Column("one right %", "disagreement", percent),
            Column("other class %", "prediction_disagreement", percent),
            Column("Q", "q_statistic", number),
            Column("both wrong %", "double_fault", percent),
        )
        matrices = (self.disagreement, self.prediction_disagreement, self.q_statistic, self.double_fault)
        pairs = zip(*np.triu_indices(len(self.members), 1), strict=True)
        rows: list[tuple[Cell, ...]] = [
            (self.members[a], self.members[b], *(float(matrix[a, b]) for matrix in matrices)) for a, b in pairs
        ]
        return Table(
            columns, tuple(rows), f"How the members differ (one or more of them right: {percent(self.oracle)} %)"
        )

    def __repr__(self) -> str:
        upper = np.triu_indices(len(self.members), 1)
        mean = float(self.disagreement[upper].mean()) if len(upper[0]) else 0.0
        return (
            f"Diversity({len(self.members)} members, best {self.accuracy.max():.4f}, oracle {self.oracle:.4f}, "
            f"mean disagreement {mean:.4f})"
        )


def _empty_score(problem: Problem) -> float:
    """Return what the uniform distribution scores, with no class ahead."""
    n_classes = problem.stack.n_classes
    if callable(problem.objective):
        uniform = np.full((len(problem.labels), n_classes), -log(n_classes))
        return evaluate(problem.objective, problem.labels, uniform, ())
    return log(n_classes) if problem.objective == "nll" else 1 / n_classes


def shapley_values(
    stack: Any,
    objective: str | Objective = "accuracy",
    rule: Rule | None = None,
    *,
    labels: ArrayLike | None = None,
) -> Contributions:
    """Share the score of all members among them: each one's mean marginal gain over all orders of joining, exactly.

    φ_m = Σ_{S ∌ m} s! (M − s − 1)! / M! · (v(S ∪ m) − v(S)), s = the size of S, from the table of all 2^M subsets. The
    empty set knows nothing: it scores 1/K for accuracies, ln K for the NLL, and a callable's value of uniform
    log-likelihoods. The values sum to v(all) − v(empty). They describe these videos (in-sample); where members lack
    some and the rule says `missing="renormalise"`, those that every member has.

    Args:
        stack: A stack, or an array (N, M, K), of at most 16 members.
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`.
        rule: Any fusion rule; `LogLinearPool(weights="accuracy")` by default.
        labels: True classes, shape (N,); the stack's own by default.

    Raises:
        InputError: More than 16 members, a subset of infinite loss, labels are missing, or a callable returns NaN.
        AlignmentError: Members lack videos, and the rule does not say what to do.

    Source:
        Shapley (1953), A value for n-person games, eq. 12; for ensembles, Rozemberczki and Sarkar (2021), CIKM, The
        Shapley value of classifiers in ensemble games.

    Example:
        >>> from vidfuse.stack.stack import LogitStack
        >>> z = np.array([[[2.0, 0], [0, 1]], [[2, 0], [0, 9]], [[0, 1], [5, 0]]], dtype=np.float32)
        >>> stack = LogitStack.from_arrays(z, labels=[0, 0, 1], members=["good", "bad"])
        >>> shapley_values(stack)
        Contributions(shapley, accuracy 0.5 → 1: good +0.75, bad -0.25)
    """
    problem = pose(stack, objective, rule, labels=labels, task="share the score of")
    n_members = len(problem.members)
    if n_members > MOST_PLAYERS:
        raise InputError(
            f"exact Shapley values need all 2^{n_members} subsets: expected at most {MOST_PLAYERS} members, got "
            f"{n_members}; select some, or use leave_one_out"
        )
    found = search_subsets(problem.stack.select(problem.members), objective, problem.rule, labels=problem.labels)
    sign, empty = problem.sign, _empty_score(problem)
    value = np.empty(1 << n_members)
    value[0] = sign * empty
    value[found.table.masks.astype(np.int64)] = sign * found.table.scores
    if not np.isfinite(value).all():
        raise InputError(
            "some subset's score is infinite: a member gives a true class probability 0, and differences of infinite "
            "scores are no values; give the pool a floor above 0"
        )
    sets = np.arange(1 << n_members)
    size = np.bitwise_count(sets)
    share = np.array([1 / (n_members * comb(n_members - 1, s)) for s in range(n_members)])
    values = {}
    for m, name in enumerate(problem.stack.members):
        without = sets[sets >> m & 1 == 0]
        values[name] = float(share[size[without]] @ (value[without | 1 << m] - value[without]))
    return Contributions("shapley", found.objective, values, float(sign * value[-1]), empty)


def leave_one_out(
    stack: Any,
    objective: str | Objective = "accuracy",
    rule: Rule | None = None,
    *,
    labels: ArrayLike | None = None,
) -> Contributions:
    """Return what is lost when one member is left out: v(all) − v(all but m), positive where the member helps.

    Where members lack videos and the rule says `missing="renormalise"`, v is that of the videos that every member has.

    Args:
        stack: A stack, or an array (N, M, K).
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`.
        rule: Any fusion rule, refitted without the member; `LogLinearPool(weights="accuracy")` by default.
        labels: True classes, shape (N,); the stack's own by default.

    Raises:
        InputError: Labels are missing, or a callable returns NaN.
        AlignmentError: Members lack videos, and the rule does not say what to do.

    Example:
        >>> from vidfuse.fusion.log_linear import LogLinearPool
        >>> from vidfuse.stack.stack import LogitStack
        >>> z = np.array([[[2.0, 0], [0, 1]], [[2, 0], [0, 9]], [[0, 1], [5, 0]]], dtype=np.float32)
        >>> stack = LogitStack.from_arrays(z, labels=[0, 0, 1], members=["good", "bad"])
        >>> round(leave_one_out(stack, rule=LogLinearPool(weights="uniform"))["good"], 4)
        0.3333
    """
    problem = pose(stack, objective, rule, labels=labels, task="leave members out of")
    full, empty = problem.refit(problem.stack.members), _empty_score(problem)
    values = {}
    names = problem.stack.members
    for name in names:
        others = [other for other in names if other != name]
        values[name] = problem.sign * (full - (problem.refit(others) if others else empty))
    return Contributions("leave-one-out", problem.name, values, full, empty)


def diversity(stack: Any, labels: ArrayLike | None = None) -> Diversity:
    """Return how the members differ: accuracies, pairwise disagreement, Q and double fault, and the oracle.

    Args:
        stack: A stack, or an array (N, M, K) of logits or log-likelihoods. Members are compared on the videos that all
            of them have.
        labels: True classes, shape (N,); the stack's own by default.

    Raises:
        InputError: Labels are missing, no video has all members, or the stack has views.

    Source:
        Kuncheva and Whitaker (2003), Measures of diversity in classifier ensembles, Machine Learning 51, section 2.

    Example:
        >>> from vidfuse.stack.stack import LogitStack
        >>> z = np.array([[[2.0, 0], [0, 1]], [[2, 0], [0, 9]], [[0, 1], [0, 5]]], dtype=np.float32)
        >>> diversity(LogitStack.from_arrays(z, labels=[0, 0, 1], members=["good", "bad"]))
        Diversity(2 members, best 1.0000, oracle 1.0000, mean disagreement 0.6667)
    """
    stack = as_stack(stack)
    y = labels_of(stack, labels, where="the stack to measure")
    if stack.n_views is not None:
        raise InputError(f"diversity takes (N, M, K), got views: shape {stack.shape}; reduce them with reduce_views")
    if stack.present is not None:
        whole = complete_videos(stack)
        stack, y = stack[whole], y[whole]
    predicted = np.stack([stack.scores(member).argmax(axis=1) for member in stack.members], axis=1)
    hits = predicted == y[:, None]
    return Diversity(
        members=stack.members,
        accuracy=hits.mean(axis=0),
        disagreement=pairwise.disagreement(hits),
        prediction_disagreement=pairwise.prediction_disagreement(predicted),
        q_statistic=pairwise.q_statistic(hits),
        double_fault=pairwise.double_fault(hits),
        oracle=pairwise.oracle_accuracy(hits),
    )
