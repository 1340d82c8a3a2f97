"""Options of the command line from a file: a YAML that people write, or the configuration that a command has saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vidfuse.errors import InputError

__all__ = ["read_config"]


def read_config(path: Path, command: click.Command, name: str) -> dict[str, Any]:
    """Read what a file says about a command's options and arguments.

    Args:
        path: A YAML file with a section for each command, or a `.config.json` that a command has saved.
        command: The command that is about to run.
        name: Its name, which is its section's.

    Returns:
        Values by the name of click's parameter, as `Context.default_map` takes them.

    Raises:
        InputError: The file has another form, or names an option that the command lacks.
        MissingExtraError: A YAML file, and pyyaml is not installed.
    """
    content = _read(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a section for each command, got {type(content).__name__}")
    saved = isinstance(content.get("command"), str) and "options" in content
    sections = {content["command"]: content["options"]} if saved else content
    if name not in sections:
        raise InputError(f"{path}: expected a section {name!r}, got {', '.join(map(str, sections)) or 'none'}")
    section = sections[name]
    if not isinstance(section, dict):
        raise InputError(f"{path}: expected options in the section {name!r}, got {type(section).__name__}")
    known = {spelling: parameter for parameter in command.params for spelling in _spellings(parameter)}
    if unknown := [str(key) for key in section if key not in known]:
        names = ", ".join(sorted({_spellings(parameter)[0] for parameter in command.params}))
        raise InputError(f"{path}: {name} has no option {', '.join(unknown)}; it has {names}")
    given = {key: value for key, value in section.items() if value is not None}
    return {known[key].name or "": _as_typed(known[key], value) for key, value in given.items()}


def _read(path: Path) -> Any:
    if path.suffix == ".json":
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"expected options as JSON in {path}: {error}") from error
    from vidfuse._yaml import read_yaml

    return read_yaml(path, "options")


def _spellings(parameter: click.Parameter) -> list[str]:
    """How a parameter may be called: as it is typed without dashes, and as a saved configuration has it."""
    typed = [text.lstrip("-") for text in (*parameter.opts, *parameter.secondary_opts)]
    return [*typed, parameter.name or ""]


def _as_typed(parameter: click.Parameter, value: Any) -> Any:
    """Return a value as the command line has it: `NAME=VALUE` words for a mapping, a list for what may come often."""
    if not (parameter.nargs == -1 or (isinstance(parameter, click.Option) and parameter.multiple)):
        if isinstance(value, (list, dict)):
            raise InputError(f"expected one value for {_spellings(parameter)[0]}, got {value!r}")
        return value
    if isinstance(value, Mapping):
        return [f"{name}={_word(inner)}" for name, inner in value.items()]
    return [str(word) for word in value] if isinstance(value, list) else [str(value)]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
