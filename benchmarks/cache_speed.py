"""Writing, opening and reading a logit cache beside plain safetensors and .npy files, in one run on one machine.

``python benchmarks/cache_speed.py [--members 7] [--videos 20000] [--classes 400] [--repeats 15] [--folder DIR]``

Only the ratios mean anything: both sides do the same work on the same disk, in turns, and the best of each is taken.
Plain safetensors parts are published with the same steps as the cache's: temporary name, flush of the file, final
name, flush of the folder. `in_place` is a writer that opens the final name at once, and may leave a torn file there.
`with_expected_ids` opens caches that name their videos and their model, as extraction and `save` write them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy

import vidfuse as vf
from vidfuse.cache import format as part_format
from vidfuse.cache.reader import open_cache
from vidfuse.cache.upkeep import consolidate
from vidfuse.cache.writer import CacheWriter
from vidfuse.stack.open import load_stack

ROWS = 1024
RESULTS = Path(__file__).parent / "results" / "cache_speed.json"


def best_of(repeats: int, *sides: Callable[[], object]) -> list[float]:
    """Seconds of each side, the best of several runs that take turns."""
    times = [[] for _ in sides]
    for _ in range(repeats):
        for side, taken in zip(sides, times, strict=True):
            started = time.perf_counter()
            side()
            taken.append(time.perf_counter() - started)
    return [min(taken) for taken in times]


def write_plain(folder: Path, ids: list[str], scores: np.ndarray, *, in_place: bool = False) -> None:
    """Write plain safetensors parts with the flushes that a durable file needs."""
    folder.mkdir()
    for start in range(0, len(ids), ROWS):
        names = np.array(ids[start : start + ROWS]).astype("S16").view(np.uint8).reshape(-1, 16)
        final = folder / f"{start}.safetensors"
        path = final if in_place else folder / f".tmp-{start}"
        safetensors.numpy.save_file({"ids": names, "scores": scores[start : start + ROWS]}, path)
        flush(path)
        if not in_place:
            os.rename(path, final)
        flush(folder)


def flush(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_cache(folder: Path, ids: list[str], scores: np.ndarray, **described: object) -> None:
    """Write the same parts as a cache."""
    with CacheWriter(folder, **described) as writer:
        for start in range(0, len(ids), ROWS):
            writer.append(ids[start : start + ROWS], scores[start : start + ROWS])


def total(arrays: list[np.ndarray]) -> float:
    """Read every number once, in blocks that stay in the CPU cache."""
    return sum(float(array[start : start + 512].sum()) for array in arrays for start in range(0, len(array), 512))


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("members", 7), ("videos", 20_000), ("classes", 400), ("repeats", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cache-speed-", dir=options.folder))
    ids = [f"video{number:06d}" for number in range(options.videos)]
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((options.videos, options.classes), dtype=np.float32)
    size = scores.nbytes / 1e9
    numbers = itertools.count()
    figures: dict[str, object] = {"members": options.members, "videos": options.videos, "classes": options.classes}
    try:
        plain, in_place, cache = best_of(
            options.repeats,
            lambda: write_plain(folder / f"plain{next(numbers)}", ids, scores),
            lambda: write_plain(folder / f"plain{next(numbers)}", ids, scores, in_place=True),
            lambda: write_cache(folder / f"written{next(numbers)}", ids, scores),
        )
        figures["write"] = {
            "plain_gb_s": size / plain,
            "cache_gb_s": size / cache,
            "ratio": plain / cache,
            "in_place_ratio": in_place / cache,
        }
        stack = folder / "stack"
        for member in range(options.members):
            write_cache(stack / f"member{member}", ids, scores)
            np.save(folder / f"member{member}.npy", scores)
            described = {"expected_ids": ids, "fingerprint": {"checkpoint": member}}
            write_cache(folder / "described" / f"member{member}", ids, scores, **described)
        opening, described = best_of(
            4 * options.repeats, lambda: load_stack(stack), lambda: load_stack(folder / "described")
        )
        started = time.process_time()
        for _ in range(options.repeats):
            load_stack(stack)
        busy = (time.process_time() - started) / options.repeats
        figures["open_ms"] = {"parts": 1e3 * opening, "parts_cpu": 1e3 * busy, "with_expected_ids": 1e3 * described}
        shutil.rmtree(folder / "described")

        def verified() -> None:
            part_format._verified.clear()
            loaded = load_stack(stack)
            total([loaded.scores(name) for name in loaded.members])

        (first,) = best_of(2, verified)
        figures["first_use_gb_s"] = options.members * size / first

        mapped = [np.load(folder / f"member{member}.npy", mmap_mode="r") for member in range(options.members)]
        parts = load_stack(stack)

        def from_npy() -> None:
            total(mapped)

        caches = [open_cache(stack / name) for name in parts.members]

        def from_cache() -> None:
            for cache in caches:
                for start in range(0, len(cache), 512):
                    cache.source.take(slice(start, min(start + 512, len(cache)), 1)).sum()

        def blocks(loaded: vf.LogitStack) -> None:
            for _ in loaded.iter_blocks():
                pass

        npy, cached = best_of(options.repeats, from_npy, from_cache)
        in_memory = vf.LogitStack.from_arrays({f"member{m}": array for m, array in enumerate(mapped)})
        npy_blocks, parts_blocks = best_of(options.repeats, lambda: blocks(in_memory), lambda: blocks(parts))
        figures["read_parts"] = {"npy_gb_s": options.members * size / npy, "ratio": npy / cached}
        consolidate(stack)
        (opening,) = best_of(options.repeats, lambda: load_stack(stack))
        figures["open_ms"]["consolidated"] = 1e3 * opening

        joined = load_stack(stack)

        def from_consolidated() -> None:
            total([joined.scores(name) for name in joined.members])

        from_consolidated()
        npy, cached = best_of(options.repeats, from_npy, from_consolidated)
        figures["read_consolidated"] = {"npy_gb_s": options.members * size / npy, "ratio": npy / cached}
        again, joined_blocks = best_of(options.repeats, lambda: blocks(in_memory), lambda: blocks(joined))
        figures["log_likelihood_blocks"] = {
            "parts_to_npy_ratio": npy_blocks / parts_blocks,
            "consolidated_to_npy_ratio": again / joined_blocks,
        }
    finally:
        shutil.rmtree(folder)
    text = json.dumps({**figures, "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]}}, indent=1)
    print(text)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
