"""The leaderboard: members and fusion rules on the same videos, with intervals and gains over the best single one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vidfuse._tables import MINUS, Column, Estimate, Table, Tabular, number, p_value, percent, points, span
from vidfuse.errors import InputError
from vidfuse.evaluation.scores import (
    Gain,
    Score,
    best_single,
    gain,
    log_proba_of,
    missing_of,
    require_labels,
    score,
)
from vidfuse.evaluation.trial import Protocol, Trial, open_trial
from vidfuse.fusion.linear import LinearPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Missing
from vidfuse.fusion.votes import MajorityVote
from vidfuse.stack.stack import LogitStack

__all__ = ["Entry", "Leaderboard", "board_of", "checked_rules", "default_rules", "leaderboard"]


def default_rules(missing: Missing = "error") -> dict[str, Any]:
    """Return the fusion rules that a leaderboard compares, the default pool first; none is fitted.

    Args:
        missing: What they do with videos that some member lacks; see `LogLinearPool`.

    Example:
        >>> list(default_rules())
        ['learned weights', 'score-weighted', 'uniform', 'average of probabilities', 'majority vote']
    """
    return {
        "learned weights": LogLinearPool(missing=missing),
        "score-weighted": LogLinearPool(weights="accuracy", missing=missing),
        "uniform": LogLinearPool(weights="uniform", missing=missing),
        "average of probabilities": LinearPool(weights="uniform", missing=missing),
        "majority vote": MajorityVote(missing=missing),
    }


@dataclass(frozen=True)
class Entry:
    """A row of the leaderboard.

    Attributes:
        score: How good it is.
        fused: Whether it is a fusion rule; otherwise it is a member.
        gain: Its gain over the best single member; None for that member.
    """

    score: Score
    fused: bool
    gain: Gain | None


@dataclass(frozen=True)
class Leaderboard(Tabular):
    """Members and fusion rules on the same videos, best first.

    Attributes:
        entries: The rows: by accuracy, then by NLL.
        best_single: The single member that gains are counted from.
        chosen_on: Where it was the most accurate one: "the videos of the fit", or "these videos".
        headline_rule: The fusion rule that was chosen before anything was scored: the first of the rules.
        how_scored: On which videos rules were fitted and scored.
    """

    entries: tuple[Entry, ...]
    best_single: str
    chosen_on: str
    headline_rule: str
    how_scored: Protocol

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

    @property
    def best_on_scored(self) -> str:
        """The member that is the most accurate on the scored videos: the best one in hindsight."""
        members = [entry for entry in self.entries if not entry.fused]
        most = max(entry.score.accuracy for entry in members)
        names = [entry.score.name for entry in members if entry.score.accuracy == most]
        return self.best_single if self.best_single in names else names[0]

    def headline(self) -> str:
        """Return the answer in one sentence."""
        entry = self.entry(self.headline_rule)
        n_members = sum(not e.fused for e in self.entries)
        text = (
            f"The fusion of {n_members} members gets {100 * entry.score.accuracy:.1f} % "
            f"({span(entry.score.accuracy_interval)})"
        )
        if entry.gain is not None:
            against = _against(entry.gain.difference, f"the best single member ({self.best_single})")
            text += f", {against}, {p_value(entry.gain.p_value)}"
        text += f"{self.how_scored.remark()}."
        best = self.best_on_scored
        if best != self.best_single:
            against = _against(entry.score.accuracy - self.entry(best).score.accuracy, best)
            text += f" That is {against}, which turned out to be the best member on these videos."
        return text

    def how(self) -> str:
        """Return in a sentence or two on which videos the scores were taken."""
        return self.how_scored.how()

    def table(self) -> Table:
        """Return the leaderboard as a table; the best member's gain is empty."""
        columns = (
            Column("", "name"),
            Column("fused", shown=False),
            Column("videos", "n", shown=False),
            Column("top-1 % (95 %)", "accuracy", percent, best="high"),
            Column("mean class % (95 %)", "mean_class_accuracy", percent, best="high"),
            Column("top-5 %", "top_5", percent, best="high", shown=not all(isnan(e.score.top_5) for e in self.entries)),
            Column("NLL", "nll", number, best="low"),
            Column("ECE %", "ece", percent, best="low"),
            Column("gain (95 %)", "gain", points),
            Column("p", "p_value", lambda p: p_value(p).removeprefix("p = ").removeprefix("p ")),
        )
        rows = []
        for entry in self.entries:
            s, gained = entry.score, entry.gain
            rows.append(
                (
                    s.name,
                    entry.fused,
                    s.n,
                    Estimate(s.accuracy, *s.accuracy_interval),
                    Estimate(s.mean_class_accuracy, *s.mean_class_interval),
                    s.top_5,
                    s.nll,
                    s.ece,
                    None if gained is None else Estimate(gained.difference, *gained.interval),
                    None if gained is None else gained.p_value,
                )
            )
        return Table(
            columns=columns,
            rows=tuple(rows),
            title="Leaderboard (members are indented)",
            notes=(
                self.how(),
                f"gain: points of top-1 over the best single member, {self.best_single}, chosen on {self.chosen_on}; "
                "p: McNemar's exact test.",
            ),
            strong=frozenset(i for i, e in enumerate(self.entries) if e.score.name == self.headline_rule),
            indented=frozenset(i for i, e in enumerate(self.entries) if not e.fused),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the leaderboard in plain types, for JSON."""
        return {
            "headline": self.headline(),
            **self.how_scored.to_dict(),
            "best_single": self.best_single,
            "best_on_scored": self.best_on_scored,
            "headline_rule": self.headline_rule,
            "entries": [
                {
                    "name": e.score.name,
                    "fused": e.fused,
                    "n": e.score.n,
                    "accuracy": e.score.accuracy,
                    "accuracy_interval": list(e.score.accuracy_interval),
                    "mean_class_accuracy": e.score.mean_class_accuracy,
                    "mean_class_interval": list(e.score.mean_class_interval),
                    "top_5": None if isnan(e.score.top_5) else e.score.top_5,
                    "nll": e.score.nll,
                    "ece": e.score.ece,
                    "gain": None if e.gain is None else e.gain.difference,
                    "gain_interval": None if e.gain is None else list(e.gain.interval),
                    "p_value": None if e.gain is None else e.gain.p_value,
                }
                for e in self.entries
            ],
        }

    def __str__(self) -> str:
        return f"{self.headline()}\n\n{self.table()}"


def _against(difference: float, other: str) -> str:
    """Say by how many points of accuracy a prediction is better or worse than another.

    Example:
        >>> _against(0.082, "swin"), _against(-0.007, "swin")
        ('+8.2 points over swin', '0.7 points below swin')
    """
    text = points(difference)
    side = "below" if text.startswith(MINUS) else "over"
    return f"{text.removeprefix(MINUS)} points {side} {other}"


def leaderboard(
    stack: LogitStack,
    test: LogitStack | None = None,
    *,
    rules: Mapping[str, Any] | None = None,
    folds: int = 5,
    groups: Any = None,
    views: str | Mapping[str, str] = "mean-log",
    random_state: int | None = 0,
) -> Leaderboard:
    """Compare the members and the fusion rules on the same videos, in one table.

    With `test`, rules are fitted on `stack` and scored on `test`; the result counts the videos that are in both, and
    calls them in-sample. Without, rules are cross-fitted: each video is predicted by a rule that was fitted on the
    other folds. The folds are those of `honest_score` and `compare`, and so are the scores. `folds=0` fits and scores
    on the same videos. The best single member is the one that is the most accurate on all of `stack`, which without
    `test` favours the single member, never the fusion.

    Args:
        stack: Labelled stack, (N, M, K), or (N, M, V, K), whose views are then reduced.
        test: Another labelled stack of the same members.
        rules: Name → unfitted rule, the headline rule first; by default the learned log-linear pool, score-weighted
            and uniform log-likelihoods, the average of probabilities, and the majority vote of the members.
        folds: The number of folds without `test`; 0 for in-sample scores.
        groups: What each video of `stack` comes from, as in `LogitStack.with_groups`; by default the stack's own. No
            fold splits a group.
        views: How views are reduced where the stack has them.
        random_state: Seed of the folds.

    Raises:
        InputError: labels are missing, or a name is both a member's and a rule's.

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
    rules = checked_rules(rules, trial)
    predictions = {name: trial.predict(trial.fit(rule)) for name, rule in rules.items()}
    return board_of(trial.scored, predictions, trial.protocol, best_single(trial.fit_stack))


def checked_rules(rules: Mapping[str, Any] | None, trial: Trial) -> dict[str, Any]:
    """Return the rules that a trial compares, by default `default_rules`; their names are not those of members.

    Raises:
        InputError: there is no rule, or a name is both a member's and a rule's.
    """
    chosen = default_rules(missing_of(trial.fit_stack, trial.scored)) if rules is None else dict(rules)
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
    missing: tuple[Missing, ...] = ("error", "renormalise")
    known = {repr(rule) for option in missing for rule in list(default_rules(option).values())[1:]}
    return {name: rule for name, rule in rules.items() if repr(rule) not in known}


def board_of(
    stack: LogitStack, predictions: Mapping[str, ArrayLike], protocol: Protocol, best: str | None = None
) -> Leaderboard:
    """Return the leaderboard of predictions that were already made, beside the members of the stack.

    Args:
        stack: Labelled stack (N, M, K).
        predictions: Name → log-likelihoods (N, K), the headline rule first.
        protocol: How the predictions came about.
        best: The best single member; by default the most accurate one on `stack`, which favours it.

    Raises:
        InputError: labels are missing, or there is no prediction.

    Example:
        >>> z = np.log([[0.7, 0.3], [0.4, 0.6]])
        >>> stack = LogitStack.from_arrays({"a": z, "b": z[::-1]}, labels=[0, 1])
        >>> board_of(stack, {"a again": z}, Protocol(n_fit=10, n_scored=2, n_shared=0)).headline()
        'The fusion of 2 members gets 100.0 % (34.2–100.0), 0.0 points over the best single member (a), p = 1.'
    """
    labels = require_labels(stack, "a leaderboard")
    if not predictions:
        raise InputError("predictions: expected at least one, got none")
    scores = {}
    for column, name in enumerate(stack.members):
        present = None if stack.present is None else stack.present[:, column]
        scores[name] = score(name, labels, log_proba_of(stack, name), present)
    for name, log_proba in predictions.items():
        scores[name] = score(name, labels, np.asarray(log_proba))
    other_videos = best is not None and protocol.name in ("held-out", "partly in-sample")
    best = best_single(stack) if best is None else best
    entries = [
        Entry(s, fused=name in predictions, gain=None if name == best else gain(s, scores[best]))
        for name, s in scores.items()
    ]
    return Leaderboard(
        entries=tuple(sorted(entries, key=lambda e: (-e.score.accuracy, e.score.nll, not e.fused, e.score.name))),
        best_single=best,
        chosen_on="the videos of the fit" if other_videos else "these videos",
        headline_rule=next(iter(predictions)),
        how_scored=protocol,
    )
