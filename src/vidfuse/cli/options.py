"""What several commands share: their options, how a result is printed, and where a configuration is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from vidfuse import __version__
from vidfuse._files import replace

__all__ = ["as_json", "emit", "named_values", "out", "pairs", "partial", "save_config", "source", "views"]

source = click.argument("source", type=click.Path(exists=True, path_type=Path))
views = click.option(
    "--views",
    default="mean-log",
    show_default=True,
    help="How a member's views of a video become one prediction: mean-log, mean-probability, vote or max.",
)
partial = click.option(
    "--partial", is_flag=True, help="Take the videos that all members have, where some could not be decoded."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def out(default: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option `--out`, a path with this default."""
    return click.option("--out", type=click.Path(path_type=Path), default=default, show_default=True, help=text)


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
    """Read an option that is either one value for every member, or `NAME=VALUE` for each.

    Example:
        >>> [named_values(values, "MEMBER=KIND") for values in (("logits",), ("a=logits", "b=sum"), ())]
        ['logits', {'a': 'logits', 'b': 'sum'}, None]
    """
    if not values:
        return None
    if len(values) == 1 and "=" not in values[0]:
        return values[0]
    return pairs(values, what)


def emit(result: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Print a result: the text for people, or the mapping as JSON."""
    click.echo(json.dumps(result, indent=2, default=_plain, allow_nan=True) if as_json else text)


def save_config(context: click.Context, out: Path) -> Path:
    """Write the command and every option as they were resolved to `<out>.config.json`, and return that path."""
    path = out.with_name(out.name + ".config.json")
    config = {"vidfuse": __version__, "command": context.command.name, "options": dict(context.params)}
    return replace(path, json.dumps(config, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """Return what JSON can hold of a path, an array or a NumPy number."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
