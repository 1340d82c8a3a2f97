"""The page's network, pasted into a copy of the package: two files, and every check passes."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
FILE, CATALOGUE = "src/vidfuse/networks/c3d.py", "src/vidfuse/networks/catalogue.py"


def test_the_network_of_the_page_is_one_file_and_its_lines_in_the_catalogue(package_copy, page_block):
    paper, *rows = page_block("text", "_C3D: Final").splitlines()
    package_copy.add(FILE, page_block("python", "class C3D("))
    package_copy.insert(CATALOGUE, paper, before="_Row = ")
    for row in rows:
        package_copy.insert(CATALOGUE, row, before='    "r2plus1d_tiny"')
    package_copy.check(FILE)
    assert package_copy.run("vidfuse", "networks", "c3d_tiny") == page_block("text", "parameters with 15 classes")
    files = ("networks/test_contract.py", "networks/test_fused.py", "training/test_recipes.py")
    contract = package_copy.run(
        "pytest", "-v", "-p", "no:cacheprovider", "-c", "pyproject.toml", "--rootdir", str(TESTS.parent),
        *(str(TESTS / file) for file in files),
        "-k", "c3d_tiny or tiny_preset or small_recipe or all_of_the_catalogue",
    )  # fmt: skip
    assert len(re.findall(r"\[.*c3d_tiny.*PASSED", contract)) >= 20
    assert "test_all_of_the_catalogue_can_be_fused_at_once PASSED" in contract
