"""What tells one network from another: a digest of its weights, and a name for what weights do not tell."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from vidfuse.errors import InputError, MissingExtraError

try:
    import torch
    from torch import Tensor, nn

    from vidfuse.networks.checkpoints import COUNTED
except ImportError as error:
    raise MissingExtraError("fingerprints", "networks") from error

__all__ = ["fingerprint_of", "own_fingerprints"]

_DIGEST = re.compile(r"(?:^|.* )([0-9a-f]{64})$", re.DOTALL)


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
    digest = _digest(model)
    return digest if name is None else f"{name} {digest}"


def _digest(model: nn.Module) -> str:
    """Return the SHA-256 of a network's class name, and of the names and bytes of its weights.

    What a checkpoint may lack, and no prediction needs, is left out: counters, and classifiers that only training uses.
    A network is the same one in the process that trained it and read from its file.
    """
    state = hashlib.sha256(type(model).__name__.encode())
    spare = tuple(
        f"{name}.{part}" if name else part
        for name, module in model.named_modules()
        for part in getattr(module, "training_only", ())
    )
    for key, value in model.state_dict().items():
        if key.endswith(COUNTED) or key.startswith(spare):
            continue
        state.update(key.encode())
        if isinstance(value, Tensor):
            state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def own_fingerprints(model: Any, known: Sequence[str]) -> tuple[str, ...]:
    """Return what identifies a network among fingerprints that are known; nothing where that cannot be told.

    A network that others were wrapped around (to be called otherwise, to be averaged over folds, for several devices)
    is known by those within it that hold most of its weights, and a name before a digest is left out of account: it is
    of code that weights do not tell.

    Args:
        model: The network.
        known: Fingerprints as `fingerprint_of` gives them, or anything else that a cache may hold.

    Returns:
        Those of `known` that it is; else its own, if every one of `known` has a digest to compare with.

    Example:
        >>> inner, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> known = [fingerprint_of(inner, "as frames")]
        >>> own_fingerprints(nn.Sequential(nn.Flatten(), inner), known) == tuple(known)
        True
        >>> own_fingerprints(other, known) == (fingerprint_of(other),), own_fingerprints(other, ["session 3"])
        (True, ())
    """
    digests = {text: found[1] for text in known if (found := _DIGEST.match(text))}
    if not isinstance(model, nn.Module) or not digests:
        return ()
    own = _digest(model)
    if own in digests.values():
        return tuple(text for text, digest in digests.items() if digest == own)
    size = sum(value.numel() for value in model.state_dict().values() if isinstance(value, Tensor))
    parts = {own}
    for inner in list(model.modules())[1:]:
        within = sum(value.numel() for value in inner.state_dict().values() if isinstance(value, Tensor))
        if within * (len(digests) + 1) > size > 0:  # of k networks in one, each holds about a k-th
            parts.add(_digest(inner))
    met = tuple(text for text, digest in digests.items() if digest in parts)
    return met or ((own,) if len(digests) == len(known) else ())
