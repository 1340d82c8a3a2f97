"""Risk against coverage, written out video by video and against scikit-learn's counts."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import binom
from sklearn.metrics import accuracy_score

from vidfuse.errors import InputError
from vidfuse.metrics import abstention, risk_coverage


def test_each_threshold_is_the_error_of_the_videos_above_it():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 120)
    z = log_softmax(2 * rng.normal(size=(120, 4)) + 2 * np.eye(4)[y], axis=1)
    found = risk_coverage(y, z)
    confidence, predicted = np.exp(z.max(axis=1)), z.argmax(axis=1)
    for coverage, risk, threshold in zip(found.coverage, found.risk, found.threshold, strict=True):
        kept = confidence >= threshold
        assert coverage == pytest.approx(kept.mean())
        assert risk == pytest.approx(1 - accuracy_score(y[kept], predicted[kept]))
    order = np.argsort(-confidence)
    errors = np.cumsum((predicted != y)[order])
    assert found.area == pytest.approx((errors / np.arange(1, 121)).mean())
    assert found.area_of_oracle <= found.area
    assert found.at(1.0) == pytest.approx(1 - accuracy_score(y, predicted)) == found.risk[-1]
    kept = found.covered(0.34)
    assert 0 < kept < 1 and found.at(kept) <= 0.34 and (found.risk[found.coverage > kept] > 0.34).all()


def test_equals_are_taken_together_whatever_their_order():
    y, z = np.array([0, 1, 0, 1]), np.log(np.array([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.4, 0.6]]))
    found = risk_coverage(y, z)
    assert found.coverage.tolist() == [0.75, 1.0]
    assert found.risk == pytest.approx([1 / 3, 1 / 4])
    assert found.area == pytest.approx((1 / 3 + 1 / 3 + 1 / 3 + 1 / 4) / 4)
    assert found.area == risk_coverage(y[[1, 0, 2, 3]], z[[1, 0, 2, 3]]).area


@pytest.mark.parametrize("n", range(1, 6))
@pytest.mark.parametrize("error", [0.05, 0.5, 0.9, 0.99])
def test_few_videos_are_all_answered_or_said_to_be_too_few(n, error):
    """All right: a share above `error` is wrong with probability (1 - error)^n at most."""
    if (1 - error) ** n <= 0.05:
        assert abstention(np.linspace(1, 0.5, n), np.ones(n, bool), error).n_answered == n
    else:
        with pytest.raises(InputError, match=f"none of them wrong, and there are {n}"):
            abstention(np.linspace(1, 0.5, n), np.ones(n, bool), error)


def test_bad_input():
    found = risk_coverage([0], np.log([[0.9, 0.1]]))
    assert found.covered(-0.1) == 0 and "oracle" in repr(found)
    with pytest.raises(InputError, match="coverage"):
        found.at(1.5)
    with pytest.raises(InputError, match="sum to 1"):
        risk_coverage([0], [[2.0, 1.0]])


def certified(confidence, right, error, level=0.95):
    """The fixed sequence by its definition, with SciPy's binomial distribution."""
    order = np.argsort(-confidence, kind="stable")
    sure = np.append(confidence[order], -np.inf)
    ends = [n for n in range(1, len(order) + 1) if sure[n] != sure[n - 1]]
    for forgiven in (3, 2, 1, 0):
        starts = [n for n in ends if binom.cdf(forgiven, n, error) <= 1 - level]
        if starts and starts[0] <= len(order) / 2:
            break
    found = None
    for n in starts:
        if binom.cdf((~right[order[:n]]).sum(), n, error) > 1 - level:
            break
        found = confidence[order[n - 1]]
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n", [60, 130, 500])
def test_the_threshold_is_the_last_that_passes(seed, n):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(1, 200, n) / 200  # with ties
    right = rng.random(n) < 0.75 + 0.25 * confidence
    expected = certified(confidence, right, 0.1)
    if expected is None:
        with pytest.raises(InputError, match=r"no confidence is sure to keep the error at 0\.1"):
            abstention(confidence, right, 0.1)
        return
    found = abstention(confidence, right, 0.1)
    assert found.threshold == expected
    answered = confidence >= expected
    assert (found.coverage, found.n_answered) == (answered.mean(), answered.sum())
    assert found.observed == pytest.approx((~right)[answered].mean())


@pytest.mark.parametrize("grouped", [False, True])
def test_the_stated_error_is_exceeded_in_at_most_one_of_twenty_draws(grouped):
    """Where the surest videos are wrong in just over 10 % of cases, a threshold that passes is a false one."""
    rng, passed = np.random.default_rng(5), 0
    for _ in range(400):
        confidence = rng.random(120)
        right = np.repeat(rng.random(40) < 0.899, 3) if grouped else rng.random(120) < 0.899
        try:
            abstention(confidence, right, 0.1, groups=np.arange(120) // 3 if grouped else None)
            passed += 1
        except InputError:
            pass
    assert passed <= binom.ppf(0.999, 400, 0.05)


@pytest.mark.parametrize("grouped", [False, True])
def test_an_error_of_the_surest_video_does_not_end_the_search(grouped):
    confidence = np.linspace(1, 0.5, 1000)
    right = confidence < 1
    assert abstention(confidence, right, 0.05, groups=np.arange(1000) if grouped else None).coverage == 1


def test_groups_count_alike_and_a_group_of_many_right_ones_proves_little():
    rng = np.random.default_rng(0)
    confidence = rng.random(2000)
    right = np.ones(2000, bool)
    with pytest.raises(InputError, match=r"needs at least \d+ groups of videos, none of them wrong, and there are 10"):
        abstention(confidence, right, 0.05, groups=np.arange(2000) % 10)
    assert abstention(confidence, right, 0.05, groups=np.arange(2000)).coverage == 1
    with pytest.raises(InputError, match="needs at least 59 videos, none of them wrong, and there are 58"):
        abstention(confidence[:58], right[:58], 0.05)
    assert abstention(confidence[:59], right[:59], 0.05).coverage == 1


def test_the_number_of_groups_that_is_asked_for_is_the_least_that_passes():
    c = np.linspace(0.5, 1, 400)
    with pytest.raises(InputError) as refused:
        abstention(c[:20], np.ones(20, bool), 0.05, groups=np.arange(20))
    n = int(re.search(r"at least (\d+) groups", str(refused.value))[1])
    abstention(c[:n], np.ones(n, bool), 0.05, groups=np.arange(n))
    with pytest.raises(InputError):
        abstention(c[: n - 1], np.ones(n - 1, bool), 0.05, groups=np.arange(n - 1))


def test_answered_is_what_reaches_the_threshold():
    confidence = np.r_[np.full(100, 0.9), np.full(100, 0.6)]
    found = abstention(confidence, np.arange(200) < 100, 0.05)
    assert found.answered(np.log([[0.9, 0.1], [0.6, 0.4], [0.05, 0.95]])).tolist() == [True, False, True]
    for bad, message in (({"error": 0}, "error: expected a share"), ({"level": 1}, "level: expected a share")):
        with pytest.raises(InputError, match=message):
            abstention(confidence, confidence > 0, **{"error": 0.1, **bad})
    with pytest.raises(InputError, match="right: expected one for each of 200 videos, got 3"):
        abstention(confidence, [1, 0, 1], 0.1)
