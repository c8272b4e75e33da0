"""`lensbench fit`: learn once, and keep it in a folder."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lensbench.cli.application import app, read_module_paths, read_value, say_what_happens
from lensbench.errors import UsageError


def _parameters(given: list[str]) -> dict[str, Any]:
    """Read `parameter=value`; the value as TOML, or as plain text."""
    parameters: dict[str, Any] = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not (name and equals):
            raise UsageError(f"--set {entry!r}: expected PARAMETER=VALUE, such as steps=100")
        parameters[name] = read_value(value)
    return parameters


@app.command()
def fit(
    inspector: Annotated[
        str, typer.Argument(help="A method that learns from a corpus, such as tuned_lens.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="A new folder for what was learned.", show_default=False)],
    model: Annotated[str, typer.Option(help="Built-in name, folder, GGUF file or Hub id.")] = "smollm2-135m",
    parameter: Annotated[list[str] | None, typer.Option("--set", help="PARAMETER=VALUE; may be given again.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, float64.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask the Hub.")] = False,
    module_paths: Annotated[
        str | None, typer.Option(help="blocks=PATH,norm=PATH, for a model whose structure is not found.")
    ] = None,
) -> None:
    """Learn a lens on prose, and write it into a folder that others can use.

    Lenses are written as checkpoints of the tuned-lens package; `--set tuned_lens.checkpoint=FOLDER` reads them back.

    Example: `lensbench fit tuned_lens --model gpt2 --out gpt2-lens --set steps=100`
    """
    from lensbench.catalogue import check_inspector
    from lensbench.config import make_config
    from lensbench.model.sources import check_model_name, quiet_libraries

    sys.path.insert(0, "")  # a user's own module lies in the current folder
    settings: dict[str, Any] = {"model": model, "device": device, "dtype": dtype, "offline": offline}
    settings |= {"revision": revision, "module_paths": read_module_paths(module_paths)}
    settings |= {"inspectors": (inspector,), "parameters": {inspector: _parameters(parameter or [])}}
    config = make_config({name: value for name, value in settings.items() if value is not None})
    check_inspector(inspector)
    check_model_name(model)
    quiet_libraries()
    say_what_happens()
    from lensbench import fitting

    spent = fitting.fit(config, out)
    took = f"{spent.tokens:,} tokens, {spent.seconds:.0f} s"
    Console(soft_wrap=True).print(f"{inspector} of {model} ({took}) is in {out}", highlight=False, markup=False)
