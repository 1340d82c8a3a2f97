"""An ensemble that runs a member's network only for the videos that still need it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError, MissingExtraError
from vidfuse.recipe import Recipe
from vidfuse.selection.cascade import Cascade
from vidfuse.serving.early import EarlyExit, Step
from vidfuse.stack.checkpoints import Checkpoints
from vidfuse.stack.stack import LogitStack

try:
    import torch
    from torch import Tensor, nn

    from vidfuse.serving.ensemble import clips_of, networks_of, scores_of
except ImportError as error:
    raise MissingExtraError("an ensemble of networks", "networks") from error

__all__ = ["LazyEnsemble", "Served"]


@dataclass(frozen=True)
class Served:
    """Labels, and what ran for them.

    Attributes:
        labels: The label of each video (N,).
        log_proba: Fused log-likelihoods (N, K), of a cascade; None where the label alone was decided.
        passes: {member: forward passes}, for all videos together.
    """

    labels: NDArray[np.int64]
    log_proba: NDArray[np.float64] | None
    passes: dict[str, int]


class LazyEnsemble:
    """The members' networks, asked in turn, each only for the videos that are not decided yet: the batch shrinks.

    By a `Cascade`, a video is answered by the first stage that is sure enough; by `early_exit`, as soon as its label
    can no longer change. Both give what the recipe gives on the networks' scores.

    Args:
        recipe: The fitted ensemble.
        models: {member: network}, each `clips -> logits`, or an object or mapping that holds them as `logits`; they are
            put into eval mode.
        exit: What `early_exit(recipe, ...)` found; None for a recipe whose rule is a `Cascade`.
        checkpoints: "any" takes networks of other weights than those whose predictions the recipe was fitted on.

    Raises:
        InputError: The rule is no cascade and there is no exit, or the exit is that of another rule.
        AlignmentError: The models are not the recipe's members.
        CacheConflictError: A network has other weights than the one of the fit, where the recipe knows them.

    Example:
        >>> import vidfuse as vf
        >>> stack = vf.LogitStack.from_arrays({name: 3 * np.eye(2) for name in "abc"}, labels=[0, 1])
        >>> recipe = vf.Recipe.from_fitted(vf.MajorityVote().fit(stack), stack)
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
        >>> lazy = LazyEnsemble(recipe, dict.fromkeys("abc", network), vf.early_exit(recipe, stack))
        >>> lazy(torch.zeros(5, 3, 1, 1, 1)).passes  # the first two say the same, since they are the same
        {'a': 5, 'b': 5, 'c': 0}
    """

    def __init__(
        self,
        recipe: Recipe,
        models: Mapping[str, nn.Module],
        exit: EarlyExit | None = None,
        *,
        checkpoints: Checkpoints = "same",
    ) -> None:
        self.models = networks_of(recipe, models, checkpoints)
        if exit is None and not isinstance(recipe.rule, Cascade):
            raise InputError(
                f"expected a recipe of a Cascade, got one of {type(recipe.rule).__name__}; pass "
                "exit=vf.early_exit(recipe, validation)"
            )
        if exit is not None and exit.rule is not recipe.rule:
            raise InputError("exit: expected what early_exit found for this recipe, got that of another rule")
        self.recipe, self.exit = recipe, exit
        for model in self.models.values():
            if isinstance(model, nn.Module):
                model.eval()

    def __call__(self, clips: Tensor | Mapping[str, Tensor]) -> Served:
        """Return the label of each video.

        Args:
            clips: (N, 3, T, H, W) or (N, V, 3, T, H, W) for all members, or {member: its own}. Views are reduced as the
                recipe says, by the mean of log-likelihoods if it says nothing; where views are steps of the exit, each
                runs for itself.

        Raises:
            InputError: There are no videos, or a network's answer is no prediction (NaN).
            AlignmentError: A member has no clips, or those of another number of videos.
        """
        run = _Run(self, clips)
        return run.cascade(self.recipe.rule) if self.exit is None else run.early(self.exit)


class _Run:
    """One call: the clips, and the scores so far of the videos that are left."""

    def __init__(self, ensemble: LazyEnsemble, clips: Tensor | Mapping[str, Tensor]) -> None:
        self.ensemble = ensemble
        self.clips = clips_of(clips, list(ensemble.models))
        self.n = len(next(iter(self.clips.values())))
        self.left = np.arange(self.n)
        self.scores: dict[str, list[NDArray[np.float32]]] = {}  # of the videos left; one array, or one for each view
        self.passes = dict.fromkeys(ensemble.models, 0)
        self.labels = np.full(self.n, -1)

    def ask(self, name: str, view: int | None = None) -> None:
        """Run a member's network for the videos that are left."""
        clips = self.clips[name]
        own = clips[torch.as_tensor(self.left, device=clips.device)]
        own = own if view is None else own[:, view]
        with torch.inference_mode():
            kind = self.ensemble.recipe.kinds.get(name, "logits")
            logits = scores_of(self.ensemble.models[name], own, kind)
        self.scores.setdefault(name, []).append(logits.float().cpu().numpy())
        self.passes[name] += len(own) * (own.shape[1] if own.ndim == 6 else 1)

    def check_views(self, asked: int) -> None:
        """Refuse clips that do not have the views of the fit."""
        for name, clips in self.clips.items():
            if clips.ndim != 6 or clips.shape[1] != asked:
                raise InputError(
                    f"{name}: expected clips of shape (N, {asked}, 3, T, H, W), {asked} views as in the fit, "
                    f"got {tuple(clips.shape)}"
                )

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Go on with these of the videos that are left."""
        self.left = self.left[rows]
        self.scores = {name: [one[rows] for one in arrays] for name, arrays in self.scores.items()}

    def stack(
        self, names: Iterable[str], views: str | Mapping[str, str] | None, *, last: bool = False, each: bool = False
    ) -> LogitStack:
        """Return the scores of some members for the videos that are left: of all views, or of the last one that ran.

        A single array stands for itself, unless `each` says that each is one of the views.
        """
        recipe = self.ensemble.recipe
        arrays = {
            name: self.scores[name][-1]
            if last or (len(self.scores[name]) == 1 and not each)
            else np.stack(self.scores[name], axis=1)
            for name in names
        }
        kinds = {name: recipe.kinds.get(name, "logits") for name in arrays}
        views = {name: views[name] for name in arrays if name in views} if isinstance(views, Mapping) else views
        return LogitStack.from_arrays(arrays, kind=kinds, classes=recipe.classes, views=views)

    def cascade(self, rule: Cascade) -> Served:
        """Answer each video by the first stage that is sure enough."""
        if (asked := rule.needed_views()) is not None:
            self.check_views(asked)
        out = np.empty((self.n, self.ensemble.recipe.n_classes))
        for stage in rule.stages_in_use():
            if not len(self.left):
                break
            members = rule.stages_[stage].needed_members()
            for name in members:
                if rule.views_ is not None:
                    for view in range(len(self.scores.get(name, [])), int(rule.views_[stage])):
                        self.ask(name, view)
                elif name not in self.scores:
                    self.ask(name)
            views = None if rule.views_ is not None else self.ensemble.recipe.views or "mean-log"
            log_p = rule.answer(stage, self.stack(members, views, each=rule.views_ is not None))
            done = rule.is_sure(stage, log_p)
            out[self.left[done]] = log_p[done]
            self.keep(~done)
        return Served(out.argmax(axis=1), out, self.passes)

    def early(self, exit: EarlyExit) -> Served:
        """Decide each video as soon as its label is certain, and the rest by the recipe."""
        if exit.n_views is not None:
            self.check_views(exit.n_views)
        views = exit.views or ("mean-log" if not exit.by_view else None)
        state = exit.start(self.n, self.ensemble.recipe.n_classes)
        for step in exit.order:
            self._ask(step)
            state.add(step, self.stack(step.members, None if exit.by_view else views, last=exit.by_view))
            found = state.decide()
            self.labels[found.rows] = found.labels
            self.keep(np.isin(self.left, found.rows, invert=True))
            if not len(self.left):
                break
        if len(self.left):
            stack = self.stack(self.ensemble.models, views)
            self.labels[self.left] = exit.finish(stack)
        return Served(self.labels, None, self.passes)

    def _ask(self, step: Step) -> None:
        for name in step.members:
            self.ask(name, step.view)
