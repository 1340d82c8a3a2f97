"""A model repository of NVIDIA's Triton Inference Server: the ONNX file, its configuration, the classes' names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidfuse._checks import check_count, check_name
from vidfuse._files import replace
from vidfuse.errors import InputError
from vidfuse.recipe import Recipe
from vidfuse.serving.ensemble import Ensemble
from vidfuse.serving.exports import Export, Extents, export

__all__ = ["export_triton"]


def export_triton(
    source: Recipe | Ensemble,
    repository: str | os.PathLike[str],
    name: str = "ensemble",
    *,
    with_views: bool = False,
    clips: Mapping[str, Extents] | None = None,
    max_batch: int = 64,
) -> Export:
    """Write a recipe or an ensemble into a model repository that Triton serves as it is.

    `REPOSITORY/NAME/1/model.onnx` is what `export` writes, `REPOSITORY/NAME/config.pbtxt` its configuration, and
    `REPOSITORY/NAME/classes.txt` the classes' names, where they are known. The server joins requests to batches.

    Args:
        source: As for `export`.
        repository: The folder that `tritonserver --model-repository` is given.
        name: The model's name.
        with_views: As for `export`.
        clips: As for `export`.
        max_batch: The most videos in one batch.

    Raises:
        InputError: As `export`, or a name that cannot be a folder's, a class's of two lines, or a batch below 1.

    Example:
        >>> export_triton(None, "models", max_batch=0)
        Traceback (most recent call last):
        vidfuse.errors.InputError: max_batch: expected a whole number of at least 1, got 0
    """
    check_count("max_batch", max_batch)
    folder = Path(repository) / check_name(name)
    recipe = source.recipe if isinstance(source, Ensemble) else source
    broken = [one for one in recipe.classes or () if "\n" in one]
    if broken:
        raise InputError(f"expected names that fit Triton's file of one class a line, got {broken[0]!r}; rename it")
    written = export(source, folder / "1" / "model.onnx", with_views=with_views, clips=clips)
    classes = written.facts["classes"]
    if classes is not None:
        replace(folder / "classes.txt", "".join(f"{one}\n" for one in classes))
    replace(folder / "config.pbtxt", _config(name, written.facts, max_batch))
    return written


def _config(name: str, facts: Mapping[str, Any], max_batch: int) -> str:
    """Return the configuration, a protobuf in text; the first axis is the batch's and is not listed."""
    inputs = [_tensor("input", key, "TYPE_FP32", shape[1:]) for key, shape in facts["inputs"].items()]
    classes, labels = [facts["n_classes"]], "" if facts["classes"] is None else '\n    label_filename: "classes.txt"'
    outputs = [
        _tensor("output", "log_likelihoods", "TYPE_FP64", classes),
        _tensor("output", "probabilities", "TYPE_FP64", classes, labels),
        _tensor("output", "label", "TYPE_INT64", [1], "\n    reshape { shape: [ ] }"),
    ]
    head = f'name: {_quoted(name)}\nbackend: "onnxruntime"\nmax_batch_size: {max_batch}\n'
    return head + "".join([*inputs, *outputs]) + "dynamic_batching { }\n"


def _tensor(what: str, name: str, dtype: str, shape: list[Any], more: str = "") -> str:
    dims = ", ".join("-1" if isinstance(extent, str) else str(extent) for extent in shape)
    return f"{what} [\n  {{\n    name: {_quoted(name)}\n    data_type: {dtype}\n    dims: [ {dims} ]{more}\n  }}\n]\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
