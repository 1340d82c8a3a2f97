"""Fusing members into one prediction: pools, votes, calibration, stacking, dynamic weights, and searches for subsets.

`FUSERS` lists every fuser that a recipe can hold, by class name; a new rule is one new file and one line here.
"""

from __future__ import annotations

from types import MappingProxyType

__all__ = ["FUSERS"]

FUSERS = MappingProxyType(
    {
        "BordaCount": "vidfuse.fusion.voting:BordaCount",
        "Calibrated": "vidfuse.fusion.calibration:Calibrated",
        "DynamicPool": "vidfuse.fusion.dynamic:DynamicPool",
        "GreedyPool": "vidfuse.selection.greedy:GreedyPool",
        "LinearPool": "vidfuse.fusion.pools:LinearPool",
        "LogLinearPool": "vidfuse.fusion.pools:LogLinearPool",
        "MajorityVote": "vidfuse.fusion.voting:MajorityVote",
        "StackedPool": "vidfuse.fusion.stacking:StackedPool",
        "SubsetPool": "vidfuse.selection.subsets:SubsetPool",
        "TemperatureScaling": "vidfuse.fusion.calibration:TemperatureScaling",
        "VectorScaling": "vidfuse.fusion.calibration:VectorScaling",
    }
)
"""Class name → "module:class"."""
