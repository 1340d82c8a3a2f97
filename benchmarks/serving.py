"""What a shipped ensemble takes: the environment without torch, the file, and the time beside its members alone.

Times are medians of rounds in which the ensemble and the sum of its members are measured one after the other, so that
whatever else the machine does meets both. Networks have random weights; scores are simulated.

    python benchmarks/serving.py --out benchmarks/results/serving.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch

import vidfuse as vf
from vidfuse.serving import Ensemble, export

NEEDED = ("onnxruntime", "numpy", "flatbuffers", "protobuf", "packaging")
MEMBERS = ("r2plus1d", "swin", "tin", "x3d")
RULES = {
    "log-linear": vf.LogLinearPool(),
    "linear": vf.LinearPool(),
    "majority vote": vf.MajorityVote(),
    "Borda count": vf.BordaCount(),
    "stacked": vf.StackedPool(),
    "dynamic": vf.DynamicPool(vf.LogLinearPool(per_class=False)),
}
FIRST_ANSWER = """
import sys, time; start = time.perf_counter()
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {i.name: np.zeros((1, i.shape[1]), np.float32) for i in session.get_inputs()})
print(time.perf_counter() - start, "torch" in sys.modules)
"""


def megabytes(name: str) -> float:
    """Return what an installed distribution takes on the disk."""
    files = importlib.metadata.files(name) or []
    return sum(path.stat().st_size for file in files if (path := Path(str(file.locate()))).is_file()) / 1e6


def recipe_of(rule: vf.Recipe, members: tuple[str, ...], classes: int, videos: int) -> vf.Recipe:
    """Return a recipe of simulated members, and keep its fit out of every figure."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, videos)
    scores = {name: (rng.normal(size=(videos, classes)) + 3 * np.eye(classes)[y]).astype("float32") for name in members}
    stack = vf.LogitStack.from_arrays(scores, labels=y)
    return vf.Recipe.from_fitted(rule.fit(stack), stack)


def seconds(run: Callable[[], object]) -> float:
    """Return the processor's seconds of one call: on one thread those of the clock, where nobody else is at work."""
    start = time.process_time()
    run()
    return time.process_time() - start


def session_of(data: str | Path, *, keep: bool = True) -> onnxruntime.InferenceSession:
    """Return a session of one thread, as every other clock here, that keeps the memory of a call for the next."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = keep
    return onnxruntime.InferenceSession(str(data), options, providers=["CPUExecutionProvider"])


def recipes_alone(folder: Path, rounds: int) -> dict[str, object]:
    """Time the exported rules on the scores of seven members of 400 classes."""
    found: dict[str, object] = {}
    members, classes = tuple(f"m{i}" for i in range(7)), 400
    for name, rule in RULES.items():
        done = export(recipe_of(rule, members, classes, 2000), folder / "rule.onnx")
        session = session_of(done.path)
        row: dict[str, float] = {"kilobytes": done.size / 1e3, "difference": done.difference}
        for videos in (1, 1000):
            scores = {m: np.random.default_rng(1).normal(size=(videos, classes)).astype("float32") for m in members}
            session.run(None, scores)
            fuse = partial(session.run, None, scores)
            row[f"ms_{videos}"] = 1e3 * median(seconds(fuse) for _ in range(rounds))
        found[name] = row
        size, one, many = row["kilobytes"], row["ms_1"], row["ms_1000"]
        print(f"{name:>14}: {size:5.0f} kB, {one:.2f} ms for one video, {many:.0f} for 1,000", flush=True)
    return found


def with_networks(folder: Path, rounds: int, videos: int) -> dict[str, object]:
    """Time an ensemble beside the sum of its members, in torch and in onnxruntime."""
    models = {name: vf.networks.create(f"{name}_tiny", num_classes=15).eval() for name in MEMBERS}
    session = partial(session_of, keep=False)  # five that keep what a thousand clips take would need over 20 GB
    recipe = recipe_of(vf.LogLinearPool(), MEMBERS, 15, 600)
    ensemble = Ensemble(recipe, models).eval()
    sessions = {}
    for name in MEMBERS:
        alone = recipe_of(vf.LinearPool("uniform"), (name,), 15, 60)
        sessions[name] = session(export(Ensemble(alone, {name: models[name]}), folder / f"{name}.onnx").path)
    whole = session(export(ensemble, folder / "ensemble.onnx").path)
    found: dict[str, object] = {"megabytes": (folder / "ensemble.onnx").stat().st_size / 1e6}
    for count, repeats in ((1, rounds), (videos, max(3, rounds // 10))):
        clips = torch.randn(count, 3, 8, 64, 64)
        feeds = {name: clips.numpy() for name in MEMBERS}

        def sum_torch(clips: torch.Tensor = clips) -> None:
            for model in models.values():
                model(clips)

        def sum_onnx(feeds: dict[str, np.ndarray] = feeds) -> None:
            for name, session in sessions.items():
                session.run(None, {name: feeds[name]})

        pairs = {
            "torch": (lambda c=clips: ensemble(c), sum_torch),
            "onnxruntime": (lambda f=feeds: whole.run(None, f), sum_onnx),
        }
        for engine, (fused, parts) in pairs.items():
            with torch.inference_mode():
                fused(), parts()
                times = [(seconds(fused), seconds(parts)) for _ in range(repeats)]
            ratio = median(a / b for a, b in times)
            one, other = (1e3 * median(column) for column in zip(*times, strict=True))
            found[f"{engine}_{count}"] = {"ms": one, "ms_of_members": other, "ratio": ratio, "rounds": repeats}
            print(
                f"{engine}, {count} videos a call: {one:.1f} ms, its members alone {other:.1f} ms, ratio {ratio:.3f}",
                flush=True,
            )
    return found


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--videos", type=int, default=1000, help="Clips in the larger of the two calls.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {name: megabytes(name) for name in (*NEEDED, "torch")}
    without = sum(sizes[name] for name in NEEDED)
    listed = ", ".join(f"{name} {sizes[name]:.0f}" for name in NEEDED)
    print(f"{without:.0f} MB installed ({listed}); torch alone {sizes['torch']:.0f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(recipe_of(vf.LogLinearPool(), tuple(f"m{i}" for i in range(7)), 400, 2000), folder / "first.onnx")
        command = [sys.executable, "-c", FIRST_ANSWER, str(folder / "first.onnx")]
        told = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(5)]
        assert all(loaded == "False" for _, loaded in told)
        first = median(float(taken) for taken, _ in told)
        print(f"{first:.2f} s from the start of Python's imports to the first answer")
        result = {
            "environment_mb": sizes,
            "environment_without_torch_mb": without,
            "first_answer_s": first,
            "recipe_alone": recipes_alone(folder, arguments.rounds),
            "with_networks": with_networks(folder, arguments.rounds, arguments.videos),
            "versions": {n: importlib.metadata.version(n) for n in ("torch", "onnxruntime", "numpy")},
        }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
