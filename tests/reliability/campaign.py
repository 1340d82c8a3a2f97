"""Try to make a cache lose, tear or mix up a prediction; the tests run a few rounds, this command as many as wanted.

``python tests/reliability/campaign.py --rounds 200 --payload-bits 10000 --truncations 1000 --fuzz-seconds 600``, or
``python tests/reliability/campaign.py --only fuzz --fuzz-seconds 600`` for the readers of files alone.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import crash_predictor  # noqa: E402
from crash_writer import JOINER, expected_ids, scores_of  # noqa: E402

from vidfuse.cache.format import _verified, open_part  # noqa: E402
from vidfuse.cache.reader import open_cache  # noqa: E402
from vidfuse.cache.upkeep import consolidate, verify  # noqa: E402
from vidfuse.cache.writer import CacheWriter  # noqa: E402
from vidfuse.errors import CacheError, InputError, VidfuseWarning  # noqa: E402
from vidfuse.formats.annotations import read_annotations  # noqa: E402
from vidfuse.formats.importers import read_predictions  # noqa: E402


def crash_rounds(
    rounds: int, *, writers: int = 3, videos: int = 240, batch: int = 4, seed: int = 0, joined: bool = False
) -> dict[str, int]:
    """Kill `writers` writers at random calls of the system, look at what is left, and resume until everything is there.

    With `joined`, another process joins their parts all the while, and is killed too.

    Every completed cache is joined into one part, and must then be, byte by byte and file by file, what one writer that
    nobody disturbed leaves.

    Returns:
        Counts: rounds, kills, temporaries left behind, and caches that were completed.

    Raises:
        AssertionError: A part was torn, something acknowledged was lost, or a resumed cache differs.
    """
    rng = random.Random(seed)  # noqa: S311
    ids = expected_ids(videos)
    reference = np.stack([scores_of(name) for name in ids])
    counts = {"rounds": 0, "kills": 0, "temporaries": 0, "completed": 0, "acknowledged": 0}
    folder = Path(tempfile.mkdtemp(prefix="campaign-"))
    undisturbed = _undisturbed(videos, batch)
    acknowledged: set[str] = set()
    try:
        while counts["rounds"] < rounds:
            counts["rounds"] += 1
            # An append makes nine calls, so that each writer dies in its share where that was not begun before.
            fatal = [rng.randint(1, 9 * videos // (writers * batch)) for _ in range(writers)]
            running = [_start(folder, rank, writers, videos, batch, fatal[rank]) for rank in range(writers)]
            if joined:
                running.append(_start(folder, JOINER, writers, videos, batch, rng.randint(1, 60)))
            _wait_until_ready(*running)
            for process in running:  # all of them write at the same time
                process.stdin.write("\n")
                process.stdin.flush()
            for process in running:
                output, _ = process.communicate()
                assert process.returncode in (0, -signal.SIGKILL)
                counts["kills"] += process.returncode == -signal.SIGKILL
                # A line that the kill cut off was not acknowledged.
                for line in output.splitlines(keepends=True):
                    if line.endswith("\n"):
                        acknowledged.update(line.split())
            counts["temporaries"] += len(list(folder.glob(".tmp-*")))
            if not _check_left(folder, acknowledged, reference, ids):
                continue
            cache = open_cache(folder)
            assert np.array_equal(cache.scores, reference) and cache.ids.tolist() == ids
            assert cache.labels.tolist() == [number % 50 for number in range(videos)]
            assert _joined_bytes(folder) == undisturbed
            counts["completed"] += 1
            counts["acknowledged"] += len(acknowledged)
            acknowledged.clear()
            shutil.rmtree(folder)
            folder.mkdir()
        counts["acknowledged"] += len(acknowledged)
        for rank in range(writers):  # an undisturbed run completes what is left
            _write_undisturbed(folder, rank, writers, videos, batch)
        assert np.array_equal(open_cache(folder).scores, reference)
        assert verify(folder).ok and not list(folder.glob(".tmp-*"))
        assert _joined_bytes(folder) == undisturbed
        counts["completed"] += 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return counts


def _start(folder: Path, *numbers: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "crash_writer.py"), str(folder), *map(str, numbers)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _wait_until_ready(*running: subprocess.Popen[str]) -> None:
    """Wait until these writers only wait to be told to begin."""
    for process in running:
        assert process.stdout.readline() == "ready\n"


def _write_undisturbed(folder: Path, *numbers: int) -> None:
    process = _start(folder, *numbers, 0)
    _wait_until_ready(process)
    process.communicate("\n")
    assert process.returncode == 0


def _undisturbed(videos: int, batch: int) -> dict[str, bytes]:
    folder = Path(tempfile.mkdtemp(prefix="undisturbed-"))
    try:
        _write_undisturbed(folder, 0, 1, videos, batch)
        return _joined_bytes(folder)
    finally:
        shutil.rmtree(folder)


def _joined_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a cache after its parts were joined, but temporaries, whose writers may still be waited for."""
    consolidate(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".tmp-")}


def _check_left(folder: Path, acknowledged: set[str], reference: np.ndarray, ids: list[str]) -> bool:
    """Whether the cache is complete; every part in it must be whole, right, and include what was acknowledged."""
    _verified.clear()
    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        part = open_part(path)
        part.verify()
        for name, row in zip(part.ids.tolist(), part.scores(), strict=True):
            assert np.array_equal(row, reference[int(name[5:])]), f"{name} holds other scores"
            found.add(name)
    lost = acknowledged - found
    assert not lost, f"acknowledged and lost: {sorted(lost)[:5]}"
    return len(found) == len(ids)


def predict_rounds(rounds: int, *, seed: int = 0) -> dict[str, int]:
    """Kill streaming predictions at random points until each is done, and hold it to the bytes of an undisturbed one.

    Half of the kills come in place of a flush, a rename or a removal; the others from outside, while some block is
    computed or written. Nothing may stand at the final name before all is written.

    Returns:
        Counts: rounds, kills, outputs that were finished after at least one, and the blocks that were computed for them
        beside those that an undisturbed run computes.

    Raises:
        AssertionError: An output differs, or is visible too early.
    """
    rng = random.Random(seed)  # noqa: S311
    counts = {"rounds": 0, "kills": 0, "finished": 0, "blocks": 0, "undisturbed_blocks": 0}
    folder = Path(tempfile.mkdtemp(prefix="predict-"))
    names = ["out.csv", "out.npz", "out.npy", "out"]
    with contextlib.suppress(ImportError):
        import pyarrow  # noqa: F401

        names.append("out.parquet")
    try:
        for name in names:
            command = [sys.executable, str(HERE / "crash_predictor.py"), str(folder / "undisturbed" / name), "0"]
            subprocess.run(command, check=True, capture_output=True)
        blocks = crash_predictor.VIDEOS // crash_predictor.BLOCK
        kills, computed, name = 0, 0, names[0]
        while counts["rounds"] < rounds or kills:
            done, seen = _predict(folder / name, rng, fatal=counts["rounds"] < rounds)
            counts["rounds"] += 1
            computed += seen
            if not done:
                kills += 1
                continue
            assert _bytes_of(folder / name) == _bytes_of(folder / "undisturbed" / name), name
            assert sorted(entry.name for entry in folder.iterdir()) == sorted(["undisturbed", name])
            counts["kills"] += kills
            counts["finished"] += kills > 0
            if kills:
                counts["blocks"] += computed
                counts["undisturbed_blocks"] += blocks
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
            kills, computed, name = 0, 0, names[(names.index(name) + 1) % len(names)]
    finally:
        shutil.rmtree(folder)
    return counts


def _predict(out: Path, rng: random.Random, *, fatal: bool) -> tuple[bool, int]:
    """Start one prediction and kill it; return whether it was done before, and how many blocks it began."""
    by_call = rng.random() < 0.5
    call = rng.randint(1, 60) if fatal and by_call else 0
    block = rng.randint(1, 25) if fatal and not by_call else 0
    command = [sys.executable, str(HERE / "crash_predictor.py"), str(out), str(call)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    seen = 0
    for _ in process.stdout:
        seen += 1
        if seen == block:
            process.kill()
    process.stdout.close()
    status = process.wait()
    assert status in (0, -signal.SIGKILL), status
    visible = out.exists()
    assert visible or status != 0
    if visible:  # also where the kill came when only the rest was to be removed
        left = out.with_name(f"{out.name}.partial")
        if status != 0 and left.exists():
            assert not (left / "output").exists()
            shutil.rmtree(left)
    return visible, seen


def _bytes_of(path: Path) -> dict[str, bytes]:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files}


def damage_rounds(payload_bits: int, truncations: int, *, seed: int = 0, rows: int = 256) -> dict[str, int]:
    """Flip every bit of a part's header and some of its payload, and cut it everywhere; all must be noticed.

    Returns:
        Counts of flips and truncations, all of them detected, and the largest allocation in bytes.
    """
    rng = random.Random(seed)  # noqa: S311
    folder = Path(tempfile.mkdtemp(prefix="damage-"))
    try:
        ids = [f"video{number:05d}" for number in range(rows)]
        with CacheWriter(folder) as writer:
            writer.append(ids, np.stack([scores_of(name) for name in ids]), [row % 50 for row in range(rows)])
        (path,) = folder.glob("*.safetensors")
        content = path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        bits = [*range(8 * header), *(rng.randrange(8 * header, 8 * len(content)) for _ in range(payload_bits))]
        cuts = [*range(header + 1), *(rng.randrange(header, len(content)) for _ in range(truncations))]
        largest = 0
        descriptor = os.open(path, os.O_RDWR)
        for number, bit in enumerate(bits):
            byte = content[bit // 8]
            os.pwrite(descriptor, bytes([byte ^ 1 << (bit % 8)]), bit // 8)
            measured = number % 16 == 0 or bit < 64  # the header's length is where memory is asked for
            largest = max(largest, _expect_error(path, f"bit {bit}", measured=measured))
            os.pwrite(descriptor, bytes([byte]), bit // 8)
        open_part(path).verify()
        for number, cut in enumerate(sorted(cuts, reverse=True)):
            os.ftruncate(descriptor, cut)
            largest = max(largest, _expect_error(path, f"truncation at {cut}", measured=number % 16 == 0))
        os.close(descriptor)
        assert largest <= 2 * len(content), f"{largest} bytes for a file of {len(content)}"
        return {
            "header_bits": 8 * header,
            "payload_bits": payload_bits,
            "truncations": len(cuts),
            "size": len(content),
            "largest_allocation": largest,
        }
    finally:
        shutil.rmtree(folder)


def _expect_error(path: Path, what: str, *, measured: bool) -> int:
    """Read a damaged part, which must raise a CacheError; return how many bytes that took where it is measured."""
    if measured:
        tracemalloc.start()
    try:
        open_part(path).verify()
    except CacheError:
        return tracemalloc.get_traced_memory()[1] if measured else 0
    finally:
        tracemalloc.stop()
    raise AssertionError(f"{what} was not noticed")


class Hostile:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def sample_files(folder: Path) -> list[Path]:
    """Small files of every format that is read, pickles written by pickle and NumPy alone, and pickles that attack."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 4)).astype(np.float32)
    ids = [f"video{number:05d}" for number in range(6)]
    labels = np.arange(6) % 4
    files: dict[str, bytes] = {
        "pyskl.pkl": pickle.dumps(list(scores)),
        "old.pkl": pickle.dumps([scores, labels], protocol=0),
        "slowfast.pkl": pickle.dumps([scores, labels], protocol=5),
        "dict.pkl": pickle.dumps({"scores": scores, "ids": ids, "labels": labels.tolist()}, protocol=2),
        "by_id.pkl": pickle.dumps(dict(zip(ids, scores, strict=True))),
        "by_number.pkl": pickle.dumps({np.int32(row): [list(map(float, values))] for row, values in enumerate(scores)}),
        "rows.pkl": pickle.dumps([(name, values, int(name[-1]) % 4) for name, values in zip(ids, scores, strict=True)]),
        "heads.pkl": pickle.dumps({"verb_output": scores, "noun_output": -scores, "narration_id": ids}),
        "packed.pkl.gz": gzip.compress(pickle.dumps([scores, labels])),
        "result.json": json.dumps(scores.tolist()).encode(),
        "by_id.json": json.dumps(dict(zip(ids, scores.tolist(), strict=True))).encode(),
        "0.txt": (
            "81.5, 90.0\n"
            + "".join(
                f"{n} {s.tolist()} {int(n[-1]) % 4} {c} 0\n" for n, s in zip(ids, scores, strict=True) for c in range(2)
            )
        ).encode(),
        "index.csv": (
            ",video,p0,p1,fold\n" + "".join(f"{i},{n},0.5,1e-3,{i % 3}\n" for i, n in enumerate(ids))
        ).encode(),
        "bare.tsv": "".join(f"{n}\t0.5\t{i}.25\n" for i, n in enumerate(ids)).encode(),
        "votes.csv": ("id,label\n" + "".join(f"{n},{i % 2}\n" for i, n in enumerate(ids))).encode(),
        "list_pairs.pkl": pickle.dumps((ids, labels.tolist())),
        "list_by_id.json": json.dumps(dict(zip(ids, labels.tolist(), strict=True))).encode(),
        "list_dicts.pkl": pickle.dumps({"annotations": [{"frame_dir": n, "label": 1} for n in ids], "split": {}}),
        "list_frames.txt": "".join(f"run/{n} {30 + i} 1\n" for i, n in enumerate(ids)).encode(),
        "list_table.csv": b"video;label;fold\na;run;1\nb;jump;2\n",
        "wide.csv": ("id,label,p0,p1\n" + "".join(f"{n},{i % 2},{i}.5,1e-3\n" for i, n in enumerate(ids))).encode(),
        "list_paths.txt": b"run/a.mp4 0\nrun/b.mp4 1\njump/c.mp4 2\n",
        "list_names.txt": b"label,videoid,split\n0,a,val\n1,b,val\n",
        "long.csv": b"id,class,score\na,0,0.25\na,1,2.75\nb,1,0.5\nb,0,0.5\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    np.save(folder / "plain.npy", scores)
    np.savez(folder / "plain.npz", scores=scores, labels=labels, ids=np.array(ids))
    np.savez_compressed(folder / "packed.npz", scores=scores)
    cells = np.empty((6, 2), dtype=object)
    for row in range(6):
        cells[row, 0], cells[row, 1] = np.tile(scores[row], (3, 1, 1)), int(labels[row])
    np.savez(folder / "tsn.npz", scores=cells, labels=labels)
    objects = np.empty(6, dtype=object)
    objects[:] = list(scores)
    np.save(folder / "objects.npy", objects)
    np.save(folder / "dict.npy", dict(zip(ids, scores, strict=True)))  # type: ignore[arg-type]
    np.save(folder / "list_ids.npy", np.array(ids))
    np.savez(folder / "names.npz", logits=scores, y_true=labels, video_names=np.array(ids), features=labels)
    for protocol in range(6):
        attacks = [Hostile(os.system, "touch executed"), Hostile(eval, "open('executed', 'w')"), list(scores)]
        (folder / f"hostile{protocol}.pkl").write_bytes(pickle.dumps(attacks, protocol=protocol))
    with contextlib.suppress(ImportError):
        import pyarrow
        import pyarrow.parquet

        columns = {"id": ids, "label": labels, **{f"p{k}": scores[:, k] for k in range(4)}}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "table.parquet")
    from safetensors.numpy import save_file

    save_file({"logits": scores, "labels": labels}, folder / "plain.safetensor")
    with contextlib.suppress(ImportError):
        import torch

        torch.save({"preds": torch.tensor(scores), "labels": torch.tensor(labels), "ids": ids}, folder / "torch.pt")
        torch.save([torch.tensor(values).bfloat16() for values in scores], folder / "list_of.pt")
        torch.save([torch.tensor(values) for values in scores], folder / "old.pt", _use_new_zipfile_serialization=False)
    from vidfuse.formats.export import write_predictions

    write_predictions(scores, folder / "mmaction2.pkl", ids=ids, labels=labels)
    with CacheWriter(folder / "cache") as writer:
        writer.append(ids, scores, labels)
    return sorted([*folder.glob("*.*"), *folder.glob("cache/*.*")])


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Change a file in one to four places: bits, bytes, lengths, copies, cuts."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data)) if data else 0
        choice = rng.randrange(6)
        if not data or choice == 0:
            data[at:at] = rng.randbytes(rng.randint(1, 9))
        elif choice == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif choice == 2:
            data[at] = rng.choice(b"\x00\xff\x7f\x80.(]}tRcb\x93\x94BX\x8e\x96")
        elif choice == 3:
            del data[at : at + rng.randint(1, 16)]
        elif choice == 4:
            end = at + rng.randint(1, 32)
            data[at:at] = data[at:end] * rng.choice([1, 2, 50])
        else:
            data[at : at + 8] = rng.choice([0, 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1]).to_bytes(8, "little")
    return bytes(data)


def read_any(path: Path) -> None:
    """Read a file as what its name says it is: a part of a cache, or a dump."""
    if path.suffix == ".safetensors":
        open_part(path).verify()
    elif path.name == "meta.json":
        open_cache(path.parent)
    elif path.name.startswith("list_") and path.suffix != ".pt":
        read_annotations(path, classes="sorted")
    else:
        votes = path.name.startswith("votes")
        kind = "probabilities" if votes else "logits"
        classes = ["run", "jump"] if votes else None
        read_predictions({"member": path}, kind=kind, views="mean-log", head="verb", classes=classes)


_FORBIDDEN = frozenset({"os.exec", "os.fork", "os.posix_spawn", "os.system", "pickle.find_class", "subprocess.Popen"})
_watching: list[bool] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: while a mutated file is read, no program may start, no name be unpickled, no file be written."""
    if not _watching:
        return
    if event in _FORBIDDEN or (event == "open" and set(str(arguments[1])) & set("wax+")):
        _watching.clear()
        raise SystemExit(f"reading a file led to {event}{arguments}")


def fuzz(seconds: float = math.inf, *, rounds: float = math.inf, seed: int = 0) -> dict[str, float]:
    """Read mutated files of every format, so many or for so long: only this package's errors may come out.

    Returns:
        Counts of files, of those refused, the slowest read in seconds, the largest allocation in bytes as Python counts
        them, and by how much the process grew, which includes what other libraries took.
    """
    rng = random.Random(seed)  # noqa: S311
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    warnings.simplefilter("ignore", VidfuseWarning)
    sys.addaudithook(_watch)
    counts: dict[str, float] = {"files": 0, "refused": 0, "slowest_seconds": 0.0, "largest_allocation": 0}
    try:
        samples = [(path, path.read_bytes()) for path in sample_files(folder)]
        for path, _ in samples:
            if not path.name.startswith("hostile"):
                read_any(path)
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tracemalloc.start()  # once: each start takes memory that stop does not give back
        until = time.monotonic() + seconds
        while time.monotonic() < until and counts["files"] < rounds:
            path, content = rng.choice(samples)
            mutated = mutate(content, rng)
            path.write_bytes(mutated)
            tracemalloc.reset_peak()
            held = tracemalloc.get_traced_memory()[0]
            started = time.monotonic()
            try:
                _watching.append(True)
                with contextlib.suppress(CacheError, InputError):
                    counts["refused"] += 1
                    read_any(path)
                    counts["refused"] -= 1
                _watching.clear()
            except BaseException:
                _watching.clear()
                saved = Path(tempfile.gettempdir()) / f"fuzz-failure{path.suffix}"
                saved.write_bytes(mutated)
                print(f"not refused properly: {saved} (from {path.name})", file=sys.stderr)
                raise
            counts["slowest_seconds"] = max(counts["slowest_seconds"], time.monotonic() - started)
            peak = tracemalloc.get_traced_memory()[1] - held
            counts["largest_allocation"] = max(counts["largest_allocation"], peak)
            assert peak < (1 << 22) + 64 * len(mutated), f"{path.name}: {peak} bytes for {len(mutated)}"
            path.write_bytes(content)  # a description and its part are read together
            counts["files"] += 1
        counts["grown_bytes"] = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident)
        assert counts["grown_bytes"] < 1 << 26
    finally:
        _watching.clear()
        tracemalloc.stop()
        shutil.rmtree(folder)
    return counts


def main() -> None:
    """Run the whole campaign, and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--payload-bits", type=int, default=10_000)
    parser.add_argument("--truncations", type=int, default=1_000)
    parser.add_argument("--fuzz-seconds", type=float, default=600)
    parser.add_argument("--only", choices=["crash", "joining", "predict", "damage", "fuzz"], help="one part alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    parts = {
        "crash": lambda: crash_rounds(options.rounds, seed=options.seed),
        "joining": lambda: crash_rounds(options.rounds, writers=2, seed=options.seed, joined=True),
        "predict": lambda: predict_rounds(options.rounds, seed=options.seed),
        "damage": lambda: damage_rounds(options.payload_bits, options.truncations, seed=options.seed),
        "fuzz": lambda: fuzz(options.fuzz_seconds, seed=options.seed),
    }
    figures = {name: run() for name, run in parts.items() if options.only in (None, name)}
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
