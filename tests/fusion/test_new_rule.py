"""A new rule is one new file and one line: the page's example, pasted into a copy of the package, is as good as any."""

from __future__ import annotations

import re

import pytest

import extending

NEW = "src/vidfuse/fusion/median.py"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = extending.copy_of_the_project(tmp_path_factory.mktemp("project"))
    (root / NEW).write_text(extending.block('"""The median pool'), encoding="utf-8")
    line = '"MedianPool": "vidfuse.fusion.median",'
    assert line in re.sub(r"\s+", " ", extending.PAGE.read_text(encoding="utf-8"))
    extending.add_line(root / "src/vidfuse/recipe.py", line, before='"StackedPool"')
    return root


def test_it_is_clean_code(project):
    extending.check(project, "ruff", "check", NEW)
    extending.check(project, "ruff", "format", "--check", NEW)


def test_its_types_hold(project):
    extending.check(project, "mypy", NEW)


def test_it_keeps_the_contract(project):
    """All that is asked of every rule is asked of this one, with its defaults."""
    files = ["tests/fusion/test_rule_contract.py", "tests/fusion/test_rule_input.py", "tests/fusion/test_properties.py"]
    told = extending.check(project, "pytest", "-q", "-p", "no:cacheprovider", "-k", "MedianPool", *files)
    assert int(re.search(r"(\d+) passed", told)[1]) > 40
    extending.check(project, "pytest", "-q", "-p", "no:cacheprovider", "tests/test_recipe.py", "tests/test_imports.py")
