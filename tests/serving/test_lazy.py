"""A lazy ensemble gives what the recipe gives on the networks' scores, and runs no network for what is decided."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import vidfuse as vf
from vidfuse.errors import AlignmentError, InputError
from vidfuse.serving import LazyEnsemble, measure

NAMES = ("x3d", "swin", "tin")


class Counting(nn.Module):
    """A network of its own skill that counts the clips it is given."""

    def __init__(self, skill, seed):
        super().__init__()
        self.skill, self.seen = skill, 0
        self.noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))

    def forward(self, clips):
        self.seen += len(clips)
        scores = clips.mean(dim=(2, 3, 4))  # a clip's four channels hold what there is to see
        return self.skill * (scores + 0.5 * scores @ self.noise)


@pytest.fixture
def models():
    return {name: Counting(skill, seed) for seed, (name, skill) in enumerate(zip(NAMES, (2.0, 4.0, 3.0), strict=True))}


def clips_of(n, seed, views=None):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=generator)
    shape = (n, 4) if views is None else (n, views, 4)
    centre = torch.eye(4)[labels] if views is None else torch.eye(4)[labels][:, None]
    scores = 1.6 * centre + torch.randn(*shape, generator=generator)
    return scores[..., None, None, None].expand(*shape, 2, 2, 2).contiguous(), labels.numpy()


def scores_of(models, clips):
    flat = clips.flatten(0, 1) if clips.ndim == 6 else clips
    with torch.no_grad():
        found = {name: model(flat) for name, model in models.items()}
    for model in models.values():
        model.seen = 0
    return {name: z.unflatten(0, (-1, clips.shape[1])) if clips.ndim == 6 else z for name, z in found.items()}


OWN = {"x3d": "mean-log", "swin": "mean-probability", "tin": "max"}


@pytest.mark.parametrize(("views", "reduction"), [(None, None), (3, "mean-log"), (3, OWN)], ids=str)
def test_a_cascade_asks_for_less_and_says_the_same(models, views, reduction):
    clips, labels = clips_of(1000, 0, views)
    stack = vf.LogitStack.from_arrays(scores_of(models, clips), labels=labels, views=reduction)
    rule = vf.Cascade(costs={"x3d": 5, "tin": 20, "swin": 88}, at_most=0.02).fit(stack)
    recipe = vf.Recipe.from_fitted(rule, stack, views=reduction)
    new, _ = clips_of(300, 1, views)
    expected = recipe.predict_log_proba(scores_of(models, new))
    served = LazyEnsemble(recipe, models)(new)
    np.testing.assert_allclose(served.log_proba, expected, atol=1e-5)
    np.testing.assert_array_equal(served.labels, expected.argmax(axis=1))
    last = [name for name in rule.order_ if name in rule.needed_members()][-1]
    assert served.passes == {name: models[name].seen for name in rule.needed_members()}
    assert served.passes["x3d"] == 300 * (views or 1) > served.passes[last] > 0


def test_a_cascade_over_views_asks_for_those_that_a_video_needs(models):
    clips, labels = clips_of(1000, 0, 5)
    stack = vf.LogitStack.from_arrays(scores_of(models, clips), labels=labels)
    rule = vf.Cascade(costs={"x3d": 5, "tin": 20, "swin": 88}, at_most=0.1, keep=0).fit(stack)
    recipe = vf.Recipe.from_fitted(rule, stack)
    new, _ = clips_of(300, 1, 5)
    scores = scores_of(models, new)
    expected = recipe.predict_log_proba(scores)
    served = LazyEnsemble(recipe, models)(new)
    np.testing.assert_allclose(served.log_proba, expected, atol=1e-5)
    assert served.passes == {name: models[name].seen for name in rule.needed_members()}
    stage = rule.stage_of(vf.LogitStack.from_arrays(scores))
    assert served.passes["x3d"] == rule.views_[stage].sum() < 300 * 4
    with torch.no_grad():
        np.testing.assert_allclose(vf.Ensemble(recipe, models)(new), expected, atol=1e-5)
    for other in (new[:, :3], new[:, 0]):
        with pytest.raises(InputError, match=r"expected clips of shape \(N, 5"):
            LazyEnsemble(recipe, models)(other)


@pytest.mark.parametrize(
    ("rule", "views", "reduction"),
    [
        (vf.MajorityVote(), None, None),
        (vf.MajorityVote(), 5, None),
        (vf.MajorityVote(), 5, "vote"),
        (vf.MajorityVote(), 5, OWN),
        (vf.LinearPool({"x3d": 1, "swin": 4, "tin": 2}), None, None),
        (vf.LinearPool({"x3d": 1, "swin": 4, "tin": 2}), 5, "mean-probability"),
        (vf.LogLinearPool(floor=0.05), None, None),
        (vf.LogLinearPool(floor=0.05), 2, "mean-log"),
    ],
)
def test_stopping_exactly_asks_for_less_and_says_the_same(models, rule, views, reduction):
    clips, labels = clips_of(200, 2, views)
    stack = vf.LogitStack.from_arrays(scores_of(models, clips), labels=labels)
    recipe = vf.Recipe.from_fitted(
        rule.fit(vf.reduce_views(stack, reduction) if reduction else stack), stack, reduction
    )
    new, _ = clips_of(100, 3, views)
    expected = vf.LogitStack.from_arrays(scores_of(models, new))
    exit_ = vf.early_exit(recipe, stack)
    served = LazyEnsemble(recipe, models, exit_)(new)
    np.testing.assert_array_equal(served.labels, recipe.predict(expected))
    assert served.log_proba is None
    assert served.passes == {name: models[name].seen for name in NAMES}
    assert sum(served.passes.values()) == exit_.run(expected).passes.sum() < 100 * 3 * (views or 1)


@pytest.mark.parametrize("rule", [vf.MajorityVote(), vf.LinearPool({"x3d": 1, "swin": 4, "tin": 2})])
def test_other_views_than_those_that_are_steps_are_refused(models, rule):
    """Of more views, those beyond the order would be left out in silence."""
    clips, labels = clips_of(60, 2, 4)
    stack = vf.LogitStack.from_arrays(scores_of(models, clips), labels=labels)
    views = None if isinstance(rule, vf.MajorityVote) else "mean-probability"
    recipe = vf.Recipe.from_fitted(rule.fit(vf.reduce_views(stack, views) if views else stack), stack, views)
    exit_ = vf.early_exit(recipe, stack)
    for n in (3, 5):
        new, _ = clips_of(10, 3, n)
        with pytest.raises(InputError, match=r"expected clips of shape \(N, 4"):
            LazyEnsemble(recipe, models, exit_)(new)
        other = vf.LogitStack.from_arrays(scores_of(models, new))
        for found in (exit_.run, exit_.ceiling):
            with pytest.raises(InputError, match=f"expected 4 views of each video, .* got {n}"):
                found(other)


def test_what_does_not_belong_together_is_refused(models):
    clips, labels = clips_of(60, 0)
    stack = vf.LogitStack.from_arrays(scores_of(models, clips), labels=labels)
    recipe, other = (vf.Recipe.from_fitted(vf.MajorityVote().fit(stack), stack) for _ in range(2))
    with pytest.raises(InputError, match="early_exit"):
        LazyEnsemble(recipe, models)
    with pytest.raises(InputError, match="another rule"):
        LazyEnsemble(recipe, models, vf.early_exit(other, stack))
    with pytest.raises(AlignmentError, match="missing \\['swin'\\]"):
        LazyEnsemble(recipe, {name: models[name] for name in ("x3d", "tin")}, vf.early_exit(recipe, stack))


def test_networks_serve_in_eval_mode(models):
    """As created, a network is in training mode: dropout would draw anew for each call."""
    clips, labels = clips_of(60, 0)
    stack = vf.LogitStack.from_arrays(scores_of(models, clips), labels=labels)
    recipe = vf.Recipe.from_fitted(vf.MajorityVote().fit(stack), stack)
    dropping = {name: nn.Sequential(nn.Dropout(0.9), model) for name, model in models.items()}
    lazy = LazyEnsemble(recipe, dropping, vf.early_exit(recipe, stack))
    np.testing.assert_array_equal(lazy(clips).labels, recipe.predict(stack))
    assert not any(module.training for model in dropping.values() for module in model.modules())


def test_clips_of_other_videos_for_a_member_are_refused(models):
    clips, labels = clips_of(60, 0)
    stack = vf.LogitStack.from_arrays(scores_of(models, clips), labels=labels)
    recipe = vf.Recipe.from_fitted(vf.MajorityVote().fit(stack), stack)
    lazy = LazyEnsemble(recipe, models, vf.early_exit(recipe, stack))
    with pytest.raises(AlignmentError, match=r"clips of the same videos for each member, got .*'tin': 59"):
        lazy({"x3d": clips, "swin": clips, "tin": clips[1:]})
    with pytest.raises(AlignmentError, match="missing: \\['swin'\\]"):
        lazy({"x3d": clips, "tin": clips})
    assert not any(model.seen for model in models.values())


def test_measured_costs_are_milliseconds_of_each_member_for_each_video(models):
    clips, _ = clips_of(4, 0, views=2)
    costs = measure(models, clips, repeats=3)
    assert set(costs) == set(NAMES)
    assert all(value > 0 for value in costs.values())
    assert models["x3d"].seen == 4 * 2 * (3 + 1)
    with pytest.raises(AlignmentError, match="tin"):
        measure(models, {"x3d": clips, "swin": clips})
    with pytest.raises(InputError, match="repeats"):
        measure(models, clips, repeats=0)
    with pytest.raises(InputError, match="clips"):
        measure(models, clips[:0])


def test_a_cost_is_the_median_of_the_runs_after_the_first_for_one_video(monkeypatch):
    clock = [0.0]

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.seconds = iter((9.0, 0.25, 0.125, 0.5))

        def forward(self, clips):
            clock[0] += next(self.seconds)
            return clips

    monkeypatch.setattr("vidfuse.serving.timing.time.perf_counter", lambda: clock[0])
    assert measure({"x3d": Slow()}, torch.zeros(5, 3, 1, 1, 1), repeats=3) == {"x3d": 50.0}
    assert measure({"x3d": Slow()}, torch.zeros(2, 4, 3, 1, 1, 1), repeats=3) == {"x3d": 125.0}
