"""The plan of a full run is the arithmetic that it says it is."""

import pytest

from vidfuse import networks
from vidfuse.errors import InputError
from vidfuse.training import TABLE_I
from vidfuse.training.plan import FULL_SIZE, describe_costs, plan_run


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
    assert swin.cache_bytes == 300_000 * 400 * 4
    assert costs["x3d"].gmacs == pytest.approx(2 * networks.info("x3d_m").gmacs)  # 32 frames, where 16 are published


def test_the_table_has_a_line_a_member_and_the_sums():
    text = describe_costs(plan_run(gmacs_per_second=1000, clips_decoded_per_second=10)).splitlines()
    assert [line.split()[0] for line in text[1:-1]] == list(TABLE_I)
    assert text[-1].startswith("in all ")


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(InputError, match="positive throughputs"):
        plan_run(gmacs_per_second=0, clips_decoded_per_second=10)
    with pytest.raises(InputError, match="none for tin"):
        plan_run(
            gmacs_per_second=1, clips_decoded_per_second=1, full_size={k: v for k, v in FULL_SIZE.items() if k != "tin"}
        )
