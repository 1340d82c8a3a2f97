"""`vidfuse train` and `vidfuse extract`: from videos to networks, and from networks to caches."""

from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import click

import vidfuse as vf
from vidfuse.cli import options
from vidfuse.errors import InputError, MissingExtraError

__all__ = ["extract", "train"]

_LAYOUTS = ("vipriors", "folders", "mmaction2", "csv")
_network = click.argument("network")
_data = click.argument("data", type=click.Path(exists=True, path_type=Path))
_layout = click.option(
    "--layout",
    type=click.Choice(_LAYOUTS),
    default="vipriors",
    show_default=True,
    help="What DATA is: the challenge's folder, a folder a class, an MMAction2 list, or a csv list.",
)
_root = click.option("--root", type=click.Path(path_type=Path), help="The folder that a list's paths start from.")
_workers = click.option("--workers", default=2, show_default=True, help="Processes that decode videos.")
_classes = click.option("--classes", type=click.IntRange(min=2), help="Number of classes, where DATA names none.")


@click.command()
@_network
@_data
@_layout
@_root
@click.option("--val", type=click.Path(exists=True, path_type=Path), help="Videos to score after each epoch.")
@click.option("--recipe", "recipe_name", help="A network of the method's Table I, a tiny preset, or a YAML file.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set a field of the recipe.")
@click.option("--checkpoint", type=click.Path(exists=True, path_type=Path), help="Weights to start from.")
@_classes
@_workers
@options.out("runs/train", "The run's folder; a run that stopped goes on from its checkpoint.")
@options.as_json
@click.pass_context
def train(
    context: click.Context,
    network: str,
    data: Path,
    layout: str,
    root: Path | None,
    val: Path | None,
    recipe_name: str | None,
    settings: tuple[str, ...],
    checkpoint: Path | None,
    classes: int | None,
    workers: int,
    out: Path,
    as_json: bool,
) -> None:
    """Train NETWORK (a name of the catalogue) on the videos of DATA; under torchrun, on every process.

    With `--layout vipriors` the train split is trained on and the val split is scored after each epoch.
    """
    recipe = _recipe(recipe_name or network, settings)
    datasets, distributed, inputs, loop = _modules(
        "video.datasets", "training.distributed", "training.data", "training.loop"
    )
    videos = _videos(layout, data, root, "train")
    scored = _videos(layout, val or data, root, "val") if val is not None or layout == "vipriors" else None
    n_classes = _class_count(videos, classes)
    model = inputs.network_for(
        recipe.frames, network, n_classes, checkpoint=checkpoint, replace_classifier=checkpoint is not None
    )
    source = inputs.train_input(recipe, network)
    plan = dataclasses.replace(inputs.view_plan(recipe, 1), times="even", crops="centre", flip="never")
    view = inputs.view_input(plan, network)
    with distributed.joined() as device:
        world = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        batch = max(1, recipe.batch_size // (recipe.accumulate * world["world_size"]))
        loader = datasets.VideoLoader(
            datasets.VideoDataset(videos, source, seed=recipe.seed), batch, shuffle=True, workers=workers, **world
        )
        val_loader = None
        if scored is not None:
            val_loader = datasets.VideoLoader(datasets.VideoDataset(scored, view), batch, workers=workers, **world)
        result = loop.train(model.to(device), loader, recipe, out, val_loader=val_loader, device=device, name=network)
        if world["rank"] == 0:
            options.save_config(context, out)
            last = result.history[-1]
            options.emit(
                {"out": out, "epochs": len(result.history), "last": last},
                f"{network}: {len(result.history)} epochs, "
                + ", ".join(f"{name} {value:.4g}" for name, value in last.items())
                + f"\nwritten to {out}",
                as_json,
            )


@click.command()
@_network
@_data
@_layout
@_root
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="val", show_default=True)
@click.option("--checkpoint", type=click.Path(exists=True, path_type=Path), required=True, help="The weights.")
@click.option("--clips", "n_clips", default=10, show_default=True, help="Random clips of each video.")
@click.option("--frames", type=click.IntRange(min=1), help="Frames of a clip; by default the network's own.")
@click.option("--interval", type=click.IntRange(min=1), help="Distance of frames; by default the network's own.")
@click.option("--size", type=click.IntRange(min=1), help="Side of a clip in pixels; by default the network's own.")
@click.option("--seed", default=0, show_default=True, help="Seed of the clips.")
@click.option("--batch-size", default=8, show_default=True, help="Videos in one batch.")
@click.option("--strict", is_flag=True, help="Stop at a video that cannot be decoded, instead of listing it.")
@_classes
@_workers
@options.out("caches/val/member", "The cache's folder; its name is the member's name.")
@options.as_json
@click.pass_context
def extract(
    context: click.Context,
    network: str,
    data: Path,
    layout: str,
    root: Path | None,
    split: str,
    checkpoint: Path,
    n_clips: int,
    frames: int | None,
    interval: int | None,
    size: int | None,
    seed: int,
    batch_size: int,
    strict: bool,
    classes: int | None,
    workers: int,
    out: Path,
    as_json: bool,
) -> None:
    """Write the logits of NETWORK for several views of every video of DATA into a cache; resumes where it stopped."""
    datasets, distributed, clips, inputs = _modules(
        "video.datasets", "training.distributed", "video.clips", "training.data"
    )
    facts = vf.networks.info(network)
    videos = _videos(layout, data, root, split)
    model = inputs.network_for(frames or facts.frames, network, _class_count(videos, classes), checkpoint=checkpoint)
    plan = clips.ViewPlan(
        clips=n_clips,
        length=frames or facts.frames,
        interval=interval or facts.interval,
        size=size or facts.size,
        short_side=round((size or facts.size) * 8 / 7),
        seed=seed,
    )
    with distributed.joined() as device:
        loader = datasets.VideoLoader(
            datasets.VideoDataset(videos, inputs.view_input(plan, network), strict=strict),
            batch_size,
            workers=workers,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        done = vf.extract(model, loader, out, views=plan, ids=list(videos.ids), classes=videos.classes, device=device)
        if distributed.rank() == 0:
            options.save_config(context, out)
            failures = [list(failure) for failure in done.failures]
            result = {"out": out, "written": done.written, "present": done.present, "failures": failures}
            lines = [
                f"{done.written} videos written in {done.seconds:.1f} s, {done.present} were there, "
                f"{len(failures)} failed",
                *(f"  {name}: {reason}" for name, reason in failures),
                f"written to {out}",
            ]
            options.emit(result, "\n".join(lines), as_json)


def _modules(*names: str) -> list[ModuleType]:
    """Import the modules that need torch and the decoder, or say which extra they come with."""
    try:
        return [importlib.import_module(f"vidfuse.{name}") for name in names]
    except MissingExtraError:
        raise
    except ImportError as error:
        raise MissingExtraError("training and extraction", "training") from error


def _videos(layout: str, data: Path, root: Path | None, split: str) -> Any:
    """Read a list of videos; what is listed and missing goes to standard error."""
    lists = importlib.import_module("vidfuse.video.lists")
    if layout == "vipriors":
        videos = importlib.import_module("vidfuse.video.vipriors").read_vipriors(data, split)
    elif layout == "folders":
        videos = lists.read_class_folders(data)
    else:
        videos = (lists.read_mmaction2 if layout == "mmaction2" else lists.read_csv_list)(data, root)
    if not len(videos):
        raise InputError(f"{data}: expected at least one video in the split {split!r}, got none")
    if os.environ.get("RANK", "0") == "0":  # under torchrun, one process speaks
        click.echo(videos.summary(), err=True)
    return videos


def _class_count(videos: Any, given: int | None) -> int:
    if given is not None:
        return given
    if videos.classes is not None:
        return len(videos.classes)
    if videos.labels is None:
        raise InputError("the list names neither classes nor labels; say how many there are with --classes")
    return max(videos.labels) + 1


def _recipe(name: str, settings: tuple[str, ...]) -> Any:
    """Return the training recipe of a name or a YAML file, with single fields set."""
    from vidfuse.training.recipes import TABLE_I, TINY, TrainRecipe

    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("training", "training") from error
    values = {key: yaml.safe_load(value) for key, value in options.pairs(settings, "NAME=VALUE").items()}
    if Path(name).suffix in (".yaml", ".yml"):
        loaded = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
        if not isinstance(loaded, dict):
            raise InputError(f"{name}: expected fields of a training recipe, got {type(loaded).__name__}")
        return TrainRecipe.from_mapping({**loaded, **values})
    presets = {**TABLE_I, **TINY}
    key = name if name in presets else name.split("_")[0].split(".")[0]
    if key not in presets:
        raise InputError(f"expected a recipe of {', '.join(presets)}, or a YAML file, got {name!r}")
    return TrainRecipe.from_mapping(values, presets[key])
