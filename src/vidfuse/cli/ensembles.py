"""`vidfuse fit`, `predict`, `evaluate`, `select`, `report` and `submit`: from caches to a fused, scored prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import vidfuse as vf
from vidfuse.cli import options
from vidfuse.errors import InputError

__all__ = ["evaluate", "fit", "predict", "report", "select", "submit"]

_recipe = click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
_RULES = ("log-linear", "linear", "vote", "borda", "stacked", "dynamic", "greedy")
_rule = click.option("--rule", type=click.Choice(_RULES), default="log-linear", show_default=True, help="Fusion rule.")
_weights = click.option(
    "--weights",
    multiple=True,
    metavar="NAME|MEMBER=NUMBER",
    help="learned (default), uniform, accuracy, log-odds, inverse-nll, or a number for each member.",
)
_objective = click.option(
    "--objective",
    type=click.Choice(["accuracy", "mean-class-accuracy", "nll"]),
    default="accuracy",
    show_default=True,
    help="What is optimised.",
)


def _unfitted(rule: str, weights: tuple[str, ...], objective: str = "nll") -> Any:
    """Return the unfitted rule that the options name."""
    if rule in ("log-linear", "linear"):
        named = options.named_values(weights, "MEMBER=NUMBER")
        pool = vf.LogLinearPool if rule == "log-linear" else vf.LinearPool
        if not isinstance(named, dict):
            return pool(weights=named or "learned")
        try:
            return pool(weights={name: float(number) for name, number in named.items()})
        except ValueError as error:
            raise click.BadParameter(f"expected MEMBER=NUMBER, got {named}") from error
    if weights:
        raise click.BadParameter(f"--weights belongs to --rule log-linear or linear, not to {rule}")
    if rule == "greedy":
        return vf.GreedyPool(objective=objective)
    names = {"vote": "MajorityVote", "borda": "BordaCount", "stacked": "StackedPool", "dynamic": "DynamicPool"}
    return getattr(vf, names[rule])()


@click.command()
@options.source
@options.partial
@_rule
@_weights
@options.views
@options.groups
@options.out("ensemble.json", "The recipe to write.")
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Cross-fit the rule on these videos, and say how it does beside the members.",
)
@options.as_json
@click.pass_context
def fit(
    context: click.Context,
    source: Path,
    partial: bool,
    rule: str,
    weights: tuple[str, ...],
    views: str,
    groups: str | None,
    out: Path,
    check: bool,
    as_json: bool,
) -> None:
    """Fit a fusion rule on the labelled caches in SOURCE, and write it as a recipe."""
    stack = options.grouped(vf.load_stack(source, views=views, partial=partial), groups)
    fitted = _unfitted(rule, weights).fit(stack)
    recipe = vf.Recipe.from_fitted(fitted, stack, views=views)
    recipe.save(out)
    options.save_config(context, out)
    board = _checked(_unfitted(rule, weights), stack) if check else None
    text = f"{recipe}\nwritten to {out}" + ("" if board is None else f"\n{board.headline()} {board.how()}")
    result = {"out": out, **recipe.describe(), "check": None if board is None else board.to_dict()}
    options.emit(result, text, as_json)


def _checked(rule: Any, stack: Any) -> Any:
    """Return the leaderboard of a rule that is cross-fitted on the videos of its fit; None where they are too few."""
    folds = min(5, len(stack if stack.groups is None else set(stack.groups.tolist())))
    rules = {"this rule": rule, "plain average": vf.LogLinearPool(weights="uniform", missing="renormalise")}
    return vf.leaderboard(stack, rules=rules, folds=folds) if folds > 1 else None


@click.command()
@_recipe
@options.source
@options.partial
@options.out("predictions.csv", "The file to write: .csv (id,p0,p1,...), .npz, or .pkl (MMAction2's dump, by torch).")
@options.as_json
@click.pass_context
def predict(context: click.Context, recipe: Path, source: Path, partial: bool, out: Path, as_json: bool) -> None:
    """Fuse the caches in SOURCE by RECIPE, and write the probability of every class."""
    from vidfuse.formats.export import write_predictions

    loaded, stack = _load(recipe, source, partial)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(
        loaded.predict_proba(stack),
        out,
        ids=stack.ids,
        labels=stack.labels,
        classes=loaded.classes,
        kind="probabilities",
    )
    options.save_config(context, out)
    options.emit({"out": out, "videos": len(stack)}, f"{len(stack)} videos written to {out}", as_json)


@click.command()
@_recipe
@options.source
@options.partial
@_objective
@options.groups
@options.as_json
def evaluate(recipe: Path, source: Path, partial: bool, objective: str, groups: str | None, as_json: bool) -> None:
    """Score RECIPE on the labelled caches in SOURCE, beside each member."""
    from vidfuse.evaluation.board import board_of
    from vidfuse.evaluation.sources import warn_if_clips
    from vidfuse.evaluation.trial import Protocol
    from vidfuse.report.tables import Leaderboard

    loaded, stack = _load(recipe, source, partial)
    stack = options.grouped(stack, groups)
    warn_if_clips(stack)
    protocol = Protocol(
        n_fit=loaded.fitted_on["videos"],
        n_scored=len(stack),
        n_shared=loaded.shared_videos(stack),
        n_scored_groups=None if stack.groups is None else len(set(stack.groups.tolist())),
        order_checked=loaded.order_checked and stack.ids is not None,
    )
    best = loaded.fitted_on.get("best_single")
    known = {"recipe": loaded.predict_log_proba(stack)}
    board = Leaderboard.of(board_of(stack, known, protocol, best=best, objective=objective))
    options.emit(board.to_dict(), str(board), as_json)


@click.command()
@options.source
@options.partial
@_objective
@click.option("--max-members", type=click.IntRange(min=1), help="At most so many members.")
@_weights
@options.views
@options.as_json
def select(
    source: Path,
    partial: bool,
    objective: str,
    max_members: int | None,
    weights: tuple[str, ...],
    views: str,
    as_json: bool,
) -> None:
    """Find the best subset of the members in SOURCE, exactly; score weights unless others are given."""
    stack = vf.load_stack(source, views=views, partial=partial)
    pool = _unfitted("log-linear", weights or ("accuracy",))
    best = vf.search_subsets(stack, objective=objective, rule=pool, max_members=max_members)
    result = {"members": list(best.members), "score": best.score, "objective": objective, "in_sample": True}
    text = f"{' + '.join(best.members)}: {objective} {best.score:.4f} (in-sample: chosen on these {len(stack)} videos)"
    options.emit(result, text, as_json)


@click.command()
@options.source
@options.partial
@click.option(
    "--test",
    type=click.Path(exists=True, path_type=Path),
    help="Labelled caches to score on; SOURCE then only fits. Without it, scores are cross-fitted.",
)
@options.views
@options.groups
@click.option("--title", default="Fusion report", show_default=True, help="The page's title.")
@click.option(
    "--figures",
    type=click.Path(path_type=Path),
    help="A folder for figures as svg, pdf and png, a paper's column wide; needs the extra report.",
)
@options.out("report.html", "The page to write.")
@click.pass_context
def report(
    context: click.Context,
    source: Path,
    partial: bool,
    test: Path | None,
    views: str,
    groups: str | None,
    title: str,
    figures: Path | None,
    out: Path,
) -> None:
    """Compare members and fusion rules on the caches in SOURCE, as one self-contained HTML page."""
    stack = options.grouped(vf.load_stack(source, views=views, partial=partial), groups)
    held_out = None if test is None else options.grouped(vf.load_stack(test, views=views, partial=partial), groups)
    vf.write_report(stack, out, test=held_out, title=title, figures=figures)
    options.save_config(context, out)
    click.echo(f"written to {out}")


@click.command()
@_recipe
@options.source
@options.partial
@click.option("--format", "layout", default="vipriors", show_default=True, help="The challenge's file format.")
@options.out("submission.txt", "The file to write.")
@click.pass_context
def submit(context: click.Context, recipe: Path, source: Path, partial: bool, layout: str, out: Path) -> None:
    """Fuse the caches in SOURCE by RECIPE, and write a submission: five classes for each video, best first."""
    loaded, stack = _load(recipe, source, partial)
    if stack.ids is None:
        raise InputError(f"{source}: a submission names videos, and these caches have no ids; import them with ids")
    vf.write_submission(loaded.predict_log_proba(stack), stack.ids, out, format=layout)
    options.save_config(context, out)
    click.echo(f"{len(stack)} videos written to {out}")


def _load(recipe: Path, source: Path, partial: bool) -> tuple[Any, Any]:
    """Load a recipe, and the members that it names from the caches."""
    loaded = vf.load_recipe(recipe)
    views = loaded.views or "mean-log"
    return loaded, vf.load_stack(source, members=list(loaded.members), views=views, partial=partial)
