"""Goldens of the published networks: key layouts and outputs, with fills that are bit-identical on every machine."""

import hashlib
import json
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDENS = Path(__file__).parent / "goldens"

collect_ignore = ["make_goldens.py"]  # a command, for environments that have the published packages


@dataclass(frozen=True)
class Golden:
    """One published implementation: its key layout, its size, and its outputs for given clips.

    ``keys`` lists ``name shape`` or, for the five tensors of a batch normalisation, ``name norm width``.
    """

    network: str
    source: str
    axes: str
    output: str
    overrides: dict
    parameters: int
    keys_sha256: str
    outputs: dict
    keys: list
    gmacs: float | None = None
    gmacs_shape: list = field(default_factory=list)

    def layout(self):
        """Every key of the source with its shape and whether it is a floating-point tensor, in order."""
        for line in self.keys:
            name, *rest = line.split(" ")
            if rest[0] == "norm":
                for leaf in ("weight", "bias", "running_mean", "running_var"):
                    yield f"{name}.{leaf}", (int(rest[1]),), True
                yield f"{name}.num_batches_tracked", (), False
            else:
                yield name, tuple(int(extent) for extent in rest[0].split("x")), len(rest) == 1

    def digest(self):
        return hashlib.sha256("\n".join(f"{key} {shape}" for key, shape, _ in self.layout()).encode()).hexdigest()

    def state_dict(self):
        return {key: torch.from_numpy(fill_value(key, shape)) for key, shape, floating in self.layout() if floating}

    def clips(self, shape):
        clips = make_clip(shape)
        return clips.transpose(1, 2) if self.axes == "NTCHW" else clips


def _unit(key, shape):
    """Zero-mean unit-variance uniform values in ±√3, seeded by the key: no libm, no torch generator."""
    values = np.random.RandomState(zlib.crc32(key.encode())).random_sample(math.prod(shape))
    return ((2.0 * values - 1.0) * math.sqrt(3.0)).reshape(shape)


def fill_value(key, shape):
    """A float32 array for the tensor of that name and shape, of a size that keeps activations in range."""
    values = _unit(key, shape)
    leaf = key.rpartition(".")[2]
    if leaf == "running_var":
        values = 1.0 + 0.5 * values / math.sqrt(3.0)
    elif leaf == "running_mean" or (leaf.endswith("bias") and len(shape) <= 1):
        values = 0.1 * values
    elif leaf.endswith("weight"):
        values = 1.0 + 0.1 * values if len(shape) == 1 else (0.9 / math.sqrt(math.prod(shape[1:]))) * values
    else:
        values = 0.5 * values
    return values.astype(np.float32)


def make_clip(shape, tag="clip"):
    """White noise, blocks of 16 × 16 pixels, an offset for each frame and channel, and one for each sample."""
    shape = tuple(shape)
    name = f"{tag}:" + "x".join(map(str, shape))
    height, width = shape[-2:]
    coarse = _unit(f"{name}/coarse", (*shape[:-2], (height + 15) // 16, (width + 15) // 16))
    coarse = np.repeat(np.repeat(coarse, 16, axis=-2), 16, axis=-1)[..., :height, :width]
    fine = _unit(f"{name}/fine", shape)
    frame = _unit(f"{name}/frame", (*shape[:-2], 1, 1))
    sample = _unit(f"{name}/sample", shape[:1] + (1,) * (len(shape) - 1))
    return torch.from_numpy((coarse + 0.5 * fine + 0.5 * frame + 0.5 * sample).astype(np.float32))


def pytest_generate_tests(metafunc):
    """Run every test that takes a ``golden`` once for each."""
    if "golden" in metafunc.fixturenames:
        paths = sorted(GOLDENS.glob("*.json"))
        metafunc.parametrize(
            "golden", [Golden(**json.loads(p.read_text())) for p in paths], ids=[p.stem for p in paths]
        )


@pytest.fixture
def two_threads():
    """Two threads for the one test that is about arithmetic at full size."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
