"""Threads over members, and the limit on those of NumPy's linear algebra."""

import os
import subprocess
import sys

import pytest

from vidfuse import _threads
from vidfuse._threads import map_members

PRELUDE = """
import threading
import numpy as np
import vidfuse as vf
from vidfuse import _threads
from vidfuse._threads import one_blas_thread

def counts():
    return {library["num_threads"] for library in _threads._libraries().info() if library["user_api"] == "blas"}

before = counts()  # {2}, or {1} where a library takes no more threads than there are cores
"""


def run(code):
    """Run code where the libraries begin with two threads, whatever this process has."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_contexts_that_overlap_leave_no_limit():
    run("""
from contextlib import ExitStack

first, second = ExitStack(), ExitStack()
first.enter_context(one_blas_thread())
second.enter_context(one_blas_thread())
assert counts() == {1}
first.close()  # before the one that came later, as threads do
second.close()
assert counts() == before
with one_blas_thread(), one_blas_thread():
    assert counts() == {1}
assert counts() == before
""")


def test_errors_and_stacks_that_are_built_side_by_side_leave_no_limit():
    run("""
try:
    with one_blas_thread():
        raise RuntimeError
except RuntimeError:
    assert counts() == before
try:
    vf.LogLinearPool(n_jobs=0).fit(np.zeros((20, 2, 3)), np.arange(20) % 3)
except ValueError:
    assert counts() == before
else:
    raise AssertionError("n_jobs=0 was taken")

scores = np.random.default_rng(0).normal(size=(6000, 4, 50)).astype(np.float32)
labels = np.arange(6000) % 50
threads = [
    threading.Thread(target=lambda n=n: vf.LogLinearPool().fit(scores[:n], labels[:n])) for n in range(3000, 6001, 500)
]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert counts() == before
""")


@pytest.mark.parametrize("numbers", [1, 1 << 30])
def test_members_keep_their_order_and_the_first_error_is_raised(monkeypatch, numbers):
    monkeypatch.setattr(_threads, "_THREADS", 3)
    assert map_members(lambda n: n * n, range(20), numbers) == [n * n for n in range(20)]

    def fails(n):
        if n >= 7:
            raise ValueError(n)
        return n

    with pytest.raises(ValueError, match=r"^7$"):
        map_members(fails, range(20), numbers)
