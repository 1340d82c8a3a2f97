"""The arithmetic of log-likelihoods against mpmath and worked examples."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vidfuse.errors import InputError
from vidfuse.likelihood import (
    VIEW_RULES,
    block_rows,
    linear_pool,
    log_linear_pool,
    log_softmax,
    log_sum_exp,
    reduce_views_array,
    row_sums,
    votes_to_log_proba,
)

LOGITS = arrays(np.float64, (3, 4), elements=st.floats(-50, 50))


def exact_log_softmax(row):
    with mpmath.workdps(50):
        total = mpmath.log(mpmath.fsum(mpmath.exp(mpmath.mpf(float(v))) for v in row))
        return [float(mpmath.mpf(float(v)) - total) for v in row]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-15), (np.float32, 4e-7)])
def test_log_softmax_against_mpmath(dtype, tolerance):
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 30.0, 300.0):
        x = (rng.normal(size=(4, 7)) * scale).astype(dtype)
        expected = np.array([exact_log_softmax(row) for row in x])
        np.testing.assert_allclose(log_softmax(x), expected, rtol=tolerance, atol=tolerance * 4)
        assert log_softmax(x).dtype == dtype


def test_log_sum_exp_against_mpmath():
    x = np.array([[1e3, 1e3 - 1, -1e3], [0.0, -745.0, -2000.0]])
    expected = [float(mpmath.log(mpmath.fsum(mpmath.exp(v) for v in row))) for row in x]
    np.testing.assert_allclose(log_sum_exp(x), expected, rtol=1e-15)


@settings(max_examples=50)
@given(LOGITS, st.floats(-100, 100))
def test_log_softmax_ignores_shifts_and_normalises(x, shift):
    y = log_softmax(x)
    np.testing.assert_allclose(log_softmax(x + shift), y, atol=1e-11)
    np.testing.assert_allclose(np.exp(y).sum(axis=1), 1.0, atol=1e-12)


def test_log_softmax_of_any_axis_layout_and_size():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(5, 300, 411)).astype(np.float32)  # more than one piece
    expected = x - np.log(np.exp(x.astype(np.float64)).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(log_softmax(x, axis=1), expected, atol=3e-6)
    transposed = x.swapaxes(0, 1)
    np.testing.assert_array_equal(log_softmax(transposed), log_softmax(x).swapaxes(0, 1))
    own = x.copy()
    assert log_softmax(own, out=own) is own
    np.testing.assert_array_equal(own, log_softmax(x))
    assert log_softmax(np.zeros((2, 3), np.float16)).dtype == np.float32


def test_log_softmax_keeps_zeros():
    np.testing.assert_array_equal(log_softmax([0.0, -np.inf]), [0.0, -np.inf])
    with pytest.raises(InputError, match="at least one class"):
        log_softmax(np.zeros((3, 0)))


@settings(max_examples=50)
@given(
    arrays(np.float64, (3, 4), elements=st.floats(-50, 50) | st.just(-np.inf)),
    st.sampled_from([0.02, 1.0, 7.0]),
    st.sampled_from([0.0, 1e-4, 0.3]),
    st.sampled_from([(np.float64, 1e-14), (np.float32, 1e-6)]),
)
def test_a_scaled_softmax_with_a_floor_against_mpmath(x, scale, floor, precision):
    dtype, tolerance = precision
    x[:, 2] = np.where(np.isneginf(x[:, 2]), 1.0, x[:, 2])  # some class is possible
    x = x.astype(dtype)
    with mpmath.workdps(50):
        expected = []
        for row in x.tolist():
            e = [mpmath.exp(mpmath.mpf(scale) * mpmath.mpf(v)) for v in row]
            p = [(1 - mpmath.mpf(floor)) * v / mpmath.fsum(e) + mpmath.mpf(floor) / 4 for v in e]
            expected.append([float(mpmath.log(v)) if v > 0 else -np.inf for v in p])
    with np.errstate(divide="ignore"):
        found = log_softmax(x, scale=scale, floor=floor)
    # A difference of two scores is rounded once, and so is its product with the scale.
    np.testing.assert_allclose(found, expected, rtol=2 * tolerance, atol=tolerance)


@pytest.mark.parametrize("floor", [-0.1, 1.0, np.nan])
def test_a_floor_outside_its_range_is_refused(floor):
    with pytest.raises(InputError, match="floor"):
        log_softmax(np.zeros((1, 2)), floor=floor)


def brute_log_linear(log_p, weights):
    with mpmath.workdps(40):
        products = [[mpmath.mpf(w) * mpmath.mpf(float(v)) for w, v in zip(weights, c, strict=True)] for c in log_p.T]
        z = [mpmath.fsum(terms) for terms in products]
        total = mpmath.log(mpmath.fsum(mpmath.exp(v) for v in z))
        return [float(v - total) for v in z]


def test_pools_against_mpmath():
    rng = np.random.default_rng(2)
    log_p = log_softmax(rng.normal(size=(5, 3, 4)) * 5)
    weights = [0.2, 1.7, 0.4]
    expected = [brute_log_linear(video, weights) for video in log_p]
    np.testing.assert_allclose(log_linear_pool(log_p, weights), expected, rtol=1e-13, atol=1e-14)
    expected = np.log(np.einsum("nmk,m->nk", np.exp(log_p), weights) / sum(weights))
    np.testing.assert_allclose(linear_pool(log_p, weights), expected, rtol=1e-12)


def test_pools_take_weights_per_video_and_no_others():
    rng = np.random.default_rng(3)
    log_p = log_softmax(rng.normal(size=(4, 2, 3)))
    per_video = rng.random((4, 2))
    for pool in (log_linear_pool, linear_pool):
        rows = np.concatenate([pool(log_p[i : i + 1], per_video[i]) for i in range(4)])
        np.testing.assert_allclose(pool(log_p, per_video), rows, rtol=1e-13)
        with pytest.raises(InputError, match=r"weights \(M,\) or \(N, M\)"):
            pool(log_p, rng.random((2, 3)))


def test_pools_keep_view_axes_and_underflow_nothing():
    log_p = log_softmax(np.random.default_rng(4).normal(size=(4, 2, 5, 3)))
    assert log_linear_pool(log_p, [0.5, 0.5]).shape == (4, 5, 3)
    tiny = np.array([[[0.0, -2000.0], [0.0, -2001.0]]])
    assert linear_pool(tiny, [0.5, 0.5])[0, 1] == pytest.approx(-2000 + np.log((1 + np.exp(-1)) / 2))


def test_a_zero_weight_drops_a_veto_and_all_vetoes_are_named():
    log_p = np.array([[[0.0, -np.inf], [-np.inf, 0.0]]])
    np.testing.assert_array_equal(log_linear_pool(log_p, [1.0, 0.0]), [[0.0, -np.inf]])
    np.testing.assert_array_equal(log_linear_pool(log_p, [[0.0, 2.0]]), [[-np.inf, 0.0]])
    with pytest.raises(InputError, match="'v1'"):
        log_linear_pool(log_p, [1.0, 1.0], ids=["v1"])
    with pytest.raises(InputError, match="weights"):
        log_linear_pool(log_p, [1.0, 1.0, 1.0])


def test_votes_follow_the_stated_formula():
    votes, q = np.array([[2.0, 1.0, 0.0, 0.0]]), np.array([[0.1, 0.2, 0.3, 0.4]])
    expected = (votes + 0.5 * q) / 3.5
    np.testing.assert_allclose(np.exp(votes_to_log_proba(votes, np.log(q))), expected, rtol=1e-14)


@settings(max_examples=100)
@given(arrays(np.float64, (4, 5), elements=st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.30000000000000004, 1.0])))
def test_votes_are_never_overruled_and_ties_go_to_the_pool(votes):
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.ones(5), size=4)
    p = np.exp(votes_to_log_proba(votes, np.log(q)))
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-12)
    for row in range(4):
        for a in range(5):
            for b in range(5):
                if votes[row, a] > votes[row, b] + 1e-9:
                    assert p[row, a] > p[row, b]
                elif abs(votes[row, a] - votes[row, b]) < 1e-12:
                    assert (p[row, a] > p[row, b]) == (q[row, a] > q[row, b])


def test_view_rules_by_hand():
    p = np.array([[[0.8, 0.15, 0.05], [0.1, 0.5, 0.4], [0.2, 0.45, 0.35]]])
    log_p = np.log(p)
    geometric = np.prod(p, axis=1) ** (1 / 3)
    geometric /= geometric.sum()
    largest = p.max(axis=1) / p.max(axis=1).sum()
    votes = (np.array([[1.0, 2.0, 0.0]]) + 0.5 * geometric) / 3.5
    expected = {"mean-log": geometric, "mean-probability": p.mean(axis=1), "max": largest, "vote": votes}
    for rule in VIEW_RULES:
        np.testing.assert_allclose(np.exp(reduce_views_array(log_p, rule)), expected[rule], rtol=1e-12)


@pytest.mark.parametrize("rule", VIEW_RULES)
def test_missing_views_are_left_out(rule):
    log_p = log_softmax(np.random.default_rng(5).normal(size=(2, 4, 3)))
    present = np.array([[True, True, False, False], [True, True, True, True]])
    got = reduce_views_array(log_p, rule, present=present)
    np.testing.assert_allclose(got[:1], reduce_views_array(log_p[:1, :2], rule), rtol=1e-12)
    np.testing.assert_allclose(got[1:], reduce_views_array(log_p[1:], rule), rtol=1e-12)


def test_view_rules_refuse_what_they_cannot_reduce():
    log_p = np.log(np.full((2, 2, 2), 0.5))
    with pytest.raises(InputError, match="mean-log"):
        reduce_views_array(log_p, "median")
    with pytest.raises(InputError, match="N, V, K"):
        reduce_views_array(log_p[0], "max")
    with pytest.raises(InputError, match="row 1 has no view"):
        reduce_views_array(log_p, "max", present=np.array([[True, True], [False, False]]))
    with pytest.raises(InputError, match="booleans"):
        reduce_views_array(log_p, "max", present=np.ones((2, 2)))


def test_a_floor_lifts_a_views_veto():
    with np.errstate(divide="ignore"):
        log_p = np.log([[[1.0, 0.0], [0.4, 0.6]]])
    assert np.exp(reduce_views_array(log_p, "mean-log"))[0, 1] == 0.0
    assert np.exp(reduce_views_array(log_p, "mean-log", floor=1e-4))[0, 1] > 0.0


def test_block_rows_is_at_least_one():
    assert block_rows(10**9) == 1
    assert block_rows(100, budget=1000) == 10


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_row_sums_are_exact_to_float64(dtype):
    x = np.random.default_rng(0).random((700, 3, 401)).astype(dtype)
    exact = [[float(mpmath.fsum(row.astype(float))) for row in video] for video in x[::100]]
    np.testing.assert_allclose(row_sums(x)[::100], exact, rtol=1e-14)
