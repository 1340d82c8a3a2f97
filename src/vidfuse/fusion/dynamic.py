"""Dynamic fusion: weights that depend on the video, and the static pool wherever they do not help."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from vidfuse._checks import check_choice, check_count
from vidfuse.errors import InputError
from vidfuse.fusion.crossfit import even_folds
from vidfuse.fusion.floors import floored_blocks
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule, WeightedSum
from vidfuse.fusion.weighted import check_true_class
from vidfuse.fusion.weights import true_scores
from vidfuse.likelihood import block_rows, log_softmax
from vidfuse.stack.stack import LogitStack

__all__ = ["DynamicPool", "static_sum"]

_REFERENCES: Final = 4000  # videos of the fit that are kept to compare with; memory and time are bounded by it
_FOLDS: Final = 5
_LIKENESS: Final = 1 << 21  # numbers that are compared at once
_ROWS: Final = 64  # videos in a matrix product


class DynamicPool(Rule):
    """Fuse members with weights per video, ``w_im ∝ w_m · exp(Σ_f a_f · x_imf)``, around a static log-linear pool.

    w_m are the static pool's weights, their mean over the classes where it has weights per class; on every video their
    sum over the members stays what it was, and so does what sets a class's weights apart.

    The features x of member m on video i, each centred over the members: its *confidence* (one minus its entropy over
    log K) and the *agreement* of the others (their mean probability of its most probable class); and its *local
    competence*, its mean log-likelihood of the true class on the nearest videos of the fit, in the space of the static
    pool's probabilities (Hellinger distance); of the fit's own videos, on those of other groups. The strengths a are
    fitted with shrinkage to 0. Each fifth of the videos, or of the groups, judges strengths that were fitted on the
    other four: unless the gain in log-likelihood exceeds one standard error, all strengths are 0 and the static pool is
    used as it is. Which fifth a video is in follows from how hard it is for the static pool, not from its place in the
    stack.

    Args:
        pool: the static pool (a copy is fitted): `LogLinearPool()` where None, or another rule that is a log-linear
            pool once it is fitted, such as `SubsetPool(LogLinearPool())`.
        features: "confidence" (with agreement), "competence", or "both".
        neighbours: how many nearest videos of the fit make the local competence.

    Attributes:
        pool_: the fitted static pool.
        strengths_: a, one for each feature.
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

    pool_: Rule
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

    def _fit(self, stack: LogitStack, labels: NDArray[np.int64], weight: NDArray[np.float64] | None) -> None:
        check_choice("features", self.features, ("confidence", "competence", "both"))
        check_count("neighbours", self.neighbours)
        base = LogLinearPool() if self.pool is None else self.pool
        self.pool_ = clone(base).fit(self._as_listed(stack), labels, weight)
        static = static_sum(self.pool_)
        stack = stack.select(static.members)
        if not static.floors.all():
            true = true_scores(stack, labels)
            check_true_class(stack, true if weight is None else np.where(weight > 0, true, np.nan), static.floors)

        chosen = np.arange(len(stack)) if weight is None else np.flatnonzero(weight)
        chosen = chosen[_even_choice(stack[chosen], labels[chosen], static)]
        videos, truth = stack[chosen], labels[chosen]
        share = np.ones(len(chosen)) if weight is None else weight[chosen]
        share = share / share.sum()
        blocks = floored_blocks(videos, static.floors, scales=static.scales)
        log_p = np.concatenate([block.astype(np.float32) for _, block in blocks])
        root = np.exp(0.5 * self.pool_.predict_log_proba(videos))
        self.reference_root_ = root.astype(np.float32)
        self.reference_log_true_ = log_p[np.arange(len(truth)), :, truth].astype(np.float64)
        groups = np.arange(len(chosen)) if videos.groups is None else np.unique(videos.groups, return_inverse=True)[1]
        x = self._describe(log_p, root, groups)

        gains = _held_out_gains(log_p, truth, static, x, share, groups)
        self.gain_ = float(share @ gains)
        spread = np.bincount(groups, weights=share * (gains - self.gain_))  # videos of a group are not independent
        error = float(np.sqrt(spread @ spread))
        self.fallback_ = bool(not self.gain_ > error or len(static.members) < 2)
        self.strengths_ = np.zeros(x.shape[2])
        if not self.fallback_:
            self.strengths_ = _fit_strengths(log_p, truth, static, x, share)

    def choices(self) -> tuple[str, ...]:
        """Return what the static pool chose, and whether weights per video are used."""
        if not hasattr(self, "fallback_"):
            return ()
        gain = f"{self.gain_:+.4f} nats on videos held out"
        return *self.pool_.choices(), f"weights per video: {'not used' if self.fallback_ else 'used'}, {gain}"

    def needed_members(self) -> tuple[str, ...]:
        """Return those of `members_` that a prediction needs: those of the static pool."""
        check_is_fitted(self, "pool_")
        return self.pool_.needed_members() if self.fallback_ else static_sum(self.pool_).members

    def weighted_sum(self) -> WeightedSum | None:
        """Return the static pool's weighted sum where it is used; weights per video are no such sum."""
        check_is_fitted(self, "pool_")
        return self.pool_.weighted_sum() if self.fallback_ else None

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        stack = stack.select([name for name in self.pool_.members_ if name in stack.members])
        log_p_static = self.pool_.predict_log_proba(stack)
        if self.fallback_:
            return log_p_static
        static = static_sum(self.pool_)
        out = np.empty_like(log_p_static)
        for rows, block in floored_blocks(stack.select(static.members), static.floors, scales=static.scales):
            x = self._describe(block, np.exp(0.5 * log_p_static[rows]))
            out[rows] = _pooled(block, static, x, self.strengths_)
        return out

    def _describe(
        self, log_p: NDArray[np.float32], root: NDArray[np.float64], groups: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Return features (N, M, F), centred over members.

        With groups, these are the reference videos themselves: none has a neighbour of its own group.
        """
        parts = []
        if self.features != "competence":
            parts += _confidence(log_p)
        if self.features != "confidence":
            parts.append(self._competence(root, groups))
        x = np.stack(parts, axis=2)
        return np.asarray(x - x.mean(axis=1, keepdims=True))

    def _competence(self, root: NDArray[np.float64], groups: NDArray[np.int64] | None) -> NDArray[np.float64]:
        n = len(self.reference_root_)
        count = min(self.neighbours, n if groups is None else n - int(np.bincount(groups).max()))
        if count < 1:
            return np.zeros((len(root), self.reference_log_true_.shape[1]))
        out = np.empty((len(root), self.reference_log_true_.shape[1]))
        step = max(1, block_rows(max(n, count * out.shape[1]), _LIKENESS) // _ROWS) * _ROWS
        for start in range(0, len(root), step):
            rows = slice(start, min(start + step, len(root)))
            likeness = _products(root[rows].astype(np.float32), self.reference_root_.T)  # the Bhattacharyya coefficient
            if groups is not None:
                likeness[groups[rows, None] == groups] = -1.0
            nearest = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
            out[rows] = self.reference_log_true_[nearest].mean(axis=1)
        return out


@np.errstate(invalid="ignore")  # float32 products may raise the flag for numbers beyond their end
def _products(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a matrix product, each row of which has the same bits whatever rows stand beside it.

    The linear algebra below NumPy takes other sums for other shapes: each product here is of `_ROWS` rows.
    """
    out = np.empty((len(left), right.shape[1]), dtype=np.float32)
    for start in range(0, len(left), _ROWS):
        some = left[start : start + _ROWS]
        padding = np.zeros((_ROWS - len(some), left.shape[1]), dtype=np.float32)
        out[start : start + _ROWS] = (np.concatenate([some, padding]) @ right)[: len(some)]
    return out


def static_sum(pool: Rule) -> WeightedSum:
    """Return a fitted pool's weighted sum of log-likelihoods, members sorted by name, as features are stored.

    Raises:
        InputError: The rule is no log-linear pool.

    Example:
        >>> static_sum(LogLinearPool(weights="uniform").fit(np.zeros((2, 2, 3)))).weights.tolist()
        [[0.5], [0.5]]
    """
    found = pool.weighted_sum()
    if found is None or found.kind != "log-linear":
        raise InputError(f"pool: expected a rule that is a log-linear pool, such as LogLinearPool(), got {pool!r}")
    order = sorted(range(len(found.members)), key=found.members.__getitem__)  # recipes of the first releases: as listed
    members = tuple(found.members[m] for m in order)
    scales = None if found.scales is None else found.scales[order]
    return WeightedSum(found.kind, members, found.weights[order], found.floors[order], scales, found.bias)


def _pooled(
    log_p: NDArray[np.float32], static: WeightedSum, x: NDArray[np.float64], strengths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the pool (N, K) of log-likelihoods (N, M, K) with weights per video.

    With ``e_im = exp(x_im · a)``, scaled so that ``Σ_m β̄_m·e_im = Σ_m β̄_m``, the weights of video i are
    ``β_mc + β̄_m·(e_im - 1)``: those of a class keep their sum. β is (M, 1) or (M, K), β̄ its mean over classes, at
    least 0. Where all strengths a are 0, they are the static pool's own.
    """
    beta = static.weights
    lift = np.exp(np.clip((x * strengths).sum(axis=2), -20.0, 20.0))
    mean = np.maximum(beta.mean(axis=1), 0.0)
    lifted = (lift * mean).sum(axis=1)
    lift *= np.divide(mean.sum(), lifted, out=np.zeros_like(lifted), where=lifted > 0)[:, None]
    total = np.zeros((len(log_p), log_p.shape[2]))
    if static.bias is not None:
        total += static.bias
    for m in range(len(beta)):
        weights = beta[m] + mean[m] * (lift[:, m, None] - 1)
        if weights.all():
            total += weights * log_p[:, m]
        else:  # no weight, no veto: 0 · -inf is left out
            used = np.broadcast_to(weights != 0, total.shape)
            total += np.multiply(weights, log_p[:, m], out=np.zeros_like(total), where=used)
    return log_softmax(total, out=total)


def _losses(
    log_p: NDArray[np.float32],
    truth: NDArray[np.int64],
    static: WeightedSum,
    x: NDArray[np.float64],
    strengths: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return each video's negative log-likelihood (N,)."""
    return -_pooled(log_p, static, x, strengths)[np.arange(len(truth)), truth]


def _fit_strengths(
    log_p: NDArray[np.float32],
    truth: NDArray[np.int64],
    static: WeightedSum,
    x: NDArray[np.float64],
    omega: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Fit the strengths: mean negative log-likelihood plus ½·‖a‖²/N."""
    share = omega / omega.sum()

    def objective(a: NDArray[np.float64]) -> float:
        return float(share @ _losses(log_p, truth, static, x, a)) + 0.5 * float(a @ a) / len(truth)

    bounds = [(-10.0, 10.0)] * x.shape[2]
    start = np.zeros(x.shape[2])
    found = minimize(objective, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 30})
    return np.asarray(found.x)


def _even_choice(stack: LogitStack, labels: NDArray[np.int64], static: WeightedSum) -> NDArray[np.int64]:
    """Return at most `_REFERENCES` rows, sorted by the static pool's loss: from easy to hard.

    This order follows from the videos alone, not from their places in the stack or the classes' numbers; folds that
    are dealt by it have equally many hard videos. The members' own losses break ties.
    """
    own = np.empty((len(stack), len(stack.members)))
    loss = np.empty(len(stack))
    for rows, block in floored_blocks(stack, static.floors, scales=static.scales):
        own[rows] = block[np.arange(len(block)), :, labels[rows]]
        loss[rows] = _losses(block, labels[rows], static, np.zeros((*block.shape[:2], 0)), np.zeros(0))
    order = np.lexsort((*own.T, loss))
    places = np.linspace(0, len(order) - 1, min(len(order), _REFERENCES))
    return order[np.unique(places.round().astype(np.int64))]


def _held_out_gains(
    log_p: NDArray[np.float32],
    truth: NDArray[np.int64],
    static: WeightedSum,
    x: NDArray[np.float64],
    share: NDArray[np.float64],
    groups: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return each video's gain over the static pool (N,), by strengths that were fitted on the other folds."""
    gains = _losses(log_p, truth, static, x, np.zeros(x.shape[2]))
    fold = even_folds(gains, _FOLDS, groups)
    for held in np.unique(fold):
        fitted, judged = fold != held, fold == held
        if not fitted.any():
            return np.zeros(len(truth))
        strengths = _fit_strengths(log_p[fitted], truth[fitted], static, x[fitted], share[fitted])
        gains[judged] -= _losses(log_p[judged], truth[judged], static, x[judged], strengths)
    return gains


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
