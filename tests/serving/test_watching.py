"""Watching a stream and refreshing a recipe: what is found, what is not, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.base import clone

import vidfuse as vf
from vidfuse.cache.writer import CacheWriter
from vidfuse.errors import AlignmentError, CacheConflictError, InputError, VidfuseWarning
from vidfuse.fusion.track_record import watched
from vidfuse.metrics.exchangeability import conformal_p_values, log_wealth

MEMBERS = ("swin", "tpn", "x3d")


def make(n, seed, classes=6, change=None, labelled=True):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    scale = {"swin": 5.0, "tpn": 4.0, "x3d": 3.0}
    z = {name: 2 * rng.normal(size=(n, 6)) + scale[name] * np.eye(6)[y] for name in MEMBERS}
    ids = [f"v{seed}_{i:04}" for i in range(n)]
    return vf.LogitStack.from_arrays(change(z) if change else z, labels=y if labelled else None, ids=ids)


@pytest.fixture(scope="module")
def recipe():
    fit = make(400, 0)
    return vf.Recipe.from_fitted(vf.LogLinearPool(weights="uniform").fit(fit), fit).with_record(fit)


CHANGES = {
    "logits x 0.2": lambda z: {**z, "tpn": 0.2 * z["tpn"]},
    "swapped": lambda z: {**z, "swin": z["x3d"], "x3d": z["swin"]},
    "another order": lambda z: {**z, "x3d": z["x3d"][::-1]},
    "all duller": lambda z: {name: 0.7 * own for name, own in z.items()},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found(recipe, name):
    found = vf.watch(recipe, [make(200, 1), make(300, 2, change=CHANGES[name], labelled=False)])
    assert found.alarms
    assert found.alarms[0].alarm > 200
    assert found.alarms[0].alarm_id.startswith("v2_")
    assert found.headline().startswith(f"Alarm: {found.alarms[0].name}")
    assert str(found.alarms[0].alarm) in found.to_csv()


def test_another_mixture_of_classes_is_found_and_named(recipe):
    found = vf.watch(recipe, make(300, 3, classes=2))
    assert "class" in [one.name for one in found.alarms]
    assert {name for name, _, now in found.shifted if now > 0.3} == {"0", "1"}
    assert "Classes that changed most: " in str(found)


def test_undisturbed_streams_alarm_as_rarely_as_stated():
    alarms = 0
    for seed in range(60):
        whole = make(160, 100 + seed)
        fit = whole[:80]
        recipe = vf.Recipe.from_fitted(vf.LogLinearPool(weights="uniform").fit(fit), fit).with_record(fit)
        alarms += bool(vf.watch(recipe, whole[80:]).alarms)
    assert alarms <= 8  # P(Binomial(60, 0.05) > 8) = 0.003


def test_a_stream_that_goes_on_keeps_what_it_said(recipe):
    parts = [make(150, 1), make(150, 2, change=CHANGES["logits x 0.2"]), make(100, 3)]
    first, second = vf.watch(recipe, parts[:2]), vf.watch(recipe, parts)
    for before, after in zip(first.statistics, second.statistics, strict=True):
        assert before.alarm is None or before.alarm == after.alarm
        assert after.p_value <= before.p_value


@pytest.mark.parametrize("change", [None, "all duller"])
def test_what_is_said_of_a_statistic_is_what_was_seen_and_won(recipe, change):
    """Against the statistics and the bets themselves: means, the last hundred, and one p-value for all statistics."""
    stream = make(150, 4, change=change and CHANGES[change])
    found = vf.watch(recipe, stream)
    before, ids = recipe.record.reference, np.random.default_rng([0, 0]).permutation(150)
    values = watched(stream[ids]).values
    theta = np.random.default_rng(0).random(values.shape)
    n = values.shape[1]
    assert len(found.statistics) == n == 11
    for place, one in enumerate(found.statistics[:-1]):
        won = log_wealth(conformal_p_values(before[:, place], values[:, place], theta[:, place]))
        assert one.p_value == pytest.approx(min(1, n * np.exp(-won.max())), rel=1e-6)
        later = np.flatnonzero(n * np.exp(-won) <= found.false_alarms)
        assert one.alarm == (later[0] + 1 if len(later) else None)
        assert one.alarm is None or one.alarm_id == stream.ids[ids[one.alarm - 1]]
        means = [part[:, place].mean(dtype=float) for part in (before, values, values[50:])]
        assert (one.before, one.stream, one.recent) == pytest.approx(means)
    shares = [np.bincount(part[:, -1].astype(int), minlength=6) / len(part) for part in (before, values, values[50:])]
    last = found.statistics[-1]
    apart = [np.abs(part - shares[0]).sum() / 2 for part in shares]
    assert (last.before, last.stream, last.recent) == pytest.approx(apart)
    assert found.unknown == (values[:, 0] < np.quantile(before[:, 0], 0.05)).mean()
    most = np.abs(shares[1] - shares[0]).argmax()
    assert found.shifted[0] == (str(most), pytest.approx(shares[0][most]), pytest.approx(shares[1][most]))


def in_hundreds(stack):
    return stack.with_groups(lambda name: name[:-2])


def with_record(fit):
    return vf.Recipe.from_fitted(vf.LogLinearPool(weights="uniform").fit(fit), fit).with_record(fit)


def test_of_a_group_one_video_is_used():
    recipe, later = with_record(in_hundreds(make(2400, 7))), in_hundreds(make(240, 5))
    found = vf.watch(recipe, [later, later])
    assert (found.n_reference, found.n_units, found.n_videos) == (24, 3, 480)
    with pytest.raises(InputError, match="the record's videos come in groups, and the stream's do not"):
        vf.watch(recipe, make(240, 5))


def test_a_video_that_comes_again_is_used_once(recipe):
    """Its copies would be like each other, and not like the record: ten of 20 videos are no 200 videos."""
    stack = make(20, 8)
    found = vf.watch(recipe, [stack] * 10)
    assert (found.n_units, found.n_videos) == (20, 200)
    arrays = {name: stack.scores(name) for name in MEMBERS}
    copies = [vf.LogitStack.from_arrays(arrays, ids=[f"{day}_{name}" for name in stack.ids]) for day in range(10)]
    assert vf.watch(recipe, copies).alarms
    assert not found.alarms


def test_a_stream_of_classes_in_another_order_is_refused():
    """The members' confidence says nothing of it, and neither do the shares of balanced classes."""
    names = [f"class {k}" for k in range(6)]
    fit = make(60, 0)
    arrays = {name: fit.scores(name) for name in MEMBERS}
    recipe = with_record(vf.LogitStack.from_arrays(arrays, labels=fit.labels, ids=fit.ids, classes=names))
    turned = {name: own[:, [1, 0, 2, 3, 4, 5]] for name, own in arrays.items()}
    other = vf.LogitStack.from_arrays(turned, classes=["class 1", "class 0", *names[2:]])
    with pytest.raises(AlignmentError, match="class 0 is 'class 0' in the recipe and 'class 1' in the stream"):
        vf.watch(recipe, other)


def test_a_day_without_a_member_does_not_end_the_watch(recipe):
    whole, later = make(60, 1), make(60, 2)
    arrays, ids = {name: later.scores(name) for name in MEMBERS}, {name: later.ids for name in MEMBERS}
    arrays["x3d"], ids["x3d"] = whole.scores("x3d"), whole.ids
    lacking = vf.LogitStack.from_arrays(arrays, ids=ids, join="outer")
    assert not lacking.present.all(axis=1).any()
    found = vf.watch(recipe, [whole, lacking, later])
    assert (found.n_units, found.n_videos) == (120, 240)
    with pytest.raises(InputError, match="a stream of at least one video that all members have, got none"):
        vf.watch(recipe, lacking)


def test_what_cannot_be_watched_is_refused(recipe):
    later = make(50, 1)
    fit = make(60, 0)
    bare = vf.Recipe.from_fitted(vf.LogLinearPool(weights="uniform").fit(fit), fit)
    for bad, stream, error, message in (
        (bare, later, InputError, "the recipe has no record to compare with"),
        (with_record(in_hundreds(make(600, 0))), in_hundreds(later), InputError, "at least 20 independent videos"),
        (recipe, [], InputError, "expected a stream of at least one video"),
        (recipe, later.select(["swin"]), InputError, "tpn"),
    ):
        with pytest.raises(error, match=message):
            vf.watch(bad, stream)
    with pytest.raises(AlignmentError, match="knows 6 classes, the stream has 4"):
        vf.watch(recipe, vf.LogitStack.from_arrays({name: np.eye(4) * 3 for name in MEMBERS}))
    for share in (0, "0.05"):
        with pytest.raises(InputError, match="false_alarms: expected a share"):
            vf.watch(recipe, later, false_alarms=share)


def test_a_stream_of_another_checkpoint_is_refused(recipe, tmp_path):
    known = replace(recipe, fingerprints={name: (f"{name} 1",) for name in MEMBERS})
    for folder, x3d in (("same", "x3d 1"), ("other", "x3d 2")):
        stack = make(60, 1)
        for name in MEMBERS:
            fingerprint = x3d if name == "x3d" else f"{name} 1"
            with CacheWriter(tmp_path / folder / name, fingerprint=fingerprint) as writer:
                writer.append(stack.ids, stack.scores(name))
    assert not vf.watch(known, vf.load_stack(tmp_path / "same")).alarms
    with pytest.raises(CacheConflictError, match=r"x3d 1.*x3d 2|x3d 2.*x3d 1"):
        vf.watch(known, vf.load_stack(tmp_path / "other"))
    assert not vf.watch(known, vf.load_stack(tmp_path / "other", checkpoints="any")).alarms


@pytest.mark.filterwarnings("ignore:.* are of the recipe's fit")
def test_views_and_missing_members_are_watched_as_they_are_predicted():
    fit = make(200, 0)
    z = {name: np.stack([fit.scores(name)] * 2, axis=1) for name in MEMBERS}
    views = vf.LogitStack.from_arrays(z, labels=fit.labels, ids=fit.ids)
    pool = vf.LogLinearPool(weights="uniform").fit(fit)
    recipe = vf.Recipe.from_fitted(pool, fit, views="mean-log").with_record(views)
    assert recipe.record.reference == pytest.approx(with_record(fit).record.reference, rel=1e-5)
    assert vf.watch(recipe, views).n_units == 200


@pytest.mark.filterwarnings("ignore:.* are of the recipe's fit")
def test_views_of_each_members_own_reduction_are_watched_of_those_with_a_say():
    fit = make(200, 0)
    z = {name: np.stack([fit.scores(name), 0.5 * fit.scores(name)], axis=1) for name in MEMBERS}
    views = vf.LogitStack.from_arrays(z, labels=fit.labels, ids=fit.ids)
    how = {"swin": "mean-log", "tpn": "max", "x3d": "mean-probability"}
    reduced = vf.reduce_views(views, how)
    pool = vf.LogLinearPool({"swin": 1, "tpn": 0, "x3d": 1}).fit(reduced)
    recipe = vf.Recipe.from_fitted(pool, reduced, views=how).with_record(views)
    assert recipe.record.members == ("swin", "x3d")
    assert vf.watch(recipe, views).statistics == vf.watch(recipe, reduced).statistics


def test_the_rule_fitted_anew_on_like_videos_is_no_worse():
    recipe, fresh = with_record(make(300, 0)), make(900, 1)
    found = vf.refresh(recipe, fresh, margin=0.02)
    assert found.no_worse
    assert found.recipe.record.how == "cross-fitted"
    assert found.recipe.fitted_on["videos"] == 900
    assert found.accuracy[0] == (recipe.predict(fresh) == fresh.labels).mean()
    assert "is no worse than the old one" in found.headline()
    few = vf.refresh(recipe, fresh[:40], margin=0.02)
    assert not few.no_worse
    assert "not shown" in few.headline()


def test_a_rule_that_fits_fresh_videos_better_takes_the_place_of_one_that_does_not():
    fit = make(
        300, 0, change=lambda z: {**z, "swin": z["swin"] + 8 * np.random.default_rng(9).normal(size=z["swin"].shape)}
    )
    recipe = vf.Recipe.from_fitted(vf.LogLinearPool(weights={"swin": 0.01, "tpn": 0.01, "x3d": 1}).fit(fit), fit)
    found = vf.refresh(vf.Recipe.from_fitted(vf.LogLinearPool().fit(fit), fit), make(600, 2))
    assert found.accuracy[1] > found.accuracy[0]
    assert found.no_worse
    assert not vf.refresh(recipe, make(600, 2), margin=0.001).gain.difference  # given weights stay as they are


@pytest.mark.parametrize("rule", [vf.MajorityVote("uniform"), vf.Cascade(vf.LogLinearPool("uniform"), at_most=0.2)])
def test_a_rule_that_keeps_its_views_is_refreshed_on_views(rule):
    def seen(stack, seed):
        noise = np.random.default_rng(seed)
        z = {name: stack.scores(name)[:, None] + noise.normal(size=(len(stack), 4, 6)) for name in MEMBERS}
        return vf.LogitStack.from_arrays(z, labels=stack.labels, ids=stack.ids)

    fit, fresh = seen(make(400, 0), 5), seen(make(400, 1), 6)
    recipe = vf.Recipe.from_fitted(clone(rule).fit(fit), fit)
    found = vf.refresh(recipe, fresh, margin=0.05)
    assert found.accuracy[0] == (recipe.predict(fresh) == fresh.labels).mean()
    assert found.recipe.predict(fresh).shape == (400,)


@pytest.mark.parametrize("level", [0, 1, 95, "0.95"])
def test_a_level_that_is_no_share_is_refused(level):
    with pytest.raises(InputError, match=f"level: expected a share between 0 and 1, got {level!r}"):
        vf.refresh(with_record(make(60, 0)), make(60, 1), level=level)


def test_videos_without_ids_may_be_those_of_the_fit():
    fresh = vf.LogitStack.from_arrays({name: make(60, 1).scores(name) for name in MEMBERS}, labels=make(60, 1).labels)
    with pytest.warns(VidfuseWarning, match="without ids"):
        vf.refresh(with_record(make(60, 0)), fresh)


def test_videos_of_the_fit_are_not_fresh():
    fit = make(300, 0)
    with pytest.raises(InputError, match="300 of the 300 videos are of the recipe's fit"):
        vf.refresh(with_record(fit), fit)


def test_one_video_or_one_group_is_too_few_to_refresh_or_record():
    recipe = with_record(make(60, 0))
    with pytest.raises(
        InputError, match="at least two videos, each to be predicted by a rule that was fitted on other"
    ):
        vf.refresh(recipe, make(1, 1))
    with pytest.raises(InputError, match="at least two groups of videos, each to be predicted"):
        vf.refresh(recipe, make(9, 1).with_groups(["a"] * 9))
    assert vf.refresh(recipe, make(2, 1)).n_videos == 2
    one = make(1, 0)
    with pytest.raises(InputError, match="at least two videos"):
        vf.Recipe.from_fitted(vf.LogLinearPool(weights="uniform").fit(one), one).with_record(one)


def test_a_stream_of_the_fits_own_videos_is_warned_of(recipe):
    with pytest.warns(VidfuseWarning, match="60 of the stream's 160 videos are of the recipe's fit"):
        vf.watch(recipe, [make(400, 0)[:60], make(100, 1)])
