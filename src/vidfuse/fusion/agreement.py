"""Whether members agree with each other, as they did on the videos of a fit, and whether labels are their classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import first_few
from vidfuse.cache.format import glancing
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.metrics import prediction_disagreement
from vidfuse.stack.order import order_advice
from vidfuse.stack.stack import LogitStack

__all__ = [
    "agreement_beyond_chance",
    "check_numbering",
    "warn_if_agreement_is_lost",
    "without_agreement_warnings",
]

_SAMPLE = 256  # videos that are looked at, evenly spaced: enough to tell agreement from chance, and read in a moment
_FEWEST = 30


def agreement_beyond_chance(stack: LogitStack) -> NDArray[np.float64]:
    """Return how far each member's predictions agree with the others' beyond chance, and that value's deviation.

    Cohen's kappa, (a − e) / (1 − e), with a the share of videos for which two members predict the same class, and e
    the share that predictions of the same frequencies share in a random order, both averaged over the other members.
    The deviation is that of a random order, the binomial √(e (1 − e) / n) / (1 − e). At most 256 videos are read.

    Returns:
        Kappa, its deviation, and a (3, M); NaN where one member alone, or fewer than 30 complete videos, tell nothing.

    Source:
        Cohen (1960), A coefficient of agreement for nominal scales.

    Example:
        >>> z = 5 * np.eye(3)[np.arange(60) % 3]
        >>> kappa, deviation, agreed = agreement_beyond_chance(LogitStack.from_arrays({"a": z, "b": z, "c": z[::-1]}))
        >>> kappa.round(2).tolist(), deviation.round(2).tolist()
        ([0.5, 0.5, 0.0], [0.09, 0.09, 0.09])
    """
    unknown = np.full((3, len(stack.members)), np.nan)
    complete = np.arange(len(stack)) if stack.present is None else np.flatnonzero(stack.present.all(axis=1))
    n = min(len(complete), _SAMPLE)
    if n < _FEWEST or len(stack.members) < 2:
        return unknown
    some = stack[complete[np.linspace(0, len(complete) - 1, n).astype(np.int64)]]
    with glancing():  # these videos are of all parts, which would be read twice: to be checked now, and to be used
        if some.n_views is None:
            predictions = np.stack([some.scores(name).argmax(axis=1) for name in some.members], axis=1)
        else:
            predictions = some.log_likelihoods().mean(axis=2).argmax(axis=-1)
    frequencies = np.stack([np.bincount(column, minlength=stack.n_classes) / n for column in predictions.T])
    others = 1 - np.eye(len(stack.members))
    agreed = np.average(1 - prediction_disagreement(predictions), axis=1, weights=others)
    chance = np.average(frequencies @ frequencies.T, axis=1, weights=others)
    room = np.where(chance < 1, 1 - chance, np.nan)
    return np.stack([(agreed - chance) / room, np.sqrt(chance * (1 - chance) / n) / room, agreed])


def warn_if_agreement_is_lost(members: Sequence[str], fitted: NDArray[np.float64], stack: LogitStack) -> None:
    """Warn of members that agreed with the others when the rule was fitted, and agree as if by chance now.

    Where most videos are of one class, members agree by chance almost as often as they did on the videos of the fit,
    and nothing can be told: kappa has to fall below what the fit's share of agreement would be here.

    Args:
        members: The fitted members' names.
        fitted: Their `agreement_beyond_chance` on the videos of the fit (3, M), or (2, M) in old recipes.
        stack: The videos to predict, members sorted by name; a member is looked up by its name.
    """
    common = [name for name in members if name in stack.members]
    before = fitted[:, [members.index(name) for name in common]]
    now = agreement_beyond_chance(stack)[:, [stack.members.index(name) for name in common]]
    at_chance = now[0] < 3 * now[1]
    expected = before[0]
    if len(before) > 2:  # 1 - kappa is (1 - a) / (1 - e): with the fit's share a and the chance e of today
        expected = np.minimum(expected, 1 - (1 - before[2]) * (1 - now[0]) / np.maximum(1 - now[2], 1e-9))
    fallen = expected - now[0] > 4 * np.hypot(before[1], now[1])
    suspects = [name for name, lost in zip(common, at_chance & fallen, strict=True) if lost]
    if suspects:
        warnings.warn(
            f"member {first_few(suspects)} agreed with the others on the videos of the fit, and agrees with them only "
            f"by chance on these: another order? {order_advice(stack.ids is not None)}",
            VidfuseWarning,
            stacklevel=4,
        )


@contextmanager
def without_agreement_warnings() -> Iterator[None]:
    """Leave out that warning: for videos on which members agree less for a known reason, hard ones or single views.

    Example:
        >>> with without_agreement_warnings():
        ...     warnings.warn("member 'a' agreed with the others on the videos of the fit, and …", VidfuseWarning)
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* agreed with the others on the videos of the fit", VidfuseWarning)
        yield


def check_numbering(stack: LogitStack, y: NDArray[np.int64]) -> None:
    """Refuse labels whose classes were numbered anew, without those that no video has.

    scikit-learn's `cross_val_predict`, `VotingClassifier`, `StackingClassifier` and `CalibratedClassifierCV` do so:

        classes of the videos    0 1 . 3        no video is of class 2
        labels that arrive       0 1 . 2        columns of the scores: 0 1 2 3

    Where the stack has labels of its own, they tell. Where it has none, its members do: labels 0 … C - 1 of K > C
    classes are refused if the class that members predict most often for each of them is another one, in rising order.

    Args:
        stack: the videos of the fit.
        y: the labels that were passed beside them (N,), in 0 … K − 1.

    Raises:
        InputError: the labels were numbered anew.

    Example:
        >>> z = 5 * np.eye(3)[[0, 2, 0, 2]][:, None]
        >>> check_numbering(LogitStack.from_arrays(z), np.array([0, 2, 0, 2]))
        >>> check_numbering(LogitStack.from_arrays(z), np.array([0, 1, 0, 1]))
        Traceback (most recent call last):
        vidfuse.errors.InputError: y: the classes seem to be numbered anew: what y calls class 1 is class 2 ...
    """
    if stack.labels is not None:
        if np.array_equal(y, stack.labels):
            return
        pairs = np.unique(np.stack([y, stack.labels], axis=1), axis=0)
        found, meant = pairs[:, 0], pairs[:, 1]
    else:
        found = np.unique(y)
        contiguous = found[-1] == len(found) - 1 and 1 < len(found) < stack.n_classes
        if not contiguous or stack.n_views is not None or stack.present is not None:
            return
        meant = np.array([_most_predicted(stack[np.flatnonzero(y == label)[:_SAMPLE]]) for label in found])
    moved = np.flatnonzero(found != meant)
    if len(moved) and (np.diff(found) > 0).all() and (np.diff(meant) > 0).all():
        judge = "by the members" if stack.labels is None else "of the stack"
        raise InputError(
            f"y: the classes seem to be numbered anew: what y calls class {found[moved[0]]} is class "
            f"{meant[moved[0]]} {judge}; scikit-learn's wrappers do so where no video is of some class. Use vidfuse's "
            "own (honest_score, compare, Calibrated), leave the absent classes out of the members' scores, or fit on a "
            "stack that has labels if these are right"
        )


def _most_predicted(stack: LogitStack) -> int:
    """Return the class that the members predict most often."""
    predicted = [stack.scores(name).argmax(axis=1) for name in stack.members]
    return int(np.bincount(np.concatenate(predicted), minlength=stack.n_classes).argmax())
