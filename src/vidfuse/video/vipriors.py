"""The VIPriors Action Recognition Challenge: the layout of Kinetics400ViPriors, its annotations.

Facts from the challenge's published toolkit: videos lie at `{split}/{videoid}.mp4`; `annotations/` holds
`kinetics400ViPriors-train.csv` and `-val.csv` (label,videoid,split), `-test-public.csv` (videoid,split), `clsIdx.csv`
(label,idx with idx 1-based) and a list of corrupted videos of which the stems count. Submissions are in
`vidfuse.formats.submissions`. Needs the base install only.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vidfuse._checks import check_choice
from vidfuse._paths import VIDEO_SUFFIXES
from vidfuse.errors import InputError
from vidfuse.video.lists import VideoItem, VideoList

__all__ = ["read_annotations", "read_classes", "read_corrupted", "read_vipriors"]

_FILES = {
    "train": "kinetics400ViPriors-train.csv",
    "val": "kinetics400ViPriors-val.csv",
    "test": "kinetics400ViPriors-test-public.csv",
}
_CORRUPTED = "kinetics400ViPriors_corrupted_videos.txt"


def read_vipriors(root: str | Path, split: Literal["train", "val", "test"]) -> VideoList:
    """Read one split of Kinetics400ViPriors, or of a data set in the same layout.

    Args:
        root: the folder that holds `annotations`, `train`, `val` and `test`.
        split: which of them; the test split has no labels.

    Returns:
        The videos whose files exist and that are not on the list of corrupted ones; the others are in `skipped` and
        `unlisted`. Labels are 0-based (idx - 1), `classes` in the order of idx.

    Raises:
        InputError: a missing file or column, a class that is not in `clsIdx.csv`, or an empty split.

    Examples:
        >>> read_vipriors("missing", "val")
        Traceback (most recent call last):
        vidfuse.errors.InputError: expected the class list missing/annotations/clsIdx.csv, found no such file; ...
    """
    check_choice("split", split, _FILES)
    base = Path(root)
    annotations = base / "annotations"
    classes = read_classes(annotations / "clsIdx.csv")
    rows = read_annotations(annotations / _FILES[split], labelled=split != "test")
    corrupted = read_corrupted(annotations / _CORRUPTED)
    label_of = {name: label for label, name in enumerate(classes)}
    items, skipped = [], []
    for number, (videoid, name) in enumerate(rows, start=2):
        if name is not None and name not in label_of:
            raise InputError(
                f"expected classes of {annotations / 'clsIdx.csv'}, got {name!r} for video {videoid!r} "
                f"at {annotations / _FILES[split]}:{number}; add it to the class list or correct the row"
            )
        file = base / split / f"{videoid}.mp4"
        if videoid in corrupted:
            skipped.append((videoid, f"on the list of corrupted videos, {_CORRUPTED}"))
        elif not file.is_file():
            skipped.append((videoid, f"no file at {file}"))
        else:
            items.append(VideoItem(videoid, str(file), None if name is None else label_of[name]))
    named = {videoid for videoid, _ in rows} | corrupted
    folder = base / split
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    unlisted = tuple(str(f) for f in files if f.suffix.lower() in VIDEO_SUFFIXES and f.stem not in named)
    return VideoList(tuple(items), classes, tuple(skipped), unlisted)


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Read `clsIdx.csv`: class names in the order of their indices.

    Args:
        path: a csv file with columns label and idx, idx being 1 … K.

    Returns:
        K class names; the class of index i is at position i - 1.

    Raises:
        InputError: a missing file or column, or indices that are not 1 … K once each.
    """
    file = Path(path)
    rows = _read_csv(file, "class list", ("label", "idx"))
    names: dict[int, str] = {}
    for number, row in enumerate(rows, start=2):
        text = row["idx"].strip()
        if not (text.isascii() and text.isdigit()) or int(text) < 1 or int(text) in names:
            raise InputError(f"expected 1-based indices, each once, at {file}:{number}, got {row['idx']!r}")
        names[int(text)] = row["label"].strip()
    if sorted(names) != list(range(1, len(names) + 1)) or len(set(names.values())) != len(names):
        raise InputError(f"expected indices 1 … K and K different names in {file}, got {len(names)} rows")
    return tuple(names[i] for i in sorted(names))


def read_annotations(path: str | Path, *, labelled: bool = True) -> list[tuple[str, str | None]]:
    """Read a split's csv: its video ids and class names, in the file's order.

    Args:
        path: a csv file with columns videoid and, if labelled, label.
        labelled: whether the split has labels.

    Returns:
        (videoid, class name or None) of each row.

    Raises:
        InputError: a missing file or column, an id twice or one that is no file name, or no rows.
    """
    file = Path(path)
    rows = _read_csv(file, "annotations", ("label", "videoid") if labelled else ("videoid",))
    seen: dict[str, int] = {}
    read: list[tuple[str, str | None]] = []
    for number, row in enumerate(rows, start=2):
        videoid = row["videoid"].strip()
        if not videoid or videoid in (".", "..") or any(c in videoid for c in "/\\\0") or " " in videoid:
            raise InputError(f"expected a video id without spaces or slashes at {file}:{number}, got {videoid!r}")
        if videoid in seen:
            raise InputError(f"expected each video once in {file}, got {videoid!r} at lines {seen[videoid]}, {number}")
        seen[videoid] = number
        read.append((videoid, row["label"].strip() if labelled else None))
    if not read:
        raise InputError(f"expected at least one video in {file}, found none: the split is empty")
    return read


def read_corrupted(path: str | Path) -> frozenset[str]:
    """Read the list of corrupted videos: one path per line, of which only the stem counts.

    Args:
        path: the text file; if there is none, no video is corrupted.

    Returns:
        The videos' ids.
    """
    file = Path(path)
    if not file.is_file():
        return frozenset()
    return frozenset(
        Path(line.strip()).stem for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()
    )


def _read_csv(file: Path, what: str, columns: Sequence[str]) -> list[dict[str, str]]:
    if not file.is_file():
        raise InputError(f"expected the {what} {file}, found no such file; check the folder and its layout")
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        found = [name.strip() for name in reader.fieldnames or ()]
        lacking = [name for name in columns if name not in found]
        if lacking:
            raise InputError(f"expected columns {list(columns)} in {file}, found {found}: {lacking} missing")
        reader.fieldnames = found
        rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if any(row[name] is None for name in columns):
            raise InputError(f"expected {len(found)} fields at {file}:{number}, got fewer")
    return rows
