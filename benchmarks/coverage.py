"""Do intervals cover, and do tests reject, as often as they say? Simulations with known truth, and real sources.

    python benchmarks/coverage.py --repetitions 2000 --jobs 16 --dumps FOLDER
    python benchmarks/coverage.py --parts sources --dumps FOLDER       # intervals of UCF101's source videos alone

A simulated rule sees each video with a margin that is normal given the class: a class's own mean, plus what the videos
of a group share, what both rules share, and what is the rule's own. It is right where the margin is above 0, and loses
log(1 + exp(-3 margin)) nats; so the true accuracies, losses and gains of all classes are integrals of one variable.
Numbers go to benchmarks/results/coverage.json; parts that are not run stay there as they were.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.stats import norm

import vidfuse as vf
from quality_dumps import _log_likelihoods
from quality_splits import groups as sources_of
from vidfuse.evaluation.resampling import LARGEST_LOSS, Draw
from vidfuse.metrics import holm
from vidfuse.metrics.design import Design, design_of
from vidfuse.metrics.intervals import difference_bounds, mean_bounds, mean_difference_bounds, share_bounds
from vidfuse.metrics.significance import flip_p_values, share_p_values

RESULTS = Path(__file__).parent / "results" / "coverage.json"
STEEPNESS = 3.0  # nats for each unit of margin
LEVEL = 0.95
PARTS = ("simulated", "honest", "sources")
FLIPS = 4999  # all repetitions of a setting share them: few would make the rates of one setting vary together
SHARED = 0.6  # of a margin's variance within a group, what two rules have in common


@dataclass(frozen=True)
class Cell:
    """One setting of the simulation.

    Attributes:
        videos: N.
        classes: K.
        groups: the number of groups; 0 where videos are independent.
        spanning: whether the videos of a group are of all classes (signers), or of one (sources).
        together: the share of a margin's variance that the videos of a group have in common.
        accuracy: the mean accuracy over classes, which lie up to 0.12 around it.
    """

    videos: int
    classes: int
    groups: int
    spanning: bool
    together: float
    accuracy: float

    def means(self, gain: float = 0.0) -> NDArray[np.float64]:
        """Return each class's mean margin (K,), for a rule that is `gain` more accurate on all of them."""
        reach = min(0.12, 0.98 - self.accuracy - gain)
        return norm.ppf(self.accuracy + gain + reach * np.linspace(-1, 1, self.classes))


def cells() -> list[Cell]:
    """Return all settings."""
    found = []
    for n, k, accuracy in itertools.product((60, 150, 300, 700, 2000), (5, 20, 50), (0.6, 0.8, 0.93)):
        if n >= 3 * k:
            found.append(Cell(n, k, 0, False, 0.0, accuracy))
    for k, together, accuracy in itertools.product((5, 20, 50), (0.1, 0.5), (0.6, 0.8, 0.93)):
        found.append(Cell(300, k, 30, k > 10, together, accuracy))
        found.append(Cell(3500, k, 700, False, together, accuracy))
    return found


def true_loss(means: NDArray[np.float64]) -> float:
    """Return the mean loss over classes, integrated on a fine grid; losses are cut at what intervals cut them at."""
    grid = np.linspace(-9, 9, 20_001)
    density = norm.pdf(grid)
    loss = np.minimum(np.logaddexp(0, -STEEPNESS * (means[:, None] + grid)), LARGEST_LOSS)
    return float((loss @ density / density.sum()).mean())


def margins(
    cell: Cell, labels: NDArray[np.int64], gains: list[float], repetitions: int, rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Return the margins (N, R) of rules with these gains; labels are (N, 1), or (N, R)."""
    n = cell.videos
    group = np.arange(n) if not cell.groups else np.repeat(np.arange(cell.groups), n // cell.groups)
    rest = 1 - cell.together

    def part(share: float, own: bool) -> NDArray[np.float64]:
        """Return a part of the margins, of each video's own and of its group's."""
        found = np.sqrt(share * (rest if own else cell.together)) * rng.normal(
            size=(n if own else cell.groups or 1, repetitions)
        )
        return found if own else found[group if cell.groups else np.zeros(n, int)]

    both = part(SHARED, True) + (part(SHARED, False) if cell.groups else 0.0)
    result = []
    for gain in gains:
        alone = part(1 - SHARED, True) + (part(1 - SHARED, False) if cell.groups else 0.0)
        result.append(cell.means(gain)[labels] + both + alone)
    return result


def labels_of(cell: Cell, repetitions: int, rng: np.random.Generator, drawn: bool) -> NDArray[np.int64]:
    """Return classes: dealt in turn (N, 1), or drawn anew in each repetition (N, R)."""
    size = cell.videos // cell.groups if cell.groups and not cell.spanning else 1
    units = cell.videos // size
    own = rng.integers(0, cell.classes, (units, repetitions)) if drawn else np.arange(units)[:, None] % cell.classes
    return np.repeat(own, size, axis=0)


def run_cell(cell: Cell, repetitions: int, seed: int) -> dict[str, Any]:
    """Return coverages, mean widths and rejection rates of one setting."""
    rng = np.random.default_rng(seed)
    gain = 0.02
    groups = None if not cell.groups else np.repeat(np.arange(cell.groups), cell.videos // cell.groups)
    found: dict[str, Any] = {**asdict(cell), "repetitions": repetitions, "coverage": {}, "width": {}, "refused": {}}

    def note(name: str, ends: tuple[NDArray[np.float64], NDArray[np.float64]], truth: float) -> None:
        low, high = ends
        told = ~np.isnan(low)
        found["refused"][name] = float(1 - told.mean())
        if told.any():
            low, high = low[told], high[told]
            found["coverage"][name] = float(((low <= truth) & (truth <= high)).mean())
            found["width"][name] = float((high - low).mean())

    # accuracy and loss: classes are drawn as the videos are
    labels = labels_of(cell, repetitions, rng, drawn=True)
    first, second = margins(cell, labels, [gain, 0.0], repetitions, rng)
    plain = design_of(cell.videos, None, groups)
    hits = [(m > 0).astype(np.float64) for m in (first, second)]
    losses = [np.minimum(np.logaddexp(0, -STEEPNESS * m), LARGEST_LOSS) for m in (first, second)]
    truth = [true_loss(cell.means(g)) for g in (gain, 0.0)]
    note("accuracy", share_bounds(hits[1], plain, LEVEL), cell.accuracy)
    note("gain of accuracy", difference_bounds(hits[0] - hits[1], plain, LEVEL), gain)
    note("nll", mean_bounds(losses[1], plain, LEVEL, 2000, 0, LARGEST_LOSS), truth[1])
    note("gain of nll", mean_difference_bounds(losses[1] - losses[0], plain, LEVEL), truth[1] - truth[0])
    # mean class accuracy: classes are given
    labels = labels_of(cell, repetitions, rng, drawn=False)
    within = design_of(cell.videos, labels[:, 0], groups)
    first, second = margins(cell, labels, [gain, 0.0], repetitions, rng)
    hits = [(m > 0).astype(np.float64) for m in (first, second)]
    note("mean class accuracy", share_bounds(hits[1], within, LEVEL), cell.accuracy)
    note("gain of mean class accuracy", difference_bounds(hits[0] - hits[1], within, LEVEL), gain)
    # three equally good rules
    equal = margins(cell, labels, [0.0, 0.0, 0.0], repetitions, rng)
    found["rejected"], found["any rejected"] = {}, {}
    for name, design in (("accuracy", plain), ("mean class accuracy", within), ("nll", plain)):
        values = [np.logaddexp(0, -STEEPNESS * m) if name == "nll" else (m > 0).astype(np.float64) for m in equal]
        pairs = [p_values(values[a] - values[b], design, name) for a, b in ((0, 1), (0, 2), (1, 2))]
        found["rejected"][name] = float((pairs[0] <= 0.05).mean())
        adjusted = np.array([holm(row) for row in np.stack(pairs, axis=1)])
        found["any rejected"][name] = float((adjusted <= 0.05).any(axis=1).mean())
    return found


def p_values(differences: NDArray[np.float64], design: Design, name: str) -> NDArray[np.float64]:
    """Return the p-values (R,) of columns of differences (N, R)."""
    if name == "accuracy" and design.n_groups is None:
        return share_p_values(differences, design, 0)[0]
    return flip_p_values(design.totals(differences), 0, FLIPS)[0]


def honest(seed: int, videos: int = 300, members: int = 8, classes: int = 5) -> dict[str, tuple[float, float, float]]:
    """Return {rule: (honest score, in-sample score, accuracy on 4,000 other videos)} of one draw of equal members.

    How much easier the videos of the draw are than the others, as the plain average has it, is taken off the first two:
    a control variate, of mean 0.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, videos + 4000)
    scores = rng.normal(size=(len(labels), members, classes)).astype(np.float32)
    scores += 0.9 * np.eye(classes, dtype=np.float32)[labels][:, None] + 0.8 * rng.normal(
        size=(len(labels), 1, classes)
    )
    stack = vf.LogitStack.from_arrays(scores.astype(np.float32), labels=labels)
    fit, other = stack[:videos], stack[videos:]
    average = vf.LogLinearPool(weights="uniform").fit(fit)  # nothing is fitted: its scores differ by luck alone
    luck = float(average.score(fit)) - float(average.score(other))
    found = {}
    for name, rule in (
        ("exact subset", vf.SubsetPool(vf.LogLinearPool(weights="uniform"))),
        ("greedy", vf.GreedyPool("accuracy")),
    ):
        told = vf.honest_score(rule, fit, folds=10, repeats=1, n_resamples=1, random_state=seed)
        found[name] = told.score - luck, told.in_sample - luck, float(rule.fit(fit).score(other))
    return found


def summary(results: list[dict[str, Any]]) -> None:
    """Print the range of each quantity over the settings, and what falls outside."""
    print(f"\n{'':32}{'independent':>28}{'30 x 10':>28}{'700 x 5':>28}")
    kinds = {"independent": 0, "30 x 10": 30, "700 x 5": 700}
    goals = {"coverage": (0.93, 0.97), "rejected": (0.03, 0.06), "any rejected": (0.0, 0.06)}
    outside = []
    for what, (low, high) in goals.items():
        for name in results[0][what]:
            line = []
            for kind, groups in kinds.items():
                values = [(r[what][name], r) for r in results if r["groups"] == groups and name in r[what]]
                shares = np.array([value for value, _ in values])
                inside = ((shares >= low) & (shares <= high)).mean()
                line.append(f"{shares.min():.3f} … {shares.max():.3f}  ({inside:4.0%} in)")
                outside += [
                    (what, name, kind, r["videos"], r["classes"], r["accuracy"], r["together"], round(value, 3))
                    for value, r in values
                    if not low <= value <= high
                ]
            print(f"{what + ': ' + name:32}" + "".join(f"{text:>28}" for text in line))
    print("\noutside (what, of what, videos, N, K, accuracy, together, share):")
    for row in outside:
        print("  ", *row, sep="  ")


def sources(folder: Path) -> list[dict[str, Any]]:
    """Return, for UCF101's dumps, widths of intervals by clip, by source, and of a plain bootstrap of sources."""
    rows = list[dict[str, Any]]()
    for path in sorted(folder.glob("*ucf101*.npz")):
        stored = np.load(path)
        labels, ids = stored["labels"].astype(np.int64), stored["ids"].astype(str)
        log_p = _log_likelihoods(stored["scores"], stored["kinds"].tolist())
        groups = np.unique(sources_of(path.stem, ids.tolist()), return_inverse=True)[1]
        for m, member in enumerate(stored["members"].tolist()):
            own = log_p[:, m]
            values = {
                "accuracy": (own.argmax(axis=1) == labels).astype(float),
                "mean-class-accuracy": (own.argmax(axis=1) == labels).astype(float),
                "nll": np.minimum(-np.take_along_axis(own, labels[:, None], axis=1)[:, 0], LARGEST_LOSS),
            }
            for objective, value in values.items():
                by_clip = np.ptp(tuple(Draw(labels, objective).interval([own])))
                by_source = np.ptp(tuple(Draw(labels, objective, n_resamples=20_000, groups=groups).interval([own])))
                plain = np.ptp(np.quantile(bootstrap(value, labels, groups, objective), [0.025, 0.975]))
                row = {"set": path.stem, "member": member, "objective": objective, "groups": int(groups.max()) + 1}
                widths = {"by clip": float(by_clip), "by source": float(by_source), "bootstrap": float(plain)}
                rows.append(row | widths)
    return rows


def bootstrap(
    values: NDArray[np.float64], labels: NDArray[np.int64], groups: NDArray[np.int64], objective: str
) -> NDArray[np.float64]:
    """Return the mean, or the mean of class means, in 20,000 plain resamples of whole groups."""
    rng = np.random.default_rng(0)
    n_groups, n_classes = int(groups.max()) + 1, int(labels.max()) + 1
    index = labels if objective == "mean-class-accuracy" else np.zeros_like(labels)
    table = np.zeros((2, n_groups, n_classes if objective == "mean-class-accuracy" else 1))
    np.add.at(table[0], (groups, index), values)
    np.add.at(table[1], (groups, index), 1)
    found = []
    for _ in range(40):
        counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=500)
        with np.errstate(invalid="ignore"):
            found.append(np.nanmean((counts @ table[0]) / (counts @ table[1]), axis=1))
    return np.concatenate(found)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 5) if isinstance(value, float) else value


def main() -> None:
    """Run what was asked for, print a summary and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to run; sources need --dumps")
    parser.add_argument("--dumps", type=Path, help="a folder of published predictions; see quality_dumps.py")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    start = time.perf_counter()
    written: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    run = Parallel(n_jobs=options.jobs)
    if "simulated" in options.parts:
        written["simulated"] = run(delayed(run_cell)(cell, options.repetitions, i) for i, cell in enumerate(cells()))
        summary(written["simulated"])
    if "honest" in options.parts:
        told = run(delayed(honest)(seed) for seed in range(options.repetitions))
        written["honest_score"] = {}
        for name in told[0]:
            score, in_sample, truth = 100 * np.array([draw[name] for draw in told]).T
            error = float((score - truth).std() / np.sqrt(len(told)))
            row = {"truth": truth.mean(), "honest": score.mean(), "in-sample": in_sample.mean(), "draws": len(told)}
            written["honest_score"][name] = {key: float(value) for key, value in row.items()} | {"error": error}
            off, naive = score.mean() - truth.mean(), in_sample.mean() - truth.mean()
            print(f"{name}: true {truth.mean():.2f} %, honest_score {off:+.2f} ± {error:.2f}, in-sample {naive:+.2f}")
    if "sources" in options.parts and options.dumps is not None:
        written["sources"] = sources(options.dumps)
        for objective in ("accuracy", "mean-class-accuracy", "nll"):
            rows = [row for row in written["sources"] if row["objective"] == objective]
            ratio = np.array([row["by source"] / row["bootstrap"] for row in rows])
            clip = np.array([row["by source"] / row["by clip"] for row in rows])
            print(
                f"{objective}: by source over plain bootstrap of sources {ratio.min():.3f} … {ratio.max():.3f}, "
                f"over interval by clip {clip.min():.2f} … {clip.max():.2f} ({len(rows)} members and splits)"
            )
    options.out.write_text(json.dumps(_rounded(written), indent=1) + "\n")
    print(f"{time.perf_counter() - start:.0f} s; {options.out}")


if __name__ == "__main__":
    main()
