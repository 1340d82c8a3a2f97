"""Fits from caches: the same weights as in memory, in memory that the block bounds."""

from __future__ import annotations

import gc
import pickle
import tracemalloc

import joblib
import numpy as np
import pytest

import vidfuse as vf
from vidfuse import likelihood
from vidfuse.fusion import calibration, weights
from vidfuse.fusion._solver import deviations
from vidfuse.fusion._solver import passes as learned_passes
from vidfuse.stack import stack as stacks


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


def in_small_blocks(monkeypatch):
    """Keep nothing between passes, and read blocks of at most 30,000 numbers."""
    for module in (calibration, deviations, learned_passes):
        monkeypatch.setattr(module, "_RESIDENT", 0)
    monkeypatch.setattr(learned_passes, "_PART", 30_000)
    monkeypatch.setattr(learned_passes, "_BLOCK", 30_000)
    monkeypatch.setattr(deviations, "_BLOCK", 30_000)
    monkeypatch.setattr(likelihood, "_PIECE", 30_000)
    for module in (calibration, stacks, weights):
        monkeypatch.setattr(module, "block_rows", lambda numbers, *_: max(1, 30_000 // numbers))


def peak_of(call):
    gc.collect()  # what an earlier test left in cycles is not freed while this one is measured
    tracemalloc.start()
    result = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak


@pytest.mark.parametrize("calibrator", [vf.TemperatureScaling(), vf.VectorScaling(1000.0)])
def test_members_are_calibrated_and_predicted_block_by_block(tmp_path, monkeypatch, calibrator):
    memory, mapped = saved(tmp_path, n=8000)
    rule = vf.Calibrated(vf.LogLinearPool(shrinkage=0.5), calibrator, where="members")
    expected = rule.fit(memory).predict_log_proba(memory)
    weights_ = rule.rule_.weights_
    in_small_blocks(monkeypatch)
    rule.fit(mapped[:200]).predict(mapped[:200])
    pool, fitting = peak_of(lambda: rule.fit(mapped))
    log_p, predicting = peak_of(lambda: pool.predict_log_proba(mapped))
    np.testing.assert_allclose(pool.rule_.weights_, weights_, atol=1e-5)
    np.testing.assert_allclose(log_p, expected, atol=1e-4)
    assert fitting < 8000 * 3 * 50 * 4 / 2  # half of one copy of the cache
    assert predicting - log_p.nbytes < 8000 * 3 * 50 * 4 / 4
    np.testing.assert_allclose(pickle.loads(pickle.dumps(pool)).predict_log_proba(mapped), log_p, atol=1e-6)


@pytest.mark.parametrize("scaling", [vf.TemperatureScaling(), vf.VectorScaling(1000.0)])
def test_a_scaling_is_fitted_block_by_block(cached, monkeypatch, scaling):
    memory, _ = cached
    z = np.tile(memory.scores("a"), (4, 1))
    y = np.tile(memory.labels, 4)
    expected = scaling.fit(z, y).transform(z)
    in_small_blocks(monkeypatch)
    _, fitting = peak_of(lambda: scaling.fit(z, y))
    found, predicting = peak_of(lambda: scaling.transform(z))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert fitting < z.nbytes  # in one piece it is twice that, in float64, and more
    assert predicting < 1.2 * found.nbytes
