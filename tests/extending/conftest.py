"""A copy of the package in a temporary folder, which a test extends as the page on extending says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"


def block(language: str, containing: str) -> str:
    """Return the one block of the page, in that language, that contains a text."""
    found = [
        code
        for code in re.findall(
            rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        if containing in code
    ]
    assert len(found) == 1, f"expected one {language} block with {containing!r} on {PAGE.name}, got {len(found)}"
    return found[0]


@dataclass(frozen=True)
class PackageCopy:
    """A copy of `src/vidfuse` and of the tools' settings.

    Attributes:
        root: The folder that holds `src` and `pyproject.toml`, as the repository does.
    """

    root: Path

    def add(self, path: str, text: str) -> None:
        """Write a new file, at a path from the root."""
        target = self.root / path
        assert not target.exists(), f"{path} is in the package already"
        target.write_text(text, encoding="utf-8")

    def insert(self, path: str, line: str, *, before: str) -> None:
        """Insert a line before the first that starts with a text, in a file at a path from the root."""
        target = self.root / path
        lines = target.read_text(encoding="utf-8").splitlines(keepends=True)
        place = next(index for index, old in enumerate(lines) if old.startswith(before))
        target.write_text("".join([*lines[:place], line + "\n", *lines[place:]]), encoding="utf-8")

    def run(self, *arguments: str) -> str:
        """Run `python -m` with these arguments in the copy, on the copy; return its output if it ends with 0."""
        path = os.pathsep.join(map(str, (self.root / "src", ROOT / "tests" / "support")))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def check(self, path: str) -> None:
        """Run the linter, the formatter and the type checker on a file."""
        self.run("ruff", "check", "--no-cache", path)
        self.run("ruff", "format", "--no-cache", "--check", path)
        self.run("mypy", path)


@pytest.fixture
def page_block():
    """Find a block of the page: `page_block(language, containing)`."""
    return block


@pytest.fixture
def package_copy(tmp_path: Path) -> PackageCopy:
    """Copy the package, what configures its tools, and what the type checker knows of other packages, if it does."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if (cache := ROOT / ".mypy_cache").is_dir():
        shutil.copytree(cache, tmp_path / ".mypy_cache")
    return PackageCopy(tmp_path)
