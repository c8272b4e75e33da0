"""The application that commands are added to, and what they share."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup
from typer.models import CommandFunctionType

from lensbench.errors import LensbenchError, UsageError
from lensbench.utils.progress import Progress, bar, silent

_SAME = {"--methods": "--inspectors", "--method": "--inspector", "--task": "--tasks", "--tasks": "--task"}
"""Option → the same in another word."""


class _WithoutTypesOfFlags:
    """Leaves `<bool>` out of the help: a flag takes no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for one in params:
            if getattr(one, "is_flag", False):
                one.metavar = ""
        return params


class _Command(_WithoutTypesOfFlags, TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; an option's other word stands for it where the command has only the one."""
        known = {option for one in self.params for option in one.opts}

        def meant(given: str) -> str:
            option, equals, value = given.partition("=")
            other = _SAME.get(option)
            return f"{other}{equals}{value}" if option not in known and other in known else given

        given = [meant(one) for one in args]
        self._refuse_empty_paths(given)
        return super().parse_args(ctx, given)

    def _refuse_empty_paths(self, args: list[str]) -> None:
        """Refuse `--out ""`, which would be the current folder."""
        kinds = {option: getattr(one, "type_descriptor", None) for one in self.params for option in one.opts}
        paths = {option for option, kind in kinds.items() if getattr(kind, "annotation", None) is Path}
        for option, value in zip(args, [*args[1:], None], strict=True):
            if (option in paths and value == "") or option in {f"{one}=" for one in paths}:
                raise UsageError(f"{option.rstrip('=')} '' is empty; give a name")


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
        complain(f"{error.format_message().rstrip('.').replace('Value error, ', '')}; see `{command} --help`")
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
