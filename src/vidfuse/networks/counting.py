"""What a network costs: its parameters, and the multiply-adds of one clip, both counted on the network itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from vidfuse.errors import InputError
from vidfuse.networks.catalogue import create, info

__all__ = ["NetworkCost", "cost"]


@dataclass(frozen=True)
class NetworkCost:
    """The size of a network, and the work of one clip.

    Attributes:
        parameters: Number of parameters.
        gmacs: Multiply-adds of the convolutions and matrix products for one clip, in 10⁹.
        n_classes: Classes that the network was built for; its classifier is part of both figures.
        clip: Frames, height and width of the clip.
    """

    parameters: int
    gmacs: float
    n_classes: int
    clip: tuple[int, int, int]


def cost(
    name: str, num_classes: int | None = None, *, frames: int | None = None, size: int | None = None
) -> NetworkCost:
    """Count a network's parameters and the multiply-adds of one clip. Needs no memory for weights or features.

    Args:
        name: A catalogue name.
        num_classes: K; by default that of the published checkpoint.
        frames: Frames of the clip; by default those of the catalogue.
        size: Height and width of the clip in pixels; by default those of the catalogue.

    Raises:
        InputError: There is no such name, or the network cannot take such clips.

    Example:
        >>> counted = cost("x3d_m", frames=32)
        >>> counted.parameters, round(counted.gmacs, 2), counted.clip
        (3794322, 9.46, (32, 224, 224))
    """
    facts = info(name)
    clip = (facts.frames if frames is None else frames, *(2 * (facts.size if size is None else size,)))
    if min(clip) < 1:
        raise InputError(f"expected a clip of at least one frame and one pixel, got (T, H, W) = {clip}")
    with torch.device("meta"):  # shapes alone
        model = create(name, num_classes).eval()
        clips = torch.empty(1, 3, *clip)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = model(clips)
    # The counter counts a multiply-add as two operations.
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return NetworkCost(parameters, counter.get_total_flops() / 2e9, logits.shape[1], clip)
