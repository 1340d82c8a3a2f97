"""TIN: a 2D residual network whose frames exchange channels, moved in time by as much as they call for.

Shao, Qian, Liu. Temporal Interlacing Network. AAAI 2020, section 3. Before the first convolution of every block, a
quarter of the channels is split into groups; a group moves by a learned, fractional number of frames o and is scaled:

    out[t] = w[t] · Σ_u max(0, 1 − |t − u − o|) · in[u],

which is linear interpolation with zeros outside the clip.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

import torch
from einops import rearrange, repeat
from timm.models import res2net, resnest, resnet
from torch import Tensor, nn
from torch.nn import functional

from vidfuse.errors import InputError
from vidfuse.networks.checkpoints import Rules, rename
from vidfuse.networks.layers import VideoNetwork

__all__ = ["PRESETS", "TIN", "InterlacedConv2d", "TINConfig", "build", "convert", "insert_interlacing", "interlace"]

_BLOCKS: Final = (resnet.BasicBlock, resnet.Bottleneck, res2net.Bottle2neck, resnest.ResNestBottleneck)
Network = TypeVar("Network", bound=nn.Module)
_FIRST_OFFSET_BIAS: Final = 0.5108  # 4 · (σ(0.5108) − ½) = ½: at first, groups move by half a frame


@dataclass(frozen=True)
class TINConfig:
    """What the variants of TIN differ in.

    Attributes:
        block: Residual block of the 2D network.
        layers: Blocks of its four stages.
        channels: Channels of the stages' inner convolutions.
        stem: Width of a stem of three small convolutions; None for the single large one.
        segments: Frames in a clip; the offsets' linear layers are tied to it.
        fraction: One in how many channels moves.
        dropout: Before the classifier.
    """

    block: Literal["basic", "bottleneck"] = "bottleneck"
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    stem: int | None = None
    segments: int = 8
    fraction: int = 4
    dropout: float = 0.5


class TIN(VideoNetwork):
    """TIN for clips ``(N, 3, T, H, W)`` of exactly `segments` frames.

    Args:
        config: The variant.
        num_classes: K.
    """

    def __init__(self, config: TINConfig, num_classes: int) -> None:
        block = resnet.Bottleneck if config.block == "bottleneck" else resnet.BasicBlock
        super().__init__(config.channels[-1] * block.expansion, num_classes, config.dropout)
        self.config = config
        stem = {"stem_type": "deep", "stem_width": config.stem} if config.stem else {}
        frames = resnet.ResNet(block, config.layers, channels=config.channels, num_classes=0, **stem)
        self.frames = insert_interlacing(frames, config.segments, fraction=config.fraction)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def walk_stages(self, clips: Tensor) -> Generator[Tensor, Tensor, Tensor]:
        """Yield four maps ``(N, C, T, H / s, W / s)``, s = 4, 8, 16, 32; needs 32 × 32 pixels."""
        segments = self.config.segments
        self.check_clips(clips, size=32)
        if clips.shape[2] != segments:
            raise InputError(
                f"{self.name} expects clips (N, 3, T, H, W) of exactly {segments} frames, got {tuple(clips.shape)}"
            )
        return (yield from self.walk_frames(self.frames, clips, nn.Module.children))


def interlace(x: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Move groups of channels in time, with linear interpolation and zeros outside, and scale them.

    ``out[n, t] = weights[n, t, g] · Σ_u max(0, 1 − |t − u − offsets[n, g]|) · x[n, u]`` for the channels of group g.

    Args:
        x: ``(N, T, C, ...)``, C a multiple of the number of groups G.
        offsets: ``(N, G)``, in frames; positive is later.
        weights: ``(N, T, G)``.

    Returns:
        A tensor of the shape of `x`, differentiable in all three.

    Raises:
        InputError: the shapes do not fit.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1)
        >>> interlace(x, torch.tensor([[1.0]]), torch.ones(1, 3, 1)).flatten()
        tensor([0., 1., 2.])
        >>> interlace(x, torch.tensor([[-0.5]]), torch.ones(1, 3, 1)).flatten()
        tensor([1.5000, 2.5000, 1.5000])
    """
    samples, frames, channels = x.shape[:3]
    groups = offsets.shape[-1]
    if offsets.shape != (samples, groups) or weights.shape != (samples, frames, groups) or channels % groups:
        raise InputError(
            "expected x (N, T, C, ...), offsets (N, G), weights (N, T, G) and C a multiple of G;"
            f" got {tuple(x.shape)}, {tuple(offsets.shape)}, {tuple(weights.shape)}"
        )
    # For each sample and group, a matrix (T, T) mixes the frames: row t holds the shares of the frames u that
    # out[t] is made of. An offset of 1.25 gives 0.75 of frame t − 1 and 0.25 of frame t − 2.
    time = torch.arange(frames, device=x.device)
    apart = (time[:, None] - time) - offsets[:, :, None, None]  # (N, G, T, T): to t from u
    mix = (1 - apart.abs()).clamp(min=0) * rearrange(weights, "n t group -> n group t 1")
    moved = mix.to(x.dtype) @ rearrange(x, "n t (group c) ... -> n group t (c ...)", group=groups)
    return rearrange(moved, "n group t (c rest) -> n t (group c) rest", c=channels // groups).view(x.shape)


class InterlacedConv2d(nn.Conv2d):
    """A 2D convolution of frames ``(N · T, C, H, W)`` that first interlaces one in `fraction` of its channels.

    Offsets and weights come from the same channels, averaged over each frame: the offsets o of two groups from a
    convolution over time and two linear layers, as ``4 · (σ(·) − ½)``, and −o for two more; the weights from a
    convolution over time, as ``2 · σ(·)``.

    Args:
        conv: The convolution to take the place of; its weight is kept.
        segments: T.
        fraction: See above.

    Raises:
        InputError: the convolution is of another kind, or has too few channels.
    """

    def __init__(self, conv: nn.Conv2d, segments: int, fraction: int) -> None:
        if type(conv) is not nn.Conv2d or conv.in_channels % (4 * fraction):
            raise InputError(f"expected a Conv2d whose input channels are a multiple of {4 * fraction}, got {conv}")
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        settings: dict[str, Any] = {name: getattr(conv, name) for name in names}
        super().__init__(**settings, bias=conv.bias is not None)
        self.weight, self.bias = conv.weight, conv.bias
        self.segments = segments
        self.moving = conv.in_channels // fraction
        self.offset_conv = nn.Conv1d(self.moving, 1, 3, padding=1)
        self.offset_hidden = nn.Linear(segments, segments)
        self.offset_out = nn.Linear(segments, 2)
        self.weight_conv = nn.Conv1d(self.moving, 2, 3, padding=1)
        for layer, bias in ((self.offset_out, _FIRST_OFFSET_BIAS), (self.weight_conv, 0.0)):
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)
        self.to(conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve frames ``(N · T, C, H, W)`` after interlacing some of their channels."""
        if x.shape[0] % self.segments:
            raise InputError(f"expected frames (N · T, C, H, W) with T = {self.segments}, got {tuple(x.shape)}")
        moving = rearrange(x[:, : self.moving], "(n t) c h w -> n t c h w", t=self.segments)
        pooled = rearrange(moving.mean(dim=(3, 4)), "n t c -> n c t")
        hidden = functional.relu(self.offset_hidden(self.offset_conv(pooled).squeeze(1)))
        offsets = 4 * (self.offset_out(hidden).sigmoid() - 0.5)
        weights = 2 * rearrange(self.weight_conv(pooled).sigmoid(), "n group t -> n t group")
        # Channels: │ o₁ │ o₂ │ −o₁ │ −o₂ │ the rest, which does not move │. A group and its opposite share a weight.
        weights = repeat(weights, "n t group -> n t (twice group)", twice=2)
        moved = interlace(moving, torch.cat((offsets, -offsets), dim=1), weights)
        moved = rearrange(moved, "n t c h w -> (n t) c h w")
        x = torch.cat((moved, x[:, self.moving :]), dim=1)
        del moved  # before the convolution asks for memory
        return super().forward(x)


def insert_interlacing(network: Network, segments: int, *, fraction: int = 4) -> Network:
    """Let the frames of a timm ResNet exchange channels before each block's first convolution, in place.

    The network then takes frames ``(N · T, 3, H, W)``, those of a clip one after another; its weights are kept.

    Args:
        network: A ResNet of timm's, of basic or bottleneck blocks, or one of their kin (ResNeXt, SE, Res2Net,
            ResNeSt) whose blocks begin with a plain convolution.
        segments: T.
        fraction: One in how many channels moves.

    Returns:
        The same network.

    Raises:
        InputError: there is no such block in it, or its convolutions are of another kind.

    Example:
        >>> import timm
        >>> network = insert_interlacing(timm.create_model("resnet18", num_classes=5), segments=4)
        >>> network(torch.zeros(2 * 4, 3, 64, 64)).shape
        torch.Size([8, 5])
    """
    if segments < 1 or fraction < 1:
        raise InputError(f"expected segments and fraction of at least 1, got {segments} and {fraction}")
    blocks = [module for module in network.modules() if isinstance(module, _BLOCKS)]
    if not blocks:
        raise InputError(
            f"expected a ResNet of timm's, with blocks of {', '.join(block.__name__ for block in _BLOCKS)}, "
            f"got {type(network).__name__} without any"
        )
    for block in blocks:
        block.conv1 = InterlacedConv2d(block.conv1, segments, fraction)
    return network


def build(config: TINConfig, num_classes: int) -> TIN:
    """Build the variant of that configuration."""
    return TIN(config, num_classes)


_LAYOUTS: Final[Mapping[str, Rules]] = {
    "mmaction2": (
        (r"^backbone\.", "frames."),
        (r"^cls_head\.fc_cls\.", "classifier."),
        (r"\.net1\.offset_net\.conv\.", ".offset_conv."),
        (r"\.net1\.offset_net\.fc1\.", ".offset_hidden."),
        (r"\.net1\.offset_net\.fc2\.", ".offset_out."),
        (r"\.net1\.weight_net\.conv\.", ".weight_conv."),
        (r"\.net2\.", "."),
        (r"(conv|downsample)(\d?)\.conv\.", r"\1\2."),
        (r"conv(\d)\.bn\.", r"bn\1."),
        (r"downsample\.bn\.", "downsample.1."),
        (r"downsample\.weight$", "downsample.0.weight"),
    ),
    "original": (
        (r"^base_model\.", "frames."),
        (r"^new_fc\.", "classifier."),
        (r"\.net1\.biasnet\.net\.conv\.", ".offset_conv."),
        (r"\.net1\.biasnet\.net\.fc\.", ".offset_hidden."),
        (r"\.net1\.biasnet\.net\.lastlayer\.", ".offset_out."),
        (r"\.net1\.weightnet\.net\.lastlayer\.", ".weight_conv."),
        (r"\.net2\.", "."),
    ),
}


def convert(state_dict: Mapping[str, Tensor], source: str, config: TINConfig) -> dict[str, Tensor]:
    """Rename a published state dict to this module's layout."""
    return rename(state_dict, _LAYOUTS[source])


_R50: Final = TINConfig()

PRESETS: Final[Mapping[str, TINConfig]] = {
    "tin_tiny": TINConfig("basic", (1, 1, 1, 1), (16, 32, 64, 128), stem=8, dropout=0.2),
    "tin_r50": _R50,
    "tin_r50.original": replace(_R50, dropout=0.8),
    "tin_r50_sthv1.mmaction2": _R50,
}
