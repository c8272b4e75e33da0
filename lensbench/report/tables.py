"""The tables that the terminal shows: the results of a run, two runs side by side, plain rows of text."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lensbench.report.sentences import asked, counted_relations, headline, verdict_in_words
from lensbench.report.wording import number, readable
from lensbench.results.compare import BEST, FIRST_HIGHER, SECOND_HIGHER
from lensbench.results.records import ALL
from lensbench.results.summary import spans
from lensbench.results.verdicts import USED, VERDICTS

FOOTNOTE = (
    "Accuracy (acc.) is closed choice and prior-corrected, at the method's best layer; raw stands beside it. Totals "
    "are means over the method's own relations of (accuracy - chance) / (1 - chance): 0 is chance, 1 is perfect. The "
    "gap is to the strongest baseline there, with a 95 % interval that holds for all layers at once. Whether the "
    "activation is used is decided by a permutation test of whose activation is read, where there is one; every other "
    "claim needs a gap above 0 to each baseline. Baselines that cost as much as the method (gaussian, random_model) "
    "are asked at every fourth layer; between two of these, the better of their scores counts. Lenses are asked "
    "nothing at `subject`: rank them at `answer`. A Patchscope at `subject` whose verbalizer is the target shows what "
    "this reader can recover, not where the model keeps the fact."
)
USED_FOOTNOTE = (
    "Beside `random direction`, the gap is the effect that what is read has on the target's answer when it is put in "
    "from another item, as a share of the whole residual's effect, less the same for a random direction."
)
_QUESTIONS = {
    "uses_activation": "uses the activation",
    "beats_text": "beats the text",
    "target_specific": "privileged",
    USED: "used by the model",
}
_WIDE = 4000


def result_table(best: pd.DataFrame, *, narrow: bool = False) -> Group:
    """For each relation and site, and last the totals: each method's best layer, strongest baselines and verdicts.

    Args:
        best: as `best_layers` gives it.
        narrow: fit 80 columns; words wrap, and no number is cut.
    """
    places: list[RenderableType] = []
    for place, rows in _places(best):
        table = _table()
        table.add_column("method", no_wrap=True)
        for name in ("layer", "acc.", *(() if narrow else ("raw",))):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("strongest baseline", width=9 if narrow else None)
        table.add_column("gap, interval", no_wrap=True)
        table.add_column("verdict", width=14 if narrow else None)
        for row in rows.to_dict("records"):
            for line in _lines(row, narrow=narrow):
                table.add_row(*line)
        places += [Text(place, style="bold"), table, Text()]
    used = [USED_FOOTNOTE] if any(USED in asked(row) for row in best.to_dict("records")) else []
    return Group(*places, *(Text(textwrap.fill(note, 79)) for note in (*warnings(best), FOOTNOTE, *used)))


def brief_table(best: pd.DataFrame) -> Table:
    """One line a task, site and method: its best layer and the answer to each question, on totals or the only relation.

    Args:
        best: as `best_layers` gives it.
    """
    parts = [headline(rows) for _, rows in best.groupby(["model", "task", "site"], observed=True, sort=False)]
    rows = [row for part in parts for row in part.to_dict("records")]
    questions = [question for question in VERDICTS if any(question in asked(row) for row in rows)]
    table, several = _table(), len({row["task"] for row in rows}) > 1
    for name in (*(["task"] if several else []), "site", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("layer", "acc."):
        table.add_column(name, justify="right", no_wrap=True)
    for question in questions:
        table.add_column(f"{_QUESTIONS[question]}?")
    for row in rows:
        answers = [_brief(row, question) if question in asked(row) else "" for question in questions]
        table.add_row(*([str(row["task"])] if several else []), str(row["site"]), *_named(row)[:3], *answers)
    return table


def _brief(row: dict[Any, Any], question: str) -> str:
    """The answer to a question that stands above the column."""
    told = verdict_in_words(row, question)
    return f"yes{told.removeprefix(VERDICTS[question])}" if told.startswith(VERDICTS[question]) else told


def warnings(best: pd.DataFrame) -> list[str]:
    """Return a sentence on the results that the prior correction makes worse; empty where there are none."""
    worse = best[(best["accuracy"] - best["accuracy_corrected"] >= HURTS) & (best["relation"] != ALL)]
    if worse.empty:
        return []
    named = [f"{row['inspector']} on {row['relation']} at {row['site']}" for row in worse.to_dict("records")]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return [
        f"The raw accuracy is higher by {number(HURTS)} or more for {'; '.join(named[:3])}{more}: where few answers "
        "are frequent, the prior correction takes away what is right. With --score raw, set before a run, the raw "
        "score decides."
    ]


HURTS = 0.1
"""A raw accuracy that is higher by so much is reported."""


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _places(best: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each model, task, relation and site with its title; totals last, and none of a single relation."""
    groups = dict(iter(best.groupby(["model", "task", "relation", "site"], observed=True, sort=False)))
    several_models = best["model"].nunique() > 1
    for total in (False, True):
        for (model, task, relation, site), rows in groups.items():
            if (relation == ALL) != total:
                continue
            if total and sum(key[:2] == (model, task) and key[3] == site for key in groups) == 2:
                continue
            what = "each method's own relations" if total else relation
            chance = "" if total else f", chance {number(float(rows['chance'].mean()))}"
            where = f"{task} / {what}, read at {site} ({rows['subjects'].max()} subjects{chance})"
            yield (f"{model}: {where}" if several_models else where), rows


def _named(row: dict[Any, Any], *, narrow: bool = False) -> list[str]:
    """The method, its best layer, and both accuracies there; in a narrow table the corrected one alone."""
    counted = counted_relations(row) if row["relation"] == ALL else ""
    several = f" ({counted.partition(' ')[0] if narrow else counted})" if counted else ""
    layer = "-" if pd.isna(row["layer"]) else str(row["layer"])
    accuracies = [number(row["accuracy_corrected"]), number(row["accuracy"])]
    return [f"{row['inspector']}{several}", layer, *accuracies[: 1 if narrow else 2]]


def _lines(row: dict[Any, Any], *, narrow: bool) -> Iterator[tuple[str | Text, ...]]:
    """One line a question; the method is named in the first."""
    method, questions = _named(row, narrow=narrow), asked(row)
    if not questions:
        yield (*method, "", "", "no baseline")
    for i, question in enumerate(questions):
        gap, low, high = (number(row[f"{question}_{part}"], signed=True) for part in ("gap", "gap_low", "gap_high"))
        baseline = f"{readable(row[f'{question}_baseline'])} {number(row[f'{question}_baseline_accuracy'])}"
        verdict = Text(verdict_in_words(row, question), style="bold")
        yield (*(method if i == 0 else [""] * len(method)), baseline, Text(f"{gap} [{low}, {high}]"), verdict)


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


def comparison_rows(comparisons: pd.DataFrame) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    """Return the head and the rows of a table of methods that are compared with each other.

    Args:
        comparisons: as `between_methods` gives it.
    """
    head = ("task", "site", "first", "second", "items", "accuracies", "difference", "p, adjusted", "")
    rows = [
        (row["task"], row["site"], row["inspector"], row["other_inspector"], str(row["n"]),
         f"{number(row['accuracy'])} {number(row['other_accuracy'])}", _interval(row), f"{row['p_holm']:.3f}",
         row["verdict"])
        for row in _dicts(comparisons)
    ]  # fmt: skip
    return head, rows


def _interval(row: dict[Any, Any]) -> str:
    low, high = (number(row[side], signed=True) for side in ("low", "high"))
    return f"{number(row['difference'], signed=True)} [{low}, {high}]"


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
    return (
        f"{relation} ({row['n']} items)", _method(row), _layers(row), number(row["accuracy"]),
        number(row["other_accuracy"]), _interval(row), f"{row['p_holm']:.3f}", f"+{row['gained']} -{row['lost']}",
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
