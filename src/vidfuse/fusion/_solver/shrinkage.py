"""How strongly a learned log-linear pool is pulled towards weights by score: by a rule, folds, or a given number."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError
from vidfuse.fusion._solver.log_linear import fit_log_linear
from vidfuse.fusion._solver.shared import FitVideos, shared_penalty
from vidfuse.fusion.crossfit import split_folds
from vidfuse.fusion.floors import is_number
from vidfuse.stack.stack import LogitStack  # noqa: F401  (the example's)

__all__ = ["Shrinkage", "check_shrinkage", "choose_shrinkage"]

Shrinkage = float | Literal["auto", "cv"] | None

_FOLDS: Final = 5
_GRID: Final = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # strengths that "cv" compares, in units of N^(-1/2)


def check_shrinkage(shrinkage: Shrinkage) -> None:
    """Raise unless the shrinkage is "auto", "cv", None or a finite number of at least 0.

    Example:
        >>> check_shrinkage("auto")
    """
    if shrinkage is None or (isinstance(shrinkage, str) and shrinkage in ("auto", "cv")):
        return
    if not is_number(shrinkage) or float(shrinkage) < 0:
        raise InputError(f'shrinkage: expected "auto", "cv", None or a number of at least 0, got {shrinkage!r}')


def choose_shrinkage(shrinkage: Shrinkage, videos: FitVideos) -> float:
    """Return the strength λ of `shrinkage_penalty`.

    "auto" is ``N^(-1/2)``, N the effective number of videos ``1/Σω²``; "cv" takes the multiple of it that has the
    least negative log-likelihood over five folds, always the same ones for the same videos.

    Args:
        shrinkage: "auto", "cv", None (0) or λ itself.
        videos: the videos of the fit; their groups, if they have such, are kept together in folds.

    Example:
        >>> stack = LogitStack.from_arrays(np.zeros((4, 2, 3)))
        >>> choose_shrinkage("auto", FitVideos(stack, np.array([0, 1, 2, 0]), np.full(4, 0.25), np.zeros(2)))
        0.5
    """
    check_shrinkage(shrinkage)
    if shrinkage is None:
        return 0.0
    auto = float(np.sqrt(1.0 / videos.independent))
    if shrinkage == "auto":
        return auto
    if shrinkage != "cv":
        return float(shrinkage)
    groups = videos.stack.groups
    folds = _FOLDS if groups is None else min(_FOLDS, len(np.unique(groups)))
    if len(videos.labels) < 2 * _FOLDS or folds < 2:
        return auto
    losses = np.zeros(len(_GRID))
    for inside, outside in split_folds(videos.labels, folds, groups=groups, keys=videos.stack.ids):
        losses += videos.omega[outside].sum() * _held_out_losses(videos[inside], videos[outside])
    return _GRID[int(losses.argmin())] * auto


def _held_out_losses(train: FitVideos, test: FitVideos) -> NDArray[np.float64]:
    """Return the mean loss of each strength in `_GRID`, in units of ``N^(-1/2)`` of the videos fitted on."""
    losses, beta = np.zeros(len(_GRID)), None
    unit = float(np.sqrt(1.0 / train.independent))
    with train.passes() as inner, test.passes() as outer:
        # From the strongest pull; each fit begins where the last one ended.
        for index in reversed(range(len(_GRID))):
            beta = fit_log_linear(inner, shared_penalty(train, _GRID[index] * unit), beta).beta
            losses[index] = outer.moments(beta, hessian=False).value
    return losses
