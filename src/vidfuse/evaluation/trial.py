"""A trial: which videos rules are fitted on, which they are scored on, and what that makes of the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidfuse.evaluation.scores import require_labels
from vidfuse.fusion._solver.shared import Scales, sharing
from vidfuse.fusion.crossfit import Splits, fit_copies, predict_by_copies, split_folds
from vidfuse.fusion.views import reduce_views
from vidfuse.stack.checkpoints import refuse_others
from vidfuse.stack.clips import warn_if_clips
from vidfuse.stack.stack import LogitStack

__all__ = ["Protocol", "Trial", "open_trial", "shared_videos"]


@dataclass(frozen=True)
class Protocol:
    """How scores were taken, in numbers and in words.

    Attributes:
        n_fit: The number of videos of the fit.
        n_scored: The number of videos that are scored.
        n_shared: How many of the scored videos are videos of the fit; None where that cannot be told.
        folds: The number of folds where rules were cross-fitted, 0 otherwise.
        n_groups: The number of groups that no fold splits; None without groups.
        n_scored_groups: The number of groups of the scored videos; None without groups.
        n_related: How many scored videos, not of the fit themselves, share a group with videos of the fit; 0 where
            groups are not known on both sides.
        order_checked: Whether the members were aligned by id.
    """

    n_fit: int
    n_scored: int
    n_shared: int | None
    folds: int = 0
    n_groups: int | None = None
    n_scored_groups: int | None = None
    n_related: int = 0
    order_checked: bool = True

    @property
    def name(self) -> Literal["cross-fitted", "held-out", "in-sample", "partly in-sample"]:
        """What the scores are: see the cases of `how`."""
        if self.folds:
            return "cross-fitted"
        if not self.n_shared:
            return "held-out"
        return "in-sample" if self.n_shared == self.n_scored else "partly in-sample"

    @property
    def flatters(self) -> bool:
        """Whether a rule is scored on videos that it was fitted on."""
        return self.name.endswith("in-sample")

    def how(self) -> str:
        """Return in a sentence or two on which videos the scores were taken."""
        fit, n = f"{self.n_fit:,}", f"{self.n_scored:,}"
        grouped = "" if self.n_scored_groups is None else f" (in {self.n_scored_groups:,} groups)"
        if self.name == "cross-fitted":
            groups = "" if self.n_groups is None else f", none of {self.n_groups:,} groups split"
            text = f"{n} videos; each was predicted by rules that were fitted without it ({self.folds} folds{groups})."
        elif self.name == "in-sample":
            text = (
                f"IN-SAMPLE: the {n} videos{grouped} that are scored are videos of the fit, so the scores are too good."
            )
        elif self.name == "partly in-sample":
            text = (
                f"PARTLY IN-SAMPLE: rules were fitted on {fit} videos and scored on {n}{grouped}: {self.n_shared:,} of "
                f"{self.n_scored:,} were in the fit, so the scores are too good."
            )
        elif self.n_shared is None:
            text = (
                f"Rules were fitted on {fit} videos and scored on {n}{grouped}; whether some are in both is not known."
            )
        else:
            text = f"Rules were fitted on {fit} videos and scored on {n} others{grouped}."
        if self.n_related:
            text += f" {self.n_related:,} of the others share a group with the fit, which flatters: split by group."
        return text if self.order_checked else f"{text} Order unchecked: there are no ids."

    def remark(self) -> str:
        """Return what a headline says behind its number: nothing, unless the number is flattering."""
        if not self.flatters:
            return ""
        shared = f"{self.n_shared:,} of {self.n_scored:,} videos "
        return f" ({'' if self.name == 'in-sample' else shared}in-sample)"

    def to_dict(self) -> dict[str, Any]:
        """Return the protocol in plain types, for JSON."""
        return {"protocol": self.name, **asdict(self)}


@dataclass(frozen=True)
class Trial:
    """The videos of the fit and those that are scored, the same for every rule.

    Attributes:
        fit_stack: Labelled stack, (N, M, K) or (N, M, V, K), that rules are fitted on.
        scored: Labelled stack of the same members that they are scored on; cross-fitted, the same stack.
        labels: True classes of the scored videos.
        splits: (rows of `fit_stack`, rows of `scored`) of each fold; one pair of whole stacks without folds.
        protocol: What that makes of the scores.
    """

    fit_stack: LogitStack
    scored: LogitStack
    labels: NDArray[np.int64] = field(repr=False)
    splits: Splits = field(repr=False)
    protocol: Protocol
    _scales: Scales = field(default_factory=dict, repr=False, compare=False)
    _copies: dict[Any, list[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _derived: dict[Any, Trial] = field(default_factory=dict, init=False, repr=False, compare=False)

    def fit(self, rule: Any) -> list[Any]:
        """Return fitted copies of a rule, one for each fold; those of an equal rule that was fitted before."""
        labels = require_labels(self.fit_stack, "a fit")
        key = _key(rule)
        if key not in self._copies:
            with sharing(self._scales):
                self._copies[key] = fit_copies(rule, self.fit_stack, labels, self.splits)
        return self._copies[key]

    def predict(self, copies: Sequence[Any]) -> NDArray[np.float64]:
        """Return the log-likelihoods (N, K) of the scored videos by such copies."""
        return predict_by_copies(copies, self.scored, self.splits)

    def reduced(self, views: str | Mapping[str, str]) -> Trial:
        """Return the trial with its views reduced, where it has views: the same trial for the same reduction."""
        if self.fit_stack.n_views is None and self.scored.n_views is None:
            return self
        key = ("views", views if isinstance(views, str) else tuple(sorted(views.items())))
        if key not in self._derived:
            fit_stack = _reduced(self.fit_stack, views)
            scored = fit_stack if self.scored is self.fit_stack else _reduced(self.scored, views)
            self._derived[key] = replace(self, fit_stack=fit_stack, scored=scored)
        return self._derived[key]

    def select(self, members: Sequence[str]) -> Trial:
        """Return the trial with these members on the scored side only, and the videos that at least one of them has."""
        scored, row_of = _with_any(self.scored, members)
        splits = [(fit_rows, _moved(rows, row_of)) for fit_rows, rows in self.splits]
        return replace(self, scored=scored, labels=_chosen(self.labels, row_of), splits=splits)

    def of(self, members: Sequence[str]) -> Trial:
        """Return the trial with these members on both sides, and the videos that at least one of them has.

        The same members, in whatever order, give the same trial: what was fitted on them is not fitted again.
        """
        names = tuple(name for name in self.fit_stack.members if name in set(members))
        if names == self.fit_stack.members:
            return self
        if names not in self._derived:
            fit_stack, fit_row_of = _with_any(self.fit_stack, names)
            scored, row_of = (fit_stack, fit_row_of) if self.scored is self.fit_stack else _with_any(self.scored, names)
            splits = [(_moved(fit_rows, fit_row_of), _moved(rows, row_of)) for fit_rows, rows in self.splits]
            self._derived[names] = replace(
                self, fit_stack=fit_stack, scored=scored, labels=_chosen(self.labels, row_of), splits=splits
            )
        return self._derived[names]

    def covered(self, members: Sequence[str]) -> NDArray[np.bool_]:
        """Return which scored videos (N,) at least one of these members has: the videos of `of`."""
        chosen = self.scored.select(members)
        return np.ones(len(chosen), np.bool_) if chosen.present is None else np.asarray(chosen.present.any(axis=1))


def _with_any(stack: LogitStack, members: Sequence[str]) -> tuple[LogitStack, NDArray[np.int64] | None]:
    """Return a stack of some members, with the videos that at least one of them has, and where each row went.

    A row that is gone went to -1; None stands for rows that all stayed.
    """
    chosen = stack.select(members)
    if chosen.present is None or chosen.present.any(axis=1).all():
        return chosen, None
    known = np.asarray(chosen.present.any(axis=1))
    return chosen[known], np.where(known, np.cumsum(known) - 1, -1)


def _moved(rows: Any, row_of: NDArray[np.int64] | None) -> Any:
    """Return where these rows went, without those that are gone."""
    if row_of is None:
        return rows
    found = row_of[rows]
    return found[found >= 0]


def _chosen(labels: NDArray[np.int64], row_of: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return labels if row_of is None else labels[row_of >= 0]


def _key(rule: Any) -> Any:
    """Return what equal rules have in common: class and parameters, where these are plain; else the rule itself."""
    parameters = rule.get_params(deep=False).items()
    plain = all(value is None or isinstance(value, (bool, int, float, str)) for _, value in parameters)
    return (type(rule), *((name, type(value), value) for name, value in parameters)) if plain else rule


def open_trial(
    stack: LogitStack,
    test: LogitStack | None = None,
    *,
    folds: int = 5,
    groups: Any = None,
    random_state: int | None = 0,
    what: str = "a trial",
) -> Trial:
    """Decide what rules are fitted and scored on.

        test given           fit on `stack`, score `test`            held-out, unless videos are in both
        no test, folds ≥ 2   fit on the other folds of `stack`       cross-fitted
        no test, folds = 0   fit on `stack`, score `stack`           in-sample

    Args:
        stack: Labelled stack that rules are fitted on.
        test: Labelled stack, with the members of `stack`, that they are scored on.
        folds: The number of folds without `test`; 0 for in-sample scores.
        groups: What each video comes from, as in `LogitStack.with_groups`; by default the stacks' own. No fold splits a
            group. A function of the id, or a mapping, is for both stacks; one name for each video is for those of
            `stack`, and `test` brings its own.
        random_state: Seed of the folds.
        what: What needs the labels, for the error.

    Warns:
        VidfuseWarning: Ids look like clips of one source, and there are no groups.

    Raises:
        InputError: labels are missing, or folds or groups are out of range.
        CacheConflictError: a member's scores in `test` come from another checkpoint than those in `stack`.

    Example:
        >>> stack = LogitStack.from_arrays(np.zeros((6, 2, 3)), labels=[0, 1, 2, 0, 1, 2])
        >>> open_trial(stack, folds=3).protocol.name
        'cross-fitted'
        >>> open_trial(stack[:4], stack[2:]).protocol.name
        'partly in-sample'
    """
    if groups is not None:
        by_id = callable(groups) or isinstance(groups, Mapping)
        stack, test = stack.with_groups(groups), test.with_groups(groups) if test is not None and by_id else test
    warn_if_clips(stack if test is None else test)
    fit_labels = require_labels(stack, what, "the stack" if test is None else "the stack of the fit")
    splits: Splits = [(slice(None), slice(None))]
    n_groups = None
    if test is None and folds:
        splits = split_folds(fit_labels, folds, stack.groups, random_state, stack.ids)
        n_groups = None if stack.groups is None else len(np.unique(stack.groups))
    scored = stack if test is None else test.select(stack.members)
    refuse_others(stack.fingerprints, scored.fingerprints, "the test stack", " while loading")
    labels = fit_labels if test is None else require_labels(scored, what, "the test stack")
    cross_fitted = test is None and bool(folds)
    protocol = Protocol(
        n_fit=len(stack),
        n_scored=len(scored),
        n_shared=0 if cross_fitted else shared_videos(stack, scored),
        folds=folds if cross_fitted else 0,
        n_groups=n_groups,
        n_scored_groups=None if scored.groups is None else len(np.unique(scored.groups)),
        n_related=0 if cross_fitted else _related(stack, scored),
        order_checked=stack.ids is not None and scored.ids is not None,
    )
    return Trial(stack, scored, labels, splits, protocol)


def _related(fit: LogitStack, scored: LogitStack) -> int:
    """Return how many scored videos are not of the fit, but of a group that is."""
    if fit.groups is None or scored.groups is None or fit.ids is None or scored.ids is None:
        return 0
    return int((np.isin(scored.groups, fit.groups) & ~np.isin(scored.ids, fit.ids)).sum())


def _reduced(stack: LogitStack, views: str | Mapping[str, str]) -> LogitStack:
    return stack if stack.n_views is None else reduce_views(stack, views)


def shared_videos(first: LogitStack, second: LogitStack) -> int | None:
    """Return how many videos of the second stack are in the first; None where that cannot be told.

    Ids tell. Without them, rows of one and the same source tell (`stack` and `stack[:100]`), and so do two stacks
    whose numbers are all equal.

    Example:
        >>> stack = LogitStack.from_arrays(np.zeros((6, 2, 3)))
        >>> shared_videos(stack[:4], stack[3:]), shared_videos(stack, LogitStack.from_arrays(np.ones((6, 2, 3))))
        (1, None)
    """
    if first.ids is not None and second.ids is not None:
        return int(np.isin(second.ids, first.ids).sum())
    ours, theirs = first.select(second.members[:1]).sources()[0], second.sources()[0]
    if ours.source is theirs.source:
        all_rows = np.arange(ours.source.shape[0])
        return int(np.isin(all_rows[theirs.rows], all_rows[ours.rows]).sum())
    same = len(first) == len(second) and all(
        np.array_equal(first.scores(name), second.scores(name)) for name in second.members
    )
    return len(second) if same else None
