"""How fast are the learned fits? Every ratio is taken side by side, in one run, from the same stack of logits.

    python benchmarks/fusion_speed.py [--autogluon PYTHON] [--repeats 5] [--cache-gb 0] [--dask PYTHON] [--out FILE]
    python benchmarks/fusion_speed.py --default --autogluon PYTHON [--repeats 5] [--out FILE]

Log-linear (no shrinkage): against SciPy's L-BFGS-B with the exact gradient on the same objective, in float64, which
also has to build its array of log-likelihoods from the stack. Linear: against greedy selection on the true class's
column, and AutoGluon's own `EnsembleSelection`, 25 rounds each; AutoGluon gets the members' probabilities, and
so does the linear pool: once with the building and checking of the stack inside the timed region, and once without.
`--cache-gb` writes a cache of that size and fits it, and `--dask` fits a part of it once more on two dask workers.
`--default` times the default instead, calibration, weights per class and the choice of their strengths included, from a
stack of logits, without groups and with groups of five videos, against AutoGluon's 25 rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

import vidfuse as vf
from vidfuse.cache.writer import CacheWriter
from vidfuse.fusion._solver.linear import fit_linear

AUTOGLUON = """
import sys, time, numpy as np
from autogluon.core.metrics import log_loss
from autogluon.core.models.greedy_ensemble.ensemble_selection import EnsembleSelection
data = np.load(sys.argv[1])
rng = np.random.RandomState(0)
selection = EnsembleSelection(ensemble_size=25, problem_type="multiclass", metric=log_loss, random_state=rng)
start, cpu = time.perf_counter(), time.process_time()
selection.fit(list(data["p"]), data["y"])
print(time.perf_counter() - start, time.process_time() - cpu)
np.save(sys.argv[2], selection.weights_)
"""

DASK = """
import json, sys, joblib, numpy as np, vidfuse as vf
from dask.distributed import Client
if __name__ == "__main__":
    part = vf.load_stack(sys.argv[1], verify=False)[:40_000]
    one = vf.LogLinearPool(shrinkage=None).fit(part)
    with Client(n_workers=2, threads_per_worker=1), joblib.parallel_config(backend="dask", n_jobs=2):
        two = vf.LogLinearPool(shrinkage=None).fit(part)
    nll = [float(-np.take_along_axis(p.predict_log_proba(part), part.labels[:, None], 1).mean()) for p in (one, two)]
    print(json.dumps({"two dask workers: largest difference of a weight": float(abs(one.weights_ - two.weights_).max()),
                      "two dask workers: difference of the NLL": abs(nll[0] - nll[1])}))
"""


def generate(n: int, classes: int, members: int, seed: int = 0) -> tuple[dict[str, NDArray[np.float32]], NDArray[Any]]:
    """Make correlated, miscalibrated logits of members that differ in skill."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    shared = rng.standard_normal((n, classes), dtype=np.float32)
    logits = {}
    for m in range(members):
        z = 1.2 * shared + 1.5 * rng.standard_normal((n, classes), dtype=np.float32)
        z[np.arange(n), y] += 3.0 + 0.3 * (m % 5)
        logits[f"m{m:02d}"] = z * np.float32(0.8 + 0.1 * (m % 7))
    return logits, y


def best(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the least wall time of some runs, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    return min(times), result


def lbfgs(stack: vf.LogitStack, y: NDArray[Any]) -> tuple[float, NDArray[np.float64]]:
    """Fit β with L-BFGS-B and the exact gradient, in float64."""
    members, n, classes = len(stack.members), len(stack), stack.n_classes
    log_p = stack.log_likelihoods().swapaxes(0, 1).astype(np.float64)
    flat = np.ascontiguousarray(log_p).reshape(members, -1)
    true = log_p[:, np.arange(n), y].sum(axis=1) / n

    def objective(beta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = (beta @ flat).reshape(n, classes)
        peak = z.max(axis=1)
        z -= peak[:, None]
        np.exp(z, out=z)
        total = z.sum(axis=1)
        z /= (total * n)[:, None]
        return float((np.log(total) + peak).mean() - beta @ true), flat @ z.reshape(-1) - true

    found = minimize(objective, np.full(members, 1 / members), jac=True, method="L-BFGS-B",
                     bounds=[(0, None)] * members, options={"ftol": 1e-13, "gtol": 1e-7, "maxiter": 500})  # fmt: skip
    return float(objective(found.x)[0]), found.x


def exact_nll(logits: dict[str, NDArray[np.float32]], y: NDArray[Any], beta: NDArray[np.float64]) -> float:
    """Return a log-linear pool's NLL straight from the logits in float64."""
    z = sum(b * x.astype(np.float64) for b, x in zip(beta, logits.values(), strict=True))
    peak = z.max(axis=1)
    return float((np.log(np.exp(z - peak[:, None]).sum(axis=1)) + peak - z[np.arange(len(y)), y]).mean())


def greedy(log_true: NDArray[np.float64], rounds: int = 25) -> tuple[float, NDArray[np.float64]]:
    """Select members greedily with replacement on the true class's column (Caruana et al. 2004)."""
    true, total = np.exp(log_true), np.zeros(len(log_true))
    counts = np.zeros(log_true.shape[1])
    for done in range(rounds):
        chosen = np.log((total[:, None] + true) / (done + 1)).mean(axis=0).argmax()
        total, counts[chosen] = total + true[:, chosen], counts[chosen] + 1
    return float(-np.log(total / rounds).mean()), counts / rounds


def autogluon(
    python: Path, probabilities: dict[str, NDArray[Any]], y: NDArray[Any]
) -> tuple[list[float], NDArray[Any]]:
    """Return AutoGluon's seconds and CPU seconds for 25 rounds, by a Python that has it, and its weights."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/in.npz", p=np.stack(list(probabilities.values())), y=y)
        Path(f"{folder}/run.py").write_text(AUTOGLUON)
        arguments = [python, f"{folder}/run.py", f"{folder}/in.npz", f"{folder}/w.npy"]
        out = subprocess.run(arguments, check=True, capture_output=True, text=True)
        return [float(time) for time in out.stdout.strip().splitlines()[-1].split()], np.load(f"{folder}/w.npy")


def default_fit(n: int, classes: int, members: int, options: argparse.Namespace) -> dict[str, Any]:
    """Time the whole default fit on one generated stack, in turn with AutoGluon where there is one."""
    logits, y = generate(n, classes, members)
    stack = vf.LogitStack.from_arrays(logits, labels=y)
    stacks = {"without groups": stack, "with groups": stack.with_groups(np.arange(n) // 5)}
    probabilities = {name: np.exp(stack.log_likelihoods()[:, m]) for m, name in enumerate(stack.members)}
    rival, own, cpu, gap = [], {}, {}, 0.0
    for _ in range(options.repeats):
        rival += [autogluon(options.autogluon, probabilities, y)[0]] if options.autogluon else []
        for name, given in stacks.items():
            for jobs in (1, 2):
                case, start = f"{name}, {jobs} threads", time.process_time()
                seconds, pool = best(lambda s=given, j=jobs: vf.LogLinearPool(n_jobs=j).fit(s), 1)
                own[case] = min(seconds, own.get(case, np.inf))
                cpu[case] = min(time.process_time() - start, cpu.get(case, np.inf))
                gap = max(gap, pool.optimality_gap_)
    row: dict[str, Any] = {"N": n, "K": classes, "M": members, "largest gap": gap}
    for case, seconds in own.items():
        row |= {f"{case}: seconds": seconds, f"{case}: CPU seconds": cpu[case]}
        if rival:
            wall, processor = np.min(rival, axis=0).tolist()
            row |= {f"{case}: ratio to AutoGluon": wall / seconds, f"{case}: ratio of CPU": processor / cpu[case]}
            row |= {"AutoGluon seconds": wall, "AutoGluon CPU seconds": processor}
    return row


def compare(n: int, classes: int, members: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run both fits and their rivals on one generated stack."""
    logits, y = generate(n, classes, members)
    stack = vf.LogitStack.from_arrays(logits, labels=y)
    row: dict[str, Any] = {"N": n, "K": classes, "M": members}
    rival_time, (_, beta) = best(lambda: lbfgs(stack, y), max(1, options.repeats // 2))
    for jobs in (1, 2):
        own_time, pool = best(lambda j=jobs: vf.LogLinearPool(shrinkage=None, n_jobs=j).fit(stack), options.repeats)
        row[f"log-linear, {jobs} threads: ratio to L-BFGS"] = rival_time / own_time
    own_nll, rival_nll = exact_nll(logits, y, pool.weights_ / pool.temperature_), exact_nll(logits, y, beta)
    row |= {"log-linear seconds": own_time, "L-BFGS seconds": rival_time, "NLL - L-BFGS's": own_nll - rival_nll,
            "log-linear gap": pool.optimality_gap_}  # fmt: skip
    log_true = stack.log_likelihoods()[np.arange(n), :, y].astype(np.float64)
    linear_time, linear = best(lambda: fit_linear(log_true), options.repeats * 2)
    greedy_time, (greedy_nll, _) = best(lambda: greedy(log_true), options.repeats)
    row |= {"linear optimum, from the column, seconds": linear_time, "greedy, from the column, seconds": greedy_time,
            "linear optimum: ratio to greedy": greedy_time / linear_time,
            "linear NLL - greedy's": linear.nll - greedy_nll, "linear gap": linear.gap}  # fmt: skip
    if options.autogluon:
        probabilities = {name: np.exp(stack.log_likelihoods()[:, m]) for m, name in enumerate(stack.members)}
        own = vf.LogitStack.from_arrays(probabilities, labels=y, kind="probabilities")
        fit_time, _ = best(lambda: vf.LinearPool(floor=0.0).fit(own), options.repeats * 2)
        path_time, _ = best(lambda: vf.LinearPool(floor=0.0).fit(
            vf.LogitStack.from_arrays(probabilities, labels=y, kind="probabilities")), options.repeats)  # fmt: skip
        (gluon, _), weights = autogluon(options.autogluon, probabilities, y)
        gluon_nll = float(-np.log(np.exp(log_true) @ weights).mean())
        row |= {"linear pool, from arrays, seconds": path_time, "linear pool, from a stack, seconds": fit_time,
                "AutoGluon seconds": gluon, "linear pool, from arrays: ratio to AutoGluon": gluon / path_time,
                "linear pool, from a stack: ratio to AutoGluon": gluon / fit_time,
                "solver alone: ratio to AutoGluon": gluon / linear_time,
                "linear NLL - AutoGluon's": linear.nll - gluon_nll}  # fmt: skip
    return row


def out_of_core(gigabytes: float, folder: Path, dask: Path | None) -> dict[str, Any]:
    """Write a cache of so many gigabytes, fit it in a fresh process, and report its peak memory and rate."""
    members, classes = 7, 400
    n = int(gigabytes * 1e9 / (members * classes * 4))
    with ExitStack() as stack:
        writers = {f"m{m:02d}": stack.enter_context(CacheWriter(folder / f"m{m:02d}")) for m in range(members)}
        for start in range(0, n, 10_000):
            count = min(10_000, n - start)
            logits, y = generate(count, classes, members, seed=start)
            ids = [f"v{start + row:09d}" for row in range(count)]
            for name, writer in writers.items():
                writer.append(ids, logits[name], labels=y)
    out = subprocess.run([sys.executable, __file__, "--fit", str(folder)], check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(out.stdout)
    if dask:
        with tempfile.TemporaryDirectory() as scripts:
            script = Path(scripts, "run.py")
            script.write_text(DASK)
            out = subprocess.run([dask, script, folder], check=True, capture_output=True, text=True)
        row |= json.loads(out.stdout.strip().splitlines()[-1])
    return row


def fit_cache(folder: Path) -> dict[str, Any]:
    """Fit a cache that is larger than memory may be, then a slice of it in memory, and compare the rates."""
    stack = vf.load_stack(folder, verify=False)

    def fit(data: vf.LogitStack) -> tuple[float, vf.LogLinearPool]:
        start = time.perf_counter()
        pool = vf.LogLinearPool(shrinkage=None, n_jobs=2).fit(data)
        return time.perf_counter() - start, pool

    seconds, pool = fit(stack)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    private = _private()
    few = min(len(stack), 40_000)
    part = stack[:few]
    memory = vf.LogitStack.from_arrays({name: np.array(part.scores(name)) for name in part.members}, labels=part.labels)
    ratios = []
    for _ in range(5):  # in turn, so that a busy machine slows both down
        mapped_seconds, memory_seconds = fit(part)[0], fit(memory)[0]
        ratios.append(memory_seconds / mapped_seconds)
    return {"videos": len(stack), "GB": len(stack) * 7 * 400 * 4 / 1e9, "seconds": seconds,
            "peak GB, mapped pages included": peak, "anonymous GB": private, "gap": pool.optimality_gap_,
            "rate as a share of the in-memory fit's": float(np.median(ratios))}  # fmt: skip


def _private() -> float:
    """Return the process's own memory, without file pages that are mapped and can be dropped, in GB."""
    for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1e6
    return float("nan")


def _show(row: dict[str, Any]) -> None:
    print(*(f"{key:<44} {value:.6g}" for key, value in row.items()), "", sep="\n", flush=True)


def main() -> None:
    """Print one block of figures a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--autogluon", type=Path, help="a Python that has autogluon.core")
    parser.add_argument("--default", action="store_true", help="time the whole default fit, not optima")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache-gb", type=float, default=0.0)
    parser.add_argument("--dask", type=Path, help="a Python that has dask.distributed and vidfuse")
    parser.add_argument("--folder", type=Path, help="where the generated cache goes")
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.fit:
        print(json.dumps(fit_cache(options.fit)))
        return
    results = []
    sizes = ((10_000, 400, 7), (1_000, 100, 5)) if options.default else ((10_000, 400, 7), (10_000, 100, 50))
    for n, classes, members in sizes:
        results.append((default_fit if options.default else compare)(n, classes, members, options))
        _show(results[-1])
    if options.cache_gb:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            results.append(out_of_core(options.cache_gb, Path(folder), options.dask))
            _show(results[-1])
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
