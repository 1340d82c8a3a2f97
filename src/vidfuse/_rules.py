"""The one list of rules: what `vidfuse.NAME` loads, what recipes hold, and what the contract tests run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["RULES"]

RULES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "BordaCount": "vidfuse.fusion.votes",
        "Calibrated": "vidfuse.fusion.calibration",
        "Cascade": "vidfuse.selection.cascade",
        "DynamicPool": "vidfuse.fusion.dynamic",
        "GreedyPool": "vidfuse.selection.greedy",
        "LinearPool": "vidfuse.fusion.linear",
        "LogLinearPool": "vidfuse.fusion.log_linear",
        "MajorityVote": "vidfuse.fusion.votes",
        "StackedPool": "vidfuse.fusion.stacking",
        "SubsetPool": "vidfuse.selection.subsets",
        "TemperatureScaling": "vidfuse.fusion.calibration",
        "VectorScaling": "vidfuse.fusion.calibration",
    }
)
"""Class name → module of each rule and calibrator: a new one is a new file and a line here."""
