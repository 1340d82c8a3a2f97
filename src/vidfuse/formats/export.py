"""Write predictions for other tools: csv, npz, and MMAction2's pickled list, which needs no torch to be written."""

from __future__ import annotations

import csv
import io
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import as_float_array, check_classes, check_ids, check_labels, first_few
from vidfuse.errors import InputError
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
            ``classes``, ``kind``) or "mmaction2" (a pickled list of dicts with tensors, as ``--dump`` writes it).

    Returns:
        The path.

    Raises:
        InputError: An unknown format, several members and none chosen, or views where the format has no place for them.

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
        target.write_bytes(b"".join(_mmaction2(array, names, own_labels)))
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


def _mmaction2(array: NDArray[Any], ids: NDArray[np.str_], labels: NDArray[np.int64] | None) -> Iterator[bytes]:
    """The pickle, opcode by opcode: a list of dicts of tensors as torch itself pickles them."""
    values = array.astype("<f4", copy=False)
    predicted = values.argmax(axis=-1) if values.ndim == 2 else values.mean(axis=1).argmax(axis=-1)
    yield b"\x80\x02]("
    for row, name in enumerate(ids.tolist()):
        yield b"}(" + _text("video_id") + _text(name)
        yield _text("pred_score") + _tensor(values[row], "FloatStorage")
        yield _text("pred_label") + _tensor(predicted[row : row + 1].astype("<i8"), "LongStorage")
        if labels is not None:
            yield _text("gt_label") + _tensor(labels[row : row + 1].astype("<i8"), "LongStorage")
        yield b"u"
    yield b"e."


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def _tensor(values: NDArray[Any], storage: str) -> bytes:
    """`torch._utils._rebuild_tensor_v2` of a storage in torch's legacy stream."""
    stream = b"".join(
        [
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",  # magic number, protocol 1001
            b"\x80\x02}(" + _text("protocol_version") + b"M\xe9\x03" + _text("little_endian") + b"\x88",
            _text("type_sizes")
            + b"}("
            + _text("short")
            + b"K\x02"
            + _text("int")
            + b"K\x04"
            + _text("long")
            + b"K\x04uu.",
            b"\x80\x02(" + _text("storage") + b"ctorch\n" + storage.encode() + b"\n" + _text("0") + _text("cpu"),
            b"J" + struct.pack("<i", values.size) + b"NtQ.",
            b"\x80\x02](" + _text("0") + b"e.",
            struct.pack("<q", values.size) + values.tobytes(),
        ]
    )
    strides = [stride // values.itemsize for stride in np.ascontiguousarray(values).strides]
    head = b"ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\n"
    blob = b"B" + struct.pack("<I", len(stream)) + stream
    tail = _integers(values.shape) + _integers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    return head + blob + b"\x85R" + b"K\x00" + tail
