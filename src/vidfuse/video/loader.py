"""Batches of videos: an order that depends on the seed and the epoch alone, and failures that are listed.

A `VideoLoader` yields `(batch, ids, labels or None)`, the shape that training and extraction read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.video.clips import sample_source
from vidfuse.video.datasets import Failure, Sample, VideoDataset

try:
    import torch
    from torch.utils.data import DataLoader, Sampler
except ImportError as error:
    raise MissingExtraError("loading videos", "video") from error

__all__ = ["EpochSampler", "VideoLoader"]


class EpochSampler(Sampler[int]):
    """Positions in an order that depends on (seed, epoch) alone, shared out over ranks exactly.

    Rank r of R gets positions r, r + R, …: every video comes once over all ranks, none is repeated to fill up.

    Examples:
        >>> list(EpochSampler(5, shuffle=False, rank=1, world_size=2))
        [1, 3]
    """

    def __init__(self, n: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise InputError(f"expected 0 <= rank < world_size, got rank={rank}, world_size={world_size}")
        self.n, self.shuffle, self.seed, self.rank, self.world_size = n, shuffle, seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Give another order from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(range(self.rank, self.n, self.world_size))

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self.n)
        if self.shuffle:
            rng = sample_source(self.seed, self.epoch, "order")
            order = np.argsort([rng.random() for _ in range(self.n)], kind="stable")
        return iter(order[self.rank :: self.world_size].tolist())


class VideoLoader:
    """Batches of a `VideoDataset`: yields `(batch, ids, labels or None)`.

    The batch is float32 of shape (B, 3, T, H, W), (B, V, 3, T, H, W) for views, or a mapping of them by network.
    Videos that cannot be decoded are left out of their batch and collected, once each, in `failures`.

    Args:
        dataset: the data set.
        batch_size: videos in each batch.
        shuffle: a new order in each epoch.
        workers: processes that decode; 0 decodes in this one.
        drop_last: leave out a last batch that is not full.
        rank: this process's number among `world_size`.
        world_size: number of processes that share the videos.
        sampler: positions in another order, in place of `shuffle`, `rank` and `world_size`.
        pin_memory: page-locked batches, for faster copies to a GPU.

    Raises:
        InputError: a batch of no videos, a number of processes below 0, or a rank that is none of `world_size`.

    Examples:
        >>> from vidfuse.video import VideoDataset, VideoItem, ViewPlan
        >>> dataset = VideoDataset([VideoItem("a", "missing.mp4", 0)], ViewPlan(clips=2))
        >>> loader = VideoLoader(dataset, batch_size=4)
        >>> list(loader), [f.id for f in loader.failures]
        ([], ['a'])
    """

    def __init__(
        self,
        dataset: VideoDataset,
        batch_size: int = 8,
        *,
        shuffle: bool = False,
        workers: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        sampler: Sampler[int] | Sequence[int] | None = None,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise InputError(f"expected batch_size >= 1 and workers >= 0, got {batch_size} and {workers}")
        self.dataset = dataset
        self._settings: dict[str, Any] = {
            "batch_size": batch_size,
            "workers": workers,
            "drop_last": drop_last,
            "pin_memory": pin_memory,
        }
        self.sampler = (
            sampler
            if sampler is not None
            else EpochSampler(len(dataset), shuffle=shuffle, seed=dataset.seed, rank=rank, world_size=world_size)
        )
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=self.sampler,
            num_workers=workers,
            drop_last=drop_last,
            collate_fn=_collate,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_one_thread,
        )
        self._failures: dict[str, Failure] = {}

    def __len__(self) -> int:
        return len(self._loader)

    def only(self, ids: Iterable[str]) -> VideoLoader:
        """Give a loader of those of this one's videos that have the given ids, in the data set's order.

        Args:
            ids: ids of the videos to keep.
        """
        kept = frozenset(ids)
        rows = [row for row in sorted(self.sampler) if self.dataset.videos[row].id in kept]
        return VideoLoader(self.dataset, sampler=rows, **self._settings)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Videos that could not be decoded so far."""
        return tuple(self._failures.values())

    def set_epoch(self, epoch: int) -> None:
        """Draw another order, other clips and other augmentations."""
        self.dataset.set_epoch(epoch)
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Any, list[str], torch.Tensor | None]]:
        for batch, ids, labels, failures in self._loader:
            for failure in failures:
                self._failures[failure.id] = failure
            if ids:
                yield batch, ids, labels


def _collate(samples: list[Sample | Failure]) -> tuple[Any, list[str], torch.Tensor | None, list[Failure]]:
    failures = [s for s in samples if isinstance(s, Failure)]
    good = [s for s in samples if isinstance(s, Sample)]
    if not good:
        return None, [], None, failures
    first = good[0].clips
    batch: Any
    if isinstance(first, dict):
        batch = {name: torch.stack([s.clips[name] for s in good]) for name in first}  # type: ignore[index]
    else:
        batch = torch.stack([s.clips for s in good])  # type: ignore[misc]
    labels = [s.label for s in good]
    known = None if None in labels else torch.tensor(labels, dtype=torch.int64)
    return batch, [s.id for s in good], known, failures


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)  # the workers themselves are the parallelism
