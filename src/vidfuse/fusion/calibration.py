"""Calibration: one temperature, or a scale and a bias a class; of each member before fusion, or of the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from vidfuse._checks import Kind, Rows, as_array, check_choice, check_labels, place
from vidfuse.errors import AlignmentError, InputError
from vidfuse.fusion._solver.deviations import LOWEST, ClassVideos, fit_deviations
from vidfuse.fusion._solver.shared import FitVideos, member_scales
from vidfuse.fusion.crossfit import even_folds, out_of_fold
from vidfuse.fusion.floors import floored_blocks, member_floors
from vidfuse.fusion.rule import Wrapper, check_sample_weight
from vidfuse.fusion.weights import true_scores
from vidfuse.likelihood import block_rows, log_softmax
from vidfuse.stack.source import ArraySource, DerivedSource, Source, compose_rows, fill_log_likelihoods
from vidfuse.stack.stack import LogitStack, Member

__all__ = ["Calibrated", "TemperatureScaling", "VectorScaling"]

_RESIDENT: Final = 1 << 27  # numbers (512 MB of float32) up to which calibrated members are kept
_FOLDS: Final = 5
_WEAKEST: Final = 1e-6  # the weakest prior of vector scaling, in videos: without any, its optimum may be infinite


def _checked(log_p: ArrayLike, ids: NDArray[np.str_] | None = None) -> NDArray[Any]:
    array = as_array(log_p, "log_p")
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] < 2:
        raise InputError(f"expected logits or log-likelihoods (N, K), got {array.dtype} of shape {array.shape}")
    peak = array.max(axis=1)  # NaN where a row has one
    bad = ~np.isfinite(peak)
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"log_p: expected numbers that are finite or -inf, and one finite number a row or more, got a highest one "
            f"of {peak[row]} for {place(row, ids)}; drop the video or predict it again"
        )
    return array


def _check_true_class(
    one: LogitStack, labels: NDArray[np.int64], omega: NDArray[np.float64], advice: str, member: str | None = None
) -> None:
    """Refuse a probability of 0 at the true class, which no temperature makes up for."""
    zero = np.isneginf(true_scores(one, labels)[0]) & (omega > 0)
    if zero.any():
        raise InputError(
            "a calibration cannot use a probability of 0 at the true class: "
            f"{place(int(zero.argmax()), one.ids, member)}; {advice}"
        )


def _shares(sample_weight: ArrayLike | None, n: int) -> NDArray[np.float64]:
    weight = check_sample_weight(sample_weight, n)
    return np.full(n, 1.0 / n) if weight is None else weight / weight.sum()


def _alone(log_p: NDArray[Any], ids: NDArray[np.str_] | None = None) -> LogitStack:
    """Return log-likelihoods (N, K) as a stack of one member."""
    return LogitStack([Member("p", ArraySource(log_p), slice(0, len(log_p), 1), "log-likelihoods")], ids=ids)


def _blocks(n: int, classes: int) -> Iterator[slice]:
    step = block_rows(classes)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n), 1)


class _Scaling(BaseEstimator, ABC):
    """What the calibrators share: checks, and a fit that reads its videos block by block."""

    def fit(self, log_p: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Choose the parameters for log-likelihoods (N, K) and true classes (N,)."""
        array = _checked(log_p)
        labels = check_labels(y, len(array), array.shape[1])
        one, omega = _alone(array), _shares(sample_weight, len(array))
        _check_true_class(one, labels, omega, "mix the uniform distribution into these predictions")
        return self._fit_one(one, labels, omega)

    def _fit_one(self, one: LogitStack, labels: NDArray[np.int64], omega: NDArray[np.float64]) -> Self:
        """Choose the parameters for a stack of one member, on the videos that it has and whose weight is not 0."""
        used = omega > 0 if one.present is None else (omega > 0) & one.present[:, 0]
        if not used.all():
            one, labels, omega = one[used], labels[used], omega[used]
        own, floor = one.sources()[0], float(member_floors(one, "auto")[0])
        if floor > 0:
            own = _derived(own, (len(one), one.n_classes), floor, keep=len(one) * one.n_classes <= _RESIDENT)
        self._choose(LogitStack([own], ids=one.ids), labels, omega / omega.sum())
        return self

    @abstractmethod
    def _choose(self, one: LogitStack, labels: NDArray[np.int64], omega: NDArray[np.float64]) -> None:
        """Set the fitted attributes for a member's log-likelihoods; the weights are positive and sum to 1."""

    @abstractmethod
    def transform(self, log_p: ArrayLike) -> NDArray[np.float64]:
        """Return calibrated log-likelihoods (N, K)."""


class TemperatureScaling(_Scaling):
    """Divide log-likelihoods by one temperature, chosen for the least negative log-likelihood.

    ``log p'(c) = log p(c) / T - log Σ_j exp(log p(j) / T)``, convex in 1/T; no class changes its rank. Half a video in
    N + 1 counts as the best wrong class (Platt 1999, section 2.2): predictions that are right on all N videos get
    the temperature that N videos can justify, not one of 0. Log-likelihoods twice as large get twice the temperature.

    Attributes:
        temperature_: T; above 1 where the predictions were overconfident.

    Source:
        Guo, Pleiss, Sun and Weinberger 2017, On calibration of modern neural networks, section 4.2.

    Example:
        >>> log_p = np.log(np.array([[0.99, 0.01], [0.99, 0.01], [0.99, 0.01], [0.01, 0.99]]))
        >>> scaling = TemperatureScaling().fit(log_p, [0, 0, 1, 1])
        >>> round(scaling.temperature_, 3), np.exp(scaling.transform(log_p[:1])).round(2).tolist()
        (5.423, [[0.7, 0.3]])
    """

    temperature_: float

    def _choose(self, one: LogitStack, labels: NDArray[np.int64], omega: NDArray[np.float64]) -> None:
        self.temperature_ = float(1.0 / member_scales(one, labels, omega)[0])

    def transform(self, log_p: ArrayLike) -> NDArray[np.float64]:
        """Return calibrated log-likelihoods (N, K)."""
        check_is_fitted(self, "temperature_")
        scaled = np.divide(_checked(log_p), self.temperature_, dtype=np.float64)
        return log_softmax(scaled, out=scaled)


class VectorScaling(_Scaling):
    """Give every class a scale and a bias, shrunk to one temperature and no bias.

    ``log p'(c) ∝ a_c · log p(c) + b_c``, which minimises ``NLL + ½·(λ/N)·(Σ(a_c - 1/T)² + Σ b_c²)``, T from
    temperature scaling: with few videos a class it stays near temperature scaling.

    Args:
        shrinkage: λ, the precision of the prior on each scale and bias; at least 1e-6 is used, as an optimum without
            any may be infinite.

    Attributes:
        scale_: a (K,); below 0 where that is what the videos say.
        bias_: b (K,).

    Source:
        Guo, Pleiss, Sun and Weinberger 2017, On calibration of modern neural networks, section 4.2 (unshrunk).

    Example:
        >>> log_p = np.log(np.array([[0.6, 0.4], [0.6, 0.4], [0.6, 0.4], [0.4, 0.6]]))
        >>> VectorScaling(shrinkage=0.01).fit(log_p, [0, 0, 0, 0]).transform(log_p).argmax(axis=1).tolist()
        [0, 0, 0, 0]
    """

    scale_: NDArray[np.float64]
    bias_: NDArray[np.float64]

    def __init__(self, shrinkage: float = 10.0) -> None:
        self.shrinkage = shrinkage

    def _choose(self, one: LogitStack, labels: NDArray[np.int64], omega: NDArray[np.float64]) -> None:
        if not (np.isfinite(self.shrinkage) and self.shrinkage >= 0):
            raise InputError(f"shrinkage: expected a finite number of at least 0, got {self.shrinkage!r}")
        centre = 1.0 / TemperatureScaling()._fit_one(one, labels, omega).temperature_
        videos = FitVideos(one, labels, omega, np.zeros(1))
        precision = np.full(2, max(self.shrinkage, _WEAKEST) / videos.effective)
        with ClassVideos(videos, np.array([centre])) as laid_out:
            scale, self.bias_ = fit_deviations(laid_out, precision).parameters.T
        self.scale_ = centre + scale

    def transform(self, log_p: ArrayLike) -> NDArray[np.float64]:
        """Return calibrated log-likelihoods (N, K)."""
        check_is_fitted(self, "scale_")
        z = _checked(log_p).astype(np.float64)
        if z.shape[1] != len(self.scale_):
            raise InputError(f"expected {len(self.scale_)} classes, got {z.shape[1]}")
        log_softmax(z, out=z)
        np.maximum(z, LOWEST, out=z)
        z *= self.scale_
        z += self.bias_
        return log_softmax(z, out=z)


@dataclass(frozen=True)
class _Calibrated(DerivedSource):
    """A member's log-likelihoods (N, K), floored and calibrated, computed where they are asked for."""

    kind: Kind
    floor: float
    calibrator: Any

    def take(self, rows: Rows) -> NDArray[np.float32]:
        scores = self.source.take(rows)
        log_p = np.empty(scores.shape, dtype=np.float32)
        fill_log_likelihoods(scores, self.kind, log_p, floor=self.floor)
        return log_p if self.calibrator is None else np.asarray(self.calibrator.transform(log_p), dtype=np.float32)


def _derived(own: Member, shape: tuple[int, int], floor: float, calibrator: Any = None, *, keep: bool) -> Member:
    """Return a member's floored, calibrated log-likelihoods (N, K): kept, or computed block by block in every pass."""
    source: Source = _Calibrated(own.source, own.kind, floor, calibrator)
    if not keep:
        return Member(own.name, source, own.rows, "log-likelihoods")
    kept = np.empty(shape, dtype=np.float32)
    for block in _blocks(*shape):
        kept[block] = source.take(compose_rows(own.rows, block))
    return Member(own.name, ArraySource(kept), slice(0, len(kept), 1), "log-likelihoods")


class Calibrated(Wrapper):
    """A rule whose result, or whose members, are calibrated on the videos of the fit.

    Args:
        rule: the rule; a copy of it is fitted.
        calibrator: `TemperatureScaling()` (where None) or `VectorScaling()`; copies of it are fitted.
        where: "after" calibrates what the rule predicts for videos that it was not fitted on (five folds, groups kept
            together; too few videos for that: those of the fit); "members" calibrates each member before the rule is
            fitted.

    Attributes:
        rule_: the fitted rule.
        calibrators_: the fitted calibrators: one, or one a member in the order of `members_`.

    Example:
        >>> from vidfuse.fusion.linear import LinearPool
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=200)
        >>> X = rng.normal(size=(200, 2, 3)) + 2.0 * np.eye(3)[y][:, None]
        >>> pool = Calibrated(LinearPool(weights="uniform")).fit(X, y)
        >>> pool.calibrators_[0].temperature_ < 1  # an average of sharp predictions is too flat
        True
    """

    calibrators_: list[Any]

    def __init__(self, rule: Any, calibrator: Any = None, *, where: Literal["after", "members"] = "after") -> None:
        self.rule = rule
        self.calibrator = calibrator
        self.where = where

    @property
    def takes_views(self) -> bool:  # type: ignore[override]
        """Whether the inner rule takes views; members are calibrated without."""
        return self.where == "after" and self.rule.takes_views

    def _fit(self, stack: LogitStack, labels: NDArray[np.int64], weight: NDArray[np.float64] | None) -> None:
        check_choice("where", self.where, ("after", "members"))
        base = TemperatureScaling() if self.calibrator is None else self.calibrator
        omega = _shares(weight, len(stack))
        if self.where == "after":
            self.rule_ = clone(self.rule).fit(self._as_listed(stack), labels, weight)
            fused = _alone(_checked(self._held_out(stack, labels, weight), stack.ids), stack.ids)
            _check_true_class(fused, labels, omega, "set floor=1e-4 or more in the rule")
            self.calibrators_ = [_fitted(base, fused, labels, omega)]
            return
        self.calibrators_ = []
        for name in stack.members:
            one = stack.select([name])
            if one.present is not None and not omega[one.present[:, 0]].any():
                raise AlignmentError(
                    f"expected videos of positive weight to calibrate every member on, got none that member {name!r} "
                    "has; leave it out"
                )
            advice = 'give this member as kind="probabilities", which have a floor, or calibrate with where="after"'
            _check_true_class(one, labels, omega, advice, name)
            self.calibrators_.append(_fitted(base, one, labels, omega))
        self.rule_ = clone(self.rule).fit(self._as_listed(self._calibrate(stack)), labels, weight)

    def _held_out(
        self, stack: LogitStack, labels: NDArray[np.int64], weight: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Return the rule's log-likelihoods (N, K) of the fit's videos, each by a copy that was fitted on other folds.

        The fitted rule's own ones where it learns nothing from labels, or where a fold would leave no video to fit on.
        """
        own = _checked(self.rule_.predict_log_proba(stack), stack.ids)
        units = len(stack) if stack.groups is None else len(np.unique(stack.groups))
        if not self.rule.needs_labels or units < 2 * _FOLDS:
            return own
        fold = even_folds(-own[np.arange(len(own)), labels], _FOLDS, stack.groups)
        splits = [(np.flatnonzero(fold != index), np.flatnonzero(fold == index)) for index in range(_FOLDS)]
        if weight is not None and not all(weight[inside].any() for inside, _ in splits):
            return own
        return out_of_fold(self.rule, self._as_listed(stack), labels, splits, weight, self.rule_)

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        if self.where == "members":
            return self.rule_.predict_log_proba(self._calibrate(stack))
        log_p = self.rule_.predict_log_proba(stack)
        for rows in _blocks(*log_p.shape):
            log_p[rows] = self.calibrators_[0].transform(log_p[rows])
        return log_p

    def _calibrate(self, stack: LogitStack) -> LogitStack:
        keep = len(stack) * len(stack.members) * stack.n_classes <= _RESIDENT
        calibrators = dict(zip(self.members_, self.calibrators_, strict=True))
        members = [
            _derived(own, (len(stack), stack.n_classes), floor, calibrators[own.name], keep=keep)
            for own, floor in zip(stack.sources(), member_floors(stack, "auto").tolist(), strict=True)
        ]
        return stack.changed(members)


def _fitted(base: Any, one: LogitStack, labels: NDArray[np.int64], omega: NDArray[np.float64]) -> Any:
    """Fit a copy of a calibrator; one of another kind gets its log-likelihoods in one array."""
    calibrator = clone(base)
    if isinstance(calibrator, _Scaling):
        return calibrator._fit_one(one, labels, omega)
    here = slice(None) if one.present is None else one.present[:, 0]
    one = one[here]
    log_p = np.concatenate([block[:, 0].copy() for _, block in floored_blocks(one, member_floors(one, "auto"))])
    return calibrator.fit(log_p, labels[here], omega[here])
