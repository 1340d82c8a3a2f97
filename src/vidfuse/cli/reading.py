"""Predictions as arguments: folders of caches or the dumps themselves, and the options that say how dumps are read."""

from __future__ import annotations

import functools
import glob
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import vidfuse as vf
from vidfuse.cli import options
from vidfuse.cli.late import load_late
from vidfuse.errors import InputError, VidfuseWarning

__all__ = ["OF_DUMPS", "GroupedReading", "Reading", "are_caches", "reads", "takes_recipe"]

takes_recipe = click.argument("recipe", type=options.FILE)

OF_DUMPS = ("kind", "annotations", "no_labels", "head", "columns", "id_column", "classes", "class_map", "repeats")


@dataclass(frozen=True)
class Reading:
    """Predictions, and how they are read: the argument SOURCE, and one option for each field."""

    source: tuple[str, ...] = options.asked(options.source)
    kind: tuple[str, ...] = options.asked(
        "--kind",
        multiple=True,
        metavar="[MEMBER=]KIND",
        help="What a dump's numbers are: logits, log-likelihoods, probabilities or sum. Needed with dumps, as it is "
        "never guessed; caches know theirs.",
    )
    annotations: tuple[str, ...] = options.asked(
        "--annotations",
        multiple=True,
        metavar="[MEMBER=]FILE",
        help="The list of videos whose order the dumps follow; it gives ids and labels.",
    )
    no_labels: bool = options.asked(
        "--no-labels", is_flag=True, help="Take no labels from dumps: they are placeholders."
    )
    head: tuple[str, ...] = options.asked(
        "--head", multiple=True, metavar="[MEMBER=]HEAD", help="Which scores, where a dump has several."
    )
    columns: tuple[str, ...] = options.asked(
        "--columns",
        multiple=True,
        metavar="[MEMBER=]PATTERN",
        help="Which columns of a table are scores: a pattern such as 'p*', or their names with commas between.",
    )
    id_column: tuple[str, ...] = options.asked(
        "--id-column",
        multiple=True,
        metavar="[MEMBER=]NAME",
        help="The column, or array, of the ids; 'none' where there is none.",
    )
    ids: Any = options.asked(
        "--ids",
        type=click.Choice(["path", "stem", "exact"]),
        default="path",
        help="How names become ids, in dumps and lists alike: the path without a video's suffix, the file's name alone "
        "(stem), or as they stand (exact).",
    )
    classes: str | None = options.asked(
        "--classes",
        metavar="FILE|NAME,NAME,...|sorted",
        help="The classes' names in order: a file with one a line (also with its number) or json, or the names "
        "themselves; 'sorted' sorts those that are found.",
    )
    class_map: tuple[str, ...] = options.asked(
        "--class-map",
        multiple=True,
        metavar="MEMBER=FILE",
        help="A csv `member's class,class` for a member of fewer, coarser or finer classes than the others.",
    )
    repeats: str | None = options.asked(
        "--repeats",
        metavar="REDUCTION",
        help="Average the predictions that a video has in several of a member's files, as of fold models on the same "
        "test videos: mean-probability, mean-log, vote or max.",
    )
    join: Any = options.asked(
        "--join",
        type=click.Choice(["exact", "inner", "outer"]),
        default="exact",
        help="Where members have different videos: refuse, keep those that all have, or keep those that any has.",
    )
    missing: str = options.asked(
        "--missing",
        type=click.Choice(["error", "leave-out", "renormalise"]),
        default="error",
        help="Where a member has no prediction for a video (NaN, zeros): refuse, leave the video out, or share the "
        "member's weight among the others.",
    )
    checkpoints: Any = options.asked(
        "--checkpoints",
        type=click.Choice(["same", "any"]),
        default="same",
        help="Caches know the checkpoints that made them: refuse others than those of a fit, or compare nothing.",
    )
    partial: bool = options.asked(
        "--partial", is_flag=True, help="Of caches in which some video could not be decoded, take the rest."
    )
    folds: bool = options.asked(
        "--folds", is_flag=True, help="The folders given are folds, each predicted by a model of its own, not shards."
    )
    labelled: bool = options.asked(
        "--labelled", is_flag=True, help="Of caches, take only the videos that have a label."
    )

    def open(
        self, views: Any, members: Any = None, *, known: Sequence[str] | None = None, as_read: bool = False
    ) -> Any:
        """Open predictions as a stack.

        Args:
            views: How views are reduced, as in `vidfuse.read_predictions`.
            members: Which members to take, in this order; by default all.
            known: All members of the fit, by default `members`: dumps of the others may be given, and are not read.
            as_read: Reduce the views of caches block by block, for one pass.
        """
        if are_caches(self.source):
            stack = self._caches(self.source, views, members, as_read)
        else:
            given = options.pairs(self.source, "MEMBER=FILE, or folders of caches")
            files = given if members is None else _files_of(given, members, known or members)
            stack = self._dumps(files, set(given) - set(files), views)
            stack = stack if members is None else stack.select(members)
        if self.missing == "leave-out" and stack.present is not None:
            stack = stack[stack.present.all(axis=1)]
        return stack

    def with_recipe(self, recipe: Path, *, as_read: bool = False) -> tuple[Any, Any]:
        """Load a recipe, and the members that it names; `as_read` as in `open`, and parts are checked ahead of use."""
        if as_read:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # blocks are fused on threads; BLAS' own would spin
            from vidfuse.cache.reader import checking_ahead

            click.get_current_context().with_resource(checking_ahead())
        loaded = vf.load_recipe(recipe)
        return loaded, self.open(loaded.views or "mean-log", list(loaded.members), as_read=as_read)

    def _caches(self, folders: tuple[str, ...], views: Any, members: Any, as_read: bool) -> Any:
        given = [name for name in OF_DUMPS if getattr(self, name)]
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

    def _dumps(self, files: Mapping[str, str], left_out: Collection[str], views: Any) -> Any:
        """Read one file, or several, for each member; options of the members that are left out count for nothing."""

        def named(option: str, what: str) -> Any:
            found = options.named_values(getattr(self, option), f"--{option.replace('_', '-')} MEMBER={what}")
            return _without(found, left_out) if isinstance(found, dict) else found

        if self.partial:
            raise click.UsageError(
                "--partial is for caches; of dumps, --join inner keeps the videos that all members have"
            )
        for name in ("folds", "labelled"):
            if getattr(self, name):
                raise click.UsageError(f"--{name} is for caches; a dump's files are MEMBER=FILE,FILE,...")
        return vf.read_predictions(
            {name: _files(text) for name, text in files.items()},
            kind=named("kind", "KIND"),
            annotations=named("annotations", "FILE"),
            views=views,
            labels=None if self.no_labels else "dump",
            classes=None if self.classes is None else _names(self.classes),
            class_map=_without(_class_maps(self.class_map), left_out) or None,
            head=named("head", "HEAD"),
            columns=_columns(named("columns", "PATTERN")),
            id_column=named("id_column", "NAME"),
            ids=self.ids,
            repeats=self.repeats,
            join=self.join,
            missing={"error": "error", "leave-out": "leave-out", "renormalise": "keep"}[self.missing],
        )


@dataclass(frozen=True)
class GroupedReading(Reading):
    """Predictions whose clips may be of one source."""

    groups: str | None = options.asked(options.groups)

    def open(
        self, views: Any, members: Any = None, *, known: Sequence[str] | None = None, as_read: bool = False
    ) -> Any:
        """Open predictions as a stack, with what each video comes from."""
        return options.grouped(super().open(views, members, known=known, as_read=as_read), self.groups)


def are_caches(source: Sequence[str]) -> bool:
    """Return whether a command was given folders of caches, not MEMBER=FILE.

    Example:
        >>> are_caches(("caches/val",)), are_caches(("swin=swin.npz",))
        (True, False)
    """
    return all("=" not in word or os.path.exists(word) for word in source)


def _without(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _files_of(files: Mapping[str, str], members: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Return the files of the members that a fit has, and say which others were given.

    Raises:
        click.UsageError: A member has none; the message names the one that was perhaps meant for it.

    Example:
        >>> _files_of({"swin": "a.npz", "x3d": "b.npz"}, ["swin"], ["swin", "x3d"])
        {'swin': 'a.npz'}
    """
    from vidfuse._checks import did_you_mean, first_few

    absent = [name for name in members if name not in files]
    strange = [name for name in files if name not in known]
    said = f"{first_few(strange)} {'is' if len(strange) == 1 else 'are'} not among the members of the fit"
    if absent:
        besides = f", and {said}{did_you_mean(strange[0], absent)}" if strange else ""
        raise click.UsageError(
            f"the fit has the members {', '.join(members)}; give MEMBER=FILE for each: {', '.join(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} missing{besides}"
        )
    if strange:
        warnings.warn(f"{said}, {first_few(members, 20)}: left out", VidfuseWarning, stacklevel=2)
    return {name: files[name] for name in members}


def reads(how: type[Reading]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the argument SOURCE and the options that say how predictions are read, as one `reading`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        asked = options.asks(how, "reading")(command)

        @functools.wraps(asked)
        def guarded(*args: Any, **given: Any) -> Any:
            load_late("scipy.stats")
            load_late("pandas")
            _refuse_inputs(given)
            return asked(*args, **given)

        return guarded

    return decorate


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


def _files(text: str) -> list[str]:
    """Return a member's files: one, several with commas between, or a pattern.

    Example:
        >>> _files("a/fold0.npz,a/fold1.npz"), _files("oof_*.npy")
        (['a/fold0.npz', 'a/fold1.npz'], ['oof_*.npy'])
    """
    return [text] if os.path.exists(text) else [part for part in text.split(",") if part]


def _columns(named: Any) -> Any:
    """Return which columns are scores, one value for all or by member: a pattern, or names.

    Example:
        >>> _columns("p*"), _columns({"swin": "walk,run", "x3d": "p*"})
        ('p*', {'swin': ['walk', 'run'], 'x3d': 'p*'})
    """
    if isinstance(named, dict):
        return {name: text.split(",") if "," in text else text for name, text in named.items()}
    return named.split(",") if named is not None and "," in named else named


def _names(text: str) -> list[str] | str:
    """Return class names: those in a file, or the words between commas; "sorted" as it is.

    Example:
        >>> _names("walk,run"), _names("sorted")
        (['walk', 'run'], 'sorted')
    """
    if text == "sorted":
        return text
    from vidfuse.formats.class_lists import read_classes

    if os.path.isfile(text):  # also where the names are longer than a path can be
        return read_classes(text)
    if "," not in text:
        raise click.BadParameter(f"--classes: expected a file of names, one a line, or NAME,NAME,...; got {text!r}")
    return [name.strip() for name in text.split(",")]


def _class_maps(values: tuple[str, ...]) -> dict[str, dict[str, list[str]]]:
    """Read {member: {its class: classes}} from `MEMBER=FILE` options; a class may stand in several lines."""
    from vidfuse.formats.containers import read_text
    from vidfuse.formats.tables import split_rows

    maps: dict[str, dict[str, list[str]]] = {}
    for member, name in options.pairs(values, "--class-map MEMBER=FILE").items():
        path = Path(name)
        if not path.is_file():
            raise click.BadParameter(f"--class-map: found no file at {path}")
        own = maps.setdefault(member, {})
        for row, number in zip(*split_rows(read_text(path)), strict=True):
            if len(row) != 2:
                raise InputError(f"{path}: line {number}: expected `member's class,class`, got {','.join(row)!r}")
            own.setdefault(row[0], []).append(row[1])
    return maps
