"""Deciding early without losing anything: members and views run until the label can no longer change.

The fused score of a class is a sum over steps (members, or views), and each step's term lies between two numbers that
are known beforehand. So after some steps the final score of every class lies in an interval:

    class 3    ·  ·  ·  ·  [=====]        the lowest that class 3 can end at is above the highest of all others:
    class 0    [=====]                    3 is the label, whatever the members that did not run would say
    class 7       [=====]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidfuse.errors import InputError, option
from vidfuse.fusion.agreement import without_agreement_warnings
from vidfuse.fusion.floors import floored_blocks, member_floors
from vidfuse.fusion.rule import Rule, WeightedSum, WeightedVote, check_presence
from vidfuse.fusion.views import one_view, reduce_views
from vidfuse.fusion.votes import most_probable, ranks
from vidfuse.likelihood import block_rows, log_linear_pool
from vidfuse.recipe import Recipe
from vidfuse.selection.masks import member_costs
from vidfuse.stack.stack import LogitStack

__all__ = ["Decided", "EarlyExit", "Step", "early_exit"]

_ROUNDING: Final = 1e-5  # of a step's largest term: members are float32, which rounds a score to 1e-7 of itself
_LOOKED_AT: Final = 1 << 22  # numbers by which the order is chosen
_EXACT: Final = 10  # members up to which the best order is found by trying every set of them


@dataclass(frozen=True)
class Step:
    """What runs at once, and what it costs.

    Attributes:
        members: The members.
        view: Which of their views; None for all of them.
        passes: Forward passes: members times views.
        cost: What these cost together.
    """

    members: tuple[str, ...]
    view: int | None
    passes: int
    cost: float


@dataclass(frozen=True)
class Decided:
    """Labels, and what it took to find them.

    Attributes:
        labels: The label of each video (N,): that of the rule.
        steps: After how many steps of the order it was certain (N,).
        passes: The forward passes that these take (N,).
        cost: What they cost (N,).
        all_passes: The passes of all steps.
        all_cost: Their cost.
    """

    labels: NDArray[np.int64]
    steps: NDArray[np.int64]
    passes: NDArray[np.int64]
    cost: NDArray[np.float64]
    all_passes: int
    all_cost: float

    @property
    def saved(self) -> float:
        """The share of the cost that was saved."""
        return float(1 - self.cost.mean() / self.all_cost) if self.all_cost else 0.0

    def __repr__(self) -> str:
        return (
            f"Decided({len(self.labels):,} videos by {self.passes.mean():.2f} of {self.all_passes} passes, "
            f"{self.saved:.1%} of the cost saved)"
        )


@dataclass(frozen=True)
class EarlyExit:
    """A fitted rule, and the order in which its members or views run; it stops where the label is certain.

    Attributes:
        rule: The fitted rule.
        order: The steps.
    """

    rule: Rule
    order: tuple[Step, ...]
    form: _Form = field(repr=False)
    views: str | Mapping[str, str] | None = field(default=None, repr=False)

    def run(self, stack: LogitStack) -> Decided:
        """Return each video's label, and how many steps it takes until it is certain; all scores are at hand.

        Args:
            stack: All members, with the views of the stack that the order was chosen by.

        Raises:
            AlignmentError: Members or classes are not those of the fit.
            InputError: Single views are steps, and there are more or fewer of them.
        """
        self._check_views(stack)
        stack, whole = _laid_out(stack, self.form, self.views)
        steps, labels = np.full(len(stack), len(self.order)), np.full(len(stack), -1)
        for rows in _blocks(stack):
            own, state = stack[rows], self.start(rows.stop - rows.start, stack.n_classes)
            for number, step in enumerate(self.order[:-1], 1):
                state.add(step, _of_step(step, own[state.left]))
                found = state.decide()
                steps[rows][found.rows], labels[rows][found.rows] = number, found.labels
                if not len(state.left):
                    break
        left = labels < 0
        if left.any():
            labels[left] = self.finish(whole[left])
        return _counted(labels, steps, self.order)

    def ceiling(self, stack: LogitStack) -> NDArray[np.int64]:
        """Return after how many steps (N,) hindsight would stop: from there on the label so far is the final one.

        It knows what the steps to come will say, which no server does. The label so far is that of the sum so far; no
        way of stopping in this order that answers with it, and never wrongly, stops before.
        """
        self._check_views(stack)
        stack, whole = _laid_out(stack, self.form, self.views)
        final, earliest = self.rule.predict(whole), np.full(len(stack), len(self.order))
        for rows in _blocks(stack):
            own, state = stack[rows], self.start(rows.stop - rows.start, stack.n_classes)
            wrong = np.zeros(len(own), dtype=np.int64)
            for number, step in enumerate(self.order, 1):
                state.add(step, _of_step(step, own))
                wrong[state.total.argmax(axis=1) != final[rows]] = number
            earliest[rows] = np.minimum(wrong + 1, len(self.order))
        return earliest

    @property
    def by_view(self) -> bool:
        """Whether single views are steps."""
        return self.form.by_view

    @property
    def n_views(self) -> int | None:
        """How many views of a video are steps; None where members run with all of theirs."""
        return max(step.view or 0 for step in self.order) + 1 if self.by_view else None

    def _check_views(self, stack: LogitStack) -> None:
        if self.n_views is not None and stack.n_views != self.n_views:
            raise InputError(
                f"expected {self.n_views} views of each video, which are the steps of this order, got "
                f"{stack.n_views or 'none'}; choose an order for others with early_exit"
            )

    def finish(self, stack: LogitStack) -> NDArray[np.int64]:
        """Return the rule's labels of the videos that are left at the end, from the scores of all members."""
        with without_agreement_warnings():  # these are the videos on which members differ
            return self.rule.predict(stack)

    def start(self, n: int, n_classes: int) -> Undecided:
        """Return the state of n videos of which nothing is known yet; see `Undecided`."""
        return Undecided(self.form, self.order, n, n_classes)


@dataclass(frozen=True)
class Found:
    """Videos whose label became certain: their rows among those of the start, and their labels."""

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]


class Undecided:
    """The videos of which the label is not certain yet, and the sums of what is known of them.

    Attributes:
        left: Their rows among those of the start.
        total: The sum so far of each of them (len(left), K).
    """

    left: NDArray[np.int64]
    total: NDArray[np.float64]

    def __init__(self, form: _Form, order: Sequence[Step], n: int, n_classes: int) -> None:
        self._form, self._waiting = form, list(order)
        self.left, self.total = np.arange(n), np.tile(form.base(n_classes), (n, 1))

    def add(self, step: Step, scores: LogitStack) -> None:
        """Add the terms of a step: the scores of its members for the videos that are left."""
        self.total += self._form.terms(step, scores)
        self._waiting.remove(step)

    def decide(self) -> Found:
        """Take out the videos whose label the waiting steps cannot change."""
        certain, labels = self._form.certain(self.total, self._waiting)
        found = Found(self.left[certain], labels[certain])
        self.left, self.total = self.left[~certain], self.total[~certain]
        return found


def early_exit(
    rule: Recipe | Rule, stack: LogitStack, costs: Mapping[str, float] | Sequence[float] | None = None
) -> EarlyExit:
    """Choose the order in which a fitted rule's members or views run, so that labels are certain as cheaply as may be.

    What is certain early: votes (of members, of ranks, of views), linear pools, and log-linear pools of members that
    have a floor f, whose log-likelihoods lie between log(f/K) and log(1 - f + f/K); with weights per class and biases
    too. Without a floor one member can veto any class, and nothing is certain before all have run. The labels are those
    of the rule on every video, ties included: whatever is not certain early, the rule itself decides in the end.

    Members run whole (all their views), except in two cases in which a single view tells something: a `MajorityVote`
    over views, and a linear pool of a recipe that reduces views by "mean-probability".

    Of up to ten members the order is the one with the least expected cost on the stack's videos. Whether a label is
    certain depends on which members have run, not on their order, so that the best order follows from that of every set
    of members: ``cost(S) = min_m c_m·u(S) + cost(S ∪ m)``, u the share of the videos that S leaves uncertain (Held and
    Karp 1962). More members run by how far they can shift scores for their cost.

    Args:
        rule: A recipe, or a fitted rule.
        stack: The validation videos, (N, M, K) or with views; labels are not needed.
        costs: {member: cost of a pass}, or numbers in the stack's order; 1 each by default.

    Raises:
        InputError: The rule is no such sum, or no member has a floor, or costs are not those of the members.

    Example:
        >>> import vidfuse as vf
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=200)
        >>> stack = LogitStack.from_arrays(rng.normal(size=(200, 5, 3)) + 4.0 * np.eye(3)[y][:, None])
        >>> vote = vf.MajorityVote().fit(stack)
        >>> early_exit(vote, stack).run(stack)
        Decided(200 videos by 3.00 of 5 passes, 39.9% of the cost saved)
    """
    fitted = rule.rule if isinstance(rule, Recipe) else rule
    views = rule.views if isinstance(rule, Recipe) else None
    form = _form(fitted, stack, views)
    if form.kind == "log-linear" and not (form.floors > 0).any():
        raise InputError(
            "early_exit: expected a log-linear pool whose members have a floor: without one a member can veto any "
            f"class, and nothing is certain before all have run; fit the rule with {option('floor', 0.001)}"
        )
    price = dict(zip(stack.members, member_costs(costs, stack.members).tolist(), strict=True))
    used, _ = _laid_out(stack, form, views)
    order = _order(form, used, _steps(form, stack, price))
    return EarlyExit(fitted, order, form, views)


@dataclass(frozen=True)
class _Form:
    """A fitted rule as a sum of one term a step, each between two numbers.

    kind            a step's term of class c                                  lowest      highest
    "log-linear"    β_c · log q(c), q the member with its floor f             log(f/K)    log(1 - f + f/K), times β_c
    "linear"        w · q(c), shared among the views where these are steps    f/K         1 - f + f/K, times w
    "vote"          w where c is the most probable class                      0           w
    "rank"          w times the number of classes that c beats                0           w (K - 1)
    "views"         1 where c is the most probable class of a view            0           1
    """

    kind: str
    members: tuple[str, ...]
    weights: NDArray[np.float64]
    floors: NDArray[np.float64]
    scales: NDArray[np.float64] | None = None
    bias: NDArray[np.float64] | None = None
    view_floors: NDArray[np.float64] | None = None
    n_views: int = 1

    @property
    def by_view(self) -> bool:
        """Whether single views are steps."""
        return self.kind == "views" or self.view_floors is not None

    def base(self, n_classes: int) -> NDArray[np.float64]:
        """Return the sum before any step (K,)."""
        return np.zeros(n_classes) if self.bias is None else self.bias

    def terms(self, step: Step, scores: LogitStack) -> NDArray[np.float64]:
        """Return the term of a step (N, K), from its members' scores (N, M, K)."""
        columns = [self.members.index(name) for name in step.members]
        floors = self.floors[columns]
        if self.view_floors is not None:  # the floor of a view, then that of the member
            floors = 1 - (1 - floors) * (1 - self.view_floors[columns])
        scales = None if self.scales is None else self.scales[columns]
        out = np.empty((len(scores), scores.n_classes))
        for rows, block in floored_blocks(scores.select(step.members), floors, scales=scales):
            out[rows] = self._term(block, self.weights[columns])
        return out

    def _term(self, block: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.kind == "views":
            return most_probable(log_linear_pool(block, weights[:, 0] / weights.sum()))
        own, weight = block[:, 0], weights[0] / self.n_views
        if self.kind == "log-linear":
            used = np.broadcast_to(weight != 0, own.shape)  # no weight, no veto: 0 · -inf is left out
            return np.multiply(own, weight, out=np.zeros(own.shape), where=used, dtype=np.float64)
        if self.kind == "linear":
            return weight * np.exp(own, dtype=np.float64)
        return weight * (most_probable(own) if self.kind == "vote" else ranks(own))

    def span(self, step: Step, n_classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the lowest and the highest term that a step can have, for each class (K,)."""
        if self.kind == "views":
            return np.zeros(n_classes), np.ones(n_classes)
        column = self.members.index(step.members[0])
        weight, floor = np.broadcast_to(self.weights[column] / self.n_views, n_classes), self.floors[column]
        ends = np.array([floor / n_classes, 1 - floor + floor / n_classes])
        if self.kind == "log-linear":
            with np.errstate(divide="ignore", invalid="ignore"):
                terms = np.where(weight == 0, 0.0, np.log(ends)[:, None] * weight)
            return terms.min(axis=0), terms.max(axis=0)
        if self.kind == "linear":
            return ends[0] * weight, ends[1] * weight
        return np.zeros(n_classes), weight * (1 if self.kind == "vote" else n_classes - 1)

    def certain(
        self, total: NDArray[np.float64], waiting: Sequence[Step]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Return whether the label is certain (N,), and the label that it would be (N,).

        What rounding can do is counted against it: a float32 in the waiting terms, and ties that rules join.
        """
        n, classes = total.shape
        low, high = np.zeros(classes), np.zeros(classes)
        for step in waiting:
            least, most = self.span(step, classes)
            low, high = low + least, high + most
        end = total + low
        labels = end.argmax(axis=1)
        best = end[np.arange(n), labels]
        rival = total + high
        rival[np.arange(n), labels] = -np.inf
        slack = _ROUNDING * max(np.abs(low).max(), np.abs(high).max(), float(self.view_floors is not None))
        with np.errstate(invalid="ignore"):  # -inf against -inf is not certain
            certain = best - rival.max(axis=1) > slack + 1e-9 * np.maximum(1.0, np.abs(best))
        return certain, labels


def _form(rule: Rule, stack: LogitStack, views: str | Mapping[str, str] | None) -> _Form:
    """Return a fitted rule as a sum over steps."""
    found: WeightedSum | WeightedVote | None = rule.weighted_sum() or rule.weighted_vote()
    if found is None:
        raise InputError(
            f"early_exit: expected votes, a linear or a log-linear pool, got {rule!r}, which is no weighted sum of its "
            "members; a Cascade may stop early with any rule, at a stated risk"
        )
    say = (found.weights != 0).reshape(len(found.members), -1).any(axis=1)
    members = tuple(name for name, has in zip(found.members, say, strict=True) if has)
    weights, floors = found.weights.reshape(len(say), -1)[say], found.floors[say]
    if isinstance(found, WeightedVote):
        voted = found.kind == "vote" and stack.n_views is not None and views is None
        return _Form("views" if voted else found.kind, members, weights / weights.mean(), floors)
    scales = None if found.scales is None else found.scales[say]
    form = _Form(found.kind, members, weights, floors, scales, found.bias)
    each = {views} if not isinstance(views, Mapping) else set(views.values())
    if found.kind == "linear" and stack.n_views is not None and each == {"mean-probability"}:
        rounded = member_floors(stack.select(members), "auto")
        return replace(form, view_floors=rounded, n_views=stack.n_views)
    return form


def _steps(form: _Form, stack: LogitStack, price: Mapping[str, float]) -> list[Step]:
    """Return the steps of a stack as it was given: members with all their views, or views of all members."""
    views = stack.n_views or 1
    if form.kind == "views":
        together = sum(price[name] for name in form.members)
        return [Step(form.members, view, len(form.members), together) for view in range(views)]
    return [Step((name,), None, views, views * price[name]) for name in form.members]


def _order(form: _Form, stack: LogitStack, steps: list[Step]) -> tuple[Step, ...]:
    """Return the steps in the order of the least expected cost; see `early_exit`."""
    if form.kind == "views":
        return tuple(steps)
    if form.view_floors is not None:
        stack = reduce_views(stack, "mean-probability")
        form, whole = replace(form, view_floors=None, n_views=1), form
        ordered = _order(form, stack, steps)
        return tuple(
            Step(step.members, view, 1, step.cost / whole.n_views) for step in ordered for view in range(whole.n_views)
        )
    if len(steps) > _EXACT:
        reach = [float(np.subtract(*form.span(step, stack.n_classes)[::-1]).max()) for step in steps]
        far = sorted(range(len(steps)), key=lambda m: (-reach[m] / max(steps[m].cost, 1e-12), steps[m].members))
        return tuple(steps[m] for m in far)
    looked_at = max(1, _LOOKED_AT // (len(steps) * stack.n_classes))
    sample = stack[np.unique(np.linspace(0, len(stack) - 1, min(len(stack), looked_at)).astype(np.int64))]
    terms = [form.terms(step, sample) for step in steps]
    everything = (1 << len(steps)) - 1
    to_go, first = np.zeros(everything + 1), np.zeros(everything + 1, dtype=np.int64)
    for ran in range(everything - 1, -1, -1):
        waiting = [m for m in range(len(steps)) if not ran >> m & 1]
        total = np.tile(form.base(stack.n_classes), (len(sample), 1))
        for m in range(len(steps)):
            if ran >> m & 1:
                total += terms[m]
        certain = form.certain(total, [steps[m] for m in waiting])[0]
        uncertain = 1.0 if ran == 0 else 1.0 - float(certain.mean())
        costs = [steps[m].cost * uncertain + to_go[ran | 1 << m] for m in waiting]
        first[ran], to_go[ran] = waiting[int(np.argmin(costs))], min(costs)
    order, ran = [], 0
    while ran != everything:
        order.append(steps[first[ran]])
        ran |= 1 << int(first[ran])
    return tuple(order)


def _laid_out(stack: LogitStack, form: _Form, views: str | Mapping[str, str] | None) -> tuple[LogitStack, LogitStack]:
    """Return the members that have a say, as steps read them, and the stack that the rule itself takes."""
    check_presence(stack.select(form.members), None)
    whole = stack if views is None or stack.n_views is None else reduce_views(stack, views)
    return (stack if form.by_view else whole).select(form.members), whole


def _of_step(step: Step, stack: LogitStack) -> LogitStack:
    """Return the scores that a step reads, without views."""
    return stack if step.view is None else one_view(stack, step.view)


def _counted(labels: NDArray[np.int64], steps: NDArray[np.int64], order: Sequence[Step]) -> Decided:
    """Return labels with the passes and costs of their steps."""
    passes, cost = np.cumsum([step.passes for step in order]), np.cumsum([step.cost for step in order])
    return Decided(labels, steps, passes[steps - 1], cost[steps - 1], int(passes[-1]), float(cost[-1]))


def _blocks(stack: LogitStack) -> list[slice]:
    step = block_rows(stack.n_classes, _LOOKED_AT)
    return [slice(start, min(start + step, len(stack))) for start in range(0, len(stack), step)]
