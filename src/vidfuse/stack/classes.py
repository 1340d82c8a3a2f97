"""Members' classes: in one order by name, or brought to the stack's classes by a mapping."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import Kind, check_classes, check_labels, did_you_mean, first_few, naming
from vidfuse.errors import AlignmentError, InputError, VidfuseWarning, option
from vidfuse.stack.source import fill_log_likelihoods

__all__ = [
    "ClassMap",
    "apply_class_maps",
    "common_classes",
    "folded",
    "labels_in_order",
    "mapped_scores",
    "name_order",
    "warn_of_unnamed",
]

ClassMap = Mapping[Any, Any]
"""{a member's class: the stack's class, or several}; classes by name, or by index where they have no names."""


def name_order(own: Sequence[str], wanted: Sequence[str], whose: str) -> NDArray[np.int64] | None:
    """Return the columns that bring classes into the wanted order, `own[columns] == wanted`; None where they are so.

    Args:
        own: A member's class names (K,).
        wanted: The names in the order of the stack (K,).
        whose: What an error calls the member's classes.

    Raises:
        AlignmentError: The names are not the same.

    Example:
        >>> name_order(["run", "swim", "walk"], ["walk", "run", "swim"], "member 'swin'").tolist()
        [2, 0, 1]
    """
    if tuple(own) == tuple(wanted):
        return None
    column = {name: k for k, name in enumerate(own)}
    absent = [name for name in wanted if name not in column]
    if absent or len(own) != len(wanted):
        strange = [name for name in own if name not in set(wanted)]
        if absent and sorted(map(folded, own)) == sorted(map(folded, wanted)):
            like = next(name for name in strange if folded(name) == folded(absent[0]))
            raise AlignmentError(
                f"{whose}: its classes differ only in spaces, case or Unicode form, such as {like!r} and "
                f"{absent[0]!r}; make the names equal"
            )
        raise AlignmentError(
            f"{whose}: its classes are others: it lacks {first_few(absent) or 'none'}, and has "
            f"{first_few(strange) or 'none'} besides; rename them, or say what belongs to what with "
            f"{option('class_map')}"
        )
    return np.array([column[name] for name in wanted], dtype=np.int64)


def folded(name: str) -> str:
    """Return a name as it is compared with others that look the same: without case, spaces around it, Unicode form.

    Example:
        >>> folded(" Run ") == folded("run")
        True
    """
    return unicodedata.normalize("NFC", name).strip().casefold()


def warn_of_unnamed(unnamed: Sequence[str]) -> None:
    """Warn of files or stacks without class names, which are put beside others that have some.

    Example:
        >>> warn_of_unnamed([])
    """
    if unnamed:
        warnings.warn(
            f"{first_few(unnamed)} {'has' if len(unnamed) == 1 else 'have'} no class names, and others have: that the "
            f"classes stand in their order cannot be told; name them with {option('classes')} if they do",
            VidfuseWarning,
            stacklevel=4,
        )


def common_classes(
    classes: Any, names: Sequence[str], n_classes: int
) -> tuple[tuple[str, ...] | None, dict[str, NDArray[np.int64]]]:
    """Return the class names that all members share, and the columns of each member that has them in another order.

    Args:
        classes: One sequence for all members, or {member: names or None}; the first that has names gives the order.
        names: The members.
        n_classes: K.

    Raises:
        AlignmentError: Two members' classes have other names.

    Example:
        >>> common_classes({"swin": ["a", "b"], "x3d": ["b", "a"]}, ["swin", "x3d"], 2)
        (('a', 'b'), {'x3d': array([1, 0])})
    """
    if classes is None or not isinstance(classes, Mapping):
        return check_classes(classes, n_classes), {}
    if classes and set(names).isdisjoint(classes):
        raise InputError(
            f"classes: expected a sequence of names in order, or {{member: names}} of {first_few(names)}, got a dict "
            f"of {first_few(classes)}"
        )
    known = {name: own for name in names if (own := check_classes(classes.get(name), n_classes)) is not None}
    shared = next(iter(known.values()), None)
    orders = {}
    for name, own in known.items():
        order = None if shared is None else name_order(own, shared, f"member {name!r}")
        if order is not None:
            orders[name] = order
    return shared, orders


def labels_in_order(labels: Any, orders: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> Any:
    """Return {member: labels} with the labels of members whose columns were reordered; others' and other forms as is.

    Example:
        >>> labels_in_order({"swin": [0, 1], "x3d": [2, 0]}, {"x3d": np.array([2, 0, 1])}, ["swin", "x3d"])
        {'swin': [0, 1], 'x3d': array([0, 1])}
    """
    if not orders or not isinstance(labels, Mapping) or not set(labels) <= set(names):
        return labels
    result = dict(labels)
    for name, columns in orders.items():
        if result.get(name) is not None:
            own = check_labels(result[name], n_classes=len(columns), some=True)
            result[name] = np.where(own < 0, own, np.argsort(columns)[own])
    return result


def apply_class_maps(
    named: dict[str, NDArray[np.floating[Any]]],
    kinds: dict[str, Kind],
    maps: Mapping[str, ClassMap | None],
    classes: Any,
) -> Any:
    """Bring the members that have a mapping to the classes of the others, in place; return the classes' names.

    Args:
        named: Each member's scores (N, [V,] K).
        kinds: What they are.
        maps: {member: mapping or None}.
        classes: The classes' names, one sequence or {member: names or None}.

    Returns:
        `classes`, without the names of the members that were mapped.

    Raises:
        InputError: A mapping does not fit, or all members have one and the classes have no names.
    """
    mapped = [name for name, mapping in maps.items() if mapping]
    own = dict(classes) if isinstance(classes, Mapping) else {}
    others = [name for name in named if name not in mapped]
    shared = next((own[name] for name in others if own.get(name) is not None), None) if own else classes
    if shared is None and not others:
        raise InputError(
            f"class_map: expected the names of the classes with {option('classes')}, or a member with them"
        )
    n_classes = named[others[0]].shape[-1] if shared is None else len(shared)
    for name in mapped:
        mapping = maps[name] or {}
        with naming(f"member {name!r}"):
            named[name] = mapped_scores(named[name], kinds[name], own.get(name), mapping, shared, n_classes)
        kinds[name] = "log-likelihoods"
    return {name: shared for name in named} if own else classes


def mapped_scores(
    scores: NDArray[np.floating[Any]],
    kind: Kind,
    own: Sequence[str] | None,
    mapping: ClassMap,
    names: Sequence[str] | None,
    n_classes: int,
) -> NDArray[np.float32]:
    """Bring a member's scores to the stack's classes, as log-likelihoods.

    With P the member's probabilities and u the number of the K classes that the mapping never names,

        p(k) = (1 − u / K) · Σ_j P(j) / |targets of j|  over the classes j that are mapped to k,    p(k) = 1 / K else.

    A class that is mapped to several shares its probability equally among them; several that are mapped to one add
    up. What the mapping leaves out of the member's classes is left out, and the rest is normalised; of a video whose
    whole probability is left out, the member says nothing: the classes get even shares. Of a class that the member does
    not know it says nothing either: it gets its even share.

    Args:
        scores: (N, [V,] K'), as they are stored.
        kind: What they are.
        own: The names of the member's classes (K'), or None.
        mapping: {own class: class, or several}.
        names: The names of the stack's classes (K), or None.
        n_classes: K.

    Raises:
        InputError: The mapping names a class that is not there, or none.

    Example:
        >>> coarse = np.log(np.array([[0.8, 0.2]]))
        >>> z = mapped_scores(coarse, "logits", ["sport", "music"], {"sport": ["run", "swim"], "music": "sing"},
        ...                   ["run", "sing", "swim"], 3)
        >>> np.exp(z).round(2).tolist()
        [[0.4000000059604645, 0.20000000298023224, 0.4000000059604645]]
    """
    pairs = sorted(
        (k, j, 1 / len(targets))
        for j, targets in _targets(mapping, own, scores.shape[-1], names, n_classes)
        for k in targets
    )
    covered, starts = np.unique([k for k, _, _ in pairs], return_index=True)
    columns = np.array([j for _, j, _ in pairs])
    shares = np.log([share for _, _, share in pairs])
    likelihoods = np.empty(scores.shape, dtype=np.float32)
    fill_log_likelihoods(scores, kind, likelihoods)
    grouped = np.logaddexp.reduceat(likelihoods[..., columns].astype(np.float64) + shares, starts, axis=-1)
    unknown = n_classes - len(covered)
    total = np.logaddexp.reduce(grouped, axis=-1, keepdims=True)
    grouped = np.where(total == -np.inf, -np.log(len(covered)), grouped - np.where(total == -np.inf, 0.0, total))
    grouped += np.log1p(-unknown / n_classes)
    out = np.full((*scores.shape[:-1], n_classes), -np.log(n_classes), dtype=np.float32)
    out[..., covered] = grouped
    return out


def _targets(
    mapping: ClassMap, own: Sequence[str] | None, own_count: int, names: Sequence[str] | None, n_classes: int
) -> list[tuple[int, list[int]]]:
    """Return (own class, the stack's classes) as indices."""
    found = []
    for source, given in mapping.items():
        several = given if isinstance(given, list | tuple) else [given]
        targets = sorted({_index(target, names, n_classes, "the stack's classes") for target in several})
        found.append((_index(source, own, own_count, "the member's classes"), targets))
    if not any(targets for _, targets in found):
        raise InputError("class_map: expected at least one of the member's classes, got none")
    return found


def _index(value: Any, names: Sequence[str] | None, count: int, whose: str) -> int:
    """Return the index of a class that is given by name, or by number where there are no names."""
    if names is not None and str(value) in names:
        return list(names).index(str(value))
    if names is None and str(value).isdecimal() and int(value) < count:
        return int(value)
    known = f"0 to {count - 1}" if names is None else first_few(names)
    raise InputError(f"class_map: {value!r} is none of {whose}, {known}{did_you_mean(value, names or ())}")
