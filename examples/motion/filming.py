"""One video: a recorded action, done by a performer in clothes of the day, filmed in a scene of its own."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from motion import body, drawing, recordings
from motion.plan import ACTIONS, SPLITS, MotionPlan
from vidfuse.errors import InputError

__all__ = ["performer_of", "render_clip"]

_TANGENT = math.tan(math.radians(22.5))  # of half the camera's angle of view


@dataclass(frozen=True)
class _Scene:
    """What one video looks like, apart from the action and the performer."""

    yaw: float
    pitch: float
    distance: float
    lift: float
    speed: float
    phase: float
    light: NDArray[np.float64]
    clothes: dict[str, NDArray[np.float64]]
    bare: tuple[bool, bool]  # forearms, calves
    background: NDArray[np.uint8]


# What the splits differ in beside performers and scenes: how far hues are turned, and how fast the recordings play.
_HUES = {"train": 0.0, "val": 0.02, "test": 0.03}
_SPEEDS = {"train": (0.75, 1.3), "val": (0.7, 1.4), "test": (0.7, 1.4)}


def performer_of(plan: MotionPlan, split: str, number: int) -> body.Performer:
    """Return who performs a split's videos of this number, one of each action; no two splits share a performer."""
    return body.draw_performer(plan.variety, np.random.default_rng((plan.seed, SPLITS.index(split), number)))


def _scene(plan: MotionPlan, split: str, rng: np.random.Generator, place: int | None = None) -> _Scene:
    """Draw a scene; the plan's difficulty widens every range. Scenes of one place have one background."""
    d = plan.difficulty
    low, high = _SPEEDS[split]
    # Shirt, trousers, shoes: bright colours before a darker background, the less so the harder it is.
    hues = (np.array([0.0, 0.6, 0.35]) + d * (rng.random(3) - 0.5) + _HUES[split]) % 1.0
    shirt, trousers, shoes = (np.array(colorsys.hsv_to_rgb(h, *(1 - 0.6 * d * rng.random(2)))) for h in hues)
    return _Scene(
        yaw=math.radians(rng.uniform(-90, 90) * d + (8 if split == "test" else 0)),
        pitch=math.radians(rng.uniform(-5, 30) * d),
        distance=float(2.4 + rng.uniform(-0.3, 1.5) * d),
        lift=float(rng.uniform(-0.25, 0.25) * d),
        speed=float(rng.uniform(low, high)),
        phase=float(rng.random()),
        light=_unit(float(rng.uniform(-2, 2)), 3.0, float(rng.uniform(1, 3))),
        clothes={"shirt": shirt, "trousers": trousers, "shoes": shoes},
        bare=(bool(rng.random() < d), bool(rng.random() < d)),
        background=_background(plan.size, d, rng if place is None else np.random.default_rng((plan.seed, place))),
    )


def _unit(x: float, y: float, z: float) -> NDArray[np.float64]:
    return np.array([x, y, z]) / math.sqrt(x * x + y * y + z * z)


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


def render_clip(
    action: str, plan: MotionPlan, split: str = "train", number: int = 0, *, place: int | None = None
) -> NDArray[np.uint8]:
    """Render one video of the plan.

    The frames depend on the arguments alone: not on the machine, other videos or the number of processes. Nothing is
    summed by a library in an order of its own, and positions are rounded to a micrometre before they are drawn, so that
    another library's last digit of a sine does not show (NumPy 1.26 and 2.5 give the same frames).

    Args:
        action: A name out of `ACTIONS`.
        plan: Size, frames, frames a second, difficulty, variety and seed.
        split: Whose performers, and whose ranges of colour and speed.
        number: Which of the action's videos in the split.
        place: Where it is filmed: videos of one place, from 0 on, have the same background. None: a place of its own.

    Returns:
        Frames (T, H, W, 3), uint8.

    Raises:
        InputError: There is no such action or split.

    Example:
        >>> render_clip("walk", MotionPlan(frames=3, size=32)).shape
        (3, 32, 32, 3)
    """
    if action not in ACTIONS or split not in SPLITS:
        raise InputError(f"expected an action out of {ACTIONS} and a split out of {SPLITS}, got {action!r}, {split!r}")
    who = performer_of(plan, split, number)
    scene = _scene(
        plan, split, np.random.default_rng([plan.seed, SPLITS.index(split), number, 1 + ACTIONS.index(action)]), place
    )
    recording = recordings.load()[action]
    times = scene.phase * recording[1] + np.arange(plan.frames) * (scene.speed * who.tempo / plan.fps)
    poses = recordings.sample(recording, times)
    limbs, starts, ends = body.place(poses, who)

    # A recorded walk goes along +x: yaw 0 films it from the side. The camera goes along with the body.
    cy, sy, cp, sp = math.cos(scene.yaw), math.sin(scene.yaw), math.cos(scene.pitch), math.sin(scene.pitch)
    axes = np.array([[cy, 0.0, -sy], [-sy * sp, cp, -cy * sp], [-sy * cp, -sp, -cy * cp]])  # right, up, ahead
    hip = (starts[0] + ends[0]) / 2
    target = np.stack([hip[0], np.full(plan.frames, who.stature / 2 + scene.lift), hip[2]])

    def seen(points: NDArray[np.float64]) -> NDArray[np.float64]:
        away = points - target
        turned = [away[:, 0:1] * x + away[:, 1:2] * y + away[:, 2:3] * z for x, y, z in axes]
        return np.round(np.concatenate(turned, axis=1) + np.array([[0.0], [0], [scene.distance]]), 6)

    colours = {"skin": np.array(who.skin), "hair": np.array(who.hair), **scene.clothes}
    colours["sleeve"] = colours["skin" if scene.bare[0] else "shirt"]
    colours["calf"] = colours["skin" if scene.bare[1] else "trousers"]

    # The background passes by behind the body.
    metre = plan.size / (2 * _TANGENT * scene.distance)
    passed = np.round((hip[0] * axes[0, 0] + hip[2] * axes[0, 2]) * metre).astype(int)
    columns = (np.arange(plan.size) + passed[:, None]) % scene.background.shape[1]
    video = np.ascontiguousarray(scene.background[:, columns].swapaxes(0, 1))
    light = np.array([axis[0] * scene.light[0] + axis[1] * scene.light[1] + axis[2] * scene.light[2] for axis in axes])
    light[2] = -abs(light[2])  # never from behind the body
    drawing.draw(
        video, seen(starts), seen(ends), np.array([limb.radii for limb in limbs]),
        np.stack([colours[limb.part] for limb in limbs]), light, _TANGENT,
    )  # fmt: skip
    return video
