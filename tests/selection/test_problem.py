"""The best single member: by the objective, then by the loss, then by the name."""

from __future__ import annotations

import numpy as np
import pytest
from selection_cases import ensemble, stack_of

import vidfuse as vf
from vidfuse.errors import InputError
from vidfuse.metrics.outcomes import Outcomes
from vidfuse.selection.problem import best_single


def test_the_best_single_is_the_most_accurate_then_the_surest_then_the_first():
    z, y = ensemble(0, n=80, m=3, signal=3.0)
    hits = (z.argmax(axis=-1) == y[:, None]).mean(axis=0)
    assert len(set(hits)) == 3
    assert best_single(stack_of(z, y)) == f"m{hits.argmax()}"
    best = z[:, hits.argmax()]
    same_hits = {"flat": 0.3 * best, "sharp": best, "third": z[:, hits.argmin()]}
    assert best_single(vf.LogitStack.from_arrays(same_hits, labels=y)) == "sharp"
    equal = {"b": best, "a": best}
    assert best_single(vf.LogitStack.from_arrays(equal, labels=y)) == "a"


def test_the_objective_decides():
    z, y = ensemble(0, n=80, m=1, signal=3.0)
    sure = {"sharp": 30 * z[:, 0], "flat": z[:, 0]}
    stack = vf.LogitStack.from_arrays(sure, labels=y)
    losses = [vf.metrics.nll(y, stack.select([name]).log_likelihoods()[:, 0]) for name in stack.members]
    assert best_single(stack, "nll") == stack.members[int(np.argmin(losses))]
    assert best_single(stack, lambda labels, p: -vf.metrics.nll(labels, p)) == best_single(stack, "nll")
    assert best_single(stack, lambda labels, p: vf.metrics.nll(labels, p)) != best_single(stack, "nll")


@pytest.mark.parametrize("objective", ["accuracy", "mean-class-accuracy", "macro-f1", "nll"])
def test_the_best_single_of_many_videos_is_that_of_its_metric(objective):
    z, y = ensemble(5, n=3000, m=4, k=30, signal=2.0)
    stack = stack_of(z, y)
    metric, sign = vf.metrics.resolve_objective(objective), -1 if objective == "nll" else 1
    values = [sign * metric(y, stack.select([name]).log_likelihoods()[:, 0]) for name in stack.members]
    assert best_single(stack, objective) == stack.members[int(np.argmax(values))]


@pytest.mark.parametrize("objective", ["accuracy", "macro-f1", "nll"])
def test_outcomes_that_are_at_hand_stand_for_scores(objective):
    z, y = ensemble(5, n=60, m=3, k=4)
    stack = stack_of(z, y)
    turned = {f"m{i}": Outcomes.of(y, stack.select([f"m{2 - i}"]).log_likelihoods()[:, 0]) for i in range(3)}
    own, other = int(best_single(stack, objective)[1]), int(best_single(stack, objective, turned)[1])
    assert own + other == 2 and own != other


@pytest.mark.parametrize("objective", ["accuracy", "mean-class-accuracy", "nll"])
def test_a_member_of_three_easy_videos_is_not_the_best(objective):
    z, y = ensemble(2, n=60, m=2, signal=2.0)
    ids = [f"v{i}" for i in range(60)]
    easy = np.flatnonzero(z[:, 1].argmax(axis=1) == y)[:3]
    stack = vf.LogitStack.from_arrays(
        {"whole": z[:, 0], "few": 9 * z[easy, 1]},
        ids={"whole": ids, "few": [ids[i] for i in easy]},
        labels=dict(zip(ids, y.tolist(), strict=True)),
        join="outer",
    )
    assert best_single(stack, objective) == "whole"


def test_a_member_that_lacks_one_video_can_be_the_best():
    z, y = ensemble(2, n=60, m=1, signal=3.0)
    ids = [f"v{i}" for i in range(60)]
    weak = np.random.default_rng(0).normal(size=z[:, 0].shape).astype(np.float32)
    stack = vf.LogitStack.from_arrays(
        {"weak": weak, "good": z[1:, 0]},
        ids={"weak": ids, "good": ids[1:]},
        labels=dict(zip(ids, y.tolist(), strict=True)),
        join="outer",
    )
    assert best_single(stack) == "good"


def test_labels_are_needed():
    with pytest.raises(InputError, match="needs labels"):
        best_single(vf.LogitStack.from_arrays({"a": np.zeros((3, 2))}))
