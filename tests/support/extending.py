"""The page on extending, followed to the letter: its code pasted into a copy of the package, and checked there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"


def block(beginning):
    """Return the page's one block of Python that begins with these words."""
    blocks = re.findall(r"```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (found,) = [code for code in blocks if code.startswith(beginning)]
    return found


def copy_of_the_project(folder):
    """Copy the package, its tests and its configuration; return the copy's root."""
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "goldens", "*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def add_line(file, line, before):
    """Put a line into a file, in front of the one line that begins with `before`."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    (place,) = [i for i, old in enumerate(lines) if old.strip().startswith(before)]
    indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
    file.write_text("".join([*lines[:place], f"{indent}{line}\n", *lines[place:]]), encoding="utf-8")


def check(root, *command):
    """Run a tool of this Python in the copy, on the copy's package; return what it printed if all is well."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}{done.stderr[-4000:]}"
    return done.stdout
