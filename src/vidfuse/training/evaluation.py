"""What a network is worth on labelled videos: its views averaged, its hits and its loss summed over all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vidfuse.errors import InputError, MissingExtraError

try:
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import cross_entropy

    from vidfuse.training import distributed
    from vidfuse.training.state import logits_of
    from vidfuse.training.step import Batch, batches_of, moved, nothing_read
except ImportError as error:
    raise MissingExtraError("training", "training") from error

__all__ = ["device_of", "evaluate", "mean_of_views"]


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Iterable[Batch], *, device: torch.device | str | None = None
) -> dict[str, float]:
    """Score a network on one pass over labelled videos, over all ranks.

    Args:
        model: Any network `clips -> logits`; it is put into eval mode and left there.
        loader: Yields `(clips, ids, labels)`, clips (N, 3, T, H, W) or, of several views, (N, V, 3, T, H, W), whose
            log-likelihoods are averaged; or a mapping of such clips, as the fused network wants them. Of several ranks,
            each one its share.
        device: Where the clips go; where the network's first parameter is, if left out.

    Returns:
        `top1` (0..1), `nll` (nats) and `n`, the number of videos.

    Raises:
        InputError: There are no videos, or no labels.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
        >>> _ = nn.init.zeros_(model[1].weight)
        >>> evaluate(model, [(torch.zeros(4, 3, 1, 1, 1), list("abcd"), torch.tensor([0, 0, 0, 1]))])
        {'top1': 0.75, 'nll': 0.693..., 'n': 4.0}
    """
    target = torch.device(device) if device is not None else device_of(model)
    model.eval()
    hits = loss = n = 0.0
    for clips, ids, labels in batches_of(loader):
        if labels is None:
            raise InputError(f"expected labelled videos to evaluate on, got none with {', '.join(list(ids)[:3])}")
        log_p = mean_of_views(model, moved(clips, target))
        labels = labels.to(target)
        hits += float((log_p.argmax(1) == labels).sum())
        loss += float(cross_entropy(log_p, labels, reduction="sum"))
        n += len(labels)
    hits, loss, n = distributed.total([hits, loss, n], target)
    if n == 0:
        raise InputError(nothing_read(loader, "evaluate on"))
    return {"top1": hits / n, "nll": loss / n, "n": n}


def mean_of_views(model: nn.Module, clips: Any) -> Tensor:
    """Return log-likelihoods (N, K), those of several views averaged; the views pass one after the other.

    Args:
        model: A network `clips -> logits`.
        clips: (N, 3, T, H, W), or (N, V, 3, T, H, W), or a mapping of such clips, all of them of one or of V views.

    Example:
        >>> mean_of_views(nn.Flatten(), torch.zeros(1, 4, 3, 1, 1, 1)).exp().tolist()
        [[0.333..., 0.333..., 0.333...]]
    """
    each = clips if isinstance(clips, Mapping) else {"": clips}
    views = max((c.shape[1] for c in each.values() if c.ndim == 6), default=0)
    if not views:
        return logits_of(model(clips)).float().log_softmax(1)
    parts = []
    for view in range(views):
        one = {name: c[:, view] if c.ndim == 6 else c for name, c in each.items()}
        parts.append(logits_of(model(one if isinstance(clips, Mapping) else one[""])).float().log_softmax(1))
    return torch.stack(parts).mean(0).log_softmax(1)


def device_of(model: nn.Module) -> torch.device:
    """Return where a network's first parameter is.

    Example:
        >>> device_of(nn.Linear(1, 1))
        device(type='cpu')
    """
    return next((p.device for p in model.parameters()), torch.device("cpu"))
