"""What is special to TPN: the cascade of its two flows, and that it goes onto any network with stages."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from vidfuse import networks
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.networks import tpn
from vidfuse.networks.tpn import TPN, FramewiseStages, SlowOnlyStages, TemporalPyramid


def pyramid(channels=(4, 8), **settings):
    torch.manual_seed(0)
    return TemporalPyramid(channels, **{"width": 8, "features": 6, "slowdown": 2, "groups": 4, **settings}).double()


def maps(channels=(4, 8), frames=3, side=4, **settings):
    torch.manual_seed(1)
    extents = [side >> level for level in range(len(channels))]
    return [
        torch.randn(2, c, frames, s, s, dtype=torch.float64, **settings) for c, s in zip(channels, extents, strict=True)
    ]


def test_fusion_is_the_papers_cascade():
    """Yang et al., section 3.4: top-down, then bottom-up from what the first flow left; both are kept."""
    neck, (fine, deep) = pyramid().eval(), maps()
    with torch.no_grad():
        low = neck.temporal[0](neck.spatial[0](fine))
        high = neck.temporal[1](deep)
        low, high = (functional.max_pool3d(x, (2, 1, 1), ceil_mode=True) for x in (low, high))
        low = low + high
        down = neck.fusion_down.mix(torch.cat((neck.fusion_down.levels[0](low), neck.fusion_down.levels[1](high)), 1))
        high = high + neck.upward[0](low)
        up = neck.fusion_up.mix(torch.cat((neck.fusion_up.levels[0](low), neck.fusion_up.levels[1](high)), 1))
        torch.testing.assert_close(neck([fine, deep]), neck.fusion(torch.cat((down, up), dim=1)))


def test_gradients_of_the_fusion():
    neck = pyramid().eval()
    inputs = tuple(maps(side=2, frames=2, requires_grad=True))
    assert torch.autograd.gradcheck(lambda *levels: neck(levels), inputs, fast_mode=True)


def test_gradients_of_the_fusion_of_three_levels_of_other_lengths():
    neck = pyramid((2, 4, 8)).eval()
    torch.manual_seed(1)
    inputs = [
        torch.randn(1, c, t, s, s, dtype=torch.float64, requires_grad=True)
        for c, t, s in ((2, 4, 4), (4, 4, 2), (8, 2, 1))
    ]
    assert neck(inputs).shape == (1, 6, 1, 1, 1)
    assert torch.autograd.gradcheck(lambda *levels: neck(levels), inputs, fast_mode=True)


def test_temporal_modulation_has_neither_norm_nor_activation():
    with torch.device("meta"):
        neck = networks.create("tpn_slowonly_r50").neck
    assert {type(module) for module in neck.temporal} == {nn.Conv3d}
    assert {module.groups for module in neck.temporal} == {32}
    assert type(neck.upward[0]) is nn.Conv3d
    assert neck.upward[0].groups == 1


@pytest.mark.parametrize("frames", [1, 8, 9, 16])
def test_the_last_frames_make_a_group_of_their_own(frames):
    neck = pyramid(slowdown=8).eval()
    with torch.no_grad():
        assert neck(maps(frames=frames)).shape[2] == -(-frames // 8)


def test_norms_have_eps_1e_minus_5():
    for name in networks.names("tpn_*"):
        with torch.device("meta"):
            model = networks.create(name)
        norms = (nn.BatchNorm2d, nn.BatchNorm3d)
        assert {module.eps for module in model.modules() if isinstance(module, norms)} == {1e-5}


def test_swapped_level_fusions_are_told_apart():
    config = tpn.PRESETS["tpn_slowonly_r50"]
    for source, key in (("mmaction2", "neck.level_fusion_1"), ("original", "necks.level_fusion_op2")):
        last = "fusion_conv.conv.weight" if source == "mmaction2" else "fusion_conv.0.weight"
        assert list(tpn.convert({f"{key}.{last}": torch.ones(1)}, source, config)) == [
            "neck.fusion_down.mix.conv.weight"
        ]


@pytest.mark.parametrize("auxiliary", ["convs.conv", "convs.norm", "convs.0"])
def test_original_layout_converts(auxiliary):
    """The original's names, for which no published layout is at hand, derived from ours one by one."""
    with torch.device("meta"):
        ours = networks.create("tpn_slowonly_r50.original").state_dict()
    published = {}
    for key, value in ours.items():
        head, _, rest = key.partition(".")
        name = key
        if head == "backbone":
            name = name.replace("backbone.stem.conv", "backbone.conv1").replace("backbone.stem.norm", "backbone.bn1")
            for stage in range(4):
                name = name.replace(f"backbone.blocks.{stage}.", f"backbone.layer{stage + 1}.")
            name = name.replace("shortcut.conv", "downsample.0").replace("shortcut.norm", "downsample.1")
            for number in "123":
                name = name.replace(f".conv{number}.conv.", f".conv{number}.").replace(
                    f".conv{number}.norm.", f".bn{number}."
                )
        elif head == "neck":
            name = "necks." + rest
            name = name.replace("necks.spatial.", "necks.spatial_modulation.spatial_modulation.")
            if "spatial" in name:
                name = name.replace(".norm.", ".bn.")
            if "temporal." in name:
                name = name.replace("temporal.", "temporal_modulation_ops.").replace(".weight", ".conv.weight")
            if "upward." in name:
                name = name.replace("upward.", "downsampling_ops.").replace(".weight", ".conv.weight")
            name = name.replace("fusion_down.levels", "level_fusion_op2.ops").replace(
                "fusion_up.levels", "level_fusion_op.ops"
            )
            name = name.replace("fusion_down.mix", "level_fusion_op2.fusion_conv")
            name = name.replace("fusion_up.mix", "level_fusion_op.fusion_conv")
            name = name.replace("necks.fusion.", "necks.pyramid_fusion_op.")
            if "fusion_conv" in name or "pyramid" in name:
                name = name.replace(".conv.", ".0.").replace(".norm.", ".1.")
        elif head == "auxiliary":
            # The first release had a list of one convolution, the published files have the convolution itself; its norm
            # is called bn or norm.
            of_list, norm = ("convs.0", "bn") if auxiliary == "convs.0" else ("convs", auxiliary.split(".")[1])
            norm = "bn" if norm == "conv" else norm
            name = "necks.aux_head." + rest.replace("conv.conv", f"{of_list}.conv").replace(
                "conv.norm", f"{of_list}.{norm}"
            )
            name = name.replace("classifier", "fc")
        else:
            name = "cls_head.fc_cls." + rest
        published[name] = value
    assert "necks.level_fusion_op.ops.0.norm.weight" in published
    converted = networks.convert_state_dict(published, "tpn_slowonly_r50.original")
    assert set(converted) == {key for key in ours if not key.endswith("num_batches_tracked")}


def test_a_checkpoint_cut_down_to_what_predicts_loads_with_a_note():
    model = networks.create("tpn_tiny", 5, auxiliary=True)
    whole = {key: value + 1 for key, value in model.state_dict().items() if value.is_floating_point()}
    cut = {key: value for key, value in whole.items() if not key.startswith("auxiliary.")}
    with pytest.warns(VidfuseWarning, match="no auxiliary head, which only training uses"):
        loaded = networks.create("tpn_tiny", 5, checkpoint=cut, auxiliary=True)
    assert loaded.neck.fusion.conv.weight.equal(cut["neck.fusion.conv.weight"])
    assert loaded.classifier.weight.equal(cut["classifier.weight"])
    with pytest.warns(VidfuseWarning, match="no auxiliary head"):
        networks.create("tpn_tiny", 7, checkpoint=cut, auxiliary=True, replace_classifier=True)
    partly = {key: value for key, value in whole.items() if not key.startswith("auxiliary.classifier")}
    with pytest.raises(InputError, match=r"2 missing: auxiliary\.classifier\.weight"):
        networks.create("tpn_tiny", 5, checkpoint=partly, auxiliary=True)
    del cut["neck.fusion.conv.weight"]
    with pytest.raises(InputError, match=r"1 missing: neck\.fusion\.conv\.weight"):
        networks.create("tpn_tiny", 5, checkpoint=cut, auxiliary=True)


CONFIG = tpn.PRESETS["tpn_tiny"]


def test_goes_onto_x3d():
    x3d = networks.create("x3d_tiny")
    check_trains(TPN(CONFIG, 5, backbone=x3d, channels=x3d.config.widths[-2:]))


def test_goes_onto_a_3d_residual_network():
    check_trains(TPN(CONFIG, 5, backbone=SlowOnlyStages((1, 1, 1, 1), 8), channels=(128, 256)))


def test_goes_onto_an_image_network():
    network = timm.create_model("resnet10t", features_only=True)
    check_trains(TPN(CONFIG, 5, backbone=FramewiseStages(network), channels=network.feature_info.channels()[-2:]))


@pytest.mark.parametrize(("name", "channels"), [("swin_tiny", (48, 96)), ("r2plus1d_tiny", None), ("x3d_tiny", None)])
def test_a_networks_own_head_waits_for_no_gradient_under_the_neck(name, channels):
    network = networks.create(name)
    clips = torch.randn(2, 3, 8, 64, 64)
    channels = channels or [x.shape[1] for x in network.stages(clips)[-2:]]
    model = TPN(CONFIG, 5, backbone=network, channels=channels)
    model(clips).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_both_classifiers_reach_every_parameter():
    model = networks.create("tpn_tiny", 5, auxiliary=True)
    stages = model.stages(torch.randn(2, 3, 8, 64, 64))
    (model.head(stages[-1]).square().sum() + model.auxiliary_logits(stages).square().sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_maps_of_other_channels_than_said_are_refused():
    model = TPN(CONFIG, 5, backbone=networks.create("x3d_tiny"), channels=(8, 16))
    with pytest.raises(InputError, match=r"2 maps of \(8, 16\) channels"):
        model(torch.zeros(1, 3, 8, 64, 64))


def test_an_image_network_of_channels_last_gives_maps_like_any_other():
    network = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, img_size=64, window_size=2)
    maps = FramewiseStages(network).stages(torch.zeros(1, 3, 4, 64, 64))
    assert [tuple(x.shape) for x in maps[-2:]] == [(1, 384, 4, 4, 4), (1, 768, 4, 2, 2)]


def test_an_image_network_recomputes_its_activations_on_request():
    def kept(checkpointing):
        numbers = []
        torch.manual_seed(0)
        network = FramewiseStages(timm.create_model("resnet10t", features_only=True))
        network.set_grad_checkpointing(checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: numbers.append(x.numel()) or x, lambda x: x):
            network.stages(torch.randn(1, 3, 4, 64, 64))
        return sum(numbers)

    assert kept(True) < 0.8 * kept(False)
    with pytest.raises(InputError, match="set_grad_checkpointing"):
        FramewiseStages(torch.nn.Conv2d(3, 4, 1)).set_grad_checkpointing()


def check_trains(model):
    clips = torch.randn(2, 3, 8, 64, 64)
    logits = model(clips)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.neck.parameters())
    used = [p.grad is not None for key, p in model.backbone.named_parameters() if "blocks.3" in key or "layer4" in key]
    assert used
    assert all(used)


def test_a_backbone_needs_its_channels():
    with pytest.raises(InputError, match="channels"):
        TPN(CONFIG, 5, backbone=SlowOnlyStages((1, 1, 1, 1), 8))


def test_pyramid_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="two maps"):
        TemporalPyramid((64,))
    with pytest.raises(InputError, match="32 groups"):
        TemporalPyramid((48, 72))
    with pytest.raises(InputError, match="2 maps of"):
        pyramid()(maps()[:1])


def test_auxiliary_classifier_sees_the_finer_map():
    model = networks.create("tpn_tiny", 5, auxiliary=True).eval()
    stages = model.stages(torch.randn(2, 3, 8, 64, 64))
    expected = model.auxiliary.classifier(model.auxiliary.conv(stages[2]).mean(dim=(2, 3, 4)))
    assert model.auxiliary_logits(stages).equal(expected)
    model.reset_classifier(3)
    assert model.auxiliary_logits(stages).shape == (2, 3)
    with pytest.raises(InputError, match="auxiliary=True"):
        networks.create("tpn_tiny").auxiliary_logits(stages)


def test_another_class_count_replaces_both_classifiers():
    model = networks.create("tpn_tiny", 5, auxiliary=True)
    loaded = networks.create("tpn_tiny", 7, checkpoint=model.state_dict(), replace_classifier=True, auxiliary=True)
    assert loaded.auxiliary.classifier.out_features == 7
    assert loaded.neck.fusion.conv.weight.equal(model.neck.fusion.conv.weight)


def test_tsm_takes_an_eighth_of_the_channels_from_each_neighbour():
    seen = []
    model = networks.create("tpn_tiny", 5, backbone="tsm").eval()
    model.backbone.network.layer2[0].conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    before = []
    model.backbone.network.layer1[-1].act3.register_forward_hook(lambda _, __, output: before.append(output))
    with torch.no_grad():
        model(torch.randn(1, 3, 4, 64, 64))
    x, shifted = before[0], seen[0]
    part = x.shape[1] // 8
    assert shifted[:-1, :part].equal(x[1:, :part])
    assert not shifted[-1, :part].any()
    assert shifted[1:, part : 2 * part].equal(x[:-1, part : 2 * part])
    assert not shifted[0, part : 2 * part].any()
    assert shifted[:, 2 * part :].equal(x[:, 2 * part :])
