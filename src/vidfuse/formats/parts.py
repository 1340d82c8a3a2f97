"""One member from several files: a cross-validation's folds, shards, or several models' predictions of a test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import first_few
from vidfuse.errors import AlignmentError, InputError, option
from vidfuse.stack.classes import warn_of_unnamed
from vidfuse.stack.frames import Dump, reordered
from vidfuse.stack.join import joined_ids

__all__ = ["join_dumps"]


def join_dumps(dumps: Mapping[str, Dump], listed: Sequence[str] | NDArray[np.str_] | None, repeats: str | None) -> Dump:
    """Return the rows of several files, one after another, as one dump.

    ==========  =====================================  ==============================================
    files       `repeats` is None                      `repeats` is a reduction
    ==========  =====================================  ==============================================
    with ids    an id in two files is refused          an id may stand in several
    without     they follow the list one after         each follows the whole list, whose ids it gets
                another; the list gives ids later
    ==========  =====================================  ==============================================

    Args:
        dumps: The files' contents, by name, in their order; scores without views, or all with as many.
        listed: The ids of the list that files without ids follow, if there is one.
        repeats: How a video's predictions in several files are made one; only whether it is None matters here.

    Raises:
        InputError: The files do not belong together.
        AlignmentError: Files without ids are not as long as the list.
    """
    shapes = {name: np.shape(dump.scores)[1:] for name, dump in dumps.items() if not isinstance(dump.scores, list)}
    if len(shapes) < len(dumps) or len(set(shapes.values())) > 1:
        shown = ", ".join(f"{name}: {shape}" for name, shape in shapes.items())
        raise InputError(f"expected files of the same classes and views, got videos of shape {shown}")
    first = next(iter(dumps.values()))
    classes = next((dump.classes for dump in dumps.values() if dump.classes is not None), None)
    if classes is not None:
        warn_of_unnamed([name for name, dump in dumps.items() if dump.classes is None])
        dumps = {name: reordered(dump, classes) for name, dump in dumps.items()}
    lengths = [len(dump.scores) for dump in dumps.values()]
    ids = joined_ids({name: dump.ids for name, dump in dumps.items()}, repeats)
    if ids is None and repeats is not None:
        if listed is None:
            raise InputError(
                f"{option('repeats', repeats)} goes by id, and these files have none; pass "
                f"{option('annotations')}, the list of videos in their rows' order"
            )
        odd = [name for name, count in zip(dumps, lengths, strict=True) if count != len(listed)]
        if odd:
            raise AlignmentError(
                f"{first_few(odd)}: expected as many rows as the list of videos has, {len(listed)}, got "
                f"{', '.join(map(str, lengths))}"
            )
        ids = np.concatenate([np.asarray(listed)] * len(dumps))
    elif ids is None and listed is not None and len(dumps) > 1 and set(lengths) == {len(listed)}:
        raise AlignmentError(
            f"each of {len(dumps)} files has as many rows as the list of videos, {len(listed)}: if they are several "
            f"models' predictions of the same videos, average them with {option('repeats', 'mean-probability')}"
        )
    labels = [dump.labels for dump in dumps.values()]
    scores: Any = [dump.scores for dump in dumps.values()]
    return Dump(
        np.concatenate(scores),
        None if any(own is None for own in labels) else np.concatenate([np.asarray(own) for own in labels]),
        ids,
        classes,
        first.kind,
    )
