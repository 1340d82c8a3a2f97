"""One rank of a distributed run, started by torchrun: trains, evaluates and extracts, and writes down what it saw."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from toy_videos import N_CLASSES, ToyLoader, toy

import vidfuse as vf
from vidfuse import networks
from vidfuse.networks.fused import FusedConfig, FusedNetwork
from vidfuse.training import TrainRecipe, distributed, evaluate, train, train_together
from vidfuse.training.checkpoints import load_checkpoint
from vidfuse.training.extraction import extract, fingerprint_of

RECIPE = TrainRecipe(lr=0.05, epochs=3, batch_size=8, reference_batch=8, precision="float32", label_smoothing=0.1)


class Clips(ToyLoader):
    """Clips that are large enough for networks of the catalogue."""

    def __iter__(self):
        for clips, ids, labels in super().__iter__():
            yield torch.nn.functional.interpolate(clips, (4, 32, 32)), ids, labels


def fused():
    """Make a fusion with what ranks could wait for in vain: a second classifier, and feedback to a frozen member."""
    torch.manual_seed(0)
    members = {
        "x3d": networks.create("x3d_tiny", N_CLASSES),
        "tpn": networks.create("tpn_tiny", N_CLASSES, auxiliary=True),
    }
    config = FusedConfig(width=16, frozen=("x3d",), feedback=True)
    return FusedNetwork(members, N_CLASSES, config, example=torch.zeros(1, 3, 4, 32, 32))


def work(out, n=27, crash=-1):
    """Train on 27 videos (an odd number, so that the ranks' shares differ), score 23, cache the scores of 27.

    The first network is a student of a teacher of random opinions.
    """
    rank, world = distributed.rank(), distributed.world_size()
    share = {"rank": rank, "world_size": world, "batch_size": 8 // world}
    loader = ToyLoader(n=n, **share)
    model = toy(dropout=0.0, norm=False)
    opinions = {"teacher": np.random.default_rng(0).normal(size=(n, N_CLASSES))}
    teacher = vf.LogitStack.from_arrays(opinions, ids=ToyLoader(n=n).ids)
    student = replace(RECIPE, distil=0.5)
    done = train(model, loader, student, out / "run", teacher=teacher, progress=False, tensorboard=False)
    scores = evaluate(done.model, ToyLoader(n=23, seed=1, **share))
    if rank == crash:
        sys.exit(3)
    cached = extract(
        done.model, ToyLoader(n=n, **share), out / "cache", ids=ToyLoader(n=n).ids, flush_seconds=0, progress=False
    )
    facts = {"history": done.history, "scores": scores, "asked": list(loader.asked), "written": cached.written}
    counted = train(
        toy(seed=rank), loader, replace(RECIPE, ema=0.9), out / "counted", progress=False, tensorboard=False
    )
    facts["fingerprints"] = [fingerprint_of(counted.model)]
    if rank == 0:  # who wrote the file: to another rank it may still be the one of the epoch before
        saved = toy()
        saved.load_state_dict(load_checkpoint(out / "counted/last.pt")["model"])
        facts["fingerprints"].append(fingerprint_of(saved))
    facts["stages"] = train_together(
        {name: toy(seed, dropout=0.0, norm=False) for seed, name in enumerate("ab")},
        ToyLoader(n=n, **share),
        {"a": RECIPE, "b": replace(RECIPE, lr=0.02)},
        out / "together",
        val_loader=ToyLoader(n=23, seed=1, **share),
        progress=False,
    ).stages
    recipe = replace(RECIPE, epochs=1, activation_checkpointing=True)
    clips = Clips(n=12, rank=rank, world_size=world, batch_size=4 // world)
    trained = train(fused(), clips, recipe, out / "fused", progress=False, tensorboard=False)
    facts["fused"] = {"steps": trained.history[-1]["step"], "weights": fingerprint_of(trained.model)}
    (out / f"rank{rank}of{world}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    with distributed.joined():
        work(Path(sys.argv[1]), crash=int(sys.argv[2]))
