"""The summary as a table: its columns, how it is put together, and the best layers in it."""

from typing import Any

import numpy as np
import pandas as pd

from lensbench.results.arrays import FIXED, NO_LAYER
from lensbench.results.bands import VERDICTS
from lensbench.results.records import NO_BASELINE

ALL = "all"
"""The `relation` of a task's totals."""
KEY_COLUMNS = (
    "model", "verbalizer", "task", "relation", "inspector", "baseline", "site", "layer", "rule", "question",
)  # fmt: skip
SUMMARY_COLUMNS = (
    *KEY_COLUMNS, "n", "subjects", "accuracy", "accuracy_corrected", "ci_low", "ci_high", "chance",
    "gap", "gap_low", "gap_high", "strongest_baseline", "verdict",
)  # fmt: skip
METRIC_COLUMNS = (*KEY_COLUMNS, "metric", "value", "ci_low", "ci_high", "n")
_TEXT = {*KEY_COLUMNS, "strongest_baseline", "verdict", "metric"} - {"layer"}


def frame_of(blocks: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    """Put blocks of columns (arrays over layers, or single values) under one another, in the order of their keys."""
    lengths = [len(block["layer"]) for block in blocks]
    data: dict[str, Any] = {}
    for column in columns:
        kind = object if column in _TEXT else np.float64
        empty = "" if column in ("strongest_baseline", "verdict") else None if kind is object else np.nan
        whole = np.empty(sum(lengths), dtype=kind)
        start = 0
        for block, length in zip(blocks, lengths, strict=True):
            whole[start : start + length] = block.get(column, empty)
            start += length
        data[column] = whole
    frame = pd.DataFrame(data, columns=list(columns))
    for column in ("n", "subjects"):
        if column in frame:
            frame[column] = frame[column].astype(np.int64)
    frame["layer"] = frame["layer"].where(frame["layer"] != NO_LAYER).astype(pd.Int16Dtype())
    order = [name for name in KEY_COLUMNS if name != "layer"]
    return frame.sort_values([*order, "layer"], kind="stable", ignore_index=True, na_position="first")


def best_layers(summary: pd.DataFrame, rule: str = FIXED) -> pd.DataFrame:
    """One row per model x verbalizer x task x relation x site x inspector: its best layer and what was found there.

    The best layer has the highest corrected accuracy under the rule (the first such layer at ties). Choosing it is a
    selection, and an interval made for one layer would be too narrow there; the bands of a summary are simultaneous
    over layers, so they cover whichever layer is chosen. The estimate itself is still that of a maximum. Methods of one
    attempt have the rule `fixed` alone.

    For each question Q that was asked there are the columns Q_rival (the strongest at that layer), Q_rival_accuracy,
    Q_gap, Q_gap_low, Q_gap_high and Q_verdict.
    """
    ruled = summary[summary["rule"] == rule]
    methods = ruled[ruled["baseline"] == NO_BASELINE]
    group = ["model", "verbalizer", "task", "relation", "site", "inspector"]
    best = methods.sort_values(["accuracy_corrected", "layer"], ascending=[False, True], kind="stable")
    best = best.drop_duplicates(group)[
        [*group, "layer", "n", "subjects", "accuracy", "accuracy_corrected", "ci_low", "ci_high", "chance"]
    ]
    rivals = ruled[[*group, "layer", "baseline", "accuracy_corrected"]].rename(
        columns={"accuracy_corrected": "rival_accuracy", "baseline": "rival"}
    )
    for question in VERDICTS:
        columns = ["gap", "gap_low", "gap_high", "verdict"]
        asked = methods[methods["question"] == question][[*group, "layer", "strongest_baseline", *columns]]
        asked = asked.astype({"strongest_baseline": object})  # all missing where no rival was run
        asked = asked.rename(columns={"strongest_baseline": "rival"}).merge(
            rivals[rivals["rival"] != NO_BASELINE], on=[*group, "layer", "rival"], how="left"
        )
        new = {name: f"{question}_{name}" for name in ("rival", "rival_accuracy", *columns)}
        best = best.merge(asked.rename(columns=new)[[*group, "layer", *new.values()]], on=[*group, "layer"], how="left")
    return best.sort_values(group, kind="stable", ignore_index=True)


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame as rows of plain values, for JSON: what is missing is None."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [
        {str(name): value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
        for row in plain.to_dict("records")
    ]
