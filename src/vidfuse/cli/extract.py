"""`vidfuse extract`: from videos and a network to a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import vidfuse as vf
from vidfuse.cli import options
from vidfuse.cli.decoding import Decoding, keep_left_out, listed_failures
from vidfuse.cli.late import modules
from vidfuse.cli.runs import checkpoint_file, resolved_recipe, run_of
from vidfuse.cli.videos import Listed, class_count, class_names, classes, of_classes, tell_order
from vidfuse.errors import InputError

__all__ = ["extract"]


@click.command()
@click.argument("network")
@options.asks(Listed, "videos")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="val")
@click.option("--checkpoint", type=options.FOUND, required=True, help="The weights; of a run's folder, best.pt.")
@click.option("--recipe", "recipe_name", help="Take clips as this recipe does; by default as the checkpoint's run did.")
@click.option("--clips", "n_clips", type=options.COUNT, default=10, help="Clips of each video.")
@click.option("--frames", type=options.COUNT, help="Frames of a clip, other than the recipe's.")
@click.option("--interval", type=options.COUNT, help="Distance of frames, other than the recipe's.")
@click.option("--size", type=options.COUNT, help="Side of a clip in pixels, other than the recipe's.")
@click.option("--times", type=click.Choice(["random", "even"]), default="random")
@click.option("--crops", type=click.Choice(["random", "centre", "three"]), default="random")
@click.option("--flip", type=click.Choice(["random", "never", "both"]), default="random")
@click.option("--seed", default=0, help="Seed of the clips.")
@click.option("--batch-size", type=options.COUNT, default=8, help="Videos in one batch.")
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", help="Of the forward pass."
)
@classes
@options.asks(Decoding, "decoding")
@options.out("caches/val/member", "The cache's folder; its name is the member's name.")
@options.as_json
def extract(
    network: str,
    videos: Listed,
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
    decoding: Decoding,
    out: Path,
) -> None:
    """Write the logits of NETWORK for several views of every video of DATA into a cache; resumes where it stopped.

    Clips have the length, interval and size that the checkpoint was trained with, if `vidfuse train` wrote it; else
    those of the catalogue. Its classes are matched by name with those of the training videos, where it knows them.
    """
    distributed, clips, inputs, progress = modules(
        "vidfuse.training.distributed", "vidfuse.video.clips",
        *(f"vidfuse.training.{name}" for name in ("data", "progress")),
    )  # fmt: skip
    checkpoint = checkpoint_file(checkpoint)
    facts, known = vf.networks.info(network), run_of(checkpoint, network)
    base = facts if known is None else known.recipe
    if recipe_name is not None:
        base, _ = resolved_recipe(recipe_name, ())
    n_named, names = class_names(classes)
    found = videos.listed(split, names)
    if names is None:
        tell_order(checkpoint, known.classes if known else None, found, videos.data)
    n_classes = n_named or (known.n_classes if known else class_count(found))
    found = of_classes(found, videos.data, known.classes if known else None, n_classes)
    if found.classes is not None and len(found.classes) != n_classes:
        raise InputError(
            f"expected a network of the {len(found.classes)} classes of {videos.data}, got one of {n_classes}: "
            f"{checkpoint}; pass --classes, a file of the names of all {n_classes} in their order, or train it on "
            "these with `vidfuse train --checkpoint`"
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
        loader = decoding.loader(found, views, batch_size, device)
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
            options.save_config(out)
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
            options.emit(result, text + listed_failures(failures) + f"\nwritten to {out}")


def _accuracy(cache: Path) -> tuple[float | None, int]:
    """Return the accuracy of a cache's videos, their views averaged, and their number; None if they have no labels."""
    if not (cache / "meta.json").is_file():  # no video could be decoded
        return None, 0
    stack = vf.load_stack({cache.name: cache}, views="mean-log", partial=True)
    if stack.labels is None or not len(stack):
        return None, 0
    return float((stack.scores(cache.name).argmax(1) == stack.labels).mean()), len(stack)
