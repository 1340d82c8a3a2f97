"""A recipe's rule fitted anew on freshly labelled videos, and whether it is no worse there than the recipe."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.base import clone

from vidfuse._checks import check_share
from vidfuse._tables import Column, Estimate, Table, Tabular, number, percent, points
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.fusion.crossfit import folds_of, out_of_fold
from vidfuse.fusion.views import reduce_views
from vidfuse.metrics.bounds import risk_p_value
from vidfuse.metrics.objectives import labels_of
from vidfuse.metrics.probabilistic import nll
from vidfuse.metrics.significance import PairedDifference, share_difference
from vidfuse.recipe import Recipe
from vidfuse.stack.stack import LogitStack

__all__ = ["Refresh", "refresh"]


@dataclass(frozen=True)
class Refresh(Tabular):
    """A recipe beside its rule fitted anew, on videos that neither was fitted on.

    Attributes:
        recipe: The rule fitted on all of the fresh videos, with its record there.
        accuracy: The old recipe's accuracy on them, and that of copies of the rule fitted on the other folds.
        nll: Their mean negative log-likelihoods, likewise.
        gain: Accuracy of the new minus the old.
        margin: The loss of accuracy that is tolerated.
        p_value: That of "the new one loses more than the margin".
        level: 1 - the largest p-value with which the new one is called no worse.
        n_videos: The number of fresh videos.
    """

    recipe: Recipe = field(repr=False)
    accuracy: tuple[float, float]
    nll: tuple[float, float]
    gain: PairedDifference
    margin: float
    p_value: float
    level: float
    n_videos: int

    @property
    def no_worse(self) -> bool:
        """Whether the new recipe was shown to be no worse than the old one, but for the margin."""
        return self.p_value <= 1 - self.level

    def table(self) -> Table:
        """Return a row for the old recipe and one for the new."""
        columns = (
            Column("recipe", "name"),
            Column("top-1 %", "accuracy", percent, best="high"),
            Column("NLL", "nll", number, best="low"),
            Column("gain", write=points),
        )
        gain = Estimate(self.gain.difference, *self.gain.interval)
        rows = (("old", self.accuracy[0], self.nll[0], None), ("fitted anew", self.accuracy[1], self.nll[1], gain))
        return Table(columns, rows, f"On {self.n_videos:,} fresh videos", (self.headline(),))

    def headline(self) -> str:
        """Return in a sentence whether the new recipe may take the old one's place."""
        found = "no worse than the old one" if self.no_worse else "not shown to be no worse than the old one"
        of = f"{100 * self.margin:g} {'point' if self.margin == 0.01 else 'points'}"
        return f"The rule fitted anew is {found}, with a margin of {of} of accuracy (p = {self.p_value:.2g})."

    def to_dict(self) -> dict[str, Any]:
        """Return the result in plain types."""
        return {
            "no_worse": self.no_worse,
            "p_value": self.p_value,
            "margin": self.margin,
            "accuracy": {"old": self.accuracy[0], "new": self.accuracy[1]},
            "nll": {"old": self.nll[0], "new": self.nll[1]},
            "gain": self.gain.difference,
            "interval": list(self.gain.interval),
            "videos": self.n_videos,
        }


def refresh(
    recipe: Recipe,
    data: LogitStack,
    *,
    margin: float = 0.005,
    level: float = 0.95,
    folds: int = 5,
    seed: int | None = 0,
) -> Refresh:
    """Fit a recipe's rule anew on freshly labelled videos, and test whether that is no worse than the recipe.

    The recipe predicts the fresh videos, and so do copies of its rule, each fitted on the other folds of them. The test
    is of "right by the recipe and wrong by the copies, less the reverse, is more than the margin", by
    `vidfuse.metrics.risk_p_value`: given the copies it is exact for independent videos, and holds by betting where
    videos come in groups. Each video is held out from one copy and used to fit the others, so the level is kept nearly,
    not exactly: a rule that picks few of many similar members may pass somewhat more often than `1 - level`. The result
    for the copies holds for the rule fitted on all videos too, provided that more videos do no harm.

    Args:
        recipe: The recipe that is in use.
        data: Labelled videos that it was not fitted on, with groups where they come in groups.
        margin: The loss of accuracy that is tolerated; at 0, nothing equally good can be shown to be no worse.
        level: The confidence with which it is to be no worse.
        folds: The number of folds, or of groups where these are fewer.
        seed: Seed of the folds.

    Raises:
        InputError: Some of the videos are of the recipe's fit, labels are missing, the margin or level is no share, or
            the fit's videos came in groups, and these have none.

    Warns:
        VidfuseWarning: Ids look like clips of one source, and there are no groups.

    Example:
        >>> import vidfuse as vf
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=900)
        >>> z = {name: rng.normal(size=(900, 3)) + 3 * np.eye(3)[y] for name in "ab"}
        >>> stack = vf.LogitStack.from_arrays(z, labels=y, ids=[f"v{i}" for i in range(900)])
        >>> recipe = vf.Recipe.from_fitted(vf.LogLinearPool().fit(stack[:300]), stack[:300])
        >>> refresh(recipe, stack[300:], margin=0.01).no_worse
        True
    """
    check_share("level", level)
    recipe.check_groups(data)
    stack = data.select(recipe.members)
    y = labels_of(stack, where="the stack of fresh videos")
    if stack.n_views is not None and not (recipe.views is None and recipe.rule.takes_views):
        stack = reduce_views(stack, recipe.views_of(stack.members) or "mean-log")
    shared = recipe.shared_videos(stack)
    if shared:
        raise InputError(f"{shared:,} of the {len(stack):,} videos are of the recipe's fit; pass fresh ones only")
    if shared is None:
        warnings.warn(
            "whether these videos are of the recipe's fit cannot be told without ids; on those that are, it seems too "
            "good",
            VidfuseWarning,
            stacklevel=2,
        )
    splits = folds_of(stack, y, folds, seed)
    old = recipe.predict_log_proba(stack)
    new = out_of_fold(clone(recipe.rule), stack, y, splits)
    hits = [log_p.argmax(axis=1) == y for log_p in (old, new)]
    made = Recipe.from_fitted(clone(recipe.rule).fit(stack), stack, views=recipe.views)
    return Refresh(
        recipe=made.with_record(stack, cross_fit=True, folds=folds, seed=seed),
        accuracy=(float(hits[0].mean()), float(hits[1].mean())),
        nll=(nll(y, old), nll(y, new)),
        gain=share_difference(hits[1], hits[0], groups=stack.groups),
        margin=margin,
        p_value=risk_p_value(hits[0].astype(np.float64) - hits[1], margin, stack.groups, lowest=-1),
        level=level,
        n_videos=len(stack),
    )
