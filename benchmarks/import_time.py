"""Print what `import vidfuse` and `vidfuse --help` cost above bare Python: the best of several runs of each, in turn.

Run: python benchmarks/import_time.py
"""

from __future__ import annotations

import subprocess
import sys
import time

ROUNDS = 15
STATEMENTS = {
    "bare Python": "pass",
    "import vidfuse": "import vidfuse",
    "vidfuse --help": "from vidfuse.cli import main; main(['--help'], standalone_mode=False)",
    "import numpy": "import numpy",
}


def seconds(statement: str) -> float:
    """Return the wall-clock time of a fresh interpreter that runs a statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure the statements in turn, so that a busy moment hits all of them alike."""
    best = dict.fromkeys(STATEMENTS, float("inf"))
    for _ in range(ROUNDS):
        for name, statement in STATEMENTS.items():
            best[name] = min(best[name], seconds(statement))
    bare = best["bare Python"]
    print(f"{'':16}{'seconds':>9}{'above bare':>12}   (best of {ROUNDS})")
    for name, value in best.items():
        print(f"{name:16}{value:9.3f}{value - bare:12.3f}")
    allowed = 0.1
    for name in ("import vidfuse", "vidfuse --help"):
        verdict = "within" if best[name] - bare <= allowed else "ABOVE"
        print(f"{name} is {verdict} the {allowed} s above bare Python that it may take")


if __name__ == "__main__":
    main()
