"""A table of strings that prints itself as plain text, markdown or HTML, and how numbers are written in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["MINUS", "Table", "number", "p_value", "percent", "points", "share", "span"]

_NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Table:
    """Columns and rows of strings, a title and notes; the first column is text, the others are numbers.

    Attributes:
        columns: The headings.
        rows: The cells, one string for each column.
        title: What the table shows.
        notes: What one must know to read it, one sentence each.
        strong: The positions of the rows that stand out.

    Example:
        >>> print(Table(("member", "top-1 %"), (("swin", "64.0"), ("x3d", "62.5")), title="Members"))
        Members
        member  top-1 %
        ------  -------
        swin       64.0
        x3d        62.5
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    strong: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"expected {len(self.columns)} cells in each row, got {len(row)}: {row}")

    def to_text(self) -> str:
        """Return the table for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [self.title] if self.title else []
        lines += [_aligned(self.columns, widths), "  ".join("-" * width for width in widths)]
        lines += [_aligned(row, widths) for row in self.rows]
        return "\n".join([*lines, *self.notes])

    def to_markdown(self) -> str:
        """Return the table in GitHub's markdown."""
        rows = [
            [f"**{_markdown(cell)}**" if i in self.strong and cell else _markdown(cell) for cell in row]
            for i, row in enumerate(self.rows)
        ]
        lines = [f"**{_markdown(self.title)}**\n"] if self.title else []
        lines.append("| " + " | ".join(map(_markdown, self.columns)) + " |")
        lines.append("|" + "|".join(["---", *["--:"] * (len(self.columns) - 1)]) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join(lines) + "".join(f"\n\n{_markdown(note)}" for note in self.notes)

    def to_html(self) -> str:
        """Return a `<table>` with a caption, scoped headings, and the notes below."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.columns)
        body = []
        for i, row in enumerate(self.rows):
            css = ' class="strong"' if i in self.strong else ""
            cells = "".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])
            body.append(f'<tr{css}><th scope="row">{escape(row[0])}</th>{cells}</tr>')
        caption = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        notes = "".join(f'<p class="note">{escape(note)}</p>' for note in self.notes)
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>{notes}"

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return self.to_html()


def percent(value: float, digits: int = 1) -> str:
    """Write a share as a percentage, without the sign.

    Example:
        >>> percent(0.8314), percent(float("nan"))
        ('83.1', '–')
    """
    return _NONE if math.isnan(value) else f"{100 * value:.{digits}f}"


def span(interval: Sequence[float]) -> str:
    """Write an interval of shares in percent.

    Example:
        >>> span((0.799, 0.86))
        '79.9–86.0'
    """
    return f"{percent(interval[0])}{_NONE}{percent(interval[1])}"


def share(value: float, interval: Sequence[float]) -> str:
    """Write a share and its interval in percent; the share alone where the interval was refused.

    Example:
        >>> share(0.8314, (0.799, 0.86)), share(0.8314, (math.nan, math.nan))
        ('83.1 (79.9–86.0)', '83.1')
    """
    if math.isnan(interval[0]):
        return percent(value)
    return f"{percent(value)} ({span(interval)})"


def points(value: float, digits: int = 1) -> str:
    """Write a difference of shares in percentage points, with its sign.

    Example:
        >>> points(0.0421), points(-0.003), points(0.0)
        ('+4.2', '−0.3', '0.0')
    """
    text = f"{100 * value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def number(value: float, digits: int = 3) -> str:
    """Write a number with a fixed count of decimals; infinite as a symbol, absent as a dash.

    Example:
        >>> number(0.20391), number(float("inf")), number(float("nan"))
        ('0.204', '∞', '–')
    """
    if math.isnan(value):
        return _NONE
    return ("∞" if value > 0 else f"{MINUS}∞") if math.isinf(value) else f"{value:.{digits}f}"


def p_value(value: float) -> str:
    """Write a p-value as `p = 0.003`, or as a bound below 0.001.

    Example:
        >>> p_value(0.0034), p_value(1e-9), p_value(0.42), p_value(1.0)
        ('p = 0.003', 'p < 0.001', 'p = 0.42', 'p = 1')
    """
    if value < 0.001:
        return "p < 0.001"
    return f"p = {value:.1g}" if value < 0.01 else f"p = {value:.2g}"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]).rstrip()


def _cell(text: str) -> str:
    """Return a cell's HTML, an interval at its end in small print."""
    value, bracket, rest = text.partition(" (")
    return f"{escape(value)} <small>({escape(rest)}</small>" if bracket else escape(text)


def _markdown(text: str) -> str:
    return text.replace("|", "\\|")
