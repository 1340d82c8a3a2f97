"""Text files that each process of a distributed test writes: one line for each video and chunk.

A line is ``id [s0, s1, …] label chunk split``, as VideoMAE and its descendants write it to ``0.txt``, ``1.txt`` …; the
first line of a file may hold two accuracies. A video stands in as many lines as it has chunks and crops, perhaps in
several files, and a sampler that pads repeats some.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import first_few
from vidfuse.errors import InputError
from vidfuse.stack.frames import Dump

__all__ = ["is_rank_text", "rank_files", "read_ranks"]

_ACCURACIES: Final = re.compile(r"^[\d.eE+-]+\s*,\s*[\d.eE+-]+$")


def is_rank_text(text: str) -> bool:
    r"""Whether a text has lines of this form.

    Example:
        >>> is_rank_text("81.2, 95.0\nrun_1 [0.5, 0.5] 3 0 0\n"), is_rank_text("id,p0\na,1\n")
        (True, False)
    """
    lines = text[: 1 << 20].lstrip().split("\n", 2)[:2]
    return any(_line(line) is not None for line in lines)


def _line(line: str) -> tuple[str, NDArray[np.float64], list[int]] | None:
    """Take a line apart: the id, the scores, and the numbers after them; None if it is of another form."""
    name, _, rest = line.partition("[")
    cells, closed, tail = rest.partition("]")
    try:
        scores = np.array([float(cell) for cell in cells.replace(",", " ").split()])
        numbers = [int(cell) for cell in tail.split()]
    except ValueError:
        return None
    good = closed and name.strip() and len(scores) > 1 and 1 <= len(numbers) <= 3
    return (name.strip(), scores, numbers) if good else None


def rank_files(folder: Path) -> list[Path]:
    """The files of a folder that were written so, by number."""
    files = [file for file in folder.glob("*.txt") if file.stem.isdecimal()]
    return sorted(files, key=lambda file: int(file.stem))


def read_ranks(texts: Sequence[tuple[Path, str]]) -> Dump:
    """Read the lines of all files; the chunks of a video become its views, in the order of chunk and split.

    Raises:
        InputError: A line of another form, or one chunk of a video twice with other numbers.
    """
    videos: dict[str, dict[tuple[int, int], NDArray[np.float64]]] = {}
    labels: dict[str, int] = {}
    for path, text in texts:
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or (number == 1 and _ACCURACIES.match(line.strip())):
                continue
            found = _line(line)
            if found is None:
                raise InputError(
                    f"{path}:{number}: expected `id [scores] label chunk split`, got {line.strip()[:60]!r}"
                )
            name, scores, (label, *numbers) = found
            views = videos.setdefault(name, {})
            chunk, split = [*numbers, 0, 0][:2] if numbers else (len(views), 0)
            place = (chunk, split)
            if labels.setdefault(name, label) != label:
                raise InputError(f"{path}:{number}: {name!r} has the label {label}, and {labels[name]} before")
            if place in views and not np.allclose(views[place], scores, rtol=1e-2, atol=1e-3):
                raise InputError(f"{path}:{number}: chunk {chunk} {split} of {name!r} stands twice, and differs")
            views.setdefault(place, scores)
    if not videos:
        raise InputError(f"{texts[0][0]}: expected lines `id [scores] label chunk split`, got none")
    widths = {len(scores) for views in videos.values() for scores in views.values()}
    if len(widths) > 1:
        raise InputError(f"{texts[0][0]}: videos have different numbers of classes: {first_few(sorted(widths))}")
    stacked = [np.stack([views[place] for place in sorted(views)]) for views in videos.values()]
    even = len({len(video) for video in stacked}) == 1
    return Dump(
        np.stack(stacked) if even else stacked, np.array(list(labels.values())), np.array(list(videos)), chunks=True
    )
