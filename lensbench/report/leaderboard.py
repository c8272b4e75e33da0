"""Many runs as one table for the browser: method by model, with what stands against each figure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lensbench.report.sentences import counted_relations
from lensbench.report.wording import number, readable
from lensbench.results.records import ALL
from lensbench.results.verdicts import USED, VERDICTS

QUESTIONS = {
    "uses_activation": "Uses the activation?", "beats_text": "Beats the text?", "target_specific": "Target's own?",
    USED: "Used by the target?",
}  # fmt: skip
_TEMPLATE = "leaderboard.html.j2"


@dataclass(frozen=True)
class Entry:
    """One run on a leaderboard.

    Attributes:
        run: what it is called.
        best: as `best_layers` gives it.
        calibrations: method -> what calibration found of its very version, in words; None where it was not made.
        accuracy: the column of the score that decides.
        exam: the exam that was graded; empty where none was.
        cards: method -> what its card says beside its name, in words, where an exam was graded.
    """

    run: str
    best: pd.DataFrame
    calibrations: Mapping[str, str | None] = field(default_factory=dict)
    accuracy: str = "accuracy_corrected"
    exam: str = ""
    cards: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _BoardCell:
    """One cell: its lines of text, and the value it is sorted by; missing figures come last."""

    lines: tuple[str, ...]
    order: float | str
    holds: bool = False


def leaderboard_page(entries: Sequence[Entry], problems: Sequence[str] = ()) -> str:
    """Write the page: one row a run, task, site and method; of several relations their total.

    Args:
        entries: the runs.
        problems: what could not be read, in sentences.
    """
    rows = [row for entry in entries for row in _rows(entry)]
    # Within an exam, a task, a site and what is asked: the highest accuracy first. One exam is compared with itself.
    places = ("exam", "task", "site", "asked")
    rows.sort(key=lambda row: (*(row[name].order for name in places), -float(row["accuracy"].order)))
    exams = {"exam": "Exam"} if any(entry.exam for entry in entries) else {}
    asked = {name: title for name, title in QUESTIONS.items() if any(row[name].lines != _NOT_ASKED for row in rows)}
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template(_TEMPLATE).render(
        columns={**exams, **_BEFORE, **asked, **_AFTER}, questions=list(QUESTIONS), rows=rows, problems=list(problems),
        runs=len(entries),
    )  # fmt: skip


_NOT_ASKED = ("not asked",)
_LAST = float("-inf")
_BEFORE = {
    "method": "Method", "model": "Model", "task": "Task", "asked": "Asked", "site": "Read at", "layer": "Best layer",
    "accuracy": "Accuracy",
}  # fmt: skip
_AFTER = {"calibration": "Calibration", "run": "Run"}


def _rows(entry: Entry) -> Iterator[dict[str, _BoardCell]]:
    places = ["model", "verbalizer", "task", "site"]
    for _, rows in entry.best.groupby(places, observed=True, sort=False):
        several = rows["relation"].nunique() > 2  # one relation and its total are the same
        wanted = rows[(rows["relation"] == ALL) == several]
        for row in wanted.to_dict("records"):
            yield _row(entry, row, (counted_relations(row) or "all relations") if several else "")


def _row(entry: Entry, row: Mapping[Any, Any], total: str) -> dict[str, _BoardCell]:
    layer = row["layer"]
    known = entry.calibrations.get(row["inspector"])
    accuracy, low, high = (number(row[name]) for name in (entry.accuracy, "ci_low", "ci_high"))
    chance = "0 is chance" if total else f"chance {number(row['chance'])}"
    asked = total or readable(str(row["relation"]))
    return {
        "exam": _text(entry.exam or "-"),
        "method": _BoardCell(
            tuple(filter(None, (readable(row["inspector"]), entry.cards.get(row["inspector"], "")))),
            readable(row["inspector"]).casefold(),
        ),
        "model": _text(_model(row)),
        "task": _text(readable(row["task"])),
        "asked": _BoardCell(
            (asked, f"{row['subjects']} subject{'' if row['subjects'] == 1 else 's'}", chance), asked.casefold()
        ),
        "site": _text(row["site"]),
        "layer": _BoardCell(("-",), _LAST) if pd.isna(layer) else _BoardCell((str(layer),), float(layer)),
        "accuracy": _BoardCell((accuracy, f"[{low}, {high}]"), float(row[entry.accuracy])),
        **{question: _answer(row, question) for question in QUESTIONS},
        "calibration": _text(known or "not calibrated"),
        "run": _text(entry.run),
    }


def _text(value: Any) -> _BoardCell:
    return _BoardCell((str(value),), str(value).casefold())


def _model(row: Mapping[Any, Any]) -> str:
    model, verbalizer = str(row["model"]), str(row["verbalizer"])
    return model if model == verbalizer else f"{model}, read by {verbalizer}"


def _answer(row: Mapping[Any, Any], question: str) -> _BoardCell:
    """The verdict on a question, the gap, and the rival that it is to; sorted by the gap."""
    verdict = row.get(f"{question}_verdict")
    if not isinstance(verdict, str):
        return _BoardCell(_NOT_ASKED, _LAST)
    gap = float(row[f"{question}_gap"])
    shown, low, high = (number(row[f"{question}_{part}"], signed=True) for part in ("gap", "gap_low", "gap_high"))
    baseline = f"over {readable(str(row[f'{question}_baseline']))} {number(row[f'{question}_baseline_accuracy'])}"
    lines = (readable(verdict), f"{shown} [{low}, {high}]", baseline) if gap == gap else (readable(verdict),)
    return _BoardCell(lines, gap if gap == gap else _LAST, holds=verdict == VERDICTS[question])
