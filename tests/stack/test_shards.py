"""Shards: several folders of members as one stack, in order, without a copy; what must agree between them."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidfuse.cache.shards import by_number, find_shards
from vidfuse.cache.writer import CacheWriter
from vidfuse.errors import (
    AlignmentError,
    CacheConflictError,
    InputError,
    VidfuseWarning,
)
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.stack.open import load_stack
from vidfuse.stack.source import ArraySource, JoinedSource, compose_rows, resolve_rows
from vidfuse.stack.stack import LogitStack

RNG = np.random.default_rng(7)
IDS = np.array([f"v{i:03d}" for i in RNG.permutation(60)])
LABELS = RNG.integers(0, 4, 60)
Z = {name: (RNG.normal(size=(60, 4)) + 1.5 * np.eye(4)[LABELS]).astype(np.float32) for name in ("swin", "x3d")}


def write(folder, rows, members=("swin", "x3d"), *, labels=True, fingerprint=None, **settings):
    for name in members:
        with CacheWriter(folder / name, expected_ids=IDS[rows], fingerprint=fingerprint, **settings) as writer:
            known = LABELS[rows] if labels is True else None if labels is False else labels
            writer.append(IDS[rows], Z[name][rows], known)


def whole():
    return LogitStack.from_arrays(Z, labels=LABELS, ids=IDS)


@pytest.fixture
def shards(tmp_path):
    for number, start in enumerate((0, 15, 40)):
        write(tmp_path / f"shard{number * 5}", slice(start, (15, 40, 60)[number]))
    return tmp_path


def test_shards_are_one_stack_in_the_order_given(shards):
    folders = [shards / f"shard{n}" for n in (0, 5, 10)]
    for source in (shards, folders, f"{shards}/shard*", [f"{shards}/shard[05]", folders[2]]):
        stack = load_stack(source)
        assert stack.ids.tolist() == IDS.tolist() and stack.labels.tolist() == LABELS.tolist()
        for name in Z:
            np.testing.assert_array_equal(stack.scores(name), Z[name])
            # a view of the mapped file, not a copy
            assert stack.scores(name, slice(3, 12)).base is not None
    back = load_stack(folders[::-1])
    assert back.ids.tolist() == [*IDS[40:], *IDS[15:40], *IDS[:15]]
    by_member = load_stack({"swin": f"{shards}/shard*/swin", "mine": [folder / "x3d" for folder in folders]})
    assert by_member.members == ("swin", "mine")
    np.testing.assert_array_equal(by_member.scores("mine"), Z["x3d"])


def test_a_fit_on_shards_is_a_fit_on_all_to_the_bit(shards, tmp_path_factory):
    one = tmp_path_factory.mktemp("one")
    write(one, slice(0, 60))
    found, known = LogLinearPool().fit(load_stack(shards)), LogLinearPool().fit(load_stack(one))
    assert found.weights_.tobytes() == known.weights_.tobytes() and found.temperature_ == known.temperature_
    test = load_stack(shards)
    assert found.predict_log_proba(test).tobytes() == known.predict_log_proba(whole()).tobytes()


def test_a_share_of_a_stack_takes_only_its_own_shards_along(shards):
    stack = load_stack(shards)
    share = stack[16:39]  # within the second of three
    sent = pickle.loads(pickle.dumps(share))
    (source,) = {len(member.source.parts) for member in sent.sources()}
    assert source == 1
    np.testing.assert_array_equal(sent.log_likelihoods(), share.log_likelihoods())
    assert len(pickle.dumps(share)) < len(pickle.dumps(stack))


@settings(max_examples=60)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_joined_sources_read_as_one_array(sizes, data):
    arrays = [np.random.default_rng(n).normal(size=(size, 3)) for n, size in enumerate(sizes)]
    source = JoinedSource([(ArraySource(a), slice(0, len(a), 1)) for a in arrays])
    everything, n = np.concatenate(arrays), sum(sizes)
    rows = data.draw(
        st.one_of(
            st.lists(st.integers(0, n - 1), max_size=9).map(lambda r: np.array(r, dtype=np.int64)),
            st.tuples(st.integers(0, n), st.integers(0, n)).map(lambda r: slice(min(r), max(r), 1)),
        )
    )
    np.testing.assert_array_equal(source.take(rows), everything[rows])
    np.testing.assert_array_equal(np.concatenate(source.pieces(rows)), everything[rows])
    sent, where = source.restricted(rows)
    np.testing.assert_array_equal(sent.take(where), everything[rows])
    np.testing.assert_array_equal(
        sent.take(compose_rows(where, resolve_rows(slice(1, None), len(everything[rows])))), everything[rows][1:]
    )
    lacking = np.array([-1, 0, -1])
    sent, where = source.restricted(lacking)
    assert where.tolist() == [-1, 0, -1]
    np.testing.assert_array_equal(sent.take(where)[1], everything[0])


def test_a_shard_that_lacks_a_member_holds_videos_that_the_member_lacks(tmp_path):
    write(tmp_path / "shard0", slice(0, 20))
    write(tmp_path / "shard1", slice(20, 40), members=["x3d"])
    write(tmp_path / "shard2", slice(40, 60))
    with pytest.raises(AlignmentError, match=r"'swin' has no cache in 1 of 3 shards: .*shard1"):
        load_stack(tmp_path)
    inner = load_stack(tmp_path, join="inner")
    assert inner.ids.tolist() == [*IDS[:20], *IDS[40:]] and inner.present is None
    outer = load_stack(tmp_path, join="outer")
    assert outer.ids.tolist() == IDS.tolist() and outer.labels.tolist() == LABELS.tolist()
    assert outer.present[:, 0].tolist() == [True] * 20 + [False] * 20 + [True] * 20 and outer.present[:, 1].all()
    np.testing.assert_array_equal(outer.scores("swin")[outer.present[:, 0]], Z["swin"][outer.present[:, 0]])
    sent = pickle.loads(pickle.dumps(outer[10:30]))
    np.testing.assert_array_equal(sent.log_likelihoods(), outer[10:30].log_likelihoods())
    write(tmp_path / "shard1", slice(20, 40), members=["swin"])  # the member is added later
    np.testing.assert_array_equal(load_stack(tmp_path).scores("swin"), Z["swin"])


def test_members_may_be_cut_into_shards_in_different_places(tmp_path):
    for number, start in enumerate((0, 30)):
        write(tmp_path / f"a{number}", slice(start, start + 30), members=["swin"])
    for number, start in enumerate((0, 20, 40)):
        write(tmp_path / f"b{number}", slice(start, start + 20), members=["x3d"])
    stack = load_stack([f"{tmp_path}/a*", f"{tmp_path}/b*"])
    assert stack.ids.tolist() == IDS.tolist()
    for name in Z:
        np.testing.assert_array_equal(stack.scores(name), Z[name])


def test_a_video_in_two_shards_is_refused_with_both(tmp_path):
    write(tmp_path / "shard0", slice(0, 20))
    write(tmp_path / "shard1", slice(19, 40))
    with pytest.raises(InputError, match=rf"both in .*shard0.* and in .*shard1.*: '{IDS[19]}'"):
        load_stack(tmp_path)


def test_shards_of_two_models_are_refused_unless_they_are_folds(tmp_path):
    for number in range(2):
        write(tmp_path / f"fold{number}", slice(30 * number, 30 * number + 30), fingerprint={"fold": number})
    with pytest.raises(CacheConflictError, match=r'fingerprint differs .* \{"fold": 0\} in .*fold0.*folds=True'):
        load_stack(tmp_path)
    assert len(load_stack(tmp_path, folds=True)) == 60
    with CacheWriter(tmp_path / "other" / "swin", kind="sum") as writer:
        writer.append(["new"], np.full((1, 4), 0.5, dtype=np.float32))
    with pytest.raises(AlignmentError, match="kind differs between its shards"):
        load_stack([tmp_path / "fold0", tmp_path / "other"], members="swin", join="inner")


def test_classes_in_another_order_are_aligned_by_name(tmp_path):
    names = ("a", "b", "c", "d")
    write(tmp_path / "shard0", slice(0, 30), classes=names)
    turned = [2, 0, 3, 1]
    for name in Z:
        with CacheWriter(tmp_path / "shard1" / name, classes=[names[k] for k in turned]) as writer:
            writer.append(IDS[30:], Z[name][30:][:, turned], np.argsort(turned)[LABELS[30:]])
    stack = load_stack(tmp_path)
    assert stack.classes == names and stack.ids.tolist() == [*IDS[:30], *sorted(IDS[30:])]
    row = {name: n for n, name in enumerate(IDS.tolist())}
    order = [row[name] for name in stack.ids.tolist()]
    assert stack.labels.tolist() == LABELS[order].tolist()
    np.testing.assert_array_equal(stack.scores("x3d"), Z["x3d"][order])
    with CacheWriter(tmp_path / "shard2" / "swin", classes=["a", "b", "c", "e"]) as writer:
        writer.append(["new"], np.zeros((1, 4)))
    with pytest.raises(AlignmentError, match=r"swin in .*shard2.*its classes are others"):
        load_stack(tmp_path, members="swin")


def test_views_are_reduced_shard_by_shard(tmp_path):
    for number in range(2):
        rows = slice(30 * number, 30 * number + 30)
        with CacheWriter(tmp_path / f"shard{number}" / "swin", expected_ids=IDS[rows]) as writer:
            writer.append(IDS[rows], np.stack([Z["swin"][rows], Z["x3d"][rows]], axis=1))
    viewed = LogitStack.from_arrays({"swin": np.stack([Z["swin"], Z["x3d"]], axis=1)}, views="mean-log")
    np.testing.assert_array_equal(load_stack(tmp_path, views="mean-log").scores("swin"), viewed.scores("swin"))
    assert load_stack(tmp_path).n_views == 2
    later = load_stack(tmp_path, views="mean-log", as_read=True)
    np.testing.assert_array_equal(later.scores("swin"), viewed.scores("swin"))
    np.testing.assert_array_equal(later[::-2].scores("swin"), viewed.scores("swin")[::-2])
    assert later.kinds == ("log-likelihoods",)


@pytest.mark.parametrize("join", ["exact", "outer"])
def test_shards_of_one_member_are_not_read_as_members(tmp_path, join):
    """Where each shard is a cache itself, its name looks like a member's: no word decides that unasked."""
    for number in range(3):
        rows = slice(20 * number, 20 * number + 20)
        with CacheWriter(tmp_path / f"0{number}", expected_ids=IDS[rows]) as writer:
            writer.append(IDS[rows], Z["swin"][rows], LABELS[rows])
    with pytest.raises(InputError, match="are read as members, and no two of them have a video in common"):
        load_stack(tmp_path, join=join)
    with pytest.raises(InputError, match="no two of them have a video in common"):
        load_stack([tmp_path / "00", tmp_path / "01"], join=join)
    named = load_stack({"swin": tmp_path}, join=join)
    np.testing.assert_array_equal(named.scores("swin"), Z["swin"])
    assert len(load_stack(tmp_path / "00")) == 20


def test_members_may_be_called_by_numbers(tmp_path):
    for member, rows in (("fold0", slice(0, 20)), ("fold1", slice(0, 20)), ("fold2", slice(10, 30))):
        with CacheWriter(tmp_path / member) as writer:
            writer.append(IDS[rows], Z["swin"][rows], LABELS[rows])
    assert load_stack(tmp_path, members=["fold0", "fold1"]).shape == (20, 2, 4)
    assert load_stack(tmp_path, members=["fold1", "fold2"], join="outer").shape == (30, 2, 4)


def test_labels_that_are_known_for_some_videos(tmp_path):
    write(tmp_path / "shard0", slice(0, 30))
    write(tmp_path / "shard1", slice(30, 60), labels=False)
    with pytest.warns(VidfuseWarning, match="30 of 60 videos have a label"):
        assert load_stack(tmp_path).labels is None
    known = load_stack(tmp_path, labelled=True)
    assert known.ids.tolist() == IDS[:30].tolist() and known.labels.tolist() == LABELS[:30].tolist()
    with pytest.raises(InputError, match=r"no video of .* has a label"):
        load_stack(tmp_path / "shard1", labelled=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_stack(tmp_path / "shard0", labelled=True).labels.tolist() == LABELS[:30].tolist()


def test_a_folder_is_what_it_holds(shards, tmp_path_factory):
    assert [*map(list, find_shards(shards))] == [["swin", "x3d"]] * 3
    with CacheWriter(shards / "stray") as writer:
        writer.append(["a"], np.zeros((1, 4)))
    with pytest.raises(
        InputError, match=r"holds caches \('stray'\), .* and folders of caches .* as a parent of shards"
    ):
        load_stack(shards)
    with pytest.raises(InputError, match="none matches this pattern"):
        load_stack(f"{shards}/part*")
    with pytest.raises(InputError, match="each file once"):
        load_stack([shards / "shard0", shards / "shard0"])
    begun = tmp_path_factory.mktemp("begun")
    write(begun / "shard0", slice(0, 15))
    (begun / "shard1").mkdir()
    (begun / "notes").mkdir()
    with pytest.raises(InputError, match="'shard1' holds no cache, while 'shard0' does"):
        load_stack(begun)
    (begun / "shard1").rmdir()
    assert len(load_stack(begun)) == 15
    write(begun / "test", slice(15, 30))
    with pytest.raises(InputError, match=r"not numbered as shards are \('shard0', 'test'\)"):
        load_stack(begun)
    assert len(load_stack(f"{begun}/*[0t]")) == 30


def test_digits_that_are_no_numbers_are_texts():
    """A superscript is a digit, and no number."""
    assert sorted(["m10", "m²3", "m2", "1²2", "1²10"], key=by_number) == ["1²2", "1²10", "m2", "m10", "m²3"]


def test_a_pattern_means_folders_and_not_the_files_beside_them(shards):
    """A prediction into a folder writes its configuration beside it, and a pattern for the one matches the other."""
    (shards / "shard0.config.json").write_text("{}")
    assert load_stack(f"{shards}/shard*").ids.tolist() == IDS.tolist()
    assert load_stack({"swin": f"{shards}/shard*/swin*"}).ids.tolist() == IDS.tolist()


@pytest.mark.parametrize("kept", ["a link to nowhere", "a prediction under way"])
def test_a_shard_that_is_not_there_yet_is_not_left_out(tmp_path, kept):
    """Read without it, its videos would be missing and nobody would say so."""
    write(tmp_path / "shards" / "shard0", slice(0, 15))
    write(tmp_path / "fused", slice(0, 15), ["swin"])
    (tmp_path / "fused" / "swin").rename(tmp_path / "fused" / "shard0")
    for parent in ("shards", "fused"):
        absent = tmp_path / parent / ("shard1" if kept == "a link to nowhere" else "shard1.partial")
        if kept == "a link to nowhere":
            absent.symlink_to(tmp_path / "not mounted")
        else:
            (absent / "output").mkdir(parents=True)
            (absent / "lock").touch()
        source = {"shards": tmp_path / "shards", "fused": {"fused": tmp_path / "fused"}}[parent]
        with pytest.raises(InputError, match=f"'{absent.name}' holds no cache, while 'shard0' does"):
            load_stack(source)
        absent.unlink() if absent.is_symlink() else (absent / "lock").unlink()
        if absent.exists():
            (absent / "output").rmdir()
            absent.rmdir()
        assert len(load_stack(source)) == 15


def test_an_output_under_way_among_members_is_no_member(tmp_path):
    """So that a prediction into the folder it reads can go on after a kill."""
    write(tmp_path, slice(0, 15))
    write(tmp_path / "fused.partial", slice(0, 15), ["swin"])
    (tmp_path / "fused.partial" / "lock").touch()
    assert load_stack(tmp_path).members == ("swin", "x3d")


def test_a_shard_that_is_given_twice_is_refused(shards):
    for source in ([shards, f"{shards}/shard5"], {"swin": [shards / "shard0/swin"] * 2}):
        with pytest.raises(InputError, match=r"each (shard|file) once, got .*(5|swin)'? twice"):
            load_stack(source)
    (shards / "again").symlink_to(shards / "shard5")
    with pytest.raises(InputError, match=r"shard5/swin and .*again/swin, which are the same folder"):
        load_stack([shards / "shard5", shards / "again"])
    assert len(load_stack({"a": shards / "shard0/swin", "b": shards / "shard0/swin"})) == 15


def test_a_stack_travels_to_workers_that_start_in_another_folder(shards, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(shards)
    sent = pickle.dumps(load_stack(["shard0", "shard5"])[3:20])
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    np.testing.assert_array_equal(pickle.loads(sent).scores("swin"), Z["swin"][3:20])
