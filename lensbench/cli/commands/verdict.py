"""`lensbench verdict`: the verdicts of a run made again from its records, on every relation."""

from pathlib import Path
from typing import Annotated

import typer

from lensbench.cli.application import app, say_what_happens
from lensbench.cli.options import Json, Quiet, print_json


@app.command()
def verdict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, written by `lensbench evaluate`.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make summary, metrics and plots of a run again from its stored records, and show the verdicts on every relation.

    No model is loaded. Methods that were calibrated since the run count as calibrated.

    Example: `lensbench verdict reports/main`
    """
    say_what_happens(quiet=quiet)
    from lensbench.cli.terminal import run_as_json, show_details
    from lensbench.evaluation.journal import noting_calibrations
    from lensbench.runs.run import Run, finish

    with noting_calibrations(Run(run).path):
        finish(run)
    found = Run(run)
    print_json(run_as_json(found)) if as_json else show_details(found)
