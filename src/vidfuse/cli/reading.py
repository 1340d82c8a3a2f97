"""Predictions as arguments: folders of caches or the dumps themselves, and the options that say how dumps are read."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

import vidfuse as vf
from vidfuse.cli import options
from vidfuse.cli.late import load_late
from vidfuse.errors import InputError

__all__ = ["Reading", "reads_predictions", "sources", "takes_recipe", "with_recipe"]

takes_recipe = click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))

_OPTIONS = (
    click.option(
        "--kind",
        multiple=True,
        metavar="[MEMBER=]KIND",
        help="What a dump's numbers are: logits, log-likelihoods, probabilities or sum. Needed with dumps, as it is "
        "never guessed; caches know theirs.",
    ),
    click.option(
        "--annotations",
        multiple=True,
        metavar="[MEMBER=]FILE",
        help="The list of videos whose order the dumps follow; it gives ids and labels.",
    ),
    click.option("--no-labels", is_flag=True, help="Take no labels from dumps: they are placeholders."),
    click.option("--head", multiple=True, metavar="[MEMBER=]HEAD", help="Which scores, where a dump has several."),
    click.option(
        "--columns",
        multiple=True,
        metavar="[MEMBER=]PATTERN",
        help="Which columns of a table are scores: a pattern such as 'p*', or their names with commas between.",
    ),
    click.option(
        "--id-column",
        multiple=True,
        metavar="[MEMBER=]NAME",
        help="The column, or array, of the ids; 'none' where there is none.",
    ),
    click.option(
        "--ids",
        type=click.Choice(["path", "stem", "exact"]),
        default="path",
        show_default=True,
        help="How names become ids, in dumps and lists alike: the path without a video's suffix, the file's name alone "
        "(stem), or as they stand (exact).",
    ),
    click.option(
        "--classes",
        metavar="FILE|NAME,NAME,...|sorted",
        help="The classes' names in order: a file with one a line, or the names themselves; 'sorted' sorts those that "
        "are found.",
    ),
    click.option(
        "--class-map",
        multiple=True,
        metavar="MEMBER=FILE",
        help="A csv `member's class,class` for a member of fewer, coarser or finer classes than the others.",
    ),
    click.option(
        "--repeats",
        metavar="REDUCTION",
        help="Average the predictions that a video has in several of a member's files, as of fold models on the same "
        "test videos: mean-probability, mean-log, vote or max.",
    ),
    click.option(
        "--join",
        type=click.Choice(["exact", "inner", "outer"]),
        default="exact",
        show_default=True,
        help="Where members have different videos: refuse, keep those that all have, or keep those that any has.",
    ),
    click.option(
        "--missing",
        type=click.Choice(["error", "leave-out", "renormalise"]),
        default="error",
        show_default=True,
        help="Where a member has no prediction for a video (NaN, zeros): refuse, leave the video out, or share the "
        "member's weight among the others.",
    ),
    click.option(
        "--checkpoints",
        type=click.Choice(["same", "any"]),
        default="same",
        show_default=True,
        help="Caches know the checkpoints that made them: refuse others than those of a fit, or compare nothing.",
    ),
    click.option("--partial", is_flag=True, help="Of caches in which some video could not be decoded, take the rest."),
    click.option(
        "--folds", is_flag=True, help="The folders given are folds, each predicted by a model of its own, not shards."
    ),
    click.option("--labelled", is_flag=True, help="Of caches, take only the videos that have a label."),
)


_OF_DUMPS = ("kind", "annotations", "no_labels", "head", "columns", "id_column", "classes", "class_map", "repeats")


@dataclass(frozen=True)
class Reading:
    """How predictions are read: one field for each option of the same name."""

    kind: tuple[str, ...]
    annotations: tuple[str, ...]
    no_labels: bool
    head: tuple[str, ...]
    columns: tuple[str, ...]
    id_column: tuple[str, ...]
    ids: Any
    classes: str | None
    class_map: tuple[str, ...]
    repeats: str | None
    join: Any
    missing: str
    checkpoints: Any
    partial: bool
    folds: bool
    labelled: bool

    def open(
        self,
        source: tuple[str, ...],
        views: Any,
        members: Any = None,
        annotations: Any = None,
        *,
        as_read: bool = False,
    ) -> Any:
        """Open predictions as a stack.

        Args:
            source: A folder of caches, shards of them, or `MEMBER=FILE` for each dump.
            views: How views are reduced, as in `vidfuse.read_predictions`.
            members: Which members to take, in this order; by default all.
            annotations: The list of these videos, where it is not that of `--annotations`.
            as_read: Reduce the views of caches block by block, for one pass.
        """
        if all("=" not in word or os.path.exists(word) for word in source):
            stack = self._caches(source, views, members, as_read)
        else:
            stack = self._dumps(options.pairs(source, "MEMBER=FILE, or folders of caches"), views, annotations)
            stack = stack if members is None else stack.select(members)
        if self.missing == "leave-out" and stack.present is not None:
            stack = stack[stack.present.all(axis=1)]
        return stack

    def _caches(self, folders: tuple[str, ...], views: Any, members: Any, as_read: bool) -> Any:
        given = [name for name in _OF_DUMPS if getattr(self, name)]
        for folder in map(Path, folders):
            if folder.is_file():
                raise InputError(
                    f"{folder}: expected a folder of caches; a dump needs its member's name: NAME={folder}"
                )
            if not folder.exists() and not glob.has_magic(str(folder)):
                raise InputError(
                    f"{folder}: expected a folder of caches, or MEMBER=FILE for each dump; found no such path"
                )
        if given:
            raise InputError(
                f"--{given[0].replace('_', '-')} says how dumps are read (MEMBER=FILE), and {' '.join(folders)} "
                "holds caches"
            )
        return vf.load_stack(
            folders[0] if len(folders) == 1 else folders,
            members=members,
            views=views,
            partial=self.partial,
            join=self.join,
            folds=self.folds,
            labelled=self.labelled,
            checkpoints=self.checkpoints,
            as_read=as_read,
        )

    def _dumps(self, files: Mapping[str, str], views: Any, annotations: Any) -> Any:
        if self.partial:
            raise click.UsageError(
                "--partial is for caches; of dumps, --join inner keeps the videos that all members have"
            )
        for name in ("folds", "labelled"):
            if getattr(self, name):
                raise click.UsageError(f"--{name} is for caches; a dump's files are MEMBER=FILE,FILE,...")
        lists = options.named_values(self.annotations, "MEMBER=FILE") if annotations is None else annotations
        return vf.read_predictions(
            {name: _files(text) for name, text in files.items()},
            kind=options.named_values(self.kind, "MEMBER=KIND"),
            annotations=lists,
            views=views,
            labels=None if self.no_labels else "dump",
            classes=None if self.classes is None else _names(self.classes),
            class_map=_class_maps(self.class_map),
            head=options.named_values(self.head, "MEMBER=HEAD"),
            columns=_columns(self.columns),
            id_column=options.named_values(self.id_column, "MEMBER=NAME"),
            ids=self.ids,
            repeats=self.repeats,
            join=self.join,
            missing={"error": "error", "leave-out": "leave-out", "renormalise": "keep"}[self.missing],
        )


def sources(required: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the argument that takes predictions: folders of caches, or `MEMBER=FILE` for each dump."""
    return click.argument("source", nargs=-1, required=required, metavar="SOURCE...")


def reads_predictions(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say how predictions are read, as one argument `reading`."""
    names = [field.name for field in fields(Reading)]

    @functools.wraps(command)
    def collected(*args: Any, **given: Any) -> Any:
        load_late("scipy.stats")
        load_late("pandas")
        _refuse_inputs(given)
        reading = Reading(**{name: given.pop(name) for name in names})
        return command(*args, reading=reading, **given)

    for add in reversed(_OPTIONS):
        collected = add(collected)
    return collected


def _refuse_inputs(given: Mapping[str, Any]) -> None:
    """Refuse to write over what a command reads: the output is one of its files, under this name or another.

    A recipe may be written anew by the commands that make recipes: `record` and `refresh`.
    """
    out = given.get("out")
    if out is None or not out.is_file():
        return
    renewed = click.get_current_context().command.name in ("record", "refresh")
    words: list[Any] = []
    for name, value in given.items():
        if name != "out" and not (name == "recipe" and renewed):
            words += value if isinstance(value, tuple) else [value]
    for word in words:
        if isinstance(word, str | Path) and any(path.samefile(out) for path in _named_files(str(word))):
            raise click.UsageError(f"--out {out}: this file is read ({word}), and would be lost; choose another name")


def _named_files(word: str) -> list[Path]:
    """Return the files that an argument names: itself, or after a member's name, with commas between, or by patterns.

    Example:
        >>> _named_files("swin=/dev/null,/no/such/file"), _named_files("mean-log")
        ([], [])
    """
    texts = [word, *_files(word.partition("=")[2])]
    found = [path for text in texts if text for path in (text, *glob.glob(text))]
    return [Path(path) for path in dict.fromkeys(found) if os.path.isfile(path)]


def with_recipe(recipe: Path, source: tuple[str, ...], reading: Reading, *, as_read: bool = False) -> tuple[Any, Any]:
    """Load a recipe, and the members that it names; `as_read` as in `Reading.open`.

    Raises:
        click.UsageError: Dumps were given, and not those of the recipe's members.
    """
    loaded = vf.load_recipe(recipe)
    given = [word.partition("=")[0] for word in source if "=" in word and not os.path.exists(word)]
    if given and (absent := [name for name in loaded.members if name not in given]):
        raise click.UsageError(
            f"{recipe} was fitted on the members {', '.join(loaded.members)}; give MEMBER=FILE for each: "
            f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing"
        )
    return loaded, reading.open(source, loaded.views or "mean-log", list(loaded.members), as_read=as_read)


def _files(text: str) -> list[str]:
    """Return a member's files: one, several with commas between, or a pattern.

    Example:
        >>> _files("a/fold0.npz,a/fold1.npz"), _files("oof_*.npy")
        (['a/fold0.npz', 'a/fold1.npz'], ['oof_*.npy'])
    """
    return [text] if os.path.exists(text) else [part for part in text.split(",") if part]


def _columns(values: tuple[str, ...]) -> Any:
    """Return which columns are scores, one value for all or by member: a pattern, or names.

    Example:
        >>> _columns(("p*",)), _columns(("swin=walk,run", "x3d=p*"))
        ('p*', {'swin': ['walk', 'run'], 'x3d': 'p*'})
    """
    named = options.named_values(values, "MEMBER=PATTERN")
    if isinstance(named, dict):
        return {name: text.split(",") if "," in text else text for name, text in named.items()}
    return named.split(",") if named is not None and "," in named else named


def _names(text: str) -> list[str] | str:
    """Return class names: the lines of a file, or the words between commas; "sorted" as it is.

    Example:
        >>> _names("walk,run"), _names("sorted")
        (['walk', 'run'], 'sorted')
    """
    if text == "sorted":
        return text
    from vidfuse.formats.containers import read_text

    if os.path.isfile(text):  # also where the names are longer than a path can be
        return [line.strip() for line in read_text(Path(text)).splitlines() if line.strip()]
    if "," not in text:
        raise click.BadParameter(f"--classes: expected a file of names, one a line, or NAME,NAME,...; got {text!r}")
    return [name.strip() for name in text.split(",")]


def _class_maps(values: tuple[str, ...]) -> dict[str, dict[str, list[str]]] | None:
    """Read {member: {its class: classes}} from `MEMBER=FILE` options; a class may stand in several lines."""
    import csv

    from vidfuse.formats.containers import read_text

    maps: dict[str, dict[str, list[str]]] = {}
    for member, name in options.pairs(values, "MEMBER=FILE").items():
        path = Path(name)
        if not path.is_file():
            raise click.BadParameter(f"--class-map: found no file at {path}")
        own = maps.setdefault(member, {})
        for number, row in enumerate(csv.reader(read_text(path).splitlines()), start=1):
            if len(row) != 2:
                raise InputError(f"{path}: line {number}: expected `member's class,class`, got {','.join(row)!r}")
            own.setdefault(row[0].strip(), []).append(row[1].strip())
    return maps or None
