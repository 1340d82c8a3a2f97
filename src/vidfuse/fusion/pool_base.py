"""What pools and votes share: weights by every rule, floors, missing members, the summary of the weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from vidfuse._checks import check_weights, place
from vidfuse.errors import AlignmentError, InputError
from vidfuse.fusion.base import Floor, Fuser, Missing, check_presence, floored_blocks, member_floors
from vidfuse.fusion.summary import PoolSummary, Refit, summarise
from vidfuse.fusion.weights import SCORE_WEIGHTS, check_power, member_hits, score_weights, true_log_likelihoods
from vidfuse.stack.stack import LogitStack

__all__ = ["Pool", "WeightedFuser", "Weights", "check_true_class"]

Weights = str | Sequence[float] | Mapping[str, float] | NDArray[np.float64]


class WeightedFuser(Fuser):
    """What pools and votes share: one weight a member, given or scored, floors, missing members, the summary."""

    _rules: ClassVar[tuple[str, ...]] = SCORE_WEIGHTS

    weights: Weights
    power: float
    floor: Floor
    class_weight: Literal["balanced"] | None = None  # a parameter of pools alone
    missing: Missing
    weights_: NDArray[np.float64]
    floor_: NDArray[np.float64]
    n_missing_: NDArray[np.int64]

    def _default_floor(self) -> float:
        """Return the floor that "auto" gives to members whose logits are known."""
        return 0.0

    def _needs_labels(self) -> bool:
        return self.class_weight is not None or (isinstance(self.weights, str) and self.weights != "uniform")

    def needed_members(self) -> tuple[str, ...]:
        """Return those of `members_` that a prediction needs: those of positive weight."""
        check_is_fitted(self, "weights_")
        return tuple(name for name, weight in zip(self.members_, self.weights_, strict=True) if weight > 0)

    def _fit(self, stack: LogitStack, labels: NDArray[np.int64] | None, weight: NDArray[np.float64] | None) -> None:
        self._check_parameters()
        self.floor_ = member_floors(stack, self.floor, self._default_floor())
        self.n_missing_ = np.zeros(len(stack.members), dtype=np.int64)
        self._refit: Refit | None = None
        self._omega: NDArray[np.float64] | None = None
        check_presence(stack, self.missing)
        if stack.present is not None:
            self.n_missing_ = (~stack.present).sum(axis=0)
        if not isinstance(self.weights, str):
            self.weights_ = check_weights(self.weights, stack.members)
            return
        if self.weights == "uniform" or labels is None:
            self.weights_ = np.full(len(stack.members), 1.0 / len(stack.members))
            return
        stack, labels, weight = _comparable_videos(stack, labels, weight)
        omega = _video_weights(labels, weight, self.class_weight)
        order = sorted(stack.members)
        columns = np.array([stack.members.index(name) for name in order])
        back = np.argsort(columns)
        found, refit = self._find(stack.select(order), labels, omega, self.floor_[columns])
        self.weights_ = found[back]
        self._refit, self._omega = partial(_reordered, refit, back), omega

    def _check_parameters(self) -> None:
        if isinstance(self.weights, str) and self.weights not in self._rules:
            raise InputError(
                f"weights: expected one of {', '.join(map(repr, self._rules))}, numbers or {{member: number}}, "
                f"got {self.weights!r}"
            )
        check_power(self.power)
        if self.missing not in ("error", "renormalise"):
            raise InputError(f'missing: expected "error" or "renormalise", got {self.missing!r}')

    def _find(
        self,
        stack: LogitStack,
        labels: NDArray[np.int64],
        omega: NDArray[np.float64],
        floors: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], Refit]:
        """Return the weights of a complete stack sorted by name, and how to find them again on resampled videos."""
        rule = str(self.weights)
        evidence = true_log_likelihoods(stack, labels, floors) if rule == "inverse-nll" else member_hits(stack, labels)
        found = score_weights(rule, evidence, omega, stack.n_classes, self.power)
        return found, partial(_rescore, rule, evidence, stack.n_classes, self.power)

    def _weighted(self, stack: LogitStack) -> tuple[LogitStack, NDArray[np.float64], NDArray[np.float64]]:
        """Return the members of positive weight, with their weights and floors; each video has at least one."""
        share = dict(zip(self.members_, self.weights_, strict=True))
        used = [name for name in stack.members if share[name] > 0]
        if not used:
            raise AlignmentError(f"no member with a positive weight is left among {list(stack.members)}")
        stack = stack.select(used)
        if stack.present is not None and not stack.present.any(axis=1).all():
            row = int(stack.present.any(axis=1).argmin())
            raise AlignmentError(f"no member with a positive weight has {place(row, stack.ids)}; drop the video")
        columns = [self.members_.index(name) for name in used]
        return stack, self.weights_[columns], self.floor_[columns]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_refit": None, "_omega": None}

    def summary(self, bootstrap: int = 0, *, confidence: float = 0.95, random_state: int | None = 0) -> PoolSummary:
        """Return each member's weight, with percentile intervals over `bootstrap` resamples of the fit's videos.

        Scored weights and the linear optimum are refitted on each resample; learned log-linear weights take one
        Newton step from the fit (the one-step bootstrap: Davison and Hinkley 1997, section 7.2.4 discusses it for
        likelihoods), so that a thousand replicates take about a second.

        Raises:
            InputError: the rule comes from a recipe or a pickle, which keep no videos, or an argument is out of range.
        """
        check_is_fitted(self, "weights_")
        refit: Refit | None = getattr(self, "_refit", None)
        omega: NDArray[np.float64] | None = getattr(self, "_omega", None)
        if not isinstance(self.weights, str) or self.weights == "uniform":  # no video has a say in these weights
            refit, omega = self._unmoved, np.ones(1)
        return summarise(
            self.members_,
            self.weights_,
            getattr(self, "temperature_", 1.0),  # votes have none
            refit=refit,
            omega=omega,
            bootstrap=bootstrap,
            confidence=confidence,
            random_state=random_state,
        )

    def _unmoved(self, omega: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.weights_


class Pool(WeightedFuser):
    """What both pools add: learned weights, class weights, a temperature."""

    _rules = (*SCORE_WEIGHTS, "learned")

    temperature_: float
    optimality_gap_: float | None
    weight_sum_: float

    @abstractmethod
    def _learn(
        self,
        stack: LogitStack,
        labels: NDArray[np.int64],
        omega: NDArray[np.float64],
        floors: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], Refit]:
        """Return the weights of a stack sorted by name, and how to refit them; set what else the fit tells."""

    @abstractmethod
    def _combine(self, block: NDArray[np.float32], weights: NDArray[np.float64], ids: Any) -> NDArray[np.float64]:
        """Pool one block (B, M, K) with weights (M,) or (B, M)."""

    def _fit(self, stack: LogitStack, labels: NDArray[np.int64] | None, weight: NDArray[np.float64] | None) -> None:
        self.temperature_, self.optimality_gap_, self.weight_sum_ = 1.0, None, 1.0
        super()._fit(stack, labels, weight)
        if not isinstance(self.weights, str):
            given = self.weights.values() if isinstance(self.weights, Mapping) else self.weights
            with np.errstate(over="ignore"):
                self.weight_sum_ = float(np.sum([float(value) for value in given]))

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.class_weight not in (None, "balanced"):
            raise InputError(f'class_weight: expected None or "balanced", got {self.class_weight!r}')

    def _find(
        self,
        stack: LogitStack,
        labels: NDArray[np.int64],
        omega: NDArray[np.float64],
        floors: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], Refit]:
        learned = self.weights == "learned"
        return (self._learn if learned else super()._find)(stack, labels, omega, floors)

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        stack, weights, floors = self._weighted(stack)
        if stack.present is not None:
            weights = stack.present * weights
        shares = weights / weights.sum(axis=-1, keepdims=True) * (1.0 / self.temperature_)
        out = np.empty((len(stack), stack.n_classes))
        for rows, block in floored_blocks(stack, floors):
            out[rows] = self._combine(
                block, shares if shares.ndim == 1 else shares[rows], None if stack.ids is None else stack.ids[rows]
            )
        return out


def _reordered(refit: Refit, order: NDArray[np.int64], omega: NDArray[np.float64]) -> NDArray[np.float64]:
    return refit(omega)[order]


def _comparable_videos(
    stack: LogitStack, labels: NDArray[np.int64], weight: NDArray[np.float64] | None
) -> tuple[LogitStack, NDArray[np.int64], NDArray[np.float64] | None]:
    """Return the videos that a fit compares members on: those that every member has, and whose weight is not 0."""
    used = np.ones(len(stack), dtype=bool) if stack.present is None else stack.present.all(axis=1)
    if not used.any():
        raise AlignmentError(
            f"expected videos that every member has, to compare the members on; got none among {len(stack)}; leave "
            'out the members that have few, or say weights="uniform"'
        )
    if weight is not None:
        used &= weight > 0
        if not used.any():
            raise InputError("sample_weight: the videos that the fit can use have weights that sum to zero")
    if used.all():
        return stack, labels, weight
    return stack[used], labels[used], None if weight is None else weight[used]


def _video_weights(
    labels: NDArray[np.int64], weight: NDArray[np.float64] | None, class_weight: str | None
) -> NDArray[np.float64]:
    omega = np.ones(len(labels)) if weight is None else weight.copy()
    if class_weight == "balanced":
        omega /= np.bincount(labels, weights=omega)[labels]
    return np.asarray(omega / omega.sum())


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
            "set floor=1e-4 or more"
        )


def _rescore(
    rule: str, evidence: NDArray[Any], n_classes: int, power: float, omega: NDArray[np.float64]
) -> NDArray[np.float64]:
    return score_weights(rule, evidence, omega, n_classes, power)
