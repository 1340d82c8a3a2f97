"""From a list of videos to samples: decode once, cut a clip for each network, say what cannot be decoded.

A `VideoDataset` decodes the union of the frames that its inputs ask for in one pass, however many networks or
views they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.video import decode_torchcodec
from vidfuse.video.clips import ClipSampler, View, ViewPlan, sample_source
from vidfuse.video.decode import VideoInfo, check_videos, decode, frame_size, probe, refuse_truncated
from vidfuse.video.lists import VideoItem, VideoList
from vidfuse.video.transforms import IMAGENET_MEAN, IMAGENET_STD, ClipTransform, TransformConfig, apply_view

__all__ = ["Failure", "Input", "Sample", "VideoDataset", "Views", "drop_broken"]

try:
    import torch
    from torch.utils.data import Dataset
except ImportError as error:
    raise MissingExtraError("loading videos", "video") from error


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


# Videos of which it is remembered, in each process, what `probe` found: some have to be decoded to be counted.
_PROBED = 4096


@dataclass(frozen=True)
class Input:
    """What a network is trained on: how its clip is drawn in time, and augmented.

    Attributes:
        sampler: Which frames of a video make the clip.
        transform: The augmentations, the clip's size and its colours' statistics.

    Example:
        >>> from vidfuse.video import ClipSampler
        >>> Input(ClipSampler(length=16, interval=4), TransformConfig(size=112)).transform.size
        112
    """

    sampler: ClipSampler = field(default_factory=ClipSampler)
    transform: TransformConfig = field(default_factory=TransformConfig)


@dataclass(frozen=True)
class Views:
    """What a network is evaluated on: a plan of views, and the colours' mean and standard deviation.

    Attributes:
        plan: The views of each video: clips, crops and flips.
        mean: Mean of each colour on the scale 0 to 1.
        std: Standard deviation of each colour on the scale 0 to 1.

    Example:
        >>> from vidfuse.video import ViewPlan
        >>> Views(ViewPlan(clips=2, crops="three")).plan.n_views
        6
    """

    plan: ViewPlan
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class _Frames:
    """Where frames come from, and those that stay in memory while there is room."""

    def __init__(self, decoder: str, device: str, short_side: int, room: int, allow_truncated: bool) -> None:
        self.decoder, self.device, self.short_side, self.room = decoder, device, short_side, room
        self.allow_truncated = allow_truncated
        self.kept: dict[int, torch.Tensor] = {}
        self.infos: dict[str, VideoInfo] = {}

    def probe(self, path: str) -> VideoInfo:
        info = self.infos.get(path)
        if info is None:
            info = probe(path) if self.decoder == "pyav" else decode_torchcodec.probe(path)
            if len(self.infos) < _PROBED:
                self.infos[path] = info
        if not self.allow_truncated:
            refuse_truncated(info)
        return info

    def decode(self, info: VideoInfo, indices: NDArray[np.int64]) -> torch.Tensor:
        if self.decoder == "pyav":
            return torch.from_numpy(decode(info.path, indices, self.short_side, info=info))
        frames: torch.Tensor = decode_torchcodec.decode(
            info.path, indices, self.short_side, info=info, device=self.device
        )
        return frames

    def fit(self, info: VideoInfo) -> bool:
        height, width = frame_size(info.height, info.width, self.short_side)
        return info.n_frames * height * width * 3 <= self.room

    def keep(self, index: int, frames: torch.Tensor) -> None:
        self.room -= frames.nbytes
        self.kept[index] = frames


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
        shared_time: draw the place in time once for all networks, so that those with equal samplers see the same
            frames, each in an augmentation of its own: their features can be fused, and less is decoded.
        strict: raise on a video that cannot be decoded, where a `Failure` is given otherwise.
        allow_truncated: take a file that ends early for what is left of it, rather than for broken.
        decoder: "pyav" or "torchcodec".
        device: "cpu", or "cuda" to decode and transform on the GPU, with torchcodec and without worker processes.

    Raises:
        InputError: no videos, no inputs, a `short_side` that is too small, or an unknown decoder.
        MissingExtraError: torchcodec is asked for and cannot be loaded.

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
        shared_time: bool = False,
        strict: bool = False,
        allow_truncated: bool = False,
        decoder: Literal["pyav", "torchcodec"] = "pyav",
        device: str = "cpu",
    ) -> None:
        if len(videos) == 0:
            raise InputError("expected at least one video, got none; is the split empty?")
        named = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
        if not named:
            raise InputError("expected an input for at least one network, got none")
        if decoder not in ("pyav", "torchcodec") or (decoder == "pyav" and device != "cpu"):
            raise InputError(
                'expected decoder="pyav" on the CPU or decoder="torchcodec" on any device, '
                f"got {decoder!r} on {device!r}"
            )
        if decoder == "torchcodec":
            decode_torchcodec.require()
        self.videos, self.seed, self.strict, self.shared_time = videos, seed, strict, shared_time
        self.inputs = {name: Views(i) if isinstance(i, ViewPlan) else i for name, i in named.items()}
        self._single = not isinstance(inputs, Mapping)
        needed = max(_short_side(i) for i in self.inputs.values())
        self.short_side = needed if short_side is None else short_side
        if self.short_side < max(_size(i) for i in self.inputs.values()):
            raise InputError(f"expected short_side >= the largest crop, got {self.short_side} for inputs {named}")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by persistent workers too
        self._frames = _Frames(decoder, device, self.short_side, memory, allow_truncated)

    def __len__(self) -> int:
        return len(self.videos)

    def __repr__(self) -> str:
        names = "" if self._single else f", networks={list(self.inputs)}"
        kept = len(self._frames.kept)
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
        other = VideoDataset(
            self.videos,
            inputs,
            short_side=self.short_side,
            seed=seed,
            shared_time=self.shared_time,
            strict=self.strict,
        )
        other._frames = self._frames
        return other

    def preload(self) -> list[tuple[str, str]]:
        """Decode videos into memory, in order, until all are there or the room is used up.

        Returns:
            (id, reason) of the videos that cannot be decoded.
        """
        failures = []
        for index, item in enumerate(self.videos):
            if index in self._frames.kept:
                continue
            try:
                info = self._frames.probe(item.path)
                if not self._frames.fit(info):
                    break
                frames = self._frames.decode(info, np.arange(info.n_frames))
            except InputError as error:
                failures.append((item.id, str(error)))
                continue
            self._frames.keep(index, frames)
        return failures

    def _clips(self, index: int, item: VideoItem) -> torch.Tensor | dict[str, torch.Tensor]:
        # Three cases: all frames are in memory; or they fit there, and are decoded and kept; or only those that some
        # clip wants are decoded. `union` lists the frames that `frames` holds.
        source = self._frames
        frames = source.kept.get(index)
        if frames is not None:
            n_frames = len(frames)
            wanted = self._wanted(item.id, n_frames)
            union = np.arange(n_frames)
        else:
            info = source.probe(item.path)
            n_frames = info.n_frames
            wanted = self._wanted(item.id, n_frames)
            keep = source.fit(info)
            union = np.arange(n_frames)
            if not keep:
                union = np.unique(np.concatenate([clip for clips in wanted.values() for clip in clips]))
            frames = source.decode(info, union)
            if keep:
                source.keep(index, frames)
        clips = {}
        for name, network in self.inputs.items():
            parts = [frames[torch.from_numpy(np.searchsorted(union, clip))] for clip in wanted[name]]
            clips[name] = self._cut(name, network, parts, item.id, n_frames)
        return clips[""] if self._single else clips

    def _wanted(self, video_id: str, n_frames: int) -> dict[str, list[NDArray[np.int64]]]:
        """Give the distinct clips, as frame indices, that each network asks for."""
        return {name: self._times(name, video_id, n_frames) for name in self.inputs}

    def _times(self, name: str, video_id: str, n_frames: int) -> list[NDArray[np.int64]]:
        source = self.inputs[name]
        if isinstance(source, Views):
            return [np.array(f) for f in dict.fromkeys(v.frames for v in source.plan.views(video_id, n_frames))]
        rng = sample_source(self.seed, self.epoch, video_id, "" if self.shared_time else name, "time")
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
