"""What several commands share: their options, how a result is printed, and where a configuration is kept."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any

import click

from vidfuse import __version__
from vidfuse._files import replace

__all__ = [
    "COUNT",
    "FILE",
    "FOUND",
    "OUT",
    "PATH",
    "SHARE",
    "as_json",
    "asked",
    "asks",
    "emit",
    "grouped",
    "groups",
    "groups_of",
    "named_values",
    "out",
    "pairs",
    "save_config",
    "source",
    "views",
]


class _Output(click.Path):
    """What is written: a file or folder with a name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if str(value) in ("", "-"):
            self.fail(
                f"expected the name of a file or folder to write, got {str(value)!r}: nothing goes to a pipe",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


_JSON = "vidfuse.json"  # of a context: whether `emit` prints JSON

PATH = click.Path(path_type=Path)
OUT = _Output(path_type=Path)
FOUND = click.Path(exists=True, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
COUNT = click.IntRange(min=1)
SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
source = click.argument("source", nargs=-1, required=True, metavar="SOURCE...")
views = click.option(
    "--views",
    multiple=True,
    metavar="[MEMBER=]REDUCTION",
    default=["mean-log"],
    help="How a member's views of a video become one prediction: mean-log, mean-probability, vote or max.",
)
groups = click.option(
    "--groups",
    metavar="PATTERN",
    help="A regular expression: clips with the same match in their ids (its first group, if it has one) are of one "
    "source, and not independent; for v_Run_g01_c02, '^(.*)_c'.",
)
as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    expose_value=False,
    callback=lambda context, _, value: context.meta.update({_JSON: value}),
    help="Print the result as JSON.",
)


def out(default: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option `--out`, a path with this default."""
    return click.option("--out", type=OUT, default=default, help=text)


def asked(option: str | Callable[..., Any], *names: str, **settings: Any) -> Any:
    """Return a dataclass's field that an option fills, given as `click.option` takes it, or one that is there."""
    return field(metadata={"add": click.option(option, *names, **settings) if isinstance(option, str) else option})


def asks(group: Callable[..., Any], name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of a dataclass's fields, as one argument of this name.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Size:
        ...     width: int = asked("--width", default=2)
        >>> @click.command()
        ... @asks(Size, "size")
        ... def show(size):
        ...     click.echo(size)
        >>> show(["--width", "3"], standalone_mode=False)
        Size(width=3)
    """
    own = fields(group)  # type: ignore[arg-type]  # of a dataclass

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def collected(*args: Any, **given: Any) -> Any:
            taken = group(**{one.name: given.pop(one.name) for one in own})
            return command(*args, **{name: taken}, **given)

        for one in reversed(own):
            collected = one.metadata["add"](collected)
        return collected

    return decorate


def pairs(values: tuple[str, ...], what: str) -> dict[str, str]:
    """Split `NAME=VALUE` arguments.

    Args:
        values: The arguments as they were typed.
        what: The form that is expected, for the message.

    Raises:
        click.BadParameter: an argument has no `=`, or a name comes twice.

    Example:
        >>> pairs(("swin=val_swin.pkl", "x3d=val_x3d.npz"), "MEMBER=FILE")
        {'swin': 'val_swin.pkl', 'x3d': 'val_x3d.npz'}
    """
    result: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise click.BadParameter(f"expected {what}, got {value!r}")
        if name in result:
            raise click.BadParameter(f"{name!r} comes twice: {result[name]!r} and {rest!r}")
        result[name] = rest
    return result


def named_values(values: tuple[str, ...], what: str) -> str | dict[str, str] | None:
    """Read an option that is either one value for every member, or `NAME=VALUE` for each; a file may have a "=".

    Example:
        >>> [named_values(values, "MEMBER=KIND") for values in (("logits",), ("a=logits", "b=sum"), ())]
        ['logits', {'a': 'logits', 'b': 'sum'}, None]
    """
    if not values:
        return None
    if len(values) == 1 and ("=" not in values[0] or os.path.exists(values[0])):
        return values[0]
    return pairs(values, what)


def grouped(stack: Any, pattern: str | None) -> Any:
    """Return a stack with what each video comes from: what the pattern finds in its id.

    Example:
        >>> import numpy as np
        >>> import vidfuse as vf
        >>> stack = vf.LogitStack.from_arrays(np.zeros((3, 1, 2)), ids=["run_g01_c1", "run_g01_c2", "run_g02_c1"])
        >>> grouped(stack, "^(.*)_c").groups.tolist()
        ['run_g01', 'run_g01', 'run_g02']

    Raises:
        click.BadParameter: the pattern is none, finds nothing in some id, or there are no ids.
    """
    if pattern is None:
        return stack
    if stack.ids is None:
        raise click.BadParameter(
            "--groups: it reads ids, and these predictions have none; pass --annotations, the list of videos in the "
            "rows' order"
        )
    return stack.with_groups(groups_of(pattern, stack.ids.tolist()))


def groups_of(pattern: str, ids: Sequence[str]) -> Any:
    """Return what each id comes from, as `vidfuse.video.groups_by_pattern` has it.

    Raises:
        click.BadParameter: the pattern is none, or finds nothing in some id.
    """
    from vidfuse.errors import InputError
    from vidfuse.video import groups_by_pattern

    try:
        return groups_by_pattern(ids, pattern)
    except InputError as error:
        raise click.BadParameter(f"--groups: {error}") from error


def emit(result: Mapping[str, Any], text: str) -> None:
    """Print a result: the text for people, or with `--json` the mapping, in which infinite numbers are null."""
    as_json = click.get_current_context().meta[_JSON]
    click.echo(json.dumps(_finite(result), indent=2, allow_nan=False) if as_json else text)


def _finite(value: Any) -> Any:
    """Return a value as JSON can hold it.

    Example:
        >>> _finite({"nll": float("inf"), "of": (1, Path("a"))})
        {'nll': None, 'of': [1, 'a']}
    """
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else _finite(_plain(value))


def save_config(out: Path) -> Path:
    """Write the command and every option as they were resolved to `<out>.config.json`, and return that path."""
    context, path = click.get_current_context(), out.with_name(out.name + ".config.json")
    as_json = {"as_json": context.meta[_JSON]} if _JSON in context.meta else {}
    config = {"vidfuse": __version__, "command": context.command.name, "options": {**context.params, **as_json}}
    return replace(path, json.dumps(config, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """Return what JSON can hold of a path, an array or a NumPy number."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
