"""Fuse two dumps as tools leave them: one has no ids, the other has another order, and each holds other numbers.

    python examples/fuse_dumps.py FOLDER      # writes the two dumps (simulated), and recipe, report and csv, to FOLDER

Needs the base install only.
"""

from __future__ import annotations

import csv
import pickle
import sys
from pathlib import Path

import numpy as np

import vidfuse as vf

CLASSES = ["clap", "jump", "run", "walk", "wave"]


def write_dumps(folder: Path, n: int = 400) -> None:
    """Write what two simulated members predict for n videos of 100 sources, and the list of the videos."""
    rng = np.random.default_rng(0)
    source = rng.integers(100, size=n)
    labels = rng.integers(len(CLASSES), size=100)[source]
    ids = [f"g{group:03d}_c{row:03d}" for row, group in enumerate(source)]
    truth = np.eye(len(CLASSES))[labels]
    swin, x3d = (rng.normal(size=truth.shape) + skill * truth for skill in (1.6, 1.2))

    # The list, and the order of MMAction2's dump, which has no ids: `path label`.
    (folder / "val.txt").write_text("".join(f"{name}.mp4 {label}\n" for name, label in zip(ids, labels, strict=True)))
    # MMAction2: a list of dicts, with probabilities.
    proba = np.exp(swin) / np.exp(swin).sum(axis=1, keepdims=True)
    rows = [{"pred_score": p, "gt_label": np.array([label])} for p, label in zip(proba, labels, strict=True)]
    (folder / "swin.pkl").write_bytes(pickle.dumps(rows))
    # A csv of logits with ids, in an order of its own.
    with (folder / "x3d.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", *CLASSES])
        table.writerows([ids[row], *x3d[row]] for row in rng.permutation(n))


def main(folder: Path) -> vf.report.Leaderboard:
    """Read, compare, fit and keep; returns the comparison."""
    stack = vf.read_predictions(
        {"swin": folder / "swin.pkl", "x3d": folder / "x3d.csv"},
        kind={"swin": "probabilities", "x3d": "logits"},
        annotations={"swin": folder / "val.txt"},
        classes=CLASSES,
    )
    stack = stack.with_groups([name.split("_")[0] for name in stack.ids])  # clips of one source stay together
    board = vf.leaderboard(stack)  # each rule scored on sources that it was not fitted on
    print(board)

    pool = vf.LogLinearPool().fit(stack)
    vf.Recipe.from_fitted(pool, stack).save(folder / "ensemble.json")
    vf.write_report(stack, folder / "report.html", title="Two dumps")
    vf.formats.write_predictions(
        pool.predict_proba(stack), folder / "fused.csv", ids=stack.ids, classes=CLASSES, kind="probabilities"
    )
    return board


if __name__ == "__main__":
    chosen = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/two-dumps")
    chosen.mkdir(parents=True, exist_ok=True)
    write_dumps(chosen)
    main(chosen)
