"""Walking a network stage by stage, and the network that fuses others after each of their stages."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from vidfuse import LogitStack, LogLinearPool, networks
from vidfuse.errors import InputError
from vidfuse.networks.fused import FusedConfig, FusedNetwork, FusedOutput

TINY = networks.names("*_tiny")
PAIR = ("x3d", "timesformer")


def member(name, seed=0):
    torch.manual_seed(seed)
    return networks.create(name if name.endswith("_tiny") else f"{name}_tiny", num_classes=4)


def clips_of(seed=1):
    torch.manual_seed(seed)
    return torch.randn(2, 3, 8, 64, 64)


def walked(model, clips, change=lambda x: x):
    walk, maps = model.walk(clips), []
    x = next(walk)
    while True:
        maps.append(x)
        try:
            x = walk.send(change(x))
        except StopIteration as end:
            return maps, end.value


@pytest.mark.parametrize("name", TINY)
def test_a_walk_that_changes_nothing_is_the_forward_pass(name):
    model, clips = member(name).eval(), clips_of()
    with torch.no_grad():
        maps, logits = walked(model, clips)
        torch.testing.assert_close(logits, model(clips))
        for ours, stage in zip(maps, model.stages(clips), strict=True):
            torch.testing.assert_close(ours, stage)


@pytest.mark.parametrize("name", TINY)
def test_what_is_sent_back_is_what_the_network_goes_on_with(name):
    model, clips = member(name).eval(), clips_of()
    with torch.no_grad():
        plain, logits = walked(model, clips)
        changed, other = walked(model, clips, lambda x: x + torch.linspace(-1, 1, x.shape[1])[:, None, None, None])
    torch.testing.assert_close(plain[0], changed[0])
    assert not torch.allclose(plain[1], changed[1])
    assert not torch.allclose(logits, other)


def test_a_backbone_that_gives_all_maps_at_once_goes_on_from_these_alone():
    from vidfuse.networks.layers import Backbone, finish

    class Maps(Backbone):
        def stages(self, clips):
            return [clips, 2 * clips]

    clips = clips_of()
    assert finish(Maps().walk_stages(clips)).equal(2 * clips)
    walk = Maps().walk_stages(clips)
    next(walk)
    with pytest.raises(InputError, match="all maps at once"):
        walk.send(clips + 1)


def fused(names=PAIR, **config):
    """Fuse members; all parts are trained unless the configuration says otherwise."""
    members = {name: member(name, seed) for seed, name in enumerate(names)}
    torch.manual_seed(7)
    return FusedNetwork(members, 4, FusedConfig(**{"width": 16, "frozen": (), "feedback": True} | config))


def randomised(model):
    """Gates, feedback and classifier start at zero; give them values, as training would."""
    torch.manual_seed(3)
    for parameter in [*model.gates.parameters(), *model.back.parameters(), *model.classifier.parameters()]:
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def test_all_of_the_catalogue_can_be_fused_at_once():
    model = fused([name.removesuffix("_tiny") for name in TINY])
    answer = model(clips_of())
    stages = min(len(m.stages(clips_of())) for m in model.members.values())
    assert answer.gates.shape == (2, stages, len(TINY))
    assert answer.logits.shape == (2, 4) and set(answer.member_logits) == set(model.members)


@pytest.mark.parametrize("feedback", [True, False])
def test_at_first_it_is_the_late_fusion_of_undisturbed_members_that_count_alike(feedback):
    model = fused(feedback=feedback).eval()
    with torch.no_grad():
        answer = model.inspect(clips_of())
        alone = {name: m(clips_of()) for name, m in model.members.items()}
    torch.testing.assert_close(answer.gates, torch.full_like(answer.gates, 0.5))
    for name, logits in alone.items():
        torch.testing.assert_close(answer.member_logits[name], logits)
    stack = LogitStack.from_arrays({name: z.numpy() for name, z in alone.items()}, kind="logits", ids=["a", "b"])
    late = LogLinearPool(weights="uniform").fit(stack).predict_log_proba(stack)
    np.testing.assert_allclose(answer.logits.log_softmax(1), late, atol=1e-5)


def test_by_default_a_light_fuser_is_trained_on_frozen_members():
    model = FusedNetwork({name: member(name) for name in PAIR}, 4)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and not any(name.startswith("members.") for name in trained)
    assert not any(m.training for m in model.train().members.values())
    answer = randomised(model)(clips_of())
    assert list(answer.auxiliary) == []
    answer.logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_what_is_only_read_out_is_read_as_a_mean():
    """Whatever the maps' extents are: a fuser can be trained on the means alone."""
    model, clips = randomised(fused(feedback=False)).eval(), clips_of()
    with torch.no_grad():
        answer = model.inspect(clips)
        maps = {name: m.stages(clips)[-len(model.gates) :] for name, m in model.members.items()}
        features = []
        for s, gate in enumerate(model.gates):
            common = [model.project[s][name](x[s]).mean((2, 3, 4)) for name, x in maps.items()]
            weights = gate(torch.cat(common, 1)).softmax(1)
            features.append(sum(w[:, None] * c for w, c in zip(weights.T, common, strict=True)))
        late = sum(m(clips).log_softmax(1) for m in model.members.values()) / len(model.members)
        expected = late + model.classifier(model.norm(torch.cat(features, 1)))
    torch.testing.assert_close(answer.logits, expected)


def test_gates_depend_on_the_sample_and_on_the_stage():
    model = randomised(fused()).eval()
    with torch.no_grad():
        gates = model.inspect(clips_of()).gates
    torch.testing.assert_close(gates.sum(2), torch.ones(gates.shape[:2]))
    assert not torch.allclose(gates[0], gates[1])
    assert all(not torch.allclose(a, b) for a, b in pairwise(gates.unbind(1)))


def test_feedback_reaches_the_other_members_and_reading_out_does_not():
    clips = {name: clips_of(seed) for seed, name in enumerate(PAIR)}
    other = clips | {"timesformer": clips_of(9)}
    for feedback in (True, False):
        model = randomised(fused(feedback=feedback)).eval()
        with torch.no_grad():
            a, b = model.inspect(clips), model.inspect(other)
        same = torch.allclose(a.member_logits["x3d"], b.member_logits["x3d"])
        assert same != feedback
        assert not torch.allclose(a.logits, b.logits)


def test_every_parameter_is_trained():
    model = randomised(fused())
    answer = model(clips_of())
    assert isinstance(answer, FusedOutput)
    (answer.logits.square().sum() + sum(z.square().sum() for z in answer.auxiliary)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_a_members_second_classifier_has_no_part_and_waits_for_no_gradient():
    members = {"x3d": member("x3d", 0), "tpn": networks.create("tpn_tiny", 4, auxiliary=True)}
    model = randomised(FusedNetwork(members, 4, FusedConfig(width=16, frozen=(), feedback=True)))
    answer = model(clips_of())
    (answer.logits.square().sum() + sum(z.square().sum() for z in answer.auxiliary)).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []  # or ranks would wait for them
    assert any(n.startswith("members.tpn.auxiliary.") for n in model.state_dict())


def test_activations_are_recomputed_on_request():
    clips, found = clips_of(), []
    for enable in (False, True):
        model = randomised(fused())
        model.set_grad_checkpointing(enable)
        assert all(m.grad_checkpointing == enable for m in model.members.values())
        torch.manual_seed(0)  # dropout's
        answer = model(clips)
        (answer.logits.square().sum() + sum(z.square().sum() for z in answer.auxiliary)).backward()
        found.append(([p.grad for p in model.parameters()], dict(model.named_buffers())))
    torch.testing.assert_close(found[0], found[1])  # gradients, and batch statistics that count the batch once


def test_frozen_members_stay_as_they_are():
    model = randomised(fused(frozen=("x3d",))).train()
    assert not model.members["x3d"].training and model.members["timesformer"].training
    before = {k: v.clone() for k, v in model.members["x3d"].state_dict().items()}
    answer = model(clips_of())
    answer.logits.sum().backward()
    assert all(p.grad is None for p in model.members["x3d"].parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.members["x3d"].state_dict().items())
    assert model.gates[0].weight.grad is not None


def test_a_frozen_members_loss_trains_what_is_fed_back_to_it_and_nothing_without_feedback():
    for feedback in (True, False):
        model = randomised(fused(frozen=("x3d",), feedback=feedback))
        answer = model(clips_of())
        assert len(answer.auxiliary) == (2 if feedback else 1)
        (answer.logits.square().sum() + sum(z.square().sum() for z in answer.auxiliary)).backward()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []  # or ranks would wait for them


def test_in_eval_mode_it_is_a_network_like_any_other():
    model = randomised(fused()).eval()
    with torch.no_grad():
        logits = model(clips_of())
    assert isinstance(logits, torch.Tensor) and logits.shape == (2, 4)


def test_what_cannot_be_fused_is_refused():
    with pytest.raises(InputError, match="at least two members"):
        FusedNetwork({"x3d": member("x3d")}, 4)
    with pytest.raises(InputError, match=r"frozen \['swin'\]"):
        fused(frozen=("swin",))
    with pytest.raises(InputError, match="a width and a grid"):
        FusedConfig(width=0)
    for wrong in ({"auxiliary_weight": -1.0}, {"auxiliary_weight": math.nan}, {"dropout": -0.1}, {"dropout": 1.0}):
        with pytest.raises(InputError, match=r"an auxiliary_weight of at least 0 and a dropout in \[0, 1\)"):
            FusedConfig(**wrong)
    with pytest.raises(InputError, match=r"clips of each of \['x3d', 'timesformer'\]"):
        fused()({"x3d": clips_of()})
