"""Distillation: a network learns from another prediction of its training videos, such as that of an ensemble."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vidfuse._checks import first_few
from vidfuse.errors import InputError, MissingExtraError
from vidfuse.stack.classes import name_order
from vidfuse.stack.order import check_order
from vidfuse.stack.stack import LogitStack

try:
    import torch
    from torch import Tensor
    from torch.nn.functional import kl_div
except ImportError as error:
    raise MissingExtraError("training", "training") from error

__all__ = ["Teacher", "distillation_loss"]


class Teacher:
    """A prediction for each training video, found by id.

    Args:
        stack: One member's scores with ids, (N, 1, K), such as a recipe's prediction of the training videos.
        classes: The classes' names of the training videos; where the stack has names too, its classes are brought into
            this order.

    Raises:
        InputError: The stack has several members, views or no ids.
        AlignmentError: Its classes are others.

    Example:
        >>> import numpy as np
        >>> fused = np.array([[0.9, 0.1], [0.5, 0.5]])
        >>> teacher = Teacher(LogitStack.from_arrays({"fused": fused}, ids=["a", "b"], kind="probabilities"))
        >>> teacher.log_likelihoods(["b", "a"]).exp().round(decimals=2).tolist()
        [[0.5, 0.5], [0.899999..., 0.100000...]]
    """

    def __init__(self, stack: LogitStack, classes: Sequence[str] | None = None) -> None:
        if len(stack.members) != 1 or stack.n_views is not None or stack.ids is None or stack.present is not None:
            raise InputError(
                f"teacher: expected one prediction (K numbers) for each video, and ids, got {stack!r}; fuse members "
                "by a recipe, and reduce views, first"
            )
        log_p = stack.log_likelihoods()[:, 0]
        if classes is not None and stack.classes is not None:
            order = name_order(stack.classes, tuple(classes), "the teacher")
            log_p = log_p if order is None else log_p[:, order]
        self._log_p = torch.from_numpy(log_p)
        self._rows = {name: row for row, name in enumerate(stack.ids.tolist())}

    @property
    def n_classes(self) -> int:
        """K."""
        return self._log_p.shape[1]

    @property
    def digest(self) -> str:
        """What tells this prediction from others: a run is resumed with the same."""
        order = sorted(self._rows)
        numbers = self._log_p[[self._rows[name] for name in order]].contiguous().numpy().tobytes()
        return hashlib.sha256("\n".join(order).encode() + numbers).hexdigest()

    def check_ids(self, ids: Sequence[Any]) -> None:
        """Refuse videos of which nothing is predicted.

        Raises:
            InputError: There are some; they are named.
        """
        lacking = [str(name) for name in ids if str(name) not in self._rows]
        if lacking:
            raise InputError(
                f"teacher: expected a prediction for each training video, got none for {len(lacking)} of {len(ids)}: "
                f"{first_few(lacking)}"
            )

    def check_labels(self, ids: Sequence[Any], labels: Sequence[int]) -> None:
        """Warn, as a stack does, where the videos' labels show the prediction's rows or classes in another order."""
        if max(labels) < self.n_classes:  # a teacher of other classes is refused by the loss
            check_order({"teacher": self.log_likelihoods(ids).numpy()}, np.asarray(labels), np.asarray(ids))

    def log_likelihoods(self, ids: Sequence[Any]) -> Tensor:
        """Return the prediction (N, K) for these videos, in this order.

        Raises:
            InputError: There is none for some.
        """
        self.check_ids(ids)
        return self._log_p[[self._rows[str(name)] for name in ids]]


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return how far a network is from its teacher: ``T² · KL(softmax(teacher/T) ‖ softmax(logits/T))``, in nats.

    T², as the gradient would shrink with a higher temperature otherwise.

    Args:
        logits: The network's (N, K).
        teacher: Log-likelihoods (N, K).
        temperature: T; above 1 it brings out how the teacher ranks the classes that it thinks wrong.

    Source:
        Hinton, Vinyals and Dean 2015, Distilling the knowledge in a neural network, section 2.

    Example:
        >>> z = torch.tensor([[2.0, 0.0]])
        >>> distillation_loss(z, z.log_softmax(1), 3.0).item(), distillation_loss(-z, z.log_softmax(1), 1.0).item()
        (0.0, 1.52...)
    """
    if logits.shape != teacher.shape:
        raise InputError(f"teacher: expected {logits.shape[1]} classes, those of the network, got {teacher.shape[1]}")
    own, other = ((z.float() / temperature).log_softmax(1) for z in (logits, teacher))
    other = other.clamp(min=torch.finfo(other.dtype).min)  # a probability of 0 costs nothing, and not 0 · ∞
    return temperature**2 * kl_div(own, other, reduction="batchmean", log_target=True)
