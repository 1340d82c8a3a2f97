"""One member's predictions from several places: folds and shards one after another, fold models on the same videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import Kind, first_few
from vidfuse.cache.ids import hashed_ids
from vidfuse.errors import AlignmentError, InputError, option
from vidfuse.stack.source import reduce_array

__all__ = ["any_repeated", "average_repeats", "check_alike", "check_disjoint", "joined_ids", "repeated_rows"]


def check_disjoint(ids: Mapping[str, NDArray[np.str_]], *, shards: bool = False) -> None:
    """Refuse ids that stand in two places.

    Args:
        ids: The ids in each place, by what an error calls it.
        shards: The places are caches, which are not averaged.

    Raises:
        InputError: An id stands in two; they and the ids are named.

    Example:
        >>> check_disjoint({"fold0.npz": np.array(["a", "b"]), "fold1.npz": np.array(["b", "c"])})
        Traceback (most recent call last):
        vidfuse.errors.InputError: 1 video stands both in fold0.npz and in fold1.npz: 'b'; drop it from one, or ...
    """
    places = list(ids)
    if not any_repeated(list(ids.values())):
        return
    for number, first in enumerate(places):
        for second in places[number + 1 :]:
            both = np.intersect1d(ids[first], ids[second])
            if len(both):
                many, them = (f"{len(both)} videos stand", "them") if len(both) > 1 else ("1 video stands", "it")
                advice = f"drop {them} from one, or average the predictions of several models with "
                advice += option("repeats", "mean-probability")
                if shards:
                    advice = f"leave one of these out, or write it again without {them}"
                raise InputError(f"{many} both in {first} and in {second}: {first_few(both.tolist())}; {advice}")


def any_repeated(ids: Sequence[NDArray[Any]]) -> bool:
    """Whether an id may stand in two of these places, as texts or as bytes: a few bytes an id, and hardly by chance.

    Example:
        >>> any_repeated([np.array(["a", "b"]), np.array(["c"])]), any_repeated([np.array(["a"]), np.array(["a"])])
        (False, True)
    """
    places = [own for own in ids if len(own)]
    rise = all(last[-1] < first[0] for last, first in pairwise(places))
    if rise and all((own[1:] > own[:-1]).all() for own in places):  # as shards that were cut from a sorted list do
        return False
    numbers = np.concatenate([hashed_ids(own) for own in ids])
    numbers.sort()
    return bool((numbers[1:] == numbers[:-1]).any())


def joined_ids(ids: Mapping[str, NDArray[np.str_] | None], repeats: str | None) -> NDArray[np.str_] | None:
    """Return the ids of all places one after another, or None where none has any.

    Raises:
        InputError: Some have ids and some have not, or an id stands in two and `repeats` is None.
    """
    known = {place: own for place, own in ids.items() if own is not None}
    if not known:
        return None
    if len(known) < len(ids):
        without = [place for place in ids if place not in known]
        raise InputError(f"{first_few(without)} {'has' if len(without) == 1 else 'have'} no ids, the others have")
    if repeats is None:
        check_disjoint(known)
    return np.concatenate(list(known.values()))


def repeated_rows(ids: NDArray[np.str_], counts: Sequence[int]) -> NDArray[np.int64]:
    """Return the rows (N, R) in which each video stands, in the order of its first.

    Args:
        ids: The ids of all rows.
        counts: How many rows each place has, for the error.

    Raises:
        AlignmentError: Some videos have more predictions than others.

    Example:
        >>> repeated_rows(np.array(["b", "a", "a", "b"]), [2, 2]).tolist()
        [[0, 3], [1, 2]]
    """
    unique, first, inverse, often = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    if len(set(often.tolist())) > 1:
        usual = int(np.bincount(often).argmax())
        odd = unique[often != usual]
        raise AlignmentError(
            f"expected each video to be predicted as often as the others, got {usual} predictions of most and another "
            f"number of {len(odd)}: {first_few(odd.tolist())} (the files have {', '.join(map(str, counts))} rows)"
        )
    rows = np.argsort(inverse, kind="stable").reshape(len(unique), -1)
    ordered: NDArray[np.int64] = rows[np.argsort(first)]
    return ordered


def check_alike(values: NDArray[Any], ids: NDArray[np.str_], what: str) -> None:
    """Raise unless each video's predictions have the same label or group: values (N, R), ids (N,)."""
    odd = np.flatnonzero((values != values[:, :1]).any(axis=1))
    if odd.size:
        raise AlignmentError(
            f"the {what} of {odd.size} of {len(ids)} videos differ between their predictions: "
            f"{first_few(ids[odd].tolist())}; are they of the same videos?"
        )


def average_repeats(
    scores: NDArray[np.floating[Any]], kind: Kind, rows: NDArray[np.int64], repeats: str
) -> NDArray[np.float32]:
    """Return log-likelihoods (N, K): each video's predictions (R) made one, as views are.

    Args:
        scores: All rows (n, K) as they are stored.
        kind: What they are.
        rows: The rows of each video (N, R).
        repeats: "mean-probability", "mean-log", "vote" or "max".

    Raises:
        InputError: Scores have a view axis, or the reduction is unknown.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.5, 0.5]])
        >>> np.exp(average_repeats(p, "probabilities", np.array([[0, 1]]), "mean-probability")).round(2).tolist()
        [[0.699999988079071, 0.30000001192092896]]
    """
    if scores.ndim != 2:
        raise InputError(
            f"{option('repeats', repeats)} averages predictions (N, K), got shape {scores.shape} with views; reduce "
            f"them too, with {option('views', 'mean-log')}"
        )
    return reduce_array(scores[rows], kind, repeats)
