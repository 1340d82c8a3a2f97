"""What tells one network from another: a digest of its weights, and a name for what weights do not tell."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from vidfuse.errors import InputError, MissingExtraError

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise MissingExtraError("fingerprints", "networks") from error

__all__ = ["fingerprint_of"]


def fingerprint_of(
    model: Callable[..., Any], name: str | None = None, *, forward: Callable[..., Any] | None = None
) -> str:
    """Return what identifies a model: a cache is resumed only with the same.

    Args:
        model: A network, which its class's name and its weights tell from others, or any callable.
        name: What else tells it from others, in your words; a callable, and a network with `forward`, need one.
        forward: What calls the network, if it is not called itself.

    Returns:
        Of a callable the name; of a network a digest of its class's name and its weights, behind the name if there is
        one.

    Raises:
        InputError: A callable, or a network with `forward`, has no name.

    Example:
        >>> len(fingerprint_of(nn.Linear(2, 2)))
        64
        >>> fingerprint_of(lambda clips: clips, "identity")
        'identity'
    """
    if name is None and (forward is not None or not isinstance(model, nn.Module)):
        code = "`forward`" if forward is not None else type(model).__name__
        raise InputError(
            f"expected fingerprint=, a name for what is computed, as nothing tells {code} from other code; "
            'change the name when the code changes, say fingerprint="resnet, frames averaged"'
        )
    if not isinstance(model, nn.Module):
        return str(name)
    digest = hashlib.sha256(type(model).__name__.encode())
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest() if name is None else f"{name} {digest.hexdigest()}"
