"""The command line: one command, `vidfuse`, whose subcommands are thin calls of the library.

Results go to standard output (`--json` for machines), progress and warnings to standard error. An error that
vidfuse raises on purpose is printed as one message and ends the process with status 2. A command's module is imported
when the command is asked for, and the numeric libraries when it computes, so that `vidfuse --help` is immediate.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import click

from vidfuse import __version__
from vidfuse.errors import VidfuseError, VidfuseWarning, python_words, worded

__all__ = ["main"]

# The commands in the order in which they are used: where each is defined, and what it does.
_COMMANDS = {
    "demo": ("vidfuse.cli.demo:demo", "Fuse eight classifiers of real digits, and report."),
    "import": ("vidfuse.cli.caches:import_", "Turn other tools' dumps into caches."),
    "info": ("vidfuse.cli.caches:info", "Say what caches or a recipe hold."),
    "verify": ("vidfuse.cli.caches:verify", "Check every part of a cache against its digest."),
    "consolidate": ("vidfuse.cli.caches:consolidate", "Join each cache's parts into one."),
    "fit": ("vidfuse.cli.ensembles:fit", "Fit a fusion rule, and write a recipe."),
    "predict": ("vidfuse.cli.predictions:predict", "Fuse by a recipe, and write probabilities."),
    "evaluate": ("vidfuse.cli.ensembles:evaluate", "Score a recipe beside its members."),
    "record": ("vidfuse.cli.reliability:record", "Keep in a recipe how it does on labelled videos."),
    "watch": ("vidfuse.cli.reliability:watch", "Compare a stream of predictions with a recipe's record."),
    "refresh": ("vidfuse.cli.reliability:refresh", "Fit a recipe anew on fresh videos, if no worse."),
    "select": ("vidfuse.cli.ensembles:select", "Find the best subset of the members, exactly."),
    "report": ("vidfuse.cli.ensembles:report", "Write one HTML page on members and rules."),
    "submit": ("vidfuse.cli.predictions:submit", "Fuse by a recipe, and write a submission."),
    "export": ("vidfuse.cli.exports:export", "Write a recipe as ONNX or .pt2, alone or with networks."),
    "networks": ("vidfuse.cli.catalogue:networks", "List the networks, and count what one costs."),
    "split": ("vidfuse.cli.split:split", "Part labelled videos by their source."),
    "shrink": ("vidfuse.cli.shrink:shrink", "Encode a folder of videos to a short side, once."),
    "train": ("vidfuse.cli.train:train", "Train a network by a recipe; resumes."),
    "train-together": ("vidfuse.cli.together:train_together", "Train networks on the same decoded videos."),
    "soup": ("vidfuse.cli.soup:soup", "Average checkpoints of one network into one."),
    "extract": ("vidfuse.cli.extract:extract", "Write a network's logits into a cache; resumes."),
}


class _UserError(click.ClickException):
    """An error of the user's input: the message alone, status 2."""

    exit_code = 2


class _Commands(click.Group):
    """The group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = [] if args[0] in _COMMANDS else difflib.get_close_matches(args[0], _COMMANDS, n=3)
        if near:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(map(repr, near))}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings(), worded(_words_of(ctx)):
                warnings.simplefilter("always", VidfuseWarning)
                warnings.showwarning = _shown_once()
                return super().invoke(ctx)
        except VidfuseError as error:
            raise _UserError(str(error)) from error
        except MemoryError as error:
            raise _UserError(str(error) or "out of memory") from error
        except RuntimeError as error:  # of torch's, which has no kind of its own for them
            if not any(sign in str(error) for sign in _SCARCITY):
                raise
            raise _UserError(
                f"{str(error).strip()}\nMemory may have run out: take fewer --workers or a smaller batch. What is "
                "written stays, and the rest follows when the command is given again"
            ) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of a pipe has gone: click ends quietly
                raise
            raise _UserError(str(error)) from error


# How torch says that memory, shared memory or file handles have run out, or that the system ended a worker.
_SCARCITY = ("DataLoader worker", "out of memory", "can't allocate memory", "shared memory", "ancdata")

# What users of Python say otherwise than by an option of the same name.
_OTHERWISE: dict[tuple[Any, ...], str] = {
    ("ids",): "--annotations",  # a list of the videos; its values say how names become ids
    ("labels",): "--annotations",
    ("labels", None): "--no-labels",
    ("missing", "keep"): "--missing renormalise",
    ("cross_fit", False): "--held-out",
    ("num_classes",): "--classes",
    ("replace_classifier", True): "`vidfuse train --checkpoint`",
}


def _words_of(ctx: click.Context) -> Callable[..., str]:
    """Return how the command line words `vidfuse.errors.option`: an option of the command, or of one that has it.

    option("views", "mean-log")          --views mean-log
    option("kind", {"swin": "logits"})   --kind swin=logits
    option("head")                       --head              in a command that has it
                                         `vidfuse import --head`   in one that has not, or was given caches: --head is
                                                            of the files that `import` makes caches of
    """

    def words(name: str, *value: Any) -> str:
        asked = (name, *(repr(one) if isinstance(one, dict) else one for one in value))
        said = _OTHERWISE.get(asked, f"--{name.replace('_', '-')}")
        if said.startswith("`"):  # a command of its own
            return said
        if asked not in _OTHERWISE and value and value != (True,):
            given = value[0]
            listed = [f"{key}={inner}" for key, inner in given.items()] if isinstance(given, dict) else [str(given)]
            said = " ".join(f"{said} {word}" for word in listed)
        switch = said.split()[0]
        if asked == ("missing", "renormalise") and ctx.invoked_subcommand not in ("fit", "select"):
            return "`vidfuse fit --missing renormalise`"  # of the rule, which the recipe holds
        for command in _commands_from(ctx):
            if any(switch in parameter.opts for parameter in command.params):
                if command.name == ctx.invoked_subcommand:
                    return f"`vidfuse import {said}`" if _refused(switch) else said
                return f"`vidfuse {command.name} {said}`"
        return f"{python_words(name, *value)} in Python"

    return words


def _refused(switch: str) -> bool:
    """Whether the command that is running was given caches, and the option says how other files are read."""
    from vidfuse.cli.reading import OF_DUMPS, are_caches

    running = click.get_current_context(silent=True)
    source = None if running is None else running.params.get("source")
    return isinstance(source, tuple) and are_caches(source) and switch[2:].replace("-", "_") in OF_DUMPS


def _commands_from(ctx: click.Context) -> Iterator[click.Command]:
    """Run through the commands, the one that is running first."""
    first = [ctx.invoked_subcommand] if ctx.invoked_subcommand in _COMMANDS else []
    for name in dict.fromkeys([*first, *_COMMANDS]):
        command = main.get_command(ctx, name or "")
        if command is not None:
            yield command


def _shown_once() -> Callable[..., None]:
    """Return what prints a warning, each text once: the copies of a rule that folds fit say the same."""
    said: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        del filename, lineno, file, line
        text = f"{'Warning' if issubclass(category, VidfuseWarning) else category.__name__}: {message}"
        if text not in said:
            said.add(text)
            click.echo(text, err=True)

    return show


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, package_name="vidfuse", message="vidfuse %(version)s")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take options from a YAML file with a section for each command, or from a configuration that was saved.",
)
@click.pass_context
def main(context: click.Context, config: Path | None) -> None:
    """Fuse the predictions of several video classifiers, and say honestly how good the result is.

    A folder of caches holds one split (say caches/val), with one cache for each member. `vidfuse import` makes it
    from the files that other tools dump; `vidfuse extract` makes it from networks.
    """
    name = context.invoked_subcommand
    if config is not None and name is not None:
        command = context.command.get_command(context, name)  # type: ignore[attr-defined]
        context.default_map = {name: importlib.import_module("vidfuse.cli.config").read_config(config, command, name)}
