"""The stack: the members' scores for the same videos, aligned by id, read only where they are used."""

from __future__ import annotations

import html
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import (
    Kind,
    Rows,
    check_kind,
    check_member_names,
    check_scores,
    did_you_mean,
    first_few,
    per_member,
)
from vidfuse._threads import map_members
from vidfuse.cache.writer import PART_BYTES, CacheWriter
from vidfuse.errors import AlignmentError, InputError, option
from vidfuse.likelihood import block_rows
from vidfuse.stack.align import (
    Join,
    align_ids,
    align_labels,
    check_index,
    check_layouts,
    group_names,
    member_ids,
    without_rows,
)
from vidfuse.stack.checkpoints import joined_fingerprints, to_json
from vidfuse.stack.classes import (
    ClassMap,
    apply_class_maps,
    common_classes,
    labels_in_order,
    name_order,
    warn_of_unnamed,
)
from vidfuse.stack.frames import frame_arrays
from vidfuse.stack.inputs import Blanks, name_arrays, warn_if_odd, without_blanks
from vidfuse.stack.join import average_repeats, check_alike, joined_ids, repeated_rows
from vidfuse.stack.order import check_order
from vidfuse.stack.source import (
    ArraySource,
    IndexedSource,
    JoinedSource,
    Source,
    compose_rows,
    count_rows,
    fill_log_likelihoods,
    reduce_array,
    resolve_rows,
)

__all__ = ["LogitStack", "Member"]

_turns = itertools.count()


@dataclass(frozen=True)
class Member:
    """One model's scores: where they are, which row belongs to which video of the stack, and what they are.

    Attributes:
        name: The member's name.
        source: Its scores as they are stored.
        rows: For each video of the stack, the source's row; -1 where the member lacks the video.
        kind: What the numbers are.
        fingerprints: What identifies the checkpoints that made them, several of fold models; none where unknown.
    """

    name: str
    source: Source
    rows: Rows
    kind: Kind
    fingerprints: tuple[str, ...] = ()


class LogitStack:
    """Scores of M members for the same N videos and K classes, aligned by id; immutable.

    Build one with `from_arrays`, `from_frames`, `vidfuse.load_stack` or `vidfuse.read_predictions`. Axes are always
    (N videos, M members, V views, K classes), V only where views were kept. Nothing is copied until it is asked for:
    `scores` gives a member's numbers as they are stored, `log_likelihoods` and `iter_blocks` give normalised
    log-likelihoods of all members.

    Attributes:
        members: The members' names, in the order in which they were given.
        ids: The videos' ids, or None where rows are matched by position ("order unchecked").
        labels: The true classes (N,), int64, or None.
        classes: The classes' names, or None.
        kinds: What each member's numbers are.
        present: Which member has which video (N, M), or None where every member has every video. Where a member
            lacks a video, its log-likelihoods read as uniform, −log K.
        groups: What each video comes from (N,), or None: videos of one name are not independent; see `with_groups`.

    Example:
        >>> z = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=np.float32)
        >>> stack = LogitStack.from_arrays({"swin": z, "x3d": z}, labels=[0, 1], ids=["a", "b"])
        >>> stack.shape, stack.select(["x3d"]).members, stack[[1]].ids.tolist()
        ((2, 2, 3), ('x3d',), ['b'])
        >>> stack
        LogitStack(2 videos x 2 members x 3 classes, labels, members: swin, x3d)
    """

    __slots__ = ("_members", "classes", "groups", "ids", "labels", "members", "present")

    _members: tuple[Member, ...]
    ids: NDArray[np.str_] | None
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None
    members: tuple[str, ...]
    present: NDArray[np.bool_] | None
    groups: NDArray[np.str_] | None

    def __init__(
        self,
        members: Sequence[Member],
        *,
        ids: NDArray[np.str_] | None = None,
        labels: NDArray[np.int64] | None = None,
        classes: tuple[str, ...] | None = None,
        present: NDArray[np.bool_] | None = None,
        groups: NDArray[np.str_] | None = None,
    ) -> None:
        check_layouts({member.name: member.source.shape for member in members})
        if not members or not count_rows(members[0].rows):
            raise InputError("expected at least one member and one video, got none; was every video filtered out?")
        if present is not None and present.all():
            present = None
        values = {"ids": ids, "labels": labels, "classes": classes, "present": present, "groups": groups}
        for name, value in {**values, "_members": tuple(members), "members": tuple(m.name for m in members)}.items():
            if isinstance(value, np.ndarray):
                value = value.view()
                value.flags.writeable = False
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a LogitStack is immutable; build a new one instead of setting {name!r}")

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Any] | Iterable[tuple[str, Any]] | ArrayLike,
        *,
        labels: Any = None,
        ids: Any = None,
        classes: Any = None,
        kind: Kind | Mapping[str, Kind] = "logits",
        members: Sequence[str] | None = None,
        join: Join = "exact",
        missing: Blanks = "error",
        class_map: Mapping[str, ClassMap] | None = None,
        views: str | Mapping[str, str] | None = None,
    ) -> Self:
        """Build a stack from arrays or tensors, checked once, without copying them.

        Args:
            arrays: {member: scores (N, K) or (N, V, K)}, or one array (N, M, K) or (N, M, V, K).
            labels: True classes (N,) in the rows' order of the first member, {member: labels} or {id: label}.
            ids: The videos' ids, one sequence for all members or {member: ids}. With ids by member, rows are
                matched by id and stand in the order of the first member; without any ids, by position.
            classes: The classes' names, one sequence or {member: names}. Members that have them in different orders
                are brought into the order of the first that has names, their own labels too.
            kind: What the numbers are: "logits", "log-likelihoods", "probabilities" or "sum" (of probabilities over
                views); one for all, or {member: kind}. It is never guessed.
            members: Names for one array's members (default ``member0`` …), or which of a mapping to take.
            join: "exact" demands the same ids, "inner" keeps the videos that all members have, "outer" keeps every
                video of any member, and `present` says who has which.
            missing: What becomes of videos for which a member has no prediction (NaN, or zero probabilities, in every
                class): "error" names them, "leave-out" drops them, "keep" keeps them, and `present` says so.
            class_map: {member: {its class: the stack's class, or several}} for members of fewer, coarser or finer
                classes, which become log-likelihoods; see `vidfuse.stack.classes.mapped_scores`.
            views: How to reduce views ("mean-log", "mean-probability", "vote", "max"; or a mapping by member).

        Raises:
            InputError: Scores, labels, ids or names cannot be what they are said to be.
            AlignmentError: The members differ in their videos, classes or labels.
        """
        # Each member is brought to the stack's form alone: its blank rows go, its scores are checked, its classes are
        # mapped and its views reduced. Then all are compared: classes give the columns, ids the rows. Rows stay where
        # they are in the arrays; `Member.rows` says which one stands where.
        named = name_arrays(arrays, members)
        names = tuple(named)
        kinds = {n: check_kind(k, f"kind of member {n!r}") for n, k in per_member(kind, names, "kind").items()}
        counts = {name: len(array) for name, array in named.items()}
        mapped = per_member(class_map, names, "class_map", needed=())
        shapes = {
            name: (a.shape[0], a.shape[-1]) if views is not None and a.ndim == 3 else a.shape
            for name, a in named.items()
        }
        check_layouts({name: shape for name, shape in shapes.items() if not mapped[name]} or shapes)
        own_ids = member_ids(ids, names, counts)
        for name, given in arrays.items() if isinstance(arrays, Mapping) else ():
            check_index(given, None if own_ids is None else own_ids.get(str(name)), f"member {str(name)!r}")
        kept = without_blanks(named, kinds, own_ids, missing)
        named |= {name: named[name][rows] for name, rows in kept.items()}

        def check(name: str) -> None:
            known = None if own_ids is None else own_ids[name]
            if known is not None and name in kept:
                known = known[kept[name]]
            check_scores(named[name], kinds[name], member=name, ids=known)
            warn_if_odd(name, named[name], kinds[name])

        map_members(check, names, sum(array.size for array in named.values()))
        if class_map:
            classes = apply_class_maps(named, kinds, mapped, classes)
        if views is not None:
            viewed = [name for name in names if named[name].ndim == 3]
            rules = per_member(views, names, "views", needed=viewed)
            for name in viewed:
                named[name], kinds[name] = reduce_array(named[name], kinds[name], rules[name]), "log-likelihoods"
        n_classes, _ = check_layouts({name: array.shape for name, array in named.items()})
        shared, orders = common_classes(classes, names, n_classes)
        named |= {name: named[name][..., columns] for name, columns in orders.items()}
        labels = labels_in_order(labels, orders, names)
        alignment = align_ids(own_ids, counts, join)
        known_labels = align_labels(labels, alignment, names, counts, n_classes, own_ids)
        alignment = without_rows(alignment, kept, counts)
        stack = cls(
            [Member(name, ArraySource(named[name]), alignment.rows[name], kinds[name]) for name in names],
            ids=alignment.ids,
            labels=known_labels,
            classes=shared,
            present=alignment.present,
        )
        if missing == "leave-out" and stack.present is not None:
            stack = stack[stack.present.all(axis=1)]
        if stack.ndim == 3 and stack.present is None:
            unnamed = [n for n in names if classes.get(n) is None] if shared and isinstance(classes, Mapping) else []
            check_order({name: stack.scores(name) for name in names}, stack.labels, stack.ids, unnamed)
        return stack

    @classmethod
    def from_frames(
        cls,
        frames: Mapping[str, Any],
        *,
        id: str,
        label: str | None = None,
        columns: Sequence[str] | None = None,
        **options: Any,
    ) -> Self:
        """Build a stack from pandas, polars or pyarrow tables, one a member.

        Args:
            frames: {member: table}, one row for each video, one column for each class.
            id: The column of the videos' ids.
            label: The column of the true classes, if there is one.
            columns: The score columns in class order; by default all others.
            **options: Every keyword of `from_arrays` but labels and ids.
        """
        given = {name: value for name, value in options.items() if name != "classes" or value is not None}
        return cls.from_arrays(**{**frame_arrays(frames, id, label, columns), **given})

    @classmethod
    def concatenate(cls, stacks: Iterable[LogitStack], *, repeats: str | None = None, folds: bool = False) -> Self:
        """Put the videos of several stacks of the same members one after another: folds, shards, batches.

        Nothing is copied, unless predictions are averaged. Classes that stand in another order are aligned by name.

        Args:
            stacks: Stacks with the same members (in any order), kinds, views and classes.
            repeats: What becomes of an id that stands in several: None refuses it; "mean-probability", "mean-log",
                "vote" or "max" makes its predictions one, as of fold models on the same test videos.
            folds: The stacks are folds, each predicted by a model of its own, as with `repeats`. Otherwise a member's
                scores are of one checkpoint, where the stacks know theirs.

        Raises:
            InputError: An id stands in two stacks, or only some have ids or labels.
            CacheConflictError: A member's scores come from different checkpoints, and nothing was said of folds.
            AlignmentError: Members, kinds, views or classes differ; or a video is predicted more often than another.

        Example:
            >>> first = LogitStack.from_arrays({"swin": np.zeros((2, 3))}, ids=["a", "b"])
            >>> second = LogitStack.from_arrays({"swin": np.zeros((1, 3))}, ids=["c"])
            >>> LogitStack.concatenate([first, second]).ids.tolist()
            ['a', 'b', 'c']
        """
        given = list(stacks)
        if not given:
            raise InputError("expected at least one stack, got none")
        first = given[0]
        classes = next((stack.classes for stack in given if stack.classes is not None), None)
        if classes is not None:
            warn_of_unnamed([f"stack {number}" for number, stack in enumerate(given) if stack.classes is None])
        several = [first, *(stack._like(first, classes) for stack in given[1:])]
        ids = joined_ids({f"stack {number}": stack.ids for number, stack in enumerate(several)}, repeats)
        whole = slice(0, sum(map(len, several)), 1)
        sources = [
            JoinedSource([(stack._members[m].source, stack._members[m].rows) for stack in several])
            for m in range(len(first.members))
        ]
        places = {f"stack {number}": stack.fingerprints for number, stack in enumerate(several)}
        prints = {
            name: joined_fingerprints(
                name, {place: own[name] for place, own in places.items()}, folds=folds or repeats is not None
            )
            for name in first.members
        }
        joined = cls(
            [
                Member(m.name, source, whole, m.kind, prints[m.name])
                for m, source in zip(first._members, sources, strict=True)
            ],
            ids=ids,
            labels=_join([stack.labels for stack in several], "labels"),
            classes=classes,
            present=np.concatenate([_presence(stack) for stack in several]),
            groups=_join([stack.groups for stack in several], "groups"),
        )
        return joined if repeats is None else joined._averaged(repeats, [len(stack) for stack in several])

    def _like(self, first: LogitStack, classes: tuple[str, ...] | None) -> LogitStack:
        """Return this stack with the members of another in its order, and with its own classes in that of `classes`."""
        if set(self.members) != set(first.members):
            raise AlignmentError(
                f"expected stacks of the same members, got {first_few(first.members, 20)} and "
                f"{first_few(self.members, 20)}"
            )
        stack = self.select(first.members)
        kinds = {m.name: (m.kind, m.source.shape[1:]) for m in stack._members}
        for member in first._members:
            if kinds[member.name] != (member.kind, member.source.shape[1:]):
                raise AlignmentError(
                    f"member {member.name!r}: expected {member.kind} of shape {member.source.shape[1:]} in every "
                    f"stack, got {kinds[member.name][0]} of shape {kinds[member.name][1]}"
                )
        order = None
        if classes is not None and stack.classes is not None:
            order = name_order(stack.classes, classes, "a later stack")
        if order is None:
            return stack
        return stack.changed(
            [replace(m, source=IndexedSource(m.source, (..., order))) for m in stack._members],
            labels=None if stack.labels is None else np.argsort(order)[stack.labels],
            classes=classes,
        )

    def _averaged(self, repeats: str, counts: Sequence[int]) -> Self:
        """Return each video once, with its predictions made one."""
        if self.ids is None or self.present is not None:
            what = "ids" if self.ids is None else "a prediction of every member"
            raise InputError(f"repeats: expected {what} for each video, to know what belongs together")
        rows = repeated_rows(self.ids, counts)
        first = rows[:, 0]
        for what, values in (("labels", self.labels), ("groups", self.groups)):
            if values is not None:
                check_alike(values[rows], self.ids[first], what)
        sources = [ArraySource(average_repeats(self.scores(m.name), m.kind, rows, repeats)) for m in self._members]
        whole = slice(0, len(rows), 1)
        return self[first].changed(
            [
                Member(m.name, source, whole, "log-likelihoods", m.fingerprints)
                for m, source in zip(self._members, sources, strict=True)
            ]
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, M, K), or (N, M, V, K) where views were kept."""
        return (len(self), len(self.members), *self._members[0].source.shape[1:])

    @property
    def ndim(self) -> int:
        """3, or 4 where views were kept."""
        return 1 + len(self._members[0].source.shape)

    @property
    def n_classes(self) -> int:
        """The number of classes K."""
        return self._members[0].source.shape[-1]

    @property
    def n_views(self) -> int | None:
        """The number of views V, or None without a view axis."""
        shape = self._members[0].source.shape
        return shape[1] if len(shape) == 3 else None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What each member's numbers are."""
        return tuple(member.kind for member in self._members)

    @property
    def fingerprints(self) -> dict[str, tuple[str, ...]]:
        """What identifies the checkpoints that made each member's numbers, by name; empty where that is not known.

        A cache knows the fingerprint of its network. A member of several folds has one for each fold's model.
        """
        return {member.name: member.fingerprints for member in self._members}

    def __len__(self) -> int:
        return count_rows(self._members[0].rows)

    def __getitem__(self, key: Any) -> Self:
        """Choose videos by a slice, a mask, integers, or scikit-learn's ``(rows, ...)``."""
        if isinstance(key, tuple):
            if len(key) != 2 or key[1] is not Ellipsis:
                raise IndexError("a stack is indexed by its videos only, as stack[rows]; choose members with select")
            key = key[0]
        rows = resolve_rows(key, len(self))
        of_videos = {
            name: values[rows] for name, values in self._others().items() if values is not None and name != "classes"
        }
        return self.changed([replace(m, rows=compose_rows(m.rows, rows)) for m in self._members], **of_videos)

    def select(self, members: Iterable[str]) -> Self:
        """Return a stack of these members, in this order, without copying anything."""
        if isinstance(members, str):
            members = [members]
        columns = self._columns(check_member_names(members))
        present = None if self.present is None else self.present[:, columns]
        return self.changed([self._members[column] for column in columns], present=present)

    def _columns(self, names: Sequence[str]) -> list[int]:
        unknown = [name for name in names if name not in self.members]
        if unknown:
            raise InputError(
                f"unknown members {first_few(unknown)}; the stack has {first_few(self.members, 20)}"
                f"{did_you_mean(unknown[0], self.members)}"
            )
        return [self.members.index(name) for name in names]

    def changed(self, members: Sequence[Member] | None = None, **others: Any) -> Self:
        """Return a stack with other members, or with other `ids`, `labels`, `classes`, `present` or `groups`."""
        return type(self)(self._members if members is None else members, **{**self._others(), **others})

    def _others(self) -> dict[str, Any]:
        """Return what a stack holds beside its members."""
        return {name: getattr(self, name) for name in ("ids", "labels", "classes", "present", "groups")}

    def with_groups(self, groups: ArrayLike | Mapping[str, Any] | Callable[[str], Any] | None) -> Self:
        """Return this stack with what each video comes from: clips of one source video, one signer, one film.

        Videos of one group are not independent. Folds keep them together, and a fit that chooses its own strength
        counts groups where it would count videos.

        Args:
            groups: One name for each video (N,), {id: name}, a function of the id, or None for no groups.

        Raises:
            InputError: Not one name for each video, or names by id where the stack has no ids.

        Example:
            >>> z = np.zeros((3, 1, 2))
            >>> stack = LogitStack.from_arrays(z, ids=["run_g01_c01", "run_g01_c02", "run_g02_c01"])
            >>> stack.with_groups(lambda id: id.rsplit("_", 1)[0]).groups.tolist()
            ['run_g01', 'run_g01', 'run_g02']
        """
        return self.changed(groups=None if groups is None else group_names(groups, self.ids, len(self)))

    def sources(self) -> tuple[Member, ...]:
        """Return where each member's numbers are, in the order of `members`."""
        return self._members

    def scores(self, member: str, rows: slice | None = None) -> NDArray[np.floating[Any]]:
        """Return one member's numbers as they are stored, (N, [V,] K), read-only; a view where rows are contiguous.

        They are not normalised: `kinds` says what they are. Where the member lacks a video they are NaN.

        Args:
            member: The member's name.
            rows: Consecutive videos; by default all. A short run seldom crosses two parts of a cache, and is a view.
        """
        (column,) = self._columns([member])
        run = resolve_rows(slice(None) if rows is None else rows, len(self))
        source, base = self._members[column].source, self._members[column].rows
        taken = source.take(compose_rows(base, run))
        if self.present is not None and not self.present[run, column].all():
            taken = taken.copy()
            taken[~self.present[run, column]] = np.nan
        taken = taken.view()
        taken.flags.writeable = False
        return taken

    def pieces(self, column: int) -> list[NDArray[np.floating[Any]]]:
        """Return one member's numbers as they are stored, in consecutive pieces: views where rows are contiguous.

        For passes over many short stacks: without the checks of `scores`. The numbers must not be written to; where the
        member lacks a video they are whatever is stored.
        """
        return self._members[column].source.pieces(self._members[column].rows)

    def log_likelihoods(self, rows: Any = None) -> NDArray[np.float32]:
        """Return normalised log-likelihoods (n, M, [V,] K) of some or all videos, as a new float32 array."""
        stack = self if rows is None else self[rows]
        out = np.empty(stack.shape, dtype=np.float32)
        for block, values in stack.iter_blocks():
            out[block] = values
        return out

    def iter_blocks(
        self, rows_per_block: int | None = None, *, scales: ArrayLike = 1.0, floors: ArrayLike = 0.0
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Run through normalised log-likelihoods in blocks (B, M, [V,] K) that fit the CPU cache.

        Each block is a transposed view of one C-contiguous buffer (M, B, [V,] K), so that a member's part is
        contiguous. The buffer is reused: copy what has to outlive the iteration.

        Args:
            rows_per_block: Videos in a block; by default as many as make about 1 MB.
            scales: What each member's log-likelihoods are multiplied by before they are normalised (M,).
            floors: The share of the uniform distribution that is then mixed into each member (M,).

        Yields:
            The rows as a slice, and the block.
        """
        n, inner = len(self), self.shape[2:]
        step = min(n, rows_per_block or block_rows(len(self.members) * int(np.prod(inner))))
        shares = [np.broadcast_to(given, len(self.members)).tolist() for given in (scales, floors)]
        members = list(enumerate(zip(self._members, *shares, strict=True)))
        first = next(_turns) % len(members)  # threads that come to new parts begin with different ones, to check them
        members = members[first:] + members[:first]
        buffer = np.empty((len(self.members), step, *inner), dtype=np.float32)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n), 1)
            filled = buffer[:, : rows.stop - rows.start]
            for column, (member, scale, floor) in members:
                scores = member.source.take(compose_rows(member.rows, rows))
                fill_log_likelihoods(scores, member.kind, filled[column], scale, floor)
                if self.present is not None:
                    filled[column, ~self.present[rows, column]] = -np.log(self.n_classes)
            yield rows, filled.swapaxes(0, 1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return `log_likelihoods()`, so that NumPy and scikit-learn functions accept a stack."""
        if copy is False:
            raise ValueError("a stack has no array to share: its log-likelihoods are computed when asked for")
        values = self.log_likelihoods()
        return values if dtype is None else values.astype(dtype, copy=False)

    def save(self, path: str | os.PathLike[str], *, dtype: str | None = None) -> None:
        """Write the stack as a folder of caches, one a member, which `vidfuse.load_stack` reads back.

        Args:
            path: The folder; it is made where it does not exist.
            dtype: "float32" or "float16"; by default as the scores are stored (float64 becomes float32).

        Raises:
            InputError: The stack has no ids, or scores do not fit float16.
            CacheConflictError: The folder holds other scores for one of these videos.
        """
        if self.ids is None:
            raise InputError(
                f"expected a stack with ids to save, got one whose order is unchecked; build it with {option('ids')}"
            )
        for column, name in enumerate(self.members):
            kept = np.arange(len(self)) if self.present is None else np.flatnonzero(self.present[:, column])
            part = self.select([name])[kept]
            ids, labels = self.ids[kept], None if part.labels is None else part.labels
            stored = dtype or ("float16" if part.scores(name).dtype == np.float16 else "float32")
            with CacheWriter(
                Path(path) / name,
                classes=self.classes,
                kind=part.kinds[0],
                dtype=stored,
                fingerprint=to_json(self.fingerprints[name]),
                expected_ids=ids.tolist(),
            ) as writer:
                step = max(1, PART_BYTES // (4 * int(np.prod(part.shape[2:]))))
                for start in range(0, len(kept), step):
                    rows = slice(start, min(start + step, len(kept)))
                    writer.append(ids[rows], part[rows].scores(name), None if labels is None else labels[rows])

    def __getstate__(self) -> dict[str, Any]:
        restricted = []
        for member in self._members:
            source, rows = member.source.restricted(member.rows)
            restricted.append(replace(member, source=source, rows=rows))
        return {"members": restricted, **self._others()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        LogitStack.__init__(self, state.pop("members"), **state)

    def __repr__(self) -> str:
        return f"LogitStack({self._summary()}, members: {', '.join(self.members)})"

    def _summary(self) -> str:
        views = "" if self.n_views is None else f" x {self.n_views} views"
        notes = ["labels" if self.labels is not None else "no labels"]
        if self.ids is None:
            notes.append("order unchecked")
        if self.groups is not None:
            notes.append(f"{len(np.unique(self.groups))} groups")
        if self.present is not None:
            notes.append(f"{int((~self.present).sum())} predictions missing")
        sizes = f"{len(self)} videos x {len(self.members)} members{views} x {self.n_classes} classes"
        return ", ".join([sizes, *notes])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(m.name)}</td><td>{m.kind}</td><td>{m.source.dtype}</td></tr>" for m in self._members
        )
        head = "<tr><th>member</th><th>kind</th><th>dtype</th></tr>"
        return f"<p><b>LogitStack</b>: {html.escape(self._summary())}</p><table>{head}{rows}</table>"


def _presence(stack: LogitStack) -> NDArray[np.bool_]:
    return np.ones((len(stack), len(stack.members)), dtype=bool) if stack.present is None else stack.present


def _join(parts: Sequence[Any], what: str) -> Any:
    """Return arrays one after another, or None where no stack has one."""
    known = [part for part in parts if part is not None]
    if len(known) not in (0, len(parts)):
        raise InputError(f"expected {what} in every stack or in none, got them in {len(known)} of {len(parts)}")
    return np.concatenate(known) if known else None
