"""What a run says while it goes on: a bar on a terminal, and a line an epoch everywhere, also in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from tqdm import tqdm

from vidfuse.metrics.intervals import accuracy_interval

__all__ = ["accuracy_text", "bar", "best_row", "decoding_hint", "duration", "epoch_line", "goes_on_later", "say"]

_PATIENCE = 0.3  # share of the time spent waiting for videos above which a run says what would help
_WORTH_A_WORD = 10.0  # seconds
_LOOKED_AT = 12  # videos whose size says how large they are
_FIRST_LINE, _MOST_SILENT = 30.0, 600.0  # seconds before a file hears of progress, and most between two lines
_GAIN = 1.3  # how much larger than needed videos must be for re-encoding to be worth its while


def bar(total: int | None, initial: int, name: str, unit: str, wanted: bool, lines: bool = False) -> Any:
    """Return a progress bar on stderr where a person watches; where stderr is redirected, nothing or a line at times.

    Args:
        total: How much there is to do, if that is known.
        initial: How much of it is done.
        name: What the bar is called.
        unit: What is counted.
        wanted: Whether to say anything.
        lines: Whether to write lines where stderr is redirected: after half a minute, then ever more rarely, down to
            one in ten minutes.
    """
    watched = sys.stderr.isatty()
    if lines and wanted and not watched:
        return _Lines(total, name, unit)
    return tqdm(total=total, initial=initial, desc=name, unit=unit, disable=not (wanted and watched))


class _Lines:
    """What stands for a bar in a file."""

    def __init__(self, total: int | None, name: str, unit: str) -> None:
        self.total, self.name, self.unit, self.n = total, name, unit, 0
        self._began, self._next = time.perf_counter(), _FIRST_LINE

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        self.n += n
        spent = time.perf_counter() - self._began
        if spent < self._next or not self.n or self.n == self.total:
            return
        self._next = spent + min(_MOST_SILENT, max(_FIRST_LINE, spent / 2))
        if self.total is None:
            say(f"{self.name}: {self.n} {self.unit}s in {duration(spent)}")
        else:
            left = duration(spent / self.n * (self.total - self.n))
            say(f"{self.name}: {self.n} of {self.total} {self.unit}s, {left} left")


def say(text: str, wanted: bool = True) -> None:
    """Write a line to stderr, above a bar if there is one."""
    if wanted:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()


def accuracy_text(accuracy: float, n: int) -> str:
    """Give an accuracy in per cent with its 95 % interval (Wilson's) and the number of videos it rests on.

    Example:
        >>> accuracy_text(0.8, 10)
        '80.0 % [49.0, 94.3] of 10'
    """
    low, high = accuracy_interval(round(accuracy * n), n)
    return f"{100 * accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {n}"


def best_row(history: Sequence[Mapping[str, float]]) -> Mapping[str, float] | None:
    """Return the epoch of the highest validation accuracy, of equal ones that of the lowest loss; None without scores.

    Example:
        >>> best_row([{"epoch": 1, "val_top1": 0.5, "val_nll": 1.0}, {"epoch": 2, "val_top1": 0.5, "val_nll": 0.9}])
        {'epoch': 2, 'val_top1': 0.5, 'val_nll': 0.9}
    """
    scored = [row for row in history if "val_top1" in row]
    return max(scored, key=lambda row: (row["val_top1"], -row["val_nll"]), default=None)


def duration(seconds: float) -> str:
    """Give a time in the unit that a person would name.

    Example:
        >>> [duration(seconds) for seconds in (0.2, 89, 600, 9000)]
        ['1 s', '89 s', '10 min', '2.5 h']
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def goes_on_later(name: str, run: Any, wanted: bool) -> Iterator[None]:
    """Say from where a run goes on: at its start, if it has done epochs already, and where Ctrl-C stops it.

    Args:
        name: What the run is called.
        run: The state of the run: `epoch`, how many are done, and `recipe.epochs`, how many there will be.
        wanted: Whether to say anything.
    """
    if run.epoch:
        say(f"{name}: goes on after epoch {run.epoch} of {run.recipe.epochs}", wanted)
    try:
        yield
    except KeyboardInterrupt:
        kept = f"goes on after epoch {run.epoch} when started again" if run.epoch else "had no epoch yet: begins anew"
        say(f"stopped in epoch {run.epoch + 1} of {run.recipe.epochs}: {kept}", wanted)
        raise


def epoch_line(history: Sequence[Mapping[str, float]], epochs: int, left: float = 0.0) -> str:
    """Say how a run's last epoch went: loss, validation accuracy with its interval, the best so far, and the time.

    Args:
        history: One row per epoch.
        epochs: Epochs of the whole run.
        left: Seconds that the rest of the run will take; 0 where that is not known, or nothing is left.

    Example:
        >>> epoch_line([{"epoch": 1, "loss": 0.6931, "seconds": 3.2, "waited": 0.5}], 10)
        'epoch 1/10: loss 0.693, 3 s, 50 % of it waiting for videos'
    """
    row = history[-1]
    parts = [f"loss {row['loss']:.3f}"]
    best = best_row(history)
    if best is not None and "val_top1" in row:
        # Rows of earlier releases do not tell how many videos were scored.
        scored = (
            accuracy_text(row["val_top1"], int(row["val_n"])) if "val_n" in row else f"{100 * row['val_top1']:.1f} %"
        )
        parts.append(f"validation {scored}")
        told = "the best so far" if best is row else f"best {100 * best['val_top1']:.1f} % at epoch {best['epoch']:.0f}"
        parts.append(told)
    parts.append(f"{row['seconds']:.0f} s, {100 * row.get('waited', 0):.0f} % of it waiting for videos")
    if left:
        parts.append(f"{duration(left)} left")
    return f"epoch {row['epoch']:.0f}/{epochs}: {', '.join(parts)}"


def decoding_hint(loader: Any, waited: float, seconds: float) -> str | None:
    """Say what helps where a network waits for its videos, or None where it does not, or nothing is known of them.

    Args:
        loader: What yields the videos; if its data set tells their files and its short side, smaller files may help.
        waited: Share of the time that the network waited.
        seconds: The time; what is short is not worth a word.
    """
    dataset = getattr(loader, "dataset", None)
    videos, short_side = getattr(dataset, "videos", None), getattr(dataset, "short_side", None)
    if waited < _PATIENCE or seconds < _WORTH_A_WORD or not videos or short_side is None:
        return None
    from vidfuse.errors import InputError
    from vidfuse.video.decode import probe

    told = f"the network waits for its videos {100 * waited:.0f} % of the time; more workers help where cores are free"
    sides = []
    for video in list(videos)[:: max(1, len(videos) // _LOOKED_AT)]:
        with suppress(InputError, OSError):
            info = probe(video.path)
            sides.append((min(info.height, info.width), f"{video.id} is {info.width} x {info.height}"))
    side, example = max(sides, default=(0, ""))
    if side < _GAIN * short_side:
        return told
    return (
        f"{told}, and `vidfuse shrink DATA SMALL --short-side {short_side}` encodes them once as small as they are "
        f"needed ({example})"
    )
