"""Outputs that take long: written beside their final name, published whole, and gone on with after a kill.

    fused.npz.partial/     beside fused.npz, while that is being written
        lock               held by the process that writes
        state.json         whose work this is, and how far it was safe on disk when last said so
        output             what gets the final name in the end: a file, or a folder
        rows               of a parquet file, whose end describes the whole: its rows, until all are there

A second start with the same job goes on from the state; one with another job begins anew. The final name holds what it
held before, or nothing, until all is written.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from vidfuse._checks import first_few
from vidfuse._files import TEMPORARY, fsync_folder, make_folder, replace
from vidfuse.errors import InputError, VidfuseWarning

__all__ = ["PARTIAL", "Unfinished", "is_unfinished"]

PARTIAL: Final = ".partial"
_OURS: Final = frozenset({"lock", "state.json", "output", "rows"})
_BYTES: Final = 1 << 26  # written between two states that are flushed to disk
_SECONDS: Final = 5.0


def is_unfinished(folder: Path) -> bool:
    """Return whether a folder is what a writer has under way, or what a killed one left.

    Example:
        >>> with Unfinished(Path(tempfile.mkdtemp(), "a.txt"), job=None) as work:
        ...     is_unfinished(work.path.parent), is_unfinished(work.path.parent.parent)
        (True, False)
    """
    return folder.name.endswith(PARTIAL) and (folder / "lock").exists()


class Unfinished:
    """An output under way; use it as a context.

    Leaving the context by an error keeps what is safe on disk if there is a job to know it by, or else removes it.

    Args:
        target: The final name: of a file, or of a folder. A link there stays a link; a pipe or a device is written to.
        job: What makes this output what it is, as a digest; None for an output that nobody will go on with.
        folder: A folder is published, not a file.
        kept: What the state speaks of, without which nothing can be gone on with: "output", or what is `beside` it.

    Attributes:
        path: What to write: the file or folder that gets the final name.
        state: What was passed to `checkpoint` last, by an earlier process with the same job; None at a beginning.

    Raises:
        InputError: Another process is writing the same output, or something that is not ours stands in its place.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with Unfinished(folder / "a.txt", job=None) as work:
        ...     _ = work.path.write_text("whole")
        ...     work.publish()
        >>> [(path.name, path.read_text()) for path in folder.iterdir()]
        [('a.txt', 'whole')]
    """

    def __init__(
        self, target: str | os.PathLike[str], job: str | None, *, folder: bool = False, kept: str = "output"
    ) -> None:
        self._given, self._job, self._wants_folder, self._needs = Path(target), job, folder, kept
        self._target = Path(os.path.realpath(target))
        self._through = self._target.exists() and not self._target.is_file() and not self._target.is_dir()
        self.state: Any = None
        self._kept = False  # whether there is a state on disk that is worth keeping
        self._mark, self._when = 0, time.monotonic()

    def __enter__(self) -> Self:
        if self._target.is_dir() and (not self._wants_folder or any(self._target.iterdir())):
            what = (
                "an empty or a new folder, and it holds something" if self._wants_folder else "a file, found a folder"
            )
            raise InputError(f"{self._given}: expected {what}; choose another name, or remove it")
        if self._wants_folder and self._target.exists() and not self._target.is_dir():
            raise InputError(f"{self._given}: expected a new folder, found a file; choose another name, or remove it")
        try:
            if self._through:  # beside a pipe or a device nothing can be kept
                self._folder, self._job = Path(tempfile.mkdtemp()), None
            else:
                self._folder = self._target.with_name(self._target.name + PARTIAL)
                make_folder(self._target.parent)
            self._lock = self._locked()
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(self._given)) from error
        self.path = self._folder / "output"
        self._resume()
        return self

    def _locked(self) -> int:
        """Make the folder, and hold its lock."""
        while True:
            try:
                self._folder.mkdir()
            except FileExistsError:
                self._check_ours()
            try:
                lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                continue  # its owner has just finished
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise InputError(f"{self._given}: another process is writing it just now; wait for it") from None
            except OSError:
                pass  # no locks on this file system
            if os.fstat(lock).st_nlink:
                return lock
            os.close(lock)

    def _check_ours(self) -> None:
        """Refuse a folder with something in it that was not written here, as what is left of another job is removed."""
        try:
            names = [] if self._folder.is_symlink() else os.listdir(self._folder)
        except FileNotFoundError:
            return  # its owner has just finished
        except NotADirectoryError:
            found = "a file"
        else:
            strange = [name for name in names if name not in _OURS and not name.startswith(TEMPORARY)]
            found = "a link" if self._folder.is_symlink() else first_few(sorted(strange))
        if found:
            raise InputError(
                f"{self._folder}: expected a folder of unfinished work, or nothing, found {found}; move it away"
            )

    def _resume(self) -> None:
        """Take over what an earlier process with the same job left; clear what is of another one."""
        found: Any = None
        with suppress(OSError, ValueError):
            found = json.loads((self._folder / "state.json").read_text(encoding="utf-8"))
        known = isinstance(found, dict) and found.keys() == {"job", "state", "extent"} and self._job is not None
        if known and found["job"] != self._job:
            what = "holds what was begun with another recipe, other predictions or other options"
        elif known and _extent(self.beside(self._needs)) < found["extent"]:
            what = "no longer holds all that was written there"
        elif known:
            self.state, self._kept = found["state"], True
            return
        if known:
            warnings.warn(f"{self._folder} {what}; beginning anew", VidfuseWarning, stacklevel=4)
        for entry in self._folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != "lock":
                entry.unlink()

    def beside(self, name: str) -> Path:
        """Return the path of something that is kept with the output until that is published."""
        return self._folder / name

    def open(self, length: int, name: str = "output") -> IO[bytes]:
        """Open a file to go on at this length; what an earlier process wrote beyond it is cut off."""
        path = self._folder / name
        stream = path.open("r+b" if path.exists() else "w+b")
        stream.truncate(length)
        stream.seek(length)
        return stream

    def checkpoint(self, stream: IO[bytes] | None, state: Any, *, last: bool = False) -> None:
        """Make what was written safe, with the state to go on from; done only where enough was written since.

        Args:
            stream: What is being written, its position at the end of what is safe; None where that is on disk already.
            state: Any JSON value.
            last: Do it now.
        """
        if self._job is None:
            return
        at = 0 if stream is None else stream.tell()
        due = stream is None or last or at - self._mark >= _BYTES or time.monotonic() - self._when >= _SECONDS
        if not due:
            return
        if stream is not None:
            stream.flush()
            os.fdatasync(stream.fileno())
        content = {"job": self._job, "state": state, "extent": _extent(self.beside(self._needs))}
        replace(self._folder / "state.json", json.dumps(content))
        self._kept, self._mark, self._when = True, at, time.monotonic()

    def publish(self) -> None:
        """Give the output its final name, in the place of what has it; then remove the rest."""
        if self._through:
            with self.path.open("rb") as source, self._target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        else:
            if self.path.is_file():
                with self.path.open("rb") as stream:
                    os.fsync(stream.fileno())
            os.replace(self.path, self._target)
            fsync_folder(self._target.parent)
        self._kept = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._kept:
            shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)
        if isinstance(error, OSError) and error.errno is not None and self._is_mine(error.filename):
            raise type(error)(error.errno, error.strerror, str(self._given)) from error

    def _is_mine(self, name: Any) -> bool:
        """Whether an error is of what is written here, not of something that is read."""
        return name is None or self._folder in Path(os.fsdecode(name)).parents


def _extent(path: Path) -> int:
    """Return how much is there: a file's bytes, or a folder's files; less than nothing where neither is."""
    try:
        if path.is_dir():
            return sum(not name.startswith(TEMPORARY) for name in os.listdir(path))
        return path.stat().st_size
    except FileNotFoundError:
        return -1
