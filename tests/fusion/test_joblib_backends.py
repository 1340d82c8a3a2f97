"""Passes on any joblib backend, as a distributed scheduler registers one: its workers share no memory with the fit."""

from __future__ import annotations

import pickle
from concurrent.futures import Future

import joblib
import pytest
from fusion_cases import array_of, members
from joblib.parallel import BACKENDS, ParallelBackendBase
from numpy.testing import assert_allclose

from vidfuse.fusion._solver import passes as learned_passes
from vidfuse.fusion.calibration import Calibrated
from vidfuse.fusion.dynamic import DynamicPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.stacking import StackedPool
from vidfuse.selection.subsets import SubsetPool
from vidfuse.stack.stack import LogitStack


class Courier(ParallelBackendBase):
    """Sends every task away as bytes, and gets its result back as bytes."""

    supports_retrieve_callback = True
    sent: list[int]

    def effective_n_jobs(self, n_jobs):
        return 1 if n_jobs is None else abs(n_jobs)

    def submit(self, func, callback=None):
        task = pickle.dumps(func)
        self.sent.append(len(task))
        done = Future()
        done.set_result(pickle.dumps(pickle.loads(task)()))
        callback(done)
        return done

    def retrieve_result_callback(self, out):
        return pickle.loads(out.result())


@pytest.fixture
def many_parts(monkeypatch):
    """Cut 300 videos of three members and four classes into eight parts."""
    monkeypatch.setattr(learned_passes, "_BLOCK", 480)
    monkeypatch.setattr(learned_passes, "_PART", 480)


@pytest.fixture
def sent(many_parts):
    """Register the backend as "courier"; return the sizes of the tasks that it was given."""
    tasks: list[int] = []
    joblib.register_parallel_backend("courier", type("Fresh", (Courier,), {"sent": tasks}))
    yield tasks
    del BACKENDS["courier"]


LEARNED = {
    "default": LogLinearPool(),
    "unshrunk": LogLinearPool(shrinkage=None),
    "stacked": StackedPool(),
    "dynamic": DynamicPool(),
    "subset": SubsetPool(LogLinearPool(), "nll", max_members=2),
    "calibrated": Calibrated(LogLinearPool()),
}


@pytest.mark.parametrize("name", LEARNED)
def test_a_registered_backend_runs_the_passes_and_changes_nothing(name, sent):
    arrays, y = members(300, seed=1)
    stack = LogitStack.from_arrays(arrays, labels=y)
    here = LEARNED[name].fit(stack).predict_log_proba(stack)
    assert not sent
    with joblib.parallel_config(backend="courier", n_jobs=2):
        there = LEARNED[name].fit(stack).predict_log_proba(stack)
    assert len(sent) >= 8
    assert_allclose(there, here, rtol=0, atol=1e-12)


def test_threads_change_nothing(many_parts):
    X, y = array_of(members(300)[0]), members(300)[1]
    here = LogLinearPool(shrinkage=None).fit(X, y)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        there = LogLinearPool(shrinkage=None).fit(X, y)
    assert_allclose(there.weights_, here.weights_, rtol=0, atol=1e-12)


def test_the_number_of_jobs_of_the_pool_counts_too(sent):
    X, y = array_of(members(300)[0]), members(300)[1]
    with joblib.parallel_config(backend="courier"):
        one = LogLinearPool(n_jobs=1).fit(X, y)
        assert not sent
        two = LogLinearPool(n_jobs=2).fit(X, y)
        assert sent
    assert_allclose(two.weights_, one.weights_, rtol=0, atol=1e-12)


def test_a_task_carries_its_own_videos_alone(sent):
    arrays, y = members(3000)
    with joblib.parallel_config(backend="courier", n_jobs=2):
        LogLinearPool(shrinkage=None).fit(LogitStack.from_arrays(arrays, labels=y))
    assert max(sent) < array_of(arrays).nbytes / 8


def test_an_error_of_a_worker_reaches_the_caller(sent, monkeypatch):
    def fails(*_, **__):
        raise OSError("disk gone")

    monkeypatch.setattr(learned_passes, "block_moments", fails)
    arrays, y = members(300)
    with joblib.parallel_config(backend="courier", n_jobs=2), pytest.raises(OSError, match="disk gone"):
        LogLinearPool().fit(array_of(arrays), y)
