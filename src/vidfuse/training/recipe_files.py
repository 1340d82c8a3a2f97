"""Recipes as YAML files: what `vidfuse train` reads, and what it leaves beside a run so that it can be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from vidfuse._files import replace
from vidfuse._yaml import read_yaml
from vidfuse.errors import InputError
from vidfuse.training.recipes import TrainRecipe

__all__ = ["read_recipe", "write_recipe"]


def read_recipe(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a recipe's fields, and those of its section `augmentation`.

    Args:
        path: A YAML file: fields of `TrainRecipe`, and under `augmentation` fields of `TransformConfig`.

    Returns:
        The fields as they are written, for `TrainRecipe.from_mapping` and `train_input`.

    Raises:
        InputError: There is no such file, or it holds something else.
    """
    fields = read_yaml(Path(path), "a recipe")
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
    replace(path, text.encode())
