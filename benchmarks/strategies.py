"""Which way of fusing is worth its trouble? Strategies on four kinds of predictions, as one table and one figure.

    python benchmarks/strategies.py [--dumps FOLDER] [--caches FOLDER ...] [--out FILE] [--figure FILE]

Every strategy is fitted on one part and scored on another, on

- published predictions of video models (`--dumps`; see `quality_dumps.py`), whole sources on one side, 20 % to fit on;
- caches that a demo or a run of one's own wrote (`--caches`, folders that hold `val` and `test`);
- scikit-learn's classifiers on data sets that it ships: 200 items to fit on;
- SIMULATED members with the accuracies of the method's Table II (seven networks on 400 classes): Gaussian logits, of
  whose noise all members share 70, 80 or 90 %. What real members share is not known; this only shows what follows.

Numbers are means over sets, each set counted once, however many splits it has.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vidfuse as vf
from quality_data import predictions
from quality_dumps import dump_cases, family
from vidfuse._tables import Cell, Column, Table, number, percent, points
from vidfuse.errors import VidfuseWarning
from vidfuse.report import figures

TABLE_II = {  # top-1 of the method's members on its validation videos, as its report prints them
    "swin": 0.64,
    "tin": 0.59,
    "tpn": 0.53,
    "x3d": 0.62,
    "r2plus1d": 0.59,
    "slowfast": 0.63,
    "timesformer": 0.63,
}
SHARED = (0.7, 0.8, 0.9)  # of the simulated noise's variance
OFFLINE = ("digits", "breast_cancer", "wine")  # those of quality_data that need no other package
SINGLE = "best single member"


def strategies() -> dict[str, Callable[[], Any]]:
    """Return what is compared; the best single member is a subset of one, chosen on the videos of the fit."""
    weighted = vf.LogLinearPool(weights="accuracy")
    return {
        SINGLE: lambda: vf.SubsetPool(vf.LogLinearPool(weights="uniform"), objective="accuracy", max_members=1),
        "majority vote": vf.MajorityVote,
        "average of probabilities": lambda: vf.LinearPool(weights="uniform"),
        "average of log-likelihoods": lambda: vf.LogLinearPool(weights="uniform"),
        "weighted by score": lambda: vf.LogLinearPool(weights="accuracy"),
        "best subset by score": lambda: vf.SubsetPool(weighted, objective="accuracy"),
        "greedy selection": vf.GreedyPool,
        "stacking": vf.StackedPool,
        "weights per video": vf.DynamicPool,
        "learned weights (default)": vf.LogLinearPool,
    }


@dataclass(frozen=True)
class Case:
    """One split: what is fitted on, and what is scored."""

    kind: str
    name: str  # splits of one name are counted as one set
    fit: vf.LogitStack
    test: vf.LogitStack


def stack_of(log_p: NDArray[np.floating], labels: NDArray[np.int64], prefix: str, groups: Any = None) -> vf.LogitStack:
    """Return log-likelihoods (N, M, K) as a stack; the prefix tells its ids from those of the other side."""
    arrays = {f"m{m}": log_p[:, m].astype(np.float32) for m in range(log_p.shape[1])}
    ids = [f"{prefix}{i}" for i in range(len(labels))]
    stack = vf.LogitStack.from_arrays(arrays, labels=labels, ids=ids, kind="logits")
    return stack if groups is None else stack.with_groups(groups)


def published(folder: Path, seeds: list[int]) -> Iterator[Case]:
    """Yield the published predictions, the classes' families counted once."""
    for case in dump_cases(folder, seeds):
        if case.size == "20 %":
            fit = stack_of(case.fit, case.labels, "fit", case.groups)
            yield Case("published video models", family(case.name), fit, stack_of(case.test, case.truth, "test"))


def cached(folders: list[Path]) -> Iterator[Case]:
    """Yield the caches of runs of one's own."""
    for folder in folders:
        yield Case("caches", folder.name, vf.load_stack(folder / "val"), vf.load_stack(folder / "test"))


def offline(seeds: list[int], folder: Path) -> Iterator[Case]:
    """Yield scikit-learn's classifiers on the data sets that it ships."""
    for name in OFFLINE:
        for seed in seeds:
            found = predictions(name, seed, None, folder)
            n = min(200, len(found.labels) // 2)
            fit = stack_of(found.log_p[:n], found.labels[:n], "fit")
            yield Case("scikit-learn classifiers", name, fit, stack_of(found.log_p[n:], found.labels[n:], "test"))


def simulated(seeds: list[int], n_fit: int = 2000, n_test: int = 6000, n_classes: int = 400) -> Iterator[Case]:
    """Yield members with Table II's accuracies: z_m = a_m · [true class] + √s · shared noise + √(1 − s) · own noise."""
    for share in SHARED:
        for seed in seeds:
            rng = np.random.default_rng(seed)
            n = n_fit + n_test
            y = rng.integers(0, n_classes, size=n)
            common = np.sqrt(share) * rng.standard_normal((n, n_classes), dtype=np.float32)
            members = []
            for accuracy in TABLE_II.values():
                noise = common + np.sqrt(1 - share) * rng.standard_normal((n, n_classes), dtype=np.float32)
                members.append(lifted(noise, y, accuracy))
            z = np.stack(members, axis=1)
            fit, test = stack_of(z[:n_fit], y[:n_fit], "fit"), stack_of(z[n_fit:], y[n_fit:], "test")
            yield Case("SIMULATED, Table II", f"{share:.0%} of the noise shared", fit, test)


def lifted(noise: NDArray[np.float32], y: NDArray[np.int64], accuracy: float) -> NDArray[np.float32]:
    """Raise the true class's logit until so many videos are right, then scale to the best NLL there is."""
    rows = np.arange(len(y))
    others = noise.copy()
    others[rows, y] = -np.inf
    lead = np.quantile(others.max(axis=1) - noise[rows, y], accuracy)  # right where the lead is larger than needed
    noise = noise.copy()
    noise[rows, y] += lead
    return noise * np.float32(lead)  # the log-odds of Gaussian logits of unit variance


def judged(case: Case) -> dict[str, tuple[float, float]]:
    """Return (accuracy, NLL) of every strategy on the scored videos."""
    found = {}
    for name, build in strategies().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VidfuseWarning)
            z = build().fit(case.fit).predict_log_proba(case.test)
        y = case.test.labels
        found[name] = (float((z.argmax(axis=1) == y).mean()), float(-z[np.arange(len(y)), y].mean()))
    return found


def table_of(results: dict[str, dict[str, dict[str, tuple[float, float]]]]) -> Table:
    """Return strategy × kind: the gain in points over the best single member, and the NLL."""
    names = list(strategies())
    columns = ["strategy"]
    rows: list[list[Cell]] = [[name] for name in names]
    for kind, sets in results.items():
        columns += [Column(f"{kind}: gain", write=points, best="high"), Column("NLL", f"{kind} NLL", number, "low")]
        for row, name in zip(rows, names, strict=True):
            gains = [found[name][0] - found[SINGLE][0] for found in sets.values()]
            row += [float(np.mean(gains)), float(np.mean([found[name][1] for found in sets.values()]))]
    singles = ", ".join(
        f"{kind} {percent(float(np.mean([found[SINGLE][0] for found in sets.values()])))} % ({len(sets)} sets)"
        for kind, sets in results.items()
    )
    note = f"gain: points of top-1 over the best single member, which gets: {singles}."
    return Table(tuple(columns), tuple(map(tuple, rows)), "Fusion strategies", (note,))


def draw(results: dict[str, dict[str, dict[str, tuple[float, float]]]], path: Path) -> None:
    """Draw the gains: a panel for each kind, a faint dot for each set, a large one for their mean."""
    from matplotlib import pyplot

    names = list(strategies())[1:]
    with pyplot.rc_context(figures.STYLE):
        figure, panels = pyplot.subplots(1, len(results), figsize=(7, 2.6), sharey=True, layout="constrained")
        for ax, (kind, sets) in zip(np.atleast_1d(panels), results.items(), strict=True):
            for place, name in enumerate(names):
                gains = np.array([100 * (found[name][0] - found[SINGLE][0]) for found in sets.values()])
                blue = figures.COLOURS["blue" if name == names[-1] else "grey"]
                ax.plot(gains, np.full(len(gains), place), "o", color=blue, markersize=3, alpha=0.35)
                ax.plot(gains.mean(), place, "D", color=blue, markersize=4.5)
            ax.axvline(0, color="0.3", linewidth=0.7)
            ax.grid(axis="x", color="0.88", linewidth=0.6)
            ax.set_title(kind)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        figure.supxlabel("points of top-1 over the best single member (small: each set; diamond: their mean)", size=8)
        figures.save(panels[0], path.with_suffix(""), [path.suffix.removeprefix(".")])


def main() -> None:
    """Judge the strategies, print the table, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dumps", type=Path, help="a folder of published predictions")
    parser.add_argument("--caches", type=Path, nargs="*", default=[], help="folders that hold caches in val and test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 107])
    parser.add_argument("--out", type=Path, help="a JSON file for every number")
    parser.add_argument("--figure", type=Path, help="a file for the figure: .svg, .pdf or .png")
    args = parser.parse_args()
    results: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        given = [*(published(args.dumps, args.seeds) if args.dumps else ()), *cached(args.caches)]
        splits: dict[tuple[str, str], list[dict[str, tuple[float, float]]]] = {}
        for source in (given, offline(args.seeds, Path(folder)), simulated(args.seeds[:1])):
            for case in source:
                splits.setdefault((case.kind, case.name), []).append(judged(case))
                print(f"{case.kind}: {case.name}", flush=True)
    for (kind, name), found in splits.items():
        results.setdefault(kind, {})[name] = {
            strategy: tuple(np.mean([split[strategy] for split in found], axis=0).tolist()) for strategy in found[0]
        }
    table = table_of(results)
    print(table, "\n\n", table.to_markdown(), sep="")
    if args.figure:
        draw(results, args.figure)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
