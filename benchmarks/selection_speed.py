"""How fast the searches are, beside the plain NumPy way, in one run: ratios of wall time, processor time beside it.

    python benchmarks/selection_speed.py                    # a few minutes
    python benchmarks/selection_speed.py --large            # 2^20 subsets too

Both sides start from the same float32 log-likelihoods in memory and do the whole task, pruning included, each with the
threads that it uses by itself; what a user waits for is compared, wall time, on a machine that does nothing else. Where
both sides are timed, they are timed in turns, and the least of each is kept. The plain way is what a careful user
writes: members contiguous, weighted sums in place, argmax, no repeated work. The data are simulated: signal of random
difficulty, confusions that members share, noise of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import vidfuse as vf
from vidfuse.selection.greedy import greedy_search
from vidfuse.selection.rivals import find_rivals

RESULTS = Path(__file__).parent / "results" / "selection_speed.json"


def simulate(n: int, k: int, m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return log-likelihoods (N, M, K), float32, and labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    shared = rng.normal(size=(n, k)).astype(np.float32)
    difficulty = rng.normal(0, 2, n)
    z = np.empty((n, m, k), np.float32)
    for j, skill in enumerate(rng.uniform(4.2, 5.8, m)):
        z[:, j] = shared + rng.normal(size=(n, k)).astype(np.float32)
        z[np.arange(n), j, y] += skill + difficulty + rng.normal(size=n)
    z *= 1.5
    z -= z.max(-1, keepdims=True)
    z -= np.log(np.exp(z).sum(-1, keepdims=True))
    return z, y


def plain_subsets(members: list[np.ndarray], y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the accuracy of every subset of a log-linear pool."""
    scores = []
    for mask in range(1, 1 << len(members)):
        chosen = [j for j in range(len(members)) if mask >> j & 1]
        total = weights[chosen[0]] * members[chosen[0]]
        for j in chosen[1:]:
            total += weights[j] * members[j]
        scores.append((total.argmax(1) == y).mean())
    return np.array(scores)


def plain_greedy(members: list[np.ndarray], y: np.ndarray, rounds: int) -> list[int]:
    """Return the members that greedy selection for accuracy adds."""
    total = np.zeros_like(members[0])
    buffer = np.empty_like(total)
    order = []
    for _ in range(rounds):
        hits = [(np.add(total, one, out=buffer).argmax(1) == y).sum() for one in members]
        best = int(np.argmax(hits))
        total += members[best]
        order.append(best)
    return order


@dataclass
class Timed:
    """The least wall and processor times of several calls, in seconds, and the last result."""

    wall: float
    cpu: float
    result: Any


def timed(*calls: Callable[[], Any], repeats: int) -> list[Timed]:
    """Time several calls in turns."""
    times: list[list[tuple[float, float]]] = [[] for _ in calls]
    results: list[Any] = [None] * len(calls)
    for _ in range(repeats):
        for index, call in enumerate(calls):
            wall, cpu = time.perf_counter(), time.process_time()
            results[index] = call()
            times[index].append((time.perf_counter() - wall, time.process_time() - cpu))
    return [Timed(*map(min, zip(*own, strict=True)), result=result) for own, result in zip(times, results, strict=True)]


def full(log_p: np.ndarray, y: np.ndarray, weights: np.ndarray, objective: str) -> Callable[[list[int]], float]:
    """Return what recomputes the score of some members in float64, from all their log-likelihoods (N, M, K)."""
    rows = np.arange(len(y))

    def score(chosen: list[int]) -> float:
        share = weights[chosen] / weights[chosen].sum()
        if objective == "linear NLL":
            return float(-np.log(np.exp(log_p[rows, :, y][:, chosen].astype(np.float64)) @ share).mean())
        total = share[0] * log_p[:, chosen[0]].astype(np.float64)
        for w, j in zip(share[1:], chosen[1:], strict=True):
            total += w * log_p[:, j]
        if objective == "accuracy":
            return float((total.argmax(1) == y).mean())
        top = total.max(1)
        return float((top + np.log(np.exp(total - top[:, None]).sum(1)) - total[rows, y]).mean())

    return score


def check(found: Any, stack: Any, score: Callable[[list[int]], float], within: float = 1e-12) -> dict[str, Any]:
    """Compare 200 random subsets with their full recomputation."""
    differences = []
    for index in np.random.default_rng(1).choice(len(found.table), min(200, len(found.table)), replace=False):
        chosen = [stack.members.index(name) for name in found.table.members_of(int(index))]
        differences.append(abs(score(chosen) - found.table.scores[index]))
    equal = sum(difference <= within for difference in differences)
    return {
        f"equal within {within:g}": f"{equal} of {len(differences)}",
        "largest difference": f"{max(differences):.1e}",
    }


def check_ties(m: int = 10, n: int = 1000) -> dict[str, Any]:
    """Compare accuracy with the pool's own where the members' logits are whole numbers, so that many classes tie."""
    z, y = simulate(n, 400, m)
    stack = vf.LogitStack.from_arrays(np.round(z - z.min(-1, keepdims=True)), labels=y)
    result = {}
    for pool_class in (vf.LogLinearPool, vf.LinearPool):
        pool = pool_class(weights="uniform")

        def own(chosen: list[int], pool: Any = pool) -> float:
            part = stack.select([stack.members[j] for j in chosen])
            return float(pool.fit(part).score(part))

        result[pool_class.__name__] = check(vf.search_subsets(stack, "accuracy", pool), stack, own)
    return result


def main() -> None:
    """Run the comparisons and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="2^20 subsets and 2^12 log-linear losses too")
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    n, k = options.videos, options.classes
    rows: list[dict[str, Any]] = []

    def report(task: str, ours: Timed, plain: Timed | None = None, **more: Any) -> None:
        row = {"task": task, "wall_seconds": ours.wall, "cpu_seconds": ours.cpu}
        if plain is not None:
            row |= {"plain_numpy_wall_seconds": plain.wall, "plain_numpy_cpu_seconds": plain.cpu}
            row |= {"ratio": plain.wall / ours.wall, "cpu_ratio": plain.cpu / ours.cpu}
        row |= more
        rows.append(row)
        print(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}), flush=True)

    z, y = simulate(n, k, 7)
    members = [np.ascontiguousarray(z[:, j]) for j in range(7)]
    stack = vf.LogitStack.from_arrays({f"m{j}": one for j, one in enumerate(members)}, labels=y, kind="log-likelihoods")
    pool = vf.LogLinearPool(weights="accuracy")
    weights = np.array([(one.argmax(1) == y).mean() for one in members])
    ours, plain = timed(
        lambda: vf.search_subsets(stack, "accuracy", pool),
        lambda: plain_subsets(members, y, weights.astype(np.float32)),
        repeats=options.repeats,
    )
    log_p = stack.log_likelihoods()
    equal = check(ours.result, stack, full(log_p, y, weights, "accuracy"))
    report("accuracy of all 127 subsets of 7 members", ours, plain, **equal)
    ours, plain, pruning = timed(
        lambda: greedy_search(stack, "accuracy", 25, pool="log-linear"),
        lambda: plain_greedy(members, y, 25),
        lambda: find_rivals(stack, y, np.zeros(7), linear=False),
        repeats=options.repeats,
    )
    same = [name for name, _ in ours.result.path] == [f"m{j}" for j in plain.result]
    report(
        "greedy for accuracy, 25 rounds, 7 members", ours, plain,
        same_path=same, pruning_wall_seconds=pruning.wall, pruning_cpu_seconds=pruning.cpu,
    )  # fmt: skip
    (ours,) = timed(lambda: greedy_search(stack, "nll", 25), repeats=options.repeats)
    report("greedy for the linear NLL, 25 rounds, 7 members", ours)
    (ours,) = timed(lambda: vf.search_subsets(stack, "nll", pool), repeats=1)
    equal = check(ours.result, stack, full(log_p, y, weights, "log-linear NLL"), within=1e-7)
    report("log-linear NLL of all 127 subsets of 7 members", ours, **equal)

    for m in (15, 20) if options.large else (15,):
        z, y = simulate(n, k, m)
        stack = vf.LogitStack.from_arrays(z, labels=y, kind="log-likelihoods")
        weights = np.array([(z[:, j].argmax(1) == y).mean() for j in range(m)])
        (ours,) = timed(lambda s=stack: vf.search_subsets(s, "accuracy", pool), repeats=1)
        log_p = stack.log_likelihoods()
        equal = check(ours.result, stack, full(log_p, y, weights, "accuracy"))
        report(f"accuracy of all 2^{m} subsets", ours, **equal)
        linear = vf.LinearPool(weights="accuracy")
        (ours,) = timed(lambda s=stack, p=linear: vf.search_subsets(s, "nll", p), repeats=1)
        equal = check(ours.result, stack, full(log_p, y, weights, "linear NLL"), within=1e-7)
        report(f"linear NLL of all 2^{m} subsets", ours, **equal)
        if options.large and m == 15:
            part = stack.select(stack.members[:12])
            (ours,) = timed(lambda s=part: vf.search_subsets(s, "nll", pool), repeats=1)
            equal = check(ours.result, part, full(log_p, y, weights, "log-linear NLL"), within=1e-7)
            report("log-linear NLL of all 2^12 subsets", ours, **equal)

    ties = check_ties()
    print(json.dumps({"whole-number logits, against the pool itself": ties}))
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "numpy": np.__version__,
    }
    options.out.parent.mkdir(exist_ok=True)
    content = {"videos": n, "classes": k, "machine": machine, "rows": rows, "ties": ties}
    options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
