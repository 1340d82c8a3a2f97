"""The training loop: one network, one recipe, one folder that holds everything needed to go on after an interruption.

A run that is resumed at an epoch's end takes the same steps as one that never stopped: bit by bit on one process and a
CPU, on a GPU up to the order in which its kernels sum.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.stack.stack import LogitStack
from vidfuse.training.recipes import TrainRecipe, learning_rate

try:
    import torch
    from torch import nn

    from vidfuse.training import distributed
    from vidfuse.training.evaluation import device_of, evaluate
    from vidfuse.training.logs import Events
    from vidfuse.training.progress import bar as progress_bar
    from vidfuse.training.progress import decoding_hint, epoch_line, goes_on_later, say
    from vidfuse.training.state import Run, autocast
    from vidfuse.training.step import (
        Batch,
        DivergedError,
        Loader,
        forward_module,
        groups,
        mean_norm,
        nothing_read,
        take_step,
    )
except ImportError as error:
    raise MissingExtraError("training", "training") from error

__all__ = ["Batch", "DivergedError", "Loader", "TrainResult", "train"]


@dataclass(frozen=True)
class TrainResult:
    """A trained network and how it got there.

    Attributes:
        model: The network in eval mode: its average over the steps if the recipe asks for one.
        history: One row per epoch: epoch, step, lr, loss, grad_norm, seconds, waited (share of them spent waiting for
            videos), and val_top1, val_nll, val_n (how many were scored) where there is a validation loader.
        folder: Where checkpoint and logs lie.
        resumed_at: Epochs that were already done when this call began.
    """

    model: nn.Module
    history: list[dict[str, float]]
    folder: Path
    resumed_at: int = 0
    videos_per_second: float = field(default=math.nan, compare=False)


def train(
    model: nn.Module,
    loader: Loader,
    recipe: TrainRecipe,
    folder: str | Path,
    *,
    val_loader: Iterable[Batch] | None = None,
    teacher: LogitStack | None = None,
    device: torch.device | str | None = None,
    tensorboard: bool = True,
    progress: bool = True,
    name: str = "train",
) -> TrainResult:
    """Train a network by a recipe, or go on from where the folder's checkpoint stands.

    After each epoch the folder receives `last.pt` (everything a resumed run needs), `best.pt` (the weights of the epoch
    with the highest validation accuracy so far), `log.csv` (one row an epoch), and TensorBoard's events. Called on a
    finished run it loads the weights and trains nothing; with a recipe of more epochs, and nothing else changed, it
    goes on along the longer schedule. Under `torchrun` each rank passes a loader of its own share of the videos, the
    gradient is the mean over all of them, and rank 0 writes.

    Args:
        model: A network `clips (N, 3, T, H, W) -> logits (N, K)`, or one that returns an object with `.logits`.
        loader: Yields `(clips, ids, labels)`; batches of `batch_size / (accumulate * ranks)` if the recipe is to hold.
        recipe: How to train.
        folder: The run's own folder.
        val_loader: Videos to score after each epoch, `(clips, ids, labels)`.
        teacher: A prediction of each training video, by id, for a recipe with `distil`: one member's scores, such as
            those of a recipe on caches of the training videos.
        device: Where to train; the network's own device if left out.
        tensorboard: Whether to write TensorBoard's events too, if it is installed.
        progress: Whether to write a line an epoch to stderr, and on a terminal a bar with speed and time left.
        name: What the bar calls the run.

    Returns:
        The network with its final weights, and the history.

    Raises:
        DivergedError: A loss or gradient is not finite; the last checkpoint is whole.
        InputError: The folder belongs to another run, which may be one that runs, the loader is empty or without
            labels, or a training video has no prediction by the teacher.

    Example:
        >>> import tempfile
        >>> clips, labels = torch.eye(4).reshape(4, 4, 1, 1, 1), torch.tensor([0, 1, 0, 1])
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> recipe = TrainRecipe(lr=1.0, epochs=9, batch_size=4, reference_batch=4, precision="float32")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = train(model, [(clips, list("abcd"), labels)], recipe, folder, tensorboard=False, progress=False)
        >>> done.history[-1]["loss"] < 0.1
        True
    """
    where = torch.device(device) if device is not None else device_of(model)
    if len(loader) == 0:
        raise InputError("expected videos to train on, got an empty loader")
    run = Run(model, recipe, Path(folder), where, loader, teacher, val_loader)
    run.load()
    run.check_ranks()
    resumed_at, seen, began = run.epoch, 0, time.perf_counter()
    gpus = [where] if where.type == "cuda" else []
    unfinished = run.epoch < recipe.epochs and distributed.rank() == 0
    told = progress and unfinished
    with torch.random.fork_rng(devices=gpus), Events(run.folder, run.step, tensorboard and unfinished) as events:
        forward = forward_module(run)
        steps = -(
            -len(loader) // recipe.accumulate
        )  # the bar counts the whole run's, so that its time left is the run's
        with (
            progress_bar(steps * recipe.epochs, steps * run.epoch, name, "step", told) as bar,
            goes_on_later(name, run, told),
        ):
            while run.epoch < recipe.epochs:
                row, videos = _train_epoch(run, forward, loader, bar)
                seen += videos
                run.agree()
                if val_loader is not None:
                    with autocast(where, run.dtype):
                        scores = evaluate(run.best, val_loader, device=where)
                    row |= {"val_top1": scores["top1"], "val_nll": scores["nll"], "val_n": scores["n"]}
                run.history.append(row)
                run.epoch += 1
                events.write(row, run.step)
                if distributed.rank() == 0:
                    run.save()
                each = (time.perf_counter() - began) / (run.epoch - resumed_at)
                left = each * (recipe.epochs - run.epoch)
                say(f"{name} {epoch_line(run.history, recipe.epochs, left)}", told)
                if told and run.epoch == resumed_at + 1:
                    hint = decoding_hint(loader, row["waited"], row["seconds"])
                    say(hint or "", hint is not None)
    run.best.eval()
    speed = seen / (time.perf_counter() - began) if seen else math.nan
    return TrainResult(run.best, run.history, run.folder, resumed_at, speed)


def _train_epoch(run: Run, forward: nn.Module, loader: Loader, bar: Any) -> tuple[dict[str, float], int]:
    """Pass over the loader once and return the epoch's row of the log, and the videos this rank saw."""
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(run.epoch)
    run.model.train()
    began = time.perf_counter()
    steps = distributed.largest(-(-len(loader) // run.recipe.accumulate), run.device)
    loss = lr = 0.0
    videos = 0
    norms: list[float] = []
    waited, stepped = 0.0, began
    for group, local, n in groups(loader, run.recipe.accumulate, run.device):
        waited += time.perf_counter() - stepped
        lr = learning_rate(run.recipe, run.epoch + min(1.0, len(norms) / steps))
        scale = distributed.world_size() / n if local else 0.0
        step_loss, norm = take_step(run, forward, group, scale, lr)
        norms.append(norm)
        loss += step_loss if local else 0.0
        videos += local
        bar.update()
        speed = videos * distributed.world_size() / (time.perf_counter() - began)
        bar.set_postfix_str(
            f"epoch {run.epoch + 1}/{run.recipe.epochs}, loss {loss / max(1, videos):.3f}, {speed:.0f} clips/s"
        )
        stepped = time.perf_counter()
    if not norms:
        raise InputError(nothing_read(loader))
    total_loss, total_videos = distributed.total([loss, videos], run.device)
    row = {
        "epoch": run.epoch + 1,
        "step": run.step,
        "lr": lr,
        "loss": total_loss / total_videos,
        "grad_norm": mean_norm(norms),
        "seconds": round(time.perf_counter() - began, 3),
        "waited": round(waited / (time.perf_counter() - began), 3),
    }
    return row, videos
