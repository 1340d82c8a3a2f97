"""A recipe and its networks as one module: clips in, fused log-likelihoods out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from vidfuse.errors import AlignmentError, MissingExtraError
from vidfuse.fusion.rule import WeightedSum
from vidfuse.recipe import Recipe
from vidfuse.stack.checkpoints import Checkpoints, check_checkpoints
from vidfuse.stack.stack import LogitStack

try:
    import torch
    from torch import Tensor, nn

    from vidfuse.training.fingerprints import own_fingerprints
    from vidfuse.training.state import logits_of
except ImportError as error:
    raise MissingExtraError("an ensemble of networks", "networks") from error

__all__ = ["Ensemble"]


class Ensemble(nn.Module):
    """The members' networks, fused by a recipe, as a network: `clips (N, 3, T, H, W) -> log-likelihoods (N, K)`.

    Scores of clips with views (N, V, 3, T, H, W) are reduced as the recipe says (`Recipe.views`), by the mean of
    log-likelihoods if it says nothing, and then fused. Rules that are a weighted sum of the members (both pools, and
    selections of them) are computed in torch, on the networks' device, and pass gradients on; every other rule is
    computed in NumPy, and passes none.

    Args:
        recipe: The fitted ensemble.
        models: {member: network}, each `clips -> logits`, or an object or mapping that holds them as `logits`. Those
            of members that the fit gave no say need not be given, and do not run.
        checkpoints: "any" takes networks of other weights than those whose predictions the recipe was fitted on.

    Raises:
        AlignmentError: The models are not the recipe's members.
        CacheConflictError: A network has other weights than the one of the fit, where the recipe knows them.

    Example:
        >>> import vidfuse as vf
        >>> stack = vf.LogitStack.from_arrays({"a": 3 * np.eye(2), "b": 3 * np.eye(2)}, labels=[0, 1])
        >>> pool = vf.LogLinearPool(weights="accuracy").fit(stack)
        >>> models = {name: nn.Sequential(nn.Flatten(), nn.Linear(3, 2)) for name in "ab"}
        >>> ensemble = Ensemble.from_recipe(vf.Recipe.from_fitted(pool, stack), models)
        >>> ensemble(torch.zeros(5, 3, 1, 1, 1)).exp().sum(1)
        tensor([1., 1., 1., 1., 1.], grad_fn=...)
    """

    def __init__(self, recipe: Recipe, models: Mapping[str, nn.Module], *, checkpoints: Checkpoints = "same") -> None:
        super().__init__()
        needed = recipe.needed_members()
        missing, unknown = sorted(set(needed) - set(models)), sorted(set(models) - set(recipe.members))
        if missing or unknown:
            raise AlignmentError(
                f"expected a network for each of {list(needed)}; missing {missing}, not in the recipe {unknown}"
            )
        check_checkpoints(checkpoints)
        if checkpoints != "any":
            known = {name: recipe.fingerprints.get(name, ()) for name in needed}
            recipe.check_checkpoints({n: own_fingerprints(models[n], known[n]) for n in needed}, "the network given")
        self.recipe = recipe
        self.networks = nn.ModuleDict({name: models[name] for name in sorted(needed)})

    @classmethod
    def from_recipe(
        cls, recipe: Recipe, models: Mapping[str, nn.Module], *, checkpoints: Checkpoints = "same"
    ) -> Ensemble:
        """Make the ensemble of a recipe and its members' networks; as the class itself."""
        return cls(recipe, models, checkpoints=checkpoints)

    def forward(self, clips: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return fused log-likelihoods (N, K).

        Args:
            clips: (N, 3, T, H, W) or (N, V, 3, T, H, W) for all members, or {member: its own}.
        """
        scores = {name: _scores(model, _own(clips, name)) for name, model in self.networks.items()}
        recipe, views = self.recipe, self.recipe.views or "mean-log"
        form = recipe.rule.weighted_sum()
        logits = set(recipe.kinds.values()) <= {"logits", "log-likelihoods"}
        if form is not None and logits and (views == "mean-log" or all(z.ndim == 2 for z in scores.values())):
            return _fused(form, scores)
        stack = LogitStack.from_arrays(
            {name: z.detach().float().cpu().numpy() for name, z in scores.items()},
            kind={name: recipe.kinds.get(name, "logits") for name in scores},
            classes=recipe.classes,
            views=views,
        )
        first = next(iter(scores.values()))
        return torch.from_numpy(recipe.predict_log_proba(stack)).to(first.device, torch.float32)


def _own(clips: Tensor | Mapping[str, Tensor], name: str) -> Tensor:
    return clips if isinstance(clips, Tensor) else clips[name]


def _scores(model: nn.Module, clips: Tensor) -> Tensor:
    """Return a member's logits (N, K), or (N, V, K) of clips with views."""
    views = clips.ndim == 6
    logits = logits_of(model(clips.flatten(0, 1) if views else clips))
    return logits.unflatten(0, (-1, clips.shape[1])) if views else logits


def _fused(form: WeightedSum, scores: Mapping[str, Tensor]) -> Tensor:
    """Fuse scores (N, [V,] K) as the pool does: views averaged, floors mixed in, members summed up, normalised."""
    terms, weights = [], []
    scales = np.ones(len(form.members)) if form.scales is None else form.scales
    rows = zip(form.members, form.weights, form.floors.tolist(), scales.tolist(), strict=True)
    for name, weight, floor, scale in rows:
        if not weight.any():
            continue
        log_p = scores[name].double().log_softmax(-1)
        if log_p.ndim == 3:
            log_p = log_p.mean(1).log_softmax(-1)
        if scale != 1:
            log_p = (log_p * scale).log_softmax(-1)
        if floor > 0:
            uniform = torch.full_like(log_p, math.log(floor / log_p.shape[-1]))
            log_p = torch.logaddexp(log_p + math.log1p(-floor), uniform)
        terms.append(log_p)
        weights.append(weight)
    stacked = torch.stack(terms)
    share = torch.as_tensor(np.array(weights), device=stacked.device)[:, None]  # (M, 1, 1), or (M, 1, K) per class
    if form.kind == "linear":
        return torch.logsumexp(stacked + share.log(), 0).log_softmax(-1).float()
    total = (stacked * share).sum(0)
    if form.bias is not None:
        total = total + torch.as_tensor(form.bias, device=total.device)
    return total.log_softmax(-1).float()
