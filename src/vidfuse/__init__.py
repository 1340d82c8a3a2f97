"""vidfuse: fuse the predictions of several video classifiers into the best single one that can be defended.

Every name below loads its module on first use (PEP 562), so that `import vidfuse` costs next to nothing and
needs no numpy, scipy, scikit-learn, torch or timm.
"""

from __future__ import annotations

from vidfuse._lazy import lazy_face
from vidfuse._rules import RULES

__version__ = "0.1.0"

_SUBMODULES = ("errors", "metrics", "networks", "serving", "training", "video")
_HOME = {
    **RULES,
    "Ensemble": "vidfuse.serving.ensemble",
    "LogitStack": "vidfuse.stack.stack",
    "Recipe": "vidfuse.recipe",
    "compare": "vidfuse.evaluation.honest",
    "coordinate_search": "vidfuse.selection.coordinate",
    "early_exit": "vidfuse.serving.early",
    "diversity": "vidfuse.selection.contribution",
    "extract": "vidfuse.training.extraction",
    "greedy_search": "vidfuse.selection.greedy",
    "honest_score": "vidfuse.evaluation.honest",
    "leaderboard": "vidfuse.report.tables",
    "leaderboard_of_splits": "vidfuse.report.tables",
    "learning_curve": "vidfuse.evaluation.curve_of_videos",
    "leave_one_out": "vidfuse.selection.contribution",
    "load_recipe": "vidfuse.recipe",
    "load_stack": "vidfuse.stack.open",
    "member_worth": "vidfuse.evaluation.worth",
    "members_curve": "vidfuse.evaluation.curve_of_members",
    "members_first": "vidfuse.fusion.views",
    "model_card": "vidfuse.serving.card",
    "read_predictions": "vidfuse.formats.importers",
    "reduce_views": "vidfuse.fusion.views",
    "refresh": "vidfuse.serving.refreshing",
    "scorers": "vidfuse.metrics",
    "search_subsets": "vidfuse.selection.subsets",
    "shapley_values": "vidfuse.selection.contribution",
    "views_curve": "vidfuse.evaluation.curve_of_views",
    "watch": "vidfuse.serving.watching",
    "write_report": "vidfuse.report.html",
    "write_submission": "vidfuse.formats.submissions",
}

__all__ = sorted([*_HOME, *_SUBMODULES, "__version__"])

__getattr__, __dir__ = lazy_face(__name__, _HOME, _SUBMODULES)
