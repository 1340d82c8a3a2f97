"""What can be watched of a stream of predictions without labels: numbers that no fit had a hand in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidfuse.likelihood import log_softmax
from vidfuse.stack.stack import LogitStack

__all__ = ["Watched", "one_of_each", "watched"]

_LEAST = -100.0  # a log-likelihood below which nothing is told: a probability of 0 has one


class Watched(NamedTuple):
    """Statistics of videos.

    Attributes:
        names: The statistics' names, (S,): two of all members together, up to three of each.
        values: One number for each video and statistic, (N, S); the last statistic is the predicted class.
    """

    names: tuple[str, ...]
    values: NDArray[np.float32]


def watched(stack: LogitStack) -> Watched:
    """Return what is watched of each video: from the members' scores alone, by no label and no learned weight.

        confidence           log-probability of the class that the members' average predicts
        MEMBER: confidence   log-probability of the class that the member predicts
        MEMBER: spread       standard deviation of its log-likelihoods over the classes: its scale
        MEMBER: agreement    log-probability that it gives to the class that the others' average predicts
        class                the class that the members' average predicts

    What depends on no fit is as exchangeable between the videos of a fit and new ones as the videos themselves are.

    Args:
        stack: Members without views, all of which have all videos, (N, M, K).

    Example:
        >>> found = watched(LogitStack.from_arrays({"a": 3 * np.eye(2), "b": 2 * np.eye(2)}))
        >>> found.names[:4], found.values.shape
        (('confidence', 'a: confidence', 'a: spread', 'a: agreement'), (2, 8))
    """
    m = len(stack.members)
    of_each = ("confidence", "spread", "agreement") if m > 1 else ("confidence", "spread")
    names = ("confidence", *(f"{name}: {what}" for name in stack.members for what in of_each), "class")
    values = np.empty((len(stack), len(names)), np.float32)
    for rows, block in stack.iter_blocks():
        own = np.maximum(block, _LEAST)  # (n, M, K)
        total = own.sum(axis=1, dtype=np.float64)
        columns = [log_softmax(total / m).max(axis=1)]
        for place in range(m):
            columns += [own[:, place].max(axis=1), own[:, place].std(axis=1)]
            if m > 1:
                theirs = (total - own[:, place]).argmax(axis=1)
                columns.append(np.take_along_axis(own[:, place], theirs[:, None], axis=1)[:, 0])
        columns.append(total.argmax(axis=1))
        values[rows] = np.stack(columns, axis=1)
    return Watched(names, values)


def one_of_each(groups: NDArray[np.str_] | None, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the row of one video of each group, drawn at random, in the order in which groups first come.

    Args:
        groups: What each video comes from, (N,); None where videos are independent: all of them.
        n: N.
        rng: What is drawn from.

    Example:
        >>> one_of_each(np.array(["b", "a", "b"]), 3, np.random.default_rng(0)).tolist()
        [2, 1]
    """
    if groups is None:
        return np.arange(n)
    shuffled = rng.permutation(n)
    _, first = np.unique(groups[shuffled], return_index=True)
    _, comes = np.unique(groups, return_index=True)
    return np.asarray(shuffled[first][np.argsort(comes)])
