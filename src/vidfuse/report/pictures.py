"""Pictures of videos from a folder, found by the videos' ids and read when they are shown."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from vidfuse._paths import path_ids
from vidfuse.errors import InputError

__all__ = ["Pictures"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp")


class Pictures(Mapping[str, bytes]):
    r"""The pictures of a folder by the ids of their videos: `run/a.jpg`, or `run/a.mp4.jpg`, is that of `run/a`.

    Args:
        folder: The folder; the names of those within it belong to the ids.

    Raises:
        InputError: It is no folder, or holds no picture.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "run").mkdir()
        >>> _ = (folder / "run" / "a.png").write_bytes(b"\x89PNG")
        >>> list(Pictures(folder)), Pictures(folder)["run/a"]
        (['run/a'], b'\x89PNG')
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{folder}: expected a folder of pictures that are named by the videos' ids")
        if not self._files:
            raise InputError(
                f"{folder}: expected pictures ({', '.join(_SUFFIXES)}) that are named by the videos' ids, found none; "
                "those of a folder of videos are made by vidfuse.video.Thumbnails"
            )

    @cached_property
    def _files(self) -> dict[str, Path]:
        found = sorted(p for p in self.folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        names = path_ids([path.relative_to(self.folder).with_suffix("").as_posix() for path in found])
        return dict(zip(names, found, strict=True))

    def __getitem__(self, name: str) -> bytes:
        return self._files[name].read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
