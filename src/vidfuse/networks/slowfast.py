"""SlowFast: a slow pathway for what is seen, a fast and thin one for how it moves.

Feichtenhofer, Fan, Malik, He. SlowFast Networks for Video Recognition. ICCV 2019, Table 1. The fast pathway sees every
frame with 1/β of the channels, the slow one every α-th; after each stage time-strided convolutions carry the fast
pathway's features over.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from einops import reduce
from torch import Tensor, nn
from torch.nn import functional

from vidfuse.networks.checkpoints import Rules, rename
from vidfuse.networks.layers import (
    Bottleneck,
    ConvNorm,
    VideoNetwork,
    combine_windows,
    init_convolutions,
    pool_windows,
)

__all__ = ["PRESETS", "SlowFast", "SlowFastConfig", "build", "convert"]

_Depths = tuple[int, int, int, int]


@dataclass(frozen=True)
class SlowFastConfig:
    """What the variants of SlowFast differ in.

    Attributes:
        slow_depths: Blocks of the slow pathway's four stages.
        fast_depths: Blocks of the fast pathway's four stages.
        temporal_blocks: How many blocks of each stage, from the first on, have a kernel over time.
        alpha: Frames of the fast pathway for each one of the slow pathway.
        beta: Channels of the slow pathway for each one of the fast pathway.
        width: Channels of the slow pathway's stem; its stages have 4, 8, 16 and 32 times as many.
        fusion_kernel: Extent in time of the lateral convolutions.
        lateral_norm: Whether normalisation and a ReLU follow the lateral convolutions.
        sampling: The slow pathway's frames: every α-th from the first, or evenly from the first to the last.
        pooling: At test crops larger than `size`: average the features over everything ("global"), or slide the
            training crop's window and average its logits or probabilities.
        size: Training crop, in pixels.
        dropout: Before the classifier.
    """

    slow_depths: _Depths = (3, 4, 6, 3)
    fast_depths: _Depths = (3, 4, 6, 3)
    temporal_blocks: _Depths = (99, 99, 99, 99)
    alpha: int = 4
    beta: int = 8
    width: int = 64
    fusion_kernel: int = 7
    lateral_norm: bool = True
    sampling: Literal["stride", "linspace"] = "linspace"
    pooling: Literal["global", "logits", "probabilities"] = "probabilities"
    size: int = 224
    dropout: float = 0.5


class SlowFast(VideoNetwork):
    """SlowFast for clips ``(N, 3, T, H, W)``, T a multiple of α; it picks the slow pathway's frames itself.

    Args:
        config: The variant.
        num_classes: K.
    """

    def __init__(self, config: SlowFastConfig, num_classes: int) -> None:
        width, thin = config.width, config.width // config.beta
        super().__init__(32 * (width + thin), num_classes, config.dropout)
        self.config = config
        eps = 1e-5 if config.lateral_norm else None
        self.slow_stem = ConvNorm(3, width, (1, 7, 7), (1, 2, 2))
        self.fast_stem = ConvNorm(3, thin, (5, 7, 7), (1, 2, 2))
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.slow, self.fast, self.laterals = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        slow_in, fast_in = width, thin
        for number in range(4):
            kernel, stride = (config.fusion_kernel, 1, 1), (config.alpha, 1, 1)
            self.laterals.append(ConvNorm(fast_in, 2 * fast_in, kernel, stride, eps=eps, relu=config.lateral_norm))
            temporal, space = config.temporal_blocks[number], 1 if number == 0 else 2
            # The slow pathway looks at single frames until its third stage.
            slow_temporal = temporal if number >= 2 else 0
            slow_in += 2 * fast_in
            self.slow.append(_stage(slow_in, width * 2**number, config.slow_depths[number], slow_temporal, space))
            self.fast.append(_stage(fast_in, thin * 2**number, config.fast_depths[number], temporal, space))
            slow_in, fast_in = 4 * width * 2**number, 4 * thin * 2**number
        init_convolutions(self)

    def walk_stages(self, clips: Tensor) -> Generator[Tensor, Tensor, Tensor]:
        """Yield four maps ``(N, C, T / α, H / s, W / s)``, s = 4, 8, 16, 32: slow features with the fast one's share.

        The share is the lateral connection's output, and after the last stage the fast pathway's own features,
        averaged over each α frames. Needs α frames, in multiples of α, and 32 × 32 pixels.
        """
        alpha = self.config.alpha
        self.check_clips(clips, frames=alpha, frames_step=alpha, size=32)
        slow, fast = self.pool(self.slow_stem(self._sample(clips))), self.pool(self.fast_stem(clips))
        slow = torch.cat((slow, self.laterals[0](fast)), dim=1)
        shares = [*self.laterals[1:], self._slowed]
        for share, slow_stage, fast_stage in zip(shares, self.slow, self.fast, strict=True):
            slow = self.run_blocks(slow_stage.children(), slow)
            fast = self.run_blocks(fast_stage.children(), fast)
            slow = yield torch.cat((slow, share(fast)), dim=1)
        return slow

    def _slowed(self, fast: Tensor) -> Tensor:
        if fast.dtype in (torch.bfloat16, torch.float16) and fast.device.type == "cpu":  # unknown to torch's pooling
            return reduce(fast, "n c (t alpha) h w -> n c t h w", "mean", alpha=self.config.alpha)
        return functional.avg_pool3d(fast, (self.config.alpha, 1, 1))

    def head(self, features: Tensor) -> Tensor:
        """Turn the last stage's features into logits, or the logarithms of probabilities averaged over windows."""
        window = None if self.config.pooling == "global" else math.ceil(self.config.size / 32)
        logits = self.classifier(self.dropout(pool_windows(features, window)))
        return combine_windows(logits, probabilities=self.config.pooling == "probabilities" and not self.training)

    def _sample(self, clips: Tensor) -> Tensor:
        frames, alpha = clips.shape[2], self.config.alpha
        if self.config.sampling == "stride" or frames == alpha:
            return clips[:, :, ::alpha]
        count = frames // alpha
        # ⌊i·(T − 1) / (T / α − 1)⌋ in integers: what the sources' truncated linspace gives for every T and α.
        picked = torch.arange(count, device=clips.device) * (frames - 1) // (count - 1)
        return clips.index_select(2, picked)


def _stage(width_in: int, width: int, depth: int, temporal_blocks: int, stride: int) -> nn.Sequential:
    stage = nn.Sequential()
    for index in range(depth):
        kernel = 3 if index < temporal_blocks else 1
        stage.append(Bottleneck(width_in, width, 4 * width, temporal_kernel=kernel, stride=1 if index else stride))
        width_in = 4 * width
    return stage


def build(config: SlowFastConfig, num_classes: int) -> SlowFast:
    """Build the variant of that configuration."""
    return SlowFast(config, num_classes)


_PATHWAYS: Final = ("slow", "fast")
_LETTERS: Final[Mapping[str, int]] = {"a": 1, "b": 2, "c": 3}
_LAYOUTS: Final[Mapping[str, Rules]] = {
    "mmaction2": (
        (r"^(?:backbone\.)?slow_path\.conv1_lateral\.", "laterals.0."),
        (r"^(?:backbone\.)?slow_path\.layer(\d)_lateral\.", r"laterals.\1."),
        (r"^(?:backbone\.)?(slow|fast)_path\.conv1\.", r"\1_stem."),
        (r"^(?:backbone\.)?(slow|fast)_path\.layer(\d)\.", lambda m: f"{m[1]}.{int(m[2]) - 1}."),
        (r"\.downsample\.", ".shortcut."),
        (r"\.bn\.", ".norm."),
        (r"^cls_head\.fc_cls\.", "classifier."),
    ),
    "pyslowfast": (
        (r"^s1\.pathway([01])_stem\.", lambda m: f"{_PATHWAYS[int(m[1])]}_stem."),
        (r"^s(\d)_fuse\.conv_f2s\.", lambda m: f"laterals.{int(m[1]) - 1}.conv."),
        (r"^s(\d)_fuse\.bn\.", lambda m: f"laterals.{int(m[1]) - 1}.norm."),
        (r"^s(\d)\.pathway([01])_res(\d+)\.", lambda m: f"{_PATHWAYS[int(m[2])]}.{int(m[1]) - 2}.{m[3]}."),
        (r"\.branch1_bn\.", ".shortcut.norm."),
        (r"\.branch1\.", ".shortcut.conv."),
        (r"\.branch2\.([abc])_bn\.", lambda m: f".conv{_LETTERS[m[1]]}.norm."),
        (r"\.branch2\.([abc])\.", lambda m: f".conv{_LETTERS[m[1]]}.conv."),
        (r"_stem\.bn\.", "_stem.norm."),
        (r"^head\.projection\.", "classifier."),
    ),
    "pytorchvideo": (
        (r"^blocks\.0\.multipathway_blocks\.([01])\.", lambda m: f"{_PATHWAYS[int(m[1])]}_stem."),
        (r"^blocks\.(\d)\.multipathway_fusion\.conv_fast_to_slow\.", r"laterals.\1.conv."),
        (r"^blocks\.(\d)\.multipathway_fusion\.norm\.", r"laterals.\1.norm."),
        (
            r"^blocks\.(\d)\.multipathway_blocks\.([01])\.res_blocks\.(\d+)\.",
            lambda m: f"{_PATHWAYS[int(m[2])]}.{int(m[1]) - 1}.{m[3]}.",
        ),
        (r"\.branch1_", ".shortcut."),
        (r"\.branch2\.(conv|norm)_([abc])\.", lambda m: f".conv{_LETTERS[m[2]]}.{m[1]}."),
        (r"^blocks\.6\.proj\.", "classifier."),
    ),
}


def convert(state_dict: Mapping[str, Tensor], source: str, config: SlowFastConfig) -> dict[str, Tensor]:
    """Rename a published state dict to this module's layout; MMAction2's classifier sees the fast pathway first."""
    renamed = rename(state_dict, _LAYOUTS[source])
    weight = renamed.get("classifier.weight")
    if source == "mmaction2" and weight is not None:
        fast = 32 * (config.width // config.beta)
        renamed["classifier.weight"] = torch.cat((weight[:, fast:], weight[:, :fast]), dim=1)
    return renamed


_R101_DEPTHS: Final = (3, 4, 23, 3)
_R152_DEPTHS: Final = (3, 8, 36, 3)
_R50: Final = SlowFastConfig()
_R50_4X16: Final = replace(_R50, alpha=8, fusion_kernel=5)
_R101: Final = replace(_R50, slow_depths=_R101_DEPTHS, fast_depths=_R101_DEPTHS, fusion_kernel=5)
_R101_50_50: Final = replace(_R101, temporal_blocks=(3, 4, 6, 3))
_MMACTION2: Final = replace(_R50, lateral_norm=False, sampling="stride", pooling="global")
_MMACTION2_4X16: Final = replace(_MMACTION2, alpha=8, fusion_kernel=5)
_R152: Final = replace(_MMACTION2_4X16, slow_depths=_R152_DEPTHS, fast_depths=_R152_DEPTHS)

PRESETS: Final[Mapping[str, SlowFastConfig]] = {
    "slowfast_tiny": replace(
        _R50,
        slow_depths=(1, 1, 1, 1),
        fast_depths=(1, 1, 1, 1),
        width=16,
        beta=4,
        fusion_kernel=5,
        size=64,
        dropout=0.2,
    ),
    "slowfast_r50_4x16": _R50_4X16,
    "slowfast_r50_8x8": _R50,
    "slowfast_r101_8x8": _R101,
    "slowfast_16x8_r101_50_50": _R101_50_50,
    "slowfast_r152_4x16": replace(_R50_4X16, slow_depths=_R152_DEPTHS, fast_depths=_R152_DEPTHS),
    "slowfast_r50_4x16.mmaction2": _MMACTION2_4X16,
    "slowfast_r50_8x8.mmaction2": _MMACTION2,
    "slowfast_r50_8x8_steplr.mmaction2": replace(_MMACTION2, lateral_norm=True),
    "slowfast_r101_8x8.mmaction2": replace(_MMACTION2, slow_depths=_R101_DEPTHS, fast_depths=_R101_DEPTHS),
    "slowfast_r101_r50_4x16.mmaction2": replace(_MMACTION2_4X16, slow_depths=_R101_DEPTHS),
    "slowfast_r152_r50_4x16.mmaction2": replace(_MMACTION2_4X16, slow_depths=_R152_DEPTHS),
    "slowfast_r152_4x16.mmaction2": _R152,
    "slowfast_r50_8x8.pytorchvideo": replace(_R50, pooling="logits"),
    "slowfast_r101_8x8.pytorchvideo": replace(_R101, pooling="logits"),
    "slowfast_16x8_r101_50_50.pytorchvideo": replace(_R101_50_50, pooling="logits"),
}
