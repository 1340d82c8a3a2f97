"""Curves that answer "how many": points with intervals and steps, the same for labelled videos, members and views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidfuse._tables import Column, Estimate, Table, Tabular, writers
from vidfuse.errors import InputError
from vidfuse.evaluation.resampling import Draw, Repeated
from vidfuse.evaluation.trial import Protocol
from vidfuse.metrics import Interval, PairedDifference
from vidfuse.metrics.objectives import resolve_objective

__all__ = ["Curve", "Point", "points_of"]


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        series: The rule whose curve it is on.
        x: Labelled videos, members or views.
        label: What the point is made of, where that is not the number alone: the member that joined.
        cost: What it costs, in the units that were given; NaN where none was.
        value: The objective; the mean over the repeats.
        interval: Its interval.
        spread: Standard deviation over the repeats; NaN for one.
        step: How much better than the point before; None for the first.
        behind: How much better than the last point of the series, so mostly negative; None for the last.
    """

    series: str
    x: int
    label: str
    cost: float
    value: float
    interval: Interval
    spread: float
    step: PairedDifference | None
    behind: PairedDifference | None


@dataclass(frozen=True)
class Curve(Tabular):
    """An objective against how much of something there is, for one rule or several.

    Attributes:
        title: What the curve shows.
        x_name: What x counts.
        objective: The objective's name.
        points: The points: series by series, x rising.
        how_scored: On which videos.
    """

    title: str
    x_name: str
    objective: str
    points: tuple[Point, ...]
    how_scored: Protocol

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the series."""
        return tuple(dict.fromkeys(point.series for point in self.points))

    def series(self, name: str | None = None) -> tuple[Point, ...]:
        """Return the points of a series, by default of the first.

        Raises:
            InputError: there is no such series.
        """
        name = self.names[0] if name is None else name
        if name not in self.names:
            raise InputError(f"expected one of {list(self.names)}, got {name!r}")
        return tuple(point for point in self.points if point.series == name)

    def enough(self, name: str | None = None) -> int:
        """Return the smallest x from which on no point is certainly worse than the last one of its series.

        Certain is what the interval of the difference says; where it is refused, nothing is.
        """
        points = self.series(name)
        worse = [p.behind is not None and p.behind.interval.high < 0 for p in points]
        return points[max((i for i, bad in enumerate(worse) if bad), default=-1) + 1].x

    def table(self) -> Table:
        """Return a row for each point."""
        write, change, unit = writers(self.objective)
        rows = tuple(
            (
                p.series,
                p.x,
                p.label,
                p.cost,
                Estimate(p.value, *p.interval),
                p.spread,
                None if p.step is None else Estimate(p.step.difference, *p.step.interval),
            )
            for p in self.points
        )
        columns = (
            Column("rule", "series"),
            Column(self.x_name, "x", "{:,}".format),
            Column("joins", "label", shown=any(p.label for p in self.points)),
            Column("cost", write="{:,g}".format, shown=not all(math.isnan(p.cost) for p in self.points)),
            Column(self.objective.replace("-", " ") + unit, "value", write),
            Column("s.d.", "spread", write, shown=False),
            Column("over the one before", "step", change),
        )
        return Table(columns, rows, self.title, (self.how_scored.how(),))

    def __str__(self) -> str:
        width = max(len(self.x_name), 8)
        lines = [self.title]
        for name in self.names:
            lines.append(f"{name} ({self.objective}, {self.points[0].interval.confidence:.0%} interval)")
            for p in self.series(name):
                ends = "" if p.interval.refused else f" ({p.interval.low:.4f} to {p.interval.high:.4f})"
                step = "" if p.step is None else f"  {p.step.difference:+.4f}"
                lines.append(f"{p.x:>{width},}  {p.value:.4f}{ends}{step}  {p.label}".rstrip())
            lines.append(f"enough {self.x_name}: {self.enough(name):,}")
        return "\n".join([*lines, self.how_scored.how()])


def points_of(
    draw: Draw,
    series: str,
    sizes: Sequence[int],
    predictions: Sequence[Repeated],
    labels: Sequence[str] = (),
    costs: Sequence[float] = (),
) -> list[Point]:
    """Return the points of a series, from predictions of the same videos.

    Args:
        draw: Those videos, the objective, and how intervals are drawn.
        series: The rule whose curve it is.
        sizes: x of each point, rising.
        predictions: The log-likelihoods (N, K) of each repeat, point by point.
        labels: What each point is made of.
        costs: What each point costs.
    """
    metric, last = resolve_objective(draw.objective), len(sizes) - 1
    given = {str(i): repeated for i, repeated in enumerate(predictions)}
    intervals = draw.intervals(given)
    pairs = list(dict.fromkeys([(str(i), str(i - 1)) for i in range(1, last + 1)] + [
        (str(i), str(last)) for i in range(last)
    ]))  # fmt: skip
    found = dict(zip(pairs, draw.differences(given, pairs), strict=True))
    points = []
    for i, size in enumerate(sizes):
        values = [float(metric(draw.labels, p)) for p in predictions[i]]
        points.append(
            Point(
                series=series,
                x=int(size),
                label=labels[i] if labels else "",
                cost=costs[i] if costs else math.nan,
                value=float(np.mean(values)),
                interval=intervals[str(i)],
                spread=float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                step=found.get((str(i), str(i - 1))),
                behind=found.get((str(i), str(last))),
            )
        )
    return points
