"""The report: one self-contained HTML page that answers first, and then shows what the answer rests on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from vidfuse._files import replace
from vidfuse._tables import percent
from vidfuse.evaluation.scores import best_single, log_proba_of
from vidfuse.evaluation.trial import Trial, open_trial
from vidfuse.metrics import oracle_accuracy
from vidfuse.report.combinations import combinations_of
from vidfuse.report.page import facts, page
from vidfuse.report.sections import Findings, sections_of
from vidfuse.report.tables import board_of, checked_rules, own_rules
from vidfuse.stack.stack import LogitStack

__all__ = ["write_report"]

_MOST_REFITTED = 16  # members: the headline rule is fitted anew on each of their growing combinations


def write_report(
    stack: LogitStack,
    path: str | os.PathLike[str],
    *,
    test: LogitStack | None = None,
    rules: Mapping[str, Any] | None = None,
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
        folds: The number of folds without `test`; 0 for in-sample scores, which the page then says.
        groups: What each video of `stack` comes from, as in `LogitStack.with_groups`; by default the stack's own. No
            fold splits a group.
        views: How views are reduced where the stack has them.
        title: The page's title.
        thumbnails: Video id → a PNG, JPEG, GIF or WebP image, shown with the mistakes.
        random_state: Seed of the folds.

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
    found = _found(trial, trial.reduced(views), rules, thumbnails or {})
    board = found.board
    text = page(
        title,
        board.headline(),
        board.how(),
        flatters=board.how_scored.flatters,
        strip=_facts(found),
        sections=sections_of(found),
    )
    return replace(path, text)


def _found(
    with_views: Trial, trial: Trial, rules: Mapping[str, Any] | None, thumbnails: Mapping[str, bytes]
) -> Findings:
    """Fit every rule once for each fold, and the headline rule on all videos, whose weights the page shows."""
    rules = checked_rules(rules, trial)
    copies = {name: trial.fit(rule) for name, rule in rules.items()}
    fused = {name: trial.predict(fitted) for name, fitted in copies.items()}
    board = board_of(trial.scored, fused, trial.protocol, best_single(trial.fit_stack))
    first = board.headline_rule
    predictions = np.stack([log_proba_of(trial.scored, name).argmax(axis=1) for name in trial.scored.members], axis=1)
    if trial.scored.present is not None:
        predictions[~trial.scored.present] = -1
    few = len(trial.scored.members) <= _MOST_REFITTED
    return Findings(
        trial=trial,
        board=board,
        combinations=combinations_of(with_views, trial, rules=own_rules(rules) if few else {}),
        fused=fused[first],
        rule=clone(rules[first]).fit(trial.fit_stack) if trial.protocol.folds else copies[first][0],
        single=log_proba_of(trial.scored, board.best_single),
        predictions=predictions,
        thumbnails=thumbnails,
    )


def _facts(found: Findings) -> str:
    board, scored = found.board, found.scored
    oracle = oracle_accuracy(found.predictions == found.labels[:, None])
    return facts(
        [
            ("videos scored", f"{len(scored):,}"),
            ("classes", f"{scored.n_classes:,}"),
            ("members", f"{len(scored.members)}"),
            (f"best single: {board.best_single}", f"{percent(board.entry(board.best_single).score.accuracy)} %"),
            ("right in at least one member", f"{percent(oracle)} %"),
        ]
    )
