"""TPN: a neck that lets the stages of any video network, which see different tempos, inform each other.

Yang, Xu, Shi, Dai, Zhou. Temporal Pyramid Network for Action Recognition. CVPR 2020, section 3. The maps of the last
stages are brought to one size and width (spatial modulation), each is slowed down (temporal modulation), and they are
fused twice, in cascade: after information flowed from the deepest map down, and after it flowed back up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final, Literal

import torch
from einops import rearrange
from timm.models import resnet
from torch import Tensor, nn
from torch.nn import functional

from vidfuse.errors import InputError
from vidfuse.networks.checkpoints import Rules, rename
from vidfuse.networks.layers import Backbone, Bottleneck, ConvNorm, VideoNetwork, init_convolutions, record

__all__ = ["PRESETS", "TPN", "FramewiseStages", "SlowOnlyStages", "TPNConfig", "TemporalPyramid", "build", "convert"]


@dataclass(frozen=True)
class TPNConfig:
    """What the variants of TPN differ in.

    Attributes:
        backbone: A 3D residual network whose last two stages reach over time, or a 2D one with shifted channels.
        layers: Blocks of its four stages.
        base: Width of its stem; stage s has `4 · base · 2^s` channels.
        width: Channels of a pyramid level.
        features: Channels of each fusion, and what the classifier sees.
        slowdown: Frames that become one in each level, by maximum.
        groups: Groups of the temporal modulation's and of the fusions' first convolutions.
        auxiliary: Whether a second classifier looks at the finer level, for training.
        dropout: Before the classifier.
    """

    backbone: Literal["slowonly", "tsm"] = "slowonly"
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    base: int = 64
    width: int = 1024
    features: int = 2048
    slowdown: int = 8
    groups: int = 32
    auxiliary: bool = True
    dropout: float = 0.5


class TPN(VideoNetwork):
    """A video network with the pyramid between its last two stages and the classifier.

    Clips ``(N, 3, T, H, W)`` may have any number of frames that the backbone takes.

    Args:
        config: The variant.
        num_classes: K.
        backbone: A network to use in place of the configuration's; the last two of its `stages` feed the pyramid.
        channels: The channels of these two.

    Example:
        >>> from vidfuse import networks
        >>> x3d = networks.create("x3d_tiny")
        >>> model = TPN(PRESETS["tpn_tiny"], 5, backbone=x3d, channels=x3d.config.widths[-2:])
        >>> model(torch.zeros(1, 3, 8, 64, 64)).shape
        torch.Size([1, 5])
    """

    training_only = ("auxiliary.",)

    def __init__(
        self,
        config: TPNConfig,
        num_classes: int,
        backbone: Backbone | None = None,
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(config.features, num_classes, config.dropout)
        self.config = config
        if backbone is None:
            slow_only = config.backbone == "slowonly"
            backbone = (SlowOnlyStages if slow_only else _ShiftedStages)(config.layers, config.base)
            channels = (16 * config.base, 32 * config.base)
        if channels is None:
            raise InputError("expected, with a backbone, the channels of its last two stages; got none")
        self.backbone = backbone
        if isinstance(backbone, VideoNetwork):
            for module in backbone.head_modules():  # these are not used, and get no gradient
                module.requires_grad_(False)
        self.neck = TemporalPyramid(
            channels, width=config.width, features=config.features, slowdown=config.slowdown, groups=config.groups
        )
        self.auxiliary = _AuxiliaryHead(channels[-2], num_classes) if config.auxiliary else None
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def walk_stages(self, clips: Tensor) -> Generator[Tensor, Tensor, Tensor]:
        """Yield the backbone's maps ``(N, C, T, H, W)``, and the pyramid's; needs 32 × 32 pixels."""
        self.check_clips(clips, size=32)
        maps: deque[Tensor] = deque(maxlen=self.neck.levels)
        yield from record(self.backbone.walk_stages(clips), maps)
        return (yield self.neck(maps))

    def auxiliary_logits(self, stages: list[Tensor]) -> Tensor:
        """Return the second classifier's logits ``(N, K)``; its loss counts half in training (section 4.1).

        Args:
            stages: What `stages` returned.

        Raises:
            InputError: the network was built without it.
        """
        if self.auxiliary is None:
            raise InputError(f"{self.name} has no auxiliary classifier; build it with auxiliary=True")
        return self.auxiliary(stages[-3])

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier, and the auxiliary one, by freshly initialised ones of `num_classes` classes."""
        super().reset_classifier(num_classes)
        if self.auxiliary is not None:
            weight = self.auxiliary.classifier.weight
            self.auxiliary.classifier = nn.Linear(weight.shape[1], num_classes).to(weight)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's activations in the backward pass instead of keeping them."""
        super().set_grad_checkpointing(enable)
        self.backbone.set_grad_checkpointing(enable)


class TemporalPyramid(nn.Module):
    """The neck alone: the maps of a network's stages to one map ``(N, features, T', H', W')``.

    Args:
        channels: Of each map, finest first; each map has half the height and width of the one before.
        width: Channels of a pyramid level.
        features: Channels of each fusion, and of the output.
        slowdown: Frames that become one in each level, by maximum.
        groups: Groups of the temporal modulation's and of the fusions' first convolutions.

    Raises:
        InputError: there are fewer than two maps, or `groups` does not divide the widths.

    Example:
        >>> neck = TemporalPyramid((32, 64), width=32, features=48, slowdown=4, groups=8)
        >>> neck([torch.zeros(1, 32, 8, 6, 6), torch.zeros(1, 64, 8, 3, 3)]).shape
        torch.Size([1, 48, 2, 3, 3])
    """

    def __init__(
        self, channels: Sequence[int], *, width: int = 1024, features: int = 2048, slowdown: int = 8, groups: int = 32
    ) -> None:
        super().__init__()
        top, self.levels, self.channels = channels[-1], len(channels), tuple(channels)
        if self.levels < 2 or top % groups or width % groups:
            raise InputError(
                f"expected at least two maps, and {groups} groups to divide the last one's channels and the width;"
                f" got channels {tuple(channels)}, width {width}"
            )
        self.slowdown = slowdown
        self.spatial = nn.ModuleList()
        for level, width_in in enumerate(channels):
            steps = self.levels - 1 - level
            widths = [min(width_in << step, top) for step in range(steps)] + [top]
            self.spatial.append(nn.Sequential(*(ConvNorm(a, b, (1, 3, 3), (1, 2, 2)) for a, b in pairwise(widths))))
        self.temporal = nn.ModuleList(
            nn.Conv3d(top, width, (3, 1, 1), padding=(1, 0, 0), groups=groups, bias=False) for _ in channels
        )
        self.upward = nn.ModuleList(
            nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0), bias=False) for _ in channels[1:]
        )
        self.fusion_down = _Fusion(self.levels, width, features, groups)
        self.fusion_up = _Fusion(self.levels, width, features, groups)
        self.fusion = ConvNorm(2 * features, features)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse maps ``(N, C, T, H, W)``, finest first."""
        if (got := tuple(x.shape[1] for x in maps)) != self.channels:
            raise InputError(f"expected {self.levels} maps of {self.channels} channels, got {got}")
        levels = []
        for x, spatial, temporal in zip(maps, self.spatial, self.temporal, strict=True):
            span = (self.slowdown, 1, 1)
            levels.append(functional.max_pool3d(temporal(spatial(x)), span, span, ceil_mode=True))
        for level in range(self.levels - 1, 0, -1):
            levels[level - 1] = levels[level - 1] + _stretch(levels[level], levels[level - 1])
        down = self.fusion_down(levels)
        # The second flow starts from what the first one left: the cascade of the paper's Figure 4.
        for level, upward in enumerate(self.upward):
            levels[level + 1] = levels[level + 1] + _shrink(upward(levels[level]), levels[level + 1])
        return self.fusion(torch.cat((down, self.fusion_up(levels)), dim=1))


def _stretch(x: Tensor, like: Tensor) -> Tensor:
    return x if x.shape[2:] == like.shape[2:] else functional.interpolate(x, size=like.shape[2:], mode="nearest")


def _shrink(x: Tensor, like: Tensor) -> Tensor:
    return x if x.shape[2:] == like.shape[2:] else functional.adaptive_max_pool3d(x, list(like.shape[2:]))


class _Fusion(nn.Module):
    """Concatenate the levels, each after a convolution of its own, and mix their channels."""

    def __init__(self, levels: int, width: int, features: int, groups: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(ConvNorm(width, width, groups=groups) for _ in range(levels))
        self.mix = ConvNorm(levels * width, features)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        finest = min(maps, key=lambda x: x.shape[2])
        parts = [_shrink(level(x), finest) for level, x in zip(self.levels, maps, strict=True)]
        return self.mix(torch.cat(parts, dim=1))


class _AuxiliaryHead(nn.Module):
    """A second classifier, on the finer level, that helps training."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv = ConvNorm(width, 2 * width, (1, 3, 3), (1, 2, 2))
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.conv(x).mean(dim=(2, 3, 4))))


class SlowOnlyStages(Backbone):
    """The slow pathway of SlowFast alone: a 3D residual network whose last two stages reach over time.

    Args:
        layers: Blocks of the four stages.
        base: Width of the stem.
    """

    def __init__(self, layers: Sequence[int], base: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, base, (1, 7, 7), (1, 2, 2))
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.blocks = nn.ModuleList()
        width_in = base
        for number, depth in enumerate(layers):
            width, stage = base * 2**number, nn.Sequential()
            for index in range(depth):
                kernel, stride = 3 if number >= 2 else 1, 2 if number and not index else 1
                stage.append(Bottleneck(width_in, width, 4 * width, temporal_kernel=kernel, stride=stride))
                width_in = 4 * width
            self.blocks.append(stage)
        init_convolutions(self)

    def walk_stages(self, clips: Tensor) -> Generator[Tensor, Tensor, Tensor]:
        """Yield four maps ``(N, C, T, H / s, W / s)``, s = 4, 8, 16, 32."""
        x = self.pool(self.stem(clips))
        for stage in self.blocks:
            x = yield self.run_blocks(stage.children(), x)
        return x


class FramewiseStages(Backbone):
    """A 2D network of timm's, built with ``features_only=True``, as a video network: every frame is an image.

    Args:
        network: Takes images ``(N, 3, H, W)`` and returns a list of maps ``(N, C, H', W')``, or with channels last if
            its ``output_fmt`` says so.

    Example:
        >>> import timm
        >>> network = timm.create_model("resnet18", features_only=True)
        >>> neck = TemporalPyramid((256, 512), width=64, features=128, slowdown=4)
        >>> neck(FramewiseStages(network).stages(torch.zeros(1, 3, 8, 64, 64))[-2:]).shape
        torch.Size([1, 128, 2, 2, 2])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def stages(self, clips: Tensor) -> list[Tensor]:
        """Return the maps ``(N, C, T, H', W')`` for clips ``(N, 3, T, H, W)``."""
        frames = rearrange(clips, "n c t h w -> (n t) c h w").contiguous(memory_format=torch.channels_last)
        maps = self.network(frames)
        channels_last = str(getattr(self.network, "output_fmt", "")).endswith("NHWC")
        order = "(n t) h w c" if channels_last else "(n t) c h w"
        return [rearrange(x, f"{order} -> n c t h w", t=clips.shape[2]) for x in maps]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the network recompute its activations, as timm's can.

        Raises:
            InputError: it cannot.
        """
        if not callable(setter := getattr(self.network, "set_grad_checkpointing", None)):
            raise InputError(f"expected a network with set_grad_checkpointing(), got {type(self.network).__name__}")
        self.grad_checkpointing = enable
        setter(enable)


class _ShiftedStages(Backbone):
    """A 2D residual network whose blocks see an eighth of their channels one frame late, and an eighth one frame early.

    Lin, Gan, Han. TSM: Temporal Shift Module for Efficient Video Understanding. ICCV 2019.
    """

    def __init__(self, layers: tuple[int, int, int, int], base: int) -> None:
        super().__init__()
        channels = tuple(base * 2**number for number in range(4))
        self.network = resnet.ResNet(resnet.Bottleneck, layers, channels=channels, num_classes=0)

    def walk_stages(self, clips: Tensor) -> Generator[Tensor, Tensor, Tensor]:
        """Yield four maps ``(N, C, T, H / s, W / s)``, s = 4, 8, 16, 32."""
        run = partial(_run_shifted, frames=clips.shape[2])
        return (
            yield from self.walk_frames(self.network, clips, lambda stage: (partial(run, block) for block in stage))
        )


def _run_shifted(block: resnet.Bottleneck, x: Tensor, frames: int) -> Tensor:
    """Run a bottleneck on frames ``(N · T, C, H, W)``, its convolutions on shifted ones and its shortcut on these."""
    # Channels of frame t:  │ ⅛ from frame t − 1 │ ⅛ from frame t + 1 │ ¾ of its own │, zeros beyond the clip's ends.
    part = x.shape[1] // 8
    clips = rearrange(x, "(n t) c h w -> n t c h w", t=frames)
    zeros = torch.zeros_like(clips[:, :1, :part])
    later = torch.cat((clips[:, 1:, :part], zeros), dim=1)
    earlier = torch.cat((zeros, clips[:, :-1, part : 2 * part]), dim=1)
    shifted = torch.cat((later, earlier, clips[:, :, 2 * part :]), dim=2)
    shifted = rearrange(shifted, "n t c h w -> (n t) c h w")
    y = block.act1(block.bn1(block.conv1(shifted)))
    y = block.act2(block.bn2(block.conv2(y)))
    short = x if block.downsample is None else block.downsample(x)
    return block.act3(block.bn3(block.conv3(y)) + short)


def build(config: TPNConfig, num_classes: int) -> TPN:
    """Build the variant of that configuration."""
    return TPN(config, num_classes)


_NECK: Final[Rules] = (
    (r"spatial_modulation\.spatial_modulation\.", "spatial."),
    (r"temporal_modulation_ops\.(\d+)\.conv\.(?:conv\.)?", r"temporal.\1."),
    (r"down(?:sample|sampling)_ops\.(\d+)\.conv\.(?:conv\.)?", r"upward.\1."),
    (r"\.level_fusion_(?:1|op2)\.", ".fusion_down."),
    (r"\.level_fusion_(?:2|op)\.", ".fusion_up."),
    (r"(fusion_(?:down|up))\.(?:downsamples|ops)\.(\d+)\.", r"\1.levels.\2."),
    (r"\.levels\.(\d+)\.conv\.(conv|bn)\.", r".levels.\1.\2."),
    (r"\.fusion_conv\.", ".mix."),
    (r"\.pyramid_fusion(?:_op)?\.", ".fusion."),
    (r"\.(mix|fusion)\.0\.", r".\1.conv."),
    (r"\.(mix|fusion)\.1\.", r".\1.norm."),
    (r"^neck\.aux_head\.convs?(?:\.0)?\.", "auxiliary.conv."),
    (r"^neck\.aux_head\.fc\.", "auxiliary.classifier."),
    (r"^cls_head\.fc_cls\.", "classifier."),
    (r"^(neck|auxiliary)(.*)\.bn\.", r"\1\2.norm."),
)
_STAGE: Final = r"^backbone\.layer(\d)\.(\d+)\."
_LAYOUTS: Final[Mapping[str, Rules]] = {
    "mmaction2": (
        (r"^backbone\.conv1\.", "backbone.stem."),
        (_STAGE, lambda m: f"backbone.blocks.{int(m[1]) - 1}.{m[2]}."),
        (r"^(backbone.*\.)downsample\.", r"\1shortcut."),
        (r"^(backbone.*)\.bn\.", r"\1.norm."),
        *_NECK,
    ),
    "mmaction2, tsm": (
        (r"^backbone\.", "backbone.network."),
        (r"^(backbone.*conv1\.conv)\.net\.", r"\1."),
        (r"^(backbone.*)downsample\.conv\.", r"\1downsample.0."),
        (r"^(backbone.*)downsample\.bn\.", r"\1downsample.1."),
        (r"^(backbone.*conv\d)\.conv\.", r"\1."),
        (r"^(backbone.*)conv(\d)\.bn\.", r"\1bn\2."),
        *_NECK,
    ),
    "original": (
        (r"^backbone\.conv1\.", "backbone.stem.conv."),
        (r"^backbone\.bn1\.", "backbone.stem.norm."),
        (_STAGE, lambda m: f"backbone.blocks.{int(m[1]) - 1}.{m[2]}."),
        (r"^(backbone\.blocks.*)downsample\.0\.", r"\1shortcut.conv."),
        (r"^(backbone\.blocks.*)downsample\.1\.", r"\1shortcut.norm."),
        (r"^(backbone\.blocks.*\.conv\d)\.", r"\1.conv."),
        (r"^(backbone\.blocks.*)\.bn(\d)\.", r"\1.conv\2.norm."),
        (r"^necks\.", "neck."),
        *_NECK,
    ),
}


def convert(state_dict: Mapping[str, Tensor], source: str, config: TPNConfig) -> dict[str, Tensor]:
    """Rename a published state dict to this module's layout."""
    shifted = source == "mmaction2" and config.backbone == "tsm"
    return rename(state_dict, _LAYOUTS["mmaction2, tsm" if shifted else source])


_SLOW_ONLY: Final = TPNConfig()
_TSM: Final = TPNConfig(backbone="tsm")

PRESETS: Final[Mapping[str, TPNConfig]] = {
    "tpn_tiny": TPNConfig(
        layers=(1, 1, 1, 1), base=8, width=64, features=128, slowdown=4, groups=8, auxiliary=False, dropout=0.2
    ),
    "tpn_slowonly_r50": _SLOW_ONLY,
    "tpn_tsm_r50": _TSM,
}
