"""What loads when: a light face, a core without torch, and imports that run from floor to floor."""

from __future__ import annotations

import ast
import graphlib
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vidfuse

PACKAGE = Path(vidfuse.__file__).parent
ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"
HEAVY = ("numpy", "scipy", "sklearn", "torch", "torchvision", "timm", "av", "pandas")
OPTIONAL = ("torch", "torchvision", "timm", "av", "einops", "yaml", "pandas", "polars", "matplotlib")
ROOMS = (  # from the ground up; a module imports from its own room and from floors below
    ("_lazy", "_rules", "errors"),
    ("_checks", "_files", "_paths", "_threads", "_yaml"),
    ("_tables", "_unfinished", "likelihood"),
    ("cache", "metrics"),
    ("stack",),
    ("formats", "fusion"),
    ("selection",),
    ("evaluation", "recipe"),
    ("report", "networks", "video"),
    ("training",),
    ("serving",),
    ("cli",),
    ("__main__",),
)
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
VIDEO_HALF = ("networks", "video", "training", "serving", "cli", "__main__")
CORE = [name for name in FLOORS if name not in VIDEO_HALF]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def unit_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Return (line, absolute dotted name) of every import statement, also of those within functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [alias.name for alias in node.names]
            found += [(node.lineno, f"{node.module}.{name}") for name in names]
    return found


def test_every_module_stands_on_a_known_floor():
    assert {unit_of(path) for path in modules()} <= set(FLOORS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_floors_below(path):
    """Rooms on one floor do not know each other; within a room, `test_no_two_files_import_each_other` holds."""
    unit = unit_of(path)
    for line, name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "vidfuse" or parts[1:] == ["__version__"]:
            continue
        if len(parts) == 1:
            assert unit == "cli", f"{path}:{line}: only the command line may import the public face"
            continue
        other = parts[1]
        assert other == unit or FLOORS[other] < FLOORS[unit], (
            f"{path}:{line}: {unit} imports {other}, not a floor below"
        )
        if unit == "networks":
            assert other in ("networks", "errors", "_checks"), f"{path}:{line}: networks imports {other} of the core"
        if unit in CORE:
            assert other in CORE, f"{path}:{line}: {unit} of the core imports {other} of the video half"


def test_the_page_on_architecture_draws_these_rooms_on_these_floors():
    """A line that begins with a number is on that floor, and so are those below it without one."""
    drawing = ARCHITECTURE.read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    drawn, floor = {}, None
    for line in drawing.splitlines()[2:]:
        floor = int(number[0]) if (number := re.match(r" *\d+", line)) else floor
        drawn |= {room: floor for room in FLOORS if re.search(rf"  {room}\b", line)}
    assert drawn == {room: floor for room, floor in FLOORS.items() if room != "__main__"}


def test_no_two_files_import_each_other():
    """No circle of any length, counting imports within functions and those for types only."""
    files = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in modules()}

    def file_of(name: str) -> str | None:
        """`vidfuse.fusion.rule.Rule` → `vidfuse.fusion.rule`: the longest beginning that is a file."""
        parts = name.split(".")
        found = (".".join(parts[:n]) for n in range(len(parts), 1, -1))
        return next((beginning for beginning in found if beginning in files), None)

    graph = {
        module: {other for _, name in imports_of(path) if (other := file_of(name)) and other != module}
        for module, path in files.items()
    }
    assert sum(map(len, graph.values())) > 100  # the imports are really read
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"files import each other: {' → '.join(error.args[1])}")


@pytest.mark.parametrize("unit", CORE)
def test_the_core_names_no_optional_package_at_its_top(unit):
    for path in [p for p in modules() if unit_of(p) == unit]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & set(OPTIONAL), f"{path}:{node.lineno}"


@pytest.mark.parametrize("name", vidfuse.__all__)
def test_every_public_name_resolves(name):
    assert getattr(vidfuse, name) is not None
    assert name in dir(vidfuse)


@pytest.mark.parametrize(
    "package",
    [
        "",
        ".formats",
        ".metrics",
        ".networks",
        ".report",
        ".training",
        ".video",
    ],
)
def test_no_module_hides_a_lazy_name(package):
    """Importing `package.name` binds the module to the package: a function of that name would be lost."""
    face = importlib.import_module(f"vidfuse{package}")
    modules = {found.name for found in pkgutil.iter_modules(face.__path__)}
    assert not modules & set(getattr(face, "_HOME", ()))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vidfuse.nothing


@pytest.mark.parametrize(
    "statement",
    [
        "import vidfuse",
        "import vidfuse.errors, vidfuse.metrics, vidfuse.fusion, vidfuse.report, vidfuse.cache",
        "from vidfuse.cli import main; main(['--help'], standalone_mode=False)",
        "from vidfuse.cli import main; main(['fit', '--help'], standalone_mode=False)",
    ],
)
def test_import_and_help_load_nothing_heavy(statement):
    loaded = run(f"import sys; {statement}; print('loaded:', *[m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded.splitlines()[-1].split() == ["loaded:"]


def test_the_core_works_where_optional_packages_are_blocked(tmp_path):
    code = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocker())
import numpy as np, vidfuse as vf
rng = np.random.default_rng(0)
y = np.arange(90) % 3
arrays = {{name: rng.normal(size=(90, 3)) + np.eye(3)[y] for name in "abc"}}
stack = vf.LogitStack.from_arrays(arrays, labels=y, ids=[f"v{{i}}" for i in range(90)])
pool = vf.LogLinearPool().fit(stack)
recipe = vf.load_recipe(vf.Recipe.from_fitted(pool, stack).save(r"{tmp_path}/ensemble.json"))
assert np.array_equal(recipe.predict_proba(stack), pool.predict_proba(stack))
vf.write_report(stack, r"{tmp_path}/report.html")
stack.save(r"{tmp_path}/caches")
assert vf.load_stack(r"{tmp_path}/caches").members == ("a", "b", "c")
print(*[m for m in {OPTIONAL!r} if m in sys.modules])
"""
    assert run(code).split() == []
    assert (tmp_path / "report.html").stat().st_size > 1000
