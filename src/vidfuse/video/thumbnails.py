"""Small pictures of videos, for a page: made from a folder of videos or of pictures, when they are asked for."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._paths import VIDEO_SUFFIXES, path_ids
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.video.decode import _import_av, decode, probe
from vidfuse.video.lists import files_below

__all__ = ["Thumbnails", "thumbnail"]

_PICTURES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_SHORT_SIDE: Final = 180  # pixels; pages show them 10 to 20 em wide


class Thumbnails(Mapping[str, bytes]):
    """The middle frames of a folder's videos, or its pictures, as small JPEGs by the videos' ids.

    Nothing is decoded before it is asked for. `run/a.mp4` is that of `run/a`, as in lists of videos, and so is
    `run/a.jpg`; a picture goes before a video. A file that cannot be decoded has none, which is a warning.

    Args:
        folder: The folder; the names of those within it belong to the ids.

    Raises:
        InputError: It is no folder, or holds neither a video nor a picture.
        MissingExtraError: PyAV is not installed.

    Example:
        >>> Thumbnails("missing")
        Traceback (most recent call last):
        vidfuse.errors.InputError: missing: expected a folder of videos, or of pictures that are named by ...
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir() or not self._files:
            raise InputError(f"{folder}: expected a folder of videos, or of pictures that are named by the videos' ids")
        _import_av()

    @cached_property
    def _files(self) -> dict[str, Path]:
        paths = [p for p in files_below(self.folder) if p.suffix.lower() in VIDEO_SUFFIXES | _PICTURES and p.is_file()]
        paths.sort(key=lambda path: (path.suffix.lower() in _PICTURES, path))  # pictures last: they take the place
        named = [path.relative_to(self.folder).as_posix() for path in paths]
        bare = [n.rpartition(".")[0] if p.suffix.lower() in _PICTURES else n for n, p in zip(named, paths, strict=True)]
        return dict(zip(path_ids(bare), paths, strict=True))

    def __getitem__(self, name: str) -> bytes:
        path = self._files[name]
        try:
            return thumbnail(path)
        except InputError as error:
            warnings.warn(f"no picture of {name!r}: {error}", VidfuseWarning, stacklevel=3)
            raise KeyError(name) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def thumbnail(path: str | os.PathLike[str], short_side: int = _SHORT_SIDE) -> bytes:
    """Return the middle frame of a video, or a picture, as a small JPEG.

    Args:
        path: A file of either kind.
        short_side: The short side in pixels, at most.

    Raises:
        InputError: The file cannot be decoded.
        MissingExtraError: PyAV is not installed.

    Example:
        >>> thumbnail("missing.mp4")
        Traceback (most recent call last):
        vidfuse.errors.InputError: expected a readable video, got missing.mp4: No such file or directory; ...
    """
    info = probe(path, pictures=True)
    size = short_side if min(info.height, info.width) > short_side else None
    return _jpeg(decode(path, [info.n_frames // 2], size, info=info)[0])


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a picture (H, W, 3); sides become even, as the codec wants them."""
    av, buffer = _import_av(), io.BytesIO()
    height, width = (max(side - side % 2, 2) for side in pixels.shape[:2])
    with av.open(buffer, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1, options={"qscale": "4"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuvj420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        container.mux(stream.encode(frame.reformat(width, height, "yuvj420p")))
        container.mux(stream.encode())
    return buffer.getvalue()
