"""Tests of a risk: against SciPy, and their level against every outcome that there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, multinomial

from vidfuse.errors import InputError
from vidfuse.metrics import betting_p_value, binomial_p_value, clopper_pearson, difference_p_value, risk_p_value


@given(st.integers(1, 3000), st.data())
def test_an_exact_interval_is_scipys(n, data):
    k = data.draw(st.integers(0, n))
    expected = binomtest(k, n).proportion_ci(0.9, method="exact")
    np.testing.assert_allclose(clopper_pearson(k, n, 0.9), (expected.low, expected.high), atol=1e-10)


@given(st.integers(1, 3000), st.floats(0.001, 0.999), st.data())
def test_a_binomial_p_value_is_scipys_and_agrees_with_the_interval(n, risk, data):
    k = data.draw(st.integers(0, n))
    assert binomial_p_value(k, n, risk) == pytest.approx(binomtest(k, n, risk, "less").pvalue, abs=1e-10)
    high = clopper_pearson(k, n, 0.9)[1]
    if abs(high - risk) > 1e-9:
        assert (binomial_p_value(k, n, risk) < 0.05) == (high < risk)


@pytest.mark.parametrize(("n", "margin"), [(40, 0.1), (40, 0.3), (90, 0.05)])
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_a_difference_at_the_margin_is_found_smaller_no_more_often_than_stated(n, margin, level):
    """Every outcome (lost, won), and every share of unequal videos, q ≥ margin, on a grid."""
    outcomes = [(lost, won) for lost in range(n + 1) for won in range(n + 1 - lost)]
    found = [(*o, n - sum(o)) for o in outcomes if difference_p_value(*o, n, margin) <= level]
    assert len(found) > 10
    for q in np.linspace(margin, 1.0, 40):
        chances = [(q + margin) / 2, (q - margin) / 2, 1 - q]
        assert multinomial.pmf(found, n, chances).sum() <= level


@given(st.integers(0, 30), st.integers(0, 30), st.integers(61, 4000), st.floats(0.001, 0.4))
@settings(max_examples=50)
def test_more_losses_are_never_better_evidence_and_no_difference_is_what_binomials_say(lost, won, n, margin):
    p = difference_p_value(lost, won, n, margin)
    assert 0 < p <= 1
    assert p <= difference_p_value(lost + 1, won, n, margin)
    assert difference_p_value(0, 0, n, margin) >= binom.cdf(0, n, margin) - 1e-12  # no test could say less


def test_bets_are_won_no_more_often_than_stated_whatever_groups_have_in_common():
    """All outcomes of ten groups of 1 … 9 videos: alike within a group, of a risk that grows or falls with size."""
    sizes = np.array([1, 1, 2, 2, 2, 2, 3, 3, 3, 9])
    groups = np.repeat(np.arange(10), sizes)
    outcomes = np.array(list(product((False, True), repeat=10)))
    won = []
    for chance in (np.full(10, 0.6), np.where(sizes == 3, 0.9, 0.7), np.where(sizes < 3, 0.1, 0.9), sizes / 9):
        risk = sizes @ chance / sizes.sum()
        p = np.array([betting_p_value(hit[groups], risk, groups) for hit in outcomes])
        probability = np.where(outcomes, chance, 1 - chance).prod(axis=1)
        for level in (0.05, 0.3):
            won.append(probability[p <= level].sum())
            assert won[-1] <= level
    assert np.count_nonzero(won) >= 4


def test_bets_keep_their_level_on_many_uneven_groups():
    """Sizes like those of films; the risk lies in the large groups alone, and their videos share their fate."""
    rng, rejected = np.random.default_rng(0), 0
    for _ in range(300):
        sizes = np.minimum(np.ceil(rng.pareto(1.5, 150) + 0.01), 40).astype(int)
        chance = np.where(sizes >= 5, 0.3, 0.0)
        groups = np.repeat(np.arange(150), sizes)
        lost = (rng.random(150) < chance)[groups]
        rejected += betting_p_value(lost, float(sizes @ chance / sizes.sum()), groups) <= 0.05
    assert binom.sf(rejected - 1, 300, 0.05) > 0.01


@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.floats(0.01, 0.5))
@settings(max_examples=50)
def test_nothing_lost_says_half_of_what_any_valid_test_could(sizes, risk):
    """Groups that lose all or nothing, with a risk of exactly `risk`, lose nothing so often: no p-value is below."""
    n = np.array(sizes, dtype=float)
    level = brentq(lambda c: np.maximum(n - c, 0).sum() - risk * n.sum(), 0, n.max())
    chance = np.minimum(1, level / n)
    assert n @ (1 - chance) == pytest.approx(risk * n.sum())
    p = betting_p_value(np.zeros(int(n.sum())), risk, np.repeat(np.arange(len(n)), sizes))
    assert chance.prod() * (1 - 1e-9) <= p <= min(1.0, 2 * chance.prod())


def test_large_groups_cost_less_than_bets_in_units_of_the_largest():
    """One stake for all groups, as far as the largest allows: the plain bet of the paper on sums of groups."""

    def plain(losses, risk, groups):
        sizes, lost = np.bincount(groups), np.bincount(groups, losses)
        stakes = 0.5 ** (0.5 * np.arange(16)) / (1 - risk)
        money = np.prod(1 + stakes[:, None] * (risk * sizes - lost) / sizes.max(), axis=1)
        return min(1.0, 1 / np.average(money, weights=1 / np.arange(1, 17)))

    rng, found = np.random.default_rng(0), np.zeros(2)
    for _ in range(100):
        sizes = rng.choice([1, 1, 1, 2, 2, 4, 6, 12], 120)
        groups = np.repeat(np.arange(120), sizes)
        losses = (rng.random(len(groups)) < 0.01).astype(float)
        found += [test(losses, 0.08, groups) <= 0.05 for test in (plain, betting_p_value)]
    assert found[1] > 2 * found[0]


@given(st.lists(st.floats(-5, 1), min_size=1, max_size=60), st.floats(0.01, 0.9), st.randoms())
def test_the_order_of_videos_and_the_names_of_groups_say_nothing(losses, risk, random):
    groups = [i // 3 for i in range(len(losses))]
    order = list(range(len(losses)))
    random.shuffle(order)
    p = betting_p_value(losses, risk, groups)
    q = betting_p_value([losses[i] for i in order], risk, [f"g{groups[i]}" for i in order])
    assert p == pytest.approx(q, rel=1e-9)
    assert 0 <= p <= 1


def test_bets_find_what_is_there():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(600), 5)
    found = [betting_p_value(rng.random(3000) < 0.01, 0.03, groups) <= 0.05 for _ in range(50)]
    assert np.mean(found) == 1.0


def test_what_is_possible_chooses_the_test_and_not_what_came():
    zero_one, signed = np.repeat([0.0, 1.0], [295, 5]), np.repeat([0.0, 1.0, -1.0], [280, 10, 10])
    assert risk_p_value(zero_one, 0.05) == binomial_p_value(5, 300, 0.05)
    assert risk_p_value(zero_one, 0.05, lowest=-1) == difference_p_value(5, 0, 300, 0.05)
    assert risk_p_value(signed, 0.05, lowest=-1) == difference_p_value(10, 10, 300, 0.05)
    for losses, lowest in ((zero_one, 0), (signed, -1)):
        grouped = risk_p_value(losses, 0.05, np.arange(300), lowest=lowest)
        assert grouped == betting_p_value(losses, 0.05) > risk_p_value(losses, 0.05, lowest=lowest)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clopper_pearson(3, 2), "within 0 … n"),
        (lambda: clopper_pearson(1, 2, 1.0), "confidence"),
        (lambda: binomial_p_value(-1, 5, 0.1), "within 0 … n"),
        (lambda: binomial_p_value(1, 5, 0.0), "risk"),
        (lambda: difference_p_value(3, 3, 5, 0.1), "within 0 … n"),
        (lambda: difference_p_value(1, 1, 5, -0.1), "margin"),
        (lambda: betting_p_value([2.0], 0.1), "at most 1"),
        (lambda: betting_p_value([1.0], 1.0), "risk"),
        (lambda: betting_p_value([np.nan], 0.5), "finite"),
        (lambda: betting_p_value([1.0, 0.0], 0.5, ["a"]), "groups"),
        (lambda: risk_p_value([1.0, -1.0], 0.5), "whole numbers"),
        (lambda: risk_p_value([0.5], 0.5, lowest=-1), "whole numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
