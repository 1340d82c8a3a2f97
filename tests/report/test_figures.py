"""Figures: on the axes that were given, legible at a column's width, the same bytes each time."""

from __future__ import annotations

import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

import vidfuse as vf
from vidfuse.errors import InputError, MissingExtraError
from vidfuse.evaluation.worth import member_worth
from vidfuse.report import figures

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    matplotlib.pyplot.close("all")


def results():
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    names = ("swin", "x3d", "a network with a long name", "tin_r50")
    arrays = {name: rng.normal(size=(120, 3)) + (2 - 0.4 * i) * np.eye(3)[y] for i, name in enumerate(names)}
    stack = vf.LogitStack.from_arrays(arrays, labels=y, ids=[f"v{i}" for i in range(120)])
    plain = vf.LogLinearPool("accuracy")
    pool = vf.LogLinearPool().fit(stack)
    member = stack.select(["swin"]).log_likelihoods()[:, 0]
    cascade = vf.Cascade(plain, costs=[88, 5, 20, 9], at_most=0.2).fit(stack)
    pair = {"swin": member, "fusion": pool.predict_log_proba(stack)}
    return {
        "leaderboard": (figures.leaderboard, vf.leaderboard(stack)),
        "reliability": (
            figures.reliability,
            {name: vf.metrics.reliability(y, z, n_bins=10) for name, z in pair.items()},
        ),
        "agreement": (figures.agreement, vf.diversity(stack)),
        "worth": (figures.worth, member_worth(stack, rule=plain)),
        "learning curve": (
            figures.curve,
            vf.learning_curve(stack, sizes=[20, 60, 96], repeats=1, rules={"a": plain, "b": vf.MajorityVote()}),
        ),
        "members curve": (
            figures.curve,
            vf.members_curve(stack, rule=plain, cost=dict(zip(names, (90, 1, 2, 5), strict=True))),
        ),
        "risk": (figures.risk, {name: vf.metrics.risk_coverage(y, z) for name, z in pair.items()}),
        "front": (figures.front, cascade.front(stack)),
        "contributions": (figures.contributions, vf.leave_one_out(stack, rule=vf.LogLinearPool(weights="uniform"))),
    }


RESULTS = results()


@pytest.mark.parametrize("name", RESULTS)
def test_a_figure_is_a_column_wide_and_every_word_of_it_is_seen(name):
    draw, result = RESULTS[name]
    ax = draw(result)
    figure = ax.get_figure()
    assert figure.get_size_inches()[0] == figures.WIDTH
    assert figure.get_size_inches()[1] <= 4
    frame = figure.bbox
    unseen = [
        label
        for axis in (ax.xaxis, ax.yaxis)
        for place, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        if not min(axis.get_view_interval()) <= place <= max(axis.get_view_interval())
    ]
    texts = figure.findobj(matplotlib.text.Text)
    words = [text for text in texts if text.get_visible() and text.get_text() and text not in unseen]
    assert words
    for text in words:
        assert text.get_fontsize() >= 7, text
        box = text.get_window_extent()
        assert frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1, text
        assert frame.y0 - 1 <= box.y0 and box.y1 <= frame.y1 + 1, text


@pytest.mark.parametrize("name", RESULTS)
def test_a_figure_goes_on_the_axes_that_are_given_and_changes_no_setting(name):
    draw, result = RESULTS[name]
    before = dict(matplotlib.rcParams)
    ax = matplotlib.figure.Figure().subplots()
    assert draw(result, ax=ax) is ax
    assert ax.has_data()
    assert draw(result) is not ax
    assert dict(matplotlib.rcParams) == before


def test_files_are_the_same_each_time_and_of_every_format(tmp_path):
    draw, result = RESULTS["leaderboard"]
    first, second = (figures.save(draw(result), tmp_path / name / "board") for name in ("a", "b"))
    assert [path.name for path in first] == ["board.svg", "board.pdf", "board.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    ElementTree.parse(first[0])  # noqa: S314 -- our own
    assert first[1].read_bytes().startswith(b"%PDF") and b"/Type3" not in first[1].read_bytes()
    assert first[2].read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"formats: expected some of .*, got \['bmp'\]"):
        figures.save(draw(result), tmp_path / "board", ["svg", "bmp"])


def test_the_leaderboard_has_a_row_for_each_entry_in_its_place():
    _, board = RESULTS["leaderboard"]
    ax = figures.leaderboard(board)
    assert [label.get_text() for label in ax.get_yticklabels()] == [entry.score.name for entry in board.entries]
    dots = {line.get_ydata()[0]: line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1}
    assert [dots[i] for i in range(len(board.entries))] == pytest.approx(
        [100 * e.score.accuracy for e in board.entries]
    )


def test_agreement_is_written_as_it_is():
    _, found = RESULTS["agreement"]
    texts = [text.get_text() for text in figures.agreement(found).texts]
    assert texts == [f"{100 * (1 - value):.0f}" for value in found.prediction_disagreement.ravel()]


def test_more_curves_than_colours_are_refused():
    _, found = RESULTS["reliability"]
    with pytest.raises(InputError, match="at most 7 curves in one figure, got 8"):
        figures.reliability({str(i): found["swin"] for i in range(8)})


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    draw, result = RESULTS["agreement"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vidfuse\[report\]'"):
        draw(result)
