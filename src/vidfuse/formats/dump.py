"""Read one file of predictions that another tool dumped, or one folder of the files that its processes wrote.

A file is read in two steps: its bytes become arrays and plain values (`containers`), and these become scores, ids and
labels (`layouts`; `tables` for text). What the numbers are is never guessed. A member may be several files: a
cross-validation's folds, shards, or several models' predictions of a test set (`join_dumps`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import check_ids, first_few, naming
from vidfuse._paths import IdRule, name_ids
from vidfuse.errors import AlignmentError, InputError, VidfuseWarning, option
from vidfuse.formats.containers import Parquet, Text, open_stored, read_content
from vidfuse.formats.layouts import SCORE_NAMES, Ask, read_layout
from vidfuse.formats.tables import is_rank_text, rank_files, read_csv, read_parquet_columns, read_ranks
from vidfuse.stack.classes import warn_of_unnamed
from vidfuse.stack.columns import NO_IDS, called
from vidfuse.stack.frames import Dump, read_frame, reordered
from vidfuse.stack.join import joined_ids

__all__ = ["cut_padding", "join_dumps", "read_dump"]


def read_dump(
    path: str | os.PathLike[str],
    *,
    head: str | None = None,
    classes: Sequence[str] | str | None = None,
    columns: Sequence[str] | str | None = None,
    id_column: str | None = None,
    ids: IdRule = "path",
    repeated: bool = False,
) -> Dump:
    """Read one file of predictions, whichever tool wrote it.

    Args:
        path: A pickle, .npy, .npz, .pt, .safetensors, .json, .csv, .tsv, .txt or .parquet file, also packed by gzip; or
            a folder of the files 0.txt, 1.txt … that the processes of a distributed test write.
        head: Which scores to take where there are several, by name; "verb" finds verb_output.
        classes: Class names in order, for files that use them; "sorted" sorts those of the file.
        columns: Which columns of a table are scores: their names, or a pattern such as ``"p*"``.
        id_column: The column or array of the ids, by name; "none" if there is none, whatever it looks like.
        ids: How names become ids: "path", "stem" or "exact"; see `vidfuse._paths.name_ids`.
        repeated: Whether an id may stand in several rows with other scores, as of views that are rows of their own.

    Raises:
        InputError: No such file, an unknown layout, a damaged file, or a pickle that needs more than arrays.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/swin.npz", scores=np.eye(2), ids=["a", "b"])
        ...     dump = read_dump(f"{folder}/swin.npz")
        >>> dump.scores.shape, dump.ids.tolist(), dump.labels
        ((2, 2), ['a', 'b'], None)
    """
    file = Path(path)

    def to_ids(names: Sequence[str]) -> list[str]:
        return name_ids(names, ids)

    try:
        with naming(file):
            if file.is_dir():
                dump = _read_folder(file)
            else:
                stored = open_stored(file)
                content = read_content(stored)
                if isinstance(content, Text) and is_rank_text(content.text):
                    dump = read_ranks([(file, content.text)])
                elif isinstance(content, Text):
                    dump = read_csv(content.text, classes=classes, columns=columns, id_column=id_column)
                else:
                    table = read_parquet_columns(content.stream) if isinstance(content, Parquet) else None
                    if table is None or (columns is None and _has_vectors(table)):
                        ask = Ask(stored.size, head, id_column, classes, columns)
                        dump = read_layout(content if table is None else table, ask)
                    else:
                        dump = read_frame(table, classes=classes, columns=columns, id=id_column)
            dump = _checked(dump, to_ids if id_column != NO_IDS else None, classes, repeated)
    except MemoryError as error:
        raise InputError(f"{file}: it asks for more memory than there is") from error
    for note in dump.notes:
        warnings.warn(f"{file}: {note}", VidfuseWarning, stacklevel=2)
    return dump


def _has_vectors(table: Mapping[str, NDArray[Any]]) -> bool:
    """Whether a table's column of scores has a list in each cell, as those of a data set by Hugging Face."""
    key = called(table, SCORE_NAMES)
    return key is not None and len(table[key]) > 0 and isinstance(table[key][0], np.ndarray)


def _read_folder(folder: Path) -> Dump:
    files = rank_files(folder)
    if not files:
        held = first_few(sorted(entry.name for entry in folder.iterdir()))
        raise InputError(
            f"{folder}: expected a file of predictions, a folder of logit caches, or one with the files 0.txt, 1.txt … "
            f"of a distributed test; got {f'a folder of {held}' if held else 'an empty folder'}"
        )
    if [int(file.stem) for file in files] != list(range(len(files))):
        missing = sorted(set(range(int(files[-1].stem))) - {int(file.stem) for file in files})
        raise InputError(f"{folder}: {files[-1].name} is there, but not {first_few([f'{n}.txt' for n in missing])}")
    texts = []
    for file in files:
        content = read_content(open_stored(file))
        texts.append((file, content.text if isinstance(content, Text) else ""))
    return read_ranks(texts)


def _checked(dump: Dump, to_ids: Any, classes: Sequence[str] | str | None, repeated: bool) -> Dump:
    """Bring ids, labels and classes of a dump into one form, and drop rows that are there twice."""
    n = len(dump.scores)
    if dump.ids is not None and to_ids is None:
        dump = replace(dump, ids=None)
    if dump.ids is not None:
        if len(dump.ids) != n:
            raise InputError(f"expected one id for each of {n} rows, got {len(dump.ids)}")
        dump = without_repeats(replace(dump, ids=np.array(to_ids(dump.ids.tolist()), dtype=np.str_)))
        _check_ids(np.asarray(dump.ids), repeated)
    if dump.labels is not None and len(dump.labels) != len(dump.scores):
        raise InputError(f"expected one label for each of {n} rows, got {len(dump.labels)}")
    if classes is not None and not isinstance(classes, str):
        dump = reordered(dump, classes)
    return dump


def _check_ids(ids: NDArray[np.str_], repeated: bool) -> None:
    """Check ids; where all are there equally often, the error says what makes their rows one prediction."""
    unique, counts = np.unique(ids, return_counts=True)
    try:
        check_ids(unique if repeated else ids)
    except InputError as error:
        if counts.max() == counts.min() > 1:
            raise InputError(
                f"each id stands in {counts[0]} rows with other scores: views of a video? "
                f"{option('repeats', 'mean-probability')} averages them"
            ) from error
        raise


def without_repeats(dump: Dump) -> Dump:
    """Leave out rows that repeat an earlier row's id and scores, as a sampler makes them that pads its last batch.

    Rows of one id with other scores stay, and are refused by whoever checks the ids.
    """
    if dump.ids is None:
        return dump
    _, first, inverse = np.unique(dump.ids, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(len(dump.ids)))
    same = [row for row in again.tolist() if _same_scores(dump, row, int(first[inverse[row]]))]
    if not same or len(same) < len(again):
        return dump
    note = (
        f"{len(same)} of {len(dump.ids)} rows repeat the id and the scores of another row, as a distributed sampler "
        f"makes them; left out: {first_few(dump.ids[same])}"
    )
    kept = np.ones(len(dump.ids), dtype=bool)
    kept[same] = False
    return replace(_rows(dump, np.flatnonzero(kept)), notes=(*dump.notes, note))


def cut_padding(dump: Dump, n: int) -> Dump:
    """Leave out the rows beyond N of a dump without ids if they repeat its first rows, as a sampler's padding does.

    Warns:
        VidfuseWarning: It had such rows.
    """
    extra = len(dump.scores) - n
    if not 0 < extra <= n or not all(_same_scores(dump, n + row, row) for row in range(extra)):
        return dump
    warnings.warn(
        f"the last {extra} of {len(dump.scores)} rows repeat the first ones, as a distributed sampler makes them; "
        "left out",
        VidfuseWarning,
        stacklevel=2,
    )
    return _rows(dump, np.arange(n))


def _same_scores(dump: Dump, row: int, other: int) -> bool:
    """Whether two rows have the same scores; a last digit may differ, as their batches did."""
    a, b = np.asarray(dump.scores[row]), np.asarray(dump.scores[other])
    largest = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
    if a.shape != b.shape or not np.allclose(a, b, rtol=1e-3, atol=1e-5 + 1e-3 * largest, equal_nan=True):
        return False
    return dump.labels is None or len(dump.labels) <= max(row, other) or dump.labels[row] == dump.labels[other]


def _rows(dump: Dump, rows: NDArray[np.int64]) -> Dump:
    scores: Any = dump.scores
    return replace(
        dump,
        scores=[scores[row] for row in rows] if isinstance(scores, list) else scores[rows],
        labels=None if dump.labels is None else dump.labels[rows],
        ids=None if dump.ids is None else dump.ids[rows],
    )


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
