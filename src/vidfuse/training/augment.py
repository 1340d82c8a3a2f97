"""Regularisation of a whole batch: MixUp and CutMix, from torchvision, applied to clips."""

from __future__ import annotations

from vidfuse.errors import MissingExtraError
from vidfuse.training.recipes import TrainRecipe

try:
    import torch
    from torch import Tensor
    from torchvision import tv_tensors
    from torchvision.transforms import v2
except ImportError as error:
    raise MissingExtraError("training", "training") from error

__all__ = ["augment_batch"]


def augment_batch(clips: Tensor, labels: Tensor, recipe: TrainRecipe, n_classes: int) -> tuple[Tensor, Tensor]:
    """Mix pairs of clips as the recipe says; chance comes from torch's global generator.

    Args:
        clips: (N, 3, T, H, W), normalised, floating point.
        labels: (N,) class indices.
        recipe: Its `mixup` and `cutmix`.
        n_classes: K.

    Returns:
        The clips, and the labels (N,) or, if clips were mixed, target probabilities (N, K).

    Example:
        >>> clips, labels = torch.zeros(2, 3, 4, 8, 8), torch.tensor([0, 1])
        >>> augment_batch(clips, labels, TrainRecipe(lr=0.1, epochs=1, mixup=0.2), 3)[1].sum(1)
        tensor([1., 1.])
    """
    kinds = [v2.MixUp(alpha=recipe.mixup, num_classes=n_classes)] if recipe.mixup else []
    kinds += [v2.CutMix(alpha=recipe.cutmix, num_classes=n_classes)] if recipe.cutmix else []
    if kinds and len(clips) > 1:
        chosen = kinds[int(torch.randint(len(kinds), ()))]
        mixed, targets = chosen(tv_tensors.Video(clips), labels)
        return mixed.as_subclass(Tensor), targets
    return clips, labels
