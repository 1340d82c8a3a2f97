"""Tables as text, markdown and HTML, and how numbers are written in them."""

# ruff: noqa: RUF001, S314 -- the dashes are those of the tables, the XML is our own

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from vidfuse.report.layout import Table, number, p_value, percent, points, share

TABLE = Table(
    columns=("member", "top-1 %", "NLL"),
    rows=(("swin <b>", "64.0 (60.0–68.0)", "1.25"), ("x3d|m", "9.5 (7.0–12.0)", "–")),
    title="Members & more",
    notes=("A note.",),
    strong=frozenset([1]),
)


def test_text_aligns_words_left_and_numbers_right():
    assert TABLE.to_text().splitlines() == [
        "Members & more",
        "member             top-1 %   NLL",
        "--------  ----------------  ----",
        "swin <b>  64.0 (60.0–68.0)  1.25",
        "x3d|m       9.5 (7.0–12.0)     –",
        "A note.",
    ]


def test_markdown_escapes_bars_and_marks_strong_rows():
    assert TABLE.to_markdown().splitlines() == [
        "**Members & more**",
        "",
        "| member | top-1 % | NLL |",
        "|---|--:|--:|",
        "| swin <b> | 64.0 (60.0–68.0) | 1.25 |",
        r"| **x3d\|m** | **9.5 (7.0–12.0)** | **–** |",
        "",
        "A note.",
    ]


def test_html_is_well_formed_escaped_and_scoped():
    root = ElementTree.fromstring(f"<div>{TABLE.to_html()}</div>")
    assert root.findtext("table/caption") == "Members & more"
    assert [th.get("scope") for th in root.findall("table/thead/tr/th")] == ["col"] * 3
    assert [th.text for th in root.findall("table/tbody/tr/th")] == ["swin <b>", "x3d|m"]
    assert root.findall("table/tbody/tr")[1].get("class") == "strong"
    assert root.findtext("table/tbody/tr/td/small") == "(60.0–68.0)"
    assert TABLE._repr_html_() == TABLE.to_html()


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="expected 2 cells in each row, got 1"):
        Table(("a", "b"), (("x",),))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (percent(0.99996), "100.0"),
        (percent(float("nan")), "–"),
        (share(0.5, (0.25, 0.75)), "50.0 (25.0–75.0)"),
        (points(0.0004), "0.0"),
        (points(-0.0004), "0.0"),
        (points(-0.123), "−12.3"),
        (points(0.5, digits=0), "+50"),
        (number(float("-inf")), "−∞"),
        (number(1.23456, 1), "1.2"),
        (p_value(0.001), "p = 0.001"),
        (p_value(0.000999), "p < 0.001"),
        (p_value(0.05), "p = 0.05"),
    ],
)
def test_numbers_are_written_for_people(written, expected):
    assert written == expected


def test_the_notes_of_html_follow_the_table():
    assert re.search(r'</table><p class="note">A note\.</p>$', TABLE.to_html())
