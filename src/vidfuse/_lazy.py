"""A package's public names that load their modules on first use (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

__all__ = ["lazy_face"]


def lazy_face(
    package: str, home: Mapping[str, str], submodules: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`.

    Args:
        package: The package's name.
        home: Public name → the module that holds it, within the package or, with dots in its name, anywhere.
        submodules: Modules of the package that are public themselves.

    Example:
        >>> load, _ = lazy_face("vidfuse", {"InputError": "vidfuse.errors"})
        >>> load("InputError").__name__
        'InputError'
    """

    def load(name: str) -> Any:
        if name in submodules:
            return importlib.import_module(f"{package}.{name}")
        if name in home:
            module = home[name] if "." in home[name] else f"{package}.{home[name]}"
            value = getattr(importlib.import_module(module), name)
            setattr(sys.modules[package], name, value)  # the next time it is found at once
            return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load, lambda: list(sys.modules[package].__all__)
