"""One writer of a crash campaign: appends its share of the videos, and acknowledges each append on stdout.

Run as ``python crash_writer.py FOLDER RANK WRITERS VIDEOS BATCH``.
"""

from __future__ import annotations

import os
import sys

import numpy as np

from vidfuse.cache.writer import CacheWriter


def expected_ids(videos: int) -> list[str]:
    """The ids of all videos, in their order."""
    return [f"video{number:05d}" for number in range(videos)]


def scores_of(name: str, classes: int = 50) -> np.ndarray:
    """What the model of the campaign predicts for a video: always the same bytes."""
    return np.random.default_rng(int(name.removeprefix("video"))).normal(size=classes).astype(np.float32)


def main() -> None:
    """Write every expected video whose number falls to this rank, and say so line by line."""
    folder, (rank, writers, videos, batch) = sys.argv[1], map(int, sys.argv[2:])
    ids = expected_ids(videos)
    with CacheWriter(folder, expected_ids=ids, fingerprint="campaign") as writer:
        os.write(1, b"ready\n")
        mine = writer.missing(ids[rank::writers])
        for start in range(0, len(mine), batch):
            names = mine[start : start + batch]
            writer.append(names, np.stack([scores_of(name) for name in names]), [int(n[5:]) % 50 for n in names])
            os.write(1, (" ".join(names) + "\n").encode())


if __name__ == "__main__":
    main()
