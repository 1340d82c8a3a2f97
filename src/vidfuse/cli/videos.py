"""What commands that read videos share, and those that prepare videos: `vidfuse split` and `vidfuse shrink`."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click

from vidfuse._files import replace
from vidfuse.cli import options
from vidfuse.errors import InputError

__all__ = ["class_count", "class_names", "listed", "of_classes", "shrink", "split", "to_train"]

_LAYOUTS = ("vipriors", "folders", "mmaction2", "csv", "unlabelled")
data = click.argument("data", type=click.Path(exists=True, path_type=Path))
layout = click.option(
    "--layout",
    type=click.Choice(_LAYOUTS),
    help="What DATA is: the challenge's folder, one folder per class, an MMAction2 list, a csv list, or videos without "
    "labels (a folder, or a list of paths). By default what is there tells.",
)
root = click.option("--root", type=click.Path(path_type=Path), help="The folder that a list's paths start from.")
classes = click.option(
    "--classes", metavar="N|FILE", help="How many classes a list has, or a file of their names, one per line."
)
_COPIED = (".csv", ".json", ".txt")  # lists that lie among the videos
_SETTINGS = ".shrink.json"  # in a folder of small videos: how they are encoded


def listed(path: Path, kind: str | None, root: Path | None, split: str, names: tuple[str, ...] | None) -> Any:
    """Read a list of videos; how it was read, and what is listed and missing, goes to standard error."""
    found = _read(path, kind, root, split, names)
    _tell(path, kind, found)
    return found


def _read(path: Path, kind: str | None, root: Path | None, split: str, names: tuple[str, ...] | None) -> Any:
    found = importlib.import_module("vidfuse.video.layouts").read_videos(path, kind, split=split, root=root)
    if not len(found):
        raise InputError(f"{path}: expected at least one video in the split {split!r}, got none; {found.summary()}")
    return of_classes(found, path, names)


def _labelled(path: Path, found: Any, why: str) -> Any:
    if found.labels is None:
        raise InputError(
            f"expected labelled videos to {why} in {path}, got some without a label; put them into one folder per "
            "class, or write a list of `path,label`"
        )
    return found


def _tell(path: Path, kind: str | None, found: Any) -> None:
    guess = importlib.import_module("vidfuse.video.layouts").guess_layout
    _say(f"{path}{f' read as --layout {guess(path)}' if kind is None else ''}: {found.summary()}")


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # under torchrun, one process speaks
        click.echo(text, err=True)


def of_classes(found: Any, path: Path, names: tuple[str, ...] | None, n_classes: int | None = None) -> Any:
    """Match videos with classes of these names, of this number, or say whose videos do not fit."""
    try:
        found = found if names is None else found.relabelled(names)
        if n_classes is not None:
            found.check_labels(n_classes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return found


def class_names(given: str | None) -> tuple[int | None, tuple[str, ...] | None]:
    """Return how many classes `--classes` says there are, and their names if it is a file of them."""
    if given is None or given.isdecimal():
        return (None if given is None else int(given)), None
    if not Path(given).is_file():
        raise InputError(f"--classes: expected a number, or a file with one class name per line, got {given!r}")
    names = tuple(line.strip() for line in Path(given).read_text(encoding="utf-8").splitlines() if line.strip())
    return len(names), names


def class_count(found: Any) -> int:
    """Return how many classes videos have by their names, or else by their labels."""
    if found.classes is not None:
        return len(found.classes)
    if found.labels is None:
        raise InputError("the list names neither classes nor labels; say how many there are with --classes")
    return max(found.labels) + 1


def to_train(
    path: Path, kind: str | None, root: Path | None, classes: str | None, val: Path | None, val_root: Path | None
) -> tuple[Any, Any, int]:
    """Read the videos to train on and those to score, or None where there are none; and say how many classes there are.

    Raises:
        InputError: the training videos have no labels, or the two do not fit each other or `--classes`.
    """
    layouts = importlib.import_module("vidfuse.video.layouts")
    n_named, names = class_names(classes)
    found = _labelled(path, _read(path, kind, root, "train", names), "train on")
    n_classes = n_named or class_count(found)
    if found.classes is not None and len(found.classes) != n_classes:
        raise InputError(
            f"--classes: expected {len(found.classes)}, the classes of {path}, got {n_classes}; leave it out, or pass "
            "a file of all names"
        )
    found = of_classes(found, path, None, n_classes)
    own = layouts.guess_layout(path) if kind is None else kind
    if val is None and (own == "vipriors" or (own == "folders" and layouts.split_folder(path, "val"))):
        val = path
    if val is None:
        _tell(path, kind, found)
        _say("none is scored after each epoch: pass others as --val, or part some by source with `vidfuse split`")
        return found, None, n_classes
    same = kind if val.is_dir() == path.is_dir() else None
    scored = _labelled(val, _read(val, same, root if val_root is None else val_root, "val", names), "score")
    if found.classes is None and scored.classes is not None:
        _check_numbered(path, val, scored.classes, n_classes)
    scored = of_classes(scored, val, found.classes, n_classes)
    # What one list leaves out for the other is not left out.
    files = {os.path.abspath(item.path) for one in (found, scored) for item in one}
    found, scored = (
        dataclasses.replace(one, unlisted=tuple(name for name in one.unlisted if os.path.abspath(name) not in files))
        for one in (found, scored)
    )
    _tell(path, kind, found)
    _tell(val, same, scored)
    return found, scored, n_classes


def _check_numbered(path: Path, val: Path, classes: Sequence[str], n_classes: int) -> None:
    """Say that classes with names are numbered in sorted order beside numbers alone, or refuse where that is wrong."""
    way = f"the labels of {path} are numbers and those of {val} names: pass --classes, a file of the names in order"
    if len(classes) != n_classes:
        raise InputError(f"expected videos to score of {n_classes} classes, got {len(classes)}; {way}")
    _say(f"{way}; without it the names count in sorted order, {classes[0]} as 0")


@click.command()
@data
@layout
@root
@click.option("--groups", metavar="PATTERN", help="A regular expression that finds in an id what the video comes from.")
@click.option("--column", help="The column of a list with a header that says what each video comes from.")
@click.option("--share", default=0.2, show_default=True, help="Share of each class for validation.")
@click.option("--test-share", type=float, help="Share of each class for a third list, test.csv.")
@click.option("--seed", default=0, show_default=True, help="Seed of the split.")
@options.out("lists", "The folder of the lists, train.csv, val.csv and, where it is asked for, test.csv.")
@options.as_json
def split(
    data: Path,
    layout: str | None,
    root: Path | None,
    groups: str | None,
    column: str | None,
    share: float,
    test_share: float | None,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Part the labelled videos of DATA into training and validation videos that share no source, or in three.

    Clips of one source (a performer, a longer video) are alike, and a split by clip flatters. Say what a source is by
    `--groups`, which for clips named run/g01_c02.avi is '/(g[0-9]+)_', or by `--column`.
    """
    lists, splits = (importlib.import_module(f"vidfuse.video.{name}") for name in ("lists", "splits"))
    if (groups is None) == (column is None):
        raise InputError("expected either --groups, a pattern that finds a video's source in its id, or --column")
    found = lists.read_csv_list(data, root, group=column) if column else listed(data, layout, root, "train", None)
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
    result = {name: {"videos": n, "groups": g, "list": out / f"{name}.csv"} for name, (n, g) in numbers.items()}
    options.emit({**result, "one_side_only": names}, text, as_json)


def _as_csv(side: Any) -> str:
    """Write a list with everything that a reader needs: ids stay as they are, whatever the list's folder."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "path", "label", "group"))
    for item in side:
        label = item.label if side.classes is None else side.classes[item.label]
        writer.writerow((item.id, os.path.abspath(item.path), label, item.group))
    return text.getvalue()


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("small", type=click.Path(file_okay=False, path_type=Path))
@click.option("--short-side", type=click.IntRange(min=16), default=256, show_default=True, help="In pixels.")
@click.option("--gop", type=click.IntRange(min=1), default=12, show_default=True, help="Distance of keyframes.")
@click.option("--crf", type=click.IntRange(0, 51), default=18, show_default=True, help="Quality; 0 is lossless.")
@click.option("--workers", default=2, show_default=True, help="Processes that encode videos.")
@click.option("--allow-truncated", is_flag=True, help="Take what is left of videos that end early.")
@options.as_json
def shrink(
    data: Path, small: Path, short_side: int, gop: int, crf: int, workers: int, allow_truncated: bool, as_json: bool
) -> None:
    """Encode the videos of a folder DATA once, to a short side, into the folder SMALL; resumes where it stopped.

    Every file becomes an mp4 of the same place and name, so ids, lists (with `--root SMALL`) and class folders stay as
    they are; lists in the folder are copied. Then the time to decode a clip of 32 frames is measured on both.
    """
    # A target that is there was finished: `work.shrink` puts it in place whole. The others are encoded, one by one or
    # by processes; then lists are copied, and both folders are decoded for the times told at the end.
    lists = importlib.import_module("vidfuse.video.lists")
    processes, progress = (importlib.import_module(f"vidfuse.training.{name}") for name in ("processes", "progress"))
    work = importlib.import_module("vidfuse.video.shrink")
    if small.resolve().is_relative_to(data.resolve()):
        raise InputError(f"expected another folder than {data} for the small videos, and none within it, got {small}")
    found = lists.read_folder(data)
    _keep_settings(small / _SETTINGS, {"short_side": short_side, "gop": gop, "crf": crf})
    targets = {item.path: (small / Path(item.path).relative_to(data)).with_suffix(".mp4") for item in found}
    todo = {source: target for source, target in targets.items() if not target.exists()}
    failures: dict[str, str] = {}
    began = time.perf_counter()
    options_of: dict[str, Any] = {"gop": gop, "crf": crf, "allow_truncated": allow_truncated}
    with ExitStack() as stack:
        bar = stack.enter_context(progress.bar(len(todo), 0, "shrink", "video", True, lines=True))
        pool = stack.enter_context(processes.worker_processes(workers)) if workers > 1 else None
        parts = {
            source: partial(work.shrink, source, target, short_side, **options_of) for source, target in todo.items()
        }
        if pool is not None:
            parts = {source: pool.submit(part).result for source, part in parts.items()}
        for source, part in parts.items():
            try:
                part()
            except InputError as error:
                failures[source] = str(error)
            bar.update()
    spent = time.perf_counter() - began
    for file in (file for file in data.rglob("*") if file.suffix.lower() in _COPIED and file.is_file()):
        target = small / file.relative_to(data)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    done = {source: target for source, target in targets.items() if target.exists()}
    if not done:
        raise InputError(
            f"expected at least one video that can be decoded, got none; first: {next(iter(failures.items()))}"
        )
    bytes_of = [sum(Path(name).stat().st_size for name in names) for names in (done, done.values())]
    before, after = (_clip_seconds(list(names)[:8]) for names in (done, done.values()))
    text = (
        f"{len(todo) - len(failures)} videos encoded in {spent:.0f} s, {len(targets) - len(todo)} were there; "
        f"{bytes_of[0] / 1e6:.1f} MB became {bytes_of[1] / 1e6:.1f} MB\na clip of 32 frames is decoded in "
        f"{1e3 * after:.1f} ms, not {1e3 * before:.1f} ms: {before / after:.1f} times faster\nwritten to {small}"
    )
    text += "".join(f"\nleft out: {source}: {reason}" for source, reason in failures.items())
    result = {"encoded": len(todo) - len(failures), "present": len(targets) - len(todo), "bytes": bytes_of}
    options.emit({**result, "clip_seconds": [before, after], "failures": failures}, text, as_json)


def _keep_settings(path: Path, now: dict[str, int]) -> None:
    """Keep how a folder's videos are encoded, or hold a folder that goes on to how it was begun."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else now
    if before != now:
        differ = [f"--{name.replace('_', '-')} {before.get(name)}" for name in now if before.get(name) != now[name]]
        raise InputError(
            f"expected to go on as {path.parent} was begun, with {', '.join(differ)}; shrink into another folder"
        )
    replace(path, json.dumps(now) + "\n")


def _clip_seconds(files: list[Any]) -> float:
    """Return the median time to find and decode 32 frames of a file, every other one."""
    decoder, clips = (importlib.import_module(f"vidfuse.video.{name}") for name in ("decode", "clips"))
    spent = []
    for file in files:
        began = time.perf_counter()
        info = decoder.probe(file)
        decoder.decode(file, clips.loop(clips.uniform_interval(32, 2), info.n_frames), info=info)
        spent.append(time.perf_counter() - began)
    return sorted(spent)[len(spent) // 2]
