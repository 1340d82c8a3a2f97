"""The script of the half day runs from scores to tables and figures."""

from __future__ import annotations

import csv
import sys

import matplotlib
import pytest

import paper_tables

matplotlib.use("agg")


@pytest.mark.filterwarnings("ignore::vidfuse.errors.VidfuseWarning")
def test_three_splits_become_tables_and_figures(tmp_path, monkeypatch, capsys):
    for seed in range(3):
        paper_tables.simulated(seed, sources=36).save(tmp_path / f"split{seed}")
    folders = [str(tmp_path / f"split{seed}") for seed in range(3)]
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", "--scores", *folders, "--out", str(tmp_path / "paper")])
    paper_tables.main()
    matplotlib.pyplot.close("all")
    written = {path.name for path in (tmp_path / "paper").iterdir()}
    assert {"splits.tex", "leaderboard.tex", "members.csv"} < written
    assert {
        f"{name}.{kind}" for name in ("leaderboard", "members", "learning") for kind in ("svg", "pdf", "png")
    } < written
    rows = list(csv.DictReader((tmp_path / "paper" / "members.csv").read_text().splitlines()))
    assert {row["member"] for row in rows} == {"slowfast", "swin", "x3d", "tin", "tpn"}
    assert all(float(row["lost_low"]) <= float(row["lost"]) <= float(row["lost_high"]) for row in rows)
    out = capsys.readouterr().out
    assert "Mean over 3 splits" in out and "count groups, not videos: 18" in out
    assert (tmp_path / "paper" / "splits.tex").read_text().count(r"\\") == 12  # a heading, five members, six rules


def test_no_source_is_on_both_sides():
    fit, test = paper_tables.halves(paper_tables.simulated(0))
    sides = [{paper_tables.source(video) for video in stack.ids} for stack in (fit, test)]
    assert not sides[0] & sides[1]
    assert len(sides[0]) == len(sides[1]) == 30
