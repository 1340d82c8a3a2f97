"""What is special to Video Swin: windows, shifts, masks and biases, against a plain reference."""

import pytest
import torch
from torch import nn

from vidfuse import networks
from vidfuse.errors import InputError
from vidfuse.networks import swin

ATTENTION = swin._WindowAttention


def attention(shifted, window=(2, 3, 3), width=12, heads=3):
    torch.manual_seed(0)
    module = ATTENTION(window, width, heads, shifted).double()
    with torch.no_grad():
        module.bias_table.normal_()
    return module


def reference(module, x):
    """Attention place by place: two places meet if they share a window of the shifted, padded grid and a side of it."""
    n, *extents, width = x.shape
    window, shift = module._clip(extents)
    padded = [-(-extent // size) * size for extent, size in zip(extents, window, strict=True)]
    grid = torch.zeros(n, *padded, width, dtype=x.dtype)
    grid[:, : extents[0], : extents[1], : extents[2]] = x
    query, key, value = module.qkv(grid).unflatten(-1, (3, module.heads, -1)).unbind(dim=4)
    places = [(t, h, w) for t in range(padded[0]) for h in range(padded[1]) for w in range(padded[2])]

    def where(place):
        """Window, position in it, and which side of the seam, of a place of the cyclically shifted grid."""
        moved = [(p - s) % size for p, s, size in zip(place, shift, padded, strict=True)]
        return (
            tuple(m // size for m, size in zip(moved, window, strict=True)),
            tuple(m % size for m, size in zip(moved, window, strict=True)),
            tuple(p < s for p, s in zip(place, shift, strict=True)),
        )

    def number(position):
        return (position[0] * window[1] + position[1]) * window[2] + position[2]

    out = torch.zeros_like(grid)
    located = {place: where(place) for place in places}
    for place in places:
        home, position, side = located[place]
        mates = [other for other in places if located[other][0] == home]
        rows = torch.tensor([number(located[other][1]) for other in mates])
        bias = module.bias_table[module.index[number(position), rows]]  # (mates, heads)
        apart = torch.tensor([0.0 if located[other][2] == side else -100.0 for other in mates], dtype=x.dtype)
        keys = torch.stack([key[:, t, h, w] for t, h, w in mates], dim=1)
        values = torch.stack([value[:, t, h, w] for t, h, w in mates], dim=1)
        logits = (query[:, *place][:, None] * keys).sum(-1) / keys.shape[-1] ** 0.5 + bias + apart[:, None]
        out[:, *place] = (logits.softmax(dim=1)[..., None] * values).sum(dim=1).flatten(1)
    return module.out(out)[:, : extents[0], : extents[1], : extents[2]]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("extents", [(4, 6, 6), (2, 6, 3), (3, 5, 7), (1, 2, 8)])
def test_window_attention_is_the_plain_one(extents, shifted):
    module = attention(shifted)
    x = torch.randn(2, *extents, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(module(x), reference(module, x))


def test_gradients_of_window_attention():
    module = attention(True, window=(2, 2, 2), width=4, heads=2)
    x = torch.randn(1, 2, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))


def test_gradients_agree_with_those_of_plain_indexing():
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    weight = torch.randn(6, 3, dtype=torch.float64)
    (ours,) = torch.autograd.grad((swin._permute_rows(x, order, order.argsort()) * weight).sum(), x)
    (plain,) = torch.autograd.grad((x[order] * weight).sum(), x)
    assert ours.equal(plain)


def test_plans_made_in_inference_mode_serve_training():
    module = attention(True)
    x = torch.randn(1, 2, 6, 9, 12, dtype=torch.float64)
    swin._make_plan.cache_clear()
    with torch.inference_mode():
        module(x)
    module(x.clone().requires_grad_()).sum().backward()
    assert module.qkv.weight.grad is not None


def test_clipped_windows_take_the_upper_left_of_the_index():
    """The official behaviour: position L of a clipped window has the bias of position L of the full one."""
    module = attention(False, window=(2, 3, 3))
    expected = module.bias_table[module.index[:4, :4]].permute(2, 0, 1)
    assert module._bias(4).equal(expected)


def test_windows_that_cover_an_axis_are_not_shifted_along_it():
    assert attention(True)._clip([2, 6, 3]) == ((2, 3, 3), (0, 1, 0))
    assert attention(False)._clip([4, 6, 6]) == ((2, 3, 3), (0, 0, 0))


@pytest.mark.parametrize("window", [(8, 5, 5), (4, 3, 3)])
def test_relative_biases_are_resized_to_a_window_that_is_set(window):
    """Oracle: a bias that is linear in the distance stays linear inside, and 0 stays in the middle."""
    own = networks.create("swin_tiny")
    t, h, w = own.config.window
    far = torch.stack(
        torch.meshgrid(torch.arange(1.0 - t, t), torch.arange(1.0 - h, h), torch.arange(1.0 - w, w), indexing="ij")
    )
    weights = own.state_dict()
    for key in [key for key in weights if key.endswith("bias_table")]:
        slopes = torch.tensor([1.0, 2.0, 3.0]) / torch.tensor([2 * t - 1, 2 * h - 1, 2 * w - 1])
        weights[key] = (far.flatten(1).T @ slopes)[:, None].expand(-1, weights[key].shape[1])
    new = networks.create("swin_tiny", checkpoint=weights, window=window)
    extents = torch.tensor([2 * extent - 1 for extent in window])
    table = new.blocks[0][0].attention.bias_table.detach()[:, 0].view(*extents)
    middle = tuple(int(extent) // 2 for extent in extents)
    assert table[middle] == pytest.approx(0, abs=1e-5)
    for axis, slope in enumerate((1.0, 2.0, 3.0)):
        step = list(middle)
        step[axis] += 1
        assert table[tuple(step)] == pytest.approx(slope / int(extents[axis]), rel=0.15)
    assert new.blocks[0][0].attention.qkv.weight.equal(own.blocks[0][0].attention.qkv.weight)


@pytest.mark.parametrize("name", networks.names("swin_*"))
def test_norms_and_activations(name):
    with torch.device("meta"):
        model = networks.create(name)
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}
    assert {module.approximate for module in model.modules() if isinstance(module, nn.GELU)} == {"none"}


def test_merging_takes_rows_before_columns():
    merge = swin._Merge(1).eval()
    seen = []
    merge.norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    merge(torch.arange(6.0).view(1, 1, 2, 3, 1))
    assert seen[0].view(2, 4).tolist() == [[0.0, 3.0, 1.0, 4.0], [2.0, 5.0, 0.0, 0.0]]


@pytest.mark.parametrize("source", ["mmaction2", "original"])
def test_both_names_of_the_final_norm_load(source):
    """A non-strict load of the one into the other goes wrong without a word."""
    config = swin.PRESETS["swin_tiny"]
    key = "backbone.norm3.weight" if source == "mmaction2" else "backbone.norm.weight"
    assert list(swin.convert({key: torch.ones(1)}, source, config)) == ["norm.weight"]


# As the published ones are, with a linear map of patches, and small.
_SMALL = swin.SwinConfig(32, (2, 2, 2), (2, 4, 8), window=(4, 4, 4), mlp_ratio=2.0, drop_path=0.5, dropout=0.0)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 17, 30), (8, 48, 64)])
def test_any_size_is_padded(shape):
    model = swin.build(_SMALL, 5).eval()
    with torch.no_grad():
        stages = model.stages(torch.randn(1, 3, *shape))
    frames, height, width = -(-shape[0] // 2), -(-shape[1] // 4), -(-shape[2] // 4)
    for stage in stages:
        assert stage.shape[2:] == (frames, height, width)
        height, width = -(-height // 2), -(-width // 2)


def test_refuses_what_is_smaller_than_a_place_of_the_last_stage():
    with pytest.raises(InputError, match="16 pixels"):
        networks.create("swin_tiny")(torch.zeros(1, 3, 8, 15, 64))


def test_drop_path_grows_from_zero():
    model = swin.build(_SMALL, 5)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, swin.DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
