"""Make `recordings.npz` from the motion files of pybullet's data folder: `python -m motion.make_recordings`.

pybullet (3.2.7, zlib licence) is needed for this alone, and has wheels up to Python 3.11. Its files are altered: frames
are resampled to 30 a second, quaternions of neighbouring frames put on the same side, and numbers rounded to 16 bits.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from motion.plan import ACTIONS
from motion.recordings import ANGLES, FILE, QUATERNIONS, STEPS

RATE = 30


def pack(source: Path) -> tuple[NDArray[np.int16], float, bool]:
    """Return a motion file's frames as integers (F, 43), its length in seconds, and whether it goes round."""
    content = json.loads(source.read_text())
    frames = np.array(content["Frames"], dtype=np.float64)
    ends, frames = np.append(0.0, np.cumsum(frames[:-1, 0])), frames[:, 1:]
    for start in QUATERNIONS:
        q = frames[:, start : start + 4]
        q *= np.cumprod(np.where(np.append(1.0, (q[1:] * q[:-1]).sum(1)) < 0, -1.0, 1.0))[:, None]
    times = np.linspace(0, ends[-1], round(ends[-1] * RATE) + 1)
    even = np.stack([np.interp(times, ends, column) for column in frames.T], axis=1)
    for start in QUATERNIONS:
        even[:, start : start + 4] /= np.linalg.norm(even[:, start : start + 4], axis=1, keepdims=True)
    even[:, list(ANGLES)] = np.remainder(even[:, list(ANGLES)] + np.pi, 2 * np.pi) - np.pi
    return np.round(even / STEPS).astype(np.int16), float(ends[-1]), content["Loop"] == "wrap"


def main() -> None:
    """Write the file."""
    import pybullet_data

    folder = Path(pybullet_data.getDataPath(), "data", "motions")
    packed = [pack(folder / f"humanoid3d_{action.replace(' ', '_')}.txt") for action in ACTIONS]
    frames, seconds, rounds = zip(*packed, strict=True)
    arrays = dict(zip(ACTIONS, frames, strict=True))
    np.savez_compressed(FILE, seconds=np.array(seconds), rounds=np.array(rounds), **arrays)


if __name__ == "__main__":
    main()
