"""Two gloo processes against one: the same training, the same scores, and caches that hold each video once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo_worker import work
from toy_videos import ToyLoader

import vidfuse as vf
from vidfuse.cache.format import open_part
from vidfuse.training import distributed
from vidfuse.training.checkpoints import load_checkpoint

WORKER = Path(__file__).with_name("gloo_worker.py")


def torchrun(out, crash=-1):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(WORKER)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, str(out), str(crash)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    work(out)
    return out, json.loads((out / "rank0of1.json").read_text())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Rank 1 is lost after training; then both are started again."""
    out = tmp_path_factory.mktemp("two")
    lost = torchrun(out, crash=1)
    assert lost.returncode != 0
    assert not (out / "rank1of2.json").exists()
    again = torchrun(out)
    assert again.returncode == 0, again.stderr
    return out, [json.loads((out / f"rank{rank}of2.json").read_text()) for rank in (0, 1)]


def test_two_ranks_train_as_one_does(one, two):
    """27 videos in batches of 8: the ranks' shares are uneven, and each video counts once all the same."""
    (out, alone), (both, (first, second)) = one, two
    keys = ("epoch", "step", "lr", "loss", "grad_norm")
    for row, own in zip(alone["history"], first["history"], strict=True):
        assert [own[k] for k in keys] == pytest.approx([row[k] for k in keys], rel=1e-4)
    assert [row["loss"] for row in first["history"]] == [row["loss"] for row in second["history"]]
    weights, own = (load_checkpoint(folder / "run/last.pt")["model"] for folder in (out, both))
    for name, value in weights.items():
        torch.testing.assert_close(own[name], value, rtol=1e-4, atol=1e-5)


def test_ranks_that_counted_their_own_statistics_end_with_one_network(two):
    """Batch statistics differ by rank while training; what is scored and cached is what rank 0 saved."""
    _, (first, second) = two
    assert len({*first["fingerprints"], *second["fingerprints"]}) == 1


def test_stages_are_scored_on_the_videos_of_all_ranks(one, two):
    (_, alone), (_, (first, second)) = one, two
    assert first["stages"] == second["stages"]
    for row, own in zip(alone["stages"], first["stages"], strict=True):
        assert own == pytest.approx(row, rel=1e-4)


def test_scores_are_those_of_all_ranks(one, two):
    (_, alone), (_, (first, second)) = one, two
    assert first["scores"] == second["scores"]
    assert first["scores"]["n"] == 23
    assert first["scores"] == pytest.approx(alone["scores"], rel=1e-4)


def test_each_video_is_cached_once_by_one_rank(one, two):
    (alone, _), (both, (first, second)) = one, two
    assert first["written"] + second["written"] <= 27
    stack, expected = vf.load_stack(both / "cache"), vf.load_stack(alone / "cache")
    stored = [i for path in (both / "cache").glob("part-*") for i in open_part(path).ids.tolist()]
    assert sorted(stored) == sorted(ToyLoader(n=27).ids)
    assert stack.ids.tolist() == expected.ids.tolist()
    np.testing.assert_allclose(stack.scores("cache"), expected.scores("cache"), atol=1e-4)


def test_a_resumed_run_of_two_ranks_trains_nothing_again(two):
    _, ranks = two
    assert all(facts["asked"] == [] for facts in ranks)  # training was over when rank 1 was lost


def test_two_ranks_train_a_fused_network_whose_member_has_a_second_classifier(two):
    _, (first, second) = two
    assert first["fused"] == second["fused"]
    assert first["fused"]["steps"] == 3  # a rank that waits for a gradient fails in the second


def test_one_process_is_a_world_of_one():
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.share("abc") == ["a", "b", "c"]
    assert distributed.total([1, 2.5]) == [1, 2.5] and distributed.largest(3) == 3
