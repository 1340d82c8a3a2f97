"""How the scored videos were drawn: in groups that are not independent, within classes whose means are averaged.

A mean is Σ_n w_n v_n, with w_n = 1/N, or 1/(C N_c) for a mean of C class means. Its variance is the sum over groups of
the squared influence of each group, which holds however the videos of one group depend on each other:

    video    0   1   2   3   4   5   6   7         W_g = Σ_{n in g} w_n (v_n − mean of n's class) / √(1 − h)
    class    a   a   a   b   b   b   b   b
    group    0   0   1   1   2   2   3   3         variance = Σ_g W_g²,   h: the group's share of the class
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from vidfuse._checks import check_names

__all__ = ["Design", "Spread", "design_of"]

_BORROWED = 2.0  # videos (groups) whose worth of variance a class takes from the others


@dataclass(frozen=True)
class Spread:
    """Means of several columns of values, and how sure they are.

    Attributes:
        mean: The means, shape (J,).
        variance: Their estimated variances, shape (J,); NaN where no class tells a variance.
        freedom: The degrees of freedom of the variances.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    freedom: float


@dataclass(frozen=True)
class Design:
    """Which group and which class each video is of.

    Attributes:
        group: The number of each video's group, shape (N,); each video its own where there are no groups.
        stratum: The number of each video's class, shape (N,); all 0 where means are not averaged over classes.
        n_groups: The number of groups that were given; None without groups.
    """

    group: NDArray[np.int64]
    stratum: NDArray[np.int64]
    n_groups: int | None

    @cached_property
    def size(self) -> int:
        """The number of groups, or of videos without groups."""
        return int(self.group.max()) + 1

    @cached_property
    def n_strata(self) -> int:
        """The number of classes, 1 without classes."""
        return int(self.stratum.max()) + 1

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Each video's weight in the mean, shape (N,)."""
        return 1 / (self.n_strata * np.bincount(self.stratum)[self.stratum])

    @cached_property
    def cell(self) -> NDArray[np.int64]:
        """The number of each video's (group, class), shape (N,); cells are sorted by group, then by class."""
        return self._cells[1]

    @cached_property
    def _cells(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What tells each cell from others, and the number of each video's cell."""
        found: tuple[NDArray[np.int64], NDArray[np.int64]] = np.unique(
            self.group * self.n_strata + self.stratum, return_inverse=True
        )
        return found

    @cached_property
    def cell_group(self) -> NDArray[np.int64]:
        """The group of each cell."""
        return self._cells[0] // self.n_strata

    @cached_property
    def cell_stratum(self) -> NDArray[np.int64]:
        """The class of each cell."""
        return self._cells[0] % self.n_strata

    @cached_property
    def share(self) -> NDArray[np.float64]:
        """Each cell's share of its class's videos."""
        counts = np.bincount(self.cell)
        return counts / np.bincount(self.stratum)[self.cell_stratum]

    @cached_property
    def concentration(self) -> NDArray[np.float64]:
        """Σ_g h_g² of each class: 1 over its effective number of groups; 1 where it has one group only."""
        return np.bincount(self.cell_stratum, self.share**2).astype(np.float64)

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """Whether a class tells a variance: whether it has more than one group."""
        return np.bincount(self.cell_stratum) > 1

    @cached_property
    def effective(self) -> float:
        """How many independent videos the groups are worth if all videos of a group are alike."""
        return 1 / float((self._group_weights**2).sum())

    @cached_property
    def _group_weights(self) -> NDArray[np.float64]:
        return np.bincount(self.group, self.weights).astype(np.float64)

    @cached_property
    def freedom(self) -> float:
        """Degrees of freedom of a variance, were all videos alike: Satterthwaite's, less one for each mean.

        For G equal groups G − 1; for N videos in C classes of equal size N − C.

        Source:
            Satterthwaite (1946), An approximate distribution of estimates of variance components, Biometrics 2.
        """
        part = self.share**2 * self.known[self.cell_stratum]
        own = np.bincount(self.cell_group, part, minlength=self.size)
        lost = np.bincount(self.cell_group, part * self.share, minlength=self.size)
        if not own.sum():
            return 0.0
        return float((own.sum() ** 2 / (own**2).sum()) * (1 - lost.sum() / own.sum()))

    def by(self, index: NDArray[np.int64], n: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums over rows of equal index: (rows, J) → (n, J)."""
        rows = np.arange(len(index))
        return np.asarray(csr_array((np.ones(len(index)), (index, rows)), shape=(n, len(index))) @ values)

    def means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the means of columns: (N, J) → (J,)."""
        return self.weights @ values

    def totals(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each group's part of the mean, Σ_{n in g} w_n v_n: (N, J) → (G, J)."""
        return self.by(self.group, self.size, self.weights[:, None] * values)

    def spread(self, values: NDArray[np.float64]) -> Spread:
        """Return means and their variances, for values (N, J).

        In a class of few groups the variance of a group is drawn towards the mean of all classes, by as much as two
        groups would tell; a class of one group takes it from the others altogether.

        Source:
            Liang and Zeger (1986), Biometrika 73, section 2.2 (variances that hold within groups); Bell and McCaffrey
            (2002), Bias reduction in standard errors for linear regression with multi-stage samples, Survey
            Methodology 28, for the division by √(1 − h).
        """
        cells = self.by(self.cell, len(self.share), values)
        sizes = np.bincount(self.stratum)[:, None]
        means = self.by(self.cell_stratum, self.n_strata, cells) / sizes
        off = (cells - np.bincount(self.cell)[:, None] * means[self.cell_stratum]) / sizes[self.cell_stratum]
        known = self.known[self.cell_stratum]
        off[known] /= np.sqrt(1 - self.share[known])[:, None]
        own = self.by(self.cell_stratum, self.n_strata, off**2)
        if not self.known.any():
            return Spread(means.mean(axis=0), np.full(values.shape[1], np.nan), 0.0)
        one = self.concentration[:, None]
        each = own / one  # the variance of one group's mean, as each class tells it
        shared = each[self.known].mean(axis=0)
        told = np.where(self.known, 1 / self.concentration - 1, 0.0)[:, None]
        better = one * (told * each + _BORROWED * shared) / (told + _BORROWED)
        total = (self.by(self.cell_group, self.size, off) ** 2).sum(axis=0) + (better - own).sum(axis=0)
        return Spread(means.mean(axis=0), np.maximum(total, 0.0) / self.n_strata**2, self.freedom)


def design_of(n: int, strata: ArrayLike | None = None, groups: ArrayLike | None = None) -> Design:
    """Return the design of N videos, from one class and one group a video.

    Raises:
        InputError: Not one class, or not one group, for each video, or a missing one.

    Example:
        >>> design_of(4, groups=["x", "x", "y", "y"]).spread(np.array([[0.0], [0.0], [1.0], [1.0]])).variance
        array([0.25])
    """
    codes = []
    for name, given in (("groups", groups), ("strata", strata)):
        if given is None:
            codes.append(np.arange(n) if name == "groups" else np.zeros(n, np.int64))
        else:
            codes.append(np.unique(check_names(given, n, name), return_inverse=True)[1].astype(np.int64))
    return Design(codes[0], codes[1], None if groups is None else int(codes[0].max()) + 1)
