"""What lies at a path: which of the layouts that videos come in, and the videos themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, get_args

from vidfuse._paths import VIDEO_SUFFIXES
from vidfuse.errors import InputError
from vidfuse.video.lists import VideoItem, VideoList, is_video, read_class_folders, read_csv_list, read_folder
from vidfuse.video.vipriors import read_vipriors

__all__ = ["LAYOUTS", "Layout", "guess_layout", "read_videos", "split_folder"]

Layout = Literal["vipriors", "folders", "mmaction2", "csv", "unlabelled"]
LAYOUTS: Final = get_args(Layout)

_SPLITS: Final = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_EVERY_SPLIT: Final = frozenset(name for names in _SPLITS.values() for name in names)


def guess_layout(path: str | Path) -> Layout:
    """Tell which layout a path has, by what is there.

    Args:
        path: a folder, a list, or one video.

    Returns:
        "vipriors" for a folder with `annotations/clsIdx.csv`; "folders" for one with folders of videos, or with such
        folders for each split; "unlabelled" for any other folder, and for one video; "csv" for a file, whose rows tell
        themselves what they are.

    Raises:
        InputError: nothing is there.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "list.csv").write_text("run/a.mp4,0")
        >>> guess_layout(folder), guess_layout(folder / "list.csv")
        ('unlabelled', 'csv')
    """
    place = Path(path)
    if place.is_file():
        return "unlabelled" if place.suffix.lower() in VIDEO_SUFFIXES else "csv"
    if not place.is_dir():
        raise InputError(f"expected videos or a list of them, found nothing at {place}")
    if (place / "annotations" / "clsIdx.csv").is_file():
        return "vipriors"
    folders = [folder for folder in place.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    if any(split_folder(place, split) for split in _SPLITS):
        return "folders"
    direct = any(is_video(file) for file in place.iterdir() if file.is_file())
    return "folders" if folders and not direct and any(map(_holds_videos, folders)) else "unlabelled"


def split_folder(root: str | Path, split: str) -> Path | None:
    """Give the folder of a split's class folders, `root/train/<class>/*.mp4`, where a data set is laid out so.

    Only a folder all of whose folders are named as splits is: "test" may be a class.
    """
    base = Path(root)
    names = {folder.name for folder in base.iterdir() if folder.is_dir() and not folder.name.startswith(".")}
    found = next((name for name in _SPLITS[split] if name in names), None)
    if found is None or not names <= _EVERY_SPLIT:
        return None
    inner = [folder for folder in (base / found).iterdir() if folder.is_dir()]
    return base / found if any(map(_holds_videos, inner)) else None


def read_videos(
    path: str | Path, layout: Layout | None = None, *, split: str = "train", root: str | Path | None = None
) -> VideoList:
    """Read the videos at a path.

    Args:
        path: a folder, a list, or one video.
        layout: its layout; None: the one that `guess_layout` tells.
        split: which videos of a data set that has splits: "train", "val" or "test".
        root: the folder that a list's relative paths start from; None: the list's own folder.

    Returns:
        The videos.

    Raises:
        InputError: what is there does not fit the layout.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "run").mkdir()
        >>> _ = (folder / "run" / "a.mp4").write_bytes(b"")
        >>> read_videos(folder).ids
        ('run/a',)
    """
    layout = guess_layout(path) if layout is None else layout
    if layout == "vipriors":
        return read_vipriors(path, split)  # type: ignore[arg-type]
    if layout == "folders":
        return read_class_folders((Path(path).is_dir() and split_folder(path, split)) or path)
    if layout != "unlabelled":
        return read_csv_list(path, root)
    if Path(path).is_dir():
        return read_folder(path)
    if Path(path).suffix.lower() in VIDEO_SUFFIXES:
        return VideoList((VideoItem(Path(path).stem, str(path)),))
    videos = read_csv_list(path, root)
    return VideoList(tuple(VideoItem(item.id, item.path) for item in videos), None, videos.skipped, videos.unlisted)


def _holds_videos(folder: Path) -> bool:
    return any(map(is_video, folder.iterdir()))
