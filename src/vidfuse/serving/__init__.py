"""A fitted ensemble where it is used: with its networks as one module, asked no further than needed, timed, exported.

Names load on first use (PEP 562). `early_exit` and `load_export` need no torch; the others need `vidfuse[networks]`,
and exports to ONNX `vidfuse[export]`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Ensemble": "ensemble",
    "Export": "exports",
    "Exported": "exported",
    "Fusion": "fusion",
    "LazyEnsemble": "lazy",
    "early_exit": "early",
    "export": "exports",
    "export_triton": "triton",
    "load_export": "exported",
    "measure": "timing",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"vidfuse.serving.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'vidfuse.serving' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
