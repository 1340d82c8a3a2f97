"""How fast is streaming prediction, beside a plain read of the same caches and a plain write of the same output?

    python benchmarks/predict_speed.py [--videos 1000000] [--members 4] [--classes 50] [--repeats 3] [--folder FOLDER]
        [--formats npz,npy,cache,parquet,csv] [--caches FOLDER] [--out FILE]

Both sides run in turns, in fresh processes: one reads every file of the caches to its end and writes as many bytes as
the output has, flushed to disk; the other is `vidfuse predict`, which also checks the digests, fuses, and keeps what it
needs to go on after a kill. Each output is made twice a turn: from the page cache, where the plain read runs at the
speed of memory, and from the disk, where what the system keeps of the files is dropped before each side begins. Of
every turn the fastest is taken. On a machine that others use too, CPU seconds say more than seconds. Simulated logits.
`--caches` takes a folder of caches, or of shards, that is there; its recipe is fitted on simulated ones.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import vidfuse as vf
from vidfuse.cache.writer import CacheWriter

PLAIN = """
import os, sys
from pathlib import Path
source, out, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for path in sorted(source.rglob("*.safetensors")):
    with open(path, "rb", buffering=0) as stream:
        buffer = bytearray(1 << 24)
        while stream.readinto(buffer):
            pass
with open(out, "wb", buffering=0) as stream:
    chunk = os.urandom(1 << 24)
    for start in range(0, size, len(chunk)):
        stream.write(chunk[: size - start])
    os.fsync(stream.fileno())
"""


def write(folder: Path, videos: int, members: int, classes: int, caches: Path | None) -> None:
    """Write the members' caches, unless there are some, and a recipe fitted on other videos."""
    rng = np.random.default_rng(0)
    names = [f"m{m}" for m in range(members)] if caches is None else list(vf.load_stack(caches).members)
    for split, n in (("fit", 5_000), ("test", videos))[: 2 if caches is None else 1]:
        writers = [CacheWriter(folder / split / name) for name in names]
        for start in range(0, n, 50_000):
            count = min(50_000, n - start)
            y = rng.integers(0, classes, count)
            shared = rng.standard_normal((count, classes), dtype=np.float32)
            for m, writer in enumerate(writers):
                z = shared + 1.5 * rng.standard_normal((count, classes), dtype=np.float32)
                z[np.arange(count), y] += 3 + 0.3 * m
                writer.append([f"{split}{start + row:09d}" for row in range(count)], z, y if split == "fit" else None)
        for writer in writers:
            writer.close()
    stack = vf.load_stack(folder / "fit")
    vf.Recipe.from_fitted(vf.LogLinearPool().fit(stack), stack).save(folder / "ensemble.json")


def run(command: list[Any]) -> tuple[float, float, int]:
    """Run a command; return its seconds, its CPU seconds, and its peak memory in bytes, mapped pages included."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # else each start compiles all modules anew
    start = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def drop(folder: Path) -> None:
    """Ask the system to keep nothing of a folder's files in memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)  # what is not on disk yet stays
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def size_of(path: Path) -> int:
    """Return the bytes of a file or of all files of a folder."""
    return sum(p.stat().st_size for p in path.rglob("*")) if path.is_dir() else path.stat().st_size


def main() -> None:
    """Print one row of figures for each format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--formats", default="npz,npy,cache,parquet,csv")
    parser.add_argument("--options", default="", help="more options of `vidfuse predict`, such as '--dtype float32'")
    parser.add_argument("--folder", type=Path, help="where the generated caches are kept")
    parser.add_argument("--caches", type=Path, help="caches of these members and classes to predict")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="predict-speed-"))
    if not (folder / "ensemble.json").exists():
        write(folder, options.videos, options.members, options.classes, options.caches)
    caches = options.caches or folder / "test"
    rows = []
    for form in options.formats.split(","):
        out = folder / ("fused" if form == "cache" else f"fused.{form}")
        command = [sys.executable, "-m", "vidfuse", "predict", folder / "ensemble.json", caches, "--out", out]
        for origin in ("page cache", "disk"):
            measured: list[tuple[tuple[float, float, int], tuple[float, float, int]]] = []
            for _ in range(options.repeats):
                if origin == "disk":
                    drop(caches)
                fused = run([*command, *options.options.split()])
                size = size_of(out)
                shutil.rmtree(out) if out.is_dir() else out.unlink()
                if origin == "disk":
                    drop(caches)
                measured.append((fused, run([sys.executable, "-c", PLAIN, caches, folder / "plain.bin", size])))
                (folder / "plain.bin").unlink()
            predict, plain = np.array(measured).swapaxes(0, 1)
            rows.append(
                {
                    "format": form,
                    "from": origin,
                    "read MB": round(size_of(caches) / 1e6),
                    "written MB": round(size / 1e6),
                    "plain seconds": round(plain[:, 0].min(), 2),
                    "predict seconds": round(predict[:, 0].min(), 2),
                    "plain CPU seconds": round(plain[:, 1].min(), 2),
                    "predict CPU seconds": round(predict[:, 1].min(), 2),
                    "speed as a share of the plain one's": round(float(np.median(plain[:, 0] / predict[:, 0])), 2),
                    "peak MB": round(predict[:, 2].max() / 1e6),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps({"command": " ".join(sys.argv), "rows": rows}, indent=1) + "\n")
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
