from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score

import vidfuse as vf
from vidfuse.errors import InputError
from vidfuse.metrics import class_accuracies, macro_f1, mean_class_accuracy, top_k_accuracy, top_k_hits


def sample(seed, n=200, k=7):
    rng = np.random.default_rng(seed)
    return rng.integers(0, k, n), rng.normal(size=(n, k)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_top_k_equals_scikit_learn_without_ties(k):
    y, z = sample(0)
    assert top_k_accuracy(y, z, k) == pytest.approx(top_k_accuracy_score(y, z, k=k, labels=np.arange(7)), abs=1e-15)


def test_all_classes_always_hit():
    y, z = sample(1)
    assert top_k_accuracy(y, z, 7) == 1.0


def test_mean_class_accuracy_equals_scikit_learn():
    y, z = sample(2)
    assert mean_class_accuracy(y, z) == pytest.approx(balanced_accuracy_score(y, z.argmax(1)), abs=1e-15)


@pytest.mark.parametrize(("n", "k"), [(200, 7), (5, 7), (30, 40)])  # few videos: some classes are neither true nor said
def test_macro_f1_equals_scikit_learn(n, k):
    for seed in range(5):
        y, z = sample(seed, n, k)
        assert macro_f1(y, z) == pytest.approx(f1_score(y, z.argmax(1), average="macro"), abs=1e-15)


def test_mean_class_accuracy_worked_by_hand():
    # class 0: 1 of 2 right, class 2: 1 of 1 right, class 1 absent
    y, z = [0, 0, 2], [[3.0, 1, 0], [1, 3, 0], [0, 1, 3]]
    assert mean_class_accuracy(y, z) == 0.75
    assert mean_class_accuracy(y, z, n_classes=3) == 0.5
    assert class_accuracies(y, z).tolist()[::2] == [0.5, 1.0]
    assert np.isnan(class_accuracies(y, z)[1])


def test_the_lower_index_wins_ties_at_every_rank():
    y = np.arange(4)
    z = np.zeros((4, 4))
    for k in (1, 2, 3, 4):
        assert top_k_hits(y, z, k).tolist() == [c < k for c in range(4)]


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 30))
def test_ranks_with_ties_equal_a_stable_sort(seed, k, n):
    rng = np.random.default_rng(seed)
    y, z = rng.integers(0, k, n), rng.integers(0, 3, (n, k)).astype(np.float32)
    order = np.argsort(-z, axis=1, kind="stable")
    for top in range(1, k + 1):
        expected = [y[i] in order[i, :top] for i in range(n)]
        assert top_k_hits(y, z, top).tolist() == expected


def test_top_1_is_argmax_and_permuting_rows_changes_nothing():
    y, z = sample(3)
    assert top_k_accuracy(y, z) == np.mean(z.argmax(1) == y)
    rows = np.random.default_rng(0).permutation(len(y))
    assert mean_class_accuracy(y[rows], z[rows]) == pytest.approx(mean_class_accuracy(y, z), abs=1e-15)


def test_many_blocks_equal_one():
    y, z = sample(4, n=3000, k=200)
    assert top_k_accuracy(y, z, 5) == pytest.approx(top_k_accuracy_score(y, z, k=5, labels=np.arange(200)), abs=1e-15)


def test_minus_infinity_is_a_score():
    assert top_k_accuracy([1, 0], [[-np.inf, 0.0], [-np.inf, 0.0]]) == 0.5


def test_tensors_are_accepted_by_duck_typing():
    class Tensor:
        def __init__(self, a):
            self.a = a

        def detach(self):
            return self

        def cpu(self):
            return self

        dtype = "float32"

        def numpy(self):
            return np.asarray(self.a)

    assert vf.metrics.top_k_accuracy(Tensor([0, 1]), Tensor([[1.0, 0.0], [0.0, 1.0]])) == 1.0


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [[1.0, np.nan], [0.0, 1.0]], "row 0"),
        ([0, 1], [[1.0, 0.0], [0.0, np.inf]], "row 1"),
        ([0, 1], [[1.0, 0.0], [-np.inf, -np.inf]], "row 1"),
        ([0, 1], [1.0, 0.0], r"\(N, K\)"),
        ([0], [[1.0, 0.0], [0.0, 1.0]], "1 labels"),
        ([], np.zeros((0, 2)), "integers|at least one"),
        (np.zeros(0, int), np.zeros((0, 2)), "at least one"),
    ],
)
def test_bad_scores_name_the_place(labels, scores, message):
    with pytest.raises(InputError, match=message):
        top_k_accuracy(labels, scores)


def test_row_16_label_out_of_range():
    with pytest.raises(InputError, match="got 2 at row 1"):
        top_k_accuracy([0, 2], [[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(InputError, match="got -1 at row 0"):
        top_k_accuracy([-1, 0], [[1.0, 0.0], [0.0, 1.0]])


def test_row_17_float_or_one_hot_labels():
    for labels in ([0.0, 1.0], [[1, 0], [0, 1]]):
        with pytest.raises(InputError, match=r"integers of shape \(N,\)"):
            top_k_accuracy(labels, [[1.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize("k", [0, 3, 1.5, "1", None])
def test_k_out_of_range(k):
    with pytest.raises(InputError, match="from 1 to 2"):
        top_k_accuracy([0], [[1.0, 0.0]], k)


def test_n_classes_below_the_labels():
    with pytest.raises(InputError, match="0 to 1"):
        mean_class_accuracy([0, 2], np.eye(3)[:2], n_classes=2)
