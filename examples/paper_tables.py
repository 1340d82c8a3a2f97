"""A researcher's half day: from the scores of three splits to the tables and figures of a paper.

    python examples/paper_tables.py --out paper [--scores caches/split1 caches/split2 caches/split3]

Each folder of `--scores` holds the caches of one split, as `vidfuse import` writes them. Without, five members are
SIMULATED, so that it runs anywhere; their numbers say nothing about real ones. Half of the source videos of each split
is fitted on, and half is scored.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import vidfuse as vf
from vidfuse.evaluation.worth import member_worth
from vidfuse.report import figures


def source(video: str) -> str:
    """Return what a clip was cut from, as UCF101 names it: v_Run_g01 of v_Run_g01_c02."""
    return video.rpartition("_c")[0] or video


def halves(stack: vf.LogitStack) -> tuple[vf.LogitStack, vf.LogitStack]:
    """Split a stack into halves, no source on both sides."""
    sources = np.array([source(video) for video in stack.ids])
    fit = np.isin(sources, np.random.default_rng(0).permutation(np.unique(sources))[::2])
    return stack[fit], stack[~fit]


def write_paper(splits: Sequence[vf.LogitStack], out: Path) -> None:
    """Write tables and figures: means over the splits, intervals and tests, what members are worth, the curve."""
    fits, tests = zip(*map(halves, splits), strict=True)
    over = vf.leaderboard_of_splits(fits, tests, groups=source)  # mean and s.d. over the splits
    board = vf.leaderboard(fits[0], tests[0], groups=source)  # the first one, with intervals and tests
    worth = member_worth(fits[0], tests[0], groups=source)
    curve = vf.learning_curve(fits[0], tests[0], groups=source, repeats=1)
    over.to_latex(out / "splits.tex", caption="Top-1 over the splits.", label="tab:splits")
    board.to_latex(out / "leaderboard.tex", caption="The first split.", label="tab:leaderboard")
    worth.to_csv(out / "members.csv")
    figures.save(figures.leaderboard(board), out / "leaderboard")
    figures.save(figures.worth(worth), out / "members")
    figures.save(figures.curve(curve), out / "learning")
    print(over, board, worth.table(), curve.table(), sep="\n\n")


def simulated(seed: int, sources: int = 60, clips: int = 3) -> vf.LogitStack:
    """Return five made-up members for clips that come in threes; clips of one source are alike."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(sources) % 6, clips)
    ids = [f"v_Act{label}_g{i // clips:03d}_c{i % clips}" for i, label in enumerate(y)]
    scores = {}
    for number, name in enumerate(("slowfast", "swin", "x3d", "tin", "tpn")):
        shared = np.repeat(rng.normal(size=(sources, 6)), clips, axis=0)
        scores[name] = shared + rng.normal(size=(len(y), 6)) + (2.6 - 0.3 * number) * np.eye(6)[y]
    return vf.LogitStack.from_arrays(scores, labels=y, ids=ids, kind="logits")


def main() -> None:
    """Read the splits, or simulate them, and write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, nargs="+", help="folders of caches, one a split")
    parser.add_argument("--out", type=Path, default=Path("paper"))
    args = parser.parse_args()
    given = [vf.load_stack(folder, views="mean-log") for folder in args.scores or ()]
    write_paper(given or [simulated(seed) for seed in range(3)], args.out)


if __name__ == "__main__":
    main()
