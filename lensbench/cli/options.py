"""Options that several commands have, and how what is given is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lensbench.errors import UsageError

RunFolder = Annotated[Path, typer.Argument(help="A run folder, as `lensbench evaluate` wrote it.", show_default=False)]
Model = Annotated[str, typer.Option(help="Built-in name, folder, GGUF file or Hub id; +DIR for an edit of it.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, float64.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the Hub.")]
ModulePaths = Annotated[
    str | None, typer.Option(help="blocks=PATH,norm=PATH, for a model whose structure is not found.")
]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on the error stream but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def print_json(found: Any) -> None:
    """Print an object as JSON; NaN, which JSON has not, becomes null."""
    import json

    from lensbench.results.records import without_nan

    typer.echo(json.dumps(without_nan(found), indent=1))


def print_files(written: Sequence[Path], *, as_json: bool, **more: Any) -> None:
    """Print the files that a command wrote, one a line; or, as JSON, with what else there is to say of them."""
    if as_json:
        print_json({"files": [str(path) for path in written], **more})
        return
    for path in written:
        typer.echo(path)


def names_in(given: str) -> tuple[str, ...]:
    """Read names with commas between."""
    return tuple(part.strip() for part in given.split(",") if part.strip())


def numbers_in(option: str, given: str) -> tuple[float, ...]:
    """Read numbers with commas between.

    Raises:
        UsageError: something else.
    """
    try:
        return tuple(float(part) for part in given.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"{option} {given!r}: expected numbers with commas between, such as 1,1.2") from None


def read_module_paths(given: str | None) -> dict[str, str] | None:
    """Read `blocks=PATH,norm=PATH`.

    Raises:
        UsageError: another form.
    """
    if given is None:
        return None
    pairs = [part.partition("=") for part in given.split(",")]
    if sorted(name for name, _, _ in pairs) != ["blocks", "norm"] or not all(path for _, _, path in pairs):
        raise UsageError(
            f"--module-paths {given!r}: expected blocks=PATH,norm=PATH, such as blocks=model.layers,norm=model.norm"
        )
    return {name: path for name, _, path in pairs}


def read_value(given: str) -> Any:
    """Read the value of a `--set`: as TOML, or as plain text."""
    import tomllib

    try:
        return tomllib.loads(f"value = {given}")["value"]
    except tomllib.TOMLDecodeError:
        return given


def read_settings(given: Sequence[str], form: str) -> dict[str, Any]:
    """Read each `name=value`, the value as TOML or as plain text.

    Args:
        given: those of `--set`.
        form: what is expected, with an example.

    Raises:
        UsageError: one without a name or an equals sign.
    """
    found: dict[str, Any] = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not (name and equals):
            raise UsageError(f"--set {entry!r}: expected {form}")
        found[name] = read_value(value)
    return found
