"""What selection refuses, and what it makes of members that lack videos."""

import numpy as np
import pytest

import vidfuse as vf
from vidfuse.errors import AlignmentError, InputError


def scores(n=60, m=3, k=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    return rng.normal(size=(n, m, k)) + 2 * np.eye(k)[y][:, None], y


def incomplete():
    """Return a stack of three members of which two lack 20 of the 60 videos each, not the same."""
    z, y = scores()
    ids = np.array([f"v{i:02d}" for i in range(60)])
    rows = {"a": slice(None), "b": slice(40), "c": slice(20, None)}
    return vf.LogitStack.from_arrays(
        {name: z[part, m] for m, (name, part) in enumerate(rows.items())},
        ids={name: ids[part] for name, part in rows.items()}, join="outer",
        labels=dict(zip(ids.tolist(), y.tolist(), strict=True)),
    )  # fmt: skip


SEARCHES = [
    vf.search_subsets, vf.greedy_search, vf.coordinate_search, vf.shapley_values, vf.leave_one_out, vf.diversity,
]  # fmt: skip


@pytest.mark.parametrize("search", SEARCHES)
def test_row_16_and_17_labels_that_do_not_fit_are_named(search):
    z, y = scores()
    for wrong, said in ((np.where(y == 1, 4, y), "expected 0 to 3"), (y[:-1], "expected 60"), (y[:1], "expected 60")):
        with pytest.raises(InputError, match=said):
            search(z, labels=wrong)


@pytest.mark.parametrize("search", [vf.search_subsets, vf.greedy_search, vf.coordinate_search])
def test_sample_weights_are_checked(search):
    z, y = scores()
    for wrong in (-np.ones(60), np.zeros(60), np.full(60, np.nan), np.ones(59)):
        with pytest.raises(InputError, match="sample_weight"):
            search(z, "accuracy", labels=y, sample_weight=wrong)
    found, expected = search(z, "accuracy", labels=y, sample_weight=[1] * 60), search(z, "accuracy", labels=y)
    assert found.score == pytest.approx(expected.score, abs=1e-12)
    assert repr(found) == repr(expected)


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (None, "None"), ("x", "'x'"), ([1, 2], r"\[1, 2\]")])
@pytest.mark.parametrize("search", [vf.search_subsets, vf.greedy_search, vf.shapley_values, vf.leave_one_out])
def test_an_objective_that_is_no_number_is_named_with_the_subset(search, value, said):
    z, y = scores(m=2)

    def of_both(labels, log_proba):
        both = not any(np.allclose(log_proba, own, atol=1e-5) for own in alone)
        return value if both else 1.0

    alone = [vf.LogLinearPool("uniform").fit(z[:, [m]]).predict_log_proba(z[:, [m]]) for m in range(2)]
    alone.append(np.full((60, 4), -np.log(4)))  # no member at all
    with pytest.raises(InputError, match=f"objective of_both: expected a number, got {said} for 'member0', 'member1'"):
        search(z, of_both, labels=y)


def test_the_value_of_no_member_at_all_is_asked_for_as_well():
    z, y = scores(m=2)
    with pytest.raises(InputError, match="got NaN for no member at all"):
        vf.shapley_values(z, lambda labels, log_proba: np.nan if np.ptp(log_proba) == 0 else 1.0, labels=y)


def test_what_is_no_pool_is_said_to_be():
    z, y = scores()
    for search in (vf.search_subsets, vf.shapley_values, vf.leave_one_out):
        with pytest.raises(InputError, match="rule: expected a fusion rule"):
            search(z, rule="log-linear", labels=y)
    for wrong in (None, "log-linear"):
        with pytest.raises(InputError, match="expected a fusion rule"):
            vf.SubsetPool(wrong).fit(z, y)


def test_diversity_is_of_the_videos_that_all_members_have():
    z, y = scores()
    y[:20] = 0  # what an absent member does not get right
    ids = np.array([f"v{i:02d}" for i in range(60)])
    stack = vf.LogitStack.from_arrays(
        {"a": z[20:, 0], "b": z[:, 1]}, ids={"a": ids[20:], "b": ids}, join="outer",
        labels=dict(zip(ids.tolist(), y.tolist(), strict=True)),
    )  # fmt: skip
    found, expected = vf.diversity(stack), vf.diversity(z[20:, :2], y[20:])
    np.testing.assert_array_equal(found.accuracy, expected.accuracy)
    assert found.oracle == expected.oracle


def test_coordinate_search_takes_more_members_than_a_mask_has_bits():
    z, y = scores(n=40, m=70)
    found = vf.coordinate_search(z, labels=y, random_starts=0)
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
    assert "b" not in fitted.needed_members()
    chosen = stack.select(fitted.needed_members())
    np.testing.assert_array_equal(fitted.predict_log_proba(chosen), fitted.predict_log_proba(stack))


@pytest.mark.parametrize("name", ["linear", "log-linear"])
def test_a_veto_of_the_true_class_in_a_video_of_no_weight_is_no_matter(name):
    rng = np.random.default_rng(0)
    p, y, weight = rng.dirichlet(np.ones(3), size=(16, 2)), rng.integers(0, 3, 16), np.ones(16)
    p[3], weight[3] = np.eye(3)[(y[3] + 1) % 3], 0.0
    stack = vf.LogitStack.from_arrays(p, labels=y, kind="probabilities")
    rest = stack[weight > 0]
    pool = (vf.LinearPool if name == "linear" else vf.LogLinearPool)("uniform", floor=0.0)
    found = vf.search_subsets(stack, "nll", pool, sample_weight=weight)
    np.testing.assert_allclose(found.table.scores, vf.search_subsets(rest, "nll", pool).table.scores, atol=1e-9)
    grown = vf.greedy_search(stack, "nll", 5, pool=name, floor=0.0, sample_weight=weight)
    assert grown.weights == vf.greedy_search(rest, "nll", 5, pool=name, floor=0.0).weights


def test_weights_that_leave_no_video_that_all_members_have_are_refused():
    stack = incomplete()
    weight = (~stack.present.all(axis=1)).astype(float)
    with pytest.raises(InputError, match="sample_weight: expected a positive sum over the videos that every member"):
        vf.search_subsets(stack, rule=vf.LogLinearPool("accuracy", missing="renormalise"), sample_weight=weight)


def test_an_incomplete_stack_is_refused_with_advice_that_holds():
    stack = incomplete()
    for search in (*SEARCHES[:5], vf.honest_score):
        first = [vf.LogLinearPool("accuracy", missing="renormalise")] if search is vf.honest_score else []
        with pytest.raises(InputError, match=r"keep those that all members have|drop videos that lack") as refused:
            search(*first, stack)
        assert 'say missing="renormalise"' not in str(refused.value)
    for refusing in (vf.GreedyPool(), vf.SubsetPool(vf.StackedPool())):
        with pytest.raises(AlignmentError, match=r'40 of 60 .*join="inner" while loading$'):
            refusing.fit(stack)
    with pytest.raises(AlignmentError, match='give the rule missing="renormalise"'):
        vf.SubsetPool(vf.LogLinearPool("accuracy")).fit(stack)


def test_no_chosen_member_at_predict_is_said_to_be():
    stack = incomplete()
    fitted = vf.SubsetPool(vf.LogLinearPool("accuracy", missing="renormalise"), max_members=1).fit(stack)
    others = [name for name in stack.members if name not in fitted.selected_]
    with pytest.raises(AlignmentError, match=f"expected some of the members '{fitted.selected_[0]}'"):
        fitted.predict(stack.select(others))
