"""`vidfuse train`: from videos to a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import vidfuse as vf
from vidfuse.cli import options
from vidfuse.cli.decoding import Decoding, keep_left_out, listed_failures
from vidfuse.cli.late import modules
from vidfuse.cli.runs import RecipeOptions, batch_of_rank, begun, checkpoint_file, keep_start, one_view
from vidfuse.cli.videos import ToTrain

__all__ = ["train"]


@click.command()
@click.argument("network")
@options.asks(ToTrain, "videos")
@options.asks(RecipeOptions, "asked")
@click.option(
    "--checkpoint",
    type=options.FOUND,
    help="Weights to start from: a run's, or published ones. For other classes the classifier is new, and the rest "
    "learns at a tenth of its rate (--set body_rate=0.1).",
)
@click.option(
    "--teacher",
    type=options.FOUND,
    help="A prediction of the training videos to learn from, with --set distil=0.5: what `vidfuse predict` wrote, or a "
    "cache.",
)
@options.asks(Decoding, "decoding")
@options.out("runs/train", "The run's folder; a run that stopped goes on from its checkpoint.")
@options.as_json
def train(
    network: str,
    videos: ToTrain,
    asked: RecipeOptions,
    checkpoint: Path | None,
    teacher: Path | None,
    decoding: Decoding,
    out: Path,
) -> None:
    """Train NETWORK (a name of the catalogue) on the videos of DATA; under torchrun, on every process.

    The validation videos (`--val`, or the split of that name where DATA has splits) are scored after each epoch; the
    best epoch is kept as best.pt beside last.pt. The recipe as it was resolved is kept as recipe.yaml.
    """
    training = ("distributed", "fine_tuning", "data", "loop", "progress", "recipe_files", "state")
    distributed, fine_tuning, inputs, loop, progress, files, state, torch = modules(
        *(f"vidfuse.training.{name}" for name in training), "torch"
    )
    vf.networks.info(network)  # a name that is none is said before videos are looked for
    found, scored, n_classes = videos.to_train()
    start = None
    if checkpoint is not None:
        checkpoint = checkpoint_file(checkpoint)
        start = fine_tuning.start_from(checkpoint, network, n_classes, found.classes)
    recipe, augmentation = asked.of(network, len(found), start.fields if start else {})
    source = inputs.train_input(recipe, network, **augmentation)
    # From here on every process of torchrun takes part; process 0 alone writes and prints.
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
        loader = decoding.loader(found, source, batch, device, seed=recipe.seed, shuffle=True)
        val_loader = None
        if scored is not None:
            views = inputs.view_input(one_view(recipe), network)
            val_loader = decoding.loader(scored, views, batch, device)
        state.check_folder(out, model, recipe, loader, val_loader)
        if distributed.rank() == 0:
            for line in begun(start, recipe, n_classes, asked.few_clips):
                progress.say(line)
            files.write_recipe(out / "recipe.yaml", recipe, augmentation)
            keep_start(out, checkpoint)
            options.save_config(out)
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
            text = progress.epoch_line(result.history, recipe.epochs)
            told = {"out": out, "epochs": len(result.history), "last": last, "best": best}
            options.emit(
                told | {"failures": list(failures.items())},
                f"{network}: {text}{listed_failures(failures)}\nwritten to {out}"
                + (": last.pt" if best is None else ": last.pt, and best.pt, the best epoch on the validation videos"),
            )


def _taught(path: Path) -> Any:
    """Read a teacher's prediction: probabilities in a file, or a cache."""
    if path.is_dir():
        return vf.load_stack({"teacher": path}, views="mean-log")
    return vf.read_predictions({"teacher": path}, kind="probabilities", labels=None)
