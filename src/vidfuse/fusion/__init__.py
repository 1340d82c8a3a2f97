"""Fusing members into one prediction: the contract of a rule, pools, votes, calibration, stacking, dynamic weights."""
