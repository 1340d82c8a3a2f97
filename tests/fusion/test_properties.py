"""What no rule may depend on: the order of classes, videos and members, constants, copies; over random ensembles."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_cases import CASES, array_of, by_name, members
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.base import clone

from vidfuse.errors import VidfuseWarning
from vidfuse.fusion.calibration import Calibrated
from vidfuse.fusion.linear import LinearPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.votes import BordaCount, MajorityVote
from vidfuse.selection.greedy import GreedyPool
from vidfuse.selection.subsets import SubsetPool
from vidfuse.stack.stack import LogitStack

some = settings(max_examples=3)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(40, 49)
classes = st.integers(3, 6)

RULES = {case: by_name(rule, ["b", "a", "c"]) for case, rule in CASES.items()}
del RULES["cv"]  # its folds follow the order of labels and videos, and it is slow


def ensemble(n, seed, k):
    return members(n, seed, k, noise=1.2)


def fit(rule, arrays, y, ids=None):
    """Fit a rule, unless some weights separate the videos perfectly: there probabilities reach their bounds."""
    try:
        return clone(rule).fit(LogitStack.from_arrays(arrays, labels=y, ids=ids))
    except VidfuseWarning:
        reject()


def close(actual, desired, atol=1e-5):
    assert_allclose(actual, desired, rtol=0, atol=atol)


@pytest.mark.parametrize("name", RULES)
@some
@given(seeds, sizes, classes, st.data())
def test_renamed_classes_permute_the_probabilities(name, seed, n, k, draw):
    """Scores are continuous, so that no member ties; tied votes go to the mean-log pool, which orders classes alike."""
    arrays, y = ensemble(n, seed, k)
    order = np.array(draw.draw(st.permutations(range(k))))
    renamed = {member: z[:, order] for member, z in arrays.items()}
    one, other = fit(RULES[name], arrays, y), fit(RULES[name], renamed, np.argsort(order)[y])
    close(
        other.predict_proba(LogitStack.from_arrays(renamed)),
        one.predict_proba(LogitStack.from_arrays(arrays))[:, order],
    )


@pytest.mark.parametrize("name", RULES)
@some
@given(seeds, sizes, classes, st.data())
def test_the_order_of_videos_changes_no_fit(name, seed, n, k, draw):
    arrays, y = ensemble(n, seed, k)
    order = np.array(draw.draw(st.permutations(range(n))))
    shuffled = {member: z[order] for member, z in arrays.items()}
    ids = np.array([f"v{i:02}" for i in range(n)]) if name.startswith("cascade") else None  # halves are dealt by id
    one = fit(RULES[name], arrays, y, ids)
    other = fit(RULES[name], shuffled, y[order], None if ids is None else ids[order])
    stack = LogitStack.from_arrays(arrays)
    close(other.predict_proba(stack), one.predict_proba(stack))


@pytest.mark.parametrize("name", RULES)
@some
@given(seeds, sizes, classes, st.permutations(["a", "b", "c"]), st.permutations(["a", "b", "c"]))
def test_the_order_of_members_changes_neither_fit_nor_prediction(name, seed, n, k, fit_order, order):
    arrays, y = ensemble(n, seed, k)
    one, other = fit(RULES[name], arrays, y), fit(RULES[name], {member: arrays[member] for member in fit_order}, y)
    expected = one.predict_log_proba(LogitStack.from_arrays(arrays))
    shuffled = LogitStack.from_arrays({member: arrays[member] for member in order})
    assert_array_equal(one.predict_log_proba(shuffled), expected)
    close(other.predict_log_proba(shuffled), expected, 1e-9)


@pytest.mark.parametrize("name", RULES)
@some
@given(seeds, sizes, classes)
def test_a_constant_added_to_a_members_logits_changes_nothing(name, seed, n, k):
    arrays, y = ensemble(n, seed, k)
    rng = np.random.default_rng(seed)
    shifted = {member: z + 30 * rng.normal(size=(n, 1)) for member, z in arrays.items()}
    one, other = fit(RULES[name], arrays, y), fit(RULES[name], shifted, y)
    close(other.predict_proba(LogitStack.from_arrays(shifted)), one.predict_proba(LogitStack.from_arrays(arrays)))


@pytest.mark.filterwarnings("ignore::vidfuse.errors.VidfuseWarning")  # of weights and temperatures at their bounds
@pytest.mark.parametrize("name", RULES)
@some
@given(
    seeds,
    sizes,
    classes,
    st.sampled_from([(1000.0, "logits"), (0.1, "logits"), (30.0, "probabilities")]),
    st.booleans(),
)
def test_rows_are_normalised_and_never_nan(name, seed, n, k, given_as, vetoes):
    """Vetoes spare the true class: a log-linear pool has no answer where members veto every class."""
    arrays, y = ensemble(n, seed, k)
    scale, kind = given_as
    rng = np.random.default_rng(seed)
    hidden = (rng.random((n, k)) < 0.3) & ~np.eye(k, dtype=bool)[y]
    arrays = {member: np.where(hidden & vetoes, -np.inf, scale * z) for member, z in arrays.items()}
    if kind == "probabilities":
        arrays = {member: softmax(z, axis=1) for member, z in arrays.items()}
    check_rows(RULES[name], LogitStack.from_arrays(arrays, labels=y, kind=kind))


@pytest.mark.filterwarnings("ignore::vidfuse.errors.VidfuseWarning")
@pytest.mark.parametrize("name", RULES)
def test_members_that_are_certain_and_wrong_leave_no_nan(name):
    arrays, y = ensemble(60, 0, 4)
    certain = {member: np.eye(4)[z.argmax(axis=1)] for member, z in arrays.items()}
    check_rows(RULES[name], LogitStack.from_arrays(certain, labels=y, kind="probabilities"))


def check_rows(rule, stack):
    log_p = clone(rule).fit(stack).predict_log_proba(stack)
    assert log_p.shape == (len(stack), stack.n_classes)
    assert (np.isfinite(log_p) | np.isneginf(log_p)).all()
    close(logsumexp(log_p, axis=1), 0.0, 1e-9)


@some
@given(seeds, sizes, classes, st.sampled_from(["a", "b", "c"]))
def test_weight_on_one_member_alone_gives_its_own_prediction(seed, n, k, chosen):
    arrays, y = ensemble(n, seed, k)
    stack = LogitStack.from_arrays(arrays, labels=y)
    own = log_softmax(arrays[chosen], axis=1)
    one_hot = {member: float(member == chosen) for member in arrays}
    for pool in (LogLinearPool(weights=one_hot), LinearPool(weights=one_hot)):
        close(pool.fit(stack).predict_log_proba(stack), own, 1e-4)
    for vote in (MajorityVote(weights=one_hot), BordaCount(weights=one_hot)):
        ranks = vote.fit(stack).predict_proba(stack)
        assert_array_equal(ranks.argmax(axis=1), own.argmax(axis=1))
    assert_array_equal(ranks.argsort(axis=1), own.argsort(axis=1))  # Borda's points rank all classes
    calibrated = Calibrated(LogLinearPool(weights=one_hot)).fit(stack)
    close(calibrated.predict_log_proba(stack), log_softmax(own / calibrated.calibrators_[0].temperature_, axis=1), 1e-4)


@some
@given(seeds, sizes, classes)
def test_a_selection_of_one_member_gives_its_own_prediction(seed, n, k):
    arrays, y = ensemble(n, seed, k)
    stack = LogitStack.from_arrays(arrays, labels=y)
    log_p = log_softmax(array_of(arrays), axis=2)
    losses = -log_p[np.arange(n), :, y].mean(axis=0)
    hits = (log_p.argmax(axis=2) == y[:, None]).sum(axis=0)
    for kind in ("linear", "log-linear"):
        grown = GreedyPool("nll", rounds=1, pool=kind).fit(stack)
        close(grown.predict_log_proba(stack), log_p[:, losses.argmin()], 1e-4)
    subset = SubsetPool(LogLinearPool(weights="uniform"), "nll", max_members=1).fit(stack)
    close(subset.predict_log_proba(stack), log_p[:, losses.argmin()], 1e-4)
    best = SubsetPool(LinearPool(weights="uniform"), max_members=1).fit(stack).selected_
    assert hits[list(arrays).index(*best)] == hits.max()


COPIED = {
    "linear": LinearPool(),
    "log-linear": LogLinearPool(shrinkage=None),
    "calibrated": Calibrated(LinearPool(), where="members"),
    "greedy": GreedyPool("nll", rounds=10),
    "greedy log-linear": GreedyPool("nll", rounds=10, pool="log-linear"),
}


@pytest.mark.parametrize("name", COPIED)
@some
@given(seeds, sizes, classes, st.sampled_from(["a", "b", "c"]))
def test_a_copy_of_a_member_changes_no_prediction(name, seed, n, k, copied):
    """Where nothing pulls the weights to a prior: a copy gets a share of a scored weight, and shrinkage counts it."""
    arrays, y = ensemble(n, seed, k)
    more = {**arrays, "d": arrays[copied]}
    one, other = fit(COPIED[name], arrays, y), fit(COPIED[name], more, y)
    close(other.predict_proba(LogitStack.from_arrays(more)), one.predict_proba(LogitStack.from_arrays(arrays)), 1e-4)


@some
@given(seeds, sizes, classes, st.floats(0.1, 0.9))
def test_a_weight_split_between_copies_counts_as_one(seed, n, k, share):
    arrays, _ = ensemble(n, seed, k)
    one, two = LogitStack.from_arrays(arrays), LogitStack.from_arrays({**arrays, "d": arrays["a"]})
    whole, split = {"b": 1.0, "a": 2.0, "c": 0.5}, {"b": 1.0, "a": 2.0 * share, "c": 0.5, "d": 2.0 * (1 - share)}
    for rule in (LogLinearPool, LinearPool):
        close(rule(weights=split).fit(two).predict_log_proba(two), rule(weights=whole).fit(one).predict_log_proba(one))


@some
@given(seeds, sizes, classes, st.integers(2, 4))
def test_votes_of_every_member_repeated_equally_elect_the_same(seed, n, k, times):
    arrays, _ = ensemble(n, seed, k)
    one = LogitStack.from_arrays(arrays)
    more = LogitStack.from_arrays({f"{member}{i}": z for member, z in arrays.items() for i in range(times)})
    for vote in (MajorityVote(), BordaCount()):
        assert_array_equal(vote.fit(more).predict(more), vote.fit(one).predict(one))
