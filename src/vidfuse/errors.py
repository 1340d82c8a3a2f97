"""The exceptions that vidfuse raises on purpose; everything else that escapes is a defect."""

from __future__ import annotations

__all__ = [
    "AlignmentError",
    "CacheConflictError",
    "CacheCorruptError",
    "CacheError",
    "CacheFormatError",
    "CacheIncompleteError",
    "InputError",
    "MissingExtraError",
    "VidfuseError",
    "VidfuseWarning",
]


class VidfuseError(Exception):
    """Base of every error that vidfuse raises on purpose."""


class InputError(VidfuseError, ValueError):
    """What was passed cannot be used; the message says what was expected, what came, where, and what to do."""


class AlignmentError(InputError):
    """Members that should describe the same videos, classes or labels do not."""


class CacheError(VidfuseError):
    """A logit cache cannot be read or written."""


class CacheFormatError(CacheError):
    """A file is not a part of a logit cache, or is of a version that this release does not know."""


class CacheCorruptError(CacheError):
    """A part's bytes are not the bytes that were written."""


class CacheConflictError(CacheError):
    """Two writers disagree about the same item, or a cache is resumed with another model or view plan."""


class CacheIncompleteError(CacheError):
    """A cache does not hold every video that it was opened for."""


class MissingExtraError(VidfuseError, ImportError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency; install it with: pip install 'vidfuse[{extra}]'")
        self.feature, self.extra = feature, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.feature, self.extra)


class VidfuseWarning(UserWarning):
    """Something is probably not as intended, and the work goes on."""
