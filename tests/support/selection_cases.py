"""Small ensembles, and what the searches should find in them: brute force in float64, without the library."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.special import log_softmax, logsumexp

import vidfuse as vf


def ensemble(seed=0, n=60, m=4, k=5, ties=False, signal=1.5):
    """Return logits (N, M, K) as float32 and labels; with ties the logits are small whole numbers."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    z = rng.normal(size=(n, m, k))
    z[np.arange(n), :, y] += signal * rng.uniform(0.3, 1.0, m)
    return (np.round(z) if ties else z).astype(np.float32), y


def stack_of(z, y, names=None, **options):
    return vf.LogitStack.from_arrays(z, labels=y, members=names or [f"m{i}" for i in range(z.shape[1])], **options)


def fused(log_p, weights, linear):
    """Pool (N, M, K) log-likelihoods in float64 with weights (M,).

    Weights that are multiples of a power of 2 give exact sums of float32 numbers, and exact ties: their sum is divided
    by afterwards.
    """
    w = np.asarray(weights, float)
    if linear:
        with np.errstate(divide="ignore"):
            return logsumexp(log_p.astype(float), axis=1, b=w[:, None]) - np.log(w.sum())
    used = w > 0
    return log_softmax(np.einsum("m,nmk->nk", w[used], log_p[:, used].astype(float)) / w.sum(), axis=1)


def score(log_proba, y, objective):
    if objective == "nll":
        return -log_proba[np.arange(len(y)), y].mean()
    hits = log_proba.argmax(1) == y
    if objective == "accuracy":
        return hits.mean()
    return np.mean([hits[y == c].mean() for c in np.unique(y)])


def all_subsets(m):
    return [s for size in range(1, m + 1) for s in itertools.combinations(range(m), size)]
