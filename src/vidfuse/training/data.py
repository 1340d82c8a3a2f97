"""What a recipe asks of network and data: its clip length, the training clip's augmentation, the plan of the views."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vidfuse import networks
from vidfuse.errors import InputError
from vidfuse.networks.checkpoints import COUNTED, parts, read_checkpoint
from vidfuse.training.recipes import TrainRecipe
from vidfuse.video.clips import ClipSampler, ViewPlan
from vidfuse.video.datasets import Input, Views
from vidfuse.video.transforms import TransformConfig

if TYPE_CHECKING:
    from vidfuse.networks.layers import VideoNetwork

__all__ = ["network_for", "train_input", "view_input", "view_plan"]


def network_for(frames: int, network: str, num_classes: int | None = None, **options: Any) -> VideoNetwork:
    """Build a network for clips of a number of frames; one that is made for a fixed number is made for this one.

    Args:
        frames: Frames of a clip.
        network: Name of the network in the catalogue.
        num_classes: K; by default that of the published checkpoint.
        options: What else `networks.create` takes.

    Raises:
        InputError: There is no such network, or the checkpoint holds other weights; where they are those of another
            network of the catalogue, it is named.

    Example:
        >>> network_for(32, "tin_tiny", num_classes=5).config.segments
        32
    """
    tied = {"segments": frames} if hasattr(networks.settings(network), "segments") else {}
    try:
        return networks.create(network, num_classes, **tied, **options)
    except InputError as error:
        owner = _owner(options.get("checkpoint"), network)
        if owner in (None, network):
            raise
        raise InputError(
            f"expected weights of {network}, but these are {owner}'s weights; nothing was loaded: take {owner}"
        ) from error


def _owner(checkpoint: Any, asked: str) -> str | None:
    """Name the network of the catalogue whose weights a checkpoint holds: the one that was asked for, or another."""
    if checkpoint is None:
        return None
    try:
        weights = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
    except InputError:
        return None
    totals = {sum(value.numel() for value in part.values()) for part in parts(weights)}
    architecture = asked.partition(".")[0]
    # Some share their weights' shapes: the one that was asked for comes first, then its other sources.
    for name in sorted(networks.names(), key=lambda name: (name != asked, name.partition(".")[0] != architecture)):
        # Only those of about as many parameters are built, without memory for them; classifiers differ.
        size = networks.info(name).parameters
        if not any(0.5 < size / max(1, total) < 2 for total in totals):
            continue
        try:
            with torch.device("meta"):
                model = networks.create(name, 2)
            own = model.state_dict()
            converted = networks.convert_state_dict(networks.find_weights(weights, model)[0], name)
        except (InputError, RuntimeError, NotImplementedError):
            continue
        shapes = [{k: tuple(v.shape) for k, v in s.items() if "classifier" not in k} for s in (own, converted)]
        own_shapes = {k: v for k, v in shapes[0].items() if not k.endswith(COUNTED)}
        if own_shapes == {k: v for k, v in shapes[1].items() if not k.endswith(COUNTED)}:
            return name
    return None


def train_input(recipe: TrainRecipe, network: str, **augmentation: Any) -> Input:
    """Return how a network's training clips are drawn and augmented, with the network's own colour statistics.

    Args:
        recipe: Its frames, interval, skip, size and erasing.
        network: Name of the network in the catalogue.
        augmentation: Fields of `TransformConfig` to set; its defaults are the method's (flip, gray, colour jitter).

    Raises:
        InputError: A field that `TransformConfig` does not have, or that the recipe sets.

    Example:
        >>> from vidfuse.training import TABLE_I
        >>> train_input(TABLE_I["x3d"], "x3d_m").sampler
        ClipSampler(length=32, interval=2, skip=2)
    """
    facts = networks.info(network)
    own = {"size": recipe.size, "erase": recipe.erasing}
    known = [field.name for field in dataclasses.fields(TransformConfig) if field.name not in own]
    if unknown := sorted(set(augmentation) - set(known)):
        raise InputError(f"expected augmentations of {', '.join(known)}; got {', '.join(unknown)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in augmentation.items()}
    colours = {"mean": facts.mean, "std": facts.std}
    try:
        transform = TransformConfig(**(own | colours | values))
    except TypeError as error:
        raise InputError(f"expected augmentations as numbers, got {augmentation}") from error
    return Input(ClipSampler(recipe.frames, recipe.interval, recipe.skip), transform)


def view_plan(recipe: TrainRecipe, clips: int = 10, *, seed: int = 0) -> ViewPlan:
    """Return the method's views: random clips of the training length, each with a random crop and flip.

    Args:
        recipe: Its frames, interval and size; the short side is 8/7 of the size, as 256 is of 224.
        clips: Views a video.
        seed: Seed of the plan.

    Example:
        >>> from vidfuse.training import TABLE_I
        >>> view_plan(TABLE_I["x3d"]).n_views
        10
    """
    return ViewPlan(
        clips=clips,
        length=recipe.frames,
        interval=recipe.interval,
        crops="random",
        flip="random",
        size=recipe.size,
        short_side=round(recipe.size * 8 / 7),
        seed=seed,
    )


def view_input(plan: ViewPlan, network: str) -> Views:
    """Return a plan of views with the colour statistics of a network.

    Args:
        plan: Which clips, crops and flips of a video.
        network: A name of the catalogue.

    Raises:
        InputError: The catalogue has no such network.

    Example:
        >>> view_input(ViewPlan(clips=2), "x3d_tiny").mean
        (0.45, 0.45, 0.45)
    """
    facts = networks.info(network)
    return Views(plan, facts.mean, facts.std)
