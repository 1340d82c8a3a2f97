"""A performer's body: the skeleton's proportions, and where its limbs are in each pose.

Lengths are shares of the stature after Drillis and Contini (1966), as D. A. Winter, *Biomechanics and Motor Control of
Human Movement*, figure 4.1, gives them; a performer differs from them by factors of its own. Limbs are round cones:
the spheres between a first and a last one, whose radii may differ.

            head                  x: ahead     y: up     z: to the right hand
             |
    hand ... shoulders ... hand   A joint turns its limb against the limb before it; with all joints at rest, the
             |                    person stands upright and lets the arms hang.
            root
            /  \
         foot  foot
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Limb", "Performer", "draw_performer", "place", "skeleton"]

Floats = NDArray[np.float64]
Vector = tuple[float, float, float]

_RECORDED_LEG = 0.88  # metres from hip to sole in the body that was recorded


@dataclass(frozen=True)
class Performer:
    """Whom a video shows: factors on the usual proportions, bearing in radians, colours.

    Attributes:
        stature: In metres.
        leg: Factor of the legs' length.
        arm: Factor of the arms' length.
        trunk: Factor of the trunk's length.
        girth: Factor of the limbs' and the trunk's thickness.
        shoulders: Factor of the shoulders' width.
        hips: Factor of the hips' width.
        head: Factor of the head's size.
        lean: How far the chest leans ahead.
        spread: How far the arms are held away from the body.
        bend: How far the elbows are bent beyond the recorded angle.
        tempo: Factor on the speed of all that it does.
        skin: Its colour, in 0..1.
        hair: Likewise.
    """

    stature: float = 1.72
    leg: float = 1.0
    arm: float = 1.0
    trunk: float = 1.0
    girth: float = 1.0
    shoulders: float = 1.0
    hips: float = 1.0
    head: float = 1.0
    lean: float = 0.0
    spread: float = 0.0
    bend: float = 0.0
    tempo: float = 1.0
    skin: Vector = (0.85, 0.64, 0.5)
    hair: Vector = (0.2, 0.13, 0.1)


def draw_performer(variety: float, rng: np.random.Generator) -> Performer:
    """Draw a performer; variety, from 0 to 1, widens every range."""

    def around(middle: float, reach: float) -> float:
        return middle + variety * reach * float(rng.uniform(-1, 1))

    return Performer(
        stature=around(1.72, 0.2),
        leg=around(1, 0.08),
        arm=around(1, 0.08),
        trunk=around(1, 0.07),
        girth=around(1.05, 0.3),
        shoulders=around(1, 0.13),
        hips=around(1.05, 0.2),
        head=around(1.02, 0.14),
        lean=around(0, 0.12),
        spread=around(0.1 * variety, 0.15),
        bend=around(0.12 * variety, 0.2),
        tempo=around(1, 0.1),
        skin=colorsys.hsv_to_rgb(around(0.065, 0.02), around(0.48, 0.14), around(0.68, 0.27)),
        hair=colorsys.hsv_to_rgb(around(0.08, 0.04), around(0.5, 0.3), around(0.3, 0.25)),
    )


@dataclass(frozen=True)
class Limb:
    """A round cone that moves with a joint: from a first to a last sphere, in the joint's axes."""

    joint: str
    part: str
    start: Vector
    end: Vector
    radii: tuple[float, float]


# The joints in the order of a pose's columns: name, the joint before it, first column, and how many.
_JOINTS = (
    ("root", "", 3, 4),
    ("chest", "root", 7, 4),
    ("neck", "chest", 11, 4),
    ("right hip", "root", 15, 4),
    ("right knee", "right hip", 19, 1),
    ("right ankle", "right knee", 20, 4),
    ("right shoulder", "chest", 24, 4),
    ("right elbow", "right shoulder", 28, 1),
    ("left hip", "root", 29, 4),
    ("left knee", "left hip", 33, 1),
    ("left ankle", "left knee", 34, 4),
    ("left shoulder", "chest", 38, 4),
    ("left elbow", "left shoulder", 42, 1),
)


def skeleton(who: Performer) -> tuple[dict[str, Vector], list[Limb]]:
    """Return where each joint sits in the axes of the joint before it, and the limbs, in metres."""
    size = who.stature
    thigh, shin = 0.245 * size * who.leg, 0.246 * size * who.leg
    upper, fore = 0.172 * size * who.arm, 0.157 * size * who.arm
    waist, back = 0.115 * size * who.trunk, 0.185 * size * who.trunk
    hip, shoulder, head = 0.052 * size * who.hips, 0.112 * size * who.shoulders, size * who.head
    thick = size * who.girth
    lung, belly = 0.042 * size * who.shoulders, 0.03 * size * who.hips
    joints: dict[str, Vector] = {"chest": (0, waist, 0), "neck": (0, back, 0)}
    limbs = [
        Limb("root", "trousers", (0, 0.01 * size, -hip * 0.8), (0, 0.01 * size, hip * 0.8), (0.056 * thick,) * 2),
        Limb("chest", "shirt", (0, 0.16 * back, -lung), (-0.005 * size, 0.72 * back, -lung * 1.1),
             (0.052 * thick, 0.057 * thick)),
        Limb("chest", "shirt", (0, 0.16 * back, lung), (-0.005 * size, 0.72 * back, lung * 1.1),
             (0.052 * thick, 0.057 * thick)),
        Limb("chest", "shirt", (-0.008 * size, 0.87 * back, -shoulder * 0.8), (-0.008 * size, 0.87 * back,
             shoulder * 0.8), (0.036 * thick,) * 2),
        Limb("neck", "skin", (-0.004 * size, -0.02 * size, 0), (0.004 * size, 0.05 * head, 0),
             (0.03 * thick, 0.027 * thick)),
        Limb("neck", "skin", (0.014 * head, 0.062 * head, 0), (0.004 * head, 0.108 * head, 0),
             (0.04 * head, 0.052 * head)),
        Limb("neck", "hair", (-0.02 * head, 0.085 * head, 0), (-0.008 * head, 0.118 * head, 0),
             (0.045 * head, 0.052 * head)),
    ]  # fmt: skip
    limbs += [
        Limb("root", "shirt", (0, 0.045 * size, side * belly), (0, waist + 0.03 * size, side * belly * 1.1),
             (0.05 * thick, 0.051 * thick))
        for side in (-1, 1)
    ]  # fmt: skip
    for name, side in (("right", 1), ("left", -1)):
        joints |= {
            f"{name} hip": (0, 0, side * hip),
            f"{name} knee": (0, -thigh, 0),
            f"{name} ankle": (0, -shin, 0),
            f"{name} shoulder": (-0.008 * size, 0.87 * back, side * shoulder),
            f"{name} elbow": (0, -upper, 0),
        }
        limbs += [
            Limb(f"{name} hip", "trousers", (0, -0.01 * size, 0), (0, -thigh, 0), (0.052 * thick, 0.034 * thick)),
            Limb(f"{name} knee", "calf", (0, 0, 0), (0, -shin, 0), (0.035 * thick, 0.023 * thick)),
            Limb(f"{name} ankle", "shoes", (-0.015 * size, -0.02 * size, 0), (0.085 * size, -0.026 * size, 0),
                 (0.025 * size, 0.019 * size)),
            Limb(f"{name} shoulder", "shirt", (0, 0, 0), (0, -upper, 0), (0.034 * thick, 0.025 * thick)),
            Limb(f"{name} elbow", "sleeve", (0, 0, 0), (0, -fore, 0), (0.025 * thick, 0.018 * thick)),
            Limb(f"{name} elbow", "skin", (0, -fore - 0.015 * size, 0), (0, -fore - 0.058 * size, 0),
                 (0.021 * size, 0.016 * size)),
        ]  # fmt: skip
    return joints, limbs


def place(poses: Floats, who: Performer) -> tuple[list[Limb], Floats, Floats]:
    """Return a performer's limbs (L of them), and the spheres' centres at their two ends in each pose.

    A performer with longer legs moves on at a larger stride, and is raised or lowered as a whole so that its lowest
    point in these poses touches the ground.

    Args:
        poses: (T, 43), as `motion.recordings.sample` gives them.
        who: The performer.

    Returns:
        The limbs, their starts (L, 3, T) and their ends, in metres; y is the height above the ground.
    """
    offsets, limbs = skeleton(who)
    axes, origin = {"": np.array([[1.0], [0], [0], [0]])}, {"": np.zeros((3, 1))}
    for name, before, column, columns in _JOINTS:
        if columns == 4:
            turn = poses[:, column : column + 4].T
        else:
            turn = _about("z", poses[:, column] + (who.bend if "elbow" in name else 0.0))
        if name == "chest":
            turn = _times(_about("z", -who.lean), turn)
        if "shoulder" in name:
            turn = _times(_about("x", -who.spread if "right" in name else who.spread), turn)
        axes[name] = _times(axes[before], turn)
        if name == "root":
            origin[name] = poses[:, :3].T * ((0.491 * who.leg + 0.045) * who.stature / _RECORDED_LEG)
        else:
            origin[name] = origin[before] + _turned(axes[before], offsets[name])
    starts = np.stack([origin[limb.joint] + _turned(axes[limb.joint], limb.start) for limb in limbs])
    ends = np.stack([origin[limb.joint] + _turned(axes[limb.joint], limb.end) for limb in limbs])
    radii = np.array([limb.radii for limb in limbs])
    ground = min((starts[:, 1] - radii[:, :1]).min(), (ends[:, 1] - radii[:, 1:]).min())
    starts[:, 1] -= ground
    ends[:, 1] -= ground
    return limbs, starts, ends


def _about(axis: str, angle: float | Floats) -> Floats:
    """Return the quaternions (4, T) of turns about an axis."""
    half = np.atleast_1d(angle) / 2
    q = np.zeros((4, len(half)))
    q[0], q["wxyz".index(axis)] = [math.cos(h) for h in half], [math.sin(h) for h in half]
    return q


def _times(p: Floats, q: Floats) -> Floats:
    """Return the products of quaternions (4, T): first q, then p."""
    return np.stack(
        [
            p[0] * q[0] - p[1] * q[1] - p[2] * q[2] - p[3] * q[3],
            p[0] * q[1] + p[1] * q[0] + p[2] * q[3] - p[3] * q[2],
            p[0] * q[2] - p[1] * q[3] + p[2] * q[0] + p[3] * q[1],
            p[0] * q[3] + p[1] * q[2] - p[2] * q[1] + p[3] * q[0],
        ]
    )


def _turned(q: Floats, v: Vector) -> Floats:
    """Return a vector turned by each of the unit quaternions (4, T): v + 2 w (u x v) + 2 u x (u x v)."""
    w, x, y, z = q
    a, b, c = 2 * (y * v[2] - z * v[1]), 2 * (z * v[0] - x * v[2]), 2 * (x * v[1] - y * v[0])
    return np.stack([v[0] + w * a + y * c - z * b, v[1] + w * b + z * a - x * c, v[2] + w * c + x * b - y * a])
