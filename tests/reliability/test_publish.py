"""Faults at every system call of publishing, and the order in which they are made."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import threading

import numpy as np
import pytest

from vidfuse._files import publish, replace, sweep
from vidfuse.cache import format as part_format
from vidfuse.cache.reader import open_cache
from vidfuse.cache.upkeep import consolidate, verify
from vidfuse.cache.writer import CacheWriter
from vidfuse.errors import CacheIncompleteError

Immediate = functools.partial(CacheWriter, flush_seconds=0)  # a part with every append
Z = np.arange(12, dtype=np.float32).reshape(4, 3)
IDS = ["ape", "bee", "cat", "dog"]


def recorded(monkeypatch, events):
    """Note every call that matters for durability, by what it does to which kind of file."""
    real = {name: getattr(os, name) for name in ("write", "fsync", "link", "replace", "unlink")}

    def kind_of(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        return "folder" if os.path.isdir(path) else "temporary" if "/.tmp-" in path else path

    def write(descriptor, data):
        events.append(("write", kind_of(descriptor)))
        return real["write"](descriptor, data)

    def fsync(descriptor):
        events.append(("fsync", kind_of(descriptor)))
        return real["fsync"](descriptor)

    def link(source, target, **options):
        events.append(("link", os.path.basename(target)[:5]))
        return real["link"](source, target, **options)

    def replace(source, target):
        events.append(("replace", os.path.basename(target)[:5]))
        return real["replace"](source, target)

    def unlink(path):
        events.append(("unlink", "temporary"))
        return real["unlink"](path)

    for name, function in (
        ("write", write),
        ("fsync", fsync),
        ("link", link),
        ("replace", replace),
        ("unlink", unlink),
    ):
        monkeypatch.setattr(os, name, function)


def test_write_fsync_link_fsync_in_this_order(tmp_path, monkeypatch):
    writer = Immediate(tmp_path)
    writer.append(IDS[:1], Z[:1])
    events = []
    recorded(monkeypatch, events)
    writer.append(IDS[1:], Z[1:])
    steps = [event for index, event in enumerate(events) if index == 0 or event != events[index - 1]]
    assert steps == [
        ("write", "temporary"),
        ("fsync", "temporary"),
        ("link", "part-"),
        ("fsync", "folder"),
        ("unlink", "temporary"),
    ]


def test_the_description_is_durable_before_the_first_part(tmp_path, monkeypatch):
    events = []
    recorded(monkeypatch, events)
    Immediate(tmp_path).append(IDS, Z)
    links = [what for call, what in events if call == "link"]
    assert links == ["meta.", "part-"]
    assert ("fsync", "folder") in events[events.index(("link", "meta.")) : events.index(("link", "part-"))]


@pytest.mark.parametrize("ask", ["append", "missing"])
def test_another_writers_part_is_flushed_before_it_is_relied_on(tmp_path, monkeypatch, ask):
    """Its writer may have been killed between giving the name and flushing the folder."""
    Immediate(tmp_path).append(IDS, Z)
    events = []
    writer = Immediate(tmp_path)
    recorded(monkeypatch, events)
    if ask == "append":
        assert writer.append(IDS, Z) == 0
    else:
        assert writer.missing(IDS) == []
    assert events == [("fsync", "folder")]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_fault_at_every_write_and_flush_publishes_nothing_torn(tmp_path, monkeypatch, code, call):
    """Fail at the first call, the second, … until an undisturbed run comes out; look at the cache after each."""
    real = getattr(os, call)
    failures = 0
    for failing in range(100):
        folder = tmp_path / str(failing)
        Immediate(folder, expected_ids=IDS).append(IDS[:1], Z[:1])
        writer, calls = Immediate(folder), 0

        def faulty(*arguments, failing=failing):
            nonlocal calls
            calls += 1
            if calls == failing + 1:
                raise OSError(code, os.strerror(code))
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, faulty)
            try:
                writer.append(IDS[1:], Z[1:])
            except OSError as error:
                assert error.errno == code and str(folder) in str(error.filename)
                failures += 1
            else:
                break
        assert not list(folder.glob(".tmp-*"))
        assert not [p for p in verify(folder).problems if p.kind != "CacheIncompleteError"]
        if call == "write":
            with pytest.raises(CacheIncompleteError, match="1 of 4"):
                open_cache(folder)
        with Immediate(folder) as again:
            again.append(IDS, Z)
        np.testing.assert_array_equal(open_cache(folder).scores, Z)
    assert failures >= (3 if call == "write" else 2)  # header, ids, scores; file, folder
    assert not list(folder.glob(".tmp-*"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_fault_while_the_description_is_written_leaves_an_empty_folder(tmp_path, monkeypatch, code):
    def fail(descriptor, data):
        raise OSError(code, os.strerror(code))

    writer = Immediate(tmp_path / "swin")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(OSError, match=r"meta\.json"):
            writer.append(IDS, Z)
    assert not list((tmp_path / "swin").iterdir())
    writer.append(IDS, Z)
    np.testing.assert_array_equal(open_cache(tmp_path / "swin").scores, Z)


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    assert publish(tmp_path / "file", [b"0123456789" * 3, b"", b"abc"])
    assert (tmp_path / "file").read_bytes() == b"0123456789" * 3 + b"abc"


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV])
def test_without_hard_links_a_lock_and_a_rename_publish(tmp_path, monkeypatch, code):
    def no_link(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_link)
    events = []
    real_replace = os.replace

    def replace(source, target):
        with open(tmp_path / ".lock") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock is held while the name is given
        events.append("replace")
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert publish(tmp_path / "file", [b"first"])
    assert not publish(tmp_path / "file", [b"second"])
    assert events == ["replace"] and (tmp_path / "file").read_bytes() == b"first"
    assert not list(tmp_path.glob(".tmp-*"))


def test_without_hard_links_a_whole_cache_is_written_and_read(tmp_path, monkeypatch):
    def no_link(*arguments, **options):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "link", no_link)
    with Immediate(tmp_path) as writer:
        writer.append(IDS, Z)
    np.testing.assert_array_equal(open_cache(tmp_path).scores, Z)


@pytest.mark.parametrize(("owner", "call", "lacking"), [(os, "replace", "nor renaming"), (fcntl, "flock", "no locks")])
def test_a_mount_that_can_neither_link_nor_rename_safely_says_so(tmp_path, monkeypatch, owner, call, lacking):
    def unable(*arguments, **options):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "link", unable)
    monkeypatch.setattr(owner, call, unable)
    with pytest.raises(OSError, match=rf"{lacking}.*write to a local disk, and copy the finished folder") as caught:
        Immediate(tmp_path).append(IDS, Z)
    assert caught.value.errno == errno.ENOSYS and not list(tmp_path.glob("*.safetensors"))
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_mount_that_maps_no_file_and_flushes_no_folder_is_read_and_written(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        real(descriptor)

    def no_map(*arguments, **options):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(part_format.mmap, "mmap", no_map)
    with Immediate(tmp_path) as writer:
        writer.append(IDS[:2], Z[:2], [0, 1])
        writer.append(IDS[2:], Z[2:], [2, -1])
    cache = open_cache(tmp_path)
    np.testing.assert_array_equal(cache.scores, Z)
    assert cache.labels.tolist() == [0, 1, 2, -1] and verify(tmp_path).ok
    np.testing.assert_array_equal(consolidate(tmp_path)[0].scores, Z)


def test_another_fault_of_linking_is_not_taken_for_a_missing_feature(tmp_path, monkeypatch):
    def no_link(*arguments, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        publish(tmp_path / "file", [b"first"])
    assert not list(tmp_path.iterdir())


def test_one_of_many_simultaneous_writers_of_a_name_wins(tmp_path):
    barrier, won = threading.Barrier(8), []

    def write(number):
        barrier.wait()
        if publish(tmp_path / "file", [b"%d" % number]):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and (tmp_path / "file").read_bytes() == b"%d" % won[0]


def test_a_sweep_spares_work_in_progress(tmp_path):
    stale = tmp_path / ".tmp-1-stale"
    stale.write_bytes(b"left behind")
    living = tmp_path / ".tmp-2-living"
    with living.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert sweep(tmp_path) == [stale]
    assert sweep(tmp_path) == [living]


def test_a_sweep_between_creating_and_locking_is_survived(tmp_path, monkeypatch):
    real, swept = fcntl.flock, []

    def flock(descriptor, operation):
        if not swept:
            swept.extend(tmp_path.glob(".tmp-*"))
            swept[0].unlink()
        return real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert publish(tmp_path / "file", [b"content"])
    assert (tmp_path / "file").read_bytes() == b"content" and swept


def test_without_locks_only_old_temporaries_are_swept(tmp_path, monkeypatch):
    def no_lock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    young, old = tmp_path / ".tmp-young", tmp_path / ".tmp-old"
    young.touch()
    old.touch()
    os.utime(old, (0, 0))
    assert sweep(tmp_path) == [old] and young.exists()


def test_replacing_writes_flushes_renames_and_flushes_the_folder(tmp_path, monkeypatch):
    events = []
    recorded(monkeypatch, events)
    replace(tmp_path / "report.html", "<p>π</p>")
    assert events[:4] == [("write", "temporary"), ("fsync", "temporary"), ("replace", "repor"), ("fsync", "folder")]
    assert (tmp_path / "report.html").read_bytes() == "<p>π</p>".encode()


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_fault_while_replacing_keeps_the_old_content(tmp_path, monkeypatch, call):
    path = replace(tmp_path / "ensemble.json", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left") as caught:
            replace(path, b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["ensemble.json"]


def test_a_link_stays_a_link_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "real" / "target.csv")
    assert replace(tmp_path / "link.csv", "a") == tmp_path / "link.csv"
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real" / "target.csv").read_text() == "a"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        replace(tmp_path / "pipe", "through")
        assert os.read(reader, 99) == b"through"
    finally:
        os.close(reader)
