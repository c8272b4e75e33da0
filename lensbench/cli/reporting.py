"""`lensbench report`: a run, or several, as one page for the browser."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app

PAGE = "report.html"


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, as `lensbench evaluate` wrote them.")
    ],
    out: Annotated[Path | None, typer.Option(help="The file. [default: report.html in the first RUN]")] = None,
) -> None:
    """Write one self-contained page of a run: results, figures, rivals, costs, every item. It needs no network.

    Examples: `lensbench report reports/RUN`; `lensbench report reports/A reports/B --out both.html`
    """
    from lensbench.reported import reported, write_page

    shown = [reported(run) for run in runs]
    path = out or runs[0] / PAGE
    size = write_page(shown, path)
    problems = sum(len(run.problems) for run in shown)
    missing = f"; {problems} things are missing, and it says which" if problems else ""
    Console(soft_wrap=True).print(f"{path} ({size / 1e6:.1f} MB){missing}", highlight=False, markup=False)
