"""What a fitted pool tells about its weights: a table with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from vidfuse._checks import check_share
from vidfuse._tables import Column, Estimate, Table, Tabular, number
from vidfuse.errors import InputError
from vidfuse.fusion.rule import Rule

__all__ = ["PoolSummary", "Refit", "SummarisedRule"]

Refit = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From videos' weights (N,), which sum to 1, to the members' weights (M,) that they lead to."""


@dataclass(frozen=True)
class PoolSummary(Tabular):
    """Each member's weight in a pool, with an interval where a bootstrap was asked for.

    Attributes:
        members: the members' names.
        weights: their weights (M,), on the simplex.
        lower: the intervals' lower ends (M,), or None.
        upper: the intervals' upper ends (M,), or None.
        temperature: the pool's temperature.
        confidence: the intervals' level.
        replicates: the number of bootstrap replicates.
        choices: what the fit chose, and among what; see `Rule.choices`.
    """

    members: tuple[str, ...]
    weights: NDArray[np.float64]
    lower: NDArray[np.float64] | None
    upper: NDArray[np.float64] | None
    temperature: float
    confidence: float
    replicates: int
    choices: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """Return one dictionary a member, in falling order of weight."""
        table: list[dict[str, Any]] = []
        for m in np.argsort(-self.weights, kind="stable"):
            row: dict[str, Any] = {"member": self.members[m], "weight": float(self.weights[m])}
            if self.lower is not None and self.upper is not None:
                row |= {"lower": float(self.lower[m]), "upper": float(self.upper[m])}
            table.append(row)
        return table

    def table(self) -> Table:
        """Return the weights as a table, in falling order."""
        rows = tuple(
            (name, Estimate(*numbers) if len(numbers) > 1 else numbers[0])
            for name, *numbers in (row.values() for row in self.rows())
        )
        interval = "" if self.lower is None else f" ({self.confidence:.0%} interval, {self.replicates} replicates)"
        weight = Column(f"weight{interval}", "weight", lambda value: number(value, 4))
        return Table(("member", weight), rows, notes=(f"temperature {self.temperature:.4g}", *self.choices))

    def __str__(self) -> str:
        return str(self.table())


class SummarisedRule(Rule):
    """A rule with one weight for each member, which keeps what it needs to say how sure they are.

    A subclass sets `weights_`, and `_refit`, `_omega` and `_groups` where the weights follow from the fit's videos.
    """

    weights_: NDArray[np.float64]
    _refit: Refit | None = None
    _omega: NDArray[np.float64] | None = None
    _groups: NDArray[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the evidence out: it may hold a stack."""
        return {**super().__getstate__(), "_refit": None, "_omega": None, "_groups": None}

    def summary(self, bootstrap: int = 0, *, confidence: float = 0.95, random_state: int | None = 0) -> PoolSummary:
        """Return each member's weight, with percentile intervals over `bootstrap` resamples of the fit's videos.

        Where the videos were fitted with groups, whole groups are resampled. Scored weights and the linear optimum are
        refitted on each resample, and a greedy search is repeated. Learned log-linear weights (the shared ones, where
        classes have their own) take one Newton step from the fit, the one-step bootstrap: Davison and Hinkley 1997,
        section 7.2.4, discuss it for likelihoods. A thousand replicates then take about a second.

        Source:
            Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3 (the percentile interval);
            Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 3.8 (whole groups are drawn).

        Raises:
            InputError: the rule comes from a recipe or a pickle, which keep no videos; it follows from an objective
                that is a callable, which gets no weights; or an argument is out of range.
        """
        check_is_fitted(self, "weights_")
        if bootstrap < 0:
            raise InputError(f"bootstrap: expected at least 0 replicates, got {bootstrap!r}")
        check_share("confidence", confidence)
        lower, upper = None, None
        if bootstrap:
            tail = 50.0 * (1.0 - confidence)
            draws = self._resampled_weights(bootstrap, np.random.default_rng(random_state))
            lower, upper = np.percentile(draws, [tail, 100.0 - tail], axis=0)
        temperature = getattr(self, "temperature_", 1.0)  # votes have none
        return PoolSummary(
            self.members_, self.weights_, lower, upper, temperature, confidence, bootstrap, self.choices()
        )

    def _resampled_weights(self, bootstrap: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the weights (B, M) of as many resamples."""
        refit, omega, groups = self._refit, self._omega, self._groups
        if refit is None or omega is None:
            raise InputError(
                "a bootstrap needs the videos of the fit, which recipes and pickles do not keep; fit the pool again"
            )
        draws = np.empty((bootstrap, len(self.weights_)))
        group_of = np.arange(len(omega)) if groups is None else np.unique(groups, return_inverse=True)[1]
        n = int(group_of.max()) + 1
        for draw in draws:
            share = rng.multinomial(n, np.full(n, 1.0 / n))[group_of] * omega
            draw[:] = refit(share / share.sum()) if share.any() else self.weights_
        return draws
