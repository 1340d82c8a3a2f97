"""The page's rule, pasted into a copy of the package: one file and one line, and every check passes."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
FILE, REGISTRY = "src/vidfuse/fusion/median.py", "src/vidfuse/recipe.py"


def test_the_rule_of_the_page_is_one_file_and_one_line(package_copy, page_block):
    """All that is asked of every rule is asked of this one, with its defaults."""
    package_copy.add(FILE, page_block("python", "class MedianPool("))
    line = page_block("text", "MedianPool").strip()
    package_copy.insert(REGISTRY, f"        {line}", before='        "StackedPool"')
    package_copy.check(FILE)
    files = ("fusion/test_rule_contract.py", "fusion/test_rule_input.py", "fusion/test_properties.py")
    contract = package_copy.run(
        "pytest", "-q", "-p", "no:cacheprovider", "-c", "pyproject.toml", "--rootdir", str(TESTS.parent),
        *(str(TESTS / file) for file in files), "-k", "MedianPool",
    )  # fmt: skip
    assert int(re.search(r"(\d+) passed", contract)[1]) > 40
    package_copy.run(
        "pytest", "-q", "-p", "no:cacheprovider", "-c", "pyproject.toml", "--rootdir", str(TESTS.parent),
        str(TESTS / "test_recipe.py"), str(TESTS / "test_imports.py"),
    )  # fmt: skip
