"""The leaderboard: members and fusion rules on the same videos, with intervals and gains over the best single one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from vidfuse.errors import InputError
from vidfuse.evaluation.scores import (
    Gain,
    Score,
    best_single,
    folds_of,
    gain,
    log_proba_of,
    missing_of,
    predict_rule,
    reduced,
    require_labels,
    score,
)
from vidfuse.fusion.linear import LinearPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Missing
from vidfuse.fusion.votes import MajorityVote
from vidfuse.report.layout import Table, number, p_value, points, share, span
from vidfuse.stack.stack import LogitStack

__all__ = ["Entry", "Leaderboard", "board_of", "default_rules", "leaderboard"]

Protocol = Literal["held-out", "cross-fitted", "in-sample"]


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
class Leaderboard:
    """Members and fusion rules on the same videos, best first.

    Attributes:
        entries: The rows: by accuracy, then by NLL.
        best_single: The member that was the most accurate on the videos of the fit.
        headline_rule: The fusion rule that was chosen before anything was scored: the first of the rules.
        protocol: `"held-out"` (fitted on other videos), `"cross-fitted"` (each video was predicted by a rule that
            was fitted without it) or `"in-sample"`.
        n_fit: The number of videos of the fit.
        folds: The number of folds where cross-fitted.
        order_checked: Whether the members were aligned by id.
    """

    entries: tuple[Entry, ...]
    best_single: str
    headline_rule: str
    protocol: Protocol
    n_fit: int
    folds: int
    order_checked: bool

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
            text += (
                f", {points(entry.gain.difference)} points over the best single member ({self.best_single}), "
                f"{p_value(entry.gain.p_value)}"
            )
        text += " (in-sample)." if self.protocol == "in-sample" else "."
        best = self.best_on_scored
        if best != self.best_single:
            ahead = points(entry.score.accuracy - self.entry(best).score.accuracy)
            text += f" On these videos themselves {best} is the best member: {ahead} points."
        return text

    def how(self) -> str:
        """Return in one sentence on which videos the scores were taken."""
        n = max(entry.score.n for entry in self.entries)
        if self.protocol == "held-out":
            text = f"Rules were fitted on {self.n_fit:,} videos and scored on {n:,} others."
        elif self.protocol == "cross-fitted":
            text = f"{n:,} videos; each was predicted by rules that were fitted without it ({self.folds} folds)."
        else:
            text = (
                f"IN-SAMPLE: the rules were fitted on the {n:,} videos that they are scored on, and flatter themselves."
            )
        return text if self.order_checked else f"{text} Order unchecked: there are no ids."

    def chosen_on(self) -> str:
        """Return in a few words on which videos the best single member was chosen."""
        return "chosen on the videos of the fit" if self.protocol == "held-out" else "chosen on these videos"

    def table(self) -> Table:
        """Return the leaderboard as a table of strings."""
        top_5 = any(not np.isnan(entry.score.top_5) for entry in self.entries)
        columns = ["", "top-1 % (95 %)", "mean class % (95 %)", *(["top-5 %"] if top_5 else []), "NLL", "ECE %"]
        rows = []
        for entry in self.entries:
            s = entry.score
            cells = [
                s.name if entry.fused else f"  {s.name}",
                share(s.accuracy, s.accuracy_interval),
                share(s.mean_class_accuracy, s.mean_class_interval),
                *([number(100 * s.top_5, 1)] if top_5 else []),
                number(s.nll),
                number(100 * s.ece, 1),
                "best single" if entry.gain is None else points(entry.gain.difference),
                "" if entry.gain is None else p_value(entry.gain.p_value).removeprefix("p = ").removeprefix("p "),
            ]
            rows.append(tuple(cells))
        return Table(
            columns=(*columns, "gain", "p"),
            rows=tuple(rows),
            title="Leaderboard (members are indented)",
            notes=(
                self.how(),
                f"gain: points of top-1 over the best single member, {self.chosen_on()}; p: McNemar's exact test.",
            ),
            strong=frozenset(i for i, e in enumerate(self.entries) if e.score.name == self.headline_rule),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the leaderboard in plain types, for JSON."""
        return {
            "headline": self.headline(),
            "protocol": self.protocol,
            "n_fit": self.n_fit,
            "folds": self.folds,
            "best_single": self.best_single,
            "best_on_scored": self.best_on_scored,
            "headline_rule": self.headline_rule,
            "order_checked": self.order_checked,
            "entries": [
                {
                    "name": e.score.name,
                    "fused": e.fused,
                    "n": e.score.n,
                    "accuracy": e.score.accuracy,
                    "accuracy_interval": list(e.score.accuracy_interval),
                    "mean_class_accuracy": e.score.mean_class_accuracy,
                    "mean_class_interval": list(e.score.mean_class_interval),
                    "top_5": None if np.isnan(e.score.top_5) else e.score.top_5,
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

    def _repr_html_(self) -> str:
        return self.table().to_html()


def leaderboard(
    stack: LogitStack,
    test: LogitStack | None = None,
    *,
    rules: Mapping[str, Any] | None = None,
    folds: int = 5,
    views: str | Mapping[str, str] = "mean-log",
    random_state: int = 0,
) -> Leaderboard:
    """Compare the members and the fusion rules on the same videos, in one table.

    With `test`, rules are fitted on `stack` and scored on `test`. Without, they are cross-fitted: each video is
    predicted by a rule that was fitted on the other folds. `folds=0` fits and scores on the same videos; the result
    then says "in-sample". The best single member is the one that is the most accurate on all of `stack`, which without
    `test` favours the single member, never the fusion.

    Args:
        stack: Labelled stack, (N, M, K), or (N, M, V, K), whose views are then reduced.
        test: Another labelled stack of the same members.
        rules: Name → unfitted fuser, the headline rule first; by default the learned log-linear pool, score-weighted
            and uniform log-likelihoods, the average of probabilities, and the majority vote of the members.
        folds: The number of folds without `test`; 0 for in-sample scores.
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
    rules = default_rules(missing_of(stack, test)) if rules is None else dict(rules)
    if not rules:
        raise InputError("rules: expected at least one fuser, got none")
    stack = reduced(stack, views)
    require_labels(stack, "a leaderboard", "the stack" if test is None else "the stack of the fit")
    scored = stack if test is None else reduced(test, views).select(stack.members)
    labels = require_labels(scored, "a leaderboard", "the test stack")
    both = sorted(set(rules) & set(stack.members))
    if both:
        raise InputError(f"a rule needs another name than the members; both have {both}")
    fold = folds_of(labels, folds, random_state) if test is None and folds else None
    return board_of(
        scored,
        {name: predict_rule(rule, stack, scored, fold) for name, rule in rules.items()},
        best=best_single(stack),
        protocol="held-out" if test is not None else "cross-fitted" if folds else "in-sample",
        n_fit=len(stack),
        folds=folds if test is None else 0,
        order_checked=stack.ids is not None,
    )


def board_of(
    stack: LogitStack,
    predictions: Mapping[str, ArrayLike],
    *,
    protocol: Protocol,
    n_fit: int,
    best: str | None = None,
    folds: int = 0,
    order_checked: bool = True,
) -> Leaderboard:
    """Return the leaderboard of predictions that were already made, beside the members of the stack.

    Args:
        stack: Labelled stack (N, M, K).
        predictions: Name → log-likelihoods (N, K), the headline rule first.
        protocol: How the predictions came about; see `Leaderboard`.
        n_fit: The number of videos of the fit.
        best: The best single member; by default the most accurate one on `stack`, which favours it.
        folds: The number of folds where cross-fitted.
        order_checked: Whether the fit's members were aligned by id.

    Raises:
        InputError: labels are missing, or there is no prediction.

    Example:
        >>> z = np.log([[0.7, 0.3], [0.4, 0.6]])
        >>> stack = LogitStack.from_arrays({"a": z, "b": z[::-1]}, labels=[0, 1])
        >>> board_of(stack, {"a again": z}, protocol="held-out", n_fit=10).headline()
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
    best = best_single(stack) if best is None else best
    entries = [
        Entry(s, fused=name in predictions, gain=None if name == best else gain(s, scores[best]))
        for name, s in scores.items()
    ]
    return Leaderboard(
        entries=tuple(sorted(entries, key=lambda e: (-e.score.accuracy, e.score.nll, not e.fused, e.score.name))),
        best_single=best,
        headline_rule=next(iter(predictions)),
        protocol=protocol,
        n_fit=n_fit,
        folds=folds,
        order_checked=order_checked and stack.ids is not None,
    )
