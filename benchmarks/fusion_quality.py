"""Which rule fuses best? Held-out NLL and accuracy on real predictions, with ranks and what loses.

    python benchmarks/fusion_quality.py [--aeon FOLDER] [--peer NAME=PYTHON …] [--repeats 5] [--out FILE]
    python benchmarks/fusion_quality.py --dumps FOLDER [--seeds 7 107 207] [--peer NAME=PYTHON …] [--out FILE]

For every data set, repetition and validation size each rule is fitted on the validation items and judged on items
that neither it nor the members saw. All rules get the same members: classifiers of scikit-learn, floored at 1e-4, or
the published predictions of video models as they are, with whole sources on one side of each split. Ranks are averaged
over the cases; their intervals come from a bootstrap over data sets, those that share models or labels counted as one.
Peers are other packages (`PEERS` of `quality_peers.py`), each run by a Python that has it; one that does not finish in
`--peer-seconds` is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

import vidfuse as vf
from quality_data import SETS, predictions
from quality_dumps import Case, dump_cases, family
from vidfuse.errors import VidfuseWarning

Array = NDArray[np.float64]
Rule = Callable[[Array, NDArray[np.int64], Array], Array]
DEFAULT = "vidfuse default"
GROUPED = "vidfuse default, groups given"


def _vidfuse(build: Callable[[], vf.LogLinearPool]) -> Rule:
    def rule(log_p: Array, y: NDArray[np.int64], test: Array) -> Array:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VidfuseWarning)
            return build().fit(log_p, y).predict_log_proba(test)

    return rule


def _grouped(case: Case) -> Array:
    """Fit the default with what each video was cut from."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VidfuseWarning)
        pool = vf.LogLinearPool().fit(case.fit, case.labels, groups=case.groups)
        return pool.predict_log_proba(case.test)


def _best_single(log_p: Array, y: NDArray[np.int64], test: Array) -> Array:
    return test[:, log_p[np.arange(len(y)), :, y].mean(axis=0).argmax()]


def _caruana(log_p: Array, y: NDArray[np.int64], test: Array, rounds: int = 50) -> Array:
    true, total = np.exp(log_p[np.arange(len(y)), :, y]), np.zeros(len(y))
    counts = np.zeros(log_p.shape[1])
    for _ in range(rounds):
        best = np.log(total[:, None] + true).mean(axis=0).argmax()
        total, counts[best] = total + true[:, best], counts[best] + 1
    return _weighted(test, counts)


def _sklearn_stacking(log_p: Array, y: NDArray[np.int64], test: Array) -> Array:
    """Fit `StackingClassifier`'s default final estimator on what it would be given: probabilities side by side."""
    if (y == y[0]).all():
        return np.log(np.exp(test).mean(axis=1))
    final = LogisticRegression(max_iter=2000).fit(np.exp(log_p).reshape(len(y), -1), y)
    p = np.full((len(test), test.shape[2]), 0.0)
    p[:, final.classes_] = final.predict_proba(np.exp(test).reshape(len(test), -1))
    return np.log((1 - 1e-4) * p + 1e-4 / test.shape[2])


def _weighted(log_p: Array, weights: Array) -> Array:
    return np.log(np.maximum(np.einsum("nmk,m->nk", np.exp(log_p), weights / weights.sum()), 1e-44))


RULES: dict[str, Rule] = {
    DEFAULT: _vidfuse(vf.LogLinearPool),
    "vidfuse shared weights": _vidfuse(lambda: vf.LogLinearPool(per_class=False)),
    "vidfuse shrinkage=cv": _vidfuse(lambda: vf.LogLinearPool(shrinkage="cv")),
    "vidfuse unshrunk": _vidfuse(lambda: vf.LogLinearPool(shrinkage=None)),
    "vidfuse per class": _vidfuse(lambda: vf.LogLinearPool(per_class=True)),
    "vidfuse stacked": _vidfuse(vf.StackedPool),
    "vidfuse stacked, diagonal": _vidfuse(lambda: vf.StackedPool("diagonal")),
    "vidfuse dynamic": _vidfuse(vf.DynamicPool),
    "accuracy log-linear (the paper's)": _vidfuse(lambda: vf.LogLinearPool(weights="accuracy")),
    "accuracy log-linear, calibrated": _vidfuse(lambda: vf.Calibrated(vf.LogLinearPool(weights="accuracy"))),
    "uniform log-linear": _vidfuse(lambda: vf.LogLinearPool(weights="uniform")),
    "linear optimum": _vidfuse(vf.LinearPool),
    "uniform linear (scikit-learn's soft voting)": _vidfuse(lambda: vf.LinearPool(weights="uniform")),
    "accuracy linear": _vidfuse(lambda: vf.LinearPool(weights="accuracy")),
    "majority vote": _vidfuse(vf.MajorityVote),
    "Caruana, 50 rounds": _caruana,
    "scikit-learn's stacking": _sklearn_stacking,
    "best single": _best_single,
}


UNIFORM = ("uniform log-linear", "uniform linear (scikit-learn's soft voting)")


def main() -> None:
    """Run every rule on every case and print mean ranks, means, and the comparison with uniform."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aeon", type=Path, help="unpacked aeon wheel (the folder that holds datasets/data)")
    parser.add_argument("--dumps", type=Path, help="folder of published predictions, instead")
    parser.add_argument(
        "--peer", nargs="*", default=[], metavar="NAME=PYTHON", help="a package's rules, by that Python"
    )
    parser.add_argument("--peer-seconds", type=float, default=600.0, help="what each peer gets for all cases")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="*", default=[7, 107, 207], help="of the splits of dumps")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "vidfuse-quality")
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--rules", nargs="*", help="only these besides the default, to be quick")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cases = list(dump_cases(options.dumps, options.seeds) if options.dumps else _classifier_cases(options))
    peers: dict[str, list[Array]] = {}
    for name, _, python in (text.partition("=") for text in options.peer):
        peers |= _peer(name, python, cases, options.peer_seconds)
    rules = {name: rule for name, rule in RULES.items() if options.rules is None or name in (DEFAULT, *options.rules)}
    names = [*rules, *([GROUPED] if options.dumps else []), *peers]
    loss, hits, spread = np.empty((len(cases), len(names))), np.empty((len(cases), len(names))), np.empty(len(cases))
    for row, case in enumerate(cases):
        each = []
        for column, name in enumerate(names):
            if name in rules:
                log_q = rules[name](case.fit, case.labels, case.test)
            elif name == GROUPED:
                log_q = _grouped(case)
            else:
                log_q = peers[name][row]
            each.append(-log_q[np.arange(len(case.truth)), case.truth])
            loss[row, column], hits[row, column] = each[-1].mean(), (log_q.argmax(axis=1) == case.truth).mean()
        shared = [names.index(rule) for rule in UNIFORM if rule in names]
        uniform = min(shared, key=lambda column: loss[row, column]) if shared else 0
        spread[row] = (each[0] - each[uniform]).std() / np.sqrt(len(case.truth))
    _report(cases, names, loss, hits, spread, options)


def _classifier_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield every repetition and size of every set of scikit-learn's classifiers."""
    for name in options.sets:
        for seed in range(options.repeats):
            try:
                given = predictions(name, seed, options.aeon, options.cache)
            except FileNotFoundError as error:
                print(f"left out {name}: {error}")
                break
            for size in SETS[name][2]:
                yield Case(
                    name, seed, size, given.log_p[:size], given.labels[:size], None,
                    given.log_p[size:], given.labels[size:],
                )  # fmt: skip


def _peer(name: str, python: str, cases: list[Case], seconds: float) -> dict[str, list[Array]]:
    """Return the log-likelihoods of each of a peer's rules, for all cases."""
    with tempfile.TemporaryDirectory() as folder:
        for row, case in enumerate(cases):
            fit, test = (np.exp(log_p).swapaxes(0, 1) for log_p in (case.fit, case.test))
            np.savez(f"{folder}/case-{row:04}.npz", fit=fit, labels=case.labels, test=test)
        worker = Path(__file__).with_name("quality_peers.py")
        subprocess.run([python, worker, name, folder, str(seconds)], check=True)
        done = [dict(np.load(path)) for path in sorted(Path(folder).glob(f"{name}-case-*.npz"))]
    if len(done) < len(cases):
        print(f"left out {name}: {len(done)} of {len(cases)} cases in {seconds:.0f} s")
        return {}
    return {rule: [np.log(np.maximum(case[rule], 1e-44)) for case in done] for rule in done[0]}


def _report(
    cases: list[Case], names: list[str], loss: Array, hits: Array, spread: Array, options: argparse.Namespace
) -> None:
    unique = np.unique([case.name for case in cases])
    print(f"{len(cases)} cases, {len(unique)} data sets of {len({family(name) for name in unique})} families")
    others = [column for column, name in enumerate(names) if name in (DEFAULT, GROUPED) or "vidfuse" not in name]
    print("\nThe default among rules from elsewhere")
    peers = _table([names[column] for column in others], loss[:, others], hits[:, others], cases)
    print("\nWith vidfuse's other options")
    everything = _table(names, loss, hits, cases)
    each = [
        {"set": case.name, "seed": case.seed, "size": case.size,
         **{name: [round(float(a), 5), round(float(b), 5)] for name, a, b in zip(names, *pair, strict=True)}}
        for case, pair in zip(cases, zip(loss, hits, strict=True), strict=True)
    ]  # fmt: skip
    if not set(UNIFORM) <= set(names):
        return
    worse = loss[:, 0] - np.minimum(*(loss[:, names.index(rule)] for rule in UNIFORM))
    print(f"\nThe default is worse than the better uniform pool in {int((worse > 0).sum())} of {len(cases)} cases, "
          f"by more than one standard error in {int((worse > spread).sum())}.")  # fmt: skip
    by_case = {}
    for set_name, size in dict.fromkeys((case.name, case.size) for case in cases):
        part = worse[[case.name == set_name and case.size == size for case in cases]]
        error = float(part.std(ddof=1) / np.sqrt(len(part))) if len(part) > 1 else None
        by_case[f"{set_name} at {size}"] = {"default - uniform": float(part.mean()), "standard error": error}
        print(f"  {set_name + ' at ' + str(size):<26} {part.mean():+.4f} nats" + (f" ± {error:.4f}" if error else ""))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"cases": len(cases), "sets": unique.tolist(), "among rules from elsewhere": peers,
                   "with own options": everything, "against the better uniform pool": by_case,
                   "each case: NLL, accuracy": each}  # fmt: skip
        options.out.write_text(json.dumps(content, indent=1) + "\n")


def _table(names: list[str], loss: Array, hits: Array, cases: list[Case]) -> list[dict[str, object]]:
    """Print and return mean ranks with intervals (a bootstrap over data sets) and mean scores, best first."""
    sets = np.array([family(case.name) for case in cases])
    rng, unique, rows = np.random.default_rng(0), np.unique(sets), []
    draws = [np.concatenate([np.flatnonzero(sets == s) for s in rng.choice(unique, len(unique))]) for _ in range(1000)]
    ranks = {"NLL": rankdata(loss.round(9), axis=1), "accuracy": rankdata(-hits.round(9), axis=1)}
    sizes = list(dict.fromkeys(case.size for case in cases))
    for column, name in enumerate(names):
        row: dict[str, object] = {"rule": name}
        for what, rank in ranks.items():
            row[f"{what} rank"] = float(rank[:, column].mean())
            means = [rank[draw, column].mean() for draw in draws]
            row[f"{what} rank interval"] = [float(v) for v in np.percentile(means, [2.5, 97.5])]
        for size in sizes:
            row[f"NLL at {size}"] = float(loss[[case.size == size for case in cases], column].mean())
            row[f"accuracy at {size}"] = float(hits[[case.size == size for case in cases], column].mean())
        rows.append({**row, "accuracy": float(hits[:, column].mean())})
    rows.sort(key=lambda row: row["NLL rank"])
    head = "".join(f"{'NLL at ' + str(size):>13}" for size in sizes)
    print(f"{'rule':<44}{'NLL rank':>22}{'accuracy rank':>22}  accuracy{head}")
    for row in rows:
        text = f"{row['rule']:<44}"
        for what in ranks:
            low, high = row[f"{what} rank interval"]
            text += f"{row[f'{what} rank']:>8.2f} ({low:5.2f}-{high:5.2f})"
        print(text + f"  {row['accuracy']:.4f}  " + "".join(f"{row[f'NLL at {size}']:>13.4f}" for size in sizes))
    return rows


if __name__ == "__main__":
    main()
