"""Video networks, in the variants whose checkpoints are published.

Every network takes clips ``(N, 3, T, H, W)`` and returns logits ``(N, K)``. `create` builds one by name, `names` and
`info` list what there is, `cost` counts what one costs. Importing this package imports no torch: each name below loads
its module on first use.
"""

from __future__ import annotations

from typing import Any

_HOME = {
    "NetworkInfo": "catalogue",
    "VideoNetwork": "layers",
    "NetworkCost": "catalogue",
    "convert_state_dict": "catalogue",
    "cost": "catalogue",
    "create": "catalogue",
    "find_weights": "catalogue",
    "fold_batch_norm": "layers",
    "info": "catalogue",
    "load_checkpoint": "catalogue",
    "names": "catalogue",
    "read_checkpoint": "checkpoints",
    "settings": "catalogue",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from vidfuse.networks.catalogue import import_network_module

        value = getattr(import_network_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'vidfuse.networks' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
