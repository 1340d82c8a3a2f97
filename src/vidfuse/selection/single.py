"""The best single member: what every gain is counted from."""

from __future__ import annotations

import numpy as np

from vidfuse.errors import InputError
from vidfuse.metrics.objectives import Objective, higher_is_better, resolve_objective
from vidfuse.metrics.probabilistic import nll
from vidfuse.stack.stack import LogitStack

__all__ = ["best_single"]


def best_single(stack: LogitStack, objective: str | Objective = "accuracy") -> str:
    """Return the member with the best score on a labelled stack; among equals the lower NLL, then the first name.

    A member that lacks a video counts as one that knows nothing there and is wrong, so that few easy videos make no
    member the best.

    Args:
        stack: The members (N, M, K), with labels.
        objective: "accuracy", "mean-class-accuracy", "nll", or a callable `(labels, log_proba) -> float`.

    Raises:
        InputError: The stack has no labels.

    Example:
        >>> z = np.log([[0.7, 0.3], [0.4, 0.6]])
        >>> best_single(LogitStack.from_arrays({"worse": z[::-1], "better": z}, labels=[0, 1]))
        'better'
    """
    if stack.labels is None:
        raise InputError("the best single member needs labels, and the stack has none; build it with labels=")
    metric, sign = resolve_objective(objective), 1.0 if higher_is_better(objective) else -1.0
    ranked = []
    for column, name in enumerate(stack.members):
        log_proba = stack.select([name]).log_likelihoods()[:, 0]
        if stack.present is not None:
            lacking = np.flatnonzero(
                ~stack.present[:, column]
            )  # uniform there: any other class is put before the true one
            log_proba[lacking, stack.labels[lacking]] -= 1e-4
        value = sign * float(metric(stack.labels, log_proba))
        ranked.append((-value, nll(stack.labels, log_proba), name))
    return min(ranked)[2]
