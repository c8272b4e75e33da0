"""Measures other than accuracy: the rows of metrics.csv."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from lensbench.results.arrays import (
    CONTROL_TASK,
    FIXED,
    KEYS,
    NO_LAYER,
    ORACLE,
    SELECTED,
    CellScores,
    Items,
    Scored,
    cells_of,
)
from lensbench.results.bands import SCORE, Band, Floats, Ints, simultaneous_band
from lensbench.results.golds import golds_of
from lensbench.results.records import ALL, NO_BASELINE
from lensbench.results.samples import Sample, SummarySettings
from lensbench.results.summary import METRIC_COLUMNS, frame_of_blocks
from lensbench.results.used import effect_metrics, without_interventions
from lensbench.results.verdicts import DIAGNOSTIC

# How a template of a name that is cut after some of its tokens ends.
CUT = re.compile(r"@(\d+)/(\d+)$")
ELSEWHERE = ("restyled", "without_evidence")
"""The baselines that are the method itself on other texts about its items; their accuracy is a metric of its own."""
ANY_LAYER = "any_layer"
TRUE_LABELS, RANDOM_LABELS = "true_labels_seen", "random_labels_seen"


def metrics(
    records: pd.DataFrame,
    measures: pd.DataFrame | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Make the rows of metrics.csv: the summary's keys and `metric, value, ci_low, ci_high, n`.

    - `selectivity` (Hewitt & Liang 2019): the corrected accuracy on true labels minus that on random labels of the same
      seen subjects, paired over items, or over the subjects' means where the two have no items in common.
    - `accuracy_known`, `accuracy_unknown`: the corrected accuracy on the facts that the model knows, and on the others.
    - `accuracy_cut_K`: that on names cut K tokens before their end.
    - `accuracy_restyled`, `accuracy_without_evidence`: that on other texts about the same items.
    - `any_layer`, `any_layer_expected`: the share of items that some layer answers, by the default attempt, and what it
      would be had the layers answered without regard to the gold (golds shuffled as below).
    - `oracle_expected`: what a method of several attempts would have under the rule `oracle`, had it answered without
      regard to the gold: its corrected accuracy expected over golds shuffled among the items of a choice set.
    - `share_of_interchange`, `interchange_log_odds`: the effects of interventions (`lensbench.results.used`).
    - what cells measured besides (`lensbench.results.records`): means; of several attempts each, named in `rule`.

    Bands are simultaneous over layers.
    """
    settings = SummarySettings({}, level=level, draws=draws, seed=seed)
    blocks: list[dict[str, Any]] = []
    blocks += effect_metrics(records, settings)
    records = without_interventions(records)
    if _has_control(records):
        table, cells = cells_of(records[records["baseline"] == CONTROL_TASK])
        blocks += [block for cell in cells for block in _selectivity(table, cell, settings)]
    for metric, part in _strata(records):
        table, cells = cells_of(part)
        blocks += [block for cell in cells for block in _accuracies(metric, table, cell, settings)]
    blocks += _best_of_several(records)
    blocks += _measured(measures, settings) if measures is not None and len(measures) else []
    return frame_of_blocks(blocks, METRIC_COLUMNS)


def _strata(records: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the parts of the records whose accuracy is a metric of its own, with its name."""
    for name in ELSEWHERE:
        part = records[records["baseline"] == name]
        if len(part):
            yield f"accuracy_{name}", part.assign(baseline=NO_BASELINE)
    plain = records[~records["baseline"].isin([CONTROL_TASK, *ELSEWHERE])]
    for metric, value in (("accuracy_known", True), ("accuracy_unknown", False)):
        part = plain[(plain["known"] == value).fillna(value=False).astype(bool)]
        if len(part):
            yield metric, part
    templates = map(str, plain["template"].unique())
    left = {name: int(n) - int(i) for name in templates if (cut := CUT.search(name)) for i, n in [cut.groups()]}
    for tokens in sorted(set(left.values())):
        yield f"accuracy_cut_{tokens}", plain[plain["template"].isin([name for name in left if left[name] == tokens])]


def _accuracies(metric: str, table: Items, cell: CellScores, settings: SummarySettings) -> Iterator[dict[str, Any]]:
    """The corrected accuracy of a stratum, relation by relation; baselines are selected among their forms, as ever."""
    rule = SELECTED if cell.key["baseline"] != NO_BASELINE and len(cell.attempts) > 1 else FIXED
    for relation in np.unique(table.relation[cell.items]):
        part = cell.part(table.of_relation(cell.items, int(relation)))
        if part is not None:
            scored = part.scored(rule, None, table.fold)
            sample = Sample(table.relations[relation], table, settings)
            band = sample.score_band(scored.items, scored.corrected)
            yield {**_columns(cell, sample.label, metric, band, len(scored.items)), "rule": rule}


def _best_of_several(records: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """What choosing the best of several tries after the fact is worth: of the attempts at a layer, or of all layers."""
    own = records[(records["baseline"] == NO_BASELINE) & (records["chance"] > 0)]
    if own.empty:
        return
    table, _ = cells_of(own)
    golds, said = golds_of(own)
    for one in said:
        cell = one.cell
        for relation in np.unique(table.relation[cell.items]):
            part = one.part(table.relation[cell.items] == relation)
            block = {
                **cell.key, "relation": table.relations[relation], "layer": np.array([NO_LAYER]), "rule": FIXED,
                "question": DIAGNOSTIC, "n": len(part.cell.items),
            }  # fmt: skip
            if len(cell.layers) > 1:
                by_layer = part.layers_as_attempts()
                hit = by_layer.cell.corrected.max(axis=0).mean(axis=0)
                yield {**block, "metric": ANY_LAYER, "value": hit}
                yield {**block, "metric": f"{ANY_LAYER}_expected", "value": golds.expected_best(by_layer)}
            if len(part.cell.attempts) > 1:
                yield {
                    **block, "layer": np.array(cell.layers), "rule": ORACLE, "metric": "oracle_expected",
                    "value": golds.expected_best(part),
                }  # fmt: skip


def _measured(measures: pd.DataFrame, settings: SummarySettings) -> Iterator[dict[str, Any]]:
    """Means of what cells measured."""
    keys = [*KEYS, "relation", "attempt", "metric"]
    for key, part in measures.groupby(keys, observed=True, sort=True):
        named = dict(zip(keys, map(str, key), strict=True))
        layers = part["layer"].astype("float64").fillna(NO_LAYER).astype(int)
        wide = part.assign(layer=layers).pivot_table(
            index=["item", "subject"], columns="layer", values="value", observed=True, sort=True
        ) if part["item"].notna().all() else None  # fmt: skip
        block = {**{name: named[name] for name in KEYS}, "relation": named["relation"], "metric": named["metric"]}
        block |= {"rule": named["attempt"], "question": DIAGNOSTIC}
        if wide is None:
            part = part.assign(layer=layers).sort_values("layer")
            yield {**block, "layer": part["layer"].to_numpy(), "value": part["value"].to_numpy(), "n": len(part)}
            continue
        whole = wide.dropna()
        values = whole.to_numpy(dtype=np.float64)
        subjects = whole.index.get_level_values("subject").astype(str).to_numpy()
        ends = (float(values.min()), float(values.max()))
        scale = SCORE.stretched(min(0.0, ends[0]), max(1.0, ends[1]))
        band = simultaneous_band(
            values, subjects, scale=scale, level=settings.level, draws=settings.draws, seed=settings.seed
        )
        yield {
            **block, "layer": wide.columns.to_numpy(), "value": band.estimate, "ci_low": band.low,
            "ci_high": band.high, "n": len(values),
        }  # fmt: skip


def _has_control(records: pd.DataFrame) -> bool:
    return bool((records["baseline"] == CONTROL_TASK).any())


def _selectivity(table: Items, cell: CellScores, settings: SummarySettings) -> Iterator[dict[str, Any]]:
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


def _block(cell: CellScores, sample: Sample, items: Ints, differences: Floats) -> dict[str, Any]:
    return _columns(cell, sample.label, "selectivity", sample.difference_band(items, differences), len(items))


def _columns(cell: CellScores, relation: str, metric: str, band: Band, n: int) -> dict[str, Any]:
    return {
        **cell.key, "relation": relation, "layer": np.array(cell.layers), "rule": FIXED, "question": DIAGNOSTIC,
        "metric": metric, "value": band.estimate, "ci_low": band.low, "ci_high": band.high, "n": n,
    }  # fmt: skip
