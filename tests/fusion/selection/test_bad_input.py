"""What selection refuses, and what it makes of members that lack videos."""

import numpy as np
import pytest

import vidfuse as vf
from vidfuse.errors import InputError


def scores(n=60, m=3, k=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    return rng.normal(size=(n, m, k)) + 2 * np.eye(k)[y][:, None], y


SEARCHES = [vf.search_subsets, vf.greedy_search, vf.coordinate_search, vf.shapley_values, vf.diversity]


@pytest.mark.parametrize("search", SEARCHES)
def test_row_16_and_17_labels_that_do_not_fit_are_named(search):
    z, y = scores()
    for wrong, said in ((np.where(y == 1, 4, y), "expected 0 to 3"), (y[:-1], "expected 60"), (y[:1], "expected 60")):
        with pytest.raises(InputError, match=said):
            search(z, labels=wrong)


@pytest.mark.parametrize("search", [vf.search_subsets, vf.greedy_search])
def test_sample_weights_are_checked(search):
    z, y = scores()
    for wrong in (-np.ones(60), np.zeros(60), np.full(60, np.nan), np.ones(59)):
        with pytest.raises(InputError, match="sample_weight"):
            search(z, "accuracy", labels=y, sample_weight=wrong)
    assert search(z, "accuracy", labels=y, sample_weight=[1] * 60).members == search(z, "accuracy", labels=y).members


def test_an_objective_that_is_no_number_is_said_to_be():
    z, y = scores()
    for search in (vf.search_subsets, vf.greedy_search):
        with pytest.raises(InputError, match="got NaN"):
            search(z, lambda labels, log_proba: np.nan, labels=y)
    for wrong in (None, "log-linear"):
        with pytest.raises(InputError, match="expected a fuser"):
            vf.SubsetPool(wrong).fit(z, y)


def test_diversity_is_of_the_videos_that_all_members_have():
    z, y = scores()
    y[:20] = 0  # what an absent member does not get right
    ids = np.array([f"v{i:02d}" for i in range(60)])
    stack = vf.LogitStack.from_arrays(
        {"a": z[20:, 0], "b": z[:, 1]}, ids={"a": ids[20:], "b": ids}, missing="allow", join="outer",
        labels=dict(zip(ids.tolist(), y.tolist(), strict=True)),
    )  # fmt: skip
    found, expected = vf.diversity(stack), vf.diversity(z[20:, :2], y[20:])
    np.testing.assert_array_equal(found.accuracy, expected.accuracy)
    assert found.oracle == expected.oracle


def test_coordinate_search_takes_more_members_than_a_mask_has_bits():
    z, y = scores(n=40, m=70)
    found = vf.coordinate_search(z, labels=y, starts=0)
    pool = vf.LogLinearPool(found.weights).fit(vf.LogitStack.from_arrays(z, members=list(found.weights)), y)
    own = pool.score(vf.LogitStack.from_arrays(z, members=list(found.weights)), y)
    assert found.score == pytest.approx(own, abs=1e-12)


@pytest.mark.filterwarnings("ignore::vidfuse.errors.VidfuseWarning")  # the member at chance is noticed
@pytest.mark.parametrize("pool", [vf.SubsetPool(vf.LogLinearPool(weights="accuracy")), vf.GreedyPool(rounds=3)])
def test_members_that_were_not_chosen_need_not_be_there(pool):
    z, y = scores(n=200)
    z[:, 1] = z[::-1, 1]  # no better than chance
    stack = vf.LogitStack.from_arrays(dict(zip("abc", z.swapaxes(0, 1), strict=True)), labels=y)
    fitted = pool.fit(stack)
    assert "b" not in fitted.pool_.members_
    chosen = stack.select(fitted.pool_.members_)
    np.testing.assert_array_equal(fitted.predict_log_proba(chosen), fitted.predict_log_proba(stack))
