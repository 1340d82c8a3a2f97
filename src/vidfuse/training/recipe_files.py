"""Recipes as YAML files: what `vidfuse train` reads, and what it leaves beside a run so that it can be repeated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.training.checkpoints import publish
from vidfuse.training.recipes import TrainRecipe

try:
    import yaml
except ImportError as error:
    raise MissingExtraError("recipes as YAML files", "training") from error

__all__ = ["parse_value", "read_recipe", "write_recipe"]


class _Loader(yaml.SafeLoader):
    """Plain data only, and `1e-3` is a number, as in YAML 1.2; to YAML 1.1 it is a word."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_value(text: str) -> Any:
    """Read one value as YAML has it.

    Example:
        >>> [parse_value(text) for text in ("1e-3", "64", "null", "adamw", "[0.5, 1]")]
        [0.001, 64, None, 'adamw', [0.5, 1]]

    Raises:
        InputError: It is no YAML.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 -- a safe loader
    except yaml.YAMLError as error:
        raise InputError(f"expected a value as YAML, got {text!r}: {error}") from error


def read_recipe(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a recipe's fields, and those of its section `augmentation`.

    Args:
        path: A YAML file: fields of `TrainRecipe`, and under `augmentation` fields of `TransformConfig`.

    Returns:
        The fields as they are written, for `TrainRecipe.from_mapping` and `train_input`.

    Raises:
        InputError: There is no such file, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"expected a recipe, found no file at {path}")
    try:
        fields = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 -- a safe loader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"expected a recipe as YAML in {path}: {error}") from error
    augmentation = fields.pop("augmentation", None) or {} if isinstance(fields, dict) else None
    if not isinstance(augmentation, dict):
        got = type(fields).__name__ if augmentation is None else f"{type(augmentation).__name__} as its augmentation"
        raise InputError(f"{path}: expected fields of a training recipe, got {got}")
    return fields, augmentation


def write_recipe(path: str | Path, recipe: TrainRecipe, augmentation: Mapping[str, Any]) -> None:
    """Publish a recipe with all of its fields.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_recipe(f"{folder}/recipe.yaml", TrainRecipe(lr=1e-5, epochs=2), {"hue": 0.1})
        ...     fields, augmentation = read_recipe(f"{folder}/recipe.yaml")
        >>> fields["lr"], augmentation
        (1e-05, {'hue': 0.1})
    """
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in augmentation.items()}
    text = yaml.safe_dump({**asdict(recipe), "augmentation": plain}, sort_keys=False)
    publish(path, text.encode())
