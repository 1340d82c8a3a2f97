"""How large is the house, and how long is the road through it? One line per measure.

    python benchmarks/house.py [--src PATH]

`--src` measures another checkout's `src`. Functions and depth of calls are vidfuse's own, without lambdas and the like.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import io
import sys
import tempfile
import tokenize
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

FITS = ("Rule.fit", "Fuser.fit")  # what all rules' fits go through, and its older name


def lines_of(path: Path) -> tuple[int, int, int]:
    """Return how many lines a file has in all, of code (without docstrings, blanks, comments), and with a comment."""
    text, code, comments = path.read_text("utf-8"), set(), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.string.strip():
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code -= set(range(node.lineno, node.end_lineno + 1))
    return text.count("\n"), len(code), len(comments)


def circles(package: Path) -> int:
    """Count the files that import themselves by way of others, by any import statement, also one within a function."""
    paths = {path.relative_to(package.parent).with_suffix(""): path for path in package.rglob("*.py")}
    files = {".".join(place.parts).removesuffix(".__init__"): path for place, path in paths.items()}
    reached: dict[str, set[str]] = {}
    for name, path in files.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
        pairs = [(f"{node.module}.{alias.name}", str(node.module)) for node in nodes for alias in node.names]
        reached[name] = {whole if whole in files else module for whole, module in pairs} - {"vidfuse"}
    for _ in files:  # as many rounds as a chain of imports may have links
        for found in reached.values():
            found |= set().union(*(reached.get(name, ()) for name in tuple(found)))
    return sum(name in found for name, found in reached.items())


def follow(run: Callable[[], Any], package: Path) -> tuple[Counter[CodeType], int]:
    """Run something; return how often each function of the package was called, and the greatest depth of calls."""
    calls, depths = Counter(), [0]

    def ours(code: CodeType) -> bool:
        return code.co_filename.startswith(str(package)) and not code.co_name.startswith("<")

    def profile(frame: FrameType | None, event: str, argument: object) -> None:
        if event == "call" and ours(frame.f_code):
            calls[frame.f_code] += 1
            depths.append(0)
            while frame is not None:
                depths[-1], frame = depths[-1] + ours(frame.f_code), frame.f_back

    sys.setprofile(profile)
    run()
    sys.setprofile(None)
    return calls, max(depths)


def main() -> None:
    """Print the measures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--src", type=Path, default=Path(__file__).parents[1] / "src")
    package = parser.parse_args().src.resolve() / "vidfuse"
    sys.path.insert(0, str(package.parent))
    vf = importlib.import_module("vidfuse")
    warnings.simplefilter("ignore", vf.errors.VidfuseWarning)
    files, code, comments = zip(*(lines_of(path) for path in package.rglob("*.py")), strict=True)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 400)
    logits = {f"m{m}": rng.normal(size=(400, 5)) + (0.6 + 0.15 * m) * np.eye(5)[y] for m in range(7)}
    stack = vf.LogitStack.from_arrays(logits, labels=y, ids=[f"v{i}" for i in range(400)])
    with tempfile.TemporaryDirectory() as folder:
        dumps = {name: f"{folder}/{name}.npz" for name in ("m0", "m1", "m2")}
        for name, dump in dumps.items():
            np.savez(dump, scores=logits[name], labels=y, ids=stack.ids)

        def road() -> None:
            read = vf.read_predictions(dumps, kind="logits")
            vf.LogLinearPool().fit(read).predict(read)
            vf.write_report(read, f"{folder}/report.html")

        travelled, road_depth = follow(road, package)
        reported, _ = follow(lambda: vf.write_report(stack, f"{folder}/report.html"), package)
    _, fit_depth = follow(lambda: vf.LogLinearPool().fit(stack), package)
    measures = {
        "files": len(files),
        "lines of code, without docstrings, blanks and comments": sum(code),
        "lines of the median file, all included": int(np.median(files)),
        "lines with a comment, in per cent of all": round(100 * sum(comments) / sum(files), 1),
        "files in circles of imports": circles(package),
        "from dumps to a report: files": len({f.co_filename for f in travelled}),
        "from dumps to a report: functions": len(travelled),
        "from dumps to a report: depth of calls": road_depth,
        "depth of a fit": fit_depth,
        "fits in a report on seven members": sum(n for f, n in reported.items() if f.co_qualname in FITS),
    }
    print(*(f"{name:<56}{value:>8}" for name, value in measures.items()), sep="\n")


if __name__ == "__main__":
    main()
