"""Too few files, too little memory, no permission, a failing disk: an error that says so, never taken for damage."""

import errno
import functools
import gc
import json
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from vidfuse.cache import format as part_format
from vidfuse.cache import upkeep
from vidfuse.cache.format import encode_part, open_part
from vidfuse.cache.reader import open_cache
from vidfuse.cache.upkeep import consolidate, verify
from vidfuse.cache.writer import CacheWriter
from vidfuse.cli import main
from vidfuse.errors import CacheConflictError, CacheCorruptError
from vidfuse.formats.importers import read_predictions
from vidfuse.stack.open import load_stack

Immediate = functools.partial(CacheWriter, flush_seconds=0)  # a part with every append
PARTS = 12
IDS = [f"v{row:02d}" for row in range(PARTS)]
Z = np.random.default_rng(0).normal(size=(PARTS, 5)).astype(np.float32)
ADVICE = {
    errno.EMFILE: "ulimit -n",
    errno.ENFILE: "close some",
    errno.ENOMEM: "free some memory",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EIO: "check the disk",
}


def write(folder, members=("swin", "x3d"), expected=IDS):
    """One part a video, and the first member's third part is damaged."""
    for seed, member in enumerate(members):
        with Immediate(folder / member, expected_ids=expected) as writer:
            for row, name in enumerate(IDS):
                writer.append([name], Z[row : row + 1] + seed, [row % 5])
    damaged = sorted((folder / members[0]).glob("*.safetensors"))[2]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    return damaged


def tree(folder):
    """Every file with its bytes; empty folders do not count."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failing(monkeypatch, owner, name, error, after, only=None):
    """Let calls of a function go through, `after` of them, and fail from then on."""
    real, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        if only is None or str(args[0]).endswith(only):
            calls.append(args)
            if len(calls) > after:
                raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("after", [0, 3, 2 * PARTS - 1])
@pytest.mark.parametrize("code", ADVICE, ids=lambda code: errno.errorcode[code])
def test_what_cannot_be_opened_is_not_set_aside(tmp_path, monkeypatch, code, after):
    write(tmp_path)
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, os, "open", OSError(code, os.strerror(code)), after, only=".safetensors")
        result = CliRunner().invoke(main, ["verify", str(tmp_path), "--quarantine"])
    assert result.exit_code == 2 and tree(tmp_path) == before
    assert os.strerror(code) in result.output and ADVICE[code] in result.output
    assert "no part was moved" in result.output and ".safetensors" in result.output


@pytest.mark.parametrize("call", ["pread", "fstat"])
def test_what_cannot_be_read_is_not_set_aside(tmp_path, monkeypatch, call):
    write(tmp_path)
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, os, call, OSError(errno.EIO, os.strerror(errno.EIO)), after=15)
        with pytest.raises(OSError, match=r"no part was moved: check the disk: '.*\.safetensors'"):
            verify(tmp_path, quarantine=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["_sha256", "_parse_header", "check_packed"])
def test_without_memory_nothing_is_set_aside(tmp_path, monkeypatch, name):
    write(tmp_path)
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, part_format, name, MemoryError(), after=7)
        result = CliRunner().invoke(main, ["verify", str(tmp_path), "--quarantine"])
    assert result.exit_code == 2 and "out of memory" in result.output and "no part was moved" in result.output
    assert tree(tmp_path) == before


def test_a_description_that_cannot_be_read_stops_it(tmp_path, monkeypatch):
    write(tmp_path)
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, os, "lstat", PermissionError(errno.EACCES, "Permission denied"), after=1, only="meta.json")
        with pytest.raises(PermissionError, match="no part was moved"):
            verify(tmp_path, quarantine=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("call", "after"), [("rename", 0), ("rename", 1), ("mkdir", 0), ("fsync", 0), ("fsync", 3)])
def test_where_one_part_cannot_be_moved_the_others_are_put_back(tmp_path, monkeypatch, call, after):
    write(tmp_path)
    for path in sorted((tmp_path / "x3d").glob("*.safetensors"))[:2]:
        path.write_bytes(b"damaged too")
    before, real = tree(tmp_path), getattr(os, call)
    calls = []

    def refused_once(*args, **kwargs):
        calls.append(args)
        if len(calls) == after + 1:
            raise PermissionError(errno.EACCES, "Permission denied", str(args[0]))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refused_once)
        with pytest.raises(PermissionError, match="no part was moved: give this user the permission"):
            verify(tmp_path, quarantine=True)
    assert tree(tmp_path) == before
    report = verify(tmp_path, quarantine=True)
    assert len(report.problems) == 3 and all(problem.moved_to.exists() for problem in report.problems)


def test_a_part_that_is_written_anew_while_others_are_put_back_is_kept(tmp_path, monkeypatch):
    damaged = write(tmp_path)
    (tmp_path / "x3d" / "zz.safetensors").write_bytes(b"damaged too")
    real = os.rename

    def rename(source, target):
        if source.name == "zz.safetensors":
            damaged.write_bytes(b"written anew")
            raise PermissionError(errno.EACCES, "Permission denied", str(source))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(PermissionError):
        verify(tmp_path, quarantine=True)
    assert damaged.read_bytes() == b"written anew"


def test_a_part_that_vanishes_while_it_is_verified_stops_it(tmp_path, monkeypatch):
    damaged = write(tmp_path)
    real = upkeep.open_part

    def removed(path, **options):
        part = real(path, **options)
        if path.parent.name == "x3d":
            path.unlink()
        return part

    monkeypatch.setattr(upkeep, "open_part", removed)
    with pytest.raises(CacheConflictError, match="the part is gone, joined or set aside; load again"):
        verify(tmp_path, quarantine=True)
    assert damaged.exists()


def test_what_keeps_a_cache_from_being_joined_removes_nothing(tmp_path, monkeypatch):
    damaged = write(tmp_path)
    damaged.unlink()
    parts = set(tmp_path.rglob("*.safetensors"))
    with monkeypatch.context() as patch:
        failing(
            patch, os, "open", OSError(errno.EMFILE, os.strerror(errno.EMFILE)), after=PARTS + 1, only=".safetensors"
        )
        result = CliRunner().invoke(main, ["consolidate", str(tmp_path)])
    assert result.exit_code == 2 and "ulimit -n" in result.output
    assert set(tmp_path.rglob("*.safetensors")) >= parts - {p for p in parts if p.parent.name == "swin"}
    assert len(open_cache(tmp_path / "swin", partial=True)) == PARTS - 1


# 4 members x 50 parts with at most 40 files; in a process of its own, as pytest has files open too.
FEW = """
import json, resource, sys
import numpy as np
from vidfuse.cache.upkeep import consolidate, verify
from vidfuse.stack.open import load_stack

resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
folder = sys.argv[1]
report = verify(folder, quarantine=True)
stack = load_stack(folder, partial=True)
read = {member: stack.scores(member) for member in stack.members}
assert np.array_equal(stack[np.arange(len(stack))[::-7]].scores("m2"), read["m2"][::-7])
assert np.array_equal(np.concatenate(stack[3:].pieces(1)), read["m1"][3:])
caches = consolidate(folder)
joined = load_stack(folder, partial=True)
assert all(np.array_equal(joined.scores(member), read[member]) for member in joined.members)
print(json.dumps([report.parts, len(report.problems), [len(c.parts) for c in caches], [len(c) for c in caches]]))
"""


def test_many_parts_are_verified_read_and_joined_with_few_files(tmp_path):
    ids = [f"v{row:02d}" for row in range(50)]
    for member in range(4):
        with Immediate(tmp_path / f"m{member}", expected_ids=ids[::-1] if member % 2 else ids) as writer:
            for row, name in enumerate(ids):
                writer.append([name], np.full((1, 3), row + 1000 * member, dtype=np.float32))
    damaged = sorted((tmp_path / "m0").glob("*.safetensors"))[5]
    os.truncate(damaged, damaged.stat().st_size - 1)
    done = subprocess.run([sys.executable, "-c", FEW, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [199, 1, [1, 1, 1, 1], [49, 50, 50, 50]]
    assert [path.name for path in tmp_path.rglob("quarantine/*")] == [f"{damaged.name}.0"]


@pytest.fixture
def none_held(monkeypatch):
    """A process that may have so few files open that it holds no part."""
    monkeypatch.setattr(part_format.resource, "getrlimit", lambda _: (1, 1))


def open_parts(folder=Path("/")):
    """How many parts in a folder this process has open, without those that earlier tests left in cycles."""
    gc.collect()
    files = [Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    opened = [Path(os.readlink(file)) for file in files if file.is_symlink()]
    return sum(".safetensors" in file.name and file.is_relative_to(folder) for file in opened)


def test_parts_that_are_not_held_are_read_as_others_and_keep_no_file_open(tmp_path, none_held):
    write(tmp_path).unlink()
    stack = load_stack(tmp_path, partial=True)
    rows = [IDS.index(name) for name in stack.ids.tolist()]
    pieces = open_cache(tmp_path / "x3d").source.pieces(slice(2, PARTS, 1))
    assert len(pieces) == PARTS - 2 and open_parts(tmp_path) == 0
    np.testing.assert_array_equal(np.concatenate(pieces), Z[2:] + 1)
    np.testing.assert_array_equal(stack[[5, 1, 1]].scores("swin"), Z[[rows[5], rows[1], rows[1]]])
    with Immediate(tmp_path / "x3d") as writer:
        assert writer.append(IDS, Z + 1, np.arange(PARTS) % 5) == 0
    assert verify(tmp_path / "x3d").ok and len(consolidate(tmp_path)[0].parts) == 1
    np.testing.assert_array_equal(open_cache(tmp_path / "x3d").scores, Z + 1)
    assert open_parts(tmp_path) == 0


def test_damage_to_a_part_that_is_not_held_is_noticed(tmp_path, none_held):
    damaged = write(tmp_path)
    with pytest.raises(CacheCorruptError, match=damaged.name):
        _ = open_cache(tmp_path / "swin").scores


def test_a_part_that_is_not_held_is_missed_where_its_file_is_gone_or_another(tmp_path, none_held):
    write(tmp_path)
    cache, path = open_cache(tmp_path / "x3d"), next((tmp_path / "x3d").glob("*.safetensors"))
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(CacheConflictError, match="the part is gone, joined or set aside; load again"):
        _ = cache.scores
    path.write_bytes((tmp_path / "elsewhere").read_bytes())
    assert (
        open_late(cache).source.take(slice(0, PARTS, 1)).tobytes() == (Z + 1).tobytes()
    )  # another file of the same bytes
    part = open_part(path)
    content = encode_part(part.ids, part.scores() + 1, part.labels, "logits")
    path.write_bytes(b"".join([content.head(), *content.body]))
    with pytest.raises(CacheConflictError, match="the part was replaced since it was opened; load again"):
        _ = open_late(cache).scores


def open_late(cache):
    """A cache that was opened before, read for the first time."""
    cache.source._moved = None
    return cache


def test_what_is_open_goes_on_while_parts_are_joined_once_and_again(tmp_path, none_held):
    write(tmp_path).unlink()
    stack = load_stack(tmp_path / "x3d")
    consolidate(tmp_path / "x3d", batch_bytes=3 * Z[0].nbytes)
    assert len(open_cache(tmp_path / "x3d").parts) == PARTS // 3
    np.testing.assert_array_equal(stack.scores("x3d"), Z + 1)
    consolidate(tmp_path / "x3d", batch_bytes=6 * Z[0].nbytes + 1)
    assert len(open_cache(tmp_path / "x3d").parts) == PARTS // 6
    np.testing.assert_array_equal(stack[[7, 2, 2]].scores("x3d"), Z[[7, 2, 2]] + 1)
    assert open_parts(tmp_path) == 0


def test_at_most_half_of_the_files_are_held(tmp_path, monkeypatch):
    write(tmp_path)
    before = open_parts()
    monkeypatch.setattr(part_format.resource, "getrlimit", lambda _: (2 * (before + 7), 100))
    cache = open_cache(tmp_path / "x3d")
    assert open_parts() == before + 7
    np.testing.assert_array_equal(cache.scores, Z + 1)
    monkeypatch.setattr(part_format.resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    again = open_cache(tmp_path / "x3d")
    assert open_parts() == before + 7 + PARTS and len(again) == PARTS


@pytest.mark.parametrize("read", ["npz", "parquet"])
def test_a_dump_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch, read):
    path = tmp_path / f"dump.{read}"
    np.savez(tmp_path / "dump.npz", scores=Z)
    (tmp_path / "dump.parquet").write_bytes(b"PAR1")

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    if read == "npz":
        monkeypatch.setattr(zipfile, "ZipFile", refuse)
    else:
        monkeypatch.setattr(pytest.importorskip("pyarrow.parquet"), "read_table", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        read_predictions({"swin": path}, kind="logits")
