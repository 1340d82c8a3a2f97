"""`vidfuse shrink`: a folder of videos, encoded once to a short side."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from vidfuse._files import replace
from vidfuse.cli import options
from vidfuse.errors import InputError

__all__ = ["shrink"]

_COPIED = (".csv", ".json", ".txt")  # lists that lie among the videos
_SETTINGS = ".shrink.json"  # in a folder of small videos: how they are encoded


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("small", type=click.Path(file_okay=False, path_type=Path))
@click.option("--short-side", type=click.IntRange(min=16), default=256, help="In pixels.")
@click.option("--gop", type=options.COUNT, default=12, help="Distance of keyframes.")
@click.option("--crf", type=click.IntRange(0, 51), default=18, help="Quality; 0 is lossless.")
@click.option("--workers", type=click.IntRange(min=0), default=2, help="Processes that encode videos.")
@click.option("--allow-truncated", is_flag=True, help="Take what is left of videos that end early.")
@options.as_json
def shrink(data: Path, small: Path, short_side: int, gop: int, crf: int, workers: int, allow_truncated: bool) -> None:
    """Encode the videos of a folder DATA once, to a short side, into the folder SMALL; resumes where it stopped.

    Every file becomes an mp4 of the same place and name, so ids, lists (with `--root SMALL`) and class folders stay as
    they are; lists in the folder are copied. Then the time to decode a clip of 32 frames is measured on both.
    """
    # A target that is there was finished: `work.shrink` puts it in place whole. The others are encoded, one by one or
    # by processes; then lists are copied, and both folders are decoded for the times told at the end.
    lists = import_module("vidfuse.video.lists")
    processes, progress = (import_module(f"vidfuse.training.{name}") for name in ("processes", "progress"))
    work = import_module("vidfuse.video.shrink")
    if small.resolve().is_relative_to(data.resolve()):
        raise InputError(f"expected another folder than {data} for the small videos, and none within it, got {small}")
    found = lists.read_folder(data)
    progress.say(f"{data}: {found.summary()}")
    _keep_settings(small / _SETTINGS, {"short_side": short_side, "gop": gop, "crf": crf})
    targets = {item.path: (small / Path(item.path).relative_to(data)).with_suffix(".mp4") for item in found}
    todo = {source: target for source, target in targets.items() if not target.exists()}
    failures: dict[str, str] = {}
    began = time.perf_counter()
    options_of: dict[str, Any] = {"gop": gop, "crf": crf, "allow_truncated": allow_truncated}
    with ExitStack() as stack:
        bar = stack.enter_context(progress.bar(len(todo), 0, "shrink", "video", True, lines=True))
        pool = stack.enter_context(processes.worker_processes(workers)) if workers > 1 else None
        parts = {
            source: partial(work.shrink, source, target, short_side, **options_of) for source, target in todo.items()
        }
        if pool is not None:
            parts = {source: pool.submit(part).result for source, part in parts.items()}
        for n_done, (source, part) in enumerate(parts.items()):
            try:
                part()
            except InputError as error:
                failures[source] = str(error)
            except KeyboardInterrupt:
                kept = "what is written stays, and the rest follows when started again"
                progress.say(f"stopped after {n_done} videos of {len(todo)}: {kept}")
                raise
            bar.update()
    spent = time.perf_counter() - began
    for file in (file for file in lists.files_below(data) if file.suffix.lower() in _COPIED and file.is_file()):
        target = small / file.relative_to(data)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    done = {source: target for source, target in targets.items() if target.exists()}
    if not done:
        raise InputError(
            f"expected at least one video that can be decoded, got none; first: {next(iter(failures.items()))}"
        )
    bytes_of = [sum(Path(name).stat().st_size for name in names) for names in (done, done.values())]
    before, after = (_clip_seconds(list(names)[:8]) for names in (done, done.values()))
    text = (
        f"{len(todo) - len(failures)} videos encoded in {spent:.0f} s, {len(targets) - len(todo)} were there; "
        f"{bytes_of[0] / 1e6:.1f} MB became {bytes_of[1] / 1e6:.1f} MB\na clip of 32 frames is decoded in "
        f"{1e3 * after:.1f} ms, not {1e3 * before:.1f} ms: {before / after:.1f} times faster\nwritten to {small}"
    )
    text += "".join(f"\nleft out: {source}: {reason}" for source, reason in failures.items())
    result = {"encoded": len(todo) - len(failures), "present": len(targets) - len(todo), "bytes": bytes_of}
    options.emit({**result, "clip_seconds": [before, after], "failures": failures}, text)


def _keep_settings(path: Path, now: dict[str, int]) -> None:
    """Keep how a folder's videos are encoded, or hold a folder that goes on to how it was begun."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else now
    if before != now:
        differ = [f"--{name.replace('_', '-')} {before.get(name)}" for name in now if before.get(name) != now[name]]
        raise InputError(
            f"expected to go on as {path.parent} was begun, with {', '.join(differ)}; shrink into another folder"
        )
    replace(path, json.dumps(now) + "\n")


def _clip_seconds(files: list[Any]) -> float:
    """Return the median time to find and decode 32 frames of a file, every other one."""
    decoder, clips = (import_module(f"vidfuse.video.{name}") for name in ("decode", "clips"))
    spent = []
    for file in files:
        began = time.perf_counter()
        info = decoder.probe(file)
        decoder.decode(file, clips.loop(clips.uniform_interval(32, 2), info.n_frames), info=info)
        spent.append(time.perf_counter() - began)
    return sorted(spent)[len(spent) // 2]
