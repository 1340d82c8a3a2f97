"""What a member costs here: milliseconds a video, measured on this machine with its own clips."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

from vidfuse._checks import check_count
from vidfuse.errors import InputError, MissingExtraError
from vidfuse.serving.ensemble import Ensemble, clips_of

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise MissingExtraError("an ensemble of networks", "networks") from error

__all__ = ["measure"]


def measure(
    models: Ensemble | Mapping[str, nn.Module], clips: Tensor | Mapping[str, Tensor], *, repeats: int = 5
) -> dict[str, float]:
    """Return the milliseconds that each member takes for a video: the `costs` of a cascade or a search.

    Each network runs once unmeasured (memory is taken, kernels are chosen), then `repeats` times on the same clips; the
    median is divided by the number of videos. A GPU is waited for. Decoding is not part of it.

    Args:
        models: An ensemble, or {member: network}, on the device and in the mode in which they serve.
        clips: (N, 3, T, H, W) or (N, V, 3, T, H, W) for all members, or {member: its own}: as many videos as are served
            at once.
        repeats: Measured runs, at least 1.

    Raises:
        InputError: There are no videos, or no repeats.
        AlignmentError: A member has no clips, or those of another number of videos.

    Example:
        >>> networks = {"small": nn.Flatten(), "large": nn.Sequential(nn.Flatten(), nn.Linear(192, 4000))}
        >>> costs = measure(networks, torch.zeros(8, 3, 1, 8, 8))
        >>> sorted(costs), costs["small"] < costs["large"]
        (['large', 'small'], True)
    """
    check_count("repeats", repeats)
    networks = models.networks if isinstance(models, Ensemble) else dict(models)
    own = clips_of(clips, list(networks))
    return {name: _milliseconds(model, own[name], repeats) for name, model in networks.items()}


def _milliseconds(model: nn.Module, clips: Tensor, repeats: int) -> float:
    if not len(clips):
        raise InputError("clips: expected those of one video at least, got none")
    one_by_one = clips.flatten(0, 1) if clips.ndim == 6 else clips
    taken = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            _wait_for(clips.device)
            start = time.perf_counter()
            model(one_by_one)
            _wait_for(clips.device)
            taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(taken[1:]) / len(clips)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
