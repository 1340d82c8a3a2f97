"""Calibration: one temperature, or a scale and a bias a class; of each member before fusion, or of the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from vidfuse._validate import Kind, as_array, check_labels, place
from vidfuse.cache.source import ArraySource, Rows, Source, fill_log_likelihoods
from vidfuse.cache.stack import LogitStack, Member
from vidfuse.errors import InputError
from vidfuse.fusion.base import Fuser, member_floors
from vidfuse.fusion.learned_log_linear import fit_log_linear
from vidfuse.fusion.learned_passes import Passes
from vidfuse.fusion.pool_base import check_true_class
from vidfuse.fusion.weights import true_scores
from vidfuse.likelihood import log_softmax, mix_floor

__all__ = ["Calibrated", "TemperatureScaling", "VectorScaling"]

_RESIDENT: Final = 1 << 27  # numbers (512 MB of float32) up to which calibrated members are kept
_LOWEST = -100.0  # nats; what -inf enters a vector scaling as


def _checked(log_p: ArrayLike, y: ArrayLike | None = None) -> tuple[NDArray[Any], NDArray[np.int64]]:
    array = as_array(log_p, "log_p")
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] < 2:
        raise InputError(f"expected logits or log-likelihoods (N, K), got {array.dtype} of shape {array.shape}")
    bad = np.isnan(array) | np.isposinf(array)
    if bad.any():
        row = int(bad.any(axis=1).argmax())
        raise InputError(f"log_p: expected finite numbers or -inf, got {array[row][bad[row]][0]} for {place(row)}")
    labels = np.zeros(0, dtype=np.int64) if y is None else check_labels(y, len(array), array.shape[1])
    return array, labels


def _check_true_class(array: NDArray[Any], labels: NDArray[np.int64], omega: NDArray[np.float64]) -> None:
    """Refuse a probability of 0 at the true class, which no temperature makes up for."""
    zero = np.isneginf(array[np.arange(len(array)), labels]) & (omega > 0)
    if zero.any():
        raise InputError(
            f"a calibration cannot use a probability of 0 at the true class: {place(int(zero.argmax()))}; "
            "set floor=1e-4 or more in the fuser, or mix the uniform distribution into these predictions"
        )


def _shares(sample_weight: ArrayLike | None, n: int) -> NDArray[np.float64]:
    weight = np.ones(n) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    if weight.shape != (n,) or not (weight >= 0).all() or not weight.sum() > 0:
        raise InputError(f"sample_weight: expected {n} numbers of at least 0 with a positive sum")
    return np.asarray(weight / weight.sum())


class TemperatureScaling(BaseEstimator):
    """Divide log-likelihoods by one temperature, chosen for the least negative log-likelihood.

    ``log p'(c) = log p(c) / T - log Σ_j exp(log p(j) / T)``; convex in 1/T, 0.01 ≤ T ≤ 100. No class changes its rank.

    Attributes:
        temperature_: T; above 1 where the predictions were overconfident.

    Source:
        Guo, Pleiss, Sun and Weinberger 2017, On calibration of modern neural networks, section 4.2.

    Example:
        >>> log_p = np.log(np.array([[0.99, 0.01], [0.99, 0.01], [0.99, 0.01], [0.01, 0.99]]))
        >>> scaling = TemperatureScaling().fit(log_p, [0, 0, 1, 1])
        >>> round(scaling.temperature_, 3), np.exp(scaling.transform(log_p[:1])).round(2).tolist()
        (4.183, [[0.75, 0.25]])
    """

    temperature_: float

    def fit(self, log_p: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Choose the temperature for log-likelihoods (N, K) and true classes (N,)."""
        array, labels = _checked(log_p, y)
        rows, omega = slice(0, len(array), 1), _shares(sample_weight, len(array))
        _check_true_class(array, labels, omega)
        return self._fit_member(LogitStack([Member("p", ArraySource(array), rows, "log-likelihoods")]), labels, omega)

    def _fit_member(self, one: LogitStack, labels: NDArray[np.int64], omega: NDArray[np.float64]) -> Self:
        """Choose the temperature of a stack of one member, block by block."""
        if not omega.all():
            one, labels, omega = one[omega > 0], labels[omega > 0], omega[omega > 0]
        floors = member_floors(one, "auto")
        check_true_class(one, true_scores(one, labels), floors)
        with Passes(one, labels, omega, floors) as passes:
            self.temperature_ = float(1.0 / fit_log_linear(passes).beta[0])
        return self

    def transform(self, log_p: ArrayLike) -> NDArray[np.float64]:
        """Return calibrated log-likelihoods (N, K)."""
        check_is_fitted(self, "temperature_")
        return log_softmax(_checked(log_p)[0].astype(np.float64) / self.temperature_)


class VectorScaling(BaseEstimator):
    """Give every class a scale and a bias, shrunk to one temperature and no bias.

    ``log p'(c) ∝ a_c · log p(c) + b_c``, which minimises ``NLL + ½·(λ/N)·(Σ(a_c - 1/T)² + Σ b_c²)``, T from
    temperature scaling: with few videos a class it stays near temperature scaling.

    Args:
        shrinkage: λ, the precision of the prior on each scale and bias.

    Attributes:
        scale_: a (K,).
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

    def fit(self, log_p: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Choose scales and biases for log-likelihoods (N, K) and true classes (N,)."""
        array, labels = _checked(log_p, y)
        if not (np.isfinite(self.shrinkage) and self.shrinkage >= 0):
            raise InputError(f"shrinkage: expected a finite number of at least 0, got {self.shrinkage!r}")
        omega = _shares(sample_weight, len(array))
        z = np.maximum(log_softmax(array.astype(np.float64)), _LOWEST)
        centre = 1.0 / TemperatureScaling().fit(array, labels, omega).temperature_
        strength, (n, classes) = self.shrinkage * float(omega @ omega), z.shape

        def objective(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            scale, bias = x[:classes], x[classes:]
            log_q = log_softmax(z * scale + bias)
            value = -float(omega @ log_q[np.arange(n), labels])
            slope = np.exp(log_q)
            slope[np.arange(n), labels] -= 1.0
            slope *= omega[:, None]
            away = scale - centre
            gradient = np.concatenate([(slope * z).sum(axis=0) + strength * away, slope.sum(axis=0) + strength * bias])
            return value + 0.5 * strength * float(away @ away + bias @ bias), gradient

        start = np.concatenate([np.full(classes, centre), np.zeros(classes)])
        bounds = [(0.0, None)] * classes + [(None, None)] * classes
        found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
        self.scale_, self.bias_ = found.x[:classes], found.x[classes:]
        return self

    def transform(self, log_p: ArrayLike) -> NDArray[np.float64]:
        """Return calibrated log-likelihoods (N, K)."""
        check_is_fitted(self, "scale_")
        z = log_softmax(_checked(log_p)[0].astype(np.float64))
        if z.shape[1] != len(self.scale_):
            raise InputError(f"expected {len(self.scale_)} classes, got {z.shape[1]}")
        return log_softmax(np.maximum(z, _LOWEST) * self.scale_ + self.bias_)


@dataclass(frozen=True)
class _Calibrated:
    """A member's calibrated log-likelihoods, computed where they are asked for: a `Source` of a stack."""

    source: Source
    kind: Kind
    floor: float
    calibrator: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def take(self, rows: Rows) -> NDArray[np.float32]:
        log_p = _log_likelihoods(self.source.take(rows), self.kind, self.floor)
        return np.asarray(self.calibrator.transform(log_p), dtype=np.float32)

    def restricted(self, rows: Rows) -> tuple[Source, Rows]:
        source, rows = self.source.restricted(rows)
        return replace(self, source=source), rows


def _log_likelihoods(scores: NDArray[Any], kind: Kind, floor: float) -> NDArray[np.float32]:
    """Return the log-likelihoods (N, K) of scores as they are stored, with the floor that rounded ones need."""
    out = np.empty(scores.shape, dtype=np.float32)
    fill_log_likelihoods(scores, kind, out)
    return mix_floor(out, floor, out=out) if floor > 0 else out


class Calibrated(Fuser):
    """A fuser whose result, or whose members, are calibrated on the videos of the fit.

    Args:
        fuser: the rule; a copy of it is fitted.
        calibrator: `TemperatureScaling()` (where None) or `VectorScaling()`; copies of it are fitted.
        where: "after" calibrates what the fuser predicts; "members" calibrates each member before the fuser is fitted.

    Attributes:
        fuser_: the fitted rule.
        calibrators_: the fitted calibrators: one, or one a member in the order of `members_`.

    Example:
        >>> from vidfuse.fusion.pools import LinearPool
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=200)
        >>> X = rng.normal(size=(200, 2, 3)) + 2.0 * np.eye(3)[y][:, None]
        >>> pool = Calibrated(LinearPool(weights="uniform")).fit(X, y)
        >>> pool.calibrators_[0].temperature_ < 1  # an average of sharp predictions is too flat
        True
    """

    fuser_: Fuser
    calibrators_: list[Any]

    def __init__(self, fuser: Any, calibrator: Any = None, *, where: Literal["after", "members"] = "after") -> None:
        self.fuser = fuser
        self.calibrator = calibrator
        self.where = where

    @property
    def missing(self) -> str:
        """What the inner rule does about missing members."""
        return str(getattr(self.fuser, "missing", "error"))

    @property
    def _takes_views(self) -> bool:  # type: ignore[override]
        return self.where == "after" and bool(self.fuser._takes_views)

    def _fit(self, stack: LogitStack, labels: NDArray[np.int64] | None, weight: NDArray[np.float64] | None) -> None:
        if self.where not in ("after", "members"):
            raise InputError(f'where: expected "after" or "members", got {self.where!r}')
        if labels is None:
            raise InputError("a calibration needs labels")
        base = TemperatureScaling() if self.calibrator is None else self.calibrator
        if self.where == "after":
            self.fuser_ = clone(self.fuser).fit(stack, labels, weight)
            self.calibrators_ = [clone(base).fit(self.fuser_.predict_log_proba(stack), labels, weight)]
            return
        self.calibrators_ = []
        for name in stack.members:
            one, known, share = stack.select([name]), labels, _shares(weight, len(stack))
            if one.present is not None:
                here = np.flatnonzero(one.present[:, 0])
                one, known, share = one[here], known[here], _shares(share[here], len(here))
            calibrator = clone(base)
            if isinstance(calibrator, TemperatureScaling):
                calibrator._fit_member(one, known, share)
            else:
                floor = float(member_floors(one, "auto")[0])
                calibrator.fit(_log_likelihoods(one.scores(name), one.kinds[0], floor), known, share)
            self.calibrators_.append(calibrator)
        self.fuser_ = clone(self.fuser).fit(self._calibrate(stack), labels, weight)

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        if self.where == "after":
            return np.asarray(self.calibrators_[0].transform(self.fuser_.predict_log_proba(stack)))
        return self.fuser_.predict_log_proba(self._calibrate(stack))

    def _calibrate(self, stack: LogitStack) -> LogitStack:
        members = []
        few = len(stack) * len(stack.members) * stack.n_classes <= _RESIDENT
        for own, floor in zip(stack.sources(), member_floors(stack, "auto").tolist(), strict=True):
            calibrator = self.calibrators_[self.members_.index(own.name)]
            source: Source = _Calibrated(own.source, own.kind, floor, calibrator)
            rows = own.rows
            if few:  # computed once; otherwise in every pass, block by block
                source, rows = ArraySource(source.take(rows)), slice(0, len(stack), 1)
            members.append(Member(own.name, source, rows, "log-likelihoods"))
        return LogitStack(members, ids=stack.ids, labels=stack.labels, classes=stack.classes, present=stack.present)
