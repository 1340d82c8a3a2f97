"""What commands share that train networks, or take what was trained: recipes, and the checkpoints of runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from vidfuse._files import replace
from vidfuse.cli import options
from vidfuse.cli.late import modules
from vidfuse.errors import InputError

__all__ = [
    "RecipeOptions",
    "batch_of_rank",
    "begun",
    "checkpoint_file",
    "keep_start",
    "one_view",
    "resolved_recipe",
    "run_of",
]


@dataclass(frozen=True)
class RecipeOptions:
    """How networks are trained, by the options that `train` and `train-together` have in common."""

    recipe_name: str | None = options.asked(
        "--recipe", "recipe_name", help="A network of the method's Table I, a tiny preset, or a YAML file."
    )
    settings: tuple[str, ...] = options.asked(
        "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set a field of the recipe."
    )
    few_clips: bool = options.asked(
        "--few-clips",
        is_flag=True,
        help="For few training videos from few places: epochs enough, and augmentation that keeps the network from "
        "learning their scenes.",
    )

    def of(self, network: str, n_videos: int, fitting: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return a network's recipe and its augmentations; `fitting` as in `resolved_recipe`."""
        few = n_videos if self.few_clips else None
        return resolved_recipe(self.recipe_name or network, self.settings, fitting, few)


def resolved_recipe(
    name: str, settings: tuple[str, ...], fitting: Mapping[str, Any] = MappingProxyType({}), few: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """Return the training recipe of a name or a YAML file, and its augmentations, with single fields set.

    Args:
        name: A network of Table I, a tiny preset, or a YAML file.
        settings: Fields to set, `NAME=VALUE`.
        fitting: Fields that hold where neither a YAML file nor `settings` names them.
        few: The number of training videos, if the recipe is to be one of few clips; what is named holds all the same.
    """
    from vidfuse.training.recipes import TABLE_I, TINY, TrainRecipe, few_clips

    files, values = modules("vidfuse.training.recipe_files", "vidfuse._yaml")
    base, fields, augmentation = None, {}, {}
    if Path(name).suffix in (".yaml", ".yml"):
        fields, augmentation = files.read_recipe(name)
    else:
        presets = {**TABLE_I, **TINY}
        key = name if name in presets else name.split("_")[0].split(".")[0]
        if key not in presets:
            raise InputError(
                f"expected a recipe of {', '.join(presets)}, or a YAML file, got {name!r}; --recipe takes that "
                "of another network"
            )
        base = presets[key]
    for field, text in options.pairs(settings, "NAME=VALUE").items():
        section, dot, own = field.partition("augmentation.")
        target, key = (augmentation, own) if dot and not section else (fields, field)
        target[key] = values.parse_yaml(text)
    recipe = TrainRecipe.from_mapping({**fitting, **fields}, base)
    if few is not None:
        named = fields | ({"warmup_epochs": recipe.warmup_epochs} if "epochs" in fields else {})
        recipe = TrainRecipe.from_mapping(named, few_clips(recipe, few))
    return recipe, augmentation


def batch_of_rank(recipe: Any, ranks: int) -> int:
    """Return how many videos a process passes forward at once."""
    parts = recipe.accumulate * ranks
    batch, rest = divmod(recipe.batch_size, parts)
    if rest:
        near = [str(n * parts) for n in (batch, batch + 1) if n]
        raise InputError(
            f"expected a batch_size that {ranks} processes of {recipe.accumulate} passes divide, got "
            f"{recipe.batch_size}; take --set batch_size={' or '.join(near)}: the learning rate is scaled with it"
        )
    return int(batch)


def one_view(recipe: Any) -> Any:
    """Return how videos to score are seen: one clip in the middle, its central crop."""
    data = modules("vidfuse.training.data")[0]
    return dataclasses.replace(data.view_plan(recipe, 1), times="even", crops="centre", flip="never")


def begun(start: Any, recipe: Any, n_classes: int, few_clips: bool) -> list[str]:
    """Say what of a checkpoint is kept, and how it learns; and what a recipe of few clips sets."""
    lines = [] if start is None else [f"from the checkpoint: {start.taken}"]
    if start is not None and start.new_classifier:
        lines.append(
            f"a new classifier of {n_classes} classes; the rest, of the checkpoint, learns at {recipe.body_rate:g} of "
            "its rate (--set body_rate=…)"
        )
    elif start is not None:
        lines.append("the checkpoint's classifier is kept")
    if few_clips:
        lines.append(
            f"few clips: epochs={recipe.epochs}, {100 * recipe.scenes:g} % of the clips before other scenes "
            "(--set epochs=…, scenes=…)"
        )
    return lines


def run_of(checkpoint: Path, network: str | None, whose: str = "") -> Any:
    """Return what a checkpoint says of the run that left it, as `vidfuse.training.state.trained`; None of another file.

    Raises:
        InputError: It is of another network's run; the message begins with `whose`.
    """
    run = modules("vidfuse.training.state")[0].trained(checkpoint)
    if run is not None and network is not None and run.network not in (None, network):
        raise InputError(
            f"{whose}expected weights of {network} in {checkpoint}, but these are {run.network}'s weights; take "
            f"{run.network}"
        )
    return run


def checkpoint_file(path: Path) -> Path:
    """Return the checkpoint at a path; of a run's folder that of its best epoch, or its last where none was scored."""
    if not path.exists():
        raise InputError(f"--checkpoint: expected a checkpoint file, or a run's folder, but there is nothing at {path}")
    if not path.is_dir():
        return path
    if (path / "stages.csv").is_file():
        own = ", ".join(str(file) for file in sorted(path.glob("*.pt")) if file.name != "last.pt")
        raise InputError(f"--checkpoint: {path} is a run of several networks; take one's own checkpoint: {own}")
    found = next((path / name for name in ("best.pt", "last.pt") if (path / name).is_file()), None)
    if found is None:
        raise InputError(f"--checkpoint: expected a checkpoint, or a run's folder with best.pt or last.pt, got {path}")
    click.echo(f"weights: {found}", err=True)
    return found


def keep_start(out: Path, checkpoint: Path | None, member: str | None = None) -> None:
    """Keep the digest of the weights that a run, or a member of one, starts from; without any, that there are none.

    Raises:
        InputError: A run that goes on is given other weights than it began with.
    """
    path, digest = out / ("start.json" if member is None else f"start-{member}.json"), None
    if checkpoint is not None:
        with checkpoint.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    if (out / "last.pt").exists():
        told = path.is_file()
        before = json.loads(path.read_text(encoding="utf-8"))["sha256"] if told else None
        # Before there was such a file, one network began without weights, and of members it was not kept.
        if digest is not None and before != digest and (told or member is None):
            raise InputError(
                f"expected {out} to hold a run that began with the weights of {checkpoint}, got one that began with "
                "others; train into another folder"
            )
    else:
        replace(path, json.dumps({"sha256": digest}) + "\n")
