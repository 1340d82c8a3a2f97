"""Fit on two workers of dask or ray, kill one of them during the fit, and hold all three results to the same bits.

``python tests/reliability/cluster.py dask`` and ``python tests/reliability/cluster.py ray`` print what was found; the
extra `cluster` installs both engines. The test suite runs the first.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import os
import pickle
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import numpy as np

import vidfuse as vf
from vidfuse.fusion._solver import passes

CLASSES, MEMBERS, SHARDS, VIDEOS = 10, "abcd", 3, 1500


@contextmanager
def dask_workers() -> Iterator[Callable[[], dict[str, int]]]:
    """Two local processes of dask; gives what returns their process ids."""
    from dask.distributed import Client

    with (
        Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client,
        joblib.parallel_config(backend="dask"),
    ):
        yield lambda: client.run(os.getpid)


@contextmanager
def ray_workers() -> Iterator[Callable[[], dict[str, int]]]:
    """Two local processes of ray; gives what returns their process ids."""
    import psutil
    import ray
    from ray.util.joblib import register_ray

    def pids() -> dict[str, int]:
        titles = {process: " ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)}
        return {title: process.pid for process, title in titles.items() if "PoolActor" in title}

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    register_ray()
    try:
        with joblib.parallel_config(backend="ray", ray_remote_args={"max_restarts": 3, "max_task_retries": 3}):
            yield pids
    finally:
        ray.shutdown()


def write_shards(folder: Path) -> vf.LogitStack:
    """Write the members' caches in shards, and load them as one set."""
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        y = rng.integers(0, CLASSES, VIDEOS)
        logits = {
            name: (rng.normal(size=(VIDEOS, CLASSES)) + (1 + 0.3 * m) * np.eye(CLASSES)[y]).astype(np.float32)
            for m, name in enumerate(MEMBERS)
        }
        ids = [f"shard{shard}video{number:05d}" for number in range(VIDEOS)]
        vf.LogitStack.from_arrays(logits, ids=ids, labels=y).save(folder / "caches" / "val" / f"shard{shard}")
    return vf.load_stack(folder / "caches" / "val")


def compare(engine: str) -> dict[str, Any]:
    """Fit in one process, on two workers, and on two of which one is killed; return what differs.

    Raises:
        AssertionError: A result differs, a worker was sent scores, or no worker was killed.
    """
    passes._PART, passes._BLOCK = 1 << 14, 1 << 13  # many small tasks, as a large stack has many large ones
    with tempfile.TemporaryDirectory() as name:
        stack = write_shards(Path(name))
        weights = np.full(len(stack), 1 / len(stack))
        with passes.Passes(stack, stack.labels, weights, np.zeros(len(MEMBERS))) as sums:
            sizes = [len(pickle.dumps(part)) for part in sums._parts]
            scores = [16 * CLASSES * len(part.labels) for part in sums._parts]
        # A task is paths, row numbers, and a label and a weight for each video: no scores, no ids.
        assert all(size < 4000 + 16 * rows / (16 * CLASSES) for size, rows in zip(sizes, scores, strict=True)), sizes
        results, seconds = {"one process": _fit(stack, None)}, {}
        start = time.perf_counter()
        results["two workers, as the page says"] = _run_page(engine, Path(name), stack)
        seconds["two workers, as the page says"] = round(time.perf_counter() - start, 2)
        with {"dask": dask_workers, "ray": ray_workers}[engine]() as workers, _kill_at_third_pass(workers) as killed:
            start = time.perf_counter()
            results["one of two killed"] = _fit(stack, 2)
            seconds["one of two killed"] = round(time.perf_counter() - start, 2)
        assert len(killed) == 1
        for case, found in results.items():
            np.testing.assert_array_equal(found, results["one process"], err_msg=case)
        tasks = {"tasks of a pass": len(sizes), "bytes of a task": max(sizes), "bytes of its scores": max(scores)}
        return {"engine": engine, **tasks, "killed": len(killed), "seconds": seconds, "same bits": True}


def _run_page(engine: str, folder: Path, stack: vf.LogitStack) -> np.ndarray:
    """Run the engine's code of the page on large data; return what the recipe that it writes predicts."""
    page = (Path(__file__).parents[2] / "docs" / "large-data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- needs: cluster -->\n```python\n(.*?)```", page, re.DOTALL)
    (code,) = [block for block in blocks if f'backend="{engine}"' in block]
    with contextlib.chdir(folder):
        exec(compile(code, "large-data.md", "exec"), {"__name__": "__main__"})  # noqa: S102 -- the page is our own
        if engine == "ray":
            importlib.import_module("ray").shutdown()
        return vf.load_recipe("ensemble.json").predict_log_proba(stack)


@contextmanager
def _kill_at_third_pass(workers: Callable[[], dict[str, int]]) -> Iterator[list[int]]:
    """Kill one worker as the third of the dozens of passes of a fit is handed out; gives the list of those killed."""
    real, count, killed = passes.Passes.moments, itertools.count(1), []

    def moments(self: Any, *given: Any, **options: Any) -> Any:
        if next(count) == 3:
            killed.extend(list(workers().values())[:1])
            os.kill(killed[0], signal.SIGKILL)
        return real(self, *given, **options)

    passes.Passes.moments = moments  # type: ignore[method-assign]
    try:
        yield killed
        assert next(count) > 4, "the fit was over"
    finally:
        passes.Passes.moments = real  # type: ignore[method-assign]


def _fit(stack: vf.LogitStack, n_jobs: int | None) -> np.ndarray:
    """Return what a fitted pool predicts."""
    return vf.LogLinearPool(n_jobs=n_jobs).fit(stack).predict_log_proba(stack)


def main() -> None:
    """Print the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=["dask", "ray"])
    print(json.dumps(compare(parser.parse_args().engine)))


if __name__ == "__main__":
    main()
