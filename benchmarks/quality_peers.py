"""Other packages' rules on the cases of `fusion_quality.py`: arrays in, predictions out.

    PYTHON benchmarks/quality_peers.py PEER FOLDER SECONDS

FOLDER holds one `.npz` a case: `fit` (M, N, K) and `test` (M, T, K) probabilities, and `labels` (N,). For each one the
worker writes `PEER-CASE`, which holds probabilities (T, K) under every rule's name. It begins no case after so many
seconds. PYTHON needs NumPy and the package alone.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Predict = Callable[[Array, Array, Array], Array]
"""From probabilities (M, N, K), labels (N,), and probabilities of other videos (M, T, K) to those of a rule (T, K)."""


def _log_loss(labels: Array, p: Array) -> float:
    return float(-np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-15)).mean())


def _autogluon(fit: Array, labels: Array, test: Array) -> Array:
    """Select greedily, 25 rounds: what `autogluon.tabular` ends with."""
    from autogluon.core.metrics import log_loss
    from autogluon.core.models.greedy_ensemble.ensemble_selection import EnsembleSelection

    binary = fit.shape[2] == 2
    rng = np.random.RandomState(0)
    selection = EnsembleSelection(25, "binary" if binary else "multiclass", log_loss, random_state=rng)
    selection.fit([own[:, 1] if binary else own for own in fit], labels)
    return np.einsum("mnk,m->nk", test, selection.weights_)


def _phem(fit: Array, labels: Array, test: Array) -> Array:
    """Select greedily, 50 iterations, and keep the best: its published package has no CMA-ES."""
    from phem.base_utils.metrics import make_metric
    from phem.methods.ensemble_selection import EnsembleSelection

    metric = make_metric(
        _log_loss, metric_name="log_loss", maximize=False, classification=True, always_transform_conf_to_pred=False,
        optimum_value=0, requires_confidences=True,
    )  # fmt: skip
    selection = EnsembleSelection([], 50, metric, n_jobs=1, random_state=0)
    selection.ensemble_fit(list(fit), labels)
    return np.einsum("mnk,m->nk", test, np.asarray(selection.weights_))


def _cma(fit: Array, labels: Array, test: Array) -> Array:
    """Evolve the weights of an average of probabilities, from equal ones, with 50 evaluations a member.

    Purucker and Beel 2023, "CMA-ES for post hoc ensembling in AutoML", section 3: softmax weights against overfitting.
    """
    import cma

    true = fit[:, np.arange(len(labels)), labels]

    def weights(x: Array) -> Array:
        w = np.exp(x - np.max(x))
        return w / w.sum()

    def loss(x: Array) -> float:
        return float(-np.log(np.maximum(weights(x) @ true, 1e-15)).mean())

    options = {"maxfevals": 50 * len(fit), "seed": 1, "verbose": -9}
    found = cma.CMAEvolutionStrategy(np.full(len(fit), 1 / len(fit)), 0.2, options).optimize(loss).result.xbest
    return np.einsum("mnk,m->nk", test, weights(found))


def _hillclimbers(fit: Array, labels: Array, test: Array) -> Array:
    """Climb from the best member, weights in hundredths: the classes' columns one below the other, as it takes one."""
    import pandas as pd
    from hillclimbers import climb_hill, partial

    members, n, classes = fit.shape
    truth = np.repeat(labels, classes)
    names = [f"m{m:02d}" for m in range(members)]

    def log_loss(y: Any, p: Any) -> float:
        return _log_loss(labels, np.asarray(p).reshape(n, classes))

    with contextlib.redirect_stdout(io.StringIO()):
        found = climb_hill(
            pd.DataFrame({"y": truth}),
            pd.DataFrame(dict(zip(names, fit.reshape(members, -1), strict=True))),
            pd.DataFrame(dict(zip(names, test.reshape(members, -1), strict=True))),
            target="y",
            objective="minimize",
            eval_metric=partial(log_loss),
            plot_hill=False,
        )
    return np.asarray(found).reshape(test.shape[1:])


def _calibrated(method: str, each: bool) -> Predict:
    """Calibrate the average of the probabilities, or each member before, with one of TabArena's calibrators."""

    def predict(fit: Array, labels: Array, test: Array) -> Array:
        import torch
        from probmetrics.calibrators import get_calibrator

        torch.set_num_threads(1)

        def calibrated(own: Array, other: Array) -> Array:
            own, other = (np.maximum(p, 1e-30) for p in (own, other))
            calibrator = get_calibrator(method)
            with contextlib.redirect_stdout(io.StringIO()):
                return np.asarray(calibrator.fit(own, labels).predict_proba(other))

        if each:
            return np.mean([calibrated(*pair) for pair in zip(fit, test, strict=True)], axis=0)
        return calibrated(fit.mean(axis=0), test.mean(axis=0))

    return predict


def _other_vidfuse(fit: Array, labels: Array, test: Array) -> Array:
    """Fit the default of whichever version of vidfuse that Python has."""
    import warnings

    import vidfuse as vf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log_fit, log_test = (np.log(np.maximum(p, 1e-44)).swapaxes(0, 1) for p in (fit, test))
        return np.asarray(vf.LogLinearPool().fit(log_fit, labels).predict_proba(log_test))


PEERS: dict[str, dict[str, Predict]] = {
    "autogluon": {"AutoGluon, 25 rounds": _autogluon},
    "phem": {"phem's selection, 50 iterations": _phem},
    "cma": {"CMA-ES, softmax weights": _cma},
    "hillclimbers": {"hillclimbers": _hillclimbers},
    "probmetrics": {
        "average, then probmetrics' ts-mix": _calibrated("ts-mix", each=False),
        "average, then probmetrics' logistic": _calibrated("logistic", each=False),
        "members by probmetrics' ts-mix, then average": _calibrated("ts-mix", each=True),
    },
    "vidfuse": {"vidfuse of another version": _other_vidfuse},
}


def main() -> None:
    """Write the predictions for every case in the folder, and print how many seconds each rule took."""
    peer, folder, limit = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    spent = dict.fromkeys(PEERS[peer], 0.0)
    for case in sorted(folder.glob("case-*.npz")):
        if sum(spent.values()) > limit:
            break
        data, result = np.load(case), {}
        for name, predict in PEERS[peer].items():
            start = time.perf_counter()
            result[name] = predict(data["fit"], data["labels"], data["test"])
            spent[name] += time.perf_counter() - start
        np.savez(folder / f"{peer}-{case.name}", **result)
    print(*(f"{name}: {seconds:.0f} s" for name, seconds in spent.items()), sep="\n")


if __name__ == "__main__":
    main()
