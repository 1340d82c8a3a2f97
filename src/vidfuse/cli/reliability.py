"""`vidfuse record`, `watch` and `refresh`: an ensemble that stays right."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

import vidfuse as vf
from vidfuse.cli import options
from vidfuse.cli.reading import GroupedReading, reads, takes_recipe

__all__ = ["record", "refresh", "watch"]


@click.command()
@takes_recipe
@reads(GroupedReading)
@click.option("--cross-fit", is_flag=True, help="The videos are those of the fit, where there are no ids that tell.")
@click.option("--held-out", is_flag=True, help="None of the videos is of the fit, where there are no ids that tell.")
@click.option("--out", type=options.OUT, help="The recipe to write.  [default: RECIPE itself]")
@options.as_json
def record(
    recipe: Path,
    reading: GroupedReading,
    cross_fit: bool,
    held_out: bool,
    out: Path | None,
) -> None:
    """Try RECIPE on labelled predictions, and keep the record in it: for `predict --abstain`, `--sets`, and `watch`.

    SOURCE is a folder of caches, or MEMBER=FILE for each dump: the predictions of the fit, which are cross-fitted, or
    others, for which what is stated later holds exactly.
    """
    from vidfuse.serving.card import renew_card

    if cross_fit and held_out:
        raise click.BadParameter("--cross-fit and --held-out: the videos are of the fit, or they are not")
    loaded, stack = reading.with_recipe(recipe)
    found = loaded.with_record(stack, cross_fit=cross_fit if cross_fit or held_out else None)
    path = found.save(out or recipe)
    renew_card(found, path, of=recipe)
    options.emit({"out": path, "record": repr(found.record)}, f"{found.record!r}\nwritten to {path}")


@click.command()
@takes_recipe
@reads(GroupedReading)
@click.option(
    "--false-alarms",
    type=options.SHARE,
    default=0.05,
    help="The probability that anything alarms, over the whole stream, where nothing has changed.",
)
@options.as_json
def watch(
    recipe: Path,
    reading: GroupedReading,
    false_alarms: float,
) -> None:
    """Compare a stream of predictions, without labels, with the record that RECIPE holds; status 1 on an alarm.

    SOURCE is folders of caches in the order in which they came, from the first on, or MEMBER=FILE for each dump.
    """
    loaded = vf.load_recipe(recipe)
    members = list(loaded.needed_members())
    views, given = loaded.views_of(members, "mean-log"), reading.source
    parts = [given] if any("=" in word for word in given) else [(word,) for word in given]
    known = loaded.members
    stream = [dataclasses.replace(reading, source=part).open(views, members, known=known) for part in parts]
    found = vf.watch(loaded, stream, false_alarms=false_alarms)
    options.emit(found.to_dict(), str(found))
    click.get_current_context().exit(1 if found.alarms else 0)


@click.command()
@takes_recipe
@reads(GroupedReading)
@click.option("--margin", type=options.SHARE, default=0.005, help="The loss of accuracy that is tolerated, as a share.")
@options.out("refreshed.json", "The recipe to write, if it is no worse.")
@options.as_json
def refresh(
    recipe: Path,
    reading: GroupedReading,
    margin: float,
    out: Path,
) -> None:
    """Fit RECIPE's rule anew on freshly labelled predictions, and write it if it is no worse; status 1 if not shown.

    SOURCE is a folder of caches, or MEMBER=FILE for each dump: videos that RECIPE was not fitted on.
    """
    loaded, stack = reading.with_recipe(recipe)
    found = vf.refresh(loaded, stack, margin=margin)
    said = "nothing is written"
    if found.no_worse:
        said = f"written to {found.recipe.save(out)}"
        options.save_config(out)
    options.emit({**found.to_dict(), "out": out if found.no_worse else None}, f"{found.table()}\n{said}")
    click.get_current_context().exit(0 if found.no_worse else 1)
