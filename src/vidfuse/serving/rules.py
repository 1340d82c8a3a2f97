"""Every rule in torch: what a fitted rule does, as a graph that passes gradients on and can be exported.

One function a rule, and a line in `FORMS` at the end. Each follows the rule's own `_fuse` step by step, in the same
precision (log-likelihoods and floors in float32, sums in float64), so that classes tie here where they tie there. What
decides the shape of a graph (which members have a say, whether weights differ by class) is read from the fitted rule
when the graph is made; nothing depends on the scores but through tensors.

Where a rule refuses a video (every class vetoed, no member there), the answer is NaN: a graph cannot raise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidfuse.errors import AlignmentError, InputError
from vidfuse.fusion._solver.deviations import LOWEST
from vidfuse.fusion.calibration import Calibrated, TemperatureScaling, VectorScaling
from vidfuse.fusion.dynamic import DynamicPool, static_sum
from vidfuse.fusion.linear import LinearPool
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule, WeightedSum, WeightedVote
from vidfuse.fusion.stacking import StackedPool
from vidfuse.fusion.votes import BordaCount, MajorityVote
from vidfuse.likelihood import DEFAULT_FLOOR
from vidfuse.selection.cascade import Cascade
from vidfuse.selection.greedy import GreedyPool
from vidfuse.selection.subsets import SubsetPool

__all__ = ["FORMS", "NoGraphError", "Said", "listen", "log_proba"]

_TIE: Final = 1e-12  # as in `vidfuse.likelihood`: sums that differ by no more are equal
_TINY: Final = float(np.finfo(np.float64).tiny)


class NoGraphError(InputError):
    """A rule that has no form in torch."""


class Said(NamedTuple):
    """What a member says of a batch of videos.

    Attributes:
        log_p: Normalised log-likelihoods (N, [V,] K) in float32, uniform where the member is absent.
        rounded: Whether they come from probabilities, whose zeros may be rounded ones.
        present: Which videos the member has (N,); None where it has all.
    """

    log_p: Tensor
    rounded: bool = False
    present: Tensor | None = None


Members = Mapping[str, Said]


def log_proba(rule: Any, members: Members) -> Tensor:
    """Return a fitted rule's log-likelihoods (N, K), in float64, of what its members say.

    Args:
        rule: Any rule that a recipe can hold, or another one that is a weighted sum (`Rule.weighted_sum`).
        members: {member: what it says}; those that the rule gives no say may be left out, and others where it has
            `missing="renormalise"`.

    Raises:
        NoGraphError: The rule is neither.
        InputError: The members have views, and the rule does not take them.

    Example:
        >>> pool = LogLinearPool(weights="uniform").fit(np.zeros((2, 2, 3)))
        >>> members = {name: listen(torch.tensor([[2.0, 1.0, 0.0]]), "logits") for name in pool.members_}
        >>> log_proba(pool, members).exp().numpy().round(3).tolist()
        [[0.665, 0.245, 0.09]]
    """
    if any(said.log_p.ndim == 3 for said in members.values()) and not rule.takes_views:
        raise InputError(
            f"{type(rule).__name__} takes scores (N, K) of each member, got views (N, V, K) and a recipe that does not "
            "say how to reduce them; fit it with views="
        )
    form = FORMS.get(type(rule))
    if form is not None:
        return form(rule, {name: members[name] for name in rule.members_ if name in members})
    whole = all(said.present is None for said in members.values())
    total = rule.weighted_sum() if isinstance(rule, Rule) and whole else None
    if total is None:
        raise NoGraphError(
            f"{type(rule).__name__} has no form in torch; give it one in vidfuse.serving.rules, or a weighted_sum()"
        )
    return _weighted_sum(total, members)


def listen(scores: Tensor, kind: str, views: str | None = None, *, blanks: bool = False) -> Said:
    """Return what a member's scores say: normalised, and with their views reduced.

    Args:
        scores: (N, K) or (N, V, K).
        kind: What they are: "logits", "log-likelihoods", "probabilities" or "sum".
        views: How views are reduced, as in `vidfuse.reduce_views`; None keeps them.
        blanks: Whether rows that hold nothing (NaN, or probabilities of 0, in every class) stand for videos that the
            member does not have.

    Example:
        >>> listen(torch.tensor([[0.5, 0.0, 1.5]]), "sum").log_p.exp().tolist()
        [[0.25, 0.0, 0.75]]
    """
    rounded = kind in ("probabilities", "sum")
    scores = scores if scores.dtype == torch.float64 else scores.float()
    present = None
    if blanks:
        blank = scores.isnan() | (scores == 0) if rounded else scores.isnan()
        blank = blank.flatten(1).all(1)
        present = ~blank
        scores = scores.masked_fill(blank.view(-1, *[1] * (scores.ndim - 1)), 1.0)  # equal scores are uniform
    if rounded:
        log_p = (scores.log().double() - scores.sum(-1, keepdim=True, dtype=torch.float64).log()).float()
    else:
        log_p = _log_softmax(scores).float()
    if log_p.ndim == 2 or views is None:
        return Said(log_p, rounded, present)
    return Said(_reduced(_floored(log_p, DEFAULT_FLOOR if rounded else 0.0), views), False, present)


# Pools: blocks of log-likelihoods (N, M, [V,] K), as in the rules -----------------------------------------------------


def _linear(rule: LinearPool, members: Members) -> Tensor:
    return _renormalised(rule.weighted_sum(), members)


def _log_linear(rule: LogLinearPool, members: Members) -> Tensor:
    """Fuse videos that have all members by weights per class, if there are any; others by the shared weights."""
    form, shared, needed = rule.weighted_sum(), rule.shared_sum(), rule.needed_members()
    if form.weights.shape[1] == 1 or not set(needed) <= set(members):
        return _renormalised(shared, members)
    fused, present = _weighted_sum(form, members), _presence(needed, members)
    return (
        fused if present is None else torch.where(present.all(1, keepdim=True), fused, _renormalised(shared, members))
    )


def _renormalised(form: WeightedSum, members: Members) -> Tensor:
    """Fuse by weights (M, 1); members that a video has share the weight of those that it lacks."""
    names, weights = _with_a_say(form, members)
    shares = _shares(weights, names, members) * float(form.weights.sum())
    return (_linear_pool if form.kind == "linear" else _log_linear_pool)(_block(form, names, members), shares)


def _weighted_sum(form: WeightedSum, members: Members) -> Tensor:
    """Fuse videos that every member with a say has, by weights (M, 1) or (M, K)."""
    names = [name for name, weight in zip(form.members, form.weights, strict=True) if weight.any()]
    rows = [form.members.index(name) for name in names]
    log_p = _block(form, names, members)
    weights = _constant(form.weights[rows], log_p)
    if form.kind == "linear":
        return _linear_pool(log_p, weights)
    if weights.shape[1] == 1 and form.bias is None:
        return _log_linear_pool(log_p, weights)
    total = (weights * log_p.double().clamp(min=LOWEST)).sum(1)
    return _log_softmax(total if form.bias is None else total + _constant(form.bias, total))


def _stacked(rule: StackedPool, members: Members) -> Tensor:
    scales = getattr(rule, "scale_", None)  # recipes of the first releases have none
    form = WeightedSum("log-linear", rule.members_, rule.coef_, rule.floor_, scales, rule.intercept_)
    return _weighted_sum(form, members)


def _cascade(rule: Cascade, members: Members) -> Tensor:
    """Answer each video by the first stage that is sure enough; a graph runs all of them and chooses."""
    stages = rule.stages_in_use()
    said = [log_proba(rule.stages_[stage], _seen(rule, stage, members)) for stage in stages]
    answer = said[-1]
    for stage, log_p in reversed(list(zip(stages, said[:-1], strict=False))):
        two = log_p.topk(2).values.exp()
        sureness = two[:, 0] if rule.by == "probability" else two[:, 0] - two[:, 1]
        answer = torch.where((sureness >= float(rule.thresholds_[stage]))[:, None], log_p, answer)
    return answer


def _seen(rule: Cascade, stage: int, members: Members) -> Members:
    """Return what a stage sees: its members, each by the views that it has so far."""
    own = _only(rule.order_[: stage + 1], members)
    if rule.views_ is None:
        return own
    views = int(rule.views_[stage])
    if any(one.log_p.ndim != 3 for one in own.values()):
        raise InputError(f"this cascade takes {rule.needed_views()} views of each member, (N, V, K); got (N, K)")
    return {name: Said(_reduced(_heard(one)[:, :views], rule.views)) for name, one in own.items()}


def _subset(rule: SubsetPool, members: Members) -> Tensor:
    return log_proba(rule.rule_, _only(rule.selected_, members))


def _greedy(rule: GreedyPool, members: Members) -> Tensor:
    return log_proba(rule.pool_, _only(rule.pool_.members_, members))


# Votes ----------------------------------------------------------------------------------------------------------------


def _vote(rule: MajorityVote | BordaCount, members: Members, ballots: Callable[[Tensor], Tensor]) -> Tensor:
    """Let members vote; where there are views, fuse the members to one label a view, and let views vote."""
    form = rule.weighted_vote()
    names, weights = _with_a_say(form, members)
    log_p, present = _block(form, names, members), _presence(names, members)
    if log_p.ndim == 4:
        views = _log_linear_pool(log_p, _shares(weights, names, members))
        return _counted(_one_hot(views).sum(1), _mean_log(views))
    here = _constant(weights / form.one_vote, log_p)[:, None]  # (M, 1) or (N, M, 1)
    here = here if present is None else here * present.double()[..., None]
    return _counted((here * ballots(log_p)).sum(1), _mean_log(log_p, present))


def _mean_log(log_p: Tensor, present: Tensor | None = None) -> Tensor:
    if present is None:
        return _joined(log_p.double().mean(1))
    share = present.double() / present.sum(1, keepdim=True)
    return _log_linear_pool(log_p, share[..., None])


def _one_hot(log_p: Tensor) -> Tensor:
    """Return one vote (..., K) for the most probable class, the lowest of equal ones."""
    classes = torch.arange(log_p.shape[-1], device=log_p.device)
    return (classes == log_p.argmax(-1, keepdim=True)).double()


def _ranks(log_p: Tensor) -> Tensor:
    """Return each class's points (..., K): how many are less probable, tied classes sharing theirs.

    Sorted, equal classes lie side by side and make a run; each gets the mean of its run's places:

        sorted   -3.2  -1.1  -1.1  -0.4
        run         0     1     1     2
        points      0   1.5   1.5     3
    """
    ranked, order = log_p.sort(dim=-1)
    places = torch.arange(log_p.shape[-1], dtype=torch.float64, device=log_p.device).expand(order.shape)
    first = torch.zeros_like(order[..., :1])
    run = torch.cat([first, (ranked[..., 1:] != ranked[..., :-1]).to(order.dtype)], -1).cumsum(-1)
    nothing = torch.zeros_like(log_p, dtype=torch.float64)
    length = nothing.scatter_add(-1, run, torch.ones_like(nothing)).clamp(min=1.0)
    mean = (nothing.scatter_add(-1, run, places) / length).gather(-1, run)
    return nothing.scatter(-1, order, mean)


def _counted(votes: Tensor, log_q: Tensor) -> Tensor:
    """Turn votes (N, K) into log-likelihoods as `vidfuse.likelihood.votes_to_log_proba` does."""
    ranked, order = votes.sort(dim=1)
    gaps = ranked[:, 1:] - ranked[:, :-1]
    near = gaps <= 1e-9 * ranked[:, -1:].clamp(min=_TINY)
    smallest = torch.where(near, math.inf, gaps).amin(1, keepdim=True).clamp(max=1.0)
    steps = torch.where(near, 0.0, gaps).cumsum(1)  # one value for each run of equal votes
    ranked = torch.cat([ranked[:, :1], ranked[:, :1] + steps], 1)
    count = torch.zeros_like(votes).scatter(1, order, ranked)
    return _log_softmax((count + 0.5 * smallest * log_q.exp()).log())


# Calibration, and weights per video -----------------------------------------------------------------------------------


def _calibrated(rule: Calibrated, members: Members) -> Tensor:
    if rule.where == "after":
        return _transformed(rule.calibrators_[0], log_proba(rule.rule_, members))
    calibrators = dict(zip(rule.members_, rule.calibrators_, strict=True))
    return log_proba(rule.rule_, {name: _calibrated_member(calibrators[name], said) for name, said in members.items()})


def _calibrated_member(calibrator: Any, said: Said) -> Said:
    log_p = _transformed(calibrator, _heard(said)).float()
    if said.present is not None:
        log_p = torch.where(said.present[:, None], log_p, -math.log(log_p.shape[1]))
    return Said(log_p, False, said.present)


def _transformed(calibrator: Any, log_p: Tensor) -> Tensor:
    """Calibrate log-likelihoods (N, K), in float64."""
    log_p = log_p.double()
    if type(calibrator) is TemperatureScaling:
        return _log_softmax(log_p / calibrator.temperature_)
    if type(calibrator) is VectorScaling:
        bounded = _log_softmax(log_p).clamp(min=LOWEST)
        return _log_softmax(bounded * _constant(calibrator.scale_, log_p) + _constant(calibrator.bias_, log_p))
    raise NoGraphError(f"{type(calibrator).__name__} has no form in torch; give it one in vidfuse.serving.rules")


def _dynamic(rule: DynamicPool, members: Members) -> Tensor:
    """Pool with weights per video: `DynamicPool` says what the features are, its module how they make weights."""
    fused = log_proba(rule.pool_, _only(rule.pool_.members_, members))
    if rule.fallback_:
        return fused
    static = static_sum(rule.pool_)
    log_p = _block(static, static.members, members)  # (N, M, K)
    features = []
    if rule.features != "competence":
        features += _confidence(log_p)
    if rule.features != "confidence":
        likeness = (0.5 * fused).exp().float() @ _constant(rule.reference_root_, log_p).T
        nearest = likeness.topk(min(rule.neighbours, likeness.shape[1])).indices
        features.append(_constant(rule.reference_log_true_, fused)[nearest].mean(1))
    x = torch.stack(features, 2)
    x = x - x.mean(1, keepdim=True)
    lift = (x @ _constant(rule.strengths_, x)).clamp(-20.0, 20.0).exp()  # (N, M)
    beta = _constant(static.weights, x)  # (M, 1) or (M, K)
    mean = beta.mean(1).clamp(min=0.0)
    lifted = lift @ mean
    lift = lift * torch.where(lifted > 0, mean.sum() / lifted, 0.0)[:, None]
    weights = beta + (mean * (lift - 1))[..., None]  # (N, M, 1) or (N, M, K)
    total = torch.where(weights != 0, weights * log_p, 0.0).sum(1)  # no weight, no veto
    return _log_softmax(total if static.bias is None else total + _constant(static.bias, x))


def _confidence(log_p: Tensor) -> list[Tensor]:
    """Return each member's confidence and the others' agreement with it, both (N, M)."""
    _, members, classes = log_p.shape
    p = log_p.double().exp()
    negative = torch.where(p > 0, p * log_p, 0.0).sum(2)
    others = ((p.sum(1, keepdim=True) - p) * _one_hot(p)).sum(2)
    return [1.0 + negative / math.log(classes), others / max(members - 1, 1)]


# What the rules share -------------------------------------------------------------------------------------------------


def _only(names: Iterable[str], members: Members) -> Members:
    return {name: members[name] for name in names if name in members}


def _with_a_say(form: WeightedSum | WeightedVote, members: Members) -> tuple[list[str], NDArray[np.float64]]:
    """Return the members of positive weight, of those that are there, and their weights (M,)."""
    weights = dict(zip(form.members, form.weights.ravel().tolist(), strict=True))
    names = [name for name in members if weights[name] > 0]
    if not names:
        raise AlignmentError(f"no member with a positive weight is left among {list(members)}")
    return names, np.array([weights[name] for name in names])


def _presence(names: Iterable[str], members: Members) -> Tensor | None:
    """Return which videos the members have (N, M); None where all have all."""
    told = [members[name] for name in names]
    if all(said.present is None for said in told):
        return None
    everywhere = [torch.ones_like(said.log_p.flatten(1)[:, 0], dtype=torch.bool) for said in told]
    pairs = zip(told, everywhere, strict=True)
    return torch.stack([all_ if said.present is None else said.present for said, all_ in pairs], 1)


def _shares(weights: NDArray[np.float64], names: Sequence[str], members: Members) -> Tensor:
    """Return weights that sum to 1 over the members of each video, shaped to multiply their block."""
    first, present = members[names[0]].log_p, _presence(names, members)
    here = _constant(weights, first)[None]
    here = here if present is None else here * present.double()
    shares = here / here.sum(1, keepdim=True)
    return shares[..., None] if first.ndim == 2 else shares[..., None, None]


def _block(form: WeightedSum | WeightedVote, names: Sequence[str], members: Members) -> Tensor:
    """Return the members' log-likelihoods (N, M, [V,] K), scaled and floored as the sum says."""
    block = []
    for name in names:
        row, log_p = form.members.index(name), members[name].log_p
        scales = form.scales if isinstance(form, WeightedSum) else None
        scale = 1.0 if scales is None else float(scales[row])
        block.append(_floored(log_p if scale == 1 else _log_softmax(log_p * scale), float(form.floors[row])))
    return torch.stack(block, 1)


def _heard(said: Said) -> Tensor:
    """Return what a member says (N, [V,] K) with the floor "auto", which only rounded probabilities get."""
    return _floored(said.log_p, DEFAULT_FLOOR if said.rounded else 0.0)


def _constant(array: NDArray[Any], like: Tensor) -> Tensor:
    return torch.as_tensor(array, device=like.device)


# The arithmetic of `vidfuse.likelihood` -------------------------------------------------------------------------------


def _log_softmax(x: Tensor) -> Tensor:
    shifted = x - x.amax(-1, keepdim=True)
    return shifted - shifted.exp().sum(-1, keepdim=True, dtype=torch.float64).log().to(x.dtype)


def _floored(log_p: Tensor, floor: float) -> Tensor:
    return (log_p.exp() * (1 - floor) + floor / log_p.shape[-1]).log() if floor > 0 else log_p


def _reduced(log_p: Tensor, how: str) -> Tensor:
    """Reduce views (N, V, K), as `reduce_views_array`."""
    if how == "max":
        return _log_softmax(log_p.amax(1).double()).float()
    if how == "mean-probability":
        return _linear_pool(log_p, torch.ones_like(log_p[:, :, :1], dtype=torch.float64) / log_p.shape[1]).float()
    pooled = _mean_log(log_p)
    return (_counted(_one_hot(log_p).sum(1), pooled) if how == "vote" else pooled).float()


def _log_linear_pool(log_p: Tensor, weights: Tensor) -> Tensor:
    """Pool (N, M, ..., K) by weights that broadcast with it."""
    return _joined((log_p.double() * weights).sum(1))


def _linear_pool(log_p: Tensor, weights: Tensor) -> Tensor:
    log_p = log_p.double()
    largest = log_p.amax(1)
    largest = largest.masked_fill(largest == -math.inf, 0.0)  # of a class that every member vetoes
    return _joined((weights * (log_p - largest[:, None]).exp()).sum(1).log() + largest)


def _joined(total: Tensor) -> Tensor:
    """Normalise sums; give classes that lie below the best one by no more than rounding its sum."""
    peak = total.amax(-1, keepdim=True)
    return _log_softmax(torch.where(total >= peak - _TIE * peak.abs().clamp(min=1.0), peak, total))


_Form = Callable[[Any, Members], Tensor]
FORMS: Final[Mapping[type, _Form]] = MappingProxyType(
    {
        BordaCount: partial(_vote, ballots=_ranks),
        Calibrated: _calibrated,
        Cascade: _cascade,
        DynamicPool: _dynamic,
        GreedyPool: _greedy,
        LinearPool: _linear,
        LogLinearPool: _log_linear,
        MajorityVote: partial(_vote, ballots=_one_hot),
        StackedPool: _stacked,
        SubsetPool: _subset,
    }
)
"""Rule → its form in torch. A subclass is not its base class: it may fuse in another way."""
