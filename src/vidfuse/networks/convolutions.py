"""3D convolutions by the kernels that compute them fastest."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["convolve"]


def convolve(x: Tensor, conv: nn.Module) -> Tensor:
    """Apply a 3D convolution, as a 2D one where its kernel reaches over space or over time alone.

    2D convolutions have the faster kernels, and with channels last they see the same memory: frames as samples, or
    positions as a row. All are the same up to rounding.

    Args:
        x: ``(N, C, T, H, W)``; best with channels last.
        conv: The convolution.

    Returns:
        What ``conv(x)`` returns, with channels last but for channel-wise convolutions on an accelerator.
    """
    # The first line that fits says how a convolution is computed:
    #
    #   kernel (T, H, W)            conditions                       computed as
    #   channel-wise                an accelerator                   what it is, with channels first
    #   not a plain Conv3d, dilated                                  what it is
    #   any                         CPU, more channels than places   one matrix product
    #   1 × k × k                   every frame is seen              a 2D convolution of frames
    #   k × 1 × 1                   every position is seen           a 2D convolution of (T, H · W)
    #   channel-wise                CPU, in training, stride 1 in T  a 3D one with gradients of its own
    #   any other                                                    a 3D convolution
    on_cpu = x.device.type == "cpu"
    if not on_cpu and isinstance(conv, nn.Conv3d) and conv.groups == conv.in_channels > 1:
        # cuDNN's channel-wise kernels for channels last take most of X3D's time; the copies take little of it.
        return conv(x.contiguous())
    x = x.contiguous(memory_format=torch.channels_last_3d)
    if not isinstance(conv, nn.Conv3d) or isinstance(conv.padding, str) or conv.dilation != (1, 1, 1):
        return conv(x)
    (samples, channels, frames, height, _), kernel, stride = x.shape, conv.kernel_size, conv.stride
    eager = on_cpu and not torch.compiler.is_compiling()
    sizes = zip(x.shape[2:], kernel, stride, conv.padding, strict=True)
    extents = [(extent + 2 * padding - size) // step + 1 for extent, size, step, padding in sizes]
    if eager and conv.groups == 1 and min(extents) > 0 and samples * math.prod(extents) <= conv.out_channels:
        return _multiply(x.permute(0, 2, 3, 4, 1), conv, conv.padding, extents)
    if kernel[0] == stride[0] == 1 and conv.padding[0] == 0:
        y = functional.conv2d(
            rearrange(x, "n c t h w -> (n t) c h w"), conv.weight.squeeze(2), conv.bias, stride[1:], conv.padding[1:],
            groups=conv.groups,
        )  # fmt: skip
        return rearrange(y, "(n t) c h w -> n c t h w", t=frames)
    if kernel[1:] == stride[1:] == (1, 1) and conv.padding[1:] == (0, 0):
        # Channels last before positions are joined: the other way round, one clip has strides that do not say so.
        rows = rearrange(x, "n c t h w -> n t (h w) c").permute(0, 3, 1, 2)
        y = functional.conv2d(
            rows, conv.weight.squeeze(-1), conv.bias, (stride[0], 1), (conv.padding[0], 0), groups=conv.groups,
        )  # fmt: skip
        return rearrange(y, "n c t (h w) -> n c t h w", h=height)
    trained = eager and conv.bias is None and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    if trained and conv.groups == channels == conv.out_channels and stride[0] == 1:
        return _ChannelwiseConvolution.apply(x, conv.weight, stride[1:], conv.padding)
    return conv(x)


def _multiply(x: Tensor, conv: nn.Conv3d, padding: tuple[int, ...], extents: list[int]) -> Tensor:
    """Convolve ``(N, T, H, W, C)`` by one matrix product of what each position sees and the weights as they lie.

    Other kernels first arrange all weights anew, which takes longer than to gather what a few positions see.
    """
    time, height, width = padding
    x = functional.pad(x, (0, 0, width, width, height, height, time, time))
    axes = [
        [slice(first, first + stride * (extent - 1) + 1, stride) for first in range(kernel)]
        for kernel, stride, extent in zip(conv.kernel_size, conv.stride, extents, strict=True)
    ]
    seen = torch.stack([x[:, t, h, w] for t, h, w in itertools.product(*axes)], dim=-1)  # (N, T, H, W, C, steps)
    return functional.linear(seen.flatten(4), conv.weight.flatten(1), conv.bias).permute(0, 4, 1, 2, 3)


def _reach(offset: int, frames: int, frames_out: int) -> tuple[int, int, int, int]:
    """Return the range of outputs ``t`` whose input ``t + offset`` is there, and the range of these inputs."""
    first = max(0, -offset)
    last = max(first, min(frames_out, frames - offset))
    return first, last, first + offset, last + offset


class _ChannelwiseConvolution(torch.autograd.Function):
    """A channel-wise 3D convolution whose gradients are those of 2D convolutions, one a step of the kernel in time.

    ``y[t] = Σ_o conv2d(x[t + o], w[o])``, hence ``∂x[t + o] += ∂conv2d(∂y[t], w[o])`` and likewise for ``w[o]``: the
    2D gradients of a CPU are several times faster than the 3D ones. For a kernel of three steps and four frames:

        x    0 1 2 3        step o = −1 pairs y 1 2 3 with x 0 1 2
        y    0 1 2 3        step o =  0 pairs y 0 1 2 3 with x 0 1 2 3
                            step o = +1 pairs y 0 1 2 with x 1 2 3
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int, int]) -> Tensor:
        return functional.conv3d(x, weight, None, (1, *stride), padding, groups=x.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        samples, channels, frames = x.shape[:3]
        frames_out, wanted = grad.shape[2], ctx.needs_input_grad[:2]
        flat = rearrange(x, "n c t h w -> (n t) c h w")
        grad_x, grad_weight = None, torch.zeros_like(weight)
        for step in range(weight.shape[2]):
            first, last, start, end = _reach(step - ctx.padding[0], frames, frames_out)
            if first == last:
                continue
            seen = grad.new_zeros(samples, frames, *grad.shape[3:], channels).permute(0, 4, 1, 2, 3)
            seen[:, :, start:end] = grad[:, :, first:last]  # zeros where this step sees no frame
            part, of_weight, _ = torch.ops.aten.convolution_backward(
                rearrange(seen, "n c t h w -> (n t) c h w"), flat, weight[:, :, step], None,
                ctx.stride, ctx.padding[1:], (1, 1), False, (0, 0), channels, (*wanted, False),
            )  # fmt: skip
            if wanted[0]:
                grad_x = part if grad_x is None else grad_x.add_(part)
            if wanted[1]:
                grad_weight[:, :, step] = of_weight
        if grad_x is not None:
            grad_x = rearrange(grad_x, "(n t) c h w -> n c t h w", t=frames)
        return grad_x, grad_weight if wanted[1] else None, None, None
