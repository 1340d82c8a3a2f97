"""Training and extraction: Table I as typed recipes, one training loop, and the way from a network to a logit cache.

Names load on first use (PEP 562); everything but the recipes needs `vidfuse[networks]`.
"""

from __future__ import annotations

from vidfuse._lazy import lazy_face

_HOME = {
    "DivergedError": "step",
    "Extraction": "extraction",
    "FULL_SIZE": "recipes",
    "TABLE_I": "recipes",
    "Soup": "soups",
    "Start": "fine_tuning",
    "TINY": "recipes",
    "TogetherResult": "together",
    "TrainRecipe": "recipes",
    "TrainResult": "loop",
    "evaluate": "evaluation",
    "extract": "extraction",
    "few_clips": "recipes",
    "learning_rate": "recipes",
    "network_for": "data",
    "recompute_statistics": "soups",
    "soup": "soups",
    "start_from": "fine_tuning",
    "train": "loop",
    "train_together": "together",
    "train_input": "data",
    "view_input": "data",
    "view_plan": "data",
}
_SUBMODULES = (
    "checkpoints",
    "data",
    "distributed",
    "evaluation",
    "loop",
    "processes",
    "recipe_files",
    "recipes",
)

__all__ = sorted([*_HOME, *_SUBMODULES])

__getattr__, __dir__ = lazy_face(__name__, _HOME, _SUBMODULES)
