"""What at least two of the networks share: the common interface, and the blocks of the 3D residual networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, MutableSequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import torch
from einops import rearrange, reduce
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vidfuse._checks import check_class_count
from vidfuse.errors import InputError
from vidfuse.networks.convolutions import convolve

__all__ = [
    "Backbone",
    "Bottleneck",
    "ConvNorm",
    "ConvolutionalStem",
    "VideoNetwork",
    "combine_windows",
    "finish",
    "fold_batch_norm",
    "init_convolutions",
    "init_linear",
    "pool_windows",
    "record",
]

Triple = tuple[int, int, int]
_CONVOLUTIONS: Final = (nn.Conv2d, nn.Conv3d)
_NORMS: Final = (nn.BatchNorm2d, nn.BatchNorm3d)


class Backbone(nn.Module):
    """What turns clips into the maps of its stages; a subclass writes `walk_stages`.

    It yields each stage's map, goes on from the map that is sent back, and passes its blocks through `run_blocks`,
    which recomputes their activations where that is switched on. A subclass that gets all maps at once, from another
    library's network, writes `stages` instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False

    def stages(self, clips: Tensor) -> list[Tensor]:
        """Return the feature map after each stage, ``(N, C, T, H, W)``, finest first.

        Args:
            clips: ``(N, 3, T, H, W)``, floating point, normalised as the network's `info` says.

        Raises:
            InputError: another number of axes or channels, too few frames, too few pixels.
        """
        maps: list[Tensor] = []
        finish(record(self.walk_stages(clips), maps))
        return maps

    def walk_stages(self, clips: Tensor) -> Generator[Tensor, Tensor, Any]:
        """Yield the feature map after each stage, go on from the map that is sent back, and return what a head takes.

        Args:
            clips: As for `stages`.

        Raises:
            InputError: another map is sent back, but this backbone gives all maps at once.
        """
        for x in (maps := self.stages(clips)):
            if (yield x) is not x:
                raise InputError(f"{type(self).__name__} gives all maps at once, and goes on from no other map")
        return maps[-1]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them: less memory, more time.

        Raises:
            InputError: The backbone gives all maps at once, so that there are no blocks to recompute.
        """
        if enable and type(self).walk_stages is Backbone.walk_stages:
            raise InputError(
                f"{type(self).__name__} cannot recompute activations: it writes stages(); write walk_stages() instead, "
                "and pass the blocks through run_blocks()"
            )
        self.grad_checkpointing = enable

    def walk_frames(
        self, network: Any, clips: Tensor, blocks: Callable[[Any], Iterable[Callable[[Tensor], Tensor]]]
    ) -> Generator[Tensor, Tensor, Tensor]:
        """Walk through a ResNet of timm's, which sees frames as images: maps ``(N, C, T, H / s, W / s)``, s = 4 … 32.

        Args:
            network: The ResNet.
            clips: ``(N, 3, T, H, W)``.
            blocks: What to run of each of its stages.
        """
        frames = clips.shape[2]
        x = rearrange(clips, "n c t h w -> (n t) c h w").contiguous(memory_format=torch.channels_last)
        x = network.maxpool(network.act1(network.bn1(network.conv1(x))))
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            x = self.run_blocks(blocks(stage), x)
            stage_map = yield rearrange(x, "(n t) c h w -> n c t h w", t=frames)
            x = rearrange(stage_map, "n c t h w -> (n t) c h w")
        return rearrange(x, "(n t) c h w -> n c t h w", t=frames)

    def run_blocks(self, blocks: Iterable[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        """Apply blocks in turn, checkpointing each one's activations if that is switched on."""
        for block in blocks:
            if not self.grad_checkpointing or not torch.is_grad_enabled():
                x = block(x)
            elif torch.compiler.is_compiling():  # compiled code takes no contexts, and needs none
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = checkpoint(block, x, use_reentrant=False, context_fn=self._contexts)
        return x

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return what surrounds a checkpointed block's forward pass, and its repetition in the backward pass."""
        return nullcontext(), _keep_statistics(self)


@contextmanager
def _keep_statistics(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch normalisations as they are while a batch passes a second time."""
    norms = [m for m in model.modules() if isinstance(m, _NORMS)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def record(walk: Generator[Tensor, Tensor, Any], maps: MutableSequence[Tensor]) -> Generator[Tensor, Tensor, Any]:
    """Yield what `walk` yields, and append each map that is sent back to `maps` before the walk goes on from it."""
    x = next(walk)
    while True:
        maps.append((yield x))
        try:
            x = walk.send(maps[-1])
        except StopIteration as end:
            return end.value


def finish(walk: Generator[Tensor, Tensor, Any]) -> Any:
    """Walk to the end, sending each map back as it is; return what the walk returns."""
    x = next(walk)
    while True:
        try:
            x = walk.send(x)
        except StopIteration as end:
            return end.value


class VideoNetwork(Backbone):
    """What every network of the catalogue can do; a subclass writes its stages, and `head` where it has its own.

    Args:
        num_features: Width of what the classifier sees.
        num_classes: K.
        dropout: Probability that a feature is dropped before the classifier.

    Attributes:
        training_only: How the names of parameters begin that only training uses; a checkpoint may lack them all.
    """

    training_only: tuple[str, ...] = ()

    def __init__(self, num_features: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.name = type(self).__name__
        self.num_features = num_features
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(num_features, num_classes)

    def walk(self, clips: Tensor) -> Generator[Tensor, Tensor, Tensor]:
        """Yield the feature map after each stage, go on from the map that is sent back, and return the logits.

        Sending each map back unchanged gives what ``forward`` gives.

        Args:
            clips: As for `stages`.

        Raises:
            InputError: as `walk_stages` does.
        """
        return self.head((yield from self.walk_stages(clips)))

    def head(self, features: Tensor) -> Tensor:
        """Turn the last stage's features ``(N, C, T, H, W)`` into logits ``(N, K)``."""
        return self.classifier(self.dropout(features.mean(dim=(2, 3, 4))))

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits ``(N, K)`` for clips ``(N, 3, T, H, W)``; raises as `stages` does."""
        logits: Tensor = finish(self.walk(clips))  # lets go of each map when the next is there; a list would keep all
        return logits

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a freshly initialised one.

        Args:
            num_classes: K.

        Raises:
            InputError: K is not an integer of at least 2.
        """
        old = self.classifier.weight
        count = check_class_count(num_classes)
        self.classifier = nn.Linear(self.num_features, count, device=old.device, dtype=old.dtype)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def resized(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights with those resized that depend on a clip's frames or pixels; here there are none.

        Args:
            state_dict: Weights in this network's layout.
        """
        return state_dict

    def head_modules(self) -> list[nn.Module]:
        """Return the modules that only the logits need; where the network is a backbone, they are not used."""
        return [self.classifier]

    def check_clips(self, clips: Tensor, *, frames: int = 1, frames_step: int = 1, size: int = 1) -> None:
        """Refuse clips that the network cannot take.

        Args:
            clips: What the caller passed.
            frames: The fewest frames; with `frames_step`, the number must also be a multiple of that.
            frames_step: See `frames`.
            size: The smallest height and width.

        Raises:
            InputError: says what is expected and what came.
        """
        step = f" and a multiple of {frames_step} frames" if frames_step > 1 else ""
        expected = (
            f"{self.name} expects floating-point clips (N, 3, T, H, W) of at least {frames} frames{step},"
            f" {size} pixels high and wide"
        )
        got = f"got {str(clips.dtype).removeprefix('torch.')} {tuple(clips.shape)}"
        if clips.ndim != 5 or clips.shape[1] != 3:
            hint = "; swap axes 1 and 2" if clips.ndim == 5 and clips.shape[2] == 3 else ""
            raise InputError(f"{expected}; {got}{hint}")
        if not clips.is_floating_point():
            raise InputError(f"{expected}; {got}: scale and normalise them first")
        own = self.classifier.weight.dtype
        if clips.dtype == torch.float64 != own:  # as NumPy makes them
            raise InputError(
                f"{expected}; {got}, and the weights are {str(own).removeprefix('torch.')}: say clips.float()"
            )
        if clips.shape[2] < frames or clips.shape[2] % frames_step or min(clips.shape[3:]) < size:
            raise InputError(f"{expected}; {got}")


class ConvNorm(nn.Module):
    """A 3D convolution without bias, batch normalisation, and a ReLU where asked for; padded to keep the extent.

    Args:
        width_in: Channels in.
        width_out: Channels out.
        kernel: Extents (T, H, W).
        stride: Strides (T, H, W).
        groups: Groups of the convolution.
        eps: Of the normalisation; None leaves it out.
        relu: Whether a ReLU follows.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        kernel: Triple = (1, 1, 1),
        stride: Triple = (1, 1, 1),
        *,
        groups: int = 1,
        eps: float | None = 1e-5,
        relu: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(width_in, width_out, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.Identity() if eps is None else nn.BatchNorm3d(width_out, eps=eps)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, width_in, T, H, W)`` to ``(N, width_out, T', H', W')``."""
        x = self.norm(convolve(x, self.conv))
        return functional.relu_(x) if self.relu else x


class Bottleneck(nn.Module):
    """A residual block of 1×1, 3×3 and 1×1 convolutions whose first may reach over time (SlowFast, Table 1).

    Args:
        width_in: Channels in.
        width: Channels of the inner convolutions.
        width_out: Channels out.
        temporal_kernel: Extent in time of the first convolution.
        stride: Stride in space, taken by the 3×3 convolution.
    """

    def __init__(self, width_in: int, width: int, width_out: int, *, temporal_kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        strides = (1, stride, stride)
        self.conv1 = ConvNorm(width_in, width, (temporal_kernel, 1, 1))
        self.conv2 = ConvNorm(width, width, (1, 3, 3), strides)
        self.conv3 = ConvNorm(width, width_out, relu=False)
        same = stride == 1 and width_in == width_out
        self.shortcut = None if same else ConvNorm(width_in, width_out, stride=strides, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, width_in, T, H, W)`` to ``(N, width_out, T, H', W')``."""
        short = x if self.shortcut is None else self.shortcut(x)
        return functional.relu_(self.conv3(self.conv2(self.conv1(x))).add_(short))


def pool_windows(x: Tensor, window: int | None) -> Tensor:
    """Average a map over time and over every spatial window, as fully convolutional testing does.

    Args:
        x: ``(N, C, T, H, W)``.
        window: Height and width of the window, at most the map's, which slides by 1; None averages over all.

    Returns:
        ``(N, P, C)``, P the number of windows.
    """
    x = x.mean(dim=2)
    height, width = x.shape[2:]
    if window is None or (window >= height and window >= width):
        return reduce(x, "n c h w -> n 1 c", "mean")
    windows = functional.avg_pool2d(x, (min(window, height), min(window, width)), stride=1)
    return rearrange(windows, "n c h w -> n (h w) c")


def combine_windows(logits: Tensor, *, probabilities: bool) -> Tensor:
    """Average the logits ``(N, P, K)`` of P windows to ``(N, K)``, or their probabilities, returned as logarithms."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    if not probabilities:
        return logits.mean(dim=1)
    return functional.log_softmax(logits, dim=-1).logsumexp(dim=1) - math.log(logits.shape[1])


class ConvolutionalStem(nn.Sequential):
    """Halve each frame until a patch is a pixel: clips ``(N, 3, T, H, W)`` to maps ``(N, C, T, H / s, W / s)``.

    Xiao et al. Early Convolutions Help Transformers See Better. NeurIPS 2021. Learns from few clips, where a linear
    map of whole patches does not.

    Args:
        widths: Channels of the 3 × 3 × 3 convolutions, each of which halves height and width.
        width: C, channels of the maps.
    """

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        for before, after in zip((3, *widths), widths, strict=False):
            self.append(ConvNorm(before, after, (3, 3, 3), (1, 2, 2)))
        self.append(nn.Conv3d(widths[-1], width, 1))


def init_convolutions(model: nn.Module) -> None:
    """Initialise as residual networks are: He et al. (2015) with fan-out, unit norms, a small classifier."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_linear(model: nn.Module, std: float | None) -> None:
    """Initialise linear maps as transformers do: normal weights of that deviation, or of ``in_features ** -0.5``."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=std or module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Fold each batch normalisation into the convolution before it, in place: ``w ← w·γ/σ``, ``b ← β − μ·γ/σ``.

    The model must be in eval mode; it computes the same logits afterwards, up to rounding, with fewer passes over
    memory. It can be trained no further, and takes no checkpoint any more.

    Args:
        model: Any of the networks; also one that holds pairs ``conv1``, ``bn1`` or a convolution and a
            normalisation that follow each other in an ``nn.Sequential``. Other normalisations are left as they are.

    Returns:
        The same model.

    Raises:
        InputError: the model is in training mode.

    Example:
        >>> model = nn.Sequential(nn.Conv3d(3, 4, 3, bias=False), nn.BatchNorm3d(4)).eval()
        >>> [type(module).__name__ for module in fold_batch_norm(model)]
        ['Conv3d', 'Identity']
    """
    if model.training:
        raise InputError("expected a model in eval mode, got one in training mode; call model.eval() first")
    # A module names its pairs of convolution and normalisation in one of three ways:
    #   ConvNorm        conv, norm
    #   nn.Sequential   any two that follow each other
    #   others (timm)   conv1, bn1; conv2, bn2; …   where conv1 may be a Sequential, whose last convolution counts
    # A pair is folded where the second is a plain batch normalisation and the first a convolution; all else stays.
    for parent in list(model.modules()):
        if callable(fold := getattr(parent, "fold", None)):  # what only the network itself can merge
            fold()
        children = dict(parent.named_children())
        pairs: list[tuple[str, str]] = []
        if isinstance(parent, ConvNorm):
            pairs = [("conv", "norm")]
        elif isinstance(parent, nn.Sequential):
            keys = list(children)
            pairs = list(itertools.pairwise(keys))
        else:
            pairs = [(key, f"bn{key[4:]}") for key in children if key.startswith("conv")]
        for conv_key, norm_key in pairs:
            holder, conv, norm = parent, children.get(conv_key), children.get(norm_key)
            if not isinstance(norm, _NORMS) or type(norm) not in _NORMS:  # timm's subclasses hold an activation too
                continue
            if isinstance(conv, nn.Sequential):  # a stem of several convolutions
                holder, conv_key, conv = conv, str(len(conv) - 1), conv[-1]
            if isinstance(conv, _CONVOLUTIONS):
                setattr(holder, conv_key, torch.nn.utils.fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_key, nn.Identity())
    return model
