"""The arithmetic of one block: what some videos add to a log-linear pool's likelihood and to its derivatives.

The pool's negative log-likelihood is ``Σ_i ω_i (log Σ_k exp(Σ_m β_m a_imk) - Σ_m β_m a_imy)``: what a member adds to
all classes of a video cancels, so logits serve as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Memory", "Moments", "Workspace", "block_gradients", "block_moments", "rows_of"]

_PIECE: Final = 1 << 14  # numbers of a row that one product sums
_FEW: Final = 16  # members


class Moments(NamedTuple):
    """The mean negative log-likelihood at β, its gradient (M,) and Hessian (M, M), which a cheap pass leaves None."""

    value: float
    gradient: NDArray[np.float64]
    hessian: NDArray[np.float64] | None

    @classmethod
    def zero(cls, members: int, hessian: bool) -> Moments:
        """Return the moments of no video."""
        return cls(0.0, np.zeros(members), np.zeros((members, members)) if hessian else None)

    def plus(self, other: Moments) -> Moments:
        """Return the moments of both."""
        hessian = None if self.hessian is None or other.hessian is None else self.hessian + other.hessian
        return Moments(self.value + other.value, self.gradient + other.gradient, hessian)


class Memory:
    """Pieces of memory that tasks hand on to each other: fresh pages cost as much as the arithmetic on them.

    Example:
        >>> memory = Memory()
        >>> with memory.lend(10) as first:
        ...     pass
        >>> with memory.lend(10) as second:
        ...     first is second
        True
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"_free": []}

    @contextmanager
    def lend(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """Lend at least this many bytes."""
        try:
            piece = self._free.pop()
        except IndexError:
            piece = np.empty(0, dtype=np.uint8)
        if len(piece) < size:
            piece = np.empty(size, dtype=np.uint8)
        yield piece
        self._free.append(piece)


class Workspace:
    """Buffers for blocks of up to one size, in memory that may be given.

    Example:
        >>> Workspace((2, 5, 3), np.float32).weighted.shape
        (2, 5, 3)
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: type[np.float32] | type[np.float64],
        piece: NDArray[np.uint8] | None = None,
    ) -> None:
        members, rows, classes = shape
        size, needed = members * rows * classes, self.size(shape, dtype)
        memory: NDArray[Any] = (np.empty(needed, dtype=np.uint8) if piece is None else piece[:needed]).view(dtype)
        self.scores = memory[:size].reshape(shape)
        self.weighted = memory[size : 2 * size].reshape(shape)
        self.z = memory[2 * size :]
        self.ones = np.ones(classes, dtype=dtype)

    @staticmethod
    def size(shape: tuple[int, int, int], dtype: type[np.float32] | type[np.float64]) -> int:
        """Return how many bytes a workspace for blocks of this shape (M, B, K) takes."""
        members, rows, classes = shape
        return (2 * members + 1) * rows * classes * np.dtype(dtype).itemsize


def block_moments(
    scores: NDArray[Any],
    labels: NDArray[np.int64],
    omega: NDArray[np.float64],
    beta: NDArray[np.float64],
    *,
    hessian: bool = True,
    work: Workspace | None = None,
) -> Moments:
    """Return one block's share of the negative log-likelihood of a log-linear pool, and its derivatives.

    With ``z_ik = Σ_m β_m a_imk``, ``p_ik ∝ exp z_ik`` and ``μ_im = Σ_k p_ik a_imk``: value
    ``Σ_i ω_i (log Σ_k exp z_ik - z_iy)``, gradient ``Σ_i ω_i (μ_im - a_imy)``, Hessian
    ``Σ_i ω_i (Σ_k p_ik a_imk a_ink - μ_im μ_in)``.

    Args:
        scores: a, C-contiguous (M, B, K), float32 or float64; the arithmetic runs in its precision.
        labels: true classes y (B,).
        omega: the videos' weights (B,).
        beta: β (M,).
        hessian: whether to compute the Hessian.
        work: buffers of the block's precision, for at least as many rows.

    Example:
        >>> moments = block_moments(np.array([[[0.0, -1.0]]]), np.zeros(1, dtype=int), np.ones(1), np.zeros(1))
        >>> round(moments.value, 4), moments.gradient.tolist(), moments.hessian.tolist()
        (0.6931, [-0.5], [[0.25]])
    """
    members, rows, classes = scores.shape
    work = work or Workspace(scores.shape, scores.dtype.type)
    flat = scores.reshape(members, rows * classes)
    flat_z = np.dot(beta.astype(scores.dtype), flat, out=work.z[: rows * classes])
    z, truth = flat_z.reshape(rows, classes), np.arange(0, rows * classes, classes) + labels
    peak = z.max(axis=1)
    height = (peak - flat_z[truth]).astype(np.float64)
    z -= peak[:, None]
    np.exp(z, out=z)
    total = z @ work.ones
    value = float(omega @ (np.log(total.astype(np.float64)) + height))
    weight = omega.astype(z.dtype)
    z *= (weight / total)[:, None]
    if not hessian:
        flat_z[truth] -= weight  # before the sums, which then lose nothing to cancellation
        return Moments(value, _by_row(scores, z).sum(axis=0, dtype=np.float64), None)
    weighted = rows_of(work.weighted, rows)
    if members > _FEW:
        mean = _by_row(scores, z).T.astype(np.float64)
        np.multiply(scores, np.sqrt(z, out=z), out=weighted)
        second = _square(weighted.reshape(members, rows * classes))
    else:
        np.multiply(scores, z, out=weighted)
        mean = (weighted.reshape(members * rows, classes) @ work.ones).reshape(members, rows).astype(np.float64)
        second = _products(weighted.reshape(members, rows * classes), flat)
    share = np.divide(1.0, omega, out=np.zeros_like(omega), where=omega > 0)
    gradient = mean.sum(axis=1) - flat[:, truth] @ omega
    return Moments(value, gradient, second - (mean * share) @ mean.T)


def _by_row(scores: NDArray[Any], z: NDArray[Any]) -> NDArray[Any]:
    """Return ``Σ_k z_ik a_imk`` (B, M)."""
    return np.asarray(np.matmul(scores.transpose(1, 0, 2), z[:, :, None])[:, :, 0])


def _products(weighted: NDArray[Any], flat: NDArray[Any]) -> NDArray[np.float64]:
    """Return the symmetric ``weighted @ flat.T`` of few long rows, by matrix-vector products, which are faster."""
    members = len(flat)
    result = np.empty((members, members))
    for m in range(members):
        result[m, : m + 1] = result[: m + 1, m] = flat[: m + 1] @ weighted[m]
    return result


def _square(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return ``rows @ rows.T`` of many rows, in pieces that stay in the cache."""
    total = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], _PIECE):
        piece = rows[:, start : start + _PIECE]
        total += piece @ piece.T
    return total


def block_gradients(
    scores: NDArray[np.float64], labels: NDArray[np.int64], beta: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return each video's gradient (B, M), without its weight, as `block_moments` sums them.

    Example:
        >>> block_gradients(np.array([[[0.0, -1.0]]]), np.zeros(1, dtype=int), np.zeros(1)).tolist()
        [[-0.5]]
    """
    z = np.tensordot(beta, scores, axes=1)
    z = np.exp(z - z.max(axis=1, keepdims=True))
    z /= z.sum(axis=1, keepdims=True)
    z[np.arange(len(z)), labels] -= 1.0
    return np.asarray(np.einsum("mbk,bk->bm", scores, z))


def rows_of(buffer: NDArray[Any], count: int) -> NDArray[Any]:
    """Return a C-contiguous block (M, count, K) from a buffer (M, B, K) for more rows.

    Example:
        >>> rows_of(np.zeros((2, 5, 3)), 4).shape
        (2, 4, 3)
    """
    if count == buffer.shape[1]:
        return buffer
    members, _, classes = buffer.shape
    return buffer.reshape(-1)[: members * count * classes].reshape(members, count, classes)
