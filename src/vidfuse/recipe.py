"""A fitted ensemble as a file: JSON that people can read, and one safetensors file where arrays are large.

Nothing in a recipe is code: no pickle, and only the rules that `RULES` lists are built from one. Every number
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
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from vidfuse import __version__
from vidfuse._files import replace
from vidfuse.errors import AlignmentError, CacheCorruptError, CacheFormatError, InputError
from vidfuse.fusion.blocks import FusedBlocks
from vidfuse.fusion.views import reduce_views, reduced_as_read
from vidfuse.selection.single import best_single
from vidfuse.stack.stack import LogitStack

__all__ = ["RULES", "Recipe", "hashed_ids", "load_recipe"]

RULES = MappingProxyType(
    {
        "BordaCount": "vidfuse.fusion.votes",
        "Calibrated": "vidfuse.fusion.calibration",
        "Cascade": "vidfuse.selection.cascade",
        "DynamicPool": "vidfuse.fusion.dynamic",
        "GreedyPool": "vidfuse.selection.greedy",
        "LinearPool": "vidfuse.fusion.linear",
        "LogLinearPool": "vidfuse.fusion.log_linear",
        "MajorityVote": "vidfuse.fusion.votes",
        "StackedPool": "vidfuse.fusion.stacking",
        "SubsetPool": "vidfuse.selection.subsets",
        "TemperatureScaling": "vidfuse.fusion.calibration",
        "VectorScaling": "vidfuse.fusion.calibration",
    }
)
"""Class name → module of each rule and calibrator that a recipe can hold: a new rule is a new file and a line here."""

_FORMAT = "vidfuse-recipe"
_VERSION = 1
_LARGE = 256  # an array with more elements goes to the safetensors file
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
        fitted_on: What the fit saw: `videos`, their number; `best_single`, the most accurate member on them (None
            without labels); `ids`, 48 bits of a hash of each id, sorted (None without ids). Recipes of the first
            releases have a digest of all ids instead, which only tells the very same videos.

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

    @classmethod
    def from_fitted(cls, rule: Any, stack: LogitStack, views: str | Mapping[str, str] | None = None) -> Recipe:
        """Take a fitted rule, and from the stack of its fit the names, kinds, classes and order of its members.

        Args:
            rule: A fitted rule.
            stack: The stack of its fit, (N, M, K) or (N, M, V, K).
            views: The reduction of views to apply to a stack that still has its views when the recipe is used.

        Raises:
            InputError: the rule is not fitted, or its members are not the stack's.
        """
        if not hasattr(rule, "members_"):
            raise InputError(f"expected a fitted rule, got {rule!r} before its fit; call fit(stack) first")
        members = tuple(str(name) for name in rule.members_)
        if sorted(members) != sorted(stack.members):
            raise AlignmentError(
                f"the rule was fitted on the members {list(members)}, the stack has {list(stack.members)}; "
                "pass the stack of the fit"
            )
        kinds = dict(zip(stack.members, stack.kinds, strict=True))
        return cls(
            rule=rule,
            members=members,
            n_classes=stack.n_classes,
            classes=stack.classes,
            kinds={name: kinds[name] for name in members},
            views=views,
            order_checked=stack.ids is not None,
            fitted_on={"videos": len(stack), "best_single": _best(stack), "ids": hashed_ids(stack.ids)},
        )

    def predict_log_proba(self, data: LogitStack | Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """Return the fused log-likelihoods (N, K) of a stack, or of a mapping of members to (N, K) or (N, V, K)."""
        result: NDArray[np.float64] = self.rule.predict_log_proba(self._prepare(data))
        return result

    def predict_proba(self, data: LogitStack | Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """Return the fused probabilities (N, K) of a stack, or of a mapping of members to (N, K) or (N, V, K)."""
        result: NDArray[np.float64] = self.rule.predict_proba(self._prepare(data))
        return result

    def predict(self, data: LogitStack | Mapping[str, ArrayLike]) -> NDArray[np.int64]:
        """Return the fused class index (N,) of each video; the lowest index wins a tie."""
        result: NDArray[np.int64] = self.rule.predict(self._prepare(data))
        return result

    def predict_blocks(
        self,
        data: LogitStack | Mapping[str, ArrayLike],
        *,
        proba: bool = False,
        rows_per_block: int | None = None,
    ) -> FusedBlocks:
        """Return the fused log-likelihoods (N, K) as blocks, which are computed when they are read.

        They are those of `predict_log_proba`, bit by bit, and memory holds a block of them.

        Args:
            data: as in `predict_log_proba`; its views are reduced block by block, too.
            proba: give probabilities, as `predict_proba` does.
            rows_per_block: videos in a block; by default as many as have about a million scores.

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
        blocks: FusedBlocks = self.rule.predict_blocks(
            self._prepare(data, at_once=False), proba=proba, rows_per_block=rows_per_block
        )
        return blocks

    def needed_members(self) -> tuple[str, ...]:
        """Return those of `members` that a prediction needs: all, unless the fitted rule gave some no say."""
        needed = self.rule.needed_members()
        return tuple(name for name in self.members if name in needed)

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
            "order": "checked by id" if self.order_checked else "unchecked",
            "fitted_on": {key: value for key, value in self.fitted_on.items() if key != "ids"},
            "weights": None if weights is None else np.asarray(weights).tolist(),
            "temperature": _optional_float(getattr(self.rule, "temperature_", None)),
            "choices": list(self.rule.choices()),
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
        return "\n".join([*lines, *self.rule.choices()])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the recipe, and beside it a safetensors file of the same stem if an array is large; return the path.

        Each file is put in its place at once, complete; the recipe holds the digest of the arrays.

        Raises:
            InputError: a parameter or a fitted attribute is of a type that a recipe cannot hold; it is named.
            OSError: the file cannot be written.
        """
        path = Path(path)
        arrays: dict[str, NDArray[Any]] = {}
        content: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "vidfuse": __version__,
            "members": list(self.members),
            "n_classes": self.n_classes,
            "classes": None if self.classes is None else list(self.classes),
            "kinds": dict(self.kinds),
            "views": self.views if self.views is None or isinstance(self.views, str) else dict(self.views),
            "order": "checked by id" if self.order_checked else "unchecked",
            "fitted_on": {**self.fitted_on, "ids": _packed(self.fitted_on.get("ids"), arrays)},
            "fuser": _encode(self.rule, arrays, type(self.rule).__name__),
        }
        if arrays:
            from safetensors.numpy import save

            data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
            tensors = path.with_suffix(".safetensors")
            replace(tensors, data)
            content["arrays"] = {"file": tensors.name, "sha256": hashlib.sha256(data).hexdigest()}
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
        text = _LISTS.sub(lambda m: "[" + re.sub(r"\n\s*", " ", m[1]).strip() + "]", text)  # no string holds a newline
        replace(path, f"{text}\n".encode())
        return path

    def _prepare(self, data: LogitStack | Mapping[str, ArrayLike], *, at_once: bool = True) -> LogitStack:
        """Return the stack that the rule takes: members by name, classes checked, views reduced, at once or as read."""
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
                views=self.views,
            )
        elif not isinstance(data, LogitStack):
            raise InputError(f"expected a LogitStack or a mapping of member names to arrays, got {type(data).__name__}")
        if data.n_classes != self.n_classes:
            raise AlignmentError(f"the recipe knows {self.n_classes} classes, the stack has {data.n_classes}")
        if self.classes is not None and data.classes is not None and data.classes != self.classes:
            row = next(i for i, (a, b) in enumerate(zip(self.classes, data.classes, strict=True)) if a != b)
            raise AlignmentError(
                f"class {row} is {self.classes[row]!r} in the recipe and {data.classes[row]!r} in the stack; "
                "put the stack's classes in the recipe's order"
            )
        if self.views is None or data.n_views is None:
            return data
        return reduce_views(data, self.views) if at_once else reduced_as_read(data, self.views)


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe that `Recipe.save` wrote.

    Raises:
        CacheFormatError: the file is no recipe, or of a newer version.
        CacheCorruptError: the arrays beside it are not those that were written.
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
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CacheFormatError(f"{path}: expected a recipe (JSON), and it cannot be parsed: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CacheFormatError(f'{path}: expected a recipe, a JSON object with "format": "{_FORMAT}"')
    version = content.get("version")
    if not isinstance(version, int) or not 1 <= version <= _VERSION:
        raise CacheFormatError(
            f"{path}: the recipe has version {version!r}, and vidfuse {__version__} reads up to {_VERSION}; upgrade"
        )
    try:
        arrays = _load_arrays(path, content.get("arrays"))
        rule = _decode(content["fuser"], arrays)
        return Recipe(
            rule=rule,
            members=tuple(content["members"]),
            n_classes=int(content["n_classes"]),
            classes=None if content["classes"] is None else tuple(content["classes"]),
            kinds=dict(content["kinds"]),
            views=content["views"],
            order_checked=content["order"] == "checked by id",
            fitted_on={**content["fitted_on"], "ids": _unpacked(content["fitted_on"].get("ids"), arrays)},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheFormatError(f"{path}: the recipe is damaged: {error!r}") from error


def hashed_ids(ids: Sequence[str] | NDArray[np.str_] | None) -> NDArray[np.uint64] | None:
    """Return 48 bits of a hash of each id, sorted; None where there are none.

    Of a million videos to score, beside a million of the fit, 0.004 are expected to be mistaken for one of the fit.

    Example:
        >>> bool((hashed_ids(["b", "a"]) == hashed_ids(["a", "b"])).all()), hashed_ids(None)
        (True, None)
    """
    if ids is None:
        return None
    digests = b"".join(hashlib.blake2b(str(name).encode(), digest_size=6).digest() + b"\0\0" for name in ids)
    return np.sort(np.frombuffer(digests, dtype="<u8").astype(np.uint64))


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


def _decode(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return what `_encode` was given; a function comes back as its name, for no code is stored."""
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return float(value["$float"])
    if "$array" in value:
        items = [_decode(item, arrays) for item in value["$array"]]
        return np.array(items, dtype=np.dtype(value["dtype"])).reshape(value["shape"])
    if "$tensor" in value:
        return arrays[value["$tensor"]]
    if "$tuple" in value:
        return tuple(_decode(item, arrays) for item in value["$tuple"])
    if "$callable" in value:
        return value["$callable"]
    if "$fuser" in value:
        return _decode_rule(value, arrays)
    return {key: _decode(item, arrays) for key, item in value.items()}


def _decode_rule(value: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Build a listed rule from its parameters, and give it its fitted attributes."""
    name = value["$fuser"]
    if name not in RULES:
        raise CacheFormatError(f"the recipe names the rule {name!r}, which this release of vidfuse does not know")
    in_code = {file: code for code, file in _IN_FILE.get(name, {}).items()}
    params, fitted = (
        {in_code.get(key, key): _decode(item, arrays) for key, item in value[part].items()}
        for part in ("params", "fitted")
    )
    rule = getattr(importlib.import_module(RULES[name]), name)(**params)
    for key, item in fitted.items():
        if not _FITTED.fullmatch(key):
            raise CacheFormatError(f"expected the name of a fitted attribute, which ends in '_', got {key!r}")
        setattr(rule, key, item)
    return rule


def _load_arrays(path: Path, entry: Mapping[str, str] | None) -> dict[str, NDArray[Any]]:
    """Read the arrays beside a recipe and check them against the digest that the recipe holds."""
    if entry is None:
        return {}
    if Path(entry["file"]).name != entry["file"]:
        raise CacheFormatError(f"{path}: the arrays must lie beside the recipe, got {entry['file']!r}")
    from safetensors.numpy import load

    file = path.with_name(entry["file"])
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry["sha256"]:
        raise CacheCorruptError(
            f"{file}: expected SHA-256 {entry['sha256']}, got {digest}; it is damaged, or belongs to another recipe"
        )
    return dict(load(data))


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)
