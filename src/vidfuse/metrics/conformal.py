"""Sets of classes that hold the true one as often as was asked for, whatever the prediction is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import as_array, check_choice, check_share
from vidfuse.errors import InputError, option
from vidfuse.metrics._inputs import as_labels, as_normalised
from vidfuse.metrics.design import design_of

__all__ = ["Conformity", "PredictionSets", "conformity_scores", "prediction_sets"]

Conformity = Literal["least-ambiguous", "adaptive", "regularised"]
"""How odd a class is for a video; see `conformity_scores`."""

_PENALTY, _FREE_RANKS = 0.01, 5  # of the regularised score, as in its paper's experiments


@dataclass(frozen=True)
class PredictionSets:
    """A threshold on how odd a class may be: the classes below it are a video's set.

    Attributes:
        coverage: The stated share of videos whose set holds the true class.
        conformity: The score that is compared.
        thresholds: The largest score within the set, shape (1,), or (K,) by class; infinite where a class had too few
            videos, or too many in which it had a probability of 0, so that it is in every set.
        n_videos: The number of videos that the thresholds come from.
        n_groups: The number of groups that these come in; None where each stands for itself.
    """

    coverage: float
    conformity: Conformity
    thresholds: NDArray[np.float64]
    n_videos: int
    n_groups: int | None

    @property
    def always_in(self) -> tuple[int, ...]:
        """The classes that are in every set, as too few videos of theirs were seen with a probability above 0."""
        return tuple(np.flatnonzero(np.isinf(self.thresholds)).tolist())

    def of(self, log_proba: ArrayLike) -> NDArray[np.bool_]:
        """Return which classes are in each video's set, (N, K).

        A set may be empty: no class is as likely as the true one was on the videos of the record. That is common where
        the accuracy is above the coverage.

        Args:
            log_proba: Log-likelihoods of the prediction that the sets were made for, shape (N, K).
        """
        scores = conformity_scores(log_proba, self.conformity)
        if len(self.thresholds) not in (1, scores.shape[1]):
            raise InputError(f"log_proba: expected {len(self.thresholds)} classes, got {scores.shape[1]}")
        return scores <= self.thresholds

    def __repr__(self) -> str:
        groups = "" if self.n_groups is None else f" of {self.n_groups:,} groups"
        by = "" if len(self.thresholds) == 1 else ", by class"
        always = f", {len(self.always_in)} classes in every set" if self.always_in else ""
        return f"PredictionSets({self.coverage:.0%}{by}, from {self.n_videos:,} videos{groups}{always})"


def conformity_scores(log_proba: ArrayLike, conformity: Conformity = "least-ambiguous") -> NDArray[np.float64]:
    """Return how odd each class is for each video, (N, K), the likelier the lower.

        least-ambiguous   −log p(c): sets of the smallest mean size that any score of p gives
        adaptive          the probability of c and all likelier classes together: sets grow where a video is hard
        regularised       adaptive + 0.01 for each rank of c beyond the fifth: no long tails

    Args:
        log_proba: Log-likelihoods, shape (N, K).
        conformity: Which of these.

    Raises:
        InputError: Another conformity, or rows that are not log-likelihoods.

    Source:
        Sadinle, Lei and Wasserman (2019), Least ambiguous set-valued classifiers with bounded error levels, JASA 114,
        section 2; Romano, Sesia and Candès (2020), Classification with valid and adaptive coverage, NeurIPS, eq. 5,
        without its randomisation; Angelopoulos, Bates, Malik and Jordan (2021), Uncertainty sets for image
        classifiers using conformal prediction, ICLR, eq. 4.

    Example:
        >>> conformity_scores(np.log([[0.7, 0.1, 0.2]]), "adaptive").round(2).tolist()
        [[0.7, 1.0, 0.9]]
    """
    check_choice("conformity", conformity, get_args(Conformity))
    z = as_normalised(log_proba).astype(np.float64)
    if conformity == "least-ambiguous":
        return -z
    order = np.argsort(-z, axis=1, kind="stable")
    along = np.cumsum(np.exp(np.take_along_axis(z, order, axis=1)), axis=1)
    if conformity == "regularised":
        along += _PENALTY * np.maximum(np.arange(1, z.shape[1] + 1) - _FREE_RANKS, 0)
    scores = np.empty_like(along)
    np.put_along_axis(scores, order, along, axis=1)
    return scores


def prediction_sets(
    labels: ArrayLike,
    scores: ArrayLike,
    coverage: float = 0.9,
    *,
    conformity: Conformity = "least-ambiguous",
    groups: ArrayLike | None = None,
    n_classes: int | None = None,
) -> PredictionSets:
    """Return the threshold below which the true class of a new video stays with a stated probability.

    It is the smallest s with Σ w over the videos of score ≤ s at least the coverage, w = 1 / (n + 1): the split
    conformal quantile. With groups, a video of a group of n_g weighs 1 / ((G + 1) n_g). Both are exact for a video that
    is drawn as these were, or from a new group that is drawn as these were (each group counts alike), if the
    prediction did not see these videos: coverage is at least what is stated, on average over draws of the videos.

    Args:
        labels: True classes, shape (N,).
        scores: The true class's `conformity_scores` of each video, shape (N,).
        coverage: The share of videos whose set shall hold the true class, within 0 … 1.
        conformity: Which score it is.
        groups: What each video comes from, shape (N,); None where videos are independent.
        n_classes: K, for a threshold for each class, so that the coverage holds within each; None for one threshold.

    Raises:
        InputError: Too few videos or groups for this coverage; it says how many would do. Or too many true classes have
            a probability of 0.

    Source:
        Vovk, Gammerman and Shafer (2005), Algorithmic learning in a random world, sections 4.1 and 4.5 (by class); Lee,
        Barber and Willett (2023), Distribution-free inference with hierarchical data, section 3 (groups).

    Example:
        >>> prediction_sets(np.zeros(9, int), np.arange(9.0), 0.8).thresholds
        array([7.])
    """
    check_share("coverage", coverage)
    y, s = as_labels(labels, n_classes), as_array(scores, "scores").astype(np.float64)
    if s.shape != y.shape:
        raise InputError(f"scores: expected one for each of {len(y)} videos, got shape {s.shape}")
    if np.isnan(s).any():
        raise InputError(f"scores: expected numbers, got NaN at row {int(np.isnan(s).argmax())}")
    design = design_of(len(y), groups=groups)
    of_each = [slice(None)] if n_classes is None else [np.flatnonzero(y == k) for k in range(n_classes)]
    thresholds = np.array([_quantile(s[rows], design.group[rows], coverage) for rows in of_each])
    if np.isinf(thresholds).all():
        need = math.ceil(coverage / (1 - coverage) - 1e-9)
        unit = "videos" if groups is None else "groups of videos"
        if max(len(np.unique(design.group[rows])) for rows in of_each) >= need:
            raise InputError(
                f"no sets of coverage {coverage:g} but those of all classes: the true class of {np.isinf(s).sum():,} "
                f"of {len(s):,} videos has a probability of 0; fit the rule with {option('floor', 0.001)}"
            )
        raise InputError(
            f"sets of coverage {coverage:g} need at least {need} {unit}{'' if n_classes is None else ' of a class'}, "
            f"got {design.size} in all{'' if n_classes is None else f' for {n_classes} classes'}"
        )
    return PredictionSets(coverage, conformity, thresholds, len(y), design.n_groups)


def _quantile(scores: NDArray[np.float64], group: NDArray[np.int64], coverage: float) -> float:
    """Return the weighted quantile, with the weight of one more group at infinity."""
    _, group, sizes = np.unique(group, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(1 / sizes[group[order]]) / (len(sizes) + 1)
    place = int(np.searchsorted(reached, coverage - 1e-9))
    return float(scores[order[place]]) if place < len(order) else math.inf
