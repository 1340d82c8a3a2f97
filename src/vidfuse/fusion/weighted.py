"""Rules with one weight for each member: how the weights are found, shared where members are absent, and summarised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from vidfuse._checks import check_choice, check_weights, place
from vidfuse.errors import AlignmentError, InputError, option
from vidfuse.fusion._solver.shared import FitVideos
from vidfuse.fusion.floors import Floor, floored_blocks, member_floors
from vidfuse.fusion.rule import complete_videos
from vidfuse.fusion.summary import Refit, SummarisedRule
from vidfuse.fusion.views import reduce_views
from vidfuse.fusion.weights import SCORE_WEIGHTS, check_power, member_hits, score_weights, true_log_likelihoods
from vidfuse.stack.stack import LogitStack

__all__ = [
    "WeightedRule",
    "Weights",
    "check_true_class",
    "is_learned",
    "pool_blocks",
    "sum_of_given",
]

Weights = str | Sequence[float] | Mapping[str, float] | NDArray[np.float64]


class WeightedRule(SummarisedRule):
    """A rule with one weight for each member: what pools and votes share.

    A subclass calls `_fit_weights` in its `_fit`, and `_with_a_say` in its `_fuse`.
    """

    weights: Weights
    power: float
    floor: Floor
    class_weight: Literal["balanced"] | None = None  # a parameter of pools alone
    floor_: NDArray[np.float64]
    n_missing_: NDArray[np.int64]

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        """Whether the weights, or the classes' weights, follow from labels."""
        return self.class_weight is not None or (isinstance(self.weights, str) and self.weights != "uniform")

    @property
    def refits(self) -> bool:  # type: ignore[override]
        """Whether the weights follow from the members' scores alone."""
        return isinstance(self.weights, str) and self.weights in SCORE_WEIGHTS[1:] and self.class_weight is None

    def refitted(self, weight: NDArray[np.float64]) -> Self:
        """Return a copy with the weights that the members' scores on these videos give."""
        if self._refit is None or self._omega is None or len(weight) != len(self._omega):
            raise InputError(f"expected a rule fitted on {len(weight)} videos of positive weight, got {self!r}")
        rule, omega = copy(self), weight / weight.sum()
        rule._set_found(self._refit(omega), self._refit, omega, self._groups)
        return rule

    def needed_members(self) -> tuple[str, ...]:
        """Return those of `members_` that a prediction needs: those of positive weight."""
        check_is_fitted(self, "weights_")
        return tuple(name for name, weight in zip(self.members_, self.weights_, strict=True) if weight > 0)

    def _fit_weights(
        self,
        stack: LogitStack,
        labels: Any,
        weight: NDArray[np.float64] | None,
        *,
        learns: bool = False,
        default_floor: float = 0.0,
    ) -> FitVideos | None:
        """Set `weights_`, `floor_` and `n_missing_`; where weights are "learned", return the videos to learn them from.

        weights =   numbers, {member: number}       as given, divided by their sum
                    "uniform"                       1/M
                    the name of a score             `score_weights` of the members' hits or losses
                    "learned"                       left to the rule, which sets `weights_` by `_set_found`

        Args:
            stack: the members, sorted by name.
            labels: true classes (N,); None where the weights need none.
            weight: the videos' weights (N,), or None.
            learns: whether the rule has weights that are "learned".
            default_floor: what `floor="auto"` means for members given as logits.
        """
        _check_parameters(self, (*SCORE_WEIGHTS, "learned") if learns else SCORE_WEIGHTS)
        m = len(stack.members)
        self.floor_ = member_floors(stack, self.floor, default_floor)
        self.n_missing_ = np.zeros(m, dtype=np.int64) if stack.present is None else (~stack.present).sum(axis=0)
        self._refit, self._omega, self._groups = None, None, None
        if not isinstance(self.weights, str):
            listed = check_weights(self.weights, self.feature_names_in_)
            given = dict(zip(self.feature_names_in_, listed.tolist(), strict=True))
            self.weights_ = np.array([given[name] for name in self.members_])
            return None
        if self.weights == "uniform":
            self.weights_ = np.full(m, 1.0 / m)
            return None
        videos = _fit_videos(stack, labels, weight, self.class_weight, self.floor_)
        if self.weights == "learned":
            return videos
        refit = _by_score(self.weights, videos, self.power, self.floor)
        self._set_found(refit(videos.omega), refit, videos.omega, videos.stack.groups)
        return None

    def _set_found(
        self, weights: NDArray[np.float64], refit: Refit, omega: NDArray[np.float64], groups: NDArray[Any] | None
    ) -> None:
        """Set weights that were found on videos, and how to find them again on resampled ones."""
        self.weights_, self._refit, self._omega, self._groups = weights, refit, omega, groups

    def _with_a_say(self, stack: LogitStack) -> tuple[LogitStack, NDArray[np.float64], NDArray[np.float64]]:
        """Return the members of positive weight, with their weights and floors; each video has at least one."""
        share = dict(zip(self.members_, self.weights_.tolist(), strict=True))
        used = [name for name in stack.members if share[name] > 0]
        if not used:
            raise AlignmentError(f"no member with a positive weight is left among {list(stack.members)}")
        stack = stack.select(used)
        if stack.present is not None and not stack.present.any(axis=1).all():
            row = int(stack.present.any(axis=1).argmin())
            raise AlignmentError(f"no member with a positive weight has {place(row, stack.ids)}; drop the video")
        columns = [self.members_.index(name) for name in used]
        return stack, self.weights_[columns], self.floor_[columns]

    def _resampled_weights(self, bootstrap: int, rng: np.random.Generator) -> NDArray[np.float64]:
        if not isinstance(self.weights, str) or self.weights == "uniform":  # no video has a say in these weights
            return np.tile(self.weights_, (bootstrap, 1))
        return super()._resampled_weights(bootstrap, rng)


def is_learned(weights: Weights) -> bool:
    """Say whether weights are to be learned.

    Example:
        >>> is_learned("learned"), is_learned("accuracy"), is_learned(np.ones(2))
        (True, False, False)
    """
    return isinstance(weights, str) and weights == "learned"


def sum_of_given(weights: Weights) -> float:
    """Return the sum of weights that are given as numbers; 1 for those that a fit finds.

    Example:
        >>> sum_of_given([1, 0, 3]), sum_of_given("uniform")
        (4.0, 1.0)
    """
    if isinstance(weights, str):
        return 1.0
    given = weights.values() if isinstance(weights, Mapping) else weights
    with np.errstate(over="ignore"):
        return float(np.sum([float(value) for value in given]))


def pool_blocks(
    combine: Callable[[NDArray[np.float32], NDArray[np.float64], Any], NDArray[np.float64]],
    stack: LogitStack,
    weights: NDArray[np.float64],
    floors: NDArray[np.float64],
    total: float = 1.0,
    scales: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Pool a stack block by block, the weights of a video's absent members shared among the others.

    Args:
        combine: the pool of a block: from log-likelihoods (B, M, K), weights (M,) or (B, M), and the rows' ids or None,
            to log-likelihoods (B, K).
        stack: the members.
        weights: their weights (M,).
        floors: each member's floor (M,).
        total: what the weights of each video sum to.
        scales: what each member's log-likelihoods are multiplied by before its floor is mixed in (M,); None is 1.

    Example:
        >>> from vidfuse.likelihood import linear_pool
        >>> stack = LogitStack.from_arrays(np.log([[[0.8, 0.2], [0.4, 0.6]]]))
        >>> pooled = pool_blocks(lambda block, shares, ids: linear_pool(block, shares), stack, np.ones(2), np.zeros(2))
        >>> np.exp(pooled).round(3).tolist()
        [[0.6, 0.4]]
    """
    if stack.present is not None:
        weights = stack.present * weights
    shares = weights / weights.sum(axis=-1, keepdims=True) * total
    out = np.empty((len(stack), stack.n_classes))
    for rows, block in floored_blocks(stack, floors, scales=scales):
        ids = None if stack.ids is None else stack.ids[rows]
        out[rows] = combine(block, shares if shares.ndim == 1 else shares[rows], ids)
    return out


def check_true_class(stack: LogitStack, true: NDArray[np.float64], floors: NDArray[np.float64]) -> None:
    """Refuse a probability of 0 at the true class, which no weight could make up for.

    Args:
        stack: the members.
        true: each member's score of the true class as it is stored (M, N).
        floors: the uniform distribution's share in each member (M,).

    Raises:
        InputError: some member without a floor has it.

    Example:
        >>> check_true_class(LogitStack.from_arrays(np.zeros((4, 2, 3))), np.zeros((2, 4)), np.zeros(2))
    """
    rounded = np.array([kind in ("probabilities", "sum") for kind in stack.kinds])[:, None]
    zero = (true == np.where(rounded, 0.0, -np.inf)) & (floors == 0)[:, None]
    if zero.any():
        row = int(zero.any(axis=0).argmax())
        name = stack.members[int(zero[:, row].argmax())]
        raise InputError(
            f"a learned fit cannot use a probability of 0 at the true class: {place(row, stack.ids, name)}; "
            f"set {option('floor', 1e-4)} or more"
        )


def _check_parameters(rule: WeightedRule, names: tuple[str, ...]) -> None:
    if isinstance(rule.weights, str) and rule.weights not in names:
        raise InputError(
            f"weights: expected one of {', '.join(map(repr, names))}, numbers or {{member: number}}, "
            f"got {rule.weights!r}"
        )
    check_power(rule.power)
    check_choice("class_weight", rule.class_weight, (None, "balanced"))


def _fit_videos(
    stack: LogitStack,
    labels: NDArray[np.int64],
    weight: NDArray[np.float64] | None,
    class_weight: str | None,
    floors: NDArray[np.float64],
) -> FitVideos:
    """Return the videos that every member has and whose weight is not 0; "balanced" evens out the classes' weights."""
    used = complete_videos(stack, f", or say {option('weights', 'uniform')}")
    omega = np.ones(len(stack)) if weight is None else weight
    used &= omega > 0
    if not used.any():
        raise InputError("sample_weight: the videos that the fit can use have weights that sum to zero")
    if not used.all():
        stack, labels, omega = stack[used], labels[used], omega[used]
    if class_weight == "balanced":
        omega = omega / np.bincount(labels, weights=omega)[labels]
    return FitVideos(stack, labels, omega / omega.sum(), floors)


def _by_score(rule: str, videos: FitVideos, power: float, floor: Floor) -> Refit:
    """Return what finds weights by the members' scores, given the videos' weights (N,)."""
    stack = videos.stack
    if stack.n_views is not None:
        stack = reduce_views(stack, "mean-log", floor=floor)
    evidence: NDArray[Any]
    if rule == "inverse-nll":
        evidence = true_log_likelihoods(stack, videos.labels, videos.floors)
    else:
        evidence = member_hits(stack, videos.labels)
    return partial(score_weights, rule, evidence, n_classes=stack.n_classes, power=power)
