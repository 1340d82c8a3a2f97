"""What reading one video gives: its clips, or the reason why there are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Failure", "Sample"]


@dataclass(frozen=True)
class Sample:
    """One video, ready for its networks.

    Attributes:
        id: the video's id.
        label: its 0-based class, or None.
        clips: float32 of shape (3, T, H, W) for an `Input`, (V, 3, T, H, W) for `Views`; by network if they are named.
    """

    id: str
    label: int | None
    clips: torch.Tensor | dict[str, torch.Tensor]


@dataclass(frozen=True)
class Failure:
    """One video that could not be decoded, and why."""

    id: str
    reason: str
