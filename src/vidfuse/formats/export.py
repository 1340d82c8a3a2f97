"""Write predictions for other tools: csv, parquet, NumPy's arrays, a cache, and MMAction2's list, which needs torch."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vidfuse import __version__
from vidfuse._checks import (
    as_dtype,
    as_float_array,
    check_choice,
    check_classes,
    check_ids,
    check_kind,
    check_labels,
    first_few,
)
from vidfuse._files import replace
from vidfuse.errors import InputError, MissingExtraError, option
from vidfuse.formats.streams import (
    Rows,
    read_by_rows,
    threads_for,
    write_arrays,
    write_cache,
    write_parquet,
    write_text,
)
from vidfuse.likelihood import block_rows
from vidfuse.stack.columns import in_numbered_order, is_numbered
from vidfuse.stack.stack import LogitStack

__all__ = ["csv_cells", "csv_texts", "job_of", "write_predictions"]

Format = Literal["csv", "csv-long", "npz", "npy", "parquet", "cache", "mmaction2"]
_FORMATS: Final[dict[str, Format]] = {
    ".csv": "csv",
    ".npz": "npz",
    ".npy": "npy",
    ".parquet": "parquet",
    "": "cache",
    ".pkl": "mmaction2",
    ".pickle": "mmaction2",
}
_NAMES: Final = ("csv", "csv-long", "npz", "npy", "parquet", "cache", "mmaction2")
_BLOCK: Final = 1 << 20  # numbers of an array that are written at once
_DIGITS: Final = {"float16": "%.5g", "float32": "%.9g"}  # what is read back as the same number of this dtype


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
    dtype: str | None = None,
    top_k: int | None = None,
    resume: str | None = None,
) -> Path:
    """Write one member's scores, or what a rule predicts, in a form that other tools read.

    What is written gets its name when all of it is there. But for "mmaction2", memory holds a block of it: blocks of
    `Recipe.predict_blocks` are computed while they are written.

    ==========  ==========  ==========================================================================================
    format      suffix      content
    ==========  ==========  ==========================================================================================
    csv         .csv        ``id,[label,]p0,…``, columns called as the classes where these have names
    csv-long                ``id,class,score``
    npz         .npz        ``scores``, ``ids``, ``labels``, ``classes``, ``kind``
    npy         .npy        the scores alone
    parquet     .parquet    the columns of the csv; needs pyarrow
    cache       none        a folder: one member's cache, which `vidfuse.load_stack` reads; float32 or float16
    mmaction2   .pkl        a pickled list of dicts with tensors, as ``--dump`` writes it and ``report_accuracy.py``
                            reads it; needs torch, and memory for all of it
    ==========  ==========  ==========================================================================================

    With `top_k`, csv and parquet have ``id,[label,]class1,p1,class2,p2,…``, the best class first, and npz has ``top``,
    the classes' indices (N, k), beside the ``scores`` of these.

    Args:
        scores: A stack (with `member`, if it has several), an array (N, K) or (N, V, K), or anything that has such a
            `shape` and gives an array for a slice of rows, such as `Recipe.predict_blocks`.
        path: The file; its suffix chooses the format unless `format` does.
        ids: The videos' ids; a stack brings its own, and without any rows are called 0, 1, …
        labels: True classes (N,), or None.
        classes: The classes' names.
        member: Which member of a stack.
        kind: What an array's numbers are, a note in an .npz file and needed by a cache; a stack brings its own.
        format: One of those above.
        dtype: "float16", "float32" or "float64"; by default that of the scores, in a cache at most float32.
        top_k: Write the scores of the k highest classes of each video alone; of equal ones the lowest is first.
        resume: What the scores were computed from, such as `vidfuse.stack.identity.stack_digest`. A call that is
            killed, or finds no space on the disk, leaves what it wrote in the folder ``<path>.partial``; a call with
            the same `resume` and the same options goes on from there, to the same bytes. By default nothing is left.

    Returns:
        The path.

    Raises:
        InputError: An unknown format, several members and none chosen, or views, a dtype or `top_k` where the format
            has no place for them.
        MissingExtraError: "mmaction2" without torch, "parquet" without pyarrow.

    Example:
        >>> import tempfile, pathlib
        >>> file = write_predictions(np.eye(2), pathlib.Path(tempfile.mkdtemp(), "p.csv"), ids=["a", "b"])
        >>> file.read_text().split()
        ['id,p0,p1', 'a,1.0,0.0', 'b,0.0,1.0']
    """
    # First the format, then one member of a stack or an array, checked in the same way, then the file by format.
    target = Path(path)
    chosen = format or _FORMATS.get(target.suffix.lower())
    if chosen not in _NAMES:
        raise InputError(
            f"{target}: expected a format or a suffix {first_few(_FORMATS, 9)}, got {format or target.suffix!r}"
        )
    if isinstance(scores, LogitStack):
        stack = scores
        if member is None and len(stack.members) > 1:
            raise InputError(f"member: expected one of {first_few(stack.members, 20)}, as a file holds one member")
        name = stack.members[0] if member is None else member
        ids, labels, classes = stack.ids, stack.labels, stack.classes
        kind = stack.select([name]).kinds[0]
        scores = _Scores(stack.select([name]))
    given = _Predictions.of(scores, ids, labels, classes, kind, dtype, top_k, chosen)
    job = None if resume is None else job_of(resume, chosen, *given.identity())
    if chosen == "npz":
        write_arrays(target, given.rows, given.others(), job)
    elif chosen == "npy":
        write_arrays(target, given.rows, None, job)
    elif chosen == "parquet":
        write_parquet(target, given.rows, given.columns, job)
    elif chosen == "cache":
        own = check_kind(kind)
        write_cache(target, given.rows, ids=given.ids, labels=given.labels, classes=given.classes, kind=own, job=job)
    elif chosen == "mmaction2":
        replace(
            target, pickle.dumps(_mmaction2(given.rows.read(slice(0, len(given.rows)))[0], given.ids, given.labels))
        )
    else:
        lines = given.long_lines if chosen == "csv-long" else given.lines
        head = "id,class,score\n" if chosen == "csv-long" else f"{csv_cells(given.header())}\n"
        write_text(target, head, given.rows, lines, job)
    return target


@dataclass(frozen=True)
class _Scores:
    """One member's scores of a stack as they are stored, which are read by a slice of rows."""

    stack: LogitStack

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.stack), *self.stack.shape[2:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.stack.sources()[0].source.dtype

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return self.stack.scores(self.stack.members[0], rows)


@dataclass(frozen=True)
class _Predictions:
    """What is written, checked: the scores by rows, and what is known of each video."""

    rows: Rows
    ids: NDArray[np.str_]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None
    kind: str | None
    top_k: int | None
    digits: str | None  # of a number in a csv; by default those that make up its 64 bits

    @classmethod
    def of(
        cls,
        scores: Any,
        ids: Any,
        labels: Any,
        classes: Sequence[str] | None,
        kind: str | None,
        dtype: str | None,
        top_k: int | None,
        format: str,
    ) -> _Predictions:
        array: Any = scores if read_by_rows(scores) else as_float_array(scores, "scores")
        shape = tuple(array.shape)
        if len(shape) not in (2, 3) or 0 in shape:
            raise InputError(f"scores: expected (N, K) or (N, V, K), got shape {shape}")
        if len(shape) == 3 and (format in ("csv", "csv-long", "parquet") or top_k is not None):
            what = "the highest classes are those of (N, K)" if top_k is not None else f"a {format} file holds (N, K)"
            raise InputError(f"scores: {what}, got views: shape {shape}; reduce them, or write all of an .npz")
        stored = _stored_dtype(dtype, array.dtype, format)
        if top_k is not None:
            _check_top_k(top_k, shape[-1], format)
        step = getattr(scores, "rows_per_block", None) or block_rows(int(np.prod(shape[1:])), _BLOCK)
        names = check_ids([str(row) for row in range(shape[0])] if ids is None else ids, shape[0])

        def read(rows: slice) -> tuple[NDArray[Any], ...]:
            block, expected = as_float_array(array[rows], "scores"), (rows.stop - rows.start, *shape[1:])
            if block.shape != expected:
                raise InputError(f"scores: expected {expected} for {rows}, got {block.shape}")
            if top_k is None:
                return (as_dtype(block, stored, names[rows]),)
            best = np.argsort(-block, axis=1, kind="stable")[:, :top_k]
            return as_dtype(np.take_along_axis(block, best, axis=1), stored, names[rows]), best

        named = check_classes(classes, shape[-1])
        known = None if labels is None else check_labels(labels, shape[0], shape[-1], names)
        if format in ("csv", "parquet") and top_k is None and named is not None:
            _check_columns(named, labelled=labels is not None)
            # Columns that are called by numbers are read in the order of these: they are written so, and labels, too.
            order = np.array([named.index(name) for name in in_numbered_order(named)])
            read, named = _columns_of(read, order), tuple(named[k] for k in order)
            known = None if known is None else np.argsort(order)[known]
        kept = shape if top_k is None else (shape[0], top_k)
        arrays = {"scores": (stored, kept), **({} if top_k is None else {"top": (np.dtype(np.int64), kept)})}
        return cls(
            rows=Rows(read, arrays, step, threads_for(scores)),
            ids=names,
            labels=known,
            classes=named,
            kind=kind,
            top_k=top_k,
            digits=None if dtype is None else _DIGITS.get(dtype),
        )

    def identity(self) -> list[Any]:
        """Return what makes two outputs of the same scores differ."""
        return [dict(self.rows.arrays), self.ids, self.labels, self.classes, self.kind, self.digits]

    def others(self) -> dict[str, NDArray[Any]]:
        """Return what an .npz file holds beside the arrays that are read by rows."""
        classes = None if self.classes is None else np.array(self.classes)
        content = {"ids": self.ids, "labels": self.labels, "kind": self.kind, "classes": classes}
        return {key: np.asarray(value) for key, value in content.items() if value is not None}

    def header(self) -> list[str]:
        """Return the columns of a table."""
        k = self.rows.arrays["scores"][1][1]
        known = ["id", *([] if self.labels is None else ["label"])]
        if self.top_k is not None:
            return [*known, *(name for rank in range(1, k + 1) for name in (f"class{rank}", f"p{rank}"))]
        return [*known, *(self.classes or [f"p{column}" for column in range(k)])]

    def _label_cells(self, rows: slice) -> list[Any]:
        """Return the labels of a table: indices, or names where numbers could be both.

        Of classes called 30, 7, 1 the label 1 is the last by its name, and the second as an index.
        """
        labels = [] if self.labels is None else self.labels[rows].tolist()
        names = self.classes or ()
        if is_numbered(names) or {str(k) for k in range(len(names))}.isdisjoint(names):
            return labels
        return [names[label] for label in labels]

    def lines(self, rows: slice, arrays: tuple[NDArray[Any], ...]) -> str:
        """Return rows of a csv."""
        firsts = csv_texts(self.ids[rows].tolist())
        if self.labels is not None:
            firsts = [f"{name},{label}" for name, label in zip(firsts, self._label_cells(rows), strict=True)]
        if self.top_k is None:
            numbers = _number_lines(arrays[0], self.digits)
            return "".join([f"{first},{line}\n" for first, line in zip(firsts, numbers, strict=True)])
        named = csv_texts(list(self.classes)) if self.classes else list(map(str, range(int(arrays[1].max()) + 1)))
        return "".join(
            [
                f"{first},{','.join([f'{named[k]},{p}' for k, p in zip(best, cells, strict=True)])}\n"
                for first, best, cells in zip(
                    firsts, arrays[1].tolist(), _number_rows(arrays[0], self.digits), strict=True
                )
            ]
        )

    def long_lines(self, rows: slice, arrays: tuple[NDArray[Any], ...]) -> str:
        """Return rows of a csv with a line for each class."""
        k = arrays[0].shape[1]
        named = csv_texts(list(self.classes) if self.classes else list(map(str, range(k))))
        best = np.broadcast_to(np.arange(k), arrays[0].shape) if self.top_k is None else arrays[1]
        firsts = csv_texts(self.ids[rows].tolist())
        return "".join(
            [
                f"{first},{named[column]},{cell}\n"
                for first, columns, cells in zip(
                    firsts, best.tolist(), _number_rows(arrays[0], self.digits), strict=True
                )
                for column, cell in zip(columns, cells, strict=True)
            ]
        )

    def columns(self, rows: slice, arrays: tuple[NDArray[Any], ...]) -> dict[str, Any]:
        """Return the columns of a table, by name."""
        found: list[Any] = [self.ids[rows].tolist(), *([] if self.labels is None else [self._label_cells(rows)])]
        if self.top_k is None:
            found += list(arrays[0].T)
        else:
            names = None if self.classes is None else np.array(self.classes, dtype=object)
            for best, numbers in zip(arrays[1].T, arrays[0].T, strict=True):
                found += [best if names is None else names[best], numbers]
        return dict(zip(self.header(), found, strict=True))


def _columns_of(read: Any, order: NDArray[np.int64]) -> Any:
    """Return a reader of the same rows with their columns in another order, or the reader itself where it is this."""
    if np.array_equal(order, np.arange(len(order))):
        return read
    return lambda rows: tuple(block[:, order] for block in read(rows))


def csv_cells(cells: Sequence[Any]) -> str:
    """Return cells of a csv with commas between, quoted where they must be.

    Example:
        >>> csv_cells(["a", "b,c", 1])
        'a,"b,c",1'
    """
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow(cells)
    return stream.getvalue()


def csv_texts(texts: list[str]) -> list[str]:
    """Return each text as a cell of a csv."""
    joined = "".join(texts)
    if not any(mark in joined for mark in ',"\r\n') and all(texts):
        return texts
    return [csv_cells([text]) for text in texts]


def job_of(*parts: Any) -> str:
    """Return a digest of what an output is made of, of the release and of NumPy: with others, bits may differ.

    Example:
        >>> job_of("a", np.zeros(2)) == job_of("a", np.zeros(2)), job_of("a") == job_of("b")
        (True, False)
    """
    digest = hashlib.sha256(repr((__version__, np.__version__)).encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(repr((part.dtype.str, part.shape)).encode())
            digest.update(np.ascontiguousarray(part).view(np.uint8).data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def _number_lines(array: NDArray[Any], digits: str | None) -> list[str]:
    """Return rows of numbers with commas between."""
    if digits is None:
        return [",".join(map(repr, row)) for row in array.tolist()]
    template = "\n".join([",".join([digits] * array.shape[1])] * len(array))  # one call: a third less than one a row
    return (template % tuple(array.ravel().tolist())).split("\n")


def _number_rows(array: NDArray[Any], digits: str | None) -> list[list[str]]:
    """Return the cells of rows of numbers."""
    return [line.split(",") for line in _number_lines(array, digits)]


def _stored_dtype(dtype: str | None, given: Any, format: str) -> np.dtype[Any]:
    check_choice("dtype", dtype, (None, "float16", "float32", "float64"))
    if format == "cache" and dtype == "float64":
        raise InputError(f'dtype: a cache holds float32 or float16, got "float64"; say {option("dtype", "float32")}')
    if dtype is not None:
        return np.dtype(dtype)
    own = np.dtype(given)
    return np.dtype(np.float32) if format == "cache" and own == np.float64 else own


def _check_columns(classes: Sequence[str], *, labelled: bool) -> None:
    """Refuse classes that are called as the other columns of a table are."""
    taken = [name for name in ("id", "label")[: 1 + labelled] if name in classes]
    if taken:
        raise InputError(
            f"classes: {first_few(taken)} would be called as the column of the {taken[0]}s is; rename that class, or "
            "write .npz, which keeps them apart"
        )


def _check_top_k(top_k: Any, n_classes: int, format: str) -> None:
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or not 1 <= top_k <= n_classes:
        raise InputError(f"top_k: expected a number of classes from 1 to {n_classes}, got {top_k!r}")
    if format in ("npy", "cache", "mmaction2"):
        raise InputError(
            f"top_k: a file of the format {format} holds every class; write .csv, .parquet or .npz, or leave "
            f"{option('top_k')} out"
        )


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
