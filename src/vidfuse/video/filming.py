"""One rendered video: a recorded action, filmed in a scene of its own by pybullet's software renderer."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError, MissingExtraError

__all__ = ["ACTIONS", "MotionPlan", "import_demo", "render_clip"]

ACTIONS = (
    "backflip", "cartwheel", "crawl", "dance a", "dance b", "getup facedown", "getup faceup", "jump", "kick", "punch",
    "roll", "run", "spin", "spinkick", "walk",
)  # fmt: skip
# Columns of a recorded frame: duration, root position (3), root rotation (4), then these joints, rotations as w x y z.
_JOINTS = ((1, 4), (2, 4), (3, 4), (4, 1), (5, 4), (6, 4), (7, 1), (9, 4), (10, 1), (11, 4), (12, 4), (13, 1))
_QUATERNIONS = (4, 8, 12, 16, 21, 25, 30, 35, 39)
_LINK_PARTS = (
    0,
    0,
    1,
    2,
    2,
    3,
    0,
    1,
    1,
    2,
    2,
    3,
    0,
    1,
    1,
)  # which colour each link takes: shirt, skin, trousers, shoes


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
    difficulty: float = 0.3
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
        if not 0 <= self.difficulty <= 1:
            raise InputError(f"expected a difficulty from 0 to 1, got {self.difficulty}")


@dataclass(frozen=True)
class _Scene:
    """What one video looks like, apart from the action."""

    yaw: float
    pitch: float
    distance: float
    speed: float
    phase: float
    light: tuple[float, float, float]
    colours: NDArray[np.float64]
    background: NDArray[np.uint8]
    lift: float


# What the splits differ in beside their scenes: how far all hues are turned, and how fast the recordings play.
_HUES = {"train": 0.0, "val": 0.02, "test": 0.03}
_SPEEDS = {"train": (0.75, 1.3), "val": (0.7, 1.4), "test": (0.7, 1.4)}


def _scene(plan: MotionPlan, split: str, rng: np.random.Generator) -> _Scene:
    """Draw a scene; the plan's difficulty widens every range."""
    d = plan.difficulty
    low, high = _SPEEDS[split]
    # Shirt, skin, trousers, shoes: bright colours before a darker background, the less so the harder it is.
    hues = (np.array([0.0, 0.12, 0.6, 0.35]) + d * (rng.random(4) - 0.5) + _HUES[split]) % 1.0
    colours = np.stack([_hsv(h, 0.9 - 0.6 * d * rng.random(), 1 - 0.6 * d * rng.random()) for h in hues])
    return _Scene(
        yaw=float(rng.uniform(-90, 90) * d + (8 if split == "test" else 0)),
        pitch=float(rng.uniform(-5, 30) * d),
        distance=float(2.4 + rng.uniform(-0.3, 1.5) * d),
        speed=float(rng.uniform(low, high)),
        phase=float(rng.random()),
        light=(float(rng.uniform(-2, 2)), 3.0, float(rng.uniform(1, 3))),
        colours=colours,
        background=_background(plan.size, d, rng),
        lift=float(rng.uniform(-0.25, 0.25) * d),
    )


def _hsv(h: float, s: float, v: float) -> NDArray[np.float64]:
    """Return red, green, blue of a hue, saturation and value, each in 0..1."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * h) % 6
    return v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)


def _background(size: int, difficulty: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a panorama (size, 3·size, 3) of a smooth random texture with boxes in it, which wraps around in width."""
    width = 3 * size
    coarse = rng.random((5, 12, 3)) * 0.7 * difficulty + rng.random(3) * (1 - 0.7 * difficulty)
    rows = np.linspace(0, 3.999, size)
    columns = np.arange(width) * 12 / width
    r, c = rows.astype(int), columns.astype(int)
    fr, fc = (rows - r)[:, None, None], (columns - c)[None, :, None]
    top = coarse[r][:, c] * (1 - fc) + coarse[r][:, (c + 1) % 12] * fc
    bottom = coarse[r + 1][:, c] * (1 - fc) + coarse[r + 1][:, (c + 1) % 12] * fc
    image = top * (1 - fr) + bottom * fr
    for _ in range(int(rng.integers(0, 1 + round(24 * difficulty)))):
        y, x = int(rng.integers(0, size)), int(rng.integers(0, width))
        h, w = (int(v) for v in rng.integers(size // 16 + 1, size // 3, 2))
        image[y : y + h, x : x + w] = rng.random(3)
    return (image * (0.3 + 0.7 * difficulty) * 255).astype(np.uint8)


@cache
def _recording(action: str) -> NDArray[np.float64]:
    """Return the recorded frames (F, 44), with quaternions of neighbouring frames on the same side."""
    folder = import_demo("pybullet_data").getDataPath()
    file = Path(folder, "data", "motions", f"humanoid3d_{action.replace(' ', '_')}.txt")
    frames = np.array(json.loads(file.read_text())["Frames"], dtype=np.float64)
    for start in _QUATERNIONS:
        q = frames[:, start : start + 4]
        q *= np.cumprod(np.where(np.append(1.0, (q[1:] * q[:-1]).sum(1)) < 0, -1.0, 1.0))[:, None]
    return frames


def _poses(action: str, plan: MotionPlan, scene: _Scene) -> NDArray[np.float64]:
    """Return the pose (T, 44) of each frame: the recording, played round and round from the scene's phase."""
    frames = _recording(action)
    ends = np.append(0.0, np.cumsum(frames[:-1, 0]))
    length = ends[-1]
    times = (scene.phase * length + np.arange(plan.frames) * scene.speed / plan.fps) % length
    left = np.clip(np.searchsorted(ends, times, side="right") - 1, 0, len(frames) - 2)
    part = ((times - ends[left]) / np.maximum(ends[left + 1] - ends[left], 1e-9))[:, None]
    poses = frames[left] * (1 - part) + frames[left + 1] * part
    for start in _QUATERNIONS:
        poses[:, start : start + 4] /= np.linalg.norm(poses[:, start : start + 4], axis=1, keepdims=True)
    return poses


def import_demo(name: str) -> Any:
    """Import a module of the demo's extra, without the banner that pybullet prints.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        with _quiet():
            return __import__(name)
    except ImportError as error:
        raise MissingExtraError("rendering the embedded videos", "demo") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the banners and warnings that pybullet prints from C, below Python's streams."""
    saved = [os.dup(1), os.dup(2)]
    try:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
            yield
    finally:
        for target, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, target)
            os.close(copy)


@cache
def _humanoid() -> tuple[Any, int, int]:
    """Return pybullet, this process's connection and the loaded body."""
    bullet, data = import_demo("pybullet"), import_demo("pybullet_data")
    with _quiet():
        client = bullet.connect(bullet.DIRECT)
        body = bullet.loadURDF(
            os.path.join(data.getDataPath(), "humanoid", "humanoid.urdf"),
            globalScaling=0.25,
            useFixedBase=True,
            flags=bullet.URDF_MAINTAIN_LINK_ORDER,
            physicsClientId=client,
        )
    return bullet, client, body


def _turned(q: NDArray[np.float64]) -> list[float]:
    """Return a quaternion given as w x y z in pybullet's order x y z w."""
    return [float(q[1]), float(q[2]), float(q[3]), float(q[0])]


def render_clip(
    action: str, plan: MotionPlan, split: str = "train", seed: int | Sequence[int] = 0
) -> NDArray[np.uint8]:
    """Render one video of an action in a random scene.

    Args:
        action: A name out of `ACTIONS`.
        plan: Size, frames, frames a second and difficulty.
        split: Whose ranges of colour and speed to draw from.
        seed: Seed of the scene.

    Returns:
        Frames (T, H, W, 3), uint8.

    Example:
        >>> render_clip("walk", MotionPlan(frames=3, size=32)).shape
        (3, 32, 32, 3)
    """
    bullet, client, body = _humanoid()
    scene = _scene(plan, split, np.random.default_rng(seed))
    poses = _poses(action, plan, scene)
    for link, part in enumerate(_LINK_PARTS):
        bullet.changeVisualShape(body, link, rgbaColor=[*scene.colours[part], 1.0], physicsClientId=client)
    yaw, pitch = math.radians(scene.yaw), math.radians(scene.pitch)
    # A recorded walk goes along +x: yaw 0 films it from the side.
    right = np.array([math.cos(yaw), 0.0, -math.sin(yaw)])
    away = np.array([math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)])
    lens = bullet.computeProjectionMatrixFOV(45.0, 1.0, 0.1, 12.0)
    pixels_a_metre = plan.size / (2 * math.tan(math.radians(22.5)) * scene.distance)
    video = np.empty((plan.frames, plan.size, plan.size, 3), np.uint8)
    columns = np.arange(plan.size)
    for frame, pose in zip(video, poses, strict=True):
        bullet.resetBasePositionAndOrientation(body, list(pose[1:4]), _turned(pose[4:8]), physicsClientId=client)
        column = 8
        for joint, n in _JOINTS:
            value = _turned(pose[column : column + 4]) if n == 4 else [float(pose[column])]
            bullet.resetJointStateMultiDof(body, joint, value, physicsClientId=client)
            column += n
        # The camera goes along with the body, and the background passes by behind it.
        target = np.array([pose[1], 0.85 + scene.lift, pose[3]])
        view = bullet.computeViewMatrix(list(target + scene.distance * away), list(target), [0.0, 1.0, 0.0])
        _, _, image, _, links = bullet.getCameraImage(
            plan.size, plan.size, view, lens, lightDirection=scene.light, shadow=0, physicsClientId=client,
            renderer=bullet.ER_TINY_RENDERER,
        )  # fmt: skip
        passed = round(float(pose[1:4] @ right) * pixels_a_metre)
        np.copyto(frame, scene.background[:, (columns + passed) % scene.background.shape[1]])
        shown = np.asarray(links).reshape(plan.size, plan.size) >= 0
        frame[shown] = np.asarray(image, np.uint8).reshape(plan.size, plan.size, 4)[shown][:, :3]
    return video
