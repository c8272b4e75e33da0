"""What a page says of a run besides results: other measures, and what each method has cost."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lensbench.report.view import span
from lensbench.report.wording import readable
from lensbench.results.records import ALL, NO_BASELINE
from lensbench.results.used import CEILING, INTERVENTION, SHARE

# A table in a page names about so many layers and rows; metrics.csv has all.
LAYERS, ROWS = 9, 150
# Selectivity is of a method, but told beside the labels that it is measured with; so are effects of interventions.
OF_METHODS = frozenset({NO_BASELINE, "control_task", INTERVENTION})

EXPLAINED: Mapping[str, str] = {
    "selectivity": "accuracy on true labels minus that on random labels of the same seen subjects",
    "accuracy_known": "corrected accuracy on facts that the model knows when asked",
    "accuracy_unknown": "corrected accuracy on the others",
    "detectable_gap": "the smallest true gap that a study of this size finds in 80 % of its repetitions",
    "claim_precision": "of all values that generated texts name, the share that are the item's own",
    "accuracy_whole_answers": "corrected accuracy where answers are scored to their last token",
    "confidence": "the share of the method's samples that give its most frequent answer",
    "calibration_error": "how far confidence lies from accuracy, over ten bins of it",
    "confidence_auroc": "the chance that a right answer is given with more confidence than a wrong one",
    "accuracy_restyled": "corrected accuracy on texts of other registers and lengths, with the same fits",
    "accuracy_without_evidence": "corrected accuracy without the sentence that states the answer",
    SHARE: "what the target's answer moves when one direction is put in from another item, of what the whole "
    "residual moves it",
    CEILING: "how far putting in another item's whole residual moves the target's answer, in nats of log-odds",
    "any_layer": "the share of items that some layer answers: a maximum, to be compared with any_layer_expected",
    "any_layer_expected": "the same for answers that have nothing to do with the truth",
    "oracle_expected": "what the best of all attempts would get with answers that have nothing to do with the truth",
}
"""Measures in words."""

# Of what hangs on no layer.
_NO_LAYER = -1
# Questions and rules that need not be named.
_UNTOLD = frozenset({"diagnostic", "fixed", "nan"})
_KEYS = ["task", "site", "relation", "metric", "question", "rule", "inspector"]


def measures(metrics: pd.DataFrame) -> dict[str, Any]:
    """Make the table of a run's measures.

    Args:
        metrics: the rows of metrics.csv.

    Returns:
        `layers` that are shown, `rows` (where, what, method, a value and interval a layer), how many rows are
        `left_out`, and what the measures mean.
    """
    if metrics.empty:
        return {"layers": [], "rows": [], "left_out": 0, "explained": {}}
    own = metrics[metrics["baseline"].isin(OF_METHODS)]
    layers = _spread(sorted({int(one) for one in own["layer"].dropna() if one >= 0}))
    rows = list(_rows(own, layers))
    named = {row["metric"] for row in rows[:ROWS]}
    return {
        "layers": layers, "rows": rows[:ROWS], "left_out": max(0, len(rows) - ROWS),
        "explained": {readable(name): text for name, text in EXPLAINED.items() if readable(name) in named},
    }  # fmt: skip


def _spread(layers: Sequence[int]) -> list[int]:
    if len(layers) <= LAYERS:
        return list(layers)
    return [layers[round(place)] for place in np.linspace(0, len(layers) - 1, LAYERS)]


def _rows(own: pd.DataFrame, layers: Sequence[int]) -> Iterator[dict[str, Any]]:
    whole = own.groupby(["task", "site", "inspector", "metric"], observed=True)["relation"].transform(
        lambda relations: ALL if (relations == ALL).any() else ""
    )
    # Where there is a mean of all relations, it stands for them.
    told = own[(whole != ALL) | (own["relation"] == ALL)]
    for key, part in told.groupby(_KEYS, observed=True, sort=True, dropna=False):
        task, site, relation, metric, question, rule, method = map(str, key)
        values = {_NO_LAYER if pd.isna(row["layer"]) or row["layer"] < 0 else int(row["layer"]): row
                  for row in part.to_dict("records")}  # fmt: skip
        about = [readable(one) for one in (question, rule) if one not in _UNTOLD]
        about += [f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{span(part['n'])}"] * bool(part["n"].notna().any())
        yield {
            "where": f"{readable(task)}, {'all relations' if relation == ALL else readable(relation)}, {site}",
            "metric": readable(metric), "about": ", ".join(about), "method": readable(method),
            "cells": [_cell(values.get(layer, values.get(_NO_LAYER))) for layer in layers or (_NO_LAYER,)],
        }  # fmt: skip


def _cell(row: Mapping[Any, Any] | None) -> tuple[str, str]:
    """A value, and its interval in words."""
    if row is None or pd.isna(row["value"]):
        return "–", ""
    known = not (pd.isna(row["ci_low"]) or pd.isna(row["ci_high"]))
    return (
        f"{row['value']:.2f}",
        f"95 %: {row['ci_low']:.2f} to {row['ci_high']:.2f}, {row['n']} items" if known else "",
    )


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
