"""Weights per video: features against their definition, and videos that do not count."""

import numpy as np
import pytest

from vidfuse import DynamicPool, LogitStack, LogLinearPool
from vidfuse.errors import AlignmentError
from vidfuse.fusion.dynamic import _confidence


def test_agreement_is_the_mean_probability_that_the_others_give_to_a_members_class():
    rng = np.random.default_rng(0)
    log_p = np.log(rng.dirichlet(np.ones(5), size=(20, 4))).astype(np.float32)
    confidence, agreement = _confidence(log_p)
    p = np.exp(log_p.astype(np.float64))
    for i in range(20):
        for m in range(4):
            said = [p[i, j, p[i, m].argmax()] for j in range(4) if j != m]
            assert agreement[i, m] == pytest.approx(np.mean(said), rel=1e-9)
            assert confidence[i, m] == pytest.approx(1 + (p[i, m] * np.log(p[i, m])).sum() / np.log(5), rel=1e-6)


def members(n=80, k=4):
    rng = np.random.default_rng(1)
    y = rng.integers(0, k, n)
    return {name: rng.normal(size=(n, k)) + 2 * np.eye(k)[y] for name in "ab"}, y


def test_videos_of_no_weight_are_nobodys_neighbours():
    arrays, y = members()
    weight = np.ones(80)
    weight[40:] = 0
    whole = DynamicPool().fit(LogitStack.from_arrays(arrays, labels=y), sample_weight=weight)
    half = DynamicPool().fit(LogitStack.from_arrays({name: z[:40] for name, z in arrays.items()}, labels=y[:40]))
    np.testing.assert_array_equal(whole.reference_root_, half.reference_root_)
    assert whole.gain_ == pytest.approx(half.gain_, abs=1e-6)


def test_a_stack_that_lacks_scores_is_refused_with_advice_that_holds():
    arrays, y = members()
    ids = [f"v{i}" for i in range(80)]
    stack = LogitStack.from_arrays(
        {"a": arrays["a"], "b": arrays["b"][:60]}, ids={"a": ids, "b": ids[:60]}, missing="allow", join="outer",
        labels=dict(zip(ids, y.tolist(), strict=True)),
    )  # fmt: skip
    with pytest.raises(AlignmentError, match=r"20 of 80 videos without some; keep those that all members have"):
        DynamicPool(LogLinearPool(missing="renormalise")).fit(stack)
    DynamicPool().fit(stack[stack.present.all(axis=1)])
