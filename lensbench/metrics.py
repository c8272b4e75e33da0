"""Measures other than accuracy: the rows of metrics.csv."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from lensbench.frames import ALL, METRIC_COLUMNS, frame_of
from lensbench.samples import Sample, Settings
from lensbench.scored import FIXED, Cell, Items, Scored, cells_of
from lensbench.statistics import Floats, Ints

CONTROL_TASK = "control_task"
TRUE_LABELS, RANDOM_LABELS = "true_labels_seen", "random_labels_seen"


def metrics(records: pd.DataFrame, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Make the rows of metrics.csv: the summary's keys and `metric, value, ci_low, ci_high, n`.

    `selectivity` (Hewitt & Liang 2019) is the corrected accuracy on true labels minus that on random labels of the same
    seen subjects, paired over items, or over the subjects' means where the two have no items in common; the band is
    simultaneous over layers.
    """
    settings = Settings({}, level=level, draws=draws, seed=seed)
    table, cells = cells_of(records[records["baseline"] == CONTROL_TASK]) if _has_control(records) else (None, [])
    blocks = [block for cell in cells for block in _selectivity(table, cell, settings)] if table else []
    return frame_of(blocks, METRIC_COLUMNS)


def _has_control(records: pd.DataFrame) -> bool:
    return bool((records["baseline"] == CONTROL_TASK).any())


def _selectivity(table: Items, cell: Cell, settings: Settings) -> Iterator[dict[str, Any]]:
    parts = []
    for relation in np.unique(table.relation[cell.items]):
        items = table.of_relation(cell.items, int(relation))
        sides = [cell.part(items, (attempt,)) for attempt in (TRUE_LABELS, RANDOM_LABELS)]
        if sides[0] is None or sides[1] is None:
            continue
        true, random = (side.scored(FIXED, None, table.fold) for side in sides if side is not None)
        pair = _paired(true, random, table)
        if pair is not None:
            parts.append(pair)
            yield _block(cell, Sample(table.relations[relation], table, settings), *pair)
    if parts:
        items, differences = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        yield _block(cell, Sample(ALL, table, settings), items, differences)


def _paired(true: Scored, random: Scored, table: Items) -> tuple[Ints, Floats] | None:
    """Items [item] and differences [item, layer]; over subjects, one item stands for each."""
    items, ours, theirs = np.intersect1d(true.items, random.items, assume_unique=True, return_indices=True)
    if len(items):
        return items, true.corrected[ours] - random.corrected[theirs]
    subjects = np.intersect1d(table.subject[true.items], table.subject[random.items])
    if not len(subjects):
        return None
    means = [
        np.stack([side.corrected[table.subject[side.items] == subject].mean(axis=0) for subject in subjects])
        for side in (true, random)
    ]
    first = [true.items[np.flatnonzero(table.subject[true.items] == subject)[0]] for subject in subjects]
    return np.array(first), means[0] - means[1]


def _block(cell: Cell, sample: Sample, items: Ints, differences: Floats) -> dict[str, Any]:
    band = sample.difference_band(items, differences)
    return {
        **cell.key, "relation": sample.label, "layer": np.array(cell.layers), "rule": FIXED, "question": "diagnostic",
        "metric": "selectivity", "value": band.estimate, "ci_low": band.low, "ci_high": band.high, "n": len(items),
    }  # fmt: skip
