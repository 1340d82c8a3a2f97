"""The 15 motion-capture recordings that the demo ships: read, checked, and sampled at any time.

`recordings.npz` holds, for each action, its frames at equal distances in time, as 16-bit integers (F, 43):

    0       3            7      11     15     19   20     24        28   29     33   34     38        42
    | root  | root       | chest| neck | right| r. | right| right   | r. | left | l. | left | left    | l.    |
    | x y z | rotation   |      |      | hip  |knee|ankle |shoulder |elbow| hip |knee|ankle |shoulder | elbow |

and beside them each recording's length in seconds, and whether its end goes over into its beginning. Rotations are
quaternions w x y z, of a joint against its parent; knees and elbows are angles. y is up, the person looks along +x and
has +z at the right hand. `make_recordings.py` made the file; docs/licences.md tells where the recordings come from.
"""

from __future__ import annotations

import zipfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from motion.plan import ACTIONS
from vidfuse.errors import InputError

__all__ = ["ANGLES", "FILE", "QUATERNIONS", "STEPS", "Recording", "load", "sample"]

FILE = Path(__file__).with_name("recordings.npz")
COLUMNS = 43
QUATERNIONS = (3, 7, 11, 15, 20, 24, 29, 34, 38)  # first columns of the rotations
ANGLES = (19, 28, 33, 42)  # knees and elbows, in radians
# One step of the integers: a tenth of a millimetre, a 32,767th, a ten-thousandth of a radian.
STEPS = np.full(COLUMNS, 1 / 32767)
STEPS[:3] = STEPS[list(ANGLES)] = 1e-4

Recording = tuple[NDArray[np.float64], float, bool]


@cache
def load(path: Path = FILE) -> dict[str, Recording]:
    """Read the frames (F, 43), the length in seconds and whether it goes round, of every recording.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with open(path, "rb") as archive, np.load(archive, allow_pickle=False) as file:
            seconds, rounds = file["seconds"], file["rounds"]
            for column, kind in ((seconds, np.float64), (rounds, np.bool_)):
                if column.shape != (len(ACTIONS),) or column.dtype != kind:
                    raise ValueError(f"shape {column.shape} and type {column.dtype} for {len(ACTIONS)} recordings")
            if not np.all((seconds > 0.1) & (seconds < 60)):
                raise ValueError(f"lengths in seconds {seconds}")
            frames = [_unpacked(action, file[action]) for action in ACTIONS]
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"expected {len(ACTIONS)} recordings of human motion in {path}, got {type(error).__name__}: {error}; "
            "take the file from the repository again (git checkout), or make it with "
            "`python -m motion.make_recordings` in examples/"
        ) from error
    return {a: (f, float(s), bool(r)) for a, f, s, r in zip(ACTIONS, frames, seconds, rounds, strict=True)}


def _unpacked(action: str, packed: NDArray[np.int16]) -> NDArray[np.float64]:
    if packed.dtype != np.int16 or packed.ndim != 2 or len(packed) < 2 or packed.shape[1] != COLUMNS:
        raise ValueError(f"frames of shape {packed.shape} and type {packed.dtype} for {action!r}")
    frames = packed * STEPS
    for start in QUATERNIONS:
        length = _norm(frames[:, start : start + 4])
        if np.abs(length - 1).max() > 1e-3:
            raise ValueError(f"rotations that are none for {action!r}")
        frames[:, start : start + 4] /= length
    return frames


def _norm(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the lengths (F, 1), summed in a fixed order."""
    w, x, y, z = (quaternions[:, i : i + 1] for i in range(4))
    return np.sqrt(w * w + x * x + y * y + z * z)


def sample(recording: Recording, times: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the poses (T, 43) at some times in seconds, playing the recording round and round.

    Where its end goes over into its beginning, the person goes on from where a round ended.
    """
    frames, seconds, goes_round = recording
    rounds = np.floor(times / seconds)
    position = (times / seconds - rounds) * (len(frames) - 1)
    left = np.minimum(position.astype(int), len(frames) - 2)
    part = (position - left)[:, None]
    poses = frames[left] * (1 - part) + frames[left + 1] * part
    for start in QUATERNIONS:
        poses[:, start : start + 4] /= _norm(poses[:, start : start + 4])
    if goes_round:
        poses[:, [0, 2]] += rounds[:, None] * (frames[-1] - frames[0])[[0, 2]]
    return poses
