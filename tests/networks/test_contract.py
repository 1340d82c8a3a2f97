"""What every network of the catalogue owes its callers, in one place."""

import importlib

import pytest
import torch
from torch import nn

from vidfuse import networks
from vidfuse.errors import InputError
from vidfuse.networks.layers import finish

NAMES = networks.names()
TINY = networks.names("*_tiny")


def module_of(name):
    return importlib.import_module(type(build(name)).__module__)


def build(name, **settings):
    torch.manual_seed(0)
    return networks.create(name, **settings)


def clips_for(name, count=2):
    facts = networks.info(name)
    torch.manual_seed(1)
    return torch.randn(count, 3, facts.frames, facts.size, facts.size)


def test_each_architecture_has_a_tiny_preset():
    assert {f"{name.partition('_')[0]}_tiny" for name in NAMES} == set(TINY)


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_what_its_info_says(name):
    facts = networks.info(name)
    with torch.device("meta"):
        model = networks.create(name)
    assert facts.name == model.name == name
    assert model.classifier.in_features == model.num_features
    counted = networks.cost(name)
    assert (counted.parameters, counted.n_classes) == (facts.parameters, facts.n_classes)
    assert counted.clip == (facts.frames, facts.size, facts.size)
    assert counted.gmacs == pytest.approx(facts.gmacs, rel=5e-3)


@pytest.mark.parametrize("name", TINY)
def test_a_modules_presets_are_its_catalogue_names(name):
    module = module_of(name)
    architecture = module.__name__.rpartition(".")[2]
    known = networks.names(f"{architecture}_*")
    assert set(module.PRESETS) <= set(known)
    assert all(networks.settings(name) in module.PRESETS.values() for name in known)


@pytest.mark.parametrize("name", TINY)
def test_logits_are_finite_and_eval_is_deterministic(name):
    model, clips = build(name).eval(), clips_for(name)
    with torch.no_grad():
        first, second = model(clips), model(clips)
    assert first.isfinite().all()
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("name", TINY)
def test_eval_logits_do_not_depend_on_the_batch(name):
    model, clips = build(name).eval(), clips_for(name, 3)
    with torch.no_grad():
        torch.testing.assert_close(model(clips)[1:2], model(clips[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_gradient_reaches_every_parameter(name):
    model = build(name)
    with torch.no_grad():
        for parameter in model.parameters():  # layers that start at zero would hide what is behind them
            parameter.add_(0.02 * torch.randn_like(parameter))
    model(clips_for(name)).square().sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("name", TINY)
def test_activation_checkpointing_changes_no_gradient(name):
    gradients = []
    for enable in (False, True):
        model = build(name).eval()
        model.set_grad_checkpointing(enable)
        model(clips_for(name)).logsumexp(dim=-1).sum().backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    plain, checkpointed = gradients
    for key, gradient in plain.items():
        torch.testing.assert_close(checkpointed[key], gradient, rtol=1e-4, atol=1e-6)


def kept_for_the_backward_pass(model, clips):
    """The bytes that a forward pass keeps, parameters aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(clips)
    return sum(kept.values()), logits


@pytest.mark.parametrize("name", TINY)
def test_activation_checkpointing_keeps_less_and_computes_it_again(name):
    model, clips = build(name).eval(), clips_for(name)
    calls = []
    for module in model.modules():
        if not list(module.children()) and list(module.parameters()):
            module.register_forward_hook(lambda module, *_: calls.append(module))
    plain, _ = kept_for_the_backward_pass(model, clips)
    model.set_grad_checkpointing()
    calls.clear()
    checkpointed, logits = kept_for_the_backward_pass(model, clips)
    forward = len(calls)
    logits.sum().backward()
    assert checkpointed < 0.8 * plain
    assert len(calls) - forward >= forward / 2


def test_activation_checkpointing_is_refused_where_there_is_nothing_to_recompute():
    class Maps(networks.VideoNetwork):
        def stages(self, clips):
            return [clips]

    model = Maps(3, 2, 0.0)
    model.set_grad_checkpointing(False)
    with pytest.raises(InputError, match=r"Maps cannot recompute activations.* walk_stages"):
        model.set_grad_checkpointing()


@pytest.mark.parametrize(("name", "compiled"), [*((name, False) for name in TINY), ("x3d_tiny", True)])
def test_activation_checkpointing_counts_a_batch_once(name, compiled):
    buffers = []
    for enable in (False, True):
        model = build(name)
        model.set_grad_checkpointing(enable)
        forward = torch.compile(model, backend="aot_eager") if compiled else model
        forward(clips_for(name)).logsumexp(dim=-1).sum().backward()
        buffers.append(dict(model.named_buffers()))
        norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d))]
        assert all(norm.momentum == 0.1 and norm.num_batches_tracked == 1 for norm in norms)
    plain, checkpointed = buffers
    for key, buffer in plain.items():
        torch.testing.assert_close(checkpointed[key], buffer)


@pytest.mark.parametrize("name", TINY)
def test_stages_are_maps_that_shrink_and_feed_the_head(name):
    model, clips = build(name).eval(), clips_for(name)
    with torch.no_grad():
        stages = model.stages(clips)
        torch.testing.assert_close(model.head(finish(model.walk_stages(clips))), model(clips))
    assert len(stages) >= 2
    assert all(stage.ndim == 5 and len(stage) == 2 for stage in stages)
    positions = [stage[0, 0].numel() for stage in stages]
    assert positions == sorted(positions, reverse=True)


@pytest.mark.parametrize("name", TINY)
def test_safetensors_round_trip(name, tmp_path):
    from safetensors.torch import save_file

    model, clips = build(name).eval(), clips_for(name)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(5)
    loaded = networks.create(name, checkpoint=tmp_path / "model.safetensors").eval()
    with torch.no_grad():
        assert torch.equal(loaded(clips), model(clips))


@pytest.mark.parametrize("name", TINY)
def test_compiles_as_one_graph(name):
    model, clips = build(name).eval(), clips_for(name)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(clips), model(clips))
    torch.compiler.reset()


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(64, 70), (70, 97), (33, 64)])
def test_any_height_and_width_will_do(name, size):
    clips = clips_for(name)[..., :1, :1].expand(-1, -1, -1, *size)
    assert build(name).eval()(clips).isfinite().all()


@pytest.mark.parametrize("name", TINY)
def test_a_network_in_bfloat16_runs(name):
    assert build(name).eval().bfloat16()(clips_for(name).bfloat16()).isfinite().all()


@pytest.mark.parametrize("name", TINY)
def test_autocast_to_bfloat16_stays_close(name):
    model, clips = build(name).eval(), clips_for(name)
    with torch.no_grad():
        expected = model.stages(clips)[-1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = model.stages(clips)[-1].float()
            assert model(clips).isfinite().all()
    assert torch.linalg.norm(features - expected) < 0.05 * torch.linalg.norm(expected)


@pytest.mark.parametrize("name", TINY)
def test_folding_the_norms_keeps_the_logits(name):
    model, clips = build(name), clips_for(name)
    with torch.no_grad():
        model(clips)  # moves the running statistics from their start
        model.eval()
        expected = model(clips)
        folded = networks.fold_batch_norm(model)
        torch.testing.assert_close(folded(clips), expected, rtol=1e-4, atol=1e-5)
    assert not [m for m in folded.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d))]


@pytest.mark.parametrize("name", TINY)
def test_reset_classifier(name):
    model = build(name).eval()
    model.reset_classifier(7)
    with torch.no_grad():
        assert model(clips_for(name)).shape == (2, 7)
    for wrong in (0, 1, -3, 2.5, True):
        with pytest.raises(InputError, match="num_classes"):
            model.reset_classifier(wrong)


@pytest.mark.parametrize("name", TINY)
def test_refuses_what_is_no_clip(name):
    model, clips = build(name).eval(), clips_for(name)
    for wrong, said in (
        (clips[0], "clips (N, 3, T, H, W)"),
        (clips[:, :2], "clips (N, 3, T, H, W)"),
        (clips.transpose(1, 2), "swap axes 1 and 2"),
        ((clips * 20).to(torch.uint8), "scale and normalise"),
        (clips[..., :0], "pixels"),
        (clips[:, :, :0], "frames"),
    ):
        with pytest.raises(InputError, match=name) as caught:
            model(wrong)
        assert said in str(caught.value)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [1, 8, 31])
def test_a_small_clip_is_taken_or_refused_with_the_size_it_needs(name, size):
    model, clips = build(name).eval(), clips_for(name)[..., :size, :size]
    try:
        with torch.no_grad():
            assert model(clips).isfinite().all()
    except InputError as error:
        assert f"{name} expects" in str(error) and "pixels" in str(error)


def test_a_key_layout_converts_onto_the_networks_keys(golden):
    with torch.device("meta"):
        model = networks.create(golden.network)
        published = {key: torch.empty(shape) for key, shape, _ in golden.layout()}
    converted = networks.convert_state_dict(published, golden.network)
    ours = {key: value.shape for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert {key: value.shape for key, value in converted.items()} == ours


@pytest.mark.parametrize("name", ["swin_tiny", "timesformer_tiny"])
def test_weights_of_small_transformers_begin_at_the_scale_of_their_width(name):
    torch.manual_seed(0)
    linear = [m for m in networks.create(name, num_classes=5).modules() if isinstance(m, nn.Linear)]
    wide = [m.weight * m.in_features**0.5 for m in linear if m.out_features > 5 and m.weight.any()]
    assert len(wide) >= 8
    for weight in wide:
        assert weight.std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("name", TINY)
def test_no_clips_are_no_logits_and_half_precision_runs_on_a_cpu(name):
    model, clips = build(name).eval(), clips_for(name)
    with torch.no_grad():
        assert model(clips[:0]).shape == (0, model(clips).shape[1])
        assert model.half()(clips.half()).isfinite().all()
    model.float()
    with pytest.raises(InputError, match=r"got float64 .*, and the weights are float32: say"):
        model(clips.double())
