"""The report: one self-contained HTML page that answers first, and then shows what the answer rests on."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import get_tags

from vidfuse._checks import check_count
from vidfuse._files import replace
from vidfuse._tables import percent
from vidfuse.errors import InputError
from vidfuse.evaluation.curve_of_members import joining_order, members_curve_of
from vidfuse.evaluation.curve_of_videos import learning_curve_of, most_videos
from vidfuse.evaluation.curve_of_views import views_curve_of
from vidfuse.evaluation.curves import Curve
from vidfuse.evaluation.resampling import Draw
from vidfuse.evaluation.scores import floor_of, log_proba_of
from vidfuse.evaluation.trial import Trial, open_trial
from vidfuse.evaluation.worth import worth_of
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.metrics import oracle_accuracy, risk_coverage
from vidfuse.metrics.objectives import Objective
from vidfuse.report import figures as paper
from vidfuse.report.combinations import combinations_of, growing
from vidfuse.report.page import facts, page
from vidfuse.report.pictures import Pictures
from vidfuse.report.sections import Findings, sections_of
from vidfuse.report.tables import checked_rules, judged, own_rules
from vidfuse.selection.contribution import diversity
from vidfuse.stack.source import ArraySource
from vidfuse.stack.stack import LogitStack

__all__ = ["check_page", "findings_of", "write_findings", "write_report"]

_MOST_NUMBERS = 10_000_000
"""Scores that further fits of the headline rule may read: seconds. What needs more is left out, and that is said."""

_MOST_FITS = 60  # in all folds; a fit of the default takes a tenth of a second on few videos, too

_FEWEST = 60  # videos of the fit that a learning curve needs

_SHARES = (0.05, 0.1, 0.25, 0.5)  # of the videos of the fit, before all of them, on a learning curve


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
    thumbnails: Mapping[str, bytes] | str | os.PathLike[str] | None = None,
    costs: Mapping[str, float] | None = None,
    curves: bool = True,
    sample: int | None = None,
    figures: str | os.PathLike[str] | None = None,
    formats: Sequence[str] = ("svg", "pdf", "png"),
    random_state: int | None = 0,
) -> Path:
    """Write one HTML page on what fusing the members is worth; nothing is loaded from elsewhere when it is opened.

    The page answers first (accuracy with its 95 % interval, gain over the best single member, p-value), says what to do
    about it, and goes on with the leaderboard, weights, what each member is worth, the growing combinations, curves,
    classes, the agreement of the members, calibration, confusions and the most confident mistakes. Scores are taken as
    `leaderboard` takes them. Where fitting the headline rule again and again would take minutes (more than 10 million
    scores to read), the page leaves out what needs it, and says by which call it is had.

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
        thumbnails: A folder of pictures that are named by the videos' ids, or a mapping from the id to the bytes of a
            PNG, JPEG, GIF or WebP image of at most 100 kB; those of the mistakes are shown. For a folder of videos, or
            of larger pictures, pass `vidfuse.video.Thumbnails(folder)`.
        costs: Member → what it costs, in one unit, for accuracy against cost; by default each costs 1.
        curves: Whether the headline rule is fitted on fewer videos, members and views, too.
        sample: How many videos of each stack the page is made from, at most, drawn by chance in whole groups; it says
            so. A page fits every rule once for each fold, which takes hours for millions of videos.
        figures: A folder for the figures, as for a paper (needs matplotlib, the extra `report`).
        formats: The figures' formats.
        random_state: Seed of folds, resamples and sign flips.

    Returns:
        The path.

    Raises:
        InputError: labels are missing, the path does not end in .html, a thumbnail is of no known format or too large,
            or costs are of other members.
        MissingExtraError: figures are asked for, and matplotlib is not installed.

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
    check_page(path)
    found = findings_of(
        stack,
        test,
        rules=rules,
        objective=objective,
        folds=folds,
        groups=groups,
        views=views,
        thumbnails=thumbnails,
        costs=costs,
        curves=curves,
        sample=sample,
        random_state=random_state,
    )
    return write_findings(found, path, title, figures, formats)


def sampled(stack: LogitStack, most: int | None, random_state: int | None = 0) -> LogitStack:
    """Return at most so many videos of a stack, drawn by chance, in whole groups where there are such, in their order.

    Raises:
        InputError: `most` is no whole number of at least 1, or no group has so few videos.

    Example:
        >>> stack = LogitStack.from_arrays(np.zeros((9, 2, 3)), ids=list("abcdefghi"))
        >>> len(sampled(stack, 4)), len(sampled(stack.with_groups([0, 0, 0, 1, 1, 1, 2, 2, 2]), 7))
        (4, 6)
    """
    if most is None:
        return stack
    check_count("sample", most)
    if len(stack) <= most:
        return stack
    rng = np.random.default_rng(random_state)
    if stack.groups is None:
        return stack[np.sort(rng.choice(len(stack), most, replace=False))]
    _, owner, sizes = np.unique(stack.groups, return_inverse=True, return_counts=True)
    order = rng.permutation(len(sizes))
    taken = order[np.cumsum(sizes[order]) <= most]
    if not len(taken):
        taken = order[sizes[order] <= most][:1]
    if not len(taken):
        raise InputError(f"sample: expected room for a group, of at least {sizes.min():,} videos, got {most:,}")
    return stack[np.flatnonzero(np.isin(owner, taken))]


def held(trial: Trial) -> Trial:
    """Return a trial with its scores in memory: a page reads them hundreds of times."""
    fit_stack = _held(trial.fit_stack)
    scored = fit_stack if trial.scored is trial.fit_stack else _held(trial.scored)
    return dataclasses.replace(trial, fit_stack=fit_stack, scored=scored)


def _held(stack: LogitStack) -> LogitStack:
    n, present = len(stack), stack.present
    members = []
    for column, member in enumerate(stack.sources()):
        rows = slice(0, n, 1) if present is None else np.where(present[:, column], np.arange(n), -1)
        members.append(dataclasses.replace(member, source=ArraySource(stack.scores(member.name)), rows=rows))
    return stack.changed(members)


def check_page(path: str | os.PathLike[str]) -> None:
    """Refuse a path that a page cannot have.

    Raises:
        InputError: it does not end in .html.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path}: expected a file name that ends in .html, as the report is a page")


def findings_of(
    stack: LogitStack,
    test: LogitStack | None = None,
    *,
    rules: Mapping[str, Any] | None = None,
    objective: str | Objective = "accuracy",
    folds: int = 5,
    groups: Any = None,
    views: str | Mapping[str, str] = "mean-log",
    thumbnails: Mapping[str, bytes] | str | os.PathLike[str] | None = None,
    costs: Mapping[str, float] | None = None,
    curves: bool = True,
    sample: int | None = None,
    random_state: int | None = 0,
) -> Findings:
    """Return all that a page is made of; the arguments are those of `write_report`.

    Every rule is fitted once for each fold, and the headline rule on all videos, whose weights the page shows.
    """
    # 1. What is judged: the videos (perhaps a sample of them), the rules, the board.
    # 2. What is fitted again, if that is affordable: the headline rule without each member, on growing combinations,
    #    and for the curves on fewer videos and views. One trial keeps all fits, so that none is made twice.
    pictures = thumbnails if isinstance(thumbnails, Mapping) else {} if thumbnails is None else Pictures(thumbnails)
    if groups is not None:
        by_id = callable(groups) or isinstance(groups, Mapping)
        stack, test = stack.with_groups(groups), test.with_groups(groups) if test is not None and by_id else test
    drawn_from = tuple(len(one) for one in (stack, test) if one is not None)
    stack, test = sampled(stack, sample, random_state), None if test is None else sampled(test, sample, random_state)
    with_views = open_trial(stack, test, folds=folds, random_state=random_state, what="a report")
    if drawn_from != tuple(len(one) for one in (stack, test) if one is not None):
        with_views = held(with_views)  # only now: without ids, the sources tell which videos are in both stacks
    trial = with_views.reduced(views)
    rules = checked_rules(rules, trial)
    board, fused = judged(trial, rules, objective, random_state=random_state)
    first = board.headline_rule
    members = trial.scored.members
    draw = Draw(trial.labels, objective, random_state=random_state, groups=trial.scored.groups)
    predictions = np.stack([log_proba_of(trial.scored, name).argmax(axis=1) for name in members], axis=1)
    if trial.scored.present is not None:
        predictions[~trial.scored.present] = -1
    own = own_rules(rules)
    sizes = range(2, len(members))  # of the growing combinations, but for all members
    again = {name: rule for name, rule in own.items() if _affordable(trial, rule, sizes)}
    order = None  # of joining: one for the table and for the curve, so that what is fitted for one serves the other
    if curves and len(members) > 1 and not trial.protocol.flatters and _affordable(trial, rules[first], sizes):
        order = joining_order(trial.fit_stack, objective)
    worth = None
    if len(members) > 1 and _affordable(trial, rules[first], [len(members) - 1] * len(members)):
        worth = worth_of(trial, rules[first], draw, fused[first])
    found = Findings(
        trial=trial,
        board=board,
        combinations=combinations_of(with_views, trial, growing(trial.fit_stack, order), again, fused),
        worth=worth,
        curves=(),
        left_out=(),
        fused=fused[first],
        headline=rules[first],
        rule=clone(rules[first]).fit(trial.fit_stack) if trial.protocol.folds else trial.fit(rules[first])[0],
        single=log_proba_of(trial.scored, board.best_single),
        predictions=predictions,
        thumbnails=pictures,
        drawn_from=drawn_from,
    )
    if not curves:
        return found
    drawn, left_out = _curves(found, with_views, draw, views, costs, order)
    return dataclasses.replace(found, curves=tuple(drawn), left_out=tuple(left_out))


def write_findings(
    found: Findings,
    path: str | os.PathLike[str],
    title: str,
    figures: str | os.PathLike[str] | None = None,
    formats: Sequence[str] = ("svg", "pdf", "png"),
) -> Path:
    """Write the page, and the figures if a folder is given; the arguments are those of `write_report`."""
    if figures is not None:
        _write_figures(found, Path(figures), formats)
    board = found.board
    text = page(
        title,
        board.headline(),
        f"{board.how()}{found.drawn()}",
        flatters=board.how_scored.flatters,
        strip=_facts(found),
        sections=sections_of(found),
    )
    return replace(path, text)


def _affordable(trial: Trial, rule: Any, members: Sequence[float]) -> bool:
    """Return whether a rule may be fitted once for each entry, on so many members, without minutes of waiting."""
    if not get_tags(rule).target_tags.required:
        return True
    folds = trial.protocol.folds
    numbers = len(trial.fit_stack) * trial.fit_stack.n_classes * sum(members) * max(folds - 1, 1)
    return numbers <= _MOST_NUMBERS and len(members) * max(folds, 1) <= _MOST_FITS


def _curves(
    found: Findings,
    with_views: Trial,
    draw: Draw,
    views: str | Mapping[str, str],
    costs: Mapping[str, float] | None,
    order: Sequence[str] | None,
) -> tuple[list[Curve], list[str]]:
    """Return how the headline rule does with fewer labelled videos, members and views, and why a curve is left out."""
    trial, rule, name = found.trial, found.headline, found.board.headline_rule
    if found.board.how_scored.flatters:
        return [], ["No curves are drawn in-sample: score the rules on other videos first."]
    m, n = len(trial.fit_stack.members), len(trial.fit_stack)
    curves, left_out = list[Curve](), list[str]()
    minutes = f"Fitting “{name}” again and again on fewer {{}} would take minutes here; `{{}}` does it."
    if n < _FEWEST:
        left_out.append(f"A learning curve needs {_FEWEST} videos of the fit, and here are {n:,}.")
    elif not _affordable(trial, rule, [share * m for share in (*_SHARES, 1)]):
        left_out.append(minutes.format("videos", "learning_curve"))
    else:
        most = most_videos(trial)
        sizes = sorted({most, *(round(most * share) for share in _SHARES if most * share >= 20)})
        floor = floor_of(trial.fit_stack, trial.scored)
        average = LogLinearPool(
            weights="uniform", floor=floor, missing="renormalise"
        )  # as on the board: fitted already
        rules = {name: rule, "average of log-likelihoods": average}
        curves.append(learning_curve_of(trial, rules, draw, sizes, repeats=1))
    if order is not None:
        curves.append(members_curve_of(trial, rule, draw, order, costs))
    elif m > 1:
        left_out.append(minutes.format("members", "members_curve"))
    n_views = with_views.scored.n_views
    if n_views is None or n_views < 2:
        return curves, left_out
    sizes = sorted({v for v in (1, 2, 3, 5, 10, n_views) if v <= n_views})
    if not isinstance(views, str) or with_views.fit_stack.n_views != n_views:
        left_out.append("A curve of views takes as many views of every video, all reduced alike, and here they differ.")
    elif not _affordable(trial, rule, [m] * len(sizes)):
        left_out.append(minutes.format("views", "views_curve"))
    else:
        curves.append(views_curve_of(with_views, rule, draw, views, sizes))
    return curves, left_out


def _write_figures(found: Findings, folder: Path, formats: Sequence[str]) -> None:
    """Write what the page shows as figures for a paper; all are drawn before the first is written."""
    drawn = {"leaderboard": paper.leaderboard(found.board), "reliability": paper.reliability(found.reliability())}
    risks = {name: risk_coverage(found.labels, z) for name, z in found.pair().items()}
    drawn["risk"] = paper.risk(risks)
    if len(found.scored.members) > 1:
        drawn["agreement"] = paper.agreement(diversity(found.scored, found.labels))
    if found.worth is not None:
        drawn["contributions"] = paper.worth(found.worth)
    for curve in found.curves:
        costs = curve.x_name == "members" and not math.isnan(curve.points[0].cost)
        drawn["cost" if costs else f"{curve.x_name}-curve"] = paper.curve(curve)
    for name, ax in drawn.items():
        paper.save(ax, folder / name, formats)
        paper.close(ax)


def _facts(found: Findings) -> str:
    board, scored = found.board, found.scored
    oracle = oracle_accuracy(found.predictions == found.labels[:, None])
    n_groups = board.how_scored.n_scored_groups
    best = [("best single", board.best_single)]
    if board.best_on_scored != board.best_single:
        best = [("best single on the fit", board.best_single), ("best single on these videos", board.best_on_scored)]
    return facts(
        [
            ("videos scored", f"{len(scored):,}"),
            *([] if n_groups is None else [("groups that they come in", f"{n_groups:,}")]),
            ("classes", f"{scored.n_classes:,}"),
            ("members", f"{len(scored.members)}"),
            *((f"{said}: {name}", f"{percent(board.entry(name).score.accuracy)} %") for said, name in best),
            ("right in at least one member", f"{percent(oracle)} %"),
        ]
    )
