"""How a rule did on labelled videos that it had not seen, kept to abstain, to give sets of classes, and to watch.

What is watched of a stream without labels are numbers that no fit had a hand in (`watched`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from vidfuse._checks import check_choice
from vidfuse.errors import InputError
from vidfuse.fusion.crossfit import folds_of, out_of_fold
from vidfuse.fusion.views import reduce_views
from vidfuse.likelihood import log_softmax
from vidfuse.metrics.conformal import Conformity, PredictionSets, conformity_scores, prediction_sets
from vidfuse.metrics.objectives import labels_of
from vidfuse.metrics.selective import Abstention, abstention
from vidfuse.stack.stack import LogitStack

__all__ = ["TrackRecord", "Watched", "one_of_each", "track_record", "watched"]

_LEAST = -100.0  # a log-likelihood below which nothing is told: a probability of 0 has one


class Watched(NamedTuple):
    """Statistics of videos.

    Attributes:
        names: The statistics' names, (S,): two of all members together, up to three of each.
        values: One number for each video and statistic, (N, S); the last statistic is the predicted class.
    """

    names: tuple[str, ...]
    values: NDArray[np.float32]


def watched(stack: LogitStack) -> Watched:
    """Return what is watched of each video: from the members' scores alone, by no label and no learned weight.

        confidence           log-probability of the class that the members' average predicts
        MEMBER: confidence   log-probability of the class that the member predicts
        MEMBER: spread       standard deviation of its log-likelihoods over the classes: its scale
        MEMBER: agreement    log-probability that it gives to the class that the others' average predicts
        class                the class that the members' average predicts

    What depends on no fit is as exchangeable between the videos of a fit and new ones as the videos themselves are.

    Args:
        stack: Members without views, all of which have all videos, (N, M, K).

    Example:
        >>> found = watched(LogitStack.from_arrays({"a": 3 * np.eye(2), "b": 2 * np.eye(2)}))
        >>> found.names[:4], found.values.shape
        (('confidence', 'a: confidence', 'a: spread', 'a: agreement'), (2, 8))
    """
    m = len(stack.members)
    of_each = ("confidence", "spread", "agreement") if m > 1 else ("confidence", "spread")
    names = ("confidence", *(f"{name}: {what}" for name in stack.members for what in of_each), "class")
    values = np.empty((len(stack), len(names)), np.float32)
    for rows, block in stack.iter_blocks():
        own = np.maximum(block, _LEAST)  # (n, M, K)
        total = own.sum(axis=1, dtype=np.float64)
        columns = [log_softmax(total / m).max(axis=1)]
        for place in range(m):
            columns += [own[:, place].max(axis=1), own[:, place].std(axis=1)]
            if m > 1:
                theirs = (total - own[:, place]).argmax(axis=1)
                columns.append(np.take_along_axis(own[:, place], theirs[:, None], axis=1)[:, 0])
        columns.append(total.argmax(axis=1))
        values[rows] = np.stack(columns, axis=1)
    return Watched(names, values)


def one_of_each(groups: NDArray[np.str_] | None, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the row of one video of each group, drawn at random, in the order in which groups first come.

    Args:
        groups: What each video comes from, (N,); None where videos are independent: all of them.
        n: N.
        rng: What is drawn from.

    Example:
        >>> one_of_each(np.array(["b", "a", "b"]), 3, np.random.default_rng(0)).tolist()
        [2, 1]
    """
    if groups is None:
        return np.arange(n)
    shuffled = rng.permutation(n)
    _, first = np.unique(groups[shuffled], return_index=True)
    _, comes = np.unique(groups, return_index=True)
    return np.asarray(shuffled[first][np.argsort(comes)])


_REFERENCE = 2000  # units that a stream is compared with: more tell no more, and weigh down the recipe


@dataclass(frozen=True)
class TrackRecord:
    """One entry for each video that a rule was tried on, and what the members' scores of these videos look like.

    Attributes:
        how: "held-out": by the fitted rule, on videos that it was not fitted on; "cross-fitted": by copies of it, each
            fitted on the other folds of its videos.
        labels: True classes, shape (N,).
        confidence: Probability of the predicted class, shape (N,).
        right: Whether it was right, shape (N,).
        scores: `vidfuse.metrics.conformity_scores` of the true class, shape (N,).
        conformity: Which score that is.
        groups: The number of the group of each video, shape (N,); None where each stands for itself.
        n_classes: K.
        members: The members that are watched: those that the rule needs.
        reference: `watched` statistics of one video of each group, shape (U, S).
    """

    how: Literal["held-out", "cross-fitted"]
    labels: NDArray[np.int64]
    confidence: NDArray[np.float64]
    right: NDArray[np.bool_]
    scores: NDArray[np.float64]
    conformity: Conformity
    groups: NDArray[np.int64] | None
    n_classes: int
    members: tuple[str, ...]
    reference: NDArray[np.float32]

    def __post_init__(self) -> None:
        n = len(self.labels)
        for name in ("labels", "confidence", "right", "scores"):
            if getattr(self, name).shape != (n,):
                raise InputError(f"{name}: expected shape ({n},), got {getattr(self, name).shape}")
        if self.groups is not None and self.groups.shape != (n,):
            raise InputError(f"groups: expected shape ({n},), got {self.groups.shape}")
        check_choice("how", self.how, ("held-out", "cross-fitted"))
        check_choice("conformity", self.conformity, get_args(Conformity))
        if self.reference.ndim != 2:
            raise InputError(f"reference: expected shape (U, S), got {self.reference.shape}")
        for name, found, fine in (
            ("labels", self.labels, (self.labels >= 0) & (self.labels < self.n_classes)),
            ("confidence", self.confidence, (self.confidence >= 0) & (self.confidence <= 1 + 1e-9)),
            ("scores", self.scores, ~np.isnan(self.scores)),
            ("reference", self.reference, np.isfinite(self.reference)),
        ):
            if not fine.all():
                raise InputError(
                    f"{name}: expected numbers of a record of {self.n_classes} classes, got {found[~fine][0]}"
                )

    def abstention(self, error: float, level: float = 0.95) -> Abstention:
        """Return from which confidence on to answer, so that at most a share `error` of the answered is wrong.

        Args:
            error: The share of wrong ones that is allowed among the answered.
            level: The probability with which it holds.

        Raises:
            InputError: No threshold is sure to; see `vidfuse.metrics.abstention`.
        """
        return abstention(self.confidence, self.right, error, groups=self.groups, level=level)

    def prediction_sets(self, coverage: float, by_class: bool = False) -> PredictionSets:
        """Return how to make sets of classes that hold the true one in a share `coverage` of the videos.

        Args:
            coverage: The stated share.
            by_class: Whether it shall hold within each class; needs more videos, and larger sets.

        Raises:
            InputError: Too few videos; see `vidfuse.metrics.prediction_sets`.
        """
        return prediction_sets(
            self.labels,
            self.scores,
            coverage,
            conformity=self.conformity,
            groups=self.groups,
            n_classes=self.n_classes if by_class else None,
        )

    def __repr__(self) -> str:
        groups = "" if self.groups is None else f" of {len(np.unique(self.groups)):,} groups"
        return f"TrackRecord({self.how}, {len(self.labels):,} videos{groups}, accuracy {self.right.mean():.4f})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, as a recipe stores them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Return what `to_dict` gave; fields that this release does not know are left."""
        return cls(**{field.name: stored[field.name] for field in fields(cls)})


def track_record(
    rule: Any,
    stack: LogitStack,
    *,
    held_out: bool,
    folds: int = 5,
    seed: int | None = 0,
    conformity: Conformity = "least-ambiguous",
) -> TrackRecord:
    """Return how a fitted rule does on labelled videos.

    Args:
        rule: The fitted rule.
        stack: The videos, (N, M, [V,] K): those of its fit, or others.
        held_out: Whether they are others. Those of the fit are predicted by copies that are fitted on the other folds.
        folds: The number of folds, or of groups where these are fewer; no fold splits a group.
        seed: Seed of the folds, and of what is drawn for the reference.
        conformity: How sets of classes are made; see `vidfuse.metrics.conformity_scores`.

    Raises:
        InputError: Labels are missing, or there is one video or group only.

    Example:
        >>> from vidfuse.fusion.log_linear import LogLinearPool
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=90)
        >>> z = {name: rng.normal(size=(90, 3)) + 2 * np.eye(3)[y] for name in "ab"}
        >>> stack = LogitStack.from_arrays(z, labels=y)
        >>> track_record(LogLinearPool().fit(stack), stack, held_out=False)
        TrackRecord(cross-fitted, 90 videos, accuracy 0.9222)
    """
    y = labels_of(stack, where="the stack of a track record")
    if held_out:
        log_p = rule.predict_log_proba(stack)
    else:
        splits = folds_of(stack, y, folds, seed)
        log_p = out_of_fold(clone(rule), stack, y, splits)
    predicted, rows = log_p.argmax(axis=1), np.arange(len(y))
    rng = np.random.default_rng(seed)
    members = tuple(sorted(rule.needed_members()))
    present = stack.select(members).present
    whole = np.arange(len(stack)) if present is None else np.flatnonzero(present.all(axis=1))
    some = whole[one_of_each(None if stack.groups is None else stack.groups[whole], len(whole), rng)]
    some = some if len(some) <= _REFERENCE else np.sort(rng.choice(some, _REFERENCE, replace=False))
    kept = stack.select(members)[some]
    return TrackRecord(
        how="held-out" if held_out else "cross-fitted",
        labels=y,
        confidence=np.exp(log_p[rows, predicted]),
        right=predicted == y,
        scores=conformity_scores(log_p, conformity)[rows, y],
        conformity=conformity,
        groups=None if stack.groups is None else np.unique(stack.groups, return_inverse=True)[1],
        n_classes=stack.n_classes,
        members=members,
        reference=watched(kept if kept.n_views is None else reduce_views(kept, "mean-log")).values,
    )
