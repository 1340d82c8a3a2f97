"""`vidfuse demo`: eight classifiers of real handwritten digits, fused, compared and reported with the base install."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

import vidfuse as vf
from vidfuse.cli import options

__all__ = ["demo"]

_TRAIN, _VAL = 150, 400  # digits to train on, and to fit the fusion on; the remaining 1,247 are the test


@click.command()
@options.out("runs/digits", "The folder that receives caches, recipe and report.")
@click.option("--seed", default=0, help="Seed of the split and of the classifiers.")
@options.as_json
def demo(out: Path, seed: int) -> None:
    """Fuse eight classifiers of handwritten digits and write a report; needs no torch and no download.

    The data are real: 1,797 digits of 8 x 8 pixels that scikit-learn ships. Eight scikit-learn classifiers learn from
    150 of them, each from its own look at them (the upper half, edges, the spectrum, ...); fusion rules are fitted on
    400 others, and scored on the remaining 1,247.
    """
    from vidfuse.report import combination_table

    with _stage("train the members"):
        val, test, thumbnails = _predictions(seed)
    with _stage("write the caches"):
        val.save(out / f"caches-seed{seed}" / "val")
        test.save(out / f"caches-seed{seed}" / "test")
    with _stage("fit the fusion"):
        pool = vf.LogLinearPool().fit(val)
        recipe = vf.Recipe.from_fitted(pool, val).save(out / "ensemble.json")
    with _stage("search the subsets"):
        best = vf.search_subsets(val, objective="accuracy", rule=vf.LogLinearPool(weights="accuracy"))
    with _stage("compare on the test digits"):
        rules = _rules()
        board = vf.leaderboard(val, test, rules=rules)
        combinations = combination_table(val, test)
    with _stage("write the report"):
        page = vf.write_report(
            val, out / "report.html", test=test, rules=rules, thumbnails=thumbnails, title="vidfuse demo: digits"
        )
    options.save_config(out)
    weights = dict(zip(pool.members_, map(float, pool.weights_), strict=True))
    result = {
        **board.to_dict(),
        "weights": weights,
        "subset": list(best.members),
        "recipe": recipe,
        "report": page,
    }
    listed = "  ".join(f"{name} {weight:.3f}" for name, weight in sorted(weights.items(), key=lambda item: -item[1]))
    text = (
        f"{combinations}\n\n{board.table()}\n\nBest subset on the validation digits: {' + '.join(best.members)}\n"
        f"Learned weights: {listed}\nRecipe: {recipe}\nReport: {page}\n\n{board.headline()}"
    )
    options.emit(result, text)


def _rules() -> dict[str, Any]:
    """Return the compared rules: the leaderboard's own, and the best subset of the validation digits."""
    from vidfuse.report.tables import default_rules

    subset = vf.SubsetPool(vf.LogLinearPool(weights="accuracy"), objective="accuracy")
    return {**default_rules(), "best subset, score-weighted": subset}


def _members(images: Any, seed: int) -> dict[str, tuple[Any, Any]]:
    """Return eight members: an unfitted classifier, and its own look at the digits (N, 8, 8) as features (N, F)."""
    import numpy as np
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    flat = images.reshape(len(images), -1)
    steps = [np.abs(np.diff(images, axis=axis)).reshape(len(images), -1) for axis in (1, 2)]
    profiles = np.concatenate([images.mean(axis=1), images.mean(axis=2)], axis=1)
    coarse = images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(len(images), -1)
    spectrum = np.abs(np.fft.rfft2(images)).reshape(len(images), -1)
    network = MLPClassifier((32,), alpha=0.1, learning_rate_init=0.01, max_iter=1000, random_state=seed)
    return {
        "bayes-profiles": (GaussianNB(var_smoothing=0.02), profiles),
        "forest-edges": (RandomForestClassifier(30, random_state=seed), np.concatenate(steps, axis=1)),
        "lda-coarse": (LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1), coarse),
        "logistic-spectrum": (LogisticRegression(max_iter=2000), spectrum),
        "neighbours-top": (KNeighborsClassifier(5), images[:, :4].reshape(len(images), -1)),
        "network-left": (network, images[:, :, :4].reshape(len(images), -1)),
        "svm-bottom": (SVC(), images[:, 4:].reshape(len(images), -1)),
        "tree-pixels": (DecisionTreeClassifier(min_samples_leaf=2, random_state=seed), flat),
    }


def _predictions(seed: int) -> tuple[Any, Any, dict[str, bytes]]:
    """Train the members; return the validation stack, the test stack and each test digit's picture by its id."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8) / 16
    rows = np.arange(len(labels))
    train, rest = train_test_split(rows, train_size=_TRAIN, stratify=labels, random_state=seed)
    val, test = train_test_split(rest, train_size=_VAL, stratify=labels[rest], random_state=seed)
    kinds: dict[str, str] = {}
    scores: dict[str, dict[str, Any]] = {"val": {}, "test": {}}
    for name, (model, features) in _members(images, seed).items():
        model.fit(features[train], labels[train])
        probabilities = hasattr(model, "predict_proba")
        kinds[name] = "probabilities" if probabilities else "logits"
        predict = model.predict_proba if probabilities else model.decision_function
        for split, chosen in (("val", val), ("test", test)):
            scores[split][name] = np.asarray(predict(features[chosen]), dtype=np.float32)
    stacks = [
        vf.LogitStack.from_arrays(
            scores[split],
            kind=kinds,
            ids=[f"digit-{row:04d}" for row in chosen],
            labels=labels[chosen],
            classes=[str(digit) for digit in range(10)],
        )
        for split, chosen in (("val", val), ("test", test))
    ]
    return stacks[0], stacks[1], {f"digit-{row:04d}": _png(images[row]) for row in test}


def _png(image: Any) -> bytes:
    """Return a gray image of values 0 … 1 as a PNG (W3C PNG specification, sections 5 and 9)."""
    height, width = image.shape
    rows = b"".join(b"\0" + bytes(round(255 * value) for value in row) for row in image)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@contextmanager
def _stage(name: str) -> Iterator[None]:
    """Say on standard error what is being done, and how long it took."""
    click.echo(f"{name} ... ", nl=False, err=True)
    start = time.perf_counter()
    yield
    click.echo(f"{time.perf_counter() - start:.1f} s", err=True)
