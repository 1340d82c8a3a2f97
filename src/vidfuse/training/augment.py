"""Regularisation of a whole batch: MixUp and CutMix, from torchvision, applied to clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.training.recipes import TrainRecipe

try:
    import torch
    from torch import Tensor
    from torchvision import tv_tensors
    from torchvision.transforms import v2
except ImportError as error:
    raise MissingExtraError("training", "training") from error

__all__ = ["augment_batch"]


def augment_batch(clips: Any, labels: Tensor, recipe: TrainRecipe, n_classes: int) -> tuple[Any, Tensor]:
    """Mix pairs of clips as the recipe says; chance comes from torch's global generator.

    Args:
        clips: (N, 3, T, H, W), normalised, floating point; or a mapping of such clips, several members' of the same
            videos, which are mixed alike.
        labels: (N,) class indices.
        recipe: Its `mixup` and `cutmix`.
        n_classes: K.

    Returns:
        The clips, and the labels (N,) or, if clips were mixed, target probabilities (N, K).

    Raises:
        InputError: CutMix of clips of several sizes: one box would cover a different share of each.

    Example:
        >>> clips, labels = torch.zeros(2, 3, 4, 8, 8), torch.tensor([0, 1])
        >>> augment_batch(clips, labels, TrainRecipe(lr=0.1, epochs=1, mixup=0.2), 3)[1].sum(1)
        tensor([1., 1.])
    """
    each = clips if isinstance(clips, Mapping) else {"": clips}
    sizes = {tuple(own.shape[-2:]) for own in each.values()}
    if recipe.cutmix and len(sizes) > 1:
        raise InputError(f"cutmix: expected clips of one size, got {sorted(sizes)}; mixup takes clips of any sizes")
    kinds = [v2.MixUp(alpha=recipe.mixup, num_classes=n_classes)] if recipe.mixup else []
    kinds += [v2.CutMix(alpha=recipe.cutmix, num_classes=n_classes)] if recipe.cutmix else []
    if kinds and len(labels) > 1:
        chosen = kinds[int(torch.randint(len(kinds), ()))]
        mixed, targets = chosen({name: tv_tensors.Video(own) for name, own in each.items()}, labels)
        plain = {name: own.as_subclass(Tensor) for name, own in mixed.items()}
        return plain if isinstance(clips, Mapping) else plain[""], targets
    return clips, labels
