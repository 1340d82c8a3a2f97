"""Tables as text, markdown, HTML, LaTeX, csv and frames, and how numbers are written in them."""

# ruff: noqa: RUF001, S314 -- the dashes are those of the tables, the XML is our own

from __future__ import annotations

import csv
import io
import math
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vidfuse as vf
from vidfuse._tables import (
    _LATEX,
    Column,
    Estimate,
    Table,
    latex_escape,
    number,
    p_value,
    percent,
    points,
)
from vidfuse.errors import InputError, MissingExtraError
from vidfuse.evaluation.worth import member_worth
from vidfuse.report import combination_table

TABLE = Table(
    columns=(
        "member",
        Column("top-1 %", "accuracy", percent, best="high"),
        Column("NLL", write=number, best="low"),
        Column("videos", shown=False),
    ),
    rows=(
        ("swin <b>", Estimate(0.64, 0.6, 0.68), 1.25, 10),
        ("x3d|m", Estimate(0.095, 0.07, 0.12), math.nan, 9),
        ("tin", 0.5, 2.0, 10),
    ),
    title="Members & more",
    notes=("A note.",),
    strong=frozenset([1]),
    indented=frozenset([2]),
)


def test_text_aligns_words_left_and_numbers_right_and_stars_the_best():
    assert TABLE.to_text().splitlines() == [
        "Members & more",
        "member              top-1 %     NLL",
        "--------  -----------------  ------",
        "swin <b>  64.0* (60.0–68.0)  1.250*",
        "x3d|m       9.5  (7.0–12.0)      –",
        "  tin                 50.0   2.000",
        "A note.",
        "*: the best of its column.",
    ]


def test_markdown_escapes_bars_and_marks_strong_rows_and_best_numbers():
    assert TABLE.to_markdown().splitlines() == [
        "**Members & more**",
        "",
        "| member | top-1 % | NLL |",
        "|---|--:|--:|",
        "| swin <b> | **64.0** (60.0–68.0) | **1.250** |",
        r"| **x3d\|m** | **9.5 (7.0–12.0)** | **–** |",
        "| tin | 50.0 | 2.000 |",
        "",
        "A note.",
    ]


def test_html_is_well_formed_escaped_and_scoped():
    root = ElementTree.fromstring(f"<div>{TABLE.to_html()}</div>")
    assert root.findtext("table/caption") == "Members & more"
    assert [th.get("scope") for th in root.findall("table/thead/tr/th")] == ["col"] * 3
    rows = root.findall("table/tbody/tr")
    assert [row.find("th").text for row in rows] == ["swin <b>", "x3d|m", "tin"]
    assert [row.get("class") for row in rows] == [None, "strong", "indented"]
    assert [th.get("scope") for th in root.findall("table/tbody/tr/th")] == ["row"] * 3
    assert [strong.text for strong in root.iter("strong")] == ["64.0", "1.250"]
    assert root.findtext("table/tbody/tr/td/small") == "(60.0–68.0)"
    assert TABLE._repr_html_() == TABLE.to_html()


def test_latex_has_the_lines_of_booktabs():
    assert TABLE.to_latex(caption="Top 5 %", label="tab:members").splitlines() == [
        r"\begin{table}",
        r"\centering",
        "% A note.",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"member & top-1 \% & NLL \\",
        r"\midrule",
        r"swin $<$b$>$ & \textbf{64.0} {\scriptsize (60.0--68.0)} & \textbf{1.250} \\",
        r"x3d$|$m & 9.5 {\scriptsize (7.0--12.0)} & -- \\",
        r"\quad tin & 50.0 & 2.000 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\caption{Top 5 \%}",
        r"\label{tab:members}",
        r"\end{table}",
    ]
    assert "60.0" not in TABLE.to_latex(intervals=False)


@settings(max_examples=50)
@given(st.text(max_size=12))
def test_latex_leaves_no_character_that_means_something(text):
    """What stays after the known escapes has none of TeX's ten special characters, and no line break."""
    written = latex_escape(text)
    for escape in sorted(set(_LATEX.values()) - {"~"}, key=len, reverse=True):
        written = written.replace(escape, "")
    assert not set(written) & set("\\{}$&#^_%\n\r<>|")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=8)
ROWS = st.tuples(NAMES, st.floats(allow_nan=False), st.floats(0, 1), st.none() | st.floats(-1, 1))


@settings(max_examples=25)
@given(st.lists(ROWS, min_size=1, max_size=4))
def test_csv_and_frames_hold_every_number_in_full(found):
    rows = tuple((name, value, Estimate(mid, mid - 1, mid + 1), rest) for name, value, mid, rest in found)
    table = Table(("member", Column("NLL"), Column("top-1 %", "accuracy", percent), "gain"), rows)
    frame = table.to_frame()
    assert list(frame) == ["member", "nll", "accuracy", "accuracy_low", "accuracy_high", "gain"]
    assert frame["member"].tolist() == [row[0] for row in rows]
    assert frame["nll"].tolist() == [row[1] for row in rows]
    assert frame["accuracy_high"].tolist() == [row[2].high for row in rows]
    numbers = [row[3] for row in rows]
    assert frame["gain"].isna().tolist() == [number is None for number in numbers]
    read = list(csv.DictReader(io.StringIO(table.to_csv(), newline="")))
    assert [float(row["nll"]) for row in read] == [row[1] for row in rows]
    assert [float(row["accuracy_low"]) for row in read] == [row[2].low for row in rows]
    assert [row["member"] for row in read] == [row[0] for row in rows]


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1) | st.none() | st.just(math.nan), min_size=1), st.sampled_from(["high", "low"]))
def test_the_best_are_those_that_no_other_beats_as_they_are_written(values, side):
    column = Column("x", write=percent, best=side)
    table = Table(("member", column), tuple((str(i), value) for i, value in enumerate(values)))
    written = {i: percent(value) for i, value in enumerate(values) if value is not None and not math.isnan(value)}
    numbers = [float(text) for text in written.values()]
    top = (max if side == "high" else min)(numbers, default=None)
    expected = {i for i, text in written.items() if float(text) == top} if len(set(numbers)) > 1 else set()
    assert {i for i, _ in table.best()} == expected


def test_a_table_is_written_to_a_file_or_refused(tmp_path):
    assert (TABLE.to_csv(tmp_path / "table.csv") + "\n") == (tmp_path / "table.csv").read_text(encoding="utf-8")
    assert (TABLE.to_latex(tmp_path / "table.tex") + "\n") == (tmp_path / "table.tex").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="expected a file to write the table to, got a folder"):
        TABLE.to_csv(tmp_path)


def test_a_frame_without_pandas_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vidfuse\[report\]'"):
        TABLE.to_frame()


def results():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    arrays = {name: rng.normal(size=(60, 3)) + 2 * np.eye(3)[y] for name in ("swin", "x3d", "tin")}
    stack = vf.LogitStack.from_arrays(arrays, labels=y, ids=[f"v{i}" for i in range(60)])
    pool = vf.LogLinearPool().fit(stack)
    return {
        "leaderboard": (board := vf.leaderboard(stack), len(board.entries)),
        "combinations": (combination_table(stack), 5),
        "weights": (pool.summary(), 3),
        "weights with intervals": (pool.summary(bootstrap=20), 3),
        "shapley": (vf.shapley_values(stack), 3),
        "left out": (vf.leave_one_out(stack, objective="nll"), 3),
        "diversity": (vf.diversity(stack), 3),
        "subsets": (vf.search_subsets(stack).table, 7),
        "greedy": (greedy := vf.greedy_search(stack), len(greedy.weights)),
        "coordinate": (vf.coordinate_search(stack), 3),
        "learning curve": (vf.learning_curve(stack, sizes=[10, 30], repeats=1, folds=2), 4),
        "members curve": (vf.members_curve(stack, folds=2, cost={"swin": 3, "x3d": 1, "tin": 1}), 3),
        "worth": (member_worth(stack, folds=2, objective="nll"), 3),
        "splits": (
            splits := vf.leaderboard_of_splits([stack[:30], stack[30:]], [stack[30:], stack[:30]]),
            len(splits.rows),
        ),
        "comparison": (vf.compare({"a": vf.LogLinearPool("uniform"), "b": vf.MajorityVote()}, stack), 1),
        "honest": (vf.honest_score(vf.LogLinearPool("uniform"), stack, repeats=1), 4),
        "reliability": (found := vf.metrics.reliability(y, pool.predict_log_proba(stack)), len(found.bins)),
    }


RESULTS = results()


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_that_is_a_table_is_written_in_every_way(name):
    result, n_rows = RESULTS[name]
    frame = result.to_frame()
    assert len(frame) == n_rows
    assert frame.columns.is_unique
    assert len(list(csv.reader(io.StringIO(result.to_csv())))) == n_rows + 1
    assert result.to_latex().count(r"\\") == n_rows + 1
    ElementTree.fromstring(f"<div>{result._repr_html_()}</div>")


def test_frames_have_the_numbers_of_the_results():
    board = RESULTS["leaderboard"][0]
    frame = board.to_frame().set_index("name")
    for entry in board.entries:
        row = frame.loc[entry.score.name]
        assert (row["accuracy"], row["nll"], row["fused"]) == (entry.score.accuracy, entry.score.nll, entry.fused)
        assert (row["accuracy_low"], row["accuracy_high"]) == tuple(entry.score.accuracy_interval)
    pairs = RESULTS["diversity"][0]
    assert pairs.to_frame()["double_fault"].tolist() == pairs.double_fault[np.triu_indices(3, 1)].tolist()
    subsets = RESULTS["subsets"][0]
    assert sorted(subsets.to_frame()["score"]) == sorted(subsets.scores)


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="expected 2 cells in each row, got 1"):
        Table(("a", "b"), (("x",),))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (percent(0.99996), "100.0"),
        (percent(float("nan")), "–"),
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
