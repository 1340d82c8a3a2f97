"""A recipe as a module: the members' scores in, fused log-likelihoods out, in torch."""

from __future__ import annotations

from collections.abc import Mapping

from vidfuse.errors import AlignmentError, MissingExtraError
from vidfuse.recipe import Recipe

try:
    import torch
    from torch import Tensor, nn

    from vidfuse.serving.rules import listen, log_proba
except ImportError as error:
    raise MissingExtraError("a recipe in torch", "networks") from error

__all__ = ["Fusion"]


class Fusion(nn.Module):
    """A recipe as a module: `{member: scores (N, K) or (N, V, K)} -> log-likelihoods (N, K)`, in float64.

    It answers what `Recipe.predict_log_proba` does, in torch: on any device, with gradients, and as a graph that
    `torch.export` takes. Kinds of scores and views are what the recipe says. Where the rule says
    `missing="renormalise"`, a row that holds NaN in every class (of probabilities, 0) is a video that the member does
    not have, and whole members may be left out. Scores are not checked: where the recipe refuses a video, the answer is
    NaN.

    Args:
        recipe: The fitted ensemble.
        views: How views are reduced where the recipe does not say.

    Raises:
        InputError: The recipe's rule has no form in torch: it is none of vidfuse's own, and no weighted sum.

    Example:
        >>> import numpy as np, vidfuse as vf
        >>> stack = vf.LogitStack.from_arrays({"a": 3 * np.eye(2), "b": 3 * np.eye(2)}, labels=[0, 1])
        >>> recipe = vf.Recipe.from_fitted(vf.MajorityVote().fit(stack), stack)
        >>> Fusion(recipe)({"a": torch.tensor([[0.0, 2.0]]), "b": torch.tensor([[0.0, 1.0]])}).argmax(1)
        tensor([1])
    """

    def __init__(self, recipe: Recipe, views: str | None = None) -> None:
        super().__init__()
        self.recipe = recipe
        asked = recipe.rule.needed_views()  # a cascade over views reduces them itself
        self.views = recipe.views or views if asked is None else None
        uniform = torch.zeros(1, *[] if asked is None else [asked], recipe.n_classes)
        self({name: uniform for name in recipe.needed_members()})  # a rule without a form says so here

    def forward(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Return fused log-likelihoods (N, K).

        Args:
            scores: {member: scores (N, K) or (N, V, K)}, of `Recipe.needed_members` at least.

        Raises:
            AlignmentError: A needed member is missing, and the rule does not say `missing="renormalise"`; there are
                others than the recipe's; or scores are not of its K classes.
        """
        recipe, renormalise = self.recipe, self.recipe.rule.missing == "renormalise"
        needed = recipe.needed_members()
        unknown, absent = sorted(set(scores) - set(recipe.members)), sorted(set(needed) - set(scores))
        if unknown or (absent and not renormalise):
            raise AlignmentError(f"expected scores of {list(needed)}; missing {absent}, not in the recipe {unknown}")
        for name, given in scores.items():
            if given.shape[-1] != recipe.n_classes:
                raise AlignmentError(
                    f"{name}: expected scores of the recipe's {recipe.n_classes} classes, got {given.shape[-1]}"
                )
        members = {}
        for name in recipe.members:
            if name in scores:
                views = self.views if self.views is None or isinstance(self.views, str) else self.views.get(name)
                members[name] = listen(scores[name], recipe.kinds.get(name, "logits"), views, blanks=renormalise)
        return log_proba(recipe.rule, members)
