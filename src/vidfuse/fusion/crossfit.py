"""Cross-fitting: the one place that deals videos to folds, and lets copies of a rule predict what they did not see.

videos      0  1  2  3  4  5  6  7  8
fold        0  1  2  0  1  2  0  1  2      split_folds
predicted   A  B  C  A  B  C  A  B  C      out_of_fold: A was fitted on folds 1 and 2, B on 0 and 2, C on 0 and 1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils import get_tags

from vidfuse._checks import check_names
from vidfuse.errors import InputError
from vidfuse.stack.clips import without_clips_warnings
from vidfuse.stack.stack import LogitStack

__all__ = [
    "Splits",
    "content_keys",
    "even_folds",
    "fit_copies",
    "folds_of",
    "out_of_fold",
    "predict_by_copies",
    "split_folds",
    "split_halves",
]

Splits = Sequence[tuple[Any, Any]]
"""(fit rows, score rows) of each fold; together the score rows cover every scored video once."""


def split_folds(
    labels: NDArray[np.int64],
    folds: int,
    groups: ArrayLike | None = None,
    seed: int | None = 0,
    keys: ArrayLike | None = None,
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return each fold's (fit rows, score rows), both ascending: stratified by class, no group split.

    Without groups, the numbers of a class in two folds differ by at most one, and so do the sizes of the folds. Groups
    are placed one by one, from the largest to the smallest, where the fewest videos of their classes are.

    Args:
        labels: True classes, shape (N,).
        folds: How many, at least 2.
        groups: One name for each video, shape (N,): videos of one name stay together (clips of one source, …).
        seed: Seed of the draw; None draws anew.
        keys: What tells videos apart whatever their order, shape (N,): ids, or numbers that follow from their content.
            With keys, or with groups, a video's fold does not depend on the order of the rows.

    Raises:
        InputError: fewer than 2 folds, or fewer videos or groups than folds.

    Example:
        >>> fit_rows, score_rows = split_folds(np.array([0, 0, 0, 1, 1, 1]), folds=3)[0]
        >>> len(fit_rows), len(score_rows)
        (4, 2)
    """
    n = len(labels)
    if n < 2:
        raise InputError(f"expected at least two videos to make folds of, got {n}")
    if not isinstance(folds, (int, np.integer)) or not 2 <= folds <= n:
        raise InputError(f"folds: expected 2 … {n} (the number of videos), got {folds}")
    rng = np.random.default_rng(seed)
    if groups is None:
        fold = _dealt(labels, folds, rng, None if keys is None else check_names(keys, n, "keys"))
    else:
        fold = _placed(labels, folds, rng, check_names(groups, n, "groups"))
    return [(np.flatnonzero(fold != index), np.flatnonzero(fold == index)) for index in range(folds)]


def folds_of(stack: LogitStack, labels: NDArray[np.int64], folds: int, seed: int | None = 0) -> Splits:
    """Return the folds of a stack's videos: as many as asked for, or as it has videos, or groups.

    Args:
        stack: The videos; whole groups stay together.
        labels: True classes, shape (N,).
        folds: How many at most.
        seed: Seed of the draw.

    Raises:
        InputError: There is one video or one group only.

    Example:
        >>> len(folds_of(LogitStack.from_arrays(np.zeros((3, 1, 2))), np.array([0, 1, 0]), folds=5))
        3
    """
    units, what = len(labels), "videos"
    if stack.groups is not None:
        units, what = len(np.unique(stack.groups)), "groups of videos"
    if units < 2:
        raise InputError(
            f"expected at least two {what}, each to be predicted by a rule that was fitted on others; got one"
        )
    return split_folds(labels, min(folds, units), stack.groups, seed, stack.ids)


def split_halves(
    n: int, groups: ArrayLike | None = None, keys: ArrayLike | None = None, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of two halves, ascending, dealt by chance alone: what is drawn alike stays alike in both.

    Folds that are even in every class would tell one half something of the other. Whole groups stay together.

    Args:
        n: The number of videos.
        groups: One name for each video (N,): half of the groups make a half.
        keys: As in `split_folds`.
        seed: Seed of the draw.

    Returns:
        The larger half first; the second is empty where there are fewer than two videos or groups.

    Example:
        >>> [rows.tolist() for rows in split_halves(5, groups=["a", "a", "b", "b", "b"])]
        [[0, 1], [2, 3, 4]]
    """
    named = keys if groups is None else groups
    units = np.arange(n) if named is None else check_names(named, n, "groups")
    unit = np.unique(units, return_inverse=True)[1]
    size = int(unit.max()) + 1
    drawn = np.random.default_rng(seed).permutation(size)
    first = np.isin(unit, drawn[: (size + 1) // 2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def content_keys(stack: LogitStack, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what tells videos without ids apart (N,): a number that follows from their scores and labels alone.

    It is a video's rank by what its members say of its class together, then by what they say of all classes. So neither
    the order of the rows counts, nor that of the classes, nor a constant in a member's logits. Videos that are equal in
    both are ranked as they stand.

    Example:
        >>> scores = np.array([[[0.0, 2.0]], [[1.0, 0.0]], [[0.0, 3.0]]])
        >>> content_keys(LogitStack.from_arrays(scores), np.array([1, 0, 1])).tolist()
        [1, 0, 2]
    """
    said = np.empty((2, len(stack)))
    for rows, block in stack.iter_blocks():
        flat = block.reshape(len(block), -1, stack.n_classes)  # members, and views
        said[1, rows] = flat[np.arange(len(flat)), :, labels[rows]].sum(axis=1, dtype=np.float64)
        said[0, rows] = flat.sum(axis=(1, 2), dtype=np.float64)
    keys = np.empty(len(stack), dtype=np.int64)
    keys[np.lexsort(said)] = np.arange(len(stack))
    return keys


def _dealt(
    labels: NDArray[np.int64], folds: int, rng: np.random.Generator, keys: NDArray[Any] | None
) -> NDArray[np.int64]:
    """Shuffle the videos, sort them by class, and deal them to the folds in turn."""
    rows = np.arange(len(labels)) if keys is None else np.lexsort((labels, keys))
    rows = rows[rng.permutation(len(rows))]
    rows = rows[np.argsort(labels[rows], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[rows] = np.arange(len(labels)) % folds
    return fold


def _placed(labels: NDArray[np.int64], folds: int, rng: np.random.Generator, groups: NDArray[Any]) -> NDArray[np.int64]:
    """Place one group after the other, the largest first, in the fold that has the least of what the group brings.

    A fold's load is Σ over the group's videos of (the fold's videos of that class) / (all videos of that class): the
    growth of the sum of squared class shares, but for a constant. Among equal loads the smallest fold is taken, so that
    none stays empty.
    """
    names, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < folds:
        raise InputError(f"groups: expected at least {folds} (one for each fold), got {len(names)}")
    classes = np.split(labels[np.lexsort((labels, group))], np.cumsum(sizes)[:-1])  # of each group's videos
    total = np.bincount(labels)
    held = np.zeros((folds, len(total)), dtype=np.int64)
    fold_of = np.empty(len(names), dtype=np.int64)
    shuffled = rng.permutation(len(names))
    for index in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        load = (held[:, classes[index]] / total[classes[index]]).sum(axis=1)
        fold_of[index] = np.lexsort((held.sum(axis=1), load))[0]
        np.add.at(held[fold_of[index]], classes[index], 1)
    return fold_of[group]


def even_folds(loss: NDArray[np.float64], folds: int, groups: NDArray[Any] | None = None) -> NDArray[np.int64]:
    """Return each video's fold (N,): videos, or groups by their mean loss, are dealt in turn from easy to hard.

        video   0  1  2  3  4  5  6  7 …     in rising order of loss
        fold    0  1  2  3  4  0  1  2 …

    The folds have equally many hard videos, and follow from the losses alone: not from ids, the order of the rows or
    the numbers of the classes. They serve a rule that folds within its own fit.

    Example:
        >>> even_folds(np.array([0.3, 0.1, 0.2, 0.4]), 2).tolist()
        [0, 0, 1, 1]
    """
    if groups is None:
        group = np.arange(len(loss))
    else:
        group = np.unique(groups, return_inverse=True)[1]
    mean = np.bincount(group, weights=loss) / np.bincount(group)
    fold = np.empty(len(mean), dtype=np.int64)
    fold[np.argsort(mean, kind="stable")] = np.arange(len(mean)) % folds
    return fold[group]


def out_of_fold(
    rule: Any,
    stack: LogitStack,
    labels: NDArray[np.int64],
    splits: Splits,
    sample_weight: NDArray[np.float64] | None = None,
    whole: Any = None,
) -> NDArray[np.float64]:
    """Return log-likelihoods (N, K) of every video by a copy of the rule that was fitted on the other folds.

    Args:
        rule: Any rule; it is cloned, so that a search or a learned weight is part of each fold's own fit.
        stack: The videos.
        labels: True classes, shape (N,).
        splits: The folds; see `split_folds`.
        sample_weight: One weight of at least 0 for each video of the fit.
        whole: The rule fitted on all of these videos, if there is one already.

    Example:
        >>> from vidfuse.fusion.log_linear import LogLinearPool
        >>> stack, labels = LogitStack.from_arrays(np.zeros((4, 2, 3))), np.array([0, 1, 2, 0])
        >>> out_of_fold(LogLinearPool(weights="uniform"), stack, labels, split_folds(labels, 2)).shape
        (4, 3)
    """
    return predict_by_copies(fit_copies(rule, stack, labels, splits, sample_weight, whole), stack, splits)


def fit_copies(
    rule: Any,
    stack: LogitStack,
    labels: NDArray[np.int64],
    splits: Splits,
    sample_weight: NDArray[np.float64] | None = None,
    whole: Any = None,
) -> list[Any]:
    """Return one fitted copy of the rule for each fold.

    A rule that needs no labels (equal or given weights, plain votes) is fitted once, on all videos, and sees no labels.
    One that refits (weights by score) reads the videos once, and each fold's copy follows from the fold's own.
    """
    if not get_tags(rule).target_tags.required:
        return [clone(rule).fit(stack.changed(labels=None), None, sample_weight)] * len(splits)
    share = np.ones(len(labels)) if sample_weight is None else sample_weight
    if getattr(rule, "refits", False) and len(splits) > 1 and stack.present is None and share.all():
        whole = clone(rule).fit(stack, labels, sample_weight) if whole is None else whole
        return [whole.refitted(np.where(_held(fit_rows, len(labels)), share, 0.0)) for fit_rows, _ in splits]
    weights = [None if sample_weight is None else sample_weight[fit_rows] for fit_rows, _ in splits]
    with without_clips_warnings():  # who made the folds has asked, of all videos
        return [
            clone(rule).fit(stack[fit_rows], labels[fit_rows], weight)
            for (fit_rows, _), weight in zip(splits, weights, strict=True)
        ]


def _held(rows: Any, n: int) -> NDArray[np.bool_]:
    held = np.zeros(n, dtype=bool)
    held[rows] = True
    return held


def predict_by_copies(copies: Sequence[Any], stack: LogitStack, splits: Splits) -> NDArray[np.float64]:
    """Return log-likelihoods (N, K) of a stack, each fold's score rows by that fold's copy."""
    result = np.empty((len(stack), stack.n_classes))
    for copy, (_, score_rows) in zip(copies, splits, strict=True):
        result[score_rows] = copy.predict_log_proba(stack[score_rows])
    return result
