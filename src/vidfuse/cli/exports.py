"""`vidfuse export`: a recipe, alone or with its members' networks, as a file for other engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vidfuse.cli import options
from vidfuse.errors import InputError, MissingExtraError, option
from vidfuse.recipe import Recipe, load_recipe
from vidfuse.stack.checkpoints import Checkpoints

__all__ = ["export"]


@click.command()
@click.argument("recipe", type=options.FILE)
@click.option(
    "--out",
    type=options.OUT,
    help="The file to write, .onnx or .pt2.  [default: the recipe's name with .onnx, unless --triton is given]",
)
@click.option(
    "--triton",
    type=click.Path(file_okay=False, path_type=Path),
    help="A model repository of Triton to write into, under the recipe's name.",
)
@click.option(
    "--checkpoint",
    "weights",
    multiple=True,
    metavar="MEMBER=FILE",
    help="A member's weights, or its run's folder; with those of all members, clips go in instead of scores.",
)
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="MEMBER=NAME",
    help="A member's network, where `vidfuse train` did not write its checkpoint.",
)
@click.option(
    "--clips",
    multiple=True,
    metavar="MEMBER=TxHxW",
    help="Frames, height and width of a member's clips, if other than it was trained on.",
)
@click.option(
    "--checkpoints",
    type=click.Choice(["same", "any"]),
    default="same",
    help="Recipes know the checkpoints of their fit: refuse networks of others, or compare nothing.",
)
@click.option("--with-views", is_flag=True, help="Inputs have an axis of views, which are reduced as the recipe says.")
@click.option("--max-batch", type=options.COUNT, default=64, help="Of Triton: videos.")
@options.as_json
def export(
    recipe: Path,
    out: Path | None,
    triton: Path | None,
    weights: tuple[str, ...],
    networks: tuple[str, ...],
    clips: tuple[str, ...],
    checkpoints: Checkpoints,
    with_views: bool,
    max_batch: int,
) -> None:
    """Write RECIPE as one file that other engines run: ONNX, or torch's .pt2.

    The members' scores go in, fused probabilities come out. With --checkpoint for every member, their networks are part
    of the file, and clips go in. The file is compared with torch before it is put in its place.
    """
    try:
        from vidfuse.serving import exports
        from vidfuse.serving import triton as repository
        from vidfuse.serving.ensemble import Ensemble
    except MissingExtraError as error:
        raise MissingExtraError("vidfuse export", "export") from error

    # Without --checkpoint the recipe alone is written, and scores go in. With it the members' networks are part of the
    # file: their clips are as they were trained on, unless --clips says otherwise. Without --out and --triton, ONNX.
    loaded = load_recipe(recipe)
    source: Any = loaded
    extents = {name: _extents(name, text) for name, text in options.pairs(clips, "MEMBER=TxHxW").items()}
    if weights:
        paths = {name: Path(path) for name, path in options.pairs(weights, "MEMBER=FILE").items()}
        named = options.pairs(networks, "MEMBER=NAME")
        for switch, given in (("--network", named), ("--clips", extents)):
            if extra := sorted(set(given) - set(paths)):
                raise click.BadParameter(f"{switch}: expected members with a --checkpoint, got {', '.join(extra)}")
        models, extents = _networks(loaded, paths, named, extents)
        source = Ensemble(loaded, models, checkpoints=checkpoints)
    elif networks or clips or checkpoints == "any":
        raise click.BadParameter("--network, --clips and --checkpoints belong to --checkpoint, the members' weights")
    common: dict[str, Any] = {"with_views": with_views, "clips": extents}
    written = []
    if out is not None or triton is None:
        written.append(exports.export(source, recipe.with_suffix(".onnx") if out is None else out, **common))
    if triton is not None:
        written.append(repository.export_triton(source, triton, recipe.stem, max_batch=max_batch, **common))
    lines = [
        f"{one.size / 1e6:.3g} MB written to {one.path}; its probabilities differ from torch's by {one.difference:.1g} "
        "at most" for one in written
    ]  # fmt: skip
    inputs = ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in written[0].facts["inputs"].items())
    files = [{"path": one.path, "bytes": one.size, "difference": one.difference} for one in written]
    options.emit({"files": files, "facts": written[0].facts}, "\n".join([f"inputs: {inputs}", *lines]))


def _extents(name: str, text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"--clips: expected {name}=FRAMESxHEIGHTxWIDTH, such as 16x224x224, got {text!r}")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _networks(
    recipe: Recipe,
    files: Mapping[str, Path],
    named: Mapping[str, str],
    clips: Mapping[str, tuple[int, int, int]],
) -> tuple[dict[str, Any], dict[str, tuple[int, int, int]]]:
    """Return the members' networks, and the extents of each one's clips."""
    from vidfuse.cli.runs import checkpoint_file, run_of
    from vidfuse.networks import info
    from vidfuse.training.data import network_for

    models, extents = {}, {}
    for name, path in files.items():
        path = checkpoint_file(path)
        known = run_of(path, named.get(name), f"{name}: ")
        network = named.get(name) or (known and known.network)
        if network is None:
            raise InputError(
                f"{name}: {path} does not say which network it is of; say {option('network', {name: '…'})}"
            )
        if known is not None and known.classes and recipe.classes and known.classes != recipe.classes:
            raise InputError(
                f"{name}: expected a network of the recipe's classes in their order, got other ones: {path}"
            )
        facts: Any = info(network) if known is None else known.recipe
        extents[name] = clips.get(name, (facts.frames, facts.size, facts.size))
        weights: Any = path if known is None else known.weights
        models[name] = network_for(extents[name][0], network, recipe.n_classes, checkpoint=weights)
    return models, extents
