"""Votes as probabilities: majority (plain and weighted, over members or over views) and Borda count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.utils.validation import check_is_fitted

from vidfuse.fusion.floors import Floor, floored_blocks
from vidfuse.fusion.rule import Missing, WeightedVote
from vidfuse.fusion.weighted import WeightedRule, Weights
from vidfuse.likelihood import best_classes, growing_sums, log_linear_pool, votes_to_log_proba
from vidfuse.stack.stack import LogitStack

__all__ = ["BordaCount", "MajorityVote", "most_probable", "ranks", "vote_of_views"]


Ballots = Callable[[NDArray[Any]], NDArray[np.float64]]
"""From one voter's log-likelihoods (B, K) to its votes (B, K)."""


class _Vote(WeightedRule):
    """What both votes share: members vote with their weights, and the mean-log pool breaks ties."""

    _kind: ClassVar[Literal["vote", "rank"]]

    def __init__(
        self, weights: Weights = "uniform", *, power: float = 1.0, floor: Floor = "auto", missing: Missing = "error"
    ) -> None:
        self.weights = weights
        self.power = power
        self.floor = floor
        self.missing = missing

    def _fit(self, stack: LogitStack, labels: Any, weight: NDArray[np.float64] | None) -> None:
        self._fit_weights(stack, labels, weight)

    def weighted_vote(self) -> WeightedVote:
        """Return the vote with its weights, over all of `members_`."""
        check_is_fitted(self, "weights_")
        return WeightedVote(self._kind, self.members_, self.weights_, self.floor_)

    def _count(self, stack: LogitStack, ballots: Ballots) -> NDArray[np.float64]:
        stack, weights, floors = self._with_a_say(stack)
        weights = weights / self.weighted_vote().one_vote
        out = np.empty((len(stack), stack.n_classes))
        for rows, block in floored_blocks(stack, floors):
            here = np.tile(weights, (len(block), 1)) if stack.present is None else stack.present[rows] * weights
            ids = None if stack.ids is None else stack.ids[rows]
            if block.ndim == 4:
                out[rows] = vote_of_views(*next(growing_sums(block, [(range(block.shape[1]), here)])), ids)
            else:
                out[rows] = _count_members(block, here, ids, ballots)
        return out


class MajorityVote(_Vote):
    """Let members vote for their most probable class; on a stack with views, fuse members first and let views vote.

    On (N, M, K) each member has one vote, or ``w_m`` of them, scaled so that equal weights are one vote each. On
    (N, M, V, K), view v of all members is fused by the weighted sum of log-likelihoods to one label, then each view
    has one vote (the test-time augmentation of multi-network fusion). Votes become probabilities
    ``p(c) = (votes_c + ½·q(c)) / (V + ½)``, q the normalised mean-log pool, which breaks ties and ranks the rest;
    with unequal weights ½ shrinks so that q never overrules a vote (`vidfuse.likelihood.votes_to_log_proba`).

    Args:
        weights: "uniform", "accuracy", "log-odds", "inverse-nll", numbers in the order in which the fit's stack
            lists its members, or {member: number}.
        power: the exponent of "accuracy".
        floor: the uniform distribution's share in every member; "auto": 1e-4 for members given as probabilities.
        missing: "renormalise" lets those members vote that a video has; "error" refuses.

    Attributes:
        weights_: (M,), on the simplex, in the order of `members_`.
        floor_: each member's floor (M,).
        n_missing_: for how many videos of the fit each member was missing (M,).

    Source:
        Lam and Suen 1997, Application of majority voting to pattern recognition; Kuncheva 2014, "Combining Pattern
        Classifiers", section 4.3.

    Example:
        >>> X = np.log([[[0.9, 0.1], [0.4, 0.6], [0.45, 0.55]]])
        >>> vote = MajorityVote().fit(X)
        >>> vote.predict(X).tolist(), vote.predict_proba(X).round(3).tolist()
        ([1], [[0.376, 0.624]])
    """

    takes_views = True
    _kind = "vote"

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        return self._count(stack, most_probable)


class BordaCount(_Vote):
    """Let members rank the classes: K - 1 points for the first, 0 for the last; tied classes share their points.

    Points become probabilities as votes do: ``p(c) = (points_c + ½·q(c)) / (Σ points + ½)``, q the normalised
    mean-log pool.

    Args:
        weights: "uniform", "accuracy", "log-odds", "inverse-nll", numbers in the order in which the fit's stack
            lists its members, or {member: number}.
        power: the exponent of "accuracy".
        floor: the uniform distribution's share in every member; "auto": 1e-4 for members given as probabilities.
        missing: "renormalise" lets those members rank that a video has; "error" refuses.

    Attributes:
        weights_: (M,), on the simplex, in the order of `members_`.
        floor_: each member's floor (M,).
        n_missing_: for how many videos of the fit each member was missing (M,).

    Source:
        Ho, Hull and Srihari 1994, Decision combination in multiple classifier systems, section IV.

    Example:
        >>> X = np.log([[[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.45, 0.35, 0.2]]])
        >>> BordaCount().fit(X).predict(X).tolist()  # 4, 4 and 1 points; the mean-log pool prefers class 1
        [1]
    """

    _kind = "rank"

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        return self._count(stack, ranks)


def most_probable(log_p: NDArray[Any]) -> NDArray[np.float64]:
    """Return a vote of 1 for each row's most probable class (B, K); the lowest index wins a tie.

    Example:
        >>> most_probable(np.log([[0.3, 0.5, 0.2]])).tolist()
        [[0.0, 1.0, 0.0]]
    """
    votes = np.zeros(log_p.shape)
    votes[np.arange(len(log_p)), log_p.argmax(axis=1)] = 1.0
    return votes


def ranks(log_p: NDArray[Any]) -> NDArray[np.float64]:
    """Return how many classes each class of a row beats (B, K), those that tie by half.

    Example:
        >>> ranks(np.log([[0.3, 0.5, 0.2]])).tolist()
        [[1.0, 2.0, 0.0]]
    """
    return np.asarray(rankdata(log_p, axis=1) - 1.0)


def _count_members(
    block: NDArray[Any], weights: NDArray[np.float64], ids: Any, ballots: Ballots
) -> NDArray[np.float64]:
    votes = np.zeros((len(block), block.shape[2]))
    for member in range(block.shape[1]):
        votes += weights[:, member, None] * ballots(block[:, member])
    return votes_to_log_proba(votes, _mean_log(block, weights > 0, ids))


def _mean_log(block: NDArray[Any], used: NDArray[np.bool_], ids: Any) -> NDArray[np.float64]:
    """Return the mean-log pool of the members in use."""
    return log_linear_pool(block, used / used.sum(axis=1, keepdims=True), ids=ids)


def vote_of_views(total: NDArray[np.float64], share: NDArray[np.float64], ids: Any = None) -> NDArray[np.float64]:
    """Return the vote of the views (B, K), as log-likelihoods; their mean breaks ties.

    Args:
        total: weighted sums of the members' log-likelihoods in each view (B, V, K).
        share: the sums of these weights (B,).
        ids: names of the rows for error messages.

    Example:
        >>> total = np.log([[[0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]])
        >>> np.exp(vote_of_views(total, np.ones(1))).round(3).tolist()
        [[0.373, 0.627]]
    """
    chosen, votes = best_classes(total, ids), np.zeros((len(total), total.shape[2]))
    for view in range(total.shape[1]):
        votes[np.arange(len(total)), chosen[:, view]] += 1.0
    mean = log_linear_pool(total.mean(axis=1, keepdims=True), 1.0 / share[:, None], ids=ids)
    return votes_to_log_proba(votes, mean)
