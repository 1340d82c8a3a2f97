"""Records of how a rule does: cross-fitted or held out by ids, kept in a recipe, read again bit by bit."""

import json

import numpy as np
import pytest

import vidfuse as vf
from vidfuse.errors import CacheFormatError, InputError
from vidfuse.fusion.crossfit import out_of_fold, split_folds
from vidfuse.fusion.track_record import TrackRecord, watched


@pytest.fixture(scope="module")
def stack():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 600)
    z = {name: 2 * rng.normal(size=(600, 4)) + 3 * np.eye(4)[y] for name in ("swin", "x3d")}
    ids = [f"s{i // 3:03}_{i % 3}" for i in range(600)]
    return vf.LogitStack.from_arrays(z, labels=y, ids=ids).with_groups(lambda name: name[:4])


@pytest.fixture(scope="module")
def recipe(stack):
    fit = stack[:300]
    return vf.Recipe.from_fitted(vf.LogLinearPool(weights="accuracy").fit(fit), fit)


def test_ids_tell_whether_a_record_is_held_out(stack, recipe):
    ours, others = recipe.with_record(stack[:300]).record, recipe.with_record(stack[300:]).record
    assert (ours.how, others.how) == ("cross-fitted", "held-out")
    log_p = recipe.predict_log_proba(stack[300:])
    y = stack.labels[300:]
    assert others.scores == pytest.approx(-log_p[np.arange(300), y])
    assert others.confidence == pytest.approx(np.exp(log_p.max(axis=1)))
    assert others.right.tolist() == (log_p.argmax(axis=1) == y).tolist()
    fit = stack[:300]
    splits = split_folds(fit.labels, 5, fit.groups, 0, fit.ids)
    log_p = out_of_fold(vf.LogLinearPool(weights="accuracy"), fit, fit.labels, splits)
    assert ours.scores == pytest.approx(-log_p[np.arange(300), fit.labels])


def test_videos_of_the_fit_and_others_do_not_mix(stack, recipe):
    with pytest.raises(InputError, match="all videos of the fit, or none of them; of these 400, 300 are of the fit"):
        recipe.with_record(stack[:400])
    with pytest.raises(InputError, match="of these 200, 200 are of the fit, which saw 300"):
        recipe.with_record(stack[:200])
    bare = vf.LogitStack.from_arrays({name: stack.scores(name) for name in stack.members}, labels=stack.labels)
    bare = bare.with_groups(stack.groups)
    with pytest.raises(
        InputError, match=r"cannot be told without ids; say cross_fit=True if they are, cross_fit=False"
    ):
        recipe.with_record(bare[300:])
    assert recipe.with_record(bare[300:], cross_fit=False).record.how == "held-out"
    with pytest.raises(InputError, match=r"labels: the stack of a track record has none"):
        unlabelled = vf.LogitStack.from_arrays({name: stack.scores(name) for name in stack.members})
        recipe.with_record(unlabelled.with_groups(stack.groups), cross_fit=False)


def test_a_recipe_keeps_its_record(stack, recipe, tmp_path):
    made = recipe.with_record(stack[300:])
    path = made.save(tmp_path / "both.json")
    back = vf.load_recipe(path)
    for name, value in made.record.to_dict().items():
        assert np.array_equal(getattr(back.record, name), value), name
    assert back.record.prediction_sets(0.8).thresholds == made.record.prediction_sets(0.8).thresholds
    assert np.array_equal(back.predict_proba(stack), recipe.predict_proba(stack))
    assert "TrackRecord(held-out, 300 videos of 100 groups" in str(back)
    assert vf.load_recipe(recipe.save(tmp_path / "none.json")).record is None


def test_a_record_that_was_edited_is_refused(stack, recipe, tmp_path):
    path = recipe.with_record(stack[:300]).save(tmp_path / "both.json")
    content = json.loads(path.read_text())
    del content["record"]["scores"]
    path.write_text(json.dumps(content))
    with pytest.raises(CacheFormatError, match="damaged"):
        vf.load_recipe(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("labels", np.array([0, 3]), "labels: expected numbers of a record of 3 classes, got 3"),
        ("labels", np.array([-1, 2]), "labels: expected numbers of a record of 3 classes, got -1"),
        ("confidence", np.array([0.5, 1.001]), "confidence: expected numbers of a record of 3 classes, got 1.001"),
        ("confidence", np.array([-0.001, 0.5]), "confidence: expected numbers .* got -0.001"),
        ("scores", np.array([0.5, np.nan]), "scores: expected numbers .* got nan"),
        ("reference", np.full((2, 4), np.inf, np.float32), "reference: expected numbers .* got inf"),
        ("reference", np.zeros(4, np.float32), r"reference: expected shape \(U, S\)"),
        ("conformity", "odd", "conformity: expected one of .*got 'odd'"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_record_of_other_numbers_is_refused_by_the_name_of_the_field(field, value, message):
    fields = {
        "how": "held-out",
        "labels": np.array([0, 2]),
        "confidence": np.array([0.5, 1.0]),
        "right": np.array([True, False]),
        "scores": np.array([0.5, np.inf]),
        "conformity": "least-ambiguous",
        "groups": None,
        "n_classes": 3,
        "members": ("a",),
        "reference": np.zeros((2, 4), np.float32),
    }
    TrackRecord(**fields)
    with pytest.raises(InputError, match=message):
        TrackRecord(**{**fields, field: value})


def test_a_record_of_other_members_is_refused(stack, recipe, tmp_path):
    path = recipe.with_record(stack[:300]).save(tmp_path / "both.json")
    content = json.loads(path.read_text())
    content["record"]["members"]["$tuple"][0] = "somebody"
    path.write_text(json.dumps(content))
    with pytest.raises(CacheFormatError, match=r"record: expected one of . classes and of .*'somebody'"):
        vf.load_recipe(path)


def test_sets_and_abstaining_by_groups(stack, recipe):
    record = recipe.with_record(stack[300:]).record
    sets, abstention = record.prediction_sets(0.9), record.abstention(0.3)
    assert (sets.n_groups, abstention.n_groups) == (100, 100)
    assert sets.of(recipe.predict_log_proba(stack[300:])).mean() > 0.25
    assert len(record.prediction_sets(0.8, by_class=True).thresholds) == 4


def test_of_each_group_with_a_video_that_all_members_have_one_is_watched():
    """As of a stream: were a group's one video drawn first, groups that lack members here and there would be rarer."""
    rng = np.random.default_rng(0)
    y, ids = rng.integers(0, 3, 120), [f"s{i // 4:02}_{i % 4}" for i in range(120)]
    z = {name: rng.normal(size=(120, 3)) + 2 * np.eye(3)[y] for name in "ab"}
    few = [i for i in range(120) if i % 4 == 3]  # of each group, one video has both members
    made = vf.LogitStack.from_arrays(
        {"a": z["a"], "b": z["b"][few]},
        ids={"a": ids, "b": [ids[i] for i in few]},
        labels=dict(zip(ids, y.tolist(), strict=True)),
        join="outer",
    ).with_groups(lambda name: name[:3])
    rule = vf.LogLinearPool("uniform", missing="renormalise").fit(made)
    record = vf.Recipe.from_fitted(rule, made).with_record(made).record
    assert len(record.reference) == 30
    complete = made[np.asarray(made.present).all(axis=1)]
    np.testing.assert_array_equal(record.reference, watched(complete).values)


def test_what_is_watched_is_written_out(stack):
    names, values = watched(stack[:5])
    log_p = stack[:5].log_likelihoods().astype(np.float64)
    total = log_p.sum(axis=1)
    average = np.exp(log_p.mean(axis=1))
    row = dict(zip(names, values.T, strict=True))
    assert row["confidence"] == pytest.approx(np.log((average / average.sum(1, keepdims=True)).max(1)), rel=1e-5)
    assert row["x3d: spread"] == pytest.approx(log_p[:, 1].std(axis=1), rel=1e-5)
    theirs = log_p[:, 0].argmax(axis=1)
    assert row["x3d: agreement"] == pytest.approx(log_p[np.arange(5), 1, theirs], rel=1e-5)
    assert row["class"].tolist() == total.argmax(axis=1).tolist()


@pytest.mark.parametrize("of_fit", [True, False])
def test_a_rule_that_fuses_views_has_a_record_and_is_watched(stack, of_fit):
    """As a vote by all views of all members, whose recipe does not reduce them."""
    arrays = {name: np.stack([stack.scores(name), 0.5 * stack.scores(name)], axis=1) for name in stack.members}
    views = vf.LogitStack.from_arrays(arrays, labels=stack.labels, ids=[f"v{i}" for i in range(600)])
    fit, later = views[:300], views[300:]
    made = vf.Recipe.from_fitted(vf.MajorityVote().fit(fit), fit).with_record(fit if of_fit else later)
    seen = vf.reduce_views(fit if of_fit else later, "mean-log")
    np.testing.assert_array_equal(made.record.reference, watched(seen).values)
    assert made.record.how == ("cross-fitted" if of_fit else "held-out")
    assert vf.watch(made, later).n_units == 300
