"""From records to the summary: accuracy with bands, gaps and verdicts at each layer, and the best layers in it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from lensbench.results.activation_test import activation_tests, with_shuffled
from lensbench.results.arrays import CONTROL_TASK, FIXED, NO_LAYER, ORACLE, Scored, cells_of
from lensbench.results.crossed import crossed_of
from lensbench.results.records import CORRECTED, NO_BASELINE
from lensbench.results.samples import (
    PairedMethod,
    Sample,
    SummarySettings,
    by_relation,
    deciding,
    methods_of,
    samples_of,
    samples_under,
)
from lensbench.results.used import used_blocks, without_interventions
from lensbench.results.verdicts import NO_VERDICT, VERDICTS, check_questions, gaps_of

KEY_COLUMNS = (
    "model", "verbalizer", "task", "relation", "inspector", "baseline", "site", "layer", "rule", "question",
)  # fmt: skip
SUMMARY_COLUMNS = (
    *KEY_COLUMNS, "n", "subjects", "accuracy", "accuracy_corrected", "ci_low", "ci_high", "chance",
    "gap", "gap_low", "gap_high", "strongest_baseline", "verdict", "p_value", "detectable_gap", "relations",
)  # fmt: skip
EARLIER_SUMMARY_COLUMNS = SUMMARY_COLUMNS[:-3]
"""Those of run folders that were written before there were permutation tests."""
METRIC_COLUMNS = (*KEY_COLUMNS, "metric", "value", "ci_low", "ci_high", "n")
_TEXT = {*KEY_COLUMNS, "strongest_baseline", "verdict", "metric"} - {"layer"}


def frame_of_blocks(blocks: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
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
    for column in ("n", "subjects", "relations"):
        if column in frame:
            frame[column] = frame[column].astype(np.int64)
    frame["layer"] = frame["layer"].where(frame["layer"] != NO_LAYER).astype(pd.Int16Dtype())
    order = [name for name in KEY_COLUMNS if name != "layer"]
    return frame.sort_values([*order, "layer"], kind="stable", ignore_index=True, na_position="first")


def accuracy_column(score: str) -> str:
    """Return the column with the accuracy under the score that decides; intervals are of this one."""
    return "accuracy_corrected" if score == CORRECTED else "accuracy"


def best_layers(
    summary: pd.DataFrame, score: str = CORRECTED, rules: Mapping[str, str] = MappingProxyType({})
) -> pd.DataFrame:
    """Return the best layer of each model x verbalizer x task x relation x site x inspector, and its figures.

    The best layer has the highest accuracy under the rule and the deciding score (the first such layer at ties).
    Choosing it is a selection, and an interval made for one layer would be too narrow there; the bands of a summary
    are simultaneous over layers, so they cover whichever layer is chosen. The estimate itself is still that of a
    maximum. The column `rule` says which attempt stands for a method of several.

    For each question Q that was asked there are the columns Q_baseline (the strongest at that layer),
    Q_baseline_accuracy, Q_gap, Q_gap_low, Q_gap_high, Q_p_value, Q_detectable_gap, Q_verdict, and Q_holds: the layers
    at which the claim of the question holds, as spans such as `8-10, 12` of the layers read.

    Args:
        summary: of one run.
        score: `corrected` or `raw`, as the run declared it.
        rules: method -> `selected` for one that is a search, as the run declared it; `fixed` for all others, and
            where there is one attempt only.
    """
    ruled = by_their_rules(summary, rules)
    methods = ruled[ruled["baseline"] == NO_BASELINE]
    group = ["model", "verbalizer", "task", "relation", "site", "inspector"]
    accuracy = accuracy_column(score)
    best = methods.sort_values([accuracy, "layer"], ascending=[False, True], kind="stable")
    best = best.drop_duplicates(group)[
        [
            *group,
            "layer",
            "rule",
            "n",
            "subjects",
            "relations",
            "accuracy",
            "accuracy_corrected",
            "ci_low",
            "ci_high",
            "chance",
        ]
    ]
    baselines = ruled[[*group, "layer", "baseline", accuracy]].rename(columns={accuracy: "baseline_accuracy"})
    for question in VERDICTS:
        columns = ["gap", "gap_low", "gap_high", "p_value", "detectable_gap", "verdict"]
        asked = methods[methods["question"] == question][[*group, "layer", "strongest_baseline", *columns]]
        asked = asked.astype({"strongest_baseline": object})  # all missing where no baseline was run
        held = {key: _held_at(part, question) for key, part in asked.groupby(group, observed=True)}
        asked = asked.rename(columns={"strongest_baseline": "baseline"}).merge(
            baselines[baselines["baseline"] != NO_BASELINE], on=[*group, "layer", "baseline"], how="left"
        )
        asked["holds"] = [held[key] for key in asked[group].itertuples(index=False, name=None)]
        new = {name: f"{question}_{name}" for name in ("baseline", "baseline_accuracy", *columns, "holds")}
        best = best.merge(asked.rename(columns=new)[[*group, "layer", *new.values()]], on=[*group, "layer"], how="left")
    return best.sort_values(group, kind="stable", ignore_index=True)


def by_their_rules(summary: pd.DataFrame, rules: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows of the rule that stands for each method; see `best_layers`."""
    names = summary["inspector"].astype(str)
    several = set(names[summary["rule"] != FIXED])
    return summary[summary["rule"] == names.map(lambda name: rules.get(name, FIXED) if name in several else FIXED)]


def _held_at(rows: pd.DataFrame, question: str) -> str:
    """The layers at which the claim of a question holds, as spans of the layers that were read."""
    holds = rows["verdict"] == VERDICTS[question]
    read, held = (
        sorted(int(layer) for layer in layers.dropna()) for layers in (rows["layer"], rows.loc[holds, "layer"])
    )
    return spans(held, read)


def spans(layers: Iterable[int], asked: Sequence[int]) -> str:
    """Write layers as spans of those that were asked: 8-20, 28."""
    found: list[list[int]] = []
    for layer in layers:
        if found and asked.index(layer) == asked.index(found[-1][-1]) + 1:
            found[-1].append(layer)
        else:
            found.append([layer])
    return ", ".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else str(one[0]) for one in found)


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a frame as rows of plain values, for JSON: what is missing is None."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [
        {str(name): value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
        for row in plain.to_dict("records")
    ]


DETECTABLE = "detectable_gap"


def summarise(records: pd.DataFrame, settings: SummarySettings, crossed: pd.DataFrame | None = None) -> pd.DataFrame:
    """Summarise the records of one run, as `read_records` gives them: one row for each combination of `KEY_COLUMNS`.

    A method's rows are repeated for each question that had a baseline; their gap is the paired difference of the
    deciding score to the strongest baseline of that question at that layer, over the items that both scored. A baseline
    is scored under the method's rule with a selection of its own; one whose attempts are not the method's (question
    forms, ways to pick a choice) is always `selected` where the method is `fixed`. Rows of `oracle` carry no verdict.
    Rows of relation `all` are relation-macro means of (accuracy - chance) / (1 - chance) over the relations that this
    method answered; `relations` counts them. The attempts of the control task are rows of their own, named in `rule`.

    Args:
        records: of one run.
        settings: how verdicts are given.
        crossed: credit under other activations, as `crossed.read_crossed` gives it. Without it whether a method uses
            the activation is decided by the band over the baseline `shuffled`.
    """
    return summary_and_power(records, settings, crossed)[0]


def summary_and_power(
    records: pd.DataFrame, settings: SummarySettings, crossed: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The summary, and for each of its gaps the metric `detectable_gap` (rows as in metrics.csv).

    That is the smallest true gap to the strongest baseline that such a study would find in 80 % of its repetitions (NaN
    where it would find none); `n` is the number of subjects.
    """
    answers = without_interventions(records)
    blocks = [
        block for method in methods_with_tests(answers, settings, crossed) for block in _method_blocks(method, settings)
    ]
    blocks += list(used_blocks(records, blocks, settings))
    power = [
        {**block, "metric": DETECTABLE, "value": block[DETECTABLE], "n": block["subjects"],
         "ci_low": np.nan, "ci_high": np.nan}
        for block in blocks if DETECTABLE in block and block["rule"] != ORACLE
    ]  # fmt: skip
    return frame_of_blocks(blocks, SUMMARY_COLUMNS), frame_of_blocks(power, METRIC_COLUMNS)


def methods_with_tests(
    records: pd.DataFrame, settings: SummarySettings, crossed: pd.DataFrame | None
) -> Iterator[PairedMethod]:
    """Put methods, their baselines and their permutation tests together.

    Raises:
        UsageError: a baseline has no question, or one that is unknown.
    """
    table, cells = cells_of(records)
    check_questions(cells, settings)
    cells = deciding(cells, settings)
    known = crossed_of(table, cells, crossed) if crossed is not None else {}
    cells = with_shuffled(table, cells, known, settings.learns_labels)
    tests = activation_tests(
        table, cells, known, learns_labels=settings.learns_labels, defaults=settings.defaults, seed=settings.seed
    )
    yield from methods_of(table, cells, tests)


def _method_blocks(method: PairedMethod, settings: SummarySettings) -> Iterator[dict[str, Any]]:
    control = method.cells.get(CONTROL_TASK)
    for rule in method.rules:
        for sample, scores in samples_under(method, rule, settings):
            yield from _sample_blocks(method, scores, sample, rule)
    for attempt in control.attempts if control else ():
        by_attempt = {CONTROL_TASK: by_relation(method, control, FIXED, settings, (attempt,))} if control else {}
        for sample, here in samples_of(method, by_attempt, settings):
            yield from _sample_blocks(method, here, sample, attempt)


def _sample_blocks(
    method: PairedMethod, scores: Mapping[str, Scored], sample: Sample, rule: str
) -> Iterator[dict[str, Any]]:
    asked = sample.settings.questions
    own = scores.get(NO_BASELINE)
    for name, baseline in scores.items():
        if name != NO_BASELINE and name in asked:
            yield {**_score_columns(method, name, baseline, sample), "rule": rule, "question": asked[name]}
    if own is None:
        return
    columns = {**_score_columns(method, NO_BASELINE, own, sample), "rule": rule}
    gaps = list(gaps_of(method, scores, sample, rule))
    unfit = sample.settings.unfit.get(columns["inspector"])
    for question, found in gaps:
        selected = (columns["task"], sample.label) in sample.settings.selected
        unfit = sample.settings.unfit.get(str(columns["inspector"]))
        verdict = "" if rule == ORACLE else NO_VERDICT if selected else found.verdict
        if unfit and rule != ORACLE:
            verdict = f"no verdict (fails {unfit})"
        gap = {} if found.gap is None else {
            "gap": found.gap.estimate, "gap_low": found.gap.low, "gap_high": found.gap.high,
            "detectable_gap": np.nan if found.gap.detectable is None else found.gap.detectable,
            "p_value": np.nan if found.p_value is None else found.p_value,
        }  # fmt: skip
        yield {**columns, **gap, "question": question, "strongest_baseline": found.strongest, "verdict": verdict}
    if not gaps:
        yield columns


def _score_columns(method: PairedMethod, name: str, scored: Scored, sample: Sample) -> dict[str, Any]:
    cell, layers, items = method.cells[name], method.layers, scored.items
    band = sample.score_band(items, scored.corrected)
    other = sample.mean(items, scored.raw)
    if cell.layers == (NO_LAYER,):
        band, other = band.at(len(layers)), np.repeat(other, len(layers))
    else:
        layers = cell.layers
    corrected = sample.settings.score == CORRECTED
    return {
        **cell.key, "relation": sample.label, "layer": np.array(layers),
        "n": len(items), "subjects": len(np.unique(sample.table.subject[items])),
        "relations": len(np.unique(sample.table.relation[items])),
        "accuracy": other if corrected else band.estimate, "accuracy_corrected": band.estimate if corrected else other,
        "ci_low": band.low, "ci_high": band.high,
        "chance": 0.0 if sample.is_total else float(sample.chance(items).mean()),
    }  # fmt: skip
