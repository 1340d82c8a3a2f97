"""Make goldens from the published packages: run it in an environment that has the package, with names of networks.

    python tests/networks/make_goldens.py tpn_tsm_r50.mmaction2 r2plus1d_r50.pytorchvideo

The network is built by the package itself, filled by `conftest.fill_value`, and run on `conftest.make_clip`.
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

# network: (configuration, {label: shape of the clips}, shape for the multiply-adds)
MMACTION2 = {
    "tpn_tsm_r50": (
        "tpn/tpn-tsm_imagenet-pretrained-r50_8xb8-1x1x8-150e_sthv1-rgb.py",
        {"small": [2, 8, 3, 64, 64]}, [1, 8, 3, 224, 224],
    ),
    "tin_r50_sthv1": (
        "tin/tin_imagenet-pretrained-r50_8xb6-1x1x8-40e_sthv1-rgb.py",
        {"small": [2, 8, 3, 64, 64]}, [1, 8, 3, 224, 224],
    ),
    "slowfast_r50_4x16": (
        "slowfast/slowfast_r50_8xb8-4x16x1-256e_kinetics400-rgb.py",
        {"small": [2, 3, 32, 64, 64]}, [1, 3, 32, 224, 224],
    ),
    "slowfast_r50_8x8_steplr": (
        "slowfast/slowfast_r50_8xb8-8x8x1-steplr-256e_kinetics400-rgb.py",
        {"small": [2, 3, 32, 64, 64]}, [1, 3, 32, 224, 224],
    ),
    "slowfast_r101_r50_4x16": (
        "slowfast/slowfast_r101-r50_32xb8-4x16x1-256e_kinetics400-rgb.py",
        {"small": [2, 3, 32, 64, 64]}, [1, 3, 32, 224, 224],
    ),
    "slowfast_r101_8x8": (
        "slowfast/slowfast_r101_8xb8-8x8x1-256e_kinetics400-rgb.py",
        {"small": [2, 3, 32, 64, 64]}, [1, 3, 32, 224, 224],
    ),
    "timesformer_b_space": (
        "timesformer/timesformer_spaceOnly_8xb8-8x32x1-15e_kinetics400-rgb.py",
        {"canonical": [1, 3, 8, 224, 224]}, [1, 3, 8, 224, 224],
    ),
    "timesformer_b_joint": (
        "timesformer/timesformer_jointST_8xb8-8x32x1-15e_kinetics400-rgb.py",
        {"canonical": [1, 3, 8, 224, 224]}, [1, 3, 8, 224, 224],
    ),
    "x3d_s": (
        "x3d/x3d_s_13x6x1_facebook-kinetics400-rgb.py",
        {"small": [2, 3, 13, 64, 64]}, [1, 3, 13, 160, 160],
    ),
}  # fmt: skip
# network: (function of pytorchvideo.models.hub, whether it takes two pathways, shape of the clips)
PYTORCHVIDEO = {
    "r2plus1d_r50": ("r2plus1d_r50", False, [1, 3, 16, 224, 224]),
    "slowfast_r101_8x8": ("slowfast_r101", True, [1, 3, 32, 224, 224]),
    "slowfast_16x8_r101_50_50": ("slowfast_16x8_r101_50_50", True, [1, 3, 64, 224, 224]),
    "x3d_s": ("x3d_s", False, [1, 3, 13, 160, 160]),
    "x3d_l": ("x3d_l", False, [1, 3, 16, 312, 312]),
}
PREFIXES = {"mmaction2": "mma", "pytorchvideo": "ptv"}


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

    function, pathways, _ = PYTORCHVIDEO[network]
    model = getattr(hub, function)(pretrained=False)
    if getattr(model.blocks[-1], "activation", None) is not None:
        model.blocks[-1].activation = nn.Identity()  # a softmax in eval mode, after which rounding hides differences

    def call(clips):
        if not pathways:
            return model(clips)
        frames = clips.shape[2]
        return model([clips[:, :, torch.linspace(0, frames - 1, frames // 4).long()], clips])

    return model, call


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
    if package == "mmaction2":
        model, call = build_mmaction2(network)
        _, shapes, shape = MMACTION2[network]
        versions = ("mmaction2", "mmcv-lite", "mmengine")
    else:
        model, call = build_pytorchvideo(network)
        shape = PYTORCHVIDEO[network][2]
        shapes, versions = {"canonical": shape}, ("pytorchvideo",)
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
        call(make_clip(shape))
    content = {
        "network": name,
        "source": ", ".join(f"{package} {metadata.version(package)}" for package in versions),
        "axes": "NTCHW" if shape[2] == 3 else "NCTHW",
        "output": "logits",
        "overrides": {},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gmacs": round(counter.get_total_flops() / 2e9, 3),
        "gmacs_shape": shape,
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
        path = GOLDENS / f"{PREFIXES[package]}_{network}.json"
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(path)
