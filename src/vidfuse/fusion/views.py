"""Test-time augmentation: reduce views to one prediction a member, or fuse members in every view and reduce later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import check_choice, per_member
from vidfuse.errors import InputError
from vidfuse.fusion.agreement import without_agreement_warnings
from vidfuse.fusion.floors import Floor, member_floors
from vidfuse.fusion.rule import Rule, as_stack
from vidfuse.likelihood import VIEW_RULES, block_rows, reduce_views_array
from vidfuse.stack.source import ArraySource, IndexedSource, ReducedSource
from vidfuse.stack.stack import LogitStack

__all__ = ["first_views", "members_first", "one_view", "reduce_views", "reduced_as_read"]


def reduce_views(
    stack: Any,
    how: str | Mapping[str, str] = "mean-log",
    *,
    floor: Floor = "auto",
    present: NDArray[np.bool_] | Mapping[str, NDArray[np.bool_]] | None = None,
) -> LogitStack:
    """Return a stack (N, M, K) in which each member's views are fused: views first, members later.

    "mean-log" averages log-likelihoods, "mean-probability" averages probabilities, "max" takes each class's highest
    probability, "vote" counts each view's most probable class (ties by "mean-log"); all are normalised
    (`vidfuse.likelihood.reduce_views_array` has the formulas and sources).

    Args:
        stack: a stack or an array (N, M, V, K).
        how: one rule for all, or {member: rule}.
        floor: the uniform distribution's share that is mixed into every view first; "auto": 1e-4 for members given
            as probabilities, so that one view's 0 is no veto, and 0 for logits.
        present: which views exist, (N, V) or {member: (N, V)}, where videos have different numbers of them and the
            rest is padding.

    Returns:
        The reduced stack, in memory, of log-likelihoods; ids, labels, classes and absent members are kept.

    Raises:
        InputError: no view axis, an unknown rule, a member without one, or a video without any view.

    Example:
        >>> stack = LogitStack.from_arrays({"swin": np.log([[[0.8, 0.2], [0.4, 0.6]]])})
        >>> np.exp(reduce_views(stack, "mean-probability").log_likelihoods()).round(3).tolist()
        [[[0.6..., 0.4...]]]
    """
    stack = as_stack(stack)
    rules = _rules(stack, how)
    masks = per_member(present, stack.members, "present")
    floors = member_floors(stack, floor)
    reduced = {name: np.empty((len(stack), stack.n_classes), dtype=np.float32) for name in stack.members}
    step = block_rows(len(stack.members) * stack.n_views * stack.n_classes)
    for rows, block in stack.iter_blocks(step):
        for column, name in enumerate(stack.members):
            mask = masks[name]
            reduced[name][rows] = reduce_views_array(
                block[:, column],
                rules[name],
                floor=float(floors[column]),
                present=None if mask is None else np.asarray(mask)[rows],
            )
    everything = slice(0, len(stack), 1)
    return stack.changed(
        [
            replace(m, source=ArraySource(reduced[m.name]), rows=everything, kind="log-likelihoods")
            for m in stack.sources()
        ]
    )


def reduced_as_read(stack: LogitStack, how: str | Mapping[str, str]) -> LogitStack:
    """Return what `reduce_views` returns, bit by bit, but reduced whenever it is read, so that memory holds a block.

    Example:
        >>> stack = LogitStack.from_arrays({"swin": np.log([[[0.8, 0.2], [0.4, 0.6]]])})
        >>> np.exp(reduced_as_read(stack, "mean-probability").log_likelihoods()).round(3).tolist()
        [[[0.6..., 0.4...]]]
    """
    rules = _rules(stack, how)
    sources = [ReducedSource(member.source, member.kind, rules[member.name]) for member in stack.sources()]
    return stack.changed(
        [replace(m, source=one, kind="log-likelihoods") for m, one in zip(stack.sources(), sources, strict=True)]
    )


def members_first(
    rule: Rule, stack: Any, how: str = "vote", *, present: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return fused log-likelihoods (N, K) of a stack with views: the rule fuses each view, then views are reduced.

    Args:
        rule: a rule that was fitted on a stack without views (N, M, K), for instance one whose views were reduced.
        stack: a stack or an array (N, M, V, K); view v of all members belongs together, such as clip v of the video.
        how: how the fused views are reduced, as in `reduce_views`; by "vote" each view has one vote, which is
            what `MajorityVote` does with its weights.
        present: which views exist (N, V), where videos have different numbers of them and the rest is padding.

    Raises:
        InputError: no view axis, an unknown rule, or a video without any view.

    Example:
        >>> from vidfuse.fusion.linear import LinearPool
        >>> views = np.log([[[[0.9, 0.1], [0.4, 0.6], [0.4, 0.6]], [[0.8, 0.2], [0.3, 0.7], [0.3, 0.7]]]])
        >>> pool = LinearPool("uniform").fit(reduce_views(views))
        >>> members_first(pool, views).argmax(axis=1).tolist()  # two of three views say class 1
        [1]
    """
    stack = as_stack(stack)
    views = _check_views(stack)
    fused = np.empty((len(stack), views, stack.n_classes), dtype=np.float32)
    with without_agreement_warnings():  # members agree less on a single view than on the fit's videos
        for view in range(views):
            fused[:, view] = rule.predict_log_proba(one_view(stack, view))
    return reduce_views_array(fused, how, present=present).astype(np.float64)


def one_view(stack: LogitStack, view: int) -> LogitStack:
    """Return one view of every member as a stack (N, M, K), without labels.

    Example:
        >>> one_view(LogitStack.from_arrays(np.zeros((5, 2, 10, 3))), 9).shape
        (5, 2, 3)
    """
    return _of_views(stack, view)


def first_views(stack: LogitStack, n: int) -> LogitStack:
    """Return the first n views of every member as a stack (N, M, n, K), without labels.

    Example:
        >>> first_views(LogitStack.from_arrays(np.zeros((5, 2, 10, 3))), 4).shape
        (5, 2, 4, 3)
    """
    return _of_views(stack, slice(0, n))


def _of_views(stack: LogitStack, views: int | slice) -> LogitStack:
    sources = [IndexedSource(member.source, (slice(None), views)) for member in stack.sources()]
    members = [replace(m, source=source) for m, source in zip(stack.sources(), sources, strict=True)]
    return stack.changed(members, labels=None)


def _rules(stack: LogitStack, how: str | Mapping[str, str]) -> dict[str, Any]:
    """Return how each member's views are reduced."""
    _check_views(stack)
    rules = per_member(how, stack.members, "how")
    for name, rule in rules.items():
        check_choice(f"how, for member {name!r}", rule, VIEW_RULES)
    return rules


def _check_views(stack: LogitStack) -> int:
    if stack.n_views is None:
        raise InputError(f"expected a stack with views, (N, M, V, K), got shape {stack.shape}; it needs no reducing")
    return stack.n_views
