"""What the report of a whole benchmark costs: seven members, 10,000 videos of ten views, 400 classes.

    nice python benchmarks/report_speed.py [--videos 10000] [--views 10] [--classes 400] [--folder DIR]

The scores are simulated. Two reports, each in a process of its own, of which wall and CPU
seconds and the peak of resident memory (mapped pages of the caches included) are taken: cross-fitted on all videos in
five folds, and fitted on one half and scored on the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from vidfuse.cache.writer import CacheWriter

RESULTS = Path(__file__).parent / "results" / "report_speed.json"
MEMBERS = {"i3d": 2.4, "slowfast": 3.0, "swin": 3.2, "tin": 2.6, "tpn": 2.8, "tsm": 2.5, "x3d": 2.9}
BATCH = 500  # videos in one append

REPORT = """
import sys
import vidfuse as vf
folder, page, protocol = sys.argv[1:]
stack = vf.load_stack(folder, views=None)
half = len(stack) // 2
fit, test = (stack, None) if protocol == "cross-fitted" else (stack[:half], stack[half:])
vf.write_report(fit, page, test=test)
"""


def write_caches(folder: Path, videos: int, views: int, classes: int) -> None:
    """Write each member's simulated scores; views of one video, and members on one video, have errors in common."""
    labels = np.random.default_rng(0).integers(0, classes, videos)
    ids = [f"video{row:06d}" for row in range(videos)]
    for number, (name, margin) in enumerate(MEMBERS.items()):
        with CacheWriter(folder / name, expected_ids=ids, fingerprint={"simulated": name}) as writer:
            for start in range(0, videos, BATCH):
                rows = slice(start, min(start + BATCH, videos))
                n = rows.stop - rows.start
                shared = np.random.default_rng([start]).standard_normal((n, 1, classes), dtype=np.float32)
                rng = np.random.default_rng([start, number + 1])
                own = rng.standard_normal((n, 1, classes), dtype=np.float32)
                scores = 0.5 * (shared + own) + 0.7 * rng.standard_normal((n, views, classes), dtype=np.float32)
                scores[np.arange(n), :, labels[rows]] += margin
                writer.append(ids[rows], scores, labels[rows])


def measured(folder: Path, page: Path, protocol: str) -> dict[str, float]:
    """Write one report in a process of its own; return its seconds, CPU seconds, peak in GB, and the page's kB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", REPORT, str(folder), str(page), protocol])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{protocol}: the report ended with {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_GB": round(usage.ru_maxrss / 1e6, 2),
        "page_kB": round(page.stat().st_size / 1e3),
    }


def main() -> None:
    """Write the caches where they are not there yet, and both reports; print and keep what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("videos", 10_000), ("views", 10), ("classes", 400)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="where caches and pages are kept; a temporary folder without it")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        caches = folder / f"{options.videos}x{options.views}x{options.classes}"
        if not caches.exists():
            write_caches(caches, options.videos, options.views, options.classes)
        found: dict[str, Any] = {"videos": options.videos, "views": options.views, "classes": options.classes}
        for protocol in ("held-out", "cross-fitted"):
            found[protocol] = measured(caches, folder / f"{protocol}.html", protocol)
            print(protocol, found[protocol])
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
