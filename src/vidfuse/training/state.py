"""The state of a training run: network, optimiser, average, history, and the checkpoint that holds them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vidfuse.errors import InputError
from vidfuse.networks.checkpoints import CLASSIFIERS
from vidfuse.stack.stack import LogitStack
from vidfuse.training import distributed
from vidfuse.training.checkpoints import load_checkpoint, save_checkpoint
from vidfuse.training.logs import write_csv
from vidfuse.training.progress import best_row
from vidfuse.training.recipes import TrainRecipe
from vidfuse.training.teacher import Teacher

__all__ = [
    "Run",
    "Trained",
    "autocast",
    "average",
    "check_folder",
    "check_identity",
    "identity_of",
    "logits_of",
    "trained",
]


class Trained(NamedTuple):
    """What a run's checkpoint says of its network: recipe, K, the classes' names, scored weights, catalogue name."""

    recipe: TrainRecipe
    n_classes: int
    classes: tuple[str, ...] | None
    weights: dict[str, Tensor]
    network: str | None = None


def trained(path: str | Path) -> Trained | None:
    """Return how the network in a checkpoint was trained, or None if the file is not of one network's run.

    Example:
        >>> trained("x3d_m.safetensors")
    """
    try:
        state = _renamed(load_checkpoint(path))
        identity = json.loads(state["identity"])
        shapes, classes = dict(identity.pop("weights")), identity.pop("classes", None)
        for other in ("network", "videos", "validation", "teacher", "clips"):
            identity.pop(other, None)
        n_classes = int(shapes["classifier.weight"][0])
        names = None if classes is None else tuple(classes)
        recipe = TrainRecipe.from_mapping(identity)
        return Trained(recipe, n_classes, names, state["model"], state.get("network"))
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
        raise InputError(
            f"expected logits of shape (N, K), as a tensor or as `.logits`, got {got}; "
            "pass forward=, a function (model, batch) -> logits"
        )
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
    """Make the recipe's optimiser; what has one axis (biases, normalisation) is not decayed.

    Each group's `rate` is its share of the learning rate.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head = [name for name, _ in trained if name.startswith(CLASSIFIERS)] if recipe.body_rate < 1 else []
    if recipe.body_rate < 1 and not head:
        raise InputError(
            f"body_rate={recipe.body_rate}: expected a network whose classifier is named `classifier`, got one without "
            f"({type(model).__name__}); take body_rate=1"
        )
    groups = []
    for rate in (recipe.body_rate, 1.0) if head else (1.0,):
        own = [p for name, p in trained if not head or (name in head) == (rate == 1.0)]
        groups += [
            {"params": [p for p in own if p.ndim > 1], "weight_decay": recipe.weight_decay, "rate": rate},
            {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0, "rate": rate},
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


def _data_of(loader: Any) -> dict[str, Any]:
    """Return the classes' names and a digest of the videos and labels of the loader's data set, if it tells them."""
    videos = getattr(getattr(loader, "dataset", None), "videos", None)
    ids, labels = getattr(videos, "ids", None), getattr(videos, "labels", None)
    if ids is None or labels is None:
        return {}
    rows = sorted(f"{video_id}\t{label}" for video_id, label in zip(ids, labels, strict=True))
    names = getattr(videos, "classes", None)
    digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    return {"classes": None if names is None else list(names), "videos": digest}


def _clips_of(loader: Any) -> dict[str, Any]:
    """Return how the clips of the loader's data set are drawn and augmented, by the words for it, if it tells that."""
    dataset = getattr(loader, "dataset", None)
    inputs = getattr(dataset, "inputs", None)
    if not isinstance(inputs, Mapping) or not all(hasattr(source, "transform") for source in inputs.values()):
        return {}
    clips: dict[str, Any] = {"shared_time": bool(getattr(dataset, "shared_time", False))}
    for name, source in inputs.items():
        of = f" of {name}" if name else ""
        for word, values in (("sampler", source.sampler), ("augmentation", source.transform)):
            clips |= {f"{word}.{field}{of}": value for field, value in asdict(values).items()}
    return {"clips": clips}


def identity_of(model: nn.Module, recipe: TrainRecipe, loader: Any, val_loader: Any = None) -> dict[str, Any]:
    """Return what a run must have in common with the one that it goes on from."""
    shapes = [[name, list(value.shape)] for name, value in model.state_dict().items()]
    scored = _data_of(val_loader).get("videos")
    validation = {} if scored is None else {"validation": scored}
    name = getattr(model, "name", None)
    network = {"network": name} if isinstance(name, str) else {}  # networks of equal shapes may sample other frames
    return {**asdict(recipe), **network, "weights": shapes, **_data_of(loader), **_clips_of(loader), **validation}


def _teacher(recipe: TrainRecipe, loader: Any, stack: LogitStack | None) -> Teacher | None:
    """Return the teacher of the loader's videos, where the recipe distils."""
    if (stack is None) == (recipe.distil > 0):
        given = "got none" if stack is None else f"and distil above 0 in the recipe, got distil={recipe.distil}"
        raise InputError(f"distillation: expected a teacher, a prediction of each training video, {given}")
    if stack is None:
        return None
    videos = getattr(getattr(loader, "dataset", None), "videos", None)
    teacher = Teacher(stack, getattr(videos, "classes", None))
    if (ids := getattr(videos, "ids", None)) is not None:
        teacher.check_ids(ids)
        if (labels := getattr(videos, "labels", None)) is not None:
            teacher.check_labels(ids, labels)
    return teacher


def _renamed(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state as `Run.state` names its parts; the first checkpoints held an unfinished average as `ema`."""
    if state.get("ema") is None:
        return state
    return {**state, "model": state["ema"], "stepped": state["model"]}


def check_identity(state: dict[str, Any], identity: dict[str, Any], path: Path) -> None:
    """Check that a checkpoint's state is of the run that `identity_of` tells.

    Raises:
        InputError: It is not; the message says in what it differs, and names the checkpoint's path.
    """
    if "identity" not in state:
        raise InputError(
            f"expected {path} to be of one network's run, got one that holds {', '.join(map(str, state))}; "
            "train into another folder"
        )
    defaults = {field.name: field.default for field in fields(TrainRecipe) if field.default is not MISSING}
    stored, own = {**defaults, **json.loads(state["identity"])}, json.loads(json.dumps(identity))  # of earlier releases
    if "clips" in stored and "clips" in own:
        stored, own = ({**one, **one["clips"], "clips": sorted(one["clips"])} for one in (stored, own))
    untold = {"network", "classes", "videos", "validation", "clips"} - (set(stored) & set(own))  # not all loaders tell
    if own["epochs"] > stored.get("epochs", 0) and own["epochs"] > state["epoch"]:
        untold.add("epochs")  # a run may be given more epochs, before its end and after
    if differ := [k for k in own if k not in untold and stored.get(k) != own[k]]:
        clips = own.get("clips", ())  # most follow from the recipe: they are told where nothing else is
        differ = [k for k in differ if k not in clips] or differ
        words = {"videos": "its training videos", "validation": "its validation videos"}
        what = ", ".join(words.get(name, name) for name in differ)
        raise InputError(
            f"expected {path} to be of this run, got one that differs in {what}; "
            "train into another folder or remove this one"
        )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what tells a file from another one that took its name; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def check_folder(folder: Path, model: nn.Module, recipe: TrainRecipe, loader: Any, val_loader: Any = None) -> None:
    """Check that a folder has no checkpoint of another run, before anything is written there.

    Raises:
        InputError: It has one; the message says in what it differs.
    """
    path = next((folder / name for name in ("last.pt", "best.pt") if (folder / name).exists()), None)
    if path is not None:  # best.pt alone is of a run that was killed in its first epoch's end, or that was taken away
        check_identity(load_checkpoint(path), identity_of(model, recipe, loader, val_loader), path)


class Run:
    """The state of one training run: what its checkpoint holds.

    Args:
        model: The network, moved to the device.
        recipe: How it is trained.
        folder: The run's folder.
        device: Where it is trained.
        loader: What it is trained on; if it tells its videos, a run is resumed on the same ones alone.
        val_loader: What is scored after each epoch; likewise, as the best epoch is the best on the same ones.
        teacher: A prediction of each video, for a recipe that distils.

    Raises:
        InputError: The recipe distils and there is no teacher, or the other way round, or a video has no prediction.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: TrainRecipe,
        folder: Path,
        device: torch.device,
        loader: Any = None,
        teacher: LogitStack | None = None,
        val_loader: Any = None,
    ) -> None:
        self.teacher = _teacher(recipe, loader, teacher)
        self.model, self.recipe, self.folder, self.device = model.to(device), recipe, folder, device
        distributed.agree(self.model)  # the average of every rank starts from the same weights
        self.dtype = _precision(recipe, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.optimizer = _optimizer(self.model, recipe)
        self.ema = copy.deepcopy(self.model).requires_grad_(False) if recipe.ema is not None else None
        self.history: list[dict[str, float]] = []
        self.epoch = self.step = 0
        self._width: int | None = None
        self._left: tuple[int, int, int] | None = None  # last.pt as this run found or left it
        self.identity = identity_of(model, recipe, loader, val_loader)
        if self.teacher is not None:
            self.identity["teacher"] = self.teacher.digest

    @property
    def best(self) -> nn.Module:
        """The weights that are kept in the end."""
        return self.model if self.ema is None else self.ema

    def agree(self) -> None:
        """Give all ranks rank 0's batch statistics, so that what they score and cache is what is saved."""
        distributed.agree(self.model)
        if self.ema is not None:
            distributed.agree(self.ema)

    def width(self, clips: Any) -> int:
        """Return the number of classes that the network tells apart. It is run once, in eval mode, to find out.

        Args:
            clips: Clips of at least one video, or a mapping of them.
        """
        if self._width is None:
            self.model.eval()
            with torch.no_grad():
                one = {name: own[:1] for name, own in clips.items()} if isinstance(clips, Mapping) else clips[:1]
                self._width = int(logits_of(self.model(one)).shape[1])
            self.model.train()
        return self._width

    def check_ranks(self) -> None:
        """Check that all processes go on from the same step.

        Raises:
            InputError: They found different checkpoints; raised in every process.
        """
        least, most = -distributed.largest(-self.step, self.device), distributed.largest(self.step, self.device)
        if least != most:
            raise InputError(
                f"expected all processes to find the same checkpoint in {self.folder}, got steps {least:.0f} to "
                f"{most:.0f}; give the run a folder that all machines share"
            )

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs; of a finished run, its weights and its history alone.

        `model` holds the weights that are kept: the average, where the recipe asks for one.
        """
        state: dict[str, Any] = {
            "identity": json.dumps(self.identity),
            "epoch": self.epoch,
            "step": self.step,
            "history": self.history,
            "network": getattr(self.model, "name", None),
            "model": self.best.state_dict(),
        }
        if self.epoch < self.recipe.epochs:
            state |= {
                "stepped": None if self.ema is None else self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
        return state

    def save(self) -> None:
        """Publish the checkpoint and the log, and the checkpoint of the best epoch if this one is."""
        state, best = self.state(), best_row(self.history)
        self.check_alone()
        if best is None:
            (self.folder / "best.pt").unlink(missing_ok=True)  # left by a run whose last.pt was taken away
        elif best is self.history[-1]:  # first: a run that is killed here does this epoch again
            unneeded = ("stepped", "optimizer", "scaler")
            save_checkpoint(self.folder / "best.pt", {k: v for k, v in state.items() if k not in unneeded})
        self.save_last(state)
        write_csv(self.folder / "log.csv", self.history)

    def load(self) -> None:
        """Go on from the folder's checkpoint, if it has one.

        Raises:
            InputError: It is that of another run, or the best epoch's is.
        """
        path, best = self.folder / "last.pt", self.folder / "best.pt"
        if path.exists():
            self.restore(load_checkpoint(path), path)
        elif best.exists():
            check_identity(load_checkpoint(best), self.identity, best)

    def check_alone(self) -> None:
        """Refuse to write into a folder that another process writes to: its epochs and this one's would mix.

        Raises:
            InputError: The checkpoint is not as this run found or left it.
        """
        found = _stamp(self.folder / "last.pt")
        if found not in (None, self._left):
            raise InputError(
                f"expected {self.folder} for this run alone, but another process has written last.pt there; stop one "
                "of them, or train into another folder"
            )

    def save_last(self, state: dict[str, Any]) -> None:
        """Publish the checkpoint that a run goes on from."""
        save_checkpoint(self.folder / "last.pt", state)
        self._left = _stamp(self.folder / "last.pt")

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Go on from a state that `state` returned.

        Raises:
            InputError: It is that of another run; `path` says whose.
        """
        check_identity(state, self.identity, path)
        self._left = _stamp(path)
        state = _renamed(state)
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]
        if self.epoch == self.recipe.epochs:
            self.best.load_state_dict(state["model"])
            return
        self.best.load_state_dict(state["model"])
        if "optimizer" not in state:  # it had ended, and is given more epochs: its momentum begins anew
            self.model.load_state_dict(state["model"])
            return
        if self.ema is not None:
            self.model.load_state_dict(state["stepped"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
