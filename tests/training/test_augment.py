"""Mixed batches are the weighted sums, or the pasted boxes, that their papers define, and their targets say so."""

import numpy as np
import pytest
import torch
from toy_videos import N_CLASSES, toy_clips

from vidfuse.errors import InputError
from vidfuse.training import TrainRecipe
from vidfuse.training.augment import augment_batch, swap_scenes


def recipe(**mixing):
    return TrainRecipe(lr=0.1, epochs=1, **mixing)


@pytest.mark.parametrize("seed", range(5))
def test_mixup_adds_pairs_and_their_targets_in_one_proportion(seed):
    """Oracle: the proportion is read off the targets, and must explain every pixel (Zhang et al. 2018, section 2)."""
    clips, _, labels = toy_clips(8)
    torch.manual_seed(seed)
    mixed, targets = augment_batch(clips, labels, recipe(mixup=0.8), N_CLASSES)
    other = clips.roll(1, 0)
    share = ((mixed - other) * (clips - other)).sum() / ((clips - other) ** 2).sum()
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * clips + (1 - share) * other, rtol=1e-4, atol=1e-5)
    one_hot = torch.eye(N_CLASSES)
    torch.testing.assert_close(targets, share * one_hot[labels] + (1 - share) * one_hot[labels.roll(1)])


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_pastes_one_box_into_all_frames(seed):
    """Oracle: pixels come from one clip or the other, and targets count them (Yun et al. 2019, section 3.1)."""
    clips, _, labels = toy_clips(8)
    torch.manual_seed(seed)
    mixed, targets = augment_batch(clips, labels, recipe(cutmix=1.0), N_CLASSES)
    other = clips.roll(1, 0)
    pasted = mixed == other
    assert torch.equal(mixed, torch.where(pasted, other, clips))
    assert (pasted == pasted[:1, :1, :1]).all()  # the same pixels of every clip, colour and frame
    share = 1 - pasted.float().mean()
    one_hot = torch.eye(N_CLASSES)
    torch.testing.assert_close(targets, share * one_hot[labels] + (1 - share) * one_hot[labels.roll(1)])


def test_with_both_each_batch_draws_one_and_without_any_nothing_changes():
    clips, _, labels = toy_clips(8)
    torch.manual_seed(0)
    kinds = set()
    for _ in range(20):
        mixed, _ = augment_batch(clips, labels, recipe(mixup=0.8, cutmix=1.0), N_CLASSES)
        kinds.add(bool(((mixed == clips) | (mixed == clips.roll(1, 0))).all()))
    assert kinds == {True, False}
    same, as_given = augment_batch(clips, labels, recipe(), N_CLASSES)
    assert same is clips and as_given is labels
    alone, one = augment_batch(clips[:1], labels[:1], recipe(mixup=0.8), N_CLASSES)
    assert torch.equal(alone, clips[:1]) and torch.equal(one, labels[:1])


@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_the_clips_of_several_members_are_mixed_as_if_they_were_one(mixing):
    clips, _, labels = toy_clips(8)
    torch.manual_seed(3)
    mixed, targets = augment_batch({"a": clips, "b": clips.flip(1)[:, :, :2]}, labels, recipe(**mixing), N_CLASSES)
    torch.manual_seed(3)
    alone, own = augment_batch(clips, labels, recipe(**mixing), N_CLASSES)
    assert torch.equal(mixed["a"], alone) and torch.equal(mixed["b"], alone.flip(1)[:, :, :2])
    assert torch.equal(targets, own)


def test_one_box_is_no_common_share_of_clips_of_two_sizes():
    clips, _, labels = toy_clips(4)
    two = {"a": clips, "b": clips[..., :-2, :-2]}
    with pytest.raises(InputError, match="cutmix: expected clips of one size"):
        augment_batch(two, labels, recipe(cutmix=1.0), N_CLASSES)
    mixed, _ = augment_batch(two, labels, recipe(mixup=0.8), N_CLASSES)
    assert torch.equal(mixed["b"], mixed["a"][..., :-2, :-2])


@pytest.mark.parametrize("seed", range(3))
def test_what_stands_still_is_replaced_by_a_still_of_another_clip(seed):
    """Oracle: the mask of the formula, pixel by pixel in NumPy; the still is one frame of the clip before."""
    clips = torch.randn(5, 3, 6, 7, 8, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    swapped = swap_scenes({"a": clips}, 0.5)["a"].numpy()
    x, same = clips.numpy(), []
    for n in range(5):
        middle = np.sort(x[n], axis=1)[:, 2:3]  # torch's median of six is the third
        change = np.pad(np.abs(x[n] - middle).mean(0), ((0, 0), (1, 1), (1, 1)))
        smooth = sum(change[:, i : i + 7, j : j + 8] for i in range(3) for j in range(3)) / 9
        moves = np.broadcast_to(smooth > smooth.mean(), x[n].shape)
        candidates = [np.where(moves, x[n], x[n - 1][:, t : t + 1]) for t in range(6)]
        hits = [np.array_equal(swapped[n], other) for other in (x[n], *candidates)]
        assert sum(hits) == 1
        same.append(hits[0])
    assert len(set(same)) == 2  # some keep their scene, some do not


def test_scenes_are_swapped_alike_for_all_members_and_labels_stay():
    clips, _, labels = toy_clips(8)
    torch.manual_seed(3)
    both, targets = augment_batch({"a": clips, "b": clips.clone()}, labels, recipe(scenes=0.5), N_CLASSES)
    torch.manual_seed(3)
    alone, _ = augment_batch(clips, labels, recipe(scenes=0.5), N_CLASSES)
    assert torch.equal(both["a"], alone) and torch.equal(both["b"], alone) and targets is labels
    assert not torch.equal(alone, clips)
    assert torch.equal(swap_scenes({"a": clips}, 0.0)["a"], clips)
    assert torch.equal(augment_batch(clips[:1], labels[:1], recipe(scenes=1.0), N_CLASSES)[0], clips[:1])
