"""The same numbers in another layout, dtype, order or number of videos: what every rule and scaler owes its callers."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from fusion_cases import CASES, ESTIMATORS, K, array_of, fitted, members, output
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp
from sklearn.base import clone

from vidfuse.errors import AlignmentError, InputError

NAMES = list(ESTIMATORS)


@cache
def sample():
    arrays, y = members(60, seed=2)
    X = array_of(arrays).astype(np.float16).astype(np.float64)
    X.flags.writeable = y.flags.writeable = False
    return X, y


@cache
def reference(name):
    """Return an estimator fitted on the sample, and what it gives for it."""
    X, y = sample()
    one = fitted(ESTIMATORS[name], X, y)
    return one, output(one, X)


def mapped(array, folder):
    np.save(folder / f"{array.ndim}.npy", array)
    return np.load(folder / f"{array.ndim}.npy", mmap_mode="r")


def strided(array):
    wide = np.full([2 * size for size in array.shape], 99, dtype=array.dtype)
    view = wide[tuple(slice(None, None, -2) for _ in array.shape)]
    view[...] = array
    return view


LAYOUTS = {
    "mapped": mapped,
    "Fortran": lambda array, folder: np.asfortranarray(array),
    "strided": lambda array, folder: strided(array),
    "list": lambda array, folder: array.tolist(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_layout_in_memory_changes_nothing(name, layout, tmp_path):
    X, y = (LAYOUTS[layout](array, tmp_path) for array in sample())
    assert_allclose(output(fitted(ESTIMATORS[name], X, y), X), reference(name)[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", ">f8"])
@pytest.mark.parametrize("name", NAMES)
def test_the_dtype_of_the_same_numbers_changes_nothing(name, dtype):
    X, y = sample()
    labels = y.astype(">i2" if dtype.startswith(">") else np.uint8)
    assert_allclose(
        output(fitted(ESTIMATORS[name], X.astype(dtype), labels), X.astype(dtype)),
        reference(name)[1],
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", NAMES)
def test_predictions_of_a_batch_are_those_of_its_parts_in_any_order(name):
    X, _ = sample()
    one, expected = reference(name)
    for parts in (np.split(np.arange(60), [1, 20, 49]), [np.random.default_rng(0).permutation(60)]):
        for rows in parts:
            assert_allclose(output(one, X[rows]), expected[rows], rtol=0, atol=1e-9)


@pytest.mark.parametrize("weight", [[1.0] * 60, np.ones(60, dtype=np.int8)])
@pytest.mark.parametrize("name", NAMES)
def test_weights_of_one_are_none(name, weight):
    X, y = sample()
    assert_allclose(output(fitted(ESTIMATORS[name], X, y, weight), X), reference(name)[1], rtol=0, atol=1e-6)


# Shrinkage, priors and smoothed targets count weighted videos by their effective number; folds, and
# the tests of a cascade, count every video once.
COUNTING = {"default", "shared", "cv", "per-class", "balanced", "linear-log-odds", "stacked", "stacked-diagonal"}
COUNTING |= {"dynamic", "dynamic-per-class", "dynamic-given"} | {
    "subset-learned",
    "subset-stacked",
    "calibrated",
    "calibrated-members",
    "calibrated-given",
    "calibrated-members-given",
    "vector",
    "cascade",
    "cascade-given",
}


@pytest.mark.parametrize("name", sorted(set(NAMES) - COUNTING))
def test_whole_weights_are_repetitions(name):
    X, y = sample()
    counts = np.arange(60) % 4
    weighted = fitted(ESTIMATORS[name], X, y, counts)
    repeated = fitted(ESTIMATORS[name], X.repeat(counts, axis=0), y.repeat(counts))
    assert_allclose(output(weighted, X), output(repeated, X), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::vidfuse.errors.VidfuseWarning")
@pytest.mark.parametrize("name", NAMES)
def test_one_video_is_enough(name):
    X, y = sample()
    one = fitted(ESTIMATORS[name], X[:1], y[:1])
    for videos in (X[:1], X):
        log_p = output(one, videos)
        assert log_p.shape == (len(videos), K)
        assert np.isfinite(log_p).all()
        assert_allclose(logsumexp(log_p, axis=1), 0.0, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_one_member_is_enough(name):
    X, y = sample()
    own = X[:, 2:]
    rule = clone(CASES[name])
    rule.set_params(**{key: value[-1:] for key, value in rule.get_params().items() if isinstance(value, list)})
    rule.fit(own, y)
    assert rule.n_features_in_ == 1
    assert_allclose(logsumexp(rule.predict_log_proba(own), axis=1), 0.0, atol=1e-9)
    if "stacked" not in name and name not in ("per-class", "calibrated-members"):  # these move classes apart
        assert_array_equal(rule.predict(own), own[:, 0].argmax(axis=1))


@pytest.mark.parametrize(("value", "what"), [(np.nan, "(?i)nan"), (np.inf, "inf")])
@pytest.mark.parametrize("name", NAMES)
def test_rows_01_and_02_a_score_that_is_not_finite(name, value, what):
    X, y = sample()
    bad = X.copy()
    bad[7, 0, 1] = value
    with pytest.raises(InputError, match=rf"{what}.* row 7"):
        fitted(ESTIMATORS[name], bad, y)
    with pytest.raises(InputError, match=rf"{what}.* row 7"):
        output(reference(name)[0], bad)


@pytest.mark.parametrize("name", CASES)
def test_the_number_of_members_and_classes_is_the_fits(name):
    X, _ = sample()
    for wrong in (X[:, :2], X[:, [0, 1, 2, 2]], X[:, :, :3], np.concatenate([X, X[:, :, :1]], axis=2)):
        with pytest.raises(AlignmentError):
            reference(name)[0].predict(wrong)
    with pytest.raises(InputError, match="shape"):
        reference(name)[0].predict(X[:, 0])
