"""The score of one prediction against scikit-learn and SciPy, and on which videos it counts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import binomtest
from selection_cases import ensemble
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, top_k_accuracy_score

import vidfuse as vf
from vidfuse.errors import InputError
from vidfuse.evaluation.scores import class_names, log_proba_of, missing_of, require_labels, score


def predictions(n=200, k=7, seed=0, strength=1.5):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    return y, log_softmax(rng.normal(size=(n, k)) + strength * np.eye(k)[y], axis=1)


def partial_stack(missing=(3, 4, 5)):
    """Two equal members, of which the second lacks some videos."""
    z, y = ensemble(1, n=40, m=1)
    ids = [f"v{i}" for i in range(40)]
    kept = [i for i in range(40) if i not in missing]
    labels = dict(zip(ids, y.tolist(), strict=True))
    arrays = {"whole": z[:, 0], "part": z[kept, 0]}
    return vf.LogitStack.from_arrays(
        arrays, ids={"whole": ids, "part": [ids[i] for i in kept]}, labels=labels, join="outer"
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_score_is_that_of_independent_metrics(seed):
    y, z = predictions(seed=seed)
    found = score("a", y, z)
    assert (found.name, found.n) == ("a", 200)
    assert found.accuracy == pytest.approx(accuracy_score(y, z.argmax(axis=1)))
    assert found.mean_class_accuracy == pytest.approx(balanced_accuracy_score(y, z.argmax(axis=1)))
    assert found.top_5 == pytest.approx(top_k_accuracy_score(y, z, k=5))
    assert found.nll == pytest.approx(log_loss(y, np.exp(z)))
    wilson = binomtest(int((z.argmax(axis=1) == y).sum()), 200).proportion_ci(0.95, method="wilson")
    assert found.accuracy_interval == pytest.approx((wilson.low, wilson.high))
    np.testing.assert_array_equal(found.hits, z.argmax(axis=1) == y)
    assert found.present.all()


def test_confidence_is_that_of_both_intervals():
    y, z = predictions()
    narrow, wide = score("a", y, z, confidence=0.5), score("a", y, z, confidence=0.99)
    for name in ("accuracy_interval", "mean_class_interval"):
        inner, outer = getattr(narrow, name), getattr(wide, name)
        assert outer.low < inner.low < inner.high < outer.high


def test_top_5_of_five_classes_is_no_number():
    y, z = predictions(k=5)
    assert np.isnan(score("a", y, z).top_5)
    y, z = predictions(k=6)
    assert score("a", y, z).top_5 == pytest.approx(top_k_accuracy_score(y, z, k=5))


def test_only_present_videos_count():
    y, z = predictions()
    present = np.arange(200) % 3 > 0
    found, few = score("a", y, z, present), score("a", y[present], z[present])
    assert (found.n, found.accuracy, found.nll, found.ece) == (present.sum(), few.accuracy, few.nll, few.ece)
    assert not found.hits[~present].any()
    np.testing.assert_array_equal(found.present, present)
    with pytest.raises(InputError, match="a: expected at least one video"):
        score("a", y, z, np.zeros(200, bool))


def test_what_a_stack_lacks_is_named():
    stack = partial_stack()
    assert missing_of(stack[6:], None) == "error"
    assert missing_of(None, stack) == missing_of(stack, stack[6:]) == "renormalise"
    bare = vf.LogitStack.from_arrays({"a": np.zeros((3, 2))})
    assert class_names(bare) == ("0", "1")
    assert class_names(vf.LogitStack.from_arrays({"a": np.zeros((3, 2))}, classes=["run", "jump"])) == ("run", "jump")
    with pytest.raises(InputError, match="a table needs labels, and the test stack has none"):
        require_labels(bare, "a table", "the test stack")
    np.testing.assert_allclose(
        log_proba_of(stack, "whole"), log_softmax(stack.scores("whole").astype(float), axis=1), atol=1e-6
    )
