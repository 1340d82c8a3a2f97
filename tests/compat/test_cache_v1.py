"""Caches of version 1 of the format are read by this release, and written to the bit."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from vidfuse.cache.reader import open_cache
from vidfuse.cache.upkeep import verify
from vidfuse.cache.writer import CacheWriter
from vidfuse.errors import VidfuseWarning
from vidfuse.stack.open import load_stack

Immediate = functools.partial(CacheWriter, flush_seconds=0)  # a part with every append
GOLDEN = Path(__file__).parent / "cache_v1"


def golden_scores():
    """The released file's numbers, by a rule instead of a copy: (1 + row) / (1 + class), view v negated."""
    rows, classes = np.arange(6, dtype=np.float32)[:, None], np.arange(3, dtype=np.float32)
    one = (1 + rows) / (1 + classes)
    return np.stack([one, -one], axis=1)


def test_every_release_reads_version_1():
    cache = open_cache(GOLDEN / "swin")
    assert cache.ids.tolist() == ["dog", "ape", "bée", "cat/1.mp4", "emu", "fox"]
    assert cache.labels.tolist() == [2, 1, 0, 2, 1, 0] and cache.classes == ("jump", "kick", "run")
    np.testing.assert_array_equal(cache.scores, golden_scores())
    assert cache.kind == "logits" and cache.meta.fingerprint == {"sha256": "00ff"}
    assert cache.meta.view_plan == {"clips": 2, "crops": 1} and len(cache.parts) == 2
    half = open_cache(GOLDEN / "x3d")
    np.testing.assert_array_equal(half.scores, np.full((6, 3), [0.5, 0.25, 0.25], dtype=np.float16))
    assert half.kind == "probabilities" and half.labels is None
    with pytest.warns(VidfuseWarning, match="'x3d' has no class names, and others have"):
        assert load_stack(GOLDEN, views="mean-log").shape == (6, 2, 3)


def test_version_1_is_still_written_to_the_bit(tmp_path):
    with Immediate(
        tmp_path / "swin",
        classes=["jump", "kick", "run"],
        view_plan={"clips": 2, "crops": 1},
        fingerprint={"sha256": "00ff"},
        expected_ids=["dog", "ape", "bée", "cat/1.mp4", "emu", "fox"],
    ) as writer:
        writer.append(["dog", "ape", "bée"], golden_scores()[:3], [2, 1, 0])
        writer.append(["cat/1.mp4", "emu", "fox"], golden_scores()[3:], [2, 1, 0])
    half = np.full((6, 3), [0.5, 0.25, 0.25], dtype=np.float16)
    (part,) = open_cache(GOLDEN / "x3d").parts
    with Immediate(tmp_path / "x3d", kind="probabilities", dtype="float16") as writer:
        writer.append(part.ids, half)
    for name in ("swin", "x3d"):
        released = {path.name: path.read_bytes() for path in (GOLDEN / name).iterdir()}
        assert {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} == released


def test_the_released_bytes_verify():
    report = verify(GOLDEN)
    assert report.ok and report.parts == 3 and report.videos == 12
