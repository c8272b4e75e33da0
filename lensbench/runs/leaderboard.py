"""A leaderboard over many run folders."""

from dataclasses import dataclass
from pathlib import Path

from lensbench.errors import LensbenchError, UsageError
from lensbench.report.leaderboard import Entry, leaderboard_page
from lensbench.results.records import RUN_FILE, without_folder
from lensbench.runs.run import Run
from lensbench.utils.cache import atomic_file


@dataclass(frozen=True)
class Board:
    """What a leaderboard is made of: the runs that could be read, and what is wrong with the others."""

    entries: tuple[Entry, ...]
    problems: tuple[str, ...]


def read_board(folder: Path | str) -> Board:
    """Read every run folder in a folder, however deep. A run that cannot be read is named, and left out.

    Raises:
        UsageError: no such folder, or no run folder in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"no such folder: {folder}; expected one that holds run folders")
    paths = sorted(path.parent for path in root.rglob(RUN_FILE))
    if not paths:
        raise UsageError(f"{folder} holds no run folder: none has a {RUN_FILE}; `lensbench evaluate` writes them")
    entries, problems = [], []
    for path in paths:
        name = path.name if path == root else path.relative_to(root).as_posix()
        try:
            entries.append(_entry(name, Run(path)))
        except (LensbenchError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{RUN_FILE} has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            problems.append(f"{name}: {without_folder(reason, path)}")
    if not entries:
        raise LensbenchError(f"none of the {len(problems)} run folders in {folder} can be read: {problems[0]}")
    return Board(tuple(entries), tuple(problems))


def _entry(name: str, run: Run) -> Entry:
    if not run.done:
        raise LensbenchError("no cell is finished")
    known = {method: None if found is None else found.in_words() for method, found in run.calibrations.items()}
    return Entry(name, run.best, known, run.outside_totals)


def write_leaderboard(folder: Path | str, out: Path | str) -> Board:
    """Write one page of all runs in a folder, and return what it is made of.

    Raises:
        UsageError: no run folder, or a file that cannot be written to.
    """
    board = read_board(folder)
    try:
        Path(out).absolute().parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(Path(out)) as file:
            file.write(leaderboard_page(board.entries, board.problems).encode())
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written to: {error.strerror}; choose another place") from None
    return board
