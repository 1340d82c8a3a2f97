"""What every search starts from: complete videos, an objective, members sorted by name; and the best single member."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from vidfuse._checks import check_weights
from vidfuse.errors import InputError
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import (
    Rule,
    as_stack,
    check_layout,
    check_presence,
    check_rule,
    check_sample_weight,
    complete_videos,
)
from vidfuse.metrics.objectives import (
    Objective,
    evaluate,
    higher_is_better,
    labels_of,
    objective_name,
    resolve_objective,
)
from vidfuse.metrics.outcomes import OF_OUTCOMES, Outcomes
from vidfuse.stack.stack import LogitStack

__all__ = ["Problem", "best_single", "pose", "restricted", "video_weights"]


@dataclass(frozen=True)
class Problem:
    """Videos to search on, and what is to be best on them.

    Attributes:
        stack: The videos that are compared, members sorted by name.
        members: The members in the order of the caller's stack.
        labels: True classes, shape (N,).
        objective: A name, or a callable `(labels, log_proba) -> float`.
        rule: What fuses the members.
        weight: What the caller says that each video counts, shape (N,), or None.
    """

    stack: LogitStack
    members: tuple[str, ...]
    labels: NDArray[np.int64]
    objective: str | Objective
    rule: Rule
    weight: NDArray[np.float64] | None

    @property
    def name(self) -> str:
        """The objective's name."""
        return objective_name(self.objective)

    @property
    def sign(self) -> float:
        """1 where higher is better, −1 for a loss."""
        return 1.0 if higher_is_better(self.objective) else -1.0

    @property
    def columns(self) -> list[int]:
        """Where each member of `stack` stands among `members`."""
        return [self.members.index(name) for name in self.stack.members]

    @property
    def video_weights(self) -> NDArray[np.float64]:
        """What each video counts under the objective, shape (N,)."""
        return video_weights(self.labels, self.name, self.weight)

    def score(self, log_proba: NDArray[np.float64], members: Sequence[str]) -> float:
        """Return what the objective gives to the predictions (N, K) of some members."""
        if self.weight is None or callable(self.objective):
            return evaluate(self.objective, self.labels, log_proba, members)
        if self.objective == "nll":
            values = -np.take_along_axis(log_proba, self.labels[:, None], axis=1)[:, 0]
        else:
            values = log_proba.argmax(axis=1) == self.labels
        return float(np.average(values, weights=self.video_weights))

    def refit(self, members: Sequence[str]) -> float:
        """Fit the rule on some members, and return what the objective gives to its predictions."""
        part = self.stack.select(members)
        fitted = restricted(self.rule, self.members, members).fit(part, self.labels, self.weight)
        return self.score(fitted.predict_log_proba(part), members)


def pose(
    stack: Any,
    objective: str | Objective,
    rule: Rule | None,
    *,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    whole_only: bool = False,
    task: str = "search on",
) -> Problem:
    """Check what a search is given, and keep the videos that members are compared on.

    These are the videos that every member has, and whose weight is not 0.

    Args:
        stack: A stack, or an array (N, M, K).
        objective: A name, or a callable.
        rule: What fuses, and says whether it takes views and what it does about missing members; score-weighted
            log-linear fusion by default.
        labels: True classes, shape (N,); the stack's own by default.
        sample_weight: One weight of at least 0 a video.
        whole_only: Whether videos that lack members are refused whatever the rule says.
        task: What the stack is for, in the message where it has no labels.

    Raises:
        InputError: An unknown objective, labels or weights that do not fit, weights with a callable, or weights that
            leave no video.
        AlignmentError: Some videos lack members and the rule does not say "renormalise", or no video has all members.

    Example:
        >>> pose(np.zeros((5, 2, 3)), "nll", None, labels=np.zeros(5, int)).sign
        -1.0
    """
    stack = as_stack(stack)
    y = labels_of(stack, labels, where=f"the stack to {task}")
    higher_is_better(objective)
    if objective == "macro-f1":  # no sum over videos: it is searched as any callable is
        objective = resolve_objective(objective)
    rule = check_rule(LogLinearPool(weights="accuracy") if rule is None else rule)
    check_layout(rule, stack)
    weight = check_sample_weight(sample_weight, len(stack))
    if callable(objective) and weight is not None:
        raise InputError(
            f"sample_weight: expected a sum over videos, got {objective_name(objective)}; a callable gets no weights"
        )
    # Which videos? Those that every member has, where the rule can do without the others, and that count.
    check_presence(stack, None if whole_only else rule.missing)
    used = complete_videos(stack)
    if weight is not None:
        used &= weight > 0
        if not used.any():
            raise InputError(
                "sample_weight: expected a positive sum over the videos that every member has, got 0; weight some"
            )
    members = stack.members
    if not used.all():
        stack, y, weight = stack[used], y[used], None if weight is None else weight[used]
    return Problem(stack.select(sorted(members)), members, y, objective, rule, weight)


def video_weights(
    labels: NDArray[np.int64], objective: str, sample_weight: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return what each video counts, shape (N,): 1 or its weight; divided by its class's sum for a mean over classes.

    They are not divided by their sum: sums of whole numbers are exact.

    Example:
        >>> video_weights(np.array([0, 0, 2]), "mean-class-accuracy").tolist()
        [0.5, 0.5, 1.0]
    """
    counts = np.ones(len(labels)) if sample_weight is None else sample_weight
    return counts / np.bincount(labels, counts)[labels] if objective == "mean-class-accuracy" else counts


def restricted(rule: Rule, members: Sequence[str], chosen: Sequence[str]) -> Rule:
    """Return an unfitted copy of a rule for some of its members; given weights are those of the chosen.

    Example:
        >>> from vidfuse.fusion.linear import LinearPool
        >>> restricted(LinearPool(weights=[1, 4, 5]), ["a", "b", "c"], ["c", "a"]).weights
        {'c': 0.5, 'a': 0.1}
    """
    copy: Rule = clone(rule)
    given = getattr(rule, "weights", None)
    if given is not None and not isinstance(given, str):
        shares = dict(zip(members, check_weights(given, members).tolist(), strict=True))
        own = {name: shares[name] for name in chosen}
        copy.set_params(weights=own if any(own.values()) else "uniform")
    return copy


def best_single(
    stack: LogitStack, objective: str | Objective = "accuracy", known: Mapping[str, Outcomes] = MappingProxyType({})
) -> str:
    """Return the member with the best score on a labelled stack; among equals the lower NLL, then the first name.

    A member that lacks a video counts as one that knows nothing there and is wrong, so that few easy videos make no
    member the best.

    Args:
        stack: The members (N, M, K), with labels.
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`.
        known: The outcomes of members that have all videos, so that their scores are not read again.

    Raises:
        InputError: The stack has no labels, or the objective is no number.

    Example:
        >>> z = np.log([[0.7, 0.3], [0.4, 0.6]])
        >>> best_single(LogitStack.from_arrays({"worse": z[::-1], "better": z}, labels=[0, 1]))
        'better'
    """
    if stack.labels is None:
        raise InputError("the best single member needs labels, and the stack has none; build it with labels=")
    sign = 1.0 if higher_is_better(objective) else -1.0
    ranked = []
    for column, name in enumerate(stack.members):
        found = known[name] if name in known else Outcomes.of_blocks(stack.labels, _blocks_of(stack, column))
        if isinstance(objective, str):
            value = OF_OUTCOMES[objective](stack.labels, found)
        else:
            whole = np.concatenate([block.copy() for _, block in _blocks_of(stack, column)])
            value = evaluate(objective, stack.labels, whole, [name])
        ranked.append((-sign * value, float(found.loss.mean()), name))
    return min(ranked)[2]


def _blocks_of(stack: LogitStack, column: int) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield rows and a member's log-likelihoods of them (n, K), wrong where it lacks the video."""
    for rows, block in stack.select([stack.members[column]]).iter_blocks():
        log_p: NDArray[Any] = block[:, 0]
        if stack.present is not None and stack.labels is not None:
            # Uniform there: any other class is put before the true one.
            lacking = np.flatnonzero(~stack.present[rows, column])
            log_p[lacking, stack.labels[rows][lacking]] -= 1e-4
        yield rows, log_p
