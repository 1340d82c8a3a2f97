"""3D convolutions by the kernels that compute them fastest."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["convolve"]

_GATHERED = 1 << 20  # numbers: 4 MB of float32, which stay in the cache between being gathered and multiplied
_WORTH_GATHERING = 32, 1 << 28  # channels and multiply-adds; less is quicker by the library's own gradient


def convolve(x: Tensor, conv: nn.Module) -> Tensor:
    """Apply a 3D convolution, as a 2D one where its kernel reaches over space or over time alone.

    2D convolutions have the faster kernels, and with channels last they see the same memory: frames as samples, or
    positions as a row. On a CPU, one of more channels than positions is a matrix product, and training takes other
    gradients than the 2D ones' own, which are slow. All are the same up to rounding.

    Args:
        x: ``(N, C, T, H, W)``; best with channels last.
        conv: The convolution.

    Returns:
        What ``conv(x)`` returns, with channels last.
    """
    given, x = x, x.contiguous(memory_format=torch.channels_last_3d)
    if not isinstance(conv, nn.Conv3d) or isinstance(conv.padding, str) or conv.dilation != (1, 1, 1):
        return conv(x)
    (samples, channels, frames, height, width), kernel, stride = x.shape, conv.kernel_size, conv.stride
    last = x.permute(0, 2, 3, 4, 1)
    eager = x.device.type == "cpu" and not torch.compiler.is_compiling()
    sizes = zip(x.shape[2:], kernel, stride, conv.padding, strict=True)
    extents = [(extent + 2 * padding - size) // step + 1 for extent, size, step, padding in sizes]
    if eager and conv.groups == 1 and min(extents) > 0 and samples * math.prod(extents) <= conv.out_channels:
        return _multiply(last, conv, conv.padding, extents)
    trained = eager and conv.bias is None and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    if trained and x is not given and not given.requires_grad:
        return _ClipConvolution.apply(given, conv.weight, stride, conv.padding, conv.groups)
    dense = trained and conv.groups == 1
    if _within_frames(conv.weight, stride, conv.padding):
        flat = last.reshape(samples * frames, height, width, channels).permute(0, 3, 1, 2)
        weight, padding = conv.weight.squeeze(2), conv.padding[1:]
        work = samples * math.prod(extents) * conv.weight.numel()
        if dense and kernel[1:] != (1, 1) and channels >= _WORTH_GATHERING[0] and work >= _WORTH_GATHERING[1]:
            y = _Convolution.apply(flat, weight, stride[1:], padding)
        else:
            y = functional.conv2d(flat, weight, conv.bias, stride[1:], padding, groups=conv.groups)
        return y.permute(0, 2, 3, 1).unflatten(0, (samples, frames)).permute(0, 4, 1, 2, 3)
    if kernel[1:] == stride[1:] == (1, 1) and conv.padding[1:] == (0, 0):
        flat = last.reshape(samples, frames, height * width, channels).permute(0, 3, 1, 2)
        weight, strides, padding = conv.weight.squeeze(-1), (stride[0], 1), (conv.padding[0], 0)
        if dense:
            y = _Convolution.apply(flat, weight, strides, padding)
        else:
            y = functional.conv2d(flat, weight, conv.bias, strides, padding, groups=conv.groups)
        return y.permute(0, 2, 3, 1).unflatten(2, (height, width)).permute(0, 4, 1, 2, 3)
    if trained and conv.groups == channels == conv.out_channels and stride[0] == 1:
        return _ChannelwiseConvolution.apply(x, conv.weight, stride[1:], conv.padding)
    return conv(x)


def _multiply(x: Tensor, conv: nn.Conv3d, padding: tuple[int, ...], extents: list[int]) -> Tensor:
    """Convolve ``(N, T, H, W, C)`` by one matrix product of what each position sees and the weights as they lie.

    With few positions this is little to gather, where other kernels rearrange all weights first.
    """
    time, height, width = padding
    x = functional.pad(x, (0, 0, width, width, height, height, time, time))
    axes = [
        [slice(first, first + stride * (extent - 1) + 1, stride) for first in range(kernel)]
        for kernel, stride, extent in zip(conv.kernel_size, conv.stride, extents, strict=True)
    ]
    seen = torch.stack([x[:, t, h, w] for t, h, w in itertools.product(*axes)], dim=-1)  # (N, T, H, W, C, steps)
    return functional.linear(seen.flatten(4), conv.weight.flatten(1), conv.bias).permute(0, 4, 1, 2, 3)


class _ClipConvolution(torch.autograd.Function):
    """A 3D convolution that keeps a clip for the gradient as it was given: its copy with channels last is made anew."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...], groups: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if not _within_frames(weight, stride, padding):
            return functional.conv3d(x, weight, None, stride, padding, groups=groups)
        flat, weight = x.transpose(1, 2).flatten(0, 1), weight.squeeze(2)
        y = functional.conv2d(flat, weight, None, stride[1:], padding[1:], groups=groups)
        return y.unflatten(0, (len(x), -1)).transpose(1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.stride, ctx.padding, ctx.groups = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x, wanted = x.contiguous(memory_format=torch.channels_last_3d), (*ctx.needs_input_grad[:2], False)
        backward, stride, padding, groups = torch.ops.aten.convolution_backward, ctx.stride, ctx.padding, ctx.groups
        if not _within_frames(weight, stride, padding):
            grad_x, grad_weight, _ = backward(
                grad, x, weight, None, stride, padding, (1, 1, 1), False, (0, 0, 0), groups, wanted
            )
            return grad_x, grad_weight, None, None, None
        samples, (grad, x) = len(x), (tensor.transpose(1, 2).flatten(0, 1) for tensor in (grad, x))
        grad_x, grad_weight, _ = backward(
            grad, x, weight.squeeze(2), None, stride[1:], padding[1:], (1, 1), False, (0, 0), groups, wanted
        )
        if grad_x is not None:
            grad_x = grad_x.unflatten(0, (samples, -1)).transpose(1, 2)
        return grad_x, None if grad_weight is None else grad_weight.unsqueeze(2), None, None, None


def _within_frames(weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> bool:
    """Say whether a convolution looks at each frame alone, and at every one."""
    return weight.shape[2] == stride[0] == 1 and padding[0] == 0


class _Convolution(torch.autograd.Function):
    """A 2D convolution whose weight's gradient is made of matrix products: one for all that a block of outputs sees.

    ``y[t, p] = Σ w[o, q] · x[s·t + o, r·p + q]``, hence ``∂w[o, q] = Σ ∂y[t, p] · x[s·t + o, r·p + q]ᵀ``. With channels
    last a CPU computes that up to five times faster than its gradient of the 2D convolution.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        return functional.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = None, None
        if ctx.needs_input_grad[0]:
            grad_x, _, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, (True, False, False)
            )
        if ctx.needs_input_grad[1]:
            seen, outputs = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
            if weight.shape[3] == 1:
                grad_weight = _over_rows(seen, outputs, weight.shape[2], ctx.stride[0], ctx.padding[0])
            else:
                grad_weight = _over_both(seen, outputs, weight.shape[2:], ctx.stride, ctx.padding)
        return grad_x, grad_weight, None, None


def _over_rows(x: Tensor, grad: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Return the weight's gradient for ``(N, T, P, C)`` and a kernel over T: a step of it sees one piece."""
    steps = []
    for step in range(kernel):
        first, last, start, end = _reach(step - padding, stride, x.shape[1], grad.shape[1])
        left = grad[:, first:last].flatten(1, 2).transpose(1, 2)
        steps.append((left @ x[:, start:end:stride].flatten(1, 2)).sum(dim=0))
    return torch.stack(steps, dim=2)[..., None]


def _over_both(
    x: Tensor, grad: Tensor, kernel: torch.Size, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return the weight's gradient for ``(N, H, W, C)``: a block of outputs at a time."""
    (samples, height, width, channels), channels_in = grad.shape, x.shape[3]
    numbers = kernel.numel() * channels_in
    rows = max(1, _GATHERED // (width * numbers))
    some = max(1, rows // height)
    total = grad.new_zeros(channels, numbers)
    for first in range(0, samples, some):
        part = functional.pad(x[first : first + some], (0, 0, padding[1], padding[1], padding[0], padding[0]))
        a, b, c, d = part.stride()
        strides = (a, b * stride[0], c * stride[1], b, c, d)
        seen = part.as_strided((len(part), height, width, *kernel, channels_in), strides)
        for row in range(0, height, rows):
            block = grad[first : first + some, row : row + rows].reshape(-1, channels)
            total.addmm_(block.t(), seen[:, row : row + rows].reshape(-1, numbers))
    return total.view(channels, *kernel, channels_in).permute(0, 3, 1, 2)


def _reach(offset: int, stride: int, frames: int, frames_out: int) -> tuple[int, int, int, int]:
    """Return the range of outputs ``t`` whose input ``stride·t + offset`` is there, and the range of these inputs."""
    first = max(0, -(offset // stride))
    last = max(first, min(frames_out, (frames - 1 - offset) // stride + 1))
    start = max(0, stride * first + offset)
    return first, last, start, start + stride * (last - first)


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
            first, last, start, end = _reach(step - ctx.padding[0], 1, frames, frames_out)
            if first == last:
                continue
            seen = grad.new_zeros(samples, frames, *grad.shape[3:], channels).permute(0, 4, 1, 2, 3)
            seen[:, :, start:end] = grad[:, :, first:last]
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
