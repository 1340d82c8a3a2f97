"""Drawings of the page: pure functions from numbers to HTML and inline SVG.

Colours are CSS classes of the page (`vf-*`), so that one drawing serves light and dark. Every drawing has a description
for screen readers; marks carry their numbers as tooltips. A drawing of rows bends to any width:

    wide      a label  |----------o-----|  its value      a narrow   a label      its value
              another  |-----o----------|  its value      screen     |--------o-------|

Its tracks are SVG without a view box, whose places are per cent and whose text keeps its size. A matrix is a table,
whose cells shrink. Only drawings with two axes are scaled as a whole; they are small enough for a telephone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from vidfuse._tables import MINUS, percent, points

__all__ = [
    "DARK_FROM",
    "Bin",
    "Line",
    "Mark",
    "Shift",
    "bar_plot",
    "dot_plot",
    "heat_table",
    "line_plot",
    "reliability_diagram",
    "shift_plot",
]

DARK_FROM = 0.7
"""Cells of a heat table that are at least this deep have light text; page.css chooses its colours by it."""

_MOST_WRITTEN = 16  # columns of a heat table whose cells have room for a number
_TELEPHONE = 12  # columns that a telephone has room to name
_WIDTH, _HEIGHT = 380, 270  # of a drawing with two axes: what a telephone shows at full size


@dataclass(frozen=True)
class Mark:
    """A value with its interval, and whether it is the one to look at."""

    label: str
    value: float
    low: float
    high: float
    role: str = "member"


@dataclass(frozen=True)
class Shift:
    """A class's accuracy under one prediction and under another, with the number of its videos."""

    label: str
    before: float
    after: float
    n: int


@dataclass(frozen=True)
class Bin:
    """Videos of similar confidence: their mean confidence, their accuracy, and how many they are."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Line:
    """A curve: its points from left to right, each with an interval (NaN where there is none)."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    role: str = "headline"


def dot_plot(
    marks: Sequence[Mark],
    *,
    title: str,
    reference: float | None = None,
    write: Callable[[float], str] = percent,
    unit: str = " %",
    scale: float = 100,
) -> str:
    """Draw a row for each value: a dot, its interval as a line, its number at the right.

    Args:
        marks: The rows from the top; `role` is "member", "fusion", "headline", "up" or "down".
        title: What is drawn.
        reference: A value at which a dashed line stands.
        write: How a value is written.
        unit: What stands behind the axis's numbers.
        scale: What a value is multiplied by on the axis.

    Example:
        >>> drawing = dot_plot([Mark("swin", 0.64, 0.6, 0.68)], title="Accuracy")
        >>> "64.0" in drawing and "60.0–68.0" in drawing
        True
    """
    ends = [end for mark in marks for end in (mark.low, mark.high, mark.value) if not math.isnan(end)]
    ends += [] if reference is None else [reference]
    low, high, ticks = _ticks(min(ends), max(ends))

    def x(value: float) -> float:
        return 100 * (value - low) / (high - low)

    rows, described = [], []
    for mark in marks:
        interval = "" if math.isnan(mark.low + mark.high) else f"{write(mark.low)}–{write(mark.high)}"  # noqa: RUF001
        if "+" in interval or MINUS in interval:
            interval = f"{write(mark.low)} to {write(mark.high)}"
        body = [_line(x(tick), x(tick), "vf-grid") for tick in ticks]
        body += [] if reference is None else [_line(x(reference), x(reference), "vf-reference")]
        body += [_line(x(mark.low), x(mark.high), "vf-interval", 50)] if interval else []
        body.append(f'<circle cx="{x(mark.value):.2f}%" cy="50%" r="5" class="vf-dot"/>')
        small = f" <small>({interval})</small>" if interval else ""
        rows.append(_row(mark.label, body, f"{write(mark.value)}{small}", mark.role))
        described.append(f"{mark.label} {write(mark.value)}" + (f" ({interval})" if interval else ""))
    axis = _axis([(x(tick), f"{scale * tick:g}{unit}".replace("-", MINUS)) for tick in ticks])
    return _plot(f"{title}: {'; '.join(described)}", [*rows, axis])


def bar_plot(names: Sequence[str], values: Sequence[float], *, title: str) -> str:
    """Draw each member's weight as a bar with its number.

    Example:
        >>> bar_plot(["swin", "x3d"], [0.7, 0.3], title="Weights").count("<rect")
        2
    """
    largest = max([*values, 1e-12])
    rows = []
    for name, value in zip(names, values, strict=True):
        width = 100 * max(value, 0.0) / largest
        bar = f'<rect x="0" y="22%" width="{max(width, 0.3):.2f}%" height="56%" rx="2" class="vf-bar"/>'
        rows.append(_row(name, [bar], f"{value:.3f}", "up"))
    described = "; ".join(f"{name} {value:.3f}" for name, value in zip(names, values, strict=True))
    return _plot(f"{title}: {described}", rows)


def shift_plot(shifts: Sequence[Shift], *, title: str, before: str, after: str) -> str:
    """Draw for each class a line from its accuracy before to its accuracy after.

    Example:
        >>> "jump" in shift_plot([Shift("jump", 0.5, 0.75, 8)], title="Classes", before="x3d", after="fusion")
        True
    """
    quarters = (0, 25, 50, 75, 100)
    rows = []
    for shift in shifts:
        a, b = 100 * shift.before, 100 * shift.after
        text = f"{shift.label} ({shift.n} videos): {before} {percent(shift.before)}, {after} {percent(shift.after)}"
        body = [f"<title>{escape(text)}</title>", *(_line(tick, tick, "vf-grid") for tick in quarters)]
        body.append(_line(a, b, "vf-shift", 50))
        body.append(f'<circle cx="{a:.2f}%" cy="50%" r="4" class="vf-before"/>')
        body.append(f'<circle cx="{b:.2f}%" cy="50%" r="5" class="vf-after"/>')
        role = "up" if shift.after > shift.before else "down" if shift.after < shift.before else "same"
        value = f"{percent(shift.after)} <small>({points(shift.after - shift.before, digits=0)})</small>"
        rows.append(_row(shift.label, body, value, role))
    axis = _axis([(tick, f"{tick} %") for tick in quarters])
    return _plot(f"{title}: accuracy of each class, {before}, then {after}", [*rows, axis])


def reliability_diagram(series: Sequence[tuple[str, str, Sequence[Bin]]], *, title: str) -> str:
    """Draw accuracy against confidence, with the diagonal of perfect calibration and the counts of the last series.

    Args:
        series: Name, role ("member" or "headline") and bins of each prediction.
        title: What is drawn.

    Example:
        >>> bins = [Bin(0.55, 0.5, 10), Bin(0.9, 0.95, 30)]
        >>> reliability_diagram([("fusion", "headline", bins)], title="Calibration").count("<circle")
        2
    """
    left, size, strip = 46, 290, 40

    def x(value: float) -> float:
        return left + size * value

    def y(value: float) -> float:
        return 10 + size * (1 - value)

    body = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        body.append(_segment(x(0), y(tick), x(1), y(tick), "vf-grid"))
        body.append(_text(left - 8, y(tick) + 4, f"{100 * tick:g}", "end"))
        body.append(_text(x(tick), size + strip + 32, f"{100 * tick:g}", "middle"))
    body.append(_segment(x(0), y(0), x(1), y(1), "vf-reference"))
    base = size + strip + 16
    largest = max((b.n for b in series[-1][2]), default=1)
    for b in series[-1][2]:
        height = strip * b.n / largest
        body.append(
            f'<rect x="{x(b.confidence) - 4:.1f}" y="{base - height:.1f}" width="8" height="{height:.1f}" '
            f'class="vf-count"><title>{b.n} videos at confidence {percent(b.confidence)}</title></rect>'
        )
    for name, role, bins in series:
        steps = " ".join(f"{x(b.confidence):.1f},{y(b.accuracy):.1f}" for b in bins)
        body.append(f'<g class="vf-{role}"><polyline points="{steps}" class="vf-curve"/>')
        most = max((b.n for b in bins), default=1)
        for b in bins:
            radius = 2.5 + 3.5 * math.sqrt(b.n / most)
            text = f"{name}: confidence {percent(b.confidence)}, accuracy {percent(b.accuracy)}, {b.n} videos"
            body.append(
                f'<circle cx="{x(b.confidence):.1f}" cy="{y(b.accuracy):.1f}" r="{radius:.1f}" class="vf-dot">'
                f"<title>{escape(text)}</title></circle>"
            )
        body.append("</g>")
    body.append(_text(x(0.5), base + 36, "confidence %", "middle"))
    body.append(_text(12, y(0.5), "accuracy %", "middle", f'transform="rotate(-90 12 {y(0.5):.0f})"'))
    names = ", ".join(name for name, _, _ in series)
    keys = _keys([(name, role) for name, role, _ in series])
    return _scaled(left + size + 14, base + 44, f"{title}: accuracy against confidence for {names}", body) + keys


def line_plot(
    lines: Sequence[Line],
    *,
    title: str,
    x_name: str,
    y_name: str,
    write: Callable[[float], str] = percent,
    x_write: Callable[[float], str] = "{:,g}".format,
    log_x: bool = False,
) -> str:
    """Draw curves with their intervals as bands.

    Args:
        lines: The curves; `role` is "member", "fusion" or "headline".
        title: What is drawn.
        x_name: What stands below the axis.
        y_name: What stands beside the other one.
        write: How a value of y is written.
        x_write: How a value of x is written.
        log_x: Whether equal factors of x are equally far apart.

    Example:
        >>> line = Line("fusion", [10, 100], [0.5, 0.6], [0.4, 0.55], [0.6, 0.65])
        >>> drawing = line_plot([line], title="Learning curve", x_name="videos", y_name="accuracy %", log_x=True)
        >>> drawing.count("<circle"), drawing.count("<polygon")
        (2, 1)
    """
    ends = [float(v) for line in lines for part in (line.y, line.low, line.high) for v in part if math.isfinite(v)]
    low, high, ticks = _ticks(min(ends), max(ends))
    known = sorted({float(v) for line in lines for v in line.x})
    scale: Callable[[float], float] = math.log if log_x else float
    first, last = scale(known[0]), scale(known[-1])
    left, top, width, height = 50, 10, _WIDTH - 62, _HEIGHT - 54

    def x(value: float) -> float:
        return left + width * ((scale(value) - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return top + height * (high - value) / (high - low)

    # Behind: the grid, with the numbers of both axes. Then each line: its band where there are intervals, its curve,
    # and a dot for each point where there are few. In front: the axes' names.
    body = []
    for tick in ticks:
        body.append(_segment(left, y(tick), left + width, y(tick), "vf-grid"))
        body.append(_text(left - 8, y(tick) + 4, write(tick).removesuffix(".0"), "end"))
    placed, marks = -math.inf, known if len(known) <= 12 else _ticks(known[0], known[-1])[2]
    for value in marks:
        if known[0] <= value <= known[-1] and x(value) - placed >= 34:  # the numbers that have room
            body.append(_text(x(value), top + height + 18, x_write(value).removesuffix(".0"), "middle"))
            placed = x(value)
    for line in lines:
        body.append(f'<g class="vf-{line.role}">')
        band = [(v, a, b) for v, a, b in zip(line.x, line.low, line.high, strict=True) if math.isfinite(a + b)]
        if band:
            corners = [(x(v), y(b)) for v, _, b in band] + [(x(v), y(a)) for v, a, _ in reversed(band)]
            body.append(f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}" class="vf-band"/>')
        found = [(a, b) for a, b in zip(line.x, line.y, strict=True) if math.isfinite(b)]
        steps = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in found)
        body.append(f'<polyline points="{steps}" class="vf-curve"/>')
        if len(found) <= 30:
            for a, b in found:
                text = f"{line.label}: {write(b)} at {x_write(a)} {x_name}"
                body.append(
                    f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.5" class="vf-dot">'
                    f"<title>{escape(text)}</title></circle>"
                )
        body.append("</g>")
    body.append(_text(left + width / 2, _HEIGHT - 6, x_name, "middle"))
    body.append(_text(12, top + height / 2, y_name, "middle", f'transform="rotate(-90 12 {top + height / 2:.0f})"'))
    described = "; ".join(f"{line.label} from {write(line.y[0])} to {write(line.y[-1])}" for line in lines)
    keys = _keys([(line.label, line.role) for line in lines]) if len(lines) > 1 else ""
    return _scaled(_WIDTH, _HEIGHT, f"{title}: {y_name} against {x_name}. {described}", body) + keys


def heat_table(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    texts: Sequence[Sequence[str]],
    palest: float = 0.0,
) -> str:
    """Draw a matrix of shares as a table whose cells are darker for more, in a box where what is too wide scrolls.

    Args:
        values: Shares in 0 … 1, shape (rows, columns).
        rows: The rows' names.
        columns: The columns' names.
        title: What is drawn.
        texts: What stands in the cells; of many columns it is a tooltip.
        palest: The share that has the palest colour.

    Example:
        >>> texts = [["9", ""], ["1", "8"]]
        >>> heat_table(np.eye(2), ["a", "b"], ["a", "b"], title="Confusion", texts=texts).count("<td ")
        4
    """
    depths = np.clip((values - palest) / max(1 - palest, 1e-9), 0, 1)
    head = "".join(f'<th scope="col" title="{escape(name)}"><span>{escape(name)}</span></th>' for name in columns)
    body = []
    for row, name in enumerate(rows):
        cells = []
        for column, other in enumerate(columns):
            depth, text = float(depths[row, column]), texts[row][column]
            css = ' class="on"' if depth > DARK_FROM else ""
            said = f"{name}, {other}: {percent(float(values[row, column]))} %"
            cells.append(
                f'<td style="--v:{100 * depth:.0f}%"{css} title="{escape(said)}"><span>{escape(text)}</span></td>'
            )
        body.append(f'<tr><th scope="row" title="{escape(name)}"><span>{escape(name)}</span></th>{"".join(cells)}</tr>')
    many = len(columns)
    size = " silent" if many > _MOST_WRITTEN else " many" if many > _TELEPHONE else ""
    size += " short" if max(map(len, columns)) <= 3 else ""  # their names need not be turned
    label = max(map(len, rows)) + 2
    return (
        f'<div class="scroll" role="region" aria-label="{escape(title)}" tabindex="0">'
        f'<table class="heat{size}" style="--label:{label}ch"><caption class="unseen">{escape(title)}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _plot(description: str, rows: Sequence[str]) -> str:
    return f'<div class="plot" role="img" aria-label="{escape(description)}">{"".join(rows)}</div>'


def _row(label: str, body: Sequence[str], value: str, role: str) -> str:
    """Return a row of label, track and value; the value is HTML."""
    return (
        f'<div class="row vf-{role}"><span class="label">{escape(label)}</span>'
        f'<span class="track"><svg aria-hidden="true">{"".join(body)}</svg></span>'
        f'<span class="value">{value}</span></div>'
    )


def _axis(ticks: Sequence[tuple[float, str]]) -> str:
    """Return the row below the tracks; on a narrow track every second number is left out, the first stays."""
    texts = []
    for i, (place, text) in enumerate(ticks):
        anchor = "start" if place < 4 else "end" if place > 96 else "middle"
        css = "vf-axis" if i % 2 == 0 else "vf-axis vf-second"
        texts.append(f'<text x="{place:.2f}%" y="14" class="{css}" text-anchor="{anchor}">{escape(text)}</text>')
    return (
        '<div class="row axis"><span class="label"></span><span class="track"><svg aria-hidden="true">'
        f'{"".join(texts)}</svg></span><span class="value"></span></div>'
    )


def _line(x1: float, x2: float, css: str, y: float | None = None) -> str:
    """Return a line of a track, places in per cent: upright through the whole row, or level at a height."""
    y1, y2 = (0, 100) if y is None else (y, y)
    return f'<line x1="{x1:.2f}%" y1="{y1}%" x2="{x2:.2f}%" y2="{y2}%" class="{css}"/>'


def _keys(keys: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<li class="vf-{role}"><span class="key"></span>{escape(name)}</li>' for name, role in keys)
    return f'<ul class="keys">{items}</ul>'


def _scaled(width: float, height: float, description: str, body: Sequence[str]) -> str:
    return (
        f'<svg role="img" class="scaled" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'aria-label="{escape(description)}">{"".join(body)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="vf-axis" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _segment(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def _ticks(low: float, high: float) -> tuple[float, float, list[float]]:
    """Return the ends of an axis and its ticks, at steps of 1, 2 or 5 times a power of ten.

    Example:
        >>> _ticks(0.62, 0.86)
        (0.6, 0.9, [0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9])
    """
    if high - low < 0.01:
        low, high = low - 0.005, high + 0.005
        low = max(low, 0.0) if low > -0.006 else low
    width = high - low
    power = 10.0 ** math.floor(math.log10(width / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width / 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(index * step, 10) for index in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks
