"""Where clips lie in a video, in time and in space: pure functions, and the plan of a video's views.

Chance enters through an explicit source with one method, `random() -> float` in [0, 1) (`random.Random` and
`numpy.random.Generator` both have it), and every sampler is a pure function of what it draws. A `ViewPlan` draws from
a hash of its seed and the video's id: the same plan gives the same views on every machine, in every order.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import check_choice
from vidfuse.errors import InputError

__all__ = [
    "ClipSampler",
    "Random",
    "View",
    "ViewPlan",
    "crop_box",
    "evenly_spaced",
    "loop",
    "random_skip",
    "random_start",
    "sample_source",
    "uniform_interval",
]


class Random(Protocol):
    """A source of uniform numbers in [0, 1)."""

    def random(self) -> float:
        """Draw one number."""
        ...


def sample_source(*key: object) -> random.Random:
    """Make a source of chance from a key (seed, video id, network …), the same on every machine and Python.

    The key's parts are hashed with BLAKE2b; Python promises that `random.Random(n).random()` keeps its sequence.

    Args:
        *key: strings and integers.

    Returns:
        A source with its own state.

    Examples:
        >>> sample_source(0, "video_1").random() == sample_source(0, "video_1").random()
        True
        >>> sample_source(0, "video_1").random() == sample_source(1, "video_1").random()
        False
    """
    digest = hashlib.blake2b(json.dumps([str(part) for part in key]).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))  # noqa: S311 - augmentation, not cryptography


def uniform_interval(length: int, interval: int = 1, start: int = 0) -> NDArray[np.int64]:
    """Give frames at a uniform interval: `start + interval * (0 … length - 1)`.

    Args:
        length: number of frames in the clip.
        interval: distance of neighbouring frames, at least 1 (2 leaves out every other frame).
        start: index of the first frame.

    Returns:
        Frame indices of shape (length,); they may pass the video's end, see `loop`.

    Raises:
        InputError: length or interval below 1, or a negative start.

    Examples:
        >>> uniform_interval(4, 2, start=10)
        array([10, 12, 14, 16])
    """
    if length < 1 or interval < 1 or start < 0:
        raise InputError(
            "expected length >= 1, interval >= 1 and start >= 0; "
            f"got length={length}, interval={interval}, start={start}"
        )
    return start + interval * np.arange(length, dtype=np.int64)


def loop(indices: ArrayLike, n_frames: int) -> NDArray[np.int64]:
    """Wrap indices around a video's end, so that a short video is played again from its start.

    Args:
        indices: frame indices, any shape, not negative.
        n_frames: number of frames in the video.

    Returns:
        `indices mod n_frames`.

    Raises:
        InputError: the video has no frames.

    Examples:
        >>> loop([0, 2, 4, 6], n_frames=5)
        array([0, 2, 4, 1])
    """
    if n_frames < 1:
        raise InputError(f"expected a video with at least one frame, got n_frames={n_frames}")
    return np.asarray(indices, np.int64) % n_frames


def random_start(n_frames: int, length: int, interval: int, rng: Random) -> NDArray[np.int64]:
    """Place a clip of uniform interval at random, each place that keeps it inside the video being as likely.

    A video shorter than the clip's span starts at 0 and is looped.

    Args:
        n_frames: number of frames in the video.
        length: number of frames in the clip.
        interval: distance of neighbouring frames.
        rng: source of one number.

    Returns:
        Frame indices of shape (length,) in [0, n_frames).

    Raises:
        InputError: a number below 1.

    Examples:
        >>> random_start(100, 4, 2, sample_source(0, "a"))
        array([ 4,  6,  8, 10])
        >>> random_start(3, 5, 1, sample_source(0, "a"))
        array([0, 1, 2, 0, 1])
    """
    clip = uniform_interval(length, interval)
    places = max(1, n_frames - int(clip[-1]))
    return loop(clip + min(int(rng.random() * places), places - 1), n_frames)


def random_skip(n_frames: int, length: int, intervals: tuple[int, int], rng: Random) -> NDArray[np.int64]:
    """Place a clip at random whose interval is drawn too: a random number of frames is skipped between two frames.

    Intervals whose span does not fit are not drawn, as long as a shorter one of the range fits.

    Args:
        n_frames: number of frames in the video.
        length: number of frames in the clip.
        intervals: least and greatest interval, both included, each as likely.
        rng: source of two numbers.

    Returns:
        Frame indices of shape (length,) in [0, n_frames).

    Raises:
        InputError: an empty range, or a number below 1.

    Examples:
        >>> random_skip(100, 4, (1, 3), sample_source(0, "a"))
        array([87, 88, 89, 90])
    """
    low, high = intervals
    if not 1 <= low <= high:
        raise InputError(f"expected intervals as (least, greatest) with 1 <= least <= greatest, got {intervals}")
    fitting = high if length < 2 else min(high, max(low, (n_frames - 1) // (length - 1)))
    interval = low + min(int(rng.random() * (fitting - low + 1)), fitting - low)
    return random_start(n_frames, length, interval, rng)


def evenly_spaced(n_frames: int, length: int, interval: int, n_clips: int) -> NDArray[np.int64]:
    """Place `n_clips` clips at even distances over the video, the first at its start, the last at its end.

    One clip is placed in the middle.

    Args:
        n_frames: number of frames in the video.
        length: number of frames in a clip.
        interval: distance of neighbouring frames.
        n_clips: number of clips.

    Returns:
        Frame indices of shape (n_clips, length) in [0, n_frames).

    Raises:
        InputError: a number below 1.

    Examples:
        >>> evenly_spaced(10, 4, 1, 3)
        array([[0, 1, 2, 3],
               [3, 4, 5, 6],
               [6, 7, 8, 9]])
    """
    if n_clips < 1:
        raise InputError(f"expected n_clips >= 1, got {n_clips}")
    clip = uniform_interval(length, interval)
    last = max(0, n_frames - 1 - int(clip[-1]))
    starts = np.linspace(0, last, n_clips) if n_clips > 1 else np.array([last / 2])
    return loop(np.floor(starts).astype(np.int64)[:, None] + clip, n_frames)


@dataclass(frozen=True)
class ClipSampler:
    """How training draws a clip in time: the method's uniform interval, random start and random skip.

    Attributes:
        length: frames in a clip.
        interval: distance of neighbouring frames.
        skip: greatest number of further frames that are left out between two frames, drawn for each clip.

    Examples:
        >>> ClipSampler(length=4, interval=2).sample(100, sample_source(0, "a"))
        array([ 4,  6,  8, 10])
    """

    length: int = 32
    interval: int = 2
    skip: int = 0

    def __post_init__(self) -> None:
        if self.length < 1 or self.interval < 1 or self.skip < 0:
            raise InputError(f"expected length >= 1, interval >= 1 and skip >= 0, got {self}")

    def sample(self, n_frames: int, rng: Random) -> NDArray[np.int64]:
        """Draw the frame indices (length,) of one clip from a video of `n_frames` frames."""
        if self.skip == 0:
            return random_start(n_frames, self.length, self.interval, rng)
        return random_skip(n_frames, self.length, (self.interval, self.interval + self.skip), rng)


@dataclass(frozen=True)
class View:
    """One forward pass: frames in time, a square crop in space, and whether it is mirrored.

    Attributes:
        frames: frame indices, looped inside the video.
        long: place of the crop along the frame's long side, from 0 (left or top) to 1, as a share of the room it has.
        short: the same along the short side.
        flip: mirrored left to right.

    Example:
        >>> View(frames=(0, 2, 4), flip=True).long
        0.5
    """

    frames: tuple[int, ...]
    long: float = 0.5
    short: float = 0.5
    flip: bool = False


def crop_box(height: int, width: int, size: int, long: float = 0.5, short: float = 0.5) -> tuple[int, int]:
    """Give the top left corner of a square crop that lies at given shares of the room it has on each side.

    Args:
        height: the frame's height in pixels.
        width: the frame's width in pixels.
        size: the crop's side in pixels.
        long: place along the long side (the width of a square frame), 0 to 1.
        short: place along the short side, 0 to 1.

    Returns:
        (top, left) in pixels.

    Raises:
        InputError: the crop is larger than the frame, or a share is outside [0, 1].

    Examples:
        >>> crop_box(256, 340, 224), crop_box(256, 340, 224, long=1.0, short=0.0)
        ((16, 58), (0, 116))
    """
    if not 1 <= size <= min(height, width):
        raise InputError(
            f"expected a crop of 1 to {min(height, width)} pixels in a {height} x {width} frame, got {size}"
        )
    if not (0 <= long <= 1 and 0 <= short <= 1):
        raise InputError(f"expected shares in [0, 1], got long={long}, short={short}")
    down, right = (long, short) if height > width else (short, long)
    return round((height - size) * down), round((width - size) * right)


@dataclass(frozen=True)
class ViewPlan:
    """The views of every video, fixed by a few numbers: store it with a cache, and replay it exactly.

    A video has clips × crops × (2 if both flips) views, nested in that order. Frames are resized so that the short
    side is `short_side` pixels, then cropped to size².

    Attributes:
        clips: clips of each video.
        length: frames of each clip.
        interval: distance of neighbouring frames in a clip.
        skip: greatest number of further frames left out, drawn for each clip (random times only).
        times: "random" places of the clips, or "even" ones.
        crops: "centre" (1 crop), "three" (along the long side: 0, ½, 1), or "random" (1, drawn for each clip).
        flip: "never", "both" (the plain and the mirrored view), or "random" (drawn for each view).
        size: side of the crop in pixels.
        short_side: length of the short side before the crop in pixels; None: the same as `size`.
        seed: any integer.

    Examples:
        >>> plan = ViewPlan(clips=2, length=3, interval=2, seed=7)
        >>> [view.frames for view in plan.views("video_1", n_frames=100)]
        [(19, 21, 23), (77, 79, 81)]
        >>> ViewPlan.from_json(plan.to_json()) == plan
        True
    """

    clips: int = 10
    length: int = 32
    interval: int = 2
    skip: int = 0
    times: Literal["random", "even"] = "random"
    crops: Literal["centre", "three", "random"] = "centre"
    flip: Literal["never", "both", "random"] = "never"
    size: int = 224
    short_side: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("clips", "length", "interval", "size")}
        if any(not isinstance(v, int) or v < 1 for v in numbers.values()) or self.skip < 0:
            raise InputError(f"expected whole numbers >= 1 (skip >= 0) in a view plan, got {numbers}, skip={self.skip}")
        check_choice("times", self.times, ("random", "even"))
        check_choice("crops", self.crops, ("centre", "three", "random"))
        check_choice("flip", self.flip, ("never", "both", "random"))
        if self.short_side is not None and self.short_side < self.size:
            raise InputError(f"expected short_side >= size, got short_side={self.short_side}, size={self.size}")
        if self.skip and self.times == "even":
            raise InputError('expected skip=0 with times="even": evenly spaced clips draw nothing')

    @property
    def n_views(self) -> int:
        """Number of views of each video."""
        return self.clips * (3 if self.crops == "three" else 1) * (2 if self.flip == "both" else 1)

    def views(self, video_id: str, n_frames: int) -> list[View]:
        """Give the views of one video: the same for the same plan, id and number of frames, always.

        Args:
            video_id: the video's id.
            n_frames: its number of frames; shorter videos are looped.

        Returns:
            `n_views` views.

        Raises:
            InputError: the video has no frames.

        Examples:
            >>> plan = ViewPlan(clips=1, length=2, crops="three", times="even")
            >>> [view.long for view in plan.views("a", 10)]
            [0.0, 0.5, 1.0]
        """
        if self.times == "even":
            clips = list(evenly_spaced(n_frames, self.length, self.interval, self.clips))
        else:
            sampler = ClipSampler(self.length, self.interval, self.skip)
            clips = [sampler.sample(n_frames, sample_source(self.seed, video_id, "time", i)) for i in range(self.clips)]
        views = []
        for i, clip in enumerate(clips):
            frames = tuple(int(f) for f in clip)
            for j, (long, short) in enumerate(self._places(video_id, i)):
                for flip in self._flips(video_id, i, j):
                    views.append(View(frames, long, short, flip))
        return views

    def _places(self, video_id: str, clip: int) -> list[tuple[float, float]]:
        if self.crops == "three":
            return [(0.0, 0.5), (0.5, 0.5), (1.0, 0.5)]
        if self.crops == "random":
            rng = sample_source(self.seed, video_id, "crop", clip)
            return [(rng.random(), rng.random())]
        return [(0.5, 0.5)]

    def _flips(self, video_id: str, clip: int, crop: int) -> list[bool]:
        if self.flip == "both":
            return [False, True]
        if self.flip == "random":
            return [sample_source(self.seed, video_id, "flip", clip, crop).random() < 0.5]
        return [False]

    def to_dict(self) -> dict[str, Any]:
        """Give the plan as a dictionary of JSON's own types."""
        return asdict(self)

    def to_json(self) -> str:
        """Give the plan as JSON with sorted keys: equal plans give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, plan: Mapping[str, Any]) -> ViewPlan:
        """Read a plan from a dictionary.

        Raises:
            InputError: a name that no plan has, or a value out of range.
        """
        unknown = sorted(set(plan) - {f.name for f in fields(cls)})
        if unknown:
            raise InputError(f"expected a view plan's fields, got {unknown}; was it written by a newer release?")
        return cls(**plan)

    @classmethod
    def from_json(cls, text: str) -> ViewPlan:
        """Read a plan from JSON.

        Raises:
            InputError: not the JSON of a plan.
        """
        try:
            plan = json.loads(text)
        except ValueError as error:
            raise InputError(f"expected a view plan as JSON, got {text[:40]!r}") from error
        if not isinstance(plan, dict):
            raise InputError(f"expected a view plan as a JSON object, got {type(plan).__name__}")
        return cls.from_dict(plan)
