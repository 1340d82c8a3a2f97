"""What is special to the residual networks: constants, sampling of frames, windows at larger crops."""

from collections import Counter

import pytest
import timm
import torch
from torch import nn

from vidfuse import networks
from vidfuse.errors import InputError
from vidfuse.networks.convolutions import convolve
from vidfuse.networks.layers import combine_windows, pool_windows


def norm_constants(name):
    with torch.device("meta"):
        model = networks.create(name)
    return Counter(module.eps for module in model.modules() if isinstance(module, nn.BatchNorm3d))


@pytest.mark.parametrize("name", [*networks.names("x3d_*"), *networks.names("slowfast_*")])
def test_norms_of_x3d_and_slowfast_have_eps_1e_minus_5(name):
    assert set(norm_constants(name)) == {1e-5}


@pytest.mark.parametrize("name", ["r2plus1d_r34_8x8.mmaction2", "r2plus1d_r34_32x2.mmaction2"])
def test_mmaction2s_r2plus1d_has_another_eps_after_the_second_factor(name):
    # One factorised convolution in the stem, two in each of 16 blocks, one in each of three shortcuts.
    assert norm_constants(name) == {1e-5: 36, 1e-3: 36}


@pytest.mark.parametrize("name", ["r2plus1d_r18.torchvision", "r2plus1d_r50.pytorchvideo"])
def test_norms_of_the_other_r2plus1d_have_eps_1e_minus_5(name):
    assert set(norm_constants(name)) == {1e-5}


@pytest.mark.parametrize("frames", range(8, 129, 4))
def test_slow_frames_are_the_truncated_even_spacing(frames):
    model = networks.create("slowfast_tiny")
    clips = torch.arange(float(frames)).expand(1, 3, 1, 1, frames).transpose(2, 4)
    picked = model._sample(clips)[0, 0, :, 0, 0].long()
    assert torch.equal(picked, torch.linspace(0, frames - 1, frames // 4).long())


def test_slow_frames_by_stride_start_at_the_first():
    with torch.device("meta"):
        model = networks.create("slowfast_r50_4x16.mmaction2")
    assert model._sample(torch.arange(32.0).reshape(1, 1, 32, 1, 1)).flatten().tolist() == [0, 8, 16, 24]


def test_slowfast_refuses_frames_that_its_pathways_cannot_share():
    model = networks.create("slowfast_tiny").eval()
    with pytest.raises(InputError, match="multiple of 4 frames"):
        model(torch.zeros(1, 3, 14, 64, 64))


def test_slow_features_keep_the_time_axis_of_the_slow_pathway():
    stages = networks.create("slowfast_tiny").eval().stages(torch.zeros(1, 3, 16, 64, 64))
    assert [stage.shape[2] for stage in stages] == [4, 4, 4, 4]


def test_windows_are_averaged_by_hand():
    x = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    rows = x.mean(dim=2)[0, 0]
    windows = [rows[i : i + 2, j : j + 2].mean() for i in range(2) for j in range(3)]
    assert pool_windows(x, 2)[0, :, 0].tolist() == pytest.approx([float(w) for w in windows])
    assert pool_windows(x, 3)[0, :, 0].tolist() == pytest.approx([float(rows[:, :3].mean()), float(rows[:, 1:].mean())])
    assert pool_windows(x, 4)[0, 0, 0] == x.mean()
    assert pool_windows(x, None)[0, 0, 0] == x.mean()


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "groups"),
    [((1, 3, 3), (1, 2, 2), 1), ((3, 1, 1), (2, 1, 1), 1), ((1, 1, 1), (2, 2, 2), 1), ((5, 1, 1), (1, 1, 1), 4),
     ((3, 3, 3), (1, 2, 2), 4), ((1, 1, 1), (1, 1, 1), 2)],
)  # fmt: skip
def test_a_convolution_done_in_two_dimensions_is_the_same(kernel, stride, groups, samples):
    torch.manual_seed(0)
    padding = tuple(extent // 2 for extent in kernel)
    conv = nn.Conv3d(4, 8, kernel, stride, padding, groups=groups).double()
    for x in (torch.randn(samples, 4, 6, 7, 5, dtype=torch.float64), torch.randn(samples, 4, 1, 7, 5).double()):
        torch.testing.assert_close(convolve(x, conv), conv(x))


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3, 3), (1, 1, 1), (1, 1, 1)), ((3, 3, 3), (1, 2, 2), (1, 1, 1)), ((5, 3, 3), (1, 2, 1), (2, 1, 0)),
     ((3, 2, 3), (1, 1, 3), (2, 0, 1)), ((1, 3, 3), (1, 2, 2), (0, 1, 1))],
)  # fmt: skip
def test_the_gradients_of_a_channelwise_convolution_are_torchs(kernel, stride, padding, frames):
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 3, kernel, stride, padding, groups=3, bias=False).double()
    x = torch.randn(2, 3, frames, 6, 5, dtype=torch.float64, requires_grad=True)
    expected = conv(x)
    grad = torch.randn_like(expected)
    for inputs in ((x, conv.weight), (x,), (conv.weight,)):
        ours = torch.autograd.grad(convolve(x, conv), inputs, grad)
        torch.testing.assert_close(ours, torch.autograd.grad(conv(x), inputs, grad))
    assert torch.autograd.gradcheck(lambda x: convolve(x, conv), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: convolve(x, conv), x, fast_mode=True)
    conv.requires_grad_(False)
    torch.testing.assert_close(torch.autograd.grad(convolve(x, conv), x, grad), torch.autograd.grad(conv(x), x, grad))


@pytest.mark.parametrize("frames", [1, 2, 5, 6])
@pytest.mark.parametrize(("extent", "stride", "padding"), [(3, 1, 1), (5, 2, 2), (4, 3, 0), (7, 4, 3), (2, 1, 2)])
def test_the_gradients_of_a_convolution_over_time_are_torchs(extent, stride, padding, frames):
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 4, (extent, 1, 1), (stride, 1, 1), (padding, 0, 0), bias=False).double()
    x = torch.randn(2, 3, frames, 3, 2, dtype=torch.float64, requires_grad=True)
    if frames + 2 * padding < extent:
        with pytest.raises(RuntimeError):
            convolve(x, conv)
        return
    expected = conv(x)
    grad = torch.randn_like(expected)
    for inputs in ((x, conv.weight), (x,), (conv.weight,)):
        ours = torch.autograd.grad(convolve(x, conv), inputs, grad)
        torch.testing.assert_close(ours, torch.autograd.grad(conv(x), inputs, grad))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((3, 3), (1, 1), (1, 1)), ((3, 2), (2, 1), (1, 0)), ((5, 3), (2, 3), (2, 3))]
)
def test_the_gradients_of_a_convolution_over_space_are_torchs(kernel, stride, padding):
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 4, (1, *kernel), (1, *stride), (0, *padding), bias=False).double()
    x = torch.randn(2, 3, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    expected = conv(x)
    grad = torch.randn_like(expected)
    for inputs in ((x, conv.weight), (x,), (conv.weight,)):
        ours = torch.autograd.grad(convolve(x, conv), inputs, grad)
        torch.testing.assert_close(ours, torch.autograd.grad(conv(x), inputs, grad))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((1, 3, 3), (1, 2, 2), (0, 1, 1)), ((3, 1, 1), (2, 1, 1), (1, 0, 0)), ((1, 1, 1), (2, 2, 2), (0, 0, 0)),
     ((3, 2, 3), (1, 3, 2), (2, 1, 0))],
)  # fmt: skip
def test_a_convolution_of_few_positions_is_a_matrix_product(kernel, stride, padding):
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 200, kernel, stride, padding).double()
    x = torch.randn(2, 3, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    expected = conv(x)
    assert expected[:, 0].numel() <= 200
    ours = convolve(x, conv)
    assert "Convolution" not in str(ours.grad_fn.next_functions)
    torch.testing.assert_close(ours, expected)
    grad = torch.randn_like(expected)
    inputs = (x, conv.weight, conv.bias)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(expected, inputs, grad))


@pytest.mark.parametrize("groups", [1, 8])
def test_only_channelwise_convolutions_see_channels_first_beside_the_cpu(groups):
    # The meta device computes no values but lays tensors out, so that no accelerator is needed.
    conv = nn.Conv3d(8, 8, 3, padding=1, groups=groups, device="meta")
    seen = []
    conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    convolve(torch.empty(2, 8, 4, 6, 6, device="meta").contiguous(memory_format=torch.channels_last_3d), conv)
    convolve(torch.empty(2, 8, 4, 6, 6, device="meta"), conv)
    layout = torch.contiguous_format if groups == 8 else torch.channels_last_3d
    assert [x.is_contiguous(memory_format=layout) for x in seen] == [True, True]


def test_a_dilated_convolution_stays_dilated():
    conv = nn.Conv3d(4, 8, (1, 3, 3), dilation=(1, 2, 2))
    x = torch.randn(1, 4, 2, 9, 9)
    torch.testing.assert_close(convolve(x, conv), conv(x))


def test_windows_combine_as_logits_or_as_probabilities():
    logits = torch.tensor([[[0.0, 2.0], [1.0, -1.0]]])
    assert combine_windows(logits, probabilities=False)[0].tolist() == [0.5, 0.5]
    expected = logits.softmax(dim=-1).mean(dim=1)
    torch.testing.assert_close(combine_windows(logits, probabilities=True).softmax(dim=-1), expected)


@pytest.mark.parametrize("frames", [1, 4, 13])
def test_x3d_takes_any_number_of_frames(frames):
    assert networks.create("x3d_tiny").eval()(torch.zeros(1, 3, frames, 64, 80)).shape == (1, 15)


@pytest.mark.parametrize("name", ["regnetx_002", "resnext26ts", "resnet18d"])
def test_norms_that_hold_an_activation_stay_as_they_are(name):
    torch.manual_seed(0)
    model, images = timm.create_model(name), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model(images)
        expected = model.eval()(images)
        torch.testing.assert_close(networks.fold_batch_norm(model)(images), expected, rtol=1e-4, atol=1e-5)


def test_a_model_in_training_mode_is_not_folded():
    with pytest.raises(InputError, match=r"model\.eval"):
        networks.fold_batch_norm(networks.create("x3d_tiny"))
