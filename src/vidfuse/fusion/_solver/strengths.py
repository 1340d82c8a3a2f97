"""How strongly the learned weights are held: the shared ones to weights by score, those per class to the shared ones.

Shared weights are pulled by a strength that a rule, folds or the user chooses (`choose_shrinkage`). For weights per
class it is an average over strengths. There a strength is the precision of the prior on a class's deviations, in
videos: at ∞ all classes share their weights, at 1 one video moves them. Nobody knows the right one, and the likelihood
of the fit's own videos cannot tell. So all of them are fitted and their parameters averaged, which is again one pool of
the same form:

    strength         ∞     1000    300    100     30     10      3      1
    share       │  0.31 │  0.30 │ 0.22 │ 0.11 │ 0.05 │ 0.01 │  0   │  0   │     for instance

With groups, the shares follow from the loss on groups that each strength was not fitted on. Without groups, or with
fewer than ten, nothing can tell dependent clips from new ones, and the five strongest have the same share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError
from vidfuse.fusion._solver.deviations import ClassVideos, fit_deviations
from vidfuse.fusion._solver.log_linear import fit_log_linear
from vidfuse.fusion._solver.shared import FitVideos, fit_shared, shared_penalty
from vidfuse.fusion.crossfit import split_folds
from vidfuse.fusion.floors import is_number
from vidfuse.stack.stack import LogitStack  # noqa: F401  (the example's)

__all__ = [
    "STRENGTHS",
    "ClassFit",
    "Shrinkage",
    "check_shrinkage",
    "choose_shrinkage",
    "describe_shares",
    "fit_class_weights",
    "strength_shares",
]

Shrinkage = float | Literal["auto", "cv"] | None

_GRID: Final = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # strengths that "cv" compares, in units of N^(-1/2)


def check_shrinkage(shrinkage: Shrinkage) -> None:
    """Raise unless the shrinkage is "auto", "cv", None or a finite number of at least 0.

    Example:
        >>> check_shrinkage("auto")
    """
    if shrinkage is None or (isinstance(shrinkage, str) and shrinkage in ("auto", "cv")):
        return
    if not is_number(shrinkage) or float(shrinkage) < 0:
        raise InputError(f'shrinkage: expected "auto", "cv", None or a number of at least 0, got {shrinkage!r}')


def choose_shrinkage(shrinkage: Shrinkage, videos: FitVideos) -> float:
    """Return the strength λ of `shrinkage_penalty`.

    "auto" is ``N^(-1/2)``, N the effective number of videos ``1/Σω²``; "cv" takes the multiple of it that has the
    least negative log-likelihood over five folds, always the same ones for the same videos.

    Args:
        shrinkage: "auto", "cv", None (0) or λ itself.
        videos: the videos of the fit; their groups, if they have such, are kept together in folds.

    Example:
        >>> stack = LogitStack.from_arrays(np.zeros((4, 2, 3)))
        >>> choose_shrinkage("auto", FitVideos(stack, np.array([0, 1, 2, 0]), np.full(4, 0.25), np.zeros(2)))
        0.5
    """
    check_shrinkage(shrinkage)
    if shrinkage is None:
        return 0.0
    auto = float(np.sqrt(1.0 / videos.independent))
    if shrinkage == "auto":
        return auto
    if shrinkage != "cv":
        return float(shrinkage)
    groups = videos.stack.groups
    folds = _FOLDS if groups is None else min(_FOLDS, len(np.unique(groups)))
    if len(videos.labels) < 2 * _FOLDS or folds < 2:
        return auto
    losses = np.zeros(len(_GRID))
    for inside, outside in split_folds(videos.labels, folds, groups=groups, keys=videos.stack.ids):
        losses += videos.omega[outside].sum() * _held_out_losses(videos[inside], videos[outside])
    return _GRID[int(losses.argmin())] * auto


def _held_out_losses(train: FitVideos, test: FitVideos) -> NDArray[np.float64]:
    """Return the mean loss of each strength in `_GRID`, in units of ``N^(-1/2)`` of the videos fitted on."""
    losses, beta = np.zeros(len(_GRID)), None
    unit = float(np.sqrt(1.0 / train.independent))
    with train.passes() as inner, test.passes() as outer:
        # From the strongest pull; each fit begins where the last one ended.
        for index in reversed(range(len(_GRID))):
            beta = fit_log_linear(inner, shared_penalty(train, _GRID[index] * unit), beta).beta
            losses[index] = outer.moments(beta, hessian=False).value
    return losses


STRENGTHS: Final = (np.inf, 1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)
"""The precisions of the priors on weights per class, in videos."""

_CAUTIOUS: Final = 5  # strengths that are averaged where nothing tells dependent clips apart
_BIAS: Final = 0.1  # a bias's precision, as a share of a weight's: log-likelihoods differ by several nats
_FOLDS: Final = 5
_TEMPERATURE: Final = 8.0  # of the shares: losses are those of a fit on fewer groups, which favours strong priors
_BOUND: Final = 1e-3  # the share of the uniform distribution in held-out losses: no single video decides
_SAY: Final = 1e-3  # strengths with a smaller share are left out
_CHOICE: Final = 1 << 21  # numbers that the choice is made on, at most: as many whole groups as they hold
_RESIDENT: Final = 1 << 27  # numbers that weights per class are fitted on, at most
_ENOUGH: Final = 1e-4  # nats; the gap of the choice's own fits


@dataclass(frozen=True)
class ClassFit:
    """Weights per class, averaged over strengths.

    Attributes:
        deviations: from the shared weights (M, K).
        bias: (K,).
        gap: how much lower the objective of any strength in the average could be, at most, in nats.
    """

    deviations: NDArray[np.float64]
    bias: NDArray[np.float64]
    gap: float


def strength_shares(videos: FitVideos, shrinkage: float, beta: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of each of `STRENGTHS` (S,), which sum to 1.

    With G groups, a strength's share is proportional to ``exp(-G·L/8)``, L its mean loss on groups that it was not
    fitted on: exponential weights (Dalalyan and Tsybakov 2008, "Aggregation by exponential weighting, sharp
    PAC-Bayesian bounds and sparsity"), groups counted where videos would be if they were independent.

    Args:
        videos: the videos of the fit, with scales; their stack says what each comes from, if that is known.
        shrinkage: λ of the shared weights.
        beta: the shared weights (M,): where a fold's fit of them starts.
    """
    count, groups = len(STRENGTHS), videos.stack.groups
    if groups is None or len(np.unique(groups)) < 2 * _FOLDS:
        return _cautious_shares()
    total = len(np.unique(groups))
    rows = _some_groups(groups, _CHOICE // int(np.prod(videos.stack.shape[1:])))
    chosen, groups = videos[rows], groups[rows]
    losses = np.zeros(count)
    for inside, outside in split_folds(chosen.labels, _FOLDS, groups=groups):
        fitted = chosen[inside]
        strength = shrinkage * np.sqrt(videos.independent / fitted.independent)
        own = fit_shared(fitted, strength, beta).fit.beta
        active = _active(own)
        weight = chosen.omega[outside]
        with (
            ClassVideos(fitted.select(active), own[active], _class_offsets(fitted)) as inner,
            ClassVideos(chosen[outside].select(active), own[active]) as outer,
        ):
            x = np.zeros(inner.shape)
            for index, precision in enumerate(STRENGTHS):
                if np.isfinite(precision):
                    x = fit_deviations(inner, _prior(precision, fitted, active), x, _ENOUGH).parameters
                p = np.exp(outer.log_true(_completed(x, fitted)))
                losses[index] -= weight @ np.log((1 - _BOUND) * p + _BOUND / videos.stack.n_classes)
    shares = np.exp(-total / _TEMPERATURE * (losses - losses.min()))
    shares[shares < _SAY * shares.sum()] = 0.0
    return np.asarray(shares / shares.sum())


def _cautious_shares() -> NDArray[np.float64]:
    return np.where(np.arange(len(STRENGTHS)) < _CAUTIOUS, 1.0 / _CAUTIOUS, 0.0)


def describe_shares(precisions: NDArray[np.float64], shares: NDArray[np.float64]) -> str:
    """Say in words which strengths were averaged, out of which, and what gave them their shares.

    Example:
        >>> describe_shares(np.array([100.0]), np.ones(1))
        'weights per class: held to the shared ones by a prior of 100 videos, as given'
        >>> describe_shares(np.array(STRENGTHS), np.array([0.3, 0.5, 0.2, 0, 0, 0, 0, 0]))[76:124]
        '∞ videos (all classes alike, 30 %), 1,000 (50 %)'
    """
    if len(shares) == 1:
        return f"weights per class: held to the shared ones by a prior of {precisions[0]:g} videos, as given"
    judged = "by their loss on groups held out"
    if np.array_equal(shares, _cautious_shares()):
        judged = "the most cautious alike, without ten groups to judge them on"
    each = [
        f"∞ videos (all classes alike, {share:.0%})" if np.isinf(videos) else f"{videos:,g} ({share:.0%})"
        for videos, share in zip(precisions, shares, strict=True)
    ]
    fits = ", ".join(each).replace("%", " %")
    return f"weights per class: an average of fits held to the shared ones by a prior of {fits}; {judged}"


def fit_class_weights(
    videos: FitVideos, beta: NDArray[np.float64], precisions: NDArray[np.float64], shares: NDArray[np.float64]
) -> ClassFit:
    """Fit deviations from shared weights at each precision, from the strongest prior on, and average them.

    Members without a shared weight get none per class. Of a stack beyond 2^27 numbers, evenly many videos are used.

    Args:
        videos: the videos, with scales.
        beta: the shared weights (M,).
        precisions: of the priors (S,), in videos, descending; ∞ stands for no deviation.
        shares: the average's weights (S,), which sum to 1.
    """
    most = _RESIDENT // int(np.prod(videos.stack.shape[1:]))
    if len(videos.labels) > most:
        videos = videos[_spread(np.arange(len(videos.labels)), most)]
    active, gap = _active(beta), 0.0
    mean = np.zeros((videos.stack.n_classes, len(active) + 1))
    x = mean
    with ClassVideos(videos.select(active), beta[active], _class_offsets(videos)) as laid_out:
        for precision, share in zip(precisions, shares, strict=True):
            if share > 0 and np.isfinite(precision):
                found = fit_deviations(laid_out, _prior(precision, videos, active), x)
                x, gap = found.parameters, max(gap, found.gap)
                mean = mean + share * _completed(x, videos)
    deviations = np.zeros((len(beta), videos.stack.n_classes))
    deviations[active] = mean[:, :-1].T
    return ClassFit(deviations, mean[:, -1], gap)


def _some_groups(groups: NDArray[np.str_], rows: int) -> NDArray[np.int64]:
    """Return at most this many rows, ascending: those of as many whole groups as they hold, and of ten at least."""
    names, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(names))
    count = int(np.searchsorted(np.cumsum(sizes[order]), rows, side="right"))
    return _spread(np.flatnonzero(np.isin(group, order[: max(2 * _FOLDS, count)])), rows)


def _spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most this many of the rows, spread evenly."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, max(1, min(most, len(rows)))).round().astype(np.int64))]


def _active(beta: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.flatnonzero(beta > 0)


def _prior(precision: float, videos: FitVideos, active: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the precision of each parameter of a class (M + 1,), for a mean over the videos."""
    return np.append(np.ones(len(active)), _BIAS) * precision / videos.effective


def _completed(x: NDArray[np.float64], videos: FitVideos) -> NDArray[np.float64]:
    """Return parameters (K, M + 1) in which classes without a video have the mean of the others'.

    What all classes of the fit have in common, such as sharper scores, then sets none of them apart from the rest.
    """
    seen = np.bincount(videos.labels, minlength=len(x)) > 0
    return np.where(seen[:, None], x, x[seen].mean(axis=0))


def _class_offsets(videos: FitVideos) -> NDArray[np.float64]:
    """Return what the fit adds to each class's score (K,), so that chance in the classes' frequencies teaches nothing.

    Members know how frequent classes are. Of how frequent a class is among the fit's videos, n_c, a part is chance,
    the more so where clips come in groups; a bias that learned it would be wrong on new videos. So the pool is fitted
    as that of a sample in which class c is ``n_c/(n_c + α)`` times as frequent as elsewhere (King and Zeng 2001,
    "Logistic regression in rare events data", section 4.1, the correction of the intercept), with α the prior counts
    of a class by the moments of a gamma-Poisson distribution, ``m²/(v - m)``, m and v mean and variance of the n_c:
    infinite where the counts vary no more than chance would make them, near 0 where classes are truly rare. A class
    without a video takes no part.
    """
    classes = videos.stack.n_classes
    counts = np.bincount(videos.labels, weights=videos.omega, minlength=classes) * videos.effective
    draws = counts
    if videos.stack.groups is not None:
        group = np.unique(videos.stack.groups, return_inverse=True)[1]
        draws = np.bincount(np.unique(group * classes + videos.labels) % classes, minlength=classes).astype(np.float64)
    mean, variance = draws.mean(), draws.var(ddof=1)
    with np.errstate(divide="ignore"):
        offsets = np.log(counts)
    if variance > mean:
        offsets -= np.log(draws + mean**2 / (variance - mean))
    return np.asarray(offsets - offsets.max())
