"""The model card of a recipe: what an ensemble is made of, what was chosen, how good it is, as a page of Markdown."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from vidfuse._checks import per_member
from vidfuse._files import replace
from vidfuse.networks import catalogue
from vidfuse.recipe import Recipe, arrays_beside
from vidfuse.report.tables import Leaderboard

__all__ = ["card_path", "model_card", "renew_card", "write_card"]

_MOST_CLASSES = 20  # names that the card lists
_RECORD, _FILES = "## How it does on videos that it had not seen", "## Files, and how to load them"


def model_card(
    recipe: Recipe,
    path: str | os.PathLike[str] | None = None,
    *,
    board: Leaderboard | None = None,
    sources: Mapping[str, str | Sequence[str]] | None = None,
    licences: Mapping[str, str] | None = None,
) -> str:
    """Return a recipe's model card in Markdown.

    It says what the recipe knows: members, weights, checkpoints, what the fit chose and among what, on how many videos.
    What it does not know it calls unknown. No path of this machine stands in it, only names.

    Args:
        recipe: The fitted ensemble.
        path: Its file, whose digest the card gives, and that of the arrays beside it; None where it is not saved.
        board: Scores of the rule, from `vidfuse.leaderboard`; the card says on which videos they were taken. Without
            it, the card says that nothing was scored.
        sources: {member: where its scores came from}, one name or several.
        licences: {member: the licence of its weights}; "not stated" where left out, beside the licence that the
            published weights have where a member bears the name of a network of the catalogue.

    Raises:
        InputError: `sources` or `licences` name other members.
        OSError: The recipe's file cannot be read.

    Example:
        >>> import numpy as np, vidfuse as vf
        >>> stack = vf.LogitStack.from_arrays({"swin": 2 * np.eye(2), "x3d": 3 * np.eye(2)}, labels=[0, 1])
        >>> recipe = vf.Recipe.from_fitted(vf.LogLinearPool("uniform").fit(stack), stack)
        >>> [line for line in model_card(recipe, licences={"x3d": "MIT"}).splitlines() if "x3d |" in line]
        ['| x3d | 0.5000 | logits | not stated | unknown | MIT |']
    """
    names = list(recipe.members)
    told = per_member(sources, names, "sources", ()), per_member(licences, names, "licences", ())
    classes = "" if recipe.classes is None else f"\n\nClasses, in order: {_few(recipe.classes)}."
    views = "" if recipe.views is None else f" Views of a video are reduced first: {_views(recipe.views)}."
    return "\n".join(
        [
            f"# Model card: an ensemble of {len(names)} classifiers of videos",
            "",
            f"`{_bare(recipe.rule)}` fuses the predictions of {_and(names)} into the probabilities of "
            f"{recipe.n_classes} classes.{views}{classes}",
            "",
            *_members(recipe, *told),
            "",
            *_choices(recipe),
            "",
            *_figures(board),
            "",
            *_record(recipe),
            *_use(recipe, None if path is None else Path(path)),
            "",
        ]
    )


def write_card(recipe: Recipe, path: str | os.PathLike[str], **told: Any) -> Path:
    """Write a recipe's model card beside it, as `card_path` says; return its path.

    Args:
        recipe: The fitted ensemble.
        path: The recipe's file.
        **told: Every keyword of `model_card`.

    Example:
        >>> import tempfile
        >>> import numpy as np, vidfuse as vf
        >>> stack = vf.LogitStack.from_arrays({"swin": 2 * np.eye(2), "x3d": 3 * np.eye(2)}, labels=[0, 1])
        >>> recipe = vf.Recipe.from_fitted(vf.LogLinearPool("uniform").fit(stack), stack)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_card(recipe, recipe.save(f"{folder}/ensemble.json")).name
        'ensemble.card.md'
    """
    return replace(card_path(path), model_card(recipe, path, **told))


def card_path(path: str | os.PathLike[str]) -> Path:
    """Return where the card of a recipe's file stands.

    Example:
        >>> card_path("runs/ensemble.json").as_posix()
        'runs/ensemble.card.md'
    """
    return Path(path).with_suffix(".card.md")


def renew_card(recipe: Recipe, path: str | os.PathLike[str], of: str | os.PathLike[str] | None = None) -> Path | None:
    """Write a card's record and digests anew, after a recipe with one was saved again; None where there is no card.

    Args:
        recipe: The recipe as it is now.
        path: Its file; the card is written beside it.
        of: The file whose card is taken; by default the same.

    Example:
        >>> import tempfile
        >>> import numpy as np, vidfuse as vf
        >>> stack = vf.LogitStack.from_arrays({"swin": 2 * np.eye(2), "x3d": 3 * np.eye(2)}, labels=[0, 1])
        >>> recipe = vf.Recipe.from_fitted(vf.LogLinearPool("uniform").fit(stack), stack)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = recipe.save(f"{folder}/ensemble.json")
        ...     renew_card(recipe, path) is None, renew_card(recipe, write_card(recipe, path) and path).name
        (True, 'ensemble.card.md')
    """
    card = card_path(path if of is None else of)
    if not card.is_file():
        return None
    kept = card.read_text(encoding="utf-8")
    for heading in (_RECORD, _FILES):
        kept = kept.partition(f"\n{heading}\n")[0]
    lines = [kept.rstrip("\n"), "", *_record(recipe), *_use(recipe, Path(path)), ""]
    return replace(card_path(path), "\n".join(lines))


def _members(recipe: Recipe, sources: Mapping[str, Any], licences: Mapping[str, str | None]) -> list[str]:
    weights = np.asarray(getattr(recipe.rule, "weights_", ()))
    order = [str(name) for name in recipe.rule.members_]
    shares = dict(zip(order, weights.tolist(), strict=True)) if weights.shape == (len(order),) else {}
    needed = recipe.needed_members()
    rows = [("member", "weight", "numbers", "scores from", "checkpoint", "licence of its weights")]
    for name in recipe.members:
        prints = recipe.fingerprints.get(name, ())
        share = f"{shares[name]:.4f}" if name in shares else "-"
        rows.append(
            (
                name,
                share if name in needed else f"{share} (not needed)",
                str(recipe.kinds.get(name, "logits")),
                _source(sources[name]),
                ", ".join(f"`{one}`" for one in prints) or "unknown",
                _licence(name, licences[name]),
            )
        )
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    several = any(len(prints) > 1 for prints in recipe.fingerprints.values())
    notes = ["", "A checkpoint is a digest of the network's class name and weights, behind a name if it was given one."]
    notes[1] += " A member with several was predicted by models of several folds." if several else ""
    return ["## Members", "", lines[0], "|---" * len(rows[0]) + "|", *lines[1:], *notes]


def _source(given: Any) -> str:
    """Return where a member's scores came from: the names of files and folders, never a path from the root."""
    listed = [] if given is None else [given] if isinstance(given, str | os.PathLike) else list(given)
    return ", ".join("/".join(Path(one).parts[-2:]).removeprefix("/") for one in listed) or "not stated"


def _licence(member: str, given: str | None) -> str:
    """Return the licence of a member's weights, as far as it is known."""
    if given is not None:
        return given
    published = catalogue.info(member).licence if member in catalogue.names() else "none"
    return "not stated" + (f" (published weights: {published})" if published != "none" else "")


def _choices(recipe: Recipe) -> list[str]:
    seen = recipe.fitted_on
    fit = f"Fitted on {_count(seen.get('videos'))} videos"
    if "groups" not in seen:
        fit += "; whether some share a source is not known"
    else:
        fit += (
            ", as if each stood alone: no groups were given"
            if seen["groups"] is None
            else f" in {seen['groups']:,} groups"
        )
    order = "aligned by id" if recipe.order_checked else "matched by position: **order unchecked**"
    lines = [f"- {fit}; the members' rows were {order}."]
    if seen.get("best_single") is not None:
        lines.append(f"- The most accurate member on them was {seen['best_single']}.")
    lines += [f"- {_upper(choice)}." for choice in recipe.rule.choices()] or ["- The rule chose nothing by itself."]
    return ["## What was chosen, and on what", "", *lines]


def _figures(board: Leaderboard | None) -> list[str]:
    lines = ["## How good it is", ""]
    if board is None:
        return [
            *lines,
            "Not scored when this card was written. `vidfuse evaluate` scores the recipe on labelled videos.",
        ]
    return [*lines, board.headline(), "", board.table().to_markdown().strip()]


def _record(recipe: Recipe) -> list[str]:
    if recipe.record is None:
        return []
    return [_RECORD, "", f"`{recipe.record!r}`, for abstaining, sets of classes, and watching.", ""]


def _use(recipe: Recipe, path: Path | None) -> list[str]:
    name = "ensemble.json" if path is None else path.name
    lines = [_FILES, ""]
    if path is not None:
        arrays = arrays_beside(path)
        files = [path] if arrays is None else [path, arrays]
        lines += ["| file | SHA-256 |", "|---|---|"]
        lines += [f"| {_cell(one.name)} | `{hashlib.sha256(one.read_bytes()).hexdigest()}` |" for one in files]
        lines += ["", "They hold numbers and names, and no code. Keep them together.", ""]
    needed = ", ".join(f'"{member}": z{i}' for i, member in enumerate(recipe.needed_members(), start=1))
    return [
        *lines,
        "```python",
        "import vidfuse as vf",
        "",
        f'recipe = vf.load_recipe("{name}")',
        f"recipe.predict_proba({{{needed}}})  # arrays (N, {recipe.n_classes}), or a stack",
        "```",
        "",
        "Scores of other checkpoints than those above are refused, where caches know theirs. They are taken with "
        '`checkpoints="any"`, `--checkpoints any` on the command line; what is said above is then not known to hold.',
    ]


def _bare(rule: Any) -> str:
    return " ".join(repr(clone(rule)).split())


def _views(views: str | Mapping[str, str]) -> str:
    return views if isinstance(views, str) else ", ".join(f"{name} by {how}" for name, how in views.items())


def _few(classes: Sequence[str]) -> str:
    shown = ", ".join(map(_cell, classes[:_MOST_CLASSES]))
    return shown if len(classes) <= _MOST_CLASSES else f"{shown} and {len(classes) - _MOST_CLASSES} more"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _count(number: Any) -> str:
    return "an unknown number of" if number is None else f"{number:,}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _cell(text: str) -> str:
    """Return a text that may stand in a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")
