"""Plots as inline SVG: pure functions from numbers to a string.

Colours are CSS classes of the page (`vf-*`), so that one drawing serves light and dark. Every drawing has a title and a
description for screen readers; marks carry their numbers as tooltips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from vidfuse._tables import percent, points, span

__all__ = ["Bin", "Mark", "Shift", "dot_plot", "heat_map", "reliability_diagram", "shift_plot", "weight_bars"]

_ROW = 26  # height of a row of text
_CHARACTER = 7.2  # mean width of a character at 13 px


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


def dot_plot(marks: Sequence[Mark], *, title: str, reference: float | None = None, unit: str = "%") -> str:
    """Draw a row for each share: a dot, its interval as a line, its value at the right.

    Args:
        marks: The rows from the top; `role` is "member", "fusion" or "headline".
        title: What is drawn.
        reference: A share at which a dashed line stands.
        unit: What stands behind the axis's numbers.

    Example:
        >>> drawing = dot_plot([Mark("swin", 0.64, 0.6, 0.68)], title="Accuracy")
        >>> drawing.startswith("<svg") and "64.0" in drawing
        True
    """
    left, plot, right = _label_width([mark.label for mark in marks]), 420, 160
    low, high, ticks = _ticks(min(mark.low for mark in marks), max(mark.high for mark in marks))
    bottom = 14 + _ROW * len(marks)

    def x(value: float) -> float:
        return left + plot * (value - low) / (high - low)

    body = []
    for tick in ticks:
        body.append(_line(x(tick), 8, x(tick), bottom, "vf-grid"))
        body.append(_text(x(tick), bottom + 16, f"{100 * tick:g} {unit}", "vf-axis", "middle"))
    if reference is not None:
        body.append(_line(x(reference), 8, x(reference), bottom, "vf-reference"))
    for row, mark in enumerate(marks):
        y = 14 + _ROW * (row + 0.5)
        value = f"{percent(mark.value)} ({span((mark.low, mark.high))})"
        body.append(f'<g class="vf-{mark.role}"><title>{escape(mark.label)}: {value}</title>')
        body.append(_text(left - 12, y + 4, _short(mark.label), "vf-label", "end"))
        body.append(_line(x(mark.low), y, x(mark.high), y, "vf-interval"))
        body.append(f'<circle cx="{x(mark.value):.1f}" cy="{y:.1f}" r="5" class="vf-dot"/>')
        body.append(_text(left + plot + 14, y + 4, value, "vf-value", "start"))
        body.append("</g>")
    description = "; ".join(f"{mark.label} {percent(mark.value)} ({span((mark.low, mark.high))})" for mark in marks)
    return _svg(left + plot + right, bottom + 24, title, description, body)


def weight_bars(names: Sequence[str], weights: Sequence[float], *, title: str) -> str:
    """Draw each member's weight as a bar with its number.

    Example:
        >>> weight_bars(["swin", "x3d"], [0.7, 0.3], title="Weights").count("<rect")
        2
    """
    left, plot = _label_width(names), 300
    largest = max([*weights, 1e-12])
    body = []
    for row, (name, weight) in enumerate(zip(names, weights, strict=True)):
        y, width = 4 + _ROW * row, plot * max(weight, 0.0) / largest
        body.append(_text(left - 12, y + 17, _short(name), "vf-label", "end"))
        body.append(_rect(left, y + 4, max(width, 1.0), _ROW - 8, "vf-bar"))
        body.append(_text(left + width + 8, y + 17, f"{weight:.3f}", "vf-value", "start"))
    description = "; ".join(f"{name} {weight:.3f}" for name, weight in zip(names, weights, strict=True))
    return _svg(left + plot + 60, 8 + _ROW * len(names), title, description, body)


def shift_plot(shifts: Sequence[Shift], *, title: str, before: str, after: str) -> str:
    """Draw for each class a line from its accuracy before to its accuracy after.

    Example:
        >>> "jump" in shift_plot([Shift("jump", 0.5, 0.75, 8)], title="Classes", before="x3d", after="fusion")
        True
    """
    left, plot = _label_width([shift.label for shift in shifts]), 420
    bottom = 14 + _ROW * len(shifts)
    body = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        body.append(_line(left + plot * tick, 8, left + plot * tick, bottom, "vf-grid"))
        body.append(_text(left + plot * tick, bottom + 16, f"{100 * tick:g} %", "vf-axis", "middle"))
    for row, shift in enumerate(shifts):
        y = 14 + _ROW * (row + 0.5)
        a, b = left + plot * shift.before, left + plot * shift.after
        text = f"{shift.label} ({shift.n} videos): {before} {percent(shift.before)}, {after} {percent(shift.after)}"
        css = "up" if shift.after > shift.before else "down" if shift.after < shift.before else "same"
        change = points(shift.after - shift.before, digits=0)
        body.append(f'<g class="vf-{css}"><title>{escape(text)}</title>')
        body.append(_text(left - 12, y + 4, _short(shift.label), "vf-label", "end"))
        body.append(_line(a, y, b, y, "vf-shift"))
        body.append(f'<circle cx="{a:.1f}" cy="{y:.1f}" r="4" class="vf-before"/>')
        body.append(f'<circle cx="{b:.1f}" cy="{y:.1f}" r="5" class="vf-after"/>')
        body.append(_text(left + plot + 14, y + 4, change, "vf-value", "start"))
        body.append("</g>")
    description = f"Accuracy of each class: {before}, then {after}."
    return _svg(left + plot + 60, bottom + 24, title, description, body)


def reliability_diagram(series: Sequence[tuple[str, str, Sequence[Bin]]], *, title: str) -> str:
    """Draw accuracy against confidence, with the diagonal of perfect calibration and the count of the last series.

    Args:
        series: Name, role ("member" or "headline") and bins of each prediction.
        title: What is drawn.

    Example:
        >>> bins = [Bin(0.55, 0.5, 10), Bin(0.9, 0.95, 30)]
        >>> reliability_diagram([("fusion", "headline", bins)], title="Calibration").count("<circle")
        2
    """
    left, size, strip = 52, 300, 46

    def x(value: float) -> float:
        return left + size * value

    def y(value: float) -> float:
        return 10 + size * (1 - value)

    body = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        body.append(_line(x(0), y(tick), x(1), y(tick), "vf-grid"))
        body.append(_text(left - 10, y(tick) + 4, f"{100 * tick:g}", "vf-axis", "end"))
        body.append(_text(x(tick), size + strip + 32, f"{100 * tick:g}", "vf-axis", "middle"))
    body.append(_line(x(0), y(0), x(1), y(1), "vf-reference"))
    base = size + strip + 16
    largest = max((b.n for b in series[-1][2]), default=1)
    for b in series[-1][2]:
        height = strip * b.n / largest
        body.append(f"<g><title>{b.n} videos at confidence {percent(b.confidence)}</title>")
        body.append(_rect(x(b.confidence) - 4, base - height, 8, height, "vf-count") + "</g>")
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
    body.append(_text(x(0.5), base + 36, "confidence %", "vf-axis", "middle"))
    body.append(_text(14, y(0.5), "accuracy %", "vf-axis", "middle", f'transform="rotate(-90 14 {y(0.5):.0f})"'))
    names = ", ".join(name for name, _, _ in series)
    return _svg(left + size + 20, base + 44, title, f"Accuracy against confidence for {names}.", body)


def heat_map(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    texts: Sequence[Sequence[str]] | None = None,
    palest: float = 0.0,
) -> str:
    """Draw a matrix of shares, darker for more.

    Args:
        values: Shares in 0 … 1, shape (rows, columns).
        rows: The rows' names.
        columns: The columns' names.
        title: What is drawn.
        texts: What is written in the cells; nothing by default.
        palest: The share that has the palest colour.

    Example:
        >>> heat_map(np.eye(2), ["a", "b"], ["a", "b"], title="Confusion").count("<rect")
        4
    """
    # Rows' names take the left, columns' names the top, turned by 45°; the rest is squares of side `cell`.
    cell = 44 if texts is not None else max(20, min(30, 560 // max(len(columns), 1)))
    left = _label_width(rows)
    tall = 14 + 0.72 * _CHARACTER * max(len(_short(name)) for name in columns)
    body = []
    for column, name in enumerate(columns):
        x = left + cell * (column + 0.5)
        turn = f'transform="rotate(-45 {x:.1f} {tall - 6:.1f})"'
        body.append(_text(x, tall - 6, _short(name), "vf-label", "start", turn))
    for row, name in enumerate(rows):
        y = tall + cell * row
        body.append(_text(left - 10, y + cell / 2 + 4, _short(name), "vf-label", "end"))
        for column, other in enumerate(columns):
            value = float(values[row, column])
            depth = min(max((value - palest) / max(1 - palest, 1e-9), 0.0), 1.0)
            x = left + cell * column
            body.append(f"<g><title>{escape(name)}, {escape(other)}: {percent(value)} %</title>")
            body.append(_rect(x, y, cell - 1, cell - 1, "vf-cell", f'fill-opacity="{0.06 + 0.94 * depth:.3f}"'))
            if texts is not None:
                css = "vf-on" if depth > 0.68 else "vf-off"
                body.append(_text(x + (cell - 1) / 2, y + cell / 2 + 4, texts[row][column], css, "middle"))
            body.append("</g>")
    width = left + cell * len(columns) + tall
    return _svg(width, tall + cell * len(rows) + 4, title, f"{len(rows)} rows, {len(columns)} columns.", body)


def _svg(width: float, height: float, title: str, description: str, body: Sequence[str]) -> str:
    return (
        f'<svg role="img" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'aria-label="{escape(title)}. {escape(description)}">{"".join(body)}</svg>'
    )


def _text(x: float, y: float, text: str, css: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def _rect(x: float, y: float, width: float, height: float, css: str, more: str = "") -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2" class="{css}" {more}/>'


def _short(label: str, longest: int = 30) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"


def _label_width(labels: Sequence[str]) -> float:
    return 20 + _CHARACTER * max(len(_short(label)) for label in labels)


def _ticks(low: float, high: float) -> tuple[float, float, list[float]]:
    """Return the ends of an axis of shares and its ticks, at steps of 1, 2 or 5 times a power of ten.

    Example:
        >>> _ticks(0.62, 0.86)
        (0.6, 0.9, [0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9])
    """
    if high - low < 0.01:
        low, high = max(low - 0.005, 0.0), high + 0.005
    width = high - low
    power = 10.0 ** math.floor(math.log10(width / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width / 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(index * step, 10) for index in range(first, last + 1)]
    return ticks[0], ticks[-1], [tick for tick in ticks if tick <= 1.0 + 1e-9]
