"""A fitted ensemble where it is used: with its networks as one module, asked no further than needed, timed, exported.

Names load on first use (PEP 562). `early_exit` and `load_export` need no torch; the others need `vidfuse[networks]`,
and exports to ONNX `vidfuse[export]`.
"""

from __future__ import annotations

from vidfuse._lazy import lazy_face

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

__getattr__, __dir__ = lazy_face(__name__, _HOME)
