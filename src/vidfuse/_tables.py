"""Tables of results: one description of columns and cells, written as text, markdown, HTML, LaTeX, csv or a frame."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal, NamedTuple

from vidfuse._files import replace
from vidfuse.errors import InputError, MissingExtraError

__all__ = [
    "MINUS",
    "Cell",
    "Column",
    "Estimate",
    "Table",
    "Tabular",
    "bare_p",
    "latex_escape",
    "number",
    "p_value",
    "percent",
    "points",
    "signed",
    "span",
    "weight_table",
    "writers",
]

_NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
_BEST = "*: the best of its column."


class Estimate(NamedTuple):
    """A number with its interval, as one cell of a table."""

    value: float
    low: float
    high: float


Cell = str | bool | int | float | Estimate | None
"""What a table holds: a name, a number, a number with its interval, or nothing."""


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: What people read above it.
        key: Its name in frames and csv; by default the heading in lower case, other characters as underscores.
        write: How a number of it is written for people.
        best: Which of its numbers is the best one, and is marked; None where none is better than another.
        shown: Whether people see it; frames and csv have every column.
    """

    heading: str
    key: str = ""
    write: Callable[[Any], str] = _plain
    best: Literal["high", "low"] | None = None
    shown: bool = True

    @property
    def name(self) -> str:
        """The column's name in frames and csv."""
        return self.key or re.sub(r"\W+", "_", self.heading.lower()).strip("_") or "name"

    def value(self, cell: Cell) -> str:
        """Return what is written of a cell, without its interval."""
        number = cell.value if isinstance(cell, Estimate) else cell
        return number if isinstance(number, str) else "" if number is None else self.write(number)

    def interval(self, cell: Cell) -> str:
        """Return what is written of a cell's interval; nothing where it has none."""
        if not isinstance(cell, Estimate) or math.isnan(cell.low) or math.isnan(cell.high):
            return ""
        low, high = self.write(cell.low), self.write(cell.high)
        signed = low[:1] in ("+", MINUS) or high[:1] in ("+", MINUS)
        return f"{low} to {high}" if signed else f"{low}{_NONE}{high}"


@dataclass(frozen=True)
class Table:
    """Columns and rows, a title and notes; the first column is text, the others are numbers.

    Attributes:
        columns: The columns; a string stands for a column with that heading.
        rows: The cells, one for each column.
        title: What the table shows.
        notes: What one must know to read it, one sentence each.
        strong: The positions of the rows that stand out.
        indented: The positions of the rows that stand below another one.

    Example:
        >>> columns = ("member", Column("top-1 %", "accuracy", percent, best="high"))
        >>> print(Table(columns, (("swin", Estimate(0.64, 0.6, 0.68)), ("x3d", 0.625)), title="Members"))
        Members
        member            top-1 %
        ------  -----------------
        swin    64.0* (60.0–68.0)
        x3d                 62.5
        *: the best of its column.
    """

    columns: tuple[Column | str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    strong: frozenset[int] = frozenset()
    indented: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"expected {len(self.columns)} cells in each row, got {len(row)}: {row}")

    @property
    def heads(self) -> tuple[Column, ...]:
        """The columns, all of them as `Column`."""
        return tuple(Column(column) if isinstance(column, str) else column for column in self.columns)

    def best(self) -> frozenset[tuple[int, int]]:
        """Return the (row, column) of every cell that is the best of its column, equals as they are written included.

        A column whose numbers are all written alike has no best one.
        """
        found: set[tuple[int, int]] = set()
        for j, column in enumerate(self.heads):
            numbers = {i: number for i, row in enumerate(self.rows) if (number := _finite(row[j])) is not None}
            written = {i: column.value(self.rows[i][j]) for i in numbers}
            if column.best is None or len(set(written.values())) < 2:
                continue
            top = max(numbers, key=lambda i: numbers[i] if column.best == "high" else -numbers[i])
            found |= {(i, j) for i in numbers if written[i] == written[top]}
        return frozenset(found)

    def to_text(self) -> str:
        """Return the table for a terminal; the best number of a column has a star."""
        best, shown = self.best(), self._shown()
        starred = {j for _, j in best}  # their other numbers keep a blank for the star: digits stand below each other
        texts = [
            [_text(self.heads[j], row[j], "*" if (i, j) in best else " " * (j in starred)) for j in shown]
            for i, row in enumerate(self.rows)
        ]
        for i in self.indented:
            texts[i][0] = f"  {texts[i][0]}"
        headings = [self.heads[j].heading for j in shown]
        widths = [max(map(len, column)) for column in zip(headings, *texts, strict=True)]
        lines = [self.title] if self.title else []
        lines += [_aligned(headings, widths), "  ".join("-" * width for width in widths)]
        lines += [_aligned(row, widths) for row in texts]
        return "\n".join([*lines, *self.notes, *([_BEST] if best else [])])

    def to_markdown(self) -> str:
        """Return the table in GitHub's markdown; strong rows and the best number of a column are bold."""
        best, shown = self.best(), self._shown()
        rows = []
        for i, row in enumerate(self.rows):
            cells = []
            for j in shown:
                value, interval = self.heads[j].value(row[j]), self.heads[j].interval(row[j])
                text = _markdown(f"{value} ({interval})" if interval else value)
                if text and i in self.strong:
                    text = f"**{text}**"
                elif (i, j) in best:
                    text = text.replace(_markdown(value), f"**{_markdown(value)}**", 1)
                cells.append(text)
            rows.append(cells)
        lines = [f"**{_markdown(self.title)}**\n"] if self.title else []
        lines.append("| " + " | ".join(_markdown(self.heads[j].heading) for j in shown) + " |")
        lines.append("|" + "|".join(["---", *["--:"] * (len(shown) - 1)]) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join(lines) + "".join(f"\n\n{_markdown(note)}" for note in self.notes)

    def to_html(self) -> str:
        """Return a `<table>` with a caption, scoped headings, the best numbers in `<strong>`, and the notes below."""
        best, shown = self.best(), self._shown()
        head = "".join(f'<th scope="col">{_heading(self.heads[j])}</th>' for j in shown)
        body = []
        for i, row in enumerate(self.rows):
            classes = [name for name, rows in (("strong", self.strong), ("indented", self.indented)) if i in rows]
            css = f' class="{" ".join(classes)}"' if classes else ""
            cells = "".join(f"<td>{_html(self.heads[j], row[j], (i, j) in best)}</td>" for j in shown[1:])
            first = _html(self.heads[shown[0]], row[shown[0]], False)
            body.append(f'<tr{css}><th scope="row">{first}</th>{cells}</tr>')
        caption = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        notes = "".join(f'<p class="note">{escape(note)}</p>' for note in self.notes)
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>{notes}"

    def to_latex(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        caption: str | None = None,
        label: str | None = None,
        intervals: bool = True,
    ) -> str:
        r"""Return a `tabular` for LaTeX, in the style of booktabs: names escaped, the best number of a column bold.

        The document needs `\usepackage{booktabs}`. The notes go along as comments.

        Args:
            path: A file to write it to as well.
            caption: What stands below; with it, or a label, the tabular stands in a `table`.
            label: The name for `\ref`.
            intervals: Whether intervals are written, in small print.

        Example:
            >>> table = Table(("member", Column("top-1 %", "acc", percent, "high")), (("x3d_m", 0.62), ("swin", 0.64)))
            >>> print(table.to_latex())
            \begin{tabular}{lr}
            \toprule
            member & top-1 \% \\
            \midrule
            x3d\_m & 62.0 \\
            swin & \textbf{64.0} \\
            \bottomrule
            \end{tabular}
        """
        best, shown = self.best(), self._shown()
        lines = [f"% {' '.join(note.split())}" for note in self.notes]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(shown) - 1)}}}", r"\toprule"]
        lines += [" & ".join(latex_escape(self.heads[j].heading) for j in shown) + r" \\", r"\midrule"]
        for i, row in enumerate(self.rows):
            cells = [_latex(self.heads[j], row[j], (i, j) in best, intervals) for j in shown]
            indent = r"\quad " if i in self.indented else ""
            lines.append(indent + " & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        if caption is not None or label is not None:
            ends = [rf"\caption{{{latex_escape(caption)}}}"] if caption is not None else []
            ends += [rf"\label{{{label}}}"] if label is not None else []
            lines = [r"\begin{table}", r"\centering", *lines, *ends, r"\end{table}"]
        return _written("\n".join(lines), path)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return every column as comma-separated values: numbers in full, an interval as two columns more.

        Args:
            path: A file to write it to as well.

        Example:
            >>> print(Table(("member", "accuracy"), (("swin", Estimate(0.64, 0.6, 0.68)),)).to_csv())
            member,accuracy,accuracy_low,accuracy_high
            swin,0.64,0.6,0.68
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        values = self._values()
        writer.writerow(values)
        writer.writerows(zip(*values.values(), strict=True))
        return _written(out.getvalue().removesuffix("\n"), path)

    def to_frame(self) -> Any:
        """Return every column as a pandas frame: numbers in full, an interval as two columns more.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError("a table as a frame", "report") from error
        return pd.DataFrame(self._values())

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return self.to_html()

    def _shown(self) -> list[int]:
        return [j for j, column in enumerate(self.heads) if column.shown]

    def _values(self) -> dict[str, list[Any]]:
        """Return the cells by column: numbers as they are; NaN for nothing in a column of numbers."""
        columns: dict[str, list[Any]] = {}
        for j, column in enumerate(self.heads):
            cells = [row[j] for row in self.rows]
            numeric = any(isinstance(cell, float) for cell in cells)  # an Estimate is a tuple
            estimates = any(isinstance(cell, Estimate) for cell in cells)
            nothing = math.nan if numeric or estimates else None
            found = [cell.value if isinstance(cell, Estimate) else nothing if cell is None else cell for cell in cells]
            columns[column.name] = found
            if estimates:
                columns[f"{column.name}_low"] = [c.low if isinstance(c, Estimate) else math.nan for c in cells]
                columns[f"{column.name}_high"] = [c.high if isinstance(c, Estimate) else math.nan for c in cells]
        return columns


class Tabular(ABC):
    """A result that is a table: a class says which one, and gets every way of writing it."""

    @abstractmethod
    def table(self) -> Table:
        """Return the result as a table."""

    def to_frame(self) -> Any:
        """Return the table as a pandas frame; see `Table.to_frame`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return self.table().to_frame()

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the table as comma-separated values, and write them to a path where one is given."""
        return self.table().to_csv(path)

    def to_latex(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        caption: str | None = None,
        label: str | None = None,
        intervals: bool = True,
    ) -> str:
        """Return the table for LaTeX with booktabs; see `Table.to_latex`."""
        return self.table().to_latex(path, caption=caption, label=label, intervals=intervals)

    def _repr_html_(self) -> str:
        return self.table().to_html()


def weight_table(weights: Mapping[str, float], title: str = "") -> Table:
    """Return members' weights as a table, the largest first.

    Example:
        >>> print(weight_table({"x3d": 0.25, "swin": 0.75}))
        member  weight
        ------  ------
        swin    0.7500
        x3d     0.2500
    """
    ranked = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    return Table(("member", Column("weight", write=lambda value: number(value, 4))), tuple(ranked), title)


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


def points(value: float, digits: int = 1) -> str:
    """Write a difference of shares in percentage points, with its sign.

    Example:
        >>> points(0.0421), points(-0.003), points(0.0), points(float("nan"))
        ('+4.2', '−0.3', '0.0', '–')
    """
    if math.isnan(value):
        return _NONE
    text = f"{100 * value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def number(value: float, digits: int = 3) -> str:
    """Write a number with a fixed count of decimals; infinite as a symbol, absent as a dash.

    Example:
        >>> number(0.20391), number(-1.5, 1), number(float("inf")), number(float("nan"))
        ('0.204', '−1.5', '∞', '–')
    """
    if math.isnan(value):
        return _NONE
    return ("∞" if value > 0 else f"{MINUS}∞") if math.isinf(value) else f"{value:.{digits}f}".replace("-", MINUS)


def p_value(value: float) -> str:
    """Write a p-value as `p = 0.003`, or as a bound below 0.001.

    Example:
        >>> p_value(0.0034), p_value(1e-9), p_value(0.42), p_value(1.0)
        ('p = 0.003', 'p < 0.001', 'p = 0.42', 'p = 1')
    """
    if value < 0.001:
        return "p < 0.001"
    return f"p = {value:.1g}" if value < 0.01 else f"p = {value:.2g}"


def bare_p(value: float) -> str:
    """Write a p-value below the heading "p".

    Example:
        >>> bare_p(0.0034), bare_p(1e-9)
        ('0.003', '< 0.001')
    """
    return p_value(value).removeprefix("p ").removeprefix("= ")


def signed(value: float) -> str:
    """Write a difference of other numbers than shares, with its sign.

    Example:
        >>> signed(0.25), signed(-0.25), signed(0.0)
        ('+0.250', '−0.250', '0.000')
    """
    text = number(value)
    return f"+{text}" if value > 0 and float(text.replace("∞", "inf")) != 0 else text


def writers(objective: str) -> tuple[Callable[[float], str], Callable[[float], str], str]:
    """Return how values of an objective are written, how their differences are, and what stands behind the heading.

    Example:
        >>> [write(0.5) for write in writers("accuracy")[:2]], [write(0.5) for write in writers("nll")[:2]]
        (['50.0', '+50.0'], ['0.500', '+0.500'])
    """
    return (percent, points, " %") if objective.endswith("accuracy") else (number, signed, "")


_LATEX: Mapping[str, str] = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "''",
    MINUS: "$-$",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "×": r"$\times$",  # noqa: RUF001 -- the sign itself
    "→": r"$\to$",
    "…": r"\dots{}",
    _NONE: "--",
    "\N{EM DASH}": "---",
    "“": "``",
    "”": "''",
    "\N{NO-BREAK SPACE}": "~",
}


def latex_escape(text: str) -> str:
    r"""Return text in which LaTeX reads every character as itself; line breaks become spaces.

    Letters of other alphabets stay as they are: LaTeX reads UTF-8, and prints what the document's font has.

    Example:
        >>> latex_escape("R(2+1)D_34 & co: 50 %, −1 < x")
        'R(2+1)D\\_34 \\& co: 50 \\%, $-$1 $<$ x'
    """
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split(sep=None)) if sign.isprintable())


def _finite(cell: Cell) -> float | None:
    """Return the cell's number; None where it is text, a truth, nothing, or not finite."""
    value = cell.value if isinstance(cell, Estimate) else cell
    if isinstance(value, str | bool) or value is None or not math.isfinite(value):
        return None
    return float(value)


def _text(column: Column, cell: Cell, star: str) -> str:
    value, interval = column.value(cell), column.interval(cell)
    return f"{value}{star} ({interval})" if interval else f"{value}{star}"


def _heading(column: Column) -> str:
    """Return a heading's HTML, in which no line begins with a per cent sign."""
    return escape(column.heading).replace(" %", "&#160;%")


def _html(column: Column, cell: Cell, best: bool) -> str:
    value, interval = escape(column.value(cell)), escape(column.interval(cell))
    value = f"<strong>{value}</strong>" if best else value
    return f"{value} <small>({interval})</small>" if interval else value


def _latex(column: Column, cell: Cell, best: bool, intervals: bool) -> str:
    value, interval = latex_escape(column.value(cell)), latex_escape(column.interval(cell))
    value = rf"\textbf{{{value}}}" if best else value
    return rf"{value} {{\scriptsize ({interval})}}" if interval and intervals else value


def _markdown(text: str) -> str:
    return text.replace("|", "\\|")


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]).rstrip()


def _written(text: str, path: str | os.PathLike[str] | None) -> str:
    if path is not None:
        if os.path.isdir(path):
            raise InputError(f"{os.fspath(path)}: expected a file to write the table to, got a folder")
        replace(path, text + "\n")
    return text
