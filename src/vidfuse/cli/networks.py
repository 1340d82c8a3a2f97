"""`vidfuse train` and `vidfuse extract`: from videos to networks, and from networks to caches."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import click

import vidfuse as vf
from vidfuse._files import replace
from vidfuse.cli import options, videos
from vidfuse.errors import InputError, MissingExtraError

__all__ = [
    "batch_of_rank",
    "begun",
    "checkpoint_file",
    "decoding",
    "extract",
    "keep_left_out",
    "listed_failures",
    "loader_of",
    "modules",
    "of_training",
    "resolved_recipe",
    "train",
    "validation",
]

_DECODERS = ("pyav", "torchcodec", "gpu")
_network = click.argument("network")
_workers = click.option("--workers", default=2, show_default=True, help="Processes that decode videos.")
_strict = click.option("--strict", is_flag=True, help="Stop at a video that cannot be decoded, instead of listing it.")
_allow_truncated = click.option("--allow-truncated", is_flag=True, help="Take what is left of videos that end early.")
_decoder = click.option(
    "--decoder",
    type=click.Choice(_DECODERS),
    default="pyav",
    show_default=True,
    help="torchcodec needs its extra and FFmpeg's libraries; gpu is torchcodec on the GPU, without workers.",
)


def decoding(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of what decodes its videos, and of what is done about those that cannot be."""
    return _workers(_decoder(_strict(_allow_truncated(command))))


def validation(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of the videos to score."""
    root = click.option(
        "--val-root",
        type=click.Path(path_type=Path),
        help="The folder that the paths of --val start from, if not --root.",
    )
    return click.option("--val", type=click.Path(exists=True, path_type=Path), help="Videos to score.")(root(command))


def of_training(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what `train` and `train-together` have in common: the videos to score, and the recipe."""
    for add in (
        click.option(
            "--few-clips",
            is_flag=True,
            help="For few training videos from few places: epochs enough, and augmentation that keeps the network from "
            "learning their scenes.",
        ),
        click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set a field of the recipe."),
        click.option(
            "--recipe", "recipe_name", help="A network of the method's Table I, a tiny preset, or a YAML file."
        ),
        validation,
        videos.root,
        videos.layout,
    ):
        command = add(command)
    return command


@click.command()
@_network
@videos.data
@of_training
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, path_type=Path),
    help="Weights to start from: a run's, or published ones. For other classes the classifier is new, and the rest "
    "learns at a tenth of its rate (--set body_rate=0.1).",
)
@click.option(
    "--teacher",
    type=click.Path(exists=True, path_type=Path),
    help="A prediction of the training videos to learn from, with --set distil=0.5: what `vidfuse predict` wrote, or a "
    "cache.",
)
@videos.classes
@decoding
@options.out("runs/train", "The run's folder; a run that stopped goes on from its checkpoint.")
@options.as_json
@click.pass_context
def train(
    context: click.Context,
    network: str,
    data: Path,
    layout: str | None,
    root: Path | None,
    val: Path | None,
    val_root: Path | None,
    recipe_name: str | None,
    settings: tuple[str, ...],
    checkpoint: Path | None,
    teacher: Path | None,
    few_clips: bool,
    classes: str | None,
    workers: int,
    decoder: str,
    strict: bool,
    allow_truncated: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Train NETWORK (a name of the catalogue) on the videos of DATA; under torchrun, on every process.

    The validation videos (`--val`, or the split of that name where DATA has splits) are scored after each epoch; the
    best epoch is kept as best.pt beside last.pt. The recipe as it was resolved is kept as recipe.yaml.
    """
    distributed, fine_tuning, inputs, loop, progress, state, torch = modules(
        *(f"vidfuse.training.{name}" for name in ("distributed", "fine_tuning", "data", "loop", "progress", "state")),
        "torch",
    )
    vf.networks.info(network)  # a name that is none is said before videos are looked for
    found, scored, n_classes = videos.to_train(data, layout, root, classes, val, val_root)
    start = None
    if checkpoint is not None:
        checkpoint = checkpoint_file(checkpoint)
        start = fine_tuning.start_from(checkpoint, network, n_classes, found.classes)
    few = len(found) if few_clips else None
    recipe, augmentation = resolved_recipe(recipe_name or network, settings, start.fields if start else {}, few)
    source = inputs.train_input(recipe, network, **augmentation)
    # From here on every process of torchrun takes part; process 0 alone writes and prints.
    plan = dataclasses.replace(inputs.view_plan(recipe, 1), times="even", crops="centre", flip="never")
    with distributed.joined() as device:
        batch = batch_of_rank(recipe, distributed.world_size())
        torch.manual_seed(recipe.seed)
        model = inputs.network_for(
            recipe.frames,
            network,
            n_classes,
            checkpoint=start.weights if start else None,
            replace_classifier=start is not None,
        )
        settings_of_loader = (batch, workers, decoder, strict, allow_truncated, device)
        loader = loader_of(found, source, *settings_of_loader, seed=recipe.seed, shuffle=True)
        val_loader = None
        if scored is not None:
            val_loader = loader_of(scored, inputs.view_input(plan, network), *settings_of_loader)
        state.check_folder(out, model, recipe, loader, val_loader)
        if distributed.rank() == 0:
            for line in begun(start, recipe, n_classes, few_clips):
                progress.say(line)
            _keep_recipe(out, recipe, augmentation)
            _keep_start(out, checkpoint)
            options.save_config(context, out)
            keep_left_out(out, found, *([] if scored is None else [scored]))
        result = loop.train(
            model.to(device),
            loader,
            recipe,
            out,
            val_loader=val_loader,
            teacher=None if teacher is None else _taught(teacher),
            device=device,
            name=network,
        )
        failures = {f.id: f.reason for f in (*loader.failures, *(val_loader.failures if val_loader else ()))}
        failures = dict(distributed.gathered(list(failures.items())))
        if distributed.rank() == 0:
            last, best = result.history[-1], progress.best_row(result.history)
            text = progress.epoch_line(result.history, recipe.epochs, 0 if scored is None else len(scored))
            told = {"out": out, "epochs": len(result.history), "last": last, "best": best}
            options.emit(
                told | {"failures": list(failures.items())},
                f"{network}: {len(result.history)} epochs; {text}{listed_failures(failures)}\nwritten to {out}"
                + (": last.pt" if best is None else ": last.pt, and best.pt, the best epoch on the validation videos"),
                as_json,
            )


@click.command()
@_network
@videos.data
@videos.layout
@videos.root
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="val", show_default=True)
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="The weights; of a run's folder, best.pt.",
)
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
@videos.classes
@decoding
@options.out("caches/val/member", "The cache's folder; its name is the member's name.")
@options.as_json
@click.pass_context
def extract(
    context: click.Context,
    network: str,
    data: Path,
    layout: str | None,
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
    allow_truncated: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Write the logits of NETWORK for several views of every video of DATA into a cache; resumes where it stopped.

    Clips have the length, interval and size that the checkpoint was trained with, if `vidfuse train` wrote it; else
    those of the catalogue. Its classes are matched by name with those of the training videos, where it knows them.
    """
    distributed, clips, inputs, progress, state = modules(
        "vidfuse.training.distributed", "vidfuse.video.clips",
        *(f"vidfuse.training.{name}" for name in ("data", "progress", "state")),
    )  # fmt: skip
    checkpoint = checkpoint_file(checkpoint)
    facts, known = vf.networks.info(network), state.trained(checkpoint)
    if known is not None and known.network not in (None, network):
        raise InputError(
            f"expected weights of {network} in {checkpoint}, but these are {known.network}'s weights: "
            f"vidfuse extract {known.network} …"
        )
    base = facts if known is None else known.recipe
    if recipe_name is not None:
        base, _ = resolved_recipe(recipe_name, ())
    n_named, names = videos.class_names(classes)
    found = videos.listed(data, layout, root, split, names)
    n_classes = n_named or (known.n_classes if known else videos.class_count(found))
    found = videos.of_classes(found, data, known.classes if known else None, n_classes)
    if found.classes is not None and len(found.classes) != n_classes:
        raise InputError(
            f"expected a network of the {len(found.classes)} classes of {data}, got one of {n_classes}: {checkpoint}"
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
        views = inputs.view_input(plan, network)
        loader = loader_of(found, views, batch_size, workers, decoder, strict, allow_truncated, device)
        if distributed.rank() == 0:
            keep_left_out(out, found)
        done = vf.extract(
            model,
            loader,
            out,
            views=plan,
            ids=list(found.ids),
            classes=found.classes,
            precision=precision,
            device=device,
        )
        failures = dict(distributed.gathered(done.failures))
        written = int(distributed.total([done.written], device)[0])
        if distributed.rank() == 0:
            options.save_config(context, out)
            accuracy, n_labelled = _accuracy(out)
            result = {"out": out, "written": written, "present": done.present, "accuracy": accuracy}
            result["failures"] = list(failures.items())
            text = (
                f"{written} videos written in {done.seconds:.1f} s, {done.present} were there; each in {plan.n_views} "
                f"views of {plan.length} frames, interval {plan.interval}, {plan.size} pixels"
            )
            if accuracy is not None:
                text += (
                    f"\naccuracy {progress.accuracy_text(accuracy, n_labelled)} labelled videos, their views averaged"
                )
            hint = progress.decoding_hint(loader, done.waited, done.seconds)
            progress.say(hint or "", hint is not None)
            options.emit(result, text + listed_failures(failures) + f"\nwritten to {out}", as_json)


def _taught(path: Path) -> Any:
    """Read a teacher's prediction: probabilities in a file, or a cache."""
    if path.is_dir():
        return vf.load_stack({"teacher": path}, views="mean-log")
    return vf.read_predictions({"teacher": path}, kind="probabilities", labels=None)


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


def loader_of(
    found: Any,
    source: Any,
    batch: int,
    workers: int,
    decoder: str,
    strict: bool,
    allow_truncated: bool,
    device: Any,
    *,
    seed: int = 0,
    shuffle: bool = False,
    shared_time: bool = False,
) -> Any:
    """Return a loader of this process's share of the videos."""
    datasets, loader, distributed = modules(
        "vidfuse.video.datasets", "vidfuse.video.loader", "vidfuse.training.distributed"
    )
    gpu = device.type == "cuda"
    if decoder == "gpu" and not gpu:
        raise InputError(
            "--decoder gpu: expected a GPU that torch can use, found none; leave it out, or take torchcodec"
        )
    where = {"decoder": "torchcodec", "device": str(device)} if decoder == "gpu" else {"decoder": decoder}
    return loader.VideoLoader(
        datasets.VideoDataset(
            found, source, seed=seed, strict=strict, allow_truncated=allow_truncated, shared_time=shared_time, **where
        ),
        batch,
        shuffle=shuffle,
        workers=0 if decoder == "gpu" else workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=gpu and decoder != "gpu",
    )


def modules(*names: str) -> list[ModuleType]:
    """Import the modules that need torch and the decoder, or say which extra they come with."""
    try:
        return [importlib.import_module(name) for name in names]
    except MissingExtraError:
        raise
    except ImportError as error:
        raise MissingExtraError("training and extraction", "training") from error


def begun(start: Any, recipe: Any, n_classes: int, few_clips: bool) -> list[str]:
    """Say what of a checkpoint is kept, and how it learns; and what a recipe of few clips sets."""
    lines = []
    if start is not None and start.new_classifier:
        lines.append(
            f"a new classifier of {n_classes} classes; the rest, of the checkpoint, learns at {recipe.body_rate:g} of "
            "its rate (--set body_rate=…)"
        )
    elif start is not None:
        lines.append("the checkpoint's classifier is kept")
    if few_clips:
        lines.append(
            f"few clips: {recipe.epochs} epochs, {100 * recipe.scenes:g} % of the clips before other scenes "
            "(--set epochs=…, scenes=…)"
        )
    return lines


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
            raise InputError(f"expected a recipe of {', '.join(presets)}, or a YAML file, got {name!r}")
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


def _keep_recipe(out: Path, recipe: Any, augmentation: dict[str, Any]) -> None:
    """Keep the resolved recipe beside the run, or hold a run that goes on to the recipe that it began with."""
    (files,) = modules("vidfuse.training.recipe_files")
    path, now = out / "recipe.yaml", {**dataclasses.asdict(recipe), "augmentation": augmentation}
    if path.exists() and (out / "last.pt").exists():
        fields, own = files.read_recipe(path)
        before = {**dataclasses.asdict(type(recipe).from_mapping(fields)), "augmentation": own}
        differ = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if differ == ["epochs"] and now["epochs"] > before["epochs"]:
            differ = []  # a run may be given more
        if differ:
            raise InputError(
                f"expected {out} to hold a run of this recipe, got one that differs in {', '.join(differ)}; "
                "train into another folder or remove this one"
            )
    files.write_recipe(path, recipe, augmentation)


def _keep_start(out: Path, checkpoint: Path | None) -> None:
    """Keep the digest of the weights that a run starts from, or hold a run that goes on to those that it began with."""
    path, now = out / "start.json", None
    if checkpoint is not None:
        with checkpoint.open("rb") as file:
            now = {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    if not (out / "last.pt").exists():
        path.unlink(missing_ok=True)
    elif now is not None and (not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != now):
        raise InputError(
            f"expected {out} to hold a run that began with the weights of {checkpoint}, got one that began with "
            "others; train into another folder"
        )
    if now is not None:
        replace(path, json.dumps(now) + "\n")


def checkpoint_file(path: Path) -> Path:
    """Return the checkpoint at a path; of a run's folder that of its best epoch, or its last where none was scored."""
    if not path.exists():
        raise InputError(f"--checkpoint: expected a checkpoint file, or a run's folder, but there is nothing at {path}")
    if not path.is_dir():
        return path
    found = next((path / name for name in ("best.pt", "last.pt") if (path / name).is_file()), None)
    if found is None:
        raise InputError(f"--checkpoint: expected a checkpoint, or a run's folder with best.pt or last.pt, got {path}")
    click.echo(f"weights: {found}", err=True)
    return found


def _accuracy(cache: Path) -> tuple[float | None, int]:
    """Return the accuracy of a cache's videos, their views averaged, and their number; None if they have no labels."""
    if not (cache / "meta.json").is_file():  # no video could be decoded
        return None, 0
    stack = vf.load_stack({cache.name: cache}, views="mean-log", partial=True)
    if stack.labels is None or not len(stack):
        return None, 0
    return float((stack.scores(cache.name).argmax(1) == stack.labels).mean()), len(stack)


def keep_left_out(out: Path, *lists: Any) -> None:
    """List every video that was left out before the work began, and why, in `<out>.left-out.csv`, if there are any."""
    (logs,) = modules("vidfuse.training.logs")
    rows = [{"video": name, "reason": reason} for one in lists for name, reason in one.skipped]
    rows += [{"video": name, "reason": "not in the list"} for one in lists for name in one.unlisted]
    if rows:
        out.parent.mkdir(parents=True, exist_ok=True)
        logs.write_csv(out.with_name(out.name + ".left-out.csv"), rows)


def listed_failures(failures: dict[str, str]) -> str:
    """Name the videos that could not be decoded."""
    lines = [f"{len(failures)} could not be decoded:"] if failures else []
    return "".join(f"\n{line}" for line in [*lines, *(f"  {name}: {reason}" for name, reason in failures.items())])
