"""The numbers of the leaderboard: members and rules on the same videos, their gains, and what to take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._tables import Cell, Column, Table, Tabular, writers
from vidfuse.errors import InputError
from vidfuse.evaluation.resampling import Draw
from vidfuse.evaluation.scores import Score, floor_of, log_proba_of, require_labels, score
from vidfuse.evaluation.trial import Protocol, Trial
from vidfuse.fusion.blocks import FusedBlocks
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule
from vidfuse.metrics import Interval, PairedDifference
from vidfuse.metrics.objectives import Objective, higher_is_better, objective_name
from vidfuse.metrics.outcomes import OF_OUTCOMES, Outcomes
from vidfuse.selection.problem import best_single
from vidfuse.stack.stack import LogitStack

__all__ = ["Board", "Entry", "Instead", "SplitBoard", "SplitRow", "board_of", "over_splits", "plain_average"]

AVERAGE = "average of log-likelihoods"


@dataclass(frozen=True)
class Entry:
    """A row of the leaderboard.

    Attributes:
        score: How good it is.
        fused: Whether it is a fusion rule; otherwise it is a member.
        value: Its value of the board's objective; the NLL is a loss in nats.
        interval: The interval of the value.
        gain: How much better it is than the best single member, by the objective; None for that member.
        gain_over_average: How much better it is than the plain average of all members; None for the average itself.
    """

    score: Score
    fused: bool
    value: float
    interval: Interval
    gain: PairedDifference | None
    gain_over_average: PairedDifference | None


@dataclass(frozen=True)
class Instead:
    """What to take where the headline rule is worse than a member on videos that it was not fitted on.

    Attributes:
        name: The best row.
        fused: Whether that is a rule; otherwise it is a member alone.
        member: The member that the headline rule is worse than: the best on these videos.
        difference: The headline rule against that member: negative, for a loss too.
    """

    name: str
    fused: bool
    member: str
    difference: PairedDifference


@dataclass(frozen=True)
class Board:
    """Members and fusion rules on the same videos, best first.

    Attributes:
        entries: The rows: by the objective, then by NLL. A member that lacks videos stands where its difference to the
            best single member, on the videos that both have, puts it.
        objective: The objective's name, by which rows are ranked and gains counted.
        best_single: The single member that gains are counted from.
        chosen_on: Where it was the best one: "the videos of the fit", or "these videos".
        best_on_scored: The member that is the best on the scored videos, in hindsight; one that lacks a video is wrong
            there.
        average: The name of the plain average of the members' log-likelihoods, which need not be a row.
        headline_rule: The fusion rule that was chosen before anything was scored: the first of the rules.
        how_scored: On which videos rules were fitted and scored.
        instead: What to take where the headline rule is worse than a member; None where it is not, or where scores
            flatter the rules, and cannot tell.
    """

    entries: tuple[Entry, ...]
    objective: str
    best_single: str
    chosen_on: str
    best_on_scored: str
    average: str
    headline_rule: str
    how_scored: Protocol
    instead: Instead | None

    @property
    def protocol(self) -> str:
        """`"held-out"`, `"cross-fitted"`, `"in-sample"` or `"partly in-sample"`; see `Protocol.how`."""
        return self.how_scored.name

    def entry(self, name: str) -> Entry:
        """Return the row of a member or a rule.

        Raises:
            InputError: there is no such row.
        """
        for entry in self.entries:
            if entry.score.name == name:
                return entry
        raise InputError(f"expected one of {[entry.score.name for entry in self.entries]}, got {name!r}")

    def how(self) -> str:
        """Return in a sentence or two on which videos the scores were taken."""
        return self.how_scored.how()

    def reference(self) -> str:
        """Return in words the member that gains are counted from, and where it was the best, if it is not here."""
        if self.best_single == self.best_on_scored:
            return f"the best single member ({self.best_single})"
        return f"{self.best_single}, the best single member of the fit"


@dataclass(frozen=True)
class SplitRow:
    """A member or a rule over several splits.

    Attributes:
        name: Who predicts.
        fused: Whether it is a fusion rule.
        values: The objective's value in each split.
        mean: Their mean.
        spread: Their standard deviation over the splits (n − 1); NaN for one split.
        gains: The gain over each split's best single member.
        mean_gain: Their mean.
        spread_of_gain: Their standard deviation.
    """

    name: str
    fused: bool
    values: tuple[float, ...]
    mean: float
    spread: float
    gains: tuple[float, ...]
    mean_gain: float
    spread_of_gain: float


@dataclass(frozen=True)
class SplitBoard(Tabular):
    """Members and rules over several splits, best mean first.

    Attributes:
        boards: The leaderboard of each split.
        rows: One row for each member and rule.
        objective: The objective's name.
        headline_rule: The rule that was chosen before anything was scored.
    """

    boards: tuple[Board, ...]
    rows: tuple[SplitRow, ...]
    objective: str
    headline_rule: str

    def table(self) -> Table:
        """Return each row's mean and standard deviation over the splits; frames have every split's value, too."""
        write, change, unit = writers(self.objective)
        splits = [Column(f"split {i + 1}", write=write, shown=False) for i in range(len(self.boards))]
        columns = (
            Column("", "name"),
            Column("fused", shown=False),
            Column(
                self.objective.replace("-", " ") + unit,
                "mean",
                write,
                "low" if self.objective == "nll" else "high",
            ),
            Column("s.d.", "sd", write),
            Column("gain", "gain", change, "high"),
            Column("s.d.", "gain_sd", write),
            *splits,
        )
        rows: list[tuple[Cell, ...]] = [
            (row.name, row.fused, row.mean, row.spread, row.mean_gain, row.spread_of_gain, *row.values)
            for row in self.rows
        ]
        return Table(
            columns=columns,
            rows=tuple(rows),
            title=f"Mean over {len(self.boards)} splits (members are indented)",
            notes=("gain: over each split's best single member; s.d.: over the splits.",),
            strong=frozenset(i for i, row in enumerate(self.rows) if row.name == self.headline_rule),
            indented=frozenset(i for i, row in enumerate(self.rows) if not row.fused),
        )

    def __str__(self) -> str:
        return str(self.table())


def over_splits(boards: Sequence[Board], objective: str | Objective = "accuracy") -> SplitBoard:
    """Return the mean and the standard deviation over splits of each row that all boards have.

    Splits of one data set share videos: their standard deviation says how much the choice of a split matters, not how
    far the mean may be off.

    Raises:
        InputError: there is no board, or they rank by other objectives.
    """
    if not boards or len({board.objective for board in boards}) > 1:
        raise InputError("expected leaderboards of at least one split, all by the same objective")
    sign = 1.0 if higher_is_better(objective) else -1.0
    rows = []
    for entry in boards[0].entries:
        name = entry.score.name
        found = [board.entry(name) for board in boards]
        values = [e.value for e in found]
        gains = [0.0 if e.gain is None else e.gain.difference for e in found]
        rows.append(SplitRow(name, entry.fused, tuple(values), *_moments(values), tuple(gains), *_moments(gains)))
    rows.sort(key=lambda row: (-sign * row.mean, not row.fused, row.name))
    return SplitBoard(tuple(boards), tuple(rows), boards[0].objective, boards[0].headline_rule)


def _moments(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def plain_average(
    trial: Trial, rules: Mapping[str, Rule], predictions: Mapping[str, NDArray[np.float64]]
) -> tuple[str, NDArray[np.float64]]:
    """Return the name and the prediction of the uniform log-linear pool: that of the rules, or one of its own."""
    for name, rule in rules.items():
        if isinstance(rule, LogLinearPool) and isinstance(rule.weights, str) and rule.weights == "uniform":
            return name, predictions[name]
    floor = floor_of(trial.fit_stack, trial.scored)
    return AVERAGE, trial.predict(trial.fit(LogLinearPool(weights="uniform", floor=floor, missing="renormalise")))


def board_of(
    stack: LogitStack,
    predictions: Mapping[str, ArrayLike | FusedBlocks],
    protocol: Protocol,
    *,
    best: str | None = None,
    average: tuple[str, ArrayLike | FusedBlocks] | None = None,
    objective: str | Objective = "accuracy",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | None = 0,
) -> Board:
    """Return the leaderboard of predictions that were already made, beside the members of the stack.

    Args:
        stack: Labelled stack (N, M, K); its groups are those of every interval and test.
        predictions: Name → log-likelihoods (N, K), or blocks of them as `predict_blocks` gives, the headline rule
            first. But for a callable, blocks are scored one after the other, and so are the members: memory holds one.
        protocol: How the predictions came about.
        best: The best single member; by default the best one on `stack`, which favours it.
        average: The plain average's name and log-likelihoods (N, K); by default it is computed.
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`.
        confidence: The intervals' nominal coverage.
        n_resamples: Bootstrap resamples, of losses, of macro-F1 and of callables.
        random_state: Seed of resamples and sign flips.

    Raises:
        InputError: labels are missing, or there is no prediction.
    """
    # 1. Collect what everybody's score needs (`given`: outcomes, or a callable's log-likelihoods), and the videos that
    #    they have (`present`): members, then rules.
    # 2. Draw intervals and gains, all those on the same videos at once, so that resamples and flips are shared: who
    #    lacks no video, then each pattern of videos that members lack.
    # 3. Make a row of each, and rank them.
    labels = require_labels(stack, "a leaderboard")
    if not predictions:
        raise InputError("predictions: expected at least one, got none")
    groups = None if stack.groups is None else np.unique(stack.groups, return_inverse=True)[1]
    if average is None:
        pool = LogLinearPool(weights="uniform", floor=floor_of(stack), missing="renormalise")
        average = AVERAGE, pool.fit(stack).predict_blocks(stack)
    on_fit = best is not None and not protocol.folds
    if protocol.name == "in-sample" and protocol.n_fit == protocol.n_scored:
        on_fit = False
    everyone = np.ones(len(stack), np.bool_)
    given: dict[str, Any] = {}
    present: dict[str, NDArray[np.bool_]] = {}
    for column, name in enumerate(stack.members):
        if callable(objective):
            given[name] = log_proba_of(stack, name)
        else:
            one = stack.select([name]).iter_blocks()
            given[name] = Outcomes.of_blocks(labels, ((rows, block[:, 0]) for rows, block in one))
        present[name] = everyone if stack.present is None else stack.present[:, column]
    known = {} if callable(objective) else {name: given[name] for name in stack.members if present[name].all()}
    hindsight = best_single(stack, objective, known)
    best = hindsight if best is None else best
    for name, log_proba in predictions.items():
        given[name], present[name] = _given(labels, log_proba, objective), everyone
    scores = {
        name: score(name, labels, given[name], present[name], confidence, groups) for name in given
    }  # fmt: skip
    if average[0] not in given:
        given[average[0]], present[average[0]] = _given(labels, average[1], objective), everyone

    def draw(rows: NDArray[np.bool_]) -> Draw:
        own = None if groups is None else groups[rows]
        return Draw(labels[rows], objective, confidence, n_resamples, random_state, own)

    def on(rows: NDArray[np.bool_], names: Sequence[str]) -> dict[str, list[Any]]:
        return {name: [given[name] if rows.all() else given[name][rows]] for name in names}

    intervals: dict[str, Interval] = {}
    gains: dict[tuple[str, str], PairedDifference] = {}
    headline = next(iter(predictions))
    pairs = [(name, other) for other in (best, average[0]) for name in scores if name != other]
    pairs.append((headline, hindsight))
    for rows in _patterns([present[name] for name in scores]):
        names = [name for name in scores if np.array_equal(present[name], rows)]
        intervals |= draw(rows).intervals(on(rows, names))
    for rows in _patterns([present[a] & present[b] for a, b in pairs]):
        if not rows.any():
            continue
        same = [(a, b) for a, b in dict.fromkeys(pairs) if np.array_equal(present[a] & present[b], rows)]
        found = draw(rows).differences(on(rows, sorted({name for pair in same for name in pair})), same)
        gains |= dict(zip(same, found, strict=True))
    value_of: Any = OF_OUTCOMES[objective] if isinstance(objective, str) else objective
    sign = 1.0 if higher_is_better(objective) else -1.0
    entries = []
    for name, own in scores.items():
        rows = present[name]
        entries.append(
            Entry(
                score=own,
                fused=name in predictions,
                value=float(value_of(labels[rows], given[name][rows])),
                interval=intervals[name],
                gain=gains.get((name, best)),
                gain_over_average=gains.get((name, average[0])),
            )
        )
    value_of_best = next(entry.value for entry in entries if entry.score.name == best)

    def rank(entry: Entry) -> tuple[float, float, bool, str]:
        value = sign * entry.value
        if not entry.score.present.all() and entry.gain is not None:  # on common videos, moved to where the best stands
            value = sign * value_of_best + entry.gain.difference
        return -value, entry.score.nll, not entry.fused, entry.score.name

    entries.sort(key=rank)
    return Board(
        entries=tuple(entries),
        objective=objective_name(objective),
        best_single=best,
        chosen_on="the videos of the fit" if on_fit else "these videos",
        best_on_scored=hindsight,
        average=average[0],
        headline_rule=headline,
        how_scored=protocol,
        instead=None if protocol.flatters else _instead(entries, headline, hindsight, gains[headline, hindsight]),
    )


def _given(labels: NDArray[np.int64], predicted: ArrayLike | FusedBlocks, objective: str | Objective) -> Any:
    """Return what the score of a prediction needs: its outcomes, or for a callable its log-likelihoods (N, K)."""
    if isinstance(predicted, FusedBlocks):
        return predicted[:] if callable(objective) else Outcomes.of_blocks(labels, predicted)
    return np.asarray(predicted) if callable(objective) else Outcomes.of(labels, predicted)


def _patterns(masks: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    """Return each mask once."""
    return list({mask.tobytes(): mask for mask in masks}.values())


def _instead(entries: Sequence[Entry], headline: str, member: str, against: PairedDifference) -> Instead | None:
    """Return what to take where the best member beats the headline rule: the best rule, or that member alone."""
    if against.difference >= 0:
        return None
    best = next(entry for entry in entries if entry.fused or entry.score.name == member)
    return Instead(best.score.name, best.fused, member, against)
