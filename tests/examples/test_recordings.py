"""The recordings' file: small, whole or refused, and sampled as it was recorded."""

import json
import subprocess
import sys

import numpy as np
import pytest

from motion import make_recordings, recordings
from motion.plan import ACTIONS
from vidfuse.errors import InputError


def test_the_file_is_small_and_no_pickle():
    assert recordings.FILE.stat().st_size <= 300_000
    with np.load(recordings.FILE, allow_pickle=False) as file:
        assert set(file.files) == {*ACTIONS, "seconds", "rounds"}
        assert {file[action].dtype.name for action in ACTIONS} == {"int16"}


def altered(path, **changes):
    with np.load(recordings.FILE) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def truncate(path):
    path.write_bytes(recordings.FILE.read_bytes()[:50_000])


def flip(path):
    data = bytearray(recordings.FILE.read_bytes())
    data[40_000] ^= 0xFF
    path.write_bytes(data)


def another(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: None, id="missing"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_text("no archive"), id="text"),
        pytest.param(another, id="another file"),
        pytest.param(truncate, id="truncated"),
        pytest.param(flip, id="a flipped byte"),
        pytest.param(lambda path: altered(path, walk=None), id="an action missing"),
        pytest.param(lambda path: altered(path, walk=np.zeros((9, 44), np.int16)), id="wrong shape"),
        pytest.param(lambda path: altered(path, walk=np.zeros((0, 43), np.int16)), id="no frames"),
        pytest.param(lambda path: altered(path, walk=np.zeros((9, 43), np.int16)), id="no rotations"),
        pytest.param(lambda path: altered(path, walk=np.full((9, 43), np.nan)), id="not a number"),
        pytest.param(lambda path: altered(path, walk=np.array([{}, {}])), id="objects"),
        pytest.param(lambda path: altered(path, seconds=np.full(15, np.nan)), id="lengths not a number"),
        pytest.param(lambda path: altered(path, seconds=np.zeros(15)), id="lengths of nothing"),
        pytest.param(lambda path: altered(path, seconds=np.array(["1.0"] * 15)), id="lengths in words"),
        pytest.param(lambda path: altered(path, rounds=np.zeros(3, bool)), id="too few marks"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(damage, tmp_path):
    path = tmp_path / "recordings.npz"
    damage(path)
    with pytest.raises(InputError, match="expected 15 recordings") as caught:
        recordings.load(path)
    assert str(path) in str(caught.value) and "git checkout" in str(caught.value)


@pytest.mark.parametrize("action", ACTIONS)
def test_poses_pass_through_the_recorded_frames(action):
    frames, seconds, _ = recording = recordings.load()[action]
    times = np.arange(len(frames) - 1) * seconds / (len(frames) - 1)
    np.testing.assert_allclose(recordings.sample(recording, times), frames[:-1], atol=1e-9)
    poses = recordings.sample(recording, np.linspace(0, seconds, 50, endpoint=False))
    for start in recordings.QUATERNIONS:
        np.testing.assert_allclose(np.linalg.norm(poses[:, start : start + 4], axis=1), 1, atol=1e-9)
        assert ((frames[1:, start : start + 4] * frames[:-1, start : start + 4]).sum(1) > 0).all()
    low, high = frames[:, :3].min(0) - 1e-9, frames[:, :3].max(0) + 1e-9
    assert ((poses[:, :3] >= low) & (poses[:, :3] <= high)).all()


def test_a_walk_goes_on_and_a_kick_begins_anew():
    for action, goes_on in (("walk", True), ("kick", False)):
        frames, seconds, goes_round = recording = recordings.load()[action]
        assert goes_round == goes_on
        first, second = recordings.sample(recording, np.array([0.1, 0.1 + seconds]))
        np.testing.assert_allclose(second[3:], first[3:], atol=1e-9)
        expected = (frames[-1] - frames[0])[[0, 2]] if goes_on else 0
        np.testing.assert_allclose((second - first)[[0, 2]], expected, atol=1e-9)
        assert second[1] == pytest.approx(first[1])


def test_a_motion_file_is_packed_at_thirty_frames_a_second(tmp_path):
    """Two seconds of a turn about y by 90 degrees, the last quaternion on the other side: -q is the same rotation."""
    rest = [1.0, 0.0, 0.0, 0.0]
    half = np.sqrt(0.5)

    def frame(root, turn, knee):
        return [1.0, *root, *turn, *rest, *rest, *rest, knee, *rest, *rest, 0, *rest, 0, *rest, *rest, 0]

    content = {
        "Loop": "wrap",
        "Frames": [
            frame([0, 1, 0], rest, 0.0),
            frame([1, 1, 0], [np.cos(np.pi / 8), 0, np.sin(np.pi / 8), 0], -1.0),
            frame([2, 1, 0], [-half, 0, -half, 0], -2.0),
        ],
    }
    source = tmp_path / "turn.txt"
    source.write_text(json.dumps(content))
    packed, seconds, goes_round = make_recordings.pack(source)
    assert packed.shape == (61, 43) and seconds == 2.0 and goes_round
    frames = packed * recordings.STEPS
    np.testing.assert_allclose(frames[::15, 0], [0, 0.5, 1, 1.5, 2], atol=1e-4)
    np.testing.assert_allclose(frames[::15, 19], [0, -0.5, -1, -1.5, -2], atol=1e-4)
    angles = 2 * np.arctan2(frames[:, 5], frames[:, 3])
    np.testing.assert_allclose(angles, np.linspace(0, np.pi / 2, 61), atol=0.01)


def test_the_demo_needs_no_pybullet():
    code = """
import sys
sys.modules["pybullet"] = sys.modules["pybullet_data"] = None
import motion, motion.make_recordings
print(motion.render_clip("walk", motion.MotionPlan(frames=2, size=16)).shape)
"""
    folder = str(recordings.FILE.parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.stdout == "(2, 16, 16, 3)\n", done.stderr
