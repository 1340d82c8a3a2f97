"""What is special to TIN: the interlacing and its gradient, offsets and weights, insertion into ResNets."""

import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vidfuse import networks
from vidfuse.errors import InputError
from vidfuse.networks.tin import InterlacedConv2d, insert_interlacing, interlace


def moved_by_loops(x, offsets, weights):
    """out[t + s] = in[t] for whole offsets s, zeros outside, and linear interpolation between two of them."""
    out = torch.zeros_like(x)
    samples, frames, channels = x.shape[:3]
    for n in range(samples):
        for c in range(channels):
            group = c * offsets.shape[1] // channels
            offset = float(offsets[n, group])
            whole = math.floor(offset)
            for shift, share in ((whole, 1 - (offset - whole)), (whole + 1, offset - whole)):
                for t in range(frames):
                    if 0 <= t + shift < frames:
                        out[n, t + shift, c] += share * weights[n, t + shift, group] * x[n, t, c]
    return out


@settings(max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4), st.integers(0, 100))
def test_interlacing_moves_by_whole_frames_and_interpolates(offsets, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 6, 8, 2, generator=generator, dtype=torch.float64)
    weights = torch.rand(1, 6, 4, generator=generator, dtype=torch.float64)
    offset = torch.tensor([offsets], dtype=torch.float64)
    torch.testing.assert_close(interlace(x, offset, weights), moved_by_loops(x, offset, weights))


def test_gradient_is_the_true_adjoint():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    # Away from whole frames, where interpolation has a kink.
    offsets = torch.tensor([[0.3, -1.6], [2.45, -0.2]], dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(interlace, (x, offsets, weights))


@pytest.mark.parametrize("offset", [1.0, -2.0, 0.25, -3.75])
def test_backward_moves_the_other_way(offset):
    x = torch.randn(1, 8, 1, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, 8, 1, dtype=torch.float64)
    one = torch.ones(1, 8, 1, dtype=torch.float64)
    forth = torch.tensor([[offset]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(interlace(x, forth, one), x, y)
    torch.testing.assert_close(gradient, interlace(y, -forth, one))


def test_interlacing_refuses_shapes_that_do_not_fit():
    x, weights = torch.zeros(2, 4, 6, 1), torch.zeros(2, 4, 4)
    with pytest.raises(InputError, match="C a multiple of G"):
        interlace(x, torch.zeros(2, 4), weights)


def test_first_offsets_are_half_a_frame_and_first_weights_one():
    conv = InterlacedConv2d(nn.Conv2d(16, 8, 1), segments=8, fraction=4)
    assert conv.offset_out.bias.tolist() == pytest.approx([0.5108, 0.5108])
    assert not conv.weight_conv.bias.any()


def test_interlaced_convolution_is_the_papers():
    torch.manual_seed(0)
    conv = InterlacedConv2d(nn.Conv2d(32, 5, 1, bias=False), segments=4, fraction=4).double()
    frames = torch.randn(2 * 4, 32, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        clips = frames.view(2, 4, 32, 3, 3)
        descriptor = clips[:, :, :8].mean(dim=(3, 4)).transpose(1, 2)
        hidden = conv.offset_hidden(conv.offset_conv(descriptor)[:, 0]).clamp(min=0)
        first, second = (4 * (conv.offset_out(hidden).sigmoid() - 0.5)).unbind(1)
        offsets = torch.stack((first, second, -first, -second), dim=1)
        weights = 2 * conv.weight_conv(descriptor).sigmoid().transpose(1, 2)
        weights = torch.cat((weights, weights), dim=2)
        moved = moved_by_loops(clips[:, :, :8].flatten(3), offsets, weights).view(2, 4, 8, 3, 3)
        expected = nn.functional.conv2d(torch.cat((moved, clips[:, :, 8:]), dim=2).flatten(0, 1), conv.weight)
        torch.testing.assert_close(conv(frames), expected)


@pytest.mark.parametrize("name", ["resnet18", "resnet26", "resnext26ts", "resnet10t"])
def test_goes_into_timms_resnets(name):
    network = timm.create_model(name, num_classes=3)
    if name == "resnext26ts":  # of other blocks
        with pytest.raises(InputError, match="ResNet"):
            insert_interlacing(network, 4)
        return
    before = {key: value.clone() for key, value in network.state_dict().items()}
    insert_interlacing(network, 4)
    assert all(network.state_dict()[key].equal(value) for key, value in before.items())
    count = sum(isinstance(module, InterlacedConv2d) for module in network.modules())
    assert count == sum(len(stage) for stage in (network.layer1, network.layer2, network.layer3, network.layer4))
    network(torch.randn(4, 3, 32, 32)).sum().backward()
    assert network.layer2[0].conv1.offset_conv.weight.grad is not None


def test_refuses_frames_that_are_no_whole_clips():
    network = insert_interlacing(timm.create_model("resnet10t", num_classes=3), 4)
    with pytest.raises(InputError, match="T = 4"):
        network(torch.zeros(6, 3, 32, 32))


@pytest.mark.parametrize("name", ["res2net50_26w_4s", "resnest14d", "seresnext26d_32x4d"])
def test_goes_into_kin_of_the_resnet(name):
    network = insert_interlacing(timm.create_model(name, num_classes=3), 4)
    network(torch.randn(4, 3, 32, 32)).sum().backward()
    assert network.layer2[0].conv1.offset_conv.weight.grad is not None


@pytest.mark.parametrize("settings", [{"segments": 0}, {"segments": 4, "fraction": 0}])
def test_refuses_no_segments_and_no_fraction(settings):
    with pytest.raises(InputError, match="at least 1"):
        insert_interlacing(timm.create_model("resnet10t"), **settings)


@pytest.mark.parametrize("frames", [4, 7, 9, 16])
def test_refuses_another_number_of_frames(frames):
    with pytest.raises(InputError, match="exactly 8 frames"):
        networks.create("tin_tiny")(torch.zeros(1, 3, frames, 64, 64))


@pytest.mark.parametrize("name", networks.names("tin_*"))
def test_norms_have_eps_1e_minus_5(name):
    with torch.device("meta"):
        model = networks.create(name)
    assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-5}


def test_original_layout_converts():
    with torch.device("meta"):
        ours = {key: value for key, value in networks.create("tin_r50.original").state_dict().items()}
    published = {}
    for key, value in ours.items():
        name = key.replace("frames.", "base_model.").replace("classifier.", "new_fc.")
        name = name.replace("conv1.offset_conv", "conv1.net1.biasnet.net.conv")
        name = name.replace("conv1.offset_hidden", "conv1.net1.biasnet.net.fc")
        name = name.replace("conv1.offset_out", "conv1.net1.biasnet.net.lastlayer")
        name = name.replace("conv1.weight_conv", "conv1.net1.weightnet.net.lastlayer")
        if name.endswith(".conv1.weight") and "layer" in name:
            name = name.replace("conv1.weight", "conv1.net2.weight")
        published["module." + name] = value
    assert "module.base_model.layer1.0.conv1.net2.weight" in published
    converted = networks.convert_state_dict(published, "tin_r50.original")
    assert set(converted) == {key for key in ours if not key.endswith("num_batches_tracked")}
