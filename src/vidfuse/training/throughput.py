"""How fast this machine trains a network and decodes videos: what a plan of a full run is calculated from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.training.plan import gmacs_of_clip
from vidfuse.training.recipes import TrainRecipe
from vidfuse.video.lists import VideoItem

try:
    import torch

    from vidfuse.training.data import network_for, train_input
    from vidfuse.training.state import Run
    from vidfuse.training.step import Batch, forward_module, take_step
    from vidfuse.video.datasets import VideoDataset
    from vidfuse.video.samples import Failure
except ImportError as error:
    raise MissingExtraError("measuring", "training") from error

__all__ = ["clips_decoded_per_second", "trained_gmacs_per_second"]


def trained_gmacs_per_second(
    network: str, recipe: TrainRecipe, *, batch: int = 1, steps: int = 2, device: torch.device | str = "cpu"
) -> float:
    """Measure the multiply-adds a second of a network's training steps, in 10⁹; the first step is not timed.

    The steps are those of `train` (precision, optimiser, checkpointing as the recipe has them), on random clips. Each
    clip counts as three forward passes, as in `plan_run`.

    Args:
        network: Name of the network in the catalogue.
        recipe: How it is trained.
        batch: Clips in a step.
        steps: Steps that are timed.
        device: Where to run.

    Raises:
        InputError: Fewer than one clip or step.

    Example:
        >>> small = TrainRecipe(lr=0.1, epochs=1, frames=4, size=32)
        >>> trained_gmacs_per_second("x3d_tiny", small, steps=1) > 0
        True
    """
    if min(batch, steps) < 1:
        raise InputError(f"expected at least one clip and one step, got batch={batch}, steps={steps}")
    where = torch.device(device)
    seconds = []
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        run = Run(network_for(recipe.frames, network), recipe, Path(), where)
        forward = forward_module(run)
        run.model.train()
        clips = torch.randn(batch, 3, recipe.frames, recipe.size, recipe.size, device=where)
        group: list[Batch] = [(clips, [f"clip{i}" for i in range(batch)], torch.zeros(batch, dtype=torch.int64))]
        for _ in range(steps + 1):
            began = time.perf_counter()
            take_step(run, forward, group, 1 / batch, 1e-6)  # ends with the gradient's norm: the device has finished
            seconds.append(time.perf_counter() - began)
    return 3 * gmacs_of_clip(network, recipe) * batch * steps / sum(seconds[1:])


def clips_decoded_per_second(
    videos: Sequence[VideoItem], recipe: TrainRecipe, network: str, *, limit: int = 32
) -> float:
    """Measure the clips a second that one core decodes and augments for training, from video files.

    Args:
        videos: Videos like those to be trained on.
        recipe: Its clips.
        network: Name of the network in the catalogue.
        limit: Videos that are read.

    Raises:
        InputError: No video can be decoded.
    """
    data = VideoDataset(videos, train_input(recipe, network), seed=recipe.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        began = time.perf_counter()
        clips = sum(not isinstance(data[i], Failure) for i in range(min(limit, len(data))))
        seconds = time.perf_counter() - began
    finally:
        torch.set_num_threads(threads)
    if clips == 0:
        raise InputError(f"expected videos that can be decoded to measure with, got none in {len(videos)}")
    return clips / seconds
