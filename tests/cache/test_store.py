"""Caches on disk: parts, many writers, resuming, verification at first use, consolidation."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from vidfuse._files import publish
from vidfuse.cache import format as part_format
from vidfuse.cache import reader, upkeep
from vidfuse.cache import writer as writer_module
from vidfuse.cache.format import Part, encode_part, glancing, open_part
from vidfuse.cache.ids import pack_ids, pack_texts
from vidfuse.cache.meta import read_meta
from vidfuse.cache.reader import checking_ahead, open_cache
from vidfuse.cache.shards import find_shards
from vidfuse.cache.upkeep import consolidate, verify
from vidfuse.cache.writer import CacheWriter
from vidfuse.errors import (
    CacheConflictError,
    CacheCorruptError,
    CacheError,
    CacheFormatError,
    CacheIncompleteError,
    InputError,
)
from vidfuse.fusion.weights import true_scores
from vidfuse.stack.open import load_stack

Immediate = functools.partial(CacheWriter, flush_seconds=0)  # a part with every append
IDS = [f"v{i:04d}" for i in range(30)]
Z = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


def test_a_part_is_a_plain_safetensors_file(tmp_path):
    with Immediate(tmp_path) as writer:
        writer.append(IDS, Z, np.arange(30) % 4)
    (path,) = tmp_path.glob("*.safetensors")
    tensors = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(tensors["scores"], Z)
    np.testing.assert_array_equal(tensors["labels"], np.arange(30) % 4)
    assert bytes(tensors["ids"][7]).rstrip(b"\0") == b"v0007"
    header = path.read_bytes()
    length = int.from_bytes(header[:8], "little")
    metadata = json.loads(header[8 : 8 + length])["__metadata__"]
    assert metadata["payload"] == hashlib.sha256(Z.tobytes()).hexdigest()
    assert (8 + length + tensors["labels"].nbytes + tensors["ids"].nbytes) % 64 == 0


@settings(max_examples=50)
@given(st.data())
def test_any_part_comes_back(tmp_path_factory, data):
    names = data.draw(
        st.lists(
            st.text(
                st.characters(min_codepoint=33, exclude_characters="/\\:.\x7f", exclude_categories=["Cs", "Cc"]),
                min_size=1,
                max_size=12,
            ),
            min_size=1,
            max_size=6,
            unique=True,
        )
    )
    views = data.draw(st.sampled_from([None, 1, 3]))
    shape = (len(names), 4) if views is None else (len(names), views, 4)
    scores = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=shape)
    scores = scores.astype(data.draw(st.sampled_from([np.float16, np.float32])))
    labels = data.draw(st.sampled_from([None, np.arange(len(names))]))
    content = encode_part(np.array(names), scores, labels, "logits")
    path = tmp_path_factory.mktemp("part") / "part-a.safetensors"
    path.write_bytes(b"".join([content.head(), *content.body]))
    assert path.stat().st_size == content.size
    part = open_part(path)
    assert part.ids.tolist() == names and part.digest == content.digest and part.kind == "logits"
    np.testing.assert_array_equal(part.scores(), scores)
    assert (part.labels is None) == (labels is None)


def test_parts_are_checked_once_at_first_use(tmp_path, monkeypatch):
    with Immediate(tmp_path / "swin") as writer:
        writer.append(IDS, Z)
    (path,) = (tmp_path / "swin").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    loaded = load_stack(tmp_path)  # headers, ids and labels are fine
    with pytest.raises(CacheCorruptError, match="scores are not the bytes"):
        loaded.log_likelihoods()
    assert load_stack(tmp_path, verify=False).log_likelihoods().shape == (30, 1, 4)
    content[-1] ^= 1
    path.write_bytes(content)
    calls = []
    real = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *a: calls.append(a) or real(*a))
    loaded = load_stack(tmp_path)
    opening = len(calls)
    loaded.log_likelihoods()
    first_use = len(calls)
    load_stack(tmp_path).log_likelihoods()
    assert first_use == opening + 1 and len(calls) == first_use + opening


def test_many_writers_make_the_cache_that_one_makes(tmp_path):
    writers = [Immediate(tmp_path / "many", expected_ids=IDS) for _ in range(3)]
    for start in range(0, 30, 5):
        for rank, writer in enumerate(writers):
            names = [name for name in IDS[start : start + 5] if int(name[1:]) % 3 == rank]
            writer.append(names, Z[[int(name[1:]) for name in names]])
    with Immediate(tmp_path / "one", expected_ids=IDS) as writer:
        writer.append(IDS, Z)
    many, one = open_cache(tmp_path / "many"), open_cache(tmp_path / "one")
    assert len(many.parts) > 3 and many.ids.tolist() == one.ids.tolist() == IDS
    assert many.scores.tobytes() == one.scores.tobytes()


def test_the_order_is_that_of_the_expected_ids_or_sorted(tmp_path):
    order = IDS[::-1]
    for name, expected in (("given", order), ("sorted", None)):
        with Immediate(tmp_path / name, expected_ids=expected) as writer:
            writer.append(IDS[10:], Z[10:])
            writer.append(IDS[:10], Z[:10])
    assert open_cache(tmp_path / "given").ids.tolist() == order
    np.testing.assert_array_equal(open_cache(tmp_path / "given").scores, Z[::-1])
    assert open_cache(tmp_path / "sorted").ids.tolist() == IDS
    np.testing.assert_array_equal(open_cache(tmp_path / "sorted").scores, Z)


def test_parts_are_cut_by_bytes(tmp_path):
    with CacheWriter(tmp_path, part_bytes=8 * Z[0].nbytes) as writer:
        assert writer.append(IDS[:5], Z[:5]) == 0 and writer.missing(IDS[:7]) == IDS[5:7]
        assert not list(tmp_path.glob("*.safetensors"))
        assert writer.append(IDS[5:8], Z[5:8]) == 8
        writer.append(IDS[8:10], Z[8:10])
        assert writer.append(IDS[10:], Z[10:]) == 22  # what waits is published with it
        assert writer.flush() == 0
    cache = open_cache(tmp_path)
    assert len(cache) == 30 and sorted(map(len, cache.parts)) == [2, 6, 7, 7, 8]
    with pytest.raises(InputError, match="part_bytes: expected 1 or more"):
        CacheWriter(tmp_path, part_bytes=0)
    with pytest.raises(InputError, match="flush_seconds: expected 0 or more"):
        CacheWriter(tmp_path, flush_seconds=-1)
    with pytest.raises(RuntimeError, match="stop"), CacheWriter(tmp_path) as writer:
        writer.append(["new"], Z[:1])
        raise RuntimeError("stop")
    assert "new" in open_cache(tmp_path).ids.tolist()


def test_what_was_appended_is_published_in_time_though_nothing_follows(tmp_path):
    writer = CacheWriter(tmp_path, flush_seconds=0.05)
    assert writer.append(IDS[:4], Z[:4]) == 0
    writer._timer.join()  # it has nothing to wait for but its time
    assert open_cache(tmp_path).ids.tolist() == IDS[:4]
    assert writer.append(IDS[:4], Z[:4]) == 0 and writer.flush() == 0  # stored already: nothing waits


def test_what_waits_is_published_when_python_ends(tmp_path):
    code = """
import os, sys
import numpy as np
from vidfuse.cache.writer import CacheWriter
writer = CacheWriter(sys.argv[1])
writer.append(["a"], np.zeros((1, 3)))
if os.fork() == 0:
    sys.exit()  # a child leaves it to its parent
assert os.wait()[1] == 0 and not [name for name in os.listdir(sys.argv[1]) if name.startswith("part-")]
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert open_cache(tmp_path).ids.tolist() == ["a"]


def test_the_same_video_may_wait_once(tmp_path):
    with CacheWriter(tmp_path) as writer:
        writer.append(IDS[:4], Z[:4], [0, 1, -1, 2])
        assert writer.append(IDS[2:6], Z[2:6], [-1, 2, 3, 0]) == 0
        for scores, labels in ((Z[7:8], [0]), (Z[:1], [1]), (Z[:1], None)):
            with pytest.raises(CacheConflictError, match=r"'v0000' .* is appended already with other"):
                writer.append(IDS[:1], scores, labels)
    cache = open_cache(tmp_path)
    assert cache.labels.tolist() == [0, 1, -1, 2, 3, 0] and len(cache.parts) == 1
    np.testing.assert_array_equal(cache.scores, Z[:6])


def test_labels_may_be_known_for_some_videos(tmp_path):
    with Immediate(tmp_path / "swin") as writer:
        writer.append(IDS[:10], Z[:10])
        writer.append(IDS[10:20], Z[10:20], np.where(np.arange(10) % 2, np.arange(10) % 4, -1))
    cache = open_cache(tmp_path / "swin")
    known = np.array([-1] * 10 + [row % 4 if row % 2 else -1 for row in range(10)])
    assert cache.labels.tolist() == known.tolist() and [part.labels is None for part in cache.parts] == [True, False]
    assert load_stack(tmp_path, labelled=True).labels.tolist() == known[known >= 0].tolist()
    assert verify(tmp_path).ok
    (joined,) = consolidate(tmp_path)
    assert len(joined.parts) == 1 and joined.labels.tolist() == known.tolist()
    with pytest.raises(InputError, match="expected 0 to 3"):
        Immediate(tmp_path / "swin").append(["new"], Z[:1], [-2])


def test_a_conflict_that_is_found_late_is_told_and_costs_no_other_append(tmp_path):
    late = CacheWriter(tmp_path, flush_seconds=1e-3)
    with late._lock:
        late.append(IDS[:2], Z[:2])
        late.append(IDS[2:4], Z[2:4])
        with Immediate(tmp_path) as first:
            first.append(IDS[:1], Z[9:10])
        timer = late._timer
    timer.join()
    with pytest.raises(CacheConflictError, match="'v0000'"):
        late.append(IDS[5:6], Z[5:6])
    assert open_cache(tmp_path).ids.tolist() == [IDS[0], *IDS[2:4]]
    late.append(IDS[5:6], Z[5:6])
    late.close()
    assert open_cache(tmp_path).ids.tolist() == [IDS[0], *IDS[2:4], IDS[5]]


def test_a_full_disk_is_told_and_what_waits_is_tried_again(tmp_path, monkeypatch):
    writer = CacheWriter(tmp_path)
    writer.append(IDS[:4], Z[:4])
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space")))
        with pytest.raises(OSError, match="no space"):
            writer.flush()
        writer._flush_late()  # tells nobody
    writer._timer.cancel()
    assert writer.flush() == 4 and open_cache(tmp_path).ids.tolist() == IDS[:4]


def test_expected_ids_may_grow(tmp_path):
    with CacheWriter(tmp_path, expected_ids=IDS[:10]) as writer:
        writer.append(IDS[:10], Z[:10])
    assert not open_cache(tmp_path).missing
    with CacheWriter(tmp_path, expected_ids=[*IDS[20:5:-1], *IDS[:6]]) as more:
        assert more.missing() == IDS[20:9:-1]
        more.append(IDS[10:21], Z[10:21])
    grown = [*IDS[:10], *IDS[20:9:-1]]  # the known ones stay where they are
    assert open_cache(tmp_path).ids.tolist() == grown and open_cache(tmp_path).meta.expected_ids == tuple(grown)
    with CacheWriter(tmp_path, expected_ids=IDS[:10]) as writer:  # one that knows the shorter list
        assert writer.missing() == []
    with pytest.raises(CacheConflictError, match="with 3 ids, 2 of them the same"):
        CacheWriter(tmp_path, expected_ids=[*IDS[:2], IDS[29]])
    assert read_meta(tmp_path).expected_ids == tuple(grown)


def test_a_cache_that_grows_while_it_is_opened_is_read(tmp_path, monkeypatch):
    with Immediate(tmp_path, expected_ids=IDS[:10]) as writer:
        writer.append(IDS[:10], Z[:10])
    real = reader._open_parts

    def open_late(folder, check):
        if read_meta(folder).expected_ids == tuple(IDS[:10]):
            with Immediate(tmp_path, expected_ids=IDS[:12]) as writer:
                writer.append(IDS[10:12], Z[10:12])
        return real(folder, check)

    monkeypatch.setattr(reader, "_open_parts", open_late)
    assert open_cache(tmp_path).ids.tolist() == IDS[:12]


def test_a_folder_may_be_moved(tmp_path):
    with Immediate(tmp_path / "old" / "swin", expected_ids=IDS) as writer:
        writer.append(IDS[:10], Z[:10])
    (tmp_path / "old").rename(tmp_path / "new")
    with Immediate(tmp_path / "new" / "swin", expected_ids=IDS) as writer:
        assert writer.missing() == IDS[10:]
        writer.append(IDS[10:], Z[10:])
    np.testing.assert_array_equal(load_stack(tmp_path / "new").scores("swin"), Z)
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in (tmp_path / "new" / "swin").iterdir())


def test_a_writer_notices_parts_that_are_joined_or_set_aside_meanwhile(tmp_path):
    writer = Immediate(tmp_path, expected_ids=IDS)
    writer.append(IDS[:10], Z[:10])
    writer.append(IDS[10:20], Z[10:20])
    consolidate(tmp_path)
    assert writer.append(IDS[:25], Z[:25]) == 5
    for path in tmp_path.glob("joined-*"):
        path.rename(tmp_path / "elsewhere")
    assert writer.missing() == IDS[:20] + IDS[25:]
    assert writer.append(IDS, Z) == 25
    np.testing.assert_array_equal(open_cache(tmp_path).scores, Z)


def test_appends_must_look_alike(tmp_path):
    writer = Immediate(tmp_path, expected_ids=IDS)
    writer.append(IDS[:2], Z[:2])
    with pytest.raises(InputError, match=r"\(4, None\) as in the first append, got \(3, None\)"):
        writer.append(IDS[2:4], Z[2:4, :3])
    with pytest.raises(InputError, match="1 videos are not expected, such as 'stranger'"):
        writer.append(["stranger"], Z[:1])
    with pytest.raises(InputError, match=r"expected 2, got 1|expected 1, got 2|one for each row"):
        writer.append(IDS[2:4], Z[2:3])


def test_two_parts_that_contradict_each_other_are_never_mixed(tmp_path):
    for name, scores in (("a", Z), ("b", Z + 1)):
        with Immediate(tmp_path / name) as writer:
            writer.append(IDS if name == "a" else IDS[:5], scores if name == "a" else scores[:5])
    (older,) = (tmp_path / "a").glob("*.safetensors")
    (newer,) = (tmp_path / "b").glob("*.safetensors")
    os.utime(older, (1, 1))
    shutil.copy(newer, tmp_path / "a")
    with pytest.raises(CacheConflictError, match=f"'v0000': .*{newer.name if newer.name < older.name else older.name}"):
        open_cache(tmp_path / "a")
    report = verify(tmp_path / "a", quarantine=True)
    assert [problem.kind for problem in report.problems] == ["CacheConflictError"]
    assert report.problems[0].moved_to.name.startswith(newer.name)
    np.testing.assert_array_equal(open_cache(tmp_path / "a").scores, Z)


def test_repeated_videos_that_agree_are_read_once(tmp_path):
    for name, rows in (("a", slice(0, 20)), ("b", slice(10, 30))):
        with Immediate(tmp_path / name) as writer:
            writer.append(IDS[rows], Z[rows])
    (extra,) = (tmp_path / "b").glob("*.safetensors")
    shutil.copy(extra, tmp_path / "a")
    np.testing.assert_array_equal(open_cache(tmp_path / "a").scores, Z)
    assert verify(tmp_path / "a").ok


@pytest.mark.parametrize("views", [None, 2])
def test_consolidation_leaves_one_mapped_array(tmp_path, views):
    scores = Z if views is None else np.stack([Z] * views, axis=1)
    with Immediate(tmp_path / "swin", expected_ids=IDS[::-1]) as writer:
        for start in range(0, 30, 7):
            writer.append(IDS[start : start + 7], scores[start : start + 7], np.arange(start, min(start + 7, 30)) % 4)
    before = load_stack(tmp_path)
    (cache,) = consolidate(tmp_path)
    assert len(cache.parts) == 1 and cache.ids.tolist() == IDS[::-1] and not cache.scores.flags.owndata
    np.testing.assert_array_equal(cache.scores, scores[::-1])
    assert cache.labels.tolist() == (np.arange(30)[::-1] % 4).tolist()
    np.testing.assert_array_equal(before.scores("swin"), scores[::-1])  # still open on the parts that are gone
    assert verify(tmp_path).ok and len(consolidate(tmp_path)[0].parts) == 1
    with Immediate(tmp_path / "swin") as writer:
        assert writer.append(IDS[:3], scores[:3], [0, 1, 2]) == 0


def test_parts_are_joined_in_batches(tmp_path, monkeypatch):
    order = np.random.default_rng(3).permutation(30)
    with Immediate(tmp_path / "swin", expected_ids=IDS) as writer:
        for rows in np.split(order, 10):
            writer.append([IDS[row] for row in rows], Z[rows], rows % 4)
    row_bytes = Z[0].nbytes
    (cache,) = consolidate(tmp_path, batch_bytes=7 * row_bytes)
    assert [len(part) for part in cache.parts] == [6] * 5
    assert all(np.all(part.ids[1:] > part.ids[:-1]) for part in cache.parts)  # each in the cache's order
    np.testing.assert_array_equal(cache.scores, Z)
    assert cache.labels.tolist() == (np.arange(30) % 4).tolist() and verify(tmp_path).ok
    names = [part.path for part in cache.parts]
    (again,) = consolidate(tmp_path, batch_bytes=7 * row_bytes)
    assert [part.path for part in again.parts] == names  # long enough as they are
    room, real = [], publish

    def watched(*arguments):
        room.append(len(list((tmp_path / "swin").glob("*.safetensors"))))
        return real(*arguments)

    monkeypatch.setattr(upkeep, "publish", watched)
    (pairs,) = consolidate(tmp_path, batch_bytes=13 * row_bytes)
    assert room == [5, 4] and sorted(map(len, pairs.parts)) == [
        6,
        12,
        12,
    ]  # the old are gone before the next is written
    with pytest.raises(InputError, match="batch_bytes: expected 1 or more"):
        consolidate(tmp_path, batch_bytes=0)


def test_joining_takes_memory_for_a_block_not_for_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "_BLOCK", 1 << 16)
    monkeypatch.setattr(part_format, "_CHUNK", 1 << 16)
    scores = np.random.default_rng(0).normal(size=(4000, 1000)).astype(np.float32)
    with CacheWriter(tmp_path, part_bytes=1 << 20) as writer:
        writer.append([f"v{row:04d}" for row in range(4000)], scores)
    tracemalloc.start()
    consolidate(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20 and len(open_cache(tmp_path).parts) == 1  # of 16 MB
    np.testing.assert_array_equal(open_cache(tmp_path).scores, scores)


def test_repeated_videos_are_joined_once(tmp_path, monkeypatch):
    for rows in ([0, 1, 2], [2, 3, 4], [1, 4, 5]):  # as writers leave them that publish at the same instant
        content = encode_part(np.array(IDS)[rows], Z[rows], None, "logits")
        path = tmp_path / f"part-{content.digest[:8]}.safetensors"
        path.write_bytes(b"".join([content.head(), *content.body]))
    with Immediate(tmp_path) as writer:
        writer.append(IDS[6:7], Z[6:7])
    consolidate(tmp_path, batch_bytes=7 * Z[0].nbytes)
    np.testing.assert_array_equal(open_cache(tmp_path).scores, Z[:7])
    (cache,) = consolidate(tmp_path)
    assert len(cache.parts) == 1 and cache.parts[0].ids.tolist() == IDS[:7]


def test_a_writer_goes_on_where_parts_are_joined_at_any_moment(tmp_path, monkeypatch):
    """The parts that a writer has listed are joined each time before it opens one of them."""
    writer = Immediate(tmp_path, expected_ids=IDS)
    for start in (0, 4, 8):
        writer.append(IDS[start : start + 4], Z[start : start + 4])
    real = writer_module.open_part

    def late(path, **options):
        consolidate(tmp_path)
        return real(path, **options)

    monkeypatch.setattr(writer_module, "open_part", late)
    assert writer.append(IDS[2:6], Z[2:6]) == 0
    with pytest.raises(CacheConflictError, match="stored already with other scores"):
        writer.append(IDS[:1], Z[1:2])
    assert writer.append(IDS[10:20], Z[10:20]) == 8 and writer.missing() == IDS[20:]
    assert open_cache(tmp_path, partial=True).ids.tolist() == IDS[:20]


def test_a_cache_that_is_consolidated_while_it_is_opened_is_read(tmp_path, monkeypatch):
    with Immediate(tmp_path) as writer:
        writer.append(IDS[:20], Z[:20])
        writer.append(IDS[20:], Z[20:])
    real, joined = reader.open_part, []

    def late(path, **options):
        if not joined:
            joined.append(True)
            consolidate(tmp_path)
        return real(path, **options)

    monkeypatch.setattr(reader, "open_part", late)
    np.testing.assert_array_equal(open_cache(tmp_path).scores, Z)
    (part,) = tmp_path.glob("joined-*")
    part.rename(tmp_path / "elsewhere")
    part.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CacheFormatError, match="expected a regular file"):
        open_cache(tmp_path)


def test_a_crash_during_consolidation_loses_nothing(tmp_path, monkeypatch):
    with Immediate(tmp_path / "swin") as writer:
        for start in range(0, 30, 10):
            writer.append(IDS[start : start + 10], Z[start : start + 10])
    real = Path.unlink

    def interrupted(path, **options):
        real(path, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", interrupted)
        consolidate(tmp_path)
    assert len(list((tmp_path / "swin").glob("*.safetensors"))) == 3
    np.testing.assert_array_equal(open_cache(tmp_path / "swin").scores, Z)
    assert len(consolidate(tmp_path)[0].parts) == 1


def test_verify_reports_everything_and_changes_nothing_unasked(tmp_path):
    for name in ("swin", "x3d"):
        with Immediate(tmp_path / name, expected_ids=IDS) as writer:
            writer.append(IDS[:10], Z[:10])
            writer.append(IDS[10:20], Z[10:20])
    first, second = sorted((tmp_path / "swin").glob("*.safetensors"))
    os.truncate(first, 100)
    second.write_bytes(b"{}" * 50)
    (tmp_path / "x3d" / ".tmp-1-dead").touch()
    report = verify(tmp_path)
    assert [p.kind for p in report.problems] == ["CacheCorruptError", "CacheFormatError", "CacheIncompleteError"]
    assert report.parts == 2 and report.videos == 20 and not report.ok and len(report.swept) == 1
    assert "20 of 30" in str(report) and first.exists() and second.exists()
    report = verify(tmp_path, quarantine=True)
    assert not first.exists() and all(p.moved_to.exists() for p in report.problems[:2])
    assert [p.kind for p in verify(tmp_path).problems][-1] == "CacheIncompleteError"


def test_few_parts_of_all_members_stay_mapped(tmp_path, monkeypatch):
    for seed, member in enumerate(("swin", "x3d")):
        with Immediate(tmp_path / member) as writer:
            for row in range(10):
                writer.append(IDS[row : row + 1], Z[row : row + 1] + seed)
    released, own = [], Part.release

    def release(part):
        released.append(part.path)
        own(part)

    monkeypatch.setattr(reader, "_MAPPED", 3 * Z[0].nbytes)
    monkeypatch.setattr(reader, "_mapped", {})
    stack = load_stack(tmp_path)  # which releases the ids that it read
    monkeypatch.setattr(Part, "release", release)
    for _ in range(2):
        for row in range(10):
            for seed, member in enumerate(stack.members):
                np.testing.assert_array_equal(stack.scores(member, slice(row, row + 1))[0], Z[row] + seed)
    assert len(released) == 2 * 2 * 10 - 3
    assert len(reader._mapped) == 3
    del stack
    assert reader._mapped == {}


def test_pieces_are_views_of_the_parts_that_hold_the_rows(tmp_path):
    for name, order in (("as_written", np.arange(30)), ("permuted", np.random.default_rng(1).permutation(30))):
        with Immediate(tmp_path / name) as writer:
            for rows in (order[:8], order[8:16], order[16:24], order[24:]):
                writer.append([IDS[row] for row in rows], Z[rows], rows % 4)
    stack = load_stack(tmp_path)
    for rows in (slice(0, 30), slice(3, 7), slice(6, 18), slice(29, 30)):
        part = stack[rows]
        for column, name in enumerate(part.members):
            pieces = part.pieces(column)
            np.testing.assert_array_equal(np.concatenate(pieces), Z[rows])
            np.testing.assert_array_equal(part.scores(name), Z[rows])
            if name == "as_written":
                assert len(pieces) == (rows.stop + 7) // 8 - rows.start // 8
                assert not any(piece.flags.owndata for piece in pieces)
    assert stack.scores("as_written", slice(8, 8)).shape == (0, 4)
    true = true_scores(stack, stack.labels)
    np.testing.assert_array_equal(true, np.tile(Z[np.arange(30), np.arange(30) % 4], (2, 1)))


def test_a_damaged_description_is_refused(tmp_path):
    with Immediate(tmp_path) as writer:
        writer.append(IDS, Z)
    meta = tmp_path / "meta.json"
    text = meta.read_text()
    meta.write_text(text.replace('"n_classes": 4', '"n_classes": 5'))
    with pytest.raises(CacheCorruptError, match=r"meta\.json: not the bytes that were written"):
        open_cache(tmp_path)
    for broken in (
        "",
        "[]",
        "{",
        '{"format": "other", "version": 1, "digest": ""}',
        "[" * 100_000,
        text.replace("null", r'"\ud800"', 1),
    ):
        meta.write_text(broken)
        with pytest.raises(CacheFormatError, match=r"meta\.json"):
            open_cache(tmp_path)
    meta.unlink()
    meta.mkdir()
    with pytest.raises(CacheFormatError, match="expected a regular file"):
        open_cache(tmp_path)


def test_a_description_that_json_cannot_write_is_refused(tmp_path):
    for wrong in ({"name": "\ud800"}, {"loss": float("nan")}, {"object": object()}):
        with pytest.raises(InputError, match="fingerprint: expected a JSON value"):
            Immediate(tmp_path / "cache", fingerprint=wrong)
    assert not (tmp_path / "cache" / "meta.json").exists()


@pytest.mark.parametrize("layout", [{"indent": 1}, {"indent": 1, "ensure_ascii": False}, {"indent": 4}, {}])
@pytest.mark.parametrize(
    "ids", [["é, 1", 'a "b"', "]\u2028"], ["a", "bc"], ["x"], ["a\\", "b"], ["a, b", 'x",  "y'], ["]", "[", "日"]]
)
def test_a_description_that_another_program_laid_out_is_read(tmp_path, ids, layout):
    told = {"expected_ids": ["q"], "x": '"expected_ids": '}
    for member in ("swin", "x3d"):
        with Immediate(
            tmp_path / member, expected_ids=ids, fingerprint=told, view_plan=[1], classes=['"expected_ids": ', "k"]
        ) as writer:
            writer.append(ids, np.zeros((len(ids), 2), dtype=np.float32))
        path = tmp_path / member / "meta.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), **layout), encoding="utf-8")
        assert read_meta(tmp_path / member).expected_ids == tuple(ids)
        path.write_text(path.read_text(encoding="utf-8").replace('",\n  "', '", "'), encoding="utf-8")  # two on a line
        assert open_cache(tmp_path / member).meta.expected_ids == tuple(ids)
    with Immediate(tmp_path / "more", expected_ids=[*ids, "c"]) as writer:
        writer.append(["c"], np.zeros((1, 2), dtype=np.float32))
    assert [len(read_meta(tmp_path / name).expected_ids) for name in ("more", "swin")] == [len(ids) + 1, len(ids)]


def test_every_flipped_bit_of_the_description_is_noticed(tmp_path):
    with Immediate(tmp_path, expected_ids=IDS[:3]) as writer:
        writer.append(IDS[:3], Z[:3])
    meta = tmp_path / "meta.json"
    content = meta.read_bytes()
    values = json.loads(content)
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with meta.open("r+b", buffering=0) as stream:
            stream.write(damaged)
        try:
            cache = open_cache(tmp_path)
        except CacheError:
            continue
        assert json.loads(damaged) == values and len(cache) == 3  # blanks between values carry nothing


def test_a_part_of_another_cache_is_refused(tmp_path):
    for name, scores in (("swin", Z), ("x3d", Z[:, :3])):
        with Immediate(tmp_path / name) as writer:
            writer.append([f"{name}{i}" for i in range(30)], scores)
    (stray,) = (tmp_path / "x3d").glob("*.safetensors")
    shutil.copy(stray, tmp_path / "swin")
    with pytest.raises(CacheFormatError, match="the part belongs to another cache"):
        open_cache(tmp_path / "swin")


def test_finding_caches(tmp_path):
    with pytest.raises(InputError, match="found no folder"):
        find_shards(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"sub-folders with a meta\.json each"):
        load_stack(tmp_path)
    with Immediate(tmp_path / "swin") as writer:
        writer.append(IDS, Z)
    (tmp_path / "notes").mkdir()
    assert [*map(list, find_shards(tmp_path))] == [*map(list, find_shards(tmp_path / "swin"))] == [["swin"]]
    with pytest.raises(InputError, match="no cache for members 'tin'; there are 'swin'"):
        load_stack(tmp_path, members=["tin"])
    Immediate(tmp_path / "empty", expected_ids=IDS)
    assert [*map(list, find_shards(tmp_path))] == [["swin"]]


def test_a_cache_says_what_it_is(tmp_path):
    with Immediate(tmp_path / "swin", expected_ids=IDS) as writer:
        writer.append(IDS[:10], np.stack([Z[:10]] * 3, axis=1))
    with pytest.raises(CacheIncompleteError, match=r"10 of 30 videos are there; missing: 'v0010'"):
        open_cache(tmp_path / "swin")
    cache = open_cache(tmp_path / "swin", partial=True)
    assert "10 of 30 videos x 3 views x 4 classes, logits, float32, 1 parts" in repr(cache)
    assert cache.missing == IDS[10:] and len(cache) == 10


def test_a_pickled_run_of_rows_names_the_parts_that_hold_it(tmp_path):
    with Immediate(tmp_path / "swin", expected_ids=IDS) as writer:
        for start in range(0, 30, 3):
            writer.append(IDS[start : start + 3], Z[start : start + 3])
    stack = load_stack(tmp_path)
    for start, stop, parts in ((0, 3, 1), (4, 6, 1), (4, 7, 2), (27, 30, 1), (0, 30, 10)):
        sent = pickle.dumps(stack[start:stop])
        assert sent.count(b"part-") == parts
        np.testing.assert_array_equal(pickle.loads(sent).scores("swin"), Z[start:stop])
    for rows, parts in (([29, 0, 1], 2), ([4], 1), ([17, 2, 8, 5], 4)):
        sent = pickle.dumps(stack[rows])
        assert sent.count(b"part-") == parts
        np.testing.assert_array_equal(pickle.loads(sent).scores("swin"), Z[rows])


def test_a_pickled_stack_of_members_in_other_orders_keeps_its_rows(tmp_path):
    order = np.random.default_rng(1).permutation(30)
    for member, rows in (("swin", order), ("x3d", order[::-1][:20])):
        with Immediate(tmp_path / member) as writer:
            for start in range(0, len(rows), 4):
                writer.append([IDS[row] for row in rows[start : start + 4]], Z[rows[start : start + 4]])
    stack = load_stack(tmp_path, partial=True)
    again = pickle.loads(pickle.dumps(stack[3:11]))
    for member in stack.members:
        np.testing.assert_array_equal(again.scores(member), stack.scores(member)[3:11])
    assert pickle.dumps(stack[:1]).count(b"part-") == 2


def test_what_waits_for_one_cache_is_published_at_the_end_though_that_for_another_cannot_be(tmp_path, monkeypatch):
    class InOrder(set):
        def __iter__(self):
            return iter(sorted(super().__iter__(), key=lambda writer: writer.folder))

    monkeypatch.setattr(writer_module, "_waiting_writers", InOrder())
    writers = [CacheWriter(tmp_path / name) for name in ("a", "b", "c")]
    for writer in writers:
        writer.append(["v"], np.zeros((1, 2)))
    for gone in ("a", "b"):
        shutil.rmtree(tmp_path / gone)
    with pytest.raises(ExceptionGroup, match="waited to be written") as failed:
        writer_module._flush_all()
    assert [Path(error.filename).name for error in failed.value.exceptions] == ["a", "b"]
    assert open_cache(tmp_path / "c").ids.tolist() == ["v"]
    for writer in writers:
        writer._rest()


def test_what_a_block_could_not_write_is_said_once_and_tried_again_at_the_end(tmp_path):
    with pytest.raises(OSError, match="No such file"), CacheWriter(tmp_path / "a") as writer:
        writer.append(["v"], np.zeros((1, 2)))
        (tmp_path / "a").rename(tmp_path / "b")
    writer_module._flush_all()  # the error was that of the block
    assert len(writer._waiting) == 1
    (tmp_path / "b").rename(tmp_path / "a")
    writer_module._flush_all()
    assert open_cache(tmp_path / "a", partial=True).ids.tolist() == ["v"] and not writer._waiting


@pytest.mark.parametrize("chunk", [1 << 12, 5000, 1 << 22])
def test_a_part_is_checked_piece_by_piece_to_its_end(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("vidfuse.cache.format._CHUNK", chunk)
    scores = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
    with CacheWriter(tmp_path) as writer:
        writer.append([f"v{row:03d}" for row in range(300)], scores)
    (path,) = reader.list_parts(tmp_path)
    for hold in (True, False):
        open_part(path, hold=hold).verify()
    content = path.read_bytes()
    for place in (-1, -scores.nbytes, -scores.nbytes // 2):
        path.unlink()
        changed = bytearray(content)
        changed[place] ^= 16
        path.write_bytes(changed)
        for hold in (True, False):
            with pytest.raises(CacheCorruptError, match="scores are not the bytes that were written"):
                open_part(path, hold=hold).verify()


def test_parts_are_checked_ahead_of_their_use_and_a_bad_one_is_found_where_it_is_used(tmp_path, monkeypatch):
    z = np.random.default_rng(0).normal(size=(3, 40, 5)).astype(np.float32)
    ids = [f"v{row:02d}" for row in range(40)]
    for name, scores in zip("abc", z, strict=True):
        with CacheWriter(tmp_path / name) as writer:
            writer.append(ids, scores)
    bad = next((tmp_path / "b").glob("*.safetensors"))
    content = bytearray(bad.read_bytes())
    content[-1] ^= 1
    bad.write_bytes(content)
    checked = []
    known = Part.verify
    monkeypatch.setattr(Part, "verify", lambda part: (checked.append(part.path.parent.name), known(part))[1])
    with checking_ahead():
        caches = {name: open_cache(tmp_path / name) for name in "abc"}
        while len(checked) < 3:
            time.sleep(0.01)
    assert checked == ["a", "b", "c"]
    np.testing.assert_array_equal(caches["a"].scores, z[0])
    np.testing.assert_array_equal(caches["c"].scores, z[2])
    assert checked == ["a", "b", "c"]
    with pytest.raises(CacheCorruptError, match=bad.name):
        _ = caches["b"].scores
    with pytest.raises(CacheCorruptError, match=bad.name):
        load_stack(tmp_path, as_read=True).log_likelihoods()


def test_who_checks_ahead_waits_where_nothing_is_used_and_ends_with_the_context(tmp_path, monkeypatch):
    for name in "abcd":
        with CacheWriter(tmp_path / name) as writer:
            writer.append(["v"], np.zeros((1, 5), np.float32))
    checked = []
    known = Part.verify
    monkeypatch.setattr(Part, "verify", lambda part: (checked.append(part.path.parent.name), known(part))[1])
    monkeypatch.setattr(reader, "_AHEAD", 0)
    with checking_ahead():
        caches = {name: open_cache(tmp_path / name) for name in "abcd"}
        for name, meanwhile in zip("abc", (["a"], ["a", "b"], ["a", "b", "c"]), strict=True):
            while len(checked) < len(meanwhile):
                time.sleep(0.01)
            time.sleep(0.05)
            assert checked == meanwhile
            with glancing():
                _ = caches[name].source.take(slice(0, 1, 1))
            time.sleep(0.05)
            assert checked == meanwhile
            _ = caches[name].source.take(slice(0, 1, 1))
        while len(checked) < 4:
            time.sleep(0.01)
    assert [thread.name for thread in threading.enumerate() if thread.name == "checking ahead"] == []


def test_a_part_that_nobody_uses_does_not_hold_up_who_checks_ahead(tmp_path, monkeypatch):
    for name in "abcd":
        with CacheWriter(tmp_path / name) as writer:
            writer.append(["v"], np.zeros((1, 5), np.float32))
    checked = []
    monkeypatch.setattr(Part, "verify", lambda part: checked.append(part.path.parent.name))
    monkeypatch.setattr(reader, "_AHEAD", 20)  # bytes: one part
    with checking_ahead():
        caches = {name: open_cache(tmp_path / name) for name in "abcd"}
        for name in "bc":
            while name not in checked:
                time.sleep(0.01)
            assert checked[-1] == name
            caches[name].parts[0].used = True
        while "d" not in checked:
            time.sleep(0.01)
    assert checked == ["a", "b", "c", "d"]


def test_members_of_a_stack_hold_their_ids_and_labels_once(tmp_path):
    ids, z = [f"v{row}" for row in range(6)], np.zeros((6, 3), np.float32)
    for name, labels in (("a", [0, 1, 2, 0, 1, 2]), ("b", [0, 1, 2, 0, 1, 2]), ("c", None)):
        for shard in range(2):
            with CacheWriter(tmp_path / f"shard{shard}" / name, part_bytes=1, expected_ids=ids[shard::2]) as writer:
                for row in range(shard, 6, 2):
                    writer.append([ids[row]], z[:1], None if labels is None else [labels[row]])
    caches = [open_cache(tmp_path / "shard1" / name) for name in "abc"]
    first = caches[0].lean(None)
    second, third = (cache.lean(first) for cache in caches[1:])
    assert second.packed_ids is third.packed_ids is first.packed_ids and second.labels is first.labels
    assert third.labels is None and [cache.meta.expected_ids for cache in (first, second)] == [None, None]
    for lean, cache in zip((first, second, third), caches, strict=True):
        assert lean.ids.tolist() == cache.ids.tolist() == ids[1::2]
        assert [part.ids.tolist() for part in lean.parts] == [[name] for name in ids[1::2]]
        assert all(np.shares_memory(part.packed_ids, first.packed_ids) for part in lean.parts)
    stack = load_stack(tmp_path)
    assert stack.ids.tolist() == [*ids[::2], *ids[1::2]] and stack.labels.tolist() == [0, 2, 1, 1, 0, 2]


@pytest.mark.parametrize("texts", [("a", "b"), ("a", "bc"), ("é", "x"), ("日本", "ab"), ("", "")])
def test_ids_of_one_length_are_packed_as_others_are(texts):
    np.testing.assert_array_equal(pack_texts(texts), pack_ids(np.array(texts, dtype=np.str_)))
    assert pack_texts(texts) is pack_texts(texts)
