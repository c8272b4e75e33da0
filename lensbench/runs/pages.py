"""Runs as pages for a browser: what can be read of a run and of its items, and one table of many runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lensbench.errors import LensbenchError, UsageError
from lensbench.models.sources import facts_about, planted_facts
from lensbench.report.content import read_readable, unfinished
from lensbench.report.leaderboard import Entry, leaderboard_page
from lensbench.report.page import ItemText, MethodText, PageRun, render
from lensbench.results.provenance import shares
from lensbench.results.records import with_attempts, without_folder
from lensbench.results.run_file import RUN_FILE
from lensbench.results.summary import SUMMARY_COLUMNS, accuracy_column, summary_and_power
from lensbench.runs.run import Run
from lensbench.tasks import Item, Task, load_tasks
from lensbench.utils.cache import atomic_file

_READ = {
    "subject": "the last token of the subject",
    "answer": "the last token of the text",
    "t1": "the last token of the first hop",
    "t2": "the last token of the query",
}


def read_page_run(path: Path | str) -> PageRun:
    """Read a run folder for a page. What cannot be read is left out, and named in `problems`.

    Raises:
        LensbenchError: not a run folder.
    """
    run = Run(path)
    done = [file for file, cell in run.info["cells"].items() if cell.get("status") == "done"]
    records, problems = read_readable(run.path, done)
    records = with_attempts(records, run.info)
    checks = _guarded(lambda: run.checks, {}, problems, "which checks the methods pass")
    unfit = [f"{name} gets no verdict: it fails {failed}" for name, one in checks.items() for failed in one.failed]
    problems = [*unfinished(run.info), *unfit, *problems]
    tasks = _tasks(run.info, problems)
    return PageRun(
        run.path.resolve().name, run.info, _summary(run, records, problems), records,
        unanswered=_guarded(lambda: run.unanswered, {}, problems, "what was not applicable"),
        calibrations={name: found and found.in_words() for name, found in _calibrations(run, problems).items()},
        methods=_guarded(lambda: _methods(run.info), {}, problems, "what methods read"), texts=_texts(tasks, records),
        relations={(task.name, one.name): one.summary for task in tasks for one in task.relations.values()},
        shares=_shares(run.info, records, problems),
        metrics=_metrics(run, problems),
        problems=tuple(problems),
    )  # fmt: skip


def write_page(runs: Sequence[PageRun], out: Path) -> int:
    """Write one page of some runs, and return its size in bytes.

    Raises:
        UsageError: the file cannot be written.
    """
    return _write(out, render(runs))


def _write(out: Path, page: str) -> int:
    content = page.encode()
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as file:
            file.write(content)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written to: {error.strerror}; choose another place") from None
    return len(content)


def _guarded(read: Any, otherwise: Any, problems: list[str], what: str) -> Any:
    """Call a function of a run whose `run.json` may be of another version."""
    try:
        return read()
    except (LensbenchError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"run.json has no {error}" if isinstance(error, KeyError) else str(error)
        problems.append(f"{what} cannot be told: {reason}")
        return otherwise


def _calibrations(run: Run, problems: list[str]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _guarded(lambda: run.calibrations, {}, problems, "calibration")
    return found


def _summary(run: Run, records: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """The summary as it was written, or else made again from the records that could be read."""
    empty = pd.DataFrame({name: pd.Series(dtype=object) for name in SUMMARY_COLUMNS})
    try:
        return run.summary
    except LensbenchError as error:
        if records.empty:
            return empty
        problems.append(f"{_reason(error, run)}: the figures were made again from the records that could be read")
    found: pd.DataFrame = _guarded(
        lambda: summary_and_power(records, run.settings, run.crossed)[0], empty, problems, "accuracy by layer"
    )
    return found


def _metrics(run: Run, problems: list[str]) -> pd.DataFrame:
    try:
        return run.metrics
    except LensbenchError as error:
        problems.append(f"{_reason(error, run)}: measures besides accuracy are not shown")
        return pd.DataFrame()


def _reason(error: LensbenchError, run: Run) -> str:
    """What is wrong, without what to do: who gets a page may not have the run."""
    return without_folder(str(error).partition(":")[0], run.path)


def _tasks(info: Mapping[str, Any], problems: list[str]) -> list[Task]:
    found = []
    for spec in info.get("config", {}).get("tasks") or ():
        try:
            found += load_tasks([spec], offline=True)
        except LensbenchError as error:
            problems.append(f"source texts of {spec} are not shown: {str(error).splitlines()[0]}")
    return found


def _methods(info: Mapping[str, Any]) -> dict[str, MethodText]:
    """What `run.json` says of the methods; runs of earlier versions say nothing."""
    described = info.get("methods", {})
    return {
        name: MethodText(one["summary"], tuple(one["reads"]), one["learns_from"]) for name, one in described.items()
    }


def _texts(tasks: list[Task], records: pd.DataFrame) -> dict[tuple[str, str], ItemText]:
    """Source texts of the tasks as they are now, of the items whose gold answer is still what it was."""
    seen = records.drop_duplicates(["task", "item"])
    asked = dict(zip(zip(seen["task"].astype(str), seen["item"].astype(str), strict=True), seen["gold"], strict=True))
    # Of names cut after a token, and of positions in prose, the whole text is known.
    asked |= {(task, item.rpartition("@")[0]): gold for (task, item), gold in asked.items() if "@" in item}
    return {
        (task.name, item.id): _text(item)
        for task in tasks
        for site in task.sites
        for item in task.items(site, "test")
        if (task.name, item.id) in asked and item.answer in ("", str(asked[task.name, item.id]))
    }


def _text(item: Item) -> ItemText:
    # Tokens are the model's; what is marked is the subject, or the last word.
    end = len(item.source.rstrip())
    if item.turns:  # what is read last is the template's, or what the assistant has written last
        note = "the last token of this conversation, as the model's chat template writes it"
        return ItemText(item.source, end, end, note, item.question)
    start, end = item.subject_span if item.place == "subject" else (item.source.rfind(" ", 0, end) + 1, end)
    return ItemText(item.source, start, end, _READ.get(item.place, item.place), item.question)


def _shares(info: Mapping[str, Any], records: pd.DataFrame, problems: list[str]) -> pd.DataFrame | None:
    """Whose facts answers follow, where target and verbalizer are edits that were told different ones."""
    config = info.get("config", {})
    names = [str(config.get(role) or "") for role in ("model", "verbalizer")]
    if records.empty or not all("+" in name for name in names):
        return None
    try:
        relations = records["relation"].astype(str).unique()
        facts = [planted_facts(name) for name in names]
        own, other = ({one: facts_about(one, planted) for one in relations} for planted in facts)
        return shares(records, own, other)
    except LensbenchError as error:
        problems.append(f"whose facts the answers follow cannot be told: {error}")
        return None


@dataclass(frozen=True)
class Board:
    """The runs of a leaderboard that could be read, and what is wrong with the others."""

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
    cards = {method: _card(one["card"]) for method, one in run.info.get("methods", {}).items() if "card" in one}
    exam = str(run.info["setting"].get("exam", ""))
    return Entry(name, run.best, known, accuracy_column(run.score), exam, cards)


def _card(card: dict[str, Any]) -> str:
    """What the card of a method says that was graded by an exam, in words."""
    version = f"version {card['version']}" if card["version"] else ""
    attempts = f"{len(card['attempts'])} attempts" if len(card["attempts"]) > 1 else ""
    learns = f"learns from {card['learns_from']}"
    return ", ".join(filter(None, (card["author"], version, learns, attempts)))


def write_leaderboard(folder: Path | str, out: Path | str) -> Board:
    """Write one page of all runs in a folder, and return what it is made of.

    Raises:
        UsageError: no run folder, or a file that cannot be written to.
    """
    board = read_board(folder)
    _write(Path(out), leaderboard_page(board.entries, board.problems))
    return board
