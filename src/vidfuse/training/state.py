"""The state of a training run: network, optimiser, average, history, and the checkpoint that holds them."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vidfuse.errors import InputError
from vidfuse.training import distributed
from vidfuse.training.checkpoints import load_checkpoint, save_checkpoint
from vidfuse.training.logs import write_csv
from vidfuse.training.recipes import TrainRecipe

__all__ = ["Run", "Trained", "autocast", "average", "logits_of", "trained"]


class Trained(NamedTuple):
    """What a run's checkpoint says of its network: the recipe, and K, the width of its classifier."""

    recipe: TrainRecipe
    n_classes: int


def trained(path: str | Path) -> Trained | None:
    """Return how the network in a checkpoint was trained, or None if the file is not of one network's run.

    Example:
        >>> trained("x3d_m.safetensors")
    """
    try:
        identity = json.loads(load_checkpoint(path)["identity"])
        shapes = dict(identity.pop("weights"))
        return Trained(TrainRecipe.from_mapping(identity), int(shapes["classifier.weight"][0]))
    except (InputError, OSError, KeyError, TypeError, ValueError):
        return None


def logits_of(output: Any) -> Tensor:
    """Return the logits of what a network returned: a tensor, or an object or mapping that holds them as `logits`.

    Raises:
        InputError: There are none.

    Example:
        >>> logits_of({"logits": torch.zeros(2, 3)}).shape
        torch.Size([2, 3])
    """
    if isinstance(output, dict):
        output = output.get("logits", output)
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or output.ndim != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"expected logits of shape (N, K), as a tensor or as `.logits`, got {got}; pass forward=")
    return output


def _precision(recipe: TrainRecipe, device: torch.device) -> torch.dtype:
    name = recipe.precision
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def autocast(device: torch.device, dtype: torch.dtype) -> Any:
    """Return the context in which a forward pass runs in a lower precision, or an empty one for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def _optimizer(model: nn.Module, recipe: TrainRecipe) -> torch.optim.Optimizer:
    """Make the recipe's optimiser; what has one axis (biases, normalisation) is not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.scaled_lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.scaled_lr)


@torch.no_grad()
def average(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the weights; the decay grows over the first steps, buffers are copied."""
    decay = min(decay, (1 + step) / (10 + step))
    for mean, now in zip(ema.parameters(), model.parameters(), strict=True):
        mean.data.lerp_(now, 1 - decay)
    for kept, seen in zip(ema.buffers(), model.buffers(), strict=True):
        kept.copy_(seen)


class Run:
    """The state of one training run: what its checkpoint holds.

    Args:
        model: The network, moved to the device.
        recipe: How it is trained.
        folder: The run's folder.
        device: Where it is trained.
    """

    def __init__(self, model: nn.Module, recipe: TrainRecipe, folder: Path, device: torch.device) -> None:
        self.model, self.recipe, self.folder, self.device = model.to(device), recipe, folder, device
        distributed.agree(self.model)  # the average of every rank starts from the same weights
        self.dtype = _precision(recipe, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.optimizer = _optimizer(self.model, recipe)
        self.ema = copy.deepcopy(self.model).requires_grad_(False) if recipe.ema is not None else None
        self.history: list[dict[str, float]] = []
        self.epoch = self.step = 0
        self._width: int | None = None
        self.identity = {**asdict(recipe), "weights": [[k, list(v.shape)] for k, v in model.state_dict().items()]}

    @property
    def best(self) -> nn.Module:
        """The weights that are kept in the end."""
        return self.model if self.ema is None else self.ema

    def agree(self) -> None:
        """Give all ranks rank 0's batch statistics, so that what they score and cache is what is saved."""
        distributed.agree(self.model)
        if self.ema is not None:
            distributed.agree(self.ema)

    def width(self, clips: Tensor) -> int:
        """Return the number of classes the network tells apart, asked once and without a trace in its statistics."""
        if self._width is None:
            self.model.eval()
            with torch.no_grad():
                self._width = int(logits_of(self.model(clips[:1])).shape[1])
            self.model.train()
        return self._width

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs; of a finished run, its weights and its history alone."""
        state: dict[str, Any] = {
            "identity": json.dumps(self.identity),
            "epoch": self.epoch,
            "step": self.step,
            "history": self.history,
            "model": self.best.state_dict(),
        }
        if self.epoch < self.recipe.epochs:
            state |= {
                "model": self.model.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
        return state

    def save(self) -> None:
        """Publish the checkpoint and the log."""
        save_checkpoint(self.folder / "last.pt", self.state())
        write_csv(self.folder / "log.csv", self.history)

    def load(self) -> None:
        """Go on from the folder's checkpoint, if it has one."""
        path = self.folder / "last.pt"
        if path.exists():
            self.restore(load_checkpoint(path), path)

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Go on from a state that `state` returned.

        Raises:
            InputError: It is that of another run; `path` says whose.
        """
        stored = json.loads(state["identity"])
        if stored != json.loads(json.dumps(self.identity)):
            differ = [k for k in self.identity if stored.get(k) != json.loads(json.dumps(self.identity[k]))]
            raise InputError(
                f"expected {path} to be of this run, got one that differs in {', '.join(differ)}; "
                "train into another folder or remove this one"
            )
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]
        if self.epoch == self.recipe.epochs:
            self.best.load_state_dict(state["model"])
            return
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
