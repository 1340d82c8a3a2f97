from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import brier_score_loss, log_loss

from vidfuse.errors import InputError
from vidfuse.metrics import brier, ece, nll, reliability
from vidfuse.metrics.probabilistic import binned


def sample(seed, n=300, k=5, scale=2.0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, k, n), log_softmax(scale * rng.normal(size=(n, k)), axis=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nll_equals_scikit_learn(dtype):
    y, z = sample(0)
    assert nll(y, z.astype(dtype)) == pytest.approx(log_loss(y, np.exp(z), labels=np.arange(5)), rel=3e-7)


def test_nll_of_a_veto_is_infinite_and_of_certainty_is_zero():
    z = np.array([[0.0, -np.inf]])
    assert nll([1], z) == np.inf
    assert nll([0], z) == 0.0
    assert str(nll([0], z)) == "0.0"


def test_brier_equals_scikit_learn_and_its_definition():
    y, z = sample(1)
    expected = np.mean(((np.exp(z) - np.eye(5)[y]) ** 2).sum(1))
    assert brier(y, z) == pytest.approx(expected, abs=1e-12)
    two = log_softmax(np.random.default_rng(0).normal(size=(50, 2)), axis=1)
    labels = np.arange(50) % 2
    assert brier(labels, two) == pytest.approx(2 * brier_score_loss(labels, np.exp(two[:, 1])), abs=1e-12)


def test_ece_worked_by_hand():
    p = np.array([[0.95, 0.05], [0.85, 0.15], [0.65, 0.35], [0.45, 0.55]])
    y = [0, 1, 0, 1]
    # ten bins: (0.9, 1]: |1 − 0.95|, (0.8, 0.9]: |0 − 0.85|, (0.6, 0.7]: |1 − 0.65|, (0.5, 0.6]: |1 − 0.55|
    assert ece(y, np.log(p), n_bins=10) == pytest.approx((0.05 + 0.85 + 0.35 + 0.45) / 4, abs=1e-12)
    # one bin: mean confidence 0.75, accuracy 3/4
    assert ece(y, np.log(p), n_bins=1) == pytest.approx(0.0, abs=1e-12)
    # two bins of two: confidences 0.55, 0.65 (both right) and 0.85, 0.95 (one right)
    assert ece(y, np.log(p), n_bins=2, binning="quantile") == pytest.approx((0.4 + 0.4) / 2, abs=1e-12)


def test_bins_are_closed_on_the_right():
    r = reliability([0, 0], np.log([[0.5, 0.5], [1.0, 1e-300]]), n_bins=2)
    assert r.bins.tolist() == [0, 1]
    assert r.confidence.tolist() == [0.5, 1.0]
    assert "bins=2 of 2" in repr(r)


@pytest.mark.parametrize("k", [3, 5, 15])
def test_a_confidence_at_the_end_of_a_bin_stays_there_however_it_is_rounded(k):
    rng = np.random.default_rng(k)
    unsure, sure = np.full((30, k), np.log(1 / k)), log_softmax(0.1 * rng.normal(size=(30, k)), axis=1)
    y = np.r_[sure.argmax(axis=1), np.ones(30, int)]  # these are right, and those wrong: together they are calibrated
    found = [
        ece(y, np.concatenate([sure, rounded]).astype(dtype))
        for rounded in (unsure, np.nextafter(unsure, 0), np.nextafter(unsure, -9), unsure + 1e-8, unsure - 1e-8)
        for dtype in (np.float32, np.float64)
    ]
    confidence = np.r_[np.exp(sure.max(axis=1)), np.full(30, 1 / k)]
    hits = np.concatenate([sure, unsure]).argmax(axis=1) == y
    which = np.ceil(np.round(15 * confidence, 5))
    expected = sum(abs(hits[which == b].sum() - confidence[which == b].sum()) for b in range(1, 16)) / 60
    assert found == pytest.approx([expected] * len(found), abs=1e-6)


def test_bins_of_quantiles_hold_equally_many_videos_however_confident_they_are():
    confidence = 1 - np.geomspace(1e-3, 1e-12, 150)
    assert binned(confidence, np.ones(150, bool), 15, "quantile").counts.tolist() == 15 * [10]


@pytest.mark.parametrize("binning", ["uniform", "quantile"])
def test_ece_equals_a_loop_over_bins(binning):
    y, z = sample(2)
    p = np.exp(z).max(1)
    edges = np.linspace(0, 1, 16) if binning == "uniform" else np.quantile(p, np.linspace(0, 1, 16))
    total = 0.0
    for b in range(15):
        inside = (p > edges[b]) & (p <= edges[b + 1]) | ((b == 0) & (p == edges[0]))
        if inside.any():
            total += inside.mean() * abs((z.argmax(1) == y)[inside].mean() - p[inside].mean())
    assert ece(y, z, binning=binning) == pytest.approx(total, abs=1e-12)


def test_confident_and_always_right_is_calibrated():
    z = np.where(np.eye(3, dtype=bool), 0.0, -np.inf)
    assert ece([0, 1, 2], z) == brier([0, 1, 2], z) == nll([0, 1, 2], z) == 0.0


@pytest.mark.parametrize("metric", [nll, brier, ece])
def test_logits_and_probabilities_are_refused(metric):
    with pytest.raises(InputError, match=r"row 1; apply a log-softmax"):
        metric([0, 1], [np.log([0.5, 0.5]), [3.0, 1.0]])
    with pytest.raises(InputError, match=r"log\(\) to probabilities"):
        metric([0, 1], [[0.5, 0.5], [0.2, 0.8]])


def test_bad_bins():
    y, z = sample(3)
    for count in (0, 2.5, True, "15"):
        with pytest.raises(InputError, match="n_bins: expected a whole number of at least 1"):
            ece(y, z, n_bins=count)
    with pytest.raises(InputError, match="'uniform', 'quantile'"):
        ece(y, z, binning="equal")
