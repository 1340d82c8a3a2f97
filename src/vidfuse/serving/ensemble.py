"""A recipe and its networks as one module: clips in, fused log-likelihoods out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vidfuse._checks import Kind, check_scores
from vidfuse.errors import AlignmentError, InputError, MissingExtraError
from vidfuse.recipe import Recipe
from vidfuse.stack.checkpoints import Checkpoints, check_checkpoints
from vidfuse.stack.stack import LogitStack

try:
    import torch
    from torch import Tensor, nn

    from vidfuse.networks.fused import FusedNetwork
    from vidfuse.networks.layers import VideoNetwork
    from vidfuse.serving.fusion import Fusion
    from vidfuse.serving.rules import NoGraphError
    from vidfuse.training.fingerprints import own_fingerprints
    from vidfuse.training.state import logits_of
except ImportError as error:
    raise MissingExtraError("an ensemble of networks", "networks") from error

__all__ = ["Ensemble", "clips_of", "networks_of", "scores_of"]


class Ensemble(nn.Module):
    """The members' networks, fused by a recipe, as a network: `clips (N, 3, T, H, W) -> log-likelihoods (N, K)`.

    Scores of clips with views (N, V, 3, T, H, W) are reduced as the recipe says (`Recipe.views`), by the mean of
    log-likelihoods if it says nothing, and then fused: in torch, on the networks' device, with gradients. A rule that
    is not vidfuse's own, and no weighted sum, is computed in NumPy, and passes none.

    Args:
        recipe: The fitted ensemble.
        models: {member: network}, each `clips -> logits`, or an object or mapping that holds them as `logits`. Those
            of members that the fit gave no say need not be given, and do not run. Where the recipe was fitted on a
            member's probabilities, a network of vidfuse's own has its logits turned into such; another one answers
            what the fit saw.
        checkpoints: "any" takes networks of other weights than those whose predictions the recipe was fitted on.

    Raises:
        AlignmentError: The models are not the recipe's members.
        CacheConflictError: A network has other weights than the one of the fit, where the recipe knows them.

    Example:
        >>> import numpy as np, vidfuse as vf
        >>> stack = vf.LogitStack.from_arrays({"a": 3 * np.eye(2), "b": 3 * np.eye(2)}, labels=[0, 1])
        >>> pool = vf.LogLinearPool(weights="accuracy").fit(stack)
        >>> models = {name: nn.Sequential(nn.Flatten(), nn.Linear(3, 2)) for name in "ab"}
        >>> ensemble = Ensemble.from_recipe(vf.Recipe.from_fitted(pool, stack), models)
        >>> ensemble(torch.zeros(5, 3, 1, 1, 1)).exp().sum(1)
        tensor([1., 1., 1., 1., 1.], grad_fn=...)
    """

    def __init__(self, recipe: Recipe, models: Mapping[str, nn.Module], *, checkpoints: Checkpoints = "same") -> None:
        super().__init__()
        networks = networks_of(recipe, models, checkpoints)
        self.recipe = recipe
        try:
            self.fusion: Fusion | None = Fusion(recipe, views="mean-log")
        except NoGraphError:
            self.fusion = None
        self._names, self._networks = tuple(networks), nn.ModuleList(networks.values())

    @classmethod
    def from_recipe(
        cls, recipe: Recipe, models: Mapping[str, nn.Module], *, checkpoints: Checkpoints = "same"
    ) -> Ensemble:
        """Make the ensemble of a recipe and its members' networks; as the class itself."""
        return cls(recipe, models, checkpoints=checkpoints)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """{member: network}: a dictionary, as a member may have a name that no module can, such as "x3d.m"."""
        return dict(zip(self._names, self._networks, strict=True))

    def forward(self, clips: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return fused log-likelihoods (N, K).

        Args:
            clips: (N, 3, T, H, W) or (N, V, 3, T, H, W) for all members, or {member: its own}.

        Raises:
            AlignmentError: A member has no clips, or those of another number of videos.
            InputError: A network answers probabilities where the fit saw logits, or the reverse.
        """
        scores = self.scores(clips)
        if self.fusion is not None:
            return self.fusion(scores).float()
        recipe = self.recipe
        stack = LogitStack.from_arrays(
            {name: z.detach().float().cpu().numpy() for name, z in scores.items()},
            kind={name: recipe.kinds.get(name, "logits") for name in scores},
            classes=recipe.classes,
            views=recipe.views_of(list(scores), "mean-log"),
        )
        first = next(iter(scores.values()))
        return torch.from_numpy(recipe.predict_log_proba(stack)).to(first.device, torch.float32)

    def scores(self, clips: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each network's scores (N, K), or (N, V, K) of clips with views; `clips` as for the module."""
        own = clips_of(clips, self._names)
        kinds = {name: self.recipe.kinds.get(name, "logits") for name in self._names}
        scores = {name: scores_of(model, own[name], kinds[name]) for name, model in self.networks.items()}
        if not torch.compiler.is_compiling():  # a graph cannot look
            for name, found in scores.items():
                rows = found.detach().float().cpu().numpy()
                rows = rows[np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))]
                check_scores(rows, kinds[name], member=name)
        return scores


def networks_of(
    recipe: Recipe, models: Mapping[str, nn.Module], checkpoints: Checkpoints = "same"
) -> dict[str, nn.Module]:
    """Return the networks of the members that a recipe needs, sorted by name, and refuse others than those of its fit.

    Raises:
        AlignmentError: The models are not the recipe's members.
        CacheConflictError: A network has other weights than the one of the fit, where the recipe knows them.
    """
    needed = recipe.needed_members()
    absent, unknown = sorted(set(needed) - set(models)), sorted(set(models) - set(recipe.members))
    if absent or unknown:
        raise AlignmentError(
            f"expected a network for each of {list(needed)}; missing {absent}, not in the recipe {unknown}"
        )
    check_checkpoints(checkpoints)
    if checkpoints != "any":
        known = {name: recipe.fingerprints.get(name, ()) for name in needed}
        recipe.check_checkpoints({n: own_fingerprints(models[n], known[n]) for n in needed}, "the network given")
    return {name: models[name] for name in sorted(needed)}


def clips_of(clips: Tensor | Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Return each member's clips, which may be the same for all.

    Raises:
        InputError: They are no tensors.
        AlignmentError: A member has none, or those of another number of videos than the others.

    Example:
        >>> sorted(clips_of(torch.zeros(2, 3, 1, 1, 1), ["a", "b"]))
        ['a', 'b']
        >>> clips_of({"a": torch.zeros(2, 3, 1, 1, 1)}, ["a", "b"])
        Traceback (most recent call last):
        vidfuse.errors.AlignmentError: expected clips for each of ['a', 'b']; missing: ['b']
    """
    if isinstance(clips, Tensor):
        return dict.fromkeys(names, clips)
    if not isinstance(clips, Mapping):
        raise InputError(f"clips: expected a tensor, or {{member: its own}}, got {type(clips).__name__}")
    if absent := [name for name in names if name not in clips]:
        raise AlignmentError(f"expected clips for each of {list(names)}; missing: {absent}")
    own = {name: clips[name] for name in names}
    n = [one.shape[0] for one in own.values()]
    if any(other != n[0] for other in n):
        raise AlignmentError(f"expected clips of the same videos for each member, got {dict(zip(own, n, strict=True))}")
    return own


def scores_of(model: nn.Module, clips: Tensor, kind: Kind = "logits") -> Tensor:
    """Return a member's scores (N, K), or (N, V, K) of clips with views.

    Networks of vidfuse answer logits, whatever the fit saw; of others nobody knows, and the answer is taken as it is.
    """
    views = clips.ndim == 6
    logits = logits_of(model(clips.flatten(0, 1) if views else clips))
    if kind in ("probabilities", "sum") and isinstance(model, VideoNetwork | FusedNetwork):
        logits = logits.softmax(1)
    return logits.unflatten(0, (-1, clips.shape[1])) if views else logits
