"""The arithmetic of one block: what some videos add to a log-linear pool's likelihood and to its derivatives.

The pool's mean negative log-likelihood is ``Σ_i ω_i (log Σ_k exp z_ik - z_iy)`` with ``z_ik = Σ_m β_m a_imk``. What a
member adds to all classes of a video cancels, so logits serve as they are. A block lies in memory as

    a[m, i, k]   member 0 │ video 0: a a … a │ video 1: a a … a │ …        M rows of B·K numbers, C-contiguous
                 member 1 │ video 0: a a … a │ video 1: a a … a │ …
    z = β·a               │ video 0: z z … z │ video 1: z z … z │ …        one such row
    truth                              ↑ 0·K + y_0      ↑ 1·K + y_1        where the true classes stand in a row
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEW", "Moments", "block_gradients", "block_moments"]

_PIECE: Final = 1 << 14  # numbers of a row that one matrix product sums: all members' pieces fit the CPU cache
FEW: Final = 16  # members up to which matrix-vector products are faster than one matrix product


class Moments(NamedTuple):
    """The mean negative log-likelihood at β, its gradient (M,), and its Hessian (M, M) where that was asked for."""

    value: float
    gradient: NDArray[np.float64]
    hessian: NDArray[np.float64] | None

    def plus(self, other: Moments) -> Moments:
        """Return the moments of the videos of both."""
        hessian = None if self.hessian is None or other.hessian is None else self.hessian + other.hessian
        return Moments(self.value + other.value, self.gradient + other.gradient, hessian)


@np.errstate(invalid="ignore", over="ignore")  # matrix products raise the flag for numbers beyond their end
def block_moments(
    scores: NDArray[Any],
    labels: NDArray[np.int64],
    omega: NDArray[np.float64],
    beta: NDArray[np.float64],
    *,
    hessian: bool = True,
) -> Moments:
    """Return one block's share of the negative log-likelihood of a log-linear pool, and its derivatives.

    With ``p_ik ∝ exp z_ik`` and ``μ_im = Σ_k p_ik a_imk``: value ``Σ_i ω_i (log Σ_k exp z_ik - z_iy)``, gradient
    ``Σ_i ω_i (μ_im - a_imy)``, Hessian ``Σ_i ω_i (Σ_k p_ik a_imk a_ink - μ_im μ_in)``: the moments of an exponential
    family whose statistics are the scores (Wainwright and Jordan 2008, "Graphical models, exponential families, and
    variational inference", proposition 3.1).

    The second moment is computed in one of two ways, whichever is faster for the number of members:

        M ≤ 16   Σ (p·a) aᵀ        one matrix-vector product per member
        M > 16   Σ (√p·a)(√p·a)ᵀ   matrix products of pieces that fit the CPU cache

    Args:
        scores: a, C-contiguous (M, B, K), float32 or float64; the arithmetic runs in its precision.
        labels: true classes y (B,).
        omega: the videos' weights (B,).
        beta: β (M,).
        hessian: whether to compute the Hessian.

    Example:
        >>> moments = block_moments(np.array([[[0.0, -1.0]]]), np.zeros(1, dtype=int), np.ones(1), np.zeros(1))
        >>> round(moments.value, 4), moments.gradient.tolist(), moments.hessian.tolist()
        (0.6931, [-0.5], [[0.25]])
    """
    members, rows, classes = scores.shape
    flat, ones = scores.reshape(members, rows * classes), np.ones(classes, dtype=scores.dtype)
    flat_z = beta.astype(scores.dtype) @ flat
    z, truth = flat_z.reshape(rows, classes), np.arange(0, rows * classes, classes) + labels
    peak = z.max(axis=1)
    height = (peak - flat_z[truth]).astype(np.float64)
    z -= peak[:, None]
    np.exp(z, out=z)
    total = z @ ones
    value = float(omega @ (np.log(total.astype(np.float64)) + height))
    weight = omega.astype(z.dtype)
    z *= (weight / total)[:, None]  # from here on ω_i p_ik
    if not hessian:
        flat_z[truth] -= weight  # before the sums, which then lose nothing to cancellation
        return Moments(value, _sums_over_classes(scores, z).sum(axis=0, dtype=np.float64), None)
    if members > FEW:
        mean = _sums_over_classes(scores, z).T.astype(np.float64)
        second = _square((scores * np.sqrt(z, out=z)).reshape(members, rows * classes))
    else:
        weighted = (scores * z).reshape(members * rows, classes)
        mean = (weighted @ ones).reshape(members, rows).astype(np.float64)
        second = _products(weighted.reshape(members, rows * classes), flat)
    share = np.divide(1.0, omega, out=np.zeros_like(omega), where=omega > 0)
    gradient = mean.sum(axis=1) - flat[:, truth] @ omega
    return Moments(value, gradient, second - (mean * share) @ mean.T)  # mean is ω_i μ_im


def _sums_over_classes(scores: NDArray[Any], z: NDArray[Any]) -> NDArray[Any]:
    """Return ``Σ_k z_ik a_imk`` (B, M): short sums, so that float32 keeps its digits."""
    return np.asarray(np.matmul(scores.transpose(1, 0, 2), z[:, :, None])[:, :, 0])


def _products(weighted: NDArray[Any], flat: NDArray[Any]) -> NDArray[np.float64]:
    """Return the symmetric ``weighted @ flat.T`` of few long rows."""
    members = len(flat)
    result = np.empty((members, members))
    for m in range(members):
        result[m, : m + 1] = result[: m + 1, m] = flat[: m + 1] @ weighted[m]
    return result


def _square(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return ``rows @ rows.T`` of many long rows, summed in float64 over pieces."""
    total = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], _PIECE):
        piece = rows[:, start : start + _PIECE]
        total += piece @ piece.T
    return total


@np.errstate(invalid="ignore", over="ignore")
def block_gradients(
    scores: NDArray[np.float64], labels: NDArray[np.int64], beta: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return each video's gradient (B, M), without its weight: `block_moments` sums them.

    Example:
        >>> block_gradients(np.array([[[0.0, -1.0]]]), np.zeros(1, dtype=int), np.zeros(1)).tolist()
        [[-0.5]]
    """
    z = np.tensordot(beta, scores, axes=1)
    z = np.exp(z - z.max(axis=1, keepdims=True))
    z /= z.sum(axis=1, keepdims=True)
    z[np.arange(len(z)), labels] -= 1.0
    return _sums_over_classes(scores, z)
