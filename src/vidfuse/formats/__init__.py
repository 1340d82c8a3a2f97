"""Other tools' files, in and out: dumps, tables, pickles, lists of labels, predictions, submissions.

Names load on first use (PEP 562).
"""

from __future__ import annotations

from vidfuse._lazy import lazy_face

_HOME = {
    "check_submission": "submissions",
    "read_annotations": "annotations",
    "read_classes": "class_lists",
    "read_dump": "dump",
    "read_predictions": "importers",
    "read_submission": "submissions",
    "score_submission": "submissions",
    "write_predictions": "export",
    "write_submission": "submissions",
}

__all__ = sorted(_HOME)

__getattr__, __dir__ = lazy_face(__name__, _HOME)
