"""Sets of classes: the quantile against its definition, coverage by leaving each video or group out in turn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidfuse.errors import InputError
from vidfuse.metrics import abstention, conformity_scores, prediction_sets


def threshold(scores, coverage, groups=None):
    return prediction_sets(np.zeros(len(scores), int), scores, coverage, groups=groups).thresholds[0]


@given(st.integers(2, 60), st.floats(0.05, 0.95), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_each_video_left_out_in_turn_is_covered_as_often_as_stated(n, coverage, seed):
    """Over all choices of the new one among n + 1 exchangeable videos, coverage is exact, ties included."""
    scores = np.random.default_rng(seed).integers(0, 2 * n, n + 1).astype(float)
    if n < coverage / (1 - coverage):
        with pytest.raises(InputError, match="need at least"):
            threshold(scores[1:], coverage)
        return
    inside = [scores[i] <= threshold(np.delete(scores, i), coverage) for i in range(n + 1)]
    assert np.mean(inside) >= coverage - 1e-9
    if len(set(scores)) == n + 1:
        assert np.mean(inside) <= coverage + 1 / (n + 1) + 1e-9


@given(st.integers(0, 10_000), st.floats(0.2, 0.85))
@settings(max_examples=40, deadline=None)
def test_each_group_left_out_in_turn_is_covered_as_often_as_stated(seed, coverage):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(12), rng.integers(1, 6, 12))
    scores = rng.normal(size=12)[groups] + 0.1 * rng.normal(size=len(groups))  # videos of a group are alike
    inside = []
    for g in range(12):
        limit = threshold(scores[groups != g], coverage, groups[groups != g])
        inside.append((scores[groups == g] <= limit).mean())
    assert np.mean(inside) >= coverage - 1e-9


def test_the_quantile_is_the_textbook_one():
    scores = np.random.default_rng(0).normal(size=199)
    for coverage in (0.5, 0.9, 0.95):
        rank = int(np.ceil(round(coverage * 200, 9)))
        assert threshold(scores, coverage) == np.sort(scores)[rank - 1]


def test_scores_of_a_worked_example():
    log_p = np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    assert np.exp(-conformity_scores(log_p)) == pytest.approx(np.exp(log_p))
    assert conformity_scores(log_p, "adaptive") == pytest.approx(np.array([[0.5, 0.8, 1.0], [0.9, 1.0, 0.8]]))
    seven = np.log(np.full((1, 7), 1 / 7))
    added = conformity_scores(seven, "regularised") - conformity_scores(seven, "adaptive")
    assert added[0] == pytest.approx([0, 0, 0, 0, 0, 0.01, 0.02])


def test_by_class_the_coverage_holds_within_each_and_rare_classes_are_in_every_set():
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], [200, 200, 5])
    scores = rng.normal(size=len(y)) + 3 * (y == 1)
    found = prediction_sets(y, scores, 0.9, n_classes=3)
    assert found.always_in == (2,)
    for k in (0, 1):
        assert found.thresholds[k] == threshold(scores[y == k], 0.9)
    log_p = np.log([[0.7, 0.2, 0.1]])
    assert found.of(log_p)[0, 2]
    with pytest.raises(InputError, match="expected 3 classes, got 2"):
        found.of(np.log([[0.5, 0.5]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coverage": 1.0}, "coverage: expected a share between 0 and 1, got 1.0"),
        ({"coverage": 0.99}, "sets of coverage 0.99 need at least 99 videos, got 50 in all"),
        ({"coverage": 0.9, "groups": np.arange(50) // 10}, "need at least 9 groups of videos, got 5 in all"),
        (
            {"coverage": 0.9, "n_classes": 2, "groups": np.arange(50) // 10},
            "need at least 9 groups of videos of a class",
        ),
        ({"scores": np.zeros(3)}, "expected one for each of 50 videos"),
        ({"scores": np.where(np.arange(50) < 9, np.nan, 0.0)}, "scores: expected numbers, got NaN at row 0"),
        (
            {"scores": np.where(np.arange(50) < 9, np.inf, 0.0)},
            "the true class of 9 of 50 videos has a probability of 0",
        ),
        ({"labels": np.full(50, 2), "n_classes": 2}, "labels: expected 0 to 1"),
        ({"groups": np.arange(10)}, "groups: expected one name for each of 50 videos"),
        ({"groups": [None, "a"] * 25}, "groups: expected a name for each video, got None for row 0"),
    ],
)
def test_what_cannot_be_stated_is_refused(change, message):
    given = {"labels": np.zeros(50, int), "scores": np.arange(50.0), "coverage": 0.9, **change}
    with pytest.raises(InputError, match=message):
        prediction_sets(given.pop("labels"), given.pop("scores"), **given)


def test_videos_whose_true_class_has_no_chance_count_among_those_that_are_not_held():
    scores = np.r_[np.full(4, np.inf), np.arange(46.0)]
    assert prediction_sets(np.zeros(50, int), scores, 0.9).thresholds == [45.0]


@pytest.mark.parametrize("given", [[[5.0, 3.0, 1.0]], [[np.nan, -0.1, -3.0]], [[0.5, 0.3, 0.2]], [0.5, 0.5]])
def test_what_are_no_log_likelihoods_gets_neither_a_set_nor_an_answer(given):
    sets = prediction_sets(np.zeros(50, int), np.arange(50.0), 0.9)
    sure = abstention(np.linspace(1, 0.5, 200), np.ones(200, bool), 0.05)
    for answer in (sets.of, sure.answered, conformity_scores):
        with pytest.raises(InputError, match="log_proba: expected"):
            answer(given)


def test_mixed_names_of_groups_are_told_apart_by_their_texts():
    mixed = np.array([1, "a"] * 25, dtype=object)
    assert threshold(np.arange(50.0), 0.6, mixed) == threshold(np.arange(50.0), 0.6, np.arange(50) % 2)


def test_an_unknown_score_is_refused():
    with pytest.raises(InputError, match="conformity: expected one of 'least-ambiguous', 'adaptive', 'regularised'"):
        conformity_scores(np.zeros((1, 2)), "aps")
