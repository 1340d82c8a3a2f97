"""The campaign's short form: some rounds of everything that the command runs for long."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import campaign


def test_killed_writers_lose_nothing_that_was_acknowledged():
    counts = campaign.crash_rounds(3, videos=90, batch=3, seed=7)
    assert counts["rounds"] == 3 and counts["kills"] >= 3 and counts["acknowledged"] > 0 and counts["completed"] >= 1


def test_parts_are_joined_beside_writers_and_nothing_is_lost_where_any_is_killed():
    counts = campaign.crash_rounds(3, writers=2, videos=60, batch=3, seed=5, joined=True)
    assert counts["rounds"] == 3 and counts["kills"] >= 3 and counts["acknowledged"] > 0 and counts["completed"] >= 1


def test_killed_predictions_go_on_to_the_bytes_of_undisturbed_ones():
    counts = campaign.predict_rounds(8, seed=3)
    assert counts["kills"] >= 4 and counts["finished"] >= 1
    assert counts["blocks"] < 2 * counts["undisturbed_blocks"]


def test_every_header_bit_sampled_payload_bits_and_truncations_are_noticed():
    counts = campaign.damage_rounds(payload_bits=500, truncations=100)
    assert counts["header_bits"] >= 4096 and counts["largest_allocation"] <= 2 * counts["size"]


def test_mutated_files_of_every_format_are_refused_or_read():
    counts = campaign.fuzz(rounds=600, seed=11)
    assert counts["files"] == 600 and counts["refused"] > 300


def test_two_workers_of_dask_and_a_killed_one_give_the_bits_of_one_process():
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("cluster.py"), "dask"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] == 1 and found["same bits"] and len(found["seconds"]) == 2
