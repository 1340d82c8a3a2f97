"""What a prediction is worth where it may abstain: the risk on the videos that it is surest of, and how to bound it."""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import check_share
from vidfuse.errors import InputError
from vidfuse.metrics._inputs import as_hits, as_log_proba, as_normalised, as_values
from vidfuse.metrics.bounds import betting_p_value, binomial_p_value
from vidfuse.metrics.design import design_of

__all__ = ["Abstention", "RiskCoverage", "abstention", "risk_coverage"]

_FORGIVEN = 3  # errors among the surest videos that do not end the search for a threshold


@dataclass(frozen=True)
class RiskCoverage:
    """The error rate on the surest videos, against their share; one entry for each threshold, the surest first.

    Attributes:
        coverage: Share of the videos whose confidence is at least the threshold, rising to 1, shape (T,).
        risk: Share of wrong predictions among them, shape (T,).
        threshold: Confidence (probability of the predicted class), falling, shape (T,).
        area: Area under the curve (AURC): the mean over n of the risk on the n surest videos; lower is better.
        area_of_oracle: The least area that any order of these videos has: all wrong ones last.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    threshold: NDArray[np.float64]
    area: float
    area_of_oracle: float

    def at(self, coverage: float) -> float:
        """Return the risk of the first threshold that covers at least this share of the videos.

        Raises:
            InputError: A share outside 0 … 1.
        """
        if not 0 <= coverage <= 1:
            raise InputError(f"coverage: expected a share within 0 … 1, got {coverage}")
        return float(self.risk[np.searchsorted(self.coverage, coverage - 1e-12)])

    def covered(self, risk: float) -> float:
        """Return the largest coverage whose risk is at most this; 0 where there is none."""
        fine = np.flatnonzero(self.risk <= risk)
        return float(self.coverage[fine[-1]]) if len(fine) else 0.0

    def __repr__(self) -> str:
        return (
            f"RiskCoverage(risk {self.at(0.5):.4f} at half, {self.risk[-1]:.4f} at all videos; "
            f"area {self.area:.4f}, oracle {self.area_of_oracle:.4f})"
        )


def risk_coverage(labels: ArrayLike, log_proba: ArrayLike) -> RiskCoverage:
    """Return the risk of a prediction against its coverage: how many errors are left if it abstains where it is unsure.

    Videos of equal confidence are taken together: between two thresholds their order says nothing, and each counts with
    the errors that it would have on average over the orders of its equals.

    Args:
        labels: True classes, integers of shape (N,).
        log_proba: Normalised log-likelihoods of shape (N, K).

    Raises:
        InputError: As `nll`.

    Source:
        El-Yaniv and Wiener (2010), On the foundations of noise-free selective classification, JMLR 11, section 2;
        Geifman, Uziel and El-Yaniv (2019), ICLR, Bias-reduced uncertainty estimation, section 2 (the area).

    Example:
        >>> import numpy as np
        >>> risk_coverage([0, 1, 0], np.log([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]))
        RiskCoverage(risk 0.0000 at half, 0.3333 at all videos; area 0.1111, oracle 0.1111)
    """
    y, z = as_log_proba(labels, log_proba)
    predicted, confidence = _confidence(z)
    order = np.argsort(-confidence, kind="stable")
    sure, wrong = confidence[order], (predicted != y)[order]
    n = len(y)
    last = np.flatnonzero(np.r_[sure[1:] != sure[:-1], True])  # the last video of each threshold
    errors = np.cumsum(wrong)[last]
    held = np.arange(1, n + 1)
    along = np.interp(held, np.r_[0, last + 1], np.r_[0, errors])  # errors among the n surest, equals in any order
    rest = np.maximum(held - (n - int(wrong.sum())), 0)
    return RiskCoverage(
        coverage=(last + 1) / n,
        risk=errors / (last + 1),
        threshold=sure[last],
        area=float((along / held).mean()),
        area_of_oracle=float((rest / held).mean()),
    )


@dataclass(frozen=True)
class Abstention:
    """A confidence below which a prediction abstains, so that the error among the answered is bounded.

    Attributes:
        error: The stated share of wrong predictions among the answered videos.
        level: The probability that the true share is at most that.
        threshold: The least confidence (probability of the predicted class) that is answered.
        coverage: Share of the videos that were answered; where they come in groups, each group counts alike.
        observed: Share of wrong ones among them.
        n_answered: The number of videos that were answered.
        n_groups: The number of groups that the videos come in; None where each stands for itself.
    """

    error: float
    level: float
    threshold: float
    coverage: float
    observed: float
    n_answered: int
    n_groups: int | None

    def answered(self, log_proba: ArrayLike) -> NDArray[np.bool_]:
        """Return which videos are answered, (N,), by their log-likelihoods (N, K).

        Raises:
            InputError: Rows that are not log-likelihoods.
        """
        return _confidence(as_normalised(log_proba))[1] >= self.threshold

    def __repr__(self) -> str:
        groups = "" if self.n_groups is None else f" of {self.n_groups:,} groups"
        return (
            f"Abstention(answer from confidence {self.threshold:.4f} on: error at most {self.error:.1%} with "
            f"{self.level:.0%} confidence; answers {self.coverage:.1%}, {self.observed:.1%} of them wrong{groups})"
        )


def abstention(
    confidence: ArrayLike,
    right: ArrayLike,
    error: float,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Abstention:
    """Return the least confidence to answer at, such that at most a share `error` of the answered videos is wrong.

    Thresholds are tested one after another, each at the full 1 − level, and the first that fails ends it
    (fixed-sequence testing): by the binomial test, with groups, each of which counts alike, by betting on their means
    (`vidfuse.metrics.betting_p_value`). The first is where the surest videos are so many that a test forgives three
    errors: one at the very beginning, which very sure networks make too, would end it. Where that takes more than half
    of the videos, two are forgiven, one, or none.

    The true share is above `error` with probability 1 − level at most, for any distribution, if the prediction did not
    see these videos, and if the surest videos, too few to be tested alone, are no worse than the rest.

    Args:
        confidence: Probability of the predicted class, shape (N,).
        right: Whether it was right, shape (N,).
        error: The share of wrong ones that is allowed among the answered, between 0 and 1.
        groups: What each video comes from, shape (N,); None where videos are independent.
        level: The probability with which it holds.

    Raises:
        InputError: No threshold passes; it says how many videos would do, or what the surest ones' error is.

    Source:
        Geifman and El-Yaniv (2017), Selective classification for deep neural networks, NeurIPS, section 3;
        Angelopoulos, Bates, Candès, Jordan and Lei (2021), Learn then test, section 3.2 (fixed sequence).

    Example:
        >>> import numpy as np
        >>> c = np.linspace(1, 0.5, 200)
        >>> found = abstention(c, c > 0.6, error=0.05)
        >>> round(found.threshold, 3), found.n_answered, round(found.observed, 3)
        (0.593, 163, 0.018)
    """
    c, hits = as_values(confidence, "confidence"), as_hits(right)
    if c.shape != hits.shape:
        raise InputError(f"right: expected one for each of {len(c)} videos, got {len(hits)}")
    check_share("error", error)
    check_share("level", level)
    design = design_of(len(c), groups=groups)
    order = np.argsort(-c, kind="stable")
    sure, wrong = c[order], ~hits[order]
    group = design.group[order]
    weight = 1 / np.bincount(group)[group]

    so_far = np.cumsum(wrong)

    def passes(answered: int, if_wrong: int | None = None) -> bool:
        """Test one threshold, as it is or if so many of its surest videos were wrong and no others."""
        if groups is None:
            n_wrong = int(so_far[answered - 1]) if if_wrong is None else min(if_wrong, answered)
            return binomial_p_value(n_wrong, answered, error) <= 1 - level
        errors = wrong[:answered] if if_wrong is None else np.arange(answered) < if_wrong
        losses = weight[:answered] * (errors - error)  # at most 1 - error and at least -error in each group
        return betting_p_value(np.bincount(group[:answered], losses, design.size), 0.0) <= 1 - level

    ends = np.flatnonzero(np.r_[sure[1:] != sure[:-1], True]) + 1  # equals are answered together
    for if_wrong in range(_FORGIVEN, -1, -1):  # labels have no say in where it begins
        first = bisect.bisect_left(ends, True, key=partial(passes, if_wrong=if_wrong))
        if first < len(ends) and 2 * ends[first] <= len(c):
            break
    tested = ends[first:].tolist()
    passed = list(itertools.takewhile(passes, tested))
    if not tested:
        need = _fewest(error, level, groups is not None)
        unit = "videos" if groups is None else "groups of videos"
        raise InputError(
            f"an error of at most {error:g} with {level:.0%} confidence needs at least {need:,} {unit}, none of them "
            f"wrong, and there are {design.size:,}: take more videos, or allow a larger error"
        )
    if not passed:
        raise InputError(
            f"no confidence is sure to keep the error at {error:g}: of the {tested[0]:,} surest videos "
            f"{int(wrong[: tested[0]].sum())} are wrong; allow a larger error, or take more videos"
        )
    answered = passed[-1]
    share = weight[:answered].sum()
    return Abstention(
        error,
        level,
        threshold=float(sure[answered - 1]),
        coverage=float(share / weight.sum()),
        observed=float((weight * wrong)[:answered].sum() / share),
        n_answered=answered,
        n_groups=design.n_groups,
    )


def _fewest(error: float, level: float, grouped: bool) -> int:
    """Return how many videos, or groups, without any error let a test pass."""
    fewest = math.ceil(math.log(1 - level) / math.log1p(-error) - 1e-9)
    while grouped and betting_p_value(np.full(fewest, -error), 0.0) > 1 - level:
        fewest += 1
    return fewest


def _confidence(log_proba: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the predicted class and its probability, each (N,)."""
    predicted = np.asarray(log_proba.argmax(axis=1))
    best = np.take_along_axis(log_proba, predicted[:, None], axis=1)[:, 0]
    return predicted, np.exp(best.astype(np.float64))
