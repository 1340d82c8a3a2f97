"""What each member is worth to a rule, on videos that the rule was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._tables import Column, Estimate, Table, Tabular, bare_p, writers
from vidfuse.errors import InputError
from vidfuse.evaluation.resampling import Draw
from vidfuse.evaluation.scores import log_proba_of, missing_of
from vidfuse.evaluation.trial import Protocol, Trial, open_trial
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule
from vidfuse.metrics import Interval, PairedDifference
from vidfuse.metrics.objectives import Objective, objective_name, resolve_objective
from vidfuse.selection.problem import restricted
from vidfuse.stack.stack import LogitStack

__all__ = ["MemberRow", "MemberWorth", "member_worth", "worth_of"]

_LACKING = (
    "Some members lack videos: there the others take their weight, a member alone is scored on the videos that it has, "
    "and what is lost without it on those that some other member has."
)


@dataclass(frozen=True)
class MemberRow:
    """What one member is worth.

    Attributes:
        member: The member.
        alone: Its own value of the objective, on the videos that it has.
        interval: The interval of that.
        lost: What the rule loses without it, refitted: all members against all others, positive where it helps.
    """

    member: str
    alone: float
    interval: Interval
    lost: PairedDifference


@dataclass(frozen=True)
class MemberWorth(Tabular):
    """What each member is worth to one rule, the most valuable first.

    Attributes:
        rule: The rule, as its `repr` has it.
        objective: The objective's name.
        full: The value of all members together.
        rows: One row for each member.
        how_scored: On which videos.
        lacking: Whether members lack videos.
    """

    rule: str
    objective: str
    full: float
    rows: tuple[MemberRow, ...]
    how_scored: Protocol
    lacking: bool = False

    def __getitem__(self, member: str) -> MemberRow:
        for row in self.rows:
            if row.member == member:
                return row
        raise InputError(f"expected one of {[row.member for row in self.rows]}, got {member!r}")

    def table(self) -> Table:
        """Return a row for each member, the most valuable first."""
        write, change, unit = writers(self.objective)
        columns = (
            "member",
            Column(f"alone{unit}", "alone", write, "low" if self.objective == "nll" else "high"),
            Column("lost without it", "lost", change, "high"),
            Column("p", "p_value", bare_p),
        )
        rows = tuple(
            (r.member, Estimate(r.alone, *r.interval), Estimate(r.lost.difference, *r.lost.interval), r.lost.p_value)
            for r in self.rows
        )
        return Table(columns, rows, f"What {self.rule} loses without a member", self.notes())

    def notes(self) -> tuple[str, ...]:
        """Return on which videos the numbers were taken, and what was done where members lack some."""
        if not self.lacking:
            return (self.how_scored.how(),)
        return self.how_scored.how(), _LACKING

    @property
    def to_drop(self) -> tuple[str, ...]:
        """The members without which the rule does no worse on these videos; drop one at a time, and look again."""
        return tuple(row.member for row in self.rows if row.lost.difference <= 0)

    def __str__(self) -> str:
        width = max(len(row.member) for row in self.rows)
        lines = [f"What {self.rule} loses without a member ({self.objective} {self.full:.4f} with all)"]
        for row in self.rows:
            low, high = row.lost.interval
            ends = "no interval" if row.lost.interval.refused else f"{low:+.4f} to {high:+.4f}"
            lines.append(
                f"  {row.member:<{width}}  {row.lost.difference:+.4f} ({ends}), p={row.lost.p_value:.2g}; "
                f"alone {row.alone:.4f}"
            )
        return "\n".join([*lines, *self.notes()])


def member_worth(
    stack: LogitStack,
    test: LogitStack | None = None,
    *,
    rule: Rule | None = None,
    objective: str | Objective = "accuracy",
    folds: int = 5,
    groups: Any = None,
    views: str | Mapping[str, str] = "mean-log",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | None = 0,
) -> MemberWorth:
    """Say what a rule loses without each member, refitted on the others, on videos that it was not fitted on.

    Where members lack videos, the others take their weight there, as in `leaderboard`; a loss is then counted on the
    videos that some other member has.

    Args:
        stack: Labelled stack that the rule is fitted on, of at least two members.
        test: Labelled stack that it is scored on; without it the rule is cross-fitted.
        rule: Any unfitted rule; `LogLinearPool()` by default.
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`.
        folds: The number of folds without `test`; 0 for in-sample scores.
        groups: What each video comes from; see `leaderboard`.
        views: How views are reduced where the stack has them.
        confidence: The intervals' nominal coverage.
        n_resamples: Bootstrap resamples, of losses, of macro-F1 and of callables.
        random_state: Seed of folds, resamples and sign flips.

    Raises:
        InputError: labels are missing, or there is one member only.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=120)
        >>> logits = {f"net{i}": rng.normal(size=(120, 3)) + (1 + i) * np.eye(3)[y] for i in range(3)}
        >>> member_worth(LogitStack.from_arrays(logits, labels=y)).rows[0].member
        'net2'
    """
    what = "the worth of members"
    trial = open_trial(stack, test, folds=folds, groups=groups, random_state=random_state, what=what).reduced(views)
    rule = LogLinearPool(missing=missing_of(trial.fit_stack, trial.scored)) if rule is None else rule
    draw = Draw(trial.labels, objective, confidence, n_resamples, random_state, trial.scored.groups)
    return worth_of(trial, rule, draw)


def worth_of(trial: Trial, rule: Rule, draw: Draw, full: NDArray[np.float64] | None = None) -> MemberWorth:
    """Return what each member is worth to a rule on a trial without views; `full` is the rule's prediction, if made.

    Raises:
        InputError: there is one member only.
    """
    members = trial.fit_stack.members
    if len(members) < 2:
        raise InputError(f"expected at least two members to leave one out, got {list(members)}")
    full = trial.predict(trial.fit(rule)) if full is None else full
    without, left = dict[str, NDArray[np.float64]](), dict[str, NDArray[np.bool_]]()
    for name in members:
        few = trial.of([other for other in members if other != name])
        without[name] = few.predict(few.fit(restricted(rule, members, few.fit_stack.members)))
        left[name] = trial.covered(few.fit_stack.members)
    lost: dict[str, PairedDifference] = {}
    for rows in {mask.tobytes(): mask for mask in left.values()}.values():
        same = [name for name in members if np.array_equal(left[name], rows)]
        predictions = {"": [full[rows]], **{name: [without[name]] for name in same}}
        lost |= dict(zip(same, draw.on(rows).differences(predictions, [("", name) for name in same]), strict=True))
    metric = resolve_objective(draw.objective)
    rows_of = []
    for name in members:
        own = trial.covered([name])
        log_proba, drawn = log_proba_of(trial.scored, name)[own], draw.on(own)
        value = float(metric(drawn.labels, log_proba))
        rows_of.append(MemberRow(name, value, drawn.interval([log_proba]), lost[name]))
    rows_of.sort(key=lambda row: (-row.lost.difference, row.member))
    value = float(metric(draw.labels, full))
    lacking = trial.scored.present is not None or trial.fit_stack.present is not None
    return MemberWorth(repr(rule), objective_name(draw.objective), value, tuple(rows_of), trial.protocol, lacking)
