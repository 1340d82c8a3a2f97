"""YAML as plain data: of recipes, and of the command line's options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vidfuse.errors import InputError, MissingExtraError

try:
    import yaml
except ImportError as error:
    raise MissingExtraError("reading YAML", "training") from error

__all__ = ["parse_yaml", "read_yaml"]


class _Loader(yaml.SafeLoader):
    """Plain data only, and `1e-3` is a number, as in YAML 1.2; to YAML 1.1 it is a word."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """Read one value as YAML has it.

    Example:
        >>> [parse_yaml(text) for text in ("1e-3", "64", "null", "adamw", "[0.5, 1]")]
        [0.001, 64, None, 'adamw', [0.5, 1]]

    Raises:
        InputError: It is no YAML.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 -- a safe loader
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"expected a value as YAML, got {text[:80]!r}: {error}") from error


def read_yaml(path: Path, what: str) -> Any:
    """Read a file; `what` it should be is named in errors.

    Raises:
        InputError: There is no such file, or it is no YAML.
    """
    if not path.is_file():
        raise InputError(f"expected {what}, found no file at {path}")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 -- a safe loader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"expected {what} as YAML in {path}: {error}") from error
