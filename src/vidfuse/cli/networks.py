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
_DECODERS = ("pyav", "torchcodec", "gpu")
_network = click.argument("network")
_data = click.argument("data", type=click.Path(exists=True, path_type=Path))
_layout = click.option(
    "--layout",
    type=click.Choice(_LAYOUTS),
    default="vipriors",
    show_default=True,
    help="What DATA is: the challenge's folder, one folder per class, an MMAction2 list, or a csv list.",
)
_root = click.option("--root", type=click.Path(path_type=Path), help="The folder that a list's paths start from.")
_workers = click.option("--workers", default=2, show_default=True, help="Processes that decode videos.")
_classes = click.option(
    "--classes", metavar="N|FILE", help="How many classes a list has, or a file of their names, one per line."
)
_strict = click.option("--strict", is_flag=True, help="Stop at a video that cannot be decoded, instead of listing it.")
_decoder = click.option(
    "--decoder",
    type=click.Choice(_DECODERS),
    default="pyav",
    show_default=True,
    help="torchcodec needs its extra and FFmpeg's libraries; gpu is torchcodec on the GPU, without workers.",
)


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
@_decoder
@_strict
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
    classes: str | None,
    workers: int,
    decoder: str,
    strict: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Train NETWORK (a name of the catalogue) on the videos of DATA; under torchrun, on every process.

    With `--layout vipriors` the train split is trained on and the val split is scored after each epoch. The recipe as
    it was resolved is kept as recipe.yaml in the run's folder.
    """
    distributed, inputs, loop, state, torch = _modules(
        *(f"vidfuse.training.{name}" for name in ("distributed", "data", "loop", "state")), "torch"
    )
    recipe, augmentation = _recipe(recipe_name or network, settings)
    source = inputs.train_input(recipe, network, **augmentation)
    n_named, names = _class_names(classes)
    videos = _videos(layout, data, root, "train", names)
    n_classes = n_named or _class_count(videos)
    if videos.classes is not None and len(videos.classes) != n_classes:
        raise InputError(
            f"--classes: expected {len(videos.classes)}, the classes of {data}, got {n_classes}; leave it out, or pass "
            "a file of all names"
        )
    videos, scored = _of_classes(videos, data, None, n_classes), None
    if val is not None or layout == "vipriors":
        scored = _of_classes(_videos(layout, val or data, root, "val", names), val or data, videos.classes, n_classes)
    # From here on every process of torchrun takes part; process 0 alone writes and prints.
    plan = dataclasses.replace(inputs.view_plan(recipe, 1), times="even", crops="centre", flip="never")
    with distributed.joined() as device:
        batch = _batch_of_rank(recipe, distributed.world_size())
        torch.manual_seed(recipe.seed)
        model = inputs.network_for(
            recipe.frames,
            network,
            n_classes,
            checkpoint=checkpoint,
            replace_classifier=checkpoint is not None,
        )
        settings_of_loader = (batch, workers, decoder, strict, device)
        loader = _loader(videos, source, *settings_of_loader, seed=recipe.seed, shuffle=True)
        state.check_folder(out, model, recipe, loader)
        if distributed.rank() == 0:
            _keep_recipe(out, recipe, augmentation)
            options.save_config(context, out)
            _keep_left_out(out, videos, *([] if scored is None else [scored]))
        val_loader = None
        if scored is not None:
            val_loader = _loader(scored, inputs.view_input(plan, network), *settings_of_loader)
        result = loop.train(model.to(device), loader, recipe, out, val_loader=val_loader, device=device, name=network)
        failures = {f.id: f.reason for f in (*loader.failures, *(val_loader.failures if val_loader else ()))}
        failures = dict(distributed.gathered(list(failures.items())))
        if distributed.rank() == 0:
            last = result.history[-1]
            options.emit(
                {"out": out, "epochs": len(result.history), "last": last, "failures": list(failures.items())},
                f"{network}: {len(result.history)} epochs, "
                + ", ".join(f"{name} {value:.4g}" for name, value in last.items())
                + _listed(failures)
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
@click.option("--recipe", "recipe_name", help="Take clips as this recipe does; by default as the checkpoint's run did.")
@click.option("--clips", "n_clips", default=10, show_default=True, help="Clips of each video.")
@click.option("--frames", type=click.IntRange(min=1), help="Frames of a clip, other than the recipe's.")
@click.option("--interval", type=click.IntRange(min=1), help="Distance of frames, other than the recipe's.")
@click.option("--size", type=click.IntRange(min=1), help="Side of a clip in pixels, other than the recipe's.")
@click.option("--times", type=click.Choice(["random", "even"]), default="random", show_default=True)
@click.option("--crops", type=click.Choice(["random", "centre", "three"]), default="random", show_default=True)
@click.option("--flip", type=click.Choice(["random", "never", "both"]), default="random", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Seed of the clips.")
@click.option("--batch-size", default=8, show_default=True, help="Videos in one batch.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the forward pass.",
)
@_classes
@_workers
@_decoder
@_strict
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
    recipe_name: str | None,
    n_clips: int,
    frames: int | None,
    interval: int | None,
    size: int | None,
    times: Any,
    crops: Any,
    flip: Any,
    seed: int,
    batch_size: int,
    precision: Any,
    classes: str | None,
    workers: int,
    decoder: str,
    strict: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Write the logits of NETWORK for several views of every video of DATA into a cache; resumes where it stopped.

    Clips have the length, interval and size that the checkpoint was trained with, if `vidfuse train` wrote it; else
    those of the catalogue. Its classes are matched by name with those of the training videos, where it knows them.
    """
    distributed, clips, inputs, state = _modules(
        "vidfuse.training.distributed", "vidfuse.video.clips", "vidfuse.training.data", "vidfuse.training.state"
    )
    facts, known = vf.networks.info(network), state.trained(checkpoint)
    base = facts if known is None else known.recipe
    if recipe_name is not None:
        base, _ = _recipe(recipe_name, ())
    n_named, names = _class_names(classes)
    videos = _videos(layout, data, root, split, names)
    n_classes = n_named or (known.n_classes if known else _class_count(videos))
    videos = _of_classes(videos, data, known.classes if known else None, n_classes)
    if videos.classes is not None and len(videos.classes) != n_classes:
        raise InputError(
            f"expected a network of the {len(videos.classes)} classes of {data}, got one of {n_classes}: {checkpoint}"
        )
    plan = clips.ViewPlan(
        clips=n_clips,
        length=frames or base.frames,
        interval=interval or base.interval,
        times=times,
        crops=crops,
        flip=flip,
        size=size or base.size,
        short_side=round((size or base.size) * 8 / 7),
        seed=seed,
    )
    # From here on every process of torchrun takes part; process 0 alone writes and prints.
    weights = known.weights if known else checkpoint
    model = inputs.network_for(plan.length, network, n_classes, checkpoint=weights)
    with distributed.joined() as device:
        loader = _loader(videos, inputs.view_input(plan, network), batch_size, workers, decoder, strict, device)
        if distributed.rank() == 0:
            _keep_left_out(out, videos)
        done = vf.extract(
            model,
            loader,
            out,
            views=plan,
            ids=list(videos.ids),
            classes=videos.classes,
            precision=precision,
            device=device,
        )
        failures = dict(distributed.gathered(done.failures))
        written = int(distributed.total([done.written], device)[0])
        if distributed.rank() == 0:
            options.save_config(context, out)
            result = {"out": out, "written": written, "present": done.present, "failures": list(failures.items())}
            text = (
                f"{written} videos written in {done.seconds:.1f} s, {done.present} were there; each in {plan.n_views} "
                f"views of {plan.length} frames, interval {plan.interval}, {plan.size} pixels"
            )
            options.emit(result, text + _listed(failures) + f"\nwritten to {out}", as_json)


def _batch_of_rank(recipe: Any, ranks: int) -> int:
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


def _loader(
    videos: Any,
    source: Any,
    batch: int,
    workers: int,
    decoder: str,
    strict: bool,
    device: Any,
    *,
    seed: int = 0,
    shuffle: bool = False,
) -> Any:
    """Return a loader of this process's share of the videos."""
    datasets, loader, distributed = _modules(
        "vidfuse.video.datasets", "vidfuse.video.loader", "vidfuse.training.distributed"
    )
    gpu = device.type == "cuda"
    if decoder == "gpu" and not gpu:
        raise InputError(
            "--decoder gpu: expected a GPU that torch can use, found none; leave it out, or take torchcodec"
        )
    where = {"decoder": "torchcodec", "device": str(device)} if decoder == "gpu" else {"decoder": decoder}
    return loader.VideoLoader(
        datasets.VideoDataset(videos, source, seed=seed, strict=strict, **where),
        batch,
        shuffle=shuffle,
        workers=0 if decoder == "gpu" else workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=gpu and decoder != "gpu",
    )


def _modules(*names: str) -> list[ModuleType]:
    """Import the modules that need torch and the decoder, or say which extra they come with."""
    try:
        return [importlib.import_module(name) for name in names]
    except MissingExtraError:
        raise
    except ImportError as error:
        raise MissingExtraError("training and extraction", "training") from error


def _videos(layout: str, data: Path, root: Path | None, split: str, names: tuple[str, ...] | None) -> Any:
    """Read a list of videos; what is listed and missing goes to standard error."""
    lists = importlib.import_module("vidfuse.video.lists")
    if layout == "vipriors":
        videos = importlib.import_module("vidfuse.video.vipriors").read_vipriors(data, split)
    elif layout == "folders":
        videos = lists.read_class_folders(data)
    else:
        videos = (lists.read_mmaction2 if layout == "mmaction2" else lists.read_csv_list)(data, root)
    if not len(videos):
        raise InputError(f"{data}: expected at least one video in the split {split!r}, got none; {videos.summary()}")
    if os.environ.get("RANK", "0") == "0":  # under torchrun, one process speaks
        click.echo(videos.summary(), err=True)
    return _of_classes(videos, data, names)


def _of_classes(videos: Any, data: Path, names: tuple[str, ...] | None, n_classes: int | None = None) -> Any:
    """Match videos with classes of these names, of this number, or say whose videos do not fit."""
    try:
        videos = videos if names is None else videos.relabelled(names)
        if n_classes is not None:
            videos.check_labels(n_classes)
    except InputError as error:
        raise InputError(f"{data}: {error}") from error
    return videos


def _class_names(given: str | None) -> tuple[int | None, tuple[str, ...] | None]:
    """Return how many classes `--classes` says there are, and their names if it is a file of them."""
    if given is None or given.isdecimal():
        return (None if given is None else int(given)), None
    if not Path(given).is_file():
        raise InputError(f"--classes: expected a number, or a file with one class name per line, got {given!r}")
    names = tuple(line.strip() for line in Path(given).read_text(encoding="utf-8").splitlines() if line.strip())
    return len(names), names


def _class_count(videos: Any) -> int:
    if videos.classes is not None:
        return len(videos.classes)
    if videos.labels is None:
        raise InputError("the list names neither classes nor labels; say how many there are with --classes")
    return max(videos.labels) + 1


def _recipe(name: str, settings: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """Return the training recipe of a name or a YAML file, and its augmentations, with single fields set."""
    from vidfuse.training.recipes import TABLE_I, TINY, TrainRecipe

    files, values = _modules("vidfuse.training.recipe_files", "vidfuse._yaml")
    base, fields, augmentation = None, {}, {}
    if Path(name).suffix in (".yaml", ".yml"):
        fields, augmentation = files.read_recipe(name)
    else:
        presets = {**TABLE_I, **TINY}
        key = name if name in presets else name.split("_")[0].split(".")[0]
        if key not in presets:
            raise InputError(f"expected a recipe of {', '.join(presets)}, or a YAML file, got {name!r}")
        base = presets[key]
    for field, text in options.pairs(settings, "NAME=VALUE").items():
        section, dot, own = field.partition("augmentation.")
        target, key = (augmentation, own) if dot and not section else (fields, field)
        target[key] = values.parse_yaml(text)
    return TrainRecipe.from_mapping(fields, base), augmentation


def _keep_recipe(out: Path, recipe: Any, augmentation: dict[str, Any]) -> None:
    """Keep the resolved recipe beside the run, or hold a run that goes on to the recipe that it began with."""
    (files,) = _modules("vidfuse.training.recipe_files")
    path, now = out / "recipe.yaml", {**dataclasses.asdict(recipe), "augmentation": augmentation}
    if path.exists() and (out / "last.pt").exists():
        fields, own = files.read_recipe(path)
        before = {**fields, "augmentation": own}
        if differ := sorted(name for name in {*before, *now} if before.get(name) != now.get(name)):
            raise InputError(
                f"expected {out} to hold a run of this recipe, got one that differs in {', '.join(differ)}; "
                "train into another folder or remove this one"
            )
    files.write_recipe(path, recipe, augmentation)


def _keep_left_out(out: Path, *lists: Any) -> None:
    """List every video that was left out before the work began, and why, in `<out>.left-out.csv`, if there are any."""
    (logs,) = _modules("vidfuse.training.logs")
    rows = [{"video": name, "reason": reason} for videos in lists for name, reason in videos.skipped]
    rows += [{"video": name, "reason": "a file without a row"} for videos in lists for name in videos.unlisted]
    if rows:
        out.parent.mkdir(parents=True, exist_ok=True)
        logs.write_csv(out.with_name(out.name + ".left-out.csv"), rows)


def _listed(failures: dict[str, str]) -> str:
    """Name the videos that could not be decoded."""
    lines = [f"{len(failures)} could not be decoded:"] if failures else []
    return "".join(f"\n{line}" for line in [*lines, *(f"  {name}: {reason}" for name, reason in failures.items())])
