"""A recipe, alone or with its networks, as a file for other engines: ONNX, or torch's own `.pt2`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from vidfuse import __version__, networks
from vidfuse._files import replace
from vidfuse.errors import AlignmentError, InputError, MissingExtraError, VidfuseError, option
from vidfuse.recipe import Recipe
from vidfuse.serving.exported import FACTS, FORMAT, OUTPUTS, VERSION, check_suffix, first_line, read_export

try:
    import torch
    from torch import Tensor, nn

    from vidfuse.serving.ensemble import Ensemble, scores_of
    from vidfuse.serving.fusion import Fusion
except ImportError as error:
    raise MissingExtraError("an export", "export") from error

__all__ = ["Export", "Graph", "digest", "export", "graph_of"]

Extents = tuple[int, int, int]
_MOST: Final = 2**31 - 2**20  # bytes of weights: an ONNX file is one message, which holds less than 2 GB
_CLOSE: Final = {False: 1e-5, True: 1e-4}  # of probabilities; networks multiply in another order in other engines


@dataclass(frozen=True)
class Export:
    """A file that was written and checked.

    Attributes:
        path: The file.
        size: Its length in bytes.
        difference: The largest difference of a probability from torch's, on random inputs.
        facts: What the file says of itself, as `Exported.facts`.
    """

    path: Path
    size: int
    difference: float
    facts: Mapping[str, Any]


def export(
    source: Recipe | Ensemble,
    path: str | os.PathLike[str],
    *,
    with_views: bool = False,
    clips: Mapping[str, Extents] | None = None,
) -> Export:
    """Write a recipe, or an ensemble of a recipe and its networks, as `.onnx` or `.pt2`.

    The file takes one input for each member that has a say, in float32: scores (N, K) of a recipe, clips
    (N, 3, T, H, W) of an ensemble; with views, (N, V, K) and (N, V, 3, T, H, W). N and V are free. Its outputs are
    `log_likelihoods` and `probabilities` (N, K), in float64, and `label` (N,). Where the rule says
    `missing="renormalise"`, a video of NaN scores is one that the member does not have. A video that the recipe would
    refuse is answered NaN, with the label -1. Before it is put in its place,
    the file is read back and compared with torch, for one video and for several.

    Args:
        source: A recipe, or an ensemble, which is put into eval mode.
        path: The file; its suffix says the kind.
        with_views: Whether the inputs have an axis of views, which are reduced as the recipe says.
        clips: {member: frames, height and width} of an ensemble's clips; by default the catalogue's.

    Raises:
        InputError: The rule has no form in torch; the file is called otherwise; clips of unknown extents; a network
            that is not in float32 on the CPU, or does not take such clips; or what torch or ONNX cannot write, with the
            reason.
        AlignmentError: Extents of a member that the recipe does not have, or a network of other classes.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        OSError: The file cannot be written.

    Example:
        >>> import vidfuse as vf
        >>> stack = vf.LogitStack.from_arrays({"a": 3 * np.eye(2), "b": 3 * np.eye(2)}, labels=[0, 1])
        >>> recipe = vf.Recipe.from_fitted(vf.BordaCount().fit(stack), stack)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export(recipe, f"{folder}/both.pt2").facts["inputs"]
        {'a': ['videos', 2], 'b': ['videos', 2]}
    """
    path = Path(path)
    check_suffix(path)
    graph = graph_of(source, with_views=with_views, clips=clips)
    data = _onnx_bytes(graph) if path.suffix == ".onnx" else _pt2_bytes(graph)
    difference = _difference(graph, data, path)
    replace(path, data)
    return Export(path, len(data), difference, graph.facts)


@dataclass(frozen=True)
class Graph:
    """An ensemble as a graph, before it is a file.

    Attributes:
        module: {member: input} to the outputs by name.
        program: The module, exported.
        facts: What the file will say of itself.
    """

    module: nn.Module
    program: Any
    facts: Mapping[str, Any]


def graph_of(source: Recipe | Ensemble, *, with_views: bool, clips: Mapping[str, Extents] | None) -> Graph:
    """Return the graph of a recipe or an ensemble; arguments and errors as of `export`."""
    recipe = source if isinstance(source, Recipe) else source.recipe
    module = _Answers(source).eval()
    facts = _facts(recipe)
    unknown = sorted(set(clips or {}) - set(recipe.members))
    if unknown:
        raise AlignmentError(f"clips: expected extents for some of {list(recipe.members)}, got those for {unknown}")
    if isinstance(source, Ensemble):
        for name, model in source.networks.items():
            _check_network(name, model)
        extents = {name: _extents(name, model, clips or {}) for name, model in source.networks.items()}
        inner: dict[str, list[int]] = {name: [3, *three] for name, three in extents.items()}
        facts["clips"] = {name: _normalisation(model) for name, model in source.networks.items()}
    else:
        inner = {name: [recipe.n_classes] for name in recipe.needed_members()}
    asked = recipe.rule.needed_views()
    if asked is not None:  # a cascade over views
        inner = {name: [asked, *shape] for name, shape in inner.items()}
    free = ["videos", "views"] if with_views and asked is None else ["videos"]
    facts["inputs"] = {name: [*free, *shape] for name, shape in inner.items()}
    examples = _random_inputs(facts, videos=2, views=3)
    free_axes = {axis: torch.export.Dim(name, min=1) for axis, name in enumerate(free)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, (examples,), dynamic_shapes=({name: free_axes for name in examples},))
        except VidfuseError:
            raise
        except Exception as error:  # torch's share no base class but this one
            raise InputError(_why_no_graph(source, examples, error)) from error
    return Graph(module, program, facts)


def _check_network(name: str, model: nn.Module) -> None:
    for value in model.parameters():
        if value.device.type != "cpu" or (value.is_floating_point() and value.dtype != torch.float32):
            raise InputError(
                f"{name}: expected a network in float32 on the CPU, which other engines take further, got "
                f"{value.dtype} on {value.device.type}; say ensemble.float().cpu()"
            )


def _why_no_graph(source: Recipe | Ensemble, examples: Mapping[str, Tensor], error: Exception) -> str:
    """Return what is wrong with a module that torch.export refused: a network's clips, or what it does with them."""
    for name, model in source.networks.items() if isinstance(source, Ensemble) else ():
        try:
            scores_of(model, examples[name])
        except Exception as own:  # a network's own
            shape = tuple(examples[name].shape)
            said = option("clips", {name: "16x224x224"})
            return f"{name}: its network does not take clips of shape {shape}: {first_line(own)}; say {said} for others"
    return f"torch.export makes no graph of this ensemble: {first_line(error)}"


class _Answers(nn.Module):
    """What an export answers: the outputs by name."""

    def __init__(self, source: Recipe | Ensemble) -> None:
        super().__init__()
        self.ensemble = source if isinstance(source, Ensemble) else None
        self.fusion = Fusion(source) if isinstance(source, Recipe) else Fusion(source.recipe, views="mean-log")

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        log_p = self.fusion(inputs if self.ensemble is None else self.ensemble.scores(inputs))
        label = torch.where(log_p[:, 0].isnan(), -1, log_p.argmax(1))  # argmax takes NaN for the largest
        return dict(zip(OUTPUTS, (log_p, log_p.exp(), label), strict=True))


def _facts(recipe: Recipe) -> dict[str, Any]:
    needed = recipe.needed_members()
    views = recipe.views
    return {
        "format": FORMAT,
        "version": VERSION,
        "vidfuse": __version__,
        "recipe_sha256": digest(recipe),
        "rule": recipe.describe()["rule"],
        "members": list(needed),
        "n_classes": recipe.n_classes,
        "classes": None if recipe.classes is None else list(recipe.classes),
        "kinds": {name: recipe.kinds.get(name, "logits") for name in needed},
        "views": views if views is None or isinstance(views, str) else dict(views),
        "missing": "renormalise" if recipe.rule.missing == "renormalise" else "error",
    }


def digest(recipe: Recipe) -> str:
    """Return the SHA-256 of a recipe's JSON, as `Recipe.save` writes it under the name `ensemble.json`.

    Example:
        >>> import vidfuse as vf
        >>> stack = vf.LogitStack.from_arrays(np.zeros((2, 2, 3)))
        >>> uniform, given = (vf.LinearPool(weights).fit(stack) for weights in ("uniform", [1, 2]))
        >>> digest(vf.Recipe.from_fitted(uniform, stack)) == digest(vf.Recipe.from_fitted(given, stack))
        False
    """
    with tempfile.TemporaryDirectory() as folder:
        return hashlib.sha256(recipe.save(Path(folder) / "ensemble.json").read_bytes()).hexdigest()


def _extents(name: str, model: nn.Module, clips: Mapping[str, Extents]) -> Extents:
    """Return the frames, height and width of a member's clips."""
    if name in clips:
        return clips[name]
    known = _in_catalogue(model)
    if known is None:
        raise InputError(
            f"{name}: expected the extents of its clips, as it is no network of the catalogue; say "
            f"{option('clips', {name: '16x224x224'})}"
        )
    return known.frames, known.size, known.size


def _normalisation(model: nn.Module) -> dict[str, Any] | None:
    """Return how clips are taken and normalised for a network of the catalogue."""
    known = _in_catalogue(model)
    if known is None:
        return None
    return {"network": known.name, "interval": known.interval, "mean": list(known.mean), "std": list(known.std)}


def _in_catalogue(model: nn.Module) -> networks.NetworkInfo | None:
    name = getattr(model, "name", None)
    return networks.info(name) if isinstance(name, str) and name in networks.names() else None


def _random_inputs(facts: Mapping[str, Any], **free: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(sum(free.values()))
    inputs = {}
    for name, shape in facts["inputs"].items():
        values = 2 * torch.randn([free.get(extent, extent) for extent in shape], generator=generator)
        scores = "clips" not in facts and facts["kinds"][name] in ("probabilities", "sum")
        inputs[name] = values.softmax(-1) if scores else values
    return inputs


def _onnx_bytes(graph: Graph) -> bytes:
    """Return a graph as an ONNX file; arguments and errors as of `export`."""
    # 1. Refuse what ONNX cannot hold: too many bytes, or a member that is called as an output is.
    # 2. Let torch write the graph; rename inner values that are called as a member is.
    # 3. Take out what tells of this installation, and put in the facts.
    constants: Any = graph.program.constants.values()
    weights = sum(value.nbytes for value in (*graph.program.state_dict.values(), *constants))
    if weights > _MOST:
        raise InputError(
            f"expected weights of less than 2 GB, which is all that an ONNX file can hold, got {weights / 1e9:.1f} GB; "
            "write a .pt2 file, or export the recipe alone and each network by itself"
        )
    inputs = list(graph.facts["inputs"])
    if clash := sorted(set(inputs) & set(OUTPUTS)):
        raise InputError(
            f"a member of an ONNX file cannot be called as one of its outputs is, got {clash[0]!r}; write a .pt2 file, "
            "or fit with another name"
        )
    program = _onnx_program(graph, inputs)
    outside = {*program.model.graph.inputs, *program.model.graph.outputs}
    for value in (value for node in program.model.graph.all_nodes() for value in node.outputs):
        if value.name in inputs and value not in outside:  # the exporter does not look: a member may be called "exp"
            value.name = f"/{value.name}"  # as no member can be
    model = program.model_proto
    for node in (node for part in (model.graph, *model.functions) for node in part.node):
        del node.metadata_props[:]  # lines and files of this installation
    entry = model.metadata_props.add()
    entry.key, entry.value = FACTS, json.dumps(graph.facts)
    return bytes(model.SerializeToString())


def _onnx_program(graph: Graph, inputs: Sequence[str]) -> Any:
    """Return what torch's exporter makes of a graph; arguments and errors as of `export`."""
    try:
        import onnxruntime  # noqa: F401 -- the file is checked by it
        import onnxscript  # noqa: F401 -- torch's exporter is written in it
    except ImportError as error:
        raise MissingExtraError("an export to ONNX", "export") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.onnx.export(
                _with_means_for_adaptive_pools(graph.program),
                dynamo=True,
                verbose=False,
                input_names=inputs,
                output_names=list(OUTPUTS),
            )
        except Exception as error:  # torch's share no base class but this one; the innermost says why
            inner: BaseException = error
            while inner.__cause__ is not None:
                inner = inner.__cause__
            raise InputError(
                f"torch's exporter to ONNX cannot write this ensemble: {first_line(inner)}; write a .pt2 file, or "
                "export the recipe alone and each network by itself"
            ) from error


def _with_means_for_adaptive_pools(program: Any) -> Any:
    """Return a graph whose adaptive average pools over three axes, which ONNX has not, are means of slices."""
    pool = torch.ops.aten.adaptive_avg_pool3d.default
    if all(node.target is not pool for node in program.graph.nodes):
        return program
    return program.run_decompositions({pool: _adaptive_average})


def _adaptive_average(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Average (N, C, T, H, W) to a grid, axis by axis: bin i of g covers floor(i·n/g) … ceil((i + 1)·n/g) − 1 of n."""
    for axis, bins in enumerate(grid, start=2):
        length = x.shape[axis]
        edges = [(i * length // bins, -(-(i + 1) * length // bins)) for i in range(bins)]
        x = torch.cat([x.narrow(axis, a, b - a).mean(axis, keepdim=True) for a, b in edges], axis)
    return x


def _pt2_bytes(graph: Graph) -> bytes:
    buffer = io.BytesIO()
    graph.program.example_inputs = None  # as large as clips are, and random
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(graph.program, buffer, extra_files={f"{FACTS}.json": json.dumps(graph.facts)})
    return buffer.getvalue()


def _difference(graph: Graph, data: bytes, path: Path) -> float:
    """Return how far the file's probabilities are from torch's, for one video and for several.

    Raises:
        VidfuseError: Too far.
    """
    exported, found = read_export(data, path), []
    for videos in (1, 3):
        inputs = _random_inputs(graph.facts, videos=videos, views=2)
        if graph.facts["missing"] == "renormalise" and videos > 1 and len(inputs) > 1:
            next(iter(inputs.values()))[0] = torch.nan
        with torch.no_grad():
            expected = graph.module(inputs)["probabilities"].numpy()
        got = exported({name: value.numpy() for name, value in inputs.items()})["probabilities"]
        found.append(np.abs(got - expected).max())
    largest = float(np.max(found))  # NaN, where either answers NaN: nothing that is drawn here may be refused
    if not largest <= _CLOSE["clips" in graph.facts]:
        raise VidfuseError(
            f"{path}: the exported ensemble answers otherwise than torch: a probability differs by {largest:.2g}; "
            "nothing was written"
        )
    return largest
