"""One prediction of a crash campaign, block by block; it says each block that it begins, and is killed from outside.

Run as ``python crash_predictor.py OUT FATAL``. It is killed in place of the call number FATAL that flushes or
renames something; 0 is for never. Every block is made safe as soon as it is written.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vidfuse import _unfinished
from vidfuse.formats import streams
from vidfuse.formats.export import write_predictions

VIDEOS, CLASSES, BLOCK = 600, 7, 20


def fused(rows: slice) -> np.ndarray:
    """What the rule of the campaign predicts for some videos: always the same bytes."""
    return np.stack([np.random.default_rng(row).dirichlet(np.ones(CLASSES)) for row in range(VIDEOS)[rows]])


class Blocks:
    """Predictions that are computed when they are read, and say so."""

    shape, dtype, rows_per_block = (VIDEOS, CLASSES), np.dtype(np.float64), BLOCK

    def __getitem__(self, rows: slice) -> np.ndarray:
        os.write(1, b"%d\n" % rows.start)
        return fused(rows)


def die_at(fatal: int) -> None:
    """Let this process be killed in place of one of its calls that make something safe or visible."""
    numbers = itertools.count(1)

    def fragile(name: str) -> Any:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if next(numbers) == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in ("fdatasync", "fsync", "replace", "link", "unlink", "rmdir"):
        setattr(os, name, fragile(name))


def write(out: Path, *, resume: str | None) -> None:
    """Write all predictions, in the format that the name says."""
    ids = [f"video{(row * 7) % VIDEOS:05d}" for row in range(VIDEOS)]
    labels = np.arange(VIDEOS) % CLASSES
    write_predictions(Blocks(), out, ids=ids, labels=labels, kind="probabilities", resume=resume)


def main() -> None:
    """Write, or go on."""
    _unfinished._BYTES, streams._PART = 1, BLOCK * CLASSES * 4
    die_at(int(sys.argv[2]))
    write(Path(sys.argv[1]), resume="campaign")


if __name__ == "__main__":
    main()
