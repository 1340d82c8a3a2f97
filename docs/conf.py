"""The documentation site: `make docs` builds it into docs/_build/html, and every warning is an error.

The pages are Markdown that a git host shows as well (MyST). The reference comes from the docstrings. Torch and its like
are not installed for it: stand-ins are imported in their place.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy.typing
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.ext.autodoc.mock import mock
from sphinx.util import logging

import vidfuse

_ROOT = Path(__file__).parents[1]
_URLS = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})

project, author, copyright = "vidfuse", "The vidfuse authors", "The vidfuse authors"
version = release = vidfuse.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "py:obj"  # `name` in a docstring links to that name where it has a page, and is code elsewhere

myst_heading_anchors = 4
autodoc_mock_imports = ["av", "einops", "timm", "torch", "torchcodec", "torchvision"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True  # attributes as one list with their class
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
linkcheck_timeout, linkcheck_retries = 20, 2

html_theme = "furo"
pygments_dark_style = "a11y-high-contrast-dark"
html_title = f"vidfuse {release}"
html_copy_source = False
html_theme_options = {"source_repository": _URLS["Source"], "source_branch": "main"} if "Source" in _URLS else {}


class ArrayLike:
    """What stands for `ArrayLike` in the reference: its own text would be a line of private unions."""


class NDArray(Generic[TypeVar("Scalar")]):
    """What stands for `NDArray` in the reference, with its scalar type and no shape: that is in the docstrings."""


for _stand_in in (ArrayLike, NDArray):
    _stand_in.__module__ = "numpy.typing"
    setattr(numpy.typing, _stand_in.__name__, _stand_in)
for _field in PyObject.doc_field_types:
    _field.label = {"variable": "Attributes"}.get(_field.name, _field.label)


def _public() -> dict[str, Any]:
    """Return every public name of vidfuse and of its public modules; names load on first use, here over stand-ins."""
    found = {}
    with mock(autodoc_mock_imports):
        modules = [vidfuse, *filter(inspect.ismodule, (getattr(vidfuse, name) for name in vidfuse.__all__))]
        for module in modules:
            for name in module.__all__:
                if not (name.startswith("__") or inspect.ismodule(getattr(module, name))):
                    found[f"{module.__name__}.{name}"] = getattr(module, name)
    return found


_PUBLIC = _public()


def _warn_of_missing_names(app: Sphinx, env: Any) -> None:
    """Warn of each public name that no page describes, under that name or another public name of the same object."""
    pages = env.domains.python_domain.objects
    described = {id(value) for name, value in _PUBLIC.items() if name in pages}
    for name, value in _PUBLIC.items():
        if id(value) not in described:
            logging.getLogger(__name__).warning("no page of docs/reference describes %s", name)


def _bring_in_root_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fill the pages of docs/project from the files at the root, and lead links to those files to the pages."""
    folder, _, name = docname.rpartition("/")
    up = "../" * docname.count("/")
    if folder == "project":
        text = (_ROOT / f"{name.upper()}.md").read_text(encoding="utf-8")
        source[0] = re.sub(r"\]\(docs/", "](../", text)
    source[0] = re.sub(r"\]\((?:\.\./)*([A-Z_]+)\.md", lambda found: f"]({up}project/{found[1].lower()}.md", source[0])


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what scikit-learn adds to an estimator for its metadata routing, and the fields of named tuples."""
    return True if re.fullmatch(r"set_\w+_request", name) or type(obj).__name__ == "_tuplegetter" else None


def _mend_attributes(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Shorten the types of attributes, and escape the underscore that ends `weights_` or `str_`: no reference."""
    for number, line in enumerate(lines):
        line = re.sub(r"^(:(?:ivar|vartype) \w+)_:", r"\1\\_:", line)
        if line.startswith(":vartype"):
            head, types = line.split(": ", 1)
            types = re.sub(r"(?<![\w.~])((?:\w+\.)+)", r"~\1", types)
            line = f"{head}: " + re.sub(r"_(?=\W|$)", r"\_", types)
        lines[number] = line


def setup(app: Sphinx) -> None:
    """Add the check of the reference, and what pages and docstrings need, to the build."""
    app.connect("source-read", _bring_in_root_pages)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _mend_attributes, priority=900)  # after napoleon
    app.connect("env-check-consistency", _warn_of_missing_names)
