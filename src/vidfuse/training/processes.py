"""Parts of a stage side by side in processes of their own: small networks do not fill several cores, several do.

The parts leave their results in files (checkpoints, caches), so that the caller picks them up as it does after an
interruption.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, connection, get_context, parent_process, resource_tracker
from typing import Any

from tqdm import tqdm

from vidfuse.errors import MissingExtraError, VidfuseError

try:
    import torch
except ImportError as error:
    raise MissingExtraError("training", "training") from error

__all__ = ["available_cores", "follow", "worker_processes"]

# glibc gives large blocks back to the system after every step, and fetches them anew, page by page, in the next one.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}


def available_cores() -> int:
    """Return how many cores this process may use.

    Example:
        >>> available_cores() > 0
        True
    """
    return len(os.sched_getaffinity(0))


@contextmanager
def worker_processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of fresh processes that share the cores; they end with this process, even if it is killed.

    What is submitted must be importable: functions of modules, or of the script that runs. Ctrl-C is for this process
    alone, which then ends the others at once.

    Args:
        jobs: How many at once; they start when work is submitted.

    Raises:
        VidfuseError: A process was ended from outside.

    Example:
        >>> with worker_processes(1) as pool:
        ...     pool.submit(pow, 2, 5).result()
        32
    """
    before = {name: os.environ.get(name) for name in _KEEP_MEMORY}
    os.environ.update({name: value for name, value in _KEEP_MEMORY.items() if before[name] is None})
    threads = max(1, available_cores() // jobs)
    pool = _Pool(jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(threads,))
    others = set(active_children())
    try:
        yield pool
    except BrokenProcessPool as error:
        raise VidfuseError(
            "a worker process was ended from outside, perhaps for want of memory; take fewer at once, and start again"
        ) from error
    except KeyboardInterrupt:
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


class _Pool(ProcessPoolExecutor):
    """Processes that hear nothing of Ctrl-C, which a terminal sends to all: they would each print where they were."""

    def submit(self, *call: Any, **named: Any) -> Future[Any]:
        resource_tracker.ensure_running()  # it would lift what is held back here
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*call, **named)  # which may start a process, with the signals of this one
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def follow(futures: list[Future[Any]], count: Callable[[], int], total: int, unit: str) -> None:
    """Wait for the parts of a stage behind one progress bar, and raise what one of them raised.

    Args:
        futures: The parts.
        count: Returns how many units lie in files by now.
        total: All units.
        unit: What is counted.

    Example:
        >>> with worker_processes(1) as pool:
        ...     follow([pool.submit(pow, 2, 5)], lambda: 0, 1, "power")
    """
    pending = set(futures)
    with tqdm(total=total, initial=count(), unit=unit) as bar:
        while pending:
            done, pending = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
            bar.update(max(0, count() - bar.n))
            for part in done:
                part.result()
