"""What a fitted rule has to be, wherever it comes from: attributes of the right length and range, and a prediction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import first_few
from vidfuse.errors import InputError
from vidfuse.fusion.floors import is_number
from vidfuse.fusion.rule import Rule
from vidfuse.likelihood import log_sum_exp
from vidfuse.stack.stack import LogitStack

__all__ = ["check_fitted"]

# Axes of an attribute by its name, which means the same in every rule: M members, K classes, a number for itself, None
# for any. Attributes that are not listed are left to the prediction.
_SHAPES: Final[Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "agreement_": (3, "M"),
        "class_bias_": ("K",),
        "class_shares_": (2, None),
        "class_weights_": ("M", "K"),
        "coef_": ("M", "K"),
        "floor_": ("M",),
        "intercept_": ("K",),
        "n_missing_": ("M",),
        "scale_": ("M",),
        "weights_": ("M",),
    }
)
_OF_CALIBRATORS: Final[Mapping[str, tuple[Any, ...]]] = MappingProxyType({"bias_": ("K",), "scale_": ("K",)})
_FINITE: Final = ("class_bias_", "class_weights_", "coef_", "intercept_", "bias_", "strengths_", "gain_")
_SUM: Final = 1e-6  # how far weights may be from a sum of 1; they are written to the last bit


def check_fitted(rule: Any, members: Sequence[str], n_classes: int, where: str = "rule") -> None:
    """Refuse a fitted rule whose attributes cannot be those of a fit, such as one from a file that was edited.

    Args:
        rule: The fitted rule.
        members: The members' names.
        n_classes: K.
        where: What an error calls the rule; the attribute follows.

    Raises:
        InputError: Members or classes are others, an array has another length, weights are negative or do not sum up, a
            floor, a scale or a temperature is out of range, or the rule cannot predict.

    Example:
        >>> from vidfuse.fusion.log_linear import LogLinearPool
        >>> pool = LogLinearPool("uniform").fit(np.zeros((4, 2, 3)), [0, 1, 2, 0])
        >>> check_fitted(pool, pool.members_, 3)
        >>> pool.weights_ = np.array([0.9, 0.9])
        >>> check_fitted(pool, pool.members_, 3)
        Traceback (most recent call last):
        vidfuse.errors.InputError: rule.weights_: expected weights that sum to 1, got a sum of 1.8
    """
    own = getattr(rule, "members_", None)
    if not isinstance(own, list | tuple) or sorted(map(str, own)) != sorted(members):
        raise InputError(f"{where}.members_: expected the members {first_few(members, 20)}, got {own!r}")
    classes = getattr(rule, "class_names_", None)
    if classes is not None and (not isinstance(classes, list | tuple) or len(classes) != n_classes):
        raise InputError(f"{where}.class_names_: expected {n_classes} names, got {classes!r}")
    for path, one in _rules(rule, where):
        _check_attributes(one, path, list(members), n_classes)
        named = getattr(one, "class_names_", None)
        if named is not None and named != classes:
            raise InputError(f"{path}.class_names_: expected the same as {where}.class_names_, got {named!r}")
    _check_prediction(rule, n_classes, where)


def _rules(rule: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Run through a fitted rule and those within it, with where each stands; calibrators too."""
    yield where, rule
    for name, value in vars(rule).items():
        if not name.endswith("_"):
            continue
        for number, inner in enumerate(value if isinstance(value, list) else [value]):
            if hasattr(inner, "get_params"):
                yield from _rules(inner, f"{where}.{name}" + (f"[{number}]" if isinstance(value, list) else ""))


def _check_attributes(rule: Any, where: str, members: list[str], n_classes: int) -> None:
    """Check each attribute of one rule, or of a calibrator, which has no members."""
    attributes = {name: value for name, value in vars(rule).items() if name.endswith("_") and value is not None}
    if isinstance(rule, Rule):
        _check_names(attributes, where, members, n_classes)
        members = [str(name) for name in attributes["members_"]]
    sizes = {"M": len(members), "K": n_classes}
    for name, shape in (_SHAPES if isinstance(rule, Rule) else _OF_CALIBRATORS).items():
        if name in attributes:
            _check_shape(attributes[name], f"{where}.{name}", [sizes.get(axis, axis) for axis in shape])
    for name in set(_FINITE) & set(attributes):
        _check_all(attributes[name], f"{where}.{name}", "finite numbers", np.isfinite)
    if isinstance(rule, Rule):
        positive: Callable[[Any], Any] = lambda x: np.isfinite(x) & (x > 0)  # noqa: E731
        ranges = {
            "weights_": ("finite weights of at least 0", lambda x: np.isfinite(x) & (x >= 0)),
            "floor_": ("floors of at least 0 and below 1", lambda x: (x >= 0) & (x < 1)),
            "scale_": ("positive finite scales", positive),
        }
        for name in set(ranges) & set(attributes):
            _check_all(attributes[name], f"{where}.{name}", *ranges[name])
        _check_weights(rule, attributes, where)
    for name in {"temperature_", "weight_sum_"} & set(attributes):
        value = attributes[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise InputError(f"{where}.{name}: expected a positive finite number, got {value!r}")


def _check_names(attributes: Mapping[str, Any], where: str, members: list[str], n_classes: int) -> None:
    """Check members and classes, which every rule has; those of a rule within another may be fewer."""
    own = attributes.get("members_")
    names = [str(name) for name in own] if isinstance(own, list | tuple) else []
    if not names or len(set(names)) < len(names) or not set(names) <= set(members):
        raise InputError(f"{where}.members_: expected some of the members {first_few(members, 20)}, got {own!r}")
    listed = attributes.get("feature_names_in_", names)
    if not isinstance(listed, list | tuple) or sorted(map(str, listed)) != sorted(names):
        raise InputError(f"{where}.feature_names_in_: expected the members {first_few(names, 20)}, got {listed!r}")
    if attributes.get("n_features_in_", len(names)) != len(names):
        raise InputError(f"{where}.n_features_in_: expected {len(names)}, got {attributes['n_features_in_']!r}")
    if not np.array_equal(attributes.get("classes_", ()), np.arange(n_classes)):
        raise InputError(f"{where}.classes_: expected the numbers 0 to {n_classes - 1}")


def _check_shape(value: Any, where: str, shape: list[int | None]) -> None:
    array = np.asarray(value)
    said = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
    fits = array.ndim == len(shape) and all(n in (size, None) for n, size in zip(shape, array.shape, strict=True))
    if array.dtype.kind not in "iuf" or not fits:
        raise InputError(f"{where}: expected numbers of shape {said}, got {array.dtype} of shape {array.shape}")


def _check_all(value: Any, where: str, what: str, fine: Callable[[Any], Any]) -> None:
    array = np.asarray(value)
    bad = array[~fine(array)] if array.dtype.kind in "iuf" else array.ravel()
    if bad.size:
        raise InputError(f"{where}: expected {what}, got {bad[0]}")


def _check_weights(rule: Any, attributes: Mapping[str, Any], where: str) -> None:
    """Check that weights sum to 1, and that they are those that were given, where the rule says which were."""
    weights = attributes.get("weights_")
    if weights is None:
        return
    if abs(weights.sum() - 1) > _SUM:
        raise InputError(f"{where}.weights_: expected weights that sum to 1, got a sum of {weights.sum():.6g}")
    given = getattr(rule, "weights", None)
    if given is None or isinstance(given, str):
        return
    order = list(getattr(rule, "feature_names_in_", rule.members_))  # a list goes by the order of the fit's stack
    by_name = dict(given) if isinstance(given, Mapping) else dict(zip(order, np.ravel(given).tolist(), strict=False))
    if set(by_name) != set(rule.members_) or not all(map(is_number, by_name.values())):
        raise InputError(f"{where}.weights: expected a number for each of {first_few(order, 20)}, got {given!r}")
    shares = np.array([by_name[name] for name in rule.members_], dtype=float)
    total = attributes.get("weight_sum_", shares.sum())
    if abs(shares.sum() - total) > _SUM * abs(total):
        raise InputError(
            f"{where}.weight_sum_: the weights given sum to {shares.sum():.6g}, and the sum said is {total}"
        )
    if np.abs(shares / shares.sum() - weights).max() > _SUM:
        raise InputError(f"{where}.weights_: expected the weights given divided by their sum, got {weights.tolist()}")


def _check_prediction(rule: Any, n_classes: int, where: str) -> None:
    """Let the rule predict two videos: what no range tells, such as two arrays that do not fit, shows there."""
    scores: NDArray[np.float64] = np.zeros((2, n_classes))
    scores[1, -1] = 2.0
    try:
        if (views := rule.needed_views()) is not None:
            scores = np.repeat(scores[:, None], views, axis=1)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            stack = LogitStack.from_arrays(dict.fromkeys(rule.needed_members(), scores))
            found = rule.predict_log_proba(stack)
            repr(rule)  # it tells what was chosen
    except Exception as error:  # whatever an attribute that was changed brings about
        raise InputError(f"{where}: it cannot predict, or say what was chosen: {error}") from error
    if found.shape != (2, n_classes) or not np.allclose(log_sum_exp(found), 0.0, atol=1e-6):
        raise InputError(f"{where}: it predicts no probabilities: two videos get {np.exp(found).tolist()}")
