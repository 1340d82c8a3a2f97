"""The logs of a training run: a plain csv, and TensorBoard's events where it is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from vidfuse._files import replace

__all__ = ["Events", "write_csv"]


def write_csv(path: str | Path, rows: Sequence[Mapping[str, float | str]]) -> None:
    r"""Publish rows as a csv file with a header; it is rewritten whole, so a resumed run has no row twice.

    Args:
        path: Where it goes.
        rows: At least one row; what a row lacks of another's columns stays empty.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_csv(Path(folder) / "log.csv", [{"epoch": 1, "loss": 0.5}])
        ...     (Path(folder) / "log.csv").read_text()
        'epoch,loss\n1,0.5\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace(path, text.getvalue())


class Events:
    """TensorBoard's event file of a run in `folder/tensorboard`; writes nothing where not wanted or not installed.

    Args:
        folder: The run's folder.
        step: Step that the run resumes after; later events are void.
        wanted: Whether to write.

    Example:
        >>> with Events("unused", 0, wanted=False) as events:
        ...     events.write({"loss": 0.5}, step=1)
    """

    def __init__(self, folder: str | Path, step: int, wanted: bool = True) -> None:
        self._writer: Any = None
        if wanted:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self._writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, row: Mapping[str, float], step: int, suffix: str = "") -> None:
        """Write a row's values but its counters, under their names and the suffix."""
        if self._writer is not None:
            for name, value in row.items():
                if name not in ("stage", "epoch", "step"):
                    self._writer.add_scalar(name + suffix, value, step)
