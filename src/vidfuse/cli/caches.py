"""`vidfuse import`, `info`, `verify` and `consolidate`: folders of logit caches."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import vidfuse as vf
from vidfuse.cli import options
from vidfuse.errors import VidfuseError

__all__ = ["consolidate", "import_", "info", "verify"]


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="MEMBER=FILE...")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    required=True,
    metavar="[MEMBER=]KIND",
    help="What the numbers are: logits, log-likelihoods, probabilities or sum. Never guessed.",
)
@click.option(
    "--annotations",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The list of videos whose order the files follow; it gives the ids and the labels.",
)
@click.option(
    "--views",
    "reductions",
    multiple=True,
    metavar="[MEMBER=]REDUCTION",
    help="Reduce views while importing: mean-log, mean-probability, vote or max. By default they are kept.",
)
@click.option("--no-labels", is_flag=True, help="Take no labels from the files: they are placeholders.")
@click.option("--head", help="Which scores to take where a dump has several for each video.")
@options.out("caches", "The folder that receives one cache for each member.")
@options.as_json
@click.pass_context
def import_(
    context: click.Context,
    files: tuple[str, ...],
    kinds: tuple[str, ...],
    annotations: Path | None,
    reductions: tuple[str, ...],
    no_labels: bool,
    head: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Import predictions that other tools dumped (MMAction2, PySlowFast, TSN, pyskl, npy, npz, csv, parquet)."""
    stack = vf.read_predictions(
        options.pairs(files, "MEMBER=FILE"),
        kind=options.named_values(kinds, "MEMBER=KIND"),
        annotations=annotations,
        views=options.named_values(reductions, "MEMBER=REDUCTION"),
        labels=None if no_labels else "dump",
        head=head,
    )
    stack.save(out)
    options.save_config(context, out)
    options.emit({"out": out, **_describe(stack)}, f"{stack!r}\nwritten to {out}", as_json)


@click.command()
@options.source
@options.as_json
def info(source: Path, as_json: bool) -> None:
    """Say what SOURCE holds: a folder of caches, one cache, or a recipe."""
    if source.is_file():
        recipe = vf.load_recipe(source)
        options.emit(recipe.describe(), str(recipe), as_json)
        return
    from vidfuse.cache.reader import find_caches, open_cache

    caches = {member: open_cache(folder, partial=True, verify=False) for member, folder in find_caches(source).items()}
    text = "\n".join(repr(cache) for cache in caches.values())
    found = {member: {"videos": len(cache), "missing": len(cache.missing)} for member, cache in caches.items()}
    try:
        stack = vf.load_stack(source, views=None)
        together = _describe(stack)
        text += f"\n{stack!r}"
    except VidfuseError as error:
        together = {"problem": str(error)}
        text += f"\nNot a stack as it is: {error}"
    options.emit({"source": source, "caches": found, **together}, text, as_json)


@click.command()
@options.source
@click.option("--quarantine", is_flag=True, help="Move damaged parts aside, so that a resumed run writes them again.")
@options.as_json
@click.pass_context
def verify(context: click.Context, source: Path, quarantine: bool, as_json: bool) -> None:
    """Read every part of SOURCE and check it against the digest it was written with; status 1 if one is damaged."""
    from vidfuse.cache.upkeep import verify as verify_cache

    result = verify_cache(source, quarantine=quarantine)
    options.emit({"source": source, "ok": result.ok, **asdict(result)}, str(result), as_json)
    context.exit(0 if result.ok else 1)


@click.command()
@options.source
@options.as_json
def consolidate(source: Path, as_json: bool) -> None:
    """Join the parts of each cache in SOURCE into one, so that a stack maps its scores as one array."""
    from vidfuse.cache.upkeep import consolidate as consolidate_caches

    caches = consolidate_caches(source)
    joined = [{"folder": cache.folder, "videos": len(cache), "parts": len(cache.parts)} for cache in caches]
    options.emit({"source": source, "caches": joined}, "\n".join(repr(cache) for cache in caches), as_json)


def _describe(stack: Any) -> dict[str, Any]:
    """Return what can be said about a stack in JSON."""
    return {
        "videos": len(stack),
        "shape": list(stack.shape),
        "members": list(stack.members),
        "kinds": list(stack.kinds),
        "n_views": stack.n_views,
        "n_classes": stack.n_classes,
        "classes": None if stack.classes is None else list(stack.classes),
        "labels": stack.labels is not None,
        "order": "checked by id" if stack.ids is not None else "unchecked",
    }
