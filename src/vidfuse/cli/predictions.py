"""`vidfuse predict` and `submit`: what a recipe says of new videos, as a file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import click

import vidfuse as vf
from vidfuse.cli import options
from vidfuse.cli.reading import Reading, reads, takes_recipe
from vidfuse.errors import InputError, option

__all__ = ["predict", "submit"]


@dataclass(frozen=True)
class DecisionOptions:
    """What is stated of each prediction beside its probabilities."""

    abstain: float | None = options.asked(
        "--abstain",
        type=options.SHARE,
        metavar="ERROR",
        help="Say which videos to answer, so that at most this share of them is wrong, with 95 % confidence, in "
        "<out>.decisions.csv; needs `vidfuse record`.",
    )
    sets: float | None = options.asked(
        "--sets",
        type=options.SHARE,
        metavar="COVERAGE",
        help="Write there for each video a set of classes; it holds the true one in this share of the videos.",
    )
    by_class: bool = options.asked(
        "--by-class", is_flag=True, help="With --sets: in this share of the videos of each class."
    )

    def of(self, recipe: Any) -> dict[str, Any]:
        """Return what is stated of a recipe's predictions, by the column that it makes; {} where nothing is asked for.

        Raises:
            InputError: The recipe has no record, or one of too few videos.
        """
        if self.by_class and self.sets is None:
            raise click.BadParameter("--by-class belongs to --sets, the share that is to hold in each class")
        if self.abstain is None and self.sets is None:
            return {}
        if recipe.record is None:
            raise InputError(
                "--abstain and --sets need a record of how the recipe does on labelled videos; `vidfuse record` makes "
                "it"
            )
        stated = {}
        if self.abstain is not None:
            stated["answered"] = recipe.record.abstention(self.abstain)
        if self.sets is not None:
            stated["set"] = recipe.record.prediction_sets(self.sets, by_class=self.by_class)
        return stated


@click.command()
@takes_recipe
@reads(Reading)
@options.out(
    "predictions.csv",
    "What to write: .csv (id,p0,p1,...), .parquet, .npz, .npy (the probabilities alone), .pkl (MMAction2's dump, by "
    "torch), or a new folder, which becomes a cache.",
)
@click.option("--top-k", type=options.COUNT, help="The classes and probabilities of the k most probable alone.")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32", "float64"]),
    help="The probabilities' precision.  [default: float64; float32 in a cache]",
)
@options.asks(DecisionOptions, "decisions")
@options.as_json
def predict(
    recipe: Path,
    reading: Reading,
    out: Path,
    top_k: int | None,
    dtype: str | None,
    decisions: DecisionOptions,
) -> None:
    """Fuse predictions by RECIPE, and write the probability of every class.

    SOURCE is a folder of caches, shards of them, or MEMBER=FILE for each dump. Memory holds a block of
    videos. Killed and started again with the same words, it goes on where it was.
    """
    from vidfuse.formats.export import write_predictions

    loaded, stack = reading.with_recipe(recipe, as_read=True)
    stated = decisions.of(loaded)  # what cannot be stated is said before the work
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
    options.save_config(out)
    counts, text = _write_decisions(loaded, stack, out, stated) if stated else ({}, "")
    said = f"{len(stack)} videos written to {out}"
    options.emit({"out": out, "videos": len(stack), **counts}, f"{said}\n{text}" if text else said)


def _write_decisions(recipe: Any, stack: Any, out: Path, stated: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Write which videos are answered, and their sets of classes, to `<out>.decisions.csv`; return counts and a text.

    Columns: id, predicted, confidence; answered (1 or 0) where an error is stated; set (a JSON list) with a coverage.
    """
    import numpy as np

    from vidfuse.formats.export import csv_cells
    from vidfuse.formats.streams import Rows, threads_for, write_text

    chosen, made = stated.get("answered"), stated.get("set")
    names = recipe.classes or [str(k) for k in range(recipe.n_classes)]
    head = ["id", "predicted", "confidence", *stated]
    n_answered = n_listed = n_empty = 0

    def decided(rows: slice, blocks: Any) -> str:
        nonlocal n_answered, n_listed, n_empty
        (log_p,) = blocks
        best = log_p.argmax(axis=1)
        ids = range(rows.start, rows.stop) if stack.ids is None else stack.ids[rows].tolist()
        columns: list[Any] = [ids, [names[k] for k in best], np.exp(log_p[np.arange(len(best)), best]).tolist()]
        if chosen is not None:
            answered = chosen.answered(log_p)
            n_answered += int(answered.sum())
            columns.append(answered.astype(int).tolist())
        if made is not None:
            within = made.of(log_p)
            n_listed, n_empty = n_listed + int(within.sum()), n_empty + int((~within.any(axis=1)).sum())
            columns.append([json.dumps([names[k] for k in np.flatnonzero(row)], ensure_ascii=False) for row in within])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
        return text.getvalue()

    fused = recipe.predict_blocks(stack)
    read = Rows(lambda rows: (fused[rows],), {"": (fused.dtype, fused.shape)}, fused.rows_per_block, threads_for(fused))
    path = write_text(out.with_name(f"{out.name}.decisions.csv"), f"{csv_cells(head)}\n", read, decided, None)
    n = max(1, len(stack))
    lines = [] if chosen is None else [f"{chosen!r}; here {n_answered:,} of {len(stack):,} videos are answered"]
    if made is not None:
        lines.append(f"{made!r}; here {n_listed / n:.2f} classes a set, {n_empty:,} empty")
    if of_fit := recipe.shared_videos(stack):
        lines.append(f"{of_fit:,} of the {len(stack):,} videos are of the fit: what is stated does not hold for these")
    counts = {"decisions": path, "of_fit": of_fit, "threshold": chosen and chosen.threshold}
    counts |= {"answered": n_answered if chosen else None, "listed_classes": n_listed if made else None}
    return counts, "\n".join([*lines, f"decisions written to {path}"])


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
@reads(Reading)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["vipriors", "csv", "epic"]),
    default="vipriors",
    help="vipriors: five classes for each video, best first, 1-based. csv: as the sample has it. epic: EPIC-KITCHENS' "
    "zip of verbs and nouns.",
)
@click.option(
    "--sample", type=options.FILE, help="The sample submission of a competition, whose columns and rows are followed."
)
@click.option(
    "--nouns",
    type=options.FILE,
    help="With epic: what `vidfuse predict` wrote of the nouns; RECIPE and SOURCE are the verbs'.",
)
@click.option(
    "--supervision",
    metavar="PT,TL,TD",
    help="With epic: the levels of supervision (pretraining, training labels, training data) that the models had.",
)
@click.option(
    "--out", type=options.OUT, help="The file to write.  [default: submission.txt, or .csv, or .zip, by the format]"
)
def submit(
    recipe: Path,
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
    loaded, stack = reading.with_recipe(recipe, as_read=True)
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
    options.save_config(out)
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
