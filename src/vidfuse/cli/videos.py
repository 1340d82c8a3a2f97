"""What commands that read videos share: where videos are listed, how they are laid out, and which classes they have."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from vidfuse.cli import options
from vidfuse.errors import InputError

__all__ = ["Listed", "ToTrain", "class_count", "class_names", "classes", "of_classes", "tell_order"]

classes = click.option(
    "--classes", metavar="N|FILE", help="How many classes a list has, or a file of their names in order."
)


@dataclass(frozen=True)
class Listed:
    """Videos as a command is given them."""

    data: Path = options.asked(click.argument("data", type=options.FOUND))
    layout: str | None = options.asked(
        "--layout",
        type=click.Choice(["vipriors", "folders", "mmaction2", "csv", "unlabelled"]),
        help="What DATA is: the challenge's folder, one folder per class, an MMAction2 list, a csv list, or videos "
        "without labels (a folder, or a list of paths). By default what is there tells.",
    )
    root: Path | None = options.asked("--root", type=options.PATH, help="The folder that a list's paths start from.")

    def listed(self, split: str, names: tuple[str, ...] | None) -> Any:
        """Read the videos; how they were read, and what is listed and not there, goes to standard error."""
        found = self.read(split, names)
        self.tell(found)
        return found

    def read(self, split: str, names: tuple[str, ...] | None, labelled_to: str | None = None) -> Any:
        """Read the videos and say nothing; `labelled_to` is what needs their labels.

        Raises:
            InputError: There are none, or not of these classes, or without labels where these are needed.
        """
        layouts = import_module("vidfuse.video.layouts")
        found = layouts.read_videos(self.data, self.layout, split=split, root=self.root)
        if not len(found):
            raise InputError(
                f"{self.data}: expected at least one video in the split {split!r}, got none; {found.summary()}"
            )
        found = of_classes(found, self.data, names)
        return found if labelled_to is None else self.labelled(found, labelled_to)

    def labelled(self, found: Any, why: str) -> Any:
        """Return videos whose labels are needed.

        Raises:
            InputError: One has none; the message says how the videos were read.
        """
        if found.labels is None:
            how = "" if self.layout else f", which was read as --layout {self._guessed()}"
            raise InputError(
                f"expected labelled videos to {why} in {self.data}{how}, got some without a label; put them into one "
                "folder per class (which --layout folders reads), or write a list of `path,label`"
            )
        return found

    def tell(self, found: Any) -> None:
        """Say how the videos were read, and what is listed and not there."""
        _say(f"{self.data}{'' if self.layout else f' read as --layout {self._guessed()}'}: {found.summary()}")

    def _guessed(self) -> str:
        return str(import_module("vidfuse.video.layouts").guess_layout(self.data))


@dataclass(frozen=True)
class ToTrain(Listed):
    """Videos to train on, and those to score."""

    val: Path | None = options.asked("--val", type=options.FOUND, help="Videos to score.")
    val_root: Path | None = options.asked(
        "--val-root", type=options.PATH, help="The folder that the paths of --val start from, if not --root."
    )
    classes: str | None = options.asked(classes)

    def to_train(self) -> tuple[Any, Any, int]:
        """Return the videos to train on, those to score, None where there are none, and the number of classes.

        Raises:
            InputError: the training videos have no labels, or the two do not fit each other or `--classes`.
        """
        n_named, names = class_names(self.classes)
        found = self.read("train", names, "train on")
        n_classes = n_named or class_count(found)
        if found.classes is not None and len(found.classes) != n_classes:
            raise InputError(
                f"--classes: expected {len(found.classes)}, the classes of {self.data}, got {n_classes}; leave it out, "
                "or pass a file of all names"
            )
        found = of_classes(found, self.data, None, n_classes)
        if n_classes < 2:
            alone = f", {found.classes[0]}" if found.classes else ""
            raise InputError(f"{self.data}: expected videos of at least two classes, got those of one{alone}")
        val = self._val()
        if val is None:
            self.tell(found)
            _tell_untrained(found, n_classes)
            _say("none is scored: pass others as --val, or part some by source with `vidfuse split`")
            return found, None, n_classes
        scored = val.read("val", names, "score")
        if found.classes is None and scored.classes is not None:
            _check_numbered(self.data, val.data, scored.classes, n_classes)
        elif names is None:
            tell_order(self.data, found.classes, scored, val.data)
        scored = of_classes(scored, val.data, found.classes, n_classes)
        # What one list leaves out for the other is not left out.
        files = {os.path.abspath(item.path) for one in (found, scored) for item in one}
        found, scored = (
            dataclasses.replace(
                one, unlisted=tuple(name for name in one.unlisted if os.path.abspath(name) not in files)
            )
            for one in (found, scored)
        )
        self.tell(found)
        val.tell(scored)
        _tell_untrained(found, n_classes)
        own = {os.path.realpath(item.path) for item in found}
        if shared := [item.id for item in scored if os.path.realpath(item.path) in own]:
            _say(
                f"of the {len(scored)} videos to score, {len(shared)} are trained on, such as {shared[0]}: their "
                "accuracy is too good"
            )
        return found, scored, n_classes

    def _val(self) -> Listed | None:
        """Return where the videos to score are: those of `--val`, or the split of that name where DATA has splits."""
        layouts = import_module("vidfuse.video.layouts")
        path, own = self.val, self.layout or layouts.guess_layout(self.data)
        if path is None and (own == "vipriors" or (own == "folders" and layouts.split_folder(self.data, "val"))):
            path = self.data
        if path is None:
            return None
        same = self.layout if path.is_dir() == self.data.is_dir() else None
        return Listed(path, same, self.root if self.val_root is None else self.val_root)


def of_classes(found: Any, path: Path, names: tuple[str, ...] | None, n_classes: int | None = None) -> Any:
    """Match videos with classes of these names, of this number, or say whose videos do not fit."""
    try:
        found = found if names is None else found.relabelled(names)
        if n_classes is not None:
            found.check_labels(n_classes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return found


def tell_order(owner: Path, names: Sequence[str] | None, found: Any, data: Path) -> None:
    """Say in which order classes count, where a network has names for them and its videos have numbers, or vice versa.

    Args:
        owner: The network's weights, or the videos that it is trained on.
        names: The names of its classes.
        found: The videos.
        data: Where they were listed.
    """
    known = names or found.classes
    if found.labels is None or known is None or names == found.classes or None not in (names, found.classes):
        return
    order = ", ".join(known[:3]) + (", …" if len(known) > 3 else "")
    if names is None:
        _say(
            f"the classes of {owner} have no names: those of {data} count in the order {order}; --classes takes a file "
            "of the names in the network's own"
        )
    else:
        _say(f"the labels of {data} are numbers: they count in the order of the classes of {owner}: {order}")


def class_names(given: str | None) -> tuple[int | None, tuple[str, ...] | None]:
    """Return how many classes `--classes` says there are, and their names if it is a file of them."""
    if given is None or given.isdecimal():
        return (None if given is None else int(given)), None
    from vidfuse.formats.class_lists import read_classes

    if not Path(given).is_file():
        raise InputError(f"--classes: expected a number, or a file with one class name per line, got {given!r}")
    names = tuple(read_classes(given))
    return len(names), names


def class_count(found: Any) -> int:
    """Return how many classes videos have by their names, or else by their labels."""
    if found.classes is not None:
        return len(found.classes)
    if found.labels is None:
        raise InputError("the list names neither classes nor labels; say how many there are with --classes")
    return max(found.labels) + 1


def _check_numbered(path: Path, val: Path, classes: Sequence[str], n_classes: int) -> None:
    """Say that classes with names are numbered in sorted order beside numbers alone, or refuse where that is wrong."""
    way = f"the labels of {path} are numbers and those of {val} names: pass --classes, a file of the names in order"
    if len(classes) != n_classes:
        raise InputError(f"expected videos to score of {n_classes} classes, got {len(classes)}; {way}")
    _say(f"{way}; without it the names count in sorted order, {classes[0]} as 0")


def _tell_untrained(found: Any, n_classes: int) -> None:
    """Name the classes that no training video is of: no network learns them."""
    trained = set(found.labels)
    if absent := [k for k in range(n_classes) if k not in trained]:
        shown = ", ".join(str(k) if found.classes is None else found.classes[k] for k in absent[:5])
        more = ", …" if len(absent) > 5 else ""
        hint = "; are the labels 1-based?" if absent == [0] and found.classes is None else ""
        _say(f"no training video is of {len(absent)} of the {n_classes} classes: {shown}{more}{hint}")


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # under torchrun, one process speaks
        click.echo(text, err=True)
