"""Several processes at once, started by `torchrun`: who this one is, and its exact share of the work.

Nothing here starts a process or picks a machine: `torchrun` does, and sets the environment that `joined` reads. Without
it every function describes a world of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from vidfuse.errors import MissingExtraError

try:
    import torch
    import torch.distributed as dist
    from torch import nn
except ImportError as error:
    raise MissingExtraError("training", "training") from error

__all__ = ["agree", "gathered", "joined", "largest", "rank", "share", "total", "world_size"]

T = TypeVar("T")


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's number, 0 in a world of one.

    Example:
        >>> rank()
        0
    """
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Return the number of processes.

    Example:
        >>> world_size()
        1
    """
    return dist.get_world_size() if _active() else 1


@contextmanager
def joined() -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, and yield the device that is this one's.

    NCCL is used where every process has a GPU, gloo elsewhere. Outside `torchrun` nothing is joined.

    Yields:
        `cuda:<local rank>` where there is a GPU, else `cpu`.

    Example:
        >>> with joined() as device:
        ...     device.type in ("cpu", "cuda")
        True
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _active():
        yield device
        return
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def share(items: Sequence[T]) -> list[T]:
    """Return this rank's items: every world-size-th one, each item in exactly one rank.

    Example:
        >>> share(["a", "b", "c"])
        ['a', 'b', 'c']
    """
    return list(items[rank() :: world_size()])


def total(values: Sequence[float], device: torch.device | None = None) -> list[float]:
    """Return the sums of numbers over all ranks, as double precision.

    Example:
        >>> total([1.5, 2.0])
        [1.5, 2.0]
    """
    if not _active():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(v) for v in tensor.tolist()]


def largest(value: float, device: torch.device | None = None) -> float:
    """Return the greatest of the ranks' numbers.

    Example:
        >>> largest(2)
        2
    """
    if not _active():
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)


@torch.no_grad()
def agree(module: nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers, such as the batch statistics that each rank counts by itself.

    Example:
        >>> agree(nn.BatchNorm3d(2))
    """
    if _active():
        for value in (*module.parameters(), *module.buffers()):
            dist.broadcast(value.data, src=0)


def gathered(items: Sequence[T]) -> list[T]:
    """Return the items of all ranks, rank by rank, on every rank; they are pickled between the ranks.

    Example:
        >>> gathered(["a", "b"])
        ['a', 'b']
    """
    if not _active():
        return list(items)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]
