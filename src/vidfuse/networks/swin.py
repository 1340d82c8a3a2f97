"""Video Swin: a transformer whose attention stays within windows of space and time, shifted in every other block.

Liu et al. Video Swin Transformer. CVPR 2022, section 3. Four stages of blocks; between two stages, each 2 × 2 places
merge into one. Attention adds a learned bias for each relative position.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, Final, NamedTuple

import torch
from einops import rearrange, reduce
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional

from vidfuse.networks.checkpoints import Rules, rename
from vidfuse.networks.layers import ConvolutionalStem, VideoNetwork, init_linear

__all__ = ["PRESETS", "Swin", "SwinConfig", "build", "convert"]

_EPS: Final = 1e-5
_APART: Final = -100.0  # added to the attention of two places that are no neighbours but share a window
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class SwinConfig:
    """What the variants of Video Swin differ in.

    Attributes:
        width: Channels of the first stage; each stage doubles them.
        depths: Blocks of each stage.
        heads: Heads of each stage's attention.
        window: Extents (T, H, W) of a window, in places; clipped where the map is smaller.
        patch: Extents (T, H, W) of a patch, in frames and pixels.
        mlp_ratio: Width of the hidden layer of an MLP, as a multiple of the stage's width.
        drop_path: Probability that the last block's updates are dropped; it grows linearly from 0 at the first.
        dropout: Before the classifier.
        stem: Widths of 3 × 3 × 3 convolutions in place of the linear map of a patch; each halves height and width.
        init_std: Standard deviation of the linear layers' first weights; None is ``in_features ** -0.5``, which spares
            a network of few channels many steps at chance.
    """

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: Triple = (8, 7, 7)
    patch: Triple = (2, 4, 4)
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    dropout: float = 0.5
    stem: tuple[int, ...] = ()
    init_std: float | None = 0.02


class Swin(VideoNetwork):
    """Video Swin for clips ``(N, 3, T, H, W)`` of any number of frames; maps are padded to whole windows.

    Args:
        config: The variant.
        num_classes: K.
    """

    def __init__(self, config: SwinConfig, num_classes: int) -> None:
        stages = len(config.depths)
        super().__init__(config.width * 2 ** (stages - 1), num_classes, config.dropout)
        self.config = config
        patch = 3 * math.prod(config.patch)
        self.patch_embed = (
            ConvolutionalStem(config.stem, config.width) if config.stem else nn.Linear(patch, config.width)
        )
        self.patch_norm = nn.LayerNorm(config.width, eps=_EPS)
        rates = iter(torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist())
        self.blocks = nn.ModuleList()
        self.merges = nn.ModuleList()
        for stage, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
            width = config.width * 2**stage
            blocks = (_Block(config, width, heads, index % 2 == 1, next(rates)) for index in range(depth))
            self.blocks.append(nn.ModuleList(blocks))
            if stage < stages - 1:
                self.merges.append(_Merge(width))
        self.norm = nn.LayerNorm(self.num_features, eps=_EPS)
        init_linear(self, config.init_std)

    def walk_stages(self, clips: Tensor) -> Generator[Tensor, Tensor, Tensor]:
        """Yield a map ``(N, C, T / 2, H / s, W / s)`` a stage, s = 4, 8, 16, 32, rounded up; needs 32 × 32 pixels."""
        x = self._embed(clips)
        for stage, blocks in enumerate(self.blocks):
            if stage:
                x = self.merges[stage - 1](x)
            x = self.run_blocks(blocks.children(), x)
            x = rearrange((yield rearrange(x, "n t h w c -> n c t h w")), "n c t h w -> n t h w c")
        return rearrange(x, "n t h w c -> n c t h w")

    def _embed(self, clips: Tensor) -> Tensor:
        """Turn clips into embedded patches ``(N, T, H, W, C)``."""
        patch = self.config.patch
        self.check_clips(clips, size=patch[1] * 2 ** (len(self.config.depths) - 1))
        if self.config.stem:
            return self.patch_norm(rearrange(self.patch_embed(clips), "n c t h w -> n t h w c"))
        pt, ph, pw = patch
        patches = _pad(clips, patch)
        patches = rearrange(patches, "n c (t pt) (h ph) (w pw) -> n t h w (c pt ph pw)", pt=pt, ph=ph, pw=pw)
        return self.patch_norm(self.patch_embed(patches))

    def head(self, features: Tensor) -> Tensor:
        """Turn the last stage's features ``(N, C, T, H, W)`` into logits ``(N, K)``."""
        places = self.norm(rearrange(features, "n c t h w -> n t h w c"))
        return self.classifier(self.dropout(reduce(places, "n t h w c -> n c", "mean")))

    def resized(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights whose relative biases cover this network's window: bicubic in space, linear in time.

        The resize in space is the one by which the source reads an image network's biases of another window.

        Args:
            state_dict: Weights in this network's layout, whose windows are square and reach as far in time as this
                network's, or as far in space.
        """
        t, h, w = (2 * extent - 1 for extent in self.config.window)
        weights = dict(state_dict)
        for key, table in state_dict.items():
            if not key.endswith("bias_table") or len(table) == t * h * w:
                continue
            side = math.isqrt(len(table) // t)
            old = (t, side, side) if t * side**2 == len(table) else (len(table) // (h * w), h, w)
            if math.prod(old) == len(table):  # of any other window, the strict load says what is misshapen
                space = rearrange(table, "(t h w) head -> (head t) 1 h w", t=old[0], h=old[1])
                space = functional.interpolate(space, size=(h, w), mode="bicubic")
                time = rearrange(space, "(head t) 1 h w -> head (h w) t", t=old[0])
                time = functional.interpolate(time, size=t, mode="linear")
                weights[key] = rearrange(time, "head place t -> (t place) head").contiguous()
        return weights

    def head_modules(self) -> list[nn.Module]:
        """Return the last norm and the classifier."""
        return [self.norm, self.classifier]


class _Merge(nn.Module):
    """Concatenate each 2 × 2 places and halve the channels: ``(N, T, H, W, C)`` to ``(N, T, H / 2, W / 2, 2 · C)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=_EPS)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return self.reduction(self.norm(rearrange(x, "n t (h dh) (w dw) c -> n t h w (dw dh c)", dh=2, dw=2)))


class _Block(nn.Module):
    """Attention within windows, then an MLP, on maps ``(N, T, H, W, C)``."""

    def __init__(self, config: SwinConfig, width: int, heads: int, shifted: bool, rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attention = _WindowAttention(config.window, width, heads, shifted)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class _WindowAttention(nn.Module):
    """Self-attention with several heads within each window of a map ``(N, T, H, W, C)``.

    In every other block the map is rolled by half a window before it is cut. The windows at the far end then hold
    places from both ends, which must not attend to each other: they need a mask. Along one axis of 8 places, with
    windows of 4 and a shift of 2:

        places            0 1 2 3 4 5 6 7
        rolled by 2       2 3 4 5 │ 6 7 0 1
        window            no mask │ 6 7 and 0 1 are apart

    Windows of the same mask lie side by side, and attend in one call with that mask: none is repeated for each window.
    """

    index: Tensor

    def __init__(self, window: Triple, width: int, heads: int, shifted: bool) -> None:
        super().__init__()
        self.window = window
        self.heads = heads
        self.shifted = shifted
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.bias_table = nn.Parameter(torch.empty(math.prod(2 * extent - 1 for extent in window), heads))
        trunc_normal_(self.bias_table, std=0.02)
        self.register_buffer("index", _relative_index(window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, *extents, _ = x.shape
        window, shift = self._clip(extents)
        padded = rearrange(_pad(rearrange(x, "n t h w c -> n c t h w"), window), "n c t h w -> n t h w c")
        # The plan of real tensors is kept for the next call. Compiled code and fake tensors make theirs anew: what they
        # would leave in the cache is of no use outside.
        make = _make_plan.__wrapped__ if torch.compiler.is_compiling() or type(x) is not Tensor else _make_plan
        plan = make(n, tuple(padded.shape[1:4]), window, shift, x.device)

        length = math.prod(window)
        rows = _permute_rows(rearrange(padded, "n t h w c -> (n t h w) c"), plan.order, plan.inverse)
        query, key, value = rearrange(
            self.qkv(rows), "(window place) (three head c) -> three window head place c",
            place=length, three=3, head=self.heads,
        )  # fmt: skip
        bias = self._bias(length)
        if bias.requires_grad:
            value = value.contiguous()  # a view would keep all three until the backward pass
        # Fused attention writes its answer in the order that is wanted next, other kinds do not. A graph is for all of
        # them: it must copy, as it would otherwise keep a view that only fits the first.
        attended = []
        for start, end, mask in plan.groups:
            added = (bias if mask is None else bias + mask).to(query.dtype)
            part = slice(start, end)
            group = functional.scaled_dot_product_attention(query[part], key[part], value[part], attn_mask=added[None])
            group = rearrange(group, "window head place c -> window place head c")
            if torch.compiler.is_exporting():
                group = group.clone(memory_format=torch.contiguous_format)
            attended.append(group)
        windows = torch.cat(attended) if len(attended) > 1 else attended[0]
        rows = self.out(rearrange(windows, "window place head c -> (window place) (head c)"))
        rows = _permute_rows(rows, plan.inverse, plan.order).view(padded.shape)
        return rows[:, : extents[0], : extents[1], : extents[2]]

    def _clip(self, extents: list[int]) -> tuple[Triple, Triple]:
        """Return window and shift for a map of these extents; a window that covers an axis is not shifted along it."""
        pairs = zip(self.window, extents, strict=True)
        window = [min(window, extent) for window, extent in pairs]
        pairs = zip(self.window, extents, strict=True)
        shift = [window // 2 if self.shifted and extent > window else 0 for window, extent in pairs]
        return (window[0], window[1], window[2]), (shift[0], shift[1], shift[2])

    def _bias(self, length: int) -> Tensor:
        """Return the bias ``(heads, L, L)`` of each pair of places.

        A clipped window takes the upper left part of the full window's index, as the published networks were trained
        to, though its places lie elsewhere in the full window.
        """
        index = rearrange(self.index[:length, :length], "query key -> (query key)")
        return rearrange(self.bias_table[index], "(query key) head -> head query key", query=length).contiguous()


class _Plan(NamedTuple):
    """How a map's places (N · T · H · W rows) are arranged into windows.

    Attributes:
        order: The row at each position when windows lie one after another, those of the same mask side by side.
        inverse: Its inverse.
        groups: First and last window of each group, and its mask ``(L, L)``, or None where every pair may attend.
    """

    order: Tensor
    inverse: Tensor
    groups: list[tuple[int, int, Tensor | None]]


@lru_cache(maxsize=64)
def _make_plan(n: int, extents: Triple, window: Triple, shift: Triple, device: torch.device) -> _Plan:
    with torch.inference_mode(False):
        rows = torch.arange(n * math.prod(extents), device=device).view(n, *extents)
        rows = rows.roll([-by for by in shift], dims=(1, 2, 3))  # the row at each place of the rolled map
        places = dict(zip(("pt", "ph", "pw"), window, strict=True))
        rows = rearrange(rows, "n (t pt) (h ph) (w pw) -> t h w n (pt ph pw)", **places)  # windows first, places last
        # Spans of windows along each axis, as (first, last, wrapped). A shifted axis has two: all windows but the last,
        # and the last, which holds places from both ends. One of each axis makes a group: up to 2 × 2 × 2 groups.
        spans = [
            [(0, count - 1, False), (count - 1, count, True)] if by else [(0, count, False)]
            for count, by in zip(rows.shape[:3], shift, strict=True)
        ]
        parts, groups, start = [], [], 0
        for spans_of_group in product(*spans):
            if any(first == last for first, last, _ in spans_of_group):
                continue  # no window: the axis has only the wrapped one
            slices = tuple(slice(first, last) for first, last, _ in spans_of_group)
            part = rearrange(rows[slices], "t h w n place -> (t h w n) place")
            wraps = tuple(wrapped for _, _, wrapped in spans_of_group)
            mask = _mask(window, shift, wraps, device) if any(wraps) else None
            groups.append((start, start + part.shape[0], mask))
            parts.append(part)
            start += part.shape[0]
        order = torch.cat(parts).flatten()
        return _Plan(order, order.argsort(), groups)


def _mask(window: Triple, shift: Triple, wraps: tuple[bool, ...], device: torch.device) -> Tensor:
    """Return 0 for each pair of places (L, L) from the same end of every wrapped axis, and -100 for the others.

    `side` numbers a place by the ends that it comes from: bit `axis` is set where it comes from the far end.
    """
    side = torch.zeros(window, dtype=torch.long, device=device)
    for axis, (extent, by, wrapped) in enumerate(zip(window, shift, wraps, strict=True)):
        if wrapped:
            far = torch.arange(extent, device=device) >= extent - by
            shape = [1, 1, 1]
            shape[axis] = extent
            side = side + (far.long() << axis).view(shape)
    side = side.flatten()
    return torch.where(side[:, None] == side, 0.0, _APART)


def _relative_index(window: Triple) -> Tensor:
    """Return the row ``(L, L)`` of the bias table for each pair of a window's places.

    Two places are between ``-(extent - 1)`` and ``extent - 1`` apart along an axis. Counted from 0, the three distances
    are the digits of the row's number, to the bases ``2 T - 1``, ``2 H - 1`` and ``2 W - 1``.
    """
    axes = [torch.arange(extent) for extent in window]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (3, L)
    apart = places[:, :, None] - places[:, None] + (torch.tensor(window) - 1)[:, None, None]
    return (apart[0] * (2 * window[1] - 1) + apart[1]) * (2 * window[2] - 1) + apart[2]


class _PermuteRows(torch.autograd.Function):
    """Rows in another order. The gradient takes the inverse order; autograd's own would add up row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _permute_rows(grad, inverse, order), None, None


def _permute_rows(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        return _PermuteRows.apply(x, order, inverse)
    return x.index_select(0, order)


def _pad(x: Tensor, multiple: Triple) -> Tensor:
    """Pad ``(N, C, T, H, W)`` with zeros at the end, to multiples of these extents."""
    missing = [-extent % step for extent, step in zip(x.shape[2:], multiple, strict=True)]
    if not any(missing):
        return x
    return functional.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))


def build(config: SwinConfig, num_classes: int) -> Swin:
    """Build the variant of that configuration."""
    return Swin(config, num_classes)


_BLOCKS: Final[Rules] = (
    (r"\.attn\.relative_position_bias_table$", ".attention.bias_table"),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"^patch_embed\.proj", "patch_embed"),
    (r"^patch_embed\.norm", "patch_norm"),
)
_OPENMMLAB: Final[Rules] = (
    (r"^backbone\.", ""),
    (r"^layers\.(\d+)\.blocks\.", r"blocks.\1."),
    (r"^layers\.(\d+)\.downsample\.", r"merges.\1."),
    (r"^norm3\.", "norm."),
    (r"^cls_head\.fc_cls\.", "classifier."),
    *_BLOCKS,
)
_LAYOUTS: Final[Mapping[str, Rules]] = {
    "mmaction2": _OPENMMLAB,
    "original": _OPENMMLAB,
    "torchvision": (
        (r"^features\.(\d*[02468])\.", lambda m: f"blocks.{int(m[1]) // 2}."),
        (r"^features\.(\d+)\.", lambda m: f"merges.{int(m[1]) // 2}."),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
        (r"^head\.", "classifier."),
        *_BLOCKS,
    ),
}


def convert(state_dict: Mapping[str, Tensor], source: str, config: SwinConfig) -> dict[str, Tensor]:
    """Rename a published state dict to this module's layout; the patches' convolution becomes a linear map."""
    renamed = rename(state_dict, _LAYOUTS[source])
    return {key: value.flatten(1) if key == "patch_embed.weight" else value for key, value in renamed.items()}


_T: Final = SwinConfig()
_S: Final = replace(_T, depths=(2, 2, 18, 2), drop_path=0.2)
_B: Final = replace(_S, width=128, heads=(4, 8, 16, 32), drop_path=0.3)
_L: Final = replace(_S, width=192, heads=(6, 12, 24, 48), drop_path=0.4)

PRESETS: Final[Mapping[str, SwinConfig]] = {
    "swin_tiny": SwinConfig(
        48,
        (2, 2),
        (3, 6),
        window=(8, 3, 3),
        patch=(1, 8, 8),
        mlp_ratio=2.0,
        drop_path=0.0,
        dropout=0.0,
        stem=(16, 32, 48),
        init_std=None,
    ),
    "swin_t": _T,
    "swin_s": _S,
    "swin_b": _B,
    "swin_l": _L,
    "swin_t.torchvision": replace(_T, dropout=0.0),
    "swin_s.torchvision": replace(_S, drop_path=0.1, dropout=0.0),
    "swin_b.torchvision": replace(_B, drop_path=0.1, dropout=0.0),
}
