"""The tables that the terminal shows of two runs side by side."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from rich.console import Console

from lensbench.report.rows import print_rows
from lensbench.report.style import readable
from lensbench.report.tables import number
from lensbench.results.compare import BEST, FIRST_HIGHER, SECOND_HIGHER
from lensbench.results.records import ALL

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


def spans(layers: Iterable[int], asked: Sequence[int]) -> str:
    """Write layers as spans of those that were asked: 8-20, 28."""
    found: list[list[int]] = []
    for layer in layers:
        if found and asked.index(layer) == asked.index(found[-1][-1]) + 1:
            found[-1].append(layer)
        else:
            found.append([layer])
    return ", ".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else str(one[0]) for one in found)


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
