"""Ship an ensemble: what is handed over, and how the other side knows that it works as it did here.

    python examples/ship_ensemble.py pack FOLDER      # here: fit, and write recipe and known answers
    python examples/ship_ensemble.py check FOLDER     # there: load, and compare

The other side needs the base install only. Simulated members stand for networks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import vidfuse as vf

KNOWN = 10  # videos whose answers travel with the recipe


def pack(folder: Path) -> None:
    """Fit an ensemble of three members, and write all that the other side needs."""
    rng = np.random.default_rng(0)
    labels = rng.integers(6, size=600)
    skill = {"slowfast": 1.5, "swin": 1.8, "x3d": 1.2}
    scores = {name: rng.normal(size=(600, 6)) + s * np.eye(6)[labels] for name, s in skill.items()}
    stack = vf.LogitStack.from_arrays(scores, labels=labels, ids=[f"video{row:03d}" for row in range(600)])
    val, test = stack[:400], stack[400:]

    rule = vf.SubsetPool(vf.LogLinearPool(), max_members=2, objective="nll")  # the third need not be computed any more
    pool = rule.fit(val)
    print(vf.leaderboard(val, test, rules={"shipped": rule}))

    recipe = vf.Recipe.from_fitted(pool, val)
    recipe.save(folder / "ensemble.json")
    some = {name: scores[name][400 : 400 + KNOWN] for name in recipe.needed_members()}
    np.savez(folder / "known.npz", answers=recipe.predict_proba(some), **some)


def check(folder: Path) -> float:
    """Load the recipe, and return how far its answers are from the known ones; refuses where they differ."""
    recipe = vf.load_recipe(folder / "ensemble.json")
    print(recipe)
    known = np.load(folder / "known.npz")
    answers = recipe.predict_proba({name: known[name] for name in recipe.needed_members()})
    distance = float(np.abs(answers - known["answers"]).max())
    if distance > 1e-6:
        raise SystemExit(f"the ensemble answers otherwise than where it was packed: by up to {distance:.2g}")
    print(f"{len(answers)} known answers agree within {distance:.1g}")
    return distance


if __name__ == "__main__":
    task, chosen = {"pack": pack, "check": check}[sys.argv[1]], Path(sys.argv[2])
    chosen.mkdir(parents=True, exist_ok=True)
    task(chosen)
