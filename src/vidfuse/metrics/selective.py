"""What a prediction is worth where it may abstain: the risk on the videos that it is surest of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse.errors import InputError
from vidfuse.metrics._inputs import as_log_proba

__all__ = ["RiskCoverage", "risk_coverage"]


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
    predicted = z.argmax(axis=1)
    confidence = np.exp(np.take_along_axis(z, predicted[:, None], axis=1)[:, 0].astype(np.float64))
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
