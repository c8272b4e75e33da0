"""`lensbench export`: a run for other programs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lensbench.cli.application import app, say_what_happens
from lensbench.cli.options import Json, Quiet, RunFolder, print_files


class Format(StrEnum):
    """What can be written."""

    csv = "csv"
    lm_eval = "lm-eval"
    inspect = "inspect"


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="The folder to write to.", show_default=False)],
    format_: Annotated[
        Format,
        typer.Option(
            "--format", help="csv: tables. lm-eval: files of lm-evaluation-harness. inspect: logs of inspect-ai."
        ),
    ] = Format.csv,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a run for other programs: CSV tables, files of lm-evaluation-harness, or logs of inspect-ai.

    Examples: `lensbench export reports/RUN --out tables`; `lensbench export reports/RUN --format lm-eval --out harness`
    """
    say_what_happens(quiet=quiet)
    from lensbench.runs.export import export as write

    print_files(write(run, out, format_.value), as_json=as_json)
