"""Drawings: well-formed, described, and with marks where their numbers say."""

# ruff: noqa: RUF001, S314 -- the dashes are those of the tables, the XML is our own

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from vidfuse.report import drawings

NAN = float("nan")
MARKS = [drawings.Mark("a < b", 0.5, 0.4, 0.6), drawings.Mark("c", 0.7, 0.6, 0.8, "headline")]
DRAWINGS = {
    "dots": drawings.dot_plot(MARKS, title="Dots"),
    "gains": drawings.dot_plot([drawings.Mark("a", -0.1, -0.2, 0.1), drawings.Mark("b", 0.1, NAN, NAN)], title="Gains"),
    "bars": drawings.bar_plot(["a", "b & c"], [0.25, 0.75], title="Weights"),
    "shifts": drawings.shift_plot([drawings.Shift("jump", 0.25, 0.5, 4)], title="Shifts", before="x3d", after="fusion"),
    "reliability": drawings.reliability_diagram([("x3d", "member", [drawings.Bin(0.5, 0.25, 9)])], title="Reliability"),
    "lines": drawings.line_plot(
        [drawings.Line("a", [10, 100, 1000], [0.5, 0.6, 0.65], [0.4, 0.5, NAN], [0.6, 0.7, NAN])],
        title="Curve",
        x_name="videos",
        y_name="accuracy %",
        log_x=True,
    ),
}


def parse(drawing):
    return ElementTree.fromstring(f"<div>{drawing}</div>")


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_drawing_is_well_formed_described_and_within_its_frame(name):
    root = parse(DRAWINGS[name])
    (frame,) = [element for element in root.iter() if element.get("role") == "img"]
    assert len(frame.get("aria-label")) > 10
    view = frame.get("viewBox")
    if view is None:  # tracks: places in per cent
        width = height = 100.0
        assert all(svg.get("viewBox") is None and svg.get("width") is None for svg in root.iter("svg"))
    else:
        width, height = (float(value) for value in view.split()[2:])
    places = {"cx": width, "x1": width, "x2": width, "cy": height, "y1": height, "y2": height}
    for element in root.iter():
        for key, most in places.items():
            assert 0 <= float((element.get(key) or "0").removesuffix("%")) <= most, (element.tag, key)


def test_dots_stand_in_their_intervals_and_on_one_scale():
    root = parse(DRAWINGS["dots"])
    dots = [float(circle.get("cx")[:-1]) for circle in root.iter("circle")]
    lines = [line for line in root.iter("line") if line.get("class") == "vf-interval"]
    ends = [(float(line.get("x1")[:-1]), float(line.get("x2")[:-1])) for line in lines]
    assert [(low + high) / 2 for low, high in ends] == pytest.approx(dots, abs=0.1)
    assert dots[1] - dots[0] == pytest.approx(ends[0][1] - ends[0][0], abs=0.2)  # 0.7 − 0.5 is the width of 0.4 … 0.6


def test_a_value_without_an_interval_is_a_dot_alone():
    root = parse(DRAWINGS["gains"])
    assert sum(line.get("class") == "vf-interval" for line in root.iter("line")) == 1
    assert len(list(root.iter("circle"))) == 2


def test_bars_are_as_long_as_their_weights():
    widths = [float(rect.get("width")[:-1]) for rect in parse(DRAWINGS["bars"]).iter("rect")]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.1)


def test_a_heat_table_is_darker_for_more_and_its_numbers_stay_legible():
    values = np.array([[1.0, 0.5], [0.0, 1.0]])
    drawing = drawings.heat_table(values, ["a", "b"], ["c", "d"], title="Heat", texts=[["9", "5"], ["", "8"]])
    root = parse(drawing)
    assert drawing.startswith('<div class="scroll"')  # of many columns, it is wider than a telephone
    cells = [cell for cell in root.iter("td") if cell.get("style")]
    assert [cell.get("style") for cell in cells] == ["--v:100%", "--v:50%", "--v:0%", "--v:100%"]
    assert [cell.get("class") for cell in cells] == ["on", None, None, "on"]
    assert [cell.get("title") for cell in cells][:2] == ["a, c: 100.0 %", "a, d: 50.0 %"]
    palest = drawings.heat_table(np.array([[0.8, 0.9]]), ["a"], ["b", "c"], title="", texts=[["", ""]], palest=0.8)
    assert re.findall(r"--v:(\d+)%", palest) == ["0", "50"]


def test_shifts_say_which_way_a_class_went():
    shifts = [
        drawings.Shift("up", 0.0, 1.0, 3),
        drawings.Shift("down", 0.5, 0.25, 4),
        drawings.Shift("same", 0.5, 0.5, 2),
    ]
    root = parse(drawings.shift_plot(shifts, title="Shifts", before="a", after="b"))
    rows = [element.get("class") for element in root.iter("div") if "row" in (element.get("class") or "")]
    assert rows[:3] == ["row vf-up", "row vf-down", "row vf-same"]
    assert [small.text for small in root.iter("small")] == ["(+100)", "(−25)", "(0)"]


def test_a_curve_rises_where_its_values_do_and_equal_factors_are_equally_wide():
    root = parse(DRAWINGS["lines"])
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    assert dots[1][0] - dots[0][0] == pytest.approx(dots[2][0] - dots[1][0], abs=0.2)
    assert dots[0][1] - dots[1][1] == pytest.approx(2 * (dots[1][1] - dots[2][1]), abs=0.3)
    (band,) = root.iter("polygon")
    assert len(band.get("points").split()) == 4  # two of three points have an interval
