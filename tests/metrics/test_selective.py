"""Risk against coverage, written out video by video and against scikit-learn's counts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score

from vidfuse.errors import InputError
from vidfuse.metrics import risk_coverage


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


def test_bad_input():
    found = risk_coverage([0], np.log([[0.9, 0.1]]))
    assert found.covered(-0.1) == 0 and "oracle" in repr(found)
    with pytest.raises(InputError, match="coverage"):
        found.at(1.5)
    with pytest.raises(InputError, match="sum to 1"):
        risk_coverage([0], [[2.0, 1.0]])
