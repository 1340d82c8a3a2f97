"""One draw a clip: the same for all frames, independent between draws, and right in its arithmetic."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tvf

from vidfuse.errors import InputError
from vidfuse.video.clips import View, sample_source
from vidfuse.video.transforms import (
    Augmentation,
    ClipTransform,
    TransformConfig,
    apply_augmentation,
    apply_view,
    draw_augmentation,
    normalise,
)

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def _noise(frames=3, height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def test_every_frame_gets_the_same_draw():
    still = np.repeat(_noise(frames=1), 6, axis=0)
    transform = ClipTransform(TransformConfig(size=16, short_side=20, hue=0.1, erase=0.5))
    for seed in range(20):
        clip = transform(still, sample_source(seed))
        assert clip.shape == (3, 6, 16, 16)
        assert torch.equal(clip, clip[:, :1].expand_as(clip))


def test_the_same_source_gives_the_same_clip_and_another_another():
    transform = ClipTransform(TransformConfig(size=16, short_side=20))
    frames = _noise()
    first = transform(frames, sample_source(0, "a", "x3d"))
    assert torch.equal(first, transform(frames, sample_source(0, "a", "x3d")))
    assert not torch.equal(first, transform(frames, sample_source(0, "a", "swin")))


def test_drawing_leaves_torchs_own_chance_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    ClipTransform(TransformConfig(size=16))(_noise(), sample_source(0))
    assert torch.equal(torch.rand(1), expected)


def test_frames_are_not_changed_in_place():
    frames = _noise()
    before = frames.copy()
    ClipTransform(TransformConfig(size=16))(frames, sample_source(3))
    assert np.array_equal(frames, before)


def test_crop_flip_and_scale_by_hand():
    frames = _noise()
    config = TransformConfig(size=8, **PLAIN)
    out = apply_augmentation(frames, Augmentation(box=(2, 5, 8, 8), flip=True), config)
    expected = frames[:, 2:10, 5:13][:, :, ::-1].transpose(3, 0, 1, 2) / 255
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)


def test_colour_as_torchvision_has_it():
    frames = _noise()
    config = TransformConfig(size=20, **PLAIN)
    colour = (("contrast", 1.3), ("hue", 0.2), ("brightness", 0.7), ("saturation", 0.5))
    out = apply_augmentation(frames, Augmentation(box=(0, 0, 20, 20), colour=colour), config)
    for index, frame in enumerate(frames):
        picture = torch.from_numpy(frame[:, :20].copy()).permute(2, 0, 1)
        for name, factor in colour:
            picture = getattr(tvf, f"adjust_{name}")(picture, factor)
        np.testing.assert_allclose(out[:, index].numpy(), picture.numpy() / 255, atol=1e-6)


def test_gray_frames_have_no_colour():
    out = apply_augmentation(_noise(), Augmentation(box=(0, 0, 20, 20), gray=True), TransformConfig(size=20, **PLAIN))
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])
    luma = _noise()[:, :20, :20] @ np.array([0.2989, 0.587, 0.114]) / 255  # ITU-R BT.601
    np.testing.assert_allclose(out[0].numpy(), luma, atol=1.01 / 255)


def test_one_rectangle_is_blanked():
    draw = Augmentation(box=(0, 0, 20, 20), blank=(0.25, 0.5, 0.5, 0.25))
    out = apply_augmentation(np.full((2, 20, 20, 3), 255, np.uint8), draw, TransformConfig(size=20, **PLAIN))
    expected = np.ones((3, 2, 20, 20))
    expected[:, :, 5:15, 10:15] = 0
    np.testing.assert_array_equal(out.numpy(), expected)


def test_normalising_as_the_formula_says():
    clip = torch.from_numpy(_noise()).permute(3, 0, 1, 2)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    expected = (clip.numpy() / 255 - np.reshape(mean, (3, 1, 1, 1))) / np.reshape(std, (3, 1, 1, 1))
    out = normalise(clip, mean, std)
    assert out.is_contiguous()
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)


def test_draws_keep_to_the_configuration():
    config = TransformConfig(size=16, short_side=20, scale=(0.3, 0.9), hue=0.05, flip=0.5, gray=0.25, jitter=0.5)
    draws = [draw_augmentation(config, 40, 60, sample_source(i)) for i in range(2000)]
    for draw in draws:
        top, left, height, width = draw.box
        assert 0 <= top <= 40 - height
        assert 0 <= left <= 60 - width
        assert 0.25 * 2400 <= height * width <= 0.95 * 2400
        assert 0.65 <= width / height <= 1.45
        factors = dict(draw.colour)
        assert all(0.6 <= factors[name] <= 1.4 for name in factors if name != "hue")
        assert -0.05 <= factors.get("hue", 0) <= 0.05
        assert not (draw.gray and "saturation" in factors)
    shares = [
        np.mean([bool(value) for value in column]) for column in ([d.flip for d in draws], [d.gray for d in draws])
    ]
    np.testing.assert_allclose(shares, [0.5, 0.25], atol=0.05)
    orders = {tuple(name for name, _ in d.colour) for d in draws if len(d.colour) == 4}
    assert len(orders) == 24


def test_a_crop_without_resize_reaches_every_place():
    config = TransformConfig(size=8, scale=None)
    places = {draw_augmentation(config, 9, 10, sample_source(i)).box[:2] for i in range(200)}
    assert places == {(top, left) for top in range(2) for left in range(3)}


def test_a_frame_that_no_crop_of_the_range_fits_is_taken_in_the_middle():
    config = TransformConfig(size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert draw_augmentation(config, 10, 30, sample_source(0)).box == (0, 10, 10, 10)
    assert draw_augmentation(config, 30, 10, sample_source(0)).box == (10, 0, 10, 10)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_three_views_along_the_long_side(shape):
    frames = _noise(2, *shape)
    cuts = [
        apply_view(frames, View((0, 1), long, 0.5), 16, short_side=20, mean=(0, 0, 0), std=(1, 1, 1)).numpy()
        for long in (0.0, 0.5, 1.0)
    ]
    for start, cut in zip((0, 7, 14), cuts, strict=True):
        rows, columns = (slice(2, 18), slice(start, start + 16))
        rows, columns = (rows, columns) if shape[1] > shape[0] else (columns, rows)
        np.testing.assert_allclose(cut, frames[:, rows, columns].transpose(3, 0, 1, 2) / 255, atol=1e-6)


def test_a_mirrored_view_is_the_view_mirrored():
    frames = _noise()
    plain, mirrored = (apply_view(frames, View((0, 1, 2), flip=flip), 16) for flip in (False, True))
    assert torch.equal(plain.flip(-1), mirrored)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": 64, "short_side": 32},
        {"flip": 1.5},
        {"gray": -0.1},
        {"hue": 0.6},
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.5)},
        {"ratio": (2.0, 1.0)},
        {"std": (0.0, 1.0, 1.0)},
    ],
)
def test_configurations_that_make_no_sense(wrong):
    with pytest.raises(InputError, match="expected"):
        TransformConfig(**wrong)


@pytest.mark.parametrize("frames", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 3, 8, 8), np.uint8)])
def test_frames_of_another_kind(frames):
    with pytest.raises(InputError, match="expected frames as uint8"):
        apply_view(frames, View((0, 1)), 8)
