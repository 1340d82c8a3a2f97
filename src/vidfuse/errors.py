"""The exceptions that vidfuse raises on purpose; everything else that escapes is a defect."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
    "option",
    "python_words",
    "worded",
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
    """Two writers disagree about an item, or a cache or recipe meets another model or view plan than it began with."""


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


_UNSAID: Any = object()


def option(name: str, value: Any = _UNSAID) -> str:
    """Name a parameter, and perhaps the value to give it, in the words of the interface that the user is in.

    Errors and warnings say what to do next. What is ``views="mean-log"`` in Python is ``--views mean-log`` on the
    command line. So a message says `option("views", "mean-log")`, and the interface has chosen the words.

    Args:
        name: The parameter's name in Python.
        value: What to give it; left out where only the user can know.

    Example:
        >>> option("annotations"), option("views", "mean-log"), option("labels", None)
        ('annotations=', 'views="mean-log"', 'labels=None')
    """
    return _words(name, *(() if value is _UNSAID else (value,)))


def python_words(name: str, *value: Any) -> str:
    """Name a parameter as Python does: what `option` says unless an interface has other words.

    Args:
        name: The parameter's name.
        *value: What to give it, or nothing.

    Example:
        >>> python_words("join", "inner"), python_words("partial", True)
        ('join="inner"', 'partial=True')
    """
    texts = [json.dumps(v, ensure_ascii=False) if isinstance(v, str | dict) else repr(v) for v in value]
    return f"{name}={''.join(texts)}"


_words: Callable[..., str] = python_words


@contextmanager
def worded(words: Callable[..., str]) -> Iterator[None]:
    """Let `option` speak in the words of another interface, in the whole process.

    Args:
        words: What `option(name)` and `option(name, value)` are passed on to.

    Example:
        >>> with worded(lambda name, *value: " ".join([f"--{name}", *value])):
        ...     option("views", "vote")
        '--views vote'
    """
    global _words
    before, _words = _words, words
    try:
        yield
    finally:
        _words = before
