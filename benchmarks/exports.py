"""Whether exports answer as the recipe does on cached scores: networks × rules, published sizes, the fused network.

    python benchmarks/exports.py --parts matrix                           # seven networks × every rule
    python benchmarks/exports.py --parts presets --presets x3d_m tin_r50  # networks of published size
    python benchmarks/exports.py --parts fused

Networks have random weights, their classifiers scaled until logits spread by 3, so that probabilities differ; rules are
fitted on simulated scores, and clips are noise. The cached way is the recipe in NumPy on scores that the networks in
torch gave. Numbers go to benchmarks/results/exports.json; parts and presets that are not run stay there as they were.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import vidfuse as vf
from vidfuse.networks.fused import FusedConfig, FusedNetwork
from vidfuse.serving import Ensemble, Fusion, export
from vidfuse.serving.ensemble import scores_of
from vidfuse.serving.rules import FORMS

RESULTS = Path(__file__).parent / "results" / "exports.json"
PARTS = ("matrix", "presets", "fused")
NETWORKS = ("r2plus1d", "slowfast", "swin", "timesformer", "tin", "tpn", "x3d")
PRESETS = ("r2plus1d_r34_8x8", "slowfast_r50_4x16", "swin_t", "timesformer_b", "tin_r50", "tpn_slowonly_r50", "x3d_m")
REDUCTIONS = ("mean-log", "mean-probability", "vote", "max")
RULES: dict[str, Any] = {
    "log-linear": vf.LogLinearPool(missing="renormalise"),
    "log-linear, per class": vf.LogLinearPool(per_class=True, missing="renormalise"),
    "linear": vf.LinearPool(missing="renormalise"),
    "majority vote": vf.MajorityVote("accuracy", missing="renormalise"),
    "Borda count": vf.BordaCount(missing="renormalise"),
    "stacked": vf.StackedPool(),
    "calibrated": vf.Calibrated(vf.LinearPool("accuracy", missing="renormalise")),
    "calibrated members": vf.Calibrated(vf.LinearPool(missing="renormalise"), vf.VectorScaling(), where="members"),
    "dynamic": vf.DynamicPool(vf.LogLinearPool(per_class=False)),
    "subset": vf.SubsetPool(vf.LogLinearPool("accuracy", missing="renormalise"), max_members=4),
    "greedy": vf.GreedyPool(rounds=20),
    "cascade": vf.Cascade(vf.LogLinearPool("accuracy"), at_most=0.2, confidence=0.8),
}
CLASSES, FIT, VIEWS = 15, 450, 2

Arrays = Mapping[str, NDArray[Any]]


def main() -> None:
    """Run what was asked for, print it, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--presets", nargs="+", metavar="NETWORK", choices=vf.networks.names(), default=PRESETS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    written: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}

    def keep(part: str, found: dict[str, Any]) -> None:
        written[part] = {**written.get(part, {}), **found}
        options.out.write_text(json.dumps(written, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        if "matrix" in options.parts:
            keep("matrix", matrix())
        if "presets" in options.parts:
            for name in options.presets:
                torch.manual_seed(0)
                keep("presets", {name: whole(name, vf.networks.create(name).eval(), Path(folder), None)})
        if "fused" in options.parts:
            keep("fused", {"x3d_tiny and swin_tiny": whole("fused", fused_network(), Path(folder), (8, 64, 64))})


# Seven networks × every rule ------------------------------------------------------------------------------------------


class Whole(nn.Module):
    """Seven networks and all rules in one graph: clips (N, V, 3, T, H, W) in, each rule's answer and all logits out."""

    def __init__(self, models: Mapping[str, nn.Module], recipes: Mapping[str, vf.Recipe]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(models)
        self.rules = Rules(recipes)

    def forward(self, clips: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return (N, K) for each rule, then (N, V, K) for each network."""
        scores = {name: scores_of(model, clips[name]) for name, model in self.networks.items()}
        return (*self.rules(scores), *scores.values())


class Rules(nn.Module):
    """All rules in one graph: the networks' logits in, each rule's answer out."""

    def __init__(self, recipes: Mapping[str, vf.Recipe]) -> None:
        super().__init__()
        self.fusions = nn.ModuleList(Fusion(recipe) for recipe in recipes.values())

    def forward(self, scores: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return (N, K) for each rule."""
        return tuple(f({name: scores[name] for name in f.recipe.needed_members()}).exp() for f in self.fusions)


def matrix() -> dict[str, Any]:
    """Return each rule's largest difference of a probability, by engine and by what came out of the file."""
    models, recipes = {}, {}
    clips: dict[str, Tensor] = {}
    for i, name in enumerate(NETWORKS):
        torch.manual_seed(i)
        known = vf.networks.info(f"{name}_tiny")
        clips[name] = torch.randn(len(NETWORKS) + 1, VIEWS, 3, known.frames, known.size, known.size)
        models[name] = vf.networks.create(f"{name}_tiny", num_classes=CLASSES).eval()
        spread(models[name], clips[name][:, 0])
    for i, (title, rule) in enumerate(RULES.items()):
        recipes[title] = fitted(rule, NETWORKS, CLASSES, views=REDUCTIONS[i % len(REDUCTIONS)])
    assert {type(recipe.rule).__name__ for recipe in recipes.values()} == {kind.__name__ for kind in FORMS}
    with torch.no_grad():
        scores = {name: scores_of(model, clips[name]).numpy() for name, model in models.items()}
    arrays = {name: value.numpy() for name, value in clips.items()}
    whole_file = engines(Whole(models, recipes), arrays)
    rule_files = engines(Rules(recipes), scores)
    found: dict[str, Any] = {title: {} for title in recipes}
    for engine, run in whole_file.items():
        answers = run(arrays)
        of_file = dict(zip(NETWORKS, answers[len(recipes) :], strict=True))
        lacking = run(lacking_one(arrays))
        one = run({name: value[:1, :1] for name, value in arrays.items()})
        alone = {name: rule_files[engine]({**scores, name: of_file[name]}) for name in NETWORKS}
        for i, (title, recipe) in enumerate(recipes.items()):
            cached = recipe.predict_proba(scores)
            row = {"whole": largest(answers[i], cached)}
            row["one video"] = largest(one[i], recipe.predict_proba({n: z[:1, :1] for n, z in scores.items()}))
            if recipe.rule.missing == "renormalise":
                row["members missing"] = largest(lacking[i], proba_of_stack(recipe, lacking_one(scores)))
            row |= {name: largest(alone[name][i], cached) for name in NETWORKS}
            found[title][engine] = row
            print(f"{title:>22} in {engine:4}: " + ", ".join(f"{k} {v:.1e}" for k, v in row.items()), flush=True)
    worst = max(value for row in found.values() for cells in row.values() for value in cells.values())
    print(f"{len(NETWORKS)} networks and {len(recipes)} rules in .pt2 and ONNX: {worst:.1e} at most")
    return {"rules": found, "largest": worst}


def lacking_one(arrays: Arrays) -> Arrays:
    """Return inputs in which video i has no member i; the last video has all."""
    blank = {name: value.copy() for name, value in arrays.items()}
    for i, value in enumerate(blank.values()):
        value[i] = np.nan
    return blank


def proba_of_stack(recipe: vf.Recipe, scores: Arrays) -> NDArray[np.float64]:
    """Return what the recipe says where members are missing."""
    stack = vf.LogitStack.from_arrays(scores, missing="keep", views=recipe.views)
    return np.exp(recipe.predict_log_proba(stack))


def engines(module: nn.Module, inputs: Arrays) -> dict[str, Callable[[Arrays], list[NDArray[Any]]]]:
    """Return what runs a module's .pt2 file and its ONNX file, with any number of videos and views."""
    example = {name: torch.from_numpy(value[:2]) for name, value in inputs.items()}
    free = {0: torch.export.Dim("videos", min=1), 1: torch.export.Dim("views", min=1)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), (example,), dynamic_shapes=({name: free for name in example},))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
        model: Any = torch.onnx.export(program, dynamo=True, verbose=False, input_names=list(example))
    session = onnxruntime.InferenceSession(model.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])

    def in_torch(arrays: Arrays) -> list[NDArray[Any]]:
        with torch.no_grad():
            return [value.numpy() for value in loaded({name: torch.from_numpy(v) for name, v in arrays.items()})]

    return {"pt2": in_torch, "onnx": lambda arrays: session.run(None, dict(arrays))}


# Networks alone, as the library exports them --------------------------------------------------------------------------


def whole(name: str, model: nn.Module, folder: Path, extents: tuple[int, int, int] | None) -> dict[str, Any]:
    """Export an ensemble of one network in both formats, and return how its log-likelihoods differ from torch's."""
    known = None if extents is not None else vf.networks.info(name)
    frames, height, width = extents if extents is not None else (known.frames, known.size, known.size)
    clips = torch.randn(2, 3, frames, height, width, generator=torch.Generator().manual_seed(1))
    start = time.process_time()
    logits = spread(model, clips)
    found: dict[str, Any] = {"torch_s": time.process_time() - start}
    recipe = fitted(vf.LinearPool("uniform", floor=0.0), ("network",), logits.shape[1], views=None)
    ensemble = Ensemble(recipe, {"network": model}).eval()
    for suffix in ("pt2", "onnx"):
        start = time.process_time()
        done = export(ensemble, folder / f"network.{suffix}", clips={"network": (frames, height, width)})
        exported = vf.serving.load_export(done.path)
        answer = exported({"network": clips.numpy()})["log_likelihoods"]
        expected = recipe.predict_log_proba({"network": logits})
        found[suffix] = {
            "megabytes": done.size / 1e6,
            "difference": largest(np.exp(answer), np.exp(expected)),
            "difference of log-likelihoods": largest(answer, expected),
            "cpu_s": time.process_time() - start,
        }
        done.path.unlink()
        told = ", ".join(f"{key} {value:.2g}" for key, value in found[suffix].items())
        print(f"{name} in {suffix}: {told}", flush=True)
    return found


def fused_network() -> nn.Module:
    """Return a fused network whose fused maps are fed back, which they are not before training."""
    torch.manual_seed(0)
    members = {name: vf.networks.create(f"{name}_tiny", num_classes=CLASSES) for name in ("x3d", "swin")}
    model = FusedNetwork(members, CLASSES, FusedConfig()).eval()
    for parameter in (*model.back.parameters(), *model.gates.parameters()):
        nn.init.normal_(parameter, std=0.1)
    return model


@torch.no_grad()
def spread(model: nn.Module, clips: Tensor) -> Any:
    """Scale a network's classifier until its logits of these clips spread by 3 over the classes; return them."""
    classifier: Any = model.classifier
    classifier.bias.zero_()
    logits = model(clips)
    scale = 3 / logits.std(1).mean()
    classifier.weight *= scale
    return (scale * logits).numpy()


def fitted(rule: Any, members: tuple[str, ...], classes: int, views: str | None) -> vf.Recipe:
    """Return a recipe that was fitted on simulated scores."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, FIT)
    scores = {name: (rng.normal(size=(FIT, classes)) + 3 * np.eye(classes)[y]).astype("float32") for name in members}
    stack = vf.LogitStack.from_arrays(scores, labels=y)
    return vf.Recipe.from_fitted(rule.fit(stack), stack, views=views)


def largest(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest absolute difference; NaN where one is."""
    return float(np.abs(got - expected).max())


if __name__ == "__main__":
    main()
