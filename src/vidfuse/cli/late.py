"""Modules that commands import when they need them.

scikit-learn imports `scipy.stats` and pandas at its start. They take three quarters of the time in which a command that
computes starts, and few commands need them.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from vidfuse.errors import MissingExtraError

__all__ = ["load_late", "modules"]


class _Late(ModuleType):
    """Stands for a module in `sys.modules` until one of its names is asked for; then the module itself is there."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def load_late(name: str) -> None:
    """Let an `import` of a module load it only when it is used; nothing happens where it is loaded or not installed.

    For a process of our own, not for a library's user: what importing the module changes, comes later.

    Example:
        >>> load_late("wave")
        >>> import wave
        >>> "Wave_read" in vars(wave), wave.Wave_read.__name__, "Wave_read" in vars(sys.modules["wave"])
        (False, 'Wave_read', True)
    """
    if name in sys.modules:
        return
    path, whole = None, ""
    for part in name.split("."):  # parents are found, not imported
        whole = f"{whole}.{part}" if whole else part
        spec = PathFinder.find_spec(whole, path)
        if spec is None:
            return
        path = spec.submodule_search_locations
    late = _Late(name)
    late.__spec__ = spec
    sys.modules[name] = late


def modules(*names: str) -> list[ModuleType]:
    """Import the modules that need torch and the decoder, or say which extra they come with."""
    try:
        return [importlib.import_module(name) for name in names]
    except MissingExtraError:
        raise
    except ImportError as error:
        raise MissingExtraError("training and extraction", "training") from error
