"""Fits from caches: the same weights as in memory, in memory that the block bounds."""

from __future__ import annotations

import pickle
import tracemalloc

import joblib
import numpy as np
import pytest

import vidfuse as vf
from vidfuse.fusion import calibration, learned_passes, weights


def saved(folder, n=3000):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 50, n)
    arrays = {
        name: (rng.normal(size=(n, 50)) + skill * np.eye(50)[y]).astype(np.float32)
        for name, skill in (("a", 2.0), ("b", 3.0), ("c", 4.0))
    }
    stack = vf.LogitStack.from_arrays(arrays, labels=y, ids=[f"v{i:05d}" for i in range(n)])
    stack.save(folder)
    return stack, vf.load_stack(folder)


@pytest.fixture
def cached(tmp_path):
    return saved(tmp_path)


@pytest.mark.parametrize("pool", [vf.LogLinearPool(), vf.LogLinearPool(shrinkage=None), vf.LinearPool()])
def test_a_mapped_cache_gives_the_weights_of_the_arrays(cached, pool, monkeypatch):
    memory, mapped = cached
    expected = pool.fit(memory).weights_
    monkeypatch.setattr(learned_passes, "_RESIDENT", 0)
    monkeypatch.setattr(learned_passes, "_PART", 1 << 15)
    monkeypatch.setattr(learned_passes, "_BLOCK", 1 << 15)  # a part holds at least a block
    np.testing.assert_allclose(pool.fit(mapped).weights_, expected, atol=1e-9)


def test_process_workers_give_the_same_weights(cached, monkeypatch):
    _, mapped = cached
    monkeypatch.setattr(learned_passes, "_PART", 1 << 17)
    monkeypatch.setattr(learned_passes, "_BLOCK", 1 << 17)
    one = vf.LogLinearPool(shrinkage=None).fit(mapped)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        two = vf.LogLinearPool(shrinkage=None).fit(mapped)
    np.testing.assert_allclose(two.weights_, one.weights_, atol=1e-12)


def test_memory_is_bounded_by_the_block(cached, monkeypatch):
    _, mapped = cached
    monkeypatch.setattr(learned_passes, "_RESIDENT", 0)
    monkeypatch.setattr(learned_passes, "_PART", 1 << 15)
    monkeypatch.setattr(learned_passes, "_BLOCK", 50 * 3 * 50)
    vf.LogLinearPool(shrinkage=0.5).fit(mapped[:200])
    tracemalloc.start()
    vf.LogLinearPool(shrinkage=None).fit(mapped)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 3 * 50 * 4  # less than one copy of the cache


def test_members_are_calibrated_block_by_block(tmp_path, monkeypatch):
    memory, mapped = saved(tmp_path, n=8000)
    inner = vf.LogLinearPool(shrinkage=0.5)
    expected = vf.Calibrated(inner, where="members").fit(memory)
    log_p = expected.predict_log_proba(memory)
    monkeypatch.setattr(calibration, "_RESIDENT", 0)
    monkeypatch.setattr(learned_passes, "_RESIDENT", 0)
    monkeypatch.setattr(learned_passes, "_PART", 1 << 15)
    monkeypatch.setattr(learned_passes, "_BLOCK", 50 * 3 * 50)
    monkeypatch.setattr(weights, "block_rows", lambda *_: 500)
    vf.Calibrated(inner, where="members").fit(mapped[:200])
    tracemalloc.start()
    pool = vf.Calibrated(inner, where="members").fit(mapped)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(pool.fuser_.weights_, expected.fuser_.weights_, atol=1e-6)
    np.testing.assert_allclose(pool.predict_log_proba(mapped), log_p, atol=1e-5)
    assert peak < 8000 * 3 * 50 * 4  # less than one copy of the cache
    np.testing.assert_allclose(pickle.loads(pickle.dumps(pool)).predict_log_proba(mapped), log_p, atol=1e-5)
