"""One network from several checkpoints of its architecture: their weights averaged, all or those that help."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from vidfuse.errors import InputError, MissingExtraError

try:
    import torch
    from torch import Tensor, nn
    from torch.nn.modules.batchnorm import _BatchNorm

    from vidfuse.networks.checkpoints import COUNTED, read_checkpoint
    from vidfuse.training.evaluation import device_of, evaluate
    from vidfuse.training.state import trained
    from vidfuse.training.step import Batch, batches_of, moved
except ImportError as error:
    raise MissingExtraError("weight averaging", "networks") from error

__all__ = ["Soup", "average_weights", "recompute_statistics", "soup"]


@dataclass(frozen=True)
class Soup:
    """A network whose weights are the average of several checkpoints', and how it was found.

    Attributes:
        model: The network in eval mode.
        members: The names of the checkpoints that were averaged, in the order in which they were taken.
        scores: Of the greedy choice, the validation scores `{"top1", "nll", "n"}` of each checkpoint by name.
        score: Those of the average, on the videos that it was chosen on; empty where nothing was scored.
    """

    model: nn.Module
    members: tuple[str, ...]
    scores: Mapping[str, Mapping[str, float]]
    score: Mapping[str, float]


def soup(
    model: nn.Module,
    checkpoints: Mapping[str, Any] | Sequence[Any],
    loader: Iterable[Batch] | None,
    *,
    val_loader: Iterable[Batch] | None = None,
    how: Literal["greedy", "uniform"] | None = None,
    batches: int = 100,
    device: torch.device | str | None = None,
) -> Soup:
    """Average the weights of several checkpoints of one architecture into one network, which costs what one costs.

    "uniform" averages all. "greedy" (Wortsman et al. 2022, algorithm 1) begins with the checkpoint of the highest
    validation accuracy, goes on from the best to the worst, and keeps each one with which the average is not worse.
    After each averaging, the statistics of batch normalisation are computed anew from training clips: those of the
    checkpoints belong to other weights, and their average to none.

    Averages are good where the checkpoints lie in one basin: fine-tuned from one initialisation, or epochs of one run.
    Networks that were trained from different random weights have nothing in common; "greedy" then keeps one.

    Args:
        model: A network of that architecture; its weights are not changed.
        checkpoints: {name: it} or a sequence: runs' folders (their `best.pt`, else `last.pt`), checkpoint files in the
            network's own layout, state dicts, or networks.
        loader: Training clips, `(clips, ids, labels)`, for the statistics of batch normalisation; None is taken where
            the network has none.
        val_loader: Labelled videos that "greedy" chooses on. What the result is worth is scored on others, that share
            no source with these.
        how: By default "greedy" where there is a `val_loader`.
        batches: At most so many batches of `loader` make the statistics.
        device: Where to run; the network's own device if left out.

    Raises:
        InputError: Fewer than two checkpoints, one whose weights are of another architecture or are not finite, runs of
            other classes or of another order of them, batch normalisation without a loader, "greedy" without validation
            videos, or a loader that ends.

    Source:
        Wortsman et al. 2022, Model soups: averaging weights of multiple fine-tuned models improves accuracy without
        increasing inference time, ICML, sections 2 and 3; Izmailov et al. 2018, Averaging weights leads to wider optima
        and better generalization, UAI, section 3.2 (statistics of batch normalisation).

    Example:
        >>> def network(factor):
        ...     own = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
        ...     _ = nn.init.constant_(own[1].weight, factor)
        ...     return own
        >>> made = soup(network(0), {"first": network(1), "second": network(3)}, None)
        >>> made.members, made.model[1].weight[0, 0].item()
        (('first', 'second'), 2.0)
    """
    given = checkpoints if isinstance(checkpoints, Mapping) else _named(checkpoints)
    if len(given) < 2:
        raise InputError(f"expected at least two checkpoints to average, got {len(given)}")
    how = how or ("uniform" if val_loader is None else "greedy")
    if how not in ("greedy", "uniform"):
        raise InputError(f'how: expected "greedy" or "uniform", got {how!r}')
    if how == "greedy" and val_loader is None:
        raise InputError('how="greedy" chooses on validation videos: expected val_loader=, got none')
    for what, batches_of in (("loader", loader), ("val_loader", val_loader)):
        if isinstance(batches_of, Iterator):
            raise InputError(
                f"{what}: expected batches that can be run through again, for each average that is tried, got an "
                "iterator, which ends; pass a DataLoader or a list"
            )
    target = torch.device(device) if device is not None else device_of(model)
    mixed = copy.deepcopy(model).to(target).requires_grad_(False).eval()
    if loader is None and _norms(mixed):
        raise InputError(
            "expected training clips (loader=) to compute the statistics of batch normalisation from, got none: those "
            "of the checkpoints are of other weights"
        )
    read = {name: _weights(one) for name, one in given.items()}
    weights = {name: _fitting(own, mixed, name) for name, (own, _) in read.items()}
    _check_classes({name: classes for name, (_, classes) in read.items() if classes is not None})

    def scored(names: Sequence[str]) -> dict[str, float]:
        mixed.load_state_dict(average_weights([weights[name] for name in names]))
        if len(names) > 1 and loader is not None:
            recompute_statistics(mixed, loader, batches=batches, device=target)
        return {} if val_loader is None else evaluate(mixed, val_loader, device=target)

    scores = {name: scored([name]) for name in weights} if how == "greedy" else {}
    ranked = sorted(scores, key=lambda name: (-scores[name]["top1"], scores[name]["nll"]))
    kept = list(weights) if how == "uniform" else ranked[:1]
    best = scores[ranked[0]] if ranked else {}
    for name in ranked[1:]:
        found = scored([*kept, name])
        if found["top1"] >= best["top1"]:
            kept, best = [*kept, name], found
    score = scored(kept)  # the last average that was tried may be another
    return Soup(mixed, tuple(kept), scores, score)


def average_weights(weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of state dicts, summed in float64; whole numbers, which count or index, are the first one's.

    Args:
        weights: State dicts of the same names and shapes.

    Example:
        >>> average_weights([{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 2.0])}])["w"].tolist()
        [2.0, 2.0]
    """
    first = weights[0]
    mean = {}
    for key, value in first.items():
        if not value.is_floating_point() or len(weights) == 1:
            mean[key] = value.clone()
            continue
        total = torch.zeros_like(value, dtype=torch.float64)
        for own in weights:
            total += own[key].to(total)
        mean[key] = (total / len(weights)).to(value.dtype)
    return mean


@torch.no_grad()
def recompute_statistics(
    model: nn.Module, loader: Iterable[Batch], *, batches: int = 100, device: torch.device | str | None = None
) -> None:
    """Compute the statistics of batch normalisation anew, as the mean over batches; all else stays as in prediction.

    Args:
        model: A network `clips -> logits`, changed in place; it is left in eval mode. Without batch normalisation
            nothing is done.
        loader: Yields `(clips, ids, labels)`, clips as in training.
        batches: At most so many.
        device: Where the clips go; where the network's first parameter is, if left out.

    Raises:
        InputError: The loader gives no clips.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm3d(1), nn.Flatten())
        >>> clips = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1, 1)
        >>> recompute_statistics(model, [(clips, ["a", "b"], None)])
        >>> model[0].running_mean.item(), model[0].running_var.item()
        (2.0, 2.0)
    """
    model.eval()
    norms = _norms(model)
    if not norms:
        return
    target = torch.device(device) if device is not None else device_of(model)
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over the batches, which all count alike
        norm.train()  # dropout and all else stay in eval mode
    seen = 0
    try:
        for clips, _, _ in islice(batches_of(loader), batches):
            model(moved(clips, target))
            seen += 1
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
        model.eval()
    if not seen:
        raise InputError("expected clips to compute the statistics of batch normalisation from, got an empty loader")


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _named(checkpoints: Sequence[Any]) -> dict[str, Any]:
    """Name checkpoints by their paths, cut to what differs, or by number."""
    paths = [Path(one) if isinstance(one, str | os.PathLike) else None for one in checkpoints]
    names = [str(number) if path is None else str(path) for number, path in enumerate(paths)]
    if len(set(names)) < len(names):
        raise InputError(f"expected each checkpoint once, got {', '.join(names)}")
    return dict(zip(names, checkpoints, strict=True))


def _weights(checkpoint: Any) -> tuple[Mapping[str, Tensor], tuple[str, ...] | None]:
    """Return the state dict of a run's folder, a checkpoint file, a network, or as it is; and a run's class names."""
    if isinstance(checkpoint, nn.Module):
        return checkpoint.state_dict(), None
    if isinstance(checkpoint, Mapping):
        return checkpoint, None
    path = Path(checkpoint)
    if path.is_dir():
        path = next((path / name for name in ("best.pt", "last.pt") if (path / name).is_file()), path / "last.pt")
    run = trained(path) if path.is_file() else None
    return (read_checkpoint(path), None) if run is None else (run.weights, run.classes)


def _check_classes(known: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse runs the rows of whose classifiers are of other classes, or of the same in another order."""
    first = next(iter(known), "")
    for name, classes in known.items():
        differ = [k for k, (a, b) in enumerate(zip(known[first], classes, strict=True)) if a != b]
        if differ:
            row = differ[0]
            raise InputError(
                f"checkpoint {name}: expected the classes of {first} in the same order, but class {row} is "
                f"{known[first][row]!r} there and {classes[row]!r} here"
            )


def _fitting(weights: Mapping[str, Tensor], model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return weights as the model lists them; counters that a checkpoint lacks are the model's.

    Raises:
        InputError: they are of another architecture, or not finite.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in weights and not key.endswith(COUNTED)]
    unexpected = [key for key in weights if key not in own and not key.endswith(COUNTED)]
    shaped = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    for what, keys in (("it lacks", missing), ("it also has", unexpected), ("other shapes of", shaped)):
        if keys:
            raise InputError(
                f"checkpoint {name}: expected the weights of the same architecture and classes, {what} {len(keys)}: "
                f"{', '.join(keys[:5])}"
            )
    found = {key: weights.get(key, value).to(value) for key, value in own.items()}
    if bad := [key for key, value in found.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise InputError(f"checkpoint {name}: expected finite weights, got others in {', '.join(bad[:5])}")
    return found
