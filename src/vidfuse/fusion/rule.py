"""The contract of a rule: what the base class does once for all of them, and the little that each one writes."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from vidfuse._checks import as_array, check_choice, check_labels, check_same_labels, first_few
from vidfuse.errors import AlignmentError, InputError, VidfuseWarning, option
from vidfuse.fusion.agreement import agreement_beyond_chance, check_numbering, warn_if_agreement_is_lost
from vidfuse.fusion.blocks import FusedBlocks
from vidfuse.stack.stack import LogitStack

__all__ = [
    "Missing",
    "Rule",
    "WeightedSum",
    "WeightedVote",
    "Wrapper",
    "as_stack",
    "check_class_names",
    "check_layout",
    "check_presence",
    "check_rule",
    "check_sample_weight",
    "complete_videos",
]

Missing = Literal["error", "renormalise"]

# Whether a rule is being fused that has looked at all videos: a block of them tells less, and would be warned of alone.
_within: ContextVar[bool] = ContextVar("_within", default=False)


@dataclass(frozen=True)
class WeightedSum:
    """A fitted rule as one sum over its members, for whoever computes it elsewhere: with gradients, or per video.

    ``log p(c) ∝ b_c + Σ_m w_mc · log p_m(c)`` where `kind` is "log-linear", ``p(c) = Σ_m w_mc · p_m(c)`` where it is
    "linear"; p_m is the softmax of the member's log-likelihoods times its scale, with its floor mixed in.

    Attributes:
        kind: "log-linear" or "linear".
        members: the members' names.
        weights: w, (M, 1) where all classes share them, else (M, K); the temperature is divided in.
        floors: each member's floor (M,).
        scales: what each member's log-likelihoods are multiplied by (M,); None stands for 1.
        bias: b (K,); None stands for 0.
    """

    kind: Literal["log-linear", "linear"]
    members: tuple[str, ...]
    weights: NDArray[np.float64]
    floors: NDArray[np.float64]
    scales: NDArray[np.float64] | None = None
    bias: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class WeightedVote:
    """A fitted rule as a vote of its members, for whoever counts it elsewhere: one member after the other.

    Attributes:
        kind: "vote" (a member's most probable class gets its weight) or "rank" (a class gets the weight times the
            number of classes that it beats).
        members: The members' names.
        weights: Their weights (M,), at least 0.
        floors: Each member's floor (M,).
    """

    kind: Literal["vote", "rank"]
    members: tuple[str, ...]
    weights: NDArray[np.float64]
    floors: NDArray[np.float64]

    @property
    def one_vote(self) -> float:
        """The weight that is one vote: the mean of those above 0, whichever members a stack has."""
        return float(self.weights[self.weights > 0].mean())


class Rule(ClassifierMixin, BaseEstimator, ABC):
    """A way to fuse members, as a scikit-learn classifier whose features are the members' predictions.

    A rule is a subclass that writes two methods, and declares by class attributes what else it can do::

        _fit(stack, labels, weight)   sets fitted attributes: names that end in `_`, holding numbers, strings, lists or
                                      arrays, so that a recipe can hold them
        _fuse(stack)                  returns the normalised log-likelihoods (N, K)
        needs_labels = True           whether it learns from labels; False: they may be absent
        refits = False                whether `refitted` gives what a fit on fewer videos would
        takes_views = False           whether it takes stacks with views (N, M, V, K); False: they are refused
        missing = None                whether it can do with videos that lack some member; None: they are refused

    Both methods see the members in one order, that of `members_`: sorted by name, so that nothing depends on the order
    in which somebody listed them. A rule that can do with videos that lack members has a parameter `missing`. It may
    also override `needed_members`, `needed_views`, `weighted_sum`, `weighted_vote` and `choices`. `X` is a
    `LogitStack`, or an array (N, M, K) of logits or log-likelihoods; `y` may be left out where the stack has labels.

    Attributes:
        members_: the members' names, sorted; attributes with a number for each member follow this order.
        feature_names_in_: the members' names as the stack of the fit listed them: the order of an array's members, and
            of numbers that are given to a rule as a list.
        n_features_in_: the number of members.
        classes_: 0 … K − 1, also where a fold lacks a class.
        class_names_: the classes' names, or None where the stack of the fit has none.
        agreement_: how far each member agrees with the others beyond chance, that value's deviation, and the share of
            videos on which it agrees (3, M); a stack on which a member's agreement is lost is warned of.
    """

    members_: tuple[str, ...]
    feature_names_in_: tuple[str, ...]
    n_features_in_: int
    classes_: NDArray[np.int64]
    class_names_: tuple[str, ...] | None
    agreement_: NDArray[np.float64]

    needs_labels: bool = True
    refits: bool = False
    takes_views: bool = False
    missing: Missing | None = None

    @abstractmethod
    def _fit(self, stack: LogitStack, labels: Any, weight: NDArray[np.float64] | None) -> None:
        """Set the fitted attributes.

        Args:
            stack: the members, in the order of `members_`.
            labels: true classes, an array (N,) of int64; None may come only where `needs_labels` is False.
            weight: the videos' weights (N,), at least 0 with a positive sum, or None where all count alike.
        """

    @abstractmethod
    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        """Return the normalised log-likelihoods (N, K) of a stack of `members_`, in this order.

        Members that `needed_members` leaves out may be absent; others only where `missing` is "renormalise".
        """

    def needed_members(self) -> tuple[str, ...]:
        """Return those of `members_` that a prediction needs: all, unless the fitted rule gave some no say."""
        check_is_fitted(self, "members_")
        return self.members_

    def needed_views(self) -> int | None:
        """Return how many views a prediction needs; None where it needs none, or takes any number."""
        return None

    def weighted_sum(self) -> WeightedSum | None:
        """Return the fitted rule as a weighted sum over members; None where it is none."""
        check_is_fitted(self, "members_")
        return None

    def weighted_vote(self) -> WeightedVote | None:
        """Return the fitted rule as a vote of its members; None where it is none."""
        check_is_fitted(self, "members_")
        return None

    def refitted(self, weight: NDArray[np.float64]) -> Self:
        """Return a copy as if fitted with other weights (N,) of the same videos, where `refits` says that it can."""
        raise NotImplementedError(type(self).__name__)

    def choices(self) -> tuple[str, ...]:
        """Return what the fit chose, and among what, a phrase each; empty where it chose nothing or was not run."""
        return ()

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        return "; ".join([super().__repr__(N_CHAR_MAX), *self.choices()])

    def fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        groups: Any = None,
    ) -> Self:
        """Fit the rule on videos whose labels are known.

        Args:
            X: a stack, or an array (N, M, K) of logits or log-likelihoods.
            y: labels (N,) in 0 … K − 1; left out where the stack has them.
            sample_weight: one weight of at least 0 a video; only their ratios matter.
            groups: what each video comes from, as in `LogitStack.with_groups`; left out where the stack has them.

        Raises:
            InputError: labels are missing or differ from the stack's, or a weight is negative.
            AlignmentError: videos lack some member, and the rule does not say that it can do with them.
        """
        stack = as_stack(X)
        check_layout(self, stack)
        stack = stack if groups is None else stack.with_groups(groups)
        labels = _labels(self, stack, y)
        weight = check_sample_weight(sample_weight, len(stack))
        check_choice("missing", self.missing, (None, *get_args(Missing)))
        check_presence(stack, self.missing)
        self.feature_names_in_ = stack.members
        stack = _in_order(stack, sorted(stack.members))
        self.members_ = stack.members
        self.n_features_in_ = len(stack.members)
        self.classes_ = np.arange(stack.n_classes)
        self.class_names_ = stack.classes
        self.agreement_ = agreement_beyond_chance(stack)
        self._fit(stack, labels, weight)
        return self

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the fused log-likelihoods (N, K), normalised; members are matched by name.

        Raises:
            AlignmentError: members that have a say are missing, or members are added, or the classes differ from the
                fit's in number, names or order.
        """
        return self._fuse_as_one(self._to_fuse(X))

    def predict_blocks(self, X: Any, *, proba: bool = False, rows_per_block: int | None = None) -> FusedBlocks:
        """Return the fused log-likelihoods (N, K) as blocks, which are computed when they are read.

        Everything is checked here and now, as by `predict_log_proba`, and the bits are the same.

        Args:
            X: a stack, or an array (N, M, K).
            proba: give probabilities, as `predict_proba` does.
            rows_per_block: videos in a block; by default as many as have about a million scores.

        Raises:
            AlignmentError: as in `predict_log_proba`.

        Example:
            >>> from vidfuse.fusion.linear import LinearPool
            >>> X = np.zeros((5, 2, 3))
            >>> blocks = LinearPool("uniform").fit(X).predict_blocks(X, rows_per_block=2)
            >>> [(rows.start, rows.stop, log_p.shape) for rows, log_p in blocks]
            [(0, 2, (2, 3)), (2, 4, (2, 3)), (4, 5, (1, 3))]
        """
        return FusedBlocks(self._fuse_as_one, self._to_fuse(X), proba=proba, rows_per_block=rows_per_block)

    def _to_fuse(self, X: Any) -> LogitStack:
        """Return the checked stack of `members_`, and warn where these do not agree as they did."""
        check_is_fitted(self, "members_")
        stack = _aligned(self, X)
        if hasattr(self, "agreement_") and not _within.get():  # recipes of the first releases do not hold it
            warn_if_agreement_is_lost(self.members_, self.agreement_, stack)
        return stack

    def _fuse_as_one(self, stack: LogitStack) -> NDArray[np.float64]:
        """Fuse a checked stack; a rule within this one looks at the members' agreement no more."""
        if not hasattr(self, "agreement_"):
            return self._fuse(stack)
        outer = _within.set(True)
        try:
            return self._fuse(stack)
        finally:
            _within.reset(outer)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the fused probabilities (N, K)."""
        log_proba = self.predict_log_proba(X)
        return np.exp(log_proba, out=log_proba)

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the fused class (N,); of equally probable classes the lowest wins."""
        return np.asarray(self.predict_log_proba(X).argmax(axis=1))  # the classes are 0 … K - 1

    def score(self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy on `y`, or on the stack's own labels.

        Raises:
            InputError: neither `y` nor the stack gives labels.
        """
        stack = as_stack(X)
        labels = _resolve_labels(stack, y)
        if labels is None:
            raise InputError("score: expected labels, got a stack without them; pass y, or labels when building it")
        hits = self.predict(stack if isinstance(X, LogitStack) else X) == labels
        return float(np.average(hits, weights=check_sample_weight(sample_weight, len(stack))))

    def _as_listed(self, stack: LogitStack) -> LogitStack:
        """Return the stack of a fit with its members as the caller listed them.

        A rule that wraps another fits it on this stack: numbers that were given to the other as a list go by it.
        """
        return _in_order(stack, [name for name in self.feature_names_in_ if name in stack.members])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.target_tags.required = self.needs_labels
        tags.requires_fit = True
        return tags


class Wrapper(Rule):
    """A rule around another one, `rule`, of which the fit keeps a fitted copy, `rule_`; that one says what it needs."""

    rule: Any
    rule_: Rule

    @property
    def missing(self) -> Missing | None:  # type: ignore[override]
        """What the inner rule does about missing members; None where it can do nothing."""
        return check_rule(self.rule).missing

    def needed_members(self) -> tuple[str, ...]:
        """Return those of `members_` that a prediction needs: those that the inner rule needs."""
        check_is_fitted(self, "rule_")
        return self.rule_.needed_members()

    def needed_views(self) -> int | None:
        """Return how many views the inner rule needs."""
        check_is_fitted(self, "rule_")
        return self.rule_.needed_views()

    def choices(self) -> tuple[str, ...]:
        """Return what the inner rule chose."""
        return self.rule_.choices() if hasattr(self, "rule_") else ()

    def summary(self, bootstrap: int = 0, *, confidence: float = 0.95, random_state: int | None = 0) -> Any:
        """Return each member's weight in the inner rule; intervals take what the wrapper itself chose as given.

        Raises:
            InputError: the rule has no weights, comes from a recipe or a pickle, or an argument is out of range.
        """
        check_is_fitted(self, "rule_")
        if not hasattr(self.rule_, "summary"):
            raise InputError(
                f"summary: expected a rule with one weight a member, such as LogLinearPool(), got {self.rule_!r}"
            )
        return self.rule_.summary(bootstrap, confidence=confidence, random_state=random_state)


def as_stack(X: Any) -> LogitStack:
    """Return `X` as a stack: a stack as it is, an array (N, M, K) or (N, M, V, K) of logits or log-likelihoods.

    Raises:
        InputError: anything else, such as a wrong number of axes.

    Example:
        >>> as_stack(np.zeros((5, 2, 3))).shape
        (5, 2, 3)
    """
    return X if isinstance(X, LogitStack) else LogitStack.from_arrays(X)


def check_rule(rule: Any) -> Rule:
    """Return a rule as it is, and refuse anything else.

    Example:
        >>> check_rule(None)
        Traceback (most recent call last):
        vidfuse.errors.InputError: rule: expected a fusion rule, such as LogLinearPool(), got None
    """
    if not isinstance(rule, Rule):
        raise InputError(f"rule: expected a fusion rule, such as LogLinearPool(), got {rule!r}")
    return rule


def check_layout(rule: Rule, stack: LogitStack) -> None:
    """Refuse a stack without videos, with one class, or with views that the rule does not take.

    Raises:
        InputError: it is one of these.
    """
    if len(stack) == 0:
        raise InputError("expected at least one video, got an empty stack")
    if stack.n_classes < 2:
        raise InputError(f"expected at least 2 classes, got {stack.n_classes}; a binary logit z is given as [0, z]")
    if stack.n_views is not None and not rule.takes_views:
        raise InputError(
            f"{type(rule).__name__} takes (N, M, K), got views: shape {stack.shape}; reduce them with "
            f"{option('views', 'mean-log')} while loading"
        )


def check_presence(stack: LogitStack, missing: str | None) -> None:
    """Refuse videos that lack some member's scores, unless `missing` is "renormalise".

    Args:
        stack: The members.
        missing: What the rule does about missing members; None where it can do nothing.

    Raises:
        AlignmentError: there are such videos.

    Example:
        >>> check_presence(as_stack(np.zeros((5, 2, 3))), "error")
    """
    if stack.present is None or missing == "renormalise":
        return
    advice = f"keep those that all members have, with {option('join', 'inner')} while loading"
    if missing is not None:
        advice += f", or give the rule {option('missing', 'renormalise')} to share an absent member's weight"
    raise AlignmentError(
        f"expected every member's scores of every video, got {int((~stack.present.all(axis=1)).sum())} of {len(stack)} "
        f"videos without some; {advice}"
    )


def complete_videos(stack: LogitStack, advice: str = "") -> NDArray[np.bool_]:
    """Return which videos every member has (N,); members are compared on them, so that there has to be one.

    Example:
        >>> complete_videos(LogitStack.from_arrays(np.zeros((2, 2, 3)))).tolist()
        [True, True]
    """
    if stack.present is None:
        return np.ones(len(stack), dtype=bool)
    complete = stack.present.all(axis=1)
    if not complete.any():
        raise AlignmentError(
            f"expected videos that every member has, to compare the members on; got none among {len(stack)}; leave "
            f"out the members that have few{advice}"
        )
    return np.asarray(complete)


def check_sample_weight(sample_weight: ArrayLike | None, n: int) -> NDArray[np.float64] | None:
    """Return one finite weight of at least 0 a video (N,), of positive sum; None where there are none.

    Raises:
        InputError: they are anything else.

    Example:
        >>> check_sample_weight([1, 2], 2).tolist()
        [1.0, 2.0]
    """
    if sample_weight is None:
        return None
    array = as_array(sample_weight, "sample_weight")
    if array.ndim == 0:
        array = np.full(n, array[()])
    if array.shape != (n,) or array.dtype.kind not in "fiub":
        raise InputError(
            f"sample_weight: expected {n} numbers, one for each video, got {array.dtype} of shape {array.shape}"
        )
    weight = array.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
    if bad.size:
        raise InputError(f"sample_weight: expected finite numbers of at least 0, got {weight[bad[0]]} at row {bad[0]}")
    if weight.max() > 1e300:  # their sum may be no number
        weight /= weight.max()
    if not weight.sum() > 0:
        raise InputError("sample_weight: expected a positive sum, got weights that sum to zero")
    return weight


def _in_order(stack: LogitStack, members: list[str]) -> LogitStack:
    return stack if stack.members == tuple(members) else stack.select(members)


def _labels(rule: Rule, stack: LogitStack, y: ArrayLike | None) -> NDArray[np.int64] | None:
    """Return the labels of a fit, from `y` or the stack; None where there are none and the rule needs none."""
    if y is not None:
        check_numbering(stack, check_labels(as_array(y, "y"), len(stack), stack.n_classes, stack.ids))
    labels = _resolve_labels(stack, y)
    if not rule.needs_labels:
        return labels
    if labels is None:
        raise InputError(
            f"{type(rule).__name__} learns from labels, and the stack it was given to fit on has none; give them with "
            f"{option('labels')}, of the validation split, not the test split"
        )
    if len(labels) > 1 and (labels == labels[0]).all():
        _warn(f"every label of the fit is class {labels[0]}; the fit goes on, but it can tell little about the others")
    return labels


def _resolve_labels(stack: LogitStack, y: ArrayLike | None) -> NDArray[np.int64] | None:
    if y is None:
        return stack.labels
    array = as_array(y, "y")
    if stack.labels is not None:
        return check_same_labels(array, stack.labels, stack.ids)
    return check_labels(array, len(stack), stack.n_classes, stack.ids)


def _aligned(rule: Rule, X: Any) -> LogitStack:
    """Return videos to predict with the members of the fit, in the order of `members_`.

    An array has an order and no names: its members are those of the fit, as they were listed there. In a stack
    members are found by name. All that the prediction needs must be there, unless `missing` is "renormalise".
    """
    stack = as_stack(X)
    check_layout(rule, stack)
    if stack.n_classes != len(rule.classes_):
        raise AlignmentError(f"the fit knew {len(rule.classes_)} classes, got a stack with {stack.n_classes}")
    check_class_names(getattr(rule, "class_names_", None), stack.classes)
    if not isinstance(X, LogitStack):
        listed = getattr(rule, "feature_names_in_", rule.members_)  # recipes of the first releases list one order
        if len(stack.members) != len(listed):
            raise AlignmentError(
                f"expected an array of {len(listed)} members ({first_few(listed, 20)}), "
                f"got {len(stack.members)}: shape {stack.shape}"
            )
        stack = LogitStack.from_arrays(X, members=listed)
    needed = rule.needed_members()
    absent = sorted(set(needed) - set(stack.members))
    added = sorted(set(stack.members) - set(rule.members_))
    if (absent or added) and rule.missing != "renormalise":
        spare = [name for name in rule.members_ if name not in needed]
        raise AlignmentError(
            f"expected the members of the fit, {first_few(needed, 20)}"
            f"{f' (and if you like {first_few(spare, 20)}, without a say)' if spare else ''}; missing: "
            f"{first_few(absent) or 'none'}, not in the fit: {first_few(added) or 'none'}"
            + (
                ""
                if rule.missing is None
                else f"; say {option('missing', 'renormalise')} to go on with those that are there"
            )
        )
    if stack.present is not None and not absent:
        check_presence(stack.select(needed), rule.missing)
    common = [name for name in rule.members_ if name in stack.members]
    if not common:
        raise AlignmentError(f"expected some of the members {first_few(rule.members_, 20)}, got none of them")
    return _in_order(stack, common)


def check_class_names(names: tuple[str, ...] | None, found: tuple[str, ...] | None) -> None:
    """Refuse classes of other names, or in another order, than those of the fit; None says nothing.

    Args:
        names: The names in the fit.
        found: Those that are met, as many.

    Raises:
        AlignmentError: They are others, or in another order; the first that differs is named.

    Example:
        >>> check_class_names(("run", "walk"), None)
    """
    if names is None or found is None or names == found:
        return
    place = next(k for k, (ours, theirs) in enumerate(zip(names, found, strict=True)) if ours != theirs)
    reordered = sorted(names) == sorted(found)
    raise AlignmentError(
        f"expected the classes of the fit, got {'another order' if reordered else 'other names'}: class {place} is "
        f"{names[place]!r} in the fit and {found[place]!r} in the stack; "
        + (
            "put every member's columns, the labels and the names in the fit's order"
            if reordered
            else "pass predictions for the fit's classes, or leave the names out if only their spelling differs"
        )
    )


def _warn(message: str) -> None:
    warnings.warn(message, VidfuseWarning, stacklevel=4)
