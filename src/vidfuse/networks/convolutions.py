"""3D convolutions by the kernels that compute them fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["convolve"]


def convolve(x: Tensor, conv: nn.Module) -> Tensor:
    """Apply a 3D convolution, as a 2D one where its kernel reaches over space or over time alone.

    2D convolutions have the faster kernels, and with channels last they see the same memory: frames as samples, or
    positions as a row. Channel-wise convolutions over both are trained on a CPU with gradients of our own.

    Args:
        x: ``(N, C, T, H, W)``; best with channels last.
        conv: The convolution.

    Returns:
        What ``conv(x)`` returns, with channels last.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    if not isinstance(conv, nn.Conv3d) or isinstance(conv.padding, str) or conv.dilation != (1, 1, 1):
        return conv(x)
    (samples, channels, frames, height, width), kernel, stride = x.shape, conv.kernel_size, conv.stride
    last = x.permute(0, 2, 3, 4, 1)
    if kernel[0] == stride[0] == 1:
        flat = last.reshape(samples * frames, height, width, channels).permute(0, 3, 1, 2)
        y = functional.conv2d(flat, conv.weight.squeeze(2), conv.bias, stride[1:], conv.padding[1:], groups=conv.groups)
        return y.permute(0, 2, 3, 1).unflatten(0, (samples, frames)).permute(0, 4, 1, 2, 3)
    if kernel[1:] == stride[1:] == (1, 1):
        flat = last.reshape(samples, frames, height * width, channels).permute(0, 3, 1, 2)
        weight, padding = conv.weight.squeeze(-1), (conv.padding[0], 0)
        y = functional.conv2d(flat, weight, conv.bias, (stride[0], 1), padding, groups=conv.groups)
        return y.permute(0, 2, 3, 1).unflatten(2, (height, width)).permute(0, 4, 1, 2, 3)
    channelwise = conv.groups == channels == conv.out_channels and conv.bias is None and stride[0] == 1
    trained = x.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    if channelwise and trained and not torch.compiler.is_compiling():
        return _ChannelwiseConvolution.apply(x, conv.weight, stride[1:], conv.padding)
    return conv(x)


class _ChannelwiseConvolution(torch.autograd.Function):
    """A channel-wise 3D convolution whose gradients are those of one 2D convolution of frames a step in time.

    ``y[t] = Σ_o conv2d(x[t + o], w[o])``, hence ``∂x[t + o] += ∂conv2d(∂y[t], w[o])`` and likewise for ``w[o]``: the
    2D gradients of a CPU are several times faster than the 3D ones.
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
        flat = x.transpose(1, 2).flatten(0, 1)
        grad_x, grad_weight = None, torch.zeros_like(weight)
        for step in range(weight.shape[2]):
            offset = step - ctx.padding[0]  # of the frame that this step of the kernel sees
            first, last = max(0, -offset), min(frames_out, frames - offset)
            if first >= last:
                continue
            seen = grad.new_zeros(samples, frames, *grad.shape[3:], channels).permute(0, 4, 1, 2, 3)
            seen[:, :, first + offset : last + offset] = grad[:, :, first:last]
            part, of_weight, _ = torch.ops.aten.convolution_backward(
                seen.transpose(1, 2).flatten(0, 1), flat, weight[:, :, step], None,
                ctx.stride, ctx.padding[1:], (1, 1), False, (0, 0), channels, (*wanted, False),
            )  # fmt: skip
            if wanted[0]:
                grad_x = part if grad_x is None else grad_x.add_(part)
            if wanted[1]:
                grad_weight[:, :, step] = of_weight
        if grad_x is not None:
            grad_x = grad_x.unflatten(0, (samples, frames)).transpose(1, 2)
        return grad_x, grad_weight if wanted[1] else None, None, None
