"""How strongly a learned log-linear pool is pulled towards weights by score: by a rule, folds, or a given number."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError
from vidfuse.fusion._solver.log_linear import fit_log_linear, shrinkage_penalty
from vidfuse.fusion._solver.passes import Passes
from vidfuse.fusion.crossfit import Splits, split_folds
from vidfuse.fusion.floors import is_number
from vidfuse.stack.stack import LogitStack

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


def choose_shrinkage(
    shrinkage: Shrinkage,
    stack: LogitStack,
    labels: NDArray[np.int64],
    omega: NDArray[np.float64],
    floors: NDArray[np.float64],
    direction: NDArray[np.float64],
    n_jobs: int | None = None,
) -> float:
    """Return the strength λ of `shrinkage_penalty`.

    "auto" is ``N^(-1/2)``, N the effective number of videos ``1/Σω²``; "cv" takes the multiple of it that has the
    least negative log-likelihood over five folds, always the same ones for the same videos.

    Args:
        shrinkage: "auto", "cv", None (0) or λ itself.
        stack: the members.
        labels: true classes (N,).
        omega: the videos' weights (N,), which sum to 1.
        floors: each member's floor (M,).
        direction: the weights to shrink to (M,), on the simplex.
        n_jobs: joblib's number of workers.

    Example:
        >>> stack = LogitStack.from_arrays(np.zeros((4, 2, 3)))
        >>> y, omega, direction = np.array([0, 1, 2, 0]), np.full(4, 0.25), np.full(2, 0.5)
        >>> choose_shrinkage("auto", stack, y, omega, np.zeros(2), direction)
        0.5
    """
    check_shrinkage(shrinkage)
    if shrinkage is None:
        return 0.0
    auto = float(np.sqrt(omega @ omega))
    if shrinkage == "auto":
        return auto
    if shrinkage != "cv":
        return float(shrinkage)
    if np.count_nonzero(omega) < 2 * _FOLDS:
        return auto
    losses = _held_out_losses(
        split_folds(labels, _FOLDS, keys=stack.ids), stack, labels, omega, floors, direction, n_jobs
    )
    return _GRID[int(losses.argmin())] * auto


def _held_out_losses(
    splits: Splits,
    stack: LogitStack,
    labels: NDArray[np.int64],
    omega: NDArray[np.float64],
    floors: NDArray[np.float64],
    direction: NDArray[np.float64],
    n_jobs: int | None,
) -> NDArray[np.float64]:
    """Return what each strength in `_GRID` loses on videos held out: the weighted negative log-likelihood of all folds.

    Each strength is in units of ``N^(-1/2)`` of the videos fitted on. A fold without weight, inside or outside, is left
    out.
    """
    losses = np.zeros(len(_GRID))
    for inside, outside in splits:
        if not (omega[inside].any() and omega[outside].any()):
            continue
        share = omega[inside] / omega[inside].sum()
        unit = float(np.sqrt(share @ share))
        with (
            Passes(stack[inside], labels[inside], share, floors, n_jobs) as train,
            Passes(stack[outside], labels[outside], omega[outside], floors, n_jobs) as test,
        ):
            beta = None
            # From the strongest pull; each fit begins where the last one ended.
            for index in reversed(range(len(_GRID))):
                beta = fit_log_linear(train, shrinkage_penalty(_GRID[index] * unit, direction), beta).beta
                losses[index] += test.moments(beta, hessian=False).value
    return losses
