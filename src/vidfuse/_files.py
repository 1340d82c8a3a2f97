"""Files that appear whole or not at all, and stay after a power cut.

`publish` gives a name once and never overwrites; `replace` puts new content in the place of old. Both write under a
temporary name, flush, give the final name (by a hard link, or by a rename), and flush the folder. Without hard links,
`publish` takes an exclusive lock and renames; where a mount cannot do that either, it says so and publishes nothing. A
writer holds a lock on its temporary file, so that `sweep` can tell what a killed writer left behind from work in
progress.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

__all__ = ["TEMPORARY", "LateHead", "folder_lock", "fsync_folder", "make_folder", "publish", "replace", "sweep"]

TEMPORARY: Final = ".tmp-"
_LOCK: Final = ".lock"
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV})
_NO_FLUSH: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_UNABLE: Final = _NO_LINKS | {errno.EINVAL, errno.ENOLCK}
_STALE_SECONDS: Final = 86400.0  # where locks do not work, a temporary this old has no living writer


class LateHead(Protocol):
    """The first bytes of a file, of known length, whose content is known after the rest is written."""

    @property
    def head_size(self) -> int:
        """The length in bytes."""
        ...

    def head(self) -> bytes:
        """Return the bytes."""
        ...


def publish(path: Path, chunks: Iterable[bytes | memoryview], late: LateHead | None = None) -> bool:
    """Publish a file: write, fsync, link, fsync the folder.

    Args:
        path: The final name; an existing file is never overwritten.
        chunks: The content, one piece after the other; what follows the head where that comes late.
        late: What stands before the chunks and is written after them.

    Returns:
        True if this call published the file, False if the name was taken.

    Raises:
        OSError: The disk is full or fails; its `filename` is the path. No part of the file is visible then.
    """
    try:
        with _temporary(path.parent) as (descriptor, temporary):
            if late is not None:
                os.lseek(descriptor, late.head_size, os.SEEK_SET)
            for chunk in chunks:
                _write_all(descriptor, chunk)
            if late is not None:
                os.lseek(descriptor, 0, os.SEEK_SET)
                _write_all(descriptor, late.head())
            os.fsync(descriptor)
            published = _name(temporary, path)
            fsync_folder(path.parent)
            return published
    except OSError as error:
        if error.filename is None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def replace(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Write a file so that at every moment its old or its new content is there, complete; return its path.

    Args:
        path: Where it goes; its folder is made. A link there stays a link; a pipe or a device is written to directly.
        data: The content; text is encoded as UTF-8.

    Raises:
        OSError: The disk is full or fails; its `filename` is the path. The old content is still there then.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = replace(f"{folder}/new/a.txt", "whole")
        ...     path.name, [p.name for p in path.parent.iterdir()]
        ('a.txt', ['a.txt'])
    """
    content = data.encode() if isinstance(data, str) else data
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        target.write_bytes(content)
        return Path(path)
    try:
        make_folder(target.parent)
        with _temporary(target.parent) as (descriptor, temporary):
            _write_all(descriptor, content)
            os.fsync(descriptor)
            os.replace(temporary, target)
            fsync_folder(target.parent)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    return Path(path)


def _write_all(descriptor: int, chunk: bytes | memoryview) -> None:
    rest = memoryview(chunk).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextmanager
def _temporary(folder: Path) -> Iterator[tuple[int, Path]]:
    """A locked temporary file, which is removed in the end."""
    while True:
        temporary = folder / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # no locks on this file system: `sweep` then goes by age
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # a sweep came between creating and locking
    try:
        yield descriptor, temporary
    finally:
        with suppress(OSError):
            os.unlink(temporary)
        os.close(descriptor)


def _name(temporary: Path, path: Path) -> bool:
    """Give the temporary its final name unless that is taken."""
    try:
        os.link(temporary, path, follow_symlinks=False)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    with folder_lock(path.parent):
        if os.path.lexists(path):
            return False
        try:
            os.replace(temporary, path)
        except OSError as error:
            if error.errno in _UNABLE:
                raise _unable(error, path, "neither hard links nor renaming") from error
            raise
        return True


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder's lock against other processes that change what stands under a name that is taken."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in _UNABLE:
                raise _unable(
                    error, folder / _LOCK, "no locks, without which two writers could overwrite a file"
                ) from error
            raise
        yield
    finally:
        os.close(descriptor)


def _unable(error: OSError, path: Path, what: str) -> OSError:
    return OSError(
        error.errno,
        f"{os.strerror(error.errno or 0)}: this file system has {what}; write to a local disk, and copy the finished "
        "folder: what is in it never changes",
        str(path),
    )


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a new name survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH:  # some network file systems cannot flush a folder, and need not
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, each flushed into its own parent."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    fsync_folder(folder.parent)


def sweep(folder: Path) -> list[Path]:
    """Remove temporaries whose writer is gone, and return them; living writers' files are left alone."""
    removed = []
    for entry in sorted(folder.glob(f"{TEMPORARY}*")):
        try:
            descriptor = os.open(entry, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # finished or swept meanwhile
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stale = True
            except BlockingIOError:
                stale = False
            except OSError:
                stale = time.time() - os.fstat(descriptor).st_mtime > _STALE_SECONDS
            if stale:
                with suppress(FileNotFoundError):
                    os.unlink(entry)
                    removed.append(entry)
        finally:
            os.close(descriptor)
    return removed
