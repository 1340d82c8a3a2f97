"""The table of the growing combinations: each member, two, three, … all, under the rules that are compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._tables import Cell, Column, Estimate, Table, Tabular, percent
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.evaluation.scores import Score, floor_of, missing_of, require_labels, score
from vidfuse.evaluation.trial import Protocol, Trial, open_trial
from vidfuse.fusion.agreement import without_agreement_warnings
from vidfuse.fusion.floors import Floor, floored_blocks, member_floors
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.votes import MajorityVote, vote_of_views
from vidfuse.fusion.weights import member_hits
from vidfuse.likelihood import block_rows, growing_sums, log_linear_pool
from vidfuse.metrics.outcomes import Outcomes
from vidfuse.stack.stack import LogitStack

__all__ = ["Combination", "Combinations", "combination_table", "combinations_of", "growing"]

_FIXED = ("score-weighted", "uniform", "vote")


@dataclass(frozen=True)
class Combination:
    """A row of the combination table: some members, and the score of each rule by its name.

    Attributes:
        members: The members.
        scores: Rule → score; None where the rule does not take these members without the others.
    """

    members: tuple[str, ...]
    scores: Mapping[str, Score | None]

    @property
    def best_accuracy(self) -> float:
        """The accuracy of the rule that does best with these members."""
        return max(score.accuracy for score in self.scores.values() if score is not None)


@dataclass(frozen=True)
class Combinations(Tabular):
    """Each member, growing combinations, and all members, under several rules.

    Attributes:
        rows: The combinations.
        rules: The names of the rules, as they head the columns.
        how_scored: On which videos the score weights were fitted, and all rules scored.
        n_views: The number of views that vote; None where the members vote.
    """

    rows: tuple[Combination, ...]
    rules: tuple[str, ...]
    how_scored: Protocol
    n_views: int | None

    @property
    def in_sample(self) -> bool:
        """Whether some of the scored videos are videos of the fit."""
        return self.how_scored.flatters

    def table(self) -> Table:
        """Return the accuracies as a table; frames have the mean class accuracies too, and all members by name."""
        best = max(range(len(self.rows)), key=lambda i: self.rows[i].best_accuracy)
        columns = [Column("members", "added"), Column("members", shown=False)]
        for rule in self.rules:
            columns.append(Column(rule, f"{rule} accuracy", percent, best="high"))
            columns.append(Column("mean class", f"{rule} mean class accuracy", percent, shown=False))
        rows = []
        previous: tuple[str, ...] = ()
        for row in self.rows:
            grown = len(previous) > 1 and row.members[: len(previous)] == previous
            added = " + ".join(row.members[len(previous) :] if grown else row.members)
            cells: list[Cell] = [f"… + {added}" if grown else added, " + ".join(row.members)]
            for rule in self.rules:
                s = row.scores[rule]
                cells.append(None if s is None else Estimate(s.accuracy, *s.accuracy_interval))
                cells.append(None if s is None else Estimate(s.mean_class_accuracy, *s.mean_class_interval))
            rows.append(tuple(cells))
            previous = row.members
        voters = "the members" if self.n_views is None else f"{self.n_views} views of the score-weighted fusion"
        return Table(
            columns=tuple(columns),
            rows=tuple(rows),
            title="Members and their combinations (top-1 accuracy in %, 95 % interval)",
            notes=(self.how_scored.how(), f"Vote: the majority of {voters}."),
            strong=frozenset([best]),
        )

    def __str__(self) -> str:
        return str(self.table())


def combination_table(
    stack: LogitStack,
    test: LogitStack | None = None,
    *,
    combinations: Sequence[Sequence[str]] | None = None,
    rules: Mapping[str, Any] | None = None,
    folds: int = 5,
    groups: Any = None,
    views: str | Mapping[str, str] = "mean-log",
    random_state: int | None = 0,
) -> Combinations:
    """Score each member, growing combinations and all members under learned, score-weighted, uniform and voted fusion.

    Learned weights, and rules of one's own, are fitted anew on each combination of two or more. Uniform and
    score-weighted fusion add log-likelihoods, Σ_m w_m log p_m(c), with w_m = 1/M or the accuracy of member m on the
    videos of the fit; views are reduced first. The vote is that of the views where the stack has them,
    each view fused with the score weights (a single member's views vote alone), and that of the members otherwise.
    Videos of the fit and scored videos are those of `leaderboard` for the same arguments.

    Args:
        stack: The labelled stack that gives the score weights, (N, M, K) or (N, M, V, K).
        test: Another labelled stack of the same members, which is scored; without it, score weights are cross-fitted.
        combinations: Tuples of member names; by default each member, then from the two that are the most accurate on
            `stack` up to all, one more at a time.
        rules: Name → unfitted rule, beside the three fixed ones; by default the learned log-linear pool.
        folds: The number of folds without `test`; 0 for in-sample scores.
        groups: What each video of `stack` comes from, as in `LogitStack.with_groups`; by default the stack's own. No
            fold splits a group.
        views: How a member's views become one prediction before the members are fused.
        random_state: Seed of the folds.

    Raises:
        InputError: labels are missing, a combination is empty or names an unknown member, or a rule has the name of
            one of the three.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=99)
        >>> logits = {name: rng.normal(size=(99, 3)) + np.eye(3)[y] for name in ("x3d", "swin", "tin")}
        >>> table = combination_table(LogitStack.from_arrays(logits, labels=y))
        >>> len(table.rows), len(table.rows[-1].members), table.rules
        (5, 3, ('learned', 'score-weighted', 'uniform', 'vote'))
    """
    trial = open_trial(stack, test, folds=folds, groups=groups, random_state=random_state, what="a combination table")
    return combinations_of(trial, trial.reduced(views), combinations, rules)


def combinations_of(
    trial: Trial,
    plain: Trial,
    combinations: Sequence[Sequence[str]] | None = None,
    rules: Mapping[str, Any] | None = None,
    known: Mapping[str, NDArray[np.float64]] | None = None,
) -> Combinations:
    """Return the combination table of a trial; `plain` is the same trial with its views reduced.

    Rules of `known` are not fitted on all members again: these are their log-likelihoods (N, K).

    Score weights are fitted once, on all members, and shared among those of a combination.
    Without views the members vote, as equals; with views each view votes, as the score-weighted fusion of its members.
    """
    # Three columns are the same for every rule list (score-weighted, uniform, vote): all combinations in one pass each.
    # Then row by row each rule of `rules`:  known, all members    its log-likelihoods as they are
    #                                        two members or more   fitted on them, or None where it needs the others
    #                                        one member            the member itself: there is nothing to fuse
    if combinations is None:
        combinations = growing(plain.fit_stack)
    if rules is None:
        rules = {"learned": LogLinearPool(missing=missing_of(plain.fit_stack, plain.scored))}
    taken = sorted(set(rules) & set(_FIXED))
    if taken:
        raise InputError(f"rules: the table has {', '.join(map(repr, taken))} already; give yours another name")
    floor = floor_of(trial.fit_stack, trial.scored)
    weighted = plain.fit(LogLinearPool(weights="accuracy", floor=floor, missing="renormalise"))
    for names in combinations:
        if not names:
            raise InputError("combinations: expected at least one member in each, got an empty one")
        trial.scored.select(names)  # raises for one that is unknown
    weights = _weights_of(plain, weighted)
    fixed = [
        _pooled(plain, combinations, weights, floor, _log_linear),
        _pooled(plain, combinations, np.ones_like(weights), floor, _log_linear),
        _members_vote(plain, combinations, floor)
        if trial.scored.n_views is None
        else _pooled(trial, combinations, weights, floor, vote_of_views),
    ]
    rows = []
    for names, *outcomes in zip(combinations, *fixed, strict=True):
        chosen = plain.select(names)
        scores: dict[str, Score | None] = {}
        for rule in rules:
            if len(names) == len(plain.scored.members) and known is not None and rule in known:
                scores[rule] = score(rule, chosen.labels, known[rule], groups=chosen.scored.groups)
            elif len(names) > 1:
                scores[rule] = _refitted(rule, rules[rule], plain, names)
        for rule, outcome in zip(_FIXED, outcomes, strict=True):
            scores[rule] = score(rule, chosen.labels, outcome, groups=chosen.scored.groups)
        if len(names) == 1:  # there is nothing to fuse: these rules are scored as the member itself
            scores |= {rule: scores["uniform"] for rule in rules}
        rows.append(Combination(tuple(names), scores))
    return Combinations(
        rows=tuple(rows),
        rules=(*rules, *_FIXED),
        how_scored=trial.protocol,
        n_views=trial.scored.n_views,
    )


def _weights_of(trial: Trial, pools: Sequence[Any]) -> NDArray[np.float64]:
    """Return each member's weight for each scored video (N, M): that of the video's fold."""
    weights = np.empty((len(trial.scored), len(trial.scored.members)))
    for pool, (_, rows) in zip(pools, trial.splits, strict=True):
        weights[rows] = [pool.weights_[pool.members_.index(name)] for name in trial.scored.members]
    return weights


def _pooled(
    trial: Trial,
    combinations: Sequence[Sequence[str]],
    weights: NDArray[np.float64],
    floor: Floor,
    fuse: Callable[[NDArray[np.float64], NDArray[np.float64], Any], NDArray[np.float64]],
) -> list[Outcomes]:
    """Return what weighted sums of log-likelihoods say, for each combination, all of them in one pass over the videos.

    Args:
        trial: A trial, with views or without.
        combinations: Members, by name. A combination is asked for the videos that one of them has at least.
        weights: The members' weights of each video (N, M). Absent members have none; where all that are there have a
            weight of 0, they are equals.
        floor: The members' floor, as of a rule.
        fuse: From sums (B, [V,] K), their weights' sums (B,) and ids to log-likelihoods (B, K).
    """
    stack, labels = trial.scored, trial.labels
    there = np.ones(weights.shape) if stack.present is None else stack.present.astype(np.float64)
    given, covered = list[tuple[list[int], NDArray[np.float64]]](), list[NDArray[np.bool_]]()
    for names in combinations:
        columns = [stack.members.index(name) for name in names]
        present = there[:, columns]
        own = weights[:, columns] * present
        given.append((columns, np.where(own.any(axis=1, keepdims=True), own, present)))
        covered.append(np.asarray(present.any(axis=1)))
    parts: list[list[Outcomes]] = [[] for _ in given]
    step = block_rows(int(np.prod(stack.shape[1:])), 1 << 20)
    for rows, block in floored_blocks(stack, member_floors(stack, floor), step):
        ids = None if stack.ids is None else stack.ids[rows]
        sums = growing_sums(block, [(columns, own[rows]) for columns, own in given])
        for part, (total, share), known in zip(parts, sums, covered, strict=True):
            part.append(Outcomes.of(labels[rows], fuse(total, share, ids))[known[rows]])
    return [Outcomes.joined(part) for part in parts]


def _log_linear(total: NDArray[np.float64], share: NDArray[np.float64], ids: Any) -> NDArray[np.float64]:
    return log_linear_pool(total[:, None], 1.0 / share[:, None], ids=ids)


def _members_vote(trial: Trial, combinations: Sequence[Sequence[str]], floor: Floor) -> list[Outcomes]:
    """Return what the majority of the members says, for each combination."""
    votes, found = trial.fit(MajorityVote(floor=floor, missing="renormalise")), []
    for few in map(trial.select, combinations):
        with without_agreement_warnings():  # two of many may well agree by chance only
            found.append(Outcomes.of(few.labels, few.predict(votes)))
    return found


def _refitted(name: str, rule: Any, trial: Trial, members: Sequence[str]) -> Score | None:
    """Return the score of a rule that knows no other members; None where it insists on one that is left out."""
    few = trial.of(members)
    with warnings.catch_warnings():
        if few is not trial:  # two of many may well agree by chance only
            warnings.filterwarnings("ignore", "member .* agreed with the others", VidfuseWarning)
        try:
            return score(name, few.labels, few.predict(few.fit(rule)), groups=few.scored.groups)
        except InputError:
            if few is trial:
                raise  # it is not the members that are left out
            return None


def growing(stack: LogitStack, order: Sequence[str] | None = None) -> list[list[str]]:
    """Return each member, then the first two of an order, by default that of their accuracies, three, …, all."""
    if order is None:
        accuracy = member_hits(stack, require_labels(stack, "a combination table")).mean(axis=0)
        order = [stack.members[column] for column in np.lexsort((stack.members, -accuracy))]
    return [[name] for name in stack.members] + [list(order[:n]) for n in range(2, len(order) + 1)]
