"""The default's weights per class: certified, independent of scale and order, cautious without groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

import vidfuse as vf
from vidfuse.errors import InputError
from vidfuse.fusion._solver.deviations import ClassVideos, fit_deviations
from vidfuse.fusion._solver.shared import FitVideos
from vidfuse.fusion._solver.strengths import STRENGTHS, _class_offsets, strength_shares


def clips(sources=60, each=4, classes=5, members=3, seed=0, common=1.0):
    """Clips of sources: what is peculiar to a source is the same in all of its clips, and in all members."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(sources) % classes, each)
    source = np.repeat(np.arange(sources), each)
    z = rng.normal(size=(len(y), members, classes))
    z += common * np.repeat(rng.normal(size=(sources, members, classes)), each, axis=0)
    z[np.arange(len(y)), :, y] += np.linspace(1.5, 3.0, members)
    return z, y, np.array([f"s{k:03}" for k in source])


def nll(log_p, y):
    return float(-log_p[np.arange(len(y)), y].mean())


@pytest.mark.parametrize("precision", [0.1, 3.0])
def test_deviations_against_scipy(precision):
    z, y, _ = clips(seed=1)
    omega = np.random.default_rng(1).dirichlet(np.ones(len(y)))
    shared, scales, offsets = np.array([0.5, 0.2, 0.7]), np.array([1.0, 0.5, 2.0]), np.linspace(-0.5, 0.0, 5)
    log_p = log_softmax(z * scales[:, None], axis=2)
    prior = np.array([precision, precision, precision, 0.1 * precision])
    stack = vf.LogitStack.from_arrays(z)
    with ClassVideos(FitVideos(stack, y, omega, np.zeros(3), scales), shared, offsets) as videos:
        found = fit_deviations(videos, prior)
        true = videos.log_true(found.parameters)

    def pooled(x):
        x = x.reshape(5, 4)
        return np.einsum("nmk,mk->nk", log_p, shared[:, None] + x[:, :3].T) + x[:, 3] + offsets

    def objective(x):
        out = pooled(x)
        return omega @ (logsumexp(out, axis=1) - out[np.arange(len(y)), y]) + 0.5 * (prior * x.reshape(5, 4) ** 2).sum()

    best = minimize(objective, np.zeros(20), method="BFGS", options={"gtol": 1e-9})
    assert found.gap <= 1e-7
    assert objective(found.parameters.ravel()) <= best.fun + found.gap + 1e-9
    np.testing.assert_allclose(found.parameters.ravel(), best.x, atol=1e-3)
    expected = log_softmax(pooled(found.parameters.ravel()), axis=1)[np.arange(len(y)), y]
    np.testing.assert_allclose(true, expected, atol=1e-5)


def test_the_gap_bounds_what_is_left_everywhere():
    z, y, _ = clips(seed=2)
    prior, omega = np.array([0.02, 0.02, 0.02, 0.002]), np.full(len(y), 1 / len(y))
    stack = vf.LogitStack.from_arrays(z)
    with ClassVideos(FitVideos(stack, y, omega, np.zeros(3)), np.full(3, 0.4)) as videos:
        best = fit_deviations(videos, prior).parameters

        def objective(x):
            return videos.moments(x, double=True).value + 0.5 * (prior * x * x).sum()

        for target in (1e-1, 1e-2, 1e-3):
            early = fit_deviations(videos, prior, target=target)
            assert objective(early.parameters) - objective(best) <= early.gap + 1e-9


@settings(max_examples=8)
@given(st.integers(0, 3), st.floats(0.02, 20.0), st.booleans())
def test_the_scale_of_scores_changes_nothing(seed, factor, every):
    z, y, groups = clips(sources=30, seed=seed)
    factors = np.full(3, factor) if every else np.array([1.0, 1.0, factor])
    one, other = (vf.LogLinearPool().fit(s, y, groups=groups) for s in (z, z * factors[:, None]))
    np.testing.assert_allclose(other.predict_proba(z * factors[:, None]), one.predict_proba(z), atol=2e-3)


def test_a_member_that_is_always_right_gets_a_finite_temperature():
    y = np.arange(40) % 4
    for factor in (0.01, 1.0, 100.0):
        z = factor * np.stack([5 * np.eye(4)[y], 4 * np.eye(4)[y]], axis=1)
        p = vf.LogLinearPool().fit(z, y).predict_proba(z)[np.arange(40), y]
        assert (p > 0.9).all()
        assert (p < 1 - 1e-4).all()


def test_the_order_of_videos_members_and_groups_names_changes_nothing():
    z, y, groups = clips(seed=3)
    rng = np.random.default_rng(0)
    rows, order = rng.permutation(len(y)), rng.permutation(3)
    one = vf.LogLinearPool().fit(z, y, groups=groups)
    other = vf.LogLinearPool().fit(z[rows][:, order], y[rows], groups=groups[rows])
    np.testing.assert_allclose(other.predict_proba(z[:, order]), one.predict_proba(z), atol=1e-3)


def test_clips_of_a_source_do_not_count_as_new_videos():
    """Simulated: each member is off in a way peculiar to a source; folds by clip would take this for knowledge."""
    gain_by_source, gain_by_clip = [], []
    for seed in range(5):
        z, y, groups = clips(sources=40, each=6, seed=seed, common=1.5)
        new, truth, _ = clips(sources=200, each=1, seed=100 + seed, common=1.5)
        shared = nll(vf.LogLinearPool(per_class=False).fit(z, y).predict_log_proba(new), truth)
        for gains, names in ((gain_by_source, groups), (gain_by_clip, np.arange(len(y)))):
            gains.append(shared - nll(vf.LogLinearPool().fit(z, y, groups=names).predict_log_proba(new), truth))
    assert np.mean(gain_by_source) > np.mean(gain_by_clip)


def test_a_member_that_knows_one_class_is_found_with_groups():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 1200)
    z = rng.normal(size=(1200, 2, 4))
    z[np.arange(1200), 0, y] += np.where(y == 0, 5.0, 0.5)
    z[np.arange(1200), 1, y] += np.where(y == 0, 0.5, 2.5)
    shared = vf.LogLinearPool(per_class=False).fit(z[:600], y[:600])
    default = vf.LogLinearPool().fit(z[:600], y[:600], groups=np.arange(600))
    assert nll(default.predict_log_proba(z[600:]), y[600:]) < nll(shared.predict_log_proba(z[600:]), y[600:]) - 0.02
    assert default.class_shares_[1, 0] < 0.01  # no deviation has no say


def test_without_groups_the_five_strongest_priors_have_the_same_share():
    z, y, _ = clips()
    stack, omega, even = vf.LogitStack.from_arrays(z), np.full(len(y), 1 / len(y)), np.full(3, 1 / 3)
    videos = FitVideos(stack, y, omega, np.zeros(3), np.ones(3))
    assert strength_shares(videos, 0.1, even).tolist() == [0.2] * 5 + [0.0] * 3
    few = np.array([f"s{k % 9}" for k in range(len(y))])  # nine sources tell as little
    videos = FitVideos(stack.with_groups(few), y, omega, np.zeros(3), np.ones(3))
    assert strength_shares(videos, 0.1, even).tolist() == [0.2] * 5 + [0.0] * 3
    pool = vf.LogLinearPool().fit(z, y)
    np.testing.assert_array_equal(pool.class_shares_, [STRENGTHS, [0.2] * 5 + [0.0] * 3])


def test_frequencies_that_vary_by_chance_are_taken_out_and_true_ones_are_kept():
    def offsets(counts):
        y = np.repeat(np.arange(len(counts)), counts)
        stack = vf.LogitStack.from_arrays(np.zeros((len(y), 1, len(counts))))
        return _class_offsets(FitVideos(stack, y, np.full(len(y), 1 / len(y)), np.zeros(1)))

    even = offsets([10, 12, 9, 11])
    np.testing.assert_allclose(even, np.log([10, 12, 9, 11]) - np.log(12))  # as if classes were equally frequent
    rare = offsets([1000, 10, 1000, 10])
    assert np.abs(rare).max() < 0.5  # not log 100
    assert offsets([10, 0, 10, 10])[1] == -np.inf


def test_a_class_without_a_video_is_set_apart_from_no_other():
    z, y, groups = clips(classes=6)
    kept = y != 5
    pool = vf.LogLinearPool().fit(z[kept], y[kept], groups=groups[kept])
    deviations = pool.class_weights_ - (pool.weights_ / pool.temperature_)[:, None]
    np.testing.assert_allclose(deviations[:, 5], deviations[:, :5].mean(axis=1), atol=1e-12)
    assert pool.class_bias_[5] == pytest.approx(pool.class_bias_[:5].mean())


def test_groups_travel_with_the_stack():
    z, y, groups = clips()
    ids = [f"{name}_{k}" for k, name in enumerate(groups)]
    stack = vf.LogitStack.from_arrays(z, labels=y, ids=ids)
    named = stack.with_groups(lambda name: name.split("_")[0])
    assert named.groups.tolist() == groups.tolist()
    assert named[10:20].select(["member1"]).groups.tolist() == groups[10:20].tolist()
    assert "60 groups" in repr(named)
    by_stack, by_name = (
        vf.LogLinearPool().fit(named),
        vf.LogLinearPool().fit(stack, groups=dict(zip(ids, groups, strict=True))),
    )
    np.testing.assert_array_equal(by_stack.class_weights_, by_name.class_weights_)
    assert named.with_groups(None).groups is None


@pytest.mark.parametrize(
    ("groups", "what"),
    [
        (["a"], "one name for each"),
        ([None] * 240, "a name for each"),
        ([float("nan")] * 240, "a name for each"),
        ({"v0": "a"}, "named for 239"),
    ],
)
def test_groups_that_are_none_are_refused(groups, what):
    z, y, _ = clips()
    stack = vf.LogitStack.from_arrays(z, labels=y, ids=[f"v{k}" for k in range(240)])
    with pytest.raises(InputError, match=what):
        vf.LogLinearPool().fit(stack, groups=groups)
    with pytest.raises(InputError, match="need ids"):
        vf.LogLinearPool().fit(z, y, groups=lambda name: name)


@pytest.mark.parametrize("per_class", ["always", -1.0, 0.0, np.nan, [1.0]])
def test_strengths_that_are_none_are_refused(per_class):
    z, y, _ = clips()
    with pytest.raises(InputError, match="per_class"):
        vf.LogLinearPool(per_class=per_class).fit(z, y)


def test_a_recipe_keeps_the_weights_per_class(tmp_path):
    z, y, groups = clips()
    stack = vf.LogitStack.from_arrays(z, labels=y).with_groups(groups)
    pool = vf.LogLinearPool().fit(stack)
    recipe = vf.load_recipe(vf.Recipe.from_fitted(pool, stack).save(tmp_path / "r.json"))
    np.testing.assert_array_equal(recipe.predict_log_proba(stack), pool.predict_log_proba(stack))
    np.testing.assert_array_equal(recipe.rule.class_shares_, pool.class_shares_)


def test_calibration_after_learns_from_videos_that_the_rule_did_not_see():
    """Simulated, with many members and few videos: calibrated on its own videos, an overfitted rule gets too sharp."""
    loss = {"held out": [], "own": []}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 5, 1060)
        z = rng.normal(size=(1060, 20, 5)) + 0.4 * np.eye(5)[y][:, None]
        rule = vf.StackedPool("diagonal", shrinkage=0.3)
        after = vf.Calibrated(rule).fit(z[:60], y[:60])
        rule.fit(z[:60], y[:60])
        own = vf.TemperatureScaling().fit(rule.predict_log_proba(z[:60]), y[:60])
        loss["held out"].append(nll(after.predict_log_proba(z[60:]), y[60:]))
        loss["own"].append(nll(own.transform(rule.predict_log_proba(z[60:])), y[60:]))
    assert np.mean(loss["held out"]) < np.mean(loss["own"]) - 0.2


def test_what_was_chosen_is_told_wherever_a_fit_is_shown(tmp_path):
    z, y, groups = clips()
    stack = vf.LogitStack.from_arrays(z, labels=y, ids=[f"v{k}" for k in range(len(y))])
    cautious, judged = vf.LogLinearPool().fit(stack), vf.LogLinearPool().fit(stack, groups=groups)
    assert vf.LogLinearPool().choices() == vf.LogLinearPool(weights="uniform").fit(stack).choices() == ()
    assert "without ten groups" in cautious.choices()[1]
    assert "1,000 (20 %)" in cautious.choices()[1]
    assert "groups held out" in judged.choices()[1]
    for percent in 100 * judged.class_shares_[1]:
        assert f"({percent:.0f} %)" in judged.choices()[1].replace("all classes alike, ", "(")
    recipe = vf.Recipe.from_fitted(judged, stack)
    loaded = vf.load_recipe(recipe.save(tmp_path / "r.json"))
    assert recipe.describe()["choices"] == loaded.describe()["choices"] == list(judged.choices())
    for shown in (repr(judged), str(judged.summary()), judged.summary()._repr_html_(), str(recipe)):
        assert all(choice in shown for choice in judged.choices())
    given = vf.LogLinearPool(per_class=30.0, shrinkage=0.5).fit(stack).choices()
    assert given[0].endswith("0.5, as given")
    assert "30 videos, as given" in given[1]
    inner = vf.LogLinearPool(per_class=False)
    for rule in (vf.Calibrated(inner), vf.DynamicPool(inner), vf.SubsetPool(inner, objective="nll")):
        assert any("one over the root of the videos" in choice for choice in rule.fit(stack).choices())
