"""Put single-line faults into the core, one at a time, and see whether the tests of the room catch each.

    python tests/mutations.py                     # 30 faults in fusion, selection and evaluation
    python tests/mutations.py --faults 10 --seed 3 --rooms metrics --out faults.log

A fault is one operator, comparison, constant or name turned into its neighbour (`<` into `<=`, `+` into `-`, `min` into
`max`, a number into the next one). They are drawn at random from all such places outside docstrings, messages and type
hints, so some change nothing that can be seen; what survives is printed to be looked at. Faults go into a copy of the
package in a temporary folder; the checkout is not touched.

All tests of the room decide, but not all have to run. First each fault meets the three files that speak most of its
module, then the survivors meet the others; the first failure ends a run, and counts where the same test passes without
the fault. Hypothesis draws the examples that it always draws, and does not look for smaller ones.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
OPERATORS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"), ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "argmin": "argmax", "argmax": "argmin",
    "any": "all", "all": "any", "sum": "mean", "exp": "log", "cumsum": "cumprod", "floor": "ceil", "ceil": "floor",
}  # fmt: skip
NEAREST = 3  # files of tests that a fault meets first
PATIENCE = 1800  # seconds, for all tests of a room
NO_END = f"no end within {PATIENCE} s"


class Fault(NamedTuple):
    """One change of one line: columns `start` to `stop` of `line` (from 1) of `path` become `new`."""

    path: Path
    line: int
    start: int
    stop: int
    new: str

    def show(self, text: str) -> str:
        """Say what is changed where."""
        old = text.splitlines()[self.line - 1]
        where = f"{self.path.relative_to(ROOT)}:{self.line}"
        return f"{where}: {old.strip()[:90]}  [{old[self.start : self.stop]} → {self.new}]"


def between(left: ast.expr, right: ast.expr, old: str, new: str, lines: list[str]) -> tuple[int, int, int, str] | None:
    """Find an operator between two operands that end and begin on one line."""
    if left.end_lineno != right.lineno or left.end_col_offset is None:
        return None
    text = lines[right.lineno - 1].encode()
    place = text.find(old.encode(), left.end_col_offset, right.col_offset)
    return None if place < 0 else (right.lineno, place, place + len(old), new)


def changes(node: ast.AST, lines: list[str]) -> Iterator[tuple[int, int, int, str] | None]:
    """Yield (line, start, stop, new text) for every fault that one node of the syntax tree has room for."""
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            yield between(left, right, *OPERATORS[type(operator)], lines)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield between(node.left, node.right, *OPERATORS[type(node.op)], lines)
    elif isinstance(node, ast.BoolOp):
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield between(left, right, *OPERATORS[type(node.op)], lines)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        width = 4 if isinstance(node.op, ast.Not) else 1
        yield node.lineno, node.col_offset, node.col_offset + width, ""
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        value: float = node.value
        grown = 2 * value if isinstance(value, float) and value else value + 1
        new = repr(not value if isinstance(value, bool) else grown)
        yield node.lineno, node.col_offset, node.end_col_offset or 0, new
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        stop = node.func.end_col_offset or 0
        if name in NAMES:
            yield node.func.end_lineno or 0, stop - len(name), stop, NAMES[name]


def code_of(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk through the code of functions: no docstrings, messages of errors and warnings, f-strings or type hints.

    `strict=True` of a zip is left out, too: it guards against code that is not there.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.arguments | ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.keyword) and node.arg == "strict":
            continue
        if isinstance(node, ast.AnnAssign):
            yield from code_of(ast.Module([ast.Expr(node.value)] if node.value else [], []))
            continue
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("warn", "_warn"):
            continue
        yield node
        yield from code_of(node)


def faults_of(path: Path) -> list[Fault]:
    """Return every fault that the functions of a file have room for."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef) and n.name != "__repr__"]
    found = {
        Fault(path, *change)
        for function in functions
        for statement in function.body
        for node in [statement, *code_of(statement)]
        for change in changes(node, lines)
        if change is not None and lines[change[0] - 1].isascii()  # byte columns are then those of the text
    }
    return sorted(found)


def tests_for(folder: Path, room: str, module: Path) -> list[str]:
    """Return a room's files of tests and doctests: a module's own and its importers' first, then by what they name."""
    text, dotted = (folder / module).read_text(encoding="utf-8"), ".".join(module.with_suffix("").parts[1:])
    words = {module.stem, *(n.name for n in ast.parse(text).body if isinstance(n, ast.FunctionDef | ast.ClassDef))}
    sources = (folder / "src/vidfuse" / room).rglob("*.py")
    own = {module.stem.strip("_"), *(path.stem for path in sources if f"from {dotted} import" in path.read_text())}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(words)))})\b")

    def distance(path: Path) -> tuple[bool, bool, int, Path]:
        near = path == folder / module or path.stem.removeprefix("test_") in own
        return not near, "tests" not in path.relative_to(folder).parts, -len(pattern.findall(path.read_text())), path

    tests = (folder / "tests" / room).rglob("test_*.py")
    documented = (path for path in (folder / "src/vidfuse" / room).rglob("*.py") if ">>>" in path.read_text())
    return [str(path.relative_to(folder)) for path in sorted([*tests, *documented], key=distance)]


def failure(folder: Path, tests: list[str], workers: int) -> str:
    """Run tests in the copy of the checkout until one fails; return which, and nothing where all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", *tests]
    command += ["-n", str(workers)] if workers > 1 else []
    ours = {"PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1", "HYPOTHESIS_PROFILE": "unshrunk"}
    given = {"cwd": folder, "env": {**os.environ, **ours}, "timeout": PATIENCE}
    try:
        done = subprocess.run(command, **given, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        return NO_END
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode == 0 or found:
        return found[1] if found else ""
    raise SystemExit(f"pytest ended with {done.returncode}, which tells nothing:\n{done.stdout}{done.stderr}")


def with_fault(fault: Fault, text: str) -> str:
    """Return the text of a file with a fault in it."""
    lines = text.splitlines(keepends=True)
    line = lines[fault.line - 1]
    lines[fault.line - 1] = line[: fault.start] + fault.new + line[fault.stop :]
    return "".join(lines)


def main() -> None:
    """Draw the faults, run the tests on each, and print what was caught and what survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", default=["fusion", "selection", "evaluation"])
    parser.add_argument("--workers", type=int, default=1, help="of pytest-xdist")
    parser.add_argument("--out", type=Path, default=os.devnull, help="a file for what is printed")
    args = parser.parse_args()
    draw = random.Random(args.seed)  # noqa: S311 - nothing secret
    rooms = {room: sorted((ROOT / "src/vidfuse" / room).rglob("*.py")) for room in args.rooms}
    chosen = []
    for number, (room, files) in enumerate(rooms.items()):
        share = args.faults // len(rooms) + (number < args.faults % len(rooms))
        chosen += [(room, fault) for fault in draw.sample([f for file in files for f in faults_of(file)], share)]
    with tempfile.TemporaryDirectory() as temporary, open(args.out, "w", encoding="utf-8") as log:

        def say(text: str) -> None:
            print(text, flush=True)
            print(text, file=log, flush=True)

        folder = Path(temporary)
        for name in ("src", "tests", "docs", "examples"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
            shutil.copy(ROOT / name, folder)
        survivors = list(enumerate(chosen, 1))
        for part in (slice(NEAREST), slice(NEAREST, None)):
            met, survivors = survivors, []
            say(f"{len(met)} faults and {'the nearest tests' if part.start is None else 'all other tests'}:")
            for number, (room, fault) in met:
                module, started = fault.path.relative_to(ROOT), time.monotonic()
                tests, original = tests_for(folder, room, module)[part], (folder / module).read_text(encoding="utf-8")
                (folder / module).write_text(with_fault(fault, original), encoding="utf-8")
                failed = failure(folder, tests, args.workers)
                (folder / module).write_text(original, encoding="utf-8")
                if failed not in ("", NO_END) and failure(folder, [failed], 1):
                    raise SystemExit(f"{failed} fails without a fault, too: nothing can be told")
                survivors += [] if failed else [(number, (room, fault))]
                say(f"{number:3} {fault.show(original)}")
                say(f"    {f'caught by {failed}' if failed else 'survived'}, {time.monotonic() - started:.0f} s")
        say(f"seed {args.seed}: caught {len(chosen) - len(survivors)} of {len(chosen)}")


if __name__ == "__main__":
    main()
