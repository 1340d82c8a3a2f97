"""Is the stated risk kept, and what do exact stopping and cascades save? On published predictions and on drawn members.

    python benchmarks/cascades.py [--dumps FOLDER] [--splits 200] [--rule accuracy|default] [--sets NAME …] [--out FILE]
                                  [--parts cascades stopping]

**Cascades.** Each split fits a cascade on half of a set, whole sources (their groups) apart from the other half, which
is scored. Two points of its path are looked at: the one in use, and the cheapest that was certified, which comes
nearest to the stated risk. A split counts as exceeded where the scored half loses more than was stated. AUTSL has six
signers, too few to certify anything by; it is also dealt by video, as where the signers stay those of the fit. All
members cost 1.

**Drawn members** (simulated: four of them, 50 classes, 2,000 videos to fit on, costs 5, 20, 75 and 280) are scored on
20,000 new videos, so that what a cascade loses is all but known. Three others (20 classes) have eight views of each
video, which the cascade asks for one by one; it is scored on 10,000 videos, and its cost is counted in passes.

**Exact stopping.** Each rule is fitted on half of a set, its order chosen there, and its labels compared on the other.
The ceiling is hindsight: the first step from which on the label of the sum so far is the final one. "Any order" is what
proofs would save if each video came with the order that is best for it: no way of choosing members as one goes, that is
never wrong whatever the others say, saves more.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from scipy.stats import binom

import vidfuse as vf
from quality_dumps import Case, dump_cases
from vidfuse.errors import VidfuseWarning

HALF = {"50 %": 0.5}
AT_MOST = {"ucf101": 0.03, "hmdb51": 0.05, "ucf15": 0.1, "autsl": 0.01, "drawn": 0.01}
RULES = {"accuracy": vf.LogLinearPool(weights="accuracy"), "default": vf.LogLinearPool()}
STOPPING = {
    "log-linear, learned": vf.LogLinearPool(),
    "log-linear, floor 0.1": vf.LogLinearPool(floor=0.1),
    "linear, learned": vf.LinearPool(),
    "linear, uniform": vf.LinearPool("uniform"),
    "votes": vf.MajorityVote(),
    "votes, by accuracy^4": vf.MajorityVote("accuracy", power=4),
    "ranks": vf.BordaCount(),
}


@dataclass(frozen=True)
class Trial:
    """What one split showed; shares of videos, and of the cost of all members."""

    all_members: float
    best_member: float
    used: float
    used_cost: float
    cheapest: float
    cheapest_cost: float
    certified: bool


def drawn(seed: int, n: int = 22_000, fitted: int = 2_000, classes: int = 50) -> Case:
    """Draw four members of rising accuracy that share what is hard about a video."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    evidence = 5.5 / np.sqrt(0.2 + rng.gamma(1.0, 1.0, n))
    shared = 0.8 * rng.normal(size=(n, classes))
    members = [
        skill * evidence[:, None] * np.eye(classes)[y] + shared + 1.6 * rng.normal(size=(n, classes))
        for skill in (0.85, 0.92, 0.96, 1.0)
    ]
    log_p = log_softmax(np.stack(members, axis=1), axis=2)
    return Case("drawn", seed, "50 %", log_p[:fitted], y[:fitted], None, log_p[fitted:], y[fitted:])


def drawn_views(seed: int, n: int = 12_000, fitted: int = 2_000, classes: int = 20, views: int = 8) -> Case:
    """Draw three members with views (N, M, V, K): part of what is hard is the member's, part is the view's."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    evidence = 1 / np.sqrt(0.2 + rng.gamma(1.0, 1.0, n))
    members = [
        skill * (evidence[:, None] * np.eye(classes)[y])[:, None]
        + 0.6 * rng.normal(size=(n, 1, classes))
        + 0.9 * rng.normal(size=(n, views, classes))
        for skill in (2.0, 2.6, 2.8)
    ]
    log_p = log_softmax(np.stack(members, axis=1), axis=3)
    return Case("drawn, views", seed, "50 %", log_p[:fitted], y[:fitted], None, log_p[fitted:], y[fitted:])


def cases(folder: Path | None, splits: int, begin: tuple[str, ...]) -> Iterator[Case]:
    """Yield the splits of every set whose name begins so, those of one set in a row."""
    if folder is not None:
        seeds = list(range(1000, 1000 + splits))
        for name, found in groupby(dump_cases(folder, seeds, HALF, begin), key=lambda case: case.name):
            by_video = []
            for case in found:
                yield case
                if name.startswith("autsl"):
                    by_video.append(case.seed)
                    last = case
            for seed in by_video:
                log_p, y = np.concatenate([last.fit, last.test]), np.concatenate([last.labels, last.truth])
                rows = np.random.default_rng(seed).permutation(len(y))
                one, two = rows[: len(y) // 2], rows[len(y) // 2 :]
                yield Case(f"{name}, by video", seed, "50 %", log_p[one], y[one], None, log_p[two], y[two])
    for draw in (drawn, drawn_views):
        for seed in range(splits) if "drawn".startswith(begin) else ():
            yield draw(seed)


def stack_of(log_p: NDArray[np.float64], y: NDArray[np.int64], groups: Any = None) -> vf.LogitStack:
    """Return log-likelihoods (N, M, K), or with views (N, M, V, K), as a stack."""
    members = {f"m{m}": log_p[:, m] for m in range(log_p.shape[1])}
    stack = vf.LogitStack.from_arrays(members, labels=y, kind="log-likelihoods")
    return stack if groups is None else stack.with_groups(groups)


def stated(name: str) -> float:
    """Return the risk that is stated for a set: how many points of accuracy may be lost."""
    return next(value for part, value in AT_MOST.items() if part in name)


def try_cascade(case: Case, rule: Any) -> Trial:
    """Fit a cascade on a case, and score it."""
    costs = [5.0, 20.0, 75.0, 280.0] if case.name == "drawn" else None
    fit, test = stack_of(case.fit, case.labels, case.groups), stack_of(case.test, case.truth)
    cascade = vf.Cascade(rule, costs=costs, at_most=stated(case.name)).fit(fit)
    front = cascade.front(test)
    whole, new = (part if part.ndim == 3 else part.mean(axis=2) for part in (case.fit, case.test))  # views averaged
    best = (whole.argmax(axis=2) == case.labels[:, None]).mean(axis=0).argmax()
    cheapest = cascade.n_certified_ - 1
    return Trial(
        all_members=float(front.accuracy[0]),
        best_member=float((new[:, best].argmax(axis=1) == case.truth).mean()),
        used=float(front.accuracy[front.chosen]),
        used_cost=float(front.cost[front.chosen] / front.cost[0]),
        cheapest=float(front.accuracy[cheapest]),
        cheapest_cost=float(front.cost[cheapest] / front.cost[0]),
        certified=cheapest > 0,
    )


def summary(name: str, trials: list[Trial], case: Case) -> dict[str, Any]:
    """Return what the trials of a set show together."""
    columns = {key: np.array([getattr(trial, key) for trial in trials]) for key in Trial.__dataclass_fields__}
    gain = columns["all_members"] - columns["best_member"]
    allowed = stated(name)

    def point(accuracy: NDArray[np.float64], cost: NDArray[np.float64]) -> dict[str, float]:
        lost = columns["all_members"] - accuracy
        return {
            "exceeded": float((lost > allowed + 1e-12).mean()),
            "lost_points": float(100 * lost.mean()),
            "gain_kept": float(1 - lost.sum() / gain.sum()),
            "cost": float(cost.mean()),
        }

    return {
        "members": case.fit.shape[1],
        "videos_fitted": len(case.labels),
        "groups_fitted": None if case.groups is None else len(set(case.groups.tolist())),
        "videos_scored": len(case.truth),
        "splits": len(trials),
        "at_most": allowed,
        "exceeded_by_chance": float(binom.ppf(0.99, len(trials), 0.05) / len(trials)),
        "certified": float(columns["certified"].mean()),
        "gain_points": float(100 * gain.mean()),
        "used": point(columns["used"], columns["used_cost"]),
        "cheapest": point(columns["cheapest"], columns["cheapest_cost"]),
    }


def stop_exactly(case: Case) -> dict[str, Any]:
    """Return what stopping saves by every rule, and on how many videos the label is another one."""
    fit, test = stack_of(case.fit, case.labels), stack_of(case.test, case.truth)
    found = {}
    for name, rule in STOPPING.items():
        fitted = rule.fit(fit)
        exit_ = vf.early_exit(fitted, fit)
        decided, steps = exit_.run(test), len(exit_.order)
        ceiling = 1 - float(exit_.ceiling(test).mean()) / steps
        any_order = 1 - float(_in_any_order(exit_, test).mean()) / steps
        found[name] = {
            "steps": steps,
            "other_labels": int((decided.labels != fitted.predict(test)).sum()),
            "saved": decided.saved,
            "any_order": any_order,
            "ceiling": ceiling,
        }
    return found


def _in_any_order(exit_: vf.EarlyExit, stack: vf.LogitStack) -> NDArray[np.int64]:
    """Return after how many steps each video's label is certain in the order that is best for it."""
    least = np.full(len(stack), len(exit_.order))
    for count in range(len(exit_.order) - 1, 0, -1):
        for some in combinations(exit_.order, count):
            state = exit_.start(len(stack), stack.n_classes)
            for step in some:
                state.add(step, stack.select(step.members))
            least[state.decide().rows] = count
    return least


def main() -> None:
    """Run the benchmark, and print and write what it finds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dumps", type=Path, help="a folder of published predictions; without it, drawn members alone")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--rule", choices=RULES, default="accuracy", help="what fuses the stages")
    parser.add_argument("--parts", nargs="*", default=["cascades", "stopping"], help="which of the two")
    parser.add_argument("--sets", nargs="*", help="only sets whose name begins so, added to --out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cascades.json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore", VidfuseWarning)
    result: dict[str, Any] = {"cascades": {}, "stopping": {}}
    if options.sets and options.out.exists():
        result = json.loads(options.out.read_text(encoding="utf-8"))
    print(f"{'set':<32} certified  gain   | used: exceeded  lost  kept  cost | cheapest: exceeded  lost  cost")
    begin = tuple(options.sets or [""])
    stopped: list[str] = []
    for name, found in groupby(cases(options.dumps, options.splits, begin), key=lambda case: case.name):
        trials, last = [], None
        for case in found:
            if last is None and "stopping" in options.parts and not name.endswith(("by video", "views")):
                stopped.append(name)
                result["stopping"][name] = stop_exactly(replace(case, test=case.test[:5000], truth=case.truth[:5000]))
            last = case
            if "cascades" not in options.parts:
                break
            trials.append(try_cascade(case, RULES[options.rule]))
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if last is None or not trials:
            continue
        one = summary(name, trials, last)
        result["cascades"][name if options.rule == "accuracy" else f"{name}, {options.rule} rule"] = one
        used, least = one["used"], one["cheapest"]
        print(
            f"{name:<32} {one['certified']:>9.1%} {one['gain_points']:>5.2f}   |"
            f"      {used['exceeded']:>8.1%} {used['lost_points']:>5.2f} {used['gain_kept']:>5.1%} {used['cost']:>5.1%}"
            f" |          {least['exceeded']:>8.1%} {least['lost_points']:>5.2f} {least['cost']:>5.1%}",
            flush=True,
        )
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name in stopped:
        for rule, one in result["stopping"][name].items():
            saved = (
                f"saved {one['saved']:.1%}, in any order at most {one['any_order']:.1%}; hindsight {one['ceiling']:.1%}"
            )
            print(f"{name:<24} {rule:<28} other labels {one['other_labels']}  {saved}")


if __name__ == "__main__":
    main()
