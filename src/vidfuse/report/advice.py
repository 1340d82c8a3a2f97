"""What to do about the numbers, in words: what to take, which members to keep or drop, and what is not certain yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vidfuse._tables import number, points, signed
from vidfuse.evaluation.board import Board
from vidfuse.evaluation.worth import MemberWorth
from vidfuse.metrics import PairedDifference

__all__ = ["SHARES", "Advice", "advise", "certain", "needed"]

_MOST = 20  # times as many videos as there are: beyond, nobody will label them
SHARES = ("accuracy", "mean-class-accuracy")
"""Objectives that are shares, whose differences are points."""


@dataclass(frozen=True)
class Advice:
    """One thing to do.

    Attributes:
        tone: "do", "beware", or "unsure" where more videos would tell.
        lead: What to do, in a few words.
        text: Why, with the numbers.
    """

    tone: Literal["do", "beware", "unsure"]
    lead: str
    text: str


def needed(found: PairedDifference, n: int) -> int | None:
    """Return how many videos would make a difference certain, were it as large as it seems; None for far too many.

    An interval's half width falls with the root of the number of videos: it is as wide as the difference at
    n · (half width / difference)².

    Args:
        found: A difference whose interval has 0 within.
        n: The number of videos, or of groups, that it rests on.

    Example:
        >>> from vidfuse.metrics import Interval
        >>> needed(PairedDifference(0.01, Interval(-0.01, 0.03), 0.95, 0.3), 500)
        2000
    """
    low, high = found.interval
    if found.difference == 0 or not math.isfinite(high - low):
        return None
    factor = ((high - low) / 2 / found.difference) ** 2
    if factor > _MOST:
        return None
    digits = 10 ** max(len(str(math.ceil(factor * n))) - 2, 0)  # two digits: it is a guess
    return max(math.ceil(factor * n / digits) * digits, n + 1)


def advise(board: Board, worth: MemberWorth | None, too_sure: float) -> list[Advice]:
    """Say what follows from a leaderboard.

    Args:
        board: The leaderboard.
        worth: What each member is worth to its headline rule; None where that was not computed.
        too_sure: The headline rule's mean confidence less its accuracy.
    """
    protocol = board.how_scored
    if protocol.flatters:
        text = (
            "The rules are scored on videos that they were fitted on, which flatters them. Score them on others first."
        )
        return [Advice("beware", "Decide nothing by these numbers.", text)]
    units = "videos" if protocol.n_scored_groups is None else "groups"
    n = protocol.n_scored if protocol.n_scored_groups is None else protocol.n_scored_groups
    found = [_what_to_take(board, n, units)]
    average = board.entry(board.headline_rule).gain_over_average
    if average is not None and board.instead is None:
        found.append(_against_average(board, average, n, units))
    if worth is not None:
        found += _members(worth, n, units)
    if abs(too_sure) >= 0.02:
        way = "too sure" if too_sure > 0 else "not sure enough"
        text = (
            f"On average its confidence and its accuracy are {points(abs(too_sure)).removeprefix('+')} points apart: "
            f"it is {way}. Where probabilities are used, wrap the rule: Calibrated(rule, TemperatureScaling())."
        )
        found.append(Advice("beware", "Do not take its probabilities at their word.", text))
    else:
        text = f"On average they are off by {points(abs(too_sure)).removeprefix('+')} points."
        found.append(Advice("do", "Its probabilities can be taken at their word.", text))
    return found


def _what_to_take(board: Board, n: int, units: str) -> Advice:
    headline, single = board.headline_rule, board.best_single
    gain = board.entry(headline).gain
    if board.instead is not None:
        other = board.instead
        name = f"“{other.name}”" if other.fused else f"{other.name} alone"
        sure = certain(other.difference) == -1
        text = f"“{headline}” is {_size(-other.difference.difference, board.objective)} worse than {other.member}"
        text += ", and more than chance would make it." if sure else "; it may be chance."
        return Advice("beware", f"Take {name}.", text)
    if gain is None:
        return Advice("do", f"Take “{headline}”.", "It is the best single member.")
    size = _written(gain, board.objective)
    if certain(gain) == 1:
        text = f"It is better than {board.reference()}, by {_plainly(gain, board.objective)}."
        return Advice("do", f"Take “{headline}”.", text)
    text = f"Against {board.reference()}: {size}. {_more(gain, n, units)}"
    return Advice("unsure", f"“{headline}” or {single}: not certain.", text)


def _against_average(board: Board, gain: PairedDifference, n: int, units: str) -> Advice:
    headline, size = board.headline_rule, _written(gain, board.objective)
    if certain(gain) == 1:
        text = f"“{headline}” is better than the plain average of all members by {_plainly(gain, board.objective)}."
        return Advice("do", "Keep the learned rule.", text)
    if certain(gain) == -1:
        text = f"“{headline}” is worse than the plain average of all members: {size}."
        return Advice("beware", "A plain average does better.", text)
    text = f"“{headline}” against the plain average of all members: {size}. {_more(gain, n, units)}"
    return Advice("unsure", "Whether it beats a plain average is not certain.", text)


def _members(worth: MemberWorth, n: int, units: str) -> list[Advice]:
    """Sort the members: those that are needed, those that harm, those that could go, and those that more would tell."""
    found = []
    by: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for row in worth.rows:
        by[certain(row.lost)].append(row.member)
    size = {row.member: _written(row.lost, worth.objective) for row in worth.rows}
    if by[1]:
        text = f"Without any one of them the fusion is worse: {_listed(by[1], size)}."
        found.append(Advice("do", f"Keep {_names(by[1])}.", text))
    if by[-1]:
        text = f"The fusion is better without: {_listed(by[-1], size)} (what is lost). Drop one, and look again."
        found.append(Advice("do", f"Drop {_names(by[-1])}.", text))
    idle = [name for name in by[0] if worth[name].lost.difference <= 0]
    if idle:
        text = (
            f"What the fusion loses without: {_listed(idle, size)}. If a member costs something, these may go first, "
            "one at a time: each covers for the others."
        )
        found.append(Advice("do", f"{_names(idle)} could go.", text))
    open_ = [name for name in by[0] if name not in idle]
    if open_:
        least = [(count, name) for name in open_ if (count := needed(worth[name].lost, n)) is not None]
        text = f"What the fusion loses without: {_listed(open_, size)}."
        if least:
            text += " To be certain, were the differences as they seem: " + ", ".join(
                f"{name} {count:,}" for count, name in sorted(least)
            )
            text += f" {units} in all (there are {n:,})."
        found.append(
            Advice("unsure", f"Whether {_names(open_)} {'help' if len(open_) > 1 else 'helps'} is not certain.", text)
        )
    return found


def certain(found: PairedDifference) -> int:
    """Return 1 or −1 where the whole interval is above or below 0, and 0 where it is not or there is none."""
    low, high = found.interval
    return 1 if low > 0 else -1 if high < 0 else 0


def _size(value: float, objective: str) -> str:
    if objective in SHARES:
        return f"{points(value).removeprefix('+')} points"
    return f"{number(value)} nats" if objective == "nll" else number(value)


def _written(found: PairedDifference, objective: str) -> str:
    low, high = found.interval
    ends = "" if math.isnan(low) else f" ({_signed(low, objective)} to {_signed(high, objective)})"
    unit = " points" if objective in SHARES else " nats" if objective == "nll" else ""
    return f"{_signed(found.difference, objective)}{unit}{ends}"


def _plainly(found: PairedDifference, objective: str) -> str:
    """Write a difference that is certain, and larger than 0, without its signs."""
    return _written(found, objective).replace("+", "")


def _signed(value: float, objective: str) -> str:
    if objective in SHARES:
        return points(value)
    return signed(value)


def _more(found: PairedDifference, n: int, units: str) -> str:
    count = needed(found, n)
    if count is None:
        return f"More {units} would hardly tell: the difference is next to nothing."
    return f"About {count:,} {units} would be enough to be certain, were it as large as it seems (there are {n:,})."


def _listed(names: Sequence[str], size: dict[str, str]) -> str:
    return ", ".join(f"{name} {size[name]}" for name in names)


def _names(names: Sequence[str]) -> str:
    """Return names as one says them.

    Example:
        >>> _names(["swin"]), _names(["swin", "x3d", "tin"])
        ('swin', 'swin, x3d and tin')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
