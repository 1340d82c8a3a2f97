"""The answers of Hugging Face pipelines: a list of ``{"label": name, "score": number}`` for each video.

A pipeline sorts a video's classes by their scores and gives the best five unless it is asked for more. So the classes'
order is that of their names, and a video that lacks a class is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vidfuse.errors import InputError
from vidfuse.stack.frames import Dump, read_frame

__all__ = ["answers_in", "is_answers", "read_answers"]


def is_answers(value: Any) -> bool:
    """Whether this is what a pipeline says of one video.

    Example:
        >>> is_answers([{"label": "run", "score": 0.9}]), is_answers([{"label": "run"}]), is_answers([])
        (True, False, False)
    """
    return isinstance(value, list) and bool(value) and all(map(_is_answer, value))


def _is_answer(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"label", "score"}:
        return False
    return isinstance(value["label"], str) and isinstance(value["score"], int | float)


def answers_in(sample: Any) -> str | None:
    """Return the key under which one video's dict holds a pipeline's answers; None where none or several do.

    Example:
        >>> answers_in({"video": "a.mp4", "result": [{"label": "run", "score": 0.9}]})
        'result'
    """
    found = [key for key, value in sample.items() if is_answers(value)] if isinstance(sample, dict) else []
    return found[0] if len(found) == 1 else None


def read_answers(videos: Sequence[Any], classes: Sequence[str] | str | None) -> Dump:
    """Return what a pipeline said of some videos as scores (N, K), in the order of the classes' names.

    Args:
        videos: For each video {label, score} of each class.
        classes: Class names in order; without them, they are sorted. Names that a model without names gives, LABEL_0,
            LABEL_1, …, are no names, and stand in the order of their numbers.

    Raises:
        InputError: A video lacks a class that another has, or has one twice; or one list is given for all videos.

    Example:
        >>> said = [[{"label": "run", "score": 0.9}, {"label": "hop", "score": 0.1}]]
        >>> dump = read_answers(said, None)
        >>> dump.scores.tolist(), dump.classes
        ([[0.1, 0.9]], ('hop', 'run'))
    """
    if is_answers(videos):
        raise InputError(
            "expected a list of a pipeline's answers for each video, got one list: the best class of each, or all of "
            "one video? Save {id: answers}, of a pipeline with top_k=len(pipe.model.config.id2label)"
        )
    known = sorted({answer["label"] for video in videos for answer in video})
    few = [row for row, video in enumerate(videos) if len(video) < len(known)]
    if few or len(known) == 1:
        row = few[0] if few else 0
        raise InputError(
            f"expected a pipeline's scores of every class for every video, got {len(videos[row])} of {len(known)} "
            f"classes or more in row {row} ({max(len(few), 1)} such rows): it gives the best five unless it is told "
            "otherwise; run it with top_k=len(pipe.model.config.id2label)"
        )
    numbered = {f"LABEL_{k}": str(k) for k in range(len(known))}
    bare = numbered if set(known) == set(numbered) else {}
    rows = [(row, answer) for row, video in enumerate(videos) for answer in video]
    dump = read_frame(
        {
            "id": np.array([str(row) for row, _ in rows]),
            "class": np.array([bare.get(answer["label"], answer["label"]) for _, answer in rows]),
            "score": np.array([answer["score"] for _, answer in rows], dtype=np.float64),
        },
        classes=None if bare else classes,
    )
    return replace(dump, ids=None)
