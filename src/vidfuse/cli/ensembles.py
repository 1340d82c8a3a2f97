"""`vidfuse fit`, `evaluate`, `select` and `report`: from caches to a fitted, scored rule."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

import vidfuse as vf
from vidfuse.cli import options
from vidfuse.cli.reading import GroupedReading, Reading, reads, takes_recipe
from vidfuse.errors import InputError, MissingExtraError, option

__all__ = ["evaluate", "fit", "report", "select"]

_RULES = {
    "log-linear": "LogLinearPool",
    "linear": "LinearPool",
    "vote": "MajorityVote",
    "borda": "BordaCount",
    "stacked": "StackedPool",
    "dynamic": "DynamicPool",
    "greedy": "GreedyPool",
    "cascade": "Cascade",
}
_SECONDS = 20_000_000  # scores that a rule is cross-fitted on unasked
_OBJECTIVES = ("accuracy", "mean-class-accuracy", "macro-f1", "nll")
_weights = click.option(
    "--weights",
    multiple=True,
    metavar="NAME|MEMBER=NUMBER",
    help="learned (default), uniform, accuracy, log-odds, inverse-nll, or a number for each member.",
)
_objective = click.option(
    "--objective",
    type=click.Choice(_OBJECTIVES),
    help="What is optimised, where a choice of members is: by select (accuracy by default) and by --rule greedy (nll).",
)


@dataclass(frozen=True)
class CascadeOptions:
    """What `--rule cascade` is told: parameters of `vidfuse.Cascade` by their names."""

    costs: tuple[str, ...] = options.asked(
        "--costs",
        multiple=True,
        metavar="MEMBER=NUMBER|FILE",
        help="What a member costs, for --rule cascade: GMACs (`vidfuse networks`) or milliseconds (`vidfuse "
        "networks NAME --measure`); once for each member, or a JSON file {member: number}.  [default: 1 each]",
    )
    risk: str | None = options.asked(
        "--risk",
        type=click.Choice(["accuracy", "label"]),
        help="What --rule cascade keeps, against all members: its accuracy (default), or their label.",
    )
    at_most: float | None = options.asked(
        "--at-most",
        type=options.SHARE,
        metavar="SHARE",
        help="How much of that --rule cascade may lose: 0.01 (default) is one point of accuracy, or one video's "
        "label in a hundred.",
    )
    confidence: float | None = options.asked(
        "--confidence",
        type=options.SHARE,
        metavar="SHARE",
        help="With which --rule cascade keeps that.  [default: 0.95]",
    )
    keep: float | None = options.asked(
        "--keep",
        type=click.FloatRange(0, 1),
        metavar="SHARE",
        help="Of what keeps that, --rule cascade takes the cheapest that is expected to keep this share of what "
        "all members gain over the best one; 0: the cheapest.  [default: 0.95]",
    )
    by: str | None = options.asked(
        "--by",
        type=click.Choice(["margin", "probability"]),
        help="What says how sure a stage of --rule cascade is: the margin of its label's probability to the "
        "second's (default), or that probability.",
    )
    order: tuple[str, ...] = options.asked(
        "--order",
        multiple=True,
        metavar="MEMBER",
        help="The order in which --rule cascade asks the members; once for each, first asked first.  [default: "
        "from cheap to dear, of equal ones the more accurate first]",
    )

    def given(self) -> dict[str, Any]:
        """Return what was said of the cascade."""
        stated = {**vars(self), "costs": _numbers(self.costs, "--costs"), "order": self.order or None}
        return {name: value for name, value in stated.items() if value is not None}


def _unfitted(
    rule: str,
    weights: tuple[str, ...],
    missing: str = "error",
    objective: str | None = None,
    cascade: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Return the unfitted rule that the options name."""
    if objective is not None and rule != "greedy":
        raise click.BadParameter(f"--objective belongs to --rule greedy, not to {rule}, which has one of its own")
    if weights and rule not in ("log-linear", "linear"):
        raise click.BadParameter(f"--weights belongs to --rule log-linear or linear, not to {rule}")
    if cascade and rule != "cascade":
        raise click.BadParameter(f"{option(next(iter(cascade)))} belongs to --rule cascade, not to {rule}")
    made = getattr(vf, _RULES[rule])(**cascade)
    if missing == "renormalise":
        if made.missing is None:
            raise click.BadParameter(f"--missing renormalise: {rule} needs every member; say --missing leave-out")
        made.set_params(missing=missing)
    if rule == "greedy":
        made.set_params(objective=objective or "nll")
    if weights:
        name = weights[0] if len(weights) == 1 and "=" not in weights[0] else None
        made.set_params(weights=name or _numbers(weights, "--weights"))
    return made


@click.command()
@reads(GroupedReading)
@click.option("--rule", type=click.Choice(list(_RULES)), default="log-linear", help="Fusion rule.")
@_weights
@_objective
@options.asks(CascadeOptions, "cascade")
@options.views
@options.out("ensemble.json", "The recipe to write; its model card is written beside it, as NAME.card.md.")
@click.option(
    "--licence",
    "licences",
    multiple=True,
    metavar="MEMBER=TEXT",
    help="The licence of a member's weights, for the model card.",
)
@click.option(
    "--check/--no-check",
    default=None,
    help="Cross-fit the rule on these videos, and say how it does beside members.  [default: if it takes seconds]",
)
@options.as_json
def fit(
    reading: GroupedReading,
    rule: str,
    weights: tuple[str, ...],
    objective: str | None,
    cascade: CascadeOptions,
    views: tuple[str, ...],
    out: Path,
    licences: tuple[str, ...],
    check: bool | None,
) -> None:
    """Fit a fusion rule on labelled predictions, and write it as a recipe.

    SOURCE is a folder of caches, shards of them, or MEMBER=FILE for each dump. A member may have
    several files (folds, shards): x3d=fold0.npz,fold1.npz or x3d='fold*.npz'.
    """
    from vidfuse.serving.card import write_card

    reduction = options.named_values(views, "MEMBER=REDUCTION")
    stack = reading.open(reduction)
    unfitted = _unfitted(rule, weights, reading.missing, objective, cascade.given())
    fitted = unfitted.fit(stack)
    recipe = vf.Recipe.from_fitted(fitted, stack, views=reduction)
    told: dict[str, Any] = {
        "sources": _sources(reading.source, recipe.members),
        "licences": options.pairs(licences, "MEMBER=TEXT"),
    }
    recipe.save(out)
    card = write_card(recipe, out, **told)  # at once: cross-fitting takes long, and the card there is another recipe's
    options.save_config(out)
    board, said = None, ""
    if check is None and math.prod(stack.shape) > _SECONDS:
        said = "\nnot cross-fitted, which would take minutes here; --check does it"
    elif check is not False:
        try:
            board = _cross_fitted(unfitted, stack)
            said = f"\n{board.headline()} {board.how()}"
        except InputError as error:  # the recipe is written: too few videos for folds, or a member with too few
            said = f"\nnot cross-fitted: {error}"
    if board is not None:
        write_card(recipe, out, board=board, **told)
    result = {"out": out, "card": card, **recipe.describe(), "check": None if board is None else board.to_dict()}
    options.emit(result, f"{recipe}\nwritten to {out}, its model card to {card}{said}")


def _sources(source: tuple[str, ...], members: Sequence[str]) -> dict[str, list[str]]:
    """Return where each member's scores come from: its cache in the folder, or its files.

    Example:
        >>> _sources(("caches/val",), ["x3d"]), _sources(("x3d=a.npz,b.npz",), ["x3d"])
        ({'x3d': ['val/x3d']}, {'x3d': ['a.npz', 'b.npz']})
    """
    if any("=" in word for word in source):
        named = options.pairs(source, "MEMBER=FILE")
        return {name: [Path(one).name for one in named[name].split(",")] for name in members if name in named}
    return {name: [f"{Path(folder).resolve().name}/{name}" for folder in source] for name in members}


def _numbers(values: tuple[str, ...], switch: str) -> dict[str, float] | None:
    """Read {member: number} from `MEMBER=NUMBER` arguments, or from one JSON file; None where there are none."""
    if not values:
        return None
    named: Any = options.named_values(values, "MEMBER=NUMBER or a file")
    try:
        if isinstance(named, str):
            named = json.loads(Path(named).read_text(encoding="utf-8"))
        return {str(name): float(number) for name, number in named.items()}
    except (ValueError, TypeError, AttributeError) as error:
        expected = "MEMBER=NUMBER, or a JSON file {member: number}"
        raise click.BadParameter(f"{switch}: expected {expected}, got {named!r}") from error


def _cross_fitted(rule: Any, stack: Any) -> Any:
    """Return the leaderboard of a rule, fitted and scored on folds of the videos of its fit."""
    from vidfuse.evaluation.scores import floor_of

    folds = min(5, len(stack if stack.groups is None else set(stack.groups.tolist())))
    if folds < 2:
        raise InputError(f"expected videos of two sources at least, got {len(stack)} of one")
    average = vf.LogLinearPool(weights="uniform", floor=floor_of(stack), missing="renormalise")
    return vf.leaderboard(stack, rules={"this rule": rule, "average of log-likelihoods": average}, folds=folds)


@click.command()
@takes_recipe
@reads(GroupedReading)
@click.option("--objective", type=click.Choice(_OBJECTIVES), default="accuracy", help="What rows are ranked by.")
@options.as_json
def evaluate(recipe: Path, reading: GroupedReading, objective: str) -> None:
    """Score RECIPE on labelled predictions, beside each member.

    SOURCE is a folder of caches, shards of them, or MEMBER=FILE for each dump.
    """
    from vidfuse.evaluation.board import board_of
    from vidfuse.evaluation.trial import Protocol
    from vidfuse.report.tables import Leaderboard
    from vidfuse.stack.clips import warn_if_clips

    loaded, stack = reading.with_recipe(recipe)
    warn_if_clips(stack)
    protocol = Protocol(
        n_fit=loaded.fitted_on["videos"],
        n_scored=len(stack),
        n_shared=loaded.shared_videos(stack),
        n_scored_groups=None if stack.groups is None else len(set(stack.groups.tolist())),
        order_checked=loaded.order_checked and stack.ids is not None,
    )
    best = loaded.fitted_on.get("best_single")
    front = loaded.rule.front(stack) if isinstance(loaded.rule, vf.Cascade) else None
    known = {"recipe": loaded.predict_blocks(stack)}
    board = Leaderboard.of(board_of(stack, known, protocol, best=best, objective=objective))
    if front is None:
        options.emit(board.to_dict(), str(board))
    else:
        points = {name: getattr(front, name).tolist() for name in ("cost", "accuracy", "differs", "certified")}
        options.emit({**board.to_dict(), "front": points}, f"{board}\n\n{front}")


@click.command()
@reads(Reading)
@_objective
@click.option("--max-members", type=options.COUNT, help="At most so many members.")
@_weights
@options.views
@options.as_json
def select(
    reading: Reading,
    objective: str | None,
    max_members: int | None,
    weights: tuple[str, ...],
    views: tuple[str, ...],
) -> None:
    """Find the best subset of the members, exactly; score weights unless others are given.

    SOURCE is a folder of caches, shards of them, or MEMBER=FILE for each dump.
    """
    objective = objective or "accuracy"
    stack = reading.open(options.named_values(views, "MEMBER=REDUCTION"))
    pool = _unfitted("log-linear", weights or ("accuracy",), reading.missing)
    best = vf.search_subsets(stack, objective=objective, rule=pool, max_members=max_members)
    result = {"members": list(best.members), "score": best.score, "objective": objective, "in_sample": True}
    text = f"{' + '.join(best.members)}: {objective} {best.score:.4f} (in-sample: chosen on these {len(stack)} videos)"
    options.emit(result, text)


@click.command()
@reads(GroupedReading)
@click.option(
    "--test",
    multiple=True,
    metavar="SOURCE",
    help="Labelled predictions to score on: a folder of caches, once for each shard, or MEMBER=FILE, once for each "
    "member; SOURCE then only fits. Without it, scores are cross-fitted.",
)
@click.option("--test-annotations", metavar="FILE", help="The list of videos whose order the dumps of --test follow.")
@options.views
@click.option("--title", default="Fusion report", help="The page's title.")
@click.option(
    "--figures",
    type=options.OUT,
    help="A folder for figures as svg, pdf and png, a paper's column wide; needs the extra report.",
)
@click.option(
    "--thumbnails",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Show the mistakes: the folder of the videos, whose ids are their paths in it, or of pictures named by id.",
)
@click.option(
    "--sample",
    type=options.COUNT,
    metavar="VIDEOS",
    help="Make the page from at most so many videos, drawn by chance in whole groups; it says so. All of millions "
    "take hours.",
)
@options.out("report.html", "The page to write.")
def report(
    reading: GroupedReading,
    test: tuple[str, ...],
    test_annotations: str | None,
    views: tuple[str, ...],
    title: str,
    figures: Path | None,
    thumbnails: Path | None,
    sample: int | None,
    out: Path,
) -> None:
    """Compare members and fusion rules, as one self-contained HTML page.

    SOURCE is a folder of caches, shards of them, or MEMBER=FILE for each dump: vidfuse report swin=a.pkl
    x3d=b.npz --kind logits --annotations val.csv
    """
    from vidfuse.report.html import check_page, findings_of, write_findings

    check_page(out)
    reduction = options.named_values(views, "MEMBER=REDUCTION")
    stack, held_out = reading.open(reduction), None
    if test:
        lists = (test_annotations,) if test_annotations else reading.annotations
        scored = dataclasses.replace(reading, source=test, annotations=lists)
        held_out = scored.open(reduction, list(stack.members))
    pictures = None if thumbnails is None else _pictures(thumbnails)
    found = findings_of(stack, held_out, thumbnails=pictures, sample=sample)
    write_findings(found, out, title, figures)
    options.save_config(out)
    click.echo(f"{found.board.headline()}\nwritten to {out}")


def _pictures(folder: Path) -> Any:
    """Return the pictures of a folder by id, made small where videos can be decoded, or as they are."""
    from vidfuse.report.pictures import Pictures

    try:
        return vf.video.Thumbnails(folder)
    except MissingExtraError:
        return Pictures(folder)
