"""Weights per video: features against their definition, and videos that do not count."""

import tracemalloc

import fusion_cases
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from vidfuse import DynamicPool, LinearPool, LogitStack, LogLinearPool, MajorityVote, SubsetPool
from vidfuse.errors import AlignmentError, InputError
from vidfuse.fusion import dynamic
from vidfuse.fusion.dynamic import _confidence
from vidfuse.metrics import nll


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
        {"a": arrays["a"], "b": arrays["b"][:60]}, ids={"a": ids, "b": ids[:60]}, join="outer",
        labels=dict(zip(ids, y.tolist(), strict=True)),
    )  # fmt: skip
    with pytest.raises(AlignmentError, match=r"20 of 80 videos without some; keep those that all members have"):
        DynamicPool(LogLinearPool(missing="renormalise")).fit(stack)
    DynamicPool().fit(stack[stack.present.all(axis=1)])


def test_features_are_the_same_in_blocks_of_any_size_and_take_the_memory_of_a_block(monkeypatch):
    """Oracle for the agreement: every member's probability of every member's class, N x M x M numbers."""
    rng = np.random.default_rng(2)
    log_p = np.log(rng.dirichlet(np.ones(4), size=(500, 30))).astype(np.float32)
    p = np.exp(log_p.astype(np.float64))
    said = np.take_along_axis(p, p.argmax(axis=2)[:, None, :].repeat(30, axis=1), axis=2)
    expected = (said.sum(axis=1) - said.diagonal(axis1=1, axis2=2)) / 29
    monkeypatch.setattr(dynamic, "block_rows", lambda *_: 7)
    tracemalloc.start()
    confidence, agreement = _confidence(log_p)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(agreement, expected, atol=1e-12)
    np.testing.assert_allclose(confidence, 1 + (p * log_p).sum(axis=2) / np.log(4), atol=1e-12)
    assert peak < 500 * 30 * (2 * 8 + 8)  # the two results, and less than a quarter of the members' probabilities


@pytest.mark.parametrize("each", [None, 1, 4])
def test_competence_is_the_mean_over_the_nearest_videos_of_other_groups(each, monkeypatch):
    arrays, y = members()
    stack = LogitStack.from_arrays(arrays, labels=y)
    pool = DynamicPool(features="competence", neighbours=5).fit(stack)
    root = np.sqrt(pool.pool_.predict_proba(stack))
    monkeypatch.setattr(dynamic, "_LIKENESS", 400)  # five videos at once
    groups = None if each is None else np.arange(80) // each
    found = pool._competence(root, groups)
    for i in range(80):
        distance = ((root[i] - pool.reference_root_.astype(np.float64)) ** 2).sum(axis=1)
        if each is not None:
            distance[groups == groups[i]] = np.inf
        nearest = distance.argsort()[:5]
        np.testing.assert_allclose(found[i], pool.reference_log_true_[nearest].mean(axis=0), rtol=1e-9)


def test_a_zero_at_the_true_class_without_a_floor_is_refused():
    arrays, y = members()
    arrays["b"][7, y[7]] = -np.inf
    stack = LogitStack.from_arrays(arrays, labels=y, ids=[f"v{i}" for i in range(80)])
    without = DynamicPool(LogLinearPool("uniform", floor=0))
    with pytest.raises(InputError, match=r"true class: member 'b', id 'v7' \(row 7\); set floor"):
        without.fit(stack)
    weight = np.ones(80)
    weight[7] = 0
    assert np.isfinite(without.fit(stack, sample_weight=weight).gain_)
    assert np.isfinite(DynamicPool().fit(stack).gain_)


def test_groups_judge_the_gain_and_clips_of_a_source_are_no_neighbours():
    """Simulated: the clips of a source are alike, and a neighbour of the same source tells what no new video has."""
    rng = np.random.default_rng(0)
    y = np.repeat(rng.integers(0, 4, 40), 6)
    z = 0.3 * rng.normal(size=(240, 3, 4)) + np.repeat(rng.normal(size=(40, 3, 4)), 6, axis=0)
    z[np.arange(240), :, y] += np.repeat(rng.normal(1.0, 1.5, size=(40, 3)), 6, axis=0)
    by_clip = DynamicPool(features="competence", neighbours=5).fit(z, y)
    by_source = DynamicPool(features="competence", neighbours=5).fit(z, y, groups=np.arange(240) // 6)
    assert by_source.gain_ < by_clip.gain_ - 0.05


def test_one_video_of_positive_weight_gives_the_static_pool():
    arrays, y = members()
    weight = np.zeros(80)
    weight[3] = 1
    pool = DynamicPool().fit(LogitStack.from_arrays(arrays, labels=y), sample_weight=weight)
    assert pool.fallback_
    assert pool.gain_ == 0


def specialists(n, seed, k=8, members=4):
    """Return scores of members that know every fourth class each, and shout in those: weights per class help a lot."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    own = np.arange(k) % members == np.arange(members)[:, None]
    z = rng.normal(size=(n, members, k)) * np.where(own, 1.0, 2.0)
    z[np.arange(n), :, y] += np.where(own[:, y].T, 2.5, 0.3)
    return z, y


STATIC = [
    LogLinearPool(),
    LogLinearPool(per_class=True),
    LogLinearPool({"member0": 1.0, "member1": 0.0, "member2": 3.0, "member3": 1.0}),
    SubsetPool(LogLinearPool(), max_members=2),
]


@pytest.mark.parametrize("static", STATIC, ids=repr)
def test_without_strengths_the_videos_weights_are_the_static_pools_own(static):
    z, y = specialists(300, seed=0)
    pool = DynamicPool(static).fit(z, y)
    pool.fallback_, pool.strengths_ = False, np.zeros_like(pool.strengths_)
    np.testing.assert_allclose(pool.predict_log_proba(z), pool.pool_.predict_log_proba(z), atol=1e-10)


def test_weights_per_class_are_kept_and_the_gain_over_them_is_that_of_new_videos():
    (z, y), (new, truth) = specialists(1500, seed=0), specialists(5000, seed=1)
    pool = DynamicPool(LogLinearPool(per_class=True)).fit(z, y)
    assert not pool.fallback_
    dynamic, static = nll(truth, pool.predict_log_proba(new)), nll(truth, pool.pool_.predict_log_proba(new))
    assert static - dynamic == pytest.approx(pool.gain_, abs=0.02)


def test_weights_of_a_video_sum_to_those_of_the_static_pool():
    """Members that say the same cannot move a video: whatever their weights, the sum is what counts."""
    z, y = specialists(300, seed=0)
    pool = DynamicPool(LogLinearPool(per_class=True)).fit(z, y)
    pool.fallback_, pool.strengths_ = False, np.array([3.0, -2.0, 1.0])
    pool.pool_.scale_ = np.ones(4)
    same = np.repeat(z[:, :1], 4, axis=1)
    np.testing.assert_allclose(pool.predict_log_proba(same), pool.pool_.predict_log_proba(same), atol=1e-10)


@pytest.mark.parametrize("seed", range(6))
def test_the_order_of_the_videos_decides_nothing(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 5, 200)
    own = np.linspace(0.5, 2.0, 4)[:, None] * np.eye(5)[y][:, None]
    z = rng.normal(size=(200, 4, 5)) + own + rng.normal(size=(200, 1, 5))
    order = rng.permutation(200)
    one, other = DynamicPool().fit(z, y), DynamicPool().fit(z[order], y[order])
    assert one.fallback_ == other.fallback_
    assert one.gain_ == pytest.approx(other.gain_, abs=1e-5)
    np.testing.assert_allclose(one.predict_proba(z), other.predict_proba(z), atol=1e-4)  # float32 sums in another order


def test_a_gain_that_chance_explains_is_not_taken():
    """One standard error: where weights per video cannot help, about one fit in six takes them, not one in three."""
    taken = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 4, 100)
        z = rng.normal(size=(100, 2, 4)) + 1.5 * np.eye(4)[y][:, None]
        taken += not DynamicPool(features="confidence").fit(z, y).fallback_
    assert 4 <= taken <= 15


def test_references_are_spread_over_easy_and_hard_videos(monkeypatch):
    z, y = specialists(400, seed=0)
    stack = LogitStack.from_arrays(z, labels=y)
    monkeypatch.setattr(dynamic, "_REFERENCES", 40)
    pool = DynamicPool().fit(stack)
    assert len(pool.reference_root_) == len(pool.reference_log_true_) == 40
    static = pool.pool_.predict_log_proba(stack)
    loss = np.sort(-static[np.arange(400), y])
    found = [np.abs(np.exp(0.5 * static) - root).sum(axis=1).argmin() for root in pool.reference_root_]
    ranks = np.searchsorted(loss, -static[found, y[found]])
    np.testing.assert_allclose(ranks, np.linspace(0, 399, 40), atol=1)


@pytest.mark.parametrize("static", [LinearPool(), MajorityVote(), SubsetPool(LinearPool("accuracy"))], ids=repr)
def test_a_pool_that_is_not_log_linear_is_refused(static):
    arrays, y = members()
    with pytest.raises(InputError, match=r"pool: expected a rule that is a log-linear pool.*got"):
        DynamicPool(static).fit(LogitStack.from_arrays(arrays, labels=y))


def test_needed_members_are_those_of_the_static_pool():
    z, y = specialists(300, seed=0)
    weights = {"member0": 1.0, "member1": 0.0, "member2": 3.0, "member3": 1.0}
    pool = DynamicPool(LogLinearPool(weights)).fit(z, y)
    pool.fallback_ = True
    assert pool.needed_members() == ("member0", "member2", "member3")
    stack = LogitStack.from_arrays(z)
    expected = pool.predict_log_proba(stack)
    np.testing.assert_array_equal(pool.predict_log_proba(stack.select(pool.needed_members())), expected)
    chosen = DynamicPool(SubsetPool(LogLinearPool(), max_members=2)).fit(z, y)
    chosen.fallback_ = False
    assert chosen.needed_members() == chosen.pool_.selected_
    assert chosen.predict_log_proba(stack.select(chosen.pool_.selected_)).shape == (300, 8)


@pytest.mark.parametrize("per_class", [False, True])
def test_strengths_minimise_the_loss_and_its_prior(per_class):
    """Features, weights and objective as the documentation writes them; SciPy's simplex finds the lowest point."""
    arrays, y = fusion_cases.members()
    z = np.stack([arrays[name] for name in sorted(arrays)], axis=1)
    k, n = fusion_cases.K, len(y)
    videos = np.arange(n)
    static = LogLinearPool(per_class=per_class, shrinkage=30.0)  # which leaves something to gain
    pool = DynamicPool(static, neighbours=5).fit(z, y)
    assert not pool.fallback_
    log_p = log_softmax(z * pool.pool_.scale_[:, None], axis=2)
    log_p = np.logaddexp(np.log(0.999) + log_p, np.log(0.001 / k))
    p = np.exp(log_p)
    confidence = 1 + (p * log_p).sum(axis=2) / np.log(k)
    chosen = p.argmax(axis=2)
    said = np.take_along_axis(p[:, :, None, :], chosen[:, None, :, None], axis=3)[..., 0]  # by m, of each m's class
    agreement = (said.sum(axis=1) - said.diagonal(axis1=1, axis2=2)) / 2
    root = np.sqrt(pool.pool_.predict_proba(z))
    distance = ((root[:, None] - root[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argsort(axis=1)[:, :5]
    competence = log_p[videos, :, y][nearest].mean(axis=1)
    x = np.stack([confidence, agreement, competence], axis=2)
    x -= x.mean(axis=1, keepdims=True)
    if pool.pool_.class_weights_ is None:
        beta = np.repeat(pool.pool_.weights_[:, None] / pool.pool_.temperature_, k, axis=1)
    else:
        beta = pool.pool_.class_weights_
    bias = 0.0 if pool.pool_.class_bias_ is None else pool.pool_.class_bias_

    def objective(a):
        lift = np.exp(x @ a)
        lift *= beta.mean(axis=1).sum() / (lift @ beta.mean(axis=1))[:, None]
        w = beta + beta.mean(axis=1)[:, None] * (lift - 1)[:, :, None]
        own = log_softmax((w * log_p).sum(axis=1) + bias, axis=1)[videos, y]
        return -own.mean() + 0.5 * (a @ a) / n

    best = minimize(objective, pool.strengths_, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12})
    np.testing.assert_allclose(pool.strengths_, best.x, atol=0.01)
