"""Write predictions for other tools: csv, npz, and MMAction2's pickled list, which needs torch."""

from __future__ import annotations

import csv
import io
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import as_float_array, check_classes, check_ids, check_labels, first_few
from vidfuse.errors import InputError, MissingExtraError
from vidfuse.stack.stack import LogitStack

__all__ = ["write_predictions"]

Format = Literal["csv", "csv-long", "npz", "mmaction2"]
_FORMATS: Final[dict[str, Format]] = {".csv": "csv", ".npz": "npz", ".pkl": "mmaction2", ".pickle": "mmaction2"}


def write_predictions(
    scores: Any,
    path: str | os.PathLike[str],
    *,
    ids: Any = None,
    labels: Any = None,
    classes: Sequence[str] | None = None,
    member: str | None = None,
    kind: str | None = None,
    format: Format | None = None,
) -> Path:
    """Write one member's scores, or fused log-likelihoods, in a form that other tools read.

    Args:
        scores: A stack (with `member`, if it has several), or an array (N, K) or (N, V, K).
        path: The file; its suffix chooses the format unless `format` does.
        ids: The videos' ids; a stack brings its own, and without any rows are called 0, 1, …
        labels: True classes (N,), or None.
        classes: The classes' names.
        member: Which member of a stack.
        kind: What an array's numbers are, as a note in an .npz file; a stack brings its own.
        format: "csv" (``id,[label,]p0,…``), "csv-long" (``id,class,score``), "npz" (``scores``, ``ids``, ``labels``,
            ``classes``, ``kind``) or "mmaction2" (a pickled list of dicts with tensors, as ``--dump`` writes it and
            ``report_accuracy.py`` reads it; needs torch).

    Returns:
        The path.

    Raises:
        InputError: An unknown format, several members and none chosen, or views where the format has no place for them.
        MissingExtraError: "mmaction2" without torch.

    Example:
        >>> import tempfile, pathlib
        >>> file = write_predictions(np.eye(2), pathlib.Path(tempfile.mkdtemp(), "p.csv"), ids=["a", "b"])
        >>> file.read_text().split()
        ['id,p0,p1', 'a,1.0,0.0', 'b,0.0,1.0']
    """
    target = Path(path)
    chosen = format or _FORMATS.get(target.suffix.lower())
    if chosen not in ("csv", "csv-long", "npz", "mmaction2"):
        raise InputError(
            f"{target}: expected a format or a suffix {first_few(_FORMATS)}, got {format or target.suffix!r}"
        )
    if isinstance(scores, LogitStack):
        stack = scores
        if member is None and len(stack.members) > 1:
            raise InputError(f"member: expected one of {first_few(stack.members, 20)}, as a file holds one member")
        name = stack.members[0] if member is None else member
        ids, labels, classes = stack.ids, stack.labels, stack.classes
        kind = stack.select([name]).kinds[0]
        scores = stack.scores(name)
    array = as_float_array(scores, "scores")
    if array.ndim not in (2, 3):
        raise InputError(f"scores: expected (N, K) or (N, V, K), got shape {array.shape}")
    names = check_ids([str(row) for row in range(len(array))] if ids is None else ids, len(array))
    own_labels = None if labels is None else check_labels(labels, len(array), array.shape[-1], names)
    own_classes = check_classes(classes, array.shape[-1])
    if chosen == "npz":
        content: dict[str, Any] = {"scores": array, "ids": names, "labels": own_labels, "kind": kind}
        content["classes"] = None if own_classes is None else np.array(own_classes)
        arrays: Any = {key: np.asarray(value) for key, value in content.items() if value is not None}
        np.savez(target, **arrays)
        return target
    if chosen == "mmaction2":
        target.write_bytes(pickle.dumps(_mmaction2(array, names, own_labels)))
        return target
    if array.ndim != 2:
        raise InputError(f"scores: a csv holds (N, K), got views: shape {array.shape}; reduce them, or write .npz")
    with target.open("w", newline="", encoding="utf-8") as stream:
        _write_csv(stream, array, names, own_labels, own_classes, long=chosen == "csv-long")
    return target


def _write_csv(
    stream: io.TextIOBase | Any,
    array: NDArray[Any],
    ids: NDArray[np.str_],
    labels: NDArray[np.int64] | None,
    classes: tuple[str, ...] | None,
    *,
    long: bool,
) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    columns = [f"p{k}" for k in range(array.shape[1])]
    if long:
        writer.writerow(["id", "class", "score"])
        named = classes or tuple(str(k) for k in range(array.shape[1]))
        for name, row in zip(ids.tolist(), array, strict=True):
            writer.writerows((name, label, repr(value)) for label, value in zip(named, row.tolist(), strict=True))
        return
    writer.writerow(["id", *([] if labels is None else ["label"]), *(classes or columns)])
    for number, (name, row) in enumerate(zip(ids.tolist(), array, strict=True)):
        label = [] if labels is None else [int(labels[number])]
        writer.writerow([name, *label, *(repr(value) for value in row.tolist())])


def _mmaction2(array: NDArray[Any], ids: NDArray[np.str_], labels: NDArray[np.int64] | None) -> list[dict[str, Any]]:
    """The samples as `--dump` writes them: tensors, as MMAction2's own scripts call their methods."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("writing MMAction2's dumps", "networks") from error
    values = array.astype("<f4", copy=False)
    predicted = values.argmax(axis=-1) if values.ndim == 2 else values.mean(axis=1).argmax(axis=-1)
    samples = []
    for row, name in enumerate(ids.tolist()):
        sample = {"video_id": name, "pred_score": values[row], "pred_label": predicted[row : row + 1]}
        if labels is not None:
            sample["gt_label"] = labels[row : row + 1]
        # Copies: a tensor that is a view of a larger one would be pickled with all of it.
        samples.append({key: torch.tensor(v) if isinstance(v, np.ndarray) else v for key, v in sample.items()})
    return samples
