"""Dynamic fusion: weights that depend on the video, and the static pool wherever they do not help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.base import clone

from vidfuse.errors import InputError
from vidfuse.fusion.base import Fuser, check_presence, floored_blocks
from vidfuse.fusion.pool_base import check_true_class
from vidfuse.fusion.pools import LogLinearPool
from vidfuse.fusion.weights import true_scores
from vidfuse.likelihood import block_rows, log_linear_pool
from vidfuse.stack.stack import LogitStack

__all__ = ["DynamicPool"]

_REFERENCES: Final = 4000  # videos of the fit that are kept to compare with; memory and time are bounded by it
_LIKENESS: Final = 1 << 21  # numbers that are compared at once
_FEATURES: Final = {"confidence": 2, "competence": 1, "both": 3}


class DynamicPool(Fuser):
    """Fuse members with weights per video, ``w_im ∝ w_m · exp(Σ_f a_f · x_imf)``, around a static log-linear pool.

    The features x of member m on video i, each centred over the members: its *confidence* (one minus its entropy over
    log K) and the *agreement* of the others (their mean probability of its most probable class); and its *local
    competence*, its mean log-likelihood of the true class on the nearest videos of the fit, in the space of the static
    pool's probabilities (Hellinger distance). The strengths a are fitted with shrinkage to 0. Half of the videos
    judge strengths that were fitted on the other half: unless the gain in log-likelihood exceeds one standard error,
    all strengths are 0 and the static pool is used as it is.

    Args:
        pool: the static pool, a `LogLinearPool` (a copy is fitted); None is the default pool.
        features: "confidence" (with agreement), "competence", or "both".
        neighbours: how many nearest videos of the fit make the local competence.

    Attributes:
        pool_: the fitted static pool.
        strengths_: a, one a feature.
        gain_: the held-out gain over the static pool, in nats a video.
        fallback_: whether the static pool is used.

    Source:
        Woods, Kegelmeyer and Bowyer 1997, Combination of multiple classifiers using local accuracy estimates; Cruz,
        Sabourin and Cavalcanti 2018, Dynamic classifier selection: recent advances, sections 3 and 4 (fallbacks).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=200)
        >>> X = rng.normal(size=(200, 2, 3)) + 2.0 * np.eye(3)[y][:, None]
        >>> pool = DynamicPool().fit(X, y)
        >>> bool(pool.score(X, y) > 0.9), pool.fallback_ in (True, False)
        (True, True)
    """

    pool_: LogLinearPool
    strengths_: NDArray[np.float64]
    gain_: float
    fallback_: bool

    def __init__(
        self,
        pool: Any = None,
        *,
        features: Literal["confidence", "competence", "both"] = "both",
        neighbours: int = 20,
    ) -> None:
        self.pool = pool
        self.features = features
        self.neighbours = neighbours

    def _fit(self, stack: LogitStack, labels: NDArray[np.int64] | None, weight: NDArray[np.float64] | None) -> None:
        base = LogLinearPool() if self.pool is None else self.pool
        if not isinstance(base, LogLinearPool):
            raise InputError(f"pool: expected a LogLinearPool, got {type(base).__name__}")
        if self.features not in _FEATURES:
            raise InputError(f"features: expected one of {', '.join(map(repr, _FEATURES))}, got {self.features!r}")
        if not self.neighbours >= 1:
            raise InputError(f"neighbours: expected at least 1, got {self.neighbours!r}")
        if labels is None:
            raise InputError("dynamic weights need labels")
        check_presence(stack, None)
        self.pool_ = clone(base).fit(stack, labels, weight)
        if not self.pool_.floor_.all():
            true = true_scores(stack, labels)
            check_true_class(stack, true if weight is None else np.where(weight > 0, true, np.nan), self.pool_.floor_)
        counted = np.arange(len(stack)) if weight is None else np.flatnonzero(weight)
        places = np.linspace(0, len(counted) - 1, min(len(counted), _REFERENCES))
        chosen = counted[np.unique(places.round().astype(np.int64))]
        videos, truth = stack[chosen].select(sorted(stack.members)), labels[chosen]
        omega = np.ones(len(chosen)) if weight is None else weight[chosen]
        columns = [stack.members.index(name) for name in videos.members]
        floors = self.pool_.floor_[columns]
        log_p = np.concatenate([block.astype(np.float32) for _, block in floored_blocks(videos, floors)])
        root = np.exp(0.5 * self.pool_.predict_log_proba(videos))
        self.reference_root_ = root.astype(np.float32)
        self.reference_log_true_ = log_p[np.arange(len(truth)), :, truth].astype(np.float64)
        x = self._describe(log_p, root, own=True)
        shared = self.pool_.weights_[columns]
        half = np.zeros(len(truth), dtype=bool)
        half[np.argsort(truth, kind="stable")[::2]] = True
        gains = np.zeros(len(truth))
        static = self._loss(log_p, truth, shared, x, np.zeros(x.shape[2]))
        for fitted, judged in ((half, ~half), (~half, half)):
            if fitted.any() and judged.any() and omega[fitted].any():
                strengths = self._strengths(log_p[fitted], truth[fitted], shared, x[fitted], omega[fitted])
                gains[judged] = static[judged] - self._loss(log_p[judged], truth[judged], shared, x[judged], strengths)
        share = omega / omega.sum()
        self.gain_ = float(share @ gains)
        error = float(np.sqrt(share**2 @ (gains - self.gain_) ** 2))
        self.fallback_ = bool(not self.gain_ > error or len(shared) < 2)
        self.strengths_ = np.zeros(x.shape[2])
        if not self.fallback_:
            self.strengths_ = self._strengths(log_p, truth, shared, x, omega)

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        static = self.pool_.predict_log_proba(stack)
        if self.fallback_:
            return static
        columns = [self.members_.index(name) for name in stack.members]
        shared = self.pool_.weights_[columns]
        out = np.empty_like(static)
        for rows, block in floored_blocks(stack, self.pool_.floor_[columns]):
            x = self._describe(block, np.exp(0.5 * static[rows]), own=False)
            out[rows] = log_linear_pool(block, self._weights(shared, x, self.strengths_))
        return out

    def _weights(
        self, shared: NDArray[np.float64], x: NDArray[np.float64], strengths: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return each video's weights over temperature (N, M), with the static pool's sum."""
        raw = shared * np.exp(np.clip(x @ strengths, -20.0, 20.0))
        return np.asarray(raw / raw.sum(axis=1, keepdims=True) / self.pool_.temperature_)

    def _loss(
        self,
        log_p: NDArray[np.float32],
        truth: NDArray[np.int64],
        shared: NDArray[np.float64],
        x: NDArray[np.float64],
        strengths: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        pooled = log_linear_pool(log_p, self._weights(shared, x, strengths))
        return -pooled[np.arange(len(truth)), truth]

    def _strengths(
        self,
        log_p: NDArray[np.float32],
        truth: NDArray[np.int64],
        shared: NDArray[np.float64],
        x: NDArray[np.float64],
        omega: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Fit the strengths: mean negative log-likelihood plus ½·‖a‖²/N."""
        share = omega / omega.sum()

        def objective(a: NDArray[np.float64]) -> float:
            penalty = 0.5 * float(a @ a) / len(truth)
            return float(share @ self._loss(log_p, truth, shared, x, a)) + penalty

        bounds = [(-10.0, 10.0)] * x.shape[2]
        found = minimize(objective, np.zeros(x.shape[2]), method="L-BFGS-B", bounds=bounds, options={"maxiter": 30})
        return np.asarray(found.x)

    def _describe(self, log_p: NDArray[np.float32], root: NDArray[np.float64], *, own: bool) -> NDArray[np.float64]:
        """Return features (N, M, F), centred over members; `own` leaves a video out of its own neighbours."""
        parts: list[Callable[[], list[NDArray[np.float64]]]] = []
        if self.features != "competence":
            parts.append(lambda: _confidence(log_p))
        if self.features != "confidence":
            parts.append(lambda: [self._competence(root, own)])
        x = np.stack([feature for part in parts for feature in part()], axis=2)
        return np.asarray(x - x.mean(axis=1, keepdims=True))

    def _competence(self, root: NDArray[np.float64], own: bool) -> NDArray[np.float64]:
        n = len(self.reference_root_)
        count = min(self.neighbours, n - 1 if own else n)
        if count < 1:
            return np.zeros((len(root), self.reference_log_true_.shape[1]))
        out = np.empty((len(root), self.reference_log_true_.shape[1]))
        step = block_rows(max(n, count * out.shape[1]), _LIKENESS)
        for start in range(0, len(root), step):
            rows = slice(start, min(start + step, len(root)))
            likeness = root[rows].astype(np.float32) @ self.reference_root_.T  # the Bhattacharyya coefficient
            if own:
                likeness[np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)] = -1.0
            nearest = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
            out[rows] = self.reference_log_true_[nearest].mean(axis=1)
        return out


def _confidence(log_p: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """Return each member's confidence and the others' agreement with it, both (N, M), block by block."""
    n, members, classes = log_p.shape
    confidence, agreement = np.empty((n, members)), np.empty((n, members))
    step = block_rows(members * classes)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        p = np.exp(log_p[rows].astype(np.float64))
        negative = np.multiply(p, log_p[rows], out=np.zeros_like(p), where=p > 0).sum(axis=2)
        chosen = p.argmax(axis=2)
        said = np.take_along_axis(p.sum(axis=1), chosen, axis=1)  # by all members, of each one's class
        others = said - np.take_along_axis(p, chosen[:, :, None], axis=2)[:, :, 0]
        confidence[rows], agreement[rows] = 1.0 + negative / np.log(classes), others / max(members - 1, 1)
    return [confidence, agreement]
