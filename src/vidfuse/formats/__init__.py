"""Other tools' files, in and out: dumps, tables, pickles, lists of labels, predictions, submissions.

Names load on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "check_submission": "submissions",
    "read_annotations": "annotations",
    "read_dump": "dump",
    "read_predictions": "importers",
    "read_submission": "submissions",
    "score_submission": "submissions",
    "write_predictions": "export",
    "write_submission": "submissions",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"vidfuse.formats.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'vidfuse.formats' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
