"""Training recipes: the challenge method's Table I as frozen presets, and small ones for small networks on a CPU.

The table gives each network's learning rate, epochs, schedule and warm-up; the optimiser and its weight decay are those
of each network's own paper, and the batch size at which the rate holds is 64 videos (our reading: the table has none).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from vidfuse.errors import InputError

__all__ = ["FULL_SIZE", "TABLE_I", "TINY", "TrainRecipe", "few_clips", "learning_rate"]


@dataclass(frozen=True)
class TrainRecipe:
    """How a network is trained, down to its clips; two runs of the same recipe and data are the same run.

    Attributes:
        lr: Peak learning rate at a batch of `reference_batch` videos.
        epochs: Passes over the training videos.
        warmup_epochs: Epochs of linear warm-up, counted in `epochs`.
        optimizer: "sgd" (Nesterov momentum 0.9) or "adamw" (betas 0.9, 0.999).
        weight_decay: On weights of two axes or more; biases and normalisation have none.
        batch_size: Videos in one step, over all ranks and accumulated passes.
        reference_batch: Videos in one step at which `lr` holds; see `scaled_lr`.
        accumulate: Forward passes in one step, each on `batch_size / accumulate` videos.
        clip_norm: Largest Euclidean norm of the gradient, above 0; None for no limit.
        ema: Decay of the exponential moving average of the weights, None for none; the average is what is kept.
        precision: "float32", "bfloat16", "float16" (with loss scaling), or "auto": bfloat16 on a GPU, else float32.
        label_smoothing: Probability mass moved from the true class to all classes alike.
        mixup: Alpha of MixUp (Zhang et al. 2018, section 2), 0 for none.
        cutmix: Alpha of CutMix (Yun et al. 2019, section 3), 0 for none; with both, each batch draws one.
        scenes: Probability that what stands still in a clip is replaced by a still of another video; see
            `vidfuse.training.augment.swap_scenes`.
        distil: Share of the loss that is the distance to a teacher's prediction, which `train` is given; 0 for none.
        distil_temperature: Temperature of that distance; see `vidfuse.training.teacher.distillation_loss`.
        erasing: Probability that a video loses a random rectangle (Zhong et al. 2020), in all frames.
        body_rate: Learning rate of all but the classifier, as a share of `lr`: below 1 for a trained network with a new
            classifier, 0 to keep its weights.
        activation_checkpointing: Recompute blocks in the backward pass instead of storing their activations.
        compile: Pass the network through `torch.compile`.
        frames: Frames of a clip.
        interval: Distance of neighbouring frames.
        skip: Greatest number of further frames left out between two, drawn for each training clip.
        size: Height and width of a clip in pixels.
        seed: Seed of everything random.

    Raises:
        InputError: A value of another type or out of its range, or a batch that `accumulate` does not divide.

    Example:
        >>> TrainRecipe(lr=0.1, epochs=30, batch_size=32).scaled_lr
        0.05
    """

    lr: float
    epochs: int
    warmup_epochs: float = 0.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 1e-4
    batch_size: int = 64
    reference_batch: int = 64
    accumulate: int = 1
    clip_norm: float | None = None
    ema: float | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    distil: float = 0.0
    distil_temperature: float = 2.0
    erasing: float = 0.0
    scenes: float = 0.0
    body_rate: float = 1.0
    activation_checkpointing: bool = False
    compile: bool = False
    frames: int = 32
    interval: int = 2
    skip: int = 0
    size: int = 224
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"expected a learning rate above 0, got lr={self.lr}")
        if self.epochs < 1 or not 0 <= self.warmup_epochs <= self.epochs:
            raise InputError(
                f"expected epochs >= 1 and a warm-up within them, got epochs={self.epochs}, "
                f"warmup_epochs={self.warmup_epochs}"
            )
        if self.optimizer not in ("sgd", "adamw"):
            raise InputError(f"expected optimizer 'sgd' or 'adamw', got {self.optimizer!r}")
        if self.precision not in ("auto", "float32", "bfloat16", "float16"):
            raise InputError(f"expected precision auto, float32, bfloat16 or float16, got {self.precision!r}")
        counts = ("batch_size", "reference_batch", "accumulate", "frames", "interval", "size")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise InputError(f"expected at least 1, got {', '.join(f'{n}={getattr(self, n)}' for n in low)}")
        if self.batch_size % self.accumulate:
            raise InputError(f"expected accumulate to divide batch_size, got {self.accumulate} and {self.batch_size}")
        shares = ("erasing", "scenes", "body_rate")
        if not 0 <= self.label_smoothing < 1 or not all(0 <= getattr(self, name) <= 1 for name in shares):
            raise InputError(
                f"expected label_smoothing in [0, 1) and {', '.join(shares)} in [0, 1], got {self.label_smoothing}, "
                f"{', '.join(str(getattr(self, name)) for name in shares)}"
            )
        if not 0 <= self.distil <= 1 or not 0 < self.distil_temperature < math.inf:
            raise InputError(
                f"expected distil in [0, 1] and a distil_temperature above 0, got {self.distil} and "
                f"{self.distil_temperature}"
            )
        if self.distil and (self.mixup or self.cutmix):
            raise InputError("distil: a teacher has no prediction of mixed videos; take mixup=0 and cutmix=0")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise InputError(f"expected a clip_norm above 0, or None for no limit, got {self.clip_norm}")
        amounts = (self.skip, self.mixup, self.cutmix, self.weight_decay)
        if not all(0 <= amount < math.inf for amount in amounts) or (self.ema is not None and not 0 <= self.ema < 1):
            raise InputError(
                f"expected skip, mixup, cutmix, weight_decay >= 0 and ema in [0, 1), got {self.skip}, {self.mixup}, "
                f"{self.cutmix}, {self.weight_decay} and {self.ema}"
            )

    def _check_types(self) -> None:
        """Refuse values of another type: an epoch and a half would never end, and a count that is NaN passes as any."""
        for name, field in self.__dataclass_fields__.items():
            value, kind = getattr(self, name), str(field.type)
            numbers = (int, float) if "float" in kind else (bool,) if kind == "bool" else (int,)
            right = isinstance(value, str) if ("Literal" in kind) else isinstance(value, numbers)
            if isinstance(value, bool) and kind != "bool":
                right = False
            if not right and not (value is None and "None" in kind):
                raise InputError(f"expected {name} as {kind}, got {value!r}")

    @property
    def scaled_lr(self) -> float:
        """Peak learning rate at this batch size.

        It grows linearly with the batch for SGD (Goyal et al. 2017, section 2.1) and with its square root for AdamW
        (Malladi et al. 2022): `lr * batch_size / reference_batch`, or the root of that ratio.
        """
        ratio = self.batch_size / self.reference_batch
        return self.lr * (ratio if self.optimizer == "sgd" else math.sqrt(ratio))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], base: TrainRecipe | None = None) -> Self:
        """Make a recipe of named values, such as a section of a YAML file.

        Args:
            values: Field names and values.
            base: Recipe whose fields hold where `values` names none.

        Raises:
            InputError: A name is not a field, a needed one is missing, or a value is of another type or out of range.

        Example:
            >>> TrainRecipe.from_mapping({"epochs": 10}, TABLE_I["x3d"]).lr
            0.05
        """
        known = cls.__dataclass_fields__
        if unknown := sorted(set(values) - set(known)):
            raise InputError(f"expected fields of a training recipe ({', '.join(known)}), got {', '.join(unknown)}")
        if base is None and (missing := {"lr", "epochs"} - set(values)):
            raise InputError(f"expected {' and '.join(sorted(missing))} in the training recipe, got none")
        return cls(**values) if base is None else replace(base, **values)  # type: ignore[return-value]


def learning_rate(recipe: TrainRecipe, epoch: float) -> float:
    """Learning rate after a (fractional) number of epochs: linear warm-up, then a half cosine down to zero.

    `lr(e) = peak * (e + s) / w` for e < w, else `peak * (1 + cos(pi * (e - w) / (epochs - w))) / 2`, with w the warm-up
    epochs and s = 1 % of them, so that the first step is not lost (Loshchilov and Hutter 2017, section 3).

    Args:
        recipe: The recipe.
        epoch: Epochs gone, from 0 to `recipe.epochs`.

    Example:
        >>> recipe = TrainRecipe(lr=0.1, epochs=10, warmup_epochs=2)
        >>> [round(learning_rate(recipe, e), 3) for e in (0, 1, 2, 6, 10)]
        [0.001, 0.051, 0.1, 0.05, 0.0]
    """
    peak, warmup = recipe.scaled_lr, recipe.warmup_epochs
    if epoch < warmup:
        return peak * min(1.0, epoch / warmup + 0.01)
    if recipe.epochs == warmup:
        return peak
    part = min(1.0, (epoch - warmup) / (recipe.epochs - warmup))
    return peak * (1 + math.cos(math.pi * part)) / 2


_FEW_STEPS = 600  # with fewer a small network has not learned its training clips yet


def few_clips(recipe: TrainRecipe, n_videos: int) -> TrainRecipe:
    """Return a recipe for few training videos: it keeps the network from learning the scenes that they show.

    With few videos the scene tells the class, where each action was filmed in a few places. Here what moves stands
    before stills of other videos in four clips of five (`scenes`), and there are epochs enough for at least 600 steps.
    The augmentations of `train_input` stay as they are; take `flip=0` where left and right are classes. In short
    runs on videos from many places it costs more than it gains (`benchmarks/few_clips.py`): compare with `scenes=0`.

    Args:
        recipe: The network's own recipe.
        n_videos: Training videos.

    Example:
        >>> recipe = few_clips(TINY["x3d_tiny"], n_videos=50)
        >>> recipe.epochs, recipe.scenes
        (192, 0.8)
    """
    epochs = max(recipe.epochs, math.ceil(_FEW_STEPS * recipe.batch_size / n_videos))
    warmup = recipe.warmup_epochs * epochs / recipe.epochs
    return replace(recipe, epochs=epochs, warmup_epochs=warmup, scenes=0.8)


# Learning rate, epochs and warm-up: Table I of the challenge report. Optimiser, weight decay, gradient clipping and
# label smoothing: as each network's own paper and published Kinetics configuration have them. The report skips a random
# number of frames in training: up to two between two frames, in our reading.
_SKIP = 2
TABLE_I: Mapping[str, TrainRecipe] = {
    "slowfast": TrainRecipe(lr=0.1, epochs=256, warmup_epochs=34, skip=_SKIP, weight_decay=1e-4),
    "tin": TrainRecipe(lr=0.05, epochs=200, warmup_epochs=20, skip=_SKIP, weight_decay=5e-4, clip_norm=20.0),
    "tpn": TrainRecipe(lr=0.1, epochs=150, warmup_epochs=10, skip=_SKIP, weight_decay=1e-4, clip_norm=40.0),
    "swin": TrainRecipe(
        lr=0.001, epochs=300, warmup_epochs=20, skip=_SKIP, optimizer="adamw", weight_decay=0.05, label_smoothing=0.1
    ),
    "r2plus1d": TrainRecipe(lr=0.1, epochs=180, skip=_SKIP, weight_decay=1e-4, clip_norm=40.0),
    "timesformer": TrainRecipe(
        lr=0.05, epochs=300, warmup_epochs=20, skip=_SKIP, weight_decay=1e-4, frames=8, interval=32, clip_norm=40.0
    ),
    "x3d": TrainRecipe(lr=0.05, epochs=180, warmup_epochs=10, skip=_SKIP, weight_decay=5e-5),
}

# The networks that Table I's recipes train, by member.
FULL_SIZE: Mapping[str, str] = {
    "slowfast": "slowfast_r152_4x16",
    "swin": "swin_b",
    "tin": "tin_r50",
    "tpn": "tpn_slowonly_r50",
    "x3d": "x3d_m",
    "timesformer": "timesformer_b",
    "r2plus1d": "r2plus1d_r34_32x2",
}

_SMALL = TrainRecipe(
    lr=2e-3, epochs=10, warmup_epochs=1, optimizer="adamw", weight_decay=0.05, batch_size=16, reference_batch=16,
    clip_norm=5.0, label_smoothing=0.1, frames=8, interval=4, size=48,
)  # fmt: skip

# For Table I's networks as `<network>_tiny` presets, on the embedded videos: about half a minute each on two cores.
TINY: Mapping[str, TrainRecipe] = {
    "slowfast_tiny": replace(_SMALL, epochs=4),
    "tin_tiny": replace(_SMALL, epochs=7),
    "tpn_tiny": replace(_SMALL, epochs=6),
    "swin_tiny": replace(_SMALL, lr=4e-4, epochs=8, batch_size=8, weight_decay=0.01),
    "r2plus1d_tiny": replace(_SMALL, epochs=5),
    "timesformer_tiny": replace(_SMALL, lr=5e-4, epochs=5, weight_decay=0.01),
    "x3d_tiny": replace(_SMALL, lr=1.5e-3, epochs=9),
}
