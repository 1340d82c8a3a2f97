"""Published predictions of video models as cases for `fusion_quality.py`: whole sources on one side of each split.

A folder holds one `.npz` for each set: scores (M, N, K), members (M,), kinds (M,), labels (N,), ids (N,). Part of its
name says by which pattern `quality_splits.py` finds in an id what the clip was cut from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from quality_splits import groups, split

SIZES = {"100": 100, "20 %": 0.2, "50 %": 0.5}
SMALLEST = 450  # videos: smaller sets cannot rank rules


@dataclass(frozen=True)
class Case:
    """One split of one set.

    Attributes:
        name: the set.
        seed: of the split.
        size: how much is fitted on, as in `SIZES`.
        fit: log-likelihoods (N, M, K) of the videos that are fitted on.
        labels: their classes.
        groups: what each of them was cut from; None where each stands for itself.
        test: log-likelihoods of the videos that are scored.
        truth: their classes.
    """

    name: str
    seed: int
    size: str | int
    fit: NDArray[np.float64]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_] | None
    test: NDArray[np.float64]
    truth: NDArray[np.int64]


def family(name: str) -> str:
    """Return what sets that share their models or their labels are counted as."""
    return name.split("_split")[0].removesuffix("_gcn").removesuffix("_conv")


def dump_cases(
    folder: Path, seeds: list[int], sizes: Mapping[str, float] = SIZES, begin: tuple[str, ...] = ("",)
) -> Iterator[Case]:
    """Yield every split of every set in the folder that is large enough and whose name begins so."""
    for path in sorted(path for path in folder.glob("*.npz") if path.name.startswith(begin)):
        stored = np.load(path)
        labels, ids = stored["labels"].astype(np.int64), stored["ids"].astype(str)
        if len(labels) < SMALLEST:
            continue
        log_p = _log_likelihoods(stored["scores"], stored["kinds"].tolist())
        sources = np.array(groups(path.stem, ids.tolist()))
        for size, amount in sizes.items():
            for seed in seeds:
                n = amount if isinstance(amount, int) else int(amount * len(labels))
                fit, test = split(path.stem, ids, labels, n, seed)
                yield Case(
                    path.stem, seed, size, log_p[fit], labels[fit], sources[fit], log_p[test], labels[test]
                )  # fmt: skip


def _log_likelihoods(scores: NDArray[np.floating], kinds: list[str]) -> NDArray[np.float64]:
    """Return (N, M, K); a probability of 0 becomes e^-100, so that no rule ends in a number that is none."""
    given = scores.astype(np.float64)
    logits = [np.log(np.maximum(own, 1e-44)) if kind == "probabilities" else own
              for own, kind in zip(given, kinds, strict=True)]  # fmt: skip
    return log_softmax(np.stack(logits, axis=1), axis=2)
