"""`vidfuse import`, `info`, `verify` and `consolidate`: folders of logit caches."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

import vidfuse as vf
from vidfuse.cli import options
from vidfuse.cli.reading import Reading, reads
from vidfuse.errors import VidfuseError

__all__ = ["consolidate", "import_", "info", "verify"]

_FEW_SHARDS: Final = 5  # whose caches `info` lists one by one


@click.command("import")
@reads(Reading)
@click.option(
    "--views",
    multiple=True,
    metavar="[MEMBER=]REDUCTION",
    help="Reduce views while importing: mean-log, mean-probability, vote or max. By default they are kept.",
)
@options.out("caches", "The folder that receives one cache for each member.")
@options.as_json
def import_(
    reading: Reading,
    views: tuple[str, ...],
    out: Path,
) -> None:
    """Turn predictions that other tools dumped, MEMBER=FILE, into caches.

    They may be MMAction2's, PySlowFast's, TSN's or pyskl's, npy, npz, csv or parquet.
    """
    stack = reading.open(options.named_values(views, "MEMBER=REDUCTION"))
    stack.save(out)
    options.save_config(out)
    options.emit({"out": out, **_describe(stack)}, f"{stack!r}\nwritten to {out}")


@click.command()
@options.source
@options.as_json
def info(source: tuple[str, ...]) -> None:
    """Say what SOURCE holds: a folder of caches, one cache, shards of them, or a recipe."""
    if len(source) == 1 and os.path.isfile(source[0]):
        recipe = vf.load_recipe(source[0])
        options.emit(recipe.describe(), str(recipe))
        return
    from vidfuse.cache.reader import open_cache
    from vidfuse.cache.shards import find_shards
    from vidfuse.stack.checkpoints import as_fingerprints, shortened

    found: dict[str, dict[str, Any]] = {}
    listed: dict[str, list[str]] = {}  # each member's caches; of many shards those that are not finished
    shards = find_shards(source)
    for shard in shards:
        for member, folder in shard.items():
            cache = open_cache(folder, partial=True, verify=False)
            expected, prints = cache.meta.expected_ids, as_fingerprints(cache.meta.fingerprint)
            missing = 0 if expected is None else len(expected) - len(cache)
            counts = found.setdefault(member, {"videos": 0, "missing": 0, "parts": 0, "fingerprints": []})
            counts["videos"] += len(cache)
            counts["missing"] += missing
            counts["parts"] += len(cache.parts)
            counts["fingerprints"] = sorted({*counts["fingerprints"], *(prints or ["unknown"])})
            if missing or len(shards) <= _FEW_SHARDS:
                told = " + ".join(map(shortened, prints)) or "unknown"
                listed.setdefault(member, []).append(f"{cache!r}; checkpoint: {told}")
    lines = [line for own in listed.values() for line in own]
    if len(shards) > _FEW_SHARDS:
        lines += [
            f"{member}: {counts['videos']} videos in {sum(member in shard for shard in shards)} shards, "
            f"{counts['parts']} parts, {counts['missing']} missing; checkpoint: "
            f"{' + '.join(map(shortened, counts['fingerprints']))}"
            for member, counts in found.items()
        ]
    text = "\n".join(lines)
    try:
        stack = vf.load_stack(source, views=None)
        together = _describe(stack)
        text += f"\n{stack!r}"
    except VidfuseError as error:
        together = {"problem": str(error)}
        text += f"\nNot a stack as it is: {error}"
    options.emit({"source": source, "caches": found, **together}, text)


@click.command()
@options.source
@click.option("--quarantine", is_flag=True, help="Move damaged parts aside, so that a resumed run writes them again.")
@options.as_json
def verify(source: tuple[str, ...], quarantine: bool) -> None:
    """Read every part of SOURCE, and check it against its digest; status 1 if one is damaged, or videos are missing.

    SOURCE is a folder of caches, one cache, or shards of them.
    """
    from vidfuse.cache.upkeep import verify as verify_cache

    result = verify_cache(source, quarantine=quarantine)
    options.emit({"source": source, "ok": result.ok, **asdict(result)}, str(result))
    click.get_current_context().exit(0 if result.ok else 1)


@click.command()
@options.source
@options.as_json
def consolidate(source: tuple[str, ...]) -> None:
    """Join the parts of each cache in SOURCE into one, so that a stack maps its scores as one array.

    SOURCE is a folder of caches, one cache, or shards of them.
    """
    from vidfuse.cache.upkeep import consolidate as consolidate_caches

    caches = consolidate_caches(source)
    joined = [{"folder": cache.folder, "videos": len(cache), "parts": len(cache.parts)} for cache in caches]
    options.emit({"source": source, "caches": joined}, "\n".join(repr(cache) for cache in caches))


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
