from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidfuse.errors import InputError
from vidfuse.metrics import disagreement, double_fault, oracle_accuracy, prediction_disagreement, q_statistic


def test_worked_by_hand():
    # N11 = 3, N10 = 2, N01 = 1, N00 = 4
    hits = np.array([[1, 1]] * 3 + [[1, 0]] * 2 + [[0, 1]] + [[0, 0]] * 4)
    assert disagreement(hits)[0, 1] == 0.3
    assert double_fault(hits)[0, 1] == 0.4
    assert q_statistic(hits)[0, 1] == pytest.approx((12 - 2) / (12 + 2))
    assert oracle_accuracy(hits) == 0.6


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 40))
def test_equal_to_a_loop_over_pairs(seed, m, n):
    hits = np.random.default_rng(seed).random((n, m)) < 0.6
    q, d, f = q_statistic(hits), disagreement(hits), double_fault(hits)
    for i in range(m):
        for j in range(m):
            a, b = hits[:, i], hits[:, j]
            n11, n10, n01, n00 = (a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()
            assert d[i, j] == pytest.approx((n10 + n01) / n)
            assert f[i, j] == pytest.approx(n00 / n)
            bottom = n11 * n00 + n01 * n10
            if bottom:
                assert q[i, j] == pytest.approx((n11 * n00 - n01 * n10) / bottom)
            else:
                assert np.isnan(q[i, j])


def test_predictions_may_differ_where_both_are_wrong():
    assert prediction_disagreement([[1, 2], [0, 0]]).tolist() == [[0.0, 0.5], [0.5, 0.0]]


def test_bad_input():
    with pytest.raises(InputError, match=r"\(N, M\)"):
        disagreement([1, 0])
    with pytest.raises(InputError, match="booleans"):
        double_fault([[0.5, 1.0]])
    with pytest.raises(InputError, match="integers"):
        prediction_disagreement([[0.5, 1.0]])
    with pytest.raises(InputError, match="at least one"):
        oracle_accuracy(np.zeros((0, 2), bool))
