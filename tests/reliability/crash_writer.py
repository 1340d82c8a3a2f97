"""One writer of a crash campaign: appends its share of the videos, and acknowledges each append on stdout.

Run as ``python crash_writer.py FOLDER RANK WRITERS VIDEOS BATCH FATAL``. It says that it is ready, and begins when
a byte on stdin tells it to. It is killed in place of the call number FATAL that changes a file or a folder; 0 is for
never. With the rank -1 it does not write, but joins what the others have written, again and again, a few parts at a
time.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

import numpy as np

from vidfuse.cache.upkeep import consolidate
from vidfuse.cache.writer import CacheWriter
from vidfuse.errors import CacheIncompleteError, InputError

JOINER = -1


def expected_ids(videos: int) -> list[str]:
    """The ids of all videos, in their order."""
    return [f"video{number:05d}" for number in range(videos)]


def scores_of(name: str, classes: int = 50) -> np.ndarray:
    """What the model of the campaign predicts for a video: always the same bytes."""
    return np.random.default_rng(int(name.removeprefix("video"))).normal(size=classes).astype(np.float32)


def die_at(fatal: int) -> None:
    """Let this process be killed in place of one of its calls; of a write, half is done by then."""
    numbers = itertools.count(1)

    def fragile(name: str) -> Any:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if next(numbers) == fatal:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in ("write", "fsync", "link", "unlink"):
        setattr(os, name, fragile(name))


def main() -> None:
    """Write every expected video whose number falls to this rank, and say so line by line."""
    folder, (rank, writers, videos, batch, fatal) = sys.argv[1], map(int, sys.argv[2:])
    ids = expected_ids(videos)
    if rank == JOINER:
        os.write(1, b"ready\n")
        os.read(0, 1)
        die_at(fatal)
        for _ in range(30):
            with suppress(InputError, CacheIncompleteError):  # nothing is there yet
                consolidate(folder, batch_bytes=5 * batch * scores_of(ids[0]).nbytes)
            time.sleep(0.005)
        return
    with CacheWriter(folder, expected_ids=ids, fingerprint="campaign", flush_seconds=0) as writer:
        os.write(1, b"ready\n")
        os.read(0, 1)
        die_at(fatal)
        mine = writer.missing(ids[rank::writers])
        for start in range(0, len(mine), batch):
            names = mine[start : start + batch]
            writer.append(names, np.stack([scores_of(name) for name in names]), [int(n[5:]) % 50 for n in names])
            os.write(1, (" ".join(names) + "\n").encode())


if __name__ == "__main__":
    main()
