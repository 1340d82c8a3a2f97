"""The linear pool: the weighted average of the members' probabilities."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from vidfuse._checks import place
from vidfuse.errors import InputError
from vidfuse.fusion._solver.linear import fit_linear
from vidfuse.fusion.floors import Floor
from vidfuse.fusion.rule import Missing, WeightedSum
from vidfuse.fusion.weighted import WeightedRule, Weights, pool_blocks, sum_of_given
from vidfuse.fusion.weights import true_log_likelihoods
from vidfuse.likelihood import linear_pool
from vidfuse.stack.stack import LogitStack

__all__ = ["LinearPool"]


class LinearPool(WeightedRule):
    """Fuse members by the weighted average of their probabilities.

    ``p(c) = Σ_m w_m · p_m(c)``, w on the simplex (the linear opinion pool, Stone 1961). Learned weights minimise the
    negative log-likelihood exactly (`fit_linear`), from the true class's probabilities alone.

    Args:
        weights: "learned", "accuracy", "uniform", "log-odds", "inverse-nll", numbers in
            the order in which the fit's stack lists its members, or {member: number}.
        power: the exponent of "accuracy".
        floor: the uniform distribution's share in every member; "auto": 1e-4 for members given as probabilities.
        class_weight: "balanced" gives every class that occurs the same total weight in the fit.
        missing: "renormalise" shares an absent member's weight among those that a video has; "error" refuses.

    Attributes:
        weights_: (M,), on the simplex, in the order of `members_`.
        temperature_: 1.
        optimality_gap_: how much lower the fit's NLL could be, at most, in nats; None unless learned.
        floor_: each member's floor (M,).
        weight_sum_: the sum of given numbers.
        n_missing_: for how many videos of the fit each member was missing (M,).

    Example:
        >>> stack = LogitStack.from_arrays(np.log([[[0.8, 0.2], [0.4, 0.6]]]))
        >>> LinearPool(weights="uniform").fit(stack).predict_proba(stack).round(3).tolist()
        [[0.6, 0.4]]
    """

    temperature_: float
    optimality_gap_: float | None
    weight_sum_: float

    def __init__(
        self,
        weights: Weights = "learned",
        *,
        power: float = 1.0,
        floor: Floor = "auto",
        class_weight: Literal["balanced"] | None = None,
        missing: Missing = "error",
    ) -> None:
        self.weights = weights
        self.power = power
        self.floor = floor
        self.class_weight = class_weight
        self.missing = missing

    def _fit(self, stack: LogitStack, labels: Any, weight: NDArray[np.float64] | None) -> None:
        self.temperature_, self.optimality_gap_ = 1.0, None
        videos = self._fit_weights(stack, labels, weight, learns=True)
        self.weight_sum_ = sum_of_given(self.weights)
        if videos is None:
            return
        log_true = true_log_likelihoods(videos.stack, videos.labels, videos.floors)
        vetoed = np.isneginf(log_true).all(axis=1)
        if vetoed.any():
            raise InputError(
                "no weights give every video of the fit a likelihood: all members have a probability of 0 at the true "
                f"class of {place(int(vetoed.argmax()), videos.stack.ids)}; set floor=1e-4 or more"
            )
        fit = fit_linear(log_true, videos.omega)
        self.optimality_gap_ = fit.gap
        self._set_found(fit.weights, partial(_refit, log_true), videos.omega, videos.stack.groups)

    def weighted_sum(self) -> WeightedSum:
        """Return the pool as a weighted sum of probabilities, over all of `members_`."""
        check_is_fitted(self, "weights_")
        return WeightedSum("linear", self.members_, self.weights_[:, None], self.floor_)

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        stack, weights, floors = self._with_a_say(stack)
        return pool_blocks(lambda block, shares, _: linear_pool(block, shares), stack, weights, floors)


def _refit(log_true: NDArray[np.float64], omega: NDArray[np.float64]) -> NDArray[np.float64]:
    return fit_linear(log_true, omega).weights
