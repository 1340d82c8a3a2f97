"""Reading and loading checkpoints: every wrapper, all or nothing, nothing executed."""

import argparse
import functools
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.video import r2plus1d_18

from vidfuse import networks
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.networks.checkpoints import unwrap


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return networks.create("x3d_tiny").eval()


@pytest.fixture
def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(state_dict, model):
    expected = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    return set(state_dict) == set(expected) and all(torch.equal(state_dict[k], v) for k, v in expected.items())


@pytest.mark.parametrize("suffix", [".pth", ".pyth", ".pt"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state", "model", "model_state_dict", "model_ema"])
def test_reads_every_wrapper_and_file_kind(tmp_path, model, weights, wrapper, suffix):
    path = tmp_path / f"checkpoint{suffix}"
    torch.save(weights if wrapper is None else {"epoch": 3, wrapper: weights}, path)
    assert same(networks.read_checkpoint(path), model)


def test_a_tensor_beside_the_weights_is_no_weight(model, weights):
    assert same(unwrap({"best": torch.tensor(0.5), "model_state": weights}), model)


def test_takes_the_weights_of_an_average_of_models(model):
    assert same(unwrap(torch.optim.swa_utils.AveragedModel(model).state_dict()), model)


@pytest.mark.parametrize("name", ["a.pth", "a.SAFETENSORS", "a"])
def test_a_files_content_tells_what_it_is(tmp_path, model, weights, name):
    save_file(weights, tmp_path / name)
    assert same(networks.read_checkpoint(tmp_path / name), model)
    torch.save(weights, tmp_path / "b.safetensors")
    assert same(networks.read_checkpoint(tmp_path / "b.safetensors"), model)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod."])
def test_takes_off_a_common_prefix(tmp_path, model, weights, prefix):
    torch.save({"state_dict": {prefix + key: value for key, value in weights.items()}}, tmp_path / "a.pth")
    assert same(networks.read_checkpoint(tmp_path / "a.pth"), model)


def test_takes_off_what_torch_puts_between_names(model, weights):
    """Of blocks that were compiled, sharded or checkpointed one by one."""
    wrapped = {key.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."): v for key, v in weights.items()}
    wrapped = {key.replace("hidden.", "_fsdp_wrapped_module.hidden._orig_mod."): v for key, v in wrapped.items()}
    assert same(unwrap(wrapped), model)


def test_reads_safetensors(tmp_path, model, weights):
    save_file(weights, tmp_path / "a.safetensors")
    assert same(networks.read_checkpoint(tmp_path / "a.safetensors"), model)


def test_reads_the_format_before_zip_archives(tmp_path, model, weights):
    torch.save(weights, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert same(networks.read_checkpoint(tmp_path / "a.pth"), model)


def test_reads_checkpoints_that_keep_numpy_metrics(tmp_path, model, weights):
    torch.save({"best": np.float64(0.5), "curve": np.arange(3.0), "state_dict": weights}, tmp_path / "a.pth")
    assert same(networks.read_checkpoint(tmp_path / "a.pth"), model)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("zipped", [True, False])
def test_row_42_a_checkpoint_that_needs_pickled_objects(tmp_path, weights, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    meta = {"args": argparse.Namespace(lr=1), "hook": Harmful()}
    torch.save({"state_dict": weights, "meta": meta}, "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"posix\.mkdir"):
        networks.read_checkpoint("a.pth")
    assert not (tmp_path / "executed").exists()


class History:
    """As MMEngine's buffer: arrays, and functions of its own by name."""

    def __init__(self):
        self.values, self.methods = np.arange(3.0), {"mean": History.mean}

    def mean(self):
        return self.values.mean()


def test_settings_of_training_scripts_are_left_aside_and_never_built(tmp_path, model, weights, monkeypatch):
    for named in (History, History.mean):  # from Python 3.13 on, a method is pickled by the name of its own module
        monkeypatch.setattr(named, "__module__", "mmengine.logging")
    module = types.ModuleType("mmengine.logging")
    module.History = History
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
        patch.setitem(sys.modules, "mmengine.logging", module)
        settings = {
            "args": argparse.Namespace(lr=0.1, folder=Path("runs")),
            "optimizer": functools.partial(torch.optim.AdamW, lr=0.1),
            "loss": torch.nn.CrossEntropyLoss(weight=torch.ones(2)),
            "history": History(),
        }
        kept = {"state_dict": weights, "hyper_parameters": settings, "message_hub": {"history": History()}}
        torch.save(kept, tmp_path / "a.ckpt")
    assert same(networks.read_checkpoint(tmp_path / "a.ckpt"), model)  # where MMEngine is not installed


def test_two_networks_are_never_mixed_by_names_that_become_one():
    one = {"backbone.conv1_s.conv.weight": torch.zeros(2), "conv1_s.conv.weight": torch.zeros(2)}
    assert list(networks.convert_state_dict(one, "x3d_m.mmaction2")) == ["stem_space.weight"]
    two = one | {"conv1_s.conv.weight": torch.ones(2)}
    with pytest.raises(InputError, match=r"two for stem_space\.weight: backbone\.conv1_s.* and conv1_s"):
        networks.convert_state_dict(two, "x3d_m.mmaction2")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_that_was_saved_whole_is_refused_by_its_name(tmp_path, wrapped):
    network = torch.nn.Linear(2, 2)
    torch.save({"model": network, "epoch": 1} if wrapped else network, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"expected a state dict.*torch\.nn\.modules\.linear\.Linear"):
        networks.read_checkpoint(tmp_path / "a.pt")


def test_row_42_a_plain_pickle(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": {"conv1": np.zeros(3)}}))
    with pytest.raises(InputError, match=r"a\.pkl"):
        networks.read_checkpoint(tmp_path / "a.pkl")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        networks.read_checkpoint(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="none at"):
        networks.read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [{"epoch": 3, "optimizer": {}}, [1, 2], {}])
def test_a_file_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: expected a state dict"):
        networks.read_checkpoint(tmp_path / "a.pth")


def test_every_key_that_does_not_fit_is_named_and_nothing_is_loaded(model, weights):
    del weights["stem_space.weight"]
    weights["stray.weight"] = torch.zeros(2)
    weights["hidden.weight"] = torch.zeros(3, 4)
    fresh = networks.create("x3d_tiny")
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(InputError, match="nothing was loaded") as caught:
        networks.load_checkpoint(fresh, weights)
    message = str(caught.value)
    assert "1 missing: stem_space.weight" in message
    assert "1 unexpected: stray.weight" in message
    assert f"1 misshapen: hidden.weight (expected {tuple(model.hidden.weight.shape)}, got (3, 4))" in message
    assert all(torch.equal(before[key], value) for key, value in fresh.state_dict().items())


def test_another_class_count_is_replaced_only_on_request(model, weights):
    with pytest.raises(
        InputError, match=r"tells 15 classes apart, and the network 4: say 15 .*replace_classifier=True"
    ):
        networks.create("x3d_tiny", num_classes=4, checkpoint=weights)
    tuned = networks.create("x3d_tiny", num_classes=4, checkpoint=weights, replace_classifier=True)
    assert tuned.classifier.out_features == 4
    assert torch.equal(tuned.hidden.weight, model.hidden.weight)


def test_replacing_the_classifier_excuses_nothing_else(weights):
    weights["hidden.weight"] = torch.zeros(3, 4)
    with pytest.raises(InputError, match=r"1 misshapen: hidden\.weight"):
        networks.create("x3d_tiny", num_classes=4, checkpoint=weights, replace_classifier=True)


def test_a_source_layout_of_another_network_is_refused(weights):
    with pytest.raises(InputError, match="missing"):
        networks.create("r2plus1d_r18.torchvision", checkpoint={f"layer1.{k}": v for k, v in weights.items()})


def lightning(weights):
    """What a LightningModule keeps that holds the network, its average, a loss and a metric."""
    average = {f"ema.module.{key}": value + 1 for key, value in weights.items() if value.is_floating_point()}
    own = {f"model.{key}": value for key, value in weights.items()}
    others = {"ema.n_averaged": torch.tensor(3), "loss.weight": torch.ones(4), "metric.confmat": torch.zeros(4, 4)}
    return {"epoch": 3, "state_dict": average | own | others, "hyper_parameters": {"lr": 0.1}, "loops": {}}


@pytest.mark.parametrize(
    ("kept", "aside"),
    [
        (
            lightning,
            r"^the checkpoint holds more than x3d_tiny; left aside: ema\.\* \(\d+\), loss\.weight, metric\.confmat$",
        ),
        (lambda w: {"state_dict": {**w, "criterion.weight": torch.ones(4)}}, r"left aside: criterion\.weight$"),
        (
            lambda w: {f"module.net.backbone.{k}": v for k, v in w.items()} | {"module.queue": torch.ones(2)},
            "aside: queue$",
        ),
        (
            lambda w: {f"student.{k}": v for k, v in w.items()} | {f"teacher.{k}": v + 1 for k, v in w.items()},
            "teacher",
        ),
    ],
)
def test_a_network_is_found_in_what_a_training_script_kept(tmp_path, model, weights, kept, aside):
    torch.save(kept(weights), tmp_path / "a.ckpt")
    with pytest.warns(VidfuseWarning, match=aside) as told:
        found = networks.create("x3d_tiny", checkpoint=tmp_path / "a.ckpt")
    assert same({k: v for k, v in found.state_dict().items() if not k.endswith("num_batches_tracked")}, model)
    assert len(told) == 1 and len(str(told[0].message)) < 120


def test_one_block_more_or_one_weight_more_within_a_network_is_another_network(weights):
    larger = networks.create("x3d_tiny", depths=(2, 1, 1, 1)).state_dict()
    stray = {**weights, "hidden.bias": torch.zeros(2)}
    for other in (larger, stray):
        for state in (other, {f"model.{key}": value for key, value in other.items()} | {"loss.weight": torch.ones(4)}):
            with pytest.raises(InputError, match="unexpected: "):
                networks.create("x3d_tiny", checkpoint=state)


def test_published_layouts_are_found_under_a_prefix_too():
    """Oracle: torchvision's own network, whose names differ from those here."""
    torchvision = r2plus1d_18(num_classes=7).state_dict()
    name, kept = "r2plus1d_r18.torchvision", {f"net.{key}": value for key, value in torchvision.items()}
    plain = networks.create(name, 7, checkpoint=torchvision).state_dict()
    with torch.device("meta"):  # names are all that it takes
        model = networks.create(name, 7)
    found, aside = networks.find_weights(kept | {"loss.weight": torch.ones(1)}, model)
    assert aside == "loss.weight" and found.keys() == {k for k in torchvision if not k.endswith("num_batches_tracked")}
    assert all(torch.equal(plain[key], value) for key, value in networks.convert_state_dict(found, name).items())


def test_weights_that_are_no_finite_floating_point_numbers_are_refused(model, weights):
    """Quantised ones mean nothing without their scales; those of a run that diverged are NaN."""
    key = next(key for key, value in weights.items() if value.ndim > 1)
    said = "1 of other numbers than finite floating-point ones"
    with pytest.raises(InputError, match=rf"{said}: {key} \(torch.int8\)"):
        networks.create("x3d_tiny", checkpoint={**weights, key: weights[key].to(torch.int8)})
    with pytest.raises(InputError, match=rf"{said}: {key} \(torch.float32\)"):
        networks.create("x3d_tiny", checkpoint={**weights, key: weights[key] * float("nan")})
    networks.create("x3d_tiny", checkpoint={key: value.half() for key, value in weights.items()})


def test_two_networks_alike_are_refused_by_their_names(model, weights):
    """As of a two-stream model: nothing says which one is meant."""
    two = {f"rgb.{k}": v for k, v in weights.items()} | {f"flow.{k}": v + 1 for k, v in weights.items()}
    for kept in (two, {"state_dict": {f"model.{k}": v for k, v in two.items()}}):
        with pytest.raises(InputError, match=r"got those of 2 alike, under rgb\. and flow\.; pass the state dict"):
            networks.create("x3d_tiny", checkpoint=kept)
    compiled = {f"net.{k}": v for k, v in weights.items()} | {
        f"fast._orig_mod.{k}": v.clone() for k, v in weights.items()
    }
    with pytest.warns(VidfuseWarning, match="left aside: fast"):  # one network under two names
        found = networks.create("x3d_tiny", checkpoint=compiled).state_dict()
    assert same({k: v for k, v in found.items() if not k.endswith("num_batches_tracked")}, model)


@pytest.mark.parametrize(
    ("own", "copy"), [("encoder_q", "encoder_k"), ("backbone", "backbone_mmt"), ("backbone", "backbone_hist")]
)
def test_a_copy_that_contrastive_training_makes_is_no_second_network(model, weights, own, copy):
    both = {f"{copy}.{k}": v + 1 for k, v in weights.items()} | {f"{own}.{k}": v for k, v in weights.items()}
    with pytest.warns(VidfuseWarning, match=f"left aside: {copy}"):
        found = networks.create("x3d_tiny", checkpoint=both).state_dict()
    assert same({k: v for k, v in found.items() if not k.endswith("num_batches_tracked")}, model)


@pytest.mark.parametrize("other", ["state_dict_ema", "ema_state_dict", "averaged"])
def test_weights_beside_those_that_are_taken_are_told(model, weights, other):
    kept = {"state_dict": weights, other: {k: v + 1 for k, v in weights.items()}, "optimizer": {"state": {}}}
    with pytest.warns(VidfuseWarning, match=rf"under state_dict and under {other}: those under state_dict are taken"):
        assert same(unwrap(kept), model)
    unwrap(kept | {other: {f"{k}.exp_avg": v for k, v in weights.items()}})  # an optimiser's state, without a word


def test_embeddings_of_other_extents_are_resized_where_extents_are_set_alone():
    longer = networks.create("timesformer_tiny", 3, frames=16).state_dict()
    for settings in ({}, {"dropout": 0.1}):
        with pytest.raises(
            InputError, match=r"1 misshapen: time .*; it was made for clips of other extents: .*frames="
        ):
            networks.create("timesformer_tiny", 3, longer, **settings)
    taken = networks.create("timesformer_tiny", 3, longer, frames=16).state_dict()
    assert all(torch.equal(value, longer[key]) for key, value in taken.items())
    assert networks.create("timesformer_tiny", 3, longer, frames=8).state_dict()["time"].shape[1] == 8


def test_a_network_that_is_tied_to_a_number_of_frames_says_so():
    weights = networks.create("tin_tiny", 3).state_dict()
    with pytest.raises(
        InputError, match=r"built for clips of 16 frames: take as many as the checkpoint was trained on$"
    ):
        networks.create("tin_tiny", 3, weights, segments=16)


def test_files_that_torch_did_not_write_are_told_by_what_they_are(tmp_path, weights):
    arrays = {key: value.numpy() for key, value in weights.items()}
    np.savez(tmp_path / "a.npz", **arrays)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": arrays}))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"blobs": arrays}, protocol=2))
    (tmp_path / "a.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\n")
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:  # what TorchScript programs have and checkpoints have not
        for name in ("code/__torch__.py", "data.pkl", "constants.pkl", "version"):
            archive.writestr(f"a/{name}", b"3\n")
    torch.save(arrays, tmp_path / "c.pth")
    for name, said in {
        "a.npz": "an archive of NumPy",
        "a.pkl": "a pickle that torch did not write",
        "b.pkl": "a pickle that torch did not write",
        "a.pth": "it is text, which begins with 'version https",
        "a.pt": r"a TorchScript program: torch\.jit\.load\(file\)\.state_dict\(\)",
        "c.pth": r"found keys .*stem_space\.weight \(ndarray\), .* pass the mapping of names to tensors",
        ".": "got the folder .*pass the file of weights in it",
    }.items():
        with pytest.raises(InputError, match=said):
            networks.read_checkpoint(tmp_path / name)
