"""The tables that the terminal shows: the results of a run, two runs side by side, plain rows of text."""

import math
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lensbench.report.style import readable
from lensbench.results.compare import BEST, FIRST_HIGHER, SECOND_HIGHER
from lensbench.results.records import ALL
from lensbench.results.summary import spans
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
        baseline = f"{readable(row[f'{question}_baseline'])} {number(row[f'{question}_baseline_accuracy'])}"
        verdict = Text(readable(row[f"{question}_verdict"]), style="bold")
        interval = Text(f"{gap} [{low}, {high}]")
        yield (*(method if i == 0 else ["", "", ""]), _QUESTIONS[question], baseline, interval, verdict)


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


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows as a table, never cut where the output is piped."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, no_wrap=place == 0)  # names are to be typed
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    print_table(table)


_LONG = 48


def show_comparison(
    settings: pd.DataFrame, differences: pd.DataFrame, changed: pd.DataFrame, unpaired: pd.DataFrame
) -> None:
    """Print what differs between two runs: settings, accuracies, items, and what only one of them has.

    Args:
        settings: setting, first, second.
        differences: rows as `differences.differences` makes them, at best layers and at each.
        changed: the items to be shown.
        unpaired: what, name, where, count, examples.
    """
    console = Console(soft_wrap=True)
    if len(settings):
        rows = [[str(row["setting"]), *(_short(row[side]) for side in ("first", "second"))] for row in _dicts(settings)]
        print_rows(("set otherwise", "first", "second"), rows)
    else:
        console.print("Nothing is set otherwise.")
    best = differences[differences["at"] == BEST]
    for (task, site), rows_here in best.groupby(["task", "site"], sort=False):
        here = differences[(differences["task"] == task) & (differences["site"] == site)]
        console.print(f"{task}, read at {site}", style="bold", highlight=False, markup=False)
        print_rows(_HEAD, [_row(row, here) for row in _dicts(rows_here)])
    if len(changed):
        print_rows(("changed item", "method", "layers", "gold", "first", "second", ""), map(_item, _dicts(changed)))
    for row in _dicts(unpaired):
        several = f"{row['count']} " if row["what"] in ("items", "layers") else ""
        text = f"{row['where']}: {several}{row['what']}, {row['name']} ({row['examples']})"
        console.print(text, highlight=False, markup=False)


_HEAD = (
    "relation", "method", "layers", "first", "second", "difference", "p", "items +/-", "verdict", "layers that differ",
)  # fmt: skip


def _dicts(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    return frame.to_dict("records")


def _row(row: dict[Any, Any], here: pd.DataFrame) -> Sequence[str]:
    methods = pd.concat([here[name] == row[name] for name in ("inspector", "other_inspector")], axis=1).all(axis=1)
    keep = (here["at"] != BEST) & methods & (here["relation"] == row["relation"])
    relation = f"all {here[methods]['relation'].nunique() - 1}" if row["relation"] == ALL else row["relation"]
    interval = f"{number(row['difference'], signed=True)} " + "[{}, {}]".format(
        *(number(row[side], signed=True) for side in ("low", "high"))
    )
    return (
        f"{relation} ({row['n']} items)", _method(row), _layers(row), number(row["accuracy"]),
        number(row["other_accuracy"]), interval, f"{row['p_holm']:.3f}", f"+{row['gained']} -{row['lost']}",
        row["verdict"], _where(here[keep]),
    )  # fmt: skip


def _method(row: dict[Any, Any]) -> str:
    first, second = row["inspector"], row["other_inspector"]
    return str(first) if first == second else f"{first} → {second}"


def _layers(row: dict[Any, Any]) -> str:
    first, second = ("-" if pd.isna(row[name]) else str(row[name]) for name in ("layer", "other_layer"))
    return first if first == second else f"{first} → {second}"


def _where(by_layer: pd.DataFrame) -> str:
    """The layers at which one side is higher, as spans: `first 3-8; second 20`."""
    asked = [int(layer) for layer in by_layer["layer"].dropna()]
    parts = []
    for verdict, name in ((FIRST_HIGHER, "first"), (SECOND_HIGHER, "second")):
        found = [int(layer) for layer in by_layer.loc[by_layer["verdict"] == verdict, "layer"].dropna()]
        if found:
            parts.append(f"{name} {spans(found, asked)}")
    return "; ".join(parts) or "-"


def _item(row: dict[Any, Any]) -> Sequence[str]:
    return (
        f"{row['subject']} ({row['relation']}, {row['item'].rpartition('/')[2]})", readable(_method(row)), _layers(row),
        str(row["gold"]), str(row["predicted"]), str(row["other_predicted"]), str(row["change"]),
    )  # fmt: skip


def _short(value: Any) -> str:
    if pd.isna(value):
        return "-"
    text = str(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"
