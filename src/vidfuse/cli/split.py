"""`vidfuse split`: labelled videos in lists that share no source."""

from __future__ import annotations

import csv
import io
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from vidfuse._files import replace
from vidfuse.cli import options
from vidfuse.cli.videos import Listed
from vidfuse.errors import InputError

__all__ = ["split"]


@click.command()
@options.asks(Listed, "videos")
@click.option("--groups", metavar="PATTERN", help="A regular expression that finds in an id what the video comes from.")
@click.option("--column", help="The column of a list with a header that says what each video comes from.")
@click.option("--share", default=0.2, help="Share of each class for validation.")
@click.option("--test-share", type=float, help="Share of each class for a third list, test.csv.")
@click.option("--seed", default=0, help="Seed of the split.")
@options.out("lists", "The folder of the lists, train.csv, val.csv and, where it is asked for, test.csv.")
@options.as_json
def split(
    videos: Listed,
    groups: str | None,
    column: str | None,
    share: float,
    test_share: float | None,
    seed: int,
    out: Path,
) -> None:
    """Part the labelled videos of DATA into training and validation videos that share no source, or in three.

    Clips of one source (a performer, a longer video) are alike, and a split by clip flatters. Say what a source is by
    `--groups`, which for clips named run/g01_c02.avi is '/(g[0-9]+)_', or by `--column`.
    """
    lists, splits = (import_module(f"vidfuse.video.{name}") for name in ("lists", "splits"))
    if (groups is None) == (column is None):
        raise InputError("expected either --groups, a pattern that finds a video's source in its id, or --column")
    if column:
        found = lists.read_csv_list(videos.data, videos.root, group=column)
    else:
        found = videos.listed("train", None)
    found = videos.labelled(found, "split")
    by = splits.groups_by_pattern(found.ids, groups) if groups is not None else None
    sides = {}
    if test_share is not None:
        if not (0 < test_share and share + test_share < 1):
            raise InputError(f"expected --share and --test-share above 0 that leave some, got {share} and {test_share}")
        found, sides["test"] = splits.split_by_group(found, by, share=test_share, seed=seed, keep=2)
        share /= 1 - test_share
    sides["train"], sides["val"] = splits.split_by_group(found, by, share=share, seed=seed)
    sides = {name: sides[name] for name in ("train", "val", "test") if name in sides}
    for name, side in sides.items():
        replace(out / f"{name}.csv", _as_csv(side))
    numbers = {name: (len(side), len({item.group for item in side})) for name, side in sides.items()}
    text = "\n".join(f"{name}: {n} videos of {g} sources, {out / name}.csv" for name, (n, g) in numbers.items())
    present = {name: set(side.labels) for name, side in sides.items()}
    lacking = sorted(set.union(*present.values()) - set.intersection(*present.values()))
    names = [found.classes[label] if found.classes else str(label) for label in lacking]
    if names:
        where = "on one side only" if test_share is None else "not in every list"
        text += f"\n{where}, for want of sources: {', '.join(names)}"
    lists_of = {item.id: name for name, side in sides.items() for item in side}
    same = splits.same_files([item for side in sides.values() for item in side])
    apart = [ids for ids in same if len({lists_of[name] for name in ids}) > 1]
    if apart:
        one_of_each = ({lists_of[name]: name for name in reversed(ids)} for ids in apart[:3])
        shown = "; ".join(" = ".join(f"{name} ({where})" for where, name in one.items()) for one in one_of_each)
        text += (
            f"\n{len(apart)} files are in several lists under several names, which flatters: {shown}"
            f"{'; …' if len(apart) > 3 else ''}; leave all but one out, or give them one source"
        )
    result = {name: {"videos": n, "groups": g, "list": out / f"{name}.csv"} for name, (n, g) in numbers.items()}
    options.emit({**result, "one_side_only": names, "copies": apart}, text)


def _as_csv(side: Any) -> str:
    """Write a list with everything that a reader needs: ids stay as they are, whatever the list's folder."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "id", "group"))  # an id may begin with #, which would make a comment of its line
    for item in side:
        label = item.label if side.classes is None else side.classes[item.label]
        writer.writerow((os.path.abspath(item.path), label, item.id, item.group))
    return text.getvalue()
