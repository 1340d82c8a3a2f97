"""Drawings: well-formed, described, and with marks where their numbers say."""

# ruff: noqa: RUF001, S314 -- the dashes are those of the tables, the XML is our own

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from vidfuse.report import svg

DRAWINGS = {
    "dots": svg.dot_plot([svg.Mark("a < b", 0.5, 0.4, 0.6), svg.Mark("c", 0.7, 0.6, 0.8, "headline")], title="Dots"),
    "weights": svg.weight_bars(["a", "b & c"], [0.25, 0.75], title="Weights"),
    "shifts": svg.shift_plot([svg.Shift("jump", 0.25, 0.5, 4)], title="Shifts", before="x3d", after="fusion"),
    "reliability": svg.reliability_diagram([("x3d", "member", [svg.Bin(0.5, 0.25, 9)])], title="Reliability"),
    "heat": svg.heat_map(np.array([[1.0, 0.5], [0.0, 1.0]]), ["a", "b"], ["c", "d"], title="Heat"),
}


def parse(drawing):
    return ElementTree.fromstring(drawing)


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_drawing_is_well_formed_and_described(name):
    root = parse(DRAWINGS[name])
    assert root.get("role") == "img"
    assert len(root.get("aria-label")) > 10
    width, height = (float(value) for value in root.get("viewBox").split()[2:])
    assert (width, height) == (float(root.get("width")), float(root.get("height")))
    for circle in root.iter("circle"):
        assert 0 <= float(circle.get("cx")) <= width
        assert 0 <= float(circle.get("cy")) <= height
    for rect in root.iter("rect"):
        assert float(rect.get("x")) + float(rect.get("width")) <= width


def test_dots_stand_in_their_intervals_and_on_one_scale():
    root = parse(DRAWINGS["dots"])
    dots = [float(circle.get("cx")) for circle in root.iter("circle")]
    lines = [line for line in root.iter("line") if line.get("class") == "vf-interval"]
    ends = [(float(line.get("x1")), float(line.get("x2"))) for line in lines]
    assert [(low + high) / 2 for low, high in ends] == pytest.approx(dots, abs=0.1)
    assert dots[1] - dots[0] == pytest.approx(ends[0][1] - ends[0][0], abs=0.2)  # 0.7 − 0.5 is the width of 0.4 … 0.6


def test_bars_are_as_long_as_their_weights():
    widths = [float(rect.get("width")) for rect in parse(DRAWINGS["weights"]).iter("rect")]
    assert widths[1] == pytest.approx(3 * widths[0])


def test_a_heat_map_is_darker_for_more():
    cells = [float(rect.get("fill-opacity")) for rect in parse(DRAWINGS["heat"]).iter("rect")]
    assert cells == pytest.approx([1.0, 0.53, 0.06, 1.0])


def test_the_palest_colour_can_be_moved():
    drawing = svg.heat_map(np.array([[0.8, 0.9]]), ["a"], ["b", "c"], title="Heat", palest=0.8)
    assert [float(rect.get("fill-opacity")) for rect in parse(drawing).iter("rect")] == pytest.approx([0.06, 0.53])


def test_shifts_say_which_way_a_class_went():
    shifts = [svg.Shift("up", 0.0, 1.0, 3), svg.Shift("down", 0.5, 0.25, 4), svg.Shift("same", 0.5, 0.5, 2)]
    root = parse(svg.shift_plot(shifts, title="Shifts", before="a", after="b"))
    assert [group.get("class") for group in root.iter("g")] == ["vf-up", "vf-down", "vf-same"]
    values = [text.text for text in root.iter("text") if text.get("class") == "vf-value"]
    assert values == ["+100", "−25", "0"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.5, 0.5), (0.62, 0.86), (0.991, 0.999), (0.0, 0.003)])
def test_ticks_enclose_the_data_and_are_few(low, high):
    first, last, ticks = svg._ticks(low, high)
    assert first <= low + 1e-9
    assert last >= high - 1e-9
    assert 2 <= len(ticks) <= 9
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_long_labels_are_cut():
    drawing = svg.weight_bars(["x" * 100], [1.0], title="Weights")
    assert "x" * 29 + "…" in drawing
