"""Watching a stream of predictions without labels: has it stopped being like the videos of the record?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import check_share
from vidfuse._tables import Column, Table, Tabular, bare_p, number
from vidfuse.errors import InputError, VidfuseWarning, option
from vidfuse.fusion.track_record import TrackRecord, Watched, one_of_each, watched
from vidfuse.fusion.views import reduce_views
from vidfuse.metrics.exchangeability import class_log_wealth, conformal_p_values, log_wealth
from vidfuse.recipe import Recipe
from vidfuse.stack.clips import warn_if_clips
from vidfuse.stack.stack import LogitStack

__all__ = ["Watch", "WatchedStatistic", "watch"]

_RECENT = 100
_FEWEST = 20
_LOW = 0.05  # the quantile of the record's confidence below which a video is called unknown


@dataclass(frozen=True)
class WatchedStatistic:
    """One number that is watched.

    Attributes:
        name: What it is; see `vidfuse.fusion.track_record.watched`.
        before: Its mean over the videos of the record; for "class", 0.
        stream: Its mean over the stream; for "class", the distance of the shares of the predicted classes (half the sum
            of their differences).
        recent: The same over the last 100 videos.
        p_value: That of nothing having changed, whenever one looks, adjusted for the number of statistics.
        alarm: How many videos had come when it first was at most the rate of false alarms; None where it never was.
        alarm_id: The id of that video.
    """

    name: str
    before: float
    stream: float
    recent: float
    p_value: float
    alarm: int | None
    alarm_id: str | None


@dataclass(frozen=True)
class Watch(Tabular):
    """What was watched of a stream.

    Attributes:
        statistics: One entry for each number that is watched.
        n_units: How many independent videos of the stream were used, one of each group.
        n_videos: How many videos the stream has.
        n_reference: How many videos of the record they were compared with.
        unknown: Share of them whose confidence is below the record's 5 % quantile.
        shifted: (class, share in the record, share in the stream) of those that changed most.
        false_alarms: The probability, over the whole stream, that anything alarms where nothing has changed.
    """

    statistics: tuple[WatchedStatistic, ...]
    n_units: int
    n_videos: int
    n_reference: int
    unknown: float
    shifted: tuple[tuple[str, float, float], ...] = field(repr=False)
    false_alarms: float = 0.05

    @property
    def alarms(self) -> tuple[WatchedStatistic, ...]:
        """The statistics that alarmed, the first one first."""
        found = [one for one in self.statistics if one.alarm is not None]
        return tuple(sorted(found, key=lambda one: one.alarm or 0))

    def table(self) -> Table:
        """Return a row for each statistic, with how many videos had come when it alarmed."""
        columns = (
            "statistic",
            Column("record", "before", lambda value: number(value, 3)),
            Column("stream", write=lambda value: number(value, 3)),
            Column(f"last {_RECENT}", "recent", lambda value: number(value, 3)),
            Column("p", "p_value", bare_p),
            Column("alarm at video", "alarm"),
            Column("alarm_id", "alarm_id", shown=False),
        )
        rows = tuple(
            (one.name, one.before, one.stream, one.recent, one.p_value, one.alarm, one.alarm_id)
            for one in self.statistics
        )
        notes = [
            f"{self.n_units:,} independent videos of {self.n_videos:,}, against {self.n_reference:,} of the record; "
            f"where nothing has changed, anything ever alarms with a probability of {self.false_alarms:g} at most.",
            f"{100 * self.unknown:.1f} % have a confidence below that of 95 % of the record's videos.",
        ]
        if any(one.name == "class" for one in self.alarms):
            shares = [f"{name} {100 * a:.1f} → {100 * b:.1f} %" for name, a, b in self.shifted]
            notes.append(f"Classes that changed most: {', '.join(shares)}.")
        strong = frozenset(place for place, one in enumerate(self.statistics) if one.alarm is not None)
        return Table(columns, rows, "Watched statistics", tuple(notes), strong=strong)

    def headline(self) -> str:
        """Return in a sentence whether anything alarmed."""
        if not self.alarms:
            return f"No alarm over {self.n_units:,} videos."
        first = self.alarms[0]
        where = "" if first.alarm_id is None else f" ({first.alarm_id})"
        return (
            f"Alarm: {', '.join(one.name for one in self.alarms)}; first at video {first.alarm:,}{where} of "
            f"{self.n_units:,}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the result in plain types."""
        return {
            "alarm": bool(self.alarms),
            "statistics": [dict(vars(one)) for one in self.statistics],
            "videos": self.n_videos,
            "independent_videos": self.n_units,
            "record_videos": self.n_reference,
            "unknown": self.unknown,
            "classes": [{"class": name, "record": a, "stream": b} for name, a, b in self.shifted],
            "false_alarms": self.false_alarms,
        }

    def __str__(self) -> str:
        return f"{self.table()}\n{self.headline()}"


def watch(
    recipe: Recipe,
    stream: LogitStack | Sequence[LogitStack],
    *,
    false_alarms: float = 0.05,
    seed: int = 0,
) -> Watch:
    """Compare a stream of predictions with the videos of a recipe's record, without labels.

    Each video's confidence, predicted class, and each member's confidence, spread and agreement with the others is
    ranked among those of the record and of the stream so far, and money is bet against these ranks being uniform. While
    the stream is like the record, the money multiplies by S / `false_alarms` with a probability of
    `false_alarms` / S at most, ever; S is the number of statistics. So the rate holds over the whole stream, however
    long it is and however often one looks, if a stream that goes on is passed from its start. No label and no learned
    weight has a part in it.

    Videos of one stack count as having come together, in no order; several stacks came one after another. Of videos
    that come in groups, one of each group is used, of the stack in which the group first comes; a video whose id comes
    again is used once.

    Args:
        recipe: A recipe with a record (`Recipe.with_record`).
        stream: One stack, or several in the order in which they came (one a day, one a batch).
        false_alarms: The probability that anything alarms where nothing has changed.
        seed: Seed of the draws that break ties and choose one video of a group.

    Raises:
        InputError: The recipe has no record, the stream has no groups and the record has, or it is empty.
        AlignmentError: Members are missing, or the classes are others, or in another order.
        CacheConflictError: A member's scores come from another checkpoint than those of the fit, where both the stream
            and the recipe know theirs.

    Source:
        Vovk (2021), Testing randomness online, Statistical Science 36, sections 2 to 4.

    Example:
        >>> import vidfuse as vf
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=400)
        >>> z = {name: rng.normal(size=(400, 3)) + 2 * np.eye(3)[y] for name in "ab"}
        >>> stack = vf.LogitStack.from_arrays(z, labels=y, ids=[f"v{i}" for i in range(400)])
        >>> fit, later = stack[:200], stack[200:]
        >>> recipe = vf.Recipe.from_fitted(vf.LogLinearPool().fit(fit), fit).with_record(fit)
        >>> print(watch(recipe, later).headline())
        No alarm over 200 videos.
        >>> dull = vf.LogitStack.from_arrays({"a": z["a"][200:], "b": 0.2 * z["b"][200:]})
        >>> print(watch(recipe, dull).headline())
        Alarm: b: confidence, b: spread, confidence, b: agreement; first at video 11 of 200.
    """
    # 1. Refuse what cannot be compared: no record, a short or an older one.
    # 2. Bet: `wealth` is the logarithm of the money on each statistic (columns) after each video (rows).
    # 3. Tell of each statistic where its money first reached the bar, beside its means before and now.
    record = recipe.record
    if record is None:
        raise InputError("the recipe has no record to compare with; make one with `vidfuse record`, or with_record()")
    check_share("false_alarms", false_alarms)
    stacks = [stream] if isinstance(stream, LogitStack) else list(stream)
    for one in stacks:
        warn_if_clips(one)
    found, ids = _units(recipe, record, stacks, seed)
    if shared := sum(recipe.shared_videos(stack) or 0 for stack in stacks):
        warnings.warn(
            f"{shared:,} of the stream's {sum(map(len, stacks)):,} videos are of the recipe's fit: they are like the "
            "record, whatever comes in now",
            VidfuseWarning,
            stacklevel=2,
        )
    values, before = found.values, record.reference
    if len(before) < _FEWEST:
        raise InputError(
            f"a stream is compared with at least {_FEWEST} independent videos or groups, and the record has "
            f"{len(before)}"
        )
    if values.shape[1] != before.shape[1]:
        raise InputError(
            f"the record holds {before.shape[1]} statistics, this release watches "
            f"{values.shape[1]}: make it anew with `vidfuse record`, or with_record()"
        )
    wealth = _wealth(before, values, record.n_classes, seed)
    bar = math.log(wealth.shape[1] / false_alarms)
    shares, later = (_shares(part, record.n_classes) for part in (before, values))
    means = [_means(part, shares, record.n_classes) for part in (before, values, values[-_RECENT:])]
    statistics = []
    for place, name in enumerate(found.names):
        reached = np.flatnonzero(wealth[:, place] >= bar)
        alarm = int(reached[0]) + 1 if len(reached) else None
        statistics.append(
            WatchedStatistic(
                name=name,
                before=float(means[0][place]),
                stream=float(means[1][place]),
                recent=float(means[2][place]),
                p_value=min(1.0, wealth.shape[1] * math.exp(-max(0.0, float(wealth[:, place].max())))),
                alarm=alarm,
                alarm_id=None if alarm is None or ids is None else ids[alarm - 1],
            )
        )
    names = recipe.classes or tuple(map(str, range(record.n_classes)))
    changed = np.argsort(-np.abs(later - shares), kind="stable")[:5]
    return Watch(
        tuple(statistics),
        n_units=len(values),
        n_videos=sum(map(len, stacks)),
        n_reference=len(before),
        unknown=float((values[:, 0] < np.quantile(before[:, 0], _LOW)).mean()),
        shifted=tuple((names[k], float(shares[k]), float(later[k])) for k in changed),
        false_alarms=false_alarms,
    )


def _wealth(before: NDArray[np.float32], values: NDArray[np.float32], n_classes: int, seed: int) -> NDArray[np.float64]:
    """Return the logarithm of what bets on each statistic have made of 1, after each video of the stream (T, S)."""
    theta = np.random.default_rng(seed).random(values.shape)  # by rows: the same for a stream that goes on
    p = [conformal_p_values(before[:, s], values[:, s], theta[:, s]) for s in range(values.shape[1] - 1)]
    then, now = before[:, -1].astype(np.int64), values[:, -1].astype(np.int64)
    of_classes = class_log_wealth(then, now, n_classes, theta[:, -1])
    return np.column_stack([log_wealth(np.stack(p, axis=1)), of_classes])


def _shares(values: NDArray[np.float32], n_classes: int) -> NDArray[np.float64]:
    """Return the shares of the predicted classes (K,), which are the last statistic."""
    return np.bincount(values[:, -1].astype(np.int64), minlength=n_classes) / len(values)


def _means(values: NDArray[np.float32], shares: NDArray[np.float64], n_classes: int) -> NDArray[np.float64]:
    """Return the mean of each statistic (S,); of the class, how far its shares are from those of the record."""
    found = values.astype(np.float64).mean(axis=0)
    found[-1] = np.abs(_shares(values, n_classes) - shares).sum() / 2
    return found


def _units(
    recipe: Recipe, record: TrackRecord, stacks: Sequence[LogitStack], seed: int
) -> tuple[Watched, list[str] | None]:
    """Return what is watched of one video of each group that all members have, and these videos' ids.

    Rows of a stack follow ids, not time: they are shuffled. What is drawn from a stack does not depend on later ones.
    """
    # Each stack in turn: refuse what is not like the record (checkpoints, classes, groups); leave out videos that lack
    # a member; draw one video of each group, or all where there are none; leave out groups, or ids, met before.
    parts: list[NDArray[np.float32]] = []
    names: tuple[str, ...] = ()
    ids: list[str] = []
    seen: set[str] = set()
    for place, given in enumerate(stacks):
        stack = given.select(record.members)
        recipe.check_checkpoints(stack.fingerprints, "the stream")
        recipe.check_classes(stack, "the stream")
        if (record.groups is None) != (stack.groups is None):
            has, lacks = ("record", "stream") if stack.groups is None else ("stream", "record")
            raise InputError(
                f"the {has}'s videos come in groups, and the {lacks}'s do not; say what each video comes from by "
                f"{option('groups')} for both: the id itself where each stands for itself"
            )
        if stack.present is not None:
            whole = stack.present.all(axis=1)
            if not whole.any():
                continue
            stack = stack[whole]
        if stack.n_views is not None:
            stack = reduce_views(stack, recipe.views_of(stack.members) or "mean-log")
        rng = np.random.default_rng([seed, place])
        rows = rng.permutation(one_of_each(stack.groups, len(stack), rng))
        units = stack.ids if stack.groups is None else stack.groups
        if units is not None:
            rows = rows[[name not in seen for name in units[rows].tolist()]]
            seen |= set(units.tolist())
        if len(rows):
            names, values = watched(stack[rows])
            parts.append(values)
            ids += [] if stack.ids is None else stack.ids[rows].tolist()
    if not parts:
        raise InputError("expected a stream of at least one video that all members have, got none")
    values = np.concatenate(parts)
    return Watched(names, values), ids if len(ids) == len(values) else None
