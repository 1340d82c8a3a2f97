"""Make goldens from the published packages: run it in an environment that has the package, with names of networks.

    python tests/networks/make_goldens.py tpn_tsm_r50.mmaction2 swin_t.torchvision timesformer_b.transformers

The packages are mmaction2, pytorchvideo, torchvision and transformers. The network is built by the package itself,
filled by `conftest.fill_value`, and run on `conftest.make_clip`. The goldens whose files begin with `orig` and `psf`
come from papers' own repositories, which are no packages: nothing here makes them again.
"""

import json
import sys
import types
from importlib import metadata
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from conftest import GOLDENS, Golden, fill_value, make_clip

SLOWFAST = {"small": [2, 3, 32, 64, 64]}
SWIN = {"small": [2, 3, 16, 112, 112], "tiny": [1, 3, 8, 64, 64], "odd": [1, 3, 9, 90, 110]}


def clips(canonical, *labels, **shapes):
    """Return the shape for the multiply-adds, and {label: shape} for the logits: the same, and further ones."""
    return canonical, {**shapes, **dict.fromkeys(labels, canonical)}


_T8, _T16, _T32 = [1, 3, 8, 224, 224], [1, 3, 16, 224, 224], [1, 3, 32, 224, 224]
_FRAMES, _TWO_OF_FRAMES = [1, 8, 3, 224, 224], [2, 8, 3, 64, 64]
_K400 = "kinetics400-rgb.py"
# network: (configuration, clips)
MMACTION2 = {
    "r2plus1d_r34_8x8": (
        f"r2plus1d/r2plus1d_r34_8xb8-8x8x1-180e_{_K400}", clips(_T8, "canonical", small=[2, 3, 8, 64, 64]),
    ),
    "slowfast_r50_4x16": (f"slowfast/slowfast_r50_8xb8-4x16x1-256e_{_K400}", clips(_T32, **SLOWFAST)),
    "slowfast_r50_8x8": (f"slowfast/slowfast_r50_8xb8-8x8x1-256e_{_K400}", clips(_T32, "canonical", **SLOWFAST)),
    "slowfast_r50_8x8_steplr": (f"slowfast/slowfast_r50_8xb8-8x8x1-steplr-256e_{_K400}", clips(_T32, **SLOWFAST)),
    "slowfast_r101_8x8": (f"slowfast/slowfast_r101_8xb8-8x8x1-256e_{_K400}", clips(_T32, **SLOWFAST)),
    "slowfast_r101_r50_4x16": (f"slowfast/slowfast_r101-r50_32xb8-4x16x1-256e_{_K400}", clips(_T32, **SLOWFAST)),
    # Both pathways get 152 layers below.
    "slowfast_r152_4x16": (f"slowfast/slowfast_r50_8xb8-4x16x1-256e_{_K400}", clips(_T32, "canonical", **SLOWFAST)),
    "swin_b": (f"swin/swin-base-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_{_K400}", clips(_T32, "canonical", **SWIN)),
    "swin_t": (f"swin/swin-tiny-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_{_K400}", clips(_T32, "canonical", **SWIN)),
    "timesformer_b": (f"timesformer/timesformer_divST_8xb8-8x32x1-15e_{_K400}", clips(_T8, "canonical")),
    "timesformer_b_joint": (f"timesformer/timesformer_jointST_8xb8-8x32x1-15e_{_K400}", clips(_T8, "canonical")),
    "timesformer_b_space": (f"timesformer/timesformer_spaceOnly_8xb8-8x32x1-15e_{_K400}", clips(_T8, "canonical")),
    "tin_r50": (
        f"tin/tin_kinetics400-pretrained-tsm-r50_1x1x8-50e_{_K400}", clips(_FRAMES, "canonical", small=_TWO_OF_FRAMES),
    ),
    "tin_r50_sthv1": (
        "tin/tin_imagenet-pretrained-r50_8xb6-1x1x8-40e_sthv1-rgb.py", clips(_FRAMES, small=_TWO_OF_FRAMES),
    ),
    "tpn_slowonly_r50": (
        f"tpn/tpn-slowonly_r50_8xb8-8x8x1-150e_{_K400}",
        clips(_T8, "canonical", small=[2, 3, 8, 64, 64], t16=[1, 3, 16, 64, 64]),
    ),
    "tpn_tsm_r50": (
        "tpn/tpn-tsm_imagenet-pretrained-r50_8xb8-1x1x8-150e_sthv1-rgb.py", clips(_FRAMES, small=_TWO_OF_FRAMES),
    ),
    "x3d_m": (
        f"x3d/x3d_m_16x5x1_facebook-{_K400}",
        clips(_T16, "canonical", small=[2, 3, 16, 64, 64], test256=[1, 3, 16, 256, 256]),
    ),
    "x3d_s": (f"x3d/x3d_s_13x6x1_facebook-{_K400}", clips([1, 3, 13, 160, 160], small=[2, 3, 13, 64, 64])),
}  # fmt: skip
# network: (function of pytorchvideo.models.hub, clips); SlowFast takes two pathways
PYTORCHVIDEO = {
    "r2plus1d_r50": ("r2plus1d_r50", clips(_T16, "canonical")),
    "slowfast_r50_8x8": ("slowfast_r50", clips([1, 3, 32, 64, 64], **SLOWFAST, fcn96=[1, 3, 32, 96, 96])),
    "slowfast_r101_8x8": ("slowfast_r101", clips(_T32, "canonical")),
    "slowfast_16x8_r101_50_50": ("slowfast_16x8_r101_50_50", clips([1, 3, 64, 224, 224], "canonical")),
    "x3d_xs": (
        "x3d_xs", clips([1, 3, 4, 160, 160], "canonical", test182=[1, 3, 4, 182, 182], test256=[1, 3, 4, 256, 256]),
    ),
    "x3d_s": ("x3d_s", clips([1, 3, 13, 160, 160], "canonical")),
    "x3d_m": ("x3d_m", clips(_T16, "canonical", test256=[1, 3, 16, 256, 256])),
    "x3d_l": ("x3d_l", clips([1, 3, 16, 312, 312], "canonical")),
}  # fmt: skip
# Built for a training crop of 64 pixels, as ours must then be too.
OVERRIDES = {"slowfast_r50_8x8.pytorchvideo": {"size": 64}}
# network: (function of torchvision.models.video, clips)
TORCHVISION = {
    "r2plus1d_r18": ("r2plus1d_18", clips([1, 3, 16, 112, 112], "canonical", small=[2, 3, 16, 64, 64])),
    "swin_t": ("swin3d_t", clips(_T32, "canonical", **SWIN)),
    "swin_b": ("swin3d_b", clips(_T32, "canonical", **SWIN)),
}
# network: (settings of TimesformerConfig, clips)
TRANSFORMERS = {"timesformer_b": ({"num_frames": 8, "image_size": 224}, clips(_FRAMES, "canonical"))}


def build_mmaction2(network):
    """Return the recogniser of a published configuration, and how it is called."""
    import mmaction

    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import networks as benchmark  # its stand-in for MMCV's operator in CUDA

    for name in ("mmaction.models.localizers", "mmaction.models.multimodal"):
        sys.modules[name] = types.ModuleType(name)  # missing from the wheel
    operators = types.ModuleType("mmcv.ops")
    operators.tin_shift = benchmark.tin_shift
    sys.modules.setdefault("mmcv.ops", operators)
    import mmaction.models.backbones
    import mmaction.models.common
    import mmaction.models.data_preprocessors
    import mmaction.models.heads
    import mmaction.models.necks
    import mmaction.models.recognizers
    from mmaction.registry import MODELS
    from mmengine import Config
    from mmengine.registry import init_default_scope

    init_default_scope("mmaction")
    folder = Path(mmaction.__file__).parent / ".mim" / "configs" / "recognition"
    config = Config.fromfile(folder / MMACTION2[network][0]).model
    config.backbone.pretrained = None
    for pathway in ("slow_pathway", "fast_pathway"):
        if pathway in config.backbone:
            config.backbone[pathway].pretrained = None
            if network == "slowfast_r152_4x16":
                config.backbone[pathway].depth = 152
    model = MODELS.build(config)
    framewise = config.type == "Recognizer2D"

    def call(clips):
        if hasattr(model.cls_head, "avg_pool2d"):
            model.cls_head.avg_pool2d = None  # it keeps the extent of the first clips
        return model.extract_feat(clips if framewise else clips[:, None], stage="head")[0]

    return model, call


def build_pytorchvideo(network):
    """Return the network of the hub, and how it is called."""
    from pytorchvideo.models import hub

    small = {"head_pool_kernel_sizes": ((8, 2, 2), (32, 2, 2))} if network == "slowfast_r50_8x8" else {}
    model = getattr(hub, PYTORCHVIDEO[network][0])(pretrained=False, **small)
    if getattr(model.blocks[-1], "activation", None) is not None:
        model.blocks[-1].activation = nn.Identity()  # a softmax in eval mode, after which rounding hides differences

    def call(clips):
        if not network.startswith("slowfast"):
            return model(clips)
        frames = clips.shape[2]
        return model([clips[:, :, torch.linspace(0, frames - 1, frames // 4).long()], clips])

    return model, call


def build_torchvision(network):
    """Return the network of torchvision, and how it is called."""
    from torchvision.models import video

    model = getattr(video, TORCHVISION[network][0])(weights=None)
    return model, model


def build_transformers(network):
    """Return the network of transformers, and how it is called."""
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    settings, _ = TRANSFORMERS[network]
    model = TimesformerForVideoClassification(TimesformerConfig(num_labels=400, **settings))
    return model, lambda clips: model(clips).logits


# package: (its networks, how one is built, the packages whose versions are kept, how its goldens' files begin)
PACKAGES = {
    "mmaction2": (MMACTION2, build_mmaction2, ("mmaction2", "mmcv-lite", "mmengine"), "mma"),
    "pytorchvideo": (PYTORCHVIDEO, build_pytorchvideo, ("pytorchvideo",), "ptv"),
    "torchvision": (TORCHVISION, build_torchvision, ("torchvision",), "tv"),
    "transformers": (TRANSFORMERS, build_transformers, ("transformers",), "hf"),
}


def layout(state_dict):
    """Return `Golden.keys`: the five tensors of a batch normalisation on one line, whole numbers marked."""
    lines, rest = [], list(state_dict)
    while rest:
        key = rest.pop(0)
        name, _, leaf = key.rpartition(".")
        five = [f"{name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
        value = state_dict[key]
        if leaf == "weight" and rest[:4] == five[1:]:
            lines.append(f"{name} norm {len(value)}")
            del rest[:4]
        else:
            shape = "x".join(map(str, value.shape))
            lines.append(f"{key} {shape}" if value.is_floating_point() else f"{key} {shape} integers")
    return lines


@torch.inference_mode()
def golden(name):
    """Run one network and return what its file holds."""
    network, package = name.split(".")
    table, build, versions, _ = PACKAGES[package]
    _, (counted, shapes) = table[network]
    model, call = build(network)
    model.eval()
    state = model.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            value.copy_(torch.from_numpy(fill_value(key, tuple(value.shape))))
    outputs = {}
    for label, extents in shapes.items():
        values = call(make_clip(extents))
        outputs[label] = {"shape": extents, "values": [[float(f"{v:.8g}") for v in row] for row in values.tolist()]}
    with FlopCounterMode(display=False) as counter:
        call(make_clip(counted))
    content = {
        "network": name,
        "source": ", ".join(f"{package} {metadata.version(package)}" for package in versions),
        "axes": "NTCHW" if counted[2] == 3 else "NCTHW",
        "output": "logits",
        "overrides": OVERRIDES.get(name, {}),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gmacs": round(counter.get_total_flops() / 2e9, 3),
        "gmacs_shape": counted,
        "keys_sha256": "",
        "outputs": outputs,
        "keys": layout(state),
    }
    content["keys_sha256"] = Golden(**content).digest()
    return content


if __name__ == "__main__":
    for name in sys.argv[1:]:
        content = golden(name)
        lines = [f' "{key}": {json.dumps(value, separators=(",", ":"))}' for key, value in content.items()]
        network, package = name.split(".")
        path = GOLDENS / f"{PACKAGES[package][3]}_{network}.json"
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(path)
