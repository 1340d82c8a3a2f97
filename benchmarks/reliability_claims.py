"""Do the statements hold: coverage of sets, error among the answered, false and true alarms, on published predictions?

    python benchmarks/reliability_claims.py --dumps FOLDER [--splits 20] [--parts alarms statements]
                                           [--rule default|shared] [--out FILE]
    python benchmarks/reliability_claims.py --demo RUN [--out FILE]

FOLDER is that of `fusion_quality.py`. Each set is split `--splits` times, whole sources apart: half is fitted and
recorded, half is scored. MAPIE (1.x, if this Python has it: `pip install mapie` into a copy of the environment) makes
sets for the best single member on the same halves. The rule is the default one, or the log-linear pool with weights
shared by the classes, which is fitted in a moment. --out is written after each split of all sets: a run that is stopped
has measured the splits that it says.

Undisturbed streams are the other half in a random order; disturbed ones turn bad in the middle. RUN is a seed's
folder of `examples/vipriors_kinetics.py`: two of its networks see its validation videos as they are, then darker.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vidfuse as vf
from quality_dumps import SMALLEST, _log_likelihoods, family
from quality_splits import groups as sources_of
from quality_splits import split
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.metrics import clopper_pearson

try:
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin
except ImportError:
    SplitConformalClassifier = None

COVERAGES, ERRORS, FIRST_SEED = (0.9, 0.95), (0.05, 0.1, 0.2), 1000
SCORES = ("least-ambiguous", "adaptive", "regularised")
DEMO = {"x3d": "x3d_tiny", "r2plus1d": "r2plus1d_tiny"}
RULES = {"default": vf.LogLinearPool(), "shared": vf.LogLinearPool(per_class=False)}
FEW = 2  # splits on which the other scores are tried


def main() -> None:
    """Measure what is asked for, print it, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dumps", type=Path, help="folder of published predictions")
    parser.add_argument("--parts", nargs="*", default=["alarms", "statements"], help="of what is measured on dumps")
    parser.add_argument("--demo", type=Path, help="a seed's folder of examples/vipriors_kinetics.py, beside its data")
    parser.add_argument("--splits", type=int, default=20, help="of each set")
    parser.add_argument("--rule", choices=RULES, default="default", help="for sets and abstaining: what is recorded")
    parser.add_argument("--minutes", type=float, default=1e9, help="for sets and abstaining: begin no split after them")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", VidfuseWarning)
    result = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    sets = dict(_stacks(options.dumps)) if options.dumps else {}
    if sets and "alarms" in options.parts:
        result["alarms"] = _alarms(sets, options.splits)
    if sets and "statements" in options.parts:
        for rows in _statements(sets, RULES[options.rule], options.splits, options.minutes):
            result[f"sets and abstaining, {options.rule} rule"] = rows
            _write(result, options.out)
    if options.demo:
        result["brightness"] = _brightness(options.demo)
    _write(result, options.out)


def _write(result: dict[str, Any], out: Path | None) -> None:
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")


def _stacks(folder: Path) -> Iterator[tuple[str, vf.LogitStack]]:
    """Yield each set that has videos of twenty sources at least: fewer hold no statement."""
    for path in sorted(folder.glob("*.npz")):
        stored = np.load(path)
        ids = stored["ids"].astype(str)
        groups = sources_of(path.stem, ids.tolist())
        if len(ids) < SMALLEST or len(set(groups)) < 40:
            print(f"left out {path.stem}: {len(ids)} videos of {len(set(groups))} sources")
            continue
        log_p = _log_likelihoods(stored["scores"], stored["kinds"].tolist()).astype(np.float32)
        members = {name: log_p[:, place] for place, name in enumerate(stored["members"].tolist())}
        labels = stored["labels"].astype(np.int64)
        stack = vf.LogitStack.from_arrays(members, labels=labels, ids=ids, kind="log-likelihoods")
        yield path.stem, stack.with_groups(groups)


# ---------------------------------------------------------------------------------------- sets and abstaining


def _statements(
    sets: dict[str, vf.LogitStack], rule: Any, n_splits: int, minutes: float
) -> Iterator[list[dict[str, Any]]]:
    """Yield, after each split, a row for each set and statement: what was stated, and what came so far."""
    found: dict[tuple[str, str, str], list[tuple[float, ...]]] = defaultdict(list)
    begun, done = time.monotonic(), 0
    for seed in range(FIRST_SEED, FIRST_SEED + n_splits):
        if time.monotonic() - begun > 60 * minutes:
            break
        done += 1
        for name, stack in sets.items():
            fit, scored = (stack[rows] for rows in split(name, stack.ids, stack.labels, len(stack) // 2, seed))
            made = vf.Recipe.from_fitted(rule.fit(fit), fit)
            _, group, counts = np.unique(scored.groups, return_inverse=True, return_counts=True)
            weight = 1 / counts[group]
            log_p = made.predict_log_proba(scored)
            wrong = log_p.argmax(axis=1) != scored.labels
            for score in SCORES if seed < FIRST_SEED + FEW else SCORES[:1]:
                record = made.with_record(fit, conformity=score).record
                for coverage in COVERAGES:
                    key = (name, f"sets, {coverage:g}", f"vidfuse, {score}")
                    found[key].append(_of_sets(record.prediction_sets(coverage).of(log_p), scored.labels, weight))
                if score == "least-ambiguous":
                    for error in ERRORS:
                        found[name, f"abstain, {error:g}", "vidfuse"] += _of_abstaining(
                            record, error, log_p, wrong, weight
                        )
            for coverage in COVERAGES if SplitConformalClassifier else ():
                for score in ("lac", "aps"):
                    inside = _mapie(fit, scored, coverage, score)
                    found[name, f"sets, {coverage:g}", f"MAPIE {score}, best member"].append(
                        _of_sets(inside, scored.labels, weight)
                    )
        print(f"\nafter {done} splits of each set", flush=True)
        yield _table_of_statements(found, done)


def _of_sets(inside: NDArray[np.bool_], labels: NDArray[np.int64], weight: NDArray[np.float64]) -> tuple[float, ...]:
    """Return coverage with groups alike, coverage by video, mean size, and the share of empty sets."""
    held = inside[np.arange(len(labels)), labels]
    sizes = inside.sum(axis=1)
    return float(np.average(held, weights=weight)), float(held.mean()), float(sizes.mean()), float((sizes == 0).mean())


def _of_abstaining(
    record: Any, error: float, log_p: NDArray[np.float64], wrong: NDArray[np.bool_], weight: NDArray[np.float64]
) -> list[tuple[float, ...]]:
    """Return the error among the answered with groups alike, by video, and the share that is answered."""
    try:
        answered = record.abstention(error).answered(log_p)
    except InputError:
        return []
    if not answered.any():
        return [(0.0, 0.0, 0.0)]
    risk = np.average(wrong[answered], weights=weight[answered])
    return [(float(risk), float(wrong[answered].mean()), float(answered.mean()))]


if SplitConformalClassifier:

    class _Given(ClassifierMixin, BaseEstimator):
        """A classifier that has predicted already: a video is its row."""

        def __init__(self, probabilities: Any = None) -> None:
            self.probabilities = probabilities
            self.classes_ = np.arange(probabilities.shape[1])

        def fit(self, X: Any, y: Any) -> Any:
            return self

        def predict_proba(self, X: Any) -> Any:
            return self.probabilities[np.asarray(X)[:, 0]]

        def predict(self, X: Any) -> Any:
            return self.predict_proba(X).argmax(axis=1)

        def __sklearn_is_fitted__(self) -> bool:
            return True


def _mapie(fit: vf.LogitStack, scored: vf.LogitStack, coverage: float, score: str) -> NDArray[np.bool_]:
    """Return MAPIE's sets (N, K) of the member that is best on the fit's videos, conformalised there."""
    hits = {name: (fit.scores(name).argmax(axis=1) == fit.labels).mean() for name in fit.members}
    best = max(hits, key=lambda name: hits[name])
    both = [np.exp(stack.select([best]).log_likelihoods()[:, 0].astype(np.float64)) for stack in (fit, scored)]
    given = np.concatenate([p / p.sum(axis=1, keepdims=True) for p in both])
    rows = np.arange(len(given))[:, None]
    made = SplitConformalClassifier(_Given(given), confidence_level=coverage, conformity_score=score, random_state=0)
    made.conformalize(rows[: len(fit)], fit.labels)
    return np.asarray(made.predict_set(rows[len(fit) :])[1][:, :, 0], dtype=bool)


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)


def _table_of_statements(
    found: dict[tuple[str, str, str], list[tuple[float, ...]]], n_splits: int
) -> list[dict[str, Any]]:
    rows = []
    print(f"\n{'set':<24}{'stated':<15}{'by':<26}{'held (groups alike)':>22}{'by video':>10}{'size/answered':>15}")
    for (name, stated, by), values in sorted(found.items()):
        part = np.array(values) if values else np.full((1, 3), np.nan)
        mean, error = part.mean(axis=0), part.std(axis=0) / np.sqrt(len(part))
        row = {"set": name, "stated": stated, "by": by, "splits": len(values), "held": mean[0], "s.e.": error[0]}
        row |= {"by video": mean[1], "size or share answered": mean[2]}
        if stated.startswith("sets"):
            row["empty"] = mean[3]
            said = f"{mean[0]:.4f} ± {error[0]:.4f}"
        else:
            limit = float(stated.split()[1])
            row |= {"asked": n_splits, "exceeded": int((part[:, 0] > limit).sum())}
            said = f"{mean[0]:.4f}, > in {row['exceeded']}/{len(values)}"
        rows.append({key: value if isinstance(value, (str, int)) else _rounded(value) for key, value in row.items()})
        print(f"{name:<24}{stated:<15}{by:<26}{said:>22}{mean[1]:>10.4f}{mean[2]:>15.3f}")
    for stated in sorted({row["stated"] for row in rows}):
        for by in sorted({row["by"] for row in rows if row["stated"] == stated}):
            part = [row for row in rows if (row["stated"], row["by"]) == (stated, by)]
            asked = sum(row.get("asked", 0) for row in part)
            part = [row for row in part if row["splits"]]
            if not part:
                continue
            total = sum(row["splits"] for row in part)
            means = {key: np.average([row[key] for row in part], weights=[row["splits"] for row in part])
                     for key in ("held", "by video", "size or share answered")}  # fmt: skip
            each = np.concatenate([np.array(v)[:, 0] for (_, s, b), v in found.items() if (s, b) == (stated, by) and v])
            said = f"{means['held']:.4f} ± {each.std(ddof=1) / np.sqrt(total):.4f}"
            summary = {"set": "all", "stated": stated, "by": by, "splits": total}
            summary |= {key: round(float(value), 5) for key, value in means.items()}
            if stated.startswith("abstain"):
                exceeded = sum(row["exceeded"] for row in part)
                low, high = clopper_pearson(exceeded, asked)
                summary |= {"exceeded": exceeded, "asked": asked, "interval": [round(low, 4), round(high, 4)]}
                said += f", > in {exceeded}/{asked}"
            rows.append(summary)
            print(f"{'all':<24}{stated:<15}{by:<26}{said:>22}{means['by video']:>10.4f}"
                  f"{means['size or share answered']:>15.3f}")  # fmt: skip
    return rows


# ---------------------------------------------------------------------------------------------------- alarms


def _recorded(fit: vf.LogitStack) -> vf.Recipe:
    """Return a recipe with a record; the rule does not matter, as no statistic depends on it."""
    return vf.Recipe.from_fitted(vf.LogLinearPool(weights="uniform").fit(fit), fit).with_record(fit)


def _alarms(sets: dict[str, vf.LogitStack], n_splits: int) -> list[dict[str, Any]]:
    """Return how often undisturbed and disturbed streams alarm, and after how many videos."""
    found: dict[str, list[tuple[str, int | None, str]]] = defaultdict(list)
    for name, stack in sets.items():
        for seed in range(FIRST_SEED, FIRST_SEED + n_splits):
            rng = np.random.default_rng(seed)
            sources = np.unique(stack.groups)
            half = np.isin(stack.groups, rng.permutation(sources)[: len(sources) // 2])
            recipe = _recorded(stack[half])
            stream = stack[~half]
            kept = np.isin(
                stream.groups, rng.permutation(np.unique(stream.groups))[: len(np.unique(stream.groups)) // 2]
            )
            good, bad = stream[kept], stream[~kept]
            found["undisturbed"].append((name, *_first(vf.watch(recipe, [good, bad], seed=seed), 0)))
            if len(np.unique(bad.groups)) < 60:
                continue  # of 53 sources in all, too few are left to disturb
            for what, change in _disturbances(rng).items():
                found[what].append(
                    (name, *_first(vf.watch(recipe, [good, change(bad)], seed=seed), len(set(good.groups))))
                )
    for pair, recipe, changed in _other_checkpoints(sets):
        found[pair.partition(": ")[2]].append((pair.partition(": ")[0], *_first(vf.watch(recipe, changed), 0)))
    rows = []
    print(f"\n{'stream':<24}{'runs':>6}{'alarms':>8}{'share':>8}{'95 % interval':>18}{'videos until, median':>22}")
    for what, runs in found.items():
        after = [t for _, t, _ in runs if t is not None]
        low, high = clopper_pearson(len(after), len(runs))
        by = {
            one: sum(t is not None for n, t, _ in runs if family(n) == one) for one in {family(n) for n, _, _ in runs}
        }
        median = float(np.median(after)) if after else None
        row = {"stream": what, "runs": len(runs), "alarms": len(after), "interval": [round(low, 4), round(high, 4)]}
        rows.append({**row, "videos until, median": median, "alarms by family": dict(sorted(by.items()))})
        print(f"{what:<24}{len(runs):>6}{len(after):>8}{len(after) / len(runs):>8.3f}"
              f"{f'{low:.3f}-{high:.3f}':>18}{median if median is not None else '-':>22}")  # fmt: skip
    return rows


def _first(seen: Any, good: int) -> tuple[int | None, str]:
    """Return how many videos after the first `good` ones the first alarm came, and of which statistic."""
    late = [one for one in seen.alarms if one.alarm > good]
    return (late[0].alarm - good, late[0].name) if late else (None, "")


def _disturbances(rng: np.random.Generator) -> dict[str, Callable[[vf.LogitStack], vf.LogitStack]]:
    def scaled(stack: vf.LogitStack) -> vf.LogitStack:
        one = str(rng.choice(stack.members))
        return _with(stack, {one: 0.2 * stack.scores(one)})

    def few_classes(stack: vf.LogitStack) -> vf.LogitStack:
        """Draw 150 videos, with replacement, from those of five classes: of so few there are not enough sources."""
        classes = rng.permutation(np.unique(stack.labels))[:5]
        rows = rng.choice(np.flatnonzero(np.isin(stack.labels, classes)), 150)
        scores = {name: stack.scores(name)[rows] for name in stack.members}
        ids = [f"drawn {n}" for n in range(len(rows))]
        return vf.LogitStack.from_arrays(scores, ids=ids).with_groups(ids)

    def swapped(stack: vf.LogitStack) -> vf.LogitStack:
        a, b = map(str, rng.permutation(stack.members)[:2])
        return _with(stack, {a: stack.scores(b), b: stack.scores(a)})

    return {"one member's logits x 0.2": scaled, "5 classes only": few_classes, "two members swapped": swapped}


def _with(stack: vf.LogitStack, changed: dict[str, NDArray[Any]]) -> vf.LogitStack:
    scores = {name: changed.get(name, stack.scores(name)) for name in stack.members}
    return vf.LogitStack.from_arrays(scores, ids=stack.ids).with_groups(stack.groups)


def _other_checkpoints(
    sets: dict[str, vf.LogitStack],
) -> Iterator[tuple[str, vf.Recipe, vf.LogitStack]]:
    """Yield streams in which one member comes from a checkpoint that was trained on other videos of the same data.

    All members: the networks of another split on its test videos, which are other videos of the same data. One member:
    the three splits of HMDB51 share 104 to 155 test videos; those of UCF101 none, so that two other models of the same
    kind (I-frames for RGB, flow for flow) take a member's place there.
    """
    for data, first, second in itertools.product(("dmcnet_hmdb51", "dmcnet_ucf101", "seqvlad_ucf101"), "123", "123"):
        ours, theirs = (sets.get(f"{data}_split{k}") for k in (first, second))
        if ours is not None and theirs is not None and first != second:
            yield f"{data}: all members' checkpoints", _recorded(ours), theirs
    for first in "123":
        for second in sorted({*"123"} - {first}):
            ours, theirs = (sets.get(f"dmcnet_hmdb51_split{k}") for k in (first, second))
            if ours is None or theirs is None:
                continue
            yield from _replaced(f"dmcnet_hmdb51_split{first}", ours, theirs, {name: name for name in ours.members})
        ours, theirs = sets.get(f"dmcnet_ucf101_split{first}"), sets.get(f"seqvlad_ucf101_split{first}")
        if ours is not None and theirs is not None:
            pairs = {"iframe": "rgb", "flow": "flow"}
            yield from _replaced(f"dmcnet_ucf101_split{first}", ours, theirs, pairs)


def _replaced(
    name: str, ours: vf.LogitStack, theirs: vf.LogitStack, pairs: dict[str, str]
) -> Iterator[tuple[str, vf.Recipe, vf.LogitStack]]:
    row_of = {video: row for row, video in enumerate(theirs.ids.tolist())}
    both = np.array([video in row_of for video in ours.ids.tolist()])
    if both.all():  # the same videos: half of them make the record
        sources = np.random.default_rng(FIRST_SEED).permutation(np.unique(ours.groups))
        both = ~np.isin(ours.groups, sources[: len(sources) // 2])
    recipe, stream = _recorded(ours[~np.isin(ours.groups, ours.groups[both])]), ours[both]
    rows = [row_of[video] for video in stream.ids.tolist()]
    for member, other in pairs.items():
        if member in ours.members and other in theirs.members:
            yield f"{name}: one member's checkpoint", recipe, _with(stream, {member: theirs.scores(other)[rows]})


# ------------------------------------------------------------------------------------------------ brightness


def _brightness(run: Path, factors: tuple[float, ...] = (0.8, 0.6, 0.4)) -> list[dict[str, Any]]:
    """Return when darker videos are found: a third of the videos recorded, a third as they are, a third darker."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from motion.dataset import encode
    from vidfuse.video.decode import decode, probe

    data = run.parent / "data" / "Kinetics400ViPriors"
    streams = {}
    with tempfile.TemporaryDirectory() as folder:
        for factor in (1.0, *factors):
            root = Path(folder) / f"x{factor}" / data.name
            shutil.copytree(data / "annotations", root / "annotations")
            (root / "val").mkdir()
            for path in sorted((data / "val").glob("*.mp4")):
                try:
                    frames = decode(path, np.arange(probe(path).n_frames))
                except vf.errors.InputError:  # the demo has a video that nothing can read
                    continue
                changed = encode(np.rint(factor * frames).astype(np.uint8), 20)
                (root / "val" / path.name).write_bytes(changed)
            for member, network in DEMO.items():
                words = ["extract", network, root, "--split", "val", "--layout", "vipriors", "--clips", "2"]
                words += ["--checkpoint", run / "train" / member / "last.pt", "--workers", "0"]
                words += ["--out", root.parent / "caches" / member]
                subprocess.run([sys.executable, "-m", "vidfuse", *words], check=True, capture_output=True)
            stack = vf.load_stack(root.parent / "caches", views="mean-log", partial=True)
            scores = {name: np.array(stack.scores(name)) for name in stack.members}
            streams[factor] = vf.LogitStack.from_arrays(scores, labels=stack.labels, ids=stack.ids)
    order = np.random.default_rng(FIRST_SEED).permutation(len(streams[1.0]))
    fit, good, late = (np.sort(part) for part in np.array_split(order, 3))
    recipe, rows = _recorded(streams[1.0][fit]), []
    print(f"\n{'brightness':<14}{'recorded':>10}{'as they are':>13}{'alarm after':>13}  first by")
    for factor, stack in streams.items():
        after, by = _first(vf.watch(recipe, [streams[1.0][good], stack[late]]), len(good))
        sizes = {"recorded": len(fit), "as they are": len(good), "darker": len(late)}
        rows.append({"brightness": factor, **sizes, "alarm after": after, "first by": by})
        print(f"x {factor:<12}{len(fit):>10}{len(good):>13}{after if after else 'none':>13}  {by}")
    return rows


if __name__ == "__main__":
    main()
