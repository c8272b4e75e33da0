"""`lensbench report`: a run, or several, as one page for the browser."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app
from lensbench.errors import UsageError

PAGE = "report.html"
BOARD = "leaderboard.html"


@app.command()
def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN...", help="Run folders, as `lensbench evaluate` wrote them.")
    ] = None,
    leaderboard: Annotated[
        Path | None, typer.Option(help="A folder: one table of all runs in it, instead of pages of runs.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file. [default: report.html in the first RUN, or leaderboard.html in DIR]")
    ] = None,
) -> None:
    """Write one self-contained page of a run: results, figures, rivals, costs, every item. It needs no network.

    Examples: `lensbench report reports/RUN`; `lensbench report reports/A reports/B --out both.html`;
    `lensbench report --leaderboard reports`
    """
    if bool(runs) == (leaderboard is not None):
        raise UsageError("give run folders (RUN...), or --leaderboard DIR with a folder that holds some")
    if leaderboard is not None:
        _leaderboard(leaderboard, out or leaderboard / BOARD)
        return
    assert runs
    from lensbench.reported import reported, write_page

    shown = [reported(run) for run in runs]
    path = out or runs[0] / PAGE
    size = write_page(shown, path)
    problems = sum(len(run.problems) for run in shown)
    missing = f"; {problems} things are missing, and it says which" if problems else ""
    Console(soft_wrap=True).print(f"{path} ({size / 1e6:.1f} MB){missing}", highlight=False, markup=False)


def _leaderboard(folder: Path, out: Path) -> None:
    from lensbench.boards import write_leaderboard

    board = write_leaderboard(folder, out)
    unread = f"; {len(board.problems)} cannot be read, and it says why" if board.problems else ""
    Console(soft_wrap=True).print(
        f"{out} ({len(board.entries)} of {len(board.entries) + len(board.problems)} runs){unread}",
        highlight=False,
        markup=False,
    )
