"""Drawing: the nearest hit of every ray, against marching along the ray; rectangles that cut nothing off; light."""

import numpy as np
import pytest

from motion import drawing

TANGENT = 0.4


def distance_to(points, a, c, ra, rc, samples=300):
    """How far points (N, 3) are from the spheres between two: the least over many of them, by brute force."""
    s = np.linspace(0, 1, samples)
    centres, radii = a + s[:, None] * (c - a), ra + s * (rc - ra)
    return (np.linalg.norm(points[:, None] - centres, axis=2) - radii).min(1)


def marched(d, a, c, ra, rc, far=10.0):
    """How far each ray (N, 3) goes: step by the distance to the surface until it is reached (sphere tracing)."""
    t = np.zeros(len(d))
    for _ in range(60):
        left = distance_to(t[:, None] * d, a, c, ra, rc)
        t = np.minimum(t + left, far)
    return np.where(left < 1e-3, t, np.inf)


CONES = {
    "capsule": ([-0.3, 0.2, 2.0], [0.4, -0.3, 2.4], 0.2, 0.2),
    "taper": ([-0.4, 0.0, 2.0], [0.4, 0.1, 2.2], 0.3, 0.1),
    "strong taper": ([0.0, -0.4, 2.0], [0.1, 0.3, 2.1], 0.4, 0.02),
    "its thin end ahead": ([0.05, 0.02, 1.5], [0.1, 0.1, 2.5], 0.05, 0.5),
    "its thick end ahead": ([0.05, 0.02, 1.5], [0.1, 0.1, 2.5], 0.4, 0.05),
    "along the view": ([0.0, 0.0, 1.5], [0.0, 0.0, 3.0], 0.2, 0.2),
    "half outside the picture": ([0.5, 0.5, 1.5], [1.5, 0.9, 1.8], 0.3, 0.2),
}


@pytest.mark.parametrize("cone", CONES.values(), ids=CONES)
def test_rays_meet_a_limb_where_marching_does(cone):
    a, c, ra, rc = np.array(cone[0]), np.array(cone[1]), cone[2], cone[3]
    size = 16
    distance, limb = drawing.nearest(a[None, :, None], c[None, :, None], np.array([[ra, rc]]), size, TANGENT)
    expected = marched(drawing.rays(size, TANGENT).T, a, c, ra, rc)
    hit, hit_expected = limb == 0, np.isfinite(expected)
    # Marching cannot decide about a ray that grazes the surface; no more than a few do.
    assert (hit != hit_expected).sum() <= 2
    assert hit.sum() > 10
    both = hit & hit_expected
    np.testing.assert_allclose(distance[both], expected[both], atol=5e-3)
    assert np.isinf(distance[~hit]).all() and (limb[~hit] == -1).all()


def test_rays_go_through_the_middles_of_the_pixels():
    x, y, z = drawing.rays(4, 0.5)
    np.testing.assert_allclose(x / z, np.tile([-0.375, -0.125, 0.125, 0.375], 4))
    np.testing.assert_allclose(y / z, np.repeat([0.375, 0.125, -0.125, -0.375], 4))
    np.testing.assert_allclose(np.linalg.norm([x, y, z], axis=0), 1)


def test_the_nearer_limb_hides_the_other_in_any_order():
    near, far = [[-0.3, 0, 1.5], [0.3, 0, 1.5]], [[0, -0.3, 2.5], [0, 0.3, 2.5]]
    for first, second in ((near, far), (far, near)):
        starts, ends = (np.array([first[i], second[i]], float)[:, :, None] for i in (0, 1))
        _, limb = drawing.nearest(starts, ends, np.full((2, 2), 0.1), 32, TANGENT)
        assert limb.reshape(32, 32)[16, 16] == (0 if first is near else 1)


def test_each_frame_shows_its_own_pose():
    x = np.array([-0.3, 0.0, 0.3])
    starts = np.stack([x, np.full(3, -0.2), np.full(3, 2.0)])[None]
    ends = np.stack([x, np.full(3, 0.2), np.full(3, 2.0)])[None]
    _, limb = drawing.nearest(starts, ends, np.array([[0.1, 0.1]]), 32, TANGENT)
    together = limb.reshape(3, 32, 32)
    for frame in range(3):
        one = slice(frame, frame + 1)
        _, alone = drawing.nearest(starts[..., one], ends[..., one], np.array([[0.1, 0.1]]), 32, TANGENT)
        assert np.array_equal(together[frame], alone.reshape(32, 32))
    assert [np.nonzero(f >= 0)[1].mean() for f in together] == pytest.approx(
        [9.5, 15.5, 21.5]
    )  # 16 (1 + x / z / TANGENT) - 0.5


def test_light_falls_off_with_the_angle_to_it():
    """A sphere, all but, lit from the camera: Lambert's law, n·l = sqrt(1 - (d/r)²) on its face."""
    size, r = 81, 0.5
    starts, ends = np.array([[[0.0], [0], [50]]]), np.array([[[0.0], [0], [50 + 1e-6]]])
    tangent = 0.02
    video = np.zeros((1, size, size, 3), np.uint8)
    light = np.array([0.0, 0, -1])
    drawing.draw(video, starts, ends, np.array([[r, r]]), np.array([[1.0, 0.5, 0.0]]), light, tangent)
    middle = video[0, size // 2]
    offset = (np.arange(size) - size // 2) * (2 * tangent * 50 / size) / r
    inside = np.abs(offset) < 0.9
    expected = 0.4 + 0.6 * np.sqrt(1 - offset[inside] ** 2)
    np.testing.assert_allclose(middle[inside, 0] / 255, expected, atol=0.02)
    np.testing.assert_allclose(middle[inside, 1] / 255, expected / 2, atol=0.02)
    assert (video[..., 2] == 0).all() and (middle[np.abs(offset) > 1.02] == 0).all()
    drawing.draw(video, starts, ends, np.array([[r, r]]), np.array([[1.0, 1, 1]]), -light, tangent)
    assert (video[0, size // 2, size // 2] == round(0.4 * 255)).all()  # from behind: what is left is the sky's light
