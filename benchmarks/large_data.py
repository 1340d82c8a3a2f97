"""A million videos in shards: what writing, checking, fitting and mending them costs, in one run on one machine.

``nice python benchmarks/large_data.py [--videos 1000000] [--shards 20] [--files 256] [--folder DIR]``

The scores are simulated. Each step is a `vidfuse` command, or a few lines of the library, in a process of its own whose
seconds, CPU seconds and peak memory in GB (resident, mapped pages of files included) are taken; `--files` limits how
many files it may have open. `--steps` runs some of them on a folder that is kept with `--keep`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vidfuse.cache.format import encode_part
from vidfuse.cache.upkeep import verify
from vidfuse.cache.writer import CacheWriter
from vidfuse.stack.open import load_stack

RESULTS = Path(__file__).parent / "results" / "large_data.json"
MEMBERS = {"slowfast": 2.0, "swin": 2.4, "tpn": 1.8, "x3d": 1.6}  # each with its margin of the true class
BATCH = 1_000  # videos in one append, as an extraction writes them


def shard_ids(number: int, videos: int) -> list[str]:
    """Return the ids of one shard's videos."""
    return [f"video{row:08d}" for row in range(number * videos, (number + 1) * videos)]


def shard_scores(member: str, number: int, videos: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one member's simulated logits (n, K) of one shard, always the same, and the labels (n,)."""
    labels = np.random.default_rng([number, 0]).integers(0, classes, videos)
    rng = np.random.default_rng([number, 1 + list(MEMBERS).index(member)])
    scores = rng.standard_normal((videos, classes), dtype=np.float32)
    scores[np.arange(videos), labels] += MEMBERS[member]
    return scores, labels


def write_shards(folder: Path, shards: Sequence[int], videos: int, classes: int) -> None:
    """Write these shards: every member's cache of each, or what it lacks."""
    for number in shards:
        ids = shard_ids(number, videos)
        for member in MEMBERS:
            cache = folder / f"shard{number}" / member
            with CacheWriter(cache, expected_ids=ids, fingerprint={"simulated": member}) as writer:
                lacking = set(writer.missing())
                if not lacking:
                    continue
                scores, labels = shard_scores(member, number, videos, classes)
                for start in range(0, videos, BATCH):
                    rows = [row for row in range(start, min(start + BATCH, videos)) if ids[row] in lacking]
                    if rows:
                        writer.append([ids[row] for row in rows], scores[rows], labels[rows])


def measured(*commands: Sequence[str | Path], files: int | None = None, status: int = 0) -> dict[str, float]:
    """Run commands at the same time, each in a process of its own; return what they took, and the greatest peak."""

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    started = time.perf_counter()
    running = [subprocess.Popen(list(map(str, command)), preexec_fn=limit) for command in commands]
    peak, busy = 0, 0.0
    for process in running:
        _, ended, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(ended)
        assert process.returncode == status, f"status {process.returncode}, expected {status}: {process.args}"
        peak, busy = max(peak, usage.ru_maxrss), busy + usage.ru_utime + usage.ru_stime
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 1), "CPU seconds": round(busy, 1), "peak GB": round(peak / 1e6, 3)}


def vidfuse(*arguments: str | Path) -> list[str | Path]:
    """Return a command of vidfuse as this Python runs it."""
    return [sys.executable, "-m", "vidfuse", *arguments]


def step_write(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Write all shards by several processes at the same time, each its own share."""
    shared = [__file__, "--worker", "--folder", folder, "--videos", options.videos, "--classes", options.classes]
    shares = [range(options.shards)[rank :: options.processes] for rank in range(options.processes)]
    commands = [[sys.executable, *shared, "--shards", options.shards, "--share", *share] for share in shares]
    found: dict[str, object] = dict(measured(*commands, files=options.files))
    parts = list(folder.glob("shard*/*/*.safetensors"))
    found |= {"parts": len(parts), "GB": round(sum(path.stat().st_size for path in parts) / 1e9, 3)}
    return found


def step_read(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Read every byte of every part, plainly: what the other steps are held against."""
    code = "import sys\nfor name in sys.argv[1:]:\n  with open(name, 'rb', 0) as f:\n    while f.read(1 << 22): pass"
    return measured([sys.executable, "-c", code, *sorted(folder.glob("shard*/*/*.safetensors"))])


def step_verify(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Check every part against its digest."""
    return measured(vidfuse("verify", folder), files=options.files)


def step_open(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Open all shards as one stack: their ids and labels, no scores."""
    code = f"import vidfuse as vf; stack = vf.load_stack({str(folder)!r}); print(stack, stack.ids.nbytes // len(stack))"
    return measured([sys.executable, "-c", code], files=options.files)


def step_fit(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Fit the log-linear pool, and write the recipe."""
    command = vidfuse("fit", folder, "--no-check", "--out", folder / "ensemble.json")
    return measured(command, files=options.files)


def step_parts(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Open a cache of 10,000 small parts, as one is before they are joined."""
    many = folder / "many-parts"
    zeros = np.zeros((64, options.classes), dtype=np.float32)
    with CacheWriter(many) as writer:
        writer.append(["first"], zeros[:1], [0])
    for number in range(10_000):
        ids = np.array([f"video{64 * number + row:08d}" for row in range(64)])
        content = encode_part(ids, zeros, np.zeros(64, dtype=np.int64), "logits")
        (many / f"part-{number:032x}.safetensors").write_bytes(b"".join([content.head(), *content.body]))
    code = (
        "import time; from vidfuse.cache.reader import open_cache; start = time.perf_counter(); "
        f"cache = open_cache({str(many)!r}); print(len(cache.parts), time.perf_counter() - start)"
    )
    code += "; assert len(cache.parts) == 10_001"
    try:
        return measured([sys.executable, "-c", code], files=options.files)
    finally:
        shutil.rmtree(many)


def step_predict(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Write every video's probabilities as one file and as a cache, by the recipe of the fit; see predict_speed.py."""
    found: dict[str, object] = {}
    for form in ("npz", "cache"):
        out = folder.with_name(f"{folder.name}-fused{'' if form == 'cache' else f'.{form}'}")
        command = vidfuse("predict", folder / "ensemble.json", folder, "--out", out, "--dtype", "float32")
        found[form] = measured(command, files=options.files)
        size = sum(path.stat().st_size for path in ([out] if out.is_file() else out.iterdir()))
        found[form]["GB"] = round(size / 1e9, 3)
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    return found


def step_evaluate(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Score the recipe beside its members on all videos."""
    return measured(vidfuse("evaluate", folder / "ensemble.json", folder), files=options.files)


def step_report(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Write the page on all members and rules, cross-fitted, from a sample of the videos, which the page states."""
    command = vidfuse("report", folder, "--out", folder / "report.html", "--sample", str(options.sample))
    return {"sample": options.sample, **measured(command, files=options.files)}


def step_mend(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Flip one bit, and let it be found, set aside and computed again; nothing else may change."""
    number = options.shards // 2
    paths = sorted(folder.glob("shard*/*/*.safetensors"))
    damaged = next(path for path in paths if path.parent == folder / f"shard{number}" / "swin")
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}
    stack = load_stack(folder)
    known = _digest(stack.scores("swin"))
    del stack
    with damaged.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    started = time.perf_counter()
    found = verify(folder, quarantine=True)
    assert [problem.path for problem in found.problems] == [damaged], found
    with CacheWriter(damaged.parent, expected_ids=None, fingerprint={"simulated": "swin"}) as writer:
        lacking = len(writer.missing())
    write_shards(folder, [number], options.videos // options.shards, options.classes)
    seconds = time.perf_counter() - started
    after = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("shard*/*/*.safetensors")}
    assert {path: after[path] for path in before if path != damaged} == {
        p: s for p, s in before.items() if p != damaged
    }
    assert _digest(load_stack(folder).scores("swin")) == known
    return {"named": str(damaged.relative_to(folder)), "videos computed again": lacking, "seconds": round(seconds, 1)}


def _digest(scores: np.ndarray) -> str:
    return hashlib.sha256(scores).hexdigest()


STEPS: dict[str, Callable[[Path, argparse.Namespace], dict[str, object]]] = {
    "write": step_write,
    "read": step_read,
    "verify": step_verify,
    "open": step_open,
    "fit": step_fit,
    "parts": step_parts,
    "predict": step_predict,
    "evaluate": step_evaluate,
    "report": step_report,
    "mend": step_mend,
}


def main() -> None:
    """Run the steps, print what each one took, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--processes", type=int, default=3, help="how many write at the same time")
    parser.add_argument("--files", type=int, help="how many files a step may have open (ulimit -n)")
    parser.add_argument("--sample", type=int, default=20_000, help="videos that the report is made from")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--folder", type=Path, help="where the shards are; by default a folder that is removed again")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        write_shards(options.folder, options.share, options.videos // options.shards, options.classes)
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="large-data-"))
    figures: dict[str, object] = json.loads(options.out.read_text()) if options.out.exists() else {}
    settings = {name: getattr(options, name) for name in ("videos", "classes", "shards", "processes", "files")}
    key = "default" if options.files is None else f"ulimit -n {options.files}"
    key += "" if options.videos == parser.get_default("videos") else f", {options.videos:,} videos"
    figures[key] = {**dict(figures.get(key, {})), "members": len(MEMBERS), **settings}
    try:
        for name in options.steps:
            figures[key][name] = STEPS[name](folder, options)
            print(f"{name}: {json.dumps(figures[key][name])}", flush=True)
            options.out.write_text(json.dumps(figures, indent=1) + "\n")
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
