"""The sections of the report: each takes what was computed, and returns a part of the page, or None."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from vidfuse import __version__
from vidfuse._tables import Column, Table, number, percent, points, signed
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.evaluation.curves import Curve
from vidfuse.evaluation.scores import class_names, floor_of
from vidfuse.evaluation.trial import Trial
from vidfuse.evaluation.worth import MemberWorth
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.metrics import Abstention, abstention, prediction_disagreement, reliability, risk_coverage
from vidfuse.metrics.probabilistic import Reliability
from vidfuse.report import drawings
from vidfuse.report.advice import SHARES, advise, certain
from vidfuse.report.combinations import Combinations
from vidfuse.report.page import Section, beside, data_url, figure, scrolled
from vidfuse.report.tables import Leaderboard
from vidfuse.selection.contribution import shapley_values
from vidfuse.selection.subsets import search_subsets
from vidfuse.stack.stack import LogitStack

__all__ = ["MOST_SHAPLEY", "Findings", "sections_of"]

_MOST_CLASSES = 20  # classes that a plot of classes shows
_MOST_CELLS = 24  # classes that a confusion matrix shows
_MOST_MISTAKES = 12
MOST_SHAPLEY = 12  # members: all of their subsets are scored
_FEWEST = 5  # videos that a bin of the reliability diagram needs


@dataclass(frozen=True)
class Findings:
    """What the sections are made of; every rule was fitted and every prediction made before the first is written."""

    trial: Trial
    board: Leaderboard
    combinations: Combinations
    worth: MemberWorth | None  # what each member is worth to the headline rule; None where that would take too long
    curves: tuple[Curve, ...]  # the headline rule with fewer labelled videos, members, views
    left_out: tuple[str, ...]  # why a curve is not there, and by which call it is had
    fused: NDArray[np.float64]  # the headline rule's log-likelihoods (N, K) of the scored videos
    headline: Any  # the headline rule, unfitted
    rule: Any  # the same, fitted on all videos of the fit
    single: NDArray[np.float32]  # the best single member's log-likelihoods (N, K)
    predictions: NDArray[np.int64]  # every member's class (N, M); -1, which is never right, where it lacks the video
    thumbnails: Mapping[str, bytes]
    drawn_from: tuple[int, ...]  # videos of the stack, and of the test stack, before a sample of them was drawn

    def drawn(self) -> str:
        """Return what to say of a sample; nothing where all videos were taken."""
        kept = (len(self.trial.fit_stack), *([] if self.trial.protocol.folds else [len(self.scored)]))
        told = [f"{n:,} of {whole:,}" for n, whole in zip(kept, self.drawn_from, strict=False) if n < whole]
        return f" All of it is of videos drawn by chance: {' and '.join(told)}." if told else ""

    @property
    def scored(self) -> LogitStack:
        """The scored videos."""
        return self.trial.scored

    @property
    def labels(self) -> NDArray[np.int64]:
        """Their true classes."""
        return self.trial.labels

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The classes' names; "class 3" where they have none."""
        names = class_names(self.scored)
        return names if self.scored.classes is not None else tuple(f"class {name}" for name in names)

    @cached_property
    def hits(self) -> NDArray[np.bool_]:
        """Where the fusion is right."""
        return np.asarray(self.fused.argmax(axis=1) == self.labels)

    @property
    def confidence(self) -> float:
        """The fusion's mean probability of the class that it predicts."""
        return float(np.exp(self.fused.max(axis=1)).mean())

    def reliability(self) -> dict[str, Reliability]:
        """Return the reliability of the best single member, and of the fusion."""
        return {name: reliability(self.labels, z, n_bins=10) for name, z in self.pair().items()}

    def pair(self) -> dict[str, NDArray[Any]]:
        """Return the log-likelihoods (N, K) of the best single member, and of the fusion."""
        return {self.board.best_single: self.single, "fusion": self.fused}


def sections_of(found: Findings) -> list[Section]:
    """Return the page's sections in their order; those that have nothing to show are left out."""
    sections = (
        _advice(found),
        _leaderboard(found),
        _weights(found),
        _contributions(found),
        _combinations(found),
        _curves(found),
        _classes(found),
        _agreement(found),
        _calibration(found),
        _confusions(found),
        _mistakes(found),
        _method(found),
    )
    return [section for section in sections if section is not None]


def _advice(found: Findings) -> Section:
    too_sure = found.confidence - found.board.entry(found.board.headline_rule).score.accuracy
    items = "".join(
        f'<li class="{advice.tone}"><strong>{escape(advice.lead)}</strong> {escape(advice.text)}</li>'
        for advice in advise(found.board, found.worth, too_sure)
    )
    return Section("What to do", f'<ul class="advice">{items}</ul>')


def _leaderboard(found: Findings) -> Section:
    marks = []
    for entry in found.board.entries:
        s = entry.score
        role = "headline" if s.name == found.board.headline_rule else "fusion" if entry.fused else "member"
        marks.append(drawings.Mark(s.name, s.accuracy, *s.accuracy_interval, role=role))
    reference = found.board.entry(found.board.best_single).score.accuracy
    drawing = drawings.dot_plot(marks, title="Top-1 accuracy of members and fusion rules", reference=reference)
    caption = (
        "Top-1 accuracy with 95 % intervals (Wilson). Grey: members. "
        f"Dashed: the best single member ({found.board.best_single}), chosen on {found.board.chosen_on}."
    )
    return Section("Leaderboard", figure(drawing, caption) + scrolled(found.board.table()))


def _combinations(found: Findings) -> Section:
    joined = any(curve.x_name == "members" for curve in found.curves)
    order = "in the order of the curve below" if joined else "most accurate first"
    text = f"What each further member adds, {order}, under the rules that are compared."
    if found.board.headline_rule not in found.combinations.rules and len(found.combinations.rules) == 3:
        text += f" Fitting “{found.board.headline_rule}” on each would take minutes here; `combination_table` does it."
    return Section("Growing combinations", scrolled(found.combinations.table()), text)


def _weights(found: Findings) -> Section | None:
    weights = np.asarray(getattr(found.rule, "weights_", ()), dtype=np.float64)
    members = [str(name) for name in found.rule.members_]
    if weights.shape != (len(members),):
        return None
    order = np.argsort(-weights, kind="stable")
    drawing = drawings.bar_plot([members[i] for i in order], weights[order].tolist(), title="Weights of the members")
    temperature = getattr(found.rule, "temperature_", None)
    text = (
        f"The weights of “{found.board.headline_rule}”, fitted on {len(found.trial.fit_stack):,} videos; they sum to 1."
    )
    if temperature is not None:
        scale = getattr(found.rule, "scale_", 1.0)
        average = "members' average" if np.all(scale == 1) else "calibrated members' average"
        text += f" The pool's temperature is {float(temperature):.3g}: below 1 it is surer than the {average}."
    chosen = "".join(f"<li>{escape(choice)}</li>" for choice in found.rule.choices())
    return Section("Weights", drawing + (f"<p>What the fit chose:</p><ul>{chosen}</ul>" if chosen else ""), text)


def _contributions(found: Findings) -> Section | None:
    if found.worth is None:
        return _shares(found)
    worth, scale = found.worth, found.board.objective in SHARES
    write = points if scale else signed
    roles = {1: "up", 0: "same", -1: "down"}
    marks = [
        drawings.Mark(r.member, r.lost.difference, *r.lost.interval, role=roles[certain(r.lost)]) for r in worth.rows
    ]
    drawing = drawings.dot_plot(
        marks, title="What is lost without each member", reference=0.0, write=write, unit="", scale=100 if scale else 1
    )
    unit = "points" if scale else "nats" if found.board.objective == "nll" else found.board.objective
    text = (
        f"What “{found.board.headline_rule}”, fitted anew on the others, loses without a member, in {unit}: right of 0 "
        "the member helps. Members cover for each other, so that losses do not add up."
    )
    caption = "Blue and orange: the whole interval is on one side of 0."
    table = replace(worth.table(), title="", notes=worth.notes()[1:])
    return Section("Contributions", figure(drawing, caption) + scrolled(table), text)


def _shares(found: Findings) -> Section | None:
    """Return what members bring to score-weighted fusion, which needs no fits."""
    members = found.scored.members
    if not 2 <= len(members) <= MOST_SHAPLEY or found.scored.present is not None:
        return None
    pool = LogLinearPool(weights="accuracy", floor=floor_of(found.scored))
    shapley = shapley_values(found.scored, objective="accuracy", rule=pool)
    subsets = search_subsets(found.scored, objective="accuracy", rule=pool).table
    order = sorted(members, key=lambda name: -shapley.values[name])
    rows = []
    for name in order:
        alone = found.board.entry(name).score.accuracy
        lost = shapley.full - subsets.score_of(set(members) - {name})
        rows.append((name, alone, shapley.values[name], lost))
    text = (
        f"Fitting “{found.board.headline_rule}” anew without each member would take minutes here (`member_worth` does "
        "it); this is what each brings to score-weighted fusion. Shapley: points of accuracy that it adds, averaged "
        f"over all orders of adding the members; they sum to {percent(shapley.full)} % less the "
        f"{percent(shapley.empty)} % of chance. Left out: points lost without it, with all others there. Weights are "
        "the members' accuracies on the "
        "scored videos."
    )
    columns = (
        "member",
        Column("alone %", "alone", percent, best="high"),
        Column("Shapley", write=points, best="high"),
        Column("left out", write=points, best="high"),
    )
    table = Table(columns, tuple(rows))
    return Section("Contributions", scrolled(table), text)


def _curves(found: Findings) -> Section:
    """Return how many labelled videos, members and views are enough, and what abstaining would save."""
    parts = [_drawn(curve, found.board.objective) for curve in found.curves]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in found.left_out)
    return Section("How many are enough", beside(*parts, _abstaining(found)) + notes)


def _drawn(curve: Curve, objective: str) -> str:
    """Return a curve's figure; against costs where it has some."""
    scale, costs = objective in SHARES, not math.isnan(curve.points[0].cost)
    lines = []
    for name in curve.names:
        series = curve.series(name)
        x = [float(p.cost if costs else p.x) for p in series]
        low, high = zip(*(p.interval for p in series), strict=True)
        role = "headline" if name == curve.names[0] else "member"
        lines.append(drawings.Line(name, x, [p.value for p in series], low, high, role))
    drawing = drawings.line_plot(
        lines,
        title=escape(curve.title),
        x_name="cost" if costs else curve.x_name,
        y_name=f"{objective.replace('-', ' ')}{' %' if scale else ''}",
        write=percent if scale else number,
        log_x=lines[0].x[-1] > 8 * lines[0].x[0] > 0,
    )
    caption = f"{curve.title}. From {curve.enough():,} {curve.x_name} on, no point is certainly worse than the last."
    joined = [p.label for p in curve.series() if p.label]
    return figure(drawing, caption + (f" They join in this order: {', '.join(joined)}." if joined else ""))


def _abstaining(found: Findings) -> str:
    """Return the figure of the errors that are left on the surest videos."""
    risk = risk_coverage(found.labels, found.fused)
    kept = np.unique(np.linspace(0, len(risk.coverage) - 1, 60).astype(int))  # more would not be seen
    kept = kept[risk.coverage[kept] >= 0.05]
    empty = [math.nan] * len(kept)
    lines = [drawings.Line("fusion", risk.coverage[kept].tolist(), risk.risk[kept].tolist(), empty, empty)]
    sure = _certified(found)
    if sure is not None:
        answered, nothing = float((np.exp(found.fused.max(axis=1)) >= sure.threshold).mean()), [math.nan]
        lines.append(drawings.Line("certified", [answered], [risk.at(answered)], nothing, nothing, "member"))
    drawing = drawings.line_plot(
        lines, title="Errors among the surest", x_name="share kept %", y_name="errors %", x_write=percent
    )
    caption = (
        f"Errors that are left if the fusion abstains where it is unsure: {percent(risk.at(0.9))} % on the surest 90 % "
        f"of the videos, {percent(risk.at(0.5))} % on the surest half, {percent(float(risk.risk[-1]))} % on all."
    )
    if sure is not None:
        caption += (
            f" Answering from a confidence of {sure.threshold:.3f} on, at most {100 * sure.error:g} % of the answered "
            f"are wrong, with {100 * sure.level:g} % confidence."
        )
    return figure(drawing, caption)


def _certified(found: Findings) -> Abstention | None:
    """Return from which confidence on the errors are certainly below a round share; None where none is certain."""
    wrong = float(1 - found.hits.mean())
    confidence = np.exp(found.fused.max(axis=1).astype(np.float64))
    for error in (0.2, 0.1, 0.05, 0.02, 0.01):
        if error < wrong:
            try:
                return abstention(confidence, found.hits, error, groups=found.scored.groups)
            except InputError:
                continue
    return None


def _classes(found: Findings) -> Section | None:
    single_hits = found.single.argmax(axis=1) == found.labels
    shifts = []
    for k in np.unique(found.labels):
        rows = found.labels == k
        before, after = float(single_hits[rows].mean()), float(found.hits[rows].mean())
        shifts.append(drawings.Shift(found.names[k], before, after, int(rows.sum())))
    shifts.sort(key=lambda shift: (shift.before - shift.after, shift.label))
    total = len(shifts)
    if total > _MOST_CLASSES:
        shifts = shifts[: _MOST_CLASSES // 2] + shifts[-(_MOST_CLASSES // 2) :]
    better = sum(shift.after > shift.before for shift in shifts)
    worse = sum(shift.after < shift.before for shift in shifts)
    drawing = drawings.shift_plot(shifts, title="Accuracy by class", before=found.board.best_single, after="fusion")
    half = len(shifts) // 2
    shown = (
        ""
        if total == len(shifts)
        else f" Of {total} classes, the {half} that gain most and the {half} that gain least."
    )
    text = (
        f"From the best single member ({found.board.best_single}, open) to the fusion (filled); at the right the "
        f"fusion's accuracy and the points gained.{shown}"
    )
    return Section("Classes", figure(drawing, f"{better} of the classes shown gain, {worse} lose."), text)


def _agreement(found: Findings) -> Section | None:
    if len(found.scored.members) < 2:
        return None
    same = 1 - prediction_disagreement(found.predictions)
    members = found.scored.members
    texts = [[percent(value, 0) for value in row] for row in same]
    drawing = drawings.heat_table(
        same, members, members, title="Agreement of the members", texts=texts, palest=float(same.min()) - 0.02
    )
    text = "Share of videos, in %, for which two members predict the same class. Members that agree less add more."
    return Section("Agreement", drawing, text)


def _calibration(found: Findings) -> Section | None:
    series, rows = [], []
    bins_of, roles = found.reliability(), ("member", "headline")
    for (name, z), role in zip(found.pair().items(), roles, strict=True):
        r = bins_of[name]
        bins = zip(r.confidence.tolist(), r.accuracy.tolist(), r.counts.tolist(), strict=True)
        series.append((name, role, [drawings.Bin(c, a, int(n)) for c, a, n in bins if n >= _FEWEST]))
        entry = found.board.entry(name if role == "member" else found.board.headline_rule).score
        confidence = float(np.exp(z.max(axis=1).astype(np.float64)).mean())
        rows.append((name, confidence, entry.accuracy, confidence - entry.accuracy, entry.ece, entry.nll))
    columns = (
        Column("", "name"),
        Column("mean confidence %", write=percent),
        Column("accuracy %", write=percent, best="high"),
        Column("too sure by", write=points),
        Column("ECE %", write=percent, best="low"),
        Column("NLL", write=number, best="low"),
    )
    table = Table(columns, tuple(rows), strong=frozenset([1]))
    caption = (
        f"Ten bins of confidence (those of at least {_FEWEST} videos); larger dots hold more, bars count the fusion's. "
        "Below the dashed line the confidence is too high, above it too low."
    )
    body = beside(figure(drawings.reliability_diagram(series, title="Calibration"), caption), scrolled(table))
    return Section("Calibration", body, "Can the probabilities be taken at their word?")


def _confusions(found: Findings) -> Section | None:
    predicted = found.fused.argmax(axis=1)
    k = found.scored.n_classes
    matrix = np.bincount(found.labels * k + predicted, minlength=k * k).reshape(k, k)
    wrong = matrix - np.diag(np.diag(matrix))
    if not wrong.any():
        return None
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [(int(i) // k, int(i) % k, int(wrong.flat[i])) for i in order if wrong.flat[i]]
    table = Table(
        ("true class", Column("videos", "errors"), Column("of"), "predicted instead"),
        tuple((found.names[i], n, int(matrix[i].sum()), found.names[j]) for i, j, n in pairs),
    )
    errors = wrong.sum(axis=1) + wrong.sum(axis=0)
    shown = np.arange(k) if k <= _MOST_CELLS else np.sort(np.argsort(-errors, kind="stable")[:_MOST_CELLS])
    counts = matrix[np.ix_(shown, shown)]
    totals = np.maximum(matrix[shown].sum(axis=1, keepdims=True), 1)
    labels = [found.names[i] for i in shown]
    texts = [[str(n) if n else "" for n in row] for row in counts]
    drawing = drawings.heat_table(counts / totals, labels, labels, title="Confusions of the fusion", texts=texts)
    rest = "" if len(shown) == k else f" The {len(shown)} of {k} classes with the most errors."
    caption = f"Rows: true classes; columns, in the same order: predictions of the fusion.{rest}"
    body = figure(drawing, caption) + scrolled(table)
    return Section("Confusions", body, "What the fusion still takes for something else.")


def _mistakes(found: Findings) -> Section | None:
    confidence = np.exp(found.fused.max(axis=1))
    wrong = np.flatnonzero(~found.hits)
    if wrong.size == 0:
        return None
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MOST_MISTAKES]
    items, n_pictures = [], 0
    for row in worst:
        name = f"row {row}" if found.scored.ids is None else str(found.scored.ids[row])
        image = found.thumbnails.get(name)
        n_pictures += image is not None
        picture = "" if image is None else f'<img alt="{escape(name)}" src="{data_url(image, name)}">'
        votes = int((found.predictions[row] == found.labels[row]).sum())
        items.append(
            f'<li>{picture}<span class="said">{escape(found.names[int(found.fused[row].argmax())])}</span> '
            f"at {percent(float(confidence[row]), 0)} %, is <strong>{escape(found.names[found.labels[row]])}</strong> "
            f"({votes} of {len(found.scored.members)} members right)<span class='id'>{escape(name)}</span></li>"
        )
    text = f"The fusion is wrong on {wrong.size:,} of {len(found.labels):,} videos; these are the most confident ones."
    if found.thumbnails and not n_pictures:
        known = next(iter(found.thumbnails))
        warnings.warn(
            f"none of the {len(worst)} mistakes that are shown has a picture: their ids are such as {name!r}, those of "
            f"the pictures such as {known!r}",
            VidfuseWarning,
            stacklevel=3,
        )
    return Section("Confident mistakes", f'<ul class="mistakes">{"".join(items)}</ul>', text)


def _method(found: Findings) -> Section:
    rows = tuple(zip(found.trial.fit_stack.members, found.trial.fit_stack.kinds, strict=True))
    members = Table(("member", "numbers"), rows)
    settings = {
        "headline rule": f"{found.board.headline_rule}: {clone(found.rule)!r}",
        "scores": found.board.how(),
        "intervals": "95 %: Wilson; mean class accuracy from variances within classes; groups count as wholes",
        "p-value": "two-sided, against the best single member; the leaderboard says which test",
        "calibration error": "15 bins of equal width",
        "bold": "the best of its column",
        "order": "checked by id" if found.board.how_scored.order_checked else "unchecked (no ids)",
        "vidfuse": __version__,
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in settings.items())
    return Section("How this was computed", f'<dl class="settings">{listed}</dl>{scrolled(members)}')
