"""What is drawn, as coded tables: the summary, source x target-layer grids, whose facts; and what a run has cost."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from lensbench.report.page.coding import encode_table, numbers, words
from lensbench.results.records import ALL, NO_BASELINE

_NAMES = ("task", "relation", "site", "inspector", "baseline", "rule", "question", "strongest_baseline", "verdict")
_SHARES = ("accuracy_corrected", "accuracy", "ci_low", "ci_high", "chance", "gap", "gap_low", "gap_high")
_SCALE = 1_000_000  # the two decimals that are shown must be those of the sentences, which round the whole figure

_TARGET = re.compile(r"(?:^|(?<= ))target_layer=(?P<layer>\d+|same)(?:$| )")
_ROUTE = re.compile(r"^(?P<route>.+)@(?P<layer>\d+)$")


GRID_COLUMNS = ("task", "site", "relation", "inspector", "attempt", "variant", "target", "layer", "value", "n")


def summary_table(summary: pd.DataFrame) -> str:
    """Code the summary for the figures."""
    columns = {name: words(summary[name]) for name in _NAMES}
    columns |= {name: numbers(summary[name], _SCALE) for name in _SHARES}
    columns |= {name: numbers(summary[name]) for name in ("layer", "n", "subjects")}
    return encode_table(columns)


def target_of(attempt: str) -> tuple[str, str] | None:
    """Return what an attempt varies besides its target layer, and that layer; None where it names none."""
    found = _TARGET.search(attempt)
    if found:
        rest = " ".join(filter(None, (attempt[: found.start()].strip(), attempt[found.end() :].strip())))
        return rest, found["layer"]
    routed = _ROUTE.match(attempt)
    return (routed["route"], routed["layer"]) if routed else None


def grids(records: pd.DataFrame, outside: frozenset[tuple[str, str]] = frozenset()) -> pd.DataFrame:
    """Return the accuracy of every attempt of the methods that make several, by source layer.

    Args:
        records: of one run.
        outside: (task, relation) pairs that have no part in totals.

    Returns:
        Columns task, site, relation, inspector, attempt, variant, target, layer, value, n. `target` is the target
        layer, or the attempt's name where it has none. Rows of relation `all` are means of
        (accuracy - chance) / (1 - chance) over the relations.
    """
    own = records[(records["baseline"] == NO_BASELINE) & records["layer"].notna()]
    attempts = own.groupby("inspector", observed=True)["attempt"].nunique()
    own = own[own["inspector"].isin(attempts.index[attempts > 1])]
    if own.empty:
        return pd.DataFrame(columns=list(GRID_COLUMNS))
    keys = ["task", "site", "relation", "inspector", "attempt", "layer"]
    grouped = own.groupby(keys, observed=True, sort=True)
    cells = grouped.agg(value=("correct_corrected", "mean"), chance=("chance", "mean"), n=("item", "size"))
    cells = cells.reset_index().astype(dict.fromkeys(keys[:-1], object))
    whole = pd.concat([cells, _totals(cells, outside)], ignore_index=True)
    places = [target_of(str(attempt)) or ("", str(attempt)) for attempt in whole["attempt"]]
    return whole.assign(variant=[place[0] for place in places], target=[place[1] for place in places])[[*GRID_COLUMNS]]


def _totals(cells: pd.DataFrame, outside: frozenset[tuple[str, str]]) -> pd.DataFrame:
    counted = [pair not in outside for pair in zip(cells["task"], cells["relation"], strict=True)]
    part = cells[counted]
    part = part.assign(value=(part["value"] - part["chance"]) / (1 - part["chance"]).clip(lower=1e-9))
    keys = ["task", "site", "inspector", "attempt", "layer"]
    found = part.groupby(keys, observed=True, sort=True)
    totals = found.agg(value=("value", "mean"), n=("n", "sum"), relations=("relation", "nunique")).reset_index()
    return totals[totals["relations"] > 1].drop(columns="relations").assign(relation=ALL, chance=0.0)


def grid_table(cells: pd.DataFrame) -> str:
    """Code the grids."""
    names = ("task", "site", "relation", "inspector", "attempt", "variant", "target")
    columns = {name: words(cells[name]) for name in names}
    columns |= {"layer": numbers(cells["layer"]), "n": numbers(cells["n"]), "value": numbers(cells["value"], _SCALE)}
    return encode_table(columns)


def share_table(shares: pd.DataFrame) -> str:
    """Code the shares of answers that follow the target's facts, the verbalizer's, or neither."""
    names = ("task", "site", "relation", "inspector", "baseline", "attempt", "follows")
    columns = {name: words(shares[name]) for name in names}
    columns |= {name: numbers(shares[name], _SCALE) for name in ("share", "ci_low", "ci_high")}
    columns |= {name: numbers(shares[name]) for name in ("layer", "n", "subjects")}
    return encode_table(columns)


def costs(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each method what it has taken, and what its rivals have: seconds, learning, memory, predictions."""
    found: dict[str, dict[str, Any]] = {}
    for cell in info.get("cells", {}).values():
        name = str(cell.get("inspector", "?"))
        row = found.setdefault(name, {"method": name, **dict.fromkeys(_COSTS, 0.0)})
        own = cell.get("baseline") == NO_BASELINE
        row["seconds" if own else "rival_seconds"] += float(cell.get("seconds") or 0.0)
        row["predictions"] += int(cell.get("rows") or 0)
        row["memory"] = max(row["memory"], float(cell.get("peak_memory_mb") or 0))
        for key, name in _LEARNING.items():
            row[name] += float(cell.get("fit", {}).get(key) or 0.0) if own else 0.0
    return [found[name] for name in sorted(found)]


_COSTS = ("seconds", "rival_seconds", "fit_seconds", "tokens", "labels", "memory", "predictions")
_LEARNING = {"seconds": "fit_seconds", "training_tokens": "tokens", "training_items": "labels"}


def layers_of(summary: pd.DataFrame) -> list[int]:
    """Return all layers that were read."""
    return sorted(int(layer) for layer in np.unique(summary["layer"].dropna().to_numpy(dtype=np.int64)))


def places(summary: pd.DataFrame, records: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Yield every (task, relation, site) that has results or items; totals first, none of a single relation."""
    pairs = [frame[["task", "relation", "site"]].astype(str).drop_duplicates() for frame in (summary, records)]
    together = pd.concat(pairs, ignore_index=True).drop_duplicates()
    for (task, site), rows in together.groupby(["task", "site"], sort=True):
        relations = sorted(set(rows["relation"]) - {ALL})
        totals = [ALL] if ALL in set(rows["relation"]) and len(relations) != 1 else []
        yield from ((str(task), relation, str(site)) for relation in (*totals, *relations))
