"""Clips as a network wants them: one draw of the augmentations for a whole clip, then one scaling to float.

The draw (`draw_augmentation`) is apart from its application (`apply_augmentation`): the same draw gives the same
clip, and several networks that are fed from one decoded video each make a draw of their own. Pixels stay uint8 until
the last step; torchvision's v2 functions do the work on `[T, C, H, W]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.video.clips import Random, View, crop_box

try:
    import torch
    from torchvision.transforms.v2 import functional as tvf
except ImportError as error:
    raise MissingExtraError("transforming clips", "video") from error

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Augmentation",
    "ClipTransform",
    "TransformConfig",
    "apply_augmentation",
    "apply_view",
    "draw_augmentation",
    "normalise",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TransformConfig:
    """The augmentations of a training clip.

    Attributes:
        size: side of the square clip in pixels.
        short_side: length of the short side that frames are decoded at, in pixels; None: 8/7 of `size` (256 for 224).
        scale: least and greatest share of the frame's area that the crop takes; None: `size` pixels a side, no resize.
        ratio: least and greatest aspect (width / height) of the crop, where `scale` is given.
        flip: probability of a horizontal flip.
        gray: probability of gray frames.
        jitter: probability of a colour jitter.
        brightness: brightness is multiplied by a factor in [1 - b, 1 + b].
        contrast: the same for contrast.
        saturation: the same for saturation.
        hue: hue is turned by an angle in [-h, h] turns, h <= 0.5. Costs 12 times the other three: 0 by default.
        erase: probability that one rectangle of the clip is blanked (Zhong et al., 2020, Random Erasing).
        mean: mean of each colour on the scale 0 to 1.
        std: standard deviation of each colour on the scale 0 to 1.

    Raises:
        InputError: a size below 1, a probability outside 0 … 1, or a range that is none.

    Example:
        >>> TransformConfig(size=112, jitter=0.0).flip
        0.5
    """

    size: int = 224
    short_side: int | None = None
    scale: tuple[float, float] | None = (0.35, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.5
    gray: float = 0.2
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0
    erase: float = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.size < 1 or self.decode_side < self.size:
            raise InputError(f"expected 1 <= size <= short_side, got size={self.size}, short_side={self.short_side}")
        for name in ("flip", "gray", "jitter", "erase", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"expected {name} in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"expected hue in [0, 0.5], got {self.hue}")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"expected scale as (least, greatest) shares in (0, 1], got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError(f"expected ratio as (least, greatest), both positive, got {self.ratio}")
        if min(self.std) <= 0:
            raise InputError(f"expected positive standard deviations, got {self.std}")

    @property
    def decode_side(self) -> int:
        """Length of the short side to decode at, in pixels."""
        return round(self.size * 8 / 7) if self.short_side is None else self.short_side


@dataclass(frozen=True)
class Augmentation:
    """One draw: what happens to every frame of one clip.

    Attributes:
        box: top, left, height and width of the crop in pixels.
        flip: mirrored left to right.
        gray: without colour.
        colour: names of the colour changes, in order, with their factors.
        blank: top, left, height and width of the blanked rectangle as shares of the clip's side; None: none.
    """

    box: tuple[int, int, int, int]
    flip: bool = False
    gray: bool = False
    colour: tuple[tuple[str, float], ...] = ()
    blank: tuple[float, float, float, float] | None = None


def draw_augmentation(config: TransformConfig, height: int, width: int, rng: Random) -> Augmentation:
    """Draw what happens to one clip.

    Args:
        config: the ranges and probabilities.
        height: the frames' height in pixels.
        width: the frames' width in pixels.
        rng: source of chance.

    Returns:
        An `Augmentation`.

    Raises:
        InputError: frames smaller than the crop where `config.scale` is None.

    Examples:
        >>> from vidfuse.video.clips import sample_source
        >>> draw_augmentation(TransformConfig(size=8, scale=None, jitter=0.0), 9, 12, sample_source(0))
        Augmentation(box=(0, 2, 8, 8), flip=True, gray=False, colour=(), blank=None)
    """
    if config.scale is None:
        top, left = crop_box(height, width, config.size, long=rng.random(), short=rng.random())
        box = (top, left, config.size, config.size)
    else:
        box = _draw_box(height, width, config.scale, config.ratio, rng)
    flip, gray = rng.random() < config.flip, rng.random() < config.gray
    colour: list[tuple[str, float]] = []
    if rng.random() < config.jitter:
        for name in ("brightness", "contrast", "saturation", "hue"):
            strength = getattr(config, name)
            if strength > 0 and not (gray and name in ("saturation", "hue")):
                turn = (2 * rng.random() - 1) * strength
                colour.append((name, turn if name == "hue" else 1 + turn))
        order = [rng.random() for _ in colour]
        colour = [change for _, change in sorted(zip(order, colour, strict=True))]
    blank = None
    if rng.random() < config.erase:
        top, left, high, wide = _draw_box(1000, 1000, (0.02, 1 / 3), (0.3, 1 / 0.3), rng)
        blank = (top / 1000, left / 1000, high / 1000, wide / 1000)
    return Augmentation(box, flip, gray, tuple(colour), blank)


def apply_augmentation(frames: Any, draw: Augmentation, config: TransformConfig) -> torch.Tensor:
    """Apply one draw to a clip and scale it to float.

    Args:
        frames: uint8 of shape (T, H, W, 3), an array or a tensor.
        draw: the draw.
        config: gives the size, mean and standard deviation.

    Returns:
        float32 of shape (3, T, size, size).

    Raises:
        InputError: another shape or dtype.

    Examples:
        >>> import numpy as np
        >>> clip = np.full((4, 10, 12, 3), 255, np.uint8)
        >>> config = TransformConfig(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> out = apply_augmentation(clip, Augmentation(box=(0, 0, 10, 10)), config)
        >>> tuple(out.shape), float(out.min())
        ((3, 4, 8, 8), 1.0)
    """
    clip = _as_clip(frames)
    top, left, height, width = draw.box
    clip = clip[..., top : top + height, left : left + width]
    if (height, width) != (config.size, config.size):
        clip = tvf.resize(clip, [config.size, config.size], antialias=True)
    if draw.flip:
        clip = tvf.horizontal_flip(clip)
    if draw.gray:
        clip = tvf.rgb_to_grayscale(clip, num_output_channels=3)
    for name, factor in draw.colour:
        clip = getattr(tvf, f"adjust_{name}")(clip, factor)
    out = normalise(clip.permute(1, 0, 2, 3), config.mean, config.std)
    if draw.blank is not None:
        rows, columns = (
            slice(int(at * config.size), math.ceil((at + long) * config.size))
            for at, long in ((draw.blank[0], draw.blank[2]), (draw.blank[1], draw.blank[3]))
        )
        out[..., rows, columns] = 0.0
    return out


def apply_view(
    frames: Any,
    view: View,
    size: int,
    short_side: int | None = None,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> torch.Tensor:
    """Cut one view out of its frames and scale it to float.

    Args:
        frames: the view's frames, uint8 of shape (T, H, W, 3), an array or a tensor.
        view: gives the crop's place and the flip.
        size: side of the crop in pixels.
        short_side: frames whose short side is another are resized to it first; None: the same as `size`.
        mean: mean of each colour on the scale 0 to 1.
        std: standard deviation of each colour on the scale 0 to 1.

    Returns:
        float32 of shape (3, T, size, size).

    Raises:
        InputError: another shape or dtype.

    Examples:
        >>> import numpy as np
        >>> tuple(apply_view(np.zeros((4, 16, 20, 3), np.uint8), View(frames=(0, 1, 2, 3)), size=8).shape)
        (3, 4, 8, 8)
    """
    clip = _as_clip(frames)
    side = size if short_side is None else short_side
    if min(clip.shape[-2:]) != side:
        clip = tvf.resize(clip, [side], antialias=True)
    top, left = crop_box(clip.shape[-2], clip.shape[-1], size, view.long, view.short)
    clip = clip[..., top : top + size, left : left + size]
    if view.flip:
        clip = tvf.horizontal_flip(clip)
    return normalise(clip.permute(1, 0, 2, 3), mean, std)


def normalise(clip: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> torch.Tensor:
    """Scale a uint8 clip to float32 in one pass: `x / (255 std) - mean / std`.

    Args:
        clip: uint8 of shape (..., 3, T, H, W).
        mean: mean of each colour on the scale 0 to 1.
        std: standard deviation of each colour on the scale 0 to 1.

    Returns:
        float32 of the same shape, contiguous.

    Examples:
        >>> import torch
        >>> normalise(torch.full((3, 1, 1, 1), 51, dtype=torch.uint8), (0.0, 0.1, 0.3), (0.5, 0.5, 0.5)).flatten()
        tensor([ 0.4000,  0.2000, -0.2000])
    """
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=clip.device).view(3, 1, 1, 1)
    scale = torch.tensor([1 / (255 * s) for s in std], device=clip.device).view(3, 1, 1, 1)
    out = torch.empty(clip.shape, dtype=torch.float32, device=clip.device)
    return out.copy_(clip).mul_(scale).sub_(shift)


class ClipTransform:
    """A `TransformConfig` that is ready to be called: draw, then apply.

    Examples:
        >>> import numpy as np
        >>> from vidfuse.video.clips import sample_source
        >>> transform = ClipTransform(TransformConfig(size=8))
        >>> tuple(transform(np.zeros((4, 9, 12, 3), np.uint8), sample_source(0, "video_1")).shape)
        (3, 4, 8, 8)
    """

    def __init__(self, config: TransformConfig) -> None:
        self.config = config

    def __call__(self, frames: Any, rng: Random) -> torch.Tensor:
        """Augment frames, uint8 (T, H, W, 3), to a clip, float32 (3, T, size, size)."""
        draw = draw_augmentation(self.config, frames.shape[1], frames.shape[2], rng)
        return apply_augmentation(frames, draw, self.config)

    def __repr__(self) -> str:
        return f"ClipTransform({self.config})"


def _as_clip(frames: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
    """View frames (T, H, W, 3) as (T, 3, H, W)."""
    clip = torch.from_numpy(frames) if isinstance(frames, np.ndarray) else frames
    if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != torch.uint8:
        raise InputError(f"expected frames as uint8 (T, H, W, 3), got {clip.dtype} {tuple(clip.shape)}")
    return clip.permute(0, 3, 1, 2)


def _draw_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: Random
) -> tuple[int, int, int, int]:
    """Draw a crop of random area and aspect (Szegedy et al., 2015, section 6); the whole, centred, if none fits."""
    for _ in range(10):
        area = height * width * (scale[0] + rng.random() * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + rng.random() * (math.log(ratio[1]) - math.log(ratio[0])))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            top = min(int(rng.random() * (height - high + 1)), height - high)
            left = min(int(rng.random() * (width - wide + 1)), width - wide)
            return top, left, high, wide
    wide = min(width, round(height * ratio[1]))
    high = min(height, round(width / ratio[0]))
    return (height - high) // 2, (width - wide) // 2, high, wide
