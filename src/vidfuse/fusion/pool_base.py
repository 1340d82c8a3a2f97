"""What both opinion pools share: weights by every rule, floors, missing members, the summary of the weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from vidfuse._validate import check_weights, place
from vidfuse.cache.stack import LogitStack
from vidfuse.errors import AlignmentError, InputError
from vidfuse.fusion.base import Floor, Fuser, Missing, floored_blocks, member_floors
from vidfuse.fusion.summary import PoolSummary, Refit, summarise
from vidfuse.fusion.weights import SCORE_WEIGHTS, member_hits, score_weights, true_log_likelihoods

__all__ = ["Pool", "Weights", "check_true_class"]

Weights = str | Sequence[float] | Mapping[str, float] | NDArray[np.float64]


class Pool(Fuser):
    """What both pools share: weights by every rule, floors, missing members, the summary."""

    weights: Weights
    power: float
    floor: Floor
    class_weight: Literal["balanced"] | None
    missing: Missing
    weights_: NDArray[np.float64]
    temperature_: float
    floor_: NDArray[np.float64]
    optimality_gap_: float | None
    weight_sum_: float
    n_missing_: NDArray[np.int64]

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
    def _default_floor(self) -> float:
        """Return the floor that "auto" gives to members whose logits are known."""

    @abstractmethod
    def _combine(self, block: NDArray[np.float32], weights: NDArray[np.float64], ids: Any) -> NDArray[np.float64]:
        """Pool one block (B, M, K) with weights (M,) or (B, M)."""

    def _needs_labels(self) -> bool:
        return self.class_weight is not None or (isinstance(self.weights, str) and self.weights != "uniform")

    def _fit(self, stack: LogitStack, labels: NDArray[np.int64] | None, weight: NDArray[np.float64] | None) -> None:
        self._check_parameters()
        order = sorted(stack.members)
        back = np.array([order.index(name) for name in stack.members])
        floors = member_floors(stack, self.floor, self._default_floor())
        self.floor_ = floors
        self.temperature_, self.optimality_gap_, self.weight_sum_ = 1.0, None, 1.0
        self.n_missing_ = np.zeros(len(order), dtype=np.int64)
        self._refit: Refit | None = None
        self._omega: NDArray[np.float64] | None = None
        if not isinstance(self.weights, str):
            self.weights_ = check_weights(self.weights, stack.members)
            given = self.weights.values() if isinstance(self.weights, Mapping) else self.weights
            self.weight_sum_ = float(np.sum([float(value) for value in given]))
            return
        stack, labels, weight = self._complete(stack, labels, weight)
        if self.weights == "uniform" or labels is None:
            self.weights_ = np.full(len(order), 1.0 / len(order))
            return
        omega = _video_weights(labels, weight, self.class_weight)
        stack, floors = stack.select(order), floors[np.argsort(back)]
        if self.weights == "learned":
            found, refit = self._learn(stack, labels, omega, floors)
        else:
            by_loss = self.weights == "inverse-nll"
            evidence = true_log_likelihoods(stack, labels, floors) if by_loss else member_hits(stack, labels)
            found = score_weights(self.weights, evidence, omega, stack.n_classes, self.power)
            refit = partial(_rescore, self.weights, evidence, stack.n_classes, self.power)
        self.weights_ = found[back]
        self._refit, self._omega = refit, omega
        self._back = back

    def _check_parameters(self) -> None:
        known = (*SCORE_WEIGHTS, "learned")
        if isinstance(self.weights, str) and self.weights not in known:
            raise InputError(
                f"weights: expected one of {', '.join(map(repr, known))}, numbers or {{member: number}}, "
                f"got {self.weights!r}"
            )
        if self.class_weight not in (None, "balanced"):
            raise InputError(f'class_weight: expected None or "balanced", got {self.class_weight!r}')
        if self.missing not in ("error", "renormalise"):
            raise InputError(f'missing: expected "error" or "renormalise", got {self.missing!r}')

    def _complete(
        self, stack: LogitStack, labels: NDArray[np.int64] | None, weight: NDArray[np.float64] | None
    ) -> tuple[LogitStack, NDArray[np.int64] | None, NDArray[np.float64] | None]:
        """Return the videos that every member has: what a fit compares the members on."""
        if stack.present is None:
            return stack, labels, weight
        self.n_missing_ = (~stack.present).sum(axis=0)
        whole = stack.present.all(axis=1)
        if self.missing != "renormalise" or not whole.any():
            raise AlignmentError(
                f"{int((~whole).sum())} of {len(stack)} videos lack the scores of some member; "
                + ("no video has all members" if self.missing == "renormalise" else 'say missing="renormalise" '
                   "to fit on the others and to share an absent member's weight")
            )  # fmt: skip
        kept = stack[whole]
        return kept, None if labels is None else labels[whole], None if weight is None else weight[whole]

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        columns = [self.members_.index(name) for name in stack.members]
        scale = 1.0 / self.temperature_
        used = [name for name, column in zip(stack.members, columns, strict=True) if self.weights_[column] > 0]
        if not used:
            raise AlignmentError(f"no member with a positive weight is left among {list(stack.members)}")
        stack = stack.select(used)
        columns = [self.members_.index(name) for name in used]
        weights, floors = self.weights_[columns], self.floor_[columns]
        shares = weights / weights.sum() * scale
        out = np.empty((len(stack), stack.n_classes))
        if stack.present is not None:
            rows_shares = stack.present * weights
            total = rows_shares.sum(axis=1, keepdims=True)
            if not total.all():
                row = int((total[:, 0] == 0).argmax())
                raise AlignmentError(f"no member with a positive weight has {place(row, stack.ids)}; drop the video")
            shares = rows_shares / total * scale
        for rows, block in floored_blocks(stack, floors):
            out[rows] = self._combine(
                block, shares if shares.ndim == 1 else shares[rows], None if stack.ids is None else stack.ids[rows]
            )
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_refit": None, "_omega": None}

    def summary(self, bootstrap: int = 0, *, confidence: float = 0.95, random_state: int | None = 0) -> PoolSummary:
        """Return each member's weight, with percentile intervals over `bootstrap` resamples of the fit's videos.

        Scored weights and the linear optimum are refitted on each resample; learned log-linear weights take one
        Newton step from the fit (the one-step bootstrap: Davison and Hinkley 1997, section 7.2.4 discusses it for
        likelihoods), so that a thousand replicates take about a second.

        Raises:
            InputError: the pool comes from a recipe or a pickle, which keep no videos, or an argument is out of range.
        """
        check_is_fitted(self, "weights_")
        inner: Refit | None = getattr(self, "_refit", None)
        omega: NDArray[np.float64] | None = getattr(self, "_omega", None)
        refit: Refit | None = None
        if not self._needs_labels():  # no video has a say in these weights
            refit, omega = self._unmoved, np.ones(1)
        elif inner is not None:
            refit = partial(_reordered, inner, self._back)
        return summarise(
            self.members_,
            self.weights_,
            self.temperature_,
            refit=refit,
            omega=omega,
            bootstrap=bootstrap,
            confidence=confidence,
            random_state=random_state,
        )

    def _unmoved(self, omega: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.weights_


def _reordered(refit: Refit, order: NDArray[np.int64], omega: NDArray[np.float64]) -> NDArray[np.float64]:
    return refit(omega)[order]


def _video_weights(
    labels: NDArray[np.int64], weight: NDArray[np.float64] | None, class_weight: str | None
) -> NDArray[np.float64]:
    omega = np.ones(len(labels)) if weight is None else weight.copy()
    if class_weight == "balanced":
        totals = np.bincount(labels, weights=omega)
        omega /= np.where(totals > 0, totals, 1.0)[labels]
    if not omega.sum() > 0:
        raise InputError("sample_weight: the videos that the fit can use have weights that sum to zero")
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
