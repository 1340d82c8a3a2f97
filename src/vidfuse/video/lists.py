"""Lists of videos that people already have: MMAction2 lists, PyTorchVideo and PySlowFast csv files, class folders.

Every reader gives a `VideoList`: the videos whose files exist, and beside them, counted and named, the rows
without a file and the files without a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

from vidfuse._paths import VIDEO_SUFFIXES, path_ids
from vidfuse.errors import InputError

__all__ = ["VideoItem", "VideoList", "read_class_folders", "read_csv_list", "read_mmaction2"]


@dataclass(frozen=True)
class VideoItem:
    """One labelled video.

    Attributes:
        id: its id, unique in its list.
        path: its file.
        label: the 0-based class, or None.
    """

    id: str
    path: str
    label: int | None = None


@dataclass(frozen=True)
class VideoList(Sequence[VideoItem]):
    """Videos in order, with what was left out and why.

    Attributes:
        items: the videos.
        classes: class names in the order of the labels, where they are known.
        skipped: (id or path, reason) of every video that was listed and cannot be used.
        unlisted: files that no row names.
    """

    items: tuple[VideoItem, ...]
    classes: tuple[str, ...] | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    unlisted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: dict[str, int] = {}
        for position, item in enumerate(self.items):
            if item.id in seen:
                raise InputError(f"expected unique ids, got {item.id!r} at rows {seen[item.id]} and {position}")
            seen[item.id] = position
            if self.classes is not None and item.label is not None and not 0 <= item.label < len(self.classes):
                raise InputError(
                    f"expected labels in [0, {len(self.classes)}), got {item.label} for video {item.id!r}; "
                    "are the labels 1-based?"
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
        """Say in one line how many videos there are and how many are left out.

        Examples:
            >>> VideoList((VideoItem("a", "a.mp4"),), skipped=(("b", "no file"),)).summary()
            '1 video, 1 skipped (b: no file), 0 files without a row'
        """
        text = f"{len(self)} video{'' if len(self) == 1 else 's'}, {len(self.skipped)} skipped"
        if self.skipped:
            shown = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:3])
            text += f" ({shown}{'; …' if len(self.skipped) > 3 else ''})"
        return f"{text}, {len(self.unlisted)} file{'' if len(self.unlisted) == 1 else 's'} without a row"

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
        The videos; ids are the paths without a video's suffix.

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
    return _from_rows(Path(path), root, classes, separators=(" ", "\t"))


def read_csv_list(path: str | Path, root: str | Path | None = None, classes: Sequence[str] | None = None) -> VideoList:
    r"""Read a PyTorchVideo or PySlowFast csv: `path label` or `path,label`, split from the right, labels 0-based.

    Args:
        path: the csv file.
        root: the folder that relative paths start from; None: the csv's own folder.
        classes: class names, if they are known.

    Returns:
        The videos; ids are the paths without a video's suffix, absolute ones from their common folder on.

    Raises:
        InputError: no such file, no rows, or a row that is not a path and a label.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "run.mp4").touch()
        >>> _ = (folder / "val.csv").write_text("run.mp4,0\n")
        >>> [(video.id, video.label) for video in read_csv_list(folder / "val.csv")]
        [('run', 0)]
    """
    return _from_rows(Path(path), root, classes, separators=(",", " ", "\t"))


def read_class_folders(root: str | Path, classes: Sequence[str] | None = None) -> VideoList:
    """Read folders `root/class/*.mp4`: one folder per class, classes in sorted order; hidden folders are left out.

    Args:
        root: the folder of folders.
        classes: class names in the order of the labels wanted, those of the training videos, say; folders are matched
            with them by name, and may lack some.

    Returns:
        The videos in sorted order; ids are `class/name`.

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
    found = tuple(sorted(p.name for p in base.iterdir() if p.is_dir() and not p.name.startswith(".")))
    items = tuple(
        VideoItem(path_ids([f"{name}/{file.name}"])[0], str(file), label)
        for label, name in enumerate(found)
        for file in sorted((base / name).iterdir())
        if file.suffix.lower() in VIDEO_SUFFIXES
    )
    if not items:
        raise InputError(f"expected videos at {base}/<class>/*, found none among {len(found)} folders")
    videos = VideoList(items, found)
    try:
        return videos if classes is None else videos.relabelled(classes)
    except InputError as error:
        raise InputError(f"{base}: {error}") from error


def _from_rows(
    path: Path, root: str | Path | None, classes: Sequence[str] | None, separators: tuple[str, ...]
) -> VideoList:
    if not path.is_file():
        raise InputError(f"expected a list of videos, found no file at {path}")
    rows: list[tuple[str, int]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        cut = max(text.rfind(separator) for separator in separators)
        name, digits = text[:cut].rstrip(", \t"), text[cut + 1 :]
        if cut < 1 or not name or not (digits.isascii() and digits.isdigit()):
            raise InputError(
                f"expected `path label` with a 0-based integer label at {path}:{number}, got {text!r}; "
                "the list has no header, and a label in every row"
            )
        rows.append((name, int(digits)))
    if not rows:
        raise InputError(f"expected at least one video in {path}, found none")
    base = path.parent if root is None else Path(root)
    items, skipped = [], []
    for (name, label), identifier in zip(rows, path_ids([name for name, _ in rows]), strict=True):
        file = base / name
        if file.is_file():
            items.append(VideoItem(identifier, str(file), label))
        else:
            skipped.append((identifier, f"no file at {file}"))
    listed = {str(base / name) for name, _ in rows}
    folders = {Path(name).parent for name in listed}
    return VideoList(
        tuple(items), None if classes is None else tuple(classes), tuple(skipped), _unlisted(folders, listed)
    )


def _unlisted(folders: Iterable[Path], listed: set[str]) -> tuple[str, ...]:
    """Find videos in the folders that no row names."""
    files = (
        str(file)
        for folder in folders
        if folder.is_dir()
        for file in folder.iterdir()
        if file.suffix.lower() in VIDEO_SUFFIXES
    )
    return tuple(sorted(set(files) - listed))
