"""What every fuser shares: checks, alignment by name, labels, and scikit-learn's estimator interface."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from numbers import Real
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from vidfuse._checks import as_array, check_labels, check_same_labels, first_few
from vidfuse.errors import AlignmentError, InputError, VidfuseWarning
from vidfuse.fusion.agreement import agreement_beyond_chance, warn_if_agreement_is_lost
from vidfuse.likelihood import DEFAULT_FLOOR, mix_floor
from vidfuse.stack.stack import LogitStack

__all__ = [
    "Floor",
    "Fuser",
    "Missing",
    "as_stack",
    "check_presence",
    "check_sample_weight",
    "floored_blocks",
    "is_number",
    "member_floors",
]

Floor = float | Literal["auto"]
Missing = Literal["error", "renormalise"]


def as_stack(X: Any) -> LogitStack:
    """Return `X` as a stack: a stack as it is, an array (N, M, K) or (N, M, V, K) of logits or log-likelihoods.

    Raises:
        InputError: anything else, such as a wrong number of axes.

    Example:
        >>> as_stack(np.zeros((5, 2, 3))).shape
        (5, 2, 3)
    """
    return X if isinstance(X, LogitStack) else LogitStack.from_arrays(X)


def is_number(value: Any) -> bool:
    """Say whether a parameter is one finite real number, of Python or of NumPy.

    Example:
        >>> is_number(np.float32(0.5)), is_number("2"), is_number(None), is_number([1])
        (True, False, False, False)
    """
    return isinstance(value, Real) and math.isfinite(value)


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
    advice = "keep those that all members have: stack[stack.present.all(axis=1)]"
    if missing is not None:
        advice = 'say missing="renormalise" to share an absent member\'s weight among the others'
    raise AlignmentError(
        f"expected every member's scores of every video, got {int((~stack.present.all(axis=1)).sum())} of {len(stack)} "
        f"videos without some; {advice}"
    )


def member_floors(stack: LogitStack, floor: Floor, default: float = 0.0) -> NDArray[np.float64]:
    """Return each member's floor: the number given, or for `"auto"` at least 1e-4 where it holds probabilities.

    Args:
        stack: the members.
        floor: the uniform distribution's share in every member, 0 ≤ floor < 1, or `"auto"`.
        default: the floor that `"auto"` gives to members whose logits or log-likelihoods are known.

    Raises:
        InputError: a floor outside [0, 1).

    Example:
        >>> stack = LogitStack.from_arrays({"a": np.zeros((1, 2)), "b": np.full((1, 2), 0.5)},
        ...                                kind={"a": "logits", "b": "probabilities"})
        >>> member_floors(stack, "auto").tolist()
        [0.0, 0.0001]
    """
    if isinstance(floor, str) and floor == "auto":
        rounded = np.array([kind in ("probabilities", "sum") for kind in stack.kinds])
        return np.maximum(default, np.where(rounded, DEFAULT_FLOOR, 0.0))
    if not is_number(floor) or not 0 <= float(floor) < 1:
        raise InputError(f'floor: expected "auto" or a number of at least 0 and below 1, got {floor!r}')
    return np.full(len(stack.members), float(floor))


def floored_blocks(
    stack: LogitStack, floors: NDArray[np.float64], rows_per_block: int | None = None
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield blocks (B, M, [V,] K) of log-likelihoods with each member's floor mixed in; the buffer is reused.

    Example:
        >>> [block.shape for rows, block in floored_blocks(as_stack(np.zeros((5, 2, 3))), np.zeros(2))]
        [(5, 2, 3)]
    """
    for rows, block in stack.iter_blocks(rows_per_block):
        for member, floor in enumerate(floors):
            if floor > 0:
                mix_floor(block[:, member], float(floor), out=block[:, member])
        yield rows, block


class Fuser(ClassifierMixin, BaseEstimator, ABC):
    """An ensemble rule as a scikit-learn classifier whose features are the members' predictions.

    A rule is a subclass that implements `_fit(stack, labels, weight)`, which sets fitted attributes (names that end
    in `_`; numbers, strings, lists or arrays, so that a recipe can hold them), and `_fuse(stack)`, which returns the
    log-likelihoods (N, K) of a stack whose members are sorted by name. `X` is a `LogitStack` or an array (N, M, K)
    of logits or log-likelihoods; `y` may be left out where the stack has labels.

    Attributes:
        members_: the members' names, in the order of the fit.
        classes_: 0 … K − 1, also where a fold lacks a class.
        class_names_: the classes' names, or None where the stack of the fit has none.
        n_features_in_: the number of members.
        agreement_: how far each member agrees with the others beyond chance, and that value's deviation (2, M); a stack
            on which a member's agreement is lost is warned of.
    """

    members_: tuple[str, ...]
    classes_: NDArray[np.int64]
    class_names_: tuple[str, ...] | None
    n_features_in_: int
    agreement_: NDArray[np.float64]

    _takes_views = False

    def _needs_labels(self) -> bool:
        """Say whether this rule, with these parameters, learns anything from labels."""
        return True

    @abstractmethod
    def _fit(self, stack: LogitStack, labels: NDArray[np.int64] | None, weight: NDArray[np.float64] | None) -> None:
        """Set the fitted attributes; labels are given where `_needs_labels` says so."""

    @abstractmethod
    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        """Return the normalised log-likelihoods (N, K) of a stack of some or all of `members_`, sorted by name."""

    def fit(self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the rule on videos whose labels are known.

        Args:
            X: a stack, or an array (N, M, K) of logits or log-likelihoods.
            y: labels (N,) in 0 … K − 1; left out where the stack has them.
            sample_weight: one weight of at least 0 a video; only their ratios matter.

        Raises:
            InputError: labels are missing or differ from the stack's, or a weight is negative.
        """
        stack = as_stack(X)
        self._check_layout(stack)
        labels = self._labels(stack, y)
        weight = check_sample_weight(sample_weight, len(stack))
        self.members_ = stack.members
        self.classes_ = np.arange(stack.n_classes)
        self.class_names_ = stack.classes
        self.n_features_in_ = len(stack.members)
        self.agreement_ = agreement_beyond_chance(stack)
        self._fit(stack, labels, weight)
        return self

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the fused log-likelihoods (N, K), normalised; members are matched by name.

        Raises:
            AlignmentError: members that have a say are missing, or members are added, or the classes differ from the
                fit's in number, names or order.
        """
        check_is_fitted(self, "members_")
        stack = self._align(X)
        if hasattr(self, "agreement_"):  # recipes of the first releases do not hold it
            warn_if_agreement_is_lost(self.members_, self.agreement_, stack)
        return self._fuse(stack)

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

    def needed_members(self) -> tuple[str, ...]:
        """Return those of `members_` that a prediction needs: all, unless the fitted rule gave some no say."""
        check_is_fitted(self, "members_")
        return self.members_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.target_tags.required = self._needs_labels()
        tags.requires_fit = True
        return tags

    def _check_layout(self, stack: LogitStack) -> None:
        if len(stack) == 0:
            raise InputError("expected at least one video, got an empty stack")
        if stack.n_classes < 2:
            raise InputError(f"expected at least 2 classes, got {stack.n_classes}; a binary logit z is given as [0, z]")
        if stack.n_views is not None and not self._takes_views:
            raise InputError(
                f"{type(self).__name__} takes (N, M, K), got views: shape {stack.shape}; reduce them with "
                'views="mean-log" while loading, or with reduce_views(stack, "mean-log")'
            )

    def _labels(self, stack: LogitStack, y: ArrayLike | None) -> NDArray[np.int64] | None:
        labels = _resolve_labels(stack, y)
        if not self._needs_labels():
            return labels
        if labels is None:
            raise InputError(
                f"{type(self).__name__} learns from labels, and the stack it was given to fit on has none; pass y, or "
                "labels when building the stack (of the validation split, not the test split)"
            )
        if len(labels) > 1 and (labels == labels[0]).all():
            _warn(
                f"every label of the fit is class {labels[0]}; the fit goes on, but it can tell little about the others"
            )
        return labels

    def _check_class_names(self, stack: LogitStack) -> None:
        names = getattr(self, "class_names_", None)  # recipes of the first releases do not hold it
        if names is None or stack.classes is None or names == stack.classes:
            return
        place = next(k for k, (ours, theirs) in enumerate(zip(names, stack.classes, strict=True)) if ours != theirs)
        reordered = sorted(names) == sorted(stack.classes)
        raise AlignmentError(
            f"expected the classes of the fit, got {'another order' if reordered else 'other names'}: class {place} is "
            f"{names[place]!r} in the fit and {stack.classes[place]!r} in the stack; "
            + (
                "put every member's columns, the labels and the names in the fit's order"
                if reordered
                else "pass predictions for the fit's classes, or leave the names out if only their spelling differs"
            )
        )

    def _align(self, X: Any) -> LogitStack:
        """Return the stack with the members of the fit, sorted by name."""
        stack = as_stack(X)
        self._check_layout(stack)
        if stack.n_classes != len(self.classes_):
            raise AlignmentError(f"the fit knew {len(self.classes_)} classes, got a stack with {stack.n_classes}")
        self._check_class_names(stack)
        if not isinstance(X, LogitStack):
            if len(stack.members) != len(self.members_):
                raise AlignmentError(
                    f"expected an array of {len(self.members_)} members ({first_few(self.members_, 20)}), "
                    f"got {len(stack.members)}: shape {stack.shape}"
                )
            stack = LogitStack.from_arrays(X, members=self.members_)  # an array has an order, and no names
        missing = getattr(self, "missing", None)
        needed = self.needed_members()
        absent = sorted(set(needed) - set(stack.members))
        added = sorted(set(stack.members) - set(self.members_))
        if (absent or added) and missing != "renormalise":
            spare = [name for name in self.members_ if name not in needed]
            raise AlignmentError(
                f"expected the members of the fit, {first_few(needed, 20)}"
                f"{f' (and if you like {first_few(spare, 20)}, without a say)' if spare else ''}; missing: "
                f"{first_few(absent) or 'none'}, not in the fit: {first_few(added) or 'none'}"
                + ("" if missing is None else '; say missing="renormalise" to go on with those that are there')
            )
        if stack.present is not None and not absent:
            check_presence(stack.select(needed), missing)
        common = sorted(set(self.members_) & set(stack.members))
        if not common:
            raise AlignmentError(f"expected some of the members {first_few(self.members_, 20)}, got none of them")
        return stack if stack.members == tuple(common) else stack.select(common)


def _resolve_labels(stack: LogitStack, y: ArrayLike | None) -> NDArray[np.int64] | None:
    if y is None:
        return stack.labels
    array = as_array(y, "y")
    if stack.labels is not None:
        return check_same_labels(array, stack.labels, stack.ids)
    return check_labels(array, len(stack), stack.n_classes, stack.ids)


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


def _warn(message: str) -> None:
    warnings.warn(message, VidfuseWarning, stacklevel=4)
