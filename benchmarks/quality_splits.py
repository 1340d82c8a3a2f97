"""How published predictions are split: whole sources (videos, films, signers) on one side, where the ids tell them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CLIP = {  # what a clip's id ends in, beyond its source, by what the name of a set has in it
    "ucf": r"_c\d+$",  # v_Run_g01_c02
    "slip": r"_c\d+$",
    "hmdb": r"_[fhlu]_(nm|cm)_np\d+_(ba|fr|le|ri)_(goo|med|bad)_\d+$",  # <film>_f_cm_np1_ba_med_3
    "autsl": r"_.*$",  # signer10_sample100
}


def groups(name: str, ids: Sequence[str]) -> list[str]:
    """Return what each clip was cut from: the clip itself, where the set's name tells no pattern."""
    end = next((pattern for part, pattern in _CLIP.items() if part in name), None)
    return [re.sub(end, "", clip) if end else str(clip) for clip in ids]


def split(
    name: str, ids: ArrayLike, labels: ArrayLike, n: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return n rows to fit on, and those to score: no source is on both sides.

    Sources are dealt class by class, so that every class is met, and as they come where there are fewer than 20.
    Where the last source that is dealt has more clips than are needed, n of all are drawn.
    """
    rng, truth = np.random.default_rng(seed), np.asarray(labels)
    source = np.unique(groups(name, np.asarray(ids).astype(str).tolist()), return_inverse=True)[1]
    count = int(source.max()) + 1
    if count == len(source):  # each clip stands for itself
        rows = rng.permutation(count)
        return np.sort(rows[:n]), np.sort(rows[n:])
    main_class = np.array([np.bincount(truth[source == one]).argmax() for one in range(count)])
    key = np.empty(count)  # sources of one class get 0.…, 1.…, 2.…: the first of every class before the second of any
    for label in np.unique(main_class):
        members = np.flatnonzero(main_class == label)
        key[members] = rng.permutation(len(members)) + rng.random(len(members))
    if count < 20:
        key = rng.random(count)
    order = np.argsort(key)
    dealt = int(np.searchsorted(np.cumsum(np.bincount(source)[order]), n)) + 1
    inside = np.isin(source, order[:dealt])
    fit, scored = np.flatnonzero(inside), np.flatnonzero(~inside)
    return (np.sort(rng.choice(fit, n, replace=False)) if len(fit) > n else fit), scored
