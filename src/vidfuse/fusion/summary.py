"""What a fitted pool tells about its weights: a table with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._tables import Column, Estimate, Table, Tabular, number
from vidfuse.errors import InputError

__all__ = ["PoolSummary", "Refit", "summarise"]

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

    def rows(self) -> list[dict[str, str | float]]:
        """Return one dictionary a member, in falling order of weight."""
        table: list[dict[str, str | float]] = []
        for m in np.argsort(-self.weights, kind="stable"):
            row: dict[str, str | float] = {"member": self.members[m], "weight": float(self.weights[m])}
            if self.lower is not None and self.upper is not None:
                row |= {"lower": float(self.lower[m]), "upper": float(self.upper[m])}
            table.append(row)
        return table

    def table(self) -> Table:
        """Return the weights as a table, in falling order."""
        rows = tuple(
            (str(row["member"]), Estimate(float(row["weight"]), float(row["lower"]), float(row["upper"])))
            if "lower" in row
            else (str(row["member"]), float(row["weight"]))
            for row in self.rows()
        )
        interval = "" if self.lower is None else f" ({self.confidence:.0%} interval, {self.replicates} replicates)"
        weight = Column(f"weight{interval}", "weight", lambda value: number(value, 4))
        return Table(("member", weight), rows, notes=tuple(self._notes()))

    def __str__(self) -> str:
        return str(self.table())

    def _notes(self) -> list[str]:
        return [f"temperature {self.temperature:.4g}", *self.choices]


def summarise(
    members: tuple[str, ...],
    weights: NDArray[np.float64],
    temperature: float,
    *,
    refit: Refit | None,
    omega: NDArray[np.float64] | None,
    groups: NDArray[Any] | None,
    bootstrap: int,
    confidence: float,
    random_state: int | None,
) -> PoolSummary:
    """Summarise weights; with `bootstrap` replicates, percentile intervals over resampled videos, or groups of them.

    Source:
        Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3 (the percentile interval); Davison
        and Hinkley 1997, "Bootstrap Methods and their Application", section 3.8 (whole groups are drawn).

    Raises:
        InputError: a negative number of replicates, a level outside (0, 1), or a pool that no longer has its evidence.
    """
    if bootstrap < 0 or not 0 < confidence < 1:
        raise InputError(
            f"expected bootstrap of at least 0 and confidence within (0, 1), got {bootstrap!r} and {confidence!r}"
        )
    if not bootstrap:
        return PoolSummary(members, weights, None, None, temperature, confidence, 0)
    if refit is None or omega is None:
        raise InputError(
            "a bootstrap needs the videos of the fit, which recipes and pickles do not keep; fit the pool again"
        )
    rng = np.random.default_rng(random_state)
    draws = np.empty((bootstrap, len(members)))
    group_of = np.arange(len(omega)) if groups is None else np.unique(groups, return_inverse=True)[1]
    n = int(group_of.max()) + 1
    for draw in draws:
        share = rng.multinomial(n, np.full(n, 1.0 / n))[group_of] * omega
        draw[:] = refit(share / share.sum()) if share.any() else weights
    tail = 50.0 * (1.0 - confidence)
    lower, upper = np.percentile(draws, [tail, 100.0 - tail], axis=0)
    return PoolSummary(members, weights, lower, upper, temperature, confidence, bootstrap)
