"""Subsets as bit masks: which there are under limits of size and cost, and a table of their scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import check_count, first_few, per_member
from vidfuse._tables import Column, Table, Tabular
from vidfuse.errors import InputError

__all__ = [
    "LOG_LINEAR_TIE",
    "MOST_SUBSETS",
    "TIE",
    "Subset",
    "SubsetTable",
    "bits",
    "count_subsets",
    "enumerate_masks",
    "member_costs",
    "tie_ranks",
]

MOST_SUBSETS = 1 << 26
"""More subsets than this are not enumerated: their table alone would take a gigabyte."""

TIE = 1e-12
"""Scores that differ by less are equal: what is left of the order in which they were summed."""

LOG_LINEAR_TIE = 1e-7
"""The same for the NLL of log-linear pools, whose normalisers are float32."""


class Subset(NamedTuple):
    """One row of a table of subsets.

    Attributes:
        members: The subset's members, in the order of the table's names.
        score: What the objective gives it.
        cost: The sum of its members' costs; their number where no costs were given.
    """

    members: tuple[str, ...]
    score: float
    cost: float


@dataclass(frozen=True, eq=False)
class SubsetTable(Tabular):
    """The scores of all subsets that were searched, as columns.

    Attributes:
        names: The members; bit m of a mask stands for the m-th.
        masks: Subsets as bit masks, uint64 of shape (S,).
        scores: What the objective gives each, in its own units, shape (S,).
        costs: The sum of each subset's costs, shape (S,).
        higher_is_better: False for a loss.
        tie: Scores that differ by no more are equal: the precision to which they were computed.

    Example:
        >>> masks = np.array([1, 2, 3], np.uint64)
        >>> table = SubsetTable(("a", "b"), masks, scores=np.array([0.5, 0.6, 0.6]), costs=np.array([1.0, 1, 2]))
        >>> table
        SubsetTable(3 subsets of 2 members, best 0.6: b)
        >>> table.score_of(["a", "b"]), [row.members for row in table.best(2)]
        (0.6, [('b',), ('a', 'b')])
    """

    names: tuple[str, ...]
    masks: NDArray[np.uint64] = field(repr=False)
    scores: NDArray[np.float64] = field(repr=False)
    costs: NDArray[np.float64] = field(repr=False)
    higher_is_better: bool = True
    tie: float = field(default=TIE, repr=False)

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The number of members of each subset, shape (S,)."""
        return np.bitwise_count(self.masks).astype(np.int64)

    def members_of(self, index: int) -> tuple[str, ...]:
        """Return the members of the subset at `index`."""
        mask = int(self.masks[index])
        return tuple(name for m, name in enumerate(self.names) if mask >> m & 1)

    def score_of(self, members: Iterable[str]) -> float:
        """Return the score of the subset of exactly these members.

        Raises:
            InputError: A member is unknown, or the subset was left out by a limit of size or cost.
        """
        wanted = set(members)
        unknown = sorted(wanted - set(self.names))
        if unknown:
            raise InputError(f"unknown members {first_few(unknown)}; the table has {first_few(self.names, 20)}")
        mask = sum(1 << m for m, name in enumerate(self.names) if name in wanted)
        found = np.flatnonzero(self.masks == np.uint64(mask))
        if not len(found):
            raise InputError(f"the subset {sorted(wanted)} was not searched: it is empty, too large or too costly")
        return float(self.scores[found[0]])

    def best(self, count: int = 10) -> list[Subset]:
        """Return the best subsets, best first; ties by fewer members, then lower cost, then name.

        They are named tuples: `pandas.DataFrame(table.best())` has a column for each field.
        """
        loss = -self.scores if self.higher_is_better else self.scores
        count = min(count, len(self))
        cut = np.partition(loss, count - 1)[count - 1]
        near = np.flatnonzero(loss <= cut + self.tie) if np.isfinite(cut) else np.arange(len(self))
        ascending = near[np.argsort(loss[near], kind="stable")]
        rank = tie_ranks(loss[ascending], self.tie)
        order = np.lexsort((self._name_keys(ascending), self.costs[ascending], self.sizes[ascending], rank))
        return [
            Subset(self.members_of(i), float(self.scores[i]), float(self.costs[i])) for i in ascending[order[:count]]
        ]

    def table(self, count: int | None = None) -> Table:
        """Return the best subsets as a table, best first; by default all of them."""
        write = "{:.6g}".format
        columns = (
            Column("members"),
            Column("n", "n_members"),
            Column("score", write=write),
            Column("cost", write=write),
        )
        rows = self.best(len(self) if count is None else count)
        return Table(
            columns,
            tuple((" + ".join(row.members), len(row.members), row.score, row.cost) for row in rows),
            f"The best {len(rows):,} of {len(self):,} subsets",
        )

    def _repr_html_(self) -> str:
        return self.table(10).to_html()

    def _name_keys(self, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return keys whose ascending order is that of the sorted names, among subsets of equal size."""
        keys = np.zeros(len(indices), np.uint64)
        for place, member in enumerate(sorted(range(len(self.names)), key=self.names.__getitem__)):
            absent = ~(self.masks[indices] >> np.uint64(member)) & np.uint64(1)
            keys |= absent << np.uint64(63 - place)
        return keys

    def __repr__(self) -> str:
        best = self.best(1)[0]
        return (
            f"SubsetTable({len(self):,} subsets of {len(self.names)} members, "
            f"best {best.score:.6g}: {' + '.join(best.members)})"
        )


def tie_ranks(ascending: NDArray[np.float64], tie: float) -> NDArray[np.int64]:
    """Return the ranks of ascending losses: a new one starts where the gap is larger than `tie`.

    Example:
        >>> tie_ranks(np.array([0.1, 0.1 + 1e-15, 0.2, np.inf, np.inf]), TIE).tolist()
        [0, 0, 1, 2, 2]
    """
    with np.errstate(invalid="ignore"):
        return np.cumsum(np.diff(ascending, prepend=ascending[:1]) > tie)


def bits(masks: NDArray[np.uint64], n_members: int) -> NDArray[np.bool_]:
    """Return masks as booleans (S, M).

    Example:
        >>> bits(np.array([1, 6], np.uint64), 3).astype(int).tolist()
        [[1, 0, 0], [0, 1, 1]]
    """
    return (masks[:, None] >> np.arange(n_members, dtype=np.uint64) & np.uint64(1)).astype(np.bool_)


def count_subsets(n_members: int, max_members: int | None = None) -> int:
    """Return how many non-empty subsets of at most `max_members` there are.

    Example:
        >>> count_subsets(7), count_subsets(50, 3)
        (127, 20875)
    """
    limit = n_members if max_members is None else min(max_members, n_members)
    return sum(comb(n_members, size) for size in range(1, limit + 1))


def member_costs(costs: Mapping[str, float] | Sequence[float] | None, names: Sequence[str]) -> NDArray[np.float64]:
    """Return each member's cost, shape (M,): 1 each where none are given.

    Raises:
        InputError: Costs are missing, unknown, negative or not finite.

    Example:
        >>> member_costs({"a": 2.0, "b": 0.5}, ["b", "a"]).tolist()
        [0.5, 2.0]
    """
    if costs is None:
        return np.ones(len(names))
    if isinstance(costs, Mapping):
        costs = list(per_member(costs, names, "costs").values())
    values = np.asarray(costs, dtype=np.float64)
    if values.shape != (len(names),):
        raise InputError(f"costs: expected {len(names)}, one for each of {first_few(names, 20)}, got {values.shape}")
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        raise InputError(f"costs: expected finite numbers of at least 0, got {values[bad[0]]} for {names[bad[0]]!r}")
    return values


def enumerate_masks(
    costs: NDArray[np.float64], max_members: int | None = None, budget: float | None = None
) -> NDArray[np.uint64]:
    """Return the non-empty subsets within the limits, ascending, uint64 of shape (S,).

    Args:
        costs: Each member's cost, shape (M,).
        max_members: At most so many members.
        budget: At most this sum of costs.

    Raises:
        InputError: A limit leaves no subset, there are more than 63 members, or too many subsets to list.

    Example:
        >>> enumerate_masks(np.array([1.0, 2.0, 3.0]), budget=3.0).tolist()
        [1, 2, 3, 4]
    """
    n_members = len(costs)
    if n_members > 63:
        raise InputError(f"expected at most 63 members for an exhaustive search, got {n_members}; use greedy_search")
    if max_members is not None:
        check_count("max_members", max_members)
    limit = n_members if max_members is None else max_members
    masks, spent = np.zeros(1, np.uint64), np.zeros(1)
    allowed = np.inf if budget is None else budget + 1e-9 * abs(budget)
    for member, cost in enumerate(costs):
        room = (np.bitwise_count(masks) < limit) & (spent + cost <= allowed)
        if len(masks) + np.count_nonzero(room) > MOST_SUBSETS + 1:
            raise InputError(
                f"more than {MOST_SUBSETS:,} subsets of {n_members} members fit the limits: too many to list; "
                "lower max_members or budget, or use greedy_search"
            )
        masks = np.concatenate([masks, masks[room] | np.uint64(1 << member)])
        spent = np.concatenate([spent, spent[room] + cost])
    if len(masks) == 1:
        raise InputError(f"budget: expected at least {costs.min():g}, the cheapest member's cost, got {budget}")
    return masks[1:]  # ascending: every bit is higher than all before it
