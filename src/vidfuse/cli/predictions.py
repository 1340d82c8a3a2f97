"""`vidfuse predict` and `submit`: what a recipe says of new videos, as a file."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from threading import Lock
from typing import Any

import click

import vidfuse as vf
from vidfuse.cli import options
from vidfuse.cli.reading import Reading, reads_predictions, sources, takes_recipe, with_recipe
from vidfuse.cli.reliability import abstain, by_class, decisions_of, sets, write_decisions
from vidfuse.errors import InputError, option

__all__ = ["predict", "submit"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@takes_recipe
@sources()
@reads_predictions
@options.out(
    "predictions.csv",
    "What to write: .csv (id,p0,p1,...), .parquet, .npz, .npy (the probabilities alone), .pkl (MMAction2's dump, by "
    "torch), or a new folder, which becomes a cache.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="The classes and probabilities of the k most probable alone.")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32", "float64"]),
    help="The probabilities' precision.  [default: float64; float32 in a cache]",
)
@abstain
@sets
@by_class
@options.as_json
@click.pass_context
def predict(
    context: click.Context,
    recipe: Path,
    source: tuple[str, ...],
    reading: Reading,
    out: Path,
    top_k: int | None,
    dtype: str | None,
    abstain: float | None,
    sets: float | None,
    by_class: bool,
    as_json: bool,
) -> None:
    """Fuse predictions by RECIPE, and write the probability of every class.

    SOURCE is a folder of caches, shards of them, or MEMBER=FILE for each dump. Memory holds a block of
    videos. Killed and started again with the same words, it goes on where it was.
    """
    from vidfuse.formats.export import write_predictions

    loaded, stack = with_recipe(recipe, source, reading, as_read=True)
    stated = decisions_of(loaded, abstain, sets, by_class)  # what cannot be stated is said before the work
    write_predictions(
        _Shown(loaded.predict_blocks(stack, proba=True)),
        out,
        ids=stack.ids,
        labels=stack.labels,
        classes=loaded.classes,
        kind="probabilities",
        dtype=dtype,
        top_k=top_k,
        resume=_what(recipe, stack),
    )
    options.save_config(context, out)
    counts, text = write_decisions(loaded, stack, out, stated) if stated else ({}, "")
    said = f"{len(stack)} videos written to {out}"
    options.emit({"out": out, "videos": len(stack), **counts}, f"{said}\n{text}" if text else said, as_json)


class _Shown:
    """Blocks of predictions, with a bar of how many videos were fused, where somebody looks."""

    def __init__(self, blocks: Any) -> None:
        from tqdm import tqdm

        self.shape, self.dtype, self.rows_per_block = blocks.shape, blocks.dtype, blocks.rows_per_block
        self._blocks, self._lock = blocks, Lock()
        self._bar = tqdm(total=len(blocks), unit=" videos", disable=not sys.stderr.isatty())

    def __getitem__(self, rows: Any) -> Any:
        found = self._blocks[rows]
        with self._lock:
            self._bar.update(len(found))
        return found


def _what(recipe: Path, stack: Any) -> str:
    """Return what a prediction is computed from, as a digest: a recipe's file, which holds that of its arrays."""
    from vidfuse.stack.identity import stack_digest

    return f"{hashlib.sha256(recipe.read_bytes()).hexdigest()} {stack_digest(stack)}"


@click.command()
@takes_recipe
@sources()
@reads_predictions
@click.option(
    "--format",
    "layout",
    type=click.Choice(["vipriors", "csv", "epic"]),
    default="vipriors",
    show_default=True,
    help="vipriors: five classes for each video, best first, 1-based. csv: as the sample has it. epic: EPIC-KITCHENS' "
    "zip of verbs and nouns.",
)
@click.option(
    "--sample", type=_FILE, help="The sample submission of a competition, whose columns and rows are followed."
)
@click.option(
    "--nouns",
    type=_FILE,
    help="With epic: what `vidfuse predict` wrote of the nouns; RECIPE and SOURCE are the verbs'.",
)
@click.option(
    "--supervision",
    metavar="PT,TL,TD",
    help="With epic: the levels of supervision (pretraining, training labels, training data) that the models had.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The file to write.  [default: submission.txt, or .csv, or .zip, by the format]",
)
@click.pass_context
def submit(
    context: click.Context,
    recipe: Path,
    source: tuple[str, ...],
    reading: Reading,
    layout: str,
    sample: Path | None,
    nouns: Path | None,
    supervision: str | None,
    out: Path | None,
) -> None:
    """Fuse predictions by RECIPE, and write a submission.

    SOURCE is a folder of caches, shards of them, or MEMBER=FILE for each dump. Memory holds a block of
    videos. Killed and started again with the same words, it goes on where it was.
    """
    loaded, stack = with_recipe(recipe, source, reading, as_read=True)
    if stack.ids is None:
        raise InputError(
            f"a submission names videos, and these predictions have no ids; pass {option('annotations')}, the list of "
            "videos in the rows' order"
        )
    out = out or Path("submission").with_suffix({"vipriors": ".txt", "csv": ".csv", "epic": ".zip"}[layout])
    fused: Any = _Shown(loaded.predict_blocks(stack))
    if layout == "epic":
        fused = {"verb": fused, "noun": _fused_nouns(nouns, stack.ids)}
    vf.write_submission(
        fused,
        stack.ids,
        out,
        format=layout,
        sample=sample,
        classes=loaded.classes,
        supervision=None if supervision is None else _levels(supervision),
        resume=_what(recipe, stack),
    )
    options.save_config(context, out)
    click.echo(f"{len(stack)} videos written to {out}")


def _fused_nouns(path: Path | None, ids: Any) -> Any:
    """Return the nouns' log-likelihoods (N, K) of these videos, from a file of `vidfuse predict`."""
    from vidfuse._checks import first_few

    if path is None:
        raise click.BadParameter("--format epic needs --nouns, what `vidfuse predict` wrote of the nouns")
    stack = vf.read_predictions({"nouns": path}, kind="probabilities", labels=None)
    row_of = {name: row for row, name in enumerate([] if stack.ids is None else stack.ids.tolist())}
    absent = [name for name in ids.tolist() if name not in row_of]
    if absent:
        raise InputError(f"{path}: it has no nouns for {len(absent)} of {len(ids)} videos: {first_few(absent)}")
    return stack[[row_of[name] for name in ids.tolist()]].log_likelihoods()[:, 0]


def _levels(text: str) -> tuple[int, ...]:
    """Return whole numbers that stand between commas."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"--supervision: expected three numbers such as 2,3,3, got {text!r}") from error
