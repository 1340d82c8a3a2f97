"""The embedded data set: motion capture of real people, rendered to real videos in the layout of the challenge.

`render_motion` films 15 recorded human actions (one recording an action). Every video has its own camera, playing
speed, starting phase, clothes and background; every performer has a body and a bearing of its own, and appears in one
split only. The videos are written as `.mp4` files in the folder and annotation layout of Kinetics400ViPriors. What the
splits share is the recording, so this is a data set to exercise and compare methods on, not to publish accuracies of.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from motion.filming import render_clip
from motion.plan import SPLITS, MotionPlan
from vidfuse.errors import InputError, MissingExtraError

try:
    import av
except ImportError as error:
    raise MissingExtraError("writing the rendered videos", "video") from error

__all__ = ["MotionSet", "encode", "performers", "render_motion", "render_share"]

_NAME = "Kinetics400ViPriors"


@dataclass(frozen=True)
class MotionSet:
    """A rendered data set: `root` is the challenge's folder, `test_labels` a csv (`label,videoid`) kept outside it."""

    root: Path
    test_labels: Path
    rendered: int


@dataclass(frozen=True)
class _Video:
    """One video of a plan."""

    split: str
    action: str
    number: int
    id: str
    damaged: bool


def _videos(plan: MotionPlan) -> list[_Video]:
    """Every video of the plan; ids are hashes, so they tell nothing of the class and change with the plan."""
    plan_json = json.dumps(asdict(plan), sort_keys=True)
    videos = []
    for split in SPLITS:
        for number in range(getattr(plan, split)):
            for action in plan.actions:
                digest = hashlib.sha256(f"{plan_json}/{split}/{action}/{number}".encode()).hexdigest()[:11]
                # The damaged ones are the last number of the first actions, so no class loses more than one.
                damaged = number == getattr(plan, split) - 1 and plan.actions.index(action) < plan.damaged
                videos.append(_Video(split, action, number, digest, damaged))
    return videos


def performers(plan: MotionPlan) -> dict[str, str]:
    """Return who performs each video, {id: performer}: whoever is seen in several videos is seen in one split only.

    Example:
        >>> plan = MotionPlan(train=2, val=1, test=1, actions=("walk", "jump"))
        >>> sorted(performers(plan).values())
        ['test 0', 'test 0', 'train 0', 'train 0', 'train 1', 'train 1', 'val 0', 'val 0']
    """
    return {video.id: f"{video.split} {video.number}" for video in _videos(plan)}


def encode(frames: NDArray[np.uint8], fps: int) -> bytes:
    """Return the bytes of an `.mp4` file (H.264, a key frame every 12 frames)."""
    buffer = io.BytesIO()
    # x264's macroblock tree reads memory that it has not written: with it the same frames give other bytes each time.
    options = {"preset": "veryfast", "crf": "22", "g": "12", "x264-params": "mbtree=0"}
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _publish(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise type(error)(error.errno, error.strerror, str(path)) from error


def _render(video: _Video, plan: MotionPlan, root: Path) -> None:
    data = encode(render_clip(video.action, plan, video.split, video.number), plan.fps)
    _publish(root / video.split / f"{video.id}.mp4", data[: len(data) // 3] if video.damaged else data)


def render_share(folder: str, plan_json: str, worker: int, workers: int) -> None:
    """Render every `workers`-th missing video and print its id; what a worker process runs."""
    values = json.loads(plan_json)
    plan = MotionPlan(**(values | {"actions": tuple(values["actions"])}))
    root = Path(folder) / _NAME
    for video in _videos(plan)[worker::workers]:
        if not (root / video.split / f"{video.id}.mp4").exists():
            _render(video, plan, root)
            print(video.id, flush=True)


def _render_in_processes(folder: Path, plan: MotionPlan, workers: int) -> Iterator[None]:
    """Yield once for each video that one of the worker processes has rendered.

    They are started as plain commands, not through multiprocessing, which would import the caller's main module again.
    """
    command = [sys.executable, "-m", "motion.worker", str(folder), json.dumps(asdict(plan))]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    started = [
        subprocess.Popen([*command, str(n), str(workers)], stdout=subprocess.PIPE, env=env)  # noqa: S603 - our own module
        for n in range(workers)
    ]
    try:
        with selectors.DefaultSelector() as ready:
            for process in started:
                ready.register(process.stdout or 0, selectors.EVENT_READ)
            while ready.get_map():
                for key, _ in ready.select():
                    lines = os.read(key.fd, 1 << 16)
                    if not lines:
                        ready.unregister(key.fileobj)
                    yield from [None] * lines.count(b"\n")
    finally:
        for process in started:
            process.stdout and process.stdout.close()
            if process.poll() is None and sys.exc_info()[0] is not None:
                process.terminate()
        failed = [process.wait() for process in started]
    if any(failed):
        raise RuntimeError(
            f"{sum(map(bool, failed))} of {workers} rendering processes failed; their messages are above"
        )


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    return text.getvalue().encode()


def _annotations(videos: list[_Video], plan: MotionPlan, root: Path) -> dict[Path, bytes]:
    """Return the text of every annotation file, by path."""
    folder = root / "annotations"
    rows = {s: sorted((v.action, v.id, s) for v in videos if v.split == s) for s in SPLITS}
    return {
        folder / "clsIdx.csv": _csv(("label", "idx"), [(a, i) for i, a in enumerate(plan.actions, 1)]),
        folder / "kinetics400ViPriors-train.csv": _csv(("label", "videoid", "split"), rows["train"]),
        folder / "kinetics400ViPriors-val.csv": _csv(("label", "videoid", "split"), rows["val"]),
        folder / "kinetics400ViPriors-test-public.csv": _csv(
            ("videoid", "split"), sorted((v, s) for _, v, s in rows["test"])
        ),
        folder / "kinetics400ViPriors_corrupted_videos.txt": "".join(
            f"{v.split}/{v.id}.mp4\n" for v in videos if v.damaged
        ).encode(),
        root.parent / "test-labels.csv": _csv(("label", "videoid"), sorted((a, v) for a, v, _ in rows["test"])),
    }


def render_motion(
    folder: str | os.PathLike[str],
    plan: MotionPlan | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> MotionSet:
    """Render the data set into a folder, or what of it is still missing there.

    The folder's own files are the only record: a video is published whole under its id, and annotations come last.
    A second call renders nothing, a call after an interruption renders the rest.

    Args:
        folder: Receives `Kinetics400ViPriors/{annotations,train,val,test}` and, beside it, `test-labels.csv`.
        plan: What to render; the defaults of `MotionPlan` if left out.
        workers: Processes; as many as there are cores this process may use, if left out.
        progress: Whether to show a progress bar on stderr.

    Returns:
        Where the set lies, and how many videos this call rendered.

    Raises:
        InputError: The folder holds videos of another plan.
        OSError: The disk is full or fails; its `filename` is the video's. No part of the video is there then.
        RuntimeError: A worker process failed; its own message is on stderr.

    Example:
        >>> import tempfile
        >>> plan = MotionPlan(train=1, val=1, test=1, actions=("walk", "jump"), frames=4, size=32, damaged=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = render_motion(folder, plan, workers=1, progress=False)
        ...     len(list(done.root.glob("*/*.mp4"))), render_motion(folder, plan, workers=1, progress=False).rendered
        (6, 0)
    """
    plan = plan or MotionPlan()
    root = Path(folder) / _NAME
    videos = _videos(plan)
    expected = {root / v.split / f"{v.id}.mp4" for v in videos}
    present = set(root.glob("*/*.mp4"))
    if present - expected:
        raise InputError(
            f"expected an empty folder or this plan's videos in {root}, got {len(present - expected)} videos of "
            "another plan; render into another folder or remove this one"
        )
    for split in ("annotations", *SPLITS):
        (root / split).mkdir(parents=True, exist_ok=True)
    for stale in root.glob("*/.*.tmp"):
        stale.unlink(missing_ok=True)
    missing = [v for v in videos if root / v.split / f"{v.id}.mp4" not in present]
    workers = workers or len(os.sched_getaffinity(0))
    done = len(videos) - len(missing)
    with tqdm(total=len(videos), initial=done, desc="render", unit="video", disable=not progress) as bar:
        if workers == 1 or len(missing) < 2:
            for video in missing:
                _render(video, plan, root)
                bar.update()
        else:
            for _ in _render_in_processes(Path(folder), plan, workers):
                bar.update()
    for path, data in _annotations(videos, plan, root).items():
        if not path.exists() or path.read_bytes() != data:
            _publish(path, data)
    return MotionSet(root, root.parent / "test-labels.csv", len(missing))
