"""Votes and views: worked examples, and brute force over both orders."""

from __future__ import annotations

import numpy as np
import pytest

from vidfuse.errors import AlignmentError, InputError
from vidfuse.fusion.calibration import Calibrated
from vidfuse.fusion.linear import LinearPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.views import members_first, reduce_views
from vidfuse.fusion.votes import BordaCount, MajorityVote, vote_of_views
from vidfuse.likelihood import growing_sums, log_softmax
from vidfuse.stack.stack import LogitStack


def scores(n=40, members=3, classes=4, seed=0, views=None):
    rng = np.random.default_rng(seed)
    shape = (n, members, classes) if views is None else (n, members, views, classes)
    return log_softmax(rng.normal(size=shape) * 2)


def test_majority_by_hand():
    p = np.array(
        [[[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.1, 0.4]], [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]]
    )
    vote = MajorityVote().fit(np.log(p))
    q = p.prod(axis=1) ** (1 / 3)
    q /= q.sum(axis=1, keepdims=True)
    votes = np.array([[2.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(vote.predict_proba(np.log(p)), (votes + 0.5 * q) / 3.5, atol=1e-6)
    assert vote.predict(np.log(p)).tolist() == [0, int(q[1].argmax())]


def test_weighted_majority_ranks_by_votes_against_brute_force():
    z = scores(n=200, members=5)
    weights = np.array([0.3, 0.1, 0.2, 0.1, 0.3])
    votes = np.zeros((200, 4))
    for m in range(5):
        votes[np.arange(200), z[:, m].argmax(axis=1)] += weights[m]
    p = MajorityVote(weights=weights).fit(z).predict_proba(z)
    chosen = p.argmax(axis=1)
    np.testing.assert_allclose(votes[np.arange(200), chosen], votes.max(axis=1), atol=1e-12)
    q = z.mean(axis=1)
    tied = np.abs(votes - votes.max(axis=1, keepdims=True)) < 1e-9
    np.testing.assert_array_equal(chosen, np.where(tied, q, -np.inf).argmax(axis=1))


def test_borda_by_hand():
    p = np.array([[[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.4, 0.2, 0.4]]])
    points = np.array([[2 + 0 + 1.5, 1 + 2 + 0, 0 + 1 + 1.5]])
    q = p.prod(axis=1) ** (1 / 3)
    q /= q.sum()
    expected = (points + 0.25 * q) / (9 + 0.25)  # the smallest difference of points is one half
    np.testing.assert_allclose(BordaCount().fit(np.log(p)).predict_proba(np.log(p)), expected, atol=1e-6)


def test_members_first_fuses_each_view_to_a_label_and_lets_views_vote():
    z, y = scores(n=60, members=3, views=5, seed=2), np.arange(60) % 4
    vote = MajorityVote(weights="accuracy").fit(z, y)
    log_mean = log_softmax(z.mean(axis=2))
    accuracy = (log_mean.argmax(axis=2) == y[:, None]).mean(axis=0)
    np.testing.assert_allclose(vote.weights_, accuracy / accuracy.sum(), atol=1e-12)
    fused = log_softmax(np.einsum("nmvk,m->nvk", z, vote.weights_))
    votes = np.stack([(fused.argmax(axis=2) == k).sum(axis=1) for k in range(4)], axis=1)
    q = np.exp(log_softmax(fused.mean(axis=1)))
    np.testing.assert_allclose(vote.predict_proba(z), (votes + 0.5 * q) / 5.5, atol=1e-5)


def test_views_first_then_members():
    z = scores(n=20, members=2, views=3, seed=3)
    stack = LogitStack.from_arrays(z, labels=np.arange(20) % 4)
    reduced = reduce_views(stack, {"member0": "mean-probability", "member1": "vote"})
    assert reduced.shape == (20, 2, 4)
    assert reduced.labels.tolist() == stack.labels.tolist()
    expected = np.exp(z[:, 0]).mean(axis=1)
    np.testing.assert_allclose(np.exp(reduced.log_likelihoods()[:, 0]), expected, atol=1e-6)
    assert LogLinearPool(weights="uniform").fit(reduced).predict(reduced).shape == (20,)


def test_views_of_probabilities_are_floored():
    p = np.array([[[[1.0, 0.0], [0.4, 0.6]]]])
    stack = LogitStack.from_arrays({"a": p[:, 0]}, kind="probabilities")
    assert np.isfinite(reduce_views(stack).log_likelihoods()).all()
    assert np.isneginf(reduce_views(stack, floor=0.0).log_likelihoods()).any()


def test_views_refuse_what_they_cannot_reduce():
    stack = LogitStack.from_arrays(scores(n=4, views=2))
    with pytest.raises(InputError, match="median"):
        reduce_views(stack, "median")
    with pytest.raises(InputError, match="expected one for each"):
        reduce_views(stack, {"member0": "max"})
    with pytest.raises(InputError, match="no reducing"):
        reduce_views(scores(n=4), "max")


def test_padding_views_are_left_out():
    z = scores(n=6, members=2, views=4, seed=5)
    present = np.ones((6, 4), dtype=bool)
    present[:3, 2:] = False
    got = reduce_views(z, "mean-log", present=present).log_likelihoods()
    np.testing.assert_allclose(got[:3], log_softmax(z[:3, :, :2].mean(axis=2)), atol=1e-5)
    np.testing.assert_allclose(got[3:], log_softmax(z[3:].mean(axis=2)), atol=1e-5)


def test_votes_refuse_learned_weights():
    with pytest.raises(InputError, match="inverse-nll"):
        MajorityVote(weights="learned").fit(scores(), np.arange(40) % 4)


def test_absent_members_do_not_vote_where_that_is_asked_for():
    z = scores(n=10, members=3, seed=6)
    ids = [f"v{i}" for i in range(10)]
    stack = LogitStack.from_arrays(
        {"a": z[:, 0], "b": z[:5, 1], "c": z[:, 2]},
        ids={"a": ids, "b": ids[:5], "c": ids},
        join="outer",
    )
    for rule in (MajorityVote, BordaCount):
        votes = rule(missing="renormalise").fit(stack).predict_proba(stack)
        np.testing.assert_allclose(votes[:5], rule().fit(z[:5]).predict_proba(z[:5]), atol=1e-6)
        np.testing.assert_allclose(votes[5:], rule().fit(z[5:, ::2]).predict_proba(z[5:, ::2]), atol=1e-6)


def test_members_first_with_a_pool_is_the_majority_vote_of_the_same_weights():
    z = scores(n=60, members=3, views=5, seed=2)
    pool = LogLinearPool([3.0, 1.0, 2.0]).fit(reduce_views(z))
    vote = MajorityVote([3.0, 1.0, 2.0]).fit(z)
    np.testing.assert_allclose(members_first(pool, z), vote.predict_log_proba(z), atol=1e-5)


@pytest.mark.parametrize("how", ["vote", "mean-log", "mean-probability", "max"])
def test_members_first_leaves_padding_out(how):
    """Oracle: each video alone, with the views that it has."""
    z = scores(n=6, members=2, views=4, seed=5)
    present = np.arange(4) < np.array([1, 2, 3, 4, 4, 2])[:, None]
    pool = LinearPool([1.0, 2.0]).fit(reduce_views(z))
    found = members_first(pool, z, how, present=present)
    for i, count in enumerate(present.sum(axis=1)):
        np.testing.assert_allclose(found[i], members_first(pool, z[i : i + 1, :, :count], how)[0], atol=1e-5)
    with pytest.raises(InputError, match="row 3 has no view"):
        members_first(pool, z, how, present=np.arange(6)[:, None] != np.full(4, 3))


def test_members_first_keeps_kinds_ids_and_absent_members():
    rng = np.random.default_rng(4)
    p = rng.dirichlet(np.ones(4), size=(30, 5)).astype(np.float32)
    q = rng.dirichlet(np.ones(4), size=(20, 5)).astype(np.float32)
    ids = [f"v{i}" for i in range(30)]
    stack = LogitStack.from_arrays(
        {"a": p, "b": q}, ids={"a": ids, "b": ids[:20]}, kind="probabilities", join="outer",
        labels={name: i % 4 for i, name in enumerate(ids)},
    )  # fmt: skip
    rule = Calibrated(LogLinearPool("uniform", missing="renormalise"), where="members").fit(reduce_views(stack))
    found = members_first(rule, stack, "mean-probability")
    views = [
        LogitStack.from_arrays({"a": p[:, v], "b": q[:, v]}, ids={"a": ids, "b": ids[:20]}, kind="probabilities",
                               join="outer")
        for v in range(5)
    ]  # fmt: skip
    expected = np.mean([rule.predict_proba(view) for view in views], axis=0)
    np.testing.assert_allclose(np.exp(found), expected, atol=1e-5)
    strict = LogLinearPool("uniform").fit(reduce_views(stack[:20]))
    with pytest.raises(AlignmentError, match="10 of 30 videos"):
        members_first(strict, stack)


def test_members_first_needs_views():
    z = scores(n=4)
    with pytest.raises(InputError, match="no reducing"):
        members_first(LinearPool("uniform").fit(z), z)


def test_combinations_that_grow_vote_as_each_alone_would():
    rng = np.random.default_rng(3)
    block = log_softmax(3 * rng.normal(size=(40, 3, 5, 4))).astype(np.float32)
    block[0, 2] = -np.inf  # of weight 0 there: no veto
    weights = rng.uniform(0.2, 2.0, size=(40, 3))
    weights[0, 2] = 0.0
    columns = [(1,), (1, 0), (1, 0, 2), (2, 1), (1, 0)]
    sums = growing_sums(block, [(own, weights[:, own]) for own in columns])
    found = [vote_of_views(total, share) for total, share in sums]
    for own, log_p in zip(columns, found, strict=True):
        for video in range(40):
            share = weights[video, list(own)] / weights[video, list(own)].sum()
            heard = [(w, m) for w, m in zip(share, own, strict=True) if w > 0]
            fused = sum(w * block[video, m].astype(float) for w, m in heard)
            votes = np.bincount(fused.argmax(axis=1), minlength=4)
            mean = np.exp(fused.mean(axis=0))
            np.testing.assert_allclose(np.exp(log_p[video]), (votes + 0.5 * mean / mean.sum()) / 5.5, atol=1e-12)
