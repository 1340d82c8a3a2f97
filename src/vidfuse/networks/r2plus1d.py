"""R(2+1)D: residual networks whose 3D convolutions are factorised into space, then time.

Tran et al. A Closer Look at Spatiotemporal Convolutions for Action Recognition. CVPR 2018, section 3.5. The width
between the two factors keeps the parameter count of the 3D convolution: ``M = ⌊t·d²·in·out / (d²·in + t·out)⌋``.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidfuse.networks.checkpoints import Rules, rename
from vidfuse.networks.layers import ConvNorm, VideoNetwork, combine_windows, init_convolutions, pool_windows

__all__ = ["PRESETS", "R2Plus1D", "R2Plus1DConfig", "build", "convert"]


@dataclass(frozen=True)
class R2Plus1DConfig:
    """What the variants of R(2+1)D differ in.

    Attributes:
        depths: Blocks of the four stages.
        block: Two factorised convolutions; or a bottleneck with one, time first (PyTorchVideo).
        width: Channels of the stem; the stages have 1, 2, 4 and 8 times as many (four times that in bottlenecks).
        stem_middle: Channels between the factors of the stem; 0 for a stem over space alone.
        stem_pool: Whether a 3×3 max-pool of stride 2 follows the stem.
        middle: Whether M follows from each convolution or from its block's ends.
        factorised_shortcut: Whether shortcuts are factorised too.
        temporal_strides: Of the four stages.
        spatial_strides: Of the four stages.
        outer_eps: Of the normalisation after the second factor; after the first it is 1e-5.
        window: Side of the last stage's map at the training crop; at larger crops that window slides and its
            probabilities are averaged. 0 averages the features over everything.
        dropout: Before the classifier.
    """

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    block: Literal["basic", "bottleneck"] = "basic"
    width: int = 64
    stem_middle: int = 83
    stem_pool: bool = True
    middle: Literal["convolution", "block"] = "convolution"
    factorised_shortcut: bool = True
    temporal_strides: tuple[int, int, int, int] = (1, 2, 2, 2)
    spatial_strides: tuple[int, int, int, int] = (1, 2, 2, 2)
    outer_eps: float = 1e-3
    window: int = 0
    dropout: float = 0.5


class R2Plus1D(VideoNetwork):
    """R(2+1)D for clips ``(N, 3, T, H, W)`` of any number of frames from the temporal stride on.

    Args:
        config: The variant.
        num_classes: K.
    """

    def __init__(self, config: R2Plus1DConfig, num_classes: int) -> None:
        expansion = 4 if config.block == "bottleneck" else 1
        super().__init__(config.width * 8 * expansion, num_classes, config.dropout)
        self.config = config
        width, strides = config.width, (1, 2, 2)
        if config.stem_middle:
            self.stem: nn.Module = _Factorised(
                3, config.stem_middle, width, (3, 7, 7), strides, eps=config.outer_eps, relu=True
            )
        else:
            self.stem = ConvNorm(3, width, (1, 7, 7), strides)
        self.pool = nn.MaxPool3d((1, 3, 3), strides, (0, 1, 1)) if config.stem_pool else nn.Identity()
        self.blocks = nn.ModuleList()
        width_in = width
        # The first block of a stage takes the stage's strides; the others keep the extent.
        for number, depth in enumerate(config.depths):
            stage = nn.Sequential()
            for index in range(depth):
                time, space = config.temporal_strides[number], config.spatial_strides[number]
                stride = (1, 1, 1) if index else (time, space, space)
                if config.block == "basic":
                    stage.append(_Block(width_in, width * 2**number, stride, config))
                else:
                    stage.append(_TimeFirstBottleneck(width_in, width * 2**number, stride))
                width_in = width * 2**number * expansion
            self.blocks.append(stage)
        init_convolutions(self)

    def walk_stages(self, clips: Tensor) -> Generator[Tensor, Tensor, Tensor]:
        """Yield four maps ``(N, C, T / t, H / s, W / s)``; needs as many frames and pixels as the last t and s."""
        config = self.config
        frames = torch.Size(config.temporal_strides).numel()
        size = torch.Size(config.spatial_strides).numel() * (4 if config.stem_pool else 2)
        self.check_clips(clips, frames=frames, size=size)
        x = self.pool(self.stem(clips))
        for stage in self.blocks:
            x = yield self.run_blocks(stage.children(), x)
        return x

    def head(self, features: Tensor) -> Tensor:
        """Turn the last stage's features into logits, or the logarithms of probabilities averaged over windows."""
        logits = self.classifier(self.dropout(pool_windows(features, self.config.window or None)))
        return combine_windows(logits, probabilities=not self.training)


class _Factorised(nn.Module):
    """A convolution over space with norm and ReLU, then one over time with its own norm."""

    def __init__(
        self,
        width_in: int,
        middle: int,
        width_out: int,
        kernel: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
        *,
        eps: float,
        relu: bool,
    ) -> None:
        super().__init__()
        self.space = ConvNorm(width_in, middle, (1, *kernel[1:]), (1, *stride[1:]))
        self.time = ConvNorm(middle, width_out, (kernel[0], 1, 1), (stride[0], 1, 1), eps=eps, relu=relu)

    def forward(self, x: Tensor) -> Tensor:
        return self.time(self.space(x))


class _Block(nn.Module):
    """Two factorised 3×3×3 convolutions and the shortcut."""

    def __init__(self, width_in: int, width: int, stride: tuple[int, int, int], config: R2Plus1DConfig) -> None:
        super().__init__()
        eps = config.outer_eps
        first = _middle_width(width_in, width)
        second = first if config.middle == "block" else _middle_width(width, width)
        self.conv1 = _Factorised(width_in, first, width, (3, 3, 3), stride, eps=eps, relu=True)
        self.conv2 = _Factorised(width, second, width, (3, 3, 3), eps=eps, relu=False)
        self.shortcut: nn.Module | None = None
        if stride != (1, 1, 1) or width_in != width:
            if config.factorised_shortcut:
                middle = _middle_width(width_in, width, extent=1)
                self.shortcut = _Factorised(width_in, middle, width, (1, 1, 1), stride, eps=eps, relu=False)
            else:
                self.shortcut = ConvNorm(width_in, width, stride=stride, eps=eps, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.shortcut is None else self.shortcut(x)
        return functional.relu_(self.conv2(self.conv1(x)).add_(short))


class _TimeFirstBottleneck(nn.Module):
    """Pointwise, over time, over space, pointwise, each with its norm, and the shortcut."""

    def __init__(self, width_in: int, width: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width_in, width)
        self.time = ConvNorm(width, width, (3, 1, 1), (stride[0], 1, 1))
        self.space = ConvNorm(width, width, (1, 3, 3), (1, *stride[1:]))
        self.conv3 = ConvNorm(width, 4 * width, relu=False)
        same = stride == (1, 1, 1) and width_in == 4 * width
        self.shortcut = None if same else ConvNorm(width_in, 4 * width, stride=stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.shortcut is None else self.shortcut(x)
        return functional.relu_(self.conv3(self.space(self.time(self.conv1(x)))).add_(short))


def _middle_width(width_in: int, width_out: int, extent: int = 3) -> int:
    """Return M for a temporal extent of 3; published shortcuts use that 3 though theirs is 1."""
    return 3 * extent**2 * width_in * width_out // (extent**2 * width_in + 3 * width_out)


def build(config: R2Plus1DConfig, num_classes: int) -> R2Plus1D:
    """Build the variant of that configuration."""
    return R2Plus1D(config, num_classes)


_LAYOUTS: Final[Mapping[str, Rules]] = {
    "mmaction2": (
        (r"^(?:backbone\.)?layer(\d+)\.", lambda m: f"blocks.{int(m[1]) - 1}."),
        (r"^(?:backbone\.)?conv1\.", "stem."),
        (r"\bdownsample\.", "shortcut."),
        (r"\bconv\.conv_s\.", "space.conv."),
        (r"\bconv\.bn_s\.", "space.norm."),
        (r"\bconv\.conv_t\.", "time.conv."),
        (r"\bbn\.", "time.norm."),
        (r"^cls_head\.fc_cls\.", "classifier."),
    ),
    "torchvision": (
        (r"^stem\.0\.", "stem.space.conv."),
        (r"^stem\.1\.", "stem.space.norm."),
        (r"^stem\.3\.", "stem.time.conv."),
        (r"^stem\.4\.", "stem.time.norm."),
        (r"^layer(\d+)\.", lambda m: f"blocks.{int(m[1]) - 1}."),
        (r"\.downsample\.0\.", ".shortcut.conv."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
        (r"\.(conv[12])\.0\.0\.", r".\1.space.conv."),
        (r"\.(conv[12])\.0\.1\.", r".\1.space.norm."),
        (r"\.(conv[12])\.0\.3\.", r".\1.time.conv."),
        (r"\.(conv[12])\.1\.", r".\1.time.norm."),
        (r"^fc\.", "classifier."),
    ),
    "pytorchvideo": (
        (r"^blocks\.0\.", "stem."),
        (r"^blocks\.5\.proj\.", "classifier."),
        (r"^blocks\.(\d+)\.res_blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) - 1}.{m[2]}."),
        (r"\.branch1_", ".shortcut."),
        (r"\.branch2\.conv_b\.conv_t\.", ".time.conv."),
        (r"\.branch2\.conv_b\.norm\.", ".time.norm."),
        (r"\.branch2\.conv_b\.conv_xy\.", ".space.conv."),
        (r"\.branch2\.norm_b\.", ".space.norm."),
        (r"\.branch2\.(conv|norm)_a\.", r".conv1.\1."),
        (r"\.branch2\.(conv|norm)_c\.", r".conv3.\1."),
    ),
}


def convert(state_dict: Mapping[str, Tensor], source: str, config: R2Plus1DConfig) -> dict[str, Tensor]:
    """Rename a published state dict to this module's layout."""
    return rename(state_dict, _LAYOUTS[source])


_R34: Final = R2Plus1DConfig()
_R18: Final = R2Plus1DConfig(
    depths=(2, 2, 2, 2),
    stem_middle=45,
    stem_pool=False,
    middle="block",
    factorised_shortcut=False,
    outer_eps=1e-5,
    dropout=0.0,
)
_R50: Final = R2Plus1DConfig(
    block="bottleneck",
    stem_middle=0,
    stem_pool=False,
    temporal_strides=(1, 1, 2, 2),
    spatial_strides=(2, 2, 2, 2),
    outer_eps=1e-5,
    window=7,
)

PRESETS: Final[Mapping[str, R2Plus1DConfig]] = {
    "r2plus1d_tiny": replace(_R18, depths=(1, 1, 1, 1), width=16, stem_middle=12, stem_pool=True, dropout=0.2),
    "r2plus1d_r18": _R18,
    "r2plus1d_r34_8x8": _R34,
    "r2plus1d_r34_32x2": _R34,
    "r2plus1d_r50": _R50,
}
