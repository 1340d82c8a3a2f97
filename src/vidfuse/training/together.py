"""Several networks trained side by side on the same decoded videos, their fusion followed from stage to stage."""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from vidfuse._checks import check_member_names
from vidfuse.errors import InputError, MissingExtraError, VidfuseWarning
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule
from vidfuse.stack.stack import LogitStack
from vidfuse.training.recipes import TrainRecipe, learning_rate

try:
    import torch
    from torch import nn

    from vidfuse.training import distributed
    from vidfuse.training.checkpoints import load_checkpoint, save_checkpoint
    from vidfuse.training.evaluation import mean_of_views
    from vidfuse.training.logs import Events, write_csv
    from vidfuse.training.progress import accuracy_text, duration, goes_on_later, say
    from vidfuse.training.progress import bar as progress_bar
    from vidfuse.training.state import Run, autocast, check_identity, identity_of
    from vidfuse.training.step import (
        DivergedError,
        Loader,
        batches_of,
        forward_module,
        groups,
        mean_norm,
        moved,
        nothing_read,
        take_step,
    )
except ImportError as error:
    raise MissingExtraError("training", "training") from error

__all__ = ["TogetherResult", "check_folder", "train_together"]


@dataclass(frozen=True)
class TogetherResult:
    """Networks that were trained together.

    Attributes:
        models: The networks in eval mode, by member.
        stages: One row per stage: stage, epoch, step, each member's accuracy (`top1_<member>`) and weight
            (`weight_<member>`), `fused_top1` and `uniform_top1`.
        histories: Each member's rows, one an epoch.
        folder: Where checkpoint and logs lie.
        resumed_at: Epochs that were done when this call began.
    """

    models: dict[str, nn.Module]
    stages: list[dict[str, float]]
    histories: dict[str, list[dict[str, float]]]
    folder: Path
    resumed_at: int


def train_together(
    models: Mapping[str, nn.Module],
    loader: Loader,
    recipes: Mapping[str, TrainRecipe],
    folder: str | Path,
    *,
    val_loader: Iterable[Any],
    stage_steps: int | None = None,
    pool: Rule | None = None,
    device: torch.device | str = "cpu",
    tensorboard: bool = True,
    progress: bool = True,
) -> TogetherResult:
    """Train several networks on each decoded batch, and fuse their validation predictions anew after each stage.

    A stage is an epoch, or a number of steps. After it every member predicts the validation videos, the pool is fitted
    on these predictions, and its weights are logged: how much each member counts at this stage of its training. The
    fused score is cross-fitted: the weights that fuse one half of the videos were fitted on the other half. Every
    member takes the steps that `train` would take with it alone, and the run resumes from its last epoch bit by bit.

    Args:
        models: {member: network}.
        loader: Yields `(clips, ids, labels)`, clips a mapping with each member's own augmentation of a video (see
            `VideoDataset`), or a tensor that all members share. A member that the mapping does not name receives it
            whole, as the fused network wants it.
        recipes: {member: recipe}; of equal epochs, batch size and accumulation.
        folder: Receives `last.pt`, `stages.csv`, each member's `log_<member>.csv` and, in the end, its `<member>.pt`, a
            checkpoint as `train` leaves one.
        val_loader: Labelled videos in the same form; of several ranks, each one its share.
        stage_steps: Steps of a stage; an epoch if left out. An epoch's end always ends a stage.
        pool: An unfitted fuser; weights by accuracy in a log-linear pool if left out.
        device: Where to train.
        tensorboard: Whether to write TensorBoard's events too, if it is installed: the stages' rows, and the members'
            as `loss_<member>` and so on.
        progress: Whether to show a bar on stderr.

    Returns:
        The networks, and what every stage was worth.

    Raises:
        DivergedError: A member's loss or gradient is not finite; the message names the member and the videos.
        InputError: Members and recipes do not match, or the folder belongs to another run.

    Example:
        >>> import tempfile
        >>> clips, labels = torch.eye(4).reshape(4, 4, 1, 1, 1), torch.tensor([0, 1, 0, 1])
        >>> models = {name: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)) for name in ("a", "b")}
        >>> recipe = TrainRecipe(lr=1.0, epochs=2, batch_size=4, reference_batch=4, precision="float32")
        >>> batches = [(clips, list("wxyz"), labels)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = train_together(models, batches, {"a": recipe, "b": recipe}, folder, val_loader=batches,
        ...                           progress=False)
        >>> [round(row["weight_a"] + row["weight_b"], 6) for row in done.stages]
        [1.0, 1.0]
    """
    _check(models, recipes)
    folder, where = Path(folder), torch.device(device)
    runs = {
        name: Run(model, recipes[name], folder, where, loader, val_loader=val_loader) for name, model in models.items()
    }
    first = next(iter(runs.values()))
    stages = _restore(runs, folder)
    first.check_ranks()
    resumed_at, epochs, accumulate = first.epoch, first.recipe.epochs, first.recipe.accumulate
    steps = int(distributed.largest(-(-len(loader) // accumulate), where))
    pool = LogLinearPool(weights="accuracy") if pool is None else pool
    gpus = [where] if where.type == "cuda" else []
    told = progress and distributed.rank() == 0 and resumed_at < epochs
    bar = progress_bar(steps * epochs, steps * resumed_at, f"train {' '.join(runs)}", "step", told)
    wanted = tensorboard and distributed.rank() == 0 and resumed_at < epochs
    began = time.perf_counter()
    with (
        torch.random.fork_rng(devices=gpus),
        Events(folder, first.step, wanted) as events,
        bar,
        goes_on_later(" ".join(runs), first, told),
    ):

        def end_stage() -> None:
            n_videos = _end_stage(runs, val_loader, pool, stages, events)
            text, done = _stage_line(runs, stages[-1], n_videos), len(first.history)
            if done == stages[-1]["epoch"] < epochs:  # the stage ends an epoch, and others follow
                each = (time.perf_counter() - began) / (done - resumed_at)
                text += f", {duration(each * (epochs - done))} left"
            say(text, told)

        forwards = {name: forward_module(run) for name, run in runs.items()}
        while first.epoch < epochs:
            _train_epoch(runs, forwards, loader, steps, stage_steps, end_stage, bar)
            for name, run in runs.items():
                run.epoch += 1
                events.write(run.history[-1], run.step, suffix=f"_{name}")
            if distributed.rank() == 0:
                _save(runs, stages, folder)
    for run in runs.values():
        run.best.eval()
    histories = {name: run.history for name, run in runs.items()}
    return TogetherResult({name: run.best for name, run in runs.items()}, stages, histories, folder, resumed_at)


def _check(models: Mapping[str, nn.Module], recipes: Mapping[str, TrainRecipe]) -> None:
    if not models or set(models) != set(recipes):
        raise InputError(f"expected a recipe for each network, got networks {list(models)} and recipes {list(recipes)}")
    if "last" in check_member_names(models):
        raise InputError(
            "expected other names than 'last', whose last.pt is what the run goes on from; rename the member"
        )
    common = {(r.epochs, r.batch_size, r.accumulate) for r in recipes.values()}
    if len(common) > 1:
        raise InputError(
            f"expected recipes of equal epochs, batch_size and accumulate to train together, got {sorted(common)}"
        )


def _train_epoch(
    runs: Mapping[str, Run],
    forwards: Mapping[str, nn.Module],
    loader: Loader,
    steps: int,
    stage_steps: int | None,
    end_stage: Any,
    bar: Any,
) -> None:
    """Pass over the loader once: every batch through every member.

    A stage ends after each `stage_steps` steps, and at the end of the epoch.
    """
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(next(iter(runs.values())).epoch)
    began = time.perf_counter()
    losses, rates = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0.0)
    norms: dict[str, list[float]] = {name: [] for name in runs}
    videos = taken = 0
    device = next(iter(runs.values())).device
    for group, local, n in groups(loader, next(iter(runs.values())).recipe.accumulate, device):
        scale = distributed.world_size() / n if local else 0.0
        for name, run in runs.items():
            run.model.train()
            rates[name] = learning_rate(run.recipe, run.epoch + min(1.0, taken / steps))
            own = [(_own(clips, name), ids, labels) for clips, ids, labels in group]
            try:
                loss, norm = take_step(run, forwards[name], own, scale, rates[name])
            except DivergedError as error:
                raise DivergedError(f"{name}: {error}") from error
            losses[name] += loss if local else 0.0
            norms[name].append(norm)
        videos, taken = videos + local, taken + 1
        bar.update()
        if stage_steps and taken % stage_steps == 0 and taken < steps:
            end_stage()
    if not taken:
        raise InputError(nothing_read(loader))
    for name, run in runs.items():
        loss, n_videos = distributed.total([losses[name], videos], device)
        row = {"epoch": run.epoch + 1, "step": run.step, "lr": rates[name], "loss": loss / n_videos}
        run.history.append(
            row | {"grad_norm": mean_norm(norms[name]), "seconds": round(time.perf_counter() - began, 3)}
        )
    end_stage()


def _own(clips: Any, name: str) -> Any:
    return clips[name] if isinstance(clips, Mapping) and name in clips else clips


@torch.no_grad()
def _predict(runs: Mapping[str, Run], loader: Iterable[Any]) -> LogitStack:
    """Return every member's predictions of all ranks' validation videos, those of several views averaged."""
    scores: dict[str, list[NDArray[np.float32]]] = {name: [] for name in runs}
    ids, labels = [], []
    for clips, batch_ids, batch_labels in batches_of(loader):
        if batch_labels is None:
            raise InputError(f"expected labelled validation videos, got none with {', '.join(list(batch_ids)[:3])}")
        for name, run in runs.items():
            own = moved(_own(clips, name), run.device)
            run.best.eval()
            with autocast(run.device, run.dtype):
                scores[name].append(mean_of_views(run.best, own).cpu().numpy())
        ids += [str(i) for i in batch_ids]
        labels.append(np.asarray(batch_labels))
    ids, labels = distributed.gathered(ids), distributed.gathered(labels)
    scores = {name: distributed.gathered(parts) for name, parts in scores.items()}
    if not ids:
        raise InputError("expected validation videos, got an empty loader")
    order = np.argsort(ids)  # the same rows in the same halves, however many ranks there are
    arrays = {name: np.concatenate(parts)[order] for name, parts in scores.items()}
    known = np.concatenate(labels)[order]
    return LogitStack.from_arrays(arrays, labels=known, ids=sorted(ids), kind="log-likelihoods")


def _end_stage(
    runs: Mapping[str, Run], loader: Iterable[Any], pool: Rule, stages: list[dict[str, float]], events: Events
) -> int:
    """Fuse the members' validation predictions as they are now, log the stage's row, and return the videos' number."""
    for run in runs.values():
        run.agree()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VidfuseWarning)  # members at chance are expected here: the rows show them
        stack = _predict(runs, loader)
        stages.append(_stage_row(runs, stack, pool, len(stages) + 1))
    first = next(iter(runs.values()))
    events.write(stages[-1], first.step)
    if distributed.rank() == 0:
        write_csv(first.folder / "stages.csv", stages)
    return len(stack)


def _stage_line(runs: Mapping[str, Run], row: Mapping[str, float], n_videos: int) -> str:
    first = next(iter(runs.values()))
    members = [
        f"{name} loss {run.history[-1]['loss']:.3f}, {100 * row[f'top1_{name}']:.1f} %"
        for name, run in runs.items()
        if run.history
    ]
    fused = f"fused {accuracy_text(row['fused_top1'], n_videos)}"
    return f"epoch {row['epoch']:.0f}/{first.recipe.epochs}: {'; '.join([*members, fused])}"


def _stage_row(runs: Mapping[str, Run], stack: LogitStack, pool: Rule, number: int) -> dict[str, float]:
    labels = np.asarray(stack.labels)
    fitted = clone(pool).fit(stack)
    weights = dict(zip(fitted.members_, getattr(fitted, "weights_", np.full(len(runs), np.nan)), strict=True))
    first = next(iter(runs.values()))
    row: dict[str, float] = {"stage": number, "epoch": first.epoch + 1, "step": first.step}
    halves = np.zeros(len(stack), bool)
    halves[np.argsort(labels, kind="stable")[::2]] = True  # half of each class
    hits = np.empty(len(stack), bool)
    for half in (halves, ~halves):
        if half.any() and not half.all():
            hits[half] = clone(pool).fit(stack[~half]).predict(stack[half]) == labels[half]
        elif half.any():
            hits[half] = fitted.predict(stack) == labels
    row["fused_top1"] = float(hits.mean())
    row["uniform_top1"] = LogLinearPool(weights="uniform").fit(stack).score(stack)
    for name in runs:
        row[f"top1_{name}"] = float((stack.scores(name).argmax(1) == labels).mean())
        row[f"weight_{name}"] = float(weights[name])
    return row


def _save(runs: Mapping[str, Run], stages: list[dict[str, float]], folder: Path) -> None:
    """Publish all members' states as one file, so that no member is ever ahead of another, and the logs."""
    first = next(iter(runs.values()))
    first.check_alone()
    first.save_last({"members": {name: run.state() for name, run in runs.items()}, "stages": stages})
    for name, run in runs.items():
        write_csv(folder / f"log_{name}.csv", run.history)
        if run.epoch == run.recipe.epochs:
            save_checkpoint(folder / f"{name}.pt", run.state())


def check_folder(
    folder: Path, models: Mapping[str, nn.Module], recipes: Mapping[str, TrainRecipe], loader: Any, val_loader: Any
) -> None:
    """Check that a folder has no checkpoint of another run, before anything is written there.

    Raises:
        InputError: It has one; the message says in what it differs.
    """
    path = folder / "last.pt"
    if path.exists():
        members = _members_state(path, models)["members"]
        for name, model in models.items():
            check_identity(members[name], identity_of(model, recipes[name], loader, val_loader), path)


def _members_state(path: Path, members: Collection[str]) -> dict[str, Any]:
    state = load_checkpoint(path)
    if "members" not in state or set(state["members"]) != set(members):
        held = list(state.get("members", ["one network alone"]))
        raise InputError(f"expected {path} to hold {list(members)}, got {held}; train into another folder")
    return state


def _restore(runs: Mapping[str, Run], folder: Path) -> list[dict[str, float]]:
    """Go on from the folder's checkpoint, if it has one; return the stages so far."""
    path = folder / "last.pt"
    if not path.exists():
        return []
    state = _members_state(path, runs)
    for name, run in runs.items():
        run.restore(state["members"][name], path)
    return list(state["stages"])
