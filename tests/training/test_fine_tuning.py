"""Weights that exist are gone on from: with a new classifier for other classes, and a rate of its own for the rest."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toy_videos import ToyLoader, same_state, state_of, toy

from vidfuse import networks
from vidfuse.errors import InputError
from vidfuse.training import TrainRecipe, evaluate, network_for, start_from, train
from vidfuse.training.checkpoints import load_checkpoint, save_checkpoint

RECIPE = TrainRecipe(lr=0.05, epochs=3, batch_size=8, reference_batch=8, precision="float32")
QUIET = {"progress": False, "tensorboard": False}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_body_of_rate_0_keeps_its_weights_and_the_classifier_learns(tmp_path, optimizer):
    model = toy()
    before = state_of(model)
    done = train(model, ToyLoader(), replace(RECIPE, optimizer=optimizer, body_rate=0.0), tmp_path, **QUIET)
    for name, value in done.model.named_parameters():
        assert torch.equal(value, before[name]) == (not name.startswith("classifier.")), name


def test_the_first_step_of_the_body_is_its_share_of_the_full_one(tmp_path):
    """Oracle: one step of SGD is linear in its rate, for the same gradient and without decay."""
    recipe = replace(RECIPE, epochs=1, weight_decay=0.0)
    steps = {}
    for rate in (1.0, 0.25):
        model = toy(dropout=0.0)
        before = state_of(model)
        done = train(model, ToyLoader(n=8), replace(recipe, body_rate=rate), tmp_path / str(rate), **QUIET)
        steps[rate] = {name: value - before[name] for name, value in done.model.named_parameters()}
    for name, full in steps[1.0].items():
        share = 1.0 if name.startswith("classifier.") else 0.25
        torch.testing.assert_close(steps[0.25][name], share * full, rtol=1e-4, atol=1e-7)
    assert all(steps[1.0][name].abs().max() > 1e-4 for name in ("conv.weight", "classifier.weight"))


def test_a_run_with_a_slow_body_resumes_to_the_same_bits(tmp_path):
    recipe = replace(RECIPE, body_rate=0.1, ema=0.9)
    whole = train(toy(), ToyLoader(), recipe, tmp_path / "whole", **QUIET)

    class Stopped(ToyLoader):
        def set_epoch(self, epoch):
            super().set_epoch(epoch)
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(toy(), Stopped(), recipe, tmp_path / "cut", **QUIET)
    resumed = train(toy(seed=3), ToyLoader(), recipe, tmp_path / "cut", **QUIET)
    assert resumed.resumed_at == 2 and same_state(state_of(whole.model), state_of(resumed.model))


def test_a_network_without_a_classifier_has_no_body_to_slow_down(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(96, 3))
    with pytest.raises(InputError, match=r"body_rate=0\.1: expected a network whose classifier is named"):
        train(model, ToyLoader(), replace(RECIPE, body_rate=0.1), tmp_path, **QUIET)


def moving(n, colours, seed):
    """Clips of a square that wanders, on noise: (n, 3, 2, 32, 32), one class a colour."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(colours)
    clips = rng.normal(0, 0.3, (n, 3, 2, 32, 32)).astype(np.float32)
    for clip, label in zip(clips, labels, strict=True):
        y, x = rng.integers(0, 16, 2)
        for t in range(2):
            clip[:, t, y : y + 15, x + t : x + t + 15] += 2 * np.reshape(colours[label], (3, 1, 1))
    return torch.from_numpy(clips), [f"v{i}" for i in range(n)], torch.from_numpy(labels)


class Moving:
    def __init__(self, n, colours, seed, passes=1):
        self.clips, self.ids, self.labels = moving(n, colours, seed)
        self.epoch, self.passes = 0, passes

    def __len__(self):
        return self.passes * -(-len(self.ids) // 8)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        rng = np.random.default_rng(self.epoch)
        for _ in range(self.passes):
            for part in torch.from_numpy(rng.permutation(len(self.ids))).split(8):
                yield self.clips[part], [self.ids[i] for i in part], self.labels[part]


def test_from_weights_of_other_classes_a_network_learns_more_of_the_same_few_clips(tmp_path):
    """It has seen five colours, and learns three others of two clips each."""
    recipe = TrainRecipe(
        lr=3e-3, epochs=6, optimizer="adamw", batch_size=8, reference_batch=8, precision="float32", frames=2, size=32
    )
    torch.manual_seed(0)
    seen = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (-1, -1, -1)]
    before = train(network_for(2, "tpn_tiny", 5), Moving(40, seen, 0, passes=2), recipe, tmp_path / "before", **QUIET)
    start = start_from(before.folder / "last.pt", "tpn_tiny", 3)
    assert start.new_classifier and start.fields == {"frames": 2, "interval": 2, "size": 32, "body_rate": 0.1}
    few, others = [(1, 1, 0), (0, 1, 1), (1, 0, 1)], {}
    for name, weights in (("nothing", None), ("weights", start.weights)):
        torch.manual_seed(1)
        model = network_for(2, "tpn_tiny", 3, checkpoint=weights, replace_classifier=True)
        own = replace(recipe, **(start.fields if weights else {}))
        done = train(model, Moving(6, few, 1, passes=5), own, tmp_path / name, **QUIET)
        others[name] = evaluate(done.model, Moving(30, few, 2))
    assert others["weights"]["nll"] < 0.9 * others["nothing"]["nll"]
    assert others["weights"]["top1"] > others["nothing"]["top1"]


def test_the_classifier_is_kept_for_the_same_classes_only(tmp_path):
    weights = networks.create("tpn_tiny", num_classes=4).state_dict()
    torch.save({"state_dict": weights}, tmp_path / "plain.pth")
    kept = start_from(tmp_path / "plain.pth", "tpn_tiny", 4, ["a", "b", "c", "d"])  # whose names are not known
    assert not kept.new_classifier and "body_rate" not in kept.fields
    assert start_from(tmp_path / "plain.pth", "tpn_tiny", 5).new_classifier

    clips = ToyLoader(n=4, batch_size=4)
    clips.dataset = type("Data", (), {"videos": type("Videos", (), {"classes": list("abc"), "ids": (), "labels": ()})})
    save_checkpoint(tmp_path / "run.pt", load_checkpoint(_run(tmp_path / "run", clips) / "last.pt"))
    for classes, new in ((["a", "b", "c"], False), (["a", "c", "b"], True), (["x", "y", "z"], True), (None, False)):
        start = start_from(tmp_path / "run.pt", "x3d_tiny", 3, classes)
        assert start.new_classifier == new
        model = network_for(4, "x3d_tiny", 3, checkpoint=start.weights, replace_classifier=True)
        trained = load_checkpoint(tmp_path / "run.pt")["model"]
        other = [name for name, value in model.named_parameters() if not torch.equal(value, trained[name])]
        assert other == (["classifier.weight", "classifier.bias"] if new else [])


def _run(folder, loader):
    recipe = replace(RECIPE, epochs=1, frames=4, size=32)
    loader.clips = torch.randn(4, 3, 4, 32, 32)
    return train(networks.create("x3d_tiny", 3), loader, recipe, folder, **QUIET).folder


def test_weights_of_another_networks_run_are_refused_by_name(tmp_path):
    _run(tmp_path, loader=ToyLoader(n=4, batch_size=4))
    with pytest.raises(InputError, match=r"expected weights of r2plus1d_tiny in .*, but these are x3d_tiny's weights"):
        start_from(tmp_path / "last.pt", "r2plus1d_tiny", 3)


def test_what_is_taken_of_a_checkpoint_is_told_and_another_network_is_named_within_it_too(tmp_path):
    """A script's checkpoint: the network under a prefix, its average, a loss, and a classifier of 400 classes."""
    weights = networks.create("x3d_tiny", num_classes=400).state_dict()
    kept = {f"model.{key}": value for key, value in weights.items()} | {"loss.weight": torch.ones(400)}
    kept |= {f"ema.module.{key}": value for key, value in networks.create("x3d_tiny", 400).state_dict().items()}
    torch.save({"state_dict": kept, "epoch": 3}, tmp_path / "a.ckpt")
    start = start_from(tmp_path / "a.ckpt", "x3d_tiny", 3)
    n = sum(not key.endswith("num_batches_tracked") for key in weights)
    assert start.taken == (
        f"{n} weights of x3d_tiny; left aside: its classifier of 400 classes, loss.weight, ema.* ({n})"
    )
    model = network_for(8, "x3d_tiny", 3, checkpoint=start.weights, replace_classifier=True)
    assert torch.equal(model.hidden.weight, weights["hidden.weight"])
    other = start_from(tmp_path / "a.ckpt", "tin_tiny", 3)
    with pytest.raises(InputError, match=r"^expected weights of tin_tiny, but these are x3d_tiny's weights"):
        network_for(8, "tin_tiny", 3, checkpoint=other.weights, replace_classifier=True)


def test_of_networks_with_the_same_shapes_the_one_nearest_to_what_was_asked_for_is_named():
    weights = networks.create("x3d_s", num_classes=5).state_dict()  # x3d_m's and x3d_xs's have the same shapes
    with pytest.raises(InputError, match=r"expected weights of x3d_s\.pytorchvideo, but these are x3d_s's weights"):
        network_for(13, "x3d_s.pytorchvideo", 5, checkpoint=weights)


@pytest.mark.parametrize("network", ["x3d_tiny", "x3d_xs.pytorchvideo", "tin_tiny"])
def test_weights_of_the_network_that_was_asked_for_are_no_others(network):
    """Where its classes or its frames are not those that were asked for; x3d_s and others have the same shapes."""
    weights = networks.create(network, num_classes=7).state_dict()
    frames = networks.info(network).frames
    with pytest.raises(InputError, match="it tells 7 classes apart, and the network 3: say 7"):
        network_for(frames, network, 3, checkpoint=weights)
    if network == "tin_tiny":
        with pytest.raises(InputError, match="built for clips of 16 frames"):
            network_for(16, network, 7, checkpoint=weights)
