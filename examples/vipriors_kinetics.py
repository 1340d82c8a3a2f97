"""From videos to a fused, scored submission: the whole method on Kinetics400ViPriors, or on the embedded videos.

    python examples/vipriors_kinetics.py --out runs/demo                             # real human motion, rendered here
    python examples/vipriors_kinetics.py --out runs/real --data-root DIR --full      # the challenge's data, Table I

Every stage is a call of the library that goes on where it stopped: the rendered videos, the checkpoints and the logit
caches are the only record of what is done. Kill it anywhere and start it again; a second run computes nothing anew.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

# Threads that wait spin for microseconds only: beside another busy process, longer spinning makes small networks crawl.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import numpy as np
import torch
from numpy.typing import NDArray

import motion
import vidfuse as vf
from vidfuse import training
from vidfuse.cache.format import open_part
from vidfuse.networks.fused import FusedNetwork
from vidfuse.report.combinations import combination_table
from vidfuse.training.recipes import FULL_SIZE
from vidfuse.video import datasets, loader, vipriors
from vidfuse.video.clips import ViewPlan

# The members in the order in which Table II of the method adds them, in their small presets.
TINY = {
    "slowfast": "slowfast_tiny",
    "swin": "swin_tiny",
    "tin": "tin_tiny",
    "tpn": "tpn_tiny",
    "x3d": "x3d_tiny",
    "timesformer": "timesformer_tiny",
    "r2plus1d": "r2plus1d_tiny",
}
SPLITS = ("train", "val", "test")
FUSED = ("timesformer", "r2plus1d")  # attention and convolution, fused stage by stage in one network

Call = tuple[Any, ...]
Models = dict[str, torch.nn.Module]
Share = tuple[int, int]
Stacks = dict[str, vf.LogitStack]


@dataclass
class Clock:
    """Announces each stage, and remembers how long it took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        print(f"\n== {name}", flush=True)
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        print(f"   {took:.1f} s", flush=True)


@dataclass(frozen=True)
class Outcome:
    """Top-1 accuracies of one seed, and the videos they were measured on: of all members fused, and of single ones."""

    seed: int
    scored_on: str
    best_member: str
    best_single: float
    inside: float | None  # of the network that fuses two members inside
    fused: float


def find_videos(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """Return the data set's folder, and the csv with the test split's labels if there is one."""
    if args.data_root is not None:
        root: Path = args.data_root
        return (root if (root / "annotations").is_dir() else root / "Kinetics400ViPriors"), args.test_labels
    plan = motion.MotionPlan(*args.videos, actions=motion.ACTIONS[: args.actions])
    done = motion.render_motion(args.out / "data", plan)
    print(f"   {done.rendered} videos rendered; the set lies in {done.root}")
    return done.root, done.test_labels


def recipe_of(args: argparse.Namespace, member: str, seed: int = 0) -> training.TrainRecipe:
    """Return the member's recipe: Table I at full size, or the small preset of the demo."""
    recipe = training.TABLE_I[member] if args.full else training.TINY[TINY[member]]
    return resized(replace(recipe, seed=seed), args.epochs or recipe.epochs)


def recipe_of_fused(args: argparse.Namespace, seed: int = 0) -> training.TrainRecipe:
    """Return how a fuser is trained on the frozen members: for five epochs, at six times the first one's rate."""
    recipe = recipe_of(args, args.fuse[0], seed)
    return resized(replace(recipe, lr=6 * recipe.lr), min(5, recipe.epochs))


def resized(recipe: training.TrainRecipe, epochs: int) -> training.TrainRecipe:
    """Return the recipe with another number of epochs, and its share of them as the warm-up."""
    return replace(recipe, epochs=epochs, warmup_epochs=recipe.warmup_epochs * epochs / recipe.epochs)


def named(args: argparse.Namespace) -> Mapping[str, str]:
    """Return the members' names in the catalogue."""
    return FULL_SIZE if args.full else TINY


def augmentation(args: argparse.Namespace) -> dict[str, object]:
    """Return what of the method's augmentations is other than by default: milder in the demo's few epochs."""
    mild = {"scale": None, "gray": 0.1, "jitter": 0.2, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
    return {} if args.full else mild


@functools.cache
def splits(root: Path, short_side: int, room: int) -> dict[str, datasets.VideoDataset]:
    """List each split's videos; nothing is decoded yet, and then once for all members that this process trains."""
    plan = ViewPlan(length=1, size=short_side)  # each member brings views of its own
    return {
        split: datasets.VideoDataset(vipriors.read_vipriors(root, split), plan, short_side=short_side, memory=room)
        for split in SPLITS
    }


def videos_of(args: argparse.Namespace, root: Path) -> dict[str, datasets.VideoDataset]:
    """Return the splits' videos, decoded at the short side that the members need."""
    side = max(round(recipe_of(args, member).size * 8 / 7) for member in args.members)
    return splits(root, side, 0 if args.full else 2 << 30)


def list_videos(args: argparse.Namespace, root: Path) -> dict[str, datasets.VideoDataset]:
    """Say how many videos each split has, and what is left out."""
    data = videos_of(args, root)
    for split, videos in data.items():
        print(f"   {split:5s} {videos.videos.summary()}")
    return data


def load(
    data: datasets.VideoDataset, batch: int = 16, workers: int = 0, shuffle: bool = False, share: Share | None = None
) -> loader.VideoLoader:
    """Return a loader of this process's share of a data set."""
    ranks = training.distributed.world_size()
    rank, size = share or (training.distributed.rank(), ranks)
    return loader.VideoLoader(data, batch // ranks, shuffle=shuffle, workers=workers, rank=rank, world_size=size)


def side_by_side(args: argparse.Namespace, calls: list[Call], count: Callable[[], int], total: int, unit: str) -> None:
    """Do a stage's parts in processes of their own; whoever needs their results then finds them in the files.

    One small network does not keep several cores busy; one network a core does.
    """
    if args.jobs > 1 and count() < total:
        with training.processes.worker_processes(args.jobs) as pool:
            training.processes.follow([pool.submit(*call) for call in calls], count, total, unit)


def train_member(
    args: argparse.Namespace, root: Path, out: Path, seed: int, member: str, progress: bool = False
) -> training.TrainResult:
    """Train one member, or load it where its run is finished already."""
    network, recipe, data = named(args)[member], recipe_of(args, member, seed), videos_of(args, root)
    clip = training.train_input(recipe, network, **augmentation(args))
    view = training.view_input(training.view_plan(recipe, 1), network)
    chance = 1000 * seed + list(TINY).index(member)
    torch.manual_seed(seed)
    return training.train(
        training.network_for(recipe.frames, network, len(data["train"].videos.classes)),
        load(data["train"].with_inputs(clip, seed=chance), recipe.batch_size, args.workers, shuffle=True),
        recipe,
        out / "train" / member,
        val_loader=load(data["val"].with_inputs(view), workers=args.workers),
        device=args.device,
        progress=progress,
        name=f"train {member}",
    )


def train_fused(
    args: argparse.Namespace, root: Path, out: Path, seed: int, progress: bool = False
) -> training.TogetherResult:
    """Train the dynamic fusion network on trained members, each of which sees its own augmentation of a video."""
    members = {m: train_member(args, root, out, seed, m, progress).model.cpu() for m in args.fuse}
    data, recipes = videos_of(args, root), {member: recipe_of(args, member, seed) for member in args.fuse}
    clips = {m: training.train_input(r, named(args)[m], **augmentation(args)) for m, r in recipes.items()}
    views = {m: training.view_input(training.view_plan(r, 1), named(args)[m]) for m, r in recipes.items()}
    classes, recipe = len(data["train"].videos.classes), recipe_of_fused(args, seed)
    inputs = data["train"].with_inputs(clips, seed=1000 * seed + 99)
    torch.manual_seed(seed)
    example = torch.zeros(1, 3, recipe.frames, recipe.size, recipe.size)
    return training.train_together(
        {"fused": FusedNetwork(members, classes, example=example)},
        load(inputs, recipe.batch_size, args.workers, shuffle=True),
        {"fused": recipe},
        out / "train" / "fused",
        val_loader=load(data["val"].with_inputs(views), workers=args.workers),
        device=args.device,
        progress=progress,
    )


def train_members(
    args: argparse.Namespace, root: Path, out: Path, seed: int, progress: bool = False
) -> dict[str, torch.nn.Module]:
    """Train each member in turn, or load it where its run is finished already."""
    models, say = {}, print if progress else str
    for member in args.members:
        done = train_member(args, root, out, seed, member, progress)
        models[member], last = done.model, done.history[-1]
        say(f"   {member:12s} loss {last['loss']:.3f}; one view of the validation videos: {last['val_top1']:.1%} right")
    if args.fuse:
        fused = train_fused(args, root, out, seed, progress)
        inside, right = " + ".join(args.fuse), fused.stages[-1]["top1_fused"]
        say(f"   fused        of {inside}, inside one network: {right:.1%} right")
    return models | (fused.models if args.fuse else {})


def train_side_by_side(args: argparse.Namespace, root: Path, out: Path, seed: int) -> dict[str, torch.nn.Module]:
    """Train the members, as many at the same time as there are jobs; the longest first, so that no core waits long."""
    goals = {out / "train" / member / "log.csv": recipe_of(args, member).epochs for member in args.members}
    alone = [member for member in args.members if member not in args.fuse]
    calls: list[Call] = [
        (train_member, args, root, out, seed, m) for m in sorted(alone, key=lambda m: -recipe_of(args, m).epochs)
    ]
    if args.fuse:
        goals[out / "train" / "fused" / "stages.csv"] = recipe_of_fused(args).epochs
        calls.insert(0, (train_fused, args, root, out, seed))

    def finished() -> int:
        return sum(len(log.read_text().splitlines()) - 1 for log in goals if log.exists())

    side_by_side(args, calls, finished, sum(goals.values()), "epoch")
    return train_members(args, root, out, seed, progress=True)


def extract_share(
    args: argparse.Namespace, root: Path, out: Path, seed: int, models: Models | None = None, share: Share | None = None
) -> list[training.Extraction]:
    """Cache every member's logits of random views of the validation and test videos, each decoded once for all."""
    models = train_members(args, root, out, seed) if models is None else models
    plans = {m: training.view_plan(recipe_of(args, m), args.views, seed=seed) for m in args.members}
    views = {m: training.view_input(plan, named(args)[m]) for m, plan in plans.items()}
    return [
        training.extract(
            models,
            load(videos.with_inputs(views), workers=args.workers, share=share),
            out / "caches" / split,
            views=plans | ({"fused": {m: plans[m].to_dict() for m in args.fuse}} if args.fuse else {}),
            classes=videos.videos.classes,
            device=args.device,
            progress=share is None,
        )
        for split, videos in list(videos_of(args, root).items())[1:]
    ]


def cache_views(args: argparse.Namespace, root: Path, models: Models, out: Path, seed: int) -> Stacks:
    """Cache the members' logits, with a share of the videos for each job, and return them as stacks."""
    data = videos_of(args, root)
    folders = {split: [out / "caches" / split / member for member in models] for split in ("val", "test")}

    def cached(split: str) -> int:
        """How many videos every member has predicted."""
        there = [sum(len(open_part(p)) for p in folder.glob("part-*.safetensors")) for folder in folders[split]]
        return min(there)

    before = {split: cached(split) for split in folders}
    calls: list[Call] = [(extract_share, args, root, out, seed, None, (n, args.jobs)) for n in range(args.jobs)]
    side_by_side(args, calls, lambda: sum(map(cached, folders)), sum(len(data[split]) for split in folders), "video")
    stacks = {}
    for split, done in zip(folders, extract_share(args, root, out, seed, models), strict=True):
        now, lost = cached(split), len(done.failures)
        print(f"   {split}: {now - before[split]} videos cached, {before[split]} there before, {lost} unreadable")
        stacks[split] = vf.load_stack(out / "caches" / split, members=list(models), partial=bool(lost))
    return stacks


def labelled(stack: vf.LogitStack, csv_file: Path | None) -> vf.LogitStack | None:
    """Return the stack with the labels of a csv (`label,videoid`) that no earlier stage reads; None without one."""
    if csv_file is None:
        return None
    index = {name: i for i, name in enumerate(stack.classes)}
    known = {video: index[label] for video, label in vipriors.read_annotations(csv_file)}
    scores = {member: stack.scores(member) for member in stack.members}
    labels = [known[video] for video in stack.ids]
    return vf.LogitStack.from_arrays(scores, labels=labels, ids=stack.ids, classes=stack.classes)


def with_unreadable(
    log_proba: NDArray[np.floating], ids: Sequence[str], videos: datasets.VideoDataset
) -> tuple[NDArray[np.floating], list[str]]:
    """Add a row for each test video that cannot be read, the mean prediction: a missing line counts as wrong."""
    known = set(ids)
    lacking = [v for v in (*videos.videos.ids, *(name for name, _ in videos.videos.skipped)) if v not in known]
    prior = np.log(np.exp(log_proba).mean(axis=0, keepdims=True))
    return np.concatenate([log_proba, np.repeat(prior, len(lacking), axis=0)]), [*ids, *lacking]


def fuse(
    args: argparse.Namespace,
    data: dict[str, datasets.VideoDataset],
    stacks: dict[str, vf.LogitStack],
    test_labels: Path | None,
    out: Path,
    seed: int,
    clock: Clock,
) -> Outcome:
    """Learn weights on the validation videos, fuse, vote, search the subsets; write submission and report."""
    val, test = stacks["val"], labelled(stacks["test"], test_labels)
    with clock.stage("weight and fuse"):
        one_view = {split: vf.reduce_views(stack, "mean-log") for split, stack in stacks.items()}
        pool = vf.LogLinearPool().fit(one_view["val"])
        vf.Recipe.from_fitted(pool, one_view["val"], views="mean-log").save(out / "ensemble.json")
        fused = pool.predict_log_proba(one_view["test"])
        for member, weight in zip(pool.members_, pool.weights_, strict=True):
            print(f"   {member:12s} weight {weight:.3f}")
    with clock.stage("score the members and their combinations"):
        order = [m for m in (*TINY, "fused") if m in val.members]
        growing = [[m] for m in order] + [order[:n] for n in range(2, len(order) + 1)]
        if args.fuse and args.fuse not in growing:
            growing.append(args.fuse)  # their late fusion, to compare the network that fuses them inside with
        table = combination_table(val, test, combinations=growing)
        print(table)
    with clock.stage("search the subsets"):
        few = vf.search_subsets(one_view["val"], objective="accuracy", rule=vf.LogLinearPool(weights="accuracy"))
        print(
            f"   best of all subsets on the validation videos: {' + '.join(few.members)} ({few.score:.1%}, in-sample)"
        )
    with clock.stage("write the submission and the report"):
        rows, ids = with_unreadable(fused, list(one_view["test"].ids), data["test"])
        submission = vf.write_submission(rows, ids, out / "submission.txt")
        report = vf.write_report(val, out / "report.html", test=test, title=f"Members and their fusion, seed {seed}")
        print(f"   submission  {submission}\n   report      {report}\n   ensemble    {out / 'ensemble.json'}")
    scores = {row.members: row.scores["learned"].accuracy for row in table.rows}
    best = max((m for m in order if m != "fused"), key=lambda m: scores[(m,)])
    scored_on = "validation (cross-fitted)" if test is None else "test"
    return Outcome(seed, scored_on, best, scores[(best,)], scores.get(("fused",)), scores[tuple(order)])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of everything that is written")
    parser.add_argument("--data-root", type=Path, help="folder that holds Kinetics400ViPriors; rendered if left out")
    parser.add_argument("--test-labels", type=Path, help="csv (label,videoid) to score the test split with")
    parser.add_argument("--full", action="store_true", help="the full-size networks by Table I, for GPUs")
    parser.add_argument("--members", nargs="+", choices=list(TINY), default=list(TINY), help="networks to train")
    parser.add_argument(
        "--fuse", nargs="*", choices=list(TINY), metavar="MEMBER",
        help=f"also a network that fuses these members inside; by default {' and '.join(FUSED)}, with --full none",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1, help="number of repetitions, each in a folder of its own")
    parser.add_argument("--views", type=int, default=10, help="random views of each validation and test video")
    parser.add_argument("--epochs", type=int, help="other than the recipes'")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode")
    parser.add_argument("--jobs", type=int, help="members trained at once; by default one a core, or one with a GPU")
    parser.add_argument("--videos", type=int, nargs=3, default=(60, 15, 20), metavar=SPLITS, help="rendered, an action")
    parser.add_argument("--actions", type=int, default=len(motion.ACTIONS), help="rendered")
    args = parser.parse_args(argv)
    if args.fuse is None:
        args.fuse = list(FUSED) if not args.full and set(FUSED) <= set(args.members) else []
    alone = args.device != "cpu" or training.distributed.world_size() > 1
    args.jobs = args.jobs or (1 if alone else min(4, training.processes.available_cores()))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline once for each seed, and say how the fusion did."""
    args, clock = parse(argv), Clock()
    with clock.stage("render or find the videos"):
        root, test_labels = find_videos(args)
    with clock.stage("index the videos"):
        data = list_videos(args, root)
    outcomes = []
    for seed in range(args.seeds):
        out = args.out / f"seed{seed}"
        with clock.stage(f"train {len(args.members)} members, seed {seed}"):
            models = train_side_by_side(args, root, out, seed)
        with clock.stage(f"cache {args.views} views of each video, seed {seed}"):
            stacks = cache_views(args, root, models, out, seed)
        outcomes.append(fuse(args, data, stacks, test_labels, out, seed, clock))
    (args.out / "outcomes.json").write_text(json.dumps([asdict(o) for o in outcomes], indent=1))
    print("\n== done")
    for name, seconds in clock.seconds.items():
        print(f"   {seconds:7.1f} s  {name}")
    print(f"   {sum(clock.seconds.values()):7.1f} s  in all")
    for o in outcomes:
        gain = 100 * (o.fused - o.best_single)
        inside = "" if o.inside is None else f"; the network that fuses {' + '.join(args.fuse)} inside: {o.inside:.1%}"
        print(
            f"seed {o.seed}, {o.scored_on}: all members fused {o.fused:.1%}, "
            f"best single member ({o.best_member}) {o.best_single:.1%}, gain {gain:+.1f} points{inside}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
