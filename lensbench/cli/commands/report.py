"""`lensbench report`: a run, or several, as one page for the browser."""

from pathlib import Path
from typing import Annotated

import typer

from lensbench.cli.application import app, say_what_happens
from lensbench.cli.options import Json, Quiet, print_files
from lensbench.errors import UsageError

PAGE = "report.html"
BOARD = "leaderboard.html"


@app.command()
def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN...", help="Run folders, written by `lensbench evaluate`.")
    ] = None,
    leaderboard: Annotated[
        Path | None, typer.Option(help="A folder: write one table of all runs in it instead of a page.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write. [default: report.html in the first RUN, or leaderboard.html in DIR]"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write one self-contained page of a run: results, figures, baselines, costs, every item. It needs no network.

    Examples: `lensbench report reports/RUN`; `lensbench report reports/A reports/B --out both.html`;
    `lensbench report --leaderboard reports`
    """
    if bool(runs) == (leaderboard is not None):
        raise UsageError("give run folders (RUN...), or --leaderboard DIR with a folder that contains some")
    say_what_happens(quiet=quiet)
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out}: expected a file that ends in .html")
    if leaderboard is not None:
        _leaderboard(leaderboard, out or leaderboard / BOARD, as_json=as_json)
        return
    assert runs
    from lensbench.runs.pages import read_page_run, write_page

    shown = [read_page_run(run) for run in runs]
    path = out or runs[0] / PAGE
    size = write_page(shown, path)
    problems = [problem for run in shown for problem in run.problems]
    if as_json:
        print_files([path], as_json=True, bytes=size, missing=problems)
        return
    missing = f"; it lists {len(problems)} missing parts" if problems else ""
    typer.echo(f"{path} ({size / 1e6:.1f} MB){missing}")


def _leaderboard(folder: Path, out: Path, *, as_json: bool) -> None:
    from lensbench.runs.pages import write_leaderboard

    board = write_leaderboard(folder, out)
    if as_json:
        print_files([out], as_json=True, runs=len(board.entries), missing=list(board.problems))
        return
    unread = f"; it says why {len(board.problems)} cannot be read" if board.problems else ""
    typer.echo(f"{out} ({len(board.entries)} of {len(board.entries) + len(board.problems)} runs){unread}")
