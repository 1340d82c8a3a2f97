"""Ids that look like clips of one source, where nobody said what the videos come from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike

from vidfuse._checks import first_few
from vidfuse.errors import VidfuseWarning, option
from vidfuse.stack.stack import LogitStack

__all__ = ["clips_of_one_source", "warn_if_clips", "without_clips_warnings"]

_COUNTER = re.compile(r"[_\-.]?[A-Za-z]{0,5}[_\-.]?\d+$")  # c02, _clip_3, -0007
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")
_FEWEST = 10  # sources, below which a pattern may be chance
_SHARED = 0.5  # share of the ids that have a sibling
_AT_ONCE = 1 << 16  # ids that are texts of Python's at once


def clips_of_one_source(ids: ArrayLike, n_classes: int) -> tuple[int, list[str]] | None:
    """Return how many sources ids name, and the ids of one of them; None where ids do not look like clips of sources.

    An id without its last counter is its stem. Ids look like clips where at least half of them share a stem with
    another, and there are more stems than classes: `run_001`, `run_002` … name a class, not a source.

    Example:
        >>> ids = [f"v_Run_g{g:02}_c{c:02}" for g in range(12) for c in range(3)]
        >>> clips_of_one_source(ids, n_classes=2)
        (12, ['v_Run_g00_c00', 'v_Run_g00_c01', 'v_Run_g00_c02'])
        >>> clips_of_one_source([f"v{i}" for i in range(36)], n_classes=2) is None
        True
    """
    texts = np.asarray(ids)
    stems = np.empty(len(texts), np.int64)  # hashes: of very many, texts would take more than all else that is held
    for start in range(0, len(texts), _AT_ONCE):
        some = texts[start : start + _AT_ONCE].tolist()
        stems[start : start + _AT_ONCE] = [hash(_COUNTER.sub("", _SUFFIX.sub("", name))) for name in some]
    _, which, counts = np.unique(stems, return_inverse=True, return_counts=True)
    shared = counts[which] > 1
    if len(counts) < max(_FEWEST, n_classes + 1) or hash("") in stems or shared.mean() < _SHARED:
        return None
    return len(counts), texts[which == which[shared.argmax()]].tolist()


def warn_if_clips(stack: LogitStack) -> None:
    """Warn where ids look like clips of one source and the stack has no groups: intervals would be too short."""
    if stack.groups is not None or stack.ids is None:
        return
    found = clips_of_one_source(stack.ids, stack.n_classes)
    if found is not None:
        n_sources, clips = found
        warnings.warn(
            f"{len(stack):,} ids look like clips of {n_sources:,} sources ({first_few(clips, 2)}), which are not "
            "independent: folds would split them, and intervals, p-values and stated risks be too small. Say what "
            f"each video comes from by {option('groups')}: one name for each video, or what the id says of it; the id "
            "itself where each stands for itself",
            VidfuseWarning,
            stacklevel=3,
        )


@contextmanager
def without_clips_warnings() -> Iterator[None]:
    """Leave out that warning: for copies of a rule on some of the videos, of all of which it was asked.

    Example:
        >>> with without_clips_warnings():
        ...     warnings.warn("80 ids look like clips of 20 sources, …", VidfuseWarning)
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* ids look like clips of ", VidfuseWarning)
        yield
