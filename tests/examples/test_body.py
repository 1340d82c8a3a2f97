"""Bodies: joints where rotation matrices put them, performers that differ, feet on the ground."""

from dataclasses import astuple, replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from motion import body, recordings
from motion.plan import ACTIONS

PLAIN = body.Performer()
REST = np.zeros((1, 43))
REST[:, list(recordings.QUATERNIONS)] = 1


def ends(poses, who):
    """Every limb's start and end (L, 3, T), by joint and part."""
    limbs, starts, stops = body.place(poses, who)
    return {(limb.joint, limb.part): (start, stop) for limb, start, stop in zip(limbs, starts, stops, strict=True)}


def test_at_rest_a_performer_stands_upright_and_is_alike_on_both_sides():
    limbs, starts, stops = body.place(REST, PLAIN)
    radii = np.array([limb.radii for limb in limbs])
    low = min((starts[:, 1, 0] - radii[:, 0]).min(), (stops[:, 1, 0] - radii[:, 1]).min())
    high = max((starts[:, 1, 0] + radii[:, 0]).max(), (stops[:, 1, 0] + radii[:, 1]).max())
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(PLAIN.stature, rel=0.03)
    placed = ends(REST, PLAIN)
    for (joint, part), (start, stop) in placed.items():
        if joint.startswith("right"):
            mirrored = placed[joint.replace("right", "left"), part]
            for here, there in zip((start, stop), mirrored, strict=True):
                np.testing.assert_allclose(here * [[1], [1], [-1]], there, atol=1e-12)
    toe = placed["right ankle", "shoes"][1]
    assert toe[0, 0] > 0.1 and toe[1, 0] < 0.1  # feet point ahead, on the ground
    assert placed["right elbow", "skin"][1][1, 0] < placed["right shoulder", "shirt"][1][1, 0]  # arms hang


@pytest.mark.parametrize("action", ["cartwheel", "kick", "getup faceup"])
@pytest.mark.parametrize("who", [PLAIN, body.draw_performer(1, np.random.default_rng(5))], ids=["plain", "drawn"])
def test_limbs_are_where_rotation_matrices_put_them(action, who):
    """Chains of SciPy's rotations, from the root to the right hand and foot."""
    frames, _, _ = recordings.load()[action]
    poses = frames[::7]
    joints, _ = body.skeleton(who)
    placed = ends(poses, who)

    def turn(column):
        return Rotation.from_quat(poses[:, column : column + 4], scalar_first=True)

    def about(axis, angle):
        return Rotation.from_rotvec(np.atleast_1d(angle)[:, None] * np.array([axis == "x", axis == "y", axis == "z"]))

    root = turn(3)
    start = placed["root", "trousers"]
    origin = (start[0] + start[1]).T / 2 - root.apply([0, 0.01 * who.stature, 0])
    hip = origin + root.apply(joints["right hip"])
    thigh = root * turn(15)
    knee = hip + thigh.apply(joints["right knee"])
    shin = thigh * about("z", poses[:, 19])
    ankle = knee + shin.apply(joints["right ankle"])
    np.testing.assert_allclose(placed["right knee", "calf"][0].T, knee, atol=1e-9)
    np.testing.assert_allclose(placed["right knee", "calf"][1].T, ankle, atol=1e-9)

    chest_at = origin + root.apply(joints["chest"])
    chest = root * about("z", -who.lean) * turn(7)
    shoulder = chest_at + chest.apply(joints["right shoulder"])
    arm = chest * about("x", -who.spread) * turn(24)
    elbow = shoulder + arm.apply(joints["right elbow"])
    fore = arm * about("z", poses[:, 28] + who.bend)
    np.testing.assert_allclose(placed["right elbow", "sleeve"][0].T, elbow, atol=1e-9)
    wrist = elbow + fore.apply([0, -0.157 * who.stature * who.arm, 0])
    np.testing.assert_allclose(placed["right elbow", "sleeve"][1].T, wrist, atol=1e-9)


@pytest.mark.parametrize("action", ACTIONS)
def test_the_lowest_point_touches_the_ground_whatever_the_body(action):
    frames, _, _ = recordings.load()[action]
    heights = []
    for who in (PLAIN, replace(PLAIN, leg=1.2), replace(PLAIN, girth=1.4, stature=1.5)):
        limbs, starts, stops = body.place(frames, who)
        radii = np.array([limb.radii for limb in limbs])
        low = np.minimum(starts[:, 1] - radii[:, :1], stops[:, 1] - radii[:, 1:]).min(0)
        assert low.min() == pytest.approx(0, abs=1e-12)
        heights.append(starts[0, 1])
    if action in ("walk", "run"):
        assert (heights[1] > heights[0]).all()  # longer legs carry the hip higher


def test_longer_legs_stride_further():
    frames, _, _ = recordings.load()["walk"]
    travelled = []
    for leg in (0.9, 1.0, 1.1):
        hip = ends(frames, replace(PLAIN, leg=leg))["root", "trousers"][0]
        travelled.append(hip[0, -1] - hip[0, 0])
    assert travelled == sorted(travelled) and travelled[2] > 1.15 * travelled[0]


def test_performers_differ_and_without_variety_they_do_not():
    drawn = [body.draw_performer(1.0, np.random.default_rng(seed)) for seed in range(40)]
    numbers = np.array([[v for v in astuple(who) if isinstance(v, float)] for who in drawn])
    assert (numbers.std(0) > 0.01).all()
    assert 1.5 < numbers[:, 0].min() < 1.6 and 1.85 < numbers[:, 0].max() < 1.95  # metres
    colours = np.array([[who.skin, who.hair] for who in drawn])
    assert colours.min() >= 0 and colours.max() <= 1
    assert len({body.draw_performer(0.0, np.random.default_rng(seed)) for seed in range(9)}) == 1


@pytest.mark.parametrize("seed", range(20))
def test_every_limb_is_a_round_cone(seed):
    """A limb whose one end sphere holds the other would have no sides to draw."""
    _, limbs = body.skeleton(body.draw_performer(1.0, np.random.default_rng(seed)))
    for limb in limbs:
        assert np.linalg.norm(np.subtract(limb.end, limb.start)) > 1.2 * abs(limb.radii[0] - limb.radii[1])
        assert min(limb.radii) > 0
