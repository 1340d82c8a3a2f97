"""Which checkpoints made a member's scores, and the one comparison with those that a fit saw."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

from vidfuse._checks import check_choice
from vidfuse.errors import CacheConflictError, option

__all__ = [
    "Checkpoints",
    "as_fingerprints",
    "check_checkpoints",
    "joined_fingerprints",
    "refuse_others",
    "shortened",
    "to_json",
]

Checkpoints = Literal["same", "any"]
"""Whether scores have to come from a checkpoint that the fit saw ("same"), or nothing is compared ("any")."""

_SEVERAL: Final = "fingerprints"  # a cache that holds the scores of several models says so under this key


def check_checkpoints(value: Any) -> None:
    """Refuse what is none of the words of `Checkpoints`.

    Example:
        >>> check_checkpoints("any")
        >>> check_checkpoints("all")
        Traceback (most recent call last):
        vidfuse.errors.InputError: checkpoints: expected one of 'same', 'any', got 'all'
    """
    check_choice("checkpoints", value, get_args(Checkpoints))


def as_fingerprints(value: Any) -> tuple[str, ...]:
    """Return the fingerprints that a cache holds as texts; none where it says nothing.

    Example:
        >>> as_fingerprints("1f0a"), as_fingerprints({"sha256": "00ff"}), as_fingerprints(None)
        (('1f0a',), ('{"sha256": "00ff"}',), ())
        >>> as_fingerprints({"fingerprints": ["1f0a", "77c2"]})
        ('1f0a', '77c2')
    """
    if value is None:
        return ()
    if isinstance(value, dict) and set(value) == {_SEVERAL} and isinstance(value[_SEVERAL], list):
        return tuple(text for one in value[_SEVERAL] for text in as_fingerprints(one))
    return (value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False),)


def to_json(fingerprints: Sequence[str]) -> Any:
    """Return what a cache holds of these fingerprints, so that `as_fingerprints` gives them back.

    Example:
        >>> to_json(()), to_json(("1f0a",)), to_json(("1f0a", "77c2"))
        (None, '1f0a', {'fingerprints': ['1f0a', '77c2']})
    """
    if len(fingerprints) < 2:
        return fingerprints[0] if fingerprints else None
    return {_SEVERAL: list(fingerprints)}


def joined_fingerprints(member: str, parts: Mapping[str, Sequence[str]], *, folds: bool = False) -> tuple[str, ...]:
    """Return the fingerprints of a member whose scores are joined from several places.

    Args:
        member: The member's name.
        parts: The fingerprints in each place, by what an error calls it. Where one place has none, nothing is known of
            the whole.
        folds: Each place is a fold's, and of a model of its own.

    Raises:
        CacheConflictError: Two places hold scores of different checkpoints, and they are no folds.

    Example:
        >>> joined_fingerprints("x3d", {"fold 0": ["1f0a"], "fold 1": ["77c2"]}, folds=True)
        ('1f0a', '77c2')
        >>> joined_fingerprints("x3d", {"fold 0": ["1f0a"], "fold 1": []})
        ()
    """
    known = {place: set(own) for place, own in parts.items() if own}
    first, own = next(iter(known.items()), ("", set()))
    odd = next((place for place, other in known.items() if other != own), None)
    if odd is not None and not folds:
        raise CacheConflictError(
            f"member {member!r}: its scores come from different checkpoints, {_listed(own)} in {first} and "
            f"{_listed(known[odd])} in {odd}; if these are models of several folds, say {option('folds', True)}"
        )
    return tuple(sorted(set().union(*known.values()))) if len(known) == len(parts) else ()


def refuse_others(
    known: Mapping[str, Sequence[str]], found: Mapping[str, Sequence[str]], what: str, where: str = ""
) -> None:
    """Refuse scores or networks of other checkpoints than those that a fit saw.

    A member is compared where both sides know their checkpoints: each one found has to be one of the fit. So a recipe
    of out-of-fold predictions takes what any of its fold models, or all of them together, predict elsewhere.

    Args:
        known: {member: the fingerprints of the fit}.
        found: {member: those that are met}.
        what: What holds them, for the error.
        where: Where "any" is said, for the error.

    Raises:
        CacheConflictError: A member's are others; both are named, and members that seem swapped.

    Example:
        >>> refuse_others({"x3d": ["1f0a", "77c2"]}, {"x3d": ["77c2"], "tin": ["beef"]}, "the stack")
        >>> refuse_others({"x3d": ["1f0a"], "tin": ["beef"]}, {"x3d": ["beef"]}, "the stack")
        Traceback (most recent call last):
        vidfuse.errors.CacheConflictError: member 'x3d': the fit saw the checkpoint 1f0a, and the stack has beef, which
        is that of the member 'tin': are they swapped? ...
    """
    for member, own in found.items():
        expected = known.get(member, ())
        others = sorted(set(own) - set(expected))
        if not (expected and others):
            continue
        owner = next((name for name, theirs in known.items() if name != member and others[0] in theirs), None)
        swapped = "" if owner is None else f", which is that of the member {owner!r}: are they swapped?"
        raise CacheConflictError(
            f"member {member!r}: the fit saw the {_named(expected)}, and {what} has {_listed(others)}{swapped or ';'} "
            f"{'If not' if swapped else 'use what the fit saw, or fit again; if it is meant'}, say "
            f"{option('checkpoints', 'any')}{where}"
        )


def shortened(fingerprint: str) -> str:
    """Return a fingerprint for people: of a digest its first twelve characters.

    Example:
        >>> shortened("frames averaged " + 8 * "0123abcd")
        'frames averaged 0123abcd0123…'
    """
    return re.sub(r"[0-9a-f]{64}", lambda digest: f"{digest[0][:12]}…", fingerprint)


def _named(fingerprints: Sequence[str]) -> str:
    return f"checkpoint{'s' if len(fingerprints) > 1 else ''} {_listed(fingerprints)}"


def _listed(fingerprints: Any) -> str:
    shown = sorted(fingerprints)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
