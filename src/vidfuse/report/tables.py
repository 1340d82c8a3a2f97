"""The leaderboard: members and fusion rules on the same videos, with intervals and gains over the best single one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import isnan
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from vidfuse._tables import (
    MINUS,
    Column,
    Estimate,
    Table,
    Tabular,
    bare_p,
    number,
    p_value,
    percent,
    points,
    signed,
    span,
)
from vidfuse.errors import InputError
from vidfuse.evaluation.board import Board, SplitBoard, board_of, over_splits, plain_average
from vidfuse.evaluation.scores import floor_of, missing_of
from vidfuse.evaluation.trial import Trial, open_trial
from vidfuse.fusion.calibration import Calibrated
from vidfuse.fusion.floors import Floor
from vidfuse.fusion.linear import LinearPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.votes import MajorityVote
from vidfuse.likelihood import DEFAULT_FLOOR
from vidfuse.metrics import PairedDifference
from vidfuse.metrics.objectives import Objective
from vidfuse.selection.greedy import GreedyPool
from vidfuse.selection.problem import best_single
from vidfuse.stack.stack import LogitStack

_SHARES = {"accuracy": "", "mean-class-accuracy": " mean class accuracy"}
_UNITS = {"nll": "an NLL of"}

__all__ = ["Leaderboard", "checked_rules", "default_rules", "judged", "leaderboard", "leaderboard_of_splits"]


def default_rules(lacking: bool = False, floor: Floor = "auto") -> dict[str, Any]:
    """Return the fusion rules that a leaderboard compares, the default pool first; none is fitted.

    Args:
        lacking: Whether some member lacks videos. The greedy selection, which needs them all, is then left out, and
            score weights are not calibrated: a fold of a fold may hold no video that every member has.
        floor: The floor of all but the default pool, which has one of its own; see `floor_of`.

    Example:
        >>> print(*list(default_rules())[:3], sep="; ")
        learned weights; score-weighted, calibrated; greedy selection
    """
    score_weighted = LogLinearPool(weights="accuracy", floor=floor, missing="renormalise")
    some: dict[str, Any] = (
        {"score-weighted": score_weighted}
        if lacking
        else {
            "score-weighted, calibrated": Calibrated(score_weighted),
            "greedy selection": GreedyPool("nll", rounds=50, floor=floor),
        }
    )
    return {
        "learned weights": LogLinearPool(missing="renormalise"),
        **some,
        "average of log-likelihoods": LogLinearPool(weights="uniform", floor=floor, missing="renormalise"),
        "average of probabilities": LinearPool(weights="uniform", floor=floor, missing="renormalise"),
        "majority vote": MajorityVote(floor=floor, missing="renormalise"),
    }


@dataclass(frozen=True)
class Leaderboard(Tabular, Board):
    """Members and fusion rules on the same videos, best first, for people to read; its numbers are those of `Board`."""

    @classmethod
    def of(cls, board: Board) -> Self:
        """Return the leaderboard of numbers."""
        return cls(**{field.name: getattr(board, field.name) for field in fields(Board)})

    def headline(self) -> str:
        """Return the answer in a sentence, and what to take instead where the headline rule is worse than a member."""
        entry = self.entry(self.headline_rule)
        n_members = sum(not e.fused for e in self.entries)
        text = f"The fusion of {n_members} members gets {self._written(entry.value, entry.interval)}"
        if entry.gain is not None:
            against = self._against(entry.gain.difference, self.reference())
            text += f", {against}, {p_value(entry.gain.p_value)}"
        text += f"{self.how_scored.remark()}."
        best = self.best_on_scored
        if best != self.best_single:
            better = entry.value - self.entry(best).value
            against = self._against(-better if self.objective == "nll" else better, best)
            text += f" It is {against}, which turned out to be the best member on these videos."
        if self.instead is not None:
            what = f"“{self.instead.name}”" if self.instead.fused else f"{self.instead.name} alone"
            text += f" Take {what} instead: nothing here scores better."
        return text

    def _written(self, value: float, ends: Sequence[float]) -> str:
        """Write a value of the objective with its interval."""
        low, high = ends
        if self.objective in _SHARES:
            text = "" if np.isnan(low) else f" ({span((low, high))})"
            return f"{100 * value:.1f} %{_SHARES[self.objective]}{text}"
        name = _UNITS.get(self.objective, self.objective)
        return f"{name} {number(value)}" + ("" if np.isnan(low) else f" ({number(low)} to {number(high)})")

    def _against(self, difference: float, other: str) -> str:
        """Say by how much a prediction is better or worse than another."""
        if self.objective in _SHARES:
            return _points_against(difference, other)
        unit = " nats" if self.objective == "nll" else ""
        return f"{number(abs(difference))}{unit} {'worse' if difference < 0 else 'better'} than {other}"

    def table(self) -> Table:
        """Return the leaderboard as a table; the best member's gain is empty."""
        own = self.objective not in (*_SHARES, "nll")  # an objective that has no column yet
        write = points if self.objective in _SHARES else signed
        columns = (
            Column("", "name"),
            Column("fused", shown=False),
            Column("videos", "n", shown=False),
            Column("groups", "n_groups", shown=False),
            Column(self.objective, "value", number, best="high", shown=own),
            Column("top-1 % (95 %)", "accuracy", percent, best="high"),
            Column("mean class % (95 %)", "mean_class_accuracy", percent, best="high"),
            Column("top-5 %", "top_5", percent, best="high", shown=not all(isnan(e.score.top_5) for e in self.entries)),
            Column("NLL", "nll", number, best="low"),
            Column("ECE %", "ece", percent, best="low"),
            Column("gain (95 %)", "gain", write),
            Column("p", "p_value", bare_p),
            Column("over average (95 %)", "gain_over_average", write),
            Column("p", "p_value_over_average", bare_p, shown=False),
        )
        rows = []
        for entry in self.entries:
            s = entry.score
            rows.append(
                (
                    s.name,
                    entry.fused,
                    s.n,
                    s.n_groups,
                    Estimate(entry.value, *entry.interval),
                    Estimate(s.accuracy, *s.accuracy_interval),
                    Estimate(s.mean_class_accuracy, *s.mean_class_interval),
                    s.top_5,
                    s.nll,
                    s.ece,
                    *_estimated(entry.gain),
                    *_estimated(entry.gain_over_average),
                )
            )
        return Table(
            columns=columns,
            rows=tuple(rows),
            title="Leaderboard (members are indented)",
            notes=(
                self.how(),
                f"gain: {self._gain_unit()} over the best single member, {self.best_single}, chosen on "
                f"{self.chosen_on}; over average: over the {self.average}; p: {self._test()}.",
                *self._remarks(),
            ),
            strong=frozenset(i for i, e in enumerate(self.entries) if e.score.name == self.headline_rule),
            indented=frozenset(i for i, e in enumerate(self.entries) if not e.fused),
        )

    def _gain_unit(self) -> str:
        if self.objective == "accuracy":
            return "points of top-1"
        return "points of mean class accuracy" if self.objective in _SHARES else self.objective

    def _remarks(self) -> list[str]:
        """Say on how many groups the intervals rest, and why some are missing."""
        groups = {e.score.n_groups for e in self.entries if e.score.n_groups is not None}
        found = [f"Intervals and tests count groups, not videos: {max(groups):,}."] if groups else []
        whole = [i for e in self.entries for i in (e.interval, e.score.accuracy_interval, e.score.mean_class_interval)]
        return found + list(dict.fromkeys(f"No interval: {i.refused}." for i in whole if i.refused))

    def _test(self) -> str:
        tests = [entry.gain.test for entry in self.entries if entry.gain is not None]
        return tests[0] if tests else "none"

    def to_dict(self) -> dict[str, Any]:
        """Return the leaderboard in plain types, for JSON."""
        return {
            "headline": self.headline(),
            **self.how_scored.to_dict(),
            "objective": self.objective,
            "best_single": self.best_single,
            "best_on_scored": self.best_on_scored,
            "average": self.average,
            "headline_rule": self.headline_rule,
            "instead": None
            if self.instead is None
            else {
                "name": self.instead.name,
                "fused": self.instead.fused,
                "below": self.instead.member,
                **_difference(self.instead.difference),
            },
            "entries": [
                {
                    "name": e.score.name,
                    "fused": e.fused,
                    "n": e.score.n,
                    "n_groups": e.score.n_groups,
                    "value": e.value,
                    "interval": list(e.interval),
                    "accuracy": e.score.accuracy,
                    "accuracy_interval": list(e.score.accuracy_interval),
                    "mean_class_accuracy": e.score.mean_class_accuracy,
                    "mean_class_interval": list(e.score.mean_class_interval),
                    "top_5": None if isnan(e.score.top_5) else e.score.top_5,
                    "nll": e.score.nll,
                    "ece": e.score.ece,
                    "gain": _difference(e.gain),
                    "gain_over_average": _difference(e.gain_over_average),
                }
                for e in self.entries
            ],
        }

    def __str__(self) -> str:
        return f"{self.headline()}\n\n{self.table()}"


def _estimated(found: PairedDifference | None) -> tuple[Estimate | None, float | None]:
    """Return a gain with its interval and its p-value, as two cells."""
    return (None, None) if found is None else (Estimate(found.difference, *found.interval), found.p_value)


def _points_against(difference: float, other: str) -> str:
    """Say by how many points of accuracy a prediction is better or worse than another.

    Example:
        >>> _points_against(0.082, "swin"), _points_against(-0.04, "swin")
        ('+8.2 points over swin', '4.0 points below swin')
    """
    text = points(difference)
    side = "below" if text.startswith(MINUS) else "over"
    return f"{text.removeprefix(MINUS)} points {side} {other}"


def _difference(found: PairedDifference | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        "difference": found.difference,
        "interval": list(found.interval),
        "p_value": found.p_value,
        "test": found.test,
    }


def leaderboard(
    stack: LogitStack,
    test: LogitStack | None = None,
    *,
    rules: Mapping[str, Any] | None = None,
    objective: str | Objective = "accuracy",
    folds: int = 5,
    groups: Any = None,
    views: str | Mapping[str, str] = "mean-log",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | None = 0,
) -> Leaderboard:
    """Compare the members and the fusion rules on the same videos, in one table.

    With `test`, rules are fitted on `stack` and scored on `test`; the result counts the videos that are in both, and
    calls them in-sample. Without, rules are cross-fitted: each video is predicted by a rule that was fitted on the
    other folds. The folds are those of `honest_score` and `compare`, and so are the scores. `folds=0` fits and scores
    on the same videos. The best single member is the one that is the best on all of `stack`, which without `test`
    favours the single member, never the fusion. Gains are counted from it, and from the plain average of all members.

    Args:
        stack: Labelled stack, (N, M, K), or (N, M, V, K), whose views are then reduced.
        test: Another labelled stack of the same members.
        rules: Name → unfitted rule, the headline rule first; by default the learned log-linear pool, score-weighted
            log-likelihoods at a learned temperature, greedy selection by NLL in 50 rounds, uniform log-likelihoods,
            the average of probabilities, and the majority vote of the members. Where members given as logits rule
            classes out (-inf), these have a floor of 1e-4, as for probabilities, and so has the plain average.
        objective: What rows are ranked and gains counted by: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or
            a callable `(labels, log_proba) -> float`.
        folds: The number of folds without `test`; 0 for in-sample scores.
        groups: What each video comes from, as in `LogitStack.with_groups`; by default the stacks' own. No fold splits a
            group, and intervals and tests count groups. A function of the id, or a mapping, is for `test` too.
        views: How views are reduced where the stack has them.
        confidence: The intervals' nominal coverage.
        n_resamples: Bootstrap resamples, of losses, of macro-F1 and of callables.
        random_state: Seed of folds, resamples and sign flips.

    Raises:
        InputError: labels are missing, or a name is both a member's and a rule's.

    Warns:
        VidfuseWarning: Ids look like clips of one source, and there are no groups.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=200)
        >>> logits = {f"net{i}": rng.normal(size=(200, 3)) + 1.5 * np.eye(3)[y] for i in range(3)}
        >>> board = leaderboard(LogitStack.from_arrays(logits, labels=y))
        >>> board.protocol, board.entries[0].fused
        ('cross-fitted', True)
    """
    trial = open_trial(stack, test, folds=folds, groups=groups, random_state=random_state, what="a leaderboard")
    trial = trial.reduced(views)
    return judged(trial, checked_rules(rules, trial), objective, confidence, n_resamples, random_state)[0]


def judged(
    trial: Trial,
    rules: Mapping[str, Any],
    objective: str | Objective = "accuracy",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | None = 0,
) -> tuple[Leaderboard, dict[str, NDArray[np.float64]]]:
    """Return the leaderboard of a trial without views, and the log-likelihoods (N, K) by each rule that it is made of.

    Each rule is fitted once for each fold, and the trial keeps the copies.
    """
    predictions = {name: trial.predict(trial.fit(rule)) for name, rule in rules.items()}
    board = board_of(
        trial.scored,
        predictions,
        trial.protocol,
        best=best_single(trial.fit_stack, objective),
        average=plain_average(trial, rules, predictions),
        objective=objective,
        confidence=confidence,
        n_resamples=n_resamples,
        random_state=random_state,
    )
    return Leaderboard.of(board), predictions


def leaderboard_of_splits(
    stacks: Sequence[LogitStack], tests: Sequence[LogitStack] | None = None, **options: Any
) -> SplitBoard:
    """Compare members and rules on several splits of a data set: mean and standard deviation over the splits.

    Args:
        stacks: The stack of the fit of each split.
        tests: The stack to score of each split; without them each stack is cross-fitted.
        **options: Every keyword of `leaderboard`.

    Raises:
        InputError: as `leaderboard`, or not one test for each stack.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=200)
        >>> logits = {f"net{i}": rng.normal(size=(200, 3)) + 1.5 * np.eye(3)[y] for i in range(3)}
        >>> stack = LogitStack.from_arrays(logits, labels=y)
        >>> board = leaderboard_of_splits([stack[:100], stack[100:]], [stack[100:], stack[:100]])
        >>> len(board.boards), board.rows[0].fused
        (2, True)
    """
    if not stacks or (tests is not None and len(tests) != len(stacks)):
        found = "none" if tests is None else len(tests)
        raise InputError(f"splits: expected one test stack for each of {len(stacks)} stacks, got {found}")
    pairs = zip(stacks, [None] * len(stacks) if tests is None else tests, strict=True)
    boards = [leaderboard(stack, test, **options) for stack, test in pairs]
    return over_splits(boards, options.get("objective", "accuracy"))


def checked_rules(rules: Mapping[str, Any] | None, trial: Trial) -> dict[str, Any]:
    """Return the rules that a trial compares, by default `default_rules`; their names are not those of members.

    Raises:
        InputError: there is no rule, or a name is both a member's and a rule's.
    """
    lacking = missing_of(trial.fit_stack, trial.scored) == "renormalise"
    chosen = default_rules(lacking, floor_of(trial.fit_stack, trial.scored)) if rules is None else dict(rules)
    if not chosen:
        raise InputError("rules: expected at least one, got none")
    both = sorted(set(chosen) & set(trial.scored.members))
    if both:
        raise InputError(f"a rule needs another name than the members; both have {both}")
    return chosen


def own_rules(rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rules that learn how the members go together: those that differ from the default's fixed ones.

    Example:
        >>> list(own_rules({**default_rules(), "mine": LinearPool(weights={"swin": 2.0, "x3d": 1.0})}))
        ['learned weights', 'mine']
    """
    floors: tuple[Floor, ...] = ("auto", DEFAULT_FLOOR)
    cases = [default_rules(lacking, floor) for lacking in (False, True) for floor in floors]
    fixed = [rule for rules_of in cases for rule in list(rules_of.values())[1:]]
    known = set(map(_but_for_missing, fixed))
    return {name: rule for name, rule in rules.items() if _but_for_missing(rule) not in known}


def _but_for_missing(rule: Any) -> str:
    """Describe a rule, but for what it does where members lack videos."""
    with_option = "missing" in rule.get_params(deep=False)
    return repr(clone(rule).set_params(missing="renormalise") if with_option else rule)
