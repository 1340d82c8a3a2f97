"""How fast the searches are, beside the plain NumPy way, in one run: ratios of processor time.

    python benchmarks/selection_speed.py                    # a few minutes
    python benchmarks/selection_speed.py --large            # 2^20 subsets too

Both sides start from the same float32 log-likelihoods in memory and do the whole task, pruning included. The plain
way is what a careful user writes: members contiguous, weighted sums in place, argmax, no repeated work. The data are
simulated: signal of random difficulty, confusions that members share, noise of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import vidfuse as vf
from vidfuse.fusion.selection.greedy import greedy_search
from vidfuse.fusion.selection.rivals import find_rivals

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


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the least of several processor times (a busy machine disturbs them least), and the last result."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        result = call()
        times.append(time.process_time() - start)
    return min(times), result


def check_random_subsets(stack: Any, z: np.ndarray, y: np.ndarray, weights: np.ndarray, found: Any, count: int) -> int:
    """Return how many of `count` random subsets have exactly the accuracy of a full float64 recomputation."""
    rng = np.random.default_rng(1)
    equal = 0
    for index in rng.integers(0, len(found.table), count):
        names = found.table.members_of(int(index))
        chosen = [stack.members.index(name) for name in names]
        share = weights[chosen] / weights[chosen].sum()
        total = share[0] * z[:, chosen[0]].astype(np.float64)
        for w, j in zip(share[1:], chosen[1:], strict=True):
            total += w * z[:, j]
        equal += int(abs((total.argmax(1) == y).mean() - found.table.scores[index]) < 1e-12)
    return equal


def main() -> None:
    """Run the comparisons and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="2^20 subsets and 2^12 log-linear losses too")
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    n, k = options.videos, options.classes
    rows: list[dict[str, Any]] = []

    def report(task: str, seconds: float, plain: float | None = None, **more: Any) -> None:
        row = {"task": task, "cpu_seconds": seconds, **more}
        if plain is not None:
            row |= {"plain_numpy_cpu_seconds": plain, "ratio": plain / seconds}
        rows.append(row)
        print(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}), flush=True)

    z, y = simulate(n, k, 7)
    members = [np.ascontiguousarray(z[:, j]) for j in range(7)]
    stack = vf.LogitStack.from_arrays({f"m{j}": one for j, one in enumerate(members)}, labels=y, kind="log-likelihoods")
    pool = vf.LogLinearPool(weights="accuracy")
    seconds, found = timed(lambda: vf.search_subsets(stack, "accuracy", pool), options.repeats)
    weights = np.array([(one.argmax(1) == y).mean() for one in members])
    plain, scores = timed(lambda: plain_subsets(members, y, weights.astype(np.float32)), 1)
    exact = check_random_subsets(stack, z, y, weights, found, 127)
    report(
        "accuracy of all 127 subsets of 7 members", seconds, plain, exact_of_127=exact,
        largest_difference=float(np.abs(np.sort(scores) - np.sort(found.table.scores)).max()),
    )  # fmt: skip
    pruning, _ = timed(lambda: find_rivals(stack, y, np.zeros(7), linear=False), options.repeats)
    seconds, greedy = timed(lambda: greedy_search(stack, "accuracy", 25, kind="log-linear"), options.repeats)
    plain, order = timed(lambda: plain_greedy(members, y, 25), 1)
    same = [name for name, _ in greedy.path] == [f"m{j}" for j in order]
    report("greedy for accuracy, 25 rounds, 7 members", seconds, plain, same_path=same, pruning_cpu_seconds=pruning)
    seconds, _ = timed(lambda: greedy_search(stack, "nll", 25), options.repeats)
    report("greedy for the linear NLL, 25 rounds, 7 members", seconds)
    seconds, _ = timed(lambda: vf.search_subsets(stack, "nll", pool), 1)
    report("log-linear NLL of all 127 subsets of 7 members", seconds)

    for m in (15, 20) if options.large else (15,):
        z, y = simulate(n, k, m)
        stack = vf.LogitStack.from_arrays(z, labels=y, kind="log-likelihoods")
        seconds, found = timed(lambda s=stack: vf.search_subsets(s, "accuracy", pool), 1)
        weights = np.array([(z[:, j].argmax(1) == y).mean() for j in range(m)])
        exact = check_random_subsets(stack, z, y, weights, found, 200 if m == 15 else 40)
        report(f"accuracy of all 2^{m} subsets", seconds, exact=f"{exact} of {200 if m == 15 else 40}")
        linear = vf.LinearPool(weights="accuracy")
        seconds, _ = timed(lambda s=stack, p=linear: vf.search_subsets(s, "nll", p), 1)
        report(f"linear NLL of all 2^{m} subsets", seconds)
        if options.large and m == 15:
            twelve = stack.select(stack.members[:12])
            seconds, _ = timed(lambda s=twelve: vf.search_subsets(s, "nll", pool), 1)
            report("log-linear NLL of all 2^12 subsets", seconds)

    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "numpy": np.__version__,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"videos": n, "classes": k, "machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
