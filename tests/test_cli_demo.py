"""`vidfuse demo`: real digits, fused with the base install alone."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.datasets import load_digits

import vidfuse as vf
from vidfuse.cli import main
from vidfuse.cli.demo import _png, _predictions


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "digits"
    result = CliRunner().invoke(main, ["demo", "--seed", "1", "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out, result


def test_it_ends_with_the_answer_after_its_tables(outcome):
    out, result = outcome
    text = result.stdout
    assert text.splitlines()[-1].startswith("The fusion of 8 members gets ")
    assert "Leaderboard" in text
    assert "Members and their combinations" in text
    assert "Best subset on the validation digits: " in text
    assert "train the members ... " in result.stderr
    assert json.loads((out.parent / "digits.config.json").read_text())["options"]["seed"] == 1


def test_the_fusion_beats_every_member_on_digits_it_never_saw(outcome):
    out, _ = outcome
    test = vf.load_stack(out / "caches-seed1" / "test")
    recipe = vf.load_recipe(out / "ensemble.json")
    fused = (recipe.predict(test) == test.labels).mean()
    singles = {name: (test.scores(name).argmax(axis=1) == test.labels).mean() for name in test.members}
    assert len(singles) == 8
    assert all(0.5 < single < 0.9 for single in singles.values()), singles
    assert fused > max(singles.values()) + 0.03


def test_splits_share_no_digit_and_labels_are_the_true_ones(outcome):
    val, test, pictures = _predictions(1)
    assert not set(val.ids) & set(test.ids)
    assert (len(val), len(test)) == (400, 1247)
    labels = load_digits().target
    for stack in (val, test):
        assert [labels[int(name.removeprefix("digit-"))] for name in stack.ids] == stack.labels.tolist()
    assert set(pictures) == set(test.ids)


def test_the_same_seed_gives_the_same_result_and_writes_nothing_twice(outcome):
    out, result = outcome
    again = CliRunner().invoke(main, ["demo", "--seed", "1", "--out", str(out)], catch_exceptions=False)
    assert again.stdout == result.stdout


def test_pictures_are_png_files():
    data = _png(np.array([[0.0, 0.5], [1.0, 0.25]]))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND" + zlib.crc32(b"IEND").to_bytes(4, "big"))
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    assert zlib.decompress(data[start : start + length]) == bytes([0, 0, 128, 0, 255, 64])
