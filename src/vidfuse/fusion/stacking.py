"""Stacking: multinomial regression on the members' log-likelihoods, with few enough parameters for 400 classes."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import check_choice
from vidfuse.errors import InputError
from vidfuse.fusion._solver.deviations import LOWEST, ClassVideos, fit_deviations
from vidfuse.fusion._solver.shared import FitVideos
from vidfuse.fusion.floors import Floor, floored_blocks
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule
from vidfuse.likelihood import log_softmax
from vidfuse.stack.stack import LogitStack

__all__ = ["StackedPool"]


class StackedPool(Rule):
    """Fuse members by a multinomial model on their log-likelihoods, with weights that classes share.

    ``log p(c) ∝ Σ_m β_mc · log q_m(c) + b_c``, q_m a member as `LogLinearPool` calibrates and floors it. A plain
    multinomial has K·(M·K + 1) parameters and overfits; here a class's score uses only what the members say about that
    class, and weights may be negative. "shared": one weight a member and one bias a class (M + K parameters).
    "diagonal": a weight for each member and class, shrunk to the shared ones. Both are centred on the learned pool of
    shared weights: with few videos they are close to it.

    Args:
        structure: "shared" or "diagonal".
        shrinkage: the precision of the priors on shared weights and biases, ten times that on weights of a class;
            larger is nearer to the log-linear pool.
        floor: the uniform distribution's share in every member; "auto" is 0.001.
        n_jobs: joblib's workers for the learned pool.

    Attributes:
        coef_: β (M, K).
        intercept_: b (K,).
        floor_: each member's floor (M,).
        scale_: what each member's log-likelihoods are multiplied by to be calibrated (M,).
        optimality_gap_: how much lower the objective could be, at most, in nats.

    Source:
        Wolpert 1992, Stacked generalization; Ting and Witten 1999, Issues in stacked generalization, section 3
        (class probabilities as inputs); Menahem, Rokach and Elovici 2009 (overfitting with many classes).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=200)
        >>> X = rng.normal(size=(200, 2, 3)) + 2.0 * np.eye(3)[y][:, None] + np.array([2.0, 0.0, 0.0])
        >>> pool = StackedPool().fit(X, y)
        >>> bool(pool.intercept_.argmin() == 0), pool.score(X, y) > 0.9  # both members overrate class 0
        (True, True)
    """

    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]
    floor_: NDArray[np.float64]
    scale_: NDArray[np.float64]
    optimality_gap_: float

    def __init__(
        self,
        structure: Literal["shared", "diagonal"] = "shared",
        *,
        shrinkage: float = 10.0,
        floor: Floor = "auto",
        n_jobs: int | None = None,
    ) -> None:
        self.structure = structure
        self.shrinkage = shrinkage
        self.floor = floor
        self.n_jobs = n_jobs

    def _fit(self, stack: LogitStack, labels: NDArray[np.int64], weight: NDArray[np.float64] | None) -> None:
        check_choice("structure", self.structure, ("shared", "diagonal"))
        if not (np.isfinite(self.shrinkage) and self.shrinkage > 0):
            raise InputError(f"shrinkage: expected a positive number, got {self.shrinkage!r}")
        static = LogLinearPool(floor=self.floor, per_class=False, n_jobs=self.n_jobs).fit(stack, labels, weight)
        self.floor_, self.scale_ = static.floor_, static.scale_
        omega = np.ones(len(labels)) if weight is None else weight
        videos = FitVideos(stack, labels, omega / omega.sum(), self.floor_, self.scale_, self.n_jobs)
        beta, tied = static.weights_ / static.temperature_, self.structure == "shared"
        weights = self.shrinkage * (1.0 if tied else 10.0)
        precision = np.append(np.full(len(beta), weights), self.shrinkage) / videos.effective
        with ClassVideos(videos, beta) as laid_out:
            fit = fit_deviations(laid_out, precision, tied=tied)
        self.coef_, self.intercept_ = beta[:, None] + fit.parameters[:, :-1].T, fit.parameters[:, -1]
        self.optimality_gap_ = fit.gap

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        out = np.empty((len(stack), stack.n_classes))
        scales = getattr(self, "scale_", None)  # recipes of the first releases have none
        for rows, block in floored_blocks(stack, self.floor_, scales=scales):
            total = np.tile(self.intercept_, (len(block), 1))
            for member, coef in enumerate(self.coef_):
                total += coef * np.maximum(block[:, member], LOWEST)
            out[rows] = log_softmax(total)
        return out
