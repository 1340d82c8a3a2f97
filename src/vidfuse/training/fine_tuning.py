"""Going on from weights that exist: what of them is kept for other classes, and what a recipe takes from them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidfuse import networks
from vidfuse.errors import InputError, MissingExtraError

try:
    import torch
    from torch import Tensor

    from vidfuse.networks.checkpoints import CLASSIFIERS, read_checkpoint
    from vidfuse.training.state import trained
except ImportError as error:
    raise MissingExtraError("training", "training") from error

__all__ = ["Start", "start_from"]

_BODY_RATE = 0.1  # of everything but a new classifier


@dataclass(frozen=True)
class Start:
    """Where a run begins that goes on from trained weights.

    Attributes:
        weights: The weights, for `network_for(checkpoint=…, replace_classifier=True)`; a classifier of other classes
            has no rows.
        new_classifier: Whether the network's classifier is a new one.
        fields: Fields of a recipe that fits: the clips that the weights were trained on (`frames`, `interval`, `size`)
            and, with a new classifier, `body_rate`, 0.1.
        taken: What of the checkpoint is taken, and what is left aside, in words.
    """

    weights: dict[str, Tensor]
    new_classifier: bool
    fields: dict[str, Any]
    taken: str = ""


def start_from(
    checkpoint: str | os.PathLike[str], network: str, n_classes: int, classes: Sequence[str] | None = None
) -> Start:
    """Read weights to fine-tune: those of a run of `train`, or published ones.

    The classifier is a new one where the number of classes differs, or the names of a run's classes do.

    Args:
        checkpoint: A file that `train` left, or a published one in the layout of the network's source.
        network: Name of the network in the catalogue.
        n_classes: K.
        classes: The classes' names in their order, if they have any.

    Raises:
        InputError: The file cannot be read, or its run says that the weights are another network's.

    Example:
        >>> import tempfile, torch
        >>> weights = networks.create("x3d_tiny", num_classes=9).state_dict()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(weights, f"{folder}/x3d.pt")
        ...     start = start_from(f"{folder}/x3d.pt", "x3d_tiny", n_classes=3)
        >>> start.new_classifier, start.fields
        (True, {'frames': 8, 'interval': 2, 'size': 64, 'body_rate': 0.1})
    """
    run, facts = trained(Path(checkpoint)), networks.info(network)
    if run is not None and run.network not in (None, network):
        raise InputError(
            f"expected weights of {network} in {os.fspath(checkpoint)}, but these are {run.network}'s weights; "
            f"train {run.network}"
        )
    weights = read_checkpoint(checkpoint) if run is None else run.weights
    with torch.device("meta"):
        model = networks.create(network, n_classes)
    weights, aside = networks.find_weights(weights, model)
    kept = networks.convert_state_dict(weights, network).get("classifier.weight")
    known = None if run is None else run.classes
    same_names = known is None or classes is None or known == tuple(classes)
    if not same_names:  # a classifier of no classes, which no network keeps
        weights = {name: value[:0] if name.startswith(CLASSIFIERS) else value for name, value in weights.items()}
    new = kept is None or len(kept) != n_classes or not same_names
    clips: Any = facts if run is None else run.recipe
    fields: dict[str, Any] = {name: getattr(clips, name) for name in ("frames", "interval", "size")}
    left = [f"its classifier of {len(kept)} classes"] if new and kept is not None else []
    left += [aside] if aside else []
    taken = f"{len(weights)} weights of {network}{'; left aside: ' if left else ''}{', '.join(left)}"
    return Start(weights, new, fields | ({"body_rate": _BODY_RATE} if new else {}), taken)
