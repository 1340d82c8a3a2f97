"""Time the networks side by side with the packages that users would pick instead; print and save the ratios.

Every contestant runs in a process of its own, with the interpreter of the environment that its package is installed
in, and the contestants take turns: a ratio compares passes that ran within seconds of each other. A network without a
peer at hand is timed alone.

    python benchmarks/networks.py --torchvision $(which python) --pytorchvideo ptv/bin/python \
        --mmaction2 mma/bin/python --transformers hf/bin/python

Peers run as their documentation says: default memory layout, eval mode and inference mode for a forward pass. Ours
runs plain, and folded (`vidfuse.networks.fold_batch_norm`). A training step is forward, cross-entropy, backward and
SGD with momentum. MMAction2's TIN needs a CUDA operator, and gets a pure PyTorch one here. On a machine that others
use too, `--cpu-time` compares processor time, which their work disturbs least. Rows join those of an earlier run in
the same file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
# network: (frames, size, peers)
ROWS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "slowfast_r50_8x8": (32, 224, ("pytorchvideo", "mmaction2")),
    "tin_r50": (8, 224, ("mmaction2",)),
    "tpn_slowonly_r50": (8, 224, ("mmaction2",)),
    "swin_t": (32, 224, ("torchvision", "mmaction2")),
    "r2plus1d_r18": (16, 112, ("torchvision",)),
    "r2plus1d_r34_8x8": (8, 224, ("mmaction2",)),
    "timesformer_b": (8, 224, ("transformers", "mmaction2")),
    "x3d_m": (16, 224, ("pytorchvideo", "mmaction2")),
}
MODES = ("forward", "folded", "train")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for peer in ("torchvision", "pytorchvideo", "mmaction2", "transformers"):
        parser.add_argument(f"--{peer}", metavar="PYTHON", help=f"interpreter of an environment with {peer}")
    parser.add_argument("--networks", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES)
    parser.add_argument("--batch", type=int, nargs="*", default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="measure processor seconds, for a busy machine")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bfloat16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile both sides")
    parser.add_argument("--peak", type=float, default=989.0, help="the accelerator's peak, in 10¹² operations a second")
    parser.add_argument("--output", type=Path, default=RESULTS / "networks.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        Worker(json.loads(options.worker)).serve()
        return
    rows = load(options)
    for network in options.networks:
        for row in compare(network, options):
            rows[row["network"], row["mode"], row["batch"]] = row
            save(list(rows.values()), options)
    for key, value in geometric_means(list(rows.values())).items():
        print(f"geometric mean of the ratios, {key}: {value:.2f}")


def geometric_means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Average the ratios over the networks, for each mode and batch size."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if "ratio" in row:
            groups.setdefault(f"{row['mode']}, batch {row['batch']}", []).append(math.log(row["ratio"]))
    return {key: math.exp(statistics.fmean(logarithms)) for key, logarithms in groups.items()}


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what all rows of a file have in common."""
    names = ("threads", "cpu_time", "device", "bfloat16", "compile")
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    settings = {"processor": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores"}
    if options.device == "cuda":
        import torch

        settings["card"] = torch.cuda.get_device_name()
    return settings | {name: getattr(options, name) for name in names}


def load(options: argparse.Namespace) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Read the rows of an earlier run, which new ones join or replace: a long benchmark can be run in portions."""
    if not options.output.exists():
        return {}
    content = json.loads(options.output.read_text(encoding="utf-8"))
    if content["settings"] != settings_of(options):
        raise SystemExit(f"{options.output} was measured with {content['settings']}; choose another --output")
    return {(row["network"], row["mode"], row["batch"]): row for row in content["rows"]}


def save(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write what is known so far: a long run that is cut short loses nothing."""
    rows.sort(key=lambda row: (row["batch"], MODES.index(row["mode"]), list(ROWS).index(row["network"])))
    content = {"settings": settings_of(options), "geometric_means": geometric_means(rows), "rows": rows}
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def compare(network: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Time one network against its peers, in turns; yield a row for each mode and batch size."""
    frames, size, peers = ROWS[network]
    pythons = {"vidfuse": sys.executable, **{p: getattr(options, p) for p in peers if getattr(options, p)}}
    for mode in options.modes:
        for batch in options.batch:
            contestants: dict[str, Contestant] = {}
            memory: dict[str, float] = {}
            try:
                for package, python in pythons.items():
                    spec = {
                        "package": package, "network": network, "mode": mode, "shape": [batch, 3, frames, size, size],
                        "threads": options.threads, "device": options.device, "bfloat16": options.bfloat16,
                        "compile": options.compile, "cpu_time": options.cpu_time,
                    }  # fmt: skip
                    if options.device == "cpu":
                        memory[package] = memory_of(python, spec)
                    contestants[package] = Contestant(python, spec)
                for package, contestant in contestants.items():
                    contestant.wait()
                    memory.setdefault(package, contestant.memory)
                row = {**race(contestants, options.rounds), "memory_mib": memory}
            finally:
                for contestant in contestants.values():
                    contestant.close()
            row = {"network": network, "mode": mode, "batch": batch, "rounds": options.rounds, **row}
            if options.device == "cuda":
                row["clips_a_second"] = batch / row["seconds"]["vidfuse"]
                row["share_of_peak"] = row["clips_a_second"] * operations(network, mode) / (options.peak * 1e12)
            print(describe(row), flush=True)
            yield row


def race(contestants: dict[str, Contestant], rounds: int) -> dict[str, Any]:
    """Let the contestants take turns; the ratio is the fastest peer's time over ours, each round's for itself."""
    seconds: dict[str, list[float]] = {package: [] for package in contestants}
    for _ in range(rounds):
        for package, contestant in contestants.items():
            seconds[package].append(contestant.step())
    medians = {package: statistics.median(values) for package, values in seconds.items()}
    versions = {package: contestant.version for package, contestant in contestants.items()}
    result: dict[str, Any] = {"seconds": medians, "versions": versions}
    if len(contestants) > 1:
        fastest = min((package for package in medians if package != "vidfuse"), key=medians.__getitem__)
        ratios = [theirs / ours for theirs, ours in zip(seconds[fastest], seconds["vidfuse"], strict=True)]
        result |= {
            "ratio": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
            "fastest_peer": fastest,
        }
    return result


def describe(row: dict[str, Any]) -> str:
    """Put a row on a line."""
    times = "  ".join(f"{package} {value * 1e3:.0f} ms" for package, value in row["seconds"].items())
    memory = "  ".join(f"{package} {value:.0f}" for package, value in row["memory_mib"].items())
    more = (
        f"  {row['clips_a_second']:.0f} clips/s, {row['share_of_peak']:.1%} of peak" if "share_of_peak" in row else ""
    )
    ratio = (
        f"{row['ratio']:.2f}x {row['fastest_peer']} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        if "ratio" in row
        else "no peer"
    )
    return f"{row['network']:<18} {row['mode']:<8} batch {row['batch']}: {ratio}   {times}   MiB: {memory}{more}"


def operations(network: str, mode: str) -> float:
    """Count the operations of a clip: two a multiply-add, three times that with the backward pass."""
    from vidfuse import networks

    return networks.info(network).gmacs * 2e9 * (3 if mode == "train" else 1)


def memory_of(python: str, spec: dict[str, Any]) -> float:
    """Return the MiB that the first pass of a process of its own adds at its peak.

    On a CPU the C library keeps what was freed, more or less of it by chance (up to half of a network's memory): here
    it gives back each block above 64 KiB at once, which is too slow for the timing, and repeats to one MiB.
    """
    contestant = Contestant(python, spec, {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_ARENA_MAX": "1"})
    contestant.wait()
    contestant.close()
    return contestant.memory


class Contestant:
    """A worker process that does one pass each time it is asked to."""

    def __init__(self, python: str, spec: dict[str, Any], more: Mapping[str, str] | None = None) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(spec["threads"]),
            **({"OMP_WAIT_POLICY": "PASSIVE"} if spec["cpu_time"] else {}),
            **(more or {}),
        }
        command = [python, "-W", "ignore", __file__, "--worker", json.dumps(spec)]
        self.name = spec["package"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def wait(self) -> None:
        """Wait for the first pass, which warms up and measures memory: several contestants get ready side by side."""
        first = self._ask()
        self.memory, self.version = float(first["mib"]), first["version"]

    def step(self) -> float:
        """Do a pass and return its seconds."""
        return float(self._ask()["seconds"])

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def _ask(self) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate()
            raise RuntimeError(f"{self.name} failed:\n{errors[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Worker:
    """The other end of a `Contestant`."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever packages print must not mix with the replies
        import torch

        torch.set_num_threads(spec["threads"])
        torch.manual_seed(0)
        self.spec, self.torch = spec, torch
        self.device = spec["device"]
        builder = BUILDERS[spec["package"]]
        model, prepare = builder(spec["network"])
        torch.nn.Module.train(model, spec["mode"] == "train")
        model.to(self.device)
        if spec["mode"] == "folded" and spec["package"] == "vidfuse":
            from vidfuse import networks

            networks.fold_batch_norm(model)
        self.model = torch.compile(model) if spec["compile"] else model
        self.inputs = prepare(torch.randn(spec["shape"], device=self.device))
        self.labels = torch.zeros(spec["shape"][0], dtype=torch.long, device=self.device)
        self.optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def serve(self) -> None:
        """Answer each line of the standard input with the seconds of a pass; the first also with its memory."""
        before = self.start_memory()
        self.one_pass()
        mib = self.peak_memory() - before
        self.reply(mib=mib, version=f"{metadata.version(self.spec['package'])}, torch {self.torch.__version__}")
        for _ in range(3 if self.device == "cuda" else 0):
            self.one_pass()
        sys.stdin.readline()
        for _ in sys.stdin:
            count = 10 if self.device == "cuda" else 1
            clock = time.process_time if self.spec["cpu_time"] else time.perf_counter
            start = clock()
            for _ in range(count):
                self.one_pass()
            self.reply(seconds=(clock() - start) / count)

    def reply(self, **content: float | str) -> None:
        """Send a line of JSON."""
        self.replies.write(json.dumps(content) + "\n")
        self.replies.flush()

    def one_pass(self) -> None:
        """Do a forward pass or a training step."""
        torch = self.torch
        # PyTorchVideo changes the list of pathways that it is given.
        inputs = [list(value) if isinstance(value, list) else value for value in self.inputs]
        precision = torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.spec["bfloat16"])
        if self.spec["mode"] == "train":
            with precision:
                loss = torch.nn.functional.cross_entropy(logits_of(self.model(*inputs)).float(), self.labels)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
        else:
            with torch.inference_mode(), precision:
                self.model(*inputs)
        if self.device == "cuda":
            torch.cuda.synchronize()

    def start_memory(self) -> float:
        """Reset the peak and return what is in use, in MiB."""
        if self.device == "cuda":
            self.torch.cuda.reset_peak_memory_stats()
            return float(self.torch.cuda.memory_allocated()) / 2**20
        Path("/proc/self/clear_refs").write_text("5")
        return status("VmRSS")

    def peak_memory(self) -> float:
        """Return the peak since the reset, in MiB."""
        return self.torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else status("VmHWM")


def status(field: str) -> float:
    """Return a field of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def logits_of(output: Any) -> Any:
    """Take the logits out of what a package's model returns."""
    return getattr(output, "logits", output)


Built = tuple[Any, Callable[[Any], tuple[Any, ...]]]


def build_vidfuse(network: str) -> Built:
    """Build ours."""
    from vidfuse import networks

    return networks.create(network), lambda clips: (clips,)


def build_torchvision(network: str) -> Built:
    """Build torchvision's."""
    from torchvision.models import video

    return {"swin_t": video.swin3d_t, "r2plus1d_r18": video.r2plus1d_18}[network](), lambda clips: (clips,)


def build_pytorchvideo(network: str) -> Built:
    """Build PyTorchVideo's."""
    import torch
    from pytorchvideo.models import hub

    if network == "x3d_m":
        return hub.x3d_m(), lambda clips: (clips,)

    def pathways(clips: Any) -> tuple[Any, ...]:
        frames = clips.shape[2]
        return ([clips[:, :, torch.linspace(0, frames - 1, frames // 4).long()], clips],)

    return hub.slowfast_r50(), pathways


def build_transformers(network: str) -> Built:
    """Build Hugging Face's TimeSformer."""
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    assert network == "timesformer_b"
    model = TimesformerForVideoClassification(TimesformerConfig(num_labels=400))
    return model, lambda clips: (clips.transpose(1, 2).contiguous(),)


def build_mmaction2(network: str) -> Built:
    """Build MMAction2's from the goldens' configurations, without its recogniser's data handling."""
    import torch

    for name in ("mmaction.models.localizers", "mmaction.models.multimodal"):
        sys.modules[name] = types.ModuleType(name)  # missing from the wheel
    operators = types.ModuleType("mmcv.ops")
    operators.tin_shift = tin_shift  # type: ignore[attr-defined]
    sys.modules.setdefault("mmcv.ops", operators)
    import mmaction.models.backbones
    import mmaction.models.common
    import mmaction.models.heads
    import mmaction.models.necks  # noqa: F401
    from mmaction.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope("mmaction")
    config = MMACTION2[network]

    class Recogniser(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = MODELS.build(config["backbone"])
            self.neck = MODELS.build(config["neck"]) if "neck" in config else None
            self.head = MODELS.build(config["head"])

        def forward(self, clips: Any) -> Any:
            features = self.backbone(clips)
            if self.neck is not None:
                features, _ = self.neck(features)
            return self.head(features, num_segs=8) if network == "tin_r50" else self.head(features)

    if network == "tin_r50":
        return Recogniser(), lambda clips: (clips.transpose(1, 2).flatten(0, 1).contiguous(),)
    return Recogniser(), lambda clips: (clips,)


def tin_shift(features: Any, offsets: Any) -> Any:
    """Shift ``(N, T, C, HW)`` in time by an integer for each channel group, as MMCV's CUDA operator does."""
    import torch

    samples, frames, channels = features.shape[:3]
    groups = offsets.shape[1]
    source = torch.arange(frames, device=features.device)[None, :, None] - offsets[:, None, :].long()
    inside = (source >= 0) & (source < frames)
    index = source.clamp(0, frames - 1).repeat_interleave(channels // groups, dim=2)[..., None]
    mask = inside.repeat_interleave(channels // groups, dim=2)[..., None]
    assert index.shape[0] == samples
    return features.gather(1, index.expand_as(features)) * mask


_I3D_HEAD = {"type": "I3DHead", "num_classes": 400, "spatial_type": "avg", "dropout_ratio": 0.5}
_PATHWAY = {"type": "resnet3d", "depth": 50, "pretrained": None, "conv1_stride_t": 1, "pool1_stride_t": 1}
_DILATIONS = {"dilations": (1, 1, 1, 1), "norm_eval": False}
MMACTION2: dict[str, dict[str, Any]] = {
    "slowfast_r50_8x8": {
        "backbone": {
            "type": "ResNet3dSlowFast", "pretrained": None, "resample_rate": 4, "speed_ratio": 4, "channel_ratio": 8,
            "slow_pathway": {
                **_PATHWAY, "lateral": True, "conv1_kernel": (1, 7, 7), "inflate": (0, 0, 1, 1), "fusion_kernel": 7,
                **_DILATIONS,
            },
            "fast_pathway": {
                **_PATHWAY, "lateral": False, "base_channels": 8, "conv1_kernel": (5, 7, 7), "norm_eval": False
            },
        },
        "head": {"type": "SlowFastHead", "in_channels": 2304, "num_classes": 400, "dropout_ratio": 0.5},
    },
    "r2plus1d_r34_8x8": {
        "backbone": {
            "type": "ResNet2Plus1d", "depth": 34, "pretrained": None, "pretrained2d": False, "norm_eval": False,
            "conv_cfg": {"type": "Conv2plus1d"}, "norm_cfg": {"type": "BN3d", "requires_grad": True, "eps": 1e-3},
            "conv1_kernel": (3, 7, 7), "conv1_stride_t": 1, "pool1_stride_t": 1, "inflate": (1, 1, 1, 1),
            "spatial_strides": (1, 2, 2, 2), "temporal_strides": (1, 2, 2, 2), "zero_init_residual": False,
        },
        "head": {**_I3D_HEAD, "in_channels": 512},
    },
    "x3d_m": {
        "backbone": {"type": "X3D", "gamma_w": 1, "gamma_b": 2.25, "gamma_d": 2.2},
        "head": {"type": "X3DHead", "in_channels": 432, "num_classes": 400, "fc1_bias": False},
    },
    "swin_t": {
        "backbone": {
            "type": "SwinTransformer3D", "arch": "tiny", "pretrained": None, "pretrained2d": True,
            "patch_size": (2, 4, 4), "window_size": (8, 7, 7), "drop_path_rate": 0.1, "patch_norm": True,
        },
        "head": {**_I3D_HEAD, "in_channels": 768},
    },
    "timesformer_b": {
        "backbone": {
            "type": "TimeSformer", "pretrained": None, "num_frames": 8, "img_size": 224, "patch_size": 16,
            "embed_dims": 768, "in_channels": 3, "dropout_ratio": 0.0, "attention_type": "divided_space_time",
            "norm_cfg": {"type": "LN", "eps": 1e-6},
        },
        "head": {"type": "TimeSformerHead", "num_classes": 400, "in_channels": 768},
    },
    "tin_r50": {
        "backbone": {"type": "ResNetTIN", "pretrained": None, "depth": 50, "norm_eval": False, "shift_div": 4},
        "head": {
            "type": "TSMHead", "num_classes": 400, "in_channels": 2048, "spatial_type": "avg", "is_shift": True,
            "consensus": {"type": "AvgConsensus", "dim": 1}, "dropout_ratio": 0.5,
        },
    },
    "tpn_slowonly_r50": {
        "backbone": {
            "type": "ResNet3dSlowOnly", "depth": 50, "pretrained": None, "lateral": False, "out_indices": (2, 3),
            "conv1_kernel": (1, 7, 7), "conv1_stride_t": 1, "pool1_stride_t": 1, "inflate": (0, 0, 1, 1),
            "norm_eval": False,
        },
        "neck": {
            "type": "TPN", "in_channels": (1024, 2048), "out_channels": 1024,
            "spatial_modulation_cfg": {"in_channels": (1024, 2048), "out_channels": 2048},
            "temporal_modulation_cfg": {"downsample_scales": (8, 8)},
            "upsample_cfg": {"scale_factor": (1, 1, 1)}, "downsample_cfg": {"downsample_scale": (1, 1, 1)},
            "level_fusion_cfg": {
                "in_channels": (1024, 1024), "mid_channels": (1024, 1024), "out_channels": 2048,
                "downsample_scales": ((1, 1, 1), (1, 1, 1)),
            },
        },
        "head": {
            "type": "TPNHead", "num_classes": 400, "in_channels": 2048, "spatial_type": "avg",
            "consensus": {"type": "AvgConsensus", "dim": 1}, "dropout_ratio": 0.5,
        },
    },
}  # fmt: skip

BUILDERS: dict[str, Callable[[str], Built]] = {
    "vidfuse": build_vidfuse,
    "torchvision": build_torchvision,
    "pytorchvideo": build_pytorchvideo,
    "transformers": build_transformers,
    "mmaction2": build_mmaction2,
}

if __name__ == "__main__":
    main()
