"""The checks that all scores share: labels (N,), scores (N, K), hits (N,) or (N, M)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse._checks import as_array, check_labels
from vidfuse.errors import InputError

__all__ = ["as_hits", "as_labels", "as_log_proba", "as_normalised", "as_scores", "as_values"]


def as_labels(labels: ArrayLike, n_classes: int | None = None) -> NDArray[np.int64]:
    """Return labels as int64 of shape (N,), N ≥ 1, each within 0 … n_classes − 1."""
    y = check_labels(labels, n_classes=n_classes)
    if len(y) == 0:
        raise InputError("labels: expected at least one video, got none")
    return y


def as_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]]]:
    """Return labels (N,) and finite-or-−inf floating scores (N, K) that belong together."""
    z = _finite(scores)
    y = as_labels(labels, z.shape[1])
    if len(y) != len(z):
        raise InputError(f"expected one label a row, got {len(y)} labels and log_proba of shape {z.shape}")
    return y, z


def as_log_proba(labels: ArrayLike, log_proba: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]]]:
    """Return labels (N,) and normalised log-likelihoods (N, K); raise where a row's probabilities do not sum to 1."""
    y, z = as_scores(labels, log_proba)
    _check_sums(z)
    return y, z


def as_normalised(log_proba: ArrayLike) -> NDArray[np.floating[Any]]:
    """Return normalised log-likelihoods (N, K); raise where a row's probabilities do not sum to 1."""
    z = _finite(log_proba)
    if len(z):
        _check_sums(z)
    return z


def _check_sums(z: NDArray[np.floating[Any]]) -> None:
    off = np.abs(np.exp(z).sum(axis=1, dtype=np.float64) - 1)
    row = int(off.argmax())
    if not off[row] <= 1e-3:
        total = float(np.exp(z[row].astype(np.float64)).sum())
        raise InputError(
            f"log_proba: expected log-likelihoods whose probabilities sum to 1, got a sum of {total:.6g} at row {row}; "
            "apply a log-softmax to logits, log() to probabilities"
        )


def _finite(scores: ArrayLike) -> NDArray[np.floating[Any]]:
    """Return floating scores (N, K) that are finite or −inf, at least one of each row finite."""
    z = as_array(scores)
    if z.ndim != 2 or z.shape[1] == 0:
        raise InputError(f"log_proba: expected shape (N, K), got {z.shape}; fuse members and views first")
    if z.dtype.kind not in "fiu":
        raise InputError(f"log_proba: expected a floating dtype, got {z.dtype}")
    if z.dtype.kind in "iu" or z.dtype.itemsize < 4:
        z = z.astype(np.float64)
    peak = z.max(axis=1)
    bad = ~np.isfinite(peak)  # NaN and +inf spread into the maximum; a row of -inf ranks nothing
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"log_proba: expected finite values (single -inf allowed), got a maximum of {peak[row]} at row {row}"
        )
    return z


def as_hits(hits: ArrayLike, *, ndim: int = 1) -> NDArray[np.bool_]:
    """Return hits (right = True) as booleans of shape (N,) or (N, M)."""
    h = as_array(hits)
    layout = "(N,)" if ndim == 1 else "(N, M)"
    if h.ndim != ndim or h.dtype.kind not in "biuf" or not np.isin(h, (0, 1)).all():
        raise InputError(f"hits: expected booleans of shape {layout}, got {h.dtype} of shape {h.shape}")
    if h.size == 0:
        raise InputError(f"hits: expected at least one video and one member, got shape {h.shape}")
    return h.astype(np.bool_, copy=False)


def as_values(values: ArrayLike, name: str = "values") -> NDArray[np.float64]:
    """Return one finite number a video, float64 of shape (N,)."""
    v = as_array(values)
    if v.ndim != 1 or v.dtype.kind not in "biuf" or len(v) == 0:
        raise InputError(
            f"{name}: expected one number a video, shape (N,) with N ≥ 1, got {v.dtype} of shape {v.shape}"
        )
    v = v.astype(np.float64)
    bad = ~np.isfinite(v)
    if bad.any():
        raise InputError(f"{name}: expected finite numbers, got {v[bad.argmax()]} at row {int(bad.argmax())}")
    return v
