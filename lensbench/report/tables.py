"""The table that the terminal shows at the end of a run."""

import math
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from lensbench.report.style import readable
from lensbench.statistics import VERDICTS

FOOTNOTE = """\
Accuracy is closed choice, prior-corrected; chance in brackets. Rows 'all' are relation means of
(accuracy - chance) / (1 - chance): 0 is chance, 1 is perfect.
Gaps are to the strongest rival, with 95 % intervals that hold for all layers at once, so choosing the best layer is
allowed for. A verdict needs every rival of the question, under the raw score too.
Lenses are ranked only at `answer`; at `subject` nobody has asked them. A Patchscope at `subject` whose verbalizer is
the target shows what this reader can recover, not where the attribute is."""
_QUESTIONS = {
    "uses_activation": "uses the activation?",
    "beats_text": "beats the text?",
    "target_specific": "target-specific?",
}
_WIDE = 4000


def result_table(best: pd.DataFrame, *, title: str | None = None, footnote: bool = True) -> Table:
    """One line a task, relation, site and method: its best layer, its strongest rivals, the gaps and verdicts.

    Args:
        best: as `best_layers` gives it.
        title: over the table.
        footnote: whether to say below how to read it.
    """
    verdicts = {question: f"{question}_verdict" for question in VERDICTS}
    asked = [question for question, name in verdicts.items() if name in best and best[name].notna().any()]
    table = Table(title=title, caption=FOOTNOTE if footnote else None, caption_justify="left", box=box.SIMPLE_HEAD)
    for name in ("task / relation", "site", "method"):
        table.add_column(name, no_wrap=True)
    table.add_column("best\nlayer", justify="right")
    table.add_column("accuracy\n(chance)", justify="right", no_wrap=True)
    for question in asked:
        table.add_column(f"{_QUESTIONS[question]}\nstrongest rival, gap, verdict", no_wrap=True)
    table.add_column("subjects", justify="right")
    several = best["model"].nunique() > 1
    previous = None
    for row in best.to_dict("records"):
        place = (row["model"], row["task"], row["relation"], row["site"])
        if previous is not None and place != previous:
            table.add_section()
        table.add_row(*_cells(row, asked, several, repeated=place == previous))
        previous = place
    return table


def _cells(row: dict[Any, Any], asked: list[str], several_models: bool, *, repeated: bool) -> list[str]:
    where = f"{row['task']} / {row['relation']}"
    place = ["", ""] if repeated else [f"{row['model']}: {where}" if several_models else where, str(row["site"])]
    layer = "-" if pd.isna(row["layer"]) else str(row["layer"])
    accuracy = f"{number(row['accuracy_corrected'])} ({number(row['chance'])})"
    gaps = [_gap(row, question) for question in asked]
    return [*place, str(row["inspector"]), layer, accuracy, *gaps, str(row["subjects"])]


def _gap(row: dict[Any, Any], question: str) -> str:
    if pd.isna(row[f"{question}_verdict"]):
        return "no rival"
    gap, low, high = (number(row[f"{question}_{part}"], signed=True) for part in ("gap", "gap_low", "gap_high"))
    rival = f"{readable(row[f'{question}_rival'])} {number(row[f'{question}_rival_accuracy'])}"
    return f"{rival}, {gap} \\[{low}, {high}]\n[bold]{row[f'{question}_verdict']}[/bold]"


def number(value: float, *, signed: bool = False) -> str:
    """A proportion with two decimals and no leading zero, as in papers: .75, -.03, +.10."""
    if math.isnan(value):
        return "-"
    text = f"{value:+.2f}" if signed else f"{value:.2f}"
    text = text.replace("-0.00", "0.00").replace("+0.00", "0.00")
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table. Where the output is not a terminal nothing is wrapped or cut, however wide the table is."""
    shown = console or Console()
    width = shown.width
    if not shown.is_terminal:
        # Only as wide as is needed: the caption is padded to any width.
        shown.width = Measurement.get(shown, shown.options.update(width=_WIDE), table).maximum
    shown.print(table)
    shown.width = width
