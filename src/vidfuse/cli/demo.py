"""`vidfuse demo`: nine classifiers of real handwritten digits, fused, compared and reported with the base install."""

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

_SIZES = (300, 500)  # digits to train and to validate on; the remaining 997 are the test


@click.command()
@options.out("runs/digits", "The folder that receives caches, recipe and report.")
@click.option("--seed", default=0, show_default=True, help="Seed of the split and of the classifiers.")
@options.as_json
@click.pass_context
def demo(context: click.Context, out: Path, seed: int, as_json: bool) -> None:
    """Fuse nine scikit-learn classifiers of handwritten digits, and write a report (no torch needed).

    The data are real: 1,797 digits of 8 x 8 pixels that scikit-learn ships. Each member learns from 300 of them; rules
    are fitted on 500 others, and scored on the remaining 997.
    """
    from vidfuse.report import combination_table

    with _stage("train the members"):
        val, test, thumbnails = _predictions(seed)
    with _stage("write the caches"):
        val.save(out / "caches" / "val")
        test.save(out / "caches" / "test")
    with _stage("fit the fusion"):
        pool = vf.LogLinearPool().fit(val)
        recipe = vf.Recipe.from_fitted(pool, val).save(out / "ensemble.json")
    with _stage("search the subsets"):
        best = vf.search_subsets(val, objective="accuracy", pool=vf.LogLinearPool(weights="accuracy"))
    with _stage("compare on the test digits"):
        rules = _rules()
        board = vf.leaderboard(val, test, rules=rules)
        combinations = combination_table(test, val)
    with _stage("write the report"):
        page = vf.write_report(
            val, out / "report.html", test=test, rules=rules, thumbnails=thumbnails, title="vidfuse demo: digits"
        )
    options.save_config(context, out)
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
    options.emit(result, text, as_json)


def _rules() -> dict[str, Any]:
    """Return the compared rules: the leaderboard's own, and the best subset of the validation digits."""
    from vidfuse.report.tables import default_rules

    subset = vf.SubsetPool(vf.LogLinearPool(weights="accuracy"), objective="accuracy")
    return {**default_rules(), "best subset, score-weighted": subset}


def _classifiers(seed: int) -> dict[str, Any]:
    """Return unfitted classifiers of nine different kinds, most of them weak on so few digits."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
    from sklearn.neural_network import MLPClassifier
    from sklearn.tree import DecisionTreeClassifier

    return {
        "bayes": GaussianNB(var_smoothing=1e-2),
        "centroid": NearestCentroid(),
        "extra-trees": ExtraTreesClassifier(n_estimators=30, max_depth=8, random_state=seed),
        "forest": RandomForestClassifier(n_estimators=30, max_depth=6, random_state=seed),
        "lda": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
        "logistic": LogisticRegression(C=0.01, max_iter=500),
        "neighbours": KNeighborsClassifier(n_neighbors=5),
        "network": MLPClassifier(hidden_layer_sizes=(24,), max_iter=120, random_state=seed),
        "tree": DecisionTreeClassifier(max_depth=8, random_state=seed),
    }


def _predictions(seed: int) -> tuple[Any, Any, dict[str, bytes]]:
    """Train the members; return the validation stack, the test stack and each test digit's picture by its id."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    rows = np.arange(len(labels))
    train, rest = train_test_split(rows, train_size=_SIZES[0], stratify=labels, random_state=seed)
    val, test = train_test_split(rest, train_size=_SIZES[1], stratify=labels[rest], random_state=seed)
    scores: dict[str, dict[str, Any]] = {"val": {}, "test": {}}
    for name, model in _classifiers(seed).items():
        model.fit(images[train] / 16, labels[train])
        for split, chosen in (("val", val), ("test", test)):
            scores[split][name] = np.asarray(model.predict_proba(images[chosen] / 16), dtype=np.float32)
    stacks = [
        vf.LogitStack.from_arrays(
            scores[split],
            kind="probabilities",
            ids=[f"digit-{row:04d}" for row in chosen],
            labels=labels[chosen],
            classes=[str(digit) for digit in range(10)],
        )
        for split, chosen in (("val", val), ("test", test))
    ]
    return stacks[0], stacks[1], {f"digit-{row:04d}": _png(images[row].reshape(8, 8)) for row in test}


def _png(image: Any) -> bytes:
    """Return a gray image of values 0 … 16 as a PNG (W3C PNG specification, sections 5 and 9)."""
    height, width = image.shape
    rows = b"".join(b"\0" + bytes(int(value * 255 / 16) for value in row) for row in image)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@contextmanager
def _stage(name: str) -> Iterator[None]:
    """Say on standard error what is being done, and how long it took."""
    click.echo(f"{name} ... ", nl=False, err=True)
    start = time.perf_counter()
    yield
    click.echo(f"{time.perf_counter() - start:.1f} s", err=True)
