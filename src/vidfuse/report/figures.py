"""Figures for a paper: functions from results to matplotlib axes.

Every function takes `ax=`, draws on it, and returns it; without one it makes a figure as wide as a column (3.3 in),
with type of 7 and 8 points. Colours are those of Okabe and Ito, which most colour-blind people tell apart; what
differs in colour also differs in its marker, place or label. matplotlib loads on first use (the extra `report`).

Source:
    Okabe and Ito (2008), Color universal design, jfly.uni-koeln.de/color: the palette.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vidfuse._files import replace
from vidfuse.errors import InputError, MissingExtraError
from vidfuse.evaluation.curves import Curve
from vidfuse.evaluation.worth import MemberWorth
from vidfuse.metrics.probabilistic import Reliability
from vidfuse.metrics.selective import RiskCoverage
from vidfuse.report.tables import Leaderboard
from vidfuse.selection.cascade import CascadeFront
from vidfuse.selection.contribution import Contributions, Diversity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "FORMATS",
    "STYLE",
    "WIDTH",
    "agreement",
    "close",
    "contributions",
    "curve",
    "front",
    "leaderboard",
    "reliability",
    "risk",
    "save",
    "worth",
]

WIDTH: Final = 3.3
"""Inches: a column of most two-column papers."""

FORMATS: Final = ("svg", "pdf", "png")

COLOURS: Final = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "sky": "#56B4E9",
    "orange": "#E69F00",
    "purple": "#CC79A7",
    "grey": "#6E7781",
}

_DASHES: Final = ("-", "--", ":", "-.", (0, (1, 3)), (0, (6, 2)), (0, (3, 1, 1, 1)))

STYLE: Final[dict[str, Any]] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "svg.hashsalt": "vidfuse",  # the same figure is the same file
    "savefig.dpi": 300,
    "figure.dpi": 150,
}


@contextmanager
def _canvas(ax: Axes | None, height: float) -> Iterator[Axes]:
    """Give the axes to draw on: those that are given, or a figure of their own in this module's style."""
    if ax is not None:
        yield ax
        return
    pyplot = _pyplot()
    with pyplot.rc_context(STYLE):
        figure = pyplot.figure(figsize=(WIDTH, height), layout="constrained")
        yield figure.subplots()
        figure.canvas.draw()  # ticks take their style when they are first drawn


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError("a figure", "report") from error
    return pyplot


def leaderboard(board: Leaderboard, *, ax: Axes | None = None) -> Axes:
    """Draw the accuracy of every member and rule with its interval, best first; dashed: the best single member.

    Example:
        >>> from vidfuse.report import leaderboard as score
        >>> from vidfuse.stack.stack import LogitStack
        >>> rng = np.random.default_rng(0)
        >>> y = np.arange(60) % 3
        >>> arrays = {name: rng.normal(size=(60, 3)) + np.eye(3)[y] for name in ("swin", "x3d")}
        >>> ax = leaderboard(score(LogitStack.from_arrays(arrays, labels=y)))
        >>> ax.get_xlabel(), len(ax.get_yticks())
        ('top-1 accuracy (%)', 8)
    """
    with _canvas(ax, 0.6 + 0.16 * len(board.entries)) as axes:
        for place, entry in enumerate(board.entries):
            s = entry.score
            head = s.name == board.headline_rule
            colour = COLOURS["blue" if head else "sky" if entry.fused else "grey"]
            low, high = s.accuracy_interval
            axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=1.6, solid_capstyle="round")
            axes.plot(100 * s.accuracy, place, "o" if entry.fused else "s", color=colour, markersize=5 if head else 4)
        axes.axvline(
            100 * board.entry(board.best_single).score.accuracy, color="0.45", linestyle=(0, (4, 3)), linewidth=0.8
        )
        _rows(axes, [entry.score.name for entry in board.entries], "top-1 accuracy (%)")
        for label, entry in zip(axes.get_yticklabels(), board.entries, strict=True):
            label.set_fontweight("bold" if entry.score.name == board.headline_rule else "normal")
    return axes


def reliability(found: Mapping[str, Reliability], *, fewest: int = 5, ax: Axes | None = None) -> Axes:
    """Draw accuracy against confidence, for example before and after calibration; the diagonal is perfect.

    Args:
        found: Name → `vidfuse.metrics.reliability`, at most seven.
        fewest: The number of videos that a bin needs to be drawn.
        ax: Axes to draw on.
    """
    with _canvas(ax, 2.9) as axes:
        axes.plot([0, 100], [0, 100], color="0.45", linestyle=(0, (4, 3)), linewidth=0.8)
        for (name, bins), colour, marker in zip(found.items(), _cycle(len(found)), "osD^vPX", strict=False):
            kept = bins.counts >= fewest
            axes.plot(
                100 * bins.confidence[kept],
                100 * bins.accuracy[kept],
                marker=marker,
                color=colour,
                label=name,
                clip_on=False,
            )
        axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence (%)", ylabel="accuracy (%)", aspect="equal")
        axes.legend(loc="upper left")
    return axes


def agreement(found: Diversity, *, ax: Axes | None = None) -> Axes:
    """Draw the share of videos for which two members predict the same class, in per cent."""
    with _canvas(ax, 0.9 + 0.29 * len(found.members)) as axes:
        same = 100 * (1 - found.prediction_disagreement)
        n = len(found.members)
        off = same[~np.eye(n, dtype=bool)]
        low = float(off.min()) if n > 1 else 0.0
        axes.imshow(same, cmap="Blues", vmin=low - 0.15 * (100 - low), vmax=100)
        if n <= 12:
            for a, b in np.ndindex(n, n):
                shade = "white" if same[a, b] > low + 0.55 * (100 - low) else "black"
                axes.text(b, a, f"{same[a, b]:.0f}", ha="center", va="center", color=shade, fontsize=7)
        axes.set_xticks(range(n), found.members, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(n), found.members)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return axes


def contributions(found: Contributions, *, ax: Axes | None = None) -> Axes:
    """Draw what each member adds, the largest first: blue where it helps, vermilion and hatched where it does not."""
    with _canvas(ax, 0.75 + 0.19 * len(found.values)) as axes:
        ranked = sorted(found.values.items(), key=lambda item: (-item[1], item[0]))
        percent = found.objective.endswith("accuracy")
        values = np.array([value for _, value in ranked]) * (100 if percent else 1)
        bars = axes.barh(range(len(ranked)), values, height=0.62, color=COLOURS["blue"])
        for bar, value in zip(bars, values, strict=True):
            if value < 0:
                bar.set(facecolor="white", edgecolor=COLOURS["vermilion"], hatch="////")
        axes.axvline(0, color="0.2", linewidth=0.6)
        _rows(axes, [name for name, _ in ranked], f"{_unit(found.objective, points=True)},\n{found.method}")
    return axes


def worth(found: MemberWorth, *, ax: Axes | None = None) -> Axes:
    """Draw what the rule loses without each member, with intervals: right of 0 the member helps."""
    scale = 100 if found.objective.endswith("accuracy") else 1
    with _canvas(ax, 0.8 + 0.19 * len(found.rows)) as axes:
        for place, row in enumerate(found.rows):
            low, high = row.lost.interval
            helps, harms = low > 0, high < 0
            colour = COLOURS["blue" if helps else "vermilion" if harms else "grey"]
            axes.plot([scale * low, scale * high], [place, place], color=colour, linewidth=1.6, solid_capstyle="round")
            marker, fill = "X" if harms else "o", colour if helps or harms else "white"
            axes.plot(scale * row.lost.difference, place, marker, color=colour, markerfacecolor=fill, markersize=5)
        axes.axvline(0, color="0.2", linewidth=0.6)
        _rows(axes, [row.member for row in found.rows], f"lost without it\n({_unit(found.objective, points=True)})")
    return axes


def curve(found: Curve, *, ax: Axes | None = None) -> Axes:
    """Draw a curve of `learning_curve`, `members_curve` or `views_curve` with intervals; against costs, if it has some.

    Args:
        found: The curve.
        ax: Axes to draw on.
    """
    scale = 100 if found.objective.endswith("accuracy") else 1
    costs = not np.isnan(found.points[0].cost)
    colours = _cycle(len(found.names))
    with _canvas(ax, 2.3) as axes:
        for name, colour, marker in zip(found.names, [*colours[1:], colours[0]], "osD^vPX", strict=False):
            series = found.series(name)
            x = [p.cost if costs else p.x for p in series]
            low, high = np.array([tuple(p.interval) for p in series]).T * scale
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(x, [scale * p.value for p in series], marker=marker, color=colour, label=name)
        if x[0] > 0 and x[-1] > 8 * x[0]:
            axes.set_xscale("log")
            axes.set_xticks(x, [f"{value:,g}" for value in x])
            axes.minorticks_off()
        elif not costs and len(x) <= 12:
            axes.set_xticks(x)
        if len(found.names) > 1:
            axes.legend(loc="best")
        axes.set_xlabel("cost" if costs else found.x_name)
        axes.set_ylabel(_unit(found.objective))
    return axes


def risk(found: Mapping[str, RiskCoverage], *, ax: Axes | None = None) -> Axes:
    """Draw the errors that are left if a prediction abstains where it is unsure, against the share that it keeps."""
    with _canvas(ax, 2.3) as axes:
        for (name, one), colour, dash in zip(found.items(), _cycle(len(found)), _DASHES, strict=False):
            axes.plot(100 * one.coverage, 100 * one.risk, color=colour, label=name, linestyle=dash)
        axes.set(xlabel="share of the videos that is kept (%)", ylabel="errors (%)", xlim=(0, 100), ylim=(0, None))
        axes.legend(loc="best")
    return axes


def front(found: CascadeFront, *, ax: Axes | None = None) -> Axes:
    """Draw a cascade's accuracy against the cost of a video: what was certified, what was not, and the point in use."""
    cost, accuracy = found.cost, 100 * found.accuracy
    last = int(np.flatnonzero(found.certified)[-1])
    with _canvas(ax, 2.3) as axes:
        axes.plot(cost[last:], accuracy[last:], color=COLOURS["grey"], linestyle=":", label="not certified")
        axes.plot(cost[: last + 1], accuracy[: last + 1], color=COLOURS["blue"], label="certified")
        axes.plot(cost[0], accuracy[0], "s", color=COLOURS["blue"], markerfacecolor="white", label="all members")
        axes.plot(cost[found.chosen], accuracy[found.chosen], "o", color=COLOURS["vermilion"], label="in use")
        if cost.min() > 0 and cost.max() > 8 * cost.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.xaxis.set_minor_formatter("")
        axes.legend(loc="lower right")
        axes.set(xlabel="mean cost of a video", ylabel="accuracy (%)")
    return axes


def _unit(objective: str, points: bool = False) -> str:
    name = objective.replace("-", " ")
    if objective.endswith("accuracy"):
        return f"points of {name}" if points else f"{name} (%)"
    return "nats" if points and objective == "nll" else f"{name.upper()} (nats)" if objective == "nll" else name


def save(ax: Axes, stem: str | os.PathLike[str], formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write an axes' figure to `<stem>.svg`, `.pdf` and `.png` (300 dpi); the same figure gives the same bytes.

    Raises:
        InputError: a format is unknown to matplotlib.
    """
    figure: Figure = ax.get_figure(root=True)  # type: ignore[assignment]
    known = figure.canvas.get_supported_filetypes()
    unknown = [name for name in formats if name not in known]
    if unknown:
        raise InputError(f"formats: expected some of {', '.join(sorted(known))}, got {unknown}")
    paths = []
    with _pyplot().rc_context(STYLE):
        for name in formats:
            out = io.BytesIO()
            dates: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
            figure.savefig(out, format=name, metadata=dates.get(name))
            paths.append(replace(Path(f"{os.fspath(stem)}.{name}"), out.getvalue()))
    return paths


def close(ax: Axes) -> None:
    """Forget an axes' figure, as a script that draws many should."""
    _pyplot().close(ax.get_figure(root=True))


def _rows(ax: Axes, names: Sequence[str], x_name: str) -> None:
    """Name the rows, the first on top, without a line or ticks at their side; put a faint grid behind."""
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="0.88", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_xlabel(x_name)


def _cycle(n: int) -> list[str]:
    order = [COLOURS[name] for name in ("grey", "blue", "vermilion", "green", "purple", "orange", "sky")]
    if n > len(order):
        raise InputError(f"expected at most {len(order)} curves in one figure, got {n}")
    return order if n > 1 else order[1:]
