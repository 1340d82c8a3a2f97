"""The score of one prediction, with its intervals: what every table is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse.errors import InputError, option
from vidfuse.fusion.floors import Floor
from vidfuse.fusion.rule import Missing
from vidfuse.likelihood import DEFAULT_FLOOR, block_rows
from vidfuse.metrics import Interval, share_interval
from vidfuse.metrics.accuracy import class_shares
from vidfuse.metrics.outcomes import Outcomes
from vidfuse.metrics.probabilistic import binned
from vidfuse.stack.stack import LogitStack

__all__ = ["Score", "class_names", "floor_of", "log_proba_of", "missing_of", "require_labels", "score"]


@dataclass(frozen=True)
class Score:
    """How good one prediction is.

    Attributes:
        name: Who predicts.
        n: The number of videos that count.
        n_groups: The number of groups that they come in; None where each stands for itself.
        accuracy: Share of videos whose most likely class is the true one.
        accuracy_interval: Wilson's interval of the accuracy, with the design effect of groups.
        mean_class_accuracy: Accuracy of each class, averaged over the classes that are present.
        mean_class_interval: Its interval, from the variance within classes; refused where each has one video.
        top_5: Top-5 accuracy; NaN for fewer than six classes.
        nll: Mean negative log-likelihood of the true class, in nats.
        ece: Expected calibration error of the most likely class.
        hits: For each video of the stack whether it is right; False where a member lacks the video.
        present: For each video of the stack whether it counts.
    """

    name: str
    n: int
    n_groups: int | None
    accuracy: float
    accuracy_interval: Interval
    mean_class_accuracy: float
    mean_class_interval: Interval
    top_5: float
    nll: float
    ece: float
    hits: NDArray[np.bool_]
    present: NDArray[np.bool_]


def score(
    name: str,
    labels: NDArray[np.int64],
    predicted: NDArray[Any] | Outcomes,
    present: NDArray[np.bool_] | None = None,
    confidence: float = 0.95,
    groups: ArrayLike | None = None,
) -> Score:
    """Score log-likelihoods (N, K) or their outcomes against labels (N,), on the videos that are `present` (N,).

    Raises:
        InputError: no video is present, or a row is not normalised.

    Example:
        >>> result = score("a", np.array([0, 1]), np.log([[0.6, 0.4], [0.7, 0.3]]))
        >>> result.accuracy, round(result.nll, 3)
        (0.5, 0.857)
    """
    rows = np.arange(len(labels)) if present is None else np.flatnonzero(present)
    y = labels[rows]
    if len(y) == 0:
        raise InputError(f"{name}: expected at least one video, got none")
    some = predicted[rows] if present is not None else predicted
    found = some if isinstance(some, Outcomes) else Outcomes.of(y, some)
    own_groups = None if groups is None else np.asarray(groups)[rows]
    hits = found.rank < 1
    all_hits = np.zeros(len(labels), dtype=np.bool_)
    all_hits[rows] = hits
    accuracy_interval = share_interval(hits, groups=own_groups, confidence=confidence)
    return Score(
        name=name,
        n=len(y),
        n_groups=accuracy_interval.n_groups,
        accuracy=float(hits.mean()),
        accuracy_interval=accuracy_interval,
        mean_class_accuracy=float(np.nanmean(class_shares(y, hits, found.n_classes))),
        mean_class_interval=share_interval(hits, strata=y, groups=own_groups, confidence=confidence),
        top_5=float((found.rank < 5).mean()) if found.n_classes > 5 else float("nan"),
        nll=float(found.loss.mean()),
        ece=binned(found.confidence, hits).error,
        hits=all_hits,
        present=np.ones(len(labels), dtype=np.bool_) if present is None else np.asarray(present),
    )


def log_proba_of(stack: LogitStack, member: str) -> NDArray[np.float32]:
    """Return one member's normalised log-likelihoods (N, K)."""
    return stack.select([member]).log_likelihoods()[:, 0]


def missing_of(*stacks: LogitStack | None) -> Missing:
    """Return "renormalise" where a member lacks videos of one of the stacks, and "error" otherwise."""
    lacking = any(stack is not None and stack.present is not None for stack in stacks)
    return "renormalise" if lacking else "error"


def floor_of(*stacks: LogitStack | None) -> Floor:
    """Return the floor of rules that nobody chose: where members rule classes out, that of rounded probabilities.

    A class of -inf is no accident, and a floor of 0 lets it be a veto; but an average that only others are compared
    with has to have an answer. Where no member has one, the floor stays "auto".

    Example:
        >>> stack = LogitStack.from_arrays({"sure": np.array([[0.0, -np.inf], [-1.0, 0.0]])})
        >>> floor_of(stack), floor_of(stack[1:])
        (0.0001, 'auto')
    """
    each = dict.fromkeys(stack for stack in stacks if stack is not None)  # cross-fitted, two are the same one
    return DEFAULT_FLOOR if any(map(_rules_out, each)) else "auto"


def _rules_out(stack: LogitStack) -> bool:
    """Say whether a member given as logits or log-likelihoods rules some class of some video out."""
    step = block_rows(stack.n_classes * (stack.n_views or 1), 1 << 20)
    return any(
        bool(np.isneginf(stack.scores(name, slice(start, start + step))).any())
        for name, kind in zip(stack.members, stack.kinds, strict=True)
        if kind in ("logits", "log-likelihoods")
        for start in range(0, len(stack), step)
    )


def require_labels(stack: LogitStack, what: str, split: str = "the stack") -> NDArray[np.int64]:
    """Return the stack's labels.

    Raises:
        InputError: it has none, or no video.
    """
    if len(stack) == 0:
        raise InputError(f"{what}: expected at least one video in {split}, got none")
    if stack.labels is None:
        raise InputError(
            f"{what} needs labels, and {split} has none; give them with {option('labels')}, or load a labelled split"
        )
    return stack.labels


def class_names(stack: LogitStack) -> tuple[str, ...]:
    """Return the names of the classes, or their numbers."""
    return stack.classes if stack.classes is not None else tuple(map(str, range(stack.n_classes)))
