"""One step of training: the batches that make it, the loss, the gradient, and what stops a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vidfuse.errors import InputError, VidfuseError
from vidfuse.training import distributed
from vidfuse.training.augment import augment_batch
from vidfuse.training.recipes import TrainRecipe
from vidfuse.training.state import Run, autocast, average, logits_of
from vidfuse.training.teacher import distillation_loss

__all__ = [
    "Batch",
    "DivergedError",
    "Loader",
    "batches_of",
    "forward_module",
    "groups",
    "mean_norm",
    "moved",
    "nothing_read",
    "take_step",
]

Batch = tuple[Tensor, Sequence[str], "Tensor | None"]


class Loader(Protocol):
    """Anything that yields `(clips (N, 3, T, H, W), ids, labels (N,))`; `set_epoch(epoch)` is called if it has it."""

    def __len__(self) -> int:
        """Return the number of batches."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one pass."""
        ...


class DivergedError(VidfuseError):
    """A loss or gradient is not finite; the message names the epoch, the step and the batch's ids.

    In float16 a gradient may overflow: such steps are left out and halve the loss scale, until it is below 1.
    """


def batches_of(loader: Iterable[Any]) -> Iterator[Batch]:
    """Yield the batches of a loader, or say what it yields in their place.

    Raises:
        InputError: It yields anything but `(clips, ids, labels or None)`, or not as many labels as ids.

    Example:
        >>> next(batches_of([(torch.zeros(1, 3, 8, 64, 64), torch.zeros(1))]))
        Traceback (most recent call last):
        vidfuse.errors.InputError: expected a loader of batches (clips, ids, labels or None), got a tuple of 2; ...
    """
    for batch in loader:
        if not isinstance(batch, tuple | list) or len(batch) != 3:
            size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
            raise InputError(
                f"expected a loader of batches (clips, ids, labels or None), got a {type(batch).__name__}{size}; ids "
                "say which videos they are"
            )
        clips, ids, labels = batch
        if labels is not None and ids is not None and len(labels) != len(ids):  # scoring asks for no ids
            raise InputError(f"expected a label for each of the {len(ids)} videos of a batch, got {len(labels)}")
        yield clips, ids, labels


def groups(loader: Loader, size: int, device: torch.device) -> Iterator[tuple[list[Batch], int, int]]:
    """Yield the batches of each step, how many of their videos count here, and how many do on all ranks.

    A rank whose videos are used up repeats its last batch, with a weight of 0, until all ranks are done. So each video
    counts exactly once in an epoch.
    """
    source = batches_of(loader)
    group: list[Batch] = []
    while True:
        fresh = list(islice(source, size))
        local = sum(len(batch[1]) for batch in fresh)
        n = int(distributed.total([local], device)[0])
        if n == 0:
            return
        group = fresh or group[-1:]
        if not group:
            raise InputError("expected videos on every rank, got a rank that has none")
        yield group, local, n


def nothing_read(loader: Any, why: str = "train on") -> str:
    """Say that a pass over the loader gave no video, and why the first one could not be read."""
    failures = getattr(loader, "failures", ())
    if not failures:
        return f"expected videos to {why}, got an empty loader"
    first = f"; {failures[0].id}: {failures[0].reason}"
    return f"expected videos to {why}, got none of {len(failures)} that can be read{first}"


def mean_norm(norms: Sequence[float]) -> float:
    """Return the mean of the gradient norms of the steps that were taken; those float16 left out are not finite.

    Example:
        >>> mean_norm([1.0, float("inf"), 3.0]), mean_norm([float("inf")])
        (2.0, inf)
    """
    taken = [norm for norm in norms if math.isfinite(norm)]
    return sum(taken) / len(taken) if taken else math.inf


@dataclass(frozen=True)
class _Answer:
    """Logits, and those of classifiers that help in training alone."""

    logits: Tensor
    auxiliary: Sequence[Tensor]
    auxiliary_weight: float


class _WithAuxiliary(nn.Module):
    """A network whose second classifier counts half in training, as TPN's does (its section 4.1)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> _Answer:
        stages = self.network.stages(clips)
        return _Answer(self.network.head(stages[-1]), [self.network.auxiliary_logits(stages)], 0.5)


def forward_module(run: Run) -> nn.Module:
    """Return what training's forward passes go through: the network, compiled and shared between ranks where asked.

    Raises:
        InputError: The recipe asks for activation checkpointing, which the network cannot do.
    """
    forward: Any = run.model
    if run.recipe.activation_checkpointing:
        if not hasattr(forward, "set_grad_checkpointing"):
            raise InputError("activation_checkpointing: expected a network with set_grad_checkpointing(), got none")
        forward.set_grad_checkpointing(True)
    if getattr(forward, "auxiliary", None) is not None and hasattr(forward, "auxiliary_logits"):
        forward = _WithAuxiliary(forward)
    if run.recipe.compile:
        forward = torch.compile(forward)
    if distributed.world_size() > 1:
        forward = nn.parallel.DistributedDataParallel(forward)
    return forward


def moved(clips: Any, device: torch.device) -> Any:
    """Return clips, or a mapping of them, on a device."""
    if isinstance(clips, Mapping):
        return {name: value.to(device, non_blocking=True) for name, value in clips.items()}
    return clips.to(device, non_blocking=True)


def _loss(answer: Any, targets: Tensor, recipe: TrainRecipe, taught: Tensor | None) -> Tensor:
    """Return the mean loss of the logits, and that of an answer's auxiliary logits times their weight.

    It is the cross-entropy of the targets; with a teacher's log-likelihoods, in part the distance to these.
    """

    def loss_of(logits: Tensor) -> Tensor:
        loss = cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
        if taught is None:
            return loss
        return (1 - recipe.distil) * loss + recipe.distil * distillation_loss(logits, taught, recipe.distil_temperature)

    loss = loss_of(logits_of(answer))
    for logits in getattr(answer, "auxiliary", ()):
        loss = loss + answer.auxiliary_weight * loss_of(logits)
    return loss


def _seed_step(seed: int, step: int, part: int) -> None:
    """Draw all chance of a forward pass from where it stands in the run, so that a resumed run draws the same."""
    mixed = (seed * 1_000_003 + step) * 1_009 + part * 101 + distributed.rank()
    torch.manual_seed(mixed % 2**63)


def take_step(run: Run, forward: nn.Module, group: list[Batch], scale: float, lr: float) -> tuple[float, float]:
    """Take one step over the group's batches and return the videos' summed loss and the gradient's norm.

    Each batch's summed loss is multiplied by `scale`, so that the mean over ranks is the mean over the step's videos.
    """
    # Each batch of the group: move it, mix it if the recipe says so, forward, loss, backward (gradients add up). Then,
    # once: unscale, clip, step, average. A loss that is not finite stops the run. So does a gradient; but in float16
    # the scaler leaves such a step out and halves the scale, and the run stops only when the scale is below 1.
    recipe = run.recipe
    for settings in run.optimizer.param_groups:
        settings["lr"] = lr * settings.get("rate", 1.0)
    ids = [str(i) for batch in group for i in batch[1]]
    where = f"epoch {run.epoch + 1}, step {run.step + 1}, learning rate {lr:.3g}, videos {', '.join(ids)}"
    summed = 0.0
    for part, (clips, own_ids, labels) in enumerate(group):
        if labels is None:
            raise InputError(f"expected labelled videos to train on, got none in {where}")
        _seed_step(recipe.seed, run.step, part)
        clips, labels = moved(clips, run.device), labels.to(run.device, non_blocking=True)
        last = part == len(group) - 1
        hold: Any = nullcontext()
        if isinstance(forward, nn.parallel.DistributedDataParallel) and not last:
            hold = forward.no_sync()  # ranks exchange gradients once a step
        with hold:
            with autocast(run.device, run.dtype):
                if recipe.mixup or recipe.cutmix or recipe.scenes:
                    # Mixed targets need the classifier's width before the network has answered.
                    clips, labels = augment_batch(clips, labels, recipe, run.width(clips))
                answer = forward(clips)
            taught = None if run.teacher is None else run.teacher.log_likelihoods(own_ids).to(run.device)
            loss = _loss(answer, labels, recipe, taught)
            value = loss.item()
            if not math.isfinite(value):
                raise DivergedError(f"the loss is {value}: {where}; lower the learning rate or look at these videos")
            run.scaler.scale(loss * (len(labels) * scale)).backward()
        summed += value * len(labels)
    run.scaler.unscale_(run.optimizer)
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    norm = float(nn.utils.clip_grad_norm_(parameters, recipe.clip_norm or math.inf))
    if not math.isfinite(norm) and not run.scaler.is_enabled():
        raise DivergedError(f"the gradient's norm is {norm}: {where}; lower the learning rate or look at these videos")
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if not math.isfinite(norm) and run.scaler.get_scale() < 1:  # halved after each such step: it is not the scale
        raise DivergedError(
            f"the gradient's norm is {norm} at every loss scale down to 1: {where}; "
            "lower the learning rate, look at these videos, or take bfloat16"
        )
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    if run.ema is not None:
        average(run.ema, run.model, float(recipe.ema or 0.0), run.step)
    return summed, norm
