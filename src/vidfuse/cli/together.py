"""`vidfuse train-together`: several networks on the same decoded videos, their fusion followed from stage to stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vidfuse.cli import options
from vidfuse.cli.decoding import Decoding, keep_left_out, listed_failures
from vidfuse.cli.late import modules
from vidfuse.cli.runs import RecipeOptions, batch_of_rank, begun, checkpoint_file, keep_start, one_view, resolved_recipe
from vidfuse.cli.videos import ToTrain
from vidfuse.errors import InputError

__all__ = ["train_together"]


@click.command("train-together")
@options.asks(ToTrain, "videos")
@click.argument("networks", nargs=-1, required=True, metavar="[MEMBER=]NETWORK...")
@options.asks(RecipeOptions, "asked")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    metavar="MEMBER=FILE",
    help="Weights that a member starts from: a run's, or published ones. Its clips are as these were trained on.",
)
@click.option("--shared-time", is_flag=True, help="Draw one place in time for all networks: less is decoded.")
@options.asks(Decoding, "decoding")
@options.out("runs/together", "The run's folder; a run that stopped goes on from its checkpoint.")
@options.as_json
def train_together(
    videos: ToTrain,
    networks: tuple[str, ...],
    asked: RecipeOptions,
    checkpoints: tuple[str, ...],
    shared_time: bool,
    decoding: Decoding,
    out: Path,
) -> None:
    """Train several NETWORKs on each decoded batch of DATA, and fuse their validation predictions after each epoch.

    Each network has the recipe of its name, or that of `--recipe`, with the most epochs and the smallest batch of them
    all unless `--set` says otherwise. Each becomes a checkpoint of its own in the end, <member>.pt.
    """
    # First what every process needs to know alike (recipes, videos, clips), then what each holds of its own (device,
    # models, its share of a batch); the first process alone writes and speaks.
    distributed, fine_tuning, inputs, progress, together, torch = modules(
        *(f"vidfuse.training.{name}" for name in ("distributed", "fine_tuning", "data", "progress", "together")),
        "torch",
    )
    members = options.pairs(tuple(name if "=" in name else f"{name}={name}" for name in networks), "[MEMBER=]NETWORK")
    named = (asked.recipe_name or network for network in members.values())
    batch = min(resolved_recipe(name, asked.settings)[0].batch_size for name in named)
    found, scored, n_classes = videos.to_train()
    files = _checkpoints(checkpoints, members)
    starts = {
        member: fine_tuning.start_from(path, members[member], n_classes, found.classes)
        for member, path in files.items()
    }
    recipes, augmentations = {}, {}
    for member, network in members.items():
        fitting = {"batch_size": batch, "accumulate": 1, **(starts[member].fields if member in starts else {})}
        recipes[member], augmentations[member] = asked.of(network, len(found), fitting)
    epochs = max(recipe.epochs for recipe in recipes.values())
    recipes = {m: dataclasses.replace(r, epochs=epochs, batch_size=batch, accumulate=1) for m, r in recipes.items()}
    if scored is None:
        raise InputError("expected validation videos, on which the members are fused: pass them as --val")
    clips = {m: inputs.train_input(recipes[m], network, **augmentations[m]) for m, network in members.items()}
    views = {m: inputs.view_input(one_view(recipes[m]), network) for m, network in members.items()}
    seed = next(iter(recipes.values())).seed
    with distributed.joined() as device:
        models: dict[str, Any] = {}
        for member, network in members.items():
            torch.manual_seed(recipes[member].seed)
            start = starts.get(member)
            models[member] = inputs.network_for(
                recipes[member].frames,
                network,
                n_classes,
                checkpoint=start.weights if start else None,
                replace_classifier=start is not None,
            )
        batch_here = batch_of_rank(next(iter(recipes.values())), distributed.world_size())
        loader = decoding.loader(found, clips, batch_here, device, seed=seed, shuffle=True, shared_time=shared_time)
        val_loader = decoding.loader(scored, views, batch_here, device)
        together.check_folder(out, models, recipes, loader, val_loader)
        if distributed.rank() == 0:
            for member in members:
                for line in begun(starts.get(member), recipes[member], n_classes, asked.few_clips):
                    progress.say(f"{member}: {line}")
                keep_start(out, files.get(member), member)
            options.save_config(out)
            keep_left_out(out, found, scored)
        result = together.train_together(models, loader, recipes, out, val_loader=val_loader, device=device)
        if distributed.rank() == 0:
            last = result.stages[-1]
            told = [f"{m} {100 * last[f'top1_{m}']:.1f} % (weight {last[f'weight_{m}']:.2f})" for m in members]
            text = (
                f"{epochs} epochs of {batch} videos a step; on {len(scored)} validation videos: {', '.join(told)}; "
                f"fused {100 * last['fused_top1']:.1f} %, cross-fitted\nwritten to {out}: "
                f"{', '.join(f'{m}.pt' for m in members)}, stages.csv"
            )
            failures = {f.id: f.reason for f in (*loader.failures, *val_loader.failures)}
            options.emit(
                {"out": out, "epochs": epochs, "last": last, "failures": list(failures.items())},
                text + listed_failures(failures),
            )


def _checkpoints(given: tuple[str, ...], members: Mapping[str, str]) -> dict[str, Path]:
    """Return the checkpoint that each member starts from, of those that have one."""
    named = options.pairs(given, "MEMBER=FILE")
    if unknown := [member for member in named if member not in members]:
        raise InputError(f"--checkpoint: expected members among {', '.join(members)}, got {', '.join(unknown)}")
    if lost := [path for path in named.values() if not Path(path).exists()]:
        raise InputError(f"--checkpoint: found no checkpoint at {', '.join(lost)}")
    return {member: checkpoint_file(Path(path)) for member, path in named.items()}
