"""Cascades: members from cheap to dear, each video by as few as the risk that was stated allows.

videos    900              stage 1: x3d              sure enough: answered    630
270 are left     stage 2: + slowfast       sure enough: answered    150
120 are left     stage 3: + swin           all members: answered    120

On a stack with views the first stages ask a single view of each member, and later ones double the views.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from vidfuse._checks import check_choice, check_share, first_few
from vidfuse._tables import Column, Table, Tabular, number, percent, points
from vidfuse.errors import InputError, VidfuseWarning, option
from vidfuse.fusion.agreement import without_agreement_warnings
from vidfuse.fusion.calibration import TemperatureScaling
from vidfuse.fusion.crossfit import content_keys, split_halves
from vidfuse.fusion.floors import is_number
from vidfuse.fusion.log_linear import LogLinearPool
from vidfuse.fusion.rule import Rule, check_rule
from vidfuse.fusion.views import first_views, reduce_views
from vidfuse.fusion.weights import member_hits
from vidfuse.likelihood import VIEW_RULES
from vidfuse.metrics.bounds import risk_p_value
from vidfuse.metrics.objectives import labels_of
from vidfuse.selection.masks import member_costs
from vidfuse.selection.problem import restricted
from vidfuse.stack.clips import warn_if_clips
from vidfuse.stack.stack import LogitStack

__all__ = ["Cascade", "CascadeFront"]

_LEAST: Final = -100.0  # a log-likelihood: a class that a member ruled out was the true one, and T has to bear it
_DOUBT: Final = (
    0.02  # of a video, added to what a step loses: of steps that lose nothing, the one that saves most is first
)
_STEPS: Final = 50  # a step of the path lets a stage answer this part of the videos more


@dataclass(frozen=True)
class CascadeFront(Tabular):
    """What a cascade's thresholds cost and lose on some videos, from "all members on every video" to the cheapest.

    Attributes:
        thresholds: Of every stage but the last, for each point of the path, shape (P, S - 1); infinite: nobody stops.
        cost: The mean cost of a video (P,).
        accuracy: (P,).
        differs: The share of videos whose label is not that of all members (P,).
        certified: Whether the fit showed that the point keeps the stated risk (P,).
        chosen: The point that the cascade uses.
    """

    thresholds: NDArray[np.float64]
    cost: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    differs: NDArray[np.float64]
    certified: NDArray[np.bool_]
    chosen: int

    def __str__(self) -> str:
        return str(self.table())

    def table(self) -> Table:
        """Return the points as a table: ten of them, the chosen one among these."""
        shown = {self.chosen, *np.linspace(0, len(self.cost) - 1, min(10, len(self.cost))).round().astype(int).tolist()}
        rows = [
            (
                "all members" if point == 0 else "certified" if self.certified[point] else "not certified",
                float(self.cost[point]),
                float(self.cost[point] / self.cost[0]),
                float(self.accuracy[point]),
                float(self.accuracy[point] - self.accuracy[0]),
                float(self.differs[point]),
            )
            for point in sorted(shown)
        ]
        columns = (
            Column("point"),
            Column("cost", write=lambda value: number(value, 2)),
            Column("of all %", "share", percent),
            Column("top-1 %", "accuracy", percent),
            Column("against all", "difference", points),
            Column("label differs %", "differs", percent),
        )
        strong = frozenset([sorted(shown).index(self.chosen)])
        return Table(
            columns, tuple(rows), strong=strong, notes=(f"Used: the point of cost {self.cost[self.chosen]:.4g}.",)
        )


class Cascade(Rule):
    """Ask members from cheap to dear, and stop where the fused prediction is sure enough: with a stated risk.

    Stage s is a rule on the first s members. On a stack with views (N, M, V, K) each of these is asked for one view;
    the stages after that ask all members for 2, 4, 8 … and at last all V views, and join those that came by `views`. A
    video whose score at a stage is at least the stage's threshold is answered there; the last stage, all members and
    views, answers the rest. The fit deals its videos, or whole groups of them, to two halves. On the first the stages
    are fitted, and a path of thresholds is laid out, from "no stage answers but the last" to the cheapest: each step
    lowers the threshold that loses least for what it saves. On the second half its steps are tested in turn until one
    fails: is the risk at most `at_most`? All steps before it hold together with the stated confidence (fixed-sequence
    testing), so any of them may be used. Where none does, all members run on every video, and a warning says why: too
    few videos, or a loss that is too large from the start.

    The risk is that of new videos drawn like these, against all members fused by the same rule fitted on the same half.
    It holds for any distribution and any members. Sample weights count in the fit of stages, not in the test.

    Args:
        rule: The rule that fuses every stage; `LogLinearPool()` where None.
        costs: {member: cost of a pass}, or numbers in the members' order: GMACs, or milliseconds as
            `vidfuse.serving.measure` finds them. 1 each by default: passes are counted.
        order: The members, first asked first; by default from cheap to dear, of equal ones the more accurate first.
        risk: What is kept: "accuracy" (at most so far below that of all members) or "label" (differs from theirs in at
            most this share of the videos).
        at_most: The risk, a share: 0.01 is one point of accuracy, or one video in a hundred.
        confidence: With which the risk is kept.
        keep: Of the steps that passed, the cheapest is used that is expected to keep this share of what all members
            gain over the best one, both by the probabilities of all members, calibrated on the second half by one
            temperature: counts of hits would be noise where fusion gains a few videos. 0: the cheapest that passed.
        by: What says how sure a stage is: the "margin" of its label's probability to the second's, or that
            "probability".
        views: How a member's views are joined where the stack has some, as in `vidfuse.reduce_views`.

    Attributes:
        order_: The members, first asked first.
        costs_: The cost of every stage: of its members' passes together (S,).
        views_: The number of views that each stage has of each of its members (S,); None without views.
        stages_: The fitted rules; the last one fuses all members.
        thresholds_: From which score on a stage answers (S - 1,); infinite where it never does.
        shares_: The share of the second half's videos that each stage answers (S,).
        p_value_: Of "the risk is above `at_most`", for the thresholds in use; 1 where no step passed.
        n_tested_: The number of independent videos, or groups, that the path was tested on.
        path_: The thresholds of each step (P, S - 1), the first infinite.
        n_certified_: How many points of the path hold, the first included, which needs no test.
        chosen_: The point in use.

    Source:
        Angelopoulos, Bates, Candès, Jordan and Lei (2025), Learn then test: calibrating predictive algorithms to
        achieve risk control, Annals of Applied Statistics 19, sections 2 and 3 (fixed-sequence testing); Wang et al.
        (2022), Wisdom of committees: an overlooked approach to faster and more accurate models, ICLR.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, size=2000)
        >>> small, large = (rng.normal(size=(2000, 3)) + skill * np.eye(3)[y] for skill in (4.0, 5.0))
        >>> stack = LogitStack.from_arrays({"small": small, "large": large}, labels=y)
        >>> cascade = Cascade(costs={"small": 5, "large": 88}, at_most=0.02).fit(stack)
        >>> cascade.order_, bool(cascade.shares_ @ cascade.costs_ < 0.5 * 93)
        (('small', 'large'), True)
    """

    takes_views = True
    order_: tuple[str, ...]
    costs_: NDArray[np.float64]
    views_: NDArray[np.int64] | None = None
    stages_: list[Rule]
    thresholds_: NDArray[np.float64]
    p_value_: float
    shares_: NDArray[np.float64]
    n_tested_: int
    path_: NDArray[np.float64]
    n_certified_: int
    chosen_: int

    def __init__(
        self,
        rule: Any = None,
        *,
        costs: Mapping[str, float] | Sequence[float] | None = None,
        order: Sequence[str] | None = None,
        risk: Literal["accuracy", "label"] = "accuracy",
        at_most: float = 0.01,
        confidence: float = 0.95,
        keep: float = 0.95,
        by: Literal["margin", "probability"] = "margin",
        views: str = "mean-log",
    ) -> None:
        self.rule = rule
        self.costs = costs
        self.order = order
        self.risk = risk
        self.at_most = at_most
        self.confidence = confidence
        self.keep = keep
        self.by = by
        self.views = views

    def _fit(self, stack: LogitStack, labels: NDArray[np.int64], weight: NDArray[np.float64] | None) -> None:
        self._check()
        warn_if_clips(stack)
        stack = self._as_listed(stack)
        costs = dict(zip(stack.members, member_costs(self.costs, stack.members).tolist(), strict=True))
        if weight is not None:  # videos of weight 0 are not there
            used = weight > 0
            stack, labels, weight = stack[used], labels[used], weight[used]
        keys = content_keys(stack, labels) if stack.ids is None else stack.ids
        fitted, tested = split_halves(len(stack), stack.groups, keys)
        half = stack[fitted], labels[fitted], None if weight is None else weight[fitted]
        self.order_ = _ordered(self.order, costs, self._reduced(half[0]), half[1])
        self.views_ = None if stack.n_views is None else _doubled(len(self.order_), stack.n_views)
        self.costs_ = np.cumsum([costs[name] for name in self.order_])
        if self.views_ is not None:
            last = np.minimum(np.arange(len(self.views_)), len(self.order_) - 1)
            self.costs_ = self.costs_[last] * self.views_
        self.stages_ = [self._stage(stage, *half) for stage in range(len(self.costs_))]
        self.path_ = _path(self._answers(half[0]), self.costs_, self.risk)
        self.n_certified_, self.chosen_, self.p_value_, self.n_tested_ = 1, 0, 1.0, 0
        self.shares_ = np.eye(len(self.costs_))[-1]
        nothing_lost = self._certify(stack[tested], labels[tested]) if len(tested) else 1.0
        self.thresholds_ = self.path_[self.chosen_]
        if self.n_certified_ == 1 and len(self.stages_) > 1:
            self.stages_[-1] = self._stage(len(self.costs_) - 1, stack, labels, weight)  # nothing rests on the halves
            why = self._why(nothing_lost, stack[tested].groups if len(tested) else None)
            warnings.warn(f"all members run on every video: {why}", VidfuseWarning, stacklevel=3)

    def _check(self) -> None:
        check_choice("risk", self.risk, ("accuracy", "label"))
        check_choice("by", self.by, ("margin", "probability"))
        check_choice("views", self.views, VIEW_RULES)
        check_share("at_most", self.at_most)
        check_share("confidence", self.confidence)
        if not is_number(self.keep) or not 0 <= self.keep <= 1:
            raise InputError(f"keep: expected a number within 0 … 1, got {self.keep!r}")

    def _stage(self, stage: int, stack: LogitStack, labels: Any, weight: NDArray[np.float64] | None) -> Rule:
        """Return the rule of a stage, fitted."""
        rule = LogLinearPool() if self.rule is None else check_rule(self.rule)
        seen = self._seen(stage, stack)
        return restricted(rule, stack.members, seen.members).fit(seen, labels, weight)

    def _seen(self, stage: int, stack: LogitStack) -> LogitStack:
        """Return what a stage sees of a stack (N, M, [V,] K): its members, each by the views that it has so far."""
        own = stack.select([name for name in stack.members if name in self.order_[: stage + 1]])
        return own if self.views_ is None else self._reduced(first_views(own, int(self.views_[stage])))

    def _reduced(self, stack: LogitStack) -> LogitStack:
        return stack if stack.n_views is None else reduce_views(stack, self.views)

    def _certify(self, stack: LogitStack, labels: NDArray[np.int64]) -> float:
        """Test the path's steps in turn, on videos that nothing was fitted on, until one fails; choose one that passed.

        Returns the p-value that a step would have that loses nothing.
        """
        answers, videos = self._answers(stack), np.arange(len(stack))
        losses = answers.losses(self.risk, labels)
        log_p = np.maximum(answers.log_p, _LEAST)
        log_p = TemperatureScaling().fit(log_p, labels).transform(log_p)
        expected = _expected(log_p, answers.labels)
        whole = self._reduced(stack)
        best = whole.members[int(member_hits(whole, labels).sum(axis=0).argmax())]
        gain = float(_expected(log_p, whole.select([best]).log_likelihoods().argmax(axis=2).T).mean())
        self.n_tested_ = len(stack) if stack.groups is None else len(np.unique(stack.groups))
        for point, thresholds in enumerate(self.path_[1:], 1):
            stage = answers.stage(thresholds)
            p = self._p_value(losses[stage, videos], stack)
            if p > 1 - self.confidence:
                break
            self.n_certified_ = point + 1
            if self.keep == 0 or gain == 0 or expected[stage, videos].mean() <= (1 - self.keep) * gain:
                self.chosen_, self.p_value_ = point, p
        stage = answers.stage(self.path_[self.chosen_])
        self.shares_ = np.bincount(stage, minlength=len(self.costs_)) / len(stage)
        return self._p_value(losses[-1], stack)

    def _p_value(self, losses: NDArray[np.float64], stack: LogitStack) -> float:
        return risk_p_value(losses, self.at_most, stack.groups, lowest=self._lowest())

    def _stated(self) -> str:
        """Say what is kept."""
        share = f"{100 * self.at_most:.4g}"
        if self.risk == "label":
            return f"the label differs from that of all members in at most {share} % of the videos"
        return f"accuracy is at most {share} point{'' if share == '1' else 's'} below that of all members"

    def _why(self, nothing_lost: float, groups: NDArray[Any] | None) -> str:
        """Say why no step was certified; `nothing_lost` is what the p-value would be if no video were lost."""
        said = self._stated()
        if nothing_lost > 1 - self.confidence:
            units = "independent videos" if groups is None else "groups of such sizes"
            return (
                f"to show with a confidence of {self.confidence:.4g} that {said} takes at least "
                f"{self._fewest(groups):,} {units} in the second half of the fit's, which has {self.n_tested_:,}; "
                f"give it more, or a larger {option('at_most')}"
            )
        return f"already the first step could not be shown to keep the risk stated: {said}"

    def _fewest(self, groups: NDArray[Any] | None) -> int:
        """Return how many videos, or groups of such sizes, would do if they lost nothing; to 2 %."""
        sizes = np.ones(1, int) if groups is None else np.unique(groups, return_counts=True)[1]

        def would_do(n: int) -> bool:
            group = None if groups is None else np.repeat(np.arange(n), np.resize(sizes, n))
            losses = np.zeros(n if group is None else len(group))
            return risk_p_value(losses, self.at_most, group, lowest=self._lowest()) <= 1 - self.confidence

        enough = math.ceil(math.log(1 - self.confidence) / math.log1p(-self.at_most))
        too_few = enough - 1
        while not would_do(enough):
            too_few, enough = enough, 2 * enough
        while enough - too_few > max(1, enough // 50):
            middle = (too_few + enough) // 2
            too_few, enough = (too_few, middle) if would_do(middle) else (middle, enough)
        return enough

    def _lowest(self) -> int:
        return -1 if self.risk == "accuracy" else 0

    def _answers(self, stack: LogitStack) -> _Answers:
        """Return what every stage says of every video."""
        labels, sure = [], []
        for stage, rule in enumerate(self.stages_):
            log_p = rule.predict_log_proba(self._seen(stage, stack))
            labels.append(log_p.argmax(axis=1))
            sure.append(_sureness(log_p, self.by))
        return _Answers(np.array(labels), np.array(sure[:-1]).reshape(-1, len(stack)), log_p)

    def stages_in_use(self) -> list[int]:
        """Return the stages that may answer a video: not those that never do, nor those behind one that always does."""
        found = []
        for stage, threshold in enumerate([*self.thresholds_.tolist(), 0.0]):
            if threshold < np.inf:
                found.append(stage)
            if threshold <= 0:
                break
        return found

    def needed_members(self) -> tuple[str, ...]:
        """Return those of `members_` that a prediction needs: those of the stages that may answer a video."""
        check_is_fitted(self, "stages_")
        needed = {name for stage in self.stages_in_use() for name in self.stages_[stage].needed_members()}
        return tuple(name for name in self.members_ if name in needed)

    def needed_views(self) -> int | None:
        """Return how many views the stack of a prediction has: those of the fit's, asked or not; None without views."""
        return None if self.views_ is None else int(self.views_[-1])

    def choices(self) -> tuple[str, ...]:
        """Return the order, which share of the videos each stage answers, what that costs, and what was shown."""
        if not hasattr(self, "stages_"):
            return ()
        stated, order = self._stated(), ", ".join(self.order_)
        if self.n_certified_ == 1:
            said = (
                f"all of {order} run on every video: nothing less was shown to keep the risk that was stated, {stated}"
            )
            return said, *self.stages_[-1].choices()
        answered = [
            f"{self.shares_[stage]:.1%} by {self._called(stage)}"
            + (f" from a {self.by} of {self.thresholds_[stage]:.4g}" if stage < len(self.thresholds_) else "")
            for stage in self.stages_in_use()
        ]
        return (
            f"{order}, in this order; answered {', '.join(answered)}",
            f"mean cost {self.shares_ @ self.costs_:.4g} of {self.costs_[-1]:.4g}",
            f"{stated}: shown with a confidence of {self.confidence:.4g} on {self.n_tested_:,} videos or groups that "
            f"nothing was fitted on (p = {self.p_value_:.2g})",
        )

    def _called(self, stage: int) -> str:
        """Say who a stage is."""
        members = self.order_[0] if stage == 0 else f"{min(stage + 1, len(self.order_))} members"
        if self.views_ is None:
            return members
        views = int(self.views_[stage])
        return f"{views} view{'' if views == 1 else 's'} of {members}"

    def front(self, X: Any, y: ArrayLike | None = None) -> CascadeFront:
        """Return cost and accuracy of every step of the path on other labelled videos, and which were certified.

        Args:
            X: A stack, or an array (N, M, K), with all members.
            y: Labels (N,); the stack's own by default.

        Raises:
            InputError: There are no labels.
        """
        check_is_fitted(self, "stages_")
        stack = self._named(X)
        labels = labels_of(stack, y, where="the stack to score on")
        answers = self._answers(stack)
        stages = [answers.stage(thresholds) for thresholds in self.path_]
        given = [answers.labels[stage, np.arange(len(labels))] for stage in stages]
        return CascadeFront(
            thresholds=self.path_,
            cost=np.array([self.costs_[stage].mean() for stage in stages]),
            accuracy=np.array([(own == labels).mean() for own in given]),
            differs=np.array([(own != answers.labels[-1]).mean() for own in given]),
            certified=np.arange(len(stages)) < self.n_certified_,
            chosen=self.chosen_,
        )

    def stage_of(self, X: Any) -> NDArray[np.int64]:
        """Return which stage answers each video (N,), from 0; `costs_[stage_of(X)]` is what it costs."""
        check_is_fitted(self, "stages_")
        return self._run(self._named(X))[1]

    def _named(self, X: Any) -> LogitStack:
        named = X if isinstance(X, LogitStack) else LogitStack.from_arrays(X, members=self.feature_names_in_)
        return self._of_its_views(named)

    def answer(self, stage: int, stack: LogitStack) -> NDArray[np.float64]:
        """Return the log-likelihoods (N, K) of one stage, for videos that may be the hard ones of many.

        The stack has the stage's members at least, and its views.
        """
        with without_agreement_warnings():
            return self.stages_[stage].predict_log_proba(self._seen(stage, stack))

    def is_sure(self, stage: int, log_p: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return whether a stage is sure enough to answer (N,); the last one always is."""
        return _sureness(log_p, self.by) >= [*self.thresholds_, 0.0][stage]

    def _fuse(self, stack: LogitStack) -> NDArray[np.float64]:
        return self._run(self._of_its_views(stack))[0]

    def _of_its_views(self, stack: LogitStack) -> LogitStack:
        """Return a stack that has the views of the fit's, or refuse it."""
        asked = self.needed_views()
        if stack.n_views != asked:
            expected = "(N, M, K)" if asked is None else f"(N, M, {asked}, K): {asked} views, as in the fit"
            raise InputError(f"this cascade takes {expected}; got shape {stack.shape}")
        return stack

    def _run(self, stack: LogitStack) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return log-likelihoods (N, K), and which stage gave them (N,)."""
        out, given = np.empty((len(stack), stack.n_classes)), np.empty(len(stack), dtype=np.int64)
        left = np.arange(len(stack))
        for stage in self.stages_in_use():
            log_p = self.answer(stage, stack[left])
            done = self.is_sure(stage, log_p)
            out[left[done]], given[left[done]] = log_p[done], stage
            left = left[~done]
            if not len(left):
                break
        return out, given


@dataclass(frozen=True)
class _Answers:
    """What every stage says of N videos: labels (S, N), how sure it is (S - 1, N), the last one's log-likelihoods."""

    labels: NDArray[np.int64]
    sure: NDArray[np.float64]
    log_p: NDArray[np.float64]

    def stage(self, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return which stage answers each video (N,): the first that is sure enough, or the last."""
        enough = self.sure >= thresholds[:, None]
        return np.where(enough.any(axis=0), enough.argmax(axis=0) if len(enough) else 0, len(enough))

    def losses(self, risk: str, labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what each stage's answer loses against the last one's (S, N)."""
        if risk == "label":
            return (self.labels != self.labels[-1]).astype(np.float64)
        right = (self.labels == labels).astype(np.float64)
        return right[-1] - right

    def expected(self, risk: str) -> NDArray[np.float64]:
        """Return the loss of each stage (S, N) that the last one expects, without labels; never below 0."""
        if risk == "label":
            return self.losses(risk, self.labels[-1])
        return _expected(self.log_p, self.labels)


def _expected(log_p: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return what a prediction (N, K) expects other labels (S, N) to lose against its own (S, N); never below 0."""
    p = np.exp(np.take_along_axis(log_p, labels.T, axis=1)).T
    return np.maximum(np.exp(log_p.max(axis=1)) - p, 0.0)


def _doubled(members: int, views: int) -> NDArray[np.int64]:
    """Return how many views each stage has: one while members are added, then twice as many each time, at last all.

    Example:
        >>> _doubled(3, 10).tolist(), _doubled(2, 8).tolist(), _doubled(2, 1).tolist()
        ([1, 1, 1, 2, 4, 8, 10], [1, 1, 2, 4, 8], [1, 1])
    """
    more = [1 << power for power in range(1, views.bit_length()) if 1 << power < views]
    return np.array([1] * members + more + [views] * (views > 1))


def _sureness(log_p: NDArray[np.float64], by: str) -> NDArray[np.float64]:
    """Return how sure a prediction (N, K) is of its label (N,), within 0 … 1."""
    two = np.exp(np.partition(log_p, -2, axis=1)[:, -2:])
    return two[:, 1] if by == "probability" else two[:, 1] - two[:, 0]


def _ordered(
    order: Sequence[str] | None, costs: Mapping[str, float], stack: LogitStack, labels: NDArray[np.int64]
) -> tuple[str, ...]:
    """Return the members as given, or from cheap to dear; of equal cost, the more accurate first."""
    if order is None:
        hits = dict(zip(stack.members, member_hits(stack, labels).sum(axis=0).tolist(), strict=True))
        return tuple(sorted(stack.members, key=lambda name: (costs[name], -hits[name], name)))
    if isinstance(order, str) or sorted(order) != sorted(stack.members):
        raise InputError(f"order: expected the members {first_few(stack.members, 20)}, each once, got {order!r}")
    return tuple(order)


def _path(answers: _Answers, costs: NDArray[np.float64], risk: str) -> NDArray[np.float64]:
    """Return thresholds (P, S - 1), from "no stage answers but the last" to "the first answers everything".

    Every step lowers one stage's threshold until it answers a fiftieth of the videos more than before: the stage that
    is expected to lose least for what it saves.
    """
    loss, videos = answers.expected(risk), np.arange(answers.labels.shape[1])
    step = math.ceil(len(videos) / _STEPS)
    thresholds = np.full(len(costs) - 1, np.inf)
    path, now = [thresholds], answers.stage(thresholds)
    while (now > 0).any():
        tried = []
        for stage, sure in enumerate(answers.sure):
            waiting = sure[now > stage]
            if len(waiting):
                lowered = thresholds.copy()
                lowered[stage] = np.partition(waiting, -step)[-step] if len(waiting) > step else 0.0
                then = answers.stage(lowered)
                lost = loss[then, videos].sum() - loss[now, videos].sum()
                saved = costs[now].sum() - costs[then].sum()
                tried.append(((max(lost, 0.0) + _DOUBT) / max(saved, 1e-9), stage, lowered, then))
        _, _, thresholds, now = min(tried, key=lambda one: one[:2])
        path.append(thresholds)
    return np.array(path).reshape(len(path), -1)
