"""What a fusion is worth, for people to read: tables, plots, one HTML page. The names load on first use (PEP 562)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidfuse._lazy import lazy_face

if TYPE_CHECKING:
    from vidfuse._tables import Table
    from vidfuse.report.combinations import Combinations, combination_table
    from vidfuse.report.html import write_report
    from vidfuse.report.tables import Leaderboard, leaderboard, leaderboard_of_splits

_HOME = {
    "Combinations": "vidfuse.report.combinations",
    "Leaderboard": "vidfuse.report.tables",
    "Table": "vidfuse._tables",
    "combination_table": "vidfuse.report.combinations",
    "leaderboard": "vidfuse.report.tables",
    "leaderboard_of_splits": "vidfuse.report.tables",
    "write_report": "vidfuse.report.html",
}

__all__ = [
    "Combinations",
    "Leaderboard",
    "Table",
    "combination_table",
    "leaderboard",
    "leaderboard_of_splits",
    "write_report",
]

__getattr__, __dir__ = lazy_face(__name__, _HOME)
