"""`vidfuse record`, `watch` and `refresh`, and what `predict --abstain --sets` writes: an ensemble that stays right."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import click

import vidfuse as vf
from vidfuse.cli import options
from vidfuse.cli.reading import Reading, reads_predictions, sources, takes_recipe
from vidfuse.errors import InputError

__all__ = ["abstain", "by_class", "decisions_of", "record", "refresh", "sets", "watch", "write_decisions"]

_share = click.FloatRange(0, 1, min_open=True, max_open=True)

abstain = click.option(
    "--abstain",
    type=_share,
    metavar="ERROR",
    help="Say which videos to answer, so that at most this share of them is wrong, with 95 % confidence, in "
    "<out>.decisions.csv; needs `vidfuse record`.",
)
sets = click.option(
    "--sets",
    type=_share,
    metavar="COVERAGE",
    help="Write there for each video a set of classes; it holds the true one in this share of the videos.",
)
by_class = click.option("--by-class", is_flag=True, help="With --sets: in this share of the videos of each class.")


@click.command()
@takes_recipe
@sources()
@reads_predictions
@options.groups
@click.option("--cross-fit", is_flag=True, help="The videos are those of the fit, where there are no ids that tell.")
@click.option("--held-out", is_flag=True, help="None of the videos is of the fit, where there are no ids that tell.")
@click.option("--out", type=click.Path(path_type=Path), help="The recipe to write.  [default: RECIPE itself]")
@options.as_json
def record(
    recipe: Path,
    source: tuple[str, ...],
    reading: Reading,
    groups: str | None,
    cross_fit: bool,
    held_out: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Try RECIPE on labelled predictions, and keep the record in it: for `predict --abstain`, `--sets`, and `watch`.

    SOURCE is a folder of caches, or MEMBER=FILE for each dump: the predictions of the fit, which are cross-fitted, or
    others, for which what is stated later holds exactly.
    """
    from vidfuse.evaluation.sources import warn_if_clips
    from vidfuse.serving.card import renew_card

    if cross_fit and held_out:
        raise click.BadParameter("--cross-fit and --held-out: the videos are of the fit, or they are not")
    loaded = vf.load_recipe(recipe)
    stack = options.grouped(reading.open(source, loaded.views or "mean-log", list(loaded.members)), groups)
    warn_if_clips(stack)
    found = loaded.with_record(stack, cross_fit=cross_fit if cross_fit or held_out else None)
    path = found.save(out or recipe)
    renew_card(found, path, of=recipe)
    options.emit({"out": path, "record": repr(found.record)}, f"{found.record!r}\nwritten to {path}", as_json)


@click.command()
@takes_recipe
@sources()
@reads_predictions
@options.groups
@click.option(
    "--false-alarms",
    type=_share,
    default=0.05,
    show_default=True,
    help="The probability that anything alarms, over the whole stream, where nothing has changed.",
)
@options.as_json
@click.pass_context
def watch(
    context: click.Context,
    recipe: Path,
    source: tuple[str, ...],
    reading: Reading,
    groups: str | None,
    false_alarms: float,
    as_json: bool,
) -> None:
    """Compare a stream of predictions, without labels, with the record that RECIPE holds; status 1 on an alarm.

    SOURCE is folders of caches in the order in which they came, from the first on, or MEMBER=FILE for each dump.
    """
    loaded = vf.load_recipe(recipe)
    members = list(loaded.needed_members())
    parts = [source] if any("=" in word for word in source) else [(word,) for word in source]
    stream = [
        options.grouped(reading.open(part, loaded.views_of(members, "mean-log"), members), groups) for part in parts
    ]
    found = vf.watch(loaded, stream, false_alarms=false_alarms)
    options.emit(found.to_dict(), str(found), as_json)
    context.exit(1 if found.alarms else 0)


@click.command()
@takes_recipe
@sources()
@reads_predictions
@options.groups
@click.option(
    "--margin",
    type=_share,
    default=0.005,
    show_default=True,
    help="The loss of accuracy that is tolerated, as a share.",
)
@options.out("refreshed.json", "The recipe to write, if it is no worse.")
@options.as_json
@click.pass_context
def refresh(
    context: click.Context,
    recipe: Path,
    source: tuple[str, ...],
    reading: Reading,
    groups: str | None,
    margin: float,
    out: Path,
    as_json: bool,
) -> None:
    """Fit RECIPE's rule anew on freshly labelled predictions, and write it if it is no worse; status 1 if not shown.

    SOURCE is a folder of caches, or MEMBER=FILE for each dump: videos that RECIPE was not fitted on.
    """
    from vidfuse.evaluation.sources import warn_if_clips

    loaded = vf.load_recipe(recipe)
    stack = options.grouped(reading.open(source, loaded.views or "mean-log", list(loaded.members)), groups)
    warn_if_clips(stack)
    found = vf.refresh(loaded, stack, margin=margin)
    said = "nothing is written"
    if found.no_worse:
        said = f"written to {found.recipe.save(out)}"
        options.save_config(context, out)
    options.emit({**found.to_dict(), "out": out if found.no_worse else None}, f"{found.table()}\n{said}", as_json)
    context.exit(0 if found.no_worse else 1)


def decisions_of(recipe: Any, error: float | None, coverage: float | None, by_class: bool) -> dict[str, Any]:
    """Return what is stated of a recipe's predictions, by the column that it makes; nothing where nothing is asked for.

    Raises:
        InputError: The recipe has no record, or one of too few videos.
    """
    if by_class and coverage is None:
        raise click.BadParameter("--by-class belongs to --sets, the share that is to hold in each class")
    if error is None and coverage is None:
        return {}
    if recipe.record is None:
        raise InputError(
            "--abstain and --sets need a record of how the recipe does on labelled videos; `vidfuse record` makes it"
        )
    return {
        **({} if error is None else {"answered": recipe.record.abstention(error)}),
        **({} if coverage is None else {"set": recipe.record.prediction_sets(coverage, by_class=by_class)}),
    }


def write_decisions(recipe: Any, stack: Any, out: Path, stated: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Write which videos are answered, and their sets of classes, to `<out>.decisions.csv`; return counts and a text.

    Columns: id, predicted, confidence; answered (1 or 0) where an error is stated; set (a JSON list) with a coverage.
    """
    import numpy as np

    from vidfuse.formats.export import csv_cells
    from vidfuse.formats.streams import Rows, threads_for, write_text

    chosen, made = stated.get("answered"), stated.get("set")
    names = recipe.classes or [str(k) for k in range(recipe.n_classes)]
    head = ["id", "predicted", "confidence", *stated]
    n_answered = n_listed = n_empty = 0

    def decided(rows: slice, blocks: Any) -> str:
        nonlocal n_answered, n_listed, n_empty
        (log_p,) = blocks
        best = log_p.argmax(axis=1)
        ids = range(rows.start, rows.stop) if stack.ids is None else stack.ids[rows].tolist()
        columns: list[Any] = [ids, [names[k] for k in best], np.exp(log_p[np.arange(len(best)), best]).tolist()]
        if chosen is not None:
            answered = chosen.answered(log_p)
            n_answered += int(answered.sum())
            columns.append(answered.astype(int).tolist())
        if made is not None:
            within = made.of(log_p)
            n_listed, n_empty = n_listed + int(within.sum()), n_empty + int((~within.any(axis=1)).sum())
            columns.append([json.dumps([names[k] for k in np.flatnonzero(row)], ensure_ascii=False) for row in within])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
        return text.getvalue()

    fused = recipe.predict_blocks(stack)
    read = Rows(lambda rows: (fused[rows],), {"": (fused.dtype, fused.shape)}, fused.rows_per_block, threads_for(fused))
    path = write_text(out.with_name(f"{out.name}.decisions.csv"), f"{csv_cells(head)}\n", read, decided, None)
    n = max(1, len(stack))
    lines = [] if chosen is None else [f"{chosen!r}; here {n_answered:,} of {len(stack):,} videos are answered"]
    if made is not None:
        lines.append(f"{made!r}; here {n_listed / n:.2f} classes a set, {n_empty:,} empty")
    if of_fit := recipe.shared_videos(stack):
        lines.append(f"{of_fit:,} of the {len(stack):,} videos are of the fit: what is stated does not hold for these")
    counts = {"decisions": path, "of_fit": of_fit, "threshold": chosen and chosen.threshold}
    counts |= {"answered": n_answered if chosen else None, "listed_classes": n_listed if made else None}
    return counts, "\n".join([*lines, f"decisions written to {path}"])
