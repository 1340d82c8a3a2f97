"""Checkpoints of a training run: one file, published whole, that resumes the run bit by bit."""

from __future__ import annotations

import io
import os
from typing import Any

from vidfuse._files import replace
from vidfuse.errors import InputError, MissingExtraError

try:
    import torch
except ImportError as error:
    raise MissingExtraError("training", "training") from error

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Publish a nested mapping of tensors, numbers, strings, lists and mappings as one file.

    Args:
        path: Where it goes.
        state: What to keep.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(Path(folder) / "last.pt", {"epoch": 3})
        ...     load_checkpoint(Path(folder) / "last.pt")
        {'epoch': 3}
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    replace(path, buffer.getvalue())


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint on the CPU; nothing in the file is executed.

    Args:
        path: A file that `save_checkpoint` wrote.

    Raises:
        InputError: The file cannot be read as a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises a dozen kinds, by format
        raise InputError(
            f"expected a training checkpoint in {path}, got a file that cannot be read: {error}"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"expected a training checkpoint in {path}, got a {type(state).__name__}")
    return state
