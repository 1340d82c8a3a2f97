"""The judge: how good a rule is on videos that it was not fitted on, and whether one is better than another."""
