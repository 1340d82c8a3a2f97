"""The table of the growing combinations: each member, two, three, … all, under three fusion rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vidfuse.errors import InputError
from vidfuse.evaluation.scores import Score, missing_of, reduced, require_labels, score
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.votes import MajorityVote
from vidfuse.report.layout import Table, share
from vidfuse.stack.stack import LogitStack

__all__ = ["Combination", "Combinations", "combination_table"]


@dataclass(frozen=True)
class Combination:
    """A row of the combination table: some members, and the score of each rule by its name."""

    members: tuple[str, ...]
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Combinations:
    """Each member, growing combinations, and all members, under several rules.

    Attributes:
        rows: The combinations.
        rules: The names of the rules, as they head the columns.
        in_sample: Whether the weights were fitted on the videos that are scored.
        n: The number of videos.
        views: The number of views that vote; None where the members vote.
    """

    rows: tuple[Combination, ...]
    rules: tuple[str, ...]
    in_sample: bool
    n: int
    views: int | None

    def table(self) -> Table:
        """Return the combinations as a table of strings."""
        best = max(range(len(self.rows)), key=lambda i: max(score.accuracy for score in self.rows[i].scores.values()))
        rows = []
        previous: tuple[str, ...] = ()
        for row in self.rows:
            grown = len(previous) > 1 and row.members[: len(previous)] == previous
            added = " + ".join(row.members[len(previous) :] if grown else row.members)
            cells = [f"… + {added}" if grown else added]
            for rule in self.rules:
                s = row.scores[rule]
                cells += [share(s.accuracy, s.accuracy_interval), share(s.mean_class_accuracy, s.mean_class_interval)]
            rows.append(tuple(cells))
            previous = row.members
        voters = "the members" if self.views is None else f"{self.views} views of the score-weighted fusion"
        notes = [f"{self.n:,} videos. Vote: the majority of {voters}."]
        if self.in_sample:
            notes.append("IN-SAMPLE: score weights were fitted on the videos that are scored.")
        columns = [heading for rule in self.rules for heading in (f"{rule}: top-1", "mean class")]
        return Table(
            columns=("members", *columns),
            rows=tuple(rows),
            title="Members and their combinations (accuracy in %, 95 % interval)",
            notes=tuple(notes),
            strong=frozenset([best]),
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def combination_table(
    stack: LogitStack,
    fit: LogitStack | None = None,
    *,
    combinations: Sequence[Sequence[str]] | None = None,
    views: str | Mapping[str, str] = "mean-log",
) -> Combinations:
    """Score each member, growing combinations and all members under uniform, score-weighted and majority-vote fusion.

    Uniform and score-weighted fusion add log-likelihoods, Σ_m w_m log p_m(c), with w_m = 1/M or the accuracy of
    member m on `fit`; views are reduced first. The vote is that of the views where the stack has them, each view
    fused with the score weights (a single member's views vote alone), and that of the members otherwise.

    Args:
        stack: The labelled stack to score, (N, M, K) or (N, M, V, K).
        fit: The labelled stack that gives the score weights; `stack` itself by default, which the table then labels
            in-sample.
        combinations: Tuples of member names; by default each member, then from the two that are the most accurate on
            `fit` up to all, one more at a time.
        views: How a member's views become one prediction before the members are fused.

    Raises:
        InputError: labels are missing, or a combination is empty or names an unknown member.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=99)
        >>> logits = {name: rng.normal(size=(99, 3)) + np.eye(3)[y] for name in ("x3d", "swin", "tin")}
        >>> table = combination_table(LogitStack.from_arrays(logits, labels=y))
        >>> len(table.rows), len(table.rows[-1].members), table.in_sample
        (5, 3, True)
    """
    require_labels(stack, "a combination table")
    plain = reduced(stack, views)
    fitted = plain if fit is None else reduced(fit, views).select(stack.members)
    missing = missing_of(stack, fit)
    accuracies = LogLinearPool(weights="accuracy", missing=missing).fit(fitted)
    weight = dict(zip(accuracies.members_, np.asarray(accuracies.weights_, dtype=np.float64), strict=True))
    if combinations is None:
        ranked = sorted(stack.members, key=lambda name: (-weight[name], stack.members.index(name)))
        combinations = [[name] for name in stack.members] + [ranked[:n] for n in range(2, len(ranked) + 1)]
    rows = []
    for names in combinations:
        if not names:
            raise InputError("combinations: expected at least one member in each, got an empty one")
        chosen, voters = plain.select(names), stack.select(names)
        if chosen.present is not None:  # score the videos that one of these members has
            kept = np.flatnonzero(chosen.present.any(axis=1))
            chosen, voters = chosen[kept], voters[kept]
        equal = {name: 1.0 for name in names}
        weights = {name: weight[name] for name in names} if any(weight[name] for name in names) else equal
        views_vote = MajorityVote(weights=weights, missing=missing)
        vote = MajorityVote(missing=missing) if stack.n_views is None else views_vote
        predictions = {
            "uniform": LogLinearPool(weights=equal, missing=missing).fit(chosen).predict_log_proba(chosen),
            "score-weighted": LogLinearPool(weights=weights, missing=missing).fit(chosen).predict_log_proba(chosen),
            "vote": vote.fit(voters).predict_log_proba(voters),
        }
        labels = require_labels(chosen, "a combination table")
        rows.append(Combination(tuple(names), {rule: score(rule, labels, z) for rule, z in predictions.items()}))
    return Combinations(
        rows=tuple(rows),
        rules=("uniform", "score-weighted", "vote"),
        in_sample=fit is None,
        n=len(stack),
        views=stack.n_views,
    )
