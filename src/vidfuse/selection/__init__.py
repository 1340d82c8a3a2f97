"""Which members belong into an ensemble, what each is worth, and how good the whole is, honestly.

`subsets` searches all subsets exactly, `greedy` grows an ensemble member by member, `coordinate` moves one weight at a
time to where accuracy is best; `contribution` shares the score among the members; `honest` scores what was selected on
videos that it was not selected on.
"""

from __future__ import annotations

__all__: list[str] = []
