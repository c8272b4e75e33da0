"""The application that commands are added to, and what they share."""

import logging
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup
from typer.models import CommandFunctionType

from lensbench.errors import LensbenchError, UsageError
from lensbench.utils.progress import Progress, bar, silent

_WORDS = {"--methods": "--inspectors", "--method": "--inspector", "--task": "--tasks"}
_SAME = {**_WORDS, **{second: first for first, second in _WORDS.items()}}
"""Option → the same in another word, which a command understands if it has not that option itself."""


class _WithoutTypesOfFlags:
    """Leaves `<bool>` out of the help: a flag takes no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for one in params:
            if getattr(one, "is_flag", False):
                one.metavar = ""
        return params


class _Command(_WithoutTypesOfFlags, TyperCommand):
    """A command whose options have another word where users say one, and whose paths are not empty."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        for one in self.params:
            one.opts += [other for option in one.opts if (other := _SAME.get(option)) and not self._has(other)]

    def _has(self, option: str) -> bool:
        return any(option in one.opts for one in self.params)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with each option by one word: two take the room of what it says."""
        every = [(one, one.opts) for one in self.params]
        for one, words in every:
            one.opts = [word for word in words if _SAME.get(word) != words[0]]
        super().format_help(ctx, formatter)
        for one, words in every:
            one.opts = words

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; `--out ""` would be the current folder, and is refused."""
        kinds = {word: getattr(one, "type_descriptor", None) for one in self.params for word in one.opts}
        paths = {word for word, kind in kinds.items() if getattr(kind, "annotation", None) is Path}
        for option, value in pairwise([*args, "-"]):
            empty = (option in paths and value == "") or option in {f"{word}=" for word in paths}
            if empty and not ctx.resilient_parsing:
                raise UsageError(f"{option.rstrip('=')} '' is empty; give a name")
        return super().parse_args(ctx, args)


class _Group(_WithoutTypesOfFlags, TyperGroup):
    pass


class _Application(typer.Typer):
    def command(self, name: str | None = None, **options: Any) -> Callable[[CommandFunctionType], CommandFunctionType]:
        return super().command(name, **{"cls": _Command, **options})


app = _Application(
    name="lensbench",
    cls=_Group,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Is your probe, lens or Patchscope reading the model, or just the prompt?",
)


def group(name: str, text: str) -> typer.Typer:
    """Return a command that has commands of its own.

    Args:
        name: of the command.
        text: what it is for, as help shows it.
    """
    return _Application(name=name, help=text, cls=_Group, no_args_is_help=True, rich_markup_mode="markdown")


# What typer returns after Ctrl-C.
INTERRUPTED = 130


def _version(asked: bool) -> bool:
    if asked:
        from lensbench import __version__

        Console(soft_wrap=True).print(f"lensbench {__version__}", highlight=False)
        raise typer.Exit
    return asked


@app.callback()
def _options(
    _asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line; errors are one line, and their exit status says whose they are."""
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except LensbenchError as error:
        complain(str(error))
        status = error.exit_status
    except Exception as error:
        # What the parser raises; its class has moved between versions of typer, its method has not.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        command = getattr(context, "command_path", None) or "lensbench"
        message = " ".join(error.format_message().split()).rstrip(".").replace("Value error, ", "")
        complain(f"{message}; see `{command} --help`")
        status = 2
    if status == INTERRUPTED:
        complain("interrupted; finished cells are kept: repeat the command with the same --out to resume")
        status = 1
    sys.exit(status)


def complain(message: str) -> None:
    """Show an error, in one line on the error stream."""
    print(f"lensbench: {message}", file=sys.stderr)  # noqa: T201 - the one place where errors are shown


def say_what_happens(*, quiet: bool = False) -> None:
    """Show on the error stream what takes time, and the terms of a model that has some; if quiet, only errors.

    What libraries have to say is left out, unless it is an error: a run's folder keeps their warnings in `run.log`.
    """
    said = _Said()
    said.setFormatter(logging.Formatter("%(message)s"))
    said.setLevel(logging.ERROR if quiet else logging.INFO)
    said.addFilter(lambda record: record.name.partition(".")[0] == "lensbench" or record.levelno >= logging.ERROR)
    logging.basicConfig(handlers=[said], level=logging.INFO)
    logging.captureWarnings(capture=True)


def say_it_starts() -> None:
    """Say that something is coming, before what takes a few seconds: importing torch and transformers."""
    logging.getLogger("lensbench").info("importing torch and transformers")


class _Said(logging.StreamHandler[TextIO]):
    """Writes to the error stream as it is now: a progress bar puts lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def progress_of(*, quiet: bool) -> Progress:
    """What draws the progress of a command."""
    return silent if quiet else bar
