"""What commands share that decode videos: the options, the loader, and what is said of videos that are left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from vidfuse.cli import options
from vidfuse.cli.late import modules
from vidfuse.errors import InputError

__all__ = ["Decoding", "keep_left_out", "listed_failures"]


@dataclass(frozen=True)
class Decoding:
    """What decodes the videos, and what is done about those that cannot be decoded."""

    workers: int = options.asked(
        "--workers", type=click.IntRange(min=0), default=2, help="Processes that decode videos."
    )
    decoder: str = options.asked(
        "--decoder",
        type=click.Choice(["pyav", "torchcodec", "gpu"]),
        default="pyav",
        help="torchcodec needs its extra and FFmpeg's libraries; gpu is torchcodec on the GPU, without workers.",
    )
    strict: bool = options.asked(
        "--strict", is_flag=True, help="Stop at a video that cannot be decoded, instead of listing it."
    )
    allow_truncated: bool = options.asked(
        "--allow-truncated", is_flag=True, help="Take what is left of videos that end early."
    )

    def loader(self, found: Any, source: Any, batch: int, device: Any, *, shuffle: bool = False, **drawn: Any) -> Any:
        """Return a loader of this process's share of the videos; `drawn` says how their clips are drawn.

        Raises:
            InputError: The GPU is to decode, and there is none.
        """
        datasets, loader, distributed = modules(
            "vidfuse.video.datasets", "vidfuse.video.loader", "vidfuse.training.distributed"
        )
        here, there = device.type == "cuda", self.decoder == "gpu"
        if there and not here:
            raise InputError(
                "--decoder gpu: expected a GPU that torch can use, found none; leave it out, or take torchcodec"
            )
        where = {"decoder": "torchcodec", "device": str(device)} if there else {"decoder": self.decoder}
        return loader.VideoLoader(
            datasets.VideoDataset(
                found, source, strict=self.strict, allow_truncated=self.allow_truncated, **where, **drawn
            ),
            batch,
            shuffle=shuffle,
            workers=0 if there else self.workers,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            pin_memory=here and not there,
        )


def keep_left_out(out: Path, *lists: Any) -> None:
    """List every video that was left out before the work began, and why, in `<out>.left-out.csv`, if there are any."""
    logs = modules("vidfuse.training.logs")[0]
    rows = [(name, reason) for one in lists for name, reason in one.skipped]
    rows += [(name, "not in the list") for one in lists for name in one.unlisted]
    if rows:
        out.parent.mkdir(parents=True, exist_ok=True)
        named = [
            {"video": name, "reason": reason} for name, reason in dict.fromkeys(rows)
        ]  # two lists may say the same
        logs.write_csv(out.with_name(out.name + ".left-out.csv"), named)


def listed_failures(failures: dict[str, str]) -> str:
    """Name the videos that could not be decoded."""
    lines = [f"{len(failures)} could not be decoded:"] if failures else []
    return "".join(f"\n{line}" for line in [*lines, *(f"  {name}: {reason}" for name, reason in failures.items())])
