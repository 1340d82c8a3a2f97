"""What is to be rendered: the actions, and the plan from which every video follows."""

from __future__ import annotations

from dataclasses import dataclass

from vidfuse.errors import InputError

__all__ = ["ACTIONS", "SPLITS", "MotionPlan"]

ACTIONS = (
    "backflip", "cartwheel", "crawl", "dance a", "dance b", "getup facedown", "getup faceup", "jump", "kick", "punch",
    "roll", "run", "spin", "spinkick", "walk",
)  # fmt: skip
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class MotionPlan:
    """What is to be rendered: every video follows from the plan and its place in it alone.

    Attributes:
        train: Videos of each action in the training split.
        val: Videos of each action in the validation split.
        test: Videos of each action in the test split.
        actions: Names out of `ACTIONS`, in the order of their class indices.
        frames: Frames of a video.
        size: Height and width in pixels.
        fps: Frames a second.
        difficulty: 0 (the same plain scene every time) to 1: how widely camera, colours and clutter vary.
        variety: 0 (one body and one bearing) to 1: how widely the performers differ.
        damaged: Videos of each split that are cut short on purpose and listed as corrupted, as the challenge has them.
        seed: Seed of everything random.
    """

    train: int = 60
    val: int = 15
    test: int = 20
    actions: tuple[str, ...] = ACTIONS
    frames: int = 40
    size: int = 80
    fps: int = 20
    difficulty: float = 0.22
    variety: float = 1.0
    damaged: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.actions) - set(ACTIONS))
        if unknown or len(set(self.actions)) < max(2, len(self.actions)):
            raise InputError(f"expected at least 2 different actions out of {ACTIONS}, got {self.actions}")
        if min(self.train, self.val, self.test) < 1 or self.frames < 2 or self.fps < 1:
            raise InputError(f"expected at least 1 video a split, 2 frames and 1 frame a second, got {self}")
        if self.size < 16 or self.size % 2:
            raise InputError(f"expected an even size of at least 16 pixels, got {self.size}")
        if not (0 <= self.difficulty <= 1 and 0 <= self.variety <= 1):
            raise InputError(
                f"expected a difficulty and a variety from 0 to 1, got {self.difficulty} and {self.variety}"
            )
