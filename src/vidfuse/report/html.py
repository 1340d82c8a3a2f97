"""The report: one self-contained HTML page that answers first, and then shows what the answer rests on."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from vidfuse import __version__
from vidfuse._files import replace
from vidfuse.errors import InputError
from vidfuse.evaluation.board import board_of, plain_average
from vidfuse.evaluation.scores import class_names, log_proba_of
from vidfuse.evaluation.trial import Trial, open_trial
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.metrics import oracle_accuracy, prediction_disagreement, reliability
from vidfuse.metrics.objectives import Objective
from vidfuse.report import svg
from vidfuse.report.combinations import combinations_of
from vidfuse.report.layout import Table, number, percent, points
from vidfuse.report.tables import Leaderboard, checked_rules
from vidfuse.selection.contribution import shapley_values
from vidfuse.selection.single import best_single
from vidfuse.selection.subsets import search_subsets
from vidfuse.stack.stack import LogitStack

__all__ = ["write_report"]

_MOST_CLASSES = 20  # classes that a plot of classes shows
_MOST_CELLS = 24  # classes that a confusion matrix shows
_MOST_MISTAKES = 12
_MOST_SHAPLEY = 12  # members: all of their subsets are scored
_FEWEST = 5  # videos that a bin of the reliability diagram needs


@dataclass(frozen=True)
class _Data:
    """What the sections are made of; every rule was fitted and every prediction made before the first is written."""

    trial: Trial
    board: Leaderboard
    fused: NDArray[np.float64]  # the headline rule's log-likelihoods (N, K) of the scored videos
    rule: Any  # the headline rule, fitted on all videos of the fit
    single: NDArray[np.float32]  # the best single member's log-likelihoods (N, K)
    predictions: NDArray[np.int64]  # every member's class (N, M); -1, which is never right, where it lacks the video
    thumbnails: Mapping[str, bytes]

    @property
    def scored(self) -> LogitStack:
        return self.trial.scored

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.trial.labels

    @property
    def names(self) -> tuple[str, ...]:
        return class_names(self.trial.scored)

    @property
    def single_name(self) -> str:
        return self.board.best_single

    @property
    def hits(self) -> NDArray[np.bool_]:
        return np.asarray(self.fused.argmax(axis=1) == self.labels)


def write_report(
    stack: LogitStack,
    path: str | os.PathLike[str],
    *,
    test: LogitStack | None = None,
    rules: Mapping[str, Any] | None = None,
    objective: str | Objective = "accuracy",
    folds: int = 5,
    groups: Any = None,
    views: str | Mapping[str, str] = "mean-log",
    title: str = "Fusion report",
    thumbnails: Mapping[str, bytes] | None = None,
    random_state: int | None = 0,
) -> Path:
    """Write one HTML page on what fusing the members is worth; nothing is loaded from elsewhere when it is opened.

    The page answers first (accuracy with its 95 % interval, gain over the best single member, p-value) and goes on with
    the leaderboard, the growing combinations, weights, contributions, classes, the agreement of the members,
    calibration, confusions and the most confident mistakes. Scores are taken as `leaderboard` takes them.

    Args:
        stack: Labelled stack that rules are fitted on, (N, M, K) or (N, M, V, K).
        path: The file to write.
        test: Labelled stack that rules are scored on; without it they are cross-fitted on `stack`.
        rules: Name → unfitted rule, the headline rule first; see `leaderboard`.
        objective: What rows are ranked and gains counted by; see `leaderboard`.
        folds: The number of folds without `test`; 0 for in-sample scores, which the page then says.
        groups: What each video comes from; see `leaderboard`.
        views: How views are reduced where the stack has them.
        title: The page's title.
        thumbnails: Video id → a PNG, JPEG, GIF or WebP image, shown with the mistakes.
        random_state: Seed of folds, resamples and sign flips.

    Returns:
        The path.

    Raises:
        InputError: labels are missing, or a thumbnail is of no known format.

    Example:
        >>> import tempfile
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=90)
        >>> logits = {name: rng.normal(size=(90, 3)) + np.eye(3)[y] for name in ("x3d", "swin", "tin")}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_report(LogitStack.from_arrays(logits, labels=y), f"{folder}/report.html").read_text()
        >>> page.startswith("<!doctype html>"), "The fusion of 3 members gets" in page
        (True, True)
    """
    trial = open_trial(stack, test, folds=folds, groups=groups, random_state=random_state, what="a report")
    data = _predict(trial.reduced(views), rules, objective, random_state, thumbnails or {})
    combinations = combinations_of(trial, data.trial)
    sections = [
        _leaderboard_section(data),
        _section("Growing combinations", "What each further member adds, under three rules.", combinations.table()),
        _weights_section(data),
        _contributions_section(data),
        _classes_section(data),
        _agreement_section(data),
        _calibration_section(data),
        _confusion_section(data),
        _mistakes_section(data),
        _method_section(data),
    ]
    return replace(path, _page(title, data, [section for section in sections if section]))


def _predict(
    trial: Trial,
    rules: Mapping[str, Any] | None,
    objective: str | Objective,
    random_state: int | None,
    thumbnails: Mapping[str, bytes],
) -> _Data:
    """Fit every rule once for each fold, and the headline rule on all videos, whose weights the page shows."""
    rules = checked_rules(rules, trial)
    copies = {name: trial.fit(rule) for name, rule in rules.items()}
    fused = {name: trial.predict(fitted) for name, fitted in copies.items()}
    board = Leaderboard.of(
        board_of(
            trial.scored,
            fused,
            trial.protocol,
            best=best_single(trial.fit_stack, objective),
            average=plain_average(trial, rules, fused),
            objective=objective,
            random_state=random_state,
        )
    )
    first = board.headline_rule
    predictions = np.stack([log_proba_of(trial.scored, name).argmax(axis=1) for name in trial.scored.members], axis=1)
    if trial.scored.present is not None:
        predictions[~trial.scored.present] = -1
    return _Data(
        trial=trial,
        board=board,
        fused=fused[first],
        rule=clone(rules[first]).fit(trial.fit_stack) if trial.protocol.folds else copies[first][0],
        single=log_proba_of(trial.scored, board.best_single),
        predictions=predictions,
        thumbnails=thumbnails,
    )


def _page(title: str, data: _Data, sections: list[str]) -> str:
    board = data.board
    facts = {
        f"{len(data.scored):,}": "videos scored",
        f"{data.scored.n_classes:,}": "classes",
        f"{len(data.scored.members)}": "members",
        percent(board.entry(board.best_single).score.accuracy) + " %": f"best single: {board.best_single}",
        percent(oracle_accuracy(data.predictions == data.labels[:, None])) + " %": "right in at least one member",
    }
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for value, name in facts.items())
    style = files("vidfuse.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{style}</style>\n</head>\n'
        f'<body>\n<header><p class="title">{escape(title)}</p><h1>{escape(board.headline())}</h1>'
        f'<p class="{"warning" if board.how_scored.flatters else "how"}">{escape(board.how())}</p>'
        f'<dl class="facts">{listed}</dl></header>\n'
        f"<main>\n{''.join(sections)}</main>\n<footer>Written by vidfuse {__version__}.</footer>\n</body>\n</html>\n"
    )


def _section(heading: str, text: str, *parts: Table | str) -> str:
    body = "".join(f'<div class="scroll">{part.to_html() if isinstance(part, Table) else part}</div>' for part in parts)
    intro = f"<p>{escape(text)}</p>" if text else ""
    return f"<section><h2>{escape(heading)}</h2>{intro}{body}</section>\n"


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _leaderboard_section(data: _Data) -> str:
    marks = []
    for entry in data.board.entries:
        s = entry.score
        role = "headline" if s.name == data.board.headline_rule else "fusion" if entry.fused else "member"
        marks.append(svg.Mark(s.name, s.accuracy, *s.accuracy_interval, role=role))
    reference = data.board.entry(data.board.best_single).score.accuracy
    drawing = svg.dot_plot(marks, title="Top-1 accuracy of members and fusion rules", reference=reference)
    caption = (
        "Top-1 accuracy with 95 % intervals (Wilson). Grey: members. "
        f"Dashed: the best single member ({data.single_name}), chosen on {data.board.chosen_on}."
    )
    return _section("Leaderboard", "", _figure(drawing, caption), data.board.table())


def _weights_section(data: _Data) -> str:
    weights = np.asarray(getattr(data.rule, "weights_", ()), dtype=np.float64)
    members = [str(name) for name in data.rule.members_]
    if weights.shape != (len(members),):
        return ""
    order = np.argsort(-weights, kind="stable")
    drawing = svg.weight_bars([members[i] for i in order], weights[order].tolist(), title="Weights of the members")
    temperature = getattr(data.rule, "temperature_", None)
    text = (
        f"The weights of “{data.board.headline_rule}”, fitted on {len(data.trial.fit_stack):,} videos; they sum to 1."
    )
    if temperature is not None:
        text += f" The pool's temperature is {float(temperature):.3g}: below 1 it is surer than the members' average."
    if getattr(data.rule, "class_weights_", None) is not None:
        text += " Around them each class has weights and a bias of its own, shrunk to what the picture shows."
    return _section("Weights", text, drawing)


def _contributions_section(data: _Data) -> str:
    members = data.scored.members
    if not 2 <= len(members) <= _MOST_SHAPLEY or data.scored.present is not None:
        return ""
    pool = LogLinearPool(weights="accuracy")
    shapley = shapley_values(data.scored, objective="accuracy", rule=pool)
    subsets = search_subsets(data.scored, objective="accuracy", rule=pool).table
    order = sorted(members, key=lambda name: -shapley.values[name])
    rows = []
    for name in order:
        alone = data.board.entry(name).score.accuracy
        lost = shapley.full - subsets.score_of(set(members) - {name})
        rows.append((name, percent(alone), points(shapley.values[name]), points(lost)))
    text = (
        "What each member brings to score-weighted fusion. Shapley: points of accuracy that it adds, averaged over all "
        f"orders of adding the members; they sum to {percent(shapley.full)} % less the {percent(shapley.empty)} % of "
        "chance. Left out: points lost without it, with all others there. Weights are the members' accuracies on the "
        "scored videos."
    )
    table = Table(("member", "alone %", "Shapley", "left out"), tuple(rows))
    return _section("Contributions", text, table)


def _classes_section(data: _Data) -> str:
    single_hits = data.single.argmax(axis=1) == data.labels
    shifts = []
    for k in np.unique(data.labels):
        rows = data.labels == k
        before, after = float(single_hits[rows].mean()), float(data.hits[rows].mean())
        shifts.append(svg.Shift(data.names[k], before, after, int(rows.sum())))
    shifts.sort(key=lambda shift: (shift.before - shift.after, shift.label))
    total = len(shifts)
    if total > _MOST_CLASSES:
        shifts = shifts[: _MOST_CLASSES // 2] + shifts[-(_MOST_CLASSES // 2) :]
    better = sum(shift.after > shift.before for shift in shifts)
    worse = sum(shift.after < shift.before for shift in shifts)
    drawing = svg.shift_plot(shifts, title="Accuracy by class", before=data.single_name, after="fusion")
    half = len(shifts) // 2
    shown = (
        ""
        if total == len(shifts)
        else f" Of {total} classes, the {half} that gain most and the {half} that gain least."
    )
    text = f"From the best single member ({data.single_name}, open) to the fusion (filled); points at the right.{shown}"
    return _section("Classes", text, _figure(drawing, f"{better} of the classes shown gain, {worse} lose."))


def _agreement_section(data: _Data) -> str:
    if len(data.scored.members) < 2:
        return ""
    same = 1 - prediction_disagreement(data.predictions)
    members = data.scored.members
    texts = [[percent(value, 0) for value in row] for row in same] if len(members) <= 16 else None
    drawing = svg.heat_map(
        same, members, members, title="Agreement of the members", texts=texts, palest=float(same.min()) - 0.02
    )
    text = "Share of videos, in %, for which two members predict the same class. Members that agree less add more."
    return _section("Agreement", text, drawing)


def _calibration_section(data: _Data) -> str:
    series, rows = [], []
    for name, role, z in ((data.single_name, "member", data.single), ("fusion", "headline", data.fused)):
        r = reliability(data.labels, z, n_bins=10)
        bins = zip(r.confidence.tolist(), r.accuracy.tolist(), r.counts.tolist(), strict=True)
        series.append((name, role, [svg.Bin(c, a, int(n)) for c, a, n in bins if n >= _FEWEST]))
        entry = data.board.entry(name if role == "member" else data.board.headline_rule).score
        confidence = float(np.exp(z.max(axis=1).astype(np.float64)).mean())
        rows.append((name, percent(confidence), percent(entry.accuracy), number(100 * entry.ece, 1), number(entry.nll)))
    drawing = svg.reliability_diagram(series, title="Calibration")
    table = Table(("", "mean confidence %", "accuracy %", "ECE %", "NLL"), tuple(rows), strong=frozenset([1]))
    caption = (
        f"Ten bins of confidence (those of at least {_FEWEST} videos); larger dots hold more, bars count the fusion's. "
        "Below the dashed line the confidence is too high, above it too low."
    )
    pair = f'<div class="pair">{_figure(drawing, caption)}<div>{table.to_html()}</div></div>'
    return _section("Calibration", "Can the probabilities be taken at their word?", pair)


def _confusion_section(data: _Data) -> str:
    predicted = data.fused.argmax(axis=1)
    k = data.scored.n_classes
    matrix = np.bincount(data.labels * k + predicted, minlength=k * k).reshape(k, k)
    wrong = matrix - np.diag(np.diag(matrix))
    if not wrong.any():
        return ""
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [(int(i) // k, int(i) % k, int(wrong.flat[i])) for i in order if wrong.flat[i]]
    table = Table(
        ("true class", "videos", "predicted instead"),
        tuple((data.names[i], f"{n} of {int(matrix[i].sum())}", data.names[j]) for i, j, n in pairs),
    )
    errors = wrong.sum(axis=1) + wrong.sum(axis=0)
    shown = np.arange(k) if k <= _MOST_CELLS else np.sort(np.argsort(-errors, kind="stable")[:_MOST_CELLS])
    counts = matrix[np.ix_(shown, shown)]
    totals = np.maximum(matrix[shown].sum(axis=1, keepdims=True), 1)
    labels = [data.names[i] for i in shown]
    texts = [[str(n) if n else "" for n in row] for row in counts] if len(shown) <= 16 else None
    drawing = svg.heat_map(counts / totals, labels, labels, title="Confusion of the fusion", texts=texts)
    rest = "" if len(shown) == k else f" The {len(shown)} of {k} classes with the most errors."
    figure = _figure(drawing, f"Rows: true classes; columns: predictions of the fusion.{rest}")
    pair = f'<div class="pair">{figure}<div>{table.to_html()}</div></div>'
    return _section("Confusions", "What the fusion still takes for something else.", pair)


def _mistakes_section(data: _Data) -> str:
    confidence = np.exp(data.fused.max(axis=1))
    wrong = np.flatnonzero(~data.hits)
    if wrong.size == 0:
        return ""
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MOST_MISTAKES]
    items = []
    for row in worst:
        name = f"row {row}" if data.scored.ids is None else str(data.scored.ids[row])
        image = data.thumbnails.get(name)
        picture = "" if image is None else f'<img alt="" src="{_data_url(image, name)}">'
        votes = int((data.predictions[row] == data.labels[row]).sum())
        items.append(
            f'<li>{picture}<span class="said">{escape(data.names[int(data.fused[row].argmax())])}</span> '
            f"at {percent(float(confidence[row]), 0)} %, is <strong>{escape(data.names[data.labels[row]])}</strong> "
            f"({votes} of {len(data.scored.members)} members right)<span class='id'>{escape(name)}</span></li>"
        )
    text = f"The fusion is wrong on {wrong.size:,} of {len(data.labels):,} videos; these are the most confident ones."
    return _section("Confident mistakes", text, f'<ul class="mistakes">{"".join(items)}</ul>')


def _method_section(data: _Data) -> str:
    rows = tuple(zip(data.trial.fit_stack.members, data.trial.fit_stack.kinds, strict=True))
    members = Table(("member", "numbers"), rows)
    settings = {
        "headline rule": f"{data.board.headline_rule}: {data.rule!r}",
        "scores": data.board.how(),
        "intervals": "95 %: Wilson; mean class accuracy from variances within classes; groups count as wholes",
        "p-value": f"against the best single member (chosen on {data.board.chosen_on}), two-sided; see the leaderboard",
        "calibration error": "15 bins of equal width",
        "order": "checked by id" if data.board.how_scored.order_checked else "unchecked (no ids)",
        "vidfuse": __version__,
    }
    listed = escape(json.dumps(settings, indent=2, ensure_ascii=False))
    return _section(
        "How this was computed", "", f"<details><summary>Settings</summary><pre>{listed}</pre></details>", members
    )


def _data_url(image: bytes, name: str) -> str:
    formats = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
    for start, suffix in formats.items():
        if image.startswith(start):
            return f"data:image/{suffix};base64,{base64.b64encode(image).decode('ascii')}"
    raise InputError(f"the thumbnail of {name!r}: expected the bytes of a PNG, JPEG, GIF or WebP image")
