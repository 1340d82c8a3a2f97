"""From a list of videos to batches: decode once, cut a clip for each network, leave out what cannot be decoded.

A `VideoDataset` decodes the union of the frames that its inputs ask for in one pass, however many networks or
views they are. A `VideoLoader` yields `(batch, ids, labels or None)`, the shape that training and extraction read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.video.clips import ClipSampler, View, ViewPlan, sample_source
from vidfuse.video.decode import VideoInfo, check_videos, decode, frame_size, probe
from vidfuse.video.lists import VideoItem, VideoList
from vidfuse.video.transforms import IMAGENET_MEAN, IMAGENET_STD, ClipTransform, TransformConfig, apply_view

try:
    import torch
    from torch.utils.data import DataLoader, Dataset, Sampler
except ImportError as error:
    raise MissingExtraError("loading videos", "video") from error

__all__ = ["EpochSampler", "Failure", "Input", "Sample", "VideoDataset", "VideoLoader", "Views", "drop_broken"]


@dataclass(frozen=True)
class Input:
    """What a network is trained on: how its clip is drawn in time, and augmented."""

    sampler: ClipSampler = field(default_factory=ClipSampler)
    transform: TransformConfig = field(default_factory=TransformConfig)


@dataclass(frozen=True)
class Views:
    """What a network is evaluated on: a plan of views, and the colours' mean and standard deviation."""

    plan: ViewPlan
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


@dataclass(frozen=True)
class Sample:
    """One video, ready for its networks.

    Attributes:
        id: the video's id.
        label: its 0-based class, or None.
        clips: float32 of shape (3, T, H, W) for an `Input`, (V, 3, T, H, W) for `Views`; by network if they are named.
    """

    id: str
    label: int | None
    clips: torch.Tensor | dict[str, torch.Tensor]


@dataclass(frozen=True)
class Failure:
    """One video that could not be decoded, and why."""

    id: str
    reason: str


class _Memory:
    """Decoded frames that stay, as long as there is room; the data sets of the same videos share one."""

    def __init__(self, room: int) -> None:
        self.room, self.kept = room, dict[int, torch.Tensor]()

    def keep(self, index: int, frames: NDArray[np.uint8]) -> None:
        self.room -= frames.nbytes
        self.kept[index] = torch.from_numpy(frames)


class VideoDataset(Dataset[Sample | Failure]):
    """Videos decoded once for all networks and views, as samples.

    Chance depends on (seed, epoch, video id, network) alone: not on the order, the number of workers or of processes.

    Args:
        videos: the videos.
        inputs: an `Input` (training), a `ViewPlan` or `Views` (evaluation), or a mapping of them by network: each
            network then gets a clip and an augmentation of its own, from the same decoded frames.
        short_side: length of the short side that frames are decoded at, in pixels; None: the greatest that an input
            needs.
        memory: bytes of decoded frames to keep (uint8), so that later epochs of a small data set do not decode again.
            Each worker process keeps its own; call `preload` first and they share it.
        seed: any integer.
        strict: raise on a video that cannot be decoded, where a `Failure` is given otherwise.

    Raises:
        InputError: no videos, no inputs, or a `short_side` that is too small.

    Examples:
        >>> videos = VideoList((VideoItem("a", "missing.mp4", 0),))
        >>> VideoDataset(videos, ViewPlan(clips=2))[0].id
        'a'
    """

    def __init__(
        self,
        videos: Sequence[VideoItem],
        inputs: Input | Views | ViewPlan | Mapping[str, Input | Views | ViewPlan],
        *,
        short_side: int | None = None,
        memory: int = 0,
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        if len(videos) == 0:
            raise InputError("expected at least one video, got none; is the split empty?")
        named = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
        if not named:
            raise InputError("expected an input for at least one network, got none")
        self.videos, self.seed, self.strict = videos, seed, strict
        self.inputs = {name: Views(i) if isinstance(i, ViewPlan) else i for name, i in named.items()}
        self._single = not isinstance(inputs, Mapping)
        needed = max(_short_side(i) for i in self.inputs.values())
        self.short_side = needed if short_side is None else short_side
        if self.short_side < max(_size(i) for i in self.inputs.values()):
            raise InputError(f"expected short_side >= the largest crop, got {self.short_side} for inputs {named}")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by persistent workers too
        self._memory = _Memory(memory)

    def __len__(self) -> int:
        return len(self.videos)

    def __repr__(self) -> str:
        names = "" if self._single else f", networks={list(self.inputs)}"
        kept = len(self._memory.kept)
        return f"VideoDataset({len(self)} videos, short_side={self.short_side}{names}, in memory={kept})"

    @property
    def epoch(self) -> int:
        """The epoch that chance is drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw other clips and augmentations from now on, in worker processes too."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Sample | Failure:
        item = self.videos[index]
        try:
            return Sample(item.id, item.label, self._clips(index, item))
        except InputError as error:
            if self.strict:
                raise
            return Failure(item.id, str(error))

    def with_inputs(
        self, inputs: Input | Views | ViewPlan | Mapping[str, Input | Views | ViewPlan], *, seed: int | None = None
    ) -> VideoDataset:
        """Give the same videos to other networks; frames that are in memory are shared, not decoded again.

        Args:
            inputs: as for the class; they need no more pixels than `short_side`.
            seed: another seed, or None for this data set's.
        """
        seed = self.seed if seed is None else seed
        other = VideoDataset(self.videos, inputs, short_side=self.short_side, seed=seed, strict=self.strict)
        other._memory = self._memory
        return other

    def preload(self) -> list[tuple[str, str]]:
        """Decode videos into memory, in order, until all are there or the room is used up.

        Returns:
            (id, reason) of the videos that cannot be decoded.
        """
        failures = []
        for index, item in enumerate(self.videos):
            if index in self._memory.kept:
                continue
            try:
                info = probe(item.path)
                if not self._fits(info):
                    break
                frames = decode(item.path, np.arange(info.n_frames), self.short_side, info=info)
            except InputError as error:
                failures.append((item.id, str(error)))
                continue
            self._memory.keep(index, frames)
        return failures

    def _fits(self, info: VideoInfo) -> bool:
        height, width = frame_size(info.height, info.width, self.short_side)
        return info.n_frames * height * width * 3 <= self._memory.room

    def _clips(self, index: int, item: VideoItem) -> torch.Tensor | dict[str, torch.Tensor]:
        kept = self._memory.kept.get(index)
        info = None if kept is not None else probe(item.path)
        n_frames = len(kept) if info is None else info.n_frames  # type: ignore[arg-type]
        wanted = {name: self._frames(name, item.id, n_frames) for name in self.inputs}
        if info is not None and self._fits(info):
            frames = decode(item.path, np.arange(n_frames), self.short_side, info=info)
            kept = torch.from_numpy(frames)
            self._memory.keep(index, frames)
        if kept is None:
            union = np.unique(np.concatenate([np.ravel(w) for ws in wanted.values() for w in ws]))
            kept = torch.from_numpy(decode(item.path, union, self.short_side, info=info))
        else:
            union = np.arange(n_frames)
        clips = {}
        for name, source in self.inputs.items():
            parts = [kept[torch.from_numpy(np.searchsorted(union, w))] for w in wanted[name]]
            clips[name] = self._cut(name, source, parts, item.id, n_frames)
        return clips[""] if self._single else clips

    def _frames(self, name: str, video_id: str, n_frames: int) -> list[NDArray[np.int64]]:
        source = self.inputs[name]
        if isinstance(source, Views):
            return [np.array(f) for f in dict.fromkeys(v.frames for v in source.plan.views(video_id, n_frames))]
        rng = sample_source(self.seed, self.epoch, video_id, name, "time")
        return [source.sampler.sample(n_frames, rng)]

    def _cut(
        self, name: str, source: Input | Views, parts: list[torch.Tensor], video_id: str, n_frames: int
    ) -> torch.Tensor:
        if isinstance(source, Input):
            rng = sample_source(self.seed, self.epoch, video_id, name, "augmentation")
            return ClipTransform(source.transform)(parts[0], rng)
        plan = source.plan
        views: list[View] = plan.views(video_id, n_frames)
        place = {frames: i for i, frames in enumerate(dict.fromkeys(v.frames for v in views))}
        cut = (
            apply_view(parts[place[v.frames]], v, plan.size, plan.short_side, source.mean, source.std) for v in views
        )
        return torch.stack(list(cut))


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
        batch_size: videos a batch.
        shuffle: a new order in each epoch.
        workers: processes that decode; 0 decodes in this one.
        drop_last: leave out a last batch that is not full.
        rank: this process's number among `world_size`.
        world_size: number of processes that share the videos.
        sampler: positions in another order, in place of `shuffle`, `rank` and `world_size`.
        pin_memory: page-locked batches, for faster copies to a GPU.

    Examples:
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


def drop_broken(videos: VideoList, *, strict: bool = False, allow_truncated: bool = False) -> VideoList:
    """Probe every video and leave out those that are unreadable, empty or truncated, with their reasons.

    Args:
        videos: the videos.
        strict: raise on the first such video instead.
        allow_truncated: take a file that ends early for what is left of it.

    Returns:
        The list without them; `skipped` names them.

    Raises:
        InputError: a broken video where `strict`, or no video is left.

    Examples:
        >>> drop_broken(VideoList((VideoItem("a", "missing.mp4"),)), strict=True)
        Traceback (most recent call last):
        vidfuse.errors.InputError: video 'a': expected a readable video, got missing.mp4: No such file or directory; ...
    """
    checked = check_videos((item.path for item in videos), allow_truncated=allow_truncated)
    broken = []
    for item, (_, _, reason) in zip(videos, checked, strict=True):
        if reason is not None:
            if strict:
                raise InputError(f"video {item.id!r}: {reason}")
            broken.append((item.id, reason))
    if len(broken) == len(videos):
        raise InputError(f"expected at least one readable video, got {len(broken)} broken ones; first: {broken[:1]}")
    return videos.without(broken)


def _size(source: Input | Views) -> int:
    return source.transform.size if isinstance(source, Input) else source.plan.size


def _short_side(source: Input | Views) -> int:
    if isinstance(source, Input):
        return source.transform.decode_side
    return source.plan.short_side or source.plan.size


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
