"""TimeSformer: a vision transformer whose blocks attend over time, then over space.

Bertasius, Wang, Torresani. Is Space-Time Attention All You Need for Video Understanding? ICML 2021. A block of the
divided variant (section 3.3) computes, for the tokens z of a clip,

    z ← z + W·attend(LN(z)) over the T tokens that share a place,
    z ← z + attend(LN(z)) over the tokens of a frame and the class token,
    z ← z + MLP(LN(z)).

The class token takes no part in the attention over time; every frame attends to a copy of it, and the copies'
updates are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

import torch
from einops import rearrange, reduce, repeat
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional

from vidfuse.networks.checkpoints import Rules, rename
from vidfuse.networks.layers import ConvolutionalStem, VideoNetwork, init_linear

__all__ = ["PRESETS", "TimeSformer", "TimeSformerConfig", "build", "convert"]

_EPS: Final = 1e-6
_FEW: Final = 16  # tokens up to which plain products are faster than the fused kernel, on a CPU


@dataclass(frozen=True)
class TimeSformerConfig:
    """What the variants of TimeSformer differ in.

    Attributes:
        frames: Frames that the time embedding was made for; clips of another length get it resized.
        size: Height and width, in pixels, that the position embedding was made for; likewise.
        patch: Height and width of a patch, in pixels.
        width: Channels of a token.
        depth: Blocks.
        heads: Heads of each attention.
        mlp_ratio: Width of the hidden layer of an MLP, as a multiple of `width`.
        attention: Over time and then over space, over all tokens at once, or over each frame alone.
        drop_path: Probability that the last block's updates are dropped; it grows linearly from 0 at the first.
        dropout: Before the classifier.
        stem: Widths of 3 × 3 × 3 convolutions in place of the linear map of a patch; each halves height and width.
        init_std: Standard deviation of the linear layers' first weights; None is ``in_features ** -0.5``, which spares
            a network of few channels many steps at chance.
    """

    frames: int = 8
    size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    attention: Literal["divided", "joint", "space"] = "divided"
    drop_path: float = 0.1
    dropout: float = 0.0
    stem: tuple[int, ...] = ()
    init_std: float | None = 0.02


class TimeSformer(VideoNetwork):
    """TimeSformer for clips ``(N, 3, T, H, W)`` of any number of frames and any size of at least one patch.

    Args:
        config: The variant.
        num_classes: K.
    """

    def __init__(self, config: TimeSformerConfig, num_classes: int) -> None:
        super().__init__(config.width, num_classes, config.dropout)
        self.config = config
        places = (config.size // config.patch) ** 2
        self.patch_embed = (
            ConvolutionalStem(config.stem, config.width)
            if config.stem
            else nn.Linear(3 * config.patch**2, config.width)
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.position = nn.Parameter(torch.zeros(1, 1 + places, config.width))
        if config.attention != "space":
            self.time = nn.Parameter(torch.zeros(1, config.frames, config.width))
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(_Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.width, eps=_EPS)
        init_linear(self, config.init_std)
        for block in self.blocks:
            if config.attention == "divided":  # at first, a block does what the image model's would
                nn.init.zeros_(block.get_submodule("time_fc").get_parameter("weight"))
        trunc_normal_(self.class_token, std=0.02)
        trunc_normal_(self.position, std=0.02)

    def walk_stages(self, clips: Tensor) -> Generator[Tensor, Tensor, Tensor]:
        """Yield the patches' features after each quarter of the blocks, ``(N, C, T, H / patch, W / patch)``.

        Returns the class tokens ``(N, C)``, averaged over frames where each has its own.
        """
        tokens = self._embed(clips)
        n, _, frames, height, width = clips.shape
        # A block of places is read and put back as a map; the class token in front of them is left as it is.
        extents = {"t": frames, "h": height // self.config.patch, "w": width // self.config.patch}
        order = "(n t) (h w) c" if self.config.attention == "space" else "n (h w t) c"
        blocks = [partial(block, frames=frames) for block in self.blocks]
        ends = sorted({-(-len(blocks) * quarter // 4) for quarter in range(1, 5)})
        for start, end in zip([0, *ends], ends, strict=False):
            tokens = self.run_blocks(blocks[start:end], tokens)
            places = yield rearrange(tokens[:, 1:], f"{order} -> n c t h w", **extents)
            tokens = torch.cat((tokens[:, :1], rearrange(places, f"n c t h w -> {order}")), dim=1)
        return tokens[:, 0].unflatten(0, (n, frames)).mean(1) if self.config.attention == "space" else tokens[:, 0]

    def head(self, features: Tensor) -> Tensor:
        """Turn the class tokens ``(N, C)`` into logits ``(N, K)``."""
        return self.classifier(self.dropout(self.norm(features)))

    def _embed(self, clips: Tensor) -> Tensor:
        """Turn clips into tokens ``(N, 1 + places · T, C)``, the class token first, a place's frames side by side.

        Where attention stays within a frame, every frame is a sample: ``(N · T, 1 + places, C)``.
        """
        patch = self.config.patch
        self.check_clips(clips, size=patch)
        frames, height, width = clips.shape[2], clips.shape[3] // patch, clips.shape[4] // patch
        clips = clips[..., : height * patch, : width * patch]
        position = self._position((height, width))
        if self.config.stem:
            tokens = rearrange(self.patch_embed(clips), "n c t h w -> n (h w) t c")
        else:
            patches = rearrange(clips, "n c t (h ph) (w pw) -> n (h w) t (c ph pw)", ph=patch, pw=patch)
            tokens = self.patch_embed(patches)
        tokens = tokens + rearrange(position[:, 1:], "1 place c -> 1 place 1 c")
        class_token = (self.class_token + position[:, :1]).expand(clips.shape[0], -1, -1)
        if self.config.attention == "space":
            class_token = repeat(class_token, "n 1 c -> (n t) 1 c", t=frames)
            return torch.cat((class_token, rearrange(tokens, "n place t c -> (n t) place c")), dim=1)
        tokens = tokens + rearrange(self._time(frames), "1 t c -> 1 1 t c")
        return torch.cat((class_token, rearrange(tokens, "n place t c -> n (place t) c")), dim=1)

    def _position(self, grid: tuple[int, int]) -> Tensor:
        """Return the embedding of the class token and of the places, resized where the grid has another size."""
        side = self.config.size // self.config.patch
        return self.position if grid == (side, side) else _resize_places(self.position, grid)

    def _time(self, frames: int) -> Tensor:
        """Return the frames' embedding ``(1, T, C)``, resized where there are more or fewer frames."""
        return self.time if frames == self.config.frames else _resize_time(self.time, frames)

    def resized(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights whose embeddings are resized to this network's frames and places, by nearest neighbours.

        Args:
            state_dict: Weights in this network's layout, of square frames.
        """
        weights, side = dict(state_dict), self.config.size // self.config.patch
        if (time := weights.get("time")) is not None and time.shape[1] != self.config.frames:
            weights["time"] = _resize_time(time, self.config.frames)
        position = weights.get("position")
        if position is not None and math.isqrt(places := position.shape[1] - 1) ** 2 == places != side**2:
            weights["position"] = _resize_places(position, (side, side))
        return weights

    def head_modules(self) -> list[nn.Module]:
        """Return the last norm and the classifier."""
        return [self.norm, self.classifier]


def _resize_places(position: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize the embedding ``(1, 1 + places, C)`` of a square of places, after the class token's, to another grid."""
    side = math.isqrt(position.shape[1] - 1)
    table = rearrange(position[:, 1:], "1 (h w) c -> 1 c h w", h=side)
    table = functional.interpolate(table, size=grid, mode="nearest")
    return torch.cat((position[:, :1], rearrange(table, "1 c h w -> 1 (h w) c")), dim=1)


def _resize_time(time: Tensor, frames: int) -> Tensor:
    table = functional.interpolate(rearrange(time, "1 t c -> 1 c t"), size=frames, mode="nearest")
    return rearrange(table, "1 c t -> 1 t c")


class _Attention(nn.Module):
    """Self-attention with several heads over the second axis of ``(N, L, C)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = rearrange(
            self.qkv(x), "n place (three head c) -> three n head place c", three=3, head=self.heads
        )
        few = x.device.type == "cpu" and x.shape[1] <= _FEW
        if few and not torch.is_grad_enabled():
            scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
            x = scores.softmax(dim=-1) @ value
        else:
            x = functional.scaled_dot_product_attention(query, key, value)
        return self.out(rearrange(x, "n head place c -> n place (head c)"))


class _Block(nn.Module):
    """Attention over time where it is divided, attention over space or over everything, and an MLP."""

    def __init__(self, config: TimeSformerConfig, rate: float) -> None:
        super().__init__()
        width = config.width
        self.divided = config.attention == "divided"
        if self.divided:
            self.time_norm = nn.LayerNorm(width, eps=_EPS)
            self.time_attention = _Attention(width, config.heads)
            self.time_fc: nn.Module = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.attention = _Attention(width, config.heads)
        self.mlp_norm = nn.LayerNorm(width, eps=_EPS)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.drop_path = DropPath(rate)

    def forward(self, tokens: Tensor, frames: int) -> Tensor:
        if self.divided:
            tokens = self._attend_divided(tokens, frames)
        else:
            tokens = tokens + self.drop_path(self.attention(self.norm(tokens)))
        return tokens + self.drop_path(self.mlp(self.mlp_norm(tokens)))

    def fold(self) -> None:
        """Merge the two linear maps that end the attention over time into one, in eval mode; for inference only."""
        if not self.divided or not isinstance(self.time_fc, nn.Linear):
            return
        first, second = self.time_attention.out, self.time_fc
        merged = nn.Linear(first.in_features, second.out_features).to(first.weight)
        with torch.no_grad():
            merged.weight.copy_(second.weight @ first.weight)
            merged.bias.copy_(second(first.bias))
        self.time_attention.out, self.time_fc = merged, nn.Identity()

    def _attend_divided(self, tokens: Tensor, frames: int) -> Tensor:
        n_places, class_token = (tokens.shape[1] - 1) // frames, tokens[:, :1]
        # Attention over time: the frames of each place.
        places = rearrange(tokens[:, 1:], "n (place t) c -> (n place) t c", t=frames)
        update = self.drop_path(self.time_attention(self.time_norm(places)))
        places = rearrange(places + self.time_fc(update), "(n place) t c -> n t place c", place=n_places)

        # Attention over space: each frame's places, with a copy of the class token in front.
        by_frame = torch.cat((repeat(class_token, "n 1 c -> n t 1 c", t=frames), places), dim=2)
        update = self.drop_path(self.attention(self.norm(rearrange(by_frame, "n t token c -> (n t) token c"))))
        update = rearrange(update, "(n t) token c -> n t token c", t=frames)
        places = rearrange(places + update[:, :, 1:], "n t place c -> n (place t) c")
        class_token = class_token + reduce(update[:, :, 0], "n t c -> n 1 c", "mean")
        return torch.cat((class_token, places), dim=1)


def build(config: TimeSformerConfig, num_classes: int) -> TimeSformer:
    """Build the variant of that configuration."""
    return TimeSformer(config, num_classes)


_MMACTION2: Final[Rules] = (
    (r"^backbone\.(?:transformer_layers\.layers\.(?=\d))?", ""),
    (r"^(\d+)\.", r"blocks.\1."),
    (r"^patch_embed\.projection", "patch_embed"),
    (r"in_proj_(weight|bias)$", r"qkv.\1"),
    (r"out_proj", "out"),
    (r"ffns\.0\.layers\.0\.0", "mlp.fc1"),
    (r"ffns\.0\.layers\.1", "mlp.fc2"),
    (r"^cls_head\.fc_cls", "classifier"),
)
_EMBEDDINGS: Final[Rules] = ((r"^cls_token$", "class_token"), (r"^pos_embed$", "position"), (r"^time_embed$", "time"))
_LAYOUTS: Final[Mapping[str, Rules]] = {
    "mmaction2": (
        *_MMACTION2,
        *_EMBEDDINGS,
        (r"attentions\.0\.norm", "time_norm"),
        (r"attentions\.0\.attn", "time_attention"),
        (r"attentions\.0\.temporal_fc", "time_fc"),
        (r"attentions\.1\.norm", "norm"),
        (r"attentions\.1\.attn", "attention"),
        (r"ffns\.0\.norm", "mlp_norm"),
    ),
    "mmaction2, undivided": (
        *_MMACTION2,
        *_EMBEDDINGS,
        (r"attentions\.0\.attn", "attention"),
        (r"norms\.0", "norm"),
        (r"norms\.1", "mlp_norm"),
    ),
    "original": (
        *_EMBEDDINGS,
        (r"^patch_embed\.proj", "patch_embed"),
        (r"\.temporal_norm1", ".time_norm"),
        (r"\.temporal_attn", ".time_attention"),
        (r"\.temporal_fc", ".time_fc"),
        (r"\.norm1", ".norm"),
        (r"\.norm2", ".mlp_norm"),
        (r"\.attn", ".attention"),
        (r"attention\.proj", "attention.out"),
        (r"^head", "classifier"),
    ),
    "transformers": (
        (r"^timesformer\.(?:embeddings\.)?", ""),
        (r"^cls_token$", "class_token"),
        (r"^position_embeddings$", "position"),
        (r"^time_embeddings$", "time"),
        (r"^patch_embeddings\.projection", "patch_embed"),
        (r"^encoder\.layer\.", "blocks."),
        (r"\.temporal_layernorm", ".time_norm"),
        (r"\.temporal_attention", ".time_attention"),
        (r"\.temporal_dense", ".time_fc"),
        (r"\.layernorm_before", ".norm"),
        (r"\.layernorm_after", ".mlp_norm"),
        (r"attention\.attention\.qkv", "attention.qkv"),
        (r"attention\.output\.dense", "attention.out"),
        (r"\.intermediate\.dense", ".mlp.fc1"),
        (r"\.output\.dense", ".mlp.fc2"),
        (r"^layernorm", "norm"),
    ),
}


def convert(state_dict: Mapping[str, Tensor], source: str, config: TimeSformerConfig) -> dict[str, Tensor]:
    """Rename a published state dict to this module's layout; the patches' convolution becomes a linear map."""
    undivided = source == "mmaction2" and config.attention != "divided"
    renamed = rename(state_dict, _LAYOUTS["mmaction2, undivided" if undivided else source])
    return {key: value.flatten(1) if key == "patch_embed.weight" else value for key, value in renamed.items()}


_B: Final = TimeSformerConfig()
_JOINT: Final = replace(_B, attention="joint")
_SPACE: Final = replace(_B, attention="space")
_HR: Final = replace(_B, frames=16, size=448)
_L: Final = replace(_B, frames=96)

PRESETS: Final[Mapping[str, TimeSformerConfig]] = {
    "timesformer_tiny": TimeSformerConfig(
        size=64, width=96, depth=2, heads=3, mlp_ratio=2.0, drop_path=0.0, stem=(16, 32, 64, 96), init_std=None
    ),
    "timesformer_b": _B,
    "timesformer_b_joint": _JOINT,
    "timesformer_b_space": _SPACE,
    "timesformer_hr": _HR,
    "timesformer_l": _L,
}
