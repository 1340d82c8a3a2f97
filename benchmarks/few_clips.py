"""What to expect of few clips: accuracies of a small network on new performers, by clips, recipe and pre-training.

    python benchmarks/few_clips.py [--clips 48 200] [--seeds 3] [--steps 200] [--work FOLDER]

The videos are SIMULATED: the recorded motions of examples/motion, rendered. Eight of the fifteen actions are to be told
apart. The training videos are filmed in one of two ways:

    one place an action     nine in ten videos of an action are filmed at its place: the background tells the class
    many places             each video is filmed at a place of its own

No performer of the training videos is in the validation videos. These come twice: each video at a new place, and at one
of the actions' places drawn at random, where the background tells nothing. A seed draws the performers, places and
scenes, the weights and the order.

Three ways, each of as many steps: the small preset of the network with the method's augmentation; the same with
`few_clips`; and that from weights that were trained on the seven other actions (once, for all seeds; other performers,
places of their own), with a new classifier. All are scored after the last step; nothing was chosen on these videos (the
recipe was, on those of another seed).

What is done is kept in FOLDER; the benchmark goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import motion
from motion.dataset import encode
from vidfuse import training
from vidfuse.training.recipes import TINY, few_clips
from vidfuse.video.datasets import VideoDataset
from vidfuse.video.lists import read_class_folders
from vidfuse.video.loader import VideoLoader

RESULTS = Path(__file__).parent / "results" / "few_clips.json"
ACTIONS, OTHERS = motion.ACTIONS[0::2], motion.ACTIONS[1::2]  # to be told apart, and to be trained on before
AT_HOME = 0.9  # share of an action's training videos that were filmed at its place
PERFORMERS = 12  # of the validation videos
OTHER_VIDEOS = 30  # of each action to be trained on before
SIZE = 32  # pixels of a clip: what the small networks need at least
BATCH = 16
WAYS = ("plain", "few clips", "few clips, pre-trained")
FILMED = ("one place an action", "many places")
PLACES = ("new places", "the actions' places, at random")


def render(folder: Path, actions: Sequence[str], plan: motion.MotionPlan, split: str, n: int, where: str) -> Path:
    """Write videos of n performers as class folders, each at a place of its own, its action's, or one at random."""
    done = folder / "done"
    if done.exists():
        return folder
    rng = np.random.default_rng((plan.seed, motion.plan.SPLITS.index(split), n))
    for number in range(n):
        for home, action in enumerate(actions):
            place = int(rng.integers(len(actions)))
            if where == "home" and rng.random() < AT_HOME:
                place = home
            frames = motion.render_clip(action, plan, split, number, place=None if where == "new" else place)
            file = folder / action / f"performer{number:03d}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(frames, plan.fps))
    done.touch()
    return folder


def dataset(folder: Path, source: Any, seed: int = 0) -> VideoDataset:
    """Return a folder's videos, decoded once."""
    return VideoDataset(read_class_folders(folder), source, memory=1 << 30, seed=seed)


def train(network: str, folder: Path, out: Path, recipe: training.TrainRecipe, steps: int, weights: Any) -> nn.Module:
    """Train for a number of steps, as many epochs as that takes, or load what was trained."""
    data = dataset(folder, training.train_input(recipe, network), recipe.seed)
    epochs = -(-steps // -(-len(data) // recipe.batch_size))
    recipe = replace(recipe, epochs=epochs, warmup_epochs=epochs / 10)
    torch.manual_seed(recipe.seed)
    model = training.network_for(
        recipe.frames,
        network,
        len(data.videos.classes),
        checkpoint=weights,
        replace_classifier=weights is not None,
    )
    loader = VideoLoader(data, recipe.batch_size, shuffle=True)
    return training.train(model, loader, recipe, out, progress=False, tensorboard=False).model


def score(network: str, model: nn.Module, folder: Path, recipe: training.TrainRecipe) -> float:
    """Return the accuracy on a folder's videos: one view, the whole frame, the middle of the video."""
    plan = replace(training.view_plan(recipe, 1), times="even", crops="centre", flip="never")
    loader = VideoLoader(dataset(folder, training.view_input(plan, network)), 32)
    return training.evaluate(model, loader)["top1"]


def one_seed(args: argparse.Namespace, clips: int, filmed: str, seed: int, done: dict[str, Any]) -> None:
    """Render a seed's videos, and train and score what is not done yet."""
    plan = motion.MotionPlan(size=48, seed=seed, actions=ACTIONS)
    base, performers = args.work / f"seed{seed}", clips // len(ACTIONS)
    where = "home" if filmed == FILMED[0] else "new"
    clips_folder = render(base / f"{where}{performers}", ACTIONS, plan, "train", performers, where)
    scored = {
        "training clips": clips_folder,
        PLACES[0]: render(base / "new", ACTIONS, plan, "val", PERFORMERS, "new"),
        PLACES[1]: render(base / "random", ACTIONS, plan, "val", PERFORMERS, "random"),
    }
    plain = replace(TINY[args.network], size=SIZE, batch_size=BATCH, reference_batch=BATCH, seed=seed)
    for way in args.ways:
        if (key := f"{clips} clips, {filmed}, {way}, seed {seed}") in done:
            continue
        recipe, weights = plain if way == "plain" else few_clips(plain, clips), None
        if way.endswith("pre-trained"):
            before = args.work / "before"
            others = render(args.work / "others", OTHERS, motion.MotionPlan(size=48), "test", OTHER_VIDEOS, "new")
            train(args.network, others, before, replace(plain, seed=0), args.steps, None)
            start = training.start_from(before / "last.pt", args.network, len(ACTIONS), sorted(ACTIONS))
            recipe, weights = replace(recipe, **start.fields), start.weights
        model = train(args.network, clips_folder, base / key, recipe, args.steps, weights)
        done[key] = {name: score(args.network, model, folder, recipe) for name, folder in scored.items()}
        print(f"{key}: {', '.join(f'{name} {100 * value:.1f} %' for name, value in done[key].items())}", flush=True)
        args.work.joinpath("done.json").write_text(json.dumps(done, indent=1))


def table(done: dict[str, Any], args: argparse.Namespace) -> str:
    """Return the means over seeds as Markdown, with the seeds' range."""
    columns = ("training clips", *PLACES)
    lines = [f"| filmed | clips | way | {' | '.join(columns)} |", "|---|---|---|" + "---|" * len(columns)]
    for filmed, n, way in itertools.product(args.filmed, args.clips, args.ways):
        rows = [done[f"{n} clips, {filmed}, {way}, seed {seed}"] for seed in range(args.seeds)]
        cells = []
        for column in columns:
            values = [100 * row[column] for row in rows]
            cells.append(f"{statistics.mean(values):.0f} ({min(values):.0f} to {max(values):.0f})")
        lines.append(f"| {filmed} | {n} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print its table, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[48, 200], help="training clips; of eight actions")
    parser.add_argument("--filmed", nargs="+", choices=FILMED, default=list(FILMED))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help=f"of {BATCH} clips each")
    parser.add_argument("--network", choices=list(TINY), default="r2plus1d_tiny")
    parser.add_argument("--work", type=Path, help="keeps videos and runs, to go on from")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    if low := [n for n in args.clips if n % len(ACTIONS) or n < len(ACTIONS)]:
        parser.error(f"--clips: expected multiples of {len(ACTIONS)}, got {low}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        args.work = args.work or Path(temporary)
        kept = args.work / "done.json"
        done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
        for filmed, clips, seed in itertools.product(args.filmed, args.clips, range(args.seeds)):
            one_seed(args, clips, filmed, seed, done)
    print(table(done, args))
    what = {name: getattr(args, name) for name in ("network", "steps", "seeds")}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    args.out.write_text(json.dumps(what | {"versions": versions, "accuracy": done}, indent=1) + "\n")


if __name__ == "__main__":
    main()
