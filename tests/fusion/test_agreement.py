"""A member whose rows stand in another order is told by its lost agreement, and by nothing less."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from vidfuse import LogitStack, LogLinearPool, MajorityVote, members_first, reduce_views
from vidfuse.errors import VidfuseWarning


def scores(seed, skills, n=200, k=5):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    return {f"m{j}": rng.normal(size=(n, k)) + skill * np.eye(k)[y] for j, skill in enumerate(skills)}, y


def fitted(skills):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VidfuseWarning)  # a member at chance beside good ones is told at once
        arrays, y = scores(0, skills)
        return MajorityVote().fit(LogitStack.from_arrays(arrays, labels=y))


def test_rows_in_another_order_are_warned_of_by_name():
    rule = fitted((3.0, 3.0, 3.0))
    arrays, _ = scores(1, (3.0, 3.0, 3.0))
    arrays["m1"] = arrays["m1"][::-1]
    with pytest.warns(VidfuseWarning, match="member 'm1' agreed with the others on the videos of the fit"):
        rule.predict(LogitStack.from_arrays(arrays))


def test_members_that_agree_less_but_beyond_chance_are_not():
    """On harder videos a kappa of 0.8 falls to 0.3: many deviations, and still no order of chance."""
    rule = fitted((4.0, 4.0, 4.0))
    arrays, _ = scores(1, (1.6, 1.6, 1.6))
    rule.predict(LogitStack.from_arrays(arrays))


def test_a_member_that_never_agreed_is_not():
    rule = fitted((3.0, 3.0, 0.0))
    for seed in range(1, 6):
        arrays, _ = scores(seed, (3.0, 3.0, 0.0))
        rule.predict(LogitStack.from_arrays(arrays))


def test_too_few_videos_tell_nothing():
    rule = fitted((3.0, 3.0, 3.0))
    arrays, _ = scores(1, (3.0, 3.0, 3.0), n=29)
    arrays["m1"] = arrays["m1"][::-1]
    rule.predict(LogitStack.from_arrays(arrays))


def test_recipes_of_the_first_releases_hold_no_agreement():
    arrays, y = scores(0, (3.0, 3.0))
    rule = LogLinearPool().fit(LogitStack.from_arrays(arrays), y)
    del rule.agreement_, rule.class_names_, rule.feature_names_in_
    assert (rule.predict(np.stack(list(arrays.values()), axis=1)) == y).mean() > 0.8


def test_a_view_on_which_members_know_nothing_is_no_other_order():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 200)
    views = rng.normal(size=(200, 3, 2, 5))
    views[:, :, 0] += 4.0 * np.eye(5)[y][:, None]
    stack = LogitStack.from_arrays(views)
    rule = MajorityVote().fit(reduce_views(stack))
    second = LogitStack.from_arrays(views[:, :, 1])
    with pytest.warns(VidfuseWarning, match="agreed with the others on the videos of the fit"):
        rule.predict(second)
    assert members_first(rule, stack, "mean-log").shape == (200, 5)


@pytest.mark.parametrize("seed", range(4))
def test_videos_of_one_class_tell_nothing_of_the_order(seed):
    """All members are right, as on the videos of the fit, and by chance they would agree as often."""
    rule = fitted((4.0, 4.0, 4.0))
    rng = np.random.default_rng(seed)
    z = {f"m{j}": rng.normal(size=(200, 5)) + 4.0 * np.eye(5)[0] for j in range(3)}
    assert (rule.predict(LogitStack.from_arrays(z)) == 0).mean() > 0.99


@pytest.mark.parametrize("by_id", [False, True])
def test_the_advice_is_one_that_can_be_followed(by_id):
    rule = fitted((3.0, 3.0, 3.0))
    arrays, y = scores(1, (3.0, 3.0, 3.0))
    arrays["m1"] = arrays["m1"][::-1]
    ids = [f"v{i}" for i in range(200)] if by_id else None
    advice = "Rows are matched by id: look" if by_id else "Pass ids"
    with pytest.warns(VidfuseWarning, match=f"in a random order.*{advice}"):
        LogitStack.from_arrays(arrays, labels=y, ids=ids)
    with pytest.warns(VidfuseWarning, match=f"agreed with the others.*{advice}"):
        rule.predict(LogitStack.from_arrays(arrays, ids=ids))


def test_videos_of_one_class_say_nothing_of_the_order():
    """Members agree on them whatever the order: no member has lost anything."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 600)
    fit = LogitStack.from_arrays((rng.normal(size=(600, 3, 10)) + 3 * np.eye(10)[y][:, None]), labels=y)
    one = rng.normal(size=(200, 3, 10)) + 3 * np.eye(10)[np.zeros(200, int)][:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LogLinearPool(weights="uniform").fit(fit).predict(one)
