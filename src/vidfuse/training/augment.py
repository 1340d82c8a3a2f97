"""Regularisation of a whole batch: MixUp and CutMix, from torchvision, and other scenes behind the motion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.training.recipes import TrainRecipe

try:
    import torch
    from torch import Tensor
    from torch.nn.functional import avg_pool2d
    from torchvision import tv_tensors
    from torchvision.transforms import v2
except ImportError as error:
    raise MissingExtraError("training", "training") from error

__all__ = ["augment_batch", "swap_scenes"]


def augment_batch(clips: Any, labels: Tensor, recipe: TrainRecipe, n_classes: int) -> tuple[Any, Tensor]:
    """Mix the clips of a batch as the recipe says; chance comes from torch's global generator.

    Args:
        clips: (N, 3, T, H, W), normalised, floating point; or a mapping of such clips, several members' of the same
            videos, which are mixed alike.
        labels: (N,) class indices.
        recipe: Its `scenes`, `mixup` and `cutmix`.
        n_classes: K.

    Returns:
        The clips, and the labels (N,) or, by MixUp and CutMix, target probabilities (N, K).

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
    if recipe.scenes and len(labels) > 1:
        each = swap_scenes(each, recipe.scenes)
    kinds = [v2.MixUp(alpha=recipe.mixup, num_classes=n_classes)] if recipe.mixup else []
    kinds += [v2.CutMix(alpha=recipe.cutmix, num_classes=n_classes)] if recipe.cutmix else []
    if kinds and len(labels) > 1:
        chosen = kinds[int(torch.randint(len(kinds), ()))]
        mixed, targets = chosen({name: tv_tensors.Video(own) for name, own in each.items()}, labels)
        plain = {name: own.as_subclass(Tensor) for name, own in mixed.items()}
        return plain if isinstance(clips, Mapping) else plain[""], targets
    return each if isinstance(clips, Mapping) else each[""], labels


def swap_scenes(clips: Mapping[str, Tensor], probability: float) -> dict[str, Tensor]:
    """Put what moves in a clip before a still of another clip of the batch, so that the scene does not tell the class.

    `x'_t = m_t x_t + (1 - m_t) o_u`, with o the clip before x in the batch and u one of its frames. What moves is where
    a frame differs from the clip's median over time: `m_t = [d_t > mean d]`, `d_t` the mean over the colours of
    `|x_t - median x|`, smoothed over 3 x 3 pixels. The label stays that of x. After FAME (Ding et
    al., CVPR 2022, "Motion-aware Contrastive Video Representation Learning via Foreground-background Merging"), which
    finds the foreground by differences of frames and by colours; a camera that moves makes all of a clip foreground.

    Args:
        clips: Clips (N, 3, T, H, W), a mapping of all members'; what is drawn is the same for all of them.
        probability: That a clip gets another scene, in [0, 1].

    Example:
        >>> clips = torch.zeros(2, 3, 5, 9, 9)
        >>> clips[0, :, 4, 3:6, 3:6], clips[1] = 2.0, 1.0              # something flashes, before a light still
        >>> swapped = swap_scenes({"x3d": clips}, 1.0)["x3d"]
        >>> swapped[0, 0, 4, 4, 4].item(), swapped[0, 0, 4, 0, 0].item(), swapped[0, 0, 0, 4, 4].item()
        (2.0, 1.0, 1.0)
    """
    first = next(iter(clips.values()))
    chosen, moment = torch.rand(2, len(first), device=first.device)
    swapped = {}
    for name, own in clips.items():
        frame = (moment * own.shape[2]).long()
        still = own[torch.arange(len(own), device=own.device), :, frame].roll(1, 0).unsqueeze(2)
        change = avg_pool2d((own - own.median(2, keepdim=True).values).abs().mean(1), 3, 1, 1)  # (N, T, H, W)
        moves = (change > change.mean((1, 2, 3), keepdim=True)).unsqueeze(1)
        kept = moves | (chosen >= probability).view(-1, 1, 1, 1, 1)
        swapped[name] = torch.where(kept, own, still)
    return swapped
