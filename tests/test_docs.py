"""The README and the pages: their Python runs, their commands parse, their links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import re
import shlex
import sys
import tomllib
import types
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import motion
import vidfuse
from motion.dataset import encode
from vidfuse import networks
from vidfuse.cli import main
from vidfuse.cli.config import read_config

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts),
]
FENCE = re.compile(
    r"(?:<!-- needs: (?P<needs>\w+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
# What the test environment has; other blocks are only parsed.
INSTALLED = (None, "networks", "video", "training", "export")
# Pages whose commands take only what the page has made by then: they are typed as they stand.
TYPED = ("how-to/groups.md", "large-data.md", "shipping.md")


def blocks(page, language):
    return [
        (m["needs"], m["code"]) for m in FENCE.finditer(page.read_text(encoding="utf-8")) if m["language"] == language
    ]


def name_of(page):
    return page.relative_to(ROOT).as_posix().removeprefix("docs/")


def commands(code):
    """The lines of a console block; one that ends in a backslash goes on in the next."""
    return code.replace("\\\n", " ").splitlines()


def headings(page):
    """The anchors of a page's headings, as a git host and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#{1,4} (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def with_blocks(language):
    return [pytest.param(page, id=name_of(page)) for page in PAGES if blocks(page, language)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder as a reader of the pages has it: validation videos of two classes, `videos/val/<class>/<name>.mp4`."""
    folder = tmp_path_factory.mktemp("reader")
    plan = motion.MotionPlan()
    for action in ("jump", "walk"):
        (folder / "videos" / "val" / action).mkdir(parents=True)
        for number in (0, 1):
            video = folder / "videos" / "val" / action / f"{number}.mp4"
            video.write_bytes(encode(motion.render_clip(action, plan, "val", number), plan.fps))
    return folder


def test_the_tutorial_runs_as_it_is_typed_and_prints_what_it_quotes(tmp_path, monkeypatch):
    page = ROOT / "docs" / "tutorial.md"
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    printed = []
    for block in FENCE.finditer(text):
        if block["language"] == "python":  # saved and run, or pasted, long after the one before: nothing is left of it
            with contextlib.redirect_stdout(io.StringIO()):
                exec(block["code"], {})  # noqa: S102 -- the pages are our own
            continue
        for line in commands(block["code"]):
            program, *arguments = shlex.split(line, comments=True)
            if program == "vidfuse":
                result = CliRunner().invoke(main, arguments)
                assert result.exit_code == (2 if line.endswith("# refused") else 0), result.output
                printed.append(" ".join(result.output.split()))
    quotes = re.findall(r"^> (.*)$", text, re.MULTILINE)
    assert len(quotes) == 3
    for quote in quotes:
        assert_printed_but_for_rounding(quote, " ".join(printed))
    assert (tmp_path / "report.html").is_file() and (tmp_path / "fused.csv").is_file()


@pytest.mark.parametrize("page", [page for page in with_blocks("python") if page.id != "tutorial.md"])
def test_a_page_runs_from_top_to_bottom(page, reader, tmp_path, monkeypatch):
    """Its Python, and its commands too where the page itself makes what they take."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").symlink_to(reader / "videos")
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for number, block in enumerate(FENCE.finditer(page.read_text(encoding="utf-8"))):
        code, where = block["code"], f"{name_of(page)}, block {number}"
        if block["language"] == "python":
            compiled = compile(ast.parse(code, where), where, "exec", dont_inherit=True)
            if block["needs"] in INSTALLED:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compiled, vars(module))  # noqa: S102 -- the pages are our own
        elif block["language"] == "console" and name_of(page) in TYPED and block["needs"] in INSTALLED:
            for line in commands(code):
                program, *arguments = shlex.split(line, comments=True)
                assert program == "vidfuse", f"{where}: {line}"
                result = CliRunner().invoke(main, arguments)
                assert result.exit_code == 0, f"{where}: {line}\n{result.output}"


@pytest.mark.parametrize("page", with_blocks("console"))
def test_the_commands_of_a_page_exist_and_parse(page):
    found = 0
    for _, code in blocks(page, "console"):
        for line in commands(code):
            words = shlex.split(line, comments=True)
            if words[:1] == ["python"] and words[1].endswith(".py"):
                assert (ROOT / words[1]).is_file() or f"Save it as `{words[1]}`" in page.read_text(), line
                found += 1
            if "vidfuse" not in words or words[0] == "pip":
                continue
            name, *arguments = words[words.index("vidfuse") + 1 :]
            from_file = name == "--config"
            if from_file:
                _, name, *arguments = arguments
            command = main.get_command(click.Context(main), name)
            assert command is not None, line
            parser = command.make_parser(click.Context(command))
            values, rest, _ = parser.parse_args(list(arguments))  # an unknown option raises
            assert rest == [], line
            for parameter in command.params:
                if parameter.required and not isinstance(parameter, click.Argument) and not from_file:
                    assert parameter.name in values, line
            if name in ("train", "extract") and not from_file:
                assert networks.names(arguments[0]) == [arguments[0]], line
            found += 1
    assert found or "pip install" in page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_names_the_extra_before_the_first_block_that_needs_it(page):
    """Or one that brings it along: `training` brings `networks` and `video`."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

    def brings(extra):
        within = re.search(r"vidfuse\[(.*)\]", " ".join(extras[extra]))
        return {extra}.union(*map(brings, within[1].split(",") if within else []))

    text = page.read_text(encoding="utf-8")
    for block in FENCE.finditer(text):
        if block["needs"] in extras:
            named = re.findall(r"(?:vidfuse|\.)\[(\w+)\]", text[: block.start()])
            assert any(block["needs"] in brings(extra) for extra in named), block["needs"]


@pytest.mark.parametrize("name", ["train", "extract", "submit"])
def test_the_options_file_of_the_page_on_commands_is_read(name, tmp_path):
    ((_, text),) = blocks(ROOT / "docs" / "cli.md", "yaml")
    path = tmp_path / "challenge.yaml"
    path.write_text(text)
    command = main.get_command(click.Context(main), name)
    assert read_config(path, command, name).keys() >= {p.name for p in command.params if p.required}


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("[B-Z]*.md"))], ids=name_of)
def test_the_scripts_that_a_page_names_are_there_and_take_its_options(page):
    """Scripts in console blocks and in running text: `python benchmarks/coverage.py --parts honest`."""
    for script, rest in re.findall(r"python ((?:benchmarks|examples|tests)/[\w/]+\.py)([^`\n]*)", page.read_text()):
        code = (ROOT / script).read_text(encoding="utf-8")
        for option in re.findall(r"(?<!\S)--[a-z][\w-]*", rest):
            one_by_one = 'f"--{' in code and f'"{option[2:]}"' in code  # added in a loop over their names
            assert f'"{option}"' in code or one_by_one, f"{script} {option}"


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("[B-Z]*.md"))], ids=name_of)
def test_the_targets_that_a_page_names_are_the_makefiles(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for words in re.findall(r"(?:^ *|`)make ([a-z-]+(?: [a-z-]+)*)", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert set(words.split()) <= set(targets), words


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("[B-Z]*.md"))], ids=name_of)
def test_the_links_of_a_page_lead_to_files_and_headings(page):
    for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        found = page.parent / target if target else page
        assert found.exists(), target
        assert not heading or heading in headings(found), f"{target}#{heading}"


def test_the_first_screen_says_what_it_is_for_and_holds_both_commands():
    first = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40]
    text = "\n".join(first)
    for words in ("make demo", "make test", "single-label classification", "researchers", "LogitStack.from_arrays"):
        assert words in text


def test_the_figures_of_the_readme_are_those_of_the_demo(tmp_path):
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "digits"), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    board = json.loads(result.stdout)
    accuracy = {entry["name"]: 100 * entry["accuracy"] for entry in board["entries"]}
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert_printed_but_for_rounding(f"> {board['headline']}", readme)
    assert_printed_but_for_rounding(
        f"score-weighted log-likelihoods get {accuracy['score-weighted, calibrated']:.1f} %, "
        f"the plain average of probabilities {accuracy['average of probabilities']:.1f} %, "
        f"the majority vote {accuracy['majority vote']:.1f} %",
        readme,
    )


def assert_printed_but_for_rounding(sentence, page):
    """The page has the sentence word for word, each figure within half a point.

    Linear algebra libraries sum in another order on another processor, and the classifiers that are trained with it
    end a video or two apart.
    """
    figure = r"\d+\.\d(?!\d)"
    found = [
        [float(text) for text in match.groups()]
        for match in re.finditer(f"({figure})".join(map(re.escape, re.split(figure, sentence))), page)
    ]
    measured = [float(text) for text in re.findall(figure, sentence)]
    assert any(figures == pytest.approx(measured, abs=0.5) for figures in found), (sentence, found)


@pytest.mark.parametrize(
    "module", ["", "errors", "formats", "metrics", "networks", "report", "serving", "training", "video"]
)
def test_every_public_name_is_described(module):
    """What it takes, with the shapes of arrays; what it raises, where it refuses anything; and an example."""
    room = importlib.import_module(f"vidfuse.{module}".rstrip("."))
    public = {name: getattr(room, name) for name in room.__all__}
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)}
    results = " ".join(str(inspect.signature(value).return_annotation) for value in functions.values())
    lacking = []
    for name, value in public.items():
        if inspect.isclass(value) and not issubclass(value, Exception) and not re.search(rf"\b{name}\b", results):
            lacking += [f"an example of {name}"] * (">>> " not in inspect.getdoc(value))
    for name, value in functions.items():
        text, signature = inspect.getdoc(value), inspect.signature(value)
        lacking += [f"an example of {name}"] * (">>> " not in text)
        lacking += [f"what {name} raises"] * ("raise " in inspect.getsource(value) and "Raises:" not in text)
        described = [(f"{name}, returned", str(signature.return_annotation), text)]
        for parameter in signature.parameters.values():
            entry = re.search(rf"^ {{4}}\*{{0,2}}{parameter.name}: .*(\n {{8}}.*)*", text, re.MULTILINE)
            lacking += [f"{name}, {parameter.name}"] * (entry is None)
            described.append((f"{name}, {parameter.name}", str(parameter.annotation), entry[0] if entry else ""))
        for what, kind, words in described:
            if re.search("ArrayLike|NDArray", kind) and not re.search(r"\([^()]*\b[A-Z]\b", words):
                lacking.append(f"the shape of {what}")
    assert lacking == []


def test_the_version_is_the_same_wherever_it_stands():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == vidfuse.__version__
    assert f"## {vidfuse.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
