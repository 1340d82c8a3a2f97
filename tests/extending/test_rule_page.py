"""The page's rule, pasted into a copy of the package: one file and one line, and every check passes."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
FILE, REGISTRY = "src/vidfuse/fusion/median.py", "src/vidfuse/_rules.py"
COMMAND, FORMS = "src/vidfuse/cli/ensembles.py", "src/vidfuse/serving/rules.py"


def run_tests(package_copy, *files, only=""):
    """Return how many tests passed, of those whose names match."""
    said = package_copy.run(
        "pytest", "-q", "-p", "no:cacheprovider", "-c", "pyproject.toml", "--rootdir", str(TESTS.parent),
        *(str(TESTS / file) for file in files), "-k", only,
    )  # fmt: skip
    return int(re.search(r"(\d+) passed", said)[1])


def test_the_rule_of_the_page_is_one_file_and_one_line(package_copy, page_block):
    """All that is asked of every rule is asked of this one, with its defaults; and of the lines that give it more."""
    package_copy.add(FILE, page_block("python", "class MedianPool("))
    line = page_block("text", '"MedianPool": "vidfuse').strip()
    package_copy.insert(REGISTRY, f"        {line}", before='        "StackedPool"')
    package_copy.check(FILE)
    files = ("fusion/test_rule_contract.py", "fusion/test_rule_input.py", "fusion/test_properties.py")
    assert run_tests(package_copy, *files, only="MedianPool") > 40
    run_tests(package_copy, "test_recipe.py", "test_imports.py")

    statement, function, line = page_block("text", "def _median").strip().split("\n\n\n")
    package_copy.insert(FORMS, statement, before="from vidfuse.fusion.rule ")
    package_copy.insert(FORMS, f"{function}\n\n", before="def _stacked(")
    package_copy.insert(FORMS, line, before="        StackedPool: ")
    package_copy.check(FORMS)
    assert run_tests(package_copy, "serving/test_fusion.py", only="MedianPool") == 2
    package_copy.insert(COMMAND, '    "median": "MedianPool",', before='    "stacked": ')
    assert "median" in package_copy.run("vidfuse", "fit", "--help")
