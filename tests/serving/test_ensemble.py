"""One module of a recipe and its networks agrees with the recipe on the networks' scores."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fusion_cases import CASES
from sklearn.base import clone
from torch import nn

import vidfuse as vf
from vidfuse.errors import AlignmentError, CacheConflictError, InputError
from vidfuse.training.fingerprints import fingerprint_of

NAMES = ("x3d", "swin", "tin")


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, z):
        return self.factor * z


def network(seed, n_classes=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 2 * 2, n_classes))


@pytest.fixture(scope="module")
def models():
    return {name: network(i) for i, name in enumerate(NAMES)}


def fitted(rule, models, views=None):
    torch.manual_seed(9)
    clips = torch.randn(80, 3, 2, 2, 2)
    labels = np.random.default_rng(0).integers(0, 4, 80)
    with torch.no_grad():
        scores = {name: 3 * model(clips) + 2 * torch.eye(4)[labels] for name, model in models.items()}
    stack = vf.LogitStack.from_arrays(scores, labels=labels)
    return vf.Recipe.from_fitted(rule.fit(stack), stack, views=views)


RULES = {
    **{name: rule for name, rule in CASES.items() if "given" not in name},
    "given": vf.LogLinearPool(weights={"x3d": 1, "swin": 0, "tin": 2}),
    "floor": vf.LogLinearPool(weights="uniform", floor=0.2),
    "linear floor": vf.LinearPool(weights="accuracy", floor=0.1),
}


@pytest.mark.parametrize("views", [None, "mean-log", "vote"])
@pytest.mark.parametrize("name", RULES)
def test_the_module_is_the_recipe_on_the_networks_scores(models, name, views):
    """Views are reduced as the recipe says, by the mean of log-likelihoods if it says nothing; then the rule fuses."""
    recipe = fitted(clone(RULES[name]), models, views)
    ensemble = vf.Ensemble.from_recipe(recipe, models)
    clips = torch.randn(6, 5, 3, 2, 2, 2)
    with torch.no_grad():
        scores = {name: 3 * model(clips.flatten(0, 1)).reshape(6, 5, 4) for name, model in models.items()}
        tripled = vf.Ensemble(recipe, {name: nn.Sequential(model, Times(3)) for name, model in models.items()})
        fused, of_one_view = tripled(clips), ensemble(clips[:, 0])
        first = {name: model(clips[:, 0]) for name, model in models.items()}
    reduced = vf.reduce_views(vf.LogitStack.from_arrays(scores), views or "mean-log")
    np.testing.assert_allclose(fused, recipe.rule.predict_log_proba(reduced), atol=2e-5)
    np.testing.assert_allclose(of_one_view, recipe.predict_log_proba(first), atol=2e-5)


def test_members_may_have_clips_of_their_own(models):
    recipe = fitted(vf.LogLinearPool(), models)
    clips = {name: torch.randn(6, 3, 2, 2, 2) for name in NAMES}
    with torch.no_grad():
        fused = vf.Ensemble(recipe, models)(clips)
        scores = {name: model(clips[name]).numpy() for name, model in models.items()}
    np.testing.assert_allclose(fused, recipe.predict_log_proba(scores), atol=2e-5)


@pytest.mark.parametrize(
    "wrap", [lambda z: SimpleNamespace(logits=z), lambda z: {"logits": z}], ids=["object", "mapping"]
)
def test_answers_of_other_libraries_are_read(models, wrap):
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, clips):
            return wrap(self.inner(clips))

    recipe = fitted(vf.LogLinearPool(), models)
    clips = torch.randn(6, 3, 2, 2, 2)
    wrapped = vf.Ensemble(recipe, {name: Wrapped(model) for name, model in models.items()})
    assert torch.equal(wrapped(clips), vf.Ensemble(recipe, models)(clips))


@pytest.mark.parametrize(
    "rule",
    [
        vf.LogLinearPool(weights={"x3d": 1, "swin": 0, "tin": 2}),
        vf.LinearPool(weights={"x3d": 1, "swin": 0, "tin": 2}),
        vf.LogLinearPool(per_class=True),
        vf.SubsetPool(vf.LogLinearPool(weights="accuracy"), max_members=2),
        vf.GreedyPool(rounds=1),
    ],
    ids=repr,
)
def test_gradients_reach_every_member_with_a_say(models, rule):
    recipe = fitted(rule, models)
    ensemble = vf.Ensemble(recipe, models)
    for model in models.values():
        model.zero_grad()
    ensemble(torch.randn(6, 3, 2, 2, 2))[:, 0].sum().backward()
    reached = {name for name in NAMES if models[name][1].weight.grad is not None}
    assert reached == set(recipe.needed_members())
    assert 1 <= len(reached)


def test_the_modules_state_is_its_networks(models):
    ensemble = vf.Ensemble(fitted(vf.LogLinearPool(), models), models)
    other = vf.Ensemble(ensemble.recipe, {name: network(50 + i) for i, name in enumerate(NAMES)})
    other.load_state_dict(ensemble.state_dict())
    clips = torch.randn(2, 3, 2, 2, 2)
    assert torch.equal(other(clips), ensemble(clips))


def test_members_have_the_names_that_members_may_have():
    """A member is called as its folder of scores is; modules of torch may not have dots in their names."""
    names = {"x3d.m": 0, "swin_b v2": 1, "keys": 2, "名": 3}
    models = {name: network(seed) for name, seed in names.items()}
    recipe = fitted(vf.LogLinearPool(), models)
    clips = torch.randn(2, 3, 2, 2, 2)
    ensemble = vf.Ensemble(recipe, models)
    with torch.no_grad():
        fused, scores = ensemble(clips), {name: model(clips).numpy() for name, model in models.items()}
    np.testing.assert_allclose(fused, recipe.predict_log_proba(scores), atol=2e-5)
    assert ensemble.networks == models
    assert len(ensemble.state_dict()) == 2 * len(names)


def test_clips_that_some_member_lacks_are_refused(models):
    ensemble = vf.Ensemble(fitted(vf.LogLinearPool(), models), models)
    clips = {name: torch.randn(2, 3, 2, 2, 2) for name in NAMES}
    for wrong, message in (
        ({**clips, "tin": clips["tin"][:1]}, "clips of the same videos for each member, got {'swin': 2, 'tin': 1"),
        ({name: own for name, own in clips.items() if name != "tin"}, r"missing: \['tin'\]"),
    ):
        with pytest.raises(AlignmentError, match=message):
            ensemble(wrong)
    with pytest.raises(InputError, match=r"clips: expected a tensor, or \{member: its own\}, got ndarray"):
        ensemble(clips["tin"].numpy())


def test_models_that_are_not_the_members_are_refused(models):
    recipe = fitted(vf.LogLinearPool(), models)
    with pytest.raises(AlignmentError, match=r"missing \['tin'\], not in the recipe \['tpn'\]"):
        vf.Ensemble(recipe, {"x3d": models["x3d"], "swin": models["swin"], "tpn": models["tin"]})


@pytest.mark.parametrize(
    "rule", [vf.LogLinearPool({"x3d": 1, "swin": 0, "tin": 2}), vf.MajorityVote({"x3d": 1, "swin": 0, "tin": 2})]
)
def test_networks_without_a_say_need_not_be_given_and_do_not_run(models, rule):
    recipe = fitted(rule, models)
    clips = torch.randn(6, 3, 2, 2, 2)
    some = {name: model for name, model in models.items() if name != "swin"}
    with torch.no_grad():
        fused = vf.Ensemble(recipe, some)(clips)
        torch.testing.assert_close(fused, vf.Ensemble(recipe, {**some, "swin": None})(clips))
        scores = {name: model(clips).numpy() for name, model in models.items()}
    np.testing.assert_allclose(fused, recipe.predict_log_proba(scores), atol=2e-5)
    with pytest.raises(AlignmentError, match=r"each of \['tin', 'x3d'\]|each of \['x3d', 'tin'\]"):
        vf.Ensemble(recipe, {"x3d": models["x3d"]})


def of_checkpoints(models, prints=None):
    """Return a recipe that knows the networks whose scores it was fitted on."""
    recipe = fitted(vf.LogLinearPool("uniform"), models)
    return replace(recipe, fingerprints=prints or {name: (fingerprint_of(m),) for name, m in models.items()})


def test_row_62_networks_of_other_weights_and_swapped_ones_are_refused(models):
    recipe = of_checkpoints(models)
    vf.Ensemble(recipe, models)
    other = {**models, "tin": network(77)}
    with pytest.raises(
        CacheConflictError, match=f"'tin'.*{fingerprint_of(models['tin'])}.*{fingerprint_of(other['tin'])}"
    ):
        vf.Ensemble(recipe, other)
    with pytest.raises(CacheConflictError, match="are they swapped"):
        vf.Ensemble.from_recipe(recipe, {**models, "tin": models["swin"], "swin": models["tin"]})
    vf.Ensemble(recipe, other, checkpoints="any")
    vf.Ensemble(replace(recipe, fingerprints={"x3d": recipe.fingerprints["x3d"]}), other)


def test_wrapped_named_and_averaged_networks_are_known_by_their_weights(models):
    class Mean(nn.Module):
        def __init__(self, folds):
            super().__init__()
            self.folds = nn.ModuleList(folds)

        def forward(self, clips):
            return torch.stack([model(clips) for model in self.folds]).mean(0)

    folds = [network(60 + i) for i in range(3)]
    prints = {name: (fingerprint_of(model),) for name, model in models.items()}
    prints["tin"] = tuple(f"as frames {fingerprint_of(model)}" for model in folds)
    prints["swin"] = ("session 3",)  # a callable's name: nothing to compare with
    recipe = of_checkpoints(models, prints)
    for tin in (folds[0], Mean(folds), nn.Sequential(nn.Identity(), folds[2])):
        vf.Ensemble(recipe, {**models, "tin": tin, "x3d": nn.DataParallel(models["x3d"])})
    with pytest.raises(CacheConflictError, match="member 'tin'"):
        vf.Ensemble(recipe, {**models, "tin": Mean([network(90 + i) for i in range(3)])})


def test_networks_of_ones_own_answer_what_the_fit_saw(models):
    """A recipe of probabilities takes networks that end in a softmax; logits would be taken for such, in silence."""
    kinds = {"x3d": "probabilities", "swin": "logits", "tin": "sum"}
    ends = {"x3d": nn.Softmax(1), "swin": nn.Identity(), "tin": nn.Sequential(nn.Softmax(1), Times(7.0))}
    softened = {name: nn.Sequential(models[name], ends[name]) for name in NAMES}
    clips, labels = torch.randn(80, 3, 2, 2, 2), np.arange(80) % 4
    with torch.no_grad():
        scores = {name: model(clips).numpy() for name, model in softened.items()}
    stack = vf.LogitStack.from_arrays(scores, labels=labels, kind=kinds)
    recipe = vf.Recipe.from_fitted(vf.LogLinearPool("uniform").fit(stack), stack)
    with torch.no_grad():
        np.testing.assert_allclose(vf.Ensemble(recipe, softened)(clips), recipe.predict_log_proba(scores), atol=2e-5)
    with pytest.raises(InputError, match=r"member 'tin': expected sum of at least 0.*are these logits"):
        vf.Ensemble(recipe, {**softened, "tin": models["tin"]})(clips)
    with pytest.raises(InputError, match=r"member 'swin': expected logits, but every row is at least 0"):
        vf.Ensemble(recipe, {**softened, "swin": nn.Sequential(models["swin"], nn.Softmax(1))})(clips)


def test_networks_of_vidfuse_serve_a_recipe_of_their_probabilities():
    torch.manual_seed(0)
    models = {name: vf.networks.create(f"{name}_tiny", num_classes=4).eval() for name in ("x3d", "tin")}
    clips, labels = torch.randn(8, 3, 8, 32, 32), np.arange(8) % 4
    with torch.no_grad():
        scores = {name: (20 * model(clips)).softmax(1).numpy() for name, model in models.items()}
        given = {name: model(clips).softmax(1).numpy() for name, model in models.items()}
    stack = vf.LogitStack.from_arrays(scores, labels=labels, kind="probabilities")
    recipe = vf.Recipe.from_fitted(vf.MajorityVote("uniform").fit(stack), stack)
    with torch.no_grad():
        np.testing.assert_allclose(vf.Ensemble(recipe, models)(clips), recipe.predict_log_proba(given), atol=1e-4)
