"""What a fitted pool tells about its weights: a table with bootstrap intervals."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError

__all__ = ["PoolSummary", "Refit", "summarise"]

Refit = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From videos' weights (N,), which sum to 1, to the members' weights (M,) that they lead to."""


@dataclass(frozen=True)
class PoolSummary:
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

    def __str__(self) -> str:
        width = max(6, *map(len, self.members))
        interval = "" if self.lower is None else f"  {self.confidence:.0%} interval ({self.replicates} replicates)"
        lines = [f"{'member':<{width}}  weight{interval}"]
        for row in self.rows():
            ends = f"  {row['lower']:.4f} to {row['upper']:.4f}" if "lower" in row else ""
            lines.append(f"{row['member']:<{width}}  {row['weight']:.4f}{ends}")
        return "\n".join([*lines, *self._notes()])

    def _notes(self) -> list[str]:
        return [f"temperature {self.temperature:.4g}", *self.choices]

    def _repr_html_(self) -> str:
        rows = self.rows()
        head = "".join(f"<th>{name}</th>" for name in rows[0])
        body = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(v) if isinstance(v, str) else format(v, '.4f')}</td>" for v in row.values())
            + "</tr>"
            for row in rows
        )
        return f"<table><tr>{head}</tr>{body}</table><p>{'<br>'.join(map(html.escape, self._notes()))}</p>"


def summarise(
    members: tuple[str, ...],
    weights: NDArray[np.float64],
    temperature: float,
    *,
    refit: Refit | None,
    omega: NDArray[np.float64] | None,
    bootstrap: int,
    confidence: float,
    random_state: int | None,
) -> PoolSummary:
    """Summarise weights; with `bootstrap` replicates, percentile intervals over resampled videos.

    Source:
        Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3 (the percentile interval).

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
    for draw in draws:
        share = rng.multinomial(len(omega), np.full(len(omega), 1.0 / len(omega))) * omega
        draw[:] = refit(share / share.sum()) if share.any() else weights
    tail = 50.0 * (1.0 - confidence)
    lower, upper = np.percentile(draws, [tail, 100.0 - tail], axis=0)
    return PoolSummary(members, weights, lower, upper, temperature, confidence, bootstrap)
