"""The table that the terminal shows at the end of a run."""

import math
import textwrap
from collections.abc import Collection, Iterator
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lensbench.report.style import readable
from lensbench.results.records import ALL
from lensbench.results.verdicts import VERDICTS

FOOTNOTE = (
    "Accuracy is closed choice, prior-corrected, at the method's best layer. Totals are relation means of (accuracy - "
    "chance) / (1 - chance): 0 is chance, 1 is perfect. The questions: does the method use the activation; does it "
    "beat the text; and, where another model reads, is it about the target? The gap is to the strongest rival there, "
    "with a 95 % interval that holds for all layers at once, so that choosing the best layer is allowed for. A "
    "verdict needs every rival, under the raw score too. Lenses are ranked only at `answer`; at `subject` nobody has "
    "asked them. A Patchscope at `subject` whose verbalizer is the target shows what this reader can recover, not "
    "where the attribute is."
)
_QUESTIONS = {"uses_activation": "activation", "beats_text": "text", "target_specific": "target"}
_WIDE = 4000


def result_table(
    best: pd.DataFrame, *, narrow: bool = False, apart: Collection[tuple[str, str]] = frozenset()
) -> Group:
    """For each relation and site, and last the totals: each method's best layer, its strongest rivals and the verdicts.

    Args:
        best: as `best_layers` gives it.
        narrow: fit 80 columns; words wrap, and no number is cut.
        apart: (task, relation) pairs that have no part in totals.
    """
    places: list[RenderableType] = []
    for place, rows in _places(best, apart):
        lines = [line for row in rows.to_dict("records") for line in _lines(row)]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("method", no_wrap=True)
        for name in ("layer", "acc."):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("strongest rival", width=9 if narrow else None)
        table.add_column("gap, interval", no_wrap=True)
        table.add_column("verdict", width=12 if narrow else None)
        for line in lines:
            table.add_row(*line)
        places += [Text(place, style="bold"), table, Text()]
    return Group(*places, Text(textwrap.fill(FOOTNOTE, 79)))


def _places(best: pd.DataFrame, apart: Collection[tuple[str, str]]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each model, task, relation and site with its title; totals last, and none of a single relation."""
    groups = dict(iter(best.groupby(["model", "task", "relation", "site"], observed=True, sort=False)))
    several_models = best["model"].nunique() > 1
    for total in (False, True):
        for (model, task, relation, site), rows in groups.items():
            if (relation == ALL) != total:
                continue
            if total and sum(key[:2] == (model, task) and key[3] == site for key in groups) == 2:
                continue
            what = _share(groups, (str(model), str(task), str(site)), apart) if total else relation
            chance = "" if total else f", chance {number(float(rows['chance'].mean()))}"
            where = f"{task} / {what}, read at {site} ({rows['subjects'].max()} subjects{chance})"
            yield (f"{model}: {where}" if several_models else where), rows


def _share(groups: dict[Any, pd.DataFrame], place: tuple[str, str, str], apart: Collection[tuple[str, str]]) -> str:
    """Which relations a total is over: those that all methods answered."""
    here = {key[2]: set(rows["inspector"]) for key, rows in groups.items() if (*key[:2], key[3]) == place}
    here.pop(ALL)
    here = {relation: methods for relation, methods in here.items() if (place[1], relation) not in apart}
    methods = set().union(*here.values())
    complete = [relation for relation, answered in here.items() if answered == methods]
    if len(complete) == len(here):
        return f"all {len(here)} relations"
    return f"the {len(complete)} of {len(here)} relations that all methods answered"


def _lines(row: dict[Any, Any]) -> Iterator[tuple[str | Text, ...]]:
    """One line a question; the method is named in the first."""
    layer = "-" if pd.isna(row["layer"]) else str(row["layer"])
    method = [str(row["inspector"]), layer, number(row["accuracy_corrected"])]
    asked = [q for q in VERDICTS if f"{q}_verdict" in row and not pd.isna(row[f"{q}_verdict"])]
    if not asked:
        yield (*method, "", "", "", "no rival")
    for i, question in enumerate(asked):
        gap, low, high = (number(row[f"{question}_{part}"], signed=True) for part in ("gap", "gap_low", "gap_high"))
        rival = f"{readable(row[f'{question}_rival'])} {number(row[f'{question}_rival_accuracy'])}"
        verdict = Text(readable(row[f"{question}_verdict"]), style="bold")
        interval = Text(f"{gap} [{low}, {high}]")
        yield (*(method if i == 0 else ["", "", ""]), _QUESTIONS[question], rival, interval, verdict)


def number(value: float, *, signed: bool = False) -> str:
    """A proportion with two decimals and no leading zero, as in papers: .75, -.03, +.10."""
    if math.isnan(value):
        return "-"
    text = f"{value:+.2f}" if signed else f"{value:.2f}"
    text = text.replace("-0.00", "0.00").replace("+0.00", "0.00")
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text


def print_table(table: RenderableType, console: Console | None = None) -> None:
    """Print a table. Where the output is not a terminal nothing is wrapped or cut, however wide the table is."""
    shown = console or Console()
    width = shown.width
    if not shown.is_terminal:
        # Only as wide as is needed: titles are padded to any width.
        shown.width = Measurement.get(shown, shown.options.update(width=_WIDE), table).maximum
    shown.print(table)
    shown.width = width
