"""Is a network that fuses two others inside worth its place? Ways of training it, beside the late fusion of the two.

    python benchmarks/inside.py [--out FOLDER] [--seeds N] [--joint N] [--json FILE]

Every way goes on from the same two trained members of the demo, and sees each training video as often as the others
of its kind. They are compared on the validation videos, whose performers nobody was trained on; the test videos are for
the way that was chosen there. Differences are means over seeds, paired by video; a performer's videos are one group.

Members that stay frozen are run once: their logits and the means of their stages are kept, five augmentations of each
training video, and `FusedNetwork` is trained on these, in seconds. That is exact: without feedback it sees a map's mean
alone. Ways that train the members too (`--joint N`, for so many of the seeds) take minutes each.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import motion
import vidfuse as vf
import vipriors_kinetics as demo
from vidfuse import metrics, training
from vidfuse._tables import Cell, Column, Estimate, Table, percent, points
from vidfuse.networks.fused import FusedConfig, FusedNetwork, FusedOutput
from vidfuse.training.recipes import learning_rate
from vidfuse.training.teacher import distillation_loss
from vidfuse.video import vipriors

MEMBERS, VIEWS, PASSES = demo.FUSED, 10, 5
LATE, NETWORK, CONTROL = "late fusion of both", "fused inside", "control: a fuser for each, fused late"


Batch = tuple[int, dict[str, Tensor], Tensor]  # batches an epoch, each member's clips, labels
LossOf = Callable[[Tensor], Tensor]
Build = Callable[[Mapping[str, Any], int, Tensor], nn.Module]


# --- The ways: a network, and what its answer loses


def with_own_losses(answer: FusedOutput, loss_of: LossOf) -> Tensor:
    """Return the library's loss: that of the fused logits, and those of members that are trained."""
    own = [answer.auxiliary_weight * loss_of(z) for z in answer.auxiliary]
    return torch.stack([loss_of(answer.logits), *own]).sum()


def own_losses(answer: FusedOutput, loss_of: LossOf) -> Tensor:
    """Return the members' losses alone, as if each were trained by itself."""
    return torch.stack([loss_of(z) for z in answer.member_logits.values()]).sum()


def mutual_losses(answer: FusedOutput, loss_of: LossOf) -> Tensor:
    """Return what members lose that learn half from the labels, half from their fusion (Lan et al. 2018, ONE)."""
    taught = late_fusion(answer.member_logits).detach()
    return torch.stack(
        [0.5 * loss_of(z) + 0.5 * distillation_loss(z, taught, 2.0) for z in answer.member_logits.values()]
    ).sum()


def late_fusion(member_logits: Mapping[str, Tensor]) -> Tensor:
    """Return the mean of the members' log-likelihoods."""
    return torch.stack([z.log_softmax(1) for z in member_logits.values()]).mean(0)


class FeaturesAlone(FusedNetwork):
    """The logits of the fused features, which have to learn anew what the members know: as it was before."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.classifier.reset_parameters()

    def inspect(self, clips: Any) -> FusedOutput:
        """Return the answer as the class says."""
        answer = super().inspect(clips)
        return replace(answer, logits=answer.logits - late_fusion(answer.member_logits))


class GatedLate(FusedNetwork):
    """The late fusion, with the last stage's gates as weights that depend on the video; nothing is added."""

    def inspect(self, clips: Any) -> FusedOutput:
        """Return the answer as the class says."""
        answer = super().inspect(clips)
        log_p = torch.stack([z.log_softmax(1) for z in answer.member_logits.values()], 1)
        return replace(answer, logits=torch.einsum("nm,nmk->nk", answer.gates[:, -1], log_p))


class LastStage(FusedNetwork):
    """Members that are fused after their last stage only."""

    def __init__(self, members: Mapping[str, Any], num_classes: int, *args: Any, **options: Any) -> None:
        super().__init__(members, num_classes, *args, **options)
        self.skipped = {name: skipped + len(self.gates) - 1 for name, skipped in self.skipped.items()}
        self.project, self.back, self.gates = self.project[-1:], self.back[-1:], self.gates[-1:]
        self.norm, self.classifier = nn.LayerNorm(self.config.width), nn.Linear(self.config.width, num_classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)


class HeadEach(nn.Module):
    """The control: each frozen member gets what the fuser has, for itself alone, and the two are fused late."""

    def __init__(self, members: Mapping[str, Any], num_classes: int, config: FusedConfig, example: Tensor) -> None:
        super().__init__()
        self.members = nn.ModuleDict(members).requires_grad_(False)
        pairs = {name: {name: m, "again": m} for name, m in members.items()}
        self.alone = nn.ModuleDict({n: FusedNetwork(p, num_classes, config, example=example) for n, p in pairs.items()})

    def inspect(self, clips: Mapping[str, Tensor]) -> FusedOutput:
        """Return the late fusion of the members with their new heads."""
        own = {name: net.inspect({name: clips[name], "again": clips[name]}).logits for name, net in self.alone.items()}
        return FusedOutput(late_fusion(own), own, torch.empty(0), 1.0)


@dataclass(frozen=True)
class Way:
    """A way of training: how its network is built, what it loses, and the recipe's rate and epochs."""

    build: Build
    loss: Callable[[FusedOutput, LossOf], Tensor] = with_own_losses
    lr: float = 3e-3
    epochs: int = PASSES


def built(kind: Any = FusedNetwork, **config: Any) -> Build:
    """Return what builds a network of a class and a configuration."""
    return lambda members, n, example: kind(members, n, FusedConfig(**config), example=example)


JOINT = {"lr": 2.5e-4, "epochs": 2}  # half of the first member's rate, a third of its epochs
FROZEN_WAYS: Mapping[str, Way] = {
    NETWORK: Way(built()),
    "inside, at a third of the rate": Way(built(), lr=1e-3),
    "inside, after the last stage only": Way(built(LastStage)),
    "inside, weights of the members alone": Way(built(GatedLate)),
    "inside, fused features alone": Way(built(FeaturesAlone)),
    CONTROL: Way(built(HeadEach), own_losses),
}
JOINT_WAYS: Mapping[str, Way] = {
    "control: trained on, fused late": Way(built(frozen=()), own_losses, **JOINT),
    "inside, with feedback, all trained on": Way(built(frozen=(), feedback=True), **JOINT),
    "distilled from their fusion, fused late": Way(built(frozen=()), mutual_losses, **JOINT),
    "as before: features alone, all trained on": Way(built(FeaturesAlone, frozen=(), feedback=True), **JOINT),
}


# --- Frozen members: run once, then replayed


class Replayed(nn.Module):
    """A member whose logits and stage means are known: its clips are these, (N, K + C1 + C2 + …)."""

    def __init__(self, n_classes: int, widths: list[int]) -> None:
        super().__init__()
        self.sizes = [n_classes, *widths]

    def walk(self, known: Tensor) -> Generator[Tensor, Tensor, Tensor]:
        """Yield each stage's mean as a map of one place, and return the logits."""
        logits, *means = known.split(self.sizes, 1)
        for mean in means:
            yield mean[:, :, None, None, None]
        return logits

    def stages(self, _: Tensor) -> list[Tensor]:
        """Return maps of the stages' widths."""
        return [torch.zeros(1, width, 1, 1, 1) for width in self.sizes[1:]]


@torch.no_grad()
def known_of(member: Any, clips: Tensor) -> Tensor:
    """Return what `Replayed` replays of clips."""
    walk, means = member.walk(clips), []
    x = next(walk)
    while True:
        means.append(x.mean((2, 3, 4)))
        try:
            x = walk.send(x)
        except StopIteration as end:
            return torch.cat([end.value.log_softmax(1), *means], 1)


def kept(path: Path, compute: Callable[[], Any]) -> Any:
    """Return what a file holds, computed and written if there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(compute(), path)
    return torch.load(path, weights_only=True)


class Seed:
    """One seed's members, and the clips that they and the fused networks are trained and scored on."""

    def __init__(self, args: argparse.Namespace, root: Path, seed: int) -> None:
        self.args, self.root, self.seed, self.out = args, root, seed, args.out / f"seed{seed}"
        self.data = demo.videos_of(args, root)
        self.recipes = {m: demo.recipe_of(args, m, seed) for m in MEMBERS}
        self.n_classes = len(self.data["train"].videos.classes)
        self.example = torch.zeros(1, 3, self.recipes[MEMBERS[0]].frames, *[self.recipes[MEMBERS[0]].size] * 2)

    def members(self) -> dict[str, Any]:
        """Train the members, or load them."""
        return {m: demo.train_member(self.args, self.root, self.out, self.seed, m).model.eval() for m in MEMBERS}

    def training_clips(self, shuffle: bool) -> Any:
        """Return a loader of each member's own augmentation of the training videos."""
        named, mild = demo.named(self.args), demo.augmentation(self.args)
        clips = {m: training.train_input(r, named[m], **mild) for m, r in self.recipes.items()}
        data = self.data["train"].with_inputs(clips, seed=1000 * self.seed + 77)
        return demo.load(data, self.recipes[MEMBERS[0]].batch_size, shuffle=shuffle)

    def views(self, split: str) -> Any:
        """Return a loader of the demo's views."""
        named = demo.named(self.args)
        plans = {m: training.view_plan(r, VIEWS, seed=self.seed) for m, r in self.recipes.items()}
        return demo.load(self.data[split].with_inputs({m: training.view_input(p, named[m]) for m, p in plans.items()}))

    def known(self, split: str) -> tuple[list[str], dict[str, Tensor]]:
        """Return a split's ids, and what its members say of each clip, {member: (N, V, ...)}; computed once."""
        saved = kept(self.out / "known" / f"{split}.pt", lambda: self._known(split))
        return saved["ids"], saved["known"]

    def _known(self, split: str) -> dict[str, Any]:
        members, parts = self.members(), []
        loader = self.training_clips(shuffle=False) if split == "train" else self.views(split)
        for epoch in range(PASSES if split == "train" else 1):
            loader.set_epoch(epoch)
            ids, said = [], {m: [] for m in MEMBERS}
            for clips, batch_ids, _ in loader:
                ids += batch_ids
                for m in MEMBERS:
                    each = clips[m].unbind(1) if clips[m].ndim == 6 else [clips[m]]
                    said[m].append(torch.stack([known_of(members[m], c) for c in each], 1))
            parts.append({m: torch.cat(said[m]) for m in MEMBERS})
        return {"ids": ids, "known": {m: torch.cat([p[m] for p in parts], 1) for m in MEMBERS}}

    def replayed(self) -> dict[str, Replayed]:
        """Return what stands for the members where their answers are known."""
        widths = {m: [x.shape[1] for x in member.stages(self.example)] for m, member in self.members().items()}
        return {m: Replayed(self.n_classes, widths[m]) for m in MEMBERS}


# --- Training and scoring


def fit(
    ways: Mapping[str, Way],
    members: Callable[[], Mapping[str, Any]],
    batches: Callable[[int], Iterator[Batch]],
    seed: Seed,
) -> dict[str, Any]:
    """Train ways of equal epochs side by side on the same batches, each as the library would train it."""
    nets: dict[str, Any] = {}
    optimizers, recipes = {}, {}
    base = demo.recipe_of(seed.args, MEMBERS[0], seed.seed)
    for name, way in ways.items():
        own = members()
        torch.manual_seed(seed.seed)
        nets[name] = way.build(own, seed.n_classes, seed.example)
        recipes[name] = replace(demo.resized(base, way.epochs), lr=way.lr)
        optimizers[name] = training.state._optimizer(nets[name], recipes[name])
    for epoch in range(max(r.epochs for r in recipes.values())):
        for step, (n_steps, clips, labels) in enumerate(batches(epoch)):

            def loss_of(z: Tensor, y: Tensor = labels) -> Tensor:
                return cross_entropy(z, y, label_smoothing=base.label_smoothing)

            for name, net in nets.items():
                for settings in optimizers[name].param_groups:
                    settings["lr"] = learning_rate(recipes[name], epoch + step / n_steps)
                torch.manual_seed(1_009 * (seed.seed * 1_000_003 + epoch * n_steps + step))
                ways[name].loss(net.train().inspect(clips), loss_of).backward()
                nn.utils.clip_grad_norm_([p for p in net.parameters() if p.grad is not None], base.clip_norm)
                optimizers[name].step()
                optimizers[name].zero_grad(set_to_none=True)
    return nets


@torch.no_grad()
def predicted(net: Any, views: Mapping[str, Tensor]) -> Tensor:
    """Return a network's log-likelihoods (N, K) of each member's views (N, V, ...)."""
    return log_likelihoods(net.eval().inspect({m: x[:, v] for m, x in views.items()}).logits for v in range(VIEWS))


def log_likelihoods(answers: Iterable[Tensor]) -> Tensor:
    """Average views as the demo does."""
    return torch.stack([z.log_softmax(1) for z in answers]).mean(0).log_softmax(1)


def frozen_ways(seed: Seed, labels: Mapping[str, int]) -> dict[str, dict[str, Tensor]]:
    """Return {split: {way: log-likelihoods}} of the members, their late fusion, and the ways that leave them alone."""
    ids, known = seed.known("train")
    y = torch.tensor([labels[i] for i in ids])
    size = seed.recipes[MEMBERS[0]].batch_size

    def batches(epoch: int) -> Iterator[Batch]:
        torch.manual_seed(1000 * seed.seed + epoch)
        rows = torch.randperm(len(y)).split(size)
        for chosen in rows:
            yield len(rows), {m: x[chosen, epoch] for m, x in known.items()}, y[chosen]

    nets = fit(FROZEN_WAYS, seed.replayed, batches, seed)
    stacks, said = {}, {}
    for split in ("val", "test"):
        ids, views = seed.known(split)
        own = {m: log_likelihoods(x[..., : seed.n_classes].unbind(1)) for m, x in views.items()}
        arrays, found = {m: z.numpy() for m, z in own.items()}, [labels[i] for i in ids]
        stacks[split] = vf.LogitStack.from_arrays(arrays, ids=ids, labels=found, kind="log-likelihoods")
        late = vf.LogLinearPool(weights="accuracy").fit(stacks["val"]).predict_log_proba(stacks[split])
        said[split] = own | {LATE: torch.from_numpy(late)}
        for name in nets if split == "val" else (NETWORK, CONTROL):
            said[split][name] = predicted(nets[name], views)
    return said


def joint_way(seed: Seed, way: Way) -> Tensor:
    """Return log-likelihoods of the validation videos by a way that trains the members too."""
    loader = seed.training_clips(shuffle=True)

    def batches(epoch: int) -> Iterator[Batch]:
        loader.set_epoch(epoch)
        for clips, _, y in loader:
            yield len(loader), clips, y

    net = fit({"": way}, seed.members, batches, seed)[""]
    return torch.cat([predicted(net, clips) for clips, _, _ in seed.views("val")])


def accuracy(hits: NDArray[np.float64], performers: NDArray[np.str_]) -> Estimate:
    """Return the share of hits, with its interval by performer."""
    return Estimate(float(hits.mean()), *metrics.share_interval(hits, groups=performers))


def gain(hits: NDArray[np.float64], others: NDArray[np.float64], performers: NDArray[np.str_]) -> Estimate:
    """Return the difference of two shares of hits, paired by video, with its interval by performer."""
    found = metrics.share_difference(hits, others, groups=performers)
    return Estimate(found.difference, *found.interval)


def table_of_ways(hits: Mapping[str, NDArray[np.float64]], performers: NDArray[np.str_], title: str) -> Table:
    """Compare ways with late fusion, hits (seeds, videos) averaged over seeds."""
    rows: list[tuple[Cell, ...]] = []
    for name, found in hits.items():
        late = hits[LATE][: len(found)].mean(0)
        difference = None if name == LATE else gain(found.mean(0), late, performers)
        rows.append((name, len(found), accuracy(found.mean(0), performers), difference))
    columns = ("way", "seeds", Column("top-1 %", write=percent), Column("minus late fusion's", write=points))
    return Table(columns, tuple(rows), title)


def table_of_seeds(hits: Mapping[str, NDArray[np.float64]], performers: NDArray[np.str_], title: str) -> Table:
    """Show the members, their late fusion and the network for each seed."""
    names = [*MEMBERS, LATE, NETWORK]
    rows: list[tuple[Cell, ...]] = [
        (
            str(n),
            *(accuracy(hits[name][n], performers) for name in names),
            gain(hits[NETWORK][n], hits[LATE][n], performers),
        )
        for n in range(len(hits[LATE]))
    ]
    columns = ("seed", *(Column(name, write=percent) for name in names), Column("network minus late", write=points))
    return Table(columns, tuple(rows), title)


def main() -> None:
    """Train, choose, score, print the tables, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/inside"), help="receives videos, members and what is kept"
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many pairs of members are trained")
    parser.add_argument("--joint", type=int, default=0, help="for how many of them the members are trained on, too")
    parser.add_argument("--json", type=Path, help="a file for every number")
    args = parser.parse_args()
    demo_args = demo.parse(["--out", str(args.out), "--jobs", "1", "--members", *MEMBERS])
    root, test_labels = demo.find_videos(demo_args)
    videos = [*vipriors.read_annotations(test_labels)]
    for split in ("train", "val"):
        videos += vipriors.read_annotations(root / "annotations" / f"kinetics400ViPriors-{split}.csv")
    index = {name: n for n, name in enumerate(demo.videos_of(demo_args, root)["train"].videos.classes)}
    labels = {video: index[label] for video, label in videos}
    hits: dict[str, dict[str, list[NDArray[np.float64]]]] = {"val": {}, "test": {}}
    ids = {}
    for n in range(args.seeds):
        seed = Seed(demo_args, root, n)
        done = kept(seed.out / "frozen.pt", lambda s=seed: frozen_ways(s, labels))
        for name in JOINT_WAYS if n < args.joint else ():
            file = seed.out / "joint" / f"{re.sub('[^a-z]+', '-', name)}.pt"
            done["val"][name] = kept(file, lambda s=seed, w=JOINT_WAYS[name]: joint_way(s, w))
        for split, of_ways in done.items():
            ids[split] = seed.known(split)[0]
            y = np.array([labels[i] for i in ids[split]])
            for name, log_p in of_ways.items():
                hits[split].setdefault(name, []).append((log_p.argmax(1).numpy() == y).astype(float))
        print(f"seed {n}: {len(hits['val'])} ways", flush=True)
    performer = motion.performers(motion.MotionPlan())
    results = {}
    for split, title in (("val", "Validation"), ("test", "Test")):
        arrays = {name: np.array(found) for name, found in hits[split].items()}
        who = np.array([performer[i] for i in ids[split]])
        about = f"{title}: {len(who)} videos of {len(set(who))} performers, {VIEWS} views each"
        for table in (table_of_ways(arrays, who, about), table_of_seeds(arrays, who, about)):
            print(f"\n{table.to_markdown()}")
        arms = [arrays[name].mean(0) for name in (NETWORK, CONTROL)]
        print(f"\nfused inside minus its control: {gain(*arms, who)}")
        results[split] = {name: found.mean(1).tolist() for name, found in arrays.items()}
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
