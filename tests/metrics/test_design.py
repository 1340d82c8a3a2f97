"""Variances of means of grouped and classified videos, against the formulas written out and against resampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidfuse._checks import check_names
from vidfuse.errors import InputError
from vidfuse.metrics.design import design_of

RNG = np.random.default_rng(0)


def test_independent_videos_have_the_variance_of_a_mean():
    values = RNG.normal(size=(50, 3))
    found = design_of(50).spread(values)
    np.testing.assert_allclose(found.mean, values.mean(axis=0))
    np.testing.assert_allclose(found.variance, values.var(axis=0, ddof=1) / 50)
    assert found.freedom == pytest.approx(49)


def test_class_means_have_the_sum_of_their_variances():
    """Equal classes: what a class borrows from the others, it lends."""
    labels, values = np.repeat(np.arange(6), 4), RNG.normal(size=24)
    found = design_of(24, labels).spread(values[:, None])
    written = sum(values[labels == k].var(ddof=1) / 4 for k in range(6)) / 36
    assert found.variance[0] == pytest.approx(written)
    assert found.freedom == pytest.approx(24 - 6)


def test_equal_groups_have_the_variance_of_their_means():
    groups = np.repeat(np.arange(8), 5)
    values = RNG.normal(size=40) + RNG.normal(size=8)[groups]
    found = design_of(40, None, groups).spread(values[:, None])
    means = values.reshape(8, 5).mean(axis=1)
    assert found.variance[0] == pytest.approx(means.var(ddof=1) / 8)
    assert found.freedom == pytest.approx(7)


def test_groups_that_span_classes_count_their_sum():
    """Ten signers, each signs every word once: the mean of class means is the mean over signers."""
    groups, labels = np.repeat(np.arange(10), 4), np.tile(np.arange(4), 10)
    values = RNG.normal(size=40) + 2 * RNG.normal(size=10)[groups]
    found = design_of(40, labels, groups).spread(values[:, None])
    means = values.reshape(10, 4).mean(axis=1)
    assert found.variance[0] == pytest.approx(means.var(ddof=1) / 10)
    assert found.freedom == pytest.approx(9)


def test_a_class_of_one_video_takes_the_variance_of_the_others():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2])
    values = np.array([0, 1, 0, 1, 1, 1, 0, 0, 1.0])
    found = design_of(9, labels).spread(values[:, None])
    of_one = values[:4].var(ddof=1)  # both classes have the same
    assert found.variance[0] == pytest.approx((of_one / 4 + of_one / 4 + of_one) / 9)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_names_and_order_do_not_matter(n_groups, size, n_classes, seed):
    rng = np.random.default_rng(seed)
    n = n_groups * size
    groups, labels, values = rng.integers(0, n_groups, n), rng.integers(0, n_classes, n), rng.normal(size=(n, 2))
    one = design_of(n, labels, groups).spread(values)
    order = rng.permutation(n)
    other = design_of(n, [f"c{labels[i]}" for i in order], [f"g{9 - groups[i]}" for i in order]).spread(values[order])
    np.testing.assert_allclose(one.mean, other.mean)
    np.testing.assert_allclose(one.variance, other.variance, atol=1e-12)
    assert one.freedom == pytest.approx(other.freedom)
    assert np.isnan(one.variance).all() == (not design_of(n, labels, groups).known.any())


def test_the_parts_of_groups_sum_to_the_mean():
    labels, groups, values = RNG.integers(0, 3, 30), RNG.integers(0, 7, 30), RNG.normal(size=(30, 2))
    design = design_of(30, labels, groups)
    classes = np.stack([values[labels == k].mean(axis=0) for k in range(3)])
    np.testing.assert_allclose(design.totals(values).sum(axis=0), classes.mean(axis=0))


@pytest.mark.parametrize("missing", [None, np.nan, "", np.datetime64("NaT")])
def test_a_video_without_a_name_is_in_no_group_of_others_without(missing):
    for groups in (["a", missing, missing], np.array(["a", missing, missing], dtype=object)):
        with pytest.raises(InputError, match="groups: expected a name for each video"):
            design_of(3, groups=groups)


def test_names_in_bytes_are_texts():
    named = check_names(np.array(["é".encode(), b"b"]), 2, "groups")
    assert (
        named.tolist() == check_names(np.array(["é".encode(), b"b"], dtype=object), 2, "groups").tolist() == ["é", "b"]
    )
    with pytest.raises(InputError, match="groups: expected a name for each video, got '' for row 1"):
        design_of(2, groups=[b"a", b""])


def test_bad_input():
    with pytest.raises(InputError, match="groups: expected one name for each of"):
        design_of(3, None, [1, 2])
    with pytest.raises(InputError, match="strata: expected one name for each of"):
        design_of(3, [[1, 2, 3]])
