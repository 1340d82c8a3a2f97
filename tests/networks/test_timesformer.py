"""What is special to TimeSformer: constants, embeddings that are resized, what each attention can and cannot see."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from vidfuse import networks
from vidfuse.errors import InputError
from vidfuse.networks import timesformer
from vidfuse.networks.catalogue import load_checkpoint

SMALL = timesformer.TimeSformerConfig(frames=4, size=32, width=32, depth=2, heads=4, drop_path=0.0)


def small(**settings):
    torch.manual_seed(0)
    model = timesformer.build(replace(SMALL, **settings), 5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", networks.names("timesformer_*"))
def test_every_norm_has_eps_1e_minus_6(name):
    with torch.device("meta"):
        model = networks.create(name)
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}


def test_time_layers_start_at_zero():
    model = timesformer.build(SMALL, 5)
    for block in model.blocks:
        assert not block.time_fc.weight.any()
        assert not block.time_fc.bias.any()


def reference_divided(model, clips):
    """Bertasius et al., equations 4 to 8, one token, head and frame at a time, in float64."""

    def attend(attention, queries, keys):
        width = queries.shape[-1]
        weight, bias = attention.qkv.weight, attention.qkv.bias
        q = functional.linear(queries, weight[:width], bias[:width])
        k = functional.linear(keys, weight[width : 2 * width], bias[width : 2 * width])
        v = functional.linear(keys, weight[2 * width :], bias[2 * width :])
        size = width // attention.heads
        heads = [slice(h * size, (h + 1) * size) for h in range(attention.heads)]
        mixed = [(q[:, h] @ k[:, h].T / size**0.5).softmax(dim=-1) @ v[:, h] for h in heads]
        return attention.out(torch.cat(mixed, dim=-1))

    config, rows = model.config, []
    for clip in clips:
        frames, patch = clip.shape[1], config.patch
        places = [(i, j) for i in range(clip.shape[2] // patch) for j in range(clip.shape[3] // patch)]
        z = torch.stack(
            [
                torch.stack(
                    [
                        model.patch_embed(
                            clip[:, t, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].flatten()
                        )
                        + model.position[0, 1 + number]
                        + model.time[0, t]
                        for t in range(frames)
                    ]
                )
                for number, (i, j) in enumerate(places)
            ]
        )  # (places, T, C)
        class_token = (model.class_token + model.position[:, :1])[0]
        for block in model.blocks:
            moved = torch.stack([attend(block.time_attention, x, x) for x in block.time_norm(z)])
            z = z + block.time_fc(moved)
            updates = []
            for t in range(frames):
                x = block.norm(torch.cat((class_token, z[:, t])))
                updates.append(attend(block.attention, x, x))
            class_token = class_token + torch.stack(updates)[:, :1].mean(dim=0)
            z = z + torch.stack(updates)[:, 1:].transpose(0, 1)
            class_token = class_token + block.mlp(block.mlp_norm(class_token))
            z = z + block.mlp(block.mlp_norm(z))
        rows.append(model.classifier(model.norm(class_token[0])))
    return torch.stack(rows)


def test_divided_attention_is_the_papers():
    model, clips = small().double(), torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(clips), reference_divided(model, clips))


def test_space_only_averages_frames_that_do_not_see_each_other():
    model, clips = small(attention="space"), torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(clips), model(clips.flip(2)))
        features = model.stages(clips)[-1]
        changed = clips.clone()
        changed[:, :, 2] = 0
        torch.testing.assert_close(model.stages(changed)[-1][:, :, :2], features[:, :, :2])


@pytest.mark.parametrize("attention", ["divided", "joint"])
def test_other_attentions_see_the_order_of_frames(attention):
    model, clips = small(attention=attention), torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        assert (model(clips) - model(clips.flip(2))).abs().max() > 1e-4


def test_embeddings_are_resized_to_the_nearest():
    model = small()
    with torch.no_grad():
        assert model._time(8).equal(model.time.repeat_interleave(2, dim=1))
        assert model._time(2).equal(model.time[:, ::2])
        table = model.position[:, 1:].view(1, 2, 2, 32)
        doubled = table.repeat_interleave(2, dim=1).repeat_interleave(3, dim=2).flatten(1, 2)
        assert model._position((4, 6)).equal(torch.cat((model.position[:, :1], doubled), dim=1))


def test_transformers_checkpoint_serves_other_frame_counts_in_the_right_order():
    """That library cuts a clip of another length into its configured number of frames, and says nothing."""
    with torch.device("meta"):
        model = networks.create("timesformer_b.transformers")
        assert model.stages(torch.empty(1, 3, 4, 224, 224))[-1].shape == (1, 768, 4, 14, 14)
    model, clips = small(), torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        repeated = model(clips.repeat_interleave(2, dim=2)[:, :, ::2])
        torch.testing.assert_close(repeated, model(clips))


def test_a_checkpoint_of_another_length_and_size_is_resized_where_these_are_set():
    """Oracle: the network of the checkpoint, which resizes its embeddings to the clip that it gets."""
    torch.manual_seed(0)
    own = networks.create("timesformer_tiny").eval()
    longer = networks.create("timesformer_tiny", checkpoint=own.state_dict(), frames=16, size=96).eval()
    assert (longer.time.shape[1], longer.position.shape[1]) == (16, 37)
    clips = torch.randn(1, 3, 16, 96, 96)
    with torch.no_grad():
        assert longer(clips).equal(own(clips))
    with pytest.raises(InputError, match="1 misshapen: time"):
        load_checkpoint(networks.create("timesformer_tiny", frames=16), own.state_dict())


@pytest.mark.parametrize(("size", "grid"), [((32, 32), (2, 2)), ((40, 70), (2, 4)), ((16, 16), (1, 1))])
def test_any_size_of_at_least_a_patch(size, grid):
    assert small().stages(torch.zeros(1, 3, 4, *size))[-1].shape[3:] == grid


def test_refuses_less_than_a_patch():
    with pytest.raises(InputError, match="16 pixels"):
        small()(torch.zeros(1, 3, 4, 15, 32))


def test_undivided_layout_of_mmaction2_converts():
    with torch.device("meta"):
        model = networks.create("timesformer_b_joint.mmaction2")
    layer = "backbone.transformer_layers.layers.0."
    published = {
        "backbone.cls_token": (1, 1, 768), "backbone.pos_embed": (1, 197, 768), "backbone.time_embed": (1, 8, 768),
        "backbone.patch_embed.projection.weight": (768, 3, 16, 16), "backbone.patch_embed.projection.bias": (768,),
        "backbone.norm.weight": (768,), "backbone.norm.bias": (768,),
        layer + "attentions.0.attn.in_proj_weight": (2304, 768), layer + "attentions.0.attn.in_proj_bias": (2304,),
        layer + "attentions.0.attn.out_proj.weight": (768, 768), layer + "attentions.0.attn.out_proj.bias": (768,),
        layer + "ffns.0.layers.0.0.weight": (3072, 768), layer + "ffns.0.layers.0.0.bias": (3072,),
        layer + "ffns.0.layers.1.weight": (768, 3072), layer + "ffns.0.layers.1.bias": (768,),
        layer + "norms.0.weight": (768,), layer + "norms.0.bias": (768,),
        layer + "norms.1.weight": (768,), layer + "norms.1.bias": (768,),
        "cls_head.fc_cls.weight": (400, 768), "cls_head.fc_cls.bias": (400,),
    }  # fmt: skip
    state = {key: torch.empty(shape, device="meta") for key, shape in published.items()}
    converted = networks.convert_state_dict(state, "timesformer_b_joint.mmaction2")
    ours = {key: value.shape for key, value in model.state_dict().items() if ".1" not in key[:9] or "blocks" not in key}
    ours = {key: shape for key, shape in ours.items() if not key.startswith("blocks.") or key.startswith("blocks.0.")}
    assert {key: value.shape for key, value in converted.items()} == ours


def test_folding_merges_the_two_linear_maps_after_the_attention_over_time():
    model, clips = small(), torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        expected = model(clips)
        networks.fold_batch_norm(model)
        torch.testing.assert_close(model(clips), expected, rtol=1e-4, atol=1e-5)
    assert all(isinstance(block.time_fc, nn.Identity) for block in model.blocks)


def test_few_tokens_attend_alike_with_and_without_gradients():
    torch.manual_seed(0)
    model = networks.create("timesformer_tiny", num_classes=5).eval()
    clips = torch.randn(2, 3, 8, 64, 64)
    with torch.no_grad():
        plain = model(clips)
    torch.testing.assert_close(model(clips).detach(), plain, rtol=1e-5, atol=1e-6)
