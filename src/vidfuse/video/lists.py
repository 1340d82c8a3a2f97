"""Lists of videos that people already have: MMAction2 lists, csv files, class folders, folders without labels.

Every reader gives a `VideoList`: the videos whose files exist, and beside them, counted and named, the rows
without a file and the videos in the same folders that are not in the list.
"""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple, overload

from vidfuse._checks import naming
from vidfuse._paths import VIDEO_SUFFIXES, is_comment, path_ids
from vidfuse.errors import InputError, VidfuseWarning

__all__ = [
    "VideoItem",
    "VideoList",
    "files_below",
    "is_video",
    "read_class_folders",
    "read_csv_list",
    "read_folder",
    "read_mmaction2",
]

_NO_TEXT: Final = "its name is not one line of text in UTF-8: rename it"
_PATHS: Final = ("path", "file", "filename", "file_name", "filepath", "file_path", "video_path", "video", "clip")
_LABELS: Final = ("label", "class", "action", "label_id", "class_id", "target", "category", "class_name", "label_name")
_IDS: Final = ("id", "videoid", "video_id")
# Columns that say nothing of which rows and what of them are meant; `vidfuse split` writes "group".
_NOTES: Final = (
    *("", "group", "index", "unnamed: 0", "n_frames", "num_frames", "nframes", "frames", "total_frames", "fps"),
    *("duration", "width", "height", "size", *_PATHS, *_LABELS, *_IDS),
)
_SUFFIXES: Final = "|".join(sorted(re.escape(suffix) for suffix in VIDEO_SUFFIXES))
# A path up to the last suffix of a video, what parts it from its label, and the label.
_PARTS: Final = re.compile(rf"^(?P<path>.+(?:{_SUFFIXES}))(?:\s*[,;\t]\s*| +)(?P<label>\S.*)$", re.IGNORECASE)
_NUMBER: Final = re.compile(r"[+-]?\d+(\.\d*)?")


class _Row(NamedTuple):
    """One video of a list, as it is written there."""

    path: str
    label: str | None = None
    id: str | None = None
    group: str | None = None


def _read_rows(file: Path, group: str | None = None) -> list[_Row]:
    """Read the rows of a list of videos.

    Args:
        file: A text file. With a header, its columns are found by their names (path and label, perhaps id). Without
            one, a row is a path alone, or a path and a label, parted by a comma, a tab or spaces.
        group: The column, of a file with a header, that says what each video comes from.

    Returns:
        The rows in order; either all of them have a label or none has.

    Raises:
        InputError: There is no such file, no row, or a row of another form; the message names its line.
    """
    if not file.is_file():
        raise InputError(f"expected a list of videos, found no file at {file}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"expected a list of videos as text in UTF-8, got other bytes in {file}: {error}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line and not is_comment(line)]
    if not lines:
        raise InputError(f"expected at least one video in {file}, found none")
    delimiter = next((mark for mark in ",;\t" if mark in lines[0][1]), " ")
    header = [cell.strip().lower() for cell in _cells(lines[0][1], delimiter)]
    if _is_header(header):
        return _with_header(file, header, lines, delimiter, group)
    if group is not None:
        raise InputError(f"expected a header with a column {group!r} at {file}:{lines[0][0]}, got {lines[0][1]!r}")
    return _without_header(file, lines)


def _is_header(cells: Sequence[str]) -> bool:
    named = any(cell in (*_PATHS, *_IDS) for cell in cells)
    return named and not any(cell.endswith(tuple(VIDEO_SUFFIXES)) for cell in cells)


def _with_header(
    file: Path, header: list[str], lines: list[tuple[int, str]], delimiter: str, group: str | None
) -> list[_Row]:
    columns = {
        what: next((header.index(name) for name in names if name in header), None)
        for what, names in (("path", _PATHS), ("label", _LABELS), ("id", _IDS), ("group", (str(group).lower(),)))
    }
    if columns["path"] is None:
        raise InputError(f"expected a column {' or '.join(_PATHS[:3])} in the header of {file}, got {header}")
    if group is not None and columns["group"] is None:
        raise InputError(f"expected a column {group!r} in {file}, got {', '.join(header)}")
    used = set(columns.values())
    if unused := [name for at, name in enumerate(header) if at not in used and name not in _NOTES]:
        warnings.warn(
            f"{file}: columns {', '.join(unused)} are not used: all rows are taken, and whole videos",
            VidfuseWarning,
            stacklevel=4,
        )
    rows = []
    for number, line in lines[1:]:
        cells = [cell.strip() for cell in _cells(line, delimiter)]
        if len(cells) != len(header):
            raise InputError(
                f"expected {len(header)} fields at {file}:{number}, as the header has, got {len(cells)}: {line!r}; "
                "put a path or a name that holds the separator into quotes"
            )
        found = {what: None if at is None else cells[at] for what, at in columns.items()}
        if lacking := [what for what, value in found.items() if value == ""]:
            raise InputError(f"expected a {lacking[0]} at {file}:{number}, got an empty field")
        rows.append(_Row(str(found["path"]), found["label"], found["id"], found["group"] if group else None))
    if not rows:
        raise InputError(f"expected at least one video in {file}, found none below the header")
    _check_labels(file, lines[1:], rows)
    return rows


def _without_header(file: Path, lines: list[tuple[int, str]]) -> list[_Row]:
    # Three forms, tried in this order on all lines: paths alone; paths and numbers, split from the right, whatever the
    # path looks like; paths that end like a video's, and names.
    alone = [_unquoted(line) for _, line in lines]
    if all(path.lower().endswith(tuple(VIDEO_SUFFIXES)) for path in alone):
        return [_Row(path) for path in alone]
    rows = []
    for number, line in lines:
        cut = max(line.rfind(separator) for separator in ", \t;")
        name, label = _unquoted(line[:cut].rstrip(", \t;")), line[cut + 1 :].strip('"')
        if cut < 1 or not name or not _NUMBER.fullmatch(label):
            quoted = _cells(line, ",") if '"' in line else []
            parts = _PARTS.match(line)
            if len(quoted) == 2:
                name, label = (cell.strip() for cell in quoted)
            elif parts is not None:
                name, label = parts["path"], parts["label"]
            else:
                raise InputError(
                    f"expected `path label` or `path,label` at {file}:{number}, got {line!r}; a label is a number from "
                    "0 on or a name, and all rows have one or none has"
                )
        rows.append(_Row(name, label))
    _check_labels(file, lines, rows)
    return rows


def _check_labels(file: Path, lines: list[tuple[int, str]], rows: list[_Row]) -> None:
    """Check that labels are all numbers from 0 on, or all names."""
    first = rows[0].label
    for (number, line), row in zip(lines, rows, strict=True):
        if row.label is None or first is None:
            continue
        is_number = _NUMBER.fullmatch(row.label) is not None
        if is_number and not row.label.isdecimal():
            raise InputError(f"expected a 0-based integer label at {file}:{number}, got {line!r}")
        if is_number != (_NUMBER.fullmatch(first) is not None):
            raise InputError(
                f"expected labels that are all numbers or all names, got {first!r} at {file}:{lines[0][0]} and "
                f"{row.label!r} at {file}:{number}"
            )


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


@dataclass(frozen=True)
class VideoItem:
    """One video.

    Attributes:
        id: its id, unique in its list.
        path: its file.
        label: the 0-based class, or None.
        group: what it comes from (a performer, a longer video), or None; see `vidfuse.video.splits`.

    Example:
        >>> VideoItem("run/g01_c1", "videos/run/g01_c1.mp4", label=0, group="g01").group
        'g01'
    """

    id: str
    path: str
    label: int | None = None
    group: str | None = None


@dataclass(frozen=True)
class VideoList(Sequence[VideoItem]):
    """Videos in order, with what was left out and why.

    Attributes:
        items: the videos.
        classes: class names in the order of the labels, where they are known.
        skipped: (id or path, reason) of every video that was listed and cannot be used.
        unlisted: videos in the same folders that no row names, such as those of another list.
    """

    items: tuple[VideoItem, ...]
    classes: tuple[str, ...] | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    unlisted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: dict[str, int] = {}
        twice: list[tuple[int, int]] = []
        for position, item in enumerate(self.items):
            if (first := seen.setdefault(item.id, position)) != position:
                twice.append((first, position))
            if self.classes is not None and item.label is not None and not 0 <= item.label < len(self.classes):
                raise InputError(
                    f"expected labels in [0, {len(self.classes)}), got {item.label} for video {item.id!r}; "
                    "are the labels 1-based?"
                )
        if twice:
            one, other = (self.items[row] for row in twice[0])
            more = f", and {len(twice) - 1} more like them" if len(twice) > 1 else ""
            labels = "" if one.label == other.label else f", labelled {one.label} and {other.label}"
            advice = "files that differ in the suffix alone have one id: rename one of the two, or leave it out"
            if one.path == other.path:
                advice = "a video is listed once: leave one of the rows out"
            raise InputError(
                f"expected unique ids, got {one.id!r} at rows {twice[0][0]} and {twice[0][1]}: {one.path} and "
                f"{other.path}{labels}{more}; {advice}"
            )

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> VideoItem: ...

    @overload
    def __getitem__(self, index: slice) -> VideoList: ...

    def __getitem__(self, index: int | slice) -> VideoItem | VideoList:
        if isinstance(index, slice):
            return replace(self, items=self.items[index], skipped=(), unlisted=())
        return self.items[index]

    def __iter__(self) -> Iterator[VideoItem]:
        return iter(self.items)

    @property
    def ids(self) -> tuple[str, ...]:
        """The videos' ids, in order."""
        return tuple(item.id for item in self.items)

    @property
    def labels(self) -> tuple[int, ...] | None:
        """The videos' labels, in order; None if any video has none."""
        labels = tuple(item.label for item in self.items if item.label is not None)
        return labels if len(labels) == len(self.items) else None

    def relabelled(self, classes: Sequence[str]) -> VideoList:
        """Give the labels that the classes have in another list: those of the training videos, say.

        Args:
            classes: class names in the order of the labels wanted; this list may lack some of them.

        Returns:
            The same videos with these classes, matched by name; by number if this list has no names.

        Raises:
            InputError: a class of this list is not among them, a number too large for them, or a name twice.

        Examples:
            >>> videos = VideoList((VideoItem("a", "a.mp4", 0), VideoItem("b", "b.mp4", 1)), ("run", "swim"))
            >>> videos.relabelled(["jump", "run", "swim"]).labels
            (1, 2)
        """
        if self.classes is None or self.classes == tuple(classes):
            return replace(self, classes=tuple(classes))
        numbers = {name: number for number, name in enumerate(classes)}
        if len(numbers) < len(classes):
            twice = next(name for name in classes if list(classes).count(name) > 1)
            raise InputError(f"expected each class name once, to match classes by name, got {twice!r} twice")
        if unknown := [name for name in self.classes if name not in numbers]:
            raise InputError(
                f"expected classes among the {len(classes)} known ones ({', '.join(list(classes)[:5])}"
                f"{', …' if len(classes) > 5 else ''}), got "
                f"{', '.join(unknown[:5])}; are these the videos of another data set?"
            )
        items = tuple(
            item if item.label is None else replace(item, label=numbers[self.classes[item.label]])
            for item in self.items
        )
        return replace(self, items=items, classes=tuple(classes))

    def check_labels(self, n_classes: int) -> None:
        """Check that every label is that of one of so many classes.

        Raises:
            InputError: one is not; the message names the first such video.
        """
        wrong = [i for i in self.items if i.label is not None and not 0 <= i.label < n_classes]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise InputError(
                f"expected labels in [0, {n_classes}), got {wrong[0].label} for video {wrong[0].id!r}{more}; "
                "are the labels 1-based, or is the number of classes wrong?"
            )

    def without(self, broken: Iterable[tuple[str, str]]) -> VideoList:
        """Leave out the videos with the given ids, and list them with their reasons.

        Args:
            broken: (id, reason) pairs.

        Returns:
            The shorter list.

        Examples:
            >>> videos = VideoList((VideoItem("a", "a.mp4"), VideoItem("b", "b.mp4")))
            >>> videos.without([("b", "truncated")]).ids
            ('a',)
        """
        reasons = dict(broken)
        kept = tuple(item for item in self.items if item.id not in reasons)
        return replace(self, items=kept, skipped=self.skipped + tuple(reasons.items()))

    def summary(self) -> str:
        """Say in one line how many videos there are, how many are left out, and how many lie beside them unlisted.

        Examples:
            >>> VideoList((VideoItem("a", "a.mp4"),), skipped=(("b", "no file"),)).summary()
            '1 video, 1 skipped (b: no file)'
            >>> VideoList((VideoItem("a", "a.mp4"),), unlisted=("c.mp4", "d.mp4")).summary()
            '1 video, 0 skipped; 2 more in the same folders are not in the list'
        """
        text = f"{len(self)} video{'' if len(self) == 1 else 's'}, {len(self.skipped)} skipped"
        if self.skipped:
            shown = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:3])
            text += f" ({shown}{'; …' if len(self.skipped) > 3 else ''})"
        if self.unlisted:  # often meant: another list's videos
            are = "is" if len(self.unlisted) == 1 else "are"
            text += f"; {len(self.unlisted)} more in the same folders {are} not in the list"
        return text

    def __repr__(self) -> str:
        classes = "" if self.classes is None else f"{len(self.classes)} classes, "
        return f"VideoList({classes}{self.summary()})"


def read_mmaction2(path: str | Path, root: str | Path | None = None, classes: Sequence[str] | None = None) -> VideoList:
    r"""Read an MMAction2 list: lines `relative/path.mp4 label`, labels 0-based.

    Args:
        path: the list file.
        root: the folder that paths are relative to; None: the list's own folder.
        classes: class names, if they are known.

    Returns:
        The videos; ids are the paths from `root` on, without a video's suffix.

    Raises:
        InputError: no such file, no rows, or a row that is not a path and a label.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "run.mp4").touch()
        >>> _ = (folder / "val.txt").write_text("run.mp4 0\n")
        >>> [(video.id, video.label) for video in read_mmaction2(folder / "val.txt")]
        [('run', 0)]
    """
    return read_csv_list(path, root, classes)


def read_csv_list(
    path: str | Path,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    *,
    group: str | None = None,
) -> VideoList:
    r"""Read a csv or a list of PyTorchVideo's, PySlowFast's or MMAction2's kind.

    Without a header, rows are `path label` or `path,label`, split from the right, or paths alone, without labels. With
    a header, the columns are found by their names: path (or file, filename, video …), label (class, action …), id.
    Labels are 0-based numbers, or names: then the classes are these names in sorted order, or in that of `classes`.

    Args:
        path: the file.
        root: the folder that relative paths start from; None: the file's own folder. A video that lies there under its
            id with the suffix .mp4, as `vidfuse shrink` leaves it, is taken where its path leads elsewhere or nowhere.
        classes: class names, if they are known.
        group: the column that says what each video comes from.

    Returns:
        The videos. An id is the column id, or the path from `root` on without a video's suffix; paths outside of `root`
        count from their common folder on.

    Raises:
        InputError: no such file, no rows, a row of another form, or a name that is none of the classes.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "run.mp4").touch()
        >>> _ = (folder / "val.csv").write_text("run.mp4,0\n")
        >>> [(video.id, video.label) for video in read_csv_list(folder / "val.csv")]
        [('run', 0)]
    """
    file = Path(path)
    rows = _read_rows(file, group)
    base = file.parent if root is None else Path(root)
    ids = [row.id or given for row, given in zip(rows, path_ids([row.path for row in rows], base), strict=True)]
    files = [str(base / row.path) for row in rows]
    if root is not None:
        files = _under(base, files, ids)
    names, labels = _labels(file, rows, classes)
    items, skipped = [], []
    for row, name, identifier, label in zip(rows, files, ids, labels, strict=True):
        if os.path.isfile(name):
            items.append(VideoItem(identifier, name, label, row.group))
        else:
            skipped.append((identifier, f"no file at {name}"))
    return VideoList(tuple(items), names, tuple(skipped), _unlisted(files))


def read_folder(root: str | Path) -> VideoList:
    """Read all videos of a folder and of the folders in it, without labels; hidden files and folders are left out.

    Args:
        root: the folder.

    Returns:
        The videos in sorted order; ids are their paths from the folder on, without a video's suffix.

    Raises:
        InputError: no such folder, or no video in it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "run").mkdir()
        >>> _ = (folder / "run" / "a.mp4").write_bytes(b"")
        >>> read_folder(folder).ids
        ('run/a',)
    """
    base = Path(root)
    if not base.is_dir():
        raise InputError(f"expected a folder of videos, found none at {base}")
    files = sorted(files_below(base))
    skipped = {file: why for file in files if (why := _unusable(file))}
    items = tuple(
        VideoItem(path_ids([file.relative_to(base).as_posix()])[0], str(file)) for file in files if file not in skipped
    )
    if not items:
        raise InputError(f"expected videos in {base}, found none among {_counted(files)}")
    return VideoList(items, skipped=tuple((_shown(file), why) for file, why in skipped.items()))


def read_class_folders(root: str | Path, classes: Sequence[str] | None = None) -> VideoList:
    """Read folders `root/class/*.mp4`: one folder per class, classes in sorted order; hidden folders are left out.

    Args:
        root: the folder of folders.
        classes: class names in the order of the labels wanted, those of the training videos, say; folders are matched
            with them by name, and may lack some.

    Returns:
        The videos in sorted order; ids are `class/name`. What else lies there (videos beside the class folders, folders
        inside of them, other files) is in `skipped`.

    Raises:
        InputError: no such folder, no video in it, or a folder that is none of the classes.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("run", "walk"):
        ...     (root / name).mkdir()
        ...     (root / name / "1.mp4").touch()
        >>> videos = read_class_folders(root)
        >>> [(video.id, video.label) for video in videos], videos.classes
        ([('run/1', 0), ('walk/1', 1)], ('run', 'walk'))
    """
    base = Path(root)
    if not base.is_dir():
        raise InputError(f"expected a folder of class folders, found none at {base}")
    folders = sorted(p for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = tuple(folder.name for folder in folders if _is_text(folder))
    items, skipped = [], [(_shown(folder), _NO_TEXT) for folder in folders if not _is_text(folder)]
    for file in sorted(base.iterdir()):
        if not file.is_dir() and is_video(file):
            skipped.append((_shown(file), "a video in no class folder"))
    for label, name in enumerate(found):
        for file in sorted(f for f in (base / name).iterdir() if not f.name.startswith(".")):
            why = "a folder inside a class folder" if file.is_dir() else _unusable(file)
            if why is None:
                items.append(VideoItem(path_ids([f"{name}/{file.name}"])[0], str(file), label))
            else:
                skipped.append((_shown(file), why))
    if not items:
        inside = [name for name, why in skipped if why == "a folder inside a class folder"]
        more = f"; {len(inside)} folders lie in them, such as {inside[0]}: move their videos up" if inside else ""
        raise InputError(f"expected videos at {base}/<class>/*, found none among {len(found)} folders{more}")
    videos = VideoList(tuple(items), found, tuple(skipped))
    with naming(base):
        return videos if classes is None else videos.relabelled(classes)


def _under(root: Path, files: Sequence[str], ids: Sequence[str]) -> list[str]:
    """Return a list's files under a root that was given: a list of one folder is also one of its shrunk copy."""
    copies: dict[int, str] = {}
    absent: dict[int, str] = {}
    for row, (name, identifier) in enumerate(zip(files, ids, strict=True)):
        if os.path.isfile(name) and Path(os.path.abspath(name)).is_relative_to(os.path.abspath(root)):
            continue
        near = [str(root / f"{identifier}{suffix}") for suffix in dict.fromkeys((Path(name).suffix, ".mp4"))]
        found = next((copy for copy in near if os.path.isfile(copy)), None)
        if found is None:
            absent[row] = near[0]
        else:
            copies[row] = found
    copies = {**absent, **copies} if copies else {}  # a copy that lacks some is still what was asked for
    return [copies.get(row, name) for row, name in enumerate(files)]


def is_video(file: Path) -> bool:
    """Say whether a file is a video by its name; hidden ones, as file managers leave them, are none."""
    return file.suffix.lower() in VIDEO_SUFFIXES and not file.name.startswith(".")


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of the folders in it, through links too, but for hidden ones."""
    base, seen = Path(os.path.realpath(folder)), set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_raised):
        real = os.path.realpath(place)
        if real in seen:  # a second link to the same folder, or a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [
            name for name in sorted(folders) if not name.startswith(".") and not _walked_anyway(Path(place, name), base)
        ]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _walked_anyway(folder: Path, base: Path) -> bool:
    """Say whether a link leads to a folder below `base` that is walked by its own name."""
    real = Path(os.path.realpath(folder))
    return (
        folder.is_symlink()
        and real.is_relative_to(base)
        and not any(part.startswith(".") for part in real.relative_to(base).parts)
    )


def _raised(error: OSError) -> None:
    raise error


def _unusable(file: Path) -> str | None:
    """Say why a file that is not hidden cannot be one of a list's videos, if it cannot."""
    if not is_video(file):
        return f"no video by its suffix {file.suffix!r}"
    if not file.is_file():
        return "a link to nothing" if file.is_symlink() else "no file"
    return None if _is_text(file) else _NO_TEXT


def _is_text(file: Path) -> bool:
    """Say whether a path can stand in a list."""
    return _shown(file) == str(file) and not set("\r\n") & set(str(file))


def _shown(file: Path) -> str:
    """Return a path as text that can be written; bytes that are no UTF-8 are replaced."""
    return os.fsencode(file).decode("utf-8", "replace")


def _counted(files: Sequence[Path]) -> str:
    """Say how many files there are, and what to do where they are frames."""
    pictures = sum(file.suffix.lower() in (".jpg", ".jpeg", ".png") for file in files)
    frames = f", {pictures} of them pictures: if these are frames, encode those of each clip as a video"
    return f"{len(files)} files{frames if pictures else ''}"


def _labels(
    file: Path, rows: list[_Row], classes: Sequence[str] | None
) -> tuple[tuple[str, ...] | None, list[int | None]]:
    """Give the classes' names, where they are known, and each row's label as a number."""
    known = None if classes is None else tuple(classes)
    given = [row.label for row in rows]
    if given[0] is None or given[0].isdecimal():
        return known, [None if label is None else int(label) for label in given]
    names = known if known is not None else tuple(sorted({str(label) for label in given}))
    numbers = {name: number for number, name in enumerate(names)}
    if unknown := sorted({str(label) for label in given} - set(numbers)):
        raise InputError(f"expected labels of {file} among the {len(names)} classes, got {', '.join(unknown[:5])}")
    return names, [numbers[str(label)] for label in given]


def _unlisted(files: Sequence[str]) -> tuple[str, ...]:
    """Find videos that no row names, in the folders of those that are."""
    found = (
        str(file)
        for folder in {Path(name).parent for name in files}
        if folder.is_dir()
        for file in folder.iterdir()
        if is_video(file)
    )
    return tuple(sorted(set(found) - set(files)))
