"""Options that several commands have, and how what is given is read."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lensbench.cli.completion import COMPLETE
from lensbench.errors import UsageError

RunFolder = Annotated[Path, typer.Argument(help="A run folder, written by `lensbench evaluate`.", show_default=False)]
Command = TypeVar("Command", bound=Callable[..., Any])
_MODEL = "Built-in name, folder, GGUF file or Hub id (@REVISION for a revision of it); +DIR for an edit of it."
_LAYERS = "all; or stride:2; or a list such as 0,4-8,last. Layer 0 is the embeddings."
Model = Annotated[str, typer.Option(help=_MODEL, autocompletion=COMPLETE["model"])]
Layers = Annotated[str, typer.Option(help=_LAYERS, autocompletion=COMPLETE["layers"])]
Inspectors = Annotated[
    str,
    typer.Option(
        help="Inspector names, module:Class or file.py:Class, separated by commas.",
        autocompletion=COMPLETE["inspectors"],
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...", autocompletion=COMPLETE["device"])]
Dtype = Annotated[
    str, typer.Option(help="auto, float32, bfloat16, float16, float64.", autocompletion=COMPLETE["dtype"])
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")]
Offline = Annotated[bool, typer.Option("--offline", help="Do not contact the Hub.")]
ModulePaths = Annotated[
    str | None, typer.Option(help="blocks=PATH,norm=PATH, if the structure of the model is not recognised.")
]
ModelArgs = Annotated[
    str | None,
    typer.Option(help="How the model is loaded: attn_implementation=eager,load_in_8bit=true, ..."),
]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors on the error stream.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def print_json(found: Any) -> None:
    """Print an object as JSON; NaN, which JSON lacks, becomes null."""
    import json

    from lensbench.results.records import without_nan

    typer.echo(json.dumps(without_nan(found), indent=1))


def print_files(written: Sequence[Path], *, as_json: bool, **more: Any) -> None:
    """Print the files that a command wrote, one on each line; or, as JSON, with more about them."""
    if as_json:
        print_json({"files": [str(path) for path in written], **more})
        return
    for path in written:
        typer.echo(path)


def names_in(given: str) -> tuple[str, ...]:
    """Read names separated by commas."""
    return tuple(part.strip() for part in given.split(",") if part.strip())


def numbers_in(option: str, given: str) -> tuple[float, ...]:
    """Read numbers separated by commas.

    Raises:
        UsageError: something else.
    """
    try:
        return tuple(float(part) for part in given.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"{option} {given!r}: expected numbers separated by commas, such as 1,1.2") from None


def read_module_paths(given: str | None) -> dict[str, str] | None:
    """Read `blocks=PATH,norm=PATH`.

    Raises:
        UsageError: another form.
    """
    if given is None:
        return None
    from lensbench.evaluation.config import parse_module_paths

    try:
        return parse_module_paths(given)
    except ValueError as error:
        raise UsageError(f"--module-paths {given!r}: {error}") from None


def read_model_args(model: str, given: str | None, dtype: str) -> dict[str, Any]:
    """Read `KEY=VALUE,KEY=VALUE`, and check all of it before anything is loaded.

    Raises:
        UsageError: another form, an unknown key or value, or a dtype other than `--dtype`.
    """
    from lensbench.models.model_args import check_model_args, parse_model_args, refuse_edits, with_dtype
    from lensbench.models.sources import split_edits

    found = parse_model_args(given) if given is not None else {}
    args = check_model_args(with_dtype(found, dtype)[0])
    if split_edits(model)[1]:
        refuse_edits(args, model)
    return found


def read_value(given: str) -> Any:
    """Read the value of a `--set`: as TOML, or as plain text."""
    import tomllib

    try:
        return tomllib.loads(f"value = {given}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
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


def read_parameters(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read each `inspector.parameter=value`, the value as TOML or as plain text.

    Raises:
        UsageError: another form.
    """
    parameters: dict[str, dict[str, Any]] = {}
    for entry in given:
        place, equals, value = entry.partition("=")
        # A module:Class may hold dots itself: the parameter is what follows the last one.
        inspector, dot, name = place.rpartition(".")
        if not (equals and dot):
            raise UsageError(f"--set {entry!r}: expected INSPECTOR.PARAMETER=VALUE, such as patchscope.placeholder=y")
        parameters.setdefault(inspector, {})[name] = read_value(value)
    return parameters


def options_of(settings: type[BaseModel], *, without: Sequence[str] = ()) -> Callable[[Command], Command]:
    """Give a command an option for each field of its settings, with the field's description as help.

    The command gets the fields that were set as its first argument, a dictionary; its other parameters stay options of
    its own.

    Args:
        settings: a pydantic model. Fields that hold several values are given as text with commas between, and are split
            by the model.
        without: fields that are no options.
    """
    fields = {name: field for name, field in settings.model_fields.items() if name not in without}

    def decorate(command: Command) -> Command:
        def call(**given: Any) -> Any:
            chosen = {name: value for name in fields if (value := given.pop(name)) is not None}
            return command(chosen, **given)

        _, *own = inspect.signature(command).parameters.values()
        generated = [_option(name, field) for name, field in fields.items()]
        shown: Any = call
        shown.__name__, shown.__doc__ = command.__name__, command.__doc__
        shown.__signature__ = inspect.Signature([*generated, *(one.replace(kind=one.KEYWORD_ONLY) for one in own)])
        shown.__annotations__ = {one.name: one.annotation for one in shown.__signature__.parameters.values()}
        return cast("Command", shown)

    return decorate


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    kinds = get_args(field.annotation) or (field.annotation,)
    kind: Any = next((one for one in (bool, int, float, Path) if one in kinds), str)
    if any(get_origin(one) is Literal for one in kinds):
        kind = str  # such as a size, or `auto`
    flag = f"--{name.replace('_', '-')}"
    text = f"{field.description}{_shown(field.default)}"
    more: dict[str, Any] = {"autocompletion": COMPLETE[name]} if name in COMPLETE else {}
    given = Annotated[kind | None, typer.Option(flag, help=text, show_default=False, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=given)


def _shown(default: Any) -> str:
    """Return a default as it would be given; a description says what None stands for."""
    if default is None or isinstance(default, bool):
        return ""
    return f" [default: {', '.join(default) if isinstance(default, tuple) else default}]"
