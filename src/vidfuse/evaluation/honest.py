"""Scores on videos that nothing was fitted on: nested resampling, and paired comparisons of rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from vidfuse._checks import as_array, check_count, check_scores
from vidfuse._tables import Column, Estimate, Table, Tabular, bare_p, writers
from vidfuse.errors import AlignmentError, InputError
from vidfuse.evaluation.resampling import Draw
from vidfuse.evaluation.scores import floor_of
from vidfuse.fusion.crossfit import Splits, out_of_fold, split_folds
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule, as_stack, check_presence
from vidfuse.fusion.views import reduce_views
from vidfuse.metrics.intervals import Interval
from vidfuse.metrics.objectives import (
    Objective,
    evaluate,
    higher_is_better,
    labels_of,
    objective_name,
    resolve_objective,
)
from vidfuse.metrics.significance import PairedDifference, holm
from vidfuse.stack.clips import warn_if_clips
from vidfuse.stack.stack import LogitStack

__all__ = ["Comparison", "HonestScore", "PairedComparison", "compare", "honest_score"]


@dataclass(frozen=True)
class HonestScore(Tabular):
    """A rule's score on videos that it was not fitted on, beside what it claims on its own.

    Attributes:
        objective: The objective's name; the NLL is a loss in nats.
        score: Mean over the repeats of the out-of-fold score.
        interval: Interval of `score` over videos, or over groups of videos; see `Draw`.
        in_sample: The naive number: fitted and scored on all videos.
        optimism: How much better `in_sample` looks than `score`, positive where it flatters, for a loss too.
        repeats: The out-of-fold score of each repeat.
        best_single: The same number for the single member that is best on each fold's own training videos; among
            equals, the one of lower NLL there.
        uniform: The same number for the plain log-linear average of all members.
        versus_best_single: Paired difference to `best_single`, positive where the rule is better.
        versus_uniform: Paired difference to `uniform`, positive where the rule is better.
        n_videos: N.
        n_groups: The number of groups that the videos come in; None where each stands for itself.
        folds: The number of folds.
    """

    objective: str
    score: float
    interval: Interval
    in_sample: float
    optimism: float
    repeats: tuple[float, ...] = field(repr=False)
    best_single: float
    uniform: float
    versus_best_single: PairedDifference
    versus_uniform: PairedDifference
    n_videos: int
    n_groups: int | None
    folds: int

    def table(self) -> Table:
        """Return the rule, its in-sample number, and the two baselines, with the rule's gain over each."""
        write, change, unit = writers(self.objective)
        columns = (
            Column("", "name"),
            Column(self.objective.replace("-", " ") + unit, "score", write),
            Column("the rule is better by", "gain", change),
            Column("p", "p_value", bare_p),
        )
        pairs = {"best single": self.versus_best_single, "uniform": self.versus_uniform}
        values = {"best single": self.best_single, "uniform": self.uniform}
        rows = tuple((name, values[name], Estimate(d.difference, *d.interval), d.p_value) for name, d in pairs.items())
        rule = ("rule", Estimate(self.score, *self.interval), None, None)
        note = f"{self.n_videos:,} videos, {self.folds} folds, {len(self.repeats)} repeats."
        return Table(columns, (rule, ("rule, in-sample", self.in_sample, None, None), *rows), "Honest score", (note,))

    def __repr__(self) -> str:
        groups = "" if self.n_groups is None else f", {self.n_groups:,} groups"
        return (
            f"HonestScore({self.objective} {self.score:.4f} {_ends(self.interval)}{groups}, "
            f"out of {self.folds} folds x {len(self.repeats)}; in-sample {self.in_sample:.4f}, "
            f"optimism {self.optimism:+.4f}; best single {self.best_single:.4f}, uniform {self.uniform:.4f})"
        )


@dataclass(frozen=True)
class PairedComparison:
    """Two rules on the same videos.

    Attributes:
        first: The first rule's name.
        second: The second's.
        difference: How much better the first is, with its interval and exact p-value.
        p_adjusted: The p-value after Holm's correction for all pairs of the comparison.
    """

    first: str
    second: str
    difference: PairedDifference
    p_adjusted: float

    def __repr__(self) -> str:
        return (
            f"{self.first} vs {self.second}: {self.difference.difference:+.4f} {_ends(self.difference.interval, '+')}, "
            f"p={self.difference.p_value:.4g}, Holm p={self.p_adjusted:.4g}"
        )


@dataclass(frozen=True)
class Comparison(Tabular):
    """Several rules on the same videos, none of which any rule was fitted on.

    Attributes:
        objective: The objective's name.
        scores: {rule: score}.
        intervals: {rule: interval}.
        pairs: Every pair of rules; differences are positive where the first is better.
        test: Where the p-values come from, in words.
        n_groups: The number of groups that the videos come in; None where each stands for itself.
    """

    objective: str
    scores: dict[str, float]
    intervals: dict[str, Interval]
    pairs: tuple[PairedComparison, ...]
    test: str
    n_groups: int | None

    def table(self) -> Table:
        """Return a row for each pair of rules; how much better the first is."""
        write, change, unit = writers(self.objective)
        columns = (
            "first",
            Column("second"),
            Column(f"first{unit}", "first_value", write),
            Column(f"second{unit}", "second_value", write),
            Column("difference", write=change),
            Column("p", "p_value", bare_p),
            Column("p (Holm)", "p_adjusted", bare_p),
        )
        rows = tuple(
            (
                pair.first,
                pair.second,
                Estimate(self.scores[pair.first], *self.intervals[pair.first]),
                Estimate(self.scores[pair.second], *self.intervals[pair.second]),
                Estimate(pair.difference.difference, *pair.difference.interval),
                pair.difference.p_value,
                pair.p_adjusted,
            )
            for pair in self.pairs
        )
        return Table(columns, rows, f"Comparison by {self.objective}", (f"p: {self.test}.",))

    def __repr__(self) -> str:
        lines = [f"  {name}: {self.scores[name]:.4f} {_ends(self.intervals[name])}" for name in self.scores]
        reasons = {interval.refused: None for interval in self.intervals.values() if interval.refused}
        notes = [f"  p: {self.test}", *(f"  no interval: {reason}" for reason in reasons)]
        return "\n".join([f"Comparison by {self.objective}:", *lines, *(f"  {pair!r}" for pair in self.pairs), *notes])


def honest_score(
    rule: Rule,
    stack: Any,
    folds: int = 5,
    repeats: int = 10,
    groups: Any = None,
    random_state: int | None = 0,
    *,
    objective: str | Objective = "accuracy",
    labels: ArrayLike | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
) -> HonestScore:
    """Score a rule by repeated, stratified cross-fitting, beside its in-sample number and two baselines.

    Everything that the rule chooses (weights, members, temperatures) is chosen anew from each fold's own training
    videos, so that the score holds for the whole procedure. The interval is over videos, or groups of them, each of
    which counts with its mean over the repeats. The folds of the first repeat are those of `compare` and
    `leaderboard`: with `repeats=1` all three give the same number.

    Args:
        rule: Any unfitted rule, a search such as `SubsetPool` or `GreedyPool` included.
        stack: A stack, or an array (N, M, K) of logits or log-likelihoods. Of a stack with views, for a rule that fuses
            them, the two baselines take each member's mean log-likelihood.
        folds: Folds of a repeat, at least 2.
        repeats: How often the videos are split anew.
        groups: What each video comes from, as in `LogitStack.with_groups`; by default the stack's own. No fold splits a
            group.
        random_state: Seed of splits, resamples and sign flips; the same seed gives the same result.
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`.
        labels: True classes, shape (N,); the stack's own by default.
        confidence: The interval's nominal coverage.
        n_resamples: Bootstrap resamples, of losses and of a callable objective, which is called on each.

    Raises:
        InputError: Fewer than 2 folds or videos for them, or labels are missing.
        AlignmentError: Members lack videos.

    Warns:
        VidfuseWarning: Ids look like clips of one source, and there are no groups.

    Source:
        Varma and Simon (2006), Bias in error estimation when using cross-validation for model selection, BMC
        Bioinformatics 7:91; Efron and Tibshirani (1993), section 17.6, for optimism.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=90)
        >>> z = {name: rng.normal(size=(90, 3)) + 2 * np.eye(3)[y] for name in "ab"}
        >>> stack = LogitStack.from_arrays(z, labels=y)
        >>> honest_score(LogLinearPool(weights="uniform"), stack, folds=3, repeats=2).optimism
        0.0
    """
    stack = as_stack(stack) if groups is None else as_stack(stack).with_groups(groups)
    y = labels_of(stack, labels, where="the stack to score on")
    warn_if_clips(stack)
    check_presence(stack, None)  # single members are scored on the same videos
    metric = resolve_objective(objective)
    sign = 1.0 if higher_is_better(objective) else -1.0
    check_count("repeats", repeats)
    more = np.random.default_rng(random_state).integers(0, 2**31 - 1, size=repeats - 1)
    seeds = [random_state, *map(int, more)]  # the first folds are those of `compare` and `leaderboard`
    rounds = [split_folds(y, folds, stack.groups, seed, stack.ids) for seed in seeds]
    averaged = stack if stack.n_views is None else reduce_views(stack, "mean-log")
    uniform = LogLinearPool(weights="uniform", floor=floor_of(averaged))
    predictions = {
        "rule": [out_of_fold(rule, stack, y, splits) for splits in rounds],
        "uniform": [out_of_fold(uniform, averaged, y, splits) for splits in rounds],
        "best single": _best_single(averaged, y, rounds, objective),
    }
    scores = {name: [float(metric(y, p)) for p in repeated] for name, repeated in predictions.items()}
    fitted = clone(rule).fit(stack, y)
    in_sample = float(metric(y, fitted.predict_log_proba(stack)))
    score = float(np.mean(scores["rule"]))
    draw = Draw(y, objective, confidence, n_resamples, random_state, stack.groups)
    against = draw.differences(predictions, [("rule", "best single"), ("rule", "uniform")])
    interval = draw.interval(predictions["rule"])
    return HonestScore(
        objective=objective_name(objective),
        score=score,
        interval=interval,
        in_sample=in_sample,
        optimism=sign * (in_sample - score) + 0.0,
        repeats=tuple(scores["rule"]),
        best_single=float(np.mean(scores["best single"])),
        uniform=float(np.mean(scores["uniform"])),
        versus_best_single=against[0],
        versus_uniform=against[1],
        n_videos=len(y),
        n_groups=interval.n_groups,
        folds=folds,
    )


def compare(
    rules: Mapping[str, Rule | ArrayLike],
    stack: Any,
    random_state: int | None = 0,
    *,
    objective: str | Objective = "accuracy",
    labels: ArrayLike | None = None,
    folds: int = 5,
    groups: Any = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
) -> Comparison:
    """Compare rules on the same videos: paired differences, intervals and p-values.

    P-values are exact under the hypothesis that both rules are equally good: McNemar's for the accuracy of independent
    videos, otherwise from swapping the two rules at random, group by group. Rules are scored out of fold, all on the
    same folds. Log-likelihoods are scored as they are: whatever gave them should not have been fitted on these videos.

    Args:
        rules: {name: unfitted rule, or log-likelihoods (N, K)}.
        stack: A stack with the videos' labels, or an array (N, M, K) with `labels`.
        random_state: Seed of the folds, the resamples and the sign flips.
        objective: "accuracy", "mean-class-accuracy", "macro-f1", "nll", or a callable `(labels, log_proba) -> float`.
        labels: True classes, shape (N,); the stack's own by default.
        folds: The number of folds, at least 2.
        groups: What each video comes from, as in `LogitStack.with_groups`; by default the stack's own. No fold splits a
            group.
        confidence: The intervals' nominal coverage.
        n_resamples: Bootstrap resamples, of losses and of a callable objective, which is called on each.

    Raises:
        InputError: Fewer than two rules, or labels are missing.
        AlignmentError: Log-likelihoods are not of shape (N, K).

    Warns:
        VidfuseWarning: Ids look like clips of one source, and there are no groups.

    Source:
        Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, for
        `p_adjusted`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=60)
        >>> stack = LogitStack.from_arrays({"a": rng.normal(size=(60, 3)) + 2 * np.eye(3)[y]}, labels=y)
        >>> sure = np.log(np.eye(3)[y] * 0.97 + 0.01)
        >>> found = compare({"sure": sure, "pool": LogLinearPool(weights="uniform")}, stack)
        >>> found.scores["sure"], found.pairs[0].difference.difference > 0
        (1.0, True)
    """
    stack = as_stack(stack) if groups is None else as_stack(stack).with_groups(groups)
    y = labels_of(stack, labels, where="the stack to compare on")
    warn_if_clips(stack)
    if len(rules) < 2:
        raise InputError(f"compare: expected at least two rules, got {len(rules)}")
    metric = resolve_objective(objective)
    splits: Splits | None = None
    predictions: dict[str, list[NDArray[np.float64]]] = {}
    for name, rule in rules.items():
        if hasattr(rule, "predict_log_proba"):
            splits = splits or split_folds(y, folds, stack.groups, random_state, stack.ids)
            predictions[name] = [out_of_fold(cast(Rule, rule), stack, y, splits)]
            continue
        log_proba = as_array(rule, f"rule {name!r}").astype(np.float64)
        if log_proba.shape != (len(y), stack.n_classes):
            raise AlignmentError(
                f"rule {name!r}: expected log-likelihoods of shape {(len(y), stack.n_classes)}, got {log_proba.shape}"
            )
        check_scores(log_proba, "log-likelihoods", member=name, ids=stack.ids)
        predictions[name] = [log_proba]
    draw = Draw(y, objective, confidence, n_resamples, random_state, stack.groups)
    names = list(combinations(rules, 2))
    differences = draw.differences(predictions, names)
    adjusted = holm([difference.p_value for difference in differences])
    intervals = draw.intervals(predictions)
    return Comparison(
        objective=objective_name(objective),
        scores={name: float(metric(y, repeated[0])) for name, repeated in predictions.items()},
        intervals=intervals,
        pairs=tuple(
            PairedComparison(a, b, difference, p)
            for (a, b), difference, p in zip(names, differences, adjusted, strict=True)
        ),
        test=f"{differences[0].test}, two-sided",
        n_groups=draw.design.n_groups,
    )


def _best_single(
    stack: LogitStack,
    labels: NDArray[np.int64],
    rounds: Sequence[Splits],
    objective: str | Objective,
) -> list[NDArray[np.float64]]:
    """Return each round's predictions, in each fold by the member that is best on the fold's training videos.

    Among equals it is the one of lower NLL, then of the first name, as in `best_single`. Members are read one at a
    time, and twice: once to rank them, once to predict.
    """
    names, sign = sorted(stack.members), 1.0 if higher_is_better(objective) else -1.0
    worse, losses = (np.empty((len(names), len(rounds), len(rounds[0]))) for _ in range(2))
    for column, name in enumerate(names):
        log_proba = stack.select([name]).log_likelihoods()[:, 0]
        loss = -np.take_along_axis(log_proba, labels[:, None], axis=1)[:, 0].astype(np.float64)
        for r, splits in enumerate(rounds):
            for fold, (fit_rows, _) in enumerate(splits):
                value = evaluate(objective, labels[fit_rows], log_proba[fit_rows], [name])
                worse[column, r, fold], losses[column, r, fold] = -sign * value, loss[fit_rows].mean()
    best = np.lexsort((losses, worse), axis=0)[0]
    results = [np.empty((len(stack), stack.n_classes)) for _ in rounds]
    for column in np.unique(best):
        log_proba = stack.select([names[column]]).log_likelihoods()[:, 0]
        for r, fold in zip(*np.nonzero(best == column), strict=True):
            score_rows = rounds[r][fold][1]
            results[r][score_rows] = log_proba[score_rows]
    return results


def _ends(interval: Interval, sign: str = "") -> str:
    return "[no interval]" if interval.refused else f"[{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"
