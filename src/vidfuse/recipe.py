"""A fitted ensemble as a file: JSON that people can read, and one safetensors file where arrays are large.

Nothing in a recipe is code: no pickle, and only the rules that `vidfuse._rules` lists are built from one. Every number
is written so that it is read back bit by bit. Every 1.x release reads the recipes of every 1.x release.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from dataclasses import replace as with_other
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from vidfuse import __version__
from vidfuse._checks import check_choice, check_kind, check_member_names, first_few, per_member
from vidfuse._files import make_folder, publish, replace
from vidfuse._rules import RULES
from vidfuse.cache.layout import unique_keys
from vidfuse.errors import AlignmentError, CacheCorruptError, CacheFormatError, InputError, option
from vidfuse.fusion.blocks import FusedBlocks
from vidfuse.fusion.fitted import check_fitted
from vidfuse.fusion.rule import as_stack, check_class_names
from vidfuse.fusion.track_record import TrackRecord, track_record
from vidfuse.fusion.views import reduce_views, reduced_as_read
from vidfuse.likelihood import VIEW_RULES
from vidfuse.metrics.conformal import Conformity
from vidfuse.selection.problem import best_single
from vidfuse.stack.checkpoints import Checkpoints, check_checkpoints, refuse_others, shortened
from vidfuse.stack.clips import warn_if_clips
from vidfuse.stack.stack import LogitStack

__all__ = ["Recipe", "arrays_beside", "hashed_ids", "load_recipe"]

_FORMAT = "vidfuse-recipe"
_VERSION = 1
_ORDERS = ("checked by id", "unchecked")
_LARGE = 256  # an array with more elements goes to the safetensors file
_AT_ONCE = 1 << 16  # ids that are hashed at once
_MOST_IDS = 10_000  # hashed ids that the JSON holds, in 80 kB; more go to the safetensors file
_LISTS = re.compile(r"\[(\n[^\[\]{}]*\n\s*)\]")  # the innermost lists, which are written on one line
_FITTED = re.compile(r"[a-zA-Z]\w*_")
_IN_FILE = {  # attributes that are called otherwise in files
    "Calibrated": {"rule": "fuser", "rule_": "fuser_"},
    "GreedyPool": {"pool": "kind"},
    "SubsetPool": {"rule": "pool", "rule_": "pool_"},
}


@dataclass(frozen=True)
class Recipe:
    """A fitted rule with all that is needed to use it on other videos.

    Attributes:
        rule: The fitted rule; its parameters carry floors, its fitted attributes weights and weight sums.
        members: The members' names, in the order of the rule's `members_`.
        n_classes: K.
        classes: The names of the classes, where they are known.
        kinds: What each member's numbers are (`"logits"`, `"log-likelihoods"`, `"probabilities"`, `"sum"`), by name.
        views: The reduction of each member's views to apply before the rule; None where there are no views to reduce.
        order_checked: Whether the members were aligned by id; False reads "order unchecked".
        fitted_on: What the fit saw: `videos`, their number; `groups`, theirs (None without groups); `best_single`, the
            most accurate member on them (None without labels); `ids`, 48 bits of a hash of each id, sorted (None
            without ids). Recipes of the first releases have a digest of all ids instead, which only tells the very same
            videos.
        fingerprints: What identifies the checkpoints whose predictions the fit saw, by member: one, or one for each
            fold; none where that is not known. Predictions of others are refused.
        record: How the rule did on videos that it had not seen: `with_record`; None where that was not tried.

    Example:
        >>> import numpy as np, tempfile, vidfuse as vf
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=60)
        >>> good = rng.normal(size=(60, 3)) + 2.0 * np.eye(3)[y]
        >>> stack = vf.LogitStack.from_arrays({"good": good, "weak": rng.normal(size=(60, 3)) + np.eye(3)[y]}, labels=y)
        >>> pool = vf.LogLinearPool(weights="accuracy").fit(stack)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = vf.Recipe.from_fitted(pool, stack).save(f"{folder}/ensemble.json")
        ...     recipe = vf.load_recipe(path)
        >>> bool((recipe.predict_proba(stack) == pool.predict_proba(stack)).all())
        True
    """

    rule: Any
    members: tuple[str, ...]
    n_classes: int
    classes: tuple[str, ...] | None = None
    kinds: Mapping[str, Any] = field(default_factory=dict)
    views: str | Mapping[str, str] | None = None
    order_checked: bool = False
    fitted_on: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    record: TrackRecord | None = None

    @classmethod
    def from_fitted(cls, rule: Any, stack: Any, views: str | Mapping[str, str] | None = None) -> Recipe:
        """Take a fitted rule, and from the stack of its fit the names, kinds, classes and order of its members.

        Args:
            rule: A fitted rule.
            stack: The stack of its fit, (N, M, K) or (N, M, V, K), or the array.
            views: The reduction of views to apply to a stack that still has its views when the recipe is used.

        Raises:
            InputError: the rule is not fitted.
            AlignmentError: its members or classes are not the stack's.
        """
        if not hasattr(rule, "members_"):
            raise InputError(f"expected a fitted rule, got {rule!r} before its fit; call fit(stack) first")
        stack = as_stack(stack)
        members = tuple(str(name) for name in rule.members_)
        if sorted(members) != sorted(stack.members):
            raise AlignmentError(
                f"the rule was fitted on the members {list(members)}, the stack has {list(stack.members)}; "
                "pass the stack of the fit"
            )
        if stack.n_classes != len(rule.classes_):
            raise AlignmentError(
                f"the rule was fitted on {len(rule.classes_)} classes, the stack has {stack.n_classes}"
            )
        check_class_names(getattr(rule, "class_names_", None), stack.classes)
        kinds = dict(zip(stack.members, stack.kinds, strict=True))
        return cls(
            rule=rule,
            members=members,
            n_classes=stack.n_classes,
            classes=stack.classes,
            kinds={name: kinds[name] for name in members},
            views=views,
            order_checked=stack.ids is not None,
            fitted_on={
                "videos": len(stack),
                "groups": None if stack.groups is None else len(np.unique(stack.groups)),
                "best_single": _best(stack),
                "ids": hashed_ids(stack.ids),
            },
            fingerprints={name: prints for name in members if (prints := stack.fingerprints[name])},
        )

    def predict_log_proba(
        self, data: LogitStack | Mapping[str, ArrayLike], *, checkpoints: Checkpoints = "same"
    ) -> NDArray[np.float64]:
        """Return the fused log-likelihoods (N, K) of a stack, or of a mapping of members to (N, K) or (N, V, K).

        Args:
            data: The members' scores.
            checkpoints: "any" takes scores of other checkpoints than those of the fit.

        Raises:
            AlignmentError: Members that have a say are missing, or members are added, or the classes are others.
            CacheConflictError: A member's scores come from another checkpoint than those of the fit, where both the
                stack and the recipe know theirs.
        """
        return self.rule.predict_log_proba(self._prepare(data, checkpoints))

    def predict_proba(
        self, data: LogitStack | Mapping[str, ArrayLike], *, checkpoints: Checkpoints = "same"
    ) -> NDArray[np.float64]:
        """Return the fused probabilities (N, K); arguments and errors as of `predict_log_proba`."""
        return self.rule.predict_proba(self._prepare(data, checkpoints))

    def predict(
        self, data: LogitStack | Mapping[str, ArrayLike], *, checkpoints: Checkpoints = "same"
    ) -> NDArray[np.int64]:
        """Return the fused class (N,), of a tie the lowest; arguments and errors as of `predict_log_proba`."""
        return self.rule.predict(self._prepare(data, checkpoints))

    def predict_blocks(
        self,
        data: LogitStack | Mapping[str, ArrayLike],
        *,
        proba: bool = False,
        rows_per_block: int | None = None,
        checkpoints: Checkpoints = "same",
    ) -> FusedBlocks:
        """Return the fused log-likelihoods (N, K) as blocks, which are computed when they are read.

        They are those of `predict_log_proba`, bit by bit, and memory holds a block of them.

        Args:
            data: as in `predict_log_proba`; its views are reduced block by block, too.
            proba: give probabilities, as `predict_proba` does.
            rows_per_block: videos in a block; by default as many as have about a million scores.
            checkpoints: as in `predict_log_proba`.

        Example:
            >>> import vidfuse as vf
            >>> z = np.log([[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]])
            >>> stack = vf.LogitStack.from_arrays({"swin": z, "x3d": z}, labels=[0, 1, 0], ids=["a", "b", "c"])
            >>> recipe = vf.Recipe.from_fitted(vf.LinearPool("uniform").fit(stack), stack)
            >>> for rows, proba in recipe.predict_blocks(stack, proba=True, rows_per_block=2):
            ...     print(stack.ids[rows].tolist(), proba.round(2).tolist())
            ['a', 'b'] [[0.8, 0.2], [0.4, 0.6]]
            ['c'] [[0.5, 0.5]]
        """
        stack = self._prepare(data, checkpoints, at_once=False)
        return self.rule.predict_blocks(stack, proba=proba, rows_per_block=rows_per_block)

    def check_checkpoints(self, fingerprints: Mapping[str, Sequence[str]], what: str = "the stack") -> None:
        """Refuse other checkpoints than those of the fit, of the members that have a say.

        Args:
            fingerprints: What is met, by member, as `LogitStack.fingerprints`; members of which nothing is known pass.
            what: What holds them, for the error.

        Raises:
            CacheConflictError: A member's are others; the message names both.
        """
        needed = self.needed_members()
        refuse_others(self.fingerprints, {name: own for name, own in fingerprints.items() if name in needed}, what)

    def check_classes(self, stack: LogitStack, what: str = "the stack") -> None:
        """Refuse other classes than those of the fit, or another order of them, where both know theirs.

        Args:
            stack: What is met.
            what: What an error calls it.

        Raises:
            AlignmentError: They are; the first that differs is named.
        """
        if stack.n_classes != self.n_classes:
            raise AlignmentError(f"the recipe knows {self.n_classes} classes, {what} has {stack.n_classes}")
        if self.classes is not None and stack.classes is not None and stack.classes != self.classes:
            row = next(i for i, (a, b) in enumerate(zip(self.classes, stack.classes, strict=True)) if a != b)
            raise AlignmentError(
                f"class {row} is {self.classes[row]!r} in the recipe and {stack.classes[row]!r} in {what}; put the "
                f"classes of {what} in the recipe's order"
            )

    def check_groups(self, stack: LogitStack) -> None:
        """Refuse videos without groups where those of the fit came in some: what is stated of them would be too much.

        Raises:
            InputError: They have none.
        """
        n_groups = self.fitted_on.get("groups")
        if n_groups is not None and stack.groups is None:
            raise InputError(
                f"the videos of the fit came in {n_groups:,} groups, and these have none; say what each comes from by "
                f"{option('groups')}, as then: the id itself where each stands for itself"
            )

    def needed_members(self) -> tuple[str, ...]:
        """Return those of `members` that a prediction needs: all, unless the fitted rule gave some no say."""
        needed = self.rule.needed_members()
        return tuple(name for name in self.members if name in needed)

    def views_of(self, members: Sequence[str], otherwise: str | None = None) -> str | dict[str, str] | None:
        """Return how the views of some of the members are reduced: in one way, or in each member's own.

        Args:
            members: The members.
            otherwise: How, where the recipe says nothing.
        """
        views = self.views
        if isinstance(views, Mapping):
            return {name: views[name] for name in members if name in views}
        return views or otherwise

    def shared_videos(self, stack: LogitStack) -> int | None:
        """Return how many of these videos were in the fit, by their ids; None where that cannot be told."""
        found = hashed_ids(stack.ids)
        known = self.fitted_on.get("ids")
        if found is not None and known is not None:
            return int(np.isin(found, known).sum())
        digest = _digest(stack.ids)  # of a recipe of the first releases: all of them, or it cannot be told
        return len(stack) if digest is not None and digest == self.fitted_on.get("ids_sha256") else None

    def was_fitted_on(self, stack: LogitStack) -> bool:
        """Return whether some of these videos were in the fit, so that a score on them is in-sample."""
        return bool(self.shared_videos(stack))

    def with_record(
        self,
        data: LogitStack,
        *,
        cross_fit: bool | None = None,
        folds: int = 5,
        seed: int | None = 0,
        conformity: Conformity = "least-ambiguous",
    ) -> Recipe:
        """Return the recipe with a record of how its rule does on labelled videos: to abstain, for sets, to watch.

        Videos that the fit did not see are predicted by the recipe, and what is stated of it later holds exactly. Those
        of the fit are predicted by copies of the rule, each fitted on the other folds; then it holds as far as the
        rule does as its copies do.

        Args:
            data: Labelled videos: all of the fit, or none of it; with groups, where they come in groups.
            cross_fit: Whether they are those of the fit, where there are no ids that tell.
            folds: The number of folds of the fit's videos.
            seed: Seed of the folds.
            conformity: How sets of classes are made; see `vidfuse.metrics.conformity_scores`.

        Raises:
            InputError: Some of the videos are of the fit and others are not, or it cannot be told; labels are missing;
                or the fit's videos came in groups, and these have none.

        Warns:
            VidfuseWarning: Ids look like clips of one source, and there are no groups.

        Example:
            >>> import vidfuse as vf
            >>> rng = np.random.default_rng(0)
            >>> y = rng.integers(0, 3, size=300)
            >>> z = {name: rng.normal(size=(300, 3)) + 2 * np.eye(3)[y] for name in "ab"}
            >>> stack = vf.LogitStack.from_arrays(z, labels=y, ids=[f"v{i}" for i in range(300)])
            >>> recipe = Recipe.from_fitted(vf.LogLinearPool().fit(stack), stack).with_record(stack)
            >>> recipe.record
            TrackRecord(cross-fitted, 300 videos, accuracy 0.9300)
            >>> recipe.record.prediction_sets(0.95)
            PredictionSets(95%, from 300 videos)
        """
        stack = self._prepare(data)
        self.check_groups(stack)
        warn_if_clips(stack)
        shared = self.shared_videos(stack)
        if cross_fit is None and shared is None:
            raise InputError(
                "whether these videos are those of the fit cannot be told without ids; say "
                f"{option('cross_fit', True)} if they are, {option('cross_fit', False)} if none of them is"
            )
        of_fit = bool(shared) if cross_fit is None else cross_fit
        seen = self.fitted_on.get("videos", len(stack))
        if shared not in (None, 0, len(stack)) or (of_fit and len(stack) != seen):
            raise InputError(
                f"a record needs all videos of the fit, or none of them; of these {len(stack):,}, {shared} are of the "
                f"fit, which saw {seen:,}"
            )
        made = track_record(self.rule, stack, held_out=not of_fit, folds=folds, seed=seed, conformity=conformity)
        return with_other(self, record=made)

    def describe(self) -> dict[str, Any]:
        """Return what the recipe is, without its large arrays, in plain types."""
        weights = getattr(self.rule, "weights_", None)
        return {
            "rule": repr(clone(self.rule)),
            "members": list(self.members),
            "n_classes": self.n_classes,
            "classes": None if self.classes is None else list(self.classes),
            "kinds": dict(self.kinds),
            "views": self.views if self.views is None or isinstance(self.views, str) else dict(self.views),
            "order": _ORDERS[not self.order_checked],
            "fitted_on": {key: value for key, value in self.fitted_on.items() if key != "ids"},
            "fingerprints": {name: list(self.fingerprints.get(name, ())) or "unknown" for name in self.members},
            "weights": None if weights is None else np.asarray(weights).tolist(),
            "temperature": _optional_float(getattr(self.rule, "temperature_", None)),
            "choices": list(self.rule.choices()),
            "record": None if self.record is None else repr(self.record),
        }

    def __str__(self) -> str:
        order = "" if self.order_checked else ", order unchecked"
        lines = [
            f"{clone(self.rule)!r}",
            f"{len(self.members)} members, {self.n_classes} classes, "
            f"fitted on {self.fitted_on.get('videos', '?')} videos{order}",
        ]
        weights = np.asarray(getattr(self.rule, "weights_", ()))
        names = [str(name) for name in getattr(self.rule, "members_", self.members)]
        if weights.shape == (len(names),):
            width = max(map(len, names))
            lines += [f"  {name:<{width}}  {weight:.4f}" for name, weight in zip(names, weights, strict=True)]
        record = [] if self.record is None else [repr(self.record)]
        return "\n".join([*lines, *self.rule.choices(), *record, self._said_checkpoints()])

    def _said_checkpoints(self) -> str:
        """Return in a line of which checkpoints the fit saw predictions: their fingerprints, shortened."""
        if not self.fingerprints:
            return "checkpoints: unknown"
        known = {name: [shortened(one) for one in self.fingerprints.get(name, ())] for name in self.members}
        return "checkpoints: " + ", ".join(f"{name} {' + '.join(own) or 'unknown'}" for name, own in known.items())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the recipe, and beside it a safetensors file of the same stem if an array is large; return the path.

        Each file is put in its place at once, complete; the recipe holds the digest of the arrays, and their file's
        name. In the place of a recipe with other arrays, the new ones have a name of their own until the old ones are
        gone, so that at every moment the old or the new recipe can be read.

        Raises:
            InputError: a parameter or a fitted attribute is of a type that a recipe cannot hold; it is named. Or the
                file is called as its arrays are.
            OSError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix == ".safetensors":
            raise InputError(f"{path}: a recipe is JSON, and its arrays lie beside it under this suffix; call it .json")
        arrays: dict[str, NDArray[Any]] = {}
        content = self._content(arrays)
        if not arrays:
            _put(path, content, None)
            return path
        from safetensors.numpy import save

        data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        content["arrays"] = {"sha256": hashlib.sha256(data).hexdigest()}
        place, usual = _write_arrays(path, data), path.with_suffix(".safetensors")
        _put(path, content, place)
        if place != usual and publish(usual, [data]):  # which is free now
            _put(path, content, usual)
        return path

    def _content(self, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """Return what the file says; large arrays are put into `arrays`."""
        content: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "vidfuse": __version__,
            "members": list(self.members),
            "n_classes": self.n_classes,
            "classes": None if self.classes is None else list(self.classes),
            "kinds": dict(self.kinds),
            "views": self.views if self.views is None or isinstance(self.views, str) else dict(self.views),
            "order": _ORDERS[not self.order_checked],
            "fitted_on": {**self.fitted_on, "ids": _packed(self.fitted_on.get("ids"), arrays)},
            "fuser": _encode(self.rule, arrays, type(self.rule).__name__),
        }
        if self.fingerprints:
            content["fingerprints"] = {name: list(prints) for name, prints in self.fingerprints.items()}
        if self.record is not None:
            content["record"] = _encode(self.record.to_dict(), arrays, "record")
        return content

    def _prepare(
        self, data: LogitStack | Mapping[str, ArrayLike], checkpoints: Checkpoints = "same", *, at_once: bool = True
    ) -> LogitStack:
        """Return the stack that the rule takes: members by name, all checked, views reduced, at once or as read."""
        check_checkpoints(checkpoints)
        if isinstance(data, Mapping):
            needed = self.needed_members()
            unknown, missing = sorted(set(data) - set(self.members)), sorted(set(needed) - set(data))
            if unknown or (missing and self.rule.missing != "renormalise"):
                raise AlignmentError(
                    f"expected the members {list(needed)}; missing {missing}, not in the recipe {unknown}"
                )
            present = [name for name in self.members if name in data]
            data = LogitStack.from_arrays(
                {name: data[name] for name in present},
                kind={name: self.kinds.get(name, "logits") for name in present},
                classes=self.classes,
                views=self.views_of(present),
            )
        elif not isinstance(data, LogitStack):
            raise InputError(f"expected a LogitStack or a mapping of member names to arrays, got {type(data).__name__}")
        if checkpoints != "any":
            self.check_checkpoints(data.fingerprints)
        self.check_classes(data)
        views = self.views_of(data.members)
        if views is None or data.n_views is None:
            return data
        return reduce_views(data, views) if at_once else reduced_as_read(data, views)


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe that `Recipe.save` wrote.

    Args:
        path: The recipe's JSON file; arrays that lie beside it are found by its name.

    Raises:
        CacheFormatError: the file is no recipe, of a newer version, or one that was edited and cannot be: the field is
            named.
        CacheCorruptError: it, or the arrays beside it, are not those that were written.
        OSError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from vidfuse import LogLinearPool, LogitStack
        >>> stack = LogitStack.from_arrays({"swin": 2 * np.eye(2), "x3d": 3 * np.eye(2)}, labels=[0, 1])
        >>> pool = LogLinearPool(weights="uniform").fit(stack)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Recipe.from_fitted(pool, stack).save(f"{folder}/both.json")
        ...     load_recipe(path).members
        ('swin', 'x3d')
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise CacheFormatError(f"{path}: expected a recipe (JSON), and it cannot be parsed: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CacheFormatError(f'{path}: expected a recipe, a JSON object with "format": "{_FORMAT}"')
    version = content.get("version")
    if not isinstance(version, int) or not 1 <= version <= _VERSION:
        raise CacheFormatError(
            f"{path}: the recipe has version {version!r}, and vidfuse {__version__} reads up to {_VERSION}; upgrade"
        )
    try:
        _check_finite(content)
        recipe = _from_content(path, content)
        _check_fields(recipe)
        check_fitted(recipe.rule, recipe.members, recipe.n_classes, "fuser")
    except KeyError as error:
        raise CacheFormatError(f"{path}: the recipe is damaged: expected the field {error}, found none") from error
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise CacheFormatError(f"{path}: the recipe is damaged: {error}") from error
    _check_digest(path, content)
    return recipe


def _from_content(path: Path, content: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a file's content describes."""
    arrays = _load_arrays(path, content.get("arrays"))
    order, seen = content["order"], content["fitted_on"]
    check_choice("order", order, _ORDERS)
    return Recipe(
        rule=_decode(content["fuser"], arrays, "fuser"),
        members=_listed(content["members"], "members"),
        n_classes=content["n_classes"],
        classes=None if content["classes"] is None else _listed(content["classes"], "classes"),
        kinds=dict(content["kinds"]),
        views=content["views"],
        order_checked=order == _ORDERS[0],
        fitted_on={**seen, "ids": _unpacked(seen.get("ids"), arrays)},
        fingerprints={n: _listed(own, f"fingerprints: {n}") for n, own in content.get("fingerprints", {}).items()},
        record=TrackRecord.from_dict(_decode(content["record"], arrays, "record")) if "record" in content else None,
    )


def _listed(values: Any, what: str) -> tuple[str, ...]:
    """Return a list of texts as a tuple, or refuse what is none."""
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise InputError(f"{what}: expected a list of texts, got {values!r}")
    return tuple(values)


def _check_fields(recipe: Recipe) -> None:
    """Refuse what stands in a file beside the rule and cannot have been written there.

    Raises:
        InputError: a field is of another type or length, or out of range; it is named.
    """
    members = check_member_names(recipe.members)
    k, classes, seen = recipe.n_classes, recipe.classes, recipe.fitted_on
    if isinstance(k, bool) or not isinstance(k, int) or k < 2:
        raise InputError(f"n_classes: expected a whole number of at least 2, got {k!r}")
    if classes is not None and (len(classes) != k or len(set(classes)) < k):
        raise InputError(f"classes: expected {k} different names, got {len(classes)}: {first_few(classes)}")
    own = getattr(recipe.rule, "class_names_", None)
    if classes is not None and own is not None and tuple(own) != classes:
        raise InputError(f"classes: they are others than fuser.class_names_: {first_few(classes)}; {first_few(own)}")
    if set(recipe.kinds) not in (set(), set(members)):
        raise InputError(f"kinds: expected one for each of {list(members)}, got {list(recipe.kinds)}")
    for name, kind in recipe.kinds.items():
        check_kind(kind, f"kinds: {name}")
    given = per_member(recipe.views, members, "views", needed=() if isinstance(recipe.views, Mapping) else None)
    for rule in given.values():
        check_choice("views", rule, (None, *VIEW_RULES))
    for what in ("videos", "groups"):
        n = seen.get(what)
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise InputError(f"fitted_on: {what}: expected a number of at least 1, got {n!r}")
    videos = seen.get("videos")
    if seen.get("best_single") not in (None, *members):
        raise InputError(f"fitted_on: best_single: expected one of {list(members)}, got {seen['best_single']!r}")
    if seen["ids"] is not None and len(seen["ids"]) != videos and videos is not None:
        raise InputError(f"fitted_on: ids: expected those of {videos} videos, got {len(seen['ids'])}")
    record = recipe.record
    if record is not None and (record.n_classes != k or not set(record.members) <= set(members)):
        raise InputError(
            f"record: expected one of {k} classes and of {list(members)}, got {record.n_classes} and "
            f"{list(record.members)}"
        )
    if strange := set(recipe.fingerprints) - set(members):
        raise InputError(f"fingerprints: expected those of {list(members)}, got {first_few(sorted(strange))}")


def _check_finite(value: Any, where: str = "") -> None:
    """Refuse the words NaN and Infinity, which JSON has not, and say where they stand."""
    if isinstance(value, float) and not np.isfinite(value):
        raise InputError(f"{where}: expected a finite number, got {value}")
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _check_finite(item, f"{where}.{key}" if where else str(key))


def _check_digest(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a file that is not what was written, though it could be a recipe; the first releases wrote no digest."""
    if "digest" in content and content["digest"] != _digest_of(content):
        raise CacheCorruptError(
            f"{path}: the recipe was changed after it was written: expected digest {content['digest']}, got "
            f'{_digest_of(content)}; fit again, or delete the line "digest" if the change is meant'
        )


def _digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the fields but the digest, as JSON with sorted keys; layout does not count."""
    fields = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hashed_ids(ids: Sequence[str] | NDArray[np.str_] | None) -> NDArray[np.uint64] | None:
    """Return 48 bits of a hash of each id, sorted; None where there are none.

    Of a million videos to score, beside a million of the fit, 0.004 are expected to be mistaken for one of the fit.

    Example:
        >>> bool((hashed_ids(["b", "a"]) == hashed_ids(["a", "b"])).all()), hashed_ids(None)
        (True, None)
    """
    if ids is None:
        return None
    found = np.zeros((len(ids), 8), dtype=np.uint8)
    for start in range(0, len(ids), _AT_ONCE):
        names = map(str, ids[start : start + _AT_ONCE])
        six = b"".join([hashlib.blake2b(name.encode(), digest_size=6).digest() for name in names])
        found[start : start + _AT_ONCE, :6] = np.frombuffer(six, np.uint8).reshape(-1, 6)
    return np.sort(found.view("<u8")[:, 0].astype(np.uint64))


def _packed(ids: NDArray[np.uint64] | None, arrays: dict[str, NDArray[Any]]) -> Any:
    """Return hashed ids as JSON: 6 bytes each, in base64; those of many videos go to the file of arrays."""
    if ids is None:
        return None
    six = ids.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :6]
    if len(ids) > _MOST_IDS:
        arrays["fitted_on.ids"] = np.ascontiguousarray(six)
        return {"$tensor": "fitted_on.ids"}
    return {"$hashes": base64.b64encode(six.tobytes()).decode("ascii")}


def _unpacked(ids: Any, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint64] | None:
    """Return what `_packed` was given."""
    if ids is None:
        return None
    if "$tensor" in ids:
        six = arrays[ids["$tensor"]]
    else:
        six = np.frombuffer(base64.b64decode(ids["$hashes"], validate=True), np.uint8).reshape(-1, 6)
    return np.pad(six, ((0, 0), (0, 2))).view("<u8")[:, 0].astype(np.uint64)


def _digest(ids: NDArray[np.str_] | None) -> str | None:
    """Return the digest of a set of ids that recipes of the first releases hold."""
    if ids is None:
        return None
    return hashlib.sha256("\n".join(sorted(json.dumps(str(name)) for name in ids)).encode()).hexdigest()


def _best(stack: LogitStack) -> str | None:
    """Return the best single member of the fit; None where it cannot be told."""
    return None if stack.labels is None or stack.n_views is not None else best_single(stack)


def _encode(value: Any, arrays: dict[str, NDArray[Any]], where: str) -> Any:
    """Return JSON for a value; large arrays are put into `arrays` under the name of the place where they were found."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufU":
        if value.size > _LARGE and value.dtype.kind != "U":
            arrays[where] = value
            return {"$tensor": where}
        items = [_encode(item, arrays, where) for item in value.ravel().tolist()]
        return {"$array": items, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, list):
        return [_encode(item, arrays, f"{where}.{i}") for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, arrays, f"{where}.{i}") for i, item in enumerate(value)]}
    if isinstance(value, Mapping) and all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: _encode(item, arrays, f"{where}.{key}") for key, item in value.items()}
    name = type(value).__name__
    if name in RULES and hasattr(value, "get_params"):
        params = value.get_params(deep=False)
        fitted = {key: item for key, item in vars(value).items() if _FITTED.fullmatch(key) and key not in params}
        in_file = _IN_FILE.get(name, {})

        def encoded(attributes: Mapping[str, Any]) -> dict[str, Any]:
            named = {in_file.get(key, key): item for key, item in attributes.items()}
            return {key: _encode(item, arrays, f"{where}.{key}") for key, item in named.items()}

        return {"$fuser": name, "params": encoded(params), "fitted": encoded(fitted)}
    if callable(value) and hasattr(value, "__qualname__"):
        return {"$callable": f"{value.__module__}.{value.__qualname__}"}
    raise InputError(
        f"a recipe cannot hold {where}, of type {name}; expected numbers, strings, lists, mappings, arrays or rules"
    )


def _decode(value: Any, arrays: Mapping[str, NDArray[Any]], where: str) -> Any:
    """Return what `_encode` was given; a function comes back as its name, for no code is stored.

    Raises:
        InputError: an array is not what it says of itself; `where` it stands is named.
    """
    if isinstance(value, list):
        return [_decode(item, arrays, f"{where}.{i}") for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return float(value["$float"])
    if "$array" in value:
        return _decode_array(value, arrays, where)
    if "$tensor" in value:
        if value["$tensor"] not in arrays:
            raise InputError(f"{where}: expected an array {value['$tensor']!r} beside the recipe, found none")
        return arrays[value["$tensor"]]
    if "$tuple" in value:
        return tuple(_decode(item, arrays, f"{where}.{i}") for i, item in enumerate(value["$tuple"]))
    if "$callable" in value:
        return value["$callable"]
    if "$fuser" in value:
        return _decode_rule(value, arrays, where)
    return {key: _decode(item, arrays, f"{where}.{key}") for key, item in value.items()}


def _decode_array(value: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], where: str) -> NDArray[Any]:
    """Return an array of numbers or texts, whose dtype and shape stand beside its items."""
    items, dtype, shape = _decode(value["$array"], arrays, where), value.get("dtype"), value.get("shape")
    try:
        array = np.array(items, dtype=np.dtype(dtype)).reshape(shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: expected an array of dtype {dtype!r} and shape {shape}: {error}") from error
    if array.dtype.kind not in "biufU":
        raise InputError(f"{where}: expected an array of numbers or texts, got dtype {dtype!r}")
    return array


def _decode_rule(value: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], where: str) -> Any:
    """Build a listed rule from its parameters, and give it its fitted attributes."""
    name = value["$fuser"]
    if name not in RULES:
        raise InputError(f"{where}: it names the rule {name!r}, which this release of vidfuse does not know")
    in_code = {file: code for code, file in _IN_FILE.get(name, {}).items()}
    params, fitted = (
        {in_code.get(key, key): _decode(item, arrays, f"{where}.{part}.{key}") for key, item in value[part].items()}
        for part in ("params", "fitted")
    )
    rule = getattr(importlib.import_module(RULES[name]), name)(**params)
    for key, item in fitted.items():
        if not _FITTED.fullmatch(key):
            raise InputError(f"{where}: expected the name of a fitted attribute, which ends in '_', got {key!r}")
        setattr(rule, key, item)
    return rule


def _load_arrays(path: Path, entry: Mapping[str, str] | None) -> dict[str, NDArray[Any]]:
    """Read the arrays beside a recipe and check them against the digest that the recipe holds."""
    if entry is None:
        return {}
    if Path(entry["file"]).name != entry["file"]:
        raise CacheFormatError(f"{path}: the arrays must lie beside the recipe, got {entry['file']!r}")
    from safetensors import SafetensorError
    from safetensors.numpy import load

    file = path.with_name(entry["file"])
    if not file.is_file():
        raise CacheCorruptError(f"{file}: expected the arrays of {path.name} beside it, found no such file; copy both")
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry["sha256"]:
        raise CacheCorruptError(
            f"{file}: expected SHA-256 {entry['sha256']}, got {digest}; it is damaged, or belongs to another recipe"
        )
    try:
        return dict(load(data))
    except SafetensorError as error:
        raise CacheFormatError(f"{file}: expected safetensors: {error}") from error


def arrays_beside(path: Path) -> Path | None:
    """Return the file of arrays that a recipe's file names as its own; None where there is no such recipe or file.

    Example:
        >>> arrays_beside(Path("nothing.json")) is None
        True
    """
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["arrays"]["file"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    own = rf"{re.escape(path.stem)}(\.[0-9a-f]{{12}})?\.safetensors"  # a copy may name those of another recipe
    return path.with_name(name) if isinstance(name, str) and re.fullmatch(own, name) else None


def _put(path: Path, content: Mapping[str, Any], arrays: Path | None) -> None:
    """Write a recipe's JSON, and remove the arrays of the one in whose place it comes."""
    said = dict(content)
    if arrays is not None:
        said["arrays"] = {"file": arrays.name, **content["arrays"]}
    said["digest"] = _digest_of(said)
    text = json.dumps(said, indent=2, allow_nan=False, ensure_ascii=False)
    text = _LISTS.sub(lambda m: "[" + re.sub(r"\n\s*", " ", m[1]).strip() + "]", text)  # no string holds a newline
    before = arrays_beside(path)
    replace(path, f"{text}\n".encode())
    if before is not None and before != arrays:
        with suppress(OSError):  # nobody names it any more
            before.unlink()


def _write_arrays(path: Path, data: bytes) -> Path:
    """Write a recipe's arrays, never in the place of others, which a recipe may name; return where.

    ensemble.safetensors                 if that is free, or holds the same
    ensemble.1f0a77c2beef.safetensors    else: the beginning of their digest
    """
    digest = hashlib.sha256(data).hexdigest()
    make_folder(path.parent)
    for suffix in (".safetensors", f".{digest[:12]}.safetensors"):
        place = path.with_suffix(suffix)
        if publish(place, [data]) or (place.is_file() and hashlib.sha256(place.read_bytes()).hexdigest() == digest):
            return place
    return replace(place, data)  # it was damaged


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)
