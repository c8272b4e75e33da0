"""`lensbench new`: a file to start from."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app
from lensbench.cli.options import Json, Quiet, print_files


class TemplateKind(StrEnum):
    """What can be written."""

    inspector = "inspector"
    task = "task"
    baseline = "baseline"


@app.command()
def new(
    kind: Annotated[TemplateKind, typer.Argument(help="A method, a task or a baseline.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and _.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder to put it into.")] = Path(),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a method, task or baseline to start from. It passes the checks as it is, and can be evaluated at once.

    Examples: `lensbench new inspector my_lens`; `lensbench new task my_task --out tasks_of_mine`;
    `lensbench new baseline my_rival`
    """
    from lensbench.explore.scaffold import new as write

    written = write(kind.value, name, out)
    if as_json:
        print_files(written.files, as_json=True, folder=str(written.folder), next_steps=list(written.next_steps))
        return
    print_files(written.files, as_json=False)
    if quiet:
        return
    console = Console(stderr=True, soft_wrap=True)
    where = "" if written.folder == Path() else f" in {shlex.quote(str(written.folder))}"
    console.print(f"Try it{where}:", highlight=False, markup=False)
    for step in written.next_steps:
        console.print(f"  {step}", highlight=False, markup=False)
