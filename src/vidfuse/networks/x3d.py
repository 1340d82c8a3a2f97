"""X3D: a tiny 2D network, expanded one axis at a time into a video network.

Feichtenhofer. X3D: Expanding Architectures for Efficient Video Recognition. CVPR 2020, Table 1. Residual blocks of a
pointwise, a channel-wise 3×3×3 and a pointwise convolution, with squeeze-and-excitation in every other block.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from torch import Tensor, nn
from torch.nn import functional

from vidfuse.networks.checkpoints import Rules, rename
from vidfuse.networks.convolutions import convolve
from vidfuse.networks.layers import ConvNorm, VideoNetwork, combine_windows, init_convolutions, pool_windows

__all__ = ["PRESETS", "X3D", "X3DConfig", "build", "convert"]


@dataclass(frozen=True)
class X3DConfig:
    """What the variants of X3D differ in.

    Attributes:
        widths: Channels of the four stages; the stem has those of the first.
        depths: Blocks of the four stages.
        expansion: Inner channels of a block, as a multiple of the stage's.
        features: Width of the last hidden layer.
        stem_kernel: Extent in time of the stem's channel-wise convolution.
        squeeze: Channels of squeeze-and-excitation, as a fraction of a block's inner channels.
        first_shortcut_norm: Whether the first block's shortcut is normalised (not in PyTorchVideo).
        pooling: At test crops larger than `size`: average the features over everything ("global"), or slide the
            training crop's window and average its logits or probabilities.
        size: Training crop, in pixels.
        dropout: Before the classifier.
    """

    widths: tuple[int, int, int, int] = (24, 48, 96, 192)
    depths: tuple[int, int, int, int] = (3, 5, 11, 7)
    expansion: float = 2.25
    features: int = 2048
    stem_kernel: int = 5
    squeeze: float = 1 / 16
    first_shortcut_norm: bool = True
    pooling: Literal["global", "logits", "probabilities"] = "probabilities"
    size: int = 224
    dropout: float = 0.5


class X3D(VideoNetwork):
    """X3D for clips ``(N, 3, T, H, W)`` of any number of frames; every stage halves height and width.

    Args:
        config: The variant.
        num_classes: K.
    """

    def __init__(self, config: X3DConfig, num_classes: int) -> None:
        super().__init__(config.features, num_classes, config.dropout)
        self.config = config
        first, last = config.widths[0], config.widths[-1]
        self.stem_space = nn.Conv3d(3, first, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
        self.stem_time = ConvNorm(first, first, (config.stem_kernel, 1, 1), groups=first)
        self.blocks = nn.ModuleList()
        width_in = first
        for number, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            stage = nn.Sequential()
            for index in range(depth):
                norm = number > 0 or config.first_shortcut_norm
                squeeze = config.squeeze if index % 2 == 0 else 0.0
                inner = int(config.expansion * width)
                stage.append(_Block(width_in, inner, width, 1 if index else 2, squeeze, shortcut_norm=norm))
                width_in = width
            self.blocks.append(stage)
        inner = int(config.expansion * last)
        self.expand = ConvNorm(last, inner)
        self.hidden = nn.Linear(inner, config.features, bias=False)
        init_convolutions(self)

    def walk_stages(self, clips: Tensor) -> Generator[Tensor, Tensor, Tensor]:
        """Yield four maps ``(N, C, T, H / s, W / s)``, s = 4, 8, 16, 32; needs 32 × 32 pixels."""
        self.check_clips(clips, size=32)
        x = self.stem_time(convolve(clips, self.stem_space))
        for stage in self.blocks:
            x = yield self.run_blocks(stage.children(), x)
        return x

    def head(self, features: Tensor) -> Tensor:
        """Turn the last stage's features into logits, or the logarithms of probabilities averaged over windows."""
        window = None if self.config.pooling == "global" else math.ceil(self.config.size / 32)
        x = pool_windows(self.expand(features), window)
        logits = self.classifier(self.dropout(functional.relu(self.hidden(x))))
        return combine_windows(logits, probabilities=self.config.pooling == "probabilities" and not self.training)

    def head_modules(self) -> list[nn.Module]:
        """Return the widening convolution, the hidden layer and the classifier."""
        return [self.expand, self.hidden, self.classifier]


class _Block(nn.Module):
    """Pointwise, channel-wise 3×3×3 with its squeeze-and-excitation and Swish, pointwise, and the shortcut."""

    def __init__(
        self, width_in: int, inner: int, width: int, stride: int, squeeze: float, *, shortcut_norm: bool
    ) -> None:
        super().__init__()
        strides = (1, stride, stride)
        self.conv1 = ConvNorm(width_in, inner)
        self.conv2 = ConvNorm(inner, inner, (3, 3, 3), strides, groups=inner, relu=False)
        self.squeeze = _SqueezeExcite(inner, _round_width(inner * squeeze)) if squeeze else None
        self.conv3 = ConvNorm(inner, width, relu=False)
        same = stride == 1 and width_in == width
        eps = 1e-5 if shortcut_norm or width_in != width else None
        self.shortcut = None if same else ConvNorm(width_in, width, stride=strides, eps=eps, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.shortcut is None else self.shortcut(x)
        y = self.conv2(self.conv1(x))
        if self.squeeze is not None:
            y = self.squeeze(y)
        return functional.relu_(self.conv3(functional.silu(y, inplace=not y.requires_grad)).add_(short))


class _SqueezeExcite(nn.Module):
    """Channel gates from globally pooled features (Hu et al., CVPR 2018)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(width, hidden)
        self.expand = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(functional.relu(self.reduce(x.mean(dim=(2, 3, 4))))).sigmoid()
        return x * gate[:, :, None, None, None]


def _round_width(width: float) -> int:
    """Round to a multiple of 8, at least 8, and never down by more than 10 %."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def build(config: X3DConfig, num_classes: int) -> X3D:
    """Build the variant of that configuration."""
    return X3D(config, num_classes)


_NUMBER: Final[Mapping[str, int]] = {"a": 1, "b": 2, "c": 3}
_BLOCK: Final = r"(blocks\.\d+\.\d+\.)"
_LAYOUTS: Final[Mapping[str, Rules]] = {
    "mmaction2": (
        (r"^(?:backbone\.)?conv1_s\.conv", "stem_space"),
        (r"^(?:backbone\.)?conv1_t\.bn", "stem_time.norm"),
        (r"^(?:backbone\.)?conv1_t\.conv", "stem_time.conv"),
        (r"^(?:backbone\.)?layer(\d+)\.", lambda m: f"blocks.{int(m[1]) - 1}."),
        (rf"^{_BLOCK}downsample\.", r"\1shortcut."),
        (rf"^{_BLOCK}se_module\.fc1\.", r"\1squeeze.reduce."),
        (rf"^{_BLOCK}se_module\.fc2\.", r"\1squeeze.expand."),
        (rf"^{_BLOCK}(\w+)\.bn\.", r"\1\2.norm."),
        (r"^(?:backbone\.)?conv5\.conv", "expand.conv"),
        (r"^(?:backbone\.)?conv5\.bn", "expand.norm"),
        (r"^(?:cls_head\.)?fc1", "hidden"),
        (r"^(?:cls_head\.)?fc2", "classifier"),
    ),
    "pyslowfast": (
        (r"^s1\.pathway0_stem\.conv_xy", "stem_space"),
        (r"^s1\.pathway0_stem\.conv", "stem_time.conv"),
        (r"^s1\.pathway0_stem\.bn", "stem_time.norm"),
        (r"^s(\d+)\.pathway0_res(\d+)\.", lambda m: f"blocks.{int(m[1]) - 2}.{m[2]}."),
        (rf"^{_BLOCK}branch1_bn", r"\1shortcut.norm"),
        (rf"^{_BLOCK}branch1", r"\1shortcut.conv"),
        (rf"^{_BLOCK}branch2\.se\.fc1", r"\1squeeze.reduce"),
        (rf"^{_BLOCK}branch2\.se\.fc2", r"\1squeeze.expand"),
        (rf"^{_BLOCK}branch2\.([abc])_bn", lambda m: f"{m[1]}conv{_NUMBER[m[2]]}.norm"),
        (rf"^{_BLOCK}branch2\.([abc])\.", lambda m: f"{m[1]}conv{_NUMBER[m[2]]}.conv."),
        (r"^head\.conv_5_bn", "expand.norm"),
        (r"^head\.conv_5", "expand.conv"),
        (r"^head\.lin_5", "hidden"),
        (r"^head\.projection", "classifier"),
    ),
    "pytorchvideo": (
        (r"^blocks\.0\.conv\.conv_t", "stem_space"),  # named after time, but spatial
        (r"^blocks\.0\.conv\.conv_xy", "stem_time.conv"),
        (r"^blocks\.0\.norm", "stem_time.norm"),
        (r"^blocks\.5\.pool\.pre_conv", "expand.conv"),
        (r"^blocks\.5\.pool\.pre_norm", "expand.norm"),
        (r"^blocks\.5\.pool\.post_conv", "hidden"),
        (r"^blocks\.5\.proj", "classifier"),
        (r"^blocks\.(\d+)\.res_blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) - 1}.{m[2]}."),
        (rf"^{_BLOCK}branch1_", r"\1shortcut."),
        (rf"^{_BLOCK}branch2\.norm_b\.1\.block\.0", r"\1squeeze.reduce"),
        (rf"^{_BLOCK}branch2\.norm_b\.1\.block\.2", r"\1squeeze.expand"),
        (rf"^{_BLOCK}branch2\.norm_b\.0", r"\1conv2.norm"),
        (rf"^{_BLOCK}branch2\.(conv|norm)_([abc])", lambda m: f"{m[1]}conv{_NUMBER[m[3]]}.{m[2]}"),
    ),
}


def convert(state_dict: Mapping[str, Tensor], source: str, config: X3DConfig) -> dict[str, Tensor]:
    """Rename a published state dict to this module's layout; pointwise convolutions of vectors become linear maps."""
    renamed = rename(state_dict, _LAYOUTS[source])
    linear = ("hidden.weight", "squeeze.reduce.weight", "squeeze.expand.weight")
    return {key: value.flatten(1) if key.endswith(linear) else value for key, value in renamed.items()}


_M: Final = X3DConfig()
_XS: Final = replace(_M, size=160)
_L: Final = replace(_M, depths=(5, 10, 25, 15), size=312)
_MMACTION2: Final = replace(_M, pooling="global")
_PYTORCHVIDEO: Final = replace(_M, first_shortcut_norm=False, pooling="logits")

PRESETS: Final[Mapping[str, X3DConfig]] = {
    "x3d_tiny": X3DConfig(widths=(24, 32, 64, 128), depths=(1, 1, 1, 1), features=256, dropout=0.0, size=64),
    "x3d_xs": _XS,
    "x3d_s": _XS,
    "x3d_m": _M,
    "x3d_l": _L,
    "x3d_s.mmaction2": replace(_MMACTION2, size=160),
    "x3d_m.mmaction2": _MMACTION2,
    "x3d_xs.pytorchvideo": replace(_PYTORCHVIDEO, size=160),
    "x3d_s.pytorchvideo": replace(_PYTORCHVIDEO, size=160),
    "x3d_m.pytorchvideo": _PYTORCHVIDEO,
    "x3d_l.pytorchvideo": replace(_PYTORCHVIDEO, depths=_L.depths, size=312),
}
